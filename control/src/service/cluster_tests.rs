//! Several pipelines over one log: what takes effect when which of them sign.

use super::*;
use crate::projection::Projection;
use std::path::{Path, PathBuf};
use tokio::task::JoinHandle;
use voute_events::{EmbeddedLog, Exchange, Log, SignedRegister, Signer, verify};
use voute_schemas::Name;
use voute_schemas::event::SiteKind;
use voute_schemas::ids::*;
use voute_schemas::proof::Verifier;

/// Commits of a cluster of three.
const FOUNDED: u64 = 3;
/// Longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for what must not happen to happen.
const A_WHILE: Duration = Duration::from_millis(300);

#[derive(Debug)]
struct NoStreams;

impl Changes for NoStreams {
    fn changed(&self, _: &State, _: &State, _: &[Event]) {}
}

struct World {
    log: Arc<EmbeddedLog>,
    ring: Vec<Exchange>,
    folder: tempfile::TempDir,
}

struct Process {
    service: Service,
    task: JoinHandle<Result<(), Fault>>,
    stop: watch::Sender<bool>,
}

impl Process {
    async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap().unwrap();
    }

    async fn reaches(&self, sequence: u64) {
        let mut head = self.service.head();
        let reached = head.wait_for(|head| head.sequence.0 >= sequence);
        tokio::time::timeout(PATIENCE, reached).await.expect("it takes effect").unwrap();
    }

    /// How many sites' signatures the published checkpoint bears.
    fn is_signed_by(&self, needed: usize) -> bool {
        let (checkpoint, sites) = self.service.read(|view| {
            (view.checkpoint.clone(), view.state.cluster().unwrap().log_sites.clone())
        });
        verify(&checkpoint, &sites, needed).is_ok()
    }
}

fn signer(index: usize) -> Signer {
    Signer::from_seed(&format!("s{index}"), [index as u8 + 1; 32]).unwrap()
}

fn context() -> Context {
    Context::system(Origin::Api, "test")
}

fn add_site(name: &str) -> Command {
    let (site, name) = (SiteId::generate(), Name::new(name).unwrap());
    Command::AddSite { site, name, kind: SiteKind::Data }
}

fn ask(service: &Service, command: Command) -> JoinHandle<Answer> {
    let service = service.clone();
    tokio::spawn(async move { service.submit(command, context()).await })
}

fn sequence(answer: &Answer) -> u64 {
    match answer {
        Ok(Done::Committed { position, .. }) => position.sequence.0,
        other => panic!("{other:?}"),
    }
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = Arc::new(EmbeddedLog::open(folder.path().join("log.redb")).unwrap());
        World { log, ring: Exchange::ring(5), folder }
    }

    fn register(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("register-{index}"))
    }

    async fn start(&self, index: usize) -> Process {
        // The key is always the same; whether it was used before, a file tells as in production.
        let key = self.folder.path().join(format!("key-{index}"));
        let seat = seat(&key, &self.register(index), index);
        self.start_with(index, Arc::clone(&self.log), seat).await
    }

    async fn start_telling(&self, index: usize, changes: Arc<dyn Changes>) -> Process {
        let seat = seat(&self.folder.path().join("key-telling"), &self.register(index), index);
        self.start_as(index, Arc::clone(&self.log), seat, changes).await
    }

    async fn start_with(&self, index: usize, log: Arc<EmbeddedLog>, seat: Seat) -> Process {
        self.start_as(index, log, seat, Arc::new(NoStreams)).await
    }

    async fn start_as(
        &self,
        index: usize,
        log: Arc<EmbeddedLog>,
        seat: Seat,
        changes: Arc<dyn Changes>,
    ) -> Process {
        let (stop, stopping) = watch::channel(false);
        let path = self.folder.path().join(format!("projection-{index}"));
        let projection = Projection::open(&path).unwrap();
        let snapshot = projection.load().unwrap().unwrap_or_default();
        let config = PipelineConfig {
            seat: Some(seat),
            exchange: self.ring[index].clone(),
            projection: Some(projection),
            snapshot,
            changes,
            stop: stopping,
        };
        let (service, _, task) = start(log, config).await.unwrap();
        Process { service, task, stop }
    }

    /// A cluster of three sites, all running.
    async fn three() -> (Self, Vec<Process>) {
        let world = World::new();
        let mut processes = vec![world.start(0).await];
        let (cluster, name) = (ClusterId::generate(), Name::new("c").unwrap());
        let log_site = world.verifier(0);
        let create = Command::CreateCluster { cluster, name, log_site };
        assert_eq!(sequence(&processes[0].service.submit(create, context()).await), 1);
        for index in [1, 2] {
            processes.push(world.start(index).await);
        }
        for (index, commit) in [(1, 2), (2, 3)] {
            let added = vec![world.verifier(index)];
            assert_eq!(processes[0].change_sites(added, &[]).await, commit);
        }
        for process in &processes {
            process.reaches(FOUNDED).await;
        }
        (world, processes)
    }

    fn verifier(&self, index: usize) -> voute_schemas::proof::Verifier {
        let key = self.folder.path().join(format!("key-{index}"));
        Signer::load_or_create(key, &format!("s{index}")).unwrap().verifier()
    }
}

fn seat(key: &Path, register: &Path, index: usize) -> Seat {
    if !register.exists() && !key.with_extension("used").exists() {
        // A new site.
        drop(SignedRegister::open(register).unwrap());
        std::fs::write(key.with_extension("used"), b"").unwrap();
    }
    Seat::open(key, register, &format!("s{index}")).unwrap()
}

#[tokio::test]
async fn a_commit_takes_effect_when_two_of_three_sites_signed_it() {
    let (world, processes) = World::three().await;
    assert!(processes.iter().all(|process| process.is_signed_by(2)));
    // One is cut off: nobody notices, whoever is asked.
    world.ring[2].cut(true);
    assert_eq!(sequence(&processes[0].service.submit(add_site("a"), context()).await), 4);
    assert_eq!(sequence(&processes[1].service.submit(add_site("b"), context()).await), 5);
    assert!(processes[2].service.state().position().sequence.0 < 5);
    // Two are cut off: it is in the log, and has no effect; nothing more is appended behind it.
    world.ring[1].cut(true);
    let asked = ask(&processes[0].service, add_site("c"));
    while world.log.as_ref().read(Sequence(6), 9).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let behind = ask(&processes[0].service, add_site("d"));
    tokio::time::sleep(A_WHILE).await;
    assert!(!asked.is_finished() && !behind.is_finished());
    for process in &processes {
        assert!(process.service.state().position().sequence.0 < 6);
    }
    assert_eq!(world.log.as_ref().read(Sequence(6), 9).await.unwrap().len(), 1);
    // They are back: it takes effect everywhere.
    world.ring[1].cut(false);
    assert_eq!(sequence(&asked.await.unwrap()), 6);
    assert_eq!(sequence(&behind.await.unwrap()), 7);
    world.ring[2].cut(false);
    for process in &processes {
        process.reaches(7).await;
    }
}

#[tokio::test]
async fn commits_that_wait_for_signatures_are_told_of() {
    let (world, processes) = World::three().await;
    world.ring[1].cut(true);
    world.ring[2].cut(true);
    let asked = ask(&processes[0].service, add_site("a"));
    let mut condition = processes[0].service.condition();
    let told = condition.wait_for(|condition| condition.unsigned.is_some());
    let told = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap().clone();
    assert!(told.unsigned.unwrap().contains("2 of 3"));
    world.ring[1].cut(false);
    assert_eq!(sequence(&asked.await.unwrap()), 4);
    let over = condition.wait_for(|condition| condition.unsigned.is_none());
    tokio::time::timeout(PATIENCE, over).await.unwrap().unwrap();
}

#[tokio::test]
async fn many_writers_at_once_all_come_to_an_effect() {
    let (_world, processes) = World::three().await;
    let mut asked = Vec::new();
    for number in 0..60 {
        let process = &processes[number % 3];
        asked.push(ask(&process.service, add_site(&format!("site-{number}"))));
    }
    for answer in asked {
        assert!(sequence(&answer.await.unwrap()) > 3);
    }
    for process in &processes {
        process.reaches(63).await;
        assert_eq!(process.service.state().sites().count(), 60);
    }
}

#[tokio::test]
async fn new_sites_take_over_only_with_the_old_ones_majority() {
    let (world, mut processes) = World::three().await;
    // The third is gone for ever; another takes its place.
    processes.pop().unwrap().stop().await;
    world.ring[3].cut(true);
    processes.push(world.start(3).await);
    let add = Command::ChangeLogSites { add: vec![world.verifier(3)], remove: vec![] };
    // Cut off from the second, the first may append it: two of three, but not three of four.
    world.ring[1].cut(true);
    world.ring[3].cut(false);
    let asked = ask(&processes[0].service, add);
    tokio::time::sleep(A_WHILE).await;
    assert!(!asked.is_finished(), "s0 and s3 are no majority of the new sites, nor of the old");
    world.ring[1].cut(false);
    assert_eq!(sequence(&asked.await.unwrap()), 4);
    assert_eq!(processes[0].change_sites(vec![], &["s2"]).await, 5);
    // From here on the new one counts.
    world.ring[1].cut(true);
    assert_eq!(sequence(&processes[0].service.submit(add_site("a"), context()).await), 6);
    assert!(processes[0].is_signed_by(2));
}

impl Process {
    /// One log site comes or goes.
    async fn change_sites(&self, add: Vec<Verifier>, remove: &[&str]) -> u64 {
        let remove = remove.iter().map(|name| (*name).to_owned()).collect();
        let change = Command::ChangeLogSites { add, remove };
        sequence(&self.service.submit(change, context()).await)
    }
}

/// Nobody of those who are left is a majority of those whom it knew.
#[tokio::test]
async fn who_was_away_while_sites_were_replaced_follows_how_they_handed_over() {
    let (world, mut processes) = World::three().await;
    let away = world.start(4).await;
    away.reaches(3).await;
    away.stop().await;
    processes.push(world.start(3).await);
    assert_eq!(processes[0].change_sites(vec![world.verifier(3)], &[]).await, 4);
    assert_eq!(processes[0].change_sites(vec![], &["s1"]).await, 5);
    processes[3].reaches(5).await;
    processes.remove(1).stop().await;
    assert_eq!(processes[0].change_sites(vec![], &["s2"]).await, 6);
    processes[2].reaches(6).await;
    processes.remove(1).stop().await;
    for name in ["a", "b"] {
        sequence(&processes[0].service.submit(add_site(name), context()).await);
    }
    let back = world.start(4).await;
    back.reaches(8).await;
    // It can tell nodes, too.
    let view = back.service.read(Clone::clone);
    let shown = back.service.hand_overs(&view).await.unwrap();
    let shown: Vec<u64> = shown.iter().map(|it| it.named.sequence.0).collect();
    assert_eq!(shown[shown.len() - 3..], [4, 5, 6]);
    // And it goes on from there when it is started again.
    back.stop().await;
    let again = world.start(4).await;
    again.reaches(8).await;
    let again = again.service.hand_overs(&view).await.unwrap();
    assert_eq!(again.last().unwrap().named.sequence.0, 6);
}

/// A site that is not there was added. Whoever takes it back need not wait for it, nor restart.
#[tokio::test]
async fn a_change_of_sites_that_waits_in_vain_can_be_taken_back() {
    let world = World::new();
    let process = world.start(0).await;
    let (cluster, name) = (ClusterId::generate(), Name::new("c").unwrap());
    let create = Command::CreateCluster { cluster, name, log_site: world.verifier(0) };
    assert_eq!(sequence(&process.service.submit(create, context()).await), 1);
    let add = Command::ChangeLogSites { add: vec![world.verifier(1)], remove: vec![] };
    let added = ask(&process.service, add);
    while world.log.as_ref().read(Sequence(2), 9).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let behind = ask(&process.service, add_site("a"));
    // It tells how.
    let mut condition = process.service.condition();
    let told = condition.wait_for(|condition| condition.unsigned.is_some());
    let told = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap().clone();
    assert!(told.unsigned.as_ref().unwrap().contains("`voute log-site remove s1`"), "{told:?}");
    assert!(!added.is_finished() && !behind.is_finished());
    // Another change of sites waits like everything else.
    let more = Command::ChangeLogSites { add: vec![world.verifier(2)], remove: vec![] };
    let more = ask(&process.service, more);
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(world.log.as_ref().read(Sequence(3), 9).await.unwrap().len(), 0);
    more.abort();
    assert!(more.await.is_err());
    assert_eq!(process.change_sites(vec![], &["s1"]).await, 3);
    assert_eq!(sequence(&added.await.unwrap()), 2, "it was in the log, and was taken back");
    assert!(sequence(&behind.await.unwrap()) > 3);
    assert!(process.is_signed_by(1));
}

/// Looks, while it is told of a change, whether others can see the new state already.
#[derive(Debug, Default)]
struct Onlooker {
    service: std::sync::OnceLock<Service>,
    saw: Mutex<Vec<bool>>,
}

impl Changes for Onlooker {
    fn changed(&self, _: &State, after: &State, _: &[Event]) {
        let Some(service) = self.service.get().cloned() else { return };
        let (seen, sees) = std::sync::mpsc::channel();
        std::thread::spawn(move || seen.send(service.state().position()));
        let sees = sees.recv_timeout(A_WHILE).is_ok_and(|position| position == after.position());
        self.saw.lock().unwrap().push(sees);
    }
}

/// Else a node could be told a position without all that changed up to it.
#[tokio::test]
async fn nobody_sees_a_state_before_the_streams_know_what_changed() {
    let world = World::new();
    let onlooker = Arc::new(Onlooker::default());
    let process = world.start_telling(0, Arc::clone(&onlooker) as Arc<dyn Changes>).await;
    assert!(onlooker.service.set(process.service.clone()).is_ok());
    let (cluster, name) = (ClusterId::generate(), Name::new("c").unwrap());
    let key = world.folder.path().join("key-telling");
    let log_site = Signer::load_or_create(key, "s0").unwrap().verifier();
    let create = Command::CreateCluster { cluster, name, log_site };
    assert_eq!(sequence(&process.service.submit(create, context()).await), 1);
    assert_eq!(*onlooker.saw.lock().unwrap(), [false]);
}

/// Who asked gave up, and may have done otherwise since.
#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_done_when_signatures_come_back() {
    let (world, processes) = World::three().await;
    world.ring[1].cut(true);
    world.ring[2].cut(true);
    let asked = ask(&processes[0].service, add_site("a"));
    while world.log.as_ref().read(Sequence(4), 9).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let given_up = ask(&processes[0].service, add_site("given-up"));
    let behind = ask(&processes[0].service, add_site("b"));
    tokio::time::sleep(A_WHILE).await;
    given_up.abort();
    assert!(given_up.await.is_err());
    world.ring[1].cut(false);
    assert_eq!(sequence(&asked.await.unwrap()), 4);
    assert_eq!(sequence(&behind.await.unwrap()), 5);
    let state = processes[0].service.state();
    assert!(state.sites().all(|(_, site)| site.name.as_str() != "given-up"));
}

/// Whoever is to become a site is heard before it is one.
#[tokio::test]
async fn who_is_no_site_yet_is_heard_by_the_others() {
    let (world, processes) = World::three().await;
    let hears = async |index| {
        let verifier = world.verifier(index);
        processes[0].service.hears(&verifier, Duration::from_secs(2)).await
    };
    assert!(!hears(3).await, "it does not run");
    let fourth = world.start(3).await;
    assert!(hears(3).await);
    assert!(!hears(4).await);
    fourth.stop().await;
}

#[tokio::test]
async fn a_restarted_process_needs_no_more_than_the_others_word() {
    let (world, mut processes) = World::three().await;
    processes.remove(1).stop().await;
    assert_eq!(sequence(&processes[0].service.submit(add_site("a"), context()).await), 4);
    let again = world.start(1).await;
    again.reaches(4).await;
    assert_eq!(sequence(&again.service.submit(add_site("b"), context()).await), 5);
}

#[tokio::test]
async fn a_lost_register_begins_anew_only_after_both_others_were_heard() {
    let (world, mut processes) = World::three().await;
    assert_eq!(sequence(&processes[0].service.submit(add_site("a"), context()).await), 4);
    processes.remove(1).stop().await;
    std::fs::remove_file(world.register(1)).unwrap();
    world.ring[2].cut(true);
    let again = world.start(1).await;
    // With only one of the two others to hear, it signs nothing.
    let asked = ask(&processes[0].service, add_site("b"));
    tokio::time::sleep(A_WHILE).await;
    assert!(!asked.is_finished());
    assert!(!world.register(1).exists());
    world.ring[2].cut(false);
    assert_eq!(sequence(&asked.await.unwrap()), 5);
    let mut reseeded = again.service.reseeded();
    let signed = tokio::time::timeout(PATIENCE, reseeded.wait_for(Option::is_some)).await;
    let signed = signed.unwrap().unwrap().unwrap();
    assert!(signed.size >= 4, "{signed:?}");
    assert!(world.register(1).exists());
}

#[tokio::test]
async fn a_process_whose_log_is_another_branch_is_outvoted_and_stops() {
    let (world, mut processes) = World::three().await;
    processes.pop().unwrap().stop().await;
    // Its replica has another fourth commit than the one that the others go on to sign.
    let other = EmbeddedLog::open(world.folder.path().join("other.redb")).unwrap();
    let commits = world.log.as_ref().read(Sequence(1), 9).await.unwrap();
    let mut commits: Vec<voute_schemas::Commit> = commits
        .iter()
        .map(|stored| voute_schemas::Commit::decode(&stored.bytes).unwrap())
        .collect();
    other.append(Position::ZERO, &commits).await.unwrap();
    assert_eq!(sequence(&processes[0].service.submit(add_site("a"), context()).await), 4);
    let head = Position {
        sequence: Sequence(3),
        hash: voute_schemas::Hash::of_commit(&commits[2].encode()),
    };
    let mut branch = commits.pop().unwrap();
    (branch.sequence, branch.previous, branch.id) = (Sequence(4), head.hash, CommitId::generate());
    branch.outcome = voute_schemas::commit::Outcome::Refused {
        code: "x".to_owned(),
        message: "another branch".to_owned(),
    };
    other.append(head, &[branch]).await.unwrap();
    let stray = Seat::new(signer(9), SignedRegister::open(world.register(9)).unwrap());
    let lost = world.start_with(2, Arc::new(other), stray).await;
    let ended = tokio::time::timeout(PATIENCE, lost.task).await.expect("it stops").unwrap();
    assert!(matches!(ended, Err(Fault::Outvoted)), "{ended:?}");
    assert!(lost.service.condition().borrow().stopped.is_some());
    assert_eq!(sequence(&processes[0].service.submit(add_site("b"), context()).await), 5);
}

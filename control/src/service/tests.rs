//! The pipeline over logs that misbehave.

use super::*;
use crate::projection::Snapshot;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use voute_events::{AppendError, EmbeddedLog, Exchange, Log, SignedRegister, Signer};
use voute_schemas::commit::{Commit, Outcome};
use voute_schemas::event::{ConditionSource, SiteCondition, SiteKind};
use voute_schemas::ids::*;
use voute_schemas::{Hash, Name};

#[derive(Debug)]
struct NoStreams;

impl Changes for NoStreams {
    fn changed(&self, _: &State, _: &State, _: &[Event]) {}
}

/// What the next append does instead of the usual.
enum Mishap {
    /// Stores, and loses the answer.
    StoredUnanswered,
    /// Loses the request.
    Lost,
    /// Another writer comes first.
    Overtaken,
    /// Takes no more.
    Full,
}

struct Troubled {
    log: EmbeddedLog,
    mishaps: Mutex<VecDeque<Mishap>>,
    appends: AtomicUsize,
    /// While set, appends wait.
    held: AtomicBool,
    released: Notify,
    /// Number of a commit that reads as one of a newer version.
    unreadable: AtomicU64,
    seats: AtomicUsize,
    folder: tempfile::TempDir,
}

impl Troubled {
    fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(folder.path().join("log.redb")).unwrap();
        Arc::new(Troubled {
            log,
            mishaps: Mutex::default(),
            appends: AtomicUsize::new(0),
            held: AtomicBool::new(false),
            released: Notify::new(),
            unreadable: AtomicU64::new(0),
            seats: AtomicUsize::new(0),
            folder,
        })
    }

    fn next_appends(&self, mishaps: impl IntoIterator<Item = Mishap>) {
        self.mishaps.lock().unwrap().extend(mishaps);
    }

    fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
        self.released.notify_waiters();
    }

    async fn commits(&self) -> Vec<Commit> {
        let stored = self.log.read(Sequence(1), 10_000).await.unwrap();
        stored.iter().map(|stored| Commit::decode(&stored.bytes).unwrap()).collect()
    }
}

impl Log for Troubled {
    async fn append(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        loop {
            let released = self.released.notified();
            if !self.held.load(Ordering::SeqCst) {
                break;
            }
            released.await;
        }
        let unknown = || AppendError::Unknown { cause: "the cable".into() };
        let mishap = self.mishaps.lock().unwrap().pop_front();
        match mishap {
            None => self.log.append(expected, commits).await,
            Some(Mishap::StoredUnanswered) => {
                self.log.append(expected, commits).await?;
                Err(unknown())
            }
            Some(Mishap::Lost) => Err(unknown()),
            Some(Mishap::Full) => Err(AppendError::Full { cause: "no room".into() }),
            Some(Mishap::Overtaken) => {
                let mut other = commits[0].clone();
                other.id = CommitId::generate();
                other.outcome =
                    Outcome::Refused { code: "other".into(), message: "another writer".into() };
                self.log.append(expected, &[other]).await?;
                self.log.append(expected, commits).await
            }
        }
    }

    async fn read(&self, from: Sequence, limit: usize) -> Result<Vec<StoredCommit>, ReadError> {
        let mut commits = self.log.read(from, limit).await?;
        for commit in &mut commits {
            if commit.position.sequence.0 == self.unreadable.load(Ordering::SeqCst) {
                commit.bytes.push(0);
                commit.position.hash = Hash::of_commit(&commit.bytes);
            }
        }
        Ok(commits)
    }

    async fn wait(&self, from: Sequence) {
        self.log.wait(from).await;
    }
}

/// The seat of the log's only site.
fn seat(log: &Troubled) -> Seat {
    let signer = Signer::from_seed("log", [7; 32]).unwrap();
    // Of one process after the other: a lock that is let go late would be in the way.
    let number = log.seats.fetch_add(1, Ordering::SeqCst);
    let path = log.folder.path().join(format!("register-{number}"));
    Seat::new(signer, SignedRegister::open(path).unwrap())
}

async fn begin(
    log: &Arc<Troubled>,
) -> (Service, JoinHandle<Result<(), Fault>>, watch::Sender<bool>) {
    let (stop, stopping) = watch::channel(false);
    let seat = seat(log);
    let log_site = seat.verifier();
    let config = PipelineConfig {
        seat: Some(seat),
        exchange: Exchange::alone(),
        projection: None,
        snapshot: Snapshot::default(),
        changes: Arc::new(NoStreams),
        stop: stopping,
    };
    let (service, _, task) = start(Arc::clone(log), config).await.unwrap();
    if service.state().cluster().is_none() {
        let (cluster, name) = (ClusterId::generate(), Name::new("c").unwrap());
        let command = Command::CreateCluster { cluster, name, log_site };
        assert!(matches!(service.submit(command, context()).await, Ok(Done::Committed { .. })));
    }
    (service, task, stop)
}

fn context() -> Context {
    Context::system(Origin::Api, "test")
}

fn add_site(name: &str) -> Command {
    Command::AddSite {
        site: SiteId::generate(),
        name: Name::new(name).unwrap(),
        kind: SiteKind::Data,
    }
}

fn sequence(answer: &Answer) -> u64 {
    match answer {
        Ok(Done::Committed { position, .. }) => position.sequence.0,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_the_command_happens_once() {
    let log = Troubled::new();
    let (service, _task, _stop) = begin(&log).await;
    log.next_appends([Mishap::StoredUnanswered, Mishap::Lost, Mishap::StoredUnanswered]);
    let answer = service.submit(add_site("north"), context()).await;
    assert_eq!(sequence(&answer), 2);
    assert_eq!(log.commits().await.len(), 2);
    assert_eq!(service.state().sites().count(), 1);
    assert_eq!(service.condition().borrow().log_trouble, None, "trouble that ended is not shown");
}

#[tokio::test]
async fn an_overtaken_append_is_decided_again_on_what_the_other_wrote() {
    let log = Troubled::new();
    let (service, _task, _stop) = begin(&log).await;
    log.next_appends([Mishap::Overtaken, Mishap::Overtaken]);
    let answer = service.submit(add_site("north"), context()).await;
    assert_eq!(sequence(&answer), 4);
    let codes: Vec<_> = log.commits().await.into_iter().map(|commit| commit.outcome).collect();
    assert!(
        matches!(codes[1], Outcome::Refused { .. }) && matches!(codes[2], Outcome::Refused { .. })
    );
    assert_eq!(service.counters().conflicts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_full_log_is_told_to_whoever_asked_and_shown() {
    let log = Troubled::new();
    let (service, _task, _stop) = begin(&log).await;
    log.next_appends([Mishap::Full]);
    let answer = service.submit(add_site("north"), context()).await;
    assert!(matches!(&answer, Err(Unanswered::LogRefused { cause }) if cause.contains("no room")));
    assert!(service.condition().borrow().log_trouble.is_some());
    assert_eq!(service.state().sites().count(), 0);
    assert_eq!(sequence(&service.submit(add_site("north"), context()).await), 2);
}

/// Waits until the held append was reached, so that what follows is batched behind it.
async fn held(log: &Troubled, before: usize) {
    while log.appends.load(Ordering::SeqCst) == before {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_lives_depend_on_goes_first_and_refusals_last_in_one_append() {
    let log = Troubled::new();
    let (service, _task, _stop) = begin(&log).await;
    let first = add_site("s0");
    let Command::AddSite { site, .. } = first else { unreachable!() };
    service.submit(first, context()).await.unwrap();
    let before = log.appends.load(Ordering::SeqCst);
    log.held.store(true, Ordering::SeqCst);
    let ask = |command: Command| {
        let service = service.clone();
        tokio::spawn(async move { service.submit(command, context()).await })
    };
    let holding = ask(add_site("holding"));
    held(&log, before).await;
    let refused = ask(add_site("s0"));
    tokio::task::yield_now().await;
    let ordinary = ask(add_site("s1"));
    tokio::task::yield_now().await;
    let (condition, source) = (SiteCondition::Fire, ConditionSource::Signal);
    let urgent = ask(Command::ReportSiteCondition { site, condition, source, detail: "x".into() });
    // All three are in their queues once nobody else can run.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    log.release();
    let appends = log.appends.load(Ordering::SeqCst);
    assert_eq!(sequence(&holding.await.unwrap()), 3);
    assert_eq!(sequence(&urgent.await.unwrap()), 4);
    assert_eq!(sequence(&ordinary.await.unwrap()), 5);
    let Ok(Done::Refused { position: Some(position), .. }) = refused.await.unwrap() else {
        panic!("it was refused and recorded")
    };
    assert_eq!(position.sequence.0, 6);
    assert_eq!(log.appends.load(Ordering::SeqCst), appends + 1, "one append for all three");
}

#[tokio::test]
async fn one_key_given_twice_in_one_batch_has_one_effect() {
    let log = Troubled::new();
    let (service, _task, _stop) = begin(&log).await;
    let before = log.appends.load(Ordering::SeqCst);
    log.held.store(true, Ordering::SeqCst);
    let ask = |name: &'static str, key: Option<&str>| {
        let service = service.clone();
        let context = Context { idempotency_key: key.map(str::to_owned), ..context() };
        tokio::spawn(async move { service.submit(add_site(name), context).await })
    };
    let holding = ask("holding", None);
    held(&log, before).await;
    let twins = [ask("a", Some("k")), ask("a", Some("k"))];
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    log.release();
    holding.await.unwrap().unwrap();
    let [one, other] = twins;
    let answers = [one.await.unwrap().unwrap(), other.await.unwrap().unwrap()];
    assert!(matches!(answers[0], Done::Committed { position, .. } if position.sequence.0 == 3));
    assert!(matches!(answers[1], Done::Repeated { sequence: Sequence(3) }));
    assert_eq!(log.commits().await.len(), 3);
}

#[tokio::test]
async fn refusals_of_one_actor_are_recorded_up_to_a_limit() {
    let log = Troubled::new();
    let (service, _task, _stop) = begin(&log).await;
    service.submit(add_site("s"), context()).await.unwrap();
    let mut recorded = 0;
    for _ in 0..300 {
        let Ok(Done::Refused { position, .. }) = service.submit(add_site("s"), context()).await
        else {
            panic!("it is refused")
        };
        recorded += usize::from(position.is_some());
    }
    assert_eq!(recorded, 200);
    assert_eq!(service.counters().refusals_unrecorded.load(Ordering::SeqCst), 100);
    assert_eq!(log.commits().await.len(), 202);
}

#[tokio::test]
async fn a_commit_that_the_log_could_not_take_is_refused_before() {
    let log = Troubled::new();
    let (service, _task, _stop) = begin(&log).await;
    let command = Command::AddHost {
        host: HostId::generate(),
        name: Name::new("h").unwrap(),
        identity: voute_schemas::event::HostIdentity {
            nqns: vec!["n".repeat(1 << 20)],
            ..Default::default()
        },
    };
    let answer = service.submit(command, context()).await.unwrap();
    assert!(matches!(answer, Done::Refused { .. }), "{answer:?}");
    assert!(log.commits().await.iter().all(|commit| commit.encode().len() < 10_000));
}

#[tokio::test]
async fn a_stopped_pipeline_answers_nobody_and_what_was_committed_stays() {
    let log = Troubled::new();
    let (service, task, stop) = begin(&log).await;
    service.submit(add_site("north"), context()).await.unwrap();
    stop.send_replace(true);
    task.await.unwrap().unwrap();
    let answer = service.submit(add_site("south"), context()).await;
    assert!(matches!(answer, Err(Unanswered::Stopped)));
    let (again, _task, _stop) = begin(&log).await;
    assert_eq!(again.state().digest(), service.state().digest());
}

#[tokio::test]
async fn a_commit_that_cannot_be_read_stops_the_projection_before_it() {
    let log = Troubled::new();
    let (service, task, _stop) = begin(&log).await;
    service.submit(add_site("north"), context()).await.unwrap();
    let before = service.state();
    log.unreadable.store(3, Ordering::SeqCst);
    let answer = service.submit(add_site("south"), context()).await;
    assert!(matches!(answer, Err(Unanswered::Stopped)), "{answer:?}");
    let fault = task.await.unwrap().unwrap_err();
    assert!(fault.to_string().contains("newer version"), "{fault}");
    assert_eq!(service.condition().borrow().stopped, Some(fault.to_string()));
    assert_eq!(service.state().digest(), before.digest(), "nothing is projected beyond it");
    // Nothing was lost: a process that can read it goes on from there.
    log.unreadable.store(0, Ordering::SeqCst);
    let (again, _task, _stop) = begin(&log).await;
    assert_eq!(again.state().sites().count(), 2);
}

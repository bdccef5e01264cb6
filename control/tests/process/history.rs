//! Restarts, rebuilds, several processes on one log, damage.

use crate::client::{Control, config, request};
use crate::fake_node::{self, FakeNode};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use voute_control::domain::State;
use voute_control::projection::Projection;
use voute_control::rebuild::rebuild;
use voute_control::service::{Context, Done};
use voute_control::{ControlConfig, JOIN_FILE, Running, run_on};
use voute_events::{EmbeddedLog, Exchange, Log, Position};
use voute_schemas::commit::Origin;
use voute_schemas::event::SiteKind;
use voute_schemas::place::Portals;
use voute_schemas::{Command, Hash, Name, NodeId, Sequence, SiteId};

fn add_site(name: String) -> Command {
    Command::AddSite {
        site: SiteId::generate(),
        name: Name::new(name).unwrap(),
        kind: SiteKind::Data,
    }
}

/// A process that alone has a log.
async fn alone_on<L: Log>(log: Arc<L>, folder: &Path) -> Running {
    run_on(log, Exchange::alone(), None, config(folder), std::future::pending()).await.unwrap()
}

fn context() -> Context {
    Context::system(Origin::Api, "test")
}

#[tokio::test]
async fn a_restart_begins_at_the_snapshot_and_gives_the_same_state() {
    let control = Control::start().await;
    for index in 0..20 {
        control.create("/v1/sites", json!({"name": format!("s{index}"), "kind": "Data"})).await;
    }
    let before = control.get("/v1/cluster").await.body;
    let folder = control.stop().await;
    let snapshot =
        Projection::open(&folder.path().join("projection.redb")).unwrap().load().unwrap();
    let snapshot = snapshot.expect("a snapshot is written at exit");
    assert_eq!(snapshot.state.position().sequence.0, before["head"]["sequence"]);
    assert_eq!(snapshot.tree.size(), snapshot.state.position().sequence.0);
    drop(snapshot);
    let control = Control::start_in(folder).await;
    let after = control.get("/v1/cluster").await.body;
    for field in ["head", "digest", "checkpoint"] {
        // Ed25519 signatures are deterministic: the same checkpoint is the same text.
        assert_eq!(before[field], after[field], "{field}");
    }
}

/// Notes what is read, and can make a commit look like one of a newer version.
struct Watched {
    log: EmbeddedLog,
    lowest: AtomicU64,
    unreadable: AtomicU64,
}

impl Watched {
    fn new(log: EmbeddedLog) -> Arc<Self> {
        Arc::new(Watched { log, lowest: AtomicU64::new(u64::MAX), unreadable: AtomicU64::new(0) })
    }
}

impl Log for Watched {
    async fn append(
        &self,
        expected: Position,
        commits: &[voute_schemas::Commit],
    ) -> Result<Position, voute_events::AppendError> {
        self.log.append(expected, commits).await
    }

    async fn read(
        &self,
        from: Sequence,
        limit: usize,
    ) -> Result<Vec<voute_events::StoredCommit>, voute_events::ReadError> {
        self.lowest.fetch_min(from.0, Relaxed);
        let mut commits = self.log.read(from, limit).await?;
        for commit in &mut commits {
            if commit.position.sequence.0 == self.unreadable.load(Relaxed) {
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

#[tokio::test]
async fn a_restart_reads_only_the_tail_that_the_snapshot_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(folder.path().join("shared.redb")).unwrap();
    let running = alone_on(Arc::new(log.clone()), folder.path()).await;
    for index in 0..50 {
        running.service().submit(add_site(format!("s{index}")), context()).await.unwrap();
    }
    running.stop();
    running.ended().await.unwrap();
    // Another process appends what the snapshot does not know.
    let other = tempfile::tempdir().unwrap();
    for file in [voute_control::KEY_FILE, voute_control::REGISTER_FILE] {
        std::fs::copy(folder.path().join(file), other.path().join(file)).unwrap();
    }
    let running = alone_on(Arc::new(log.clone()), other.path()).await;
    running.service().submit(add_site("late".into()), context()).await.unwrap();
    let digest = running.service().state().digest();
    running.stop();
    running.ended().await.unwrap();
    let counting = Watched::new(log);
    let running = alone_on(Arc::clone(&counting), folder.path()).await;
    assert_eq!(running.service().state().digest(), digest);
    // 53 was the last commit of the first run; reading begins at it, to compare its hash.
    assert_eq!(counting.lowest.load(Relaxed), 53);
    running.stop();
    running.ended().await.unwrap();
}

#[tokio::test]
async fn rebuilding_from_the_first_commit_gives_the_live_state() {
    let control = Control::start().await;
    for index in 0..10 {
        control.create("/v1/sites", json!({"name": format!("s{index}"), "kind": "Data"})).await;
    }
    control.post("/v1/sites", json!({"name": "s1", "kind": "Data"})).await;
    assert_eq!(control.delete("/v1/sites/s3").await.status, 200);
    let verified = control.get("/v1/audit/verify").await.body;
    assert_eq!(verified["verified"], true, "{verified}");
    assert_eq!(verified["replayed_digest"], verified["live_digest"]);
    let cluster = control.get("/v1/cluster").await.body;
    assert_eq!(verified["live_digest"], cluster["digest"]);
    let folder = control.stop().await;
    let log = Arc::new(EmbeddedLog::open(folder.path().join("log.redb")).unwrap());
    let rebuilt = rebuild(log, Sequence(u64::MAX)).await.unwrap();
    assert_eq!(json!(rebuilt.state.digest()), cluster["digest"]);
}

#[tokio::test]
async fn a_damaged_snapshot_is_set_aside_and_the_log_read_again() {
    let control = Control::start().await;
    control.create("/v1/sites", json!({"name": "north", "kind": "Data"})).await;
    let before = control.get("/v1/cluster").await.body;
    let folder = control.stop().await;
    let path = folder.path().join("projection.redb");
    {
        let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
        let database = redb::Database::open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(table).unwrap().insert("state", b"rubbish".as_slice()).unwrap();
        transaction.commit().unwrap();
    }
    let control = Control::start_in(folder).await;
    assert_eq!(control.get("/v1/cluster").await.body["digest"], before["digest"]);
}

#[tokio::test]
async fn a_log_that_lost_commits_is_refused_at_start() {
    let control = Control::start().await;
    control.create("/v1/sites", json!({"name": "north", "kind": "Data"})).await;
    let folder = control.stop().await;
    std::fs::remove_file(folder.path().join("log.redb")).unwrap();
    let error =
        voute_control::run(config(folder.path()), std::future::pending()).await.unwrap_err();
    assert!(error.to_string().contains("shorter"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_one_log_commit_each_command_once_and_agree() {
    let folder = tempfile::tempdir().unwrap();
    let log = Arc::new(EmbeddedLog::open(folder.path().join("shared.redb")).unwrap());
    let ring = Exchange::ring(2);
    let one = tempfile::tempdir().unwrap();
    let two = tempfile::tempdir().unwrap();
    let first =
        run_on(Arc::clone(&log), ring[0].clone(), None, config(one.path()), std::future::pending())
            .await
            .unwrap();
    let second = run_on(
        Arc::clone(&log),
        ring[1].clone(),
        None,
        ControlConfig { join: Some(one.path().join(JOIN_FILE)), ..config(two.path()) },
        std::future::pending(),
    )
    .await
    .unwrap();
    let mut askers = Vec::new();
    for asker in 0..8 {
        let service = if asker % 2 == 0 { &first } else { &second }.service().clone();
        askers.push(tokio::spawn(async move {
            let mut won = 0;
            for round in 0..50 {
                // All askers want the same name: exactly one may get it.
                match service.submit(add_site(format!("s{round}")), context()).await.unwrap() {
                    Done::Committed { .. } => won += 1,
                    Done::Refused { code, .. } => assert_eq!(code, "duplicate-name"),
                    other => panic!("{other:?}"),
                }
            }
            won
        }));
    }
    let mut won = 0;
    for asker in askers {
        won += asker.await.unwrap();
    }
    assert_eq!(won, 50);
    // Both have seen everything once they stand at the same place.
    let head = log.head().unwrap();
    for running in [&first, &second] {
        running.service().head().wait_for(|at| *at == head).await.unwrap();
    }
    assert_eq!(first.service().state().digest(), second.service().state().digest());
    let rebuilt = rebuild(Arc::clone(&log), Sequence(u64::MAX)).await.unwrap();
    assert_eq!(rebuilt.state.digest(), first.service().state().digest());
    assert_eq!(State::decode(&rebuilt.state.encode()).unwrap().digest(), rebuilt.state.digest());
    assert_eq!(rebuilt.state.sites().count(), 50);
}

#[tokio::test]
async fn a_process_that_had_to_stop_projecting_drops_its_nodes_and_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let log = Watched::new(EmbeddedLog::open(folder.path().join("shared.redb")).unwrap());
    let running = alone_on(Arc::clone(&log), folder.path()).await;
    let service = running.service();
    let north = add_site("north".into());
    let Command::AddSite { site, .. } = north else { unreachable!() };
    service.submit(north, context()).await.unwrap();
    let portals = Portals {
        nvme: "127.0.0.1:1".parse().unwrap(),
        iscsi: "127.0.0.1:2".parse().unwrap(),
        link: "127.0.0.1:3".parse().unwrap(),
    };
    let (node, name) = (NodeId::generate(), Name::new("n").unwrap());
    let verifier = Hash::of(b"secret");
    let command = Command::AddNode { node, name, site, portals, verifier };
    service.submit(command, context()).await.unwrap();
    let id = node.to_string();
    let fake = FakeNode::connect(running.address(), &id, "secret", 1).await;
    fake.until("a spec", |inside| (inside.specs > 0).then_some(())).await;
    log.unreadable.store(service.state().position().sequence.next().0, Relaxed);
    service.submit(add_site("south".into()), context()).await.unwrap_err();
    let cause = fake.until("goodbye", |inside| inside.goodbye.clone()).await;
    assert!(cause.contains("projection stopped"), "{cause}");
    assert_eq!(fake_node::open(running.address(), &id, "secret").await.err(), Some(503));
    let health = request(running.address(), "GET", "/v1/health", &[], b"").await;
    assert_eq!(health.status, 503);
    assert!(health.text.contains("newer version"), "{}", health.text);
    running.stop();
    running.ended().await.unwrap_err();
}

#[tokio::test]
async fn a_feed_tells_each_commit_once_and_in_order() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let control = Control::start().await;
    let mut stream = tokio::net::TcpStream::connect(control.address()).await.unwrap();
    let head = format!(
        "GET /v1/feed?from=2 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        control.token
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for index in 0..3 {
        control.create("/v1/sites", json!({"name": format!("s{index}"), "kind": "Data"})).await;
    }
    let mut text = String::new();
    let read = async {
        while !text.contains("id: 6\n") {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the feed ended: {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    tokio::time::timeout(crate::client::PATIENCE, read).await.unwrap();
    let ids: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert_eq!(ids, ["2", "3", "4", "5", "6"]);
}

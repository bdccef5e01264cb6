//! The embedded engine under the suite, and killed.

use crate::one_at_a_time;
use crate::sample::{chain, position};
use crate::suite::{Rig, conforms, read_all};
use std::future::{Future, poll_fn};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::task::Poll;
use voute_events::embedded::OpenError;
use voute_events::{AppendError, EmbeddedLog, Log, Position};
use voute_schemas::{Commit, Epoch};

struct EmbeddedRig {
    directory: tempfile::TempDir,
    logs: u32,
    log: Option<EmbeddedLog>,
}

impl EmbeddedRig {
    fn path(&self) -> PathBuf {
        self.directory.path().join(format!("{}.redb", self.logs))
    }
}

impl Rig for EmbeddedRig {
    type Log = EmbeddedLog;

    async fn fresh(&mut self) -> EmbeddedLog {
        self.logs += 1;
        self.log.insert(EmbeddedLog::open(self.path()).unwrap()).clone()
    }

    async fn another(&self) -> EmbeddedLog {
        self.log.clone().unwrap()
    }

    async fn append_losing_answer(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError> {
        let log = self.another().await;
        {
            // Started, then let go of: the task that waited for it is gone.
            let mut append = pin!(log.append(expected, commits));
            let started = poll_fn(|context| Poll::Ready(append.as_mut().poll(context))).await;
            assert!(started.is_pending(), "it was answered at once");
        }
        log.wait(commits[commits.len() - 1].sequence).await;
        Err(AppendError::Unknown { cause: "dropped".into() })
    }

    async fn crash_and_restart(&mut self, log: EmbeddedLog) -> EmbeddedLog {
        self.log = None;
        drop(log);
        let log = reopen(&self.path()).await;
        self.log.insert(log).clone()
    }
}

/// Opens once the last task with the file has let go of it.
async fn reopen(path: &Path) -> EmbeddedLog {
    loop {
        match EmbeddedLog::open(path) {
            Ok(log) => return log,
            Err(OpenError::Locked { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_engine_conforms() {
    let _turn = one_at_a_time().await;
    let directory = tempfile::tempdir().unwrap();
    conforms(&mut EmbeddedRig { directory, logs: 0, log: None }).await;
}

const CHILD_FILE: &str = "VOUTE_TEST_KILLED_WRITER";

/// Runs itself as a child that appends and says so, and kills it at different moments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_nothing_that_it_acknowledged() {
    if let Some(path) = std::env::var_os(CHILD_FILE) {
        append_for_ever(Path::new(&path)).await;
    }
    let _turn = one_at_a_time().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.redb");
    for appends in [1, 20, 77] {
        let acknowledged = run_and_kill(&path, appends);
        let log = EmbeddedLog::open(&path).unwrap();
        let commits = read_all(log).await;
        let found = acknowledged
            .iter()
            .all(|line| commits.iter().any(|commit| *line == acknowledgement(position(commit))));
        assert!(found, "of {} acknowledged one is missing in {}", appends, commits.len());
    }
}

fn acknowledgement(position: Epoch) -> String {
    format!("acknowledged {} {}", position.sequence, position.hash)
}

#[allow(clippy::print_stdout, reason = "its parent reads it")]
async fn append_for_ever(path: &Path) -> ! {
    let log = EmbeddedLog::open(path).unwrap();
    let mut head = log.head().unwrap();
    for count in (1..=3).cycle() {
        head = log.append(head, &chain(head, count)).await.unwrap();
        println!("{}", acknowledgement(head));
    }
    unreachable!("a cycle does not end")
}

/// The acknowledgements that were printed before the child was killed.
fn run_and_kill(path: &Path, appends: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["embedded::a_killed_process_loses_nothing_that_it_acknowledged", "--exact"])
        .arg("--nocapture")
        .env(CHILD_FILE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    for line in lines {
        let line = line.unwrap();
        if let Some(at) = line.find("acknowledged ") {
            acknowledged.push(line[at..].to_string());
        }
        if acknowledged.len() == appends {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(acknowledged.len(), appends, "the child ended by itself");
    acknowledged
}

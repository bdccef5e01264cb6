//! Measures the embedded log: serial appends, appends in batches, and verified replay.
//!
//! ```text
//! cargo run --release -p voute-events --example rates -- [commits] [folder]
//! ```

use std::path::PathBuf;
use std::time::{Duration, Instant};
use voute_events::{EmbeddedLog, Log, MerkleTree, Position, VerifiedReader};
use voute_schemas::commit::{Actor, Origin, Outcome};
use voute_schemas::event::{Event, Role};
use voute_schemas::{Commit, CommitId, CorrelationId, CredentialId, Hash, Name};

const SERIAL_APPENDS: u64 = 2_000;
const BATCH: u64 = 1_000;
const READ_BATCH: usize = 4_096;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let commits: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder)?;
    let path = folder.path().join("log.redb");
    let log = EmbeddedLog::open(&path)?;

    let mut head = Position::ZERO;
    let begun = Instant::now();
    let mut times = Vec::new();
    for _ in 0..SERIAL_APPENDS.min(commits) {
        let begun = Instant::now();
        head = log.append(head, &chain(head, 1)).await?;
        times.push(begun.elapsed());
    }
    times.sort();
    report("serial appends", times.len() as u64, begun.elapsed());
    say(&format!("  p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]));

    let begun = Instant::now();
    let appended = head.sequence.0;
    while head.sequence.0 < commits {
        let count = BATCH.min(commits - head.sequence.0);
        head = log.append(head, &chain(head, count)).await?;
    }
    report("appends in batches of 1000", head.sequence.0 - appended, begun.elapsed());

    let bytes = std::fs::metadata(&path)?.len();
    say(&format!("file: {} bytes, {} a commit", bytes, bytes / head.sequence.0));
    drop(log);
    let begun = Instant::now();
    let log = EmbeddedLog::open(&path)?;
    say(&format!("opened again in {:?}", begun.elapsed()));

    let begun = Instant::now();
    let mut reader = VerifiedReader::new(log, Position::ZERO);
    let mut hashes = Vec::new();
    loop {
        let batch = reader.next_batch(READ_BATCH).await?;
        if batch.is_empty() {
            break;
        }
        hashes.extend(batch.iter().map(|(_, stored)| stored.position.hash));
    }
    report("read, decoded and verified", hashes.len() as u64, begun.elapsed());
    anyhow::ensure!(reader.position() == head, "the replay ended elsewhere");

    let begun = Instant::now();
    let tree: MerkleTree = hashes.into_iter().collect();
    report("leaves put into the tree", tree.size(), begun.elapsed());
    let begun = Instant::now();
    let path = tree.inclusion_proof(tree.size() / 3, tree.size())?;
    say(&format!("inclusion proof of {} hashes in {:?}", path.len(), begun.elapsed()));
    Ok(())
}

fn report(what: &str, count: u64, elapsed: Duration) {
    let rate = count as f64 / elapsed.as_secs_f64();
    let cpu =
        cpu_time().map_or_else(String::new, |cpu| format!(" (process so far: {cpu:.2?} CPU)"));
    say(&format!("{what}: {count} in {elapsed:.2?}, {rate:.0}/s{cpu}"));
}

/// CPU time of this process, which other processes of a busy machine do not lengthen.
fn cpu_time() -> Option<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let usage = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += usage.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(nanoseconds))
}

#[allow(clippy::print_stdout, reason = "this is what the program is for")]
fn say(line: &str) {
    println!("{line}");
}

fn chain(mut head: Position, count: u64) -> Vec<Commit> {
    (0..count)
        .map(|_| {
            let commit = Commit {
                sequence: head.sequence.next(),
                previous: head.hash,
                id: CommitId::generate(),
                time_unix_ms: 1_764_000_000_000,
                actor: Actor::Credential {
                    id: CredentialId::generate(),
                    name: "operator-1".into(),
                },
                origin: Origin::CommandLine,
                source: Some([192, 0, 2, 1].into()),
                correlation: CorrelationId::generate(),
                causation: None,
                idempotency_key: Some("rates-0000000000000000".into()),
                command: "IssueCredential".into(),
                reason: "measuring how fast the log is".into(),
                outcome: Outcome::Accepted(vec![Event::CredentialIssued {
                    credential: CredentialId::generate(),
                    name: Name::new("tester").expect("a valid name"),
                    role: Role::Viewer,
                    verifier: Hash::of(b"secret"),
                }]),
            };
            let hash = Hash::of_commit(&commit.encode());
            head = Position { sequence: commit.sequence, hash };
            commit
        })
        .collect()
}

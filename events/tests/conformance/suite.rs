//! The rules that every engine keeps.

use crate::sample::{chain, position};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Barrier;
use tokio::time::timeout;
use voute_events::{AppendError, Log, Position, ReadError, StoredCommit, VerifiedReader};
use voute_schemas::{Commit, Hash, Sequence};

const WRITERS: usize = 8;
const ROUNDS: usize = 300;
/// Longer than any engine takes for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a test needs of an engine. Each fresh log is empty.
pub(crate) trait Rig: Send + Sync {
    /// The engine.
    type Log: Log + Clone;

    /// An empty log.
    async fn fresh(&mut self) -> Self::Log;

    /// Another writer's handle to the same log.
    async fn another(&self) -> Self::Log;

    /// Appends in such a way that the append is stored and its answer is lost.
    async fn append_losing_answer(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError>;

    /// Ends what holds the log without warning, and starts it again.
    async fn crash_and_restart(&mut self, log: Self::Log) -> Self::Log;
}

/// Runs every rule.
pub(crate) async fn conforms<R: Rig>(rig: &mut R) {
    appended_commits_are_read_in_order_numbered_densely(rig).await;
    a_stale_expectation_conflicts_and_stores_nothing(rig).await;
    an_expectation_of_another_history_is_refused(rig).await;
    of_racing_writers_exactly_one_wins_each_round(rig).await;
    a_lost_answer_stores_once(rig).await;
    late_and_repeated_retries_return_the_first_position(rig).await;
    waiting_ends_when_another_writer_appends(rig).await;
    the_largest_append_passes(rig).await;
    what_was_acknowledged_survives_a_crash(rig).await;
}

/// Appends until the answer is definite, as writers must.
pub(crate) async fn append(
    log: &impl Log,
    expected: Position,
    commits: &[Commit],
) -> Result<Position, AppendError> {
    for _ in 0..10 {
        match log.append(expected, commits).await {
            Err(AppendError::Unknown { cause }) => eprintln!("unknown outcome, again: {cause}"),
            definite => return definite,
        }
    }
    panic!("no definite answer in ten tries");
}

/// All commits, verified.
pub(crate) async fn read_all(log: impl Log) -> Vec<Commit> {
    let mut reader = VerifiedReader::new(log, Position::ZERO);
    let mut commits = Vec::new();
    loop {
        let batch = reader.next_batch(100).await.unwrap();
        if batch.is_empty() {
            return commits;
        }
        commits.extend(batch.into_iter().map(|(commit, _)| commit));
    }
}

async fn appended_commits_are_read_in_order_numbered_densely<R: Rig>(rig: &mut R) {
    let log = rig.fresh().await;
    assert_eq!(log.read(Sequence(1), 10).await.unwrap(), []);
    let mut head = Position::ZERO;
    let mut all = Vec::new();
    // Appends of one, of many and of one again, so that commits and messages do not count alike.
    for count in [1, 1, 7, 100, 1, 3] {
        let commits = chain(head, count);
        head = append(&log, head, &commits).await.unwrap();
        assert_eq!(head, position(&commits[count - 1]));
        all.extend(commits);
    }
    let numbers: Vec<u64> = all.iter().map(|commit| commit.sequence.0).collect();
    assert_eq!(numbers, (1..=113).collect::<Vec<_>>());
    // A handle that appended nothing knows no places yet.
    for reading in [log, rig.another().await] {
        for from in [1, 2, 3, 9, 10, 60, 109, 110, 111, 113, 114, 1_000, u64::MAX] {
            for limit in [1, 2, 50, 1_000] {
                expect_read(&reading, &all, from, limit).await;
            }
        }
        assert_eq!(read_all(reading).await, all);
    }
}

async fn expect_read(log: &impl Log, all: &[Commit], from: u64, limit: usize) {
    let expected: Vec<StoredCommit> = all
        .iter()
        .filter(|commit| commit.sequence.0 >= from)
        .take(limit)
        .map(|commit| StoredCommit { position: position(commit), bytes: commit.encode() })
        .collect();
    let read = log.read(Sequence(from), limit).await.unwrap();
    assert_eq!(read, expected, "{limit} from {from}");
}

async fn a_stale_expectation_conflicts_and_stores_nothing<R: Rig>(rig: &mut R) {
    let log = rig.fresh().await;
    let commits = chain(Position::ZERO, 5);
    append(&log, Position::ZERO, &commits).await.unwrap();
    // Before the first, inside the first append, and at the same place in another handle.
    for before in [Position::ZERO, position(&commits[0]), position(&commits[3])] {
        for log in [log.clone(), rig.another().await] {
            let stale = append(&log, before, &chain(before, 2)).await;
            assert!(matches!(stale, Err(AppendError::Conflict)), "{stale:?}");
        }
    }
    assert_eq!(read_all(log).await, commits);
}

async fn an_expectation_of_another_history_is_refused<R: Rig>(rig: &mut R) {
    let log = rig.fresh().await;
    let commits = chain(Position::ZERO, 3);
    let head = append(&log, Position::ZERO, &commits).await.unwrap();
    let other_branch = chain(Position::ZERO, 3);
    let false_zero = Position { sequence: Sequence(0), hash: Hash::of(b"not nothing") };
    let at_the_end = Position { sequence: Sequence(u64::MAX - 5), hash: Hash::ZERO };
    for expected in [position(&other_branch[2]), position(&other_branch[1]), false_zero, at_the_end]
    {
        let refused = append(&log, expected, &chain(expected, 1)).await;
        assert!(matches!(refused, Err(AppendError::Refused { .. })), "{refused:?}");
    }
    assert_eq!(read_all(log.clone()).await, commits);
    append(&log, head, &chain(head, 1)).await.unwrap();
}

async fn of_racing_writers_exactly_one_wins_each_round<R: Rig>(rig: &mut R) {
    let first = rig.fresh().await;
    let mut logs = vec![first.clone()];
    while logs.len() < WRITERS {
        logs.push(rig.another().await);
    }
    let mut head = Position::ZERO;
    let mut winners = Vec::new();
    for round in 0..ROUNDS {
        let barrier = Arc::new(Barrier::new(WRITERS));
        let races = logs.iter().map(|log| {
            let (log, barrier) = (log.clone(), Arc::clone(&barrier));
            let commits = chain(head, 1 + round % 3);
            tokio::spawn(async move {
                barrier.wait().await;
                (append(&log, head, &commits).await, commits)
            })
        });
        let mut won = Vec::new();
        for race in races.collect::<Vec<_>>() {
            match race.await.unwrap() {
                (Ok(position), commits) => won.push((position, commits)),
                (Err(AppendError::Conflict), _) => {}
                (Err(error), _) => panic!("round {round}: {error}"),
            }
        }
        assert_eq!(won.len(), 1, "round {round}");
        let (position, commits) = won.remove(0);
        head = position;
        winners.extend(commits);
    }
    assert_eq!(read_all(first).await, winners);
}

async fn a_lost_answer_stores_once<R: Rig>(rig: &mut R) {
    let log = rig.fresh().await;
    let mut head = Position::ZERO;
    let mut all = Vec::new();
    for count in [1, 4, 1] {
        let commits = chain(head, count);
        let answered = match rig.append_losing_answer(head, &commits).await {
            Err(AppendError::Unknown { .. }) => append(&log, head, &commits).await,
            definite => definite,
        };
        head = answered.unwrap();
        assert_eq!(head, position(&commits[count - 1]));
        all.extend(commits);
    }
    assert_eq!(read_all(log).await, all);
}

async fn late_and_repeated_retries_return_the_first_position<R: Rig>(rig: &mut R) {
    let log = rig.fresh().await;
    let first = chain(Position::ZERO, 2);
    let head = append(&log, Position::ZERO, &first).await.unwrap();
    assert_eq!(append(&log, Position::ZERO, &first).await.unwrap(), head, "at once");
    let later = chain(head, 5);
    append(&log, head, &later).await.unwrap();
    for log in [log.clone(), rig.another().await] {
        assert_eq!(append(&log, Position::ZERO, &first).await.unwrap(), head, "behind others");
    }
    let log = rig.crash_and_restart(log).await;
    assert_eq!(append(&log, Position::ZERO, &first).await.unwrap(), head, "after a restart");
    assert_eq!(read_all(log).await, [first, later].concat());
}

async fn waiting_ends_when_another_writer_appends<R: Rig>(rig: &mut R) {
    let log = rig.fresh().await;
    let writer = rig.another().await;
    let mut head = Position::ZERO;
    for count in [1, 3, 1] {
        let commits = chain(head, count);
        let last = commits[count - 1].sequence;
        let waiting = {
            let log = log.clone();
            tokio::spawn(async move {
                while log.read(last, 1).await.unwrap().is_empty() {
                    log.wait(last).await;
                }
            })
        };
        head = append(&writer, head, &commits).await.unwrap();
        timeout(PATIENCE, waiting).await.expect("the waiter wakes").unwrap();
        timeout(PATIENCE, log.wait(last)).await.expect("what is there needs no waiting");
    }
}

async fn the_largest_append_passes<R: Rig>(rig: &mut R) {
    let log = rig.fresh().await;
    let mut large = chain(Position::ZERO, 1);
    let overhead = large[0].encode().len() + 8;
    large[0].reason = "x".repeat(voute_events::APPEND_BYTES_MAX - overhead);
    let head = append(&log, Position::ZERO, &large).await.unwrap();
    let many = chain(head, 3_000);
    append(&log, head, &many).await.unwrap();
    assert_eq!(read_all(log).await, [large, many].concat());
}

async fn what_was_acknowledged_survives_a_crash<R: Rig>(rig: &mut R) {
    let mut log = rig.fresh().await;
    let mut head = Position::ZERO;
    let mut all = Vec::new();
    for _ in 0..3 {
        for count in [1, 2, 1] {
            let commits = chain(head, count);
            head = append(&log, head, &commits).await.unwrap();
            all.extend(commits);
        }
        log = rig.crash_and_restart(log).await;
        assert_eq!(read_all(log.clone()).await, all);
    }
    let mut reader = VerifiedReader::new(log, head);
    assert!(matches!(reader.next_batch(1).await, Ok(batch) if batch.is_empty()));
    let other = Position { sequence: head.sequence, hash: Hash::of(b"another branch") };
    let mut reader = VerifiedReader::new(rig.another().await, other);
    assert!(matches!(reader.next_batch(1).await, Err(ReadError::Damaged { .. })));
}

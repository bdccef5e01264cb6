use super::*;
use crate::AppendError;
use crate::sample::{chain, position};
use std::sync::Mutex;

/// A log whose content a test can falsify.
struct Forged(Mutex<Vec<StoredCommit>>);

impl Forged {
    fn holding(commits: &[Commit]) -> Self {
        let store =
            |commit: &Commit| StoredCommit { position: position(commit), bytes: commit.encode() };
        Forged(Mutex::new(commits.iter().map(store).collect()))
    }
}

impl Log for Forged {
    async fn append(&self, _: Position, _: &[Commit]) -> Result<Position, AppendError> {
        Err(AppendError::Conflict)
    }

    async fn read(&self, from: Sequence, limit: usize) -> Result<Vec<StoredCommit>, ReadError> {
        let commits = self.0.lock().unwrap();
        Ok(commits
            .iter()
            .filter(|commit| commit.position.sequence >= from)
            .take(limit)
            .cloned()
            .collect())
    }

    async fn wait(&self, _: Sequence) {}
}

async fn read_all(reader: &mut VerifiedReader<Forged>) -> (u64, Option<ReadError>) {
    let mut read = 0;
    loop {
        match reader.next_batch(4).await {
            Ok(batch) if batch.is_empty() => return (read, None),
            Ok(batch) => read += batch.len() as u64,
            Err(error) => return (read, Some(error)),
        }
    }
}

/// Ten commits, falsified; how many were yielded before the damage was met, and where.
async fn damage_found(falsify: impl FnOnce(&mut Vec<StoredCommit>)) -> (u64, u64) {
    let log = Forged::holding(&chain(Position::ZERO, 10));
    falsify(&mut log.0.lock().unwrap());
    let mut reader = VerifiedReader::new(log, Position::ZERO);
    let (read, error) = read_all(&mut reader).await;
    let Some(ReadError::Damaged { sequence, .. }) = error else { panic!("{error:?}") };
    let again = reader.next_batch(4).await;
    assert!(matches!(again, Err(ReadError::Damaged { .. })), "it must not go on");
    (read, sequence.0)
}

#[tokio::test]
async fn a_whole_log_is_read_to_its_end() {
    let mut reader =
        VerifiedReader::new(Forged::holding(&chain(Position::ZERO, 10)), Position::ZERO);
    let (read, error) = read_all(&mut reader).await;
    assert!(read == 10 && error.is_none());
    assert_eq!(reader.position().sequence, Sequence(10));
}

#[tokio::test]
async fn an_edited_commit_stops_the_reader() {
    assert_eq!(damage_found(|log| log[6].bytes[40] ^= 1).await, (6, 7));
}

#[tokio::test]
async fn an_edited_commit_with_a_fresh_hash_stops_the_reader_at_the_next() {
    let found = damage_found(|log| {
        let mut commit = Commit::decode(&log[6].bytes).unwrap();
        commit.reason = "nothing happened".into();
        log[6] = StoredCommit { position: position(&commit), bytes: commit.encode() };
    });
    assert_eq!(found.await, (7, 8));
}

#[tokio::test]
async fn a_gap_stops_the_reader() {
    assert_eq!(damage_found(|log| drop(log.remove(5))).await, (5, 6));
}

#[tokio::test]
async fn swapped_commits_stop_the_reader() {
    assert_eq!(damage_found(|log| log.swap(3, 4)).await, (3, 4));
    let renumbered = damage_found(|log| {
        log.swap(3, 4);
        log[3].position.sequence = Sequence(4);
        log[4].position.sequence = Sequence(5);
    });
    assert_eq!(renumbered.await, (3, 4));
}

#[tokio::test]
async fn bytes_that_are_no_commit_stop_the_reader() {
    let found = damage_found(|log| {
        log[2].bytes = vec![0xff; 30];
        log[2].position.hash = Hash::of_commit(&log[2].bytes);
    });
    assert_eq!(found.await, (2, 3));
}

#[tokio::test]
async fn a_log_that_became_shorter_stops_the_reader() {
    let mut reader =
        VerifiedReader::new(Forged::holding(&chain(Position::ZERO, 10)), Position::ZERO);
    assert_eq!(read_all(&mut reader).await.0, 10);
    reader.log().0.lock().unwrap().truncate(9);
    assert!(matches!(reader.next_batch(4).await, Err(ReadError::Damaged { .. })));
}

#[tokio::test]
async fn a_log_that_was_shortened_and_regrown_stops_the_reader() {
    let commits = chain(Position::ZERO, 10);
    let mut reader = VerifiedReader::new(Forged::holding(&commits), Position::ZERO);
    assert_eq!(read_all(&mut reader).await.0, 10);
    let other_branch = Forged::holding(&[&commits[..7], &chain(position(&commits[6]), 6)].concat());
    std::mem::swap(&mut *reader.log().0.lock().unwrap(), &mut *other_branch.0.lock().unwrap());
    assert!(matches!(reader.next_batch(4).await, Err(ReadError::Damaged { .. })));
}

#[tokio::test]
async fn a_position_at_the_end_of_numbers_is_damage_not_a_crash() {
    let at = Position { sequence: Sequence(u64::MAX), hash: Hash::ZERO };
    let mut reader = VerifiedReader::new(Forged::holding(&[]), at);
    assert!(matches!(reader.next_batch(4).await, Err(ReadError::Damaged { .. })));
}

use super::*;
use crate::APPEND_BYTES_MAX;
use crate::sample::{chain, position};
use std::os::unix::fs::PermissionsExt;

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.redb");
    (directory, path)
}

#[tokio::test]
async fn what_was_appended_is_there_after_opening_again() {
    let (_directory, path) = temporary();
    let commits = chain(Position::ZERO, 3);
    let log = EmbeddedLog::open(&path).unwrap();
    let head = log.append(Position::ZERO, &commits).await.unwrap();
    assert_eq!(head, position(&commits[2]));
    drop(log);
    let log = EmbeddedLog::open(&path).unwrap();
    assert_eq!(log.head().unwrap(), head);
    let read = log.read(Sequence(2), 10).await.unwrap();
    assert_eq!(read.len(), 2);
    assert_eq!(Commit::decode(&read[0].bytes).unwrap(), commits[1]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_second_opener_is_told_that_the_file_is_in_use() {
    let (_directory, path) = temporary();
    let _log = EmbeddedLog::open(&path).unwrap();
    assert!(matches!(EmbeddedLog::open(&path), Err(OpenError::Locked { .. })));
}

#[tokio::test]
async fn an_append_that_is_not_chained_is_refused() {
    let (_directory, path) = temporary();
    let log = EmbeddedLog::open(&path).unwrap();
    let mut commits = chain(Position::ZERO, 2);
    commits[1].previous = Hash::of(b"another");
    let refused = log.append(Position::ZERO, &commits).await;
    assert!(matches!(refused, Err(AppendError::Refused { .. })));
    commits[1].previous = position(&commits[0]).hash;
    commits[1].sequence = Sequence(3);
    let refused = log.append(Position::ZERO, &commits).await;
    assert!(matches!(refused, Err(AppendError::Refused { .. })));
    assert!(matches!(log.append(Position::ZERO, &[]).await, Err(AppendError::Refused { .. })));
    assert_eq!(log.head().unwrap(), Position::ZERO);
}

#[tokio::test]
async fn a_commit_larger_than_the_limit_is_refused() {
    let (_directory, path) = temporary();
    let log = EmbeddedLog::open(&path).unwrap();
    let mut commits = chain(Position::ZERO, 1);
    commits[0].reason = "x".repeat(APPEND_BYTES_MAX);
    let refused = log.append(Position::ZERO, &commits).await;
    assert!(matches!(refused, Err(AppendError::Refused { .. })));
}

#[tokio::test]
async fn a_large_answer_is_cut_but_never_empty() {
    let (_directory, path) = temporary();
    let log = EmbeddedLog::open(&path).unwrap();
    let mut head = Position::ZERO;
    for _ in 0..20 {
        let mut commits = chain(head, 1);
        commits[0].reason = "x".repeat(APPEND_BYTES_MAX - 1_000);
        head = log.append(head, &commits).await.unwrap();
    }
    let read = log.read(Sequence(1), 20).await.unwrap();
    assert!(!read.is_empty() && read.len() < 20, "{} commits", read.len());
}

#[test]
fn a_file_of_noise_is_called_damaged() {
    let (_directory, path) = temporary();
    for length in [1, 100, 4_096, 1 << 20] {
        std::fs::write(&path, vec![0xa5; length]).unwrap();
        let opened = EmbeddedLog::open(&path);
        assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{length} bytes");
    }
}

#[tokio::test]
async fn flipped_bytes_anywhere_are_noticed_or_harmless_and_never_end_the_process() {
    let (_directory, path) = temporary();
    let log = EmbeddedLog::open(&path).unwrap();
    let commits = chain(Position::ZERO, 50);
    log.append(Position::ZERO, &commits).await.unwrap();
    drop(log);
    let whole = std::fs::read(&path).unwrap();
    for offset in (0..whole.len()).step_by(whole.len() / 200) {
        let mut flipped = whole.clone();
        flipped[offset] ^= 0xff;
        std::fs::write(&path, &flipped).unwrap();
        let Ok(log) = EmbeddedLog::open(&path) else { continue };
        let mut reader = crate::VerifiedReader::new(log, Position::ZERO);
        let mut read = Vec::new();
        while let Ok(batch) = reader.next_batch(100).await {
            if batch.is_empty() {
                break;
            }
            read.extend(batch.into_iter().map(|(commit, _)| commit));
        }
        assert_eq!(read, commits[..read.len()], "byte {offset}");
    }
}

#[test]
fn the_file_of_another_program_is_refused() {
    let (_directory, path) = temporary();
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TableDefinition::<u64, u64>::new("other")).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(matches!(EmbeddedLog::open(&path), Err(OpenError::Damaged { .. })));
}

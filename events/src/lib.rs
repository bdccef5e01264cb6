//! The log: one order of commits, hash-chained, compare-and-append, over one of two engines
//! (embedded redb, NATS JetStream); Merkle tree, signed checkpoints and proofs.
//!
//! A commit's number is dense from 1. An append carries one or more commits, already numbered and
//! chained after the position that the writer expects to be the head; if another writer was first,
//! the append is refused and nothing of it is stored. That is the only arbiter of the system.

use std::future::Future;
use voute_schemas::{Commit, Epoch, Sequence};

/// A position in the log: number and hash of a commit ([`Epoch::ZERO`] before the first).
pub type Position = Epoch;

/// One commit as it rests in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredCommit {
    /// Its number and hash.
    pub position: Position,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Why an append did not happen, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Another writer was first: catch up and decide again.
    #[error("another writer appended first")]
    Conflict,
    /// It may or may not be stored: append the very same commits again until the answer is definite.
    #[error("the log did not answer ({cause}); the outcome is unknown, append the same commits again")]
    Unknown {
        /// What happened.
        cause: String,
    },
    /// The log takes no more.
    #[error("the log is full: {cause}")]
    Full {
        /// In words.
        cause: String,
    },
    /// The log refuses for another reason; nothing was stored.
    #[error("the log refused the append: {cause}")]
    Refused {
        /// In words, with what to do.
        cause: String,
    },
}

/// Why the log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It does not answer.
    #[error("the log cannot be reached: {cause}")]
    Unavailable {
        /// What happened.
        cause: String,
    },
    /// Its content is not what a log can be (chain broken, number missing, shorter than before).
    #[error("the log is damaged at commit {sequence}: {cause}")]
    Damaged {
        /// Where.
        sequence: Sequence,
        /// What was found.
        cause: String,
    },
}

/// What both engines can do.
pub trait Log: Send + Sync + 'static {
    /// Appends commits whose first follows `expected`. Appending the same commits again after an
    /// unknown outcome returns the same position, once.
    fn append(&self, expected: Position, commits: &[Commit]) -> impl Future<Output = Result<Position, AppendError>> + Send;

    /// Reads up to `limit` commits from number `from` on, in order, chain not yet verified. Fewer
    /// (or none) when the log ends there.
    fn read(&self, from: Sequence, limit: usize) -> impl Future<Output = Result<Vec<StoredCommit>, ReadError>> + Send;

    /// Returns once the log may hold a commit numbered `from` or higher; may return early.
    fn wait(&self, from: Sequence) -> impl Future<Output = ()> + Send;
}

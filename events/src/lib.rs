//! The log: one order of commits, hash-chained, compare-and-append, over one of two engines
//! (embedded redb, NATS JetStream); Merkle tree, signed checkpoints and proofs.
//!
//! A commit's number is dense from 1. An append carries one or more commits, already numbered and
//! chained after the position that the writer expects to be the head; if another writer was first,
//! the append is refused and nothing of it is stored. That is the only arbiter of the system.
//!
//! Who reads for effect reads through a [`VerifiedReader`]; who acts on one commit without reading
//! the log verifies a checkpoint and a proof ([`checkpoint`]).

mod any;
pub mod checkpoint;
pub mod embedded;
pub mod exchange;
pub mod jetstream;
pub mod merkle;
pub mod note;
pub mod reader;
pub mod register;
#[cfg(test)]
mod sample;
mod sealing;

pub use any::AnyLog;
pub use checkpoint::{Signer, VerifiedCheckpoint, verify, verify_commit};
pub use embedded::EmbeddedLog;
pub use exchange::{Exchange, Topic};
pub use jetstream::{JetStreamLog, JetStreamOptions, Safety};
pub use merkle::MerkleTree;
pub use reader::VerifiedReader;
pub use register::SignedRegister;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use voute_schemas::{Commit, Epoch, Sequence};

/// A position in the log: number and hash of a commit ([`Epoch::ZERO`] before the first).
pub type Position = Epoch;

/// Most commits in one append.
pub const APPEND_COMMITS_MAX: usize = 4_096;
/// Most bytes of commits in one append: the same for both engines, so that a log can move from one
/// to the other. A single commit may take all of it.
pub const APPEND_BYTES_MAX: usize = voute_schemas::commit::COMMIT_BYTES_MAX;
/// Bytes of commits after which one [`Log::read`] answers with fewer than asked for.
pub const READ_BYTES_MAX: usize = 16 << 20;

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
    #[error(
        "the log did not answer ({cause}); the outcome is unknown, append the same commits again"
    )]
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
    /// Appends commits whose first follows `expected`, at most [`APPEND_COMMITS_MAX`] and
    /// [`APPEND_BYTES_MAX`]. Appending the same commits again after an unknown outcome returns the
    /// same position, once.
    ///
    /// `expected` is compared by number and hash: a log that has another commit at that number, or
    /// ends before it, refuses.
    fn append(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> impl Future<Output = Result<Position, AppendError>> + Send;

    /// Reads up to `limit` commits from number `from` on, in order, chain not yet verified. None
    /// when the log ends before `from`; fewer than `limit` when it ends there, or after
    /// [`READ_BYTES_MAX`].
    fn read(
        &self,
        from: Sequence,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<StoredCommit>, ReadError>> + Send;

    /// Returns once the log may hold a commit numbered `from` or higher; may return early.
    fn wait(&self, from: Sequence) -> impl Future<Output = ()> + Send;

    /// How long a read may still answer from a replica that lags, so that a log that looks shorter
    /// than before is judged only after this.
    fn settle(&self) -> Duration {
        Duration::ZERO
    }
}

impl<L: Log> Log for Arc<L> {
    async fn append(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError> {
        L::append(self, expected, commits).await
    }

    async fn read(&self, from: Sequence, limit: usize) -> Result<Vec<StoredCommit>, ReadError> {
        L::read(self, from, limit).await
    }

    async fn wait(&self, from: Sequence) {
        L::wait(self, from).await;
    }

    fn settle(&self) -> Duration {
        L::settle(self)
    }
}

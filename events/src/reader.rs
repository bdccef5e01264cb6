//! Reading for effect: in order, each commit verified before it is handed on.

use crate::{Log, Position, ReadError, StoredCommit};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use voute_schemas::{Commit, Hash, Sequence};

/// Most commits in one batch, whatever is asked for; memory is bounded by this and by
/// [`crate::READ_BYTES_MAX`].
pub const BATCH_MAX: usize = 8_192;
/// How often a log that looks shorter than before is asked again within [`Log::settle`].
const SETTLE_INTERVAL: Duration = Duration::from_millis(250);

/// Reads a log from a position that is already trusted, and yields only commits that decode, are
/// numbered without a gap, and hold the hash of the one before. Once it met anything else it stops:
/// every later call returns the same error.
///
/// While one full batch is being verified, the next is already being read: at most two are in memory.
pub struct VerifiedReader<L> {
    log: Arc<L>,
    at: Position,
    damage: Option<(Sequence, String)>,
    ahead: Option<Ahead>,
}

/// A read that was begun before it was asked for.
struct Ahead {
    /// It begins with this commit, which is known.
    at: Position,
    read: JoinHandle<Result<Vec<StoredCommit>, ReadError>>,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.read.abort();
    }
}

impl<L: Log> VerifiedReader<L> {
    /// Begins after `at`, which is checked to be in the log at the first read
    /// ([`Position::ZERO`] for the whole log).
    pub fn new(log: L, at: Position) -> Self {
        VerifiedReader { log: Arc::new(log), at, damage: None, ahead: None }
    }

    /// The last commit that was yielded, or where the reader began.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at
    }

    /// The log that it reads.
    #[must_use]
    pub fn log(&self) -> &L {
        &self.log
    }

    /// Returns once there may be more to read.
    pub async fn wait(&self) {
        self.log.wait(self.at.sequence.next()).await;
    }

    /// Reads the next commits, at most `limit` and [`BATCH_MAX`]; none at the log's end.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] may pass, [`ReadError::Damaged`] will not: the commits before the
    /// damage have been yielded, nothing after it ever is.
    pub async fn next_batch(
        &mut self,
        limit: usize,
    ) -> Result<Vec<(Commit, StoredCommit)>, ReadError> {
        if let Some((sequence, cause)) = &self.damage {
            return Err(ReadError::Damaged { sequence: *sequence, cause: cause.clone() });
        }
        let limit = limit.clamp(1, BATCH_MAX);
        let stored = self.read_after_position(limit).await;
        let stored = self.remember(stored)?;
        if stored.len() >= limit {
            self.read_ahead(stored[stored.len() - 1].position, limit);
        }
        let mut verified = Vec::with_capacity(stored.len());
        for commit in stored {
            match verify(self.at, &commit) {
                Ok(decoded) => {
                    self.at = commit.position;
                    verified.push((decoded, commit));
                }
                // What came before the damage is good: yield it now, the error next time.
                Err(cause) => {
                    self.damage = Some((self.at.sequence.next(), cause.clone()));
                    if verified.is_empty() {
                        return Err(ReadError::Damaged {
                            sequence: self.at.sequence.next(),
                            cause,
                        });
                    }
                    break;
                }
            }
        }
        Ok(verified)
    }

    /// Reads from the known position itself on, so that a log that was shortened or replaced since
    /// is noticed at every read.
    async fn read_after_position(&mut self, limit: usize) -> Result<Vec<StoredCommit>, ReadError> {
        if self.at.sequence == Sequence(0) {
            return self.log.read(Sequence(1), limit).await;
        }
        let mut waited = Duration::ZERO;
        loop {
            let mut commits = match self.take_ahead().await {
                Some(commits) => commits,
                None => self.log.read(self.at.sequence, limit + 1).await?,
            };
            commits.truncate(limit + 1);
            if let Some(first) = commits.first() {
                if first.position == self.at && Hash::of_commit(&first.bytes) == self.at.hash {
                    commits.remove(0);
                    // A first commit that fills an answer alone is not the log's end.
                    if commits.is_empty() && limit > 0 {
                        return self.log.read(self.at.sequence.next(), limit).await;
                    }
                    return Ok(commits);
                }
                return self.damaged(format!(
                    "the log holds commit {} (hash {}) where the one with hash {} was read before",
                    first.position.sequence, first.position.hash, self.at.hash
                ));
            }
            if waited >= self.log.settle() {
                return self.damaged("the log is shorter than it was".into());
            }
            tokio::time::sleep(SETTLE_INTERVAL).await;
            waited += SETTLE_INTERVAL;
        }
    }

    /// Begins to read what follows `at` and `at` itself.
    fn read_ahead(&mut self, at: Position, limit: usize) {
        let log = Arc::clone(&self.log);
        let read = tokio::spawn(async move { log.read(at.sequence, limit + 1).await });
        self.ahead = Some(Ahead { at, read });
    }

    /// What was read ahead, if it is what is wanted now and goes beyond what is known; an empty or
    /// failed answer is asked for again.
    async fn take_ahead(&mut self) -> Option<Vec<StoredCommit>> {
        let mut ahead = self.ahead.take().filter(|ahead| ahead.at == self.at)?;
        let commits = (&mut ahead.read).await.ok()?.ok()?;
        (commits.len() > 1).then_some(commits)
    }

    fn damaged<T>(&self, cause: String) -> Result<T, ReadError> {
        Err(ReadError::Damaged { sequence: self.at.sequence, cause })
    }

    fn remember<T>(&mut self, result: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(ReadError::Damaged { sequence, cause }) = &result {
            self.damage = Some((*sequence, cause.clone()));
        }
        result
    }
}

/// Checks one commit against the one before it.
fn verify(before: Position, stored: &StoredCommit) -> Result<Commit, String> {
    let position = stored.position;
    if before.sequence.0.checked_add(1) != Some(position.sequence.0) {
        return Err(format!("commit {} follows commit {}", position.sequence, before.sequence));
    }
    if Hash::of_commit(&stored.bytes) != position.hash {
        return Err("its bytes were changed after they were stored".into());
    }
    let commit = Commit::decode(&stored.bytes).map_err(|error| error.to_string())?;
    if commit.sequence != position.sequence {
        return Err(format!("commit {} lies in its place", commit.sequence));
    }
    if commit.previous != before.hash {
        return Err(format!(
            "it follows a commit with hash {}, but the one before it has {}",
            commit.previous, before.hash
        ));
    }
    Ok(commit)
}

#[cfg(test)]
mod tests;

//! The log that all control processes share: perfect, or faulty. It loses acknowledgements, answers
//! late or not at all, shows one reader less than another, and once forgets its end.

use crate::random::Random;
use std::future::{Future, ready};
use std::sync::{Arc, Mutex, MutexGuard};
use voute_events::{AppendError, Log, Position, ReadError, StoredCommit};
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::{Commit, Hash, Sequence};

/// Control processes that use the log.
pub(crate) const READERS: usize = 2;

pub(crate) struct Inner {
    commits: Vec<StoredCommit>,
    random: Random,
    pub(crate) is_up: bool,
    /// Whether a control process reaches it.
    pub(crate) reached: [bool; READERS],
    /// Acknowledgements lost, in percent.
    pub(crate) lost_acks: u64,
    /// How many of the latest commits a control process does not see yet.
    pub(crate) lag: [usize; READERS],
    seen: [usize; READERS],
    /// What the log forgot, with all that was appended since.
    forgotten: Option<Vec<StoredCommit>>,
}

/// The log as one control process sees it.
#[derive(Clone)]
pub(crate) struct SimulatedLog {
    inner: Arc<Mutex<Inner>>,
    who: usize,
}

impl SimulatedLog {
    pub(crate) fn new(random: Random) -> [SimulatedLog; READERS] {
        let inner = Arc::new(Mutex::new(Inner {
            commits: Vec::new(),
            random,
            is_up: true,
            reached: [true; READERS],
            lost_acks: 0,
            lag: [0; READERS],
            seen: [0; READERS],
            forgotten: None,
        }));
        [0, 1].map(|who| SimulatedLog { inner: Arc::clone(&inner), who })
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("one thread")
    }

    pub(crate) fn append_now(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError> {
        self.inner().append(self.who, expected, commits)
    }
}

impl Inner {
    pub(crate) fn head(&self) -> Position {
        self.commits.last().map_or(Position::ZERO, |commit| commit.position)
    }

    fn append(
        &mut self,
        who: usize,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError> {
        let unknown = || AppendError::Unknown { cause: "no answer".to_owned() };
        let is_reached = self.is_up && self.reached[who];
        // A request may get there although its answer does not come back.
        let gets_there = is_reached || self.is_up && self.random.chance(30);
        if !gets_there {
            return Err(unknown());
        }
        let stored: Vec<StoredCommit> = commits.iter().map(stored).collect();
        let at = expected.sequence.0 as usize;
        let there = self.commits.get(at..at + stored.len());
        let done = if there.is_some_and(|there| there == stored) {
            true
        } else if self.head() == expected
            || mutant::is_active(Mutant::AppendByNumberAlone)
                && self.head().sequence == expected.sequence
        {
            self.commits.extend(stored.iter().cloned());
            true
        } else {
            false
        };
        let ack_is_lost = self.random.chance(self.lost_acks);
        match stored.last() {
            _ if !is_reached || ack_is_lost => Err(unknown()),
            Some(last) if done => Ok(last.position),
            _ => Err(AppendError::Conflict),
        }
    }

    fn read(
        &mut self,
        who: usize,
        from: Sequence,
        limit: usize,
    ) -> Result<Vec<StoredCommit>, ReadError> {
        if !(self.is_up && self.reached[who]) {
            return Err(ReadError::Unavailable { cause: "no answer".to_owned() });
        }
        // A replica may lag, but a reader waits until it has what was read before, if it is there.
        let visible = self.commits.len().saturating_sub(self.lag[who]);
        let visible = visible.max(self.seen[who]).min(self.commits.len());
        self.seen[who] = visible;
        let begin = (from.0.saturating_sub(1) as usize).min(visible);
        let end = begin.saturating_add(limit).min(visible);
        Ok(self.commits[begin..end].to_vec())
    }

    /// The last commits are gone.
    pub(crate) fn forget(&mut self, count: usize) {
        if self.forgotten.is_none() && self.commits.len() > count {
            self.forgotten = Some(self.commits.clone());
            let left = self.commits.len() - count;
            self.commits.truncate(left);
        }
    }

    /// What sites still hold is put back by people, audited; what was appended since is not of it.
    /// Only a site's signature says which history took effect: one that goes against it stays lost.
    pub(crate) fn recover(&mut self, (sequence, hash): (Sequence, Hash)) {
        if let Some(commits) = self.forgotten.take() {
            let index = sequence.0.checked_sub(1).map(|index| index as usize);
            let signed = index.and_then(|index| commits.get(index));
            if index.is_none() || signed.is_some_and(|commit| commit.position.hash == hash) {
                self.commits = commits;
            }
            self.seen = [0; READERS];
        }
    }

    pub(crate) fn forgot(&self) -> bool {
        self.forgotten.is_some()
    }

    /// The hash of a commit, if there is one of this number.
    pub(crate) fn hash_at(&self, sequence: Sequence) -> Option<Hash> {
        let index = sequence.0.checked_sub(1)? as usize;
        self.commits.get(index).map(|commit| commit.position.hash)
    }
}

fn stored(commit: &Commit) -> StoredCommit {
    let bytes = commit.encode();
    let position = Position { sequence: commit.sequence, hash: Hash::of_commit(&bytes) };
    StoredCommit { position, bytes }
}

impl Log for SimulatedLog {
    fn append(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> impl Future<Output = Result<Position, AppendError>> + Send {
        ready(self.append_now(expected, commits))
    }

    fn read(
        &self,
        from: Sequence,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<StoredCommit>, ReadError>> + Send {
        ready(self.inner().read(self.who, from, limit))
    }

    fn wait(&self, _: Sequence) -> impl Future<Output = ()> + Send {
        ready(())
    }
}

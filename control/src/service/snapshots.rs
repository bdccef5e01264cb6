//! When to write snapshots of what is published, and the one being written.

use super::{Shared, View};
use crate::projection::Projection;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use voute_schemas::Sequence;

/// A snapshot is written after so many commits …
const SNAPSHOT_COMMITS: u64 = 10_000;
/// … or this long after the first commit that it lacks, …
const SNAPSHOT_AFTER: Duration = Duration::from_secs(5);
/// … but takes at most this part of the time.
const SNAPSHOT_DUTY: u32 = 20;

/// When to write snapshots, and the one being written.
pub(super) struct Snapshots {
    projection: Option<Projection>,
    saved: Sequence,
    reached: Sequence,
    /// When the first commit came that the snapshot lacks.
    behind_since: Option<tokio::time::Instant>,
    not_before: tokio::time::Instant,
    writing: Option<JoinHandle<Option<(Sequence, Duration)>>>,
}

impl Snapshots {
    pub(super) fn new(projection: Option<Projection>, saved: Sequence) -> Self {
        Snapshots {
            projection,
            saved,
            reached: saved,
            behind_since: None,
            not_before: tokio::time::Instant::now(),
            writing: None,
        }
    }

    pub(super) fn note(&mut self, reached: Sequence) {
        self.reached = reached;
        if reached > self.saved {
            self.behind_since.get_or_insert_with(tokio::time::Instant::now);
        }
    }

    /// Returns when a snapshot should be written.
    pub(super) async fn due(&mut self) {
        if let Some(writing) = &mut self.writing {
            let ended = writing.await;
            self.writing = None;
            self.written(ended.ok().flatten());
        }
        match (&self.projection, self.behind_since) {
            (Some(_), Some(since)) => {
                tokio::time::sleep_until((since + SNAPSHOT_AFTER).max(self.not_before)).await;
            }
            _ => std::future::pending().await,
        }
    }

    fn written(&mut self, result: Option<(Sequence, Duration)>) {
        let now = tokio::time::Instant::now();
        match result {
            Some((saved, took)) => {
                self.saved = saved;
                self.not_before = now + took * SNAPSHOT_DUTY;
                self.behind_since = (self.reached > saved).then_some(now);
            }
            None => self.not_before = now + SNAPSHOT_AFTER,
        }
    }

    /// Writes what is published, if it is time.
    pub(super) fn save_if_due(&mut self, shared: &Arc<Shared>) {
        let now = tokio::time::Instant::now();
        let many = self.reached.0 - self.saved.0 >= SNAPSHOT_COMMITS;
        let long = self.behind_since.is_some_and(|since| now >= since + SNAPSHOT_AFTER);
        if (many || long) && now >= self.not_before && self.writing.is_none() {
            self.writing = self.save(shared);
        }
    }

    fn save(&self, shared: &Arc<Shared>) -> Option<JoinHandle<Option<(Sequence, Duration)>>> {
        let projection = self.projection.clone()?;
        let View { state, checkpoint, .. } = shared.published();
        let hand_overs = shared.hand_overs.lock().expect("no holder panics").clone();
        let first = Projection::first_leaf(self.saved.0);
        let shared = Arc::clone(shared);
        Some(tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let sequence = state.position().sequence;
            let leaves: Vec<_> = {
                let tree = shared.tree.read().expect("no holder of the tree panics");
                (first..sequence.0).filter_map(|index| tree.leaf(index)).collect()
            };
            match projection.save(&state, first, &leaves, (&checkpoint, &hand_overs)) {
                Ok(()) => Some((sequence, began.elapsed())),
                Err(error) => {
                    tracing::warn!(%error, "no snapshot was written; the next start reads more of the log");
                    None
                }
            }
        }))
    }

    /// Writes what is published, if it is not written yet.
    pub(super) async fn save_last(&mut self, shared: &Arc<Shared>) {
        if let Some(writing) = self.writing.take() {
            let ended = writing.await.ok().flatten();
            self.written(ended);
        }
        if self.reached > self.saved
            && let Some(writing) = self.save(shared)
        {
            let ended = writing.await.ok().flatten();
            self.written(ended);
        }
    }
}

//! Tells, once for many, that hosts are refused: a crowd of strangers must fill no disk with lines.

use crate::metrics::Metrics;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use voute_nvme::Refusals;

/// At most one line within this time.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What was told last, and when.
#[derive(Default)]
pub(super) struct Told {
    refusals: Refusals,
    at: Option<Instant>,
    /// Connections of any protocol that came when there were as many as may be.
    crowded: u64,
    crowded_at: Option<Instant>,
}

impl Told {
    /// Takes the target's counts into the metrics; tells if there is something new and the last line is
    /// old enough.
    pub(super) fn follow(&mut self, refusals: Refusals, metrics: &Metrics) {
        take(&refusals, metrics);
        let may_tell = |at: Option<Instant>| at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if may_tell(self.at) {
            self.tell(refusals);
        }
        if may_tell(self.crowded_at) {
            self.tell_crowded(metrics);
        }
    }

    /// The node ends: what was not told yet is told now.
    pub(super) fn conclude(&mut self, refusals: Refusals, metrics: &Metrics) {
        take(&refusals, metrics);
        self.tell(refusals);
        self.tell_crowded(metrics);
    }

    fn tell_crowded(&mut self, metrics: &Metrics) {
        let crowded = metrics.refused_connections.load(Relaxed);
        if crowded == self.crowded {
            return;
        }
        tracing::warn!(
            connections = crowded - self.crowded,
            "connections were refused: a reactor holds as many as it may; are hosts left connected that need not be?"
        );
        (self.crowded, self.crowded_at) = (crowded, Some(Instant::now()));
    }

    fn tell(&mut self, refusals: Refusals) {
        if refusals == self.refusals {
            return;
        }
        let new = |now: u64, before: u64| now.saturating_sub(before);
        let before = &self.refusals;
        tracing::warn!(
            silent = new(refusals.handshakes, before.handshakes),
            connects = new(refusals.connects, before.connects),
            faults = new(refusals.faults, before.faults),
            authentications = new(refusals.authentications, before.authentications),
            last = refusals.last.as_deref().unwrap_or("-").escape_debug().to_string(),
            "hosts were refused over NVMe/TCP"
        );
        (self.refusals, self.at) = (refusals, Some(Instant::now()));
    }
}

fn take(refusals: &Refusals, metrics: &Metrics) {
    metrics.refused_handshakes.store(refusals.handshakes, Relaxed);
    metrics.refused_connects.store(refusals.connects, Relaxed);
    metrics.protocol_faults.store(refusals.faults, Relaxed);
    metrics.refused_authentications.store(refusals.authentications, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_refusals_are_counted_each_and_told_once() {
        let (metrics, mut told) = (Metrics::default(), Told::default());
        told.follow(Refusals::default(), &metrics);
        assert!(told.at.is_none(), "there is nothing to tell");
        let refusals = |connects| Refusals { connects, ..Refusals::default() };
        told.follow(refusals(1), &metrics);
        let first = told.at.expect("it was told");
        told.follow(refusals(1000), &metrics);
        assert_eq!((told.at, told.refusals.connects), (Some(first), 1), "not again so soon");
        assert_eq!(metrics.refused_connects.load(Relaxed), 1000);
        told.conclude(refusals(1001), &metrics);
        assert_eq!(told.refusals.connects, 1001, "the end leaves nothing untold");
        assert!(told.crowded_at.is_none(), "nobody came when there was no room");
        metrics.refused_connections.store(3, Relaxed);
        told.follow(refusals(1001), &metrics);
        metrics.refused_connections.store(5, Relaxed);
        told.follow(refusals(1001), &metrics);
        assert_eq!(told.crowded, 3, "not again so soon");
    }
}

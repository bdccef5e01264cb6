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
}

impl Told {
    /// Takes the target's counts into the metrics; tells if there is something new and the last line is
    /// old enough.
    pub(super) fn follow(&mut self, refusals: Refusals, metrics: &Metrics) {
        metrics.refused_handshakes.store(refusals.handshakes, Relaxed);
        metrics.refused_connects.store(refusals.connects, Relaxed);
        metrics.protocol_faults.store(refusals.faults, Relaxed);
        metrics.refused_authentications.store(refusals.authentications, Relaxed);
        let may_tell = self.at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if refusals == self.refusals || !may_tell {
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
    }
}

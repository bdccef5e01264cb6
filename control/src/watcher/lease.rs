//! Which control process watches: by habit one, so that losses are proposed once. Correctness does not
//! rest on it: of two proposals the log takes one.
//!
//! ```text
//! follows ──nobody heard for LEASE──▶ claims the next term, watches
//!    ▲                                     │
//!    └── hears a higher term, or its own term from a lower process; cannot commit; was not run for long
//! ```
//!
//! Whoever watches says so several times within a lease. Terms only rise, so a process that was stopped
//! and goes on in an old term gives way to whoever took over. Pure: time and messages in.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use uuid::Uuid;

/// How long a claim holds.
pub(crate) const LEASE: Duration = Duration::from_millis(1_000);
/// How often it is renewed.
pub(crate) const RENEW_EVERY: Duration = Duration::from_millis(250);
/// Added to the lease before another claims it, at most: so that not all claim at once.
const SPREAD: Duration = Duration::from_millis(250);

/// What a watching process says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Claim {
    term: u64,
    process: Uuid,
}

/// The lease as one process sees it.
#[derive(Debug)]
pub(crate) struct Lease {
    process: Uuid,
    is_alone: bool,
    /// The highest claim that is known, an own one too, and when it was heard or made last.
    known: Option<(Claim, Duration)>,
    said_at: Option<Duration>,
    looked_at: Duration,
    began_at: Duration,
}

impl Lease {
    /// A process that begins to follow; one without others watches for ever.
    pub(crate) fn new(process: Uuid, is_alone: bool, now: Duration) -> Self {
        Lease { process, is_alone, known: None, said_at: None, looked_at: now, began_at: now }
    }

    /// Another process says that it watches.
    pub(crate) fn heard(&mut self, claim: Claim, now: Duration) {
        if claim.process == self.process {
            return;
        }
        let rank = |claim: &Claim| (claim.term, std::cmp::Reverse(claim.process));
        match &self.known {
            Some((known, _)) if rank(known) > rank(&claim) => {}
            _ => self.known = Some((claim, now)),
        }
    }

    /// Whether this process watches now; a claim to be said, if it is time. `is_fit`: it can get
    /// something committed.
    pub(crate) fn look(&mut self, is_fit: bool, now: Duration) -> (bool, Option<Claim>) {
        if self.is_alone {
            return (true, None);
        }
        let was_stopped = now.saturating_sub(self.looked_at) > LEASE;
        self.looked_at = now;
        if was_stopped {
            // Its claim has run out, and what it knows of others is old: it listens first.
            self.began_at = now;
            self.known = self
                .known
                .filter(|(claim, _)| claim.process != self.process)
                .map(|(claim, _)| (claim, now));
        }
        if !is_fit {
            // Another takes over when this claim has run out.
            self.said_at = None;
            return (false, None);
        }
        match self.known {
            Some((claim, _)) if claim.process == self.process => {}
            Some((_, at)) if now < at + LEASE + self.spread() => return (false, None),
            None if now < self.began_at + LEASE + self.spread() => return (false, None),
            _ => {
                let term = self.known.map_or(0, |(claim, _)| claim.term).saturating_add(1);
                self.known = Some((Claim { term, process: self.process }, now));
                self.said_at = None;
            }
        }
        let is_due = self.said_at.is_none_or(|at| now >= at + RENEW_EVERY);
        let claim = self.known.map(|(claim, _)| claim).filter(|_| is_due);
        if claim.is_some() {
            self.said_at = Some(now);
        }
        (true, claim)
    }

    /// Different for each process.
    fn spread(&self) -> Duration {
        SPREAD * u32::from(self.process.as_bytes()[15]) / 256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Three processes that look every 50 ms and hear each other unless cut off.
    struct World {
        leases: Vec<Lease>,
        is_up: [bool; 3],
        is_fit: [bool; 3],
        now: u64,
    }

    impl World {
        fn new() -> Self {
            let lease = |number: u128| Lease::new(Uuid::from_u128(number * 77), false, at(0));
            World {
                leases: vec![lease(1), lease(2), lease(3)],
                is_up: [true; 3],
                is_fit: [true; 3],
                now: 0,
            }
        }

        /// Who watches after these milliseconds; more than one only in the moments given.
        fn run(&mut self, ms: u64) -> Vec<usize> {
            let end = self.now + ms;
            let mut watching = Vec::new();
            while self.now < end {
                self.now += 50;
                watching.clear();
                for index in (0..3).filter(|index| self.is_up[*index]) {
                    let (watches, claim) =
                        self.leases[index].look(self.is_fit[index], at(self.now));
                    if watches {
                        watching.push(index);
                    }
                    for other in (0..3).filter(|other| *other != index && self.is_up[*other]) {
                        if let Some(claim) = claim {
                            self.leases[other].heard(claim, at(self.now));
                        }
                    }
                }
            }
            watching
        }
    }

    #[test]
    fn one_watches_and_stays_and_another_takes_over_within_two_seconds() {
        let mut world = World::new();
        let first = world.run(2_000);
        assert_eq!(first.len(), 1);
        for _ in 0..20 {
            assert_eq!(world.run(500), first, "it stays");
        }
        world.is_up[first[0]] = false;
        let second = world.run(1_500);
        assert_eq!(second.len(), 1);
        assert_ne!(first, second);
        // The one that was stopped goes on: it finds the other one watching and follows.
        world.is_up[first[0]] = true;
        for _ in 0..20 {
            assert_eq!(world.run(50), second, "never two");
        }
    }

    #[test]
    fn who_cannot_commit_leaves_the_watch_to_others() {
        let mut world = World::new();
        let first = world.run(2_000);
        world.is_fit[first[0]] = false;
        let second = world.run(1_500);
        assert_eq!(second.len(), 1);
        assert_ne!(first, second);
        world.is_fit[first[0]] = true;
        assert_eq!(world.run(2_000), second, "it does not take it back");
        world.is_fit = [false; 3];
        assert!(world.run(2_000).is_empty());
    }

    #[test]
    fn of_two_that_claim_at_once_one_gives_way() {
        let mut world = World::new();
        let claim = |process: u128| Claim { term: 5, process: Uuid::from_u128(process * 77) };
        world.leases[0].known = Some((claim(1), at(0)));
        world.leases[1].known = Some((claim(2), at(0)));
        assert_eq!(world.run(500), [0]);
    }

    #[test]
    fn a_process_without_others_always_watches() {
        let mut lease = Lease::new(Uuid::from_u128(1), true, at(0));
        assert_eq!(lease.look(false, at(0)), (true, None));
        assert_eq!(lease.look(true, at(60_000)), (true, None));
    }
}

//! Which control process watches: by habit one, so that losses are proposed once. Correctness does not
//! rest on it: of two proposals the log takes one.
//!
//! ```text
//! follows ──nobody heard for LEASE, or who watches may not act──▶ claims the next term, watches
//!    ▲                                                                │
//!    └── hears a higher term, or its own term from a lower process; cannot commit; was not run for long
//! ```
//!
//! A claim tells how many nodes its holder hears: who hears more of them for the length of a lease takes the
//! watch from it, and who hears none does not watch. What is cut off from the nodes would call them lost.
//!
//! A claim tells why its holder may not act, if so: whoever may act takes the watch from it, and all show the
//! reasons of the one that watches, for its reasons count.
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

/// Most reasons in a claim, and bytes of each.
const REASONS_MAX: usize = 8;
const REASON_BYTES_MAX: usize = 300;

/// What a watching process says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Claim {
    term: u64,
    process: Uuid,
    /// Why it fails nothing over by itself; empty if it does.
    hindered: Vec<String>,
    /// How many nodes it hears.
    hears: u32,
    /// Rises with each claim of a process: one that is said again by somebody else is worth nothing.
    number: u64,
}

/// Who watches, as far as one process knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum Holder {
    /// Nobody that it hears.
    #[default]
    Nobody,
    /// It does itself.
    Own,
    /// Another, which may not act for these reasons, if there are any.
    Other(Vec<String>),
}

/// The lease as one process sees it.
#[derive(Debug)]
pub(crate) struct Lease {
    process: Uuid,
    is_alone: bool,
    /// The highest claim that is known, an own one too, and when it was heard or made last.
    known: Option<(Claim, Duration)>,
    /// Why this process may not act.
    hindered: Vec<String>,
    /// How many nodes this process hears.
    hears: u32,
    /// Since when that is more than whoever watches does.
    hears_more_since: Option<Duration>,
    /// Of the last own claim.
    number: u64,
    said_at: Option<Duration>,
    looked_at: Duration,
    began_at: Duration,
}

impl Lease {
    /// A process that begins to follow; one without others watches for ever.
    pub(crate) fn new(process: Uuid, is_alone: bool, now: Duration) -> Self {
        Lease {
            process,
            is_alone,
            known: None,
            hindered: Vec::new(),
            hears: 0,
            hears_more_since: None,
            number: 0,
            said_at: None,
            looked_at: now,
            began_at: now,
        }
    }

    /// Why this process fails nothing over by itself; empty if it does.
    pub(crate) fn is_hindered(&mut self, reasons: &[String]) {
        let short = |reason: &String| reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].into();
        self.hindered = reasons.iter().take(REASONS_MAX).map(short).collect();
    }

    /// How many nodes this process hears.
    pub(crate) fn hears(&mut self, nodes: u32) {
        self.hears = nodes;
    }

    /// Who watches now.
    pub(crate) fn holder(&self, now: Duration) -> Holder {
        match &self.known {
            _ if self.is_alone => Holder::Own,
            Some((claim, _)) if claim.process == self.process && self.said_at.is_some() => {
                Holder::Own
            }
            Some((claim, at)) if claim.process != self.process && now < *at + LEASE => {
                Holder::Other(claim.hindered.clone())
            }
            _ => Holder::Nobody,
        }
    }

    /// Another process says that it watches.
    pub(crate) fn heard(&mut self, claim: Claim, now: Duration) {
        if claim.process == self.process {
            return;
        }
        let rank = |claim: &Claim| (claim.term, std::cmp::Reverse(claim.process));
        match &self.known {
            Some((known, _)) if rank(known) > rank(&claim) => {}
            Some((known, _)) if rank(known) == rank(&claim) && claim.number <= known.number => {}
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
                .take()
                .filter(|(claim, _)| claim.process != self.process)
                .map(|(claim, _)| (claim, now));
        }
        if !is_fit {
            // Another takes over when this claim has run out.
            self.said_at = None;
            return (false, None);
        }
        let claims_after = LEASE + self.spread();
        let has_listened = now >= self.began_at + claims_after;
        let hears_more = self.hears_more_for(now) >= LEASE;
        let may_replace = |claim: &Claim| {
            let may_act = self.hindered.is_empty();
            let is_as_good = may_act || !claim.hindered.is_empty();
            has_listened && (may_act && !claim.hindered.is_empty() || is_as_good && hears_more)
        };
        match &mut self.known {
            Some((claim, _)) if claim.process == self.process => {
                claim.hindered.clone_from(&self.hindered);
                claim.hears = self.hears;
            }
            Some((claim, at)) if now < *at + claims_after && !may_replace(claim) => {
                return (false, None);
            }
            None if !has_listened => return (false, None),
            known => {
                let term = known.as_ref().map_or(0, |(claim, _)| claim.term).saturating_add(1);
                let hindered = self.hindered.clone();
                let (process, hears) = (self.process, self.hears);
                *known = Some((Claim { term, process, hindered, hears, number: 0 }, now));
                self.hears_more_since = None;
                self.said_at = None;
            }
        }
        let is_due = self.said_at.is_none_or(|at| now >= at + RENEW_EVERY);
        if !is_due {
            return (true, None);
        }
        self.said_at = Some(now);
        self.number += 1;
        let claim = self.known.as_mut().map(|(claim, _)| {
            claim.number = self.number;
            claim.clone()
        });
        (true, claim)
    }

    /// For how long this process has heard more nodes than another that watches.
    fn hears_more_for(&mut self, now: Duration) -> Duration {
        let more = |(claim, _): &(Claim, Duration)| {
            claim.process != self.process && self.hears > claim.hears
        };
        if !self.known.as_ref().is_some_and(more) {
            self.hears_more_since = None;
            return Duration::ZERO;
        }
        now.saturating_sub(*self.hears_more_since.get_or_insert(now))
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
                        if let Some(claim) = claim.clone() {
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
    fn who_may_not_act_gives_way_to_one_who_may_and_all_show_its_reasons_until_then() {
        let mut world = World::new();
        let reasons = vec!["no monitoring address was given".to_owned()];
        world.leases.iter_mut().for_each(|lease| lease.is_hindered(&reasons));
        let first = world.run(2_000)[0];
        let others: Vec<usize> = (0..3).filter(|index| *index != first).collect();
        assert_eq!(world.run(2_000), [first], "nobody is better");
        assert_eq!(world.leases[first].holder(at(world.now)), Holder::Own);
        for other in &others {
            let holder = world.leases[*other].holder(at(world.now));
            assert_eq!(holder, Holder::Other(reasons.clone()));
        }
        world.leases[others[0]].is_hindered(&[]);
        assert_eq!(world.run(200), [others[0]], "at once");
        assert_eq!(world.leases[first].holder(at(world.now)), Holder::Other(vec![]));
        // It stays, also when the others may act again.
        world.leases[first].is_hindered(&[]);
        assert_eq!(world.run(2_000), [others[0]]);
        world.is_up = [false; 3];
        world.is_up[first] = true;
        world.is_fit[first] = false;
        world.run(2_000);
        assert_eq!(world.leases[first].holder(at(world.now)), Holder::Nobody);
    }

    /// The watch is held at a site that the nodes do not reach: whoever hears them takes it.
    #[test]
    fn who_hears_more_nodes_takes_the_watch_and_keeps_it() {
        let mut world = World::new();
        world.leases.iter_mut().for_each(|lease| lease.hears(2));
        let first = world.run(2_000)[0];
        let others: Vec<usize> = (0..3).filter(|index| *index != first).collect();
        // A node that was heard a moment later here than there moves nothing.
        world.leases[first].hears(1);
        assert_eq!(world.run(600), [first]);
        world.leases[first].hears(2);
        assert_eq!(world.run(2_000), [first]);
        world.leases[first].hears(1);
        world.leases[others[0]].hears(1);
        assert_eq!(world.run(2_000), [others[1]]);
        // One that hears all of them again is no reason to move it back.
        world.leases[first].hears(2);
        assert_eq!(world.run(5_000), [others[1]]);
        // Better one that may act and hears one than one that hears two and may not.
        world.leases[others[1]].hears(1);
        world.leases[first].is_hindered(&["no monitoring address was given".to_owned()]);
        assert_eq!(world.run(5_000), [others[1]]);
    }

    #[test]
    fn a_claim_that_is_said_again_by_somebody_else_keeps_nobody_from_watching() {
        let mut world = World::new();
        let first = world.run(2_000)[0];
        let other = (first + 1) % 3;
        let (claim, _) = world.leases[other].known.clone().unwrap();
        world.is_up[first] = false;
        for _ in 0..40 {
            world.leases.iter_mut().for_each(|lease| lease.heard(claim.clone(), at(world.now)));
            world.run(50);
        }
        assert_eq!(world.run(50).len(), 1);
    }

    #[test]
    fn reasons_in_a_claim_are_few_and_short() {
        let mut lease = Lease::new(Uuid::from_u128(1), false, at(0));
        lease.is_hindered(&vec!["ü".repeat(10_000); 100]);
        let claim = (1..100).find_map(|step| lease.look(true, at(step * 50)).1).expect("it claims");
        assert!(postcard::to_stdvec(&claim).unwrap().len() < 4_096);
    }

    #[test]
    fn of_two_that_claim_at_once_one_gives_way() {
        let mut world = World::new();
        let claim = |process: u128| {
            let process = Uuid::from_u128(process * 77);
            Claim { term: 5, process, hindered: vec![], hears: 0, number: 0 }
        };
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

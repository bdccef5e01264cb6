//! Leases between nodes: the right to complete reads comes from the peer's keeper, not from the
//! control plane (docs/mirror-rules.md rule 7).
//!
//! One lease per channel, asked for by the owner every fifth of a second. The reply names the
//! keeper's process and the groups that it revoked since: a group's reads need a young grant, from
//! the very process that barred older tokens for it, and no revocation of it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::times::Times;
use voute_schemas::{GroupId, NodeId};

/// Most revocations that a grantor remembers; an asker further behind loses all.
const REVOCATIONS_MAX: usize = 65_536;

/// As owner: what a peer granted.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    /// When the youngest grant was asked for, and the grantor's process.
    granted: Option<(Duration, u64)>,
    /// Revocations seen, of that process.
    pub(crate) seen: u64,
    next_ask: Duration,
    pub(crate) up: bool,
}

impl Lease {
    pub(crate) fn new() -> Self {
        Lease { granted: None, seen: 0, next_ask: Duration::ZERO, up: false }
    }

    /// Notes a grant that was asked for at `asked`. Returns whether another process of the peer
    /// granted before: then every group must be barred anew.
    pub(crate) fn granted(&mut self, asked: Duration, session: u64, counter: u64) -> bool {
        let other = self.granted.is_some_and(|(_, before)| before != session);
        match self.granted {
            Some((latest, before)) if before == session && latest > asked => {}
            _ => self.granted = Some((asked, session)),
        }
        self.seen = counter;
        other && !mutant::is_active(Mutant::LeaseOfAnyProcess)
    }

    /// Whether a read that is in hand may complete now.
    pub(crate) fn is_valid(&self, session: u64, now: Duration, times: &Times) -> bool {
        let good_for = Duration::from_millis(times.lease_ms.saturating_sub(times.lease_margin_ms));
        self.granted.is_some_and(|(asked, from)| {
            (from == session || mutant::is_active(Mutant::LeaseOfAnyProcess))
                && now < asked + good_for
        })
    }

    /// Milliseconds left; negative when it ran out.
    pub(crate) fn left_ms(&self, now: Duration, times: &Times) -> Option<i64> {
        let (asked, _) = self.granted?;
        Some(i64::try_from(times.lease_ms).unwrap_or(i64::MAX) + signed_ms(asked) - signed_ms(now))
    }

    /// Whether it is time to ask; notes that it was done.
    pub(crate) fn ask(&mut self, now: Duration, times: &Times) -> bool {
        let due = self.up && self.next_ask <= now;
        if due {
            self.next_ask = now + Duration::from_millis(times.grant_interval_ms);
        }
        due
    }

    pub(crate) fn next_ask(&self) -> Option<Duration> {
        self.up.then_some(self.next_ask)
    }

    pub(crate) fn channel_up(&mut self, now: Duration) {
        self.up = true;
        self.next_ask = now;
    }
}

fn signed_ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2)
}

/// As keeper: what was granted to others.
#[derive(Clone, Debug)]
pub(crate) struct Grants {
    started: Duration,
    session: u64,
    last: HashMap<NodeId, Duration>,
    revoked: VecDeque<GroupId>,
    /// Revocations that were forgotten.
    forgotten: u64,
}

impl Grants {
    /// The start of a process counts as a grant of the longest lease to everybody: what an earlier
    /// one granted is not known.
    pub(crate) fn new(session: u64, started: Duration) -> Self {
        Grants { started, session, last: HashMap::new(), revoked: VecDeque::new(), forgotten: 0 }
    }

    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    pub(crate) fn counter(&self) -> u64 {
        self.forgotten + self.revoked.len() as u64
    }

    pub(crate) fn grant(&mut self, to: NodeId, now: Duration) {
        self.last.insert(to, now);
    }

    /// Groups revoked since an asker's count; `None` if too many.
    pub(crate) fn revoked_since(&self, seen: u64) -> Option<Vec<GroupId>> {
        let skip = seen.checked_sub(self.forgotten)?;
        Some(self.revoked.iter().skip(usize::try_from(skip).ok()?).copied().collect())
    }

    pub(crate) fn revoke(&mut self, group: GroupId) {
        self.revoked.push_back(group);
        if self.revoked.len() > REVOCATIONS_MAX {
            self.revoked.pop_front();
            self.forgotten += 1;
        }
    }

    pub(crate) fn last(&self, to: NodeId) -> Duration {
        self.last.get(&to).copied().unwrap_or(self.started).max(self.started)
    }

    /// When everything that an earlier process may have granted has surely run out.
    pub(crate) fn start_run_out(&self, times: &Times) -> Duration {
        if mutant::is_active(Mutant::StartIsNoGrant) {
            return self.started;
        }
        self.started + Duration::from_millis(times.grant_wait_ms)
    }

    /// When everything that was granted to a node so far has surely run out there.
    pub(crate) fn run_out(&self, to: NodeId, times: &Times) -> Duration {
        if mutant::is_active(Mutant::StartIsNoGrant) && !self.last.contains_key(&to) {
            return self.started;
        }
        self.last(to) + Duration::from_millis(times.grant_wait_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_lease_counts_from_when_it_was_asked_for() {
        let times = Times::default();
        let mut lease = Lease::new();
        assert!(!lease.is_valid(1, MS * 10, &times));
        lease.granted(MS * 10, 1, 0);
        assert!(lease.is_valid(1, MS * 1_409, &times));
        assert!(!lease.is_valid(1, MS * 1_410, &times));
        assert!(!lease.is_valid(2, MS * 11, &times), "another process of the grantor");
    }

    #[test]
    fn an_older_answer_does_not_shorten_a_lease() {
        let times = Times::default();
        let mut lease = Lease::new();
        lease.granted(MS * 500, 1, 0);
        lease.granted(MS * 100, 1, 0);
        assert!(lease.is_valid(1, MS * 1_800, &times));
        assert!(lease.granted(MS * 600, 2, 0));
    }

    #[test]
    fn the_start_of_a_grantor_counts_as_a_grant() {
        let times = Times::default();
        let node = NodeId::generate();
        let mut grants = Grants::new(1, MS * 1_000);
        assert_eq!(grants.run_out(node, &times), MS * 2_875);
        grants.grant(node, MS * 1_500);
        assert_eq!(grants.run_out(node, &times), MS * 3_375);
    }

    #[test]
    fn an_asker_learns_what_was_revoked_since() {
        let mut grants = Grants::new(1, MS);
        let groups: Vec<_> = (0..3).map(|_| GroupId::generate()).collect();
        groups.iter().for_each(|group| grants.revoke(*group));
        assert_eq!(grants.revoked_since(1), Some(groups[1..].to_vec()));
        assert_eq!(grants.revoked_since(3), Some(vec![]));
        for _ in 0..REVOCATIONS_MAX {
            grants.revoke(groups[0]);
        }
        assert_eq!(grants.revoked_since(0), None);
    }
}

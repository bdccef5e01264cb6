//! Which requests on a volume must wait for which: one order of overlapping writes on all legs
//! (docs/mirror-rules.md rule 3).
//!
//! A read waits for a write in flight that it overlaps, and a write for a read: a read that were
//! still in the device queue might return what a later write has so far put on this leg alone, and a
//! failover would take it back. A write also waits for writes and copies in flight. A copy (resync,
//! settling) waits for writes and they for it; reads pass it. Whoever waits is served in order, so
//! that a stream of reads keeps no write waiting.

use std::collections::VecDeque;
use voute_schemas::mutant::{self, Mutant};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claim {
    Read,
    Write,
    Copy,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    key: u64,
    claim: Claim,
    begin: u64,
    end: u64,
}

impl Range {
    fn blocks(&self, other: &Range) -> bool {
        let overlaps = self.begin < other.end && other.begin < self.end;
        let conflicts = match (self.claim, other.claim) {
            (Claim::Write, _) | (Claim::Read, Claim::Write) => true,
            (Claim::Copy, Claim::Write | Claim::Copy) => true,
            (Claim::Copy, Claim::Read) | (Claim::Read, Claim::Read | Claim::Copy) => false,
        };
        overlaps && conflicts && !mutant_drops(self.claim, other.claim)
    }
}

/// Which order a mutant gives up.
fn mutant_drops(one: Claim, other: Claim) -> bool {
    match (one, other) {
        (Claim::Write, Claim::Write) => mutant::is_active(Mutant::WritesPassWrites),
        (Claim::Read, Claim::Write) | (Claim::Write, Claim::Read) => {
            mutant::is_active(Mutant::ReadsPassWrites)
        }
        (Claim::Copy, Claim::Write) | (Claim::Write, Claim::Copy) => {
            mutant::is_active(Mutant::CopiesPassWrites)
        }
        _ => false,
    }
}

#[derive(Clone, Default, Debug)]
pub(crate) struct Claims {
    held: Vec<Range>,
    waiting: VecDeque<Range>,
}

impl Claims {
    /// Claims a range; returns whether it is held at once. If not, [`Claims::release`] tells when.
    pub(crate) fn claim(&mut self, key: u64, claim: Claim, begin: u64, end: u64) -> bool {
        let range = Range { key, claim, begin, end };
        let behind = self.waiting.iter().any(|earlier| earlier.blocks(&range));
        if behind || self.held.iter().any(|held| held.blocks(&range)) {
            self.waiting.push_back(range);
            return false;
        }
        self.held.push(range);
        true
    }

    /// Gives a claim (held or waiting) back; returns the keys of those that are held from now on.
    pub(crate) fn release(&mut self, key: u64) -> Vec<u64> {
        if let Some(index) = self.held.iter().position(|range| range.key == key) {
            self.held.swap_remove(index);
        } else {
            self.waiting.retain(|range| range.key != key);
        }
        let mut woken = Vec::new();
        let mut still: VecDeque<Range> = VecDeque::with_capacity(self.waiting.len());
        for range in std::mem::take(&mut self.waiting) {
            let behind = still.iter().any(|earlier| earlier.blocks(&range));
            if behind || self.held.iter().any(|held| held.blocks(&range)) {
                still.push_back(range);
            } else {
                self.held.push(range);
                woken.push(range.key);
            }
        }
        self.waiting = still;
        woken
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.held.len() + self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_writes_go_in_order_of_arrival() {
        let mut claims = Claims::default();
        assert!(claims.claim(1, Claim::Write, 0, 8));
        assert!(!claims.claim(2, Claim::Write, 4, 12));
        assert!(!claims.claim(3, Claim::Write, 10, 20), "it overlaps one that waits");
        assert!(claims.claim(4, Claim::Write, 20, 30));
        assert_eq!(claims.release(1), vec![2]);
        assert_eq!(claims.release(2), vec![3]);
        assert_eq!(claims.release(4), Vec::<u64>::new());
        assert_eq!(claims.release(3), Vec::<u64>::new());
        assert_eq!(claims.len(), 0);
    }

    #[test]
    fn a_read_and_a_write_that_overlap_exclude_each_other() {
        let mut claims = Claims::default();
        assert!(claims.claim(1, Claim::Write, 0, 8));
        assert!(!claims.claim(2, Claim::Read, 7, 9));
        assert!(claims.claim(3, Claim::Read, 8, 16));
        assert!(!claims.claim(4, Claim::Write, 9, 16), "the read may still be in the device queue");
        assert_eq!(claims.release(1), vec![2]);
        assert_eq!(claims.release(3), vec![4]);
    }

    #[test]
    fn reads_do_not_overtake_a_write_that_waits() {
        let mut claims = Claims::default();
        assert!(claims.claim(1, Claim::Read, 0, 8));
        assert!(!claims.claim(2, Claim::Write, 0, 8));
        assert!(!claims.claim(3, Claim::Read, 0, 8));
        assert_eq!(claims.release(1), vec![2]);
        assert_eq!(claims.release(2), vec![3]);
    }

    #[test]
    fn a_copy_orders_with_writes_and_lets_reads_pass() {
        let mut claims = Claims::default();
        assert!(claims.claim(1, Claim::Copy, 0, 100));
        assert!(claims.claim(2, Claim::Read, 0, 10));
        assert!(!claims.claim(3, Claim::Write, 0, 10));
        assert!(!claims.claim(4, Claim::Copy, 50, 60));
        assert_eq!(claims.release(1), vec![4]);
        assert_eq!(claims.release(2), vec![3]);
    }
}

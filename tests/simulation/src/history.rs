//! What hosts saw, and whether one disk could have shown it.
//!
//! Two kinds of blocks. An *own* block has one writer, whose values rise; what a read may return is
//! known when it begins. A *shared* block has several writers at a time, each attempt with a value
//! of its own; that all its operations can be put in one order is judged at the end: for values that
//! are unique this is decided by their zones (Gibbons & Korach, Testing shared memories, 1997).

use std::collections::{BTreeMap, BTreeSet};

/// A moment: rises with every event that a host could notice.
pub(crate) type Stamp = u64;

/// A block with one writer.
#[derive(Default)]
pub(crate) struct Own {
    pub(crate) issued: u64,
    pub(crate) acknowledged: u64,
    /// The highest value that a finished read returned.
    pub(crate) seen: u64,
    /// Values that read as zero.
    zeros: BTreeSet<u64>,
    /// The value that is surely there, if no write is open.
    pub(crate) settled: Option<u64>,
}

impl Own {
    pub(crate) fn new() -> Self {
        Own { settled: Some(0), ..Own::default() }
    }

    pub(crate) fn issue(&mut self, zero: bool) -> u64 {
        self.issued += 1;
        self.settled = None;
        if zero {
            self.zeros.insert(self.issued);
        }
        self.issued
    }

    pub(crate) fn acknowledge(&mut self, value: u64) {
        self.acknowledged = self.acknowledged.max(value);
        self.settled = Some(value);
    }

    pub(crate) fn is_zero(&self, value: u64) -> bool {
        value == 0 || self.zeros.contains(&value)
    }

    /// What a read that begins now must at least return.
    pub(crate) fn least(&self) -> u64 {
        self.acknowledged.max(self.seen)
    }

    /// Whether a read shows this value (`true`) or one before it; `None`: one after it, which says
    /// nothing of this one. `found` is `None` if it read as zero.
    pub(crate) fn shows(&self, found: Option<u64>, value: u64) -> Option<bool> {
        match found {
            Some(found) if found > value => None,
            Some(found) => Some(found == value),
            None if self.zeros.range(value..).next().is_none() => Some(false),
            None => None,
        }
    }

    /// Judges what a read that had to return at least `least` returned; `None`: it read as zero.
    pub(crate) fn check(&mut self, found: Option<u64>, least: u64) -> Result<(), String> {
        let value = match found {
            Some(value) => value,
            // The least of the discards (or the beginning) that may be seen.
            None if least == 0 => 0,
            None => self.zeros.range(least..).next().copied().unwrap_or_default(),
        };
        if value < least || value > self.issued || found.is_some() && self.is_zero(value) {
            return Err(format!(
                "it read as {value}, but {least} had been acknowledged or read ({} issued)",
                self.issued
            ));
        }
        self.seen = self.seen.max(value);
        Ok(())
    }
}

/// One value of a shared block: when it was written, and when it was there.
#[derive(Clone, Copy)]
struct Value {
    written_from: Stamp,
    /// The first end of an operation that shows the value to be there.
    shown_by: Stamp,
    /// The last begin of an operation that shows it.
    shown_until: Stamp,
}

/// A block with several writers.
pub(crate) struct Shared {
    values: BTreeMap<u64, Value>,
    /// Values that a compare-and-write replaced, and by what.
    replaced: BTreeMap<u64, u64>,
    next: u64,
}

const NEVER: Stamp = Stamp::MAX;

impl Default for Shared {
    /// It holds zeroes, which count as a value of their own.
    fn default() -> Self {
        let zero = Value { written_from: 0, shown_by: 0, shown_until: 0 };
        Shared { values: BTreeMap::from([(0, zero)]), replaced: BTreeMap::new(), next: 0 }
    }
}

impl Shared {
    /// A value that may be there: what a compare-and-write may hope to find.
    pub(crate) fn latest(&self) -> u64 {
        let shown = self.values.iter().filter(|(_, value)| value.shown_by != NEVER);
        shown.max_by_key(|(_, value)| value.shown_until).map_or(0, |(value, _)| *value)
    }

    /// A write begins; what it writes.
    pub(crate) fn begin(&mut self, now: Stamp) -> u64 {
        self.next += 1;
        let value = Value { written_from: now, shown_by: NEVER, shown_until: now };
        self.values.insert(self.next, value);
        self.next
    }

    /// An operation that began and ended then shows that this value was there meanwhile.
    pub(crate) fn show(&mut self, value: u64, began: Stamp, ended: Stamp) -> Result<(), String> {
        let Some(known) = self.values.get_mut(&value) else {
            return Err(format!("it read as {value}, which nobody wrote"));
        };
        if ended < known.written_from {
            return Err(format!("it read as {value} before that was written"));
        }
        known.shown_by = known.shown_by.min(ended);
        known.shown_until = known.shown_until.max(began);
        Ok(())
    }

    /// A compare-and-write found `expected` and wrote `value`.
    pub(crate) fn replace(&mut self, expected: u64, value: u64) -> Result<(), String> {
        match self.replaced.insert(expected, value) {
            None => Ok(()),
            Some(other) => Err(format!(
                "two compare-and-writes found {expected} there: they wrote {other} and {value}"
            )),
        }
    }

    /// Whether one order explains all that was shown.
    pub(crate) fn judge(&self) -> Result<(), String> {
        let shown = || self.values.iter().filter(|(_, value)| value.shown_by != NEVER);
        let mut forward: Vec<(Stamp, Stamp, u64)> = shown()
            .filter(|(_, value)| value.shown_by < value.shown_until)
            .map(|(name, value)| (value.shown_by, value.shown_until, *name))
            .collect();
        forward.sort_unstable();
        for pair in forward.windows(2) {
            let [(_, until, one), (from, _, other)] = pair else { continue };
            if from < until {
                return Err(format!(
                    "value {one} was seen until moment {until}, value {other} from {from} on: it went back"
                ));
            }
        }
        for (name, value) in shown().filter(|(_, value)| value.shown_by >= value.shown_until) {
            let within = forward
                .iter()
                .find(|(from, until, _)| *from < value.shown_until && value.shown_by < *until);
            if let Some((from, until, other)) = within {
                return Err(format!(
                    "value {name} was there within {}..{}, while {other} was, from {from} to {until}",
                    value.shown_until, value.shown_by
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_writes_may_be_seen_in_either_order() {
        for (first, second) in [(1, 2), (2, 1)] {
            let mut block = Shared::default();
            assert_eq!((block.begin(10), block.begin(11)), (1, 2));
            block.show(1, 10, 20).unwrap();
            block.show(2, 11, 21).unwrap();
            block.show(first, 12, 13).unwrap();
            block.show(second, 30, 31).unwrap();
            assert_eq!(block.judge(), Ok(()));
        }
    }

    #[test]
    fn a_value_that_comes_back_is_noticed() {
        let mut block = Shared::default();
        assert_eq!((block.begin(10), block.begin(11)), (1, 2));
        block.show(1, 10, 20).unwrap();
        block.show(2, 11, 21).unwrap();
        for (value, at) in [(1, 30), (2, 40), (1, 50)] {
            block.show(value, at, at + 1).unwrap();
        }
        assert!(block.judge().is_err());
    }

    #[test]
    fn a_lost_write_is_noticed() {
        let mut block = Shared::default();
        let value = block.begin(10);
        block.show(value, 10, 20).unwrap();
        block.show(0, 30, 31).unwrap();
        assert!(block.judge().is_err());
    }

    #[test]
    fn a_write_without_an_answer_may_come_late_or_never() {
        let mut block = Shared::default();
        let (late, never) = (block.begin(1), block.begin(2));
        block.show(0, 30, 31).unwrap();
        block.show(late, 40, 41).unwrap();
        assert_eq!(block.judge(), Ok(()));
        assert!(block.show(never + 1, 50, 51).is_err());
    }

    #[test]
    fn an_own_block_never_goes_back() {
        let mut block = Own::new();
        let (one, two) = (block.issue(false), block.issue(true));
        assert!(block.check(Some(one), block.least()).is_ok());
        assert!(block.check(None, block.least()).is_ok(), "the discard of value {two}");
        assert!(block.check(Some(one), block.least()).is_err());
        assert!(block.check(Some(7), block.least()).is_err(), "never issued");
    }
}

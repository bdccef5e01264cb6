//! Which extents of a device are free, as runs.

use super::state::SmallTable;
use serde::{Deserialize, Serialize};

/// The free extents of one device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FreeExtents {
    total: u64,
    free: u64,
    /// First extent of a run to its length; runs neither overlap nor touch.
    runs: SmallTable<u64, u64>,
}

impl FreeExtents {
    /// A device with this many extents, all free.
    pub(super) fn all(total: u64) -> Self {
        let mut extents = FreeExtents { total, free: 0, runs: SmallTable::new() };
        extents.give(0, total);
        extents
    }

    /// Extents of the device, free or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Free extents.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Free runs, lowest first: first extent and length.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.into_iter().map(|(first, count)| (*first, *count))
    }

    /// Length of the free run that begins at this extent, or goes on there; zero if it is taken.
    pub(super) fn free_from(&self, extent: u64) -> u64 {
        match self.run_at_or_before(extent) {
            Some((first, count)) => (first + count).saturating_sub(extent),
            None => 0,
        }
    }

    /// Marks extents as taken; those that are not free stay as they are.
    pub(super) fn take(&mut self, first: u64, count: u64) {
        if count == 0 {
            return;
        }
        let end = first.saturating_add(count);
        let overlapping: Vec<(u64, u64)> = self
            .run_at_or_before(first)
            .filter(|(start, length)| start + length > first)
            .into_iter()
            .chain(self.runs.range(first..end).map(|(start, length)| (*start, *length)))
            .collect();
        for (start, length) in overlapping {
            if self.runs.remove_cow(&start).is_none() {
                continue;
            }
            self.free -= length;
            self.put(start, first.saturating_sub(start));
            self.put(end, (start + length).saturating_sub(end));
        }
    }

    /// Marks extents as free again, joining them with free neighbours.
    pub(super) fn give(&mut self, first: u64, count: u64) {
        self.take(first, count);
        let (mut start, mut end) = (first, first.saturating_add(count).min(self.total));
        if start >= end {
            return;
        }
        if let Some((before, length)) = self.run_at_or_before(start)
            && before + length == start
        {
            self.runs.remove_cow(&before);
            self.free -= length;
            start = before;
        }
        if let Some(length) = self.runs.remove_cow(&end) {
            self.free -= length;
            end += length;
        }
        self.put(start, end - start);
    }

    fn put(&mut self, start: u64, length: u64) {
        if length > 0 {
            self.runs.insert_cow(start, length);
            self.free += length;
        }
    }

    fn run_at_or_before(&self, extent: u64) -> Option<(u64, u64)> {
        self.runs.range(..=extent).next_back().map(|(first, count)| (*first, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn freed_neighbours_become_one_run() {
        let mut extents = FreeExtents::all(100);
        extents.take(0, 30);
        extents.take(40, 10);
        assert_eq!(extents.runs().collect::<Vec<_>>(), [(30, 10), (50, 50)]);
        extents.give(40, 10);
        assert_eq!(extents.runs().collect::<Vec<_>>(), [(30, 70)]);
        extents.give(0, 30);
        assert_eq!(extents, FreeExtents::all(100));
    }

    #[test]
    fn taking_or_giving_nothing_changes_nothing() {
        let mut extents = FreeExtents::all(100);
        extents.take(50, 0);
        extents.give(50, 0);
        assert_eq!(extents.runs().collect::<Vec<_>>(), [(0, 100)]);
    }

    #[test]
    fn the_rest_of_a_run_is_known_from_within_it() {
        let mut extents = FreeExtents::all(100);
        extents.take(20, 10);
        assert_eq!(extents.free_from(5), 15);
        assert_eq!(extents.free_from(20), 0);
        assert_eq!(extents.free_from(30), 70);
        assert_eq!(extents.free_from(100), 0);
    }

    proptest! {
        #[test]
        fn runs_agree_with_a_bitmap(
            steps in prop::collection::vec((any::<bool>(), 0_u64..70, 0_u64..20), 0..60)
        ) {
            let mut extents = FreeExtents::all(64);
            let mut bitmap = [true; 64];
            for (gives, first, count) in steps {
                if gives { extents.give(first, count) } else { extents.take(first, count) }
                for extent in first..(first + count).min(64) {
                    bitmap[usize::try_from(extent).unwrap()] = gives;
                }
                let runs: Vec<_> = extents.runs().collect();
                for pair in runs.windows(2) {
                    prop_assert!(pair[0].0 + pair[0].1 < pair[1].0, "runs touch");
                }
                let mut seen = [false; 64];
                for (first, count) in runs {
                    for extent in first..first + count {
                        seen[usize::try_from(extent).unwrap()] = true;
                    }
                }
                prop_assert_eq!(seen, bitmap);
                prop_assert_eq!(extents.free(), bitmap.iter().filter(|free| **free).count() as u64);
            }
        }
    }
}

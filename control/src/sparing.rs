//! Says what others can cause at will in one line of many: nobody fills a disk with our log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Least time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Of one kind of line.
#[derive(Debug, Default)]
pub(crate) struct Sparing(Mutex<Last>);

#[derive(Debug, Default)]
struct Last {
    said_at: Option<Instant>,
    unsaid: u64,
}

impl Sparing {
    /// Whether a line may be written now; then how many were not since the last.
    pub(crate) fn may_say(&self, now: Instant) -> Option<u64> {
        let mut last = self.0.lock().expect("no holder panics");
        if last.said_at.is_some_and(|at| now.saturating_duration_since(at) < LINE_EVERY) {
            last.unsaid = last.unsaid.saturating_add(1);
            return None;
        }
        last.said_at = Some(now);
        Some(std::mem::take(&mut last.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_lines_become_one_that_counts_them() {
        let (sparing, began) = (Sparing::default(), Instant::now());
        assert_eq!(sparing.may_say(began), Some(0));
        for step in 1..100 {
            assert_eq!(sparing.may_say(began + LINE_EVERY * step / 100), None);
        }
        assert_eq!(sparing.may_say(began + LINE_EVERY), Some(99));
    }
}

//! When acknowledgements came: how long the host saw none, which is what a failover costs it.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Acknowledgements as the host sees them.
pub struct Pulse {
    state: Mutex<State>,
    beat: Condvar,
}

struct State {
    count: u64,
    last: Instant,
    longest_gap: Duration,
}

impl Pulse {
    /// Begins now.
    #[must_use]
    pub fn new() -> Self {
        let state = State { count: 0, last: Instant::now(), longest_gap: Duration::ZERO };
        Pulse { state: Mutex::new(state), beat: Condvar::new() }
    }

    /// An acknowledgement came.
    pub fn acknowledged(&self) {
        self.acknowledged_at(Instant::now());
    }

    fn acknowledged_at(&self, now: Instant) {
        let mut state = self.lock();
        state.longest_gap = state.longest_gap.max(now.saturating_duration_since(state.last));
        state.last = now;
        state.count += 1;
        drop(state);
        self.beat.notify_all();
    }

    /// Begins a new measurement of the longest gap, which the last acknowledgement so far opens.
    pub fn restart(&self) {
        self.lock().longest_gap = Duration::ZERO;
    }

    /// The longest time between two acknowledgements that follow each other, since the restart.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        self.lock().longest_gap
    }

    /// Waits for `more` further acknowledgements; false if they do not come in time.
    #[must_use]
    pub fn wait(&self, more: u64, patience: Duration) -> bool {
        let state = self.lock();
        let target = state.count + more;
        let (state, _) = self
            .beat
            .wait_timeout_while(state, patience, |state| state.count < target)
            .expect("no holder of this lock panics");
        state.count >= target
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_lies_between_the_last_before_and_the_first_after() {
        let pulse = Pulse::new();
        let begin = Instant::now();
        for milliseconds in [1, 2, 3] {
            pulse.acknowledged_at(begin + Duration::from_millis(milliseconds));
        }
        pulse.restart();
        for milliseconds in [2_503, 2_504] {
            pulse.acknowledged_at(begin + Duration::from_millis(milliseconds));
        }
        assert_eq!(pulse.longest_gap(), Duration::from_millis(2_500));
    }

    #[test]
    fn waiting_for_acknowledgements_that_do_not_come_ends() {
        let pulse = Pulse::new();
        assert!(!pulse.wait(1, Duration::from_millis(5)));
        std::thread::scope(|scope| {
            scope.spawn(|| pulse.acknowledged());
            // Either it came before the wait began, or the wait sees it.
            let _ = pulse.wait(1, Duration::from_secs(5));
        });
        assert_eq!(pulse.lock().count, 1);
    }
}

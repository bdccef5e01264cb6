//! The one clock of a node: `CLOCK_MONOTONIC_RAW`, whose rate nobody adjusts, watched against
//! `CLOCK_BOOTTIME`.
//!
//! A machine that was suspended does not see that time pass on the raw clock, so its leases would
//! look young when they ran out long ago. There is no safe way to go on from inside a request, so the
//! process ends: its successor starts like any other and asks for its leases anew. (A paused virtual
//! machine cannot be noticed from inside; that is documented, not prevented.)

use std::time::Duration;

/// Most that the two clocks may part between two looks, which are at most [`LOOK_EVERY_MAX`] apart:
/// adjusting the rate of one parts them by at most a tenth of that time.
pub(crate) const SUSPENDED: Duration = Duration::from_millis(500);
/// The clocks are compared with care when they seem to have parted by so much. Half of
/// [`SUSPENDED`], so that what they part by slowly never adds up to that.
const LOOK_CLOSER: Duration = Duration::from_millis(250);
/// Longest that reading both clocks may take to be of use: a thread can be stopped in between, and
/// would take the pause for a suspension.
const READ_WITHIN: Duration = Duration::from_millis(50);
/// Longest sleep of a reactor, so that looks come often enough.
pub(crate) const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);

/// Reads the clock; one per thread.
pub(crate) struct Clock {
    /// [`apart`] at the last careful look.
    apart: Duration,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Clock { apart: both().1 }
    }

    /// Time since an arbitrary start, the same for all threads.
    ///
    /// # Panics
    /// Never; but it ends the process if the machine was suspended since the last look.
    pub(crate) fn now(&mut self) -> Duration {
        // Boot time first: a pause between the two readings makes it look late, never ahead.
        let (boot, now) = (read(libc::CLOCK_BOOTTIME), raw());
        let (apart, known) = (apart(boot, now), self.apart);
        if apart.abs_diff(known) < LOOK_CLOSER { now } else { self.look_closer() }
    }

    /// The clocks have parted, or this thread paused between reading them: tells which.
    #[cold]
    fn look_closer(&mut self) -> Duration {
        let (now, apart) = both();
        if was_suspended(self.apart, apart) {
            tracing::error!(
                "the machine was suspended for about {} ms: leases may have run out unseen; this process ends so that nothing stale is served, start it again",
                apart.saturating_sub(self.apart).as_millis()
            );
            std::process::abort();
        }
        self.apart = apart;
        now
    }
}

/// The raw time, and how far boot time is from it.
fn both() -> (Duration, Duration) {
    loop {
        let (before, boot, after) = (raw(), read(libc::CLOCK_BOOTTIME), raw());
        if after.saturating_sub(before) <= READ_WITHIN {
            return (after, apart(boot, before));
        }
    }
}

/// Boot time less raw time, plus a constant: the raw clock, which nobody adjusts, may be ahead.
fn apart(boot: Duration, raw: Duration) -> Duration {
    (boot + Duration::from_secs(1 << 32)).saturating_sub(raw)
}

/// Whether the difference of the clocks grew as only a suspension makes it grow.
fn was_suspended(before: Duration, after: Duration) -> bool {
    after.saturating_sub(before) > SUSPENDED
}

/// The raw clock, for those who make no decision that a suspension could spoil.
pub(crate) fn raw() -> Duration {
    read(libc::CLOCK_MONOTONIC_RAW)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    let status = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(status, 0, "Linux has had these clocks since 2.6.39");
    Duration::new(
        u64::try_from(time.tv_sec).expect("time since boot is not negative"),
        u32::try_from(time.tv_nsec).expect("below 1e9"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_does_not_go_back() {
        let mut clock = Clock::new();
        let first = clock.now();
        assert!(clock.now() >= first);
    }

    #[test]
    fn a_suspension_is_seen_although_the_raw_clock_is_ahead() {
        let at = Duration::from_secs;
        let before = apart(at(1_000), at(1_020));
        assert!(was_suspended(before, apart(at(1_010), at(1_021))));
        assert!(!was_suspended(before, apart(at(1_010), at(1_030))));
    }

    #[test]
    fn only_a_jump_of_boot_time_counts_as_suspension() {
        let ms = Duration::from_millis;
        assert!(was_suspended(ms(100), ms(700)));
        assert!(!was_suspended(ms(100), ms(550)));
        assert!(!was_suspended(ms(900), ms(100)), "a raw clock that runs fast");
    }
}

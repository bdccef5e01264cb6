//! The one clock of a node: `CLOCK_MONOTONIC_RAW`, whose rate nobody adjusts, watched against
//! `CLOCK_BOOTTIME`.
//!
//! A machine that was suspended does not see that time pass on the raw clock, so its leases would
//! look young when they ran out long ago. There is no safe way to go on from inside a request, so the
//! process ends: its successor starts like any other and asks for its leases anew. (A paused virtual
//! machine cannot be noticed from inside; that is documented, not prevented.)

use std::time::Duration;

/// Most by which the clocks may part while they are compared with one and the same distance, before it
/// counts as a suspension. At most three such stretches touch the 1.4 s for which a lease is believed,
/// so that less than the 475 ms pass unseen by which a grantor waits longer. A clock whose rate is
/// being adjusted parts from the other by at most a tenth, 125 ms in such a stretch.
const SUSPENDED: Duration = Duration::from_millis(155);
/// The clocks are compared with care when they seem to have parted by so much, ...
const LOOK_CLOSER: Duration = Duration::from_millis(100);
/// ... and after so much time, so that what they part by slowly does not add up to a suspension, nor
/// hides one.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Longest that reading both clocks may take to be of use: a thread can be stopped in between, and
/// would take the pause for a suspension.
const READ_WITHIN: Duration = Duration::from_millis(20);
/// Longest sleep of a reactor, so that looks come often enough.
pub(crate) const LOOK_EVERY_MAX: Duration = Duration::from_millis(250);

/// Reads the clock; one per thread.
pub(crate) struct Clock {
    /// [`apart`] as it was at `since`, by a careful look.
    apart: Duration,
    since: Duration,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let (since, apart) = both();
        Clock { apart, since }
    }

    /// Time since an arbitrary start, the same for all threads.
    ///
    /// # Panics
    /// Never; but it ends the process if the machine was suspended since the last look.
    pub(crate) fn now(&mut self) -> Duration {
        // Boot time first: a pause between the two readings makes it look late, never ahead.
        let (boot, now) = (read(libc::CLOCK_BOOTTIME), raw());
        let is_near = apart(boot, now).abs_diff(self.apart) < LOOK_CLOSER;
        if is_near && now.saturating_sub(self.since) < RENEW_EVERY {
            now
        } else {
            self.look_closer()
        }
    }

    /// The clocks have parted, or this thread paused between reading them, or it is time: tells which.
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
        // Growth within one stretch adds up, so that several short suspensions are seen as well.
        if apart < self.apart || now.saturating_sub(self.since) >= RENEW_EVERY {
            (self.apart, self.since) = (apart, now);
        }
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
        assert!(was_suspended(ms(100), ms(300)));
        assert!(!was_suspended(ms(100), ms(250)));
        assert!(!was_suspended(ms(900), ms(100)), "a raw clock that runs fast");
    }

    #[test]
    fn what_passes_unseen_within_a_lease_is_less_than_a_grantor_waits_longer() {
        let times = voute_schemas::times::Times::default();
        let believed = Duration::from_millis(times.lease_ms - times.lease_margin_ms);
        let slack = Duration::from_millis(times.grant_wait_ms) - believed;
        let stretches = 2 + (believed.as_millis() / RENEW_EVERY.as_millis()) as u32;
        assert!(SUSPENDED * stretches < slack);
        let slewed = (RENEW_EVERY + LOOK_EVERY_MAX) / 10;
        assert!(slewed + READ_WITHIN < SUSPENDED, "a clock that is adjusted is no suspension");
    }
}

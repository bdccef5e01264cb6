//! What others take of the processors while something is measured, as the kernel counts it.

use std::fs;
use std::time::Duration;

/// Share of a run that others may take before its figures say more about them, per cent.
const SHARE_MAX_PERCENT: u32 = 2;

/// Time since the machine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// In which some thread was ready and had no processor.
    waited: Duration,
    /// That the hypervisor gave to other machines, over all processors.
    stolen: Duration,
}

impl Disturbance {
    /// What there was until now; `None` where the kernel does not tell (`CONFIG_PSI`).
    #[must_use]
    pub fn now() -> Option<Self> {
        let pressure = fs::read_to_string("/proc/pressure/cpu").ok()?;
        let stat = fs::read_to_string("/proc/stat").ok()?;
        Some(Disturbance { waited: waited(&pressure)?, stolen: stolen(&stat)? })
    }

    /// Whether others took so much of the `elapsed` time since `before` that what was measured
    /// meanwhile is to be thrown away.
    #[must_use]
    pub fn spoiled(self, before: Self, elapsed: Duration) -> bool {
        let taken =
            self.waited.saturating_sub(before.waited) + self.stolen.saturating_sub(before.stolen);
        taken * 100 > elapsed * SHARE_MAX_PERCENT
    }
}

/// The total of `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`, which is in microseconds.
fn waited(pressure: &str) -> Option<Duration> {
    let line = pressure.lines().find(|line| line.starts_with("some "))?;
    let total = line.split_whitespace().find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

/// The eighth figure of the line of all processors, which is in hundredths of a second.
fn stolen(stat: &str) -> Option<Duration> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let hundredths: u64 = line.split_whitespace().nth(8)?.parse().ok()?;
    hundredths.checked_mul(10).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_and_stolen_time_are_read_as_the_kernel_writes_them() {
        let pressure =
            "some avg10=0.00 avg60=1.50 avg300=2.00 total=12345\nfull avg10=0.00 total=7\n";
        assert_eq!(waited(pressure), Some(Duration::from_micros(12_345)));
        assert_eq!(waited("full total=7\n"), None);
        let stat = "cpu  1 2 3 4 5 6 7 80 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(stolen(stat), Some(Duration::from_millis(800)));
        assert_eq!(stolen("cpu  1 2\n"), None);
    }

    #[test]
    fn a_run_is_spoiled_by_more_than_a_fiftieth_taken() {
        let at = |waited, stolen| Disturbance {
            waited: Duration::from_millis(waited),
            stolen: Duration::from_millis(stolen),
        };
        let second = Duration::from_secs(1);
        assert!(!at(110, 50).spoiled(at(100, 40), second));
        assert!(at(110, 51).spoiled(at(100, 40), second));
        assert!(at(121, 40).spoiled(at(100, 40), second));
        assert!(!at(100, 40).spoiled(at(100, 40), Duration::ZERO));
    }
}

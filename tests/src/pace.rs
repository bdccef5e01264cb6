//! What a run of requests took.

mod disturbance;

pub use disturbance::Disturbance;

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Length of the windows in which requests are counted.
const WINDOW: Duration = Duration::from_millis(10);

/// Longest latency that is told apart, nanoseconds.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// Latencies of the requests of one run, and how many ended in each window of it.
pub struct Pace {
    histogram: Histogram<u64>,
    begin: Instant,
    windows: Vec<u64>,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            histogram: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
                .expect("constant bounds are valid"),
            begin: Instant::now(),
            windows: Vec::new(),
        }
    }
}

impl Pace {
    /// Notes one request that ended at `now`, begun at `at`.
    pub fn note(&mut self, at: Instant, now: Instant) {
        let latency = now.saturating_duration_since(at);
        self.histogram
            .saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_MAX_NS));
        let since = now.saturating_duration_since(self.begin);
        let window = (since.as_nanos() / WINDOW.as_nanos()) as usize;
        if window >= self.windows.len() {
            self.windows.resize(window + 1, 0);
        }
        self.windows[window] += 1;
    }

    /// The median of the windows' rates, requests a second: what is reached while nothing else takes
    /// the processors. The last window is not whole.
    fn median_rate(&self) -> Option<f64> {
        let (_, whole) = self.windows.split_last()?;
        let mut sorted = whole.to_vec();
        sorted.sort_unstable();
        let median = sorted.get(sorted.len() / 2)?;
        Some(*median as f64 / WINDOW.as_secs_f64())
    }

    /// Sums up a run that took `elapsed` and moved `bytes` per request.
    #[must_use]
    pub fn report(&self, elapsed: Duration, bytes: u64) -> Report {
        let requests = self.histogram.len();
        let per_second = requests as f64 / elapsed.as_secs_f64().max(1e-9);
        let microseconds = |quantile| self.histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        Report {
            requests,
            seconds: elapsed.as_secs_f64(),
            requests_per_second: per_second,
            requests_per_second_median: self.median_rate().unwrap_or(per_second),
            megabytes_per_second: self.median_rate().unwrap_or(per_second) * bytes as f64 / 1e6,
            latency_us: Latency {
                p50: microseconds(0.5),
                p90: microseconds(0.9),
                p99: microseconds(0.99),
                p999: microseconds(0.999),
                max: microseconds(1.0),
            },
        }
    }
}

/// Figures of a run, or of several.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Requests that completed.
    pub requests: u64,
    /// How long it ran.
    pub seconds: f64,
    /// Rate over all of the run.
    pub requests_per_second: f64,
    /// Median of the rates in windows of 10 ms.
    pub requests_per_second_median: f64,
    /// Payload at the median rate, 10^6 bytes a second.
    pub megabytes_per_second: f64,
    /// Latencies, microseconds.
    pub latency_us: Latency,
}

impl Report {
    /// Of each figure the median over several runs.
    ///
    /// # Panics
    /// If there is no run.
    #[must_use]
    pub fn median(runs: &[Report]) -> Report {
        let of = |figure: fn(&Report) -> f64| {
            let mut figures: Vec<f64> = runs.iter().map(figure).collect();
            figures.sort_unstable_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        Report {
            requests: runs.iter().map(|run| run.requests).sum(),
            seconds: runs.iter().map(|run| run.seconds).sum(),
            requests_per_second: of(|run| run.requests_per_second),
            requests_per_second_median: of(|run| run.requests_per_second_median),
            megabytes_per_second: of(|run| run.megabytes_per_second),
            latency_us: Latency {
                p50: of(|run| run.latency_us.p50),
                p90: of(|run| run.latency_us.p90),
                p99: of(|run| run.latency_us.p99),
                p999: of(|run| run.latency_us.p999),
                max: of(|run| run.latency_us.max),
            },
        }
    }
}

/// Quantiles of latency, microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "quantiles")]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Readies a socket of a generator or of the floor, as Voûte's own: nothing waits for more to send, nor
/// for a timer of BBR where that is the system's congestion control.
///
/// # Errors
/// If the socket is of no use.
pub fn ready(stream: &std::net::TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    if rustix::net::sockopt::tcp_congestion(stream)?.starts_with("bbr") {
        rustix::net::sockopt::set_tcp_congestion(stream, "cubic")?;
    }
    Ok(())
}

/// Pins the calling thread to one processor.
///
/// # Errors
/// If the processor is not there.
pub fn pin(processor: usize) -> std::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    rustix::thread::sched_setaffinity(None, &set).map_err(Into::into)
}

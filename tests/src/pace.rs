//! What a run of requests took.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Longest latency that is told apart, nanoseconds.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// Latencies of the requests of one run.
pub struct Pace {
    histogram: Histogram<u64>,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            histogram: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
                .expect("constant bounds are valid"),
        }
    }
}

impl Pace {
    /// Notes one request.
    pub fn note(&mut self, latency: Duration) {
        self.histogram
            .saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_MAX_NS));
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
            megabytes_per_second: per_second * bytes as f64 / 1e6,
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

/// Figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Requests that completed.
    pub requests: u64,
    /// How long it ran.
    pub seconds: f64,
    /// Rate.
    pub requests_per_second: f64,
    /// Payload, 10^6 bytes a second.
    pub megabytes_per_second: f64,
    /// Latencies, microseconds.
    pub latency_us: Latency,
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

/// Pins the calling thread to one processor.
///
/// # Errors
/// If the processor is not there.
pub fn pin(processor: usize) -> std::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    rustix::thread::sched_setaffinity(None, &set).map_err(Into::into)
}

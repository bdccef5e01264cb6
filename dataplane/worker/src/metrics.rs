//! What a node counts.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Counters of one node, written by its reactors, read by anyone. All since the process started.
#[derive(Debug)]
pub struct Metrics {
    /// Requests of hosts that were surfaced by a protocol.
    pub requests: AtomicU64,
    /// Bytes read by hosts.
    pub read_bytes: AtomicU64,
    /// Bytes written by hosts.
    pub written_bytes: AtomicU64,
    /// Requests of hosts that failed, path errors included.
    pub failed_requests: AtomicU64,
    /// Requests that another reactor carried out.
    pub forwarded_requests: AtomicU64,
    /// Connections accepted.
    pub accepted_connections: AtomicU64,
    /// Connections refused because a reactor holds as many as it may.
    pub refused_connections: AtomicU64,
    /// NVMe/TCP connections that said nothing in time.
    pub refused_handshakes: AtomicU64,
    /// NVMe Connects refused: unknown hosts, wrong parameters, too many controllers.
    pub refused_connects: AtomicU64,
    /// NVMe/TCP connections ended because the host broke the protocol.
    pub protocol_faults: AtomicU64,
    /// Hosts that did not prove their secret, or came when too many did.
    pub refused_authentications: AtomicU64,
    /// Links refused because a node did not prove what it is.
    pub refused_links: AtomicU64,
    /// Escalations dropped because too many waited; their mirrors repeat them.
    pub dropped_escalations: AtomicU64,
    /// Specs refused: unsigned, older than what was obeyed, or forked.
    pub refused_specs: AtomicU64,
    /// Least lease that was left at a heartbeat, milliseconds; `i64::MAX` before the first.
    pub lease_margin_ms_min: AtomicI64,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            requests: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            failed_requests: AtomicU64::new(0),
            forwarded_requests: AtomicU64::new(0),
            accepted_connections: AtomicU64::new(0),
            refused_connections: AtomicU64::new(0),
            refused_handshakes: AtomicU64::new(0),
            refused_connects: AtomicU64::new(0),
            protocol_faults: AtomicU64::new(0),
            refused_authentications: AtomicU64::new(0),
            refused_links: AtomicU64::new(0),
            dropped_escalations: AtomicU64::new(0),
            refused_specs: AtomicU64::new(0),
            lease_margin_ms_min: AtomicI64::new(i64::MAX),
        }
    }
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

//! The one table of times. Milliseconds; counted on `CLOCK_MONOTONIC_RAW`.

use serde::{Deserialize, Serialize};

/// Every interval that safety or failover depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Times {
    /// How often an owner asks each peer for a lease.
    pub grant_interval_ms: u64,
    /// How long a grant lets the owner complete reads, from when it was asked for.
    pub lease_ms: u64,
    /// Taken off the lease by the owner before each read completes.
    pub lease_margin_ms: u64,
    /// How long a grantor waits from its last grant before it may serve: 1.25 × the lease,
    /// since clocks drift.
    pub grant_wait_ms: u64,
    /// How long a request to a remote leg may take before its leg counts as failed.
    pub leg_deadline_ms: u64,
    /// How long a starting owner waits for a peer before it asks to detach it.
    pub opening_deadline_ms: u64,
    /// How often a node reports to the control plane.
    pub heartbeat_ms: u64,
    /// Silence after which a node counts as lost; the grace before a site is failed over.
    pub node_silence_ms: u64,
    /// How long requests of hosts are held before they get a path error.
    pub hold_ms: u64,
    /// How long an owner that counts a peer may be without a valid lease from it before hosts get
    /// path errors at once: longer than it takes to have a dead peer detached, so that only an owner
    /// that reaches neither its peer nor the log comes so far.
    #[serde(default = "default_cut_off_ms")]
    pub cut_off_ms: u64,
    /// How long an escalation waits for its answer before it is sent again.
    pub escalation_retry_ms: u64,
}

fn default_cut_off_ms() -> u64 {
    1_600
}

impl Default for Times {
    fn default() -> Self {
        Times {
            grant_interval_ms: 200,
            lease_ms: 1_500,
            lease_margin_ms: 100,
            grant_wait_ms: 1_875,
            leg_deadline_ms: 2_000,
            opening_deadline_ms: 3_000,
            heartbeat_ms: 250,
            node_silence_ms: 2_000,
            hold_ms: 20_000,
            cut_off_ms: default_cut_off_ms(),
            escalation_retry_ms: 1_000,
        }
    }
}

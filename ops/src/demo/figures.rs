//! What a demonstration measured, as `--json` prints it.

use serde::Serialize;

/// The figures of one run.
#[derive(Serialize, Clone, Debug, Default)]
pub struct Figures {
    /// Writes that the host got an acknowledgement for.
    pub acknowledged_writes: u64,
    /// Slots that in the end did not hold their last acknowledged write.
    pub lost_writes: u64,
    /// Reads that were older than an acknowledged write or an earlier read.
    pub stale_reads: u64,
    /// From the last acknowledgement before the site was killed to the first one after, as the host
    /// saw it.
    pub failover_ms: u64,
    /// What the failover consisted of, by the log's record.
    pub failover_phases: Phases,
    /// Bytes that the restarted site was sent to be in sync again.
    pub resync_bytes: u64,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Errors that reached the host's applications while the volume was moved back.
    pub io_errors_during_planned_move: u64,
    /// Commits in the log.
    pub commits: u64,
    /// Whether the log's chain, checkpoint and rebuilt state hold.
    pub chain_verified: bool,
    /// Errors that reached the host's applications in the whole run.
    pub io_errors: u64,
    /// Requests that one path refused or lost and another carried out.
    pub path_errors: u64,
    /// Reads that were checked, over NVMe/TCP and iSCSI.
    pub verified_reads: u64,
    /// Those over iSCSI.
    pub iscsi_reads: u64,
    /// Longest time between two acknowledgements while the volume was moved back.
    pub planned_move_stall_ms: u64,
    /// Where the log was: `embedded` or a URL.
    pub log: String,
    /// The whole run.
    pub seconds: f64,
}

/// Phases of a failover, milliseconds, one after the other.
#[derive(Serialize, Clone, Debug, Default)]
pub struct Phases {
    /// From the first sign to the decision.
    pub detection_ms: u64,
    /// From the decision to its commit.
    pub commit_ms: u64,
    /// Until old leases had run out at the new owner.
    pub lease_wait_ms: u64,
    /// Until the new owner served.
    pub open_ms: u64,
    /// Until the first request of a host.
    pub first_io_ms: Option<u64>,
}

impl Figures {
    /// Whether everything that the demonstration promises held.
    #[must_use]
    pub fn hold(&self) -> bool {
        self.lost_writes == 0
            && self.stale_reads == 0
            && self.io_errors == 0
            && self.io_errors_during_planned_move == 0
            && self.chain_verified
            && self.acknowledged_writes > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_promise_is_enough_to_fail() {
        let good = Figures { acknowledged_writes: 1, chain_verified: true, ..Figures::default() };
        assert!(good.hold());
        let broken: [fn(&mut Figures); 6] = [
            |figures| figures.lost_writes = 1,
            |figures| figures.stale_reads = 1,
            |figures| figures.io_errors = 1,
            |figures| figures.io_errors_during_planned_move = 1,
            |figures| figures.chain_verified = false,
            |figures| figures.acknowledged_writes = 0,
        ];
        for break_it in broken {
            let mut figures = good.clone();
            break_it(&mut figures);
            assert!(!figures.hold(), "{figures:?}");
        }
    }
}

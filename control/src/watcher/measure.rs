//! How long failovers took, once their new owners serve.
//!
//! The process that got a failover committed measures it: no other knows how long that took. If it
//! ends before it has, the failover stays without figures rather than with wrong ones.

use super::{Now, Proposal, Watcher, milliseconds};
use crate::domain::State;
use crate::observed::Nodes;
use std::time::Duration;
use voute_schemas::command::Command;
use voute_schemas::contract::{GroupRole, OpeningReport};
use voute_schemas::event::{Event, FailoverEvidence, FailoverPhases};
use voute_schemas::ids::{FailoverId, GroupId};
use voute_schemas::{NodeId, Sequence};

/// How long the first request of a host is waited for after everything serves.
const FIRST_IO_WITHIN: Duration = Duration::from_secs(5);
/// A failover that does not come to its end by then is recorded as far as it came.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);

/// A failover whose phases are not recorded yet.
#[derive(Clone, Debug)]
pub(crate) struct UnderWay {
    sequence: Sequence,
    evidence: FailoverEvidence,
    moved: Vec<(GroupId, NodeId)>,
    commit_took: Duration,
    committed_at: Duration,
    serving_since: Option<Duration>,
}

impl Watcher {
    /// Remembers a failover that this process got committed, whoever asked for it.
    pub(crate) fn committed(
        &mut self,
        events: &[Event],
        sequence: Sequence,
        took: Duration,
        now: Duration,
    ) {
        let Some(Event::FailoverDecided { failover, evidence, .. }) = events.first() else {
            return;
        };
        let moved: Vec<_> = events.iter().filter_map(moved).collect();
        if moved.is_empty() {
            return;
        }
        let under_way = UnderWay {
            sequence,
            evidence: evidence.clone(),
            moved,
            commit_took: took,
            committed_at: now,
            serving_since: None,
        };
        self.failovers.insert(*failover, under_way);
    }

    /// Records failovers that came to their end.
    pub(super) fn measure(&mut self, state: &State, nodes: &Nodes, now: Now) -> Vec<Proposal> {
        self.failovers.retain(|id, _| state.failover(*id).is_some_and(|it| it.phases.is_none()));
        let assess = |(id, under_way): (&FailoverId, &mut UnderWay)| {
            under_way.assess(*id, state, nodes, now.since_start)
        };
        self.failovers.iter_mut().filter_map(assess).collect()
    }
}

fn moved(event: &Event) -> Option<(GroupId, NodeId)> {
    match event {
        Event::OwnerMoved { group, to, .. } => Some((*group, *to)),
        _ => None,
    }
}

impl UnderWay {
    fn assess(
        &mut self,
        id: FailoverId,
        state: &State,
        nodes: &Nodes,
        now: Duration,
    ) -> Option<Proposal> {
        let reports = self.reports(state, nodes);
        let gives_up = now.saturating_sub(self.committed_at) >= GIVE_UP_AFTER;
        let still_there =
            self.moved.iter().filter(|(group, _)| state.group(*group).is_some()).count();
        // Where nobody serves there is nothing to measure.
        if reports.is_empty() || (reports.len() < still_there && !gives_up) {
            self.serving_since = None;
            return None;
        }
        let serving_since = *self.serving_since.get_or_insert(now);
        let first_io = reports
            .iter()
            .filter_map(|report| Some(report.first_io_ms?.saturating_sub(report.serving_ms)))
            .min();
        let waits_for_io = first_io.is_none() && now - serving_since < FIRST_IO_WITHIN;
        if waits_for_io && !gives_up {
            return None;
        }
        let phases = self.phases(&reports, first_io);
        let command = Command::RecordFailover { failover: id, phases };
        let reason = format!("{} group(s) are served again", phases.groups);
        Some(Proposal { command, reason, correlation: None })
    }

    /// What the new owners say of their opening, of groups that serve at the failover's epoch or
    /// a later one.
    fn reports(&self, state: &State, nodes: &Nodes) -> Vec<OpeningReport> {
        let report = |(group, owner): &(GroupId, NodeId)| {
            state.group(*group)?;
            let status = nodes.get(owner)?.groups.get(group)?;
            let serves =
                status.role == GroupRole::Serving && status.epoch.sequence >= self.sequence;
            status.opening.filter(|_| serves)
        };
        self.moved.iter().filter_map(report).collect()
    }

    fn phases(&self, reports: &[OpeningReport], first_io_ms: Option<u64>) -> FailoverPhases {
        let longest = |part: fn(&OpeningReport) -> u64| reports.iter().map(part).max().unwrap_or(0);
        let lease_wait_ms = longest(|report| report.lease_wait_ms);
        let serving_ms = longest(|report| report.serving_ms);
        let evidence = &self.evidence;
        FailoverPhases {
            detection_ms: evidence.decided_unix_ms.saturating_sub(evidence.first_sign_unix_ms),
            commit_ms: milliseconds(self.commit_took),
            lease_wait_ms,
            open_ms: serving_ms.saturating_sub(lease_wait_ms),
            first_io_ms,
            groups: reports.len() as u64,
        }
    }
}

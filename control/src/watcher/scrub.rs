//! Comparisons that are due by the schedule: one at a time for each owner, the longest waiting first.

use super::{Now, Proposal};
use crate::domain::State;
use crate::domain::state::{Group, Volume};
use std::collections::{BTreeMap, BTreeSet};
use voute_schemas::command::Command;
use voute_schemas::ids::*;

const HOUR_MS: u64 = 3_600_000;

/// What is to be compared now.
pub(super) fn due(state: &State, now: Now) -> Vec<Proposal> {
    let scrub = state.scrub();
    let Some(every_ms) = scrub.every_hours.map(|hours| u64::from(hours) * HOUR_MS) else {
        return vec![];
    };
    let mut busy: BTreeSet<NodeId> = BTreeSet::new();
    let mut due: BTreeMap<NodeId, (u64, VolumeId)> = BTreeMap::new();
    for (id, volume) in state.volumes() {
        let Some(group) = state.group(volume.group) else { continue };
        let can_be_compared = can_be_compared(volume, group);
        // One that waits for a leg, maybe for weeks, keeps its owner from nothing.
        if volume.check.under_way.is_some() {
            if can_be_compared {
                busy.insert(group.owner);
            }
            continue;
        }
        let asked = volume.check.asked_unix_ms.unwrap_or(0);
        if can_be_compared && asked.saturating_add(every_ms) <= now.unix_ms {
            let first = due.entry(group.owner).or_insert((asked, id));
            *first = (*first).min((asked, id));
        }
    }
    let idle = due.into_iter().filter(|(owner, _)| !busy.contains(owner));
    idle.map(|(_, (_, volume))| Proposal {
        command: Command::VerifyVolume { volume, repair: scrub.repair, now_unix_ms: now.unix_ms },
        reason: "it is due by the schedule of comparisons".to_owned(),
        correlation: None,
    })
    .collect()
}

fn can_be_compared(volume: &Volume, group: &Group) -> bool {
    volume.legs.len() > 1
        && group.sides.iter().all(|side| side.in_sync)
        && volume.legs.iter().all(|leg| leg.formatted)
}

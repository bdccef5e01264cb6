//! Comparing the legs of a volume.

use super::*;
use voute_schemas::event::{BlockRange, VerifyEvidence};

/// Most ranges that one report names.
const RANGES_MAX: usize = 32;
/// Longest time between two comparisons, hours: ten years.
const HOURS_MAX: u32 = 24 * 366 * 10;

pub(super) fn verify(
    state: &State,
    id: VolumeId,
    repair: bool,
    now_unix_ms: u64,
) -> Result<Vec<Event>, Refusal> {
    let volume = known_volume(state, id)?;
    let refuse = |rule: &str| Err(Refusal::Invalid { field: "volume", rule: rule.to_owned() });
    if volume.legs.len() < 2 {
        return refuse("it has one leg, so there is nothing to compare: add a leg first");
    }
    if volume.check.under_way.is_some() {
        return refuse("its legs are being compared already: wait until that has ended");
    }
    Ok(vec![Event::VerifyRequested { volume: id, repair, requested_unix_ms: now_unix_ms }])
}

pub(super) fn schedule(
    state: &State,
    every_hours: Option<u32>,
    repair: bool,
) -> Result<Vec<Event>, Refusal> {
    if every_hours.is_some_and(|hours| hours == 0 || hours > HOURS_MAX) {
        let rule = format!("give 1 to {HOURS_MAX} hours, or nothing to compare only when told");
        return Err(Refusal::Invalid { field: "every_hours", rule });
    }
    let now = state.scrub();
    let is_so = now.every_hours == every_hours && now.repair == repair;
    Ok(if is_so { vec![] } else { vec![Event::ScrubScheduled { every_hours, repair }] })
}

/// A run that is not under way any more was recorded before.
pub(super) fn verified(
    volume: (VolumeId, &Volume),
    run: u64,
    evidence: &VerifyEvidence,
) -> Vec<Event> {
    if volume.1.check.under_way.is_none_or(|it| it.run.0 != run) {
        return vec![];
    }
    let mut evidence = evidence.clone();
    evidence.differing.truncate(RANGES_MAX);
    vec![Event::VolumeVerified { volume: volume.0, run, evidence }]
}

pub(super) fn blocks_lost(volume: (VolumeId, &Volume), ranges: &[BlockRange]) -> Vec<Event> {
    let mut ranges = ranges.to_vec();
    ranges.truncate(RANGES_MAX);
    let is_known = |range| volume.1.check.lost.contains(range);
    if ranges.iter().all(is_known) {
        return vec![];
    }
    vec![Event::BlocksLost { volume: volume.0, ranges }]
}

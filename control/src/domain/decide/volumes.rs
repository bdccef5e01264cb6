//! Volumes and their legs.

use super::*;
use std::collections::BTreeSet;
use voute_schemas::Name;
use voute_schemas::command::{LastUse, LegRequest};
use voute_schemas::event::{DetachCause, Presentation};
use voute_schemas::place::{LegPlacement, VOLUME_BYTES_MAX, VOLUME_BYTES_UNIT};

/// How long a volume must have been unused to be deleted without force, minutes.
const UNUSED_MINUTES: u64 = 15;
/// Highest volume number: the last but one NSID (0xFFFFFFFF means all, NVM Express Base 2.0, §3.2.1).
const NUMBER_MAX: u32 = u32::MAX - 1;
/// The only block, bytes, by which hosts may be told to align besides the volume's own: what today's
/// devices write at once, and more than that is no use to a file system.
const PHYSICAL_BLOCK_BYTES: u32 = 4_096;

/// A volume to be created.
pub(super) struct Wanted<'a> {
    pub(super) volume: VolumeId,
    pub(super) group: GroupId,
    pub(super) name: &'a Name,
    pub(super) size_bytes: u64,
    pub(super) block_bytes: u32,
    pub(super) legs: &'a [LegRequest],
    pub(super) policy: Option<PolicyId>,
}

pub(super) fn create(state: &State, wanted: &Wanted<'_>) -> Result<Vec<Event>, Refusal> {
    must_be_new(
        Noun::Volume,
        (wanted.volume.0, state.volume(wanted.volume).is_some()),
        (wanted.name, state.volume_named(wanted.name).is_some()),
    )?;
    if state.group(wanted.group).is_some() {
        return Err(Refusal::DuplicateId { noun: Noun::Group, id: wanted.group.0 });
    }
    if let Some(policy) = wanted.policy {
        known_policy(state, policy)?;
    }
    size_must_be_possible(wanted.size_bytes)?;
    block_must_be_possible(wanted.block_bytes)?;
    let legs = place_legs(state, wanted)?;
    let number = next_number(state)?;
    let owner = legs.first().map(|leg| leg.node).ok_or(Refusal::LegCount { count: 0 })?;
    Ok(vec![Event::VolumeCreated {
        volume: wanted.volume,
        name: wanted.name.clone(),
        group: wanted.group,
        number,
        size_bytes: wanted.size_bytes,
        block_bytes: wanted.block_bytes,
        legs,
        owner,
        policy: wanted.policy,
    }])
}

fn place_legs(state: &State, wanted: &Wanted<'_>) -> Result<Vec<LegPlacement>, Refusal> {
    if !(1..=2).contains(&wanted.legs.len()) {
        return Err(Refusal::LegCount { count: wanted.legs.len() });
    }
    let (mut ids, mut sites) = (BTreeSet::new(), BTreeSet::new());
    for request in wanted.legs {
        leg_must_be_new(state, request.leg)?;
        if !ids.insert(request.leg) {
            return Err(Refusal::DuplicateId { noun: Noun::Leg, id: request.leg.0 });
        }
        let site = known_pool(state, request.pool)?.site;
        if !sites.insert(site) {
            return Err(Refusal::SitesNotDistinct { site: site_name(state, site)? });
        }
    }
    let place = |request: &LegRequest| {
        space::place_leg(state, request.leg, request.pool, wanted.size_bytes, wanted.block_bytes)
    };
    wanted.legs.iter().map(place).collect()
}

fn next_number(state: &State) -> Result<u32, Refusal> {
    let last = state.volume_number_last();
    if last >= NUMBER_MAX {
        return Err(Refusal::VolumeNumbersUsedUp { max: NUMBER_MAX });
    }
    Ok(last + 1)
}

pub(super) fn resize(state: &State, id: VolumeId, size_bytes: u64) -> Result<Vec<Event>, Refusal> {
    let volume = known_volume(state, id)?;
    size_must_be_possible(size_bytes)?;
    if size_bytes <= volume.size_bytes {
        let current_bytes = volume.size_bytes;
        return Err(Refusal::NotLarger { volume: volume.name.clone(), current_bytes, size_bytes });
    }
    let grow = |leg: &Leg| space::grow_leg(state, leg, size_bytes, volume.block_bytes);
    let legs = volume.legs.iter().map(grow).collect::<Result<_, _>>()?;
    Ok(vec![Event::VolumeResized { volume: id, size_bytes, legs }])
}

/// What a volume tells hosts of how it keeps its blocks.
pub(super) fn present(
    state: &State,
    id: VolumeId,
    presentation: Presentation,
) -> Result<Vec<Event>, Refusal> {
    let volume = known_volume(state, id)?;
    if let Some(bytes) = presentation.physical_block_bytes
        && bytes != PHYSICAL_BLOCK_BYTES
        && bytes != volume.block_bytes
    {
        let own = volume.block_bytes;
        let rule = format!("it is {PHYSICAL_BLOCK_BYTES} bytes, or the volume's own {own}");
        return Err(Refusal::Invalid { field: "the physical block", rule });
    }
    if volume.presentation == presentation {
        let what = format!("volume {} is presented so already", volume.name);
        return Err(Refusal::Unchanged { what });
    }
    Ok(vec![Event::VolumePresented { volume: id, presentation }])
}

pub(super) fn delete(
    state: &State,
    id: VolumeId,
    force: bool,
    last_used: LastUse,
    now_unix_ms: u64,
) -> Result<Vec<Event>, Refusal> {
    let volume = known_volume(state, id)?;
    must_not_be_mapped(state, id, volume)?;
    if !force {
        must_not_be_used(volume, last_used, now_unix_ms)?;
    }
    Ok(vec![Event::VolumeDeleted { volume: id }])
}

fn must_not_be_mapped(state: &State, id: VolumeId, volume: &Volume) -> Result<(), Refusal> {
    let Some((first, _)) = state.mappings_of_volume(id).next() else { return Ok(()) };
    let first = known_host(state, first)?.name.clone();
    let hosts = state.mappings_of_volume(id).count();
    Err(Refusal::Mapped { volume: volume.name.clone(), hosts, first })
}

fn must_not_be_used(volume: &Volume, last: LastUse, now: u64) -> Result<(), Refusal> {
    let last = match last {
        LastUse::Never => return Ok(()),
        LastUse::Unknown => return Err(Refusal::UseUnknown { volume: volume.name.clone() }),
        LastUse::At(last) => last,
    };
    let minutes = now.saturating_sub(last) / 60_000;
    if minutes >= UNUSED_MINUTES {
        return Ok(());
    }
    let (volume, wait_minutes) = (volume.name.clone(), UNUSED_MINUTES);
    Err(Refusal::RecentlyUsed { volume, minutes, wait_minutes })
}

pub(super) fn add_leg(
    state: &State,
    id: VolumeId,
    request: LegRequest,
) -> Result<Vec<Event>, Refusal> {
    let volume = known_volume(state, id)?;
    leg_must_be_new(state, request.leg)?;
    let site = known_pool(state, request.pool)?.site;
    if volume.legs.len() != 1 {
        return Err(Refusal::LegsFull { volume: volume.name.clone() });
    }
    if volume.legs.iter().any(|leg| leg.site == site) {
        let (volume, site) = (volume.name.clone(), site_name(state, site)?);
        return Err(Refusal::LegAtSite { volume, site });
    }
    let placement =
        space::place_leg(state, request.leg, request.pool, volume.size_bytes, volume.block_bytes)?;
    Ok(vec![Event::LegAdded { volume: id, placement }])
}

/// An in-sync leg that does not own is detached in the same commit.
pub(super) fn remove_leg(
    state: &State,
    id: VolumeId,
    leg_id: LegId,
) -> Result<Vec<Event>, Refusal> {
    let volume = known_volume(state, id)?;
    let group = known_group(state, volume.group)?;
    let Some(leg) = volume.legs.iter().find(|leg| leg.leg == leg_id) else {
        return Err(Refusal::NotItsLeg { volume: volume.name.clone(), leg: leg_id });
    };
    let in_sync_elsewhere = group.sides.iter().any(|side| side.in_sync && side.site != leg.site);
    if volume.legs.len() == 1 || !in_sync_elsewhere {
        return Err(Refusal::LastLeg { volume: volume.name.clone(), leg: leg_id });
    }
    if group.owner == leg.node {
        return Err(Refusal::OwnersLeg { group: volume.group, leg: leg_id });
    }
    let removed = Event::LegRemoved { volume: id, leg: leg_id };
    if group.side(leg.site).is_some_and(|side| side.in_sync) {
        let cause = DetachCause::Requested;
        let detached = Event::LegDetached { group: volume.group, site: leg.site, cause };
        return Ok(vec![detached, removed]);
    }
    Ok(vec![removed])
}

fn leg_must_be_new(state: &State, leg: LegId) -> Result<(), Refusal> {
    if state.leg_exists(leg) {
        return Err(Refusal::DuplicateId { noun: Noun::Leg, id: leg.0 });
    }
    Ok(())
}

fn site_name(state: &State, site: SiteId) -> Result<Name, Refusal> {
    known_site(state, site).map(|site| site.name.clone())
}

fn size_must_be_possible(size_bytes: u64) -> Result<(), Refusal> {
    let in_range = (VOLUME_BYTES_UNIT..=VOLUME_BYTES_MAX).contains(&size_bytes);
    if in_range && size_bytes.is_multiple_of(VOLUME_BYTES_UNIT) {
        return Ok(());
    }
    Err(Refusal::VolumeSize { size_bytes, unit: VOLUME_BYTES_UNIT, max: VOLUME_BYTES_MAX })
}

fn block_must_be_possible(block_bytes: u32) -> Result<(), Refusal> {
    if matches!(block_bytes, 512 | 4096) {
        return Ok(());
    }
    let rule = format!("{block_bytes} bytes; use 512 or 4096");
    Err(Refusal::Invalid { field: "the logical block", rule })
}

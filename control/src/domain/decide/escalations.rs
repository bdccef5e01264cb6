//! What nodes ask the log for.

use super::*;
use crate::domain::evolve::apply;
use voute_schemas::command::Escalation;
use voute_schemas::event::{DetachCause, FailoverMode, MoveKind, ResyncEvidence, SiteCondition};
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::place::DEVICE_HEADER_BYTES;
use voute_schemas::{Epoch, Hash};

/// Longest text from a node that is kept, bytes: thousands of them go into one commit.
const TEXT_BYTES_MAX: usize = 160;
/// A group whose owner changed is not moved by a host for so long: each of two hosts that reach one side
/// only would have it to itself.
const HOST_MOVES_APART_MS: u64 = 20_000;
/// Largest logical block of a device, bytes: that of the largest volume block.
const BLOCK_BYTES_MAX: u32 = 4_096;

/// Each request of a batch on its own, in order, each against what the ones before it lead to: the
/// events of all accepted ones are for one commit. No events means that it is so already.
///
/// A request that names an epoch that an earlier one of the same batch ends is refused as stale.
#[must_use]
pub fn decide_escalations(
    state: &State,
    node: NodeId,
    requests: &[Escalation],
) -> Vec<Result<Vec<Event>, Refusal>> {
    decide_escalations_at(state, node, requests, u64::MAX)
}

/// The same at a time, milliseconds since 1970: hosts do not move a group to and fro.
#[must_use]
pub fn decide_escalations_at(
    state: &State,
    node: NodeId,
    requests: &[Escalation],
    now_unix_ms: u64,
) -> Vec<Result<Vec<Event>, Refusal>> {
    // No node can know the hash of the commit to come, so that nothing in this batch can name its
    // epoch.
    let coming = Epoch { sequence: state.position().sequence.next(), hash: Hash::ZERO };
    let mut scratch = state.clone();
    let mut decide_next = |request| {
        let events = decide_one(&scratch, node, request, now_unix_ms)?;
        apply(&mut scratch, coming, &events);
        Ok(events)
    };
    requests.iter().map(&mut decide_next).collect()
}

/// The same as one command: refused only if nothing of it can be done.
pub(super) fn decide_together(
    state: &State,
    node: NodeId,
    requests: &[Escalation],
) -> Result<Vec<Event>, Refusal> {
    let mut events = Vec::new();
    let mut refusal = None;
    let mut any_accepted = false;
    for outcome in decide_escalations(state, node, requests) {
        match outcome {
            Ok(more) => {
                any_accepted = true;
                events.extend(more);
            }
            Err(first) => refusal = refusal.or(Some(first)),
        }
    }
    match refusal {
        Some(refusal) if !any_accepted => Err(refusal),
        Some(_) | None => Ok(events),
    }
}

fn decide_one(
    state: &State,
    node: NodeId,
    request: &Escalation,
    now_unix_ms: u64,
) -> Result<Vec<Event>, Refusal> {
    if state.cluster().is_none() {
        return Err(Refusal::NoCluster);
    }
    known_node(state, node)?;
    match request {
        Escalation::DeviceReady { device, size_bytes, block_bytes } => {
            device_ready(state, node, *device, *size_bytes, *block_bytes)
        }
        Escalation::DeviceRefused { device, cause } => {
            device_refused(state, node, *device, clipped(cause, TEXT_BYTES_MAX))
        }
        Escalation::LegFormatted { leg } => leg_formatted(state, node, *leg),
        Escalation::LegReleased { leg } => leg_released(state, node, *leg),
        Escalation::DetachSide { group, epoch, site, cause } => {
            detach_side(state, node, (*group, *epoch), *site, cause)
        }
        Escalation::JoinSide { group, epoch, site, resync } => {
            join_side(state, node, (*group, *epoch), *site, resync)
        }
        Escalation::HandOver { group, epoch, cause } => {
            hand_over(state, node, (*group, *epoch), cause)
        }
        Escalation::ConfirmOwner { group, epoch, incarnation } => {
            confirm_owner(state, node, (*group, *epoch), *incarnation)
        }
        Escalation::Verified { group, epoch, volume, run, evidence } => {
            let it = own_volume(state, node, (*group, *epoch), *volume)?;
            Ok(checks::verified((*volume, it), *run, evidence))
        }
        Escalation::WantOwner { group, epoch, host } => {
            want_owner(state, node, (*group, *epoch), host, now_unix_ms)
        }
        Escalation::BlocksLost { group, epoch, volume, ranges } => {
            let it = own_volume(state, node, (*group, *epoch), *volume)?;
            Ok(checks::blocks_lost((*volume, it), ranges))
        }
    }
}

fn device_ready(
    state: &State,
    node: NodeId,
    id: DeviceId,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<Vec<Event>, Refusal> {
    let device = own_device(state, node, id)?;
    let extent_bytes = known_pool(state, device.pool)?.extent_bytes;
    let extents = size_bytes.saturating_sub(DEVICE_HEADER_BYTES) / extent_bytes;
    if let Adoption::Adopted { extents: had, block_bytes: had_block } = &device.adoption {
        if had.total() == extents && *had_block == block_bytes {
            return Ok(vec![]);
        }
        let (extents, block_bytes) = (had.total(), *had_block);
        return Err(Refusal::DeviceChanged { device: device.name.clone(), extents, block_bytes });
    }
    if !block_bytes.is_power_of_two() || !(512..=BLOCK_BYTES_MAX).contains(&block_bytes) {
        let cause = format!("its logical blocks have {block_bytes} bytes, only 512 to 4096 serve");
        return device_refused(state, node, id, cause);
    }
    if extents == 0 {
        let needed = DEVICE_HEADER_BYTES + extent_bytes;
        let cause = format!("it has {size_bytes} bytes, its pool needs at least {needed}");
        return device_refused(state, node, id, cause);
    }
    Ok(vec![Event::DeviceAdopted { device: id, extents, block_bytes }])
}

fn device_refused(
    state: &State,
    node: NodeId,
    id: DeviceId,
    cause: String,
) -> Result<Vec<Event>, Refusal> {
    let device = own_device(state, node, id)?;
    match &device.adoption {
        Adoption::Adopted { extents, block_bytes } => Err(Refusal::DeviceChanged {
            device: device.name.clone(),
            extents: extents.total(),
            block_bytes: *block_bytes,
        }),
        Adoption::Rejected { cause: before } if *before == cause => Ok(vec![]),
        Adoption::Pending | Adoption::Rejected { .. } => {
            Ok(vec![Event::DeviceRejected { device: id, cause }])
        }
    }
}

fn own_device(state: &State, node: NodeId, id: DeviceId) -> Result<&Device, Refusal> {
    let device = known_device(state, id)?;
    if device.node != node {
        return Err(Refusal::NotYours { noun: Noun::Device, id: id.0, node });
    }
    Ok(device)
}

fn leg_formatted(state: &State, node: NodeId, id: LegId) -> Result<Vec<Event>, Refusal> {
    if state.retired_leg(id).is_some() {
        return Err(Refusal::LegRetired { leg: id });
    }
    let unknown = Refusal::Unknown { noun: Noun::Leg, id: id.0 };
    let (_, volume) = state.volume_of_leg(id).ok_or_else(|| unknown.clone())?;
    let leg = volume.legs.iter().find(|leg| leg.leg == id).ok_or(unknown)?;
    if leg.node != node {
        return Err(Refusal::NotYours { noun: Noun::Leg, id: id.0, node });
    }
    Ok(if leg.formatted { vec![] } else { vec![Event::LegFormatted { leg: id }] })
}

/// A leg that is not known was released before, or went with its device.
fn leg_released(state: &State, node: NodeId, id: LegId) -> Result<Vec<Event>, Refusal> {
    if state.volume_of_leg(id).is_some() {
        return Err(Refusal::LegInUse { leg: id });
    }
    match state.retired_leg(id) {
        None => Ok(vec![]),
        Some(retired) if retired.node != node => {
            Err(Refusal::NotYours { noun: Noun::Leg, id: id.0, node })
        }
        Some(_) => Ok(vec![Event::LegReleased { leg: id }]),
    }
}

/// Only the owner, only at the exact epoch: both its number and its hash.
fn own_group(
    state: &State,
    node: NodeId,
    (id, epoch): (GroupId, Epoch),
) -> Result<&Group, Refusal> {
    let group = known_group(state, id)?;
    if group.epoch != epoch && !mutant::is_active(Mutant::AskedAtAnyEpoch) {
        return Err(Refusal::StaleEpoch { group: id, current: group.epoch, stale: epoch });
    }
    if group.owner != node {
        return Err(Refusal::NotOwner { group: id, owner: group.owner, node });
    }
    Ok(group)
}

fn own_volume(
    state: &State,
    node: NodeId,
    asked: (GroupId, Epoch),
    volume: VolumeId,
) -> Result<&Volume, Refusal> {
    let group = own_group(state, node, asked)?;
    if !group.volumes.contains(&volume) {
        return Err(Refusal::Unknown { noun: Noun::Volume, id: volume.0 });
    }
    known_volume(state, volume)
}

fn detach_side(
    state: &State,
    node: NodeId,
    asked: (GroupId, Epoch),
    site: SiteId,
    cause: &DetachCause,
) -> Result<Vec<Event>, Refusal> {
    let group = own_group(state, node, asked)?;
    let side = side_of(state, group, asked.0, site)?;
    if side.node == node {
        return Err(Refusal::OwnSide { group: asked.0 });
    }
    // A side that left for another reason may turn out to have lost its content only later.
    let content_is_news =
        *cause == DetachCause::ContentLost && state.any_leg_is_formatted(group, site);
    if !side.in_sync && !content_is_news {
        return Ok(vec![]);
    }
    Ok(vec![Event::LegDetached { group: asked.0, site, cause: shortened(cause) }])
}

fn shortened(cause: &DetachCause) -> DetachCause {
    match cause {
        DetachCause::DeviceError { detail } => {
            DetachCause::DeviceError { detail: clipped(detail, TEXT_BYTES_MAX) }
        }
        DetachCause::Unreachable | DetachCause::ContentLost | DetachCause::Requested => {
            cause.clone()
        }
    }
}

fn join_side(
    state: &State,
    node: NodeId,
    asked: (GroupId, Epoch),
    site: SiteId,
    resync: &ResyncEvidence,
) -> Result<Vec<Event>, Refusal> {
    let group = own_group(state, node, asked)?;
    let side = side_of(state, group, asked.0, site)?;
    if side.in_sync {
        return Ok(vec![]);
    }
    if !state.side_is_formatted(group, site) {
        let site = known_site(state, site)?.name.clone();
        return Err(Refusal::NotFormatted { group: asked.0, site });
    }
    Ok(vec![Event::LegInSync { group: asked.0, site, resync: resync.clone() }])
}

fn hand_over(
    state: &State,
    node: NodeId,
    asked: (GroupId, Epoch),
    cause: &str,
) -> Result<Vec<Event>, Refusal> {
    let group = own_group(state, node, asked)?;
    let can_take_over = |side: &&Side| {
        side.node != node && side.in_sync && state.side_is_formatted(group, side.site)
    };
    let other = group.sides.iter().find(can_take_over);
    let to = other.ok_or(Refusal::NoOtherSide { group: asked.0 })?.node;
    let kind = MoveKind::HandedOver { cause: clipped(cause, TEXT_BYTES_MAX) };
    Ok(vec![Event::OwnerMoved { group: asked.0, from: node, to, kind }])
}

/// A planned move that the node which is to own asks for, because a host does. Of the epoch that its host
/// saw: a move that came meanwhile is not undone. What the operator says goes before a host's wish.
fn want_owner(
    state: &State,
    node: NodeId,
    (id, epoch): (GroupId, Epoch),
    host: &str,
    now_unix_ms: u64,
) -> Result<Vec<Event>, Refusal> {
    let group = known_group(state, id)?;
    if group.owner == node {
        return Ok(vec![]);
    }
    if group.epoch != epoch {
        return Err(Refusal::StaleEpoch { group: id, current: group.epoch, stale: epoch });
    }
    let side = group.sides.iter().find(|side| side.node == node);
    let site = side.ok_or(Refusal::NoOtherSide { group: id })?.site;
    let policy = group.policy.and_then(|policy| state.policy(policy));
    if let Some(policy) = policy.filter(|policy| policy.rules.mode == FailoverMode::Manual) {
        return Err(Refusal::HostsMayNotMove {
            group: id,
            why: format!("its policy {} moves it only when told", policy.name),
        });
    }
    let known = known_site(state, site)?;
    if known.condition != SiteCondition::Normal {
        let why = format!("site {} is {:?}", known.name, known.condition);
        return Err(Refusal::HostsMayNotMove { group: id, why });
    }
    // Clocks of control processes differ, both ways.
    let moved_lately = |at: u64| at.abs_diff(now_unix_ms) < HOST_MOVES_APART_MS;
    if group.owner_since_unix_ms.is_some_and(moved_lately) {
        let why = format!("it was moved less than {} s ago", HOST_MOVES_APART_MS / 1_000);
        return Err(Refusal::HostsMayNotMove { group: id, why });
    }
    let mut events = failovers::move_owner(state, id, site)?;
    for event in &mut events {
        if let Event::OwnerMoved { kind, .. } = event {
            *kind = MoveKind::AskedByHost { host: state.host_of_identity(host) };
        }
    }
    Ok(events)
}

fn confirm_owner(
    state: &State,
    node: NodeId,
    asked: (GroupId, Epoch),
    incarnation: u64,
) -> Result<Vec<Event>, Refusal> {
    let group = own_group(state, node, asked)?;
    match group.confirmed_incarnation {
        Some(confirmed) if incarnation < confirmed => {
            Err(Refusal::StaleIncarnation { group: asked.0, node, confirmed, incarnation })
        }
        Some(confirmed) if incarnation == confirmed => Ok(vec![]),
        Some(_) | None => Ok(vec![Event::OwnerConfirmed { group: asked.0, node, incarnation }]),
    }
}

fn side_of<'a>(
    state: &State,
    group: &'a Group,
    id: GroupId,
    site: SiteId,
) -> Result<&'a Side, Refusal> {
    let name = known_site(state, site)?.name.clone();
    group.side(site).ok_or(Refusal::NoSuchSide { group: id, site: name })
}

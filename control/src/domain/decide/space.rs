//! Where a leg's extents come from.
//!
//! All extents of a leg lie on one node. Of a pool's nodes the one with most free space is taken,
//! so that legs spread; on it one free run if any is long enough, else the longest runs, so that
//! their number stays small.

use super::*;
use crate::domain::extents::FreeExtents;
use std::collections::BTreeMap;
use voute_schemas::place::{ExtentRun, LegPlacement, leg_bytes};

/// Most runs of one leg, so that a commit with two legs stays well under its limit.
const RUNS_MAX: usize = 4_096;

/// A device that can hold legs of a volume.
type Candidate<'a> = (DeviceId, &'a FreeExtents);

/// A new leg of a volume of this size.
pub(super) fn place_leg(
    state: &State,
    leg: LegId,
    pool_id: PoolId,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<LegPlacement, Refusal> {
    let pool = known_pool(state, pool_id)?;
    let count = extents_of(size_bytes, pool);
    let by_node = candidates(state, pool_id, block_bytes);
    let roomiest =
        by_node.iter().max_by_key(|(node, devices)| (free_of(devices), std::cmp::Reverse(**node)));
    let Some((node, devices)) = roomiest.filter(|(_, devices)| free_of(devices) >= count) else {
        let free = roomiest.map_or(0, |(_, devices)| free_of(devices));
        return Err(no_room(state, pool_id, pool, count, free, block_bytes));
    };
    let runs = choose(devices, count).ok_or_else(|| fragmented(pool, count))?;
    Ok(LegPlacement { leg, pool: pool_id, site: pool.site, node: *node, runs })
}

/// A leg of a volume that grows to this size: its old runs, then new ones on the same node.
pub(super) fn grow_leg(
    state: &State,
    leg: &Leg,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<LegPlacement, Refusal> {
    let pool = known_pool(state, leg.pool)?;
    let mut placement = leg.placement();
    let had: u64 = leg.runs.iter().map(|run| run.count).sum();
    let more = extents_of(size_bytes, pool).saturating_sub(had);
    if more == 0 {
        return Ok(placement);
    }
    let by_node = candidates(state, leg.pool, block_bytes);
    let devices = by_node.get(&leg.node).map(Vec::as_slice).unwrap_or_default();
    let free = free_of(devices);
    if free < more {
        return Err(no_room(state, leg.pool, pool, more, free, block_bytes));
    }
    let runs = match continuation(devices, leg.runs.last(), more) {
        Some(run) => vec![run],
        None => choose(devices, more).ok_or_else(|| fragmented(pool, more))?,
    };
    placement.runs.extend(runs);
    if placement.runs.len() > RUNS_MAX {
        return Err(fragmented(pool, more));
    }
    Ok(placement)
}

fn extents_of(size_bytes: u64, pool: &Pool) -> u64 {
    leg_bytes(size_bytes).div_ceil(pool.extent_bytes)
}

/// Devices of a pool whose blocks are not larger than the volume's, per node, roomiest first. On
/// larger ones two writes to neighbouring blocks would change the same device block, and one could
/// be undone (docs/mirror-rules.md rule 3).
fn candidates(
    state: &State,
    pool: PoolId,
    block_bytes: u32,
) -> BTreeMap<NodeId, Vec<Candidate<'_>>> {
    let mut by_node: BTreeMap<NodeId, Vec<Candidate<'_>>> = BTreeMap::new();
    for (id, device) in state.devices_of_pool(pool) {
        match &device.adoption {
            Adoption::Adopted { extents, block_bytes: device_block }
                if *device_block <= block_bytes =>
            {
                by_node.entry(device.node).or_default().push((id, extents));
            }
            Adoption::Adopted { .. } | Adoption::Pending | Adoption::Rejected { .. } => {}
        }
    }
    for devices in by_node.values_mut() {
        devices.sort_by_key(|(_, extents)| std::cmp::Reverse(extents.free()));
    }
    by_node
}

fn free_of(devices: &[Candidate<'_>]) -> u64 {
    devices.iter().map(|(_, extents)| extents.free()).sum()
}

/// The run right behind the last one of a leg.
fn continuation(
    devices: &[Candidate<'_>],
    last: Option<&ExtentRun>,
    count: u64,
) -> Option<ExtentRun> {
    let last = last?;
    let (device, extents) = devices.iter().find(|(device, _)| *device == last.device)?;
    let first = last.first + last.count;
    (extents.free_from(first) >= count).then_some(ExtentRun { device: *device, first, count })
}

fn choose(devices: &[Candidate<'_>], count: u64) -> Option<Vec<ExtentRun>> {
    devices.iter().find_map(|device| one_run(device, count)).or_else(|| many_runs(devices, count))
}

fn one_run((device, extents): &Candidate<'_>, count: u64) -> Option<Vec<ExtentRun>> {
    let (first, _) = extents.runs().find(|(_, length)| *length >= count)?;
    Some(vec![ExtentRun { device: *device, first, count }])
}

/// The longest runs; `None` if even those are too many.
fn many_runs(devices: &[Candidate<'_>], count: u64) -> Option<Vec<ExtentRun>> {
    let mut free: Vec<ExtentRun> = devices
        .iter()
        .flat_map(|(device, extents)| {
            extents.runs().map(|(first, count)| ExtentRun { device: *device, first, count })
        })
        .collect();
    free.sort_by_key(|run| std::cmp::Reverse(run.count));
    let mut chosen = Vec::new();
    let mut missing = count;
    for run in free.into_iter().take(RUNS_MAX) {
        let taken = run.count.min(missing);
        chosen.push(ExtentRun { count: taken, ..run });
        missing -= taken;
        if missing == 0 {
            return Some(chosen);
        }
    }
    None
}

/// Says whether space is missing, or is only on devices with too large blocks.
fn no_room(
    state: &State,
    id: PoolId,
    pool: &Pool,
    count: u64,
    free: u64,
    block_bytes: u32,
) -> Refusal {
    let too_large = state
        .devices_of_pool(id)
        .filter_map(|(_, device)| match &device.adoption {
            Adoption::Adopted { extents, block_bytes } => Some((extents.free(), *block_bytes)),
            Adoption::Pending | Adoption::Rejected { .. } => None,
        })
        .filter(|(free, device_block)| *free > 0 && *device_block > block_bytes)
        .map(|(_, device_block)| device_block)
        .min();
    match too_large {
        Some(device_block_bytes) if free == 0 => {
            Refusal::BlockTooLarge { pool: pool.name.clone(), device_block_bytes, block_bytes }
        }
        Some(_) | None => Refusal::PoolFull {
            pool: pool.name.clone(),
            needed_bytes: count.saturating_mul(pool.extent_bytes),
            free_bytes: free.saturating_mul(pool.extent_bytes),
        },
    }
}

fn fragmented(pool: &Pool, count: u64) -> Refusal {
    let needed_bytes = count.saturating_mul(pool.extent_bytes);
    Refusal::PoolFragmented { pool: pool.name.clone(), needed_bytes }
}

//! What each event does to the state. Frozen per variant: a log written by any version must give
//! the same state in every later one.

use super::extents::FreeExtents;
use super::index::LegHome;
use super::state::*;
use std::sync::Arc;
use voute_schemas::event::{
    ConditionSource, DetachCause, Event, HostKeys, MoveKind, Presentation, SiteCondition,
};
use voute_schemas::ids::*;
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::place::{ExtentRun, LegPlacement};
use voute_schemas::{Commit, Epoch, Name, Sequence};

/// Brings a state from the commit before `position` to `position`. A refused commit changes nothing
/// but the position and the idempotency keys. An event about a thing that is not there changes
/// nothing: `decide` never lets one be written.
pub fn evolve(state: &mut State, position: Epoch, commit: &Commit) {
    state.core.position = position;
    remember_key(state, position.sequence, commit);
    apply(state, position, commit.events());
    for event in commit.events() {
        if let Event::OwnerMoved { group, kind, .. } = event {
            change(&mut state.core.groups, *group, |group| {
                group.owner_since_unix_ms = Some(commit.time_unix_ms);
                group.moved_when_asked = match kind {
                    MoveKind::Planned | MoveKind::AskedByHost { .. } => true,
                    MoveKind::Unplanned { .. } | MoveKind::HandedOver { .. } => false,
                };
            });
        }
    }
}

/// The events of one commit, in order.
pub(super) fn apply(state: &mut State, position: Epoch, events: &[Event]) {
    for event in events {
        apply_one(state, position, event, events);
    }
}

fn apply_one(state: &mut State, position: Epoch, event: &Event, all: &[Event]) {
    let core = &mut state.core;
    let names = &mut state.index.names;
    match event {
        Event::ClusterCreated { cluster, name, log_site } => {
            let mut founded = Cluster {
                id: *cluster,
                name: name.clone(),
                level: 0,
                log_sites: vec![],
                log_sites_named: vec![],
            };
            founded.name_log_sites(position.sequence, std::slice::from_ref(log_site));
            core.cluster = Some(founded);
        }
        Event::ClusterLevelRaised { level } => {
            if let Some(cluster) = &mut core.cluster {
                cluster.level = *level;
            }
        }
        Event::LogSitesChanged { sites } => {
            if let Some(cluster) = &mut core.cluster {
                cluster.name_log_sites(position.sequence, sites);
            }
        }
        // For the record: what a site signs is its own register's business.
        Event::LogSiteReseeded { .. } => {}
        Event::CredentialIssued { credential, name, role, verifier } => {
            let issued = Credential { name: name.clone(), role: *role, verifier: *verifier };
            add(&mut core.credentials, &mut names.credentials, *credential, name, issued);
        }
        Event::CredentialRevoked { credential } => {
            if let Some(gone) = core.credentials.remove_cow(credential) {
                names.credentials.remove_cow(&gone.name);
            }
        }
        Event::SiteAdded { site, name, kind } => {
            let added = Site {
                name: name.clone(),
                kind: *kind,
                condition: SiteCondition::Normal,
                source: ConditionSource::Watcher,
                detail: String::new(),
                condition_since: position.sequence,
                last_failover: None,
            };
            add(&mut core.sites, &mut names.sites, *site, name, added);
        }
        Event::SiteRemoved { site } => {
            if let Some(gone) = core.sites.remove_cow(site) {
                names.sites.remove_cow(&gone.name);
            }
        }
        Event::SiteConditionReported { site, condition, source, detail } => {
            change(&mut core.sites, *site, |site| {
                site.condition = *condition;
                site.source = *source;
                site.detail.clone_from(detail);
                site.condition_since = position.sequence;
            });
        }
        Event::NodeAdded { node, name, site, portals, number, verifier } => {
            let added = Node {
                name: name.clone(),
                site: *site,
                portals: *portals,
                number: *number,
                verifier: *verifier,
            };
            add(&mut core.nodes, &mut names.nodes, *node, name, added);
        }
        Event::NodePortalsChanged { node, portals } => {
            change(&mut core.nodes, *node, |node| node.portals = *portals);
        }
        Event::NodeRemoved { node } => {
            if let Some(gone) = core.nodes.remove_cow(node) {
                names.nodes.remove_cow(&gone.name);
            }
        }
        Event::PoolCreated { pool, name, site, extent_bytes } => {
            let created = Pool { name: name.clone(), site: *site, extent_bytes: *extent_bytes };
            add(&mut core.pools, &mut names.pools, *pool, name, created);
        }
        Event::PoolRemoved { pool } => {
            if let Some(gone) = core.pools.remove_cow(pool) {
                names.pools.remove_cow(&gone.name);
            }
        }
        Event::DeviceAdded { device, name, node, pool, locator, overwrite } => {
            let added = Device {
                name: name.clone(),
                node: *node,
                pool: *pool,
                locator: locator.clone(),
                overwrite: *overwrite,
                adoption: Adoption::Pending,
            };
            add(&mut core.devices, &mut names.devices, *device, name, added);
            state.index.devices_of_pool.insert_cow((*pool, *device));
        }
        Event::DeviceAdopted { device, extents, block_bytes } => {
            let extents = FreeExtents::all(*extents);
            let adoption = Adoption::Adopted { extents, block_bytes: *block_bytes };
            change(&mut core.devices, *device, |device| device.adoption = adoption);
        }
        Event::DeviceRejected { device, cause } => {
            let adoption = Adoption::Rejected { cause: cause.clone() };
            change(&mut core.devices, *device, |device| device.adoption = adoption);
        }
        Event::DeviceRemoved { device } => remove_device(state, *device),
        Event::PolicyCreated { policy, name, rules } => {
            let created = Policy { name: name.clone(), rules: rules.clone() };
            add(&mut core.policies, &mut names.policies, *policy, name, created);
        }
        Event::PolicyChanged { policy, rules } => {
            change(&mut core.policies, *policy, |policy| policy.rules.clone_from(rules));
        }
        Event::PolicyRemoved { policy } => {
            if let Some(gone) = core.policies.remove_cow(policy) {
                names.policies.remove_cow(&gone.name);
            }
        }
        Event::VolumeCreated {
            volume,
            name,
            group,
            number,
            size_bytes,
            block_bytes,
            legs,
            owner,
            policy,
        } => {
            let created = Volume {
                name: name.clone(),
                group: *group,
                number: *number,
                size_bytes: *size_bytes,
                block_bytes: *block_bytes,
                presentation: Presentation::default(),
                legs: legs.iter().map(Leg::new).collect(),
                check: Check::default(),
            };
            let founded = Group {
                owner: *owner,
                epoch: position,
                last_common: position,
                sides: legs.iter().map(|leg| new_side(leg, true, position)).collect(),
                volumes: vec![*volume],
                policy: *policy,
                confirmed_incarnation: None,
                owner_since_unix_ms: None,
                moved_when_asked: false,
            };
            add(&mut core.volumes, &mut names.volumes, *volume, name, created);
            core.volume_number_last = core.volume_number_last.max(*number);
            state.index.add_group(*group, &founded);
            core.groups.insert_cow(*group, Arc::new(founded));
            for leg in legs {
                state.index.legs.insert_cow(leg.leg, LegHome::Volume(*volume));
                take(state, &leg.runs);
            }
        }
        Event::VolumeResized { volume, size_bytes, legs } => {
            resize_volume(state, *volume, *size_bytes, legs);
        }
        Event::VolumePresented { volume, presentation } => {
            change(&mut core.volumes, *volume, |volume| volume.presentation = *presentation);
        }
        Event::VerifyRequested { volume, repair, requested_unix_ms } => {
            let under_way = CheckRun { run: position.sequence, repair: *repair };
            change(&mut core.volumes, *volume, |volume| {
                volume.check.under_way = Some(under_way);
                volume.check.asked_unix_ms = Some(*requested_unix_ms);
            });
        }
        Event::VolumeVerified { volume, run, evidence } => {
            let run = Sequence(*run);
            let last = Checked { run, ended: position.sequence, evidence: evidence.clone() };
            change(&mut core.volumes, *volume, |volume| {
                volume.check.under_way = volume.check.under_way.filter(|it| it.run != run);
                // All of it could be read: what was lost has been written again.
                if last.evidence.lost_bytes == 0 {
                    volume.check.lost.clear();
                }
                volume.check.last = Some(last);
            });
        }
        Event::BlocksLost { volume, ranges } => {
            change(&mut core.volumes, *volume, |volume| volume.check.lose(ranges));
        }
        Event::ScrubScheduled { every_hours, repair } => {
            core.scrub = Scrub { every_hours: *every_hours, repair: *repair };
        }
        Event::VolumeDeleted { volume } => delete_volume(state, *volume),
        Event::LegFormatted { leg } => {
            let Some((volume, _)) = state.volume_of_leg(*leg) else { return };
            change(&mut state.core.volumes, volume, |volume| {
                for it in volume.legs.iter_mut().filter(|it| it.leg == *leg) {
                    it.formatted = true;
                }
            });
        }
        Event::LegAdded { volume, placement } => add_leg(state, position, *volume, placement),
        Event::LegRemoved { volume, leg } => remove_leg(state, *volume, *leg),
        Event::LegReleased { leg } => {
            if let Some(released) = core.retired.remove_cow(leg) {
                state.index.remove_retired(*leg, released.node);
                give(state, &released.runs);
            }
        }
        Event::LegDetached { group, site, cause } => {
            detach_side(state, position, *group, *site, cause);
        }
        Event::LegInSync { group, site, resync: _ } => {
            change_authority(state, *group, position, |group| {
                set_in_sync(group, |side| side.site == *site, true, position);
            });
        }
        Event::OwnerMoved { group, from, to, kind } => {
            change_authority(state, *group, position, |group| {
                match kind {
                    _ if mutant::is_active(Mutant::TakeoverDetachesNobody) => {}
                    MoveKind::Planned | MoveKind::AskedByHost { .. } => {}
                    MoveKind::Unplanned { .. } | MoveKind::HandedOver { .. } => {
                        set_in_sync(group, |side| side.node == *from, false, position);
                    }
                }
                group.owner = *to;
                group.confirmed_incarnation = None;
            });
        }
        Event::OwnerConfirmed { group, node: _, incarnation } => {
            change(&mut core.groups, *group, |group| {
                group.confirmed_incarnation = Some(*incarnation);
            });
        }
        Event::HostAdded { host, name, identity } => {
            let added =
                Host { name: name.clone(), identity: identity.clone(), keys: HostKeys::default() };
            add(&mut core.hosts, &mut names.hosts, *host, name, added);
            state.index.add_identities(*host, identity);
        }
        Event::HostChanged { host, identity } => {
            let Some(it) = core.hosts.get_mut_cow(host) else { return };
            state.index.remove_identities(&it.identity);
            state.index.add_identities(*host, identity);
            Arc::make_mut(it).identity.clone_from(identity);
        }
        Event::HostKeysChanged { host, keys } => {
            change(&mut core.hosts, *host, |host| host.keys.clone_from(keys));
        }
        Event::HostRemoved { host } => {
            if let Some(gone) = core.hosts.remove_cow(host) {
                names.hosts.remove_cow(&gone.name);
                state.index.remove_identities(&gone.identity);
            }
        }
        Event::VolumeMapped { volume, host, lun, read_only } => {
            let mapping = Mapping { lun: *lun, read_only: *read_only };
            core.mappings.insert_cow((*volume, *host), mapping);
            state.index.luns.insert_cow((*host, *lun), *volume);
        }
        Event::VolumeUnmapped { volume, host } => {
            if let Some(mapping) = core.mappings.remove_cow(&(*volume, *host)) {
                state.index.luns.remove_cow(&(*host, mapping.lun));
            }
        }
        Event::FailoverDecided { failover, site, evidence } => {
            let decided = Failover {
                site: *site,
                decided: position.sequence,
                evidence: evidence.clone(),
                moved: count_moves(all),
                phases: None,
            };
            remember_failover(state, *failover, decided);
            change(&mut state.core.sites, *site, |site| {
                site.last_failover = Some(position.sequence);
            });
        }
        Event::FailoverMeasured { failover, phases } => {
            change(&mut core.failovers, *failover, |it| it.phases = Some(*phases));
        }
    }
}

fn remember_key(state: &mut State, sequence: Sequence, commit: &Commit) {
    let Some(key) = commit.idempotency_key.as_deref() else { return };
    let key = KeyId::new(&commit.actor, key);
    if state.core.keys.get(&key).is_some() {
        return; // its first use is the one that counts
    }
    let used = KeyUse { sequence, commit: commit.id, command: commit.command.clone() };
    state.core.keys.insert_cow(key.clone(), Arc::new(used));
    state.index.key_order.insert_cow(sequence.0, key);
    if state.core.keys.len() > KEYS_MAX
        && let Some((oldest, key)) = first(&state.index.key_order)
    {
        state.index.key_order.remove_cow(&oldest);
        state.core.keys.remove_cow(&key);
    }
}

fn remember_failover(state: &mut State, id: FailoverId, decided: Failover) {
    let failovers = &mut state.core.failovers;
    failovers.insert_cow(id, Arc::new(decided));
    if failovers.len() > FAILOVERS_MAX
        && let Some((oldest, _)) = failovers.into_iter().min_by_key(|(_, it)| it.decided)
    {
        let oldest = *oldest;
        failovers.remove_cow(&oldest);
    }
}

fn count_moves(events: &[Event]) -> u64 {
    let unplanned = |event: &&Event| {
        matches!(event, Event::OwnerMoved { kind: MoveKind::Unplanned { .. }, .. })
    };
    events.iter().filter(unplanned).count() as u64
}

/// What retired legs still had there goes with the device.
fn remove_device(state: &mut State, id: DeviceId) {
    let Some(gone) = state.core.devices.remove_cow(&id) else { return };
    state.index.names.devices.remove_cow(&gone.name);
    state.index.devices_of_pool.remove_cow(&(gone.pool, id));
    let touched: Vec<LegId> = state
        .retired_of_node(gone.node)
        .filter(|(_, retired)| retired.runs.iter().any(|run| run.device == id))
        .map(|(leg, _)| leg)
        .collect();
    for leg in touched {
        change(&mut state.core.retired, leg, |retired| {
            retired.runs.retain(|run| run.device != id);
        });
        if state.retired_leg(leg).is_some_and(|retired| retired.runs.is_empty()) {
            state.core.retired.remove_cow(&leg);
            state.index.remove_retired(leg, gone.node);
        }
    }
}

fn new_side(leg: &LegPlacement, in_sync: bool, position: Epoch) -> Side {
    Side { site: leg.site, node: leg.node, in_sync, since: position.sequence }
}

fn resize_volume(state: &mut State, id: VolumeId, size_bytes: u64, legs: &[LegPlacement]) {
    let Some(volume) = state.core.volumes.get_mut_cow(&id) else { return };
    let volume = Arc::make_mut(volume);
    volume.size_bytes = size_bytes;
    let mut grown = Vec::new();
    for placement in legs {
        if let Some(leg) = volume.legs.iter_mut().find(|leg| leg.leg == placement.leg) {
            grown.extend_from_slice(placement.runs.get(leg.runs.len()..).unwrap_or_default());
            leg.runs.clone_from(&placement.runs);
        }
    }
    take(state, &grown);
}

fn delete_volume(state: &mut State, id: VolumeId) {
    let Some(gone) = state.core.volumes.remove_cow(&id) else { return };
    state.index.names.volumes.remove_cow(&gone.name);
    for leg in &gone.legs {
        retire(state, id, leg);
    }
    let mappings: Vec<_> = state.mappings_of_volume(id).collect();
    for (host, mapping) in mappings {
        state.core.mappings.remove_cow(&(id, host));
        state.index.luns.remove_cow(&(host, mapping.lun));
    }
    change(&mut state.core.groups, gone.group, |group| group.volumes.retain(|it| *it != id));
    if state.group(gone.group).is_some_and(|group| group.volumes.is_empty())
        && let Some(group) = state.core.groups.remove_cow(&gone.group)
    {
        state.index.remove_group(gone.group, &group);
    }
}

fn retire(state: &mut State, volume: VolumeId, leg: &Leg) {
    let retired = Retired { volume, node: leg.node, runs: leg.runs.clone() };
    state.core.retired.insert_cow(leg.leg, Arc::new(retired));
    state.index.add_retired(leg.leg, leg.node);
}

fn add_leg(state: &mut State, position: Epoch, volume: VolumeId, placement: &LegPlacement) {
    let Some(group) = state.volume(volume).map(|volume| volume.group) else { return };
    take(state, &placement.runs);
    state.index.legs.insert_cow(placement.leg, LegHome::Volume(volume));
    state.index.groups_of_node.insert_cow((placement.node, group));
    change(&mut state.core.volumes, volume, |volume| volume.legs.push(Leg::new(placement)));
    change(&mut state.core.groups, group, |group| {
        if group.side(placement.site).is_none() {
            group.sides.push(new_side(placement, false, position));
        }
        group.last_common = Epoch::ZERO; // its content begins anew: no map knows it
        // A join that was asked for before meant the leg that was there then: it must come too late.
        if !mutant::is_active(Mutant::AddedLegKeepsTheEpoch) {
            group.epoch = position;
        }
    });
}

fn remove_leg(state: &mut State, id: VolumeId, leg: LegId) {
    let Some(volume) = state.volume(id) else { return };
    let Some(gone) = volume.legs.iter().find(|it| it.leg == leg).cloned() else { return };
    let group_id = volume.group;
    retire(state, id, &gone);
    change(&mut state.core.volumes, id, |volume| {
        volume.legs.retain(|it| it.leg != leg);
        // There is nothing to compare with any more.
        if volume.legs.len() < 2 {
            volume.check.under_way = None;
        }
    });
    let Some(group) = state.group(group_id) else { return };
    let side_is_needed = group
        .volumes
        .iter()
        .filter_map(|volume| state.volume(*volume))
        .any(|volume| volume.legs.iter().any(|leg| leg.site == gone.site));
    if side_is_needed {
        return;
    }
    state.index.groups_of_node.remove_cow(&(gone.node, group_id));
    change(&mut state.core.groups, group_id, |group| {
        group.sides.retain(|side| side.site != gone.site);
        if group.is_whole() {
            group.last_common = group.epoch;
        }
    });
}

fn detach_side(
    state: &mut State,
    position: Epoch,
    group: GroupId,
    site: SiteId,
    cause: &DetachCause,
) {
    let content_lost =
        *cause == DetachCause::ContentLost && !mutant::is_active(Mutant::LostContentForgotten);
    change_authority(state, group, position, |group| {
        set_in_sync(group, |side| side.site == site, false, position);
        if content_lost {
            group.last_common = Epoch::ZERO; // its content begins anew: no map knows it
        }
    });
    if content_lost {
        unformat(state, group, site);
    }
}

fn change_authority(
    state: &mut State,
    group: GroupId,
    position: Epoch,
    edit: impl FnOnce(&mut Group),
) {
    change(&mut state.core.groups, group, |group| {
        edit(group);
        group.epoch = position;
        if group.is_whole() {
            group.last_common = position;
        }
    });
}

fn set_in_sync(group: &mut Group, which: impl Fn(&Side) -> bool, in_sync: bool, position: Epoch) {
    for side in group.sides.iter_mut().filter(|side| which(side) && side.in_sync != in_sync) {
        side.in_sync = in_sync;
        side.since = position.sequence;
    }
}

fn unformat(state: &mut State, group: GroupId, site: SiteId) {
    let Some(volumes) = state.group(group).map(|group| group.volumes.clone()) else { return };
    for volume in volumes {
        change(&mut state.core.volumes, volume, |volume| {
            for leg in volume.legs.iter_mut().filter(|leg| leg.site == site) {
                leg.formatted = false;
            }
        });
    }
}

fn take(state: &mut State, runs: &[ExtentRun]) {
    for run in runs {
        change_extents(state, run.device, |extents| extents.take(run.first, run.count));
    }
}

fn give(state: &mut State, runs: &[ExtentRun]) {
    for run in runs {
        change_extents(state, run.device, |extents| extents.give(run.first, run.count));
    }
}

fn change_extents(state: &mut State, device: DeviceId, edit: impl FnOnce(&mut FreeExtents)) {
    change(&mut state.core.devices, device, |device| match &mut device.adoption {
        Adoption::Adopted { extents, .. } => edit(extents),
        Adoption::Pending | Adoption::Rejected { .. } => {}
    });
}

fn add<K: Ord + Copy, V: Clone>(
    table: &mut Table<K, Arc<V>>,
    names: &mut Table<Name, K>,
    id: K,
    name: &Name,
    entity: V,
) {
    table.insert_cow(id, Arc::new(entity));
    names.insert_cow(name.clone(), id);
}

/// Edits an entity in place, or a copy of it if a clone of the state shares it.
fn change<K: Ord + Clone, V: Clone>(
    table: &mut Table<K, Arc<V>>,
    key: K,
    edit: impl FnOnce(&mut V),
) {
    if let Some(entity) = table.get_mut_cow(&key) {
        edit(Arc::make_mut(entity));
    }
}

fn first<K: Ord + Clone, V: Clone>(table: &Table<K, V>) -> Option<(K, V)> {
    table.into_iter().next().map(|(key, value)| (key.clone(), value.clone()))
}

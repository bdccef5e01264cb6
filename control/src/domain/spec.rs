//! What a node should be, projected from the state, and which nodes a commit concerns.

use super::state::{Adoption, Group, Host, State, Volume};
use std::collections::{BTreeMap, BTreeSet};
use voute_schemas::contract::*;
use voute_schemas::event::Event;
use voute_schemas::ids::*;
use voute_schemas::place::REGION_BYTES;
use voute_schemas::times::Times;
use voute_schemas::{Name, contract};

/// What a spec holds that does not come from the log.
pub struct SpecInputs<'a> {
    /// Times.
    pub times: Times,
    /// Secret of the mirror links, 32 bytes in hex.
    pub link_secret: &'a str,
    /// Resolves the name of a CHAP secret.
    pub chap_secret: &'a dyn Fn(&Name) -> Option<String>,
}

/// The part of a [`contract::NodeSpec`] that follows from the state; position, checkpoint and
/// proofs are the caller's.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct NodeContent {
    /// As in the spec.
    pub facts: Option<NodeFacts>,
    /// As in the spec.
    pub groups: Vec<GroupSpec>,
    /// As in the spec.
    pub removed_groups: Vec<GroupId>,
}

/// Which nodes a commit concerns, and in what.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Touched {
    /// Whether the facts of every node changed.
    pub all_facts: bool,
    /// Nodes whose facts changed.
    pub facts: BTreeSet<NodeId>,
    /// Groups that changed, by each node that holds or held a side of them.
    pub groups: BTreeMap<NodeId, BTreeSet<GroupId>>,
}

/// Everything that a node should be; `None` if there is no such node (or cluster).
#[must_use]
pub fn node_spec(state: &State, node: NodeId, inputs: &SpecInputs<'_>) -> Option<NodeContent> {
    let facts = Some(node_facts(state, node, inputs)?);
    let groups = state.groups_of_node(node).map(|(id, group)| group_spec(state, node, id, group));
    Some(NodeContent { facts, groups: groups.collect(), removed_groups: vec![] })
}

/// What changed for a node; `None` if nothing did, or there is no such node any more.
#[must_use]
pub fn node_changes(
    state: &State,
    node: NodeId,
    touched: &Touched,
    inputs: &SpecInputs<'_>,
) -> Option<NodeContent> {
    let facts_changed = touched.all_facts || touched.facts.contains(&node);
    let changed = touched.groups.get(&node);
    if !facts_changed && changed.is_none() {
        return None;
    }
    state.node(node)?;
    let mut content = NodeContent::default();
    if facts_changed {
        content.facts = node_facts(state, node, inputs);
    }
    for id in changed.into_iter().flatten() {
        match state.group(*id).filter(|group| group.side_of(node).is_some()) {
            Some(group) => content.groups.push(group_spec(state, node, *id, group)),
            None => content.removed_groups.push(*id),
        }
    }
    Some(content)
}

/// Which nodes a commit concerns, given the states before and after it.
#[must_use]
pub fn touched(before: &State, after: &State, events: &[Event]) -> Touched {
    let mut touched = Touched::default();
    let states = [before, after];
    for event in events {
        match event {
            Event::ClusterCreated { .. }
            | Event::LogSitesChanged { .. }
            | Event::NodeAdded { .. }
            | Event::NodePortalsChanged { .. }
            | Event::NodeRemoved { .. } => touched.all_facts = true,
            Event::DeviceAdded { device, .. }
            | Event::DeviceAdopted { device, .. }
            | Event::DeviceRejected { device, .. }
            | Event::DeviceRemoved { device } => {
                touched
                    .facts
                    .extend(states.iter().filter_map(|it| it.device(*device)).map(|it| it.node));
            }
            Event::LegReleased { leg } => {
                touched
                    .facts
                    .extend(states.iter().filter_map(|it| it.retired_leg(*leg)).map(|it| it.node));
            }
            Event::LegFormatted { leg } => {
                let volume = after.volume_of_leg(*leg).or_else(|| before.volume_of_leg(*leg));
                if let Some((_, volume)) = volume {
                    touched.group(states, volume.group);
                }
            }
            Event::VolumeCreated { volume, .. }
            | Event::VolumeResized { volume, .. }
            | Event::VolumePresented { volume, .. }
            | Event::VerifyRequested { volume, .. }
            | Event::VolumeVerified { volume, .. } => {
                touched.volume(states, *volume);
            }
            Event::VolumeDeleted { volume }
            | Event::LegAdded { volume, .. }
            | Event::LegRemoved { volume, .. } => {
                touched.volume(states, *volume);
                touched.facts.extend(nodes_of(states, *volume));
            }
            Event::LegDetached { group, .. }
            | Event::LegInSync { group, .. }
            | Event::OwnerMoved { group, .. }
            | Event::OwnerConfirmed { group, .. } => touched.group(states, *group),
            Event::HostChanged { host, .. } | Event::HostKeysChanged { host, .. } => {
                touched.facts.extend(reached_by(after, *host));
            }
            Event::VolumeMapped { volume, host, .. } | Event::VolumeUnmapped { volume, host } => {
                touched.volume(states, *volume);
                let changed =
                    |node: &NodeId| reaches(before, *host, *node) != reaches(after, *host, *node);
                touched.facts.extend(nodes_of(states, *volume).into_iter().filter(changed));
            }
            Event::ClusterLevelRaised { .. }
            | Event::CredentialIssued { .. }
            | Event::CredentialRevoked { .. }
            | Event::SiteAdded { .. }
            | Event::SiteRemoved { .. }
            | Event::SiteConditionReported { .. }
            | Event::PoolCreated { .. }
            | Event::PoolRemoved { .. }
            | Event::PolicyCreated { .. }
            | Event::PolicyChanged { .. }
            | Event::PolicyRemoved { .. }
            | Event::HostAdded { .. }
            | Event::HostRemoved { .. }
            | Event::FailoverDecided { .. }
            | Event::FailoverMeasured { .. }
            | Event::BlocksLost { .. }
            | Event::ScrubScheduled { .. }
            | Event::LogSiteReseeded { .. } => {}
        }
    }
    touched
}

impl Touched {
    /// Whether it concerns no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all_facts && self.facts.is_empty() && self.groups.is_empty()
    }

    /// Whether it concerns a node.
    #[must_use]
    pub fn concerns(&self, node: NodeId) -> bool {
        self.all_facts || self.facts.contains(&node) || self.groups.contains_key(&node)
    }

    /// Adds what a later commit touched, so that one message covers both.
    pub fn merge(&mut self, later: Touched) {
        self.all_facts |= later.all_facts;
        self.facts.extend(later.facts);
        for (node, groups) in later.groups {
            self.groups.entry(node).or_default().extend(groups);
        }
    }

    fn group(&mut self, states: [&State; 2], id: GroupId) {
        for group in states.iter().filter_map(|state| state.group(id)) {
            for side in &group.sides {
                self.groups.entry(side.node).or_default().insert(id);
            }
        }
    }

    fn volume(&mut self, states: [&State; 2], id: VolumeId) {
        if let Some(volume) = states.iter().find_map(|state| state.volume(id)) {
            self.group(states, volume.group);
        }
    }
}

fn nodes_of(states: [&State; 2], volume: VolumeId) -> BTreeSet<NodeId> {
    let volumes = states.iter().filter_map(|state| state.volume(volume));
    volumes.flat_map(|volume| volume.legs.iter().map(|leg| leg.node)).collect()
}

fn volumes_of(state: &State, host: HostId) -> impl Iterator<Item = &Volume> {
    state.mappings_of_host(host).filter_map(|(_, volume)| state.volume(volume))
}

fn reached_by(state: &State, host: HostId) -> BTreeSet<NodeId> {
    volumes_of(state, host).flat_map(|volume| volume.legs.iter().map(|leg| leg.node)).collect()
}

fn reaches(state: &State, host: HostId, node: NodeId) -> bool {
    volumes_of(state, host).any(|volume| volume.legs.iter().any(|leg| leg.node == node))
}

fn node_facts(state: &State, id: NodeId, inputs: &SpecInputs<'_>) -> Option<NodeFacts> {
    let cluster = state.cluster()?;
    let node = state.node(id)?;
    let retired = state
        .retired_of_node(id)
        .map(|(leg, retired)| contract::RetiredLeg { leg, runs: retired.runs.clone() });
    let hosts = state.hosts().filter(|(host, _)| reaches(state, *host, id));
    let nodes = state.nodes().map(|(node, it)| NodeEntry {
        node,
        site: it.site,
        number: it.number,
        portals: it.portals,
    });
    Some(NodeFacts {
        node: id,
        name: node.name.clone(),
        site: node.site,
        number: node.number,
        verifiers: cluster.log_sites.clone(),
        times: inputs.times,
        portals: node.portals,
        link_secret: inputs.link_secret.to_owned(),
        nodes: nodes.collect(),
        devices: device_specs(state, id),
        retired_legs: retired.collect(),
        hosts: hosts.map(|(host, it)| host_spec(host, it, inputs)).collect(),
        subsystem_nqn: subsystem_nqn(cluster.id),
        target_iqn: target_iqn(cluster.id),
        serial: serial_of(cluster.id),
    })
}

/// The NVMe subsystem under which every node of a cluster offers its volumes.
pub(crate) fn subsystem_nqn(cluster: ClusterId) -> String {
    format!("nqn.2026-11.io.voute:{cluster}")
}

/// The iSCSI target of the same.
pub(crate) fn target_iqn(cluster: ClusterId) -> String {
    format!("iqn.2026-11.io.voute:{cluster}")
}

/// The first 20 hexadecimal digits of the cluster's id: as many as NVMe's field holds.
fn serial_of(cluster: ClusterId) -> String {
    cluster.0.simple().to_string().chars().take(20).collect()
}

/// Devices that the node's site would not take are not tried again: they are removed and added anew.
fn device_specs(state: &State, node: NodeId) -> Vec<DeviceSpec> {
    let ours = state.devices().filter(|(_, device)| device.node == node);
    ours.filter_map(|(id, device)| {
        let adopted = match device.adoption {
            Adoption::Adopted { .. } => true,
            Adoption::Pending => false,
            Adoption::Rejected { .. } => return None,
        };
        Some(DeviceSpec {
            device: id,
            locator: device.locator.clone(),
            extent_bytes: state.pool(device.pool)?.extent_bytes,
            adopted,
            overwrite: device.overwrite,
        })
    })
    .collect()
}

/// Ends the name of the secret by which the target proves itself to the hosts that prove the one named
/// before it: `town.target` beside `town`.
const TARGET_SECRET_SUFFIX: &str = ".target";

/// A host whose secret cannot be resolved must not log in without it: it gets no iSCSI names.
fn host_spec(id: HostId, host: &Host, inputs: &SpecInputs<'_>) -> HostSpec {
    let identity = &host.identity;
    let chap_secret = identity.chap_secret.as_ref().and_then(inputs.chap_secret);
    let secret_is_missing = identity.chap_secret.is_some() && chap_secret.is_none();
    let iqns = if secret_is_missing { vec![] } else { identity.iqns.clone() };
    let chap_target_secret = identity
        .chap_secret
        .as_ref()
        .and_then(|name| Name::new(format!("{name}{TARGET_SECRET_SUFFIX}")).ok())
        .and_then(|name| (inputs.chap_secret)(&name));
    let resolve = |name: &Option<Name>| name.as_ref().and_then(inputs.chap_secret);
    let (dhchap_secret, dhchap_controller_secret) =
        (resolve(&host.keys.secret), resolve(&host.keys.target_secret));
    // Likewise over NVMe.
    let key_is_missing = host.keys.secret.is_some() && dhchap_secret.is_none()
        || host.keys.target_secret.is_some() && dhchap_controller_secret.is_none();
    let nqns = if key_is_missing { vec![] } else { identity.nqns.clone() };
    HostSpec {
        host: id,
        nqns,
        iqns,
        chap_secret,
        chap_target_secret,
        dhchap_secret,
        dhchap_controller_secret,
    }
}

fn group_spec(state: &State, node: NodeId, id: GroupId, group: &Group) -> GroupSpec {
    let sides = group.sides.iter().map(|side| SideSpec {
        site: side.site,
        node: side.node,
        in_sync: side.in_sync,
    });
    let volumes = group
        .volumes
        .iter()
        .filter_map(|volume| Some(volume_spec(state, node, *volume, state.volume(*volume)?)));
    GroupSpec {
        group: id,
        epoch: group.epoch,
        owner: group.owner,
        sides: sides.collect(),
        last_common: group.last_common,
        volumes: volumes.collect(),
    }
}

fn volume_spec(state: &State, node: NodeId, id: VolumeId, volume: &Volume) -> VolumeSpec {
    let legs = volume.legs.iter().map(|leg| LegSpec {
        leg: leg.leg,
        site: leg.site,
        node: leg.node,
        formatted: leg.formatted,
        runs: if leg.node == node { leg.runs.clone() } else { vec![] },
    });
    let mappings = state.mappings_of_volume(id).map(|(host, mapping)| MappingSpec {
        host,
        lun: mapping.lun,
        read_only: mapping.read_only,
    });
    VolumeSpec {
        volume: id,
        name: volume.name.clone(),
        number: volume.number,
        size_bytes: volume.size_bytes,
        block_bytes: volume.block_bytes,
        region_bytes: REGION_BYTES,
        legs: legs.collect(),
        mappings: mappings.collect(),
        verify: volume
            .check
            .under_way
            .map(|it| contract::VerifyOrder { run: it.run.0, repair: it.repair }),
        presentation: volume.presentation,
    }
}

//! What is derived from the state to find things fast: by name, by node, by LUN.

use super::state::{Core, Group, KeyId, Set, Table};
use voute_schemas::Name;
use voute_schemas::event::HostIdentity;
use voute_schemas::ids::*;

/// Everything here follows from [`Core`]; [`Index::of`] is the definition, `evolve` keeps it in
/// step.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Index {
    pub(super) names: Names,
    pub(super) legs: Table<LegId, LegHome>,
    pub(super) groups_of_node: Set<(NodeId, GroupId)>,
    pub(super) retired_of_node: Set<(NodeId, LegId)>,
    pub(super) devices_of_pool: Set<(PoolId, DeviceId)>,
    pub(super) luns: Table<(HostId, u16), VolumeId>,
    pub(super) identities: Table<String, HostId>,
    /// Idempotency keys by the number of the commit that used them.
    pub(super) key_order: Table<u64, KeyId>,
}

/// Identifiers by name, per noun.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Names {
    pub(super) credentials: Table<Name, CredentialId>,
    pub(super) sites: Table<Name, SiteId>,
    pub(super) nodes: Table<Name, NodeId>,
    pub(super) pools: Table<Name, PoolId>,
    pub(super) devices: Table<Name, DeviceId>,
    pub(super) policies: Table<Name, PolicyId>,
    pub(super) volumes: Table<Name, VolumeId>,
    pub(super) hosts: Table<Name, HostId>,
}

/// Where a leg belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LegHome {
    Volume(VolumeId),
    Retired,
}

impl Index {
    /// The index of a state.
    pub(super) fn of(core: &Core) -> Self {
        let mut index = Index { names: Names::of(core), ..Index::default() };
        for (id, device) in &core.devices {
            index.devices_of_pool.insert_cow((device.pool, *id));
        }
        for (id, group) in &core.groups {
            index.add_group(*id, group);
        }
        for (id, volume) in &core.volumes {
            for leg in &volume.legs {
                index.legs.insert_cow(leg.leg, LegHome::Volume(*id));
            }
        }
        for (leg, retired) in &core.retired {
            index.add_retired(*leg, retired.node);
        }
        for ((volume, host), mapping) in &core.mappings {
            index.luns.insert_cow((*host, mapping.lun), *volume);
        }
        for (id, host) in &core.hosts {
            index.add_identities(*id, &host.identity);
        }
        for (key, used) in &core.keys {
            index.key_order.insert_cow(used.sequence.0, key.clone());
        }
        index
    }

    pub(super) fn add_group(&mut self, id: GroupId, group: &Group) {
        for side in &group.sides {
            self.groups_of_node.insert_cow((side.node, id));
        }
    }

    pub(super) fn remove_group(&mut self, id: GroupId, group: &Group) {
        for side in &group.sides {
            self.groups_of_node.remove_cow(&(side.node, id));
        }
    }

    pub(super) fn add_retired(&mut self, leg: LegId, node: NodeId) {
        self.legs.insert_cow(leg, LegHome::Retired);
        self.retired_of_node.insert_cow((node, leg));
    }

    pub(super) fn remove_retired(&mut self, leg: LegId, node: NodeId) {
        self.legs.remove_cow(&leg);
        self.retired_of_node.remove_cow(&(node, leg));
    }

    pub(super) fn add_identities(&mut self, id: HostId, identity: &HostIdentity) {
        for name in identity.nqns.iter().chain(&identity.iqns) {
            self.identities.insert_cow(name.clone(), id);
        }
    }

    pub(super) fn remove_identities(&mut self, identity: &HostIdentity) {
        for name in identity.nqns.iter().chain(&identity.iqns) {
            self.identities.remove_cow(name);
        }
    }
}

impl Names {
    fn of(core: &Core) -> Self {
        Names {
            credentials: core
                .credentials
                .into_iter()
                .map(|(id, it)| (it.name.clone(), *id))
                .collect(),
            sites: core.sites.into_iter().map(|(id, it)| (it.name.clone(), *id)).collect(),
            nodes: core.nodes.into_iter().map(|(id, it)| (it.name.clone(), *id)).collect(),
            pools: core.pools.into_iter().map(|(id, it)| (it.name.clone(), *id)).collect(),
            devices: core.devices.into_iter().map(|(id, it)| (it.name.clone(), *id)).collect(),
            policies: core.policies.into_iter().map(|(id, it)| (it.name.clone(), *id)).collect(),
            volumes: core.volumes.into_iter().map(|(id, it)| (it.name.clone(), *id)).collect(),
            hosts: core.hosts.into_iter().map(|(id, it)| (it.name.clone(), *id)).collect(),
        }
    }
}

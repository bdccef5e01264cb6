//! What a node offers to hosts, from what the control plane says and what its mirrors can serve.
//!
//! A thread of its own builds the directories, so that neither the reactors nor the node contract
//! wait for it, and a thousand volumes that change at once are published in a few rounds. The
//! directories only *tell* hosts where to go: whether a request is served is for the mirror alone.

use crate::link::SHARDS;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use voute_iscsi as iscsi;
use voute_mirror::Access;
use voute_nvme as nvme;
use voute_schemas::contract::{GroupSpec, HostSpec, NodeFacts, VolumeSpec};
use voute_schemas::{Epoch, GroupId, NodeId, VolumeId};

/// Controller ids of one node; ranges of two nodes never meet.
pub(crate) const CONTROLLERS_PER_NODE: u16 = 300;

/// Where requests for a volume go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    pub(crate) volume: VolumeId,
    pub(crate) shard: u16,
    pub(crate) block_bytes: u32,
}

/// Routes by the volume's id as a number.
pub(crate) type Routes = HashMap<u128, Route>;

/// The number by which protocols carry a volume's id.
pub(crate) fn key(id: [u8; 16]) -> u128 {
    u128::from_be_bytes(id)
}

/// The shard of a group: that of its lowest volume number, so that volumes made one after the other
/// spread evenly, and every node finds the same.
pub(crate) fn shard(group: &GroupSpec) -> u16 {
    let lowest = group.volumes.iter().map(|volume| volume.number).min().unwrap_or(0);
    (lowest % u32::from(SHARDS)) as u16
}

#[derive(Default)]
struct State {
    facts: Option<Arc<NodeFacts>>,
    groups: BTreeMap<GroupId, Arc<GroupSpec>>,
    access: HashMap<GroupId, Access>,
    is_changed: bool,
    is_ended: bool,
}

/// The offer, shared by the agent (specs), the reactors (access, routes) and the publishing thread.
pub(crate) struct Offer {
    state: Mutex<State>,
    changed: Condvar,
    routes: Mutex<Arc<Routes>>,
    published: Mutex<HashMap<GroupId, Access>>,
    generation: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Offer {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Offer {
            state: Mutex::default(),
            changed: Condvar::new(),
            routes: Mutex::default(),
            published: Mutex::default(),
            generation: AtomicU64::new(0),
        })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        state.is_changed = true;
        self.changed.notify_one();
    }

    /// New facts.
    pub(crate) fn set_facts(&self, facts: Arc<NodeFacts>) {
        self.change(|state| state.facts = Some(facts));
    }

    /// New and removed groups.
    pub(crate) fn set_groups(&self, groups: &[GroupSpec], removed: &[GroupId]) {
        self.change(|state| {
            for group in groups {
                state.groups.insert(group.group, Arc::new(group.clone()));
            }
            for group in removed {
                state.groups.remove(group);
                state.access.remove(group);
            }
        });
    }

    /// A mirror can, or can no longer, serve a group.
    pub(crate) fn set_access(&self, group: GroupId, access: Access) {
        self.change(|state| {
            state.access.insert(group, access);
        });
    }

    /// The group of a volume, its epoch, and whether it is served here.
    pub(crate) fn group_of(&self, volume: VolumeId) -> Option<(GroupId, Epoch, Access)> {
        let state = lock(&self.state);
        let holds = |group: &&Arc<GroupSpec>| group.volumes.iter().any(|it| it.volume == volume);
        let group = state.groups.values().find(holds)?;
        let access = state.access.get(&group.group).copied().unwrap_or(Access::Inaccessible);
        Some((group.group, group.epoch, access))
    }

    /// The node that is to serve a volume.
    pub(crate) fn owner_of(&self, volume: VolumeId) -> Option<NodeId> {
        let state = lock(&self.state);
        let holds = |group: &&Arc<GroupSpec>| group.volumes.iter().any(|it| it.volume == volume);
        state.groups.values().find(holds).map(|group| group.owner)
    }

    /// Whether hosts were told that a group is served here.
    pub(crate) fn published_access(&self, group: GroupId) -> Access {
        lock(&self.published).get(&group).copied().unwrap_or(Access::Inaccessible)
    }

    /// Rises with each publication.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn routes(&self) -> Arc<Routes> {
        lock(&self.routes).clone()
    }

    /// Ends the publishing thread.
    pub(crate) fn end(&self) {
        self.change(|state| state.is_ended = true);
    }

    /// Publishes until [`Self::end`]: what the thread runs. `published` wakes the reactors.
    pub(crate) fn publish(&self, nvme: &nvme::Target, iscsi: &iscsi::Target, published: impl Fn()) {
        let mut previous = nvme::Directory::default();
        loop {
            let mut state = lock(&self.state);
            while !state.is_changed && !state.is_ended {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.is_ended {
                return;
            }
            state.is_changed = false;
            let Some(facts) = state.facts.clone() else { continue };
            let (groups, access) = (state.groups.clone(), state.access.clone());
            drop(state);

            let view = View { facts: &facts, groups: &groups, access: &access };
            *lock(&self.routes) = Arc::new(view.routes());
            match view.nvme(&previous) {
                Ok(directory) => {
                    previous = directory.clone();
                    nvme.publish(Arc::new(directory));
                }
                Err(error) => {
                    tracing::error!(%error, "hosts see no change over NVMe: what the control plane says cannot be shown");
                }
            }
            iscsi.publish(Arc::new(view.iscsi()));
            *lock(&self.published) = access;
            self.generation.fetch_add(1, Ordering::Release);
            published();
        }
    }
}

/// One moment of the offer.
struct View<'a> {
    facts: &'a NodeFacts,
    groups: &'a BTreeMap<GroupId, Arc<GroupSpec>>,
    access: &'a HashMap<GroupId, Access>,
}

/// Whether a volume can be shown: every leg that counts has its header. A leg that was added later
/// does not hide it, since its side is not in sync yet.
fn is_shown(group: &GroupSpec, volume: &VolumeSpec) -> bool {
    let counts = |node: NodeId| group.sides.iter().any(|side| side.node == node && side.in_sync);
    volume.legs.iter().all(|leg| leg.formatted || !counts(leg.node))
}

impl View<'_> {
    fn routes(&self) -> Routes {
        let volumes = self.groups.values().flat_map(|group| {
            let shard = shard(group);
            group.volumes.iter().map(move |volume| (shard, volume))
        });
        let route = |(shard, volume): (u16, &VolumeSpec)| {
            let route =
                Route { volume: volume.volume, shard, block_bytes: volume.block_bytes.max(1) };
            (key(volume.volume.bytes()), route)
        };
        volumes.map(route).collect()
    }

    fn access(&self, group: &GroupSpec) -> Access {
        self.access.get(&group.group).copied().unwrap_or(Access::Inaccessible)
    }

    /// The volumes of each host, by its place in the facts.
    fn mapped(&self) -> Vec<(&HostSpec, Vec<Mapped<'_>>)> {
        let mut hosts: HashMap<_, Vec<Mapped<'_>>> = HashMap::new();
        for group in self.groups.values() {
            for volume in group.volumes.iter().filter(|volume| is_shown(group, volume)) {
                for mapping in &volume.mappings {
                    let (lun, read_only) = (mapping.lun, mapping.read_only);
                    let mapped = Mapped { group, volume, lun, read_only };
                    hosts.entry(mapping.host).or_default().push(mapped);
                }
            }
        }
        let hosts = self.facts.hosts.iter().map(|host| (host, hosts.remove(&host.host)));
        hosts.filter_map(|(host, mapped)| Some((host, mapped?))).collect()
    }

    fn nvme(&self, previous: &nvme::Directory) -> Result<nvme::Directory, nvme::DirectoryError> {
        let nqn = &self.facts.subsystem_nqn;
        let (mut hosts, mut keys) = (BTreeMap::new(), BTreeMap::new());
        for (host, mapped) in self.mapped() {
            let Some(secrets) = host_keys(host) else { continue };
            let namespaces = mapped.iter().map(|mapped| self.namespace(mapped)).collect();
            let view = Arc::new(host_view(namespaces));
            for name in &host.nqns {
                // A view that did not change keeps its place, so that nobody compares it.
                let before = previous.host_view(nqn, name).filter(|before| ***before == *view);
                hosts.insert(name.clone(), before.unwrap_or(&view).clone());
                keys.extend(secrets.clone().map(|secrets| (name.clone(), secrets)));
            }
        }
        let subsystem = nvme::Subsystem { serial: self.facts.serial.clone(), hosts, keys };
        let portals = self.facts.nodes.iter().map(|node| nvme::PortalEntry {
            id: node.number,
            address: node.portals.nvme.ip(),
            port: node.portals.nvme.port(),
        });
        nvme::Directory::new(BTreeMap::from([(nqn.clone(), subsystem)]), portals.collect())
    }

    fn namespace(&self, mapped: &Mapped<'_>) -> nvme::NamespaceView {
        let volume = mapped.volume;
        nvme::NamespaceView {
            nsid: volume.number,
            uuid: volume.volume.bytes(),
            nguid: volume.volume.bytes(),
            block_size: volume.block_bytes,
            blocks: volume.size_bytes / u64::from(volume.block_bytes.max(1)),
            ana_group: volume.number,
            state: match self.access(mapped.group) {
                Access::Optimized => nvme::AnaState::Optimized,
                Access::Inaccessible | Access::CutOff => nvme::AnaState::Inaccessible,
                Access::Transition => nvme::AnaState::Change,
            },
            read_only: mapped.read_only,
        }
    }

    fn iscsi(&self) -> iscsi::Directory {
        let mut hosts = HashMap::new();
        for (host, mapped) in self.mapped() {
            let luns: Vec<_> = mapped.iter().map(|mapped| self.lun(mapped)).collect();
            for name in &host.iqns {
                let authentication = authentication(host, name, &self.facts.target_iqn);
                let view = iscsi::HostView { authentication, luns: luns.clone(), portals: None };
                hosts.insert(name.to_lowercase(), view);
            }
        }
        let portals = self.facts.nodes.iter().map(|node| iscsi::Portal {
            id: iscsi::PortalId(node.number),
            address: portal_address(node.portals.iscsi),
            group_tag: node.number,
            relative_port: node.number,
        });
        let (portals, discovery) = (portals.collect(), iscsi::Authentication::None);
        iscsi::Directory { portals, hosts, discovery }
    }

    fn lun(&self, mapped: &Mapped<'_>) -> iscsi::LunView {
        let Mapped { group, volume, lun, read_only } = *mapped;
        let id = volume.volume.bytes();
        let mut naa = id;
        // NAA 6, the rest from the volume's id: unique, and the same at every site.
        naa[0] = 0x60 | naa[0] & 0x0F;
        let mine = alua(self.access(group));
        iscsi::LunView {
            lun,
            volume: iscsi::VolumeKey(key(id)),
            naa,
            serial: id.iter().map(|byte| format!("{byte:02x}")).collect(),
            block_size: volume.block_bytes,
            blocks: (volume.size_bytes / u64::from(volume.block_bytes.max(1))).max(1),
            alua_state: mine,
            target_port_groups: self.port_groups(group, mine),
            read_only,
            // Its extents are its own from the beginning, so what it tells as thin can never lack room.
            thin: volume.presentation.thin,
            physical_block_size: physical_block(volume),
            // What the journals of its legs make whole.
            atomic_blocks: atomic_blocks(volume),
        }
    }

    /// One target port group per node that holds a side, as far as this node can tell: its own state
    /// it knows, another's follows from the log's owner.
    fn port_groups(
        &self,
        group: &GroupSpec,
        mine: iscsi::AluaState,
    ) -> Vec<iscsi::TargetPortGroup> {
        let sides: BTreeSet<NodeId> = group.sides.iter().map(|side| side.node).collect();
        let nodes = self.facts.nodes.iter().filter(|node| sides.contains(&node.node));
        let state = |node: NodeId| match node {
            node if node == self.facts.node => mine,
            node if node == group.owner => iscsi::AluaState::ActiveOptimized,
            _ => iscsi::AluaState::Standby,
        };
        nodes
            .map(|node| iscsi::TargetPortGroup {
                id: node.number,
                state: state(node.node),
                relative_ports: vec![node.number],
            })
            .collect()
    }
}

/// Most blocks that every leg of a volume writes all or not at all.
fn atomic_blocks(volume: &VolumeSpec) -> u32 {
    let unit = voute_mirror::atomic_unit(volume.block_bytes, volume.region_bytes);
    u32::try_from(unit / u64::from(volume.block_bytes.max(1))).unwrap_or(1).max(1)
}

/// What a host sees: all that can be shown. One volume that cannot must not keep the others' changes
/// from their hosts.
fn host_view(namespaces: Vec<nvme::NamespaceView>) -> nvme::HostView {
    let error = match nvme::HostView::new(namespaces.clone()) {
        Ok(view) => return view,
        Err(error) => error,
    };
    tracing::error!(%error, "a host does not see all of its volumes over NVMe");
    let is_sound = |one: &nvme::NamespaceView| nvme::HostView::new(vec![one.clone()]).is_ok();
    let mut sound: Vec<_> = namespaces.into_iter().filter(is_sound).collect();
    sound.sort_by_key(|namespace| namespace.nsid);
    sound.dedup_by_key(|namespace| namespace.nsid);
    sound.truncate(nvme::NAMESPACES_PER_HOST_MAX);
    nvme::HostView::new(sound).unwrap_or_default()
}

/// What a host must prove over NVMe, `Some(None)` if nothing. `None`: a secret cannot be read, and the
/// host must not be let in without it.
fn host_keys(host: &HostSpec) -> Option<Option<Arc<nvme::HostKeys>>> {
    let read = |text: &Option<String>| text.as_deref().map(str::parse::<nvme::Secret>).transpose();
    match (read(&host.dhchap_secret), read(&host.dhchap_controller_secret)) {
        (Ok(None), Ok(_)) => Some(None),
        (Ok(Some(secret)), Ok(controller)) => {
            Some(Some(Arc::new(nvme::HostKeys { host: secret, controller })))
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(host = %host.host, %error, "a host is not let in over NVMe: its secret cannot be read");
            None
        }
    }
}

/// The block by which hosts are to align, bytes: never less than the volume's own.
fn physical_block(volume: &VolumeSpec) -> u32 {
    let told = volume.presentation.physical_block_bytes.unwrap_or(volume.block_bytes);
    told.max(volume.block_bytes)
}

/// A volume as it is mapped to one host.
struct Mapped<'a> {
    group: &'a GroupSpec,
    volume: &'a VolumeSpec,
    lun: u16,
    read_only: bool,
}

fn alua(access: Access) -> iscsi::AluaState {
    match access {
        Access::Optimized => iscsi::AluaState::ActiveOptimized,
        Access::Inaccessible | Access::CutOff => iscsi::AluaState::Standby,
        Access::Transition => iscsi::AluaState::Transitioning,
    }
}

/// What a host proves, by its own name; and what the target proves to it, by the target's.
fn authentication(host: &HostSpec, name: &str, target: &str) -> iscsi::Authentication {
    let credential = |name: &str, secret: &str| iscsi::Credential {
        name: name.to_owned(),
        secret: secret.as_bytes().to_vec(),
    };
    match &host.chap_secret {
        None => iscsi::Authentication::None,
        Some(secret) => iscsi::Authentication::Chap(iscsi::Chap {
            host: credential(name, secret),
            target: host.chap_target_secret.as_ref().map(|secret| credential(target, secret)),
        }),
    }
}

/// As SendTargets tells it: IPv6 in brackets.
fn portal_address(address: SocketAddr) -> String {
    address.to_string()
}

#[cfg(test)]
mod tests;

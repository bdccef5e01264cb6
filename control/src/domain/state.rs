//! What replaying the log gives.
//!
//! Tables are persistent: a clone of a state shares its content and costs nothing, and a change
//! copies only the few nodes above what it changes. Iteration is ordered by key, so that the
//! encoding, and with it the digest, is the same for the same history.

use super::extents::FreeExtents;
use super::index::{Index, LegHome};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::sync::Arc;
use uuid::Uuid;
use voute_schemas::commit::Actor;
use voute_schemas::event::*;
use voute_schemas::ids::*;
use voute_schemas::place::{ExtentRun, LegPlacement, Locator, Portals};
use voute_schemas::proof::{HAND_OVERS_MAX, Verifier};
use voute_schemas::{Epoch, Hash, Name, Sequence};

/// An ordered table that is cloned in constant time.
pub type Table<K, V> = immutable_chunkmap::map::Map<K, V, 128>;
/// The same for few entries.
pub type SmallTable<K, V> = immutable_chunkmap::map::Map<K, V, 16>;
/// An ordered set that is cloned in constant time.
pub type Set<K> = immutable_chunkmap::set::Set<K, 128>;

/// How many idempotency keys are remembered, the youngest.
pub const KEYS_MAX: usize = 100_000;
/// How many failovers are remembered, the youngest.
pub const FAILOVERS_MAX: usize = 1_000;
/// Most nodes of a cluster: their numbers are 1 to this.
pub const NODES_MAX: u16 = 200;
/// Layout of [`State::encode`]. Raised whenever a field of the state changes.
pub const SNAPSHOT_FORMAT: u32 = 6;

/// The state at one position of the log.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) core: Core,
    /// Derived from `core`, kept in step by `evolve`, never written down.
    pub(super) index: Index,
}

/// What is written down.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Core {
    pub(super) position: Epoch,
    pub(super) cluster: Option<Cluster>,
    pub(super) volume_number_last: u32,
    pub(super) credentials: Table<CredentialId, Arc<Credential>>,
    pub(super) sites: Table<SiteId, Arc<Site>>,
    pub(super) nodes: Table<NodeId, Arc<Node>>,
    pub(super) pools: Table<PoolId, Arc<Pool>>,
    pub(super) devices: Table<DeviceId, Arc<Device>>,
    pub(super) policies: Table<PolicyId, Arc<Policy>>,
    pub(super) groups: Table<GroupId, Arc<Group>>,
    pub(super) volumes: Table<VolumeId, Arc<Volume>>,
    pub(super) retired: Table<LegId, Arc<Retired>>,
    pub(super) hosts: Table<HostId, Arc<Host>>,
    pub(super) mappings: Table<(VolumeId, HostId), Mapping>,
    pub(super) failovers: Table<FailoverId, Arc<Failover>>,
    pub(super) keys: Table<KeyId, Arc<KeyUse>>,
    pub(super) scrub: Scrub,
}

/// The cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Its name.
    pub name: Name,
    /// Level of events that every process may write.
    pub level: u32,
    /// Who signs checkpoints.
    pub log_sites: Vec<Verifier>,
    /// Who did and does, by the commits that named them: the last [`HAND_OVERS_MAX`], in order. Never
    /// empty; the last one's are `log_sites`.
    pub log_sites_named: Vec<NamedSites>,
}

/// Log sites that a commit named.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NamedSites {
    /// The commit; zero for nobody, named by none.
    pub sequence: Sequence,
    /// Whom.
    pub sites: Vec<Verifier>,
}

impl Cluster {
    /// A commit names the log's sites.
    pub(super) fn name_log_sites(&mut self, sequence: Sequence, sites: &[Verifier]) {
        self.log_sites = sites.to_vec();
        self.log_sites_named.push(NamedSites { sequence, sites: sites.to_vec() });
        let surplus = self.log_sites_named.len().saturating_sub(HAND_OVERS_MAX);
        self.log_sites_named.drain(..surplus);
    }
}

/// A bearer credential. Revoked ones are gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Credential {
    /// Its name.
    pub name: Name,
    /// What it may do.
    pub role: Role,
    /// SHA-256 of the secret.
    pub verifier: Hash,
}

/// A site.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Site {
    /// Its name.
    pub name: Name,
    /// Whether it holds data.
    pub kind: SiteKind,
    /// Its condition.
    pub condition: SiteCondition,
    /// Who said so.
    pub source: ConditionSource,
    /// In words.
    pub detail: String,
    /// Commit that said so.
    pub condition_since: Sequence,
    /// Commit of its last failover.
    pub last_failover: Option<Sequence>,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// Its site.
    pub site: SiteId,
    /// Where it listens.
    pub portals: Portals,
    /// 1 to [`NODES_MAX`].
    pub number: u16,
    /// SHA-256 of its secret.
    pub verifier: Hash,
}

/// A pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: Name,
    /// Its site.
    pub site: SiteId,
    /// Unit of allocation, bytes.
    pub extent_bytes: u64,
}

/// A device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: Name,
    /// Its node.
    pub node: NodeId,
    /// Its pool.
    pub pool: PoolId,
    /// Where it is.
    pub locator: Locator,
    /// Whether it may be adopted over foreign data.
    pub overwrite: bool,
    /// How far its adoption is.
    pub adoption: Adoption,
}

/// How far a device's adoption is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Adoption {
    /// Its node has not answered yet.
    Pending,
    /// Its extents can be allocated.
    Adopted {
        /// Which are free.
        extents: FreeExtents,
        /// Logical block, bytes.
        block_bytes: u32,
    },
    /// Its node would not take it.
    Rejected {
        /// Why.
        cause: String,
    },
}

/// A failover policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: Name,
    /// Its rules.
    pub rules: PolicyRules,
}

/// Volumes that fail over together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Who serves it; always the node of an in-sync side.
    pub owner: NodeId,
    /// The commit that last changed its owner or in-sync set.
    pub epoch: Epoch,
    /// The last epoch at which all its sides were in sync; [`Epoch::ZERO`] if a side's content
    /// began anew since, so that no map suffices.
    pub last_common: Epoch,
    /// One or two.
    pub sides: Vec<Side>,
    /// Its volumes.
    pub volumes: Vec<VolumeId>,
    /// When it moves by itself; `None`: only when told.
    pub policy: Option<PolicyId>,
    /// Highest start of the present owner that was confirmed to still own.
    pub confirmed_incarnation: Option<u64>,
    /// Wall time of the commit that last changed its owner; `None`: it has its first one.
    pub owner_since_unix_ms: Option<u64>,
    /// Whether that was because somebody asked for it, an operator, a policy or a host, rather than because
    /// its owner was lost.
    pub moved_when_asked: bool,
}

/// A group's legs at one site.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Side {
    /// The site.
    pub site: SiteId,
    /// The one node that holds them.
    pub node: NodeId,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// Commit that last changed that.
    pub since: Sequence,
}

/// A volume. Deleted ones are gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: Name,
    /// Its group.
    pub group: GroupId,
    /// NSID and ANA group; never used for another.
    pub number: u32,
    /// Size, bytes.
    pub size_bytes: u64,
    /// Logical block, bytes.
    pub block_bytes: u32,
    /// What hosts are told of how it keeps its blocks.
    pub presentation: Presentation,
    /// One or two.
    pub legs: Vec<Leg>,
    /// What is known of its legs being equal.
    pub check: Check,
}

/// What is known of a volume's legs being equal.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Check {
    /// The comparison that its owner was told to make.
    pub under_way: Option<CheckRun>,
    /// The last that came to its end.
    pub last: Option<Checked>,
    /// When the last was asked for, milliseconds since 1970.
    pub asked_unix_ms: Option<u64>,
    /// Blocks that were reported as lost, the latest [`LOST_MAX`] ranges, since a comparison found
    /// everything readable.
    pub lost: Vec<BlockRange>,
}

/// Most ranges of lost blocks that are remembered of a volume.
const LOST_MAX: usize = 256;

impl Check {
    /// Remembers blocks that were lost.
    pub(super) fn lose(&mut self, ranges: &[BlockRange]) {
        self.lost.retain(|known| !ranges.contains(known));
        self.lost.extend_from_slice(ranges);
        let surplus = self.lost.len().saturating_sub(LOST_MAX);
        self.lost.drain(..surplus);
    }

    /// Bytes that are known to be lost: as the reports say, or the last comparison.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        let reported = self.lost.iter().map(|range| range.length).sum::<u64>();
        self.last.as_ref().map_or(0, |last| last.evidence.lost_bytes).max(reported)
    }

    /// Regions that differed when compared last, and were not repaired.
    #[must_use]
    pub fn differing_regions(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| {
            last.evidence.differing_regions.saturating_sub(last.evidence.repaired_regions)
        })
    }
}

/// A comparison under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckRun {
    /// The commit that asked for it.
    pub run: Sequence,
    /// Whether a leg that differs is repaired.
    pub repair: bool,
}

/// A comparison that came to its end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// The commit that asked for it.
    pub run: Sequence,
    /// The commit that recorded its end.
    pub ended: Sequence,
    /// What was found.
    pub evidence: VerifyEvidence,
}

/// How often volumes are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Scrub {
    /// Hours from begin to begin; `None`: only when told.
    pub every_hours: Option<u32>,
    /// Whether legs that differ are repaired.
    pub repair: bool,
}

/// A leg of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Leg {
    /// Its id.
    pub leg: LegId,
    /// Its pool.
    pub pool: PoolId,
    /// Its site.
    pub site: SiteId,
    /// Its node.
    pub node: NodeId,
    /// Whether its header was written.
    pub formatted: bool,
    /// Where it lies.
    pub runs: Vec<ExtentRun>,
}

/// A leg that is to be wiped; its extents are taken until then.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Retired {
    /// The volume whose it was.
    pub volume: VolumeId,
    /// Its node.
    pub node: NodeId,
    /// Where it lies.
    pub runs: Vec<ExtentRun>,
}

/// A host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: Name,
    /// How it is recognised.
    pub identity: HostIdentity,
    /// What it must prove over NVMe.
    pub keys: HostKeys,
}

/// A volume granted to a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mapping {
    /// Its iSCSI LUN there.
    pub lun: u16,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A failover of a site.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failover {
    /// The site that was left.
    pub site: SiteId,
    /// The commit that decided it.
    pub decided: Sequence,
    /// What was known.
    pub evidence: FailoverEvidence,
    /// How many groups moved.
    pub moved: u64,
    /// What it took, once measured.
    pub phases: Option<FailoverPhases>,
}

/// An idempotency key within the actor who gave it (nil for the control plane itself).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct KeyId {
    /// Who.
    pub actor: Uuid,
    /// The key.
    pub key: Arc<str>,
}

/// Where an idempotency key was used first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyUse {
    /// Number of the commit.
    pub sequence: Sequence,
    /// The commit.
    pub commit: CommitId,
    /// Name of the command.
    pub command: String,
}

/// A snapshot that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the snapshot cannot be read ({cause}): remove it and let it be rebuilt from the log")]
pub struct UnreadableSnapshot {
    /// What the decoder met.
    pub cause: String,
}

impl KeyId {
    /// The key of an actor.
    #[must_use]
    pub fn new(actor: &Actor, key: &str) -> Self {
        let actor = match actor {
            Actor::System => Uuid::nil(),
            Actor::Credential { id, .. } => id.0,
            Actor::Node(node) => node.0,
        };
        KeyId { actor, key: key.into() }
    }
}

/// Getters by id and ordered iterators of a table of the state.
macro_rules! tables {
    ($($one:ident $all:ident: $id:ty => $entity:ty, $noun:literal;)*) => {
        impl State {
            $(
                #[doc = concat!("The ", $noun, " of this id.")]
                #[must_use]
                pub fn $one(&self, id: $id) -> Option<&$entity> {
                    self.core.$all.get(&id).map(|entity| &**entity)
                }

                #[doc = concat!("Each ", $noun, ", ordered by id.")]
                pub fn $all(&self) -> impl Iterator<Item = ($id, &$entity)> + '_ {
                    self.core.$all.into_iter().map(|(id, entity)| (*id, &**entity))
                }
            )*
        }
    };
}

tables! {
    credential credentials: CredentialId => Credential, "credential";
    site sites: SiteId => Site, "site";
    node nodes: NodeId => Node, "node";
    pool pools: PoolId => Pool, "pool";
    device devices: DeviceId => Device, "device";
    policy policies: PolicyId => Policy, "policy";
    group groups: GroupId => Group, "group";
    volume volumes: VolumeId => Volume, "volume";
    retired_leg retired: LegId => Retired, "retired leg";
    host hosts: HostId => Host, "host";
    failover failovers: FailoverId => Failover, "failover";
}

/// Identifiers by name.
macro_rules! names {
    ($($function:ident $table:ident: $id:ty, $noun:literal;)*) => {
        impl State {
            $(
                #[doc = concat!("The ", $noun, " of this name.")]
                #[must_use]
                pub fn $function(&self, name: &Name) -> Option<$id> {
                    self.index.names.$table.get(name).copied()
                }
            )*
        }
    };
}

names! {
    credential_named credentials: CredentialId, "credential";
    site_named sites: SiteId, "site";
    node_named nodes: NodeId, "node";
    pool_named pools: PoolId, "pool";
    device_named devices: DeviceId, "device";
    policy_named policies: PolicyId, "policy";
    volume_named volumes: VolumeId, "volume";
    host_named hosts: HostId, "host";
}

impl State {
    /// The last commit that it includes.
    #[must_use]
    pub fn position(&self) -> Epoch {
        self.core.position
    }

    /// The cluster, once it was created.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        self.core.cluster.as_ref()
    }

    /// How often volumes are compared.
    #[must_use]
    pub fn scrub(&self) -> Scrub {
        self.core.scrub
    }

    /// How many volumes there are.
    #[must_use]
    pub fn volume_count(&self) -> usize {
        self.core.volumes.len()
    }

    /// How many mappings there are.
    #[must_use]
    pub fn mapping_count(&self) -> usize {
        self.core.mappings.len()
    }

    /// The grant of a volume to a host.
    #[must_use]
    pub fn mapping(&self, volume: VolumeId, host: HostId) -> Option<Mapping> {
        self.core.mappings.get(&(volume, host)).copied()
    }

    /// All grants, ordered by volume and host.
    pub fn mappings(&self) -> impl Iterator<Item = (VolumeId, HostId, Mapping)> + '_ {
        self.core.mappings.into_iter().map(|((volume, host), mapping)| (*volume, *host, *mapping))
    }

    /// Hosts that may use a volume, ordered by id.
    pub fn mappings_of_volume(
        &self,
        volume: VolumeId,
    ) -> impl Iterator<Item = (HostId, Mapping)> + '_ {
        let range = (volume, HostId(Uuid::nil()))..=(volume, HostId(Uuid::max()));
        self.core.mappings.range(range).map(|((_, host), mapping)| (*host, *mapping))
    }

    /// Volumes that a host may use, ordered by LUN.
    pub fn mappings_of_host(&self, host: HostId) -> impl Iterator<Item = (u16, VolumeId)> + '_ {
        self.index
            .luns
            .range((host, 0)..=(host, u16::MAX))
            .map(|((_, lun), volume)| (*lun, *volume))
    }

    /// The volume that a host has at a LUN.
    #[must_use]
    pub fn volume_at_lun(&self, host: HostId, lun: u16) -> Option<VolumeId> {
        self.index.luns.get(&(host, lun)).copied()
    }

    /// The highest volume number that was ever given.
    #[must_use]
    pub fn volume_number_last(&self) -> u32 {
        self.core.volume_number_last
    }

    /// The host that an NQN or iSCSI name belongs to.
    #[must_use]
    pub fn host_of_identity(&self, identity: &str) -> Option<HostId> {
        self.index.identities.get(identity).copied()
    }

    /// The credential whose secret has this hash.
    #[must_use]
    pub fn credential_of_verifier(&self, verifier: Hash) -> Option<(CredentialId, &Credential)> {
        self.credentials().find(|(_, credential)| credential.verifier == verifier)
    }

    /// Groups of which a node holds a side, ordered by id.
    pub fn groups_of_node(&self, node: NodeId) -> impl Iterator<Item = (GroupId, &Group)> + '_ {
        self.index
            .groups_of_node
            .range(node_range(node, GroupId(Uuid::nil()), GroupId(Uuid::max())))
            .filter_map(|(_, group)| Some((*group, self.group(*group)?)))
    }

    /// Legs that a node is to wipe, ordered by id.
    pub fn retired_of_node(&self, node: NodeId) -> impl Iterator<Item = (LegId, &Retired)> + '_ {
        self.index
            .retired_of_node
            .range(node_range(node, LegId(Uuid::nil()), LegId(Uuid::max())))
            .filter_map(|(_, leg)| Some((*leg, self.retired_leg(*leg)?)))
    }

    /// Devices of a pool, ordered by id.
    pub fn devices_of_pool(&self, pool: PoolId) -> impl Iterator<Item = (DeviceId, &Device)> + '_ {
        self.index
            .devices_of_pool
            .range((pool, DeviceId(Uuid::nil()))..=(pool, DeviceId(Uuid::max())))
            .filter_map(|(_, device)| Some((*device, self.device(*device)?)))
    }

    /// The volume that a leg is part of, unless it is retired.
    #[must_use]
    pub fn volume_of_leg(&self, leg: LegId) -> Option<(VolumeId, &Volume)> {
        match self.index.legs.get(&leg)? {
            LegHome::Volume(volume) => Some((*volume, self.volume(*volume)?)),
            LegHome::Retired => None,
        }
    }

    /// Whether this leg was named before and its extents are not free again.
    #[must_use]
    pub(super) fn leg_exists(&self, leg: LegId) -> bool {
        self.index.legs.get(&leg).is_some()
    }

    /// Where an actor used an idempotency key first, among the youngest [`KEYS_MAX`].
    #[must_use]
    pub fn key_use(&self, actor: &Actor, key: &str) -> Option<&KeyUse> {
        self.core.keys.get(&KeyId::new(actor, key)).map(|used| &**used)
    }

    /// Whether all legs of a group at a site have their headers.
    #[must_use]
    pub fn side_is_formatted(&self, group: &Group, site: SiteId) -> bool {
        group
            .volumes
            .iter()
            .filter_map(|volume| self.volume(*volume))
            .flat_map(|volume| &volume.legs)
            .filter(|leg| leg.site == site)
            .all(|leg| leg.formatted)
    }

    /// Whether any leg of a group at a site has its header.
    #[must_use]
    pub fn any_leg_is_formatted(&self, group: &Group, site: SiteId) -> bool {
        group
            .volumes
            .iter()
            .filter_map(|volume| self.volume(*volume))
            .flat_map(|volume| &volume.legs)
            .any(|leg| leg.site == site && leg.formatted)
    }

    /// Bytes in all and free bytes of a pool's adopted devices.
    #[must_use]
    pub fn pool_space(&self, id: PoolId) -> (u64, u64) {
        let Some(pool) = self.pool(id) else { return (0, 0) };
        let (total, free) = self
            .devices_of_pool(id)
            .filter_map(|(_, device)| device.extents())
            .fold((0, 0), |(total, free), extents| {
                (total + extents.total(), free + extents.free())
            });
        (total * pool.extent_bytes, free * pool.extent_bytes)
    }

    /// The state's bytes, for a snapshot. The same history gives the same bytes.
    ///
    /// # Panics
    /// Never: postcard cannot fail on these types when it writes to memory.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(&(SNAPSHOT_FORMAT, &self.core)).expect("the state is serialisable")
    }

    /// Reads a snapshot back.
    ///
    /// # Errors
    /// [`UnreadableSnapshot`] for damaged bytes or those of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnreadableSnapshot> {
        let unreadable = |error: postcard::Error| UnreadableSnapshot { cause: error.to_string() };
        let (format, rest) = postcard::take_from_bytes::<u32>(bytes).map_err(unreadable)?;
        if format != SNAPSHOT_FORMAT {
            let cause = format!("it has layout {format}, this version reads {SNAPSHOT_FORMAT}");
            return Err(UnreadableSnapshot { cause });
        }
        let (core, rest) = postcard::take_from_bytes::<Core>(rest).map_err(unreadable)?;
        if !rest.is_empty() {
            return Err(UnreadableSnapshot {
                cause: format!("{} bytes after its end", rest.len()),
            });
        }
        Ok(State { index: Index::of(&core), core })
    }

    /// SHA-256 of [`State::encode`]: equal exactly when the states are. Costs a pass over the
    /// state (some 30 MB for 100,000 volumes), so it belongs to checkpoints, not to every commit;
    /// a clone can be digested on another thread meanwhile.
    #[must_use]
    pub fn digest(&self) -> Hash {
        Hash::of(&self.encode())
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.core == other.core
    }
}

impl Eq for State {}

impl Device {
    /// Its extents, once adopted.
    #[must_use]
    pub fn extents(&self) -> Option<&FreeExtents> {
        match &self.adoption {
            Adoption::Adopted { extents, .. } => Some(extents),
            Adoption::Pending | Adoption::Rejected { .. } => None,
        }
    }
}

impl Group {
    /// Its side at a site.
    #[must_use]
    pub fn side(&self, site: SiteId) -> Option<&Side> {
        self.sides.iter().find(|side| side.site == site)
    }

    /// Its side on a node.
    #[must_use]
    pub fn side_of(&self, node: NodeId) -> Option<&Side> {
        self.sides.iter().find(|side| side.node == node)
    }

    /// The side that serves it.
    #[must_use]
    pub fn owner_side(&self) -> Option<&Side> {
        self.side_of(self.owner)
    }

    /// Whether all its sides are in sync.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.sides.iter().all(|side| side.in_sync)
    }
}

impl Leg {
    pub(super) fn new(placement: &LegPlacement) -> Self {
        Leg {
            leg: placement.leg,
            pool: placement.pool,
            site: placement.site,
            node: placement.node,
            formatted: false,
            runs: placement.runs.clone(),
        }
    }

    /// Where it lies, as events say it.
    #[must_use]
    pub fn placement(&self) -> LegPlacement {
        LegPlacement {
            leg: self.leg,
            pool: self.pool,
            site: self.site,
            node: self.node,
            runs: self.runs.clone(),
        }
    }
}

fn node_range<T: Copy>(node: NodeId, lowest: T, highest: T) -> RangeInclusive<(NodeId, T)> {
    (node, lowest)..=(node, highest)
}

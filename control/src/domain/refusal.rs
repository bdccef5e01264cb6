//! Why a command has no effect, and what to do about it.

use std::fmt;
use uuid::Uuid;
use voute_schemas::ids::*;
use voute_schemas::{Epoch, Name};

/// A kind of thing, as refusals name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the words are the vocabulary's")]
pub enum Noun {
    Credential,
    Device,
    Failover,
    Group,
    Host,
    Leg,
    Node,
    Policy,
    Pool,
    Site,
    Volume,
}

impl fmt::Display for Noun {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Noun::Credential => "credential",
            Noun::Device => "device",
            Noun::Failover => "failover",
            Noun::Group => "group",
            Noun::Host => "host",
            Noun::Leg => "leg",
            Noun::Node => "node",
            Noun::Policy => "policy",
            Noun::Pool => "pool",
            Noun::Site => "site",
            Noun::Volume => "volume",
        })
    }
}

/// A refusal. Its `Display` is for people, [`Refusal::code`] for programs.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Refusal {
    #[error("this log has no cluster yet: create one first")]
    NoCluster,
    #[error("this log already has the cluster {name}: start another one in another data directory")]
    ClusterExists { name: Name },
    #[error("another {noun} is named {name}: choose another name")]
    DuplicateName { noun: Noun, name: Name },
    #[error("the {noun} {id} exists already: let a new identifier be chosen")]
    DuplicateId { noun: Noun, id: Uuid },
    #[error("there is no {noun} {id}: list what there is with `voute {noun} list`")]
    Unknown { noun: Noun, id: Uuid },
    #[error("{noun} {name} is in use by {by}: remove that first")]
    InUse { noun: Noun, name: Name, by: String },
    #[error("{field} is not valid: {rule}")]
    Invalid { field: &'static str, rule: String },
    #[error("nothing would change: {what}")]
    Unchanged { what: String },

    #[error("another credential has the same secret: let a new one be made")]
    DuplicateSecret,
    #[error("{name} is the last administrator: issue another administrator credential first")]
    LastAdministrator { name: Name },

    #[error("there is no log site {name}: see them with `voute log-site list`")]
    NoSuchLogSite { name: String },
    #[error(
        "log site {name} is there already, or has this key: each has a name and a key of its own"
    )]
    LogSiteTaken { name: String },
    #[error(
        "{count} log sites would change at once: one may come or go with a commit, so that the majorities before and after have a site in common"
    )]
    LogSitesAtOnce { count: usize },
    #[error("the side vouched for its legs too long ago: asked again, it may vouch again")]
    VouchedLongAgo,

    #[error("site {site} is a witness, which holds no data: choose a data site")]
    WitnessHoldsNoData { site: Name },
    #[error("the cluster has {max} nodes, the most that it can have: remove one first")]
    NodesFull { max: u16 },
    #[error("node {node} already listens at {address}: give each listener an address of its own")]
    AddressTaken { node: Name, address: std::net::SocketAddr },
    #[error("device {device} is already made of {place}: one place holds one device")]
    LocatorTaken { device: Name, place: String },
    #[error("node {node} is not at the site of pool {pool}: choose a pool of the node's site")]
    PoolElsewhere { node: Name, pool: Name },

    #[error("a volume has one or two legs, {count} were asked for")]
    LegCount { count: usize },
    #[error(
        "both legs would be at site {site}: choose pools of two sites, so that one can be lost"
    )]
    SitesNotDistinct { site: Name },
    #[error(
        "pool {pool} has too little free space at any one node: {needed_bytes} bytes are needed, {free_bytes} are free at the node that has most; add a device or choose another pool"
    )]
    PoolFull { pool: Name, needed_bytes: u64, free_bytes: u64 },
    #[error(
        "pool {pool} has free space only on devices with logical blocks of {device_block_bytes} bytes, larger than the volume's {block_bytes}: choose larger blocks for the volume or another pool"
    )]
    BlockTooLarge { pool: Name, device_block_bytes: u32, block_bytes: u32 },
    #[error(
        "the free space of pool {pool} is in too many pieces for one leg of {needed_bytes} bytes: add a device, choose another pool or a smaller volume"
    )]
    PoolFragmented { pool: Name, needed_bytes: u64 },
    #[error(
        "a volume of {size_bytes} bytes is not possible: sizes are multiples of {unit} from {unit} to {max} bytes"
    )]
    VolumeSize { size_bytes: u64, unit: u64, max: u64 },
    #[error(
        "volume {volume} has {current_bytes} bytes: it can only grow, {size_bytes} were asked for"
    )]
    NotLarger { volume: Name, current_bytes: u64, size_bytes: u64 },
    #[error("the cluster has used up its {max} volume numbers: found another cluster")]
    VolumeNumbersUsedUp { max: u32 },
    #[error(
        "volume {volume} is mapped to {hosts} host(s), {first} among them: remove its mappings first (`voute mapping remove`)"
    )]
    Mapped { volume: Name, hosts: usize, first: Name },
    #[error(
        "a host used volume {volume} {minutes} minute(s) ago: wait until it was unused for {wait_minutes} minutes, or force"
    )]
    RecentlyUsed { volume: Name, minutes: u64, wait_minutes: u64 },
    #[error(
        "whether a host uses volume {volume} is not known, since this control process does not hear its owner: ask when its node is heard, or at another control process, or force"
    )]
    UseUnknown { volume: Name },

    #[error("volume {volume} has two legs already: remove one first")]
    LegsFull { volume: Name },
    #[error("volume {volume} has a leg at site {site} already: choose a pool of another site")]
    LegAtSite { volume: Name, site: Name },
    #[error(
        "leg {leg} is not one of volume {volume}: see its legs with `voute volume show {volume}`"
    )]
    NotItsLeg { volume: Name, leg: LegId },
    #[error(
        "leg {leg} is the last in-sync one of volume {volume}: delete the volume instead, or add a leg and let it come in sync first"
    )]
    LastLeg { volume: Name, leg: LegId },
    #[error(
        "leg {leg} belongs to the side that owns the volume: move its group {group} to the other side first"
    )]
    OwnersLeg { group: GroupId, leg: LegId },

    #[error("another host, {host}, has the name {identity}: one name belongs to one host")]
    IdentityTaken { host: Name, identity: String },
    #[error("volume {volume} is mapped to host {host} already, as LUN {lun}")]
    AlreadyMapped { volume: Name, host: Name, lun: u16 },
    #[error("volume {volume} is not mapped to host {host}")]
    NotMapped { volume: Name, host: Name },
    #[error(
        "host {host} has volume {volume} as LUN {lun}: choose another LUN, or none to get a free one"
    )]
    LunTaken { host: Name, lun: u16, volume: Name },
    #[error("host {host} uses all LUNs up to {max}: unmap a volume first")]
    LunsFull { host: Name, max: u16 },

    #[error("group {group} has no side at site {site}")]
    NoSuchSide { group: GroupId, site: Name },
    #[error("group {group} is owned at site {site} already")]
    AlreadyOwner { group: GroupId, site: Name },
    #[error("the side of group {group} at site {site} is not in sync: wait for its resync")]
    NotInSync { group: GroupId, site: Name },
    #[error(
        "the legs of group {group} at site {site} are not all formatted yet: wait for their node"
    )]
    NotFormatted { group: GroupId, site: Name },
    #[error("no host moves group {group} now, since {why}: `voute volume move` does")]
    HostsMayNotMove { group: GroupId, why: String },
    #[error("nothing can move away from site {site}: {why}")]
    NothingToMove { site: Name, why: String },

    #[error(
        "group {group} is at epoch {current}, the request was decided at {stale}: obey the newer spec first"
    )]
    StaleEpoch { group: GroupId, current: Epoch, stale: Epoch },
    #[error(
        "group {group} is owned by node {owner}, not by {node}: only its owner may ask for this"
    )]
    NotOwner { group: GroupId, owner: NodeId, node: NodeId },
    #[error("{noun} {id} does not belong to node {node}")]
    NotYours { noun: Noun, id: Uuid, node: NodeId },
    #[error(
        "start {confirmed} of node {node} was confirmed for group {group}, this is start {incarnation}: another process or a restored copy of this node runs; find out which is genuine"
    )]
    StaleIncarnation { group: GroupId, node: NodeId, confirmed: u64, incarnation: u64 },
    #[error(
        "group {group} has no other side in sync that could take over: repair its device, or wait for the resync"
    )]
    NoOtherSide { group: GroupId },
    #[error("the owner of group {group} cannot detach its own side: it must hand over")]
    OwnSide { group: GroupId },
    #[error("leg {leg} was retired: obey the newer spec first")]
    LegRetired { leg: LegId },
    #[error("leg {leg} is in use and must not be wiped: obey the newer spec first")]
    LegInUse { leg: LegId },
    #[error(
        "device {device} was adopted with {extents} extents and blocks of {block_bytes} bytes, now it offers others: check that its node found the right device"
    )]
    DeviceChanged { device: Name, extents: u64, block_bytes: u32 },
}

impl Refusal {
    /// Stable word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::NoCluster => "no-cluster",
            Refusal::ClusterExists { .. } => "cluster-exists",
            Refusal::DuplicateName { .. } => "duplicate-name",
            Refusal::DuplicateId { .. } => "duplicate-id",
            Refusal::Unknown { .. } => "unknown-id",
            Refusal::InUse { .. } => "in-use",
            Refusal::Invalid { .. } => "invalid",
            Refusal::Unchanged { .. } => "unchanged",
            Refusal::DuplicateSecret => "duplicate-secret",
            Refusal::LastAdministrator { .. } => "last-administrator",
            Refusal::NoSuchLogSite { .. } => "unknown-log-site",
            Refusal::LogSiteTaken { .. } => "log-site-taken",
            Refusal::LogSitesAtOnce { .. } => "log-sites-at-once",
            Refusal::VouchedLongAgo => "not-vouched",
            Refusal::WitnessHoldsNoData { .. } => "witness-holds-no-data",
            Refusal::NodesFull { .. } => "nodes-full",
            Refusal::AddressTaken { .. } => "address-taken",
            Refusal::LocatorTaken { .. } => "locator-taken",
            Refusal::PoolElsewhere { .. } => "pool-elsewhere",
            Refusal::LegCount { .. } => "leg-count",
            Refusal::SitesNotDistinct { .. } => "sites-not-distinct",
            Refusal::PoolFull { .. } => "pool-full",
            Refusal::BlockTooLarge { .. } => "block-too-large",
            Refusal::PoolFragmented { .. } => "pool-fragmented",
            Refusal::VolumeSize { .. } => "volume-size",
            Refusal::NotLarger { .. } => "not-larger",
            Refusal::VolumeNumbersUsedUp { .. } => "volume-numbers-used-up",
            Refusal::Mapped { .. } => "mapped",
            Refusal::RecentlyUsed { .. } => "recently-used",
            Refusal::UseUnknown { .. } => "use-unknown",
            Refusal::LegsFull { .. } => "legs-full",
            Refusal::LegAtSite { .. } => "leg-at-site",
            Refusal::NotItsLeg { .. } => "not-its-leg",
            Refusal::LastLeg { .. } => "last-leg",
            Refusal::OwnersLeg { .. } => "owners-leg",
            Refusal::IdentityTaken { .. } => "identity-taken",
            Refusal::AlreadyMapped { .. } => "already-mapped",
            Refusal::NotMapped { .. } => "not-mapped",
            Refusal::LunTaken { .. } => "lun-taken",
            Refusal::LunsFull { .. } => "luns-full",
            Refusal::NoSuchSide { .. } => "no-such-side",
            Refusal::AlreadyOwner { .. } => "already-owner",
            Refusal::NotInSync { .. } => "not-in-sync",
            Refusal::NotFormatted { .. } => "not-formatted",
            Refusal::HostsMayNotMove { .. } => "hosts-may-not-move",
            Refusal::NothingToMove { .. } => "nothing-to-move",
            Refusal::StaleEpoch { .. } => "stale-epoch",
            Refusal::NotOwner { .. } => "not-owner",
            Refusal::NotYours { .. } => "not-yours",
            Refusal::StaleIncarnation { .. } => "stale-incarnation",
            Refusal::NoOtherSide { .. } => "no-other-side",
            Refusal::OwnSide { .. } => "own-side",
            Refusal::LegRetired { .. } => "leg-retired",
            Refusal::LegInUse { .. } => "leg-in-use",
            Refusal::DeviceChanged { .. } => "device-changed",
        }
    }
}

//! What happened: the immutable facts of the log.
//!
//! Append new variants at the end; never reorder, remove, or change a field of one that exists
//! (`golden/` and its test hold every variant's bytes for ever).

use crate::ids::*;
use crate::name::Name;
use crate::place::{LegPlacement, Locator, Portals};
use crate::position::Hash;
use crate::proof::Verifier;
use serde::{Deserialize, Serialize};

/// One fact. Its epoch-changing variants say so; the commit that holds one becomes the group's
/// new epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Event {
    /// The log began.
    ClusterCreated {
        /// Its id.
        cluster: ClusterId,
        /// Its name.
        name: Name,
        /// Key of the log site that signs checkpoints.
        log_site: Verifier,
    },
    /// Every process may from here on write events of this level.
    ClusterLevelRaised {
        /// The level, from 1.
        level: u32,
    },
    /// A bearer credential was issued.
    CredentialIssued {
        /// Its id.
        credential: CredentialId,
        /// Its name.
        name: Name,
        /// What it may do.
        role: Role,
        /// SHA-256 of the secret.
        verifier: Hash,
    },
    /// A credential ended.
    CredentialRevoked {
        /// Which.
        credential: CredentialId,
    },
    /// A site was added.
    SiteAdded {
        /// Its id.
        site: SiteId,
        /// Its name.
        name: Name,
        /// Whether it holds data.
        kind: SiteKind,
    },
    /// A site without nodes and pools was removed.
    SiteRemoved {
        /// Which.
        site: SiteId,
    },
    /// A site's condition was observed or signalled.
    SiteConditionReported {
        /// Which.
        site: SiteId,
        /// What.
        condition: SiteCondition,
        /// By whom.
        source: ConditionSource,
        /// In words.
        detail: String,
    },
    /// A node was admitted.
    NodeAdded {
        /// Its id.
        node: NodeId,
        /// Its name.
        name: Name,
        /// Its site.
        site: SiteId,
        /// Where it listens.
        portals: Portals,
        /// Small number, unique in the cluster: base of its controller ids and portal group tag.
        number: u16,
        /// SHA-256 of the secret with which it joins its contract stream.
        verifier: Hash,
    },
    /// A node listens elsewhere.
    NodePortalsChanged {
        /// Which.
        node: NodeId,
        /// Where.
        portals: Portals,
    },
    /// A node without devices was removed.
    NodeRemoved {
        /// Which.
        node: NodeId,
    },
    /// A pool was created.
    PoolCreated {
        /// Its id.
        pool: PoolId,
        /// Its name.
        name: Name,
        /// Its site.
        site: SiteId,
        /// Unit of allocation, bytes; a multiple of 1 MiB.
        extent_bytes: u64,
    },
    /// A pool without devices was removed.
    PoolRemoved {
        /// Which.
        pool: PoolId,
    },
    /// A device is to be adopted by its node.
    DeviceAdded {
        /// Its id.
        device: DeviceId,
        /// Its name.
        name: Name,
        /// Its node.
        node: NodeId,
        /// Its pool.
        pool: PoolId,
        /// Where it is.
        locator: Locator,
        /// Adopt it even if it holds foreign data.
        overwrite: bool,
    },
    /// The node wrote its header; the device's extents can be allocated.
    DeviceAdopted {
        /// Which.
        device: DeviceId,
        /// Usable extents.
        extents: u64,
        /// Logical block, bytes.
        block_bytes: u32,
    },
    /// The node would not take it.
    DeviceRejected {
        /// Which.
        device: DeviceId,
        /// Why.
        cause: String,
    },
    /// A device without legs was removed.
    DeviceRemoved {
        /// Which.
        device: DeviceId,
    },
    /// A failover policy was created.
    PolicyCreated {
        /// Its id.
        policy: PolicyId,
        /// Its name.
        name: Name,
        /// Its rules.
        rules: PolicyRules,
    },
    /// A policy got other rules.
    PolicyChanged {
        /// Which.
        policy: PolicyId,
        /// Its rules.
        rules: PolicyRules,
    },
    /// A policy that no group uses was removed.
    PolicyRemoved {
        /// Which.
        policy: PolicyId,
    },
    /// A volume was created with a group of its own, whose epoch this commit is. Its legs are to be
    /// formatted; once all are, it can be served.
    VolumeCreated {
        /// Its id.
        volume: VolumeId,
        /// Its name.
        name: Name,
        /// Its group's id.
        group: GroupId,
        /// Small number, unique for ever in the cluster: its NVMe NSID and ANA group.
        number: u32,
        /// Its size, bytes.
        size_bytes: u64,
        /// Its logical block, bytes: 512 or 4096.
        block_bytes: u32,
        /// One or two legs, at different sites.
        legs: Vec<LegPlacement>,
        /// The side that serves it.
        owner: NodeId,
        /// The rules for failing it over; `None` for manual only.
        policy: Option<PolicyId>,
    },
    /// A volume grew.
    VolumeResized {
        /// Which.
        volume: VolumeId,
        /// Its new size, bytes.
        size_bytes: u64,
        /// Its legs with all their runs; the old runs come first, unchanged.
        legs: Vec<LegPlacement>,
    },
    /// A volume was deleted; its legs are to be released.
    VolumeDeleted {
        /// Which.
        volume: VolumeId,
    },
    /// A node wrote the header of a new leg.
    LegFormatted {
        /// Which.
        leg: LegId,
    },
    /// A leg was added, not in sync, to be formatted and resynced. **New epoch** of its group.
    LegAdded {
        /// To which volume.
        volume: VolumeId,
        /// Where.
        placement: LegPlacement,
    },
    /// A leg that was not in sync was taken from its volume, to be released.
    LegRemoved {
        /// From which volume.
        volume: VolumeId,
        /// Which.
        leg: LegId,
    },
    /// The node drained and wiped a leg; its extents are free.
    LegReleased {
        /// Which.
        leg: LegId,
    },
    /// A side left the in-sync set. **New epoch.**
    LegDetached {
        /// Which group.
        group: GroupId,
        /// The side's site.
        site: SiteId,
        /// Why.
        cause: DetachCause,
    },
    /// A side joined the in-sync set. **New epoch.**
    LegInSync {
        /// Which group.
        group: GroupId,
        /// The side's site.
        site: SiteId,
        /// What it took.
        resync: ResyncEvidence,
    },
    /// Another side owns the group. **New epoch.**
    OwnerMoved {
        /// Which group.
        group: GroupId,
        /// From this node.
        from: NodeId,
        /// To this node.
        to: NodeId,
        /// Planned or not. An unplanned move takes the old side out of the in-sync set.
        kind: MoveKind,
    },
    /// The control plane confirmed to a starting owner that it still owns the group.
    OwnerConfirmed {
        /// Which group.
        group: GroupId,
        /// The owner.
        node: NodeId,
        /// Its start.
        incarnation: u64,
    },
    /// A host was added.
    HostAdded {
        /// Its id.
        host: HostId,
        /// Its name.
        name: Name,
        /// How it may be recognised.
        identity: HostIdentity,
    },
    /// A host is recognised otherwise.
    HostChanged {
        /// Which.
        host: HostId,
        /// How.
        identity: HostIdentity,
    },
    /// A host without mappings was removed.
    HostRemoved {
        /// Which.
        host: HostId,
    },
    /// A volume was granted to a host.
    VolumeMapped {
        /// The volume.
        volume: VolumeId,
        /// The host.
        host: HostId,
        /// Its iSCSI LUN there.
        lun: u16,
        /// Whether writes are refused.
        read_only: bool,
    },
    /// A grant ended.
    VolumeUnmapped {
        /// The volume.
        volume: VolumeId,
        /// The host.
        host: HostId,
    },
    /// A site's failover was decided. The moves are in the same commit.
    FailoverDecided {
        /// Its id.
        failover: FailoverId,
        /// The site that is left.
        site: SiteId,
        /// What was known and why it was decided.
        evidence: FailoverEvidence,
    },
    /// What a failover took.
    FailoverMeasured {
        /// Which.
        failover: FailoverId,
        /// Its phases.
        phases: FailoverPhases,
    },
    /// Other sites sign checkpoints from here on: a majority of these.
    LogSitesChanged {
        /// All of them.
        sites: Vec<Verifier>,
    },
    /// A log site that had lost its register began a new one with what the others had signed.
    LogSiteReseeded {
        /// The site.
        name: String,
        /// Commits that its register begins with.
        size: u64,
        /// Their root.
        root: Hash,
    },
    /// The legs of a volume are to be compared, region by region, by its owner. This commit names
    /// the run.
    VerifyRequested {
        /// Which.
        volume: VolumeId,
        /// Whether a leg that differs is to get what the owner's leg holds.
        repair: bool,
        /// When, milliseconds since 1970.
        requested_unix_ms: u64,
    },
    /// A comparison came to its end.
    VolumeVerified {
        /// Which.
        volume: VolumeId,
        /// Number of the commit that asked for it.
        run: u64,
        /// What was found.
        evidence: VerifyEvidence,
    },
    /// No copy of these blocks can be read any more. Each leg says so when they are read, until they
    /// are written.
    BlocksLost {
        /// Of which volume.
        volume: VolumeId,
        /// Where, at most 32 ranges.
        ranges: Vec<BlockRange>,
    },
    /// How often each mirrored volume is to be compared.
    ScrubScheduled {
        /// Hours from the begin of one comparison to the begin of the next; `None`: only when told.
        every_hours: Option<u32>,
        /// Whether legs that differ are to be repaired.
        repair: bool,
    },
    /// A host must prove other secrets over NVMe, or none.
    HostKeysChanged {
        /// Which.
        host: HostId,
        /// Which secrets.
        keys: HostKeys,
    },
    /// A volume tells hosts otherwise how it keeps its blocks.
    VolumePresented {
        /// Which.
        volume: VolumeId,
        /// How.
        presentation: Presentation,
    },
}

/// What a credential may do.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, utoipa::ToSchema,
)]
pub enum Role {
    /// Reads the state.
    Viewer,
    /// Reads the state and the whole trail.
    Auditor,
    /// Operates volumes, legs, hosts, mappings and failovers.
    Operator,
    /// Everything.
    Administrator,
}

/// Whether a site holds data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum SiteKind {
    /// It has nodes and pools.
    Data,
    /// It only votes.
    Witness,
}

/// What can be the matter with a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum SiteCondition {
    /// All is well; ends whatever was reported before.
    Normal,
    /// Its nodes are silent.
    Lost,
    /// It lost its power, or is about to.
    PowerLost,
    /// It burns.
    Fire,
    /// Its cooling failed.
    CoolingLost,
    /// It is being worked on.
    Maintenance,
    /// Its links are poor.
    LinkDegraded,
}

/// Who said so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum ConditionSource {
    /// The site watcher.
    Watcher,
    /// A signal from outside.
    Signal,
}

/// When a group moves by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum FailoverMode {
    /// On loss of a site, and on signals.
    Automatic,
    /// Only on signals.
    OnSignal,
    /// Only when told.
    Manual,
}

/// The rules of a policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PolicyRules {
    /// When it moves by itself.
    pub mode: FailoverMode,
    /// Milliseconds that a site must be silent beyond detection, before it is failed over.
    pub hold_down_ms: u64,
    /// Where the group should live.
    pub preferred_site: Option<SiteId>,
    /// Whether it moves back by itself once its preferred site is in sync again.
    pub failback: bool,
}

/// Why a side left the in-sync set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum DetachCause {
    /// It could not be reached or did not answer in time.
    Unreachable,
    /// Its device failed.
    DeviceError {
        /// In words.
        detail: String,
    },
    /// Its content is gone (memory of an ended process, a replaced device); it must be formatted again.
    ContentLost,
    /// It was told to.
    Requested,
}

/// How a resync went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResyncEvidence {
    /// Whether everything was copied, because no map could be trusted.
    pub full: bool,
    /// Regions copied.
    pub regions: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Milliseconds from its begin.
    pub duration_ms: u64,
}

/// Blocks of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BlockRange {
    /// Where, bytes from the volume's begin.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// What a comparison of a volume's legs found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VerifyEvidence {
    /// Regions compared.
    pub regions: u64,
    /// Bytes compared.
    pub bytes: u64,
    /// Regions that differed, twice read.
    pub differing_regions: u64,
    /// The first of them, at most 32: from the first byte that differs to the last.
    pub differing: Vec<BlockRange>,
    /// Regions of those that got what the owner's leg holds.
    pub repaired_regions: u64,
    /// Bytes that one leg could not read and got from the other.
    pub mended_bytes: u64,
    /// Bytes that neither leg can read.
    pub lost_bytes: u64,
    /// Milliseconds from its begin.
    pub duration_ms: u64,
}

/// Why an owner moved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum MoveKind {
    /// Both sides stay in sync.
    Planned,
    /// The old side is lost and leaves the in-sync set.
    Unplanned {
        /// What the new side vouched for.
        attestation: Attestation,
    },
    /// The old side asked to be replaced, since its own leg failed; it leaves the in-sync set.
    HandedOver {
        /// In words.
        cause: String,
    },
    /// A host asked for it (SET TARGET PORT GROUPS). Both sides stay in sync.
    AskedByHost {
        /// Which, if its name was known then.
        host: Option<HostId>,
    },
}

/// What a side vouches for before it may take over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Attestation {
    /// Its legs are open and in sync as far as it knows.
    pub legs_open: bool,
    /// It no longer hears the owner.
    pub owner_silent: bool,
    /// Its last grant to the owner has run out.
    pub lease_expired: bool,
    /// Milliseconds since it last heard the owner.
    pub silent_ms: u64,
}

/// How a host is recognised.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostIdentity {
    /// NVMe qualified names.
    pub nqns: Vec<String>,
    /// iSCSI names.
    pub iqns: Vec<String>,
    /// Name of the secret, in the control plane's secret store, that it must prove by CHAP.
    pub chap_secret: Option<Name>,
}

/// Names of the secrets, in the control plane's secret store, that a host and the target prove to each
/// other over NVMe (DH-HMAC-CHAP).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostKeys {
    /// What the host must prove on every connection; nothing: it is known by its name alone.
    pub secret: Option<Name>,
    /// What the target proves to it, if it asks.
    pub target_secret: Option<Name>,
}

/// What a volume tells hosts of how it keeps its blocks. How it does keep them does not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Presentation {
    /// Blocks that were never written or were freed count as having no room of their own (thin). Otherwise
    /// room is told to be set aside for every block.
    pub thin: bool,
    /// The block by which hosts are to align, bytes; nothing: the volume's own.
    pub physical_block_bytes: Option<u32>,
}

/// What a failover was decided on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FailoverEvidence {
    /// The condition.
    pub condition: SiteCondition,
    /// In words: what was seen, when.
    pub observed: String,
    /// Wall time of the first sign, milliseconds since 1970.
    pub first_sign_unix_ms: u64,
    /// Wall time of the decision.
    pub decided_unix_ms: u64,
    /// Groups that could not move, and why, at most 100 named.
    pub left_behind: Vec<LeftBehind>,
    /// How many could not move in all.
    pub left_behind_total: u64,
}

/// A group that stays down.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LeftBehind {
    /// Which.
    pub group: GroupId,
    /// Why.
    pub cause: String,
}

/// The measured phases of a failover, milliseconds each, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FailoverPhases {
    /// From the first sign to the decision, the lease wait of the attestation in it.
    pub detection_ms: u64,
    /// From the decision to its commit.
    pub commit_ms: u64,
    /// From the commit until old leases had run out at the new owner.
    pub lease_wait_ms: u64,
    /// From there until the new owner served.
    pub open_ms: u64,
    /// From there to the first request of a host.
    pub first_io_ms: Option<u64>,
    /// Groups that were served again.
    pub groups: u64,
}

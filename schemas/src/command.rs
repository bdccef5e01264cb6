//! What can be asked for. Identifiers of new things are chosen by who asks (the API fills them in),
//! so that deciding stays pure and a repeated command means the same.

use crate::event::*;
use crate::ids::*;
use crate::name::Name;
use crate::place::{Locator, Portals};
use crate::position::{Epoch, Hash};
use crate::proof::Verifier;
use serde::{Deserialize, Serialize};

/// When a host used a volume last, as far as the process that is asked knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum LastUse {
    /// Its owner is not heard, or did not speak of it since it became owner.
    Unknown,
    /// Not since its owner was started.
    Never,
    /// Then, milliseconds since 1970.
    At(u64),
}

/// One request to change the state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "fields are those of the events that they lead to")]
pub enum Command {
    // --- genesis and access
    CreateCluster {
        cluster: ClusterId,
        name: Name,
        log_site: Verifier,
    },
    IssueCredential {
        credential: CredentialId,
        name: Name,
        role: Role,
        verifier: Hash,
    },
    RevokeCredential {
        credential: CredentialId,
    },
    ChangeLogSites {
        add: Vec<Verifier>,
        remove: Vec<String>,
    },
    RecordReseeding {
        name: String,
        size: u64,
        root: Hash,
    },
    // --- sites, nodes, devices, pools
    AddSite {
        site: SiteId,
        name: Name,
        kind: SiteKind,
    },
    RemoveSite {
        site: SiteId,
    },
    ReportSiteCondition {
        site: SiteId,
        condition: SiteCondition,
        source: ConditionSource,
        detail: String,
    },
    AddNode {
        node: NodeId,
        name: Name,
        site: SiteId,
        portals: Portals,
        verifier: Hash,
    },
    ChangeNodePortals {
        node: NodeId,
        portals: Portals,
    },
    RemoveNode {
        node: NodeId,
    },
    CreatePool {
        pool: PoolId,
        name: Name,
        site: SiteId,
        extent_bytes: u64,
    },
    RemovePool {
        pool: PoolId,
    },
    AddDevice {
        device: DeviceId,
        name: Name,
        node: NodeId,
        pool: PoolId,
        locator: Locator,
        overwrite: bool,
    },
    RemoveDevice {
        device: DeviceId,
    },
    // --- policies
    CreatePolicy {
        policy: PolicyId,
        name: Name,
        rules: PolicyRules,
    },
    ChangePolicy {
        policy: PolicyId,
        rules: PolicyRules,
    },
    RemovePolicy {
        policy: PolicyId,
    },
    // --- volumes and legs
    /// Pools in order of preference: the first holds the first owner. One leg per pool.
    CreateVolume {
        volume: VolumeId,
        group: GroupId,
        name: Name,
        size_bytes: u64,
        block_bytes: u32,
        legs: Vec<LegRequest>,
        policy: Option<PolicyId>,
    },
    ResizeVolume {
        volume: VolumeId,
        size_bytes: u64,
    },
    PresentVolume {
        volume: VolumeId,
        presentation: Presentation,
    },
    /// Refused for a volume that is mapped; and, unless forced, for one that a host used in the last 15
    /// minutes, or of which that is not known.
    DeleteVolume {
        volume: VolumeId,
        force: bool,
        last_used: LastUse,
        now_unix_ms: u64,
    },
    AddLeg {
        volume: VolumeId,
        leg: LegRequest,
    },
    RemoveLeg {
        volume: VolumeId,
        leg: LegId,
    },
    VerifyVolume {
        volume: VolumeId,
        repair: bool,
        now_unix_ms: u64,
    },
    ScheduleScrub {
        every_hours: Option<u32>,
        repair: bool,
    },
    // --- hosts and mappings
    AddHost {
        host: HostId,
        name: Name,
        identity: HostIdentity,
    },
    ChangeHost {
        host: HostId,
        identity: HostIdentity,
    },
    ChangeHostKeys {
        host: HostId,
        keys: HostKeys,
    },
    RemoveHost {
        host: HostId,
    },
    MapVolume {
        volume: VolumeId,
        host: HostId,
        lun: Option<u16>,
        read_only: bool,
    },
    UnmapVolume {
        volume: VolumeId,
        host: HostId,
    },
    // --- authority
    /// Planned: both sides stay in sync.
    MoveOwner {
        group: GroupId,
        to: SiteId,
    },
    /// Groups that a site owns, at most as many as one commit takes, go to their other, in-sync,
    /// attested sides.
    FailOverSite {
        failover: FailoverId,
        site: SiteId,
        evidence: FailoverEvidence,
        attested: Vec<AttestedGroup>,
    },
    RecordFailover {
        failover: FailoverId,
        phases: FailoverPhases,
    },
    /// What a node asks for, in one batch.
    Escalate {
        node: NodeId,
        requests: Vec<Escalation>,
    },
}

/// A leg to be allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "see the type")]
pub struct LegRequest {
    pub leg: LegId,
    pub pool: PoolId,
}

/// A group whose other side vouched that it can take over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "see the type")]
pub struct AttestedGroup {
    pub group: GroupId,
    pub epoch: Epoch,
    pub to: NodeId,
    pub attestation: Attestation,
}

/// What a node asks the log for. Those that change authority name the epoch that they were decided
/// at; at another epoch they are refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "fields are those of the events that they lead to")]
pub enum Escalation {
    /// A device's header is written.
    DeviceReady { device: DeviceId, size_bytes: u64, block_bytes: u32 },
    /// A device was not taken.
    DeviceRefused { device: DeviceId, cause: String },
    /// A new leg's header is written.
    LegFormatted { leg: LegId },
    /// A retired leg is drained and wiped.
    LegReleased { leg: LegId },
    /// By the owner: take a failed side out.
    DetachSide { group: GroupId, epoch: Epoch, site: SiteId, cause: DetachCause },
    /// By the owner: a resynced side counts again.
    JoinSide { group: GroupId, epoch: Epoch, site: SiteId, resync: ResyncEvidence },
    /// By the owner: my own leg failed, let the other in-sync side own.
    HandOver { group: GroupId, epoch: Epoch, cause: String },
    /// By an owner that starts: confirm that I still own.
    ConfirmOwner { group: GroupId, epoch: Epoch, incarnation: u64 },
    /// By the owner: a comparison of a volume's legs came to its end.
    Verified { group: GroupId, epoch: Epoch, volume: VolumeId, run: u64, evidence: VerifyEvidence },
    /// By the owner: no copy of these blocks can be read.
    BlocksLost { group: GroupId, epoch: Epoch, volume: VolumeId, ranges: Vec<BlockRange> },
    /// By a node with an in-sync side: the host of this iSCSI name wants it to own (SET TARGET PORT GROUPS).
    WantOwner { group: GroupId, epoch: Epoch, host: String },
}

impl Command {
    /// The command's name, as it stands in commits.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Command::CreateCluster { .. } => "CreateCluster",
            Command::IssueCredential { .. } => "IssueCredential",
            Command::RevokeCredential { .. } => "RevokeCredential",
            Command::ChangeLogSites { .. } => "ChangeLogSites",
            Command::RecordReseeding { .. } => "RecordReseeding",
            Command::AddSite { .. } => "AddSite",
            Command::RemoveSite { .. } => "RemoveSite",
            Command::ReportSiteCondition { .. } => "ReportSiteCondition",
            Command::AddNode { .. } => "AddNode",
            Command::ChangeNodePortals { .. } => "ChangeNodePortals",
            Command::RemoveNode { .. } => "RemoveNode",
            Command::CreatePool { .. } => "CreatePool",
            Command::RemovePool { .. } => "RemovePool",
            Command::AddDevice { .. } => "AddDevice",
            Command::RemoveDevice { .. } => "RemoveDevice",
            Command::CreatePolicy { .. } => "CreatePolicy",
            Command::ChangePolicy { .. } => "ChangePolicy",
            Command::RemovePolicy { .. } => "RemovePolicy",
            Command::CreateVolume { .. } => "CreateVolume",
            Command::ResizeVolume { .. } => "ResizeVolume",
            Command::PresentVolume { .. } => "PresentVolume",
            Command::DeleteVolume { .. } => "DeleteVolume",
            Command::AddLeg { .. } => "AddLeg",
            Command::RemoveLeg { .. } => "RemoveLeg",
            Command::VerifyVolume { .. } => "VerifyVolume",
            Command::ScheduleScrub { .. } => "ScheduleScrub",
            Command::AddHost { .. } => "AddHost",
            Command::ChangeHost { .. } => "ChangeHost",
            Command::ChangeHostKeys { .. } => "ChangeHostKeys",
            Command::RemoveHost { .. } => "RemoveHost",
            Command::MapVolume { .. } => "MapVolume",
            Command::UnmapVolume { .. } => "UnmapVolume",
            Command::MoveOwner { .. } => "MoveOwner",
            Command::FailOverSite { .. } => "FailOverSite",
            Command::RecordFailover { .. } => "RecordFailover",
            Command::Escalate { .. } => "Escalate",
        }
    }
}

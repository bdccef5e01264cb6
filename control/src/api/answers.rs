//! What clients get: the bodies of the API's answers. Names stand beside identifiers, so that a
//! client need not look them up.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use voute_schemas::contract::{
    GroupRole, LegState, LinkStatus, OpeningReport, ResyncProgress, VerifyProgress,
};
use voute_schemas::event::{
    BlockRange, Event, FailoverEvidence, FailoverPhases, PolicyRules, Presentation, Role,
    SiteCondition, SiteKind, VerifyEvidence,
};
use voute_schemas::ids::*;
use voute_schemas::place::{Locator, Portals};
use voute_schemas::proof::Verifier;
use voute_schemas::{Commit, Epoch, Hash, Name, Token};

/// Any failure.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Stable word for programs, e.g. `duplicate-name`.
    pub code: String,
    /// What is the matter, for people.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// The commit that records the refusal, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// What a changing request did, or would do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// Whether this is only a plan: nothing was committed.
    pub plan: bool,
    /// Number of the commit.
    pub sequence: Option<u64>,
    /// Identifier of the commit.
    pub commit: Option<CommitId>,
    /// Its events.
    pub events: Vec<Event>,
    /// Identifier of what was created.
    pub created: Option<String>,
    /// A new node's secret or a new credential's token. Shown this once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Whether this repeats the answer to an earlier request with the same idempotency key.
    pub repeated: bool,
    /// What to know about it.
    pub warnings: Vec<String>,
}

/// One page of a list.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, by name.
    pub items: Vec<T>,
    /// `after` of the next page; nothing at the end.
    pub next: Option<String>,
}

/// Something by identifier and name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Named {
    /// Identifier.
    pub id: String,
    /// Name, or the identifier again if it has gone.
    pub name: String,
}

/// `GET /v1/cluster`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ClusterView {
    /// Its id.
    pub cluster: ClusterId,
    /// Its name.
    pub name: Name,
    /// Level of events that may be written.
    pub level: u32,
    /// Last commit.
    pub head: Epoch,
    /// Digest of the state there.
    pub digest: Hash,
    /// Keys that sign checkpoints.
    pub verifiers: Vec<Verifier>,
    /// Newest signed checkpoint (C2SP tlog-checkpoint).
    pub checkpoint: String,
    /// Subsystem that NVMe hosts connect to.
    pub subsystem_nqn: String,
    /// Target that iSCSI hosts log in to.
    pub target_iqn: String,
}

/// A site of the log, whose control process signs checkpoints.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogSiteView {
    /// Its name.
    pub name: String,
    /// Its key, as other tools of signed notes read it.
    pub key: String,
    /// Commits that it has vouched for, as far as this control process heard.
    pub signed: u64,
    /// When it was heard last, milliseconds ago; nothing: not since this control process started.
    pub heard_ms_ago: Option<u64>,
    /// Whether it takes part now.
    pub heard: bool,
}

/// A site.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SiteView {
    /// Its id.
    pub site: SiteId,
    /// Its name.
    pub name: Name,
    /// Whether it holds data.
    pub kind: SiteKind,
    /// Its reported condition.
    pub condition: SiteCondition,
    /// Its nodes.
    pub nodes: usize,
    /// Those that are heard.
    pub nodes_heard: usize,
    /// Groups owned by its nodes.
    pub groups_owned: usize,
}

/// A node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Its site.
    pub site: Named,
    /// Its small number.
    pub number: u16,
    /// Where it listens.
    pub portals: Portals,
    /// What is observed; nothing if it was not heard since this control process started.
    pub observed: Option<NodeObserved>,
}

/// What is known of a live or lost node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeObserved {
    /// Whether its stream is open and not silent.
    pub heard: bool,
    /// Milliseconds since it was last heard.
    pub silent_ms: u64,
    /// Its start.
    pub incarnation: u64,
    /// Its software.
    pub software: String,
    /// Its engine.
    pub engine: String,
    /// The position that it obeys.
    pub obeyed: Epoch,
    /// Its mirror links.
    pub links: Vec<LinkStatus>,
}

/// A device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceView {
    /// Its id.
    pub device: DeviceId,
    /// Its name.
    pub name: Name,
    /// Its node.
    pub node: Named,
    /// Its pool.
    pub pool: Named,
    /// Where it is.
    pub locator: Locator,
    /// `added`, `adopted` or `rejected`.
    pub state: String,
    /// Why, when rejected or not open.
    pub detail: String,
    /// Usable extents.
    pub extents: u64,
    /// Those that no leg has.
    pub extents_free: u64,
    /// Logical block, bytes; 0 before adoption.
    pub block_bytes: u32,
    /// Whether its node has it open, if known.
    pub open: Option<bool>,
}

/// A pool.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// Its id.
    pub pool: PoolId,
    /// Its name.
    pub name: Name,
    /// Its site.
    pub site: Named,
    /// Unit of allocation, bytes.
    pub extent_bytes: u64,
    /// Its devices.
    pub devices: usize,
    /// Bytes in all.
    pub capacity_bytes: u64,
    /// Bytes that no leg has.
    pub free_bytes: u64,
}

/// A policy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyView {
    /// Its id.
    pub policy: PolicyId,
    /// Its name.
    pub name: Name,
    /// Its rules.
    pub rules: PolicyRules,
    /// Groups that follow it.
    pub groups: usize,
}

/// How a volume is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeHealth {
    /// Served, every side in sync.
    Healthy,
    /// Served by fewer legs than it has, none being copied.
    Degraded,
    /// Served, a side is being copied.
    Resyncing,
    /// Not all legs are formatted yet.
    Preparing,
    /// Its owner is opening it, or holds requests until the log answers.
    Waiting,
    /// Nobody serves it.
    Down,
}

/// A volume.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// Its id.
    pub volume: VolumeId,
    /// Its name.
    pub name: Name,
    /// NSID and ANA group.
    pub number: u32,
    /// Its group.
    pub group: GroupId,
    /// Size, bytes.
    pub size_bytes: u64,
    /// Logical block, bytes.
    pub block_bytes: u32,
    /// What hosts are told of how it keeps its blocks.
    #[serde(default)]
    pub presentation: Presentation,
    /// Its policy.
    pub policy: Option<Named>,
    /// In one word.
    pub health: VolumeHealth,
    /// Its owner's node.
    pub owner: Named,
    /// Its owner's site.
    pub owner_site: Named,
    /// The commit that last changed owner or in-sync set.
    pub epoch: Epoch,
    /// The last epoch at which every side was in sync.
    pub last_common: Epoch,
    /// Its sides.
    pub sides: Vec<SideView>,
    /// Its legs.
    pub legs: Vec<LegView>,
    /// Who may use it.
    pub mappings: Vec<MappingView>,
    /// Resync under way.
    pub resync: Option<ResyncProgress>,
    /// Whether it would fail over by itself if its owner's node or site were lost now.
    pub armed: bool,
    /// Why not, when it would not.
    pub not_armed_because: Vec<String>,
    /// When a host last used it, milliseconds since 1970.
    pub last_io_unix_ms: Option<u64>,
    /// What its owner's last opening took.
    pub opening: Option<OpeningReport>,
    /// What is known of its legs being equal.
    #[serde(default)]
    pub verification: VerificationView,
}

/// What is known of a volume's legs being equal.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct VerificationView {
    /// Number of the commit that asked for the comparison under way, if there is one.
    pub under_way: Option<u64>,
    /// How far it is, as its owner says.
    pub progress: Option<VerifyProgress>,
    /// Number of the commit that asked for the last one that ended.
    pub last: Option<u64>,
    /// What that found.
    pub found: Option<VerifyEvidence>,
    /// When the last was asked for, milliseconds since 1970.
    pub asked_unix_ms: Option<u64>,
    /// The last blocks of which no copy could be read. They can be written.
    pub lost: Vec<BlockRange>,
}

/// How often mirrored volumes are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ScrubView {
    /// Hours from begin to begin; nothing: only when told.
    pub every_hours: Option<u32>,
    /// Whether legs that differ are repaired.
    pub repair: bool,
}

/// A side of a volume's group.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SideView {
    /// Its site.
    pub site: Named,
    /// Its node.
    pub node: Named,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// What its node says that it does; nothing if not heard.
    pub role: Option<GroupRole>,
    /// The epoch that its node obeys.
    pub obeys: Option<Epoch>,
    /// The highest token that it accepted.
    pub token: Option<Token>,
}

/// A leg.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LegView {
    /// Its id.
    pub leg: LegId,
    /// Its pool.
    pub pool: Named,
    /// Its site.
    pub site: Named,
    /// Its node.
    pub node: Named,
    /// Whether its header was written.
    pub formatted: bool,
    /// What its node says of it; nothing if not heard.
    pub state: Option<LegState>,
    /// In words, when something is wrong.
    pub detail: String,
}

/// A mapping.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MappingView {
    /// The volume.
    pub volume: Named,
    /// The host.
    pub host: Named,
    /// Its LUN for iSCSI.
    pub lun: u16,
    /// Its NSID for NVMe.
    pub nsid: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// Its id.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// NVMe qualified names.
    pub nqns: Vec<String>,
    /// iSCSI names.
    pub iqns: Vec<String>,
    /// Name of its CHAP secret.
    pub chap_secret: Option<Name>,
    /// Name of the secret that it must prove over NVMe.
    #[serde(default)]
    pub nvme_secret: Option<Name>,
    /// Name of the secret that the target proves to it over NVMe, if it asks.
    #[serde(default)]
    pub nvme_target_secret: Option<Name>,
    /// Volumes that it may use.
    pub mappings: usize,
}

/// A failover.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FailoverView {
    /// Its id.
    pub failover: FailoverId,
    /// The site that was left.
    pub site: Named,
    /// The commit that decided it.
    pub sequence: u64,
    /// On what it was decided.
    pub evidence: FailoverEvidence,
    /// What it took; nothing until it was measured.
    pub phases: Option<FailoverPhases>,
}

/// A credential.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CredentialView {
    /// Its id.
    pub credential: CredentialId,
    /// Its name.
    pub name: Name,
    /// What it may do.
    pub role: Role,
}

/// Names of the secrets that the store of this control process holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SecretNames {
    /// The names.
    pub names: Vec<String>,
}

/// A commit of the log with its place.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CommitView {
    /// Its hash.
    pub hash: Hash,
    /// The commit.
    pub commit: Commit,
    /// Who asked, in one word: a credential's or node's name, or `system`.
    pub actor_name: String,
}

/// What an audit query found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The commits, oldest first.
    pub commits: Vec<CommitView>,
    /// `from` to go on with; nothing when the end was reached.
    pub next: Option<u64>,
}

/// What verifying the log found. Any mismatch is an alarm.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Whether everything below holds.
    pub verified: bool,
    /// Commits read.
    pub commits: u64,
    /// Whether numbers and hashes form one chain from the first commit.
    pub chain: bool,
    /// Whether the newest checkpoint's signatures and root fit the commits.
    pub checkpoint: bool,
    /// Whether replaying the log gave the state's digest.
    pub digest: bool,
    /// Digest of the replayed state.
    pub replayed_digest: Hash,
    /// Digest of the live state there.
    pub live_digest: Hash,
    /// Root of the Merkle tree.
    pub root: Hash,
    /// Milliseconds that it took.
    pub took_ms: u64,
    /// What is wrong, in words.
    pub detail: String,
}

/// `GET /v1/status`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// `healthy`, `degraded` or `down`.
    pub health: String,
    /// What is wrong, in words, most urgent first.
    pub problems: Vec<String>,
    /// Last commit.
    pub head: Epoch,
    /// Data and witness sites.
    pub sites: Vec<SiteView>,
    /// Volumes in all.
    pub volumes: usize,
    /// Volumes by health.
    pub volumes_by_health: std::collections::BTreeMap<String, usize>,
    /// Volumes that would fail over by themselves now.
    pub volumes_armed: usize,
    /// Software version of this control process.
    pub software: String,
}

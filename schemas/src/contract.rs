//! The node contract: what the control plane hands a node (desired) and what the node answers
//! (observed). One WebSocket per node to any control process at [`PATH`], text frames, one JSON
//! message each; the node authenticates with its id and secret as HTTP basic credentials.
//!
//! Anything that honours this contract is a data plane.

use crate::command::Escalation;
use crate::event::{Attestation, Presentation};
use crate::ids::*;
use crate::name::Name;
use crate::place::{ExtentRun, Locator, Portals};
use crate::position::{Epoch, Hash, Sequence, Token};
use crate::proof::{Checkpoint, CommitProof, HandOver, Verifier};
use crate::times::Times;
use serde::{Deserialize, Serialize};

/// Where the stream is.
pub const PATH: &str = "/v1/node-stream";
/// Longest message, bytes.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// Most escalations in one message.
pub const ESCALATIONS_MAX: usize = 4_096;
/// Version of this contract.
pub const CONTRACT_VERSION: u32 = 3;

/// From a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromNode {
    /// First message.
    Hello(Hello),
    /// What it observes: at each heartbeat, and at once when something changed.
    Status(NodeStatus),
    /// What it asks the log for. Repeated with the same id until answered; answered once per id.
    Escalate {
        /// Of this batch.
        id: EscalationId,
        /// In order.
        requests: Vec<Escalation>,
    },
}

/// To a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToNode {
    /// What it should be. The first is full; later ones hold what changed.
    Spec(Box<NodeSpec>),
    /// What became of a batch of escalations. A node acts only on specs: this only ends the waiting.
    Answer {
        /// Which batch.
        id: EscalationId,
        /// One per request, in order.
        outcomes: Vec<EscalationOutcome>,
    },
    /// To be given back with the next status: what that says was so after this was sent, however long
    /// it was on its way. Sent for each status, and when a stream opens.
    Heartbeat {
        /// The sender's own time, microseconds since an arbitrary start; above 0.
        sent_us: u64,
    },
    /// The control process ends this stream; connect to another.
    Goodbye {
        /// Why.
        cause: String,
    },
}

/// What became of one escalation.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum EscalationOutcome {
    /// Its events are in this commit, or were there already.
    Committed {
        /// The commit.
        sequence: Sequence,
    },
    /// It has no effect.
    Refused {
        /// Stable word.
        code: String,
        /// For people.
        message: String,
    },
}

/// A node introduces itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the contract.
    pub contract: u32,
    /// Its id.
    pub node: NodeId,
    /// Rises at each start, kept on its disk.
    pub incarnation: u64,
    /// Its software.
    pub software: String,
    /// Engine, e.g. `native`.
    pub engine: String,
    /// The highest log position that it obeyed.
    pub obeyed: Epoch,
}

/// Desired state of a node, projected from the log at `as_of`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The position that it was projected from.
    pub as_of: Epoch,
    /// Whether everything not named here is to be dropped.
    pub full: bool,
    /// The cluster.
    pub cluster: ClusterId,
    /// Facts about the cluster and this node: in the first message and when they changed.
    pub facts: Option<NodeFacts>,
    /// Signed checkpoint that covers `as_of` and every epoch named here.
    pub checkpoint: Checkpoint,
    /// Path from `as_of` to its root, lowest first (RFC 6962 §2.1.1).
    pub as_of_path: Vec<Hash>,
    /// With `facts`: how the log came by the verifiers that they name, in order, the last naming these
    /// very ones. At most [`HAND_OVERS_MAX`](crate::proof::HAND_OVERS_MAX).
    pub hand_overs: Vec<HandOver>,
    /// Commits that made the epochs of `groups`, each once.
    pub proofs: Vec<CommitProof>,
    /// Groups of which this node holds a side: all if full, else those that changed.
    pub groups: Vec<GroupSpec>,
    /// Groups of which it no longer holds a side.
    pub removed_groups: Vec<GroupId>,
}

/// What changes seldom. Its `Debug` leaves the secrets out.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Its site.
    pub site: SiteId,
    /// Its small number.
    pub number: u16,
    /// Who signs checkpoints; a majority must.
    pub verifiers: Vec<Verifier>,
    /// Times.
    pub times: Times,
    /// Its listeners.
    pub portals: Portals,
    /// Secret that the nodes of the cluster prove to each other on mirror links, 32 bytes in hex.
    pub link_secret: String,
    /// All nodes, this one too.
    pub nodes: Vec<NodeEntry>,
    /// Its devices.
    pub devices: Vec<DeviceSpec>,
    /// Its legs that are to be wiped and released.
    pub retired_legs: Vec<RetiredLeg>,
    /// All hosts that can reach a volume here.
    pub hosts: Vec<HostSpec>,
    /// NVMe subsystem under which all sites show their volumes.
    pub subsystem_nqn: String,
    /// iSCSI target under which all sites show their volumes.
    pub target_iqn: String,
    /// Serial number of that subsystem, at most 20 characters.
    pub serial: String,
}

/// Another node, as a peer and as a portal that discovery lists.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its id.
    pub node: NodeId,
    /// Its site.
    pub site: SiteId,
    /// Its small number.
    pub number: u16,
    /// Where it listens.
    pub portals: Portals,
}

/// A device that the node should hold.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Its id, in its header too.
    pub device: DeviceId,
    /// Where it is.
    pub locator: Locator,
    /// Unit of allocation, bytes.
    pub extent_bytes: u64,
    /// Whether it was adopted before: then a missing header means lost content, never a new device.
    pub adopted: bool,
    /// Adopt it even if it holds foreign data.
    pub overwrite: bool,
}

/// A leg to be wiped.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RetiredLeg {
    /// Which.
    pub leg: LegId,
    /// Where it lies.
    pub runs: Vec<ExtentRun>,
}

/// A host. Its `Debug` leaves the secret out.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct HostSpec {
    /// Its id.
    pub host: HostId,
    /// NVMe qualified names.
    pub nqns: Vec<String>,
    /// iSCSI names.
    pub iqns: Vec<String>,
    /// CHAP secret, resolved. Never logged.
    pub chap_secret: Option<String>,
    /// CHAP secret that the target proves to it, if it asks. Never logged.
    #[serde(default)]
    pub chap_target_secret: Option<String>,
    /// DH-HMAC-CHAP secret (`DHHC-1:…`) that it must prove over NVMe, resolved. Never logged.
    #[serde(default)]
    pub dhchap_secret: Option<String>,
    /// The one that is proven to it, if it asks. Never logged.
    #[serde(default)]
    pub dhchap_controller_secret: Option<String>,
}

/// A group that this node holds a side of.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GroupSpec {
    /// Which.
    pub group: GroupId,
    /// The commit that last changed its owner or in-sync set.
    pub epoch: Epoch,
    /// Who serves it.
    pub owner: NodeId,
    /// Its sides, this node's among them.
    pub sides: Vec<SideSpec>,
    /// The last epoch at which every present side was in sync: maps kept since then suffice for a
    /// partial resync. [`Epoch::ZERO`] if a side's content began anew since (its leg was added, or
    /// lost what it held): no map suffices, the resync is full.
    pub last_common: Epoch,
    /// Its volumes.
    pub volumes: Vec<VolumeSpec>,
}

/// One side of a group.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SideSpec {
    /// Its site.
    pub site: SiteId,
    /// Its node.
    pub node: NodeId,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
}

/// A volume of a group.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Its id; also its NGUID and UUID.
    pub volume: VolumeId,
    /// Its name.
    pub name: Name,
    /// NSID and ANA group.
    pub number: u32,
    /// Size, bytes.
    pub size_bytes: u64,
    /// Logical block, bytes.
    pub block_bytes: u32,
    /// Unit of the maps, bytes.
    pub region_bytes: u64,
    /// Its legs.
    pub legs: Vec<LegSpec>,
    /// Hosts that may use it.
    pub mappings: Vec<MappingSpec>,
    /// Its legs are to be compared.
    #[serde(default)]
    pub verify: Option<VerifyOrder>,
    /// What hosts are told of how it keeps its blocks.
    #[serde(default)]
    pub presentation: Presentation,
}

/// An order to compare a volume's legs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyOrder {
    /// Number of the commit that asked for it.
    pub run: u64,
    /// Whether a leg that differs is to get what the owner's leg holds.
    pub repair: bool,
}

/// A leg of a volume.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LegSpec {
    /// Its id.
    pub leg: LegId,
    /// Its site.
    pub site: SiteId,
    /// Its node.
    pub node: NodeId,
    /// Whether its header was written: then a missing one means lost content. Until then the node
    /// formats it and escalates `LegFormatted`.
    pub formatted: bool,
    /// Where it lies; empty for another node's leg.
    pub runs: Vec<ExtentRun>,
}

/// A grant of a volume to a host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MappingSpec {
    /// The host.
    pub host: HostId,
    /// LUN for iSCSI.
    pub lun: u16,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Observed state of a node. Groups that did not change since the last status are left out, except
/// in the first.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeStatus {
    /// The position that it obeys.
    pub obeyed: Epoch,
    /// `sent_us` of the last [`ToNode::Heartbeat`] of this stream; 0 before the first.
    pub answers_us: u64,
    /// Its devices.
    pub devices: Vec<DeviceStatus>,
    /// Its links.
    pub links: Vec<LinkStatus>,
    /// Its groups.
    pub groups: Vec<GroupStatus>,
}

/// Observed state of a device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeviceStatus {
    /// Which.
    pub device: DeviceId,
    /// Whether it is open.
    pub open: bool,
    /// In words, when it is not.
    pub detail: String,
}

/// Observed state of a mirror link.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkStatus {
    /// To which node.
    pub peer: NodeId,
    /// Whether it is up.
    pub up: bool,
    /// Remaining lease from that peer, milliseconds; negative when run out; `None` before the first.
    pub lease_ms: Option<i64>,
}

/// Observed state of a group at this node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GroupStatus {
    /// Which.
    pub group: GroupId,
    /// The epoch that this node's side obeys.
    pub epoch: Epoch,
    /// What it does.
    pub role: GroupRole,
    /// The highest token that its legs accepted.
    pub token: Token,
    /// Its legs.
    pub legs: Vec<LegStatus>,
    /// As a side that does not own: what it can vouch for.
    pub attestation: Option<Attestation>,
    /// As owner: resync under way.
    pub resync: Option<ResyncProgress>,
    /// As owner: when a host last read or wrote, milliseconds since 1970.
    pub last_io_unix_ms: Option<u64>,
    /// As owner: what opening took.
    pub opening: Option<OpeningReport>,
    /// As owner: comparison under way.
    #[serde(default)]
    pub verify: Option<VerifyProgress>,
}

/// What a node does for a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum GroupRole {
    /// Another node owns it; this one keeps a leg.
    Following,
    /// Owner, not yet serving.
    Opening,
    /// Owner, serving.
    Serving,
    /// Owner, holding requests until the log answers.
    Holding,
    /// Owner by the log, but cannot serve.
    Stopped,
}

/// Observed state of a leg.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LegStatus {
    /// Which.
    pub leg: LegId,
    /// What its header says.
    pub state: LegState,
    /// In words, when something is wrong.
    pub detail: String,
}

/// What a leg is good for, as far as its own node knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum LegState {
    /// Not yet formatted.
    Unformatted,
    /// Its content was whole at its last epoch.
    Consistent,
    /// Being overwritten by a resync.
    Inconsistent,
    /// Its header is gone although it was formatted.
    ContentLost,
    /// Its device cannot be used.
    Failed,
}

/// How far a resync is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResyncProgress {
    /// To which site.
    pub site: SiteId,
    /// Whether everything is copied.
    pub full: bool,
    /// Bytes copied.
    pub copied_bytes: u64,
    /// Bytes to copy in all.
    pub total_bytes: u64,
}

/// How far a comparison of a volume's legs is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VerifyProgress {
    /// Of which volume.
    pub volume: VolumeId,
    /// Number of the commit that asked for it.
    pub run: u64,
    /// Regions compared.
    pub compared_regions: u64,
    /// Regions of the volume.
    pub total_regions: u64,
    /// Regions that differed so far.
    pub differing_regions: u64,
    /// Whether it waits until both legs are in sync.
    pub waits: bool,
}

/// What opening took, milliseconds since the spec that made this node owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OpeningReport {
    /// Until older tokens were barred.
    pub barred_ms: u64,
    /// Until old leases had run out.
    pub lease_wait_ms: u64,
    /// Until it served.
    pub serving_ms: u64,
    /// Until the first request of a host completed.
    pub first_io_ms: Option<u64>,
}

impl std::fmt::Debug for NodeFacts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut facts = formatter.debug_struct("NodeFacts");
        facts.field("node", &self.node).field("name", &self.name).field("site", &self.site);
        facts.field("nodes", &self.nodes).field("devices", &self.devices);
        facts.field("retired_legs", &self.retired_legs).field("hosts", &self.hosts);
        facts.finish_non_exhaustive()
    }
}

impl std::fmt::Debug for HostSpec {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut host = formatter.debug_struct("HostSpec");
        host.field("host", &self.host).field("nqns", &self.nqns).field("iqns", &self.iqns);
        host.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_host_tells_no_secret() {
        let host = HostSpec {
            host: HostId::generate(),
            nqns: vec![],
            iqns: vec!["iqn.2026-11.example:a".to_owned()],
            chap_secret: Some("hunter2hunter2".to_owned()),
            chap_target_secret: Some("hunter2hunter3".to_owned()),
            dhchap_secret: None,
            dhchap_controller_secret: None,
        };
        let printed = format!("{host:?}");
        assert!(printed.contains("example:a") && !printed.contains("hunter2"), "{printed}");
    }
}

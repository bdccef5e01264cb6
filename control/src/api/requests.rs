//! What clients send: the bodies and query strings of the API. The command line writes the same
//! types. Every body refuses fields that it does not know.
//!
//! Headers of every changing request, all optional: [`IDEMPOTENCY_KEY`], [`REASON`], [`ORIGIN`].
//! `?plan=true` shows the events and commits nothing.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use utoipa::ToSchema;
use voute_schemas::Name;
use voute_schemas::event::{FailoverMode, Role, SiteCondition, SiteKind};
use voute_schemas::place::{Locator, Portals};

/// Header: a key chosen by the client; a request repeated with it has no second effect and gets the
/// first answer.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Header: why, for the log. UTF-8, at most [`voute_schemas::commit::REASON_MAX`] bytes.
pub const REASON: &str = "x-voute-reason";
/// Header: by which way the request comes: `cli` or `console`; anything else is `api`.
pub const ORIGIN: &str = "x-voute-origin";

/// Names something that exists: by its name or by its identifier. Something whose name looks like
/// an identifier is found by name first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Reference(pub String);

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl From<&str> for Reference {
    fn from(text: &str) -> Self {
        Reference(text.to_owned())
    }
}

/// `POST /v1/sites`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSite {
    /// Unique among sites.
    pub name: Name,
    /// Whether it holds data.
    pub kind: SiteKind,
}

/// `POST /v1/sites/{site}/signal`: an observation from outside, such as a UPS or a fire alarm.
/// Signals of `PowerLost`, `Fire` and `CoolingLost` start the failover of groups whose policy is
/// `Automatic` or `OnSignal`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalSite {
    /// What is the matter.
    pub condition: SiteCondition,
    /// In words.
    #[serde(default)]
    pub detail: String,
}

/// `POST /v1/sites/{site}/failover`: moves every group that the site owns, whatever its policy, as
/// far as their other sides vouch for it now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailOverSite {
    /// What was seen, in words.
    #[serde(default)]
    pub observed: String,
    /// What is the matter; the site's reported condition when left out.
    #[serde(default)]
    pub condition: Option<SiteCondition>,
}

/// `POST /v1/nodes`. The answer holds the node's secret, once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNode {
    /// Unique among nodes.
    pub name: Name,
    /// Its site.
    pub site: Reference,
    /// Where it listens for NVMe/TCP hosts.
    #[schema(value_type = String, example = "192.0.2.1:4420")]
    pub nvme: SocketAddr,
    /// Where it listens for iSCSI hosts.
    #[schema(value_type = String, example = "192.0.2.1:3260")]
    pub iscsi: SocketAddr,
    /// Where it listens for other nodes.
    #[schema(value_type = String, example = "192.0.2.1:4421")]
    pub link: SocketAddr,
}

/// `PUT /v1/nodes/{node}/portals`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeNodePortals {
    /// Where it listens from now on.
    pub portals: Portals,
}

/// `POST /v1/pools`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// Unique among pools.
    pub name: Name,
    /// Its site.
    pub site: Reference,
    /// Unit of allocation, bytes, a multiple of 1 MiB; 16 MiB when left out.
    #[serde(default)]
    pub extent_bytes: Option<u64>,
}

/// Unit of allocation of pools that do not say otherwise, bytes.
pub const EXTENT_BYTES_DEFAULT: u64 = 16 << 20;

/// `POST /v1/devices`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDevice {
    /// Unique among devices.
    pub name: Name,
    /// The node that has it.
    pub node: Reference,
    /// The pool that it joins; of the same site.
    pub pool: Reference,
    /// Where the node finds it.
    pub locator: Locator,
    /// Adopt it even if it holds foreign data, which is then lost.
    #[serde(default)]
    pub overwrite: bool,
}

/// The rules of a policy, in `POST /v1/policies` and `PUT /v1/policies/{policy}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// When groups move by themselves.
    pub mode: FailoverMode,
    /// Milliseconds that a site must stay silent beyond detection.
    #[serde(default)]
    pub hold_down_ms: u64,
    /// Where its groups should live.
    #[serde(default)]
    pub preferred_site: Option<Reference>,
    /// Whether groups move back by themselves once their preferred site is in sync.
    #[serde(default)]
    pub failback: bool,
}

/// `POST /v1/policies`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePolicy {
    /// Unique among policies.
    pub name: Name,
    /// Its rules.
    pub rules: Rules,
}

/// `PUT /v1/policies/{policy}`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePolicy {
    /// Its rules from now on.
    pub rules: Rules,
}

/// `POST /v1/volumes`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Unique among volumes.
    pub name: Name,
    /// Its size, bytes, a multiple of 1 MiB.
    pub size_bytes: u64,
    /// Its logical block, bytes: 512 or 4096; 4096 when left out.
    #[serde(default)]
    pub block_bytes: Option<u32>,
    /// One or two pools, at different sites; the first holds the first owner.
    pub pools: Vec<Reference>,
    /// Its failover policy. Left out: it fails over only when told. Genesis makes a policy named
    /// `automatic`.
    #[serde(default)]
    pub policy: Option<Reference>,
}

/// Logical block of volumes that do not say otherwise, bytes: no device has a larger one.
pub const BLOCK_BYTES_DEFAULT: u32 = 4_096;

/// `PUT /v1/volumes/{volume}/size`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// Its new size, bytes; never smaller.
    pub size_bytes: u64,
}

/// `PUT /v1/volumes/{volume}/presentation`: what hosts are told of how it keeps its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PresentVolume {
    /// As thin: freed and never written blocks count as having no room of their own.
    pub thin: bool,
    /// The block by which hosts are to align, bytes: 4096, or nothing for the volume's own.
    #[serde(default)]
    pub physical_block_bytes: Option<u32>,
}

/// `POST /v1/volumes/{volume}/verification`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyVolume {
    /// Whether a leg that differs is to get what the owner's leg holds. Blocks that one leg alone
    /// cannot read are rewritten from the other in any case.
    #[serde(default)]
    pub repair: bool,
}

/// `PUT /v1/scrub`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleScrub {
    /// Hours from the begin of one comparison of a volume to the begin of the next. Left out: volumes
    /// are compared only when told.
    #[serde(default)]
    pub every_hours: Option<u32>,
    /// Whether legs that differ are to be repaired.
    #[serde(default)]
    pub repair: bool,
}

/// `POST /v1/volumes/{volume}/legs`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddLeg {
    /// Pool of another site.
    pub pool: Reference,
}

/// `POST /v1/hosts`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateHost {
    /// Unique among hosts.
    pub name: Name,
    /// NVMe qualified names.
    #[serde(default)]
    pub nqns: Vec<String>,
    /// iSCSI names.
    #[serde(default)]
    pub iqns: Vec<String>,
    /// Name of a secret (`PUT /v1/secrets/{name}`) that it must prove by CHAP.
    #[serde(default)]
    pub chap_secret: Option<Name>,
}

/// `PUT /v1/hosts/{host}`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeHost {
    /// NVMe qualified names from now on.
    #[serde(default)]
    pub nqns: Vec<String>,
    /// iSCSI names from now on.
    #[serde(default)]
    pub iqns: Vec<String>,
    /// Name of its CHAP secret from now on.
    #[serde(default)]
    pub chap_secret: Option<Name>,
}

/// `PUT /v1/hosts/{host}/keys`: names of secrets (`PUT /v1/secrets/{name}`) of the form `DHHC-1:…`. Both
/// fields are to be given, so that none is taken away by leaving it out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeHostKeys {
    /// What the host must prove on each NVMe connection; `null`: it is known by its name alone.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required = true)]
    pub secret: Option<Name>,
    /// What the target proves to it, if it asks; `null`: nothing.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required = true)]
    pub target_secret: Option<Name>,
}

/// `POST /v1/mappings`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateMapping {
    /// The volume.
    pub volume: Reference,
    /// Who may use it.
    pub host: Reference,
    /// Its iSCSI LUN there; the lowest free one when left out.
    #[serde(default)]
    pub lun: Option<u16>,
    /// Whether writes are refused.
    #[serde(default)]
    pub read_only: bool,
}

/// `POST /v1/groups/{group}/move`; the group by its identifier or by the name of a volume in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveGroup {
    /// The site that should own it; in sync.
    pub to: Reference,
}

/// `POST /v1/credentials`. The answer holds the token, once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCredential {
    /// Unique among credentials; appears in the log as the actor, so no personal data.
    pub name: Name,
    /// What it may do.
    pub role: Role,
}

/// `POST /v1/log-sites`: other sites sign checkpoints from then on. Each site comes or goes by a commit
/// of its own, those that come first; it takes effect when a majority of the sites before and one of
/// those after have signed it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeLogSites {
    /// Keys of sites to add, as `voute control --show-key` prints them.
    #[serde(default)]
    pub add: Vec<String>,
    /// Names of sites to remove.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// `PUT /v1/secrets/{name}`: kept in the control plane's secret store, never in the log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutSecret {
    /// 12 to 255 printable characters (RFC 7143 §9.2.1 asks for at least 96 bits).
    pub secret: String,
}

impl fmt::Debug for PutSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PutSecret { secret: (not shown) }")
    }
}

/// Query of every changing request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeQuery {
    /// Show the events, commit nothing.
    #[serde(default)]
    pub plan: bool,
    /// `DELETE /v1/volumes/{volume}`: even if a host used it in the last 15 minutes, or that is not known,
    /// because its owner is not heard. Never while it is mapped.
    /// `POST /v1/log-sites`: even if the log may then wait for sites that are not there.
    #[serde(default)]
    pub force: bool,
}

/// Query of every list.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// How many, 1 to [`LIST_MAX`]; [`LIST_MAX`] when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Most items of one page.
pub const LIST_MAX: usize = 1_000;

/// Query of `GET /v1/audit`; all filters must hold. Commits come in ascending order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Lowest number; 1 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Highest number; the head when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// A credential's name or identifier, a node's, or `system`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// A command's name, e.g. `CreateVolume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// `accepted` or `refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// An identifier, or the name of something that exists, that the events must mention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    /// Text in the reason, the events or the refusal, in any case of letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Most commits to return, 1 to [`LIST_MAX`]; 100 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Query of `GET /v1/feed`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedQuery {
    /// First commit wanted; the next one to come when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
}

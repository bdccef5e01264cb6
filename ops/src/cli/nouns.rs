//! `voute <noun> <verb>`: one enum per noun. Names and identifiers are both accepted.

use crate::cli::locator::parse_locator;
use crate::cli::quantity::{parse_duration, parse_size};
use crate::cli::serving::NodeRunArguments;
use clap::{Args, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use voute_schemas::Name;
use voute_schemas::event::{FailoverMode, Role, SiteCondition, SiteKind};
use voute_schemas::place::Locator;

/// `voute site`.
#[derive(Subcommand, Debug)]
pub enum SiteVerb {
    /// Add a site
    #[command(visible_alias = "create", after_help = "Example:\n  voute site add paris")]
    Add {
        /// Its name.
        name: Name,
        /// Whether it holds data or only votes.
        #[arg(long, value_enum, default_value_t = KindOfSite::Data)]
        kind: KindOfSite,
    },
    /// List sites
    List,
    /// Show a site
    Show {
        /// Name or id.
        site: String,
    },
    /// Remove a site without nodes and pools
    Remove {
        /// Name or id.
        site: String,
    },
    /// Tell what happens at a site, as a UPS or a fire alarm would
    #[command(
        after_help = "Example:\n  voute site signal paris power-lost --detail 'UPS on battery for 5 minutes'"
    )]
    Signal {
        /// Name or id.
        site: String,
        /// What is the matter.
        #[arg(value_enum)]
        condition: Condition,
        /// In words.
        #[arg(long, default_value = "", value_name = "TEXT")]
        detail: String,
    },
}

/// Whether a site holds data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum KindOfSite {
    /// Nodes and pools.
    Data,
    /// Only a vote.
    Witness,
}

impl From<KindOfSite> for SiteKind {
    fn from(kind: KindOfSite) -> Self {
        match kind {
            KindOfSite::Data => SiteKind::Data,
            KindOfSite::Witness => SiteKind::Witness,
        }
    }
}

/// What can be the matter with a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Condition {
    /// All is well.
    Normal,
    /// It is gone.
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

impl From<Condition> for SiteCondition {
    fn from(condition: Condition) -> Self {
        match condition {
            Condition::Normal => SiteCondition::Normal,
            Condition::Lost => SiteCondition::Lost,
            Condition::PowerLost => SiteCondition::PowerLost,
            Condition::Fire => SiteCondition::Fire,
            Condition::CoolingLost => SiteCondition::CoolingLost,
            Condition::Maintenance => SiteCondition::Maintenance,
            Condition::LinkDegraded => SiteCondition::LinkDegraded,
        }
    }
}

/// `voute node`: with a verb it administers nodes, without one it runs one.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    long_about = "Run a node (with --id, --secret-file, --control and --data-dir), or add, list and remove nodes.",
    after_help = "\
Examples:
  voute node add paris-1 --site paris --address 192.0.2.1 --secret-out /etc/voute/paris-1.secret
  voute node --id 0193e6a0-0000-7000-8000-000000000001 --secret-file /etc/voute/paris-1.secret \\
      --control http://192.0.2.1:7421 --data-dir /var/lib/voute/node"
)]
pub struct NodeArguments {
    /// To administer nodes.
    #[command(subcommand)]
    pub verb: Option<NodeVerb>,
    /// To run one.
    #[command(flatten)]
    pub run: NodeRunArguments,
}

/// `voute node VERB`.
#[derive(Subcommand, Debug)]
pub enum NodeVerb {
    /// Admit a node; prints its id and, once, its secret
    #[command(
        visible_alias = "create",
        after_help = "\
Examples:
  voute node add paris-1 --site paris --address 192.0.2.1
  voute node add lyon-1 --site lyon --nvme 192.0.2.2:4420 --iscsi 192.0.2.2:3260 --link 198.51.100.2:4421"
    )]
    Add {
        /// Its name.
        name: Name,
        /// Its site.
        #[arg(long)]
        site: String,
        /// Where it listens.
        #[command(flatten)]
        portals: PortalArguments,
        /// Write the secret to this file (mode 0600) and do not print it.
        #[arg(long, value_name = "FILE")]
        secret_out: Option<PathBuf>,
    },
    /// List nodes
    List,
    /// Show a node
    Show {
        /// Name or id.
        node: String,
    },
    /// Let a node listen elsewhere
    Portals {
        /// Name or id.
        node: String,
        /// Where.
        #[command(flatten)]
        portals: PortalArguments,
    },
    /// Remove a node without devices
    Remove {
        /// Name or id.
        node: String,
    },
}

/// Where a node listens: one address with the usual ports, or each in full.
#[derive(Args, Clone, Debug)]
pub struct PortalArguments {
    /// One IP address for all, with ports 4420 (NVMe/TCP), 3260 (iSCSI) and 4421 (mirror link).
    #[arg(long, value_name = "IP", required_unless_present_all = ["nvme", "iscsi", "link"])]
    pub address: Option<std::net::IpAddr>,
    /// NVMe/TCP for hosts.
    #[arg(long, value_name = "ADDRESS")]
    pub nvme: Option<SocketAddr>,
    /// iSCSI for hosts.
    #[arg(long, value_name = "ADDRESS")]
    pub iscsi: Option<SocketAddr>,
    /// Mirror link for other nodes.
    #[arg(long, value_name = "ADDRESS")]
    pub link: Option<SocketAddr>,
}

/// `voute device`.
#[derive(Subcommand, Debug)]
pub enum DeviceVerb {
    /// Add a device to a pool; its node adopts it
    #[command(
        visible_alias = "create",
        after_help = "\
DEVICE is one of
  file:/absolute/path[:SIZE]            a file, created with SIZE if it is not there
  block:/dev/disk/by-id/NAME            a drive
  memory:SIZE                           memory of the node's process, for tests
  nvme://ADDRESS:PORT/NQN/UUID          a namespace of another NVMe/TCP target

Examples:
  voute device add paris-a --node paris-1 --pool paris block:/dev/disk/by-id/nvme-XYZ
  voute device add lyon-a --node lyon-1 --pool lyon file:/srv/voute/a.img:100GiB

A device that is in use or holds a file system, a partition table or a foreign header is refused;
--overwrite adopts it all the same, and its content is lost."
    )]
    Add {
        /// Its name.
        name: Name,
        /// The node that has it.
        #[arg(long)]
        node: String,
        /// The pool that it joins.
        #[arg(long)]
        pool: String,
        /// Where its node finds it.
        #[arg(value_parser = parse_locator, value_name = "DEVICE")]
        locator: Locator,
        /// Adopt it even if it holds foreign data, which is then lost.
        #[arg(long)]
        overwrite: bool,
    },
    /// List devices
    List,
    /// Show a device
    Show {
        /// Name or id.
        device: String,
    },
    /// Remove a device without legs
    Remove {
        /// Name or id.
        device: String,
    },
}

/// `voute pool`.
#[derive(Subcommand, Debug)]
pub enum PoolVerb {
    /// Create a pool at a site
    #[command(
        visible_alias = "add",
        after_help = "Example:\n  voute pool create paris --site paris"
    )]
    Create {
        /// Its name.
        name: Name,
        /// Its site.
        #[arg(long)]
        site: String,
        /// Unit of allocation, a multiple of 1 MiB [default: 16MiB].
        #[arg(long, value_parser = parse_size, value_name = "SIZE")]
        extent: Option<u64>,
    },
    /// List pools
    List,
    /// Show a pool
    Show {
        /// Name or id.
        pool: String,
    },
    /// Remove a pool without devices
    Remove {
        /// Name or id.
        pool: String,
    },
}

/// How a volume tells hosts that it keeps its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Provisioning {
    /// Room is told to be set aside for every block.
    Thick,
    /// What was never written or was freed is told to have no room.
    Thin,
}

/// `voute volume`.
#[derive(Subcommand, Debug)]
pub enum VolumeVerb {
    /// Create a volume: two pools make it a mirror
    #[command(
        visible_alias = "add",
        after_help = "\
Examples:
  voute volume create db --size 10GiB --pool paris --pool lyon --policy automatic
  voute volume create scratch --size 500GiB --pool paris
  voute volume create db --size 10GiB --pool paris --pool lyon --plan"
    )]
    Create {
        /// Its name.
        name: Name,
        /// Its size, a multiple of 1 MiB.
        #[arg(long, value_parser = parse_size)]
        size: u64,
        /// A pool for each leg, at different sites; the first serves at first.
        #[arg(long, required = true)]
        pool: Vec<String>,
        /// Its failover policy; without one it moves only when told.
        #[arg(long)]
        policy: Option<String>,
        /// Logical block, bytes.
        #[arg(long, value_name = "BYTES", value_parser = parse_block)]
        block: Option<u32>,
    },
    /// List volumes
    List,
    /// Show a volume, its legs and what its nodes say about it
    Show {
        /// Name or id.
        volume: String,
    },
    /// Grow a volume
    #[command(after_help = "Example:\n  voute volume resize db --size 20GiB")]
    Resize {
        /// Name or id.
        volume: String,
        /// Its new size.
        #[arg(long, value_parser = parse_size)]
        size: u64,
    },
    /// Say what a volume tells hosts of how it keeps its blocks
    #[command(after_help = "\
Examples:
  voute volume present db --as thin                          # hosts free what they no longer use
  voute volume present db --as thin --physical-block 4096    # and align by 4096 bytes
  voute volume present db --as thick                         # as at first: and by its own block

Every volume has room for all of its blocks, and every one takes UNMAP. Some hosts free space by themselves
only where they are told that it is thin.")]
    Present {
        /// Name or id.
        volume: String,
        /// Whether freed and never written blocks count as having room of their own.
        #[arg(long = "as", value_name = "KIND")]
        kind: Provisioning,
        /// The block by which hosts are to align, bytes: 4096, or the volume's own.
        #[arg(long, value_name = "BYTES")]
        physical_block: Option<u32>,
    },
    /// Compare a volume's legs, region by region, while it is in use
    #[command(after_help = "\
Example:
  voute volume verify db

Blocks that one leg cannot read are rewritten from the other. Where both can be read and differ, the
leg of the owner is what hosts have read; with --repair the other leg gets its content.")]
    Verify {
        /// Name or id.
        volume: String,
        /// Make the other leg equal to the owner's where they differ.
        #[arg(long)]
        repair: bool,
    },
    /// Say how often every mirrored volume is compared; without options, show it
    #[command(after_help = "Example:\n  voute volume scrub --every-hours 720")]
    Scrub {
        /// Hours from the begin of one comparison to the begin of the next.
        #[arg(long, value_name = "HOURS")]
        every_hours: Option<u32>,
        /// Compare only when told.
        #[arg(long, conflicts_with = "every_hours")]
        never: bool,
        /// Repair legs that differ from their owner's.
        #[arg(long, requires = "every_hours")]
        repair: bool,
    },
    /// Delete a volume that is not mapped
    Delete {
        /// Name or id.
        volume: String,
        /// Even if a host used it in the last 15 minutes, or that is not known since its owner is not heard. A volume
        /// that is mapped is not deleted: `voute mapping remove` first.
        #[arg(long)]
        force: bool,
    },
    /// Move a volume's ownership to its other site, without an error to its hosts
    #[command(
        after_help = "Example:\n  voute volume move db --to lyon --reason 'power works in Paris'"
    )]
    Move {
        /// Name or id.
        volume: String,
        /// The site that should serve it.
        #[arg(long, value_name = "SITE")]
        to: String,
        /// Although the node there does not say that its legs are open
        #[arg(long)]
        force: bool,
    },
}

fn parse_block(text: &str) -> Result<u32, String> {
    match parse_size(text) {
        Ok(512) => Ok(512),
        Ok(4096) => Ok(4096),
        _ => Err("a logical block has 512 or 4096 bytes".to_owned()),
    }
}

/// `voute leg`.
#[derive(Subcommand, Debug)]
pub enum LegVerb {
    /// Add a leg to a volume, at another site; it is resynced from the first
    #[command(after_help = "Example:\n  voute leg add db --pool lyon")]
    Add {
        /// The volume, by name or id.
        volume: String,
        /// A pool of another site.
        #[arg(long)]
        pool: String,
    },
    /// List a volume's legs
    List {
        /// The volume, by name or id.
        volume: String,
    },
    /// Take a leg from a volume
    #[command(after_help = "Example:\n  voute leg remove db --site lyon")]
    Remove {
        /// The volume, by name or id.
        volume: String,
        /// The leg's site, by name or id.
        #[arg(long, required_unless_present = "leg")]
        site: Option<String>,
        /// The leg, by id.
        #[arg(long, conflicts_with = "site", value_name = "ID")]
        leg: Option<String>,
        /// Although the volume's owner does not serve it, so that the leg may be the last good one
        #[arg(long)]
        force: bool,
    },
}

/// `voute host`.
#[derive(Subcommand, Debug)]
pub enum HostVerb {
    /// Add a host by its NVMe and iSCSI names
    #[command(
        visible_alias = "create",
        after_help = "\
Examples:
  voute host add app1 --nqn nqn.2014-08.org.nvmexpress:uuid:36f2e0a0-6f57-4d5b-8a54-2f0f2c1f0001
  voute host add app2 --iqn iqn.1993-08.org.debian:01:abcdef --chap-secret app2"
    )]
    Add {
        /// Its name.
        name: Name,
        /// How it is recognised.
        #[command(flatten)]
        identity: IdentityArguments,
    },
    /// Change how a host is recognised: what is given replaces all names, and the CHAP secret, too
    Change {
        /// Name or id.
        host: String,
        /// How it is recognised from now on.
        #[command(flatten)]
        identity: IdentityArguments,
    },
    /// Say what a host must prove over NVMe (DH-HMAC-CHAP), or that it need not; without options: show it
    #[command(after_help = "\
Examples:
  nvme gen-dhchap-key -m 1 -n nqn.2014-08.org.nvmexpress:uuid:36f2e0a0-6f57-4d5b-8a54-2f0f2c1f0001 > app1.key
  voute secret put app1 --from-file app1.key
  voute host keys app1 --secret app1
  voute host keys app1        # shows which
  voute host keys app1 --none # from now on the host proves nothing")]
    Keys {
        /// Name or id.
        host: String,
        /// Name of the secret (`DHHC-1:…`, see `voute secret put`) that the host must prove on each connection.
        #[arg(long, value_name = "NAME")]
        secret: Option<Name>,
        /// Name of the secret that is proven to the host, if it asks; what was, when left out.
        #[arg(long, value_name = "NAME", requires = "secret")]
        target_secret: Option<Name>,
        /// Prove nothing to the host any more.
        #[arg(long, conflicts_with = "target_secret", requires = "secret")]
        no_target_secret: bool,
        /// The host proves nothing any more: it is known by its name alone.
        #[arg(long, conflicts_with_all = ["secret", "target_secret"])]
        none: bool,
    },
    /// List hosts
    List,
    /// Show a host
    Show {
        /// Name or id.
        host: String,
    },
    /// Remove a host without mappings
    Remove {
        /// Name or id.
        host: String,
    },
}

/// How a host is recognised.
#[derive(Args, Clone, Debug)]
pub struct IdentityArguments {
    /// NVMe qualified name (/etc/nvme/hostnqn); may be given more than once.
    #[arg(long, value_name = "NQN", required_unless_present = "iqn")]
    pub nqn: Vec<String>,
    /// iSCSI name (/etc/iscsi/initiatorname.iscsi); may be given more than once.
    #[arg(long, value_name = "IQN")]
    pub iqn: Vec<String>,
    /// Name of the secret that it must prove by CHAP (see `voute secret put`).
    #[arg(long, value_name = "NAME")]
    pub chap_secret: Option<Name>,
}

/// `voute mapping`.
#[derive(Subcommand, Debug)]
pub enum MappingVerb {
    /// Grant a volume to a host
    #[command(visible_alias = "create", after_help = "Example:\n  voute mapping add db app1")]
    Add {
        /// The volume, by name or id.
        volume: String,
        /// The host, by name or id.
        host: String,
        /// Its iSCSI LUN there; the lowest free one when left out.
        #[arg(long)]
        lun: Option<u16>,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
    },
    /// List mappings
    List,
    /// End a grant
    Remove {
        /// The volume, by name or id.
        volume: String,
        /// The host, by name or id.
        host: String,
    },
}

/// `voute policy`.
#[derive(Subcommand, Debug)]
pub enum PolicyVerb {
    /// Create a policy
    #[command(
        visible_alias = "add",
        after_help = "Example:\n  voute policy create prefer-paris --mode automatic --preferred-site paris --failback"
    )]
    Create {
        /// Its name.
        name: Name,
        /// Its rules.
        #[command(flatten)]
        rules: RuleArguments,
    },
    /// Give a policy other rules; what is given replaces what was
    Change {
        /// Name or id.
        policy: String,
        /// Its rules.
        #[command(flatten)]
        rules: RuleArguments,
    },
    /// List policies
    List,
    /// Show a policy
    Show {
        /// Name or id.
        policy: String,
    },
    /// Remove a policy that no volume uses
    Remove {
        /// Name or id.
        policy: String,
    },
}

/// The rules of a policy.
#[derive(Args, Clone, Debug)]
pub struct RuleArguments {
    /// When volumes move by themselves.
    #[arg(long, value_enum)]
    pub mode: Mode,
    /// How long a site must stay silent beyond detection.
    #[arg(long, value_parser = parse_duration, default_value = "0s", value_name = "DURATION")]
    pub hold_down: Duration,
    /// Where its volumes should live.
    #[arg(long, value_name = "SITE", required_if_eq("failback", "true"))]
    pub preferred_site: Option<String>,
    /// Move back by itself once the preferred site is in sync again.
    #[arg(long)]
    pub failback: bool,
}

/// When volumes move by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// On loss of a site, and on signals.
    Automatic,
    /// Only on signals.
    OnSignal,
    /// Only when told.
    Manual,
}

impl From<Mode> for FailoverMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Automatic => FailoverMode::Automatic,
            Mode::OnSignal => FailoverMode::OnSignal,
            Mode::Manual => FailoverMode::Manual,
        }
    }
}

/// `voute failover`.
#[derive(Subcommand, Debug)]
pub enum FailoverVerb {
    /// Leave a site: everything that it owns goes to its other side, as far as that can take over
    #[command(
        after_help = "Example:\n  voute failover start paris --observed 'smoke in the machine room' --condition fire"
    )]
    Start {
        /// The site to leave, by name or id.
        site: String,
        /// What was seen, in words.
        #[arg(long, default_value = "", value_name = "TEXT")]
        observed: String,
        /// What is the matter [default: what was reported of the site].
        #[arg(long, value_enum)]
        condition: Option<Condition>,
    },
    /// List failovers and their phases
    List,
    /// Show a failover: what was known, what was decided, how long each phase took
    Show {
        /// Its id.
        failover: String,
    },
}

/// `voute event`.
#[derive(Subcommand, Debug)]
pub enum EventVerb {
    /// Print events as they are committed, until Ctrl-C
    #[command(
        after_help = "Examples:\n  voute event follow\n  voute event follow --from 1 -o json"
    )]
    Follow {
        /// Begin with this commit; with the next one to come when left out.
        #[arg(long, value_name = "NUMBER")]
        from: Option<u64>,
    },
}

/// `voute audit`.
#[derive(Subcommand, Debug)]
pub enum AuditVerb {
    /// List commits: who, what, when, why, and what came of it
    #[command(after_help = "\
Examples:
  voute audit list --entity db
  voute audit list --outcome refused --from 1000
  voute audit list --command OwnerMoved -o csv")]
    List {
        /// Lowest number.
        #[arg(long, value_name = "NUMBER")]
        from: Option<u64>,
        /// Highest number.
        #[arg(long, value_name = "NUMBER")]
        to: Option<u64>,
        /// A credential or node, by name or id, or `system`.
        #[arg(long)]
        actor: Option<String>,
        /// A command's name, such as CreateVolume.
        #[arg(long)]
        command: Option<String>,
        /// What came of it.
        #[arg(long, value_enum)]
        outcome: Option<OutcomeFilter>,
        /// Something that the events mention, by name or id.
        #[arg(long)]
        entity: Option<String>,
        /// Text in reason, events or refusal.
        #[arg(long)]
        text: Option<String>,
        /// Most commits to print.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show one commit whole
    Show {
        /// Its number.
        number: u64,
    },
    /// Prove the log: read it from the first commit, check its chain, rebuild the state
    #[command(after_help = "\
Exit codes: 0 the log is proved; 1 it is broken; 3 that cannot be found out now, for example since the log
does not answer.")]
    Verify {
        /// Let each control process of --api or VOUTE_API prove its log, not the first that answers.
        #[arg(long)]
        all: bool,
    },
}

/// What came of commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum OutcomeFilter {
    /// They had effect.
    Accepted,
    /// They were refused.
    Refused,
}

/// `voute credential`.
#[derive(Subcommand, Debug)]
pub enum CredentialVerb {
    /// Issue a bearer token; it is printed once
    #[command(
        visible_alias = "create",
        after_help = "Example:\n  voute credential issue monitoring --role viewer"
    )]
    Issue {
        /// Its name, which stands in the log as the actor: no personal data.
        name: Name,
        /// What it may do.
        #[arg(long, value_enum)]
        role: RoleOfCredential,
        /// Write the token to this file (mode 0600) and do not print it.
        #[arg(long, value_name = "FILE")]
        token_out: Option<PathBuf>,
    },
    /// List credentials
    List,
    /// End a credential
    Revoke {
        /// Name or id.
        credential: String,
    },
}

/// What a credential may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RoleOfCredential {
    /// Read the state.
    Viewer,
    /// Read the state and the trail.
    Auditor,
    /// Operate volumes, legs, hosts, mappings and failovers.
    Operator,
    /// Everything.
    Administrator,
}

impl From<RoleOfCredential> for Role {
    fn from(role: RoleOfCredential) -> Self {
        match role {
            RoleOfCredential::Viewer => Role::Viewer,
            RoleOfCredential::Auditor => Role::Auditor,
            RoleOfCredential::Operator => Role::Operator,
            RoleOfCredential::Administrator => Role::Administrator,
        }
    }
}

/// `voute log-site`.
#[derive(Subcommand, Debug)]
pub enum LogSiteVerb {
    /// List the sites whose control processes sign for the log, and how far they signed
    List,
    /// Add sites, one after the other; each must be heard. From one, add two at once: with two sites
    /// losing either stops every change
    #[command(after_help = "\
Example, with what `voute control --data-dir DIR --show-key` prints on the new machines:
  voute log-site add lyon+2b4b7c2d+AdZ… witness+99f1c0aa+ATk…")]
    Add {
        /// Their keys.
        #[arg(value_name = "KEY", required = true)]
        keys: Vec<String>,
        /// Even if one is not heard, or two sites result.
        #[arg(long)]
        force: bool,
    },
    /// Replace a site that is lost for ever: the new one is added, then the lost one removed
    Replace {
        /// The lost one.
        #[arg(value_name = "NAME")]
        name: String,
        /// The key of the new one.
        #[arg(value_name = "KEY")]
        key: String,
        /// Even if it is not heard.
        #[arg(long)]
        force: bool,
    },
    /// Remove sites, one after the other
    Remove {
        /// Their names.
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Even if two sites result, or too few of those that stay are heard.
        #[arg(long)]
        force: bool,
    },
}

/// `voute secret`.
#[derive(Subcommand, Debug)]
pub enum SecretVerb {
    /// Keep a CHAP secret, read from a file or from standard input
    #[command(
        after_help = "Examples:\n  voute secret put app2 --from-file /root/app2.chap\n  pwgen -s 16 1 | voute secret put app2"
    )]
    Put {
        /// Its name, to which hosts refer.
        name: Name,
        /// File that holds it; standard input when left out.
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
    },
    /// List the names of secrets
    List,
    /// Forget a secret
    Remove {
        /// Its name.
        name: Name,
    },
}

//! The command line: what can be said, without what is done about it.

pub mod locator;
pub mod nouns;
pub mod quantity;
pub mod serving;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Address of the control plane when nothing else is said.
pub const API_DEFAULT: &str = "http://127.0.0.1:7421";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Mirrored volumes over two sites, served over NVMe/TCP and iSCSI; every change in one log.
#[derive(Parser, Debug)]
#[command(
    name = "voute",
    version,
    styles = STYLES,
    max_term_width = 100,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  voute demo                       two sites on this machine, a failover under load, the story from the log
  voute up /srv/voute              one real box: control plane and a node, data under /srv/voute
  voute status                     what the cluster does now
  voute volume create db --size 10GiB --pool paris --pool lyon --policy automatic
  voute audit list --entity db     who did what to the volume db, when and why
  voute completions bash > /etc/bash_completion.d/voute"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of commands that talk to the control plane.
    #[command(flatten)]
    pub api: ApiOptions,
    /// How to log, for commands that serve.
    #[command(flatten)]
    pub logging: LoggingOptions,
}

/// How to reach the control plane, what to tell the log, how to print.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "API options")]
pub struct ApiOptions {
    /// Address of the control plane's API; several are joined by commas, and the next is asked when one does not answer.
    #[arg(long, global = true, env = "VOUTE_API", default_value = API_DEFAULT, value_name = "URL")]
    pub api: String,
    /// File with the bearer token [default: ~/.config/voute/token; VOUTE_TOKEN holds the token itself].
    #[arg(long, global = true, env = "VOUTE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Why you do this; kept in the log for ever.
    #[arg(long, global = true, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Repeat a command safely: the same key has one effect [default: a new key each time].
    #[arg(long, global = true, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Show the events that the command would cause, commit nothing.
    #[arg(long, global = true)]
    pub plan: bool,
    /// How to print results.
    #[arg(long, short = 'o', global = true, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
    /// Return as soon as the log has the command, not when its work is done.
    #[arg(long, global = true, overrides_with = "wait")]
    pub no_wait: bool,
    /// Wait until long work is done and show its progress (the default).
    #[arg(long, global = true, overrides_with = "no_wait")]
    pub wait: bool,
    /// Longest wait for long work.
    #[arg(long, global = true, value_parser = quantity::parse_duration, default_value = "10m", value_name = "DURATION")]
    pub wait_timeout: Duration,
}

impl ApiOptions {
    /// Whether to wait for long work.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.no_wait && !self.plan
    }
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// What the API answered.
    Json,
    /// One header line, one line per item (RFC 4180).
    Csv,
}

/// How serving processes log, on standard error. RUST_LOG says what.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Logging")]
pub struct LoggingOptions {
    /// Form of log lines on standard error; RUST_LOG filters them.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Form of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show it all: two sites on this machine, a site killed under load, the story from the log
    Demo(serving::DemoArguments),
    /// Run one real box: the control plane and one node, in one folder
    Up(serving::UpArguments),
    /// Run a control process
    Control(serving::ControlArguments),
    /// Run a node
    Node(nouns::NodeArguments),
    /// Print a completion script for a shell
    Completions {
        /// Which shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Show the cluster's condition
    Status,
    /// Sites: what fails together
    #[command(subcommand)]
    Site(nouns::SiteVerb),
    /// Devices: what bytes rest on
    #[command(subcommand)]
    Device(nouns::DeviceVerb),
    /// Pools: a site's devices, from which legs are allocated
    #[command(subcommand)]
    Pool(nouns::PoolVerb),
    /// Volumes: disks as hosts see them
    #[command(subcommand)]
    Volume(nouns::VolumeVerb),
    /// Legs: the copies of a volume
    #[command(subcommand)]
    Leg(nouns::LegVerb),
    /// Hosts: who uses volumes
    #[command(subcommand)]
    Host(nouns::HostVerb),
    /// Mappings: volumes granted to hosts
    #[command(subcommand)]
    Mapping(nouns::MappingVerb),
    /// Policies: when groups fail over by themselves
    #[command(subcommand)]
    Policy(nouns::PolicyVerb),
    /// Failovers: leave a site, list what happened
    #[command(subcommand)]
    Failover(nouns::FailoverVerb),
    /// Events: follow them as they happen
    #[command(subcommand)]
    Event(nouns::EventVerb),
    /// The audit trail: read it, prove it
    #[command(subcommand)]
    Audit(nouns::AuditVerb),
    /// Credentials: bearer tokens of the API
    #[command(subcommand)]
    Credential(nouns::CredentialVerb),
    /// Log sites: whose control processes sign for the log
    #[command(subcommand)]
    LogSite(nouns::LogSiteVerb),
    /// Secrets: CHAP secrets, kept beside the log, never in it
    #[command(subcommand)]
    Secret(nouns::SecretVerb),
}

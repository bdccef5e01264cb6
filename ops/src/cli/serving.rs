//! Arguments of the commands that run something: `demo`, `up`, `control`, and `node` without a verb.

use crate::cli::locator::parse_locator;
use clap::Args;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use voute_schemas::place::Locator;
use voute_schemas::{Name, NodeId};

/// `voute demo`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  voute demo                 the story, on the embedded log
  voute demo --json          one JSON object with the figures
  voute demo --nats          the same on a nats-server that is found and started for it
  voute demo --keep          leave it running, with URLs and commands to try

Nothing outside a temporary folder and loopback is touched. The exit code is 0 only if nothing
acknowledged was lost, no read went back, the planned move had no error and the log is proved.")]
pub struct DemoArguments {
    /// Print one JSON object with the figures, nothing else.
    #[arg(long)]
    pub json: bool,
    /// Keep the log on NATS JetStream: on one that is found and started, or on the server of this URL (where a stream
    /// VOUTE_DEMO_… then remains; give --nats-monitoring too, or no failover is armed).
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    pub nats: Option<String>,
    /// Monitoring address of the server that --nats names, such as http://127.0.0.1:8222.
    #[arg(long, value_name = "URL", requires = "nats")]
    pub nats_monitoring: Option<String>,
    /// Leave everything running at the end, until Ctrl-C.
    #[arg(long, conflicts_with = "json")]
    pub keep: bool,
}

/// `voute control`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  voute control --data-dir /var/lib/voute/control
  voute control --data-dir /var/lib/voute/control --log-site paris --show-key
  voute control --data-dir /var/lib/voute/control --listen 192.0.2.1:7421 --log-site paris \\
      --log nats://192.0.2.1:4222,nats://198.51.100.1:4222,nats://203.0.113.1:4222 --log-replicas 3 \\
      --log-monitoring http://192.0.2.1:8222,http://198.51.100.1:8222,http://203.0.113.1:8222 \\
      --log-user voute-control --log-password-file /etc/voute/nats.password

The first start makes an administrator's token in DATA_DIR/admin.token.")]
pub struct ControlArguments {
    /// Folder for keys, checkpoint and, when embedded, the log.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Address of the API and of the nodes' streams.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7421")]
    pub listen: SocketAddr,
    /// Where the log is: `embedded`, or URLs of one NATS cluster (nats-server 2.15.1 or newer), joined by commas, the own
    /// site's first.
    #[arg(long, value_name = "LOG", default_value = "embedded")]
    pub log: String,
    /// User at NATS.
    #[arg(long, value_name = "USER", requires = "log_password_file")]
    pub log_user: Option<String>,
    /// File with that user's password.
    #[arg(long, value_name = "FILE", requires = "log_user")]
    pub log_password_file: Option<PathBuf>,
    /// NATS credentials file (JWT and seed), in place of user and password.
    #[arg(long, value_name = "FILE", conflicts_with = "log_user")]
    pub log_credentials: Option<PathBuf>,
    /// Copies that JetStream keeps of the log: 1, or 3 in a cluster.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub log_replicas: u8,
    /// Name of the stream; its subject is voute.log.NAME.
    #[arg(long, value_name = "NAME", default_value = "VOUTE_LOG")]
    pub log_stream: String,
    /// The stream was created by somebody else: only check it. Needs no right to create it.
    #[arg(long)]
    pub log_exists: bool,
    /// Monitoring addresses of all servers, joined by commas (http://ADDRESS:8222). Without them it cannot be checked that
    /// the log survives a power cut, and nothing fails over by itself.
    #[arg(long, value_name = "URLS")]
    pub log_monitoring: Option<String>,
    /// PEM file of the authorities that the servers' certificates must come from.
    #[arg(long, value_name = "FILE")]
    pub log_ca: Option<PathBuf>,
    /// PEM file of an own certificate.
    #[arg(long, value_name = "FILE", requires = "log_key")]
    pub log_certificate: Option<PathBuf>,
    /// PEM file of its key.
    #[arg(long, value_name = "FILE", requires = "log_certificate")]
    pub log_key: Option<PathBuf>,
    /// Name of the cluster, when this start creates it.
    #[arg(long, value_name = "NAME", default_value = "voute")]
    pub cluster: Name,
    /// Join the cluster whose other control processes run already, with the file join.secret from the data folder of one of
    /// them. Needed at the first start only.
    #[arg(long, value_name = "FILE")]
    pub join: Option<PathBuf>,
    /// Print the key of this process's log site, for `voute log-site add`, and end. Makes the key if there is none.
    #[arg(long)]
    pub show_key: bool,
    /// Name of this process's log site, which signs checkpoints.
    #[arg(long, value_name = "NAME", default_value = "log")]
    pub log_site: Name,
    /// End with the process that started this one, which has this number.
    #[arg(long, hide = true, value_name = "PROCESS")]
    pub end_with_parent: Option<u32>,
}

/// `voute node`, without a verb: run one.
#[derive(Args, Clone, Debug)]
pub struct NodeRunArguments {
    /// The node's id, as `voute node add` printed it.
    #[arg(long, value_name = "ID", requires_all = ["secret_file", "data_dir"])]
    pub id: Option<NodeId>,
    /// File with the node's secret, as `voute node add` printed or wrote it.
    #[arg(long, value_name = "FILE", requires = "id")]
    pub secret_file: Option<PathBuf>,
    /// A control process; give all of them, each with an option or joined by commas, the nearest first: the node keeps a
    /// stream to each.
    #[arg(long, value_name = "URL", requires = "id")]
    pub control: Vec<String>,
    /// Folder for the node's state.
    #[arg(long, value_name = "DIR", requires = "id")]
    pub data_dir: Option<PathBuf>,
    /// File with the keys that this node proves to NVMe/TCP arrays: a line for each array with its NQN, the cluster's
    /// DHHC-1 key, and the array's own if it must prove one.
    #[arg(long, value_name = "FILE", requires = "id")]
    pub array_keys: Option<PathBuf>,
    /// Threads that poll; one per core when left out.
    #[arg(long, value_name = "COUNT", requires = "id", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub reactors: Option<u16>,
    /// Let the system choose the cores of reactors; for several nodes on one machine.
    #[arg(long, requires = "id")]
    pub no_pin: bool,
    /// How long an idle reactor polls before it sleeps, microseconds.
    #[arg(long, value_name = "MICROSECONDS", requires = "id")]
    pub spin_us: Option<u64>,
    /// End with the process that started this one, which has this number.
    #[arg(long, hide = true, requires = "id", value_name = "PROCESS")]
    pub end_with_parent: Option<u32>,
}

/// `voute up`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  voute up /srv/voute                                            a 10 GiB sparse file as its first device
  voute up /srv/voute --device block:/dev/disk/by-id/nvme-XYZ    a real drive
  voute up /srv/voute --address 192.0.2.1                        reachable by other hosts

The first run creates a site, a node, a pool and the devices; later runs start what is there.
Volumes, hosts and mappings are made with the other commands, which it prints.")]
pub struct UpArguments {
    /// Folder for everything.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Device for the pool, on the first run; may be given more than once.
    #[arg(long, value_name = "DEVICE", value_parser = parse_locator)]
    pub device: Vec<Locator>,
    /// Adopt devices even if they hold foreign data, which is then lost.
    #[arg(long)]
    pub overwrite: bool,
    /// Address at which hosts reach this box, on the first run.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub address: IpAddr,
    /// Port of the API.
    #[arg(long, value_name = "PORT", default_value_t = 7421)]
    pub api_port: u16,
    /// Port for NVMe/TCP hosts.
    #[arg(long, value_name = "PORT", default_value_t = 4420)]
    pub nvme_port: u16,
    /// Port for iSCSI hosts.
    #[arg(long, value_name = "PORT", default_value_t = 3260)]
    pub iscsi_port: u16,
    /// Port for other nodes.
    #[arg(long, value_name = "PORT", default_value_t = 4421)]
    pub link_port: u16,
    /// Threads that poll; one per core when left out.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub reactors: Option<u16>,
}

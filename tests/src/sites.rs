//! Three sites as processes of the real binaries: a nats-server and a control process at each, a node
//! at two of them, a mirrored volume, and the verifying host upon it.

pub use crate::cluster::PATIENCE;
use crate::cluster::{alone, connect_host, host_nqn, is_served_by, is_whole};
use crate::program;
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use voute::api::client::Client;
use voute::demo::host::{Host, Layout, Load};
use voute::demo::stage::{Stage, free_addresses};
use voute_control::api::answers::{
    ClusterView, DeviceView, LogSiteView, Page, StatusView, VolumeView,
};
use voute_schemas::contract::GroupRole;
use voute_schemas::place::REGION_BYTES;
use voute_schemas::{CorrelationId, NodeId};

/// The sites; the first two hold data, the first owns the volume at first.
pub const SITES: [&str; 3] = ["paris", "lyon", "turin"];
/// The volume.
pub const VOLUME: &str = "demo";
const VOLUME_BYTES: u64 = 64 << 20;
const DEVICE_BYTES: u64 = 1 << 30;
const WORKERS: u32 = 4;

/// Name of a site's nats-server.
#[must_use]
pub fn log_of(site: &str) -> String {
    format!("nats-{site}")
}

/// Name of a site's control process.
#[must_use]
pub fn control_of(site: &str) -> String {
    format!("control-{site}")
}

/// Name of a site's node, and of its process.
#[must_use]
pub fn node_of(site: &str) -> String {
    format!("node-{site}")
}

struct Site {
    name: &'static str,
    log: SocketAddr,
    monitoring: SocketAddr,
    api: SocketAddr,
    nvme: SocketAddr,
    iscsi: SocketAddr,
    link: SocketAddr,
    control_words: Vec<String>,
    node_words: Vec<String>,
    node: Option<NodeId>,
}

/// The cluster.
pub struct ThreeSites {
    /// Runs the host. Dropped first, so that no task of the host outlives what it talks to.
    pub runtime: Runtime,
    /// An administrator's client, which asks any control process that answers.
    pub client: Client,
    /// Where it runs.
    pub stage: Stage,
    nats_server: PathBuf,
    sites: Vec<Site>,
    token: String,
    // Dropped last: the next cluster of this process starts when this one has ended.
    _alone: MutexGuard<'static, ()>,
}

impl ThreeSites {
    /// Starts everything and waits until three sites sign and the volume is whole.
    ///
    /// # Errors
    /// If something does not start.
    pub fn start(nats_server: PathBuf) -> anyhow::Result<Self> {
        let alone = alone();
        let stage = Stage::of(program::voute()?)?;
        let addresses = free_addresses(SITES.len() * 7)?;
        let routes = addresses.chunks(7).map(|chunk| format!("\"nats://{}\"", chunk[2]));
        let routes = routes.collect::<Vec<_>>().join(", ");
        let mut sites = Vec::new();
        for (name, chunk) in SITES.into_iter().zip(addresses.chunks(7)) {
            let configuration = configuration(&stage, name, chunk, &routes);
            std::fs::write(stage.folder().join(format!("{name}.conf")), configuration)?;
            sites.push(Site {
                name,
                log: chunk[0],
                monitoring: chunk[1],
                api: chunk[3],
                nvme: chunk[4],
                iscsi: chunk[5],
                link: chunk[6],
                control_words: Vec::new(),
                node_words: Vec::new(),
                node: None,
            });
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the host's threads")?;
        let apis: Vec<String> = sites.iter().map(|site| format!("http://{}", site.api)).collect();
        let client = Client::new(&apis.join(","), None);
        let token = String::new();
        let mut cluster =
            ThreeSites { runtime, client, stage, nats_server, sites, token, _alone: alone };
        let built = cluster.build(&apis.join(","));
        match built {
            Ok(()) => Ok(cluster),
            Err(error) => Err(error.context(cluster.stage.tails())),
        }
    }

    fn build(&mut self, apis: &str) -> anyhow::Result<()> {
        for site in SITES {
            self.start_again(&log_of(site))?;
        }
        self.wait("the servers' first answers", || {
            let mut sites = self.sites.iter();
            sites.all(|site| http_get(site.monitoring, "/varz", "").is_some()).then_some(())
        })?;
        for index in 0..SITES.len() {
            self.sites[index].control_words = self.words_of_control(index);
        }
        self.start_again(&control_of(SITES[0]))?;
        let token_file = self.data_of_control(SITES[0]).join("admin.token");
        self.token = self.wait("the first token", || self.stage.token(&token_file))?;
        self.client = Client::new(apis, Some(self.token.clone()));
        self.wait("the first answer", || self.status_at(SITES[0]))?;
        let mut keys = Vec::new();
        for site in &SITES[1..] {
            keys.push(self.key_of(site)?);
            self.start_again(&control_of(site))?;
        }
        for site in SITES {
            self.wait("each control process's first answer", || self.status_at(site))?;
        }
        self.client.post("/v1/log-sites", &json!({"add": keys}))?;
        self.wait_all_sign()?;
        for index in 0..2 {
            self.add_node(index, apis)?;
        }
        self.add_volume()
    }

    fn words_of_control(&self, index: usize) -> Vec<String> {
        let site = &self.sites[index];
        // The own site's server first.
        let mut servers: Vec<String> =
            self.sites.iter().map(|site| format!("nats://{}", site.log)).collect();
        servers.rotate_left(index);
        let monitoring: Vec<String> =
            self.sites.iter().map(|site| format!("http://{}", site.monitoring)).collect();
        let data = self.data_of_control(site.name).display().to_string();
        let (servers, monitoring) = (servers.join(","), monitoring.join(","));
        let mut words = vec![
            "control".to_owned(),
            "--data-dir".to_owned(),
            data,
            "--listen".to_owned(),
            site.api.to_string(),
            "--log".to_owned(),
            servers,
            "--log-monitoring".to_owned(),
            monitoring,
        ];
        words.extend(["--log-replicas", "3", "--log-site", site.name].map(str::to_owned));
        if index > 0 {
            let join = self.data_of_control(SITES[0]).join("join.secret");
            words.extend(["--join".to_owned(), join.display().to_string()]);
        }
        words
    }

    /// A control process's data folder.
    #[must_use]
    pub fn data_of_control(&self, site: &str) -> PathBuf {
        self.stage.folder().join(control_of(site))
    }

    /// The key of a site that is not running yet, as an operator asks for it.
    fn key_of(&self, site: &str) -> anyhow::Result<String> {
        let output = Command::new(self.stage.program())
            .args(["control", "--log-site", site, "--show-key", "--data-dir"])
            .arg(self.data_of_control(site))
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn add_node(&mut self, index: usize, apis: &str) -> anyhow::Result<()> {
        let site = &self.sites[index];
        let name = site.name;
        self.client.post("/v1/sites", &json!({"name": name, "kind": "Data"}))?;
        let node = json!({
            "name": node_of(name), "site": name, "nvme": site.nvme, "iscsi": site.iscsi,
            "link": site.link,
        });
        let admitted = self.client.post("/v1/nodes", &node)?;
        let id = admitted.created.context("a node has an id")?;
        let secret = self.stage.folder().join(format!("{name}.secret"));
        std::fs::write(&secret, admitted.secret.context("a node has a secret")?)?;
        let data = self.stage.folder().join(node_of(name));
        let mut words: Vec<String> =
            ["node", "--no-pin", "--reactors", "1", "--id", &id].map(str::to_owned).into();
        for (option, value) in [("--secret-file", &secret), ("--data-dir", &data)] {
            words.extend([option.to_owned(), value.display().to_string()]);
        }
        for api in apis.split(',') {
            words.extend(["--control".to_owned(), api.to_owned()]);
        }
        self.sites[index].node_words = words;
        self.sites[index].node = Some(id.parse()?);
        self.start_again(&node_of(name))?;
        self.client.post("/v1/pools", &json!({"name": name, "site": name}))?;
        let file = self.stage.folder().join(format!("{name}.img")).display().to_string();
        let device = json!({
            "name": name, "node": node_of(name), "pool": name,
            "locator": {"File": {"path": file, "size_bytes": DEVICE_BYTES}},
        });
        self.client.post("/v1/devices", &device)?;
        self.wait("the device is adopted", || {
            let view: DeviceView = self.client.get(&format!("/v1/devices/{name}")).ok()?;
            (view.state == "adopted").then_some(())
        })
    }

    fn add_volume(&self) -> anyhow::Result<()> {
        let volume = json!({
            "name": VOLUME, "size_bytes": VOLUME_BYTES, "block_bytes": 4096,
            "pools": &SITES[..2], "policy": "automatic",
        });
        self.client.post("/v1/volumes", &volume)?;
        self.wait_whole().map(|_| ())
    }

    /// Connects the verifying host, whose slots fill `regions` regions.
    ///
    /// # Errors
    /// If it cannot connect.
    pub fn add_host(&self, regions: u32) -> anyhow::Result<Arc<Host>> {
        let id = CorrelationId::generate();
        self.client.post("/v1/hosts", &json!({"name": "writer", "nqns": [host_nqn(id)]}))?;
        self.client.post("/v1/mappings", &json!({"volume": VOLUME, "host": "writer"}))?;
        let cluster: ClusterView = self.client.get("/v1/cluster")?;
        let volume = self.volume().context("the volume is there")?;
        let portals = self.sites[..2].iter().map(|site| site.nvme);
        let layout = Layout { volume_bytes: VOLUME_BYTES, regions, region_bytes: REGION_BYTES };
        let subsystem = &cluster.subsystem_nqn;
        connect_host(&self.runtime, &self.stage, id, subsystem, volume.volume, portals, layout)
    }

    /// Begins to write and read.
    #[must_use]
    pub fn begin_load(&self, host: &Arc<Host>) -> Load {
        let _entered = self.runtime.enter();
        Load::start(host, WORKERS)
    }

    /// Starts a process, for the first time or again, as it is configured. Does not wait until it
    /// works.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_again(&self, process: &str) -> anyhow::Result<()> {
        for site in &self.sites {
            if process == log_of(site.name) {
                let mut command = Command::new(&self.nats_server);
                command
                    .arg("--config")
                    .arg(self.stage.folder().join(format!("{}.conf", site.name)));
                return self.stage.start(process, command);
            }
            if process == control_of(site.name) {
                return self.stage.start_self(process, &site.control_words);
            }
            if process == node_of(site.name) {
                return self.stage.start_self(process, &site.node_words);
            }
        }
        bail!("there is no process {process}")
    }

    /// Kills a process with SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&self, process: &str) -> anyhow::Result<()> {
        self.stage.children().kill(process).map(|_| ())
    }

    /// Stops a process where it stands (SIGSTOP), or lets it go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self, process: &str, is_paused: bool) -> anyhow::Result<()> {
        use rustix::process::{Pid, Signal, kill_process};
        let number = self.stage.children().process_of(process).context("it does not run")?;
        let number = Pid::from_raw(i32::try_from(number)?).context("a process has a number")?;
        Ok(kill_process(number, if is_paused { Signal::STOP } else { Signal::CONT })?)
    }

    /// Waits until a condition holds, as long as every process that was started still runs.
    ///
    /// # Errors
    /// If a process ended by itself, or [`PATIENCE`] is over; with the ends of all logs.
    pub fn wait<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
        let waited = self.stage.wait_within(PATIENCE, what, condition);
        waited.map_err(|error| error.context(self.stage.tails()))
    }

    /// Asks one site's control process alone.
    #[must_use]
    pub fn client_at(&self, site: &str) -> Client {
        let site = self.sites.iter().find(|known| known.name == site).expect("a site of ours");
        Client::new(&format!("http://{}", site.api), Some(self.token.clone()))
    }

    fn status_at(&self, site: &str) -> Option<StatusView> {
        self.client_at(site).get("/v1/status").ok()
    }

    /// Waits until every control process hears all three sites sign the same, and finds nothing wrong.
    ///
    /// # Errors
    /// If that does not come by itself.
    pub fn wait_all_sign(&self) -> anyhow::Result<()> {
        self.wait("all sites sign", || {
            SITES
                .iter()
                .all(|site| {
                    let listed = self.client_at(site).get::<Page<LogSiteView>>("/v1/log-sites");
                    let sites = listed.map(|page| page.items).unwrap_or_default();
                    sites.len() == SITES.len()
                        && sites.iter().all(|it| it.heard && it.signed == sites[0].signed)
                })
                .then_some(())
        })
    }

    /// Gets something committed, whoever takes it; how long that took.
    ///
    /// # Errors
    /// If it is refused, or nobody takes it within [`PATIENCE`].
    pub fn commit_something(&self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let name = format!("witness-{}", CorrelationId::generate());
        let site = json!({"name": &name[..40], "kind": "Witness"});
        // One key for all attempts: whichever process took the first, nothing happens twice.
        let client = self.client.with_key(&name);
        loop {
            match client.post("/v1/sites", &site) {
                Ok(_) => return Ok(began.elapsed()),
                Err(error) if began.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// What is known of the volume; nothing if no control process answers.
    #[must_use]
    pub fn volume(&self) -> Option<VolumeView> {
        self.client.get(&format!("/v1/volumes/{VOLUME}")).ok()
    }

    /// Waits until the volume is served with both sides in sync, and would fail over by itself.
    ///
    /// # Errors
    /// If that does not come by itself.
    pub fn wait_whole(&self) -> anyhow::Result<VolumeView> {
        self.wait("both sides are in sync and served", || {
            self.volume().filter(|view| {
                is_whole(view)
                    && view.sides.iter().any(|side| side.role == Some(GroupRole::Serving))
            })
        })
    }

    /// Moves the volume's owner to a data site, as planned.
    ///
    /// # Errors
    /// If it does not come to serve there.
    pub fn move_to(&self, site: &str) -> anyhow::Result<()> {
        let volume = self.wait_whole()?;
        if volume.owner_site.name != site {
            let path = format!("/v1/groups/{}/move", volume.group);
            self.wait("the move is accepted", || {
                self.client.post(&path, &json!({"to": site})).ok()
            })?;
        }
        self.wait("the volume is served there", || {
            self.volume().filter(|view| is_served_by(view, site))
        })?;
        self.wait_whole().map(|_| ())
    }

    /// The site whose control process watches, if one says so.
    #[must_use]
    pub fn watching(&self) -> Option<&'static str> {
        SITES.into_iter().find(|site| {
            let metrics = self.text_at(site, "/v1/metrics").unwrap_or_default();
            metrics.lines().any(|line| line == "voute_watches 1")
        })
    }

    fn text_at(&self, site: &str, path: &str) -> Option<String> {
        let address = self.sites.iter().find(|known| known.name == site)?.api;
        let bearer = format!("authorization: Bearer {}\r\n", self.token);
        http_get(address, path, &bearer)
    }

    /// The site whose nats-server leads the log's stream.
    #[must_use]
    pub fn leader(&self) -> Option<&'static str> {
        self.sites.iter().find_map(|site| {
            let text = http_get(site.monitoring, "/jsz?streams=1", "")?;
            let value: Value = serde_json::from_str(&text).ok()?;
            let details = value["account_details"].as_array()?.iter();
            let streams =
                details.filter_map(|account| account["stream_detail"].as_array()).flatten();
            let leader = streams
                .filter(|stream| stream["name"] == "VOUTE_LOG")
                .find_map(|stream| stream["cluster"]["leader"].as_str())?;
            SITES.into_iter().find(|known| log_of(known) == leader)
        })
    }
}

/// The body of an answer, if it came within a second.
fn http_get(address: SocketAddr, path: &str, headers: &str) -> Option<String> {
    let second = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, second).ok()?;
    stream.set_read_timeout(Some(second)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {address}\r\n{headers}\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.split_once("\r\n\r\n")?.1.to_owned())
}

/// As in `ops/nats/nats-server.conf`, without TLS and users.
fn configuration(stage: &Stage, site: &str, chunk: &[SocketAddr], routes: &str) -> String {
    let (log, monitoring, route) = (chunk[0], chunk[1], chunk[2]);
    let store = stage.folder().join(format!("store-{site}"));
    format!(
        "server_name: {}\nserver_tags: [\"site:{site}\"]\nlisten: \"{log}\"\nhttp: \"{monitoring}\"\n\
         jetstream {{ store_dir: {store:?}, max_file_store: 1GB, sync_interval: always, unique_tag: \"site:\" }}\n\
         cluster {{ name: voute, listen: \"{route}\", routes: [{routes}] }}\n",
        log_of(site)
    )
}

//! Two sites as processes of the real binary, a mirrored volume, and the verifying host upon it: what
//! the whole-system tests start from.

use crate::program;
use anyhow::{Context, bail, ensure};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use voute::demo::cluster::{CONTROL, Cluster, SITES, SiteNode, VOLUME_BYTES};
use voute::demo::host::{Host, Layout, Load};
use voute::demo::nats;
use voute::demo::path::PathConfig;
use voute::demo::stage::Stage;
use voute_control::api::answers::{Changed, DeviceView, Verification, VolumeHealth, VolumeView};
use voute_control::api::requests::{
    CreateDevice, CreateHost, CreateMapping, CreatePool, CreateVolume, MoveGroup, Reference,
};
use voute_schemas::contract::GroupRole;
use voute_schemas::place::{Locator, REGION_BYTES};
use voute_schemas::{CorrelationId, Name, VolumeId};

/// What may take long on a machine that has much else to do, such as a restart of everything.
pub const PATIENCE: Duration = Duration::from_secs(120);
const WORKERS: u32 = 8;

/// Where the log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Log {
    /// In the control process.
    Embedded,
    /// On a nats-server of the test's own.
    Nats,
}

/// A running cluster of two sites.
pub struct TwoSites {
    /// Runs the host. Dropped first, so that no task of the host outlives what it talks to.
    pub runtime: Runtime,
    /// The cluster.
    pub cluster: Cluster,
    /// Where it runs.
    pub stage: Stage,
    log: Log,
    // Dropped last: the next cluster of this process starts when this one has ended.
    _alone: MutexGuard<'static, ()>,
}

/// Clusters of one test process run one after the other: together they would only take each other's
/// time and ports.
static ALONE: Mutex<()> = Mutex::new(());

/// Waits until no other cluster of this test process runs, and keeps others from starting; for tests
/// that choose ports themselves.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The NVMe name of the verifying host.
pub(crate) fn host_nqn(id: CorrelationId) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{id}")
}

/// Starts the verifying host and waits until it is connected to every portal.
pub(crate) fn connect_host(
    runtime: &Runtime,
    stage: &Stage,
    id: CorrelationId,
    subsystem_nqn: &str,
    volume: VolumeId,
    portals: impl Iterator<Item = SocketAddr>,
    layout: Layout,
) -> anyhow::Result<Arc<Host>> {
    let path = |portal| PathConfig {
        portal,
        host_nqn: host_nqn(id),
        host_id: id.bytes(),
        subsystem_nqn: subsystem_nqn.to_owned(),
        volume: volume.bytes(),
    };
    let _entered = runtime.enter();
    let run = u64::from_le_bytes(id.bytes()[8..].try_into().expect("eight of sixteen"));
    let host = Host::start(portals.map(path).collect(), layout, run);
    ensure!(
        runtime.block_on(host.connected(PATIENCE)),
        "the host could not connect to both sites\n{}",
        stage.tails()
    );
    Ok(host)
}

/// Whether a volume is served with both sides in sync, and would fail over by itself.
pub(crate) fn is_whole(view: &VolumeView) -> bool {
    view.health == VolumeHealth::Healthy && view.armed && view.sides.iter().all(|side| side.in_sync)
}

/// Whether a site owns a volume and serves it.
pub(crate) fn is_served_by(view: &VolumeView, site: &str) -> bool {
    let mut sides = view.sides.iter();
    view.owner_site.name == site
        && sides.any(|side| side.site.name == site && side.role == Some(GroupRole::Serving))
}

impl TwoSites {
    /// Starts the control plane and a node at each of two sites.
    ///
    /// # Errors
    /// If something does not start.
    pub fn start(log: Log) -> anyhow::Result<Self> {
        let alone = alone();
        let stage = Stage::of(program::voute()?)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the host's threads")?;
        let server = match log {
            Log::Embedded => None,
            Log::Nats => Some(nats::start(&stage)?),
        };
        let built = Cluster::start(&stage, server.as_ref()).and_then(|mut cluster| {
            cluster.add_sites(&stage)?;
            Ok(cluster)
        });
        match built {
            Ok(cluster) => Ok(TwoSites { runtime, cluster, stage, log, _alone: alone }),
            Err(error) => Err(error.context(stage.tails())),
        }
    }

    /// The same with a pool of one file at each site.
    ///
    /// # Errors
    /// If something does not start.
    pub fn start_with_pools(log: Log) -> anyhow::Result<Self> {
        let sites = TwoSites::start(log)?;
        sites.cluster.add_pools(&sites.stage)?;
        Ok(sites)
    }

    /// Adds a pool of one device at a site, and waits until it is adopted.
    ///
    /// # Errors
    /// If it is refused.
    pub fn add_pool(&self, site: &str, locator: Locator) -> anyhow::Result<()> {
        let pool =
            CreatePool { name: Name::new(site)?, site: Reference(site.into()), extent_bytes: None };
        self.cluster.client.post("/v1/pools", &pool)?;
        self.add_device(&format!("{site}-device"), site, locator, false)?;
        let path = format!("/v1/devices/{site}-device");
        self.wait("the device is adopted", || {
            let view: DeviceView = self.cluster.client.get(&path).ok()?;
            (view.state == "adopted").then_some(())
        })
    }

    /// Asks for a device of a site's node in its pool; does not wait.
    ///
    /// # Errors
    /// If the control plane refuses.
    pub fn add_device(
        &self,
        name: &str,
        site: &str,
        locator: Locator,
        overwrite: bool,
    ) -> anyhow::Result<Changed> {
        let device = CreateDevice {
            name: Name::new(name)?,
            node: Reference(self.cluster.node_at(site)?.name()),
            pool: Reference(site.into()),
            locator,
            overwrite,
        };
        Ok(self.cluster.client.post("/v1/devices", &device)?)
    }

    /// Makes the mirrored volume and connects the verifying host to it, whose slots fill `regions`
    /// regions.
    ///
    /// # Errors
    /// If the volume is not served, or the host cannot connect.
    pub fn add_host(&self, regions: u32) -> anyhow::Result<Arc<Host>> {
        self.add_host_of(regions, VOLUME_BYTES)
    }

    /// The same with a volume of this size.
    ///
    /// # Errors
    /// As [`TwoSites::add_host`].
    pub fn add_host_of(&self, regions: u32, volume_bytes: u64) -> anyhow::Result<Arc<Host>> {
        let id = CorrelationId::generate();
        let volume = self.cluster.add_volume_of(&self.stage, &host_nqn(id), volume_bytes)?;
        let subsystem = self.cluster.view()?.subsystem_nqn;
        let portals = self.cluster.nodes.iter().map(|node| node.portals.nvme);
        let layout = Layout { volume_bytes, regions, region_bytes: REGION_BYTES };
        connect_host(&self.runtime, &self.stage, id, &subsystem, volume.volume, portals, layout)
    }

    /// Makes a mirrored volume with blocks of 512 bytes, grants it as LUN 0 to hosts (name, iSCSI names,
    /// whether for reading only), and waits until both sides serve it.
    ///
    /// # Errors
    /// If that is refused or does not come.
    pub fn add_iscsi_volume(
        &self,
        name: &str,
        size_bytes: u64,
        hosts: &[(&str, &[&str], bool)],
    ) -> anyhow::Result<VolumeView> {
        let client = &self.cluster.client;
        let reference = |text: &str| Reference(text.into());
        let volume = CreateVolume {
            name: Name::new(name)?,
            size_bytes,
            block_bytes: Some(512),
            pools: self.cluster.nodes.iter().map(|node| reference(node.site)).collect(),
            policy: None,
        };
        client.post("/v1/volumes", &volume)?;
        for (host, iqns, read_only) in hosts {
            let iqns = iqns.iter().map(|iqn| (*iqn).to_owned()).collect();
            let create =
                CreateHost { name: Name::new(*host)?, nqns: vec![], iqns, chap_secret: None };
            client.post("/v1/hosts", &create)?;
            let (volume, host) = (reference(name), reference(host));
            let mapping = CreateMapping { volume, host, lun: Some(0), read_only: *read_only };
            client.post("/v1/mappings", &mapping)?;
        }
        self.wait("the volume is served by both sites", || {
            let view: VolumeView = client.get(&format!("/v1/volumes/{name}")).ok()?;
            let is_in_sync = view.sides.iter().all(|side| side.in_sync);
            (view.health == VolumeHealth::Healthy && is_in_sync).then_some(view)
        })
    }

    /// Begins to write and read.
    #[must_use]
    pub fn begin_load(&self, host: &Arc<Host>) -> Load {
        let _entered = self.runtime.enter();
        Load::start(host, WORKERS)
    }

    /// Reads everything that the host knows of; how many slots do not hold what they must.
    #[must_use]
    pub fn verify(&self, host: &Arc<Host>) -> u64 {
        self.runtime.block_on(host.verify_all(WORKERS))
    }

    /// Names of all processes.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        let nodes = self.cluster.nodes.iter().map(SiteNode::name);
        let log = (self.log == Log::Nats).then(|| nats::PROCESS.to_owned());
        std::iter::once(CONTROL.to_owned()).chain(nodes).chain(log).collect()
    }

    /// Kills a process with SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&self, process: &str) -> anyhow::Result<()> {
        let was_awaiting_the_log = self.ended_for_want_of_the_log() && process == CONTROL;
        match self.stage.children().kill(process) {
            // It would have been started again in a moment.
            Err(_) if was_awaiting_the_log => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    /// Whether the control process ended because no nats-server answered: it leaves it to the service
    /// manager to try again (`Restart=always` in its unit).
    fn ended_for_want_of_the_log(&self) -> bool {
        let ended = self.stage.children().ended();
        self.log == Log::Nats
            && ended.is_some_and(|(name, status)| name == CONTROL && status.code() == Some(1))
            && self.stage.tails().contains("no nats-server answers")
    }

    /// Does what the service manager does with a control process that cannot reach the log yet.
    fn supervise(&self) -> anyhow::Result<()> {
        if !self.ended_for_want_of_the_log() {
            return Ok(());
        }
        // Takes it from the list; that it had ended is known.
        let _ = self.stage.children().kill(CONTROL);
        self.start_again(CONTROL)
    }

    /// Starts a process again, as it was. Does not wait until it works.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_again(&self, process: &str) -> anyhow::Result<()> {
        match process {
            CONTROL => self.cluster.start_control(&self.stage),
            nats::PROCESS => nats::start_again(&self.stage),
            _ => {
                let node = self.cluster.nodes.iter().find(|node| node.name() == process);
                let node = node.with_context(|| format!("there is no process {process}"))?;
                self.cluster.start_node(&self.stage, node)
            }
        }
    }

    /// Waits until a condition holds, as long as every process that was started still runs.
    ///
    /// # Errors
    /// If a process ended by itself, or [`PATIENCE`] is over; with the ends of all logs.
    pub fn wait<T>(
        &self,
        what: &str,
        mut condition: impl FnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        let began = Instant::now();
        loop {
            if let Some(found) = condition() {
                return Ok(found);
            }
            self.supervise()?;
            if let Some((name, status)) = self.stage.children().ended() {
                bail!("{name} ended by itself ({status}) before {what}\n{}", self.stage.tails());
            }
            if began.elapsed() > PATIENCE {
                let volume = self.volume();
                bail!(
                    "{what} did not happen within {} s: {volume:#?}\n{}",
                    PATIENCE.as_secs(),
                    self.stage.tails()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is known of the volume; nothing if the control plane does not answer.
    #[must_use]
    pub fn volume(&self) -> Option<VolumeView> {
        self.cluster.volume().ok()
    }

    /// Waits until the volume is served with both sides in sync, and would fail over by itself.
    ///
    /// # Errors
    /// If that does not come by itself.
    pub fn wait_whole(&self) -> anyhow::Result<VolumeView> {
        self.wait("both sides are in sync and served again", || self.volume().filter(is_whole))
    }

    /// The site that owns the volume.
    ///
    /// # Errors
    /// If the control plane does not answer.
    pub fn owner(&self) -> anyhow::Result<&SiteNode> {
        self.cluster.node_at(&self.cluster.volume()?.owner_site.name)
    }

    /// The node of the site that does not own the volume.
    ///
    /// # Errors
    /// If the control plane does not answer.
    pub fn other(&self) -> anyhow::Result<&SiteNode> {
        let owner = self.cluster.volume()?.owner_site.name;
        let site = SITES.into_iter().find(|site| *site != owner);
        self.cluster.node_at(site.context("there are two sites")?)
    }

    /// Moves the volume to the other site, as planned, and waits until it serves.
    ///
    /// # Errors
    /// If it is refused, or the other site does not serve in time.
    pub fn move_to_other(&self) -> anyhow::Result<()> {
        let group = self.cluster.volume()?.group;
        let site = self.other()?.site;
        let client = self.cluster.client.because("to read the other leg");
        let path = format!("/v1/groups/{group}/move");
        // Just after a restart it may turn out that the other site is not in sync yet after all.
        self.wait("the move is accepted", || {
            client.post(&path, &MoveGroup { to: Reference(site.into()) }).ok()
        })?;
        self.wait_served_by(site)
    }

    /// Waits until a site owns the volume and serves it.
    ///
    /// # Errors
    /// If that does not come.
    pub fn wait_served_by(&self, site: &str) -> anyhow::Result<()> {
        self.wait("the other site serves", || {
            self.volume().filter(|view| is_served_by(view, site)).map(|_| ())
        })
    }

    /// Rebuilds the state from the log's first commit and compares it, the chain and the checkpoint.
    ///
    /// # Errors
    /// If anything differs.
    pub fn verify_log(&self) -> anyhow::Result<Verification> {
        let proof: Verification = self.cluster.client.get("/v1/audit/verify")?;
        let is_same = proof.live_digest == proof.replayed_digest;
        ensure!(
            proof.verified && proof.chain && proof.checkpoint && proof.digest && is_same,
            "the log does not prove the state: {proof:?}"
        );
        Ok(proof)
    }
}

/// The nats-server that tests use, or `None`, loudly, when there is none and that may be.
///
/// # Panics
/// If there is none although `CI` is set.
#[must_use]
pub fn nats_server() -> Option<PathBuf> {
    let finder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/nats-server");
    let found = std::process::Command::new(finder).output().expect("the finder is a script here");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if found.status.success() {
        return Some(PathBuf::from(text(&found.stdout)));
    }
    let why = text(&found.stderr);
    assert!(std::env::var_os("CI").is_none(), "no nats-server: {why}");
    eprintln!("SKIPPED: no nats-server ({why})");
    None
}

//! Two sites built through the API, as an operator would build them.

use crate::api::client::{Client, encode};
use crate::api::waiting::Step;
use crate::commands::{judge_adoption, judge_served};
use crate::demo::nats;
use crate::demo::stage::{Stage, free_addresses};
use anyhow::{Context, bail};
use std::net::SocketAddr;
use std::path::PathBuf;
use voute_control::api::answers::{ClusterView, DeviceView, NodeView, StatusView, VolumeView};
use voute_control::api::requests::{
    CreateDevice, CreateHost, CreateMapping, CreateNode, CreatePool, CreateSite, CreateVolume,
    Reference,
};
use voute_schemas::event::SiteKind;
use voute_schemas::place::{Locator, Portals};
use voute_schemas::{Name, NodeId};

/// The two sites; the first owns the volume at first.
pub const SITES: [&str; 2] = ["paris", "lyon"];
/// Name of the control plane's process.
pub const CONTROL: &str = "control";
/// The volume.
pub const VOLUME: &str = "demo";
/// Its size.
pub const VOLUME_BYTES: u64 = 256 << 20;
const DEVICE_BYTES: u64 = 1 << 30;
/// Name of the policy that every new cluster has.
const POLICY: &str = "automatic";
/// The verifying host's iSCSI name.
pub const READER_IQN: &str = "iqn.2026-11.io.voute:demo-reader";
/// Two cores serve a demonstration well enough; more reactors would only spin against each other.
const REACTORS: &str = "1";

/// One site's node.
pub struct SiteNode {
    /// The site.
    pub site: &'static str,
    /// The node's id.
    pub node: NodeId,
    /// Where it listens.
    pub portals: Portals,
    secret_file: PathBuf,
}

impl SiteNode {
    /// Name of its process and of the node.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-1", self.site)
    }
}

/// A cluster that runs on a stage.
pub struct Cluster {
    /// An administrator's client.
    pub client: Client,
    /// The administrator's token, in a file.
    pub token_file: PathBuf,
    /// Where the log is.
    pub log: String,
    /// One node a site.
    pub nodes: Vec<SiteNode>,
    control: Vec<String>,
}

impl Cluster {
    /// Starts the control plane and waits until it answers.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(stage: &Stage, nats: Option<&nats::Server>) -> anyhow::Result<Self> {
        let log = nats.map_or_else(|| "embedded".to_owned(), |server| server.url.clone());
        let listen = free_addresses(1)?[0];
        let data = stage.folder().join("control");
        let token_file = data.join("admin.token");
        let arguments = words(&["control", "--cluster", "demo", "--data-dir"])
            .chain([
                data.display().to_string(),
                "--listen".into(),
                listen.to_string(),
                "--log".into(),
                log.clone(),
            ])
            .chain(nats.map(stream_of_run).into_iter().flatten())
            .collect::<Vec<_>>();
        stage.start_self(CONTROL, &arguments)?;
        let api = format!("http://{listen}");
        let client = stage.wait_until("the control plane's first answer", || {
            let client = Client::new(&api, Some(stage.token(&token_file)?));
            client.get::<StatusView>("/v1/status").ok().map(|_| client)
        })?;
        Ok(Cluster { client, token_file, log, nodes: Vec::new(), control: arguments })
    }

    /// Starts the control plane's process again, as it was started at first. Does not wait.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_control(&self, stage: &Stage) -> anyhow::Result<()> {
        stage.start_self(CONTROL, &self.control)
    }

    /// Adds the sites, admits a node at each and starts it.
    ///
    /// # Errors
    /// If the control plane refuses, or a node does not come up.
    pub fn add_sites(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let client = self.client.because("two sites for the demonstration");
        let addresses = free_addresses(3 * SITES.len())?;
        for (site, chosen) in SITES.into_iter().zip(addresses.chunks_exact(3)) {
            client.post("/v1/sites", &CreateSite { name: name(site)?, kind: SiteKind::Data })?;
            let node = admit(stage, &client, site, chosen)?;
            self.start_node(stage, &node)?;
            self.nodes.push(node);
        }
        for node in &self.nodes {
            self.wait_heard(stage, node)?;
        }
        Ok(())
    }

    /// Starts, or starts again, a site's node process.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_node(&self, stage: &Stage, node: &SiteNode) -> anyhow::Result<()> {
        let data = stage.folder().join(node.name());
        let arguments = [
            ("--id", node.node.to_string()),
            ("--secret-file", node.secret_file.display().to_string()),
            ("--control", self.client.api().to_owned()),
            ("--data-dir", data.display().to_string()),
            ("--reactors", REACTORS.to_owned()),
        ];
        let arguments =
            arguments.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
        stage.start_self(
            &node.name(),
            &words(&["node", "--no-pin"]).chain(arguments).collect::<Vec<_>>(),
        )
    }

    /// Waits until the control plane hears a node.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn wait_heard(&self, stage: &Stage, node: &SiteNode) -> anyhow::Result<()> {
        let path = format!("/v1/nodes/{}", node.node);
        stage.wait_until(&format!("node {} is heard", node.name()), || {
            let view: NodeView = self.client.get(&path).ok()?;
            view.observed.is_some_and(|observed| observed.heard).then_some(())
        })
    }

    /// A pool of one file at each site.
    ///
    /// # Errors
    /// If the control plane refuses, or a node does not adopt its file.
    pub fn add_pools(&self, stage: &Stage) -> anyhow::Result<()> {
        self.add_pools_of(stage, DEVICE_BYTES)
    }

    /// The same of files of this size, sparse.
    ///
    /// # Errors
    /// As [`Cluster::add_pools`].
    pub fn add_pools_of(&self, stage: &Stage, device_bytes: u64) -> anyhow::Result<()> {
        let client = self.client.because("storage for the demonstration");
        for node in &self.nodes {
            let (site, file) = (node.site, stage.folder().join(format!("{}.img", node.site)));
            client.post(
                "/v1/pools",
                &CreatePool { name: name(site)?, site: reference(site), extent_bytes: None },
            )?;
            let device = CreateDevice {
                name: name(&format!("{site}-file"))?,
                node: reference(&node.name()),
                pool: reference(site),
                locator: Locator::File {
                    path: file.display().to_string(),
                    size_bytes: device_bytes,
                },
                overwrite: false,
            };
            client.post("/v1/devices", &device)?;
        }
        for site in SITES {
            let path = format!("/v1/devices/{site}-file");
            wait_step(
                stage,
                &self.client,
                &path,
                "the devices are adopted",
                |view: &DeviceView| judge_adoption(view),
            )?;
        }
        Ok(())
    }

    /// The mirrored volume, granted to the verifying host by both protocols.
    ///
    /// # Errors
    /// If the control plane refuses, or the volume is not served in time.
    pub fn add_volume(&self, stage: &Stage, host_nqn: &str) -> anyhow::Result<VolumeView> {
        self.add_volume_of(stage, host_nqn, VOLUME_BYTES)
    }

    /// The same of this size.
    ///
    /// # Errors
    /// As [`Cluster::add_volume`].
    pub fn add_volume_of(
        &self,
        stage: &Stage,
        host_nqn: &str,
        size_bytes: u64,
    ) -> anyhow::Result<VolumeView> {
        let client = self.client.because("a mirrored volume for the demonstration");
        let volume = CreateVolume {
            name: name(VOLUME)?,
            size_bytes,
            block_bytes: Some(4096),
            pools: SITES.into_iter().map(reference).collect(),
            policy: Some(reference(POLICY)),
        };
        client.post("/v1/volumes", &volume)?;
        let hosts = [
            ("writer", vec![host_nqn.to_owned()], vec![]),
            ("reader", vec![], vec![READER_IQN.to_owned()]),
        ];
        for (host, nqns, iqns) in hosts {
            client.post(
                "/v1/hosts",
                &CreateHost { name: name(host)?, nqns, iqns, chap_secret: None },
            )?;
            let mapping = CreateMapping {
                volume: reference(VOLUME),
                host: reference(host),
                lun: None,
                read_only: false,
            };
            client.post("/v1/mappings", &mapping)?;
        }
        self.wait_volume(stage, "the volume is served", judge_served)
    }

    /// What is known of the volume.
    ///
    /// # Errors
    /// If the control plane does not answer.
    pub fn volume(&self) -> anyhow::Result<VolumeView> {
        Ok(self.client.get(&format!("/v1/volumes/{}", encode(VOLUME)))?)
    }

    /// Waits for something of the volume.
    ///
    /// # Errors
    /// If it fails, or does not come in time.
    pub fn wait_volume(
        &self,
        stage: &Stage,
        what: &str,
        judge: impl FnMut(&VolumeView) -> Step,
    ) -> anyhow::Result<VolumeView> {
        wait_step(stage, &self.client, &format!("/v1/volumes/{VOLUME}"), what, judge)
    }

    /// The cluster's names.
    ///
    /// # Errors
    /// If the control plane does not answer.
    pub fn view(&self) -> anyhow::Result<ClusterView> {
        Ok(self.client.get("/v1/cluster")?)
    }

    /// The node of a site.
    ///
    /// # Errors
    /// If there is none.
    pub fn node_at(&self, site: &str) -> anyhow::Result<&SiteNode> {
        self.nodes
            .iter()
            .find(|node| node.site == site)
            .with_context(|| format!("no node at {site}"))
    }
}

/// A stream of this run's own, so that a server that serves others too is not disturbed.
fn stream_of_run(server: &nats::Server) -> Vec<String> {
    let stream = format!("VOUTE_DEMO_{}", std::process::id());
    let monitoring =
        server.monitoring.iter().flat_map(|url| ["--log-monitoring".to_owned(), url.clone()]);
    ["--log-stream".to_owned(), stream].into_iter().chain(monitoring).collect()
}

fn admit(
    stage: &Stage,
    client: &Client,
    site: &'static str,
    chosen: &[SocketAddr],
) -> anyhow::Result<SiteNode> {
    let [nvme, iscsi, link] = *chosen else { bail!("three ports are needed for a node") };
    let body =
        CreateNode { name: name(&format!("{site}-1"))?, site: reference(site), nvme, iscsi, link };
    let changed = client.post("/v1/nodes", &body)?;
    let secret = changed.secret.context("the control plane gave no secret for the node")?;
    let secret_file = stage.folder().join(format!("{site}-1.secret"));
    crate::commands::write_secret(&secret_file, &secret)?;
    let node = changed.created.context("the control plane gave no id for the node")?.parse()?;
    Ok(SiteNode { site, node, portals: Portals { nvme, iscsi, link }, secret_file })
}

fn wait_step<T: serde::de::DeserializeOwned>(
    stage: &Stage,
    client: &Client,
    path: &str,
    what: &str,
    mut judge: impl FnMut(&T) -> Step,
) -> anyhow::Result<T> {
    let mut last = String::new();
    let outcome = stage.wait_until(what, || match client.get::<T>(path) {
        Ok(view) => match judge(&view) {
            Step::Done => Some(Ok(view)),
            Step::Failed(cause) => Some(Err(anyhow::anyhow!("{what}: {cause}"))),
            Step::Going(words) => {
                last = words;
                None
            }
        },
        Err(error) => Some(Err(error.into())),
    });
    outcome
        .with_context(|| format!("the last that was heard: {last:?}"))
        .and_then(|outcome| outcome)
}

fn words(texts: &[&str]) -> impl Iterator<Item = String> {
    texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>().into_iter()
}

fn name(text: &str) -> anyhow::Result<Name> {
    Ok(Name::new(text)?)
}

fn reference(text: &str) -> Reference {
    Reference(text.to_owned())
}

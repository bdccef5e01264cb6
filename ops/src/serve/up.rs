//! `voute up`: one real box. The control plane and one node are processes of their own, started again
//! if they end; the first run creates a site, a node, a pool and the devices.

use crate::api::client::{ApiError, Client, encode};
use crate::api::token::read_token;
use crate::api::waiting::wait_for;
use crate::cli::locator::{parse_locator, show_locator};
use crate::cli::serving::UpArguments;
use crate::commands::{judge_adoption, write_secret};
use crate::print::line;
use anyhow::{Context, bail, ensure};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use voute_control::api::answers::{ClusterView, DeviceView, NodeView, StatusView};
use voute_control::api::requests::{CreateDevice, CreateNode, CreatePool, CreateSite, Reference};
use voute_schemas::Name;
use voute_schemas::event::SiteKind;
use voute_schemas::place::Locator;

/// What everything on the box is called.
const SITE: &str = "main";
const NODE: &str = "main-1";
const POOL: &str = "main";
const DEVICE_SIZE: &str = "10GiB";
/// Pause before a process that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// How long processes may take to stop before they are killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(20);

/// The box.
struct OneBox {
    arguments: UpArguments,
    folder: PathBuf,
    api: SocketAddr,
}

/// Runs the box until SIGINT or SIGTERM.
///
/// # Errors
/// If it cannot be set up.
pub fn run(arguments: UpArguments) -> anyhow::Result<()> {
    std::fs::create_dir_all(&arguments.directory).with_context(|| {
        format!("cannot make {}; name a folder that you may write", arguments.directory.display())
    })?;
    let folder = arguments.directory.canonicalize()?;
    // Loopback unless hosts come from elsewhere: the API then must be reachable too.
    let listen = if arguments.address.is_loopback() {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        arguments.address
    };
    let api = SocketAddr::new(listen, arguments.api_port);
    let one_box = OneBox { arguments, folder, api };
    // On this thread alone: children end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(one_box.supervise())
}

impl OneBox {
    async fn supervise(self) -> anyhow::Result<()> {
        let mut control = self.start_control()?;
        let node_arguments = tokio::select! {
            prepared = self.prepare_node() => prepared?,
            status = control.wait() => bail!("the control process ended ({}); its messages are above", status?),
            signal = super::signalled() => return Ok(signal?),
        };
        let mut node = self.start_node(&node_arguments)?;
        let ready = self.prepare_pool();
        tokio::pin!(ready);
        let mut is_ready = false;
        loop {
            tokio::select! {
                outcome = &mut ready, if !is_ready => {
                    outcome?;
                    is_ready = true;
                }
                status = control.wait() => {
                    eprintln!("voute: the control process ended ({}); starting it again", status?);
                    tokio::time::sleep(RESTART_PAUSE).await;
                    control = self.start_control()?;
                }
                status = node.wait() => {
                    eprintln!("voute: the node ended ({}); starting it again", status?);
                    tokio::time::sleep(RESTART_PAUSE).await;
                    node = self.start_node(&node_arguments)?;
                }
                signal = super::signalled() => {
                    signal?;
                    break;
                }
            }
        }
        // The node first: it tells the control plane what it last did.
        stop(&mut node).await;
        stop(&mut control).await;
        Ok(())
    }

    fn start_control(&self) -> anyhow::Result<Child> {
        let data = self.folder.join("control");
        start_self(&["control", "--data-dir", &text_of(&data)?, "--listen", &self.api.to_string()])
    }

    fn start_node(&self, identity: &Identity) -> anyhow::Result<Child> {
        let data = self.folder.join("node");
        let secret = text_of(&identity.secret_file)?;
        let api = self.api_url();
        let data = text_of(&data)?;
        let mut words = vec![
            "node",
            "--id",
            &identity.node,
            "--secret-file",
            &secret,
            "--control",
            &api,
            "--data-dir",
            &data,
        ];
        let reactors = self.arguments.reactors.map(|count| count.to_string());
        if let Some(count) = &reactors {
            words.extend(["--reactors", count]);
        }
        start_self(&words)
    }

    fn api_url(&self) -> String {
        format!("http://{}", self.api)
    }

    fn token_file(&self) -> PathBuf {
        self.folder.join("control/admin.token")
    }

    /// Waits for the control plane, and admits the node on the first run.
    async fn prepare_node(&self) -> anyhow::Result<Identity> {
        let began = Instant::now();
        let client = loop {
            let client = read_token(&self.token_file())
                .ok()
                .map(|token| Client::new(&self.api_url(), Some(token)));
            if let Some(client) = client
                && aside(&client, |client| client.get::<StatusView>("/v1/status")).await?.is_ok()
            {
                break client;
            }
            ensure!(
                began.elapsed() < START_TIME_MAX,
                "the control plane does not answer at {}; is another one's token in {}?",
                self.api,
                self.token_file().display()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let secret_file = self.folder.join("node.secret");
        let arguments = self.arguments.clone();
        aside(&client, move |client| admit(client, &arguments, &secret_file)).await?
    }

    /// Makes the pool and its devices on the first run, then tells how to go on.
    async fn prepare_pool(&self) -> anyhow::Result<()> {
        let client = Client::new(&self.api_url(), Some(read_token(&self.token_file())?));
        let devices = if self.arguments.device.is_empty() {
            let file = self.folder.join("disk.img");
            vec![parse_locator(&format!("file:{}:{DEVICE_SIZE}", text_of(&file)?))?]
        } else {
            self.arguments.device.clone()
        };
        let (is_default, overwrite) = (self.arguments.device.is_empty(), self.arguments.overwrite);
        let names = aside(&client, move |client| {
            add_pool(client, &devices, is_default, overwrite)?;
            Ok::<_, anyhow::Error>(client.get::<ClusterView>("/v1/cluster")?)
        })
        .await??;
        self.tell(&names);
        Ok(())
    }

    fn tell(&self, names: &ClusterView) {
        let (address, arguments) = (self.arguments.address, &self.arguments);
        let lines = [
            "The box runs; Ctrl-C stops it. In another shell:".to_owned(),
            String::new(),
            format!("  export VOUTE_API={}", self.api_url()),
            format!("  export VOUTE_TOKEN_FILE={}", self.token_file().display()),
            "  voute status".to_owned(),
            format!("  voute volume create first --size 1GiB --pool {POOL}"),
            "  voute host add app1 --nqn \"$(cat /etc/nvme/hostnqn)\"".to_owned(),
            "  voute mapping add first app1".to_owned(),
            format!(
                "  nvme connect -t tcp -a {address} -s {} -n {}",
                arguments.nvme_port, names.subsystem_nqn
            ),
            format!(
                "  iscsiadm -m discovery -t sendtargets -p {}",
                SocketAddr::new(address, arguments.iscsi_port)
            ),
        ];
        lines.iter().for_each(|text| line(text));
    }
}

/// What the node process is started with.
struct Identity {
    node: String,
    secret_file: PathBuf,
}

/// Admits the node, unless it was before and its secret is still there. A first run that was cut
/// short leaves a node whose secret nobody knows: that one is replaced.
fn admit(client: &Client, arguments: &UpArguments, secret_file: &Path) -> anyhow::Result<Identity> {
    let client = client.because("first run of this box");
    let path = format!("/v1/nodes/{}", encode(NODE));
    let known: Option<NodeView> = found(client.get(&path))?;
    if let (Some(node), true) = (&known, secret_file.exists()) {
        return Ok(Identity { node: node.node.to_string(), secret_file: secret_file.to_owned() });
    }
    if known.is_some() {
        client.delete(&path).context(
            "the node's secret is lost; remove its devices and the node, then run this again",
        )?;
    }
    if found(client.get_value(&format!("/v1/sites/{SITE}")))?.is_none() {
        client.post("/v1/sites", &CreateSite { name: Name::new(SITE)?, kind: SiteKind::Data })?;
    }
    let at = |port| SocketAddr::new(arguments.address, port);
    let body = CreateNode {
        name: Name::new(NODE)?,
        site: Reference(SITE.to_owned()),
        nvme: at(arguments.nvme_port),
        iscsi: at(arguments.iscsi_port),
        link: at(arguments.link_port),
    };
    if secret_file.exists() {
        std::fs::remove_file(secret_file).context("an old secret cannot be removed")?;
    }
    let changed = client.post("/v1/nodes", &body)?;
    write_secret(
        secret_file,
        &changed.secret.context("the control plane gave no secret for the node")?,
    )?;
    let node = changed.created.context("the control plane gave no id for the node")?;
    Ok(Identity { node, secret_file: secret_file.to_owned() })
}

/// Makes the pool, and adds those devices that it does not have. The default file is only for a pool
/// that has none.
fn add_pool(
    client: &Client,
    devices: &[Locator],
    is_default: bool,
    overwrite: bool,
) -> anyhow::Result<()> {
    let client = client.because("first run of this box");
    if found(client.get_value(&format!("/v1/pools/{POOL}")))?.is_none() {
        let body = CreatePool {
            name: Name::new(POOL)?,
            site: Reference(SITE.to_owned()),
            extent_bytes: None,
        };
        client.post("/v1/pools", &body)?;
    }
    let known: Vec<DeviceView> = client.list_of("/v1/devices")?;
    if is_default && !known.is_empty() {
        return Ok(());
    }
    let new = devices
        .iter()
        .filter(|device| known.iter().all(|view| place(&view.locator) != place(device)));
    for (index, locator) in new.enumerate() {
        let name = format!("{NODE}-{}", known.len() + index + 1);
        let body = CreateDevice {
            name: Name::new(name.clone())?,
            node: Reference(NODE.to_owned()),
            pool: Reference(POOL.to_owned()),
            locator: locator.clone(),
            overwrite,
        };
        client.post("/v1/devices", &body)?;
        let what = format!("adoption of {}", show_locator(locator));
        wait_for(&client, &format!("/v1/devices/{name}"), START_TIME_MAX, &what, judge_adoption)?;
    }
    Ok(())
}

/// Where a device is, whatever size it is to be created with.
fn place(locator: &Locator) -> String {
    match locator {
        Locator::File { path, .. } => format!("file:{path}"),
        other => show_locator(other),
    }
}

fn found<T>(answer: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ApiError::Refused { status: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets something that blocks run beside this thread, which goes on to watch the processes.
async fn aside<T: Send + 'static>(
    client: &Client,
    work: impl FnOnce(&Client) -> T + Send + 'static,
) -> anyhow::Result<T> {
    let client = client.clone();
    Ok(tokio::task::spawn_blocking(move || work(&client)).await?)
}

fn start_self(words: &[&str]) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    Command::new(program)
        .args(words)
        .args(["--end-with-parent", &std::process::id().to_string()])
        .stdin(Stdio::null())
        // Ctrl-C is for this process, which then stops the others in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start voute {}", words[0]))
}

async fn stop(child: &mut Child) {
    let process =
        child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(process) = process {
        let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(STOP_TIME_MAX, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    path.to_str()
        .map(ToOwned::to_owned)
        .with_context(|| format!("{} is not UTF-8; choose another folder", path.display()))
}

//! A control process, from its start to its end.

use crate::api::{self, App};
use crate::connections::{Connections, Peer};
use crate::genesis::{GenesisError, found};
use crate::projection::{Projection, ProjectionError, Snapshot};
use crate::secrets::{JoinFile, Secrets, SecretsError};
use crate::service::{
    self, Changes, Context, Done, Fault, PipelineConfig, Seat, SeatError, Unanswered,
};
use crate::sharing::Sharing;
use crate::stream::{self, Streams};
use crate::watcher::{self, lease::Holder};
use axum::Router;
use axum::routing::get;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use voute_events::note::verifier_text;
use voute_events::{
    AnyLog, EmbeddedLog, Exchange, JetStreamLog, JetStreamOptions, Log, Safety, Signer,
};
use voute_schemas::commit::Origin;
use voute_schemas::times::Times;
use voute_schemas::{ClusterId, Command, Commit, Event, Name, Sequence, contract};

/// File with which other control processes join the cluster, in the data directory.
pub const JOIN_FILE: &str = "join.secret";
/// File of the log site's key, in the data directory.
pub const KEY_FILE: &str = "site.key";
/// File of what it signed.
pub const REGISTER_FILE: &str = "signed.register";
/// Where the API listens unless told otherwise.
pub const API_LISTEN_DEFAULT: &str = "127.0.0.1:7421";
/// How often the log's safety is checked again.
const SAFETY_INTERVAL: Duration = Duration::from_secs(30);
/// Pause before the loss of a register is told to the log again.
const RECORD_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How long open requests may take when the process stops.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// What a control process is started with.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Its files: the embedded log, projection, keys, secrets, the first administrator's token.
    pub data_dir: PathBuf,
    /// Where API and node contract listen; port 0 for any.
    pub api_listen: SocketAddr,
    /// The log.
    pub log: LogConfig,
    /// Name of a cluster that is founded.
    pub cluster_name: Name,
    /// Name under which this process signs checkpoints.
    pub log_site_name: Name,
    /// The join file of a cluster that other control processes run already; not needed again once
    /// this process has joined.
    pub join: Option<PathBuf>,
    /// Times that nodes get.
    pub times: Times,
}

/// Which log.
#[derive(Clone, Debug)]
pub enum LogConfig {
    /// A file in the data directory.
    Embedded,
    /// A stream of NATS JetStream.
    JetStream(Box<JetStreamOptions>),
}

impl ControlConfig {
    /// The usual for one box: embedded log, the default address and times.
    ///
    /// # Panics
    /// Never: the constants are valid.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        ControlConfig {
            data_dir: data_dir.into(),
            api_listen: API_LISTEN_DEFAULT.parse().expect("the constant is an address"),
            log: LogConfig::Embedded,
            cluster_name: Name::new("voute").expect("the constant is a name"),
            log_site_name: Name::new("log-1").expect("the constant is a name"),
            join: None,
            times: Times::default(),
        }
    }
}

/// Why a control process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error("the data directory {path} cannot be made or used: {source}")]
    DataDirectory {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The listener.
    #[error("the API cannot listen on {address}: {source}; free the address or choose another")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The log.
    #[error("the log cannot be opened: {0}")]
    Log(String),
    /// Key and register of the log site.
    #[error(transparent)]
    Seat(#[from] SeatError),
    /// The secret store.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The log has a cluster of which this data directory knows nothing.
    #[error(
        "this log belongs to a cluster that other control processes founded; copy {JOIN_FILE} from the data directory of one of them, and start with --join FILE"
    )]
    NotJoined,
    /// The join file and the log are of two clusters.
    #[error(
        "the join file is of cluster {of_file}, the log holds {of_log}; check --log and --join"
    )]
    OtherCluster {
        /// In the join file.
        of_file: ClusterId,
        /// In the log; none if it is empty.
        of_log: String,
    },
    /// The projection's file.
    #[error(transparent)]
    Projection(#[from] ProjectionError),
    /// The log's content.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The first start.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
}

/// A running control process. Dropping it does not stop it.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    token_file: Option<PathBuf>,
    service: service::Service,
    ended: JoinHandle<Result<(), Fault>>,
    stop: watch::Sender<bool>,
}

impl Running {
    /// Where the API listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// File with the administrator's token, if this start made one. Show its path, never its
    /// content.
    #[must_use]
    pub fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    /// The commit pipeline and the published state.
    #[must_use]
    pub fn service(&self) -> &service::Service {
        &self.service
    }

    /// Asks it to stop; [`Running::ended`] tells when it did.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Returns when it has stopped, its snapshot written.
    ///
    /// # Errors
    /// [`Fault`] if it stopped because the log cannot be what it is.
    ///
    /// # Panics
    /// If one of its tasks did.
    pub async fn ended(self) -> Result<(), Fault> {
        self.ended.await.expect("the control process's tasks do not panic")
    }
}

/// The key by which others know the log site of a data directory, as signed notes write it; made if
/// there is none yet.
///
/// # Errors
/// [`StartError`] if the directory or the key cannot be made or used.
pub fn log_site_key(data_dir: &Path, name: &Name) -> Result<String, StartError> {
    make_data_directory(data_dir)?;
    let (key, register) = (data_dir.join(KEY_FILE), data_dir.join(REGISTER_FILE));
    let verifier = if key.exists() {
        // The register may be in use; it is not needed here.
        Signer::load_or_create(&key, name.as_str()).map_err(SeatError::from)?.verifier()
    } else {
        Seat::open(&key, &register, name.as_str())?.verifier()
    };
    Ok(verifier_text(&verifier))
}

/// Starts a control process, which ends some time after `shutdown` does.
///
/// # Errors
/// [`StartError`].
pub async fn run(
    config: ControlConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Running, StartError> {
    make_data_directory(&config.data_dir)?;
    let log = open_log(&config).await?;
    let exchange = log.exchange();
    run_on(Arc::new(log.clone()), exchange, Some(log), config, shutdown).await
}

/// The same over a log that is open already, beside which `exchange` reaches the other control
/// processes; `watched` is asked from time to time whether it is
/// safe to fail over by itself.
///
/// # Errors
/// [`StartError`].
pub async fn run_on<L: Log>(
    log: Arc<L>,
    exchange: Exchange,
    watched: Option<AnyLog>,
    config: ControlConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Running, StartError> {
    make_data_directory(&config.data_dir)?;
    // The address first: of two processes started by mistake, the second must touch nothing.
    let listener = listen(config.api_listen).await?;
    let address = listener
        .local_addr()
        .map_err(|source| StartError::Listen { address: config.api_listen, source })?;
    let data = &config.data_dir;
    let name = config.log_site_name.as_str();
    let seat = Seat::open(&data.join(KEY_FILE), &data.join(REGISTER_FILE), name)?;
    let verifier = seat.verifier();
    let joins = Joining::of(&config, &exchange, &log).await?;
    let secrets = Arc::new(joins.open_secrets(&data.join("secrets.redb"))?);
    let sharing = Arc::new(Sharing::new(Arc::clone(&secrets), exchange.clone(), verifier.key));
    let projection = Projection::open(&data.join("projection.redb"))?;
    let snapshot = load(&projection)?;
    let streams = Arc::new(Streams::default());
    let (stop, stopping) = watch::channel(false);
    let (service, read, pipeline) = service::start(
        log,
        PipelineConfig {
            seat: Some(seat),
            exchange: exchange.clone(),
            projection: Some(projection),
            snapshot,
            changes: Arc::clone(&streams) as Arc<dyn Changes>,
            stop: stopping.clone(),
        },
    )
    .await?;
    joins.check(read.cluster().map(|cluster| cluster.id))?;
    let token_file = found(&service, &read, data, &config.cluster_name, verifier.clone()).await?;
    let cluster = read
        .cluster()
        .map(|cluster| cluster.id)
        .or_else(|| service.read(|view| view.state.cluster().map(|cluster| cluster.id)));
    drop(read);
    if let Some(cluster) = cluster.filter(|_| !exchange.is_alone()) {
        secrets.write_join_file(&data.join(JOIN_FILE), cluster)?;
    }
    let reseeding = tokio::spawn(record_reseeding(service.clone(), verifier.name));
    let app = App {
        service: service.clone(),
        observed: Arc::default(),
        streams,
        secrets,
        sharing: Arc::clone(&sharing),
        times: config.times,
        audits: Arc::default(),
        safety: watch::Sender::default(),
        watch_holder: watch::Sender::new(if exchange.is_alone() {
            Holder::Own
        } else {
            Holder::Nobody
        }),
        watches: watch::Sender::new(false),
        stopping: stopping.clone(),
    };
    if let Some(AnyLog::JetStream(log)) = &watched {
        take_safety(&app, log.safety().clone());
    }
    let server = tokio::spawn(serve(listener, app.clone(), stopping.clone()));
    let watching = tokio::spawn(watcher::run(app.clone(), exchange.clone(), stopping.clone()));
    let safety = tokio::spawn(keep_checking_safety(app.clone(), watched, stopping.clone()));
    let streams = Arc::clone(&app.streams);
    let sharing = tokio::spawn(async move { sharing.run(streams, stopping).await });
    let stopper = stop.clone();
    tokio::spawn(async move {
        shutdown.await;
        stopper.send_replace(true);
    });
    let signal = stop.clone();
    let ended = tokio::spawn(async move {
        let ended = pipeline.await.expect("the pipeline does not panic");
        if ended.is_err() {
            // Readers still get answers about what is wrong; only a stop ends the process.
            let _ = signal.subscribe().wait_for(|stop| *stop).await;
        }
        app.streams.goodbye_all("this control process is stopping");
        let server_abort = server.abort_handle();
        if tokio::time::timeout(DRAIN_WITHIN, server).await.is_err() {
            server_abort.abort();
        }
        // They hold the log and the secrets open.
        for task in [watching, safety, sharing, reseeding] {
            task.abort();
            let _ = task.await;
        }
        ended
    });
    tracing::info!(%address, "the control process serves");
    Ok(Running { address, token_file, service, ended, stop })
}

/// How this process comes by the secrets of the cluster.
struct Joining {
    file: Option<(PathBuf, JoinFile)>,
}

impl Joining {
    /// Founds a cluster, goes on as a member, or joins with a file; refuses to make up secrets for a
    /// cluster that has some.
    async fn of<L: Log>(
        config: &ControlConfig,
        exchange: &Exchange,
        log: &Arc<L>,
    ) -> Result<Self, StartError> {
        if let Some(path) = &config.join {
            let joining = Joining { file: Some((path.clone(), JoinFile::read(path)?)) };
            // Before anything of the file is kept: the next start would take it for this cluster's.
            joining.check(founded_by(log).await?)?;
            return Ok(joining);
        }
        let is_member = config.data_dir.join("secrets.redb").exists();
        if !is_member && !exchange.is_alone() && founded_by(log).await?.is_some() {
            return Err(StartError::NotJoined);
        }
        Ok(Joining { file: None })
    }

    fn open_secrets(&self, path: &Path) -> Result<Secrets, SecretsError> {
        Secrets::open(path, self.file.as_ref().map(|(path, file)| (path.as_path(), file)))
    }

    /// Whether the log is the one to which the file belongs.
    fn check(&self, cluster: Option<ClusterId>) -> Result<(), StartError> {
        let Some((_, file)) = &self.file else { return Ok(()) };
        if cluster == Some(file.cluster) {
            return Ok(());
        }
        let of_log = cluster.map_or_else(|| "none".to_owned(), |cluster| cluster.to_string());
        Err(StartError::OtherCluster { of_file: file.cluster, of_log })
    }
}

/// The cluster whose log this is, as its first commit says; `None`: it is empty.
async fn founded_by<L: Log>(log: &Arc<L>) -> Result<Option<ClusterId>, StartError> {
    let first = log.read(Sequence(1), 1).await;
    let first = first.map_err(|error| StartError::Log(error.to_string()))?;
    let Some(first) = first.first() else { return Ok(None) };
    let commit =
        Commit::decode(&first.bytes).map_err(|error| StartError::Log(error.to_string()))?;
    let founded = commit.events().iter().find_map(|event| match event {
        Event::ClusterCreated { cluster, .. } => Some(*cluster),
        _ => None,
    });
    founded
        .map(Some)
        .ok_or_else(|| StartError::Log("its first commit does not found a cluster".into()))
}

fn make_data_directory(path: &Path) -> Result<(), StartError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| StartError::DataDirectory { path: path.to_owned(), source })
}

async fn open_log(config: &ControlConfig) -> Result<AnyLog, StartError> {
    match &config.log {
        LogConfig::Embedded => {
            let path = config.data_dir.join("log.redb");
            let log = EmbeddedLog::open(path);
            log.map(AnyLog::from).map_err(|error| StartError::Log(error.to_string()))
        }
        LogConfig::JetStream(options) => {
            let log = JetStreamLog::open((**options).clone()).await;
            log.map(AnyLog::from).map_err(|error| StartError::Log(error.to_string()))
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

/// The snapshot, or none if there is no whole one.
fn load(projection: &Projection) -> Result<Snapshot, StartError> {
    match projection.load() {
        Ok(snapshot) => Ok(snapshot.unwrap_or_default()),
        Err(error @ ProjectionError::Unreadable { .. }) => {
            tracing::warn!(%error, "the state is rebuilt from the first commit");
            projection.clear()?;
            Ok(Snapshot::default())
        }
        Err(error @ ProjectionError::Storage { .. }) => Err(error.into()),
    }
}

/// Without a log that flushes before it acknowledges, nothing fails over by itself.
fn take_safety(app: &App, safety: Safety) {
    let before = app.safety.send_replace(safety.clone());
    if before == safety {
        return;
    }
    let Safety { reasons, unasked } = &safety;
    if safety.is_armed() {
        tracing::info!(?unasked, "the log is safe enough to fail over on");
    } else {
        tracing::warn!(?reasons, ?unasked, "automatic failover is not armed");
    }
}

/// Puts it into the log that this site's register was lost and began anew; asked again until the log
/// has it.
async fn record_reseeding(service: service::Service, name: String) {
    let mut reseeded = service.reseeded();
    loop {
        let Ok(signed) = reseeded.wait_for(Option::is_some).await.map(|signed| *signed) else {
            return;
        };
        let Some(signed) = signed else { return };
        let command =
            Command::RecordReseeding { name: name.clone(), size: signed.size, root: signed.root };
        let mut context =
            Context::system(Origin::Policy, "the register of what it signed was lost");
        // An answer that came too late was given all the same: asked again, it is recorded once.
        context.idempotency_key = Some(format!("reseeded-{name}-{}", signed.size));
        match service.submit(command, context).await {
            Ok(Done::Committed { .. } | Done::Repeated { .. }) => return,
            // Its key signs for no site of the log: what it signs counts for nothing.
            Ok(Done::Refused { .. } | Done::Escalated { .. }) | Err(Unanswered::Stopped) => return,
            Err(error) => tracing::warn!(%error, "the loss of the register is not in the log yet"),
        }
        tokio::time::sleep(RECORD_AGAIN_AFTER).await;
    }
}

async fn keep_checking_safety(app: App, log: Option<AnyLog>, mut stop: watch::Receiver<bool>) {
    let Some(AnyLog::JetStream(log)) = log else { return };
    while tokio::time::timeout(SAFETY_INTERVAL, stop.wait_for(|stop| *stop)).await.is_err() {
        take_safety(&app, log.check_safety().await);
    }
}

async fn serve(listener: TcpListener, app: App, mut stop: watch::Receiver<bool>) {
    let (api, _) = api::router(&app);
    let router = Router::new()
        .merge(api)
        .route(contract::PATH, get(stream::serve))
        .fallback(api::unknown_route)
        .method_not_allowed_fallback(api::unknown_method)
        .with_state(app);
    let service = router.into_make_service_with_connect_info::<Peer>();
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let connections = Connections::new(listener);
    if let Err(error) = axum::serve(connections, service).with_graceful_shutdown(stopped).await {
        tracing::error!(%error, "the API ended");
    }
}

//! A node: its threads, from start to stop.

use crate::agent::memory::{Memory, MemoryError};
use crate::agent::stream::{Dialer, InvalidControl};
use crate::agent::{self, Agent};
use crate::connection::CONNECTIONS_MAX;
use crate::mailbox::{Inbox, Mailbox, Message};
use crate::metrics::Metrics;
use crate::offer::Offer;
use crate::reactor::{FromReactor, Parts, Reactor};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use voute_device::ArrayKeys;
use voute_schemas::NodeId;

/// Most reactors of a node: there are no more shards than that to spread.
pub const REACTORS_MAX: usize = crate::link::SHARDS as usize;
/// How long reactors may take to end.
const END_WITHIN: Duration = Duration::from_secs(15);
/// Events from reactors that wait for the agent.
const EVENTS_MAX: usize = 65_536;
/// Messages from the control plane that wait for the agent; each may be large.
const CONTROL_MESSAGES_MAX: usize = 16;

/// What a node process is told at its start. Everything else comes from the control plane.
#[derive(Clone)]
pub struct NodeConfig {
    /// Its id.
    pub node: NodeId,
    /// The secret that the control plane issued for it. Never logged.
    pub secret: String,
    /// Control processes, as `http://HOST:PORT`, tried one after the other.
    pub control: Vec<String>,
    /// Folder for what it remembers; of this node alone.
    pub data_dir: PathBuf,
    /// What it proves to arrays that lend it namespaces.
    pub array_keys: ArrayKeys,
    /// Reactor threads, 1 to [`REACTORS_MAX`]; as many as there are cores if `None`.
    pub reactors: Option<usize>,
    /// How long a reactor looks again without sleeping after the last thing that happened,
    /// microseconds. 0 saves power, 50 to 100 saves latency.
    pub spin_us: u64,
    /// Whether each reactor stays on a core of its own, where there are enough.
    pub pin: bool,
    /// Most connections per reactor; more are closed at once.
    pub connections_max: usize,
    /// Counters, readable while it runs.
    pub metrics: Arc<Metrics>,
}

impl NodeConfig {
    /// A configuration with common values: a reactor per core, 50 µs of spinning, 4096 connections
    /// per reactor.
    #[must_use]
    pub fn new(node: NodeId, secret: String, control: Vec<String>, data_dir: PathBuf) -> Self {
        NodeConfig {
            node,
            secret,
            control,
            data_dir,
            array_keys: ArrayKeys::default(),
            reactors: None,
            spin_us: 50,
            pin: true,
            connections_max: 4_096,
            metrics: Arc::default(),
        }
    }
}

/// Ends a node from another thread.
#[derive(Clone, Debug)]
pub struct Stop(watch::Sender<bool>);

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// Not stopped.
    #[must_use]
    pub fn new() -> Self {
        Stop(watch::Sender::new(false))
    }

    /// Stops every node that was given a clone of this, for good.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Whether [`Stop::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once [`Stop::stop`] was called.
    pub async fn stopped(&self) {
        // The sender is ours, so that it cannot be gone.
        let _ = self.0.subscribe().wait_for(|stopped| *stopped).await;
    }
}

/// Why a node cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The number of reactors.
    #[error("{reactors} reactors were asked for; 1 to {REACTORS_MAX} are possible")]
    Reactors {
        /// As asked for.
        reactors: usize,
    },
    /// The number of connections.
    #[error(
        "{connections} connections per reactor were asked for; 1 to {CONNECTIONS_MAX} are possible"
    )]
    Connections {
        /// As asked for.
        connections: usize,
    },
    /// The control plane cannot be addressed.
    #[error(transparent)]
    Control(#[from] InvalidControl),
    /// What the node remembers cannot be used.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A portal cannot be listened on.
    #[error("cannot listen on {address}: {source}; end what uses it, or change the node's portals")]
    Listen {
        /// The portal.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The control plane says something impossible about this node.
    #[error("the control plane's facts about this node cannot be used: {cause}")]
    Facts {
        /// What.
        cause: String,
    },
    /// The system gives no thread, io_uring or eventfd.
    #[error(
        "a thread cannot be set up: {0}; io_uring must be allowed (kernel.io_uring_disabled = 0) and Linux be 6.1 or newer"
    )]
    Thread(#[source] io::Error),
    /// A reactor ended by itself: a bug, or the kernel refused to go on.
    #[error("reactor {index} ended; the log says why. Start the node again")]
    ReactorEnded {
        /// Which.
        index: usize,
    },
    /// The system has no random bytes.
    #[error("the system gives no random bytes: {cause}")]
    Random {
        /// Why.
        cause: String,
    },
}

/// Runs a node until `stop`. Blocks; call it on a thread of its own or from `main`.
///
/// # Errors
/// [`NodeError`] says why it could not start or go on.
pub fn run(config: NodeConfig, stop: Stop) -> Result<(), NodeError> {
    let count = reactors(&config)?;
    let connections = config.connections_max;
    if !(1..=CONNECTIONS_MAX).contains(&connections) {
        return Err(NodeError::Connections { connections });
    }
    let dialer = Dialer::new(&config.control, config.node, &config.secret)?;
    let memory = Memory::open(&config.data_dir, config.node)?;
    let session = random_session()?;
    tracing::info!(node = %config.node, incarnation = memory.incarnation(), reactors = count, "node starts");

    let boxes = (0..count).map(|_| Mailbox::new()).collect::<io::Result<Vec<_>>>();
    let (mailboxes, inboxes): (Vec<Arc<Mailbox>>, Vec<Inbox>) =
        boxes.map_err(NodeError::Thread)?.into_iter().unzip();
    let mailboxes: Arc<[Arc<Mailbox>]> = mailboxes.into();
    let (to_agent, from_reactors) = mpsc::channel(EVENTS_MAX);
    let (ended, has_ended) = mpsc::unbounded_channel();
    let (run_token, running) = std::sync::mpsc::channel();
    let mut threads = Threads { mailboxes: mailboxes.clone(), reactors: Vec::new(), running };
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let parts = Parts {
            index,
            inbox,
            mailboxes: mailboxes.clone(),
            agent: to_agent.clone(),
            metrics: config.metrics.clone(),
            spin: Duration::from_micros(config.spin_us),
            connections_max: config.connections_max,
        };
        threads.reactors.push(spawn_reactor(
            parts,
            config.pin,
            TellEnd { index, ended: ended.clone(), _running: run_token.clone() },
        )?);
    }
    drop((to_agent, ended, run_token));

    let agent = Agent::new(agent::Parts {
        node: config.node,
        memory,
        session,
        mailboxes,
        offer: Offer::new(),
        metrics: config.metrics,
        array_keys: config.array_keys,
    });
    let result = run_agent(agent, dialer, from_reactors, has_ended, stop);
    drop(threads);
    result
}

fn reactors(config: &NodeConfig) -> Result<usize, NodeError> {
    match config.reactors {
        Some(reactors) if (1..=REACTORS_MAX).contains(&reactors) => Ok(reactors),
        Some(reactors) => Err(NodeError::Reactors { reactors }),
        None => Ok(cores().clamp(1, REACTORS_MAX)),
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn random_session() -> Result<u64, NodeError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| NodeError::Random { cause: error.to_string() })?;
    Ok(u64::from_le_bytes(bytes))
}

/// The reactors' threads; dropping it ends them and waits.
struct Threads {
    mailboxes: Arc<[Arc<Mailbox>]>,
    reactors: Vec<JoinHandle<()>>,
    /// Gets nothing, and closes when the last reactor's thread has ended.
    running: std::sync::mpsc::Receiver<()>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        for mailbox in self.mailboxes.iter() {
            // One that does not read its mailbox any more is given up below.
            let _ = mailbox.try_send(Message::Stop);
        }
        if self.running.recv_timeout(END_WITHIN) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            tracing::error!("a reactor does not end: a bug; kill the process");
            return;
        }
        for reactor in self.reactors.drain(..) {
            // A panic was reported when it happened.
            let _ = reactor.join();
        }
    }
}

/// Tells, also when the thread panics, that a reactor has ended.
struct TellEnd {
    index: usize,
    ended: mpsc::UnboundedSender<usize>,
    _running: std::sync::mpsc::Sender<()>,
}

impl Drop for TellEnd {
    fn drop(&mut self) {
        // Nobody listens any more when the whole node ends.
        let _ = self.ended.send(self.index);
    }
}

fn spawn_reactor(parts: Parts, pin: bool, end: TellEnd) -> Result<JoinHandle<()>, NodeError> {
    let index = parts.index;
    let (ready, is_ready) = std::sync::mpsc::channel();
    let run = move || {
        let _end = end;
        if pin && parts.mailboxes.len() >= cores() && cores() > 1 {
            pin_to(index);
        }
        match Reactor::new(parts) {
            Ok(reactor) => {
                // The starter waits for it.
                let _ = ready.send(None);
                if let Err(error) = reactor.run() {
                    tracing::error!(index, %error, "a reactor cannot go on");
                }
            }
            Err(error) => drop(ready.send(Some(error))),
        }
    };
    let name = format!("voute-reactor-{index}");
    let thread = thread::Builder::new().name(name).spawn(run).map_err(NodeError::Thread)?;
    match is_ready.recv() {
        Ok(None) => Ok(thread),
        Ok(Some(error)) => Err(NodeError::Thread(error)),
        Err(_) => Err(NodeError::ReactorEnded { index }),
    }
}

/// Keeps this thread on the `index`th of the cores that the process may use.
fn pin_to(index: usize) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    let cores = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    if let Some(core) = cores.into_iter().nth(index) {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        // Where it is forbidden the thread wanders, and is only slower.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

fn run_agent(
    agent: Agent,
    dialer: Dialer,
    from_reactors: mpsc::Receiver<FromReactor>,
    ended: mpsc::UnboundedReceiver<usize>,
    stop: Stop,
) -> Result<(), NodeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("voute-agent")
        .enable_all()
        .build()
        .map_err(NodeError::Thread)?;
    let result = runtime.block_on(async {
        let (events, from_control) = mpsc::channel(CONTROL_MESSAGES_MAX);
        let dialing = tokio::spawn(dialer.run(events));
        let result = agent.run(from_control, from_reactors, ended, stop).await;
        dialing.abort();
        result
    });
    // A device that is just being opened must not hold the end up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

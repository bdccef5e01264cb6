//! One NVMe/TCP path of the verifying host: an admin and an I/O connection to one portal, kept up
//! by a task of its own that connects again whenever they end.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use voute_buffer::Buffer;
use voute_nvme::{
    AnaState, Attachment, AttachmentUpdate, Command, ConnectionOptions, ControllerFacts,
    InitiatorConnection, InitiatorEvent, Payload, RemoteNamespace, Status, Tag,
};

/// Requests that wait in front of a path.
const WAITING_MAX: usize = 64;
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// Pause between attempts to connect: what `nvme connect --reconnect-delay` is to Linux, shorter
/// since a loopback port that is closed costs nothing.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const RECEIVE_BYTES: usize = 64 << 10;

/// What a path is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathState {
    /// Not connected.
    Down,
    /// Connected; the volume's access state there, if it is shown there at all.
    Up(Option<AnaState>),
}

impl PathState {
    /// Whether requests may be sent there: as Linux, only to accessible namespaces.
    #[must_use]
    pub fn is_usable(self) -> bool {
        matches!(self, PathState::Up(Some(AnaState::Optimized | AnaState::NonOptimized)))
    }
}

/// What is asked of a path; blocks are of the volume's size.
#[derive(Clone, Copy, Debug)]
pub enum BlockRequest<'a> {
    /// Read one block.
    Read {
        /// Which.
        lba: u64,
    },
    /// Write one block.
    Write {
        /// Which.
        lba: u64,
        /// Its content.
        data: &'a [u8],
    },
}

/// How a request ended on a path.
#[derive(Debug)]
pub enum PathOutcome {
    /// Done; what was read.
    Done(Option<Buffer>),
    /// Refused.
    Failed(Status),
    /// The path ended first: whether it was carried out is unknown.
    Lost,
}

struct Asked {
    lba: u64,
    write: Option<Buffer>,
    answer: oneshot::Sender<PathOutcome>,
}

/// Whom a path connects as, and to what.
#[derive(Clone, Debug)]
pub struct PathConfig {
    /// The portal.
    pub portal: SocketAddr,
    /// The host's NQN.
    pub host_nqn: String,
    /// The host's identifier.
    pub host_id: [u8; 16],
    /// The subsystem.
    pub subsystem_nqn: String,
    /// The volume, as its namespace's UUID.
    pub volume: [u8; 16],
}

/// A path. Its task ends when it is dropped.
pub struct Path {
    asked: mpsc::Sender<Asked>,
    state: watch::Receiver<PathState>,
}

impl Path {
    /// Starts a path's task on the current runtime.
    #[must_use]
    pub fn start(config: PathConfig) -> Self {
        let (asked, requests) = mpsc::channel(WAITING_MAX);
        let (publish, state) = watch::channel(PathState::Down);
        tokio::spawn(keep_up(config, requests, publish));
        Path { asked, state }
    }

    /// What it is good for now.
    #[must_use]
    pub fn state(&self) -> PathState {
        *self.state.borrow()
    }

    /// To wait for changes with.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<PathState> {
        self.state.clone()
    }

    /// Sends a request and waits for its end.
    pub async fn request(&self, request: BlockRequest<'_>) -> PathOutcome {
        let (answer, answered) = oneshot::channel();
        let (lba, write) = match request {
            BlockRequest::Read { lba } => (lba, None),
            BlockRequest::Write { lba, data } => (lba, Some(Buffer::copy_of(data))),
        };
        if self.asked.send(Asked { lba, write, answer }).await.is_err() {
            return PathOutcome::Lost;
        }
        answered.await.unwrap_or(PathOutcome::Lost)
    }
}

/// Keeps the path up until its [`Path`] is dropped.
async fn keep_up(
    config: PathConfig,
    mut requests: mpsc::Receiver<Asked>,
    publish: watch::Sender<PathState>,
) {
    let clock = Instant::now();
    while !publish.is_closed() {
        if let Err(error) = run_once(&config, &mut requests, &publish, clock).await {
            tracing::debug!(portal = %config.portal, %error, "path ended");
        }
        publish.send_replace(PathState::Down);
        while let Ok(asked) = requests.try_recv() {
            let _ = asked.answer.send(PathOutcome::Lost);
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// A TCP connection and its state machine.
struct Wire {
    stream: TcpStream,
    machine: InitiatorConnection,
    buffer: Vec<u8>,
}

impl Wire {
    async fn connect(portal: SocketAddr, machine: InitiatorConnection) -> io::Result<Self> {
        let stream = tokio::time::timeout(CONNECT_TIME_MAX, TcpStream::connect(portal)).await??;
        stream.set_nodelay(true)?;
        Ok(Wire { stream, machine, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Waits until the socket can take or give something. Safe to cancel.
    async fn ready(&mut self) -> io::Result<()> {
        let interest = match (self.machine.output().is_empty(), self.machine.wants_input()) {
            (true, _) => Interest::READABLE,
            (false, true) => Interest::READABLE | Interest::WRITABLE,
            (false, false) => Interest::WRITABLE,
        };
        self.stream.ready(interest).await.map(|_| ())
    }

    /// Sends and receives what is possible without waiting.
    fn pump(&mut self, now: Duration) -> io::Result<()> {
        self.machine.tick(now);
        self.send()?;
        while self.machine.wants_input() {
            match self.stream.try_read(&mut self.buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.machine.receive(&self.buffer[..length], now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.send()?;
        if self.machine.is_closing() {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else {
            Ok(())
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.machine.output().is_empty() {
            match self.stream.try_write(self.machine.output()) {
                Ok(length) => {
                    self.machine.output().drain(..length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One life of a path, from connecting to the end of either connection.
struct Session<'a> {
    config: &'a PathConfig,
    clock: Instant,
    admin: Wire,
    attachment: Attachment,
    facts: Option<ControllerFacts>,
    queue: Option<Wire>,
    queue_is_live: bool,
    namespace: Option<RemoteNamespace>,
    /// What is asked and not answered. Dropping an entry tells its asker that it is lost.
    outstanding: HashMap<Tag, oneshot::Sender<PathOutcome>>,
}

/// Connects, serves requests, and returns why it ended.
async fn run_once(
    config: &PathConfig,
    requests: &mut mpsc::Receiver<Asked>,
    publish: &watch::Sender<PathState>,
    clock: Instant,
) -> io::Result<()> {
    let mut session = Session::connect(config, clock).await?;
    loop {
        session.turn()?;
        if session.queue.is_none() {
            session.connect_queue().await?;
        }
        session.publish(publish);
        session.wait(requests, publish).await?;
    }
}

impl<'a> Session<'a> {
    async fn connect(config: &'a PathConfig, clock: Instant) -> io::Result<Self> {
        let mut options =
            ConnectionOptions::new(&config.host_nqn, config.host_id, &config.subsystem_nqn);
        options.keep_alive = Some(KEEP_ALIVE);
        let machine = InitiatorConnection::connect_admin(options, clock.elapsed());
        Ok(Session {
            config,
            clock,
            admin: Wire::connect(config.portal, machine).await?,
            attachment: Attachment::new(1),
            facts: None,
            queue: None,
            queue_is_live: false,
            namespace: None,
            outstanding: HashMap::new(),
        })
    }

    /// Opens the I/O queue once the controller is up.
    async fn connect_queue(&mut self) -> io::Result<()> {
        let Some(facts) = &self.facts else { return Ok(()) };
        let config = self.config;
        let mut options =
            ConnectionOptions::new(&config.host_nqn, config.host_id, &config.subsystem_nqn);
        options.queue_depth = options.queue_depth.min(facts.queue_depth_max);
        let now = self.clock.elapsed();
        let machine = InitiatorConnection::connect_io(
            options,
            facts.controller,
            1,
            facts.in_capsule_max,
            now,
        );
        self.queue = Some(Wire::connect(config.portal, machine).await?);
        self.turn()
    }

    /// Moves bytes and handles what they mean, without waiting. What arrived before a connection
    /// ended still counts.
    fn turn(&mut self) -> io::Result<()> {
        let now = self.clock.elapsed();
        let admin = self.admin.pump(now);
        let followed = self.follow(now);
        let queue = self.queue.as_mut().map_or(Ok(()), |queue| queue.pump(now));
        self.answer();
        admin.and(followed).and(queue)?;
        // Following may have written something.
        self.admin.send()
    }

    fn follow(&mut self, now: Duration) -> io::Result<()> {
        while let Some(event) = self.admin.machine.next_event() {
            if let Some(InitiatorEvent::Closed { reason }) =
                self.attachment.handle(&mut self.admin.machine, event, now)
            {
                return Err(io::Error::other(reason));
            }
        }
        self.attachment.tick(&mut self.admin.machine, now);
        while let Some(update) = self.attachment.next_update() {
            match update {
                AttachmentUpdate::Ready(facts) => self.facts = Some(facts),
                AttachmentUpdate::Namespaces(found) => {
                    let wanted = Some(self.config.volume);
                    self.namespace = found.into_iter().find(|namespace| namespace.uuid == wanted);
                }
                AttachmentUpdate::Failed(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(())
    }

    fn answer(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        while let Some(event) = queue.machine.next_event() {
            match event {
                InitiatorEvent::Connected { .. } => self.queue_is_live = true,
                InitiatorEvent::Completed { tag, status, data, .. } => {
                    let outcome = if status.is_success() {
                        PathOutcome::Done(data)
                    } else {
                        PathOutcome::Failed(status)
                    };
                    if let Some(asker) = self.outstanding.remove(&tag) {
                        let _ = asker.send(outcome);
                    }
                }
                InitiatorEvent::Lost { tag, .. } => {
                    self.outstanding.remove(&tag);
                }
                InitiatorEvent::Closed { .. } => self.queue_is_live = false,
            }
        }
    }

    fn publish(&self, publish: &watch::Sender<PathState>) {
        let access = self.namespace.as_ref().map(|namespace| namespace.state);
        let state = if self.queue_is_live { PathState::Up(access) } else { PathState::Down };
        publish.send_if_modified(|known| std::mem::replace(known, state) != state);
    }

    /// Waits for bytes, time or a request.
    async fn wait(
        &mut self,
        requests: &mut mpsc::Receiver<Asked>,
        publish: &watch::Sender<PathState>,
    ) -> io::Result<()> {
        let deadline = self.deadline();
        let takes =
            self.queue_is_live && self.queue.as_ref().is_some_and(|queue| queue.machine.room() > 0);
        let Session { admin, queue, .. } = self;
        let asked = tokio::select! {
            ready = admin.ready() => return ready,
            ready = queue_ready(queue) => return ready,
            () = tokio::time::sleep_until(deadline.into()) => return Ok(()),
            () = publish.closed() => return Err(io::ErrorKind::Interrupted.into()),
            asked = requests.recv(), if takes => asked,
        };
        match asked {
            Some(asked) => self.submit(asked),
            None => return Err(io::ErrorKind::Interrupted.into()),
        }
        Ok(())
    }

    fn deadline(&self) -> Instant {
        let queue = self.queue.as_ref().and_then(|queue| queue.machine.next_deadline());
        let soonest = [self.admin.machine.next_deadline(), self.attachment.next_deadline(), queue]
            .into_iter()
            .flatten()
            .min();
        self.clock + soonest.unwrap_or_else(|| self.clock.elapsed() + KEEP_ALIVE)
    }

    fn submit(&mut self, asked: Asked) {
        let (Some(queue), Some(namespace)) = (&mut self.queue, &self.namespace) else {
            let _ = asked.answer.send(PathOutcome::Lost);
            return;
        };
        let Asked { lba, write, answer } = asked;
        let command = match write {
            Some(data) => Command::write(namespace.nsid, lba, 1, Payload::Owned(data), false),
            None => Command::read(namespace.nsid, lba, 1, namespace.block_size),
        };
        match queue.machine.submit(command, self.clock.elapsed()) {
            Ok(tag) => {
                self.outstanding.insert(tag, answer);
            }
            Err(_) => {
                let _ = answer.send(PathOutcome::Lost);
            }
        }
    }
}

async fn queue_ready(queue: &mut Option<Wire>) -> io::Result<()> {
    match queue {
        Some(queue) => queue.ready().await,
        None => std::future::pending().await,
    }
}

//! A namespace of another NVMe/TCP target as a device, through our own initiator.
//!
//! One thread per device keeps one association (an admin and one I/O connection) and carries orders
//! out; reactors hand orders over and are answered through their mailboxes.
//!
//! ```text
//! opening ─► serving ─► lost, writes under way: every order fails ─► quiet for QUIET ─► opening …
//!               │ └──► lost or left, no write's outcome unknown: orders wait ─► another path ─► serving
//!               └─ no path within HOLD_MAX: every order fails ─► opening …
//! ```
//!
//! No write is sent twice. When the association is lost, its target may still carry out what it had:
//! orders fail with their outcome unknown, and nothing more is sent until the target must have noticed
//! the loss by its keep-alive timer; otherwise an old write could land over a newer one. What an
//! array refused for want of access (ANA) it has not carried out; it goes on by the path that serves.
//! The array's discovery service tells which paths there are.
//!
//! The claim is not exclusive: NVMe reservations, which would make it so, are not used yet.

mod job;
mod keys;
mod paths;
mod session;
#[cfg(test)]
mod tests;
mod wire;

use crate::adopt::Media;
use crate::mailbox::{Detached, Mailbox, Order, OrderKind, Reply, Signal, wait_for};
use job::Job;
pub use keys::{ArrayKeys, ArrayKeysError};
use paths::Paths;
use session::{Ended, Session};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_mirror::{DeviceFault, DeviceResult};
use voute_nvme::{
    AnaState, AttachmentError, Closed, ConnectionOptions, Credentials, DISCOVERY_NQN, Seed,
};
use voute_schemas::ClusterId;

/// Keep-alive time that the target is told.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Between the loss of an association and the next: a target notices the loss within the keep-alive
/// time, and takes as much again to end what it does.
pub(crate) const QUIET: Duration = Duration::from_secs(10);
/// Between two attempts to open an association again.
const RETRY: Duration = Duration::from_secs(2);
/// How long a device may take to open the first time, all paths together.
const OPEN_MAX: Duration = Duration::from_secs(20);
/// How long orders wait for another path before they fail.
const HOLD_MAX: Duration = Duration::from_secs(3);
/// Between two attempts while they wait.
const HOLD_RETRY: Duration = Duration::from_millis(200);
/// How long an order of an adoption may take.
const ORDER_MAX: Duration = Duration::from_secs(60);

/// Why a namespace of another target cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The namespace's name is malformed.
    #[error("{0:?} is not the UUID or NGUID of a namespace: give 32 hexadecimal digits")]
    NamespaceName(String),
    /// No TCP connection.
    #[error("no connection: {0}")]
    Connect(io::Error),
    /// A connection ended.
    #[error("{0}")]
    Closed(Closed),
    /// The controller did not come up.
    #[error("{0}")]
    Attachment(AttachmentError),
    /// The keys for it cannot be read.
    #[error(transparent)]
    Keys(#[from] ArrayKeysError),
    /// There is no randomness for a proof.
    #[error("the system gives no random bytes: {0}")]
    Random(io::Error),
    /// It did not come up in time.
    #[error("the target did not come up in time")]
    Timeout,
    /// The subsystem does not have the namespace, or does not show it to this host.
    #[error("the subsystem shows no such namespace to host {host}, but {seen} others")]
    NoNamespace {
        /// The host NQN that the target must admit.
        host: String,
        /// How many it shows.
        seen: usize,
    },
    /// It is there, but not by this path.
    #[error("the namespace is not accessible by this address (ANA state {0:?}): use another")]
    Inaccessible(AnaState),
    /// It is write protected.
    #[error("the namespace is read-only")]
    ReadOnly,
    /// Its blocks are too large.
    #[error("the namespace has blocks of {0} bytes: 512 to 4096 are supported")]
    BlockSize(u32),
    /// It is not as it was.
    #[error("the namespace changed its size or block size")]
    Changed,
}

/// Which namespace, as whom.
pub(crate) struct RemoteAddress<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) subsystem: &'a str,
    pub(crate) namespace: &'a str,
    /// The host that the target sees: every node of a cluster is one, so that one entry in the
    /// target's access list admits it.
    pub(crate) cluster: ClusterId,
    pub(crate) keys: &'a ArrayKeys,
    /// Normally [`QUIET`].
    pub(crate) quiet: Duration,
}

/// What there is to know of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RemoteFacts {
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
}

/// What to connect to, checked.
struct Target {
    address: SocketAddr,
    namespace: [u8; 16],
    options: ConnectionOptions,
    keys: ArrayKeys,
    quiet: Duration,
}

/// A namespace of another target.
pub(crate) struct RemoteDisk {
    shared: Arc<Shared>,
}

/// Between reactors and the device's thread.
struct Shared {
    inbox: Mutex<Inbox>,
    wake: Signal,
}

struct Inbox {
    /// As many as the queues' depths allow.
    orders: VecDeque<Order>,
    is_serving: bool,
    is_ended: bool,
}

impl RemoteDisk {
    /// Attaches to the namespace. Blocks, at most some 20 s.
    pub(crate) fn connect(at: &RemoteAddress<'_>) -> Result<(Self, RemoteFacts), RemoteError> {
        let target = Arc::new(Target::new(at)?);
        let inbox = Inbox { orders: VecDeque::new(), is_serving: false, is_ended: false };
        let wake = Signal::new().map_err(RemoteError::Connect)?;
        let shared = Arc::new(Shared { inbox: Mutex::new(inbox), wake });
        // Made first: whatever ends this call ends the thread too.
        let disk = RemoteDisk { shared: Arc::clone(&shared) };
        let (first, outcome) = channel();
        std::thread::Builder::new()
            .name("remote-device".to_owned())
            .spawn(move || serve(&target, &shared, &first))
            .map_err(RemoteError::Connect)?;
        let facts = outcome.recv().unwrap_or(Err(RemoteError::Timeout))?;
        Ok((disk, facts))
    }

    /// Has an order carried out, and waits for it.
    fn perform(&self, offset: u64, kind: OrderKind) -> io::Result<DeviceResult> {
        let mailbox = Arc::new(Mailbox::new()?);
        self.start(Order { offset, kind, reply: Reply::new(Arc::clone(&mailbox), 0) });
        let deadline = Instant::now() + ORDER_MAX;
        loop {
            if let Some((_, result)) = mailbox.take().pop() {
                return Ok(result);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            wait_for(&[(mailbox.as_fd(), false)], left);
        }
    }
}

impl Detached for RemoteDisk {
    fn start(&self, order: Order) {
        let mut inbox = self.shared.lock();
        if inbox.is_serving {
            inbox.orders.push_back(order);
            if inbox.orders.len() == 1 {
                self.shared.wake.raise();
            }
        } else {
            drop(inbox);
            order.reply.send(Err(DeviceFault::Failed));
        }
    }
}

impl Drop for RemoteDisk {
    fn drop(&mut self) {
        self.shared.lock().is_ended = true;
        self.shared.wake.raise();
    }
}

impl Media for RemoteDisk {
    fn read(&self, offset: u64, into: &mut Buffer) -> io::Result<()> {
        let length = u32::try_from(into.len()).map_err(io::Error::other)?;
        let data = self.perform(offset, OrderKind::Read { length })?.map_err(io::Error::other)?;
        into.copy_from_slice(&data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &Buffer) -> io::Result<()> {
        let data = Arc::new(Buffer::copy_of(bytes));
        let kind = OrderKind::Write { data, from: 0, length: bytes.len() };
        self.perform(offset, kind)?.map(drop).map_err(io::Error::other)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether orders are taken. Those that wait when they no longer are fail.
    fn set_serving(&self, is_serving: bool) {
        let mut inbox = self.lock();
        inbox.is_serving = is_serving;
        let waiting = if is_serving { VecDeque::new() } else { std::mem::take(&mut inbox.orders) };
        drop(inbox);
        drop(waiting);
    }

    /// Waits, and says whether the device is still wanted.
    fn rest(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.lock().is_ended {
                return false;
            }
            if left.is_zero() {
                return true;
            }
            wait_for(&[(self.wake.as_fd(), false)], left);
            self.wake.clear();
        }
    }
}

impl Target {
    fn new(at: &RemoteAddress<'_>) -> Result<Self, RemoteError> {
        let namespace = namespace_of(at.namespace)
            .ok_or_else(|| RemoteError::NamespaceName(at.namespace.to_owned()))?;
        let host = format!("nqn.2014-08.org.nvmexpress:uuid:{}", at.cluster);
        let mut options = ConnectionOptions::new(&host, at.cluster.bytes(), at.subsystem);
        options.keep_alive = Some(KEEP_ALIVE);
        let keys = at.keys.clone();
        Ok(Target { address: at.address, namespace, options, keys, quiet: at.quiet })
    }

    fn subsystem(&self) -> &str {
        &self.options.subsystem_nqn
    }

    /// For a connection to the subsystem, with the keys as they are now.
    fn options(&self) -> Result<ConnectionOptions, RemoteError> {
        let mut options = self.options.clone();
        if let Some(keys) = self.keys.of(self.subsystem())? {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| RemoteError::Random(error.into()))?;
            options.credentials = Some(Credentials { keys, seed: Seed(seed) });
        }
        Ok(options)
    }

    /// For the discovery service, which keeps nothing and authenticates nobody.
    fn discovery_options(&self) -> ConnectionOptions {
        ConnectionOptions {
            subsystem_nqn: DISCOVERY_NQN.to_owned(),
            keep_alive: None,
            ..self.options.clone()
        }
    }
}

/// 32 hexadecimal digits, with or without the hyphens of a UUID.
fn namespace_of(text: &str) -> Option<[u8; 16]> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|letter| *letter != '-')
        .map(|letter| letter.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let bytes: Vec<u8> =
        digits?.chunks(2).map(|pair| pair.iter().fold(0, |sum, digit| sum << 4 | digit)).collect();
    let length_fits = text.chars().filter(|letter| *letter != '-').count() == 32;
    bytes.try_into().ok().filter(|_| length_fits)
}

/// The device's thread.
fn serve(target: &Arc<Target>, shared: &Shared, first: &Sender<Result<RemoteFacts, RemoteError>>) {
    let paths = Arc::new(Paths::new(target.address));
    let mut session = match open_first(target, &paths) {
        Ok(session) => session,
        Err(error) => {
            // Nobody waits any more if this cannot be sent: then the device has ended.
            let _ = first.send(Err(error));
            return;
        }
    };
    let facts = session.facts();
    shared.set_serving(true);
    let _ = first.send(Ok(facts));
    let device = Device { target, shared, paths: &paths, facts };
    loop {
        paths.ask_meanwhile(target, session.address());
        let address = session.address();
        let (reason, rest) = match session.run(shared, &paths) {
            Ended::Unwanted => return,
            Ended::Lost(reason) => (reason, target.quiet),
            Ended::Moved(reason, jobs) => match device.go_on(address, jobs) {
                Some(next) => {
                    tracing::info!(from = %address, to = %next.address(), %reason, "a remote device goes on");
                    session = next;
                    continue;
                }
                None => (reason, RETRY),
            },
        };
        shared.set_serving(false);
        tracing::warn!(%address, %reason, "a remote device was lost");
        match device.come_back(address, rest) {
            Some(next) => session = next,
            None => return,
        }
        tracing::info!(address = %session.address(), "a remote device is back");
        shared.set_serving(true);
    }
}

/// By the address that was given; if that does not serve, by those that discovery tells there.
fn open_first(target: &Target, paths: &Paths) -> Result<Session, RemoteError> {
    match paths.open(target, None, OPEN_MAX) {
        Err(error @ (RemoteError::Inaccessible(_) | RemoteError::NoNamespace { .. })) => {
            paths.ask(target, target.address);
            match paths.has_other_than(target.address) {
                true => paths.open(target, Some(target.address), OPEN_MAX),
                false => Err(error),
            }
        }
        other => other,
    }
}

/// What a device's thread needs to open it again.
struct Device<'a> {
    target: &'a Target,
    shared: &'a Shared,
    paths: &'a Paths,
    facts: RemoteFacts,
}

impl Device<'_> {
    /// A session that goes on with these jobs; `None` if there is none in time, and the jobs failed.
    fn go_on(&self, last: SocketAddr, jobs: Vec<Job>) -> Option<Session> {
        let until = Instant::now() + HOLD_MAX;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            if let Some(mut session) = self.open(last, left) {
                session.resume(jobs);
                return Some(session);
            }
            if !self.shared.rest(HOLD_RETRY) {
                return None;
            }
        }
    }

    /// A session, after `rest`; `None` if the device is not wanted any more.
    fn come_back(&self, last: SocketAddr, mut rest: Duration) -> Option<Session> {
        loop {
            if !self.shared.rest(rest) {
                return None;
            }
            if let Some(session) = self.open(last, OPEN_MAX) {
                return Some(session);
            }
            rest = RETRY;
        }
    }

    fn open(&self, last: SocketAddr, limit: Duration) -> Option<Session> {
        let opened = self.paths.open(self.target, Some(last), limit);
        let same = opened.and_then(|session| match session.facts() == self.facts {
            true => Ok(session),
            false => Err(RemoteError::Changed),
        });
        same.inspect_err(|error| tracing::debug!(%error, "a remote device is not back yet")).ok()
    }
}

//! A namespace of another NVMe/TCP target as a device, through our own initiator.
//!
//! One thread per device keeps one association (an admin and one I/O connection) and carries orders
//! out; reactors hand orders over and are answered through their mailboxes.
//!
//! ```text
//! opening ─► serving ─► lost: every order fails ─► quiet for QUIET ─► opening …
//! ```
//!
//! Nothing is sent twice. When the association is lost, its target may still carry out what it had:
//! orders fail with their outcome unknown, and nothing more is sent until the target must have noticed
//! the loss by its keep-alive timer; otherwise an old write could land over a newer one.
//!
//! The claim is not exclusive: NVMe reservations, which would make it so, are not used yet.

mod session;
#[cfg(test)]
mod tests;

use crate::adopt::Media;
use crate::mailbox::{Detached, Mailbox, Order, OrderKind, Reply, Signal, wait_for};
use session::Session;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_mirror::{DeviceFault, DeviceResult};
use voute_nvme::{AnaState, AttachmentError, Closed, ConnectionOptions};
use voute_schemas::ClusterId;

/// Keep-alive time that the target is told.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Between the loss of an association and the next: a target notices the loss within the keep-alive
/// time, and takes as much again to end what it does.
pub(crate) const QUIET: Duration = Duration::from_secs(10);
/// Between two attempts to open an association again.
const RETRY: Duration = Duration::from_secs(2);
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
    /// Normally [`QUIET`].
    pub(crate) quiet: Duration,
}

/// What there is to know of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RemoteFacts {
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
}

/// Where to connect to, checked.
struct Target {
    address: SocketAddr,
    namespace: [u8; 16],
    options: ConnectionOptions,
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
        let target = Target::new(at)?;
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
        Ok(Target { address: at.address, namespace, options, quiet: at.quiet })
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
fn serve(target: &Target, shared: &Shared, first: &Sender<Result<RemoteFacts, RemoteError>>) {
    let address = target.address;
    let mut known: Option<RemoteFacts> = None;
    loop {
        let opened = Session::open(target).and_then(|session| match known {
            Some(facts) if facts != session.facts() => Err(RemoteError::Changed),
            _ => Ok(session),
        });
        let rest = match (opened, known) {
            (Ok(mut session), _) => {
                if known.replace(session.facts()).is_none() {
                    shared.set_serving(true);
                    // Nobody waits any more: then the device has ended, which `run` sees.
                    let _ = first.send(Ok(session.facts()));
                } else {
                    tracing::info!(%address, "a remote device is back");
                    shared.set_serving(true);
                }
                let outcome = session.run(shared);
                shared.set_serving(false);
                let Err(reason) = outcome else { return };
                tracing::warn!(%address, %reason, "a remote device was lost");
                target.quiet
            }
            (Err(error), None) => {
                let _ = first.send(Err(error));
                return;
            }
            (Err(error), Some(_)) => {
                tracing::debug!(%address, %error, "a remote device is not back yet");
                RETRY
            }
        };
        if !shared.rest(rest) {
            return;
        }
    }
}

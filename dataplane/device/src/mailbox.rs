//! How devices that are not driven by a queue's own ring answer it.
//!
//! Such a device takes an [`Order`] and answers, from whatever thread, through the order's
//! [`Reply`]. The queue's ring watches the mailbox's eventfd. Memory goes along by ownership, so that
//! a queue may end while orders are out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use voute_mirror::{DeviceFault, DeviceResult, Payload};

/// A device that answers through a mailbox. It never blocks the caller.
pub(crate) trait Detached: Send + Sync {
    /// Carries an order out, soon.
    fn start(&self, order: Order);
}

/// One operation on consecutive bytes of a device.
pub(crate) struct Order {
    /// Where, bytes.
    pub(crate) offset: u64,
    /// What.
    pub(crate) kind: OrderKind,
    /// Whom to answer.
    pub(crate) reply: Reply,
}

/// What to do. Writes and zeroes are durable when answered.
pub(crate) enum OrderKind {
    /// Read; answered with a buffer of this length.
    Read { length: u32 },
    /// Write `length` bytes of `data`, from `from` on.
    Write { data: Payload, from: usize, length: usize },
    /// Make a range read as zero.
    Zero { length: u64, release: bool },
}

/// The duty to answer an order, once. Dropped unanswered, it answers that the device failed.
pub(crate) struct Reply {
    mailbox: Arc<Mailbox>,
    operation: Option<usize>,
}

impl Reply {
    pub(crate) fn new(mailbox: Arc<Mailbox>, operation: usize) -> Self {
        Reply { mailbox, operation: Some(operation) }
    }

    /// Answers.
    pub(crate) fn send(mut self, result: DeviceResult) {
        if let Some(operation) = self.operation.take() {
            self.mailbox.post(operation, result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(operation) = self.operation.take() {
            self.mailbox.post(operation, Err(DeviceFault::Failed));
        }
    }
}

/// Answers on their way to one queue; as many as the queue has orders out.
pub(crate) struct Mailbox {
    answers: Mutex<Vec<(usize, DeviceResult)>>,
    signal: Signal,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Mailbox { answers: Mutex::default(), signal: Signal::new()? })
    }

    fn post(&self, operation: usize, result: DeviceResult) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push((operation, result));
        if answers.len() == 1 {
            self.signal.raise();
        }
    }

    /// Takes all answers and makes the descriptor unreadable until the next.
    pub(crate) fn take(&self) -> Vec<(usize, DeviceResult)> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that no signal of a later answer is swallowed.
        self.signal.clear();
        std::mem::take(&mut *answers)
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

/// A descriptor that one thread makes readable for another.
pub(crate) struct Signal(OwnedFd);

impl Signal {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        Ok(Signal(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Makes it readable.
    pub(crate) fn raise(&self) {
        // Fails only if the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable until it is raised again.
    pub(crate) fn clear(&self) {
        // Fails only if it was not raised.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sleeps until one of the descriptors is readable (or writable, where asked for), or for `most`.
pub(crate) fn wait_for(descriptors: &[(BorrowedFd<'_>, bool)], most: Duration) {
    let mut polls: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|(descriptor, writable)| libc::pollfd {
            fd: descriptor.as_raw_fd(),
            events: if *writable { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN },
            revents: 0,
        })
        .collect();
    // Rounded up: rounding down would spin through the last millisecond.
    let most = most.as_millis().saturating_add(1).min(60_000) as i32;
    // SAFETY: the array holds as many entries as is said. Errors (EINTR) mean looking again early.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, most) };
}

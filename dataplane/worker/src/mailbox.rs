//! How threads hand things to a reactor: a bounded queue and an eventfd that wakes it.

use crate::connection::{Connection, ConnectionId};
use crate::link::Peers;
use crate::reactor::Guarded;
use crate::reactor::{Asked, Piece, Setup};
use crate::reservations::{Answer, Job};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;
use voute_device::OpenDevice;
use voute_mirror::{HostOutcome, HostTag};
use voute_schemas::command::Escalation;
use voute_schemas::contract::{EscalationOutcome, GroupSpec};
use voute_schemas::place::ExtentRun;
use voute_schemas::{DeviceId, GroupId, LegId, VolumeId};

/// Most messages that wait in one mailbox. Other reactors keep what does not fit and try again; what
/// they keep is bounded by the queue depths of their connections.
const MESSAGES_MAX: usize = 8_192;

/// A leg of this node and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct LegPlace {
    pub(crate) leg: LegId,
    pub(crate) extent_bytes: u64,
    pub(crate) runs: Vec<ExtentRun>,
}

/// What listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Service {
    Nvme,
    Iscsi,
    Link,
}

/// What a reactor is told.
pub(crate) enum Message {
    /// What all reactors share; comes once, first.
    Setup(Arc<Setup>),
    /// Who the other nodes are, and what they prove.
    Peers(Arc<Peers>),
    /// Listen on these sockets, and on no others.
    Listen(Vec<(Service, OwnedFd)>),
    /// A device was opened.
    Device(DeviceId, Arc<OpenDevice>),
    /// A device is to be let go.
    ForgetDevice(DeviceId),
    /// Verified specs of groups of one shard.
    Apply { shard: u16, legs: Vec<LegPlace>, groups: Vec<GroupSpec>, removed: Vec<GroupId> },
    /// Wipe a leg.
    Retire { shard: u16, leg: LegPlace },
    /// A wiped leg is gone from the specs.
    Forget(LegId),
    /// What became of escalations.
    Answered { shard: u16, outcomes: Vec<(Escalation, EscalationOutcome)> },
    /// The log does not let this node own a group, which hosts may wait for.
    MoveRefused(GroupId),
    /// Tell the agent how things stand.
    Report,
    /// A request for a volume whose shard is here.
    Host(u16, Guarded),
    /// The answer to one that was forwarded.
    HostDone(HostTag, HostOutcome),
    /// A request about the reservations of a volume whose shard is here.
    Reserve(u16, VolumeId, Box<Job>),
    /// The answer to one that was forwarded.
    Reserved(HostTag, Answer),
    /// How blocks of a volume are allocated whose shard is here.
    Allocation(u16, VolumeId, Asked),
    /// The answer to one that was forwarded.
    Allocated(HostTag, Result<Vec<Piece>, HostOutcome>),
    /// What became of a host's proof.
    Judged(ConnectionId, u64, Box<voute_nvme::Outcome>),
    /// A link whose shard is here.
    Adopt(Box<Connection>),
    /// End.
    Stop,
}

/// The sending end, shared by all threads.
pub(crate) struct Mailbox {
    sender: SyncSender<Message>,
    wake: OwnedFd,
    /// Whether the reactor sleeps, or is about to: then a message must be followed by a wake-up.
    asleep: AtomicBool,
}

impl Mailbox {
    /// A mailbox and its receiving end.
    pub(crate) fn new() -> io::Result<(Arc<Self>, Inbox)> {
        let (sender, receiver) = sync_channel(MESSAGES_MAX);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mailbox = Arc::new(Mailbox { sender, wake, asleep: AtomicBool::new(false) });
        Ok((mailbox.clone(), Inbox { receiver, mailbox }))
    }

    /// Hands a message over; gives it back when the mailbox is full.
    pub(crate) fn try_send(&self, message: Message) -> Result<(), Message> {
        match self.sender.try_send(message) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(message)) => Err(message),
            // The reactor has ended: nobody waits for the answer any more.
            Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }

    /// Hands a message over, waiting for room: not for reactors.
    pub(crate) fn send(&self, mut message: Message) {
        while let Err(back) = self.try_send(message) {
            message = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Makes the reactor look around, if it sleeps.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // A full counter means that a wake-up is already due.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// The receiving end, the reactor's own.
pub(crate) struct Inbox {
    receiver: Receiver<Message>,
    mailbox: Arc<Mailbox>,
}

impl Inbox {
    pub(crate) fn next(&self) -> Option<Message> {
        match self.receiver.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Message::Stop),
        }
    }

    /// Says that the reactor is about to sleep. It must look once more after this.
    pub(crate) fn fall_asleep(&self) {
        self.mailbox.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Says that it is awake, and clears the wake-up.
    pub(crate) fn wake_up(&self) {
        self.mailbox.asleep.store(false, Ordering::SeqCst);
    }

    /// Clears the eventfd after it was readable.
    pub(crate) fn clear(&self) {
        let mut count = [0; 8];
        // Nothing to read means that it was cleared before.
        let _ = rustix::io::read(&self.mailbox.wake, &mut count);
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mailbox.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_to_a_sleeper_makes_its_eventfd_readable() {
        let (mailbox, inbox) = Mailbox::new().unwrap();
        let mut count = [0; 8];
        mailbox.try_send(Message::Report).unwrap_or_else(|_| panic!("there is room"));
        assert!(rustix::io::read(&mailbox.wake, &mut count).is_err(), "nobody sleeps");
        assert!(matches!(inbox.next(), Some(Message::Report)));
        inbox.fall_asleep();
        mailbox.try_send(Message::Report).unwrap_or_else(|_| panic!("there is room"));
        assert_eq!(rustix::io::read(&mailbox.wake, &mut count), Ok(8));
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let (mailbox, inbox) = Mailbox::new().unwrap();
        for _ in 0..MESSAGES_MAX {
            assert!(mailbox.try_send(Message::Report).is_ok());
        }
        assert!(matches!(mailbox.try_send(Message::Stop), Err(Message::Stop)));
        assert!(inbox.next().is_some());
        assert!(mailbox.try_send(Message::Stop).is_ok());
    }
}

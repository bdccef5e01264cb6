//! One TCP connection of a reactor: its socket, the protocol that speaks on it, and what is in the
//! kernel's hands for it.

use crate::link::{LinkIn, LinkOut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Bits of a connection's id that are its place in the reactor's table.
const PLACE_BITS: u32 = 20;
/// Most connections that a table may ever hold.
pub(crate) const CONNECTIONS_MAX: usize = 1 << PLACE_BITS;
/// An output buffer that grew beyond this is not kept for the next send, bytes.
const OUTPUT_KEPT_MAX: usize = 2 << 20;

/// Names a connection for as long as the reactor lives: places are used again, ids are not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ConnectionId(pub(crate) u64);

impl ConnectionId {
    pub(crate) fn new(serial: u64, place: usize) -> Self {
        ConnectionId(serial << PLACE_BITS | place as u64)
    }

    pub(crate) fn place(self) -> usize {
        (self.0 & ((1 << PLACE_BITS) - 1)) as usize
    }
}

/// What speaks on a connection.
pub(crate) enum Protocol {
    Nvme(Box<voute_nvme::TargetConnection>),
    Iscsi(Box<voute_iscsi::TargetConnection>),
    LinkIn(Box<LinkIn>),
    LinkOut(Box<LinkOut>),
}

/// Calls the method that every protocol has.
macro_rules! each {
    ($protocol:expr, $connection:ident => $call:expr) => {
        match $protocol {
            Protocol::Nvme($connection) => $call,
            Protocol::Iscsi($connection) => $call,
            Protocol::LinkIn(link) => {
                let $connection = &mut link.connection;
                $call
            }
            Protocol::LinkOut(link) => {
                let $connection = &mut link.connection;
                $call
            }
        }
    };
}

impl Protocol {
    pub(crate) fn receive(&mut self, bytes: &[u8], now: Duration) {
        each!(self, connection => connection.receive(bytes, now));
    }

    pub(crate) fn tick(&mut self, now: Duration) {
        each!(self, connection => connection.tick(now));
        if self.prove_by().is_some_and(|by| by <= now) {
            self.disconnected();
        }
    }

    pub(crate) fn next_deadline(&mut self) -> Option<Duration> {
        let deadline = each!(self, connection => connection.next_deadline());
        deadline.into_iter().chain(self.prove_by()).min()
    }

    /// When it must have proven itself, if it must and has not.
    fn prove_by(&self) -> Option<Duration> {
        match self {
            Protocol::LinkIn(link) => link.prove_by(),
            Protocol::Nvme(_) | Protocol::Iscsi(_) | Protocol::LinkOut(_) => None,
        }
    }

    fn output(&mut self) -> &mut Vec<u8> {
        each!(self, connection => connection.output())
    }

    fn wants_input(&mut self) -> bool {
        each!(self, connection => connection.wants_input())
    }

    fn is_closing(&mut self) -> bool {
        each!(self, connection => connection.is_closing())
    }

    fn disconnected(&mut self) {
        each!(self, connection => connection.disconnected());
    }

    /// Requests that it surfaced and that are not yet answered.
    fn outstanding(&mut self) -> usize {
        match self {
            Protocol::Nvme(connection) => connection.outstanding(),
            Protocol::Iscsi(connection) => connection.outstanding(),
            Protocol::LinkIn(link) => link.connection.outstanding(),
            // Its commands are answered as lost when it closes.
            Protocol::LinkOut(_) => 0,
        }
    }
}

pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) protocol: Protocol,
    /// `None` when it is closed and the connection only waits for its requests to end.
    socket: Option<OwnedFd>,
    /// What the kernel is sending, from the beginning.
    sending: Vec<u8>,
    is_sending: bool,
    is_receiving: bool,
    /// The address that the kernel is connecting to; boxed, since the kernel reads it.
    pub(crate) connecting: Option<Box<socket2::SockAddr>>,
    /// The socket is of no use any more.
    is_broken: bool,
    /// In the reactor's list of connections to look after.
    pub(crate) is_listed: bool,
    /// The reactor that it is to be handed to.
    pub(crate) moving_to: Option<usize>,
    /// To be closed once everything is sent.
    pub(crate) close_when_sent: bool,
}

/// What a connection wants from its reactor next.
pub(crate) enum Want {
    /// Hand `sending` to the kernel.
    Send,
    /// Ask the kernel for input.
    Receive,
    /// Hand it to another reactor.
    Move(usize),
    /// Forget it.
    Drop,
    /// Nothing.
    Nothing,
}

impl Connection {
    pub(crate) fn new(id: ConnectionId, socket: OwnedFd, protocol: Protocol) -> Self {
        Connection {
            id,
            protocol,
            socket: Some(socket),
            sending: Vec::new(),
            is_sending: false,
            is_receiving: false,
            connecting: None,
            is_broken: false,
            is_listed: false,
            moving_to: None,
            close_when_sent: false,
        }
    }

    /// The socket's descriptor, while there is one.
    pub(crate) fn descriptor(&self) -> Option<RawFd> {
        self.socket.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// What the kernel sends; stays where it is until [`Self::sent`].
    pub(crate) fn sending(&self) -> &[u8] {
        &self.sending
    }

    /// The kernel has sent `result` bytes, or failed.
    pub(crate) fn sent(&mut self, result: i32) {
        self.is_sending = false;
        match usize::try_from(result) {
            Ok(length) if length >= self.sending.len() => self.sending.clear(),
            Ok(length) if length > 0 => drop(self.sending.drain(..length)),
            _ => self.break_off(),
        }
    }

    /// The kernel received something (or the end, or failed).
    pub(crate) fn received(&mut self, result: i32) {
        self.is_receiving = false;
        // No buffer was free: they come back within this turn of the loop, it is asked for again.
        if result <= 0 && result != -libc::ENOBUFS {
            self.break_off();
        }
    }

    /// The kernel connected, or failed.
    pub(crate) fn connected(&mut self, result: i32) {
        self.connecting = None;
        if result < 0 {
            self.break_off();
        }
    }

    /// The socket is of no use any more: what the kernel still does for it ends soon.
    pub(crate) fn break_off(&mut self) {
        if self.is_broken {
            return;
        }
        self.is_broken = true;
        self.protocol.disconnected();
        if let Some(socket) = &self.socket {
            // Not connected any more: then there is nothing to shut down.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }

    /// Whether its socket is of no use any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Whether the kernel still reads or writes memory of it.
    pub(crate) fn is_in_kernel(&self) -> bool {
        self.is_sending || self.is_receiving || self.connecting.is_some()
    }

    /// The next thing to do; to be asked until [`Want::Nothing`].
    pub(crate) fn want(&mut self) -> Want {
        if self.is_broken {
            return self.want_when_broken();
        }
        if self.connecting.is_some() {
            if self.protocol.is_closing() {
                self.break_off();
            }
            return Want::Nothing;
        }
        if !self.is_sending && self.fill() {
            self.is_sending = true;
            return Want::Send;
        }
        if (self.protocol.is_closing() || self.close_when_sent) && !self.is_sending {
            self.break_off();
            return self.want_when_broken();
        }
        if let Some(reactor) = self.moving_to {
            return if self.is_in_kernel() { Want::Nothing } else { Want::Move(reactor) };
        }
        if !self.is_receiving && self.protocol.wants_input() {
            self.is_receiving = true;
            return Want::Receive;
        }
        Want::Nothing
    }

    fn want_when_broken(&mut self) -> Want {
        if !self.is_in_kernel() {
            self.socket = None;
            if self.protocol.outstanding() == 0 {
                return Want::Drop;
            }
        }
        Want::Nothing
    }

    /// Takes the protocol's output for sending, unless the last is not sent yet. The two buffers
    /// change places, so that neither is allocated anew.
    fn fill(&mut self) -> bool {
        if !self.sending.is_empty() {
            return true;
        }
        let output = self.protocol.output();
        if output.is_empty() {
            return false;
        }
        if self.sending.capacity() > OUTPUT_KEPT_MAX {
            self.sending = Vec::new();
        }
        std::mem::swap(output, &mut self.sending);
        true
    }
}

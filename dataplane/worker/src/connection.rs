//! One TCP connection of a reactor: its socket, the protocol that speaks on it, and what is in the
//! kernel's hands for it.

use crate::link::{LinkIn, LinkOut};
use crate::sending::{Sending, Sent};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recv, recvmsg};
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Bits of a connection's id that are its place in the reactor's table.
const PLACE_BITS: u32 = 20;
/// Most connections that a table may ever hold.
pub(crate) const CONNECTIONS_MAX: usize = 1 << PLACE_BITS;
/// Data that is still to come for a request is received where it will rest if it is at least so long;
/// less is cheaper to copy than to receive apart, bytes.
const IN_PLACE_MIN: usize = 4_096;
/// What is received along with such data: most often the next header and the beginning of the next
/// data, which is copied, bytes.
const BEYOND_MAX: usize = 4_096;
/// How long a connection that is to be closed may wait until its host takes what was said before.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);
/// Read data of at least so much is sent from where it was read to, bytes.
const INSET_MIN: usize = 4 << 10;

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

    /// Where the next bytes rest in the end, if they are data of a request.
    fn receive_room(&mut self) -> Option<&mut [u8]> {
        let room = match self {
            Protocol::Nvme(connection) => connection.receive_room(),
            Protocol::LinkIn(link) => link.connection.receive_room(),
            Protocol::LinkOut(link) => link.connection.receive_room(),
            Protocol::Iscsi(_) => None,
        };
        room.filter(|room| room.len() >= IN_PLACE_MIN)
    }

    fn received_in_place(&mut self, length: usize, now: Duration) {
        match self {
            Protocol::Nvme(connection) => connection.received_in_place(length, now),
            Protocol::LinkIn(link) => link.connection.received_in_place(length, now),
            Protocol::LinkOut(link) => link.connection.received_in_place(length, now),
            Protocol::Iscsi(_) => {}
        }
    }

    /// Takes what it wants to send. Memory changes places, so that nothing is allocated anew.
    fn take_output(&mut self, sending: &mut Sending) {
        let Sending { bytes, insets, .. } = sending;
        match self {
            Protocol::Nvme(connection) => connection.take_output(bytes, insets),
            Protocol::LinkIn(link) => link.connection.take_output(bytes, insets),
            Protocol::Iscsi(connection) => connection.take_output(bytes, insets),
            Protocol::LinkOut(link) => std::mem::swap(link.connection.output(), bytes),
        }
    }

    /// Asks it to spare copies where it can.
    fn spare_copies(&mut self) {
        match self {
            Protocol::Nvme(connection) => connection.inset_from(INSET_MIN),
            Protocol::LinkIn(link) => link.connection.inset_from(INSET_MIN),
            Protocol::Iscsi(connection) => connection.inset_from(INSET_MIN),
            Protocol::LinkOut(_) => {}
        }
    }

    fn wants_input(&mut self) -> bool {
        each!(self, connection => connection.wants_input())
    }

    fn is_closing(&mut self) -> bool {
        each!(self, connection => connection.is_closing())
    }

    fn disconnected(&mut self) {
        match self {
            Protocol::Nvme(connection) => connection.disconnected(),
            Protocol::Iscsi(connection) => connection.disconnected(),
            Protocol::LinkIn(link) => link.disconnected(),
            Protocol::LinkOut(link) => link.connection.disconnected(),
        }
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

/// What a socket had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Received {
    /// So many bytes where they rest, so many in the scratch memory.
    Some { in_place: usize, beyond: usize },
    /// Nothing now.
    Nothing,
    /// Nothing, for ever.
    Over,
}

pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) protocol: Protocol,
    /// `None` when it is closed and the connection only waits for its requests to end.
    socket: Option<OwnedFd>,
    sending: Sending,
    /// The kernel tells when the socket has room again.
    is_awaiting_room: bool,
    /// The kernel tells when there is input.
    is_watched: bool,
    /// In the reactor's list of connections whose socket is asked for input in its next turn.
    pub(crate) is_asked: bool,
    /// Output was taken off the protocol since this was last looked at: requests that waited behind it
    /// may be surfaced now.
    pub(crate) has_sent: bool,
    /// The last input filled all the room that was offered: there is probably more.
    pub(crate) has_more: bool,
    /// When input came last.
    pub(crate) heard: Duration,
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
    /// Until when a host that takes nothing is waited for before the connection is closed.
    last_words_by: Option<Duration>,
}

/// What a connection wants from its reactor next.
pub(crate) enum Want {
    /// Tell it by [`Connection::has_room`] when its socket has room.
    Room,
    /// Ask its socket for input, now or when there is some.
    Input,
    /// Hand it to another reactor.
    Move(usize),
    /// Forget it.
    Drop,
    /// Nothing.
    Nothing,
}

impl Connection {
    pub(crate) fn new(
        id: ConnectionId,
        socket: OwnedFd,
        mut protocol: Protocol,
        now: Duration,
    ) -> Self {
        protocol.spare_copies();
        Connection {
            id,
            protocol,
            socket: Some(socket),
            sending: Sending::default(),
            is_awaiting_room: false,
            is_watched: false,
            is_asked: false,
            has_sent: false,
            has_more: false,
            heard: now,
            connecting: None,
            is_broken: false,
            is_listed: false,
            moving_to: None,
            close_when_sent: false,
            last_words_by: None,
        }
    }

    /// Lets time pass for it.
    pub(crate) fn tick(&mut self, now: Duration) {
        self.protocol.tick(now);
        if self.last_words_by.is_some_and(|by| by <= now) {
            self.break_off();
        }
    }

    /// When it must be ticked next.
    pub(crate) fn next_deadline(&mut self) -> Option<Duration> {
        let last_words_by = self.last_words_by.filter(|_| !self.is_broken);
        self.protocol.next_deadline().into_iter().chain(last_words_by).min()
    }

    /// The socket's descriptor, while there is one.
    pub(crate) fn descriptor(&self) -> Option<RawFd> {
        self.socket.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The address of its other end, while the kernel knows it.
    pub(crate) fn origin(&self) -> Option<IpAddr> {
        let address = rustix::net::getpeername(self.socket.as_ref()?).ok()??;
        SocketAddr::try_from(address).ok().map(|address| address.ip())
    }

    /// The kernel will say when there is input.
    pub(crate) fn watched(&mut self) {
        self.is_watched = true;
    }

    /// The kernel says that there is input, or that there never will be.
    pub(crate) fn has_input(&mut self, result: i32) {
        self.is_watched = false;
        if result < 0 {
            self.break_off();
        }
    }

    /// The kernel says that there is room, or that there never will be.
    pub(crate) fn has_room(&mut self, result: i32) {
        self.is_awaiting_room = false;
        if result < 0 {
            self.break_off();
        }
    }

    /// Whether it takes input now.
    pub(crate) fn takes_input(&mut self) -> bool {
        !self.is_broken && self.protocol.wants_input()
    }

    /// Whether it came for a link and has not proven that it may.
    pub(crate) fn is_unproven_link(&self) -> bool {
        self.protocol.prove_by().is_some()
    }

    /// Takes what the socket has: into the memory where it will rest, as far as that is known, and
    /// from there on into `scratch`. Never waits.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> Received {
        let Some(socket) = &self.socket else { return Received::Over };
        let flags = RecvFlags::DONTWAIT;
        let (received, room, offered) = match self.protocol.receive_room() {
            Some(room) => {
                let length = room.len();
                let beyond = &mut scratch[..BEYOND_MAX];
                let offered = length + beyond.len();
                let mut pieces = [IoSliceMut::new(room), IoSliceMut::new(beyond)];
                let mut ancillary = RecvAncillaryBuffer::default();
                let received = recvmsg(socket.as_fd(), &mut pieces, &mut ancillary, flags);
                (received.map(|message| message.bytes), length, offered)
            }
            None => {
                let offered = scratch.len();
                let received = recv(socket.as_fd(), &mut *scratch, flags);
                (received.map(|(length, _)| length), 0, offered)
            }
        };
        match received {
            Ok(0) => Received::Over,
            Ok(length) => {
                self.has_more = length == offered;
                Received::Some { in_place: length.min(room), beyond: length.saturating_sub(room) }
            }
            Err(Errno::AGAIN | Errno::INTR) => {
                self.has_more = false;
                Received::Nothing
            }
            Err(_) => Received::Over,
        }
    }

    /// Hands on what [`Self::receive`] took. `now`: read after that.
    pub(crate) fn hand_on(&mut self, in_place: usize, beyond: &[u8], now: Duration) {
        self.heard = now;
        if in_place > 0 {
            self.protocol.received_in_place(in_place, now);
        }
        if !beyond.is_empty() {
            self.protocol.receive(beyond, now);
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

    /// Whether the kernel still has something to tell about it, or reads memory of it.
    pub(crate) fn is_in_kernel(&self) -> bool {
        self.is_watched || self.is_awaiting_room || self.connecting.is_some()
    }

    /// Sends what there is, and tells the next thing to do; to be asked until [`Want::Nothing`].
    pub(crate) fn want(&mut self, now: Duration) -> Want {
        if self.is_broken {
            return self.want_when_broken();
        }
        if self.connecting.is_some() {
            if self.protocol.is_closing() {
                self.break_off();
            }
            return Want::Nothing;
        }
        if !self.is_awaiting_room {
            match self.send() {
                Sent::All => {}
                Sent::Some => {
                    self.is_awaiting_room = true;
                    return Want::Room;
                }
                Sent::Broken => {
                    self.break_off();
                    return self.want_when_broken();
                }
            }
            if self.protocol.is_closing() || self.close_when_sent {
                self.break_off();
                return self.want_when_broken();
            }
        } else if self.last_words_by.is_none()
            && (self.protocol.is_closing() || self.close_when_sent)
        {
            self.last_words_by = Some(now + LAST_WORDS_WITHIN);
        }
        if let Some(reactor) = self.moving_to {
            return if self.is_in_kernel() { Want::Nothing } else { Want::Move(reactor) };
        }
        if !self.is_watched && !self.is_asked && self.protocol.wants_input() {
            return Want::Input;
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

    /// Sends what there is: the rest of what was taken off the protocol, and then what came meanwhile,
    /// after which no other event need follow.
    fn send(&mut self) -> Sent {
        let Some(socket) = &self.socket else { return Sent::All };
        loop {
            if self.sending.is_empty() {
                self.sending.rewind();
                self.protocol.take_output(&mut self.sending);
                if self.sending.is_empty() {
                    return Sent::All;
                }
                self.has_sent = true;
            }
            match self.sending.send(socket.as_fd()) {
                Sent::All => {}
                stopped => return stopped,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn a_connection_that_is_to_be_closed_does_not_wait_long_for_a_host_that_reads_nothing() {
        let (ours, _theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None)
                .unwrap();
        let target = voute_nvme::Target::new(voute_nvme::TargetConfig::default()).unwrap();
        let target = voute_nvme::TargetConnection::new(target, 1, Duration::ZERO);
        let protocol = Protocol::Nvme(Box::new(target));
        let mut connection = Connection::new(ConnectionId(1), ours, protocol, Duration::ZERO);
        connection.sending.bytes = vec![0; 8 << 20];
        assert!(matches!(connection.want(Duration::ZERO), Want::Room));
        connection.close_when_sent = true;
        connection.want(Duration::ZERO);
        assert!(!connection.is_broken());
        let due = connection.next_deadline().unwrap();
        assert!(due <= LAST_WORDS_WITHIN);
        connection.tick(due);
        assert!(connection.is_broken());
    }
}

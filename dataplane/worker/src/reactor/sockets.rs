//! Listening, accepting, receiving, sending.

use super::Reactor;
use crate::connection::{Connection, ConnectionId, Protocol, Received, Want};
use crate::link::LinkIn;
use crate::mailbox::{Message, Service};
use crate::metrics::count;
use crate::ring::Purpose;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;
use voute_iscsi::PortalId;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Most connections whose sockets are asked for input in every turn for as long as the reactor spins,
/// instead of waiting until the ring tells of some: a question without an answer costs a tenth of a
/// request, a wake-up by the ring more than that, so that it pays for the few that are busiest.
const ASKED_MAX: usize = 4;

/// Places of each reactor that hosts' connections leave for links, if that is at most an eighth of all;
/// and as many links may be there that have not proven themselves yet.
const LINK_PLACES: usize = 128;

/// Silence after which the kernel asks whether the other end of a link is still there.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(5);

/// A listening socket.
pub(super) struct Listener {
    id: u64,
    service: Service,
    /// `None` when it was replaced and only waits for its last completion.
    socket: Option<OwnedFd>,
    pub(super) is_armed: bool,
    /// When to accept again after an error.
    pub(super) retry_at: Option<Duration>,
}

impl Reactor {
    /// Listens on these sockets and no others.
    pub(super) fn listen(&mut self, sockets: Vec<(Service, OwnedFd)>) {
        for listener in &mut self.listeners {
            listener.socket = None;
            listener.retry_at = None;
            if listener.is_armed {
                self.ring.cancel(Purpose::Accept, listener.id);
            }
        }
        self.listeners.retain(|listener| listener.is_armed);
        for (service, socket) in sockets {
            self.listeners_made += 1;
            let id = self.listeners_made;
            self.ring.accept(socket.as_raw_fd(), id);
            let socket = Some(socket);
            self.listeners.push(Listener { id, service, socket, is_armed: true, retry_at: None });
        }
    }

    pub(super) fn accepted(&mut self, id: u64, result: i32, more: bool) {
        let socket = match result {
            descriptor if descriptor >= 0 => {
                // SAFETY: the kernel just gave this descriptor to us alone.
                Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
            }
            _ => None,
        };
        let Some(place) = self.listeners.iter().position(|listener| listener.id == id) else {
            return;
        };
        let service = self.listeners[place].service;
        let is_open = self.listeners[place].socket.is_some() && !self.is_ending;
        if !more {
            self.listeners[place].is_armed = false;
            match is_open {
                false => drop(self.listeners.swap_remove(place)),
                true => {
                    let pause = if result < 0 { ACCEPT_AGAIN_AFTER } else { Duration::ZERO };
                    self.listeners[place].retry_at = Some(self.clock.now() + pause);
                }
            }
        }
        if let Some(socket) = socket
            && is_open
        {
            self.welcome(service, socket);
        }
    }

    /// Takes up accepting again where it had to pause.
    pub(super) fn accept_again(&mut self, now: Duration) -> bool {
        let mut worked = false;
        for listener in &mut self.listeners {
            if listener.retry_at.is_some_and(|at| at <= now)
                && let Some(socket) = &listener.socket
            {
                (listener.retry_at, listener.is_armed, worked) = (None, true, true);
                self.ring.accept(socket.as_raw_fd(), listener.id);
            }
        }
        worked
    }

    fn welcome(&mut self, service: Service, socket: OwnedFd) {
        let Some(setup) = self.setup.clone() else { return };
        if !self.has_place_for(service) {
            return count(&self.parts.metrics.refused_connections, 1);
        }
        count(&self.parts.metrics.accepted_connections, 1);
        // Without it the connection is only slower.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        let now = self.clock.now();
        let protocol = match service {
            Service::Nvme => Protocol::Nvme(Box::new(voute_nvme::TargetConnection::new(
                setup.nvme.clone(),
                setup.number,
                now,
            ))),
            Service::Iscsi => Protocol::Iscsi(Box::new(voute_iscsi::TargetConnection::new(
                setup.iscsi.clone(),
                PortalId(setup.number),
                now,
            ))),
            Service::Link => {
                limit_silence(&socket, setup.identity.times.leg_deadline_ms);
                let target = setup.links.clone();
                let connection = voute_nvme::TargetConnection::new(target, setup.number, now);
                Protocol::LinkIn(Box::new(LinkIn::new(connection, now)))
            }
        };
        self.enter(socket, protocol);
    }

    /// Whether a connection to this service is taken in. Hosts leave places for links, and links that
    /// have proven nothing do not take them all.
    fn has_place_for(&self, service: Service) -> bool {
        let (places, kept) =
            (self.parts.connections_max, LINK_PLACES.min(self.parts.connections_max / 8));
        match service {
            Service::Nvme | Service::Iscsi => self.connections.len() < places - kept,
            Service::Link => {
                let unproven =
                    self.connections.iter().filter(|(_, connection)| connection.is_unproven_link());
                self.connections.len() < places && unproven.count() < kept.max(1)
            }
        }
    }

    /// Puts a connection into the table.
    pub(super) fn enter(&mut self, socket: OwnedFd, protocol: Protocol) -> usize {
        self.connections_made += 1;
        let entry = self.connections.vacant_entry();
        let place = entry.key();
        let id = ConnectionId::new(self.connections_made, place);
        entry.insert(Connection::new(id, socket, protocol, self.turn));
        self.list(place);
        place
    }

    /// Takes a link that another reactor accepted.
    pub(super) fn adopt(&mut self, mut connection: Connection) {
        self.connections_made += 1;
        let entry = self.connections.vacant_entry();
        let place = entry.key();
        connection.id = ConnectionId::new(self.connections_made, place);
        connection.moving_to = None;
        (connection.is_listed, connection.is_asked) = (false, false);
        entry.insert(connection);
        self.list(place);
        self.greet_held(place);
    }

    /// The kernel says that a socket has input.
    pub(super) fn has_input(&mut self, place: u64, result: i32) {
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        let Some(connection) = self.connections.get_mut(place) else { return };
        connection.has_input(result);
        if !connection.is_asked && connection.takes_input() {
            connection.is_asked = true;
            self.asking.push(place);
        }
        self.list(place);
    }

    /// Asks the sockets for input of which there may be some.
    pub(super) fn ask_sockets(&mut self) -> bool {
        let mut worked = false;
        let mut asking = std::mem::replace(&mut self.asking, std::mem::take(&mut self.asked));
        for place in asking.drain(..) {
            worked |= self.ask_socket(place);
        }
        self.asked = asking;
        worked
    }

    fn ask_socket(&mut self, place: usize) -> bool {
        let Some(connection) = self.connections.get_mut(place) else { return false };
        // Its place may have been another's when it was put on the list.
        if !std::mem::take(&mut connection.is_asked) || !connection.takes_input() {
            return false;
        }
        match connection.receive(&mut self.scratch) {
            Received::Some { in_place, beyond } => {
                let now = self.clock.now();
                connection.hand_on(in_place, &self.scratch[..beyond], now);
            }
            Received::Nothing => {
                self.expect_input(place);
                return false;
            }
            Received::Over => connection.break_off(),
        }
        self.list(place);
        true
    }

    /// Input of this connection is awaited: its socket is asked in the next turn, or the kernel tells.
    fn expect_input(&mut self, place: usize) {
        let connection = &mut self.connections[place];
        let is_busy =
            self.asking.len() < ASKED_MAX && self.turn < connection.heard + self.parts.spin;
        if connection.has_more || is_busy {
            connection.is_asked = true;
            self.asking.push(place);
        } else if let Some(socket) = connection.descriptor() {
            connection.watched();
            self.ring.watch_input(socket, place as u64);
        }
    }

    /// From now on only the kernel tells of input.
    pub(super) fn stop_asking(&mut self) {
        while let Some(place) = self.asking.pop() {
            let Some(connection) = self.connections.get_mut(place) else { continue };
            let was_asked = std::mem::take(&mut connection.is_asked);
            if let Some(socket) = connection.descriptor().filter(|_| was_asked) {
                connection.watched();
                self.ring.watch_input(socket, place as u64);
            }
        }
    }

    /// Looks after the connections that something happened to: sends, receives, closes. Returns
    /// whether mirrors learnt something by it.
    pub(super) fn settle(&mut self) -> bool {
        let mut worked = false;
        while let Some(place) = self.listed.pop() {
            let Some(connection) = self.connections.get_mut(place) else { continue };
            connection.is_listed = false;
            let due = connection.next_deadline();
            self.connections_due = self.connections_due.into_iter().chain(due).min();
            worked |= self.satisfy(place);
            worked |= self.pull_behind_output(place);
        }
        worked
    }

    /// Takes requests that a protocol held back because too much output waited, which is gone now: no
    /// other event need follow that would ask it again.
    fn pull_behind_output(&mut self, place: usize) -> bool {
        let connection = self.connections.get_mut(place);
        let has_sent =
            connection.is_some_and(|connection| std::mem::take(&mut connection.has_sent));
        let worked = has_sent && self.pull(place);
        if has_sent {
            // It may have answered some of them by itself.
            self.on(place as u64, |_| ());
        }
        worked
    }

    fn satisfy(&mut self, place: usize) -> bool {
        loop {
            let connection = &mut self.connections[place];
            match connection.want(self.turn) {
                Want::Room => {
                    let Some(socket) = connection.descriptor() else { return false };
                    self.ring.watch_room(socket, place as u64);
                }
                Want::Input => self.expect_input(place),
                Want::Move(reactor) => {
                    let connection = self.connections.remove(place);
                    self.post(reactor, Message::Adopt(Box::new(connection)));
                    return false;
                }
                Want::Drop => {
                    // What was lost with it, before its place is given away.
                    let worked = self.pull(place);
                    self.connections.remove(place);
                    return worked;
                }
                Want::Nothing => return connection.is_broken() && self.pull(place),
            }
        }
    }
}

/// A peer that acknowledges nothing for this long is gone.
pub(super) fn limit_silence(socket: &OwnedFd, milliseconds: u64) {
    let milliseconds = u32::try_from(milliseconds).unwrap_or(u32::MAX);
    // Without these a silent peer is noticed later, by the mirror's own deadlines.
    let _ = rustix::net::sockopt::set_tcp_user_timeout(socket, milliseconds);
    // An accepting end has nothing to send, hence nothing that could go unacknowledged.
    let _ = rustix::net::sockopt::set_socket_keepalive(socket, true);
    let _ = rustix::net::sockopt::set_tcp_keepidle(socket, KEEP_ALIVE_AFTER);
    let _ = rustix::net::sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE_AFTER);
}

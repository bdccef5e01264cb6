//! Channels to other nodes: connecting, proving, carrying requests and answers of mirrors.

use super::{Reactor, sockets};
use crate::connection::{ConnectionId, Protocol};
use crate::link::{
    Admission, Channel, LINK_QUEUE_DEPTH, LinkAsker, LinkOut, Peers, Progress, WAITING_MAX,
    command, outcome,
};
use crate::metrics::count;
use socket2::{Domain, Protocol as SocketProtocol, SockAddr, Socket, Type};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use voute_mirror::link::{
    Control, ControlReply, LinkRefusal, LinkReply, LinkRequest, OPCODE_CONTROL,
};
use voute_mirror::wire;
use voute_mirror::{IncomingTag, LinkFault};
use voute_nvme::{
    ConnectionOptions, InitiatorConnection, InitiatorEvent, Operation, Request, SubmitError, Tag,
};
use voute_schemas::NodeId;

/// From the first packet until the transport's handshake is over.
const HANDSHAKE: Duration = Duration::from_secs(2);

impl Reactor {
    /// A mirror wants a channel to a peer, or wants it no more.
    pub(super) fn want_channel(&mut self, place: usize, peer: NodeId, wanted: bool) {
        let now = self.clock.now();
        let shard = &mut self.shards[place];
        if wanted {
            let channel = shard.channels.entry(peer).or_insert_with(|| Channel::new(now, true));
            channel.is_mirrors = true;
            if channel.is_up {
                shard.mirror.channel_up(peer, now);
                shard.deadline = None;
            }
            self.links_due = Some(now);
            return;
        }
        let Some(channel) = shard.channels.remove(&peer) else { return };
        let number = shard.number;
        for (asker, _) in channel.waiting {
            self.link_answered(number, asker, Err(LinkFault::Down));
        }
        if let Some(connection) = channel.connection {
            self.on(connection as u64, |connection| connection.break_off());
        }
    }

    /// Connects channels that are due.
    pub(super) fn connect_links(&mut self, now: Duration) -> bool {
        if self.links_due.is_none_or(|due| due > now) {
            return false;
        }
        let Some(peers) = self.peers.clone() else { return false };
        let mut worked = false;
        for place in 0..self.shards.len() {
            let due = |channel: &Channel| channel.connection.is_none() && channel.retry_at <= now;
            let due: Vec<NodeId> = self.shards[place]
                .channels
                .iter()
                .filter(|(_, channel)| due(channel))
                .map(|(peer, _)| *peer)
                .collect();
            for peer in due {
                worked = true;
                let connection = self.open(&peers, peer, place, now);
                let channel = self.shards[place].channels.get_mut(&peer);
                let channel = channel.expect("it was found above");
                match connection {
                    Some(connection) => channel.connection = Some(connection),
                    None => channel.down(now),
                }
            }
        }
        let channels = self.shards.iter().flat_map(|shard| shard.channels.values());
        let unconnected = channels.filter(|channel| channel.connection.is_none());
        self.links_due = unconnected.map(|channel| channel.retry_at).min();
        worked
    }

    /// Opens a connection to a peer for a shard; `None` if that cannot even be begun.
    fn open(&mut self, peers: &Peers, peer: NodeId, place: usize, now: Duration) -> Option<usize> {
        let setup = self.setup.clone()?;
        let address = *peers.links.get(&peer)?;
        let identity = &setup.identity;
        let socket = connecting_socket(address, identity.times.leg_deadline_ms).ok()?;
        let name = format!("{}:node:{}", peers.link_nqn, identity.node);
        let options = ConnectionOptions {
            keep_alive: None,
            queue_depth: LINK_QUEUE_DEPTH,
            handshake: HANDSHAKE,
            // The mirror has its own deadline for each leg; this only ends what hangs for ever.
            command_timeout: Some(Duration::from_millis(identity.times.leg_deadline_ms.max(1) * 5)),
            ..ConnectionOptions::new(&name, identity.node.bytes(), &peers.link_nqn)
        };
        let connection = InitiatorConnection::connect_link(options, now);
        let (shard, incarnation) = (self.shards[place].number, identity.incarnation);
        let link = LinkOut::new(connection, peer, shard, identity.node, incarnation)?;
        let descriptor = socket.as_raw_fd();
        let connection = self.enter(socket, Protocol::LinkOut(Box::new(link)));
        let address = Box::new(SockAddr::from(address));
        // SAFETY: the connection keeps the boxed address until `connected`.
        unsafe { self.ring.connect(descriptor, connection as u64, &address) };
        self.connections[connection].connecting = Some(address);
        Some(connection)
    }

    /// Has a channel to a peer connected that no mirror needs, for what hosts ask here. Tells whether it
    /// can be used, or will be soon: `None` if the peer was tried in vain.
    pub(super) fn channel_for_hosts(&mut self, place: usize, peer: NodeId) -> Option<bool> {
        let now = self.clock.now();
        if !self.peers.as_ref()?.links.contains_key(&peer) {
            return None;
        }
        let channels = &mut self.shards[place].channels;
        let channel = channels.entry(peer).or_insert_with(|| {
            self.links_due = Some(now);
            Channel::new(now, false)
        });
        (channel.is_up || channel.is_fresh()).then_some(channel.is_up)
    }

    /// What became of a request over a link.
    fn link_answered(&mut self, shard: u16, asker: LinkAsker, reply: Result<LinkReply, LinkFault>) {
        match asker {
            LinkAsker::Mirror(tag) => {
                let now = self.clock.now();
                self.with(shard, |shard| shard.mirror.link_reply(tag, reply, now));
            }
            LinkAsker::Host(entry) => self.passed_on_answered(entry, reply),
        }
    }

    /// Sends a request, or keeps it until there is room.
    pub(super) fn link_send(
        &mut self,
        place: usize,
        peer: NodeId,
        asker: LinkAsker,
        request: LinkRequest,
    ) {
        let shard = &mut self.shards[place];
        match shard.channels.get_mut(&peer) {
            Some(channel) if channel.is_up && channel.waiting.len() < WAITING_MAX => {
                let connection = channel.connection.expect("a channel that is up has one");
                channel.waiting.push_back((asker, request));
                if channel.waiting.len() == 1 {
                    self.send_waiting(connection);
                }
            }
            _ => {
                let number = self.shards[place].number;
                self.link_answered(number, asker, Err(LinkFault::Down));
            }
        }
    }

    /// Submits what waits, in order, as far as the connection's queue has room.
    fn send_waiting(&mut self, connection: usize) {
        let now = self.clock.now();
        let reactors = self.parts.mailboxes.len();
        let Some(entry) = self.connections.get_mut(connection) else { return };
        let Protocol::LinkOut(link) = &mut entry.protocol else { return };
        let shard = &mut self.shards[usize::from(link.shard) / reactors];
        let Some(channel) = shard.channels.get_mut(&link.peer) else { return };
        let (shard_number, mut lost) = (link.shard, VecDeque::new());
        while link.connection.room() > 0 {
            let Some((asker, request)) = channel.waiting.pop_front() else { break };
            let (command, opcode) = command(&request);
            match link.connection.submit(command, now) {
                Ok(sent) => drop(link.pending.insert(sent, (asker, opcode))),
                Err(SubmitError::QueueFull) => {
                    channel.waiting.push_front((asker, request));
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "a request to a peer cannot be sent");
                    lost.push_back(asker);
                }
            }
        }
        shard.deadline = None;
        for asker in lost {
            self.link_answered(shard_number, asker, Err(LinkFault::Down));
        }
        self.list(connection);
    }

    /// Takes what happened on a connection to a peer.
    pub(super) fn pull_link_out(&mut self, place: usize) -> bool {
        let mut worked = false;
        while let Some(connection) = self.connections.get_mut(place) {
            let Protocol::LinkOut(link) = &mut connection.protocol else { break };
            let Some(event) = link.connection.next_event() else { break };
            worked = true;
            match event {
                InitiatorEvent::Connected { .. } => {
                    let hello = link.hello();
                    self.send_control(place, hello);
                }
                InitiatorEvent::Completed { tag, status, data, .. } if link.is_up() => {
                    let Some((asker, opcode)) = link.pending.remove(&tag) else { continue };
                    let shard = link.shard;
                    let refused = (!status.is_success()).then(|| status.code());
                    let reply = wire::decode_reply(opcode, refused, data);
                    self.link_answered(shard, asker, reply.ok_or(LinkFault::Unreadable));
                    self.send_waiting(place);
                }
                InitiatorEvent::Completed { status, data, .. } => {
                    let refused = (!status.is_success()).then(|| status.code());
                    let reply = match wire::decode_reply(OPCODE_CONTROL, refused, data) {
                        Some(LinkReply::Control(reply)) => Some(reply),
                        _ => None,
                    };
                    self.progress(place, reply);
                }
                InitiatorEvent::Lost { tag, .. } => {
                    let Some((asker, _)) = link.pending.remove(&tag) else { continue };
                    let shard = link.shard;
                    self.link_answered(shard, asker, Err(LinkFault::Down));
                }
                InitiatorEvent::Closed { reason } => {
                    let (shard, peer, was_up) = (link.shard, link.peer, link.is_up());
                    self.link_closed(place, shard, peer, was_up, reason);
                }
            }
        }
        worked
    }

    fn send_control(&mut self, place: usize, control: Control) {
        let now = self.clock.now();
        let (command, _) = command(&LinkRequest::Control(control));
        self.on(place as u64, |connection| {
            if let Protocol::LinkOut(link) = &mut connection.protocol
                && link.connection.submit(command, now).is_err()
            {
                connection.break_off();
            }
        });
    }

    fn progress(&mut self, place: usize, reply: Option<ControlReply>) {
        let Some(peers) = self.peers.clone() else { return };
        let Some(connection) = self.connections.get_mut(place) else { return };
        let Protocol::LinkOut(link) = &mut connection.protocol else { return };
        let (shard, peer) = (link.shard, link.peer);
        match link.answered(reply, &peers) {
            Progress::Send(control) => self.send_control(place, control),
            Progress::Up => {
                let now = self.clock.now();
                let is_wanted = self.with(shard, |shard| {
                    let channel = shard.channels.get_mut(&peer)?;
                    channel.up();
                    if channel.is_mirrors {
                        shard.mirror.channel_up(peer, now);
                    }
                    Some(())
                });
                tracing::debug!(%peer, shard, wanted = is_wanted.flatten().is_some(), "link up");
            }
            Progress::Refuse(why) => {
                count(&self.parts.metrics.refused_links, 1);
                if self.refused.insert(peer) {
                    tracing::warn!(%peer, "link refused: {why}");
                }
                self.on(place as u64, |connection| connection.break_off());
            }
        }
    }

    fn link_closed(
        &mut self,
        place: usize,
        shard: u16,
        peer: NodeId,
        was_up: bool,
        reason: voute_nvme::Closed,
    ) {
        let now = self.clock.now();
        if was_up {
            tracing::info!(%peer, shard, %reason, "link down");
        }
        let closed = self.with(shard, |shard| {
            let channel = shard.channels.get_mut(&peer)?;
            if channel.connection != Some(place) {
                return None;
            }
            channel.down(now);
            let retry_at = channel.retry_at;
            let waiting = std::mem::take(&mut channel.waiting);
            if was_up && channel.is_mirrors {
                shard.mirror.channel_down(peer, now);
            }
            Some((retry_at, waiting))
        });
        let Some((retry_at, waiting)) = closed.flatten() else { return };
        self.links_due = self.links_due.into_iter().chain([retry_at]).min();
        for (asker, _) in waiting {
            self.link_answered(shard, asker, Err(LinkFault::Down));
        }
    }

    // ---- the accepting end ------------------------------------------------------------------

    /// Takes what a peer asked on a connection that it opened.
    pub(super) fn pull_link_in(&mut self, place: usize) -> bool {
        let mut worked = false;
        while let Some(connection) = self.connections.get_mut(place) {
            let id = connection.id;
            let Protocol::LinkIn(link) = &mut connection.protocol else { break };
            let Some(request) = link.connection.next_request() else { break };
            worked = true;
            let peer = link.peer();
            let Request { tag, operation, .. } = request;
            let Operation::Vendor { opcode, nsid, dwords, data, .. } = operation else { continue };
            match (wire::decode_request(opcode, nsid, dwords, data), peer) {
                (
                    Ok(LinkRequest::Control(Control::Reserve { volume, asking })),
                    Some((_, shard)),
                ) => self.reserve_for_peer(id, tag, (shard, volume), &asking),
                (Ok(request), Some((peer, shard))) => {
                    let now = self.clock.now();
                    let incoming = IncomingTag { connection: id.0, command: tag.to_bits() };
                    let taken = self.with(shard, |shard| {
                        shard.mirror.link_request(peer, incoming, request, now);
                    });
                    if taken.is_none() {
                        self.answer_link(id, tag, LinkReply::Refused(LinkRefusal::NotYet));
                    }
                }
                (Ok(LinkRequest::Control(control)), None) => self.admit(place, id, tag, &control),
                (Ok(_), None) => {
                    self.answer_link(id, tag, LinkReply::Refused(LinkRefusal::NotAuthenticated));
                }
                (Err(_), _) => self.answer_link(id, tag, LinkReply::Refused(LinkRefusal::Invalid)),
            }
        }
        worked
    }

    fn admit(&mut self, place: usize, id: ConnectionId, tag: Tag, control: &Control) {
        let Some(peers) = self.peers.clone() else {
            return self.answer_link(id, tag, LinkReply::Refused(LinkRefusal::NotYet));
        };
        let Protocol::LinkIn(link) = &mut self.connections[place].protocol else { return };
        let Some(shard) = link.hold(tag, control) else {
            let admission = link.admit(control, &peers);
            return self.admitted(place, id, tag, admission);
        };
        let home = self.home(shard);
        if home != self.parts.index {
            self.connections[place].moving_to = Some(home);
            return self.list(place);
        }
        self.greet_held(place);
    }

    /// Answers the greeting of a link that has arrived where its shard lives.
    pub(super) fn greet_held(&mut self, place: usize) {
        let Some(peers): Option<Arc<Peers>> = self.peers.clone() else { return };
        let connection = &mut self.connections[place];
        let id = connection.id;
        let Protocol::LinkIn(link) = &mut connection.protocol else { return };
        let Some((tag, greeting)) = link.take_held() else { return };
        let admission = link.challenge(greeting, &peers);
        self.admitted(place, id, tag, admission);
    }

    fn admitted(&mut self, place: usize, id: ConnectionId, tag: Tag, admission: Admission) {
        match admission {
            Admission::Answer(reply) | Admission::Proven(reply) => {
                self.answer_link(id, tag, LinkReply::Control(reply));
            }
            Admission::Refuse(why) => {
                count(&self.parts.metrics.refused_links, 1);
                if !std::mem::replace(&mut self.has_refused_stranger, true) {
                    tracing::warn!(
                        "an incoming link was refused: {why}; further ones are only counted"
                    );
                }
                self.answer_link(id, tag, LinkReply::Refused(LinkRefusal::NotAuthenticated));
                self.on(place as u64, |connection| connection.close_when_sent = true);
            }
        }
    }

    /// A mirror has answered a peer.
    pub(super) fn link_reply(&mut self, request: IncomingTag, reply: LinkReply) {
        self.answer_link(ConnectionId(request.connection), Tag::from_bits(request.command), reply);
    }

    pub(super) fn answer_link(&mut self, id: ConnectionId, tag: Tag, reply: LinkReply) {
        let Some(connection) = self.connection(id) else { return };
        let Protocol::LinkIn(link) = &mut connection.protocol else { return };
        link.connection.complete(tag, outcome(reply));
        self.list(id.place());
    }
}

/// A socket on its way to a peer. Nothing on it lasts longer than the mirror would wait for a leg.
fn connecting_socket(address: SocketAddr, silence_ms: u64) -> std::io::Result<OwnedFd> {
    let kind = Type::STREAM.cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(SocketProtocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    crate::listen::send_at_once(&socket);
    let socket = OwnedFd::from(socket);
    sockets::limit_silence(&socket, silence_ms);
    Ok(socket)
}

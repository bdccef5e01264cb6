//! One reactor: a thread that polls its sockets, its devices and its mailbox, and runs the protocols
//! and mirrors that live on it to completion.
//!
//! ```text
//!   mailbox ─┐                       ┌─► devices ─┐
//!   sockets ─┼─► protocols ─► mirrors ┤            ├─► mirrors ─► protocols ─► one send each
//!   time ────┘                       └─► links ───┘
//! ```
//!
//! After the last thing that happened it looks again without blocking for a short while, then sleeps
//! in the kernel until something comes or is due.
//!
//! Time is read anew after data is in hand (a completion of a device, bytes of a peer): a lease must
//! be judged, and a grant counted, no earlier than that.

mod allocation;
mod channels;
mod hosts;
mod moves;
mod reservations;
mod sockets;

pub(crate) use allocation::{Asked, Piece};
pub(crate) use reservations::Guarded;

use crate::clock::{Clock, LOOK_EVERY_MAX};
use crate::connection::{Connection, ConnectionId};
use crate::judge::Judge;
use crate::link::{Channel, LinkAsker, Peers, SHARDS};
use crate::mailbox::{Inbox, LegPlace, Mailbox, Message};
use crate::metrics::{Metrics, count};
use crate::offer::{Offer, Routes};
use crate::ring::{Purpose, Ring};
use crate::translation::Requests;
use allocation::Waiting;
use hosts::HostWork;
use moves::Moves;
use reservations::{Place, Reserving, Step};
use slab::Slab;
use sockets::Listener;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use voute_buffer::Buffer;
use voute_device::DeviceQueue;
use voute_mirror::{Access, Action, DeviceResult, DeviceTag, HostTag, Identity, Mirror};
use voute_schemas::command::Escalation;
use voute_schemas::contract::{EscalationOutcome, GroupStatus, LinkStatus};
use voute_schemas::{NodeId, VolumeId};

/// Operations out per device and reactor.
const DEVICE_DEPTH: u32 = 128;
/// Most messages taken from the mailbox before sockets get their turn.
const MESSAGES_PER_TURN: usize = 1_024;
/// Most results of devices that are taken at once.
const DEVICE_RESULTS_MAX: usize = 256;
/// Most rounds between mirrors, devices and protocols before sockets get their turn.
const ROUNDS_PER_TURN: usize = 64;
/// Least time between two questions to a mirror when it wants to be ticked, while the reactor is
/// busy; mirrors count in milliseconds.
const ASK_EVERY_MIN: Duration = Duration::from_micros(100);
/// Memory for input whose place is not known yet, bytes.
const SCRATCH_BYTES: usize = 64 << 10;
/// How long the kernel may take to give back what it holds when the reactor ends.
const END_WITHIN: Duration = Duration::from_secs(5);

/// What all reactors of a node share, known once the control plane has told the node who it is.
pub(crate) struct Setup {
    pub(crate) identity: Identity,
    /// The node's small number: its portals' id.
    pub(crate) number: u16,
    pub(crate) nvme: Arc<voute_nvme::Target>,
    pub(crate) links: Arc<voute_nvme::Target>,
    pub(crate) iscsi: Arc<voute_iscsi::Target>,
    pub(crate) offer: Arc<Offer>,
    pub(crate) judge: Judge,
}

/// What a reactor tells the agent.
pub(crate) enum FromReactor {
    /// A mirror asks the log.
    Escalate(u16, Escalation),
    /// Something changed that the control plane should know soon.
    Changed,
    /// The answer to [`Message::Report`].
    Report { reactor: usize, groups: Vec<GroupStatus>, links: Vec<LinkStatus> },
}

/// What a reactor is made with.
pub(crate) struct Parts {
    pub(crate) index: usize,
    pub(crate) inbox: Inbox,
    pub(crate) mailboxes: Arc<[Arc<Mailbox>]>,
    pub(crate) agent: tokio::sync::mpsc::Sender<FromReactor>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) spin: Duration,
    pub(crate) connections_max: usize,
}

/// A mirror and its channels.
struct Shard {
    number: u16,
    mirror: Mirror,
    /// Reservations of the volumes that it serves.
    reservations: HashMap<VolumeId, Place>,
    channels: HashMap<NodeId, Channel>,
    /// When the mirror wants to be ticked; `None` if it was touched since this was asked.
    deadline: Option<Option<Duration>>,
    /// When it was asked last: it looks at every group, so a busy reactor asks seldom.
    asked: Duration,
}

impl Shard {
    fn next_deadline(&mut self, now: Duration) -> Option<Duration> {
        if self.deadline.is_none() {
            self.asked = now;
        }
        *self.deadline.get_or_insert_with(|| self.mirror.next_deadline())
    }
}

pub(crate) struct Reactor {
    parts: Parts,
    clock: Clock,
    ring: Ring,
    completed: Vec<crate::ring::Completed>,
    devices: DeviceQueue,
    /// Which mirror a request on a device belongs to, and its tag there.
    device_requests: Slab<(u16, DeviceTag)>,
    /// Results on their way to mirrors; empty between.
    device_results: Vec<(DeviceTag, DeviceResult)>,
    is_watching_devices: bool,
    setup: Option<Arc<Setup>>,
    peers: Option<Arc<Peers>>,
    /// In order of their numbers: those that leave the reactor's index when divided by the number of
    /// reactors.
    shards: Vec<Shard>,
    routes: Arc<Routes>,
    /// What hosts wait for that want another owner.
    moves: Moves,
    /// Generations of the offer and of the targets' attention at the last look.
    noticed: (u64, u64),
    /// When the first of the channels without a connection is to be connected.
    links_due: Option<Duration>,
    listeners: Vec<Listener>,
    listeners_made: u64,
    connections: Slab<Connection>,
    connections_made: u64,
    /// Places of connections to pull requests from, and to look after before sleeping.
    listed: Vec<usize>,
    /// Places of connections whose sockets are asked for input in the next turn; and an empty list
    /// whose memory is used in turn.
    asking: Vec<usize>,
    asked: Vec<usize>,
    /// Where input arrives whose place is not known yet.
    scratch: Buffer,
    /// When this turn began.
    turn: Duration,
    /// Places of connections, and when the first of them wants to be ticked.
    connections_due: Option<Duration>,
    host_work: Slab<HostWork>,
    /// Requests of hosts here about reservations.
    reserving: Slab<Reserving>,
    /// Of those, or of other reactors here: which hosts wait for what was passed on to another node.
    passed_on: Slab<HostTag>,
    /// Hosts here that ask how blocks are allocated.
    allocations: Slab<Waiting>,
    /// What mirrors here were asked on behalf of reservations.
    steps: Slab<Step>,
    /// Requests of one step of an operation, empty between steps.
    requests: Requests,
    /// Messages that found another reactor's mailbox full.
    backlog: VecDeque<(usize, Message)>,
    /// Peers whose refusal was logged.
    refused: HashSet<NodeId>,
    /// Whether the refusal of an incoming link was logged.
    has_refused_stranger: bool,
    is_ending: bool,
}

impl Reactor {
    /// Makes a reactor; must be called on the thread that runs it.
    ///
    /// # Errors
    /// If the kernel gives no io_uring.
    pub(crate) fn new(parts: Parts) -> io::Result<Self> {
        Ok(Reactor {
            parts,
            clock: Clock::new(),
            ring: Ring::new()?,
            completed: Vec::new(),
            devices: DeviceQueue::new(DEVICE_DEPTH)?,
            device_requests: Slab::new(),
            device_results: Vec::new(),
            is_watching_devices: false,
            setup: None,
            peers: None,
            shards: Vec::new(),
            routes: Arc::default(),
            noticed: (0, 0),
            links_due: None,
            listeners: Vec::new(),
            listeners_made: 0,
            connections: Slab::new(),
            connections_made: 0,
            listed: Vec::new(),
            asking: Vec::new(),
            asked: Vec::new(),
            scratch: Buffer::zeroed(SCRATCH_BYTES),
            turn: Duration::ZERO,
            connections_due: None,
            host_work: Slab::new(),
            reserving: Slab::new(),
            passed_on: Slab::new(),
            allocations: Slab::new(),
            steps: Slab::new(),
            requests: Requests::new(),
            moves: Moves::default(),
            backlog: VecDeque::new(),
            refused: HashSet::new(),
            has_refused_stranger: false,
            is_ending: false,
        })
    }

    /// Runs until [`Message::Stop`].
    ///
    /// # Errors
    /// If the kernel refuses to go on.
    pub(crate) fn run(mut self) -> io::Result<()> {
        self.ring.poll(self.parts.inbox.as_fd().as_raw_fd(), Purpose::Wake, true);
        self.turn = self.clock.now();
        let mut busy_until = self.turn + self.parts.spin;
        while !self.is_ending {
            let mut worked = self.read_mailbox();
            worked |= self.reap();
            worked |= self.ask_sockets();
            worked |= self.notice();
            worked |= self.keep_time();
            worked |= self.pump();
            worked |= self.settle();
            self.devices.flush_submissions();
            self.send_backlog();
            self.turn = self.clock.now();
            if worked {
                busy_until = self.turn + self.parts.spin;
            }
            // What was pulled while settling is still to be acted on, however short it spins.
            match worked || self.turn < busy_until {
                true => self.ring.enter(None)?,
                false => self.sleep(self.turn)?,
            }
        }
        self.end()
    }

    fn read_mailbox(&mut self) -> bool {
        for taken in 0..MESSAGES_PER_TURN {
            match self.parts.inbox.next() {
                Some(message) => self.message(message),
                None => return taken > 0,
            }
        }
        true
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Setup(setup) => self.set_up(setup),
            Message::Peers(peers) => {
                self.peers = Some(peers);
                self.links_due = Some(Duration::ZERO);
            }
            Message::Listen(sockets) => self.listen(sockets),
            Message::Device(id, device) => self.devices.add_device(id, device),
            Message::ForgetDevice(id) => self.devices.remove_device(id),
            Message::Apply { shard, legs, groups, removed } => {
                legs.iter().for_each(|leg| self.attach(leg));
                let now = self.clock.now();
                self.with(shard, |shard| shard.mirror.apply(groups, removed, now));
            }
            Message::Retire { shard, leg } => {
                self.attach(&leg);
                let now = self.clock.now();
                self.with(shard, |shard| shard.mirror.retire(leg.leg, now));
            }
            Message::Forget(leg) => self.devices.detach_leg(leg),
            Message::Answered { shard, outcomes } => {
                for (escalation, outcome) in &outcomes {
                    if let (
                        Escalation::WantOwner { group, .. },
                        EscalationOutcome::Refused { .. },
                    ) = (escalation, outcome)
                    {
                        self.move_refused(*group);
                    }
                }
                let now = self.clock.now();
                self.with(shard, |shard| {
                    for (escalation, outcome) in &outcomes {
                        shard.mirror.escalation_answered(escalation, outcome, now);
                    }
                });
            }
            Message::MoveRefused(group) => self.forget_move(group),
            Message::Report => self.report(),
            Message::Host(shard, guarded) => self.submit_here(shard, guarded),
            Message::Reserve(shard, volume, job) => self.reserve_here(shard, volume, *job),
            Message::Reserved(asker, answer) => self.reserved(asker, answer),
            Message::Allocation(shard, volume, asked) => self.allocation_here(shard, volume, asked),
            Message::Allocated(asker, found) => self.allocation_found(asker, found),
            Message::HostDone(tag, outcome) => self.host_done(tag, outcome),
            Message::Judged(connection, tag, outcome) => self.judged(connection, tag, *outcome),
            Message::Adopt(connection) => self.adopt(*connection),
            Message::Stop => self.is_ending = true,
        }
    }

    fn set_up(&mut self, setup: Arc<Setup>) {
        let now = self.clock.now();
        let here = (0..SHARDS).filter(|shard| self.home(*shard) == self.parts.index);
        let shards = here.map(|number| Shard {
            number,
            mirror: Mirror::new(setup.identity.clone(), now),
            reservations: HashMap::new(),
            channels: HashMap::new(),
            deadline: None,
            asked: Duration::ZERO,
        });
        self.shards = shards.collect();
        self.setup = Some(setup);
    }

    fn attach(&mut self, leg: &LegPlace) {
        self.devices.attach_leg(leg.leg, leg.extent_bytes, &leg.runs);
    }

    /// The reactor where a shard lives.
    fn home(&self, shard: u16) -> usize {
        usize::from(shard) % self.parts.mailboxes.len()
    }

    /// Does something with a shard that lives here. One that does not is a bug of the sender that
    /// must not end the node; before the set-up there is none.
    fn with<T>(&mut self, shard: u16, change: impl FnOnce(&mut Shard) -> T) -> Option<T> {
        let place = usize::from(shard) / self.parts.mailboxes.len();
        let shard = self.shards.get_mut(place).filter(|found| found.number == shard)?;
        shard.deadline = None;
        Some(change(shard))
    }

    /// Hands a message to another reactor, later if its mailbox is full.
    fn post(&mut self, reactor: usize, message: Message) {
        let full = match self.backlog.is_empty() {
            true => self.parts.mailboxes[reactor].try_send(message).err(),
            false => Some(message),
        };
        self.backlog.extend(full.map(|message| (reactor, message)));
    }

    fn send_backlog(&mut self) {
        while let Some((reactor, message)) = self.backlog.pop_front() {
            if let Err(message) = self.parts.mailboxes[reactor].try_send(message) {
                return self.backlog.push_front((reactor, message));
            }
        }
    }

    fn tell_agent(&self, what: FromReactor) {
        if self.parts.agent.try_send(what).is_err() {
            count(&self.parts.metrics.dropped_escalations, 1);
        }
    }

    fn report(&mut self) {
        let now = self.clock.now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
        let (mut groups, mut links) = (Vec::new(), Vec::new());
        for shard in &mut self.shards {
            groups.extend(shard.mirror.status(now, unix_ms));
            links.extend(shard.mirror.links(now));
        }
        self.tell_agent(FromReactor::Report { reactor: self.parts.index, groups, links });
    }

    /// Takes what the kernel has done.
    fn reap(&mut self) -> bool {
        let mut completed = std::mem::take(&mut self.completed);
        self.ring.reap(&mut completed);
        let worked = !completed.is_empty();
        for one in completed.drain(..) {
            match one.purpose {
                Purpose::Accept => self.accepted(one.key, one.result, one.more),
                Purpose::Input => self.has_input(one.key, one.result),
                Purpose::Room => self.on(one.key, |connection| connection.has_room(one.result)),
                Purpose::Connect => self.on(one.key, |connection| connection.connected(one.result)),
                Purpose::Wake => {
                    self.parts.inbox.clear();
                    if !one.more && !self.is_ending {
                        let wake = self.parts.inbox.as_fd().as_raw_fd();
                        self.ring.poll(wake, Purpose::Wake, true);
                    }
                }
                Purpose::Devices => self.is_watching_devices = false,
                Purpose::Cancel => {}
            }
        }
        self.completed = completed;
        worked
    }

    /// Looks whether another thread published something that concerns every connection.
    fn notice(&mut self) -> bool {
        let Some(setup) = &self.setup else { return false };
        let found = (setup.offer.generation(), setup.nvme.attention());
        if found == self.noticed {
            return false;
        }
        self.noticed = found;
        self.routes = setup.offer.routes();
        self.tick_connections(true);
        true
    }

    fn keep_time(&mut self) -> bool {
        let now = self.clock.now();
        let mut worked = false;
        for shard in &mut self.shards {
            let deadline = match shard.deadline {
                None if now < shard.asked + ASK_EVERY_MIN => continue,
                _ => shard.next_deadline(now),
            };
            if deadline.is_some_and(|deadline| deadline <= now) {
                shard.mirror.tick(now);
                shard.deadline = None;
                worked = true;
            }
        }
        if self.connections_due.is_some_and(|due| due <= now) {
            self.tick_connections(false);
            worked = true;
        }
        worked |= self.follow_moves();
        worked |= self.accept_again(now);
        worked | self.connect_links(now)
    }

    /// Ticks connections that are due, or all, and finds out when the next is.
    fn tick_connections(&mut self, all: bool) {
        let now = self.clock.now();
        self.connections_due = None;
        let mut touched = Vec::new();
        for (place, connection) in &mut self.connections {
            let deadline = connection.next_deadline();
            if all || deadline.is_some_and(|deadline| deadline <= now) {
                connection.tick(now);
                touched.push(place);
            }
            self.connections_due =
                self.connections_due.into_iter().chain(connection.next_deadline()).min();
        }
        touched.into_iter().for_each(|place| self.list(place));
    }

    /// Passes things between mirrors, devices and protocols until all are quiet.
    fn pump(&mut self) -> bool {
        for round in 0..ROUNDS_PER_TURN {
            let mut worked = self.act();
            worked |= self.complete_devices();
            worked |= self.pull_requests();
            worked |= self.follow_wishes();
            if !worked {
                return round > 0;
            }
        }
        true
    }

    fn act(&mut self) -> bool {
        let mut worked = false;
        for place in 0..self.shards.len() {
            while self.devices.has_room() {
                let Some(action) = self.shards[place].mirror.next_action() else { break };
                self.shards[place].deadline = None;
                self.perform(place, action);
                worked = true;
            }
        }
        worked
    }

    fn perform(&mut self, place: usize, action: Action) {
        match action {
            Action::Device(mut request) => {
                let entry = (self.shards[place].number, request.tag);
                request.tag = DeviceTag(self.device_requests.insert(entry) as u64);
                self.devices.submit(request);
            }
            Action::Link { peer, tag, request } => {
                self.link_send(place, peer, LinkAsker::Mirror(tag), request);
            }
            Action::LinkReply { request, reply } => self.link_reply(request, reply),
            Action::HostReply { id, outcome } => self.host_reply(id, outcome),
            Action::Escalate(escalation) => {
                let shard = self.shards[place].number;
                self.tell_agent(FromReactor::Escalate(shard, escalation));
            }
            Action::AccessChanged { group, access } => {
                tracing::info!(%group, ?access, "access changed");
                if access == Access::Inaccessible {
                    self.forget_reservations(place, group);
                }
                if let Some(setup) = &self.setup {
                    setup.offer.set_access(group, access);
                }
                self.tell_agent(FromReactor::Changed);
            }
            Action::Record { group, volume, record, is_cold } => {
                self.record_told(place, group, volume, &record, is_cold);
            }
            Action::Channel { peer, wanted } => self.want_channel(place, peer, wanted),
        }
    }

    /// Tells mirrors what devices have done. The time is read once what they read is in hand.
    fn complete_devices(&mut self) -> bool {
        let mut done = std::mem::take(&mut self.device_results);
        done.extend(std::iter::from_fn(|| self.devices.complete()).take(DEVICE_RESULTS_MAX));
        let worked = !done.is_empty();
        if worked {
            let now = self.clock.now();
            for (tag, result) in done.drain(..) {
                let key = usize::try_from(tag.0).unwrap_or(usize::MAX);
                let Some((shard, tag)) = self.device_requests.try_remove(key) else { continue };
                self.with(shard, |shard| shard.mirror.device_done(tag, result, now));
            }
        }
        self.device_results = done;
        worked
    }

    /// Does something with a connection, and puts it on the list of those to look after.
    fn on(&mut self, place: u64, change: impl FnOnce(&mut Connection)) {
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        if let Some(connection) = self.connections.get_mut(place) {
            change(connection);
            self.list(place);
        }
    }

    fn list(&mut self, place: usize) {
        let connection = &mut self.connections[place];
        if !connection.is_listed {
            connection.is_listed = true;
            self.listed.push(place);
        }
    }

    /// The connection of this id, if it is still there.
    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(id.place()).filter(|connection| connection.id == id)
    }

    fn sleep(&mut self, now: Duration) -> io::Result<()> {
        self.stop_asking();
        self.parts.inbox.fall_asleep();
        let noticed = self.noticed;
        let published = self
            .setup
            .as_ref()
            .is_some_and(|setup| (setup.offer.generation(), setup.nvme.attention()) != noticed);
        if let Some(message) = self.parts.inbox.next() {
            self.parts.inbox.wake_up();
            self.message(message);
            return self.ring.enter(None);
        }
        if published || self.is_ending || !self.backlog.is_empty() {
            self.parts.inbox.wake_up();
            return self.ring.enter(None);
        }
        if self.devices.pending() > 0 && !self.is_watching_devices {
            self.is_watching_devices = true;
            self.ring.poll(self.devices.as_fd().as_raw_fd(), Purpose::Devices, false);
        }
        let due = self.next_deadline(now).unwrap_or(now + LOOK_EVERY_MAX);
        self.ring.enter(Some(due.saturating_sub(now).min(LOOK_EVERY_MAX)))?;
        self.parts.inbox.wake_up();
        Ok(())
    }

    fn next_deadline(&mut self, now: Duration) -> Option<Duration> {
        let shards = self.shards.iter_mut().filter_map(|shard| shard.next_deadline(now));
        let listeners = self.listeners.iter().filter_map(|listener| listener.retry_at);
        shards
            .chain(self.moves.next_deadline())
            .chain(self.connections_due)
            .chain(self.links_due)
            .chain(listeners)
            .min()
    }

    /// Lets go of everything, and waits until the kernel has too: it may still read and write the
    /// memory of what is under way.
    fn end(mut self) -> io::Result<()> {
        self.ring.cancel_everything();
        for (_, connection) in &mut self.connections {
            connection.break_off();
        }
        let until = self.clock.now() + END_WITHIN;
        loop {
            self.ring.enter(Some(Duration::from_millis(20)))?;
            self.reap();
            let in_kernel =
                self.connections.iter().any(|(_, connection)| connection.is_in_kernel());
            let accepting = self.listeners.iter().any(|listener| listener.is_armed);
            if !in_kernel && !accepting {
                return Ok(());
            }
            if self.clock.now() >= until {
                tracing::error!("the kernel did not give sockets back within {END_WITHIN:?}");
                // Their memory must not be used for anything else.
                std::mem::forget(self);
                return Ok(());
            }
        }
    }
}

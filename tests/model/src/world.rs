//! One state of the cluster, and what may happen next.
//!
//! What happens by itself has one order ([`World::ordinary`]): everything that is on its way arrives,
//! then time passes. A *deviation* ([`World::deviations`]) is anything else: a crash, a cut, a queue
//! that stands still, an answer that is lost. The explorer puts deviations, up to a bound, into every
//! place of the ordinary course, and so gets every order of messages that such a number allows.

use crate::disk::{Disk, block_of, describe_request, value_of};
use crate::log::{Asked, CLUSTER, DATA_SITES, GROUP, Log, NODES, SITES, VOLUME};
use crate::register::{Host, Pending};
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;
use voute_mirror::link::{LinkReply, LinkRequest};
use voute_mirror::{
    Access, Action, DeviceFault, DeviceRequest, HostOperation, HostOutcome, HostRequest, HostTag,
    Identity, IncomingTag, LinkFault, LinkTag, Mirror,
};
use voute_schemas::command::{AttestedGroup, Command, Escalation};
use voute_schemas::contract::{EscalationOutcome, GroupSpec};
use voute_schemas::event::{Attestation, FailoverEvidence, SiteCondition};
use voute_schemas::times::Times;
use voute_schemas::{Epoch, FailoverId, Sequence};

/// How far time goes at once.
const STEP: Duration = Duration::from_millis(500);

/// The table of times, in whole steps where the real one has less.
fn times() -> Times {
    Times {
        grant_interval_ms: 500,
        leg_deadline_ms: 1_000,
        opening_deadline_ms: 1_500,
        hold_ms: 4_000,
        escalation_retry_ms: 500,
        ..Times::default()
    }
}

/// A queue of messages (or of requests at a device).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Queue {
    /// To a node's device.
    Device(usize),
    /// From the owner at a node to its peer.
    Requests(usize),
    /// Back to the owner at a node.
    Replies(usize),
    /// From a node to the log.
    Escalations(usize),
    /// Back to a node.
    Answers(usize),
    /// From the log to a node: what it is to be.
    Specs(usize),
}

/// What a crash does to writes that the device has not confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// None is done.
    Lost,
    /// All are.
    Done,
    /// Only the oldest is.
    First,
}

/// What may happen. Node, site or queue first, then for how many steps of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Happening {
    /// What happens by itself.
    Ordinary,
    /// A process ends, and starts again later.
    Crash(usize, Fate, u8),
    /// The link between the sites is cut: both ends notice at once.
    CutLink(u8),
    /// Nothing of a queue arrives. A connection that breaks meanwhile leaves ghosts.
    Stall(Queue, u8),
    /// A node does not reach the log.
    CutLog(usize, u8),
    /// Nobody reaches the log.
    LogDown(u8),
    /// A site reads and signs nothing.
    SiteSilent(usize, u8),
    /// The log took what a node asked for, and its answer is lost.
    LoseAnswer(usize),
    /// The same request of a node comes once more.
    RepeatRequest(usize),
    /// A node's request comes to a control process that has not read the last commit.
    StaleDecision(usize),
    /// A node is told what it was to be before the last change.
    StaleSpec(usize),
    /// The log loses its last commits; once.
    LoseSuffix(usize),
    /// A planned move.
    Move(usize),
    /// The watcher takes a living owner for lost.
    FailOver,
    /// The device fails its oldest request.
    DeviceFails(usize),
}

#[derive(Clone)]
struct Node {
    mirror: Option<Mirror>,
    /// Of its disk.
    incarnation: u64,
    disk: Disk,
    clock: Duration,
    device: VecDeque<DeviceRequest>,
    wants_channel: bool,
    /// The connection of its owner to the peer, and what was sent over it and not answered.
    connection: Option<u64>,
    outstanding: Vec<LinkTag>,
    access: Access,
    escalations: VecDeque<Escalation>,
    answers: VecDeque<(Escalation, EscalationOutcome)>,
    specs: VecDeque<(Sequence, GroupSpec)>,
    /// The highest position that it obeyed, on its disk.
    obeyed: Sequence,
    /// Steps until it starts again.
    down: u8,
    /// Steps until it reaches the log again.
    log_cut: u8,
    /// What the control process heard of it last, and how many steps ago.
    observed: Option<(Epoch, Option<Attestation>)>,
    silent: u8,
}

/// What one owner's node and its peer say to each other.
#[derive(Clone, Default)]
struct Channel {
    requests: VecDeque<(u64, LinkTag, LinkRequest)>,
    replies: VecDeque<(u64, LinkTag, LinkReply)>,
}

/// A state of the whole cluster.
#[derive(Clone)]
pub struct World {
    nodes: [Node; 2],
    channels: [Channel; 2],
    connections: u64,
    link_cut: u8,
    log: Log,
    /// Answers to commits that are not effective yet.
    uneffective: Vec<(usize, Escalation, Sequence)>,
    log_down: u8,
    site_silent: [u8; SITES],
    stalls: Vec<(Queue, u8)>,
    host: Host,
    /// By whom, and under which epoch, a host's request was completed last.
    served: Option<(u64, usize)>,
    /// The specs that both nodes were told of last.
    told: Option<Sequence>,
    /// Percent at which the nodes' clocks run.
    rates: [u32; 2],
    /// What is wrong.
    violation: Option<String>,
}

impl World {
    /// A healthy pair that has served, owner at node 0, whose clocks run at so many percent.
    ///
    /// # Panics
    /// If it does not become healthy by itself.
    #[must_use]
    pub fn healthy(rates: [u32; 2]) -> Self {
        let node = || Node {
            mirror: None,
            incarnation: 0,
            disk: Disk::default(),
            clock: Duration::from_secs(1_000),
            device: VecDeque::new(),
            wants_channel: false,
            connection: None,
            outstanding: Vec::new(),
            access: Access::Inaccessible,
            escalations: VecDeque::new(),
            answers: VecDeque::new(),
            specs: VecDeque::new(),
            obeyed: Sequence(0),
            down: 0,
            log_cut: 0,
            observed: None,
            silent: 0,
        };
        let mut world = World {
            nodes: [node(), node()],
            channels: [Channel::default(), Channel::default()],
            connections: 0,
            link_cut: 0,
            log: Log::founded(),
            uneffective: Vec::new(),
            log_down: 0,
            site_silent: [0; SITES],
            stalls: Vec::new(),
            host: Host::default(),
            served: None,
            told: None,
            rates,
            violation: None,
        };
        world.start(0);
        world.start(1);
        for _ in 0..10_000 {
            world.ordinary();
            if world.is_healthy() && world.host.settled >= 10 {
                return world;
            }
        }
        panic!("a new pair does not become healthy: {:?} {}", world.violation, world.describe());
    }

    /// What is wrong with this state, if anything is.
    #[must_use]
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Whether the log lost what a majority had signed: then the volume may stay where it is.
    #[must_use]
    pub fn is_beyond_repair(&self) -> bool {
        self.log.is_beyond_repair()
    }

    /// Whether both legs are in sync, nothing is under way and the owner serves.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let Some(group) = self.log.effective().and_then(|state| state.group(GROUP)) else {
            return false;
        };
        let quiet = |node: &Node| {
            node.mirror.is_some()
                && node.device.is_empty()
                && node.escalations.is_empty()
                && node.specs.is_empty()
        };
        let Some(owner) = NODES.iter().position(|node| *node == group.owner) else { return false };
        group.sides.iter().all(|side| side.in_sync)
            && self.nodes.iter().all(quiet)
            && self.channels.iter().all(|it| it.requests.is_empty() && it.replies.is_empty())
            && self.nodes[owner].access == Access::Optimized
            && self.nodes[1 - owner].access != Access::Optimized
            && self.host.is_idle()
            && self.host.settled == self.host.tried
    }

    fn check_legs(&mut self) {
        let values = [0, 1].map(|node: usize| self.nodes[node].disk.value());
        // What was never written has no content yet.
        if self.host.settled > 0 && self.is_healthy() && values != [self.host.settled; 2] {
            let settled = self.host.settled;
            self.blame(format!("the legs of a healthy pair hold {values:?}, settled is {settled}"));
        }
    }

    fn blame(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    // ---- what happens by itself ----------------------------------------------------------------

    /// The one next thing that happens by itself.
    pub fn ordinary(&mut self) {
        for queue in QUEUES {
            if !self.is_stalled(queue) && self.deliver(queue) {
                self.check_legs();
                return;
            }
        }
        for site in 0..SITES {
            if self.site_silent[site] == 0 && self.log_down == 0 && self.log.has_unsigned(site) {
                self.log.sign(site);
                return self.tell_effective();
            }
        }
        for node in 0..2 {
            if self.connect(node) {
                return;
            }
        }
        self.pass_time();
    }

    fn is_stalled(&self, queue: Queue) -> bool {
        self.stalls.iter().any(|(stalled, _)| *stalled == queue)
    }

    /// Takes the next of a queue to where it goes. Whether there was one that could.
    fn deliver(&mut self, queue: Queue) -> bool {
        match queue {
            Queue::Device(node) => self.device_done(node, None),
            Queue::Requests(owner) => self.request_arrives(owner),
            Queue::Replies(owner) => self.reply_arrives(owner),
            Queue::Escalations(node) => self.log_asked(node, false, true, false),
            Queue::Answers(node) => {
                let Some((escalation, outcome)) = self.nodes[node].answers.pop_front() else {
                    return false;
                };
                self.with_mirror(node, |mirror, now| {
                    mirror.escalation_answered(&escalation, &outcome, now);
                });
                true
            }
            Queue::Specs(node) => self.spec_arrives(node),
        }
    }

    fn with_mirror(&mut self, node: usize, act: impl FnOnce(&mut Mirror, Duration)) {
        let state = &mut self.nodes[node];
        if let Some(mirror) = &mut state.mirror {
            act(mirror, state.clock);
        }
        self.drain(node);
    }

    fn device_done(&mut self, node: usize, fault: Option<DeviceFault>) -> bool {
        let Some(request) = self.nodes[node].device.pop_front() else { return false };
        let result = match fault {
            None => Ok(self.nodes[node].disk.carry_out(&request)),
            Some(fault) => Err(fault),
        };
        self.with_mirror(node, |mirror, now| mirror.device_done(request.tag, result, now));
        true
    }

    fn request_arrives(&mut self, owner: usize) -> bool {
        let Some((connection, tag, request)) = self.channels[owner].requests.pop_front() else {
            return false;
        };
        let id = IncomingTag { connection, command: tag.0 };
        self.with_mirror(1 - owner, |mirror, now| {
            mirror.link_request(NODES[owner], id, request, now);
        });
        true
    }

    fn reply_arrives(&mut self, owner: usize) -> bool {
        let Some((connection, tag, reply)) = self.channels[owner].replies.pop_front() else {
            return false;
        };
        if self.nodes[owner].connection == Some(connection) {
            self.nodes[owner].outstanding.retain(|other| *other != tag);
            self.with_mirror(owner, |mirror, now| mirror.link_reply(tag, Ok(reply), now));
        }
        true
    }

    /// The oldest request of a node comes to the log.
    fn log_asked(&mut self, node: usize, stale: bool, answered: bool, again: bool) -> bool {
        if self.log_down > 0 || self.nodes[node].log_cut > 0 {
            return false;
        }
        let first = match again {
            true => self.nodes[node].escalations.front().cloned(),
            false => self.nodes[node].escalations.pop_front(),
        };
        let Some(escalation) = first else { return false };
        let outcome = match self.is_vouched(node, &escalation) {
            true => self.log.ask(NODES[node], &escalation, stale),
            false => Asked::Answered(EscalationOutcome::Refused {
                code: "not-vouched".to_owned(),
                message: String::new(),
            }),
        };
        match outcome {
            Asked::Appended(sequence) if answered => {
                self.uneffective.push((node, escalation, sequence));
            }
            Asked::Answered(outcome) if answered && self.nodes[node].mirror.is_some() => {
                self.nodes[node].answers.push_back((escalation, outcome));
            }
            Asked::Appended(_) | Asked::Answered(_) => {}
        }
        true
    }

    /// As the control process does: a hand-over needs another side that vouches for its legs.
    fn is_vouched(&self, node: usize, escalation: &Escalation) -> bool {
        let Escalation::HandOver { epoch, .. } = escalation else { return true };
        if self.log.state().group(GROUP).is_none_or(|group| group.epoch != *epoch) {
            return true;
        }
        let other = &self.nodes[1 - node];
        let observed = other.observed.as_ref().filter(|(at, _)| at == epoch);
        observed.and_then(|(_, attestation)| *attestation).is_some_and(|it| it.legs_open)
    }

    fn spec_arrives(&mut self, node: usize) -> bool {
        if self.nodes[node].log_cut > 0 {
            return false;
        }
        let Some((position, spec)) = self.nodes[node].specs.pop_front() else { return false };
        if position >= self.nodes[node].obeyed && self.nodes[node].mirror.is_some() {
            self.nodes[node].obeyed = position;
            self.with_mirror(node, |mirror, now| mirror.apply(vec![spec], vec![], now));
        }
        true
    }

    /// A majority signed: what waited for that happens.
    fn tell_effective(&mut self) {
        let Some(position) = self.log.effective().map(|state| state.position().sequence) else {
            return;
        };
        if self.told.is_none_or(|told| told < position) {
            self.told = Some(position);
            (0..2).for_each(|node| self.tell_spec(node, false));
        }
        let waiting = std::mem::take(&mut self.uneffective);
        for (node, escalation, sequence) in waiting {
            if sequence > position {
                self.uneffective.push((node, escalation, sequence));
            } else if self.nodes[node].mirror.is_some() {
                let outcome = EscalationOutcome::Committed { sequence };
                self.nodes[node].answers.push_back((escalation, outcome));
            }
        }
        self.log.tidy();
    }

    fn tell_spec(&mut self, node: usize, stale: bool) {
        if let Some(spec) = self.log.spec(NODES[node], stale)
            && self.nodes[node].mirror.is_some()
            && self.nodes[node].specs.back() != Some(&spec)
        {
            self.nodes[node].specs.push_back(spec);
        }
    }

    fn connect(&mut self, node: usize) -> bool {
        let state = &self.nodes[node];
        let possible = state.wants_channel
            && state.connection.is_none()
            && self.link_cut == 0
            && self.nodes[1 - node].mirror.is_some();
        if possible {
            self.connections += 1;
            self.nodes[node].connection = Some(self.connections * 2 + node as u64);
            self.with_mirror(node, |mirror, now| mirror.channel_up(NODES[1 - node], now));
        }
        possible
    }

    /// A step of time: what was to last so long ends, nodes report, the watcher looks, the host asks.
    fn pass_time(&mut self) {
        for (node, rate) in self.nodes.iter_mut().zip(self.rates) {
            node.clock += STEP * rate / 100;
            node.log_cut = node.log_cut.saturating_sub(1);
        }
        for left in self.site_silent.iter_mut().chain([&mut self.link_cut, &mut self.log_down]) {
            *left = left.saturating_sub(1);
        }
        self.stalls.iter_mut().for_each(|(_, left)| *left -= 1);
        self.stalls.retain(|(_, left)| *left > 0);
        for node in 0..2 {
            if self.nodes[node].mirror.is_none() {
                self.nodes[node].down = self.nodes[node].down.saturating_sub(1);
                if self.nodes[node].down == 0 {
                    self.start(node);
                }
            }
            self.report(node);
        }
        self.watch(false);
        for node in 0..2 {
            self.with_mirror(node, Mirror::tick);
        }
        self.host_asks();
        self.check_legs();
    }

    fn report(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        let reaches = state.log_cut == 0 && self.log_down == 0;
        let statuses =
            state.mirror.as_ref().map(|mirror| mirror.status(state.clock, 0)).unwrap_or_default();
        if state.mirror.is_none() || !reaches {
            state.silent = (state.silent + 1).min(4);
            state.observed = None;
            return;
        }
        // Who is back hears what it missed.
        if state.silent > 0 {
            state.silent = 0;
            self.tell_spec(node, false);
        }
        let state = &mut self.nodes[node];
        state.observed =
            statuses.into_iter().next().map(|status| (status.epoch, status.attestation));
    }

    /// The watcher moves what a silent node owns to a side that vouches for it; if it is `nervous`,
    /// what a living node owns.
    fn watch(&mut self, nervous: bool) -> bool {
        let Some(group) = self.log.state().group(GROUP) else { return false };
        let Some(owner) = NODES.iter().position(|node| *node == group.owner) else { return false };
        let is_lost = self.nodes[owner].silent >= 4;
        let Some((epoch, Some(attestation))) = self.nodes[1 - owner].observed else { return false };
        if self.log_down > 0 || !(is_lost || nervous) {
            return false;
        }
        let to = NODES[1 - owner];
        let sequence = self.log.state().position().sequence;
        let evidence = FailoverEvidence {
            condition: SiteCondition::Lost,
            observed: String::new(),
            first_sign_unix_ms: 0,
            decided_unix_ms: 0,
            left_behind: vec![],
            left_behind_total: 0,
        };
        let command = Command::FailOverSite {
            failover: FailoverId(Uuid::from_u128(u128::from(sequence.0))),
            site: DATA_SITES[owner],
            evidence,
            attested: vec![AttestedGroup { group: GROUP, epoch, to, attestation }],
        };
        // Only what would move it: that an attempt failed is recorded, but changes nothing.
        let mut tried = self.log.clone();
        let moves = tried.command(&command).is_ok()
            && tried.state().group(GROUP).is_some_and(|group| group.owner == to);
        if moves {
            self.log = tried;
        }
        moves
    }

    // ---- processes, connections ----------------------------------------------------------------

    fn start(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        state.incarnation += 1;
        let session = (node as u64 + 1) << 40 | state.incarnation << 21;
        let identity = Identity {
            cluster: CLUSTER,
            node: NODES[node],
            incarnation: state.incarnation,
            session,
            times: times(),
        };
        state.mirror = Some(Mirror::new(identity, state.clock));
        if state.log_cut == 0 {
            self.tell_spec(node, false);
        }
    }

    fn crash(&mut self, node: usize, fate: Fate, steps: u8) {
        let done = match fate {
            Fate::Lost => 0,
            Fate::First => 1,
            Fate::Done => usize::MAX,
        };
        let state = &mut self.nodes[node];
        for request in std::mem::take(&mut state.device).iter().take(done) {
            state.disk.carry_out(request);
        }
        state.mirror = None;
        state.down = steps;
        state.access = Access::Inaccessible;
        state.wants_channel = false;
        state.connection = None;
        state.outstanding.clear();
        state.answers.clear();
        state.specs.clear();
        state.observed = None;
        state.silent = state.silent.max(1);
        if !self.is_stalled(Queue::Escalations(node)) {
            self.nodes[node].escalations.clear();
        }
        self.uneffective.retain(|(asker, _, _)| *asker != node);
        self.empty_channel(node);
        // What it was about to answer, it answers no more.
        self.channels[1 - node].requests.clear();
        self.disconnect(1 - node);
        let mine = |pending: &Option<Pending>| pending.filter(|pending| pending.node == node);
        for pending in [mine(&self.host.write), mine(&self.host.read)].into_iter().flatten() {
            self.host.failed(pending.tag);
        }
    }

    /// The connection of a node's owner ends. What stands still on its way arrives all the same.
    fn disconnect(&mut self, owner: usize) {
        if self.nodes[owner].connection.take().is_none() {
            return;
        }
        self.empty_channel(owner);
        let outstanding = std::mem::take(&mut self.nodes[owner].outstanding);
        self.with_mirror(owner, |mirror, now| {
            for tag in outstanding {
                mirror.link_reply(tag, Err(LinkFault::Down), now);
            }
            mirror.channel_down(NODES[1 - owner], now);
        });
    }

    fn empty_channel(&mut self, owner: usize) {
        if !self.is_stalled(Queue::Requests(owner)) {
            self.channels[owner].requests.clear();
        }
        self.channels[owner].replies.clear();
    }

    /// Does what a mirror asks for.
    fn drain(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].mirror.as_mut().and_then(Mirror::next_action) {
            match action {
                Action::Device(request) => self.nodes[node].device.push_back(request),
                Action::Link { tag, request, .. } => self.send(node, tag, request),
                Action::LinkReply { request, reply } => {
                    let IncomingTag { connection, command } = request;
                    let owner = 1 - node;
                    if self.nodes[owner].connection == Some(connection) {
                        let tag = LinkTag(command);
                        self.channels[owner].replies.push_back((connection, tag, reply));
                    }
                }
                Action::HostReply { id, outcome } => self.host_answered(node, id, outcome),
                Action::Escalate(escalation) => {
                    // The agent asks for the same once at a time.
                    if !self.nodes[node].escalations.contains(&escalation) {
                        self.nodes[node].escalations.push_back(escalation);
                    }
                }
                Action::AccessChanged { access, .. } => self.nodes[node].access = access,
                Action::Channel { wanted, .. } => {
                    self.nodes[node].wants_channel = wanted;
                    if !wanted {
                        self.nodes[node].connection = None;
                        self.nodes[node].outstanding.clear();
                        self.empty_channel(node);
                    }
                }
                Action::Record { .. } => {}
            }
        }
    }

    fn send(&mut self, node: usize, tag: LinkTag, request: LinkRequest) {
        match self.nodes[node].connection {
            Some(connection) => {
                self.nodes[node].outstanding.push(tag);
                self.channels[node].requests.push_back((connection, tag, request));
            }
            None => {
                let state = &mut self.nodes[node];
                if let Some(mirror) = &mut state.mirror {
                    mirror.link_reply(tag, Err(LinkFault::Down), state.clock);
                }
            }
        }
    }

    // ---- the host ------------------------------------------------------------------------------

    /// One write and one read at a time, by the path that worked last.
    fn host_asks(&mut self) {
        let path = self.host.path;
        if self.nodes[path].mirror.is_none() {
            self.host.path = 1 - path;
            return;
        }
        if let Some(write) = self.host.begin_write() {
            let data = Arc::new(block_of(write.value));
            self.submit(write, HostOperation::Write { offset: 0, data });
        }
        if self.nodes[self.host.path].mirror.is_some()
            && let Some(read) = self.host.begin_read()
        {
            let length = crate::disk::BLOCK as u32;
            self.submit(read, HostOperation::Read { offset: 0, length });
        }
    }

    fn submit(&mut self, pending: Pending, operation: HostOperation) {
        let request = HostRequest { id: HostTag(pending.tag), volume: VOLUME, operation };
        self.with_mirror(pending.node, |mirror, now| mirror.submit(request, now));
    }

    fn host_answered(&mut self, node: usize, HostTag(tag): HostTag, outcome: HostOutcome) {
        match outcome {
            HostOutcome::Done => {
                if self.host.written(tag) {
                    self.serves(node, false);
                }
            }
            HostOutcome::Data(data) => {
                self.serves(node, true);
                let value = value_of(&data).unwrap_or(u64::MAX);
                if let Err(what) = self.host.was_read(tag, value) {
                    self.blame(what);
                }
            }
            HostOutcome::PathError
            | HostOutcome::Transition
            | HostOutcome::Busy
            | HostOutcome::NoSuchVolume
            | HostOutcome::MediumError => self.host.failed(tag),
            HostOutcome::OutOfRange | HostOutcome::Miscompare { .. } | HostOutcome::Conflict => {
                self.blame(format!("node {node} answered {outcome:?}"));
            }
        }
    }

    /// A node completes a request. A read proves that nobody else serves a later epoch. A write does
    /// not: its last leg may have confirmed it before it took the later token.
    fn serves(&mut self, node: usize, is_read: bool) {
        let state = &self.nodes[node];
        let statuses = state.mirror.as_ref().map(|mirror| mirror.status(state.clock, 0));
        let status = statuses.into_iter().flatten().next();
        let Some(epoch) = status.map(|status| status.epoch.sequence.0) else { return };
        if let Some((last, by)) = self.served {
            if last == epoch && by != node {
                self.blame(format!("both nodes serve epoch {epoch}"));
            }
            if is_read && last > epoch {
                self.blame(format!(
                    "node {node} completes a read under epoch {epoch}, after node {by} under {last}"
                ));
            }
        }
        if self.served.is_none_or(|(last, _)| last <= epoch) {
            self.served = Some((epoch, node));
        }
    }

    // ---- deviations ----------------------------------------------------------------------------

    /// Everything else that may happen now.
    #[must_use]
    pub fn deviations(&self, menu: &Menu) -> Vec<Happening> {
        let mut all = Vec::new();
        let mut lasting = |make: &dyn Fn(u8) -> Happening| {
            all.extend(menu.steps.iter().map(|steps| make(*steps)));
        };
        for node in 0..2 {
            if menu.crashes && self.nodes[node].mirror.is_some() {
                let fates: &[Fate] = match self.nodes[node].device.len() {
                    0 => &[Fate::Lost],
                    1 => &[Fate::Lost, Fate::Done],
                    _ => &[Fate::Lost, Fate::Done, Fate::First],
                };
                for fate in fates {
                    lasting(&|steps| Happening::Crash(node, *fate, steps));
                }
            }
            if menu.log && self.nodes[node].log_cut == 0 {
                lasting(&|steps| Happening::CutLog(node, steps));
            }
        }
        if menu.link && self.link_cut == 0 {
            lasting(&Happening::CutLink);
        }
        if menu.log && self.log_down == 0 {
            lasting(&Happening::LogDown);
            for site in (0..SITES).filter(|site| self.log.has_unsigned(*site)) {
                lasting(&|steps| Happening::SiteSilent(site, steps));
            }
        }
        if menu.delays {
            for queue in QUEUES.into_iter().filter(|queue| self.may_stall(*queue)) {
                lasting(&|steps| Happening::Stall(queue, steps));
            }
        }
        for node in 0..2 {
            let state = &self.nodes[node];
            if menu.log && !state.escalations.is_empty() && state.log_cut == 0 && self.log_down == 0
            {
                all.push(Happening::LoseAnswer(node));
                all.push(Happening::RepeatRequest(node));
                all.push(Happening::StaleDecision(node));
            }
            if menu.log && !state.specs.is_empty() {
                all.push(Happening::StaleSpec(node));
            }
            if menu.moves && self.log_down == 0 {
                all.push(Happening::Move(node));
            }
            if menu.devices && !state.device.is_empty() {
                all.push(Happening::DeviceFails(node));
            }
        }
        if menu.moves {
            all.push(Happening::FailOver);
        }
        if menu.truncation {
            all.extend(
                [1, 2].into_iter().filter(|it| self.log.can_lose(*it)).map(Happening::LoseSuffix),
            );
        }
        all
    }

    fn may_stall(&self, queue: Queue) -> bool {
        let has_some = match queue {
            Queue::Device(node) => !self.nodes[node].device.is_empty(),
            Queue::Requests(owner) => !self.channels[owner].requests.is_empty(),
            Queue::Replies(owner) => !self.channels[owner].replies.is_empty(),
            Queue::Escalations(node) => !self.nodes[node].escalations.is_empty(),
            Queue::Answers(node) => !self.nodes[node].answers.is_empty(),
            Queue::Specs(node) => !self.nodes[node].specs.is_empty(),
        };
        has_some && !self.is_stalled(queue)
    }

    /// Lets something happen; whether it changed anything.
    pub fn happen(&mut self, happening: Happening) -> bool {
        match happening {
            Happening::Ordinary => self.ordinary(),
            Happening::Crash(node, fate, steps) => self.crash(node, fate, steps),
            Happening::CutLink(steps) => {
                self.link_cut = steps;
                self.disconnect(0);
                self.disconnect(1);
            }
            Happening::Stall(queue, steps) => self.stalls.push((queue, steps)),
            Happening::CutLog(node, steps) => {
                self.nodes[node].log_cut = steps;
                self.nodes[node].answers.clear();
                self.nodes[node].specs.clear();
            }
            Happening::LogDown(steps) => self.log_down = steps,
            Happening::SiteSilent(site, steps) => self.site_silent[site] = steps,
            Happening::LoseAnswer(node) => return self.log_asked(node, false, false, false),
            Happening::RepeatRequest(node) => return self.log_asked(node, false, true, true),
            Happening::StaleDecision(node) => return self.log_asked(node, true, true, false),
            Happening::StaleSpec(node) => {
                let Some(older) = self.log.spec(NODES[node], true) else { return false };
                let state = &mut self.nodes[node];
                if state.specs.back() == Some(&older) {
                    return false;
                }
                state.specs.clear();
                state.specs.push_back(older);
                // It hears the newer when time has passed.
                state.silent = 1;
            }
            Happening::LoseSuffix(count) => {
                self.log.lose(count);
                let head = self.log.state().position().sequence;
                self.uneffective.retain(|(_, _, sequence)| *sequence <= head);
            }
            Happening::Move(to) => {
                let command = Command::MoveOwner { group: GROUP, to: DATA_SITES[to] };
                return self.log.command(&command).is_ok();
            }
            Happening::FailOver => return self.watch(true),
            Happening::DeviceFails(node) => {
                return self.device_done(node, Some(DeviceFault::Failed));
            }
        }
        true
    }

    // ---- how it is told apart ------------------------------------------------------------------

    /// Everything that decides what may happen from here on.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        for node in &self.nodes {
            node.describe(&mut text);
        }
        for (channel, clock) in self.channels.iter().zip(&self.nodes) {
            let _ = write!(text, "@{};", clock.clock.as_nanos());
            for (connection, tag, request) in &channel.requests {
                let _ = write!(text, "<connection: {connection}, {tag:?} {request:.8?}>");
            }
            for (connection, tag, reply) in &channel.replies {
                let _ = write!(text, "<connection: {connection}, {tag:?} {reply:.8?}>");
            }
        }
        self.log.describe(&mut text);
        self.host.describe(&mut text);
        let _ = write!(
            text,
            "{} {} {:?} {:?} {:?}",
            self.link_cut, self.log_down, self.site_silent, self.stalls, self.rates
        );
        let served = self.served.map(|(epoch, node)| (Sequence(epoch), node));
        let _ = write!(text, "{served:?} {:?} {:?}", self.told, self.uneffective);
        text
    }

    /// A number that states which behave alike share.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        crate::canon::fingerprint(&self.describe())
    }

    /// In short, for a story.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let status = node.mirror.as_ref().map(|mirror| mirror.status(node.clock, 0));
            let status = status.into_iter().flatten().next();
            let said =
                status.map(|it| format!("epoch {} {:?} token {}", it.epoch, it.role, it.token));
            let _ = write!(
                text,
                "node {index}: {} {:?} disk {} at {:.1?}; ",
                said.unwrap_or_else(|| "down or unknown".to_owned()),
                node.access,
                node.disk.value() as i64,
                node.clock.saturating_sub(Duration::from_secs(1_000)),
            );
        }
        if let Some(group) = self.log.state().group(GROUP) {
            let owner = NODES.iter().position(|node| *node == group.owner);
            let in_sync: Vec<bool> = group.sides.iter().map(|side| side.in_sync).collect();
            let _ =
                write!(text, "log: epoch {} owner {owner:?} in sync {in_sync:?}; ", group.epoch);
        }
        let _ = write!(text, "host: tried {} settled {}", self.host.tried, self.host.settled);
        text
    }
}

impl Node {
    fn describe(&self, text: &mut String) {
        let _ = write!(text, "@{};{:.8?} ", self.clock.as_nanos(), self.mirror);
        self.disk.describe(text);
        self.device.iter().for_each(|request| describe_request(request, text));
        let _ = write!(
            text,
            "{} incarnation {} connection: {:?}, {:?} {:?} {:?} {:?} {:?} {:?} {} {} {:?} {} ",
            self.wants_channel,
            self.incarnation,
            self.connection,
            self.outstanding,
            self.access,
            self.escalations,
            self.answers,
            self.specs,
            self.obeyed,
            self.down,
            self.log_cut,
            self.observed,
            self.silent,
        );
    }
}

const QUEUES: [Queue; 12] = [
    Queue::Device(0),
    Queue::Device(1),
    Queue::Replies(0),
    Queue::Replies(1),
    Queue::Requests(0),
    Queue::Requests(1),
    Queue::Escalations(0),
    Queue::Escalations(1),
    Queue::Answers(0),
    Queue::Answers(1),
    Queue::Specs(0),
    Queue::Specs(1),
];

/// Which deviations are tried.
#[derive(Clone, Debug)]
pub struct Menu {
    /// Processes end.
    pub crashes: bool,
    /// The link is cut.
    pub link: bool,
    /// The log is late, unreachable, stale, or loses answers.
    pub log: bool,
    /// Messages and devices are late.
    pub delays: bool,
    /// Owners are moved.
    pub moves: bool,
    /// Devices fail requests.
    pub devices: bool,
    /// The log loses a suffix.
    pub truncation: bool,
    /// How long what lasts may last, steps of time.
    pub steps: Vec<u8>,
}

impl Menu {
    /// All of them.
    #[must_use]
    pub fn everything(steps: Vec<u8>) -> Self {
        Menu {
            crashes: true,
            link: true,
            log: true,
            delays: true,
            moves: true,
            devices: true,
            truncation: true,
            steps,
        }
    }
}

//! The simulated cluster.

mod disk;
mod host;
mod integrity;
mod log;

use disk::{Ailment, Disk};
use host::Host;
use log::SimulatedLog;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;
use voute_mirror::link::{LinkReply, LinkRequest};
use voute_mirror::{
    Access, Action, DeviceRequest, DeviceTag, HostOutcome, HostRequest, HostTag, Identity,
    IncomingTag, LinkFault, LinkTag, Mirror,
};
use voute_schemas::command::Escalation;
use voute_schemas::contract::{EscalationOutcome, GroupSpec};
use voute_schemas::times::Times;
use voute_schemas::{ClusterId, NodeId};

pub const BLOCK: u64 = 4096;
pub const BLOCKS: u64 = 256;
/// The most that the volume grows to.
pub const BLOCKS_MAX: u64 = 400;
pub const REGION: u64 = 16 * BLOCK;

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn micros(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from + self.below(to - from))
    }
}

pub enum Event {
    Tick { node: usize },
    Device { node: usize, process: u64, request: DeviceRequest },
    LinkRequest { from: usize, connection: u64, tag: LinkTag, request: LinkRequest },
    LinkReply { to: usize, connection: u64, tag: LinkTag, reply: LinkReply },
    Connect { node: usize, process: u64 },
    ChannelUp { node: usize, connection: u64 },
    Spec { node: usize, process: u64, spec: GroupSpec },
    Escalation { node: usize, process: u64, escalation: Escalation },
    Answer { node: usize, process: u64, escalation: Escalation, outcome: EscalationOutcome },
    HostIssue { worker: usize },
    HostRetry { worker: usize, attempt: u64 },
    Restart { node: usize },
    Recover { node: usize },
    Move,
    Fault,
    Watch,
}

pub struct Node {
    pub id: NodeId,
    pub mirror: Option<Mirror>,
    pub process: u64,
    incarnation: u64,
    disk: Disk,
    /// Requests at the device, in order of submission.
    at_device: BTreeMap<DeviceTag, ()>,
    wants_channel: bool,
    /// The connection that this node's mirror uses, and what was sent over it and not yet answered.
    connection: Option<u64>,
    outstanding: Vec<LinkTag>,
    /// Requests of the peer being served: connection and tag by command.
    incoming: BTreeMap<u64, (u64, LinkTag)>,
    pub access: Access,
    requests: BTreeMap<u64, (usize, u64)>,
    log_reachable: bool,
    /// Its device does nothing until then.
    hung_until: Duration,
    /// Its leg is memory: it is gone when its process ends.
    is_memory: bool,
    /// When its process started.
    pub started: Duration,
    /// Its link is slow until then.
    slow_until: Duration,
}

pub struct Simulation {
    pub seed: u64,
    pub random: Random,
    pub now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    pub nodes: [Node; 2],
    pub log: SimulatedLog,
    host: Host,
    whole_since: Option<Duration>,
    link_up: bool,
    connections: u64,
    commands: u64,
    faults_until: Duration,
    loud: bool,
    /// Blocks were lost on purpose.
    pub expects_medium_errors: bool,
    cluster: ClusterId,
}

impl Simulation {
    pub fn new(seed: u64) -> Self {
        let cluster = ClusterId::generate();
        let node = || Node {
            id: NodeId::generate(),
            mirror: None,
            process: 0,
            incarnation: 0,
            disk: Disk::default(),
            at_device: BTreeMap::new(),
            wants_channel: false,
            connection: None,
            outstanding: Vec::new(),
            incoming: BTreeMap::new(),
            access: Access::Inaccessible,
            requests: BTreeMap::new(),
            log_reachable: true,
            hung_until: Duration::ZERO,
            is_memory: false,
            started: Duration::ZERO,
            slow_until: Duration::ZERO,
        };
        let mut nodes = [node(), node()];
        nodes[1].is_memory = seed % 4 == 3;
        let log = SimulatedLog::new([nodes[0].id, nodes[1].id]);
        let mut simulation = Simulation {
            seed,
            random: Random(seed),
            now: Duration::from_secs(1_000),
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            nodes,
            log,
            host: Host::default(),
            whole_since: None,
            link_up: true,
            connections: 0,
            commands: 0,
            faults_until: Duration::ZERO,
            loud: std::env::var("VOUTE_SEED").is_ok(),
            expects_medium_errors: false,
            cluster,
        };
        simulation.start(0);
        simulation.start(1);
        simulation.after(Duration::from_millis(100), Event::Watch);
        for worker in 0..host::WORKERS {
            simulation.after(Duration::from_millis(worker as u64), Event::HostIssue { worker });
        }
        simulation
    }

    pub fn tell(&self, text: impl FnOnce() -> String) {
        if self.loud {
            println!("{:>10.3} {}", self.now.as_secs_f64() - 1_000.0, text());
        }
    }

    pub fn after(&mut self, delay: Duration, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((self.now + delay, self.next)));
        self.events.insert(self.next, event);
    }

    pub fn acknowledged(&self) -> u64 {
        self.host.acknowledged
    }

    pub fn owner_changes(&self) -> u64 {
        self.log.owner_changes
    }

    pub fn start(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        state.process += 1;
        state.incarnation += 1;
        let identity = Identity {
            cluster: self.cluster,
            node: state.id,
            incarnation: state.incarnation,
            session: self.random.next(),
            times: Times::default(),
        };
        state.mirror = Some(Mirror::new(identity, self.now));
        state.started = self.now;
        let process = state.process;
        self.tell(|| format!("node {node} starts"));
        let spec = self.log.spec();
        let delay = self.random.micros(500, 20_000);
        self.after(delay, Event::Spec { node, process, spec });
        self.after(Duration::from_millis(1), Event::Tick { node });
    }

    fn crash(&mut self, node: usize) {
        self.tell(|| format!("node {node} crashes"));
        self.disconnect(node);
        self.disconnect(1 - node);
        let state = &mut self.nodes[node];
        state.mirror = None;
        state.process += 1;
        state.at_device.clear();
        state.incoming.clear();
        state.outstanding.clear();
        state.wants_channel = false;
        state.access = Access::Inaccessible;
        // Requests at the device may or may not get there, and large ones in part.
        let pending: Vec<u64> = self
            .events
            .iter()
            .filter(|(_, event)| matches!(event, Event::Device { node: at, .. } if *at == node))
            .map(|(key, _)| *key)
            .collect();
        for key in pending {
            let Some(Event::Device { request, .. }) = self.events.get(&key) else { continue };
            let fate = self.random.below(3);
            let blocks = self.random.next();
            self.nodes[node].disk.tear(request, fate, blocks);
        }
        if self.nodes[node].is_memory {
            self.nodes[node].disk.forget();
        }
        self.host_lost(node);
    }

    fn disconnect(&mut self, node: usize) {
        let Some(_) = self.nodes[node].connection.take() else { return };
        let outstanding = std::mem::take(&mut self.nodes[node].outstanding);
        let (now, peer) = (self.now, self.nodes[1 - node].id);
        if let Some(mirror) = &mut self.nodes[node].mirror {
            for tag in outstanding {
                mirror.link_reply(tag, Err(LinkFault::Down), now);
            }
            mirror.channel_down(peer, now);
            let process = self.nodes[node].process;
            self.after(Duration::from_millis(100), Event::Connect { node, process });
        }
        self.drain(node);
    }

    /// Does what a mirror asks for.
    fn drain(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].mirror.as_mut().and_then(Mirror::next_action) {
            let process = self.nodes[node].process;
            match action {
                Action::Device(request) => {
                    let hung = self.nodes[node].hung_until.saturating_sub(self.now);
                    let slow = self.nodes[node].disk.delay_of(&request);
                    let delay = hung + slow + self.random.micros(50, 3_000);
                    self.nodes[node].at_device.insert(request.tag, ());
                    self.after(delay, Event::Device { node, process, request });
                }
                Action::Link { tag, request, .. } => self.send(node, tag, request),
                Action::LinkReply { request, reply } => {
                    let Some((connection, tag)) =
                        self.nodes[node].incoming.remove(&request.command)
                    else {
                        continue;
                    };
                    let delay = self.random.micros(50, 500);
                    self.after(delay, Event::LinkReply { to: 1 - node, connection, tag, reply });
                }
                Action::HostReply { id, outcome } => self.host_reply(node, id, outcome),
                Action::Record { record, is_cold, .. } => self.record_told(node, &record, is_cold),
                Action::Escalate(escalation) => {
                    self.tell(|| format!("node {node} asks {escalation:?}"));
                    let delay = self.random.micros(300, 5_000);
                    self.after(delay, Event::Escalation { node, process, escalation });
                }
                Action::AccessChanged { access, .. } => {
                    self.tell(|| format!("node {node} is {access:?}"));
                    self.nodes[node].access = access;
                }
                Action::Channel { wanted, .. } => {
                    self.nodes[node].wants_channel = wanted;
                    if wanted {
                        self.after(Duration::from_millis(1), Event::Connect { node, process });
                    } else {
                        self.nodes[node].connection = None;
                        self.nodes[node].outstanding.clear();
                    }
                }
            }
        }
    }

    fn send(&mut self, node: usize, tag: LinkTag, request: LinkRequest) {
        let Some(connection) = self.nodes[node].connection else {
            let now = self.now;
            if let Some(mirror) = &mut self.nodes[node].mirror {
                mirror.link_reply(tag, Err(LinkFault::Down), now);
            }
            return;
        };
        self.nodes[node].outstanding.push(tag);
        // Requests of a connection that broke meanwhile still arrive: ghosts.
        let delay = if self.nodes[node].slow_until > self.now {
            self.random.micros(1_000, 400_000)
        } else if self.random.chance(2) {
            self.random.micros(1_000, 200_000)
        } else {
            self.random.micros(50, 500)
        };
        self.after(delay, Event::LinkRequest { from: node, connection, tag, request });
    }

    fn step(&mut self) {
        let Reverse((at, key)) = self.queue.pop().expect("ticks never end");
        let Some(event) = self.events.remove(&key) else { return };
        self.now = at;
        let now = self.now;
        match event {
            Event::Tick { node } => {
                if let Some(mirror) = &mut self.nodes[node].mirror {
                    mirror.tick(now);
                    self.drain(node);
                    self.after(Duration::from_millis(10), Event::Tick { node });
                }
            }
            Event::Device { node, process, request } if process == self.nodes[node].process => {
                let tag = request.tag;
                self.nodes[node].at_device.remove(&tag);
                let result = self.nodes[node].disk.carry_out(request);
                if let Some(mirror) = &mut self.nodes[node].mirror {
                    mirror.device_done(tag, result, now);
                }
                self.drain(node);
            }
            Event::LinkRequest { from, connection, tag, request } => {
                let to = 1 - from;
                let broken = self.nodes[from].connection != Some(connection);
                if self.nodes[to].mirror.is_none() || broken && self.random.chance(50) {
                    return;
                }
                self.commands += 1;
                let command = self.commands;
                self.nodes[to].incoming.insert(command, (connection, tag));
                let peer = self.nodes[from].id;
                if let Some(mirror) = &mut self.nodes[to].mirror {
                    mirror.link_request(peer, IncomingTag { connection, command }, request, now);
                }
                self.drain(to);
            }
            Event::LinkReply { to, connection, tag, reply } => {
                if self.nodes[to].connection == Some(connection) {
                    self.nodes[to].outstanding.retain(|other| *other != tag);
                    if let Some(mirror) = &mut self.nodes[to].mirror {
                        mirror.link_reply(tag, Ok(reply), now);
                    }
                    self.drain(to);
                }
            }
            Event::Connect { node, process } if process == self.nodes[node].process => {
                let state = &self.nodes[node];
                if state.wants_channel && state.connection.is_none() {
                    if self.link_up && self.nodes[1 - node].mirror.is_some() {
                        self.connections += 1;
                        let connection = self.connections;
                        self.after(Duration::from_millis(1), Event::ChannelUp { node, connection });
                    }
                    self.after(Duration::from_millis(100), Event::Connect { node, process });
                }
            }
            Event::ChannelUp { node, connection } => {
                let peer = self.nodes[1 - node].id;
                let possible = self.link_up
                    && self.nodes[1 - node].mirror.is_some()
                    && self.nodes[node].connection.is_none()
                    && self.nodes[node].wants_channel;
                if let Some(mirror) = self.nodes[node].mirror.as_mut().filter(|_| possible) {
                    self.nodes[node].connection = Some(connection);
                    mirror.channel_up(peer, now);
                    self.drain(node);
                }
            }
            Event::Spec { node, process, spec } if process == self.nodes[node].process => {
                if !self.nodes[node].log_reachable {
                    // It learns nothing until it reaches the log again.
                    return;
                }
                if let Some(mirror) = &mut self.nodes[node].mirror {
                    mirror.apply(vec![spec], vec![], now);
                }
                self.drain(node);
            }
            Event::Escalation { node, process, escalation } => {
                self.decide(node, process, escalation)
            }
            Event::Answer { node, process, escalation, outcome }
                if process == self.nodes[node].process =>
            {
                if let Some(mirror) = &mut self.nodes[node].mirror {
                    mirror.escalation_answered(&escalation, &outcome, now);
                }
                self.drain(node);
            }
            Event::HostIssue { worker } => self.host_issue(worker),
            Event::HostRetry { worker, attempt } => self.host_retry(worker, attempt),
            Event::Restart { node } => {
                if self.nodes[node].mirror.is_none() {
                    self.start(node);
                }
            }
            Event::Recover { node } => {
                self.nodes[node].disk.ailment = None;
                self.tell(|| format!("node {node}'s device works again"));
            }
            Event::Move => {
                let to = self.nodes[self.random.below(2) as usize].id;
                if self.log.reachable && self.log.move_owner(to) {
                    self.tell(|| "planned move".to_owned());
                    self.publish();
                }
            }
            Event::Fault => self.fault(),
            Event::Watch => self.watch(),
            Event::Device { .. }
            | Event::Connect { .. }
            | Event::Spec { .. }
            | Event::Answer { .. } => {}
        }
    }

    fn decide(&mut self, node: usize, process: u64, escalation: Escalation) {
        if !self.log.reachable || !self.nodes[node].log_reachable {
            // The node sends it until it is answered.
            let delay = self.random.micros(50_000, 500_000);
            return self.after(delay, Event::Escalation { node, process, escalation });
        }
        if self.nodes[node].is_memory && process != self.nodes[node].process {
            // What a memory's last process asked for must not make it the only copy.
            return;
        }
        if matches!(escalation, Escalation::HandOver { .. }) && !self.attests(1 - node) {
            // As docs/mirror-rules.md rule 6 has it for every unplanned move: a request that waited for
            // an unreachable log must not take the only whole side out in favour of a memory that was
            // lost since.
            self.tell(|| "log: hand-over to a side that does not vouch for its legs".to_owned());
            let outcome = EscalationOutcome::Refused {
                code: "not-attested".to_owned(),
                message: String::new(),
            };
            let delay = self.random.micros(100, 5_000);
            return self.after(delay, Event::Answer { node, process, escalation, outcome });
        }
        let (outcome, changed) = self.log.decide(self.nodes[node].id, &escalation);
        self.tell(|| format!("log: {escalation:?} -> {outcome:?}"));
        if changed {
            self.publish();
        }
        if self.random.chance(10) {
            // The answer is lost with the stream, and the node asks again.
            let delay = self.random.micros(1_000, 500_000);
            return self.after(delay, Event::Escalation { node, process, escalation });
        }
        if self.random.chance(3) {
            // Another control process comes late with the same.
            let delay = self.random.micros(1_000, 500_000);
            let escalation = escalation.clone();
            self.after(delay, Event::Escalation { node, process, escalation });
        }
        let delay = self.random.micros(100, 5_000);
        self.after(delay, Event::Answer { node, process, escalation, outcome });
    }

    fn attests(&self, node: usize) -> bool {
        let mirror = self.nodes[node].mirror.as_ref().filter(|_| self.nodes[node].log_reachable);
        let statuses = mirror.map(|mirror| mirror.status(self.now, 0)).unwrap_or_default();
        statuses.iter().filter_map(|status| status.attestation).any(|it| it.legs_open)
    }

    fn publish(&mut self) {
        self.tell(|| format!("log: {}", self.log.describe()));
        for node in 0..2 {
            let (process, spec) = (self.nodes[node].process, self.log.spec());
            // Specs come late, out of order and twice.
            let copies = if self.random.chance(5) { 2 } else { 1 };
            for _ in 0..copies {
                let delay = if self.random.chance(5) {
                    self.random.micros(100_000, 1_000_000)
                } else {
                    self.random.micros(100, 5_000)
                };
                let spec = spec.clone();
                self.after(delay, Event::Spec { node, process, spec });
            }
        }
    }

    /// A node that reaches the log again hears what it missed.
    fn reach_log(&mut self, node: usize) {
        self.nodes[node].log_reachable = true;
        let (process, spec) = (self.nodes[node].process, self.log.spec());
        let delay = self.random.micros(1_000, 50_000);
        self.after(delay, Event::Spec { node, process, spec });
    }

    /// Whether some blocks may have no readable, writable copy just now.
    fn medium_error_is_possible(&self) -> bool {
        let long = Duration::from_secs(1);
        self.expects_medium_errors
            || !self.log.both_in_sync()
            || self.whole_since.is_none_or(|since| since + long > self.now)
            || self.nodes.iter().all(|node| node.disk.ailment.is_some())
    }

    /// The site watcher: an owner that is dead or cut off is replaced by an attested side.
    fn watch(&mut self) {
        self.after(Duration::from_millis(100), Event::Watch);
        self.whole_since = self.log.both_in_sync().then(|| self.whole_since.unwrap_or(self.now));
        if !self.log.reachable {
            return;
        }
        let now = self.now;
        let owner = self
            .nodes
            .iter()
            .position(|node| node.id == self.log.owner())
            .expect("the owner is one of the nodes");
        let lost = self.nodes[owner].mirror.is_none() || !self.nodes[owner].log_reachable;
        let other = &mut self.nodes[1 - owner];
        let status = other
            .mirror
            .as_mut()
            .filter(|_| other.log_reachable)
            .map(|mirror| mirror.status(now, 0));
        let attested = status
            .iter()
            .flatten()
            .filter(|status| status.epoch == self.log.spec().epoch)
            .filter_map(|status| status.attestation)
            .next();
        let ready = attested.is_some_and(|attestation| {
            attestation.legs_open && attestation.owner_silent && attestation.lease_expired
        });
        if lost && ready && self.log.fail_over(self.nodes[1 - owner].id) {
            self.tell(|| format!("watcher moves to node {}", 1 - owner));
            self.publish();
        }
    }

    fn fault(&mut self) {
        if self.now >= self.faults_until {
            return;
        }
        match self.random.below(14) {
            0 | 1 => {
                let node = self.random.below(2) as usize;
                // The only copy is not to be lost with its memory.
                let safe =
                    !self.nodes[node].is_memory || self.log.is_in_sync(self.nodes[1 - node].id);
                if self.nodes[node].mirror.is_some() && safe {
                    self.crash(node);
                    let delay = self.random.micros(1_000, 6_000_000);
                    self.after(delay, Event::Restart { node });
                }
            }
            2 => {
                self.link_up = !self.link_up;
                self.tell(|| format!("link up: {}", self.link_up));
                if !self.link_up {
                    self.disconnect(0);
                    self.disconnect(1);
                }
            }
            3 => self.log.reachable = !self.log.reachable,
            4 => {
                let node = self.random.below(2) as usize;
                if self.nodes[node].log_reachable {
                    self.nodes[node].log_reachable = false;
                } else {
                    self.reach_log(node);
                }
                self.tell(|| {
                    format!("node {node} reaches the log: {}", self.nodes[node].log_reachable)
                });
            }
            5 => {
                // A channel that breaks and comes back.
                self.disconnect(0);
                self.disconnect(1);
            }
            6 | 7 => {
                let moves = if self.random.chance(30) { 1 + self.random.below(5) } else { 1 };
                let mut at = Duration::ZERO;
                for _ in 0..moves {
                    self.after(at, Event::Move);
                    at += self.random.micros(100, 5_000);
                }
            }
            8 | 9 => self.ail(),
            10 => {
                let node = self.random.below(2) as usize;
                self.nodes[node].hung_until = self.now + self.random.micros(10_000, 8_000_000);
                self.tell(|| format!("node {node}'s device hangs"));
            }
            11 => {
                let more = 1 + self.random.below(20);
                if self.log.reachable && self.log.resize(more) {
                    self.tell(|| format!("the volume grows to {} blocks", self.log.blocks()));
                    self.publish();
                }
            }
            12 => {
                let node = self.random.below(2) as usize;
                self.nodes[node].slow_until = self.now + self.random.micros(10_000, 4_000_000);
            }
            _ => {}
        }
        let delay = self.random.micros(10_000, 2_500_000);
        self.after(delay, Event::Fault);
    }

    /// A device fails in some way for a while; only one at a time.
    fn ail(&mut self) {
        let node = self.random.below(2) as usize;
        if self.nodes.iter().any(|node| node.disk.ailment.is_some()) {
            return;
        }
        let ailment = match self.random.below(6) {
            0 => Ailment::Dead,
            1 => Ailment::ReadOnly,
            2 => Ailment::Full,
            3 => Ailment::Flaky,
            _ => Ailment::BadBlocks(self.random.next()),
        };
        self.tell(|| format!("node {node}'s device: {ailment:?}"));
        self.nodes[node].disk.ailment = Some(ailment);
        let delay = self.random.micros(10_000, 6_000_000);
        self.after(delay, Event::Recover { node });
    }

    fn run_until(&mut self, until: Duration) {
        while self.now < until {
            self.step();
        }
    }

    pub fn run_quietly(&mut self, milliseconds: u64) {
        self.run_until(self.now + Duration::from_millis(milliseconds));
    }

    pub fn run_with_faults(&mut self, milliseconds: u64) {
        self.run_quietly(500);
        self.faults_until = self.now + Duration::from_millis(milliseconds);
        self.after(Duration::ZERO, Event::Fault);
        self.run_until(self.faults_until);
    }

    /// Ends all faults; both sides must be in sync and served again within a minute.
    pub fn heal(&mut self) {
        self.link_up = true;
        self.log.reachable = true;
        for node in 0..2 {
            self.reach_log(node);
            self.nodes[node].disk.ailment = None;
            self.nodes[node].slow_until = Duration::ZERO;
            self.nodes[node].hung_until = Duration::ZERO;
            if self.nodes[node].mirror.is_none() {
                self.start(node);
            }
        }
        self.publish();
        self.await_health();
    }

    fn await_health(&mut self) {
        let deadline = self.now + Duration::from_secs(60);
        while !self.is_healthy() {
            assert!(
                self.now < deadline,
                "seed {}: not healthy a minute after the last fault: {} {}",
                self.seed,
                self.log.describe(),
                self.describe()
            );
            self.run_quietly(100);
        }
    }

    fn is_healthy(&self) -> bool {
        let owner = self
            .nodes
            .iter()
            .position(|node| node.id == self.log.owner())
            .expect("the owner is one of the nodes");
        self.log.both_in_sync() && self.nodes[owner].access == Access::Optimized
    }

    fn describe(&self) -> String {
        let now = self.now;
        let statuses = self.nodes.iter().map(|node| {
            let status =
                node.mirror.as_ref().map(|mirror| (mirror.status(now, 0), mirror.links(now)));
            format!("{status:?} channel {:?}\n", node.connection)
        });
        statuses.collect()
    }

    /// Stops the host's writes, then reads everything at one side, moves, and reads it at the other.
    pub fn verify(&mut self) {
        self.host.stop();
        self.settle_host();
        let mut before: Option<Vec<Vec<u8>>> = None;
        for _ in 0..3 {
            let found = self.read_all();
            if let Some(before) = before.replace(found.clone()) {
                let differs = before.iter().zip(&found).position(|(one, other)| one != other);
                assert_eq!(differs, None, "seed {}: the legs differ in a block", self.seed);
            }
            self.await_health();
            let to = self
                .nodes
                .iter()
                .map(|node| node.id)
                .find(|id| *id != self.log.owner())
                .expect("two nodes");
            assert!(self.log.move_owner(to), "seed {}: a healthy pair cannot be moved", self.seed);
            self.publish();
            let deadline = self.now + Duration::from_secs(20);
            self.run_quietly(50);
            while !self.is_healthy() {
                assert!(
                    self.now < deadline,
                    "seed {}: not served 20 s after a planned move: {}",
                    self.seed,
                    self.describe()
                );
                self.run_quietly(50);
            }
        }
    }

    /// The owner dies while one leg alone has a record; it comes back, serves by that, and dies for
    /// good. Returns what was put last and what the two owners served by.
    pub fn tear_a_record(&mut self) -> (u64, [u64; 2]) {
        self.run_quietly(1_000);
        self.host.stop();
        self.settle_host();
        self.link_up = false;
        self.disconnect(0);
        self.disconnect(1);
        self.put_once(0);
        self.run_quietly(100);
        self.crash(0);
        self.link_up = true;
        self.start(0);
        let (put, _) = self.records();
        let served = [1_000, 10_000].map(|milliseconds| {
            self.run_quietly(milliseconds);
            self.crash(0);
            self.records().1
        });
        (put, served)
    }

    /// The owner loses its peer and the log, which the other node still has or not. Returns how long
    /// it took until it sent its hosts away, how many of their requests it still held then, and how
    /// long until they were served again, by whom (the log is back two seconds after the first).
    pub fn cut_off(&mut self, other_has_log: bool) -> (Duration, usize, Duration, usize) {
        self.run_quietly(1_000);
        let began = self.now;
        self.link_up = false;
        self.disconnect(0);
        self.disconnect(1);
        self.nodes[0].log_reachable = false;
        self.log.reachable = other_has_log;
        self.run_while(|all| all.nodes[0].access == Access::Optimized);
        let sent_away = self.now - began;
        self.run_quietly(50);
        // A record that was put is never given up: it stays until it is known who owns.
        let putter = host::WORKERS - 1;
        let held = self.nodes[0].requests.values().filter(|(worker, _)| *worker != putter).count();
        if !other_has_log {
            self.run_quietly(2_000);
            self.log.reachable = true;
            self.reach_log(0);
        }
        self.run_while(|all| all.nodes.iter().all(|node| node.access != Access::Optimized));
        let by = usize::from(self.nodes[1].access == Access::Optimized);
        (sent_away, held, self.now - began, by)
    }

    /// The device of an owner without a peer hangs until a compare-and-write of a host is told as
    /// failed.
    pub fn fail_a_swap(&mut self, block: u64) {
        self.run_quietly(1_000);
        self.host.stop();
        self.settle_host();
        self.crash(1);
        self.run_while(|all| all.log.both_in_sync());
        self.run_quietly(1_000);
        self.nodes[0].hung_until = self.now + Duration::from_secs(25);
        self.swap_once(0, block);
        assert_eq!(self.nodes[0].requests.len(), 1);
        self.run_while(|all| !all.nodes[0].requests.is_empty());
        let early = self.nodes[0].hung_until - Duration::from_secs(1);
        assert!(self.now < early, "its device answered before the host was told");
        self.run_until(self.nodes[0].hung_until + Duration::from_secs(1));
    }

    /// The peer dies for five seconds. Returns what the owner's paths changed to meanwhile.
    pub fn lose_the_peer(&mut self) -> Vec<String> {
        self.run_quietly(1_000);
        self.crash(1);
        let mut changes = Vec::new();
        for _ in 0..500 {
            self.run_quietly(10);
            if self.nodes[0].access != Access::Optimized {
                changes.push(format!("{:?} at {:?}", self.nodes[0].access, self.now));
            }
        }
        self.start(1);
        changes
    }

    fn run_while(&mut self, condition: impl Fn(&Self) -> bool) {
        let deadline = self.now + Duration::from_secs(30);
        while condition(self) {
            assert!(self.now < deadline, "nothing changed for 30 s: {}", self.describe());
            self.run_quietly(10);
        }
    }

    // --- the host's side, see `host`

    fn submit(&mut self, node: usize, worker: usize, attempt: u64, request: HostRequest) {
        let (now, id) = (self.now, request.id.0);
        self.nodes[node].requests.insert(id, (worker, attempt));
        if let Some(mirror) = &mut self.nodes[node].mirror {
            mirror.submit(request, now);
        }
        self.drain(node);
    }

    fn host_reply(&mut self, node: usize, id: HostTag, outcome: HostOutcome) {
        if let Some((worker, attempt)) = self.nodes[node].requests.remove(&id.0) {
            if self.is_confirmed(worker, &outcome) {
                let earlier = self.nodes[node].requests.keys().find(|other| **other < id.0);
                assert_eq!(earlier, None, "seed {}: confirmed before all had ended", self.seed);
            }
            self.host_answered(worker, attempt, outcome);
        }
    }

    /// A node died: its hosts' connections end, and what was asked is asked again elsewhere.
    fn host_lost(&mut self, node: usize) {
        for (_, (worker, attempt)) in std::mem::take(&mut self.nodes[node].requests) {
            self.host_answered(worker, attempt, HostOutcome::PathError);
        }
    }
}

//! A node: the real mirror, a device queue, the channel to the peer, and the agent that keeps the
//! node contract.

use crate::control::is_move;
use crate::disk::Disk;
use crate::founding::Founded;
use crate::network::Place;
use crate::random::Random;
use crate::world::{Event, World};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use voute_mirror::link::{Control, ControlReply, LinkReply, LinkRequest};
use voute_mirror::{
    Access, Action, DeviceRequest, Identity, IncomingTag, LinkFault, LinkTag, Mirror,
};
use voute_schemas::command::Escalation;
use voute_schemas::contract::{FromNode, GroupSpec, NodeSpec, NodeStatus, ToNode};
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::times::Times;
use voute_schemas::{Epoch, GroupId, LegId, NodeId, VolumeId};
use voute_worker::Escalations;

/// A request in the kernel, on its way to the device.
pub(crate) struct Flying {
    process: u64,
    request: DeviceRequest,
}

/// A request of the peer.
struct Incoming {
    connection: u64,
    tag: LinkTag,
    /// The group whose record it puts.
    put: Option<GroupId>,
}

pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) id: NodeId,
    pub(crate) mirror: Option<Mirror>,
    /// Rises when its process starts and when it ends.
    pub(crate) process: u64,
    /// Rises, on its disk, at each start.
    pub(crate) incarnation: u64,
    /// The highest position that it obeyed, on its disk.
    pub(crate) obeyed: Epoch,
    proven: BTreeMap<GroupId, Epoch>,
    pub(crate) disk: Disk,
    flying: BTreeMap<u64, Flying>,
    devices_are_open: bool,
    held: BTreeMap<GroupId, GroupSpec>,
    groups: BTreeSet<GroupId>,
    pub(crate) retired: BTreeSet<LegId>,
    pub(crate) hung_until: Duration,
    pub(crate) slow_until: Duration,
    /// How much faster than true its clock runs, parts per million.
    drift_ppm: i64,
    clock_offset: Duration,
    tick_at: Option<Duration>,
    wants_channel: bool,
    pub(crate) connection: Option<u64>,
    outstanding: BTreeSet<LinkTag>,
    /// Requests of the peer being served, by command.
    incoming: BTreeMap<u64, Incoming>,
    /// Groups whose records this process put, or served by.
    pub(crate) knows_record: BTreeSet<GroupId>,
    /// When it last asked for another owner.
    pub(crate) asked_move_at: Duration,
    pub(crate) access: BTreeMap<VolumeId, Access>,
    /// Requests of hosts under way: path, worker, attempt, and a number that rises as they come.
    pub(crate) requests: BTreeMap<u64, (u64, usize, u64, u64)>,
    pub(crate) stream: Option<u64>,
    pub(crate) escalations: Escalations,
    reports_soon: bool,
    /// Of the last heartbeat on its stream.
    pub(crate) answers_us: u64,
}

const RECONNECT: Duration = Duration::from_millis(100);
/// Within what rates of clocks may be off (docs/mirror-rules.md rule 7): together less than the
/// quarter that a grantor waits longer.
const DRIFT_PPM_MAX: u64 = 100_000;

impl Node {
    pub(crate) fn new(index: usize, founded: &Founded, random: &mut Random) -> Self {
        let drift = random.below(2 * DRIFT_PPM_MAX) as i64 - DRIFT_PPM_MAX as i64;
        Node {
            index,
            id: founded.nodes[index],
            mirror: None,
            process: 0,
            incarnation: 0,
            obeyed: Epoch::ZERO,
            proven: BTreeMap::new(),
            disk: Disk::default(),
            flying: BTreeMap::new(),
            devices_are_open: false,
            held: BTreeMap::new(),
            groups: BTreeSet::new(),
            retired: BTreeSet::new(),
            hung_until: Duration::ZERO,
            slow_until: Duration::ZERO,
            drift_ppm: if random.chance(50) { drift } else { 0 },
            clock_offset: random.millis(1_000, 1_000_000),
            tick_at: None,
            wants_channel: false,
            connection: None,
            outstanding: BTreeSet::new(),
            incoming: BTreeMap::new(),
            knows_record: BTreeSet::new(),
            asked_move_at: Duration::ZERO,
            access: BTreeMap::new(),
            requests: BTreeMap::new(),
            stream: None,
            escalations: Escalations::default(),
            reports_soon: false,
            answers_us: 0,
        }
    }

    /// What its clock shows.
    pub(crate) fn clock(&self, now: Duration) -> Duration {
        let rate = 1_000_000 + self.drift_ppm;
        let nanos = now.as_nanos() * rate as u128 / 1_000_000;
        self.clock_offset + Duration::from_nanos(nanos as u64)
    }

    /// When its clock shows this.
    fn moment(&self, clock: Duration) -> Duration {
        let rate = (1_000_000 + self.drift_ppm) as u128;
        let nanos = clock.saturating_sub(self.clock_offset).as_nanos() * 1_000_000;
        Duration::from_nanos((nanos / rate) as u64 + 1)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.mirror.is_some()
    }

    /// Whether requests of an ended process are still in the kernel.
    pub(crate) fn kernel_is_busy(&self) -> bool {
        self.flying.values().any(|flying| flying.process != self.process)
    }
}

impl World {
    // ---- its process ---------------------------------------------------------------------------

    pub(crate) fn start_node(&mut self, node: usize) {
        if self.nodes[node].is_up() {
            return;
        }
        self.tamper(node);
        let session = self.random.next();
        let state = &mut self.nodes[node];
        state.process += 1;
        state.incarnation += 1;
        let identity = Identity {
            cluster: self.founded.cluster,
            node: state.id,
            incarnation: state.incarnation,
            session,
            times: Times::default(),
        };
        state.mirror = Some(Mirror::new(identity, state.clock(self.now)));
        let process = state.process;
        self.tell(|| format!("node {node} starts"));
        let delay = self.random.millis(1, 20);
        self.after(delay, Event::OpenDevices { node, process });
        let delay = self.random.millis(1, 50);
        self.after(delay, Event::OpenStream { node, process });
        let delay = Duration::from_millis(Times::default().heartbeat_ms);
        self.after(delay, Event::Report { node, process });
    }

    /// A device is claimed exclusively: not before everything of an earlier process has ended.
    pub(crate) fn open_devices(&mut self, node: usize, process: u64) {
        let state = &mut self.nodes[node];
        if state.process != process {
            return;
        }
        if state.kernel_is_busy() && !mutant::is_active(Mutant::KernelNotAwaited) {
            return self.after(Duration::from_millis(5), Event::OpenDevices { node, process });
        }
        state.devices_are_open = true;
        self.release_held(node);
    }

    /// Its process is killed: the kernel carries on with what it was given, and closes connections.
    pub(crate) fn kill_node(&mut self, node: usize) {
        self.tell(|| format!("node {node} is killed"));
        self.end_process(node);
        self.disconnect(1 - node);
        self.reset_streams(|it| it == node);
        self.reset_path(node);
    }

    /// Its power fails: what was under way may be lost, done, or done in part, and nobody is told.
    pub(crate) fn cut_power(&mut self, node: usize) {
        self.tell(|| format!("node {node} loses power"));
        self.end_process(node);
        self.nodes[node].disk.lose_cache();
        for (_, flying) in std::mem::take(&mut self.nodes[node].flying) {
            let (fate, which) = (self.random.below(3), self.random.next());
            self.nodes[node].disk.tear(&flying.request, fate, which);
        }
        self.doubt_streams();
        self.doubt_channels();
        self.doubt_path(node);
    }

    fn end_process(&mut self, node: usize) {
        self.check_tokens(node);
        let state = &mut self.nodes[node];
        state.mirror = None;
        state.process += 1;
        state.proven.clear();
        state.devices_are_open = false;
        state.held.clear();
        state.groups.clear();
        state.retired.clear();
        state.tick_at = None;
        state.wants_channel = false;
        state.connection = None;
        state.outstanding.clear();
        state.incoming.clear();
        state.knows_record.clear();
        state.access.clear();
        state.requests.clear();
        state.stream = None;
        state.escalations = Escalations::default();
        state.reports_soon = false;
        if self.founded.is_memory[node] {
            state.disk.forget();
            state.flying.clear();
        }
        self.hosts.forget_access(node);
    }

    // ---- its mirror ----------------------------------------------------------------------------

    /// Lets the mirror do something at its present time, then does what it asks for.
    pub(crate) fn with_mirror(&mut self, node: usize, act: impl FnOnce(&mut Mirror, Duration)) {
        let now = self.nodes[node].clock(self.now);
        if let Some(mirror) = &mut self.nodes[node].mirror {
            act(mirror, now);
            self.drain(node);
        }
    }

    pub(crate) fn tick(&mut self, node: usize, process: u64) {
        let state = &mut self.nodes[node];
        if state.process == process && state.tick_at == Some(self.now) {
            state.tick_at = None;
            self.with_mirror(node, |mirror, now| mirror.tick(now));
        }
    }

    fn drain(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].mirror.as_mut().and_then(Mirror::next_action) {
            self.carry_out(node, action);
        }
        let state = &self.nodes[node];
        let deadline = state.mirror.as_ref().and_then(Mirror::next_deadline);
        let Some(deadline) = deadline else { return };
        let at = state.moment(deadline).max(self.now + Duration::from_micros(100));
        if state.tick_at.is_none_or(|planned| at < planned) {
            let process = state.process;
            self.nodes[node].tick_at = Some(at);
            self.at(at, Event::Tick { node, process });
        }
    }

    fn carry_out(&mut self, node: usize, action: Action) {
        match action {
            Action::Device(request) => self.submit_to_device(node, request),
            Action::Link { tag, request, .. } => self.send_link(node, tag, request),
            Action::LinkReply { request, reply } => {
                let incoming = self.nodes[node].incoming.remove(&request.command);
                let Some(Incoming { connection, tag, put }) = incoming else { return };
                if matches!(reply, LinkReply::Control(ControlReply::Done)) {
                    self.nodes[node].knows_record.extend(put);
                }
                let delay = self.travel(Place::Node(node), Place::Node(1 - node));
                self.after(delay, Event::LinkReply { to: 1 - node, connection, tag, reply });
            }
            Action::HostReply { id, outcome } => self.reply_to_host(node, id, outcome),
            Action::Record { volume, record, is_cold, .. } => {
                self.record_told(node, volume, &record, is_cold);
            }
            Action::Escalate(escalation) => self.escalate(node, escalation),
            Action::AccessChanged { group, access } => self.access_changed(node, group, access),
            Action::Channel { wanted, .. } => {
                let state = &mut self.nodes[node];
                state.wants_channel = wanted;
                let process = state.process;
                if wanted {
                    self.after(Duration::from_millis(1), Event::Connect { node, process });
                } else {
                    state.connection = None;
                    state.outstanding.clear();
                }
            }
        }
    }

    fn access_changed(&mut self, node: usize, group: GroupId, access: Access) {
        let founded = self.founded.volumes.iter().find(|volume| volume.group == group);
        let Some(volume) = founded.map(|founded| founded.volume) else { return };
        self.tell(|| format!("node {node} shows {group} as {access:?}"));
        self.nodes[node].access.insert(volume, access);
        if access == Access::Optimized {
            self.check_serving(node, group);
        }
        self.access_shown(node, volume, access);
        self.report_soon(node);
    }

    // ---- its device ----------------------------------------------------------------------------

    fn submit_to_device(&mut self, node: usize, request: DeviceRequest) {
        let key = self.name();
        let slow = self.nodes[node].slow_until > self.now;
        let delay = match () {
            () if slow => self.random.micros(1_000, 300_000),
            () if self.random.chance(5) => self.random.micros(500, 5_000),
            () => self.random.micros(30, 400),
        };
        let state = &mut self.nodes[node];
        let hung = state.hung_until.saturating_sub(self.now);
        state.flying.insert(key, Flying { process: state.process, request });
        self.after(hung + delay, Event::Device { node, key });
    }

    pub(crate) fn device_done(&mut self, node: usize, key: u64) {
        let state = &mut self.nodes[node];
        let hung = state.hung_until.saturating_sub(self.now);
        if hung > Duration::ZERO && state.flying.contains_key(&key) {
            return self.after(hung, Event::Device { node, key });
        }
        // A power cut may have met it.
        let Some(Flying { process, request }) = state.flying.remove(&key) else { return };
        let result = state.disk.carry_out(&request);
        if state.process == process {
            self.with_mirror(node, |mirror, now| mirror.device_done(request.tag, result, now));
        }
    }

    // ---- the channel to the peer ---------------------------------------------------------------

    pub(crate) fn connect(&mut self, node: usize, process: u64) {
        let state = &self.nodes[node];
        if state.process != process || !state.wants_channel || state.connection.is_some() {
            return;
        }
        let (here, there) = (Place::Node(node), Place::Node(1 - node));
        if self.network.connects(here, there) && self.nodes[1 - node].is_up() {
            let connection = self.name();
            let delay = self.random.micros(300, 3_000);
            self.after(delay, Event::ChannelUp { node, process, connection });
        }
        self.after(RECONNECT, Event::Connect { node, process });
    }

    pub(crate) fn channel_up(&mut self, node: usize, process: u64, connection: u64) {
        let (here, there) = (Place::Node(node), Place::Node(1 - node));
        let state = &self.nodes[node];
        let may = state.process == process
            && state.wants_channel
            && state.connection.is_none()
            && self.network.connects(here, there)
            && self.nodes[1 - node].is_up();
        if may {
            let peer = self.nodes[1 - node].id;
            self.nodes[node].connection = Some(connection);
            self.with_mirror(node, |mirror, now| mirror.channel_up(peer, now));
        }
    }

    /// The channel that this node opened is over.
    pub(crate) fn disconnect(&mut self, node: usize) {
        if self.nodes[node].connection.take().is_none() {
            return;
        }
        self.tell(|| format!("node {node}'s channel is over"));
        let outstanding = std::mem::take(&mut self.nodes[node].outstanding);
        let peer = self.nodes[1 - node].id;
        self.with_mirror(node, |mirror, now| {
            for tag in outstanding {
                mirror.link_reply(tag, Err(LinkFault::Down), now);
            }
            mirror.channel_down(peer, now);
        });
        let process = self.nodes[node].process;
        self.after(RECONNECT, Event::Connect { node, process });
    }

    /// Something between the nodes went silent: who waits gives up some time.
    pub(crate) fn doubt_channels(&mut self) {
        for node in 0..self.nodes.len() {
            if let Some(connection) = self.nodes[node].connection {
                let delay = self.random.millis(200, 6_000);
                self.after(delay, Event::ChannelDown { node, connection });
            }
        }
    }

    fn send_link(&mut self, node: usize, tag: LinkTag, request: LinkRequest) {
        let Some(connection) = self.nodes[node].connection else {
            return self.with_mirror(node, |mirror, now| {
                mirror.link_reply(tag, Err(LinkFault::Down), now);
            });
        };
        self.nodes[node].outstanding.insert(tag);
        let delay = self.travel(Place::Node(node), Place::Node(1 - node));
        self.after(delay, Event::LinkRequest { from: node, connection, tag, request });
    }

    pub(crate) fn link_request(
        &mut self,
        from: usize,
        connection: u64,
        tag: LinkTag,
        request: LinkRequest,
    ) {
        let to = 1 - from;
        let is_over = self.nodes[from].connection != Some(connection);
        if self.network.is_cut(Place::Node(from), Place::Node(to)) {
            if !is_over {
                let delay = self.random.millis(5, 100);
                self.after(delay, Event::LinkRequest { from, connection, tag, request });
            }
            return;
        }
        // What was sent over a connection that broke meanwhile may still arrive: a ghost.
        if !self.nodes[to].is_up() || is_over && self.random.chance(50) {
            return;
        }
        let command = self.name();
        let put = match &request {
            LinkRequest::Control(Control::PutRecord { group, .. }) => Some(*group),
            _ => None,
        };
        self.nodes[to].incoming.insert(command, Incoming { connection, tag, put });
        let peer = self.nodes[from].id;
        self.with_mirror(to, |mirror, now| {
            mirror.link_request(peer, IncomingTag { connection, command }, request, now);
        });
    }

    pub(crate) fn link_reply(
        &mut self,
        to: usize,
        connection: u64,
        tag: LinkTag,
        reply: LinkReply,
    ) {
        if self.nodes[to].connection != Some(connection) {
            return;
        }
        if self.network.is_cut(Place::Node(1 - to), Place::Node(to)) {
            let delay = self.random.millis(5, 100);
            return self.after(delay, Event::LinkReply { to, connection, tag, reply });
        }
        if self.nodes[to].outstanding.remove(&tag) {
            self.with_mirror(to, |mirror, now| mirror.link_reply(tag, Ok(reply), now));
        }
    }

    // ---- the node contract ---------------------------------------------------------------------

    pub(crate) fn control_says(&mut self, node: usize, stream: u64, message: ToNode) {
        if self.nodes[node].stream != Some(stream) {
            return;
        }
        match message {
            ToNode::Spec(spec) => self.take_spec(node, stream, *spec),
            ToNode::Answer { id, outcomes } => {
                for (_, escalation, outcome) in self.nodes[node].escalations.answered(id, outcomes)
                {
                    self.with_mirror(node, |mirror, now| {
                        mirror.escalation_answered(&escalation, &outcome, now);
                    });
                }
                self.report_soon(node);
                self.flush_escalations(node);
            }
            ToNode::Heartbeat { sent_us } => self.nodes[node].answers_us = sent_us,
            ToNode::Goodbye { .. } => self.break_stream(stream),
        }
    }

    /// What `agent::trust` holds specs to, without the signatures: never older, never another branch.
    pub(crate) fn may_obey(&self, node: usize, spec: &NodeSpec) -> bool {
        let state = &self.nodes[node];
        let follows = |found: Epoch, before: Epoch| {
            found.sequence > before.sequence
                || found == before
                || mutant::is_active(Mutant::OtherBranchesObeyed)
        };
        follows(spec.as_of, state.obeyed)
            && spec.groups.iter().all(|group| {
                state.proven.get(&group.group).is_none_or(|before| follows(group.epoch, *before))
            })
    }

    fn take_spec(&mut self, node: usize, stream: u64, spec: NodeSpec) {
        if !self.may_obey(node, &spec) {
            self.tell(|| format!("node {node} does not obey {}", spec.as_of.sequence));
            return self.break_stream(stream);
        }
        let state = &mut self.nodes[node];
        state.obeyed = spec.as_of;
        let mut removed = spec.removed_groups;
        if spec.full {
            let named: BTreeSet<_> = spec.groups.iter().map(|group| group.group).collect();
            removed.extend(state.groups.difference(&named));
        }
        for group in &removed {
            state.held.remove(group);
            state.proven.remove(group);
            state.groups.remove(group);
            state.knows_record.remove(group);
        }
        for mut group in spec.groups {
            state.proven.insert(group.group, group.epoch);
            state.groups.insert(group.group);
            for volume in &mut group.volumes {
                volume.region_bytes = crate::REGION;
            }
            state.held.insert(group.group, group);
        }
        if let Some(facts) = &spec.facts {
            state.retired = facts.retired_legs.iter().map(|retired| retired.leg).collect();
        }
        if !removed.is_empty() {
            self.with_mirror(node, |mirror, now| mirror.apply(vec![], removed, now));
        }
        self.release_held(node);
        self.report_soon(node);
    }

    fn release_held(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        if !state.devices_are_open {
            return;
        }
        let groups: Vec<GroupSpec> = std::mem::take(&mut state.held).into_values().collect();
        let retired = state.retired.clone();
        let me = state.id;
        for spec in &groups {
            self.tell(|| {
                let sides: Vec<bool> = spec.sides.iter().map(|side| side.in_sync).collect();
                let (group, epoch, owns) = (spec.group, spec.epoch.sequence, spec.owner == me);
                format!("node {node} follows {group} at {epoch}: owns {owns}, in sync {sides:?}")
            });
        }
        for spec in groups.iter().filter(|spec| spec.owner == me) {
            self.show_sizes(spec);
        }
        self.apply(node, groups, retired);
    }

    /// Hosts ask the owner how large a volume is.
    fn show_sizes(&mut self, spec: &GroupSpec) {
        for volume in &spec.volumes {
            let index = self.founded.volumes.iter().position(|it| it.volume == volume.volume);
            if let Some(index) = index {
                self.hosts.resized(index, volume.size_bytes / crate::BLOCK);
            }
        }
    }

    fn apply(&mut self, node: usize, groups: Vec<GroupSpec>, retired: BTreeSet<LegId>) {
        self.with_mirror(node, |mirror, now| {
            if !groups.is_empty() {
                mirror.apply(groups, vec![], now);
            }
            for leg in retired {
                mirror.retire(leg, now);
            }
        });
    }

    fn escalate(&mut self, node: usize, escalation: Escalation) {
        self.tell(|| format!("node {node} asks {escalation:?}"));
        let chance = if matches!(escalation, Escalation::JoinSide { .. }) { 20 } else { 8 };
        if self.random.chance(chance) {
            let delay = self.random.micros(1, 6_000);
            let joined = match &escalation {
                Escalation::JoinSide { group, .. } => {
                    self.founded.volumes.iter().position(|volume| volume.group == *group)
                }
                _ => None,
            };
            self.after(delay, Event::Strike { node, joined });
        }
        if is_move(&escalation) {
            self.nodes[node].asked_move_at = self.now;
        }
        let state = &mut self.nodes[node];
        state.escalations.add(Some(0), escalation);
        let process = state.process;
        self.after(Duration::from_micros(100), Event::SendEscalations { node, process });
    }

    fn flush_escalations(&mut self, node: usize) {
        let process = self.nodes[node].process;
        self.after(Duration::from_micros(100), Event::SendEscalations { node, process });
    }

    pub(crate) fn send_escalations(&mut self, node: usize, process: u64) {
        let (state, now) = (&mut self.nodes[node], self.now);
        let Some(stream) = state.stream.filter(|_| state.process == process) else { return };
        let retry = Duration::from_millis(Times::default().escalation_retry_ms);
        let mut sent = false;
        while let Some((id, requests)) = self.nodes[node].escalations.next_batch(now, retry) {
            sent = true;
            self.say_to_control(stream, FromNode::Escalate { id, requests });
        }
        if sent {
            self.after(retry, Event::SendEscalations { node, process });
        }
    }

    pub(crate) fn report_soon(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        if !std::mem::replace(&mut state.reports_soon, true) {
            let process = state.process;
            self.after(Duration::from_millis(10), Event::Report { node, process });
        }
    }

    pub(crate) fn report(&mut self, node: usize, process: u64) {
        let heartbeat = Duration::from_millis(Times::default().heartbeat_ms);
        let state = &mut self.nodes[node];
        if state.process != process {
            return;
        }
        let was_extra = std::mem::take(&mut state.reports_soon);
        let clock = state.clock(self.now);
        let Some(mirror) = &state.mirror else { return };
        let groups = mirror.status(clock, 0);
        let status = NodeStatus {
            obeyed: state.obeyed,
            answers_us: state.answers_us,
            devices: vec![],
            links: mirror.links(clock),
            groups,
        };
        let stream = state.stream;
        for group in status.groups.iter().filter(|group| group.resync.is_some()) {
            let (id, resync) = (group.group, &group.resync);
            self.tell(|| format!("node {node} copies {id}: {resync:?}"));
        }
        self.check_status(node, &status);
        if let Some(stream) = stream {
            self.say_to_control(stream, FromNode::Status(status));
        }
        if !was_extra {
            self.after(heartbeat, Event::Report { node, process });
        }
    }
}

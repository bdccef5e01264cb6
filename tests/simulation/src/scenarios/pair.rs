//! Two real mirrors and what carries between them, moved by hand.

use crate::disk::Disk;
use crate::{BLOCK, REGION};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_mirror::header::Header;
use voute_mirror::link::LinkRequest;
use voute_mirror::{
    Access, Action, DeviceKind, DeviceRequest, HostOperation, HostOutcome, HostRequest, HostTag,
    Identity, IncomingTag, LinkTag, Mirror,
};
use voute_schemas::command::Escalation;
use voute_schemas::contract::{
    EscalationOutcome, GroupRole, GroupSpec, LegSpec, SideSpec, VolumeSpec,
};
use voute_schemas::event::Presentation;
use voute_schemas::place::LEG_METADATA_BYTES;
use voute_schemas::times::Times;
use voute_schemas::*;

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;

/// Which requests get from a node to the other.
type Passes = fn(usize, &LinkRequest) -> bool;
/// What a node's device keeps waiting.
type Held = fn(&DeviceRequest) -> bool;

pub(crate) struct Pair {
    mirrors: [Mirror; 2],
    disks: [Disk; 2],
    incarnations: [u64; 2],
    now: Duration,
    passes: Passes,
    held: [Option<Held>; 2],
    waiting: Vec<(usize, DeviceRequest)>,
    links: BTreeMap<u64, (usize, LinkTag)>,
    names: u64,
    outcomes: BTreeMap<u64, HostOutcome>,
    /// Whether the log confirms owners that ask.
    pub(crate) confirms: bool,
    pub(crate) asked: Vec<(usize, Escalation)>,
    pub(crate) shown: [Option<Access>; 2],
}

fn id(kind: u32, number: u64) -> uuid::Uuid {
    crate::founding::uuid(kind, number)
}

fn node_id(node: usize) -> NodeId {
    NodeId(id(3, node as u64))
}

fn leg_id(node: usize) -> LegId {
    LegId(id(9, node as u64))
}

fn volume_id() -> VolumeId {
    VolumeId(id(6, 1))
}

fn block(value: u64) -> Buffer {
    let mut buffer = Buffer::zeroed(BLOCK as usize);
    buffer[..8].copy_from_slice(&value.to_le_bytes());
    buffer
}

impl Pair {
    /// A owns, both sides are in sync and formatted, by epoch 1.
    pub(crate) fn healthy() -> Pair {
        let now = Duration::from_secs(1_000);
        let mirrors = [A, B].map(|node| Mirror::new(identity(node, 1), now));
        let mut pair = Pair {
            mirrors,
            disks: [Disk::default(), Disk::default()],
            incarnations: [1; 2],
            now,
            passes: |_, _| true,
            held: [None; 2],
            waiting: Vec::new(),
            links: BTreeMap::new(),
            names: 0,
            outcomes: BTreeMap::new(),
            confirms: false,
            asked: Vec::new(),
            shown: [None; 2],
        };
        for formatted in [false, true] {
            for node in [A, B] {
                let mut spec = pair.spec(1, A, [true, true]);
                let legs = spec.volumes.iter_mut().flat_map(|volume| &mut volume.legs);
                legs.for_each(|leg| leg.formatted = formatted);
                pair.apply(node, &spec);
            }
            pair.pass(50);
        }
        pair.pass(3_000);
        assert_eq!(pair.shown[A], Some(Access::Optimized), "a healthy pair is served");
        pair
    }

    pub(crate) fn spec(&self, epoch: u64, owner: usize, in_sync: [bool; 2]) -> GroupSpec {
        let at = |number: u64| Epoch { sequence: Sequence(number), hash: Hash([number as u8; 32]) };
        let side = |node: usize| SideSpec {
            site: SiteId(id(2, node as u64)),
            node: node_id(node),
            in_sync: in_sync[node],
        };
        let leg = |node: usize| LegSpec {
            leg: leg_id(node),
            site: SiteId(id(2, node as u64)),
            node: node_id(node),
            formatted: true,
            runs: vec![],
        };
        GroupSpec {
            group: GroupId(id(7, 1)),
            epoch: at(epoch),
            owner: node_id(owner),
            sides: vec![side(A), side(B)],
            last_common: at(1),
            volumes: vec![VolumeSpec {
                volume: volume_id(),
                name: crate::founding::name("one"),
                number: 1,
                size_bytes: 1 << 20,
                block_bytes: BLOCK as u32,
                region_bytes: REGION,
                legs: vec![leg(A), leg(B)],
                mappings: vec![],
                verify: None,
                presentation: Presentation::default(),
            }],
        }
    }

    pub(crate) fn apply(&mut self, node: usize, spec: &GroupSpec) {
        self.mirrors[node].apply(vec![spec.clone()], vec![], self.now);
        self.settle();
    }

    /// The other side is taken out; both hear of it.
    pub(crate) fn alone(&mut self, owner: usize, epoch: u64) {
        let mut in_sync = [false; 2];
        in_sync[owner] = true;
        self.cut(|_, _| false);
        for node in [A, B] {
            self.apply(node, &self.spec(epoch, owner, in_sync));
        }
        self.pass(100);
    }

    /// Its process ends and starts anew; the peer's connection does not show it.
    pub(crate) fn restart(&mut self, node: usize) {
        self.incarnations[node] += 1;
        self.mirrors[node] = Mirror::new(identity(node, self.incarnations[node]), self.now);
        self.links.retain(|_, (from, _)| *from != node);
        self.waiting.retain(|(at, _)| *at != node);
        self.shown[node] = None;
    }

    /// Which requests get through from here on; what does not is lost without a word.
    pub(crate) fn cut(&mut self, passes: Passes) {
        self.passes = passes;
    }

    /// The node's channel breaks and is there again.
    pub(crate) fn reconnect(&mut self, node: usize) {
        self.links.retain(|_, (from, _)| *from != node);
        let peer = node_id(1 - node);
        self.mirrors[node].channel_down(peer, self.now);
        self.mirrors[node].channel_up(peer, self.now);
        self.settle();
    }

    pub(crate) fn hold_device(&mut self, node: usize) {
        self.held[node] = Some(|_| true);
    }

    /// Writes of data wait at the node's device.
    pub(crate) fn hold_writes_of_data(&mut self, node: usize) {
        self.held[node] = Some(|request| {
            request.offset >= LEG_METADATA_BYTES && !matches!(request.kind, DeviceKind::Read { .. })
        });
    }

    pub(crate) fn holds_writes(&self, node: usize) -> bool {
        self.waiting.iter().any(|(at, _)| *at == node)
    }

    pub(crate) fn release_device(&mut self, node: usize) {
        self.held[node] = None;
        for (at, request) in std::mem::take(&mut self.waiting) {
            if at == node {
                self.carry_out(at, &request);
            } else {
                self.waiting.push((at, request));
            }
        }
        self.settle();
    }

    /// Lets time pass, in steps of 10 ms.
    pub(crate) fn pass(&mut self, milliseconds: u64) {
        self.settle();
        for _ in 0..milliseconds / 10 {
            self.now += Duration::from_millis(10);
            for mirror in &mut self.mirrors {
                mirror.tick(self.now);
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        loop {
            let next = [A, B]
                .into_iter()
                .find_map(|node| self.mirrors[node].next_action().map(|action| (node, action)));
            let Some((node, action)) = next else { return };
            self.act(node, action);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        let now = self.now;
        match action {
            Action::Device(request) if self.held[node].is_some_and(|held| held(&request)) => {
                self.waiting.push((node, request));
            }
            Action::Device(request) => self.carry_out(node, &request),
            Action::Link { tag, request, .. } => {
                if (self.passes)(node, &request) {
                    self.names += 1;
                    self.links.insert(self.names, (node, tag));
                    let incoming = IncomingTag { connection: 1, command: self.names };
                    self.mirrors[1 - node].link_request(node_id(node), incoming, request, now);
                }
            }
            Action::LinkReply { request, reply } => {
                if let Some((to, tag)) = self.links.remove(&request.command) {
                    self.mirrors[to].link_reply(tag, Ok(reply), now);
                }
            }
            Action::HostReply { id, outcome } => drop(self.outcomes.insert(id.0, outcome)),
            Action::Escalate(escalation) => {
                if self.confirms && matches!(escalation, Escalation::ConfirmOwner { .. }) {
                    let outcome = EscalationOutcome::Committed { sequence: Sequence(9) };
                    self.mirrors[node].escalation_answered(&escalation, &outcome, now);
                }
                self.asked.push((node, escalation));
            }
            Action::AccessChanged { access, .. } => self.shown[node] = Some(access),
            Action::Channel { peer, wanted: true } => self.mirrors[node].channel_up(peer, now),
            Action::Channel { wanted: false, .. } | Action::Record { .. } => {}
        }
    }

    fn carry_out(&mut self, node: usize, request: &DeviceRequest) {
        let result = self.disks[node].carry_out(request);
        self.mirrors[node].device_done(request.tag, result, self.now);
    }

    // ---- hosts ---------------------------------------------------------------------------------

    fn submit(&mut self, node: usize, operation: HostOperation) -> u64 {
        self.names += 1;
        let name = self.names;
        let request = HostRequest { id: HostTag(name), volume: volume_id(), operation };
        self.mirrors[node].submit(request, self.now);
        self.settle();
        name
    }

    pub(crate) fn read(&mut self, node: usize, at: u64) -> u64 {
        let length = BLOCK as u32;
        self.submit(node, HostOperation::Read { offset: at * BLOCK, length })
    }

    pub(crate) fn start_write(&mut self, node: usize, at: u64, value: u64) -> u64 {
        let data = Arc::new(block(value));
        self.submit(node, HostOperation::Write { offset: at * BLOCK, data })
    }

    /// A write that must be acknowledged.
    pub(crate) fn write(&mut self, node: usize, at: u64, value: u64) {
        let write = self.start_write(node, at, value);
        self.pass(100);
        assert!(self.is_done(write), "{value} was not written: {:?}", self.outcomes.get(&write));
    }

    pub(crate) fn is_done(&self, request: u64) -> bool {
        matches!(self.outcomes.get(&request), Some(HostOutcome::Done))
    }

    /// What a read returned, if it was answered with data.
    pub(crate) fn data(&self, request: u64) -> Option<u64> {
        match self.outcomes.get(&request)? {
            HostOutcome::Data(data) => {
                Some(u64::from_le_bytes(data[..8].try_into().expect("eight bytes")))
            }
            _ => None,
        }
    }

    // ---- what is seen --------------------------------------------------------------------------

    pub(crate) fn header(&self, node: usize) -> Option<Header> {
        Header::newest(self.disks[node].headers(leg_id(node))?, leg_id(node))
    }

    pub(crate) fn role(&self, node: usize) -> Option<GroupRole> {
        self.mirrors[node].status(self.now, 0).first().map(|status| status.role)
    }
}

fn identity(node: usize, incarnation: u64) -> Identity {
    Identity {
        cluster: ClusterId(id(1, 1)),
        node: node_id(node),
        incarnation,
        session: 1_000 * (node as u64 + 1) + incarnation,
        times: Times::default(),
    }
}

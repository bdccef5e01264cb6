//! The mirror: rules 1 to 9 of docs/mirror-rules.md as state machines without I/O.
//!
//! A [`Mirror`] belongs to one reactor and holds every group that is homed there. Each group has a
//! *keeper* (its local legs: token, drain, header, maps) and, where this node owns it, an *owner*
//! (opening, claims, dispatch to legs, lease check, resync). The owner reaches its own legs through
//! the keeper as it reaches the peer's through the link: a co-located owner is a client like any
//! other.
//!
//! Inputs are method calls with the time; outputs are [`Action`]s pulled with
//! [`Mirror::next_action`]. Nothing here blocks, reads a clock or knows a protocol of hosts.

pub mod action;
mod check;
mod claims;
mod copy;
mod group;
pub mod header;
pub mod journal;
mod keeper;
mod lease;
pub mod link;
mod map;
mod out;
mod owner;
mod peer;
mod pending;
mod record;
pub mod wire;
mod work;

pub use action::*;
pub use journal::{ATOMIC_BYTES_MAX, atomic_unit};

use crate::group::{Group, View};
use crate::header::HEADER_AREA_BYTES;
use crate::keeper::LegOperation;
use crate::lease::{Grants, Lease};
use crate::link::{Control, ControlReply, LinkRefusal, LinkReply, LinkRequest};
use crate::out::{DeviceClient, LinkClient, Out};
use crate::owner::Context;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::command::Escalation;
use voute_schemas::contract::{EscalationOutcome, GroupSpec, GroupStatus, LinkStatus};
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::times::Times;
use voute_schemas::{ClusterId, GroupId, LegId, NodeId, VolumeId};

/// How often a leg that could not be wiped is tried again.
const RETIRE_AGAIN: Duration = Duration::from_millis(500);

/// Who this mirror is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node.
    pub node: NodeId,
    /// Rises, on disk, each time the node's process starts.
    pub incarnation: u64,
    /// Random, of this process: names the keeper to those that it grants leases.
    pub session: u64,
    /// The table of times.
    pub times: Times,
}

/// All groups of one reactor.
#[derive(Clone, Debug)]
pub struct Mirror {
    identity: Identity,
    groups: BTreeMap<GroupId, Group>,
    /// Removed, but not yet out of the device queues.
    leaving: Vec<Group>,
    by_volume: HashMap<VolumeId, GroupId>,
    by_number: HashMap<u32, GroupId>,
    leases: HashMap<NodeId, Lease>,
    grants: Grants,
    out: Out,
    retiring: Vec<LegId>,
    wiping: BTreeSet<LegId>,
    /// Wiped by this process; never wiped twice, since their extents may be another's by then.
    wiped: BTreeSet<LegId>,
    now: Duration,
}

/// Splits a mirror's borrow into one group and what it needs from outside.
macro_rules! context {
    ($mirror:expr, $now:expr) => {
        Context {
            now: $now,
            me: $mirror.identity.node,
            incarnation: $mirror.identity.incarnation,
            times: &$mirror.identity.times,
            leases: &mut $mirror.leases,
            grants: &mut $mirror.grants,
            out: &mut $mirror.out,
        }
    };
}

impl Mirror {
    /// A mirror without groups. Its start counts as a grant of the longest lease to everybody.
    #[must_use]
    pub fn new(identity: Identity, now: Duration) -> Self {
        let grants = Grants::new(identity.session, now);
        let out = Out::new((identity.session & 0x7FFF_FFFF) as u32);
        Mirror {
            identity,
            groups: BTreeMap::new(),
            leaving: Vec::new(),
            by_volume: HashMap::new(),
            by_number: HashMap::new(),
            leases: HashMap::new(),
            grants,
            out,
            retiring: Vec::new(),
            wiping: BTreeSet::new(),
            wiped: BTreeSet::new(),
            now,
        }
    }

    /// Follows specs whose epochs were verified. Legs must be known to the device queue before.
    pub fn apply(&mut self, groups: Vec<GroupSpec>, removed: Vec<GroupId>, now: Duration) {
        self.now = now;
        for spec in groups {
            let id = spec.group;
            for volume in &spec.volumes {
                self.by_volume.insert(volume.volume, id);
                self.by_number.insert(volume.number, id);
            }
            let life = self.out.next_session();
            let group = self
                .groups
                .entry(id)
                .or_insert_with(|| Group::new(self.identity.cluster, spec.clone(), life));
            group.apply(spec, &mut context!(self, now));
        }
        for id in removed {
            if let Some(mut group) = self.groups.remove(&id) {
                self.by_volume.retain(|_, other| *other != id);
                self.by_number.retain(|_, other| *other != id);
                group.remove(&mut context!(self, now));
                self.leaving.push(group);
            }
        }
        self.want_channels();
        self.retire_idle();
    }

    /// Wipes a leg's header once nothing of it is under way, then escalates `LegReleased`. The leg's
    /// extents must be known to the device queue.
    pub fn retire(&mut self, leg: LegId, now: Duration) {
        self.now = now;
        if self.wiped.contains(&leg) {
            return self.out.actions.push_back(Action::Escalate(Escalation::LegReleased { leg }));
        }
        if !self.retiring.contains(&leg) && !self.wiping.contains(&leg) {
            self.retiring.push(leg);
        }
        self.retire_idle();
    }

    fn retire_idle(&mut self) {
        self.leaving.retain(|group| !group.keeper.is_idle());
        let busy = |leg: &LegId, mirror: &Mirror| {
            let groups = mirror.groups.values().chain(&mirror.leaving);
            groups.flat_map(|group| group.keeper.leg_ids()).any(|held| held == *leg)
        };
        let (waiting, ready) =
            std::mem::take(&mut self.retiring).into_iter().partition(|leg| busy(leg, self));
        self.retiring = waiting;
        let ready: Vec<LegId> = ready;
        for leg in ready {
            self.wiping.insert(leg);
            let zeroes = Buffer::zeroed(HEADER_AREA_BYTES as usize);
            self.out.device(
                DeviceClient::Wipe(leg),
                leg,
                0,
                DeviceKind::Write { data: Arc::new(zeroes) },
            );
        }
    }

    /// Takes a request of a host; the answer is an [`Action::HostReply`].
    pub fn submit(&mut self, request: HostRequest, now: Duration) {
        self.now = now;
        let Some(group) =
            self.by_volume.get(&request.volume).and_then(|id| self.groups.get_mut(id))
        else {
            self.out.actions.push_back(Action::HostReply {
                id: request.id,
                outcome: HostOutcome::NoSuchVolume,
            });
            return;
        };
        group.submit(request, &mut context!(self, now));
    }

    /// Which parts of a range of a volume may hold data, by its own leg: pieces of offset, length and
    /// whether anything was ever written there, ascending and without gaps from `offset` on, at most
    /// `pieces_max`, which may end before the range does. `None`: this node does not serve the volume.
    ///
    /// What was not written reads as zeroes, but only if no other node can have written since: to be
    /// confirmed afterwards ([`HostOperation::Confirm`]).
    #[must_use]
    pub fn allocation(
        &self,
        volume: VolumeId,
        offset: u64,
        length: u64,
        pieces_max: usize,
    ) -> Option<Vec<(u64, u64, bool)>> {
        let group = self.by_volume.get(&volume).and_then(|id| self.groups.get(id))?;
        let number = group.spec.volumes.iter().find(|spec| spec.volume == volume)?.number;
        group.owner.as_ref()?;
        group.keeper.allocation(number, offset, length, pieces_max)
    }

    /// An I/O on a local leg ended.
    pub fn device_done(&mut self, tag: DeviceTag, result: DeviceResult, now: Duration) {
        self.now = now;
        match self.out.devices.remove(tag.0) {
            Some(DeviceClient::Keeper(id, life, purpose)) => {
                let group =
                    self.groups.get_mut(&id).filter(|group| group.keeper.life == life).or_else(
                        || self.leaving.iter_mut().find(|group| group.keeper.life == life),
                    );
                if let Some(group) = group {
                    let mut context = context!(self, now);
                    group.keeper.device_done(purpose, result, now, context.out);
                    group.settle_events(&mut context);
                }
                if !self.leaving.is_empty() {
                    self.retire_idle();
                }
            }
            Some(DeviceClient::Wipe(leg)) => {
                self.wiping.remove(&leg);
                match result {
                    Ok(_) => {
                        self.wiped.insert(leg);
                        let released = Escalation::LegReleased { leg };
                        self.out.actions.push_back(Action::Escalate(released));
                    }
                    // Tried again when time passes.
                    Err(_) => self.retiring.push(leg),
                }
            }
            None => {}
        }
    }

    /// The channel to a peer is connected and authenticated.
    pub fn channel_up(&mut self, peer: NodeId, now: Duration) {
        self.now = now;
        self.leases.entry(peer).or_insert_with(Lease::new).channel_up(now);
        self.ask_for_grants(now);
        self.channel_changed(peer, true, now);
    }

    /// The channel to a peer is gone; replies to what was sent over it come as faults, before or after.
    pub fn channel_down(&mut self, peer: NodeId, now: Duration) {
        self.now = now;
        if let Some(lease) = self.leases.get_mut(&peer) {
            lease.up = false;
        }
        self.channel_changed(peer, false, now);
    }

    fn channel_changed(&mut self, peer: NodeId, up: bool, now: Duration) {
        for group in self.groups.values_mut() {
            group.channel_changed(peer, up, &mut context!(self, now));
        }
    }

    /// An authenticated peer asks; the answer is an [`Action::LinkReply`].
    pub fn link_request(
        &mut self,
        from: NodeId,
        id: IncomingTag,
        request: LinkRequest,
        now: Duration,
    ) {
        self.now = now;
        match request {
            LinkRequest::Write { volume, bar, offset, data, whole } => {
                let operation = LegOperation::Write { offset, data, whole };
                self.link_data(id, volume, bar, operation, now)
            }
            LinkRequest::Read { volume, bar, offset, length } => {
                self.link_data(id, volume, bar, LegOperation::Read { offset, length }, now)
            }
            LinkRequest::Zero { volume, bar, offset, length, release, whole } => {
                let operation = LegOperation::Zero { offset, length, release, whole };
                self.link_data(id, volume, bar, operation, now);
            }
            LinkRequest::Control(Control::Grant { seen }) => {
                self.grants.grant(from, now);
                let reply = ControlReply::Granted {
                    session: self.grants.session(),
                    counter: self.grants.counter(),
                    revoked: self.grants.revoked_since(seen),
                };
                self.out
                    .actions
                    .push_back(Action::LinkReply { request: id, reply: LinkReply::Control(reply) });
            }
            LinkRequest::Control(control) => self.link_control(from, id, control, now),
        }
    }

    fn link_data(
        &mut self,
        id: IncomingTag,
        volume: u32,
        bar: link::Bar,
        operation: LegOperation,
        now: Duration,
    ) {
        match self.by_number.get(&volume).and_then(|group| self.groups.get_mut(group)) {
            Some(group) => group.link_data(id, volume, bar, operation, &mut context!(self, now)),
            None => self.refuse(id, LinkRefusal::Unknown),
        }
    }

    fn link_control(&mut self, from: NodeId, id: IncomingTag, control: Control, now: Duration) {
        let group = match &control {
            Control::Bar { group, .. }
            | Control::FetchMap { group, .. }
            | Control::Mark { group, .. }
            | Control::PutRecord { group, .. }
            | Control::Lose { group, .. } => Some(*group),
            Control::Hello { .. }
            | Control::Prove { .. }
            | Control::Grant { .. }
            | Control::Reserve { .. } => None,
        };
        match group.and_then(|group| self.groups.get_mut(&group)) {
            Some(group) => group.link_control(from, id, control, &mut context!(self, now)),
            // A group that was just created may reach the peer first.
            None => self.refuse(id, LinkRefusal::Unknown),
        }
    }

    fn refuse(&mut self, request: IncomingTag, refusal: LinkRefusal) {
        self.out
            .actions
            .push_back(Action::LinkReply { request, reply: LinkReply::Refused(refusal) });
    }

    /// A peer answered, or its channel is down.
    pub fn link_reply(&mut self, tag: LinkTag, reply: Result<LinkReply, LinkFault>, now: Duration) {
        self.now = now;
        match self.out.links.remove(tag.0) {
            Some(LinkClient::Owner(id, round, purpose)) => {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.peer_reply(round, purpose, reply.ok(), &mut context!(self, now));
                }
            }
            Some(LinkClient::Grant(peer, asked)) => {
                if let Ok(LinkReply::Control(ControlReply::Granted { session, counter, revoked })) =
                    reply
                {
                    self.granted(peer, asked, session, counter, revoked, now);
                }
            }
            None => {}
        }
    }

    fn granted(
        &mut self,
        peer: NodeId,
        asked: Duration,
        session: u64,
        counter: u64,
        revoked: Option<Vec<GroupId>>,
        now: Duration,
    ) {
        let Some(lease) = self.leases.get_mut(&peer) else { return };
        let asked = if mutant::is_active(Mutant::LeaseFromItsReceipt) { now } else { asked };
        // Revocations first: a read must not complete on a grant that came with its revocation.
        let other_process = lease.granted(asked, session, counter);
        let all = revoked.is_none() || other_process;
        let revoked = revoked.unwrap_or_default();
        for (id, group) in &mut self.groups {
            if group.wanted_channel() == Some(peer) {
                let revoked = all || revoked.contains(id);
                let revoked = revoked && !mutant::is_active(Mutant::RevocationsUnheard);
                group.granted(peer, revoked, &mut context!(self, now));
            }
        }
    }

    /// The log answered an escalation of this mirror.
    pub fn escalation_answered(
        &mut self,
        escalation: &Escalation,
        outcome: &EscalationOutcome,
        now: Duration,
    ) {
        self.now = now;
        let group = match escalation {
            Escalation::DetachSide { group, .. }
            | Escalation::JoinSide { group, .. }
            | Escalation::HandOver { group, .. }
            | Escalation::ConfirmOwner { group, .. }
            | Escalation::Verified { group, .. }
            | Escalation::BlocksLost { group, .. } => *group,
            Escalation::DeviceReady { .. }
            | Escalation::DeviceRefused { .. }
            | Escalation::LegFormatted { .. }
            | Escalation::LegReleased { .. }
            | Escalation::WantOwner { .. } => return,
        };
        if let Some(group) = self.groups.get_mut(&group) {
            group.answered(escalation, outcome, &mut context!(self, now));
        }
    }

    /// Lets time pass. To be called at [`Mirror::next_deadline`]; more often does no harm.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        self.ask_for_grants(now);
        for group in self.groups.values_mut() {
            group.tick(&mut context!(self, now));
        }
        self.retire_idle();
    }

    fn ask_for_grants(&mut self, now: Duration) {
        for (peer, lease) in &mut self.leases {
            if lease.ask(now, &self.identity.times) {
                let seen = lease.seen;
                self.out.link(
                    LinkClient::Grant(*peer, now),
                    *peer,
                    LinkRequest::Control(Control::Grant { seen }),
                );
            }
        }
    }

    fn want_channels(&mut self) {
        let wanted: Vec<NodeId> = self.groups.values().filter_map(Group::wanted_channel).collect();
        for peer in &wanted {
            if !self.leases.contains_key(peer) {
                self.leases.insert(*peer, Lease::new());
                self.out.actions.push_back(Action::Channel { peer: *peer, wanted: true });
            }
        }
        let unwanted: Vec<NodeId> =
            self.leases.keys().filter(|peer| !wanted.contains(peer)).copied().collect();
        for peer in unwanted {
            self.leases.remove(&peer);
            self.out.actions.push_back(Action::Channel { peer, wanted: false });
        }
    }

    /// When [`Mirror::tick`] is to be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let leases = self.leases.values().filter_map(Lease::next_ask);
        let groups = self.groups.values().filter_map(|group| group.next_deadline(self.now));
        let retiring = (!self.retiring.is_empty()).then(|| self.now + RETIRE_AGAIN);
        leases.chain(groups).chain(retiring).min()
    }

    /// What is to be done next.
    pub fn next_action(&mut self) -> Option<Action> {
        self.out.actions.pop_front()
    }

    /// What each group does, for the control plane. `unix_ms`: wall time.
    #[must_use]
    pub fn status(&self, now: Duration, unix_ms: u64) -> Vec<GroupStatus> {
        let view =
            View { now, me: self.identity.node, times: &self.identity.times, grants: &self.grants };
        self.groups.values().map(|group| group.status(&view, unix_ms)).collect()
    }

    /// How each channel stands.
    #[must_use]
    pub fn links(&self, now: Duration) -> Vec<LinkStatus> {
        let links = self.leases.iter().map(|(peer, lease)| LinkStatus {
            peer: *peer,
            up: lease.up,
            lease_ms: lease.left_ms(now, &self.identity.times),
        });
        links.collect()
    }
}

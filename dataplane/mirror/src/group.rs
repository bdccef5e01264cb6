//! A group at this node: its keeper, and its owner where this node owns it.

use crate::action::{Access, Action, HostOutcome, HostRequest, IncomingTag};
use crate::keeper::{Client, Keeper, KeeperEvent, LegFault, LegOperation};
use crate::lease::Grants;
use crate::link::{Bar, Control, ControlReply, LinkRefusal, LinkReply, MAP_REGIONS_MAX};
use crate::owner::{Context, LinkPurpose, Owner, OwnerCall};
use std::collections::BTreeSet;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::command::Escalation;
use voute_schemas::contract::{EscalationOutcome, GroupRole, GroupSpec, GroupStatus};
use voute_schemas::event::Attestation;
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::times::Times;
use voute_schemas::{ClusterId, NodeId};

/// An owner is silent when it asked for no lease during so many intervals.
const SILENT_INTERVALS: u64 = 3;

/// What a status needs from outside the group.
pub(crate) struct View<'a> {
    pub(crate) now: Duration,
    pub(crate) me: NodeId,
    pub(crate) times: &'a Times,
    pub(crate) grants: &'a Grants,
}

#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) spec: GroupSpec,
    pub(crate) keeper: Keeper,
    pub(crate) owner: Option<Owner>,
    /// Control messages of the peer that a keeper's `Done` answers.
    marks: BTreeSet<IncomingTag>,
    told: bool,
    /// Who held a bar here since this process started, apart from this node: it may hold a lease.
    barred_for: BTreeSet<NodeId>,
}

impl Group {
    pub(crate) fn new(cluster: ClusterId, spec: GroupSpec, life: u64) -> Self {
        let keeper = Keeper::new(cluster, spec.group, life);
        Group {
            spec,
            keeper,
            owner: None,
            marks: BTreeSet::new(),
            told: false,
            barred_for: BTreeSet::new(),
        }
    }

    /// Follows a spec; an older one is ignored.
    pub(crate) fn apply(&mut self, mut spec: GroupSpec, context: &mut Context<'_>) {
        let is_older = spec.epoch.sequence < self.spec.epoch.sequence;
        if is_older && !mutant::is_active(Mutant::OlderSpecsObeyed) {
            return;
        }
        if spec.epoch == self.spec.epoch {
            keep_what_only_rises(&self.spec, &mut spec);
        }
        let moved = spec.owner != self.spec.owner;
        self.spec = spec;
        self.keeper.apply(&self.spec, context.me, context.out);
        let mine = self.spec.owner == context.me;
        if moved && self.keeper.held_by().is_some_and(|holder| holder != self.spec.owner) {
            self.keeper.revoke();
            context.grants.revoke(self.spec.group);
        }
        match (mine, &mut self.owner) {
            (true, Some(owner)) => owner.apply(&self.spec, &mut self.keeper, context),
            (true, None) => {
                let mut owner = Owner::new(&self.spec, self.barred_for.clone(), context);
                owner.follow_verify(&self.spec);
                owner.drive(&mut self.keeper, context);
                self.owner = Some(owner);
            }
            (false, _) => {
                if let Some(owner) = self.owner.take() {
                    owner.step_down(&mut self.keeper, context);
                } else if !self.told {
                    context.out.actions.push_back(Action::AccessChanged {
                        group: self.spec.group,
                        access: Access::Inaccessible,
                    });
                }
            }
        }
        self.told = true;
        self.settle_events(context);
    }

    /// This node holds no side of the group any more.
    pub(crate) fn remove(&mut self, context: &mut Context<'_>) {
        if let Some(owner) = self.owner.take() {
            owner.step_down(&mut self.keeper, context);
        }
        self.keeper.revoke();
        self.settle_events(context);
    }

    pub(crate) fn submit(&mut self, request: HostRequest, context: &mut Context<'_>) {
        match &mut self.owner {
            Some(owner) => owner.submit(request, &mut self.keeper, context),
            None => context
                .out
                .actions
                .push_back(Action::HostReply { id: request.id, outcome: HostOutcome::PathError }),
        }
        self.settle_events(context);
    }

    /// Hands on what the keeper has to tell, until it has nothing more.
    pub(crate) fn settle_events(&mut self, context: &mut Context<'_>) {
        while let Some(event) = self.keeper.events.pop_front() {
            match event {
                KeeperEvent::Done(Client::Owner(life, call), result) => {
                    self.owner_done(life, call, result, context)
                }
                KeeperEvent::Done(Client::Link(id), result) => self.reply_done(id, result, context),
                KeeperEvent::Barred(Client::Owner(_, call), result) => {
                    if let (Some(owner), OwnerCall::Bar(session)) = (&mut self.owner, call) {
                        owner.barred(session, result, &mut self.keeper, context);
                    }
                }
                KeeperEvent::Barred(Client::Link(id), result) => {
                    let session = context.grants.session();
                    let reply = match result {
                        Ok(bar) => LinkReply::Control(ControlReply::Barred {
                            bar,
                            session,
                            legs: self.keeper.reports(),
                        }),
                        Err(fault) => LinkReply::Refused(refusal(fault)),
                    };
                    context.out.actions.push_back(Action::LinkReply { request: id, reply });
                }
                KeeperEvent::Formatted(leg) => context.escalate(Escalation::LegFormatted { leg }),
                KeeperEvent::LegsChanged => {
                    if let Some(owner) = &mut self.owner {
                        owner.drive(&mut self.keeper, context);
                    }
                }
            }
        }
        if let Some(owner) = &mut self.owner
            && !owner.records.is_empty()
        {
            owner.advance_records(&mut self.keeper, context);
            // An own leg that cannot take a put says so at once.
            if !self.keeper.events.is_empty() {
                self.settle_events(context);
            }
        }
    }

    fn owner_done(
        &mut self,
        life: u64,
        call: OwnerCall,
        result: Result<Option<Buffer>, LegFault>,
        context: &mut Context<'_>,
    ) {
        let Some(owner) = self.owner.as_mut().filter(|owner| owner.life == life) else { return };
        let keeper = &mut self.keeper;
        match call {
            OwnerCall::Bar(_) => {}
            OwnerCall::Work(key) => owner.work_at_own(key, result, keeper, context),
            OwnerCall::Intent(key) => owner.intent_noted(key, result.map(drop), keeper, context),
            OwnerCall::Copy(key) => owner.copy_at_own(key, result, keeper, context),
            OwnerCall::Check(sent) => owner.check_at_own(sent, result, keeper, context),
            OwnerCall::Record(number) => {
                owner.record_at_own(number, result.map(drop), context);
            }
            OwnerCall::Mark => owner.marked(true, result.is_ok(), context),
            OwnerCall::Joining => owner.joining_noted(result.is_ok(), keeper, context),
        }
    }

    fn reply_done(
        &mut self,
        id: IncomingTag,
        result: Result<Option<Buffer>, LegFault>,
        context: &mut Context<'_>,
    ) {
        let reply = match (self.marks.remove(&id), result) {
            (_, Err(fault)) => LinkReply::Refused(refusal(fault)),
            (true, Ok(_)) => LinkReply::Control(ControlReply::Done),
            (false, Ok(None)) => LinkReply::Done,
            (false, Ok(Some(data))) => LinkReply::Data(data),
        };
        context.out.actions.push_back(Action::LinkReply { request: id, reply });
    }

    // --- requests of the peer

    pub(crate) fn link_data(
        &mut self,
        id: IncomingTag,
        volume: u32,
        bar: Bar,
        operation: LegOperation,
        context: &mut Context<'_>,
    ) {
        self.keeper.start(volume, bar, operation, Client::Link(id), context.out);
        self.settle_events(context);
    }

    pub(crate) fn link_control(
        &mut self,
        from: NodeId,
        id: IncomingTag,
        control: Control,
        context: &mut Context<'_>,
    ) {
        match control {
            Control::Bar { token, .. } => {
                let refused = if token.epoch.sequence > self.spec.epoch.sequence {
                    Some(LinkRefusal::NotYet)
                } else if token.epoch != self.spec.epoch || from != self.spec.owner {
                    Some(LinkRefusal::Stale)
                } else {
                    None
                };
                match refused {
                    Some(refusal) => context.out.actions.push_back(Action::LinkReply {
                        request: id,
                        reply: LinkReply::Refused(refusal),
                    }),
                    None => {
                        self.barred_for.insert(from);
                        self.keeper.bar(token, from, Client::Link(id), context.out);
                    }
                }
            }
            Control::FetchMap { bar, volume, from, .. } => {
                let reply = self.map_reply(bar, volume, from);
                context.out.actions.push_back(Action::LinkReply { request: id, reply });
            }
            Control::Mark { bar, mark, .. } => {
                self.marks.insert(id);
                self.keeper.mark(bar, mark, &|_, _| false, Client::Link(id), context.out);
            }
            Control::PutRecord { bar, volume, number, record, .. } => {
                self.marks.insert(id);
                let client = Client::Link(id);
                self.keeper.put_record(volume, bar, number, record, client, context.out);
            }
            Control::Lose { bar, volume, offset, length, .. } => {
                self.marks.insert(id);
                let client = Client::Link(id);
                self.keeper.lose(volume, bar, (offset, length), client, context.out);
            }
            Control::Hello { .. }
            | Control::Prove { .. }
            | Control::Grant { .. }
            | Control::Reserve { .. } => {
                context.out.actions.push_back(Action::LinkReply {
                    request: id,
                    reply: LinkReply::Refused(LinkRefusal::Invalid),
                });
            }
        }
        self.settle_events(context);
    }

    fn map_reply(&self, bar: Bar, volume: u32, from: u64) -> LinkReply {
        if !self.keeper.holds(bar) {
            return LinkReply::Refused(LinkRefusal::Stale);
        }
        let mut dirty = self.keeper.dirty(volume, from);
        let regions: Vec<u64> = dirty.by_ref().take(MAP_REGIONS_MAX).collect();
        let next = dirty.next();
        LinkReply::Control(ControlReply::Map { readable: true, regions, next })
    }

    // --- replies, times

    pub(crate) fn peer_reply(
        &mut self,
        round: u64,
        purpose: LinkPurpose,
        reply: Option<LinkReply>,
        context: &mut Context<'_>,
    ) {
        if let Some(owner) = &mut self.owner {
            owner.peer_reply(round, purpose, reply, &mut self.keeper, context);
        }
        self.settle_events(context);
    }

    pub(crate) fn answered(
        &mut self,
        escalation: &Escalation,
        outcome: &EscalationOutcome,
        context: &mut Context<'_>,
    ) {
        let Some(owner) = &mut self.owner else { return };
        owner.report_answered(escalation, outcome);
        // Everything else shows in the next spec, or is asked for again. A refused `JoinSide` too: an
        // earlier copy of the same request may have been carried out, and be the very cause of the
        // refusal (the epoch that it names is no longer the group's). Until a newer epoch says so,
        // the peer counts.
        if let (
            Escalation::ConfirmOwner { epoch, incarnation, .. },
            EscalationOutcome::Committed { .. },
        ) = (escalation, outcome)
        {
            owner.confirmed(*incarnation, *epoch, &mut self.keeper, context);
        }
        self.settle_events(context);
    }

    pub(crate) fn channel_changed(&mut self, peer: NodeId, up: bool, context: &mut Context<'_>) {
        if let Some(owner) = &mut self.owner {
            owner.channel_changed(peer, up, &mut self.keeper, context);
        }
        self.settle_events(context);
    }

    /// A grant came, or named this group as revoked.
    pub(crate) fn granted(&mut self, peer: NodeId, revoked: bool, context: &mut Context<'_>) {
        if let Some(owner) = &mut self.owner {
            if revoked {
                owner.bar_revoked(peer, &mut self.keeper, context);
            } else if owner.peer.as_ref().is_some_and(|other| other.node == peer)
                && owner.works.len() > 0
            {
                owner.retry_works(&mut self.keeper, context);
            }
        }
        self.settle_events(context);
    }

    pub(crate) fn tick(&mut self, context: &mut Context<'_>) {
        self.keeper.tick(context.now, context.out);
        if let Some(owner) = &mut self.owner {
            owner.tick(&mut self.keeper, context);
        }
        self.settle_events(context);
    }

    pub(crate) fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let owner = self.owner.as_ref().and_then(|owner| owner.next_deadline(now));
        [self.keeper.next_deadline(), owner].into_iter().flatten().min()
    }

    /// The node with which a channel is needed.
    pub(crate) fn wanted_channel(&self) -> Option<NodeId> {
        self.owner.as_ref()?.peer.as_ref().map(|peer| peer.node)
    }

    pub(crate) fn status(&self, context: &View<'_>, unix_ms: u64) -> GroupStatus {
        let owner = self.owner.as_ref();
        let last_io = owner.and_then(|owner| owner.last_io);
        GroupStatus {
            group: self.spec.group,
            epoch: self.spec.epoch,
            role: owner.map_or(GroupRole::Following, Owner::role),
            token: self.keeper.held(),
            legs: self.keeper.statuses(),
            attestation: if owner.is_none() { self.attestation(context) } else { None },
            resync: owner.and_then(Owner::resync),
            last_io_unix_ms: last_io.map(|at| {
                unix_ms.saturating_sub(crate::owner::to_ms(context.now.saturating_sub(at)))
            }),
            opening: owner.and_then(Owner::opening),
            verify: owner.and_then(Owner::verify),
        }
    }

    /// What this side can vouch for, if it could own.
    fn attestation(&self, context: &View<'_>) -> Option<Attestation> {
        let promotes = mutant::is_active(Mutant::StaleSidePromoted);
        let mut sides = self.spec.sides.iter();
        sides.find(|side| side.node == context.me && (side.in_sync || promotes))?;
        let last = context.grants.last(self.spec.owner);
        let silent_ms = crate::owner::to_ms(context.now.saturating_sub(last));
        Some(Attestation {
            legs_open: self.keeper.usable().is_ok() && self.keeper.is_consistent(),
            owner_silent: silent_ms > SILENT_INTERVALS * context.times.grant_interval_ms,
            lease_expired: context.now >= context.grants.run_out(self.spec.owner, context.times),
            silent_ms,
        })
    }
}

/// Within an epoch volumes only grow, and a leg that is formatted stays so: a spec that says less is
/// an older one that came late.
fn keep_what_only_rises(known: &GroupSpec, spec: &mut GroupSpec) {
    for volume in &mut spec.volumes {
        let Some(before) = known.volumes.iter().find(|other| other.volume == volume.volume) else {
            continue;
        };
        volume.size_bytes = volume.size_bytes.max(before.size_bytes);
        for leg in &mut volume.legs {
            leg.formatted |=
                before.legs.iter().any(|other| other.leg == leg.leg && other.formatted);
        }
    }
}

fn refusal(fault: LegFault) -> LinkRefusal {
    match fault {
        LegFault::Stale => LinkRefusal::Stale,
        LegFault::NotYet => LinkRefusal::NotYet,
        LegFault::ContentLost => LinkRefusal::ContentLost,
        LegFault::Failed => LinkRefusal::Failed,
        LegFault::Medium(_) => LinkRefusal::Medium,
        LegFault::Unknown => LinkRefusal::Unknown,
        LegFault::Invalid => LinkRefusal::Invalid,
    }
}

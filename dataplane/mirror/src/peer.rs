//! How an owner stands with the other side of its group.
//!
//! ```text
//!  Away ──channel up──► Resync: bar, fetch maps, mark inconsistent, copy ──► Joining ──epoch──► InSync
//!   ▲                     │ any failure                                       (counts)            │
//!   └─────────────────────┴──────────────────────── epoch without it ◄──── asked to detach ◄─────┘
//! ```

use crate::copy::{Copier, Purpose};
use crate::keeper::{Client, Keeper};
use crate::link::{
    Bar, Control, ControlReply, LegReport, LinkRefusal, LinkReply, LinkRequest, Mark,
};
use crate::out::{LinkClient, Out};
use crate::owner::{Asked, Context, LinkPurpose, Owner, OwnerCall, Stage};
use std::collections::BTreeSet;
use std::time::Duration;
use voute_schemas::command::Escalation;
use voute_schemas::contract::{GroupSpec, LegSpec};
use voute_schemas::event::{DetachCause, ResyncEvidence};
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::{Hash, LegId, NodeId, SiteId, Token};

/// After a refusal or a failed resync, the peer is tried again so much later.
const RETRY_MS: u64 = 50;
const RESYNC_RETRY_MS: u64 = 500;
/// How long a lost channel may take to come back before the peer is to be detached.
const RECONNECT_MS: u64 = 1_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Not in sync, nothing is being done.
    Away,
    /// Not in sync, being copied to.
    Resync,
    /// The log is to take it in: counts from the moment on at which that is written down, and until
    /// a newer epoch says otherwise. `noted`: it is on disk, so that the log may be asked.
    Joining { noted: bool, asked: Asked },
    /// Counts.
    InSync,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Idle,
    Barring,
    Fetching,
    Marking,
    /// The peer gets the own copies of the records.
    Recording,
    Ready,
}

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) site: SiteId,
    pub(crate) role: Role,
    /// The legs that it keeps.
    pub(crate) legs: Vec<LegId>,
    /// Whether the log knows them to be formatted: before, it would not take the peer in.
    formatted: bool,
    step: Step,
    /// Rises each time the bar is lost, never used twice by a process: an answer to what was sent
    /// in another round says nothing about this one.
    pub(crate) round: u64,
    /// Since when it could be asked for its bar and maps, and has not given all.
    pub(crate) unready_since: Option<Duration>,
    /// When the last mark was sent, if it is not answered.
    mark_sent: Option<Duration>,
    bar: Option<(Bar, u64)>,
    reports: Vec<LegReport>,
    /// Regions of the peer's maps, per volume; `None`: all.
    fetched: Vec<Option<BTreeSet<u64>>>,
    pub(crate) retry_at: Option<Duration>,
    down_since: Option<Duration>,
    leaving: Option<(DetachCause, Asked)>,
    /// The state that both legs are equal is to be written down.
    mark_wanted: bool,
    marking: Option<(bool, bool)>,
    /// Records that it was sent in this round and has not confirmed.
    records_left: usize,
    last_common: u64,
}

impl Peer {
    /// The other side of a group, if it has one whose legs are formatted.
    pub(crate) fn of(spec: &GroupSpec, context: &mut Context<'_>) -> Option<Peer> {
        let side = spec.sides.iter().find(|side| side.node != context.me)?;
        let legs = legs_of(spec, side.node);
        Some(Peer {
            legs: legs.clone().map(|leg| leg.leg).collect(),
            formatted: legs.clone().all(|leg| leg.formatted),
            round: context.out.next_session(),
            unready_since: None,
            mark_sent: None,
            node: side.node,
            site: side.site,
            role: if side.in_sync { Role::InSync } else { Role::Away },
            step: Step::Idle,
            bar: None,
            reports: Vec::new(),
            fetched: Vec::new(),
            retry_at: None,
            down_since: None,
            leaving: None,
            mark_wanted: side.in_sync,
            marking: None,
            records_left: 0,
            last_common: spec.last_common.sequence.0,
        })
    }

    pub(crate) fn is_in_sync(&self) -> bool {
        self.role == Role::InSync
    }

    /// Whether its acknowledgement and lease are needed.
    pub(crate) fn counts(&self) -> bool {
        match self.role {
            Role::InSync => true,
            Role::Joining { .. } => !mutant::is_active(Mutant::JoiningCountsNot),
            Role::Away | Role::Resync => false,
        }
    }

    /// Whether writes go to it.
    pub(crate) fn takes_writes(&self) -> bool {
        match self.role {
            Role::Away => false,
            // Until its maps are fetched and it is marked, nothing may be written to it.
            Role::Resync => self.step == Step::Ready,
            Role::InSync | Role::Joining { .. } => true,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.step == Step::Ready && self.bar.is_some()
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.is_leaving()
            || !matches!(self.step, Step::Idle | Step::Ready)
            || self.counts() && self.bar.is_none()
            || matches!(self.role, Role::Joining { .. })
    }

    pub(crate) fn bar(&self) -> Option<Bar> {
        if self.step == Step::Ready { self.bar.map(|(bar, _)| bar) } else { None }
    }

    /// The bar, whatever may be sent under it now.
    pub(crate) fn held_bar(&self) -> Option<Bar> {
        self.bar.map(|(bar, _)| bar)
    }

    fn report(&self, volume: u32) -> Option<&LegReport> {
        self.reports.iter().find(|report| report.volume == volume)
    }

    pub(crate) fn has_record(&self, volume: u32, fingerprint: u64) -> bool {
        self.report(volume).is_some_and(|report| report.record == fingerprint)
    }

    pub(crate) fn has_live_record(&self, volume: u32) -> bool {
        self.report(volume).is_some_and(|report| report.record_is_live)
    }

    pub(crate) fn expect_records(&mut self, count: usize) {
        self.records_left = count;
    }

    pub(crate) fn session(&self) -> Option<u64> {
        self.bar.map(|(_, session)| session)
    }

    /// An earlier process of this owner asked the log to take the peer in and did not live to learn
    /// the answer: the peer counts until there is one.
    pub(crate) fn resume_joining(&mut self) {
        if self.role == Role::Away {
            self.role = Role::Joining { noted: true, asked: Asked::default() };
        }
    }

    pub(crate) fn follow(&mut self, spec: &GroupSpec) {
        self.last_common = spec.last_common.sequence.0;
        self.formatted = legs_of(spec, self.node).all(|leg| leg.formatted);
    }

    fn lose_bar(&mut self, out: &mut Out) {
        self.bar = None;
        self.step = Step::Idle;
        self.marking = None;
        self.mark_sent = None;
        self.records_left = 0;
        self.round = out.next_session();
    }

    fn is_made_ready(&mut self) {
        self.step = Step::Ready;
        self.unready_since = None;
    }
}

fn legs_of(spec: &GroupSpec, node: NodeId) -> impl Iterator<Item = &LegSpec> + Clone {
    let legs = spec.volumes.iter().flat_map(|volume| volume.legs.iter());
    legs.filter(move |leg| leg.node == node)
}

impl Owner {
    /// Nothing is sent to the peer until it takes a token anew; what was sent may still arrive
    /// there before that, and not after.
    pub(crate) fn lose_peer_bar(&mut self, context: &mut Context<'_>) {
        if let Some(peer) = &mut self.peer {
            peer.lose_bar(context.out);
            self.restart_copies();
            self.abandon_check(true);
        }
    }

    /// A newer epoch says whether the peer is in sync.
    pub(crate) fn reconfigure_peer(&mut self, in_sync: bool, context: &mut Context<'_>) {
        self.lose_peer_bar(context);
        let Some(peer) = &mut self.peer else { return };
        peer.leaving = None;
        peer.unready_since = None;
        peer.down_since = None;
        match (peer.role, in_sync) {
            (Role::InSync, true) => {}
            (Role::Joining { .. }, true) => {
                peer.role = Role::InSync;
                peer.mark_wanted = true;
                self.end_resync();
            }
            (Role::Away | Role::Resync, true) => {
                // The log took it in although this process did not ask: an earlier one did. It was
                // equal then; whatever was written since is in our map, and is settled on opening.
                peer.role = Role::InSync;
                peer.mark_wanted = true;
                self.drop_copier();
                self.settle_own_map = true;
            }
            (_, false) => self.peer_left(context),
        }
    }

    /// The peer does not count any more: what waited only for it is done.
    fn peer_left(&mut self, context: &mut Context<'_>) {
        self.drop_copier();
        self.lose_peer_bar(context);
        if let Some(peer) = &mut self.peer {
            peer.role = Role::Away;
            peer.unready_since = None;
            peer.mark_wanted = false;
            peer.retry_at = Some(context.after_ms(RESYNC_RETRY_MS));
        }
        for volume in &mut self.volumes {
            volume.unsettled.clear();
        }
        self.forget_peer_in_works();
    }

    pub(crate) fn drive_peer(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let serving = self.stage == Stage::Serving;
        let Some(peer) = &mut self.peer else { return };
        if !context.channel_is_up(peer.node) {
            if peer.counts() && peer.down_since.is_none() {
                peer.down_since = Some(context.now);
            }
            return;
        }
        peer.down_since = None;
        if peer.retry_at.is_some_and(|at| at > context.now)
            || self.bar.is_none() && self.stage == Stage::Serving
        {
            return;
        }
        if peer.step != Step::Ready && peer.role != Role::Away {
            peer.unready_since.get_or_insert(context.now);
        }
        match (peer.role, peer.step) {
            (Role::Away, _) if mutant::is_active(Mutant::NeverResync) => {}
            (Role::Away, _) if serving && peer.formatted => {
                peer.role = Role::Resync;
                self.send_bar(context);
            }
            (Role::Resync, _) if self.stage == Stage::Stopped => {}
            (Role::InSync | Role::Joining { .. } | Role::Resync, Step::Idle) => {
                self.send_bar(context)
            }
            (Role::InSync, Step::Ready) => self.drive_mark(keeper, context),
            _ => {}
        }
    }

    fn send_bar(&mut self, context: &mut Context<'_>) {
        let session = context.out.next_session();
        let token = Token { epoch: self.epoch, incarnation: context.incarnation, session };
        let Some(peer) = &mut self.peer else { return };
        peer.step = Step::Barring;
        peer.bar = None;
        let request = LinkRequest::Control(Control::Bar { group: self.group, token });
        context.out.link(
            LinkClient::Owner(self.group, peer.round, LinkPurpose::Bar),
            peer.node,
            request,
        );
    }

    pub(crate) fn peer_barred(
        &mut self,
        reply: ControlReply,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let stage = self.stage;
        let Some(peer) = self.peer.as_mut().filter(|peer| peer.step == Step::Barring) else {
            return;
        };
        match reply {
            ControlReply::Barred { bar, session, legs } => {
                peer.bar = Some((bar, session));
                peer.reports = legs;
                let fetch = peer.role == Role::Resync || stage == Stage::Opening;
                if fetch {
                    peer.step = Step::Fetching;
                    peer.fetched = Vec::new();
                    self.fetch_map(0, 0, context);
                } else if stage == Stage::Stopped {
                    // The own header may never have been read: there is nothing to compare with.
                    if peer.reports.iter().all(|report| report.consistent) {
                        peer.is_made_ready();
                    }
                } else if peer.reports.iter().all(|report| report.consistent)
                    && nonces_agree(&peer.reports, keeper)
                {
                    peer.is_made_ready();
                    // A peer that was restarted is to know that the record lives on here.
                    self.send_records(false, keeper, context);
                    self.retry_works(keeper, context);
                } else {
                    self.refuse_strange_leg(context);
                }
                self.drive(keeper, context);
            }
            ControlReply::Refused(refusal) => self.peer_refused(refusal, context),
            _ => self.peer_refused(LinkRefusal::Invalid, context),
        }
    }

    /// The peer refused; what that means depends on why.
    pub(crate) fn peer_refused(&mut self, refusal: LinkRefusal, context: &mut Context<'_>) {
        let Some(peer) = &mut self.peer else { return };
        let cause = match refusal {
            LinkRefusal::ContentLost => Some(DetachCause::ContentLost),
            LinkRefusal::Failed | LinkRefusal::Medium => {
                Some(DetachCause::DeviceError { detail: refusal.to_string() })
            }
            LinkRefusal::Stale
            | LinkRefusal::NotYet
            | LinkRefusal::Unknown
            | LinkRefusal::Invalid
            | LinkRefusal::NotAuthenticated => None,
        };
        if peer.role == Role::Resync {
            if cause == Some(DetachCause::ContentLost) {
                // It is not in sync, so nothing is lost by saying so; its node may format it anew.
                context.escalate(Escalation::DetachSide {
                    group: self.group,
                    epoch: self.epoch,
                    site: peer.site,
                    cause: DetachCause::ContentLost,
                });
            }
            return self.abort_resync(context);
        }
        peer.retry_at = Some(context.after_ms(RETRY_MS));
        self.lose_peer_bar(context);
        // With the own leg out of use only a side that can never serve again is taken out.
        let may = keeper_may_detach(self.stage) || cause == Some(DetachCause::ContentLost);
        if let Some(cause) = cause.filter(|_| may) {
            self.detach_peer(cause, context);
        }
    }

    /// Asks the log to take the peer out; until it did, the peer counts.
    pub(crate) fn detach_peer(&mut self, cause: DetachCause, context: &mut Context<'_>) {
        let Some(peer) = self.peer.as_mut().filter(|peer| peer.role == Role::InSync) else {
            return;
        };
        let (cause, asked) = peer.leaving.get_or_insert((cause, Asked::default()));
        if asked.again(context.now, context.times.escalation_retry_ms) {
            let cause = cause.clone();
            let site = peer.site;
            context.escalate(Escalation::DetachSide {
                group: self.group,
                epoch: self.epoch,
                site,
                cause,
            });
        }
    }

    pub(crate) fn check_peer_deadlines(&mut self, context: &mut Context<'_>) {
        let Some(peer) = &self.peer else { return };
        let passed = |since: Option<Duration>, milliseconds: u64| {
            since.is_some_and(|since| since + Duration::from_millis(milliseconds) <= context.now)
        };
        let times = context.times;
        let unready = passed(peer.unready_since, times.opening_deadline_ms);
        let gone = self.stage != Stage::Opening && passed(peer.down_since, RECONNECT_MS);
        let gone_at_opening = passed(peer.down_since, times.opening_deadline_ms);
        let mark_is_late = passed(peer.mark_sent, times.leg_deadline_ms);
        let late = unready
            || gone
            || gone_at_opening
            || mark_is_late
            || peer.leaving.is_some()
            || self.oldest_unanswered(context)
            || self.copies_are_late(context);
        match peer.role {
            Role::InSync if late && keeper_may_detach(self.stage) => {
                self.detach_peer(DetachCause::Unreachable, context);
            }
            Role::Joining { .. } if late && mutant::is_active(Mutant::JoiningCountsNot) => {
                self.peer_left(context);
            }
            // Hosts do not wait for a leg that is not in sync.
            Role::Resync if late => self.abort_resync(context),
            // One that is joining may be in sync by the log: it is taken in before it is taken out.
            Role::InSync | Role::Resync | Role::Joining { .. } | Role::Away => {}
        }
    }

    pub(crate) fn channel_changed(
        &mut self,
        node: NodeId,
        up: bool,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(peer) = self.peer.as_mut().filter(|peer| peer.node == node) else { return };
        if up {
            peer.retry_at = None;
        }
        let role = peer.role;
        self.lose_peer_bar(context);
        match role {
            Role::Resync => self.abort_resync(context),
            Role::Joining { .. } | Role::InSync => self.unsend_works(),
            Role::Away => {}
        }
        self.drive(keeper, context);
    }

    /// The peer's keeper takes the bar back: what was sent is still answered, one way or the other.
    pub(crate) fn bar_revoked(
        &mut self,
        node: NodeId,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        if self.peer.as_ref().is_some_and(|peer| peer.node == node) {
            self.lose_peer_bar(context);
            self.drive(keeper, context);
        }
    }

    // --- maps

    fn fetch_map(&mut self, volume: usize, from: u64, context: &mut Context<'_>) {
        let (Some(peer), Some(state)) = (&mut self.peer, self.volumes.get(volume)) else { return };
        let Some((bar, _)) = peer.bar else { return };
        let request = Control::FetchMap { group: self.group, bar, volume: state.spec.number, from };
        context.out.link(
            LinkClient::Owner(self.group, peer.round, LinkPurpose::Map { volume }),
            peer.node,
            LinkRequest::Control(request),
        );
    }

    pub(crate) fn map_fetched(
        &mut self,
        volume: usize,
        reply: ControlReply,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(peer) = self.peer.as_mut().filter(|peer| peer.step == Step::Fetching) else {
            return;
        };
        let (readable, regions, next) = match reply {
            ControlReply::Map { readable, regions, next } => (readable, regions, next),
            ControlReply::Refused(refusal) => return self.peer_refused(refusal, context),
            _ => return self.peer_refused(LinkRefusal::Invalid, context),
        };
        if peer.fetched.len() <= volume {
            peer.fetched.push(Some(BTreeSet::new()));
        }
        match &mut peer.fetched[volume] {
            Some(set) if readable => set.extend(regions),
            entry => *entry = None,
        }
        match next {
            Some(next) => self.fetch_map(volume, next, context),
            None if volume + 1 < self.volumes.len() => self.fetch_map(volume + 1, 0, context),
            None => self.maps_fetched(keeper, context),
        }
    }

    fn maps_fetched(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(peer) = &mut self.peer else { return };
        if peer.role == Role::Resync {
            let Some((bar, _)) = peer.bar else { return };
            peer.step = Step::Marking;
            let request = Control::Mark { group: self.group, bar, mark: Mark::Inconsistent };
            context.out.link(
                LinkClient::Owner(self.group, peer.round, LinkPurpose::MarkInconsistent),
                peer.node,
                LinkRequest::Control(request),
            );
            return;
        }
        if !peer.reports.iter().all(|report| report.consistent)
            || !nonces_agree(&peer.reports, keeper)
        {
            return self.refuse_strange_leg(context);
        }
        // What the owner begins to serve by must not be taken back by a failover.
        peer.step = Step::Recording;
        self.judge_records(keeper);
        if mutant::is_active(Mutant::RecordsNotCopied)
            || self.send_records(false, keeper, context) == 0
        {
            self.begin_ready(keeper, context);
        }
    }

    /// The peer of an owner that opens has what it needs: what may differ is settled from here on.
    fn begin_ready(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(peer) = &mut self.peer else { return };
        let fetched = std::mem::take(&mut peer.fetched);
        peer.is_made_ready();
        self.begin_settling(fetched, keeper);
        self.drive(keeper, context);
    }

    /// The peer has one of the records that it was sent in this round.
    fn recorded(&mut self, reply: &ControlReply, keeper: &mut Keeper, context: &mut Context<'_>) {
        match reply {
            ControlReply::Done => {}
            ControlReply::Refused(refusal) => return self.peer_refused(*refusal, context),
            _ => return self.peer_refused(LinkRefusal::Invalid, context),
        }
        let Some(peer) = &mut self.peer else { return };
        peer.records_left = peer.records_left.saturating_sub(1);
        match (peer.records_left, peer.role, peer.step) {
            (0, Role::Resync, Step::Ready) => self.mark_copied(keeper, context),
            (0, _, Step::Recording) => self.begin_ready(keeper, context),
            _ => {}
        }
    }

    /// A clone or a restored image among the legs: nobody can say which is right. The peer is taken
    /// out, and a human sees why.
    fn refuse_strange_leg(&mut self, context: &mut Context<'_>) {
        let detail = "its leg does not come from the same last start as the owner's (restored image or clone?)".to_owned();
        self.detach_peer(DetachCause::DeviceError { detail }, context);
    }

    /// Both maps name what may differ: it is settled from the own leg.
    fn begin_settling(&mut self, fetched: Vec<Option<BTreeSet<u64>>>, keeper: &Keeper) {
        // What an earlier opening has not finished is among what the maps name.
        self.drop_copier();
        let mut queue = Vec::new();
        for (index, (state, theirs)) in self.volumes.iter_mut().zip(fetched).enumerate() {
            let mut union: BTreeSet<u64> = keeper.dirty(state.spec.number, 0).collect();
            match theirs {
                Some(theirs) => {
                    union.extend(theirs.into_iter().filter(|region| *region < state.regions()))
                }
                None => union.extend(0..state.regions()),
            }
            if mutant::is_active(Mutant::OpenWithoutMaps) {
                union.clear();
            }
            if mutant::is_active(Mutant::OpenWithOwnMapOnly) {
                union = keeper.dirty(state.spec.number, 0).collect();
            }
            queue.extend(union.iter().map(|region| (index, *region)));
            state.unsettled = union;
        }
        self.copier = (!queue.is_empty())
            .then(|| Copier::new(Purpose::Settle, false, queue, self.region_bytes()));
    }

    // --- resync

    pub(crate) fn marked_inconsistent(
        &mut self,
        reply: &ControlReply,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(peer) = self
            .peer
            .as_mut()
            .filter(|peer| peer.role == Role::Resync && peer.step == Step::Marking)
        else {
            return;
        };
        if *reply != ControlReply::Done {
            return self.abort_resync(context);
        }
        peer.is_made_ready();
        let chain = |since: Option<u64>| since.is_some_and(|since| since <= peer.last_common);
        let partial = chain(keeper.map_since())
            && peer.reports.iter().all(|report| chain(report.map_since))
            && peer.fetched.iter().all(Option::is_some)
            && nonces_agree(&peer.reports, keeper)
            || mutant::is_active(Mutant::ChainUnchecked);
        let fetched = std::mem::take(&mut peer.fetched);
        self.drop_copier();
        let mut queue = Vec::new();
        for (index, state) in self.volumes.iter().enumerate() {
            let mut regions: BTreeSet<u64> = BTreeSet::new();
            if partial {
                regions.extend(keeper.dirty(state.spec.number, 0));
                regions.extend(
                    fetched
                        .get(index)
                        .into_iter()
                        .flatten()
                        .flatten()
                        .filter(|region| **region < state.regions())
                        .filter(|_| !mutant::is_active(Mutant::ResyncOwnMapOnly)),
                );
            } else {
                regions.extend(0..state.regions());
            }
            queue.extend(regions.into_iter().map(|region| (index, region)));
        }
        self.copier = Some(Copier::new(
            Purpose::Resync { began: context.now },
            !partial,
            queue,
            self.region_bytes(),
        ));
        self.drive_copier(keeper, context);
    }

    pub(crate) fn abort_resync(&mut self, context: &mut Context<'_>) {
        if self.peer.as_ref().is_some_and(|peer| peer.role == Role::Resync) {
            self.peer_left(context);
        }
    }

    /// Every region is copied: the records are left.
    pub(crate) fn copied(&mut self, keeper: &Keeper, context: &mut Context<'_>) {
        let Some(peer) = self.peer.as_mut().filter(|peer| peer.role == Role::Resync) else {
            return;
        };
        peer.mark_sent = Some(context.now);
        if mutant::is_active(Mutant::RecordsNotCopied) {
            return self.mark_copied(keeper, context);
        }
        if self.send_records(true, keeper, context) == 0 {
            self.mark_copied(keeper, context);
        }
    }

    /// Everything is copied: from the asking on the peer counts; that is written down first.
    fn mark_copied(&mut self, keeper: &Keeper, context: &mut Context<'_>) {
        let Some(peer) = self.peer.as_mut().filter(|peer| peer.role == Role::Resync) else {
            return;
        };
        let Some(bar) = peer.bar() else { return };
        let (nonce, agreed) = keeper.nonces().values().next().copied().unwrap_or_default();
        let mark = Mark::Copied { nonce, agreed };
        let request = Control::Mark { group: self.group, bar, mark };
        peer.mark_sent = Some(context.now);
        context.out.link(
            LinkClient::Owner(self.group, peer.round, LinkPurpose::MarkConsistent),
            peer.node,
            LinkRequest::Control(request),
        );
    }

    fn marked_consistent(
        &mut self,
        reply: &ControlReply,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(peer) =
            self.peer.as_mut().filter(|peer| peer.role == Role::Resync && peer.step == Step::Ready)
        else {
            return;
        };
        peer.mark_sent = None;
        if *reply != ControlReply::Done {
            return self.abort_resync(context);
        }
        // It counts before it is written down that it does: whoever finds that on disk later may
        // rely on it.
        peer.role = Role::Joining { noted: false, asked: Asked::default() };
        self.ask_join(keeper, context);
    }

    pub(crate) fn joining_noted(
        &mut self,
        noted_well: bool,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let epoch = self.epoch;
        let Some(peer) = &mut self.peer else { return };
        let Role::Joining { noted, asked } = &mut peer.role else { return };
        if noted_well && keeper.is_joining(epoch) {
            *noted = true;
            *asked = Asked::default();
            self.ask_join(keeper, context);
        }
    }

    /// Writes down that the peer joins, then asks the log, again and again until a newer epoch
    /// comes: whether the peer can be reached or not, since the log's answer alone ends this state.
    pub(crate) fn ask_join(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let unknown = ResyncEvidence { full: false, regions: 0, bytes: 0, duration_ms: 0 };
        let resync = self.copier.as_ref().map_or(unknown, |copier| copier.evidence(context.now));
        let Some(peer) = &mut self.peer else { return };
        let site = peer.site;
        let Role::Joining { noted, asked } = &mut peer.role else { return };
        if !asked.again(context.now, context.times.escalation_retry_ms) {
            return;
        }
        if *noted {
            context.escalate(Escalation::JoinSide {
                group: self.group,
                epoch: self.epoch,
                site,
                resync,
            });
        } else if keeper.usable().is_ok() {
            let client = Client::Owner(self.life, OwnerCall::Joining);
            keeper.mark_joining(self.epoch, client, context.out);
        }
    }

    // --- both legs are equal

    /// Called when the owner begins to serve.
    pub(crate) fn peer_opened(&mut self, keeper: &mut Keeper, _context: &mut Context<'_>) {
        if std::mem::take(&mut self.settle_own_map)
            && self.peer.as_ref().is_some_and(Peer::is_in_sync)
            && self.copier.is_none()
        {
            let nothing = self.volumes.iter().map(|_| Some(BTreeSet::new())).collect();
            self.begin_settling(nothing, keeper);
        }
    }

    fn drive_mark(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let settled =
            self.copier.is_none() && self.volumes.iter().all(|volume| volume.unsettled.is_empty());
        let (Some(own), Some(peer)) = (self.bar, &mut self.peer) else { return };
        let Some((bar, _)) = peer.bar else { return };
        if !settled || !peer.mark_wanted || peer.marking.is_some() || self.stage != Stage::Serving {
            return;
        }
        peer.marking = Some((false, false));
        let nonce = fresh_nonce(self.epoch.hash, context.incarnation, context.out.next_session());
        let agreed = agreed_nonce(&peer.reports, keeper);
        let mark = Mark::InSync { nonce, agreed };
        let request = LinkRequest::Control(Control::Mark { group: self.group, bar, mark });
        context.out.link(
            LinkClient::Owner(self.group, peer.round, LinkPurpose::MarkInSync),
            peer.node,
            request,
        );
        let volumes = &self.volumes;
        let keep = |number: u32, region: u64| {
            volumes
                .iter()
                .any(|volume| volume.spec.number == number && volume.is_unconfirmed(region))
        };
        keeper.mark(own, mark, &keep, Client::Owner(self.life, OwnerCall::Mark), context.out);
    }

    pub(crate) fn marked(&mut self, own: bool, well: bool, context: &mut Context<'_>) {
        let Some(peer) = &mut self.peer else { return };
        let Some(marking) = &mut peer.marking else { return };
        if !well {
            peer.marking = None;
            peer.retry_at = Some(context.after_ms(RETRY_MS));
            return;
        }
        if own {
            marking.0 = true
        } else {
            marking.1 = true
        }
        if *marking == (true, true) {
            peer.marking = None;
            peer.mark_wanted = false;
        }
    }

    pub(crate) fn peer_reply(
        &mut self,
        round: u64,
        purpose: LinkPurpose,
        reply: Option<LinkReply>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let is_current = self.peer.as_ref().is_some_and(|peer| peer.round == round);
        if is_current && reply.is_none() {
            // What was sent may still be carried out. Only a new token, for which the peer drains
            // the old one, makes sure of that; so nothing is sent again before.
            if let Some(peer) = &mut self.peer {
                peer.retry_at = Some(context.after_ms(RETRY_MS));
            }
            self.lose_peer_bar(context);
            self.abort_resync(context);
        }
        let control = |reply: Option<LinkReply>| match reply {
            Some(LinkReply::Control(reply)) => reply,
            Some(LinkReply::Refused(refusal)) => ControlReply::Refused(refusal),
            Some(LinkReply::Done | LinkReply::Data(_)) => {
                ControlReply::Refused(LinkRefusal::Invalid)
            }
            // The channel went down; `channel_changed` comes or came too.
            None => ControlReply::Refused(LinkRefusal::NotYet),
        };
        match purpose {
            LinkPurpose::Work(key) => self.work_at_peer(key, round, reply, keeper, context),
            LinkPurpose::PeerRead(key) => self.read_at_peer(key, round, reply, keeper, context),
            LinkPurpose::Put { number } if is_current && reply.is_some() => {
                self.record_at_peer(number, round, reply, context);
            }
            // Everything else is done again in each round.
            _ if !is_current => {}
            // Sent again in the next round.
            LinkPurpose::Put { .. } => {}
            LinkPurpose::Record => self.recorded(&control(reply), keeper, context),
            LinkPurpose::Bar => self.peer_barred(control(reply), keeper, context),
            LinkPurpose::Map { volume } => {
                self.map_fetched(volume, control(reply), keeper, context)
            }
            LinkPurpose::MarkInconsistent => {
                self.marked_inconsistent(&control(reply), keeper, context)
            }
            LinkPurpose::MarkConsistent => self.marked_consistent(&control(reply), keeper, context),
            LinkPurpose::MarkInSync => {
                self.marked(false, control(reply) == ControlReply::Done, context)
            }
            LinkPurpose::Copy(key) => self.copy_at_peer(key, reply, keeper, context),
            LinkPurpose::Check(sent) => self.check_at_peer(sent, reply, keeper, context),
        }
    }
}

fn keeper_may_detach(stage: Stage) -> bool {
    match stage {
        Stage::Opening | Stage::Serving | Stage::Rebarring => true,
        // With the own leg out of use the other side must stay.
        Stage::Stopped => false,
    }
}

fn nonces_agree(reports: &[LegReport], keeper: &Keeper) -> bool {
    let own = keeper.nonces();
    if mutant::is_active(Mutant::MarksUncompared) {
        return true;
    }
    reports.iter().all(|report| {
        own.get(&report.volume).is_some_and(|(nonce, agreed)| {
            [*nonce, *agreed].iter().any(|ours| [report.nonce, report.agreed_nonce].contains(ours))
        })
    })
}

/// A nonce that both legs have on their disks now: what a start that got only half through is
/// compared with. One that is still being written here would be gone after a power cut.
fn agreed_nonce(reports: &[LegReport], keeper: &Keeper) -> u64 {
    let own = keeper.durable_nonces();
    let common = reports.iter().find_map(|report| {
        let (nonce, agreed) = own.get(&report.volume)?;
        [*nonce, *agreed]
            .into_iter()
            .find(|ours| [report.nonce, report.agreed_nonce].contains(ours))
    });
    common.unwrap_or_default()
}

fn fresh_nonce(epoch: Hash, incarnation: u64, session: u64) -> u64 {
    let mut bytes = epoch.0.to_vec();
    bytes.extend(incarnation.to_le_bytes());
    bytes.extend(session.to_le_bytes());
    u64::from_le_bytes(Hash::of(&bytes).0[..8].try_into().expect("eight bytes of a hash"))
}

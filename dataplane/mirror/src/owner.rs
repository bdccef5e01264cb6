//! The owner of a group: serves hosts and keeps the legs equal.
//!
//! ```text
//!            spec: mine                     opened
//!  (none) ─────────────► Opening ────────────────────► Serving ◄──────┐
//!                           ▲                             │ new epoch │ legs barred anew
//!                           │ own leg back                ▼           │
//!                        Stopped ◄── own leg fails ── Rebarring ──────┘
//!  any ── spec: another's ──► (none): every request gets a path error
//! ```
//!
//! Opening (docs/mirror-rules.md rules 6 and 9): take the new token at the own legs; at the peer, if
//! it is in sync, take the token and fetch its map; if alone, have the log confirm the ownership and
//! wait until grants to an old owner have run out. Then serve; regions of either map are settled from
//! the own leg before they are read or written.
//!
//! While the outcome of a commit that it asked for is unknown, the owner obeys both configurations
//! (rule 5): a peer that it asked to detach still counts until an epoch without it is effective, and
//! one that it asked to take in counts from the asking on.

use crate::action::{Access, Action, HostOutcome};
use crate::check::Checks;
use crate::copy::{Copier, Job};
use crate::keeper::{Client, Keeper, LegFault};
use crate::lease::{Grants, Lease};
use crate::link::Bar;
use crate::out::Out;
use crate::peer::{Peer, Role};
use crate::pending::Pending;
use crate::record::Records;
use crate::work::{VolumeState, Work};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use voute_schemas::command::Escalation;
use voute_schemas::contract::{
    GroupRole, GroupSpec, OpeningReport, ResyncProgress, VerifyProgress,
};
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::times::Times;
use voute_schemas::{Epoch, GroupId, NodeId, Token};

/// What a call of the owner to its own keeper was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OwnerCall {
    /// With the session of the token.
    Bar(u64),
    Work(u64),
    Intent(u64),
    Copy(u64),
    Mark,
    Joining,
    /// With the number of the put.
    Record(u64),
    /// With the number of what was sent.
    Check(u64),
}

/// What a request of the owner to its peer was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LinkPurpose {
    Bar,
    Map {
        volume: usize,
    },
    MarkInconsistent,
    MarkConsistent,
    MarkInSync,
    Work(u64),
    PeerRead(u64),
    Copy(u64),
    /// With the number of what was sent.
    Check(u64),
    /// With its number.
    Put {
        number: u64,
    },
    /// One of the own copies, when opening or resyncing.
    Record,
}

/// What the machines of a group need from outside it.
pub(crate) struct Context<'a> {
    pub(crate) now: Duration,
    pub(crate) me: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) times: &'a Times,
    pub(crate) leases: &'a mut HashMap<NodeId, Lease>,
    pub(crate) grants: &'a mut Grants,
    pub(crate) out: &'a mut Out,
}

impl Context<'_> {
    pub(crate) fn channel_is_up(&self, peer: NodeId) -> bool {
        self.leases.get(&peer).is_some_and(|lease| lease.up)
    }

    pub(crate) fn after_ms(&self, milliseconds: u64) -> Duration {
        self.now + Duration::from_millis(milliseconds)
    }

    pub(crate) fn escalate(&mut self, escalation: Escalation) {
        self.out.actions.push_back(Action::Escalate(escalation));
    }
}

const BAR_RETRY_MS: u64 = 20;
/// How long an owner that gave up leaves its leg alone: hosts are not told of each attempt.
const REOPEN_MS: u64 = 1_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Opening,
    Serving,
    Rebarring,
    /// The own leg cannot be used.
    Stopped,
}

/// Whether an effect was asked for, and when again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Asked {
    at: Option<Duration>,
}

impl Asked {
    /// Whether to ask now; notes that it was done.
    pub(crate) fn again(&mut self, now: Duration, every_ms: u64) -> bool {
        let due = self.at.is_none_or(|at| at + Duration::from_millis(every_ms) <= now);
        if due {
            self.at = Some(now);
        }
        due
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) life: u64,
    pub(crate) group: GroupId,
    pub(crate) epoch: Epoch,
    pub(crate) stage: Stage,
    began: Duration,
    confirmed: bool,
    confirm: Asked,
    hand_over: Asked,
    pub(crate) bar: Option<Bar>,
    /// Session of the token that the own keeper is taking.
    barring: Option<u64>,
    /// Since when the own leg keeps this owner waiting for its token.
    barring_since: Option<Duration>,
    /// After the own leg failed it is not tried again before.
    reopen_at: Option<Duration>,
    /// Nodes that held a token of this group here since the process started.
    barred_for: BTreeSet<NodeId>,
    /// After a refusal the token is presented again so much later, not at once.
    bar_retry: Option<Duration>,
    lease_wait: Option<Duration>,
    pub(crate) peer: Option<Peer>,
    pub(crate) copier: Option<Copier>,
    pub(crate) copies: Pending<Job>,
    pub(crate) volumes: Vec<VolumeState>,
    pub(crate) works: Pending<Work>,
    pub(crate) records: Records,
    pub(crate) checks: Checks,
    /// Claims granted while something else was being done.
    pub(crate) woken: Vec<u64>,
    pub(crate) settle_own_map: bool,
    access: Option<Access>,
    /// Since when it serves by the log, but may not complete a read.
    unable_since: Option<Duration>,
    /// So long that hosts are sent away.
    pub(crate) is_cut_off: bool,
    pub(crate) last_io: Option<Duration>,
    barred_ms: u64,
    lease_wait_ms: u64,
    report: Option<OpeningReport>,
}

impl Owner {
    pub(crate) fn new(
        spec: &GroupSpec,
        barred_for: BTreeSet<NodeId>,
        context: &mut Context<'_>,
    ) -> Self {
        let now = context.now;
        Owner {
            life: context.out.next_session(),
            group: spec.group,
            epoch: spec.epoch,
            stage: Stage::Opening,
            began: now,
            confirmed: false,
            confirm: Asked::default(),
            hand_over: Asked::default(),
            bar: None,
            barring: None,
            barring_since: None,
            reopen_at: None,
            barred_for,
            bar_retry: None,
            lease_wait: None,
            peer: Peer::of(spec, context),
            copier: None,
            copies: Pending::new(),
            volumes: spec.volumes.iter().map(VolumeState::new).collect(),
            works: Pending::new(),
            records: Records::default(),
            checks: Checks::default(),
            woken: Vec::new(),
            settle_own_map: false,
            access: None,
            unable_since: None,
            is_cut_off: false,
            last_io: None,
            barred_ms: 0,
            lease_wait_ms: 0,
            report: None,
        }
    }

    /// Follows a newer spec that still names this node as owner.
    pub(crate) fn apply(
        &mut self,
        spec: &GroupSpec,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        for (state, volume) in self.volumes.iter_mut().zip(&spec.volumes) {
            state.spec = volume.clone();
        }
        self.volumes.truncate(spec.volumes.len());
        for volume in spec.volumes.iter().skip(self.volumes.len()) {
            self.volumes.push(VolumeState::new(volume));
        }
        let wanted = Peer::of(spec, context);
        let whose = |peer: &Option<Peer>| peer.as_ref().map(|peer| (peer.node, peer.legs.clone()));
        if whose(&self.peer) != whose(&wanted) {
            // Another node, or new legs of the same: nothing that was known of it holds.
            self.drop_copier();
            self.abandon_check(true);
            self.volumes.iter_mut().for_each(|volume| volume.unsettled.clear());
            self.forget_peer_in_works();
            self.peer = wanted;
            if self.stage == Stage::Serving && self.peer.as_ref().is_some_and(Peer::is_in_sync) {
                // Its maps were never seen.
                self.reopen(context);
            }
        } else if spec.epoch.sequence > self.epoch.sequence {
            self.reconfigure_peer(wanted.is_some_and(|peer| peer.is_in_sync()), context);
        }
        if let Some(peer) = &mut self.peer {
            peer.follow(spec);
        }
        self.follow_verify(spec);
        if spec.epoch.sequence > self.epoch.sequence {
            self.epoch = spec.epoch;
            self.bar = None;
            self.barring = None;
            self.barring_since = None;
            self.confirm = Asked::default();
            self.confirmed = false;
            self.hand_over = Asked::default();
            if self.stage == Stage::Serving {
                self.stage = Stage::Rebarring;
            }
        }
        self.drive(keeper, context);
    }

    /// Another node owns: every request gets a path error, and the map of the own leg says exactly
    /// what the peer may lack.
    pub(crate) fn step_down(mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        if self.peer.as_ref().is_some_and(Peer::is_in_sync) && self.stage != Stage::Opening {
            for volume in &self.volumes {
                keeper.clear_dirty(volume.spec.number, &volume.clean_regions(), context.out);
            }
        }
        for key in self.works.keys() {
            self.answer(key, HostOutcome::PathError, context);
        }
        self.give_back_records(context);
        self.tell(Access::Inaccessible, context);
    }

    pub(crate) fn tell(&mut self, access: Access, context: &mut Context<'_>) {
        if self.access != Some(access) {
            self.access = Some(access);
            context.out.actions.push_back(Action::AccessChanged { group: self.group, access });
        }
    }

    /// Does whatever can be done now.
    pub(crate) fn drive(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        match keeper.usable() {
            Ok(()) if keeper.is_consistent() => {
                let may_reopen = self.reopen_at.is_none_or(|at| at <= context.now);
                if self.stage == Stage::Stopped && may_reopen {
                    self.reopen(context);
                }
            }
            Ok(()) => self.give_up("its leg is not consistent", context),
            Err(LegFault::NotYet) => {
                // A device that hangs while its leg is loaded: the other side need not wait for it.
                let deadline = Duration::from_millis(context.times.opening_deadline_ms);
                let late = self.began + deadline <= context.now;
                if keeper.is_formatted()
                    && (self.stage == Stage::Opening && late || self.stage == Stage::Stopped)
                {
                    self.give_up("its leg cannot be opened", context);
                }
            }
            Err(_) => self.give_up("its leg cannot be used", context),
        }
        match self.stage {
            Stage::Opening | Stage::Rebarring => self.drive_opening(keeper, context),
            Stage::Serving => {
                if self.volumes.iter().any(|volume| !volume.record_is_told)
                    && keeper.usable().is_ok()
                {
                    self.tell_records(keeper, context);
                }
                self.drive_peer(keeper, context);
                self.drive_copier(keeper, context);
                self.drive_checks(keeper, context);
            }
            // Whether the other side could take over shows when it takes a token.
            Stage::Stopped => self.drive_peer(keeper, context),
        }
    }

    fn reopen(&mut self, context: &mut Context<'_>) {
        self.stage = Stage::Opening;
        self.began = context.now;
        self.bar = None;
        self.barring = None;
        self.barring_since = None;
        self.confirmed = false;
        self.reopen_at = None;
        self.volumes.iter_mut().for_each(|volume| volume.record_is_told = false);
        self.give_back_puts(context);
        self.lose_peer_bar(context);
        if let Some(peer) = &mut self.peer {
            peer.unready_since = None;
        }
    }

    /// A hand-over takes this side out, so it is asked for only while the other side's legs are
    /// known to be whole, by the token that they hold: a leg that fails here may be back sooner than
    /// a node that died there, and a memory that was lost never is.
    fn other_can_own(&self, context: &Context<'_>) -> bool {
        let peer = self.peer.as_ref().filter(|peer| peer.is_in_sync() && !peer.is_leaving());
        peer.is_some_and(|peer| peer.is_ready() && context.channel_is_up(peer.node))
    }

    /// The own leg failed: let the other in-sync side own.
    pub(crate) fn give_up(&mut self, cause: &str, context: &mut Context<'_>) {
        let other_can = self.other_can_own(context);
        if other_can && self.hand_over.again(context.now, context.times.escalation_retry_ms) {
            context.escalate(Escalation::HandOver {
                group: self.group,
                epoch: self.epoch,
                cause: cause.to_owned(),
            });
        }
        if self.stage != Stage::Stopped {
            self.reopen_at = Some(context.after_ms(REOPEN_MS));
        }
        self.stage = Stage::Stopped;
        self.tell(if other_can { Access::Transition } else { Access::Inaccessible }, context);
    }

    fn drive_opening(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        if self.stage == Stage::Opening {
            self.tell(Access::Transition, context);
        }
        if keeper.usable().is_err() {
            return;
        }
        if self.stage == Stage::Opening
            && keeper.is_joining(self.epoch)
            && !mutant::is_active(Mutant::JoiningForgotten)
            && let Some(peer) = &mut self.peer
        {
            peer.resume_joining();
        }
        let may_bar = self.bar_retry.is_none_or(|at| at <= context.now);
        if self.bar.is_none() && self.barring.is_none() && may_bar {
            // From here on no reply to a grant leaves this node without naming the group.
            context.grants.revoke(self.group);
            let session = context.out.next_session();
            self.barring = Some(session);
            self.barring_since.get_or_insert(context.now);
            let token = Token { epoch: self.epoch, incarnation: context.incarnation, session };
            let client = Client::Owner(self.life, OwnerCall::Bar(session));
            keeper.bar(token, context.me, client, context.out);
        }
        self.drive_peer(keeper, context);
        let peer_ready = self.peer.as_ref().is_none_or(|peer| !peer.counts() || peer.is_ready());
        if self.bar.is_some() && peer_ready && self.may_start(context) {
            self.serve(keeper, context);
        }
    }

    /// Rules 6, 7 and 9 for an owner that starts; one that continues may at once.
    fn may_start(&mut self, context: &mut Context<'_>) -> bool {
        if self.stage == Stage::Rebarring {
            return true;
        }
        let alone = self.peer.as_ref().is_none_or(|peer| !peer.counts());
        if !alone {
            // The peer's word may have been long on its way: another may own since.
            return self.has_lease(context);
        }
        if !self.confirmed && self.confirm.again(context.now, context.times.escalation_retry_ms) {
            context.escalate(Escalation::ConfirmOwner {
                group: self.group,
                epoch: self.epoch,
                incarnation: context.incarnation,
            });
        }
        let lapsed = self.lease_wait.is_none_or(|until| until <= context.now)
            || mutant::is_active(Mutant::NoLeaseWait);
        let confirmed = self.confirmed || mutant::is_active(Mutant::StartUnconfirmed);
        confirmed && lapsed
    }

    /// The own keeper took the token, or not.
    pub(crate) fn barred(
        &mut self,
        session: u64,
        result: Result<Bar, LegFault>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        if self.barring != Some(session) {
            return;
        }
        let expected = keeper.held().epoch == self.epoch;
        self.barring = None;
        match result {
            Ok(bar) if expected => {
                self.bar = Some(bar);
                self.barring_since = None;
                self.barred_ms = self.elapsed_ms(context.now);
                // Whoever may have owned before and does not take the new token.
                let peer = self.peer.as_ref();
                let mut old_owners = self.barred_for.clone();
                old_owners.remove(&context.me);
                match peer {
                    Some(peer) if peer.counts() => old_owners.remove(&peer.node),
                    Some(peer) => old_owners.insert(peer.node),
                    None => false,
                };
                let waits = old_owners
                    .iter()
                    .map(|node| context.grants.run_out(*node, context.times))
                    .chain([context.grants.start_run_out(context.times)]);
                self.lease_wait = waits.max();
                self.lease_wait_ms =
                    self.lease_wait.map_or(0, |until| to_ms(until.saturating_sub(context.now)));
            }
            // Replaced by a newer epoch's, or the leg failed: `drive` asks again or gives up.
            Ok(_) | Err(_) => self.bar_retry = Some(context.after_ms(BAR_RETRY_MS)),
        }
        self.drive(keeper, context);
    }

    pub(crate) fn confirmed(
        &mut self,
        incarnation: u64,
        epoch: Epoch,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        if epoch == self.epoch && incarnation == context.incarnation {
            self.confirmed = true;
            self.drive(keeper, context);
        }
    }

    fn serve(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        if self.stage == Stage::Opening {
            self.report = Some(OpeningReport {
                barred_ms: self.barred_ms,
                lease_wait_ms: self.lease_wait_ms,
                serving_ms: self.elapsed_ms(context.now),
                first_io_ms: None,
            });
        }
        self.stage = Stage::Serving;
        self.tell_records(keeper, context);
        if !self.is_cut_off {
            self.tell(Access::Optimized, context);
        }
        self.restart_deadlines(context.now);
        self.restart_record_deadlines(context.now);
        self.peer_opened(keeper, context);
        self.mend_lost(keeper);
        self.drive_peer(keeper, context);
        self.retry_works(keeper, context);
        self.drive_copier(keeper, context);
    }

    /// Notes that a request of a host was answered well.
    pub(crate) fn served_one(&mut self, now: Duration) {
        self.last_io = Some(now);
        let elapsed = self.elapsed_ms(now);
        if let Some(report) = &mut self.report {
            report.first_io_ms.get_or_insert(elapsed);
        }
    }

    fn elapsed_ms(&self, now: Duration) -> u64 {
        to_ms(now.saturating_sub(self.began))
    }

    /// Times that pass: deadlines of the peer, of held requests, of leases.
    pub(crate) fn tick(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        self.check_peer_deadlines(context);
        self.check_own_deadlines(context);
        self.check_cut_off(context);
        self.check_held(keeper, context);
        self.yield_to_hosts(keeper, context);
        self.ask_join(keeper, context);
        self.drive(keeper, context);
        self.retry_works(keeper, context);
        self.report_checks(context);
        self.wake_records();
    }

    /// An owner that hears neither its peer nor the log may have been replaced, and cannot know: hosts
    /// are sent to the other path at once, and come back if this one may serve after all. Nothing
    /// else changes: what is under way goes on as before.
    fn check_cut_off(&mut self, context: &mut Context<'_>) {
        let able = match self.stage {
            Stage::Serving => self.lease_is_valid(context),
            Stage::Rebarring => false,
            Stage::Opening | Stage::Stopped => {
                self.unable_since = None;
                self.is_cut_off = false;
                return;
            }
        };
        if able {
            self.unable_since = None;
            if std::mem::take(&mut self.is_cut_off) {
                self.tell(Access::Optimized, context);
            }
            return;
        }
        let since = *self.unable_since.get_or_insert(context.now);
        if !self.is_cut_off
            && since + Duration::from_millis(context.times.cut_off_ms) <= context.now
        {
            self.is_cut_off = true;
            self.tell(Access::CutOff, context);
        }
    }

    /// The own leg keeps requests, or the token, waiting beyond the deadline: another side can do
    /// better.
    fn check_own_deadlines(&mut self, context: &mut Context<'_>) {
        if !self.other_can_own(context) || self.stage == Stage::Stopped {
            return;
        }
        let deadline = Duration::from_millis(context.times.leg_deadline_ms);
        let late = self.barring_since.is_some_and(|since| since + deadline <= context.now);
        if late || self.own_leg_is_late(context.now, deadline) {
            self.give_up("its leg does not answer", context);
        }
    }

    pub(crate) fn next_deadline(&self, context_now: Duration) -> Option<Duration> {
        let busy = self.stage != Stage::Serving
            || self.unable_since.is_some()
            || self.works.len() > 0
            || !self.records.is_empty()
            || self.peer.as_ref().is_some_and(Peer::is_busy)
            || self.copier.is_some();
        let soon = busy.then(|| context_now + Duration::from_millis(20));
        let wait =
            self.lease_wait.filter(|until| self.stage == Stage::Opening && *until > context_now);
        let reopen = self.reopen_at.filter(|at| *at > context_now);
        let retry =
            self.peer.as_ref().and_then(|peer| peer.retry_at).filter(|at| *at > context_now);
        let checks = self.checks.next_deadline(context_now);
        [soon, wait, reopen, retry, checks].into_iter().flatten().min()
    }

    // --- what others see

    pub(crate) fn role(&self) -> GroupRole {
        match self.stage {
            Stage::Opening => GroupRole::Opening,
            Stage::Rebarring => GroupRole::Holding,
            Stage::Serving if self.peer.as_ref().is_some_and(Peer::is_leaving) => {
                GroupRole::Holding
            }
            Stage::Serving => GroupRole::Serving,
            Stage::Stopped => GroupRole::Stopped,
        }
    }

    pub(crate) fn opening(&self) -> Option<OpeningReport> {
        self.report
    }

    pub(crate) fn verify(&self) -> Option<VerifyProgress> {
        self.checks.progress(self, self.may_check())
    }

    pub(crate) fn resync(&self) -> Option<ResyncProgress> {
        let peer = self
            .peer
            .as_ref()
            .filter(|peer| matches!(peer.role, Role::Resync | Role::Joining { .. }))?;
        self.copier.as_ref().map(|copier| copier.progress(peer.site))
    }
}

pub(crate) fn to_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

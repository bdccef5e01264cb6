//! The site watcher: turns silence and signals into commands, by the policies.
//!
//! [`Watcher::assess`] decides, purely: a state, what nodes say, the time in, proposals out. The
//! log stays the arbiter: a proposal that comes late or twice is refused there.
//!
//! ```text
//! all nodes of a site silent ─▶ ReportSiteCondition{Lost} ─┐   hold-down, other sides attest
//! signal PowerLost, Fire … (API) ──────────────────────────┼─▶ FailOverSite ─▶ RecordFailover
//! a node silent, its siblings heard: only its own groups ──┘
//! a node of a lost site is heard again ─▶ ReportSiteCondition{Normal}
//! preferred site in sync again, policy says so ─▶ MoveOwner
//! a comparison of legs due by the schedule ─▶ VerifyVolume
//! ```

pub(crate) mod lease;
mod loss;
mod measure;
mod scrub;
#[cfg(test)]
mod tests;

use crate::api::App;
use crate::domain::State;
use crate::domain::state::Group;
use crate::observed::{Nodes, Observed, ObservedNode};
use crate::secrets::Purpose;
use crate::service::{Context, Done, FailoverCommitted, Service, unix_ms};
use lease::{Claim, Lease};
use loss::{Leaving, Presence, first_sign_of};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;
use voute_events::{Exchange, Topic};
use voute_schemas::command::{AttestedGroup, Command};
use voute_schemas::commit::Origin;
use voute_schemas::event::*;
use voute_schemas::ids::*;
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::times::Times;

/// How often the watcher looks when nothing changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Least time between two looks: many nodes report at once.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// A process that did not look for so long was not run: it was paused, or its machine was.
const STOPPED_FOR: Duration = Duration::from_secs(1);
/// From when they can be served on, nodes have this long to connect before they count as lost.
const SETTLING: Duration = Duration::from_secs(5);
/// How long the first sides that attest wait for the others, so that a site fails over as one.
const GATHER_WITHIN: Duration = Duration::from_millis(300);
/// A node and its sibling belong to one loss if less than this part of the silence lies between
/// their last words.
const ONE_LOSS_PART: u32 = 4;
/// After this long without an attestation, a loss is recorded with what stays behind.
const RECORD_STRANDED_AFTER: Duration = Duration::from_secs(10);
/// A refused proposal for a site is not repeated before this.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// A node must be back this long before groups move to it.
const FAILBACK_AFTER: Duration = Duration::from_secs(5);
/// A group that somebody asked to be elsewhere does not go back by itself before this, or a longer hold-down.
const LEFT_ALONE: Duration = Duration::from_secs(600);
/// A node's word holds for so many heartbeats.
const SPEAKS_WITHIN: u32 = 5;
/// How often failbacks and evacuations are looked for; they are not urgent.
const RARE_INTERVAL: Duration = Duration::from_secs(1);
/// Most planned moves proposed at one look.
const MOVES_MAX: usize = 64;

/// What the watcher asks for.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The command.
    pub command: Command,
    /// Why.
    pub reason: String,
    /// Joins the commits of one failover.
    pub correlation: Option<CorrelationId>,
}

/// The time, both ways.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Since the start of this process.
    pub since_start: Duration,
    /// Wall time, milliseconds since 1970.
    pub unix_ms: u64,
}

/// What the watcher remembers between two looks.
#[derive(Debug)]
pub struct Watcher {
    times: Times,
    /// Whether groups may move by themselves: not over a log that may forget what it acknowledged.
    pub may_act: bool,
    /// Whether this process is the one that watches.
    pub watches: bool,
    sites: BTreeMap<SiteId, Watched>,
    pub(crate) failovers: BTreeMap<FailoverId, measure::UnderWay>,
    rare_at: Duration,
    /// Since when this process can serve nodes, so that they can be heard at all.
    pub(crate) serves_since: Duration,
}

/// What it remembers of a site.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    /// When the first group of the site could move.
    gathering_since: Option<Duration>,
    /// No proposal before this.
    not_before: Duration,
    /// Joins what is committed because of one loss.
    correlation: Option<CorrelationId>,
    /// Whether a loss without any move was proposed for recording.
    stranded_recorded: bool,
}

impl Watcher {
    /// Begins to watch.
    #[must_use]
    pub fn new(times: Times) -> Self {
        Watcher {
            times,
            may_act: true,
            watches: true,
            sites: BTreeMap::new(),
            failovers: BTreeMap::new(),
            rare_at: Duration::ZERO,
            serves_since: Duration::ZERO,
        }
    }

    /// What should be asked for now.
    pub fn assess(&mut self, state: &State, nodes: &Nodes, now: Now) -> Vec<Proposal> {
        let mut proposals = Vec::new();
        self.sites.retain(|site, _| state.site(*site).is_some());
        for (id, site) in state.sites() {
            if site.kind == SiteKind::Data && self.watches {
                self.assess_site(state, nodes, (id, site), now, &mut proposals);
            }
        }
        proposals.extend(self.measure(state, nodes, now));
        if now.since_start >= self.rare_at {
            self.rare_at = now.since_start + RARE_INTERVAL;
            if self.may_act && self.watches {
                proposals.extend(self.failbacks(state, nodes, now));
                proposals.extend(scrub::due(state, now));
            }
        }
        proposals
    }

    /// A proposal for this site was refused: what it was based on will change, or not.
    pub fn refused(&mut self, site: SiteId, now: Duration) {
        self.sites.entry(site).or_default().not_before = now + REFUSED_PAUSE;
    }

    /// How many nodes are heard.
    fn hears(&self, state: &State, nodes: &Nodes, now: Duration) -> u32 {
        let is_heard =
            |node: &NodeId| nodes.get(node).is_some_and(|node| node.is_heard(now, self.silence()));
        let heard = state.nodes().filter(|(node, _)| is_heard(node)).count();
        u32::try_from(heard).unwrap_or(u32::MAX)
    }

    fn silence(&self) -> Duration {
        Duration::from_millis(self.times.node_silence_ms)
    }

    fn assess_site(
        &mut self,
        state: &State,
        nodes: &Nodes,
        (id, site): (SiteId, &crate::domain::state::Site),
        now: Now,
        proposals: &mut Vec<Proposal>,
    ) {
        let presence =
            Presence::of((state, nodes), id, (self.silence(), self.serves_since), now.since_start);
        let apart = self.silence() / ONE_LOSS_PART;
        let watched = self.sites.entry(id).or_default();
        if now.since_start < watched.not_before {
            return;
        }
        match (site.condition, presence.site_silent_for()) {
            (SiteCondition::Normal | SiteCondition::LinkDegraded, Some(silent_for)) => {
                let correlation = *watched.correlation.get_or_insert_with(CorrelationId::generate);
                watched.gathering_since = None;
                proposals.push(lost(id, silent_for, correlation));
                return;
            }
            (SiteCondition::Lost, None)
                if site.source == ConditionSource::Watcher && presence.is_heard() =>
            {
                proposals.push(back(id, watched.correlation));
                *watched = Watched::default();
                return;
            }
            (SiteCondition::Normal, None) if presence.is_complete() => {
                *watched = Watched::default();
            }
            _ => {}
        }
        let Some(leaving) = leaving(site, &presence, apart).filter(|_| self.may_act) else {
            watched.gathering_since = None;
            return;
        };
        proposals.extend(self.fail_over(state, nodes, id, &leaving, now));
        if leaving == Leaving::Signal {
            proposals.extend(self.evacuate(state, nodes, id, now));
        }
    }

    /// One commit that moves all groups whose policy says so, once their other sides attest.
    fn fail_over(
        &mut self,
        state: &State,
        nodes: &Nodes,
        site: SiteId,
        leaving: &Leaving,
        now: Now,
    ) -> Option<Proposal> {
        let wanted = |group: &Group| leaving.lets(state, group);
        let (times, since_start) = (&self.times, now.since_start);
        let speaks = |node: &ObservedNode| speaks(node, times, since_start);
        let mut attested = attested(state, nodes, site, speaks, wanted);
        let signalled = *leaving == Leaving::Signal;
        attested.retain(|group| can_take_over(state, group, signalled));
        let expected = expected(state, nodes, site, self.silence(), now.since_start, wanted);
        let watched = self.sites.entry(site).or_default();
        if attested.is_empty() {
            watched.gathering_since = None;
            let stranded = matches!(leaving, Leaving::Site { silent_for } if *silent_for >= RECORD_STRANDED_AFTER);
            let owns = state.nodes().any(|(node, it)| {
                it.site == site
                    && state
                        .groups_of_node(node)
                        .any(|(_, group)| group.owner == node && wanted(group))
            });
            if !stranded || !owns || std::mem::replace(&mut watched.stranded_recorded, true) {
                return None;
            }
        } else {
            let since = *watched.gathering_since.get_or_insert(now.since_start);
            if attested.len() < expected && now.since_start - since < GATHER_WITHIN {
                return None;
            }
            watched.gathering_since = None;
        }
        let correlation = *watched.correlation.get_or_insert_with(CorrelationId::generate);
        let failover = FailoverId::generate();
        let evidence = evidence(state, nodes, site, leaving, now);
        let reason = format!("policy: {}", evidence.observed);
        let command = Command::FailOverSite { failover, site, evidence, attested };
        Some(Proposal { command, reason, correlation: Some(correlation) })
    }

    /// Planned moves away from a site that is going but whose nodes still serve: nothing is lost.
    fn evacuate(&self, state: &State, nodes: &Nodes, site: SiteId, now: Now) -> Vec<Proposal> {
        let is_served = |id: GroupId, group: &Group| {
            let owner = nodes.get(&group.owner);
            let heard_here = owner.is_some_and(|it| it.is_heard(now.since_start, self.silence()));
            heard_here && !others_hear_nothing(nodes, id, group)
        };
        owned_at(state, site)
            .filter(|(id, group)| Leaving::Signal.lets(state, group) && is_served(*id, group))
            .filter_map(|(id, group)| {
                let other = ready_side(state, nodes, id, group, self.silence(), now.since_start)?;
                Some(planned_move(id, other, "policy: its site is going, its node still serves"))
            })
            .take(MOVES_MAX)
            .collect()
    }

    /// Planned moves to preferred sites, where policies ask for it.
    fn failbacks(&self, state: &State, nodes: &Nodes, now: Now) -> Vec<Proposal> {
        let preferred = |policy: PolicyId| {
            let rules = &state.policy(policy)?.rules;
            let site = rules.preferred_site.filter(|_| rules.failback)?;
            let is_normal = state.site(site)?.condition == SiteCondition::Normal;
            is_normal.then_some((site, Duration::from_millis(rules.hold_down_ms)))
        };
        let any_policy = state.policies().any(|(id, _)| preferred(id).is_some());
        if !any_policy {
            return Vec::new();
        }
        state
            .groups()
            .filter_map(|(id, group)| {
                let (site, hold_down) = preferred(group.policy?)?;
                let is_away = group.owner_side()?.site != site && group.is_whole();
                let back = is_away.then(|| nodes.get(&group.side(site)?.node))??;
                let stable = now.since_start.checked_sub(back.connected_since?)?;
                let left_alone_ms = milliseconds(LEFT_ALONE.max(hold_down));
                let was_asked = group.moved_when_asked
                    && group
                        .owner_since_unix_ms
                        .is_some_and(|at| at.abs_diff(now.unix_ms) < left_alone_ms);
                let ready = ready_side(state, nodes, id, group, self.silence(), now.since_start)?;
                let may = ready == site && !was_asked && stable >= FAILBACK_AFTER.max(hold_down);
                may.then(|| planned_move(id, site, "policy: its preferred site is in sync again"))
            })
            .take(MOVES_MAX)
            .collect()
    }
}

fn lost(site: SiteId, silent_for: Duration, correlation: CorrelationId) -> Proposal {
    let detail =
        format!("all its nodes are silent, {} ms beyond detection", milliseconds(silent_for));
    Proposal {
        reason: detail.clone(),
        command: Command::ReportSiteCondition {
            site,
            condition: SiteCondition::Lost,
            source: ConditionSource::Watcher,
            detail,
        },
        correlation: Some(correlation),
    }
}

fn back(site: SiteId, correlation: Option<CorrelationId>) -> Proposal {
    let detail = "a node of it is heard again".to_owned();
    Proposal {
        reason: detail.clone(),
        command: Command::ReportSiteCondition {
            site,
            condition: SiteCondition::Normal,
            source: ConditionSource::Watcher,
            detail,
        },
        correlation,
    }
}

fn planned_move(group: GroupId, to: SiteId, reason: &str) -> Proposal {
    let command = Command::MoveOwner { group, to };
    Proposal { command, reason: reason.to_owned(), correlation: None }
}

fn leaving(
    site: &crate::domain::state::Site,
    presence: &Presence,
    apart: Duration,
) -> Option<Leaving> {
    let of_nodes = || {
        let silent = presence.silent_nodes(apart);
        (!silent.is_empty()).then_some(Leaving::Nodes { silent })
    };
    match (site.condition, site.source) {
        (
            SiteCondition::PowerLost | SiteCondition::Fire | SiteCondition::CoolingLost,
            ConditionSource::Signal,
        ) => Some(Leaving::Signal),
        (SiteCondition::Lost, _) => match presence.site_silent_for() {
            Some(silent_for) => Some(Leaving::Site { silent_for }),
            None => of_nodes(),
        },
        (SiteCondition::Normal | SiteCondition::LinkDegraded, _) => of_nodes(),
        // Whoever maintains a site ends nodes there on purpose.
        (SiteCondition::Maintenance, _)
        | (
            SiteCondition::PowerLost | SiteCondition::Fire | SiteCondition::CoolingLost,
            ConditionSource::Watcher,
        ) => None,
    }
}

fn owned_at(state: &State, site: SiteId) -> impl Iterator<Item = (GroupId, &Group)> {
    state
        .nodes()
        .filter(move |(_, node)| node.site == site)
        .flat_map(|(node, _)| state.groups_of_node(node).filter(move |(_, it)| it.owner == node))
}

/// Whether what a node said of its groups still holds: it was said by a process that lives, and not
/// long ago. The memory of one that ended vouches for nothing.
#[must_use]
pub fn speaks(node: &ObservedNode, times: &Times, now: Duration) -> bool {
    let fresh = Duration::from_millis(times.heartbeat_ms) * SPEAKS_WITHIN;
    node.connected_since.is_some() && node.so_since.is_some_and(|so| now.saturating_sub(so) < fresh)
}

/// Groups that a site owns and whose other, in-sync sides say what they can vouch for, at the
/// group's present epoch. `speaks`: whose word still holds.
pub(crate) fn attested(
    state: &State,
    nodes: &Nodes,
    site: SiteId,
    speaks: impl Fn(&ObservedNode) -> bool,
    wanted: impl Fn(&Group) -> bool,
) -> Vec<AttestedGroup> {
    let attest = |(id, group): (GroupId, &Group)| {
        let promotes = mutant::is_active(Mutant::StaleSidePromoted);
        let mut sides = group.sides.iter();
        let other = sides.find(|side| side.site != site && (side.in_sync || promotes))?;
        let node = nodes.get(&other.node).filter(|node| speaks(node))?;
        let status = node.groups.get(&id)?;
        let attestation = status.attestation.filter(|_| status.epoch == group.epoch)?;
        Some(AttestedGroup { group: id, epoch: group.epoch, to: other.node, attestation })
    };
    owned_at(state, site).filter(|(_, group)| wanted(group)).filter_map(attest).collect()
}

fn can_take_over(state: &State, attested: &AttestedGroup, signalled: bool) -> bool {
    let is_formatted = state.group(attested.group).is_some_and(|group| {
        let side = group.side_of(attested.to);
        side.is_some_and(|side| state.side_is_formatted(group, side.site))
    });
    let Attestation { legs_open, owner_silent, lease_expired, silent_ms: _ } = attested.attestation;
    is_formatted && legs_open && owner_silent && (lease_expired || signalled)
        || is_formatted && mutant::is_active(Mutant::AttestationUnread)
}

/// Whether a side that does not own a group says that it hears no owner.
fn others_hear_nothing(nodes: &Nodes, id: GroupId, group: &Group) -> bool {
    let others = group.sides.iter().filter(|side| side.node != group.owner);
    others
        .filter_map(|side| nodes.get(&side.node)?.groups.get(&id)?.attestation)
        .any(|attestation| attestation.owner_silent)
}

/// How many groups may be expected to attest soon: their other side is in sync and heard.
fn expected(
    state: &State,
    nodes: &Nodes,
    site: SiteId,
    silence: Duration,
    now: Duration,
    wanted: impl Fn(&Group) -> bool,
) -> usize {
    let may_attest = |group: &Group| {
        group.sides.iter().any(|side| {
            let node = nodes.get(&side.node);
            side.site != site && side.in_sync && node.is_some_and(|it| it.is_heard(now, silence))
        })
    };
    owned_at(state, site).filter(|(_, group)| wanted(group) && may_attest(group)).count()
}

/// The site of a group's other side, if it could become owner by a planned move.
fn ready_side(
    state: &State,
    nodes: &Nodes,
    id: GroupId,
    group: &Group,
    silence: Duration,
    now: Duration,
) -> Option<SiteId> {
    let other = group.sides.iter().find(|side| side.node != group.owner && side.in_sync)?;
    let node = nodes.get(&other.node).filter(|node| node.is_heard(now, silence))?;
    let obeys = node.groups.get(&id).is_some_and(|status| status.epoch == group.epoch);
    (obeys && state.side_is_formatted(group, other.site)).then_some(other.site)
}

/// The first sign that a site may be lost.
pub(crate) fn first_sign(state: &State, nodes: &Nodes, site: SiteId) -> Option<Duration> {
    let of_site = state.nodes().filter(|(_, node)| node.site == site).map(|(id, _)| id);
    first_sign_of(state, nodes, of_site)
}

fn evidence(
    state: &State,
    nodes: &Nodes,
    site: SiteId,
    leaving: &Leaving,
    now: Now,
) -> FailoverEvidence {
    let known = state.site(site);
    let sign = match leaving {
        Leaving::Nodes { silent } => first_sign_of(state, nodes, silent.keys().copied()),
        Leaving::Site { .. } | Leaving::Signal => first_sign(state, nodes, site),
    };
    let sign_age = milliseconds(now.since_start.saturating_sub(sign.unwrap_or(now.since_start)));
    let detail = known.map(|site| site.detail.clone()).unwrap_or_default();
    let observed = match leaving {
        Leaving::Site { .. } => {
            format!(
                "all nodes of the site silent, first sign {sign_age} ms ago; other sides heard no owner"
            )
        }
        Leaving::Nodes { silent } => format!(
            "node {} silent, first sign {sign_age} ms ago, its site not lost: siblings are heard; other sides heard no owner",
            names(state, silent.keys().copied())
        ),
        Leaving::Signal => format!("signal from outside: {detail}"),
    };
    FailoverEvidence {
        condition: known.map_or(SiteCondition::Lost, |site| site.condition),
        observed,
        first_sign_unix_ms: now.unix_ms.saturating_sub(sign_age),
        decided_unix_ms: now.unix_ms,
        left_behind: vec![],
        left_behind_total: 0,
    }
}

fn names(state: &State, nodes: impl Iterator<Item = NodeId>) -> String {
    let name = |id| state.node(id).map(|node| node.name.to_string());
    nodes.filter_map(name).collect::<Vec<_>>().join(", ")
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Watches until told to stop, whenever this process holds the lease.
pub(crate) async fn run(app: App, exchange: Exchange, mut stop: watch::Receiver<bool>) {
    let App { service, observed, safety, .. } = &app;
    let mut watcher = Watcher::new(app.times);
    let mut head = service.head();
    let mut claims = exchange.listen(Topic::Watch);
    let mut lease = Lease::new(Uuid::now_v7(), exchange.is_alone(), observed.now());
    let mut looked_at = observed.now();
    // What nodes said while this process was not run is still to be read: they are not silent.
    let mut settles_until = Duration::ZERO;
    while !*stop.borrow() {
        let now = observed.now();
        if now - std::mem::replace(&mut looked_at, now) > STOPPED_FOR {
            tracing::warn!(
                "this process was not run for a while; it listens before it judges who is lost"
            );
            settles_until = now + watcher.silence();
        }
        let state = service.state();
        let hears = watcher.hears(&state, &observed.nodes(), now);
        // Who hears nobody at all is cut off itself: it would call everyone lost.
        let is_deaf =
            hears == 0 && state.nodes().any(|(node, _)| loss::holds_devices(&state, node));
        let is_fit = service.condition().borrow().trouble().is_none() && !is_deaf;
        lease.hears(hears);
        // Until nodes can be served, that they do not come says nothing.
        if crate::stream::cannot_serve(&app).is_some() {
            watcher.serves_since = now;
        }
        let reasons = safety.borrow().reasons.clone();
        watcher.may_act = reasons.is_empty();
        lease.is_hindered(&reasons);
        let (watches, claim) = lease.look(is_fit, now);
        say(&app, &exchange, claim).await;
        app.watch_holder.send_replace(lease.holder(now));
        let watches = watches && now >= settles_until;
        if std::mem::replace(&mut watcher.watches, watches) != watches {
            tracing::info!(watches, "the watch over the sites");
            app.watches.send_replace(watches);
        }
        for FailoverCommitted { sequence, events, took } in service.take_unmeasured() {
            watcher.committed(&events, sequence, took, observed.now());
        }
        for proposal in look(&mut watcher, service, observed) {
            let mut proposing = std::pin::pin!(propose(service, proposal));
            // The lease is kept while an answer is waited for.
            let refused = loop {
                tokio::select! {
                    refused = &mut proposing => break refused,
                    message = claims.next() => heard(&app, &mut lease, &message, observed.now()),
                    () = tokio::time::sleep(lease::RENEW_EVERY) => {
                        looked_at = observed.now();
                        let (_, claim) = lease.look(true, looked_at);
                        say(&app, &exchange, claim).await;
                        // An answer that does not come in time will not be the last.
                        if !exchange.is_alone() && service.condition().borrow().trouble().is_some() {
                            break None;
                        }
                    }
                }
            };
            if let Some(site) = refused {
                watcher.refused(site, observed.now());
            }
        }
        let something = async {
            tokio::select! {
                () = observed.changed() => {}
                _ = head.changed() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        };
        let mut something = std::pin::pin!(something);
        loop {
            tokio::select! {
                () = &mut something => break,
                message = claims.next() => heard(&app, &mut lease, &message, observed.now()),
                _ = stop.changed() => return,
            }
        }
    }
}

/// Says a claim, sealed: whoever may only speak on the exchange could keep everyone from watching.
async fn say(app: &App, exchange: &Exchange, claim: Option<Claim>) {
    let Some(claim) = claim else { return };
    let said = postcard::to_stdvec(&claim).expect("plain fields serialise");
    match app.secrets.seal(Purpose::Watch, &said) {
        Ok(sealed) => exchange.say(Topic::Watch, sealed).await,
        Err(error) => tracing::error!(%error, "others are not told who watches"),
    }
}

fn heard(app: &App, lease: &mut Lease, message: &[u8], now: Duration) {
    let claim = app.secrets.unseal(Purpose::Watch, message);
    match claim.and_then(|claim| postcard::from_bytes(&claim).ok()) {
        Some(claim) => lease.heard(claim, now),
        None => tracing::debug!("a message about the watch is of no process of this cluster"),
    }
}

fn look(watcher: &mut Watcher, service: &Service, observed: &Observed) -> Vec<Proposal> {
    let state = service.state();
    let now = Now { since_start: observed.now(), unix_ms: unix_ms() };
    let nodes = observed.nodes();
    watcher.assess(&state, &nodes, now)
}

/// The site whose proposal was refused.
async fn propose(service: &Service, proposal: Proposal) -> Option<SiteId> {
    let mut context = Context::system(Origin::Policy, proposal.reason);
    if let Some(correlation) = proposal.correlation {
        context.correlation = correlation;
    }
    let site = match &proposal.command {
        Command::FailOverSite { site, .. } | Command::ReportSiteCondition { site, .. } => {
            Some(*site)
        }
        _ => None,
    };
    let name = proposal.command.name();
    match service.submit(proposal.command, context).await {
        Ok(Done::Committed { position, .. }) => {
            tracing::info!(command = name, sequence = position.sequence.0, "the watcher acted");
        }
        Ok(Done::Refused { message, .. }) => {
            tracing::info!(command = name, message, "the watcher was refused");
            return site;
        }
        Ok(other) => tracing::error!(command = name, ?other, "the watcher got a strange answer"),
        Err(error) => tracing::warn!(command = name, %error, "the watcher got no answer"),
    }
    None
}

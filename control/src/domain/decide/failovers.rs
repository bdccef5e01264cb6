//! Moves of owners: planned ones, and those of a whole site.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use voute_schemas::command::AttestedGroup;
use voute_schemas::event::*;
use voute_schemas::mutant::{self, Mutant};

/// Most moves of one commit, so that it stays under its size limit: what is left is named as left
/// behind, and moves when the command is given again.
pub(super) const MOVES_MAX: usize = 10_000;
/// Most groups that are named as left behind; the others are counted.
const LEFT_BEHIND_NAMED_MAX: usize = 100;

pub(super) fn move_owner(state: &State, id: GroupId, to: SiteId) -> Result<Vec<Event>, Refusal> {
    let group = known_group(state, id)?;
    let site = known_site(state, to)?.name.clone();
    let Some(side) = group.side(to) else {
        return Err(Refusal::NoSuchSide { group: id, site });
    };
    if side.node == group.owner {
        return Err(Refusal::AlreadyOwner { group: id, site });
    }
    if !side.in_sync && !mutant::is_active(Mutant::MovesToStaleSides) {
        return Err(Refusal::NotInSync { group: id, site });
    }
    if !state.side_is_formatted(group, to) {
        return Err(Refusal::NotFormatted { group: id, site });
    }
    let kind = MoveKind::Planned;
    Ok(vec![Event::OwnerMoved { group: id, from: group.owner, to: side.node, kind }])
}

/// Moves every group that the site owns and that its other side attested. When none can, that is
/// recorded once per reported condition of the site. Of a site that is not lost, only the nodes
/// that own an attested group are left.
pub(super) fn fail_over_site(
    state: &State,
    failover: FailoverId,
    site_id: SiteId,
    evidence: &FailoverEvidence,
    attested: &[AttestedGroup],
) -> Result<Vec<Event>, Refusal> {
    let site = known_site(state, site_id)?;
    if state.failover(failover).is_some() {
        return Err(Refusal::DuplicateId { noun: Noun::Failover, id: failover.0 });
    }
    let signalled = is_signalled(site, evidence.condition);
    let attested: BTreeMap<GroupId, &AttestedGroup> =
        attested.iter().map(|attested| (attested.group, attested)).collect();
    let left = nodes_left(state, evidence.condition, &attested);
    let (mut moves, mut left_behind) = (Vec::new(), Vec::new());
    for (id, group) in owned_at(state, site_id) {
        if left.as_ref().is_some_and(|left| !left.contains(&group.owner)) {
            continue;
        }
        let takeover = takeover(state, group, site_id, attested.get(&id).copied(), signalled);
        match takeover {
            Ok(_) if moves.len() >= MOVES_MAX => {
                let cause = format!("one commit takes at most {MOVES_MAX} moves; ask again");
                left_behind.push(LeftBehind { group: id, cause });
            }
            Ok((to, attestation)) => {
                let kind = MoveKind::Unplanned { attestation };
                moves.push(Event::OwnerMoved { group: id, from: group.owner, to, kind });
            }
            Err(cause) => left_behind.push(LeftBehind { group: id, cause: cause.to_string() }),
        }
    }
    if moves.is_empty() {
        must_be_worth_recording(site, &left_behind)?;
    }
    let evidence = completed(evidence, left_behind);
    let mut events = vec![Event::FailoverDecided { failover, site: site_id, evidence }];
    events.extend(moves);
    Ok(events)
}

pub(super) fn record(
    state: &State,
    id: FailoverId,
    phases: FailoverPhases,
) -> Result<Vec<Event>, Refusal> {
    if known_failover(state, id)?.phases.is_some() {
        let what = format!("the phases of failover {id} were recorded already");
        return Err(Refusal::Unchanged { what });
    }
    Ok(vec![Event::FailoverMeasured { failover: id, phases }])
}

/// Why a group cannot be taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum NoTakeover {
    #[error("it has no other side")]
    NoOtherSide,
    #[error("its other side is not in sync")]
    NotInSync,
    #[error("the legs of its other side are not all formatted")]
    NotFormatted,
    #[error("its other side did not attest, or its policy forbids")]
    NotAttested,
    #[error("its other side attested at another epoch")]
    OtherEpoch,
    #[error("the attestation is not by its other side")]
    OtherNode,
    #[error("the legs of its other side are not open")]
    LegsClosed,
    #[error("its other side still hears the owner")]
    OwnerHeard,
    #[error("the lease that its other side granted has not run out")]
    LeaseRuns,
}

fn takeover(
    state: &State,
    group: &Group,
    left: SiteId,
    attested: Option<&AttestedGroup>,
    signalled: bool,
) -> Result<(NodeId, Attestation), NoTakeover> {
    let mut others = group.sides.iter().filter(|side| side.site != left).peekable();
    if others.peek().is_none() {
        return Err(NoTakeover::NoOtherSide);
    }
    let promotes = mutant::is_active(Mutant::StaleSidePromoted);
    let side = others.find(|side| side.in_sync || promotes).ok_or(NoTakeover::NotInSync)?;
    if !state.side_is_formatted(group, side.site) {
        return Err(NoTakeover::NotFormatted);
    }
    let attested = attested.ok_or(NoTakeover::NotAttested)?;
    let Attestation { legs_open, owner_silent, lease_expired, silent_ms: _ } = attested.attestation;
    if attested.epoch != group.epoch {
        return Err(NoTakeover::OtherEpoch);
    }
    if attested.to != side.node {
        return Err(NoTakeover::OtherNode);
    }
    if mutant::is_active(Mutant::AttestationUnread) {
        return Ok((side.node, attested.attestation));
    }
    if !legs_open {
        return Err(NoTakeover::LegsClosed);
    }
    if !owner_silent {
        return Err(NoTakeover::OwnerHeard);
    }
    if !lease_expired && !signalled {
        return Err(NoTakeover::LeaseRuns);
    }
    Ok((side.node, attested.attestation))
}

/// Whether a signal from outside, itself in the log, says that the site is going. Then the log need
/// not wait for the lease (the new owner still does).
fn is_signalled(site: &Site, condition: SiteCondition) -> bool {
    let from_outside = site.source == ConditionSource::Signal && site.condition == condition;
    match condition {
        SiteCondition::PowerLost
        | SiteCondition::Fire
        | SiteCondition::CoolingLost
        | SiteCondition::Maintenance => from_outside,
        SiteCondition::Normal | SiteCondition::Lost | SiteCondition::LinkDegraded => false,
    }
}

/// The nodes whose groups are to move, if not those of all nodes of the site: of a site that is not
/// lost, some attested groups name them. Who names none asks for the whole site.
fn nodes_left(
    state: &State,
    condition: SiteCondition,
    attested: &BTreeMap<GroupId, &AttestedGroup>,
) -> Option<BTreeSet<NodeId>> {
    match condition {
        SiteCondition::Normal | SiteCondition::LinkDegraded if !attested.is_empty() => {
            let owners = attested.keys().filter_map(|group| Some(state.group(*group)?.owner));
            Some(owners.collect())
        }
        SiteCondition::Normal
        | SiteCondition::LinkDegraded
        | SiteCondition::PowerLost
        | SiteCondition::Fire
        | SiteCondition::CoolingLost
        | SiteCondition::Maintenance
        | SiteCondition::Lost => None,
    }
}

fn owned_at(state: &State, site: SiteId) -> BTreeMap<GroupId, &Group> {
    state
        .nodes()
        .filter(|(_, node)| node.site == site)
        .flat_map(|(node, _)| state.groups_of_node(node).filter(move |(_, it)| it.owner == node))
        .collect()
}

fn must_be_worth_recording(site: &Site, left_behind: &[LeftBehind]) -> Result<(), Refusal> {
    let recorded = site.last_failover.is_some_and(|last| last >= site.condition_since);
    let why = match left_behind.first() {
        None => "it owns nothing that was to move".to_owned(),
        Some(first) if recorded => format!(
            "{} group(s) stay, e.g. {}, since {}; that was recorded already",
            left_behind.len(),
            first.group,
            first.cause
        ),
        Some(_) => return Ok(()),
    };
    Err(Refusal::NothingToMove { site: site.name.clone(), why })
}

fn completed(evidence: &FailoverEvidence, mut left_behind: Vec<LeftBehind>) -> FailoverEvidence {
    let left_behind_total = left_behind.len() as u64;
    left_behind.truncate(LEFT_BEHIND_NAMED_MAX);
    FailoverEvidence {
        observed: clipped(&evidence.observed, REASON_MAX),
        left_behind,
        left_behind_total,
        ..evidence.clone()
    }
}

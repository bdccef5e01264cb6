//! Whether a spec may be obeyed: signed by a majority of the log's sites, every authority in it
//! proven, and never older than, or another branch of, what was obeyed before (docs/mirror-rules.md
//! rule 12).

use crate::agent::memory::Trust;
use std::collections::HashMap;
use voute_events::checkpoint::{CheckpointError, ProofError, named_sites};
use voute_events::{VerifiedCheckpoint, verify, verify_commit};
use voute_schemas::contract::{GroupSpec, NodeSpec};
use voute_schemas::proof::{Checkpoint, HAND_OVERS_MAX, HandOver, Verifier};
use voute_schemas::{ClusterId, Epoch, Event, GroupId, NodeId, Sequence};

/// Why a spec is not obeyed.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("it comes from cluster {found}, this node belongs to {wanted}; check the control URLs")]
    OtherCluster { found: ClusterId, wanted: ClusterId },
    #[error("it speaks of log {found:?}, this node follows {wanted:?}; check the control URLs")]
    OtherLog { found: String, wanted: String },
    #[error(
        "it stands at commit {found}, this node has obeyed commit {obeyed}: that control process lags, another is tried"
    )]
    Older { found: Sequence, obeyed: Sequence },
    #[error(
        "ALARM: commit {sequence} has another hash than the one obeyed: the log was forked or replaced; nothing of that control process is obeyed, a person must look"
    )]
    Forked { sequence: Sequence },
    #[error("the first spec names no facts about the node")]
    NoFacts,
    #[error("it is for node {found}, this is {wanted}; check the node's id and secret")]
    OtherNode { found: NodeId, wanted: NodeId },
    #[error("its checkpoint is not to be believed: {0}")]
    Checkpoint(#[from] CheckpointError),
    #[error("a proof in it does not hold: {0}")]
    Proof(#[from] ProofError),
    #[error(
        "it names signers of the log to whom nobody handed over whom this node trusts; connect to a control process that was not away, or give the node its trust anew (guide, \"Log sites\")"
    )]
    SitesUnproven,
    #[error("it stands at commit {at}, which its checkpoint over {size} commits does not cover")]
    Nowhere { at: Sequence, size: u64 },
    #[error("it claims epoch {epoch} for group {group} without a commit that proves it")]
    Unproven { group: GroupId, epoch: Epoch },
    #[error("it contradicts commit {epoch}, which decided about group {group}")]
    Contradiction { group: GroupId, epoch: Epoch },
}

/// Epochs of groups that were proven to this process.
pub(crate) type Proven = HashMap<GroupId, Epoch>;

/// Checks a spec. `trust`: what was learnt before; `None` on first contact, when the node believes
/// whom it reaches with its secret. Returns whom to trust from here on.
///
/// # Errors
/// [`SpecError`]; then nothing of the spec may be done.
pub(crate) fn check(
    spec: &NodeSpec,
    node: NodeId,
    trust: Option<&Trust>,
    obeyed: Epoch,
    proven: &Proven,
) -> Result<Trust, SpecError> {
    if let Some(facts) = &spec.facts
        && facts.node != node
    {
        return Err(SpecError::OtherNode { found: facts.node, wanted: node });
    }
    if let Some(trust) = trust
        && spec.cluster != trust.cluster
    {
        return Err(SpecError::OtherCluster { found: spec.cluster, wanted: trust.cluster });
    }
    let trust = match (trust, &spec.facts) {
        (None, None) => return Err(SpecError::NoFacts),
        (None, Some(facts)) => first_contact(spec, &facts.verifiers)?,
        (Some(trust), None) => trust.clone(),
        (Some(trust), Some(facts)) => follow(trust, &spec.hand_overs, &facts.verifiers)?,
    };
    let checkpoint = believe(&spec.checkpoint, &trust.verifiers)?;
    same_log(&checkpoint, &trust.origin)?;
    if !checkpoint.covers(spec.as_of, &spec.as_of_path) {
        let (at, size) = (spec.as_of.sequence, checkpoint.size());
        return Err(SpecError::Nowhere { at, size });
    }
    check_position(spec.as_of, obeyed)?;
    check_epochs(spec, &checkpoint, proven)?;
    Ok(trust)
}

/// Whom a node begins to trust: those whom the facts name, if the log names them too.
fn first_contact(spec: &NodeSpec, named: &[Verifier]) -> Result<Trust, SpecError> {
    let last = spec.hand_overs.last().ok_or(SpecError::SitesUnproven)?;
    let checkpoint = believe(&last.checkpoint, named)?;
    let (named_at, verifiers) = named_by(&checkpoint, last)?;
    if verifiers != named {
        return Err(SpecError::SitesUnproven);
    }
    let origin = checkpoint.origin().to_owned();
    Ok(Trust { cluster: spec.cluster, origin, verifiers, named_at })
}

/// Follows the log from whom this node trusts to whom the facts name. Each step needs the majority of
/// those before: nobody else can say who comes after them, and nobody goes back to those of an
/// earlier commit, whose keys may be in other hands by now.
fn follow(trust: &Trust, hand_overs: &[HandOver], named: &[Verifier]) -> Result<Trust, SpecError> {
    let mut trust = trust.clone();
    if hand_overs.len() > HAND_OVERS_MAX {
        return Err(SpecError::SitesUnproven);
    }
    for hand_over in hand_overs {
        if hand_over.named.sequence <= trust.named_at {
            continue;
        }
        let checkpoint = believe(&hand_over.checkpoint, &trust.verifiers)?;
        same_log(&checkpoint, &trust.origin)?;
        let (named_at, verifiers) = named_by(&checkpoint, hand_over)?;
        believe(&hand_over.checkpoint, &verifiers)?;
        trust = Trust { verifiers, named_at, ..trust };
    }
    if trust.verifiers == named { Ok(trust) } else { Err(SpecError::SitesUnproven) }
}

fn named_by(
    checkpoint: &VerifiedCheckpoint,
    hand_over: &HandOver,
) -> Result<(Sequence, Vec<Verifier>), SpecError> {
    let (commit, position) = verify_commit(checkpoint, &hand_over.named)?;
    let sites = named_sites(&commit).ok_or(SpecError::SitesUnproven)?;
    Ok((position.sequence, sites))
}

fn believe(
    checkpoint: &Checkpoint,
    verifiers: &[Verifier],
) -> Result<VerifiedCheckpoint, CheckpointError> {
    verify(checkpoint, verifiers, verifiers.len() / 2 + 1)
}

fn same_log(checkpoint: &VerifiedCheckpoint, origin: &str) -> Result<(), SpecError> {
    if checkpoint.origin() == origin {
        return Ok(());
    }
    let (found, wanted) = (checkpoint.origin().to_owned(), origin.to_owned());
    Err(SpecError::OtherLog { found, wanted })
}

fn check_position(found: Epoch, obeyed: Epoch) -> Result<(), SpecError> {
    if found.sequence < obeyed.sequence {
        return Err(SpecError::Older { found: found.sequence, obeyed: obeyed.sequence });
    }
    if found.sequence == obeyed.sequence && found.hash != obeyed.hash {
        return Err(SpecError::Forked { sequence: found.sequence });
    }
    Ok(())
}

fn check_epochs(
    spec: &NodeSpec,
    checkpoint: &VerifiedCheckpoint,
    proven: &Proven,
) -> Result<(), SpecError> {
    let mut commits = HashMap::new();
    for proof in &spec.proofs {
        let (commit, epoch) = verify_commit(checkpoint, proof)?;
        commits.insert(epoch, commit);
    }
    for group in &spec.groups {
        if proven.get(&group.group) == Some(&group.epoch) {
            continue;
        }
        let (id, epoch) = (group.group, group.epoch);
        if let Some(before) = proven.get(&id) {
            check_position(epoch, *before)?;
        }
        let events = commits.get(&epoch).map(|commit| commit.events()).unwrap_or_default();
        let verdicts: Vec<bool> = events.iter().filter_map(|event| agrees(event, group)).collect();
        if verdicts.is_empty() {
            return Err(SpecError::Unproven { group: id, epoch });
        }
        if verdicts.contains(&false) {
            return Err(SpecError::Contradiction { group: id, epoch });
        }
    }
    Ok(())
}

/// For an event that decides about a group's authority: whether the spec says what it says.
fn agrees(event: &Event, spec: &GroupSpec) -> Option<bool> {
    let in_sync = |matches: &dyn Fn(&voute_schemas::contract::SideSpec) -> bool| {
        spec.sides.iter().find(|side| matches(side)).map(|side| side.in_sync)
    };
    match event {
        Event::VolumeCreated { group, owner, .. } if *group == spec.group => {
            Some(*owner == spec.owner)
        }
        Event::OwnerMoved { group, to, .. } if *group == spec.group => {
            Some(*to == spec.owner && in_sync(&|side| side.node == *to) == Some(true))
        }
        // A detached side may have been removed since, without a new epoch.
        Event::LegDetached { group, site, .. } if *group == spec.group => {
            Some(in_sync(&|side| side.site == *site) != Some(true))
        }
        Event::LegInSync { group, site, .. } if *group == spec.group => {
            Some(in_sync(&|side| side.site == *site) == Some(true))
        }
        Event::LegAdded { volume, placement }
            if spec.volumes.iter().any(|it| it.volume == *volume) =>
        {
            Some(in_sync(&|side| side.site == placement.site) != Some(true))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;

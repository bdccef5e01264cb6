//! Histories told one by one, for safeguards whose absence chance hardly shows: a second safeguard
//! stands behind most of them, or the moment in which they matter is short. Each runs the real state
//! machine and returns what was wrong, if anything was: with the safeguard nothing is.

mod pair;

use crate::Plan;
use crate::founding::{commit, found, uuid};
use crate::log::SimulatedLog;
use crate::random::Random;
use crate::world::World;
use futures_util::FutureExt;
use pair::{A, B, Pair};
use std::time::Duration;
use voute_control::domain::{State, decide, decide_escalations, evolve};
use voute_control::observed::Nodes;
use voute_control::stream::is_vouched;
use voute_events::{AppendError, Log};
use voute_mirror::Access;
use voute_mirror::link::LinkRequest;
use voute_schemas::command::{Command, Escalation, LegRequest};
use voute_schemas::commit::Actor;
use voute_schemas::contract::{GroupRole, NodeSpec};
use voute_schemas::event::{Attestation, DetachCause, Event, MoveKind};
use voute_schemas::mutant::Mutant;
use voute_schemas::proof::Checkpoint;
use voute_schemas::times::Times;
use voute_schemas::{CommitId, Epoch, Hash, LegId, Sequence};

/// A history for one mutant.
pub(crate) struct Scenario {
    pub(crate) mutant: Mutant,
    pub(crate) name: &'static str,
    pub(crate) run: fn() -> Option<String>,
}

macro_rules! scenarios {
    ($($mutant:ident: $name:ident,)*) => {
        /// All of them.
        pub(crate) const SCENARIOS: &[Scenario] =
            &[$(Scenario { mutant: Mutant::$mutant, name: stringify!($name), run: $name },)*];
    };
}

scenarios! {
    LeaseBeforeRead: a_read_whose_lease_ran_out_at_the_device_is_not_answered,
    RevocationsUnheard: an_owner_whose_lease_is_revoked_reads_no_more,
    LeaseOfAnyProcess: a_lease_of_a_process_that_took_no_token_is_none,
    StartIsNoGrant: a_node_that_just_started_waits_before_it_owns,
    ServeUnsettled: a_region_that_is_not_settled_is_not_read,
    CopyOntoAWholeLeg: a_leg_says_that_it_is_not_whole_before_it_is_overwritten,
    JoiningForgotten: an_owner_that_restarts_remembers_whom_it_asked_to_take_in,
    StartUnconfirmed: an_owner_alone_waits_for_a_commit_that_confirms_it,
    OlderSpecsObeyed: a_spec_of_a_lower_epoch_changes_nothing,
    HandOverUnvouched: a_hand_over_needs_a_side_that_vouches,
    AskedAtAnyEpoch: what_was_asked_at_an_older_epoch_is_refused,
    TakeoverDetachesNobody: who_is_taken_over_from_is_out,
    AddedLegKeepsTheEpoch: a_leg_that_is_added_begins_an_epoch,
    AppendByNumberAlone: an_append_upon_another_branch_is_refused,
    OtherBranchesObeyed: a_position_of_another_branch_is_not_obeyed,
}

// ---- leases -----------------------------------------------------------------------------------

fn a_read_whose_lease_ran_out_at_the_device_is_not_answered() -> Option<String> {
    let mut pair = Pair::healthy();
    pair.write(A, 0, 1);
    pair.hold_device(A);
    let read = pair.read(A, 0);
    pair.cut(|_, _| false);
    pair.pass(1_600);
    pair.release_device(A);
    let found = pair.data(read)?;
    Some(format!("A read {found} for a host 1.6 s after its last lease"))
}

fn an_owner_whose_lease_is_revoked_reads_no_more() -> Option<String> {
    let mut pair = Pair::healthy();
    pair.write(A, 0, 1);
    // B owns by the log, A has not heard of it; between them all is well, for other groups' sake.
    pair.confirms = true;
    pair.apply(B, &pair.spec(2, B, [false, true]));
    for _ in 0..300 {
        pair.pass(10);
        let read = pair.read(A, 0);
        pair.pass(0);
        if pair.shown[B] == Some(Access::Optimized) && pair.data(read).is_some() {
            return Some(
                "A still reads for hosts, under leases that B revoked and serves".to_owned(),
            );
        }
    }
    (pair.shown[B] != Some(Access::Optimized)).then(|| "B never served".to_owned())
}

fn a_lease_of_a_process_that_took_no_token_is_none() -> Option<String> {
    let mut pair = Pair::healthy();
    pair.write(A, 0, 1);
    // B starts anew, and A's connection does not show it: of all that A sends, leases alone are
    // answered.
    pair.restart(B);
    pair.cut(|_, request| is_grant(request));
    pair.pass(2_500);
    let read = pair.read(A, 0);
    pair.pass(100);
    let found = pair.data(read)?;
    Some(format!("A read {found} under leases of a process of B that holds no token of it"))
}

fn a_node_that_just_started_waits_before_it_owns() -> Option<String> {
    let mut pair = Pair::healthy();
    pair.write(A, 0, 1);
    pair.cut(|_, _| false);
    pair.restart(B);
    pair.confirms = true;
    pair.apply(B, &pair.spec(2, B, [false, true]));
    for _ in 0..300 {
        pair.pass(10);
        let read = pair.read(A, 0);
        pair.pass(0);
        if pair.shown[B] == Some(Access::Optimized) && pair.data(read).is_some() {
            return Some("A still reads for hosts, under a lease of B, while B serves".to_owned());
        }
    }
    (pair.shown[B] != Some(Access::Optimized)).then(|| "B never served".to_owned())
}

fn is_grant(request: &LinkRequest) -> bool {
    matches!(request, LinkRequest::Control(voute_mirror::link::Control::Grant { .. }))
}

fn is_write(request: &LinkRequest) -> bool {
    matches!(request, LinkRequest::Write { .. } | LinkRequest::Zero { .. })
}

// ---- settling, copying ------------------------------------------------------------------------

fn a_region_that_is_not_settled_is_not_read() -> Option<String> {
    let mut pair = Pair::healthy();
    pair.write(A, 0, 1);
    // The next write reaches A's leg alone.
    pair.cut(|_, request| !is_write(request));
    pair.start_write(A, 0, 2);
    pair.restart(A);
    pair.apply(A, &pair.spec(1, A, [true, true]));
    pair.pass(500);
    let read = pair.read(A, 0);
    pair.pass(100);
    if let Some(found) = pair.data(read) {
        return Some(format!("A read {found}, which B does not have"));
    }
    pair.cut(|_, _| true);
    pair.reconnect(A);
    pair.pass(1_000);
    let read = pair.read(A, 0);
    pair.pass(100);
    pair.data(read).is_none().then(|| "the region was never settled".to_owned())
}

fn a_leg_says_that_it_is_not_whole_before_it_is_overwritten() -> Option<String> {
    let mut pair = Pair::healthy();
    pair.write(A, 0, 1);
    pair.alone(A, 2);
    pair.write(A, 0, 2);
    // B comes back, and the first piece of the copy does not get to its device.
    pair.hold_writes_of_data(B);
    pair.cut(|_, _| true);
    pair.reconnect(A);
    pair.pass(1_500);
    if !pair.holds_writes(B) {
        return Some("nothing was copied to B".to_owned());
    }
    pair.header(B).filter(|header| header.consistent).map(|_| {
        "B's leg, half overwritten, says that it is whole: a human may promote it".to_owned()
    })
}

// ---- joining, starting ------------------------------------------------------------------------

fn an_owner_that_restarts_remembers_whom_it_asked_to_take_in() -> Option<String> {
    let mut pair = Pair::healthy();
    pair.write(A, 0, 1);
    pair.alone(A, 2);
    pair.write(A, 0, 2);
    pair.cut(|_, _| true);
    pair.reconnect(A);
    pair.pass(2_000);
    let is_join = |asked: &Escalation| matches!(asked, Escalation::JoinSide { .. });
    if !pair.asked.iter().any(|(_, asked)| is_join(asked)) {
        return Some("A never asked the log to take B in".to_owned());
    }
    // A starts anew and is confirmed; its wish of before is on its way to the log yet.
    pair.cut(|_, _| false);
    pair.restart(A);
    pair.confirms = true;
    pair.apply(A, &pair.spec(2, A, [true, false]));
    pair.pass(4_000);
    let write = pair.start_write(A, 0, 3);
    pair.pass(500);
    pair.is_done(write).then(|| {
        "A acknowledged alone what B lacks, while the log may take B in: B may own then".to_owned()
    })
}

fn an_owner_alone_waits_for_a_commit_that_confirms_it() -> Option<String> {
    let mut pair = Pair::healthy();
    pair.write(A, 0, 1);
    pair.alone(A, 2);
    pair.write(A, 0, 2);
    pair.restart(A);
    pair.confirms = false;
    pair.apply(A, &pair.spec(2, A, [true, false]));
    pair.pass(5_000);
    let read = pair.read(A, 0);
    pair.pass(100);
    let found = pair.data(read)?;
    Some(format!("A started by its own header and read {found}; somebody else may own by now"))
}

fn a_spec_of_a_lower_epoch_changes_nothing() -> Option<String> {
    let mut pair = Pair::healthy();
    for node in [A, B] {
        pair.apply(node, &pair.spec(2, B, [true, true]));
    }
    pair.pass(100);
    pair.apply(A, &pair.spec(1, A, [true, true]));
    pair.pass(100);
    let role = pair.role(A)?;
    (role != GroupRole::Following).then(|| format!("A is {role:?} by a spec of before B owned"))
}

// ---- the log's rules --------------------------------------------------------------------------

fn state_of(log: &SimulatedLog) -> State {
    let mut state = State::default();
    let read = log.read(Sequence(1), 10_000).now_or_never().expect("the simulated log never waits");
    for stored in read.expect("it is up") {
        let commit = voute_schemas::Commit::decode(&stored.bytes).expect("it wrote it itself");
        evolve(&mut state, stored.position, &commit);
    }
    state
}

fn founded() -> (crate::founding::Founded, SimulatedLog, State) {
    let [log, _] = SimulatedLog::new(Random::new(1));
    let founded = found(&mut Random::new(2), &log);
    let state = state_of(&log);
    (founded, log, state)
}

fn after(mut state: State, number: u64, events: Vec<Event>) -> State {
    let commit = commit(state.position(), CommitId(uuid(30, number)), Actor::System, "", events);
    let hash = Hash::of_commit(&commit.encode());
    evolve(&mut state, Epoch { sequence: commit.sequence, hash }, &commit);
    state
}

fn moved(state: State, number: u64, founded: &crate::founding::Founded) -> State {
    let group = founded.volumes[0].group;
    let owner = state.group(group).expect("it was founded").owner;
    let to = founded.nodes.iter().position(|node| *node != owner).expect("there are two");
    let command = Command::MoveOwner { group, to: founded.sites[to] };
    let events = decide(&state, &command).expect("both sides are in sync");
    after(state, number, events)
}

/// The founded cluster, its legs formatted.
fn formatted() -> (crate::founding::Founded, State) {
    let (founded, _, mut state) = founded();
    let legs: Vec<_> = founded
        .volumes
        .iter()
        .flat_map(|it| state.volume(it.volume).expect("it was founded").legs.clone())
        .collect();
    for (number, leg) in legs.into_iter().enumerate() {
        let asked = [Escalation::LegFormatted { leg: leg.leg }];
        let events = decide_escalations(&state, leg.node, &asked).remove(0);
        state = after(state, number as u64, events.expect("a node formats its own legs"));
    }
    (founded, state)
}

fn a_hand_over_needs_a_side_that_vouches() -> Option<String> {
    let (founded, state) = formatted();
    let id = founded.volumes[0].group;
    let group = state.group(id).expect("it was founded");
    let asked = Escalation::HandOver { group: id, epoch: group.epoch, cause: String::new() };
    let now = (&Times::default(), Duration::from_secs(100));
    is_vouched(&state, &Nodes::new(), now, group.owner, &asked)
        .then(|| "a group goes to a side that nobody has heard of".to_owned())
}

fn what_was_asked_at_an_older_epoch_is_refused() -> Option<String> {
    let (founded, before) = formatted();
    let id = founded.volumes[0].group;
    let group = before.group(id).expect("it was founded").clone();
    let other = group.sides.iter().find(|side| side.node != group.owner).expect("there are two");
    // The other side owned meanwhile, and has writes of its own; then this one again.
    let state = moved(moved(before, 100, &founded), 101, &founded);
    let asked = [Escalation::DetachSide {
        group: id,
        epoch: group.epoch,
        site: other.site,
        cause: DetachCause::Unreachable,
    }];
    let decided = decide_escalations(&state, group.owner, &asked).remove(0);
    decided.is_ok().then(|| "a side is taken out for what was so two owners ago".to_owned())
}

fn who_is_taken_over_from_is_out() -> Option<String> {
    let (founded, state) = formatted();
    let id = founded.volumes[0].group;
    let from = state.group(id).expect("it was founded").owner;
    let to = founded.nodes.into_iter().find(|node| *node != from).expect("there are two");
    let attestation =
        Attestation { legs_open: true, owner_silent: true, lease_expired: true, silent_ms: 2_000 };
    let kind = MoveKind::Unplanned { attestation };
    let state = after(state, 102, vec![Event::OwnerMoved { group: id, from, to, kind }]);
    let side = state.group(id).and_then(|group| group.side_of(from).copied())?;
    side.in_sync.then(|| {
        "the old owner, which hears nothing, may be moved to without the writes that follow"
            .to_owned()
    })
}

fn a_leg_that_is_added_begins_an_epoch() -> Option<String> {
    let (founded, state) = formatted();
    let founded_volume = founded.volumes[0];
    let (volume, group) = (founded_volume.volume, founded_volume.group);
    let owner = state.group(group).expect("it was founded").owner;
    let legs = &state.volume(volume).expect("it was founded").legs;
    let leg = legs.iter().find(|leg| leg.node != owner).expect("there are two").leg;
    let events = decide(&state, &Command::RemoveLeg { volume, leg }).expect("the owner's stays");
    let alone = after(state, 103, events);
    let pool = founded.nodes.iter().position(|node| *node != owner).expect("there are two");
    let leg = LegRequest { leg: LegId(uuid(32, 1)), pool: founded.pools[pool] };
    let events = decide(&alone, &Command::AddLeg { volume, leg }).expect("there is room");
    let again = after(alone.clone(), 104, events);
    let epoch = |state: &State| state.group(group).map(|group| group.epoch);
    (epoch(&alone) == epoch(&again)).then(|| {
        "an owner that asked to take the former leg in would have the new, empty one taken in"
            .to_owned()
    })
}

fn an_append_upon_another_branch_is_refused() -> Option<String> {
    let (_, log, state) = founded();
    let mine = state.position();
    log.inner().forget(1);
    let shorter = state_of(&log);
    let next = |state: &State, number| {
        commit(state.position(), CommitId(uuid(31, number)), Actor::System, "", vec![])
    };
    log.append_now(shorter.position(), &[next(&shorter, 1)]).expect("it stands at its head");
    match log.append_now(mine, &[next(&state, 2)]) {
        Err(AppendError::Conflict) => None,
        other => Some(format!("decided on one history, appended to another: {other:?}")),
    }
}

fn a_position_of_another_branch_is_not_obeyed() -> Option<String> {
    let mut world = World::new(1, Plan::default());
    let at = |hash| Epoch { sequence: Sequence(50), hash: Hash([hash; 32]) };
    world.nodes[0].obeyed = at(1);
    let spec = NodeSpec {
        as_of: at(2),
        full: true,
        cluster: world.founded.cluster,
        facts: None,
        checkpoint: Checkpoint::default(),
        as_of_path: vec![],
        hand_overs: vec![],
        proofs: vec![],
        groups: vec![],
        removed_groups: vec![],
    };
    world.may_obey(0, &spec).then(|| "a node obeys two histories of one number".to_owned())
}

//! Given a state and what nodes say, when time passes, then proposals.

mod nodes;

use super::*;
use crate::domain::{decide, decide_escalations, evolve};
use crate::observed::ObservedNode;
use voute_schemas::command::{Escalation, LegRequest};
use voute_schemas::commit::{Actor, Commit, Outcome};
use voute_schemas::contract::{GroupRole, GroupStatus, OpeningReport};
use voute_schemas::place::{Locator, Portals};
use voute_schemas::proof::Verifier;
use voute_schemas::{Epoch, Hash, Name, Sequence, Token};

const SILENCE: Duration = Duration::from_secs(2);

/// Two sites with a node, a pool and a device each, and one mirrored volume owned at the first.
struct World {
    state: State,
    sites: [SiteId; 2],
    nodes: [NodeId; 2],
    policy: PolicyId,
    group: GroupId,
    observed: Nodes,
    watcher: Watcher,
    now: Duration,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl World {
    fn new(mode: FailoverMode) -> Self {
        let mut world = World {
            state: State::default(),
            sites: [SiteId::generate(), SiteId::generate()],
            nodes: [NodeId::generate(), NodeId::generate()],
            policy: PolicyId::generate(),
            group: GroupId::generate(),
            observed: Nodes::new(),
            watcher: Watcher::new(Times::default()),
            now: Duration::from_secs(100),
        };
        world.build(mode);
        world
    }

    fn build(&mut self, mode: FailoverMode) {
        let log_site = Verifier { name: "log".into(), key: Hash::of(b"key") };
        self.give(Command::CreateCluster {
            cluster: ClusterId::generate(),
            name: name("c"),
            log_site,
        });
        let rules = PolicyRules { mode, hold_down_ms: 0, preferred_site: None, failback: false };
        self.give(Command::CreatePolicy { policy: self.policy, name: name("p"), rules });
        let mut legs = Vec::new();
        for index in 0..2 {
            let (site, node) = (self.sites[index], self.nodes[index]);
            let pool = PoolId::generate();
            let called = |noun: &str| name(&format!("{noun}{index}"));
            self.give(Command::AddSite { site, name: called("s"), kind: SiteKind::Data });
            self.admit(node, site, &format!("n{index}"));
            self.give(Command::CreatePool {
                pool,
                name: called("p"),
                site,
                extent_bytes: 16 << 20,
            });
            self.give_device(node, pool, &format!("d{index}"));
            legs.push(LegRequest { leg: LegId::generate(), pool });
        }
        self.create_volume(self.group, "v", &legs);
        for node in self.nodes {
            self.heard(node);
            self.says(node, false);
        }
    }

    fn admit(&mut self, node: NodeId, site: SiteId, called: &str) {
        let base = 20_000 + 10 * self.state.nodes().count() as u16;
        let address = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], base + port));
        let portals = Portals { nvme: address(1), iscsi: address(2), link: address(3) };
        let verifier = Hash::of(called.as_bytes());
        self.give(Command::AddNode { node, name: name(called), site, portals, verifier });
    }

    fn give_device(&mut self, node: NodeId, pool: PoolId, called: &str) {
        let device = DeviceId::generate();
        self.give(Command::AddDevice {
            device,
            name: name(called),
            node,
            pool,
            locator: Locator::Memory { size_bytes: 1 << 30 },
            overwrite: false,
        });
        let ready = Escalation::DeviceReady { device, size_bytes: 1 << 30, block_bytes: 512 };
        self.escalate(node, ready);
    }

    /// A formatted volume of its own group, by the world's policy.
    fn create_volume(&mut self, group: GroupId, called: &str, legs: &[LegRequest]) {
        self.give(Command::CreateVolume {
            volume: VolumeId::generate(),
            group,
            name: name(called),
            size_bytes: 64 << 20,
            block_bytes: 512,
            legs: legs.to_vec(),
            policy: Some(self.policy),
        });
        let (_, volume) =
            self.state.volumes().find(|(_, volume)| volume.group == group).expect("just created");
        for leg in volume.legs.clone() {
            self.escalate(leg.node, Escalation::LegFormatted { leg: leg.leg });
        }
    }

    /// Another volume like the first.
    fn second_volume(&mut self) -> GroupId {
        let group = GroupId::generate();
        let first = self.state.volumes().find(|(_, volume)| volume.group == self.group).unwrap().1;
        let legs: Vec<_> = first
            .legs
            .iter()
            .map(|leg| LegRequest { leg: LegId::generate(), pool: leg.pool })
            .collect();
        self.create_volume(group, "v2", &legs);
        for node in self.nodes {
            self.says_of(group, node, false);
        }
        group
    }

    fn give(&mut self, command: Command) -> Vec<Event> {
        let events = decide(&self.state, &command).unwrap();
        self.commit(events)
    }

    fn escalate(&mut self, node: NodeId, request: Escalation) {
        let outcomes = decide_escalations(&self.state, node, &[request]);
        self.commit(outcomes.into_iter().next().unwrap().unwrap());
    }

    fn commit(&mut self, events: Vec<Event>) -> Vec<Event> {
        let before = self.state.position();
        let commit = Commit {
            sequence: before.sequence.next(),
            previous: before.hash,
            id: CommitId::generate(),
            time_unix_ms: 1_000_000 + milliseconds(self.now),
            actor: Actor::System,
            origin: Origin::Policy,
            source: None,
            correlation: CorrelationId::generate(),
            causation: None,
            idempotency_key: None,
            command: String::new(),
            reason: String::new(),
            outcome: Outcome::Accepted(events),
        };
        let position = Epoch { sequence: commit.sequence, hash: Hash::of_commit(&commit.encode()) };
        evolve(&mut self.state, position, &commit);
        commit.events().to_vec()
    }

    fn heard(&mut self, node: NodeId) {
        let now = self.now;
        let observed = self.observed.entry(node).or_insert_with(|| ObservedNode {
            connected_since: Some(now),
            closed_at: None,
            heard_at: now,
            so_since: None,
            incarnation: 1,
            software: String::new(),
            engine: String::new(),
            obeyed: Epoch::ZERO,
            devices: BTreeMap::new(),
            links: Vec::new(),
            groups: std::collections::HashMap::new(),
        });
        (observed.heard_at, observed.so_since) = (now, Some(now));
    }

    /// A node reports its side of the group; `silent` if it hears no owner and granted no lease
    /// that runs.
    fn says(&mut self, node: NodeId, silent: bool) {
        self.says_of(self.group, node, silent);
    }

    fn says_of(&mut self, id: GroupId, node: NodeId, silent: bool) {
        let group = self.state.group(id).unwrap();
        let owns = group.owner == node;
        let attestation = Attestation {
            legs_open: true,
            owner_silent: silent,
            lease_expired: silent,
            silent_ms: if silent { 2_000 } else { 0 },
        };
        let opening =
            OpeningReport { barred_ms: 1, lease_wait_ms: 4, serving_ms: 9, first_io_ms: Some(30) };
        let status = GroupStatus {
            group: id,
            epoch: group.epoch,
            role: if owns { GroupRole::Serving } else { GroupRole::Following },
            token: Token::default(),
            legs: vec![],
            attestation: (!owns).then_some(attestation),
            resync: None,
            last_io_unix_ms: None,
            opening: owns.then_some(opening),
            verify: None,
        };
        self.observed.get_mut(&node).unwrap().groups.insert(id, status);
    }

    fn pass(&mut self, duration: Duration) {
        self.now += duration;
    }

    fn assess(&mut self) -> Vec<Command> {
        let unix_ms = 1_000_000 + milliseconds(self.now);
        let now = Now { since_start: self.now, unix_ms };
        let proposals = self.watcher.assess(&self.state, &self.observed, now);
        proposals.into_iter().map(|proposal| proposal.command).collect()
    }

    /// The first node dies; the second goes on, hearing it no more.
    fn lose_first(&mut self) {
        self.observed.get_mut(&self.nodes[0]).unwrap().connected_since = None;
        self.observed.get_mut(&self.nodes[0]).unwrap().closed_at = Some(self.now);
        self.pass(SILENCE);
        self.heard(self.nodes[1]);
        self.says(self.nodes[1], true);
    }

    /// Gives the one command that is proposed.
    fn take_only(&mut self, kind: &str) -> Vec<Event> {
        let commands = self.assess();
        let names: Vec<_> = commands.iter().map(Command::name).collect();
        assert_eq!(names, [kind]);
        self.give(commands.into_iter().next().unwrap())
    }
}

#[test]
fn while_all_is_well_nothing_is_proposed() {
    let mut world = World::new(FailoverMode::Automatic);
    for _ in 0..100 {
        world.pass(Duration::from_millis(100));
        for node in world.nodes {
            world.heard(node);
        }
        assert!(world.assess().is_empty());
    }
}

#[test]
fn a_silent_site_is_lost_only_after_the_stated_silence() {
    let mut world = World::new(FailoverMode::Automatic);
    world.pass(SILENCE - Duration::from_millis(1));
    world.heard(world.nodes[1]);
    assert!(world.assess().is_empty());
    world.pass(Duration::from_millis(1));
    assert!(matches!(
        world.assess()[..],
        [Command::ReportSiteCondition { site, condition: SiteCondition::Lost, .. }] if site == world.sites[0]
    ));
}

#[test]
fn a_lost_site_fails_over_once_its_other_side_attests() {
    let mut world = World::new(FailoverMode::Automatic);
    world.lose_first();
    world.says(world.nodes[1], false);
    world.take_only("ReportSiteCondition");
    assert!(world.assess().is_empty(), "the other side still hears the owner");
    world.says(world.nodes[1], true);
    let events = world.take_only("FailOverSite");
    let Event::FailoverDecided { evidence, .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!(evidence.decided_unix_ms - evidence.first_sign_unix_ms, 2_000);
    assert!(matches!(events[1], Event::OwnerMoved { to, .. } if to == world.nodes[1]));
    assert_eq!(events.len(), 2);
    world.says(world.nodes[1], true);
    assert!(world.assess().is_empty(), "a site fails over once");
}

/// Its memory may have gone with it. Found by the simulator of the whole cluster (seed 200662).
#[test]
fn a_side_whose_process_ended_or_fell_silent_vouches_for_nothing() {
    let mut world = World::new(FailoverMode::Automatic);
    world.lose_first();
    world.take_only("ReportSiteCondition");
    let node = world.nodes[1];
    world.observed.get_mut(&node).unwrap().connected_since = None;
    assert!(world.assess().is_empty(), "its stream is closed");
    world.observed.get_mut(&node).unwrap().connected_since = Some(world.now);
    world.pass(Duration::from_millis(1_300));
    assert!(world.assess().is_empty(), "it has not spoken for five heartbeats");
    world.heard(node);
    assert_eq!(world.assess().len(), 1);
}

/// The network may deliver late what a node said before it lost everything. Found by the simulator of the
/// whole cluster (seeds 8033648, 9027202).
#[test]
fn what_was_long_on_its_way_vouches_for_nothing() {
    let mut world = World::new(FailoverMode::Automatic);
    world.lose_first();
    world.take_only("ReportSiteCondition");
    let (node, so) = (world.nodes[1], world.now);
    world.pass(Duration::from_millis(1_300));
    world.heard(node);
    world.observed.get_mut(&node).unwrap().so_since = Some(so);
    assert!(world.assess().is_empty(), "it answers what was sent long ago");
    world.observed.get_mut(&node).unwrap().so_since = None;
    assert!(world.assess().is_empty(), "it answers nothing");
    world.heard(node);
    assert_eq!(world.assess().len(), 1);
}

#[test]
fn a_person_moves_a_group_only_to_a_side_that_vouches_now() {
    let mut world = World::new(FailoverMode::Manual);
    let (group, node) = (world.group, world.nodes[1]);
    let may = |world: &World, to: usize| {
        let times = (&Times::default(), world.now);
        crate::stream::may_move(&world.state, &world.observed, times, group, world.sites[to])
    };
    assert!(may(&world, 1));
    assert!(may(&world, 0), "it owns already: the log's rules say so");
    let status = world.observed.get_mut(&node).unwrap().groups.get_mut(&group).unwrap();
    status.attestation.as_mut().unwrap().legs_open = false;
    assert!(!may(&world, 1), "its legs are not open");
    world.says(node, false);
    world.pass(Duration::from_millis(1_300));
    assert!(!may(&world, 1), "it has not spoken for five heartbeats");
    world.heard(node);
    assert!(may(&world, 1));
    world.observed.remove(&node);
    assert!(!may(&world, 1), "it was never heard");
}

#[test]
fn a_leg_is_taken_away_only_while_the_owner_serves() {
    let mut world = World::new(FailoverMode::Manual);
    let (group, owner) = (world.group, world.nodes[0]);
    let is_served = |world: &World| {
        let times = (&Times::default(), world.now);
        crate::stream::is_served(&world.state, &world.observed, times, group)
    };
    for (role, serves) in [
        (GroupRole::Serving, true),
        (GroupRole::Stopped, false),
        (GroupRole::Opening, false),
        (GroupRole::Serving, true),
    ] {
        let status = world.observed.get_mut(&owner).unwrap().groups.get_mut(&group).unwrap();
        status.role = role;
        assert_eq!(is_served(&world), serves, "{role:?}");
    }
    world.pass(Duration::from_millis(1_300));
    assert!(!is_served(&world), "its owner has fallen silent");
}

#[test]
fn an_attestation_of_an_older_epoch_is_worth_nothing() {
    let mut world = World::new(FailoverMode::Automatic);
    world.lose_first();
    world.take_only("ReportSiteCondition");
    let node = world.nodes[1];
    let group = world.group;
    let status = world.observed.get_mut(&node).unwrap().groups.get_mut(&group).unwrap();
    status.epoch = Epoch { sequence: Sequence(1), hash: Hash::ZERO };
    assert!(world.assess().is_empty());
}

#[test]
fn policies_say_what_moves_by_itself() {
    for mode in [FailoverMode::OnSignal, FailoverMode::Manual] {
        let mut world = World::new(mode);
        world.lose_first();
        world.take_only("ReportSiteCondition");
        assert!(world.assess().is_empty(), "{mode:?}");
    }
    for (mode, moves) in [
        (FailoverMode::Automatic, true),
        (FailoverMode::OnSignal, true),
        (FailoverMode::Manual, false),
    ] {
        let mut world = World::new(mode);
        world.says(world.nodes[1], true);
        let site = world.sites[0];
        let (condition, source) = (SiteCondition::Fire, ConditionSource::Signal);
        world.give(Command::ReportSiteCondition { site, condition, source, detail: "x".into() });
        let names: Vec<_> = world.assess().iter().map(Command::name).collect();
        assert_eq!(names.contains(&"FailOverSite"), moves, "{mode:?}: {names:?}");
    }
}

#[test]
fn a_hold_down_is_waited_for_beyond_detection() {
    let mut world = World::new(FailoverMode::Automatic);
    let rules = PolicyRules {
        mode: FailoverMode::Automatic,
        hold_down_ms: 3_000,
        preferred_site: None,
        failback: false,
    };
    world.give(Command::ChangePolicy { policy: world.policy, rules });
    world.lose_first();
    world.take_only("ReportSiteCondition");
    world.pass(Duration::from_millis(2_999));
    world.heard(world.nodes[1]);
    assert!(world.assess().is_empty());
    world.pass(Duration::from_millis(1));
    assert_eq!(world.assess()[0].name(), "FailOverSite");
}

#[test]
fn an_unsafe_log_moves_nothing_but_says_what_is_lost() {
    let mut world = World::new(FailoverMode::Automatic);
    world.watcher.may_act = false;
    world.lose_first();
    world.take_only("ReportSiteCondition");
    assert!(world.assess().is_empty());
    world.watcher.may_act = true;
    assert_eq!(world.assess()[0].name(), "FailOverSite");
}

#[test]
fn a_refused_proposal_is_not_repeated_at_once() {
    let mut world = World::new(FailoverMode::Automatic);
    world.lose_first();
    assert_eq!(world.assess().len(), 1);
    world.watcher.refused(world.sites[0], world.now);
    assert!(world.assess().is_empty());
    world.pass(REFUSED_PAUSE);
    world.heard(world.nodes[1]);
    assert_eq!(world.assess().len(), 1);
}

#[test]
fn phases_are_recorded_once_the_new_owner_serves() {
    let mut world = World::new(FailoverMode::Automatic);
    world.lose_first();
    world.take_only("ReportSiteCondition");
    let events = world.take_only("FailOverSite");
    let sequence = world.state.position().sequence;
    let took = Duration::from_millis(12);
    world.watcher.committed(&events, sequence, took, world.now);
    assert!(world.assess().is_empty(), "its node has not obeyed yet");
    world.says(world.nodes[1], false);
    let recorded = world.take_only("RecordFailover");
    let Event::FailoverMeasured { phases, .. } = &recorded[0] else { panic!("{recorded:?}") };
    let expected = FailoverPhases {
        detection_ms: 2_000,
        commit_ms: 12,
        lease_wait_ms: 4,
        open_ms: 5,
        first_io_ms: Some(21),
        groups: 1,
    };
    assert_eq!(*phases, expected);
    assert!(world.assess().is_empty());
}

#[test]
fn a_failover_after_which_nobody_serves_gets_no_figures() {
    let mut world = World::new(FailoverMode::Automatic);
    world.lose_first();
    world.take_only("ReportSiteCondition");
    let events = world.take_only("FailOverSite");
    let sequence = world.state.position().sequence;
    world.watcher.committed(&events, sequence, Duration::from_millis(1), world.now);
    world.pass(Duration::from_secs(600));
    world.heard(world.nodes[1]);
    assert!(world.assess().is_empty());
    world.says(world.nodes[1], false);
    world.take_only("RecordFailover");
}

#[test]
fn a_failover_that_this_process_did_not_commit_gets_no_figures_from_it() {
    let mut world = World::new(FailoverMode::Automatic);
    world.lose_first();
    world.take_only("ReportSiteCondition");
    world.take_only("FailOverSite");
    world.says(world.nodes[1], false);
    assert!(world.assess().is_empty(), "how long its commit took is not known here");
}

#[test]
fn a_site_is_normal_again_when_a_node_of_it_is_heard() {
    let mut world = World::new(FailoverMode::Manual);
    world.lose_first();
    world.take_only("ReportSiteCondition");
    world.heard(world.nodes[0]);
    let events = world.take_only("ReportSiteCondition");
    assert!(matches!(
        events[0],
        Event::SiteConditionReported { condition: SiteCondition::Normal, .. }
    ));
}

#[test]
fn what_a_signal_reported_is_not_ended_by_the_watcher() {
    let mut world = World::new(FailoverMode::Manual);
    let site = world.sites[0];
    let (condition, source) = (SiteCondition::Maintenance, ConditionSource::Signal);
    world.give(Command::ReportSiteCondition { site, condition, source, detail: "x".into() });
    assert!(world.assess().is_empty());
}

#[test]
fn groups_fail_back_only_where_the_policy_says_so_and_the_node_stayed() {
    let mut world = World::new(FailoverMode::Automatic);
    let rules = PolicyRules {
        mode: FailoverMode::Automatic,
        hold_down_ms: 0,
        preferred_site: Some(world.sites[1]),
        failback: true,
    };
    world.give(Command::ChangePolicy { policy: world.policy, rules });
    let now = world.now;
    world.observed.get_mut(&world.nodes[1]).unwrap().connected_since = Some(now);
    assert!(world.assess().is_empty(), "its node has only just come");
    world.pass(FAILBACK_AFTER);
    for node in world.nodes {
        world.heard(node);
    }
    let events = world.take_only("MoveOwner");
    assert!(matches!(events[0], Event::OwnerMoved { kind: MoveKind::Planned, .. }));
    world.pass(RARE_INTERVAL);
    for node in world.nodes {
        world.heard(node);
        world.says(node, false);
    }
    assert!(world.assess().is_empty(), "it is where it should be");
    // Where somebody wants it now, it stays for a while.
    world.give(Command::MoveOwner { group: world.group, to: world.sites[0] });
    let stay = |world: &mut World, time| {
        world.pass(time);
        for node in world.nodes {
            world.heard(node);
            world.says(node, false);
        }
    };
    stay(&mut world, LEFT_ALONE - RARE_INTERVAL);
    assert!(world.assess().is_empty(), "it was moved there on purpose");
    stay(&mut world, RARE_INTERVAL);
    world.take_only("MoveOwner");
}

#[test]
fn a_node_that_was_admitted_but_never_came_is_no_loss() {
    let mut world = World::new(FailoverMode::Automatic);
    let site = SiteId::generate();
    world.give(Command::AddSite { site, name: name("new"), kind: SiteKind::Data });
    let portals = Portals {
        nvme: "127.0.0.1:901".parse().unwrap(),
        iscsi: "127.0.0.1:902".parse().unwrap(),
        link: "127.0.0.1:903".parse().unwrap(),
    };
    let node = NodeId::generate();
    let verifier = Hash::of(b"new");
    world.give(Command::AddNode { node, name: name("new"), site, portals, verifier });
    world.pass(Duration::from_secs(60));
    for node in world.nodes {
        world.heard(node);
    }
    assert!(world.assess().is_empty());
}

#[test]
fn a_scheduled_comparison_is_proposed_when_due_one_at_a_time() {
    const HOUR_MS: u64 = 3_600_000;
    let mut world = World::new(FailoverMode::Manual);
    let proposed = |world: &World, unix_ms: u64| {
        let now = Now { since_start: world.now, unix_ms };
        let commands = scrub::due(&world.state, now).into_iter().map(|it| it.command);
        commands.collect::<Vec<Command>>()
    };
    assert_eq!(proposed(&world, 90 * HOUR_MS), [], "there is no schedule");
    world.give(Command::ScheduleScrub { every_hours: Some(24), repair: true });
    let first = proposed(&world, 90 * HOUR_MS);
    let (volume, _) = world.state.volumes().next().unwrap();
    let wanted = Command::VerifyVolume { volume, repair: true, now_unix_ms: 90 * HOUR_MS };
    assert_eq!(first, std::slice::from_ref(&wanted));
    world.give(wanted);
    assert_eq!(proposed(&world, 200 * HOUR_MS), [], "one is under way");
    let run = world.state.position().sequence.0;
    let (group, epoch) = (world.group, world.state.group(world.group).unwrap().epoch);
    let evidence = VerifyEvidence::default();
    world.escalate(world.nodes[0], Escalation::Verified { group, epoch, volume, run, evidence });
    assert_eq!(proposed(&world, 113 * HOUR_MS), [], "not a day later");
    assert_eq!(proposed(&world, 114 * HOUR_MS).len(), 1);
}

#[test]
fn a_comparison_that_waits_for_a_leg_keeps_its_owner_from_no_other() {
    const HOUR_MS: u64 = 3_600_000;
    let mut world = World::new(FailoverMode::Manual);
    world.give(Command::ScheduleScrub { every_hours: Some(24), repair: false });
    let (volume, _) = world.state.volumes().next().unwrap();
    world.give(Command::VerifyVolume { volume, repair: false, now_unix_ms: HOUR_MS });
    world.second_volume();
    let due = |world: &World| {
        scrub::due(&world.state, Now { since_start: world.now, unix_ms: 100 * HOUR_MS }).len()
    };
    assert_eq!(due(&world), 0, "its owner compares the first");
    let (group, epoch) = (world.group, world.state.group(world.group).unwrap().epoch);
    let (site, cause) = (world.sites[1], DetachCause::Unreachable);
    world.escalate(world.nodes[0], Escalation::DetachSide { group, epoch, site, cause });
    assert_eq!(due(&world), 1);
}

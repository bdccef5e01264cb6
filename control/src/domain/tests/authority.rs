use super::world::*;
use crate::domain::state::FAILOVERS_MAX;
use voute_schemas::Epoch;
use voute_schemas::command::{AttestedGroup, Command, Escalation};
use voute_schemas::commit::COMMIT_BYTES_MAX;
use voute_schemas::event::*;
use voute_schemas::ids::*;

const FAILOVER: FailoverId = FailoverId(uuid::Uuid::from_u128(91));

fn move_to(to: SiteId) -> Command {
    Command::MoveOwner { group: GROUP, to }
}

fn fail_over(condition: SiteCondition, attested: Vec<AttestedGroup>) -> Command {
    Command::FailOverSite {
        failover: FAILOVER,
        site: SITE_A,
        evidence: evidence(condition),
        attested,
    }
}

fn report(condition: SiteCondition, source: ConditionSource) -> Command {
    Command::ReportSiteCondition { site: SITE_A, condition, source, detail: String::new() }
}

/// Why the only group stays.
fn cause_of_staying(world: &World, attested: Vec<AttestedGroup>) -> String {
    let mut world = world.clone();
    match &world.must(fail_over(SiteCondition::Lost, attested))[..] {
        [Event::FailoverDecided { evidence, .. }] => {
            assert_eq!(evidence.left_behind_total, 1);
            evidence.left_behind[0].cause.clone()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_planned_move_keeps_both_sides_in_sync() {
    let mut world = World::with_volume();
    assert_eq!(world.refuses(move_to(SITE_A)).0, "already-owner");
    assert_eq!(world.refuses(move_to(SITE_W)).0, "no-such-side");
    assert_eq!(world.refuses(move_to(SiteId(uuid(99)))).0, "unknown-id");
    let moved =
        Event::OwnerMoved { group: GROUP, from: NODE_A, to: NODE_B, kind: MoveKind::Planned };
    assert_eq!(world.must(move_to(SITE_B)), [moved]);
    let group = world.group();
    assert_eq!((group.owner, group.is_whole()), (NODE_B, true));
    assert_eq!((group.epoch, group.last_common), (world.state.position(), world.state.position()));
}

#[test]
fn an_owner_moves_only_to_a_side_that_is_in_sync_and_formatted() {
    let mut world = World::with_pools();
    world.must(create_volume(MIB));
    assert_eq!(world.refuses(move_to(SITE_B)).0, "not-formatted");
    let mut world = World::with_volume();
    world.detach_b();
    assert_eq!(world.refuses(move_to(SITE_B)).0, "not-in-sync");
}

#[test]
fn a_site_fails_over_to_the_sides_that_attested_and_its_own_leave() {
    let mut world = World::with_volume();
    let common = world.group().last_common;
    let attested = world.attested_by_b();
    let events = world.must(fail_over(SiteCondition::Lost, vec![attested]));
    let kind = MoveKind::Unplanned { attestation: attestation() };
    let moved = Event::OwnerMoved { group: GROUP, from: NODE_A, to: NODE_B, kind };
    let decided = Event::FailoverDecided {
        failover: FAILOVER,
        site: SITE_A,
        evidence: evidence(SiteCondition::Lost),
    };
    assert_eq!(events, [decided, moved]);
    let group = world.group();
    assert_eq!((group.owner, group.epoch), (NODE_B, world.state.position()));
    assert!(!world.in_sync(SITE_A) && world.in_sync(SITE_B));
    assert_eq!(group.last_common, common, "maps since then suffice when A returns");
    assert_eq!(world.state.failover(FAILOVER).unwrap().moved, 1);
    let again = fail_over(SiteCondition::Lost, vec![]);
    assert_eq!(world.refuses(again).0, "duplicate-id");
}

#[test]
fn a_group_stays_unless_its_other_side_vouches_for_all_of_it_at_this_epoch() {
    let world = World::with_volume();
    let attested = world.attested_by_b();
    let with = |edit: fn(&mut AttestedGroup)| {
        let mut attested = attested;
        edit(&mut attested);
        cause_of_staying(&world, vec![attested])
    };
    assert!(cause_of_staying(&world, vec![]).contains("did not attest"));
    assert!(with(|it| it.epoch = Epoch::ZERO).contains("another epoch"));
    assert!(with(|it| it.epoch.hash = voute_schemas::Hash::ZERO).contains("another epoch"));
    assert!(with(|it| it.to = NODE_A).contains("not by its other side"));
    assert!(with(|it| it.attestation.legs_open = false).contains("not open"));
    assert!(with(|it| it.attestation.owner_silent = false).contains("still hears"));
    assert!(with(|it| it.attestation.lease_expired = false).contains("not run out"));

    let mut detached = world.clone();
    detached.detach_b();
    let attested = detached.attested_by_b();
    assert!(cause_of_staying(&detached, vec![attested]).contains("not in sync"));

    let mut unformatted = World::with_pools();
    unformatted.must(create_volume(MIB));
    let attested = unformatted.attested_by_b();
    assert!(cause_of_staying(&unformatted, vec![attested]).contains("not all formatted"));

    let mut single = World::with_pools();
    single.must(create_other(1, MIB, &[POOL_A]));
    assert!(cause_of_staying(&single, vec![]).contains("no other side"));
}

#[test]
fn only_a_signal_that_is_in_the_log_goes_ahead_of_the_lease() {
    let mut world = World::with_volume();
    let attempt = |world: &World, condition| {
        let mut attested = world.attested_by_b();
        attested.attestation.lease_expired = false;
        world.clone().must(fail_over(condition, vec![attested])).len()
    };
    assert_eq!(attempt(&world, SiteCondition::Fire), 1, "nobody reported a fire");
    world.must(report(SiteCondition::Fire, ConditionSource::Watcher));
    assert_eq!(attempt(&world, SiteCondition::Fire), 1, "that was no signal");
    world.must(report(SiteCondition::Fire, ConditionSource::Signal));
    assert_eq!(attempt(&world, SiteCondition::PowerLost), 1, "that was another signal");
    assert_eq!(attempt(&world, SiteCondition::Fire), 2);
    // But never ahead of an owner that is still heard, nor of closed legs.
    let mut attested = world.attested_by_b();
    attested.attestation.owner_silent = false;
    assert_eq!(world.clone().must(fail_over(SiteCondition::Fire, vec![attested])).len(), 1);
    world.must(report(SiteCondition::Lost, ConditionSource::Signal));
    assert_eq!(attempt(&world, SiteCondition::Lost), 1, "lost is no such signal");
}

#[test]
fn a_failover_that_moves_nothing_is_recorded_once_per_condition() {
    let mut world = World::with_volume();
    world.must(report(SiteCondition::Lost, ConditionSource::Watcher));
    world.must(fail_over(SiteCondition::Lost, vec![]));
    let again = |number| Command::FailOverSite {
        failover: FailoverId(uuid(number)),
        site: SITE_A,
        evidence: evidence(SiteCondition::Lost),
        attested: vec![],
    };
    assert_eq!(world.refuses(again(92)).0, "nothing-to-move");
    world.must(report(SiteCondition::Normal, ConditionSource::Watcher));
    world.must(report(SiteCondition::Lost, ConditionSource::Watcher));
    world.must(again(92));
    let other_site = Command::FailOverSite {
        failover: FailoverId(uuid(93)),
        site: SITE_B,
        evidence: evidence(SiteCondition::Lost),
        attested: vec![],
    };
    let (code, text) = world.refuses(other_site);
    assert_eq!((code, text.contains("owns nothing")), ("nothing-to-move", true));
}

/// A second node at A, with a pool of its own and a formatted volume that it owns.
fn with_sibling() -> (World, GroupId) {
    let mut world = World::with_volume();
    let (node, pool, device) = (NodeId(uuid(15)), PoolId(uuid(25)), DeviceId(uuid(35)));
    world.must(Command::AddNode {
        node,
        name: name("node-a2"),
        site: SITE_A,
        portals: portals(4_100),
        verifier: voute_schemas::Hash([5; 32]),
    });
    world.must(Command::CreatePool {
        pool,
        name: name("pool-a2"),
        site: SITE_A,
        extent_bytes: EXTENT,
    });
    let locator = voute_schemas::place::Locator::Memory { size_bytes: 1 << 40 };
    let overwrite = false;
    world.must(Command::AddDevice { device, name: name("a2"), node, pool, locator, overwrite });
    world.asks(node, Escalation::DeviceReady { device, size_bytes: 1 << 30, block_bytes: 512 });
    world.must(create_other(7, MIB, &[pool, POOL_B]));
    let group = GroupId(uuid(20_007));
    let legs: Vec<_> = world
        .state
        .volumes()
        .flat_map(|(_, it)| it.legs.clone())
        .filter(|it| !it.formatted)
        .collect();
    for leg in legs {
        world.asks(leg.node, Escalation::LegFormatted { leg: leg.leg });
    }
    (world, group)
}

#[test]
fn of_a_site_that_is_not_lost_only_nodes_that_own_attested_groups_are_left() {
    let (mut world, of_sibling) = with_sibling();
    world.must(create_other(8, MIB, &[POOL_A])); // owned by the lost node, without another side
    let attested = world.attested_by_b();
    let lost = world.clone().must(fail_over(SiteCondition::Lost, vec![attested]));
    let Event::FailoverDecided { evidence, .. } = &lost[0] else { panic!("{lost:?}") };
    assert_eq!(evidence.left_behind_total, 2, "all that the site owns is accounted for");

    let events = world.must(fail_over(SiteCondition::Normal, vec![attested]));
    let Event::FailoverDecided { evidence, .. } = &events[0] else { panic!("{events:?}") };
    let left: Vec<_> = evidence.left_behind.iter().map(|it| it.group).collect();
    assert_eq!(left, [GroupId(uuid(20_008))], "what that node owns, not what its sibling owns");
    assert!(matches!(events[1..], [Event::OwnerMoved { group: GROUP, to: NODE_B, .. }]));
    assert_ne!(world.state.group(of_sibling).unwrap().owner, NODE_B);
    assert_eq!(world.state.site(SITE_A).unwrap().condition, SiteCondition::Normal);
    // Another control process proposed the same: what it attested has moved.
    let again = Command::FailOverSite {
        failover: FailoverId(uuid(92)),
        site: SITE_A,
        evidence: evidence.clone(),
        attested: vec![attested],
    };
    assert_eq!(world.refuses(again).0, "nothing-to-move");
}

#[test]
fn a_site_that_is_not_lost_needs_the_same_attestation() {
    let (world, _) = with_sibling();
    let stays = |edit: fn(&mut AttestedGroup)| {
        let mut attested = world.attested_by_b();
        edit(&mut attested);
        let events = world.clone().must(fail_over(SiteCondition::Normal, vec![attested]));
        assert_eq!(events.len(), 1, "{events:?}");
    };
    stays(|it| it.epoch = Epoch::ZERO);
    stays(|it| it.to = NODE_A);
    stays(|it| it.attestation.legs_open = false);
    stays(|it| it.attestation.owner_silent = false);
    stays(|it| it.attestation.lease_expired = false);
}

#[test]
fn a_detach_and_a_failover_race_in_the_log_and_the_loser_obeys() {
    let detach = |epoch| Escalation::DetachSide {
        group: GROUP,
        epoch,
        site: SITE_B,
        cause: DetachCause::Unreachable,
    };
    let mut world = World::with_volume();
    let (epoch, attested) = (world.epoch(), world.attested_by_b());
    world.must(fail_over(SiteCondition::Lost, vec![attested]));
    assert_eq!(world.denies(NODE_A, detach(epoch)), "stale-epoch");
    assert_eq!(world.denies(NODE_A, detach(world.epoch())), "not-owner");

    let mut world = World::with_volume();
    let attested = world.attested_by_b();
    world.detach_b();
    assert!(cause_of_staying(&world, vec![attested]).contains("not in sync"));
}

#[test]
fn the_phases_of_a_failover_are_recorded_once() {
    let mut world = World::with_volume();
    let phases = FailoverPhases {
        detection_ms: 2_000,
        commit_ms: 3,
        lease_wait_ms: 0,
        open_ms: 12,
        first_io_ms: Some(5),
        groups: 1,
    };
    let record = Command::RecordFailover { failover: FAILOVER, phases };
    assert_eq!(world.refuses(record.clone()).0, "unknown-id");
    let attested = world.attested_by_b();
    world.must(fail_over(SiteCondition::Lost, vec![attested]));
    world.must(record.clone());
    assert_eq!(world.state.failover(FAILOVER).unwrap().phases, Some(phases));
    assert_eq!(world.refuses(record).0, "unchanged");
}

#[test]
fn a_failover_of_very_many_groups_fits_a_commit_and_goes_on_in_the_next() {
    let mut world = World::with_pools();
    let count = 10_150_u128;
    let created = |n: u128| {
        let leg = |number, at, device| {
            let leg = LegId(uuid(number));
            placement(leg, at, vec![run(device, 0, 1)])
        };
        Event::VolumeCreated {
            volume: VolumeId(uuid(1_000_000 + n)),
            name: name(&format!("v-{n}")),
            group: GroupId(uuid(2_000_000 + n)),
            number: u32::try_from(n).unwrap() + 1,
            size_bytes: MIB,
            block_bytes: 512,
            legs: vec![
                leg(3_000_000 + n, (POOL_A, SITE_A, NODE_A), DEVICE_A),
                leg(4_000_000 + n, (POOL_B, SITE_B, NODE_B), DEVICE_B),
            ],
            owner: NODE_A,
            policy: None,
        }
    };
    world.given((0..count).map(created).collect());
    let formatted = |n| Event::LegFormatted { leg: LegId(uuid(4_000_000 + n)) };
    world.given((0..count).map(formatted).collect());
    let attest = |world: &World| -> Vec<AttestedGroup> {
        let attested = |(group, it): (GroupId, &crate::domain::state::Group)| AttestedGroup {
            group,
            epoch: it.epoch,
            to: NODE_B,
            attestation: attestation(),
        };
        world.state.groups().map(attested).collect()
    };
    let all = attest(&world);
    world.must(fail_over(SiteCondition::Lost, all.clone()));
    let (_, commit) = world.log.last().unwrap();
    assert!(commit.encode().len() < COMMIT_BYTES_MAX, "{}", commit.encode().len());
    let failover = world.state.failover(FAILOVER).unwrap();
    assert_eq!((failover.moved, failover.evidence.left_behind_total), (10_000, 150));
    assert_eq!(failover.evidence.left_behind.len(), 100);
    world.must(Command::FailOverSite {
        failover: FailoverId(uuid(92)),
        site: SITE_A,
        evidence: evidence(SiteCondition::Lost),
        attested: all,
    });
    assert_eq!(world.state.failover(FailoverId(uuid(92))).unwrap().moved, 150);
    assert!(world.state.groups().all(|(_, group)| group.owner == NODE_B));
}

#[test]
fn only_the_youngest_failovers_are_remembered() {
    let mut world = World::with_pools();
    let last = FAILOVERS_MAX as u128 + 5;
    for number in 0..last {
        world.given(vec![Event::FailoverDecided {
            failover: FailoverId(uuid(last - number)), // ids do not tell their age
            site: SITE_A,
            evidence: evidence(SiteCondition::Lost),
        }]);
    }
    assert_eq!(world.state.failovers().count(), FAILOVERS_MAX);
    assert!(world.state.failover(FailoverId(uuid(last))).is_none());
    assert!(world.state.failover(FailoverId(uuid(1))).is_some());
}

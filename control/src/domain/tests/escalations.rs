use super::world::*;
use crate::domain::{Refusal, decide, decide_escalations, decide_escalations_at};
use voute_schemas::command::{Command, Escalation};
use voute_schemas::commit::{COMMIT_BYTES_MAX, Outcome};
use voute_schemas::contract::ESCALATIONS_MAX;
use voute_schemas::event::*;
use voute_schemas::ids::*;
use voute_schemas::{Epoch, Hash};

fn detach(epoch: Epoch, cause: DetachCause) -> Escalation {
    Escalation::DetachSide { group: GROUP, epoch, site: SITE_B, cause }
}

fn join(epoch: Epoch) -> Escalation {
    Escalation::JoinSide { group: GROUP, epoch, site: SITE_B, resync: resync() }
}

fn confirm(epoch: Epoch, incarnation: u64) -> Escalation {
    Escalation::ConfirmOwner { group: GROUP, epoch, incarnation }
}

fn hand_over(epoch: Epoch) -> Escalation {
    Escalation::HandOver { group: GROUP, epoch, cause: "read error".to_owned() }
}

#[test]
fn the_owner_detaches_its_peer_and_the_epoch_rises() {
    let mut world = World::with_volume();
    let (epoch, common) = (world.epoch(), world.group().last_common);
    let cause = DetachCause::DeviceError { detail: "x".repeat(1_000) };
    let events = world.asks(NODE_A, detach(epoch, cause));
    let cause = DetachCause::DeviceError { detail: "x".repeat(160) };
    assert_eq!(events, [Event::LegDetached { group: GROUP, site: SITE_B, cause }]);
    assert!(world.epoch() > epoch);
    assert_eq!(world.group().last_common, common);
    assert!(world.state.side_is_formatted(world.group(), SITE_B));
    let again = detach(world.epoch(), DetachCause::Unreachable);
    assert_eq!(world.asks(NODE_A, again), [], "it is so already");
}

#[test]
fn only_the_owner_at_the_exact_epoch_changes_authority() {
    let world = World::with_volume();
    let epoch = world.epoch();
    let forked = Epoch { hash: Hash([9; 32]), ..epoch };
    let older = Epoch { sequence: voute_schemas::Sequence(epoch.sequence.0 - 1), ..epoch };
    let newer = Epoch { sequence: epoch.sequence.next(), ..epoch };
    let requests = |epoch| {
        [detach(epoch, DetachCause::Unreachable), join(epoch), hand_over(epoch), confirm(epoch, 1)]
    };
    for epoch in [forked, older, newer, Epoch::ZERO] {
        for request in requests(epoch) {
            assert_eq!(world.denies(NODE_A, request), "stale-epoch");
        }
    }
    for request in requests(epoch) {
        assert_eq!(world.denies(NODE_B, request.clone()), "not-owner");
        assert_eq!(world.denies(NodeId(uuid(99)), request), "unknown-id");
    }
}

#[test]
fn an_owner_does_not_detach_itself_and_names_real_sides() {
    let world = World::with_volume();
    let at = |site| Escalation::DetachSide {
        group: GROUP,
        epoch: world.epoch(),
        site,
        cause: DetachCause::Unreachable,
    };
    assert_eq!(world.denies(NODE_A, at(SITE_A)), "own-side");
    assert_eq!(world.denies(NODE_A, at(SITE_W)), "no-such-side");
    assert_eq!(world.denies(NODE_A, at(SiteId(uuid(99)))), "unknown-id");
}

#[test]
fn a_resynced_side_joins_and_both_are_common_again() {
    let mut world = World::with_volume();
    world.detach_b();
    let epoch = world.epoch();
    let events = world.asks(NODE_A, join(epoch));
    assert_eq!(events, [Event::LegInSync { group: GROUP, site: SITE_B, resync: resync() }]);
    assert!(world.epoch() > epoch && world.in_sync(SITE_B));
    assert_eq!(world.group().last_common, world.epoch());
    assert_eq!(world.asks(NODE_A, join(world.epoch())), [], "it is so already");
    assert_eq!(world.denies(NODE_A, join(epoch)), "stale-epoch");
}

#[test]
fn a_side_that_lost_its_content_is_formatted_anew_and_fully_copied() {
    let mut world = World::with_volume();
    world.asks(NODE_A, detach(world.epoch(), DetachCause::ContentLost));
    assert!(!world.state.side_is_formatted(world.group(), SITE_B));
    assert_eq!(world.group().last_common, Epoch::ZERO);
    assert_eq!(world.denies(NODE_A, join(world.epoch())), "not-formatted");
    world.asks(NODE_B, Escalation::LegFormatted { leg: LEG_B });
    world.asks(NODE_A, join(world.epoch()));
    assert_eq!(world.group().last_common, world.epoch());
}

#[test]
fn lost_content_is_news_of_a_side_that_left_for_another_reason() {
    let mut world = World::with_volume();
    world.detach_b();
    let lost = |world: &World| detach(world.epoch(), DetachCause::ContentLost);
    let events = world.asks(NODE_A, lost(&world));
    assert!(matches!(events[..], [Event::LegDetached { cause: DetachCause::ContentLost, .. }]));
    assert_eq!(world.group().last_common, Epoch::ZERO);
    assert_eq!(world.asks(NODE_A, lost(&world)), [], "that is known now");
}

#[test]
fn an_owner_hands_over_to_the_other_in_sync_side_and_leaves() {
    let mut world = World::with_volume();
    let events = world.asks(NODE_A, hand_over(world.epoch()));
    let kind = MoveKind::HandedOver { cause: "read error".to_owned() };
    assert_eq!(events, [Event::OwnerMoved { group: GROUP, from: NODE_A, to: NODE_B, kind }]);
    assert_eq!(world.group().owner, NODE_B);
    assert!(!world.in_sync(SITE_A));
    let back = Escalation::HandOver { group: GROUP, epoch: world.epoch(), cause: String::new() };
    assert_eq!(world.denies(NODE_B, back), "no-other-side");

    let mut unformatted = World::with_pools();
    unformatted.must(create_volume(MIB));
    assert_eq!(unformatted.denies(NODE_A, hand_over(unformatted.epoch())), "no-other-side");
}

#[test]
fn a_node_gets_a_group_that_a_host_wants_there_only_in_sync_and_at_the_epoch_that_it_saw() {
    let want = |epoch| {
        let host = "nqn.2014-08.org.nvmexpress:uuid:1".to_owned();
        Escalation::WantOwner { group: GROUP, epoch, host }
    };
    let mut world = World::with_host();
    let epoch = world.epoch();
    let kind = MoveKind::AskedByHost { host: Some(HOST) };
    let moved = |from, to| Event::OwnerMoved { group: GROUP, from, to, kind: kind.clone() };
    assert_eq!(world.asks(NODE_B, want(epoch)), [moved(NODE_A, NODE_B)]);
    assert_eq!(world.asks(NODE_B, want(epoch)), [], "it is so already");
    assert_eq!(world.denies(NODE_A, want(epoch)), "stale-epoch", "another's move is not undone");
    let (epoch, cause) = (world.epoch(), DetachCause::Unreachable);
    world.asks(NODE_B, Escalation::DetachSide { group: GROUP, epoch, site: SITE_A, cause });
    assert_eq!(world.denies(NODE_A, want(world.epoch())), "not-in-sync");
}

#[test]
fn a_host_does_not_override_the_operator_nor_another_host() {
    let mut world = World::with_volume();
    let want = |world: &World| Escalation::WantOwner {
        group: GROUP,
        epoch: world.epoch(),
        host: "iqn.nobody".to_owned(),
    };
    let at = |world: &World, node, now_unix_ms| {
        let decided = decide_escalations_at(&world.state, node, &[want(world)], now_unix_ms);
        decided.into_iter().next().unwrap().map_err(|refusal| refusal.code())
    };
    // The commits of this world are of 1970. Whoever moved it: for 20 s it stays.
    world.must(Command::MoveOwner { group: GROUP, to: SITE_B });
    for now in [0, 19_999] {
        assert_eq!(at(&world, NODE_A, now), Err("hosts-may-not-move"), "{now}");
    }
    let kind = MoveKind::AskedByHost { host: None };
    let back = Event::OwnerMoved { group: GROUP, from: NODE_B, to: NODE_A, kind };
    assert_eq!(at(&world, NODE_A, 20_000), Ok(vec![back.clone()]));
    assert_eq!(world.asks(NODE_A, want(&world)), [back]);
    assert_eq!(at(&world, NODE_B, 19_999), Err("hosts-may-not-move"), "nor to and fro");
    // Not to a site that is being emptied, or is going.
    for condition in [SiteCondition::Maintenance, SiteCondition::PowerLost, SiteCondition::Normal] {
        world.must(Command::ReportSiteCondition {
            site: SITE_B,
            condition,
            source: ConditionSource::Signal,
            detail: String::new(),
        });
        assert_eq!(at(&world, NODE_B, u64::MAX).is_ok(), condition == SiteCondition::Normal);
    }
    // Nor what moves only when told.
    let policy = PolicyId(uuid(44));
    let rules = |mode| PolicyRules { mode, hold_down_ms: 0, preferred_site: None, failback: false };
    let created = rules(FailoverMode::Manual);
    let mut world = World::with_pools();
    world.given(vec![Event::PolicyCreated { policy, name: name("told"), rules: created }]);
    let mut volume = create_volume(MIB);
    if let Command::CreateVolume { policy: of_volume, .. } = &mut volume {
        *of_volume = Some(policy);
    }
    world.must(volume);
    let formatted = |leg| Event::LegFormatted { leg };
    world.given(vec![formatted(LEG_A), formatted(LEG_B)]);
    assert_eq!(at(&world, NODE_B, u64::MAX), Err("hosts-may-not-move"));
    world.given(vec![Event::PolicyChanged { policy, rules: rules(FailoverMode::OnSignal) }]);
    assert!(at(&world, NODE_B, u64::MAX).is_ok());
}

#[test]
fn a_start_is_confirmed_once_and_an_older_one_never_after_it() {
    let mut world = World::with_volume();
    let epoch = world.epoch();
    let confirmed = |incarnation| Event::OwnerConfirmed { group: GROUP, node: NODE_A, incarnation };
    assert_eq!(world.asks(NODE_A, confirm(epoch, 0)), [confirmed(0)]);
    assert_eq!(world.asks(NODE_A, confirm(epoch, 5)), [confirmed(5)]);
    assert_eq!(world.epoch(), epoch, "nobody's authority changed");
    assert_eq!(world.asks(NODE_A, confirm(epoch, 5)), []);
    assert_eq!(world.denies(NODE_A, confirm(epoch, 4)), "stale-incarnation");
    world.must(Command::MoveOwner { group: GROUP, to: SITE_B });
    let by_b = confirm(world.epoch(), 1);
    assert_eq!(world.asks(NODE_B, by_b).len(), 1, "another node counts its own starts");
}

#[test]
fn a_batch_is_decided_in_order_into_one_commit() {
    let mut world = World::with_volume();
    let epoch = world.epoch();
    let requests = [
        detach(epoch, DetachCause::ContentLost),
        detach(epoch, DetachCause::Unreachable),
        Escalation::LegFormatted { leg: LEG_A },
        Escalation::DeviceReady {
            device: DeviceId(uuid(99)),
            size_bytes: 1 << 30,
            block_bytes: 512,
        },
        confirm(epoch, 1),
    ];
    let outcomes = decide_escalations(&world.state, NODE_A, &requests);
    let codes: Vec<_> = outcomes.iter().map(|it| it.as_ref().map_err(Refusal::code)).collect();
    let detached =
        vec![Event::LegDetached { group: GROUP, site: SITE_B, cause: DetachCause::ContentLost }];
    assert_eq!(
        codes,
        [Ok(&detached), Err("stale-epoch"), Ok(&vec![]), Err("unknown-id"), Err("stale-epoch")]
    );
    let command = Command::Escalate { node: NODE_A, requests: requests.to_vec() };
    assert_eq!(world.must(command), detached);
    assert!(!world.state.side_is_formatted(world.group(), SITE_B));
}

#[test]
fn what_an_earlier_request_of_a_batch_did_counts_for_a_later_one() {
    let mut world = World::with_pools();
    world.must(create_volume(MIB));
    let formatted = Escalation::LegFormatted { leg: LEG_A };
    let outcomes = decide_escalations(&world.state, NODE_A, &[formatted.clone(), formatted]);
    assert_eq!(outcomes, [Ok(vec![Event::LegFormatted { leg: LEG_A }]), Ok(vec![])]);
}

#[test]
fn a_batch_is_refused_only_if_all_of_it_is() {
    let world = World::with_volume();
    let stale = detach(Epoch::ZERO, DetachCause::Unreachable);
    let known = Escalation::LegFormatted { leg: LEG_A };
    let together = |requests: &[Escalation]| {
        let requests = requests.to_vec();
        decide(&world.state, &Command::Escalate { node: NODE_A, requests })
    };
    assert!(matches!(together(&[stale.clone(), stale.clone()]), Err(Refusal::StaleEpoch { .. })));
    assert_eq!(together(&[stale, known]), Ok(vec![]));
    assert_eq!(together(&[]), Ok(vec![]));
}

#[test]
fn the_largest_batch_fits_a_commit() {
    let mut world = World::with_pools();
    let number = |n: usize| u128::try_from(n).unwrap();
    let created = |n: usize| Event::VolumeCreated {
        volume: VolumeId(uuid(1_000_000 + number(n))),
        name: name(&format!("v-{n}")),
        group: GroupId(uuid(2_000_000 + number(n))),
        number: u32::try_from(n).unwrap() + 1,
        size_bytes: MIB,
        block_bytes: 512,
        legs: vec![
            placement(LegId(uuid(3_000_000 + number(n))), (POOL_A, SITE_A, NODE_A), vec![]),
            placement(LegId(uuid(4_000_000 + number(n))), (POOL_B, SITE_B, NODE_B), vec![]),
        ],
        owner: NODE_A,
        policy: None,
    };
    world.given((0..ESCALATIONS_MAX).map(created).collect());
    let formatted = |n| Event::LegFormatted { leg: LegId(uuid(4_000_000 + number(n))) };
    world.given((0..ESCALATIONS_MAX).map(formatted).collect());
    let cause = "x".repeat(10_000);
    let requests: Vec<Escalation> = world
        .state
        .groups()
        .map(|(group, it)| Escalation::HandOver { group, epoch: it.epoch, cause: cause.clone() })
        .collect();
    let events = world.must(Command::Escalate { node: NODE_A, requests });
    assert_eq!(events.len(), ESCALATIONS_MAX);
    let (_, commit) = world.log.last().unwrap();
    assert!(matches!(commit.outcome, Outcome::Accepted(_)));
    assert!(commit.encode().len() < COMMIT_BYTES_MAX, "{}", commit.encode().len());
}

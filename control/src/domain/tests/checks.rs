use super::specs::full;
use super::world::*;
use crate::domain::touched;
use voute_schemas::command::{Command, Escalation};
use voute_schemas::contract::VerifyOrder;
use voute_schemas::event::*;

fn verify(repair: bool, now_unix_ms: u64) -> Command {
    Command::VerifyVolume { volume: VOLUME, repair, now_unix_ms }
}

fn verified(world: &World, run: u64) -> Escalation {
    let evidence = VerifyEvidence { regions: 100, bytes: 100 * MIB, ..VerifyEvidence::default() };
    let (group, epoch) = (GROUP, world.epoch());
    Escalation::Verified { group, epoch, volume: VOLUME, run, evidence }
}

#[test]
fn both_nodes_learn_of_a_comparison_until_its_owner_ends_it() {
    let mut world = World::with_volume();
    let before = world.state.clone();
    let events = world.must(verify(true, 77));
    let requested = Event::VerifyRequested { volume: VOLUME, repair: true, requested_unix_ms: 77 };
    assert_eq!(events, [requested]);
    assert_eq!(touched(&before, &world.state, &events).groups.len(), 2);
    let run = world.state.position().sequence.0;
    let order = |world: &World| full(&world.state, NODE_A).groups[0].volumes[0].verify;
    assert_eq!(order(&world), Some(VerifyOrder { run, repair: true }));
    assert_eq!(world.denies(NODE_B, verified(&world, run)), "not-owner");
    assert_eq!(world.asks(NODE_A, verified(&world, run - 1)), [], "another run");
    assert!(order(&world).is_some());
    assert_eq!(world.asks(NODE_A, verified(&world, run)).len(), 1);
    assert_eq!(order(&world), None);
    assert_eq!(world.asks(NODE_A, verified(&world, run)), [], "it is recorded already");
    let check = world.volume().check.clone();
    assert_eq!((check.under_way, check.asked_unix_ms), (None, Some(77)));
    assert_eq!(check.last.unwrap().evidence.regions, 100);
    assert_eq!(world.replayed(), world.state);
}

#[test]
fn a_volume_is_compared_once_at_a_time_and_only_if_it_has_two_legs() {
    let mut world = World::with_volume();
    world.must(verify(false, 1));
    let (code, message) = world.refuses(verify(false, 2));
    assert!(code == "invalid" && message.contains("already"), "{code}: {message}");
    let mut world = World::with_pools();
    world.must(create_other(1, 16 * MIB, &[POOL_A]));
    let (volume, _) = world.state.volumes().next().unwrap();
    let (code, message) =
        world.refuses(Command::VerifyVolume { volume, repair: false, now_unix_ms: 3 });
    assert!(code == "invalid" && message.contains("one leg"), "{code}: {message}");
}

#[test]
fn lost_blocks_are_recorded_once_and_by_the_owner_alone() {
    let mut world = World::with_volume();
    let ranges = vec![BlockRange { offset: 4_096, length: 512 }];
    let lost = |world: &World, ranges: Vec<BlockRange>| Escalation::BlocksLost {
        group: GROUP,
        epoch: world.epoch(),
        volume: VOLUME,
        ranges,
    };
    assert_eq!(world.denies(NODE_B, lost(&world, ranges.clone())), "not-owner");
    let asked = lost(&world, ranges.clone());
    let events = world.asks(NODE_A, asked.clone());
    assert_eq!(events, [Event::BlocksLost { volume: VOLUME, ranges: ranges.clone() }]);
    assert_eq!(world.asks(NODE_A, asked), [], "the answer was lost");
    assert_eq!(world.volume().check.lost, ranges);
    let many = (0..100).map(|at| BlockRange { offset: at * 8_192, length: 512 }).collect();
    let asked = lost(&world, many);
    world.asks(NODE_A, asked);
    assert_eq!(world.volume().check.lost.len(), 33, "what was lost before stays lost");
    assert_eq!(world.volume().check.lost_bytes(), 33 * 512);
    // Until it was written again, and a comparison could read everything.
    world.must(verify(false, 1));
    let run = world.state.position().sequence.0;
    world.asks(NODE_A, verified(&world, run));
    assert_eq!((world.volume().check.lost.len(), world.volume().check.lost_bytes()), (0, 0));
}

#[test]
fn regions_that_differ_are_counted_until_they_are_repaired() {
    let mut world = World::with_volume();
    for (repaired_regions, left) in [(0, 7), (7, 0)] {
        world.must(verify(repaired_regions > 0, 1));
        let run = world.state.position().sequence.0;
        let evidence =
            VerifyEvidence { differing_regions: 7, repaired_regions, ..VerifyEvidence::default() };
        let (group, epoch) = (GROUP, world.epoch());
        world.asks(NODE_A, Escalation::Verified { group, epoch, volume: VOLUME, run, evidence });
        assert_eq!(world.volume().check.differing_regions(), left);
    }
}

#[test]
fn a_comparison_ends_with_the_leg_that_it_was_to_compare() {
    let mut world = World::with_volume();
    world.must(verify(false, 1));
    world.must(Command::RemoveLeg { volume: VOLUME, leg: LEG_B });
    assert_eq!(world.volume().check.under_way, None);
    assert_eq!(world.replayed(), world.state);
}

#[test]
fn a_schedule_is_kept_and_said_once() {
    let mut world = World::with_volume();
    let monthly = Command::ScheduleScrub { every_hours: Some(720), repair: false };
    assert_eq!(world.must(monthly.clone()).len(), 1);
    assert_eq!(world.must(monthly), []);
    assert_eq!(world.state.scrub().every_hours, Some(720));
    for hours in [0, u32::MAX] {
        let never = Command::ScheduleScrub { every_hours: Some(hours), repair: false };
        assert_eq!(world.refuses(never).0, "invalid");
    }
    assert_eq!(world.replayed(), world.state);
}

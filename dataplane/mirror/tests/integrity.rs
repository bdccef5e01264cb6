//! Legs that differ and blocks that cannot be read: what is found, mended, reported and kept.
//! The simulation is that of `cluster.rs`.

#![allow(
    unreachable_pub,
    dead_code,
    clippy::print_stdout,
    reason = "modules of another test, which tells its story"
)]

mod simulation;

use simulation::Simulation;
use std::collections::BTreeSet;
use std::time::Duration;
use voute_mirror::header::{Header, LostRange};
use voute_schemas::contract::LegState;
use voute_schemas::event::BlockRange;

#[test]
fn equal_legs_are_found_equal_under_load() {
    let mut simulation = Simulation::new(11);
    simulation.run_quietly(2_000);
    let found = simulation.compare(false);
    assert_eq!((found.regions, found.differing_regions), (16, 0), "{found:?}");
    assert_eq!((found.mended_bytes, found.lost_bytes), (0, 0));
    assert_eq!(found.bytes, simulation::BLOCKS * simulation::BLOCK);
    simulation.verify();
}

#[test]
fn a_bit_that_turned_on_one_leg_is_found_and_repaired_only_when_told() {
    let mut simulation = Simulation::new(12);
    simulation.run_quietly(2_000);
    simulation.quieten();
    // One region, of sixteen blocks, of the leg that hosts do not read.
    let spoilt = simulation.spoil(1, 32..48);
    assert!(spoilt > 0, "a region without a block that was written");
    let found = simulation.compare(false);
    assert_eq!((found.differing_regions, found.repaired_regions), (1, 0), "{found:?}");
    let range = found.differing[0];
    assert!(range.offset >= 32 * 4096 && range.offset + range.length <= 48 * 4096, "{range:?}");
    let found = simulation.compare(true);
    assert_eq!((found.differing_regions, found.repaired_regions), (1, 1), "{found:?}");
    let found = simulation.compare(false);
    assert_eq!(found.differing_regions, 0, "{found:?}");
    simulation.verify();
}

#[test]
fn blocks_that_the_owner_cannot_read_are_read_from_the_peer_and_written_back() {
    let mut simulation = Simulation::new(13);
    simulation.run_quietly(2_000);
    simulation.damage(0, (0..240).step_by(5));
    assert_eq!(simulation.damaged(0), 48);
    // The host's reads and writes, and a comparison, come by all of them.
    simulation.run_quietly(1_000);
    let found = simulation.compare(false);
    assert_eq!((found.differing_regions, found.lost_bytes), (0, 0), "{found:?}");
    assert_eq!(simulation.damaged(0), 0, "some were not mended");
    simulation.verify();
}

#[test]
fn a_read_that_the_peer_answered_is_mended_without_a_comparison() {
    let mut simulation = Simulation::new(14);
    simulation.run_quietly(2_000);
    simulation.quieten();
    simulation.damage(0, 100..104);
    assert!((100..104).all(|block| simulation.is_readable(block)));
    simulation.run_quietly(1_000);
    assert_eq!(simulation.damaged(0), 0);
    simulation.verify();
}

#[test]
fn a_comparison_mends_blocks_that_the_peer_cannot_read() {
    let mut simulation = Simulation::new(15);
    simulation.run_quietly(2_000);
    simulation.damage(1, (3..240).step_by(50));
    let found = simulation.compare(false);
    assert!(found.mended_bytes > 0, "{found:?}");
    assert_eq!((simulation.damaged(1), found.differing_regions), (0, 0));
    simulation.verify();
}

#[test]
fn a_resync_from_a_leg_with_bad_blocks_ends_and_says_which_are_lost() {
    let mut simulation = Simulation::new(16);
    simulation.expects_medium_errors = true;
    let took = simulation.resync_from_a_damaged_leg([17, 18, 90].into_iter());
    assert!(took < Duration::from_secs(20), "in sync only after {took:?}");
    simulation.run_quietly(3_000);
    let blocks = |range: &BlockRange| range.offset / 4096..(range.offset + range.length) / 4096;
    let lost: BTreeSet<u64> = simulation.log.lost.iter().flat_map(blocks).collect();
    assert_eq!(lost, [17, 18, 90].into());
    for _ in 0..2 {
        assert!(!simulation.is_readable(17) && !simulation.is_readable(90), "invented content");
        assert!(
            simulation.is_readable(16) && simulation.is_readable(91),
            "a good block was given up"
        );
        simulation.swap_owner();
    }
    // Whoever writes a lost block has it again, on both legs.
    for block in [17, 18, 90] {
        simulation.begin_write(block);
        simulation.settle_host();
        assert!(simulation.is_readable(block));
    }
    assert_eq!(simulation.damaged(0), 0);
    simulation.verify();
}

#[test]
fn a_leg_that_kept_a_block_is_not_told_by_one_made_without_it_that_it_is_lost() {
    let mut simulation = Simulation::new(21);
    simulation.expects_medium_errors = true;
    simulation.resync_from_a_damaged_leg([17].into_iter());
    simulation.swap_owner();
    simulation.run_quietly(1_000);
    // The first leg goes, reads again, and comes back; hosts wrote beside the block meanwhile.
    simulation.lose(0);
    simulation.mend(0);
    simulation.begin_write(18);
    simulation.settle_host();
    simulation.regain(0);
    for _ in 0..2 {
        assert!(simulation.is_readable(17), "the last content was thrown away");
        simulation.swap_owner();
    }
    simulation.verify();
}

#[test]
fn blocks_that_were_lost_are_mended_when_their_source_reads_again() {
    // When the new leg joins, and when its node becomes the owner.
    for joins in [true, false] {
        let mut simulation = Simulation::new(22);
        simulation.expects_medium_errors = true;
        simulation.begin_resync_from_a_damaged_leg([17, 90].into_iter());
        simulation.await_lost(2);
        if joins {
            simulation.mend(0);
        }
        simulation.await_sync();
        if !joins {
            simulation.run_quietly(1_000);
            simulation.mend(0);
            simulation.swap_owner();
        }
        simulation.run_quietly(1_000);
        let found = simulation.compare(false);
        assert_eq!((found.mended_bytes, found.lost_bytes), (0, 0), "left to chance: {found:?}");
        simulation.verify();
    }
}

#[test]
fn a_write_waits_for_the_repair_of_a_comparison_that_was_called_off() {
    let mut simulation = Simulation::new(24);
    simulation.run_quietly(2_000);
    simulation.quieten();
    assert!(simulation.spoil(1, 32..48) > 0, "a region without a block that was written");
    simulation.cancel_a_repair();
    for block in 32..48 {
        simulation.begin_write(block);
        simulation.settle_host();
    }
    simulation.run_quietly(1_000);
    simulation.verify();
}

#[test]
fn neither_a_leg_nor_a_host_suffers_when_a_disk_tries_long_to_read_a_bad_block() {
    for node in [0, 1] {
        let mut simulation = Simulation::new(26);
        simulation.run_quietly(2_000);
        simulation.quieten();
        simulation.damage(node, 40..42);
        simulation.slow_down(node, 40..42, Duration::from_secs(7));
        let before = simulation.log.describe();
        let (found, longest) = simulation.compare_under_writes(43);
        assert_eq!(simulation.log.describe(), before, "a leg was given up");
        assert!(longest < Duration::from_millis(1_500), "a write took {longest:?}");
        assert_eq!((found.mended_bytes, found.lost_bytes), (2 * 4096, 0), "{found:?}");
        assert_eq!((found.regions, found.differing_regions), (16, 0), "{found:?}");
        assert_eq!(simulation.damaged(node), 0);
        simulation.slow_down(node, std::iter::empty(), Duration::ZERO);
        simulation.verify();
    }
}

#[test]
fn a_region_that_is_read_too_slowly_is_left_out_of_a_comparison() {
    for node in [0, 1] {
        let mut simulation = Simulation::new(27);
        simulation.run_quietly(2_000);
        simulation.quieten();
        simulation.slow_down(node, 40..41, Duration::from_secs(7));
        let before = simulation.log.describe();
        let (found, longest) = simulation.compare_under_writes(43);
        assert_eq!(simulation.log.describe(), before, "a leg was given up");
        assert!(longest < Duration::from_millis(1_500), "a write took {longest:?}");
        assert_eq!((found.regions, found.lost_bytes), (15, 0), "{found:?}");
    }
}

#[test]
fn a_comparison_may_be_called_off_at_any_step() {
    let mut simulation = Simulation::new(25);
    simulation.run_quietly(2_000);
    for round in 0..200 {
        simulation.spoil(1, (round % 200..256).step_by(40));
        simulation.order_repair();
        simulation.run_for_micros(97 * round);
        simulation.cancel_verify();
    }
    // Specs that are late would take back what is ordered next.
    simulation.run_quietly(2_000);
    simulation.quieten();
    simulation.compare(true);
    assert_eq!(simulation.compare(false).differing_regions, 0);
    simulation.verify();
}

#[test]
fn blocks_that_are_lost_are_all_reported_however_many_ranges_they_make() {
    let mut simulation = Simulation::new(28);
    simulation.expects_medium_errors = true;
    simulation.run_quietly(2_000);
    simulation.quieten();
    let bad = || (0..240).step_by(3);
    simulation.damage(0, bad());
    simulation.damage(1, bad());
    simulation.order_repair();
    simulation.run_quietly(5);
    // Nothing is reported before all are known.
    simulation.log.reachable = false;
    simulation.run_quietly(10_000);
    simulation.log.reachable = true;
    simulation.run_quietly(3_000);
    assert_eq!(simulation.log.verified[0].lost_bytes, 80 * 4096);
    let lost: BTreeSet<u64> = simulation.log.lost.iter().map(|range| range.offset / 4096).collect();
    assert_eq!(lost, bad().collect());
}

#[test]
fn each_region_of_a_resync_is_tried_for_as_long_as_any_other() {
    let mut simulation = Simulation::new(29);
    simulation.expects_medium_errors = true;
    // All that is copied at a time is slow but for one bad block; another shows only after that.
    simulation.slow_down(0, (16..80).step_by(16), Duration::from_secs(11));
    simulation.begin_resync_from_a_damaged_leg([1, 100].into_iter());
    simulation.await_lost(1);
    simulation.run_quietly(2_000);
    simulation.mend(0);
    simulation.await_sync();
    let lost: BTreeSet<u64> = simulation.log.lost.iter().map(|range| range.offset / 4096).collect();
    assert_eq!(lost, [1].into(), "a block was given up after less than ten seconds");
    simulation.slow_down(0, std::iter::empty(), Duration::ZERO);
    simulation.verify();
}

#[test]
fn a_leg_whose_header_makes_no_sense_is_not_used_and_harms_nobody() {
    let range = |offset, length| LostRange { offset, length };
    let cases: [fn(&mut Header); 6] = [
        |header| header.size_bytes = u64::MAX,
        |header| header.region_bytes = 1,
        |header| header.region_bytes = 0,
        |header| header.pages = u64::MAX,
        |header| header.generation = u64::MAX,
        |header| header.block_bytes = 0,
    ];
    let spoil = |spoil: &dyn Fn(&mut Header)| {
        let mut simulation = Simulation::new(30);
        simulation.run_quietly(1_000);
        simulation.lose(1);
        simulation.rewrite_header(1, spoil);
        simulation.start(1);
        simulation.run_quietly(3_000);
        assert_eq!(simulation.leg_state(1), LegState::Failed);
        assert!(simulation.is_served(), "the other leg serves");
    };
    cases.into_iter().for_each(|case| spoil(&case));
    for lost in [
        vec![range(u64::MAX - 4_095, 8_192)],
        vec![range(0, u64::MAX)],
        vec![range(8_192, 4_096), range(0, 4_096)],
        vec![range(0, 100)],
    ] {
        spoil(&|header| header.lost.clone_from(&lost));
    }
}

#[test]
fn a_source_that_reads_nothing_for_a_while_loses_nothing() {
    let mut simulation = Simulation::new(18);
    simulation.resync_from_a_leg_without_a_path(Duration::from_secs(30));
    assert_eq!(simulation.log.lost, vec![], "blocks were given up that the source has");
    assert!((0..simulation::BLOCKS).all(|block| simulation.is_readable(block)));
    simulation.swap_owner();
    assert!((0..simulation::BLOCKS).all(|block| simulation.is_readable(block)));
    simulation.verify();
}

#[test]
fn a_block_that_fails_while_the_device_reads_its_header_is_lost_whatever_the_error() {
    let mut simulation = Simulation::new(19);
    simulation.expects_medium_errors = true;
    simulation.make_terse(0);
    let took = simulation.resync_from_a_damaged_leg([17, 90].into_iter());
    assert!(took < Duration::from_secs(20), "in sync only after {took:?}");
    let mut lost = simulation.log.lost.clone();
    lost.sort_by_key(|range| range.offset);
    lost.dedup();
    let block = |at: u64| BlockRange { offset: at * 4096, length: 4096 };
    assert_eq!(lost, [block(17), block(90)]);
}

#[test]
fn a_resync_gives_up_so_much_and_no_more() {
    let mut simulation = Simulation::new(20);
    simulation.expects_medium_errors = true;
    simulation.grow(simulation::BLOCKS_MAX);
    simulation.run_quietly(4_000);
    // In one range, which a header would have room for.
    let blocks = simulation.begin_resync_from_a_damaged_leg(0..300);
    assert!(blocks * simulation::BLOCK > 1 << 20, "only {blocks} blocks were written");
    simulation.run_quietly(60_000);
    assert!(!simulation.log.both_in_sync(), "a leg that lacks so much counts as whole");
    simulation.mend(0);
    simulation.run_quietly(60_000);
    assert!(simulation.log.both_in_sync(), "{:?}", simulation.log.describe());
    simulation.swap_owner();
    assert!((0..simulation::BLOCKS_MAX).all(|block| simulation.is_readable(block)));
    simulation.verify();
}

#[test]
fn a_comparison_that_loses_its_peer_waits_and_goes_on() {
    let mut simulation = Simulation::new(17);
    simulation.run_quietly(1_000);
    simulation.log.order_verify(false);
    assert_eq!(simulation.lose_the_peer(), Vec::<String>::new());
    assert_eq!(simulation.log.verified.len(), 0, "there was nothing to compare with");
    simulation.heal();
    simulation.run_quietly(20_000);
    assert_eq!(simulation.log.verified.len(), 1);
    assert_eq!(simulation.log.verified[0].differing_regions, 0);
    simulation.verify();
}

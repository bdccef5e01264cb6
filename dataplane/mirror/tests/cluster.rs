//! Two mirrors, their disks, the link between them, the log and a host, in one thread under one
//! seed: crashes, partitions, torn writes, late and ghost messages, log outages, planned moves.
//! What a host saw is checked as a register per block; a failing seed prints its number.
//!
//! `VOUTE_SEEDS=1000 cargo test -p voute-mirror --release --test cluster` runs more seeds,
//! `VOUTE_SEED=7` one, with its story.

#![allow(
    unreachable_pub,
    dead_code,
    clippy::print_stdout,
    reason = "modules of one test, which tells its story"
)]

mod simulation;

use simulation::Simulation;
use std::time::Duration;

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("VOUTE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("VOUTE_SEEDS").unwrap_or(30),
    }
}

#[test]
fn a_quiet_pair_serves_and_stays_in_sync() {
    let mut simulation = Simulation::new(1);
    simulation.run_quietly(5_000);
    simulation.verify();
    assert!(
        simulation.acknowledged() > 500,
        "only {} writes were acknowledged",
        simulation.acknowledged()
    );
    let (records, confirmed) = simulation.records_acknowledged();
    assert!(records > 100 && confirmed > 50, "{records} records put, {confirmed} confirmations");
}

#[test]
fn a_record_that_one_leg_alone_has_is_on_both_before_an_owner_serves_by_it() {
    let mut simulation = Simulation::new(2);
    let (put, [before, after]) = simulation.tear_a_record();
    assert_eq!(before, put, "the owner's own leg had it");
    assert_eq!(after, put);
    assert_eq!(simulation.owner_changes(), 1, "the other side took over");
}

#[test]
fn an_owner_without_peer_and_log_sends_its_hosts_away_soon() {
    for other_has_log in [true, false] {
        let mut simulation = Simulation::new(4);
        let (sent_away, held, served, by) = simulation.cut_off(other_has_log);
        assert!(sent_away < Duration::from_millis(3_200), "only after {sent_away:?}");
        assert_eq!(held, 0, "requests wait at a node that cannot serve them");
        assert_eq!(by, usize::from(other_has_log), "whom the log lets serve");
        assert!(served < Duration::from_millis(6_500), "served again only after {served:?}");
        simulation.heal();
        simulation.verify();
    }
}

#[test]
fn a_compare_and_write_that_was_told_as_failed_is_not_carried_out() {
    let mut simulation = Simulation::new(6);
    simulation.fail_a_swap(20);
    // Its host tries again, and does not find its own first attempt there.
    simulation.begin_swap(20);
    simulation.settle_host();
    simulation.heal();
    simulation.verify();
}

#[test]
fn a_peer_that_dies_costs_no_path_while_the_log_answers() {
    let mut simulation = Simulation::new(5);
    assert_eq!(
        simulation.lose_the_peer(),
        Vec::<String>::new(),
        "the owner's paths stayed as they were"
    );
    simulation.heal();
    simulation.verify();
}

#[test]
fn no_acknowledged_write_is_lost_and_no_read_goes_back_under_faults() {
    let mut acknowledged = 0;
    let mut failovers = 0;
    for seed in seeds() {
        let mut simulation = Simulation::new(seed);
        simulation.run_with_faults(20_000);
        simulation.heal();
        simulation.verify();
        acknowledged += simulation.acknowledged();
        failovers += simulation.owner_changes();
    }
    println!(
        "{} seeds, {acknowledged} acknowledged writes, {failovers} owner changes",
        seeds().count()
    );
    assert!(seeds().count() == 1 || failovers > 0, "no seed moved an owner: the faults do nothing");
}

//! A fixed budget of seeds, for every run of the tests. `voute-simulate` runs more (README.md).

use std::time::Duration;
use voute_simulation::{Plan, run};

/// `VOUTE_SEEDS` asks for more.
fn seeds() -> u64 {
    std::env::var("VOUTE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

#[test]
fn a_quiet_cluster_serves_and_takes_nothing_out() {
    let plan = Plan { with_faults: false, ..Plan::default() };
    let outcome = run(1, plan);
    assert_eq!(outcome.violation, None);
    assert!(outcome.tally.acknowledged > 100, "{:?}", outcome.tally);
    assert_eq!((outcome.tally.detached, outcome.tally.failovers), (0, 0));
}

#[test]
fn nothing_is_lost_and_everything_is_whole_after_faults() {
    let (mut failovers, mut joined, mut kinds) = (0, 0, std::collections::BTreeSet::new());
    for seed in 0..seeds() {
        let outcome = run(seed, Plan::default());
        assert_eq!(outcome.violation, None, "seed {seed}: `voute-simulate --seed {seed}` tells it");
        failovers += outcome.tally.failovers;
        joined += outcome.tally.joined;
        kinds.extend(outcome.tally.faults.into_keys());
    }
    assert!(failovers > 10 && joined > 10, "{failovers} failovers, {joined} resyncs");
    assert!(kinds.len() > 20, "only these faults: {kinds:?}");
}

#[test]
fn a_seed_replays_exactly() {
    let plan = Plan { faulty: Duration::from_secs(10), ..Plan::default() };
    for seed in [3, 11, 29] {
        let (one, other) = (run(seed, plan), run(seed, plan));
        assert_eq!(one.tally.digest, other.tally.digest, "seed {seed}");
        assert_eq!(one.tally.events, other.tally.events, "seed {seed}");
    }
    assert_ne!(run(3, plan).tally.digest, run(4, plan).tally.digest);
}

/// What each of them once showed is told in docs/safety.md.
#[test]
fn a_seed_that_found_a_fault_finds_none_any_more() {
    for seed in [200_662, 302_626, 502_524, 602_648, 3_028_113, 7_036_020] {
        let outcome = run(seed, Plan::default());
        assert_eq!(outcome.violation, None, "seed {seed}: `voute-simulate --seed {seed}` tells it");
    }
}

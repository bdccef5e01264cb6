//! Some deliberate faults that few seeds must find; `voute-simulate --mutants ''` hunts all of them.
#![cfg(feature = "mutants")]

use voute_simulation::Plan;
use voute_simulation::mutants::{Finder, hunt, with_scenario};

#[test]
fn a_left_out_safeguard_is_found_within_a_few_seeds() {
    for named in ["NoIntentAlone", "AcknowledgeBeforePeer", "WritesPassWrites", "CacheNotFlushed"] {
        let hunts = hunt(named, 0, 200, Plan::default(), |_| {});
        assert!(!hunts.is_empty(), "{named} is a mutant");
        for hunt in hunts {
            assert!(
                hunt.found.is_some(),
                "{:?} was not found by {} seeds",
                hunt.mutant,
                hunt.seeds
            );
        }
    }
}

#[test]
fn each_scenario_is_right_with_its_safeguard_and_shows_when_it_is_left_out() {
    assert!(with_scenario().count() >= 15);
    for mutant in with_scenario() {
        // No seeds: the scenario alone must find it, and nothing without it.
        let hunts = hunt(&format!("{mutant:?}"), 0, 0, Plan::default(), |_| {});
        let found =
            hunts.iter().find(|hunt| hunt.mutant == mutant).and_then(|it| it.found.as_ref());
        assert!(matches!(found, Some((Finder::Scenario(_), _))), "{mutant:?}: {found:?}");
    }
}

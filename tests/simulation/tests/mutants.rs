//! Some deliberate faults that few seeds must find; `voute-simulate --mutants ''` hunts all of them.
#![cfg(feature = "mutants")]

use voute_simulation::{Plan, mutants::hunt};

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

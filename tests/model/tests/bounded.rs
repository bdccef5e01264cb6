//! The model within small bounds. More: `cargo run --release -p voute-model`.

use std::time::Duration;
use voute_model::{Bounds, Menu, Report, explore};

fn bounds(rates: [u32; 2]) -> Bounds {
    Bounds {
        deviations: 1,
        menu: Menu::everything(vec![2, 10]),
        rates,
        checks_sameness: false,
        states_max: 100_000,
        time_max: Duration::from_secs(300),
    }
}

#[track_caller]
fn must_hold(report: &Report) {
    assert!(report.found.is_none(), "{:?}", report.found);
    assert!(report.is_complete, "not everything was visited");
    assert!(report.states > 3_000 && report.healthy > 100, "it explores nothing: {report:?}");
}

#[test]
fn one_fault_anywhere_neither_loses_a_write_nor_takes_back_a_read_nor_stops_the_pair() {
    must_hold(&explore(&bounds([100, 100])));
}

#[test]
fn nor_does_it_with_clocks_that_run_a_fourth_apart() {
    for rates in [[90, 112], [112, 90]] {
        let mut bounds = bounds(rates);
        bounds.menu.steps = vec![10];
        must_hold(&explore(&bounds));
    }
}

#[test]
fn states_that_are_taken_for_the_same_go_on_alike() {
    let mut bounds = bounds([100, 100]);
    bounds.checks_sameness = true;
    bounds.menu.steps = vec![3];
    let report = explore(&bounds);
    must_hold(&report);
    assert!(report.compared > 100, "only {} pairs were compared", report.compared);
}

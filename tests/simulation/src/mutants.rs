//! Runs the deliberate faults of [`voute_schemas::mutant`], one after the other, until each is
//! found.

use crate::{Plan, run};
use std::time::{Duration, Instant};
use voute_schemas::mutant::{MUTANTS, Mutant, activate};

/// Whether and how a mutant was found.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// Which.
    pub mutant: Mutant,
    /// The rule or history that it attacks.
    pub rule: &'static str,
    /// What it does.
    pub what: &'static str,
    /// The seed that found it, and what was wrong there.
    pub found: Option<(u64, String)>,
    /// Seeds run.
    pub seeds: u64,
    /// How long that took.
    pub took: Duration,
}

/// Hunts every mutant whose name contains `named`, with at most `seeds_max` seeds each.
#[must_use]
pub fn hunt(named: &str, from: u64, seeds_max: u64, plan: Plan, told: impl Fn(&Hunt)) -> Vec<Hunt> {
    let mut hunts = Vec::new();
    for (mutant, rule, what) in MUTANTS {
        if !format!("{mutant:?}").contains(named) {
            continue;
        }
        activate(Some(*mutant));
        let began = Instant::now();
        let mut hunt =
            Hunt { mutant: *mutant, rule, what, found: None, seeds: 0, took: Duration::ZERO };
        for seed in from..from + seeds_max {
            hunt.seeds += 1;
            let Some(violation) = run(seed, plan).violation else { continue };
            // It must be the mutant's doing.
            activate(None);
            if run(seed, plan).violation.is_none() {
                hunt.found = Some((seed, violation));
                break;
            }
            activate(Some(*mutant));
        }
        hunt.took = began.elapsed();
        activate(None);
        told(&hunt);
        hunts.push(hunt);
    }
    hunts
}

/// The table of docs/safety-mutants.md.
#[must_use]
pub fn table(hunts: &[Hunt]) -> String {
    let mut text = String::from(
        "| mutant | rule, history | what it does | found by seed | after | what was seen |\n|-|-|-|-|-|-|\n",
    );
    for hunt in hunts {
        let took = format!("{:.2} s", hunt.took.as_secs_f64());
        let (seed, seen) = match &hunt.found {
            Some((seed, violation)) => (seed.to_string(), first_line(violation)),
            None => (format!("**none of {}**", hunt.seeds), String::new()),
        };
        text += &format!(
            "| {:?} | {} | {} | {seed} | {took} | {seen} |\n",
            hunt.mutant, hunt.rule, hunt.what
        );
    }
    text
}

/// Without what no reader needs.
fn first_line(violation: &str) -> String {
    let line = violation.lines().next().unwrap_or_default();
    line.chars().take(110).collect::<String>().replace('|', "/")
}

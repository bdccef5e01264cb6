//! Runs the deliberate faults of [`voute_schemas::mutant`], one after the other, until each is
//! found: by its scenario, if it has one, else by seeds.

use crate::scenarios::SCENARIOS;
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
    /// What found it, and what was wrong there.
    pub found: Option<(Finder, String)>,
    /// Seeds run.
    pub seeds: u64,
    /// How long that took.
    pub took: Duration,
}

/// What finds a mutant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finder {
    /// A seed of the whole cluster.
    Seed(u64),
    /// One history, told on purpose.
    Scenario(&'static str),
}

impl std::fmt::Display for Finder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Finder::Seed(seed) => write!(formatter, "{seed}"),
            Finder::Scenario(name) => write!(formatter, "`{name}`"),
        }
    }
}

/// The mutants that have a scenario.
pub fn with_scenario() -> impl Iterator<Item = Mutant> {
    SCENARIOS.iter().map(|scenario| scenario.mutant)
}

/// What the scenario of a mutant shows, if it has one: nothing without the mutant.
fn run_scenario(mutant: Mutant) -> Option<(Finder, String)> {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.mutant == mutant)?;
    activate(None);
    let without = (scenario.run)();
    activate(Some(mutant));
    let found = (scenario.run)();
    activate(None);
    found.filter(|_| without.is_none()).map(|found| (Finder::Scenario(scenario.name), found))
}

/// Hunts every mutant whose name contains `named`, with at most `seeds_max` seeds each.
#[must_use]
pub fn hunt(named: &str, from: u64, seeds_max: u64, plan: Plan, told: impl Fn(&Hunt)) -> Vec<Hunt> {
    let mut hunts = Vec::new();
    for (mutant, rule, what) in MUTANTS {
        if !format!("{mutant:?}").contains(named) {
            continue;
        }
        let began = Instant::now();
        let found = run_scenario(*mutant);
        let seeds = if found.is_some() { from..from } else { from..from + seeds_max };
        let mut hunt = Hunt { mutant: *mutant, rule, what, found, seeds: 0, took: Duration::ZERO };
        activate(Some(*mutant));
        for seed in seeds {
            hunt.seeds += 1;
            let Some(violation) = run(seed, plan).violation else { continue };
            // It must be the mutant's doing.
            activate(None);
            if run(seed, plan).violation.is_none() {
                hunt.found = Some((Finder::Seed(seed), violation));
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
        "| mutant | rule, history | what it does | found by | after | what was seen |\n|-|-|-|-|-|-|\n",
    );
    for hunt in hunts {
        let took = format!("{:.2} s", hunt.took.as_secs_f64());
        let (finder, seen) = match &hunt.found {
            Some((finder, violation)) => (finder.to_string(), first_line(violation)),
            None => (format!("**none of {}**", hunt.seeds), String::new()),
        };
        text += &format!(
            "| {:?} | {} | {} | {finder} | {took} | {seen} |\n",
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

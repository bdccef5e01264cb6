//! `cargo run --release -p voute-model`: explores, prints the bounds and how much there was.

#![allow(clippy::print_stdout, reason = "a command that tells what it did")]

use anyhow::Context;
use clap::Parser;
use std::time::Duration;
use voute_model::explore::{read_history, retell};
use voute_model::{Bounds, Menu, Report, explore};

/// Explores every state of a mirrored volume that so many faults can lead to.
#[derive(Parser, Debug)]
struct Arguments {
    /// Most deviations from the ordinary course in one history.
    #[arg(long, default_value_t = 2)]
    deviations: u8,
    /// How long a cut, a crash or a delay may last, steps of half a second.
    #[arg(long, value_delimiter = ',', default_value = "2,10")]
    steps: Vec<u8>,
    /// Percent at which the clocks of the two nodes run.
    #[arg(long, value_delimiter = ',', default_value = "100,100")]
    rates: Vec<u32>,
    /// What may happen, of: crashes, link, log, delays, moves, devices, truncation.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Compare what can happen next in states that are taken for the same.
    #[arg(long)]
    check_sameness: bool,
    /// Most states.
    #[arg(long, default_value_t = 20_000_000)]
    states: usize,
    /// Longest time, seconds.
    #[arg(long, default_value_t = 900)]
    seconds: u64,
    /// Explore only this history, e.g. `11:Stall(Replies(0), 2);2:CutLog(0, 10)`: each deviation
    /// after so many ordinary steps, as they are printed.
    #[arg(long)]
    replay: Option<String>,
    /// Leave out this safeguard, by its name in `voute_schemas::mutant`, or `all` in turn: each is
    /// looked for with up to so many deviations. Needs the feature `mutants`.
    #[arg(long)]
    mutant: Option<String>,
    /// Print the history of what is found, state by state.
    #[arg(long)]
    story: bool,
}

fn menu(arguments: &Arguments) -> Menu {
    let has = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|chosen| chosen == name)
    };
    Menu {
        crashes: has("crashes"),
        link: has("link"),
        log: has("log"),
        delays: has("delays"),
        moves: has("moves"),
        devices: has("devices"),
        truncation: has("truncation"),
        steps: arguments.steps.clone(),
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let [first, second] = arguments.rates[..] else {
        anyhow::bail!("--rates needs two numbers, for example 90,112");
    };
    let bounds = Bounds {
        deviations: arguments.deviations,
        menu: menu(&arguments),
        rates: [first, second],
        checks_sameness: arguments.check_sameness,
        states_max: arguments.states,
        time_max: Duration::from_secs(arguments.seconds),
    };
    println!("{bounds:?}");
    if let Some(name) = &arguments.mutant {
        return try_mutants(&bounds, name);
    }
    if let Some(history) = &arguments.replay {
        let found = read_history(&bounds, history).context("this is no history of these bounds")?;
        retell(&bounds, &found, |line| println!("{line}"));
        return Ok(());
    }
    let began = std::time::Instant::now();
    let report = explore(&bounds);
    tell(&report, began.elapsed());
    if let Some(found) = &report.found {
        if arguments.story {
            retell(&bounds, found, |line| println!("{line}"));
        }
        anyhow::bail!("{}", found.what);
    }
    anyhow::ensure!(report.is_complete, "not everything was visited: raise --states or --seconds");
    Ok(())
}

fn tell(report: &Report, took: Duration) {
    println!(
        "{} states ({} healthy), {} transitions, depth {}, at most {} ordinary steps to a healthy pair, {} compared, {:.1?}{}",
        report.states,
        report.healthy,
        report.transitions,
        report.depth,
        report.recovery,
        report.compared,
        took,
        if report.is_complete { "" } else { ", NOT COMPLETE" }
    );
    if let Some(found) = &report.found {
        println!("FOUND: {}", found.what);
        let history: Vec<String> =
            found.trace.iter().map(|(after, deviation)| format!("{after}:{deviation:?}")).collect();
        println!("  --replay '{}', then {} ordinary steps", history.join(";"), found.then);
    }
}

#[cfg(not(feature = "mutants"))]
fn try_mutants(_: &Bounds, _: &str) -> anyhow::Result<()> {
    anyhow::bail!("this needs a build with --features mutants")
}

/// A line of a table for each: what it leaves out, what was found, the shortest number of deviations.
#[cfg(feature = "mutants")]
fn try_mutants(bounds: &Bounds, name: &str) -> anyhow::Result<()> {
    use voute_schemas::mutant::{MUTANTS, activate};
    let chosen = MUTANTS.iter().filter(|it| name == "all" || format!("{:?}", it.0) == name);
    let mut tried = 0;
    std::panic::set_hook(Box::new(|_| {}));
    for (mutant, rule, _) in chosen {
        tried += 1;
        activate(Some(*mutant));
        let (deviations, took, what) = try_mutant(bounds);
        activate(None);
        println!("| `{mutant:?}` | {rule} | {what} | {deviations} | {took:.1?} |");
    }
    anyhow::ensure!(tried > 0, "no mutant is called {name}");
    Ok(())
}

#[cfg(feature = "mutants")]
fn try_mutant(bounds: &Bounds) -> (String, Duration, String) {
    use std::panic::catch_unwind;
    let began = std::time::Instant::now();
    for deviations in 0..=bounds.deviations {
        let bounds = Bounds { deviations, ..bounds.clone() };
        let Ok(report) = catch_unwind(|| explore(&bounds)) else {
            let what = "a new pair does not become healthy".to_owned();
            return (deviations.to_string(), began.elapsed(), what);
        };
        if let Some(found) = report.found {
            let history: Vec<String> =
                found.trace.iter().map(|(after, it)| format!("{after}:{it:?}")).collect();
            let what = format!("{}: `{}`", found.what, history.join(";"));
            return (deviations.to_string(), began.elapsed(), what);
        }
        if !report.is_complete {
            return (format!("{deviations}, in part"), began.elapsed(), "nothing".to_owned());
        }
    }
    (bounds.deviations.to_string(), began.elapsed(), "nothing".to_owned())
}

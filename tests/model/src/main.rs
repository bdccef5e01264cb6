//! `cargo run --release -p voute-model`: explores, prints the bounds and how much there was.

#![allow(clippy::print_stdout, reason = "a command that tells what it did")]

use clap::Parser;
use std::time::Duration;
use voute_model::explore::retell;
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
    /// Most states.
    #[arg(long, default_value_t = 20_000_000)]
    states: usize,
    /// Longest time, seconds.
    #[arg(long, default_value_t = 900)]
    seconds: u64,
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
        states_max: arguments.states,
        time_max: Duration::from_secs(arguments.seconds),
    };
    println!("{bounds:?}");
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
        "{} states ({} healthy), {} transitions, depth {}, at most {} ordinary steps to a healthy pair, {:.1?}{}",
        report.states,
        report.healthy,
        report.transitions,
        report.depth,
        report.recovery,
        took,
        if report.is_complete { "" } else { ", NOT COMPLETE" }
    );
    if let Some(found) = &report.found {
        println!("FOUND: {}", found.what);
        for (ordinary, deviation) in &found.trace {
            println!("  after {ordinary} ordinary steps: {deviation:?}");
        }
        println!("  then {} ordinary steps", found.then);
    }
}

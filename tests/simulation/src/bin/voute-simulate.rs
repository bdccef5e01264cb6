//! Runs seeds of the simulated cluster: `voute-simulate --from 0 --count 1000`, or one of them with
//! its story: `voute-simulate --seed 7`.

#![allow(clippy::print_stdout, reason = "a program for people")]

use clap::Parser;
use std::time::{Duration, Instant};
use voute_simulation::{Plan, Tally, Telling, run};

/// The whole cluster under seeds.
#[derive(Parser)]
struct Arguments {
    /// One seed, with its story.
    #[arg(long)]
    seed: Option<u64>,
    /// The first of several seeds.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many.
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// Simulated seconds of faults in each.
    #[arg(long, default_value_t = 20)]
    faulty_seconds: u64,
    /// Stop after so many seeds that fail.
    #[arg(long, default_value_t = 10)]
    failures: usize,
    /// Stop after so many seconds.
    #[arg(long)]
    within_seconds: Option<u64>,
    /// Hunt the deliberate faults whose names contain this (all of them if it is empty), with at
    /// most `count` seeds each; prints the table of docs/safety-mutants.md.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: Option<String>,
    /// With `--seed`: the one deliberate fault to run it with.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutant: Option<String>,
}

fn main() {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|_| {}));
    let mut plan =
        Plan { faulty: Duration::from_secs(arguments.faulty_seconds), ..Plan::default() };
    #[cfg(feature = "mutants")]
    if let Some(named) = &arguments.mutants {
        return hunt(named, arguments.from, arguments.count, plan);
    }
    if let Some(seed) = arguments.seed {
        #[cfg(feature = "mutants")]
        choose(arguments.mutant.as_deref());
        plan.telling = Telling::Story;
        let outcome = run(seed, plan);
        println!("{:?}\n{:?}", outcome.tally, outcome.violation);
        std::process::exit(i32::from(outcome.violation.is_some()));
    }
    let began = Instant::now();
    let mut sum = Tally::default();
    let mut failed = Vec::new();
    let mut done = 0;
    for seed in arguments.from..arguments.from + arguments.count {
        let limit = arguments.within_seconds.map(Duration::from_secs);
        if failed.len() >= arguments.failures || limit.is_some_and(|limit| began.elapsed() > limit)
        {
            break;
        }
        let outcome = run(seed, plan);
        done += 1;
        add(&mut sum, &outcome.tally);
        if let Some(violation) = outcome.violation {
            println!("seed {seed}: {violation}");
            failed.push(seed);
        }
    }
    report(done, &sum, began.elapsed(), &failed);
    std::process::exit(i32::from(!failed.is_empty()));
}

#[cfg(feature = "mutants")]
fn choose(named: Option<&str>) {
    let mutants = voute_schemas::mutant::MUTANTS.iter().map(|(mutant, _, _)| *mutant);
    let chosen = named.and_then(|named| mutants.clone().find(|it| format!("{it:?}") == named));
    voute_schemas::mutant::activate(chosen);
}

#[cfg(feature = "mutants")]
fn hunt(named: &str, from: u64, count: u64, plan: Plan) {
    let hunts = voute_simulation::mutants::hunt(named, from, count, plan, |hunt| {
        let found = hunt.found.as_ref().map(|(finder, _)| *finder);
        eprintln!("{:?}: {found:?} after {:?}", hunt.mutant, hunt.took);
    });
    println!("{}", voute_simulation::mutants::table(&hunts));
    let missed = hunts.iter().filter(|hunt| hunt.found.is_none()).count();
    println!("{} mutants, {missed} not found", hunts.len());
    std::process::exit(i32::from(missed > 0));
}

fn add(sum: &mut Tally, tally: &Tally) {
    sum.simulated += tally.simulated;
    sum.events += tally.events;
    sum.acknowledged += tally.acknowledged;
    sum.reads += tally.reads;
    sum.moves += tally.moves;
    sum.failovers += tally.failovers;
    sum.detached += tally.detached;
    sum.joined += tally.joined;
    sum.full_resyncs += tally.full_resyncs;
    for (name, count) in &tally.faults {
        *sum.faults.entry(name).or_default() += count;
    }
}

fn report(seeds: u64, sum: &Tally, took: Duration, failed: &[u64]) {
    let hours = sum.simulated.as_secs_f64() / 3_600.0;
    println!(
        "{seeds} seeds in {:.1} s: {hours:.2} cluster-hours, {:.0} per hour; {} events",
        took.as_secs_f64(),
        sum.simulated.as_secs_f64() / took.as_secs_f64(),
        sum.events
    );
    println!(
        "{} writes acknowledged, {} reads, {} owner changes ({} unplanned), {} sides out, {} in ({} by a full copy)",
        sum.acknowledged,
        sum.reads,
        sum.moves,
        sum.failovers,
        sum.detached,
        sum.joined,
        sum.full_resyncs
    );
    println!("faults: {:?}", sum.faults);
    match failed {
        [] => println!("nothing was found"),
        failed => println!("FAILED: {failed:?}"),
    }
}

//! Drives an NVMe/TCP target and measures it; with `--floor` also what this machine allows at best,
//! in the same run, as a ratio.

use anyhow::Context;
use clap::Parser;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use voute_nvme::Secret;
use voute_tests::floor::{self, Exchange};
use voute_tests::load::{self, Load, Workload};
use voute_tests::pace::{Disturbance, Report};

/// Drive any NVMe/TCP target with Voûte's own initiator.
#[derive(Parser)]
#[command(
    after_help = "Example:\n  voute-load --address 127.0.0.1:4420 --subsystem NQN --workload random-read --bytes 4096 --depth 32 --seconds 5 --floor"
)]
struct Arguments {
    /// Where the target listens
    #[arg(long)]
    address: SocketAddr,
    /// NQN of the subsystem
    #[arg(long)]
    subsystem: String,
    /// NQN of this host
    #[arg(
        long,
        default_value = "nqn.2014-08.org.nvmexpress:uuid:0f7a1c9e-0000-4000-8000-000000000001"
    )]
    host_nqn: String,
    /// Namespace; the first that the target shows if left out
    #[arg(long)]
    nsid: Option<u32>,
    /// What to do
    #[arg(long, value_enum, default_value = "random-read")]
    workload: Workload,
    /// Bytes of a request
    #[arg(long, default_value_t = 4096)]
    bytes: u32,
    /// Requests under way
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1023))]
    depth: u16,
    /// How long to run
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Run so often, in turn with the floor if that is asked for, and tell the median of each figure;
    /// rounds that others disturb are run again, up to so many
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Microseconds from the end of a request to the next one
    #[arg(long, default_value_t = 0)]
    pause_us: u64,
    /// Touch only so many bytes from the begin
    #[arg(long)]
    span: Option<u64>,
    /// Check that what is read is what was written
    #[arg(long)]
    verify: bool,
    /// Header and data digests
    #[arg(long)]
    digests: bool,
    /// File with the key that the host proves on each connection (`DHHC-1:…`)
    #[arg(long)]
    key_file: Option<PathBuf>,
    /// Instead of a load, attach so often, tell how long each took, and stay attached for the time of
    /// the run
    #[arg(long, conflicts_with_all = ["rounds", "floor"])]
    attachments: Option<usize>,
    /// Processor to run on
    #[arg(long)]
    processor: Option<usize>,
    /// Measure the machine's floor too (the target must be idle meanwhile)
    #[arg(long)]
    floor: bool,
}

#[allow(clippy::print_stdout, reason = "its output is for its caller")]
fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let duration = Duration::try_from_secs_f64(arguments.seconds)?;
    let load = Load {
        address: arguments.address,
        subsystem: arguments.subsystem,
        host_nqn: arguments.host_nqn,
        nsid: arguments.nsid,
        workload: arguments.workload,
        request_bytes: arguments.bytes,
        depth: arguments.depth,
        duration,
        span_bytes: arguments.span,
        verify: arguments.verify,
        digests: arguments.digests,
        pause: Duration::from_micros(arguments.pause_us),
        key: arguments.key_file.as_deref().map(key).transpose()?,
        processor: arguments.processor,
    };
    if let Some(count) = arguments.attachments {
        let took = load::attach_and_hold(&load, count)?;
        let took: Vec<f64> = took.iter().map(|took| took.as_secs_f64() * 1e3).collect();
        println!("{}", serde_json::json!({ "attach_ms": took }));
        return Ok(());
    }
    let write = matches!(load.workload, Workload::RandomWrite | Workload::SequentialWrite);
    let (bytes, depth) = (load.request_bytes as usize, usize::from(load.depth));
    let exchange = Exchange::of_nvme(write, bytes, 16_384, depth, duration);
    let processors = arguments.processor.map(|processor| (processor, 1 - processor.min(1)));
    let exchange = arguments.floor.then_some(Exchange { processors, ..exchange });
    let (loads, floors, spoiled) = rounds(&load, exchange, usize::from(arguments.rounds))?;
    let report = Report::median(&loads);
    let mut output = serde_json::json!({
        "load": report,
        "rounds": loads.len(),
        "rounds_spoiled": spoiled,
    });
    if !floors.is_empty() {
        let floor = Report::median(&floors);
        output["ratio_requests"] =
            serde_json::json!(report.requests_per_second_median / floor.requests_per_second_median);
        output["ratio_latency_p50"] =
            serde_json::json!(report.latency_us.p50 / floor.latency_us.p50);
        output["floor"] = serde_json::json!(floor);
    }
    println!("{}", serde_json::to_string_pretty(&output)?);
    Ok(())
}

fn key(file: &Path) -> anyhow::Result<Secret> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(text.trim().parse()?)
}

/// Runs load and floor in turn. Rounds that others disturbed are thrown away and run again, so long as
/// no more than half are.
fn rounds(
    load: &Load,
    exchange: Option<Exchange>,
    wanted: usize,
) -> anyhow::Result<(Vec<Report>, Vec<Report>, usize)> {
    let (mut loads, mut floors, mut spoiled) = (Vec::new(), Vec::new(), 0);
    while loads.len() < wanted {
        let (before, begin) = (Disturbance::now(), Instant::now());
        let report = load::run(load)?;
        let floor = exchange.map(floor::run).transpose()?;
        let disturbed = before
            .zip(Disturbance::now())
            .is_some_and(|(before, after)| after.spoiled(before, begin.elapsed()));
        if disturbed && spoiled < wanted {
            spoiled += 1;
            continue;
        }
        loads.push(report);
        floors.extend(floor);
    }
    Ok((loads, floors, spoiled))
}

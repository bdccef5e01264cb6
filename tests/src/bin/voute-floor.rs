//! Measures what loopback TCP between two pinned threads allows, with the byte counts of NVMe/TCP.

use clap::Parser;
use std::time::Duration;
use voute_tests::floor::{self, Exchange};

/// Measure this machine's floor for a kind of request.
#[derive(Parser)]
struct Arguments {
    /// Bytes of payload
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
    /// Writes instead of reads
    #[arg(long)]
    write: bool,
    /// Requests under way
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1023))]
    depth: u16,
    /// How long to run
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Processors of the asking and the answering thread
    #[arg(long, num_args = 2, value_names = ["ASKING", "ANSWERING"])]
    processors: Option<Vec<usize>>,
}

#[allow(clippy::print_stdout, reason = "its output is for its caller")]
fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let exchange = Exchange::of_nvme(
        arguments.write,
        arguments.bytes,
        16_384,
        usize::from(arguments.depth),
        Duration::from_secs(arguments.seconds),
    );
    let processors =
        arguments.processors.as_deref().and_then(|pair| Some((*pair.first()?, *pair.get(1)?)));
    println!(
        "{}",
        serde_json::to_string_pretty(&floor::run(Exchange { processors, ..exchange })?)?
    );
    Ok(())
}

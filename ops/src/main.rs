//! The `voute` command.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    voute::run(voute::cli::Cli::parse())
}

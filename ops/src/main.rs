//! The `voute` command.

use clap::Parser;

fn main() {
    let cli = voute::cli::Cli::parse();
    let _ = cli;
}

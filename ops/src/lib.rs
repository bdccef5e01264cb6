//! The `voute` command: runs the control plane and nodes, and drives the control plane's API.
//!
//! `cli` says what can be typed, `api` talks to the control plane, `commands` joins both, `print`
//! shows results; `serve` runs long-lived processes, `demo` tells the whole story on one machine.

pub mod api;
pub mod cli;
pub mod commands;
pub mod demo;
pub mod print;
pub mod serve;

use clap::CommandFactory;
use cli::{Cli, Command};
use std::process::ExitCode;

/// Runs a parsed command line. Exit codes: 0 done, 1 refused or failed, 3 still under way or not to be found
/// out now; clap itself ends with 2 on a
/// command line that cannot be understood.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("voute: {}", in_words(&error));
            if error.is::<NotYet>() { ExitCode::from(NOT_YET) } else { ExitCode::FAILURE }
        }
    }
}

/// Exit code of commands that found nothing wrong, and nothing out either.
const NOT_YET: u8 = 3;

/// Nothing is wrong as far as is known, but what was asked is not known, or not done, yet.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotYet(pub(crate) String);

/// An error and its causes; those that the words before them already tell are left out.
fn in_words(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |words, cause| {
        match (words.is_empty(), words.contains(&cause)) {
            (true, _) => cause,
            (false, true) => words,
            (false, false) => words + ": " + &cause,
        }
    })
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { command, api, logging } = cli;
    match command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "voute", &mut std::io::stdout());
        }
        Command::Demo(arguments) => return demo::run(&arguments),
        Command::Control(arguments) => {
            serve::begin_logging(logging);
            serve::control::run(arguments)?;
        }
        Command::Node(arguments) if arguments.run.id.is_some() => {
            serve::begin_logging(logging);
            serve::node::run(arguments.run)?;
        }
        Command::Up(arguments) => serve::up::run(arguments)?,
        other => commands::run(other, &api)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn an_error_is_told_once_however_often_its_cause_repeats_it() {
        let error =
            anyhow!("disk full").context("cannot write x: disk full").context("cannot save");
        assert_eq!(in_words(&error), "cannot save: cannot write x: disk full");
    }
}

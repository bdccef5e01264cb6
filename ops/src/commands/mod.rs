//! What each `voute <noun> <verb>` does: one request to the API, then the wait for its work.

mod access;
mod inventory;
pub mod trail;
mod volumes;

pub(crate) use inventory::judge_adoption;
pub(crate) use volumes::{judge_moved, judge_resynced, judge_served};

use crate::api::client::{Client, encode};
use crate::api::names::Names;
use crate::cli::{ApiOptions, Command, OutputFormat};
use crate::print::events::event_words;
use crate::print::{line, table};
use anyhow::Context;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use voute_control::api::answers::Changed;
use voute_control::api::requests::Reference;

/// A client and how its results are to be shown.
pub struct Session<'a> {
    client: Client,
    options: &'a ApiOptions,
}

/// Carries out a command that talks to the API.
///
/// # Errors
/// Whatever the API refuses, told with what to do. Commands that serve are not for here.
pub fn run(command: Command, options: &ApiOptions) -> anyhow::Result<()> {
    let session = Session { client: Client::from_options(options)?, options };
    match command {
        Command::Status => session.status(),
        Command::Site(verb) => session.site(verb),
        Command::Node(arguments) => match arguments.verb {
            Some(verb) => session.node(verb),
            None => anyhow::bail!("say what to do with nodes; `voute node --help` shows it"),
        },
        Command::Device(verb) => session.device(verb),
        Command::Pool(verb) => session.pool(verb),
        Command::Volume(verb) => session.volume(verb),
        Command::Leg(verb) => session.leg(verb),
        Command::Host(verb) => session.host(verb),
        Command::Mapping(verb) => session.mapping(verb),
        Command::Policy(verb) => session.policy(verb),
        Command::Failover(verb) => session.failover(verb),
        Command::Event(verb) => session.event(verb),
        Command::Audit(verb) => session.audit(verb),
        Command::Credential(verb) => session.credential(verb),
        Command::LogSite(verb) => session.log_site(verb),
        Command::Secret(verb) => session.secret(verb),
        Command::Demo(_) | Command::Up(_) | Command::Control(_) | Command::Completions { .. } => {
            anyhow::bail!("this command does not talk to the API")
        }
    }
}

impl Session<'_> {
    /// Tells what a change did, or would do. True if it was carried out, so that its work can be
    /// waited for.
    fn report(&self, changed: &Changed, done: &str) -> anyhow::Result<bool> {
        match self.options.output {
            OutputFormat::Json => table::print_json(changed)?,
            OutputFormat::Csv | OutputFormat::Table => self.report_in_words(changed, done)?,
        }
        for warning in &changed.warnings {
            eprintln!("warning: {warning}");
        }
        Ok(!changed.plan)
    }

    fn report_in_words(&self, changed: &Changed, done: &str) -> anyhow::Result<()> {
        if changed.plan {
            let names = Names::load(&self.client)?;
            line("plan, nothing is committed; the events would be:");
            for event in &changed.events {
                line(&format!("  {}", event_words(event, &names)));
            }
            return Ok(());
        }
        let commit =
            changed.sequence.map_or_else(String::new, |number| format!(" (commit {number})"));
        let repeated = if changed.repeated {
            ", as an earlier command with this idempotency key did"
        } else {
            ""
        };
        line(&format!("{done}{commit}{repeated}"));
        Ok(())
    }

    /// Prints a list as the options say.
    fn print_list<T: table::Row + serde::de::DeserializeOwned>(
        &self,
        path: &str,
    ) -> anyhow::Result<()> {
        table::print_list::<T>(self.client.list(path)?, self.options.output)
    }

    /// Prints one thing as a list of one, or as JSON.
    fn print_one<T: table::Row + serde::de::DeserializeOwned>(
        &self,
        path: &str,
    ) -> anyhow::Result<()> {
        let value = self.client.get_value(path)?;
        match self.options.output {
            OutputFormat::Json => table::print_json(&value),
            OutputFormat::Table | OutputFormat::Csv => {
                table::print_list::<T>(vec![value], self.options.output)
            }
        }
    }
}

/// `/v1/NOUN/WHICH`.
fn item(noun: &str, which: &str) -> String {
    format!("/v1/{noun}/{}", encode(which))
}

/// What a person typed, as the API takes it.
fn reference(text: &str) -> Reference {
    Reference(text.to_owned())
}

/// Writes a secret to a new file that only its owner may read.
pub(crate) fn write_secret(file: &Path, secret: &str) -> anyhow::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut opened| {
            writeln!(opened, "{secret}")?;
            opened.sync_all()
        })
        .with_context(|| {
            format!(
                "cannot write the secret to {}; name a new file in a folder that you may write",
                file.display()
            )
        })
}

/// Refuses, before anything is asked for, a file that a secret could not be written to afterwards:
/// the secret is shown only once.
fn check_secret_file(file: Option<&Path>) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    anyhow::ensure!(!file.exists(), "{} exists; name a new file for the secret", file.display());
    let folder =
        file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    anyhow::ensure!(folder.is_dir(), "{} is no folder; create it first", folder.display());
    Ok(())
}

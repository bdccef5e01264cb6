//! Waiting for long work, with its progress on standard error.

use crate::NotYet;
use crate::api::client::{ApiError, Client};
use crate::print::plain;
use anyhow::bail;
use serde::de::DeserializeOwned;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the control plane is asked; it answers from memory.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long a control plane that does not answer is asked on: it may be restarting.
const UNREACHABLE_TIME_MAX: Duration = Duration::from_secs(15);

/// How far a piece of work is.
pub enum Step {
    /// Done.
    Done,
    /// Under way, in words.
    Going(String),
    /// It will not be done, and why.
    Failed(String),
}

/// Asks for `path` until `judge` says that the work is done, and shows how far it is.
///
/// # Errors
/// If the work failed, the time is over ([`NotYet`]: the work goes on), or the control plane refuses.
pub fn wait_for<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    patience: Duration,
    what: &str,
    mut judge: impl FnMut(&T) -> Step,
) -> anyhow::Result<T> {
    let began = Instant::now();
    let mut progress = Progress::new(what);
    let mut heard = Instant::now();
    loop {
        let words = match client.get::<T>(path) {
            Ok(view) => {
                heard = Instant::now();
                match judge(&view) {
                    Step::Done => return Ok(view),
                    Step::Failed(cause) => bail!("{what} failed: {cause}"),
                    Step::Going(words) => words,
                }
            }
            Err(ApiError::Unreachable { .. }) if heard.elapsed() < UNREACHABLE_TIME_MAX => {
                "the control plane does not answer, asking again".to_owned()
            }
            Err(error) => return Err(error.into()),
        };
        if began.elapsed() >= patience {
            return Err(NotYet(format!(
                "{what} is not done after {} s ({words})\n  The work goes on; watch it with `voute volume show` or `voute device list`, or wait longer with --wait-timeout.",
                patience.as_secs()
            ))
            .into());
        }
        progress.show(&words);
        std::thread::sleep(ASK_EVERY);
    }
}

/// One line that is rewritten on a terminal; else a line whenever the words change, at most one a
/// second.
struct Progress {
    what: String,
    terminal: bool,
    last: String,
    shown: Option<Instant>,
}

impl Progress {
    fn new(what: &str) -> Self {
        Progress {
            what: what.to_owned(),
            terminal: std::io::stderr().is_terminal(),
            last: String::new(),
            shown: None,
        }
    }

    fn show(&mut self, words: &str) {
        let soon = !self.terminal
            && self.shown.is_some_and(|shown| shown.elapsed() < Duration::from_secs(1));
        if words == self.last || soon {
            return;
        }
        words.clone_into(&mut self.last);
        self.shown = Some(Instant::now());
        let words = plain(words);
        if self.terminal {
            eprint!("\r\x1b[2K{}: {words}", self.what);
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{}: {words}", self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.shown.is_some() {
            eprint!("\r\x1b[2K");
            let _ = std::io::stderr().flush();
        }
    }
}

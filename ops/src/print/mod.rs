//! What people and programs see: tables, CSV, JSON, times, the words of events.

pub mod events;
pub mod rows;
pub mod table;
pub mod time;

use std::io::{self, Write};

/// Prints one line on standard output. A reader that has gone (`voute … | head`) ends the process
/// quietly, as it ends other tools.
pub fn line(text: &str) {
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush())
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        std::process::exit(0);
    }
}

/// A text from elsewhere, without what could command a terminal.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() { '\u{fffd}' } else { character })
        .collect()
}

//! Tells how the demonstration goes: on standard output, or on standard error when that is for JSON.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Tells.
pub struct Narrator {
    began: Instant,
    to_error: bool,
    bold: bool,
    chapter: u32,
}

impl Narrator {
    /// `json`: standard output is for the figures.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let terminal =
            if json { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        Narrator { began: Instant::now(), to_error: json, bold: terminal, chapter: 0 }
    }

    /// Seconds since the begin.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// A new chapter.
    pub fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        let (begin, end) = if self.bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        self.put(&format!("\n{begin}{}. {title}{end}", self.chapter));
    }

    /// Something that happened, with the time.
    pub fn say(&self, text: &str) {
        self.put(&format!("  {:5.1} s  {text}", self.seconds()));
    }

    /// A line without the time.
    pub fn put(&self, text: &str) {
        if self.to_error {
            let _ = writeln!(std::io::stderr(), "{text}");
        } else {
            crate::print::line(text);
        }
    }
}

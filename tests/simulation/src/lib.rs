//! The whole cluster in one process and one thread, under one seed: two data sites with a node each
//! (the real mirror), two control processes (the real `decide`, `evolve`, watcher, answers and
//! vouching), the log, the network between them, devices, clocks, and hosts with two paths.
//!
//! ```text
//!  hosts ──paths──► node A ◄──mirror link──► node B ◄──paths── hosts
//!                     ▲  ▲                     ▲
//!                     │  └─ device A           └─ device B
//!                     └─────── node streams ───┐
//!                                    control 0 (signs, watches), control 1 (commands of people)
//!                                                     └── the log ──┘
//! ```
//!
//! Time is a number: nothing is waited for, the next event is simply taken. Every choice follows
//! from the seed, so that a seed that fails fails again; [`run`] with a loud [`Telling`] prints its
//! story.
//!
//! What is checked: each block behaves as one disk would ([`history`]), the record too; no
//! acknowledged write is lost; both legs are equal in the end; epochs and tokens never fall, one node
//! serves an epoch; a resync copies no region that was not touched; once faults end, everything is
//! whole and served again.

mod checks;
mod control;
mod disk;
mod faults;
mod founding;
mod history;
mod host;
mod log;
#[cfg(feature = "mutants")]
pub mod mutants;
mod network;
mod node;
mod random;
#[cfg(feature = "mutants")]
mod scenarios;
mod stream;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Logical block of the simulated volumes, bytes.
pub(crate) const BLOCK: u64 = 512;
/// Region of the maps, bytes: small, so that small volumes have many.
pub(crate) const REGION: u64 = 16 << 10;

/// How much a run tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Telling {
    /// Nothing.
    Quiet,
    /// Every event that matters, with its time, on standard output.
    Story,
}

/// What a run did, to know that it did something.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Simulated time.
    pub simulated: Duration,
    /// Events taken.
    pub events: u64,
    /// Writes acknowledged to hosts.
    pub acknowledged: u64,
    /// Reads answered.
    pub reads: u64,
    /// Changes of an owner.
    pub moves: u64,
    /// Those that were not planned.
    pub failovers: u64,
    /// Sides taken out, and taken in again.
    pub detached: u64,
    /// Sides taken in again.
    pub joined: u64,
    /// Of those, by a full copy.
    pub full_resyncs: u64,
    /// Faults injected, by name.
    pub faults: std::collections::BTreeMap<&'static str, u64>,
    /// Digest of all that happened, the same for the same seed.
    pub digest: u64,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it did.
    pub tally: Tally,
    /// What was wrong, if anything was.
    pub violation: Option<String>,
}

/// How a run goes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long faults are injected.
    pub faulty: Duration,
    /// Whether any are.
    pub with_faults: bool,
    /// How much is told.
    pub telling: Telling,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { faulty: Duration::from_secs(20), with_faults: true, telling: Telling::Quiet }
    }
}

/// Runs one seed. A panic in what is simulated is a violation, too.
#[must_use]
pub fn run(seed: u64, plan: Plan) -> Outcome {
    let mut world = world::World::new(seed, plan);
    let ended = catch_unwind(AssertUnwindSafe(|| world.live()));
    let violation = match ended {
        Ok(()) => world.violation.take(),
        Err(panic) => Some(panic_text(panic.as_ref())),
    };
    Outcome { tally: world.finish_tally(), violation }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("(no text)"))
}

//! Sessions of a host that means ill or does not know better: PDUs, CDBs, parameter lists and login text
//! that are nearly right, bytes damaged and cut anywhere, volumes that answer late and in any order,
//! units that change meanwhile.
//!
//! Each session follows from its seed, which a failure tells. A run does a fixed number of them;
//! `VOUTE_FUZZ_SECONDS=1200 cargo test -p voute-iscsi --test fuzz` goes on for so long, from
//! `VOUTE_FUZZ_SEED` or the clock. `tests/fuzz/run iscsi_session 1200` and `iscsi_login` drive the same
//! sessions by coverage.

mod harness;
#[path = "fuzz/raw.rs"]
mod raw;
#[path = "fuzz/session.rs"]
mod session;

use harness::Random;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Instant, SystemTime};

const SESSIONS: u64 = 300;

/// Runs sessions by their seeds until the budget is used up.
fn run(name: &str, session: impl Fn(Random)) {
    let number = |key: &str| std::env::var(key).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = number("VOUTE_FUZZ_SECONDS");
    let clock = || SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
    let first = number("VOUTE_FUZZ_SEED").unwrap_or_else(|| seconds.map_or(1, |_| clock()));
    let began = Instant::now();
    let mut done = 0;
    while seconds.map_or(done < SESSIONS, |seconds| began.elapsed().as_secs() < seconds) {
        // Neighbouring seeds of a xorshift are alike: spread them.
        let seed = first.wrapping_add(done).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| session(Random::seeded(seed)))) {
            tell(&format!("{name}: VOUTE_FUZZ_SEED={} fails", first.wrapping_add(done)));
            resume_unwind(panic);
        }
        done += 1;
    }
    tell(&format!("{name}: {done} sessions from seed {first}"));
}

/// Past the test harness's capture.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn no_session_breaks_the_target_or_what_its_volumes_rely_on() {
    run("sessions", session::session);
}

#[test]
fn no_login_breaks_the_target() {
    run("logins", session::logins);
}

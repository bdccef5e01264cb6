//! One suite of rules for every engine of the log, run on the embedded one, on a real nats-server
//! and on a real cluster of three; then what is particular to each.

#![allow(clippy::unwrap_used, reason = "a test's helpers may end it like the test itself")]

mod embedded;
mod jetstream;
mod proxy;
#[path = "../../src/sample.rs"]
mod sample;
mod servers;
mod suite;

use tokio::sync::{Mutex, MutexGuard};

/// Servers and flushes of several tests at once would slow each other past their deadlines.
async fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

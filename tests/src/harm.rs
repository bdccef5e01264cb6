//! What every test of the whole asks of the verifying host while things go wrong.

use crate::cluster::PATIENCE;
use std::sync::Arc;
use tokio::runtime::Runtime;
use voute::demo::host::Host;
use voute::demo::stage::Stage;

/// Readers at once when everything is read.
const READERS: u32 = 8;

/// Waits until so many more writes are acknowledged.
///
/// # Panics
/// If they are not within [`PATIENCE`].
pub fn must_flow(host: &Host, writes: u64, stage: &Stage, when: &str) {
    assert!(
        host.pulse.wait(writes, PATIENCE),
        "no writes are acknowledged {when}: {:?}\n{}",
        host.failures(),
        stage.tails()
    );
}

/// Reads everything: every slot holds what was acknowledged, no read went back, and none showed what
/// nobody wrote.
///
/// # Panics
/// If that is not so.
pub fn must_keep(runtime: &Runtime, host: &Arc<Host>, stage: &Stage) {
    let wrong = runtime.block_on(host.verify_all(READERS));
    let told = || format!("{:?}\n{}", host.failures(), stage.tails());
    assert_eq!(wrong, 0, "slots do not hold what was acknowledged: {}", told());
    assert_eq!(host.ledger.stale_reads(), 0, "reads went back: {}", told());
    assert_eq!(host.ledger.foreign_reads(), 0, "reads showed what nobody wrote: {}", told());
}

/// The host saw no error.
///
/// # Panics
/// If it did.
pub fn must_not_fail(host: &Host, stage: &Stage) {
    assert_eq!(
        host.io_errors(),
        0,
        "errors reached the host: {:?}\n{}",
        host.failures(),
        stage.tails()
    );
}

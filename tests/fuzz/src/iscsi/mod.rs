//! iSCSI: the sessions and logins of the package's own fuzzing test, with the fuzzer's bytes as their
//! source of choices. The target's volumes are its example's, in memory.

#[path = "../../../../dataplane/iscsi/tests/harness/mod.rs"]
mod harness;
#[path = "../../../../dataplane/iscsi/tests/fuzz/raw.rs"]
mod raw;
#[path = "../../../../dataplane/iscsi/tests/fuzz/session.rs"]
#[allow(clippy::unwrap_used, reason = "a fault is a panic here")]
mod sessions;

use harness::Random;

/// A host's session: any PDU, CDB and parameter list, damaged and cut, volumes that answer late and in
/// any order.
pub fn session(bytes: &[u8]) {
    sessions::session(Random::given(bytes));
}

/// Logins with any text in any stage.
pub fn login(bytes: &[u8]) {
    sessions::logins(Random::given(bytes));
}

//! What the fuzzers do with their input, apart from the fuzzer: so that every seed and every input
//! that once failed is run again by the ordinary tests (`tests/seeds.rs`), on any machine.
//!
//! `./run TARGET SECONDS` fuzzes with coverage feedback (libFuzzer); seeds are kept in `seeds/TARGET`.

mod input;
mod iscsi;
mod nvme;

pub use input::Input;
pub use iscsi::{login as iscsi_login, session as iscsi_session};
pub use nvme::{
    authentication as nvme_authentication, initiator as nvme_initiator, target as nvme_target,
};

/// Takes one input; a fault is a panic.
pub type Target = fn(&[u8]);

/// Every target by the name of its folder of seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("nvme_target", nvme_target),
    ("nvme_initiator", nvme_initiator),
    ("nvme_authentication", nvme_authentication),
    ("iscsi_session", iscsi_session),
    ("iscsi_login", iscsi_login),
];

//! `voute demo`: two sites on this machine, a site killed under load, and the log's own account.

pub mod host;
pub mod ledger;
pub mod path;
pub mod pulse;

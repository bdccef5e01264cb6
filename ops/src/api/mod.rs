//! The control plane's API as the command uses it.

pub mod client;
pub mod names;
pub mod token;
pub mod waiting;

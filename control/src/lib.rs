//! The control plane: decides commands, projects the log, serves the API and the node contract,
//! watches the sites.

pub mod api;
pub mod domain;

//! The control plane: decides commands, projects the log, serves the API and the node contract,
//! watches the sites.
//!
//! ```text
//! api ──┐                       ┌── stream ── nodes
//!       ├─▶ service ─▶ log ─▶ view ──┼── watcher
//! cli ──┘      │                └── api answers
//!           domain (pure)
//! ```

mod access;
pub mod api;
mod connections;
pub mod domain;
pub mod genesis;
pub mod observed;
pub mod projection;
pub mod rebuild;
mod running;
pub mod secrets;
pub mod service;
mod sharing;
mod sparing;
pub mod stream;
pub mod watcher;

pub use running::{
    API_LISTEN_DEFAULT, ControlConfig, JOIN_FILE, KEY_FILE, LogConfig, REGISTER_FILE, Running,
    StartError, log_site_key, run, run_on,
};

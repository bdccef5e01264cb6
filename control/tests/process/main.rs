//! A control process as its users meet it: HTTP on loopback, node streams, restarts.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod client;
mod commands;
mod fake_node;
mod history;
mod jetstream;
mod nodes;

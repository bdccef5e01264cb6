//! The `voute` command: runs the control plane and nodes, and drives the control plane's API.
//!
//! `cli` says what can be typed, `api` talks to the control plane, `commands` joins both;
//! `serve` runs long-lived processes, `demo` tells the whole story on one machine.

pub mod cli;

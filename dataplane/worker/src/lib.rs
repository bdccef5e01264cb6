//! A data-plane node: reactors that poll, listeners, the glue between hosts' protocols, mirrors and
//! devices, and the node contract.
//!
//! ```text
//!            ┌────────────── reactor (one per core) ──────────────┐
//!  hosts ───►│ NVMe/TCP, iSCSI ──► translation ──► mirror ─► devices│
//!  peers ◄──►│ links ────────────────────────────► (by shard)       │
//!            └──────▲──────────────────────────────────┬───────────┘
//!             specs │ answers              escalations │ status
//!            ┌──────┴──────────────────────────────────▼───────────┐
//!  control ◄►│ agent (a runtime of its own, never on the data path) │
//!            └──────────────────────────────────────────────────────┘
//! ```
//!
//! A group of volumes lives in one of 16 shards, a shard on one reactor, for good: what belongs to a
//! group is touched by one thread only, without locks. A request that comes in by another reactor is
//! handed over through a bounded mailbox, and so is its answer.

mod agent;
mod clock;
mod connection;
mod judge;
mod link;
mod listen;
mod mailbox;
mod metrics;
mod node;
mod offer;
mod reactor;
mod reservations;
mod ring;
mod sending;
mod translation;

pub use agent::escalations::{Answered, Asker, Escalations, WAITING_MAX};
pub use agent::memory::MemoryError;
pub use agent::stream::InvalidControl;
pub use metrics::Metrics;
pub use node::{NodeConfig, NodeError, REACTORS_MAX, Stop, run};
pub use voute_device::ArrayKeys;

//! The mirror: rules 1 to 9 of the design as state machines without I/O.
//!
//! A [`Mirror`] belongs to one reactor and holds every group that is homed there. Each group has a
//! *keeper* (its local legs: token, drain, header, maps) and, where this node owns it, an *owner*
//! (opening, claims, dispatch to legs, lease check, resync). The owner reaches its own legs through
//! the keeper as it reaches the peer's through the link: a co-located owner is a client like any
//! other.
//!
//! Inputs are method calls with the time; outputs are [`Action`]s pulled with
//! [`Mirror::next_action`]. Nothing here blocks, reads a clock or knows a protocol of hosts.

pub mod action;
pub mod link;

pub use action::*;

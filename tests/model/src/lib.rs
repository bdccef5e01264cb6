//! An exhaustive model of a mirrored volume: the real `decide` and `evolve` of the control plane and
//! two real mirrors, in every state that a bounded number of faults can lead to.
//!
//! ```text
//!  host ──► node 0 ◄── link ──► node 1 ◄── host          healthy ──ordinary──► … ──► healthy
//!             ▲                   ▲                          │ a deviation, anywhere
//!             └──── the log ──────┘                          └──► … ──ordinary──► healthy again?
//!            signed by three sites
//! ```
//!
//! [`world`] says what a state is and what may happen in it, [`explore`] visits all states within
//! [`Bounds`], [`canon`] tells which of them are the same. docs/safety-model.md tells what is checked,
//! what the model leaves out and why that is sound.

mod canon;
mod disk;
pub mod explore;
mod log;
mod register;
pub mod world;

pub use explore::{Bounds, Found, Report, explore};
pub use world::{Happening, Menu, World};

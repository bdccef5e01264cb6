//! The pure half: `decide` and `evolve` over the state that replaying the log gives.
//!
//! ```text
//! State ──decide(command)──▶ events ──(the log)──▶ commit ──evolve──▶ State ──node_spec──▶ nodes
//! ```
//!
//! Nothing here performs I/O, reads a clock or draws a random number. A [`State`] is cloned in
//! constant time (its tables share their content), so whoever needs to try something out evolves a
//! clone and throws it away.

pub mod decide;
pub mod evolve;
mod extents;
mod index;
pub mod refusal;
pub mod spec;
pub mod state;
#[cfg(test)]
mod tests;

pub use decide::decide;
pub use decide::escalations::{decide_escalations, decide_escalations_at};
pub use evolve::evolve;
pub use refusal::Refusal;
pub use spec::{NodeContent, SpecInputs, Touched, node_changes, node_spec, touched};
pub use state::State;

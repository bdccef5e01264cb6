//! The vocabulary of Voûte as data: identifiers, commits, events, commands and the node contract.
//!
//! Everything that crosses a process boundary or rests in the log is defined here, and nothing here
//! performs I/O or decides. Events and commits are written in postcard, which is not
//! self-describing: variants and fields are only ever appended as *new variants*, never reordered,
//! removed or given another meaning (`schemas/golden/` holds the proof). The node contract and the
//! API are written in JSON.

pub mod command;
pub mod commit;
pub mod contract;
pub mod event;
pub mod ids;
pub mod mutant;
pub mod name;
pub mod place;
pub mod position;
pub mod proof;
pub mod times;

pub use command::Command;
pub use commit::Commit;
pub use event::Event;
pub use ids::*;
pub use name::Name;
pub use position::{Epoch, Hash, Sequence, Token};

//! Target and initiator wired back to back in memory, and hand-made bytes against each.

mod admin;
mod authentication;
mod events;
mod faults;
mod io;
mod links;
mod raw;
mod reservations;
mod scale;
mod world;

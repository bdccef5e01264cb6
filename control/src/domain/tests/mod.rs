//! Given events, when command, then events; and random histories that keep the invariants.

mod access;
mod authority;
mod checks;
mod escalations;
mod histories;
mod hosts;
mod places;
mod snapshots;
mod specs;
mod volumes;
mod world;

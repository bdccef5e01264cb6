//! What crosses crates: a load generator that drives any NVMe/TCP target with our initiator, the
//! floor that this machine sets, clusters of the real binary, and (in `tests/`) the checks of the whole.

pub mod array;
pub mod chance;
pub mod cluster;
pub mod floor;
pub mod harm;
pub mod load;
pub mod on_arrays;
pub mod pace;
pub mod program;
pub mod sites;

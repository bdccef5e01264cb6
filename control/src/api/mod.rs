//! The REST API under `/v1`.

pub mod answers;
pub mod requests;

//! iSCSI (RFC 7143) and SCSI (SPC-4, SBC-3) as state machines over bytes.
//!
//! Nothing here opens a socket, reads a clock or starts a thread. A reactor owns the sockets and
//! drives one [`TargetConnection`] per TCP connection:
//!
//! ```text
//!   socket bytes ──► receive ──► next_request ──► the volume
//!   socket bytes ◄── output  ◄── complete     ◄── its outcome
//!                    tick(now) at next_deadline()
//! ```
//!
//! What a host may see comes from a [`Directory`], published as a whole to the [`Target`] that all
//! connections of a node share. The [`Initiator`] speaks the other side, for tests and readers.

pub mod chap;
mod connection;
mod full_feature;
mod initiator;
mod login;
mod negotiation;
mod pdu;
mod request;
pub mod scsi;
mod session;
mod target;
mod task;
mod text;

pub use connection::TargetConnection;
pub use initiator::{
    Completion, CompletionStatus, Initiator, InitiatorConfig, InitiatorError, parse_capacity,
    parse_targets,
};
pub use negotiation::{DigestChoice, Parameters};
pub use request::{
    AllocationExtent, BlockRange, Failure, NotReady, Operation, Outcome, Request, Tag, VolumeKey,
};
pub use target::{
    AluaState, Authentication, Chap, Credential, Directory, HostView, LunView, Portal, PortalId,
    ReservationWish, SESSIONS_PER_HOST_MAX, Target, TargetConfig, TargetPortGroup,
};

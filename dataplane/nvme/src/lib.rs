//! NVMe/TCP target and initiator as state machines over bytes.
//!
//! There is no socket, clock or thread in here: the owner feeds received bytes and the time (a
//! [`std::time::Duration`] since any fixed start), sends what the connection put out, and carries
//! out the requests that it surfaces. Facts come from NVMe Base 2.0, NVMe over Fabrics, the NVMe/TCP
//! transport 1.0 and what Linux hosts are known to send.
//!
//! - [`TargetConnection`] is one accepted TCP connection, whatever queue it turns out to be;
//!   [`Target`] is what all connections of a node share; [`Directory`] is what the node offers.
//! - [`InitiatorConnection`] is one opened TCP connection; [`Attachment`] brings an admin
//!   connection up and follows its namespaces.
//!
//! # What is there
//! | command or structure | state |
//! |-|-|
//! | all PDUs, header and data digests, alignment, R2T, SUCCESS flag, termination | yes; in capsules 8 KiB (admin) and [`TargetLimits::in_capsule_max`] (I/O) |
//! | Connect (dynamic controllers), Property Get and Set, Disconnect on I/O queues | yes; CAP, VS, CC, CSTS, NSSR (reads 0) |
//! | Authentication Send and Receive | DH-HMAC-CHAP, one-way and mutual, again while connected; no TLS |
//! | Identify | 00h-03h, 05h-08h, 10h-13h, 1Ch; NGUID, UUID, EUI-64, CSI |
//! | Log pages | 00h-05h, 0Ch, 12h, 70h, 80h; RAE, offsets, RGO, change counts |
//! | Features | 01h, 02h, 04h-0Bh, 0Fh, 16h, 19h, 81h-83h |
//! | Asynchronous events | namespace attributes, ANA, discovery, reservations |
//! | Abort, Keep Alive (100 ms steps, from 1 s) | yes; Abort ends event requests only |
//! | Read, Write, Flush, Write Zeroes, Dataset Management, Compare, Verify, compare and write | yes |
//! | Reservations | all commands and types, IEKEY, persistence; judged by the volume |
//! | Copy, zones, Sanitize, Format, firmware, namespace management, multiple SGL descriptors | no |
//! | traffic-based keep-alive | no: a host that counts its I/O as signs of life looks every half of its time, and one before Linux 6.5 may come too late then |
//! | CQT and cross-controller reset (TP4129, TP8028) | no |
//! | initiator | [`Attachment`] follows namespaces and ANA, [`Discovery`] reads a discovery log; authentication both ways |
//!
//! [`transition_table`] prints what every PDU does in every state; `cargo run -p voute-nvme --example states`.
//!
//! # Links
//! A *link* is how nodes of one cluster talk: a connection to [`TargetConfig::link_nqn`] with a
//! Connect for queue 1 and controller FFFFh and no admin queue before it. Any I/O opcode but 7Fh is
//! surfaced untouched as [`Operation::Vendor`]. Opcode bits 1:0 say which way data goes: 01b data in
//! the capsule (or by R2T), 10b a reply by C2HData of at most the SGL's length, 11b data in the
//! capsule and a reply of at most [`SubmissionEntry::reply_length_max`] bytes. Capsules on links may
//! carry up to [`LINK_TRANSFER_MAX`] bytes, so that a mirrored write costs one round trip. There is
//! no keep-alive on links, and this crate does not authenticate them: nodes do, by their first command.

mod authentication;
mod directory;
mod entry;
mod framer;
mod initiator;
mod little_endian;
mod pdu;
mod request;
mod status;
mod target;

pub use authentication::{
    Authentication, AuthenticationFailure, AuthenticationState, Credentials, Group, Hash, HostKeys,
    Secret, SecretError, Seed,
};
pub use directory::{
    ANA_GROUP_MAX, AnaState, DISCOVERY_NQN, Directory, DirectoryError, HostView, NAMESPACE_ID_MAX,
    NAMESPACES_PER_HOST_MAX, NQN_LENGTH_MAX, NamespaceView, PortalEntry, Subsystem,
};
pub use entry::{
    COMPLETION_ENTRY_LENGTH, CompletionEntry, DataPointer, Direction, Fuse,
    SUBMISSION_ENTRY_LENGTH, SubmissionEntry, admin_opcode, fabrics_type, io_opcode,
};
pub use initiator::{
    Attachment, AttachmentError, AttachmentUpdate, Closed, Command, ConnectionOptions,
    ControllerFacts, DISCOVERY_RECORDS_MAX, DiscoveredKind, DiscoveredPortal, Discovery,
    InitiatorConnection, InitiatorEvent, Payload, RemoteNamespace, SubmitError,
};
pub use pdu::{Digests, FatalError, Fault, PduKind};
pub use request::{Association, Operation, Outcome, Request, Scope, Tag};
pub use status::Status;
pub use target::{
    PortalId, Refusals, Target, TargetConfig, TargetConfigError, TargetConnection, TargetLimits,
    transition_table,
};

/// Longest data of one command on a link, in either direction, bytes: 1 MiB of blocks and 64 KiB of
/// headroom for what the mirror puts around them.
pub const LINK_TRANSFER_MAX: usize = (1 << 20) + (64 << 10);
/// Longest data of one host command, bytes (MDTS).
pub const HOST_TRANSFER_MAX: usize = 1 << 20;
/// Longest that an ANA group may stay in [`AnaState::Change`], seconds (ANATT); Linux resets the
/// controller after twice that.
pub const ANA_TRANSITION_SECONDS_MAX: u8 = 10;

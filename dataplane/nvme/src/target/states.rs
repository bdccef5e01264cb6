//! The states of a target connection and what each kind of PDU does in them.
//!
//! ```text
//! AwaitingInitialize --ICReq--> AwaitingConnect --Connect--> Live(admin, discovery, I/O or link)
//!        |                             |    \                  |  ^
//!        |                             |     +-> Authenticating(admin or I/O): proven
//!        |                             |                       |
//!        +--------- fault: C2HTermReq -+-----------------------+--> Terminating --> Closed
//!        +--------- H2CTermReq, peer gone, controller dead, time out -----------------^
//! ```

use std::fmt::Write;

use crate::{FatalError, PduKind};

/// What a live connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Admin queue of a controller with namespaces.
    Admin,
    /// Admin queue of a discovery controller.
    Discovery,
    /// I/O queue.
    Io,
    /// Another node.
    Link,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    AwaitingInitialize,
    AwaitingConnect,
    /// Connected; the host must prove its secret before anything else.
    Authenticating(Role),
    Live(Role),
    /// A termination request is sent; input is discarded until the peer closes or time is up.
    Terminating,
    Closed,
}

impl Phase {
    const ALL: [Phase; 10] = [
        Phase::AwaitingInitialize,
        Phase::AwaitingConnect,
        Phase::Authenticating(Role::Admin),
        Phase::Authenticating(Role::Io),
        Phase::Live(Role::Admin),
        Phase::Live(Role::Discovery),
        Phase::Live(Role::Io),
        Phase::Live(Role::Link),
        Phase::Terminating,
        Phase::Closed,
    ];
}

/// What to do with a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Negotiate, answer ICResp.
    Initialize,
    /// A command that must be Connect; others end with Command Sequence Error.
    Connect,
    /// A command that must be part of the authentication; others end with Authentication Required.
    Authenticate,
    /// A command for this queue.
    Command,
    /// Data for a transfer that was asked for.
    Data,
    /// The peer ends the connection.
    Close,
    /// Nothing more is read.
    Ignore,
    /// Terminate.
    Fault(FatalError),
}

pub(super) fn step(phase: Phase, kind: PduKind) -> Step {
    match (phase, kind) {
        (Phase::Closed, _) => Step::Ignore,
        (_, PduKind::H2cTermReq) => Step::Close,
        (Phase::Terminating, _) => Step::Ignore,
        (
            _,
            PduKind::IcResp
            | PduKind::C2hTermReq
            | PduKind::CapsuleResp
            | PduKind::C2hData
            | PduKind::R2t,
        ) => Step::Fault(FatalError::InvalidHeaderField),
        (Phase::AwaitingInitialize, PduKind::IcReq) => Step::Initialize,
        (Phase::AwaitingConnect, PduKind::CapsuleCmd) => Step::Connect,
        (Phase::Authenticating(_), PduKind::CapsuleCmd) => Step::Authenticate,
        (Phase::Live(_), PduKind::CapsuleCmd) => Step::Command,
        // A host may leave Connect's data to an R2T like any other command's.
        (Phase::AwaitingConnect | Phase::Authenticating(_) | Phase::Live(_), PduKind::H2cData) => {
            Step::Data
        }
        (_, PduKind::IcReq | PduKind::CapsuleCmd | PduKind::H2cData) => {
            Step::Fault(FatalError::PduSequence)
        }
    }
}

/// The target connection's transitions as a Markdown table, for the documentation.
#[must_use]
pub fn transition_table() -> String {
    let mut table = String::from("| state | PDU | action |\n|-|-|-|\n");
    for phase in Phase::ALL {
        for kind in PduKind::ALL {
            let action = match step(phase, kind) {
                Step::Initialize => "answer ICResp, go to AwaitingConnect".to_owned(),
                Step::Connect => {
                    "Connect: go to Live or Authenticating; anything else: Command Sequence Error"
                        .to_owned()
                }
                Step::Authenticate => {
                    "AUTH_Send, AUTH_Recv: towards Live; anything else: Authentication Required"
                        .to_owned()
                }
                Step::Command => "execute".to_owned(),
                Step::Data => "store".to_owned(),
                Step::Close => "go to Closed".to_owned(),
                Step::Ignore => "discard".to_owned(),
                Step::Fault(error) => {
                    format!("C2HTermReq {error:?} ({:02X}h), go to Terminating", error.code())
                }
            };
            writeln!(table, "| {phase:?} | {kind:?} | {action} |")
                .expect("writing to a string cannot fail");
        }
    }
    table
}

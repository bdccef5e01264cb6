//! Where authentication meets a connection: AUTH_Send, AUTH_Recv, and what may happen before it is
//! done. A host with a secret must prove it on each connection, and may do so again at any time.

use super::connection::{Peer, TargetConnection};
use super::io::Demand;
use super::slots::Stage;
use super::states::{Phase, Role};
use crate::authentication::{MESSAGE_LENGTH_MAX, Server, Verdict};
use crate::{
    Authentication, AuthenticationState, Direction, Directory, Operation, Outcome, Request, Status,
    SubmissionEntry, admin_opcode, fabrics_type,
};

/// SECP of DH-HMAC-CHAP, with SPSP0 and SPSP1 both 1.
const PROTOCOL: [u8; 3] = [0x01, 0x01, 0xE9];
/// The shortest message, bytes.
const MESSAGE_LENGTH_MIN: usize = 8;
/// Connect's result, AUTHREQ: a transaction is required (ATR).
pub(super) const TRANSACTION_REQUIRED: u32 = 1 << 17;

/// The controller's side of a connection's authentication.
pub(super) enum Gate {
    /// The host has no secret to prove.
    Open,
    Here(Box<Server>),
    /// The volume layer computes with it.
    Away,
}

/// Whether a command is part of an authentication.
pub(super) fn is_authentication(entry: &SubmissionEntry) -> bool {
    let kind = entry.fabrics_type();
    entry.opcode() == admin_opcode::FABRICS
        && matches!(kind, fabrics_type::AUTHENTICATION_SEND | fabrics_type::AUTHENTICATION_RECEIVE)
}

fn is_send(entry: &SubmissionEntry) -> bool {
    is_authentication(entry) && entry.fabrics_type() == fabrics_type::AUTHENTICATION_SEND
}

/// What data such a command moves, and whether it may.
pub(super) fn demand(entry: &SubmissionEntry) -> Result<Demand, Status> {
    if !is_authentication(entry) {
        return Err(Status::authentication_required());
    }
    let length = entry.dword(11) as usize;
    if entry.0[41..44] != PROTOCOL || length > MESSAGE_LENGTH_MAX {
        return Err(Status::invalid_field());
    }
    if !is_send(entry) {
        return Ok(Demand::exactly(Direction::ToHost, length));
    }
    if length < MESSAGE_LENGTH_MIN {
        return Err(Status::invalid_field());
    }
    Ok(Demand::exactly(Direction::ToController, length))
}

impl TargetConnection {
    /// Whether this host has a secret to prove, and so the commands to do it.
    pub(super) fn is_guarded(&self) -> bool {
        !matches!(self.gate, Gate::Open)
    }

    /// Puts up the gate if the directory names a secret of the host.
    pub(super) fn guard(&mut self, directory: &Directory, subsystem: &str, host: &str) {
        self.gate = match directory.keys(subsystem, host) {
            Some(keys) => {
                let material = (self.target.config().seed, self.target.next_authentication());
                let server = Server::new(keys.clone(), host, subsystem, material);
                Gate::Here(Box::new(server))
            }
            None => Gate::Open,
        }
    }

    /// An authentication command is here with its data.
    pub(super) fn authentication_arrived(&mut self, index: u16) {
        let entry = self.slots.at(index).entry;
        if is_send(&entry) {
            // Surfaced by `next_request`.
            self.slots.at(index).stage = Stage::Ready;
            return self.queue_ready(index);
        }
        let length_max = self.slots.at(index).reply_max;
        let Gate::Here(server) = &mut self.gate else {
            return self.respond(index, Status::command_sequence_error(), 0, 0);
        };
        match server.give(length_max) {
            Ok(message) => self.respond_data(index, &message, 0, 0),
            Err(status) => self.respond(index, status, 0, 0),
        }
        self.pass_gate();
    }

    /// Hands a host's message on to be judged; `None` if it was not one or was answered.
    pub(super) fn surface_authentication(&mut self, index: u16) -> Option<Request> {
        let message = self.take_payload(index);
        let Some(scope) = self.scope_without_namespace() else {
            self.respond(index, Status::internal_error(), 0, 0);
            return None;
        };
        match std::mem::replace(&mut self.gate, Gate::Away) {
            Gate::Here(server) => {
                let operation = Operation::Authenticate(Authentication { server, message });
                Some(self.surfaced(index, scope, operation))
            }
            other => {
                self.gate = other;
                self.respond(index, Status::command_sequence_error(), 0, 0);
                None
            }
        }
    }

    pub(super) fn is_authentication_send(&mut self, index: u16) -> bool {
        is_send(&self.slots.at(index).entry)
    }

    /// Takes the gate back from whoever computed. Without it the host cannot get in.
    pub(super) fn complete_authentication(&mut self, index: u16, outcome: Outcome) {
        let status = match outcome {
            Outcome::Authenticated(AuthenticationState(server)) => {
                self.gate = Gate::Here(server);
                self.respond(index, Status::success(), 0, 0);
                return self.pass_gate();
            }
            Outcome::Failed(status) => status,
            _ => Status::internal_error(),
        };
        self.respond(index, status, 0, 0);
        self.refuse_authentication();
        self.close();
    }

    fn refuse_authentication(&self) {
        let host = self.association().map(|association| association.host.clone());
        self.target.note_refusal(|refusals| {
            refusals.authentications += 1;
            refusals.last = host.map(|host| format!("{host}: secret not proven"));
        });
    }

    fn pass_gate(&mut self) {
        let Gate::Here(server) = &self.gate else { return };
        match (server.verdict(), self.phase) {
            (Verdict::Failed, _) => {
                self.refuse_authentication();
                self.close();
            }
            (Verdict::Authentic, Phase::Authenticating(role)) => self.enter_life(role),
            (Verdict::Authentic | Verdict::Pending, _) => {}
        }
    }

    fn enter_life(&mut self, role: Role) {
        if let Peer::Host { membership, .. } = &mut self.peer
            && !membership.prove()
        {
            let host = membership.controller().association().host.clone();
            self.target.note_refusal(|refusals| {
                refusals.connects += 1;
                refusals.last = Some(format!("{host}: as many connections as it may have"));
            });
            return self.close();
        }
        // Its keep-alive timer has run all the while that the proof was judged.
        let now = self.now;
        if let Some(admin) = &mut self.admin {
            admin.hear(now);
        }
        self.phase = Phase::Live(role);
        self.deadline = None;
    }
}

//! A small initiator, for readers and tests: one session of one connection, error recovery level 0.
//!
//! Like the target it holds no socket: what [`Initiator::output`] gives is to be sent, what arrives is
//! to be given to [`Initiator::receive`]; what commands came to is taken by
//! [`Initiator::next_completion`]. A lost connection means a new value; the outcome of what was under
//! way is then unknown.

mod commands;
mod login;

use crate::negotiation::{DigestChoice, Parameters};
use crate::pdu::{
    self, Crc, Digests, HEADER_LENGTH, Header, RESERVED_TAG, opcode, padding, serial_before,
};
use crate::target::Chap;
use crate::text;
pub use commands::parse_capacity;
use login::Login;
use std::collections::{HashMap, VecDeque};

/// Longest data segment that we receive, bytes.
const RECEIVE_LENGTH_MAX: usize = 262_144;
/// Most bytes that one command may read, bytes.
const READ_LENGTH_MAX: u32 = 16 << 20;

/// Whom to log in as, and to what.
#[derive(Clone, Debug)]
pub struct InitiatorConfig {
    /// Our iSCSI name.
    pub name: String,
    /// The target's iSCSI name; None for a discovery session.
    pub target: Option<String>,
    /// Tells our sessions with one target apart.
    pub isid: [u8; 6],
    /// What we prove, and what the target must prove if `chap.target` is given.
    pub chap: Option<Chap>,
    /// Random bytes for our challenge; fresh for each connection, or a target's answer could be
    /// replayed.
    pub seed: [u8; 32],
    /// HeaderDigest.
    pub header_digest: DigestChoice,
    /// DataDigest.
    pub data_digest: DigestChoice,
    /// Whether write data may come with the command.
    pub immediate_data: bool,
    /// Whether to insist on R2T for all data beyond immediate data.
    pub initial_r2t: bool,
    /// The longest data segment that we declare to receive, 512..=262144 bytes.
    pub receive_length: u32,
}

impl InitiatorConfig {
    /// A session without authentication and digests.
    #[must_use]
    pub fn new(name: &str, target: Option<&str>) -> Self {
        InitiatorConfig {
            name: name.into(),
            target: target.map(String::from),
            isid: [0x80, 0, 0, 0, 0, 1],
            chap: None,
            seed: [0; 32],
            header_digest: DigestChoice::None,
            data_digest: DigestChoice::None,
            immediate_data: true,
            initial_r2t: false,
            receive_length: RECEIVE_LENGTH_MAX as u32,
        }
    }
}

/// Why a session cannot go on, or a command not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitiatorError {
    /// The target refused the login (RFC 7143 §11.13.5).
    #[error("the target refused the login with status {class:#04x}{detail:02x}{}", refusal_hint(*.class, *.detail))]
    LoginRefused {
        /// Status class.
        class: u8,
        /// Status detail.
        detail: u8,
    },
    /// The target did not prove who it is.
    #[error("the target failed to authenticate itself; check the mutual CHAP secret")]
    TargetNotProved,
    /// The target broke the protocol.
    #[error("the target broke the protocol: {0}")]
    Protocol(&'static str),
    /// A digest did not match.
    #[error("a digest does not match, data was damaged on the way")]
    Digest,
    /// Nothing can be sent yet or any more.
    #[error("the session is not in full-feature phase")]
    NotReady,
    /// The target admits no further command now; take completions first.
    #[error("the command window is full, take completions first")]
    WindowFull,
    /// A command is longer than we support.
    #[error("a command may transfer at most {READ_LENGTH_MAX} bytes")]
    TooLong,
}

fn refusal_hint(class: u8, detail: u8) -> &'static str {
    match (class, detail) {
        (2, 1) => " (authentication failed: check the CHAP name and secret)",
        (2, 2) => " (this initiator name is not allowed: map a volume to it)",
        (2, 3) => " (no such target)",
        (3, _) => " (the target cannot take the login now: try again)",
        _ => "",
    }
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The tag that the command was given.
    pub task: u32,
    /// How it ended.
    pub status: CompletionStatus,
    /// What was read; also of text and NOP answers.
    pub data: Vec<u8>,
    /// Bytes announced and not transferred (positive), or asked for beyond the announced (negative).
    pub residual: i64,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompletionStatus {
    /// GOOD.
    Good,
    /// CHECK CONDITION.
    CheckCondition {
        /// Sense key.
        key: u8,
        /// Additional sense code and qualifier.
        code: u16,
        /// INFORMATION, if valid.
        information: Option<u64>,
    },
    /// Another SCSI status, as BUSY or RESERVATION CONFLICT.
    Status(u8),
    /// The target failed to carry out the command: response code (RFC 7143 §11.4.3).
    TargetFailure(u8),
    /// The response of a task management function.
    Managed(u8),
    /// The response of a logout; the connection ends.
    LoggedOut(u8),
    /// The target refused a PDU, for this reason.
    Rejected(u8),
}

impl CompletionStatus {
    /// Whether another path should be tried: NOT READY 04/0A, 0B, 0C.
    #[must_use]
    pub fn is_path_condition(&self) -> bool {
        matches!(self, CompletionStatus::CheckCondition { key: 2, code: 0x040a..=0x040c, .. })
    }
}

struct Pending {
    lun: u16,
    expected_in: u32,
    data_in: Vec<u8>,
    data_out: Vec<u8>,
}

enum Phase {
    Login(Box<Login>),
    Full,
    Over,
}

/// A session's initiator side.
pub struct Initiator {
    phase: Phase,
    parameters: Parameters,
    digests: Digests,
    input: Vec<u8>,
    output: Vec<u8>,
    next_task: u32,
    command_number: u32,
    max_command: u32,
    expected_status: u32,
    pending: HashMap<u32, Pending>,
    completions: VecDeque<Completion>,
    text: Vec<u8>,
    is_asked_to_log_out: bool,
}

impl Initiator {
    /// A session whose first login request is already in the output.
    #[must_use]
    pub fn new(config: InitiatorConfig) -> Self {
        let mut login = Login::new(config);
        let mut output = Vec::new();
        login.begin(&mut output);
        Initiator {
            phase: Phase::Login(Box::new(login)),
            parameters: Parameters::default(),
            digests: Digests::default(),
            input: Vec::new(),
            output,
            next_task: 1,
            command_number: 1,
            max_command: 1,
            expected_status: 0,
            pending: HashMap::new(),
            completions: VecDeque::new(),
            text: Vec::new(),
            is_asked_to_log_out: false,
        }
    }

    /// Whether commands can be sent.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Full)
    }

    /// Whether the session has ended by logout.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Whether the target asked for a logout, or announced the end of the session.
    #[must_use]
    pub fn is_asked_to_log_out(&self) -> bool {
        self.is_asked_to_log_out
    }

    /// What the session settled on.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Commands not yet completed.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.pending.len()
    }

    /// Bytes to send. The caller takes from the front what it sent.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// What a command came to, in order of arrival.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// Takes received bytes, fragmented in any way.
    ///
    /// # Errors
    /// The session is over: close the connection.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), InitiatorError> {
        self.input.extend_from_slice(bytes);
        let mut input = std::mem::take(&mut self.input);
        let mut at = 0;
        while let Some((header, data, end)) = self.frame(&input[at..])? {
            self.handle(&header, &input[at..][data])?;
            at += end;
        }
        input.drain(..at);
        self.input = input;
        Ok(())
    }

    /// The first whole PDU of `input`: its header, where its data is, where it ends.
    fn frame(
        &self,
        input: &[u8],
    ) -> Result<Option<(Header, std::ops::Range<usize>, usize)>, InitiatorError> {
        let Some(bytes) = input.get(..HEADER_LENGTH) else { return Ok(None) };
        let mut raw = [0; HEADER_LENGTH];
        raw.copy_from_slice(bytes);
        let header = Header(raw);
        let length = header.data_length();
        if length > RECEIVE_LENGTH_MAX {
            return Err(InitiatorError::Protocol("a data segment is longer than declared"));
        }
        let covered = HEADER_LENGTH + header.additional_length();
        let start = covered + if self.digests.header { 4 } else { 0 };
        let padded = start + length + padding(length);
        let has_digest = self.digests.data && length > 0;
        let end = padded + if has_digest { 4 } else { 0 };
        if input.len() < end {
            return Ok(None);
        }
        let holds = |covered: &[u8], digest: &[u8]| {
            let mut crc = Crc::new();
            crc.update(covered);
            crc.finish() == digest
        };
        if self.digests.header && !holds(&input[..covered], &input[covered..start])
            || has_digest && !holds(&input[start..padded], &input[padded..end])
        {
            return Err(InitiatorError::Digest);
        }
        Ok(Some((header, start..start + length, end)))
    }

    fn handle(&mut self, header: &Header, data: &[u8]) -> Result<(), InitiatorError> {
        if let Phase::Login(login) = &mut self.phase {
            if let Some(entered) = login.receive(header, data, &mut self.output)? {
                self.parameters = entered.parameters;
                self.digests = self.parameters.digests();
                self.command_number = entered.command_number;
                self.max_command = entered.max_command;
                self.expected_status = entered.expected_status;
                self.phase = Phase::Full;
            }
            return Ok(());
        }
        self.note_numbers(header);
        match header.opcode() {
            opcode::DATA_IN => self.take_data(header, data),
            opcode::SCSI_RESPONSE => self.take_response(header, data),
            opcode::R2T => self.send_asked(header),
            opcode::NOP_IN => {
                self.take_nop(header, data);
                Ok(())
            }
            opcode::TEXT_RESPONSE => self.take_text(header, data),
            opcode::TASK_MANAGEMENT_RESPONSE => {
                self.complete(header.task_tag(), CompletionStatus::Managed(header.0[2]), 0);
                Ok(())
            }
            opcode::LOGOUT_RESPONSE => {
                self.complete(header.task_tag(), CompletionStatus::LoggedOut(header.0[2]), 0);
                self.phase = Phase::Over;
                Ok(())
            }
            opcode::ASYNC_MESSAGE => {
                self.is_asked_to_log_out |= header.0[36] != 0;
                Ok(())
            }
            opcode::REJECT => {
                // The refused header comes back; its tag tells the command.
                if let Some(tag) = data.get(16..20) {
                    let tag = u32::from_be_bytes([tag[0], tag[1], tag[2], tag[3]]);
                    self.complete(tag, CompletionStatus::Rejected(header.0[2]), 0);
                }
                Ok(())
            }
            _ => Err(InitiatorError::Protocol("a PDU of an unknown kind")),
        }
    }

    fn note_numbers(&mut self, header: &Header) {
        let has_status = header.opcode() != opcode::DATA_IN || header.flags() & 1 != 0;
        let is_numbered =
            has_status && header.opcode() != opcode::R2T && header.task_tag() != RESERVED_TAG
                || matches!(header.opcode(), opcode::ASYNC_MESSAGE | opcode::REJECT);
        if is_numbered {
            self.expected_status = header.u32_at(24).wrapping_add(1);
        }
        let max = header.u32_at(32);
        if serial_before(self.max_command, max) {
            self.max_command = max;
        }
    }

    fn take_data(&mut self, header: &Header, data: &[u8]) -> Result<(), InitiatorError> {
        let pending = self.pending.get_mut(&header.task_tag());
        let pending = pending.ok_or(InitiatorError::Protocol("data for no command"))?;
        let offset = header.buffer_offset() as usize;
        if offset != pending.data_in.len() || offset + data.len() > pending.expected_in as usize {
            return Err(InitiatorError::Protocol("data out of order or beyond what was asked"));
        }
        pending.data_in.extend_from_slice(data);
        if header.flags() & 1 != 0 {
            let status = match header.0[3] {
                0 => CompletionStatus::Good,
                other => CompletionStatus::Status(other),
            };
            self.complete(header.task_tag(), status, residual(header));
        }
        Ok(())
    }

    fn take_response(&mut self, header: &Header, data: &[u8]) -> Result<(), InitiatorError> {
        let status = match (header.0[2], header.0[3]) {
            (0, 0) => CompletionStatus::Good,
            (0, 2) => {
                let length =
                    data.get(..2).map_or(0, |length| u16::from_be_bytes([length[0], length[1]]));
                let sense = data.get(2..2 + usize::from(length)).unwrap_or(&[]);
                parse_sense(sense)
                    .ok_or(InitiatorError::Protocol("CHECK CONDITION without sense data"))?
            }
            (0, other) => CompletionStatus::Status(other),
            (response, _) => CompletionStatus::TargetFailure(response),
        };
        self.complete(header.task_tag(), status, residual(header));
        Ok(())
    }

    fn take_nop(&mut self, header: &Header, data: &[u8]) {
        if header.task_tag() != RESERVED_TAG {
            if let Some(pending) = self.pending.get_mut(&header.task_tag()) {
                pending.data_in = data.to_vec();
            }
            self.complete(header.task_tag(), CompletionStatus::Good, 0);
        } else if header.transfer_tag() != RESERVED_TAG {
            let mut answer = Header::new(opcode::NOP_OUT);
            answer
                .set_immediate()
                .set_lun_field(header.lun_field())
                .set_task_tag(RESERVED_TAG)
                .set_transfer_tag(header.transfer_tag());
            self.number(&mut answer);
            pdu::append(&mut self.output, &mut answer, &[], self.digests);
        }
    }

    fn take_text(&mut self, header: &Header, data: &[u8]) -> Result<(), InitiatorError> {
        if self.text.len() + data.len() > READ_LENGTH_MAX as usize {
            return Err(InitiatorError::Protocol("an endless text answer"));
        }
        self.text.extend_from_slice(data);
        if header.is_final() {
            let text = std::mem::take(&mut self.text);
            if let Some(pending) = self.pending.get_mut(&header.task_tag()) {
                pending.data_in = text;
            }
            self.complete(header.task_tag(), CompletionStatus::Good, 0);
            return Ok(());
        }
        let mut more = Header::new(opcode::TEXT);
        more.set_immediate()
            .set_task_tag(header.task_tag())
            .set_transfer_tag(header.transfer_tag());
        self.number(&mut more);
        pdu::append(&mut self.output, &mut more, &[], self.digests);
        Ok(())
    }

    fn complete(&mut self, task: u32, status: CompletionStatus, residual: i64) {
        if let Some(pending) = self.pending.remove(&task) {
            self.completions.push_back(Completion {
                task,
                status,
                data: pending.data_in,
                residual,
            });
        }
    }

    /// Fills in CmdSN and ExpStatSN.
    fn number(&self, header: &mut Header) {
        header.set_u32(24, self.command_number).set_u32(28, self.expected_status);
    }
}

fn residual(header: &Header) -> i64 {
    let count = i64::from(header.u32_at(44));
    match header.flags() & 0x06 {
        0x02 => count,
        0x04 => -count,
        _ => 0,
    }
}

/// Reads sense data of both formats.
fn parse_sense(sense: &[u8]) -> Option<CompletionStatus> {
    let is_fixed = matches!(sense.first()? & 0x7f, 0x70 | 0x71);
    let (key, code, information) = if is_fixed {
        let code = sense.get(12..14)?;
        let information = sense.get(3..7).filter(|_| sense[0] & 0x80 != 0);
        let information =
            information.map(|bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
        (sense.get(2)? & 0x0f, u16::from_be_bytes([code[0], code[1]]), information)
    } else {
        let head = sense.get(..8)?;
        let information = sense.get(8..20).filter(|descriptor| descriptor[0] == 0);
        let information = information
            .map(|bytes| bytes[4..].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
        (head[1] & 0x0f, u16::from_be_bytes([head[2], head[3]]), information)
    };
    Some(CompletionStatus::CheckCondition { key, code, information })
}

/// The portals of a SendTargets answer: target name and address with its group tag.
///
/// # Errors
/// The text is not well-formed.
pub fn parse_targets(data: &[u8]) -> Result<Vec<(String, String)>, InitiatorError> {
    let mut name = "";
    let mut targets = Vec::new();
    // Each record holds few pairs, but there may be many records: the text is parsed by the pair.
    for piece in data.split(|byte| *byte == 0).filter(|piece| !piece.is_empty()) {
        let pair = text::parse(piece).ok().and_then(|pairs| pairs.first().copied());
        match pair.ok_or(InitiatorError::Protocol("discovery text is malformed"))? {
            ("TargetName", value) => name = value,
            ("TargetAddress", value) => targets.push((name.to_owned(), value.to_owned())),
            _ => {}
        }
    }
    Ok(targets)
}

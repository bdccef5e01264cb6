//! One connection of the hostile host: what it sent, and what came back.

use super::model::State;
use super::wire::{
    C2H_DATA, C2H_TERM, CAPSULE, Format, H2C_DATA, IC_REQ, IC_RESP, LAST, Pdu, R2T, RESPONSE,
    Reader, SUCCESS, encode,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use voute_nvme::{Request, TargetConnection};

/// More output than this must never wait on a connection of the test's limits, bytes.
const OUTPUT_MAX: usize = super::target::HELD_MAX + (1 << 20) + (128 << 10);

/// A command whose capsule had a sound header.
#[derive(Default)]
pub(crate) struct Sent {
    pub(crate) opcode: u8,
    pub(crate) lba: u64,
    pub(crate) blocks: u32,
    /// What it writes; given to the target in the capsule or piece by piece.
    pub(crate) data: Vec<u8>,
    pub(super) in_capsule: bool,
    pub(super) asked: usize,
    pub(crate) reply_max: usize,
    pub(super) received: Vec<u8>,
    /// May stay unanswered: an event request.
    pub(crate) waits: bool,
    /// How the model says that it must be refused, while nothing else has changed.
    pub(crate) refusal: Option<(u8, u8)>,
    /// What follows if it succeeds.
    pub(crate) then: Then,
}

impl std::fmt::Debug for Sent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Sent { opcode, lba, blocks, data, asked, reply_max, .. } = self;
        let length = data.len();
        write!(
            formatter,
            "opcode {opcode:#x}, {blocks} blocks from {lba}, {asked} of {length} bytes asked for, reply {reply_max}"
        )
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    #[default]
    Nothing,
    Become(State, u16),
}

/// A command that was answered.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) sent: Sent,
    /// Status code type and code.
    pub(crate) status: (u8, u8),
    pub(crate) data: Vec<u8>,
}

pub(crate) struct Peer {
    pub(crate) connection: TargetConnection,
    reader: Reader,
    format: Format,
    /// Where data towards the host begins: at multiples of this, bytes.
    alignment: usize,
    pub(crate) state: State,
    /// The model knows of every PDU, and all were sound and in their place.
    pub(crate) is_tracked: bool,
    pub(crate) sent: BTreeMap<u16, Sent>,
    next_id: u16,
    /// Entries of its submission queue.
    pub(crate) depth: usize,
    /// Transfers that the target is ready for: command, tag, offset, length.
    pub(crate) transfers: VecDeque<(u16, u16, u32, u32)>,
    pub(crate) held: Vec<Request>,
    to_send: Vec<u8>,
    is_terminated: bool,
    /// The fatal error that must come.
    pub(crate) fatal: Option<u16>,
    pub(crate) controller: u16,
    pub(crate) answered: Vec<Answered>,
    /// It sent Disconnect on an I/O queue.
    pub(crate) is_leaving: bool,
}

impl Peer {
    pub(crate) fn new(connection: TargetConnection) -> Self {
        Peer {
            connection,
            reader: Reader::default(),
            format: Format::default(),
            alignment: 4,
            state: State::New,
            is_tracked: true,
            sent: BTreeMap::new(),
            next_id: 0,
            depth: 2,
            transfers: VecDeque::new(),
            held: Vec::new(),
            to_send: Vec::new(),
            is_terminated: false,
            fatal: None,
            controller: 0xFFFF,
            answered: Vec::new(),
            is_leaving: false,
        }
    }

    pub(crate) fn initialize(&mut self, digests: u8, alignment: u8, ready_max: u32) {
        let mut specific = [0; 120];
        (specific[2], specific[3]) = (alignment % 32, digests & 3);
        specific[4..8].copy_from_slice(&ready_max.to_le_bytes());
        self.send(IC_REQ, 0, &specific, &[]);
        if self.state == State::New {
            self.state = State::Initialized;
            let (header_digest, data_digest) = (digests & 1 == 1, digests & 2 == 2);
            self.format = Format { header_digest, data_digest, alignment: 4 };
            self.alignment = 4 * (usize::from(alignment % 32) + 1);
        }
    }

    /// Sends a PDU with a sound header and notes what must follow.
    pub(crate) fn send(&mut self, kind: u8, flags: u8, specific: &[u8], data: &[u8]) {
        if self.fatal.is_none() && self.is_tracked {
            self.fatal = super::model::fatal_error(self.state, kind);
        }
        self.to_send.extend(encode(kind, flags, specific, data, self.format));
        self.is_tracked &= self.fatal.is_none();
    }

    /// Sends data for a transfer that was asked for.
    pub(crate) fn send_data(&mut self, place: (u16, u16, u32), data: &[u8], is_last: bool) {
        let mut specific = [0; 16];
        specific[0..2].copy_from_slice(&place.0.to_le_bytes());
        specific[2..4].copy_from_slice(&place.1.to_le_bytes());
        specific[4..8].copy_from_slice(&place.2.to_le_bytes());
        specific[8..12].copy_from_slice(&(data.len() as u32).to_le_bytes());
        let flags = if is_last { LAST } else { 0 };
        self.to_send.extend(encode(H2C_DATA, flags, &specific, data, self.format));
    }

    /// Anything at all: the model knows nothing of this connection from now on.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.is_tracked = false;
        self.to_send.extend(bytes);
    }

    /// Damages the last bytes that wait to be sent.
    pub(crate) fn damage(&mut self, back: usize, with: u8) {
        let length = self.to_send.len();
        if let Some(byte) = length.checked_sub(back + 1).and_then(|at| self.to_send.get_mut(at)) {
            *byte ^= with | 1;
            (self.is_tracked, self.fatal) = (false, None);
        }
    }

    /// A command, its identifier put in. `data` goes into the capsule if `in_capsule`.
    pub(crate) fn command(&mut self, mut entry: [u8; 64], sent: Sent, in_capsule: bool) {
        if self.sent.len() + 1 >= self.depth {
            // More than the queue holds: whatever follows is its own fault.
            self.is_tracked = false;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1) % 64;
        if self.sent.contains_key(&id) {
            self.is_tracked = false;
        }
        entry[2..4].copy_from_slice(&id.to_le_bytes());
        let data = if in_capsule { sent.data.clone() } else { Vec::new() };
        self.send(CAPSULE, 0, &entry, &data);
        if self.is_tracked {
            self.sent.insert(id, Sent { in_capsule, ..sent });
        }
    }

    /// Lets the target read as far as it wants, in pieces.
    pub(crate) fn deliver(&mut self, piece: usize, now: Duration) {
        let mut from = 0;
        while from < self.to_send.len() && self.connection.wants_input() {
            let to = (from + piece.max(1)).min(self.to_send.len());
            self.connection.receive(&self.to_send[from..to], now);
            from = to;
            let waiting = self.connection.output().len();
            assert!(waiting <= OUTPUT_MAX + piece, "{waiting} bytes of output wait");
        }
        self.to_send.drain(..from);
        if self.connection.is_closing() {
            self.to_send.clear();
        }
    }

    pub(crate) fn has_to_send(&self) -> bool {
        !self.to_send.is_empty()
    }

    /// Reads what the target sent.
    pub(crate) fn read(&mut self) {
        let output = std::mem::take(self.connection.output());
        self.reader.feed(&output);
        while let Some(pdu) = self.reader.next() {
            self.pdu(pdu);
        }
    }

    fn pdu(&mut self, pdu: Pdu) {
        assert!(!self.is_terminated, "something follows a termination request: {pdu:?}");
        match pdu.kind {
            IC_RESP => {
                assert!(pdu.word(12) >= 4096, "MAXH2CDATA");
                self.reader.format = Format { alignment: self.alignment, ..self.format };
            }
            C2H_TERM => self.terminated(&pdu),
            RESPONSE => self.completion(&pdu),
            C2H_DATA => self.data(pdu),
            R2T => self.ready(&pdu),
            kind => panic!("a controller does not send PDUs of type {kind:#x}"),
        }
    }

    fn terminated(&mut self, pdu: &Pdu) {
        assert!(pdu.header.len() + pdu.data.len() <= 152);
        let error = pdu.half(8);
        assert!((1..=6).contains(&error), "FES {error}");
        if let Some(expected) = self.fatal {
            assert_eq!(
                error,
                expected,
                "FES in state {:?}, {} sent of {}, {:?}",
                self.state,
                self.sent.len(),
                self.depth,
                pdu
            );
        } else {
            assert!(!self.is_tracked, "FES {error} to PDUs that are sound, in {:?}", self.state);
        }
        self.is_terminated = true;
        self.state = State::Over;
    }

    fn completion(&mut self, pdu: &Pdu) {
        if !self.is_tracked {
            return;
        }
        let (id, field) = (pdu.half(20), pdu.half(22));
        let sent = self.sent.remove(&id).unwrap_or_else(|| panic!("nobody asked {id}: {pdu:?}"));
        let status = ((field >> 9 & 7) as u8, (field >> 1) as u8);
        if status == (0, 0)
            && let Then::Become(state, depth) = sent.then
        {
            (self.state, self.depth) = (state, usize::from(depth));
            if matches!(state, State::Admin | State::Discovery) {
                self.controller = pdu.half(8);
                assert_eq!(pdu.half(10), 0, "no authentication was configured");
            }
        }
        self.finish(sent, status);
    }

    fn data(&mut self, pdu: Pdu) {
        if !self.is_tracked {
            return;
        }
        let id = pdu.half(8);
        let sent = self.sent.get_mut(&id).unwrap_or_else(|| panic!("data for {id}: {pdu:?}"));
        assert_eq!(pdu.word(12) as usize, sent.received.len(), "DATAO");
        assert_eq!(pdu.word(16) as usize, pdu.data.len(), "DATAL");
        sent.received.extend(&pdu.data);
        assert!(sent.received.len() <= sent.reply_max, "more data than asked for: {sent:?}");
        if pdu.flags & SUCCESS != 0 {
            assert_ne!(pdu.flags & LAST, 0, "SUCCESS without LAST");
            let sent = self.sent.remove(&id).expect("it was there");
            self.finish(sent, (0, 0));
        }
    }

    fn ready(&mut self, pdu: &Pdu) {
        if !self.is_tracked {
            return;
        }
        let (id, tag, offset, length) = (pdu.half(8), pdu.half(10), pdu.word(12), pdu.word(16));
        let sent = self.sent.get_mut(&id).unwrap_or_else(|| panic!("R2T for {id}: {pdu:?}"));
        assert!(!sent.in_capsule, "R2T for data that was in the capsule");
        assert_eq!(offset as usize, sent.asked, "R2TO");
        sent.asked += length as usize;
        assert!(length > 0 && sent.asked <= sent.data.len(), "R2T for {length} of {sent:?}");
        self.transfers.push_back((id, tag, offset, length));
    }

    fn finish(&mut self, mut sent: Sent, status: (u8, u8)) {
        if let Some(expected) = sent.refusal {
            assert_eq!(status, expected, "the model refuses {sent:?}");
        }
        let data = std::mem::take(&mut sent.received);
        self.answered.push(Answered { sent, status, data });
    }
}

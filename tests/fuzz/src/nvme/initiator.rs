//! A hostile target against our initiator: each command that was submitted ends exactly once, what is
//! sent is sound, and no answer makes it keep or send without bound.

use super::wire::{
    C2H_DATA, C2H_TERM, CAPSULE, Format, H2C_DATA, H2C_TERM, IC_REQ, IC_RESP, LAST, R2T, RESPONSE,
    Reader, SUCCESS, encode,
};
use crate::Input;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;
use voute_buffer::Buffer;
use voute_nvme::{
    Attachment, AttachmentUpdate, Command, ConnectionOptions, DISCOVERY_RECORDS_MAX, Digests,
    Discovery, InitiatorConnection, InitiatorEvent, Payload, Tag,
};

const NQN: &str = "nqn.2026-01.io.voute:array";
/// Of one command in either direction, bytes.
const TRANSFER_MAX: usize = (1 << 20) + (64 << 10);

/// A command as the target sees it.
struct Seen {
    opcode: u8,
    select: u8,
    length: usize,
    in_capsule: bool,
    sent: usize,
    asked: usize,
}

struct World {
    connection: InitiatorConnection,
    attachment: Option<Attachment>,
    discovery: Option<Discovery>,
    reader: Reader,
    format: Format,
    seen: BTreeMap<u16, Seen>,
    submitted: HashSet<Tag>,
    now: Duration,
    is_closed: bool,
    /// Stray bytes may have passed for a handshake: what was negotiated is not known any more.
    has_strayed: bool,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let now = Duration::from_secs(7);
        let (kind, digests) = (input.below(4), input.byte());
        let options = ConnectionOptions {
            digests: Digests { header: digests & 1 == 1, data: digests & 2 == 2 },
            queue_depth: input.pick(&[8, 2, 40]),
            ..ConnectionOptions::new("nqn.h:us", [3; 16], NQN)
        };
        let connection = match kind {
            0 | 1 => InitiatorConnection::connect_admin(options, now),
            2 => InitiatorConnection::connect_io(options, 5, 1, 8192, now),
            _ => InitiatorConnection::connect_link(options, now),
        };
        let attachment = (kind == 0).then(|| Attachment::new(2));
        let discovery = (kind == 1).then(Discovery::new);
        World {
            connection,
            attachment,
            discovery,
            reader: Reader::default(),
            format: Format { alignment: 4, ..Format::default() },
            seen: BTreeMap::new(),
            submitted: HashSet::new(),
            now,
            is_closed: false,
            has_strayed: false,
        }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let length = input.pick(&[0usize, 512, 8192, 16_384, 100_000]);
        let payload = || Payload::Owned(Buffer::copy_of(&vec![0x33; length]));
        let command = match input.below(6) {
            0 => Command::read(1, 0, (length / 512).max(1) as u32, 512),
            1 => Command::write(1, 9, (length / 512).max(1) as u32, payload(), true),
            2 => Command::vendor(0xC3, 1, [0; 6], payload(), length),
            3 => Command::flush(1),
            4 => Command::log_page(0x70, 0, 4096),
            _ => Command::deallocate(1, &[(0, 8)]),
        };
        if let Ok(tag) = self.connection.submit(command, self.now) {
            assert!(self.submitted.insert(tag), "one tag twice");
        }
    }

    fn respond(&mut self, input: &mut Input<'_>, bytes: Vec<u8>) {
        let piece = [usize::MAX, 1, 23, 600][input.below(4)];
        for chunk in bytes.chunks(piece.min(bytes.len().max(1))) {
            self.connection.receive(chunk, self.now);
        }
        self.look();
    }

    fn send(&mut self, input: &mut Input<'_>, kind: u8, flags: u8, specific: &[u8], data: &[u8]) {
        let bytes = encode(kind, flags, specific, data, self.format);
        self.respond(input, bytes);
    }

    fn initialize(&mut self, input: &mut Input<'_>) {
        self.look();
        let mut specific = [0; 120];
        let grants = if input.one_in(8) { input.byte() } else { 3 };
        let asked = u8::from(self.reader.format.header_digest)
            | u8::from(self.reader.format.data_digest) << 1;
        specific[2] = if input.one_in(8) { input.byte() } else { 0 };
        specific[3] = grants & asked;
        let limit = input.pick(&[4096u32, 131_072, 4098, 100, u32::MAX]);
        specific[4..8].copy_from_slice(&limit.to_le_bytes());
        let granted = grants & asked;
        (self.format.header_digest, self.format.data_digest) = (granted & 1 == 1, granted & 2 == 2);
        self.reader.format =
            Format { alignment: 4 * (usize::from(specific[2]) + 1), ..self.format };
        self.send(input, IC_RESP, 0, &specific, &[]);
    }

    /// Which command to answer: mostly one that is out.
    fn target_of(&mut self, input: &mut Input<'_>) -> u16 {
        let ids: Vec<u16> = self.seen.keys().copied().collect();
        if ids.is_empty() || input.one_in(16) {
            return input.half();
        }
        input.pick(&ids)
    }

    fn complete(&mut self, input: &mut Input<'_>) {
        let id = self.target_of(input);
        let is_connect = self.seen.get(&id).is_some_and(|seen| seen.opcode == 0x7F);
        let status = if input.one_in(10) { input.half() & !1 } else { 0 };
        let first = match is_connect {
            true => u32::from(input.pick(&[5u16, 1, 0xFFFF])),
            false => input.pick(&[1, 0x0003_0003, 0x0004_0002, 0x000C_0302, 0, 0xFFFF_FFFF]),
        };
        let mut specific = [0; 16];
        specific[0..4].copy_from_slice(&first.to_le_bytes());
        specific[4..8].copy_from_slice(&input.edgy().to_le_bytes());
        specific[12..14].copy_from_slice(&id.to_le_bytes());
        specific[14..16].copy_from_slice(&status.to_le_bytes());
        self.seen.remove(&id);
        self.send(input, RESPONSE, 0, &specific, &[]);
    }

    /// Data of a read, an identify structure or a log: sometimes what one would expect.
    fn data(&mut self, input: &mut Input<'_>) {
        let id = self.target_of(input);
        let (length, select, at) = self
            .seen
            .get(&id)
            .map_or((64, 0, 0), |seen| (seen.length.max(1), seen.select, seen.sent));
        let mut data = vec![0; length.saturating_sub(at).clamp(1, 8192)];
        fill(&mut data, select, input);
        if input.one_in(12) {
            let at = usize::from(input.half()) % data.len();
            data[at] ^= input.byte();
        }
        if input.one_in(10) {
            data.truncate(input.below(256).max(1));
        }
        let is_last = at + data.len() >= length || input.one_in(4);
        let flags = if is_last { LAST } else { 0 } | if input.one_in(3) { SUCCESS } else { 0 };
        let offset = if input.one_in(16) { input.edgy() } else { at as u32 };
        let mut specific = [0; 16];
        specific[0..2].copy_from_slice(&id.to_le_bytes());
        specific[4..8].copy_from_slice(&offset.to_le_bytes());
        specific[8..12].copy_from_slice(&(data.len() as u32).to_le_bytes());
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.sent += data.len();
        }
        if flags & SUCCESS != 0 {
            self.seen.remove(&id);
        }
        self.send(input, C2H_DATA, flags, &specific, &data);
    }

    fn ask(&mut self, input: &mut Input<'_>) {
        let id = self.target_of(input);
        let (left, asked) = self
            .seen
            .get(&id)
            .map_or((512, 0), |seen| (seen.length.saturating_sub(seen.asked), seen.asked));
        let length = if input.one_in(8) { input.edgy() } else { left.min(5000) as u32 };
        let offset = if input.one_in(16) { input.edgy() } else { asked as u32 };
        let mut specific = [0; 16];
        specific[0..2].copy_from_slice(&id.to_le_bytes());
        specific[4..8].copy_from_slice(&offset.to_le_bytes());
        specific[8..12].copy_from_slice(&length.to_le_bytes());
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.asked += length as usize;
        }
        self.send(input, R2T, 0, &specific, &[]);
    }

    /// What the initiator sent, and what it reports.
    fn look(&mut self) {
        let output = std::mem::take(self.connection.output());
        assert!(output.len() < 24 << 20, "{} bytes of output", output.len());
        if self.has_strayed {
            return self.events();
        }
        self.reader.feed(&output);
        while let Some(pdu) = self.reader.next() {
            match pdu.kind {
                IC_REQ => {
                    let digests = pdu.header[11];
                    let (header_digest, data_digest) = (digests & 1 == 1, digests & 2 == 2);
                    // Only as a note of what was asked for: nothing is digested yet.
                    self.reader.format = Format { header_digest, data_digest, alignment: 4 };
                }
                CAPSULE => {
                    let length = pdu.word(8 + 32) as usize;
                    assert!(length <= TRANSFER_MAX && pdu.data.len() <= TRANSFER_MAX);
                    let in_capsule = pdu.header[8 + 39] == 1;
                    assert_eq!(in_capsule, !pdu.data.is_empty());
                    let (opcode, select) = (pdu.header[8], pdu.header[8 + 40]);
                    let seen = Seen { opcode, select, length, in_capsule, sent: 0, asked: 0 };
                    self.seen.insert(pdu.half(10), seen);
                }
                H2C_DATA => {
                    let known = self.seen.get(&pdu.half(8));
                    let end = pdu.word(12) as usize + pdu.data.len();
                    if let Some(seen) = known {
                        assert!(!seen.in_capsule && end <= seen.length, "more than the command's");
                    }
                }
                H2C_TERM => assert!(self.connection.is_closing()),
                other => panic!("a host does not send PDUs of type {other:#x}"),
            }
        }
        self.events();
    }

    fn events(&mut self) {
        while let Some(event) = self.connection.next_event() {
            assert!(!self.is_closed, "{event:?} after the end");
            let event = match (&mut self.attachment, &mut self.discovery) {
                (Some(attachment), _) => attachment.handle(&mut self.connection, event, self.now),
                (None, Some(discovery)) => discovery.handle(&mut self.connection, event, self.now),
                (None, None) => Some(event),
            };
            match event {
                Some(InitiatorEvent::Completed { tag, status, data, .. }) => {
                    assert!(self.submitted.remove(&tag), "{tag:?} ended twice");
                    assert!(status.is_success() || data.is_none());
                }
                Some(InitiatorEvent::Lost { tag, .. }) => {
                    assert!(self.submitted.remove(&tag), "{tag:?} ended twice");
                }
                Some(InitiatorEvent::Closed { .. }) => {
                    assert!(self.submitted.is_empty(), "commands without an end");
                    self.is_closed = true;
                }
                Some(InitiatorEvent::Connected { .. }) | None => {}
            }
        }
        assert!(self.connection.outstanding() <= 40);
        if let Some(Ok(portals)) = self.discovery.as_mut().and_then(Discovery::outcome) {
            assert!(portals.len() <= DISCOVERY_RECORDS_MAX);
        }
        if let Some(attachment) = &mut self.attachment {
            while let Some(update) = attachment.next_update() {
                if let AttachmentUpdate::Namespaces(namespaces) = update {
                    assert!(namespaces.len() <= voute_nvme::NAMESPACES_PER_HOST_MAX);
                }
            }
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.below(12) {
            0 => self.initialize(input),
            1..=3 => self.complete(input),
            4..=6 => self.data(input),
            7 => self.ask(input),
            8 | 9 => self.submit(input),
            10 => {
                self.now += Duration::from_millis(input.pick(&[1u64, 60, 1700, 5100, 31_000]));
                self.connection.tick(self.now);
                if let Some(discovery) = &mut self.discovery {
                    discovery.tick(&mut self.connection, self.now);
                }
                if let Some(attachment) = &mut self.attachment {
                    attachment.tick(&mut self.connection, self.now);
                }
            }
            _ => {
                self.look();
                self.has_strayed = true;
                let length = input.below(80);
                let raw = input.take(length).to_vec();
                match input.below(3) {
                    0 => self.respond(input, raw),
                    1 => self.send(input, C2H_TERM, 0, &[2, 0, 0, 0, 0, 0], &[9; 16]),
                    _ => {
                        let kind = input.below(12) as u8;
                        self.send(input, kind, 0, &raw, &[]);
                    }
                }
            }
        }
        self.look();
    }
}

/// Lengths and counts as a sound controller would give them, so that more than the first step is seen.
fn fill(data: &mut [u8], select: u8, input: &mut Input<'_>) {
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(room) = data.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    };
    match (select, input.below(4)) {
        (_, 3) => {
            let noise = input.take(64).to_vec();
            put(0, &noise);
        }
        (0x01, _) => {
            put(76, &[0x0B, 5]);
            put(92, &0x900u32.to_le_bytes());
            put(344, &[9, 0, 0, 0, 9, 0, 0, 0]);
            put(540, &[9, 0, 0, 0]);
            put(1792, &[0x20, 2, 0, 0]);
        }
        (0x02, more) => {
            for index in 0..=more as u32 {
                put(index as usize * 4, &(index + 1).to_le_bytes());
            }
        }
        // Good for a discovery log's header, and for a record of it.
        (0x70, more) => {
            put(0, &[3, 1, input.pick(&[2, 1, 3, 9])]);
            put(8, &[input.pick(&[1, 5, 0, 255]), 0, 0, more as u8 / 2]);
            put(32, b"4420");
            put(256, NQN.as_bytes());
            put(512, b"192.0.2.1");
        }
        (0x00, _) => {
            put(0, &100u64.to_le_bytes());
            put(92, &[1, 0, 0, 0]);
            put(104, &[0x44; 16]);
            put(130, &[input.pick(&[9, 12, 8, 17])]);
        }
        (0x03, _) => put(0, &[2, 16, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 3, 16]),
        (0x0C, _) => {
            put(8, &[input.byte(), 0]);
            put(16, &[1, 0, 0, 0, input.byte(), 0, 0, 0]);
            put(32, &[input.byte()]);
        }
        _ => {}
    }
}

/// Runs one session.
pub fn initiator(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let input = &mut input;
    let mut world = World::new(input);
    world.look();
    if !input.one_in(8) {
        world.initialize(input);
        world.complete(&mut Input::new(&[0, 0, 0]));
    }
    while !input.is_empty() && !world.is_closed {
        world.act(input);
    }
    world.connection.disconnected();
    world.look();
    assert!(world.is_closed && world.submitted.is_empty(), "commands without an end");
}

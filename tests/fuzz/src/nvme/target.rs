//! A hostile host, or several, against one target: anything may be sent, in any order and pieces, while
//! volumes answer late and the directory changes. As long as a host keeps to the protocol the model
//! says what must come back; whatever it does, what the target sends must be sound and bounded.

use super::host::{Answered, Peer, Sent, Then};
use super::model::{Namespace, State, opcode, refusal};
use super::wire::{C2H_TERM, CAPSULE, H2C_TERM};
use crate::Input;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_nvme::{
    AnaState, DISCOVERY_NQN, Directory, HostView, NamespaceView, Operation, Outcome, PortalEntry,
    Request, Status, Subsystem, Target, TargetConfig, TargetConnection, TargetLimits,
};
use voute_reservation::Reservations;

const SUBSYSTEM: &str = "nqn.2026-01.io.voute:subsystem";
const LINK: &str = "nqn.2026-01.io.voute:link";
const HOSTS: [&str; 3] = ["nqn.h:one", "nqn.h:two", "nqn.h:stranger"];
const PEERS_MAX: usize = 5;
const PORTAL: u16 = 3;
/// The limit under test, bytes: low, so that it is met.
pub(crate) const HELD_MAX: usize = 96 << 10;
const BEGIN: Duration = Duration::from_secs(100);
/// The shortest that a host can ask for.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(5);

struct World {
    target: Arc<Target>,
    peers: Vec<Peer>,
    namespaces: Vec<Namespace>,
    reservations: Arc<Reservations>,
    now: Duration,
    /// Something happened for which live connections may be closed without a word.
    may_close: bool,
    seed: u8,
    piece: usize,
}

fn namespaces(input: &mut Input<'_>) -> Vec<Namespace> {
    let count = input.below(4);
    let one = |index: usize, input: &mut Input<'_>| Namespace {
        nsid: [1, 2, 7, 1 << 20][index],
        block: input.pick(&[512, 4096]),
        blocks: input.pick(&[4096, 1, 70_000]),
        state: input.pick(&[1, 1, 1, 2, 3, 4, 15]),
        read_only: input.one_in(8),
    };
    (0..count).map(|index| one(index, input)).collect()
}

fn directory(namespaces: &[Namespace], hosts: usize) -> Arc<Directory> {
    let views = namespaces.iter().map(|one| NamespaceView {
        nsid: one.nsid,
        uuid: [one.nsid as u8; 16],
        nguid: [0x80 | one.nsid as u8; 16],
        block_size: one.block,
        blocks: one.blocks,
        ana_group: one.nsid,
        state: AnaState::from_code(one.state).expect("the model knows the codes"),
        read_only: one.read_only,
    });
    let view = Arc::new(HostView::new(views.collect()).expect("sound namespaces"));
    let hosts = HOSTS[..hosts].iter().map(|name| ((*name).to_owned(), view.clone())).collect();
    let subsystem = Subsystem { serial: "1".into(), hosts, keys: BTreeMap::new() };
    let portals =
        [3, 4].map(|id| PortalEntry { id, address: [10, 0, 0, id as u8].into(), port: 4420 });
    let subsystems = BTreeMap::from([(SUBSYSTEM.to_owned(), subsystem)]);
    Arc::new(Directory::new(subsystems, portals.into()).expect("sound names"))
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let limits = TargetLimits {
            queue_depth_max: 32,
            io_queues_max: 4,
            in_capsule_max: 8192,
            h2c_data_max: 4096,
            held_bytes_max: HELD_MAX,
            requested_bytes_max: 32 << 10,
            compare_and_write_blocks_max: 4,
            ..TargetLimits::default()
        };
        let config =
            TargetConfig { link_nqn: Some(LINK.to_owned()), limits, ..TargetConfig::default() };
        let target = Target::new(config).expect("a sound configuration");
        let namespaces = namespaces(input);
        target.publish(directory(&namespaces, 2));
        World {
            target,
            peers: Vec::new(),
            namespaces,
            reservations: Arc::default(),
            now: BEGIN,
            may_close: false,
            seed: 1,
            piece: input.pick(&[65_536, 16_384, 512, 77, 9, 1]),
        }
    }

    fn publish(&mut self, input: &mut Input<'_>) {
        self.namespaces = namespaces(input);
        let hosts = if input.one_in(6) { input.below(3) } else { 2 };
        self.may_close |= hosts < 2;
        self.target.publish(directory(&self.namespaces, hosts));
        for peer in &mut self.peers {
            peer.sent.values_mut().for_each(|sent| sent.refusal = None);
        }
    }

    fn peer(&mut self, input: &mut Input<'_>) -> Option<&mut Peer> {
        let count = self.peers.len();
        self.peers.get_mut(input.below(count.max(1)))
    }

    fn open(&mut self, input: &mut Input<'_>) {
        if self.peers.len() == PEERS_MAX {
            let at = input.below(PEERS_MAX);
            self.leave(at);
        }
        let connection = TargetConnection::new(self.target.clone(), PORTAL, self.now);
        let mut peer = Peer::new(connection);
        if !input.one_in(16) {
            let (digests, alignment) = (input.byte(), input.byte());
            peer.initialize(digests, alignment, input.edgy());
        }
        self.peers.push(peer);
    }

    /// A host goes: with an admin queue its controller goes too.
    fn leave(&mut self, at: usize) {
        if at >= self.peers.len() {
            return;
        }
        let mut peer = self.peers.swap_remove(at);
        self.may_close |= peer.state == State::Admin || !peer.is_tracked;
        peer.connection.disconnected();
        assert!(peer.connection.is_closing() && !peer.connection.wants_input());
        for request in peer.held.drain(..) {
            peer.connection.complete(request.tag, Outcome::Done);
        }
        assert_eq!(peer.connection.outstanding(), 0);
    }

    fn connect(&mut self, input: &mut Input<'_>) {
        let controller = self.peers.iter().find(|one| one.state == State::Admin);
        let controller = controller.map_or(0, |one| one.controller);
        let Some(peer) = self.peer(input) else { return };
        let (kind, depth) = (input.below(4), input.pick(&[15u16, 1, 3, 31, 0, 32, 0xFFFF]));
        let (queue, id, subsystem, state) = match kind {
            0 => (0, 0xFFFF, SUBSYSTEM, State::Admin),
            1 => (input.pick(&[1u16, 2, 4, 5, 63, 64]), controller, SUBSYSTEM, State::Io),
            2 => (0, 0xFFFF, DISCOVERY_NQN, State::Discovery),
            _ => (1, 0xFFFF, LINK, State::Link),
        };
        let host = input.pick(&[0, 0, 0, 1, 2]);
        let (format, flow) = (u16::from(input.one_in(30)), input.pick(&[0, 4]));
        let (mut entry, mut data) = connect_command(queue, depth, id, subsystem, host);
        entry[40..42].copy_from_slice(&format.to_le_bytes());
        entry[46] = flow;
        if input.one_in(12) {
            let at = usize::from(input.half()) % 1024;
            data[at] ^= input.byte();
        }
        let in_capsule = !input.one_in(10);
        point(&mut entry, data.len(), in_capsule);
        let then = Then::Become(state, depth.wrapping_add(1));
        let sent = Sent { opcode: 0x7F, data, then, ..Sent::default() };
        peer.command(entry, sent, in_capsule);
    }

    fn property(&mut self, input: &mut Input<'_>) {
        let Some(peer) = self.peer(input) else { return };
        let sets = input.below(4);
        let mut entry = fabrics(if sets == 0 { 4 } else { 0 });
        entry[40] = u8::from(sets == 0 && input.one_in(2));
        let offset = input.pick(&[0x14, 0, 8, 0x1C, 0x20, 0x99]);
        let value = input.pick(&[0x46_0061, 0x46_0001, 0, 0x46_4061, 0x46_0011, u32::MAX]);
        entry[44..48].copy_from_slice(&(offset as u32).to_le_bytes());
        entry[48..52].copy_from_slice(&value.to_le_bytes());
        peer.command(entry, Sent { opcode: 0x7F, ..Sent::default() }, false);
        // A reset or shutdown closes the I/O queues, and forgets event requests.
        self.may_close |= sets != 0 && value != 0x46_0061;
    }

    fn admin(&mut self, input: &mut Input<'_>) {
        let Some(peer) = self.peer(input) else { return };
        let code = match input.below(12) {
            0..=2 => 0x06,
            3 | 4 => 0x02,
            5 => 0x09,
            6 => 0x0A,
            7 => 0x0C,
            8 => 0x18,
            9 => 0x08,
            10 => 0x7F,
            _ => input.byte(),
        };
        let mut entry = command_entry(code, input.pick(&[0, 1, 2, 7, u32::MAX, 1 << 20, 99]));
        let select = match code {
            0x06 => {
                u32::from(input.pick(&[0u8, 1, 2, 3, 5, 6, 7, 8, 0x10, 0x11, 0x12, 0x13, 0x1C]))
            }
            0x02 => u32::from(input.pick(&[0u8, 1, 2, 3, 4, 5, 0x0C, 0x12, 0x70, 0x80])),
            0x09 | 0x0A => u32::from(
                input
                    .pick(&[1u8, 2, 4, 5, 6, 7, 8, 9, 0xA, 0xB, 0xF, 0x16, 0x19, 0x81, 0x82, 0x83]),
            ),
            0x7F => {
                entry[4] = input.pick(&[4, 5, 6, 8, 0xC0]);
                peer.is_leaving |= entry[4] == 8 && peer.state == State::Io;
                0
            }
            _ => input.edgy(),
        };
        let shape = input.below(4);
        let more = if shape == 3 { input.edgy() << 8 } else { 0x3FF << 16 };
        let mut dwords = [select | more, 0, 0, 0, 0, 0];
        dwords[1] =
            if code == 9 { input.pick(&[0x0300_0003, 0x900, 0x8000_0000, 3, 0]) } else { 0 };
        if input.one_in(3) {
            let at = 1 + input.below(5);
            dwords[at] = input.edgy();
        }
        put_dwords(&mut entry, dwords);
        let length = input.pick(&[4096usize, 0, 4, 64, 512, 8192]);
        let sends = code & 3 == 1;
        point(&mut entry, length, sends);
        let sent = Sent {
            opcode: code,
            data: if sends { vec![input.byte(); length] } else { Vec::new() },
            reply_max: if sends { 0 } else { length },
            waits: code == 0x0C,
            ..Sent::default()
        };
        peer.command(entry, sent, sends && length > 0);
    }

    fn io(&mut self, input: &mut Input<'_>) {
        let known = self.namespaces.clone();
        let Some(peer) = self.peer(input) else { return };
        use opcode::{COMPARE, READ, VERIFY, WRITE, WRITE_ZEROES};
        let code = input.pick(&[READ, WRITE, COMPARE, WRITE_ZEROES, VERIFY, WRITE, READ]);
        let nsid = known.get(input.below(4)).map_or(5, |one| one.nsid);
        let block = known.iter().find(|one| one.nsid == nsid).map_or(512, |one| one.block);
        let lba = match input.below(4) {
            0 => 0,
            1 => u64::from(input.half()),
            2 => 4090 + u64::from(input.byte() & 15),
            _ => u64::from(input.edgy()) << 32 | u64::from(input.edgy()),
        };
        let blocks = input.pick(&[1u32, 2, 8, 16, 17, 64, 300, 65_536]);
        let mut entry = command_entry(code, nsid);
        let control = if input.one_in(4) { input.pick(&[1 << 30, 1 << 25, 1 << 31]) } else { 0 };
        put_dwords(&mut entry, [lba as u32, (lba >> 32) as u32, (blocks - 1) | control, 0, 0, 0]);
        let refused = refusal(&known, code, nsid, lba, blocks);
        let moves = matches!(code, READ | WRITE | COMPARE) && (refused.is_none() || blocks < 64);
        let length = if moves { blocks as usize * block as usize } else { 0 };
        let in_capsule = code != READ && length <= 8192 && input.below(2) == 0;
        point(&mut entry, length, in_capsule);
        let data = if code == READ { Vec::new() } else { vec![input.byte(); length] };
        let reply_max = if code == READ { length } else { 0 };
        let needs = matches!(code, READ | WRITE | COMPARE) && !moves;
        let is_io = peer.state == State::Io;
        let refusal = refused.filter(|_| is_io && !needs);
        // On an admin queue this opcode is an event request.
        let waits = code == VERIFY && !is_io;
        let sent = Sent {
            waits,
            ..Sent { opcode: code, lba, blocks, data, reply_max, refusal, ..Sent::default() }
        };
        peer.command(entry, sent, in_capsule && length > 0);
    }

    /// Compare and write, perhaps not quite a pair.
    fn fused(&mut self, input: &mut Input<'_>) {
        let Some(peer) = self.peer(input) else { return };
        let blocks = input.pick(&[1u32, 4, 5]);
        let halves = [(opcode::COMPARE, 1), (opcode::WRITE, 2)];
        let spoiled = input.below(6);
        for (index, (code, fuse)) in halves.into_iter().enumerate() {
            if spoiled == index + 1 {
                continue;
            }
            let mut entry = command_entry(code, 1);
            entry[1] |= if spoiled == 3 { 3 } else { fuse };
            let lba = u32::from(spoiled == 4 && index == 1);
            put_dwords(&mut entry, [lba, 0, blocks - 1, 0, 0, 0]);
            let length = blocks as usize * 512;
            let in_capsule = input.below(2) == 0;
            point(&mut entry, length, in_capsule);
            let sent = Sent { opcode: code, data: vec![1; length], ..Sent::default() };
            // The first half of a pair that never comes may wait for ever.
            let sent = Sent { waits: true, ..sent };
            peer.command(entry, sent, in_capsule);
        }
    }

    /// Commands with any field, of any length.
    fn wild_command(&mut self, input: &mut Input<'_>) {
        let Some(peer) = self.peer(input) else { return };
        let code = input.pick(&[0, 1, 2, 4, 5, 8, 9, 0xC, 0xD, 0xE, 0x11, 0x15, 0x19, 0x7F, 0xC3]);
        let mut entry = command_entry(code, input.pick(&[1, 2, 0, u32::MAX]));
        put_dwords(&mut entry, [0; 6].map(|_: u32| input.edgy()));
        let length = input.pick(&[0usize, 1, 8, 16, 512, 4096, 8192, 8193]);
        let in_capsule = input.below(2) == 0;
        point(&mut entry, length, in_capsule);
        if input.one_in(4) {
            let at = 24 + input.below(16);
            entry[at] ^= input.byte();
        }
        let data: Vec<u8> = input.take(length).to_vec();
        let length = if in_capsule { length } else { 0 };
        let mut padded = data;
        padded.resize(length, 0x11);
        peer.is_tracked = false;
        let sent = Sent { data: padded, ..Sent::default() };
        peer.command(entry, sent, in_capsule);
    }

    /// Answers an R2T, mostly as it should be.
    fn transfer(&mut self, input: &mut Input<'_>) {
        let Some(peer) = self.peer(input) else { return };
        let Some((id, tag, offset, length)) = peer.transfers.pop_front() else { return };
        let data = peer.sent.get(&id).map(|sent| sent.data.clone()).unwrap_or_default();
        let (from, to) = (offset as usize, (offset + length) as usize);
        let Some(data) = data.get(from..to) else { return };
        let piece = input.pick(&[4096usize, 512, 100, 4097]);
        let wrong = if input.one_in(12) { 1 + input.below(5) } else { 0 };
        if wrong != 0 || piece > 4096 && length > 4096 {
            peer.is_tracked = false;
        }
        let mut at = offset;
        for chunk in data.chunks(piece.max(length as usize / 64)) {
            let is_last = (at - offset) as usize + chunk.len() == data.len();
            let place = match wrong {
                1 => (id ^ 1, tag, at),
                2 => (id, tag ^ 1, at),
                3 => (id, tag, at ^ 4),
                _ => (id, tag, at),
            };
            if chunk.len() > 4096 {
                peer.is_tracked = false;
            }
            peer.send_data(place, chunk, is_last != (wrong == 4));
            at += chunk.len() as u32;
        }
        if wrong == 5 {
            peer.send_data((id, tag, at), &[0; 64], true);
        }
    }

    fn out_of_place(&mut self, input: &mut Input<'_>) {
        let Some(peer) = self.peer(input) else { return };
        let kind = input.below(11) as u8;
        if kind == CAPSULE || peer.has_to_send() {
            return;
        }
        let data: &[u8] = if matches!(kind, 6 | 7) { &[7; 64] } else { &[] };
        if kind == H2C_TERM {
            peer.is_tracked = false;
        }
        // A data PDU whose length field is that of its data, for a transfer that nobody asked for.
        let specific = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 64, 0, 0, 0];
        let specific: &[u8] = if kind == 0 { &[0; 16] } else { &specific };
        debug_assert_ne!(kind, CAPSULE);
        if kind == C2H_TERM || kind != 0 || peer.state != State::New {
            peer.send(kind, 0, specific, data);
        } else {
            peer.initialize(0, 0, 0);
        }
    }

    /// Passes bytes on, and executes what they ask for as far as the volumes are not slow.
    fn turn(&mut self, input: &mut Input<'_>) {
        let answers = input.below(4);
        let (piece, now) = (self.piece, self.now);
        for at in 0..self.peers.len() {
            self.peers[at].deliver(piece, now);
            self.pull(at);
            for _ in 0..answers {
                self.answer(at, input);
            }
            self.peers[at].read();
            self.check(at);
        }
    }

    fn pull(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        while let Some(request) = peer.connection.next_request() {
            check_request(&request);
            peer.held.push(request);
        }
        assert_eq!(peer.connection.outstanding(), peer.held.len());
        assert!(peer.held.len() <= 33, "{} requests of one queue", peer.held.len());
    }

    fn answer(&mut self, at: usize, input: &mut Input<'_>) {
        let peer = &mut self.peers[at];
        if peer.held.is_empty() {
            return;
        }
        peer.read();
        peer.answered.clear();
        let request = peer.held.swap_remove(input.below(peer.held.len()));
        self.seed = self.seed.wrapping_add(1);
        let outcome = outcome(&request.operation, &self.reservations, self.seed, input);
        let expected = match &outcome {
            Outcome::Data(data) => Some(data.to_vec()),
            _ => None,
        };
        let is_strange =
            matches!(&outcome, Outcome::Result { .. } | Outcome::DataWithResult { .. });
        let failed = match &outcome {
            Outcome::Failed(status) => Some((status.code_type(), status.code())),
            _ => None,
        };
        let tag = request.tag;
        peer.connection.complete(tag, outcome);
        peer.connection.complete(tag, Outcome::Done);
        peer.read();
        self.check(at);
        let peer = &self.peers[at];
        if !peer.is_tracked || peer.state != State::Io || peer.connection.is_closing() {
            return;
        }
        match (peer.answered.as_slice(), &request.operation) {
            ([_, _], Operation::CompareAndWrite { .. }) => {}
            ([answered], operation) => {
                check_answer(answered, operation, expected, failed, is_strange);
            }
            (other, operation) => panic!("{operation:?} was answered by {other:?}"),
        }
    }

    fn check(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if peer.connection.is_closing() && peer.state != State::Over {
            assert!(
                self.may_close || !peer.is_tracked || peer.fatal.is_some() || peer.is_leaving,
                "a sound connection in {:?} was closed",
                peer.state
            );
            // Whatever was under way is not answered any more.
            peer.is_tracked = false;
            self.may_close |= peer.state == State::Admin;
            peer.state = State::Over;
        } else if peer.state == State::Over {
            self.may_close = true;
            peer.is_tracked = false;
        }
    }

    fn tick(&mut self, input: &mut Input<'_>) {
        let step = input.pick(&[1u64, 100, 900, 4000, 6000, 11_000, 121_000]);
        self.now += Duration::from_millis(step);
        // Keep-alives and handshakes take their time.
        self.may_close |= self.now >= BEGIN + KEEP_ALIVE_MIN;
        for at in 0..self.peers.len() {
            self.peers[at].connection.tick(self.now);
            self.check(at);
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.below(20) {
            0 => self.open(input),
            1 => self.connect(input),
            2 => self.property(input),
            3 | 4 => self.admin(input),
            5..=7 => self.io(input),
            8 => self.fused(input),
            9 => self.wild_command(input),
            10 | 11 => self.transfer(input),
            12 => self.out_of_place(input),
            13..=15 => self.turn(input),
            16 => self.tick(input),
            17 => self.publish(input),
            18 => {
                let length = input.below(64);
                let raw = input.take(length).to_vec();
                let (back, with) = (input.below(160), input.byte());
                let is_raw = input.below(2) == 0;
                if let Some(peer) = self.peer(input) {
                    if is_raw {
                        peer.send_raw(&raw);
                    } else if peer.has_to_send() {
                        peer.damage(back, with);
                    }
                }
            }
            _ => {
                let at = input.below(8);
                self.leave(at);
            }
        }
    }

    /// Everything that is under way ends: whoever kept to the protocol has all answers.
    fn settle(&mut self) {
        let mut none = Input::new(&[]);
        for _ in 0..2000 {
            let mut moved = false;
            for at in 0..self.peers.len() {
                let before = self.peers[at].has_to_send();
                let (piece, now) = (self.piece.max(64), self.now);
                self.peers[at].deliver(piece, now);
                moved |= before && !self.peers[at].has_to_send();
                self.pull(at);
                while !self.peers[at].held.is_empty() {
                    self.answer(at, &mut none);
                    moved = true;
                }
                self.peers[at].read();
                self.check(at);
                moved |= !self.peers[at].transfers.is_empty();
                self.answer_transfers(at);
                self.peers[at].connection.tick(self.now);
            }
            if !moved {
                break;
            }
        }
        for at in 0..self.peers.len() {
            self.check(at);
            let peer = &self.peers[at];
            let is_over = peer.connection.is_closing() || peer.state == State::Over;
            assert!(is_over || peer.fatal.is_none(), "{:?} was not noticed", peer.fatal);
            if peer.is_tracked && !is_over && !self.may_close {
                let unanswered = peer.sent.iter().find(|(_, sent)| !sent.waits);
                assert!(unanswered.is_none(), "never answered: {unanswered:?}");
                assert!(!peer.has_to_send(), "the target does not read on");
            }
        }
    }

    fn answer_transfers(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        while let Some((id, tag, offset, length)) = peer.transfers.pop_front() {
            let data = peer.sent.get(&id).map(|sent| sent.data.clone()).unwrap_or_default();
            let Some(data) = data.get(offset as usize..(offset + length) as usize) else {
                continue;
            };
            let mut place = (id, tag, offset);
            for chunk in data.chunks(4096) {
                let is_last = (place.2 - offset) as usize + chunk.len() == data.len();
                peer.send_data(place, chunk, is_last);
                place.2 += chunk.len() as u32;
            }
        }
    }
}

fn command_entry(code: u8, nsid: u32) -> [u8; 64] {
    let mut entry = [0; 64];
    point(&mut entry, 0, false);
    (entry[0], entry[1]) = (code, 0x40);
    entry[4..8].copy_from_slice(&nsid.to_le_bytes());
    entry
}

fn point(entry: &mut [u8; 64], length: usize, in_capsule: bool) {
    entry[24..40].fill(0);
    entry[32..36].copy_from_slice(&(length as u32).to_le_bytes());
    entry[39] = if in_capsule && length > 0 { 0x01 } else { 0x5A };
}

fn put_dwords(entry: &mut [u8; 64], dwords: [u32; 6]) {
    for (index, dword) in dwords.into_iter().enumerate() {
        entry[40 + index * 4..44 + index * 4].copy_from_slice(&dword.to_le_bytes());
    }
}

/// What the target promises of each request that it hands to the volumes.
fn check_request(request: &Request) {
    match &request.operation {
        Operation::Write { blocks, data, .. } | Operation::Compare { blocks, data, .. } => {
            assert!(*blocks >= 1 && data.len().is_multiple_of(*blocks as usize));
            assert!(matches!(data.len() / *blocks as usize, 512 | 4096));
        }
        Operation::CompareAndWrite { blocks, compare, write, .. } => {
            assert!((1..=4).contains(blocks) && compare.len() == write.len());
        }
        Operation::Read { blocks, .. } => assert!((1..=2048).contains(blocks)),
        Operation::WriteZeroes { blocks, .. } | Operation::Verify { blocks, .. } => {
            assert!((1..=65_536).contains(blocks));
        }
        Operation::Deallocate { ranges } => assert!((1..=256).contains(&ranges.len())),
        Operation::Vendor { .. }
        | Operation::Flush
        | Operation::Authenticate(_)
        | Operation::Reservation(_) => {}
    }
}

fn outcome(
    operation: &Operation,
    reservations: &Arc<Reservations>,
    seed: u8,
    input: &mut Input<'_>,
) -> Outcome {
    if input.one_in(8) {
        let (kind, code) = (input.byte() % 4, input.byte());
        return Outcome::Failed(Status::new(kind, code.max(1), input.one_in(2)));
    }
    if input.one_in(24) {
        // Nothing that fits: it must become an internal error, never a success.
        let data = Buffer::copy_of(&vec![seed; usize::from(input.half())]);
        return Outcome::DataWithResult { data, dw0: 1, dw1: 2 };
    }
    match operation {
        Operation::Read { blocks, .. } => {
            // The block size is not told: a wrong guess is an internal error.
            let block = if input.one_in(4) { 4096 } else { 512 };
            Outcome::Data(Buffer::copy_of(&vec![seed; *blocks as usize * block]))
        }
        Operation::Vendor { reply_len_max, .. } => {
            let length = (*reply_len_max as usize).min(input.half().into());
            Outcome::Data(Buffer::copy_of(&vec![seed; length]))
        }
        Operation::Reservation(voute_reservation::Request::Report) => {
            Outcome::Reservations(reservations.clone())
        }
        _ => Outcome::Done,
    }
}

fn check_answer(
    answered: &Answered,
    operation: &Operation,
    data: Option<Vec<u8>>,
    failed: Option<(u8, u8)>,
    is_strange: bool,
) {
    let Answered { sent, status, data: received } = answered;
    if let Some(failed) = failed {
        assert_eq!(*status, failed, "the volume's word on {sent:?}");
    }
    if sent.blocks == 0 {
        // An admin command on an I/O queue: what its fields mean there the model does not know.
        return;
    }
    match operation {
        Operation::Read { lba, blocks } => {
            assert_eq!((sent.opcode, sent.lba, sent.blocks), (opcode::READ, *lba, *blocks));
            let fits = data.as_ref().is_some_and(|data| data.len() == sent.reply_max);
            assert_eq!(*status == (0, 0), fits && failed.is_none() || is_strange && status.1 == 0);
            if *status == (0, 0) && !is_strange {
                assert_eq!(Some(received), data.as_ref(), "what was read");
            }
            assert!(*status == (0, 0) || received.is_empty(), "data beside a failure");
        }
        Operation::Write { lba, blocks, data, .. } => {
            assert_eq!((sent.opcode, sent.lba, sent.blocks), (opcode::WRITE, *lba, *blocks));
            assert_eq!(**data, *sent.data, "what is written");
        }
        Operation::Compare { lba, data, .. } => {
            assert_eq!((sent.opcode, sent.lba), (opcode::COMPARE, *lba));
            assert_eq!(**data, *sent.data);
        }
        Operation::WriteZeroes { lba, blocks, .. } => {
            assert_eq!((sent.opcode, sent.lba, sent.blocks), (opcode::WRITE_ZEROES, *lba, *blocks));
        }
        Operation::Verify { lba, blocks } => {
            assert_eq!((sent.opcode, sent.lba, sent.blocks), (opcode::VERIFY, *lba, *blocks));
        }
        _ => {}
    }
}

/// Runs one session.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let input = &mut input;
    let mut world = World::new(input);
    // Most inputs should get past the beginning: an admin queue and an I/O queue that work.
    if !input.one_in(8) {
        let flow = input.byte();
        world.begin(flow);
    }
    while !input.is_empty() {
        world.act(input);
    }
    world.settle();
    for at in (0..world.peers.len()).rev() {
        world.leave(at);
    }
    assert!(world.target.associations().is_empty(), "controllers without connections");
}

impl World {
    /// A controller that is enabled, and an I/O queue of it.
    fn begin(&mut self, choice: u8) {
        let mut none = Input::new(&[]);
        for queue in 0..2u16 {
            let connection = TargetConnection::new(self.target.clone(), PORTAL, self.now);
            let mut peer = Peer::new(connection);
            peer.initialize(choice & 3, choice >> 3, 0);
            let (id, state) = match self.peers.first() {
                None => (0xFFFF, State::Admin),
                Some(admin) => (admin.controller, State::Io),
            };
            let (mut entry, data) = connect_command(queue, 15, id, SUBSYSTEM, 0);
            entry[46] = choice & 4;
            let then = Then::Become(state, 16);
            peer.command(entry, Sent { opcode: 0x7F, data, then, ..Sent::default() }, true);
            if queue == 0 {
                let mut enable = fabrics(0);
                put_dwords(&mut enable, [0, 0x14, 0x46_0061, 0, 0, 0]);
                let mut queues = command_entry(0x09, 0);
                put_dwords(&mut queues, [7, 0x0003_0003, 0, 0, 0, 0]);
                self.peers.push(peer);
                self.turn(&mut none);
                for entry in [enable, queues] {
                    self.peers[0].command(
                        entry,
                        Sent { opcode: entry[0], ..Sent::default() },
                        false,
                    );
                }
            } else {
                self.peers.push(peer);
            }
            self.turn(&mut none);
        }
        let states: Vec<State> = self.peers.iter().map(|peer| peer.state).collect();
        assert_eq!(states, [State::Admin, State::Io], "a sound host is let in");
    }
}

/// Connect and its data, as they should be.
fn connect_command(
    queue: u16,
    depth: u16,
    controller: u16,
    subsystem: &str,
    host: usize,
) -> ([u8; 64], Vec<u8>) {
    let mut entry = fabrics(1);
    entry[42..44].copy_from_slice(&queue.to_le_bytes());
    entry[44..46].copy_from_slice(&depth.to_le_bytes());
    entry[48..52].copy_from_slice(&(KEEP_ALIVE.as_millis() as u32).to_le_bytes());
    let mut data = vec![0; 1024];
    data[..16].fill(1 + host as u8);
    data[16..18].copy_from_slice(&controller.to_le_bytes());
    data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
    data[512..512 + HOSTS[host].len()].copy_from_slice(HOSTS[host].as_bytes());
    point(&mut entry, data.len(), true);
    (entry, data)
}

fn fabrics(kind: u8) -> [u8; 64] {
    let mut entry = command_entry(0x7F, 0);
    entry[4] = kind;
    point(&mut entry, 0, false);
    entry
}

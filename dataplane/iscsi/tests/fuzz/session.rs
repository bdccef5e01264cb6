//! Sessions of a host that means ill or does not know better, as their source of choices has it.

use super::harness::{Disk, HOST, Random, TARGET, directory, portals, target_with, view};
use super::raw::{Asked, Pdu, Reader, edgy};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use voute_iscsi::{
    AluaState, Authentication, Chap, Credential, Directory, Failure, LunView, NotReady, Operation,
    Outcome, PortalId, Request, Target, TargetConnection, VolumeKey,
};

const BLOCKS: u64 = 2048;
const VOLUMES: [VolumeKey; 2] = [VolumeKey(7), VolumeKey(8)];
/// Opcodes that mean something, and some that do not.
const OPCODES: [u8; 48] = [
    0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2a, 0x2e, 0x2f,
    0x34, 0x35, 0x37, 0x41, 0x42, 0x55, 0x56, 0x57, 0x5a, 0x5e, 0x5f, 0x83, 0x84, 0x88, 0x89, 0x8a,
    0x8b, 0x8e, 0x8f, 0x90, 0x91, 0x93, 0x9c, 0x9e, 0xa0, 0xa3, 0xa4, 0xa8, 0xaa, 0xae, 0xaf, 0xff,
];

fn units(random: &mut Random) -> Vec<LunView> {
    let states = [
        AluaState::NonOptimized,
        AluaState::Standby,
        AluaState::Unavailable,
        AluaState::Transitioning,
    ];
    let mut units = Vec::new();
    for (lun, volume) in VOLUMES.into_iter().enumerate() {
        if random.below(12) == 0 {
            continue;
        }
        let mut unit = view(if random.below(20) == 0 { 300 } else { lun as u16 }, volume);
        unit.blocks = BLOCKS;
        unit.block_size = if volume == VOLUMES[0] { 512 } else { 4096 };
        if random.below(8) == 0 {
            unit.alua_state = states[random.below(states.len())];
        }
        unit.target_port_groups[0].state = unit.alua_state;
        unit.thin = random.below(2) == 0;
        unit.read_only = random.below(12) == 0;
        unit.physical_block_size = 512 << random.below(4);
        unit.atomic_blocks = random.below(64) as u32;
        units.push(unit);
    }
    units
}

fn publish(target: &Target, random: &mut Random) {
    let mut directory = directory(Authentication::None, units(random));
    if random.below(150) == 0 {
        directory.hosts.clear();
    }
    target.publish(Arc::new(directory));
}

/// A host's session and the volumes behind it.
struct Session {
    random: Random,
    target: Arc<Target>,
    connection: TargetConnection,
    reader: Reader,
    disks: HashMap<VolumeKey, Disk>,
    held: Vec<Request>,
    tags: HashSet<u64>,
    now: Duration,
    command: u32,
    task: u32,
    initial_r2t: bool,
    immediate_data: bool,
    first_burst: u32,
}

impl Session {
    fn new(mut random: Random) -> Self {
        let target = target_with(directory(Authentication::None, units(&mut random)));
        let connection = TargetConnection::new(target.clone(), PortalId(1), Duration::ZERO);
        let disks = HashMap::from([
            (VOLUMES[0], Disk::new(512, BLOCKS as usize)),
            (VOLUMES[1], Disk::new(4096, BLOCKS as usize)),
        ]);
        let mut session = Session {
            random,
            target,
            connection,
            reader: Reader::default(),
            disks,
            held: Vec::new(),
            tags: HashSet::new(),
            now: Duration::ZERO,
            command: 1,
            task: 1,
            initial_r2t: true,
            immediate_data: true,
            first_burst: 0,
        };
        session.log_in();
        session
    }

    /// Straight to full feature, by one PDU.
    fn log_in(&mut self) {
        let digests = self.random.below(3) == 0;
        let digest = if digests { "CRC32C" } else { "None" };
        let yes = |set: bool| if set { "Yes" } else { "No" };
        (self.initial_r2t, self.immediate_data) =
            (self.random.below(2) == 0, self.random.below(4) != 0);
        self.first_burst = 512 << self.random.below(6);
        let segment = 512 << self.random.below(9);
        let text = format!(
            "InitiatorName={HOST}\0TargetName={TARGET}\0SessionType=Normal\0HeaderDigest={digest}\0DataDigest={digest}\0\
             InitialR2T={}\0ImmediateData={}\0MaxRecvDataSegmentLength={segment}\0FirstBurstLength={}\0\
             MaxBurstLength={}\0MaxOutstandingR2T={}\0",
            yes(self.initial_r2t),
            yes(self.immediate_data),
            self.first_burst,
            32768 << self.random.below(6),
            1 + self.random.below(4),
        );
        let pdu = Pdu::new(0x43, 0x87, 0).put(8, 0x8000_0000).put(24, 1).with(text.into_bytes());
        self.send(&pdu.bytes(false));
        self.collect();
        assert!(self.reader.logged_in, "a plain login is let in");
        self.reader.digests = digests;
    }

    /// Sends bytes, cut at random.
    fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let length = 1 + self.random.below(bytes.len().min(3000));
            self.connection.receive(&bytes[..length], self.now);
            bytes = &bytes[length..];
        }
    }

    /// Takes what the target has for its host and for its volumes.
    fn collect(&mut self) {
        while let Some(request) = self.connection.next_request() {
            self.check(&request);
            self.held.push(request);
        }
        let output = std::mem::take(self.connection.output());
        assert!(output.len() <= 48 << 20, "{} bytes of output", output.len());
        self.reader.take(&output);
        assert!(self.reader.is_between_pdus(), "whole PDUs are sent");
        assert!(self.connection.outstanding() >= self.held.len());
        assert!(self.held.len() <= 144, "{} requests at once", self.held.len());
    }

    /// What a volume may rely on.
    fn check(&mut self, request: &Request) {
        assert!(self.tags.insert(request.tag.get()), "no tag comes twice");
        let size = if request.volume == VOLUMES[0] { 512 } else { 4096 };
        let within = |lba: u64, blocks: u32| {
            assert!(
                blocks > 0 && lba.checked_add(u64::from(blocks)).is_some_and(|end| end <= BLOCKS)
            );
        };
        let holds = |lba: u64, blocks: u32, data: &[u8]| {
            within(lba, blocks);
            assert_eq!(data.len(), blocks as usize * size);
        };
        match &request.operation {
            Operation::Read { lba, blocks }
            | Operation::Verify { lba, blocks }
            | Operation::WriteZeroes { lba, blocks, .. }
            | Operation::AllocationStatus { lba, blocks } => within(*lba, *blocks),
            Operation::Write { lba, blocks, data }
            | Operation::WriteAtomic { lba, blocks, data }
            | Operation::Compare { lba, blocks, data }
            | Operation::WriteAndCompare { lba, blocks, data }
            | Operation::OrWrite { lba, blocks, data } => holds(*lba, *blocks, data),
            Operation::CompareAndWrite { lba, blocks, compare, write } => {
                holds(*lba, *blocks, compare);
                holds(*lba, *blocks, write);
            }
            Operation::Deallocate { ranges } => {
                assert!(ranges.len() <= 256);
                ranges.iter().for_each(|range| within(range.lba, range.blocks));
            }
            Operation::Flush | Operation::Reservation(_) | Operation::ActivateGroup { .. } => {}
        }
    }

    /// Answers one of the held requests: mostly as its volume would, else by some failure, or by an
    /// outcome of the wrong kind.
    fn answer(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let request = self.held.swap_remove(self.random.below(self.held.len()));
        let tag = request.tag;
        let outcome = match self.random.below(14) {
            0 => Outcome::Failed(Failure::NotReady(NotReady::Transition)),
            1 => Outcome::Failed(Failure::UnreadableMedium { lba: self.random.next() }),
            2 => Outcome::Failed(Failure::Busy),
            3 => Outcome::Miscompare { offset: self.random.next() as u32 },
            4 => Outcome::Done,
            5 => Outcome::Data(voute_buffer::Buffer::zeroed(self.random.below(4096))),
            _ => self.disks[&request.volume].serve(&self.target, request),
        };
        for wish in self.target.take_reservation_wishes() {
            self.disks[&wish.volume].follow(&self.target, &wish);
        }
        self.connection.complete(tag, outcome);
        if self.random.below(30) == 0 {
            self.connection.complete(tag, Outcome::Done);
        }
    }

    fn cdb(&mut self) -> [u8; 16] {
        let random = &mut self.random;
        let mut cdb = [0; 16];
        cdb[0] = OPCODES[random.below(OPCODES.len())];
        match random.below(4) {
            0 => cdb[1..].copy_from_slice(&random.bytes(15)),
            1 => {}
            _ => {
                // A range and a length where the CDB has them, and a service action or page.
                let (lba, length) = (edgy(random), edgy(random));
                match cdb[0] >> 5 {
                    0 => cdb[2..5].copy_from_slice(&lba.to_be_bytes()[5..]),
                    4 => {
                        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
                        cdb[10..14].copy_from_slice(&(length as u32).to_be_bytes());
                    }
                    5 => cdb[6..10].copy_from_slice(&(length as u32).to_be_bytes()),
                    _ => {
                        cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
                        cdb[7..9].copy_from_slice(&(length as u16).to_be_bytes());
                    }
                }
                match cdb[0] {
                    0x83 => cdb[1] = 0,
                    0x84 => cdb[1] = [0, 3, 4, 1][random.below(4)],
                    0x9e => cdb[1] = [0x10, 0x12][random.below(2)],
                    0xa3 => cdb[1] = [0x0a, 0x0c, 0x0d, 0x2a][random.below(4)],
                    0xa4 => cdb[1] = 0x0a,
                    0x5e | 0x5f => {
                        cdb[1] = random.below(9) as u8;
                        cdb[2] = random.below(9) as u8;
                    }
                    0x12 => {
                        cdb[1] = random.below(2) as u8;
                        cdb[2] = [0, 0x80, 0x83, 0x86, 0x8f, 0xb0, 0xb1, 0xb2][random.below(8)];
                    }
                    _ => {
                        cdb[1] = random.next() as u8 & [0, 0x08, 0x18, 0x0e, 0xff][random.below(5)]
                    }
                }
                if random.below(4) == 0 {
                    cdb[13] = random.below(4) as u8;
                }
            }
        }
        cdb
    }

    /// A parameter list that the command would take, then perhaps damaged.
    fn parameters(&mut self, opcode: u8) -> Vec<u8> {
        let random = &mut self.random;
        let mut list = match opcode {
            0x83 => copy_list(random),
            0x42 => {
                let count = random.below(5);
                let mut list = vec![0, 0, 0, (count * 16) as u8, 0, 0, 0, 0];
                for _ in 0..count {
                    list.extend_from_slice(&edgy(random).to_be_bytes());
                    list.extend_from_slice(&(edgy(random) as u32).to_be_bytes());
                    list.extend_from_slice(&[0; 4]);
                }
                list
            }
            0x5f => {
                let mut list = random.bytes(24);
                list[..8].fill(random.below(3) as u8);
                list[8..16].fill(random.below(3) as u8);
                list[20] &= [0, 1, 4, 8, 0xff][random.below(5)];
                list
            }
            0x15 | 0x55 => {
                let mut list = vec![0; if opcode == 0x15 { 4 } else { 8 }];
                list.extend_from_slice(&[
                    0x0a,
                    10,
                    random.next() as u8 & 4,
                    0x10,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ]);
                list
            }
            0xa4 => {
                vec![0, 0, 0, 0, random.below(4) as u8, 0, 0, 1, random.below(4) as u8, 0, 0, 2]
            }
            _ => {
                let length = 512 * (1 + random.below(20));
                vec![random.next() as u8; length]
            }
        };
        if random.below(5) == 0 && !list.is_empty() {
            let at = random.below(list.len());
            list[at] = random.next() as u8;
        }
        if random.below(10) == 0 {
            list.truncate(random.below(list.len() + 1));
        }
        list
    }

    /// A command of the 16-byte form with the data that goes with it, for the unit of small blocks.
    fn sensible(&mut self) -> ([u8; 16], Vec<u8>) {
        let random = &mut self.random;
        let opcode = [0x88, 0x89, 0x8a, 0x8b, 0x8e, 0x8f, 0x93, 0x9c, 0x83][random.below(9)];
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        let blocks = 1 + random.below(40);
        if opcode == 0x83 {
            let list = copy_list(random);
            cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
            return (cdb, list);
        }
        cdb[1] = match opcode {
            0x93 => [0, 0x08, 0x18, 0x01, 0x09][random.below(5)],
            0x8e | 0x8f => [0, 0x02, 0x06][random.below(3)],
            _ => 0,
        };
        cdb[2..10].copy_from_slice(&(random.next() % BLOCKS).to_be_bytes());
        let (blocks, length) = match opcode {
            0x88 => (blocks, 0),
            0x89 => (1, 1024),
            0x93 => (blocks, if cdb[1] & 1 == 0 { 512 } else { 0 }),
            0x8f => (blocks, [0, blocks * 512, 0, 512][usize::from(cdb[1] >> 1)]),
            _ => (blocks, blocks * 512),
        };
        let at = if opcode == 0x89 { 13 } else { 10 };
        match opcode {
            0x89 => cdb[at] = 1,
            _ => cdb[at..14].copy_from_slice(&(blocks as u32).to_be_bytes()),
        }
        (cdb, vec![random.below(2) as u8; length])
    }

    fn scsi_command(&mut self) -> Pdu {
        let (mut cdb, list) = match self.random.below(2) {
            0 => self.sensible(),
            _ => {
                let cdb = self.cdb();
                (cdb, self.parameters(cdb[0]))
            }
        };
        if self.random.below(2) == 0 {
            // Say how long the list is, where such commands say it.
            match cdb[0] {
                0x83 => cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes()),
                0x42 | 0x55 => cdb[7..9].copy_from_slice(&(list.len() as u16).to_be_bytes()),
                0x5f => cdb[5..9].copy_from_slice(&(list.len() as u32).to_be_bytes()),
                0x15 => cdb[4] = list.len() as u8,
                0xa4 => cdb[6..10].copy_from_slice(&(list.len() as u32).to_be_bytes()),
                _ => {}
            }
        }
        let writes = self.random.below(3) != 0;
        let is_lawful = self.random.below(80) != 0;
        let whole = list.len() as u32;
        let expected =
            if self.random.below(8) == 0 { edgy(&mut self.random) as u32 } else { whole };
        let mut data = list;
        let most = if self.immediate_data { self.first_burst.min(expected) } else { 0 };
        if is_lawful || self.random.below(2) == 0 {
            data.truncate(most as usize);
        }
        let may_continue =
            writes && !self.initial_r2t && (data.len() as u32) < self.first_burst.min(expected);
        let continues =
            may_continue && self.random.below(2) == 0 || !is_lawful && self.random.below(2) == 0;
        let direction = if writes { 0x20 } else { 0x40 };
        let opcode = if self.random.below(12) == 0 { 0x41 } else { 0x01 };
        let mut pdu = Pdu::new(opcode, u8::from(!continues) << 7 | direction | 1, self.task)
            .put(20, expected);
        pdu.header[9] = if self.random.below(20) == 0 {
            self.random.next() as u8
        } else {
            self.random.below(2) as u8
        };
        pdu.header[32..48].copy_from_slice(&cdb);
        if continues {
            let offset = data.len() as u32;
            let length = self.first_burst.min(expected).saturating_sub(offset);
            self.reader.asked.push(Asked { task: self.task, tag: u32::MAX, offset, length });
        }
        if writes { pdu.with(data) } else { pdu }
    }

    /// Sends what the target asked for, most often as it was asked.
    fn data_out(&mut self) {
        let Some(at) =
            (!self.reader.asked.is_empty()).then(|| self.random.below(self.reader.asked.len()))
        else {
            return;
        };
        let asked = self.reader.asked.remove(at);
        let (mut sent, mut number) = (0, 0);
        while sent < asked.length {
            let length = (1 + self.random.below(65536) as u32).min(asked.length - sent);
            let mut offset = asked.offset + sent;
            if self.random.below(400) == 0 {
                offset = edgy(&mut self.random) as u32;
            }
            let is_last = sent + length == asked.length;
            let is_final = is_last != (self.random.below(500) == 0);
            let pdu = Pdu::new(0x05, u8::from(is_final) << 7, asked.task)
                .put(20, asked.tag)
                .put(36, number)
                .put(40, offset)
                .with(vec![number as u8; length as usize]);
            self.transmit(pdu);
            if self.connection.is_closing() || self.random.below(100) == 0 {
                return;
            }
            (sent, number) = (sent + length, number + 1);
        }
    }

    /// Sends a PDU, now and then damaged.
    fn transmit(&mut self, mut pdu: Pdu) {
        if self.random.below(150) == 0 {
            let at = self.random.below(48);
            pdu.header[at] ^= 1 << self.random.below(8);
        }
        let mut bytes = pdu.bytes(self.reader.digests);
        if self.random.below(400) == 0 {
            let at = self.random.below(bytes.len());
            bytes[at] ^= 1 << self.random.below(8);
        }
        self.send(&bytes);
    }

    /// Sends a numbered PDU.
    fn numbered(&mut self, pdu: Pdu) {
        let is_immediate = pdu.header[0] & 0x40 != 0;
        let number = match self.random.below(400) {
            0 => edgy(&mut self.random) as u32,
            _ => self.command,
        };
        if !is_immediate && self.command.wrapping_sub(self.reader.window_end) as i32 > 0 {
            return;
        }
        let is_counted = !is_immediate && number == self.command;
        self.transmit(pdu.put(24, number));
        self.command = self.command.wrapping_add(u32::from(is_counted));
        self.task = self.task.wrapping_add(1);
    }

    fn step(&mut self) {
        match self.random.below(24) {
            0..=11 => {
                let pdu = self.scsi_command();
                self.numbered(pdu);
            }
            12 | 13 => self.data_out(),
            14 | 15 => self.answer(),
            16 => {
                // The last, a cold reset, ends the session.
                let most = if self.random.below(9) == 0 { 10 } else { 9 };
                let function = 0x80 | [1, 1, 2, 3, 4, 5, 6, 8, 9, 7][self.random.below(most)];
                let mut pdu = Pdu::new(0x42, function, self.task);
                let victim = self.task.wrapping_sub(self.random.below(20) as u32);
                pdu.header[9] = self.random.below(2) as u8;
                self.numbered(pdu.put(20, victim));
            }
            17 => {
                let length = self.random.below(9000);
                let (task, ping) = (self.task, vec![7; length]);
                self.numbered(Pdu::new(0x40, 0x80, task).put(20, u32::MAX).with(ping));
            }
            18 => {
                let text = login_text(&mut self.random);
                let flags = [0x80, 0x40, 0x00][self.random.below(3)];
                let task = self.task;
                self.numbered(Pdu::new(0x04, flags, task).put(20, u32::MAX).with(text));
            }
            19 if self.random.below(3) == 0 => publish(&self.target, &mut self.random),
            20 => {
                self.now += Duration::from_millis(self.random.next() % 3000);
                self.connection.tick(self.now);
            }
            21 if self.random.below(10) == 0 => {
                let opcode = self.random.next() as u8;
                let (task, data) = (self.task, self.random.bytes(64));
                self.numbered(Pdu::new(opcode, 0x80, task).with(data));
            }
            22 if self.random.below(60) == 0 => {
                let task = self.task;
                self.numbered(Pdu::new(0x46, 0x80, task));
            }
            23 if self.random.below(60) == 0 => self.connection.disconnected(),
            22 if self.random.below(20) == 0 => self.connection.ask_logout(3),
            _ => self.answer(),
        }
        self.collect();
    }
}

/// A copy of nearly right segments between nearly right units.
fn copy_list(random: &mut Random) -> Vec<u8> {
    let (targets, segments) = (random.below(4), random.below(4));
    let usage = [0, 0, 0x10, 0x18, 0x08][random.below(5)];
    let mut list = vec![random.below(3) as u8, usage, 0, (targets * 32) as u8, 0, 0, 0, 0, 0, 0];
    list.extend_from_slice(&[0, (segments * 28) as u8, 0, 0, 0, 0]);
    for _ in 0..targets {
        let volume = VOLUMES[random.below(2)];
        list.extend_from_slice(&[0xe4, 0, 0, 0, 1, 3, 0, 16]);
        list.extend_from_slice(&view(0, volume).naa);
        list.extend_from_slice(&[0; 8]);
    }
    for _ in 0..segments {
        let mut id = || if random.below(5) == 0 { 0xffff } else { random.below(3) as u16 };
        let (source, destination) = (id(), id());
        list.extend_from_slice(&[2, random.below(3) as u8, 0, 24]);
        list.extend_from_slice(&source.to_be_bytes());
        list.extend_from_slice(&destination.to_be_bytes());
        list.extend_from_slice(&[0, 0]);
        list.extend_from_slice(&(edgy(random) as u16).to_be_bytes());
        list.extend_from_slice(&edgy(random).to_be_bytes());
        list.extend_from_slice(&edgy(random).to_be_bytes());
    }
    list
}

/// Text of login and text requests: known keys, right and wrong values.
fn login_text(random: &mut Random) -> Vec<u8> {
    const KEYS: [&str; 26] = [
        "InitiatorName",
        "TargetName",
        "SessionType",
        "AuthMethod",
        "HeaderDigest",
        "DataDigest",
        "MaxConnections",
        "SendTargets",
        "InitialR2T",
        "ImmediateData",
        "MaxBurstLength",
        "FirstBurstLength",
        "MaxRecvDataSegmentLength",
        "DefaultTime2Wait",
        "DefaultTime2Retain",
        "MaxOutstandingR2T",
        "DataPDUInOrder",
        "DataSequenceInOrder",
        "ErrorRecoveryLevel",
        "CHAP_A",
        "CHAP_N",
        "CHAP_R",
        "CHAP_I",
        "CHAP_C",
        "X-com.example.key",
        "TargetPortalGroupTag",
    ];
    const VALUES: [&str; 26] = [
        HOST,
        TARGET,
        "Normal",
        "Discovery",
        "CHAP",
        "None",
        "CHAP,None",
        "CRC32C",
        "CRC32C,None",
        "Yes",
        "No",
        "0",
        "1",
        "65536",
        "0x10000",
        "4294967296",
        "-1",
        "",
        "All",
        "5",
        "7,6,5",
        "host",
        "0x00112233445566778899aabbccddeeff",
        "0bAAAA",
        "Reject",
        "NotUnderstood",
    ];
    let mut text = Vec::new();
    for _ in 0..random.below(14) {
        text.extend_from_slice(KEYS[random.below(KEYS.len())].as_bytes());
        text.push(b'=');
        text.extend_from_slice(VALUES[random.below(VALUES.len())].as_bytes());
        text.push(0);
    }
    if random.below(6) == 0 && !text.is_empty() {
        let at = random.below(text.len());
        text[at] = random.next() as u8;
    }
    if random.below(20) == 0 {
        text.resize(text.len() + random.below(20_000), b'a');
    }
    text
}

/// A session, ended by force at last: nothing is left of it.
pub(crate) fn session(random: Random) {
    let mut session = Session::new(random);
    for _ in 0..20 + session.random.below(400) {
        session.step();
        if session.connection.is_closing() || session.random.is_used_up() {
            break;
        }
    }
    if session.connection.is_closing() {
        assert!(session.connection.next_request().is_none(), "an ended session asks for nothing");
        assert!(!session.connection.wants_input());
    }
    while !session.held.is_empty() {
        session.answer();
        session.collect();
    }
    session.connection.disconnected();
    assert_eq!(session.connection.outstanding(), 0);
    assert_eq!(session.target.sessions(), 0);
    assert!(session.connection.output().is_empty());
}

/// Logins with any text in any stage, with and without CHAP.
pub(crate) fn logins(mut random: Random) {
    let credential = |name: &str| Credential {
        name: name.into(),
        secret: format!("secret of {name}").into_bytes(),
    };
    let chap = Chap { host: credential("host"), target: Some(credential("target")) };
    let wanted =
        if random.below(2) == 0 { Authentication::Chap(chap) } else { Authentication::None };
    let mut offered = directory(wanted.clone(), vec![view(0, VOLUMES[0])]);
    offered.discovery = wanted;
    offered.portals = portals();
    let target = target_with(Directory { ..offered });
    let mut connection = TargetConnection::new(target.clone(), PortalId(1), Duration::ZERO);
    for round in 0..12u32 {
        let mut text = Vec::new();
        if round == 0 && random.below(3) != 0 {
            text.extend_from_slice(
                format!("InitiatorName={HOST}\0TargetName={TARGET}\0").as_bytes(),
            );
        }
        text.extend_from_slice(&login_text(&mut random));
        let flags = random.next() as u8 & [0x87, 0x84, 0x40, 0x81, 0xff][random.below(5)];
        let mut pdu = Pdu::new(0x43, flags, 0).put(24, 1).with(text);
        if random.below(8) == 0 {
            let at = random.below(48);
            pdu.header[at] = random.next() as u8;
        }
        let bytes = pdu.bytes(false);
        let cut = random.below(bytes.len());
        connection.receive(&bytes[..cut], Duration::ZERO);
        connection.receive(&bytes[cut..], Duration::ZERO);
        assert!(connection.output().len() < 1 << 20);
        assert!(connection.next_request().is_none(), "no command was sent");
    }
    connection.disconnected();
    assert_eq!(target.sessions(), 0);
}

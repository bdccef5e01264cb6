//! PDUs made by hand, right or wrong, and the reader that checks what a target sends back.

use super::harness::Random;

/// CRC32C as it goes over the wire.
fn crc(bytes: &[u8]) -> [u8; 4] {
    (crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32).to_le_bytes()
}

/// A PDU to be sent; every field may be set to anything.
#[derive(Clone)]
pub(crate) struct Pdu {
    pub(crate) header: [u8; 48],
    pub(crate) data: Vec<u8>,
}

impl Pdu {
    pub(crate) fn new(opcode: u8, flags: u8, task: u32) -> Self {
        let mut header = [0; 48];
        (header[0], header[1]) = (opcode, flags);
        header[16..20].copy_from_slice(&task.to_be_bytes());
        Pdu { header, data: Vec::new() }
    }

    pub(crate) fn put(mut self, at: usize, value: u32) -> Self {
        self.header[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn with(mut self, data: Vec<u8>) -> Self {
        self.data = data;
        self
    }

    /// As bytes, with digests if they are agreed on.
    pub(crate) fn bytes(mut self, digests: bool) -> Vec<u8> {
        let length = (self.data.len() as u32).to_be_bytes();
        self.header[5..8].copy_from_slice(&length[1..]);
        let mut bytes = self.header.to_vec();
        if digests {
            bytes.extend_from_slice(&crc(&self.header));
        }
        if !self.data.is_empty() {
            self.data.resize(self.data.len().next_multiple_of(4), 0);
            bytes.extend_from_slice(&self.data);
            if digests {
                bytes.extend_from_slice(&crc(&self.data));
            }
        }
        bytes
    }
}

/// A number that is likely to be on some edge.
pub(crate) fn edgy(random: &mut Random) -> u64 {
    match random.below(10) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => 1 << random.below(64),
        4 => (1u64 << random.below(64)).wrapping_sub(1),
        5 => 2048,
        6 => 2047,
        7 => random.next(),
        _ => random.next() % 300,
    }
}

/// One transfer that the target asks for.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) task: u32,
    pub(crate) tag: u32,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// What a target has sent, taken apart and checked.
#[derive(Default)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
    pub(crate) digests: bool,
    pub(crate) asked: Vec<Asked>,
    /// The next command number that the target expects, and the last that it takes.
    pub(crate) expected: u32,
    pub(crate) window_end: u32,
    status: Option<u32>,
    /// Login and text answers, for whoever goes on with them.
    pub(crate) logged_in: bool,
    pub(crate) answers: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Reader {
    /// Takes bytes; panics over anything that RFC 7143 does not let a target send.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while let Some(length) = self.whole() {
            let pdu: Vec<u8> = self.bytes.drain(..length).collect();
            self.read(&pdu);
        }
    }

    pub(crate) fn is_between_pdus(&self) -> bool {
        self.bytes.is_empty()
    }

    fn data_length(&self) -> usize {
        u32_at(&self.bytes, 4) as usize & 0x00ff_ffff
    }

    fn whole(&self) -> Option<usize> {
        if self.bytes.len() < 48 {
            return None;
        }
        let data = self.data_length();
        // Login answers have no digests.
        let digest = if self.digests && self.bytes[0] & 0x3f != 0x23 { 4 } else { 0 };
        let data = if data > 0 { data.next_multiple_of(4) + digest } else { 0 };
        let length = 48 + digest + data;
        (self.bytes.len() >= length).then_some(length)
    }

    fn read(&mut self, pdu: &[u8]) {
        let opcode = pdu[0] & 0x3f;
        assert_eq!(pdu[4], 0, "no additional header segments are sent");
        match opcode {
            0x20..=0x26 | 0x31 | 0x32 | 0x3f => {}
            other => panic!("opcode {other:02x} is no target's"),
        }
        let has_status = match opcode {
            0x25 => pdu[1] & 1 != 0,
            0x31 => false,
            0x20 => u32_at(pdu, 16) != u32::MAX,
            0x23 => false,
            _ => true,
        };
        if has_status {
            let number = u32_at(pdu, 24);
            if let Some(before) = self.status {
                assert_eq!(
                    number,
                    before.wrapping_add(1),
                    "StatSN rises by one, opcode {opcode:02x}"
                );
            }
            self.status = Some(number);
        }
        let (expected, window_end) = (u32_at(pdu, 28), u32_at(pdu, 32));
        if self.logged_in {
            assert!(expected.wrapping_sub(self.expected) as i32 >= 0, "ExpCmdSN never falls");
            assert!(
                window_end.wrapping_sub(self.window_end) as i32 >= 0,
                "MaxCmdSN never falls: {window_end}, was {}, ExpCmdSN {expected} was {}, opcode {opcode:02x}",
                self.window_end,
                self.expected
            );
        }
        (self.expected, self.window_end) = (expected, window_end);
        match opcode {
            0x31 => self.asked.push(Asked {
                task: u32_at(pdu, 16),
                tag: u32_at(pdu, 20),
                offset: u32_at(pdu, 40),
                length: u32_at(pdu, 44),
            }),
            0x23 => {
                self.answers += 1;
                self.logged_in |= pdu[36] == 0 && pdu[1] & 0x83 == 0x83;
                self.status = Some(u32_at(pdu, 24));
            }
            0x25 => assert!(pdu.len() > 48, "Data-In carries data"),
            _ => {}
        }
    }
}

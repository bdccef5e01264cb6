//! PDUs written and read after the figures of the specification, apart from the code under test.

/// What a connection negotiated.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Format {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    /// Data begins at multiples of this, bytes; 0 stands for 4.
    pub(crate) alignment: usize,
}

pub(crate) const IC_REQ: u8 = 0;
pub(crate) const IC_RESP: u8 = 1;
pub(crate) const H2C_TERM: u8 = 2;
pub(crate) const C2H_TERM: u8 = 3;
pub(crate) const CAPSULE: u8 = 4;
pub(crate) const RESPONSE: u8 = 5;
pub(crate) const H2C_DATA: u8 = 6;
pub(crate) const C2H_DATA: u8 = 7;
pub(crate) const R2T: u8 = 9;

pub(crate) const LAST: u8 = 1 << 2;
pub(crate) const SUCCESS: u8 = 1 << 3;

/// HLEN of a type; 24 where there is no such type.
pub(crate) fn header_length(kind: u8) -> usize {
    match kind {
        IC_REQ | IC_RESP => 128,
        CAPSULE => 72,
        _ => 24,
    }
}

fn is_digested(kind: u8) -> bool {
    !matches!(kind, IC_REQ | IC_RESP | H2C_TERM | C2H_TERM)
}

/// CRC32C from its definition.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A whole PDU. `specific` are the header's bytes from the ninth on.
pub(crate) fn encode(kind: u8, flags: u8, specific: &[u8], data: &[u8], format: Format) -> Vec<u8> {
    let length = header_length(kind);
    let digested = is_digested(kind);
    let (header_digest, data_digest) =
        (format.header_digest && digested, format.data_digest && digested && !data.is_empty());
    let end = length + if header_digest { 4 } else { 0 };
    let start = match (data.is_empty(), kind) {
        (true, _) | (_, H2C_TERM | C2H_TERM) => end,
        _ => end.next_multiple_of(format.alignment.max(4)),
    };
    let total = start + data.len() + if data_digest { 4 } else { 0 };
    let mut pdu = vec![0; length];
    pdu[0] = kind;
    pdu[1] = flags | u8::from(header_digest) | u8::from(data_digest) << 1;
    pdu[2] = length as u8;
    pdu[3] = if data.is_empty() || !digested { 0 } else { start as u8 };
    pdu[4..8].copy_from_slice(&(total as u32).to_le_bytes());
    let room = specific.len().min(length - 8);
    pdu[8..8 + room].copy_from_slice(&specific[..room]);
    if header_digest {
        let digest = crc(&pdu);
        pdu.extend(digest.to_le_bytes());
    }
    pdu.resize(start, 0);
    pdu.extend(data);
    if data_digest {
        pdu.extend(crc(data).to_le_bytes());
    }
    pdu
}

/// A PDU as it was received.
#[derive(Debug)]
pub(crate) struct Pdu {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) header: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Pdu {
    pub(crate) fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.header[at], self.header[at + 1]])
    }

    pub(crate) fn word(&self, at: usize) -> u32 {
        u32::from(self.half(at)) | u32::from(self.half(at + 2)) << 16
    }
}

/// Reads what the code under test sends; anything but a sound PDU is its fault.
#[derive(Default)]
pub(crate) struct Reader {
    pub(crate) format: Format,
    pending: Vec<u8>,
}

impl Reader {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    pub(crate) fn next(&mut self) -> Option<Pdu> {
        let total = u32::from_le_bytes(self.pending.get(4..8)?.try_into().ok()?) as usize;
        let kind = self.pending[0];
        let length = header_length(kind);
        assert_eq!(usize::from(self.pending[2]), length, "HLEN of a PDU of type {kind:#x}");
        assert!(total >= length, "PLEN {total} of a PDU of type {kind:#x}");
        if self.pending.len() < total {
            return None;
        }
        let raw: Vec<u8> = self.pending.drain(..total).collect();
        Some(self.check(&raw, length))
    }

    fn check(&self, raw: &[u8], length: usize) -> Pdu {
        let (kind, flags) = (raw[0], raw[1]);
        let mut end = length;
        assert_eq!(flags & 1 == 1, self.format.header_digest && is_digested(kind), "HDGSTF");
        if flags & 1 == 1 {
            assert_eq!(raw[length..length + 4], crc(&raw[..length]).to_le_bytes(), "HDGST");
            end += 4;
        }
        let is_term = matches!(kind, H2C_TERM | C2H_TERM);
        let start = if is_term || raw[3] == 0 { end } else { usize::from(raw[3]) };
        assert!(start >= end, "PDO {start}");
        let mut data = &raw[start..];
        assert_eq!(
            flags & 2 == 2,
            self.format.data_digest && is_digested(kind) && !data.is_empty()
        );
        if flags & 2 == 2 {
            let (body, digest) = data.split_at(data.len() - 4);
            assert_eq!(*digest, crc(body).to_le_bytes(), "DDGST");
            data = body;
        }
        if !data.is_empty() && !is_term {
            assert!(start.is_multiple_of(self.format.alignment.max(4)), "data at {start}");
        }
        Pdu { kind, flags, header: raw[..length].to_vec(), data: data.to_vec() }
    }
}

//! The basic header segment, 48 bytes big-endian (RFC 7143 §11.2), with a named accessor per field.

use voute_buffer::{Buffer, Inset};

/// Length of the basic header segment, bytes.
pub(crate) const HEADER_LENGTH: usize = 48;
/// Longest header with additional segments, bytes.
pub(crate) const HEADER_LENGTH_MAX: usize = HEADER_LENGTH + 255 * 4;
/// The reserved task or transfer tag.
pub(crate) const RESERVED_TAG: u32 = 0xffff_ffff;

/// Opcodes, the low six bits of byte 0 (§11.2.1.2).
pub(crate) mod opcode {
    pub(crate) const NOP_OUT: u8 = 0x00;
    pub(crate) const SCSI_COMMAND: u8 = 0x01;
    pub(crate) const TASK_MANAGEMENT: u8 = 0x02;
    pub(crate) const LOGIN: u8 = 0x03;
    pub(crate) const TEXT: u8 = 0x04;
    pub(crate) const DATA_OUT: u8 = 0x05;
    pub(crate) const LOGOUT: u8 = 0x06;
    pub(crate) const NOP_IN: u8 = 0x20;
    pub(crate) const SCSI_RESPONSE: u8 = 0x21;
    pub(crate) const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub(crate) const LOGIN_RESPONSE: u8 = 0x23;
    pub(crate) const TEXT_RESPONSE: u8 = 0x24;
    pub(crate) const DATA_IN: u8 = 0x25;
    pub(crate) const LOGOUT_RESPONSE: u8 = 0x26;
    pub(crate) const R2T: u8 = 0x31;
    pub(crate) const ASYNC_MESSAGE: u8 = 0x32;
    pub(crate) const REJECT: u8 = 0x3f;
}

/// Reject reasons (§11.17.1).
pub(crate) mod reject {
    pub(crate) const DATA_DIGEST: u8 = 0x02;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x04;
    pub(crate) const COMMAND_NOT_SUPPORTED: u8 = 0x05;
    pub(crate) const TOO_MANY_IMMEDIATE: u8 = 0x06;
    pub(crate) const INVALID_FIELD: u8 = 0x09;
}

/// A basic header segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header(pub(crate) [u8; HEADER_LENGTH]);

impl Header {
    /// A header of this opcode with the final bit set and everything else zero.
    pub(crate) fn new(opcode: u8) -> Self {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0] = opcode;
        bytes[1] = 0x80;
        Header(bytes)
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }
    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
    pub(crate) fn set_u16(&mut self, at: usize, value: u16) -> &mut Self {
        self.0[at..at + 2].copy_from_slice(&value.to_be_bytes());
        self
    }
    pub(crate) fn set_u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }
    pub(crate) fn is_immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }
    pub(crate) fn set_immediate(&mut self) -> &mut Self {
        self.0[0] |= 0x40;
        self
    }
    pub(crate) fn flags(&self) -> u8 {
        self.0[1]
    }
    pub(crate) fn set_flags(&mut self, flags: u8) -> &mut Self {
        self.0[1] = flags;
        self
    }
    /// F: the last PDU of a sequence.
    pub(crate) fn is_final(&self) -> bool {
        self.0[1] & 0x80 != 0
    }
    /// C of login and text: more text follows in another PDU.
    pub(crate) fn text_continues(&self) -> bool {
        self.0[1] & 0x40 != 0
    }
    /// Length of all additional header segments, bytes.
    pub(crate) fn additional_length(&self) -> usize {
        usize::from(self.0[4]) * 4
    }
    /// DataSegmentLength, bytes without padding.
    pub(crate) fn data_length(&self) -> usize {
        usize::from(self.0[5]) << 16 | usize::from(self.0[6]) << 8 | usize::from(self.0[7])
    }
    pub(crate) fn set_data_length(&mut self, length: usize) -> &mut Self {
        debug_assert!(length < 1 << 24, "the data segment length has 24 bits");
        self.0[5..8].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
        self
    }
    pub(crate) fn lun_field(&self) -> [u8; 8] {
        let mut lun = [0; 8];
        lun.copy_from_slice(&self.0[8..16]);
        lun
    }
    pub(crate) fn set_lun_field(&mut self, lun: [u8; 8]) -> &mut Self {
        self.0[8..16].copy_from_slice(&lun);
        self
    }
    pub(crate) fn isid(&self) -> [u8; 6] {
        let mut isid = [0; 6];
        isid.copy_from_slice(&self.0[8..14]);
        isid
    }
    pub(crate) fn tsih(&self) -> u16 {
        self.u16_at(14)
    }
    pub(crate) fn task_tag(&self) -> u32 {
        self.u32_at(16)
    }
    pub(crate) fn set_task_tag(&mut self, tag: u32) -> &mut Self {
        self.set_u32(16, tag)
    }
    /// Target transfer tag of data-out, R2T, NOP and text.
    pub(crate) fn transfer_tag(&self) -> u32 {
        self.u32_at(20)
    }
    pub(crate) fn set_transfer_tag(&mut self, tag: u32) -> &mut Self {
        self.set_u32(20, tag)
    }
    /// Expected data transfer length of a SCSI command, bytes.
    pub(crate) fn expected_length(&self) -> u32 {
        self.u32_at(20)
    }
    pub(crate) fn command_number(&self) -> u32 {
        self.u32_at(24)
    }
    pub(crate) fn cdb(&self) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&self.0[32..48]);
        cdb
    }
    pub(crate) fn data_number(&self) -> u32 {
        self.u32_at(36)
    }
    pub(crate) fn buffer_offset(&self) -> u32 {
        self.u32_at(40)
    }
}

/// Bytes that bring a data segment of `length` to a multiple of four.
pub(crate) fn padding(length: usize) -> usize {
    length.wrapping_neg() & 3
}

/// Whether serial number `a` is before `b` (RFC 1982, 32 bits).
pub(crate) fn serial_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// CRC32C of several pieces, as sent on the wire: least significant byte first (§13.1).
pub(crate) struct Crc(crc_fast::Digest);

impl Crc {
    pub(crate) fn new() -> Self {
        Crc(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    pub(crate) fn finish(&self) -> [u8; 4] {
        (self.0.finalize() as u32).to_le_bytes()
    }
}

/// Appends a PDU: header, data, padding and the digests that are agreed on.
pub(crate) fn append(out: &mut Vec<u8>, header: &mut Header, data: &[u8], digests: Digests) {
    append_before(out, header, data.len(), digests);
    out.extend_from_slice(data);
    append_after(out, data, digests);
}

/// Like [`append`], but what is appended is only what stands around the data: that is to be sent where
/// the inset says.
pub(crate) fn append_around(
    out: &mut Vec<u8>,
    header: &mut Header,
    data: Buffer,
    digests: Digests,
) -> Inset {
    append_before(out, header, data.len(), digests);
    let at = out.len();
    append_after(out, &data, digests);
    Inset { at, bytes: data }
}

fn append_before(out: &mut Vec<u8>, header: &mut Header, data_length: usize, digests: Digests) {
    header.set_data_length(data_length);
    out.extend_from_slice(&header.0);
    if digests.header {
        let mut crc = Crc::new();
        crc.update(&header.0);
        out.extend_from_slice(&crc.finish());
    }
}

fn append_after(out: &mut Vec<u8>, data: &[u8], digests: Digests) {
    if data.is_empty() {
        return;
    }
    let pad = padding(data.len());
    out.extend_from_slice(&[0; 3][..pad]);
    if digests.data {
        let mut crc = Crc::new();
        crc.update(data);
        crc.update(&[0; 3][..pad]);
        out.extend_from_slice(&crc.finish());
    }
}

/// Which digests are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) header: bool,
    pub(crate) data: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_matches_the_vectors_of_rfc_3720_appendix_b4() {
        let crc = |bytes: &[u8]| {
            let mut crc = Crc::new();
            crc.update(bytes);
            crc.finish()
        };
        assert_eq!(crc(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc(&rising), [0x4e, 0x79, 0xdd, 0x46]);
        let falling: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc(&falling), [0x5c, 0xdb, 0x3f, 0x11]);
    }

    #[test]
    fn serial_numbers_wrap() {
        assert!(serial_before(1, 2));
        assert!(serial_before(0xffff_ffff, 0));
        assert!(!serial_before(0, 0xffff_ffff));
        assert!(!serial_before(7, 7));
    }
}

//! NVMe/TCP protocol data units: their types, headers, digests, and how they are written
//! (NVMe/TCP Transport 1.0 §3.6).

use crc_fast::{CrcAlgorithm, Digest};
use voute_buffer::{Buffer, Inset};

use crate::entry::{CompletionEntry, SubmissionEntry};
use crate::little_endian::{put, u32_at};

/// Length of the header that all PDUs begin with, bytes.
pub(crate) const COMMON_HEADER_LENGTH: usize = 8;
/// Length of a digest on the wire, bytes.
pub(crate) const DIGEST_LENGTH: usize = 4;
/// The longest termination request: its header and 128 bytes of the offending one.
pub(crate) const TERMINATION_LENGTH_MAX: usize = 152;

pub(crate) const FLAG_HEADER_DIGEST: u8 = 1 << 0;
const FLAG_DATA_DIGEST: u8 = 1 << 1;
pub(crate) const FLAG_LAST: u8 = 1 << 2;
pub(crate) const FLAG_SUCCESS: u8 = 1 << 3;

/// The kinds of PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PduKind {
    /// Initialize Connection Request.
    IcReq,
    /// Initialize Connection Response.
    IcResp,
    /// Host to controller Terminate Connection Request.
    H2cTermReq,
    /// Controller to host Terminate Connection Request.
    C2hTermReq,
    /// Command capsule.
    CapsuleCmd,
    /// Response capsule.
    CapsuleResp,
    /// Host to controller data.
    H2cData,
    /// Controller to host data.
    C2hData,
    /// Ready to Transfer.
    R2t,
}

impl PduKind {
    /// Every kind, in the order of their codes.
    pub const ALL: [PduKind; 9] = [
        PduKind::IcReq,
        PduKind::IcResp,
        PduKind::H2cTermReq,
        PduKind::C2hTermReq,
        PduKind::CapsuleCmd,
        PduKind::CapsuleResp,
        PduKind::H2cData,
        PduKind::C2hData,
        PduKind::R2t,
    ];

    /// The PDU-Type code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            PduKind::IcReq => 0x00,
            PduKind::IcResp => 0x01,
            PduKind::H2cTermReq => 0x02,
            PduKind::C2hTermReq => 0x03,
            PduKind::CapsuleCmd => 0x04,
            PduKind::CapsuleResp => 0x05,
            PduKind::H2cData => 0x06,
            PduKind::C2hData => 0x07,
            PduKind::R2t => 0x09,
        }
    }

    /// The kind with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The HLEN that this kind must have, bytes.
    #[must_use]
    pub const fn header_length(self) -> usize {
        match self {
            PduKind::IcReq | PduKind::IcResp => 128,
            PduKind::CapsuleCmd => 72,
            _ => 24,
        }
    }

    /// Whether a host sends it; a controller sends the others.
    #[must_use]
    pub const fn is_from_host(self) -> bool {
        matches!(
            self,
            PduKind::IcReq | PduKind::H2cTermReq | PduKind::CapsuleCmd | PduKind::H2cData
        )
    }

    pub(crate) const fn is_termination(self) -> bool {
        matches!(self, PduKind::H2cTermReq | PduKind::C2hTermReq)
    }

    pub(crate) const fn may_carry_data(self) -> bool {
        matches!(self, PduKind::CapsuleCmd | PduKind::H2cData | PduKind::C2hData)
    }

    /// ICReq, ICResp and the termination requests are never digested.
    pub(crate) const fn is_digested(self) -> bool {
        !matches!(
            self,
            PduKind::IcReq | PduKind::IcResp | PduKind::H2cTermReq | PduKind::C2hTermReq
        )
    }
}

/// Fatal error status: why a connection is terminated (FES).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatalError {
    /// 01h: a header field is invalid; the information is its offset.
    InvalidHeaderField,
    /// 02h: a PDU that this state does not allow.
    PduSequence,
    /// 03h: the header digest does not match.
    HeaderDigest,
    /// 04h: data outside what was asked for.
    DataOutOfRange,
    /// 05h: more than the announced limit.
    LimitExceeded,
    /// 06h: a parameter that is not supported.
    UnsupportedParameter,
}

impl FatalError {
    /// The FES code.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            FatalError::InvalidHeaderField => 1,
            FatalError::PduSequence => 2,
            FatalError::HeaderDigest => 3,
            FatalError::DataOutOfRange => 4,
            FatalError::LimitExceeded => 5,
            FatalError::UnsupportedParameter => 6,
        }
    }
}

/// A fatal error and its information field (FEI: for invalid fields the offset in the header).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Why.
    pub error: FatalError,
    /// Offset of the offending field, or what the error defines.
    pub information: u32,
}

impl Fault {
    pub(crate) const fn field(offset: u32) -> Self {
        Fault { error: FatalError::InvalidHeaderField, information: offset }
    }

    pub(crate) const fn of(error: FatalError) -> Self {
        Fault { error, information: 0 }
    }
}

/// Which digests a connection uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Digests {
    /// CRC32C after each header.
    pub header: bool,
    /// CRC32C after each PDU's data.
    pub data: bool,
}

impl Digests {
    pub(crate) const fn to_bits(self) -> u8 {
        self.header as u8 | (self.data as u8) << 1
    }

    pub(crate) const fn from_bits(bits: u8) -> Self {
        Digests { header: bits & 1 != 0, data: bits & 2 != 0 }
    }
}

/// A CRC32C in progress.
pub(crate) struct Crc32c(Digest);

impl Crc32c {
    pub(crate) fn new() -> Self {
        Crc32c(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(&self) -> u32 {
        self.0.finalize() as u32
    }
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Writes PDUs as one connection negotiated them: digests, and where data is aligned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    pub(crate) digests: Digests,
    /// PDO is a multiple of this, bytes: 4 × (HPDA + 1) or 4 × (CPDA + 1), 4 to 128.
    pub(crate) alignment: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Writer { digests: Digests::default(), alignment: 4 }
    }
}

/// Identifies a data PDU's place in a command's data.
#[derive(Clone, Copy)]
pub(crate) struct DataPlace {
    pub(crate) command_id: u16,
    pub(crate) transfer_tag: u16,
    pub(crate) offset: u32,
}

impl Writer {
    pub(crate) fn capsule_command(&self, out: &mut Vec<u8>, entry: &SubmissionEntry, data: &[u8]) {
        let mut header = [0; 72];
        put(&mut header, 8, &entry.0);
        self.write(out, PduKind::CapsuleCmd, 0, &mut header, data);
    }

    pub(crate) fn capsule_response(&self, out: &mut Vec<u8>, entry: &CompletionEntry) {
        let mut header = [0; 24];
        put(&mut header, 8, &entry.to_bytes());
        self.write(out, PduKind::CapsuleResp, 0, &mut header, &[]);
    }

    pub(crate) fn ready_to_transfer(&self, out: &mut Vec<u8>, place: DataPlace, length: u32) {
        let mut header = Self::data_header(place, length);
        self.write(out, PduKind::R2t, 0, &mut header, &[]);
    }

    /// `flags` may hold [`FLAG_LAST`] and, towards a host, [`FLAG_SUCCESS`].
    pub(crate) fn data(
        &self,
        out: &mut Vec<u8>,
        kind: PduKind,
        flags: u8,
        place: DataPlace,
        data: &[u8],
    ) {
        let mut header = Self::data_header(place, data.len() as u32);
        self.write(out, kind, flags, &mut header, data);
    }

    fn data_header(place: DataPlace, length: u32) -> [u8; 24] {
        let mut header = [0; 24];
        put(&mut header, 8, &place.command_id.to_le_bytes());
        put(&mut header, 10, &place.transfer_tag.to_le_bytes());
        put(&mut header, 12, &place.offset.to_le_bytes());
        put(&mut header, 16, &length.to_le_bytes());
        header
    }

    /// Like [`Self::data`], but what is written is only what stands around the data: that is to be
    /// sent where the inset says.
    pub(crate) fn data_around(
        &self,
        out: &mut Vec<u8>,
        kind: PduKind,
        flags: u8,
        place: DataPlace,
        data: Buffer,
    ) -> Inset {
        let mut header = Self::data_header(place, data.len() as u32);
        self.write_before(out, kind, flags, &mut header, data.len());
        let at = out.len();
        self.write_after(out, &data);
        Inset { at, bytes: data }
    }

    fn write(&self, out: &mut Vec<u8>, kind: PduKind, flags: u8, header: &mut [u8], data: &[u8]) {
        self.write_before(out, kind, flags, header, data.len());
        out.extend_from_slice(data);
        self.write_after(out, data);
    }

    /// The header and what stands between it and the data.
    fn write_before(
        &self,
        out: &mut Vec<u8>,
        kind: PduKind,
        flags: u8,
        header: &mut [u8],
        data_length: usize,
    ) {
        let header_digest = if self.digests.header { DIGEST_LENGTH } else { 0 };
        let header_end = header.len() + header_digest;
        let has_data = data_length > 0;
        let data_start =
            if has_data { header_end.next_multiple_of(self.alignment) } else { header_end };
        let has_data_digest = self.digests.data && has_data;
        let total = data_start + data_length + if has_data_digest { DIGEST_LENGTH } else { 0 };
        header[0] = kind.code();
        header[1] = flags
            | if self.digests.header { FLAG_HEADER_DIGEST } else { 0 }
            | if has_data_digest { FLAG_DATA_DIGEST } else { 0 };
        header[2] = header.len() as u8;
        header[3] = if has_data { data_start as u8 } else { 0 };
        put(header, 4, &(total as u32).to_le_bytes());
        out.extend_from_slice(header);
        if self.digests.header {
            out.extend_from_slice(&crc32c(header).to_le_bytes());
        }
        out.resize(out.len() + data_start - header_end, 0);
    }

    fn write_after(&self, out: &mut Vec<u8>, data: &[u8]) {
        if self.digests.data && !data.is_empty() {
            out.extend_from_slice(&crc32c(data).to_le_bytes());
        }
    }
}

/// What a host offers when a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InitializeRequest {
    pub(crate) format: u16,
    /// HPDA, 0 to 31: data towards the host begins at multiples of 4 × (HPDA + 1).
    pub(crate) host_alignment: u8,
    pub(crate) digests: Digests,
    /// MAXR2T, zero-based.
    pub(crate) ready_to_transfer_max: u32,
}

impl InitializeRequest {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut header =
            initialize_header(PduKind::IcReq, self.format, self.host_alignment, self.digests);
        put(&mut header, 12, &self.ready_to_transfer_max.to_le_bytes());
        out.extend_from_slice(&header);
    }

    pub(crate) fn read(header: &[u8]) -> Self {
        InitializeRequest {
            format: crate::little_endian::u16_at(header, 8),
            host_alignment: header[10],
            digests: Digests::from_bits(header[11]),
            ready_to_transfer_max: u32_at(header, 12),
        }
    }
}

/// What a controller grants when a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InitializeResponse {
    pub(crate) format: u16,
    /// CPDA, 0 to 31.
    pub(crate) controller_alignment: u8,
    pub(crate) digests: Digests,
    /// MAXH2CDATA, bytes.
    pub(crate) data_length_max: u32,
}

impl InitializeResponse {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut header = initialize_header(
            PduKind::IcResp,
            self.format,
            self.controller_alignment,
            self.digests,
        );
        put(&mut header, 12, &self.data_length_max.to_le_bytes());
        out.extend_from_slice(&header);
    }

    pub(crate) fn read(header: &[u8]) -> Self {
        InitializeResponse {
            format: crate::little_endian::u16_at(header, 8),
            controller_alignment: header[10],
            digests: Digests::from_bits(header[11]),
            data_length_max: u32_at(header, 12),
        }
    }
}

fn initialize_header(kind: PduKind, format: u16, alignment: u8, digests: Digests) -> [u8; 128] {
    let mut header = [0; 128];
    header[0] = kind.code();
    header[2] = 128;
    put(&mut header, 4, &128u32.to_le_bytes());
    put(&mut header, 8, &format.to_le_bytes());
    header[10] = alignment;
    header[11] = digests.to_bits();
    header
}

/// Writes a termination request with as much of the offending header as may be sent (§3.6.2.3).
pub(crate) fn write_termination(out: &mut Vec<u8>, kind: PduKind, fault: Fault, offending: &[u8]) {
    let kept = &offending[..offending.len().min(TERMINATION_LENGTH_MAX - 24)];
    let mut header = [0; 24];
    header[0] = kind.code();
    header[2] = 24;
    put(&mut header, 4, &(24 + kept.len() as u32).to_le_bytes());
    put(&mut header, 8, &fault.error.code().to_le_bytes());
    put(&mut header, 10, &fault.information.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(kept);
}

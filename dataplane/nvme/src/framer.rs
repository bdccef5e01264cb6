//! Cuts a byte stream, fragmented anyhow, into PDUs. Headers are gathered; data is handed on as
//! slices of the caller's own input, so that payload is copied once, to where it will rest.

use crate::little_endian::u32_at;
use crate::pdu::{
    COMMON_HEADER_LENGTH, Crc32c, DIGEST_LENGTH, Digests, FLAG_HEADER_DIGEST, FatalError, Fault,
    PduKind, TERMINATION_LENGTH_MAX, crc32c,
};

/// One step of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A header is whole and sound: see [`Framer::header`].
    Header(PduKind),
    /// The next bytes of the PDU's data.
    Data(&'a [u8]),
    /// The PDU is over.
    End { kind: PduKind, data_digest_matches: bool },
    /// The stream cannot be read further.
    Fault(Fault),
}

/// Longest data that each kind of PDU may carry to this side, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataLimits {
    pub(crate) capsule: usize,
    pub(crate) data: usize,
}

enum Stage {
    Header { needed: usize },
    Data { remaining: usize },
    Digest { gathered: [u8; DIGEST_LENGTH], filled: usize },
    End { data_digest_matches: bool },
    Dead,
}

/// Room for a header of any kind, its digest and the padding up to the largest PDO (one byte).
const GATHERED_MAX: usize = 256;

pub(crate) struct Framer {
    from_host: bool,
    digests: Digests,
    limits: DataLimits,
    stage: Stage,
    gathered: [u8; GATHERED_MAX],
    filled: usize,
    kind: PduKind,
    data_length: usize,
    crc: Crc32c,
}

impl Framer {
    /// `from_host`: whether the stream comes from a host.
    pub(crate) fn new(from_host: bool, limits: DataLimits) -> Self {
        Framer {
            from_host,
            digests: Digests::default(),
            limits,
            stage: Stage::Header { needed: COMMON_HEADER_LENGTH },
            gathered: [0; GATHERED_MAX],
            filled: 0,
            kind: PduKind::IcReq,
            data_length: 0,
            crc: Crc32c::new(),
        }
    }

    /// Takes effect at the next PDU.
    pub(crate) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Takes effect at the next PDU.
    pub(crate) fn set_limits(&mut self, limits: DataLimits) {
        self.limits = limits;
    }

    /// The header that the last [`Frame::Header`] announced, or as much of a faulty one as came.
    pub(crate) fn header(&self) -> &[u8] {
        &self.gathered[..self.filled.min(self.kind.header_length())]
    }

    /// The flags byte of that header.
    pub(crate) fn header_flags(&self) -> u8 {
        self.gathered[1]
    }

    /// Length of the data that follows the header, bytes.
    pub(crate) fn data_length(&self) -> usize {
        self.data_length
    }

    /// The next step, or `None` when `input` is used up. What was used is cut off `input`.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Frame<'a>> {
        loop {
            match &mut self.stage {
                Stage::Header { needed } => {
                    let needed = *needed;
                    if !self.gather(input, needed) {
                        return None;
                    }
                    if let Some(frame) = self.header_progress(needed) {
                        return Some(frame);
                    }
                }
                Stage::Data { remaining } => {
                    if input.is_empty() {
                        return None;
                    }
                    let (data, rest) = input.split_at(input.len().min(*remaining));
                    *input = rest;
                    self.took_data(data);
                    return Some(Frame::Data(data));
                }
                Stage::Digest { gathered, filled } => {
                    let taken = input.len().min(DIGEST_LENGTH - *filled);
                    gathered[*filled..*filled + taken].copy_from_slice(&input[..taken]);
                    *filled += taken;
                    *input = &input[taken..];
                    if *filled < DIGEST_LENGTH {
                        return None;
                    }
                    let data_digest_matches = u32::from_le_bytes(*gathered) == self.crc.finish();
                    self.stage = Stage::End { data_digest_matches };
                }
                Stage::End { data_digest_matches } => {
                    let frame =
                        Frame::End { kind: self.kind, data_digest_matches: *data_digest_matches };
                    self.stage = Stage::Header { needed: COMMON_HEADER_LENGTH };
                    self.filled = 0;
                    self.data_length = 0;
                    return Some(frame);
                }
                Stage::Dead => {
                    *input = &[];
                    return None;
                }
            }
        }
    }

    /// How many bytes of the PDU's data come next in the stream; 0 outside of data.
    pub(crate) fn data_ahead(&self) -> usize {
        match self.stage {
            Stage::Data { remaining } => remaining,
            Stage::Header { .. } | Stage::Digest { .. } | Stage::End { .. } | Stage::Dead => 0,
        }
    }

    /// The next bytes of the PDU's data, at most [`Self::data_ahead`], came by another way than
    /// [`Self::next`].
    pub(crate) fn took_data(&mut self, data: &[u8]) {
        let Stage::Data { remaining } = &mut self.stage else { return };
        *remaining = remaining.saturating_sub(data.len());
        let is_over = *remaining == 0;
        if self.has_data_digest() {
            self.crc.update(data);
        }
        if is_over {
            self.stage = self.after_data();
        }
    }

    fn has_data_digest(&self) -> bool {
        self.digests.data && self.kind.is_digested()
    }

    fn has_header_digest(&self) -> bool {
        self.digests.header && self.kind.is_digested()
    }

    /// Gathers up to `needed` bytes; whether they are all there.
    fn gather(&mut self, input: &mut &[u8], needed: usize) -> bool {
        let taken = input.len().min(needed - self.filled);
        self.gathered[self.filled..self.filled + taken].copy_from_slice(&input[..taken]);
        self.filled += taken;
        *input = &input[taken..];
        self.filled == needed
    }

    fn header_progress<'a>(&mut self, needed: usize) -> Option<Frame<'a>> {
        if needed == COMMON_HEADER_LENGTH {
            return match self.check_common_header() {
                Ok(needed) => {
                    self.stage = Stage::Header { needed };
                    None
                }
                Err(fault) => Some(self.fail(fault)),
            };
        }
        if !self.header_digest_matches() {
            let found = u32_at(&self.gathered, self.kind.header_length());
            return Some(self.fail(Fault { error: FatalError::HeaderDigest, information: found }));
        }
        self.crc = Crc32c::new();
        self.stage = match self.data_length {
            0 => Stage::End { data_digest_matches: true },
            remaining => Stage::Data { remaining },
        };
        Some(Frame::Header(self.kind))
    }

    fn header_digest_matches(&self) -> bool {
        let length = self.kind.header_length();
        !self.has_header_digest()
            || u32_at(&self.gathered, length) == crc32c(&self.gathered[..length])
    }

    fn after_data(&self) -> Stage {
        if self.has_data_digest() {
            Stage::Digest { gathered: [0; DIGEST_LENGTH], filled: 0 }
        } else {
            Stage::End { data_digest_matches: true }
        }
    }

    fn fail<'a>(&mut self, fault: Fault) -> Frame<'a> {
        self.stage = Stage::Dead;
        Frame::Fault(fault)
    }

    /// Checks type, flags, lengths; returns how many bytes stand before the data.
    fn check_common_header(&mut self) -> Result<usize, Fault> {
        let kind = PduKind::from_code(self.gathered[0]).ok_or(Fault::field(0))?;
        self.kind = kind;
        if kind.is_from_host() != self.from_host {
            return Err(Fault::field(0));
        }
        if usize::from(self.gathered[2]) != kind.header_length() {
            return Err(Fault::field(2));
        }
        let digest_flag = self.gathered[1] & FLAG_HEADER_DIGEST != 0;
        if kind.is_digested() && digest_flag != self.digests.header {
            return Err(Fault::field(1));
        }
        let total = u32_at(&self.gathered, 4) as usize;
        let header_end =
            kind.header_length() + if self.has_header_digest() { DIGEST_LENGTH } else { 0 };
        if kind.is_termination() {
            return self.admit_termination(total);
        }
        if !kind.may_carry_data() {
            return if total == header_end { Ok(header_end) } else { Err(Fault::field(4)) };
        }
        if kind == PduKind::CapsuleCmd && total == header_end {
            return Ok(header_end);
        }
        self.admit_data(total, header_end)
    }

    fn admit_termination(&mut self, total: usize) -> Result<usize, Fault> {
        let header = self.kind.header_length();
        if !(header..=TERMINATION_LENGTH_MAX).contains(&total) {
            return Err(Fault::field(4));
        }
        self.data_length = total - header;
        Ok(header)
    }

    fn admit_data(&mut self, total: usize, header_end: usize) -> Result<usize, Fault> {
        let start = usize::from(self.gathered[3]);
        if start < header_end || !start.is_multiple_of(4) {
            return Err(Fault::field(3));
        }
        let trailer = if self.has_data_digest() { DIGEST_LENGTH } else { 0 };
        match total.checked_sub(start + trailer) {
            None | Some(0) => return Err(Fault::field(4)),
            Some(length) => self.data_length = length,
        }
        match self.kind {
            PduKind::CapsuleCmd if self.data_length > self.limits.capsule => Err(Fault::field(4)),
            PduKind::H2cData | PduKind::C2hData if self.data_length > self.limits.data => {
                Err(Fault::of(FatalError::LimitExceeded))
            }
            _ => Ok(start),
        }
    }
}

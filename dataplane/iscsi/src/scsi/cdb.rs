//! Named fields of command descriptor blocks.

/// A CDB of at most 16 bytes, padded with zeroes.
#[derive(Clone, Copy)]
pub(crate) struct Cdb(pub(crate) [u8; 16]);

impl Cdb {
    pub(crate) fn opcode(&self) -> u8 {
        self.0[0]
    }
    pub(crate) fn service_action(&self) -> u8 {
        self.0[1] & 0x1f
    }
    pub(crate) fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }
    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
    pub(crate) fn u64_at(&self, at: usize) -> u64 {
        u64::from(self.u32_at(at)) << 32 | u64::from(self.u32_at(at + 4))
    }
    pub(crate) fn bit(&self, byte: usize, bit: u8) -> bool {
        self.0[byte] & 1 << bit != 0
    }
    /// RDPROTECT, WRPROTECT, VRPROTECT, ORPROTECT: the top bits of byte 1.
    pub(crate) fn protection(&self) -> u8 {
        self.0[1] >> 5
    }
    /// LBA and length of the 6, 10, 12 and 16 byte forms, by the opcode's group.
    pub(crate) fn range(&self) -> (u64, u32) {
        match self.opcode() >> 5 {
            0 => {
                let lba = u64::from(self.0[1] & 0x1f) << 16 | u64::from(self.u16_at(2));
                // A length of zero means 256 (SBC-3 §5.8).
                (lba, if self.0[4] == 0 { 256 } else { u32::from(self.0[4]) })
            }
            4 => (self.u64_at(2), self.u32_at(10)),
            5 => (u64::from(self.u32_at(2)), self.u32_at(6)),
            _ => (u64::from(self.u32_at(2)), u32::from(self.u16_at(7))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_from_all_four_forms() {
        let cdb = |bytes: &[u8]| {
            let mut cdb = [0; 16];
            cdb[..bytes.len()].copy_from_slice(bytes);
            Cdb(cdb)
        };
        assert_eq!(cdb(&[0x08, 0x01, 0, 2, 0, 0]).range(), (0x10002, 256));
        assert_eq!(cdb(&[0x28, 0, 0, 0, 0, 9, 0, 1, 2, 0]).range(), (9, 0x102));
        assert_eq!(cdb(&[0xa8, 0, 0, 0, 0, 9, 0, 1, 0, 2, 0, 0]).range(), (9, 0x10002));
        assert_eq!(
            cdb(&[0x88, 0, 1, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 2]).range(),
            (0x0100_0000_0000_0009, 0x10002)
        );
    }
}

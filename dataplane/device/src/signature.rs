//! Recognising what a device holds that is not ours, so that nobody's data is overwritten unasked.
//!
//! Names are a courtesy; the rule is stricter: a device whose first or last mebibyte holds any byte
//! but zero is not empty.

use std::fmt;

/// How much of a device's begin and of its end is looked at, bytes.
pub(crate) const LOOK_BYTES: usize = 1 << 20;

/// What was found on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Something with a well-known mark, in words.
    Known(&'static str),
    /// A header of ours of which no copy is whole.
    DamagedHeader,
    /// Something else: the first byte that is not zero.
    Unknown {
        /// Where, bytes from the begin.
        offset: u64,
    },
}

impl fmt::Display for Content {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Known(name) => formatter.write_str(name),
            Content::DamagedHeader => {
                formatter.write_str("a damaged device header of this software")
            }
            Content::Unknown { offset } => write!(formatter, "unknown data (at byte {offset})"),
        }
    }
}

/// A mark at a fixed place.
struct Mark {
    offset: usize,
    bytes: &'static [u8],
    name: &'static str,
}

const fn mark(offset: usize, bytes: &'static [u8], name: &'static str) -> Mark {
    Mark { offset, bytes, name }
}

/// Marks near the begin; the earlier in the table the more it says.
const HEAD: &[Mark] = &[
    mark(0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    mark(0, b"LABELONE", "an LVM physical volume"),
    mark(512, b"LABELONE", "an LVM physical volume"),
    mark(1024, b"LABELONE", "an LVM physical volume"),
    mark(1536, b"LABELONE", "an LVM physical volume"),
    mark(0, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    mark(4096, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    mark(0, b"bluestore block device", "a Ceph OSD"),
    mark(4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"),
    mark(4086, b"SWAPSPACE2", "a swap area"),
    mark(4086, b"SWAP-SPACE", "a swap area"),
    mark(1024 + 56, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    mark(0, b"XFSB", "an XFS file system"),
    mark(65536 + 64, b"_BHRfS_M", "a btrfs file system"),
    mark(1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    mark(1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    mark(0, b"hsqs", "a squashfs file system"),
    mark(0, b"QFI\xfb", "a QCOW2 image"),
    mark(3, b"NTFS    ", "an NTFS file system"),
    mark(3, b"EXFAT   ", "an exFAT file system"),
    mark(54, b"FAT1", "a FAT file system"),
    mark(82, b"FAT32", "a FAT file system"),
    mark(32769, b"CD001", "an ISO 9660 file system"),
    mark(131_072, b"\x0c\xb1\xba\x00\x00\x00\x00\x00", "a ZFS member"),
    mark(512, b"EFI PART", "a GPT partition table"),
    mark(4096, b"EFI PART", "a GPT partition table"),
    mark(510, b"\x55\xaa", "an MBR partition table or boot sector"),
];

/// Looks at the first and last bytes of a device ([`LOOK_BYTES`] each where it is large enough).
/// `tail_at` is where `tail` begins. `None` means that nothing is there.
pub(crate) fn content(head: &[u8], tail: &[u8], tail_at: u64) -> Option<Content> {
    let named = HEAD.iter().find(|mark| holds(head, mark.offset, mark.bytes)).map(|mark| mark.name);
    if let Some(name) = named.or_else(|| name_of_tail(tail)) {
        return Some(Content::Known(name));
    }
    let unknown = |bytes: &[u8], from: u64| {
        let at = bytes.iter().position(|byte| *byte != 0)?;
        Some(Content::Unknown { offset: from + at as u64 })
    };
    unknown(head, 0).or_else(|| unknown(tail, tail_at))
}

/// Marks that stand at a distance from the end.
fn name_of_tail(tail: &[u8]) -> Option<&'static str> {
    let from_end = |distance: usize| tail.len().checked_sub(distance);
    let gpt = [512, 4096].into_iter().filter_map(from_end).any(|at| holds(tail, at, b"EFI PART"));
    if gpt {
        return Some("a GPT partition table (its backup)");
    }
    // Versions 0.90 and 1.0 of the RAID superblock lie at a 4 KiB border in the last 128 KiB.
    let last = &tail[from_end(128 << 10).unwrap_or(0)..];
    let raid = last.chunks(4096).any(|block| block.starts_with(b"\xfc\x4e\x2b\xa9"));
    raid.then_some("a Linux RAID member")
}

fn holds(bytes: &[u8], offset: usize, wanted: &[u8]) -> bool {
    bytes.get(offset..).is_some_and(|rest| rest.starts_with(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_empty() {
        assert_eq!(content(&[0; 8192], &[0; 8192], 8192), None);
    }

    #[test]
    fn every_mark_at_the_begin_is_recognised() {
        for mark in HEAD {
            let mut head = vec![0; LOOK_BYTES];
            head[mark.offset..mark.offset + mark.bytes.len()].copy_from_slice(mark.bytes);
            assert_eq!(content(&head, &[0; 4096], 0), Some(Content::Known(mark.name)));
        }
    }

    #[test]
    fn a_backup_partition_table_or_raid_superblock_at_the_end_is_recognised() {
        let at_end = |distance: usize, bytes: &[u8]| {
            let mut tail = vec![0; LOOK_BYTES];
            let at = tail.len() - distance;
            tail[at..at + bytes.len()].copy_from_slice(bytes);
            content(&[0; 4096], &tail, 1 << 30)
        };
        let gpt = Some(Content::Known("a GPT partition table (its backup)"));
        assert_eq!(at_end(512, b"EFI PART"), gpt);
        assert_eq!(at_end(4096, b"EFI PART"), gpt);
        let raid = Some(Content::Known("a Linux RAID member"));
        assert_eq!(at_end(8192, b"\xfc\x4e\x2b\xa9"), raid);
        assert_eq!(at_end(65536, b"\xfc\x4e\x2b\xa9"), raid);
    }

    #[test]
    fn any_other_byte_counts_too() {
        let mut head = vec![0; LOOK_BYTES];
        head[777_777] = 1;
        assert_eq!(content(&head, &[], 0), Some(Content::Unknown { offset: 777_777 }));
        assert_eq!(content(&[0; 9], &[0, 3], 100), Some(Content::Unknown { offset: 101 }));
    }
}

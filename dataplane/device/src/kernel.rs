//! A file or block device: what to submit to a ring, and what its answers mean.

use io_uring::{opcode, squeue, types};
use rustix::fs::FallocateFlags;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use voute_mirror::DeviceFault;

/// An open file or block device.
pub(crate) struct KernelDisk {
    /// Open for reading and writing, and claimed.
    pub(crate) file: OwnedFd,
    /// Whether writes need `RWF_DSYNC`, zeroes `fsync`, to survive a power cut.
    pub(crate) volatile: bool,
    /// Whether making a hole is worth a try.
    punches: AtomicBool,
    /// Whether zeroing in place is worth a try.
    zeroes: AtomicBool,
}

/// Where a zeroing stands. A step that the device does not know leads to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ZeroStage {
    /// Making a hole, giving space back.
    Punch,
    /// Zeroing in place.
    Range,
    /// Writing zeroes piece by piece.
    Fill,
    /// Making the hole or the zeroes durable.
    Sync,
}

impl KernelDisk {
    pub(crate) fn new(file: OwnedFd, volatile: bool) -> Self {
        let known = || AtomicBool::new(true);
        KernelDisk { file, volatile, punches: known(), zeroes: known() }
    }

    fn descriptor(&self) -> types::Fd {
        types::Fd(self.file.as_raw_fd())
    }

    fn write_flags(&self) -> i32 {
        if self.volatile { libc::RWF_DSYNC } else { 0 }
    }

    pub(crate) fn read_entry(&self, memory: *mut u8, length: u32, offset: u64) -> squeue::Entry {
        opcode::Read::new(self.descriptor(), memory, length).offset(offset).build()
    }

    pub(crate) fn write_entry(&self, memory: *const u8, length: u32, offset: u64) -> squeue::Entry {
        opcode::Write::new(self.descriptor(), memory, length)
            .offset(offset)
            .rw_flags(self.write_flags())
            .build()
    }

    /// For [`ZeroStage::Punch`] and [`ZeroStage::Range`].
    pub(crate) fn fallocate_entry(&self, punch: bool, length: u64, offset: u64) -> squeue::Entry {
        let how = if punch { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        let mode = how | FallocateFlags::KEEP_SIZE;
        opcode::Fallocate::new(self.descriptor(), length)
            .offset(offset)
            .mode(mode.bits().cast_signed())
            .build()
    }

    pub(crate) fn sync_entry(&self) -> squeue::Entry {
        opcode::Fsync::new(self.descriptor()).build()
    }

    /// The first step of a zeroing that this device has not refused yet.
    pub(crate) fn first_stage(&self, release: bool) -> ZeroStage {
        if release && self.punches.load(Ordering::Relaxed) {
            ZeroStage::Punch
        } else if self.zeroes.load(Ordering::Relaxed) {
            ZeroStage::Range
        } else {
            ZeroStage::Fill
        }
    }

    /// The step after one that the device does not know; it is not tried again.
    pub(crate) fn stage_after_refusal(&self, refused: ZeroStage) -> ZeroStage {
        match refused {
            ZeroStage::Punch => {
                self.punches.store(false, Ordering::Relaxed);
                self.first_stage(false)
            }
            ZeroStage::Range | ZeroStage::Fill | ZeroStage::Sync => {
                self.zeroes.store(false, Ordering::Relaxed);
                ZeroStage::Fill
            }
        }
    }
}

/// Whether an error means that the call is not supported there, rather than that it failed.
pub(crate) fn is_refusal(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL)
}

/// Whether an error goes away by asking again.
pub(crate) fn is_passing(errno: i32) -> bool {
    matches!(errno, libc::EINTR | libc::EAGAIN)
}

/// What a failed read means: the block layer's codes for blocks that cannot be read stay apart from
/// those of a device that is gone. `EIO` may be either: Linux gives it for a bad sector that a file
/// system lies over, and for a device without a path, a dead controller or an aborted file system.
pub(crate) fn read_fault(errno: i32) -> DeviceFault {
    match errno {
        libc::EBADMSG | libc::ENODATA | libc::EILSEQ | libc::EUCLEAN => DeviceFault::Medium,
        libc::EIO => DeviceFault::Unclear,
        _ => DeviceFault::Failed,
    }
}

/// What a failed write or zeroing means.
pub(crate) fn write_fault(errno: i32) -> DeviceFault {
    match errno {
        libc::ENOSPC | libc::EDQUOT => DeviceFault::NoSpace,
        _ => DeviceFault::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_output_error_says_nothing_about_the_medium() {
        assert_eq!(read_fault(libc::EIO), DeviceFault::Unclear);
        for errno in [libc::ENODATA, libc::EILSEQ, libc::EBADMSG, libc::EUCLEAN] {
            assert_eq!(read_fault(errno), DeviceFault::Medium);
        }
        for errno in [libc::ENXIO, libc::ENODEV, libc::ETIMEDOUT, libc::ENOLINK] {
            assert_eq!(read_fault(errno), DeviceFault::Failed);
        }
    }
}

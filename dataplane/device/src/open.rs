//! An open device, shared by all reactors of a node.

use crate::kernel::KernelDisk;
use crate::mailbox::Detached;
use crate::memory::MemoryDisk;
use std::fmt;
use voute_schemas::DeviceId;
use voute_schemas::place::DEVICE_HEADER_BYTES;

/// A claimed device. The claim ends when the last reference to it does, in whichever queue or
/// operation in flight that is.
pub struct OpenDevice {
    pub(crate) device: DeviceId,
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
    pub(crate) extent_bytes: u64,
    pub(crate) backend: Backend,
}

/// How requests reach the device.
pub(crate) enum Backend {
    /// By copying.
    Memory(MemoryDisk),
    /// By the queue's ring.
    Kernel(KernelDisk),
    /// By handing over an order.
    Detached(Box<dyn Detached>),
}

impl OpenDevice {
    /// Its id.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Size of the whole device, bytes, header included.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Its logical block, bytes: no volume with smaller blocks may have a leg on it.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Unit of allocation, bytes.
    #[must_use]
    pub fn extent_bytes(&self) -> u64 {
        self.extent_bytes
    }

    /// How many extents it holds.
    #[must_use]
    pub fn extents(&self) -> u64 {
        extents(self.size_bytes, self.extent_bytes)
    }
}

impl fmt::Debug for OpenDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "OpenDevice({}, {} bytes)", self.device, self.size_bytes)
    }
}

/// How many whole extents a device of this size holds after its header.
pub(crate) fn extents(size_bytes: u64, extent_bytes: u64) -> u64 {
    size_bytes.saturating_sub(DEVICE_HEADER_BYTES) / extent_bytes
}

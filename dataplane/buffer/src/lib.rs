//! Page-aligned memory that data rests in between a socket and a device.
//!
//! Direct I/O wants buffers whose address, like the offset and the length, is a multiple of the
//! device's logical block; 4096 bytes satisfies every device that we accept. The type is an owned,
//! initialised byte slice: safe to send between threads and to hand to the kernel by pointer, since
//! its memory never moves. Memory of buffers that are gone is used again, see [`KEPT_BYTES_MAX`].

mod pool;

pub use pool::KEPT_BYTES_MAX;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every [`Buffer`], bytes.
pub const ALIGNMENT: usize = 4096;

/// The longest buffer that may be asked for, bytes (16 MiB): a bound against absurd sizes that
/// arrived from a network.
pub const LENGTH_MAX: usize = 16 << 20;

/// Owned memory, aligned to [`ALIGNMENT`], always initialised.
pub struct Buffer {
    memory: NonNull<u8>,
    length: usize,
}

// SAFETY: the buffer owns its memory alone, like `Box<[u8]>`.
unsafe impl Send for Buffer {}
// SAFETY: shared access gives only `&[u8]`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of `length` zero bytes.
    ///
    /// # Panics
    /// If `length` is over [`LENGTH_MAX`]: the caller bounds sizes from outside before it asks.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        let (mut buffer, is_zero) = Self::take(length);
        if !is_zero {
            buffer.fill(0);
        }
        buffer
    }

    /// A buffer of `length` bytes that the caller fills wholly before it shows them to anyone: until
    /// then they are what an earlier buffer held, which may be another host's data.
    ///
    /// # Panics
    /// As [`Self::zeroed`].
    #[must_use]
    pub fn for_filling(length: usize) -> Self {
        Self::take(length).0
    }

    fn take(length: usize) -> (Self, bool) {
        assert!(
            length <= LENGTH_MAX,
            "a buffer of {length} bytes was asked for, the limit is {LENGTH_MAX}"
        );
        if length == 0 {
            return (Buffer { memory: NonNull::dangling(), length }, true);
        }
        let (memory, is_zero) = pool::take(length);
        (Buffer { memory, length }, is_zero)
    }

    /// A buffer that holds a copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::for_filling(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.length > 0 {
            pool::give(self.memory, self.length);
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `length` initialised bytes are owned by self.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.length) }
    }
}

/// Bytes that go out among others without being copied there.
#[derive(Debug)]
pub struct Inset {
    /// How many of the other bytes go before.
    pub at: usize,
    /// The bytes.
    pub bytes: Buffer,
}

/// Another buffer with the same bytes, which are copied: for tests and tools that explore.
impl Clone for Buffer {
    fn clone(&self) -> Self {
        Buffer::copy_of(self)
    }
}

/// Its length; what it holds only if asked for, as so many bytes as the precision says (`{:.8?}`).
impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Buffer({} bytes", self.length)?;
        if let Some(shown) = formatter.precision() {
            write!(formatter, ": ")?;
            self.iter().take(shown).try_for_each(|byte| write!(formatter, "{byte:02x}"))?;
        }
        write!(formatter, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_zero() {
        for length in [1, 512, 4096, 4097, 1 << 20] {
            let buffer = Buffer::zeroed(length);
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(buffer.len(), length);
            assert!(buffer.iter().all(|byte| *byte == 0));
        }
        assert!(Buffer::zeroed(0).is_empty());
    }
}

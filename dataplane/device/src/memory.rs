//! Memory as a device: sparse, in chunks that exist from their first write on.
//!
//! Reactors share it. Each chunk has a lock of its own, held for one copy of at most a chunk; legs
//! never share a chunk's bytes, so that the lock is free in practice. A chunk is a huge page where the
//! kernel gives one: random requests would otherwise spend their time on missing translations.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{PoisonError, RwLock};

/// Unit of allocation and of locking, bytes: a huge page of common machines.
const CHUNK_BYTES: usize = 2 << 20;

/// Largest memory device, bytes (1 TiB): bounds the table of chunks.
pub(crate) const MEMORY_BYTES_MAX: u64 = 1 << 40;

type Chunk = RwLock<Option<Memory>>;

/// Memory addressed like a device. Never-written and zeroed ranges read as zero.
pub(crate) struct MemoryDisk {
    chunks: Box<[Chunk]>,
}

impl MemoryDisk {
    /// Memory of `size_bytes`, none of it allocated yet but the table of chunks.
    pub(crate) fn new(size_bytes: u64) -> Self {
        assert!(size_bytes <= MEMORY_BYTES_MAX, "the caller bounds the size");
        let count = size_bytes.div_ceil(CHUNK_BYTES as u64);
        MemoryDisk { chunks: (0..count).map(|_| RwLock::default()).collect() }
    }

    /// Fills `into` from `offset`. The range lies within the device.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        for (chunk, within, at, length) in self.pieces(offset, into.len() as u64) {
            let guard = chunk.read().unwrap_or_else(PoisonError::into_inner);
            let target = &mut into[at..at + length];
            match guard.as_deref() {
                Some(bytes) => target.copy_from_slice(&bytes[within..within + length]),
                None => target.fill(0),
            }
        }
    }

    /// Stores `bytes` at `offset`. The range lies within the device.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        for (chunk, within, at, length) in self.pieces(offset, bytes.len() as u64) {
            let mut guard = chunk.write().unwrap_or_else(PoisonError::into_inner);
            let memory = guard.get_or_insert_with(Memory::zeroed);
            memory[within..within + length].copy_from_slice(&bytes[at..at + length]);
        }
    }

    /// Makes a range read as zero, giving back chunks that it covers wholly.
    pub(crate) fn zero(&self, offset: u64, length: u64) {
        for (chunk, within, _, length) in self.pieces(offset, length) {
            let mut guard = chunk.write().unwrap_or_else(PoisonError::into_inner);
            if length == CHUNK_BYTES {
                *guard = None;
            } else if let Some(memory) = guard.as_deref_mut() {
                memory[within..within + length].fill(0);
            }
        }
    }

    /// (chunk, offset within it, offset within the range, length) of each chunk that a range touches.
    fn pieces(
        &self,
        offset: u64,
        length: u64,
    ) -> impl Iterator<Item = (&Chunk, usize, usize, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == length {
                return None;
            }
            let position = offset + done;
            let within = (position % CHUNK_BYTES as u64) as usize;
            let piece = (length - done).min((CHUNK_BYTES - within) as u64) as usize;
            let chunk = &self.chunks[(position / CHUNK_BYTES as u64) as usize];
            let at = done as usize;
            done += piece as u64;
            Some((chunk, within, at, piece))
        })
    }

    /// Bytes of memory in use.
    #[cfg(test)]
    fn allocated_bytes(&self) -> usize {
        self.chunks.iter().filter(|chunk| chunk.read().unwrap().is_some()).count() * CHUNK_BYTES
    }
}

/// [`CHUNK_BYTES`] of memory, aligned to that, straight from the kernel.
struct Memory(NonNull<u8>);

// SAFETY: it owns its memory alone, like `Box<[u8]>`.
unsafe impl Send for Memory {}
// SAFETY: shared access gives only `&[u8]`.
unsafe impl Sync for Memory {}

impl Memory {
    /// Memory that holds zeroes.
    ///
    /// # Panics
    /// If the machine has no memory left, as any allocation does.
    fn zeroed() -> Self {
        // Twice the length has an aligned chunk in it; what is around that goes back.
        let base = map(2 * CHUNK_BYTES);
        let before = base.align_offset(CHUNK_BYTES);
        let chunk = base.wrapping_add(before);
        unmap(base, before);
        unmap(chunk.wrapping_add(CHUNK_BYTES), CHUNK_BYTES - before);
        // SAFETY: the range is mapped, and ours. It fails where there are no huge pages: then small
        // ones serve.
        unsafe { libc::madvise(chunk.cast(), CHUNK_BYTES, libc::MADV_HUGEPAGE) };
        Memory(NonNull::new(chunk).expect("the kernel maps nothing at zero unasked"))
    }
}

fn map(length: usize) -> *mut u8 {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new private mapping touches nothing that exists.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0) };
    assert_ne!(base, libc::MAP_FAILED, "no memory is left for a memory device");
    base.cast()
}

/// Gives back mapped memory that nothing refers to any more.
fn unmap(base: *mut u8, length: usize) {
    if length > 0 {
        // SAFETY: the callers pass parts of mappings of their own and forget them. It cannot fail for
        // whole pages of such; if it did, memory would leak.
        unsafe { libc::munmap(base.cast(), length) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        unmap(self.0.as_ptr(), CHUNK_BYTES);
    }
}

impl Deref for Memory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: as many initialised bytes are owned by self.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), CHUNK_BYTES) }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and self is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), CHUNK_BYTES) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_across_chunks() {
        let disk = MemoryDisk::new(4 << 20);
        let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 251) as u8).collect();
        disk.write(512, &bytes);
        let mut read = vec![9; bytes.len() + 1024];
        disk.read(0, &mut read);
        assert!(read[..512].iter().chain(&read[512 + bytes.len()..]).all(|byte| *byte == 0));
        assert_eq!(&read[512..512 + bytes.len()], &bytes);
    }

    #[test]
    fn memory_exists_from_the_first_write_until_it_is_zeroed() {
        let disk = MemoryDisk::new(8 << 20);
        disk.read(0, &mut [0; 4096]);
        disk.zero(0, 8 << 20);
        assert_eq!(disk.allocated_bytes(), 0);
        disk.write((4 << 20) - 512, &[7; 1024]);
        assert_eq!(disk.allocated_bytes(), 4 << 20);
        disk.zero(2 << 20, (2 << 20) + 512);
        assert_eq!(disk.allocated_bytes(), 2 << 20);
        let mut rest = [1; 512];
        disk.read(4 << 20, &mut rest);
        assert_eq!(rest, [0; 512]);
    }
}

//! Memory of buffers that are gone, kept by the thread that dropped them for its next ones: after a
//! while a reactor asks the allocator for nothing, and its buffers are warm in the cache.
//!
//! Sizes are rounded up to powers of two, so that a request of another length finds memory too. What
//! a thread keeps is bounded by [`KEPT_BYTES_MAX`]; beyond that memory goes back to the allocator.

use crate::ALIGNMENT;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

/// Most memory that a thread keeps for later, bytes.
pub const KEPT_BYTES_MAX: usize = 32 << 20;
/// Sizes from one page to 16 MiB.
const CLASSES: usize = 13;

/// Memory that is initialised, aligned to [`ALIGNMENT`], and nobody's but the holder's.
type Memory = NonNull<u8>;

struct Kept {
    /// By size class, last in first out.
    classes: [Vec<Memory>; CLASSES],
    bytes: usize,
}

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept { classes: [const { Vec::new() }; CLASSES], bytes: 0 }) };
}

impl Drop for Kept {
    fn drop(&mut self) {
        for (class, memories) in self.classes.iter_mut().enumerate() {
            memories.drain(..).for_each(|memory| release(memory, class));
        }
    }
}

/// The class of the smallest memory that holds `length` bytes. The length is 1 to 16 MiB.
fn class_of(length: usize) -> usize {
    let pages = length.div_ceil(ALIGNMENT);
    pages.next_power_of_two().trailing_zeros() as usize
}

fn bytes_of(class: usize) -> usize {
    ALIGNMENT << class
}

fn layout_of(class: usize) -> Layout {
    Layout::from_size_align(bytes_of(class), ALIGNMENT).expect("classes end at 16 MiB")
}

/// Memory for `length` bytes, 1 to 16 MiB. It holds zeroes, or what its last holder left there;
/// `true` says that it is zero.
pub(crate) fn take(length: usize) -> (Memory, bool) {
    let class = class_of(length);
    let kept = KEPT.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        let memory = kept.classes[class].pop()?;
        kept.bytes -= bytes_of(class);
        Some(memory)
    });
    if let Ok(Some(memory)) = kept {
        return (memory, false);
    }
    let layout = layout_of(class);
    // SAFETY: the layout has a size above zero.
    let memory = unsafe { alloc_zeroed(layout) };
    (NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout)), true)
}

/// Takes memory back that [`take`] gave for this length.
pub(crate) fn give(memory: Memory, length: usize) {
    let class = class_of(length);
    let kept = KEPT.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        let fits = kept.bytes + bytes_of(class) <= KEPT_BYTES_MAX;
        if fits {
            kept.classes[class].push(memory);
            kept.bytes += bytes_of(class);
        }
        fits
    });
    // The thread is ending, or keeps enough.
    if !kept.unwrap_or(false) {
        release(memory, class);
    }
}

fn release(memory: Memory, class: usize) {
    // SAFETY: every memory was allocated in `take` with the layout of its class, and is released
    // once: whoever calls this gives it up.
    unsafe { dealloc(memory.as_ptr(), layout_of(class)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Buffer;

    fn kept_bytes() -> usize {
        KEPT.with(|kept| kept.borrow().bytes)
    }

    #[test]
    fn a_thread_keeps_no_more_than_its_bound() {
        let buffers: Vec<Buffer> = (0..6).map(|_| Buffer::zeroed(8 << 20)).collect();
        drop(buffers);
        assert_eq!(kept_bytes(), KEPT_BYTES_MAX);
        drop(Buffer::zeroed(1));
        assert_eq!(kept_bytes(), KEPT_BYTES_MAX, "there was no room for another page");
    }

    #[test]
    fn memory_is_used_again_for_the_same_size_class() {
        let first = Buffer::zeroed(5_000);
        let address = first.as_ptr();
        drop(first);
        assert_eq!(kept_bytes(), 8_192);
        let second = Buffer::for_filling(8_192);
        assert_eq!((second.as_ptr(), kept_bytes()), (address, 0));
        assert_ne!(Buffer::zeroed(4_096).as_ptr(), address);
    }

    #[test]
    fn a_zeroed_buffer_holds_nothing_of_the_one_before() {
        let mut first = Buffer::zeroed(4_096);
        first.fill(7);
        drop(first);
        assert!(Buffer::zeroed(4_096).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_buffer_may_be_dropped_by_another_thread() {
        let buffer = Buffer::zeroed(12_288);
        std::thread::spawn(move || drop(buffer)).join().expect("dropping does not panic");
        assert_eq!(kept_bytes(), 0);
    }

    #[test]
    fn classes_are_powers_of_two_pages() {
        let classes = [1, 4_096, 4_097, 8_193, 16 << 20].map(class_of);
        assert_eq!(classes, [0, 0, 1, 2, CLASSES - 1]);
    }
}

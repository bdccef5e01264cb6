//! The io_uring of a reactor: sockets, wake-ups and the buffers that received bytes arrive in.
//!
//! Receives take a buffer from a ring of few large ones only when bytes have come, so that thousands
//! of idle connections hold no memory; a buffer goes back as soon as the protocol has seen it.

use io_uring::types::{self, BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use voute_buffer::Buffer;

/// Submission queue entries.
const ENTRIES: u32 = 1_024;
/// Receive buffers; a power of two.
const BUFFERS: u16 = 32;
/// Length of one, bytes.
const BUFFER_BYTES: usize = 256 << 10;
const BUFFER_GROUP: u16 = 0;

/// What an entry was for; carried in its user data with a 56-bit key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Accept = 1,
    Receive = 2,
    Send = 3,
    Connect = 4,
    Wake = 5,
    Devices = 6,
    Cancel = 7,
}

/// One completion.
pub(crate) struct Completed {
    pub(crate) purpose: Purpose,
    pub(crate) key: u64,
    pub(crate) result: i32,
    /// More completions of the same entry follow.
    pub(crate) more: bool,
    /// The buffer that holds what was received.
    pub(crate) buffer: Option<u16>,
}

pub(crate) struct Ring {
    ring: IoUring,
    buffers: BufferRing,
    /// Entries that found the queue full; as many as there are sockets at most.
    overflow: VecDeque<squeue::Entry>,
}

impl Ring {
    /// A ring with the best set-up that this kernel has.
    pub(crate) fn new() -> io::Result<Self> {
        let ring = build()?;
        let buffers = BufferRing::register(&ring)?;
        Ok(Ring { ring, buffers, overflow: VecDeque::new() })
    }

    fn push(&mut self, entry: squeue::Entry, purpose: Purpose, key: u64) {
        let entry = entry.user_data((purpose as u64) << 56 | key);
        // SAFETY: the callers keep what an entry points to alive until its completion: see each.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.overflow.push_back(entry);
        }
    }

    /// Accepts until the socket is closed or an error comes.
    pub(crate) fn accept(&mut self, socket: RawFd, key: u64) {
        let flags = libc::SOCK_CLOEXEC;
        self.push(opcode::AcceptMulti::new(Fd(socket)).flags(flags).build(), Purpose::Accept, key);
    }

    /// Receives once, into one of the ring's buffers.
    pub(crate) fn receive(&mut self, socket: RawFd, key: u64) {
        let entry = opcode::Recv::new(Fd(socket), std::ptr::null_mut(), BUFFER_BYTES as u32)
            .buf_group(BUFFER_GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(entry, Purpose::Receive, key);
    }

    /// Sends all of `bytes`, unless the connection breaks.
    ///
    /// # Safety
    /// `bytes` must stay where it is, unchanged, until the completion.
    pub(crate) unsafe fn send(&mut self, socket: RawFd, key: u64, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(Fd(socket), bytes.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(entry, Purpose::Send, key);
    }

    /// Connects.
    ///
    /// # Safety
    /// `address` must stay where it is, unchanged, until the completion.
    pub(crate) unsafe fn connect(&mut self, socket: RawFd, key: u64, address: &socket2::SockAddr) {
        let entry =
            opcode::Connect::new(Fd(socket), address.as_ptr().cast(), address.len()).build();
        self.push(entry, Purpose::Connect, key);
    }

    /// Ends an entry early; its completion still comes.
    pub(crate) fn cancel(&mut self, purpose: Purpose, key: u64) {
        let entry = opcode::AsyncCancel::new((purpose as u64) << 56 | key).build();
        self.push(entry, Purpose::Cancel, 0);
    }

    /// Ends all entries early.
    pub(crate) fn cancel_everything(&mut self) {
        let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        self.push(entry, Purpose::Cancel, 0);
    }

    /// Tells when a descriptor becomes readable: once, or each time.
    pub(crate) fn poll(&mut self, descriptor: RawFd, purpose: Purpose, each_time: bool) {
        let entry =
            opcode::PollAdd::new(Fd(descriptor), libc::POLLIN as u32).multi(each_time).build();
        self.push(entry, purpose, 0);
    }

    /// Hands entries to the kernel and lets it put what is done into the completion queue; waits for
    /// something up to `wait`, if given.
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.refill();
        let entered = match wait {
            None => {
                let mut submission = self.ring.submission();
                submission.sync();
                if submission.is_empty() && !submission.taskrun() && !submission.cq_overflow() {
                    return Ok(());
                }
                drop(submission);
                self.ring.submit()
            }
            Some(wait) => {
                let time = Timespec::new().sec(wait.as_secs()).nsec(wait.subsec_nanos());
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Time is up; a signal came; too many completions wait to be reaped first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn refill(&mut self) {
        while let Some(entry) = self.overflow.front() {
            // SAFETY: as in `push`.
            if unsafe { self.ring.submission().push(entry) }.is_err() {
                return;
            }
            self.overflow.pop_front();
        }
    }

    /// Moves what has completed into `completed`.
    pub(crate) fn reap(&mut self, completed: &mut Vec<Completed>) {
        for entry in self.ring.completion() {
            let purpose = match entry.user_data() >> 56 {
                1 => Purpose::Accept,
                2 => Purpose::Receive,
                3 => Purpose::Send,
                4 => Purpose::Connect,
                5 => Purpose::Wake,
                6 => Purpose::Devices,
                _ => Purpose::Cancel,
            };
            completed.push(Completed {
                purpose,
                key: entry.user_data() & ((1 << 56) - 1),
                result: entry.result(),
                more: cqueue::more(entry.flags()),
                buffer: cqueue::buffer_select(entry.flags()),
            });
        }
    }

    /// What was received into a buffer.
    pub(crate) fn received(&self, buffer: u16, length: usize) -> &[u8] {
        self.buffers.bytes(buffer, length)
    }

    /// Gives a buffer back.
    pub(crate) fn recycle(&mut self, buffer: u16) {
        self.buffers.give(buffer);
    }
}

/// Deferred task running belongs to one thread and spares it interrupts (6.1); where it is refused
/// the plain ring does.
fn build() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_cqsize(ENTRIES * 8);
    let mut tuned = builder.clone();
    tuned
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all();
    tuned.build(ENTRIES).or_else(|_| builder.build(ENTRIES))
}

/// Buffers that the kernel picks from by itself (5.19).
struct BufferRing {
    /// The ring of entries, page-aligned, shared with the kernel.
    entries: Buffer,
    memory: Vec<Buffer>,
    tail: u16,
}

impl BufferRing {
    fn register(ring: &IoUring) -> io::Result<Self> {
        let entries = Buffer::zeroed(usize::from(BUFFERS) * size_of::<BufRingEntry>());
        let memory = (0..BUFFERS).map(|_| Buffer::zeroed(BUFFER_BYTES)).collect();
        let mut buffers = BufferRing { entries, memory, tail: 0 };
        let address = buffers.base().as_ptr() as u64;
        // SAFETY: the entries live as long as `Ring`, whose drop closes the io_uring first.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(address, BUFFERS, BUFFER_GROUP, 0)?
        };
        (0..BUFFERS).for_each(|buffer| buffers.give(buffer));
        Ok(buffers)
    }

    fn base(&mut self) -> NonNull<BufRingEntry> {
        NonNull::from(&mut *self.entries).cast()
    }

    fn give(&mut self, buffer: u16) {
        let base = self.base().as_ptr();
        let memory = &mut self.memory[usize::from(buffer)];
        let (address, length) = (memory.as_mut_ptr() as u64, memory.len() as u32);
        // SAFETY: the index is within the ring; this entry is ours until the tail moves over it.
        let entry = unsafe { &mut *base.add(usize::from(self.tail % BUFFERS)) };
        entry.set_addr(address);
        entry.set_len(length);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the kernel reads the tail from the first entry's reserved field, which no other
        // access of ours touches; an atomic store publishes the entry above.
        unsafe {
            (*BufRingEntry::tail(base).cast::<AtomicU16>()).store(self.tail, Ordering::Release)
        };
    }

    fn bytes(&self, buffer: u16, length: usize) -> &[u8] {
        self.memory.get(usize::from(buffer)).and_then(|memory| memory.get(..length)).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    fn next(ring: &mut Ring) -> Completed {
        let mut completed = Vec::new();
        while completed.is_empty() {
            ring.enter(Some(Duration::from_secs(5))).unwrap();
            ring.reap(&mut completed);
        }
        assert_eq!(completed.len(), 1);
        completed.pop().unwrap()
    }

    #[test]
    fn bytes_come_and_go_through_the_ring() {
        let mut ring = Ring::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for round in 0..3 * u32::from(BUFFERS) {
            theirs.write_all(&round.to_le_bytes()).unwrap();
            ring.receive(ours.as_raw_fd(), 7);
            let done = next(&mut ring);
            assert_eq!((done.purpose, done.key, done.result), (Purpose::Receive, 7, 4));
            let buffer = done.buffer.expect("a receive picks a buffer");
            assert_eq!(ring.received(buffer, 4), round.to_le_bytes());
            ring.recycle(buffer);
        }
        let bytes = vec![5; 100_000];
        // SAFETY: `bytes` outlives the completion awaited below.
        unsafe { ring.send(ours.as_raw_fd(), 9, &bytes) };
        ring.enter(None).unwrap();
        let mut back = vec![0; bytes.len()];
        theirs.read_exact(&mut back).unwrap();
        assert_eq!(next(&mut ring).result, 100_000);
        assert_eq!(back, bytes);
    }

    #[test]
    fn everything_can_be_cancelled() {
        let mut ring = Ring::new().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ring.receive(ours.as_raw_fd(), 1);
        ring.enter(None).unwrap();
        ring.cancel_everything();
        let mut completed = Vec::new();
        while completed.len() < 2 {
            ring.enter(Some(Duration::from_secs(5))).unwrap();
            ring.reap(&mut completed);
        }
        let receive = completed.iter().find(|one| one.purpose == Purpose::Receive).unwrap();
        assert_eq!(receive.result, -libc::ECANCELED);
    }
}

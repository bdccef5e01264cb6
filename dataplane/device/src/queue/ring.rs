//! The io_uring of a queue: entries in, completions out, nothing blocks but `drain`.

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

/// `user_data` of the watch on the mailbox.
pub(super) const MAILBOX: u64 = u64::MAX;
/// How long `drain` waits for the kernel.
const DRAIN_MAX: Duration = Duration::from_secs(30);

pub(super) struct Ring {
    ring: IoUring,
    /// Entries for which the submission queue had no room; as many as there are operations.
    waiting: VecDeque<squeue::Entry>,
    /// Entries given to the ring, the watch apart, whose completion was not taken.
    out: usize,
    /// The descriptor whose readability completes as [`MAILBOX`], once there is one.
    watched: Option<RawFd>,
}

impl Ring {
    /// Completions are posted while this thread is in the kernel, for whatever reason, and are
    /// announced by a flag until then (Linux 5.19); where the kernel does not know that, they
    /// interrupt it. Deferred task work would save a little more, but then a poll on the ring's
    /// descriptor does not wake for completions of work that the kernel did in the background.
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        let mut flagged = IoUring::builder();
        flagged.setup_coop_taskrun().setup_taskrun_flag().setup_clamp();
        let single = flagged.clone().setup_single_issuer().build(entries);
        let ring = single
            .or_else(|_| flagged.build(entries))
            .or_else(|_| IoUring::builder().setup_clamp().build(entries))?;
        if !ring.params().is_feature_nodrop() {
            return Err(io::Error::other("io_uring loses completions here: Linux 5.5 is needed"));
        }
        Ok(Ring { ring, waiting: VecDeque::new(), out: 0, watched: None })
    }

    /// Makes the ring readable when `descriptor` is.
    pub(super) fn watch(&mut self, descriptor: RawFd) {
        if self.watched.is_none() {
            self.watched = Some(descriptor);
            self.arm(descriptor);
        }
    }

    fn arm(&mut self, descriptor: RawFd) {
        let poll = opcode::PollAdd::new(types::Fd(descriptor), libc::POLLIN as u32);
        // SAFETY: the entry names no memory.
        unsafe { self.enqueue(poll.build().user_data(MAILBOX)) };
    }

    /// Queues an entry.
    ///
    /// # Safety
    /// What the entry names stays valid until its completion was taken.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        self.out += 1;
        // SAFETY: the caller's promise.
        unsafe { self.enqueue(entry) };
    }

    /// # Safety
    /// As for [`push`](Self::push).
    unsafe fn enqueue(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller's promise.
        if !self.waiting.is_empty() || unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.waiting.push_back(entry);
        }
    }

    /// Gives queued entries to the kernel. What it does not take now stays queued.
    pub(super) fn flush(&mut self) {
        loop {
            if self.ring.submission().is_empty() && self.waiting.is_empty() {
                return;
            }
            match self.ring.submit() {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                // EAGAIN, EBUSY: the kernel has no room now; the entries stay where they are.
                Err(_) => return,
            }
            self.refill();
        }
    }

    fn refill(&mut self) {
        let mut submission = self.ring.submission();
        while let Some(entry) = self.waiting.front() {
            // SAFETY: promised to `push`, which took this entry.
            if unsafe { submission.push(entry) }.is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// The next completion: `user_data` and result. Enters the kernel only if it has some that it
    /// could not post yet.
    pub(super) fn next_completion(&mut self) -> Option<(u64, i32)> {
        if let Some(entry) = self.take() {
            return Some(entry);
        }
        let submission = self.ring.submission();
        if !submission.taskrun() && !submission.cq_overflow() {
            return None;
        }
        drop(submission);
        // With these flags set it also runs deferred work; an error leaves it for the next call.
        let _ = self.ring.submit();
        self.take()
    }

    fn take(&mut self) -> Option<(u64, i32)> {
        let entry: cqueue::Entry = self.ring.completion().next()?;
        if entry.user_data() == MAILBOX {
            if let Some(descriptor) = self.watched {
                self.arm(descriptor);
            }
        } else {
            self.out -= 1;
        }
        Some((entry.user_data(), entry.result()))
    }

    /// Waits until the kernel has finished with every entry. False if it has not after
    /// [`DRAIN_MAX`].
    pub(super) fn drain(&mut self) -> bool {
        let deadline = Instant::now() + DRAIN_MAX;
        // Entries that the kernel never saw need not be carried out.
        self.out -= self.waiting.iter().filter(|entry| entry.get_user_data() != MAILBOX).count();
        self.waiting.clear();
        self.watched = None;
        while self.out > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let wait = types::Timespec::from(left.min(Duration::from_secs(1)));
            let arguments = types::SubmitArgs::new().timespec(&wait);
            // ETIME, EINTR, EAGAIN: asked again until the deadline.
            let _ = self.ring.submitter().submit_with_args(1, &arguments);
            while self.next_completion().is_some() {}
        }
        true
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and outlives the borrow of self.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

//! The io_uring of a reactor: it accepts, connects, wakes, and says which sockets have input or room.
//!
//! Bytes do not go through it: a receive or send that can do something at once is cheaper as a system
//! call of its own than as an entry, a wake-up of the entry and a completion, and it lets data go
//! straight where it will rest, without memory being in the kernel's hands meanwhile.

use io_uring::types::{self, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Submission queue entries.
const ENTRIES: u32 = 1_024;

/// What an entry was for; carried in its user data with a 56-bit key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Accept = 1,
    Input = 2,
    Room = 3,
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
}

pub(crate) struct Ring {
    ring: IoUring,
    /// Entries that found the queue full; as many as there are sockets at most.
    overflow: VecDeque<squeue::Entry>,
}

impl Ring {
    /// A ring with the best set-up that this kernel has.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Ring { ring: build()?, overflow: VecDeque::new() })
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

    /// Tells once when a socket has input, or is of no use any more.
    pub(crate) fn watch_input(&mut self, socket: RawFd, key: u64) {
        let entry = opcode::PollAdd::new(Fd(socket), libc::POLLIN as u32).build();
        self.push(entry, Purpose::Input, key);
    }

    /// Tells once when a socket has room, or is of no use any more.
    pub(crate) fn watch_room(&mut self, socket: RawFd, key: u64) {
        let entry = opcode::PollAdd::new(Fd(socket), libc::POLLOUT as u32).build();
        self.push(entry, Purpose::Room, key);
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
                2 => Purpose::Input,
                3 => Purpose::Room,
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
            });
        }
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
    fn input_and_room_are_told_once_each_time_they_are_watched() {
        let mut ring = Ring::new().unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        for round in 0..3 {
            ring.watch_input(ours.as_raw_fd(), round);
            ring.enter(None).unwrap();
            theirs.write_all(&[7]).unwrap();
            let told = next(&mut ring);
            assert_eq!((told.purpose, told.key, told.result), (Purpose::Input, round, 1));
            ours.read_exact(&mut [0]).unwrap();
        }
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 4096]).is_ok() {}
        ring.watch_room(ours.as_raw_fd(), 9);
        ring.enter(None).unwrap();
        let mut completed = Vec::new();
        ring.reap(&mut completed);
        assert!(completed.is_empty(), "nobody has read yet");
        theirs.set_nonblocking(true).unwrap();
        while theirs.read(&mut [0; 4096]).is_ok() {}
        let told = next(&mut ring);
        assert_eq!((told.purpose, told.key), (Purpose::Room, 9));
    }

    #[test]
    fn a_watch_ends_when_the_socket_is_shut_down() {
        let mut ring = Ring::new().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ring.watch_input(ours.as_raw_fd(), 4);
        ring.enter(None).unwrap();
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(next(&mut ring).key, 4);
    }

    #[test]
    fn everything_can_be_cancelled() {
        let mut ring = Ring::new().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ring.watch_input(ours.as_raw_fd(), 1);
        ring.enter(None).unwrap();
        ring.cancel_everything();
        let mut completed = Vec::new();
        while completed.len() < 2 {
            ring.enter(Some(Duration::from_secs(5))).unwrap();
            ring.reap(&mut completed);
        }
        let watch = completed.iter().find(|one| one.purpose == Purpose::Input).unwrap();
        assert_eq!(watch.result, -libc::ECANCELED);
    }
}

//! What a connection hands to the kernel: bytes, and buffers that go out between them.
//!
//! A send is one system call for all that waits, up to [`PIECES_MAX`] pieces; what the socket has no
//! room for stays, and goes on where it stopped.

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use voute_buffer::Inset;

/// Most pieces of one system call. The kernel takes 1024; beyond a few, sending more at once gains
/// nothing.
const PIECES_MAX: usize = 64;
/// Memory for bytes beyond this is not kept for the next send, bytes.
const KEPT_BYTES_MAX: usize = 2 << 20;

#[derive(Default)]
pub(crate) struct Sending {
    pub(crate) bytes: Vec<u8>,
    /// In order of where they belong.
    pub(crate) insets: VecDeque<Inset>,
    /// How many of `bytes` are sent.
    bytes_sent: usize,
    /// How much of the first inset is sent.
    inset_sent: usize,
}

/// How far a send came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// Everything.
    All,
    /// The socket has no room for the rest now.
    Some,
    /// The socket is of no use any more.
    Broken,
}

impl Sending {
    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes_sent == self.bytes.len() && self.insets.is_empty()
    }

    /// Gives what was sent back, so that its memory is used for what comes next. Only when it is empty.
    pub(crate) fn rewind(&mut self) {
        debug_assert!(self.is_empty(), "what waits must not be forgotten");
        (self.bytes_sent, self.inset_sent) = (0, 0);
        match self.bytes.capacity() > KEPT_BYTES_MAX {
            true => self.bytes = Vec::new(),
            false => self.bytes.clear(),
        }
    }

    /// Sends as much as the socket takes without waiting.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> Sent {
        while !self.is_empty() {
            match self.send_once(socket) {
                Ok(0) => return Sent::Broken,
                Ok(length) => self.advance(length),
                Err(Errno::AGAIN) => return Sent::Some,
                Err(Errno::INTR) => {}
                Err(_) => return Sent::Broken,
            }
        }
        Sent::All
    }

    fn send_once(&self, socket: BorrowedFd<'_>) -> Result<usize, Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if self.insets.is_empty() {
            return send(socket, &self.bytes[self.bytes_sent..], flags);
        }
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let mut count = 0;
        for piece in self.pieces().filter(|piece| !piece.is_empty()).take(PIECES_MAX) {
            pieces[count] = IoSlice::new(piece);
            count += 1;
        }
        sendmsg(socket, &pieces[..count], &mut SendAncillaryBuffer::default(), flags)
    }

    /// What is not sent, in order.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let (mut at, mut skip) = (self.bytes_sent, self.inset_sent);
        let around = self.insets.iter().flat_map(move |inset| {
            let pair = [&self.bytes[at..inset.at], &inset.bytes[skip..]];
            (at, skip) = (inset.at, 0);
            pair
        });
        let last = self.insets.back().map_or(self.bytes_sent, |inset| inset.at);
        around.chain([&self.bytes[last..]])
    }

    /// The first `length` bytes of what was not sent are.
    fn advance(&mut self, mut length: usize) {
        loop {
            let before = self.insets.front().map_or(self.bytes.len(), |inset| inset.at);
            let plain = length.min(before - self.bytes_sent);
            self.bytes_sent += plain;
            length -= plain;
            let Some(inset) = self.insets.front() else { return };
            let more = length.min(inset.bytes.len() - self.inset_sent);
            self.inset_sent += more;
            length -= more;
            if self.bytes_sent < inset.at || self.inset_sent < inset.bytes.len() {
                return;
            }
            self.insets.pop_front();
            self.inset_sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use voute_buffer::Buffer;

    /// Sending of `parts`: bytes where even, insets where odd; and what is to arrive.
    fn sending(parts: &[usize]) -> (Sending, Vec<u8>) {
        let (mut sending, mut all) = (Sending::default(), Vec::new());
        for (index, length) in parts.iter().enumerate() {
            let part: Vec<u8> = (0..*length).map(|at| (at + 31 * index) as u8).collect();
            all.extend_from_slice(&part);
            match index % 2 {
                0 => sending.bytes.extend_from_slice(&part),
                _ => {
                    let (at, bytes) = (sending.bytes.len(), Buffer::copy_of(&part));
                    sending.insets.push_back(Inset { at, bytes });
                }
            }
        }
        (sending, all)
    }

    proptest! {
        #[test]
        fn what_arrives_is_bytes_and_insets_in_order(
            parts in proptest::collection::vec(0usize..3_000, 0..150),
            taken in proptest::collection::vec(1usize..9_000, 1..8),
        ) {
            let (mut sending, all) = sending(&parts);
            let mut arrived = Vec::new();
            for length in taken.iter().cycle() {
                let waiting: Vec<u8> = sending.pieces().flatten().copied().collect();
                if waiting.is_empty() {
                    break;
                }
                let length = waiting.len().min(*length);
                arrived.extend_from_slice(&waiting[..length]);
                sending.advance(length);
            }
            prop_assert!(arrived == all);
            sending.advance(0);
            prop_assert!(sending.is_empty());
        }
    }

    #[test]
    fn a_full_socket_takes_the_rest_later() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let (mut sending, all) = sending(&[24, 1 << 20, 48, 1 << 20, 24, 1 << 20, 9]);
        let mut arrived = vec![0; all.len()];
        let mut at = 0;
        assert_eq!(sending.send(ours.as_fd()), Sent::Some, "no socket holds three megabytes");
        while at < all.len() {
            at += theirs.read(&mut arrived[at..]).expect("there is more");
            assert_ne!(sending.send(ours.as_fd()), Sent::Broken);
        }
        assert!(arrived == all && sending.is_empty());
        drop(theirs);
        sending.rewind();
        sending.bytes.push(1);
        assert_eq!(sending.send(ours.as_fd()), Sent::Broken);
    }
}

//! From what a host's protocol asks to what a mirror does, and back. Most operations are one request
//! to the mirror; comparisons, ORWRITE and transfers over the mirror's limit are several.
//!
//! ```text
//! Whole ──────────────────────────────► its outcome
//! Parts (ranges, long writes) ────────► done when the last is
//! Gather (long reads) ────────────────► data when the last part is there
//! Compare: read a chunk ─► equal ─► next chunk … ─► done │ different ─► miscompare
//! WriteThenCompare: parts, then Compare
//! OrWrite: read a chunk ─► compare and write ─► next chunk │ changed meanwhile ─► read again
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use voute_buffer::Buffer;
use voute_mirror::{HostOperation, HostOutcome, Payload, TRANSFER_MAX};

/// How often an ORWRITE starts over when others write the same blocks meanwhile.
const OR_WRITE_TRIES_MAX: u32 = 16;

/// What a host wants, whatever its protocol; offsets and lengths in bytes.
#[derive(Debug)]
pub(crate) enum Work {
    Read { offset: u64, length: u64 },
    Write { offset: u64, data: Buffer },
    WriteWhole { offset: u64, data: Buffer },
    Zero { ranges: Vec<(u64, u64)>, deallocate: bool },
    Compare { offset: u64, data: Buffer },
    CompareAndWrite { offset: u64, expected: Buffer, data: Buffer },
    WriteAndCompare { offset: u64, data: Buffer },
    OrWrite { offset: u64, data: Buffer },
    Verify { offset: u64, length: u64 },
    Flush,
}

/// Requests to the mirror that came out of one step: the part's number and the request.
pub(crate) type Requests = VecDeque<(u16, HostOperation)>;

/// One operation of a host under way.
pub(crate) struct Translation {
    state: State,
    /// Parts not yet answered.
    waiting: u32,
    failure: Option<HostOutcome>,
}

enum State {
    Whole,
    Parts,
    Gather { buffer: Buffer },
    Compare { offset: u64, data: Buffer, at: usize },
    WriteThenCompare { offset: u64, data: Buffer },
    Verify { next: u64, end: u64 },
    OrWrite { offset: u64, data: Buffer, at: usize, tries: u32, is_read: bool },
}

const CHUNK: usize = TRANSFER_MAX as usize;

fn chunk(at: usize, length: usize) -> usize {
    CHUNK.min(length - at)
}

impl Translation {
    /// Begins an operation; puts the first requests into `requests`. An operation that asks for
    /// nothing (no ranges) is done at once: it is `None`.
    pub(crate) fn begin(work: Work, requests: &mut Requests) -> Option<Self> {
        let before = requests.len();
        let state = match work {
            Work::Flush => whole(requests, HostOperation::Flush),
            Work::Read { offset, length } if length <= CHUNK as u64 => {
                let length = u32::try_from(length).expect("at most a chunk");
                whole(requests, HostOperation::Read { offset, length })
            }
            Work::Read { offset, length } => {
                let buffer = Buffer::for_filling(usize::try_from(length).unwrap_or(usize::MAX));
                reads(requests, offset, buffer.len());
                State::Gather { buffer }
            }
            Work::Write { offset, data } if data.len() <= CHUNK => {
                whole(requests, HostOperation::Write { offset, data: Arc::new(data) })
            }
            Work::Write { offset, data } => {
                writes(requests, offset, &data);
                State::Parts
            }
            Work::WriteWhole { offset, data } => {
                whole(requests, HostOperation::WriteWhole { offset, data: Arc::new(data) })
            }
            Work::CompareAndWrite { offset, expected, data } => whole(
                requests,
                HostOperation::CompareAndWrite {
                    offset,
                    expected: Arc::new(expected),
                    data: Arc::new(data),
                },
            ),
            Work::Zero { ranges, deallocate } => {
                for (part, (offset, length)) in (0u16..).zip(ranges) {
                    requests.push_back((part, HostOperation::Zero { offset, length, deallocate }));
                }
                State::Parts
            }
            Work::Compare { offset, data } => {
                read_chunk(requests, offset, 0, data.len());
                State::Compare { offset, data, at: 0 }
            }
            Work::WriteAndCompare { offset, data } => {
                writes(requests, offset, &data);
                State::WriteThenCompare { offset, data }
            }
            Work::Verify { offset, length } => {
                let first = length.min(CHUNK as u64);
                let length32 = u32::try_from(first).expect("at most a chunk");
                requests.push_back((0, HostOperation::Read { offset, length: length32 }));
                State::Verify { next: offset + first, end: offset + length }
            }
            Work::OrWrite { offset, data } => {
                read_chunk(requests, offset, 0, data.len());
                State::OrWrite { offset, data, at: 0, tries: 0, is_read: false }
            }
        };
        let waiting = u32::try_from(requests.len() - before).expect("parts are bounded");
        (waiting > 0).then_some(Translation { state, waiting, failure: None })
    }

    /// Takes the outcome of one part. `Some`: the operation is over. `None`: it goes on, perhaps with
    /// further requests.
    pub(crate) fn answered(
        &mut self,
        part: u16,
        outcome: HostOutcome,
        requests: &mut Requests,
    ) -> Option<HostOutcome> {
        self.waiting = self.waiting.saturating_sub(1);
        if let State::Whole = self.state {
            return Some(outcome);
        }
        let before = requests.len();
        let ended = self.step(part, outcome, requests);
        self.waiting += u32::try_from(requests.len() - before).expect("parts are bounded");
        if ended.is_some() && self.waiting > 0 {
            // Nothing is cancelled: the outcome waits for the other parts.
            self.failure = ended;
            return None;
        }
        match self.failure.take() {
            Some(failure) if self.waiting == 0 => Some(failure),
            Some(failure) => {
                self.failure = Some(failure);
                None
            }
            None => ended,
        }
    }

    fn step(
        &mut self,
        part: u16,
        outcome: HostOutcome,
        requests: &mut Requests,
    ) -> Option<HostOutcome> {
        let last = self.waiting == 0;
        match (&mut self.state, outcome) {
            (State::Parts, HostOutcome::Done) => last.then_some(HostOutcome::Done),
            (State::Gather { buffer }, HostOutcome::Data(data)) => {
                let at = usize::from(part) * CHUNK;
                let Some(room) = buffer.get_mut(at..at + data.len()) else {
                    return Some(HostOutcome::PathError);
                };
                room.copy_from_slice(&data);
                last.then(|| HostOutcome::Data(std::mem::replace(buffer, Buffer::zeroed(0))))
            }
            (State::WriteThenCompare { offset, data }, HostOutcome::Done) => {
                if last && self.failure.is_none() {
                    let (offset, data) = (*offset, std::mem::replace(data, Buffer::zeroed(0)));
                    read_chunk(requests, offset, 0, data.len());
                    self.state = State::Compare { offset, data, at: 0 };
                }
                None
            }
            (State::Compare { offset, data, at }, HostOutcome::Data(found)) => {
                let expected = data.get(*at..*at + found.len()).unwrap_or(&[]);
                if let Some(different) = first_difference(expected, &found) {
                    let at = u32::try_from(*at + different).unwrap_or(u32::MAX);
                    return Some(HostOutcome::Miscompare { at });
                }
                *at += found.len();
                if *at >= data.len() {
                    return Some(HostOutcome::Done);
                }
                read_chunk(requests, *offset, *at, data.len());
                None
            }
            (State::Verify { next, end }, HostOutcome::Data(_)) => {
                if *next >= *end {
                    return Some(HostOutcome::Done);
                }
                let length = (*end - *next).min(CHUNK as u64);
                let length32 = u32::try_from(length).expect("at most a chunk");
                requests.push_back((0, HostOperation::Read { offset: *next, length: length32 }));
                *next += length;
                None
            }
            (State::OrWrite { offset, data, at, is_read, .. }, HostOutcome::Data(found)) => {
                *is_read = true;
                let bits = data.get(*at..*at + found.len()).unwrap_or(&[]);
                let mut joined = Buffer::copy_of(&found);
                joined.iter_mut().zip(bits).for_each(|(byte, bits)| *byte |= bits);
                let request = HostOperation::CompareAndWrite {
                    offset: *offset + *at as u64,
                    expected: Arc::new(found),
                    data: Arc::new(joined),
                };
                requests.push_back((0, request));
                None
            }
            (State::OrWrite { offset, data, at, is_read, tries }, HostOutcome::Done)
                if *is_read =>
            {
                *at += chunk(*at, data.len());
                (*is_read, *tries) = (false, 0);
                if *at >= data.len() {
                    return Some(HostOutcome::Done);
                }
                read_chunk(requests, *offset, *at, data.len());
                None
            }
            (
                State::OrWrite { offset, data, at, is_read, tries },
                HostOutcome::Miscompare { .. },
            ) => {
                (*is_read, *tries) = (false, *tries + 1);
                if *tries >= OR_WRITE_TRIES_MAX {
                    return Some(HostOutcome::Busy);
                }
                read_chunk(requests, *offset, *at, data.len());
                None
            }
            (_, failure) => Some(failure),
        }
    }
}

fn whole(requests: &mut Requests, operation: HostOperation) -> State {
    requests.push_back((0, operation));
    State::Whole
}

fn read_chunk(requests: &mut Requests, offset: u64, at: usize, length: usize) {
    let length = u32::try_from(chunk(at, length)).expect("at most a chunk");
    requests.push_back((0, HostOperation::Read { offset: offset + at as u64, length }));
}

fn reads(requests: &mut Requests, offset: u64, length: usize) {
    for (part, at) in (0u16..).zip((0..length).step_by(CHUNK)) {
        let length = u32::try_from(chunk(at, length)).expect("at most a chunk");
        requests.push_back((part, HostOperation::Read { offset: offset + at as u64, length }));
    }
}

fn writes(requests: &mut Requests, offset: u64, data: &Buffer) {
    for (part, at) in (0u16..).zip((0..data.len()).step_by(CHUNK)) {
        let data: Payload = Arc::new(Buffer::copy_of(&data[at..at + chunk(at, data.len())]));
        requests.push_back((part, HostOperation::Write { offset: offset + at as u64, data }));
    }
}

/// Where two equally long ranges differ first; different lengths differ at the shorter one's end.
fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    if one == other {
        return None;
    }
    Some(one.iter().zip(other).take_while(|(one, other)| one == other).count())
}

#[cfg(test)]
mod tests;

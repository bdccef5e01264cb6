//! One TCP connection: PDU framing, digests, and the phases it goes through.
//!
//! ```text
//!   login ──► full feature ──► closing
//!     └───────────────────────────▲   (refusal, protocol error, silence, end of the session)
//! ```
//!
//! Data segments of writes go straight from the received slice into the request's buffer.

use crate::full_feature::FullFeature;
use crate::login::{Login, Next};
use crate::negotiation::{LOGIN_LENGTH_MAX, RECEIVE_LENGTH_MAX};
use crate::pdu::{self, Crc, Digests, HEADER_LENGTH, HEADER_LENGTH_MAX, Header, opcode, padding};
use crate::request::{Outcome, Request, Tag};
use crate::target::{PortalId, Target};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Inset;

/// A login must be over by then.
const LOGIN_TIME_MAX: Duration = Duration::from_secs(15);
/// Silence after which the host is asked for a sign of life, and after which, if it gives none, the
/// connection is closed.
const PING_AFTER: Duration = Duration::from_secs(5);
/// How often waiting for another session's requests is looked at.
const WAIT_STEP: Duration = Duration::from_millis(5);
/// Unsent output above which no more input is wanted, bytes.
pub(crate) const OUTPUT_HIGH: usize = 8 << 20;
/// Most input kept while a predecessor's requests end, bytes.
const HELD_INPUT_MAX: usize = 4 << 20;

/// Where a data segment's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sink {
    /// Collected for the end of the PDU.
    Collect,
    /// Into a task's buffer from this offset on; what does not fit is dropped.
    Task { slot: usize, offset: u32 },
    /// Nowhere, and the PDU is not looked at further.
    Ignore,
}

/// The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fatal {
    #[error("a header digest does not match")]
    HeaderDigest,
    #[error("a PDU breaks the protocol")]
    Protocol,
}

enum Phase {
    Login(Box<Login>),
    Full(Box<FullFeature>),
    /// No session: refused, or not begun since the portal is unknown.
    Over,
}

/// One connection of a target. It holds no socket: bytes go in and out by its methods.
///
/// After the socket has closed, tell it by [`disconnected`](Self::disconnected) and keep the value
/// until [`outstanding`](Self::outstanding) is zero, so that a successor of the session waits for the
/// requests still with their volumes.
pub struct TargetConnection {
    target: Arc<Target>,
    phase: Phase,
    input: Input,
    held_input: Vec<u8>,
    output: Vec<u8>,
    /// [`TargetConnection::inset_from`].
    inset_min: usize,
    is_closing: bool,
    now: Duration,
    started: Duration,
    last_heard: Duration,
    pinged: Option<Duration>,
}

impl TargetConnection {
    /// A connection accepted on `portal`; `now` is time since any fixed start. Without a portal of
    /// that id in the published directory it closes at once.
    #[must_use]
    pub fn new(target: Arc<Target>, portal: PortalId, now: Duration) -> Self {
        let phase = match target.directory().portal(portal) {
            Some(portal) => Phase::Login(Box::new(Login::new(portal.clone()))),
            None => Phase::Over,
        };
        let is_closing = matches!(phase, Phase::Over);
        TargetConnection {
            target,
            phase,
            input: Input::new(),
            held_input: Vec::new(),
            output: Vec::new(),
            inset_min: usize::MAX,
            is_closing,
            now,
            started: now,
            last_heard: now,
            pinged: None,
        }
    }

    /// Takes received bytes, fragmented in any way.
    pub fn receive(&mut self, bytes: &[u8], now: Duration) {
        self.now = now;
        self.last_heard = now;
        self.pinged = None;
        self.notice_end();
        if self.is_closing {
            return;
        }
        if self.is_held() {
            if self.held_input.len() + bytes.len() > HELD_INPUT_MAX {
                self.close();
            } else {
                self.held_input.extend_from_slice(bytes);
            }
            return;
        }
        self.consume(bytes);
    }

    /// The next operation for a volume. To be called until None after each `receive`, `complete`,
    /// `tick`, and after output was sent: what may be in flight at once is bounded.
    pub fn next_request(&mut self) -> Option<Request> {
        self.notice_end();
        if self.is_closing {
            return None;
        }
        match &mut self.phase {
            Phase::Full(full) => full.next_request(&mut self.output),
            Phase::Login(_) | Phase::Over => None,
        }
    }

    /// Tells how a surfaced request ended: exactly once per request, also after the connection has
    /// closed. Unknown tags are ignored.
    pub fn complete(&mut self, tag: Tag, outcome: Outcome) {
        self.notice_end();
        if let Phase::Full(full) = &mut self.phase {
            full.complete(tag, outcome, &mut self.output, self.is_closing);
            self.settle_full();
        }
    }

    /// Bytes to send. The caller takes from the front what it sent.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// From now on data of reads of at least `bytes` bytes, so long as one PDU holds it all, is not
    /// copied into [`output`](Self::output): it comes as an inset. Who asks for this takes output and
    /// insets always together, by [`take_output`](Self::take_output).
    pub fn inset_from(&mut self, bytes: usize) {
        self.inset_min = bytes;
        if let Phase::Full(full) = &mut self.phase {
            full.insets().from = bytes;
        }
    }

    /// Moves all that is to be sent into `bytes` and `insets`, which are empty; theirs is the memory
    /// of what is to be sent next.
    pub fn take_output(&mut self, bytes: &mut Vec<u8>, insets: &mut VecDeque<Inset>) {
        std::mem::swap(&mut self.output, bytes);
        if let Phase::Full(full) = &mut self.phase {
            std::mem::swap(&mut full.insets().waiting, insets);
            full.insets().bytes = 0;
        }
    }

    /// Lets time pass: pings, time limits, waiting for other sessions, changes published meanwhile.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        self.notice_end();
        if self.is_closing {
            return;
        }
        match &mut self.phase {
            Phase::Login(_) => {
                if now.saturating_sub(self.started) >= LOGIN_TIME_MAX {
                    self.close();
                }
            }
            Phase::Full(full) => {
                full.poll(&mut self.output);
                self.settle_full();
                self.release_held();
                self.check_silence();
            }
            Phase::Over => {}
        }
    }

    /// When `tick` must be called next, if no input comes before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.is_closing {
            return None;
        }
        match &self.phase {
            Phase::Login(_) => Some(self.started + LOGIN_TIME_MAX),
            Phase::Full(full) if full.is_held() || full.waits_for_others() => {
                Some(self.now + WAIT_STEP)
            }
            Phase::Full(_) => Some(self.pinged.unwrap_or(self.last_heard) + PING_AFTER),
            Phase::Over => None,
        }
    }

    /// Whether more input is wanted; if not, leave it in the socket and ask again after output was
    /// sent or `tick` was called.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.is_closing && !self.is_held() && self.unsent() < OUTPUT_HIGH
    }

    fn unsent(&self) -> usize {
        match &self.phase {
            Phase::Full(full) => full.unsent(&self.output),
            Phase::Login(_) | Phase::Over => self.output.len(),
        }
    }

    /// Whether the socket is to be closed once the output is sent.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// Requests surfaced and not yet completed. Not zero: the value must be kept, see the type.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        match &self.phase {
            Phase::Full(full) => full.outstanding(),
            Phase::Login(_) | Phase::Over => 0,
        }
    }

    /// The socket has closed: nothing more is surfaced, and the session ends.
    pub fn disconnected(&mut self) {
        self.output.clear();
        if let Phase::Full(full) = &mut self.phase {
            full.insets().waiting.clear();
            full.insets().bytes = 0;
        }
        self.close();
    }

    /// Asks the host to log out within `seconds`, as before maintenance (asynchronous message 1).
    pub fn ask_logout(&mut self, seconds: u16) {
        if let (Phase::Full(full), false) = (&mut self.phase, self.is_closing) {
            full.ask_logout(seconds, &mut self.output);
        }
    }

    /// The initiator's name, once logged in.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match &self.phase {
            Phase::Full(full) => Some(full.initiator()),
            Phase::Login(_) | Phase::Over => None,
        }
    }

    fn close(&mut self) {
        self.is_closing = true;
        self.held_input = Vec::new();
        if let Phase::Full(full) = &mut self.phase {
            full.end();
        }
    }

    /// A session that another login replaced ends here.
    fn notice_end(&mut self) {
        if let Phase::Full(full) = &self.phase
            && full.has_ended()
            && !self.is_closing
        {
            self.close();
        }
    }

    fn is_held(&self) -> bool {
        matches!(&self.phase, Phase::Full(full) if full.is_held())
    }

    fn release_held(&mut self) {
        if !self.is_held() && !self.held_input.is_empty() {
            let held = std::mem::take(&mut self.held_input);
            self.consume(&held);
        }
    }

    fn settle_full(&mut self) {
        if let Phase::Full(full) = &self.phase
            && full.is_over()
        {
            self.close();
        }
    }

    fn check_silence(&mut self) {
        let Phase::Full(full) = &mut self.phase else { return };
        match self.pinged {
            Some(at) if self.now.saturating_sub(at) >= PING_AFTER => self.close(),
            None if self.now.saturating_sub(self.last_heard) >= PING_AFTER => {
                full.ping(&mut self.output);
                self.pinged = Some(self.now);
            }
            Some(_) | None => {}
        }
    }

    fn consume(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_closing {
            if self.is_held() {
                self.held_input.extend_from_slice(bytes);
                return;
            }
            if self.step(&mut bytes).is_err() {
                self.close();
            }
            self.settle_full();
        }
    }

    /// Takes some bytes off the front, up to the next boundary within a PDU.
    fn step(&mut self, bytes: &mut &[u8]) -> Result<(), Fatal> {
        let (digests, length_max) = match &self.phase {
            Phase::Login(_) => (Digests::default(), LOGIN_LENGTH_MAX),
            Phase::Full(full) => (full.digests(), RECEIVE_LENGTH_MAX),
            Phase::Over => return Err(Fatal::Protocol),
        };
        if !self.input.in_data {
            if !self.input.take_header(bytes, digests)? {
                return Ok(());
            }
            let length = self.input.header().data_length();
            if length > length_max as usize {
                return Err(Fatal::Protocol);
            }
            let header = self.input.header();
            let sink = match &mut self.phase {
                Phase::Full(full) => full.begin(&header, &mut self.output)?,
                Phase::Login(_) | Phase::Over => Sink::Collect,
            };
            self.input.begin_data(length, digests, sink);
        }
        self.take_data(bytes);
        if self.input.is_complete() { self.finish() } else { Ok(()) }
    }

    fn take_data(&mut self, bytes: &mut &[u8]) {
        let taken = self.input.remaining.min(bytes.len());
        let (now, later) = bytes.split_at(taken);
        *bytes = later;
        if taken > 0 {
            if let Some(crc) = &mut self.input.crc {
                crc.update(now);
            }
            match (self.input.sink, &mut self.phase) {
                (Sink::Collect, _) => self.input.collected.extend_from_slice(now),
                (Sink::Task { slot, offset }, Phase::Full(full)) => {
                    full.place(slot, offset + self.input.placed, now);
                    self.input.placed += taken as u32;
                }
                (Sink::Task { .. } | Sink::Ignore, _) => {}
            }
            self.input.remaining -= taken;
        }
        if self.input.remaining == 0 {
            self.input.take_trailer(bytes);
        }
    }

    fn finish(&mut self) -> Result<(), Fatal> {
        let header = self.input.header();
        let (sink, is_corrupt) = (self.input.sink, self.input.is_corrupt);
        let data = self.input.end();
        match &mut self.phase {
            Phase::Login(login) => {
                if header.opcode() != opcode::LOGIN {
                    return Err(Fatal::Protocol);
                }
                let mut reply = login.receive(&header, &data, &self.target);
                pdu::append(&mut self.output, &mut reply.header, &reply.text, Digests::default());
                match reply.next {
                    Next::More => {}
                    Next::Close => {
                        self.phase = Phase::Over;
                        self.is_closing = true;
                    }
                    Next::Full(entered) => {
                        let portal = login.portal().clone();
                        let mut full = FullFeature::new(self.target.clone(), portal, *entered);
                        full.insets().from = self.inset_min;
                        self.phase = Phase::Full(Box::new(full));
                    }
                }
            }
            Phase::Full(full) if sink != Sink::Ignore && is_corrupt => {
                full.finish_corrupt(&header, &mut self.output)?;
            }
            Phase::Full(full) if sink != Sink::Ignore => {
                full.finish(&header, &data, &mut self.output)?
            }
            Phase::Full(_) | Phase::Over => {}
        }
        self.input.reuse(data);
        Ok(())
    }
}

impl Drop for TargetConnection {
    fn drop(&mut self) {
        self.close();
    }
}

/// The PDU being received.
struct Input {
    header: [u8; HEADER_LENGTH_MAX + 4],
    have: usize,
    in_data: bool,
    remaining: usize,
    placed: u32,
    sink: Sink,
    collected: Vec<u8>,
    crc: Option<Crc>,
    is_corrupt: bool,
    trailer: [u8; 7],
    trailer_have: usize,
    trailer_need: usize,
    pad: usize,
}

impl Input {
    fn new() -> Self {
        Input {
            header: [0; HEADER_LENGTH_MAX + 4],
            have: 0,
            in_data: false,
            remaining: 0,
            placed: 0,
            sink: Sink::Ignore,
            collected: Vec::new(),
            crc: None,
            is_corrupt: false,
            trailer: [0; 7],
            trailer_have: 0,
            trailer_need: 0,
            pad: 0,
        }
    }

    fn header(&self) -> Header {
        let mut bytes = [0; HEADER_LENGTH];
        bytes.copy_from_slice(&self.header[..HEADER_LENGTH]);
        Header(bytes)
    }

    /// Takes header bytes; true once all are there and the digest holds.
    fn take_header(&mut self, bytes: &mut &[u8], digests: Digests) -> Result<bool, Fatal> {
        if self.have < HEADER_LENGTH && !self.fill_header(bytes, HEADER_LENGTH) {
            return Ok(false);
        }
        let covered = HEADER_LENGTH + self.header().additional_length();
        let need = covered + if digests.header { 4 } else { 0 };
        if !self.fill_header(bytes, need) {
            return Ok(false);
        }
        if digests.header {
            let mut crc = Crc::new();
            crc.update(&self.header[..covered]);
            if crc.finish() != self.header[covered..need] {
                return Err(Fatal::HeaderDigest);
            }
        }
        Ok(true)
    }

    fn fill_header(&mut self, bytes: &mut &[u8], need: usize) -> bool {
        let taken = (need - self.have).min(bytes.len());
        let (now, later) = bytes.split_at(taken);
        self.header[self.have..self.have + taken].copy_from_slice(now);
        self.have += taken;
        *bytes = later;
        self.have == need
    }

    fn begin_data(&mut self, length: usize, digests: Digests, sink: Sink) {
        self.in_data = true;
        self.remaining = length;
        self.placed = 0;
        self.is_corrupt = false;
        self.sink = sink;
        self.pad = padding(length);
        let has_digest = digests.data && length > 0;
        self.crc = has_digest.then(Crc::new);
        self.trailer_have = 0;
        self.trailer_need = self.pad + if has_digest { 4 } else { 0 };
    }

    /// Takes padding and digest, and notes a digest that does not hold.
    fn take_trailer(&mut self, bytes: &mut &[u8]) {
        let taken = (self.trailer_need - self.trailer_have).min(bytes.len());
        let (now, later) = bytes.split_at(taken);
        self.trailer[self.trailer_have..self.trailer_have + taken].copy_from_slice(now);
        self.trailer_have += taken;
        *bytes = later;
        if self.trailer_have < self.trailer_need {
            return;
        }
        if let Some(mut crc) = self.crc.take() {
            crc.update(&self.trailer[..self.pad]);
            self.is_corrupt = crc.finish() != self.trailer[self.pad..self.trailer_need];
        }
    }

    fn is_complete(&self) -> bool {
        self.in_data && self.remaining == 0 && self.trailer_have == self.trailer_need
    }

    fn end(&mut self) -> Vec<u8> {
        self.in_data = false;
        self.have = 0;
        std::mem::take(&mut self.collected)
    }

    /// Keeps the collecting buffer's memory, unless it grew large.
    fn reuse(&mut self, mut data: Vec<u8>) {
        if data.capacity() <= LOGIN_LENGTH_MAX as usize {
            data.clear();
            self.collected = data;
        }
    }
}

//! Reads the log of a discovery service over an admin connection: by which addresses subsystems are
//! reached (NVMe over Fabrics §5, log page 70h).
//!
//! ```text
//! Connected -> CC.EN=1 -> CSTS.RDY -> header -> records, in pieces -> header again -> done
//!                                       ^------ its change counter differs -----/
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::attach::{AttachmentError, ENABLE_NVM, READY_POLL};
use super::command::Command;
use super::connection::{InitiatorConnection, InitiatorEvent};
use crate::Tag;
use crate::little_endian::{text_of, u64_at};

/// Most records that are read of one log; a longer one is cut.
pub const DISCOVERY_RECORDS_MAX: usize = 256;
/// How long a controller may take to become ready.
const READY_MAX: Duration = Duration::from_secs(5);
/// How often the log is read anew because it changed meanwhile.
const READINGS_MAX: u8 = 4;
const LOG_DISCOVERY: u8 = 0x70;
const RECORD_LENGTH: usize = 1024;
/// Records asked for by one command: 4 KiB is within what any controller transfers.
const RECORDS_AT_ONCE: usize = 4;
const CONFIGURATION: u32 = 0x14;
const STATUS: u32 = 0x1C;
const TRANSPORT_TCP: u8 = 3;

/// What is found at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveredKind {
    /// A subsystem with namespaces.
    Subsystem,
    /// Another discovery service, which knows more.
    Referral,
}

/// One record of a discovery log, of the TCP transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredPortal {
    /// What is there.
    pub kind: DiscoveredKind,
    /// Where.
    pub address: SocketAddr,
    /// NQN of the subsystem.
    pub subsystem: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Waiting,
    Enable,
    PollReady,
    Header,
    Records,
    HeaderAgain,
    Done,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Waiting => "waiting for Connect",
            Step::Enable => "enabling the discovery controller",
            Step::PollReady => "reading CSTS of the discovery controller",
            Step::Header | Step::HeaderAgain => "reading the discovery log's header",
            Step::Records => "reading the discovery log",
            Step::Done => "done",
        }
    }
}

/// Drives one admin [`InitiatorConnection`] to [`crate::DISCOVERY_NQN`]: give it every event and the
/// time, until there is an [`outcome`](Self::outcome).
pub struct Discovery {
    step: Step,
    tag: Option<Tag>,
    ready_until: Duration,
    next_poll: Option<Duration>,
    readings: u8,
    change: u64,
    /// Records that the header announced, and those read so far.
    announced: usize,
    read: usize,
    portals: Vec<DiscoveredPortal>,
    outcome: Option<Result<Vec<DiscoveredPortal>, AttachmentError>>,
}

impl Default for Discovery {
    fn default() -> Self {
        Self::new()
    }
}

impl Discovery {
    /// Begins when the connection is connected.
    #[must_use]
    pub fn new() -> Self {
        Discovery {
            step: Step::Waiting,
            tag: None,
            ready_until: Duration::ZERO,
            next_poll: None,
            readings: 0,
            change: 0,
            announced: 0,
            read: 0,
            portals: Vec::new(),
            outcome: None,
        }
    }

    /// Takes an event of the connection; gives back those that are not its own.
    pub fn handle(
        &mut self,
        connection: &mut InitiatorConnection,
        event: InitiatorEvent,
        now: Duration,
    ) -> Option<InitiatorEvent> {
        match event {
            InitiatorEvent::Connected { .. } => {
                self.ready_until = now + READY_MAX;
                self.go(connection, Step::Enable, now);
                Some(event)
            }
            InitiatorEvent::Completed { tag, status, dw0, data, .. } if Some(tag) == self.tag => {
                self.tag = None;
                if !status.is_success() {
                    let step = self.step.name();
                    self.end(Err(AttachmentError::Command { step, status }));
                    return None;
                }
                match self.answered(dw0, data.as_deref().unwrap_or(&[]), now) {
                    Ok(Some(step)) => self.go(connection, step, now),
                    Ok(None) => {}
                    Err(error) => self.end(Err(error)),
                }
                None
            }
            InitiatorEvent::Lost { tag, .. } if Some(tag) == self.tag => None,
            other => Some(other),
        }
    }

    /// Lets time pass.
    pub fn tick(&mut self, connection: &mut InitiatorConnection, now: Duration) {
        if self.next_poll.is_some_and(|at| now >= at) {
            self.next_poll = None;
            self.go(connection, Step::PollReady, now);
        }
    }

    /// When [`tick`](Self::tick) must be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.next_poll
    }

    /// What came of it, once: the records of the TCP transport that could be read, or why not.
    pub fn outcome(&mut self) -> Option<Result<Vec<DiscoveredPortal>, AttachmentError>> {
        self.outcome.take()
    }

    fn go(&mut self, connection: &mut InitiatorConnection, step: Step, now: Duration) {
        self.step = step;
        let command = match step {
            Step::Waiting | Step::Done => return,
            Step::Enable => Command::property_set(CONFIGURATION, ENABLE_NVM),
            Step::PollReady => Command::property_get(STATUS, false),
            Step::Header | Step::HeaderAgain => {
                Command::log_page(LOG_DISCOVERY, 0, RECORD_LENGTH as u32)
            }
            Step::Records => {
                let records = (self.announced - self.read).min(RECORDS_AT_ONCE);
                let offset = (self.read + 1) * RECORD_LENGTH;
                Command::log_page(LOG_DISCOVERY, offset as u64, (records * RECORD_LENGTH) as u32)
            }
        };
        match connection.submit(command, now) {
            Ok(tag) => self.tag = Some(tag),
            Err(reason) => {
                let (step, reason) = (step.name(), reason.to_string());
                self.end(Err(AttachmentError::Submit { step, reason }));
            }
        }
    }

    fn end(&mut self, outcome: Result<Vec<DiscoveredPortal>, AttachmentError>) {
        self.step = Step::Done;
        self.outcome = Some(outcome);
    }

    /// What follows a command that succeeded; `None`: nothing for now.
    fn answered(
        &mut self,
        result: u32,
        data: &[u8],
        now: Duration,
    ) -> Result<Option<Step>, AttachmentError> {
        match self.step {
            Step::Waiting | Step::Done => Ok(None),
            Step::Enable => Ok(Some(Step::PollReady)),
            Step::PollReady if result & 1 != 0 => Ok(Some(Step::Header)),
            Step::PollReady if result & 2 != 0 || now >= self.ready_until => {
                Err(AttachmentError::NotReady)
            }
            Step::PollReady => {
                self.next_poll = Some(now + READY_POLL);
                Ok(None)
            }
            Step::Header => self.read_header(data),
            Step::Records => self.read_records(data),
            Step::HeaderAgain => {
                self.check(data, 16)?;
                if u64_at(data, 0) != self.change && self.readings < READINGS_MAX {
                    return Ok(Some(Step::Header));
                }
                let portals = std::mem::take(&mut self.portals);
                self.end(Ok(portals));
                Ok(None)
            }
        }
    }

    fn check(&self, data: &[u8], length: usize) -> Result<(), AttachmentError> {
        match data.len() >= length {
            true => Ok(()),
            false => Err(AttachmentError::Short { step: self.step.name() }),
        }
    }

    fn read_header(&mut self, data: &[u8]) -> Result<Option<Step>, AttachmentError> {
        self.check(data, 16)?;
        self.readings += 1;
        self.change = u64_at(data, 0);
        self.announced =
            usize::try_from(u64_at(data, 8)).unwrap_or(usize::MAX).min(DISCOVERY_RECORDS_MAX);
        (self.read, self.portals) = (0, Vec::new());
        Ok(Some(self.next_to_read()))
    }

    fn next_to_read(&self) -> Step {
        if self.read < self.announced { Step::Records } else { Step::HeaderAgain }
    }

    fn read_records(&mut self, data: &[u8]) -> Result<Option<Step>, AttachmentError> {
        self.check(data, RECORD_LENGTH)?;
        for record in data.chunks_exact(RECORD_LENGTH) {
            self.read += 1;
            self.portals.extend(portal(record));
        }
        Ok(Some(self.next_to_read()))
    }
}

/// What a record of 1024 bytes says; `None` if it is of another transport, of the service that is
/// being asked, or names no address.
fn portal(record: &[u8]) -> Option<DiscoveredPortal> {
    let text = |from: usize, to: usize| Some(text_of(record.get(from..to)?)?.trim());
    if *record.first()? != TRANSPORT_TCP {
        return None;
    }
    let kind = match record.get(2)? {
        1 => DiscoveredKind::Referral,
        2 => DiscoveredKind::Subsystem,
        _ => return None,
    };
    let address: IpAddr = text(512, 768)?.parse().ok()?;
    let port: u16 = text(32, 64)?.parse().ok()?;
    let subsystem = text(256, 512)?.to_owned();
    Some(DiscoveredPortal { kind, address: SocketAddr::new(address, port), subsystem })
}

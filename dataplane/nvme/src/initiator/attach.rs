//! Brings a controller up over an admin connection and follows its namespaces.
//!
//! ```text
//! Connected -> CAP -> CC.EN=1 -> CSTS.RDY -> Identify controller -> queues -> events on, one request
//!   armed -> list -> namespace, descriptors (each) -> ANA log -> following
//! following --event: log 04h--> list again    following --event: log 0Ch--> ANA log again
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::command::Command;
use super::connection::{InitiatorConnection, InitiatorEvent, SubmitError};
use crate::little_endian::{array_at, text_of, u16_at, u32_at, u64_at};
use crate::{AnaState, HOST_TRANSFER_MAX, NAMESPACES_PER_HOST_MAX, Status, Tag};

/// Between looks at CSTS.RDY.
pub(super) const READY_POLL: Duration = Duration::from_millis(50);
const CONFIGURATION: u32 = 0x14;
const STATUS: u32 = 0x1C;
/// 4 KiB pages, 64-byte and 16-byte entries, enabled.
pub(super) const ENABLE_NVM: u32 = 0x0046_0001;
const ALL_COMMAND_SETS: u32 = 6 << 4;
const LOG_CHANGED_NAMESPACES: u8 = 0x04;
const LOG_ANA: u8 = 0x0C;
const EVENT_NAMESPACES: u32 = 1 << 8;
const EVENT_ANA: u32 = 1 << 11;

/// What a controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerFacts {
    /// The controller's identifier, for [`InitiatorConnection::connect_io`].
    pub controller: u16,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Longest data of one command, bytes.
    pub transfer_max: usize,
    /// Longest data in an I/O capsule, bytes.
    pub in_capsule_max: usize,
    /// Most entries of an I/O queue.
    pub queue_depth_max: u16,
    /// I/O queues granted.
    pub io_queues: u16,
    /// Writes need FUA or Flush to be durable.
    pub has_volatile_cache: bool,
    /// ONCS: which optional commands there are.
    pub optional_commands: u16,
    /// Whether access states are reported.
    pub reports_ana: bool,
}

/// A namespace of the attached controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteNamespace {
    /// Namespace identifier; may differ from one attachment to the next.
    pub nsid: u32,
    /// UUID, if the controller gives one.
    pub uuid: Option<[u8; 16]>,
    /// NGUID, if the controller gives one.
    pub nguid: Option<[u8; 16]>,
    /// Logical block, bytes.
    pub block_size: u32,
    /// Size, blocks.
    pub blocks: u64,
    /// ANA group; 0 if the controller has none.
    pub ana_group: u32,
    /// Access state on this path; optimized if the controller reports none.
    pub state: AnaState,
    /// Write protected.
    pub read_only: bool,
}

/// Why an attachment cannot go on; the connection should be shut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentError {
    /// A command failed.
    #[error("{step} failed: {status}")]
    Command {
        /// Which step.
        step: &'static str,
        /// How.
        status: Status,
    },
    /// The controller failed while it was enabled (CSTS.CFS), or did not become ready in CAP.TO.
    #[error("the controller did not become ready")]
    NotReady,
    /// Data that was too short.
    #[error("{step} returned too little data")]
    Short {
        /// Which step.
        step: &'static str,
    },
    /// More namespaces than can be followed.
    #[error("the controller has more than {NAMESPACES_PER_HOST_MAX} namespaces")]
    TooManyNamespaces,
    /// A command could not be sent.
    #[error("{step} could not be sent: {reason}")]
    Submit {
        /// Which step.
        step: &'static str,
        /// Why.
        reason: String,
    },
}

/// News of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachmentUpdate {
    /// The controller is up: I/O queues may connect.
    Ready(ControllerFacts),
    /// All its namespaces, ascending; comes once after `Ready` and again at each change.
    Namespaces(Vec<RemoteNamespace>),
    /// It failed.
    Failed(AttachmentError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Waiting,
    Capabilities,
    Enable,
    PollReady,
    Controller,
    Queues,
    EnableEvents,
    ClearChanged,
    List,
    Namespace(u32),
    Descriptors(u32),
    Ana,
    Following,
    Failed,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Waiting => "waiting for Connect",
            Step::Capabilities => "reading CAP",
            Step::Enable => "enabling the controller",
            Step::PollReady => "reading CSTS",
            Step::Controller => "identifying the controller",
            Step::Queues => "asking for queues",
            Step::EnableEvents => "enabling events",
            Step::ClearChanged => "reading the changed namespaces",
            Step::List => "listing namespaces",
            Step::Namespace(_) => "identifying a namespace",
            Step::Descriptors(_) => "reading a namespace's identifiers",
            Step::Ana => "reading the ANA log",
            Step::Following => "following",
            Step::Failed => "failed",
        }
    }
}

/// Drives one admin [`InitiatorConnection`]: give it every event and the time.
pub struct Attachment {
    io_queues: u16,
    step: Step,
    tag: Option<Tag>,
    event_request: Option<Tag>,
    configuration: u32,
    ready_until: Duration,
    next_poll: Option<Duration>,
    facts: ControllerFacts,
    events: u32,
    groups_max: usize,
    namespaces_max: usize,
    is_announced: bool,
    rescan: bool,
    reread_ana: bool,
    to_identify: VecDeque<u32>,
    found: BTreeMap<u32, RemoteNamespace>,
    updates: VecDeque<AttachmentUpdate>,
}

impl Attachment {
    /// Will ask for `io_queues` I/O queues, at least 1.
    #[must_use]
    pub fn new(io_queues: u16) -> Self {
        let facts = ControllerFacts {
            controller: 0,
            serial: String::new(),
            model: String::new(),
            transfer_max: HOST_TRANSFER_MAX,
            in_capsule_max: 0,
            queue_depth_max: 2,
            io_queues: 0,
            has_volatile_cache: true,
            optional_commands: 0,
            reports_ana: false,
        };
        Attachment {
            io_queues: io_queues.max(1),
            step: Step::Waiting,
            tag: None,
            event_request: None,
            configuration: ENABLE_NVM,
            ready_until: Duration::ZERO,
            next_poll: None,
            facts,
            events: 0,
            groups_max: 0,
            namespaces_max: 0,
            is_announced: false,
            rescan: false,
            reread_ana: false,
            to_identify: VecDeque::new(),
            found: BTreeMap::new(),
            updates: VecDeque::new(),
        }
    }

    /// Takes an event of the connection; gives back those that are not the attachment's own. It
    /// passes on `Connected` and `Closed` too, after it took note.
    pub fn handle(
        &mut self,
        connection: &mut InitiatorConnection,
        event: InitiatorEvent,
        now: Duration,
    ) -> Option<InitiatorEvent> {
        match event {
            InitiatorEvent::Connected { controller } => {
                self.facts.controller = controller;
                self.go(connection, Step::Capabilities, now);
                Some(event)
            }
            InitiatorEvent::Completed { tag, status, dw0, dw1, data, .. }
                if Some(tag) == self.tag =>
            {
                self.tag = None;
                let data = data.as_deref().unwrap_or(&[]);
                self.answered(connection, Answer { status, dw0, dw1, data }, now);
                None
            }
            InitiatorEvent::Completed { tag, status, dw0, .. }
                if Some(tag) == self.event_request =>
            {
                self.event_request = None;
                self.notified(connection, status, dw0, now);
                None
            }
            InitiatorEvent::Lost { tag, .. }
                if Some(tag) == self.tag || Some(tag) == self.event_request =>
            {
                None
            }
            other => Some(other),
        }
    }

    /// Reads the access states again, as soon as nothing else is being read: for an owner whom a
    /// command's path error told before any event did.
    pub fn reread_access(&mut self, connection: &mut InitiatorConnection, now: Duration) {
        self.reread_ana |= self.facts.reports_ana;
        self.catch_up(connection, now);
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

    /// News, oldest first.
    pub fn next_update(&mut self) -> Option<AttachmentUpdate> {
        self.updates.pop_front()
    }

    fn go(&mut self, connection: &mut InitiatorConnection, step: Step, now: Duration) {
        self.step = step;
        let Some(command) = self.command(step) else { return };
        match connection.submit(command, now) {
            Ok(tag) => self.tag = Some(tag),
            Err(reason) => self.submit_failed(&reason),
        }
    }

    fn submit_failed(&mut self, reason: &SubmitError) {
        let (step, reason) = (self.step.name(), reason.to_string());
        self.fail(AttachmentError::Submit { step, reason });
    }

    fn fail(&mut self, error: AttachmentError) {
        self.step = Step::Failed;
        self.updates.push_back(AttachmentUpdate::Failed(error));
    }

    fn command(&self, step: Step) -> Option<Command> {
        let command = match step {
            Step::Waiting | Step::Following | Step::Failed => return None,
            Step::Capabilities => Command::property_get(0, true),
            Step::Enable => Command::property_set(CONFIGURATION, self.configuration),
            Step::PollReady => Command::property_get(STATUS, false),
            Step::Controller => Command::identify(0x01, 0),
            Step::Queues => {
                let zero_based = u32::from(self.io_queues - 1);
                Command::set_feature(0x07, zero_based << 16 | zero_based)
            }
            Step::EnableEvents => Command::set_feature(0x0B, self.events),
            Step::ClearChanged => Command::log_page(LOG_CHANGED_NAMESPACES, 0, 4096),
            Step::List => {
                Command::identify(0x02, self.found.keys().next_back().copied().unwrap_or(0))
            }
            Step::Namespace(nsid) => Command::identify(0x00, nsid),
            Step::Descriptors(nsid) => Command::identify(0x03, nsid),
            Step::Ana => Command::log_page(LOG_ANA, 0, self.ana_log_length()),
        };
        Some(command)
    }

    /// What the log can take at most, within one transfer.
    fn ana_log_length(&self) -> u32 {
        let longest = 16
            + self
                .groups_max
                .saturating_mul(32)
                .saturating_add(self.namespaces_max.saturating_mul(4));
        longest.min(self.facts.transfer_max).next_multiple_of(4) as u32
    }

    fn answered(
        &mut self,
        connection: &mut InitiatorConnection,
        answer: Answer<'_>,
        now: Duration,
    ) {
        if !answer.status.is_success() {
            return self.refused(connection, answer.status, now);
        }
        let next = match self.step {
            Step::Waiting | Step::Following | Step::Failed => return,
            Step::Capabilities => {
                self.read_capabilities(u64::from(answer.dw1) << 32 | u64::from(answer.dw0), now);
                Ok(Step::Enable)
            }
            Step::Enable => Ok(Step::PollReady),
            Step::PollReady => match self.readiness(answer.dw0, now) {
                Some(next) => next,
                None => return,
            },
            Step::Controller => self.read_controller(answer.data),
            Step::Queues => {
                self.facts.io_queues = (answer.dw0 as u16)
                    .min((answer.dw0 >> 16) as u16)
                    .saturating_add(1)
                    .min(self.io_queues);
                Ok(if self.events == 0 { Step::List } else { Step::EnableEvents })
            }
            Step::EnableEvents => {
                self.arm(connection, now);
                Ok(Step::List)
            }
            Step::ClearChanged => {
                self.found.clear();
                self.to_identify.clear();
                Ok(Step::List)
            }
            Step::List => self.read_list(answer.data),
            Step::Namespace(nsid) => self.read_namespace(nsid, answer.data),
            Step::Descriptors(nsid) => self.read_descriptors(nsid, answer.data),
            Step::Ana => {
                self.read_ana(answer.data);
                Ok(Step::Following)
            }
        };
        match next {
            Ok(Step::Following) => self.settle(connection, now),
            Ok(step) => self.go(connection, step, now),
            Err(error) => self.fail(error),
        }
    }

    /// A namespace may go while it is being identified: then the list is read again.
    fn refused(&mut self, connection: &mut InitiatorConnection, status: Status, now: Duration) {
        match self.step {
            Step::Namespace(nsid) | Step::Descriptors(nsid)
                if status == Status::invalid_namespace() =>
            {
                self.found.remove(&nsid);
                let next = self.next_to_identify();
                self.go_or_settle(connection, next, now);
            }
            step => self.fail(AttachmentError::Command { step: step.name(), status }),
        }
    }

    fn go_or_settle(&mut self, connection: &mut InitiatorConnection, step: Step, now: Duration) {
        match step {
            Step::Following => self.settle(connection, now),
            step => self.go(connection, step, now),
        }
    }

    fn read_capabilities(&mut self, capabilities: u64, now: Duration) {
        self.facts.queue_depth_max = (capabilities as u16).saturating_add(1);
        let selects_command_sets = capabilities & 1 << 43 != 0;
        self.configuration = ENABLE_NVM | if selects_command_sets { ALL_COMMAND_SETS } else { 0 };
        let timeout_half_seconds = capabilities >> 24 & 0xFF;
        self.ready_until = now + Duration::from_millis(500 * timeout_half_seconds.max(1));
    }

    /// What follows a look at CSTS; `None`: look again later.
    fn readiness(&mut self, status: u32, now: Duration) -> Option<Result<Step, AttachmentError>> {
        if status & 1 != 0 {
            return Some(Ok(Step::Controller));
        }
        if status & 2 != 0 || now >= self.ready_until {
            return Some(Err(AttachmentError::NotReady));
        }
        self.next_poll = Some(now + READY_POLL);
        None
    }

    fn read_controller(&mut self, data: &[u8]) -> Result<Step, AttachmentError> {
        if data.len() < 4096 {
            return Err(AttachmentError::Short { step: Step::Controller.name() });
        }
        let text =
            |from: usize, to: usize| text_of(&data[from..to]).unwrap_or("").trim().to_owned();
        let facts = &mut self.facts;
        facts.serial = text(4, 24);
        facts.model = text(24, 64);
        facts.transfer_max = match data[77] {
            exponent @ 1..=8 => 4096 << exponent,
            _ => HOST_TRANSFER_MAX,
        };
        facts.in_capsule_max =
            (u32_at(data, 1792) as usize * 16).saturating_sub(64).min(HOST_TRANSFER_MAX);
        facts.has_volatile_cache = data[525] & 1 != 0;
        facts.optional_commands = u16_at(data, 520);
        facts.reports_ana = data[76] & 1 << 3 != 0;
        self.events = u32_at(data, 92) & (EVENT_NAMESPACES | EVENT_ANA);
        self.groups_max = u32_at(data, 348) as usize;
        self.namespaces_max = u32_at(data, 540) as usize;
        Ok(Step::Queues)
    }

    fn read_list(&mut self, data: &[u8]) -> Result<Step, AttachmentError> {
        let after = self.found.keys().next_back().copied().unwrap_or(0);
        let ids: Vec<u32> =
            data.chunks_exact(4).map(|raw| u32_at(raw, 0)).take_while(|id| *id != 0).collect();
        let ascends = ids.iter().try_fold(after, |last, id| (*id > last).then_some(*id)).is_some();
        if !ascends && !ids.is_empty() {
            return Err(AttachmentError::Short { step: Step::List.name() });
        }
        if self.found.len() + ids.len() > NAMESPACES_PER_HOST_MAX {
            return Err(AttachmentError::TooManyNamespaces);
        }
        let is_full = ids.len() == 1024;
        for nsid in ids {
            self.found.insert(nsid, empty_namespace(nsid));
            self.to_identify.push_back(nsid);
        }
        Ok(if is_full { Step::List } else { self.next_to_identify() })
    }

    fn next_to_identify(&mut self) -> Step {
        match self.to_identify.pop_front() {
            Some(nsid) => Step::Namespace(nsid),
            None if self.facts.reports_ana => Step::Ana,
            None => Step::Following,
        }
    }

    fn read_namespace(&mut self, nsid: u32, data: &[u8]) -> Result<Step, AttachmentError> {
        if data.len() < 4096 {
            return Err(AttachmentError::Short { step: Step::Namespace(nsid).name() });
        }
        let blocks = u64_at(data, 0);
        let format = usize::from(data[26] & 0xF) | usize::from(data[26] >> 5 & 3) << 4;
        let exponent = data[128 + format * 4 + 2];
        if blocks == 0 || !(9..=16).contains(&exponent) {
            // Gone since it was listed, or of a format that is not usable here.
            self.found.remove(&nsid);
            return Ok(self.next_to_identify());
        }
        if let Some(namespace) = self.found.get_mut(&nsid) {
            namespace.blocks = blocks;
            namespace.block_size = 1 << exponent;
            namespace.ana_group = u32_at(data, 92);
            namespace.read_only = data[99] & 1 != 0;
            namespace.nguid = Some(array_at(data, 104)).filter(|nguid| *nguid != [0; 16]);
        }
        Ok(Step::Descriptors(nsid))
    }

    fn read_descriptors(&mut self, nsid: u32, data: &[u8]) -> Result<Step, AttachmentError> {
        let mut rest = data;
        while let [kind @ 1..=255, length, _, _, values @ ..] = rest {
            let length = usize::from(*length);
            let (Some(value), Some(namespace)) = (values.get(..length), self.found.get_mut(&nsid))
            else {
                break;
            };
            match (*kind, length) {
                (2, 16) => namespace.nguid = Some(array_at(value, 0)),
                (3, 16) => namespace.uuid = Some(array_at(value, 0)),
                _ => {}
            }
            rest = &values[length..];
        }
        Ok(self.next_to_identify())
    }

    fn read_ana(&mut self, data: &[u8]) {
        let groups = usize::from(u16_at(data, 8));
        let mut states = BTreeMap::new();
        let mut rest = data.get(16..).unwrap_or(&[]);
        for _ in 0..groups {
            if rest.len() < 32 {
                break;
            }
            if let Some(state) = AnaState::from_code(rest[16] & 0xF) {
                states.insert(u32_at(rest, 0), state);
            }
            let length = 32usize.saturating_add((u32_at(rest, 4) as usize).saturating_mul(4));
            rest = rest.get(length..).unwrap_or(&[]);
        }
        for namespace in self.found.values_mut() {
            // A namespace whose group is not in the log cannot be said to be usable here.
            namespace.state =
                states.get(&namespace.ana_group).copied().unwrap_or(AnaState::Inaccessible);
        }
    }

    /// Everything asked for is known: says so, then does what events asked for meanwhile.
    fn settle(&mut self, connection: &mut InitiatorConnection, now: Duration) {
        self.step = Step::Following;
        if !std::mem::replace(&mut self.is_announced, true) {
            self.updates.push_back(AttachmentUpdate::Ready(self.facts.clone()));
        }
        self.updates
            .push_back(AttachmentUpdate::Namespaces(self.found.values().cloned().collect()));
        self.catch_up(connection, now);
    }

    fn catch_up(&mut self, connection: &mut InitiatorConnection, now: Duration) {
        if self.step != Step::Following {
            return;
        }
        if std::mem::take(&mut self.rescan) {
            self.reread_ana = false;
            self.go(connection, Step::ClearChanged, now);
        } else if std::mem::take(&mut self.reread_ana) {
            self.go(connection, Step::Ana, now);
        }
    }

    fn arm(&mut self, connection: &mut InitiatorConnection, now: Duration) {
        match connection.submit(Command::async_event_request(), now) {
            Ok(tag) => self.event_request = Some(tag),
            Err(reason) => self.submit_failed(&reason),
        }
    }

    fn notified(
        &mut self,
        connection: &mut InitiatorConnection,
        status: Status,
        result: u32,
        now: Duration,
    ) {
        if !status.is_success() {
            // The target takes no (more) event requests: what is known stays, without news.
            return;
        }
        match (result >> 16) as u8 {
            LOG_CHANGED_NAMESPACES => self.rescan = true,
            LOG_ANA => self.reread_ana = true,
            _ => {}
        }
        self.arm(connection, now);
        self.catch_up(connection, now);
    }
}

struct Answer<'a> {
    status: Status,
    dw0: u32,
    dw1: u32,
    data: &'a [u8],
}

fn empty_namespace(nsid: u32) -> RemoteNamespace {
    RemoteNamespace {
        nsid,
        uuid: None,
        nguid: None,
        block_size: 0,
        blocks: 0,
        ana_group: 0,
        state: AnaState::Optimized,
        read_only: false,
    }
}

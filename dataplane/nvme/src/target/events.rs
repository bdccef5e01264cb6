//! Asynchronous events: what changed, and whether the host may be told of it now. One event of a
//! kind is reported until its log page was read with RAE clear (NVMe Base 2.0 §5.2).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{HostView, NamespaceView, Status};

/// AERL, zero-based: four requests may wait.
pub(super) const EVENT_REQUEST_LIMIT: u8 = 3;
/// More changed namespaces than this are reported as "all".
const CHANGED_NAMESPACES_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Namespaces,
    Ana,
    Discovery,
    /// Another host changed reservations.
    Reservation,
}

impl Event {
    const ALL: [Event; 4] = [Event::Namespaces, Event::Ana, Event::Discovery, Event::Reservation];

    /// Bit in feature 0Bh and in OAES. Reservations have feature 82h instead.
    pub(super) const fn enable_bit(self) -> u32 {
        match self {
            Event::Namespaces => 1 << 8,
            Event::Ana => 1 << 11,
            Event::Discovery => 1 << 31,
            Event::Reservation => 0,
        }
    }

    const fn information(self) -> u32 {
        match self {
            Event::Namespaces | Event::Reservation => 0x00,
            Event::Ana => 0x03,
            Event::Discovery => 0xF0,
        }
    }

    const fn log(self) -> u8 {
        match self {
            Event::Namespaces => 0x04,
            Event::Ana => 0x0C,
            Event::Discovery => 0x70,
            Event::Reservation => 0x80,
        }
    }

    pub(super) fn of_log(page: u8) -> Option<Self> {
        Event::ALL.into_iter().find(|event| event.log() == page)
    }

    /// Completion dword 0: type ("notice", or "I/O command specific status"), information, log page.
    fn result(self) -> u32 {
        let kind = if self == Event::Reservation { 6 } else { 2 };
        kind | self.information() << 8 | u32::from(self.log()) << 16
    }
}

#[derive(Clone, Copy, Default)]
struct Report {
    /// Happened, not yet reported.
    pending: bool,
    /// Reported, the log page was not read yet.
    masked: bool,
}

#[derive(Default)]
pub(super) struct Events {
    enabled: u32,
    waiting: VecDeque<u16>,
    reports: [Report; 4],
    changed: BTreeSet<u32>,
    ana_changes: u64,
    group_changes: BTreeMap<u32, u64>,
}

impl Events {
    /// Keeps an event request.
    pub(super) fn wait(&mut self, index: u16) -> Result<(), Status> {
        if self.waiting.len() > usize::from(EVENT_REQUEST_LIMIT) {
            return Err(Status::event_request_limit_exceeded());
        }
        self.waiting.push_back(index);
        Ok(())
    }

    pub(super) fn stop_waiting(&mut self, index: u16) {
        self.waiting.retain(|waiting| *waiting != index);
    }

    pub(super) fn enable(&mut self, bits: u32) {
        self.enabled = bits;
    }

    pub(super) fn raise(&mut self, event: Event) {
        self.reports[event as usize].pending = true;
    }

    /// Its log page was read with RAE clear: the host is up to date, the next change is news again.
    pub(super) fn log_was_read(&mut self, event: Event) {
        self.reports[event as usize] = Report::default();
        if event == Event::Namespaces {
            self.changed.clear();
        }
    }

    /// A waiting request and the result to answer it with.
    pub(super) fn deliverable(&mut self) -> Option<(u16, u32)> {
        let allowed = |event: &Event| {
            let report = self.reports[*event as usize];
            let bit = event.enable_bit();
            report.pending && !report.masked && (bit == 0 || self.enabled & bit != 0)
        };
        let event = Event::ALL.into_iter().find(allowed)?;
        let index = self.waiting.pop_front()?;
        self.reports[event as usize] = Report { pending: false, masked: true };
        Some((index, event.result()))
    }

    /// Notes what differs between two views of the same host.
    pub(super) fn compare(&mut self, old: &HostView, new: &HostView) {
        let changed = changed_namespaces(old, new);
        if !changed.is_empty() {
            self.changed.extend(changed);
            self.raise(Event::Namespaces);
        }
        let (old, new) = (ana_groups(old), ana_groups(new));
        let groups: BTreeSet<u32> = old.keys().chain(new.keys()).copied().collect();
        let changed: Vec<u32> =
            groups.into_iter().filter(|group| old.get(group) != new.get(group)).collect();
        if !changed.is_empty() {
            self.ana_changes += 1;
            changed
                .into_iter()
                .for_each(|group| *self.group_changes.entry(group).or_insert(0) += 1);
            self.raise(Event::Ana);
        }
    }

    /// Namespaces that changed since log page 04h was last read; `None` when they are too many.
    pub(super) fn changed_namespaces(&self) -> Option<impl Iterator<Item = u32> + '_> {
        (self.changed.len() <= CHANGED_NAMESPACES_MAX).then(|| self.changed.iter().copied())
    }

    /// Changes of ANA states and groups since the controller began.
    pub(super) fn ana_changes(&self) -> u64 {
        self.ana_changes
    }

    /// Changes of one group since the controller began.
    pub(super) fn group_changes(&self, group: u32) -> u64 {
        self.group_changes.get(&group).copied().unwrap_or(0)
    }
}

/// Namespaces that came, went, or differ in anything but their access state.
fn changed_namespaces(old: &HostView, new: &HostView) -> Vec<u32> {
    let attributes = |namespace: &NamespaceView| NamespaceView {
        state: crate::AnaState::Change,
        ..namespace.clone()
    };
    let differs =
        |id: &u32| old.namespace(*id).map(attributes) != new.namespace(*id).map(attributes);
    let ids = old.namespaces().iter().chain(new.namespaces()).map(|namespace| namespace.nsid);
    ids.collect::<BTreeSet<u32>>().into_iter().filter(differs).collect()
}

/// ANA groups, ascending, with their state and their namespaces in ascending order.
pub(super) fn ana_groups(view: &HostView) -> BTreeMap<u32, (crate::AnaState, Vec<u32>)> {
    let mut groups = BTreeMap::new();
    for namespace in view.namespaces() {
        let group =
            groups.entry(namespace.ana_group).or_insert_with(|| (namespace.state, Vec::new()));
        group.1.push(namespace.nsid);
    }
    groups
}

//! The cluster, its queue of events, and the life of one run.

use crate::checks::Checks;
use crate::control::{AppendResult, Control, Publication};
use crate::disk::Disk;
use crate::founding::{Founded, found};
use crate::host::Hosts;
use crate::log::SimulatedLog;
use crate::network::{Network, Place};
use crate::node::Node;
use crate::random::Random;
use crate::stream::{Stream, Toward};
use crate::{Plan, Tally, Telling};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;
use voute_mirror::link::{LinkReply, LinkRequest};
use voute_mirror::{HostOutcome, HostRequest, LinkTag};

/// Something that happens at a time.
pub(crate) enum Event {
    Tick { node: usize, process: u64 },
    Device { node: usize, key: u64 },
    OpenDevices { node: usize, process: u64 },
    Connect { node: usize, process: u64 },
    ChannelUp { node: usize, process: u64, connection: u64 },
    ChannelDown { node: usize, connection: u64 },
    LinkRequest { from: usize, connection: u64, tag: LinkTag, request: LinkRequest },
    LinkReply { to: usize, connection: u64, tag: LinkTag, reply: LinkReply },
    OpenStream { node: usize, process: u64 },
    StreamUp { id: u64 },
    StreamMessage { id: u64, toward: Toward },
    BreakStream { id: u64 },
    Report { node: usize, process: u64 },
    SendEscalations { node: usize, process: u64 },
    StartNode { node: usize },
    Look { control: usize, life: u64 },
    Follow { control: usize, life: u64 },
    AppendAgain { control: usize, life: u64 },
    AppendAnswered { control: usize, life: u64, result: AppendResult },
    News { control: usize, life: u64, node: usize },
    StartControl { control: usize },
    HostIssue { worker: usize },
    HostRetry { worker: usize, attempt: u64 },
    HostRequest { node: usize, path: u64, worker: usize, attempt: u64, request: HostRequest },
    HostReply { node: usize, path: u64, worker: usize, attempt: u64, outcome: HostOutcome },
    PathLost { node: usize, path: u64 },
    Fault,
    Strike { node: usize, joined: Option<usize> },
    Mend { repair: crate::faults::Repair },
    Admin { order: crate::faults::Order },
}

struct Entry {
    at: Duration,
    number: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// Before anything happens: clocks do not begin at zero.
const BEGIN: Duration = Duration::from_secs(1_000);

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) now: Duration,
    queue: BinaryHeap<Entry>,
    next: u64,
    pub(crate) founded: Founded,
    pub(crate) nodes: [Node; 2],
    pub(crate) controls: [Control; 2],
    pub(crate) log: SimulatedLog,
    pub(crate) network: Network,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) hosts: Hosts,
    pub(crate) checks: Checks,
    pub(crate) names: u64,
    pub(crate) faults_until: Duration,
    /// No fault is injected any more: everything has to become whole.
    pub(crate) is_healing: bool,
    pub(crate) images: [Option<Disk>; 2],
    /// Whose content was lost and still counts by the log.
    pub(crate) emptied: [bool; 2],
    /// When a person last asked for something.
    pub(crate) ordered_at: Duration,
    pub(crate) tally: Tally,
    pub(crate) violation: Option<String>,
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let mut random = Random::new(seed);
        let [log, other_log] = SimulatedLog::new(Random::new(seed ^ 0x10C));
        let founded = found(&mut random, &log);
        let nodes = [0, 1].map(|index| Node::new(index, &founded, &mut random));
        let hosts = Hosts::new(&founded, &mut random);
        let checks = Checks::new(founded.volumes.len());
        World {
            seed,
            plan,
            random,
            now: BEGIN,
            queue: BinaryHeap::new(),
            next: 0,
            nodes,
            controls: [Control::new(log.clone()), Control::new(other_log)],
            log,
            network: Network::default(),
            streams: BTreeMap::new(),
            hosts,
            checks,
            founded,
            names: 0,
            faults_until: BEGIN,
            is_healing: false,
            images: [None, None],
            emptied: [false; 2],
            ordered_at: Duration::ZERO,
            tally: Tally::default(),
            violation: None,
        }
    }

    pub(crate) fn tell(&mut self, text: impl FnOnce() -> String) {
        if self.plan.telling == Telling::Story {
            #[expect(clippy::print_stdout, reason = "the story is what was asked for")]
            {
                println!("{:>10.3} {}", (self.now - BEGIN).as_secs_f64(), text());
            }
        }
    }

    pub(crate) fn violated(&mut self, text: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let text = text();
            self.tell(|| format!("VIOLATION: {text}"));
            self.violation = Some(text);
        }
    }

    pub(crate) fn note_fault(&mut self, name: &'static str) {
        *self.tally.faults.entry(name).or_default() += 1;
    }

    pub(crate) fn after(&mut self, delay: Duration, event: Event) {
        self.next += 1;
        self.queue.push(Entry { at: self.now + delay, number: self.next, event });
    }

    pub(crate) fn at(&mut self, at: Duration, event: Event) {
        self.after(at.saturating_sub(self.now), event);
    }

    /// A name that nothing had before.
    pub(crate) fn name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    /// How long a message takes.
    pub(crate) fn travel(&mut self, from: Place, to: Place) -> Duration {
        if self.network.is_slow(from, to, self.now) {
            self.random.micros(1_000, 400_000)
        } else if self.random.chance(2) {
            self.random.micros(1_000, 150_000)
        } else {
            self.random.micros(50, 500)
        }
    }

    /// One run, from founding to the last look at every block.
    pub(crate) fn live(&mut self) {
        for control in 0..self.controls.len() {
            self.start_control(control);
        }
        for node in 0..self.nodes.len() {
            self.start_node(node);
        }
        self.hosts_begin();
        self.await_health("after the founding");
        self.run_for(Duration::from_millis(500));
        if self.plan.with_faults {
            self.faults_until = self.now + self.plan.faulty;
            self.after(Duration::ZERO, Event::Fault);
        }
        self.run_for(self.plan.faulty);
        self.heal();
        self.await_health("after the last fault");
        self.verify();
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.violation.is_none() {
            match self.queue.peek() {
                Some(entry) if entry.at <= until => self.step(),
                _ => break,
            }
        }
        self.now = until;
    }

    fn step(&mut self) {
        let Some(Entry { at, event, .. }) = self.queue.pop() else { return };
        self.now = at;
        self.tally.events += 1;
        self.digest(at.as_nanos() as u64);
        match event {
            Event::Tick { node, process } => self.tick(node, process),
            Event::Device { node, key } => self.device_done(node, key),
            Event::OpenDevices { node, process } => self.open_devices(node, process),
            Event::Connect { node, process } => self.connect(node, process),
            Event::ChannelUp { node, process, connection } => {
                self.channel_up(node, process, connection);
            }
            Event::ChannelDown { node, connection } => {
                if self.nodes[node].connection == Some(connection) {
                    self.disconnect(node);
                }
            }
            Event::LinkRequest { from, connection, tag, request } => {
                self.link_request(from, connection, tag, request);
            }
            Event::LinkReply { to, connection, tag, reply } => {
                self.link_reply(to, connection, tag, reply);
            }
            Event::OpenStream { node, process } => self.open_stream(node, process),
            Event::StreamUp { id } => self.stream_up(id),
            Event::StreamMessage { id, toward } => self.stream_message(id, toward),
            Event::BreakStream { id } => self.break_stream(id),
            Event::Report { node, process } => self.report(node, process),
            Event::SendEscalations { node, process } => self.send_escalations(node, process),
            Event::StartNode { node } => self.start_node(node),
            Event::Look { control, life } => self.look(control, life),
            Event::Follow { control, life } => {
                if self.controls[control].life == life {
                    self.follow(control);
                }
            }
            Event::AppendAgain { control, life } => self.append_again(control, life),
            Event::AppendAnswered { control, life, result } => {
                self.append_answered(control, life, result);
            }
            Event::News { control, life, node } => self.send_news(control, life, node),
            Event::StartControl { control } => self.start_control(control),
            Event::HostIssue { worker } => self.host_issue(worker),
            Event::HostRetry { worker, attempt } => self.host_retry(worker, attempt),
            Event::HostRequest { node, path, worker, attempt, request } => {
                self.host_request(node, path, (worker, attempt), request);
            }
            Event::HostReply { node, path, worker, attempt, outcome } => {
                self.host_reply_arrives(node, path, (worker, attempt), outcome);
            }
            Event::PathLost { node, path } => self.path_lost(node, path),
            Event::Fault => self.fault(),
            Event::Strike { node, joined } => self.strike(node, joined),
            Event::Mend { repair } => self.mend(repair),
            Event::Admin { order } => self.admin(order),
        }
    }

    pub(crate) fn digest(&mut self, word: u64) {
        let mixed = (self.tally.digest ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.tally.digest = mixed ^ mixed >> 29;
    }

    /// Everything that was published is new to these.
    pub(crate) fn tell_followers(&mut self) {
        for control in 0..self.controls.len() {
            let life = self.controls[control].life;
            let delay = self.random.micros(300, 8_000);
            self.after(delay, Event::Follow { control, life });
        }
    }

    /// A commit's events, as the log has them.
    pub(crate) fn committed(&mut self, publication: &Publication) {
        self.check_commits(publication);
    }

    pub(crate) fn finish_tally(&mut self) -> Tally {
        let mut tally = self.tally.clone();
        tally.simulated = self.now - BEGIN;
        tally
    }
}

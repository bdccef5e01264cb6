//! The agent: keeps the node contract on one side and the reactors on the other. It is never on the
//! data path: without it, and without the control plane, volumes go on.
//!
//! ```text
//! control ── spec ──► checked ──► noted on disk ──► devices opened ──► reactors
//!         ◄─ status ──────────────────────────────────── asked each heartbeat
//!         ◄─ escalations, batched ◄───────────────────── as they come
//!         ── answers ───────────────────────────────────► their mirrors
//! ```

mod controls;
pub(crate) mod escalations;
pub(crate) mod memory;
mod refusals;
pub(crate) mod statuses;
pub(crate) mod stream;
pub(crate) mod trust;

use crate::clock::raw;
use crate::judge::Judge;
use crate::link::{Peers, SHARDS, link_nqn};
use crate::listen;
use crate::mailbox::{LegPlace, Mailbox, Message};
use crate::metrics::{Metrics, count};
use crate::node::{NodeError, Stop};
use crate::offer::{self, Offer};
use crate::reactor::{FromReactor, Setup};
use controls::Controls;
use escalations::{Asker, Escalations};
use memory::Memory;
use statuses::joined;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stream::StreamEvent;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use trust::{Proven, SpecError};
use voute_device::{AdoptError, Adopted, ArrayKeys, adopt_with_keys};
use voute_mirror::Identity;
use voute_schemas::command::Escalation;
use voute_schemas::contract::*;
use voute_schemas::times::Times;
use voute_schemas::{DeviceId, GroupId, LegId, NodeId};

/// Least time between two reports that changes of state give rise to.
const REPORT_EVERY_MIN: Duration = Duration::from_millis(10);
/// Least time between two attempts to send an escalation again.
const RETRY_EVERY_MIN: Duration = Duration::from_millis(10);
/// How often the counters are logged.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// Highest number of a node, so that its controller ids fit.
const NUMBER_MAX: u16 = 217;

/// What became of a device.
enum DeviceState {
    /// Being opened.
    Opening,
    /// Open.
    Open { size_bytes: u64, block_bytes: u32 },
    /// It cannot be used; why.
    Refused(String),
}

/// What the agent is made with.
pub(crate) struct Parts {
    pub(crate) node: NodeId,
    pub(crate) memory: Memory,
    pub(crate) session: u64,
    pub(crate) mailboxes: Arc<[Arc<Mailbox>]>,
    pub(crate) offer: Arc<Offer>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) array_keys: ArrayKeys,
}

pub(crate) struct Agent {
    parts: Parts,
    facts: Option<Arc<NodeFacts>>,
    setup: Option<Arc<Setup>>,
    publisher: Option<std::thread::JoinHandle<()>>,
    portals: Option<voute_schemas::place::Portals>,
    proven: Proven,
    /// Groups of the specs that were handed to reactors or wait for devices: their shard.
    groups: HashMap<GroupId, u16>,
    /// Groups that wait for devices that are being opened.
    held: HashMap<GroupId, GroupSpec>,
    devices: HashMap<DeviceId, (DeviceSpec, DeviceState)>,
    adoptions: JoinSet<(DeviceId, Result<Adopted, AdoptError>)>,
    /// Where each local leg's keeper lives or lived.
    leg_shards: HashMap<LegId, u16>,
    retired: HashSet<LegId>,
    escalations: Escalations,
    controls: Controls,
    /// Whether this process took in everything once: what changed since makes sense only then.
    is_complete: bool,
    /// Reports of reactors for the status being made.
    reports: HashMap<usize, (Vec<GroupStatus>, Vec<LinkStatus>)>,
    report_at: Instant,
    reported_at: Instant,
    counted_at: Instant,
    told: refusals::Told,
}

impl Agent {
    pub(crate) fn new(parts: Parts) -> Self {
        let now = Instant::now();
        Agent {
            parts,
            facts: None,
            setup: None,
            publisher: None,
            portals: None,
            proven: Proven::new(),
            groups: HashMap::new(),
            held: HashMap::new(),
            devices: HashMap::new(),
            adoptions: JoinSet::new(),
            leg_shards: HashMap::new(),
            retired: HashSet::new(),
            escalations: Escalations::default(),
            controls: Controls::default(),
            is_complete: false,
            reports: HashMap::new(),
            report_at: now,
            reported_at: now,
            counted_at: now,
            told: refusals::Told::default(),
        }
    }

    /// Runs until `stop`, or until something makes going on impossible.
    ///
    /// # Errors
    /// [`NodeError`].
    pub(crate) async fn run(
        mut self,
        mut control: mpsc::Receiver<StreamEvent>,
        mut reactors: mpsc::Receiver<FromReactor>,
        mut ended: mpsc::UnboundedReceiver<usize>,
        stop: Stop,
    ) -> Result<(), NodeError> {
        let result = loop {
            let retry = self.escalations.next_retry(self.retry_after());
            let retry_at = retry
                .filter(|_| self.controls.is_any())
                // Not at once: what is due already found no room a moment ago.
                .map_or(self.report_at, |at| {
                    Instant::now() + at.saturating_sub(raw()).max(RETRY_EVERY_MIN)
                });
            let done = tokio::select! {
                () = stop.stopped() => break Ok(()),
                index = ended.recv() => break Err(NodeError::ReactorEnded { index: index.unwrap_or(0) }),
                event = control.recv() => self.heard(event),
                event = reactors.recv() => match event {
                    Some(event) => {
                        self.reactor_says(event);
                        while let Ok(event) = reactors.try_recv() {
                            self.reactor_says(event);
                        }
                        Ok(())
                    }
                    None => break Ok(()),
                },
                Some(adoption) = self.adoptions.join_next() => {
                    match adoption {
                        Ok((device, result)) => self.adopted(device, result),
                        Err(error) => tracing::error!(%error, "opening a device broke off"),
                    }
                    Ok(())
                }
                () = sleep_until(self.report_at) => {
                    self.ask_reports();
                    Ok(())
                }
                () = sleep_until(retry_at) => Ok(()),
            };
            if let Err(error) = done {
                break Err(error);
            }
            self.send_escalations();
        };
        if let Some(setup) = &self.setup {
            self.told.conclude(setup.nvme.refusals(), &self.parts.metrics);
        }
        self.parts.offer.end();
        if let Some(publisher) = self.publisher.take() {
            // It ends within one publication; a panic in it was logged.
            let _ = publisher.join();
        }
        result
    }

    fn times(&self) -> Times {
        self.facts.as_ref().map_or_else(Times::default, |facts| facts.times)
    }

    fn retry_after(&self) -> Duration {
        Duration::from_millis(self.times().escalation_retry_ms)
    }

    // ---- the control plane -------------------------------------------------------------------

    fn heard(&mut self, event: Option<StreamEvent>) -> Result<(), NodeError> {
        match event {
            Some(StreamEvent::Connected(index, sender)) => {
                if self.controls.opened(index, sender) {
                    self.escalations.disconnected();
                }
                let hello = FromNode::Hello(Hello {
                    contract: CONTRACT_VERSION,
                    node: self.parts.node,
                    incarnation: self.parts.memory.incarnation(),
                    software: concat!("voute ", env!("CARGO_PKG_VERSION")).into(),
                    engine: "native".into(),
                    obeyed: self.parts.memory.obeyed(),
                });
                self.controls.say(index, hello);
                self.report_soon();
                Ok(())
            }
            Some(StreamEvent::Disconnected(index)) => {
                self.give_up(index);
                Ok(())
            }
            Some(StreamEvent::Message(index, _)) if !self.controls.is_heard(index) => Ok(()),
            Some(StreamEvent::Message(index, message)) => match *message {
                ToNode::Spec(spec) => self.take_spec(index, *spec),
                ToNode::Answer { id, outcomes } => {
                    self.answered(id, outcomes);
                    Ok(())
                }
                ToNode::Heartbeat { sent_us } => {
                    self.controls.heartbeat(index, sent_us);
                    Ok(())
                }
                ToNode::Goodbye { cause } => {
                    tracing::info!(%cause, "a control process says goodbye");
                    self.give_up(index);
                    Ok(())
                }
            },
            None => Ok(()),
        }
    }

    /// Speaks to a control process no more until its stream opens again.
    fn give_up(&mut self, index: usize) {
        if self.controls.close(index) {
            // Another may answer.
            self.escalations.disconnected();
        }
    }

    /// Takes what a control process wants this node to be. Of several the furthest counts: this node
    /// is then what the log says at the position that it obeyed last, whoever told it. What another
    /// sends of a later position holds all that changed since that one's own last message, which was
    /// not ahead of that position: so nothing is missed.
    fn take_spec(&mut self, index: usize, spec: NodeSpec) -> Result<(), NodeError> {
        let memory = &self.parts.memory;
        let checked =
            trust::check(&spec, self.parts.node, memory.trust(), memory.obeyed(), &self.proven);
        let trust = match checked {
            Ok(trust) => trust,
            // It lags; it will come to where the others are.
            Err(SpecError::Older { found, obeyed }) if self.is_complete => {
                tracing::debug!(%found, %obeyed, "a control process lags");
                return Ok(());
            }
            Err(error) => {
                count(&self.parts.metrics.refused_specs, 1);
                tracing::error!(%error, at = %spec.as_of, "a spec is not obeyed");
                self.give_up(index);
                return Ok(());
            }
        };
        let lacks_facts = self.facts.is_none() && spec.facts.is_none();
        if lacks_facts || !(spec.full || self.is_complete) {
            // A new stream begins with everything.
            self.give_up(index);
            return Ok(());
        }
        self.parts.memory.note(spec.as_of, &trust)?;
        self.is_complete = true;
        self.obey(spec)
    }

    fn obey(&mut self, spec: NodeSpec) -> Result<(), NodeError> {
        let cluster = spec.cluster;
        for group in &spec.groups {
            self.proven.insert(group.group, group.epoch);
        }
        let facts = spec.facts.map(Arc::new);
        if let Some(facts) = &facts {
            self.take_facts(facts, cluster)?;
        }
        let mut removed = spec.removed_groups;
        if spec.full {
            let named: HashSet<_> = spec.groups.iter().map(|group| group.group).collect();
            removed.extend(self.groups.keys().filter(|group| !named.contains(group)));
        }
        self.parts.offer.set_groups(&spec.groups, &removed);
        self.remove_groups(&removed);
        for group in spec.groups {
            self.groups.insert(group.group, offer::shard(&group));
            self.held.insert(group.group, group);
        }
        self.release_held();
        if facts.is_some() {
            self.retire();
        }
        self.report_soon();
        Ok(())
    }

    fn remove_groups(&mut self, removed: &[GroupId]) {
        let mut by_shard: HashMap<u16, Vec<GroupId>> = HashMap::new();
        for group in removed {
            self.held.remove(group);
            self.proven.remove(group);
            if let Some(shard) = self.groups.remove(group) {
                by_shard.entry(shard).or_default().push(*group);
            }
        }
        for (shard, removed) in by_shard {
            self.to_shard(shard, Message::Apply { shard, legs: vec![], groups: vec![], removed });
        }
    }

    fn to_shard(&self, shard: u16, message: Message) {
        self.parts.mailboxes[usize::from(shard) % self.parts.mailboxes.len()].send(message);
    }

    fn to_all(&self, mut message: impl FnMut() -> Message) {
        self.parts.mailboxes.iter().for_each(|mailbox| mailbox.send(message()));
    }

    // ---- facts -------------------------------------------------------------------------------

    fn take_facts(
        &mut self,
        facts: &Arc<NodeFacts>,
        cluster: voute_schemas::ClusterId,
    ) -> Result<(), NodeError> {
        let peers =
            Peers::new(facts).map_err(|error| NodeError::Facts { cause: error.to_string() })?;
        if self.setup.is_none() {
            let setup = self.set_up(facts, cluster)?;
            self.to_all(|| Message::Setup(setup.clone()));
            self.setup = Some(setup);
        }
        let peers = Arc::new(peers);
        self.to_all(|| Message::Peers(peers.clone()));
        self.parts.offer.set_facts(facts.clone());
        if self.portals != Some(facts.portals) {
            self.listen(facts)?;
        }
        self.facts = Some(facts.clone());
        self.follow_devices(facts, cluster);
        Ok(())
    }

    fn set_up(
        &mut self,
        facts: &Arc<NodeFacts>,
        cluster: voute_schemas::ClusterId,
    ) -> Result<Arc<Setup>, NodeError> {
        let invalid = |cause: String| NodeError::Facts { cause };
        let number = facts.number;
        if number > NUMBER_MAX {
            return Err(invalid(format!("the node's number is {number}, over {NUMBER_MAX}")));
        }
        let mut nvme_seed = [0; 32];
        getrandom::fill(&mut nvme_seed).map_err(|error| invalid(error.to_string()))?;
        let lowest = number * offer::CONTROLLERS_PER_NODE;
        let config = voute_nvme::TargetConfig {
            serial: facts.serial.clone(),
            controller_min: lowest.max(1),
            controller_max: lowest + offer::CONTROLLERS_PER_NODE - 1,
            seed: voute_nvme::Seed(nvme_seed),
            ..voute_nvme::TargetConfig::default()
        };
        let nvme = voute_nvme::Target::new(config).map_err(|error| invalid(error.to_string()))?;
        let config = voute_nvme::TargetConfig {
            link_nqn: Some(link_nqn(&facts.subsystem_nqn)),
            ..voute_nvme::TargetConfig::default()
        };
        let links = voute_nvme::Target::new(config).map_err(|error| invalid(error.to_string()))?;
        links.publish(Arc::new(voute_nvme::Directory::default()));
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| invalid(error.to_string()))?;
        let iscsi = voute_iscsi::Target::new(voute_iscsi::TargetConfig {
            name: facts.target_iqn.clone(),
            alias: Some("Voute".into()),
            seed,
        });
        let identity = Identity {
            cluster,
            node: self.parts.node,
            incarnation: self.parts.memory.incarnation(),
            session: self.parts.session,
            times: facts.times,
        };
        let mailboxes = self.parts.mailboxes.clone();
        let wake = move || mailboxes.iter().for_each(|mailbox| mailbox.wake());
        nvme.set_waker(Box::new(wake.clone()));
        let offer = self.parts.offer.clone();
        let judge = Judge::start(self.parts.mailboxes.clone()).map_err(NodeError::Thread)?;
        let setup = Setup { identity, number, nvme, links, iscsi, offer: offer.clone(), judge };
        let setup = Arc::new(setup);
        let of_publisher = setup.clone();
        let publish = move || {
            let _guard = AbortOnPanic;
            offer.publish(&of_publisher.nvme, &of_publisher.iscsi, wake);
        };
        let publisher = std::thread::Builder::new().name("voute-offer".into()).spawn(publish);
        self.publisher = Some(publisher.map_err(NodeError::Thread)?);
        Ok(setup)
    }

    /// Listens on the node's portals, on every reactor.
    fn listen(&mut self, facts: &NodeFacts) -> Result<(), NodeError> {
        let sockets =
            listen::sockets(&facts.portals, self.parts.mailboxes.len(), self.portals.as_ref())?;
        for (mailbox, sockets) in self.parts.mailboxes.iter().zip(sockets) {
            mailbox.send(Message::Listen(sockets));
        }
        let portals = facts.portals;
        tracing::info!(nvme = %portals.nvme, iscsi = %portals.iscsi, link = %portals.link, "listening");
        self.portals = Some(portals);
        Ok(())
    }

    fn follow_devices(&mut self, facts: &NodeFacts, cluster: voute_schemas::ClusterId) {
        let named: HashSet<_> = facts.devices.iter().map(|spec| spec.device).collect();
        let gone: Vec<_> = self.devices.keys().filter(|id| !named.contains(id)).copied().collect();
        for device in gone {
            self.devices.remove(&device);
            self.to_all(|| Message::ForgetDevice(device));
        }
        for spec in &facts.devices {
            let is_new = match self.devices.get(&spec.device) {
                None => true,
                // What was refused is tried again when the log says something new about it.
                Some((before, DeviceState::Refused(_))) => before != spec,
                Some((_, DeviceState::Opening | DeviceState::Open { .. })) => false,
            };
            if is_new {
                self.devices.insert(spec.device, (spec.clone(), DeviceState::Opening));
                let (spec, keys) = (spec.clone(), self.parts.array_keys.clone());
                let adopt = move || (spec.device, adopt_with_keys(&spec, cluster, &keys));
                self.adoptions.spawn_blocking(adopt);
            } else if let Some((known, state)) = self.devices.get_mut(&spec.device) {
                *known = spec.clone();
                // The log may not have heard it.
                if let DeviceState::Open { size_bytes, block_bytes } = *state {
                    self.announce_device(spec, size_bytes, block_bytes);
                }
            }
        }
    }

    /// Tells the log of a device that is open, unless it knows.
    fn announce_device(&mut self, spec: &DeviceSpec, size_bytes: u64, block_bytes: u32) {
        let device = spec.device;
        if !spec.adopted {
            self.escalate(Escalation::DeviceReady { device, size_bytes, block_bytes });
        }
    }

    fn escalate(&mut self, escalation: Escalation) {
        if !self.escalations.add(None, escalation) {
            count(&self.parts.metrics.dropped_escalations, 1);
        }
    }

    fn adopted(&mut self, device: DeviceId, result: Result<Adopted, AdoptError>) {
        let Some((spec, state)) = self.devices.get_mut(&device) else { return };
        let spec = spec.clone();
        match result {
            Ok(Adopted { device: open, size_bytes, block_bytes }) => {
                *state = DeviceState::Open { size_bytes, block_bytes };
                tracing::info!(%device, size_bytes, block_bytes, "device open");
                for mailbox in self.parts.mailboxes.iter() {
                    mailbox.send(Message::Device(device, open.clone()));
                }
                self.announce_device(&spec, size_bytes, block_bytes);
            }
            Err(error) => {
                tracing::error!(%device, %error, "device not usable");
                let cause = error.to_string();
                *state = DeviceState::Refused(cause.clone());
                // Of a device that the log has as adopted, the status tells; its legs' owners act.
                if !spec.adopted {
                    self.escalate(Escalation::DeviceRefused { device, cause });
                }
            }
        }
        self.release_held();
        self.retire();
        self.report_soon();
    }

    fn is_opening(&self, runs: &[voute_schemas::place::ExtentRun]) -> bool {
        runs.iter()
            .any(|run| matches!(self.devices.get(&run.device), Some((_, DeviceState::Opening))))
    }

    /// Where a leg lies; extents of a pool's devices are equally long.
    fn place(&self, leg: LegId, runs: &[voute_schemas::place::ExtentRun]) -> LegPlace {
        let device = runs.first().and_then(|run| self.devices.get(&run.device));
        let extent_bytes = device.map_or(0, |(spec, _)| spec.extent_bytes);
        LegPlace { leg, extent_bytes, runs: runs.to_vec() }
    }

    /// Hands to the reactors what waited for devices that are now open, or never will be.
    fn release_held(&mut self) {
        let mine = |leg: &&LegSpec| leg.node == self.parts.node && !leg.runs.is_empty();
        let ready = self.held.iter().filter(|(_, group)| {
            let legs = group.volumes.iter().flat_map(|volume| &volume.legs).filter(mine);
            !legs.into_iter().any(|leg| self.is_opening(&leg.runs))
        });
        let ready: Vec<GroupId> = ready.map(|(id, _)| *id).collect();
        let mut by_shard: HashMap<u16, (Vec<LegPlace>, Vec<GroupSpec>)> = HashMap::new();
        for id in ready {
            let group = self.held.remove(&id).expect("it was found above");
            let shard = offer::shard(&group);
            let entry = by_shard.entry(shard).or_default();
            for leg in group.volumes.iter().flat_map(|volume| &volume.legs).filter(mine) {
                self.leg_shards.insert(leg.leg, shard);
                entry.0.push(self.place(leg.leg, &leg.runs));
            }
            entry.1.push(group);
        }
        for (shard, (legs, groups)) in by_shard {
            self.to_shard(shard, Message::Apply { shard, legs, groups, removed: vec![] });
        }
    }

    /// Has retired legs wiped, once each, and forgets those that the specs name no more.
    fn retire(&mut self) {
        let Some(facts) = self.facts.clone() else { return };
        for retired in &facts.retired_legs {
            if self.is_opening(&retired.runs) || !self.retired.insert(retired.leg) {
                continue;
            }
            let spread = (retired.leg.0.as_u128() % u128::from(SHARDS)) as u16;
            let shard = *self.leg_shards.entry(retired.leg).or_insert(spread);
            let leg = self.place(retired.leg, &retired.runs);
            self.to_shard(shard, Message::Retire { shard, leg });
        }
        let named: HashSet<_> = facts.retired_legs.iter().map(|retired| retired.leg).collect();
        let gone: Vec<LegId> =
            self.retired.iter().filter(|leg| !named.contains(leg)).copied().collect();
        for leg in gone {
            self.retired.remove(&leg);
            if let Some(shard) = self.leg_shards.remove(&leg) {
                self.to_shard(shard, Message::Forget(leg));
            }
        }
    }

    // ---- reactors ----------------------------------------------------------------------------

    fn reactor_says(&mut self, event: FromReactor) {
        match event {
            FromReactor::Escalate(shard, escalation) => {
                tracing::debug!(?escalation, "escalation");
                if !self.escalations.add(Some(shard), escalation) {
                    count(&self.parts.metrics.dropped_escalations, 1);
                }
            }
            FromReactor::Changed => self.report_soon(),
            FromReactor::Report { reactor, groups, links } => {
                self.reports.insert(reactor, (groups, links));
                if self.reports.len() == self.parts.mailboxes.len() {
                    self.tell_status();
                }
            }
        }
    }

    fn report_soon(&mut self) {
        self.report_at = self.report_at.min(self.reported_at + REPORT_EVERY_MIN);
    }

    /// Asks every reactor how things stand; the status goes out when all have answered, so that a
    /// stuck reactor is noticed as a silent node.
    fn ask_reports(&mut self) {
        self.reported_at = Instant::now();
        self.report_at =
            self.reported_at + Duration::from_millis(self.times().heartbeat_ms.max(10));
        if let Some(setup) = &self.setup {
            self.told.follow(setup.nvme.refusals(), &self.parts.metrics);
        }
        if self.counted_at.elapsed() >= COUNT_EVERY {
            self.counted_at = self.reported_at;
            tracing::info!(metrics = ?self.parts.metrics, "since the start");
        }
        if self.controls.is_any() {
            for mailbox in self.parts.mailboxes.iter() {
                // A full mailbox answers at the next heartbeat.
                let _ = mailbox.try_send(Message::Report);
            }
        }
    }

    fn tell_status(&mut self) {
        let (mut groups, mut links) = (Vec::new(), Vec::new());
        for (_, (of_groups, of_links)) in self.reports.drain() {
            groups.extend(of_groups);
            links.extend(of_links);
        }
        let links = joined(links);
        for lease_ms in links.iter().filter_map(|link| link.lease_ms) {
            self.parts.metrics.lease_margin_ms_min.fetch_min(lease_ms, Ordering::Relaxed);
        }
        if !self.controls.is_any() {
            return;
        }
        let devices = self.devices.iter().map(|(device, (_, state))| DeviceStatus {
            device: *device,
            open: matches!(state, DeviceState::Open { .. }),
            detail: match state {
                DeviceState::Opening => "being opened".into(),
                DeviceState::Open { .. } => String::new(),
                DeviceState::Refused(cause) => cause.clone(),
            },
        });
        let status = NodeStatus {
            obeyed: self.parts.memory.obeyed(),
            answers_us: 0,
            devices: devices.collect(),
            links,
            groups: Vec::new(),
        };
        self.controls.report(&status, &groups);
    }

    fn send_escalations(&mut self) {
        if self.escalations.is_late(raw(), self.retry_after()) {
            self.controls.ask_another();
        }
        while self.controls.is_any() {
            let Some((id, requests)) = self.escalations.next_batch(raw(), self.retry_after())
            else {
                return;
            };
            if !self.controls.ask(FromNode::Escalate { id, requests }) {
                return;
            }
        }
    }

    fn answered(&mut self, id: voute_schemas::EscalationId, outcomes: Vec<EscalationOutcome>) {
        let mut by_shard: HashMap<u16, Vec<_>> = HashMap::new();
        let answered: Vec<(Asker, _, _)> = self.escalations.answered(id, outcomes);
        for (asker, escalation, outcome) in answered {
            if let EscalationOutcome::Refused { code, message } = &outcome {
                tracing::info!(?escalation, %code, %message, "escalation refused");
            }
            if let Some(shard) = asker {
                by_shard.entry(shard).or_default().push((escalation, outcome));
            }
        }
        for (shard, outcomes) in by_shard {
            self.to_shard(shard, Message::Answered { shard, outcomes });
        }
    }
}

/// Hosts of a node that tells them nothing new any more would stay where they are after a failover.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                "what this node offers cannot be published any more: a bug; it ends, start it again"
            );
            std::process::abort();
        }
    }
}

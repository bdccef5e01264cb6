//! The log with three sites that sign: the real `decide` and `evolve`, an append that expects a
//! position, registers that never sign less or another branch, and the loss of a suffix.

use std::fmt::Write;
use uuid::Uuid;
use voute_control::domain::{
    Refusal, SpecInputs, State, decide, decide_escalations, evolve, node_spec,
};
use voute_schemas::command::{Command, Escalation, LegRequest};
use voute_schemas::commit::{Actor, Origin, Outcome};
use voute_schemas::contract::{EscalationOutcome, GroupSpec};
use voute_schemas::event::{Event, FailoverMode, PolicyRules, SiteKind};
use voute_schemas::place::{Locator, Portals};
use voute_schemas::proof::Verifier;
use voute_schemas::times::Times;
use voute_schemas::*;

use crate::disk::BLOCK;

/// Sites that sign.
pub(crate) const SITES: usize = 3;

pub(crate) const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(1));
pub(crate) const NODES: [NodeId; 2] = [NodeId(Uuid::from_u128(11)), NodeId(Uuid::from_u128(12))];
pub(crate) const DATA_SITES: [SiteId; 2] =
    [SiteId(Uuid::from_u128(21)), SiteId(Uuid::from_u128(22))];
const WITNESS: SiteId = SiteId(Uuid::from_u128(23));
const POOLS: [PoolId; 2] = [PoolId(Uuid::from_u128(31)), PoolId(Uuid::from_u128(32))];
const DEVICES: [DeviceId; 2] = [DeviceId(Uuid::from_u128(41)), DeviceId(Uuid::from_u128(42))];
pub(crate) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(51));
pub(crate) const GROUP: GroupId = GroupId(Uuid::from_u128(61));
const LEGS: [LegId; 2] = [LegId(Uuid::from_u128(71)), LegId(Uuid::from_u128(72))];
const POLICY: PolicyId = PolicyId(Uuid::from_u128(81));

#[derive(Clone)]
struct Entry {
    position: Epoch,
    state: State,
}

#[derive(Clone)]
pub(crate) struct Log {
    /// Everything that may still be read late or be lost, oldest first; never empty.
    entries: Vec<Entry>,
    /// What each site signed last.
    registers: [Epoch; SITES],
    /// Rises when a suffix is lost, so that what is appended then has other hashes.
    branch: u64,
}

/// What came of asking.
pub(crate) enum Asked {
    /// Appended as this commit: to be answered when it is effective.
    Appended(Sequence),
    /// Nothing was appended: answered at once.
    Answered(EscalationOutcome),
}

impl Log {
    /// The log of a new cluster with one mirrored volume.
    pub(crate) fn founded() -> Self {
        let zero = Entry { position: Epoch::ZERO, state: State::default() };
        let mut log = Log { entries: vec![zero], registers: [Epoch::ZERO; SITES], branch: 0 };
        for command in founding() {
            log.command(&command).expect("the founding commands are accepted");
        }
        log.entries.drain(..log.entries.len() - 1);
        log.registers = [log.head().position; SITES];
        log
    }

    fn head(&self) -> &Entry {
        self.entries.last().expect("a log is never empty")
    }

    pub(crate) fn state(&self) -> &State {
        &self.head().state
    }

    /// The state at the highest position that a majority of the sites signed and that is in the log.
    pub(crate) fn effective(&self) -> Option<&State> {
        let mut signed: Vec<usize> = self
            .registers
            .iter()
            .filter_map(|register| self.entries.iter().position(|it| it.position == *register))
            .collect();
        signed.sort_unstable();
        let majority = SITES / 2 + 1;
        let index = signed.len().checked_sub(majority)?;
        Some(&self.entries[signed[index]].state)
    }

    /// Whether a site has something to sign.
    pub(crate) fn has_unsigned(&self, site: usize) -> bool {
        self.register_is_here(site) && self.registers[site] != self.head().position
    }

    fn register_is_here(&self, site: usize) -> bool {
        self.entries.iter().any(|entry| entry.position == self.registers[site])
    }

    pub(crate) fn sign(&mut self, site: usize) {
        self.registers[site] = self.head().position;
    }

    /// Forgets what nobody will ask for: all before what is effective and the one before the head,
    /// but for what a register holds.
    pub(crate) fn tidy(&mut self) {
        let effective = self.effective().map(State::position);
        let kept = self.entries.iter().position(|entry| {
            Some(entry.position) == effective || self.registers.contains(&entry.position)
        });
        let before_head = self.entries.len().saturating_sub(2);
        self.entries.drain(..kept.unwrap_or(0).min(before_head));
    }

    /// Whether a suffix of so many commits can be lost.
    pub(crate) fn can_lose(&self, count: usize) -> bool {
        self.branch == 0 && self.entries.len() > count
    }

    pub(crate) fn lose(&mut self, count: usize) {
        self.entries.truncate(self.entries.len() - count);
        self.branch += 1;
    }

    /// Whether so many sites hold what the log lost that nothing can be effective any more.
    pub(crate) fn is_beyond_repair(&self) -> bool {
        let here = (0..SITES).filter(|site| self.register_is_here(*site)).count();
        here < SITES / 2 + 1
    }

    pub(crate) fn command(&mut self, command: &Command) -> Result<Sequence, Refusal> {
        let events = decide(self.state(), command)?;
        Ok(self.append(Actor::System, command.name(), events))
    }

    /// A node asks. `is_stale`: the control process that it asks has not read the last commit yet.
    /// What it would append then meets a conflict, and it decides again.
    pub(crate) fn ask(&mut self, node: NodeId, request: &Escalation, is_stale: bool) -> Asked {
        if is_stale && self.entries.len() > 1 {
            let stale = &self.entries[self.entries.len() - 2].state;
            let decided = decide_escalations(stale, node, std::slice::from_ref(request)).remove(0);
            if decided.is_ok_and(|events| events.is_empty()) {
                return Asked::Answered(committed(stale.position().sequence));
            }
        }
        match decide_escalations(self.state(), node, std::slice::from_ref(request)).remove(0) {
            Ok(events) if events.is_empty() => {
                Asked::Answered(committed(self.state().position().sequence))
            }
            Ok(events) => Asked::Appended(self.append(Actor::Node(node), "escalate", events)),
            Err(refusal) => Asked::Answered(EscalationOutcome::Refused {
                code: refusal.code().to_owned(),
                message: String::new(),
            }),
        }
    }

    fn append(&mut self, actor: Actor, command: &str, events: Vec<Event>) -> Sequence {
        let before = self.head();
        let sequence = before.position.sequence.next();
        let commit = Commit {
            sequence,
            previous: before.position.hash,
            id: CommitId(Uuid::from_u128(u128::from(self.branch) << 64 | u128::from(sequence.0))),
            time_unix_ms: 0,
            actor,
            origin: Origin::Genesis,
            source: None,
            correlation: CorrelationId(Uuid::nil()),
            causation: None,
            idempotency_key: None,
            command: command.to_owned(),
            reason: String::new(),
            outcome: Outcome::Accepted(events),
        };
        let position = Epoch { sequence, hash: Hash::of_commit(&commit.encode()) };
        let mut state = before.state.clone();
        evolve(&mut state, position, &commit);
        self.entries.push(Entry { position, state });
        sequence
    }

    /// What a node is told: the group as it is effective or, stale, as it was before.
    pub(crate) fn spec(&self, node: NodeId, is_stale: bool) -> Option<(Sequence, GroupSpec)> {
        let effective = self.effective()?;
        let older = self
            .entries
            .iter()
            .rev()
            .find(|entry| entry.position.sequence < effective.position().sequence);
        let state = match older {
            Some(entry) if is_stale => &entry.state,
            Some(_) | None => effective,
        };
        let inputs =
            SpecInputs { times: Times::default(), link_secret: "", chap_secret: &|_| None };
        let mut spec = node_spec(state, node, &inputs)?.groups.pop()?;
        for volume in &mut spec.volumes {
            (volume.size_bytes, volume.region_bytes) = (BLOCK, BLOCK);
        }
        Some((state.position().sequence, spec))
    }

    pub(crate) fn describe(&self, text: &mut String) {
        for entry in &self.entries {
            let (group, volume) = (entry.state.group(GROUP), entry.state.volume(VOLUME));
            let formatted = volume.iter().flat_map(|volume| &volume.legs).map(|leg| leg.formatted);
            let _ = write!(text, "{:?} {group:?} ", entry.position);
            formatted.for_each(|formatted| text.push_str(if formatted { "yes " } else { "no " }));
        }
        let _ = write!(text, "registers {:?} branch {} ", self.registers, self.branch);
    }
}

fn committed(sequence: Sequence) -> EscalationOutcome {
    EscalationOutcome::Committed { sequence }
}

fn founding() -> Vec<Command> {
    let name = |text: &str| Name::new(text).expect("the model's names are valid");
    let log_site = Verifier { name: "w".to_owned(), key: Hash([7; 32]) };
    let mut commands =
        vec![Command::CreateCluster { cluster: CLUSTER, name: name("town"), log_site }];
    for index in 0..2_usize {
        let (site, node, pool) = (DATA_SITES[index], NODES[index], POOLS[index]);
        let device = DEVICES[index];
        let port = |number: u16| {
            let base = if index == 0 { 4_000 } else { 4_010 };
            std::net::SocketAddr::from(([127, 0, 0, 1], base + number))
        };
        let portals = Portals { nvme: port(1), iscsi: port(2), link: port(3) };
        let verifier = Hash([if index == 0 { 1 } else { 2 }; 32]);
        let called = |noun: &str| name(&format!("{noun}-{index}"));
        let locator = Locator::File { path: format!("/device-{index}"), size_bytes: 1 << 30 };
        let ready = Escalation::DeviceReady { device, size_bytes: 1 << 30, block_bytes: 4096 };
        commands.extend([
            Command::AddSite { site, name: called("site"), kind: SiteKind::Data },
            Command::AddNode { node, name: called("node"), site, portals, verifier },
            Command::CreatePool { pool, name: called("pool"), site, extent_bytes: 16 << 20 },
            Command::AddDevice {
                device,
                name: called("device"),
                node,
                pool,
                locator,
                overwrite: false,
            },
            Command::Escalate { node, requests: vec![ready] },
        ]);
    }
    let rules = PolicyRules {
        mode: FailoverMode::Automatic,
        hold_down_ms: 0,
        preferred_site: None,
        failback: false,
    };
    let leg = |index: usize| LegRequest { leg: LEGS[index], pool: POOLS[index] };
    commands.extend([
        Command::AddSite { site: WITNESS, name: name("w"), kind: SiteKind::Witness },
        Command::CreatePolicy { policy: POLICY, name: name("policy"), rules },
        Command::CreateVolume {
            volume: VOLUME,
            group: GROUP,
            name: name("volume"),
            size_bytes: 1 << 20,
            block_bytes: 4096,
            legs: vec![leg(0), leg(1)],
            policy: Some(POLICY),
        },
    ]);
    commands
}

//! What must hold whatever happens, beside what hosts see.

use crate::REGION;
use crate::control::Publication;
use crate::stream::SERVING;
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use voute_control::domain::state::Group;
use voute_mirror::header::Header;
use voute_mirror::{Access, HostOperation, HostRequest};
use voute_schemas::command::Command;
use voute_schemas::contract::{GroupRole, NodeStatus};
use voute_schemas::event::{DetachCause, Event, MoveKind, ResyncEvidence};
use voute_schemas::{CommitId, GroupId, Sequence};

/// What is remembered of a volume.
#[derive(Default)]
struct Watched {
    /// Since when both sides are in sync.
    whole_since: Option<Duration>,
    /// At which epoch it was last written down that the legs are equal: what was touched before
    /// counts no more.
    rotated_at: Sequence,
    touched: BTreeSet<u64>,
    touched_before: BTreeSet<u64>,
    /// A leg began anew, or its maps could not be read: a full copy has its reason.
    /// Until the legs are equal at a later epoch than this.
    may_copy_all: Option<Sequence>,
}

pub(crate) struct Checks {
    volumes: Vec<Watched>,
    served: BTreeMap<(GroupId, Sequence), usize>,
    obeyed: BTreeMap<(usize, u64, GroupId), Sequence>,
    /// The highest commit that was counted.
    counted: Sequence,
    /// All of them: a log that forgot its end uses numbers twice.
    commits: BTreeSet<CommitId>,
}

/// After so long both legs have it on disk that they were equal.
const SETTLED_AFTER: Duration = Duration::from_secs(4);
/// How long a cluster may take to become whole once nothing is wrong any more.
const HEALTHY_WITHIN: Duration = Duration::from_secs(90);

impl Checks {
    pub(crate) fn new(volumes: usize) -> Self {
        Checks {
            volumes: (0..volumes).map(|_| Watched::default()).collect(),
            served: BTreeMap::new(),
            obeyed: BTreeMap::new(),
            counted: Sequence(0),
            commits: BTreeSet::new(),
        }
    }

    /// A leg begins anew, or its maps are not to be trusted: more may be copied than was touched.
    pub(crate) fn maps_are_lost(&mut self) {
        let now = Some(self.counted);
        self.volumes.iter_mut().for_each(|volume| volume.may_copy_all = now);
    }
}

impl World {
    fn volume_of(&self, group: GroupId) -> Option<usize> {
        self.founded.volumes.iter().position(|volume| volume.group == group)
    }

    pub(crate) fn group(&self, volume: usize) -> Option<&Group> {
        self.controls[SERVING].state().group(self.founded.volumes[volume].group)
    }

    // ---- the log -------------------------------------------------------------------------------

    /// Each commit counts once, whoever reads it first.
    pub(crate) fn check_commits(&mut self, publication: &Publication) {
        let forgot = self.log.inner().forgot();
        for (id, group) in publication.after.groups() {
            let before = publication.before.group(id).map(|group| group.epoch.sequence);
            if before > Some(group.epoch.sequence) && !forgot {
                self.violated(|| format!("the epoch of {id} fell to {}", group.epoch.sequence));
            }
        }
        for (id, sequence, events) in &publication.commits {
            if self.checks.commits.insert(*id) {
                self.checks.counted = self.checks.counted.max(*sequence);
                events.iter().for_each(|event| self.count(event));
            }
        }
    }

    fn count(&mut self, event: &Event) {
        match event {
            Event::OwnerMoved { kind, .. } => {
                self.tally.moves += 1;
                self.tally.failovers += u64::from(*kind != MoveKind::Planned);
            }
            Event::LegDetached { group, cause, .. } => {
                self.tally.detached += 1;
                if *cause == DetachCause::ContentLost
                    && let Some(volume) = self.volume_of(*group)
                {
                    self.checks.volumes[volume].may_copy_all = Some(self.checks.counted);
                }
            }
            Event::LegAdded { volume, .. } => {
                let index = self.founded.volumes.iter().position(|it| it.volume == *volume);
                if let Some(index) = index {
                    self.checks.volumes[index].may_copy_all = Some(self.checks.counted);
                }
            }
            Event::LegInSync { group, resync, .. } => self.check_resync(*group, resync),
            _ => {}
        }
    }

    /// A partial resync copies regions that were touched since the legs were last equal, a full one
    /// has its reason.
    fn check_resync(&mut self, group: GroupId, resync: &ResyncEvidence) {
        self.tally.joined += 1;
        self.tally.full_resyncs += u64::from(resync.full);
        let Some(index) = self.volume_of(group) else { return };
        let watched = &self.checks.volumes[index];
        let touched = watched.touched.union(&watched.touched_before).count() as u64;
        let (full, copied) = (resync.full, resync.regions);
        if watched.may_copy_all.is_some() {
            return;
        }
        if full {
            self.violated(|| {
                format!(
                    "volume {index} was copied wholly ({copied} regions), {touched} were touched"
                )
            });
        } else if copied > touched {
            self.violated(|| {
                format!(
                    "a resync of volume {index} copied {copied} regions, {touched} were touched"
                )
            });
        }
    }

    pub(crate) fn note_touched(&mut self, request: &HostRequest) {
        let index = self.founded.volumes.iter().position(|it| it.volume == request.volume);
        let Some(index) = index else { return };
        let (offset, length) = match &request.operation {
            HostOperation::Write { offset, data }
            | HostOperation::WriteWhole { offset, data }
            | HostOperation::CompareAndWrite { offset, data, .. } => (*offset, data.len() as u64),
            HostOperation::Zero { offset, length, .. } => (*offset, *length),
            _ => return,
        };
        let regions = offset / REGION..=(offset + length - 1) / REGION;
        self.checks.volumes[index].touched.extend(regions);
    }

    /// What time alone shows; asked often.
    pub(crate) fn check_time(&mut self) {
        for volume in 0..self.founded.volumes.len() {
            let is_whole = self.is_whole(volume);
            let epoch = self.group(volume).map_or(Sequence(0), |group| group.epoch.sequence);
            let now = self.now;
            let watched = &mut self.checks.volumes[volume];
            if !is_whole {
                watched.whole_since = None;
                continue;
            }
            let since = *watched.whole_since.get_or_insert(now);
            if watched.rotated_at != epoch && since + SETTLED_AFTER <= now && self.is_marked(volume)
            {
                let watched = &mut self.checks.volumes[volume];
                watched.rotated_at = epoch;
                watched.touched_before = std::mem::take(&mut watched.touched);
                watched.may_copy_all = watched.may_copy_all.filter(|lost| epoch <= *lost);
            }
        }
    }

    /// Both legs say on their disks that they were equal at the present epoch.
    fn is_marked(&self, volume: usize) -> bool {
        let state = self.controls[SERVING].state();
        let (Some(group), Some(known)) =
            (self.group(volume), state.volume(self.founded.volumes[volume].volume))
        else {
            return false;
        };
        known.legs.iter().all(|leg| {
            let node = self.nodes.iter().find(|node| node.id == leg.node);
            let area = node.and_then(|node| node.disk.headers(leg.leg));
            let header = area.and_then(|area| Header::newest(area, leg.leg));
            header.is_some_and(|header| header.map_since == Some(group.epoch.sequence.0))
        })
    }

    /// Its owner serves it.
    pub(crate) fn is_served(&self, volume: usize) -> bool {
        let founded = self.founded.volumes[volume];
        self.group(volume).is_some_and(|group| {
            let owner = self.nodes.iter().find(|node| node.id == group.owner);
            owner.is_some_and(|it| it.access.get(&founded.volume) == Some(&Access::Optimized))
        })
    }

    /// Both sides are there, in sync, and one serves.
    fn is_whole(&self, volume: usize) -> bool {
        let Some(group) = self.group(volume) else { return false };
        let founded = self.founded.volumes[volume];
        let id = founded.volume;
        let owner = self.nodes.iter().find(|node| node.id == group.owner);
        // What the owner obeys, not what it has yet to hear.
        let obeyed = owner
            .and_then(|node| self.checks.obeyed.get(&(node.index, node.process, founded.group)));
        obeyed == Some(&group.epoch.sequence)
            && !self.log.inner().forgot()
            && group.sides.len() == 2
            && group.sides.iter().all(|side| side.in_sync)
            && owner.is_some_and(|node| node.access.get(&id) == Some(&Access::Optimized))
    }

    // ---- nodes ---------------------------------------------------------------------------------

    pub(crate) fn check_serving(&mut self, node: usize, group: GroupId) {
        let state = &self.nodes[node];
        let clock = state.clock(self.now);
        let Some(mirror) = &state.mirror else { return };
        let status = mirror.status(clock, 0).into_iter().find(|status| status.group == group);
        let Some(status) = status.filter(|status| status.role == GroupRole::Serving) else {
            return;
        };
        let epoch = status.epoch.sequence;
        let served = *self.checks.served.entry((group, epoch)).or_insert(node);
        if served != node {
            self.violated(|| {
                format!("nodes {served} and {node} both serve {group} at epoch {epoch}")
            });
        }
    }

    pub(crate) fn check_status(&mut self, node: usize, status: &NodeStatus) {
        let process = self.nodes[node].process;
        for group in &status.groups {
            let key = (node, process, group.group);
            let epoch = group.epoch.sequence;
            let before = self.checks.obeyed.insert(key, epoch);
            if before.is_some_and(|before| before > epoch) {
                self.violated(|| format!("node {node} fell back to epoch {epoch}"));
            }
        }
    }

    /// A token that is held is on the disk: asked when a process ends.
    pub(crate) fn check_tokens(&mut self, node: usize) {
        if self.founded.is_memory[node] {
            return;
        }
        let state = &mut self.nodes[node];
        let clock = state.clock(self.now);
        let Some(mirror) = &state.mirror else { return };
        let mut wrong = None;
        for status in mirror.status(clock, 0) {
            for leg in &status.legs {
                let Some(area) = state.disk.headers(leg.leg) else { continue };
                let Some(header) = Header::newest(area, leg.leg) else { continue };
                let is_lower = header.token < status.token;
                // A leg that was added takes the token with the next bar.
                if is_lower && header.token != voute_schemas::Token::default() {
                    wrong = Some((status.group, header.token, status.token));
                }
            }
        }
        if let Some((group, there, held)) = wrong {
            self.violated(|| {
                format!("node {node} held token {held:?} for {group}, but its leg has {there:?}")
            });
        }
    }

    /// Whether some blocks may have no readable, writable copy just now.
    pub(crate) fn check_medium_error(&mut self, volume: usize) {
        self.check_time();
        let long = Duration::from_secs(1);
        let whole_since = self.checks.volumes[volume].whole_since;
        let is_possible = whole_since.is_none_or(|since| since + long > self.now)
            || self.nodes.iter().all(|node| node.disk.ailment.is_some());
        if !is_possible {
            self.violated(|| {
                format!("volume {volume} had two good legs, but a medium error was told")
            });
        }
    }

    // ---- the end -------------------------------------------------------------------------------

    fn is_healthy(&self) -> bool {
        self.controls[SERVING].serves()
            // What people asked for may take a leg away yet.
            && self.controls.iter().all(|control| !control.has_orders())
            && (0..self.founded.volumes.len()).all(|volume| self.is_whole(volume))
    }

    pub(crate) fn await_health(&mut self, when: &str) {
        let deadline = self.now + HEALTHY_WITHIN;
        let mut legs_again = self.now;
        while !self.is_healthy() && self.violation.is_none() {
            if self.now >= deadline {
                let state = self.describe();
                return self.violated(|| format!("not whole {HEALTHY_WITHIN:?} {when}:\n{state}"));
            }
            self.run_for(Duration::from_millis(20));
            self.check_time();
            // Who took a leg away gives another.
            if self.is_healing && self.now >= legs_again {
                legs_again = self.now + Duration::from_secs(3);
                for volume in 0..self.founded.volumes.len() {
                    self.admin(crate::faults::Order::AddLeg { volume });
                }
            }
        }
    }

    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for volume in 0..self.founded.volumes.len() {
            if let Some(group) = self.group(volume) {
                text += &format!("log: volume {volume}: {group:?}\n");
            }
        }
        for node in &self.nodes {
            let clock = node.clock(self.now);
            let statuses = node.mirror.as_ref().map(|mirror| mirror.status(clock, 0));
            let links = node.mirror.as_ref().map(|mirror| mirror.links(clock));
            text += &format!(
                "node {}: {statuses:?} {links:?}, channel {:?}, stream {:?}, obeys {}\n",
                node.index, node.connection, node.stream, node.obeyed.sequence
            );
        }
        let stopped: Vec<_> = self.controls.iter().map(|it| (it.is_up, &it.stopped)).collect();
        text + &format!("control processes: {stopped:?}\n")
    }

    /// Stops hosts' requests, reads everything at one side, moves, and reads it at the other.
    pub(crate) fn verify(&mut self) {
        self.hosts.is_stopped = true;
        self.settle_hosts();
        self.controls[SERVING].hold_still();
        let mut before: Vec<Option<Vec<u8>>> = vec![None; self.founded.volumes.len()];
        for _ in 0..2 {
            for (volume, before) in before.iter_mut().enumerate() {
                if self.violation.is_some() {
                    return;
                }
                let found = self.read_all(volume);
                if let Some(before) = before.replace(found.clone()) {
                    let differs =
                        before.chunks(512).zip(found.chunks(512)).position(|(a, b)| a != b);
                    if let Some(block) = differs {
                        self.violated(|| {
                            format!("the legs of volume {volume} differ in block {block}")
                        });
                    }
                }
            }
            self.move_all();
        }
        let judged = self.hosts.shared_blocks().find_map(|(volume, block, shared)| {
            shared.judge().err().map(|text| format!("volume {volume} block {block}: {text}"))
        });
        if let Some(wrong) = judged {
            self.violated(|| wrong);
        }
    }

    fn move_all(&mut self) {
        self.await_health("before a planned move");
        let wanted: Vec<_> = (0..self.founded.volumes.len())
            .filter_map(|volume| {
                let group = self.group(volume)?;
                let other = group.sides.iter().find(|side| side.node != group.owner)?;
                Some((self.founded.volumes[volume].group, other.site, other.node))
            })
            .collect();
        for (group, to, _) in &wanted {
            self.ask(SERVING, Command::MoveOwner { group: *group, to: *to }, None);
        }
        let deadline = self.now + Duration::from_secs(20);
        let is_moved = |world: &World| {
            wanted.iter().enumerate().all(|(volume, (_, _, node))| {
                world.group(volume).is_some_and(|group| group.owner == *node)
            }) && world.is_healthy()
        };
        let mut was_moved = false;
        let mut again = self.now + Duration::from_secs(2);
        while !was_moved && self.violation.is_none() {
            if self.now >= deadline {
                let state = self.describe();
                return self.violated(|| format!("not served 20 s after a planned move:\n{state}"));
            }
            self.run_for(Duration::from_millis(5));
            was_moved = is_moved(self);
            // A side that was just taken out again cannot be moved to before it is back.
            if !was_moved && self.now >= again && self.is_healthy() {
                again = self.now + Duration::from_secs(2);
                for (group, to, _) in &wanted {
                    self.ask(SERVING, Command::MoveOwner { group: *group, to: *to }, None);
                }
            }
        }
    }
}

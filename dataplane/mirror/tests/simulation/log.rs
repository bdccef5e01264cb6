//! A log with one group, deciding as the control plane does.

use super::{BLOCK, BLOCKS, BLOCKS_MAX, REGION};
use voute_schemas::command::Escalation;
use voute_schemas::contract::{
    EscalationOutcome, GroupSpec, LegSpec, SideSpec, VerifyOrder, VolumeSpec,
};
use voute_schemas::event::{BlockRange, DetachCause, VerifyEvidence};
use voute_schemas::{Epoch, GroupId, Hash, LegId, Name, NodeId, Sequence, SiteId, VolumeId};

pub struct SimulatedLog {
    spec: GroupSpec,
    sequence: u64,
    pub reachable: bool,
    pub owner_changes: u64,
    /// What comparisons found, and blocks reported as lost.
    pub verified: Vec<VerifyEvidence>,
    pub lost: Vec<BlockRange>,
}

impl SimulatedLog {
    pub fn new(nodes: [NodeId; 2]) -> Self {
        let sites = [SiteId::generate(), SiteId::generate()];
        let epoch = epoch_of(1);
        let legs = (0..2).map(|index| LegSpec {
            leg: LegId::generate(),
            site: sites[index],
            node: nodes[index],
            formatted: false,
            runs: vec![],
        });
        let volume = VolumeSpec {
            volume: VolumeId::generate(),
            name: Name::new("simulated").expect("a valid name"),
            number: 1,
            size_bytes: BLOCKS * BLOCK,
            block_bytes: BLOCK as u32,
            region_bytes: REGION,
            legs: legs.collect(),
            mappings: vec![],
            verify: None,
            presentation: voute_schemas::event::Presentation::default(),
        };
        let sides =
            (0..2).map(|index| SideSpec { site: sites[index], node: nodes[index], in_sync: true });
        let spec = GroupSpec {
            group: GroupId::generate(),
            epoch,
            owner: nodes[0],
            sides: sides.collect(),
            last_common: epoch,
            volumes: vec![volume],
        };
        SimulatedLog {
            spec,
            sequence: 1,
            reachable: true,
            owner_changes: 0,
            verified: vec![],
            lost: vec![],
        }
    }

    pub fn spec(&self) -> GroupSpec {
        self.spec.clone()
    }

    /// Size of the volume, blocks.
    pub fn blocks(&self) -> u64 {
        self.spec.volumes[0].size_bytes / BLOCK
    }

    /// The owner is to compare the legs; no epoch changes.
    pub fn order_verify(&mut self, repair: bool) {
        self.sequence += 1;
        let order = VerifyOrder { run: self.sequence, repair };
        self.spec.volumes[0].verify = Some(order);
    }

    /// It is not to, after all.
    pub fn cancel_verify(&mut self) {
        self.spec.volumes[0].verify = None;
    }

    /// The volume grows; no epoch changes.
    pub fn resize(&mut self, more: u64) -> bool {
        let blocks = (self.blocks() + more).min(BLOCKS_MAX);
        self.spec.volumes[0].size_bytes = blocks * BLOCK;
        true
    }

    pub fn is_in_sync(&self, node: NodeId) -> bool {
        self.spec.sides.iter().any(|side| side.node == node && side.in_sync)
    }

    pub fn owner(&self) -> NodeId {
        self.spec.owner
    }

    pub fn volume(&self) -> VolumeId {
        self.spec.volumes[0].volume
    }

    pub fn both_in_sync(&self) -> bool {
        self.spec.sides.iter().all(|side| side.in_sync)
    }

    pub fn describe(&self) -> String {
        let sides: Vec<_> = self
            .spec
            .sides
            .iter()
            .map(|side| (side.node == self.spec.owner, side.in_sync))
            .collect();
        format!("epoch {} (owner, in sync) {sides:?}", self.spec.epoch)
    }

    fn raise(&mut self) {
        self.sequence += 1;
        self.spec.epoch = epoch_of(self.sequence);
        if self.both_in_sync() {
            self.spec.last_common = self.spec.epoch;
        }
    }

    fn formatted(&self, node: NodeId) -> bool {
        self.spec.volumes[0].legs.iter().all(|leg| leg.node != node || leg.formatted)
    }

    pub fn move_owner(&mut self, to: NodeId) -> bool {
        let can = to != self.spec.owner
            && self.spec.sides.iter().any(|side| side.node == to && side.in_sync)
            && self.formatted(to);
        if can {
            self.spec.owner = to;
            self.owner_changes += 1;
            self.raise();
        }
        can
    }

    pub fn fail_over(&mut self, to: NodeId) -> bool {
        let common = self.spec.last_common;
        let can = self.move_owner(to);
        if can {
            self.spec
                .sides
                .iter_mut()
                .filter(|side| side.node != to)
                .for_each(|side| side.in_sync = false);
            self.spec.last_common = common;
        }
        can
    }

    pub fn decide(&mut self, node: NodeId, escalation: &Escalation) -> (EscalationOutcome, bool) {
        match self.try_decide(node, escalation) {
            Ok(changed) => {
                (EscalationOutcome::Committed { sequence: Sequence(self.sequence) }, changed)
            }
            Err(code) => (
                EscalationOutcome::Refused { code: code.to_owned(), message: String::new() },
                false,
            ),
        }
    }

    fn try_decide(&mut self, node: NodeId, escalation: &Escalation) -> Result<bool, &'static str> {
        let current = self.spec.epoch;
        let by_owner = |epoch: Epoch| {
            if epoch == current && node == self.spec.owner { Ok(()) } else { Err("stale-epoch") }
        };
        match escalation {
            Escalation::LegFormatted { leg } => {
                self.spec.volumes[0]
                    .legs
                    .iter_mut()
                    .filter(|other| other.leg == *leg)
                    .for_each(|leg| leg.formatted = true);
                Ok(true)
            }
            Escalation::DetachSide { epoch, site, cause, .. } => {
                by_owner(*epoch)?;
                let side = self
                    .spec
                    .sides
                    .iter_mut()
                    .find(|side| side.site == *site && side.node != node)
                    .ok_or("no-such-side")?;
                let lost = *cause == DetachCause::ContentLost;
                let mut news = side.in_sync;
                side.in_sync = false;
                if lost {
                    for leg in self.spec.volumes[0].legs.iter_mut().filter(|leg| leg.site == *site)
                    {
                        news |= leg.formatted;
                        leg.formatted = false;
                    }
                }
                if news {
                    self.raise();
                    if lost {
                        self.spec.last_common = Epoch::ZERO;
                    }
                }
                Ok(news)
            }
            Escalation::JoinSide { epoch, site, .. } => {
                by_owner(*epoch)?;
                let side =
                    self.spec.sides.iter_mut().find(|side| side.site == *site).expect("two sides");
                if side.in_sync {
                    return Ok(false);
                }
                if self.spec.volumes[0].legs.iter().any(|leg| leg.site == *site && !leg.formatted) {
                    return Err("not-formatted");
                }
                side.in_sync = true;
                self.raise();
                Ok(true)
            }
            Escalation::ConfirmOwner { epoch, .. } => {
                by_owner(*epoch)?;
                self.sequence += 1;
                Ok(false)
            }
            Escalation::HandOver { epoch, .. } => {
                by_owner(*epoch)?;
                let other = self
                    .spec
                    .sides
                    .iter()
                    .find(|side| side.node != node && side.in_sync)
                    .map(|side| side.node)
                    .ok_or("no-other")?;
                if self.fail_over(other) { Ok(true) } else { Err("no-other") }
            }
            Escalation::Verified { epoch, run, evidence, .. } => {
                by_owner(*epoch)?;
                let verify = &mut self.spec.volumes[0].verify;
                let is_news = verify.take_if(|order| order.run == *run).is_some();
                if is_news {
                    self.verified.push(evidence.clone());
                }
                Ok(is_news)
            }
            Escalation::BlocksLost { epoch, ranges, .. } => {
                by_owner(*epoch)?;
                self.lost.extend(ranges);
                Ok(false)
            }
            Escalation::DeviceReady { .. }
            | Escalation::DeviceRefused { .. }
            | Escalation::LegReleased { .. }
            | Escalation::WantOwner { .. } => Ok(false),
        }
    }
}

fn epoch_of(sequence: u64) -> Epoch {
    Epoch { sequence: Sequence(sequence), hash: Hash::of(&sequence.to_le_bytes()) }
}

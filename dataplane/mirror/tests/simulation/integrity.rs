//! Legs that differ or cannot be read, on an otherwise quiet pair.

use super::disk::Ailment;
use super::{BLOCK, Event, Simulation};
use std::time::Duration;
use voute_mirror::Access;
use voute_mirror::header::Header;
use voute_mirror::link::LinkRequest;
use voute_schemas::contract::LegState;
use voute_schemas::event::VerifyEvidence;

impl Simulation {
    /// Has the owner compare the legs, and waits for what the log gets to know of it.
    pub fn compare(&mut self, repair: bool) -> VerifyEvidence {
        let before = self.log.verified.len();
        self.log.order_verify(repair);
        self.publish();
        self.run_while(|all| all.log.verified.len() == before);
        self.log.verified[before].clone()
    }

    /// Has the owner repair the peer's leg, and takes the order back when the first write of that is
    /// on its way, which takes longer than any other.
    pub fn cancel_a_repair(&mut self) {
        self.order_repair();
        let deadline = self.now + Duration::from_secs(30);
        let key = loop {
            assert!(self.now < deadline, "nothing is repaired");
            self.step();
            let writes = self.events.iter().find(|(_, event)| {
                matches!(event, Event::LinkRequest { request: LinkRequest::Write { .. }, .. })
            });
            if let Some((key, _)) = writes {
                break *key;
            }
        };
        let write = self.events.remove(&key).expect("just found");
        self.after(Duration::from_millis(500), write);
        self.cancel_verify();
    }

    pub fn order_repair(&mut self) {
        self.log.order_verify(true);
        self.publish();
    }

    /// Takes the order to compare back; the owner knows it at once.
    pub fn cancel_verify(&mut self) {
        self.log.cancel_verify();
        let (process, spec) = (self.nodes[0].process, self.log.spec());
        self.after(Duration::ZERO, Event::Spec { node: 0, process, spec });
        self.run_until(self.now + Duration::from_micros(1));
    }

    /// Turns a bit around on a leg, in blocks that were written; how many.
    pub fn spoil(&mut self, node: usize, blocks: impl Iterator<Item = u64>) -> usize {
        blocks.filter(|block| self.nodes[node].disk.spoil(*block)).count()
    }

    /// Blocks of a leg can no more be read, until they are written.
    pub fn damage(&mut self, node: usize, blocks: impl Iterator<Item = u64>) {
        blocks.for_each(|block| self.nodes[node].disk.damage(block));
    }

    /// Reads of these blocks of a leg take long.
    pub fn slow_down(&mut self, node: usize, blocks: impl Iterator<Item = u64>, by: Duration) {
        blocks.for_each(|block| self.nodes[node].disk.slow_down(block, by));
    }

    /// Has the owner compare the legs while a host writes a block again and again; what was found, and
    /// how long a write took at most.
    pub fn compare_under_writes(&mut self, block: u64) -> (VerifyEvidence, Duration) {
        let before = self.log.verified.len();
        self.log.order_verify(false);
        self.publish();
        let (mut longest, deadline) = (Duration::ZERO, self.now + Duration::from_secs(120));
        while self.log.verified.len() == before {
            assert!(self.now < deadline, "the comparison never ends: {}", self.describe());
            let began = self.now;
            self.begin_write(block);
            self.settle_host();
            longest = longest.max(self.now - began);
            self.run_quietly(50);
        }
        (self.log.verified[before].clone(), longest)
    }

    /// Writes something else into a leg's header, with a sound checksum.
    pub fn rewrite_header(&mut self, node: usize, change: &dyn Fn(&mut Header)) {
        let leg = self.log.spec().volumes[0].legs[node].leg;
        let area = self.nodes[node].disk.read(0, 2 * BLOCK as usize);
        let mut header = Header::newest(&area, leg).expect("its leg was formatted");
        let at = header.offset();
        change(&mut header);
        self.nodes[node].disk.write(at, &header.encode(), |_| true);
    }

    /// What a node says of its leg.
    pub fn leg_state(&self, node: usize) -> LegState {
        let mirror = self.nodes[node].mirror.as_ref().expect("it was started");
        mirror.status(self.now, 0)[0].legs[0].state
    }

    pub fn is_served(&self) -> bool {
        self.nodes.iter().any(|node| node.access == Access::Optimized)
    }

    /// How many blocks of a leg cannot be read.
    pub fn damaged(&self, node: usize) -> usize {
        self.nodes[node].disk.bad.len()
    }

    pub fn run_for_micros(&mut self, micros: u64) {
        self.run_until(self.now + Duration::from_micros(micros));
    }

    /// Lets the host end what it began, and begin nothing more.
    pub fn quieten(&mut self) {
        self.host.stop();
        self.settle_host();
    }

    /// The volume grows to so many blocks.
    pub fn grow(&mut self, blocks: u64) {
        let more = blocks - self.log.blocks();
        assert!(self.log.resize(more));
        self.publish();
    }

    /// All blocks of a leg can be read again, as they were.
    pub fn mend(&mut self, node: usize) {
        self.nodes[node].disk.bad.clear();
    }

    /// The peer dies, the owner's leg loses blocks, the peer comes back; how long until it is in
    /// sync again.
    pub fn resync_from_a_damaged_leg(&mut self, blocks: impl Iterator<Item = u64>) -> Duration {
        self.begin_resync_from_a_damaged_leg(blocks);
        let began = self.now;
        self.run_while(|all| !all.log.both_in_sync());
        self.now - began
    }

    /// A node dies and is out of sync.
    pub fn lose(&mut self, node: usize) {
        self.crash(node);
        self.run_while(|all| all.log.both_in_sync());
    }

    /// It comes back and is in sync.
    pub fn regain(&mut self, node: usize) {
        self.start(node);
        self.await_sync();
    }

    pub fn await_sync(&mut self) {
        self.run_while(|all| !all.log.both_in_sync());
        self.run_while(|all| !all.is_healthy());
    }

    /// So many blocks were given up, as the log was told.
    pub fn await_lost(&mut self, blocks: u64) {
        let lost = |all: &Self| all.log.lost.iter().map(|range| range.length / BLOCK).sum::<u64>();
        self.run_while(|all| lost(all) < blocks);
    }

    /// Returns how many of the blocks lie in regions that were written.
    pub fn begin_resync_from_a_damaged_leg(&mut self, blocks: impl Iterator<Item = u64>) -> u64 {
        self.run_quietly(1_000);
        self.crash(1);
        self.run_quietly(4_000);
        self.quieten();
        // A full copy: what the peer had is gone.
        self.nodes[1].disk.forget();
        self.damage(0, blocks);
        self.start(1);
        self.nodes[0].disk.damaged_and_written()
    }

    /// The peer lost what it had, and comes back to an owner of whose leg no read succeeds for a
    /// while.
    pub fn resync_from_a_leg_without_a_path(&mut self, outage: Duration) {
        self.run_quietly(1_000);
        self.crash(1);
        self.run_quietly(4_000);
        self.quieten();
        self.nodes[1].disk.forget();
        self.nodes[0].disk.ailment = Some(Ailment::NoReads);
        self.start(1);
        self.run_until(self.now + outage);
        self.nodes[0].disk.ailment = None;
        self.run_while(|all| !all.log.both_in_sync());
    }

    /// A device says of its bad blocks only that the read failed.
    pub fn make_terse(&mut self, node: usize) {
        self.nodes[node].disk.is_terse = true;
    }

    /// Reads a block once at the owner; whether it was readable.
    pub fn is_readable(&mut self, block: u64) -> bool {
        let before = self.host.medium_errors;
        self.begin_read(block);
        self.run_while(|all| all.host.medium_errors == before && !all.host.is_idle());
        let readable = self.host.medium_errors == before;
        self.host.forget_tasks();
        readable
    }

    /// Moves the volume to the other node and waits until it serves.
    pub fn swap_owner(&mut self) {
        let other = self.nodes.iter().map(|node| node.id).find(|id| *id != self.log.owner());
        assert!(self.log.move_owner(other.expect("two nodes")), "a healthy pair can be moved");
        self.publish();
        self.run_quietly(100);
        self.run_while(|all| !all.is_healthy());
    }
}

//! What the verifying host knows: which write of each block was acknowledged, what was ever read,
//! and therefore what a read may return.
//!
//! Each slot is one block that only one worker writes, one write at a time. A write carries a
//! counter that rises. From what is known *before* a read is sent follows a floor: the highest
//! acknowledged counter and the highest one ever read. A read below the floor went back in time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a slot: one logical block of the volume.
pub const SLOT_BYTES: usize = 4096;
const MAGIC: u64 = 0x564f_5554_4544_454d;
const HEADER_BYTES: usize = 24;

/// What is known of one slot.
#[derive(Clone, Copy, Default, Debug)]
struct Slot {
    issued: u64,
    acknowledged: u64,
    seen: u64,
}

/// What a read must not fall below, as known before it was sent.
#[derive(Clone, Copy, Debug)]
pub struct Floor {
    slot: u32,
    acknowledged: u64,
    seen: u64,
}

/// What a read showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing wrong.
    Sound,
    /// It is older than a write that was acknowledged before it was sent.
    LostWrite {
        /// What was acknowledged.
        acknowledged: u64,
        /// What was read.
        found: u64,
    },
    /// It is older than what was read before it was sent.
    WentBack {
        /// What had been read.
        seen: u64,
        /// What was read now.
        found: u64,
    },
    /// It is nothing that was ever written there.
    Foreign,
}

/// All slots, and the counts of what went wrong. Shared by all workers.
pub struct Ledger {
    run: u64,
    slots: Vec<Mutex<Slot>>,
    acknowledged_writes: AtomicU64,
    reads: AtomicU64,
    stale_reads: AtomicU64,
    foreign_reads: AtomicU64,
}

impl Ledger {
    /// A ledger of empty slots. `run` sets this run's content apart from any other's.
    #[must_use]
    pub fn new(slots: u32, run: u64) -> Self {
        Ledger {
            run,
            slots: (0..slots).map(|_| Mutex::default()).collect(),
            acknowledged_writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            stale_reads: AtomicU64::new(0),
            foreign_reads: AtomicU64::new(0),
        }
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("made from a u32")
    }

    /// Begins the next write of a slot: fills `block` and returns its counter. The slot's one writer
    /// must hear of the write's end before it begins another.
    pub fn begin_write(&self, slot: u32, block: &mut [u8]) -> u64 {
        let counter = {
            let mut known = self.lock(slot);
            known.issued += 1;
            known.issued
        };
        fill(block, self.run, slot, counter);
        counter
    }

    /// How many writes of a slot were begun.
    #[must_use]
    pub fn begun(&self, slot: u32) -> u64 {
        self.lock(slot).issued
    }

    /// A write was acknowledged.
    pub fn acknowledge(&self, slot: u32, counter: u64) {
        let mut known = self.lock(slot);
        known.acknowledged = known.acknowledged.max(counter);
        self.acknowledged_writes.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes what a read that is about to be sent must not fall below.
    pub fn begin_read(&self, slot: u32) -> Floor {
        let known = self.lock(slot);
        Floor { slot, acknowledged: known.acknowledged, seen: known.seen }
    }

    /// Judges what a read returned, and counts it.
    pub fn judge(&self, floor: Floor, block: &[u8]) -> Verdict {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let verdict = self.verdict(floor, block);
        match verdict {
            Verdict::Sound => {}
            Verdict::LostWrite { .. } | Verdict::WentBack { .. } => {
                self.stale_reads.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::Foreign => {
                self.foreign_reads.fetch_add(1, Ordering::Relaxed);
            }
        }
        verdict
    }

    fn verdict(&self, floor: Floor, block: &[u8]) -> Verdict {
        let Some(found) = parse(block, self.run, floor.slot) else { return Verdict::Foreign };
        let mut known = self.lock(floor.slot);
        if found > known.issued {
            return Verdict::Foreign;
        }
        known.seen = known.seen.max(found);
        if found < floor.acknowledged {
            Verdict::LostWrite { acknowledged: floor.acknowledged, found }
        } else if found < floor.seen {
            Verdict::WentBack { seen: floor.seen, found }
        } else {
            Verdict::Sound
        }
    }

    fn lock(&self, slot: u32) -> std::sync::MutexGuard<'_, Slot> {
        self.slots[slot as usize].lock().expect("no holder of this lock panics")
    }

    /// Writes that were acknowledged.
    #[must_use]
    pub fn acknowledged_writes(&self) -> u64 {
        self.acknowledged_writes.load(Ordering::Relaxed)
    }

    /// Reads that were judged.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Reads that were older than an acknowledged write or an earlier read.
    #[must_use]
    pub fn stale_reads(&self) -> u64 {
        self.stale_reads.load(Ordering::Relaxed)
    }

    /// Reads of something that was never written there.
    #[must_use]
    pub fn foreign_reads(&self) -> u64 {
        self.foreign_reads.load(Ordering::Relaxed)
    }
}

/// Fills a block: magic, run and slot, counter, then a sequence that follows from these, so that a
/// block torn between two writes is noticed.
fn fill(block: &mut [u8], run: u64, slot: u32, counter: u64) {
    let (header, body) = block.split_at_mut(HEADER_BYTES);
    header[..8].copy_from_slice(&MAGIC.to_le_bytes());
    header[8..16].copy_from_slice(&(run ^ u64::from(slot)).to_le_bytes());
    header[16..].copy_from_slice(&counter.to_le_bytes());
    let mut state = mix(run ^ u64::from(slot) << 40 ^ counter);
    for word in body.chunks_exact_mut(8) {
        state = mix(state);
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// The counter of a block, 0 for one that was never written; nothing if it is no block of this slot.
fn parse(block: &[u8], run: u64, slot: u32) -> Option<u64> {
    if block.len() != SLOT_BYTES {
        return None;
    }
    if block.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let counter = u64::from_le_bytes(block[16..24].try_into().expect("eight bytes"));
    let mut expected = [0; SLOT_BYTES];
    fill(&mut expected, run, slot, counter);
    (block == expected && counter > 0).then_some(counter)
}

/// One step of splitmix64.
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(ledger: &Ledger, slot: u32) -> (u64, Vec<u8>) {
        let mut block = vec![0; SLOT_BYTES];
        let counter = ledger.begin_write(slot, &mut block);
        (counter, block)
    }

    #[test]
    fn a_read_older_than_an_acknowledged_write_is_a_lost_write() {
        let ledger = Ledger::new(4, 7);
        let (first, old) = written(&ledger, 2);
        ledger.acknowledge(2, first);
        let (second, new) = written(&ledger, 2);
        ledger.acknowledge(2, second);
        let floor = ledger.begin_read(2);
        assert_eq!(ledger.judge(floor, &new), Verdict::Sound);
        assert_eq!(ledger.judge(floor, &old), Verdict::LostWrite { acknowledged: 2, found: 1 });
        assert_eq!((ledger.stale_reads(), ledger.acknowledged_writes()), (1, 2));
    }

    #[test]
    fn what_was_read_once_cannot_be_taken_back_even_if_never_acknowledged() {
        let ledger = Ledger::new(1, 7);
        let (first, old) = written(&ledger, 0);
        ledger.acknowledge(0, first);
        let (_, unacknowledged) = written(&ledger, 0);
        assert_eq!(ledger.judge(ledger.begin_read(0), &unacknowledged), Verdict::Sound);
        assert_eq!(
            ledger.judge(ledger.begin_read(0), &old),
            Verdict::WentBack { seen: 2, found: 1 }
        );
    }

    #[test]
    fn a_write_in_flight_may_be_read_or_not() {
        let ledger = Ledger::new(1, 7);
        let (first, old) = written(&ledger, 0);
        ledger.acknowledge(0, first);
        let floor = ledger.begin_read(0);
        let (_, new) = written(&ledger, 0);
        assert_eq!(ledger.judge(floor, &old), Verdict::Sound);
        assert_eq!(ledger.judge(floor, &new), Verdict::Sound);
    }

    #[test]
    fn foreign_torn_and_future_content_is_noticed() {
        let ledger = Ledger::new(2, 7);
        let (first, old) = written(&ledger, 0);
        let (_, new) = written(&ledger, 0);
        ledger.acknowledge(0, first);
        let floor = ledger.begin_read(0);
        let torn: Vec<u8> = new[..2048].iter().chain(&old[2048..]).copied().collect();
        assert_eq!(ledger.judge(floor, &torn), Verdict::Foreign);
        assert_eq!(ledger.judge(floor, &[1; SLOT_BYTES]), Verdict::Foreign);
        assert_eq!(ledger.judge(ledger.begin_read(1), &new), Verdict::Foreign, "another slot's");
        let mut future = vec![0; SLOT_BYTES];
        fill(&mut future, 7, 0, 99);
        assert_eq!(ledger.judge(floor, &future), Verdict::Foreign);
        assert_eq!(ledger.foreign_reads(), 4);
    }
}

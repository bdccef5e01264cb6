//! A volume in memory that does everything a volume is asked for.

use std::sync::{Arc, Mutex, PoisonError};
use voute_buffer::Buffer;
use voute_iscsi::{
    AllocationExtent, BlockRange, Failure, Operation, Outcome, Request, ReservationWish, Target,
};
use voute_reservation::{Nexus, Reservations};

/// A volume in memory.
pub(crate) struct Disk {
    block_size: usize,
    blocks: Mutex<Blocks>,
    reservations: Mutex<Arc<Reservations>>,
}

struct Blocks {
    bytes: Vec<u8>,
    mapped: Vec<bool>,
}

impl Disk {
    /// A volume of zeroes, nothing mapped.
    pub(crate) fn new(block_size: usize, blocks: usize) -> Self {
        let blocks = Blocks { bytes: vec![0; block_size * blocks], mapped: vec![false; blocks] };
        Disk { block_size, blocks: Mutex::new(blocks), reservations: Mutex::default() }
    }

    /// Carries out a request of a host, or refuses it for a reservation of another.
    pub(crate) fn serve(&self, target: &Target, request: Request) -> Outcome {
        let mut reservations = self.reservations.lock().unwrap_or_else(PoisonError::into_inner);
        if reservations.conflicts(&request.nexus, request.operation.access()) {
            return Outcome::Failed(Failure::Reservation(voute_reservation::Refusal::Conflict));
        }
        let Operation::Reservation(asked) = request.operation else {
            // Under the lock: nothing is under way any more when a reservation changes.
            return self.execute(request.operation);
        };
        match change(&mut reservations, target, request.volume, &request.nexus, &asked) {
            Ok(()) if asked == voute_reservation::Request::Report => {
                Outcome::Reservations(reservations.clone())
            }
            Ok(()) => Outcome::Done,
            Err(refusal) => Outcome::Failed(Failure::Reservation(refusal)),
        }
    }

    /// Does what nobody asked for by a command.
    pub(crate) fn follow(&self, target: &Target, wish: &ReservationWish) {
        let mut reservations = self.reservations.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = change(&mut reservations, target, wish.volume, &wish.nexus, &wish.request);
    }

    /// Carries out one operation, alone.
    pub(crate) fn execute(&self, operation: Operation) -> Outcome {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        match operation {
            Operation::Read { lba, blocks: count } => {
                match blocks.range(lba, count, self.block_size) {
                    Some(range) => Outcome::Data(Buffer::copy_of(&blocks.bytes[range])),
                    None => Outcome::Failed(Failure::OutOfRange),
                }
            }
            Operation::Write { lba, data, .. }
            | Operation::WriteAtomic { lba, data, .. }
            | Operation::WriteAndCompare { lba, data, .. } => {
                blocks.write(lba, &data, self.block_size)
            }
            Operation::Flush | Operation::Verify { .. } => Outcome::Done,
            Operation::WriteZeroes { lba, blocks: count, deallocate } => {
                blocks.zero(BlockRange { lba, blocks: count }, !deallocate, self.block_size)
            }
            Operation::Deallocate { ranges } => {
                for range in ranges {
                    if let failed @ Outcome::Failed(_) = blocks.zero(range, false, self.block_size)
                    {
                        return failed;
                    }
                }
                Outcome::Done
            }
            Operation::Compare { lba, data, .. } => blocks.compare(lba, &data, self.block_size),
            Operation::CompareAndWrite { lba, compare, write, .. } => {
                match blocks.compare(lba, &compare, self.block_size) {
                    Outcome::Done => blocks.write(lba, &write, self.block_size),
                    different => different,
                }
            }
            Operation::OrWrite { lba, blocks: count, mut data } => {
                let Some(range) = blocks.range(lba, count, self.block_size) else {
                    return Outcome::Failed(Failure::OutOfRange);
                };
                data.iter_mut().zip(&blocks.bytes[range]).for_each(|(new, old)| *new |= old);
                blocks.write(lba, &data, self.block_size)
            }
            Operation::AllocationStatus { lba, blocks: count } => blocks.extents(lba, count),
            Operation::Reservation(_) => Outcome::Failed(Failure::Unsupported),
            // Its volumes have nowhere else to go.
            Operation::ActivateGroup { .. } => Outcome::Failed(Failure::MoveRefused),
        }
    }
}

fn change(
    reservations: &mut Arc<Reservations>,
    target: &Target,
    volume: voute_iscsi::VolumeKey,
    nexus: &Nexus,
    request: &voute_reservation::Request,
) -> Result<(), voute_reservation::Refusal> {
    let mut next = Reservations::clone(reservations);
    let effects = next.apply(nexus, request)?;
    *reservations = Arc::new(next);
    target.set_reservations(volume, reservations.clone(), &effects);
    Ok(())
}

impl Blocks {
    fn range(&self, lba: u64, count: u32, size: usize) -> Option<std::ops::Range<usize>> {
        let (start, count) = (usize::try_from(lba).ok()?, count as usize);
        let end = start.checked_add(count).filter(|end| *end <= self.mapped.len())?;
        Some(start * size..end * size)
    }

    fn write(&mut self, lba: u64, data: &[u8], size: usize) -> Outcome {
        let count = (data.len() / size) as u32;
        let Some(range) = self.range(lba, count, size) else {
            return Outcome::Failed(Failure::OutOfRange);
        };
        self.mapped[range.start / size..range.end / size].fill(true);
        self.bytes[range].copy_from_slice(data);
        Outcome::Done
    }

    fn zero(&mut self, range: BlockRange, stays_mapped: bool, size: usize) -> Outcome {
        let Some(range) = self.range(range.lba, range.blocks, size) else {
            return Outcome::Failed(Failure::OutOfRange);
        };
        self.mapped[range.start / size..range.end / size].fill(stays_mapped);
        self.bytes[range].fill(0);
        Outcome::Done
    }

    fn compare(&self, lba: u64, data: &[u8], size: usize) -> Outcome {
        let Some(range) = self.range(lba, (data.len() / size) as u32, size) else {
            return Outcome::Failed(Failure::OutOfRange);
        };
        match self.bytes[range].iter().zip(data).position(|(have, want)| have != want) {
            Some(offset) => Outcome::Miscompare { offset: offset as u32 },
            None => Outcome::Done,
        }
    }

    fn extents(&self, lba: u64, count: u32) -> Outcome {
        let Ok(start) = usize::try_from(lba) else { return Outcome::Failed(Failure::OutOfRange) };
        let end = (start + count as usize).min(self.mapped.len());
        let mut extents: Vec<AllocationExtent> = Vec::new();
        for block in start..end {
            let mapped = self.mapped[block];
            let is_full = extents.len() == 64;
            match extents.last_mut() {
                Some(last) if last.mapped == mapped => last.blocks += 1,
                Some(_) if is_full => break,
                Some(_) | None => {
                    extents.push(AllocationExtent { lba: block as u64, blocks: 1, mapped })
                }
            }
        }
        Outcome::Allocation(extents)
    }
}

use super::*;

/// A volume in memory that carries out what a translation asks, one request at a time.
struct Volume {
    bytes: Vec<u8>,
    /// Bytes that someone else sets just before the next compare-and-write.
    rival: Option<(usize, u8)>,
    rivalries: u32,
}

impl Volume {
    fn new(length: usize) -> Self {
        Volume {
            bytes: (0..length).map(|at| (at / 512) as u8).collect(),
            rival: None,
            rivalries: 0,
        }
    }

    fn perform(&mut self, operation: HostOperation) -> HostOutcome {
        match operation {
            HostOperation::Read { offset, length } => {
                let at = offset as usize;
                HostOutcome::Data(Buffer::copy_of(&self.bytes[at..at + length as usize]))
            }
            HostOperation::Write { offset, data } | HostOperation::WriteWhole { offset, data } => {
                self.bytes[offset as usize..][..data.len()].copy_from_slice(&data);
                HostOutcome::Done
            }
            HostOperation::Zero { offset, length, .. } => {
                self.bytes[offset as usize..][..length as usize].fill(0);
                HostOutcome::Done
            }
            HostOperation::CompareAndWrite { offset, expected, data } => {
                if let Some((at, byte)) = self.rival
                    && self.rivalries > 0
                {
                    self.rivalries -= 1;
                    self.bytes[at] = self.bytes[at].wrapping_add(byte);
                }
                let held = &mut self.bytes[offset as usize..][..data.len()];
                match first_difference(held, &expected) {
                    Some(at) => HostOutcome::Miscompare { at: at as u32 },
                    None => {
                        held.copy_from_slice(&data);
                        HostOutcome::Done
                    }
                }
            }
            HostOperation::Flush => HostOutcome::Done,
            HostOperation::PutRecord { .. } | HostOperation::Confirm { .. } => {
                panic!("no host's operation becomes that")
            }
        }
    }

    fn run(&mut self, work: Work) -> HostOutcome {
        let mut requests = Requests::new();
        let Some(mut translation) = Translation::begin(work, &mut requests) else {
            return HostOutcome::Done;
        };
        loop {
            let (part, operation) =
                requests.pop_back().expect("an operation under way asks for something");
            let outcome = self.perform(operation);
            if let Some(end) = translation.answered(part, outcome, &mut requests) {
                assert!(requests.is_empty(), "an operation ends when all its parts have");
                return end;
            }
        }
    }
}

const LONG: usize = (5 << 19) + 4096;

fn pattern(length: usize) -> Buffer {
    let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    Buffer::copy_of(&bytes)
}

#[test]
fn a_long_read_is_gathered_in_order() {
    let mut volume = Volume::new(8 << 20);
    let HostOutcome::Data(data) = volume.run(Work::Read { offset: 4096, length: LONG as u64 })
    else {
        panic!("a read gives data")
    };
    assert!(data[..] == volume.bytes[4096..4096 + LONG]);
}

#[test]
fn a_long_write_lands_whole() {
    let mut volume = Volume::new(8 << 20);
    let outcome = volume.run(Work::Write { offset: 512, data: pattern(LONG) });
    assert!(matches!(outcome, HostOutcome::Done));
    assert!(volume.bytes[512..512 + LONG] == pattern(LONG)[..]);
}

#[test]
fn a_comparison_names_the_first_difference() {
    let mut volume = Volume::new(8 << 20);
    let equal = Buffer::copy_of(&volume.bytes[..LONG]);
    assert!(matches!(volume.run(Work::Compare { offset: 0, data: equal }), HostOutcome::Done));
    let mut data = Buffer::copy_of(&volume.bytes[..LONG]);
    data[CHUNK + 7] ^= 1;
    let outcome = volume.run(Work::Compare { offset: 0, data });
    assert!(matches!(outcome, HostOutcome::Miscompare { at } if at as usize == CHUNK + 7));
}

#[test]
fn write_and_compare_writes_then_reads_back() {
    let mut volume = Volume::new(8 << 20);
    let outcome = volume.run(Work::WriteAndCompare { offset: 0, data: pattern(LONG) });
    assert!(matches!(outcome, HostOutcome::Done));
    assert!(volume.bytes[..LONG] == pattern(LONG)[..]);
}

#[test]
fn an_or_write_is_repeated_when_the_blocks_changed_meanwhile() {
    let mut volume = Volume::new(8 << 20);
    volume.bytes[3] = 0x10;
    (volume.rival, volume.rivalries) = (Some((3, 0x20)), 1);
    let mut data = Buffer::zeroed(512);
    data[3] = 0x01;
    assert!(matches!(volume.run(Work::OrWrite { offset: 0, data }), HostOutcome::Done));
    assert_eq!(volume.bytes[3], 0x31, "the rival's bit is not lost");
}

#[test]
fn an_or_write_gives_up_against_endless_rivals() {
    let mut volume = Volume::new(1 << 20);
    (volume.rival, volume.rivalries) = (Some((3, 1)), u32::MAX);
    let outcome = volume.run(Work::OrWrite { offset: 0, data: Buffer::zeroed(512) });
    assert!(matches!(outcome, HostOutcome::Busy));
}

#[test]
fn a_failed_part_fails_the_whole_after_the_others_ended() {
    let mut requests = Requests::new();
    let ranges = vec![(0, 512), (1024, 512), (4096, 512)];
    let mut translation =
        Translation::begin(Work::Zero { ranges, deallocate: true }, &mut requests).unwrap();
    assert_eq!(requests.len(), 3);
    assert!(translation.answered(0, HostOutcome::PathError, &mut requests).is_none());
    assert!(translation.answered(1, HostOutcome::Done, &mut requests).is_none());
    let end = translation.answered(2, HostOutcome::Done, &mut requests);
    assert!(matches!(end, Some(HostOutcome::PathError)), "{end:?}");
}

#[test]
fn verifying_reads_everything() {
    let mut volume = Volume::new(8 << 20);
    assert!(matches!(volume.run(Work::Verify { offset: 0, length: 8 << 20 }), HostOutcome::Done));
}

#[test]
fn no_ranges_are_done_at_once() {
    let mut requests = Requests::new();
    let work = Work::Zero { ranges: vec![], deallocate: true };
    assert!(Translation::begin(work, &mut requests).is_none());
}

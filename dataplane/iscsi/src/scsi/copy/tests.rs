//! Parameter lists and the requests that come out of them.

use super::*;

const NAA: [u8; 16] = [0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const OTHER: [u8; 16] = [0x60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

fn target(naa: [u8; 16]) -> Vec<u8> {
    let mut bytes = vec![IDENTIFICATION, 0, 0, 0, 1, 3, 0, 16];
    bytes.extend_from_slice(&naa);
    bytes.resize(TARGET_BYTES, 0);
    bytes
}

fn segment(source: u16, destination: u16, blocks: u16, from: u64, to: u64) -> Vec<u8> {
    let mut bytes = vec![BLOCK_TO_BLOCK, 0, 0, 24];
    bytes.extend_from_slice(&source.to_be_bytes());
    bytes.extend_from_slice(&destination.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&blocks.to_be_bytes());
    bytes.extend_from_slice(&from.to_be_bytes());
    bytes.extend_from_slice(&to.to_be_bytes());
    bytes
}

fn list(targets: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (targets, segments) = (targets.concat(), segments.concat());
    let mut bytes = vec![7, 0];
    bytes.extend_from_slice(&(targets.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(segments.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    [bytes, targets, segments].concat()
}

fn find(whom: Whom) -> Option<CopyUnit> {
    let unit = |number, block_size| CopyUnit {
        volume: VolumeKey(number),
        blocks: 1 << 20,
        block_size,
        refusal: None,
        is_write_protected: false,
    };
    match whom {
        Whom::This => Some(unit(0, 512)),
        Whom::Naa(NAA) => Some(unit(1, 512)),
        Whom::Naa(OTHER) => Some(unit(2, 4096)),
        Whom::Naa(_) => None,
    }
}

fn copy(segments: &[Vec<u8>]) -> Copy {
    let list = list(&[target(NAA), target(OTHER)], segments);
    Copy::new(CopyList::parse(&list).expect("well-formed"))
}

/// Every request of a copy that goes well, as (volume, first block, blocks, whether a write).
fn requests(mut copy: Copy) -> Vec<(u128, u64, u32, bool)> {
    let mut requests = Vec::new();
    while let Some((volume, operation)) = copy.next(find).expect("nothing fails") {
        let outcome = match operation {
            Operation::Read { lba, blocks } => {
                requests.push((volume.0, lba, blocks, false));
                let size = if volume.0 == 2 { 4096 } else { 512 };
                Outcome::Data(Buffer::zeroed(blocks as usize * size))
            }
            Operation::Write { lba, blocks, .. } => {
                requests.push((volume.0, lba, blocks, true));
                Outcome::Done
            }
            other => panic!("{other:?}"),
        };
        copy.answered(outcome).expect("goes on");
    }
    requests
}

#[test]
fn a_copy_reads_and_writes_chunk_by_chunk_in_the_order_of_its_segments() {
    let copied = copy(&[segment(0, 1, 2056, 8, 3), segment(1, 0, 1, 5, 6), segment(0, 0, 0, 0, 0)]);
    assert_eq!(
        requests(copied),
        [
            (1, 8, 2048, false),
            (2, 3, 256, true),
            (1, 2056, 8, false),
            (2, 259, 1, true),
            (2, 5, 1, false),
            (1, 6, 8, true)
        ]
    );
}

#[test]
fn an_overlap_with_later_blocks_is_copied_from_its_end() {
    assert_eq!(
        requests(copy(&[segment(0, 0, 3000, 0, 100)])),
        [(1, 952, 2048, false), (1, 1052, 2048, true), (1, 0, 952, false), (1, 100, 952, true)]
    );
}

#[test]
fn the_destination_may_count() {
    let mut counting = segment(0, 1, 2, 0, 0);
    counting[1] = 2;
    assert_eq!(requests(copy(&[counting])), [(1, 0, 16, false), (2, 0, 2, true)]);
}

#[test]
fn what_cannot_be_copied_names_its_segment() {
    let good = segment(0, 0, 1, 0, 9);
    for (bad, sense) in [
        (segment(0, 2, 1, 0, 0), Sense::UNREACHABLE_COPY_TARGET),
        (segment(0, 1, 7, 0, 0), Sense::INEXACT_SEGMENT),
        (segment(0, 0, 2, 0, (1 << 20) - 1), Sense::COPY_ABORTED),
        (segment(0, 0, 1, u64::MAX, 0), Sense::COPY_ABORTED),
    ] {
        let mut copy = copy(&[good.clone(), bad]);
        let stop = loop {
            match copy.next(find) {
                Ok(Some((_, Operation::Read { .. }))) => {
                    copy.answered(Outcome::Data(Buffer::zeroed(512))).expect("goes on");
                }
                Ok(Some(_)) => copy.answered(Outcome::Done).expect("goes on"),
                Ok(None) => panic!("the second segment is wrong"),
                Err(stop) => break stop,
            }
        };
        assert_eq!(stop, Stop::Sense(sense.in_segment(1)));
        assert_eq!(copy.progress(), (1, 512));
    }
}

#[test]
fn a_lost_path_is_told_as_it_is_and_a_lost_medium_as_a_failed_copy() {
    let failed = |failure| {
        let mut copy = copy(&[segment(0, 0, 1, 0, 9)]);
        copy.next(find).expect("reads").expect("asks");
        copy.answered(Outcome::Failed(failure)).expect_err("failed")
    };
    let lost = Failure::NotReady(crate::NotReady::Transition);
    assert_eq!(failed(lost), Stop::Failure(lost));
    assert_eq!(
        failed(Failure::UnreadableMedium { lba: 0 }),
        Stop::Sense(Sense::COPY_DEVICE_FAILED.in_segment(0))
    );
}

#[test]
fn a_unit_that_does_not_serve_or_is_protected_is_not_touched() {
    let refusing = |refusal, is_write_protected| {
        copy(&[segment(0, 0, 1, 0, 9)])
            .next(|whom| Some(CopyUnit { refusal, is_write_protected, ..find(whom)? }))
            .expect_err("refused")
    };
    assert_eq!(refusing(Some(Sense::STANDBY), false), Stop::Sense(Sense::STANDBY.in_segment(0)));
    assert_eq!(refusing(None, true), Stop::Sense(Sense::WRITE_PROTECTED.in_segment(0)));
}

#[test]
fn lists_over_the_limits_are_refused_by_what_is_too_much() {
    let parse = |targets: usize, segments: usize| {
        let targets = vec![target(NAA); targets];
        CopyList::parse(&list(&targets, &vec![segment(0, 0, 1, 0, 1); segments])).map(|_| ())
    };
    assert_eq!(parse(16, 64), Ok(()));
    assert_eq!(parse(17, 1), Err(Sense::TOO_MANY_TARGETS));
    assert_eq!(parse(1, 65), Err(Sense::TOO_MANY_SEGMENTS));
    assert_eq!(parse(17, 128), Err(Sense::PARAMETER_LENGTH));
}

#[test]
fn any_cut_of_a_list_is_refused() {
    let whole = list(&[target(NAA)], &[segment(0, 0, 1, 0, 1)]);
    assert!(CopyList::parse(&whole).is_ok());
    for length in 0..whole.len() {
        assert_eq!(CopyList::parse(&whole[..length]), Err(Sense::PARAMETER_LENGTH), "{length}");
    }
}

#[test]
fn descriptors_of_other_kinds_are_refused() {
    let mut fibre = target(NAA);
    fibre[0] = 0xe0;
    assert_eq!(CopyList::parse(&list(&[fibre], &[])), Err(Sense::UNSUPPORTED_TARGET_TYPE));
    let mut stream = segment(0, 0, 1, 0, 1);
    stream[0] = 3;
    assert_eq!(CopyList::parse(&list(&[], &[stream])), Err(Sense::UNSUPPORTED_SEGMENT_TYPE));
}

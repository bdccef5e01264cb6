//! RECEIVE COPY RESULTS (SPC-4 §6.18, §6.17, §6.19) and what a session remembers for it; the
//! third-party copy page (SPC-4 §7.8.17), which tells the same limits.

use super::cdb::Cdb;
use super::copy::{
    DESCRIPTOR_TYPES, DESCRIPTORS_BYTES_MAX, Results, SEGMENT_BYTES_MAX, SEGMENTS_MAX, TARGETS_MAX,
    THIS_UNIT,
};
use super::sense::Sense;
use std::collections::VecDeque;

/// Most copies that a session remembers; the oldest that is over goes first.
const RECORDS_MAX: usize = 64;
/// Copies under way at once: as many as commands.
const CONCURRENT_MAX: u8 = 128;

/// Service actions of RECEIVE COPY RESULTS.
pub(crate) mod action {
    pub(crate) const STATUS: u8 = 0x00;
    pub(crate) const PARAMETERS: u8 = 0x03;
    pub(crate) const FAILED_SEGMENT: u8 = 0x04;
}

/// Where a copy stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    UnderWay,
    Done,
    /// The status, and the sense data if there is any.
    Failed(u8, Vec<u8>),
}

#[derive(Debug)]
struct Record {
    lun: u16,
    list: u8,
    segments: u16,
    bytes: u64,
    state: State,
}

/// The copies of a session that can be asked for.
#[derive(Debug, Default)]
pub(crate) struct CopyResults {
    records: VecDeque<Record>,
}

impl CopyResults {
    fn find(&mut self, lun: u16, list: u8) -> Option<&mut Record> {
        self.records.iter_mut().find(|record| record.lun == lun && record.list == list)
    }

    /// A copy begins. Its identifier must not be that of another still under way.
    pub(crate) fn begin(&mut self, lun: u16, results: Results) -> Result<(), Sense> {
        let Results::Kept(list) = results else { return Ok(()) };
        if self.find(lun, list).is_some_and(|record| record.state == State::UnderWay) {
            return Err(Sense::OPERATION_IN_PROGRESS);
        }
        self.records.retain(|record| (record.lun, record.list) != (lun, list));
        if self.records.len() >= RECORDS_MAX
            && let Some(at) = self.records.iter().position(|record| record.state != State::UnderWay)
        {
            self.records.remove(at);
        }
        self.records.push_back(Record { lun, list, segments: 0, bytes: 0, state: State::UnderWay });
        Ok(())
    }

    /// How far a copy is.
    pub(crate) fn advance(&mut self, lun: u16, results: Results, (segments, bytes): (u16, u64)) {
        if let Results::Kept(list) = results
            && let Some(record) = self.find(lun, list)
        {
            (record.segments, record.bytes) = (segments, bytes);
        }
    }

    /// A copy is over. Nothing changes for one that was over before.
    pub(crate) fn end(&mut self, lun: u16, results: Results, state: State) {
        if let Results::Kept(list) = results
            && let Some(record) = self.find(lun, list)
            && record.state == State::UnderWay
        {
            record.state = state;
        }
    }

    /// A unit was reset.
    pub(crate) fn forget(&mut self, lun: u16) {
        self.records.retain(|record| record.lun != lun || record.state == State::UnderWay);
    }

    /// The answer to RECEIVE COPY RESULTS.
    pub(crate) fn answer(&self, cdb: &Cdb, lun: u16) -> Result<Vec<u8>, Sense> {
        let record =
            self.records.iter().find(|record| record.lun == lun && record.list == cdb.0[2]);
        match cdb.service_action() {
            action::PARAMETERS => Ok(parameters()),
            action::STATUS => Ok(status(record.ok_or(Sense::invalid_field_at(2))?)),
            action::FAILED_SEGMENT => {
                let record = record.filter(|record| record.state != State::UnderWay);
                Ok(failed_segment(record.ok_or(Sense::invalid_field_at(2))?))
            }
            _ => Err(Sense::invalid_field_at(1)),
        }
    }
}

fn status(record: &Record) -> Vec<u8> {
    let mut data = vec![0, 0, 0, 8];
    data.push(match record.state {
        State::UnderWay => 0,
        State::Done => 1,
        State::Failed(..) => 2,
    });
    data.extend_from_slice(&record.segments.to_be_bytes());
    // Units of the count: bytes, KiB, MiB, GiB.
    let (units, count) = (0..4u8)
        .find_map(|units| Some((units, u32::try_from(record.bytes >> (10 * units)).ok()?)))
        .unwrap_or((3, u32::MAX));
    data.push(units);
    data.extend_from_slice(&count.to_be_bytes());
    data
}

fn failed_segment(record: &Record) -> Vec<u8> {
    let State::Failed(status, sense) = &record.state else { return vec![0; 4] };
    let mut data = vec![0; 60];
    data[56] = *status;
    data[58..60].copy_from_slice(&(sense.len() as u16).to_be_bytes());
    data.extend_from_slice(sense);
    let length = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&length.to_be_bytes());
    data
}

/// OPERATING PARAMETERS.
fn parameters() -> Vec<u8> {
    let mut data = vec![0; 44];
    // SNLID: a list may go without an identifier.
    data[4] = 1;
    data[8..10].copy_from_slice(&TARGETS_MAX.to_be_bytes());
    data[10..12].copy_from_slice(&SEGMENTS_MAX.to_be_bytes());
    data[12..16].copy_from_slice(&DESCRIPTORS_BYTES_MAX.to_be_bytes());
    data[16..20].copy_from_slice(&SEGMENT_BYTES_MAX.to_be_bytes());
    data[34..36].copy_from_slice(&u16::from(CONCURRENT_MAX).to_be_bytes());
    data[36] = CONCURRENT_MAX;
    // Granularity of segments: 2⁹ bytes.
    data[37] = 9;
    data[43] = DESCRIPTOR_TYPES.len() as u8;
    data.extend_from_slice(&DESCRIPTOR_TYPES);
    let length = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&length.to_be_bytes());
    data
}

/// The body of the third-party copy page: commands, limits, descriptors, identifiers, copies at once.
pub(super) fn page() -> Vec<u8> {
    let mut page = Vec::new();
    let actions = [action::STATUS, action::PARAMETERS, action::FAILED_SEGMENT];
    let mut commands = vec![0x83, 1, 0x00, 0x84, actions.len() as u8];
    commands.extend_from_slice(&actions);
    commands.insert(0, commands.len() as u8);
    descriptor(&mut page, 0x0001, &commands);

    let mut limits = vec![0; 28];
    limits[4..6].copy_from_slice(&TARGETS_MAX.to_be_bytes());
    limits[6..8].copy_from_slice(&SEGMENTS_MAX.to_be_bytes());
    limits[8..12].copy_from_slice(&DESCRIPTORS_BYTES_MAX.to_be_bytes());
    descriptor(&mut page, 0x0004, &limits);

    let mut types = vec![DESCRIPTOR_TYPES.len() as u8];
    types.extend_from_slice(&DESCRIPTOR_TYPES);
    descriptor(&mut page, 0x0008, &types);

    let [high, low] = THIS_UNIT.to_be_bytes();
    descriptor(&mut page, 0x000c, &[0, 2, high, low]);

    let mut copies = vec![0; 32];
    copies[..4].copy_from_slice(&u32::from(CONCURRENT_MAX).to_be_bytes());
    copies[4..8].copy_from_slice(&u32::from(CONCURRENT_MAX).to_be_bytes());
    copies[8..12].copy_from_slice(&SEGMENT_BYTES_MAX.to_be_bytes());
    copies[12] = 9;
    descriptor(&mut page, 0x8001, &copies);
    page
}

/// Each descriptor's length is a multiple of four.
fn descriptor(page: &mut Vec<u8>, kind: u16, body: &[u8]) {
    let length = body.len().next_multiple_of(4);
    page.extend_from_slice(&kind.to_be_bytes());
    page.extend_from_slice(&(length as u16).to_be_bytes());
    page.extend_from_slice(body);
    page.resize(page.len() + length - body.len(), 0);
}

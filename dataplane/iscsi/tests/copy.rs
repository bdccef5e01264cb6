//! EXTENDED COPY between the volumes of a host, and what RECEIVE COPY RESULTS tells of it.

mod harness;

use harness::*;
use std::collections::HashMap;
use std::sync::Arc;
use voute_iscsi::{
    Authentication, Completion, CompletionStatus, Failure, LunView, NotReady, Operation, Outcome,
    Request, VolumeKey,
};

const OTHER: VolumeKey = VolumeKey(8);

/// A list of one segment from the first to the second unit.
fn list(
    id: u8,
    from: &LunView,
    to: &LunView,
    blocks: u16,
    source: u64,
    destination: u64,
) -> Vec<u8> {
    let mut bytes = vec![id, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    for view in [from, to] {
        bytes.extend_from_slice(&[0xe4, 0, 0, 0, 1, 3, 0, 16]);
        bytes.extend_from_slice(&view.naa);
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 2, 0]);
    }
    bytes.extend_from_slice(&[2, 0, 0, 24, 0, 0, 0, 1, 0, 0]);
    bytes.extend_from_slice(&blocks.to_be_bytes());
    bytes.extend_from_slice(&source.to_be_bytes());
    bytes.extend_from_slice(&destination.to_be_bytes());
    bytes
}

fn send(wire: &mut Wire, list: &[u8]) -> u32 {
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
    wire.initiator.command(0, cdb, 0, list).expect("window is open")
}

fn results(wire: &mut Wire, action: u8, id: u8) -> Completion {
    wire.command(&[0x84, action, id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], 1024, &[])
}

/// Two volumes, each with a disk of its own.
struct Pair {
    wire: Wire,
    target: Arc<voute_iscsi::Target>,
    disks: HashMap<VolumeKey, Disk>,
    views: [LunView; 2],
}

impl Pair {
    fn new(change: impl Fn(&mut [LunView; 2])) -> Self {
        let mut views = [view(0, VOLUME), view(1, OTHER)];
        change(&mut views);
        let target = target_with(directory(Authentication::None, views.to_vec()));
        let mut wire = Wire::ready(&target, config(), 5);
        wire.keeps = true;
        let disks = [VOLUME, OTHER].map(|volume| (volume, Disk::new(512, BLOCKS as usize))).into();
        Pair { wire, target, disks, views }
    }

    fn disk(&self, volume: VolumeKey) -> &Disk {
        &self.disks[&volume]
    }

    fn write(&self, volume: VolumeKey, lba: u64, data: &[u8]) {
        let data = voute_buffer::Buffer::copy_of(data);
        let blocks = (data.len() / 512) as u32;
        self.disk(volume).execute(Operation::Write { lba, blocks, data });
    }

    fn read(&self, volume: VolumeKey, lba: u64, blocks: u32) -> Vec<u8> {
        match self.disk(volume).execute(Operation::Read { lba, blocks }) {
            Outcome::Data(data) => data.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Sends a copy of list identifier 9.
    fn copy(&mut self, blocks: u16, source: u64, destination: u64) -> u32 {
        let list = list(9, &self.views[0], &self.views[1], blocks, source, destination);
        send(&mut self.wire, &list)
    }

    /// The next request, not yet carried out.
    fn request(&mut self) -> Option<Request> {
        self.wire.run();
        self.wire.kept.pop_front()
    }

    fn execute(&mut self, request: Request) {
        let outcome = self.disks[&request.volume].execute(request.operation);
        self.wire.connection.complete(request.tag, outcome);
    }

    fn finish(&mut self, task: u32) -> Completion {
        while let Some(request) = self.request() {
            self.execute(request);
        }
        self.wire.wait(task)
    }
}

#[test]
fn blocks_are_copied_between_two_volumes_in_bounded_pieces() {
    let mut pair = Pair::new(|_| {});
    let data = Random::seeded(77).bytes(5000 * 512);
    pair.write(VOLUME, 100, &data);
    let task = pair.copy(5000, 100, 7);
    while let Some(request) = pair.request() {
        let bytes = match &request.operation {
            Operation::Read { blocks, .. } => *blocks as usize * 512,
            Operation::Write { data, .. } => data.len(),
            other => panic!("{other:?}"),
        };
        assert!(bytes <= 1 << 20);
        assert!(pair.wire.kept.is_empty(), "one request at a time");
        pair.execute(request);
    }
    assert_eq!(pair.wire.wait(task).status, CompletionStatus::Good);
    assert_eq!(pair.read(OTHER, 7, 5000), data);
    let status = results(&mut pair.wire, 0, 9).data;
    assert_eq!(status, [0, 0, 0, 8, 1, 0, 1, 0, 0, 0x27, 0x10, 0], "done: 1 segment, bytes");
    assert_eq!(results(&mut pair.wire, 4, 9).data, [0; 4], "nothing failed");
}

#[test]
fn a_copy_can_be_watched_and_its_identifier_is_taken_until_it_ends() {
    let mut pair = Pair::new(|_| {});
    assert_eq!(sense(&results(&mut pair.wire, 0, 9).status), (5, 0x2400), "never heard of");
    let task = pair.copy(4096, 0, 0);
    for _ in 0..2 {
        let request = pair.request().expect("a chunk is asked for");
        pair.execute(request);
    }
    let held = pair.request().expect("the second chunk is read");
    let status = results(&mut pair.wire, 0, 9).data;
    assert_eq!(status, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0x10, 0, 0], "under way: 1 MiB");
    let again = pair.copy(1, 0, 0);
    assert_eq!(sense(&pair.wire.wait(again).status), (5, 0x0016));
    pair.execute(held);
    assert_eq!(pair.finish(task).status, CompletionStatus::Good);
    let again = pair.copy(1, 0, 0);
    assert_eq!(pair.finish(again).status, CompletionStatus::Good);
}

#[test]
fn an_aborted_copy_asks_for_nothing_more() {
    let mut pair = Pair::new(|_| {});
    let task = pair.copy(4096, 0, 0);
    let first = pair.request().expect("a chunk is asked for");
    let abort = pair.wire.initiator.manage(1, 0, Some(task)).expect("logged in");
    assert!(pair.request().is_none());
    pair.execute(first);
    assert!(pair.request().is_none(), "the copy is over");
    assert_eq!(pair.wire.wait(abort).status, CompletionStatus::Managed(0));
    assert_eq!(results(&mut pair.wire, 0, 9).data[4], 2, "ended with an error");
}

#[test]
fn a_path_lost_during_a_copy_is_told_as_such_and_the_copy_can_be_tried_again() {
    let mut pair = Pair::new(|_| {});
    let task = pair.copy(10, 0, 0);
    let request = pair.request().expect("a chunk is asked for");
    let lost = Outcome::Failed(Failure::NotReady(NotReady::Transition));
    pair.wire.connection.complete(request.tag, lost);
    assert_eq!(sense(&pair.wire.wait(task).status), (2, 0x040a));
    let details = results(&mut pair.wire, 4, 9).data;
    assert_eq!((details[56], details[62] & 15, &details[72..74]), (2, 2, &[0x04, 0x0a][..]));
    let task = pair.copy(10, 0, 0);
    assert_eq!(pair.finish(task).status, CompletionStatus::Good);
}

#[test]
fn a_read_only_or_unknown_destination_is_refused_before_anything_is_read() {
    let mut pair = Pair::new(|views| views[1].read_only = true);
    let task = pair.copy(10, 0, 0);
    assert!(pair.request().is_none());
    assert_eq!(sense(&pair.wire.wait(task).status), (7, 0x2700));
    let mut stranger = pair.views[1].clone();
    stranger.naa[14] = 0xff;
    let strange = list(3, &pair.views[0], &stranger, 1, 0, 0);
    let task = send(&mut pair.wire, &strange);
    assert!(pair.request().is_none());
    assert_eq!(sense(&pair.wire.wait(task).status), (0xa, 0x0d02));
}

#[test]
fn a_volume_taken_from_the_host_is_copied_to_no_further() {
    let mut pair = Pair::new(|_| {});
    let task = pair.copy(4096, 0, 0);
    let read = pair.request().expect("a chunk is read");
    pair.target.publish(Arc::new(directory(Authentication::None, vec![pair.views[0].clone()])));
    pair.wire.connection.tick(pair.wire.now);
    pair.execute(read);
    assert!(pair.request().is_none());
    assert_eq!(sense(&pair.wire.wait(task).status), (0xa, 0x0d02));
}

#[test]
fn the_third_party_copy_page_tells_the_limits_that_hold() {
    let mut pair = Pair::new(|_| {});
    let parameters = results(&mut pair.wire, 3, 0).data;
    let task = pair.wire.initiator.inquiry(0, Some(0x8f)).expect("window is open");
    let page = pair.wire.wait(task).data;
    assert_eq!(usize::from(u16::from_be_bytes([page[2], page[3]])), page.len() - 4);
    let mut descriptors = HashMap::new();
    let mut rest = &page[4..];
    while let [a, b, high, low, body @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        assert_eq!(length % 4, 0);
        descriptors.insert(u16::from_be_bytes([*a, *b]), &body[..length]);
        rest = &body[length..];
    }
    assert_eq!(descriptors[&0x0004][4..12], parameters[8..16]);
    assert_eq!(descriptors[&0x0008][1..3], parameters[44..46]);
    assert_eq!(descriptors[&0x8001][8..12], parameters[16..20]);
    assert_eq!(descriptors[&0x0001][..9], [8, 0x83, 1, 0, 0x84, 3, 0, 3, 4]);
    let task = pair.wire.initiator.inquiry(0, None).expect("window is open");
    assert_eq!(pair.wire.wait(task).data[5] & 0x08, 0x08, "3PC");
}

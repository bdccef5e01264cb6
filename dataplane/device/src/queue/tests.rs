use super::*;
use crate::adopt::{Adopted, adopt};
use crate::faulty::{Faults, FaultyDevice};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use voute_schemas::ClusterId;
use voute_schemas::contract::DeviceSpec;
use voute_schemas::place::Locator;

const EXTENT: u64 = 1 << 20;
/// How long a test waits for a completion before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A device and what keeps it alive.
struct Fixture {
    adopted: Adopted,
    _folder: Option<TempDir>,
}

fn spec(locator: Locator) -> DeviceSpec {
    let device = DeviceId::generate();
    DeviceSpec { device, locator, extent_bytes: EXTENT, adopted: false, overwrite: false }
}

fn memory(size_bytes: u64) -> Fixture {
    let spec = spec(Locator::Memory { size_bytes });
    Fixture { adopted: adopt(&spec, ClusterId::generate()).unwrap(), _folder: None }
}

fn file_in(folder: TempDir, size_bytes: u64) -> Fixture {
    let path = folder.path().join("device").to_str().unwrap().to_owned();
    let spec = spec(Locator::File { path, size_bytes });
    Fixture { adopted: adopt(&spec, ClusterId::generate()).unwrap(), _folder: Some(folder) }
}

fn file(size_bytes: u64) -> Fixture {
    file_in(tempfile::tempdir().unwrap(), size_bytes)
}

struct Bench {
    queue: DeviceQueue,
    next_tag: u64,
}

impl Bench {
    fn new(depth: u32) -> Self {
        Bench { queue: DeviceQueue::new(depth).unwrap(), next_tag: 0 }
    }

    fn add(&mut self, device: &Arc<OpenDevice>) -> DeviceId {
        self.queue.add_device(device.device(), Arc::clone(device));
        device.device()
    }

    /// A leg of these runs: (device, first extent, count).
    fn leg(&mut self, runs: &[(DeviceId, u64, u64)]) -> LegId {
        let leg = LegId::generate();
        self.attach(leg, runs);
        leg
    }

    fn attach(&mut self, leg: LegId, runs: &[(DeviceId, u64, u64)]) {
        let run = |(device, first, count): &(DeviceId, u64, u64)| ExtentRun {
            device: *device,
            first: *first,
            count: *count,
        };
        self.queue.attach_leg(leg, EXTENT, &runs.iter().map(run).collect::<Vec<_>>());
    }

    fn submit(&mut self, leg: LegId, offset: u64, kind: DeviceKind) -> DeviceTag {
        self.next_tag += 1;
        let tag = DeviceTag(self.next_tag);
        self.queue.submit(DeviceRequest { tag, leg, offset, kind });
        tag
    }

    /// The next completion, slept for as a reactor does.
    fn wait(&mut self) -> (DeviceTag, DeviceResult) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(done) = self.queue.complete() {
                return done;
            }
            self.queue.flush_submissions();
            assert!(Instant::now() < deadline, "no completion, {} pending", self.queue.pending());
            let mut poll =
                libc::pollfd { fd: self.queue.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one descriptor, in memory of ours.
            let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) };
            assert!(ready > 0, "the ring never became readable");
        }
    }

    fn perform(&mut self, leg: LegId, offset: u64, kind: DeviceKind) -> DeviceResult {
        let tag = self.submit(leg, offset, kind);
        let (done, result) = self.wait();
        assert_eq!(done, tag);
        result
    }

    fn read(&mut self, leg: LegId, offset: u64, length: u32) -> Result<Buffer, DeviceFault> {
        let result = self.perform(leg, offset, DeviceKind::Read { length });
        result.map(|data| data.expect("a read gives data"))
    }

    fn write(&mut self, leg: LegId, offset: u64, bytes: &[u8]) -> Result<(), DeviceFault> {
        let data = Arc::new(Buffer::copy_of(bytes));
        self.perform(leg, offset, DeviceKind::Write { data }).map(|data| assert!(data.is_none()))
    }

    fn zero(
        &mut self,
        leg: LegId,
        offset: u64,
        length: u64,
        release: bool,
    ) -> Result<(), DeviceFault> {
        self.perform(leg, offset, DeviceKind::Zero { length, release })
            .map(|data| assert!(data.is_none()))
    }
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// What every backend must do, against a plain array as the model.
fn behaves_like_an_array(device: &Arc<OpenDevice>) {
    let mut bench = Bench::new(8);
    let id = bench.add(device);
    // Out of order and with gaps, so that most requests are cut.
    let leg = bench.leg(&[(id, 5, 1), (id, 0, 2), (id, 3, 1)]);
    let length = 4 * EXTENT;
    let mut model = vec![0u8; length as usize];
    assert_eq!(&bench.read(leg, 0, 1 << 20).unwrap()[..], &model[..1 << 20]);
    let steps: &[(u64, u64)] = &[
        (0, 4096),
        (512, 512),
        (EXTENT - 4096, 8192),
        (EXTENT - 512, 1 << 20),
        (2 * EXTENT + 512, 1 << 20),
        (3 * EXTENT - 1536, 2048),
        (length - 4096, 4096),
        (EXTENT, 1 << 20),
    ];
    for (seed, (offset, size)) in steps.iter().copied().enumerate() {
        let bytes = pattern(seed as u64 + 1, size as usize);
        bench.write(leg, offset, &bytes).unwrap();
        model[offset as usize..(offset + size) as usize].copy_from_slice(&bytes);
        compare(&mut bench, leg, &model);
    }
    for (release, (offset, size)) in
        [(true, (512, 1024)), (false, (EXTENT - 4096, 2 << 20)), (true, (3 << 20, 1 << 20))]
    {
        bench.zero(leg, offset, size, release).unwrap();
        model[offset as usize..(offset + size) as usize].fill(0);
        compare(&mut bench, leg, &model);
    }
}

fn compare(bench: &mut Bench, leg: LegId, model: &[u8]) {
    for (index, wanted) in model.chunks(1 << 20).enumerate() {
        let read = bench.read(leg, (index as u64) << 20, 1 << 20).unwrap();
        assert!(read[..] == *wanted, "difference in MiB {index}");
    }
}

#[test]
fn memory_behaves_like_an_array() {
    behaves_like_an_array(&memory(8 << 20).adopted.device);
}

#[test]
fn a_file_behaves_like_an_array() {
    behaves_like_an_array(&file(8 << 20).adopted.device);
}

#[test]
fn a_file_in_memory_behaves_like_an_array() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    behaves_like_an_array(&file_in(folder, 8 << 20).adopted.device);
}

#[test]
fn a_faulty_device_without_faults_behaves_like_an_array() {
    let faulty = FaultyDevice::new(DeviceId::generate(), 8 << 20, EXTENT, 512);
    behaves_like_an_array(&faulty.open());
}

#[test]
fn a_request_over_two_devices_completes_once() {
    let (one, two) = (memory(4 << 20), file(4 << 20));
    let mut bench = Bench::new(4);
    let (a, b) = (bench.add(&one.adopted.device), bench.add(&two.adopted.device));
    let leg = bench.leg(&[(a, 0, 1), (b, 1, 1), (a, 2, 1)]);
    let bytes = pattern(3, 2 << 20);
    bench.write(leg, EXTENT / 2, &bytes).unwrap();
    assert_eq!(bench.queue.pending(), 0);
    assert_eq!(&bench.read(leg, EXTENT / 2, 2 << 20).unwrap()[..], &bytes[..]);
    assert!(bench.queue.complete().is_none());
}

#[test]
fn extents_follow_the_header_area() {
    let fixture = file(4 << 20);
    let path = fixture._folder.as_ref().unwrap().path().join("device");
    let mut bench = Bench::new(4);
    let id = bench.add(&fixture.adopted.device);
    let leg = bench.leg(&[(id, 2, 1)]);
    bench.write(leg, 4096, &pattern(1, 4096)).unwrap();
    let content = std::fs::read(path).unwrap();
    assert_eq!(&content[(3 << 20) + 4096..(3 << 20) + 8192], &pattern(1, 4096)[..]);
    assert!(content[8192..(3 << 20) + 4096].iter().all(|byte| *byte == 0));
}

#[test]
fn more_requests_than_the_depth_all_complete() {
    let fixture = file(10 << 20);
    let mut bench = Bench::new(4);
    let id = bench.add(&fixture.adopted.device);
    let leg = bench.leg(&[(id, 0, 8)]);
    let blocks = 600u64;
    let mut open: std::collections::HashSet<DeviceTag> = (0..blocks)
        .map(|block| {
            let data = Arc::new(Buffer::copy_of(&pattern(block, 4096)));
            bench.submit(leg, block * 4096, DeviceKind::Write { data })
        })
        .collect();
    assert_eq!(bench.queue.pending(), 600);
    assert!(bench.queue.slots[0].out <= 4);
    while !open.is_empty() {
        let (tag, result) = bench.wait();
        assert!(open.remove(&tag), "{tag:?} completed twice");
        result.unwrap();
    }
    assert_eq!(bench.queue.pending(), 0);
    for block in 0..blocks {
        let read = bench.read(leg, block * 4096, 4096).unwrap();
        assert_eq!(&read[..], &pattern(block, 4096)[..]);
    }
}

#[test]
fn what_is_not_there_fails_and_nothing_panics() {
    let fixture = memory(4 << 20);
    let mut bench = Bench::new(4);
    let failed = |result: Result<_, _>| assert_eq!(result.map(drop), Err(DeviceFault::Failed));
    failed(bench.read(LegId::generate(), 0, 4096));
    let unknown = bench.leg(&[(DeviceId::generate(), 0, 1)]);
    failed(bench.read(unknown, 0, 4096));
    let id = bench.add(&fixture.adopted.device);
    let leg = bench.leg(&[(id, 0, 2)]);
    failed(bench.read(leg, 2 * EXTENT - 512, 1024));
    failed(bench.read(leg, u64::MAX - 511, 512));
    failed(bench.read(leg, 0, u32::MAX));
    assert_eq!(bench.zero(leg, 0, u64::MAX, true), Err(DeviceFault::Failed));
    let beyond = bench.leg(&[(id, 2, 2), (id, u64::MAX, u64::MAX), (id, 1, u64::MAX)]);
    failed(bench.read(beyond, EXTENT, 4096));
    failed(bench.read(beyond, 1 << 40, 4096));
    bench.queue.detach_leg(leg);
    failed(bench.read(leg, 0, 512));
    bench.queue.remove_device(id);
    failed(bench.read(beyond, 0, 4096));
}

#[test]
fn a_request_of_no_bytes_is_done() {
    let fixture = memory(4 << 20);
    let mut bench = Bench::new(4);
    let id = bench.add(&fixture.adopted.device);
    let leg = bench.leg(&[(id, 0, 2)]);
    assert!(bench.read(leg, 0, 0).unwrap().is_empty());
    bench.zero(leg, 2 * EXTENT, 0, true).unwrap();
}

#[test]
fn a_leg_grows_while_requests_are_out() {
    let fixture = file(8 << 20);
    let mut bench = Bench::new(4);
    let id = bench.add(&fixture.adopted.device);
    let leg = bench.leg(&[(id, 3, 1)]);
    let data = Arc::new(Buffer::copy_of(&pattern(5, 1 << 20)));
    bench.submit(leg, 0, DeviceKind::Write { data });
    bench.attach(leg, &[(id, 3, 1), (id, 0, 1)]);
    bench.wait().1.unwrap();
    bench.write(leg, EXTENT, &pattern(6, 4096)).unwrap();
    assert_eq!(&bench.read(leg, 0, 1 << 20).unwrap()[..], &pattern(5, 1 << 20)[..]);
    assert_eq!(&bench.read(leg, EXTENT, 4096).unwrap()[..], &pattern(6, 4096)[..]);
}

#[test]
fn a_file_that_was_cut_short_fails_instead_of_inventing_data() {
    let fixture = file(4 << 20);
    let path = fixture._folder.as_ref().unwrap().path().join("device");
    let mut bench = Bench::new(4);
    let id = bench.add(&fixture.adopted.device);
    let leg = bench.leg(&[(id, 0, 3)]);
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(2 << 20).unwrap();
    assert_eq!(bench.read(leg, 2 << 20, 4096).map(drop), Err(DeviceFault::Failed));
    assert_eq!(bench.read(leg, EXTENT - 4096, 8192).map(drop), Err(DeviceFault::Failed));
}

#[test]
fn a_queue_ends_only_after_the_kernel_is_done_with_its_memory() {
    use std::io::Write;
    let mut bench = Bench::new(4);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut memory = Box::new([0; 8]);
    let descriptor = io_uring::types::Fd(reader.as_raw_fd());
    let read = io_uring::opcode::Read::new(descriptor, memory.as_mut_ptr(), 8).build();
    // SAFETY: the pipe and the memory outlive the queue, whose end is what is tested.
    unsafe { bench.queue.ring.push(read) };
    bench.queue.flush_submissions();
    let answer = std::thread::spawn(move || {
        // Long enough that a queue that does not wait would be gone.
        std::thread::sleep(Duration::from_millis(100));
        writer.write_all(b"answered").unwrap();
    });
    drop(bench);
    assert_eq!(&*memory, b"answered");
    answer.join().unwrap();
}

#[test]
fn a_queue_that_ends_lets_go_of_data_and_devices() {
    let fixture = file(16 << 20);
    let mut bench = Bench::new(4);
    let id = bench.add(&fixture.adopted.device);
    let leg = bench.leg(&[(id, 0, 12)]);
    let data = Arc::new(Buffer::copy_of(&[7; 1 << 20]));
    for index in 0..12 {
        bench.submit(leg, index << 20, DeviceKind::Write { data: Arc::clone(&data) });
    }
    bench.queue.flush_submissions();
    drop(bench);
    assert_eq!(Arc::strong_count(&data), 1);
    assert_eq!(Arc::strong_count(&fixture.adopted.device), 1);
}

#[test]
fn faults_reach_the_request_and_only_where_they_are() {
    let faulty = FaultyDevice::new(DeviceId::generate(), 8 << 20, EXTENT, 512);
    let mut bench = Bench::new(4);
    let id = bench.add(&faulty.open());
    let leg = bench.leg(&[(id, 0, 4)]);
    let range = Some(DEVICE_HEADER_BYTES + EXTENT..DEVICE_HEADER_BYTES + EXTENT + 512);
    faulty.set_faults(Faults {
        read: Some(DeviceFault::Medium),
        write: Some(DeviceFault::NoSpace),
        range,
        ..Faults::default()
    });
    assert_eq!(bench.read(leg, EXTENT, 512).map(drop), Err(DeviceFault::Medium));
    bench.read(leg, EXTENT + 512, 512).unwrap();
    assert_eq!(bench.write(leg, EXTENT, &[1; 512]), Err(DeviceFault::NoSpace));
    assert_eq!(bench.zero(leg, 0, 2 * EXTENT, true), Err(DeviceFault::NoSpace));
    faulty.set_faults(Faults::default());
    bench.write(leg, EXTENT, &[1; 512]).unwrap();
}

#[test]
fn a_device_that_hangs_takes_nothing_from_another() {
    let faulty = FaultyDevice::new(DeviceId::generate(), 8 << 20, EXTENT, 512);
    let good = file(8 << 20);
    let mut bench = Bench::new(2);
    let (bad_id, good_id) = (bench.add(&faulty.open()), bench.add(&good.adopted.device));
    let (bad_leg, good_leg) = (bench.leg(&[(bad_id, 0, 4)]), bench.leg(&[(good_id, 0, 4)]));
    faulty.set_faults(Faults { hangs: true, ..Faults::default() });
    for block in 0..10 {
        bench.submit(bad_leg, block * 512, DeviceKind::Read { length: 512 });
    }
    bench.write(good_leg, 0, &pattern(1, 4096)).unwrap();
    assert_eq!(bench.queue.pending(), 10);
    assert_eq!(faulty.waiting(), 2);
    faulty.set_faults(Faults::default());
    for _ in 0..10 {
        bench.wait().1.unwrap();
    }
}

#[test]
fn latency_delays_the_answer() {
    let faulty = FaultyDevice::new(DeviceId::generate(), 8 << 20, EXTENT, 512);
    let mut bench = Bench::new(2);
    let id = bench.add(&faulty.open());
    let leg = bench.leg(&[(id, 0, 4)]);
    let latency = Duration::from_millis(30);
    faulty.set_faults(Faults { latency, ..Faults::default() });
    let begin = Instant::now();
    bench.read(leg, 0, 512).unwrap();
    assert!(begin.elapsed() >= latency);
}

#[test]
fn a_power_cut_loses_only_what_a_lying_device_answered() {
    let faulty = FaultyDevice::new(DeviceId::generate(), 8 << 20, EXTENT, 512);
    let mut bench = Bench::new(4);
    let id = bench.add(&faulty.open());
    let leg = bench.leg(&[(id, 0, 4)]);
    bench.write(leg, 0, &[1; 4096]).unwrap();
    faulty.set_faults(Faults { lies: true, ..Faults::default() });
    bench.write(leg, 0, &[2; 1024]).unwrap();
    bench.write(leg, 8192, &[2; 512]).unwrap();
    faulty.set_faults(Faults::default());
    // Honest again: this part of the lie is made good.
    bench.write(leg, 512, &[3; 512]).unwrap();
    faulty.set_faults(Faults { hangs: true, ..Faults::default() });
    bench.submit(leg, 4096, DeviceKind::Zero { length: 512, release: true });
    faulty.cut_power();
    assert_eq!(bench.wait().1.map(drop), Err(DeviceFault::Failed));
    faulty.set_faults(Faults::default());
    assert_eq!(bench.read(leg, 0, 512).map(drop), Err(DeviceFault::Failed));
    bench.add(&faulty.open());
    let read = bench.read(leg, 0, 4096).unwrap();
    assert_eq!(read[..512], [1; 512]);
    assert_eq!(read[512..1024], [3; 512]);
    assert_eq!(read[1024..], [1; 3072]);
    assert_eq!(bench.read(leg, 8192, 512).unwrap()[..], [0; 512]);
}

#[test]
fn reading_one_block_of_a_file_enters_the_kernel_only_to_submit() {
    let fixture = file(4 << 20);
    let mut bench = Bench::new(4);
    let id = bench.add(&fixture.adopted.device);
    let leg = bench.leg(&[(id, 0, 1)]);
    bench.submit(leg, 0, DeviceKind::Read { length: 4096 });
    bench.queue.flush_submissions();
    // Spins as a busy reactor does: only `complete`, never a wait.
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some((_, result)) = bench.queue.complete() {
            result.unwrap();
            break;
        }
        assert!(Instant::now() < deadline, "spinning alone never completes a read");
    }
}

#[test]
fn reactors_share_a_device() {
    for fixture in [memory(10 << 20), file(10 << 20)] {
        let device = &fixture.adopted.device;
        std::thread::scope(|scope| {
            for reactor in 0..4u64 {
                scope.spawn(move || {
                    let mut bench = Bench::new(4);
                    let id = bench.add(device);
                    let leg = bench.leg(&[(id, reactor * 2, 2)]);
                    for round in 0..20 {
                        let bytes = pattern(reactor * 100 + round, 8192);
                        bench.write(leg, EXTENT - 4096, &bytes).unwrap();
                        assert_eq!(&bench.read(leg, EXTENT - 4096, 8192).unwrap()[..], &bytes[..]);
                    }
                });
            }
        });
        assert_eq!(Arc::strong_count(device), 1);
    }
}

proptest::proptest! {
    #[test]
    fn pieces_cover_a_range_byte_for_byte(
        lengths in proptest::collection::vec(1u64..50, 1..8),
        from in 0u64..400,
        wanted in 0u64..400,
    ) {
        let mut begin = 0;
        let mut where_is = Vec::new();
        let runs: Vec<Run> = lengths
            .iter()
            .enumerate()
            .map(|(slot, length)| {
                let run = Run { begin, length: *length, slot, position: 1000 * slot as u64 };
                where_is.extend((0..*length).map(|within| (slot, run.position + within)));
                begin += length;
                run
            })
            .collect();
        let offset = from.min(begin);
        let length = wanted.min(begin - offset);
        let mut covered = Vec::new();
        for piece in pieces(&runs, offset, length) {
            proptest::prop_assert_eq!(piece.at, covered.len() as u64);
            proptest::prop_assert!(piece.length > 0);
            covered.extend((0..piece.length).map(|within| (piece.slot, piece.position + within)));
        }
        proptest::prop_assert_eq!(&covered[..], &where_is[offset as usize..(offset + length) as usize]);
    }
}

/// How a reactor sleeps: in a ring of its own, with a poll on the queue's descriptor.
#[test]
fn a_sleep_in_another_ring_ends_when_a_request_completes() {
    let fixture = file(8 << 20);
    let mut bench = Bench::new(8);
    let id = bench.add(&fixture.adopted.device);
    let leg = bench.leg(&[(id, 0, 7)]);
    let mut builder: io_uring::Builder = io_uring::IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    let Ok(mut outer) = builder.build(8) else {
        println!("SKIPPED: this kernel does not defer task work");
        return;
    };
    for round in 0..300u64 {
        let offset = round % 7 * EXTENT + round * 512;
        let kind = match round % 3 {
            0 => DeviceKind::Read { length: 4096 },
            1 => DeviceKind::Write { data: Arc::new(Buffer::copy_of(&[1; 4096])) },
            _ => DeviceKind::Zero { length: 4096, release: true },
        };
        bench.submit(leg, offset, kind);
        bench.queue.flush_submissions();
        while bench.queue.pending() > 0 {
            let descriptor = io_uring::types::Fd(bench.queue.as_raw_fd());
            let poll = io_uring::opcode::PollAdd::new(descriptor, libc::POLLIN as u32).build();
            // SAFETY: the entry names no memory.
            unsafe { outer.submission().push(&poll).unwrap() };
            let patience = io_uring::types::Timespec::from(PATIENCE);
            let arguments = io_uring::types::SubmitArgs::new().timespec(&patience);
            let woken = outer.submitter().submit_with_args(1, &arguments);
            woken.expect("the sleep ends by a completion, not by its limit");
            outer.completion().for_each(drop);
            while let Some((_, result)) = bench.queue.complete() {
                result.unwrap();
            }
        }
    }
}

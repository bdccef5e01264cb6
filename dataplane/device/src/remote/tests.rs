use super::*;
use crate::adopt::{AdoptError, Adopted, adopt, adopt_with_keys};
use crate::queue::DeviceQueue;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use voute_mirror::{DeviceKind, DeviceRequest, DeviceTag};
use voute_nvme::{
    Directory, HostKeys, HostView, NamespaceView, Operation, Outcome, PortalEntry, PortalId,
    Status, Subsystem, Target as NvmeTarget, TargetConfig, TargetConnection,
};
use voute_schemas::contract::DeviceSpec;
use voute_schemas::place::{ExtentRun, Locator};
use voute_schemas::{DeviceId, LegId};

const SUBSYSTEM: &str = "nqn.2014-08.org.example:array";
const NAMESPACE: [u8; 16] = [0xab; 16];
const EXTENT: u64 = 1 << 20;
const SIZE: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// An array: our own target over real sockets, before memory.
struct Array {
    address: SocketAddr,
    state: Arc<ArrayState>,
}

struct ArrayState {
    target: Arc<NvmeTarget>,
    block_bytes: u32,
    disk: Arc<Mutex<Vec<u8>>>,
    /// Breaks every connection, and refuses new ones while set.
    is_down: AtomicBool,
    /// Reads fail with a media error while set.
    is_damaged: AtomicBool,
    /// Commands are taken and not answered while set.
    is_stuck: AtomicBool,
    commands: AtomicU64,
    connections: AtomicU64,
    is_over: AtomicBool,
}

impl Array {
    fn new(cluster: ClusterId, block_bytes: u32) -> Self {
        let disk = Arc::new(Mutex::new(vec![0; SIZE as usize]));
        let array = Self::node(block_bytes, disk, TargetConfig::default());
        array.publish(cluster, AnaState::Optimized, &[]);
        array
    }

    /// Two nodes before one memory; each has the access states of its own.
    fn pair() -> [Self; 2] {
        let disk = Arc::new(Mutex::new(vec![0; SIZE as usize]));
        let low = TargetConfig { controller_max: 99, ..TargetConfig::default() };
        let high = TargetConfig { controller_min: 100, ..TargetConfig::default() };
        [low, high].map(|config| Self::node(512, Arc::clone(&disk), config))
    }

    fn publish(&self, cluster: ClusterId, state: AnaState, portals: &[SocketAddr]) {
        let directory = directory(cluster, self.state.block_bytes, state, portals);
        self.state.target.publish(Arc::new(directory));
    }

    fn node(block_bytes: u32, disk: Arc<Mutex<Vec<u8>>>, config: TargetConfig) -> Self {
        let target = NvmeTarget::new(config).unwrap();
        let state = Arc::new(ArrayState {
            target,
            block_bytes,
            disk,
            is_down: AtomicBool::new(false),
            is_damaged: AtomicBool::new(false),
            is_stuck: AtomicBool::new(false),
            commands: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&accepting);
                if state.is_over.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::spawn(move || {
                    state.connections.fetch_add(1, Ordering::SeqCst);
                    state.serve(stream.unwrap());
                    state.connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Array { address, state }
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn directory(
    cluster: ClusterId,
    block_bytes: u32,
    state: AnaState,
    portals: &[SocketAddr],
) -> Directory {
    guarded_directory(cluster, block_bytes, state, portals, None)
}

fn guarded_directory(
    cluster: ClusterId,
    block_bytes: u32,
    state: AnaState,
    portals: &[SocketAddr],
    keys: Option<HostKeys>,
) -> Directory {
    let namespace = NamespaceView {
        nsid: 3,
        uuid: NAMESPACE,
        nguid: [0xcd; 16],
        block_size: block_bytes,
        blocks: SIZE / u64::from(block_bytes),
        ana_group: 1,
        state,
        read_only: false,
    };
    let view = Arc::new(HostView::new(vec![namespace]).unwrap());
    let host = format!("nqn.2014-08.org.nvmexpress:uuid:{cluster}");
    let keys = keys.map(|keys| (host.clone(), Arc::new(keys))).into_iter().collect();
    let hosts = BTreeMap::from([(host, view)]);
    let subsystem = Subsystem { serial: "1".to_owned(), hosts, keys };
    let entry = |(id, portal): (PortalId, &SocketAddr)| PortalEntry {
        id,
        address: portal.ip(),
        port: portal.port(),
    };
    let portals = (1..).zip(portals).map(entry).collect();
    Directory::new(BTreeMap::from([(SUBSYSTEM.to_owned(), subsystem)]), portals).unwrap()
}

impl ArrayState {
    fn serve(&self, mut stream: TcpStream) {
        let start = Instant::now();
        let portal: PortalId = 1;
        let mut connection =
            TargetConnection::new(Arc::clone(&self.target), portal, start.elapsed());
        stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut input = vec![0; 64 << 10];
        while !self.is_down.load(Ordering::SeqCst) && !self.is_over.load(Ordering::SeqCst) {
            match stream.read(&mut input) {
                Ok(0) => break,
                Ok(length) => connection.receive(&input[..length], start.elapsed()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            connection.tick(start.elapsed());
            while let Some(request) = connection.next_request() {
                if self.is_stuck.load(Ordering::SeqCst) {
                    self.commands.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let outcome = self.carry_out(request.operation);
                connection.complete(request.tag, outcome);
            }
            let output = std::mem::take(connection.output());
            if stream.write_all(&output).is_err() || connection.is_closing() {
                break;
            }
        }
        connection.disconnected();
    }

    fn carry_out(&self, operation: Operation) -> Outcome {
        if let Operation::Authenticate(work) = operation {
            return work.perform();
        }
        self.commands.fetch_add(1, Ordering::SeqCst);
        let block = u64::from(self.block_bytes);
        let range = |lba: u64, blocks: u32| {
            (lba * block) as usize..((lba + u64::from(blocks)) * block) as usize
        };
        let mut disk = self.disk.lock().unwrap();
        match operation {
            Operation::Read { .. } if self.is_damaged.load(Ordering::SeqCst) => {
                Outcome::Failed(Status::new(2, 0x81, false))
            }
            Operation::Read { lba, blocks } => {
                Outcome::Data(Buffer::copy_of(&disk[range(lba, blocks)]))
            }
            Operation::Write { lba, blocks, data, .. } => {
                disk[range(lba, blocks)].copy_from_slice(&data);
                Outcome::Done
            }
            Operation::WriteZeroes { lba, blocks, .. } => {
                disk[range(lba, blocks)].fill(0);
                Outcome::Done
            }
            Operation::Flush => Outcome::Done,
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn spec(array: &Array, namespace: &str) -> DeviceSpec {
    DeviceSpec {
        device: DeviceId::generate(),
        locator: Locator::RemoteNamespace {
            address: array.address,
            subsystem: SUBSYSTEM.to_owned(),
            namespace: namespace.to_owned(),
        },
        extent_bytes: EXTENT,
        adopted: false,
        overwrite: false,
    }
}

fn name() -> String {
    "ab".repeat(16)
}

/// A queue with one leg over the whole device.
fn queue_over(adopted: &Adopted) -> (DeviceQueue, LegId) {
    let mut queue = DeviceQueue::new(8).unwrap();
    let leg = LegId::generate();
    let device = adopted.device.device();
    queue.add_device(device, Arc::clone(&adopted.device));
    queue.attach_leg(leg, EXTENT, &[ExtentRun { device, first: 0, count: 7 }]);
    (queue, leg)
}

fn wait(queue: &mut DeviceQueue) -> DeviceResult {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some((_, result)) = queue.complete() {
            return result;
        }
        queue.flush_submissions();
        assert!(Instant::now() < deadline, "no completion");
        wait_for(&[(queue.as_fd(), false)], PATIENCE);
    }
}

fn perform(queue: &mut DeviceQueue, leg: LegId, offset: u64, kind: DeviceKind) -> DeviceResult {
    queue.submit(DeviceRequest { tag: DeviceTag(1), leg, offset, kind });
    wait(queue)
}

#[test]
fn a_remote_namespace_is_adopted_and_keeps_what_is_written() {
    for block_bytes in [512, 4096] {
        let cluster = ClusterId::generate();
        let array = Array::new(cluster, block_bytes);
        let mut spec = spec(&array, &name());
        let adopted = adopt(&spec, cluster).unwrap();
        assert_eq!((adopted.size_bytes, adopted.block_bytes), (SIZE, block_bytes));
        let (mut queue, leg) = queue_over(&adopted);
        let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 253) as u8).collect();
        let data = Arc::new(Buffer::copy_of(&bytes));
        perform(&mut queue, leg, 4096, DeviceKind::Write { data }).unwrap();
        let kind = DeviceKind::Zero { length: 8192, release: true };
        perform(&mut queue, leg, 8192, kind).unwrap();
        let kind = DeviceKind::Read { length: 3 << 20 };
        let read = perform(&mut queue, leg, 4096, kind).unwrap().unwrap();
        let mut wanted = bytes;
        wanted[4096..12288].fill(0);
        assert!(read[..] == wanted[..]);
        assert!(array.state.disk.lock().unwrap()[(1 << 20) + 4096..][..3 << 20] == wanted[..]);
        drop((queue, adopted));
        spec.adopted = true;
        drop(adopt(&spec, cluster).unwrap());
        array.state.disk.lock().unwrap()[..8192].fill(0);
        let error = adopt(&spec, cluster).unwrap_err();
        assert!(matches!(error, AdoptError::ContentLost { .. }), "{error}");
    }
}

#[test]
fn many_requests_at_once_all_complete() {
    let cluster = ClusterId::generate();
    let array = Array::new(cluster, 512);
    let adopted = adopt(&spec(&array, &name()), cluster).unwrap();
    let (mut queue, leg) = queue_over(&adopted);
    for block in 0..500 {
        let data = Arc::new(Buffer::copy_of(&[block as u8; 4096]));
        let kind = DeviceKind::Write { data };
        queue.submit(DeviceRequest { tag: DeviceTag(block), leg, offset: block * 4096, kind });
    }
    for _ in 0..500 {
        wait(&mut queue).unwrap();
    }
    assert_eq!(queue.pending(), 0);
    let disk = array.state.disk.lock().unwrap();
    for (block, bytes) in disk[1 << 20..].chunks(4096).take(500).enumerate() {
        assert!(bytes.iter().all(|byte| *byte == block as u8), "block {block}");
    }
}

#[test]
fn faults_of_the_target_are_told_apart() {
    let cluster = ClusterId::generate();
    let array = Array::new(cluster, 512);
    let adopted = adopt(&spec(&array, &name()), cluster).unwrap();
    let (mut queue, leg) = queue_over(&adopted);
    array.state.is_damaged.store(true, Ordering::SeqCst);
    let read = || DeviceKind::Read { length: 512 };
    assert_eq!(perform(&mut queue, leg, 0, read()).map(drop), Err(DeviceFault::Medium));
    array.state.is_damaged.store(false, Ordering::SeqCst);
    perform(&mut queue, leg, 0, read()).unwrap();
    // Half a block of the namespace.
    let data = Arc::new(Buffer::zeroed(256));
    let half = perform(&mut queue, leg, 0, DeviceKind::Write { data });
    assert_eq!(half.map(drop), Err(DeviceFault::Failed));
}

fn connect(array: &Array, cluster: ClusterId, quiet: Duration) -> RemoteDisk {
    let namespace = name();
    let at = RemoteAddress {
        address: array.address,
        subsystem: SUBSYSTEM,
        namespace: &namespace,
        cluster,
        keys: &ArrayKeys::default(),
        quiet,
    };
    RemoteDisk::connect(&at).unwrap().0
}

fn write(disk: &RemoteDisk) -> DeviceResult {
    let data = Arc::new(Buffer::copy_of(&[7; 512]));
    disk.perform(0, OrderKind::Write { data, from: 0, length: 512 }).unwrap()
}

/// Breaks all connections to a node, and refuses new ones.
fn take_down(array: &Array) {
    array.state.is_down.store(true, Ordering::SeqCst);
    while array.state.connections.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
}

fn commands(array: &Array) -> u64 {
    array.state.commands.load(Ordering::SeqCst)
}

#[test]
fn a_write_of_unknown_outcome_fails_and_nothing_is_sent_for_a_while() {
    let cluster = ClusterId::generate();
    let array = Array::new(cluster, 512);
    let quiet = Duration::from_millis(700);
    let disk = connect(&array, cluster, quiet);
    write(&disk).unwrap();
    array.state.is_stuck.store(true, Ordering::SeqCst);
    let before = commands(&array);
    std::thread::scope(|scope| {
        let lost = scope.spawn(|| write(&disk));
        while commands(&array) == before {
            std::thread::yield_now();
        }
        array.state.is_down.store(true, Ordering::SeqCst);
        assert_eq!(lost.join().unwrap().map(drop), Err(DeviceFault::Failed));
    });
    let lost = Instant::now();
    array.state.is_stuck.store(false, Ordering::SeqCst);
    array.state.is_down.store(false, Ordering::SeqCst);
    while write(&disk).is_err() {
        assert!(lost.elapsed() < PATIENCE, "the target never came back");
        std::thread::yield_now();
    }
    assert!(lost.elapsed() + Duration::from_millis(50) >= quiet, "it did not stay quiet");
    assert_eq!(commands(&array), before + 2, "something was repeated");
}

#[test]
fn orders_wait_for_a_target_that_is_back_soon_and_fail_if_it_is_not() {
    let cluster = ClusterId::generate();
    let array = Array::new(cluster, 512);
    let disk = connect(&array, cluster, Duration::from_millis(300));
    write(&disk).unwrap();
    let before = commands(&array);
    take_down(&array);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| write(&disk));
        std::thread::sleep(Duration::from_millis(500)); // gone for a moment is what it shall be
        array.state.is_down.store(false, Ordering::SeqCst);
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(commands(&array), before + 1, "it was carried out once");
    take_down(&array);
    let began = Instant::now();
    assert_eq!(write(&disk).map(drop), Err(DeviceFault::Failed));
    assert!(began.elapsed() < PATIENCE, "it waited for too long");
}

/// A device by two paths, of which the second serves; found by asking at the first.
fn by_two_paths(cluster: ClusterId) -> ([Array; 2], RemoteDisk) {
    let nodes = Array::pair();
    let portals = [nodes[0].address, nodes[1].address];
    nodes[0].publish(cluster, AnaState::Inaccessible, &portals);
    nodes[1].publish(cluster, AnaState::Optimized, &portals);
    let disk = connect(&nodes[0], cluster, QUIET);
    (nodes, disk)
}

#[test]
fn a_namespace_is_followed_to_the_path_that_serves_it() {
    let cluster = ClusterId::generate();
    let (nodes, disk) = by_two_paths(cluster);
    let portals = [nodes[0].address, nodes[1].address];
    for (old, new) in [(1, 0), (0, 1), (1, 0)] {
        let before = [commands(&nodes[0]), commands(&nodes[1])];
        write(&disk).unwrap();
        assert_eq!(commands(&nodes[old]), before[old] + 1, "it is not where it is served");
        nodes[old].publish(cluster, AnaState::Change, &portals);
        nodes[new].publish(cluster, AnaState::Change, &portals);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| write(&disk));
            std::thread::sleep(Duration::from_millis(200)); // in transition for a moment
            nodes[old].publish(cluster, AnaState::Inaccessible, &portals);
            nodes[new].publish(cluster, AnaState::Optimized, &portals);
            waiting.join().unwrap().unwrap();
        });
        assert_eq!(commands(&nodes[new]), before[new] + 1, "it did not follow");
    }
}

#[test]
fn a_better_path_is_taken_and_a_worse_one_rather_than_none() {
    let cluster = ClusterId::generate();
    let (nodes, disk) = by_two_paths(cluster);
    let portals = [nodes[0].address, nodes[1].address];
    nodes[0].publish(cluster, AnaState::Optimized, &portals);
    nodes[1].publish(cluster, AnaState::NonOptimized, &portals);
    let deadline = Instant::now() + PATIENCE;
    while commands(&nodes[0]) == 0 {
        write(&disk).unwrap();
        assert!(Instant::now() < deadline, "the better path is not taken");
    }
    nodes[0].publish(cluster, AnaState::Inaccessible, &portals);
    let before = commands(&nodes[1]);
    write(&disk).unwrap();
    assert_eq!(commands(&nodes[1]), before + 1);
}

#[test]
fn a_path_that_is_lost_between_writes_costs_no_order() {
    let cluster = ClusterId::generate();
    let (nodes, disk) = by_two_paths(cluster);
    let portals = [nodes[0].address, nodes[1].address];
    write(&disk).unwrap();
    nodes[0].publish(cluster, AnaState::Optimized, &portals);
    take_down(&nodes[1]);
    write(&disk).unwrap();
    assert_eq!(commands(&nodes[0]), 1);
}

#[test]
fn what_is_no_usable_namespace_is_refused() {
    let cluster = ClusterId::generate();
    let array = Array::new(cluster, 512);
    let refuse = |namespace: &str, cluster| match adopt(&spec(&array, namespace), cluster) {
        Err(AdoptError::Remote { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    for malformed in ["", "abc", &"ag".repeat(16), &"ab".repeat(17)] {
        let error = refuse(malformed, cluster);
        assert!(matches!(error, RemoteError::NamespaceName(_)), "{error}");
    }
    let error = refuse(&"12".repeat(16), cluster);
    assert!(matches!(error, RemoteError::NoNamespace { seen: 1, .. }), "{error}");
    // A host that the target does not admit.
    let error = refuse(&name(), ClusterId::generate());
    assert!(matches!(error, RemoteError::Closed(_)), "{error}");
    array.publish(cluster, AnaState::Inaccessible, &[]);
    let error = refuse(&name(), cluster);
    assert!(matches!(error, RemoteError::Inaccessible(_)), "{error}");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut spec = spec(&array, &name());
    spec.locator = Locator::RemoteNamespace {
        address: gone,
        subsystem: SUBSYSTEM.to_owned(),
        namespace: name(),
    };
    let error = adopt(&spec, cluster).unwrap_err();
    assert!(matches!(error, AdoptError::Remote { source: RemoteError::Connect(_), .. }), "{error}");
}

#[test]
fn a_namespace_is_named_with_or_without_hyphens() {
    let plain = namespace_of("0123456789abcdef0123456789ABCDEF");
    assert_eq!(plain, namespace_of("01234567-89ab-cdef-0123-456789abcdef"));
    assert_eq!(plain.map(|bytes| bytes[1]), Some(0x23));
    assert_eq!(namespace_of("é"), None);
}

/// Three keys, and a file that proves the first to the array and asks the second of it.
const KEYS: [&str; 3] = [
    "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:",
    "DHHC-1:00:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQHMnzFi:",
    "DHHC-1:00:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgJvwX3v:",
];

#[test]
fn an_array_and_the_cluster_prove_their_keys_to_each_other() {
    let cluster = ClusterId::generate();
    let array = Array::new(cluster, 512);
    let key = |index: usize| KEYS[index].parse().unwrap();
    let keys = HostKeys { host: key(0), controller: Some(key(1)) };
    let guarded = guarded_directory(cluster, 512, AnaState::Optimized, &[], Some(keys));
    array.state.target.publish(Arc::new(guarded));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let adopt = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
        let keys = ArrayKeys::in_file(path.clone());
        match adopt_with_keys(&spec(&array, &name()), cluster, &keys) {
            Err(AdoptError::Remote { source: RemoteError::Closed(reason), .. }) => Err(reason),
            Err(other) => panic!("{other}"),
            Ok(adopted) => Ok(adopted),
        }
    };
    let [ours, theirs, other] = KEYS;
    assert_eq!(adopt("").err(), Some(Closed::AuthenticationRequired));
    let refused = adopt(&format!("{SUBSYSTEM} {other}")).err();
    assert!(matches!(refused, Some(Closed::AuthenticationRefused(_))), "{refused:?}");
    let refused = adopt(&format!("{SUBSYSTEM} {ours} {other}")).err();
    assert!(matches!(refused, Some(Closed::TargetNotAuthentic(_))), "{refused:?}");
    let adopted = adopt(&format!("{SUBSYSTEM} {ours} {theirs}")).unwrap();
    let (mut queue, leg) = queue_over(&adopted);
    let data = Arc::new(Buffer::copy_of(&[7; 512]));
    perform(&mut queue, leg, 0, DeviceKind::Write { data }).unwrap();
}

use super::*;
use crate::queue::DeviceQueue;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;
use voute_mirror::{DeviceFault, DeviceKind, DeviceRequest, DeviceResult, DeviceTag};
use voute_schemas::LegId;
use voute_schemas::place::ExtentRun;

const EXTENT: u64 = 1 << 20;
const SIZE: u64 = 8 << 20;
/// Short, for claims that must fail.
const NO_WAIT: Duration = Duration::from_millis(50);

/// A folder, a cluster and a device in a file.
struct Place {
    folder: TempDir,
    cluster: ClusterId,
    device: DeviceId,
}

impl Place {
    fn new() -> Self {
        Place {
            folder: tempfile::tempdir().unwrap(),
            cluster: ClusterId::generate(),
            device: DeviceId::generate(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("device")
    }

    fn spec(&self) -> DeviceSpec {
        let path = self.path().to_str().unwrap().to_owned();
        DeviceSpec {
            device: self.device,
            locator: Locator::File { path, size_bytes: SIZE },
            extent_bytes: EXTENT,
            adopted: false,
            overwrite: false,
        }
    }

    fn adopt(&self, change: impl FnOnce(&mut DeviceSpec)) -> Result<Adopted, AdoptError> {
        let mut spec = self.spec();
        change(&mut spec);
        adopt_within(&spec, self.cluster, &ArrayKeys::default(), NO_WAIT)
    }

    /// A file of `SIZE` with `bytes` at `offset`.
    fn fill(&self, offset: u64, bytes: &[u8]) {
        let options = OpenOptions::new().write(true).create(true).truncate(false).open(self.path());
        let file = options.unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    fn header(&self) -> Area {
        Area::decode(&self.bytes()[..AREA_BYTES])
    }
}

fn unchanged(place: &Place, attempt: impl FnOnce() -> AdoptError) -> AdoptError {
    let before = place.bytes();
    let error = attempt();
    assert!(before == place.bytes(), "a refused device was written to");
    error
}

/// Skips, aloud, what only root can set up.
fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED: {what} needs root");
    }
    root
}

fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    if !output.status.success() {
        println!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn a_new_file_is_made_sparse_and_marked() {
    let place = Place::new();
    let adopted = place.adopt(|_| ()).unwrap();
    assert_eq!((adopted.size_bytes, adopted.block_bytes), (SIZE, 512));
    assert_eq!(adopted.device.extents(), 7);
    let status = fs::metadata(place.path()).unwrap();
    assert_eq!((status.len(), status.mode() & 0o777), (SIZE, 0o600));
    assert!(status.blocks() * 512 < 1 << 20, "the file is not sparse");
    let Area::Valid { header, whole: true } = place.header() else { panic!("no whole header") };
    assert_eq!((header.cluster, header.device), (place.cluster, place.device));
    assert_eq!((header.extent_bytes, header.size_bytes), (EXTENT, SIZE));
}

#[test]
fn an_adopted_device_is_found_again() {
    let place = Place::new();
    drop(place.adopt(|_| ()).unwrap());
    let before = place.bytes();
    drop(place.adopt(|spec| spec.adopted = true).unwrap());
    assert!(before == place.bytes(), "a whole header was written again");
}

#[test]
fn a_crash_between_header_and_commit_is_no_loss() {
    let place = Place::new();
    drop(place.adopt(|_| ()).unwrap());
    drop(place.adopt(|spec| spec.adopted = false).unwrap());
}

#[test]
fn a_crash_between_making_a_file_and_sizing_it_is_no_loss() {
    let place = Place::new();
    fs::write(place.path(), b"").unwrap();
    assert_eq!(place.adopt(|_| ()).unwrap().size_bytes, SIZE);
}

#[test]
fn a_header_with_one_torn_copy_survives_and_is_made_whole() {
    for copy in [0, COPY_BYTES as u64] {
        let place = Place::new();
        drop(place.adopt(|_| ()).unwrap());
        place.fill(copy + 25, &[0xee; 7]);
        assert!(matches!(place.header(), Area::Valid { whole: false, .. }));
        drop(place.adopt(|spec| spec.adopted = true).unwrap());
        assert!(matches!(place.header(), Area::Valid { whole: true, .. }), "copy at {copy}");
    }
}

#[test]
fn lost_content_is_never_initialised_again() {
    for (damage, offset) in [(vec![0; AREA_BYTES], 0), (vec![0xff; AREA_BYTES - 30], 30)] {
        let place = Place::new();
        drop(place.adopt(|_| ()).unwrap());
        place.fill(offset, &damage);
        for overwrite in [false, true] {
            let error = unchanged(&place, || {
                place
                    .adopt(|spec| {
                        spec.adopted = true;
                        spec.overwrite = overwrite;
                    })
                    .unwrap_err()
            });
            assert!(matches!(error, AdoptError::ContentLost { .. }), "{error}");
        }
    }
}

#[test]
fn a_missing_adopted_file_is_not_made() {
    let place = Place::new();
    let error = place.adopt(|spec| spec.adopted = true).unwrap_err();
    assert!(matches!(error, AdoptError::Missing { .. }), "{error}");
    assert!(!place.path().exists());
}

#[test]
fn another_device_or_cluster_is_foreign_unless_it_may_be_overwritten() {
    let place = Place::new();
    drop(place.adopt(|_| ()).unwrap());
    let other = DeviceId::generate();
    let error = unchanged(&place, || place.adopt(|spec| spec.device = other).unwrap_err());
    assert!(matches!(error, AdoptError::Foreign { found, .. } if found == place.device), "{error}");
    let error = unchanged(&place, || {
        adopt_within(&place.spec(), ClusterId::generate(), &ArrayKeys::default(), NO_WAIT)
            .unwrap_err()
    });
    assert!(matches!(error, AdoptError::Foreign { .. }), "{error}");
    let error = unchanged(&place, || {
        let adopted = |spec: &mut DeviceSpec| {
            (spec.device, spec.adopted, spec.overwrite) = (other, true, true);
        };
        place.adopt(adopted).unwrap_err()
    });
    assert!(matches!(error, AdoptError::Foreign { .. }), "{error}");
    let overwrite = |spec: &mut DeviceSpec| (spec.device, spec.overwrite) = (other, true);
    drop(place.adopt(overwrite).unwrap());
    assert!(matches!(place.header(), Area::Valid { header, .. } if header.device == other));
}

#[test]
fn a_header_of_a_newer_version_is_left_alone() {
    let place = Place::new();
    drop(place.adopt(|_| ()).unwrap());
    for copy in [0, COPY_BYTES as u64] {
        place.fill(copy + 8, &2u32.to_le_bytes());
    }
    let error = unchanged(&place, || place.adopt(|_| ()).unwrap_err());
    assert!(matches!(error, AdoptError::Newer { version: 2, .. }), "{error}");
}

#[test]
fn any_data_at_the_begin_or_the_end_is_refused_and_wiped_only_when_asked() {
    for offset in [0, 70_000, (1 << 20) - 1, SIZE - (1 << 20), SIZE - 1] {
        let place = Place::new();
        place.fill(offset, &[1]);
        let error = unchanged(&place, || place.adopt(|_| ()).unwrap_err());
        assert!(
            matches!(error, AdoptError::NotEmpty { content: Content::Unknown { offset: at }, .. } if at == offset),
            "{error}"
        );
        drop(place.adopt(|spec| spec.overwrite = true).unwrap());
        let bytes = place.bytes();
        assert!(bytes[AREA_BYTES..].iter().all(|byte| *byte == 0), "data at {offset} was left");
    }
}

#[test]
fn what_real_tools_write_is_recognised() {
    let mut tried = 0;
    for (program, arguments, wanted) in [
        ("mkfs.ext4", &["-q", "-F"][..], "ext4"),
        ("mkfs.xfs", &["-q", "-f"], "XFS"),
        ("mkfs.btrfs", &["-q", "-f"], "btrfs"),
        ("mkfs.vfat", &[], "FAT"),
        ("mkswap", &[], "swap"),
    ] {
        let place = Place::new();
        OpenOptions::new().write(true).create_new(true).open(place.path()).unwrap();
        OpenOptions::new().write(true).open(place.path()).unwrap().set_len(512 << 20).unwrap();
        let path = place.path();
        let arguments: Vec<&str> = arguments.iter().copied().chain(path.to_str()).collect();
        if run(program, &arguments).is_none() {
            println!("SKIPPED: {program} is not there");
            continue;
        }
        tried += 1;
        let error = place.adopt(|_| ()).unwrap_err();
        assert!(error.to_string().contains(wanted), "{program}: {error}");
        drop(place.adopt(|spec| spec.overwrite = true).unwrap());
    }
    println!("{tried} tools tried");
}

#[test]
fn a_backup_partition_table_alone_is_refused() {
    let place = Place::new();
    place.fill(SIZE - 512, b"EFI PART");
    let error = unchanged(&place, || place.adopt(|_| ()).unwrap_err());
    assert!(error.to_string().contains("GPT"), "{error}");
}

#[test]
fn a_device_too_small_for_one_extent_is_refused_with_the_size_it_needs() {
    let place = Place::new();
    let small = |spec: &mut DeviceSpec| spec.extent_bytes = 16 << 20;
    let error = place.adopt(small).unwrap_err();
    let needed = (1 << 20) + (16 << 20);
    assert!(
        matches!(error, AdoptError::TooSmall { size_bytes: SIZE, needed_bytes, .. } if needed_bytes == needed),
        "{error}"
    );
    assert!(error.to_string().contains(&needed.to_string()));
    assert!(!place.path().exists());
    fs::write(place.path(), vec![0; 4096]).unwrap();
    let error = place.adopt(|_| ()).unwrap_err();
    assert!(matches!(error, AdoptError::TooSmall { size_bytes: 4096, .. }), "{error}");
    let error = place.adopt(|spec| spec.extent_bytes = 1 << 63).unwrap_err();
    assert!(matches!(error, AdoptError::TooSmall { .. }), "{error}");
    for extent_bytes in [0, 1000] {
        let error = place.adopt(|spec| spec.extent_bytes = extent_bytes).unwrap_err();
        assert!(matches!(error, AdoptError::ExtentBytes { .. }), "{error}");
    }
}

#[test]
fn a_file_that_exists_keeps_its_size_whatever_the_locator_says() {
    let place = Place::new();
    place.fill(0, &[]);
    let path = place.path().to_str().unwrap().to_owned();
    let unsized_file = |spec: &mut DeviceSpec| spec.locator = Locator::File { path, size_bytes: 0 };
    assert_eq!(place.adopt(unsized_file).unwrap().size_bytes, SIZE);
}

#[test]
fn a_file_that_grew_is_used_whole_and_one_that_shrank_is_refused() {
    let place = Place::new();
    drop(place.adopt(|_| ()).unwrap());
    let file = OpenOptions::new().write(true).open(place.path()).unwrap();
    file.set_len(2 * SIZE).unwrap();
    assert_eq!(place.adopt(|spec| spec.adopted = true).unwrap().size_bytes, 2 * SIZE);
    file.set_len(SIZE).unwrap();
    let error = place.adopt(|spec| spec.adopted = true).unwrap_err();
    assert!(matches!(error, AdoptError::Mismatch { what: "a size of", .. }), "{error}");
}

#[test]
fn another_extent_size_than_the_headers_is_refused() {
    let place = Place::new();
    drop(place.adopt(|_| ()).unwrap());
    let error = place.adopt(|spec| spec.extent_bytes = 2 * EXTENT).unwrap_err();
    assert!(matches!(error, AdoptError::Mismatch { what: "extents of", .. }), "{error}");
}

#[test]
fn paths_that_are_no_device_are_refused() {
    let place = Place::new();
    let at = |path: &Path| {
        let mut spec = place.spec();
        let path = path.to_str().unwrap().to_owned();
        spec.locator = Locator::File { path: path.clone(), size_bytes: SIZE };
        let file = adopt_within(&spec, place.cluster, &ArrayKeys::default(), NO_WAIT).unwrap_err();
        spec.locator = Locator::Block { path };
        (file, adopt_within(&spec, place.cluster, &ArrayKeys::default(), NO_WAIT).unwrap_err())
    };
    let (file, block) = at(Path::new("relative/path"));
    assert!(matches!(file, AdoptError::NotAbsolute { .. }), "{file}");
    assert!(matches!(block, AdoptError::NotAbsolute { .. }), "{block}");
    let (file, block) = at(place.folder.path());
    assert!(matches!(file, AdoptError::WrongKind { .. }), "{file}");
    assert!(matches!(block, AdoptError::WrongKind { .. }), "{block}");
    let (file, block) = at(&place.folder.path().join("no/such"));
    assert!(matches!(file, AdoptError::NoFolder { .. }), "{file}");
    assert!(matches!(block, AdoptError::Missing { .. }), "{block}");
    let (file, block) = at(Path::new("/dev/null"));
    assert!(matches!(file, AdoptError::WrongKind { .. }), "{file}");
    assert!(matches!(block, AdoptError::WrongKind { .. }), "{block}");
}

#[test]
fn memory_that_was_adopted_is_lost_with_its_process() {
    let place = Place::new();
    let in_memory = |spec: &mut DeviceSpec| spec.locator = Locator::Memory { size_bytes: SIZE };
    let adopted = place.adopt(in_memory).unwrap();
    assert_eq!((adopted.size_bytes, adopted.device.extents()), (SIZE, 7));
    drop(adopted);
    let again = |spec: &mut DeviceSpec| {
        in_memory(spec);
        spec.adopted = true;
    };
    let error = place.adopt(again).unwrap_err();
    assert!(matches!(error, AdoptError::ContentLost { .. }), "{error}");
    let huge = |spec: &mut DeviceSpec| spec.locator = Locator::Memory { size_bytes: u64::MAX };
    assert!(matches!(place.adopt(huge).unwrap_err(), AdoptError::TooLarge { .. }));
}

#[test]
fn a_device_has_one_holder() {
    let place = Place::new();
    let holder = place.adopt(|_| ()).unwrap();
    let error = place.adopt(|spec| spec.overwrite = true).unwrap_err();
    assert!(matches!(error, AdoptError::InUse { .. }), "{error}");
    drop(holder);
    place.adopt(|spec| spec.adopted = true).unwrap();
}

#[test]
fn a_claim_waits_for_the_holder_to_go() {
    let place = Place::new();
    let holder = place.adopt(|_| ()).unwrap();
    let waiter = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            adopt_within(&place.spec(), place.cluster, &ArrayKeys::default(), claim::WAIT_MAX)
        });
        drop(holder);
        waiter.join().unwrap()
    });
    waiter.unwrap();
}

/// Where a holder process finds its spec.
const HOLDER_SPEC: &str = "VOUTE_TEST_HOLDER_PATH";

/// Not a rule of its own: the other process of `a_killed_holder...`, started by it.
#[test]
fn a_holder_process() {
    let Ok(path) = std::env::var(HOLDER_SPEC) else { return };
    let spec = DeviceSpec {
        device: "018f2b6e-0000-7000-8000-000000000002".parse().unwrap(),
        locator: Locator::File { path, size_bytes: SIZE },
        extent_bytes: EXTENT,
        adopted: false,
        overwrite: false,
    };
    let cluster = "018f2b6e-0000-7000-8000-000000000001".parse().unwrap();
    let adopted = adopt(&spec, cluster).unwrap();
    let mut queue = DeviceQueue::new(16).unwrap();
    let leg = LegId::generate();
    queue.add_device(spec.device, adopted.device);
    queue.attach_leg(leg, EXTENT, &[ExtentRun { device: spec.device, first: 0, count: 7 }]);
    println!("holding");
    std::io::stdout().flush().unwrap();
    // Writes until it is killed.
    let data = Arc::new(Buffer::copy_of(&[7; 1 << 20]));
    for tag in 0.. {
        let kind = DeviceKind::Write { data: Arc::clone(&data) };
        queue.submit(DeviceRequest { tag: DeviceTag(tag), leg, offset: tag % 7 * EXTENT, kind });
        queue.flush_submissions();
        while queue.pending() > 16 {
            queue.complete();
        }
    }
}

fn holder(path: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "adopt::tests::a_holder_process", "--nocapture"])
        .env(HOLDER_SPEC, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut heard = Vec::new();
    let output = child.stdout.as_mut().unwrap();
    while !String::from_utf8_lossy(&heard).contains("holding") {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).unwrap(), 1, "the holder ended");
        heard.push(byte[0]);
    }
    child
}

#[test]
fn a_killed_holder_leaves_no_write_behind_the_next_claim() {
    let mut place = Place::new();
    place.cluster = "018f2b6e-0000-7000-8000-000000000001".parse().unwrap();
    place.device = "018f2b6e-0000-7000-8000-000000000002".parse().unwrap();
    for _ in 0..5 {
        let mut child = holder(&place.path());
        let error = place.adopt(|_| ()).unwrap_err();
        assert!(matches!(error, AdoptError::InUse { .. }), "{error}");
        child.kill().unwrap();
        let claimed = adopt(&place.spec(), place.cluster).unwrap();
        // Nothing of the dead process may land over this any more.
        let file = OpenOptions::new().write(true).open(place.path()).unwrap();
        file.write_all_at(&vec![9; 7 << 20], 1 << 20).unwrap();
        file.sync_all().unwrap();
        child.wait().unwrap();
        assert!(place.bytes()[1 << 20..].iter().all(|byte| *byte == 9));
        drop(claimed);
    }
}

/// A loop device that ends with the test.
struct Loop {
    path: String,
}

impl Loop {
    fn over(file: &Path, block_bytes: u32) -> Option<Loop> {
        if !is_root("a loop device") {
            return None;
        }
        let block = block_bytes.to_string();
        let made = run("losetup", &["-b", &block, "-f", "--show", file.to_str()?]);
        if made.is_none() {
            println!("SKIPPED: no loop device can be made here");
        }
        made.map(|path| Loop { path })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["-d", &self.path]);
    }
}

fn request(queue: &mut DeviceQueue, leg: LegId, offset: u64, kind: DeviceKind) -> DeviceResult {
    queue.submit(DeviceRequest { tag: DeviceTag(1), leg, offset, kind });
    queue.flush_submissions();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some((_, result)) = queue.complete() {
            return result;
        }
        assert!(Instant::now() < deadline, "no completion");
        std::thread::yield_now();
    }
}

#[test]
fn a_block_device_is_claimed_used_and_has_its_own_blocks() {
    for block_bytes in [512, 4096] {
        let place = Place::new();
        place.fill(0, &[]);
        let Some(device) = Loop::over(&place.path(), block_bytes) else { return };
        let block = |spec: &mut DeviceSpec| {
            spec.locator = Locator::Block { path: device.path.clone() };
        };
        let adopted = place.adopt(block).unwrap();
        assert_eq!((adopted.size_bytes, adopted.block_bytes), (SIZE, block_bytes));
        let error = place.adopt(block).unwrap_err();
        assert!(matches!(error, AdoptError::InUse { .. }), "{error}");
        let mut queue = DeviceQueue::new(4).unwrap();
        let leg = LegId::generate();
        queue.add_device(place.device, Arc::clone(&adopted.device));
        queue.attach_leg(leg, EXTENT, &[ExtentRun { device: place.device, first: 1, count: 6 }]);
        let data = Arc::new(Buffer::copy_of(&vec![5; 2 << 20]));
        request(&mut queue, leg, 4096, DeviceKind::Write { data }).unwrap();
        for release in [true, false] {
            let kind = DeviceKind::Zero { length: 8192, release };
            request(&mut queue, leg, if release { 8192 } else { 65536 }, kind).unwrap();
        }
        let read =
            request(&mut queue, leg, 0, DeviceKind::Read { length: 3 << 20 }).unwrap().unwrap();
        let zero = |at: usize| {
            at < 4096
                || (8192..16384).contains(&at)
                || (65536..73728).contains(&at)
                || at >= (2 << 20) + 4096
        };
        let wrong =
            read.iter().enumerate().find(|(at, byte)| **byte != if zero(*at) { 0 } else { 5 });
        assert_eq!(wrong, None);
        drop((queue, adopted));
        drop(
            place
                .adopt(|spec| {
                    block(spec);
                    spec.adopted = true;
                })
                .unwrap(),
        );
    }
}

/// Flushes that a block device has carried out (Documentation/block/stat.rst, field 16).
fn flushes(device: &str) -> u64 {
    let name = device.trim_start_matches("/dev/");
    let line = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    line.split_whitespace().nth(15).unwrap().parse().unwrap()
}

#[test]
fn writes_and_zeroes_flush_a_volatile_cache_before_they_complete() {
    let place = Place::new();
    place.fill(0, &[]);
    let Some(device) = Loop::over(&place.path(), 512) else { return };
    let name = device.path.trim_start_matches("/dev/");
    let cache = fs::read_to_string(format!("/sys/block/{name}/queue/write_cache")).unwrap();
    assert_eq!(cache.trim(), "write back", "loop devices are expected to have a volatile cache");
    let block = |spec: &mut DeviceSpec| spec.locator = Locator::Block { path: device.path.clone() };
    let adopted = place.adopt(block).unwrap();
    let mut queue = DeviceQueue::new(4).unwrap();
    let leg = LegId::generate();
    queue.add_device(place.device, Arc::clone(&adopted.device));
    queue.attach_leg(leg, EXTENT, &[ExtentRun { device: place.device, first: 0, count: 7 }]);
    let data = Arc::new(Buffer::copy_of(&[5; 4096]));
    let kinds = [
        DeviceKind::Write { data },
        DeviceKind::Zero { length: 4096, release: true },
        DeviceKind::Zero { length: 4096, release: false },
    ];
    for kind in kinds {
        let said = format!("{kind:?}");
        let before = flushes(&device.path);
        request(&mut queue, leg, 0, kind).unwrap();
        assert!(flushes(&device.path) > before, "{said} did not flush");
    }
    let before = flushes(&device.path);
    request(&mut queue, leg, 0, DeviceKind::Read { length: 4096 }).unwrap();
    assert_eq!(flushes(&device.path), before);
}

#[test]
fn a_mounted_block_device_is_refused_even_with_overwrite() {
    let place = Place::new();
    place.fill(0, &[]);
    OpenOptions::new().write(true).open(place.path()).unwrap().set_len(32 << 20).unwrap();
    let Some(device) = Loop::over(&place.path(), 512) else { return };
    let folder = tempfile::tempdir().unwrap();
    let mounted_at = folder.path().to_str().unwrap();
    if run("mkfs.ext4", &["-q", "-F", &device.path]).is_none()
        || run("mount", &[&device.path, mounted_at]).is_none()
    {
        println!("SKIPPED: no file system can be mounted here");
        return;
    }
    let block = |spec: &mut DeviceSpec| {
        spec.locator = Locator::Block { path: device.path.clone() };
        spec.overwrite = true;
    };
    let error = place.adopt(block).unwrap_err();
    run("umount", &[mounted_at]);
    assert!(matches!(error, AdoptError::InUse { .. }), "{error}");
    drop(place.adopt(block).unwrap());
}

#[test]
fn a_file_that_backs_a_loop_device_is_refused() {
    let place = Place::new();
    place.fill(0, &[]);
    let Some(device) = Loop::over(&place.path(), 512) else { return };
    let error = place.adopt(|spec| spec.overwrite = true).unwrap_err();
    assert!(matches!(error, AdoptError::InUse { user: "a loop device", .. }), "{error}");
    drop(device);
    // The kernel lets go of the file once nobody looks at the loop device any more.
    let until = Instant::now() + std::time::Duration::from_secs(10);
    while let Err(error) = place.adopt(|_| ()) {
        let goes = matches!(error, AdoptError::InUse { .. }) && Instant::now() < until;
        assert!(goes, "{error}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_full_file_system_is_told_from_a_failed_device() {
    if !is_root("a small file system") {
        return;
    }
    let mut place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let mounted_at = folder.path().to_str().unwrap().to_owned();
    if run("mount", &["-t", "tmpfs", "-o", "size=3m", "tmpfs", &mounted_at]).is_none() {
        println!("SKIPPED: nothing can be mounted here");
        return;
    }
    place.folder = folder;
    let results = fill_small(&place);
    run("umount", &[&mounted_at]);
    assert_eq!(results.0, Err(DeviceFault::NoSpace));
    assert_eq!(results.1, Ok(()), "zeroing gives space back");
    assert_eq!(results.2, Ok(()));
}

type Outcome = Result<(), DeviceFault>;

/// Writes until full, gives space back, writes again.
fn fill_small(place: &Place) -> (Outcome, Outcome, Outcome) {
    let adopted = place.adopt(|_| ()).unwrap();
    let mut queue = DeviceQueue::new(4).unwrap();
    let leg = LegId::generate();
    queue.add_device(place.device, adopted.device);
    queue.attach_leg(leg, EXTENT, &[ExtentRun { device: place.device, first: 0, count: 7 }]);
    let data = Arc::new(Buffer::copy_of(&vec![5; 1 << 20]));
    let write = |queue: &mut DeviceQueue, index: u64| {
        let kind = DeviceKind::Write { data: Arc::clone(&data) };
        request(queue, leg, index << 20, kind).map(drop)
    };
    let full = (0..7).map(|index| write(&mut queue, index)).find(Result::is_err).unwrap_or(Ok(()));
    let kind = DeviceKind::Zero { length: 7 << 20, release: true };
    let zeroed = request(&mut queue, leg, 0, kind).map(drop);
    (full, zeroed, write(&mut queue, 6))
}

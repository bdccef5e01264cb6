//! Opening a file or block device so that nobody else has it.
//!
//! The claim is bound to the open file (`O_EXCL` on block devices, `flock` on files, never POSIX
//! locks, which any close of the process drops): the kernel holds it as long as any I/O of a dead
//! predecessor is under way, and until then we wait, before anything was read.

use crate::adopt::AdoptError;
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, StatxFlags, fcntl_getfl, fcntl_setfl,
    flock, fstat, fsync, ftruncate, ioctl_blksszget, makedev, open, statx,
};
use rustix::io::Errno;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use voute_buffer::Buffer;

/// How long a claim waits for another holder, such as the kernel on behalf of a killed process.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(5);
/// How long it waits between two tries.
const WAIT_STEP: Duration = Duration::from_millis(20);

/// An open file or block device that nobody else has.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) file: OwnedFd,
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
    /// Whether what was written may vanish in a power cut unless flushed.
    pub(crate) volatile: bool,
}

/// Claims a file; makes it, sparse, if `create_bytes` says how large.
pub(crate) fn claim_file(
    path: &str,
    create_bytes: Option<u64>,
    wait: Duration,
) -> Result<Claimed, AdoptError> {
    let path = absolute(path)?;
    expect_kind(&path, FileType::RegularFile, "a regular file", create_bytes.is_some())?;
    let create = if create_bytes.is_some() { OFlags::CREATE } else { OFlags::empty() };
    let flags = OFlags::RDWR | OFlags::CLOEXEC | create;
    let file =
        open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| opening(&path, errno))?;
    retry(&path, wait, Errno::WOULDBLOCK, || {
        flock(&file, FlockOperation::NonBlockingLockExclusive)
    })?;
    refuse_if_system_uses(&path)?;
    let mut size_bytes = size_of(&path, &file)?;
    let new = size_bytes == 0 && create_bytes.is_some();
    if let (true, Some(bytes)) = (new, create_bytes) {
        make(&path, &file, bytes)?;
        size_bytes = bytes;
    }
    let block_bytes = 512;
    // Direct I/O in units that a 512-byte block may need, or else none.
    if direct_unit(&file).is_none_or(|unit| unit <= block_bytes) && set_direct(&file, true).is_ok()
    {
        let works = size_bytes >= 1024 && reads_block(&file, block_bytes);
        if !works {
            set_direct(&file, false).map_err(|errno| opening(&path, errno))?;
        }
    }
    Ok(Claimed { file, size_bytes: size_bytes / 512 * 512, block_bytes, volatile: true })
}

/// Claims a block device.
pub(crate) fn claim_block(path: &str, wait: Duration) -> Result<Claimed, AdoptError> {
    let path = absolute(path)?;
    expect_kind(&path, FileType::BlockDevice, "a block device", false)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL | OFlags::DIRECT;
    let file = retry(&path, wait, Errno::BUSY, || open(&path, flags, Mode::empty()))?;
    let status = fstat(&file).map_err(|errno| opening(&path, errno))?;
    let block_bytes = ioctl_blksszget(&file).map_err(|errno| opening(&path, errno))?;
    if !block_bytes.is_power_of_two() || !(512..=4096).contains(&block_bytes) {
        return Err(AdoptError::BlockSize { path, block_bytes });
    }
    let size_bytes = size_of(&path, &file)?;
    Ok(Claimed { file, size_bytes, block_bytes, volatile: has_volatile_cache(&status) })
}

fn absolute(path: &str) -> Result<PathBuf, AdoptError> {
    let path = PathBuf::from(path);
    if path.is_absolute() { Ok(path) } else { Err(AdoptError::NotAbsolute { path }) }
}

/// Looked at before opening: opening a pipe would wait, opening a tape would wind it.
fn expect_kind(
    path: &Path,
    wanted: FileType,
    wanted_name: &'static str,
    may_be_missing: bool,
) -> Result<(), AdoptError> {
    let path_owned = || path.to_path_buf();
    match rustix::fs::stat(path) {
        Ok(status) if FileType::from_raw_mode(status.st_mode) == wanted => Ok(()),
        Ok(_) => Err(AdoptError::WrongKind { path: path_owned(), wanted: wanted_name }),
        Err(Errno::NOENT) if may_be_missing => match path.parent() {
            Some(parent) if parent.is_dir() => Ok(()),
            _ => Err(AdoptError::NoFolder { path: path_owned() }),
        },
        Err(Errno::NOENT) => Err(AdoptError::Missing { path: path_owned() }),
        Err(errno) => Err(opening(path, errno)),
    }
}

fn opening(path: &Path, errno: Errno) -> AdoptError {
    AdoptError::Open { path: path.to_path_buf(), source: errno.into() }
}

/// Tries until something else than `busy` comes, at most for `wait`.
fn retry<T>(
    path: &Path,
    wait: Duration,
    busy: Errno,
    mut claim: impl FnMut() -> rustix::io::Result<T>,
) -> Result<T, AdoptError> {
    let deadline = Instant::now() + wait;
    loop {
        match claim() {
            Ok(claimed) => return Ok(claimed),
            Err(Errno::INTR) => {}
            Err(errno) if errno != busy => return Err(opening(path, errno)),
            Err(_) if Instant::now() >= deadline => {
                let user = "another process, a mount or the kernel";
                return Err(AdoptError::InUse { path: path.to_path_buf(), user });
            }
            Err(_) => std::thread::sleep(WAIT_STEP),
        }
    }
}

/// A file can serve the kernel without anybody holding a lock on it.
fn refuse_if_system_uses(path: &Path) -> Result<(), AdoptError> {
    let Ok(real) = path.canonicalize() else { return Ok(()) };
    let in_use = |user| Err(AdoptError::InUse { path: path.to_path_buf(), user });
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().filter_map(|line| line.split(' ').next()).any(|one| Path::new(one) == real) {
        return in_use("the system, to swap to");
    }
    let blocks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut backing = blocks
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("loop/backing_file")).ok());
    if backing.any(|file| Path::new(file.trim_end_matches('\n')) == real) {
        return in_use("a loop device");
    }
    Ok(())
}

fn size_of(path: &Path, file: &OwnedFd) -> Result<u64, AdoptError> {
    let seek = || std::fs::File::from(file.try_clone()?).seek(SeekFrom::End(0));
    seek().map_err(|source| AdoptError::Open { path: path.to_path_buf(), source })
}

/// Gives a new file its size, durably, its name too.
fn make(path: &Path, file: &OwnedFd, bytes: u64) -> Result<(), AdoptError> {
    let make = || -> rustix::io::Result<()> {
        ftruncate(file, bytes)?;
        fsync(file)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        fsync(open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    };
    make().map_err(|errno| AdoptError::Create {
        path: path.to_path_buf(),
        size_bytes: bytes,
        source: errno.into(),
    })
}

/// The unit that direct I/O on this file needs in offset, length and memory, bytes, if the file
/// system says (Linux 6.1).
fn direct_unit(file: &OwnedFd) -> Option<u32> {
    let wanted = StatxFlags::from_bits_retain(libc::STATX_DIOALIGN);
    let status = statx(file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    let said = status.stx_mask & libc::STATX_DIOALIGN != 0;
    // Zero means that direct I/O does not work on this file.
    let unit = match status.stx_dio_offset_align {
        0 => u32::MAX,
        unit => unit.max(status.stx_dio_mem_align),
    };
    said.then_some(unit)
}

fn set_direct(file: &OwnedFd, direct: bool) -> rustix::io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    fcntl_setfl(file, flags)
}

/// Whether one block can be read from a place, to memory, that is aligned to a block and no more.
fn reads_block(file: &OwnedFd, block_bytes: u32) -> bool {
    let block = block_bytes as usize;
    let mut memory = Buffer::zeroed(2 * block);
    rustix::io::pread(file, &mut memory[block..], u64::from(block_bytes)) == Ok(block)
}

/// What the kernel knows of a drive's write cache; without an answer there is one.
fn has_volatile_cache(status: &Stat) -> bool {
    let (major, minor) = (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev));
    debug_assert_eq!(makedev(major, minor), status.st_rdev);
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition's queue is its disk's.
    let read = |queue: &str| -> io::Result<String> {
        std::fs::read_to_string(device.canonicalize()?.join(queue))
    };
    let cache = read("queue/write_cache").or_else(|_| read("../queue/write_cache"));
    !cache.is_ok_and(|kind| kind.trim() == "write through")
}

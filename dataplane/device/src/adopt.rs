//! Taking a device into use: claim it, look at what it holds, mark it as ours.

use crate::claim::{self, Claimed};
use crate::header::{AREA_BYTES, Area, COPY_BYTES, DeviceHeader};
use crate::kernel::KernelDisk;
use crate::memory::{MEMORY_BYTES_MAX, MemoryDisk};
use crate::open::{Backend, OpenDevice, extents};
use crate::remote::{self, ArrayKeys, RemoteAddress, RemoteDisk, RemoteError};
use crate::signature::{self, Content, LOOK_BYTES};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::contract::DeviceSpec;
use voute_schemas::place::{DEVICE_HEADER_BYTES, Locator};
use voute_schemas::{ClusterId, DeviceId};

/// A device taken into use.
#[derive(Debug)]
pub struct Adopted {
    /// To be given to every reactor's queue.
    pub device: Arc<OpenDevice>,
    /// Size of the whole device, bytes.
    pub size_bytes: u64,
    /// Its logical block, bytes.
    pub block_bytes: u32,
}

/// Why a device cannot be taken into use.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Paths are absolute.
    #[error("{path}: the path of a device must be absolute")]
    NotAbsolute {
        /// As given.
        path: PathBuf,
    },
    /// A file or block device that should be there is not.
    #[error("{path} is not there: check that the drive is connected, or its file system mounted")]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// A new file's folder is not there.
    #[error("{path} cannot be created: create its folder first")]
    NoFolder {
        /// The file.
        path: PathBuf,
    },
    /// The path leads to something else.
    #[error("{path} is not {wanted}")]
    WrongKind {
        /// Which.
        path: PathBuf,
        /// What it should be, with article.
        wanted: &'static str,
    },
    /// It cannot be opened or examined.
    #[error("{path} cannot be opened: {source}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A new file cannot get its size.
    #[error("{path} cannot be created with {size_bytes} bytes: {source}")]
    Create {
        /// Which.
        path: PathBuf,
        /// The size.
        size_bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// Somebody else has it; never overridden.
    #[error("{path} is in use by {user}: unmount it or stop what uses it, then try again")]
    InUse {
        /// Which.
        path: PathBuf,
        /// By whom, as far as is known.
        user: &'static str,
    },
    /// Blocks that we cannot use.
    #[error("{path} has blocks of {block_bytes} bytes: 512 to 4096 are supported")]
    BlockSize {
        /// Which.
        path: PathBuf,
        /// Its logical block.
        block_bytes: u32,
    },
    /// No room for a single extent.
    #[error(
        "device {device} has {size_bytes} bytes: at least {needed_bytes} are needed for one extent"
    )]
    TooSmall {
        /// Which.
        device: DeviceId,
        /// Its size.
        size_bytes: u64,
        /// The least.
        needed_bytes: u64,
    },
    /// More memory than a device may have.
    #[error("a memory device of {size_bytes} bytes: at most {MEMORY_BYTES_MAX} are supported")]
    TooLarge {
        /// As asked for.
        size_bytes: u64,
    },
    /// An extent size that no device can have.
    #[error("extents of {extent_bytes} bytes: the size must be a multiple of 4096")]
    ExtentBytes {
        /// As asked for.
        extent_bytes: u64,
    },
    /// It holds data that is not ours.
    #[error(
        "device {device} is not empty, it holds {content}: \
         choose another, or adopt it with overwrite to destroy what it holds"
    )]
    NotEmpty {
        /// Which.
        device: DeviceId,
        /// What.
        content: Content,
    },
    /// It belongs to another cluster, or is another device of this one.
    #[error(
        "device {device} was expected, but found was device {found} of cluster {cluster}: \
         check the path, or adopt it with overwrite to destroy what it holds"
    )]
    Foreign {
        /// The expected one.
        device: DeviceId,
        /// The one in the header.
        found: DeviceId,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// It was adopted by newer software.
    #[error("device {device} has a header of version {version}: update this node's software")]
    Newer {
        /// Which.
        device: DeviceId,
        /// Of its header.
        version: u32,
    },
    /// It was adopted, and its header is gone: so may be all that it held.
    #[error(
        "device {device} was adopted, but holds {found} instead of its header: its content is lost; \
         remove its legs and adopt it as a new device"
    )]
    ContentLost {
        /// Which.
        device: DeviceId,
        /// What is there.
        found: String,
    },
    /// Its header is right but does not fit what is wanted or what is there.
    #[error("device {device}: its header says {what} {header}, expected was {expected}")]
    Mismatch {
        /// Which.
        device: DeviceId,
        /// Of what.
        what: &'static str,
        /// In the header.
        header: u64,
        /// Expected.
        expected: u64,
    },
    /// Another target's namespace cannot be used.
    #[error("target {address}: {source}")]
    Remote {
        /// Where the target listens.
        address: SocketAddr,
        /// Why.
        source: RemoteError,
    },
    /// Reading or writing failed.
    #[error("device {device}: {doing} failed: {source}")]
    Io {
        /// Which.
        device: DeviceId,
        /// What failed.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Takes a device into use: claims it, before it reads anything; refuses what is in use, and what
/// holds anything not ours unless the spec says `overwrite`; marks it with a header.
///
/// Blocks, for up to 5 s when another process has the device: not for a reactor's thread.
///
/// # Errors
/// [`AdoptError`] says what to do. Nothing was written then, except that a missing file may have
/// been created.
pub fn adopt(spec: &DeviceSpec, cluster: ClusterId) -> Result<Adopted, AdoptError> {
    adopt_with_keys(spec, cluster, &ArrayKeys::default())
}

/// As [`adopt`], with what is to be proven to arrays.
///
/// # Errors
/// As [`adopt`].
pub fn adopt_with_keys(
    spec: &DeviceSpec,
    cluster: ClusterId,
    keys: &ArrayKeys,
) -> Result<Adopted, AdoptError> {
    adopt_within(spec, cluster, keys, claim::WAIT_MAX)
}

/// With a limit of its own for the wait for another holder.
pub(crate) fn adopt_within(
    spec: &DeviceSpec,
    cluster: ClusterId,
    keys: &ArrayKeys,
    wait: Duration,
) -> Result<Adopted, AdoptError> {
    if spec.extent_bytes == 0 || !spec.extent_bytes.is_multiple_of(4096) {
        return Err(AdoptError::ExtentBytes { extent_bytes: spec.extent_bytes });
    }
    match &spec.locator {
        Locator::Memory { size_bytes } => adopt_memory(spec, *size_bytes),
        Locator::File { path, size_bytes } => {
            // A new file that would be too small is not even made; one that exists keeps its size.
            if !std::path::Path::new(path).exists() {
                check_size(spec, *size_bytes)?;
            }
            let create = (!spec.adopted).then_some(*size_bytes);
            adopt_claimed(spec, cluster, claim::claim_file(path, create, wait)?)
        }
        Locator::Block { path } => adopt_claimed(spec, cluster, claim::claim_block(path, wait)?),
        Locator::RemoteNamespace { address, subsystem, namespace } => {
            let quiet = remote::QUIET;
            let address = *address;
            let at = RemoteAddress { address, subsystem, namespace, cluster, keys, quiet };
            adopt_remote(spec, cluster, &at)
        }
    }
}

fn check_size(spec: &DeviceSpec, size_bytes: u64) -> Result<(), AdoptError> {
    if extents(size_bytes, spec.extent_bytes) > 0 {
        return Ok(());
    }
    let needed_bytes = DEVICE_HEADER_BYTES.saturating_add(spec.extent_bytes);
    Err(AdoptError::TooSmall { device: spec.device, size_bytes, needed_bytes })
}

/// Memory begins empty with each process, and so is lost if it was ever adopted.
fn adopt_memory(spec: &DeviceSpec, size_bytes: u64) -> Result<Adopted, AdoptError> {
    if spec.adopted {
        let found = "the empty memory of a new process".to_owned();
        return Err(AdoptError::ContentLost { device: spec.device, found });
    }
    if size_bytes > MEMORY_BYTES_MAX {
        return Err(AdoptError::TooLarge { size_bytes });
    }
    check_size(spec, size_bytes)?;
    Ok(opened(spec, size_bytes, 512, Backend::Memory(MemoryDisk::new(size_bytes))))
}

fn adopt_remote(
    spec: &DeviceSpec,
    cluster: ClusterId,
    at: &RemoteAddress<'_>,
) -> Result<Adopted, AdoptError> {
    let address = at.address;
    let (disk, facts) =
        RemoteDisk::connect(at).map_err(|source| AdoptError::Remote { address, source })?;
    let (size_bytes, block_bytes) = (facts.size_bytes, facts.block_bytes);
    check_size(spec, size_bytes)?;
    mark(&disk, spec, cluster, size_bytes, block_bytes)?;
    Ok(opened(spec, size_bytes, block_bytes, Backend::Detached(Box::new(disk))))
}

fn adopt_claimed(
    spec: &DeviceSpec,
    cluster: ClusterId,
    claimed: Claimed,
) -> Result<Adopted, AdoptError> {
    let Claimed { file, size_bytes, block_bytes, volatile } = claimed;
    check_size(spec, size_bytes)?;
    mark(&file, spec, cluster, size_bytes, block_bytes)?;
    Ok(opened(spec, size_bytes, block_bytes, Backend::Kernel(KernelDisk::new(file, volatile))))
}

fn opened(spec: &DeviceSpec, size_bytes: u64, block_bytes: u32, backend: Backend) -> Adopted {
    let (device, extent_bytes) = (spec.device, spec.extent_bytes);
    let device = OpenDevice { device, size_bytes, block_bytes, extent_bytes, backend };
    Adopted { device: Arc::new(device), size_bytes, block_bytes }
}

#[cfg(test)]
mod tests;

/// Plain reads and durable writes of a device that is being adopted. Ranges are whole blocks.
pub(crate) trait Media {
    /// Fills `into`.
    fn read(&self, offset: u64, into: &mut Buffer) -> io::Result<()>;
    /// Writes durably.
    fn write(&self, offset: u64, bytes: &Buffer) -> io::Result<()>;
}

impl Media for OwnedFd {
    fn read(&self, offset: u64, into: &mut Buffer) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match rustix::io::pread(self, &mut into[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => done += bytes,
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &Buffer) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(self, &bytes[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => done += written,
            }
        }
        Ok(rustix::fs::fsync(self)?)
    }
}

/// Makes sure that the device holds our header, or writes it where that destroys nothing or was
/// asked for.
pub(crate) fn mark(
    media: &dyn Media,
    spec: &DeviceSpec,
    cluster: ClusterId,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<(), AdoptError> {
    let device = spec.device;
    let head = look(media, device, 0, LOOK_BYTES as u64)?;
    let ours = DeviceHeader {
        generation: 0,
        cluster,
        device,
        extent_bytes: spec.extent_bytes,
        size_bytes,
        block_bytes,
    };
    let area = Area::decode(&head[..AREA_BYTES]);
    match area {
        Area::Valid { header, whole } if header.device == device && header.cluster == cluster => {
            check_fit(&header, &ours)?;
            if !whole || header.size_bytes != size_bytes {
                write_header(media, DeviceHeader { generation: header.generation + 1, ..ours })?;
            }
            return Ok(());
        }
        Area::Valid { header, .. } if spec.adopted || !spec.overwrite => {
            return Err(AdoptError::Foreign {
                device,
                found: header.device,
                cluster: header.cluster,
            });
        }
        Area::Newer(version) if spec.adopted || !spec.overwrite => {
            return Err(AdoptError::Newer { device, version });
        }
        Area::Valid { .. } | Area::Newer(_) | Area::Damaged | Area::Absent => {}
    }
    let tail_at = (size_bytes - LOOK_BYTES as u64).max(LOOK_BYTES as u64);
    let tail = look(media, device, tail_at, size_bytes - tail_at)?;
    let content = match area {
        Area::Damaged => Some(Content::DamagedHeader),
        _ => signature::content(&head, &tail, tail_at),
    };
    match content {
        found if spec.adopted => {
            let found = found.map_or("nothing".to_owned(), |content| content.to_string());
            return Err(AdoptError::ContentLost { device, found });
        }
        Some(content) if !spec.overwrite => return Err(AdoptError::NotEmpty { device, content }),
        // Old marks would make other software take the device for its own.
        Some(_) => wipe(media, device, &[(0, head.len()), (tail_at, tail.len())])?,
        None => {}
    }
    write_header(media, DeviceHeader { generation: 1, ..ours })?;
    write_header(media, DeviceHeader { generation: 2, ..ours })
}

/// A header that is ours must agree with the log and with the device.
fn check_fit(header: &DeviceHeader, ours: &DeviceHeader) -> Result<(), AdoptError> {
    let mismatch = |what, header: u64, expected: u64| {
        Err(AdoptError::Mismatch { device: ours.device, what, header, expected })
    };
    if header.extent_bytes != ours.extent_bytes {
        return mismatch("extents of", header.extent_bytes, ours.extent_bytes);
    }
    if header.size_bytes > ours.size_bytes {
        return mismatch("a size of", header.size_bytes, ours.size_bytes);
    }
    Ok(())
}

fn look(
    media: &dyn Media,
    device: DeviceId,
    offset: u64,
    length: u64,
) -> Result<Buffer, AdoptError> {
    let mut bytes = Buffer::zeroed(length as usize);
    let doing = "reading what it holds";
    media.read(offset, &mut bytes).map_err(|source| AdoptError::Io { device, doing, source })?;
    Ok(bytes)
}

fn wipe(media: &dyn Media, device: DeviceId, ranges: &[(u64, usize)]) -> Result<(), AdoptError> {
    for (offset, length) in ranges {
        let doing = "wiping what it held";
        media.write(*offset, &Buffer::zeroed(*length)).map_err(|source| AdoptError::Io {
            device,
            doing,
            source,
        })?;
    }
    Ok(())
}

fn write_header(media: &dyn Media, header: DeviceHeader) -> Result<(), AdoptError> {
    let bytes = Buffer::copy_of(&header.encode());
    debug_assert_eq!(bytes.len(), COPY_BYTES);
    let (device, doing) = (header.device, "writing its header");
    media.write(header.offset(), &bytes).map_err(|source| AdoptError::Io { device, doing, source })
}

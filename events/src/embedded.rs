//! The embedded engine: one redb file, one process.
//!
//! Each row is a commit under its number: 32 bytes of its hash, then its bytes. The expected head is
//! compared in the transaction that stores, so that any number of tasks may append at once.

use crate::sealing::{diverged, seal};
use crate::{AppendError, Log, Position, READ_BYTES_MAX, ReadError, StoredCommit};
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageError,
    TableDefinition, TableError, backends::FileBackend,
};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use voute_schemas::{Commit, Hash, Sequence};

const COMMITS: TableDefinition<u64, &[u8]> = TableDefinition::new("commits");
const FORMAT: TableDefinition<&str, u64> = TableDefinition::new("format");
/// Layout of the rows.
const FORMAT_VERSION: u64 = 1;
const HASH_BYTES: usize = 32;
/// Pages kept in memory; a log is mostly read once, in order.
const CACHE_BYTES: usize = 64 << 20;

/// A log in a file of this process. Clones are handles to the same file.
#[derive(Clone)]
pub struct EmbeddedLog {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    /// Number of the last commit.
    head: watch::Sender<u64>,
}

/// Why a log file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process (or another log of this process) has it open.
    #[error(
        "{path} is in use by another process; stop that one first, or give this one its own file"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It is no log, or not a whole one.
    #[error(
        "{path} is damaged or no log ({cause}); restore it from a backup or from another site's copy"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        cause: String,
    },
    /// It was written by another version.
    #[error(
        "{path} has format {found}, this version reads {FORMAT_VERSION}; use the version that wrote it"
    )]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The system refuses.
    #[error("{path} cannot be opened: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

impl EmbeddedLog {
    /// Opens a log file for this process alone; creates it (mode 0600) if it is not there. Blocks
    /// while it reads the file's header and, after a crash, a few pages.
    ///
    /// # Errors
    /// [`OpenError`]; a file that was not whole is never repaired silently.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let damaged = |cause: String| OpenError::Damaged { path: path.to_path_buf(), cause };
        let file = open_file(path)
            .map_err(|source| OpenError::System { path: path.to_path_buf(), source })?;
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let backend = FileBackend::new(file).map_err(|error| explain(path, error))?;
            let database = Builder::new()
                .set_cache_size(CACHE_BYTES)
                .create_with_backend(backend)
                .map_err(|error| explain(path, error))?;
            let head = prepare(&database, path)?;
            Ok((database, head))
        }));
        // The store asserts some of what it reads; for us that is a damaged file, not a bug.
        let (database, head) = opened.unwrap_or_else(|_| Err(damaged("broken inside".into())))?;
        let (head, _) = watch::channel(head);
        Ok(EmbeddedLog { shared: Arc::new(Shared { database, head }) })
    }

    /// The last commit's position, as it rests in the file. Blocks for one page read.
    ///
    /// # Errors
    /// [`ReadError`] if the file cannot be read.
    pub fn head(&self) -> Result<Position, ReadError> {
        let transaction = self.shared.database.begin_read().map_err(unavailable)?;
        let table = transaction.open_table(COMMITS).map_err(unavailable)?;
        head_of(&table)
    }
}

impl Log for EmbeddedLog {
    async fn append(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError> {
        let sealed = seal(expected, commits)?;
        let shared = Arc::clone(&self.shared);
        spawn_blocking(move || shared.append(expected, &sealed)).await.unwrap_or_else(|error| {
            Err(AppendError::Unknown { cause: format!("the store failed inside: {error}") })
        })
    }

    async fn read(&self, from: Sequence, limit: usize) -> Result<Vec<StoredCommit>, ReadError> {
        let shared = Arc::clone(&self.shared);
        spawn_blocking(move || shared.read(from, limit)).await.unwrap_or_else(|error| {
            let cause = format!("the store failed inside: {error}");
            Err(ReadError::Damaged { sequence: from, cause })
        })
    }

    async fn wait(&self, from: Sequence) {
        let mut head = self.shared.head.subscribe();
        head.wait_for(|head| *head >= from.0)
            .await
            .expect("the sender lives in self, which is borrowed here");
    }
}

impl Shared {
    fn append(&self, expected: Position, sealed: &[StoredCommit]) -> Result<Position, AppendError> {
        // Until the commit below nothing is stored; but an earlier try of the same append may be,
        // hence "unknown" wherever the file itself does not answer.
        let mut transaction = self.database.begin_write().map_err(unknown)?;
        transaction.set_durability(Durability::Immediate).map_err(unknown)?;
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(COMMITS).map_err(unknown)?;
            let head = head_of(&table).map_err(unknown)?;
            if head != expected {
                return judge_repeat(&table, head, expected, sealed);
            }
            let mut row = Vec::new();
            for commit in sealed {
                row.clear();
                row.extend_from_slice(&commit.position.hash.0);
                row.extend_from_slice(&commit.bytes);
                table.insert(commit.position.sequence.0, row.as_slice()).map_err(not_stored)?;
            }
        }
        transaction.commit().map_err(unknown)?;
        let head = sealed.last().expect("sealing refuses an empty append").position;
        // Commits of two tasks may come here in the other order.
        self.head.send_if_modified(|known| {
            let rose = head.sequence.0 > *known;
            *known = (*known).max(head.sequence.0);
            rose
        });
        Ok(head)
    }

    fn read(&self, from: Sequence, limit: usize) -> Result<Vec<StoredCommit>, ReadError> {
        let transaction = self.database.begin_read().map_err(unavailable)?;
        let table = transaction.open_table(COMMITS).map_err(unavailable)?;
        let mut bytes_total = 0;
        let mut commits = Vec::with_capacity(limit.min(1_024));
        for row in table.range(from.0.max(1)..).map_err(unavailable)?.take(limit) {
            let (number, row) = row.map_err(unavailable)?;
            let sequence = Sequence(number.value());
            let (hash, bytes) = split_row(sequence, row.value())?;
            bytes_total += bytes.len();
            commits.push(StoredCommit {
                position: Position { sequence, hash },
                bytes: bytes.to_vec(),
            });
            if bytes_total >= READ_BYTES_MAX {
                break;
            }
        }
        Ok(commits)
    }
}

/// An append that does not follow the head was either stored before, or comes too late.
fn judge_repeat(
    table: &impl ReadableTable<u64, &'static [u8]>,
    head: Position,
    expected: Position,
    sealed: &[StoredCommit],
) -> Result<Position, AppendError> {
    if expected.sequence > head.sequence {
        return Err(diverged(expected, None));
    }
    let before = hash_at(table, expected.sequence)?;
    if before != Some(expected.hash) {
        return Err(diverged(expected, before));
    }
    for commit in sealed {
        if hash_at(table, commit.position.sequence)? != Some(commit.position.hash) {
            return Err(AppendError::Conflict);
        }
    }
    Ok(sealed.last().expect("sealing refuses an empty append").position)
}

fn hash_at(
    table: &impl ReadableTable<u64, &'static [u8]>,
    sequence: Sequence,
) -> Result<Option<Hash>, AppendError> {
    if sequence == Sequence(0) {
        return Ok(Some(Hash::ZERO));
    }
    let Some(row) = table.get(sequence.0).map_err(unknown)? else { return Ok(None) };
    let (hash, _) = split_row(sequence, row.value()).map_err(unknown)?;
    Ok(Some(hash))
}

fn head_of(table: &impl ReadableTable<u64, &'static [u8]>) -> Result<Position, ReadError> {
    let Some((number, row)) = table.last().map_err(unavailable)? else {
        return Ok(Position::ZERO);
    };
    let sequence = Sequence(number.value());
    let (hash, _) = split_row(sequence, row.value())?;
    Ok(Position { sequence, hash })
}

fn split_row(sequence: Sequence, row: &[u8]) -> Result<(Hash, &[u8]), ReadError> {
    match row.split_first_chunk::<HASH_BYTES>() {
        Some((hash, bytes)) => Ok((Hash(*hash), bytes)),
        None => Err(ReadError::Damaged { sequence, cause: "its row is too short".into() }),
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let is_new = !path.exists();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    if is_new {
        // The file must not vanish with the directory's last change.
        crate::register::sync_directory_of(path)?;
    }
    Ok(file)
}

/// Lays out a new file, or checks that an old one is whole at both ends. Returns the head's number.
fn prepare(database: &Database, path: &Path) -> Result<u64, OpenError> {
    let damaged = |cause: String| OpenError::Damaged { path: path.to_path_buf(), cause };
    let transaction = database.begin_read().map_err(|error| damaged(error.to_string()))?;
    let format = match transaction.open_table(FORMAT) {
        Ok(table) => table
            .get("log")
            .map_err(|error| damaged(error.to_string()))?
            .map(|version| version.value()),
        Err(TableError::TableDoesNotExist(_)) => None,
        Err(error) => return Err(damaged(error.to_string())),
    };
    match format {
        Some(FORMAT_VERSION) => {
            let table =
                transaction.open_table(COMMITS).map_err(|error| damaged(error.to_string()))?;
            let head = check_ends(&table).map_err(damaged)?;
            Ok(head)
        }
        Some(found) => Err(OpenError::OtherFormat { path: path.to_path_buf(), found }),
        None => {
            let has_tables = transaction
                .list_tables()
                .map_err(|error| damaged(error.to_string()))?
                .next()
                .is_some();
            if has_tables {
                return Err(damaged("a database of another program".into()));
            }
            drop(transaction);
            lay_out(database).map_err(|error| damaged(error.to_string()))?;
            Ok(0)
        }
    }
}

fn lay_out(database: &Database) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.open_table(COMMITS)?;
    transaction.open_table(FORMAT)?.insert("log", FORMAT_VERSION)?;
    transaction.commit()?;
    Ok(())
}

/// Numbers must be dense from 1, and the last commit's content must have its hash.
fn check_ends(table: &impl ReadableTable<u64, &'static [u8]>) -> Result<u64, String> {
    let rows = table.len().map_err(|error| error.to_string())?;
    let first = table.first().map_err(|error| error.to_string())?;
    let last = table.last().map_err(|error| error.to_string())?;
    let (Some((first, _)), Some((last, row))) = (first, last) else { return Ok(0) };
    let (first, last) = (first.value(), last.value());
    if first != 1 || last != rows {
        return Err(format!("{rows} commits numbered {first} to {last}"));
    }
    let (hash, bytes) =
        split_row(Sequence(last), row.value()).map_err(|error| error.to_string())?;
    if Hash::of_commit(bytes) != hash {
        return Err(format!("the last commit, {last}, was changed"));
    }
    Ok(last)
}

fn explain(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { path },
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() != io::ErrorKind::InvalidData
                && source.kind() != io::ErrorKind::UnexpectedEof =>
        {
            OpenError::System { path, source }
        }
        error => OpenError::Damaged { path, cause: error.to_string() },
    }
}

fn unavailable(error: impl std::error::Error) -> ReadError {
    ReadError::Unavailable { cause: error.to_string() }
}

fn unknown(error: impl std::error::Error) -> AppendError {
    AppendError::Unknown { cause: error.to_string() }
}

/// An error inside the transaction, which then ends without effect.
fn not_stored(error: StorageError) -> AppendError {
    match error {
        StorageError::Io(error)
            if matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            AppendError::Full { cause: format!("{error}; make room on its disk") }
        }
        error => AppendError::Unknown { cause: error.to_string() },
    }
}

#[cfg(test)]
mod tests;

//! The secret store: CHAP secrets and what the cluster's processes prove to each other, in one file
//! that only its owner may read. Nothing of it ever enters the log or an answer.
//!
//! Every control process of a cluster holds the same secrets. What never changes comes with the join
//! file, which a person carries; what changes, they tell each other sealed ([`crate::sharing`]). Of two
//! changes of one secret the higher version stands; of two with one version, made while the processes
//! did not hear each other, the same one everywhere.

use crate::access::{NoRandomness, random_bytes};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use voute_schemas::{ClusterId, Hash};

const CHAP: TableDefinition<'_, &str, &str> = TableDefinition::new("chap");
/// Of every secret that was ever there; one without a row in `CHAP` was deleted.
const VERSIONS: TableDefinition<'_, &str, u64> = TableDefinition::new("versions");
/// What never changes: `link`, `exchange`.
const LINK: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("link");

/// Most secrets in the store, deleted ones included.
pub const SECRETS_MAX: usize = 100_000;
/// A join file is a few lines; anything longer is something else.
const JOIN_FILE_BYTES_MAX: u64 = 4_096;

/// The store.
pub struct Secrets {
    database: Database,
    link: [u8; 32],
    exchange: [u8; 32],
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Secrets").finish_non_exhaustive()
    }
}

/// One secret, or that it was deleted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Rises with each change of any secret.
    pub version: u64,
    /// Nothing: it was deleted.
    pub secret: Option<String>,
}

impl Entry {
    /// What decides between two entries of one name.
    fn rank(&self) -> (u64, Hash) {
        (self.version, Hash::of(self.secret.as_deref().unwrap_or_default().as_bytes()))
    }
}

/// What a control process must know to take part in a cluster. Carried by a person, in a file that
/// only its owner may read.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinFile {
    /// The cluster.
    pub cluster: ClusterId,
    /// What nodes prove to each other, hexadecimal.
    link: String,
    /// Seals what control processes tell each other, hexadecimal.
    exchange: String,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Its file.
    #[error(
        "the secret store cannot be read or written ({0}); check the data directory's disk and permissions"
    )]
    Storage(String),
    /// Random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// It is full.
    #[error("the secret store holds {SECRETS_MAX} secrets, the most that it takes; delete some")]
    Full,
    /// The join file.
    #[error("the join file {path} cannot be used: {cause}")]
    JoinFile {
        /// Which.
        path: PathBuf,
        /// In words, with what to do.
        cause: String,
    },
}

fn storage(error: impl std::fmt::Display) -> SecretsError {
    SecretsError::Storage(error.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

impl JoinFile {
    /// Reads one.
    ///
    /// # Errors
    /// [`SecretsError::JoinFile`]: not there, not a join file, or readable by others.
    pub fn read(path: &Path) -> Result<Self, SecretsError> {
        let failed = |cause: String| SecretsError::JoinFile { path: path.to_owned(), cause };
        let metadata = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
        if metadata.mode() & 0o077 != 0 {
            let mode = metadata.mode() & 0o777;
            return Err(failed(format!("others may read it (mode {mode:o}); chmod 600 it")));
        }
        if metadata.len() > JOIN_FILE_BYTES_MAX {
            return Err(failed("it is too long for one".to_owned()));
        }
        let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let file: JoinFile = serde_json::from_slice(&text).map_err(|error| {
            failed(format!("{error}; copy join.secret anew from a running control process"))
        })?;
        match (unhex(&file.link), unhex(&file.exchange)) {
            (Some(_), Some(_)) => Ok(file),
            _ => Err(failed("a secret in it is not 64 hexadecimal digits".to_owned())),
        }
    }
}

/// Whole and on disk, or not there, when this returns.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&staged, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
}

impl Secrets {
    /// Opens the store, or makes it with mode 0600: with the secrets of a join file, or new ones.
    ///
    /// # Errors
    /// [`SecretsError`] if the file or randomness fails, or the join file is of another cluster.
    pub fn open(path: &Path, join: Option<(&Path, &JoinFile)>) -> Result<Self, SecretsError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(path).map_err(storage)?;
        let database = Database::create(path).map_err(storage)?;
        let transaction = database.begin_write().map_err(storage)?;
        let fixed = |name: &str, joined: Option<&str>| -> Result<[u8; 32], SecretsError> {
            let mut table = transaction.open_table(LINK).map_err(storage)?;
            let known = table.get(name).map_err(storage)?.map(|row| row.value().to_vec());
            let known: Option<[u8; 32]> = known.and_then(|bytes| bytes.try_into().ok());
            let joined = joined.and_then(unhex);
            match (known, joined) {
                (Some(known), None) => Ok(known),
                (Some(known), Some(joined)) if known == joined => Ok(known),
                (Some(_), Some(_)) => Err(SecretsError::JoinFile {
                    path: join.map(|(path, _)| path.to_owned()).unwrap_or_default(),
                    cause: "this data directory holds the secrets of another cluster; start with an empty one".to_owned(),
                }),
                (None, joined) => {
                    let bytes = joined.map_or_else(random_bytes, Ok)?;
                    table.insert(name, bytes.as_slice()).map_err(storage)?;
                    Ok(bytes)
                }
            }
        };
        let link = fixed("link", join.map(|(_, file)| file.link.as_str()))?;
        let exchange = fixed("exchange", join.map(|(_, file)| file.exchange.as_str()))?;
        {
            let chap = transaction.open_table(CHAP).map_err(storage)?;
            let mut versions = transaction.open_table(VERSIONS).map_err(storage)?;
            // Secrets of a store that is older than versions.
            for row in chap.iter().map_err(storage)? {
                let (name, _) = row.map_err(storage)?;
                if versions.get(name.value()).map_err(storage)?.is_none() {
                    versions.insert(name.value(), 1).map_err(storage)?;
                }
            }
        }
        transaction.commit().map_err(storage)?;
        Ok(Secrets { database, link, exchange })
    }

    /// Writes the join file, mode 0600, whole.
    ///
    /// # Errors
    /// [`SecretsError::Storage`].
    pub fn write_join_file(&self, path: &Path, cluster: ClusterId) -> Result<(), SecretsError> {
        let file = JoinFile { cluster, link: hex(&self.link), exchange: hex(&self.exchange) };
        let mut text = serde_json::to_vec_pretty(&file).expect("plain fields serialise");
        text.push(b'\n');
        write_private(path, &text).map_err(storage)
    }

    /// The secret that nodes prove to each other, 64 hexadecimal digits.
    pub fn link_secret(&self) -> String {
        hex(&self.link)
    }

    /// One secret.
    ///
    /// # Errors
    /// [`SecretsError::Storage`].
    pub fn get(&self, name: &str) -> Result<Option<String>, SecretsError> {
        let transaction = self.database.begin_read().map_err(storage)?;
        let table = transaction.open_table(CHAP).map_err(storage)?;
        Ok(table.get(name).map_err(storage)?.map(|row| row.value().to_owned()))
    }

    /// Sets one, durably; what the other processes are to be told.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn put(&self, name: &str, secret: &str) -> Result<Entry, SecretsError> {
        self.change(name, Some(secret.to_owned()))
    }

    /// Removes one, durably; what the others are to be told, if it was there.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn delete(&self, name: &str) -> Result<Option<Entry>, SecretsError> {
        if self.get(name)?.is_none() {
            return Ok(None);
        }
        self.change(name, None).map(Some)
    }

    fn change(&self, name: &str, secret: Option<String>) -> Result<Entry, SecretsError> {
        let version = self.entries()?.iter().map(|entry| entry.version).max().unwrap_or(0) + 1;
        let entry = Entry { name: name.to_owned(), version, secret };
        self.merge(std::slice::from_ref(&entry))?;
        Ok(entry)
    }

    /// Takes in what other processes have, durably; whether anything was new.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn merge(&self, entries: &[Entry]) -> Result<bool, SecretsError> {
        let transaction = self.database.begin_write().map_err(storage)?;
        let mut changed = false;
        {
            let mut chap = transaction.open_table(CHAP).map_err(storage)?;
            let mut versions = transaction.open_table(VERSIONS).map_err(storage)?;
            for entry in entries {
                let name = entry.name.as_str();
                let version = versions.get(name).map_err(storage)?.map(|row| row.value());
                if let Some(version) = version {
                    let secret = chap.get(name).map_err(storage)?;
                    let secret = secret.map(|row| row.value().to_owned());
                    let known = Entry { name: name.to_owned(), version, secret };
                    if known.rank() >= entry.rank() {
                        continue;
                    }
                } else if versions.len().map_err(storage)? >= SECRETS_MAX as u64 {
                    return Err(SecretsError::Full);
                }
                changed = true;
                versions.insert(name, entry.version).map_err(storage)?;
                match &entry.secret {
                    Some(secret) => drop(chap.insert(name, secret.as_str()).map_err(storage)?),
                    None => drop(chap.remove(name).map_err(storage)?),
                }
            }
        }
        transaction.commit().map_err(storage)?;
        Ok(changed)
    }

    /// All that is known, deleted ones included, by name.
    ///
    /// # Errors
    /// [`SecretsError::Storage`].
    pub fn entries(&self) -> Result<Vec<Entry>, SecretsError> {
        let transaction = self.database.begin_read().map_err(storage)?;
        let chap = transaction.open_table(CHAP).map_err(storage)?;
        let versions = transaction.open_table(VERSIONS).map_err(storage)?;
        let mut entries = Vec::new();
        for row in versions.iter().map_err(storage)? {
            let (name, version) = row.map_err(storage)?;
            let secret = chap.get(name.value()).map_err(storage)?;
            let secret = secret.map(|row| row.value().to_owned());
            entries.push(Entry { name: name.value().to_owned(), version: version.value(), secret });
        }
        Ok(entries)
    }

    /// Two stores with this digest hold the same.
    ///
    /// # Errors
    /// [`SecretsError::Storage`].
    pub fn digest(&self) -> Result<Hash, SecretsError> {
        let ranks: Vec<_> = self.entries()?.iter().map(|it| (it.name.clone(), it.rank())).collect();
        Ok(Hash::of(&postcard::to_stdvec(&ranks).expect("plain fields serialise")))
    }

    /// The names of all.
    ///
    /// # Errors
    /// [`SecretsError::Storage`].
    pub fn names(&self) -> Result<Vec<String>, SecretsError> {
        let transaction = self.database.begin_read().map_err(storage)?;
        let table = transaction.open_table(CHAP).map_err(storage)?;
        let rows = table.iter().map_err(storage)?;
        rows.map(|row| row.map(|(name, _)| name.value().to_owned()).map_err(storage)).collect()
    }

    fn key(&self) -> LessSafeKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &self.exchange);
        LessSafeKey::new(key.expect("a key of this kind has 32 bytes"))
    }

    /// Seals a message to the other processes of the cluster (RFC 8439): nonce, then ciphertext.
    ///
    /// # Errors
    /// [`SecretsError::Randomness`].
    pub(crate) fn seal(&self, purpose: Purpose, message: &[u8]) -> Result<Vec<u8>, SecretsError> {
        let nonce: [u8; NONCE_LEN] =
            *random_bytes()?.first_chunk().expect("random bytes are longer than a nonce");
        let mut sealed = message.to_vec();
        self.key()
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.words()),
                &mut sealed,
            )
            .expect("a message is far shorter than the cipher's limit");
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Opens what another process of the cluster sealed; nothing if it was not one.
    pub(crate) fn unseal(&self, purpose: Purpose, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut message = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened =
            self.key().open_in_place(nonce, Aad::from(purpose.words()), &mut message).ok()?;
        Some(opened.to_vec())
    }
}

/// What a sealed message is for: it is good for nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Secrets that processes keep the same.
    Secrets,
    /// Who watches the sites.
    Watch,
}

impl Purpose {
    fn words(self) -> &'static [u8] {
        match self {
            Purpose::Secrets => b"voute secrets 1",
            Purpose::Watch => b"voute watch 1",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn store(folder: &Path, name: &str) -> Secrets {
        Secrets::open(&folder.join(name), None).unwrap()
    }

    #[test]
    fn secrets_survive_a_restart_in_a_file_that_only_its_owner_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets.redb");
        let link = {
            let store = Secrets::open(&path, None).unwrap();
            store.put("town-hall", "correct horse").unwrap();
            store.put("gone", "x").unwrap();
            assert!(store.delete("gone").unwrap().is_some());
            assert!(store.delete("gone").unwrap().is_none());
            store.link_secret()
        };
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let store = Secrets::open(&path, None).unwrap();
        assert_eq!(store.link_secret(), link);
        assert_eq!(link.len(), 64);
        assert_eq!(store.get("town-hall").unwrap().as_deref(), Some("correct horse"));
        assert_eq!(store.names().unwrap(), ["town-hall"]);
    }

    #[test]
    fn who_joins_by_the_file_has_the_clusters_secrets_and_understands_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = store(folder.path(), "first");
        let path = folder.path().join("join.secret");
        let cluster = ClusterId::generate();
        first.write_join_file(&path, cluster).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let file = JoinFile::read(&path).unwrap();
        assert_eq!(file.cluster, cluster);
        let second = Secrets::open(&folder.path().join("second"), Some((&path, &file))).unwrap();
        assert_eq!(second.link_secret(), first.link_secret());
        let sealed = first.seal(Purpose::Secrets, b"between us").unwrap();
        assert_eq!(
            second.unseal(Purpose::Secrets, &sealed).as_deref(),
            Some(b"between us".as_slice())
        );
        assert_ne!(sealed, first.seal(Purpose::Secrets, b"between us").unwrap());
        assert_eq!(second.unseal(Purpose::Watch, &sealed), None, "it was not for that");
        let stranger = store(folder.path(), "stranger");
        assert_eq!(stranger.unseal(Purpose::Secrets, &sealed), None);
        for cut in 0..sealed.len() {
            assert_eq!(second.unseal(Purpose::Secrets, &sealed[..cut]), None);
        }
        drop(stranger);
        let other = Secrets::open(&folder.path().join("stranger"), Some((&path, &file)));
        assert!(matches!(other, Err(SecretsError::JoinFile { .. })), "of another cluster");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(JoinFile::read(&path).is_err(), "others may read it");
    }

    #[test]
    fn stores_that_tell_each_other_everything_hold_the_same_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (store(folder.path(), "1"), store(folder.path(), "2"));
        one.put("a", "first").unwrap();
        two.merge(&one.entries().unwrap()).unwrap();
        // Both change it without hearing each other.
        one.put("a", "of one").unwrap();
        two.put("a", "of two").unwrap();
        two.put("b", "only here").unwrap();
        one.delete("a").unwrap();
        let (of_one, of_two) = (one.entries().unwrap(), two.entries().unwrap());
        assert!(one.merge(&of_two).unwrap());
        two.merge(&of_one).unwrap();
        assert_eq!(one.digest().unwrap(), two.digest().unwrap());
        assert_eq!(one.names().unwrap(), two.names().unwrap());
        assert_eq!(one.get("b").unwrap().as_deref(), Some("only here"));
        assert!(!one.merge(&two.entries().unwrap()).unwrap(), "nothing is new");
        assert_eq!(one.get("a").unwrap(), None, "the youngest change was its deletion");
    }
}

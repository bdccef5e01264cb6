//! The secret store: CHAP secrets and the mirror links' secret of this control process, in one file
//! that only its owner may read. Nothing of it ever enters the log or an answer.

use crate::access::{NoRandomness, random_bytes};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const CHAP: TableDefinition<'_, &str, &str> = TableDefinition::new("chap");
const LINK: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("link");

/// Most secrets in the store.
pub const SECRETS_MAX: usize = 100_000;

/// The store.
pub struct Secrets {
    database: Database,
    link_secret: String,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Secrets").finish_non_exhaustive()
    }
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
}

fn storage(error: impl std::fmt::Display) -> SecretsError {
    SecretsError::Storage(error.to_string())
}

impl Secrets {
    /// Opens the store, or makes it with mode 0600 and a new link secret.
    ///
    /// # Errors
    /// [`SecretsError`] if the file or randomness fails.
    pub fn open(path: &Path) -> Result<Self, SecretsError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(path).map_err(storage)?;
        let database = Database::create(path).map_err(storage)?;
        let transaction = database.begin_write().map_err(storage)?;
        let link = {
            transaction.open_table(CHAP).map_err(storage)?;
            let mut table = transaction.open_table(LINK).map_err(storage)?;
            let known = table.get("link").map_err(storage)?.map(|row| row.value().to_vec());
            match known {
                Some(bytes) => bytes,
                None => {
                    let bytes = random_bytes()?;
                    table.insert("link", bytes.as_slice()).map_err(storage)?;
                    bytes.to_vec()
                }
            }
        };
        transaction.commit().map_err(storage)?;
        let link_secret = link.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Secrets { database, link_secret })
    }

    /// The secret that nodes prove to each other, 64 hexadecimal digits.
    pub fn link_secret(&self) -> &str {
        &self.link_secret
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

    /// Sets one, durably.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn put(&self, name: &str, secret: &str) -> Result<(), SecretsError> {
        let transaction = self.database.begin_write().map_err(storage)?;
        {
            use redb::ReadableTableMetadata;
            let mut table = transaction.open_table(CHAP).map_err(storage)?;
            let known = table.get(name).map_err(storage)?.is_some();
            if !known && table.len().map_err(storage)? >= SECRETS_MAX as u64 {
                return Err(SecretsError::Full);
            }
            table.insert(name, secret).map_err(storage)?;
        }
        transaction.commit().map_err(storage)
    }

    /// Removes one; whether it was there.
    ///
    /// # Errors
    /// [`SecretsError::Storage`].
    pub fn delete(&self, name: &str) -> Result<bool, SecretsError> {
        let transaction = self.database.begin_write().map_err(storage)?;
        let removed = {
            let mut table = transaction.open_table(CHAP).map_err(storage)?;
            table.remove(name).map_err(storage)?.is_some()
        };
        transaction.commit().map_err(storage)?;
        Ok(removed)
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_survive_a_restart_in_a_file_that_only_its_owner_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets.redb");
        let link = {
            let store = Secrets::open(&path).unwrap();
            store.put("town-hall", "correct horse").unwrap();
            store.put("gone", "x").unwrap();
            assert!(store.delete("gone").unwrap());
            assert!(!store.delete("gone").unwrap());
            store.link_secret().to_owned()
        };
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let store = Secrets::open(&path).unwrap();
        assert_eq!(store.link_secret(), link);
        assert_eq!(link.len(), 64);
        assert_eq!(store.get("town-hall").unwrap().as_deref(), Some("correct horse"));
        assert_eq!(store.names().unwrap(), ["town-hall"]);
    }
}

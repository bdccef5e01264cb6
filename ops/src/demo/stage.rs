//! The processes of a demonstration, in a temporary folder, on free loopback ports.

use crate::api::token::read_token;
use anyhow::{Context, bail};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Ports are looked for here: below what Linux hands out to outgoing connections (32768 up), so that
/// none of those takes a port between its choice and its use.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const START_TIME_MAX: Duration = Duration::from_secs(20);
const TAIL_BYTES: u64 = 4_096;
const TAIL_LINES: usize = 15;

/// The processes, by name. Shared with whoever must end them on a signal.
#[derive(Clone, Default)]
pub struct Children {
    running: Arc<Mutex<Vec<(String, Child)>>>,
}

impl Children {
    fn add(&self, name: &str, child: Child) {
        self.lock().push((name.to_owned(), child));
    }

    /// Kills one with SIGKILL and waits for its end; its process id.
    ///
    /// # Errors
    /// If no such process runs.
    pub fn kill(&self, name: &str) -> anyhow::Result<u32> {
        let mut running = self.lock();
        let position = running
            .iter()
            .position(|(known, _)| known == name)
            .with_context(|| format!("{name} does not run"))?;
        let (_, mut child) = running.remove(position);
        child.kill()?;
        let status: ExitStatus = child.wait()?;
        match status.signal() {
            Some(9) => Ok(child.id()),
            _ => bail!("{name} had already ended by itself ({status})"),
        }
    }

    /// The number of a process.
    #[must_use]
    pub fn process_of(&self, name: &str) -> Option<u32> {
        self.lock().iter().find(|(known, _)| known == name).map(|(_, child)| child.id())
    }

    /// Kills all. Each is waited for, so that none outlives this call.
    pub fn kill_all(&self) {
        for (_, mut child) in self.lock().drain(..).rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The name of one that has ended by itself, if any did.
    #[must_use]
    pub fn ended(&self) -> Option<(String, ExitStatus)> {
        let mut running = self.lock();
        running.iter_mut().find_map(|(name, child)| Some((name.clone(), child.try_wait().ok()??)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, Child)>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The folder and what runs in it. When dropped, everything ends and the folder goes.
pub struct Stage {
    // Before the folder: dropped first.
    guard: KillOnDrop,
    folder: TempDir,
    program: PathBuf,
}

struct KillOnDrop(Children);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill_all();
    }
}

impl Stage {
    /// An empty stage, on which this same program runs.
    ///
    /// # Errors
    /// If no temporary folder can be made.
    pub fn new() -> anyhow::Result<Self> {
        Stage::of(std::env::current_exe().context("cannot tell where this program is")?)
    }

    /// An empty stage, on which `program`, a `voute`, runs.
    ///
    /// # Errors
    /// If no temporary folder can be made.
    pub fn of(program: PathBuf) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("voute-demo-")
            .tempdir()
            .context("cannot make a temporary folder; set TMPDIR to a folder that you may write")?;
        Ok(Stage { guard: KillOnDrop(Children::default()), folder, program })
    }

    /// The processes.
    #[must_use]
    pub fn children(&self) -> &Children {
        &self.guard.0
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The program that [`start_self`](Self::start_self) starts.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts the stage's program as another process; its log goes to `NAME.log` in the folder.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_self(&self, name: &str, arguments: &[String]) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        command.args(arguments).args(["--end-with-parent", &std::process::id().to_string()]);
        self.start(name, command)
    }

    /// Starts a process.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, name: &str, mut command: Command) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log_of(name))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .env_remove("VOUTE_TOKEN")
            .spawn()
            .with_context(|| {
                format!("cannot start {name} ({})", command.get_program().display())
            })?;
        self.children().add(name, child);
        Ok(())
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}.log"))
    }

    /// Waits until a condition holds, as long as everything still runs.
    ///
    /// # Errors
    /// If a process ends meanwhile, or the time is over.
    pub fn wait_until<T>(
        &self,
        what: &str,
        condition: impl FnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        self.wait_within(START_TIME_MAX, what, condition)
    }

    /// The same with a time of the caller's.
    ///
    /// # Errors
    /// As [`Stage::wait_until`].
    pub fn wait_within<T>(
        &self,
        time_max: Duration,
        what: &str,
        mut condition: impl FnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        let began = Instant::now();
        loop {
            if let Some(found) = condition() {
                return Ok(found);
            }
            if let Some((name, status)) = self.children().ended() {
                bail!("{name} ended ({status}) before {what}");
            }
            if began.elapsed() > time_max {
                bail!("{what} did not happen within {} s", time_max.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Reads a token file once it is there and whole.
    #[must_use]
    pub fn token(&self, file: &Path) -> Option<String> {
        read_token(file).ok()
    }

    /// The last lines of each process's log, for when something went wrong.
    #[must_use]
    pub fn tails(&self) -> String {
        let mut text = String::new();
        let files = std::fs::read_dir(self.folder())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let mut logs: Vec<PathBuf> =
            files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
        logs.sort();
        for log in logs {
            let lines = tail(&log).unwrap_or_default();
            text.push_str(&format!(
                "--- {}\n{lines}",
                log.file_name().unwrap_or_default().display()
            ));
        }
        text
    }
}

fn tail(file: &Path) -> std::io::Result<String> {
    let mut opened = File::open(file)?;
    let length = opened.metadata()?.len();
    opened.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    opened.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect())
}

/// Loopback addresses whose ports nobody listens on, all different.
///
/// # Errors
/// If there are not so many.
pub fn free_addresses(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    // Two demonstrations at a time begin to look at different places.
    let span = PORTS.end - PORTS.start;
    let begin = (std::process::id().wrapping_mul(7_919) % u32::from(span)) as u16;
    let mut held = Vec::new();
    for step in 0..span {
        let port = PORTS.start + (begin + step) % span;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push(listener);
        }
        if held.len() == count {
            return held.iter().map(|listener| Ok(listener.local_addr()?)).collect();
        }
    }
    bail!("fewer than {count} loopback ports between {} and {} are free", PORTS.start, PORTS.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_leaves_neither_processes_nor_files() {
        let stage = Stage::new().expect("a temporary folder");
        let folder = stage.folder().to_owned();
        let mut command = Command::new("sleep");
        command.arg("1000");
        stage.start("sleeper", command).expect("sleep is everywhere");
        let process = stage.children().lock()[0].1.id();
        assert!(Path::new(&format!("/proc/{process}")).exists());
        drop(stage);
        assert!(!folder.exists());
        assert!(!Path::new(&format!("/proc/{process}")).exists());
    }

    #[test]
    fn a_process_that_ends_by_itself_is_not_waited_for() {
        let stage = Stage::new().expect("a temporary folder");
        stage.start("short", Command::new("false")).expect("false is everywhere");
        let error = stage.wait_until("its answer", || None::<()>).expect_err("it ended");
        assert!(error.to_string().contains("short ended"), "{error}");
        assert!(stage.children().kill("other").is_err());
    }

    #[test]
    fn free_addresses_are_different_and_free() {
        let addresses = free_addresses(7).expect("seven free ports");
        let listeners: Vec<_> = addresses.iter().map(TcpListener::bind).collect();
        assert!(listeners.iter().all(Result::is_ok));
        assert_eq!(listeners.len(), 7);
    }
}

//! Long-lived processes.

pub mod control;
pub mod node;
pub mod up;

use crate::cli::{LogFormat, LoggingOptions};
use std::io;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Begins to log on standard error, as RUST_LOG says; `info` when it says nothing.
pub fn begin_logging(options: LoggingOptions) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match options.log_format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Waits for SIGINT or SIGTERM.
///
/// # Errors
/// If signals cannot be caught.
pub async fn signalled() -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Lets the kernel kill this process when the thread that started it ends, so that nothing is left
/// of a demonstration that was itself killed.
///
/// # Errors
/// If the kernel refuses, or `parent` has ended already.
pub fn end_with_parent(parent: u32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // It may have ended before the kernel was told: then another process is the parent now.
    let now = rustix::process::getppid().map(|process| process.as_raw_nonzero().get());
    let is_same = now.is_some_and(|now| u32::try_from(now) == Ok(parent));
    anyhow::ensure!(is_same, "process {parent}, with which this one is to end, has ended");
    Ok(())
}

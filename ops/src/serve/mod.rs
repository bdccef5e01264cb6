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
/// If the kernel refuses.
pub fn end_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
}

//! `voute demo`: two sites on this machine, a site killed under load, and the log's own account.

pub mod cluster;
pub mod figures;
pub mod host;
pub mod ledger;
pub mod narrator;
pub mod nats;
pub mod path;
pub mod pulse;
pub mod reader;
pub mod stage;
pub mod story;

use crate::cli::serving::DemoArguments;
use crate::print::{line, plain};
use anyhow::Context;
use narrator::Narrator;
use stage::Stage;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use story::Story;

/// Exit code after an interruption: 128 and SIGINT's number, as shells count.
const INTERRUPTED: u8 = 130;

/// Runs the demonstration. Failure if something that it promises did not hold.
///
/// # Errors
/// If a process does not start, or the control plane refuses something.
pub fn run(arguments: &DemoArguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the host's threads")?;
    let stage = Stage::new()?;
    let interrupted = Arc::new(AtomicU8::new(INTERRUPTED));
    end_on_signal(&runtime, &stage, Arc::clone(&interrupted));
    let narrator = Narrator::new(arguments.json);
    let mut story = Story::new(narrator, &stage, runtime.handle().clone());
    let figures = match find_log(&stage, arguments).and_then(|server| story.tell(server.as_ref())) {
        Ok(figures) => figures,
        Err(error) => {
            eprintln!("{}", stage.tails().lines().map(plain).collect::<Vec<_>>().join("\n"));
            return Err(error);
        }
    };
    if arguments.json {
        line(&serde_json::to_string_pretty(&figures)?);
    } else {
        story.summarise(&figures);
    }
    let code = u8::from(!figures.hold());
    if arguments.keep {
        // From here on an interruption is the expected end.
        interrupted.store(code, Ordering::Relaxed);
        story.keep(&runtime)?;
    }
    runtime.shutdown_background();
    Ok(ExitCode::from(code))
}

/// The nats-server to use, if any: the one that is named, or one that is started.
fn find_log(stage: &Stage, arguments: &DemoArguments) -> anyhow::Result<Option<nats::Server>> {
    match arguments.nats.as_deref() {
        None => Ok(None),
        Some("") => nats::start(stage).map(Some),
        Some(url) => Ok(Some(nats::Server {
            url: url.to_owned(),
            monitoring: arguments.nats_monitoring.clone(),
        })),
    }
}

/// Ctrl-C or SIGTERM: the processes end, the folder goes, then this process.
fn end_on_signal(runtime: &tokio::runtime::Runtime, stage: &Stage, code: Arc<AtomicU8>) {
    let children = stage.children().clone();
    let folder = stage.folder().to_owned();
    runtime.spawn(async move {
        if crate::serve::signalled().await.is_ok() {
            children.kill_all();
            let _ = std::fs::remove_dir_all(folder);
            std::process::exit(i32::from(code.load(Ordering::Relaxed)));
        }
    });
}

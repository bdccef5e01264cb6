//! `voute node`, without a verb.

use crate::api::token::read_token;
use crate::cli::API_DEFAULT;
use crate::cli::serving::NodeRunArguments;
use anyhow::Context;
use voute_worker::{ArrayKeys, NodeConfig, Stop};

/// Runs a node until SIGINT or SIGTERM.
///
/// # Errors
/// If it does not start, or cannot go on.
pub fn run(arguments: NodeRunArguments) -> anyhow::Result<()> {
    if let Some(parent) = arguments.end_with_parent {
        super::end_with_parent(parent)?;
    }
    let config = configure(arguments)?;
    let stop = Stop::new();
    stop_on_signal(stop.clone())?;
    voute_worker::run(config, stop)?;
    tracing::info!("node stopped");
    Ok(())
}

fn configure(arguments: NodeRunArguments) -> anyhow::Result<NodeConfig> {
    let node = arguments.id.context("give the node's --id, as `voute node add` printed it")?;
    let secret_file = arguments.secret_file.context("give --secret-file")?;
    let data_dir = arguments.data_dir.context("give --data-dir")?;
    let control = arguments.control.iter().flat_map(|urls| urls.split(','));
    let mut control: Vec<String> = control.map(|url| url.trim().to_owned()).collect();
    if control.is_empty() {
        control.push(API_DEFAULT.to_owned());
    }
    let mut config = NodeConfig::new(node, read_token(&secret_file)?, control, data_dir);
    if let Some(file) = arguments.array_keys {
        config.array_keys = ArrayKeys::in_file(file);
        // Told now rather than at the first array.
        config.array_keys.check()?;
    }
    config.reactors = arguments.reactors.map(usize::from);
    config.pin = !arguments.no_pin;
    if let Some(spin_us) = arguments.spin_us {
        config.spin_us = spin_us;
    }
    Ok(config)
}

/// Catches signals on a thread of its own: the node's runtime is its own business.
fn stop_on_signal(stop: Stop) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Err(error) = runtime.block_on(super::signalled()) {
            tracing::error!(%error, "signals cannot be caught, stopping");
        }
        stop.stop();
    })?;
    Ok(())
}

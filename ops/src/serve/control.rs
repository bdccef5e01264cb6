//! `voute control`.

use crate::api::token::read_token;
use crate::cli::serving::ControlArguments;
use anyhow::{Context, bail, ensure};
use voute_control::{ControlConfig, LogConfig};
use voute_events::jetstream::{Credentials, JetStreamOptions, Tls};
use voute_schemas::times::Times;

/// Runs a control process until SIGINT or SIGTERM.
///
/// # Errors
/// If it does not start, or had to stop because of what the log holds.
pub fn run(arguments: ControlArguments) -> anyhow::Result<()> {
    if let Some(parent) = arguments.end_with_parent {
        super::end_with_parent(parent)?;
    }
    if arguments.show_key {
        crate::print::line(&voute_control::log_site_key(&arguments.data_dir, &arguments.log_site)?);
        return Ok(());
    }
    let config = configure(&arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let stopped = async {
            if let Err(error) = super::signalled().await {
                tracing::error!(%error, "signals cannot be caught, stopping");
            }
        };
        let running = voute_control::run(config, stopped).await?;
        if let Some(file) = running.token_file() {
            tracing::info!(file = %file.display(), "an administrator's token was made; keep it safe");
        }
        running.ended().await?;
        tracing::info!("control process stopped");
        Ok(())
    })
}

fn configure(arguments: &ControlArguments) -> anyhow::Result<ControlConfig> {
    Ok(ControlConfig {
        data_dir: arguments.data_dir.clone(),
        api_listen: arguments.listen,
        log: configure_log(arguments)?,
        cluster_name: arguments.cluster.clone(),
        log_site_name: arguments.log_site.clone(),
        join: arguments.join.clone(),
        times: Times::default(),
    })
}

fn configure_log(arguments: &ControlArguments) -> anyhow::Result<LogConfig> {
    let urls: Vec<String> = split(&arguments.log);
    if arguments.log == "embedded" {
        return Ok(LogConfig::Embedded);
    }
    ensure!(
        !urls.is_empty()
            && urls.iter().all(|url| url.starts_with("nats://") || url.starts_with("tls://")),
        "{:?} is no log: write embedded, or URLs such as nats://192.0.2.1:4222, joined by commas",
        arguments.log
    );
    let mut options = JetStreamOptions::new(urls[0].clone(), arguments.log_stream.clone());
    options.servers = urls;
    options.replicas = usize::from(arguments.log_replicas);
    options.create = !arguments.log_exists;
    options.credentials = credentials(arguments)?;
    options.tls = tls(arguments)?;
    options.monitoring = arguments.log_monitoring.as_deref().map(split).unwrap_or_default();
    Ok(LogConfig::JetStream(Box::new(options)))
}

fn credentials(arguments: &ControlArguments) -> anyhow::Result<Credentials> {
    match (&arguments.log_user, &arguments.log_password_file, &arguments.log_credentials) {
        (_, _, Some(file)) => Ok(Credentials::File(file.clone())),
        (Some(name), Some(file), None) => {
            Ok(Credentials::User { name: name.clone(), password: read_token(file)? })
        }
        (None, None, None) => Ok(Credentials::None),
        _ => bail!("give both --log-user and --log-password-file"),
    }
}

fn tls(arguments: &ControlArguments) -> anyhow::Result<Option<Tls>> {
    let wanted = arguments.log.contains("tls://")
        || arguments.log_ca.is_some()
        || arguments.log_certificate.is_some();
    let identity = match (&arguments.log_certificate, &arguments.log_key) {
        (Some(certificate), key) => {
            Some((certificate.clone(), key.clone().context("--log-certificate needs --log-key")?))
        }
        (None, _) => None,
    };
    Ok(wanted.then(|| Tls { authorities: arguments.log_ca.clone(), identity }))
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn log_of(options: &[&str]) -> anyhow::Result<LogConfig> {
        let words =
            ["voute", "control", "--data-dir", "/tmp/x"].into_iter().chain(options.iter().copied());
        match Cli::try_parse_from(words)?.command {
            Command::Control(arguments) => configure_log(&arguments),
            other => bail!("parsed as {other:?}"),
        }
    }

    #[test]
    fn the_log_is_embedded_unless_told_otherwise() {
        assert!(matches!(log_of(&[]).expect("default"), LogConfig::Embedded));
    }

    #[test]
    fn a_log_on_nats_takes_all_urls_and_monitoring_addresses() {
        let options =
            ["--log", "nats://a:1, nats://b:2", "--log-monitoring", "http://a:8222,http://b:8222"];
        let Ok(LogConfig::JetStream(options)) = log_of(&options) else { panic!("no JetStream") };
        assert_eq!(options.servers, ["nats://a:1", "nats://b:2"]);
        assert_eq!(options.monitoring.len(), 2);
        assert!(options.create && options.tls.is_none());
    }

    #[test]
    fn an_unknown_log_is_refused_with_what_to_write() {
        let error = log_of(&["--log", "postgres://x"]).expect_err("no such log");
        assert!(error.to_string().contains("nats://"), "{error}");
    }
}

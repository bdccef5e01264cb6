//! The stream's settings: what is created, and what an existing one must have.

use super::connection::{JetStreamOptions, OpenError};
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Compression, Config, DiscardPolicy, Info, PersistenceMode, RetentionPolicy, State, StorageType,
};
use std::time::Duration;
use tokio::time::Instant;

/// For how long the server remembers message ids.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
const STREAM_NAME_LENGTH_MAX: usize = 32;
/// How long a cluster that just started is given.
const PREPARE_DEADLINE: Duration = Duration::from_secs(20);
const RETRY_DELAY: Duration = Duration::from_millis(200);
const NO_SUITABLE_PEERS: u64 = 10_005;
const SERVICE_UNAVAILABLE: usize = 503;
const STREAM_NOT_FOUND: u64 = 10_059;

/// The one subject of a log.
pub(super) fn subject_of(stream: &str) -> String {
    format!("voute.log.{stream}")
}

/// Creates the stream if it may and must, and checks its settings either way.
pub(super) async fn prepare(
    context: &Context,
    options: &JetStreamOptions,
) -> Result<State, OpenError> {
    let name = &options.stream;
    let is_name = !name.is_empty()
        && name.len() <= STREAM_NAME_LENGTH_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if !is_name {
        return Err(OpenError::StreamName { name: name.clone() });
    }
    let info = match find(context, name).await? {
        Some(info) => info,
        None if options.create => create(context, options).await?,
        None => return Err(OpenError::NoStream { stream: name.clone() }),
    };
    let wrong = faults(&info, options);
    if wrong.is_empty() {
        Ok(info.state)
    } else {
        Err(OpenError::Settings { stream: name.clone(), wrong })
    }
}

async fn find(context: &Context, name: &str) -> Result<Option<Info>, OpenError> {
    let deadline = Instant::now() + PREPARE_DEADLINE;
    loop {
        let error = match context.get_stream(name).await {
            Ok(stream) => return Ok(Some(stream.cached_info().clone())),
            Err(error) => error,
        };
        let may_pass = match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code().0 == STREAM_NOT_FOUND => {
                return Ok(None);
            }
            GetStreamErrorKind::JetStream(error) => is_election(&error),
            GetStreamErrorKind::Request => true,
            GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => false,
        };
        if !may_pass || Instant::now() >= deadline {
            let action = "tell the stream's settings";
            return Err(OpenError::Refused { action, cause: error.to_string() });
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

/// Two processes may create at once: the same settings are no error for the second.
async fn create(context: &Context, options: &JetStreamOptions) -> Result<Info, OpenError> {
    let deadline = Instant::now() + PREPARE_DEADLINE;
    loop {
        let error = match context.create_stream(wanted(options)).await {
            Ok(stream) => return Ok(stream.cached_info().clone()),
            Err(error) => error,
        };
        let may_pass = match error.kind() {
            CreateStreamErrorKind::JetStream(error) => is_election(&error),
            CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::JetStreamUnavailable => true,
            _ => false,
        };
        if !may_pass || Instant::now() >= deadline {
            let action = "create the stream";
            return Err(OpenError::Refused { action, cause: error.to_string() });
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

/// What a cluster answers that has no leader yet, or has not yet heard of all its servers.
fn is_election(error: &async_nats::jetstream::Error) -> bool {
    error.code() == SERVICE_UNAVAILABLE || error.error_code().0 == NO_SUITABLE_PEERS
}

fn wanted(options: &JetStreamOptions) -> Config {
    Config {
        name: options.stream.clone(),
        description: Some("Voûte: the log".into()),
        subjects: vec![subject_of(&options.stream)],
        storage: StorageType::File,
        num_replicas: options.replicas,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        max_bytes: options
            .stream_bytes_max
            .map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_age: Duration::ZERO,
        deny_delete: true,
        deny_purge: true,
        allow_direct: false,
        allow_rollup: false,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    }
}

/// What is wrong with a stream, each with what it must be.
fn faults(info: &Info, options: &JetStreamOptions) -> Vec<String> {
    let config = &info.config;
    let subject = subject_of(&options.stream);
    let is_plain_source = config.mirror.is_none()
        && config.sources.as_ref().is_none_or(Vec::is_empty)
        && config.subject_transform.is_none()
        && config.republish.is_none();
    let is_compressed = !matches!(config.compression, None | Some(Compression::None));
    let checks = [
        (
            config.subjects == [subject.as_str()],
            format!("its subjects must be {subject} alone, not {:?}", config.subjects),
        ),
        (config.storage == StorageType::File, "its storage must be file".into()),
        (
            config.num_replicas == options.replicas,
            format!("it must have {} replicas, not {}", options.replicas, config.num_replicas),
        ),
        (config.retention == RetentionPolicy::Limits, "its retention must be limits".into()),
        (config.discard == DiscardPolicy::New, "its discard policy must be new".into()),
        (config.max_age.is_zero(), "it must have no max_age".into()),
        (config.max_messages <= 0, "it must have no max_msgs".into()),
        (config.max_messages_per_subject <= 0, "it must have no max_msgs_per_subject".into()),
        (config.max_message_size <= 0, "it must have no max_msg_size".into()),
        (config.deny_delete, "deny_delete must be set".into()),
        (config.deny_purge, "deny_purge must be set".into()),
        (!config.allow_direct, "allow_direct must not be set".into()),
        (!config.allow_rollup, "allow_rollup_hdrs must not be set".into()),
        (!config.allow_message_ttl, "allow_msg_ttl must not be set".into()),
        (!config.no_ack, "no_ack must not be set".into()),
        (!config.sealed, "it must not be sealed".into()),
        (!is_compressed, "compression must be none".into()),
        (
            config.persist_mode != Some(PersistenceMode::Async),
            "persist_mode must not be async".into(),
        ),
        (is_plain_source, "it must have no mirror, sources, transform or republish".into()),
        (
            config.duplicate_window >= DUPLICATE_WINDOW,
            format!("duplicate_window must be at least {} s", DUPLICATE_WINDOW.as_secs()),
        ),
        (
            info.state.first_sequence <= 1 && info.state.deleted_count.unwrap_or(0) == 0,
            "messages were deleted from it; restore it from a site's copy".into(),
        ),
    ];
    checks.into_iter().filter(|(holds, _)| !holds).map(|(_, fault)| fault).collect()
}

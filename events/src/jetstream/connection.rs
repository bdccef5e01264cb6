//! Connecting to the servers that carry the log.

use super::SERVER_VERSION_MIN;
use async_nats::{Client, ConnectOptions, ServerInfo};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that is silent this long (twice over) is given up for another.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(500);
/// What a server must take in one message: the largest append, its record and its headers.
const PAYLOAD_BYTES_MIN: usize = 1 << 20;

/// Where the log is, and how to get in.
#[derive(Clone, Debug)]
pub struct JetStreamOptions {
    /// Servers to try in this order, e.g. `nats://127.0.0.1:4222`; best all of the cluster, the
    /// nearest first: then the loss of one disturbs the processes of its site only.
    pub servers: Vec<String>,
    /// The stream's name: letters, digits, `-` and `_`.
    pub stream: String,
    /// Copies that the stream keeps: 1 on a single server, 3 on a cluster.
    pub replicas: usize,
    /// Whether to create the stream if it is not there (needs the right to).
    pub create: bool,
    /// Most bytes that the created stream may hold; `None` for what the disk holds.
    pub stream_bytes_max: Option<u64>,
    /// Who connects.
    pub credentials: Credentials,
    /// Whether to insist on TLS.
    pub tls: Option<Tls>,
    /// Monitoring addresses of all servers, e.g. `http://127.0.0.1:8222`; empty to check nothing.
    pub monitoring: Vec<String>,
}

impl JetStreamOptions {
    /// The stream on one server without credentials; the rest can be changed in the fields.
    #[must_use]
    pub fn new(server: impl Into<String>, stream: impl Into<String>) -> Self {
        JetStreamOptions {
            servers: vec![server.into()],
            stream: stream.into(),
            replicas: 1,
            create: true,
            stream_bytes_max: None,
            credentials: Credentials::None,
            tls: None,
            monitoring: Vec::new(),
        }
    }
}

/// Who connects.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    None,
    /// A user with a password.
    User {
        /// The user.
        name: String,
        /// The password.
        password: String,
    },
    /// A credentials file (JWT and seed).
    File(PathBuf),
    /// The seed of an nkey.
    NkeySeed(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::None => formatter.write_str("None"),
            Credentials::User { name, .. } => write!(formatter, "User({name})"),
            Credentials::File(path) => write!(formatter, "File({})", path.display()),
            Credentials::NkeySeed(_) => formatter.write_str("NkeySeed"),
        }
    }
}

/// How to check the servers, and to be checked by them.
#[derive(Clone, Default, Debug)]
pub struct Tls {
    /// PEM file of the authorities to trust instead of the system's.
    pub authorities: Option<PathBuf>,
    /// PEM files of an own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why a log on JetStream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No server answers.
    #[error(
        "no nats-server answers at {servers:?}: {cause}; check the addresses, credentials and TLS settings"
    )]
    Unreachable {
        /// Where.
        servers: Vec<String>,
        /// What happened.
        cause: String,
    },
    /// A credentials file cannot be read.
    #[error("the credentials cannot be read: {0}")]
    Credentials(io::Error),
    /// A server is too old.
    #[error("{server} is nats-server {found}, which cannot carry the log safely; upgrade it to {}.{}.{} or newer", SERVER_VERSION_MIN.0, SERVER_VERSION_MIN.1, SERVER_VERSION_MIN.2)]
    TooOld {
        /// Which.
        server: String,
        /// Its version.
        found: String,
    },
    /// A server has no JetStream.
    #[error("{server} runs without JetStream; enable it in its configuration")]
    NoJetStream {
        /// Which.
        server: String,
    },
    /// A server takes too small messages.
    #[error(
        "{server} takes messages of {found} bytes at most; set max_payload to {PAYLOAD_BYTES_MIN} or more"
    )]
    PayloadLimit {
        /// Which.
        server: String,
        /// Its limit.
        found: usize,
    },
    /// The name cannot name a stream.
    #[error("{name:?} cannot name a stream: use 1 to 32 letters, digits, '-' and '_'")]
    StreamName {
        /// The name.
        name: String,
    },
    /// The stream is not there and shall not be created.
    #[error("there is no stream {stream}; create it first, or allow to create it")]
    NoStream {
        /// Its name.
        stream: String,
    },
    /// The stream has settings under which a log is not safe.
    #[error("stream {stream} cannot carry a log: {}", wrong.join("; "))]
    Settings {
        /// Its name.
        stream: String,
        /// What is wrong, each with what it must be.
        wrong: Vec<String>,
    },
    /// The server refuses.
    #[error("the server refused to {action}: {cause}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// What it said.
        cause: String,
    },
}

pub(super) async fn connect(options: &JetStreamOptions) -> Result<Client, OpenError> {
    let unreachable =
        |cause: String| OpenError::Unreachable { servers: options.servers.clone(), cause };
    let addresses = options
        .servers
        .iter()
        .map(|server| server.parse::<async_nats::ServerAddr>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreachable(error.to_string()))?;
    if addresses.is_empty() {
        return Err(unreachable("no address was given".into()));
    }
    let client = connect_options(options)
        .await?
        .connect(addresses)
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    check_server(&client.server_info())?;
    Ok(client)
}

async fn connect_options(options: &JetStreamOptions) -> Result<ConnectOptions, OpenError> {
    let mut connect = ConnectOptions::new()
        .name("voute")
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .retain_servers_order()
        // Those that the cluster tells of may be far, or under names that only it knows.
        .ignore_discovered_servers()
        .reconnect_delay_callback(|attempts| {
            let doubled = 1_u64 << attempts.min(10);
            Duration::from_millis(doubled).min(RECONNECT_DELAY_MAX)
        })
        .event_callback(|event| async move { tracing::info!(%event, "connection to the log") });
    connect = match &options.credentials {
        Credentials::None => connect,
        Credentials::User { name, password } => {
            connect.user_and_password(name.clone(), password.clone())
        }
        Credentials::File(path) => {
            connect.credentials_file(path).await.map_err(OpenError::Credentials)?
        }
        Credentials::NkeySeed(seed) => connect.nkey(seed.clone()),
    };
    if let Some(tls) = &options.tls {
        connect = connect.require_tls(true);
        if let Some(authorities) = &tls.authorities {
            connect = connect.add_root_certificates(authorities.clone());
        }
        if let Some((certificate, key)) = &tls.identity {
            connect = connect.add_client_certificate(certificate.clone(), key.clone());
        }
    }
    Ok(connect)
}

/// Also after each reconnection: another server of the cluster may be an older one.
pub(super) fn check_server(info: &ServerInfo) -> Result<(), OpenError> {
    let server = if info.server_name.is_empty() { &info.server_id } else { &info.server_name };
    let server = server.clone();
    if !is_new_enough(&info.version) {
        return Err(OpenError::TooOld { server, found: info.version.clone() });
    }
    if !info.jetstream {
        return Err(OpenError::NoJetStream { server });
    }
    if info.max_payload < PAYLOAD_BYTES_MIN {
        return Err(OpenError::PayloadLimit { server, found: info.max_payload });
    }
    Ok(())
}

/// A preview of the oldest good version is not yet it.
pub(super) fn is_new_enough(version: &str) -> bool {
    let version = version.strip_prefix('v').unwrap_or(version);
    let (numbers, is_preview) = match version.split_once('-') {
        Some((numbers, _)) => (numbers, true),
        None => (version, false),
    };
    let mut parts = numbers.split('.').map(str::parse::<u64>);
    let (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let found = (major, minor, patch);
    found > SERVER_VERSION_MIN || (found == SERVER_VERSION_MIN && !is_preview)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_older_than_the_oldest_good_one_are_told_apart() {
        for version in ["2.15.1", "v2.15.1", "2.15.2-RC.1", "2.16.0", "3.0.0"] {
            assert!(is_new_enough(version), "{version}");
        }
        for version in ["2.9.10", "2.14.6", "2.15.0", "2.15.1-RC.2", "1.99.9", "", "2.15", "x"] {
            assert!(!is_new_enough(version), "{version}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let mut options = JetStreamOptions::new("nats://127.0.0.1", "log");
        let password = "hunter2".to_string();
        options.credentials = Credentials::User { name: "writer".into(), password };
        assert!(!format!("{options:?}").contains("hunter2"));
        options.credentials = Credentials::NkeySeed("SUASECRET".into());
        assert!(!format!("{options:?}").contains("SUASECRET"));
    }
}

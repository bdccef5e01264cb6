//! The streams to the control plane: one to each control process that the node was told of, connected
//! again for ever, passing messages both ways.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use voute_schemas::NodeId;
use voute_schemas::contract::{FromNode, MESSAGE_BYTES_MAX, PATH, ToNode};

/// First pause before a control process is tried again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A stream that lasted this long was a good one: the next pause begins anew.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// How long a connection may take to be made, and one message to be sent.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the control process is asked whether it is still there, and how long it may be silent.
const PING_EVERY: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How much of a control process's words about a refusal is told, bytes.
const REFUSAL_BYTES_MAX: usize = 300;
/// Messages from the node that wait to be sent.
const OUTGOING_MAX: usize = 256;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What the streams tell the agent, with the place of the control process among the URLs.
pub(crate) enum StreamEvent {
    /// A control process answered; what it is told goes here.
    Connected(usize, mpsc::Sender<FromNode>),
    /// It said something.
    Message(usize, Box<ToNode>),
    /// It is gone.
    Disconnected(usize),
}

/// Where and as whom to connect.
pub(crate) struct Dialer {
    urls: Vec<String>,
    authorization: HeaderValue,
}

/// A control URL or secret that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidControl {
    /// No URL at all.
    #[error("no control URL is given; name at least one, e.g. http://127.0.0.1:7421")]
    Missing,
    /// Not a URL of this kind.
    #[error("{url:?} is no control URL; write it as http://HOST:PORT")]
    Url {
        /// As given.
        url: String,
    },
    /// Characters that a header cannot carry.
    #[error(
        "the node's secret holds characters that cannot be sent; use the one that the control plane issued"
    )]
    Secret,
}

impl Dialer {
    /// Checks the URLs.
    pub(crate) fn new(urls: &[String], node: NodeId, secret: &str) -> Result<Self, InvalidControl> {
        if urls.is_empty() {
            return Err(InvalidControl::Missing);
        }
        let urls = urls.iter().map(|url| stream_url(url)).collect::<Result<_, _>>()?;
        let credentials = STANDARD.encode(format!("{node}:{secret}"));
        let mut authorization = HeaderValue::from_str(&format!("Basic {credentials}"))
            .map_err(|_| InvalidControl::Secret)?;
        authorization.set_sensitive(true);
        Ok(Dialer { urls, authorization })
    }

    /// Keeps a stream to each control process until nobody listens to `events` any more.
    pub(crate) async fn run(self, events: mpsc::Sender<StreamEvent>) {
        let dialer = Arc::new(self);
        let mut streams = JoinSet::new();
        for index in 0..dialer.urls.len() {
            let (dialer, events) = (Arc::clone(&dialer), events.clone());
            streams.spawn(async move { dialer.keep(index, events).await });
        }
        while streams.join_next().await.is_some() {}
    }

    /// Connects to one control process, and connects again.
    async fn keep(&self, index: usize, events: mpsc::Sender<StreamEvent>) {
        let url = &self.urls[index];
        let mut pause = RETRY_MIN;
        let mut trouble = Trouble::default();
        loop {
            match timeout(PATIENCE, self.connect(url)).await {
                Ok(Ok(socket)) => {
                    tracing::info!(%url, "control process connected");
                    let since = Instant::now();
                    trouble = Trouble::default();
                    if converse(index, socket, &events).await.is_err() {
                        return;
                    }
                    tracing::warn!(%url, "control process disconnected; volumes go on");
                    if since.elapsed() > GOOD_AFTER {
                        pause = RETRY_MIN;
                    }
                }
                Ok(Err(error)) => trouble.tell(url, why(error)),
                Err(_) => trouble.tell(url, "it does not answer".to_owned()),
            }
            if events.is_closed() {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn connect(&self, url: &str) -> Result<Socket, tungstenite::Error> {
        let mut request = url.into_client_request()?;
        request.headers_mut().insert(AUTHORIZATION, self.authorization.clone());
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let (socket, _) = connect_async_with_config(request, Some(limits), true).await?;
        Ok(socket)
    }
}

/// Why a control process is not reached: told when it changes, since it is tried again for ever.
#[derive(Default)]
struct Trouble {
    told: Option<String>,
}

impl Trouble {
    fn tell(&mut self, url: &str, cause: String) {
        if self.told.as_ref() != Some(&cause) {
            tracing::warn!(%url, %cause, "control process not reached, trying again");
            self.told = Some(cause);
        }
    }
}

/// What to do about an error: a refusal has the control plane's words, as far as they came.
fn why(error: tungstenite::Error) -> String {
    let tungstenite::Error::Http(response) = &error else { return error.to_string() };
    if response.status() == StatusCode::UNAUTHORIZED {
        return "it knows no such node, or not this secret: use the id and the secret that `voute node add` gave".to_owned();
    }
    let body = response.body().as_deref().unwrap_or_default();
    let words = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_BYTES_MAX)]);
    format!("{}: {}", response.status(), words.trim().escape_debug())
}

fn stream_url(url: &str) -> Result<String, InvalidControl> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("ws://"));
    let host = rest.map(|rest| rest.trim_end_matches('/')).filter(|host| {
        !host.is_empty()
            && !host.contains(['/', '@', '?', '#'])
            && !host.contains(char::is_whitespace)
    });
    let host = host.ok_or_else(|| InvalidControl::Url { url: url.to_owned() })?;
    Ok(format!("ws://{host}{PATH}"))
}

/// The agent has ended.
struct Ended;

/// Passes messages until the stream breaks.
async fn converse(
    index: usize,
    socket: Socket,
    events: &mpsc::Sender<StreamEvent>,
) -> Result<(), Ended> {
    let (mut to_control, mut from_control) = socket.split();
    let (sender, mut outgoing) = mpsc::channel::<FromNode>(OUTGOING_MAX);
    events.send(StreamEvent::Connected(index, sender)).await.map_err(|_| Ended)?;
    let mut ping = interval(PING_EVERY);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            _ = ping.tick() => {
                let sent = timeout(PATIENCE, to_control.send(Message::Ping(Vec::new().into()))).await;
                if !matches!(sent, Ok(Ok(()))) || heard.elapsed() > SILENCE_MAX {
                    break;
                }
            }
            message = outgoing.recv() => {
                let Some(message) = message else { break };
                let text = serde_json::to_string(&message).expect("the contract is plain data");
                match timeout(PATIENCE, to_control.send(Message::text(text))).await {
                    Ok(Ok(())) => {}
                    _ => break,
                }
            }
            message = from_control.next() => {
                heard = Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                        Ok(message) => {
                            let message = StreamEvent::Message(index, Box::new(message));
                            events.send(message).await.map_err(|_| Ended)?;
                        }
                        Err(error) => {
                            tracing::error!(%error, "the control plane's message cannot be read; is it of another version?");
                            break;
                        }
                    },
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                    // Pings are answered by the library.
                    Some(Ok(_)) => {}
                }
            }
        }
    }
    events.send(StreamEvent::Disconnected(index)).await.map_err(|_| Ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_urls_are_checked() {
        assert_eq!(stream_url("http://a:7421/").unwrap(), "ws://a:7421/v1/node-stream");
        assert_eq!(stream_url("ws://[::1]:1").unwrap(), "ws://[::1]:1/v1/node-stream");
        for bad in ["", "a:7421", "https://a:1", "http://", "http://a/v1", "http://u@a:1"] {
            assert!(stream_url(bad).is_err(), "{bad:?}");
        }
    }
}

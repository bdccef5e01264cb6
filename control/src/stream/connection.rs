//! One stream, from its opening to its end.

use super::answers::Take;
use super::{Live, Streams, spec};
use crate::access;
use crate::api::App;
use crate::connections::Peer;
use crate::service::{Condition, Context, Done};
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use voute_schemas::command::Escalation;
use voute_schemas::contract::{
    CONTRACT_VERSION, ESCALATIONS_MAX, EscalationOutcome, FromNode, Hello, MESSAGE_BYTES_MAX,
    ToNode,
};
use voute_schemas::{EscalationId, NodeId};

/// How long a node has for its first message.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// How often a node hears something from this process.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Silence after which a stream is closed: the node has long counted as lost by then.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Specs of more groups are written as JSON on a thread that may be busy for long.
const GROUPS_WRITTEN_HERE: usize = 500;
/// How long one message may take to be sent.
const SEND_WITHIN: Duration = Duration::from_secs(15);

/// `GET` [`voute_schemas::contract::PATH`].
pub(crate) async fn serve(
    State(app): State<App>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let Some(node) = authenticated(&app, &headers) else {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"voute\"")];
        let text =
            "unknown node or wrong secret: use the id and secret that `voute node add` gave\n";
        return (StatusCode::UNAUTHORIZED, challenge, text).into_response();
    };
    if let Some(cause) = cannot_serve(&app) {
        return (StatusCode::SERVICE_UNAVAILABLE, cause).into_response();
    }
    upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(move |socket| run(app, node, peer.ip(), socket))
}

fn authenticated(app: &App, headers: &HeaderMap) -> Option<NodeId> {
    let (node, secret) = access::basic(headers.get(header::AUTHORIZATION)?.to_str().ok()?)?;
    let verifier = app.service.read(|view| view.state.node(node).map(|node| node.verifier))?;
    access::proves(&secret, &verifier).then_some(node)
}

/// Why this process must not tell nodes what to be.
pub(crate) fn cannot_serve(app: &App) -> Option<String> {
    if let Some(stopped) = &app.service.condition().borrow().stopped {
        return Some(format!(
            "this control process has stopped projecting ({stopped}); connect to another\n"
        ));
    }
    // Whoever alone signs for the log has nobody to learn from.
    let sites = app.service.log_sites();
    let is_sole = matches!(sites.as_slice(), [only] if only.is_own);
    if !is_sole && !app.sharing.is_settled(&sites) {
        return Some("no majority of the log's sites holds the secrets that this control process holds; it is learning them; connect to another, or to this one in a moment\n".to_owned());
    }
    let has_checkpoint = app.service.read(|view| !view.checkpoint.0.is_empty());
    (!has_checkpoint).then(|| {
        "no majority of the log's sites has signed anything since this control process started, so it cannot prove its specs; connect to another\n".to_owned()
    })
}

async fn run(app: App, node: NodeId, peer: IpAddr, socket: WebSocket) {
    let (mut sink, mut source) = socket.split();
    let hello = match receive_hello(&mut source, node).await {
        Ok(hello) => hello,
        Err(cause) => return say_goodbye(&mut sink, cause).await,
    };
    let live = match app.streams.open(&hello) {
        Ok(live) => live,
        Err(cause) => return say_goodbye(&mut sink, cause).await,
    };
    tracing::info!(%node, %peer, incarnation = hello.incarnation, "node stream opened");
    app.observed.opened(&hello);
    live.beat(app.observed.now());
    tokio::select! {
        cause = send_all(&app, node, &live, &mut sink) => {
            tracing::info!(%node, %cause, "node stream ends");
            say_goodbye(&mut sink, cause).await;
        }
        cause = receive_all(&app, node, peer, &live, &mut source) => {
            tracing::info!(%node, %cause, "node stream ended");
        }
    }
    if app.streams.close(node, &live) {
        app.observed.closed(node);
    }
}

async fn receive_hello(source: &mut SplitStream<WebSocket>, node: NodeId) -> Result<Hello, String> {
    // A node that keeps its connection alive may ping before it speaks.
    let first = async {
        loop {
            match source.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => return other,
            }
        }
    };
    let message = match tokio::time::timeout(HELLO_WITHIN, first).await {
        Ok(Some(Ok(Message::Text(text)))) => serde_json::from_str(&text),
        Ok(_) => return Err("the first message must be Hello, as text".into()),
        Err(_) => return Err("no Hello came in time".into()),
    };
    match message {
        Ok(FromNode::Hello(hello)) if hello.contract != CONTRACT_VERSION => Err(format!(
            "this control process speaks version {CONTRACT_VERSION} of the contract, the node {}; upgrade the older one",
            hello.contract
        )),
        Ok(FromNode::Hello(hello)) if hello.node != node => {
            Err("the Hello names another node than the credentials".into())
        }
        Ok(FromNode::Hello(hello)) => Ok(hello),
        Ok(_) => Err("the first message must be Hello".into()),
        Err(error) => Err(format!("the first message cannot be read: {error}")),
    }
}

async fn say_goodbye(sink: &mut SplitSink<WebSocket, Message>, cause: String) {
    let _ = send(sink, ToNode::Goodbye { cause }).await;
    let closing = Message::Close(None::<CloseFrame>);
    let _ = tokio::time::timeout(SEND_WITHIN, sink.send(closing)).await;
}

async fn send(sink: &mut SplitSink<WebSocket, Message>, message: ToNode) -> Result<(), String> {
    let is_large =
        matches!(&message, ToNode::Spec(spec) if spec.groups.len() > GROUPS_WRITTEN_HERE);
    let write = move || serde_json::to_string(&message).map_err(|error| error.to_string());
    let text = if is_large {
        tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string())??
    } else {
        write()?
    };
    if text.len() > MESSAGE_BYTES_MAX {
        return Err(format!(
            "a message of {} bytes is longer than the contract allows",
            text.len()
        ));
    }
    let sent = tokio::time::timeout(SEND_WITHIN, sink.send(Message::Text(text.into()))).await;
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("the node cannot be reached: {error}")),
        Err(_) => Err("the node does not read".into()),
    }
}

/// Sends specs, answers and pings until something ends the stream; what.
async fn send_all(
    app: &App,
    node: NodeId,
    live: &Live,
    sink: &mut SplitSink<WebSocket, Message>,
) -> String {
    match spec::full(app, node).await {
        Ok(Some(spec)) => {
            if let Err(cause) = send(sink, ToNode::Spec(Box::new(spec))).await {
                return cause;
            }
        }
        Ok(None) => return "this node is not in the cluster".into(),
        Err(error) => return format!("its spec cannot be proven: {error}"),
    }
    let mut condition = app.service.condition();
    let mut pings = tokio::time::interval(PING_INTERVAL);
    loop {
        tokio::select! {
            () = live.has_news.notified() => {
                if let Err(cause) = send_news(app, node, live, sink).await {
                    return cause;
                }
            }
            _ = pings.tick() => {
                let ping = sink.send(Message::Ping(Vec::new().into()));
                if !matches!(tokio::time::timeout(SEND_WITHIN, ping).await, Ok(Ok(()))) {
                    return "the node does not read".into();
                }
            }
            cause = stopped(&mut condition) => return cause,
        }
    }
}

/// Returns when this process may not tell nodes any more what to be; why.
async fn stopped(condition: &mut watch::Receiver<Condition>) -> String {
    let stopped = condition.wait_for(|condition| condition.stopped.is_some()).await;
    let cause = stopped.ok().and_then(|condition| condition.stopped.clone());
    cause.unwrap_or_else(|| "this control process is stopping".into())
}

async fn send_news(
    app: &App,
    node: NodeId,
    live: &Live,
    sink: &mut SplitSink<WebSocket, Message>,
) -> Result<(), String> {
    // Both at one moment: a state without all that changed up to it would be obeyed as if it were all.
    let (view, news) = app.service.read(|view| (view.clone(), live.take()));
    if let Some(cause) = news.goodbye {
        return Err(cause);
    }
    if !news.touched.is_empty() {
        let delta = spec::delta(app, node, &news.touched, &view).await;
        let delta = delta.map_err(|error| format!("its spec cannot be proven: {error}"))?;
        if let Some(delta) = delta {
            app.observed.forget_groups(node, &delta.removed_groups);
            send(sink, ToNode::Spec(Box::new(delta))).await?;
        }
    }
    for message in news.outbox {
        send(sink, message).await?;
    }
    if let Some(sent_us) = news.heartbeat_us {
        send(sink, ToNode::Heartbeat { sent_us }).await?;
    }
    Ok(())
}

/// Takes what the node says until its stream ends; why.
async fn receive_all(
    app: &App,
    node: NodeId,
    peer: IpAddr,
    live: &Arc<Live>,
    source: &mut SplitStream<WebSocket>,
) -> String {
    loop {
        let message = match tokio::time::timeout(SILENCE_MAX, source.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return format!("its stream broke: {error}"),
            Ok(None) => return "it closed its stream".into(),
            Err(_) => return "it fell silent".into(),
        };
        if !is_current(&app.streams, node, live) {
            return "a newer stream replaced it".into();
        }
        match message {
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(message) => {
                    if matches!(message, FromNode::Status(_)) {
                        live.beat(app.observed.now());
                    }
                    take(app, node, peer, message);
                }
                Err(error) => return format!("it sent what is no message: {error}"),
            },
            // They say that the connection lives, not that the node does its work.
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return "it closed its stream".into(),
            Message::Binary(_) => return "it sent bytes, messages are text".into(),
        }
    }
}

fn is_current(streams: &Streams, node: NodeId, live: &Arc<Live>) -> bool {
    streams.live().get(&node).is_some_and(|current| Arc::ptr_eq(current, live))
}

fn take(app: &App, node: NodeId, peer: IpAddr, message: FromNode) {
    match message {
        FromNode::Hello(_) => app.observed.heard(node),
        FromNode::Status(status) => app.observed.reported(node, status),
        FromNode::Escalate { id, requests } => {
            app.observed.heard(node);
            escalate(app, node, peer, id, requests);
        }
    }
}

fn escalate(app: &App, node: NodeId, peer: IpAddr, id: EscalationId, requests: Vec<Escalation>) {
    match app.streams.take_escalation(node, id) {
        Take::Ignore => return,
        Take::Answer(outcomes) => {
            return app.streams.send(node, ToNode::Answer { id, outcomes });
        }
        Take::Decide => {}
    }
    let app = app.clone();
    tokio::spawn(async move {
        let outcomes = decide(&app, node, peer, requests).await;
        app.streams.answered(node, id, outcomes.clone());
        if let Some(outcomes) = outcomes {
            app.streams.send(node, ToNode::Answer { id, outcomes });
        }
    });
}

async fn decide(
    app: &App,
    node: NodeId,
    peer: IpAddr,
    requests: Vec<Escalation>,
) -> Option<Vec<EscalationOutcome>> {
    use EscalationOutcome::Refused;
    if requests.len() > ESCALATIONS_MAX {
        let message = format!("a batch has at most {ESCALATIONS_MAX} requests");
        let refused = Refused { code: "batch-too-large".into(), message };
        return Some(vec![refused; requests.len()]);
    }
    let context = Context::node(node, Some(peer));
    let vouched: Vec<bool> =
        requests.iter().map(|request| is_vouched(app, node, request)).collect();
    let decided = requests.into_iter().zip(&vouched).filter(|(_, vouched)| **vouched);
    let decided: Vec<_> = decided.map(|(request, _)| request).collect();
    if decided.is_empty() {
        return Some(vouched.iter().map(|_| unvouched()).collect());
    }
    match app.service.escalate(node, decided, context).await {
        Ok(Done::Escalated { outcomes }) => {
            let mut outcomes = outcomes.into_iter();
            let answered = vouched.into_iter().map(|vouched| match vouched {
                true => outcomes.next().unwrap_or_else(unvouched),
                false => unvouched(),
            });
            Some(answered.collect())
        }
        Ok(other) => {
            tracing::error!(?other, "an escalation was answered as a command");
            None
        }
        Err(error) => {
            tracing::warn!(%node, %error, "an escalation has no outcome yet; the node repeats it");
            None
        }
    }
}

fn is_vouched(app: &App, node: NodeId, request: &Escalation) -> bool {
    let now = app.observed.now();
    let nodes = app.observed.nodes();
    super::is_vouched(&app.service.state(), &nodes, (&app.times, now), node, request)
}

fn unvouched() -> EscalationOutcome {
    let message = "no other side vouches for its legs at this epoch now; asked again later, it may";
    EscalationOutcome::Refused { code: "not-vouched".into(), message: message.into() }
}

impl Streams {
    fn take_escalation(&self, node: NodeId, id: EscalationId) -> Take {
        let mut answers = self.answers.lock().expect("no holder of the answers panics");
        answers.entry(node).or_default().take(id)
    }

    fn answered(&self, node: NodeId, id: EscalationId, outcomes: Option<Vec<EscalationOutcome>>) {
        let mut answers = self.answers.lock().expect("no holder of the answers panics");
        answers.entry(node).or_default().answered(id, outcomes);
    }
}

//! The log for people and other systems: search, verification, feed.

use super::App;
use super::answers::*;
use super::extract::Query;
use super::failure::Failure;
use super::requests::{AuditQuery, FeedQuery, LIST_MAX};
use crate::domain::State as DomainState;
use crate::rebuild;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use futures_util::Stream;
use std::collections::VecDeque;
use std::convert::Infallible;
use tokio::sync::{Semaphore, watch};
use voute_events::{Position, StoredCommit};
use voute_schemas::commit::{Actor, Outcome};
use voute_schemas::{Commit, Event, Name, Sequence};

/// Commits read from the log at once.
const READ_MAX: usize = 1_024;
/// Commits of one answer when the query does not say.
const LIMIT_DEFAULT: usize = 100;
/// Commits that one search reads at most; the answer says where to go on.
const SEARCH_READS_MAX: u64 = 200_000;
/// Searches and verifications at once: they read much.
const AUDITS_MAX: usize = 4;
/// Feeds at once.
const FEEDS_MAX: usize = 256;

/// Bounds what auditors do at the same time.
#[derive(Debug)]
pub(crate) struct Audits {
    running: Semaphore,
    feeds: std::sync::Arc<Semaphore>,
}

impl Default for Audits {
    fn default() -> Self {
        Audits {
            running: Semaphore::new(AUDITS_MAX),
            feeds: std::sync::Arc::new(Semaphore::new(FEEDS_MAX)),
        }
    }
}

/// The filters of a search, resolved.
struct Filter {
    actor: Option<String>,
    command: Option<String>,
    accepted: Option<bool>,
    entity: Option<Vec<String>>,
    text: Option<String>,
}

pub(super) async fn search(
    State(app): State<App>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<AuditPage>, Failure> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIST_MAX).contains(&limit) {
        let message = format!("limit {limit} is not in 1..={LIST_MAX}");
        return Err(Failure::bad_request("bad-query", message, "ask page by page"));
    }
    let state = app.service.state();
    let filter = Filter::new(&state, &query)?;
    let head = state.position().sequence.0;
    let to = query.to.unwrap_or(head).min(head);
    let from = query.from.unwrap_or(1).max(1);
    let _running = app.audits.running.acquire().await.map_err(|error| Failure::internal(&error))?;
    let mut found = Vec::new();
    let mut at = from;
    while at <= to && found.len() < limit && at - from < SEARCH_READS_MAX {
        let room = usize::try_from(to - at + 1).unwrap_or(READ_MAX).min(READ_MAX);
        let read = app.service.commits(Sequence(at), room).await;
        let read = read.map_err(|error| Failure::unavailable(error.to_string()))?;
        if read.is_empty() {
            break;
        }
        for stored in read {
            at = stored.position.sequence.0 + 1;
            let view = view(&state, &stored)?;
            if filter.takes(&view) {
                found.push(view);
            }
            if found.len() == limit {
                break;
            }
        }
    }
    Ok(Json(AuditPage { commits: found, next: (at <= to).then_some(at) }))
}

impl Filter {
    fn new(state: &DomainState, query: &AuditQuery) -> Result<Self, Failure> {
        let accepted = match query.outcome.as_deref() {
            None => None,
            Some("accepted") => Some(true),
            Some("refused") => Some(false),
            Some(other) => {
                let message = format!("outcome {other:?} is neither `accepted` nor `refused`");
                return Err(Failure::bad_request("bad-query", message, "use one of the two"));
            }
        };
        Ok(Filter {
            actor: query.actor.clone(),
            command: query.command.clone(),
            accepted,
            entity: query.entity.as_ref().map(|entity| identifiers(state, entity)),
            text: query.text.as_ref().map(|text| text.to_lowercase()),
        })
    }

    fn takes(&self, view: &CommitView) -> bool {
        let commit = &view.commit;
        let is_accepted = matches!(commit.outcome, Outcome::Accepted(_));
        self.command.as_ref().is_none_or(|command| command.eq_ignore_ascii_case(&commit.command))
            && self.accepted.is_none_or(|accepted| accepted == is_accepted)
            && self.actor.as_ref().is_none_or(|actor| is_actor(view, actor))
            && self.entity.as_ref().is_none_or(|ids| mentions(commit, ids))
            && self.text.as_ref().is_none_or(|text| contains(commit, text))
    }
}

/// The identifiers that a person may mean by a name, of everything that has it; or the text itself.
fn identifiers(state: &DomainState, entity: &str) -> Vec<String> {
    let mut ids = vec![entity.to_lowercase()];
    let Ok(name) = Name::new(entity) else { return ids };
    ids.extend(state.site_named(&name).map(|id| id.to_string()));
    ids.extend(state.node_named(&name).map(|id| id.to_string()));
    ids.extend(state.pool_named(&name).map(|id| id.to_string()));
    ids.extend(state.device_named(&name).map(|id| id.to_string()));
    ids.extend(state.policy_named(&name).map(|id| id.to_string()));
    ids.extend(state.host_named(&name).map(|id| id.to_string()));
    ids.extend(state.credential_named(&name).map(|id| id.to_string()));
    if let Some(volume) = state.volume_named(&name) {
        ids.push(volume.to_string());
        // Moves and detaches name the group only.
        ids.extend(state.volume(volume).map(|volume| volume.group.to_string()));
    }
    ids
}

fn is_actor(view: &CommitView, wanted: &str) -> bool {
    let id = match &view.commit.actor {
        Actor::System => "system".to_owned(),
        Actor::Credential { id, .. } => id.to_string(),
        Actor::Node(node) => node.to_string(),
    };
    id.eq_ignore_ascii_case(wanted) || view.actor_name == wanted
}

fn mentions(commit: &Commit, ids: &[String]) -> bool {
    let events = serde_json::to_string(&commit.outcome).unwrap_or_default();
    ids.iter().any(|id| events.contains(id.as_str()))
}

fn contains(commit: &Commit, text: &str) -> bool {
    let outcome = serde_json::to_string(&commit.outcome).unwrap_or_default();
    [&commit.reason, &outcome, &commit.command].iter().any(|it| it.to_lowercase().contains(text))
}

fn view(state: &DomainState, stored: &StoredCommit) -> Result<CommitView, Failure> {
    let commit = Commit::decode(&stored.bytes).map_err(|error| Failure::internal(&error))?;
    let actor_name = match &commit.actor {
        Actor::System => "system".to_owned(),
        Actor::Credential { name, .. } => name.clone(),
        Actor::Node(node) => {
            state.node(*node).map_or_else(|| node.to_string(), |node| node.name.to_string())
        }
    };
    Ok(CommitView { hash: stored.position.hash, commit, actor_name })
}

pub(super) async fn verify(State(app): State<App>) -> Result<Json<Verification>, Failure> {
    let _running = app.audits.running.acquire().await.map_err(|error| Failure::internal(&error))?;
    rebuild::verify(&app.service).await.map(Json).map_err(|why| {
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not-provable",
            format!("the log cannot be proved now: {why}"),
            "nothing is known to be wrong with it; ask again, or at another control process, when the log answers (`voute status`)",
        )
    })
}

/// Where a feed stands.
struct Feed {
    app: App,
    next: u64,
    head: watch::Receiver<Position>,
    read: VecDeque<StoredCommit>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

pub(super) async fn feed(
    State(app): State<App>,
    headers: HeaderMap,
    Query(query): Query<FeedQuery>,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, Failure> {
    let place = std::sync::Arc::clone(&app.audits.feeds).try_acquire_owned().map_err(|_| {
        let message = format!("{FEEDS_MAX} feeds are open already");
        Failure::new(StatusCode::TOO_MANY_REQUESTS, "too-many-feeds", message, "close one")
    })?;
    let head = app.service.head();
    // A client that reconnects says which commit it got last (HTML §9.2.4).
    let resumed = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse::<u64>().ok())
        .map(|last| last.saturating_add(1));
    let at_head = head.borrow().sequence.next().0;
    let next = resumed.or(query.from).unwrap_or(at_head).max(1);
    let feed = Feed { app, next, head, read: VecDeque::new(), _place: place };
    let commits = futures_util::stream::unfold(feed, |mut feed| async move {
        let event = feed.next().await?;
        Some((Ok(event), feed))
    });
    Ok(Sse::new(commits).keep_alive(KeepAlive::default()))
}

impl Feed {
    /// The next commit, once it is effective; nothing when the log cannot be read any more.
    async fn next(&mut self) -> Option<SseEvent> {
        let stored = loop {
            if let Some(stored) = self.read.pop_front() {
                break stored;
            }
            let next = self.next;
            let stopping = &mut self.app.stopping;
            let head = tokio::select! {
                head = self.head.wait_for(|head| head.sequence.0 >= next) => head.ok()?.sequence.0,
                _ = stopping.wait_for(|stop| *stop) => return None,
            };
            let room = usize::try_from(head - next + 1).unwrap_or(READ_MAX).min(READ_MAX);
            self.read.extend(self.app.service.commits(Sequence(next), room).await.ok()?);
        };
        self.next = stored.position.sequence.0 + 1;
        let state = self.app.service.state();
        let view = view(&state, &stored).ok()?;
        let kind = match view.commit.events().first() {
            Some(Event::FailoverDecided { .. }) => "failover",
            Some(_) => "commit",
            None => "refusal",
        };
        let event = SseEvent::default().id(stored.position.sequence.to_string()).event(kind);
        event.json_data(view).ok()
    }
}

//! Reading: messages are fetched from the stream's leader by number. Since a message holds one or
//! more commits, a commit's message is searched for, from the nearest place that is known.

use super::Shared;
use super::record::Record;
use crate::{READ_BYTES_MAX, ReadError, StoredCommit};
use async_nats::client::{Request, RequestErrorKind};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use voute_schemas::Sequence;

/// Requests under way at once while reading many messages.
const FETCHES_MAX: usize = 128;
/// Most places of commits that are remembered.
const ANCHORS_MAX: usize = 1_024;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a message is asked for in all: longer than an election.
const FETCH_DEADLINE: Duration = Duration::from_secs(15);
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(50);
const NO_MESSAGE_FOUND: u64 = 10_037;

/// Known places: a commit that begins a message, and that message's number.
#[derive(Default)]
pub(super) struct Anchors(BTreeMap<u64, u64>);

impl Anchors {
    /// The nearest known place at or before a commit; the first commit begins the first message.
    fn at_or_before(&self, commit: u64) -> (u64, u64) {
        self.0.range(..=commit).next_back().map_or((1, 1), |(commit, message)| (*commit, *message))
    }

    /// The message that ends just before a commit, if that is known.
    fn message_before(&self, commit: u64) -> Option<u64> {
        self.0.get(&commit)?.checked_sub(1)
    }

    fn add(&mut self, commit: u64, message: u64) {
        self.0.insert(commit, message);
        if self.0.len() > ANCHORS_MAX {
            self.0.pop_first();
        }
    }

    fn forget(&mut self) {
        self.0.clear();
    }
}

#[derive(Serialize)]
struct GetMessage<'a> {
    seq: u64,
    next_by_subj: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    message: Option<RawMessage>,
    #[serde(default)]
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct RawMessage {
    seq: u64,
    #[serde(default)]
    data: String,
}

/// An error as the server words it.
#[derive(Clone, Deserialize, Debug)]
pub(super) struct ApiError {
    #[serde(default)]
    pub(super) code: u64,
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

impl Shared {
    pub(super) async fn read(
        &self,
        from: Sequence,
        limit: usize,
    ) -> Result<Vec<StoredCommit>, ReadError> {
        // No log reaches the end of numbers; this keeps sums of them whole.
        let from = from.0.clamp(1, u64::MAX / 2);
        let mut commits = Vec::new();
        if limit == 0 {
            return Ok(commits);
        }
        let Some((message, record)) = self.locate(from).await? else { return Ok(commits) };
        let mut taking =
            Taking { next: from, limit, bytes: 0, is_inside_record: false, commits: &mut commits };
        let mut last_message = message;
        let mut goes_on = taking.take(record);
        // What is known to be there is fetched in parallel, what may be there one by one.
        let known = self.watch.last_message();
        {
            let mut fetches = stream::iter(message + 1..=known.max(message))
                .map(|message| self.fetch(message, from))
                .buffered(FETCHES_MAX.min(limit));
            while goes_on && let Some(record) = fetches.next().await {
                let Some(record) = record? else { break };
                last_message += 1;
                goes_on = taking.take(record);
            }
        }
        while goes_on && last_message >= known {
            let Some(record) = self.fetch(last_message + 1, from).await? else { break };
            last_message += 1;
            goes_on = taking.take(record);
        }
        if !taking.is_inside_record {
            let next = taking.next;
            self.lock_anchors().add(next, last_message + 1);
        }
        Ok(commits)
    }

    /// The message that holds a commit, with its number; `None` if the log ends before.
    pub(super) async fn locate(&self, commit: u64) -> Result<Option<(u64, Record)>, ReadError> {
        // Mostly it is the end of the message that was read or appended last.
        let known_end = self.lock_anchors().message_before(commit + 1);
        if let Some(message) = known_end
            && let Some(record) = self.fetch(message, commit).await?
            && record.contains(commit)
        {
            return Ok(Some((message, record)));
        }
        let (known_commit, known_message) = self.lock_anchors().at_or_before(commit);
        match self.search(commit, known_commit, known_message).await? {
            Search::Found(message, record) => Ok(Some((message, record))),
            Search::Beyond => Ok(None),
            Search::Contradiction if known_message == 1 => Err(ReadError::Damaged {
                sequence: Sequence(commit),
                cause: "the stream's messages are not in the order of their commits".into(),
            }),
            // The stream is not the one that the places were learnt from.
            Search::Contradiction => {
                self.lock_anchors().forget();
                Box::pin(self.locate(commit)).await
            }
        }
    }

    /// Bisects: message `m` holds no commit below `known_commit + (m - known_message)`.
    async fn search(
        &self,
        commit: u64,
        known_commit: u64,
        known_message: u64,
    ) -> Result<Search, ReadError> {
        let mut low = known_message;
        let Some(mut high) = known_message.checked_add(commit - known_commit) else {
            return Ok(Search::Beyond);
        };
        let known_last = self.watch.last_message().max(low);
        // A log of single commits has it at `high`, one that ends before it at the known last.
        let mut probe = high.min(known_last.saturating_add(1));
        let mut is_high_the_end = false;
        while low <= high {
            match self.fetch(probe, commit).await? {
                Some(record) if record.contains(commit) => {
                    return Ok(Search::Found(probe, record));
                }
                Some(record) if record.first < known_commit + (probe - known_message) => {
                    return Ok(Search::Contradiction);
                }
                Some(record) if record.first < commit => low = probe + 1,
                none_or_later => {
                    is_high_the_end = none_or_later.is_none();
                    high = probe - 1;
                }
            }
            probe = low + high.saturating_sub(low) / 2;
        }
        // Between two messages that are there, nothing may be missing.
        Ok(if is_high_the_end { Search::Beyond } else { Search::Contradiction })
    }

    /// One message by its number, `None` if the stream ends before; `near` is for errors.
    pub(super) async fn fetch(&self, message: u64, near: u64) -> Result<Option<Record>, ReadError> {
        let damaged = |cause: String| ReadError::Damaged { sequence: Sequence(near), cause };
        let deadline = Instant::now() + FETCH_DEADLINE;
        let answer = loop {
            match self.fetch_once(message).await {
                Ok(answer) => break answer,
                Err(cause) if Instant::now() >= deadline => {
                    return Err(ReadError::Unavailable { cause });
                }
                Err(_) => tokio::time::sleep(RETRY_DELAY).await,
            }
        };
        let Some(raw) = answer else { return Ok(None) };
        if raw.seq != message {
            return Err(damaged(format!("message {message} of the stream is missing")));
        }
        let payload = STANDARD
            .decode(&raw.data)
            .map_err(|error| damaged(format!("message {message} of the stream: {error}")))?;
        Record::decode(&payload).map(Some).map_err(|cause| {
            damaged(format!("message {message} of the stream is no append: {cause}"))
        })
    }

    /// The first message from this number on; an error may pass.
    async fn fetch_once(&self, message: u64) -> Result<Option<RawMessage>, String> {
        let get = GetMessage { seq: message, next_by_subj: &self.subject };
        let get = serde_json::to_vec(&get).expect("numbers and text serialise");
        let subject = format!("$JS.API.STREAM.MSG.GET.{}", self.stream);
        let request = Request::new().payload(get.into()).timeout(Some(ANSWER_TIMEOUT));
        let answer =
            self.client.send_request(subject, request).await.map_err(|error| {
                match error.kind() {
                    RequestErrorKind::NoResponders => "the stream has no leader now".into(),
                    _ => error.to_string(),
                }
            })?;
        let answer: Answer = serde_json::from_slice(&answer.payload)
            .map_err(|error| format!("the server's answer cannot be read: {error}"))?;
        match answer {
            Answer { message: Some(message), error: None } => Ok(Some(message)),
            Answer { error: Some(error), .. } if error.err_code == NO_MESSAGE_FOUND => Ok(None),
            Answer { error: Some(error), .. } => Err(error.description),
            Answer { message: None, error: None } => Err("the server's answer is empty".into()),
        }
    }

    pub(super) fn lock_anchors(&self) -> std::sync::MutexGuard<'_, Anchors> {
        self.anchors.lock().expect("no holder of this lock panics")
    }

    /// Remembers where an append ended.
    pub(super) fn remember_end(&self, commit: u64, message: u64) {
        self.lock_anchors().add(commit + 1, message + 1);
    }
}

enum Search {
    Found(u64, Record),
    /// The log ends before.
    Beyond,
    /// What was found cannot be where it was.
    Contradiction,
}

/// Commits taken from records until there are enough.
struct Taking<'a> {
    next: u64,
    limit: usize,
    bytes: usize,
    /// The last record goes on: `next` does not begin one.
    is_inside_record: bool,
    commits: &'a mut Vec<StoredCommit>,
}

impl Taking<'_> {
    /// Whether more is wanted.
    fn take(&mut self, record: Record) -> bool {
        for commit in record.into_commits(self.next) {
            if self.is_full() {
                self.is_inside_record = true;
                return false;
            }
            self.next = commit.position.sequence.0 + 1;
            self.bytes += commit.bytes.len();
            self.commits.push(commit);
        }
        !self.is_full()
    }

    fn is_full(&self) -> bool {
        self.commits.len() >= self.limit || self.bytes >= READ_BYTES_MAX
    }
}

//! Appending: compare, publish, and find out what came of it.

use super::Shared;
use super::connection::check_server;
use super::fetch::{ApiError, RETRY_DELAY};
use super::record::Record;
use super::watch::{Heard, LAST_COMMIT};
use super::{SETTLE, connection::OpenError};
use crate::sealing::{diverged, seal};
use crate::{AppendError, Position, ReadError, StoredCommit};
use async_nats::client::{Request, RequestErrorKind};
use async_nats::jetstream::ErrorCode;
use async_nats::{HeaderMap, header};
use serde::Deserialize;
use std::time::Duration;
use tokio::time::Instant;
use voute_schemas::{Commit, Hash, Sequence};

/// How long one try waits for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an append is tried in all: longer than an election (4–9 s).
const APPEND_DEADLINE: Duration = Duration::from_secs(20);
/// Beyond any log; keeps sums of numbers whole.
const COMMIT_NUMBER_MAX: u64 = u64::MAX / 2;
const SERVICE_UNAVAILABLE: u64 = 503;

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
    #[serde(default)]
    error: Option<ApiError>,
}

/// What one try came to.
enum Try {
    Stored {
        message: u64,
    },
    /// The server knows this message id already.
    Duplicate,
    /// The expected message is not the last one.
    Behind,
    /// Something is being appended that may be this or may win against it.
    InFlight,
    Full(String),
    Refused(String),
    /// No answer: it may be stored or not.
    Silent(String),
}

/// What lies in the log after the expected commit.
enum Found {
    Ours(Position),
    Others,
    Nothing,
    Diverged(AppendError),
}

impl Shared {
    pub(super) async fn append(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError> {
        let sealed = seal(expected, commits)?;
        let deadline = Instant::now() + APPEND_DEADLINE;
        check_server(&self.client.server_info()).map_err(old_server)?;
        let Some(message) = self.place_after(expected).await? else {
            return self.judge(expected, &sealed, deadline).await;
        };
        let publication = Publication::new(&self.stream, message, &sealed, &commits[0]);
        let head = sealed.last().expect("sealing refuses an empty append").position;
        // From the first try without an answer on, only what lies in the log is definite.
        let mut is_open = false;
        loop {
            let cause = match self.try_once(&publication).await {
                Try::Stored { message: stored } if stored == message + 1 => {
                    self.remember_end(head.sequence.0, stored);
                    self.watch.hear(Heard { commit: head.sequence.0, message: stored });
                    return Ok(head);
                }
                Try::Stored { .. } | Try::Duplicate | Try::Behind => {
                    return self.judge(expected, &sealed, deadline).await;
                }
                Try::InFlight => "an append is still under way".into(),
                Try::Full(cause) if !is_open => return Err(AppendError::Full { cause }),
                Try::Refused(cause) if !is_open => return Err(AppendError::Refused { cause }),
                Try::Full(cause) | Try::Refused(cause) | Try::Silent(cause) => {
                    is_open = true;
                    cause
                }
            };
            if Instant::now() >= deadline {
                return Err(AppendError::Unknown { cause });
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// The number of the message that ends at `expected`, its content compared; `None` if that
    /// message goes on behind it, so that `expected` was not the head for long.
    async fn place_after(&self, expected: Position) -> Result<Option<u64>, AppendError> {
        if expected.sequence == Sequence(0) {
            return if expected == Position::ZERO {
                Ok(Some(0))
            } else {
                Err(diverged(expected, Some(Hash::ZERO)))
            };
        }
        if expected.sequence.0 > COMMIT_NUMBER_MAX {
            return Err(diverged(expected, None));
        }
        let settled = Instant::now() + SETTLE;
        loop {
            // Nothing was published yet: an error here leaves nothing open of this call, but an
            // earlier call of the same append may be.
            let found = self.locate(expected.sequence.0).await.map_err(unread)?;
            if let Some((message, record)) = found {
                let last = record.last();
                let hash = record
                    .into_commits(expected.sequence.0)
                    .next()
                    .expect("the record was found by this number")
                    .position
                    .hash;
                if hash != expected.hash {
                    return Err(diverged(expected, Some(hash)));
                }
                return Ok((last == expected.sequence.0).then_some(message));
            }
            if Instant::now() >= settled {
                return Err(diverged(expected, None));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Decides by content what came of an append that the server calls late or known.
    async fn judge(
        &self,
        expected: Position,
        sealed: &[StoredCommit],
        deadline: Instant,
    ) -> Result<Position, AppendError> {
        loop {
            match self.look(expected, sealed).await.map_err(unread)? {
                Found::Ours(head) => {
                    self.watch.hear(Heard { commit: head.sequence.0, message: 0 });
                    return Ok(head);
                }
                Found::Others => return Err(AppendError::Conflict),
                Found::Diverged(error) => return Err(error),
                // A reader that lags behind the writer that answered.
                Found::Nothing if Instant::now() < deadline => {
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                Found::Nothing => {
                    let cause = "the server has seen more than it shows".into();
                    return Err(AppendError::Unknown { cause });
                }
            }
        }
    }

    async fn look(&self, expected: Position, sealed: &[StoredCommit]) -> Result<Found, ReadError> {
        let mut found = Vec::new();
        let from = expected.sequence.0.max(1);
        let end = expected.sequence.0 + sealed.len() as u64;
        // An answer may be cut short by its size.
        loop {
            let next = from + found.len() as u64;
            if next > end {
                break;
            }
            let wanted = usize::try_from(end - next + 1).expect("an append is small");
            let more = self.read(Sequence(next), wanted).await?;
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        let mut found = found.into_iter().map(|commit| commit.position);
        if expected.sequence != Sequence(0) {
            match found.next() {
                Some(position) if position == expected => {}
                Some(position) => {
                    return Ok(Found::Diverged(diverged(expected, Some(position.hash))));
                }
                None => return Ok(Found::Nothing),
            }
        }
        let found: Vec<Position> = found.collect();
        let ours: Vec<Position> = sealed.iter().map(|commit| commit.position).collect();
        Ok(if found.is_empty() {
            Found::Nothing
        } else if found == ours {
            Found::Ours(*ours.last().expect("sealing refuses an empty append"))
        } else {
            Found::Others
        })
    }

    async fn try_once(&self, publication: &Publication) -> Try {
        let request = publication.request();
        let answer = match self.client.send_request(self.subject.clone(), request).await {
            Ok(answer) => answer,
            Err(error) => {
                return match error.kind() {
                    RequestErrorKind::MaxPayloadExceeded => {
                        Try::Refused("the server's max_payload is below 1 MiB; raise it".into())
                    }
                    RequestErrorKind::NoResponders => {
                        Try::Silent("the stream has no leader now".into())
                    }
                    _ => Try::Silent(error.to_string()),
                };
            }
        };
        match serde_json::from_slice(&answer.payload) {
            Ok(Answer { error: Some(error), .. }) => classify(&error),
            Ok(Answer { duplicate: true, .. }) => Try::Duplicate,
            Ok(Answer { seq: Some(message), .. }) => Try::Stored { message },
            _ => Try::Silent("the server's answer cannot be read".into()),
        }
    }
}

fn classify(error: &ApiError) -> Try {
    match ErrorCode(error.err_code) {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE => Try::Behind,
        // Whoever is in flight may yet fail, or be an earlier try of this very append.
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
        | ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => Try::InFlight,
        ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES => Try::Full(format!(
            "{}; extend the stream's limit or its servers' disks",
            error.description
        )),
        _ if error.code == SERVICE_UNAVAILABLE => Try::Silent(error.description.clone()),
        code => Try::Refused(format!("{} (code {})", error.description, code.0)),
    }
}

/// An append as it is sent, each time the same.
struct Publication {
    headers: HeaderMap,
    payload: Vec<u8>,
}

impl Publication {
    fn new(stream: &str, last_message: u64, sealed: &[StoredCommit], first: &Commit) -> Self {
        let last = sealed.last().map_or(0, |commit| commit.position.sequence.0);
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, first.id.to_string());
        headers.insert(header::NATS_EXPECTED_STREAM, stream);
        headers.insert(header::NATS_EXPECTED_LAST_SEQUENCE, last_message.to_string());
        headers.insert(LAST_COMMIT, last.to_string());
        Publication { headers, payload: Record::encode(sealed) }
    }

    fn request(&self) -> Request {
        Request::new()
            .headers(self.headers.clone())
            .payload(self.payload.clone().into())
            .timeout(Some(ANSWER_TIMEOUT))
    }
}

fn old_server(error: OpenError) -> AppendError {
    AppendError::Refused { cause: error.to_string() }
}

fn unread(error: ReadError) -> AppendError {
    match error {
        ReadError::Unavailable { cause } => AppendError::Unknown { cause },
        damaged @ ReadError::Damaged { .. } => AppendError::Refused { cause: damaged.to_string() },
    }
}

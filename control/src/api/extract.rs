//! What handlers take from a request, with answers that say what was wrong with it.

use super::authenticate::Caller;
use super::failure::Failure;
use super::requests::{self, ChangeQuery};
use crate::service::Context;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use uuid::{Builder, Uuid};
use voute_schemas::commit::{IDEMPOTENCY_KEY_MAX, Origin, REASON_MAX};
use voute_schemas::{CorrelationId, Hash};

/// Largest body, bytes.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;

/// A query string, unknown parameters refused.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        query(parts).map(Query)
    }
}

fn query<T: DeserializeOwned>(parts: &Parts) -> Result<T, Failure> {
    let query = axum::extract::Query::<T>::try_from_uri(&parts.uri);
    query.map(|query| query.0).map_err(|error| {
        Failure::bad_request(
            "bad-query",
            error.body_text(),
            "the parameters of each route are in /v1/openapi.json",
        )
    })
}

/// A changing request: who, why, and what.
pub(crate) struct Change<B> {
    /// The body.
    pub(crate) body: B,
    /// Query.
    pub(crate) query: ChangeQuery,
    /// For the commit.
    pub(crate) context: Context,
}

impl Change<()> {
    /// Query parameters that every changing route takes.
    pub(crate) const QUERY: &[&str] = &["plan", "force"];
}

impl<S: Sync, B: DeserializeOwned + 'static> FromRequest<S> for Change<B> {
    type Rejection = Failure;
    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let caller = parts.extensions.get::<Caller>();
        let caller = caller.ok_or_else(|| Failure::unauthenticated("no caller"))?.clone();
        let query: ChangeQuery = query(&parts)?;
        let bytes = read_body(body).await?;
        let mut context = Context::api(caller.actor(), caller.source);
        context.origin = origin(&parts)?;
        context.reason = text_header(&parts, requests::REASON, REASON_MAX)?.unwrap_or_default();
        if let Some(key) = text_header(&parts, requests::IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_MAX)? {
            context.correlation = fingerprint(&caller, &parts, query.force, &bytes, &key);
            context.idempotency_key = Some(key);
        }
        Ok(Change { body: parse(&bytes)?, query, context })
    }
}

async fn read_body(body: Body) -> Result<Vec<u8>, Failure> {
    let bytes = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| {
        Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            format!("the body is longer than {BODY_BYTES_MAX} bytes, or broke off"),
            "send less at once",
        )
    })?;
    Ok(bytes.to_vec())
}

/// An absent body reads as `null`, which only routes without a body take.
fn parse<B: DeserializeOwned>(bytes: &[u8]) -> Result<B, Failure> {
    let bytes = if bytes.is_empty() { b"null" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| {
        Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad-body",
            format!("the body is not what this route takes: {error}"),
            "the bodies of each route are in /v1/openapi.json",
        )
    })
}

/// The same key with the same request gives the same correlation; that is how a repetition is told
/// from another request under a used key.
fn fingerprint(
    caller: &Caller,
    parts: &Parts,
    force: bool,
    body: &[u8],
    key: &str,
) -> CorrelationId {
    let mut material = Vec::with_capacity(body.len() + 256);
    for part in [parts.method.as_str().as_bytes(), parts.uri.path().as_bytes(), key.as_bytes()] {
        material.extend_from_slice(&(part.len() as u64).to_be_bytes());
        material.extend_from_slice(part);
    }
    material.extend_from_slice(&caller.credential.bytes());
    material.push(u8::from(force));
    material.extend_from_slice(body);
    let digest = Hash::of(&material).0;
    let bytes: [u8; 16] = digest[..16].try_into().expect("a digest has 32 bytes");
    let uuid: Uuid = Builder::from_custom_bytes(bytes).into_uuid();
    CorrelationId(uuid)
}

fn origin(parts: &Parts) -> Result<Origin, Failure> {
    let text = text_header(parts, requests::ORIGIN, 32)?;
    Ok(match text.as_deref() {
        Some("cli") => Origin::CommandLine,
        Some("console") => Origin::Console,
        _ => Origin::Api,
    })
}

fn text_header(parts: &Parts, name: &str, length_max: usize) -> Result<Option<String>, Failure> {
    let Some(value) = parts.headers.get(name) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(value.as_bytes()).ok().filter(|text| text.len() <= length_max);
    match text.map(str::trim) {
        Some("") => Ok(None),
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(Failure::bad_request(
            "bad-header",
            format!("header {name} is no UTF-8 text of at most {length_max} bytes"),
            "shorten it",
        )),
    }
}

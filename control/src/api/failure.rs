//! How a request fails: a status, a stable word, what is the matter and what to do.

use super::answers::Problem;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// A failed request.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) problem: Problem,
}

impl Failure {
    pub(crate) fn new(
        status: StatusCode,
        code: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let problem = Problem {
            code: code.into(),
            message: message.into(),
            hint: hint.into(),
            sequence: None,
        };
        Failure { status, problem }
    }

    pub(crate) fn bad_request(code: &str, message: impl Into<String>, hint: &str) -> Self {
        Failure::new(StatusCode::BAD_REQUEST, code, message, hint)
    }

    pub(crate) fn unauthenticated(message: &str) -> Self {
        Failure::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            message,
            "send `Authorization: Bearer TOKEN`; the first token is in `admin.token` of the data directory",
        )
    }

    pub(crate) fn not_found(noun: &str, reference: &str) -> Self {
        Failure::new(
            StatusCode::NOT_FOUND,
            format!("unknown-{noun}"),
            format!("there is no {noun} {reference:?}"),
            format!("`voute {noun} list` shows what there is"),
        )
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "log-unavailable",
            message,
            "check the log (`voute status`); repeating the request with the same idempotency key is safe",
        )
    }

    pub(crate) fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "a request failed for an internal reason");
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            error.to_string(),
            "see the control process's own log",
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let unauthenticated = self.status == StatusCode::UNAUTHORIZED;
        let mut response = (self.status, Json(self.problem)).into_response();
        if unauthenticated {
            let challenge = HeaderValue::from_static("Bearer realm=\"voute\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

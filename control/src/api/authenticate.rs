//! Who asks, and whether the role suffices: before anything of the request is read.

use super::App;
use super::failure::Failure;
use crate::access;
use crate::connections::Peer;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use voute_schemas::commit::Actor;
use voute_schemas::event::Role;
use voute_schemas::{CredentialId, Hash};

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Required {
    /// Nothing: health for load balancers, the document itself.
    Nothing,
    /// At least this role.
    Role(Role),
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) credential: CredentialId,
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) source: Option<IpAddr>,
}

impl Caller {
    pub(crate) fn actor(&self) -> Actor {
        Actor::Credential { id: self.credential, name: self.name.clone() }
    }
}

/// Middleware: lets through who may, with a [`Caller`] in the request's extensions.
pub(crate) async fn authenticate(
    State((app, required)): State<(App, Required)>,
    mut request: Request,
    next: Next,
) -> Response {
    let Required::Role(role) = required else {
        return next.run(request).await;
    };
    let caller = match identify(&app, &request) {
        Ok(caller) => caller,
        Err(failure) => return failure.into_response(),
    };
    if caller.role < role {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        return forbid(&app, &caller, role, &method, &path).await.into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn identify(app: &App, request: &Request) -> Result<Caller, Failure> {
    let header = request
        .headers()
        .get(header::AUTHORIZATION)
        .ok_or_else(|| Failure::unauthenticated("the request has no bearer token"))?;
    let token = header.to_str().ok().and_then(access::bearer).ok_or_else(|| {
        Failure::unauthenticated("the Authorization header holds no bearer token")
    })?;
    let source =
        request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.0.ip());
    let presented = Hash::of(token.as_bytes());
    let found = app.service.read(|view| {
        let credentials = view.state.credentials();
        credentials
            .filter(|(_, credential)| access::is_same(&presented, &credential.verifier))
            .map(|(id, credential)| Caller {
                credential: id,
                name: credential.name.to_string(),
                role: credential.role,
                source,
            })
            .next()
    });
    found.ok_or_else(|| Failure::unauthenticated("the token is unknown or was revoked"))
}

/// Records attempts to change something without the right to: auditors ask for them.
async fn forbid(app: &App, caller: &Caller, role: Role, method: &Method, path: &str) -> Failure {
    let message = format!("{:?} {} may not do this; it needs {role:?}", caller.role, caller.name);
    let mut failure = Failure::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        message.clone(),
        "use a token with a higher role (`voute credential create`)",
    );
    if *method != Method::GET {
        let command = format!("{method} {path}");
        let context = crate::service::Context::api(caller.actor(), caller.source);
        failure.problem.sequence =
            app.service.record_refusal(context, command, "forbidden", message).await;
    }
    failure
}

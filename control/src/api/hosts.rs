//! Hosts and what they may use.

use super::answers::*;
use super::change::ChangeAnswer;
use super::extract::{Change, Query};
use super::failure::Failure;
use super::requests::*;
use super::{App, resolve};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use std::fmt;
use std::str::FromStr;
use voute_schemas::Command;
use voute_schemas::Name;
use voute_schemas::event::{HostIdentity, HostKeys};
use voute_schemas::ids::*;

pub(super) async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<HostView>>, Failure> {
    app.look(|sight| {
        resolve::page(&query, sight.state.hosts().map(|(id, _)| id), |id| sight.host(id))
    })
    .map(Json)
}

pub(super) async fn show(
    State(app): State<App>,
    Path(host): Path<Reference>,
) -> Result<Json<HostView>, Failure> {
    app.look(|sight| {
        let id = resolve::host(sight.state, &host)?;
        sight.host(id).ok_or_else(|| Failure::not_found("host", &host.0)).map(Json)
    })
}

pub(super) async fn add(State(app): State<App>, change: Change<CreateHost>) -> ChangeAnswer {
    app.change(change, "AddHost", None, |_, body| {
        let CreateHost { name, nqns, iqns, chap_secret } = body;
        known_secret(&app, chap_secret.as_ref())?;
        let identity = HostIdentity { nqns, iqns, chap_secret };
        Ok(Command::AddHost { host: HostId::generate(), name, identity })
    })
    .await
}

pub(super) async fn change(
    State(app): State<App>,
    Path(host): Path<Reference>,
    change: Change<ChangeHost>,
) -> ChangeAnswer {
    app.change(change, "ChangeHost", None, |state, body| {
        let ChangeHost { nqns, iqns, chap_secret } = body;
        known_secret(&app, chap_secret.as_ref())?;
        let identity = HostIdentity { nqns, iqns, chap_secret };
        Ok(Command::ChangeHost { host: resolve::host(state, &host)?, identity })
    })
    .await
}

pub(super) async fn change_keys(
    State(app): State<App>,
    Path(host): Path<Reference>,
    change: Change<ChangeHostKeys>,
) -> ChangeAnswer {
    app.change(change, "ChangeHostKeys", None, |state, body| {
        let ChangeHostKeys { secret, target_secret } = body;
        for name in [&secret, &target_secret].into_iter().flatten() {
            known_key(&app, name)?;
        }
        let keys = HostKeys { secret, target_secret };
        Ok(Command::ChangeHostKeys { host: resolve::host(state, &host)?, keys })
    })
    .await
}

/// A secret that NVMe can use is one of its own textual form.
fn known_key(app: &App, name: &Name) -> Result<(), Failure> {
    match app.secrets.get(name.as_str()) {
        Ok(Some(secret)) if secret.starts_with("DHHC-1:") => Ok(()),
        Ok(Some(_)) => Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad-secret",
            format!("{name} is no secret for NVMe: those are written DHHC-1:hh:base64:"),
            "make one with `nvme gen-dhchap-key` and keep it with `voute secret put`",
        )),
        Ok(None) => Err(Failure::not_found("secret", name.as_str())),
        Err(error) => Err(Failure::internal(&error)),
    }
}

/// A host that must prove a secret which nobody keeps could never log in.
fn known_secret(app: &App, name: Option<&Name>) -> Result<(), Failure> {
    let Some(name) = name else { return Ok(()) };
    match app.secrets.get(name.as_str()) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Failure::not_found("secret", name.as_str())),
        Err(error) => Err(Failure::internal(&error)),
    }
}

pub(super) async fn remove(
    State(app): State<App>,
    Path(host): Path<Reference>,
    change: Change<()>,
) -> ChangeAnswer {
    app.change(change, "RemoveHost", None, |state, ()| {
        Ok(Command::RemoveHost { host: resolve::host(state, &host)? })
    })
    .await
}

/// A volume and a host, as the place in a list of mappings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct MappingKey(VolumeId, HostId);

impl fmt::Display for MappingKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.0, self.1)
    }
}

impl FromStr for MappingKey {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (volume, host) = text.split_once(':').ok_or(())?;
        Ok(MappingKey(volume.parse().map_err(|_| ())?, host.parse().map_err(|_| ())?))
    }
}

pub(super) async fn mappings(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<MappingView>>, Failure> {
    app.look(|sight| {
        let keys = sight.state.mappings().map(|(volume, host, _)| MappingKey(volume, host));
        resolve::page(&query, keys, |MappingKey(volume, host)| sight.mapping(volume, host))
    })
    .map(Json)
}

pub(super) async fn map(State(app): State<App>, change: Change<CreateMapping>) -> ChangeAnswer {
    app.change(change, "MapVolume", None, |state, body| {
        Ok(Command::MapVolume {
            volume: resolve::volume(state, &body.volume)?,
            host: resolve::host(state, &body.host)?,
            lun: body.lun,
            read_only: body.read_only,
        })
    })
    .await
}

pub(super) async fn unmap(
    State(app): State<App>,
    Path((volume, host)): Path<(Reference, Reference)>,
    change: Change<()>,
) -> ChangeAnswer {
    app.change(change, "UnmapVolume", None, |state, ()| {
        let volume = resolve::volume(state, &volume)?;
        Ok(Command::UnmapVolume { volume, host: resolve::host(state, &host)? })
    })
    .await
}

//! Volumes and their legs.

use super::answers::*;
use super::change::ChangeAnswer;
use super::extract::{Change, Query};
use super::failure::Failure;
use super::requests::*;
use super::{App, resolve};
use crate::service::unix_ms;
use crate::stream;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use voute_schemas::Command;
use voute_schemas::command::LegRequest;
use voute_schemas::event::Presentation;
use voute_schemas::ids::*;

pub(super) async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<VolumeView>>, Failure> {
    app.look(|sight| {
        resolve::page(&query, sight.state.volumes().map(|(id, _)| id), |id| sight.volume(id))
    })
    .map(Json)
}

pub(super) async fn show(
    State(app): State<App>,
    Path(volume): Path<Reference>,
) -> Result<Json<VolumeView>, Failure> {
    app.look(|sight| {
        let id = resolve::volume(sight.state, &volume)?;
        sight.volume(id).ok_or_else(|| Failure::not_found("volume", &volume.0)).map(Json)
    })
}

pub(super) async fn create(State(app): State<App>, change: Change<CreateVolume>) -> ChangeAnswer {
    app.change(change, "CreateVolume", None, |state, body| {
        let leg =
            |pool| Ok(LegRequest { leg: LegId::generate(), pool: resolve::pool(state, pool)? });
        Ok(Command::CreateVolume {
            volume: VolumeId::generate(),
            group: GroupId::generate(),
            name: body.name,
            size_bytes: body.size_bytes,
            block_bytes: body.block_bytes.unwrap_or(BLOCK_BYTES_DEFAULT),
            legs: body.pools.iter().map(leg).collect::<Result<_, Failure>>()?,
            policy: body.policy.as_ref().map(|it| resolve::policy(state, it)).transpose()?,
        })
    })
    .await
}

pub(super) async fn resize(
    State(app): State<App>,
    Path(volume): Path<Reference>,
    change: Change<ResizeVolume>,
) -> ChangeAnswer {
    app.change(change, "ResizeVolume", None, |state, body| {
        let volume = resolve::volume(state, &volume)?;
        Ok(Command::ResizeVolume { volume, size_bytes: body.size_bytes })
    })
    .await
}

pub(super) async fn present(
    State(app): State<App>,
    Path(volume): Path<Reference>,
    change: Change<PresentVolume>,
) -> ChangeAnswer {
    app.change(change, "PresentVolume", None, |state, body| {
        let PresentVolume { thin, physical_block_bytes } = body;
        let presentation = Presentation { thin, physical_block_bytes };
        Ok(Command::PresentVolume { volume: resolve::volume(state, &volume)?, presentation })
    })
    .await
}

pub(super) async fn delete(
    State(app): State<App>,
    Path(reference): Path<Reference>,
    change: Change<()>,
) -> ChangeAnswer {
    let force = change.query.force;
    app.change(change, "DeleteVolume", None, |state, ()| {
        let volume = resolve::volume(state, &reference)?;
        let last_used = app.look(|sight| sight.last_use(volume));
        let now_unix_ms = unix_ms();
        Ok(Command::DeleteVolume { volume, force, last_used, now_unix_ms })
    })
    .await
}

pub(super) async fn add_leg(
    State(app): State<App>,
    Path(volume): Path<Reference>,
    change: Change<AddLeg>,
) -> ChangeAnswer {
    app.change(change, "AddLeg", None, |state, body| {
        let volume = resolve::volume(state, &volume)?;
        let pool = resolve::pool(state, &body.pool)?;
        Ok(Command::AddLeg { volume, leg: LegRequest { leg: LegId::generate(), pool } })
    })
    .await
}

pub(super) async fn remove_leg(
    State(app): State<App>,
    Path((volume, leg)): Path<(Reference, Reference)>,
    change: Change<()>,
) -> ChangeAnswer {
    let force = change.query.force;
    let is_served = |app: &App, volume| {
        let state = app.service.state();
        let times = (&app.times, app.observed.now());
        state
            .volume(volume)
            .is_none_or(|it| stream::is_served(&state, &app.observed.nodes(), times, it.group))
    };
    if !force && let Ok(id) = resolve::volume(&app.service.state(), &volume) {
        app.until_said(|app| is_served(app, id)).await;
    }
    app.change(change, "RemoveLeg", None, |state, ()| {
        let id = resolve::volume(state, &volume)?;
        let leg = resolve::leg(state, id, &leg)?;
        if !force && !is_served(&app, id) {
            return Err(Failure::new(
                StatusCode::CONFLICT,
                "not-served",
                format!("the owner of volume {volume} does not serve it: the leg may be the last good one"),
                "bring the owner back first; or insist with `--force`",
            ));
        }
        Ok(Command::RemoveLeg { volume: id, leg })
    })
    .await
}

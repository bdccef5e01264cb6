//! Comparing the legs of volumes, when told and by a schedule.

use super::answers::*;
use super::change::ChangeAnswer;
use super::extract::Change;
use super::failure::Failure;
use super::requests::*;
use super::{App, resolve};
use crate::service::unix_ms;
use axum::Json;
use axum::extract::{Path, State};
use voute_schemas::Command;

pub(super) async fn verify(
    State(app): State<App>,
    Path(volume): Path<Reference>,
    change: Change<VerifyVolume>,
) -> ChangeAnswer {
    app.change(change, "VerifyVolume", None, |state, body| {
        let volume = resolve::volume(state, &volume)?;
        Ok(Command::VerifyVolume { volume, repair: body.repair, now_unix_ms: unix_ms() })
    })
    .await
}

pub(super) async fn scrub(State(app): State<App>) -> Result<Json<ScrubView>, Failure> {
    app.look(|sight| {
        let scrub = sight.state.scrub();
        Ok(Json(ScrubView { every_hours: scrub.every_hours, repair: scrub.repair }))
    })
}

pub(super) async fn schedule(
    State(app): State<App>,
    change: Change<ScheduleScrub>,
) -> ChangeAnswer {
    app.change(change, "ScheduleScrub", None, |_, body| {
        Ok(Command::ScheduleScrub { every_hours: body.every_hours, repair: body.repair })
    })
    .await
}

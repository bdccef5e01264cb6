//! Sites, nodes, pools, devices.

use super::answers::*;
use super::change::ChangeAnswer;
use super::extract::{Change, Query};
use super::failure::Failure;
use super::requests::*;
use super::{App, resolve};
use crate::access;
use axum::Json;
use axum::extract::{Path, State};
use voute_schemas::Command;
use voute_schemas::ids::*;
use voute_schemas::place::Portals;

pub(super) async fn sites(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<SiteView>>, Failure> {
    app.look(|sight| {
        resolve::page(&query, sight.state.sites().map(|(id, _)| id), |id| sight.site(id))
    })
    .map(Json)
}

pub(super) async fn site(
    State(app): State<App>,
    Path(site): Path<Reference>,
) -> Result<Json<SiteView>, Failure> {
    app.look(|sight| {
        let id = resolve::site(sight.state, &site)?;
        sight.site(id).ok_or_else(|| Failure::not_found("site", &site.0)).map(Json)
    })
}

pub(super) async fn add_site(State(app): State<App>, change: Change<CreateSite>) -> ChangeAnswer {
    app.change(change, "AddSite", None, |_, body| {
        Ok(Command::AddSite { site: SiteId::generate(), name: body.name, kind: body.kind })
    })
    .await
}

pub(super) async fn remove_site(
    State(app): State<App>,
    Path(site): Path<Reference>,
    change: Change<()>,
) -> ChangeAnswer {
    app.change(change, "RemoveSite", None, |state, ()| {
        Ok(Command::RemoveSite { site: resolve::site(state, &site)? })
    })
    .await
}

pub(super) async fn nodes(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<NodeView>>, Failure> {
    app.look(|sight| {
        resolve::page(&query, sight.state.nodes().map(|(id, _)| id), |id| sight.node(id))
    })
    .map(Json)
}

pub(super) async fn node(
    State(app): State<App>,
    Path(node): Path<Reference>,
) -> Result<Json<NodeView>, Failure> {
    app.look(|sight| {
        let id = resolve::node(sight.state, &node)?;
        sight.node(id).ok_or_else(|| Failure::not_found("node", &node.0)).map(Json)
    })
}

pub(super) async fn add_node(State(app): State<App>, change: Change<CreateNode>) -> ChangeAnswer {
    let secret = access::fresh("vns_").map_err(|error| Failure::internal(&error))?;
    let verifier = secret.verifier;
    app.change(change, "AddNode", Some(secret.text), |state, body| {
        let portals = Portals { nvme: body.nvme, iscsi: body.iscsi, link: body.link };
        let site = resolve::site(state, &body.site)?;
        Ok(Command::AddNode { node: NodeId::generate(), name: body.name, site, portals, verifier })
    })
    .await
}

pub(super) async fn change_portals(
    State(app): State<App>,
    Path(node): Path<Reference>,
    change: Change<ChangeNodePortals>,
) -> ChangeAnswer {
    app.change(change, "ChangeNodePortals", None, |state, body| {
        let node = resolve::node(state, &node)?;
        Ok(Command::ChangeNodePortals { node, portals: body.portals })
    })
    .await
}

pub(super) async fn remove_node(
    State(app): State<App>,
    Path(node): Path<Reference>,
    change: Change<()>,
) -> ChangeAnswer {
    app.change(change, "RemoveNode", None, |state, ()| {
        Ok(Command::RemoveNode { node: resolve::node(state, &node)? })
    })
    .await
}

pub(super) async fn pools(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<PoolView>>, Failure> {
    app.look(|sight| {
        resolve::page(&query, sight.state.pools().map(|(id, _)| id), |id| sight.pool(id))
    })
    .map(Json)
}

pub(super) async fn pool(
    State(app): State<App>,
    Path(pool): Path<Reference>,
) -> Result<Json<PoolView>, Failure> {
    app.look(|sight| {
        let id = resolve::pool(sight.state, &pool)?;
        sight.pool(id).ok_or_else(|| Failure::not_found("pool", &pool.0)).map(Json)
    })
}

pub(super) async fn create_pool(
    State(app): State<App>,
    change: Change<CreatePool>,
) -> ChangeAnswer {
    app.change(change, "CreatePool", None, |state, body| {
        let site = resolve::site(state, &body.site)?;
        let extent_bytes = body.extent_bytes.unwrap_or(EXTENT_BYTES_DEFAULT);
        Ok(Command::CreatePool { pool: PoolId::generate(), name: body.name, site, extent_bytes })
    })
    .await
}

pub(super) async fn remove_pool(
    State(app): State<App>,
    Path(pool): Path<Reference>,
    change: Change<()>,
) -> ChangeAnswer {
    app.change(change, "RemovePool", None, |state, ()| {
        Ok(Command::RemovePool { pool: resolve::pool(state, &pool)? })
    })
    .await
}

pub(super) async fn devices(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<DeviceView>>, Failure> {
    app.look(|sight| {
        resolve::page(&query, sight.state.devices().map(|(id, _)| id), |id| sight.device(id))
    })
    .map(Json)
}

pub(super) async fn device(
    State(app): State<App>,
    Path(device): Path<Reference>,
) -> Result<Json<DeviceView>, Failure> {
    app.look(|sight| {
        let id = resolve::device(sight.state, &device)?;
        sight.device(id).ok_or_else(|| Failure::not_found("device", &device.0)).map(Json)
    })
}

pub(super) async fn add_device(
    State(app): State<App>,
    change: Change<CreateDevice>,
) -> ChangeAnswer {
    app.change(change, "AddDevice", None, |state, body| {
        Ok(Command::AddDevice {
            device: DeviceId::generate(),
            name: body.name,
            node: resolve::node(state, &body.node)?,
            pool: resolve::pool(state, &body.pool)?,
            locator: body.locator,
            overwrite: body.overwrite,
        })
    })
    .await
}

pub(super) async fn remove_device(
    State(app): State<App>,
    Path(device): Path<Reference>,
    change: Change<()>,
) -> ChangeAnswer {
    app.change(change, "RemoveDevice", None, |state, ()| {
        Ok(Command::RemoveDevice { device: resolve::device(state, &device)? })
    })
    .await
}

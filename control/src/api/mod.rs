//! The REST API under `/v1`.

pub mod answers;
mod armed;
mod audit;
mod authenticate;
mod authority;
mod change;
mod checks;
mod extract;
mod failure;
mod hosts;
mod inventory;
mod log_sites;
mod overview;
pub mod requests;
mod resolve;
mod routes;
mod views;
mod volumes;

use crate::observed::Observed;
use crate::secrets::Secrets;
use crate::service::Service;
use crate::sharing::Sharing;
use crate::stream::Streams;
use crate::watcher::lease::Holder;
use answers::*;
use authenticate::Required;
use axum::Router;
use failure::Failure;
use requests::*;
use routes::Routes;
use std::sync::Arc;
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::HttpMethod::{Delete, Post, Put};
use views::Sight;
use voute_events::Safety;
use voute_schemas::event::Role::{Administrator, Auditor, Operator, Viewer};
use voute_schemas::times::Times;

/// Media type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text";
const EVENT_STREAM: &str = "text/event-stream";

/// What handlers work with.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) service: Service,
    pub(crate) observed: Arc<Observed>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) sharing: Arc<Sharing>,
    pub(crate) times: Times,
    pub(crate) audits: Arc<audit::Audits>,
    /// Whether the log is safe enough for groups to move by themselves, as far as this process knows.
    pub(crate) safety: tokio::sync::watch::Sender<Safety>,
    /// Which control process watches the sites.
    pub(crate) watch_holder: tokio::sync::watch::Sender<Holder>,
    /// Whether this process watches the sites.
    pub(crate) watches: tokio::sync::watch::Sender<bool>,
    /// Turns true when this process ends.
    pub(crate) stopping: tokio::sync::watch::Receiver<bool>,
}

impl App {
    /// Waits until nodes say something, but not for long: they report several times a second.
    async fn until_said(&self, is_said: impl Fn(&App) -> bool) {
        let enough = tokio::time::Instant::now() + std::time::Duration::from_secs(2);
        while !is_said(self) && tokio::time::Instant::now() < enough {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Looks at the state and the nodes at this moment.
    fn look<T>(&self, view: impl FnOnce(&Sight<'_>) -> T) -> T {
        let state = self.service.state();
        let nodes = self.observed.nodes();
        let silence = std::time::Duration::from_millis(self.times.node_silence_ms);
        let safety = self.safety.borrow().clone();
        let condition = self.service.condition().borrow().clone();
        view(&Sight {
            state: &state,
            nodes: &nodes,
            now: self.observed.now(),
            silence,
            safety: &safety,
            watch_holder: &self.watch_holder.borrow().clone(),
            log_trouble: condition.trouble().cloned(),
        })
    }
}

/// All routes, and the document that describes them.
pub(crate) fn router(app: &App) -> (Router<App>, OpenApi) {
    let routes = Routes::new(app.clone());
    let routes = inventory(overview(routes));
    let routes = authority(hosts(volumes(routes)));
    routes.finish()
}

fn overview(routes: Routes) -> Routes {
    routes
        .get::<ClusterView, _, _>("/v1/cluster", Viewer, "Shows the cluster", overview::cluster)
        .get::<StatusView, _, _>("/v1/status", Viewer, "How everything is", overview::status)
        .text(
            "/v1/health",
            Required::Nothing,
            "Whether this control process serves: 200, or 503 with the cause",
            "text/plain",
            &[],
            overview::health,
        )
        .text("/v1/metrics", Required::Role(Viewer), "Metrics", OPENMETRICS, &[], overview::metrics)
        .text(
            "/v1/openapi.json",
            Required::Nothing,
            "This document",
            "application/json",
            &[],
            overview::openapi,
        )
        .text(
            "/v1/feed",
            Required::Role(Auditor),
            "Commits as they happen, as server-sent events; `id` is the commit's number",
            EVENT_STREAM,
            &["from"],
            audit::feed,
        )
        .query::<AuditPage, _, _>(
            "/v1/audit",
            Auditor,
            "Searches the log",
            &["from", "to", "actor", "command", "outcome", "entity", "text", "limit"],
            audit::search,
        )
        .get::<Verification, _, _>(
            "/v1/audit/verify",
            Auditor,
            "Reads the whole log, verifies its chain and checkpoint, and that replaying it gives the live state; 503 `not-provable` if that cannot be found out now",
            audit::verify,
        )
}

fn inventory(routes: Routes) -> Routes {
    routes
        .list::<SiteView, _, _>("/v1/sites", Viewer, "Lists sites", inventory::sites)
        .change::<CreateSite, Changed, _, _>(
            Post,
            "/v1/sites",
            Administrator,
            "Adds a site",
            inventory::add_site,
        )
        .get::<SiteView, _, _>("/v1/sites/{site}", Viewer, "Shows a site", inventory::site)
        .change::<(), Changed, _, _>(
            Delete,
            "/v1/sites/{site}",
            Administrator,
            "Removes a site",
            inventory::remove_site,
        )
        .change::<SignalSite, Changed, _, _>(
            Post,
            "/v1/sites/{site}/signal",
            Operator,
            "Reports a site's condition",
            authority::signal_site,
        )
        .change::<FailOverSite, Changed, _, _>(
            Post,
            "/v1/sites/{site}/failover",
            Operator,
            "Moves away what the site owns",
            authority::fail_over_site,
        )
        .list::<NodeView, _, _>("/v1/nodes", Viewer, "Lists nodes", inventory::nodes)
        .change::<CreateNode, Changed, _, _>(
            Post,
            "/v1/nodes",
            Administrator,
            "Admits a node; answers with its secret, once",
            inventory::add_node,
        )
        .get::<NodeView, _, _>("/v1/nodes/{node}", Viewer, "Shows a node", inventory::node)
        .change::<(), Changed, _, _>(
            Delete,
            "/v1/nodes/{node}",
            Administrator,
            "Removes a node",
            inventory::remove_node,
        )
        .change::<ChangeNodePortals, Changed, _, _>(
            Put,
            "/v1/nodes/{node}/portals",
            Administrator,
            "Says where a node listens",
            inventory::change_portals,
        )
        .list::<PoolView, _, _>("/v1/pools", Viewer, "Lists pools", inventory::pools)
        .change::<CreatePool, Changed, _, _>(
            Post,
            "/v1/pools",
            Administrator,
            "Creates a pool",
            inventory::create_pool,
        )
        .get::<PoolView, _, _>("/v1/pools/{pool}", Viewer, "Shows a pool", inventory::pool)
        .change::<(), Changed, _, _>(
            Delete,
            "/v1/pools/{pool}",
            Administrator,
            "Removes a pool",
            inventory::remove_pool,
        )
        .list::<DeviceView, _, _>("/v1/devices", Viewer, "Lists devices", inventory::devices)
        .change::<CreateDevice, Changed, _, _>(
            Post,
            "/v1/devices",
            Administrator,
            "Adds a device to a pool",
            inventory::add_device,
        )
        .get::<DeviceView, _, _>(
            "/v1/devices/{device}",
            Viewer,
            "Shows a device",
            inventory::device,
        )
        .change::<(), Changed, _, _>(
            Delete,
            "/v1/devices/{device}",
            Administrator,
            "Removes a device",
            inventory::remove_device,
        )
}

fn volumes(routes: Routes) -> Routes {
    routes
        .list::<VolumeView, _, _>("/v1/volumes", Viewer, "Lists volumes", volumes::list)
        .change::<CreateVolume, Changed, _, _>(
            Post,
            "/v1/volumes",
            Operator,
            "Creates a volume",
            volumes::create,
        )
        .get::<VolumeView, _, _>("/v1/volumes/{volume}", Viewer, "Shows a volume", volumes::show)
        .change::<(), Changed, _, _>(
            Delete,
            "/v1/volumes/{volume}",
            Operator,
            "Deletes a volume",
            volumes::delete,
        )
        .change::<ResizeVolume, Changed, _, _>(
            Put,
            "/v1/volumes/{volume}/size",
            Operator,
            "Grows a volume",
            volumes::resize,
        )
        .change::<PresentVolume, Changed, _, _>(
            Put,
            "/v1/volumes/{volume}/presentation",
            Operator,
            "Says what a volume tells hosts of how it keeps its blocks",
            volumes::present,
        )
        .change::<VerifyVolume, Changed, _, _>(
            Post,
            "/v1/volumes/{volume}/verification",
            Operator,
            "Compares a volume's legs",
            checks::verify,
        )
        .get::<ScrubView, _, _>(
            "/v1/scrub",
            Viewer,
            "Says how often mirrored volumes are compared",
            checks::scrub,
        )
        .change::<ScheduleScrub, Changed, _, _>(
            Put,
            "/v1/scrub",
            Operator,
            "Changes how often mirrored volumes are compared",
            checks::schedule,
        )
        .change::<AddLeg, Changed, _, _>(
            Post,
            "/v1/volumes/{volume}/legs",
            Operator,
            "Adds a leg",
            volumes::add_leg,
        )
        .change::<(), Changed, _, _>(
            Delete,
            "/v1/volumes/{volume}/legs/{leg}",
            Operator,
            "Removes a leg, by its identifier or its site",
            volumes::remove_leg,
        )
}

fn hosts(routes: Routes) -> Routes {
    routes
        .list::<HostView, _, _>("/v1/hosts", Viewer, "Lists hosts", hosts::list)
        .change::<CreateHost, Changed, _, _>(Post, "/v1/hosts", Operator, "Adds a host", hosts::add)
        .get::<HostView, _, _>("/v1/hosts/{host}", Viewer, "Shows a host", hosts::show)
        .change::<ChangeHost, Changed, _, _>(
            Put,
            "/v1/hosts/{host}",
            Operator,
            "Says how a host is recognised",
            hosts::change,
        )
        .change::<ChangeHostKeys, Changed, _, _>(
            Put,
            "/v1/hosts/{host}/keys",
            Operator,
            "Says what a host must prove over NVMe",
            hosts::change_keys,
        )
        .change::<(), Changed, _, _>(
            Delete,
            "/v1/hosts/{host}",
            Operator,
            "Removes a host",
            hosts::remove,
        )
        .list::<MappingView, _, _>("/v1/mappings", Viewer, "Lists mappings", hosts::mappings)
        .change::<CreateMapping, Changed, _, _>(
            Post,
            "/v1/mappings",
            Operator,
            "Grants a volume to a host",
            hosts::map,
        )
        .change::<(), Changed, _, _>(
            Delete,
            "/v1/mappings/{volume}/{host}",
            Operator,
            "Ends a grant",
            hosts::unmap,
        )
}

fn authority(routes: Routes) -> Routes {
    routes
        .list::<LogSiteView, _, _>(
            "/v1/log-sites",
            Viewer,
            "Lists the log's sites and what they signed",
            log_sites::list,
        )
        .change::<ChangeLogSites, Changed, _, _>(
            Post,
            "/v1/log-sites",
            Administrator,
            "Adds and removes sites of the log, each by a commit of its own",
            log_sites::change,
        )
        .list::<PolicyView, _, _>(
            "/v1/policies",
            Viewer,
            "Lists failover policies",
            authority::policies,
        )
        .change::<CreatePolicy, Changed, _, _>(
            Post,
            "/v1/policies",
            Administrator,
            "Creates a policy",
            authority::create_policy,
        )
        .get::<PolicyView, _, _>(
            "/v1/policies/{policy}",
            Viewer,
            "Shows a policy",
            authority::policy,
        )
        .change::<ChangePolicy, Changed, _, _>(
            Put,
            "/v1/policies/{policy}",
            Administrator,
            "Changes a policy",
            authority::change_policy,
        )
        .change::<(), Changed, _, _>(
            Delete,
            "/v1/policies/{policy}",
            Administrator,
            "Removes a policy",
            authority::remove_policy,
        )
        .change::<MoveGroup, Changed, _, _>(
            Post,
            "/v1/groups/{group}/move",
            Operator,
            "Moves a group's owner, planned; no request is lost",
            authority::move_group,
        )
        .list::<FailoverView, _, _>(
            "/v1/failovers",
            Viewer,
            "Lists failovers",
            authority::failovers,
        )
        .get::<FailoverView, _, _>(
            "/v1/failovers/{failover}",
            Viewer,
            "Shows a failover",
            authority::failover,
        )
        .list::<CredentialView, _, _>(
            "/v1/credentials",
            Administrator,
            "Lists credentials",
            authority::credentials,
        )
        .change::<CreateCredential, Changed, _, _>(
            Post,
            "/v1/credentials",
            Administrator,
            "Issues a credential; answers with its token, once",
            authority::issue_credential,
        )
        .change::<(), Changed, _, _>(
            Delete,
            "/v1/credentials/{credential}",
            Administrator,
            "Revokes a credential",
            authority::revoke_credential,
        )
        .get::<SecretNames, _, _>(
            "/v1/secrets",
            Administrator,
            "Names the secrets that this process keeps",
            authority::secrets,
        )
        .change::<PutSecret, SecretNames, _, _>(
            Put,
            "/v1/secrets/{name}",
            Administrator,
            "Keeps a CHAP secret, outside the log",
            authority::put_secret,
        )
        .change::<(), SecretNames, _, _>(
            Delete,
            "/v1/secrets/{name}",
            Administrator,
            "Forgets a secret",
            authority::delete_secret,
        )
}

/// An unknown path.
pub(crate) async fn unknown_route(uri: axum::http::Uri) -> Failure {
    Failure::new(
        axum::http::StatusCode::NOT_FOUND,
        "unknown-route",
        format!("there is nothing at {}", uri.path()),
        "all routes are in /v1/openapi.json",
    )
}

/// A known path with another method.
pub(crate) async fn unknown_method(method: axum::http::Method, uri: axum::http::Uri) -> Failure {
    Failure::new(
        axum::http::StatusCode::METHOD_NOT_ALLOWED,
        "unknown-method",
        format!("{method} is not possible at {}", uri.path()),
        "all routes are in /v1/openapi.json",
    )
}

//! Makes a node's spec of what is published: content, the checkpoint that covers it, and a proof
//! of each commit that made an epoch in it.

use crate::api::App;
use crate::domain::{NodeContent, SpecInputs, State, Touched, node_changes, node_spec};
use crate::service::View;
use std::collections::BTreeSet;
use voute_events::ReadError;
use voute_schemas::contract::NodeSpec;
use voute_schemas::{NodeId, Sequence};

/// Everything that the node should be.
pub(super) async fn full(app: &App, node: NodeId) -> Result<Option<NodeSpec>, ReadError> {
    let view = app.service.read(Clone::clone);
    let content = with_inputs(app, |inputs| node_spec(&view.state, node, inputs));
    finish(app, &view, content, true).await
}

/// What changed for it up to a published state.
pub(super) async fn delta(
    app: &App,
    node: NodeId,
    touched: &Touched,
    view: &View,
) -> Result<Option<NodeSpec>, ReadError> {
    let content = with_inputs(app, |inputs| node_changes(&view.state, node, touched, inputs));
    finish(app, view, content, false).await
}

fn with_inputs<T>(app: &App, make: impl FnOnce(&SpecInputs<'_>) -> T) -> T {
    let chap_secret = |name: &voute_schemas::Name| {
        app.secrets.get(name.as_str()).unwrap_or_else(|error| {
            tracing::error!(%error, "a host cannot log in by CHAP");
            None
        })
    };
    make(&SpecInputs {
        times: app.times,
        link_secret: &app.secrets.link_secret(),
        chap_secret: &chap_secret,
    })
}

async fn finish(
    app: &App,
    view: &View,
    content: Option<NodeContent>,
    full: bool,
) -> Result<Option<NodeSpec>, ReadError> {
    let Some(NodeContent { facts, groups, removed_groups }) = content else { return Ok(None) };
    let Some(cluster) = cluster_of(&view.state) else { return Ok(None) };
    let epochs: BTreeSet<Sequence> = groups.iter().map(|group| group.epoch.sequence).collect();
    let proofs = app.service.prove_all(&epochs, view.checkpoint_size).await?;
    let hand_overs = match facts {
        Some(_) => app.service.hand_overs(view).await?,
        None => Vec::new(),
    };
    let as_of = view.state.position();
    Ok(Some(NodeSpec {
        as_of_path: app.service.path_of(as_of, view.checkpoint_size)?,
        as_of,
        full,
        cluster,
        facts,
        hand_overs,
        checkpoint: view.checkpoint.clone(),
        proofs,
        groups,
        removed_groups,
    }))
}

fn cluster_of(state: &State) -> Option<voute_schemas::ClusterId> {
    state.cluster().map(|cluster| cluster.id)
}

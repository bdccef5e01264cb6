//! Sites, nodes, devices, pools.

use super::access::must_show_secret;
use super::{Session, check_secret_file, item, reference, write_secret};
use crate::api::waiting::{Step, wait_for};
use crate::cli::OutputFormat;
use crate::cli::nouns::{DeviceVerb, NodeVerb, PoolVerb, PortalArguments, SiteVerb};
use crate::cli::quantity::show_size;
use crate::print::line;
use anyhow::Context;
use std::net::SocketAddr;
use voute_control::api::answers::{DeviceView, NodeView, PoolView, SiteView};
use voute_control::api::requests::{
    ChangeNodePortals, CreateDevice, CreateNode, CreatePool, CreateSite, SignalSite,
};
use voute_schemas::place::Portals;

/// Ports when only an address is given.
const NVME_PORT: u16 = 4420;
const ISCSI_PORT: u16 = 3260;
const LINK_PORT: u16 = 4421;

impl Session<'_> {
    pub(super) fn site(&self, verb: SiteVerb) -> anyhow::Result<()> {
        match verb {
            SiteVerb::Add { name, kind } => {
                let changed = self
                    .client
                    .post("/v1/sites", &CreateSite { name: name.clone(), kind: kind.into() })?;
                self.report(&changed, &format!("site {name} added"))?;
            }
            SiteVerb::List => self.print_list::<SiteView>("/v1/sites")?,
            SiteVerb::Show { site } => self.print_one::<SiteView>(&item("sites", &site))?,
            SiteVerb::Remove { site } => {
                let changed = self.client.delete(&item("sites", &site))?;
                self.report(&changed, &format!("site {site} removed"))?;
            }
            SiteVerb::Signal { site, condition, detail } => {
                let body = SignalSite { condition: condition.into(), detail };
                let changed =
                    self.client.post(&format!("{}/signal", item("sites", &site)), &body)?;
                self.report(&changed, &format!("site {site} is now {:?}", body.condition))?;
            }
        }
        Ok(())
    }

    pub(super) fn node(&self, verb: NodeVerb) -> anyhow::Result<()> {
        match verb {
            NodeVerb::Add { name, site, portals, secret_out } => {
                check_secret_file(secret_out.as_deref())?;
                let Portals { nvme, iscsi, link } = resolve_portals(&portals)?;
                let body =
                    CreateNode { name: name.clone(), site: reference(&site), nvme, iscsi, link };
                let changed = self.client.post_for_secret("/v1/nodes", &body)?;
                must_show_secret(&changed, &format!("node {name}"), "node remove")?;
                let secret = changed.secret.clone().unwrap_or_default();
                let mut shown = changed;
                if let (Some(file), false) = (&secret_out, shown.plan || secret.is_empty()) {
                    write_secret(file, &secret)?;
                    shown.secret = None;
                }
                let committed = self.report(&shown, &format!("node {name} admitted"))?;
                if committed && self.options.output != OutputFormat::Json {
                    let id = shown.created.unwrap_or_default();
                    line(&format!("id      {id}"));
                    let file = match &secret_out {
                        Some(file) => file.display().to_string(),
                        None => {
                            line(&format!(
                                "secret  {secret}   (shown this once; put it into a file with mode 0600)"
                            ));
                            "SECRET-FILE".to_owned()
                        }
                    };
                    line(&format!(
                        "Run it there: voute node --id {id} --secret-file {file} --control {} --data-dir /var/lib/voute/node",
                        self.client.api()
                    ));
                }
            }
            NodeVerb::List => self.print_list::<NodeView>("/v1/nodes")?,
            NodeVerb::Show { node } => self.print_one::<NodeView>(&item("nodes", &node))?,
            NodeVerb::Portals { node, portals } => {
                let body = ChangeNodePortals { portals: resolve_portals(&portals)? };
                let changed =
                    self.client.put(&format!("{}/portals", item("nodes", &node)), &body)?;
                self.report(&changed, &format!("node {node} listens elsewhere"))?;
            }
            NodeVerb::Remove { node } => {
                let changed = self.client.delete(&item("nodes", &node))?;
                self.report(&changed, &format!("node {node} removed"))?;
            }
        }
        Ok(())
    }

    pub(super) fn pool(&self, verb: PoolVerb) -> anyhow::Result<()> {
        match verb {
            PoolVerb::Create { name, site, extent } => {
                let body =
                    CreatePool { name: name.clone(), site: reference(&site), extent_bytes: extent };
                let changed = self.client.post("/v1/pools", &body)?;
                self.report(&changed, &format!("pool {name} created"))?;
            }
            PoolVerb::List => self.print_list::<PoolView>("/v1/pools")?,
            PoolVerb::Show { pool } => self.print_one::<PoolView>(&item("pools", &pool))?,
            PoolVerb::Remove { pool } => {
                let changed = self.client.delete(&item("pools", &pool))?;
                self.report(&changed, &format!("pool {pool} removed"))?;
            }
        }
        Ok(())
    }

    pub(super) fn device(&self, verb: DeviceVerb) -> anyhow::Result<()> {
        match verb {
            DeviceVerb::Add { name, node, pool, locator, overwrite } => {
                let body = CreateDevice {
                    name: name.clone(),
                    node: reference(&node),
                    pool: reference(&pool),
                    locator,
                    overwrite,
                };
                let changed = self.client.post("/v1/devices", &body)?;
                let committed = self.report(&changed, &format!("device {name} added"))?;
                if committed && self.options.waits() {
                    let which = changed.created.unwrap_or_else(|| name.to_string());
                    self.wait_until_adopted(&which, &name.to_string())?;
                }
            }
            DeviceVerb::List => self.print_list::<DeviceView>("/v1/devices")?,
            DeviceVerb::Show { device } => {
                self.print_one::<DeviceView>(&item("devices", &device))?
            }
            DeviceVerb::Remove { device } => {
                let changed = self.client.delete(&item("devices", &device))?;
                self.report(&changed, &format!("device {device} removed"))?;
            }
        }
        Ok(())
    }

    fn wait_until_adopted(&self, which: &str, name: &str) -> anyhow::Result<()> {
        let what = format!("adoption of {name}");
        let view: DeviceView = wait_for(
            &self.client,
            &item("devices", which),
            self.options.wait_timeout,
            &what,
            judge_adoption,
        )?;
        if self.options.output != OutputFormat::Json {
            let pool: PoolView = self.client.get(&item("pools", &view.pool.id))?;
            line(&format!(
                "device {name} adopted, pool {} now has {} free",
                pool.name,
                show_size(pool.free_bytes)
            ));
        }
        Ok(())
    }
}

/// How far the adoption of a device is.
pub(crate) fn judge_adoption(view: &DeviceView) -> Step {
    match view.state.as_str() {
        "adopted" => Step::Done,
        "rejected" => Step::Failed(format!(
            "{}\n  Remove it with `voute device remove {}`, then add it again; --overwrite adopts it in spite of what it holds.",
            view.detail, view.name
        )),
        _ => Step::Going(format!("waiting for node {} to take it", view.node.name)),
    }
}

/// The three addresses of a node: those given, else the usual ports of its one address.
fn resolve_portals(arguments: &PortalArguments) -> anyhow::Result<Portals> {
    let or_usual = |given: Option<SocketAddr>, port| {
        given.or(arguments.address.map(|address| SocketAddr::new(address, port)))
    };
    let complete = "give --address, or each of --nvme, --iscsi and --link";
    Ok(Portals {
        nvme: or_usual(arguments.nvme, NVME_PORT).context(complete)?,
        iscsi: or_usual(arguments.iscsi, ISCSI_PORT).context(complete)?,
        link: or_usual(arguments.link, LINK_PORT).context(complete)?,
    })
}

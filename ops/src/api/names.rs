//! Names for the identifiers in events.

use crate::api::client::{ApiError, Client};
use std::collections::HashMap;
use std::fmt::Display;
use voute_control::api::answers::{
    CredentialView, DeviceView, HostView, NodeView, PolicyView, PoolView, SiteView, VolumeView,
};
use voute_schemas::{Commit, Event};

/// Of how many volumes names are fetched: of more, those beyond keep their identifiers.
const VOLUMES_MAX: usize = 5_000;

/// Names by identifier, of everything that exists or that some events created.
#[derive(Default, Debug)]
pub struct Names {
    by_id: HashMap<String, String>,
}

impl Names {
    /// Asks the control plane for everything that has a name. What the caller may not see stays an
    /// identifier.
    ///
    /// # Errors
    /// [`ApiError`] if the control plane does not answer.
    pub fn load(client: &Client) -> Result<Self, ApiError> {
        let mut names = Names::default();
        for site in visible(client.list_of::<SiteView>("/v1/sites"))? {
            names.put(&site.site, site.name);
        }
        for node in visible(client.list_of::<NodeView>("/v1/nodes"))? {
            names.put(&node.node, node.name);
        }
        for pool in visible(client.list_of::<PoolView>("/v1/pools"))? {
            names.put(&pool.pool, pool.name);
        }
        for device in visible(client.list_of::<DeviceView>("/v1/devices"))? {
            names.put(&device.device, device.name);
        }
        for policy in visible(client.list_of::<PolicyView>("/v1/policies"))? {
            names.put(&policy.policy, policy.name);
        }
        for host in visible(client.list_of::<HostView>("/v1/hosts"))? {
            names.put(&host.host, host.name);
        }
        for credential in visible(client.list_of::<CredentialView>("/v1/credentials"))? {
            names.put(&credential.credential, credential.name);
        }
        for volume in visible(client.list_first_of::<VolumeView>("/v1/volumes", VOLUMES_MAX))? {
            for leg in &volume.legs {
                names.put(&leg.leg, format!("{}@{}", volume.name, leg.site.name));
            }
            names.put(&volume.group, &volume.name);
            names.put(&volume.volume, &volume.name);
        }
        Ok(names)
    }

    /// Learns the names of what a commit creates; so what was removed since keeps its name.
    pub fn learn(&mut self, commit: &Commit) {
        for event in commit.events() {
            match event {
                Event::CredentialIssued { credential, name, .. } => self.put(credential, name),
                Event::SiteAdded { site, name, .. } => self.put(site, name),
                Event::NodeAdded { node, name, .. } => self.put(node, name),
                Event::PoolCreated { pool, name, .. } => self.put(pool, name),
                Event::DeviceAdded { device, name, .. } => self.put(device, name),
                Event::PolicyCreated { policy, name, .. } => self.put(policy, name),
                Event::HostAdded { host, name, .. } => self.put(host, name),
                Event::VolumeCreated { volume, name, group, legs, .. } => {
                    self.put(volume, name);
                    self.put(group, name);
                    for leg in legs {
                        let at = self.of(&leg.site);
                        self.put(&leg.leg, format!("{name}@{at}"));
                    }
                }
                _ => {}
            }
        }
    }

    fn put(&mut self, id: &dyn Display, name: impl Display) {
        self.by_id.insert(id.to_string(), name.to_string());
    }

    /// The name of something, or its identifier.
    #[must_use]
    pub fn of(&self, id: &dyn Display) -> String {
        let id = id.to_string();
        self.by_id.get(&id).cloned().unwrap_or(id)
    }
}

/// A list that the caller's role may not read is as good as empty here.
fn visible<T>(list: Result<Vec<T>, ApiError>) -> Result<Vec<T>, ApiError> {
    match list {
        Err(ApiError::Refused { status: 403, .. }) => Ok(Vec::new()),
        other => other,
    }
}

//! Two sites whose nodes keep their legs on arrays of the test's own, which fail when told to.

use crate::array::Array;
use crate::cluster::{Log, TwoSites};
use std::sync::Arc;
use voute::demo::cluster::SITES;
use voute::demo::host::Host;

const DEVICE_BYTES: u64 = 1 << 30;

/// The cluster, one array a site, and the verifying host.
pub struct OnArrays {
    /// The cluster.
    pub sites: TwoSites,
    /// In the order of [`SITES`].
    pub arrays: Vec<Array>,
    /// The host.
    pub host: Arc<Host>,
}

impl OnArrays {
    /// Starts everything; the host's slots fill `regions` regions.
    ///
    /// # Errors
    /// If something does not start.
    pub fn start(regions: u32) -> anyhow::Result<Self> {
        let sites = TwoSites::start(Log::Embedded)?;
        let cluster = sites.cluster.view()?.cluster;
        let start = |_| Array::start(cluster, DEVICE_BYTES);
        let arrays = SITES.iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
        for (site, array) in SITES.into_iter().zip(&arrays) {
            sites.add_pool(site, array.locator())?;
        }
        let host = sites.add_host(regions)?;
        sites.wait_whole()?;
        Ok(OnArrays { sites, arrays, host })
    }

    /// The array of a site.
    ///
    /// # Panics
    /// If the site is not one of [`SITES`].
    #[must_use]
    pub fn array_of(&self, site: &str) -> &Array {
        let place = SITES.iter().position(|known| *known == site).expect("one of two sites");
        &self.arrays[place]
    }
}

//! The logical units that a session sees, kept up with what is published; unit attentions tell the
//! host what changed (SPC-4 §5.14).

use super::FullFeature;
use crate::request::VolumeKey;
use crate::scsi::{Attention, SharedUnit};
use crate::target::LunView;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Most unit attentions that wait at one unit; each kind waits once.
const ATTENTIONS_MAX: usize = 16;

/// A logical unit of this session.
pub(super) struct Unit {
    pub(super) view: LunView,
    pub(super) shared: Arc<SharedUnit>,
    pub(super) attentions: VecDeque<Attention>,
}

impl Unit {
    pub(super) fn attend(&mut self, attention: Attention) {
        if !self.attentions.contains(&attention) && self.attentions.len() < ATTENTIONS_MAX {
            self.attentions.push_back(attention);
        }
    }
}

/// The units in ascending order of LUN.
#[derive(Default)]
pub(super) struct Units {
    units: Vec<Unit>,
    generation: u64,
}

impl Units {
    fn position(&self, lun: u16) -> Option<usize> {
        self.units.binary_search_by_key(&lun, |unit| unit.view.lun).ok()
    }
    pub(super) fn find(&self, lun: u16) -> Option<&Unit> {
        self.position(lun).map(|at| &self.units[at])
    }
    pub(super) fn find_mut(&mut self, lun: u16) -> Option<&mut Unit> {
        self.position(lun).map(|at| &mut self.units[at])
    }
    /// The unit of this NAA identifier.
    pub(super) fn of_naa(&self, naa: [u8; 16]) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.view.naa == naa)
    }
    /// The block size of a volume, bytes, if the host sees it.
    pub(super) fn block_size_of(&self, volume: VolumeKey) -> Option<u32> {
        let unit = self.units.iter().find(|unit| unit.view.volume == volume)?;
        Some(unit.view.block_size)
    }
    pub(super) fn numbers(&self) -> impl Iterator<Item = u16> {
        self.units.iter().map(|unit| unit.view.lun)
    }
    pub(super) fn of_volume(&mut self, volume: VolumeKey) -> impl Iterator<Item = &mut Unit> {
        self.units.iter_mut().filter(move |unit| unit.view.volume == volume)
    }
}

/// What a host must be told of a unit whose view changed.
fn changes(old: &LunView, new: &LunView) -> Vec<Attention> {
    let mut changes = Vec::new();
    if old.alua_state != new.alua_state || old.target_port_groups != new.target_port_groups {
        changes.push(Attention::ALUA_CHANGED);
    }
    if old.blocks != new.blocks || old.block_size != new.block_size {
        changes.push(Attention::CAPACITY_CHANGED);
    }
    if old.read_only != new.read_only {
        changes.push(Attention::MODE_CHANGED);
    }
    if old.thin != new.thin
        || old.physical_block_size != new.physical_block_size
        || old.atomic_blocks != new.atomic_blocks
        || old.naa != new.naa
        || old.serial != new.serial
    {
        changes.push(Attention::INQUIRY_CHANGED);
    }
    changes
}

impl FullFeature {
    /// The units at the start of a session, each with the attention that a new nexus has.
    pub(super) fn load_units(&mut self) {
        let first =
            if self.predecessor.is_some() { Attention::NEXUS_LOSS } else { Attention::POWER_ON };
        self.units.generation = self.target.generation();
        let views = self.published_views().unwrap_or_default();
        self.units.units = views.into_iter().map(|view| self.new_unit(view, Some(first))).collect();
    }

    fn new_unit(&self, view: LunView, attention: Option<Attention>) -> Unit {
        let shared = self.target.unit(view.volume);
        Unit { view, shared, attentions: attention.into_iter().collect() }
    }

    /// The host's LUNs in ascending order, each once; None if the host is not published.
    fn published_views(&self) -> Option<Vec<LunView>> {
        self.session.as_ref()?;
        let directory = self.directory();
        let mut views = directory.host(&self.initiator)?.luns.clone();
        views.retain(|view| {
            view.lun < 0x4000 && view.blocks > 0 && matches!(view.block_size, 512 | 4096)
        });
        views.sort_by_key(|view| view.lun);
        views.dedup_by_key(|view| view.lun);
        Some(views)
    }

    /// Takes over what was published since. A host that is no longer published is logged out.
    pub(super) fn refresh_units(&mut self, output: &mut Vec<u8>) {
        let generation = self.target.generation();
        if generation == self.units.generation || self.session.is_none() {
            return;
        }
        self.units.generation = generation;
        let Some(views) = self.published_views() else {
            self.send_async(3, 0, output);
            self.is_over = true;
            return;
        };
        let old = std::mem::take(&mut self.units.units);
        let mut kept: HashMap<(u16, VolumeKey), Unit> =
            old.into_iter().map(|unit| ((unit.view.lun, unit.view.volume), unit)).collect();
        let mut list_changed = false;
        let mut units = Vec::with_capacity(views.len());
        for view in views {
            units.push(match kept.remove(&(view.lun, view.volume)) {
                Some(mut unit) => {
                    changes(&unit.view, &view).into_iter().for_each(|change| unit.attend(change));
                    unit.view = view;
                    unit
                }
                None => {
                    list_changed = true;
                    self.new_unit(view, Some(Attention::POWER_ON))
                }
            });
        }
        if list_changed || !kept.is_empty() {
            units.iter_mut().for_each(|unit| unit.attend(Attention::LUNS_CHANGED));
        }
        self.units.units = units;
    }
}

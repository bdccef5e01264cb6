//! The state of a logical unit that its sessions share on this node.
//!
//! Mode parameters are lost when the node restarts, and the other node does not see them. Of
//! reservations this is only the copy that was last published: what refuses early, and what commands
//! that never reach the volume are judged by. A medium command is judged again where its volume is
//! owned.

use super::opcodes::Guard;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use voute_reservation::{Nexus, Reservations};

/// Shared by all sessions that see a volume on this node.
#[derive(Default)]
pub(crate) struct SharedUnit {
    reservations: Mutex<Arc<Reservations>>,
    is_reserved: AtomicBool,
    descriptor_sense: AtomicBool,
    software_write_protect: AtomicBool,
}

impl SharedUnit {
    fn lock(&self) -> MutexGuard<'_, Arc<Reservations>> {
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reservations as last published.
    pub(crate) fn reservations(&self) -> Arc<Reservations> {
        self.lock().clone()
    }

    /// Publishes reservations.
    pub(crate) fn set_reservations(&self, state: Arc<Reservations>) {
        let mut reservations = self.lock();
        self.is_reserved.store(state.is_reserved(), Ordering::Release);
        *reservations = state;
    }

    /// Whether anything is reserved.
    pub(crate) fn is_reserved(&self) -> bool {
        self.is_reserved.load(Ordering::Acquire)
    }

    /// Whether a command of this nexus is in conflict; one atomic when nothing is reserved.
    pub(crate) fn conflicts(&self, nexus: &Nexus, guard: Guard) -> bool {
        self.is_reserved() && self.lock().conflicts(nexus, guard)
    }

    /// D_SENSE of the control page.
    pub(crate) fn descriptor_sense(&self) -> bool {
        self.descriptor_sense.load(Ordering::Relaxed)
    }

    /// SWP of the control page.
    pub(crate) fn software_write_protect(&self) -> bool {
        self.software_write_protect.load(Ordering::Relaxed)
    }

    /// Sets the control page; tells whether anything changed.
    pub(crate) fn set_control(&self, descriptor_sense: bool, software_write_protect: bool) -> bool {
        let sense_changed =
            self.descriptor_sense.swap(descriptor_sense, Ordering::Relaxed) != descriptor_sense;
        let protect_changed =
            self.software_write_protect.swap(software_write_protect, Ordering::Relaxed)
                != software_write_protect;
        sense_changed || protect_changed
    }

    /// Logical unit reset: mode parameters back to their defaults. Tells whether a RESERVE is to end.
    pub(crate) fn reset(&self) -> bool {
        self.set_control(false, false);
        self.is_reserved() && self.lock().legacy_holder().is_some()
    }
}

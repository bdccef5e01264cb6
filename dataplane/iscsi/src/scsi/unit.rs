//! The state of a logical unit that its sessions share on this node.
//!
//! This is the seam behind which reservations and mode parameters move onto the legs: everything here
//! is lost when the node restarts, and the other node does not see it.

use super::opcodes::Guard;
use super::reservation::{Nexus, Reservations};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shared by all sessions that see a volume on this node.
#[derive(Default)]
pub(crate) struct SharedUnit {
    reservations: Mutex<Reservations>,
    is_reserved: AtomicBool,
    descriptor_sense: AtomicBool,
    software_write_protect: AtomicBool,
}

/// The reservations, locked; what the data path reads is brought up to date at the end.
pub(crate) struct LockedReservations<'a> {
    unit: &'a SharedUnit,
    guard: MutexGuard<'a, Reservations>,
}

impl SharedUnit {
    pub(crate) fn reservations(&self) -> LockedReservations<'_> {
        let guard = self.reservations.lock().unwrap_or_else(PoisonError::into_inner);
        LockedReservations { unit: self, guard }
    }

    /// Whether anything is reserved.
    pub(crate) fn is_reserved(&self) -> bool {
        self.is_reserved.load(Ordering::Acquire)
    }

    /// Whether a command of this nexus is in conflict; one atomic when nothing is reserved.
    pub(crate) fn conflicts(&self, nexus: &Nexus, guard: Guard) -> bool {
        self.is_reserved() && self.reservations().conflicts(nexus, guard)
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

    /// Logical unit reset: mode parameters back to their defaults, legacy reservation gone.
    pub(crate) fn reset(&self) {
        self.set_control(false, false);
        self.reservations().unit_reset();
    }
}

impl std::ops::Deref for LockedReservations<'_> {
    type Target = Reservations;
    fn deref(&self) -> &Reservations {
        &self.guard
    }
}

impl std::ops::DerefMut for LockedReservations<'_> {
    fn deref_mut(&mut self) -> &mut Reservations {
        &mut self.guard
    }
}

impl Drop for LockedReservations<'_> {
    fn drop(&mut self) {
        self.unit.is_reserved.store(self.guard.is_reserved(), Ordering::Release);
    }
}

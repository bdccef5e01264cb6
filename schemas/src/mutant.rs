//! Deliberate faults, so that the simulator can show that it would find them.
//!
//! Each names one safeguard of docs/mirror-rules.md that is left out while it is active. Without
//! the feature `mutants`, which no product is built with, [`is_active`] is `false` at compile time
//! and nothing of this remains.

/// One safeguard that may be left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Mutant {
    /// Rule 4: a write goes to the legs before its dirty bit is on disk, and sets none.
    NoIntent,
}

/// Every mutant, with the rule or history that it attacks.
pub const MUTANTS: &[(Mutant, &str)] = &[(Mutant::NoIntent, "rule 4, A17")];

#[cfg(feature = "mutants")]
mod chosen {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Makes this mutant the active one of this thread; `None`: no fault.
    pub fn activate(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }

    /// Whether this mutant is the active one of this thread.
    #[must_use]
    pub fn is_active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use chosen::{activate, is_active};

/// Whether this mutant is active: never, without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn is_active(_: Mutant) -> bool {
    false
}

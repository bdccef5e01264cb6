//! Deliberate faults, so that the simulator can show that it would find them.
//!
//! Each names one safeguard of docs/mirror-rules.md that is left out while it is active. Without
//! the feature `mutants`, which no product is built with, [`is_active`] is `false` at compile time
//! and nothing of this remains. *Stand-in*: the safeguard is in a crate that the simulator replaces
//! (devices, log, agent), and is left out in what replaces it.

/// One safeguard that may be left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Mutant {
    /// rule 4, A17: a write sets no dirty bit.
    NoIntent,
    /// rule 4, A8: a write while the peer is out sets no dirty bit.
    NoIntentAlone,
    /// rule 4, A17: a write goes to the legs before its dirty bit is on disk.
    IntentNotAwaited,
    /// rule 4, A17: a dirty bit is cleared although a write is not confirmed by every leg.
    ClearBeforeConfirmed,
    /// rule 2: a write is acknowledged before the peer's leg has it.
    AcknowledgeBeforePeer,
    /// rule 2: a write is acknowledged before the own leg has it.
    AcknowledgeBeforeOwn,
    /// rule 5: a write is acknowledged alone while the detach is only asked for.
    AcknowledgeBeforeDetach,
    /// rule 7, A5: a read needs no lease.
    NoLease,
    /// rule 7: the lease is checked before the read, not with the data in hand.
    LeaseBeforeRead,
    /// rule 7, A20: a lease counts from its answer, not from when it was asked for.
    LeaseFromItsReceipt,
    /// rule 7, A6: a lease counts whatever process of the peer gave it.
    LeaseOfAnyProcess,
    /// rule 7, A5: revocations that come with a grant are not heard.
    RevocationsUnheard,
    /// rule 7, A6: the start of a grantor does not count as a grant.
    StartIsNoGrant,
    /// rule 6, A21: an owner that takes over does not wait for leases to run out.
    NoLeaseWait,
    /// rule 1, A3: requests of an earlier session or incarnation are carried out within an epoch.
    OneBarForAnEpoch,
    /// rule 1, A3 and A10: a higher token is taken while requests of a lower one are at the device.
    NoDrain,
    /// rule 1: a token is answered before it is on disk.
    TokenNotOnDisk,
    /// rule 1, A10: requests under an older token are carried out.
    StaleBarsServed,
    /// rule 6, A2: an owner that opens settles nothing.
    OpenWithoutMaps,
    /// rule 6, A2: an owner that opens settles by its own map alone.
    OpenWithOwnMapOnly,
    /// rule 6, A9: regions that are not settled are read and written.
    ServeUnsettled,
    /// rule 8, A8: a resync copies by the owner's map alone.
    ResyncOwnMapOnly,
    /// rule 8, A8: a partial resync is made although maps do not go back far enough.
    ChainUnchecked,
    /// rule 8, A8: the target of a resync is not marked as inconsistent.
    CopyOntoAWholeLeg,
    /// rule 8: a side that is out is not resynced.
    NeverResync,
    /// rule 5, A1: a side that the log was asked to take in does not count yet.
    JoiningCountsNot,
    /// rule 5, A1: a restarted owner does not know that it asked to take a side in.
    JoiningForgotten,
    /// rule 9, A13: an owner alone in its set starts without a commit that confirms it.
    StartUnconfirmed,
    /// rule 9, A19: legs whose marks do not fit are taken for a pair.
    MarksUncompared,
    /// rule 12, A25: a mirror obeys a spec of a lower epoch.
    OlderSpecsObeyed,
    /// rule 6: a side that is not in sync attests and takes over.
    StaleSidePromoted,
    /// rule 6: a planned move goes to a side that is not in sync.
    MovesToStaleSides,
    /// rule 6, A21: a failover does not ask what the other side vouches for.
    AttestationUnread,
    /// rule 6: a hand-over goes to a side that does not vouch for its legs.
    HandOverUnvouched,
    /// rule 1, A1: what an owner asked for at an older epoch is carried out.
    AskedAtAnyEpoch,
    /// rule 6: an unplanned move leaves the old owner's side in sync.
    TakeoverDetachesNobody,
    /// rule 5, A1: a leg is added without a new epoch.
    AddedLegKeepsTheEpoch,
    /// rule 2, A4: a leg that lost its content counts as formatted and known to maps.
    LostContentForgotten,
    /// rule 3, A16: overlapping writes have no order.
    WritesPassWrites,
    /// rule 3, A16: reads and overlapping writes have no order.
    ReadsPassWrites,
    /// rule 3, A16: copies and overlapping writes have no order.
    CopiesPassWrites,
    /// rule 8, A12: the first write to a region leaves the rest of it as it was.
    FirstWriteZeroesNothing,
    /// rule 8, A12: regions never written read as what lies on the device.
    UnwrittenReadsTheDevice,
    /// rule 8, A12: a first write goes to the device before its region is noted as written.
    WrittenBitNotAwaited,
    /// rule 2: both copies of a header lie in one place.
    OneHeaderCopy,
    /// rule 4: both slots of a map page lie in one place.
    OneMapSlot,
    /// rule 4: a map page of which one slot cannot be read is taken from the other.
    OtherSlotTaken,
    /// rule 10: a record is acknowledged before the peer's leg has it.
    RecordsOnOneLeg,
    /// rule 10: a peer does not get the owner's record before it counts.
    RecordsNotCopied,
    /// rule 14: an atomic write goes in place before its record is on disk.
    RecordNotAwaited,
    /// rule 14: the record of an atomic write is not retired before its answer.
    RecordNotRetired,
    /// rule 14: records that a leg has when it is opened are not carried out.
    RecordsForgotten,
    /// rule 14: what settles legs in sync is written in place at once.
    SettlePastTheJournal,
    /// rule 1, A11: stand-in: a device is opened while an ended process's requests are in the kernel.
    KernelNotAwaited,
    /// rule 2, A4: stand-in: a device answers writes that a power cut still loses.
    CacheNotFlushed,
    /// rule 12, A14: stand-in: a restarted control process signs whatever the log says now.
    RegisterForgotten,
    /// rule 12, A14: stand-in: an append compares the number of the head, not its content.
    AppendByNumberAlone,
    /// rule 12, A14: stand-in: a node obeys a spec that is older or of another branch.
    OtherBranchesObeyed,
}

/// Every mutant, the rule or history that it attacks, and what it does.
pub const MUTANTS: &[(Mutant, &str, &str)] = &[
    (Mutant::NoIntent, "rule 4, A17", "a write sets no dirty bit"),
    (Mutant::NoIntentAlone, "rule 4, A8", "a write while the peer is out sets no dirty bit"),
    (
        Mutant::IntentNotAwaited,
        "rule 4, A17",
        "a write goes to the legs before its dirty bit is on disk",
    ),
    (
        Mutant::ClearBeforeConfirmed,
        "rule 4, A17",
        "a dirty bit is cleared although a write is not confirmed by every leg",
    ),
    (
        Mutant::AcknowledgeBeforePeer,
        "rule 2",
        "a write is acknowledged before the peer's leg has it",
    ),
    (Mutant::AcknowledgeBeforeOwn, "rule 2", "a write is acknowledged before the own leg has it"),
    (
        Mutant::AcknowledgeBeforeDetach,
        "rule 5",
        "a write is acknowledged alone while the detach is only asked for",
    ),
    (Mutant::NoLease, "rule 7, A5", "a read needs no lease"),
    (
        Mutant::LeaseBeforeRead,
        "rule 7",
        "the lease is checked before the read, not with the data in hand",
    ),
    (
        Mutant::LeaseFromItsReceipt,
        "rule 7, A20",
        "a lease counts from its answer, not from when it was asked for",
    ),
    (
        Mutant::LeaseOfAnyProcess,
        "rule 7, A6",
        "a lease counts whatever process of the peer gave it",
    ),
    (Mutant::RevocationsUnheard, "rule 7, A5", "revocations that come with a grant are not heard"),
    (Mutant::StartIsNoGrant, "rule 7, A6", "the start of a grantor does not count as a grant"),
    (
        Mutant::NoLeaseWait,
        "rule 6, A21",
        "an owner that takes over does not wait for leases to run out",
    ),
    (
        Mutant::OneBarForAnEpoch,
        "rule 1, A3",
        "requests of an earlier session or incarnation are carried out within an epoch",
    ),
    (
        Mutant::NoDrain,
        "rule 1, A3 and A10",
        "a higher token is taken while requests of a lower one are at the device",
    ),
    (Mutant::TokenNotOnDisk, "rule 1", "a token is answered before it is on disk"),
    (Mutant::StaleBarsServed, "rule 1, A10", "requests under an older token are carried out"),
    (Mutant::OpenWithoutMaps, "rule 6, A2", "an owner that opens settles nothing"),
    (Mutant::OpenWithOwnMapOnly, "rule 6, A2", "an owner that opens settles by its own map alone"),
    (Mutant::ServeUnsettled, "rule 6, A9", "regions that are not settled are read and written"),
    (Mutant::ResyncOwnMapOnly, "rule 8, A8", "a resync copies by the owner's map alone"),
    (
        Mutant::ChainUnchecked,
        "rule 8, A8",
        "a partial resync is made although maps do not go back far enough",
    ),
    (
        Mutant::CopyOntoAWholeLeg,
        "rule 8, A8",
        "the target of a resync is not marked as inconsistent",
    ),
    (Mutant::NeverResync, "rule 8", "a side that is out is not resynced"),
    (
        Mutant::JoiningCountsNot,
        "rule 5, A1",
        "a side that the log was asked to take in does not count yet",
    ),
    (
        Mutant::JoiningForgotten,
        "rule 5, A1",
        "a restarted owner does not know that it asked to take a side in",
    ),
    (
        Mutant::StartUnconfirmed,
        "rule 9, A13",
        "an owner alone in its set starts without a commit that confirms it",
    ),
    (Mutant::MarksUncompared, "rule 9, A19", "legs whose marks do not fit are taken for a pair"),
    (Mutant::OlderSpecsObeyed, "rule 12, A25", "a mirror obeys a spec of a lower epoch"),
    (Mutant::StaleSidePromoted, "rule 6", "a side that is not in sync attests and takes over"),
    (Mutant::MovesToStaleSides, "rule 6", "a planned move goes to a side that is not in sync"),
    (
        Mutant::AttestationUnread,
        "rule 6, A21",
        "a failover does not ask what the other side vouches for",
    ),
    (
        Mutant::HandOverUnvouched,
        "rule 6",
        "a hand-over goes to a side that does not vouch for its legs",
    ),
    (
        Mutant::AskedAtAnyEpoch,
        "rule 1, A1",
        "what an owner asked for at an older epoch is carried out",
    ),
    (
        Mutant::TakeoverDetachesNobody,
        "rule 6",
        "an unplanned move leaves the old owner's side in sync",
    ),
    (Mutant::AddedLegKeepsTheEpoch, "rule 5, A1", "a leg is added without a new epoch"),
    (
        Mutant::LostContentForgotten,
        "rule 2, A4",
        "a leg that lost its content counts as formatted and known to maps",
    ),
    (Mutant::WritesPassWrites, "rule 3, A16", "overlapping writes have no order"),
    (Mutant::ReadsPassWrites, "rule 3, A16", "reads and overlapping writes have no order"),
    (Mutant::CopiesPassWrites, "rule 3, A16", "copies and overlapping writes have no order"),
    (
        Mutant::FirstWriteZeroesNothing,
        "rule 8, A12",
        "the first write to a region leaves the rest of it as it was",
    ),
    (
        Mutant::UnwrittenReadsTheDevice,
        "rule 8, A12",
        "regions never written read as what lies on the device",
    ),
    (
        Mutant::WrittenBitNotAwaited,
        "rule 8, A12",
        "a first write goes to the device before its region is noted as written",
    ),
    (Mutant::OneHeaderCopy, "rule 2", "both copies of a header lie in one place"),
    (Mutant::OneMapSlot, "rule 4", "both slots of a map page lie in one place"),
    (
        Mutant::OtherSlotTaken,
        "rule 4",
        "a map page of which one slot cannot be read is taken from the other",
    ),
    (Mutant::RecordsOnOneLeg, "rule 10", "a record is acknowledged before the peer's leg has it"),
    (
        Mutant::RecordsNotCopied,
        "rule 10",
        "a peer does not get the owner's record before it counts",
    ),
    (
        Mutant::RecordNotAwaited,
        "rule 14",
        "an atomic write goes in place before its record is on disk",
    ),
    (
        Mutant::RecordNotRetired,
        "rule 14",
        "the record of an atomic write is not retired before its answer",
    ),
    (
        Mutant::RecordsForgotten,
        "rule 14",
        "records that a leg has when it is opened are not carried out",
    ),
    (
        Mutant::SettlePastTheJournal,
        "rule 14",
        "what settles legs in sync is written in place at once",
    ),
    (
        Mutant::KernelNotAwaited,
        "rule 1, A11",
        "stand-in: a device is opened while an ended process's requests are in the kernel",
    ),
    (
        Mutant::CacheNotFlushed,
        "rule 2, A4",
        "stand-in: a device answers writes that a power cut still loses",
    ),
    (
        Mutant::RegisterForgotten,
        "rule 12, A14",
        "stand-in: a restarted control process signs whatever the log says now",
    ),
    (
        Mutant::AppendByNumberAlone,
        "rule 12, A14",
        "stand-in: an append compares the number of the head, not its content",
    ),
    (
        Mutant::OtherBranchesObeyed,
        "rule 12, A14",
        "stand-in: a node obeys a spec that is older or of another branch",
    ),
];

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

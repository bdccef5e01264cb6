//! The reservations of a volume at its home: one change at a time, on every leg before its answer.
//!
//! ```text
//!            apply              Put (or Confirm, where no leg need know)      all answered
//! queued ──────────► changing ─────────────────────────────────────────────► published, answered
//!                             Confirm after all, where a preemption aborts
//! ```
//!
//! While a change is under way I/O is refused for what was and for what will be: a reservation bars
//! at once, and is given up only when no leg can bring it back.

use std::collections::VecDeque;
use std::sync::Arc;
use voute_mirror::{HostOutcome, HostTag};
use voute_reservation::{Access, BadRecord, Effect, Nexus, Refusal, Request, Reservations};

/// Most requests that wait for the one that is under way.
const WAITING_MAX: usize = 256;

/// A request about a volume's reservations.
#[derive(Debug)]
pub(crate) struct Job {
    /// Whom to answer; nobody asked for what follows from a lost session.
    pub(crate) asker: Option<HostTag>,
    pub(crate) nexus: Nexus,
    pub(crate) request: Request,
    /// Another node passed it on, taking this one for the owner.
    pub(crate) is_passed_on: bool,
}

/// What became of it.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Done,
    Report(Arc<Reservations>),
    Refused(Refusal),
    /// The volume could not be asked.
    Failed(Failed),
}

/// Why a volume could not be asked; what of a mirror's outcomes can be that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    Path,
    Transition,
    Busy,
    NoSuchVolume,
}

impl Failed {
    /// `None`: it did not fail.
    pub(crate) fn of(outcome: &HostOutcome) -> Option<Self> {
        match outcome {
            HostOutcome::Done => None,
            HostOutcome::Transition => Some(Failed::Transition),
            HostOutcome::Busy => Some(Failed::Busy),
            HostOutcome::NoSuchVolume => Some(Failed::NoSuchVolume),
            // Records are never read or compared by the mirror.
            HostOutcome::PathError
            | HostOutcome::Data(_)
            | HostOutcome::Miscompare { .. }
            | HostOutcome::OutOfRange
            | HostOutcome::MediumError
            | HostOutcome::Conflict => Some(Failed::Path),
        }
    }

    pub(crate) fn outcome(self) -> HostOutcome {
        match self {
            Failed::Path => HostOutcome::PathError,
            Failed::Transition => HostOutcome::Transition,
            Failed::Busy => HostOutcome::Busy,
            Failed::NoSuchVolume => HostOutcome::NoSuchVolume,
        }
    }
}

/// What is asked of the volume's mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    Put,
    Confirm,
    /// Confirm after all that is under way.
    Drain,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Order {
    /// To be reported by [`Desk::asked`].
    Ask(Ask, Vec<u8>),
    /// Before the answer.
    Publish(Arc<Reservations>, Vec<Effect>),
    Answer(HostTag, Answer),
}

struct Change {
    asker: Option<HostTag>,
    next: Arc<Reservations>,
    effects: Vec<Effect>,
    answer: Answer,
    waiting: u32,
    is_put: bool,
    put_failed: bool,
    failed: Option<Failed>,
}

/// The reservations of one volume where it is owned.
pub(crate) struct Desk {
    current: Arc<Reservations>,
    change: Option<Change>,
    /// What the legs may hold besides: a change whose outcome is not known until they are opened again.
    doubtful: Option<Arc<Reservations>>,
    queue: VecDeque<Job>,
}

impl Desk {
    /// Begins with what the legs have. After a power cycle of all of them what was not to survive it
    /// is dropped, there too.
    pub(crate) fn open(
        record: &[u8],
        is_cold: bool,
        orders: &mut Vec<Order>,
    ) -> Result<Self, BadRecord> {
        let found = Reservations::decode(record)?;
        let kept = if is_cold { found.clone().after_power_cycle() } else { found.clone() };
        let is_changed = !kept.has_same_record(&found);
        let current = Arc::new(kept);
        let mut desk = Desk { current, change: None, doubtful: None, queue: VecDeque::new() };
        orders.push(Order::Publish(desk.current.clone(), Vec::new()));
        if is_changed {
            desk.begin(None, desk.current.clone(), Vec::new(), Answer::Done, true, orders);
        }
        Ok(desk)
    }

    /// The owner opened its legs again: what they have counts, and what is under way goes on.
    pub(crate) fn reopen(
        &mut self,
        record: &[u8],
        orders: &mut Vec<Order>,
    ) -> Result<(), BadRecord> {
        let legacy = self.current.legacy_holder().cloned();
        let found = Reservations::decode(record)?;
        self.doubtful = None;
        let same_record = found.has_same_record(&self.current);
        if !(same_record && legacy.is_some()) {
            self.current = Arc::new(found);
        }
        orders.push(Order::Publish(self.current.clone(), Vec::new()));
        Ok(())
    }

    /// Whether this command must be refused.
    pub(crate) fn conflicts(&self, nexus: &Nexus, access: Access) -> bool {
        let next = self.change.as_ref().map(|change| &change.next);
        let possible = [Some(&self.current), next, self.doubtful.as_ref()];
        possible.into_iter().flatten().any(|state| state.conflicts(nexus, access))
    }

    /// Takes a request.
    pub(crate) fn submit(&mut self, job: Job, orders: &mut Vec<Order>) {
        if self.queue.len() >= WAITING_MAX {
            let failed = Answer::Failed(Failed::Busy);
            return orders.extend(job.asker.map(|asker| Order::Answer(asker, failed)));
        }
        self.queue.push_back(job);
        self.next(orders);
    }

    fn next(&mut self, orders: &mut Vec<Order>) {
        while self.change.is_none() {
            let Some(Job { asker, nexus, request, .. }) = self.queue.pop_front() else { return };
            let mut next = Reservations::clone(&self.current);
            let (answer, effects) = match next.apply(&nexus, &request) {
                Ok(_) if request == Request::Report => {
                    (Answer::Report(self.current.clone()), Vec::new())
                }
                Ok(effects) => (Answer::Done, effects),
                Err(refusal) => (Answer::Refused(refusal), Vec::new()),
            };
            let is_put = !next.has_same_record(&self.current);
            if asker.is_none() && !is_put {
                // Nobody waits, and no leg need know.
                self.current = Arc::new(next);
                orders.push(Order::Publish(self.current.clone(), effects));
                continue;
            }
            self.begin(asker, Arc::new(next), effects, answer, is_put, orders);
        }
    }

    fn begin(
        &mut self,
        asker: Option<HostTag>,
        next: Arc<Reservations>,
        effects: Vec<Effect>,
        answer: Answer,
        is_put: bool,
        orders: &mut Vec<Order>,
    ) {
        let drains = effects.iter().any(|effect| effect.aborts);
        let first = match is_put {
            true => Order::Ask(Ask::Put, next.encode()),
            false => Order::Ask(Ask::Confirm, Vec::new()),
        };
        orders.push(first);
        if drains {
            orders.push(Order::Ask(Ask::Drain, Vec::new()));
        }
        self.change = Some(Change {
            asker,
            next,
            effects,
            answer,
            waiting: 1 + u32::from(drains),
            is_put,
            put_failed: false,
            failed: None,
        });
    }

    /// The mirror has answered.
    pub(crate) fn asked(&mut self, ask: Ask, outcome: &HostOutcome, orders: &mut Vec<Order>) {
        let Some(change) = &mut self.change else { return };
        let failed = Failed::of(outcome);
        change.put_failed |= ask == Ask::Put && failed.is_some();
        change.failed = change.failed.or(failed);
        change.waiting -= 1;
        if change.waiting > 0 {
            return;
        }
        let Some(change) = self.change.take() else { return };
        // What is on the legs is so, whether all that was to follow did or not.
        let is_so = match change.is_put {
            true => !change.put_failed,
            false => change.failed.is_none(),
        };
        if is_so && !Arc::ptr_eq(&self.current, &change.next) {
            self.current = change.next.clone();
            orders.push(Order::Publish(self.current.clone(), change.effects));
        }
        if change.put_failed && change.failed != Some(Failed::Busy) {
            self.doubtful = Some(change.next);
        }
        let answer = change.failed.map_or(change.answer, Answer::Failed);
        orders.extend(change.asker.map(|asker| Order::Answer(asker, answer)));
        self.next(orders);
    }

    /// Another node owns: whoever waits is told that.
    pub(crate) fn close(self, orders: &mut Vec<Order>) {
        let waiting = self.change.and_then(|change| change.asker).into_iter();
        let queued = self.queue.into_iter().filter_map(|job| job.asker);
        for asker in waiting.chain(queued) {
            orders.push(Order::Answer(asker, Answer::Failed(Failed::Path)));
        }
        orders.push(Order::Publish(Arc::default(), Vec::new()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_reservation::{Expected, Kind};

    fn nexus(number: u8) -> Nexus {
        Nexus::Nvme { host_id: [number; 16] }
    }

    fn job(asker: u64, who: u8, request: Request) -> Job {
        Job { asker: Some(HostTag(asker)), nexus: nexus(who), request, is_passed_on: false }
    }

    fn register(key: u64) -> Request {
        let expected = Expected::NotRegistered;
        Request::Register { expected, key, all_ports: false, also: Vec::new(), persists: None }
    }

    const KIND: Kind = Kind::WriteExclusiveRegistrantsOnly;

    fn reserve(key: u64) -> Request {
        Request::Reserve { key, kind: KIND }
    }

    fn release(key: u64) -> Request {
        Request::Release { key, kind: KIND }
    }

    /// Carries out what is ordered; the last record put, and what was answered.
    fn settle(desk: &mut Desk, orders: &mut Vec<Order>) -> (Vec<u8>, Vec<(u64, Answer)>) {
        let (mut record, mut answers) = (Vec::new(), Vec::new());
        while !orders.is_empty() {
            match orders.remove(0) {
                Order::Ask(ask, bytes) => {
                    if ask == Ask::Put {
                        record = bytes;
                    }
                    desk.asked(ask, &HostOutcome::Done, orders);
                }
                Order::Publish(..) => {}
                Order::Answer(asker, answer) => answers.push((asker.0, answer)),
            }
        }
        (record, answers)
    }

    fn desk_with_two() -> Desk {
        let mut orders = Vec::new();
        let mut desk = Desk::open(&[], false, &mut orders).unwrap();
        desk.submit(job(1, 1, register(1)), &mut orders);
        desk.submit(job(2, 2, register(2)), &mut orders);
        let (_, answers) = settle(&mut desk, &mut orders);
        assert!(matches!(answers[..], [(1, Answer::Done), (2, Answer::Done)]), "{answers:?}");
        desk
    }

    #[test]
    fn nothing_is_answered_before_the_legs_have_it() {
        let mut orders = Vec::new();
        let mut desk = Desk::open(&[], false, &mut orders).unwrap();
        orders.clear();
        desk.submit(job(1, 1, register(1)), &mut orders);
        desk.submit(job(2, 1, Request::Report), &mut orders);
        let Order::Ask(Ask::Put, record) = &orders[0] else { panic!("{orders:?}") };
        assert_eq!(Reservations::decode(record).unwrap().registrations().len(), 1);
        assert_eq!(orders.len(), 1, "the report waits behind it");
        orders.clear();
        desk.asked(Ask::Put, &HostOutcome::Done, &mut orders);
        assert!(matches!(&orders[0], Order::Publish(state, _) if state.registrations().len() == 1));
        assert!(matches!(orders[1], Order::Answer(HostTag(1), Answer::Done)), "{orders:?}");
        assert!(matches!(orders[2], Order::Ask(Ask::Confirm, _)), "a report needs a lease");
    }

    #[test]
    fn a_reservation_bars_at_once_and_is_given_up_only_when_the_legs_know() {
        let mut desk = desk_with_two();
        let mut orders = Vec::new();
        let stranger = nexus(3);
        desk.submit(job(3, 1, reserve(1)), &mut orders);
        assert!(desk.conflicts(&stranger, Access::Write), "it bars before it is on the legs");
        settle(&mut desk, &mut orders);
        desk.submit(job(4, 1, release(1)), &mut orders);
        assert!(desk.conflicts(&stranger, Access::Write), "until the legs have its end");
        settle(&mut desk, &mut orders);
        assert!(!desk.conflicts(&stranger, Access::Write));
    }

    #[test]
    fn a_change_that_the_legs_did_not_take_is_none() {
        let mut desk = desk_with_two();
        let mut orders = Vec::new();
        desk.submit(job(3, 1, reserve(1)), &mut orders);
        orders.clear();
        desk.asked(Ask::Put, &HostOutcome::Busy, &mut orders);
        let busy = Answer::Failed(Failed::Busy);
        assert_eq!(format!("{orders:?}"), format!("{:?}", [Order::Answer(HostTag(3), busy)]));
        assert!(!desk.conflicts(&nexus(3), Access::Write));
    }

    #[test]
    fn what_the_legs_may_hold_bars_until_they_are_opened_again() {
        let mut desk = desk_with_two();
        let mut orders = Vec::new();
        desk.submit(job(3, 1, reserve(1)), &mut orders);
        desk.asked(Ask::Put, &HostOutcome::PathError, &mut orders);
        assert!(desk.conflicts(&nexus(3), Access::Write));
        let record = desk.current.encode();
        desk.reopen(&record, &mut orders).unwrap();
        assert!(!desk.conflicts(&nexus(3), Access::Write));
    }

    #[test]
    fn a_preemption_that_aborts_waits_for_what_is_under_way() {
        let mut desk = desk_with_two();
        let mut orders = Vec::new();
        let request = Request::Preempt { key: 1, victim: 2, kind: KIND, aborts: true };
        desk.submit(job(3, 1, request), &mut orders);
        let asked: Vec<Ask> = orders
            .drain(..)
            .map(|order| match order {
                Order::Ask(ask, _) => ask,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(asked, [Ask::Put, Ask::Drain]);
        desk.asked(Ask::Put, &HostOutcome::Done, &mut orders);
        assert!(orders.is_empty(), "writes of the victim may be under way");
        desk.asked(Ask::Drain, &HostOutcome::Done, &mut orders);
        assert!(matches!(&orders[0], Order::Publish(_, effects) if effects[0].aborts));
        assert!(matches!(orders[1], Order::Answer(HostTag(3), Answer::Done)));
    }

    #[test]
    fn a_power_cycle_is_carried_to_the_legs_before_anything_else() {
        let mut desk = desk_with_two();
        let mut orders = Vec::new();
        desk.submit(job(3, 1, reserve(1)), &mut orders);
        let (record, _) = settle(&mut desk, &mut orders);
        for (is_cold, is_kept) in [(false, true), (true, false)] {
            let mut orders = Vec::new();
            let mut desk = Desk::open(&record, is_cold, &mut orders).unwrap();
            assert_eq!(desk.conflicts(&nexus(3), Access::Write), is_kept);
            desk.submit(job(4, 3, register(3)), &mut orders);
            let puts = orders.iter().filter(|order| matches!(order, Order::Ask(Ask::Put, _)));
            assert_eq!(puts.count(), 1, "the registration waits for the emptied record");
            let (record, answers) = settle(&mut desk, &mut orders);
            assert!(matches!(answers[..], [(4, Answer::Done)]));
            let left = Reservations::decode(&record).unwrap().registrations().len();
            assert_eq!(left, if is_kept { 3 } else { 1 });
        }
        assert!(Desk::open(&[99], false, &mut orders).is_err());
    }

    #[test]
    fn whoever_waits_is_told_when_another_node_owns() {
        let mut desk = desk_with_two();
        let mut orders = Vec::new();
        desk.submit(job(3, 1, reserve(1)), &mut orders);
        desk.submit(job(4, 1, Request::Report), &mut orders);
        orders.clear();
        desk.close(&mut orders);
        let told = |order: &Order| match order {
            Order::Answer(asker, Answer::Failed(Failed::Path)) => Some(asker.0),
            _ => None,
        };
        assert_eq!(orders.iter().filter_map(told).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn the_end_of_a_session_ends_its_reserve_without_the_legs() {
        let mut orders = Vec::new();
        let mut desk = Desk::open(&[], false, &mut orders).unwrap();
        desk.submit(job(1, 1, Request::ReserveLegacy), &mut orders);
        settle(&mut desk, &mut orders);
        assert!(desk.conflicts(&nexus(2), Access::Read));
        let lost = Request::NexusLost;
        let end = Job { asker: None, nexus: nexus(1), request: lost, is_passed_on: false };
        desk.submit(end, &mut orders);
        assert!(!desk.conflicts(&nexus(2), Access::Read));
        assert!(matches!(orders[..], [Order::Publish(..)]));
    }
}

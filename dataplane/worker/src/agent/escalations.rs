//! What mirrors and the node itself ask the log for, in batches: kept until answered, sent again
//! with the same id when an answer is late or the stream was lost.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use voute_schemas::EscalationId;
use voute_schemas::command::Escalation;
use voute_schemas::contract::{ESCALATIONS_MAX, EscalationOutcome};

/// Most escalations that wait to be sent; more are refused, their mirrors ask again.
pub const WAITING_MAX: usize = 65_536;
/// Most batches that are out at a time.
const BATCHES_MAX: usize = 16;

/// Who asked: a shard's mirror, or the node itself.
pub type Asker = Option<u16>;

/// An answered escalation.
pub type Answered = (Asker, Escalation, EscalationOutcome);

struct Batch {
    requests: Vec<(Asker, Escalation)>,
    sent: Option<Duration>,
}

/// All that is not answered yet.
#[derive(Default)]
pub struct Escalations {
    waiting: VecDeque<(Asker, Escalation)>,
    /// Encodings of all that waits or is out: a mirror that repeats itself adds nothing.
    known: HashSet<Vec<u8>>,
    batches: HashMap<EscalationId, Batch>,
    /// In order of their first sending.
    order: VecDeque<EscalationId>,
}

fn encoding(escalation: &Escalation) -> Vec<u8> {
    postcard::to_stdvec(escalation).expect("escalations have no unserialisable field")
}

impl Escalations {
    /// Takes an escalation. `false`: too many wait.
    pub fn add(&mut self, asker: Asker, escalation: Escalation) -> bool {
        if self.waiting.len() >= WAITING_MAX {
            return false;
        }
        if self.known.insert(encoding(&escalation)) {
            self.waiting.push_back((asker, escalation));
        }
        true
    }

    /// The next batch to send: one that waited too long for its answer, or a new one.
    pub fn next_batch(
        &mut self,
        now: Duration,
        retry: Duration,
    ) -> Option<(EscalationId, Vec<Escalation>)> {
        let late = |id: &&EscalationId| {
            self.batches.get(id).is_some_and(|batch| batch.sent.is_none_or(|at| at + retry <= now))
        };
        if let Some(id) = self.order.iter().find(late).copied() {
            return Some((id, self.send(id, now)));
        }
        if self.waiting.is_empty() || self.batches.len() >= BATCHES_MAX {
            return None;
        }
        let count = self.waiting.len().min(ESCALATIONS_MAX);
        let id = EscalationId::generate();
        let requests = self.waiting.drain(..count).collect();
        self.batches.insert(id, Batch { requests, sent: None });
        self.order.push_back(id);
        Some((id, self.send(id, now)))
    }

    fn send(&mut self, id: EscalationId, now: Duration) -> Vec<Escalation> {
        let batch = self.batches.get_mut(&id).expect("its id is in the order");
        batch.sent = Some(now);
        batch.requests.iter().map(|(_, escalation)| escalation.clone()).collect()
    }

    /// The stream was lost: everything is to be sent again at once.
    pub fn disconnected(&mut self) {
        self.batches.values_mut().for_each(|batch| batch.sent = None);
    }

    /// Whether a batch was sent and not answered for so long that another should be asked.
    pub fn is_late(&self, now: Duration, retry: Duration) -> bool {
        self.batches.values().any(|batch| batch.sent.is_some_and(|at| at + retry <= now))
    }

    /// When a batch is to be sent again.
    pub fn next_retry(&self, retry: Duration) -> Option<Duration> {
        self.batches.values().map(|batch| batch.sent.map_or(Duration::ZERO, |at| at + retry)).min()
    }

    /// A batch was answered; an answer to an unknown one (answered before) is nothing. Missing
    /// outcomes count as refused, so that nothing waits for ever.
    pub fn answered(
        &mut self,
        id: EscalationId,
        outcomes: Vec<EscalationOutcome>,
    ) -> Vec<Answered> {
        let Some(batch) = self.batches.remove(&id) else { return Vec::new() };
        self.order.retain(|other| *other != id);
        let mut outcomes = outcomes.into_iter();
        let mut answered = Vec::with_capacity(batch.requests.len());
        for (asker, escalation) in batch.requests {
            self.known.remove(&encoding(&escalation));
            let outcome = outcomes.next().unwrap_or_else(|| EscalationOutcome::Refused {
                code: "no-answer".into(),
                message: "the answer named fewer outcomes than were asked for".into(),
            });
            answered.push((asker, escalation, outcome));
        }
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_schemas::{LegId, Sequence};

    const RETRY: Duration = Duration::from_millis(1_000);

    fn formatted() -> Escalation {
        Escalation::LegFormatted { leg: LegId::generate() }
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_batch_is_repeated_with_its_id_until_answered() {
        let mut escalations = Escalations::default();
        let one = formatted();
        assert!(escalations.add(Some(3), one.clone()));
        let (id, requests) = escalations.next_batch(at(0), RETRY).unwrap();
        assert_eq!(requests, std::slice::from_ref(&one));
        assert_eq!(escalations.next_batch(at(999), RETRY), None);
        assert!(!escalations.is_late(at(999), RETRY) && escalations.is_late(at(1_000), RETRY));
        assert_eq!(escalations.next_retry(RETRY), Some(at(1_000)));
        assert_eq!(escalations.next_batch(at(1_000), RETRY), Some((id, requests.clone())));
        escalations.disconnected();
        assert_eq!(escalations.next_batch(at(1_001), RETRY), Some((id, requests)));
        let outcome = EscalationOutcome::Committed { sequence: Sequence(5) };
        let answered = escalations.answered(id, vec![outcome.clone()]);
        assert_eq!(answered, [(Some(3), one, outcome)]);
        assert!(escalations.answered(id, vec![]).is_empty(), "answered once");
        assert_eq!(escalations.next_batch(at(9_000), RETRY), None);
    }

    #[test]
    fn a_mirror_that_repeats_itself_adds_nothing() {
        let mut escalations = Escalations::default();
        let one = formatted();
        for _ in 0..3 {
            assert!(escalations.add(None, one.clone()));
        }
        let (id, requests) = escalations.next_batch(at(0), RETRY).unwrap();
        assert_eq!(requests.len(), 1);
        assert!(escalations.add(None, one.clone()));
        assert_eq!(escalations.next_batch(at(1), RETRY), None, "it is out already");
        escalations.answered(id, vec![]);
        assert!(escalations.add(None, one));
        assert!(escalations.next_batch(at(2), RETRY).is_some(), "after its answer it counts anew");
    }

    #[test]
    fn thousands_go_in_few_batches_within_the_limits() {
        let mut escalations = Escalations::default();
        for _ in 0..WAITING_MAX {
            assert!(escalations.add(None, formatted()));
        }
        assert!(!escalations.add(None, formatted()), "the limit holds");
        let mut batches = 0;
        while let Some((_, requests)) = escalations.next_batch(at(0), RETRY) {
            assert!(requests.len() <= ESCALATIONS_MAX);
            batches += 1;
        }
        assert_eq!(batches, BATCHES_MAX);
    }
}

//! Which escalations of a node were answered, so that a repeated one is answered the same and
//! decided once.

use std::collections::{HashMap, VecDeque};
use voute_schemas::EscalationId;
use voute_schemas::contract::EscalationOutcome;

/// Answers remembered per node.
const ANSWERS_MAX: usize = 1_024;
/// Batches of one node that are decided at once; more are not taken, the node repeats them.
const UNDER_WAY_MAX: usize = 64;

/// What became of a node's youngest escalations.
#[derive(Debug, Default)]
pub struct Answers {
    known: HashMap<EscalationId, Option<Vec<EscalationOutcome>>>,
    order: VecDeque<EscalationId>,
    under_way: usize,
}

/// What to do with an escalation.
#[derive(Debug, PartialEq)]
pub enum Take {
    /// Decide it.
    Decide,
    /// Answer it as before.
    Answer(Vec<EscalationOutcome>),
    /// It is being decided, or there are too many: say nothing.
    Ignore,
}

impl Answers {
    /// What to do with this escalation.
    pub fn take(&mut self, id: EscalationId) -> Take {
        match self.known.get(&id) {
            Some(Some(outcomes)) => return Take::Answer(outcomes.clone()),
            Some(None) => return Take::Ignore,
            None => {}
        }
        if self.under_way >= UNDER_WAY_MAX {
            return Take::Ignore;
        }
        self.under_way += 1;
        self.known.insert(id, None);
        self.order.push_back(id);
        while self.order.len() > ANSWERS_MAX {
            self.forget_oldest_answered();
        }
        Take::Decide
    }

    fn forget_oldest_answered(&mut self) {
        let answered = self.order.iter().position(|id| self.known.get(id) != Some(&None));
        if let Some(index) = answered
            && let Some(id) = self.order.remove(index)
        {
            self.known.remove(&id);
        }
    }

    /// Keeps an answer; `None` if there is none, so that a repetition is decided again.
    pub fn answered(&mut self, id: EscalationId, outcomes: Option<Vec<EscalationOutcome>>) {
        self.under_way = self.under_way.saturating_sub(1);
        if outcomes.is_some() {
            self.known.insert(id, outcomes);
        } else {
            self.known.remove(&id);
            self.order.retain(|known| *known != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_schemas::Sequence;

    #[test]
    fn a_repeated_escalation_is_decided_once_and_answered_the_same() {
        let mut answers = Answers::default();
        let id = EscalationId::generate();
        assert_eq!(answers.take(id), Take::Decide);
        assert_eq!(answers.take(id), Take::Ignore);
        let outcomes = vec![EscalationOutcome::Committed { sequence: Sequence(7) }];
        answers.answered(id, Some(outcomes.clone()));
        assert_eq!(answers.take(id), Take::Answer(outcomes));
    }

    #[test]
    fn an_escalation_without_a_definite_outcome_is_decided_again() {
        let mut answers = Answers::default();
        let id = EscalationId::generate();
        assert_eq!(answers.take(id), Take::Decide);
        answers.answered(id, None);
        assert_eq!(answers.take(id), Take::Decide);
    }

    #[test]
    fn no_more_is_remembered_or_decided_at_once_than_stated() {
        let mut answers = Answers::default();
        for _ in 0..UNDER_WAY_MAX {
            assert_eq!(answers.take(EscalationId::generate()), Take::Decide);
        }
        assert_eq!(answers.take(EscalationId::generate()), Take::Ignore);
        let mut answers = Answers::default();
        for _ in 0..3 * ANSWERS_MAX {
            let id = EscalationId::generate();
            assert_eq!(answers.take(id), Take::Decide);
            answers.answered(id, Some(vec![]));
        }
        assert_eq!(answers.known.len(), ANSWERS_MAX);
        assert_eq!(answers.order.len(), ANSWERS_MAX);
    }
}

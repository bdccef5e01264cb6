//! The control processes that this node has streams to. All are told how it stands; one is asked, and
//! another in its place when it does not answer.

use super::statuses::Told;
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use voute_schemas::contract::{FromNode, GroupStatus, NodeStatus};

/// Open streams by the place of their URL in the node's settings.
#[derive(Default)]
pub(crate) struct Controls {
    open: BTreeMap<usize, Control>,
    /// Who is asked, while it is open.
    asked: usize,
}

struct Control {
    sender: mpsc::Sender<FromNode>,
    told: Told,
    /// Of its last heartbeat.
    answers_us: u64,
}

impl Controls {
    /// A stream opened; whether it is the only one.
    pub(crate) fn opened(&mut self, index: usize, sender: mpsc::Sender<FromNode>) -> bool {
        self.open.insert(index, Control { sender, told: Told::default(), answers_us: 0 });
        self.open.len() == 1
    }

    /// A stream ended, or is given up: its socket closes when nothing can be sent any more. Whether
    /// it was the one that was asked.
    pub(crate) fn close(&mut self, index: usize) -> bool {
        let was_asked = self.asked() == Some(index);
        self.open.remove(&index);
        was_asked
    }

    /// Whether what this one says counts: once its stream is given up, what is still on its way says
    /// only what changed since a message that was not obeyed.
    pub(crate) fn is_heard(&self, index: usize) -> bool {
        self.open.contains_key(&index)
    }

    /// A heartbeat came: the next report answers it.
    pub(crate) fn heartbeat(&mut self, index: usize, sent_us: u64) {
        if let Some(control) = self.open.get_mut(&index) {
            control.answers_us = sent_us;
        }
    }

    /// Whether any is open.
    pub(crate) fn is_any(&self) -> bool {
        !self.open.is_empty()
    }

    /// Who is asked: the one that was asked last or, if it is gone, the next one in turn.
    fn asked(&self) -> Option<usize> {
        let next = self.open.range(self.asked..).next().or_else(|| self.open.iter().next());
        next.map(|(index, _)| *index)
    }

    /// The one that is asked does not answer: the next in turn is asked from here on.
    pub(crate) fn ask_another(&mut self) {
        if let Some(asked) = self.asked() {
            self.asked = asked + 1;
            self.asked = self.asked().unwrap_or(0);
        }
    }

    /// Asks one. `false`: it cannot be said now.
    pub(crate) fn ask(&mut self, message: FromNode) -> bool {
        let Some(asked) = self.asked() else { return false };
        self.asked = asked;
        self.say(asked, message)
    }

    /// Tells one. `false`: it cannot be said now.
    pub(crate) fn say(&self, index: usize, message: FromNode) -> bool {
        self.open.get(&index).is_some_and(|control| control.sender.try_send(message).is_ok())
    }

    /// Tells each how things stand: of the groups, those that changed since it was told.
    pub(crate) fn report(&mut self, status: &NodeStatus, groups: &[GroupStatus]) {
        for control in self.open.values_mut() {
            let groups = control.told.changes(groups.to_vec());
            let status = NodeStatus { groups, answers_us: control.answers_us, ..status.clone() };
            if control.sender.try_send(FromNode::Status(status)).is_err() {
                // What was not said is said again.
                control.told = Told::default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_schemas::EscalationId;

    fn question() -> FromNode {
        FromNode::Escalate { id: EscalationId::generate(), requests: vec![] }
    }

    #[test]
    fn one_is_asked_and_the_next_when_it_is_gone_or_silent() {
        let mut controls = Controls::default();
        assert!(!controls.ask(question()), "nobody is there");
        let mut ends: Vec<_> = (0..3)
            .map(|index| {
                let (sender, end) = mpsc::channel(8);
                assert_eq!(controls.opened(index, sender), index == 0);
                end
            })
            .collect();
        let mut asked = |controls: &mut Controls| {
            assert!(controls.ask(question()));
            let heard: Vec<usize> =
                (0..3).filter(|index| ends[*index].try_recv().is_ok()).collect();
            assert_eq!(heard.len(), 1);
            heard[0]
        };
        assert_eq!((asked(&mut controls), asked(&mut controls)), (0, 0));
        controls.ask_another();
        assert_eq!(asked(&mut controls), 1);
        assert!(!controls.close(0));
        assert!(controls.close(1), "it was the one that was asked");
        assert_eq!(asked(&mut controls), 2);
        controls.ask_another();
        assert_eq!(asked(&mut controls), 2, "there is no other");
        controls.close(2);
        assert!(!controls.is_any());
    }

    #[test]
    fn a_stream_that_was_given_up_is_not_heard_until_it_opens_again() {
        let mut controls = Controls::default();
        let (sender, _end) = mpsc::channel(8);
        assert!(!controls.is_heard(1));
        controls.opened(1, sender.clone());
        assert!(controls.is_heard(1) && !controls.is_heard(0));
        controls.close(1);
        assert!(!controls.is_heard(1));
        controls.opened(1, sender);
        assert!(controls.is_heard(1));
    }

    #[test]
    fn all_are_told_how_things_stand() {
        let mut controls = Controls::default();
        let mut ends: Vec<_> = (0..2)
            .map(|index| {
                let (sender, end) = mpsc::channel(1);
                controls.opened(index, sender);
                end
            })
            .collect();
        controls.report(&NodeStatus::default(), &[]);
        for end in &mut ends {
            assert!(matches!(end.try_recv(), Ok(FromNode::Status(_))));
        }
    }
}

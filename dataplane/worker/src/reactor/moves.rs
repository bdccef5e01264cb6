//! Moves of a volume's owner that a host asks for (SET TARGET PORT GROUPS, SPC-4 §6.45): by a port of
//! the site that is to own.
//!
//! ```text
//! asked ─► the log (WantOwner) ─► moved, and this node serves ─► GOOD
//!                              └► refused, or not within MOVE_WITHIN ─► SET TARGET PORT GROUPS FAILED
//! ```
//!
//! A host that reaches one site only gets its volume there so. Two hosts of which each reaches another
//! site would take it from each other for ever: a group is moved so once in [`PAUSE`].

use super::{FromReactor, Reactor};
use crate::connection::{ConnectionId, Protocol};
use crate::mailbox::Message;
use std::collections::HashMap;
use std::time::Duration;
use voute_iscsi as iscsi;
use voute_mirror::Access;
use voute_schemas::GroupId;
use voute_schemas::command::Escalation;

/// How long a host waits for a move; it was told of more (TRANSITION_SECONDS).
const MOVE_WITHIN: Duration = Duration::from_secs(10);
/// Least time between two moves of a group that hosts ask for.
const PAUSE: Duration = Duration::from_secs(20);
/// Most hosts that wait for moves on a reactor, and most groups that it remembers.
const WAITING_MAX: usize = 1_024;

/// A host that waits.
struct Move {
    connection: ConnectionId,
    tag: u64,
    group: GroupId,
    until: Duration,
}

/// Moves under way, and when each group's was asked for last.
#[derive(Default)]
pub(super) struct Moves {
    waiting: Vec<Move>,
    asked: HashMap<GroupId, Duration>,
}

impl Moves {
    /// When the first host has waited long enough.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.waiting.iter().map(|one| one.until).min()
    }

    /// Whether the log is to be asked for a group's move: not while that would only undo another's.
    fn may_ask(&mut self, group: GroupId, now: Duration) -> bool {
        self.asked.retain(|_, at| *at + PAUSE > now);
        if self.waiting.len() >= WAITING_MAX || self.asked.len() >= WAITING_MAX {
            return false;
        }
        let is_free = !self.asked.contains_key(&group);
        if is_free {
            self.asked.insert(group, now);
        }
        is_free
    }

    fn take(&mut self, is_over: impl Fn(&Move) -> bool) -> Vec<(ConnectionId, u64)> {
        let over = self.waiting.extract_if(.., |one| is_over(one));
        over.map(|one| (one.connection, one.tag)).collect()
    }
}

impl Reactor {
    /// A host wants the ports of a target port group to be the active ones of a volume.
    pub(super) fn begin_move(
        &mut self,
        connection: ConnectionId,
        tag: u64,
        volume: u128,
        port_group: u16,
    ) {
        let now = self.clock.now();
        // Another group's ports are asked for at those: their node knows whether it could serve.
        let setup = self.setup.clone().filter(|setup| setup.number == port_group);
        let wanted = setup.and_then(|setup| {
            let route = self.routes.get(&volume)?;
            Some((route.shard, setup.offer.group_of(route.volume)?))
        });
        let Some((shard, (group, epoch, access))) = wanted else {
            return self.move_is_over(connection, tag, false);
        };
        if access == Access::Optimized {
            return self.move_is_over(connection, tag, true);
        }
        let is_under_way = self.moves.waiting.iter().any(|one| one.group == group);
        if !is_under_way {
            if !self.moves.may_ask(group, now) {
                return self.move_is_over(connection, tag, false);
            }
            let host = self.host_name(connection);
            tracing::info!(%group, host, "a host asks this node to own");
            let want = Escalation::WantOwner { group, epoch, host };
            self.tell_agent(FromReactor::Escalate(shard, want));
        }
        if self.moves.waiting.len() >= WAITING_MAX {
            return self.move_is_over(connection, tag, false);
        }
        self.moves.waiting.push(Move { connection, tag, group, until: now + MOVE_WITHIN });
    }

    /// Answers the hosts whose groups are served here now, and those that waited in vain.
    pub(super) fn follow_moves(&mut self) -> bool {
        let Some(setup) = self.setup.clone().filter(|_| !self.moves.waiting.is_empty()) else {
            return false;
        };
        let now = self.clock.now();
        let serves = |group| setup.offer.published_access(group) == Access::Optimized;
        let done = self.moves.take(|one| serves(one.group));
        let late = self.moves.take(|one| one.until <= now);
        let worked = !done.is_empty() || !late.is_empty();
        done.into_iter().for_each(|(connection, tag)| self.move_is_over(connection, tag, true));
        late.into_iter().for_each(|(connection, tag)| self.move_is_over(connection, tag, false));
        worked
    }

    /// The log does not move a group: told at the home of its shard, waited for anywhere.
    pub(super) fn move_refused(&mut self, group: GroupId) {
        for reactor in 0..self.parts.mailboxes.len() {
            if reactor != self.parts.index {
                self.post(reactor, Message::MoveRefused(group));
            }
        }
        self.forget_move(group);
    }

    /// Nobody here need wait for a group's move.
    pub(super) fn forget_move(&mut self, group: GroupId) {
        for (connection, tag) in self.moves.take(|one| one.group == group) {
            self.move_is_over(connection, tag, false);
        }
    }

    /// The iSCSI name of a connection's host.
    fn host_name(&mut self, id: ConnectionId) -> String {
        match self.connection(id).map(|connection| &connection.protocol) {
            Some(Protocol::Iscsi(host)) => host.host().unwrap_or_default().to_owned(),
            _ => String::new(),
        }
    }

    fn move_is_over(&mut self, id: ConnectionId, tag: u64, is_done: bool) {
        let Some(connection) = self.connection(id) else { return };
        if let Protocol::Iscsi(host) = &mut connection.protocol {
            let outcome = match is_done {
                true => iscsi::Outcome::Done,
                false => iscsi::Outcome::Failed(iscsi::Failure::MoveRefused),
            };
            host.complete(iscsi::Tag::from_raw(tag), outcome);
        }
        self.list(id.place());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_not_moved_to_and_fro() {
        let (mut moves, group) = (Moves::default(), GroupId::generate());
        assert!(moves.may_ask(group, Duration::ZERO));
        assert!(!moves.may_ask(group, PAUSE - Duration::from_millis(1)));
        assert!(moves.may_ask(GroupId::generate(), PAUSE / 2));
        assert!(moves.may_ask(group, PAUSE));
    }
}

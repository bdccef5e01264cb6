//! Judges what hosts prove, on a thread of its own: Diffie-Hellman takes milliseconds, which no reactor
//! has.
//!
//! A connection has at most one proof here, so that no more wait than there are connections. Addresses
//! take turns: a crowd that claims names from one address delays those of others by one proof each.

use crate::connection::ConnectionId;
use crate::mailbox::{Mailbox, Message};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use voute_nvme::{Authentication, Outcome};

/// A proof to be judged, and who is told.
pub(crate) struct Proof {
    pub(crate) reactor: usize,
    pub(crate) connection: ConnectionId,
    pub(crate) tag: u64,
    pub(crate) work: Authentication,
}

/// Where a connection comes from; `None` if that cannot be told any more.
pub(crate) type Origin = Option<IpAddr>;

/// The reactors' end; its thread ends with the last of them.
pub(crate) struct Judge(Sender<(Origin, Proof)>);

impl Judge {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub(crate) fn start(mailboxes: Arc<[Arc<Mailbox>]>) -> io::Result<Self> {
        let (sender, proofs) = channel();
        std::thread::Builder::new()
            .name("voute-judge".into())
            .spawn(move || judge(&proofs, &mailboxes))?;
        Ok(Judge(sender))
    }

    /// Has a proof judged; the answer comes by the reactor's mailbox. `false` if the thread is gone.
    pub(crate) fn submit(&self, origin: Origin, proof: Proof) -> bool {
        self.0.send((origin, proof)).is_ok()
    }
}

fn judge(proofs: &Receiver<(Origin, Proof)>, mailboxes: &[Arc<Mailbox>]) {
    let mut turns = Turns::default();
    loop {
        if turns.is_empty() {
            let Ok((origin, proof)) = proofs.recv() else { return };
            turns.add(origin, proof);
        }
        while let Ok((origin, proof)) = proofs.try_recv() {
            turns.add(origin, proof);
        }
        let Some(Proof { reactor, connection, tag, work }) = turns.next() else { continue };
        let outcome: Outcome = work.perform();
        if let Some(mailbox) = mailboxes.get(reactor) {
            mailbox.send(Message::Judged(connection, tag, Box::new(outcome)));
        }
    }
}

/// What waits: each origin's own in order, origins in turn.
struct Turns<T> {
    /// Whose turn it is; each that has something waiting once.
    order: VecDeque<Origin>,
    waiting: HashMap<Origin, VecDeque<T>>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Turns { order: VecDeque::new(), waiting: HashMap::new() }
    }
}

impl<T> Turns<T> {
    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn add(&mut self, origin: Origin, what: T) {
        let own = self.waiting.entry(origin).or_default();
        if own.is_empty() {
            self.order.push_back(origin);
        }
        own.push_back(what);
    }

    fn next(&mut self) -> Option<T> {
        let origin = self.order.pop_front()?;
        let own = self.waiting.get_mut(&origin)?;
        let what = own.pop_front();
        match own.is_empty() {
            true => drop(self.waiting.remove(&origin)),
            false => self.order.push_back(origin),
        }
        what
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_from_one_address_delays_others_by_one_proof_each() {
        let (crowd, host) = (Some([192, 0, 2, 1].into()), Some([192, 0, 2, 2].into()));
        let mut turns = Turns::default();
        (0..1_000).for_each(|number| turns.add(crowd, number));
        (0..2).for_each(|number| turns.add(host, 5_000 + number));
        let order: Vec<u32> = std::iter::from_fn(|| turns.next()).collect();
        assert_eq!(order[..5], [0, 5_000, 1, 5_001, 2]);
        assert_eq!(order.len(), 1_002);
        assert!(turns.is_empty() && turns.waiting.is_empty());
    }
}

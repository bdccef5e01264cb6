//! Judges what hosts prove, on a thread of its own: Diffie-Hellman takes milliseconds, which no reactor
//! has.

use crate::connection::ConnectionId;
use crate::mailbox::{Mailbox, Message};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use voute_nvme::{Authentication, Outcome};

/// Most proofs that wait. Hosts beyond are told to come again, so that a crowd of strangers costs
/// those who wait no more than a few seconds.
const WAITING_MAX: usize = 256;

/// A proof to be judged, and who is told.
pub(crate) struct Proof {
    pub(crate) reactor: usize,
    pub(crate) connection: ConnectionId,
    pub(crate) tag: u64,
    pub(crate) work: Authentication,
}

/// The reactors' end; its thread ends with the last of them.
pub(crate) struct Judge(SyncSender<Proof>);

impl Judge {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub(crate) fn start(mailboxes: Arc<[Arc<Mailbox>]>) -> io::Result<Self> {
        let (sender, proofs) = sync_channel(WAITING_MAX);
        std::thread::Builder::new()
            .name("voute-judge".into())
            .spawn(move || judge(&proofs, &mailboxes))?;
        Ok(Judge(sender))
    }

    /// Has a proof judged; the answer comes by the reactor's mailbox. `false` if too many wait.
    pub(crate) fn submit(&self, proof: Proof) -> bool {
        self.0.try_send(proof).is_ok()
    }
}

fn judge(proofs: &Receiver<Proof>, mailboxes: &[Arc<Mailbox>]) {
    while let Ok(Proof { reactor, connection, tag, work }) = proofs.recv() {
        let outcome: Outcome = work.perform();
        if let Some(mailbox) = mailboxes.get(reactor) {
            mailbox.send(Message::Judged(connection, tag, Box::new(outcome)));
        }
    }
}

//! What other sessions and connections may see of a session: whether it has ended, how many of its
//! requests are with their volumes, and the messages left for it.

use crate::request::VolumeKey;
use crate::scsi::Attention;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use voute_reservation::{InitiatorPort, Nexus};

/// Most messages left unread: beyond it, further unit attentions are dropped. Aborts never are, since
/// their senders count on them; each sender has a bounded number under way.
const MAIL_MAX: usize = 4096;

/// What makes a later login the same session (RFC 7143 §6.3.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey {
    pub(crate) initiator: Arc<str>,
    pub(crate) isid: [u8; 6],
    pub(crate) group_tag: u16,
    /// Not part of RFC 7143's key, but equal for equal tags: the port of the I_T nexus.
    pub(crate) relative_port: u16,
}

/// A message from another session.
pub(crate) enum Mail {
    /// Establish a unit attention for a volume.
    Attention(VolumeKey, Attention),
    /// Abort the tasks on a volume; the sender waits until every clone of the token is dropped.
    Abort(VolumeKey, Arc<()>),
}

pub(crate) struct Session {
    pub(crate) key: SessionKey,
    pub(crate) tsih: u16,
    nexus: Nexus,
    outstanding: AtomicUsize,
    ended: AtomicBool,
    has_mail: AtomicBool,
    mail: Mutex<Vec<Mail>>,
}

impl Session {
    pub(crate) fn new(key: SessionKey, tsih: u16) -> Self {
        let nexus = nexus(&key.initiator, key.isid, key.relative_port);
        Session {
            key,
            nexus,
            tsih,
            outstanding: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            has_mail: AtomicBool::new(false),
            mail: Mutex::default(),
        }
    }

    /// The I_T nexus, as reservations name it.
    pub(crate) fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    /// No further request may be surfaced. What was surfaced goes on to its end.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Counts a request about to be surfaced; false if the session has ended.
    ///
    /// The count rises before the flag is read, and a successor sets the flag before it reads the
    /// count: one of the two sees the other.
    pub(crate) fn begin_request(&self) -> bool {
        self.outstanding.fetch_add(1, Ordering::SeqCst);
        if self.has_ended() {
            self.end_request();
            return false;
        }
        true
    }

    pub(crate) fn end_request(&self) {
        self.outstanding.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::SeqCst)
    }

    pub(crate) fn post(&self, message: Mail) {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        if mail.len() < MAIL_MAX || matches!(message, Mail::Abort(..)) {
            mail.push(message);
            self.has_mail.store(true, Ordering::SeqCst);
        }
    }

    pub(crate) fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::SeqCst)
    }

    pub(crate) fn take_mail(&self) -> Vec<Mail> {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_mail.store(false, Ordering::SeqCst);
        std::mem::take(&mut mail)
    }
}

/// The I_T nexus of an initiator that is logged in.
pub(crate) fn nexus(initiator: &str, isid: [u8; 6], relative_port: u16) -> Nexus {
    let port = InitiatorPort::new(initiator, isid).expect("login checks the length of the name");
    Nexus::Scsi { port, relative_port }
}

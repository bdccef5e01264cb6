//! The controller's part.
//!
//! ```text
//! Idle ──NEGOTIATE──► Challenge due ──Receive──► Reply awaited ──REPLY──► Success due ──Receive──► Done
//!                                                                      └► (mutual) Success2 awaited ──► Done
//! anything wrong ──► Failure due ──Receive──► Over
//! ```

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::group::PrivateValue;
use super::message::{
    Failure, Message, Offer, Reply, read, write_challenge, write_failure1, write_success1,
};
use super::{Exchange, Group, Hash, HostKeys, Random, Seed};
use crate::{Outcome, Status};

/// A challenge that was made, until it is answered.
struct Challenged {
    hash: Hash,
    private: Option<PrivateValue>,
    value: Vec<u8>,
    sequence: u32,
}

enum Step {
    Idle,
    ChallengeDue { message: Vec<u8>, challenged: Challenged },
    ReplyAwaited(Challenged),
    SuccessDue { message: Vec<u8>, is_mutual: bool },
    ConfirmationAwaited,
    Done,
    FailureDue(Failure),
    Over,
}

/// How far a host has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pending,
    Authentic,
    /// It was told so, or gave up itself: the connection ends.
    Failed,
}

/// The controller's side of one connection's authentication.
pub(crate) struct Server {
    keys: Arc<HostKeys>,
    host: String,
    subsystem: String,
    random: Random,
    transaction: u16,
    step: Step,
    is_authentic: bool,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Server {
    pub(crate) fn new(
        keys: Arc<HostKeys>,
        host: &str,
        subsystem: &str,
        (seed, serial): (Seed, u64),
    ) -> Self {
        Server {
            keys,
            host: host.to_owned(),
            subsystem: subsystem.to_owned(),
            random: Random::new(seed, serial),
            transaction: 0,
            step: Step::Idle,
            is_authentic: false,
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        match (&self.step, self.is_authentic) {
            (Step::Over, _) => Verdict::Failed,
            (_, true) => Verdict::Authentic,
            (_, false) => Verdict::Pending,
        }
    }

    /// Takes a message of the host. May take long: see [`Authentication`].
    fn take(&mut self, bytes: &[u8]) {
        let step = std::mem::replace(&mut self.step, Step::Over);
        let next = match (step, read(bytes)) {
            (Step::Over, _) => Ok(Step::Over),
            (_, None) => Err(Failure::Payload),
            // A host that does not trust us has gone.
            (_, Some((_, Message::Failure2(_)))) => Ok(Step::Over),
            (
                Step::Idle | Step::Done,
                Some((transaction, Message::Negotiate { wants_channel, offers })),
            ) => {
                self.transaction = transaction;
                self.challenge(wants_channel, &offers)
            }
            (_, Some((transaction, _))) if transaction != self.transaction => Err(Failure::Payload),
            (Step::ReplyAwaited(challenged), Some((_, Message::Reply(reply)))) => {
                self.judge(&challenged, &reply)
            }
            (Step::ConfirmationAwaited, Some((_, Message::Success2))) => {
                self.is_authentic = true;
                Ok(Step::Done)
            }
            (
                Step::Idle
                | Step::Done
                | Step::ChallengeDue { .. }
                | Step::ReplyAwaited(_)
                | Step::SuccessDue { .. }
                | Step::ConfirmationAwaited
                | Step::FailureDue(_),
                Some(_),
            ) => Err(Failure::Message),
        };
        self.step = next.unwrap_or_else(|failure| {
            self.is_authentic = false;
            Step::FailureDue(failure)
        });
    }

    fn challenge(&mut self, wants_channel: bool, offers: &[Offer]) -> Result<Step, Failure> {
        if wants_channel {
            return Err(Failure::Channel);
        }
        let offer = offers.first().ok_or(Failure::NotUsable)?;
        let hash = Hash::PREFERRED.into_iter().find(|hash| offer.hashes.contains(&hash.code()));
        let hash = hash.ok_or(Failure::HashNotUsable)?;
        let group = Group::PREFERRED.into_iter().find(|group| offer.groups.contains(&group.code()));
        let group = group.ok_or(Failure::GroupNotUsable)?;
        let private = PrivateValue::new(group, &self.random.draw(64));
        let public = private.as_ref().map(PrivateValue::public).unwrap_or_default();
        let (value, sequence) = (self.random.draw(hash.length()), self.random.sequence());
        let message = write_challenge(self.transaction, (hash, group), (&value, sequence), &public);
        let challenged = Challenged { hash, private, value, sequence };
        Ok(Step::ChallengeDue { message, challenged })
    }

    fn judge(&mut self, challenged: &Challenged, reply: &Reply<'_>) -> Result<Step, Failure> {
        let Challenged { hash, private, value, sequence } = challenged;
        if reply.response.len() != hash.length() {
            return Err(Failure::Payload);
        }
        let shared = match private {
            None if reply.public.is_empty() => None,
            None => return Err(Failure::Payload),
            Some(private) => Some(private.shared(reply.public).ok_or(Failure::Payload)?),
        };
        let exchange = Exchange {
            hash: *hash,
            shared: shared.as_deref(),
            transaction: self.transaction,
            host: &self.host,
            subsystem: &self.subsystem,
        };
        let expected = exchange.host_response(&self.keys.host, value, *sequence);
        if !bool::from(expected.ct_eq(reply.response)) {
            return Err(Failure::Failed);
        }
        let Some((second, second_sequence)) = reply.challenge else {
            self.is_authentic = true;
            let message = write_success1(self.transaction, *hash, None);
            return Ok(Step::SuccessDue { message, is_mutual: false });
        };
        // A challenge that is our own sent back would have us answer ourselves.
        let is_reflected = second == value.as_slice();
        let key = self.keys.controller.as_ref().filter(|_| !is_reflected).ok_or(Failure::Failed)?;
        let response = exchange.controller_response(key, second, second_sequence);
        let message = write_success1(self.transaction, *hash, Some(&response));
        Ok(Step::SuccessDue { message, is_mutual: true })
    }

    /// The message that is due to the host; `None` if none is.
    pub(crate) fn give(&mut self, length_max: usize) -> Result<Vec<u8>, Status> {
        let due = match &self.step {
            Step::ChallengeDue { message, .. } | Step::SuccessDue { message, .. } => {
                message.clone()
            }
            Step::FailureDue(failure) => write_failure1(self.transaction, *failure),
            Step::Idle
            | Step::ReplyAwaited(_)
            | Step::ConfirmationAwaited
            | Step::Done
            | Step::Over => return Err(Status::command_sequence_error()),
        };
        if due.len() > length_max {
            return Err(Status::invalid_field());
        }
        self.step = match std::mem::replace(&mut self.step, Step::Over) {
            Step::ChallengeDue { challenged, .. } => Step::ReplyAwaited(challenged),
            Step::SuccessDue { is_mutual: true, .. } => Step::ConfirmationAwaited,
            Step::SuccessDue { is_mutual: false, .. } => Step::Done,
            Step::FailureDue(_) => Step::Over,
            other => other,
        };
        Ok(due)
    }
}

/// A host's message that is to be judged, which may take milliseconds of computing: to be
/// [performed](Self::perform) where that disturbs nobody.
#[derive(Debug)]
pub struct Authentication {
    pub(crate) server: Box<Server>,
    pub(crate) message: voute_buffer::Buffer,
}

impl Authentication {
    /// Computes. Complete the request with what comes back.
    #[must_use]
    pub fn perform(self) -> Outcome {
        let Authentication { mut server, message } = self;
        server.take(&message);
        Outcome::Authenticated(AuthenticationState(server))
    }

    /// The host that claims to be who it is.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.server.host
    }
}

/// Where a host's authentication stands; opaque.
#[derive(Debug)]
pub struct AuthenticationState(pub(crate) Box<Server>);

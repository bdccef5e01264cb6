//! The host's part.

use subtle::ConstantTimeEq;

use super::group::PrivateValue;
use super::message::{
    Challenge, Failure, Message, read, write_failure2, write_negotiate, write_reply, write_success2,
};
use super::{Exchange, Group, Hash, HostKeys, Random, Seed};

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Send(Vec<u8>),
    Receive,
    /// Both sides are content.
    Done,
    /// Tell the controller, if there is something to tell, and end the connection.
    Fail {
        message: Option<Vec<u8>>,
        failure: Failure,
        is_target: bool,
    },
}

enum Step {
    Start,
    Negotiating,
    ChallengeAwaited,
    Replying,
    /// And the response that the controller must give, if it must.
    SuccessAwaited(Option<Vec<u8>>),
    Confirming,
    Over,
}

/// The host's side of one connection's authentication.
pub(crate) struct Client {
    keys: HostKeys,
    host: String,
    subsystem: String,
    random: Random,
    transaction: u16,
    step: Step,
    expected: Option<Vec<u8>>,
}

impl Client {
    pub(crate) fn new(
        keys: HostKeys,
        host: &str,
        subsystem: &str,
        (seed, serial): (Seed, u64),
    ) -> Self {
        Client {
            keys,
            host: host.to_owned(),
            subsystem: subsystem.to_owned(),
            random: Random::new(seed, serial),
            transaction: serial as u16,
            step: Step::Start,
            expected: None,
        }
    }

    /// The first thing to do, and what follows each message that was sent.
    pub(crate) fn go_on(&mut self) -> Turn {
        let step = std::mem::replace(&mut self.step, Step::Over);
        let (next, turn) = match step {
            Step::Start => (Step::Negotiating, Turn::Send(write_negotiate(self.transaction))),
            Step::Negotiating => (Step::ChallengeAwaited, Turn::Receive),
            Step::Replying => (Step::SuccessAwaited(self.expected.take()), Turn::Receive),
            Step::Confirming => (Step::Over, Turn::Done),
            Step::ChallengeAwaited | Step::SuccessAwaited(_) | Step::Over => {
                (Step::Over, self.fail(Failure::Message))
            }
        };
        self.step = next;
        turn
    }

    /// Takes a message of the controller.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Turn {
        let step = std::mem::replace(&mut self.step, Step::Over);
        let Some((transaction, message)) = read(bytes) else { return self.fail(Failure::Payload) };
        match (step, message) {
            (_, Message::Failure1(failure)) => {
                Turn::Fail { message: None, failure, is_target: false }
            }
            _ if transaction != self.transaction => self.fail(Failure::Payload),
            (Step::ChallengeAwaited, Message::Challenge(challenge)) => {
                self.reply(&challenge).unwrap_or_else(|failure| self.fail(failure))
            }
            (Step::SuccessAwaited(None), Message::Success1 { .. }) => Turn::Done,
            (Step::SuccessAwaited(Some(expected)), Message::Success1 { response }) => {
                let is_right =
                    response.is_some_and(|response| bool::from(expected.ct_eq(response)));
                if !is_right {
                    let message = Some(write_failure2(self.transaction, Failure::Failed));
                    return Turn::Fail { message, failure: Failure::Failed, is_target: true };
                }
                self.step = Step::Confirming;
                Turn::Send(write_success2(self.transaction))
            }
            _ => self.fail(Failure::Message),
        }
    }

    fn fail(&self, failure: Failure) -> Turn {
        let message = Some(write_failure2(self.transaction, failure));
        Turn::Fail { message, failure, is_target: true }
    }

    fn reply(&mut self, challenge: &Challenge<'_>) -> Result<Turn, Failure> {
        let hash = Hash::from_code(challenge.hash).ok_or(Failure::HashNotUsable)?;
        let group = Group::from_code(challenge.group).ok_or(Failure::GroupNotUsable)?;
        if challenge.value.len() != hash.length() || challenge.public.len() != group.length() {
            return Err(Failure::Payload);
        }
        let private = PrivateValue::new(group, &self.random.draw(64));
        let shared = match &private {
            None => None,
            Some(private) => Some(private.shared(challenge.public).ok_or(Failure::Payload)?),
        };
        let public = private.as_ref().map(PrivateValue::public).unwrap_or_default();
        let exchange = Exchange {
            hash,
            shared: shared.as_deref(),
            transaction: self.transaction,
            host: &self.host,
            subsystem: &self.subsystem,
        };
        let response = exchange.host_response(&self.keys.host, challenge.value, challenge.sequence);
        let asked = self.keys.controller.as_ref().map(|key| {
            let (value, sequence) = (self.random.draw(hash.length()), self.random.sequence());
            let expected = exchange.controller_response(key, &value, sequence);
            (value, sequence, expected)
        });
        let second = asked.as_ref().map(|(value, sequence, _)| (value.as_slice(), *sequence));
        let message = write_reply(self.transaction, &response, second, &public);
        self.expected = asked.map(|(_, _, expected)| expected);
        self.step = Step::Replying;
        Ok(Turn::Send(message))
    }
}

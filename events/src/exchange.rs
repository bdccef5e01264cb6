//! What the control processes of one log tell each other beside it: signatures, who watches, secrets.
//!
//! Nothing here is stored or ordered, and each message may be lost or come twice: whoever speaks
//! repeats itself, and whoever hears verifies. The log alone decides.

use async_nats::connection::State;
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;
use voute_schemas::CorrelationId;

/// Longest message, bytes; longer ones are not sent.
pub const MESSAGE_BYTES_MAX: usize = 512 << 10;
/// How long saying something may take before it is left unsaid.
const SAY_WITHIN: Duration = Duration::from_millis(200);
/// Pause before listening begins again after it broke.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Messages that wait for a listener of the same program; the oldest are dropped.
const WAITING_MAX: usize = 1_024;

/// What a message is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topic {
    /// Signed checkpoints.
    Signatures,
    /// Who watches the sites.
    Watch,
    /// Secrets, sealed.
    Secrets,
}

impl Topic {
    const ALL: [Topic; 3] = [Topic::Signatures, Topic::Watch, Topic::Secrets];

    fn word(self) -> &'static str {
        match self {
            Topic::Signatures => "signatures",
            Topic::Watch => "watch",
            Topic::Secrets => "secrets",
        }
    }
}

/// A way to speak to the other control processes of a log. Clones speak as the same process.
#[derive(Clone)]
pub struct Exchange(Kind);

#[derive(Clone)]
enum Kind {
    Alone,
    Nats { client: Client, stream: String, own: Speaker },
    Ring(Arc<Seat>),
}

/// Who speaks: drawn anew by each process, and put before each of its messages. NATS brings everyone
/// the own messages, too.
type Speaker = [u8; 16];

impl std::fmt::Debug for Exchange {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match &self.0 {
            Kind::Alone => "Exchange(alone)",
            Kind::Nats { .. } => "Exchange(nats)",
            Kind::Ring(_) => "Exchange(ring)",
        })
    }
}

/// Who said it, and what.
type Said = (usize, Vec<u8>);

/// A place in a ring of exchanges within one program.
struct Seat {
    number: usize,
    is_cut: AtomicBool,
    topics: Arc<[broadcast::Sender<Said>]>,
}

impl Exchange {
    /// Of a log that only one process can open: nobody hears, nobody speaks.
    #[must_use]
    pub fn alone() -> Self {
        Exchange(Kind::Alone)
    }

    /// Core messages of a NATS cluster, on subjects beside a log's stream.
    pub(crate) fn nats(client: Client, stream: String) -> Self {
        Exchange(Kind::Nats { client, stream, own: CorrelationId::generate().bytes() })
    }

    /// Exchanges that hear each other within one program, for tests of several processes.
    #[must_use]
    pub fn ring(count: usize) -> Vec<Self> {
        let topics: Arc<[_]> =
            Topic::ALL.iter().map(|_| broadcast::channel(WAITING_MAX).0).collect();
        let seat = |number| Seat { number, is_cut: AtomicBool::new(false), topics: topics.clone() };
        (0..count).map(|number| Exchange(Kind::Ring(Arc::new(seat(number))))).collect()
    }

    /// Cuts a place of a ring off, or lets it take part again; does nothing to other exchanges.
    pub fn cut(&self, is_cut: bool) {
        if let Kind::Ring(seat) = &self.0 {
            seat.is_cut.store(is_cut, Ordering::SeqCst);
        }
    }

    /// Whether there can be others at all.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        matches!(self.0, Kind::Alone)
    }

    /// Tells all others; may be lost.
    pub async fn say(&self, topic: Topic, message: Vec<u8>) {
        if message.len() > MESSAGE_BYTES_MAX {
            tracing::error!(?topic, bytes = message.len(), "too long for the exchange, not said");
            return;
        }
        match &self.0 {
            Kind::Alone => {}
            Kind::Ring(seat) => {
                if !seat.is_cut.load(Ordering::SeqCst) {
                    // No listener is no error.
                    let _ = seat.topics[topic as usize].send((seat.number, message));
                }
            }
            // What waits for a connection would be old when it goes out.
            Kind::Nats { client, .. } if client.connection_state() != State::Connected => {}
            Kind::Nats { client, stream, own } => {
                let message = [own.as_slice(), &message].concat();
                let publish = client.publish(subject_of(stream, topic), message.into());
                if let Ok(Err(error)) = tokio::time::timeout(SAY_WITHIN, publish).await {
                    tracing::debug!(%error, ?topic, "not said");
                }
            }
        }
    }

    /// Hears what others say from now on.
    #[must_use]
    pub fn listen(&self, topic: Topic) -> Listening {
        match &self.0 {
            Kind::Alone => Listening(Ear::Deaf),
            Kind::Ring(seat) => {
                let receiver = seat.topics[topic as usize].subscribe();
                Listening(Ear::Ring { seat: Arc::clone(seat), receiver })
            }
            Kind::Nats { client, stream, own } => Listening(Ear::Nats {
                own: *own,
                client: client.clone(),
                subject: subject_of(stream, topic),
                subscriber: None,
            }),
        }
    }
}

fn subject_of(stream: &str, topic: Topic) -> String {
    format!("voute.exchange.{stream}.{}", topic.word())
}

/// What others say on a topic.
pub struct Listening(Ear);

enum Ear {
    Deaf,
    Nats { own: Speaker, client: Client, subject: String, subscriber: Option<Subscriber> },
    Ring { seat: Arc<Seat>, receiver: broadcast::Receiver<Said> },
}

impl Listening {
    /// The next message; waits for ever where nobody speaks. Nothing is lost if this is dropped
    /// before it returns.
    pub async fn next(&mut self) -> Vec<u8> {
        match &mut self.0 {
            Ear::Deaf => std::future::pending().await,
            Ear::Nats { own, client, subject, subscriber } => loop {
                if let Some(open) = subscriber {
                    if let Some(message) = open.next().await {
                        match message.payload.split_first_chunk() {
                            Some((speaker, said))
                                if speaker != own && said.len() <= MESSAGE_BYTES_MAX =>
                            {
                                return said.to_vec();
                            }
                            _ => continue,
                        }
                    }
                    *subscriber = None;
                    tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
                }
                match client.subscribe(subject.clone()).await {
                    Ok(open) => *subscriber = Some(open),
                    Err(error) => {
                        tracing::warn!(%error, subject, "cannot listen; trying again");
                        tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
                    }
                }
            },
            Ear::Ring { seat, receiver } => loop {
                match receiver.recv().await {
                    Ok((from, message)) if from != seat.number => {
                        if !seat.is_cut.load(Ordering::SeqCst) {
                            return message;
                        }
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn others_hear_on_their_topic_unless_they_are_cut_off() {
        let ring = Exchange::ring(3);
        let mut watch = ring[1].listen(Topic::Watch);
        let mut own = ring[0].listen(Topic::Watch);
        let mut cut = ring[2].listen(Topic::Watch);
        ring[2].cut(true);
        ring[0].say(Topic::Signatures, b"elsewhere".to_vec()).await;
        ring[0].say(Topic::Watch, b"one".to_vec()).await;
        ring[2].say(Topic::Watch, b"unheard".to_vec()).await;
        ring[1].say(Topic::Watch, b"two".to_vec()).await;
        assert_eq!(watch.next().await, b"one");
        assert_eq!(own.next().await, b"two", "nobody hears itself");
        let silence = tokio::time::timeout(Duration::from_millis(20), cut.next()).await;
        assert!(silence.is_err());
        let nobody = Exchange::alone();
        nobody.say(Topic::Secrets, vec![1]).await;
        assert!(nobody.is_alone());
    }
}

//! Learning of new appends: an ordered consumer of the headers only, in a task of its own. What it
//! tells is a hint; reading is what counts.

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::OrderedConfig;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use voute_schemas::Sequence;

/// Header that names the last commit of an append.
pub(super) const LAST_COMMIT: &str = "Voute-Last";
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// The highest that was heard of.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Heard {
    /// Number of a commit.
    pub(super) commit: u64,
    /// Number of a message.
    pub(super) message: u64,
}

pub(super) struct Watch {
    heard: Arc<watch::Sender<Heard>>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(super) fn start(context: Context, stream: String, last_message: u64) -> Self {
        let heard = Heard { commit: 0, message: last_message };
        let heard = Arc::new(watch::Sender::new(heard));
        let task = tokio::spawn(listen(context, stream, Arc::clone(&heard)));
        Watch { heard, task }
    }

    pub(super) fn last_message(&self) -> u64 {
        self.heard.borrow().message
    }

    pub(super) fn hear(&self, heard: Heard) {
        raise(&self.heard, heard);
    }

    /// Returns once commit `from` was heard of.
    pub(super) async fn wait(&self, from: Sequence) {
        let mut heard = self.heard.subscribe();
        heard
            .wait_for(|heard| heard.commit >= from.0)
            .await
            .expect("the sender lives in self, which is borrowed here");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn raise(known: &watch::Sender<Heard>, heard: Heard) {
    known.send_if_modified(|known| {
        let raised = Heard {
            commit: known.commit.max(heard.commit),
            message: known.message.max(heard.message),
        };
        let rose = raised != *known;
        *known = raised;
        rose
    });
}

async fn listen(context: Context, stream: String, heard: Arc<watch::Sender<Heard>>) {
    loop {
        if let Err(error) = listen_once(&context, &stream, &heard).await {
            tracing::warn!(%error, stream, "listening for new commits failed; trying again");
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

async fn listen_once(
    context: &Context,
    stream: &str,
    heard: &watch::Sender<Heard>,
) -> Result<(), async_nats::Error> {
    let config = OrderedConfig {
        deliver_subject: context.client().new_inbox(),
        deliver_policy: DeliverPolicy::Last,
        headers_only: true,
        ..OrderedConfig::default()
    };
    let stream = context.get_stream_no_info(stream).await?;
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let commit = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(LAST_COMMIT))
            .and_then(|last| last.as_str().parse().ok());
        let message = message.info()?.stream_sequence;
        raise(heard, Heard { commit: commit.unwrap_or(0), message });
    }
    Ok(())
}

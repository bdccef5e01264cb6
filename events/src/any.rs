//! Either engine, for programs that choose at their start.

use crate::{
    AppendError, EmbeddedLog, Exchange, JetStreamLog, Log, Position, ReadError, StoredCommit,
};
use std::time::Duration;
use voute_schemas::{Commit, Sequence};

/// A log of either engine. Clones are handles to the same log.
#[derive(Clone)]
pub enum AnyLog {
    /// A file of this process.
    Embedded(EmbeddedLog),
    /// A stream of a nats-server.
    JetStream(JetStreamLog),
}

impl AnyLog {
    /// How the control processes of this log speak to each other.
    #[must_use]
    pub fn exchange(&self) -> Exchange {
        match self {
            AnyLog::Embedded(_) => Exchange::alone(),
            AnyLog::JetStream(log) => log.exchange(),
        }
    }
}

impl From<EmbeddedLog> for AnyLog {
    fn from(log: EmbeddedLog) -> Self {
        AnyLog::Embedded(log)
    }
}

impl From<JetStreamLog> for AnyLog {
    fn from(log: JetStreamLog) -> Self {
        AnyLog::JetStream(log)
    }
}

impl Log for AnyLog {
    async fn append(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError> {
        match self {
            AnyLog::Embedded(log) => log.append(expected, commits).await,
            AnyLog::JetStream(log) => log.append(expected, commits).await,
        }
    }

    async fn read(&self, from: Sequence, limit: usize) -> Result<Vec<StoredCommit>, ReadError> {
        match self {
            AnyLog::Embedded(log) => log.read(from, limit).await,
            AnyLog::JetStream(log) => log.read(from, limit).await,
        }
    }

    async fn wait(&self, from: Sequence) {
        match self {
            AnyLog::Embedded(log) => log.wait(from).await,
            AnyLog::JetStream(log) => log.wait(from).await,
        }
    }

    fn settle(&self) -> Duration {
        match self {
            AnyLog::Embedded(log) => log.settle(),
            AnyLog::JetStream(log) => log.settle(),
        }
    }
}

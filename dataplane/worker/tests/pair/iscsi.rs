//! A host on one iSCSI path.

use super::control::{HOST_IQN, TARGET};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use voute_iscsi::{Completion, Initiator, InitiatorConfig, InitiatorError};

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Session {
    socket: TcpStream,
    initiator: Initiator,
}

impl Session {
    /// Logs in, as soon as the node knows of this host.
    pub(crate) fn open(address: SocketAddr) -> Self {
        let until = Instant::now() + PATIENCE;
        loop {
            let socket = TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
            let initiator = Initiator::new(InitiatorConfig::new(HOST_IQN, Some(TARGET)));
            let mut session = Session { socket, initiator };
            match session.try_until(|initiator| initiator.is_ready().then_some(())) {
                Ok(()) => return session,
                Err(InitiatorError::LoginRefused { class: 2, detail: 2 })
                    if Instant::now() < until => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn run_until<T>(&mut self, done: impl FnMut(&mut Initiator) -> Option<T>) -> T {
        self.try_until(done).unwrap()
    }

    fn try_until<T>(
        &mut self,
        mut done: impl FnMut(&mut Initiator) -> Option<T>,
    ) -> Result<T, InitiatorError> {
        let until = Instant::now() + PATIENCE;
        let mut bytes = vec![0; 256 << 10];
        loop {
            if let Some(done) = done(&mut self.initiator) {
                return Ok(done);
            }
            assert!(Instant::now() < until, "the target does not answer");
            let output = std::mem::take(self.initiator.output());
            self.socket.write_all(&output).unwrap();
            match self.socket.read(&mut bytes) {
                Ok(0) => panic!("the target closed the connection"),
                Ok(length) => self.initiator.receive(&bytes[..length])?,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Sends one command and awaits what it comes to.
    pub(crate) fn run(
        &mut self,
        command: impl FnOnce(&mut Initiator) -> Result<u32, InitiatorError>,
    ) -> Completion {
        let task = command(&mut self.initiator).unwrap();
        self.run_until(|initiator| {
            let completion = initiator.next_completion()?;
            (completion.task == task).then_some(completion)
        })
    }

    /// Sends `count` reads of `blocks` blocks at once, and awaits what they come to.
    pub(crate) fn read_at_once(&mut self, lun: u16, blocks: u32, count: usize) -> Vec<Completion> {
        for _ in 0..count {
            self.initiator.read(lun, 0, blocks, 512).unwrap();
        }
        let mut completions = Vec::new();
        self.run_until(|initiator| {
            completions.extend(std::iter::from_fn(|| initiator.next_completion()));
            (completions.len() >= count).then_some(())
        });
        completions
    }
}

//! One initiator connection and its socket.

use super::RemoteError;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use voute_nvme::InitiatorConnection;

/// How long a TCP connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Read from a socket at once, bytes.
const INPUT_BYTES: usize = 256 << 10;

/// A connection and its socket.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    pub(super) connection: InitiatorConnection,
    input: Vec<u8>,
}

impl Wire {
    /// Connects to `address`, within `limit` at most.
    pub(super) fn open(
        address: SocketAddr,
        connection: InitiatorConnection,
        limit: Duration,
    ) -> Result<Self, RemoteError> {
        let limit = limit.clamp(Duration::from_millis(1), CONNECT_MAX);
        let open = || -> io::Result<TcpStream> {
            let stream = TcpStream::connect_timeout(&address, limit)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let stream = open().map_err(RemoteError::Connect)?;
        Ok(Wire { stream, connection, input: vec![0; INPUT_BYTES] })
    }

    /// Sends and receives what is possible without waiting.
    pub(super) fn exchange(&mut self, now: Duration) {
        if self.send().and_then(|()| self.receive(now)).is_err() {
            self.connection.disconnected();
        }
        self.connection.tick(now);
    }

    pub(super) fn send(&mut self) -> io::Result<()> {
        while !self.connection.output().is_empty() {
            match self.stream.write(self.connection.output()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => drop(self.connection.output().drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads once: what is left keeps the socket readable.
    fn receive(&mut self, now: Duration) -> io::Result<()> {
        if !self.connection.wants_input() {
            return Ok(());
        }
        match self.stream.read(&mut self.input) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.connection.receive(&self.input[..length], now);
                Ok(())
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

//! What this machine's loopback TCP allows at best: two pinned threads that exchange the byte counts
//! of NVMe/TCP requests, with no protocol and no storage behind. Both spin, as a polling target and
//! its load generator do, and both gather: whatever is to be sent at a time goes with one system call.

use crate::pace::{Pace, Report, pin, ready};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Most bytes of one system call, if one message is not longer.
const GATHERED_MAX: usize = 512 << 10;

/// What is exchanged.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Bytes of a request on the wire.
    pub request_bytes: usize,
    /// Bytes of a response on the wire.
    pub response_bytes: usize,
    /// Bytes that count as payload.
    pub payload_bytes: u64,
    /// Requests under way.
    pub depth: usize,
    /// For how long.
    pub duration: Duration,
    /// Processors of the two threads: asking, answering.
    pub processors: Option<(usize, usize)>,
}

impl Exchange {
    /// The bytes that a read or write of `payload` bytes costs on NVMe/TCP without digests: a
    /// command capsule of 72 bytes, a data PDU header of 24, a response capsule of 24. Writes beyond
    /// `in_capsule` bytes also cost an R2T and a data header.
    #[must_use]
    pub fn of_nvme(
        write: bool,
        payload: usize,
        in_capsule: usize,
        depth: usize,
        duration: Duration,
    ) -> Self {
        let (request_bytes, response_bytes) = match (write, payload <= in_capsule) {
            (false, _) => (72, 24 + payload + 24),
            (true, true) => (72 + payload, 24),
            (true, false) => (72 + 24 + payload, 24 + 24),
        };
        Exchange {
            request_bytes,
            response_bytes,
            payload_bytes: payload as u64,
            depth,
            duration,
            processors: None,
        }
    }
}

/// Runs the exchange.
///
/// # Errors
/// If loopback sockets fail.
pub fn run(exchange: Exchange) -> anyhow::Result<Report> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answering = std::thread::spawn(move || answer(&listener, exchange));
    let report = ask(TcpStream::connect(address)?, exchange)?;
    match answering.join() {
        Ok(result) => result?,
        Err(_) => anyhow::bail!("the answering thread panicked"),
    }
    Ok(report)
}

fn answer(listener: &TcpListener, exchange: Exchange) -> anyhow::Result<()> {
    if let Some((_, processor)) = exchange.processors {
        pin(processor)?;
    }
    let (mut stream, _) = listener.accept()?;
    ready(&stream)?;
    let mut input = vec![0; 256 << 10];
    let output = vec![0; gathered(exchange.response_bytes, exchange.depth)];
    let mut pending = 0;
    loop {
        match stream.read(&mut input) {
            Ok(0) => return Ok(()),
            Ok(count) => pending += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let mut owed = pending / exchange.request_bytes * exchange.response_bytes;
        pending %= exchange.request_bytes;
        while owed > 0 {
            let length = owed.min(output.len());
            if !write_spinning(&mut stream, &output[..length])? {
                return Ok(());
            }
            owed -= length;
        }
    }
}

/// Length of the buffer that messages of `bytes` bytes are sent from.
fn gathered(bytes: usize, depth: usize) -> usize {
    bytes * depth.min((GATHERED_MAX / bytes).max(1))
}

/// Returns whether the peer is still there.
fn write_spinning(stream: &mut TcpStream, mut bytes: &[u8]) -> anyhow::Result<bool> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

fn ask(mut stream: TcpStream, exchange: Exchange) -> anyhow::Result<Report> {
    if let Some((processor, _)) = exchange.processors {
        pin(processor)?;
    }
    ready(&stream)?;
    let requests = vec![0; gathered(exchange.request_bytes, exchange.depth)];
    let mut input = vec![0; 256 << 10];
    let mut sent: VecDeque<Instant> = VecDeque::new();
    let (mut unsent, mut received) = (0, 0);
    let mut pace = Pace::default();
    let begin = Instant::now();
    while begin.elapsed() < exchange.duration {
        while sent.len() < exchange.depth {
            sent.push_back(Instant::now());
            unsent += exchange.request_bytes;
        }
        while unsent > 0 {
            match stream.write(&requests[..unsent.min(requests.len())]) {
                Ok(count) => unsent -= count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        match stream.read(&mut input) {
            Ok(0) => anyhow::bail!("the answering thread closed the connection"),
            Ok(count) => received += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        while received >= exchange.response_bytes {
            received -= exchange.response_bytes;
            if let Some(at) = sent.pop_front() {
                pace.note(at, now);
            }
        }
    }
    Ok(pace.report(begin.elapsed(), exchange.payload_bytes))
}

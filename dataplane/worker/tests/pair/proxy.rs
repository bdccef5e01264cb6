//! A wire that can be cut: what is sent over it then is acknowledged by the kernel and never arrives,
//! as on a network that drops packets without a word.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl Wire {
    /// Passes connections on to `target`, for as long as the test's process lives.
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((target.ip(), 0)).unwrap();
        let wire = Wire {
            address: listener.local_addr().unwrap(),
            is_cut: Arc::new(AtomicBool::new(false)),
        };
        let passing = wire.clone();
        std::thread::spawn(move || {
            for incoming in listener.incoming() {
                let incoming = incoming.unwrap();
                // One that is refused now is tried again by who connects.
                let Ok(outgoing) = TcpStream::connect(target) else { continue };
                passing.pass(&incoming, &outgoing);
                passing.pass(&outgoing, &incoming);
            }
        });
        wire
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.is_cut.store(cut, Ordering::SeqCst);
    }

    fn pass(&self, from: &TcpStream, to: &TcpStream) {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        from.set_nodelay(true).unwrap();
        from.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let is_cut = self.is_cut.clone();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 256 << 10];
            let mut was_cut = false;
            loop {
                let length = match from.read(&mut bytes) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(error)
                        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                    {
                        0
                    }
                    Err(_) => break,
                };
                was_cut |= is_cut.load(Ordering::SeqCst);
                // A stream with a hole in it must not be mended: it ends when the wire is whole.
                if was_cut && !is_cut.load(Ordering::SeqCst) {
                    break;
                }
                if !was_cut && to.write_all(&bytes[..length]).is_err() {
                    break;
                }
            }
            for socket in [from, to] {
                // The other direction may have done it.
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
        });
    }
}

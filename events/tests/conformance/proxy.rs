//! A TCP proxy on loopback that can lose a publication or its answer, once, by cutting the
//! connection at that moment.

use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What is to be lost next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lose {
    Nothing,
    /// Cut before the publication reaches the server.
    Publication,
    /// Cut when the server's answer comes, without passing it on.
    Answer,
}

/// One proxy before one server.
pub(crate) struct Proxy {
    address: String,
    lose: Arc<Mutex<Lose>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free loopback port.
    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let lose = Arc::new(Mutex::new(Lose::Nothing));
        let task = tokio::spawn({
            let lose = Arc::clone(&lose);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(serve(client, server.clone(), Arc::clone(&lose)));
                }
            }
        });
        Proxy { address, lose, task }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Arms the proxy for the next publication to a log.
    pub(crate) fn lose(&self, what: Lose) {
        *self.lose.lock().unwrap() = what;
    }

    /// Whether what was armed has happened.
    pub(crate) fn has_lost(&self) -> bool {
        *self.lose.lock().unwrap() == Lose::Nothing
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends with the connection: by either end, or cut.
async fn serve(mut client: TcpStream, server: String, lose: Arc<Mutex<Lose>>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut awaits_answer = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                let bytes = &asked[..length];
                let armed = *lose.lock().unwrap();
                if contains(bytes, b"HPUB voute.log.") {
                    match armed {
                        Lose::Nothing => {}
                        Lose::Publication => {
                            *lose.lock().unwrap() = Lose::Nothing;
                            return;
                        }
                        Lose::Answer => awaits_answer = true,
                    }
                }
                if server.write_all(bytes).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(length @ 1..) = read else { return };
                let bytes = &answered[..length];
                if awaits_answer {
                    if contains(bytes, b"\"seq\":") {
                        *lose.lock().unwrap() = Lose::Nothing;
                        return;
                    }
                    continue;
                }
                if client.write_all(bytes).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

//! The iSCSI side of the verifying host: one reader that checks the writers' slots through whichever
//! portal serves the volume, as a SCSI host with ALUA does.

use crate::demo::host::Host;
use crate::demo::ledger::{SLOT_BYTES, Verdict, mix};
use anyhow::{Context, bail};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use voute_iscsi::{Completion, CompletionStatus, Initiator, InitiatorConfig};

const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// After this a session counts as dead; dm-multipath's checkers take longer.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(2);
/// Pause once every portal has refused.
const ROUND_PAUSE: Duration = Duration::from_millis(20);
const RECEIVE_BYTES: usize = 64 << 10;
const UNIT_ATTENTION: u8 = 6;

/// Whom to log in as, and where.
#[derive(Clone, Debug)]
pub struct ReaderConfig {
    /// A portal of each site.
    pub portals: Vec<SocketAddr>,
    /// The reader's iSCSI name.
    pub initiator: String,
    /// The target's.
    pub target: String,
    /// The volume's LUN.
    pub lun: u16,
}

/// What the reader came to.
pub struct Reading {
    /// Slots that in the end did not hold what they must.
    pub wrong: u64,
    /// Reads that were checked.
    pub reads: u64,
}

/// A reader that runs.
pub struct Reader {
    host: Arc<Host>,
    shared: Arc<Shared>,
    task: JoinHandle<Multipath>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    reads: AtomicU64,
    trouble: Mutex<String>,
}

impl Reader {
    /// Starts reading on the current runtime.
    #[must_use]
    pub fn start(host: &Arc<Host>, config: ReaderConfig) -> Self {
        let shared = Arc::new(Shared::default());
        let task =
            tokio::spawn(read_on(Arc::clone(host), Multipath::new(config), Arc::clone(&shared)));
        Reader { host: Arc::clone(host), shared, task }
    }

    /// Reads that were checked so far.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.shared.reads.load(Ordering::Relaxed)
    }

    /// The last thing that went wrong on a path.
    #[must_use]
    pub fn trouble(&self) -> String {
        self.shared.trouble.lock().expect("no holder of this lock panics").clone()
    }

    /// Waits until so many reads were checked; false if they are not in time.
    #[must_use]
    pub fn wait_for_reads(&self, count: u64, patience: Duration) -> bool {
        let began = std::time::Instant::now();
        while self.reads() < count && began.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.reads() >= count
    }

    /// Ends the reading at random and reads every slot once.
    ///
    /// # Errors
    /// If a slot cannot be read on any path.
    pub async fn verify_all_and_stop(self) -> anyhow::Result<Reading> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut multipath = self.task.await.context("the reader ended by itself")?;
        let mut wrong = 0;
        for slot in 0..self.host.layout().slots() {
            let verdict = check(&self.host, &mut multipath, slot).await?;
            self.shared.reads.fetch_add(1, Ordering::Relaxed);
            wrong += u64::from(verdict != Verdict::Sound);
        }
        Ok(Reading { wrong, reads: self.shared.reads.load(Ordering::Relaxed) })
    }
}

/// Reads random slots until told to stop. What could not be read for good ends up in `trouble` and
/// fails the run when the slots are verified.
async fn read_on(host: Arc<Host>, mut multipath: Multipath, shared: Arc<Shared>) -> Multipath {
    let mut random = mix(0x0069_5343_5349);
    while !shared.stop.load(Ordering::Relaxed) {
        random = mix(random);
        let slot = (random >> 32) as u32 % host.layout().slots();
        match check(&host, &mut multipath, slot).await {
            Ok(_) => {
                shared.reads.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                let mut trouble = shared.trouble.lock().expect("no holder of this lock panics");
                *trouble = error.to_string();
                host.count_io_error(format!("iSCSI: {error}"));
            }
        }
    }
    multipath
}

async fn check(host: &Host, multipath: &mut Multipath, slot: u32) -> anyhow::Result<Verdict> {
    let floor = host.ledger.begin_read(slot);
    let block = multipath.read(host.layout().block_of(slot)).await?;
    let verdict = host.ledger.judge(floor, &block);
    if verdict != Verdict::Sound {
        host.note_failure(format!("iSCSI read of slot {slot}: {verdict:?}"));
    }
    Ok(verdict)
}

/// Sessions to all portals, and the one in use.
struct Multipath {
    config: ReaderConfig,
    sessions: Vec<Option<Session>>,
    current: usize,
}

impl Multipath {
    fn new(config: ReaderConfig) -> Self {
        let sessions = config.portals.iter().map(|_| None).collect();
        Multipath { config, sessions, current: 0 }
    }

    /// Reads one block through whichever portal gives it.
    async fn read(&mut self, lba: u64) -> anyhow::Result<Vec<u8>> {
        let deadline = Instant::now() + REQUEST_TIME_MAX;
        let mut refused = 0;
        loop {
            let why = match self.try_current(lba).await {
                Ok(Completion { status: CompletionStatus::Good, data, .. }) => return Ok(data),
                // News of the unit, told once: ask again.
                Ok(Completion {
                    status: CompletionStatus::CheckCondition { key: UNIT_ATTENTION, .. },
                    ..
                }) => continue,
                Ok(Completion { status, .. }) if status.is_path_condition() => {
                    format!("{status:?}")
                }
                Ok(Completion { status, .. }) => bail!("a portal refused a read: {status:?}"),
                Err(error) => {
                    self.sessions[self.current] = None;
                    error.to_string()
                }
            };
            self.current = (self.current + 1) % self.sessions.len();
            refused += 1;
            if Instant::now() >= deadline {
                bail!(
                    "no portal gave a block within {} s; the last one said: {why}",
                    REQUEST_TIME_MAX.as_secs()
                );
            }
            if refused % self.sessions.len() == 0 {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        }
    }

    async fn try_current(&mut self, lba: u64) -> io::Result<Completion> {
        let session = match &mut self.sessions[self.current] {
            Some(session) => session,
            empty => empty.insert(Session::open(&self.config, self.current).await?),
        };
        let answer = session.read(self.config.lun, lba);
        timeout(COMMAND_TIME_MAX, answer)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// One iSCSI session.
struct Session {
    stream: TcpStream,
    initiator: Initiator,
    buffer: Vec<u8>,
}

impl Session {
    async fn open(config: &ReaderConfig, portal: usize) -> io::Result<Self> {
        let connect = async {
            let stream = TcpStream::connect(config.portals[portal]).await?;
            stream.set_nodelay(true)?;
            let mut login = InitiatorConfig::new(&config.initiator, Some(&config.target));
            login.isid[5] = u8::try_from(portal + 1).unwrap_or(u8::MAX);
            let mut session = Session {
                stream,
                initiator: Initiator::new(login),
                buffer: vec![0; RECEIVE_BYTES],
            };
            while !session.initiator.is_ready() {
                session.exchange().await?;
            }
            Ok(session)
        };
        timeout(COMMAND_TIME_MAX, connect)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn read(&mut self, lun: u16, lba: u64) -> io::Result<Completion> {
        while !self.initiator.may_submit() {
            self.exchange().await?;
        }
        let task = self.initiator.read(lun, lba, 1, SLOT_BYTES as u32).map_err(io::Error::other)?;
        loop {
            while let Some(completion) = self.initiator.next_completion() {
                if completion.task == task {
                    return Ok(completion);
                }
            }
            self.exchange().await?;
        }
    }

    /// Sends what waits and takes what comes.
    async fn exchange(&mut self) -> io::Result<()> {
        let output = std::mem::take(self.initiator.output());
        self.stream.write_all(&output).await?;
        match self.stream.read(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => self.initiator.receive(&self.buffer[..length]).map_err(io::Error::other),
        }
    }
}

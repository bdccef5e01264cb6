//! The verifying host: native multipath over its paths, and workers that write and check.

use crate::demo::ledger::{Ledger, SLOT_BYTES, Verdict, mix};
use crate::demo::path::{BlockRequest, Path, PathConfig, PathOutcome};
use crate::demo::pulse::Pulse;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use voute_buffer::Buffer;

/// How long a request may take over all paths before it is an error to the host. Linux waits without
/// bound while paths reconnect; a demonstration should end.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// After a path error the host waits for news of access states this long before it tries again.
const NEWS_TIME_MAX: Duration = Duration::from_millis(10);
/// How often other retryable errors are retried, as Linux does (`nvme_core.max_retries`).
const OTHER_RETRIES_MAX: u32 = 5;
/// How many failures are kept in words.
const FAILURES_KEPT_MAX: usize = 20;

/// Where the slots lie: `regions` regions spread evenly over the volume, each full of slots.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// Regions that hold slots.
    pub regions: u32,
    /// Bytes of a region.
    pub region_bytes: u64,
}

impl Layout {
    /// Slots in all.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.regions * self.slots_each()
    }

    fn slots_each(&self) -> u32 {
        u32::try_from(self.region_bytes / SLOT_BYTES as u64).expect("a region is small")
    }

    /// The logical block of a slot.
    #[must_use]
    pub fn block_of(&self, slot: u32) -> u64 {
        let regions_all = self.volume_bytes / self.region_bytes;
        let region = u64::from(slot / self.slots_each()) * regions_all / u64::from(self.regions);
        (region * self.region_bytes) / SLOT_BYTES as u64 + u64::from(slot % self.slots_each())
    }
}

/// The multipath device.
pub struct Host {
    paths: Vec<Path>,
    /// What the workers check against.
    pub ledger: Ledger,
    /// When acknowledgements came.
    pub pulse: Pulse,
    layout: Layout,
    io_errors: AtomicU64,
    path_errors: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// A request failed for good.
struct HostError(String);

impl Host {
    /// Starts its paths on the current runtime.
    #[must_use]
    pub fn start(paths: Vec<PathConfig>, layout: Layout, run: u64) -> Arc<Self> {
        Arc::new(Host {
            paths: paths.into_iter().map(Path::start).collect(),
            ledger: Ledger::new(layout.slots(), run),
            pulse: Pulse::new(),
            layout,
            io_errors: AtomicU64::new(0),
            path_errors: AtomicU64::new(0),
            failures: Mutex::default(),
        })
    }

    /// Where its slots lie.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Errors that reached an application, after all paths were tried.
    #[must_use]
    pub fn io_errors(&self) -> u64 {
        self.io_errors.load(Ordering::Relaxed)
    }

    /// Requests that one path refused or lost, and that were tried again.
    #[must_use]
    pub fn path_errors(&self) -> u64 {
        self.path_errors.load(Ordering::Relaxed)
    }

    /// The first failures, in words.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("no holder of this lock panics").clone()
    }

    /// Keeps a failure in words.
    pub fn note_failure(&self, words: String) {
        let mut failures = self.failures.lock().expect("no holder of this lock panics");
        if failures.len() < FAILURES_KEPT_MAX {
            failures.push(words);
        }
    }

    /// Waits until as many paths are connected as there are, and one is usable.
    pub async fn connected(&self, patience: Duration) -> bool {
        let all_up = async {
            for path in &self.paths {
                let mut watch = path.watch();
                let shown = watch
                    .wait_for(|state| matches!(state, super::path::PathState::Up(Some(_))))
                    .await;
                if shown.is_err() {
                    return false;
                }
            }
            self.usable().await;
            true
        };
        timeout(patience, all_up).await.unwrap_or(false)
    }

    /// Waits for a usable path.
    async fn usable(&self) -> usize {
        let mut watches: Vec<_> = self.paths.iter().map(Path::watch).collect();
        loop {
            if let Some(index) = self.choose() {
                return index;
            }
            any_change(&mut watches).await;
        }
    }

    /// The path to use now: an optimized one, else one that is usable.
    fn choose(&self) -> Option<usize> {
        use super::path::PathState;
        use voute_nvme::AnaState;
        let position = |wanted: &dyn Fn(PathState) -> bool| {
            self.paths.iter().position(|path| wanted(path.state()))
        };
        position(&|state| state == PathState::Up(Some(AnaState::Optimized)))
            .or_else(|| position(&PathState::is_usable))
    }

    /// Carries out a request over whichever path can, as Linux's native multipath does.
    async fn request(&self, request: BlockRequest<'_>) -> Result<Option<Buffer>, HostError> {
        let deadline = Instant::now() + REQUEST_TIME_MAX;
        let late = |_| {
            HostError(format!(
                "no path carried out a request within {} s",
                REQUEST_TIME_MAX.as_secs()
            ))
        };
        let mut other_retries = 0;
        loop {
            let index = timeout_at(deadline, self.usable()).await.map_err(late)?;
            let mut watches: Vec<_> = self.paths.iter().map(Path::watch).collect();
            watches.iter_mut().for_each(|watch| watch.mark_unchanged());
            match timeout_at(deadline, self.paths[index].request(request)).await.map_err(late)? {
                PathOutcome::Done(data) => return Ok(data),
                PathOutcome::Failed(status) if !status.is_path_related() => {
                    other_retries += 1;
                    if status.do_not_retry() || other_retries > OTHER_RETRIES_MAX {
                        return Err(HostError(format!("a path refused a request: {status}")));
                    }
                }
                PathOutcome::Failed(_) | PathOutcome::Lost => {}
            }
            self.path_errors.fetch_add(1, Ordering::Relaxed);
            let _ = timeout(NEWS_TIME_MAX, any_change(&mut watches)).await;
        }
    }

    /// Writes a slot once; true if it was acknowledged.
    async fn write(&self, slot: u32, block: &mut [u8]) -> bool {
        let counter = self.ledger.begin_write(slot, block);
        let lba = self.layout.block_of(slot);
        match self.request(BlockRequest::Write { lba, data: block }).await {
            Ok(_) => {
                self.ledger.acknowledge(slot, counter);
                self.pulse.acknowledged();
                true
            }
            Err(error) => {
                self.count_io_error(error.0);
                false
            }
        }
    }

    /// Reads a slot once; the verdict, or nothing if it could not be read.
    async fn read(&self, slot: u32) -> Option<Verdict> {
        let floor = self.ledger.begin_read(slot);
        match self.request(BlockRequest::Read { lba: self.layout.block_of(slot) }).await {
            Ok(data) => {
                let verdict = self.ledger.judge(floor, data.as_deref().unwrap_or(&[]));
                if verdict != Verdict::Sound {
                    self.note_failure(format!("NVMe read of slot {slot}: {verdict:?}"));
                }
                Some(verdict)
            }
            Err(error) => {
                self.count_io_error(error.0);
                None
            }
        }
    }

    /// Counts an error that reached an application, and keeps it in words.
    pub fn count_io_error(&self, words: String) {
        self.io_errors.fetch_add(1, Ordering::Relaxed);
        self.note_failure(words);
    }

    /// Reads every slot, `readers` at a time; returns how many do not hold what they must.
    pub async fn verify_all(self: &Arc<Self>, readers: u32) -> u64 {
        let tasks: Vec<JoinHandle<u64>> = (0..readers)
            .map(|reader| {
                let host = Arc::clone(self);
                tokio::spawn(async move {
                    let mut wrong = 0;
                    for slot in (reader..host.layout.slots()).step_by(readers as usize) {
                        wrong += u64::from(host.read(slot).await != Some(Verdict::Sound));
                    }
                    wrong
                })
            })
            .collect();
        let mut wrong = 0;
        for task in tasks {
            wrong += task.await.unwrap_or(1);
        }
        wrong
    }
}

async fn any_change(watches: &mut [tokio::sync::watch::Receiver<super::path::PathState>]) {
    let mut changes: Vec<_> = watches.iter_mut().map(|watch| Box::pin(watch.changed())).collect();
    std::future::poll_fn(|context| {
        let changed = changes.iter_mut().any(|change| change.as_mut().poll(context).is_ready());
        if changed { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Workers that write and read until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `workers` workers. Each owns every `workers`-th slot, writes two times in three and
    /// reads any slot otherwise.
    #[must_use]
    pub fn start(host: &Arc<Host>, workers: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let spawn =
            |worker| tokio::spawn(work(Arc::clone(host), worker, workers, Arc::clone(&stop)));
        Load { workers: (0..workers).map(spawn).collect(), stop }
    }

    /// Lets the workers finish what they are at, and waits for them.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            let _ = worker.await;
        }
    }
}

async fn work(host: Arc<Host>, worker: u32, workers: u32, stop: Arc<AtomicBool>) {
    let slots = host.layout.slots();
    let mut random = mix(u64::from(worker));
    let mut block = vec![0; SLOT_BYTES];
    while !stop.load(Ordering::Relaxed) {
        random = mix(random);
        let any = (random >> 32) as u32 % slots;
        if random.is_multiple_of(3) {
            host.read(any).await;
        } else {
            host.write(any - any % workers + worker, &mut block).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn slots_are_distinct_blocks_inside_the_volume_spread_over_few_regions() {
        let layout = Layout { volume_bytes: 256 << 20, regions: 12, region_bytes: 1 << 20 };
        let blocks: HashSet<u64> = (0..layout.slots()).map(|slot| layout.block_of(slot)).collect();
        assert_eq!(blocks.len(), 12 * 256);
        assert!(blocks.iter().all(|block| *block < (256 << 20) / 4096));
        let regions: HashSet<u64> = blocks.iter().map(|block| block / 256).collect();
        assert_eq!(regions.len(), 12);
        assert!(regions.iter().max().is_some_and(|last| *last > 200), "spread over the volume");
    }
}

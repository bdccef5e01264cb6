//! When what was read takes effect: a majority of the log's sites must have signed a checkpoint that
//! covers it (docs/mirror-rules.md rule 12).
//!
//! ```text
//! read ─▶ pending ─▶ sign, tell the other sites ─┐
//!                    their signatures ───────────┴─▶ majority ─▶ published, answered
//! ```
//!
//! The majority is that of the sites that the log names there, and, where these differ, also that of
//! the sites that were in force before: the old sites hand over, the new ones show that they are there.

use super::board::{Vouched, is_majority};
use super::draft::reply;
use super::pipeline::{Fault, Pending, Pipeline, checkpoint_origin};
use super::{LogSiteSeen, View};
use crate::domain::State;
use std::time::{Duration, Instant};
use voute_events::checkpoint::CheckpointError;
use voute_events::register::Signed;
use voute_events::{Log, Topic, verify};
use voute_schemas::proof::{Checkpoint, Verifier};
use voute_schemas::{Event, Hash};

/// States that wait for signatures; where more are read, the youngest two become one.
const PENDING_MAX: usize = 256;
/// Commits that wait longer than this for signatures are told of.
const UNSIGNED_FOR_MAX: Duration = Duration::from_secs(2);
/// A log site that was not heard for this long is told of.
pub(crate) const SITE_SILENT_AFTER: Duration = Duration::from_secs(3);

fn sites_of(state: &State) -> &[Verifier] {
    state.cluster().map_or(&[], |cluster| cluster.log_sites.as_slice())
}

impl<L: Log> Pipeline<L> {
    /// After everything was read at the start: what was vouched for when the snapshot was written is
    /// in force if the log has not gone on since; the rest waits for signatures.
    pub(super) async fn begin(&mut self, checkpoint: &Checkpoint) -> Result<(), Fault> {
        self.note_log_sites();
        let position = self.state.position();
        if position == *self.shared.head.borrow() {
            if let Some(size) = self.still_covers(checkpoint) {
                let checkpoint = checkpoint.clone();
                self.publish(Vouched { size, checkpoint }, self.state.clone(), &[]);
            } else if position.sequence.0 > 0 {
                self.await_signatures(Vec::new());
            }
        } else {
            self.await_signatures(Vec::new());
        }
        self.sign().await?;
        self.advance().await
    }

    /// The size of a checkpoint that covers all that was read, and that a majority signed.
    fn still_covers(&self, checkpoint: &Checkpoint) -> Option<u64> {
        let sites = sites_of(&self.state);
        let verified = verify(checkpoint, sites, sites.len() / 2 + 1).ok()?;
        let size = self.state.position().sequence.0;
        let covers = verified.size() == size && self.root(size) == Some(verified.root());
        (covers && verified.origin() == self.origin()?).then_some(size)
    }

    fn origin(&self) -> Option<String> {
        self.state.cluster().map(|cluster| checkpoint_origin(cluster.id))
    }

    fn root(&self, size: u64) -> Option<Hash> {
        self.shared.tree.read().expect("no holder of the tree panics").root(size).ok()
    }

    /// The sites in force: those of what is published. None before anything is.
    fn sites_in_force(&self) -> Vec<Verifier> {
        self.shared.view.read().map(|view| sites_of(&view.state).to_vec()).unwrap_or_default()
    }

    /// All whose signatures may count, now or soon.
    fn sites_concerned(&self) -> Vec<Verifier> {
        let mut sites = self.sites_in_force();
        sites.extend(
            sites_of(&self.state)
                .iter()
                .filter(|site| !sites.contains(site))
                .cloned()
                .collect::<Vec<_>>(),
        );
        sites
    }

    /// What was just read is to take effect once it is vouched for.
    pub(super) fn await_signatures(&mut self, events: Vec<Event>) {
        let (state, since) = (self.state.clone(), Instant::now());
        let is_full = self.pending.len() >= PENDING_MAX;
        match self.pending.back_mut().filter(|_| is_full) {
            Some(last) => {
                last.state = state;
                last.events.extend(events);
            }
            None => self.pending.push_back(Pending { state, events, since }),
        }
        self.note_log_sites();
    }

    /// Signs all that was read, if this process signs for one of the sites concerned, and tells the
    /// others. The register's flushes happen on another thread.
    pub(super) async fn sign(&mut self) -> Result<(), Fault> {
        let Some(origin) = self.origin() else { return Ok(()) };
        let Some(mut seat) = self.seat.take() else { return Ok(()) };
        let verifier = seat.verifier();
        if !self.sites_concerned().contains(&verifier) {
            self.seat = Some(seat);
            return Ok(());
        }
        let seed = if seat.is_mute() { self.what_others_signed(&verifier) } else { None };
        let shared = std::sync::Arc::clone(&self.shared);
        let size = self.state.position().sequence.0;
        let signing = tokio::task::spawn_blocking(move || {
            let seeded = seed.map_or(Ok(()), |signed| seat.seed(signed));
            let tree = shared.tree.read().expect("no holder of the tree panics");
            let signed = seeded.and_then(|()| seat.sign(&origin, &tree, size));
            let root = tree.root(size);
            (signed, root, seat)
        });
        let (signed, root, seat) = signing.await.expect("signing does not panic");
        self.seat = Some(seat);
        if let (Some(checkpoint), Ok(root)) = (signed?, root) {
            if let Some(seed) = seed {
                tracing::warn!(
                    size = seed.size,
                    "this site's register began anew with what the others signed"
                );
                self.shared.reseeded.send_replace(Some(seed));
            }
            self.board.add(verifier.key, size, root, checkpoint.clone());
            self.note_heard(verifier.key);
            self.said = Some(checkpoint);
            self.say().await;
        }
        Ok(())
    }

    /// What a lost register begins with: the most that any other site signed, once each of them was
    /// heard and said what is read here. Whoever has no others to ask begins with what it reads.
    fn what_others_signed(&self, own: &Verifier) -> Option<Signed> {
        let read = self.state.position().sequence.0;
        let mut most = Signed { size: 0, root: Hash::of(&[]) };
        let mut has_others = false;
        for site in sites_of(&self.state).iter().filter(|site| site.key != own.key) {
            has_others = true;
            let (size, root) = self.board.highest(&site.key)?;
            if size > read || self.root(size)? != root {
                return None;
            }
            if size >= most.size {
                most = Signed { size, root };
            }
        }
        if has_others { Some(most) } else { Some(Signed { size: read, root: self.root(read)? }) }
    }

    async fn say(&self) {
        if let Some(said) = &self.said {
            self.exchange.say(Topic::Signatures, said.0.clone().into_bytes()).await;
        }
    }

    /// Says again what was said last, and tells whether anything waits for others.
    pub(super) async fn repeat_signature(&mut self) {
        self.say().await;
        let waits = self.pending.front().filter(|first| first.since.elapsed() > UNSIGNED_FOR_MAX);
        let unsigned = waits.map(|first| self.unsigned_words(first));
        self.shared.condition.send_if_modified(|condition| {
            let changed = condition.unsigned != unsigned;
            condition.unsigned = unsigned;
            changed
        });
    }

    fn unsigned_words(&self, first: &Pending) -> String {
        let sites = sites_of(&first.state);
        let silent = self.shared.log_sites.lock().expect("no holder panics");
        let silent: Vec<&str> = silent
            .iter()
            .filter(|site| site.heard_at.is_none_or(|at| at.elapsed() > SITE_SILENT_AFTER))
            .map(|site| site.verifier.name.as_str())
            .collect();
        let silent = if silent.is_empty() { "none".to_owned() } else { silent.join(", ") };
        format!(
            "commit {} takes effect only when {} of {} log sites have signed it; not heard: {silent}",
            first.state.position().sequence,
            sites.len() / 2 + 1,
            sites.len()
        )
    }

    /// Takes in what another site says; whether it may change anything.
    pub(super) fn hear(&mut self, message: &[u8]) -> bool {
        let Some(origin) = self.origin() else { return false };
        let Ok(text) = std::str::from_utf8(message) else { return false };
        match self.board.hear(&Checkpoint(text.to_owned()), &origin, &self.sites_concerned()) {
            Ok(keys) => {
                keys.iter().for_each(|key| self.note_heard(*key));
                !keys.is_empty()
            }
            Err(error @ CheckpointError::FalseSignature { .. }) => {
                tracing::error!(%error, "ALARM: a signature was heard that nobody gave");
                false
            }
            Err(error) => {
                tracing::debug!(%error, "a message about signatures is passed over");
                false
            }
        }
    }

    /// Whether another site signed more than was read here.
    pub(super) fn lags_behind_others(&self) -> bool {
        let read = self.state.position().sequence.0;
        let signed = |site: &Verifier| self.board.highest(&site.key).map_or(0, |(size, _)| size);
        self.sites_concerned().iter().any(|site| signed(site) > read)
    }

    fn note_heard(&self, key: Hash) {
        let highest = self.board.highest(&key).map_or(0, |(size, _)| size);
        let mut sites = self.shared.log_sites.lock().expect("no holder panics");
        for site in sites.iter_mut().filter(|site| site.verifier.key == key) {
            site.heard_at = Some(Instant::now());
            site.signed = site.signed.max(highest);
        }
    }

    /// Lists the sites concerned, keeping what is known of them.
    fn note_log_sites(&self) {
        let concerned = sites_of(&self.state);
        let own = self.seat.as_ref().map(|seat| seat.verifier().key);
        let mut sites = self.shared.log_sites.lock().expect("no holder panics");
        if sites.iter().map(|site| &site.verifier).eq(concerned) {
            return;
        }
        let known = std::mem::take(&mut *sites);
        *sites = concerned
            .iter()
            .map(|verifier| {
                let before = known.iter().find(|it| it.verifier == *verifier).cloned();
                before.unwrap_or_else(|| LogSiteSeen {
                    verifier: verifier.clone(),
                    signed: 0,
                    heard_at: None,
                    is_own: own == Some(verifier.key),
                })
            })
            .collect();
    }

    /// Publishes what is vouched for by now, and gives the answers that waited for it.
    pub(super) async fn advance(&mut self) -> Result<(), Fault> {
        self.look_for_disputes()?;
        if self.seat.as_ref().is_some_and(super::Seat::is_mute) {
            self.sign_when_seeded().await?;
        }
        let Some(first) = self.pending.front() else {
            self.gather_more_signatures();
            return Ok(());
        };
        let in_force = self.sites_in_force();
        let read = self.state.position().sequence.0;
        let sizes = first.state.position().sequence.0..=read;
        let root_of = |size| self.root(size);
        let vouched = self.board.best(sizes, root_of, |size, keys| {
            let covered =
                self.pending.iter().rev().find(|it| it.state.position().sequence.0 <= size);
            let named = covered.map_or(&[][..], |pending| sites_of(&pending.state));
            is_majority(named, keys) && (in_force.is_empty() || is_majority(&in_force, keys))
        });
        let Some(vouched) = vouched else { return Ok(()) };
        let covers = |pending: &Pending| pending.state.position().sequence.0 <= vouched.size;
        let mut events = Vec::new();
        let mut state = None;
        while let Some(pending) = self.pending.pop_front_if(|pending| covers(pending)) {
            events.extend(pending.events);
            state = Some(pending.state);
        }
        let state = state.expect("the smallest size that was asked for covers the first");
        self.board.forget_below(vouched.size);
        self.publish(vouched, state, &events);
        self.answer();
        Ok(())
    }

    /// Now that all others were heard, a lost register may begin anew.
    async fn sign_when_seeded(&mut self) -> Result<(), Fault> {
        let verifier = self.seat.as_ref().map(super::Seat::verifier);
        if verifier.is_some_and(|own| self.what_others_signed(&own).is_some()) {
            self.sign().await?;
        }
        Ok(())
    }

    fn publish(&mut self, vouched: Vouched, state: State, events: &[Event]) {
        let position = state.position();
        let Vouched { size: checkpoint_size, checkpoint } = vouched;
        let before = {
            let mut view =
                self.shared.view.write().expect("no reader or writer panics holding the view");
            let published = View { state: state.clone(), checkpoint, checkpoint_size };
            std::mem::replace(&mut *view, published).state
        };
        self.shared.changes.changed(&before, &state, events);
        self.shared.head.send_replace(position);
        self.snapshots.note(position.sequence);
    }

    /// Signatures that come after the majority's make the checkpoint better, and change nothing else.
    fn gather_more_signatures(&self) {
        let Some(size) = self.shared.view.read().ok().map(|view| view.checkpoint_size) else {
            return;
        };
        let root_of = |size| self.root(size);
        let in_force = self.sites_in_force();
        let best = self.board.best(size..=size, root_of, |_, keys| is_majority(&in_force, keys));
        let Some(vouched) = best.filter(|vouched| vouched.size == size && size > 0) else { return };
        let mut view =
            self.shared.view.write().expect("no reader or writer panics holding the view");
        if view.checkpoint.0.len() < vouched.checkpoint.0.len() {
            view.checkpoint = vouched.checkpoint;
        }
    }

    fn answer(&mut self) {
        let reached = self.shared.head.borrow().sequence;
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unanswered).into_iter().partition(|it| it.sequence <= reached);
        self.unanswered = waiting;
        for waiting in ready {
            reply(waiting.to, waiting.answer);
        }
    }

    /// One site that signed another history is told of; a majority of them means that the log which
    /// is read here is the wrong one.
    fn look_for_disputes(&self) -> Result<(), Fault> {
        let read = self.state.position().sequence.0;
        let keys = self.board.contradicting(read, |size| self.root(size));
        let mut in_force = self.sites_in_force();
        if in_force.is_empty() {
            in_force = sites_of(&self.state).to_vec();
        }
        if is_majority(&in_force, &keys) {
            return Err(Fault::Outvoted);
        }
        let names: Vec<&str> = in_force
            .iter()
            .filter(|site| keys.contains(&site.key))
            .map(|site| site.name.as_str())
            .collect();
        let disputed = (!names.is_empty()).then(|| {
            format!(
                "ALARM: {} signed another history than the log shows here; stop that log site and compare",
                names.join(", ")
            )
        });
        self.shared.condition.send_if_modified(|condition| {
            let changed = condition.disputed != disputed;
            if changed && let Some(disputed) = &disputed {
                tracing::error!("{disputed}");
            }
            condition.disputed = disputed;
            changed
        });
        Ok(())
    }
}

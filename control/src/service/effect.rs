//! When what was read takes effect: a majority of the log's sites must have signed a checkpoint that
//! covers it (docs/mirror-rules.md rule 12).
//!
//! ```text
//! read ─▶ pending ─▶ sign, tell the other sites ─┐
//!                    their signatures ───────────┴─▶ majority ─▶ published, answered
//! ```
//!
//! The majority is that of the sites in force and of every set of sites that the log names up to there
//! ([`super::hand_over`]): the old sites hand over, the new ones show that they are there.

use super::board::{Vouched, is_majority};
use super::draft::reply;
use super::hand_over::{are_enough, bears_all, on_the_way};
use super::pipeline::{Fault, Pending, Pipeline, checkpoint_origin};
use super::{LogSiteSeen, View};
use crate::domain::State;
use crate::domain::state::NamedSites;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};
use voute_events::checkpoint::{CheckpointError, claim};
use voute_events::note::verifier_text;
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

fn named_in(state: &State) -> &[NamedSites] {
    state.cluster().map_or(&[], |cluster| cluster.log_sites_named.as_slice())
}

/// The sites that a state names last; nobody where it has no cluster yet.
pub(super) fn last_named(state: &State) -> NamedSites {
    named_in(state).last().cloned().unwrap_or_default()
}

impl<L: Log> Pipeline<L> {
    /// After everything was read at the start: what was vouched for when the snapshot was written is
    /// in force if the log has not gone on since; the rest waits for signatures.
    pub(super) async fn begin(&mut self, checkpoint: &Checkpoint) -> Result<(), Fault> {
        self.note_log_sites();
        // What came into force after the snapshot of the state was taken.
        let kept = self.shared.hand_overs.lock().expect("no holder panics").clone();
        for hand_over in kept.values() {
            self.take_hand_over(hand_over);
        }
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

    /// All whose signatures may count, now or soon.
    fn sites_concerned(&self) -> Vec<Verifier> {
        let mut sites = self.in_force.sites.clone();
        let later = named_in(&self.state).iter().filter(|it| it.sequence > self.in_force.sequence);
        for site in later.flat_map(|named| &named.sites) {
            if !sites.contains(site) {
                sites.push(site.clone());
            }
        }
        sites
    }

    /// Whether the sites that the log names last are not in force yet.
    pub(super) fn hands_over(&self) -> bool {
        last_named(&self.state).sequence > self.in_force.sequence
    }

    /// Whether these keys are enough for so many commits to take effect here.
    fn are_enough(&self, size: u64, keys: &[Hash]) -> bool {
        on_the_way(&self.in_force, named_in(&self.state), size)
            .is_some_and(|sets| are_enough(&sets, keys))
    }

    /// Lets the sites that a checkpoint's commits name come into force if it bears the majority of
    /// every set up to them; whether it did. It is kept for those who were away.
    fn take_hand_over(&mut self, checkpoint: &Checkpoint) -> bool {
        let Ok(said) = claim(checkpoint) else { return false };
        let read = self.state.position().sequence.0;
        let named = named_in(&self.state);
        let brings_more =
            |it: &NamedSites| it.sequence > self.in_force.sequence && it.sequence.0 <= said.size;
        let is_of_here = Some(&said.origin) == self.origin().as_ref()
            && said.size <= read
            && self.root(said.size) == Some(said.root);
        if !named.iter().any(brings_more) || !is_of_here {
            return false;
        }
        let Some(sets) = on_the_way(&self.in_force, named, said.size) else { return false };
        if !bears_all(&sets, checkpoint) {
            return false;
        }
        let last = (**sets.last().expect("they bore it, so there are some")).clone();
        // What nobody was there to hand over from cannot be shown to others.
        let was_known = self.in_force.sequence.0 > 0;
        let new = sets.iter().filter(|it| was_known && it.sequence > self.in_force.sequence);
        let new: Vec<_> = new.map(|it| it.sequence).collect();
        self.shared.keep_hand_overs(&new, checkpoint, named);
        tracing::info!(sites = last.sites.len(), named_at = %last.sequence, "log sites are in force");
        self.in_force = last;
        true
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
        // Who may yet become a site signs too, and counts for nothing: so it is known to be there.
        // Who was one and is one no more has nothing to say.
        let was_ever = |sites: &NamedSites| sites.sites.contains(&verifier);
        let is_concerned = self.sites_concerned().contains(&verifier);
        if !is_concerned && named_in(&self.state).iter().any(was_ever) {
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
        self.say_a_hand_over().await;
        let waits = self.pending.front().filter(|first| first.since.elapsed() > UNSIGNED_FOR_MAX);
        let unsigned = waits.map(|first| self.unsigned_words(first));
        self.shared.condition.send_if_modified(|condition| {
            let changed = condition.unsigned != unsigned;
            condition.unsigned = unsigned;
            changed
        });
    }

    /// By what command the sites in force are named again, if others are named.
    fn how_to_take_back(&self) -> Option<String> {
        let named = &last_named(&self.state).sites;
        let in_force = &self.in_force.sites;
        if let Some(added) = named.iter().find(|site| !in_force.contains(site)) {
            return Some(format!("`voute log-site remove {}`", added.name));
        }
        let removed = in_force.iter().find(|site| !named.contains(site))?;
        Some(format!("`voute log-site add {}`", verifier_text(removed)))
    }

    /// Tells those who were away how sites handed over: one hand-over at a time, in turn.
    async fn say_a_hand_over(&mut self) {
        if self.exchange.is_alone() {
            return;
        }
        let next = {
            let hand_overs = self.shared.hand_overs.lock().expect("no holder panics");
            let after = (Excluded(self.hand_over_said), Unbounded);
            let next = hand_overs.range(after).next().or_else(|| hand_overs.first_key_value());
            next.map(|(sequence, checkpoint)| (*sequence, checkpoint.clone()))
        };
        if let Some((sequence, checkpoint)) = next {
            self.hand_over_said = sequence;
            self.exchange.say(Topic::Signatures, checkpoint.0.into_bytes()).await;
        }
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
        let take_back = match self.how_to_take_back() {
            Some(how) => {
                format!("; it follows a change of the log's sites, which {how} takes back")
            }
            None => String::new(),
        };
        format!(
            "commit {} takes effect only when {} of {} log sites have signed it; not heard: {silent}{take_back}",
            first.state.position().sequence,
            sites.len() / 2 + 1,
            sites.len()
        )
    }

    /// Takes in what another site says; whether it may change anything.
    pub(super) fn hear(&mut self, message: &[u8]) -> bool {
        let Some(origin) = self.origin() else { return false };
        let Ok(text) = std::str::from_utf8(message) else { return false };
        let checkpoint = Checkpoint(text.to_owned());
        match self.board.hear(&checkpoint, &origin, &self.sites_concerned()) {
            Ok(keys) => {
                keys.iter().for_each(|key| self.note_heard(*key));
                // The board keeps what is young; a hand-over may be long ago.
                let is_handed_over = self.hands_over() && self.take_hand_over(&checkpoint);
                if is_handed_over {
                    self.note_log_sites();
                }
                if keys.is_empty() {
                    self.shared.strangers.hear(checkpoint);
                }
                is_handed_over || !keys.is_empty()
            }
            Err(error @ CheckpointError::FalseSignature { .. }) => {
                if let Some(unsaid) = self.spare.may_say(Instant::now()) {
                    tracing::error!(%error, unsaid, "ALARM: a signature was heard that nobody gave");
                }
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
        let read = self.state.position().sequence.0;
        let first = first.state.position().sequence.0;
        let next = named_in(&self.state).iter().find(|it| it.sequence > self.in_force.sequence);
        let from = next.map_or(first, |next| next.sequence.0.min(first));
        let vouched = self.vouched(from..=read);
        let Some(mut vouched) = vouched else { return Ok(()) };
        if self.take_hand_over(&vouched.checkpoint) {
            self.note_log_sites();
            let Some(now) = self.vouched(first..=read) else { return Ok(()) };
            vouched = now;
        }
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

    fn vouched(&self, sizes: std::ops::RangeInclusive<u64>) -> Option<Vouched> {
        self.board.best(sizes, |size| self.root(size), |size, keys| self.are_enough(size, keys))
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
        {
            let mut view =
                self.shared.view.write().expect("no reader or writer panics holding the view");
            let published = View { state: state.clone(), checkpoint, checkpoint_size };
            let before = std::mem::replace(&mut *view, published).state;
            // While nobody reads it: who sees the new state is to know what changed on the way.
            self.shared.changes.changed(&before, &state, events);
        }
        self.shared.head.send_replace(position);
        self.snapshots.note(position.sequence);
    }

    /// Signatures that come after the majority's make the checkpoint better, and change nothing else.
    fn gather_more_signatures(&self) {
        let Some(size) = self.shared.view.read().ok().map(|view| view.checkpoint_size) else {
            return;
        };
        let root_of = |size| self.root(size);
        let in_force = &self.in_force.sites;
        let best = self.board.best(size..=size, root_of, |_, keys| is_majority(in_force, keys));
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
        let mut in_force = self.in_force.sites.as_slice();
        if in_force.is_empty() {
            in_force = sites_of(&self.state);
        }
        if is_majority(in_force, &keys) {
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

//! A control process: reads the log through the real verifying reader, decides with the real
//! `decide`, evolves with the real `evolve`, watches with the real watcher. What is done here in
//! place of tasks and sockets is the order of it: one append at a time, drafted against the state,
//! repeated until its outcome is known, read back before it has an effect.

use crate::founding::{commit, uuid};
use crate::log::SimulatedLog;
use crate::stream::SERVING;
use crate::world::{Event, World};
use futures_util::FutureExt;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use voute_control::domain::{
    Refusal, SpecInputs, State, Touched, decide, decide_escalations, evolve, node_changes,
    node_spec, touched,
};
use voute_control::observed::{Nodes, ObservedNode, so_since};
use voute_control::stream::answers::{Answers, Take};
use voute_control::stream::is_vouched;
use voute_control::watcher::{Now, Watcher};
use voute_events::{AppendError, Position, ReadError, VerifiedReader};
use voute_schemas::command::{Command, Escalation};
use voute_schemas::commit::Actor;
use voute_schemas::contract::{EscalationOutcome, FromNode, Hello, NodeSpec, ToNode};
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::proof::Checkpoint;
use voute_schemas::times::Times;
use voute_schemas::{
    Commit, CommitId, EscalationId, Event as LogEvent, FailoverId, Hash, NodeId, Sequence, SiteId,
};

/// What became of an append.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AppendResult {
    Done,
    Conflict,
    Unknown,
}

/// Commits that took effect at a control process.
pub(crate) struct Publication {
    pub(crate) before: State,
    pub(crate) after: State,
    pub(crate) commits: Vec<(CommitId, Sequence, Vec<LogEvent>)>,
}

enum Job {
    Escalations { node: usize, id: EscalationId, requests: Vec<Escalation>, vouched: Vec<bool> },
    Command { command: Box<Command>, site: Option<SiteId> },
}

struct Appending {
    expected: Position,
    commits: Vec<Commit>,
    /// The jobs, and what those of nodes are answered once the commits are in.
    jobs: Vec<(Job, Vec<EscalationOutcome>)>,
    pause: Duration,
}

pub(crate) struct Control {
    log: SimulatedLog,
    /// Rises when it starts and when it ends.
    pub(crate) life: u64,
    pub(crate) is_up: bool,
    began: Duration,
    reader: VerifiedReader<SimulatedLog>,
    state: State,
    /// Why it projects no more.
    pub(crate) stopped: Option<String>,
    /// What it signed last, on its disk.
    register: (Sequence, Hash),
    nodes: Nodes,
    watcher: Watcher,
    streams: BTreeMap<usize, u64>,
    news: BTreeMap<usize, Touched>,
    answers: BTreeMap<usize, Answers>,
    jobs: VecDeque<Job>,
    appending: Option<Appending>,
}

const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_secs(1);
const READ_MAX: usize = 8_000;

impl Control {
    pub(crate) fn new(log: SimulatedLog) -> Self {
        Control {
            reader: VerifiedReader::new(log.clone(), Position::ZERO),
            log,
            life: 0,
            is_up: false,
            began: Duration::ZERO,
            state: State::default(),
            stopped: None,
            register: (Sequence(0), Hash::ZERO),
            nodes: Nodes::new(),
            watcher: Watcher::new(Times::default()),
            streams: BTreeMap::new(),
            news: BTreeMap::new(),
            answers: BTreeMap::new(),
            jobs: VecDeque::new(),
            appending: None,
        }
    }

    /// Whether it may tell nodes what to be.
    pub(crate) fn serves(&self) -> bool {
        self.is_up && self.stopped.is_none() && self.state.cluster().is_some()
    }

    /// What it signed last.
    pub(crate) fn signed(&self) -> (Sequence, Hash) {
        self.register
    }

    /// Whether a command waits for the log.
    pub(crate) fn has_orders(&self) -> bool {
        let under_way = self.appending.iter().flat_map(|appending| &appending.jobs);
        let jobs = self.jobs.iter().chain(under_way.map(|(job, _)| job));
        jobs.into_iter().any(|job| matches!(job, Job::Command { .. }))
    }

    /// Whether a node's wish to hand a group over, or to own one, waits for the log.
    pub(crate) fn has_moves(&self) -> bool {
        let under_way = self.appending.iter().flat_map(|appending| &appending.jobs);
        let mut jobs = self.jobs.iter().chain(under_way.map(|(job, _)| job));
        jobs.any(|job| match job {
            Job::Escalations { requests, .. } => requests.iter().any(is_move),
            Job::Command { .. } => false,
        })
    }

    /// From here on its watcher moves nothing by itself.
    pub(crate) fn hold_still(&mut self) {
        self.watcher.may_act = false;
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    fn node_index(&self, founded: &crate::founding::Founded, node: NodeId) -> Option<usize> {
        founded.nodes.iter().position(|id| *id == node)
    }
}

impl World {
    // ---- its process ---------------------------------------------------------------------------

    pub(crate) fn start_control(&mut self, control: usize) {
        let now = self.now;
        let it = &mut self.controls[control];
        if it.is_up {
            return;
        }
        it.life += 1;
        it.is_up = true;
        it.began = now;
        it.reader = VerifiedReader::new(it.log.clone(), Position::ZERO);
        it.state = State::default();
        it.stopped = None;
        it.nodes = Nodes::new();
        it.watcher = Watcher::new(Times::default());
        let life = it.life;
        self.tell(|| format!("control process {control} starts"));
        self.after(Duration::from_millis(5), Event::Follow { control, life });
        self.after(LOOK_INTERVAL, Event::Look { control, life });
    }

    pub(crate) fn kill_control(&mut self, control: usize) {
        let it = &mut self.controls[control];
        if !it.is_up {
            return;
        }
        it.life += 1;
        it.is_up = false;
        it.jobs.clear();
        it.appending = None;
        it.answers.clear();
        it.news.clear();
        self.tell(|| format!("control process {control} is killed"));
        if control == SERVING {
            self.reset_streams(|_| true);
        }
        self.controls[control].streams.clear();
    }

    // ---- streams -------------------------------------------------------------------------------

    /// A node opened a stream: it replaces one of the same or an older start. Whether it may.
    pub(crate) fn stream_opened(&mut self, id: u64, hello: &Hello) -> bool {
        let now = self.now;
        let it = &mut self.controls[SERVING];
        let Some(node) = it.node_index(&self.founded, hello.node).filter(|_| it.serves()) else {
            return false;
        };
        let since_start = now - it.began;
        let older = it.streams.insert(node, id);
        // What its last process said of its groups no longer holds; it will say everything anew.
        let observed = ObservedNode {
            connected_since: Some(since_start),
            closed_at: None,
            heard_at: since_start,
            so_since: None,
            incarnation: hello.incarnation,
            software: String::new(),
            engine: String::new(),
            obeyed: hello.obeyed,
            devices: BTreeMap::new(),
            links: Vec::new(),
            groups: std::collections::HashMap::new(),
        };
        it.nodes.insert(hello.node, observed);
        it.news.remove(&node);
        let content = node_spec(&it.state, hello.node, &inputs());
        let spec = content.map(|content| self.spec_of(content, true));
        if let Some(older) = older {
            self.break_stream(older);
        }
        let Some(spec) = spec else { return false };
        self.say_to_node(id, ToNode::Spec(Box::new(spec)));
        self.beat(id, since_start);
        true
    }

    fn spec_of(&self, content: voute_control::domain::NodeContent, full: bool) -> NodeSpec {
        let state = &self.controls[SERVING].state;
        NodeSpec {
            as_of: state.position(),
            full,
            cluster: self.founded.cluster,
            facts: content.facts,
            checkpoint: Checkpoint::default(),
            as_of_path: vec![],
            hand_overs: vec![],
            proofs: vec![],
            groups: content.groups,
            removed_groups: content.removed_groups,
        }
    }

    pub(crate) fn stream_closed(&mut self, node: usize, id: u64, life: u64) {
        let (now, node_id) = (self.now, self.founded.nodes[node]);
        let it = &mut self.controls[SERVING];
        if it.life == life && it.streams.get(&node) == Some(&id) {
            it.streams.remove(&node);
            if let Some(observed) = it.nodes.get_mut(&node_id) {
                observed.connected_since = None;
                observed.closed_at = Some(now - it.began);
            }
        }
    }

    pub(crate) fn node_says(&mut self, node: usize, stream: u64, message: FromNode) {
        let (now, id) = (self.now, self.founded.nodes[node]);
        let it = &mut self.controls[SERVING];
        if it.streams.get(&node) != Some(&stream) {
            return;
        }
        let since_start = now - it.began;
        if let Some(observed) = it.nodes.get_mut(&id) {
            observed.heard_at = since_start;
        }
        match message {
            FromNode::Hello(_) => {}
            FromNode::Status(status) => {
                if let Some(observed) = it.nodes.get_mut(&id) {
                    observed.so_since = so_since(status.answers_us, since_start);
                    observed.obeyed = status.obeyed;
                    observed.links = status.links;
                    let groups = status.groups.into_iter().map(|group| (group.group, group));
                    observed.groups.extend(groups);
                }
                self.beat(stream, since_start);
            }
            FromNode::Escalate { id, requests } => self.take_escalations(node, id, requests),
        }
    }

    fn beat(&mut self, stream: u64, since_start: Duration) {
        let sent_us = u64::try_from(since_start.as_micros()).expect("simulations are short").max(1);
        self.say_to_node(stream, ToNode::Heartbeat { sent_us });
    }

    fn take_escalations(&mut self, node: usize, id: EscalationId, requests: Vec<Escalation>) {
        let now = self.now;
        let it = &mut self.controls[SERVING];
        match it.answers.entry(node).or_default().take(id) {
            Take::Ignore => return,
            Take::Answer(outcomes) => return self.answer_node(node, id, outcomes),
            Take::Decide => {}
        }
        let node_id = self.founded.nodes[node];
        let vouched: Vec<bool> = requests
            .iter()
            .map(|request| {
                let times = Times::default();
                let since_start = now - it.began;
                is_vouched(&it.state, &it.nodes, (&times, since_start), node_id, request)
            })
            .collect();
        let decided: Vec<Escalation> = requests
            .into_iter()
            .zip(&vouched)
            .filter(|(_, vouched)| **vouched)
            .map(|(request, _)| request)
            .collect();
        it.jobs.push_back(Job::Escalations { node, id, requests: decided, vouched });
        self.work(SERVING);
    }

    fn answer_node(&mut self, node: usize, id: EscalationId, outcomes: Vec<EscalationOutcome>) {
        if let Some(stream) = self.controls[SERVING].streams.get(&node).copied() {
            let copies = if self.random.chance(3) { 2 } else { 1 };
            for _ in 0..copies {
                let outcomes = outcomes.clone();
                self.say_to_node(stream, ToNode::Answer { id, outcomes });
            }
        }
    }

    pub(crate) fn send_news(&mut self, control: usize, life: u64, node: usize) {
        let it = &mut self.controls[control];
        if it.life != life {
            return;
        }
        let (Some(touched), Some(stream)) = (it.news.remove(&node), it.streams.get(&node).copied())
        else {
            return;
        };
        let id = self.founded.nodes[node];
        let Some(content) = node_changes(&it.state, id, &touched, &inputs()) else { return };
        if let Some(observed) = it.nodes.get_mut(&id) {
            for group in &content.removed_groups {
                observed.groups.remove(group);
            }
        }
        let spec = self.spec_of(content, false);
        self.say_to_node(stream, ToNode::Spec(Box::new(spec)));
    }

    // ---- the watcher ---------------------------------------------------------------------------

    pub(crate) fn look(&mut self, control: usize, life: u64) {
        if self.controls[control].life != life {
            return;
        }
        self.after(LOOK_INTERVAL, Event::Look { control, life });
        if control == SERVING {
            self.check_time();
        }
        if control == SERVING && self.controls[control].serves() {
            self.assess();
        }
        self.work(control);
    }

    fn assess(&mut self) {
        let now = self.now;
        let it = &mut self.controls[SERVING];
        // One proposal is waited for before the next look, as the watcher's task does.
        let is_waiting =
            it.jobs.iter().any(|job| matches!(job, Job::Command { site: Some(_), .. }))
                || it.appending.as_ref().is_some_and(|appending| {
                    appending.jobs.iter().any(|(job, _)| matches!(job, Job::Command { .. }))
                });
        if is_waiting {
            return;
        }
        let now = Now { since_start: now - it.began, unix_ms: 1_000 };
        let proposals = it.watcher.assess(&it.state, &it.nodes, now);
        for mut proposal in proposals {
            let name = self.name();
            let site = match &mut proposal.command {
                Command::FailOverSite { site, failover, .. } => {
                    *failover = FailoverId(uuid(20, name));
                    Some(*site)
                }
                Command::ReportSiteCondition { site, .. } => Some(*site),
                _ => None,
            };
            self.tell(|| format!("the watcher proposes {}", proposal.command.name()));
            self.ask(SERVING, proposal.command, site);
        }
    }

    /// A command for a control process, from its watcher or a person.
    pub(crate) fn ask(&mut self, control: usize, command: Command, site: Option<SiteId>) {
        if self.controls[control].is_up {
            self.controls[control]
                .jobs
                .push_back(Job::Command { command: Box::new(command), site });
            self.work(control);
        }
    }

    // ---- deciding and appending ----------------------------------------------------------------

    /// Drafts what waits and appends it, unless an append is under way.
    fn work(&mut self, control: usize) {
        let it = &mut self.controls[control];
        let idle = it.appending.is_none() && it.stopped.is_none() && it.state.cluster().is_some();
        if !idle || it.jobs.is_empty() {
            return;
        }
        let jobs: Vec<Job> = it.jobs.drain(..).collect();
        self.draft(control, jobs);
    }

    fn draft(&mut self, control: usize, jobs: Vec<Job>) {
        let mut state = self.controls[control].state.clone();
        let expected = state.position();
        let (mut commits, mut waiting) = (Vec::new(), Vec::new());
        for job in jobs {
            let (events, outcomes) = self.decide_job(&state, control, &job);
            if events.is_empty() {
                self.answer(control, job, outcomes);
                continue;
            }
            let (actor, what) = match &job {
                Job::Escalations { node, .. } => {
                    (Actor::Node(self.founded.nodes[*node]), "Escalate")
                }
                Job::Command { command, .. } => (Actor::System, command.name()),
            };
            let id = CommitId(uuid(21, self.name()));
            let commit = commit(state.position(), id, actor, what, events);
            let hash = Hash::of_commit(&commit.encode());
            evolve(&mut state, Position { sequence: commit.sequence, hash }, &commit);
            commits.push(commit);
            waiting.push((job, outcomes));
        }
        if !commits.is_empty() {
            let pause = RETRY_FIRST;
            self.controls[control].appending =
                Some(Appending { expected, commits, jobs: waiting, pause });
            self.append(control);
        }
    }

    /// The events of a job, and what its node is answered.
    fn decide_job(
        &mut self,
        state: &State,
        control: usize,
        job: &Job,
    ) -> (Vec<LogEvent>, Vec<EscalationOutcome>) {
        let sequence = state.position().sequence.next();
        match job {
            Job::Escalations { node, requests, vouched, .. } => {
                let decided = decide_escalations(state, self.founded.nodes[*node], requests);
                let mut decided = decided.into_iter();
                let mut events = Vec::new();
                let mut outcomes = Vec::new();
                for vouched in vouched {
                    let decided = if *vouched { decided.next() } else { None };
                    outcomes.push(match decided {
                        Some(Ok(more)) => {
                            events.extend(more);
                            EscalationOutcome::Committed { sequence }
                        }
                        Some(Err(refusal)) => refused(&refusal),
                        None => EscalationOutcome::Refused {
                            code: "not-vouched".to_owned(),
                            message: String::new(),
                        },
                    });
                }
                self.tell(|| format!("control {control} decides {requests:?}: {outcomes:?}"));
                (events, outcomes)
            }
            Job::Command { command, .. } => match decide(state, command) {
                Ok(events) => (events, vec![]),
                Err(refusal) => {
                    self.tell(|| {
                        format!("control {control} refuses {}: {refusal}", command.name())
                    });
                    (vec![], vec![])
                }
            },
        }
    }

    fn answer(&mut self, control: usize, job: Job, outcomes: Vec<EscalationOutcome>) {
        let now = self.now;
        let it = &mut self.controls[control];
        match job {
            Job::Escalations { node, id, .. } => {
                it.answers.entry(node).or_default().answered(id, Some(outcomes.clone()));
                self.answer_node(node, id, outcomes);
            }
            // Nothing came of it.
            Job::Command { site: Some(site), .. } if outcomes.is_empty() => {
                it.watcher.refused(site, now - it.began);
            }
            Job::Command { .. } => {}
        }
    }

    fn append(&mut self, control: usize) {
        let it = &self.controls[control];
        let Some(appending) = &it.appending else { return };
        let appended = it.log.append_now(appending.expected, &appending.commits);
        let result = match appended {
            Ok(_) => AppendResult::Done,
            Err(AppendError::Unknown { .. }) => AppendResult::Unknown,
            Err(_) => AppendResult::Conflict,
        };
        let life = it.life;
        let delay = match result {
            AppendResult::Unknown => self.random.millis(50, 2_000),
            _ if self.random.chance(5) => self.random.millis(5, 1_000),
            _ => self.random.micros(200, 5_000),
        };
        self.after(delay, Event::AppendAnswered { control, life, result });
        self.tell_followers();
    }

    pub(crate) fn append_answered(&mut self, control: usize, life: u64, result: AppendResult) {
        if self.controls[control].life != life {
            return;
        }
        match result {
            AppendResult::Unknown => {
                let it = &mut self.controls[control];
                let Some(appending) = &mut it.appending else { return };
                let pause = appending.pause;
                appending.pause = (pause * 2).min(RETRY_LAST);
                self.after(pause, Event::AppendAgain { control, life });
            }
            AppendResult::Done => self.finish_append(control),
            AppendResult::Conflict => {
                let Some(appending) = self.controls[control].appending.take() else { return };
                self.tell(|| format!("control {control}: another writer was first"));
                self.follow(control);
                let jobs: Vec<Job> = appending.jobs.into_iter().map(|(job, _)| job).collect();
                if self.controls[control].is_up && self.controls[control].stopped.is_none() {
                    if self.controls[control].appending.is_none() {
                        self.draft(control, jobs);
                    } else {
                        self.controls[control].jobs.extend(jobs);
                    }
                }
            }
        }
    }

    pub(crate) fn append_again(&mut self, control: usize, life: u64) {
        if self.controls[control].life == life {
            self.append(control);
        }
    }

    /// An own commit takes effect once it was read back.
    fn finish_append(&mut self, control: usize) {
        self.follow(control);
        let it = &mut self.controls[control];
        let Some(appending) = &it.appending else { return };
        let last = appending.commits.last().map(|commit| commit.sequence);
        if last > Some(it.state.position().sequence) {
            if it.stopped.is_none() {
                // A replica lags behind the append that it is about to learn of.
                let life = it.life;
                let result = AppendResult::Done;
                let delay = Duration::from_millis(10);
                self.after(delay, Event::AppendAnswered { control, life, result });
            }
            return;
        }
        let Some(appending) = it.appending.take() else { return };
        for (job, outcomes) in appending.jobs {
            match job {
                Job::Escalations { .. } => self.answer(control, job, outcomes),
                Job::Command { .. } => {}
            }
        }
        self.work(control);
    }

    // ---- reading -------------------------------------------------------------------------------

    /// Reads what is new, evolves, signs, publishes.
    pub(crate) fn follow(&mut self, control: usize) {
        let it = &mut self.controls[control];
        if !it.is_up || it.stopped.is_some() {
            return;
        }
        let before = it.state.clone();
        let mut commits = Vec::new();
        loop {
            let batch = it.reader.next_batch(READ_MAX).now_or_never();
            match batch.expect("the simulated log never waits") {
                Ok(batch) if batch.is_empty() => break,
                Ok(batch) => {
                    for (commit, stored) in batch {
                        evolve(&mut it.state, stored.position, &commit);
                        commits.push((commit.id, commit.sequence, commit.events().to_vec()));
                    }
                }
                Err(ReadError::Unavailable { .. }) => {
                    let life = it.life;
                    let delay = self.random.millis(20, 1_000);
                    self.after(delay, Event::Follow { control, life });
                    break;
                }
                Err(error @ ReadError::Damaged { .. }) => {
                    return self.stop_control(control, error.to_string());
                }
            }
        }
        if self.controls[control].state.position() != before.position() {
            self.publish(control, before, commits);
        }
    }

    fn publish(
        &mut self,
        control: usize,
        before: State,
        commits: Vec<(CommitId, Sequence, Vec<LogEvent>)>,
    ) {
        if control == SERVING && !self.sign() {
            return self.stop_control(control, "it signed another history before".to_owned());
        }
        let after = self.controls[control].state.clone();
        let publication = Publication { before, after, commits };
        self.committed(&publication);
        if control == SERVING {
            let events: Vec<LogEvent> = publication
                .commits
                .iter()
                .flat_map(|(_, _, events)| events.iter().cloned())
                .collect();
            let touched = touched(&publication.before, &publication.after, &events);
            self.spread(&touched);
        }
        self.work(control);
    }

    /// What a site's register holds it to: never less than before, nor another history.
    fn sign(&mut self) -> bool {
        let it = &mut self.controls[SERVING];
        let position = it.state.position();
        let (signed, hash) = it.register;
        let is_same_history = signed == Sequence(0) || it.log.inner().hash_at(signed) == Some(hash);
        let is_lower = position.sequence < signed || !is_same_history;
        if is_lower && !mutant::is_active(Mutant::RegisterForgotten) {
            return false;
        }
        it.register = (position.sequence, position.hash);
        true
    }

    fn stop_control(&mut self, control: usize, why: String) {
        self.tell(|| format!("control {control} stops projecting: {why}"));
        let it = &mut self.controls[control];
        it.stopped = Some(why);
        it.jobs.clear();
        it.appending = None;
        if control == SERVING {
            self.reset_streams(|_| true);
        }
    }

    fn spread(&mut self, touched: &Touched) {
        for node in 0..self.nodes.len() {
            let id = self.founded.nodes[node];
            let it = &mut self.controls[SERVING];
            if !touched.concerns(id) || !it.streams.contains_key(&node) {
                continue;
            }
            let mut own = Touched { all_facts: touched.all_facts, ..Touched::default() };
            own.facts.extend(touched.facts.get(&id));
            own.groups.extend(touched.groups.get(&id).map(|groups| (id, groups.clone())));
            it.news.entry(node).or_default().merge(own);
            let life = it.life;
            let delay = self.random.micros(50, 2_000);
            self.after(delay, Event::News { control: SERVING, life, node });
        }
    }
}

/// Whether it asks for another owner.
pub(crate) fn is_move(request: &Escalation) -> bool {
    matches!(request, Escalation::HandOver { .. } | Escalation::WantOwner { .. })
}

fn refused(refusal: &Refusal) -> EscalationOutcome {
    EscalationOutcome::Refused { code: refusal.code().to_owned(), message: refusal.to_string() }
}

fn inputs() -> SpecInputs<'static> {
    SpecInputs { times: Times::default(), link_secret: "", chap_secret: &|_| None }
}

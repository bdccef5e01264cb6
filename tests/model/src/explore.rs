//! Visits every state that so many deviations can lead to.
//!
//! Depth first. A state that was reached with as many deviations left is not visited again: what can
//! follow from it is known. Each state has one ordinary successor; when all are visited, these chains
//! are followed, and each must come to a healthy pair.

use crate::world::{Happening, Menu, World};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What is explored.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Most deviations in one history.
    pub deviations: u8,
    /// Which.
    pub menu: Menu,
    /// Percent at which the nodes' clocks run.
    pub rates: [u32; 2],
    /// Whether states that are taken for the same are compared by what can happen next.
    pub checks_sameness: bool,
    /// Most states; more is an error, not a result.
    pub states_max: usize,
    /// Longest exploration.
    pub time_max: Duration,
}

/// What was explored.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Different states.
    pub states: usize,
    /// Steps from one to another, the repeated ones too.
    pub transitions: u64,
    /// Of the states, healthy ones.
    pub healthy: usize,
    /// Most steps from the beginning.
    pub depth: usize,
    /// Most ordinary steps from a state to a healthy pair.
    pub recovery: usize,
    /// Pairs of states, taken for the same, of which was compared what can happen next.
    pub compared: u64,
    /// Whether everything within the bounds was visited.
    pub is_complete: bool,
    /// What was found to be wrong.
    pub found: Option<Found>,
}

/// Something wrong, and how it comes to it.
#[derive(Clone, Debug)]
pub struct Found {
    /// What.
    pub what: String,
    /// The deviations, each after so many ordinary steps.
    pub trace: Vec<(usize, Happening)>,
    /// Ordinary steps after the last of them.
    pub then: usize,
}

/// Ordinary steps that are told of a history without an end.
const ENDLESS: usize = 400;

struct Seen {
    left: u8,
    is_healthy: bool,
    may_stay: bool,
    /// The ordinary successor; 0 until known.
    next: u64,
    from: u64,
    by: Happening,
    /// Digest of all that may follow, of every [`SAMPLE`]th state.
    follows: Option<u64>,
}

/// Of so many states one is compared wholly, all by their ordinary successor.
const SAMPLE: u64 = 32;

/// What is still to be visited: something that happens in a state that is kept.
struct Branch {
    world: Rc<World>,
    from: u64,
    happening: Happening,
    left: u8,
    depth: usize,
}

struct Explorer<'a> {
    bounds: &'a Bounds,
    seen: HashMap<u64, Seen>,
    branches: Vec<Branch>,
    report: Report,
    began: Instant,
}

/// Explores everything within the bounds.
#[must_use]
pub fn explore(bounds: &Bounds) -> Report {
    let mut explorer = Explorer {
        bounds,
        seen: HashMap::new(),
        branches: Vec::new(),
        report: Report::default(),
        began: Instant::now(),
    };
    explorer.run();
    explorer.report.states = explorer.seen.len();
    explorer.report.healthy = explorer.seen.values().filter(|seen| seen.is_healthy).count();
    if explorer.report.found.is_none() {
        explorer.find_dead_ends();
    }
    explorer.report
}

impl Explorer<'_> {
    fn run(&mut self) {
        let first = World::healthy(self.bounds.rates);
        self.follow(first, 0, Happening::Ordinary, self.bounds.deviations, 0);
        while let Some(branch) = self.branches.pop() {
            if self.report.found.is_some() || self.is_too_much() {
                return;
            }
            let mut world = (*branch.world).clone();
            self.report.transitions += 1;
            match catch_unwind(AssertUnwindSafe(|| world.happen(branch.happening))) {
                Ok(true) => {
                    let Branch { from, happening, left, depth, .. } = branch;
                    self.follow(world, from, happening, left, depth + 1);
                }
                Ok(false) => {}
                Err(_) => self.blame("it panics", branch.from, branch.happening),
            }
        }
        self.report.is_complete = true;
    }

    fn is_too_much(&self) -> bool {
        self.seen.len() > self.bounds.states_max || self.began.elapsed() > self.bounds.time_max
    }

    /// The ordinary course from a state on, until it comes to a known one.
    fn follow(
        &mut self,
        mut world: World,
        mut from: u64,
        mut by: Happening,
        left: u8,
        mut depth: usize,
    ) {
        loop {
            let print = world.fingerprint();
            if by == Happening::Ordinary
                && let Some(before) = self.seen.get_mut(&from)
            {
                before.next = print;
            }
            if let Some(what) = world.violation() {
                let what = what.to_owned();
                return self.blame(&what, from, by);
            }
            self.report.depth = self.report.depth.max(depth);
            if self.bounds.checks_sameness
                && let Some(seen) = self.seen.get(&print)
            {
                let differs = self.differs(seen, &world, print);
                self.report.compared += 1;
                if differs {
                    return self.blame("states taken for the same go on differently", from, by);
                }
            }
            match self.seen.get_mut(&print) {
                Some(seen) if seen.left >= left => return,
                Some(seen) => seen.left = left,
                None => {
                    let is_healthy = world.is_healthy();
                    let may_stay = world.is_beyond_repair();
                    let follows = self.follows(&world, print);
                    let seen = Seen { left, is_healthy, may_stay, next: 0, from, by, follows };
                    self.seen.insert(print, seen);
                }
            }
            if left > 0 {
                self.branch(&world, print, left - 1, depth);
            }
            self.report.transitions += 1;
            if catch_unwind(AssertUnwindSafe(|| world.ordinary())).is_err() {
                return self.blame("it panics", print, Happening::Ordinary);
            }
            (from, by) = (print, Happening::Ordinary);
            depth += 1;
        }
    }

    /// Whether what can follow from a state is not what followed from the one it is taken for.
    fn differs(&self, seen: &Seen, world: &World, print: u64) -> bool {
        let mut next = world.clone();
        let ordinary = catch_unwind(AssertUnwindSafe(|| next.ordinary()));
        let is_other = ordinary.is_ok() && seen.next != 0 && seen.next != next.fingerprint();
        is_other || self.follows(world, print) != seen.follows
    }

    fn follows(&self, world: &World, print: u64) -> Option<u64> {
        if !self.bounds.checks_sameness || !print.is_multiple_of(SAMPLE) {
            return None;
        }
        let after = |happening: Happening| {
            let mut next = world.clone();
            let changed = catch_unwind(AssertUnwindSafe(|| next.happen(happening)));
            changed.is_ok_and(|changed| changed).then(|| next.fingerprint())
        };
        let mut digest = 0_u64;
        for happening in world.deviations(&self.bounds.menu) {
            digest = digest.rotate_left(7) ^ after(happening).unwrap_or(1);
        }
        Some(digest)
    }

    fn branch(&mut self, world: &World, from: u64, left: u8, depth: usize) {
        let kept = Rc::new(world.clone());
        let branches = world.deviations(&self.bounds.menu).into_iter().map(|happening| Branch {
            world: Rc::clone(&kept),
            from,
            happening,
            left,
            depth,
        });
        self.branches.extend(branches);
    }

    fn blame(&mut self, what: &str, from: u64, last: Happening) {
        let (trace, then) = self.trace(from, last);
        self.report.found = Some(Found { what: what.to_owned(), trace, then });
    }

    /// How a state was reached first, and what happened then.
    fn trace(&self, mut at: u64, last: Happening) -> (Vec<(usize, Happening)>, usize) {
        let mut happenings = vec![last];
        while let Some(seen) = self.seen.get(&at).filter(|seen| seen.from != 0) {
            happenings.push(seen.by);
            at = seen.from;
        }
        let (mut trace, mut ordinary) = (Vec::new(), 0);
        for happening in happenings.into_iter().rev() {
            match happening {
                Happening::Ordinary => ordinary += 1,
                deviation => {
                    trace.push((ordinary, deviation));
                    ordinary = 0;
                }
            }
        }
        (trace, ordinary)
    }

    /// From each state the ordinary course must come to a healthy pair.
    fn find_dead_ends(&mut self) {
        let mut steps: HashMap<u64, usize> = HashMap::with_capacity(self.seen.len());
        for (print, seen) in &self.seen {
            if seen.is_healthy || seen.may_stay {
                steps.insert(*print, 0);
            }
        }
        for print in self.seen.keys() {
            let mut path = Vec::new();
            let mut at = *print;
            while !steps.contains_key(&at) {
                path.push(at);
                let next = self.seen.get(&at).map_or(0, |seen| seen.next);
                let is_known = next != 0 && self.seen.contains_key(&next);
                // Not followed: the exploration ended before.
                if !is_known && !self.report.is_complete {
                    break;
                }
                if !is_known || path.len() > self.seen.len() {
                    let (trace, then) = self.trace(*print, Happening::Ordinary);
                    let what = "a pair without faults never becomes healthy".to_owned();
                    self.report.found = Some(Found { what, trace, then });
                    return;
                }
                at = next;
            }
            let mut count = steps.get(&at).copied().unwrap_or_default();
            for at in path.into_iter().rev() {
                count += 1;
                steps.insert(at, count);
            }
        }
        self.report.recovery = steps.values().copied().max().unwrap_or_default();
    }
}

/// Tells a history again, step by step, from the same beginning.
///
/// # Panics
/// If it is no history of these bounds, or where the history itself panics.
pub fn retell(bounds: &Bounds, found: &Found, mut tell: impl FnMut(&str)) {
    let mut world = World::healthy(bounds.rates);
    let mut last = String::new();
    let mut step = |world: &mut World, happening: Happening, tell: &mut dyn FnMut(&str)| {
        if happening != Happening::Ordinary {
            tell(&format!("--- {happening:?}"));
        }
        let _ = world.happen(happening);
        let summary = world.summary();
        if summary != last {
            tell(&summary);
            last = summary;
        }
    };
    for (ordinary, deviation) in &found.trace {
        (0..*ordinary).for_each(|_| step(&mut world, Happening::Ordinary, &mut tell));
        step(&mut world, *deviation, &mut tell);
    }
    (0..found.then).for_each(|_| step(&mut world, Happening::Ordinary, &mut tell));
    match world.violation() {
        Some(what) => tell(what),
        // It goes on like that.
        None => (0..ENDLESS).for_each(|_| step(&mut world, Happening::Ordinary, &mut tell)),
    }
}

/// Reads a history as it is printed: `11:Stall(Replies(0), 2);2:CutLog(0, 10)`. `None` if it is none:
/// each deviation must be among those that may happen there.
#[must_use]
pub fn read_history(bounds: &Bounds, text: &str) -> Option<Found> {
    let mut world = World::healthy(bounds.rates);
    let mut trace = Vec::new();
    for part in text.split(';') {
        let (ordinary, deviation) = part.split_once(':')?;
        let ordinary = ordinary.trim().parse().ok()?;
        (0..ordinary).for_each(|_| world.ordinary());
        let possible = world.deviations(&bounds.menu);
        let deviation = possible.into_iter().find(|it| format!("{it:?}") == deviation.trim())?;
        let _ = world.happen(deviation);
        trace.push((ordinary, deviation));
    }
    Some(Found { what: String::new(), trace, then: 0 })
}

//! When a core does what, where some of its work waits for a device.
//!
//! The stream of a fleet says in which order work was done, and a wait is a gap in it. Who waits
//! (a process that was told that its page is away, or a whole VM that was not) leaves the core, and
//! what the stream has others do next takes its place, until the page is there: then the one who
//! waited goes on with what it was doing. Nobody overtakes further than that: what the stream has
//! behind the *next* piece of whoever waits comes after the wait, as it may depend on it. So waits
//! are hidden behind what the guest or host is known to have run next, and behind nothing else.
//!
//! Work is conserved: only its time changes, not which memory it finds.

use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Items of a piece that nobody overtakes any more: so many are kept.
const LONGEST: usize = 1 << 16;

/// Who works or waits: the number of its VM, and what tells it from others of the VM. All work of
/// one is done in the order of the stream.
pub type Who = (u32, u64);

/// What a VM waited on a core, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waits {
    /// Somebody of the VM waited, and another of the VM ran.
    pub own_ns: f64,
    /// Somebody of the VM waited, and another VM ran.
    pub neighbours_ns: f64,
    /// Somebody of the VM waited, and nothing could run on the core.
    pub idle_ns: f64,
    /// Waits during which another of the VM ran.
    pub overtaken: u64,
}

#[derive(Clone, Copy, Debug)]
enum Item {
    Work(f64),
    /// How long, and whether the whole VM waits.
    Wait(f64, bool),
}

/// A piece of the stream in which one works, until another does.
#[derive(Debug)]
struct Piece {
    who: Who,
    items: VecDeque<Item>,
    /// It waits until then.
    until: f64,
    /// It waits, and another of its VM has run since.
    overtaken: bool,
}

/// One core. Work is told in the order of the stream, and done as early as can be.
#[derive(Debug, Default)]
pub struct Timeline {
    now: f64,
    /// Pieces that are not done, in the order of the stream.
    pieces: Vec<Piece>,
    /// Whose piece is the last of the stream so far.
    current: Option<Who>,
    /// By VM, until when all of it waits.
    stopped: FxHashMap<u32, f64>,
    waits: FxHashMap<u32, Waits>,
    /// Who worked from when to when, if anybody listens.
    heard: Option<Vec<(Who, f64, f64)>>,
}

impl Timeline {
    /// From now on [`Timeline::heard`] tells who worked when.
    pub fn listen(&mut self) {
        self.heard = Some(Vec::new());
    }

    /// Who worked from when to when, in nanoseconds, in order of time.
    pub fn heard(&self) -> &[(Who, f64, f64)] {
        self.heard.as_deref().unwrap_or_default()
    }

    /// How far the core is, in nanoseconds.
    pub const fn now(&self) -> f64 {
        self.now
    }

    /// What a VM waited here so far.
    pub fn waits(&self, vm: u32) -> Waits {
        self.waits.get(&vm).copied().unwrap_or_default()
    }

    /// Counting begins.
    pub fn counting_begins(&mut self) {
        self.finish();
        self.waits.clear();
    }

    /// Next in the stream, `who` works for `ns`.
    pub fn work(&mut self, who: Who, ns: f64) {
        self.tell(who, Item::Work(ns));
    }

    /// Next in the stream, `who` waits for `ns`; `all` of its VM with it, if it was not told.
    pub fn wait(&mut self, who: Who, ns: f64, all: bool) {
        self.tell(who, Item::Wait(ns, all));
    }

    /// Waits until all that was told is done.
    pub fn finish(&mut self) {
        while let Some(first) = self.pieces.first().map(|piece| piece.who) {
            self.go_on(Some(first));
        }
    }

    fn tell(&mut self, who: Who, item: Item) {
        if self.current != Some(who) {
            // What it was doing comes first, and nothing behind this overtakes that.
            self.go_on(Some(who));
            self.current = Some(who);
        }
        match self.pieces.iter_mut().find(|piece| piece.who == who) {
            Some(piece) => match (piece.items.back_mut(), item) {
                (Some(Item::Work(ns)), Item::Work(more)) => *ns += more,
                _ => piece.items.push_back(item),
            },
            None => self.pieces.push(Piece {
                who,
                items: VecDeque::from([item]),
                until: self.now,
                overtaken: false,
            }),
        }
        let longest = self.pieces.iter().map(|piece| piece.items.len()).max();
        self.go_on((longest > Some(LONGEST)).then_some(who));
    }

    /// When a piece can go on, or is done if it has nothing more to do.
    fn ready(&self, piece: &Piece) -> f64 {
        if piece.items.is_empty() {
            return piece.until;
        }
        piece.until.max(self.stopped.get(&piece.who.0).copied().unwrap_or(0.0))
    }

    /// Does what can be done now; waits for what one is doing, if `whose` says so.
    fn go_on(&mut self, whose: Option<Who>) {
        loop {
            let now = self.now;
            self.pieces.retain(|piece| !piece.items.is_empty() || piece.until > now);
            if whose.is_some_and(|who| self.pieces.iter().all(|piece| piece.who != who)) {
                return;
            }
            let able = |piece: &Piece| !piece.items.is_empty() && self.ready(piece) <= now;
            match self.pieces.iter().position(able) {
                Some(at) => self.run(at),
                None if whose.is_some() => self.pass(self.next_ready(), None),
                None => return,
            }
        }
    }

    /// When the next of those that wait can go on.
    fn next_ready(&self) -> f64 {
        let times = self.pieces.iter().map(|piece| self.ready(piece));
        times.filter(|at| *at > self.now).fold(f64::INFINITY, f64::min)
    }

    /// A piece goes on: up to its next wait, or until another can go on, which may be before it in
    /// the stream.
    fn run(&mut self, at: usize) {
        let (now, next) = (self.now, self.next_ready());
        let piece = &mut self.pieces[at];
        match piece.items.pop_front() {
            Some(Item::Wait(ns, all)) => {
                piece.until = now + ns;
                piece.overtaken = false;
                if all {
                    self.stopped.insert(piece.who.0, now + ns);
                }
            }
            Some(Item::Work(ns)) if now + ns > next => {
                piece.items.push_front(Item::Work(now + ns - next));
                self.pass(next, Some(at));
            }
            Some(Item::Work(ns)) => self.pass(now + ns, Some(at)),
            None => {}
        }
    }

    /// Time passes, in which a piece runs or none does.
    fn pass(&mut self, to: f64, runs: Option<usize>) {
        let ns = to - self.now;
        let runner = runs.map(|at| self.pieces[at].who);
        let waits = |piece: &Piece| self.ready(piece) > self.now;
        let waiting: Vec<usize> =
            (0..self.pieces.len()).filter(|at| waits(&self.pieces[*at])).collect();
        let mut told = Vec::new();
        for at in waiting {
            let vm = self.pieces[at].who.0;
            let own = runner.is_some_and(|who| who.0 == vm);
            if own && !std::mem::replace(&mut self.pieces[at].overtaken, true) {
                self.waits.entry(vm).or_default().overtaken += 1;
            }
            if told.contains(&vm) {
                continue;
            }
            told.push(vm);
            let counts = self.waits.entry(vm).or_default();
            match runner {
                Some(_) if own => counts.own_ns += ns,
                Some(_) => counts.neighbours_ns += ns,
                None => counts.idle_ns += ns,
            }
        }
        if let (Some(who), Some(heard)) = (runner, &mut self.heard)
            && ns > 0.0
        {
            heard.push((who, self.now, to));
        }
        self.now = to;
    }
}

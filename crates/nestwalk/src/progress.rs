//! Progress on standard error, phase by phase, for a person who may be looking.
//!
//! What is known of a phase is a [`Phase`]; how it is told is a pure function of it and of the time
//! ([`Phase::text`]). Time left is told where the length is known, and nowhere else. Whoever does the
//! work only stores numbers, a batch at a time; a thread of its own writes them. On a terminal that is a
//! line that changes; elsewhere a line where a phase begins, and one every half a minute.

mod meter;

pub use meter::{Beginning, Course, Meter};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nestwalk_capture::Step;
use nestwalk_report::{bytes, count};
use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the line on a terminal changes.
const REDRAW: Duration = Duration::from_millis(200);
/// How often a long phase is told where there is no terminal.
const REPEAT: Duration = Duration::from_secs(30);
/// Before this, neither a rate nor the time left is worth telling.
const EARLY: Duration = Duration::from_secs(1);

/// What is known of the work of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Only how long it takes.
    Time,
    /// Bytes, and how many they will be.
    Bytes { done: u64, total: Option<u64> },
    /// Things of which each takes about as long: points of a sweep.
    Items { done: u64, total: u64 },
    /// Accesses, and the place in what is read or made, with its length.
    Accesses { done: u64, of: Option<(u64, u64)> },
}

/// A phase of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What is done: "booting the guest".
    what: Cow<'static, str>,
    /// What it is at: "gcc, 3 of 40"; empty for nothing.
    item: String,
    amount: Amount,
}

impl Phase {
    /// A phase of which only the time is known.
    pub fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self::of(what, Amount::Time)
    }

    /// A phase with what is known of it.
    pub fn of(what: impl Into<Cow<'static, str>>, amount: Amount) -> Self {
        Self { what: what.into(), item: String::new(), amount }
    }

    /// How much is done, of how much; `None` if one of them is not known.
    const fn share(&self) -> Option<(u64, u64)> {
        match self.amount {
            Amount::Bytes { done, total: Some(total) } | Amount::Items { done, total } => {
                Some((done, total))
            }
            Amount::Accesses { of, .. } => of,
            _ => None,
        }
    }

    /// How long the rest takes if it goes on as since it `began`; `None` if nobody can know.
    fn left(&self, began: Amount, elapsed: Duration) -> Option<Duration> {
        let (done, total) = self.share()?;
        let before = Self::of("", began).share().map_or(0, |share| share.0);
        let (now, rest) = (done.checked_sub(before)?, total.checked_sub(done)?);
        if now == 0 || rest == 0 || elapsed < EARLY {
            return None;
        }
        Duration::try_from_secs_f64(elapsed.as_secs_f64() * rest as f64 / now as f64).ok()
    }

    /// One line on the phase, `elapsed` after it began with `began`.
    fn text(&self, began: Amount, elapsed: Duration) -> String {
        let mut text = self.what.to_string();
        if !self.item.is_empty() {
            text += &format!(": {}", self.item);
        }
        let early = elapsed < EARLY;
        match (self.amount, began) {
            (Amount::Bytes { done: 0, total: Some(total) }, _) => {
                text += &format!(": {}", bytes(total));
            }
            (Amount::Bytes { done, total: Some(total) }, _) => {
                text += &format!(": {} of {}", bytes(done.min(total)), bytes(total));
            }
            (Amount::Bytes { done, total: None }, _) if done > 0 => {
                text += &format!(": {}", bytes(done));
            }
            (Amount::Items { done, total }, _) => text += &format!(": {done} of {total}"),
            (Amount::Accesses { done, of }, Amount::Accesses { done: before, .. }) if !early => {
                let rate = done.saturating_sub(before) as f64 / elapsed.as_secs_f64() / 1e6;
                text += &format!(": {} accesses at {rate:.1} M/s", count(done));
                if let Some((done, total)) = of.filter(|of| of.1 > 0) {
                    text +=
                        &format!(", {}%", u128::from(done.min(total)) * 100 / u128::from(total));
                }
            }
            _ => {}
        }
        match self.left(began, elapsed) {
            Some(left) => text += &format!(", {} left", time(left)),
            None if !early => text += &format!(", {} so far", time(elapsed)),
            None => {}
        }
        text
    }
}

/// A time as people say it.
fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A phase under way.
struct Current {
    phase: Phase,
    /// What was known when it began.
    began: Amount,
    since: Instant,
}

impl Current {
    fn text(&self) -> String {
        self.phase.text(self.began, self.since.elapsed())
    }
}

/// The phases of a command, one after the other, as they are told. Dropping it ends the last.
pub struct Phases(Option<Told>);

struct Told {
    current: Arc<Mutex<Option<Current>>>,
    screen: Arc<dyn Screen>,
    /// Dropped to end the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Where progress is shown.
trait Screen: Send + Sync {
    /// How often it is to be shown.
    fn every(&self) -> Duration;
    /// A phase begins.
    fn begin(&self, current: &Current);
    /// Time has passed.
    fn show(&self, current: &Current);
    /// Nothing is to be seen any more of what changes.
    fn clear(&self);
    /// A line that stays.
    fn line(&self, text: &str);
}

impl Phases {
    /// Phases on standard error; nothing of them if `quiet`.
    pub fn new(quiet: bool) -> Self {
        if quiet {
            return Self(None);
        }
        if std::io::stderr().is_terminal() {
            return Self::on(Arc::new(Terminal(Mutex::default())));
        }
        Self::on(Arc::new(Lines { out: Mutex::new(std::io::stderr()), every: REPEAT }))
    }

    fn on(screen: Arc<dyn Screen>) -> Self {
        let current = Arc::new(Mutex::new(None));
        let (end, ended) = channel();
        let (shown, at) = (Arc::clone(&current), Arc::clone(&screen));
        let body = move || {
            while ended.recv_timeout(at.every()) == Err(RecvTimeoutError::Timeout) {
                if let Some(current) = &*lock(&shown) {
                    at.show(current);
                }
            }
        };
        // Without it only the beginnings are told.
        let thread = std::thread::Builder::new().name("progress".into()).spawn(body).ok();
        Self(Some(Told { current, screen, end: Some(end), thread }))
    }

    /// Whether nobody sees them.
    pub const fn are_silent(&self) -> bool {
        self.0.is_none()
    }

    /// A phase begins, and the one before is over.
    pub fn begin(&self, phase: Phase) {
        if let Some(told) = &self.0 {
            let (began, since) = (phase.amount, Instant::now());
            let new = Current { phase, began, since };
            // Held, so that nothing of the phase before comes after this.
            let mut current = lock(&told.current);
            told.screen.begin(&new);
            *current = Some(new);
        }
    }

    /// How far the phase is.
    pub fn at(&self, amount: Amount) {
        if let Some(told) = &self.0
            && let Some(current) = &mut *lock(&told.current)
        {
            current.phase.amount = amount;
        }
    }

    /// Writes a line that stays.
    pub fn line(&self, text: &str) {
        if let Some(told) = &self.0 {
            let _current = lock(&told.current);
            told.screen.line(text);
        }
    }

    /// A step of the work on a guest. What is found is told by `found`.
    pub fn step(&self, step: Step<'_>, found: &mut dyn FnMut(&str)) {
        match step {
            Step::Begins(what) => self.begin(Phase::new(what.to_owned())),
            Step::Aloud(what) => {
                self.end();
                self.line(&format!("nestwalk: {what}"));
            }
            Step::At(at) => {
                if let Some(told) = &self.0
                    && let Some(current) = &mut *lock(&told.current)
                {
                    let (number, items) = (at.number, at.items);
                    current.phase.item = match number {
                        0 => String::new(),
                        _ => format!("{}, {number} of {items}", at.item),
                    };
                    current.phase.amount = Amount::Bytes { done: at.bytes, total: at.total };
                }
            }
            Step::Found(text) => match &self.0 {
                Some(told) => {
                    let _current = lock(&told.current);
                    told.screen.clear();
                    found(text);
                }
                None => found(text),
            },
        }
    }

    /// Hears the steps before something runs; what is found is told.
    pub fn listen(&self, step: Step<'_>) {
        self.step(step, &mut |text| crate::tell::note(text));
    }

    /// The phase is over, and none follows yet.
    pub fn end(&self) {
        if let Some(told) = &self.0 {
            let mut current = lock(&told.current);
            *current = None;
            told.screen.clear();
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it is no fault of the command.
            let _ = thread.join();
        }
        self.screen.clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line that changes. Between two phases there is none.
struct Terminal(Mutex<Option<ProgressBar>>);

impl Terminal {
    fn style(with_length: bool) -> ProgressStyle {
        let template = if with_length { "{msg} [{wide_bar}]" } else { "{spinner} {wide_msg}" };
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
    }
}

impl Screen for Terminal {
    fn every(&self) -> Duration {
        REDRAW
    }
    fn begin(&self, _: &Current) {
        // It is drawn when it has lasted a moment: what is over at once would flicker.
        self.clear();
    }
    fn show(&self, current: &Current) {
        let mut bar = lock(&self.0);
        let share = current.phase.share();
        // Nothing is drawn before all is set.
        let bar = bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
            bar.set_style(Self::style(share.is_some()));
            bar
        });
        bar.set_message(current.text());
        if let Some((done, total)) = share {
            if bar.length().is_none() {
                bar.set_style(Self::style(true));
            }
            bar.set_length(total);
            bar.set_position(done.min(total));
        }
        if bar.is_hidden() {
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        }
        bar.tick();
    }
    fn clear(&self) {
        if let Some(bar) = lock(&self.0).take() {
            bar.finish_and_clear();
        }
    }
    fn line(&self, text: &str) {
        self.clear();
        crate::tell::tell(text);
    }
}

/// Plain lines.
struct Lines<W> {
    out: Mutex<W>,
    every: Duration,
}

impl<W: Write + Send> Lines<W> {
    fn write(&self, text: &str) {
        // Whoever read it may have gone.
        let _ = writeln!(lock(&self.out), "{text}");
    }
}

impl<W: Write + Send> Screen for Lines<W> {
    fn every(&self) -> Duration {
        self.every
    }
    fn begin(&self, current: &Current) {
        self.write(&format!("nestwalk: {}", current.text()));
    }
    fn show(&self, current: &Current) {
        // One that began just now was told just now.
        if current.since.elapsed() >= self.every / 2 {
            self.write(&format!("nestwalk: {}", current.text()));
        }
    }
    fn clear(&self) {}
    fn line(&self, text: &str) {
        self.write(text);
    }
}

#[cfg(test)]
mod tests;

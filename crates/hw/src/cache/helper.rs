//! A thread that works on references while its machine goes on.
//!
//! Nothing flows back from the caches while references wait, so they may be elsewhere meanwhile: they go
//! to the thread with the first references, and come back when somebody is to know where all of them
//! were served. References are dealt with in their order, so that results are the same as without.

use super::{Levels, Reference, Served};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// Parcels on their way at most.
const IN_FLIGHT: usize = 4;
/// References that go through one level before the next: more would not stay near by.
const AT_ONCE: usize = 1024;

enum Task {
    /// The caches, for references that follow.
    Begin(Box<Levels>),
    References(Vec<Reference>),
    /// The caches are wanted back.
    End,
}

type Done = (Box<Levels>, Served);

/// The machine's end of it.
#[derive(Debug)]
pub(super) struct Helper {
    tasks: Option<SyncSender<Task>>,
    done: Receiver<Done>,
    /// Emptied lists.
    spare: Receiver<Vec<Reference>>,
    thread: Option<JoinHandle<()>>,
    /// The caches are with the thread.
    away: bool,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

impl Helper {
    /// A thread, if the system has one to give.
    pub(super) fn new() -> Option<Self> {
        let (tasks, inbox) = sync_channel(IN_FLIGHT);
        let (outbox, done) = channel();
        let (emptied, spare) = channel();
        let work = move || work(&inbox, &outbox, &emptied);
        let thread = std::thread::Builder::new().name("caches".into()).spawn(work).ok()?;
        Some(Self { tasks: Some(tasks), done, spare, thread: Some(thread), away: false })
    }

    /// The thread works on these references; with the first, it takes the caches. Returns an empty list
    /// for the next.
    pub(super) fn send(
        &mut self,
        levels: &mut Levels,
        references: Vec<Reference>,
    ) -> Vec<Reference> {
        if !self.away {
            self.task(Task::Begin(Box::new(std::mem::replace(levels, Levels::none()))));
            self.away = true;
        }
        self.task(Task::References(references));
        self.spare.try_recv().unwrap_or_default()
    }

    /// The caches come back, if they are away, with the counts of what was sent.
    pub(super) fn fetch(&mut self) -> Option<Done> {
        if !std::mem::take(&mut self.away) {
            return None;
        }
        self.task(Task::End);
        match self.done.recv() {
            Ok(done) => Some(done),
            Err(_) => self.failed(),
        }
    }

    fn task(&mut self, task: Task) {
        if self.tasks.as_ref().is_none_or(|tasks| tasks.send(task).is_err()) {
            self.failed::<()>();
        }
    }

    /// The thread has ended before its time: its panic goes on here.
    #[cold]
    fn failed<T>(&mut self) -> Option<T> {
        self.tasks = None;
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        None
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // Whatever it says, nobody waits for it any more.
            let _ = thread.join();
        }
    }
}

fn work(tasks: &Receiver<Task>, done: &Sender<Done>, spare: &Sender<Vec<Reference>>) {
    while let Ok(task) = tasks.recv() {
        let Task::Begin(mut levels) = task else { continue };
        let mut served = Served::default();
        while let Ok(Task::References(mut references)) = tasks.recv() {
            for part in references.chunks_mut(AT_ONCE) {
                levels.drain(part, &mut served);
            }
            references.clear();
            // The machine may have ended.
            let _ = spare.send(references);
        }
        if done.send((levels, served)).is_err() {
            return;
        }
    }
}

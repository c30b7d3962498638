//! What a VM of a fleet does next, in slices as small as its host wants them.

use super::reporting::Reporter;
use nestwalk_mm::SwapStats;
use nestwalk_sim::compare::CompareError;
use nestwalk_sim::compare::guests::{Guest, GuestOutcome};
use nestwalk_sim::compare::spec::GuestSpec;
use nestwalk_types::{Address, Batch, Control, Gpa, GuestBatch, Source};
use std::collections::VecDeque;

/// How much of it is wanted at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    /// Runs, and pages of 4 KiB that events touch.
    pub items: usize,
    /// Instructions: the run that retires the last of them is the last.
    pub instructions: u64,
}

/// What a guest gives to its host.
#[derive(Default)]
pub(super) struct Given {
    /// Blocks of 2 MiB that it reports to be free.
    pub blocks: Vec<Gpa>,
    /// Pages that its balloon has taken.
    pub pages: Vec<Gpa>,
}

impl Given {
    const fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.pages.is_empty()
    }
}

/// What a VM does next.
pub(super) struct Feed {
    source: Box<dyn Source>,
    guest: Guest,
    spec: GuestSpec,
    raw: Batch,
    /// What the guest has made of the source, and is not handed on yet; with each part, memory that
    /// it gives to its host behind it.
    queue: VecDeque<(GuestBatch, Given)>,
    reporter: Option<Reporter>,
    /// What was given at the end of the last slice.
    given: Given,
    /// Pages that the host asks the balloon for.
    asked: u64,
    /// What the guest had swapped before its region of interest.
    before: Option<SwapStats>,
    /// How far the first of the queue is handed on: controls and runs.
    done: (usize, usize),
    /// What is left of a long prefault.
    prefault: Option<(Gpa, u64)>,
    /// Why nothing comes after the queue.
    end: Option<Result<(), CompareError>>,
}

impl Feed {
    pub(super) fn new(
        source: Box<dyn Source>,
        guest: Guest,
        spec: GuestSpec,
        reports: bool,
    ) -> Self {
        Self {
            source,
            guest,
            spec,
            raw: Batch::default(),
            queue: VecDeque::new(),
            reporter: reports.then(Reporter::new),
            given: Given::default(),
            asked: 0,
            before: None,
            done: (0, 0),
            prefault: None,
            end: None,
        }
    }

    /// What the guest gives to its host once the last slice has run.
    pub(super) fn take_given(&mut self) -> Given {
        std::mem::take(&mut self.given)
    }

    /// The host asks the guest's balloon for so many pages, unless it waits for others still.
    pub(super) fn ask(&mut self, pages: u64) {
        if self.queue.iter().all(|(_, given)| given.pages.is_empty()) {
            self.asked = pages;
        }
    }

    /// What the guest and its swap device did to each other since its region of interest began.
    pub(super) fn swap_stats(&self) -> Option<SwapStats> {
        let before = self.before.unwrap_or_default();
        self.guest.swap_stats().map(|now| SwapStats {
            scanned: now.scanned - before.scanned,
            taken: now.taken - before.taken,
            written: now.written - before.written,
            came_back: now.came_back - before.came_back,
            ballooned: now.ballooned - before.ballooned,
        })
    }

    /// What the guest did so far.
    pub(super) fn outcome(&self) -> GuestOutcome {
        self.guest.outcome()
    }

    /// Puts the next slice into `out`: at most so much, and nothing behind
    /// the beginning of the region of interest. `false` at the end; an empty slice is none.
    ///
    /// # Errors
    /// The source or the guest has failed; what came before is handed on first.
    pub(super) fn next(&mut self, most: Most, out: &mut GuestBatch) -> Result<bool, CompareError> {
        self.part(most, false, out)
    }

    /// As [`Feed::next`], of what comes before the next access alone: what a recorded guest was
    /// before its recording. Empty where an access is next.
    ///
    /// # Errors
    /// As [`Feed::next`].
    pub(super) fn before_access(
        &mut self,
        most: Most,
        out: &mut GuestBatch,
    ) -> Result<bool, CompareError> {
        self.part(most, true, out)
    }

    fn part(
        &mut self,
        most: Most,
        quiet: bool,
        out: &mut GuestBatch,
    ) -> Result<bool, CompareError> {
        clear(out);
        while !self.slice(most, quiet, out) {
            if quiet && !self.queue.is_empty() {
                return Ok(true);
            }
            match self.end.take() {
                None => self.fetch(),
                Some(end) => {
                    self.end = Some(Ok(()));
                    return end.map(|()| false);
                }
            }
            if self.queue.is_empty() && self.end.is_none() {
                // A live source has nothing now.
                return Ok(true);
            }
        }
        Ok(true)
    }

    fn fetch(&mut self) {
        match self.source.next_batch(&mut self.raw) {
            Err(error) => self.end = Some(Err(error.into())),
            Ok(false) => self.end = Some(Ok(())),
            Ok(true) => {
                let begins = |c: &(u32, Control)| c.1 == Control::RegionOfInterest;
                if self.raw.controls.iter().any(begins) {
                    self.before = self.guest.swap_stats();
                }
                let (mut parts, mut last) = (Vec::new(), GuestBatch::default());
                let pages = match self.inflate(&mut parts) {
                    Ok(pages) => pages,
                    Err(error) => return self.end = Some(Err(error)),
                };
                let mut sink = |part: &mut GuestBatch| parts.push(std::mem::take(part));
                let done = self.guest.process(self.spec, &self.raw, &mut last, &mut sink);
                parts.push(last);
                parts.retain(|part| !part.batch.is_empty());
                let blocks = self.free(&parts);
                self.queue.extend(parts.into_iter().map(|part| (part, Given::default())));
                if let Some((_, given)) = self.queue.back_mut() {
                    given.blocks.extend(blocks);
                    given.pages.extend(pages);
                }
                self.end = done.err().map(Err);
            }
        }
    }

    /// The balloon takes what the host has asked for: what the guest does for it, and the pages.
    fn inflate(&mut self, parts: &mut Vec<GuestBatch>) -> Result<Vec<Gpa>, CompareError> {
        // An empty batch of the source has no slice at whose end pages could be given.
        if self.asked == 0 || self.raw.is_empty() {
            return Ok(Vec::new());
        }
        let mut part = GuestBatch::default();
        let asked = std::mem::take(&mut self.asked);
        let pages = self.guest.inflate(self.spec, asked, &mut part)?;
        parts.push(part);
        Ok(pages)
    }

    /// What the guest reports to be free behind these parts.
    fn free(&mut self, parts: &[GuestBatch]) -> Vec<Gpa> {
        let Some(reporter) = &mut self.reporter else { return Vec::new() };
        parts.iter().for_each(|part| reporter.sees(part));
        // Without a part there is no end of a slice to report at: at the next.
        let memory = self.guest.physical().filter(|_| !parts.is_empty());
        memory.map_or(Vec::new(), |memory| reporter.look(memory))
    }

    /// Takes what fits from the queue. Returns whether that was anything.
    fn slice(&mut self, most: Most, quiet: bool, out: &mut GuestBatch) -> bool {
        let (mut room, mut instructions) = (most.items, most.instructions);
        if let Some((start, bytes)) = self.prefault.take() {
            self.prefault(start, bytes, &mut room, out);
        }
        while let Some((batch, _)) = self.queue.front() {
            let (control, run) = self.done;
            let next = batch.batch.controls.get(control);
            if room == 0 || instructions == 0 || self.prefault.is_some() {
                break;
            }
            match next {
                Some((at, event)) if *at as usize <= run => {
                    let event = event.clone();
                    self.done.0 += 1;
                    self.pop();
                    if let Control::Prefault { start, bytes } = event {
                        self.prefault(start, bytes, &mut room, out);
                        continue;
                    }
                    room = room.saturating_sub(pages(&event).max(1) as usize);
                    let begins = event == Control::RegionOfInterest;
                    push(out, event);
                    if begins || !self.given.is_empty() {
                        break;
                    }
                }
                _ if quiet => break,
                _ => {
                    let border = next.map_or(batch.batch.runs.len(), |c| c.0 as usize);
                    let mut end = run;
                    while end < border.min(run + room) && instructions > 0 {
                        let retired = u64::from(batch.batch.runs[end].instructions);
                        instructions = instructions.saturating_sub(retired);
                        end += 1;
                    }
                    out.batch.runs.extend_from_slice(&batch.batch.runs[run..end]);
                    out.gpas.extend_from_slice(&batch.gpas[run..end]);
                    room -= end - run;
                    self.done.1 = end;
                    self.pop();
                    if !self.given.is_empty() {
                        break;
                    }
                }
            }
        }
        !out.batch.is_empty()
    }

    /// The first of the queue goes if it is handed on.
    fn pop(&mut self) {
        let done = |(batch, _): &mut (GuestBatch, Given)| {
            self.done == (batch.batch.controls.len(), batch.batch.runs.len())
        };
        if let Some((_, given)) = self.queue.pop_front_if(done) {
            self.given = given;
            self.done = (0, 0);
        }
    }

    /// As much of a prefault as there is room for.
    fn prefault(&mut self, start: Gpa, bytes: u64, room: &mut usize, out: &mut GuestBatch) {
        let part = bytes.min((*room as u64) << 12);
        if part > 0 {
            push(out, Control::Prefault { start, bytes: part });
        }
        *room -= part.div_ceil(4096) as usize;
        self.prefault = (part < bytes).then(|| (start.offset_by(part), bytes - part));
    }
}

/// Pages of 4 KiB that the host may have to find for an event.
const fn pages(event: &Control) -> u64 {
    match event {
        Control::PageCleared { size, .. } => size.base_pages(),
        _ => 1,
    }
}

fn push(out: &mut GuestBatch, event: Control) {
    out.batch.controls.push((out.batch.runs.len() as u32, event));
}

fn clear(out: &mut GuestBatch) {
    out.batch.controls.clear();
    out.batch.runs.clear();
    out.gpas.clear();
}

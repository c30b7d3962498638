//! From the rings of all vCPUs to one stream of batches.

use super::check::{Agreement, Check};
use super::decoder::Decoder;
use super::summary::Summary;
use nestwalk_types::Batch;
use nestwalk_wire::{Consumer, IDLE, Merge, Record, Rings, WireError};
use std::time::{Duration, Instant};

/// How long to wait before a consumer may look whether it should go on.
const PATIENCE: Duration = Duration::from_millis(100);
/// Most that is taken from a ring at a time.
const PIECE: u64 = Batch::RUNS as u64;

/// What a call of [`Stream::next`] brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// A batch, or nothing yet.
    More,
    /// Every vCPU has said that it is at its end.
    End,
}

/// The stream of all vCPUs.
pub struct Stream {
    rings: Rings,
    consumers: Vec<Consumer>,
    /// In one order, if there are several.
    merge: Option<Merge>,
    decoder: Decoder,
    buffer: Vec<Record>,
}

impl Stream {
    /// Reads the rings; `check` compares QEMU's translations with the stream's.
    ///
    /// # Errors
    /// The rings are not those of so many vCPUs.
    pub fn new(rings: Rings, check: Option<Check>) -> Result<Self, WireError> {
        let vcpus = rings.layout().vcpus;
        let consumers: Result<Vec<_>, _> = (0..vcpus).map(|v| rings.consumer(v)).collect();
        let several = vcpus > 1;
        Ok(Self {
            consumers: consumers?,
            rings,
            merge: several.then(|| Merge::new(vcpus as usize)),
            decoder: Decoder::new(vcpus as usize, check),
            buffer: Vec::with_capacity(2 * PIECE as usize),
        })
    }

    /// Counts so far.
    pub const fn summary(&self) -> &Summary {
        &self.decoder.summary
    }
    /// What the check has found.
    pub fn agreement(&self) -> Option<&Agreement> {
        self.decoder.agreement()
    }

    /// Replaces `batch` by what comes next. Returns after a while if nothing comes. `over`: the guest
    /// has ended, so what is there is all.
    ///
    /// # Errors
    /// What came is not what the plugin of this version says, in words.
    pub fn next(&mut self, batch: &mut Batch, over: bool) -> Result<Next, String> {
        batch.runs.clear();
        batch.controls.clear();
        let begin = Instant::now();
        let mut pause = Duration::from_micros(20);
        loop {
            let any = match &mut self.merge {
                None => self.take_one(batch)?,
                Some(_) => self.take_merged(batch, over)?,
            };
            if !batch.is_empty() {
                return Ok(Next::More);
            }
            if !any && (over || self.is_at_end()) {
                return Ok(Next::End);
            }
            if !any {
                if begin.elapsed() > PATIENCE {
                    return Ok(Next::More);
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(2));
            }
        }
    }

    fn is_at_end(&self) -> bool {
        // vCPUs that are halted when the recording ends do not say so.
        let halted = || self.consumers.iter().all(|c| c.reached() == IDLE);
        self.decoder.ended == self.consumers.len() || self.decoder.ended > 0 && halted()
    }

    fn take_one(&mut self, batch: &mut Batch) -> Result<bool, String> {
        self.buffer.clear();
        let buffer = &mut self.buffer;
        let any = self.consumers[0].drain(PIECE, |r| buffer.push(r));
        for record in &self.buffer {
            self.decoder.take(0, *record, batch)?;
        }
        Ok(any)
    }

    fn take_merged(&mut self, batch: &mut Batch, over: bool) -> Result<bool, String> {
        let Some(merge) = &mut self.merge else { return Ok(false) };
        let mut any = false;
        // The moment is asked before what each vCPU has reached, and that before its records.
        let now = self.rings.moment();
        for (vcpu, consumer) in self.consumers.iter_mut().enumerate() {
            let reached = match consumer.reached() {
                IDLE => now,
                moment => moment,
            };
            // All of it: what it has reached counts only if nothing from before is left in the ring.
            any |= consumer.drain(u64::MAX, |r| merge.take(vcpu, r));
            merge.reached(vcpu, reached);
        }
        while batch.runs.len() < Batch::RUNS && batch.controls.len() < Batch::RUNS {
            let Some(segment) = merge.next(over && !any) else { break };
            for record in &segment.records {
                self.decoder.take(segment.vcpu, *record, batch)?;
            }
        }
        Ok(any)
    }
}

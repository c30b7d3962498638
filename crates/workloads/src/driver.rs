//! From an algorithm to a [`Source`]: mappings, population, region of interest, then steps.

use crate::layout::{AddressSpace, Mapping};
use crate::recorder::Recorder;
use crate::spec::{Populate, WorkloadSpec};
use nestwalk_types::{
    Batch, Control, Gva, ProcessId, Room, Source, SourceError, SourceInfo, VcpuId,
};

/// The process of a single-process workload, and the first of the others.
pub(crate) const PROCESS: ProcessId = ProcessId(0);

/// Populate controls per batch: 64 MiB, 16,384 base pages for the guest to answer.
const PIECES: usize = 4;

/// An algorithm that can be interrupted anywhere between two small steps.
pub(crate) trait Kernel: Send {
    /// Does a small unit of work: some hundred accesses at most. `false` says that the algorithm
    /// has ended; the next call starts it over (another root, another iteration).
    fn step(&mut self, m: &mut Recorder) -> bool;
    /// Checks the result when the algorithm has ended, where values are kept.
    ///
    /// # Errors
    /// What is wrong.
    fn verify(&self) -> Result<(), String> {
        Ok(())
    }
}

/// What a workload says of itself when it is opened.
pub(crate) struct About {
    pub name: &'static str,
    /// What was fixed: sizes, parameters.
    pub description: String,
    /// What in the stream differs from the real program's.
    pub approximations: &'static [&'static str],
}

enum Phase {
    Map,
    /// Mapping and offset from which on population goes on.
    Populate(usize, u64),
    Run,
    Over,
}

/// A [`Kernel`] as a [`Source`].
pub(crate) struct Driver<K> {
    kernel: K,
    info: SourceInfo,
    mappings: Vec<Mapping>,
    populate: Populate,
    bounded: bool,
    recorder: Recorder,
    phase: Phase,
}

impl<K: Kernel + 'static> Driver<K> {
    /// The source of this kernel, whose long-lived memory is `space`.
    pub(crate) fn boxed(
        about: About,
        spec: &WorkloadSpec,
        space: &AddressSpace,
        kernel: K,
    ) -> Box<dyn Source> {
        let mapped: u64 = space.mappings().iter().map(|m| m.bytes).sum();
        let mut approximations = vec!["instruction fetches are not part of the stream".to_owned()];
        approximations.extend(about.approximations.iter().map(|&a| a.to_owned()));
        let info = SourceInfo {
            name: about.name.to_owned(),
            description: format!(
                "{}; {mapped} bytes mapped at the start, seed {}",
                about.description, spec.seed
            ),
            knows_lines: true,
            knows_pc: true,
            has_fetches: false,
            approximations,
            guest: None,
            total: spec.accesses,
            populates: if spec.populate == Populate::Yes { mapped } else { 0 },
            failed: None,
        };
        Box::new(Self {
            kernel,
            info,
            mappings: space.mappings().to_vec(),
            populate: spec.populate,
            bounded: spec.accesses.is_some(),
            recorder: Recorder::new(spec.accesses.unwrap_or(u64::MAX)),
            phase: Phase::Map,
        })
    }

    fn map(&mut self) {
        self.recorder.control(Control::Switch { vcpu: VcpuId(0), process: PROCESS });
        for mapping in &self.mappings {
            self.recorder.control(mapping.control(PROCESS));
        }
        self.phase = match self.populate {
            Populate::Yes => Phase::Populate(0, 0),
            Populate::No => self.begin(),
        };
    }

    fn begin(&mut self) -> Phase {
        self.recorder.control(Control::RegionOfInterest);
        Phase::Run
    }

    fn populate(&mut self, mut mapping: usize, mut offset: u64) {
        for _ in 0..PIECES {
            let Some(m) = self.mappings.get(mapping) else { break };
            let bytes = (m.bytes - offset).min(Control::POPULATE_BYTES);
            self.recorder.control(Control::Populate {
                process: PROCESS,
                start: Gva::new(m.start + offset),
                bytes,
            });
            offset += bytes;
            if offset == m.bytes {
                (mapping, offset) = (mapping + 1, 0);
            }
        }
        self.phase = if mapping == self.mappings.len() {
            self.begin()
        } else {
            Phase::Populate(mapping, offset)
        };
    }

    fn run(&mut self) -> Result<(), SourceError> {
        while !self.recorder.should_hand_over() {
            if !self.kernel.step(&mut self.recorder) {
                self.kernel.verify().map_err(|message| SourceError {
                    source: self.info.name.clone(),
                    message: format!("the result is wrong: {message}"),
                })?;
                if !self.bounded {
                    self.phase = Phase::Over;
                    return Ok(());
                }
            }
        }
        if self.recorder.is_done() {
            self.phase = Phase::Over;
        }
        Ok(())
    }
}

impl<K: Kernel + 'static> Source for Driver<K> {
    fn info(&self) -> SourceInfo {
        self.info.clone()
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        match self.phase {
            Phase::Map => self.map(),
            Phase::Populate(mapping, offset) => self.populate(mapping, offset),
            Phase::Run => self.run()?,
            Phase::Over => {}
        }
        self.recorder.take_into(batch);
        Ok(!batch.is_empty())
    }

    fn set_room(&mut self, room: Room) -> bool {
        self.recorder.set_room(room);
        true
    }

    fn position(&self) -> u64 {
        self.recorder.recorded()
    }
}

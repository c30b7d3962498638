//! Several sources as one stream of several processes.

use nestwalk_types::{
    Batch, Control, ProcessId, Room, Run, Source, SourceError, SourceInfo, VcpuId,
};

/// One of the sources, and how its names map to those of the whole.
struct Part {
    source: Box<dyn Source>,
    batch: Batch,
    /// How much of `batch` has been handed on.
    run: usize,
    control: usize,
    /// Process numbers of the whole, by those of the source; 0 if not met yet. Sources number
    /// their processes from small numbers up.
    names: Vec<(ProcessId, ProcessId)>,
    /// Which process (of the whole) each of the source's vCPUs runs.
    runs_on: Vec<ProcessId>,
    in_roi: bool,
    ended: bool,
    /// It has said instructions. Of a source that never does, accesses count for a turn.
    has_instructions: bool,
}

/// Runs several sources side by side: each keeps its processes, all share the vCPUs.
///
/// First the set-up of each source runs, one after the other; when the last reaches its region of
/// interest, the stream says [`Control::RegionOfInterest`] once. From then on sources take turns of
/// a quantum of instructions each. The turn with number `t` begins at vCPU `t` modulo the number of
/// vCPUs, and a source's own vCPU `u` is `u` further on; [`Control::Switch`] is said whenever a vCPU
/// is to run another process than before. A quantum ends with the last access of its last instruction,
/// in the order of the source; a source that knows no instructions has as many accesses for a turn.
///
/// Sources must say process-level controls only, and their region of interest (a source that never
/// says it is all set-up). An error of one source ends the stream after everything before it.
pub struct Multiplex {
    parts: Vec<Part>,
    vcpus: u8,
    quantum: u64,
    turn: u64,
    current: usize,
    left: u64,
    on_vcpu: Vec<Option<ProcessId>>,
    next_process: u32,
    in_roi: bool,
    /// Accesses that are still wanted in this batch.
    wanted: u64,
    /// Each is to be a run of its own.
    single: bool,
    error: Option<SourceError>,
}

/// What stopped a part's flow.
#[derive(PartialEq, Eq)]
enum Stop {
    Full,
    Quantum,
    RegionOfInterest,
    /// A live source has nothing now.
    Idle,
    Ended,
}

impl Multiplex {
    /// Instructions of a turn unless said otherwise.
    pub const QUANTUM: u64 = 100_000;

    /// Combines `sources` on `vcpus` vCPUs with turns of `quantum` instructions.
    pub fn new(sources: Vec<Box<dyn Source>>, vcpus: u8, quantum: u64) -> Self {
        let vcpus = vcpus.max(1);
        let part = |source| Part {
            source,
            batch: Batch::default(),
            run: 0,
            control: 0,
            names: Vec::new(),
            runs_on: Vec::new(),
            in_roi: false,
            ended: false,
            has_instructions: false,
        };
        Self {
            parts: sources.into_iter().map(part).collect(),
            vcpus,
            quantum: quantum.max(1),
            turn: 0,
            current: 0,
            left: 0,
            on_vcpu: vec![None; usize::from(vcpus)],
            next_process: 1,
            in_roi: false,
            wanted: u64::MAX,
            single: false,
            error: None,
        }
    }

    fn rename(&mut self, process: ProcessId) -> ProcessId {
        let names = &mut self.parts[self.current].names;
        if let Some(name) = names.iter().rfind(|n| n.0 == process) {
            return name.1;
        }
        let name = ProcessId(self.next_process);
        self.next_process += 1;
        names.push((process, name));
        name
    }

    /// The vCPU of the whole for one of the current source.
    fn place(&self, own: VcpuId) -> VcpuId {
        VcpuId(((self.turn + u64::from(own.0)) % u64::from(self.vcpus)) as u8)
    }

    /// The process that the current source runs on its vCPU `own`. If it was not said, that of its
    /// first vCPU, or one without a name.
    fn process_on(&mut self, own: VcpuId) -> ProcessId {
        let runs_on = &self.parts[self.current].runs_on;
        match runs_on.get(usize::from(own.0)).or(runs_on.first()) {
            Some(&process) => process,
            None => {
                let process = self.rename(ProcessId(0));
                self.set_process_on(own, process);
                process
            }
        }
    }

    fn set_process_on(&mut self, own: VcpuId, process: ProcessId) {
        let runs_on = &mut self.parts[self.current].runs_on;
        if runs_on.len() <= usize::from(own.0) {
            let first = runs_on.first().copied().unwrap_or(process);
            runs_on.resize(usize::from(own.0) + 1, first);
        }
        runs_on[usize::from(own.0)] = process;
    }

    fn push_run(&mut self, run: Run, out: &mut Batch) {
        let vcpu = self.place(run.vcpu);
        let process = self.process_on(run.vcpu);
        let on = &mut self.on_vcpu[usize::from(vcpu.0)];
        if *on != Some(process) {
            *on = Some(process);
            out.controls.push((out.runs.len() as u32, Control::Switch { vcpu, process }));
        }
        out.runs.push(Run { vcpu, ..run });
    }

    /// Hands a control on under the names of the whole. `Ok(true)` for the region of interest.
    fn push_control(&mut self, control: Control, out: &mut Batch) -> Result<bool, SourceError> {
        use Control as C;
        let renamed = match control {
            C::RegionOfInterest => {
                let part = &mut self.parts[self.current];
                let first = !part.in_roi;
                part.in_roi = true;
                return Ok(first);
            }
            C::Switch { vcpu, process } => {
                let process = self.rename(process);
                self.set_process_on(vcpu, process);
                return Ok(false);
            }
            C::Map { process, start, bytes, protection } => {
                C::Map { process: self.rename(process), start, bytes, protection }
            }
            C::Populate { process, start, bytes } => {
                C::Populate { process: self.rename(process), start, bytes }
            }
            C::Unmap { process, start, bytes } => {
                C::Unmap { process: self.rename(process), start, bytes }
            }
            C::Protect { process, start, bytes, protection } => {
                C::Protect { process: self.rename(process), start, bytes, protection }
            }
            C::Fork { parent, child } => {
                C::Fork { parent: self.rename(parent), child: self.rename(child) }
            }
            C::Exec { process } => C::Exec { process: self.rename(process) },
            C::Exit { process } => {
                let name = self.rename(process);
                // The number may be given to a new process.
                self.parts[self.current].names.retain(|n| n.0 != process);
                self.on_vcpu.iter_mut().filter(|p| **p == Some(name)).for_each(|p| *p = None);
                C::Exit { process: name }
            }
            _ => {
                return Err(SourceError {
                    source: self.parts[self.current].source.info().name,
                    message: "carries the page tables of its own guest, so that it cannot share \
                              one with other sources; run it alone"
                        .into(),
                });
            }
        };
        out.controls.push((out.runs.len() as u32, renamed));
        Ok(false)
    }

    /// Moves events of the current source to `out` until something stops it.
    fn flow(&mut self, out: &mut Batch) -> Result<Stop, SourceError> {
        loop {
            let part = &mut self.parts[self.current];
            if let Some((at, control)) = part.batch.controls.get(part.control)
                && *at as usize <= part.run
            {
                let control = control.clone();
                part.control += 1;
                if self.push_control(control, out)? {
                    return Ok(Stop::RegionOfInterest);
                }
            } else if let Some(&run) = part.batch.runs.get(part.run) {
                if out.runs.len() >= Batch::RUNS || self.wanted == 0 {
                    return Ok(Stop::Full);
                }
                // What accesses without being an instruction belongs to the one before.
                if self.left == 0 && (run.instructions > 0 || !part.has_instructions) {
                    return Ok(Stop::Quantum);
                }
                part.run += 1;
                part.has_instructions |= run.instructions > 0;
                let used = if part.has_instructions { run.instructions } else { run.count };
                self.left = self.left.saturating_sub(u64::from(used));
                self.wanted = self.wanted.saturating_sub(u64::from(run.count));
                self.push_run(run, out);
            } else {
                if out.controls.len() >= Batch::RUNS {
                    return Ok(Stop::Full);
                }
                part.run = 0;
                part.control = 0;
                let turn = if part.has_instructions { u64::MAX } else { self.left };
                let accesses = self.wanted.min(turn);
                // Up to the last instruction of the turn, and then up to the one after it.
                let instructions = self.left.max(1);
                // Of set-up it is not known where it ends, and what stands behind it may be cut
                // anywhere.
                let single = self.single || !self.in_roi;
                part.source.set_room(Room { accesses, instructions, single });
                if !part.source.next_batch(&mut part.batch)? {
                    part.ended = true;
                    return Ok(Stop::Ended);
                }
                if part.batch.is_empty() {
                    return Ok(Stop::Idle);
                }
            }
        }
    }

    /// The next source that has not ended begins its turn. `false` if there is none.
    fn next_turn(&mut self) -> bool {
        self.turn += 1;
        self.left = self.quantum;
        for _ in 0..self.parts.len() {
            self.current = (self.current + 1) % self.parts.len();
            if !self.parts[self.current].ended {
                return true;
            }
        }
        false
    }

    /// Runs the set-up of one source after the other. `false` if there is more to come.
    fn set_up(&mut self, out: &mut Batch) -> Result<bool, SourceError> {
        while self.current < self.parts.len() {
            self.left = u64::MAX;
            if matches!(self.flow(out)?, Stop::Full | Stop::Idle) {
                return Ok(false);
            }
            self.current += 1;
            self.turn += 1;
        }
        out.controls.push((out.runs.len() as u32, Control::RegionOfInterest));
        self.in_roi = true;
        // The first turn is that of the first source.
        self.current = self.parts.len() - 1;
        self.turn = u64::from(self.vcpus) - 1;
        self.next_turn();
        Ok(true)
    }

    fn fill(&mut self, out: &mut Batch) -> Result<(), SourceError> {
        if self.parts.is_empty() || (!self.in_roi && !self.set_up(out)?) {
            return Ok(());
        }
        // Sources in a row that had nothing.
        let mut idle = 0;
        loop {
            if self.parts[self.current].ended && !self.next_turn() {
                return Ok(());
            }
            match self.flow(out)? {
                Stop::Full => return Ok(()),
                Stop::RegionOfInterest => continue,
                Stop::Quantum | Stop::Ended => idle = 0,
                Stop::Idle => idle += 1,
            }
            if !self.next_turn() || idle >= self.parts.len() {
                return Ok(());
            }
        }
    }
}

impl Source for Multiplex {
    fn info(&self) -> SourceInfo {
        let infos: Vec<_> = self.parts.iter().map(|p| p.source.info()).collect();
        let join =
            |f: fn(&SourceInfo) -> &str, by: &str| infos.iter().map(f).collect::<Vec<_>>().join(by);
        let approximations = infos
            .iter()
            .flat_map(|i| i.approximations.iter().map(|a| format!("{}: {a}", i.name)))
            .collect();
        SourceInfo {
            name: join(|i| &i.name, "+"),
            description: format!(
                "{} sources in turns of {} instructions on {} vCPUs: {}",
                infos.len(),
                self.quantum,
                self.vcpus,
                join(|i| &i.description, "; ")
            ),
            knows_lines: infos.iter().all(|i| i.knows_lines),
            knows_pc: infos.iter().all(|i| i.knows_pc),
            has_fetches: infos.iter().all(|i| i.has_fetches),
            approximations,
            guest: None,
            total: infos.iter().map(|i| i.total).sum(),
            populates: infos.iter().map(|i| i.populates).sum(),
            failed: infos.iter().find_map(|i| i.failed.clone()),
        }
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        batch.runs.clear();
        batch.controls.clear();
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let filled = self.fill(batch);
        self.wanted = u64::MAX;
        self.single = false;
        if let Err(error) = filled {
            self.error = Some(error.clone());
            if batch.is_empty() {
                return Err(error);
            }
        }
        Ok(!batch.is_empty() || self.parts.iter().any(|p| !p.ended))
    }

    fn set_room(&mut self, room: Room) -> bool {
        self.wanted = room.accesses.max(1);
        self.single = room.single;
        // All of them are asked, though each is told again when its turn has come.
        self.parts.iter_mut().fold(true, |exact, part| part.source.set_room(room) & exact)
    }

    fn position(&self) -> u64 {
        self.parts.iter().map(|p| p.source.position()).sum()
    }
}

#[cfg(test)]
mod tests;

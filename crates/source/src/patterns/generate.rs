//! The stream of a pattern.

use super::zipf::Zipf;
use super::{Pattern, PatternSpec};
use crate::decoder::ONLY_PROCESS;
use nestwalk_types::{
    AccessKind, Batch, BatchBuilder, Control, Gva, PermutationKey, Protection, Room,
    ShortPermutation, Source, SourceError, SourceInfo, SplitMix64, VcpuId,
};

/// The state of a pattern: what decides its next address.
enum Walk {
    Stride { next: u64, stride: u64 },
    Uniform { random: SplitMix64, slots: u64 },
    Zipf { random: SplitMix64, zipf: Zipf, scatter: ShortPermutation, item_shift: u32 },
    Chase { at: u64, cycle: ShortPermutation, node_shift: u32 },
}

/// The key of a permutation. The order of the draws decides recorded results.
fn permutation_key(seed: u64) -> PermutationKey {
    let mut random = SplitMix64::new(seed);
    PermutationKey::default().map(|_| (random.next(), random.next()))
}

impl Walk {
    /// The pattern from its beginning; `index` is its place among the phases.
    fn new(spec: &PatternSpec, index: usize) -> Self {
        let mut seeds = SplitMix64::new(spec.seed);
        let seed = (0..=index).fold(0, |_, _| seeds.next());
        let random = SplitMix64::new(seed);
        let slots = spec.footprint / u64::from(spec.access_bytes);
        match spec.phases[index] {
            Pattern::Sequential => Self::Stride { next: 0, stride: u64::from(spec.access_bytes) },
            Pattern::Stride { bytes } => Self::Stride { next: 0, stride: bytes % spec.footprint },
            Pattern::Uniform => Self::Uniform { random, slots },
            Pattern::Zipf { theta, item } => {
                let items = spec.footprint / item;
                Self::Zipf {
                    random,
                    zipf: Zipf::new(items, theta),
                    scatter: ShortPermutation::new(items, permutation_key(!seed)),
                    item_shift: item.trailing_zeros(),
                }
            }
            Pattern::Chase { node } => Self::Chase {
                at: 0,
                // Visiting f(0), f(1), …, f(n-1) of a bijection f is one cycle through all nodes,
                // the permutation f(f^-1(x) + 1), and a random one as f is.
                cycle: ShortPermutation::new(spec.footprint / node, permutation_key(seed)),
                node_shift: node.trailing_zeros(),
            },
        }
    }
}

/// Where accesses go and as what, within one turn of one vCPU.
struct Emitter<'a> {
    out: &'a mut BatchBuilder,
    vcpu: VcpuId,
    pcs: [Gva; 2],
    bytes: u32,
    instructions: u16,
    /// Share of stores in units of 2^-32, and the part of a store that is owed.
    share: u64,
    owed: u64,
}

impl Emitter<'_> {
    /// The next access. `RESERVED`: it is among those that the builder has reserved.
    #[inline(always)]
    fn emit<const RESERVED: bool>(&mut self, offset: u64) {
        self.owed += self.share;
        let store = self.owed >> 32;
        self.owed &= 0xffff_ffff;
        let kind = if store == 0 { AccessKind::Load } else { AccessKind::Store };
        let gva = Gva::new(PatternSpec::BASE.value() + offset);
        let pc = self.pcs[store as usize & 1];
        if RESERVED {
            self.out.access_reserved(self.vcpu, pc, gva, self.bytes, kind, self.instructions);
        } else {
            self.out.access(self.vcpu, pc, gva, self.bytes, kind, self.instructions.into());
        }
    }

    /// The next `n` accesses of a walk through so many bytes.
    fn emit_all<const RESERVED: bool>(&mut self, walk: &mut Walk, n: u64, footprint: u64) {
        let bytes = u64::from(self.bytes);
        let align = !(bytes - 1);
        match walk {
            Walk::Stride { next, stride } => {
                let (mut at, stride) = (*next, *stride);
                for _ in 0..n {
                    self.emit::<RESERVED>(at & align);
                    at += stride;
                    if at >= footprint {
                        at -= footprint;
                    }
                }
                *next = at;
            }
            Walk::Uniform { random, slots } => {
                for _ in 0..n {
                    self.emit::<RESERVED>(random.below(*slots) * bytes);
                }
            }
            Walk::Zipf { random, zipf, scatter, item_shift } => {
                let inside = (1 << *item_shift) - 1;
                for _ in 0..n {
                    let item = scatter.apply(zipf.sample(random) - 1);
                    self.emit::<RESERVED>(item << *item_shift | random.next() & inside & align);
                }
            }
            Walk::Chase { at, cycle, node_shift } => {
                for _ in 0..n {
                    self.emit::<RESERVED>(cycle.apply(*at) << *node_shift);
                    *at += 1;
                    if *at == cycle.count() {
                        *at = 0;
                    }
                }
            }
        }
    }
}

/// The stream of a [`PatternSpec`]: one process, one region, its set-up, then the accesses.
pub struct PatternSource {
    spec: PatternSpec,
    builder: BatchBuilder,
    walk: Walk,
    phase: usize,
    phase_left: u64,
    chunk_left: u32,
    vcpu: u8,
    owed: u64,
    done: u64,
    /// Bytes made present so far; `None` when set-up is over.
    populated: Option<u64>,
}

impl PatternSource {
    pub(super) fn new(spec: PatternSpec) -> Self {
        let spec = in_range(spec);
        let mut builder = BatchBuilder::new();
        for vcpu in 0..spec.vcpus {
            builder.control(Control::Switch { vcpu: VcpuId(vcpu), process: ONLY_PROCESS });
        }
        builder.control(Control::Map {
            process: ONLY_PROCESS,
            start: PatternSpec::BASE,
            bytes: spec.footprint,
            protection: Protection::READ_WRITE,
        });
        Self {
            walk: Walk::new(&spec, 0),
            phase: 0,
            phase_left: phase_accesses(&spec, 0),
            chunk_left: spec.chunk,
            vcpu: 0,
            owed: 0,
            done: 0,
            populated: Some(0),
            builder,
            spec,
        }
    }

    /// One piece of set-up.
    fn set_up(&mut self, populated: u64) {
        let left = if self.spec.populates() { self.spec.footprint - populated } else { 0 };
        if left == 0 {
            self.builder.control(Control::RegionOfInterest);
            self.populated = None;
            return;
        }
        let bytes = left.min(Control::POPULATE_BYTES);
        let start = Gva::new(PatternSpec::BASE.value() + populated);
        self.builder.control(Control::Populate { process: ONLY_PROCESS, start, bytes });
        self.populated = Some(populated + bytes);
    }

    /// Accesses of one vCPU in one phase, until the batch is full or either ends.
    fn generate(&mut self) {
        let bytes = self.spec.access_bytes;
        let pattern = &self.spec.phases[self.phase];
        let mut emitter = Emitter {
            vcpu: VcpuId(self.vcpu),
            pcs: [pattern.pc(false), pattern.pc(true)],
            bytes,
            instructions: self.spec.instructions as u16,
            share: ((1.0 - self.spec.reads) * 4_294_967_296.0) as u64,
            owed: self.owed,
            out: &mut self.builder,
        };
        // An access makes one run at most, since slots are aligned.
        let room = Batch::RUNS.saturating_sub(emitter.out.len()).max(1) as u64;
        let n = room.min(self.phase_left).min(u64::from(self.chunk_left));
        let wanted = emitter.out.room();
        let turn = wanted.instructions.div_ceil(u64::from(self.spec.instructions));
        let n = n.min(wanted.accesses.min(turn).max(1));
        let footprint = self.spec.footprint;
        if emitter.out.reserve(n) {
            emitter.emit_all::<true>(&mut self.walk, n, footprint);
        } else {
            emitter.emit_all::<false>(&mut self.walk, n, footprint);
        }
        self.owed = emitter.owed;
        self.done += n;
        self.phase_left -= n;
        self.chunk_left -= n as u32;
    }

    /// Passes to the next vCPU and the next phase where their time has come. `false` at the end.
    fn advance(&mut self) -> bool {
        if self.chunk_left == 0 {
            self.chunk_left = self.spec.chunk;
            self.vcpu = (self.vcpu + 1) % self.spec.vcpus;
        }
        while self.phase_left == 0 {
            if self.phase + 1 == self.spec.phases.len() {
                return false;
            }
            self.phase += 1;
            self.phase_left = phase_accesses(&self.spec, self.phase);
            self.walk = Walk::new(&self.spec, self.phase);
        }
        true
    }
}

/// Accesses of a phase: equal shares, the remainder to the first.
fn phase_accesses(spec: &PatternSpec, phase: usize) -> u64 {
    let n = spec.phases.len() as u64;
    spec.accesses / n + u64::from((phase as u64) < spec.accesses % n)
}

/// The specification with every value in its range.
fn in_range(mut spec: PatternSpec) -> PatternSpec {
    let footprint = spec.footprint.clamp(4096, PatternSpec::FOOTPRINT_MAX) & !0xfff;
    let bytes = spec.access_bytes.clamp(1, 64);
    let bytes = if bytes.is_power_of_two() { bytes } else { bytes.next_power_of_two() / 2 };
    let block = |b: u64| {
        let b = b.clamp(u64::from(bytes), footprint);
        if b.is_power_of_two() { b } else { 1 << b.ilog2() }
    };
    spec.footprint = footprint;
    spec.access_bytes = bytes;
    spec.reads = if spec.reads.is_nan() { 1.0 } else { spec.reads.clamp(0.0, 1.0) };
    spec.vcpus = spec.vcpus.max(1);
    spec.chunk = spec.chunk.max(1);
    spec.instructions = spec.instructions.clamp(1, 65535);
    if spec.phases.is_empty() {
        spec.phases.push(Pattern::Uniform);
    }
    for phase in &mut spec.phases {
        match phase {
            Pattern::Sequential | Pattern::Uniform => {}
            Pattern::Stride { bytes } => *bytes = (*bytes).max(1),
            Pattern::Zipf { theta, item } => {
                *theta = if theta.is_nan() { 0.0 } else { theta.clamp(0.0, 100.0) };
                *item = block(*item);
            }
            Pattern::Chase { node } => *node = block(*node),
        }
    }
    spec
}

impl Source for PatternSource {
    fn info(&self) -> SourceInfo {
        let s = &self.spec;
        SourceInfo {
            name: s.name(),
            description: format!(
                "footprint {} bytes, {} accesses of {} bytes, {} loads, {} instructions per \
                 access, {} vCPUs in chunks of {}, seed {}, {}",
                s.footprint,
                s.accesses,
                s.access_bytes,
                s.reads,
                s.instructions,
                s.vcpus,
                s.chunk,
                s.seed,
                if s.populates() { "populated before" } else { "first touched by the accesses" }
            ),
            knows_lines: true,
            knows_pc: true,
            has_fetches: false,
            approximations: Vec::new(),
            guest: None,
            total: Some(s.accesses),
            populates: if s.populates() { s.footprint } else { 0 },
            failed: None,
        }
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        // One piece of set-up a batch: its answer is thousands of page-table writes.
        if let Some(populated) = self.populated {
            self.set_up(populated);
        }
        if self.populated.is_none() {
            while !self.builder.is_full() && self.advance() {
                self.generate();
            }
        }
        self.builder.take_into(batch);
        Ok(!batch.is_empty())
    }

    fn set_room(&mut self, room: Room) -> bool {
        self.builder.set_room(room);
        true
    }

    fn position(&self) -> u64 {
        self.done
    }
}

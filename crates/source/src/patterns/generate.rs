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

/// Which accesses are stores: spread evenly.
struct Stores {
    /// Share of stores in units of 2^-32, and the part of a store that is owed.
    share: u64,
    owed: u64,
}

impl Stores {
    /// Whether the next access is one.
    #[inline(always)]
    const fn next(&mut self) -> bool {
        self.owed += self.share;
        let store = self.owed >> 32;
        self.owed &= 0xffff_ffff;
        store != 0
    }
}

impl Walk {
    /// The next `n` addresses in so many bytes, aligned to accesses of `bytes` bytes.
    #[inline(always)]
    fn advance(&mut self, n: u64, footprint: u64, bytes: u64, mut each: impl FnMut(Gva)) {
        let align = !(bytes - 1);
        let mut emit = |offset| each(Gva::new(PatternSpec::BASE.value() + offset));
        match self {
            Self::Stride { next, stride } => {
                let (mut at, stride) = (*next, *stride);
                for _ in 0..n {
                    emit(at & align);
                    at += stride;
                    if at >= footprint {
                        at -= footprint;
                    }
                }
                *next = at;
            }
            Self::Uniform { random, slots } => {
                let (mut own, slots) = (random.clone(), *slots);
                for _ in 0..n {
                    emit(own.below(slots) * bytes);
                }
                *random = own;
            }
            Self::Zipf { random, zipf, scatter, item_shift } => {
                let inside = (1 << *item_shift) - 1;
                for _ in 0..n {
                    let item = scatter.apply(zipf.sample(random) - 1);
                    emit(item << *item_shift | random.next() & inside & align);
                }
            }
            Self::Chase { at, cycle, node_shift } => {
                for _ in 0..n {
                    emit(cycle.apply(*at) << *node_shift);
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
        let (spec, out, vcpu) = (&self.spec, &mut self.builder, VcpuId(self.vcpu));
        let pattern = &spec.phases[self.phase];
        let pcs = [pattern.pc(false), pattern.pc(true)];
        let share = ((1.0 - spec.reads) * 4_294_967_296.0) as u64;
        let mut stores = Stores { share, owed: self.owed };
        // An access makes one run at most, since slots are aligned.
        let room = Batch::RUNS.saturating_sub(out.len()).max(1) as u64;
        let n = room.min(self.phase_left).min(u64::from(self.chunk_left));
        let wanted = out.room();
        let turn = wanted.instructions.div_ceil(u64::from(spec.instructions));
        let n = n.min(wanted.accesses.min(turn).max(1));
        let (footprint, bytes) = (spec.footprint, u64::from(spec.access_bytes));
        if out.reserve(n) {
            let mut burst = out.burst(vcpu, n as usize, spec.instructions as u16);
            if share == 0 {
                let load = |gva| burst.access(pcs[0], gva, false);
                self.walk.advance(n, footprint, bytes, load);
            } else {
                self.walk.advance(n, footprint, bytes, |gva| {
                    let store = stores.next();
                    burst.access(pcs[usize::from(store)], gva, store);
                });
            }
        } else {
            self.walk.advance(n, footprint, bytes, |gva| {
                let store = stores.next();
                let kind = if store { AccessKind::Store } else { AccessKind::Load };
                let pc = pcs[usize::from(store)];
                out.access(vcpu, pc, gva, spec.access_bytes, kind, spec.instructions);
            });
        }
        self.owed = stores.owed;
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

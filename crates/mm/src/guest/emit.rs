//! Turns what address spaces do into the controls of the output.

use crate::balloon::Exchange;
use crate::guest::cpu::Cpu;
use crate::space::{Contiguous, Flush, Observer};
use nestwalk_tables::{Entry, Level};
use nestwalk_types::{
    Address, Control, Gpa, GuestBatch, GuestSegment, Gva, Invalidation, OsWork, PageSize, Run,
    VcpuId,
};

/// Controls after which a part of the output is handed on, if someone takes parts.
const PART: usize = 4 * nestwalk_types::Batch::RUNS;

/// Takes parts of an output that would be too large as a whole.
pub type Sink<'a> = dyn FnMut(&mut GuestBatch) + 'a;

/// The output of one batch.
pub(super) struct Output<'a> {
    batch: &'a mut GuestBatch,
    sink: Option<&'a mut Sink<'a>>,
}

impl<'a> Output<'a> {
    pub fn new(batch: &'a mut GuestBatch, sink: Option<&'a mut Sink<'a>>) -> Self {
        clear(batch);
        Self { batch, sink }
    }
    pub fn control(&mut self, control: Control) {
        self.batch.batch.controls.push((self.batch.batch.runs.len() as u32, control));
        if self.batch.batch.controls.len() >= PART
            && let Some(sink) = &mut self.sink
        {
            sink(self.batch);
            clear(self.batch);
        }
    }
    /// Runs and their addresses.
    #[inline]
    pub fn runs(&mut self, runs: &[Run], gpas: &[Gpa]) {
        self.batch.batch.runs.extend_from_slice(runs);
        self.batch.gpas.extend_from_slice(gpas);
    }
    #[inline]
    pub fn run(&mut self, run: &Run, gpa: Gpa) {
        self.batch.batch.runs.push(*run);
        self.batch.gpas.push(gpa);
    }
    /// So many runs are to come.
    pub fn reserve(&mut self, runs: usize) {
        self.batch.batch.runs.reserve(runs);
        self.batch.gpas.reserve(runs);
    }
}

fn clear(batch: &mut GuestBatch) {
    batch.batch.runs.clear();
    batch.batch.controls.clear();
    batch.gpas.clear();
}

/// Occurrences of each [`OsWork`] that are not in the output yet.
#[derive(Default)]
pub(super) struct Work([u64; OsWork::ALL.len()]);

impl Work {
    pub fn add(&mut self, work: OsWork, count: u64) {
        self.0[work.index()] += count;
    }
    /// One control per kind that occurred.
    pub fn emit(&mut self, output: &mut Output<'_>) {
        for work in OsWork::ALL {
            let count = std::mem::take(&mut self.0[work.index()]);
            if count > 0 {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                output.control(Control::OsWork { work, count });
            }
        }
    }
}

/// The observer of one process's address space, working on one vCPU.
pub(super) struct Emit<'a, 'o> {
    pub output: &'a mut Output<'o>,
    pub cpus: &'a mut [Cpu],
    /// The vCPU that does the kernel's work.
    pub vcpu: VcpuId,
    /// Context number of the address space.
    pub context: u64,
    /// How often translations were taken away from it (Linux, `mm->context.tlb_gen`).
    pub generation: &'a mut u64,
    pub entry_bytes: u8,
    pub work: &'a mut Work,
    pub invalidations: &'a mut u64,
    pub segment_loads: &'a mut u64,
    /// A daemon is at work, on a processor of its own: how often it interrupted vCPUs so far.
    pub interrupts: Option<&'a mut u64>,
}

impl Emit<'_, '_> {
    /// Linux without INVPCID: pages by INVLPG, everything of a PCID by loading the same CR3 with bit
    /// 63 clear (`flush_tlb_func`, `native_flush_tlb_local`).
    fn invalidate_on(&mut self, index: usize, flush: &Flush<Gva>) {
        let vcpu = VcpuId(index as u8);
        match *flush {
            Flush::Pages { start, stride, count, .. } => {
                for i in 0..count {
                    let page = start.offset_by(i << stride.shift());
                    self.output
                        .control(Control::Invalidate { vcpu, what: Invalidation::Page(page) });
                }
                *self.invalidations += count;
            }
            Flush::All => {
                let Cpu { root, pcid, .. } = self.cpus[index];
                self.output.control(Control::LoadCr3 { vcpu, root, pcid, keep: false });
                *self.invalidations += 1;
            }
        }
    }
}

/// What is loaded for a primary region.
pub(super) fn registers(region: &Contiguous<Gva, Gpa>) -> GuestSegment {
    let Contiguous { start: base, bytes, target, ref escaped } = *region;
    GuestSegment { base, bytes, target, escaped: escaped.clone() }
}

impl Observer<Gva, Gpa> for Emit<'_, '_> {
    fn table_new(&mut self, gpa: Gpa, _: Level) {
        self.output.control(Control::TableAdded { vcpu: self.vcpu, gpa, entries: None });
    }
    #[inline]
    fn stored(&mut self, gpa: Gpa, entry: Entry) {
        let value = entry.0 & u64::MAX >> (64 - 8 * u32::from(self.entry_bytes));
        self.output.control(Control::TableWrite { vcpu: self.vcpu, gpa, value });
    }
    fn page_cleared(&mut self, gpa: Gpa, size: PageSize) {
        self.output.control(Control::PageCleared { vcpu: self.vcpu, gpa, size });
    }
    fn page_copied(&mut self, _: Gpa, _: Gpa, size: PageSize) {
        self.work.add(OsWork::PageCopied, size.base_pages());
    }
    fn written_out(&mut self, gpa: Gpa) {
        self.output.control(Control::WrittenOut { vcpu: self.vcpu, gpa });
    }
    fn exchanged(&mut self, exchange: &Exchange<Gpa>) {
        let Exchange { ref pages, start, bytes } = *exchange;
        self.output.control(Control::SelfBallooned { pages: pages.clone(), start, bytes });
    }
    /// Every vCPU that runs the process loads its registers now, any other when it switches to it.
    fn segment(&mut self, region: Option<&Contiguous<Gva, Gpa>>) {
        for index in 0..self.cpus.len() {
            let cpu = &mut self.cpus[index];
            if cpu.loaded == self.context && (cpu.segment || region.is_some()) {
                cpu.segment = region.is_some();
                *self.segment_loads += 1;
                let segment = region.map(|r| Box::new(registers(r)));
                self.output.control(Control::LoadSegment { vcpu: VcpuId(index as u8), segment });
            }
        }
    }
    /// Every vCPU that runs the process pays now; all but the one that does the kernel's work are
    /// interrupted for it (`flush_tlb_mm_range`, `on_each_cpu_mask`). Any other finds at its next switch
    /// to the process that the generation of its PCID is old, and flushes then.
    fn invalidate(&mut self, flush: Flush<Gva>) {
        *self.generation += 1;
        for index in 0..self.cpus.len() {
            if self.cpus[index].loaded == self.context {
                self.invalidate_on(index, &flush);
                if let Some(interrupts) = &mut self.interrupts {
                    **interrupts += 1;
                }
                if self.interrupts.is_some() || index != usize::from(self.vcpu.0) {
                    self.work.add(OsWork::Shootdown, 1);
                }
                self.cpus[index].flushed(*self.generation);
                self.cpus[index].forget_flushed(&flush);
            }
        }
    }
}

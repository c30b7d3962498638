//! A software thread of a trace: what its records say, record by record.

use super::{
    BTreeMap, BatchBuilder, Counts, DATA_MASK, Lane, Layout, NARROW, NEWEST, Pause, ProcessId,
    Record, RunFlags, VcpuId, WIDE, file_type, kind, marker, nearest,
};

/// State of a stream between records.
#[derive(Default)]
pub(in crate::drmemtrace) struct Thread {
    /// The latest timestamp, in microseconds since 1601.
    pub(in crate::drmemtrace) time: u64,
    /// The thread that records belong to, and whose process each thread is.
    thread: u64,
    process_of: BTreeMap<u64, u64>,
    pub(in crate::drmemtrace) process: Option<ProcessId>,
    /// Address of the instruction that accesses belong to, and its size in bytes; with a size of 0
    /// the latest that has one is at `before` and ends at `behind`.
    pc: u64,
    size: u16,
    /// It is in the kernel's half; kept only where it is looked at.
    upper: bool,
    before: u64,
    behind: u64,
    /// [`RunFlags::KERNEL`] within a part of the kernel.
    mode: RunFlags,
    in_syscall: bool,
    in_switch: bool,
    events: u32,
    /// Bits of `offline_file_type_t` of the latest header.
    pub(in crate::drmemtrace) file_type: u64,
    /// Instructions are looked at one by one: the file is of the whole system, or the filter counts.
    slow: bool,
    /// Records are filtered until a marker says otherwise.
    filtering: bool,
    /// Counting has begun.
    counting: bool,
    window: Option<u64>,
    /// The physical address that the next virtual one is at.
    physical: Option<u64>,
    pub(in crate::drmemtrace) layout: Layout,
    /// The latest record was a footer: the stream may end here.
    pub(in crate::drmemtrace) whole: bool,
    pub(in crate::drmemtrace) counts: Counts,
}

/// Records that are decoded between two looks at whether the batch is full.
const BLOCK: usize = 512;
/// Accesses within a line that they make at most: a bundle has eight instructions.
const ACCESSES: u32 = 8 * BLOCK as u32;

/// An address without what hardware ignores of it, and with bit 47 above it, as x86-64 has it.
///
/// On `AArch64` the top byte may be a tag, and bit 55 says which tables translate. Each of the two has
/// addresses of 48 bits, which become x86-64's of 48 bits: the walks of both have the same four
/// levels. One of more bits (52) keeps them. On x86-64 the bits above 57 are the sign in every address
/// unless the processor masks them (Intel's LAM, AMD's UAI); where they are not, the address is that
/// of 48 bits below, as the tracer's own reader has it.
#[inline(always)]
const fn canonical<const N: usize, const TAGGED: bool>(address: u64) -> u64 {
    if N == NARROW {
        return address;
    }
    if TAGGED {
        let untagged = (address << 8) as i64 >> 8;
        let high = untagged >> 48;
        return if high == 0 || high == -1 { without_mask(address) } else { untagged as u64 };
    }
    // The top eight bits are alike.
    if address.wrapping_add(1 << 56) >> 57 == 0 { address } else { without_mask(address) }
}

/// Whether an address is in the half of the kernel, which is told by its uppermost bit beside a tag.
const fn is_upper<const TAGGED: bool>(address: u64) -> bool {
    address >> if TAGGED { 55 } else { 63 } & 1 != 0
}

/// An address of 48 bits that has something else above.
#[cold]
const fn without_mask(address: u64) -> u64 {
    ((address << 16) as i64 >> 16) as u64
}

impl Thread {
    pub(in crate::drmemtrace) fn new(layout: Layout) -> Self {
        Self { layout, ..Self::default() }
    }

    /// Decodes records from the front of `bytes` and says how many bytes it used.
    pub(in crate::drmemtrace) fn decode(
        &mut self,
        bytes: &[u8],
        vcpu: VcpuId,
        out: &mut BatchBuilder,
    ) -> (usize, Pause) {
        let mut done = 0;
        loop {
            if out.is_full() {
                return (done, Pause::Full);
            }
            let size = self.layout.bytes();
            let rest = &bytes[done..];
            let block = &rest[..rest.len().min(BLOCK * size)];
            if block.len() < size {
                return (done, Pause::Bytes);
            }
            // How records are read may change with a file type, so a block ends there.
            let (used, pause) = match (self.layout, self.slow, self.is_tagged()) {
                (Layout::Narrow, ..) => self.block::<NARROW, false, true>(block, vcpu, out),
                (Layout::Wide, true, false) => self.block::<WIDE, false, true>(block, vcpu, out),
                (Layout::Wide, true, true) => self.block::<WIDE, true, true>(block, vcpu, out),
                (Layout::Wide, false, false) => self.block::<WIDE, false, false>(block, vcpu, out),
                (Layout::Wide, false, true) => self.block::<WIDE, true, false>(block, vcpu, out),
            };
            done += used;
            if let Some(pause) = pause {
                return (done, pause);
            }
        }
    }

    /// The threads that records belonged to.
    pub(in crate::drmemtrace) fn threads(&self) -> impl Iterator<Item = u64> {
        self.process_of.keys().copied()
    }

    const fn is_tagged(&self) -> bool {
        self.file_type & file_type::ARCH_AARCH64 != 0
    }

    /// Decodes whole records until one asks for a pause, or changes how the others are read.
    #[inline(never)]
    fn block<const N: usize, const TAGGED: bool, const SLOW: bool>(
        &mut self,
        bytes: &[u8],
        vcpu: VcpuId,
        out: &mut BatchBuilder,
    ) -> (usize, Option<Pause>) {
        let (records, _) = bytes.as_chunks::<N>();
        let mut lane = out.lane(vcpu, ACCESSES, self.mode);
        let mut rest = records.iter();
        while let Some(record) = rest.next() {
            let r = Record::from_bytes(record);
            // In the order of how many there are. What joins a run needs no look at its upper bits.
            if r.is_plain_fetch() {
                if !TAGGED && !SLOW && lane.joins_fetch(r.value, r.size) {
                    (self.pc, self.size) = (r.value, r.size);
                } else {
                    self.fetch_record::<N, TAGGED>(r.size, r.value, &mut lane);
                }
            } else if Record::word(record) & DATA_MASK == 0 {
                let store = r.kind == kind::WRITE;
                if TAGGED || SLOW || !lane.joins_data(r.value, r.size, store) {
                    if SLOW && self.slow {
                        self.count_slow(&mut lane);
                    }
                    let gva = canonical::<N, TAGGED>(r.value);
                    if !TAGGED && !SLOW && gva == r.value {
                        lane.begins_data(self.pc, gva, r.size, store);
                    } else {
                        lane.data(self.pc, gva, r.size, store);
                    }
                }
            } else if r.is_rare_fetch() {
                if !TAGGED && !SLOW && lane.joins_fetch(r.value, r.size) {
                    (self.pc, self.size) = (r.value, r.size);
                } else {
                    self.fetch_record::<N, TAGGED>(r.size, r.value, &mut lane);
                }
            } else if r.kind != kind::ENCODING {
                let before = (self.file_type, self.slow);
                let pause = self.special::<N, TAGGED>(r.kind, r.size, r.value, &mut lane);
                lane.set_mode(self.mode);
                let i = records.len() - rest.len() - 1;
                match pause {
                    Some(Pause::Bad(message)) => return (i * N, Some(Pause::Bad(message))),
                    None if (self.file_type, self.slow) == before => {}
                    pause => {
                        self.whole = false;
                        return ((i + 1) * N, pause);
                    }
                }
            }
        }
        if let Some(last) = records.last() {
            self.whole = Record::from_bytes(last).kind == kind::FOOTER;
        }
        (records.len() * N, None)
    }

    /// A record of an instruction that does not simply join a run.
    #[inline]
    fn fetch_record<const N: usize, const TAGGED: bool>(
        &mut self,
        size: u16,
        value: u64,
        lane: &mut Lane<'_>,
    ) {
        let pc = canonical::<N, TAGGED>(value);
        self.upper = is_upper::<TAGGED>(value);
        if size == 0 {
            self.only_pc(pc);
        } else if !TAGGED && !self.slow && pc == value {
            (self.pc, self.size) = (pc, size);
            lane.begins_fetch(pc, size);
        } else {
            self.fetch(pc, size, lane);
        }
    }

    /// A record that only names the instruction that accesses belong to.
    #[cold]
    fn only_pc(&mut self, pc: u64) {
        let (next, previous) = (self.next(), self.previous());
        (self.behind, self.before) = (next, previous);
        (self.pc, self.size) = (pc, 0);
    }

    /// Address behind the latest instruction with a size.
    fn next(&self) -> u64 {
        if self.size == 0 { self.behind } else { self.pc.wrapping_add(u64::from(self.size)) }
    }
    /// Address of the latest instruction with a size that was not in a bundle.
    fn previous(&self) -> u64 {
        if self.size == 0 { self.before } else { self.pc }
    }

    /// An instruction of some size, off the short way.
    #[inline]
    fn fetch(&mut self, pc: u64, size: u16, lane: &mut Lane<'_>) {
        (self.pc, self.size) = (pc, size);
        if self.slow {
            self.count_slow(lane);
        }
        lane.fetch(pc, size);
    }

    /// What is looked at for each access of few traces.
    #[cold]
    fn count_slow(&mut self, lane: &mut Lane<'_>) {
        self.counts.filtered_late += u64::from(self.counting && self.filtering);
        self.set_mode();
        lane.set_mode(self.mode);
    }

    /// Kernel mode is told by markers around the kernel's parts. Whole-system traces have markers where
    /// hardware enters the kernel and returns from it, and what they may lack, for calls that do not
    /// trap, the address of the instruction tells: the kernel's is in the upper half.
    fn set_mode(&mut self) {
        let upper = self.file_type & file_type::WHOLE_SYSTEM != 0 && self.upper;
        let kernel = self.in_syscall || self.in_switch || self.events > 0 || upper;
        self.mode = RunFlags::KERNEL.when(kernel);
    }

    /// Everything but fetches, loads, stores and encodings.
    #[cold]
    #[inline(never)]
    fn special<const N: usize, const TAGGED: bool>(
        &mut self,
        kind: u16,
        size: u16,
        value: u64,
        lane: &mut Lane<'_>,
    ) -> Option<Pause> {
        let r = Record { kind, size, value };
        match r.kind {
            kind::INSTR_MAYBE_FETCH | kind::INSTR_NO_FETCH => {
                let pc = canonical::<N, TAGGED>(r.value);
                self.upper = is_upper::<TAGGED>(r.value);
                let again = r.kind == kind::INSTR_NO_FETCH || pc == self.previous();
                if r.size == 0 {
                    self.only_pc(pc);
                } else if again {
                    (self.pc, self.size) = (pc, r.size);
                } else {
                    self.fetch(pc, r.size, lane);
                }
            }
            kind::INSTR_BUNDLE if usize::from(r.size) > N - 4 => {
                let (n, most) = (r.size, N - 4);
                let message = format!("a bundle of {n} instructions, where at most {most} fit");
                return Some(Pause::Bad(message));
            }
            kind::INSTR_BUNDLE => {
                let previous = self.previous();
                for length in &r.value.to_le_bytes()[..usize::from(r.size)] {
                    let next = self.next();
                    self.fetch(next, u16::from(*length), lane);
                    self.behind = next.wrapping_add(u64::from(*length));
                }
                // What was before the bundle stays the latest.
                (self.before, self.behind, self.size) = (previous, self.next(), 0);
            }
            kind::PREFETCH..=kind::PREFETCH_INSTR
            | kind::PREFETCH_READ_L1_NT..=kind::PREFETCH_WRITE_L3_NT
            | kind::HARDWARE_PREFETCH
            | kind::INSTR_FLUSH
            | kind::DATA_FLUSH => self.counts.skipped += 1,
            // The end of a flush, or what another record has said.
            kind::INSTR_FLUSH_END | kind::DATA_FLUSH_END | kind::THREAD_EXIT => {}
            kind::THREAD => {
                self.thread = r.value;
                // A thread that is new is followed by its process.
                return self.process_of.get(&r.value).map(|&process| Pause::Process(process));
            }
            kind::PID => {
                // Thread numbers are reused.
                self.process_of.insert(self.thread, r.value);
                return Some(Pause::Process(r.value));
            }
            kind::HEADER if r.is_header() => self.header(r.value),
            kind::HEADER => {
                let message =
                    format!("version {} in the header; versions are 1 to {NEWEST}", r.value);
                return Some(Pause::Bad(message));
            }
            // Another trace may follow, or another thread of the same core.
            kind::FOOTER => {}
            kind::MARKER => return self.marker::<N, TAGGED>(r),
            other => {
                let last = kind::INSTR_UNTAKEN_JUMP;
                return Some(Pause::Bad(format!("type {other}; types are 0 to {last}")));
            }
        }
        None
    }

    /// A trace begins, whatever was before in the file.
    fn header(&mut self, version: u64) {
        self.counts.version = self.counts.version.max(version);
        (self.in_syscall, self.in_switch, self.events) = (false, false, 0);
        self.set_mode();
        self.physical = None;
    }

    /// Counting has begun, by a marker of this stream or another.
    pub(in crate::drmemtrace) fn count(&mut self) {
        self.counting = true;
        self.set_slow();
    }

    fn set_slow(&mut self) {
        let whole_system = self.file_type & file_type::WHOLE_SYSTEM != 0;
        self.slow = whole_system || (self.counting && self.filtering);
    }

    fn marker<const N: usize, const TAGGED: bool>(&mut self, r: Record) -> Option<Pause> {
        match r.size {
            marker::TIMESTAMP => return self.timestamp::<N>(r.value).then_some(Pause::Time),
            marker::FILETYPE => {
                self.file_type = r.value;
                self.counts.file_types |= r.value;
                self.filtering = r.value & file_type::BIMODAL_FILTERED_WARMUP != 0;
                // Instructions of another file, which may not have been looked at, tell nothing.
                self.upper = false;
                self.set_slow();
            }
            marker::INSTRUCTION_COUNT => {
                self.counts.unfiltered.insert(self.thread, r.value);
            }
            marker::WINDOW_ID => {
                if self.window != Some(r.value) {
                    self.window = Some(r.value);
                    self.counts.windows += 1;
                    // Each window begins filtered.
                    self.filtering = self.file_type & file_type::BIMODAL_FILTERED_WARMUP != 0;
                    self.set_slow();
                }
            }
            marker::PAGE_SIZE if r.value != 4096 => self.counts.page_size = Some(r.value),
            marker::FILTER_ENDPOINT => {
                self.filtering = false;
                self.set_slow();
                return Some(Pause::FilterEnd);
            }
            marker::SYSCALL_TRACE_START => self.in_syscall = true,
            marker::SYSCALL_TRACE_END => self.in_syscall = false,
            marker::CONTEXT_SWITCH_START => self.in_switch = true,
            marker::CONTEXT_SWITCH_END => self.in_switch = false,
            marker::HARDWARE_EVENT => self.events = self.events.saturating_add(1),
            marker::HARDWARE_CONTEXT_RETURN => self.events = self.events.saturating_sub(1),
            marker::PHYSICAL_ADDRESS => self.physical = Some(r.value),
            marker::VIRTUAL_ADDRESS => {
                let gva = canonical::<N, TAGGED>(r.value);
                if let at @ Some(_) = self.physical.take() {
                    self.counts.physical += 1;
                    return Some(Pause::Physical { gva, at });
                }
            }
            marker::PHYSICAL_ADDRESS_NOT_AVAILABLE => {
                self.counts.not_available += 1;
                let gva = canonical::<N, TAGGED>(r.value);
                return Some(Pause::Physical { gva, at: None });
            }
            _ => return None,
        }
        self.set_mode();
        None
    }

    /// Takes a timestamp; whether it is later than the one before.
    fn timestamp<const N: usize>(&mut self, value: u64) -> bool {
        let now = if N == NARROW { nearest(self.time, value as u32) } else { value };
        let later = now > self.time;
        self.time = now;
        later
    }
}

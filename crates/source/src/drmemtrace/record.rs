//! The records of one thread's stream.

use nestwalk_types::{AccessKind, BatchBuilder, Gva, ProcessId, RunFlags, VcpuId};

/// Bytes of a record.
pub(super) const RECORD: usize = 12;

/// `trace_type_t`, as far as it is told apart here.
pub(super) mod kind {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const PREFETCH: u16 = 2;
    pub(crate) const PREFETCH_INSTR: u16 = 9;
    pub(crate) const INSTR: u16 = 10;
    pub(crate) const INSTR_RETURN: u16 = 16;
    pub(crate) const INSTR_BUNDLE: u16 = 17;
    pub(crate) const INSTR_FLUSH: u16 = 18;
    pub(crate) const DATA_FLUSH_END: u16 = 21;
    pub(crate) const THREAD: u16 = 22;
    pub(crate) const THREAD_EXIT: u16 = 23;
    pub(crate) const PID: u16 = 24;
    pub(crate) const HEADER: u16 = 25;
    pub(crate) const FOOTER: u16 = 26;
    pub(crate) const HARDWARE_PREFETCH: u16 = 27;
    pub(crate) const MARKER: u16 = 28;
    pub(crate) const INSTR_NO_FETCH: u16 = 29;
    pub(crate) const INSTR_MAYBE_FETCH: u16 = 30;
    pub(crate) const INSTR_SYSENTER: u16 = 31;
    pub(crate) const PREFETCH_READ_L1_NT: u16 = 32;
    pub(crate) const PREFETCH_WRITE_L3_NT: u16 = 46;
    pub(crate) const ENCODING: u16 = 47;
    pub(crate) const INSTR_TAKEN_JUMP: u16 = 48;
    pub(crate) const INSTR_UNTAKEN_JUMP: u16 = 49;
}

/// `trace_marker_type_t`, likewise.
pub(super) mod marker {
    pub(crate) const TIMESTAMP: u16 = 2;
    pub(crate) const FILETYPE: u16 = 9;
    pub(crate) const SYSCALL_TRACE_START: u16 = 27;
    pub(crate) const SYSCALL_TRACE_END: u16 = 28;
}

/// `OFFLINE_FILE_TYPE_FILTERED`, `_IFILTERED` and `_DFILTERED`.
const FILTERED: u64 = 0x1 | 0x80 | 0x100;
/// `OFFLINE_FILE_TYPE_INSTRUCTION_ONLY`.
const INSTRUCTION_ONLY: u64 = 0x4;
/// `OFFLINE_FILE_TYPE_ARCH_ARM32` and `_ARCH_X86_32`.
const ARCH_32: u64 = 0x10 | 0x20;

/// Highest version that a header may name: the format is at 5 to 8, and the byte tells it from
/// other files.
const VERSION_MAX: u64 = 64;

/// A record as read.
#[derive(Clone, Copy)]
pub(super) struct Record {
    pub(super) kind: u16,
    pub(super) size: u16,
    pub(super) value: u64,
}

impl Record {
    pub(super) fn from_bytes(b: &[u8; RECORD]) -> Self {
        Self {
            kind: u16::from_le_bytes([b[0], b[1]]),
            size: u16::from_le_bytes([b[2], b[3]]),
            value: u64::from_le_bytes([b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11]]),
        }
    }
}

/// Whether a file begins as a drmemtrace does: with a header that names a version.
pub(crate) fn matches(head: &[u8]) -> bool {
    head.first_chunk().is_some_and(|first| {
        let r = Record::from_bytes(first);
        r.kind == kind::HEADER && (1..=VERSION_MAX).contains(&r.value)
    })
}

/// Why decoding paused.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Pause {
    /// Fewer bytes than a record are left.
    Bytes,
    /// The batch is full.
    Full,
    /// A timestamp was passed: another thread may be earlier now.
    Time,
    /// The records from here on belong to this process.
    Process(u64),
    /// The footer.
    End,
    /// The stream is damaged.
    Bad(String),
}

/// State of a thread between records.
#[derive(Default)]
pub(super) struct Thread {
    /// Records decoded.
    pub(super) records: u64,
    /// The latest timestamp, in microseconds since 1601.
    pub(super) time: u64,
    /// The thread that records belong to, and whose process each thread is.
    thread: u64,
    process_of: Vec<(u64, u64)>,
    pub(super) process: Option<ProcessId>,
    pc: u64,
    next_pc: u64,
    kernel: bool,
    /// Bits of `offline_file_type_t` seen.
    pub(super) file_type: u64,
}

impl Thread {
    /// Decodes records from the front of `bytes` and says how many bytes it used.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        vcpu: VcpuId,
        out: &mut BatchBuilder,
    ) -> (usize, Pause) {
        let (records, _) = bytes.as_chunks::<RECORD>();
        for (i, record) in records.iter().enumerate() {
            if out.is_full() {
                return (i * RECORD, Pause::Full);
            }
            let pause = self.record(Record::from_bytes(record), vcpu, out);
            if let Some(pause) = pause {
                let used = if matches!(pause, Pause::Bad(_)) { i } else { i + 1 };
                return (used * RECORD, pause);
            }
        }
        (records.len() * RECORD, Pause::Bytes)
    }

    fn record(&mut self, r: Record, vcpu: VcpuId, out: &mut BatchBuilder) -> Option<Pause> {
        let bad = |message: String| Some(Pause::Bad(message));
        if self.records == 0 && r.kind != kind::HEADER {
            return bad(format!("type {}, where a header (type 25) must be", r.kind));
        }
        let pause = match r.kind {
            kind::READ => self.data(r, AccessKind::Load, vcpu, out),
            kind::WRITE => self.data(r, AccessKind::Store, vcpu, out),
            kind::INSTR..=kind::INSTR_RETURN
            | kind::INSTR_SYSENTER
            | kind::INSTR_TAKEN_JUMP
            | kind::INSTR_UNTAKEN_JUMP => self.instruction(r.value, r.size, vcpu, out),
            kind::INSTR_MAYBE_FETCH if r.value == self.pc => None,
            kind::INSTR_MAYBE_FETCH => self.instruction(r.value, r.size, vcpu, out),
            kind::INSTR_NO_FETCH => {
                self.pc = r.value;
                self.next_pc = r.value.wrapping_add(u64::from(r.size));
                None
            }
            kind::INSTR_BUNDLE if r.size > 8 => {
                return bad(format!("a bundle of {} instructions, where at most 8 fit", r.size));
            }
            kind::INSTR_BUNDLE => {
                for length in &r.value.to_le_bytes()[..usize::from(r.size)] {
                    self.instruction(self.next_pc, u16::from(*length), vcpu, out);
                }
                None
            }
            kind::PREFETCH..=kind::PREFETCH_INSTR
            | kind::PREFETCH_READ_L1_NT..=kind::PREFETCH_WRITE_L3_NT
            | kind::HARDWARE_PREFETCH
            | kind::INSTR_FLUSH..=kind::DATA_FLUSH_END
            | kind::THREAD_EXIT
            | kind::ENCODING => None,
            kind::THREAD => self.switch_thread(r.value),
            kind::PID => self.name_process(r.value),
            kind::HEADER if (1..=VERSION_MAX).contains(&r.value) => None,
            kind::HEADER => return bad(format!("version {} in the header", r.value)),
            kind::FOOTER => Some(Pause::End),
            kind::MARKER => match self.marker(r) {
                Err(message) => return bad(message),
                Ok(pause) => pause,
            },
            other => return bad(format!("type {other}; types are 0 to 49")),
        };
        self.records += 1;
        pause
    }

    fn flags(&self, kind: AccessKind) -> RunFlags {
        let flags = RunFlags::of(kind);
        if self.kernel { flags.union(RunFlags::KERNEL) } else { flags }
    }

    fn data(
        &mut self,
        r: Record,
        kind: AccessKind,
        vcpu: VcpuId,
        out: &mut BatchBuilder,
    ) -> Option<Pause> {
        let (pc, gva) = (Gva::new(self.pc), Gva::new(r.value));
        out.access_with(vcpu, pc, gva, u32::from(r.size), self.flags(kind), 0);
        None
    }

    fn instruction(
        &mut self,
        pc: u64,
        size: u16,
        vcpu: VcpuId,
        out: &mut BatchBuilder,
    ) -> Option<Pause> {
        self.pc = pc;
        if size > 0 {
            self.next_pc = pc.wrapping_add(u64::from(size));
            let gva = Gva::new(pc);
            let flags = self.flags(AccessKind::Fetch);
            out.access_with(vcpu, gva, gva, u32::from(size), flags, 1);
        }
        None
    }

    fn switch_thread(&mut self, thread: u64) -> Option<Pause> {
        self.thread = thread;
        // A thread that is new is followed by its process.
        let known = self.process_of.iter().find(|t| t.0 == thread);
        known.map(|&(_, process)| Pause::Process(process))
    }

    fn name_process(&mut self, process: u64) -> Option<Pause> {
        match self.process_of.iter_mut().find(|t| t.0 == self.thread) {
            // Thread numbers are reused.
            Some(known) => known.1 = process,
            None => self.process_of.push((self.thread, process)),
        }
        Some(Pause::Process(process))
    }

    fn marker(&mut self, r: Record) -> Result<Option<Pause>, String> {
        match r.size {
            marker::TIMESTAMP => {
                let later = r.value > self.time;
                self.time = r.value;
                return Ok(later.then_some(Pause::Time));
            }
            marker::FILETYPE => {
                self.file_type |= r.value;
                if r.value & ARCH_32 != 0 {
                    return Err(
                        "a trace of a 32-bit program; only 64-bit ones are supported".into()
                    );
                }
            }
            marker::SYSCALL_TRACE_START => self.kernel = true,
            marker::SYSCALL_TRACE_END => self.kernel = false,
            _ => {}
        }
        Ok(None)
    }

    pub(super) fn is_filtered(&self) -> bool {
        self.file_type & FILTERED != 0
    }
    pub(super) fn lacks_data(&self) -> bool {
        self.file_type & INSTRUCTION_ONLY != 0
    }
}

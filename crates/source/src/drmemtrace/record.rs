//! The records of one file's stream.

mod thread;

use nestwalk_types::{BatchBuilder, Lane, ProcessId, RunFlags, VcpuId};
use std::collections::BTreeMap;
pub(super) use thread::Thread;

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
    pub(crate) const INSTR_FLUSH_END: u16 = 19;
    pub(crate) const DATA_FLUSH: u16 = 20;
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
    pub(crate) const INSTRUCTION_COUNT: u16 = 11;
    pub(crate) const WINDOW_ID: u16 = 14;
    pub(crate) const PHYSICAL_ADDRESS: u16 = 15;
    pub(crate) const PHYSICAL_ADDRESS_NOT_AVAILABLE: u16 = 16;
    pub(crate) const VIRTUAL_ADDRESS: u16 = 17;
    pub(crate) const PAGE_SIZE: u16 = 18;
    pub(crate) const FILTER_ENDPOINT: u16 = 23;
    pub(crate) const SYSCALL_TRACE_START: u16 = 27;
    pub(crate) const SYSCALL_TRACE_END: u16 = 28;
    pub(crate) const CONTEXT_SWITCH_START: u16 = 34;
    pub(crate) const CONTEXT_SWITCH_END: u16 = 35;
    pub(crate) const HARDWARE_EVENT: u16 = 43;
    pub(crate) const HARDWARE_CONTEXT_RETURN: u16 = 44;
}

/// Bits of `offline_file_type_t`, without their prefix.
pub(super) mod file_type {
    /// Any of `FILTERED`, `IFILTERED` and `DFILTERED`.
    pub(crate) const FILTERED: u64 = 0x1 | 0x80 | 0x100;
    pub(crate) const INSTRUCTION_ONLY: u64 = 0x4;
    pub(crate) const ARCH_AARCH64: u64 = 0x8;
    pub(crate) const BIMODAL_FILTERED_WARMUP: u64 = 0x2000;
    pub(crate) const KERNEL_SYSCALL_TRACE_TEMPLATES: u64 = 0x4000;
    pub(crate) const KERNEL_SYSCALL_INSTR_ONLY: u64 = 0x8000;
    pub(crate) const CORE_SHARDED: u64 = 0x10000;
    pub(crate) const WHOLE_SYSTEM: u64 = 0x40000;
}

/// The newest version of the format that is known here.
pub(super) const NEWEST: u64 = 7;
/// Highest version that a header may name: a newer one is read as far as its records are known, and
/// the number tells the format from others.
const VERSION_MAX: u64 = 64;

/// Bytes of a record of a 64-bit build of the tracer, and of a 32-bit one.
pub(super) const WIDE: usize = 12;
pub(super) const NARROW: usize = 8;

/// Bits of kind and size that are 0 in a load or store of any size. Looked at so, and not as a number
/// among others, they come second.
const DATA_MASK: u32 = 0xffff & !(kind::READ | kind::WRITE) as u32;

/// A record as read. That of a 32-bit build has a value of 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) kind: u16,
    pub(super) size: u16,
    pub(super) value: u64,
}

impl Record {
    /// Of [`WIDE`] or [`NARROW`] bytes.
    #[inline(always)]
    pub(super) fn from_bytes<const N: usize>(b: &[u8; N]) -> Self {
        let value = match (b.last_chunk::<8>(), b.last_chunk::<4>()) {
            (Some(wide), _) if N == WIDE => u64::from_le_bytes(*wide),
            (_, Some(narrow)) => u64::from(u32::from_le_bytes(*narrow)),
            _ => 0,
        };
        let word = Self::word(b);
        Self { kind: word as u16, size: (word >> 16) as u16, value }
    }

    /// Kind and size.
    #[inline(always)]
    fn word<const N: usize>(b: &[u8; N]) -> u32 {
        b.first_chunk::<4>().map_or(0, |word| u32::from_le_bytes(*word))
    }

    /// A fetch of what is no conditional jump.
    #[inline(always)]
    const fn is_plain_fetch(self) -> bool {
        self.kind.wrapping_sub(kind::INSTR) <= kind::INSTR_RETURN - kind::INSTR
    }
    #[inline(always)]
    const fn is_rare_fetch(self) -> bool {
        matches!(
            self.kind,
            kind::INSTR_TAKEN_JUMP | kind::INSTR_UNTAKEN_JUMP | kind::INSTR_SYSENTER
        )
    }

    fn is_header(self) -> bool {
        self.kind == kind::HEADER && (1..=VERSION_MAX).contains(&self.value)
    }
}

/// How the records of a file are laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Layout {
    /// [`WIDE`] bytes each.
    #[default]
    Wide,
    /// [`NARROW`] bytes each, written by a 32-bit build of the tracer.
    Narrow,
}

impl Layout {
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Wide => WIDE,
            Self::Narrow => NARROW,
        }
    }

    /// The layout that the beginning of a file shows: a header that names a version. In a header of
    /// 12 bytes the upper half of the version is zero; behind one of 8 bytes another record begins.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        let wide = head.first_chunk::<WIDE>().map(Record::from_bytes);
        let narrow = head.first_chunk::<NARROW>().map(Record::from_bytes);
        if wide.is_some_and(Record::is_header) {
            return Some(Self::Wide);
        }
        let second = head.get(NARROW..)?.first_chunk::<NARROW>().map(Record::from_bytes)?;
        let follows = second.kind > kind::WRITE && second.kind <= kind::INSTR_UNTAKEN_JUMP;
        (narrow.is_some_and(Record::is_header) && follows).then_some(Self::Narrow)
    }

    /// The whole records at the front of `bytes`.
    fn records(self, bytes: &[u8]) -> impl Iterator<Item = Record> {
        let (wide, narrow) = match self {
            Self::Wide => (bytes.as_chunks::<WIDE>().0, &[][..]),
            Self::Narrow => (&[][..], bytes.as_chunks::<NARROW>().0),
        };
        let wide = wide.iter().map(Record::from_bytes);
        wide.chain(narrow.iter().map(Record::from_bytes))
    }
}

/// What is wrong with a file that does not begin with a header.
pub(super) fn without_header(head: &[u8]) -> Pause {
    let Some(first) = head.first_chunk::<WIDE>().map(Record::from_bytes) else {
        return Pause::Bytes;
    };
    Pause::Bad(if first.kind == kind::HEADER {
        format!("version {} in the header; versions are 1 to {NEWEST}", first.value)
    } else if is_raw(head) {
        "what the tracer wrote before post-processing, where a header (type 25) must be; running an \
         analysis tool on its directory once makes the trace, in `trace` beside `raw`"
            .to_owned()
    } else {
        format!("type {}, where a header (type 25) must be", first.kind)
    })
}

/// Whether a file begins as a drmemtrace does.
pub(crate) fn matches(head: &[u8]) -> bool {
    Layout::of(head).is_some()
}

/// Whether a file begins as what the tracer writes before it is post-processed: an `offline_entry_t`
/// of type `OFFLINE_TYPE_EXTENDED` with a header, old or new.
fn is_raw(head: &[u8]) -> bool {
    head.get(7).is_some_and(|top| matches!(top, 0xc0 | 0xc4))
}

/// What the records before the first access say.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) version: u64,
    pub(super) thread: Option<u64>,
    pub(super) process: Option<u64>,
    pub(super) file_type: u64,
    /// The first timestamp.
    pub(super) time: Option<u64>,
    /// There are physical addresses.
    pub(super) physical: bool,
    /// Page size of the traced system, in bytes.
    pub(super) page_size: Option<u64>,
}

/// Bytes that [`Head::of`] looks at.
pub(super) const HEAD: usize = 4096;

impl Head {
    /// Of the first bytes of a file.
    pub(super) fn of(layout: Layout, bytes: &[u8]) -> Self {
        let mut head = Self::default();
        for r in layout.records(bytes) {
            match (r.kind, r.size) {
                (kind::HEADER, _) if head.version == 0 => head.version = r.value,
                (kind::THREAD, _) => head.thread = head.thread.or(Some(r.value)),
                (kind::PID, _) => head.process = head.process.or(Some(r.value)),
                (kind::MARKER, marker::FILETYPE) => head.file_type |= r.value,
                (kind::MARKER, marker::TIMESTAMP) => head.time = head.time.or(Some(r.value)),
                (kind::MARKER, marker::VIRTUAL_ADDRESS) => head.physical = true,
                (kind::MARKER, marker::PAGE_SIZE) => head.page_size = Some(r.value),
                (kind::MARKER, _) | (kind::ENCODING, _) => {}
                _ => break,
            }
        }
        head
    }
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
    /// What was before was filtered for warm-up.
    FilterEnd,
    /// From here on this page of the virtual addresses is at this physical address, or at none.
    Physical {
        /// An address in the page.
        gva: u64,
        /// The address that it is at.
        at: Option<u64>,
    },
    /// The stream is damaged.
    Bad(String),
}

/// What is counted that does not become accesses, or that a reader of results must know.
#[derive(Clone, Default, Debug)]
pub(super) struct Counts {
    /// Prefetches and cache flushes.
    pub(super) skipped: u64,
    /// Instructions that ran before an online filter, by thread, as the trace says.
    pub(super) unfiltered: BTreeMap<u64, u64>,
    /// Windows of recording.
    pub(super) windows: u64,
    /// Accesses that were filtered after counting had begun.
    pub(super) filtered_late: u64,
    /// Bits of `offline_file_type_t` seen.
    pub(super) file_types: u64,
    /// The newest version seen.
    pub(super) version: u64,
    /// Page size of the traced system, if it was said and is not 4 KiB.
    pub(super) page_size: Option<u64>,
    /// Pages of which the physical address is said, and those of which it could not be had.
    pub(super) physical: u64,
    pub(super) not_available: u64,
}

/// The time nearest to `reference` whose lower 32 bits these are: 32-bit builds of the tracer keep no
/// more, which repeat after 71 minutes.
pub(super) const fn nearest(reference: u64, bits: u32) -> u64 {
    let distance = bits.wrapping_sub(reference as u32) as i32;
    reference.wrapping_add_signed(distance as i64)
}

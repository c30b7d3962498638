//! One event in 32 bytes.

use nestwalk_types::{Run, RunFlags, VcpuId};

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A page run: `a` address, `b` instruction address, `c` lines, and the counts.
    Run = 0,
    /// A table page is in use: `a` its gPA. [`IMAGE_RECORDS`] records with its entries follow.
    TableNew = 1,
    /// A store to a table: `a` gPA of the entry, `b` the entry after the store.
    TableWrite = 2,
    /// A store to a page that was a table once: `a` its gPA.
    TableReused = 3,
    /// MOV to CR3: `a` the value.
    LoadCr3 = 4,
    /// INVLPG: `a` the address.
    InvalidatePage = 5,
    /// A change of CR0 or CR4 that empties the TLBs.
    InvalidateAll = 6,
    /// A page fault delivered to the guest's kernel: `a` the address, `b` the error code.
    Fault = 7,
    /// QEMU's translation of the run that follows: `a` gVA, `b` gPA.
    Check = 8,
    /// A marker instruction: `a` its number.
    Mark = 9,
    /// What follows on this vCPU happened at this moment of all: `a` the number of the moment, `b` 1 if
    /// it begins with the event that made the moment.
    Moment = 10,
    /// A process runs: `a` root table, `b` its number, `c` and the record that follows its name.
    Process = 11,
    /// `a` instructions that no record carries yet.
    Instructions = 12,
    /// `b` accesses are not in the stream for reason `a`.
    Dropped = 13,
    /// Nothing comes after this on this vCPU.
    End = 14,
    /// The guest has used `b` bytes of memory from gPA `a` before recording began.
    Backed = 15,
}

/// Records that hold the entries of a table page.
pub const IMAGE_RECORDS: usize = 4096 / size_of::<Record>();

/// An event as it is in shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Record {
    /// First operand.
    pub a: u64,
    /// Second operand.
    pub b: u64,
    /// Third operand.
    pub c: u64,
    /// Accesses of a run.
    pub count: u16,
    /// Instructions since the record before.
    pub instructions: u16,
    /// The vCPU.
    pub vcpu: u8,
    /// Bits of [`RunFlags`].
    pub flags: u8,
    /// A [`Kind`].
    pub kind: u8,
    /// Not used.
    pub spare: u8,
}

const _: () = assert!(size_of::<Record>() == 32);

impl Kind {
    /// The kind of that number.
    pub const fn of(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Run,
            1 => Self::TableNew,
            2 => Self::TableWrite,
            3 => Self::TableReused,
            4 => Self::LoadCr3,
            5 => Self::InvalidatePage,
            6 => Self::InvalidateAll,
            7 => Self::Fault,
            8 => Self::Check,
            9 => Self::Mark,
            10 => Self::Moment,
            11 => Self::Process,
            12 => Self::Instructions,
            13 => Self::Dropped,
            14 => Self::End,
            15 => Self::Backed,
            _ => return None,
        })
    }
}

impl Record {
    /// A record that is not a run.
    pub const fn control(kind: Kind, a: u64, b: u64) -> Self {
        let kind = kind as u8;
        Self { a, b, c: 0, count: 0, instructions: 0, vcpu: 0, flags: 0, kind, spare: 0 }
    }

    /// The run that the record holds.
    pub const fn run(&self, vcpu: VcpuId) -> Run {
        let store = self.flags & 1 != 0;
        let mut flags =
            if store { RunFlags::STORE } else { RunFlags::of(nestwalk_types::AccessKind::Load) };
        if self.flags & 2 != 0 {
            flags = flags.union(RunFlags::FETCH);
        }
        if self.flags & 4 != 0 {
            flags = flags.union(RunFlags::KERNEL);
        }
        Run {
            gva: nestwalk_types::Gva::new(self.a),
            pc: nestwalk_types::Gva::new(self.b),
            lines: self.c,
            count: self.count,
            instructions: self.instructions,
            vcpu,
            flags,
        }
    }
}

//! `ChampSim` traces: the field's common currency.
//!
//! The format is `struct input_instr` of ChampSim's `inc/trace_instruction.h`: 64 bytes an
//! instruction, little-endian: `u64 ip; u8 is_branch; u8 branch_taken; u8
//! destination_registers[2]; u8 source_registers[4]; u64 destination_memory[2]; u64
//! source_memory[4]`. A memory address of 0 stands for none.
//!
//! What the record does not hold: the size of the instruction and of its accesses. Each is taken as
//! one byte, so that no second page is touched that the program may not have touched. Loads come
//! before stores, as in an instruction that reads and writes the same address.

use crate::bytes::Window;
use crate::decoder::{Decode, Decoder, Step};
use nestwalk_types::{AccessKind, BatchBuilder, Gva, SourceInfo, VcpuId};

/// Bytes of a record.
pub const RECORD: usize = 64;

const V: VcpuId = VcpuId(0);

/// One instruction of a trace, without its registers, which no translation depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Instruction {
    /// Its address.
    pub ip: u64,
    /// 1 for a branch.
    pub is_branch: u8,
    /// 1 for a branch that was taken.
    pub branch_taken: u8,
    /// Addresses stored to; 0 for none.
    pub destination_memory: [u64; 2],
    /// Addresses loaded from; 0 for none.
    pub source_memory: [u64; 4],
}

impl Instruction {
    /// Reads a record.
    pub fn from_bytes(bytes: &[u8; RECORD]) -> Self {
        let word = |i: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            u64::from_le_bytes(w)
        };
        Self {
            ip: word(0),
            is_branch: bytes[8],
            branch_taken: bytes[9],
            destination_memory: [word(2), word(3)],
            source_memory: [word(4), word(5), word(6), word(7)],
        }
    }

    /// Writes a record; registers are 0.
    pub fn to_bytes(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&self.ip.to_le_bytes());
        bytes[8] = self.is_branch;
        bytes[9] = self.branch_taken;
        let memory = self.destination_memory.iter().chain(&self.source_memory);
        for (field, address) in bytes[16..].chunks_exact_mut(8).zip(memory) {
            field.copy_from_slice(&address.to_le_bytes());
        }
        bytes
    }

    /// Why this cannot be a record, if it cannot.
    fn fault(&self) -> Option<String> {
        let flags = [("is_branch", self.is_branch), ("branch_taken", self.branch_taken)];
        let (name, value) = flags.into_iter().find(|f| f.1 > 1)?;
        Some(format!("{name} is {value}, which must be 0 or 1: not a ChampSim trace, or damaged"))
    }
}

/// Whether these bytes, the start of a file, look like `ChampSim` records.
///
/// The format has no magic number: the flags of every whole record must be 0 or 1, only branches
/// may be taken, and every address must be canonical (48 or 57 bits, sign-extended).
pub(crate) fn matches(head: &[u8]) -> bool {
    let canonical = |a: u64| matches!((a as i64) >> 56, 0 | -1);
    let (records, _) = head.as_chunks::<RECORD>();
    let fits = |bytes: &[u8; RECORD]| {
        let i = Instruction::from_bytes(bytes);
        let memory = i.destination_memory.iter().chain(&i.source_memory);
        i.ip != 0
            && i.fault().is_none()
            && i.branch_taken <= i.is_branch
            && canonical(i.ip)
            && memory.copied().all(canonical)
    };
    !records.is_empty() && records.iter().all(fits)
}

/// The decoder's state: nothing but a count.
#[derive(Default)]
pub(crate) struct ChampSim {
    records: u64,
}

impl ChampSim {
    pub(crate) fn source(name: String, window: Window, total: Option<u64>) -> Decoder<Self> {
        Decoder::new(name, window, total, Self::default())
    }
}

impl Decode for ChampSim {
    fn decode(&mut self, bytes: &[u8], offset: u64, out: &mut BatchBuilder) -> Step {
        let (records, _) = bytes.as_chunks::<RECORD>();
        let mut used = 0;
        for record in records {
            if out.is_full() {
                break;
            }
            let i = Instruction::from_bytes(record);
            if let Some(fault) = i.fault() {
                let at = offset + used as u64;
                let error = Some(format!("record {} at byte {at}: {fault}", self.records));
                return Step { used, error };
            }
            let pc = Gva::new(i.ip);
            out.access(V, pc, pc, 1, AccessKind::Fetch, 1);
            for address in i.source_memory.into_iter().filter(|&a| a != 0) {
                out.access(V, pc, Gva::new(address), 1, AccessKind::Load, 0);
            }
            for address in i.destination_memory.into_iter().filter(|&a| a != 0) {
                out.access(V, pc, Gva::new(address), 1, AccessKind::Store, 0);
            }
            self.records += 1;
            used += RECORD;
        }
        Step { used, error: None }
    }

    fn finish(&mut self, rest: &[u8], offset: u64, _: &mut BatchBuilder) -> Result<(), String> {
        if rest.is_empty() {
            return Ok(());
        }
        Err(format!(
            "record {} at byte {offset} has {} of its {RECORD} bytes: the trace was cut off",
            self.records,
            rest.len()
        ))
    }

    fn info(&self) -> SourceInfo {
        SourceInfo {
            description: "ChampSim trace, one process".into(),
            knows_lines: true,
            knows_pc: true,
            has_fetches: true,
            approximations: vec![
                "ChampSim records hold no sizes: instructions and accesses that cross into a \
                 second page are counted once"
                    .into(),
            ],
            ..SourceInfo::default()
        }
    }
}

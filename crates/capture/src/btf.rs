//! Where the kernel keeps the running task and its name, from the kernel's own type information.
//!
//! BTF is the compact debugging format that kernels carry in their `.BTF` section
//! (`Documentation/bpf/btf.rst`). It has the layout of every structure, and the offset of every
//! per-CPU variable.

use crate::elf::{self, bytes, number, text};

/// What is needed to say which process runs: byte offsets into the kernel's structures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskLayout {
    /// Of the pointer to the running `task_struct`, from the vCPU's per-CPU base: the kernel's
    /// GS base.
    pub current_task: u64,
    /// Of `comm`, the name: 16 bytes that end with a NUL.
    pub comm: u64,
    /// Of `pid`, a 32-bit number: the thread.
    pub pid: u64,
    /// Of `tgid`, a 32-bit number: the process.
    pub tgid: u64,
}

/// Finds the layout in a kernel's ELF file; `None` where the kernel has no BTF or other names.
#[must_use]
pub fn task_layout(vmlinux: &[u8]) -> Option<TaskLayout> {
    let btf = Btf::new(elf::section(vmlinux, ".BTF")?)?;
    let task =
        btf.types.iter().find(|t| t.kind == STRUCT && btf.name(t) == Some(b"task_struct"))?;
    let member = |name: &[u8]| btf.member(task, name, 0);
    Some(TaskLayout {
        current_task: btf.per_cpu(b"current_task")?,
        comm: member(b"comm")?,
        pid: member(b"pid")?,
        tgid: member(b"tgid")?,
    })
}

const ARRAY: u64 = 3;
const STRUCT: u64 = 4;
const UNION: u64 = 5;
const ENUM: u64 = 6;
const FUNC_PROTO: u64 = 13;
const VAR: u64 = 14;
const DATASEC: u64 = 15;
const DECL_TAG: u64 = 17;
const ENUM64: u64 = 19;
const INT: u64 = 1;
/// Bytes of a type before what its kind adds.
const TYPE_BYTES: u64 = 12;
/// Of each member of a structure and each variable of a section.
const MEMBER_BYTES: u64 = 12;

struct Type {
    kind: u64,
    /// Whether members carry the widths of bit fields in the upper byte of their offset.
    has_widths: bool,
    name: u64,
    /// Of the members and the like that follow: how many, and where.
    count: u64,
    body: u64,
    /// The type that this one refers to, or its size.
    refers: u64,
}

struct Btf<'a> {
    strings: &'a [u8],
    data: &'a [u8],
    /// Type N is at N - 1: the format's type 0 is `void`, which has no bytes.
    types: Vec<Type>,
}

impl<'a> Btf<'a> {
    fn new(section: &'a [u8]) -> Option<Btf<'a>> {
        const MAGIC: u64 = 0xeb9f;
        if number::<2>(section, 0)? != MAGIC {
            return None;
        }
        let body = number::<4>(section, 4)?;
        let part = |at: u64| {
            bytes(section, body + number::<4>(section, at)?, number::<4>(section, at + 4)?)
        };
        let (data, strings) = (part(8)?, part(16)?);
        let mut types = Vec::new();
        let mut at = 0;
        while at < data.len() as u64 {
            let info = number::<4>(data, at + 4)?;
            let (kind, count) = (info >> 24 & 31, info & 0xffff);
            let body = at + TYPE_BYTES;
            types.push(Type {
                kind,
                has_widths: info >> 31 == 1,
                name: number::<4>(data, at)?,
                count,
                body,
                refers: number::<4>(data, at + 8)?,
            });
            at = body
                + match kind {
                    INT | VAR | DECL_TAG => 4,
                    ARRAY => 12,
                    STRUCT | UNION | DATASEC | ENUM64 => 12 * count,
                    ENUM | FUNC_PROTO => 8 * count,
                    _ => 0,
                };
        }
        Some(Btf { strings, data, types })
    }

    fn name(&self, of: &Type) -> Option<&'a [u8]> {
        text(self.strings, of.name)
    }

    /// Type `id`, or nothing for `void`.
    fn get(&self, id: u64) -> Option<&Type> {
        self.types.get(usize::try_from(id.checked_sub(1)?).ok()?)
    }

    /// Byte offset of a member, also where it is a member of a nameless member.
    fn member(&self, of: &Type, name: &[u8], depth: u32) -> Option<u64> {
        const DEEPEST: u32 = 8;
        if depth > DEEPEST || (of.kind != STRUCT && of.kind != UNION) {
            return None;
        }
        (0..of.count).find_map(|index| {
            let at = of.body + index * MEMBER_BYTES;
            let called = text(self.strings, number::<4>(self.data, at)?)?;
            let bits = number::<4>(self.data, at + 8)?;
            let offset = if of.has_widths { bits & 0xff_ffff } else { bits } / 8;
            if called == name {
                Some(offset)
            } else if called.is_empty() {
                let inner = self.get(number::<4>(self.data, at + 4)?)?;
                Some(offset + self.member(inner, name, depth + 1)?)
            } else {
                None
            }
        })
    }

    /// Offset of a per-CPU variable: its own, or from Linux 6.2 to 6.14 as a member of `pcpu_hot`.
    fn per_cpu(&self, name: &[u8]) -> Option<u64> {
        let section = self
            .types
            .iter()
            .find(|t| t.kind == DATASEC && self.name(t) == Some(b".data..percpu"))?;
        (0..section.count).find_map(|index| {
            let at = section.body + index * MEMBER_BYTES;
            let variable = self.get(number::<4>(self.data, at)?)?;
            let offset = number::<4>(self.data, at + 4)?;
            match self.name(variable)? {
                called if called == name => Some(offset),
                b"pcpu_hot" => Some(offset + self.member(self.get(variable.refers)?, name, 0)?),
                _ => None,
            }
        })
    }
}

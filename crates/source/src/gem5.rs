//! gem5's packet traces: what its `CommMonitor` with a `MemTraceProbe` writes.
//!
//! The format is that of `src/proto/packet.proto` and `src/proto/protoio.cc`: the four bytes `gem5`,
//! then messages of Protocol Buffers, each behind its length as a varint: one `PacketHeader` (field 1
//! the name of the object, 2 the version, 3 ticks per second, 4 names of requestors) and any number of
//! `Packet` (1 tick, 2 command, 3 address, 4 size, 5 flags, 6 id, 7 instruction address; varints).
//! Files are gzip'ed if their name ends so.
//!
//! Commands are numbers of `MemCmd` (`src/mem/packet.hh`): 1 is a read request and 4 a write request in
//! every version; those behind were renumbered when others came between them, so they are counted, said,
//! and left out. A read whose flags have `Request::INST_FETCH` (0x100) is a fetch, `PREFETCH`
//! (0x0100_0000) no access. A fetch is of as many bytes as the processor fetches at a time: how many
//! instructions these are is not known.

use crate::bytes::Window;
use crate::decoder::{Decode, Decoder, Step};
use crate::formats::Definition;
use nestwalk_types::{AccessKind, BatchBuilder, Gva, SourceInfo, VcpuId};

pub(crate) const FORMAT: Definition =
    Definition::new("gem5", "gem5's packet traces", matches, |input| {
        Ok(Box::new(Gem5::source(input.name, input.window, input.total)))
    });

const V: VcpuId = VcpuId(0);
/// What a file begins with.
const MAGIC: &[u8; 4] = b"gem5";
/// Longest message that is believed, bytes: a header with the names of very many requestors.
const LONGEST: u64 = 1 << 20;
/// Largest access that is believed, bytes: the size of a large page, which some devices move at once.
const LARGEST: u64 = 2 << 20;

const READ: u64 = 1;
const WRITE: u64 = 4;
const FETCH: u64 = 0x100;
const PREFETCH: u64 = 0x0100_0000;

/// The varint that `bytes` begin with, and what follows; `Err` if it is none, `Ok(None)` if more bytes
/// are needed.
#[inline(always)]
fn varint(bytes: &[u8]) -> Result<Option<(u64, &[u8])>, &'static str> {
    match bytes {
        [byte @ ..0x80, rest @ ..] => Ok(Some((u64::from(*byte), rest))),
        _ => long_varint(bytes),
    }
}

/// A varint of several bytes.
#[inline]
fn long_varint(bytes: &[u8]) -> Result<Option<(u64, &[u8])>, &'static str> {
    let (mut value, mut at, mut shift) = (0u64, 0, 0);
    while let Some(&byte) = bytes.get(at) {
        if shift == 63 && byte > 1 {
            return Err("a number of more than 64 bits");
        }
        value |= u64::from(byte & 0x7f) << shift;
        at += 1;
        if byte < 0x80 {
            return Ok(Some((value, &bytes[at..])));
        }
        shift += 7;
    }
    Ok(None)
}

/// A packet. Fields that are not there are 0.
#[derive(Default)]
struct Packet {
    command: u64,
    address: Option<u64>,
    size: u64,
    flags: u64,
    pc: u64,
}

/// Calls `take` with the number and value of each field that is a varint; others are passed over.
#[inline(always)]
fn fields(mut message: &[u8], mut take: impl FnMut(u64, u64)) -> Result<(), &'static str> {
    const CUT: &str = "a message that ends within a field";
    while !message.is_empty() {
        let (key, rest) = varint(message)?.ok_or(CUT)?;
        message = match key & 7 {
            0 => {
                let (value, rest) = varint(rest)?.ok_or(CUT)?;
                take(key >> 3, value);
                rest
            }
            1 => rest.get(8..).ok_or(CUT)?,
            2 => {
                let (length, rest) = varint(rest)?.ok_or(CUT)?;
                usize::try_from(length).ok().and_then(|n| rest.get(n..)).ok_or(CUT)?
            }
            5 => rest.get(4..).ok_or(CUT)?,
            _ => return Err("a field of a type that the format does not have"),
        };
    }
    Ok(())
}

fn packet(message: &[u8]) -> Result<Packet, &'static str> {
    let mut p = Packet::default();
    fields(message, |field, value| match field {
        2 => p.command = value,
        3 => p.address = Some(value),
        4 => p.size = value,
        5 => p.flags = value,
        7 => p.pc = value,
        _ => {}
    })?;
    Ok(p)
}

/// The decoder's state.
#[derive(Default)]
pub(crate) struct Gem5 {
    packets: u64,
    /// The magic number, and the header.
    begun: (bool, bool),
    fetches: u64,
    data: u64,
    with_pc: u64,
    prefetches: u64,
    without_address: u64,
    other_commands: u64,
    /// The least and the greatest of them.
    others: Option<(u64, u64)>,
}

impl Gem5 {
    pub(crate) fn source(name: String, window: Window, total: Option<u64>) -> Decoder<Self> {
        Decoder::new(name, window, total, Self::default())
    }

    #[inline(always)]
    fn take(&mut self, p: &Packet, out: &mut BatchBuilder) -> Result<(), &'static str> {
        let store = match p.command {
            READ => false,
            WRITE => true,
            other => {
                self.other_commands += 1;
                let (least, greatest) = self.others.unwrap_or((other, other));
                self.others = Some((least.min(other), greatest.max(other)));
                return Ok(());
            }
        };
        if p.flags & PREFETCH != 0 {
            self.prefetches += 1;
            return Ok(());
        }
        let Some(address) = p.address else {
            self.without_address += 1;
            return Ok(());
        };
        if p.size > LARGEST {
            return Err("a packet of more than 2 MiB");
        }
        let (gva, bytes) = (Gva::new(address), p.size.max(1) as u32);
        if p.flags & FETCH != 0 && !store {
            self.fetches += 1;
            out.access(V, gva, gva, bytes, AccessKind::Fetch, 0);
        } else {
            self.data += 1;
            self.with_pc += u64::from(p.pc != 0);
            let kind = if store { AccessKind::Store } else { AccessKind::Load };
            out.access(V, Gva::new(p.pc), gva, bytes, kind, 0);
        }
        Ok(())
    }

    fn at(&self, offset: u64, what: &str) -> String {
        let which = if self.begun.1 { format!("packet {}", self.packets) } else { "header".into() };
        format!("{which} at byte {offset}: {what}: not a packet trace of gem5, or damaged")
    }
}

impl Decode for Gem5 {
    fn decode(&mut self, bytes: &[u8], offset: u64, out: &mut BatchBuilder) -> Step {
        let mut rest = bytes;
        let used = |rest: &[u8]| bytes.len() - rest.len();
        if !self.begun.0 {
            match rest.split_first_chunk() {
                Some((magic, after)) if magic == MAGIC => {
                    self.begun.0 = true;
                    rest = after;
                }
                Some(_) => {
                    let error = "does not begin with `gem5`: no packet trace, or one that is \
                                 compressed otherwise than by gzip, xz or zstd";
                    return Step { used: 0, error: Some(error.into()) };
                }
                None => return Step { used: 0, error: None },
            }
        }
        while !out.is_full() {
            let at = offset + used(rest) as u64;
            let fail = |decoder: &Self, what: &str, rest: &[u8]| Step {
                used: used(rest),
                error: Some(decoder.at(at, what)),
            };
            let (length, after) = match varint(rest) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(what) => return fail(self, what, rest),
            };
            if length > LONGEST {
                return fail(self, &format!("a message of {length} bytes"), rest);
            }
            let Some((message, after)) = after.split_at_checked(length as usize) else { break };
            let taken = if self.begun.1 {
                packet(message).and_then(|p| self.take(&p, out))
            } else {
                fields(message, |_, _| {})
            };
            if let Err(what) = taken {
                return fail(self, what, rest);
            }
            self.packets += u64::from(self.begun.1);
            self.begun.1 = true;
            rest = after;
        }
        Step { used: used(rest), error: None }
    }

    fn finish(&mut self, rest: &[u8], offset: u64, _: &mut BatchBuilder) -> Result<(), String> {
        if !rest.is_empty() || !self.begun.1 {
            let left = rest.len();
            return Err(self.at(offset, &format!("{left} bytes are left: the trace was cut off")));
        }
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("records", self.packets),
            ("fetch packets", self.fetches),
            ("data packets", self.data),
            ("prefetches left out", self.prefetches),
            ("packets of other commands left out", self.other_commands),
            ("packets without an address left out", self.without_address),
        ]
    }

    fn info(&self) -> SourceInfo {
        let mut approximations = vec![
            "gem5 packets: addresses are those of the port that was watched, physical ones behind the \
             MMU; how many instructions retired is not known, so there are no rates per instruction"
                .to_owned(),
        ];
        if let Some((least, greatest)) = self.others {
            approximations.push(format!(
                "{} packets with commands {least} to {greatest} were left out: neither reads (1) nor \
                 writes (4), and versions of gem5 number them differently",
                self.other_commands
            ));
        }
        if self.prefetches > 0 {
            approximations.push(format!("{} prefetches were left out", self.prefetches));
        }
        if self.without_address > 0 {
            approximations
                .push(format!("{} packets without an address were left out", self.without_address));
        }
        SourceInfo {
            description: "packet trace of gem5, one process".into(),
            knows_lines: true,
            knows_pc: self.data > 0 && self.with_pc == self.data,
            has_fetches: self.fetches > 0,
            approximations,
            ..SourceInfo::default()
        }
    }
}

/// Whether these bytes, the start of a file, are those of a packet trace.
fn matches(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

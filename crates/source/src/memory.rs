//! Accesses that lie in the memory of the program which runs the experiment.

use crate::decoder::ONLY_PROCESS;
use nestwalk_types::{
    AccessKind, Batch, BatchBuilder, Control, Gva, Room, Source, SourceError, SourceInfo, VcpuId,
};

/// Accesses that are taken over at once.
const PIECE: usize = 1 << 14;
/// Bytes of an access that says nothing of its size.
const BYTES: u32 = 1;

/// An access, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Virtual address.
    pub address: u64,
    /// A store, or else a load.
    pub is_store: bool,
}

/// Whoever has the accesses.
pub trait Accesses: Send {
    /// How many there are.
    fn len(&self) -> u64;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Adds those from `from` on to `out`, `most` at most: none only at the end.
    ///
    /// # Errors
    /// The memory cannot be read any more: why.
    fn read(&mut self, from: u64, most: usize, out: &mut Vec<Access>) -> Result<(), String>;
}

/// Accesses as the bytes that their hash is of: addresses, little-endian, and then a byte each.
pub fn to_bytes(accesses: &[Access], out: &mut Vec<u8>) {
    out.clear();
    for access in accesses {
        out.extend_from_slice(&access.address.to_le_bytes());
    }
    out.extend(accesses.iter().map(|access| u8::from(access.is_store)));
}

/// The accesses of one process, in order.
struct Memory {
    name: String,
    accesses: Box<dyn Accesses>,
    builder: BatchBuilder,
    piece: Vec<Access>,
    /// How much of `piece` is used up.
    used: usize,
    /// Accesses that were taken over.
    position: u64,
    /// Why no more can be.
    failed: Option<String>,
}

/// A source of accesses in memory. Its one process is mapped where it touches memory, as that of a trace
/// without mappings; instructions are not known.
pub fn source(name: &str, accesses: Box<dyn Accesses>) -> Box<dyn Source> {
    let mut builder = BatchBuilder::new();
    builder.control(Control::Switch { vcpu: VcpuId(0), process: ONLY_PROCESS });
    builder.control(Control::RegionOfInterest);
    let (name, piece) = (name.to_owned(), Vec::new());
    Box::new(Memory { name, accesses, builder, piece, used: 0, position: 0, failed: None })
}

impl Memory {
    /// Whether there is another access in `piece`.
    fn refill(&mut self) -> bool {
        if self.used == self.piece.len() && self.failed.is_none() {
            self.piece.clear();
            self.used = 0;
            self.failed = self.accesses.read(self.position, PIECE, &mut self.piece).err();
            self.position += self.piece.len() as u64;
        }
        self.used < self.piece.len()
    }
}

impl Source for Memory {
    fn info(&self) -> SourceInfo {
        SourceInfo {
            name: self.name.clone(),
            description: "addresses in memory, one process".into(),
            knows_lines: true,
            approximations: vec![
                "addresses in memory hold no sizes: accesses that cross into a second page are counted once"
                    .into(),
                "instructions and their number are not known".into(),
            ],
            total: Some(self.accesses.len()),
            ..SourceInfo::default()
        }
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        while !self.builder.is_full() && self.refill() {
            let access = self.piece[self.used];
            self.used += 1;
            let kind = if access.is_store { AccessKind::Store } else { AccessKind::Load };
            let (pc, gva) = (Gva::new(0), Gva::new(access.address));
            self.builder.access(VcpuId(0), pc, gva, BYTES, kind, 0);
        }
        self.builder.take_into(batch);
        match (batch.is_empty(), &self.failed) {
            (true, Some(message)) => {
                Err(SourceError { source: self.name.clone(), message: message.clone() })
            }
            (empty, _) => Ok(!empty),
        }
    }

    fn set_room(&mut self, room: Room) -> bool {
        self.builder.set_room(room);
        true
    }

    fn position(&self) -> u64 {
        self.position - (self.piece.len() - self.used) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Some64(Vec<Access>);

    impl Accesses for Some64 {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn read(&mut self, from: u64, most: usize, out: &mut Vec<Access>) -> Result<(), String> {
            out.extend(self.0.iter().skip(from as usize).take(most));
            Ok(())
        }
    }

    #[test]
    fn every_access_comes_once_and_in_order() {
        let n = 3 * PIECE as u64 + 5;
        let page = |i: u64| 0x10_0000 + ((i * 7919 % n) << 12);
        let all = (0..n).map(|i| Access { address: page(i), is_store: i % 3 == 0 });
        let mut source = source("array:x", Box::new(Some64(all.collect())));
        let (mut batch, mut at) = (Batch::default(), 0);
        while source.next_batch(&mut batch).unwrap() {
            for run in &batch.runs {
                let found = (run.gva.value(), run.count, run.flags.is_store(), run.instructions);
                assert_eq!(found, (page(at), 1, at % 3 == 0, 0));
                at += 1;
            }
            assert_eq!(source.position(), at);
        }
        assert_eq!(Some(at), source.info().total);
        // Behind the end there is an end.
        assert!(!source.next_batch(&mut batch).unwrap());
    }
}

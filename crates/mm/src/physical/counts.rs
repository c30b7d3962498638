//! A small number per frame, held only where it is not zero.

const CHUNK_SHIFT: u32 = 9;
const CHUNK: usize = 1 << CHUNK_SHIFT;

/// Numbers by frame, zero at first, in chunks of 512 frames that exist while one in them is not zero.
#[derive(Debug, Default)]
pub struct FrameCounts {
    chunks: Vec<Option<Box<Chunk>>>,
}

#[derive(Debug)]
struct Chunk {
    counts: [u32; CHUNK],
    /// How many of them are not zero.
    used: u32,
}

impl FrameCounts {
    /// All zero.
    pub const fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// The frame's number.
    #[inline]
    pub fn get(&self, frame: u64) -> u32 {
        match self.chunks.get((frame >> CHUNK_SHIFT) as usize) {
            Some(Some(chunk)) => chunk.counts[frame as usize & (CHUNK - 1)],
            _ => 0,
        }
    }

    /// Replaces the frame's number.
    pub fn set(&mut self, frame: u64, count: u32) {
        let index = (frame >> CHUNK_SHIFT) as usize;
        if index >= self.chunks.len() {
            if count == 0 {
                return;
            }
            self.chunks.resize_with(index + 1, || None);
        }
        let place = &mut self.chunks[index];
        if count == 0 && place.is_none() {
            return;
        }
        let chunk = place.get_or_insert_with(|| Box::new(Chunk { counts: [0; CHUNK], used: 0 }));
        let old = std::mem::replace(&mut chunk.counts[frame as usize & (CHUNK - 1)], count);
        chunk.used += u32::from(old == 0 && count != 0);
        chunk.used -= u32::from(old != 0 && count == 0);
        if chunk.used == 0 {
            *place = None;
        }
    }

    /// Whether every frame's number is zero.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;
    use std::collections::BTreeMap;

    #[test]
    fn agrees_with_a_map_and_gives_memory_back() {
        let (mut subject, mut oracle) = (FrameCounts::default(), BTreeMap::new());
        let mut r = SplitMix64::new(2);
        for _ in 0..20_000 {
            let (frame, count) = (r.below(40) * 100, r.below(3) as u32);
            subject.set(frame, count);
            oracle.insert(frame, count);
            let frame = r.below(40) * 100;
            assert_eq!(subject.get(frame), oracle.get(&frame).copied().unwrap_or(0));
        }
        for frame in oracle.keys() {
            subject.set(*frame, 0);
        }
        assert!(subject.is_empty());
    }
}

//! How fragmented memory is at the start: a degree, or how many free blocks of each order there
//! are, as Linux says in `/proc/buddyinfo`.

use crate::error::MmError;
use crate::physical::PhysicalMemory;
use crate::physical::free_blocks::{FreeBlocks, ORDERS};
use nestwalk_types::{Address, SplitMix64};

/// Frames of the largest block that Linux lists.
const LARGEST: u64 = 1 << (ORDERS - 1);
/// Frames of a page block, of which Linux says whether what is in it can be moved.
const PAGE_BLOCK: u64 = 512;

/// Fragmentation of memory at the start.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fragmentation {
    /// Share of 2 MiB blocks with frames in use that nobody can move, 0 to 1.
    Degree(f64),
    /// Free blocks by order; only their proportions matter.
    Blocks(FreeBlocks),
}

impl Default for Fragmentation {
    fn default() -> Self {
        Self::Degree(0.0)
    }
}

impl From<f64> for Fragmentation {
    fn from(degree: f64) -> Self {
        Self::Degree(degree)
    }
}

impl FreeBlocks {
    /// How many blocks of each order `largest` blocks of the largest order can be cut into, in
    /// these proportions, with as little in use as possible; and how many blocks of each order have
    /// something in use.
    ///
    /// Of two halves of a block at most one is free as a whole, else they were one block. So with
    /// `s * n[o]` free blocks of order `o`, `s * n[o]` is at most the number of blocks of the next
    /// order that are not free as a whole.
    fn cut(&self, largest: u64) -> ([u64; ORDERS], [u64; ORDERS]) {
        let top = ORDERS - 1;
        let n = self.blocks.map(|n| n as f64);
        let mut scale = if n[top] > 0.0 { largest as f64 / n[top] } else { f64::INFINITY };
        for o in (0..top).rev() {
            // Blocks of order o + 1 that are cut: what all larger ones leave.
            let whole = largest as f64 * f64::from(1u32 << (top - o - 1));
            let above: f64 = (o + 1..=top).map(|j| n[j] * f64::from(1u32 << (j - o - 1))).sum();
            if n[o] + above > 0.0 {
                scale = scale.min(whole / (n[o] + above));
            }
        }
        let (mut free, mut cut) = ([0; ORDERS], [0; ORDERS]);
        let mut blocks = largest;
        for o in (0..=top).rev() {
            let most = if o == top { largest } else { cut[o + 1] };
            free[o] = ((n[o] * scale).round() as u64).min(most).min(blocks);
            cut[o] = blocks - free[o];
            blocks = 2 * cut[o];
        }
        (free, cut)
    }
}

/// What is left to be laid out, by order: free blocks, and blocks with something in use.
struct Quota {
    free: [u64; ORDERS],
    cut: [u64; ORDERS],
    random: SplitMix64,
}

impl Quota {
    /// Whether one of `among` that are left is to be one of `wanted`.
    fn draw(&mut self, wanted: u64, among: u64) -> bool {
        wanted > 0 && self.random.below(among.max(1)) < wanted
    }

    /// A block of `order` has something in use: one of its halves may be free as a whole.
    fn lay_out(&mut self, frame: u64, order: usize, used: &mut Vec<u64>) {
        let left = self.cut[order];
        self.cut[order] = left.saturating_sub(1);
        if order == 0 {
            used.push(frame);
            return;
        }
        let half = 1u64 << (order - 1);
        let halves = [frame, frame + half];
        if self.draw(self.free[order - 1], left) {
            self.free[order - 1] -= 1;
            let which = self.random.below(2) as usize;
            self.lay_out(halves[which], order - 1, used);
        } else {
            halves.into_iter().for_each(|h| self.lay_out(h, order - 1, used));
        }
    }
}

impl<O: Address> PhysicalMemory<O> {
    /// Starts fragmented, by degree or with free blocks in given proportions. By degree: in each
    /// whole 2 MiB block, with probability `degree`, one to eight 4 KiB
    /// frames at random places are in use for good, as kernel objects that cannot be moved would
    /// be.
    ///
    /// So `degree` is about the share of free memory that no 2 MiB page can use
    /// ([`PhysicalMemory::fmfi`] of order 9), which is how studies of huge pages say how fragmented
    /// memory is, while at most 8 of a block's 512 frames are lost. The number per block is a
    /// choice
    /// of this model: it decides which contiguity below 2 MiB remains.
    ///
    /// # Errors
    /// A degree that is not in 0..=1, or no free blocks.
    pub fn fragment(
        &mut self,
        fragmentation: impl Into<Fragmentation>,
        seed: u64,
    ) -> Result<(), MmError> {
        let degree = match fragmentation.into() {
            Fragmentation::Degree(degree) => degree,
            Fragmentation::Blocks(blocks) => return self.fragment_to(&blocks, seed),
        };
        if !(0.0..=1.0).contains(&degree) {
            return Err(MmError::Fragmentation(degree));
        }
        let mut random = SplitMix64::new(seed);
        for (start, bytes) in self.ranges.clone() {
            let (first, end) = (start.page_number().div_ceil(512), (start.value() + bytes) >> 21);
            for block in first..end {
                if random.unit() < degree {
                    for _ in 0..=random.below(8) {
                        let frame = block << 9 | random.below(512);
                        self.pinned += u64::from(self.alloc_at(O::new(frame << 12), 0));
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts with free blocks in the proportions of `blocks`, at random places. The frames between
    /// them are in use by others, for good; they can be moved, but for those in page blocks that the
    /// numbers have as immovable. Blocks of 4 MiB with something in use already stay as they are.
    ///
    /// # Errors
    /// No block at all.
    pub(crate) fn fragment_to(&mut self, blocks: &FreeBlocks, seed: u64) -> Result<(), MmError> {
        blocks.check().map_err(MmError::FreeBlocks)?;
        let whole: Vec<u64> = self
            .free_runs()
            .into_iter()
            .flat_map(|r| {
                let first = r.start.next_multiple_of(LARGEST);
                (first..r.end).step_by(LARGEST as usize).filter(move |f| f + LARGEST <= r.end)
            })
            .collect();
        let (free, cut) = blocks.cut(whole.len() as u64);
        let mut quota = Quota { free, cut, random: SplitMix64::new(seed) };
        let top = ORDERS - 1;
        // Blocks of the largest order that are not free as a whole have two page blocks each.
        let mut in_use = 2 * cut[top];
        let mut immovable = blocks.immovable_of(2 * whole.len() as u64).min(in_use);
        let mut which = SplitMix64::new(seed ^ 0x6d6f_7661_626c_6500);
        let mut used = Vec::new();
        for (i, block) in whole.iter().enumerate() {
            let left = (whole.len() - i) as u64;
            if quota.draw(quota.free[top], left) {
                quota.free[top] -= 1;
                continue;
            }
            quota.lay_out(*block, top, &mut used);
            used.sort_unstable();
            let fixed = [(); 2].map(|()| {
                let fixed = immovable > 0 && which.below(in_use.max(1)) < immovable;
                in_use = in_use.saturating_sub(1);
                immovable -= u64::from(fixed);
                fixed
            });
            for frame in used.drain(..) {
                self.poison(O::new(frame << 12));
                if !fixed[((frame - block) / PAGE_BLOCK) as usize] {
                    self.movable.push(frame);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::free_blocks::FREE_BLOCKS;
    use nestwalk_types::Gpa;

    const REAL: &str = "\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n\
Node 0, zone    DMA32   1161   1118    882    682    461    309    207    152    129    109    601 \n\
Node 0, zone   Normal  16727  15932   6296  10070  10263   7671   2291    957    250     28      4 \n";

    fn memory(bytes: u64) -> PhysicalMemory<Gpa> {
        PhysicalMemory::new(&[(Gpa::new(0), bytes)], 0).unwrap()
    }

    /// Free memory by order, in percent, larger blocks counted as several of the largest.
    fn shares(m: &PhysicalMemory<Gpa>) -> [f64; ORDERS] {
        let mut frames = [0.0; ORDERS];
        for (_, buddy) in m.zones() {
            for (o, n) in buddy.free_blocks().iter().enumerate() {
                frames[o.min(ORDERS - 1)] += (n << o) as f64;
            }
        }
        frames.map(|f| 100.0 * f / m.free_frames() as f64)
    }

    #[test]
    fn zones_are_summed_and_memory_gets_these_shares() {
        let real = FreeBlocks::parse(REAL).unwrap();
        assert_eq!(FreeBlocks::by_name("aged"), Some(real));
        for blocks in FREE_BLOCKS.iter().map(|f| f.1) {
            let frames: Vec<f64> = (0..ORDERS).map(|o| (blocks.blocks[o] << o) as f64).collect();
            let total: f64 = frames.iter().sum();
            for seed in [1, 2] {
                let mut m = memory(2 << 30);
                m.fragment(Fragmentation::Blocks(blocks), seed).unwrap();
                for (o, share) in shares(&m).into_iter().enumerate() {
                    let wanted = 100.0 * frames[o] / total;
                    // The first MiB is in use, and the rest of its block is free.
                    assert!((share - wanted).abs() < 0.3, "order {o}: {share} {wanted}");
                }
                let used = m.pinned_frames() + m.free_frames();
                assert_eq!(used, m.bytes() >> 12);
            }
        }
    }

    #[test]
    fn no_more_is_in_use_than_must_be() {
        // One frame of two, by the argument of `cut`; and a frame of each 4 MiB.
        for (blocks, share) in [([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0.5), ([1; 11], 0.0005)] {
            let mut m = memory(1 << 30);
            m.fragment(Fragmentation::Blocks(FreeBlocks::new(blocks)), 3).unwrap();
            let pinned = m.pinned_frames() as f64 / (m.bytes() >> 12) as f64;
            assert!((pinned - share).abs() < 0.002, "{pinned} {share}");
        }
    }

    #[test]
    fn so_many_page_blocks_hold_what_cannot_be_moved() {
        for (immovable, all) in [(0, 0), (0, 8), (1, 8), (1, 2), (1, 1)] {
            let bad = FreeBlocks::by_name("bad").unwrap();
            let free = FreeBlocks { immovable: (immovable, all), ..bad };
            let mut m = memory(1 << 30);
            m.fragment(Fragmentation::Blocks(free), 5).unwrap();
            // No free block is as large as a page block, so each has something in use.
            let mut blocks: Vec<u64> = m.movable.iter().map(|f| f / PAGE_BLOCK).collect();
            blocks.dedup();
            let share = 1.0 - blocks.len() as f64 / 512.0;
            let wanted = if all == 0 { 0.0 } else { immovable as f64 / all as f64 };
            assert!((share - wanted).abs() < 0.06, "{share} {wanted}");
        }
    }
}

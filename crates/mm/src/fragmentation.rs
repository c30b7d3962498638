//! How fragmented memory is at the start: a degree, or how many free blocks of each order there
//! are,
//! as Linux says in `/proc/buddyinfo`.

use crate::LINUX_MAX_ORDER;
use crate::error::MmError;
use crate::physical::PhysicalMemory;
use nestwalk_types::{Address, SplitMix64};

const ORDERS: usize = LINUX_MAX_ORDER as usize + 1;
/// Frames of the largest block that Linux lists.
const LARGEST: u64 = 1 << LINUX_MAX_ORDER;

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

/// Numbers of free blocks of 2^0 to 2^10 frames, none of which is part of another: a row of
/// `/proc/buddyinfo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreeBlocks(pub [u64; ORDERS]);

/// Distributions by name: `(name, blocks, where the numbers are from)`.
pub static FREE_BLOCKS: &[(&str, FreeBlocks, &str)] = &[
    (
        "fresh",
        FreeBlocks([2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2000]),
        "assumed: after boot all but a few blocks have the largest order",
    ),
    (
        "aged",
        FreeBlocks([17888, 17050, 7178, 10752, 10724, 7980, 2498, 1109, 380, 138, 608]),
        "/proc/buddyinfo of a machine with builds under way (zones summed)",
    ),
    (
        "bad",
        FreeBlocks([64, 32, 16, 8, 4, 2, 1, 1, 0, 0, 0]),
        "assumed: as much memory in each order up to 32 KiB as in the next, nothing above 512 KiB",
    ),
];

impl FreeBlocks {
    /// The distribution of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        FREE_BLOCKS.iter().find(|f| f.0 == name).map(|f| f.1)
    }

    /// Reads the text of `/proc/buddyinfo`; zones are summed.
    ///
    /// # Errors
    /// What is wrong, beginning with line and column, counted from 1.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut sums = [0u64; ORDERS];
        for (number, line) in text.lines().enumerate().filter(|l| !l.1.trim().is_empty()) {
            let here = |column: usize, what: &str| {
                format!(
                    "line {}, column {}: {what}; a line is like `Node 0, zone Normal 16 12 8 4 2 1 1 0 0 0 3`",
                    number + 1,
                    column + 1
                )
            };
            let Some(zone) = line.find("zone") else {
                return Err(here(0, "no `zone`"));
            };
            let name = line[zone + 4..].find(|c: char| !c.is_whitespace());
            let name =
                name.map(|n| zone + 4 + n).ok_or_else(|| here(line.len(), "no zone's name"))?;
            let mut at = line[name..].find(char::is_whitespace).map_or(line.len(), |n| name + n);
            for (order, sum) in sums.iter_mut().enumerate() {
                let begin = line[at..].find(|c: char| !c.is_whitespace()).map(|n| at + n);
                let begin = begin.ok_or_else(|| {
                    here(
                        line.len(),
                        &format!("only {order} numbers of blocks, {ORDERS} are needed"),
                    )
                })?;
                at = line[begin..].find(char::is_whitespace).map_or(line.len(), |n| begin + n);
                let n: u64 =
                    line[begin..at].parse().ok().filter(|n| *n <= 1 << 40).ok_or_else(|| {
                        here(begin, &format!("`{}` is no number of blocks", &line[begin..at]))
                    })?;
                *sum = sum.saturating_add(n);
            }
            if let Some(more) = line[at..].find(|c: char| !c.is_whitespace()) {
                return Err(here(at + more, &format!("more than {ORDERS} numbers of blocks")));
            }
        }
        let blocks = Self(sums);
        blocks.check()?;
        Ok(blocks)
    }

    /// Whether there is something free, and not more than a machine can have.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.0.iter().all(|n| *n == 0) {
            return Err("no block is free; at least one must be".into());
        }
        if self.0.iter().any(|n| *n > 1 << 44) {
            return Err("more than 2^44 blocks of an order".into());
        }
        Ok(())
    }

    /// How many blocks of each order `largest` blocks of the largest order can be cut into, in
    /// these
    /// proportions, with as little in use as possible; and how many blocks of each order have
    /// something in use.
    ///
    /// Of two halves of a block at most one is free as a whole, else they were one block. So with
    /// `s * n[o]` free blocks of order `o`, `s * n[o]` is at most the number of blocks of the next
    /// order that are not free as a whole.
    fn cut(&self, largest: u64) -> ([u64; ORDERS], [u64; ORDERS]) {
        let top = ORDERS - 1;
        let n = self.0.map(|n| n as f64);
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
    /// Starts with free blocks in the proportions of `blocks`, at random places. The frames between
    /// them are in use by others, for good; they can be moved. Blocks of 4 MiB with something in
    /// use already stay as they are.
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
        let mut used = Vec::new();
        for (i, block) in whole.iter().enumerate() {
            let left = (whole.len() - i) as u64;
            if quota.draw(quota.free[top], left) {
                quota.free[top] -= 1;
                continue;
            }
            quota.lay_out(*block, top, &mut used);
            used.sort_unstable();
            for frame in used.drain(..) {
                self.poison(O::new(frame << 12));
                self.movable.push(frame);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let frames: Vec<f64> = (0..ORDERS).map(|o| (blocks.0[o] << o) as f64).collect();
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
            m.fragment(Fragmentation::Blocks(FreeBlocks(blocks)), 3).unwrap();
            let pinned = m.pinned_frames() as f64 / (m.bytes() >> 12) as f64;
            assert!((pinned - share).abs() < 0.002, "{pinned} {share}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_line_and_column() {
        let error = |text: &str| FreeBlocks::parse(text).unwrap_err();
        let ok = "Node 0, zone Normal 1 2 3 4 5 6 7 8 9 10 11\n";
        for (text, words) in [
            (format!("{ok}nothing"), ["line 2, column 1:", "no `zone`"]),
            (format!("{ok}\nNode 0, zone"), ["line 3, column 13:", "name"]),
            ("Node 0, zone Normal 1 2 x 4".into(), ["line 1, column 25:", "`x` is no number"]),
            ("Node 0, zone Normal 1 2 -3".into(), ["line 1, column 25:", "`-3` is no number"]),
            ("Node 0, zone Normal 1 2 3".into(), ["line 1, column 26:", "only 3 numbers"]),
            (ok.replace('\n', " 12"), ["line 1, column 45:", "more than 11"]),
            (String::new(), ["no block is free", "at least one"]),
            ("Node 0, zone Normal 0 0 0 0 0 0 0 0 0 0 0".into(), ["no block is free", ""]),
        ] {
            let e = error(&text);
            assert!(words.iter().all(|w| e.contains(w)), "{text}: {e}");
        }
    }
}

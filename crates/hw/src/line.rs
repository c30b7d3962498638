//! What a page walk learns of the pages beside the one that it is for: the leaf entries of eight pages
//! lie in one line of the data cache, which the walker has in its hands.

/// Pages whose leaf entries lie in one line of 64 bytes, base-2 logarithm.
pub const LINE_SHIFT: u32 = 3;
/// Pages whose leaf entries lie in one line of 64 bytes.
pub const LINE_PAGES: usize = 1 << LINE_SHIFT;

/// The aligned eight base pages around a walked one, as far as the walk's lines tell where they are.
///
/// A page is *known* if its entry is present and accessed and has the attributes of the walked page's
/// entry, in every dimension; only such a page may share a TLB entry with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Line {
    /// Place of the walked page among the eight.
    pub index: u8,
    /// Known pages, a bit each.
    pub known: u8,
    /// Pages that are as far from the walked one in guest-physical memory as in virtual memory, a bit
    /// each. Natively this follows from the frames.
    pub in_step: u8,
    /// Frame numbers of the known pages.
    pub frames: [u64; LINE_PAGES],
}

impl Line {
    /// Nothing is known but the walked page itself.
    pub fn alone(index: u8, frame: u64) -> Self {
        let mut line = Self { index: index & 7, ..Self::default() };
        line.add(line.index, frame, true);
        line
    }

    /// Page `at` (0..8) is known to be in `frame`.
    pub fn add(&mut self, at: u8, frame: u64, in_step: bool) {
        self.known |= 1 << (at & 7);
        self.in_step |= u8::from(in_step) << (at & 7);
        self.frames[usize::from(at & 7)] = frame;
    }

    /// Whether page `at` continues what the walked page begins, in every dimension.
    fn continues(&self, at: u8) -> bool {
        let (index, both) = (self.index & 7, self.known & self.in_step);
        let distance = u64::from(at).wrapping_sub(u64::from(index));
        let frame = |i: u8| self.frames[usize::from(i & 7)];
        both >> at & 1 == 1 && frame(at) == frame(index).wrapping_add(distance)
    }

    /// The longest run of consecutive pages in consecutive frames around the walked one, in the aligned
    /// `1 << shift` pages around it: place of its first page, and pages (1..=8).
    pub fn run(&self, shift: u32) -> (u8, u8) {
        let (index, shift) = (self.index & 7, shift.min(LINE_SHIFT));
        let (low, high) = (index >> shift << shift, (index >> shift << shift) + (1 << shift));
        let (mut first, mut end) = (index, index + 1);
        while first > low && self.continues(first - 1) {
            first -= 1;
        }
        while end < high && self.continues(end) {
            end += 1;
        }
        (first, end - first)
    }

    /// The known pages whose frames lie in the aligned eight frames of the walked page's: a bit each,
    /// and the places of their frames there, 3 bits each.
    pub fn cluster(&self) -> (u8, u32) {
        let own = self.frames[usize::from(self.index & 7)] >> LINE_SHIFT;
        let (mut pages, mut places) = (0, 0);
        for (i, frame) in self.frames.iter().enumerate() {
            if self.known >> i & 1 == 1 && frame >> LINE_SHIFT == own {
                pages |= 1 << i;
                places |= (*frame as u32 & 7) << (3 * i);
            }
        }
        (pages, places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;

    /// Runs and clusters against a page-by-page map.
    #[test]
    fn runs_and_clusters_are_those_of_a_naive_coalescer() {
        let mut r = SplitMix64::new(3);
        for _ in 0..20_000 {
            let index = r.below(8) as u8;
            let base = 1000 + r.below(16);
            let map: Vec<Option<(u64, bool)>> = (0..8)
                .map(|i| match r.below(8) {
                    0 => None,
                    1 => Some((1000 + r.below(24), true)),
                    2 => Some((base + i, false)),
                    _ => Some((base + i, true)),
                })
                .collect();
            let own = base + u64::from(index);
            let mut line = Line::alone(index, own);
            for (i, page) in map.iter().enumerate().filter(|(i, _)| *i != usize::from(index)) {
                if let Some((frame, in_step)) = page {
                    line.add(i as u8, *frame, *in_step);
                }
            }
            let fits =
                |i: u8| i == index || map[usize::from(i)] == Some((base + u64::from(i), true));
            for shift in 0..=3 {
                let group = index >> shift << shift;
                let mut longest = (index, 1);
                for first in group..=index {
                    for end in index + 1..=group + (1 << shift) {
                        if (first..end).all(fits) && end - first > longest.1 {
                            longest = (first, end - first);
                        }
                    }
                }
                assert_eq!(line.run(shift), longest, "{line:?} {shift}");
            }
            let (pages, places) = line.cluster();
            for (i, other) in map.iter().enumerate() {
                let frame = if i == usize::from(index) { Some(own) } else { other.map(|p| p.0) };
                let inside = frame.filter(|f| f / 8 == own / 8);
                assert_eq!(pages >> i & 1 == 1, inside.is_some());
                assert_eq!(places >> (3 * i) & 7, inside.map_or(0, |f| (f % 8) as u32));
            }
        }
    }
}

//! Free memory as Linux describes it: `/proc/buddyinfo` and `/proc/pagetypeinfo`.

use crate::LINUX_MAX_ORDER;

/// Orders that Linux lists.
pub(crate) const ORDERS: usize = LINUX_MAX_ORDER as usize + 1;

/// Numbers of free blocks of 2^0 to 2^10 frames, none of which is part of another, and how much of
/// memory is there for what cannot be moved. Only proportions matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreeBlocks {
    /// Free blocks by order: a row of `/proc/buddyinfo`.
    pub blocks: [u64; ORDERS],
    /// Of so many page blocks (2 MiB) so many hold what cannot be moved: `(immovable, all)`, 0 of 0
    /// if everything can be moved. `/proc/pagetypeinfo` knows.
    pub immovable: (u64, u64),
}

/// Distributions by name: `(name, blocks, where the numbers are from)`.
pub static FREE_BLOCKS: &[(&str, FreeBlocks, &str)] = &[
    (
        "fresh",
        FreeBlocks::new([2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2000]),
        "assumed: after boot all but a few blocks have the largest order",
    ),
    (
        "aged",
        FreeBlocks::new([17888, 17050, 7178, 10752, 10724, 7980, 2498, 1109, 380, 138, 608]),
        "/proc/buddyinfo of a machine with builds under way (zones summed)",
    ),
    (
        "bad",
        FreeBlocks::new([64, 32, 16, 8, 4, 2, 1, 1, 0, 0, 0]),
        "assumed: as much memory in each order up to 32 KiB as in the next, nothing above 512 KiB",
    ),
];

/// What a line of numbers is like.
const BUDDY_LINE: &str = "a line is like `Node 0, zone Normal 16 12 8 4 2 1 1 0 0 0 3`";
const TYPE_LINE: &str =
    "a line is like `Node 0, zone Normal, type Movable 16 12 8 4 2 1 1 0 0 0 3`";
const COUNT_LINE: &str = "a line is like `Node 0, zone Normal 42 2000 17 0 0`, a number by type";
/// Types of page blocks whose pages the kernel can move.
const MOVABLE: [&str; 2] = ["Movable", "CMA"];
/// Page blocks of other sizes are of kernels without huge pages.
const PAGE_BLOCK_ORDER: &str = "9";

/// A line's words, each with its place.
struct Line<'a> {
    number: usize,
    text: &'a str,
    words: Vec<(usize, &'a str)>,
    like: &'static str,
}

impl<'a> Line<'a> {
    fn all(text: &'a str) -> impl Iterator<Item = Self> {
        let lines = text.lines().enumerate().filter(|l| !l.1.trim().is_empty());
        lines.map(|(number, text)| {
            let at = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
            let words = text.split_whitespace().map(|w| (at(w), w)).collect();
            Self { number, text, words, like: BUDDY_LINE }
        })
    }
    fn error(&self, column: usize, what: &str) -> String {
        format!("line {}, column {}: {what}; {}", self.number + 1, column + 1, self.like)
    }
    /// Index of the word behind a zone's name.
    fn after_zone(&self) -> Result<usize, String> {
        let zone = self.words.iter().position(|w| w.1 == "zone");
        let zone = zone.ok_or_else(|| self.error(0, "no `zone`"))?;
        if self.words.len() < zone + 2 {
            return Err(self.error(self.text.len(), "no zone's name"));
        }
        Ok(zone + 2)
    }
    /// Adds the numbers from a word on, of which there must be as many as sums.
    fn add_to(&self, sums: &mut [u64], first: usize) -> Result<(), String> {
        let words = &self.words[first.min(self.words.len())..];
        for (i, sum) in sums.iter_mut().enumerate() {
            let Some(&(at, word)) = words.get(i) else {
                let what =
                    format!("only {} numbers of blocks, {} are needed", words.len(), sums.len());
                return Err(self.error(self.text.len(), &what));
            };
            // Linux stops counting at 100000, and says so (`pagetypeinfo_showfree_print`).
            let digits = word.strip_prefix('>').unwrap_or(word);
            let n = digits.parse().ok().filter(|n: &u64| *n <= 1 << 40);
            let n = n.ok_or_else(|| self.error(at, &format!("`{word}` is no number of blocks")))?;
            *sum = sum.saturating_add(n);
        }
        match words.get(sums.len()) {
            Some(&(at, _)) => {
                Err(self.error(at, &format!("more than {} numbers of blocks", sums.len())))
            }
            None => Ok(()),
        }
    }
}

impl FreeBlocks {
    /// Free blocks by order; everything between them can be moved.
    pub const fn new(blocks: [u64; ORDERS]) -> Self {
        Self { blocks, immovable: (0, 0) }
    }

    /// The distribution of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        FREE_BLOCKS.iter().find(|f| f.0 == name).map(|f| f.1)
    }

    /// Reads the text of `/proc/buddyinfo` or of `/proc/pagetypeinfo`; zones and types are summed.
    ///
    /// # Errors
    /// What is wrong, beginning with line and column, counted from 1.
    pub fn parse(text: &str) -> Result<Self, String> {
        let found = if text.trim_start().starts_with("Page block order") {
            Self::parse_types(text)?
        } else {
            let mut sums = [0; ORDERS];
            for line in Line::all(text) {
                line.add_to(&mut sums, line.after_zone()?)?;
            }
            Self::new(sums)
        };
        found.check()?;
        Ok(found)
    }

    /// `/proc/pagetypeinfo`: free blocks by type, then numbers of page blocks by type
    /// (`mm/vmstat.c`).
    fn parse_types(text: &str) -> Result<Self, String> {
        let mut found = Self::new([0; ORDERS]);
        let mut types: Option<Vec<&str>> = None;
        for mut line in Line::all(text) {
            let words: Vec<&str> = line.words.iter().map(|w| w.1).collect();
            match words.as_slice() {
                ["Page", "block", "order:", order, ..] if *order != PAGE_BLOCK_ORDER => {
                    return Err(format!(
                        "line {}: page blocks of order {order}: only order {PAGE_BLOCK_ORDER} is \
                         known, 2 MiB, which x86-64 has with huge pages",
                        line.number + 1
                    ));
                }
                ["Page" | "Pages" | "Free", ..] => {}
                ["Number", "of", "blocks", "type", rest @ ..] => types = Some(rest.to_vec()),
                _ => match &types {
                    Some(types) => {
                        line.like = COUNT_LINE;
                        let mut counts = vec![0; types.len()];
                        line.add_to(&mut counts, line.after_zone()?)?;
                        for (name, n) in types.iter().zip(counts) {
                            found.immovable.1 = found.immovable.1.saturating_add(n);
                            if !MOVABLE.contains(name) {
                                found.immovable.0 = found.immovable.0.saturating_add(n);
                            }
                        }
                    }
                    None => {
                        line.like = TYPE_LINE;
                        let first = line.after_zone()?;
                        if words.get(first) != Some(&"type") {
                            return Err(line.error(0, "no `type`"));
                        }
                        line.add_to(&mut found.blocks, first + 2)?;
                    }
                },
            }
        }
        Ok(found)
    }

    /// Whether there is something free, and not more than a machine can have.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.blocks.iter().all(|n| *n == 0) {
            return Err("no block is free; at least one must be".into());
        }
        if self.blocks.iter().any(|n| *n > 1 << 44) {
            return Err("more than 2^44 blocks of an order".into());
        }
        if self.immovable.0 > self.immovable.1 {
            return Err("more page blocks are immovable than there are".into());
        }
        Ok(())
    }

    /// How many of so many page blocks hold what cannot be moved.
    pub(crate) const fn immovable_of(&self, page_blocks: u64) -> u64 {
        let (immovable, all) = self.immovable;
        if all == 0 {
            return 0;
        }
        // Rounded to the nearest; numbers of blocks are below 2^44, so nothing overflows.
        ((immovable as u128 * page_blocks as u128 + all as u128 / 2) / all as u128) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: &str = "\
Page block order: 9
Pages per block:  512

Free pages count per migrate type at order       0      1      2      3      4      5      6      7      8      9     10 
Node    0, zone      DMA, type    Unmovable      1      0      0      1      2      1      1      0      1      0      0 
Node    0, zone      DMA, type      Movable      0      0      0      0      0      0      0      0      0      1      3 
Node    0, zone   Normal, type    Unmovable     20      9      1      0      0      0      0      0      0      0      0 
Node    0, zone   Normal, type      Movable >100000     40     30     20     10      5      4      3      2      1      7 
Node    0, zone   Normal, type  Reclaimable      3      2      1      0      0      0      0      0      0      0      0 

Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic          CMA      Isolate 
Node 0, zone      DMA            1            7            0            0            0            0 
Node 0, zone   Normal           99          800           80           10           10            3 
";

    #[test]
    fn page_types_are_summed() {
        let found = FreeBlocks::parse(TYPES).unwrap();
        assert_eq!(found.blocks, [100_024, 51, 32, 21, 12, 6, 5, 3, 3, 2, 10]);
        // Unmovable, reclaimable, high atomic and isolated page blocks.
        assert_eq!(found.immovable, (1 + 99 + 80 + 10 + 3, 8 + 1002));
        assert_eq!(found.immovable_of(1010), 193);
        assert_eq!(found.immovable_of(2020), 386);
        assert_eq!(FreeBlocks::new([1; ORDERS]).immovable_of(7), 0);
    }

    #[test]
    fn wrong_page_types_are_named() {
        let error = |from: &str, to: &str| FreeBlocks::parse(&TYPES.replace(from, to)).unwrap_err();
        let e = error("order: 9", "order: 10");
        assert!(e.contains("line 1") && e.contains("only order 9"), "{e}");
        let e = error("DMA, type    Unmovable ", "DMA  ");
        assert!(e.contains("line 5") && e.contains("no `type`"), "{e}");
        let e = error("      7 \n", "      x \n");
        assert!(e.contains("line 8") && e.contains("`x` is no number"), "{e}");
        let e = error("           10            3", "");
        assert!(e.contains("line 13") && e.contains("only 4 numbers"), "{e}");
        let e = FreeBlocks::parse("Page block order: 9\n").unwrap_err();
        assert!(e.contains("no block is free"), "{e}");
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

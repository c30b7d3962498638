//! What a profile says of TLB arrays beyond their size, of PCIDs, and of a cache of entries.

use crate::geometry::{Geometry, Indexer};
use crate::replacement::Replacement;
use nestwalk_types::PageSize;
use serde::{Deserialize, Serialize};

/// One array of a TLB level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct TlbProfile {
    /// Page sizes that share the array: `4k`, `16k`, `2m`, `4m`, `1g`. `16k` are four aligned base pages
    /// that lie one after the other and are mapped alike: they share an entry.
    pub sizes: Vec<String>,
    /// Entries in all.
    pub entries: u32,
    /// Entries per set; as many as `entries` if fully associative.
    pub ways: u32,
    /// Which way makes room: see [`Replacement`]; `lru` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<String>,
    /// The array holds page-directory entries, too, which take a walk to the leaf table. Second level
    /// only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pdes: bool,
    /// Page sizes that are held as pieces of the next smaller size of the level, and are put into the
    /// first level whole. Second level only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub smashed: Vec<String>,
    /// Where the numbers come from.
    pub source: String,
    /// How page numbers are spread over the sets; by the remainder if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexProfile>,
}

/// How page numbers are spread over sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IndexProfile {
    /// `linear`: the remainder. `xor-N`: the lowest N bits of the page number, each with the bit N
    /// places above.
    Named(String),
    /// Each bit of the set, lowest first, by the bits of the page number whose exclusive or it is.
    Xor {
        /// A list of bits for each bit of the set.
        xor: Vec<Vec<u32>>,
    },
}

/// Highest bit of a page number that tags keep apart.
const HIGHEST_BIT: u32 = 44;

impl IndexProfile {
    /// The index of a structure of so many sets.
    ///
    /// # Errors
    /// What is wrong and what would be right.
    pub fn indexer(&self, sets: u32) -> Result<Indexer, String> {
        let bits = sets.trailing_zeros();
        let fits = |given: u32, what: &str| {
            if sets.is_power_of_two() && given == bits {
                return Ok(());
            }
            let right = if sets.is_power_of_two() {
                format!("{sets} sets have {bits}")
            } else {
                format!("{sets} sets are no power of two: their index must be linear")
            };
            Err(format!("{what} gives {given} bits of a set, but {right}"))
        };
        match self {
            Self::Named(name) if name == "linear" => Ok(Indexer::new(sets)),
            Self::Named(name) => {
                let n = name.strip_prefix("xor-").and_then(|n| n.parse().ok());
                let n: u32 = n.ok_or_else(|| {
                    format!("index `{name}`: use linear, xor-N or {{ xor = [[BIT, BIT], ...] }}")
                })?;
                fits(n, &format!("index `{name}`"))?;
                Ok(Indexer::xor(&(0..n).map(|i| 1 << i | 1 << (i + n)).collect::<Vec<_>>()))
            }
            Self::Xor { xor } => {
                fits(xor.len() as u32, "index xor")?;
                let mut masks = Vec::new();
                for (i, of) in xor.iter().enumerate() {
                    if of.is_empty() {
                        return Err(format!("index xor: bit {i} of the set has no bits"));
                    }
                    if let Some(bit) = of.iter().find(|b| **b > HIGHEST_BIT) {
                        return Err(format!(
                            "index xor: bit {bit} of a page number: use 0 to {HIGHEST_BIT}"
                        ));
                    }
                    masks.push(of.iter().fold(0, |mask, bit| mask ^ 1 << bit));
                }
                if !independent(&masks) {
                    let problem = "index xor: some set is never used: no bit of the set may be the \
                                   exclusive or of others";
                    return Err(problem.into());
                }
                Ok(Indexer::xor(&masks))
            }
        }
    }
}

/// Whether no mask is the exclusive or of others, by elimination.
fn independent(masks: &[u64]) -> bool {
    let mut rows: Vec<u64> = Vec::new();
    for mask in masks {
        let rest = rows.iter().fold(*mask, |m, row| m.min(m ^ row));
        if rest == 0 {
            return false;
        }
        rows.push(rest);
        rows.sort_unstable_by(|a, b| b.cmp(a));
    }
    true
}

impl TlbProfile {
    /// The page sizes; unknown ones were refused when the profile was read.
    pub fn page_sizes(&self) -> impl Iterator<Item = PageSize> {
        self.sizes.iter().filter_map(|s| parse_page_size(s))
    }
    /// Geometry, checked when the profile was read.
    pub const fn geometry(&self) -> Geometry {
        Geometry { entries: self.entries, ways: self.ways }
    }
    /// The index; linear if it is left out. It was checked when the profile was read.
    pub fn indexer(&self) -> Indexer {
        let sets = self.geometry().sets();
        let given = self.index.as_ref().and_then(|index| index.indexer(sets).ok());
        given.unwrap_or_else(|| Indexer::new(sets))
    }
    /// The replacement; LRU if it is left out. It was checked when the profile was read.
    pub fn replacement(&self) -> Replacement {
        let given = self.replacement.as_deref().and_then(|name| Replacement::parse(name).ok());
        given.unwrap_or_default()
    }
    /// Whether pages are spread by the remainder and replaced by order of use.
    pub fn is_plain(&self) -> bool {
        let linear = match &self.index {
            None => true,
            Some(IndexProfile::Named(name)) => name == "linear",
            Some(IndexProfile::Xor { .. }) => false,
        };
        linear && self.replacement() == Replacement::Lru
    }
}

/// What the TLBs do with PCIDs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcidProfile {
    /// The processor has PCIDs. Without them tags are ignored, and every load of CR3 flushes.
    #[serde(default = "yes")]
    pub supported: bool,
    /// PCIDs whose entries the first-level data TLB holds at once; 0: every load of CR3 empties it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l1d: Option<u32>,
    /// The same of the first-level instruction TLB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l1i: Option<u32>,
    /// The same of the second level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<u32>,
    /// Where this comes from.
    pub source: String,
}

const fn yes() -> bool {
    true
}

impl Default for PcidProfile {
    fn default() -> Self {
        Self { supported: true, l1d: None, l1i: None, l2: None, source: String::new() }
    }
}

impl PcidProfile {
    /// Nothing is said.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// A cache of entries of page tables by where they lie in memory (their host-physical address). A walk
/// goes entry by entry, and each that is found makes no reference to memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryCacheProfile {
    /// Entries in all.
    pub entries: u32,
    /// Entries per set.
    pub ways: u32,
    /// The lowest level of which it holds entries: 2 or more, since leaf tables' are the TLB's.
    pub lowest_level: u8,
    /// Where the numbers come from.
    pub source: String,
}

impl EntryCacheProfile {
    /// Geometry, checked when the profile was read.
    pub const fn geometry(&self) -> Geometry {
        Geometry { entries: self.entries, ways: self.ways }
    }
}

/// The page size of a short name.
pub fn parse_page_size(name: &str) -> Option<PageSize> {
    [PageSize::SIZE_4K, PageSize::SIZE_16K, PageSize::SIZE_2M, PageSize::SIZE_4M, PageSize::SIZE_1G]
        .into_iter()
        .find(|s| s.short() == name)
}

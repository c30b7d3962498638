//! Synthetic patterns: streams whose behaviour is known in closed form.

mod generate;
mod parse;
mod zipf;

pub use generate::PatternSource;
pub use parse::PatternError;

use nestwalk_types::Gva;

/// How the addresses of a pattern follow from each other. The region is seen as `n` slots of the
/// access size, and access number `i` counts from 0.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pattern {
    /// Slot `i mod n`.
    Sequential,
    /// Byte `i * bytes` modulo the footprint, rounded down to a slot.
    Stride {
        /// Distance between accesses.
        bytes: u64,
    },
    /// A random slot.
    Uniform,
    /// A random slot of item number `k` (from 1, of `m`) with a probability proportional to
    /// `1 / k^theta`. Items are scattered over the region by a fixed permutation.
    Zipf {
        /// The exponent, at least 0. YCSB's is 0.99.
        theta: f64,
        /// Bytes of an item, a power of two.
        item: u64,
    },
    /// The first slot of the next node on a random cycle through all nodes.
    Chase {
        /// Bytes of a node, a power of two.
        node: u64,
    },
}

impl Pattern {
    /// Names on the command line, `phases` apart.
    pub const NAMES: [&'static str; 5] = ["sequential", "stride", "uniform", "zipf", "chase"];

    /// Index in [`Pattern::NAMES`].
    const fn index(&self) -> usize {
        match self {
            Self::Sequential => 0,
            Self::Stride { .. } => 1,
            Self::Uniform => 2,
            Self::Zipf { .. } => 3,
            Self::Chase { .. } => 4,
        }
    }
    /// The name on the command line.
    pub const fn name(&self) -> &'static str {
        Self::NAMES[self.index()]
    }
    /// Address of the load (`store` false) or store instruction of this pattern.
    pub const fn pc(&self, store: bool) -> Gva {
        Gva::new(0x40_1000 + 0x40 * self.index() as u64 + if store { 0x10 } else { 0 })
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.name();
        match self {
            Self::Sequential | Self::Uniform => f.write_str(name),
            Self::Stride { bytes } => write!(f, "{name}:stride={bytes}"),
            Self::Zipf { theta, item } => write!(f, "{name}:theta={theta},item={item}"),
            Self::Chase { node } => write!(f, "{name}:node={node}"),
        }
    }
}

/// A pattern, or several in turn, with everything that decides the stream.
#[derive(Clone, PartialEq, Debug)]
pub struct PatternSpec {
    /// The patterns; the accesses are divided equally among them, in this order. At least one.
    pub phases: Vec<Pattern>,
    /// Bytes of the region that all phases share; a multiple of 4 KiB.
    pub footprint: u64,
    /// Bytes of an access: a power of two from 1 to 64.
    pub access_bytes: u32,
    /// Share of accesses that are loads, from 0 to 1. Stores are spread evenly.
    pub reads: f64,
    /// Accesses in all.
    pub accesses: u64,
    /// Decides everything random.
    pub seed: u64,
    /// vCPUs, threads of one process; accesses rotate between them.
    pub vcpus: u8,
    /// Accesses that one vCPU makes before the next has its turn.
    pub chunk: u32,
    /// Instructions that retire with an access, itself included. Default 4, within the 2.5 to 4
    /// instructions per memory access that compiled programs show.
    pub instructions: u32,
    /// Whether all pages are made present before the region of interest. Default: up to 64 GiB.
    pub populate: Option<bool>,
}

impl Default for PatternSpec {
    fn default() -> Self {
        Self {
            phases: vec![Pattern::Uniform],
            footprint: 1 << 30,
            access_bytes: 8,
            reads: 1.0,
            accesses: 50_000_000,
            seed: 1,
            vcpus: 1,
            chunk: 1000,
            instructions: 4,
            populate: None,
        }
    }
}

impl PatternSpec {
    /// First address of the region: 1 GiB, so that up to 3 GiB lie in 32-bit address spaces and
    /// every page size is aligned.
    pub const BASE: Gva = Gva::new(1 << 30);
    /// Largest footprint: 64 TiB, in the lower half of a 48-bit address space.
    pub const FOOTPRINT_MAX: u64 = 64 << 40;
    /// Largest footprint that is populated unless asked for.
    const POPULATE_MAX: u64 = 64 << 30;

    /// The stream of this specification. Values out of range are brought into it; use
    /// [`PatternSpec::check`] to have them named.
    pub fn source(&self) -> PatternSource {
        PatternSource::new(self.clone())
    }

    /// Whether set-up makes all pages present.
    pub fn populates(&self) -> bool {
        self.populate.unwrap_or(self.footprint <= Self::POPULATE_MAX)
    }

    /// The text that [`PatternSpec::parse`] makes this from, parameters of the patterns included.
    pub fn name(&self) -> String {
        let phases: Vec<_> = self.phases.iter().map(Pattern::to_string).collect();
        match &phases[..] {
            [one] => one.clone(),
            several => format!("phases:{}", several.join("/")),
        }
    }
}

#[cfg(test)]
mod tests;

//! `revelator`: nested paging beside which hardware fetches the data from where the page probably is
//! (Kanellopoulos et al., "Revelator", arXiv 2508.02007). The OS puts a page at one of a few hashes of
//! its number (placement `tiered`, in `mm/placement/tiers.rs`), and the VMM's host does so with guest
//! memory. After a miss of the last level of TLBs hardware computes the same hashes: of the page a few
//! guest frames, of each of these a few host frames. It fetches the line from each of them while the
//! walk goes on, and the program uses the walk's translation.
//!
//! - *A right guess* has the line in the first-level cache, or on its way there, when the walk ends.
//!   What is left of its latency then is `late_data_cycles`. (The released engine, `revelator.cc` of the
//!   simulator Virtuoso, read, has it in the second level.)
//! - *A wrong one* costs a reference to a line that nobody wanted, and no flush: nothing was computed.
//! - *Hardware knows* where memory lies in both dimensions, and of each part of guest memory the
//!   distance to the VMM's addresses, which the host's pages are numbered by (chosen).
//!
//! Left out: the guess of the last page table's entry, since page tables here are at no hashes; the
//! released engine's own mode of data alone is that. Its filters are left out, too: `guesses` says how
//! many tiers are guessed in each dimension, 2 unless given (chosen). Fetches of instructions are not
//! guessed.

use super::spot::Spot;
use super::{Definition, Facts};
use crate::assist::ranges::machine;
use crate::machine::DynMachine;
use crate::scheme::options::{OptionRow, OptionTable, whole};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};
use nestwalk_mm::{TIERS, Tiers, pc_memory_map};
use nestwalk_types::{Address, Gpa, Gva, Hpa};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "revelator",
    summary: "nested paging whose data is fetched from where hashes say, beside walks (Revelator)",
    virtualized: true,
    facts: Facts { own_structures: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// The same on bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-revelator",
    summary: "bare metal whose data is fetched from where hashes say, beside walks (Revelator)",
    virtualized: false,
    vmm: VmmKind::Other,
    ..DEFINITION
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Config {
    guesses: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { guesses: 2 }
    }
}

static OPTIONS: OptionTable<Config> = OptionTable::new(&[OptionRow {
    name: "guesses",
    values: "N",
    meaning: "tiers of the placement that are guessed in each dimension (2)",
    set: |c, value| whole(value, 1, TIERS).map(|n| c.guesses = n),
    get: |c| c.guesses.to_string(),
}]);

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let guesser = Guesser::new(&request, request.options(&OPTIONS)?);
    machine(request, Spot::by_hash(guesser))
}

/// A part of guest memory: its first page, its pages, the VMM's first page for it.
type Part = (u64, u64, u64);

/// Computes where pages may be.
pub struct Guesser {
    guesses: u64,
    guest: Tiers,
    host: Option<(Tiers, Vec<Part>)>,
}

impl Guesser {
    fn new(build: &MachineConfig, config: Config) -> Self {
        let guest = Tiers::new::<Gpa>(&pc_memory_map(build.guest_bytes));
        let host = build.host.as_ref().map(|host| {
            let parts = host.slots().iter();
            let parts = parts.map(|s| (s.gpa.page_number(), s.bytes >> 12, s.hva.page_number()));
            (Tiers::new(host.physical().ranges()), parts.collect())
        });
        Self { guesses: config.guesses, guest, host }
    }

    /// The guesses for an address, the likeliest first.
    #[inline]
    pub fn each(&self, gva: Gva, mut guess: impl FnMut(Hpa)) {
        let within = gva.value() & 0xfff;
        let at = |frame: u64| Hpa::new(frame << 12 | within);
        for frame in (0..self.guesses).map(|tier| self.guest.frame(gva.page_number(), tier)) {
            let Some((host, parts)) = &self.host else {
                guess(at(frame));
                continue;
            };
            let part = parts.iter().find(|p| frame.wrapping_sub(p.0) < p.1);
            if let Some((first, _, mapped)) = part {
                let page = mapped + (frame - first);
                (0..self.guesses).for_each(|tier| guess(at(host.frame(page, tier))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        assert_eq!(OPTIONS.normalize("guesses=6").unwrap(), "guesses=6");
        assert_eq!(OPTIONS.normalize("guesses=2").unwrap(), "");
        assert!(OPTIONS.normalize("guesses=7").unwrap_err().contains("1 to 6"));
    }
}

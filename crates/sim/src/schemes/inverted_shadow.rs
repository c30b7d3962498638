//! `inverted-shadow`: speculative inverted shadow paging (Ahn, Jin and Huh, "Revisiting
//! Hardware-Assisted Page Walks for Virtualized Systems", ISCA 2012) over a flat nested table. An
//! inverted table in the host's memory says where a guest-virtual page probably is, by one reference.
//! Nobody keeps it in step with the guest's tables: the program goes on with what it says while a walk
//! through the flat nested table checks that.
//!
//! A right guess hides what the walk takes longer than the reference to the table; the walk's
//! references happen all the same. A wrong one costs the walk and a flush of the pipeline, as with
//! `spot`, and has sent a reference to a wrong place through the caches. What the program uses in the
//! end is the walk's.
//!
//! The abstract says that, no more; the rest is chosen:
//!
//! - *The table* has an entry of 16 bytes for each page of 4 KiB of the VM's memory, rounded up to a
//!   power of two: four to a line of 64 bytes, which is a set and is read at once. The VMM takes and
//!   clears it when it makes the VM, in pieces if the host has no piece that long, as the flat table.
//! - *Entries* are of 4 KiB, as frames are, also of parts of larger pages. The tag is the page and the
//!   lowest 19 bits of the frame of the guest's root; what these confuse is a wrong guess.
//! - *Look-up and walk* begin at once, so that a line without the page delays nothing.
//! - *Fills* are the walker's, without an exit: what a walk finds that the line did not say goes over
//!   the entry of the page, or an unused one, or those of the line in turn. The store is a reference
//!   that nothing waits for.
//! - *Permissions* are the walk's of then. An access that they do not allow has no guess, so that the
//!   first store to a clean page waits for its walk.
//! - *Invalidations* concern TLBs alone.

use super::{Definition, Facts};
use crate::assist::ranges::background;
use crate::assist::tables::flat::{Flat, Pieces};
use crate::assist::tables::{Any, HostTable, RadixGuest, Tabled};
use crate::hardware::Request;
use crate::hardware::walk::{Fault, WalkWatch};
use crate::machine::{DynMachine, Machine};
use crate::measure::counters::Dimension;
use crate::scheme::options::{OptionRow, OptionTable, whole};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{
    ContiguityState, Event, Handled, MachineConfig, MachineError, Platform, Processor, Report,
    Scheme, Software,
};
use nestwalk_hw::Translation;
use nestwalk_types::{Address, Gpa, Gva, Hpa, PageSize};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "inverted-shadow",
    summary: "guesses from an inverted shadow table that nobody syncs, over a flat nested table (SISP)",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Other,
    options: &OPTIONS,
    build,
};

/// How it is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvertedConfig {
    /// Cycles of a wrong guess beyond the walk. The paper's number is not known; that of `spot`.
    pub penalty: u64,
}

impl Default for InvertedConfig {
    fn default() -> Self {
        Self { penalty: 20 }
    }
}

static OPTIONS: OptionTable<InvertedConfig> = OptionTable::new(&[OptionRow {
    name: "penalty",
    values: "CYCLES",
    meaning: "delay by a wrong guess beyond the walk (20)",
    set: |c, value| whole(value, 0, 1 << 20).map(|n| c.penalty = n),
    get: |c| c.penalty.to_string(),
}]);

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let mut request = request;
    let scheme = InvertedShadow::new(&mut request)?;
    Ok(Box::new(Machine::new(scheme, request)?))
}

/// Bytes of an entry.
const ENTRY: u64 = 16;
/// Entries of a line, which is a set.
const WAYS: usize = 4;
/// Bits of an entry beside the frame: what it permits.
const READ: u64 = 1;
const WRITE: u64 = 2;
const FETCH: u64 = 4;
const USER: u64 = 8;

/// The inverted table, as it is in the host's memory.
pub struct InvertedTable {
    pieces: Pieces,
    /// By entry: the page and bits of the root.
    tags: Vec<u64>,
    /// By entry: the frame's address and what is permitted; 0 if there is none.
    frames: Vec<u64>,
    /// Which of a line is next, if all are in use.
    turn: usize,
}

impl InvertedTable {
    /// First entry of the line of a page, and its tag.
    #[inline]
    const fn place(&self, root: Gpa, gva: Gva) -> (usize, u64) {
        // The addresses of a processor have 57 bits at most.
        let page = gva.value() << 7 >> 19;
        let space = root.value() >> 12;
        let spread = page ^ space.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let sets = (self.tags.len() / WAYS) as u64;
        ((spread & (sets - 1)) as usize * WAYS, page | space << 45)
    }

    /// Where the line of a page is in memory.
    #[inline]
    fn line(&self, root: Gpa, gva: Gva) -> Hpa {
        Hpa::new(self.pieces.at(self.place(root, gva).0 as u64 * ENTRY).unwrap_or(0))
    }

    /// Where the table says that an address is, if it says that the access is permitted.
    #[inline]
    pub fn guess(&self, root: Gpa, request: &Request) -> Option<Hpa> {
        let (first, tag) = self.place(root, request.gva);
        let way = (first..first + WAYS).find(|i| self.tags[*i] == tag && self.frames[*i] != 0)?;
        let needs = needs(request);
        let entry = self.frames[way];
        let frame = Hpa::new(entry & !0xfff);
        (entry & needs == needs)
            .then(|| frame.offset_by(request.gva.offset_in(PageSize::SIZE_4K)))
    }

    /// What a walk has found. Returns whether that was no news.
    #[inline]
    fn learn(&mut self, root: Gpa, gva: Gva, found: Translation) -> bool {
        let (first, tag) = self.place(root, gva);
        let bit = |needs, bit| if found.serves(needs) { bit } else { 0 };
        let permits = bit(Translation::needs(true, false, false), WRITE)
            | bit(Translation::needs(false, true, false), FETCH)
            | bit(Translation::needs(false, false, true), USER);
        let entry = found.apply(gva).align_down(PageSize::SIZE_4K).value() | READ | permits;
        let line = first..first + WAYS;
        let there = line.clone().find(|i| self.tags[*i] == tag && self.frames[*i] != 0);
        if there.is_some_and(|i| self.frames[i] == entry) {
            return true;
        }
        let way = there.or_else(|| line.clone().find(|i| self.frames[*i] == 0));
        let way = way.unwrap_or_else(|| {
            self.turn = (self.turn + 1) % WAYS;
            first + self.turn
        });
        (self.tags[way], self.frames[way]) = (tag, entry);
        false
    }
}

/// The bits that an entry must have.
#[inline]
const fn needs(request: &Request) -> u64 {
    let write = if request.write { WRITE } else { 0 };
    let fetch = if request.fetch { FETCH } else { 0 };
    READ | write | fetch | if request.user { USER } else { 0 }
}

/// Walks through a flat nested table, and what is guessed beside them.
pub struct InvertedShadow {
    base: Tabled<RadixGuest, HostTable<Any>>,
    /// The inverted table.
    pub table: InvertedTable,
    config: InvertedConfig,
    /// Pages that the VMM has cleared and that are not counted yet.
    cleared: u64,
    refused: u64,
}

impl InvertedShadow {
    /// Empty tables.
    ///
    /// # Errors
    /// The host has no memory for them.
    pub fn new(request: &mut MachineConfig) -> Result<Self, MachineError> {
        let config = request.options(&OPTIONS)?;
        let pages = super::flat_nested::pages(request);
        let mode = request.nested_mode;
        let host = HostTable::new(mode, &mut request.host, |m| Flat::new(pages, m).map(Any::from))?;
        let entries = (request.guest_bytes >> 12).next_power_of_two().max(512 / 2);
        let what = "inverted shadow table";
        let no_frame = || MachineError::NoTableFrame { machine: String::new(), what };
        let memory = request.host.as_mut().ok_or_else(no_frame)?;
        let (pieces, refused) = Pieces::new(entries * ENTRY, memory).ok_or_else(no_frame)?;
        let (tags, frames) = (vec![0; entries as usize], vec![0; entries as usize]);
        let table = InvertedTable { pieces, tags, frames, turn: 0 };
        let base = Tabled { guest: RadixGuest, host };
        Ok(Self { base, table, config, cleared: entries * ENTRY / 4096, refused })
    }

    const fn bytes(&self) -> u64 {
        self.table.tags.len() as u64 * ENTRY
    }

    /// What a guess was worth, by the walk that checked it.
    fn judge(
        &self,
        cpu: &mut Processor,
        request: &Request,
        (guess, hidden): (Hpa, u64),
        found: Option<&Translation>,
    ) {
        let Processor { hardware, counters, .. } = cpu;
        counters.predictions += 1;
        if found.is_some_and(|t| t.apply(request.gva) == guess) {
            counters.predictions_right += 1;
            counters.hidden_walk_cycles += hidden;
            return;
        }
        // The program has read where the guess led, and must read again.
        background(hardware, counters, request.core(), guess);
        if found.is_some() {
            counters.predictions_wrong += 1;
            counters.misprediction_cycles += self.config.penalty;
        } else {
            counters.predictions_squashed += 1;
        }
    }
}

impl Scheme for InvertedShadow {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        true
    }

    // How long the look-up takes and how long the walk is compared.
    #[inline(always)]
    fn may_wait(&self) -> bool {
        false
    }

    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let (root, start) = (cpu.world.root(request.vcpu), cpu.hardware.tally.cycles);
        let line = self.table.line(root, request.gva);
        let guess = self.table.guess(root, request);
        cpu.hardware.reference(request.core(), Dimension::Shadow, (1, 0), line, 0);
        let look_up = std::mem::replace(&mut cpu.hardware.tally.cycles, start) - start;
        let walked = self.base.walk(cpu, request, watch);
        let walk = cpu.hardware.tally.cycles - start;
        cpu.hardware.tally.cycles = start + walk.max(look_up);
        if let Some(guess) = guess {
            let hidden = walk.saturating_sub(look_up);
            self.judge(cpu, request, (guess, hidden), walked.as_ref().ok());
        }
        if let Ok(found) = walked
            && !self.table.learn(root, request.gva, found)
        {
            cpu.counters.prediction_fills += 1;
            background(&mut cpu.hardware, &mut cpu.counters, request.core(), line);
        }
        walked
    }
}

impl Software for InvertedShadow {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        platform.cpu.counters.nested_table_pages += std::mem::take(&mut self.cleared);
        platform.cpu.counters.table_refusals += std::mem::take(&mut self.refused);
        self.base.handle_fault(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        self.base.on(platform, event)
    }

    fn take_accessed(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        size: PageSize,
    ) -> Result<bool, MachineError> {
        self.base.take_accessed(platform, at, size)
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        self.base.report(platform, out);
        // The base takes all of the VMM's frames but the nested table's for the host kernel's.
        out.page_tables.shadow = self.bytes();
        out.page_tables.host = out.page_tables.host.saturating_sub(self.bytes());
        let metadata_bytes = self.bytes();
        out.contiguity = Some(ContiguityState { metadata_bytes, ..ContiguityState::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        assert_eq!(OPTIONS.normalize("penalty=100").unwrap(), "penalty=100");
        assert_eq!(OPTIONS.normalize("penalty=20").unwrap(), "");
        assert!(OPTIONS.normalize("penalty=x").unwrap_err().contains("whole number"));
    }
}

//! `shared-tlb`: nested paging with a last-level TLB that all cores share, looked up on a miss of a
//! core's second level (Bhattacharjee, Lustig, Martonosi, "Shared Last-Level TLBs for Chip Multiprocessors",
//! HPCA 2011). A walk of one core serves the others that use the same pages of the same address space.
//!
//! `native-shared-tlb` is the same on bare metal. Choices, where the paper has none for x86-64:
//!
//! - *Tags.* PCIDs are each core's own, so an entry cannot be shared by its PCID. Entries have the
//!   number of a root table among the last 256 that were loaded; one that is displaced takes its
//!   entries with it.
//! - *Invalidations.* Whatever a core drops of an address space it drops here, too: INVLPG and INVPCID
//!   for the address space that the core has behind the PCID, a load of CR3 without the keep bit
//!   everything of the new root, a fault the page that it met. A change of nested tables empties it.
//! - *Inclusion.* None: a hit fills both levels of the core, a walk fills all three.
//! - *Cost.* Every look-up takes `cycles`, hit or miss, exposed as walks are. The energy of look-ups is
//!   not counted.

use super::{Definition, Facts};
use crate::hardware::Request;
use crate::hardware::walk::{Fault, WalkWatch};
use crate::hypervisor::bare_metal::Native;
use crate::hypervisor::nested::Nested;
use crate::machine::{DynMachine, Machine};
use crate::scheme::options::{OptionRow, OptionTable, whole};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{
    Event, Handled, MachineConfig, MachineError, Platform, Processor, Report, Scheme, Software,
};
use nestwalk_hw::profile::TlbProfile;
use nestwalk_hw::{Asid, Tlb, Translation};
use nestwalk_types::ByNumber;
use nestwalk_types::{Gpa, Gva, Invalidation, Run, VcpuId};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "shared-tlb",
    summary: "nested paging with a last-level TLB that the cores share",
    virtualized: true,
    facts: Facts { own_structures: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// The same on bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-shared-tlb",
    summary: "bare metal with a last-level TLB that the cores share",
    virtualized: false,
    vmm: VmmKind::Other,
    ..DEFINITION
};

/// Root tables whose entries are told apart.
const ROOTS: usize = 256;

static OPTIONS: OptionTable<Config> = OptionTable {
    check: has_sets,
    ..OptionTable::new(&[
        OptionRow {
            name: "entries",
            values: "N",
            meaning: "entries, of pages of 4 KiB, 2 MiB and 1 GiB (4096)",
            set: |c, value| whole(value, 1, 1 << 20).map(|n| c.entries = n as u32),
            get: |c| c.entries.to_string(),
        },
        OptionRow {
            name: "ways",
            values: "N",
            meaning: "ways of a set; sets are a power of two (8)",
            set: |c, value| whole(value, 1, 64).map(|n| c.ways = n as u32),
            get: |c| c.ways.to_string(),
        },
        OptionRow {
            name: "cycles",
            values: "N",
            meaning: "cycles of a look-up, hit or miss, before a walk begins (20)",
            set: |c, value| whole(value, 0, 1 << 16).map(|n| c.cycles = n),
            get: |c| c.cycles.to_string(),
        },
    ])
};

/// Sets are a power of two.
fn has_sets(c: &Config) -> Result<(), String> {
    let Config { entries, ways, .. } = *c;
    if entries.is_multiple_of(ways) && (entries / ways).is_power_of_two() {
        return Ok(());
    }
    Err(format!("entries={entries} in ways={ways} make no power of two of sets; 4096 in 8 do"))
}

/// How it is set up. Assumed: entries and ways of a large private second level for each of a few cores,
/// and a look-up about as long as one of the last-level cache's tags over the die.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Config {
    entries: u32,
    ways: u32,
    cycles: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { entries: 4096, ways: 8, cycles: 20 }
    }
}

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let mut request = request;
    if request.host.is_some() {
        let scheme = SharedTlb::new(Nested::new(&mut request)?, &request)?;
        return Ok(Box::new(Machine::new(scheme, request)?));
    }
    let scheme = SharedTlb::new(Native::default(), &request)?;
    Ok(Box::new(Machine::new(scheme, request)?))
}

/// A scheme with the shared TLB behind its cores'.
pub struct SharedTlb<B> {
    base: B,
    tlb: Tlb,
    cycles: u64,
    /// Root tables by tag; the last loaded last.
    roots: Vec<(Gpa, u16)>,
    /// By core: the tag of each PCID's address space, and of the current one.
    spaces: Vec<ByNumber<u16>>,
    current: Vec<u16>,
    vpid: u8,
    /// The next tag, for one whose address spaces get new tags in place of being looked through.
    next: Option<u16>,
}

/// Tags that there are.
const TAGS: u16 = 0xfff;

impl<B> SharedTlb<B> {
    /// An empty TLB.
    ///
    /// # Errors
    /// What is set cannot be.
    pub fn new(base: B, build: &MachineConfig) -> Result<Self, MachineError> {
        let Config { entries, ways, cycles } = build.options(&OPTIONS)?;
        let of = (build.vcpus, build.host.is_some());
        Ok(Self::of(base, of, (entries, ways, cycles)))
    }

    /// An empty TLB of so many entries and ways, for so many cores, in a VM or not, whose look-ups take
    /// so many cycles.
    pub fn of(
        base: B,
        (vcpus, virtualized): (usize, bool),
        (entries, ways, cycles): (u32, u32, u64),
    ) -> Self {
        let sizes = ["4k", "2m", "1g"].map(String::from).to_vec();
        let array = TlbProfile { sizes, entries, ways, ..TlbProfile::default() };
        Self {
            base,
            tlb: Tlb::new(&[array]),
            cycles,
            roots: Vec::new(),
            spaces: vec![ByNumber::new(); vcpus],
            current: vec![0; vcpus],
            vpid: u8::from(virtualized),
            next: None,
        }
    }

    /// An address space whose entries are void gets a new tag: a TLB that is too large to be looked
    /// through. Its entries go when others need their places.
    #[must_use]
    pub fn renewing(self) -> Self {
        Self { next: Some(ROOTS as u16), ..self }
    }

    /// Gives the address spaces other tags.
    fn retag(&mut self, new: impl Fn(u16) -> u16) {
        self.roots.iter_mut().for_each(|root| root.1 = new(root.1));
        self.current.iter_mut().for_each(|tag| *tag = new(*tag));
        for spaces in &mut self.spaces {
            for pcid in spaces.numbers().collect::<Vec<_>>() {
                if let Some(tag) = spaces.get_mut(pcid) {
                    *tag = new(*tag);
                }
            }
        }
    }

    /// The entries of an address space, by the place of its root, are void.
    fn void(&mut self, root: usize) {
        let Some(mut next) = self.next else {
            return self.tlb.invalidate_asid(self.asid(self.roots[root].1));
        };
        if next > TAGS {
            self.tlb.flush();
            let old: Vec<u16> = self.roots.iter().map(|root| root.1).collect();
            self.retag(|tag| old.iter().position(|t| *t == tag).map_or(TAGS, |i| i as u16));
            next = ROOTS as u16;
        }
        let old = self.roots[root].1;
        self.retag(|tag| if tag == old { next } else { tag });
        self.next = Some(next + 1);
    }

    /// What tells the current address space of a core from others, spread over all bits.
    pub fn spread(&self, core: usize) -> u64 {
        u64::from(self.current[core]).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
    }

    fn asid(&self, tag: u16) -> Asid {
        Asid::new(self.vpid, tag)
    }

    #[inline]
    fn own(&self, core: usize) -> Asid {
        self.asid(self.current[core])
    }

    /// The tag of a root; of the one that was loaded longest ago, if there is none left.
    fn tag(&mut self, root: Gpa) -> u16 {
        let known = self.roots.iter().position(|(known, _)| *known == root);
        let tag = match known {
            Some(i) => self.roots.remove(i).1,
            None if self.roots.len() < ROOTS => self.roots.len() as u16,
            None => {
                self.void(0);
                self.roots.remove(0).1
            }
        };
        self.roots.push((root, tag));
        tag
    }

    fn loaded(&mut self, root: Gpa, (vcpu, pcid, keep): (VcpuId, u16, bool)) {
        let core = usize::from(vcpu.0);
        let tag = self.tag(root);
        self.current[core] = tag;
        self.spaces[core].insert(pcid.into(), tag);
        if !keep {
            self.void(self.roots.len() - 1);
        }
    }

    /// A page that was a root may be one of another address space next.
    fn gone(&mut self, root: Gpa) {
        if let Some(i) = self.roots.iter().position(|(known, _)| *known == root) {
            self.void(i);
        }
    }

    fn invalidated(&mut self, core: usize, what: Invalidation) {
        let of = |pcid: u16| self.spaces[core].get(pcid.into()).copied();
        match what {
            Invalidation::Page(gva) => {
                self.tlb.invalidate_page(gva, self.own(core), true);
            }
            Invalidation::PageInPcid(gva, pcid) => {
                if let Some(tag) = of(pcid) {
                    self.tlb.invalidate_page(gva, self.asid(tag), false);
                }
            }
            Invalidation::Pcid(pcid) => {
                let of = of(pcid);
                if let Some(i) = self.roots.iter().position(|root| Some(root.1) == of) {
                    self.void(i);
                }
            }
            Invalidation::AllButGlobal => self.tlb.invalidate_vpid(self.vpid, false),
            Invalidation::All => self.tlb.invalidate_vpid(self.vpid, true),
        }
    }

    /// The page of a fault, or of an entry that cannot serve.
    fn drop_page(&mut self, core: usize, gva: Gva) {
        self.tlb.remove(gva, self.own(core), true);
    }
}

impl<B: Scheme> Scheme for SharedTlb<B> {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        true
    }

    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.base.walk(cpu, request, watch)
    }

    #[inline]
    fn on_l2_miss(&mut self, cpu: &mut Processor, request: &Request) -> Option<Translation> {
        cpu.counters.shared_tlb_lookups += 1;
        cpu.counters.assist_cycles += self.cycles;
        let found = self.tlb.look_up(request.gva, self.own(request.core()))?;
        if !found.serves(Translation::needs(request.write, request.fetch, request.user)) {
            self.drop_page(request.core(), request.gva);
            return None;
        }
        cpu.counters.shared_tlb_hits += 1;
        let found = found.restored();
        cpu.hardware.cores[request.core()].fill_second_level(request.gva, request.fetch, found);
        Some(found)
    }

    fn fill_l2(&mut self, cpu: &mut Processor, request: &Request, found: Translation) {
        self.base.fill_l2(cpu, request, found);
        self.tlb.fill(request.gva, self.own(request.core()), found);
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        self.base.prefetch(cpu, runs, gpas);
    }
}

impl<B: Scheme> Software for SharedTlb<B> {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.drop_page(request.core(), request.gva);
        let flushes = platform.cpu.counters.remote_flushes;
        let handled = self.base.handle_fault(platform, request, fault)?;
        // What the hypervisor flushes goes from here, too.
        if platform.cpu.counters.remote_flushes != flushes {
            self.tlb.flush();
        }
        Ok(handled)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::LoadCr3 { vcpu, pcid, keep } => {
                let keep = keep && platform.cpu.hardware.cores[usize::from(vcpu.0)].has_pcids();
                self.loaded(platform.cpu.world.root(vcpu), (vcpu, pcid, keep));
            }
            Event::Invalidate { vcpu, what } => self.invalidated(usize::from(vcpu.0), what),
            Event::TableAdded { at, .. } | Event::TableRetired { at, .. } => self.gone(at),
            Event::HostChanged { .. } => self.tlb.flush(),
            _ => {}
        }
        self.base.on(platform, event)
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        self.base.report(platform, out);
    }
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        let all = "entries=512/ways=4/cycles=8";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        assert_eq!(OPTIONS.normalize("entries=4096/ways=8/cycles=20").unwrap(), "");
        for (text, words) in
            [("ways=65", "1 to 64"), ("ways=3", "power of two"), ("entries=24", "ways=8")]
        {
            let e = OPTIONS.normalize(text).unwrap_err();
            assert!(e.contains(words), "{e}");
        }
    }
}

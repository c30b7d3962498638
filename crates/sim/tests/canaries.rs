//! Schemes that are wrong on purpose. The referee must catch each, on a life that the right scheme
//! passes: a referee that finds nothing is only worth something if it can find something.

use crate::common;

use common::lives::Life;
use common::machines::{Probe, Setup, plain};
use common::{Script, V0};
use nestwalk_hw::{Profile, Translation};
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch, walk_1d};
use nestwalk_sim::hypervisor::bare_metal::Native;
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_sim::schemes::shadow::Shadow;
use nestwalk_sim::schemes::soft_tlb::SoftTlb;
use nestwalk_sim::schemes::xen_pv::XenPv;
use nestwalk_sim::{DynMachine, Machine};
use nestwalk_tables::{LONG4, Permissions, look_up};
use nestwalk_types::{Address, Gpa, GuestBatch, Gva, Hpa, Invalidation, PageSize, Protection};
use std::collections::BTreeSet;

/// What is wrong with a scheme.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    /// Nothing: the control.
    Nothing,
    /// INVLPG does nothing.
    InvlpgIgnored,
    /// INVLPG removes translations, not what the walk caches hold.
    WalkCacheKept,
    /// An invalidation on another vCPU than the first is lost.
    ShootdownLost,
    /// A CR3 load keeps everything, asked for or not.
    Cr3Kept,
    /// A CR3 load goes on under the old PCID.
    PcidIgnored,
    /// A TLB entry gets the frame of the next page.
    Neighbour,
    /// A large page is filled as the 4 KiB page at its beginning.
    LargeAsSmall,
    /// A TLB entry permits everything.
    PermissionsDropped,
    /// A TLB entry has the size of the guest's page though the host's is smaller.
    GuestSize,
    /// Every TLB entry is global.
    AllGlobal,
    /// Direct paging: an update of an entry that is present is queued and never sent.
    UpdateNeverSent,
    /// Direct paging: entries have the guest's own addresses, or any others but the machine's.
    Untranslated,
}

/// A right scheme, spoilt.
struct Spoilt<S> {
    inner: S,
    wrong: Wrong,
}

impl<S: Scheme> Scheme for Spoilt<S> {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let t = self.inner.walk(cpu, request, watch)?;
        let (size, permissions) = (t.size(), t.permissions());
        let make = |frame: Hpa, size: PageSize, permissions: Permissions, global: bool| {
            Translation::new(frame, size, permissions, t.is_dirty(), global)
        };
        Ok(match self.wrong {
            Wrong::Neighbour => make(t.frame().offset_by(size.bytes()), size, permissions, false),
            Wrong::LargeAsSmall => make(t.frame(), PageSize::SIZE_4K, permissions, false),
            Wrong::PermissionsDropped => make(t.frame(), size, Permissions::ALL, false),
            Wrong::AllGlobal => make(t.frame(), size, permissions, true),
            Wrong::Untranslated => {
                let world = &cpu.world;
                let root = world.root(request.vcpu);
                let leaf = look_up(&world.guest, world.mode, root, request.gva).unwrap();
                let frame = leaf.apply(request.gva).align_down(size).value();
                make(Hpa::new(frame), size, permissions, false)
            }
            Wrong::GuestSize => {
                let world = &cpu.world;
                let root = world.root(request.vcpu);
                let whole = look_up(&world.guest, world.mode, root, request.gva).unwrap().size;
                make(t.apply(request.gva).align_down(whole), whole, permissions, false)
            }
            _ => t,
        })
    }
}

impl<S: Scheme> Software for Spoilt<S> {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.inner.handle_fault(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        let event = match (self.wrong, event) {
            (Wrong::Cr3Kept, Event::LoadCr3 { vcpu, pcid, .. }) => {
                Event::LoadCr3 { vcpu, pcid, keep: true }
            }
            (Wrong::PcidIgnored, Event::LoadCr3 { vcpu, keep, .. }) => {
                Event::LoadCr3 { vcpu, pcid: 0, keep }
            }
            (Wrong::InvlpgIgnored, Event::Invalidate { what: Invalidation::Page(_), .. }) => {
                return Ok(());
            }
            (Wrong::WalkCacheKept, Event::Invalidate { vcpu, what: Invalidation::Page(gva) }) => {
                let core = &mut platform.cpu.hardware.cores[usize::from(vcpu.0)];
                let asid = core.asid;
                let kept = core.walk_cache.clone();
                core.invalidate_page(gva, asid, true);
                core.walk_cache = kept;
                return Ok(());
            }
            (Wrong::ShootdownLost, Event::Invalidate { vcpu, .. }) if vcpu != V0 => return Ok(()),
            (Wrong::UpdateNeverSent, Event::TableStore { old, .. }) if old & 1 == 1 => {
                return Ok(());
            }
            (_, event) => event,
        };
        self.inner.on(platform, event)
    }
}

fn setup(host_pages: &'static str) -> Setup {
    // With PCIDs, without which nothing is kept at a load of CR3.
    let profile = plain(Profile::load("zen2").unwrap());
    Setup { host_pages, vcpus: 3, ..Setup::new(profile) }
}

fn spoilt(scheme: &str, wrong: Wrong, host_pages: &'static str) -> Box<dyn DynMachine> {
    let mut build = setup(host_pages).build(scheme, scheme != "native");
    match scheme {
        "native" => {
            let inner = Native::default();
            Box::new(Machine::new(Spoilt { inner, wrong }, build).unwrap())
        }
        "nested" => {
            let inner = Nested::new(&mut build).unwrap();
            Box::new(Machine::new(Spoilt { inner, wrong }, build).unwrap())
        }
        "soft-tlb" => {
            let inner = SoftTlb::new(&mut build).unwrap();
            Box::new(Machine::new(Spoilt { inner, wrong }, build).unwrap())
        }
        "xen-pv" => {
            let inner = XenPv::new(&build).unwrap();
            Box::new(Machine::new(Spoilt { inner, wrong }, build).unwrap())
        }
        _ => {
            let inner = Shadow::new(&build).unwrap();
            Box::new(Machine::new(Spoilt { inner, wrong }, build).unwrap())
        }
    }
}

/// Violations at the end. A machine may also stop with an error: what it did wrong made it lose a
/// page that is there. That is no verdict, so it does not count.
fn violations(mut machine: Box<dyn DynMachine>, events: &[GuestBatch]) -> u64 {
    let end = events.iter().try_for_each(|e| machine.run(e));
    let verdict = machine.verdict().unwrap();
    assert!(end.is_ok() || !machine.name().ends_with("right"), "{end:?}");
    assert!(verdict.violations >= verdict.told.len() as u64);
    verdict.violations
}

/// The wrong scheme is caught in one of a few lives; the right one passes all of them.
fn caught_in_a_life(scheme: &str, wrong: Wrong, (guest, host): (&'static str, &'static str)) {
    let mut found = 0;
    for seed in 1..=12 {
        let life = Life {
            seed,
            events: 160,
            vcpus: 3,
            accesses_percent: 60,
            mode: &LONG4,
            pages: guest,
            pcids: wrong != Wrong::Cr3Kept,
        };
        let events = life.live();
        let mut right = spoilt(scheme, Wrong::Nothing, host);
        events.iter().for_each(|e| right.run(e).unwrap());
        let verdict = right.verdict().unwrap();
        assert_eq!(verdict.told, Vec::<String>::new(), "{scheme}, life {seed}");
        found += violations(spoilt(scheme, wrong, host), &events);
        if found > 0 {
            return;
        }
    }
    panic!("{scheme} with {wrong:?} got through");
}

#[test]
fn a_random_life_gives_each_wrong_scheme_away() {
    for (wrong, pages) in [
        (Wrong::InvlpgIgnored, ("4k", "4k")),
        (Wrong::ShootdownLost, ("4k", "4k")),
        (Wrong::Cr3Kept, ("4k", "4k")),
        (Wrong::PcidIgnored, ("4k", "4k")),
        (Wrong::Neighbour, ("4k", "4k")),
        (Wrong::LargeAsSmall, ("2m", "2m")),
        (Wrong::PermissionsDropped, ("4k", "4k")),
        (Wrong::AllGlobal, ("4k", "4k")),
    ] {
        caught_in_a_life("native", wrong, pages);
        caught_in_a_life("nested", wrong, pages);
    }
    // A hypervisor that drops shadow entries flushes all hardware by itself, which hides most of what
    // the hardware keeps wrongly; what the entries say is caught as anywhere.
    for (wrong, pages) in [
        (Wrong::Neighbour, ("4k", "4k")),
        (Wrong::LargeAsSmall, ("2m", "2m")),
        (Wrong::PermissionsDropped, ("4k", "4k")),
        (Wrong::InvlpgIgnored, ("4k", "4k")),
    ] {
        caught_in_a_life("shadow", wrong, pages);
    }
    // Every load of CR3 drops everything, and nothing is global, whatever the guest asks for.
    for (wrong, pages) in [
        (Wrong::UpdateNeverSent, ("4k", "4k")),
        (Wrong::UpdateNeverSent, ("thp", "4k")),
        (Wrong::Untranslated, ("4k", "4k")),
        (Wrong::InvlpgIgnored, ("4k", "4k")),
        (Wrong::ShootdownLost, ("4k", "4k")),
        (Wrong::Neighbour, ("4k", "4k")),
        (Wrong::LargeAsSmall, ("2m", "2m")),
        (Wrong::PermissionsDropped, ("4k", "4k")),
    ] {
        caught_in_a_life("xen-pv", wrong, pages);
    }
    // What a copy of the TLB keeps wrongly comes back into the TLB.
    for wrong in [Wrong::InvlpgIgnored, Wrong::ShootdownLost, Wrong::Cr3Kept] {
        caught_in_a_life("soft-tlb", wrong, ("4k", "4k"));
    }
    caught_in_a_life("nested", Wrong::GuestSize, ("2m", "4k"));
    caught_in_a_life("nested", Wrong::GuestSize, ("thp", "4k"));
}

/// A page is used, moved to another frame and invalidated as the kernel must, and used again.
fn moved_page() -> GuestBatch {
    let mut s = Script::new(&LONG4);
    s.map_used(0x1000, 0x4000_0000, PageSize::SIZE_4K);
    s.load(0x1000);
    s.map_used(0x1000, 0x4000_1000, PageSize::SIZE_4K);
    s.invlpg(0x1000);
    s.load(0x1000);
    s.take()
}

/// As above, invalidated by a load of the same CR3.
fn moved_page_and_cr3() -> GuestBatch {
    let mut s = Script::new(&LONG4);
    s.map_used(0x1000, 0x4000_0000, PageSize::SIZE_4K);
    s.load(0x1000);
    s.map_used(0x1000, 0x4000_1000, PageSize::SIZE_4K);
    s.load_cr3(s.root, 1, false);
    s.load(0x1000);
    s.take()
}

/// Two address spaces with the same address, and PCIDs that tell them apart.
fn two_address_spaces() -> GuestBatch {
    let mut s = Script::new(&LONG4);
    let (first, second) = (s.root, s.add_root());
    s.map_used(0x1000, 0x4000_0000, PageSize::SIZE_4K);
    s.load_cr3(second, 2, false);
    s.map_used(0x1000, 0x4000_1000, PageSize::SIZE_4K);
    s.load_cr3(first, 1, false);
    s.load(0x1000);
    s.load_cr3(second, 2, true);
    s.load(0x1000);
    s.take()
}

/// A leaf table is taken out and another one put in its place.
fn moved_table() -> GuestBatch {
    let mut s = Script::new(&LONG4);
    s.map_used(0x1000, 0x4000_0000, PageSize::SIZE_4K);
    s.map_used(0x20_1000, 0x4000_1000, PageSize::SIZE_4K);
    s.load(0x1000);
    // The second region's leaf table now serves the first, too.
    let (_, pointer) = s.entry(0x20_1000, 2);
    let (at, _) = s.entry(0x1000, 2);
    s.write(at, pointer.0);
    s.invlpg(0x1000);
    s.load(0x1000);
    s.take()
}

/// Both ends of a 2 MiB page, from its end.
fn large_page() -> GuestBatch {
    let mut s = Script::new(&LONG4);
    s.map_used(0x20_0000, 0x4000_0000, PageSize::SIZE_2M);
    s.load(0x20_1000);
    s.load(0x3f_f000);
    s.load(0x20_0000);
    s.take()
}

/// A page that may not be written, and one that may.
fn read_only_page() -> GuestBatch {
    let mut s = Script::new(&LONG4);
    s.map(0x1000, 0x4000_0000, PageSize::SIZE_4K, Protection::READ, 0x60);
    s.map_used(0x2000, 0x4000_1000, PageSize::SIZE_4K);
    s.load(0x1000);
    s.store(0x2000);
    s.take()
}

/// The host's pages come in another order than the guest's.
fn scattered_host() -> GuestBatch {
    let mut s = Script::new(&LONG4);
    s.map_used(0x20_0000, 0x4000_0000, PageSize::SIZE_2M);
    for page in [7, 3, 500, 0, 511] {
        s.load(0x20_0000 + (page << 12));
    }
    s.take()
}

/// One violation is enough, and each of these lives has a place for one.
#[test]
fn a_life_made_for_it_gives_each_wrong_scheme_away() {
    for (scheme, wrong, host, life) in [
        ("native", Wrong::InvlpgIgnored, "4k", moved_page()),
        ("nested", Wrong::InvlpgIgnored, "4k", moved_page()),
        ("shadow", Wrong::InvlpgIgnored, "4k", moved_page()),
        ("native", Wrong::Cr3Kept, "4k", moved_page_and_cr3()),
        ("nested", Wrong::Cr3Kept, "4k", moved_page_and_cr3()),
        ("shadow", Wrong::Cr3Kept, "4k", moved_page_and_cr3()),
        ("native", Wrong::AllGlobal, "4k", moved_page_and_cr3()),
        ("nested", Wrong::AllGlobal, "4k", moved_page_and_cr3()),
        ("native", Wrong::PcidIgnored, "4k", two_address_spaces()),
        ("nested", Wrong::PcidIgnored, "4k", two_address_spaces()),
        ("shadow", Wrong::PcidIgnored, "4k", two_address_spaces()),
        ("native", Wrong::WalkCacheKept, "4k", moved_table()),
        ("nested", Wrong::WalkCacheKept, "4k", moved_table()),
        ("native", Wrong::LargeAsSmall, "4k", large_page()),
        ("nested", Wrong::LargeAsSmall, "2m", large_page()),
        ("shadow", Wrong::LargeAsSmall, "2m", large_page()),
        ("native", Wrong::Neighbour, "4k", large_page()),
        ("nested", Wrong::Neighbour, "2m", large_page()),
        ("shadow", Wrong::Neighbour, "2m", large_page()),
        ("native", Wrong::PermissionsDropped, "4k", read_only_page()),
        ("nested", Wrong::PermissionsDropped, "4k", read_only_page()),
        ("shadow", Wrong::PermissionsDropped, "4k", read_only_page()),
        ("nested", Wrong::GuestSize, "4k", scattered_host()),
    ] {
        let life = [life];
        let right = violations(spoilt(scheme, Wrong::Nothing, host), &life);
        assert_eq!(right, 0, "{scheme} without {wrong:?}");
        let found = violations(spoilt(scheme, wrong, host), &life);
        assert!(found > 0, "{scheme} with {wrong:?} got through");
    }
}

/// A hypervisor that never compares its shadow with the guest's tables again.
struct NeverInStep(Shadow);

impl Scheme for NeverInStep {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.0.walk(cpu, request, watch)
    }
}

impl Software for NeverInStep {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.0.handle_fault(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::LoadCr3 { vcpu, pcid, keep } => {
                self.0.on(platform, Event::LoadCr3 { vcpu, pcid, keep: true })?;
                platform.cpu.hardware.load_cr3(vcpu, pcid, keep);
                Ok(())
            }
            Event::Invalidate { .. } => platform.bare_metal(event),
            other => self.0.on(platform, other),
        }
    }
}

/// A hypervisor that does not watch the guest's tables: shadow entries stay as they were made.
struct NeverTold(Shadow);

impl Scheme for NeverTold {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.0.walk(cpu, request, watch)
    }
}

impl Software for NeverTold {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.0.handle_fault(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::TableStore { .. } | Event::TableRetired { .. } | Event::PageWritten { .. } => {
                Ok(())
            }
            other => self.0.on(platform, other),
        }
    }
}

#[test]
fn a_shadow_that_is_not_kept_in_step_is_caught() {
    for life in [moved_page(), moved_page_and_cr3()] {
        let build = setup("4k").build("shadow", true);
        let never = NeverInStep(Shadow::new(&build).unwrap());
        let machine = Box::new(Machine::new(never, build).unwrap());
        assert!(violations(machine, &[life]) > 0);
    }
    for life in [moved_page(), moved_table()] {
        let build = setup("4k").build("shadow", true);
        let never = NeverTold(Shadow::new(&build).unwrap());
        let machine = Box::new(Machine::new(never, build).unwrap());
        assert!(violations(machine, &[life]) > 0);
    }
}

/// A walker that takes guest-physical for host-physical addresses.
#[derive(Default)]
struct OneDimension(BTreeSet<Gpa>);

impl Scheme for OneDimension {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let world = &mut cpu.world;
        let root = world.root(request.vcpu);
        let gpa =
            look_up(&world.guest, world.mode, root, request.gva).map(|l| l.apply(request.gva));
        // The host has a page there: its address is what the walker gets wrong.
        if let Ok(gpa) = gpa
            && self.0.insert(gpa.align_down(PageSize::SIZE_4K))
        {
            return Err(Fault::Nested { gpa, fetch: request.fetch });
        }
        let Processor { world, hardware, counters } = cpu;
        walk_1d(hardware, counters, &mut world.tables(request.vcpu), request, watch.parts().0)
    }
}

impl Software for OneDimension {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        _: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        if let (Some(host), Fault::Nested { gpa, .. }) = (&mut platform.host, fault) {
            host.ensure(gpa).unwrap();
            return Ok(Handled::Retry);
        }
        Ok(Handled::GuestFault)
    }
}

#[test]
fn a_walker_that_leaves_the_second_dimension_out_is_caught() {
    let build = setup("4k").build("nested", true);
    let machine = Box::new(Machine::new(OneDimension::default(), build).unwrap());
    assert!(violations(machine, &[scattered_host()]) > 0);
}

/// A host that forgets what it gave: after the exchange the frame of the first guest page is given
/// to the second one again.
#[test]
fn a_host_that_gives_a_frame_twice_is_caught() {
    let setup = setup("4k");
    let mut m = setup.nested();
    let (a, b) = (Gpa::new(0x4000_0000), Gpa::new(0x4000_1000));
    let mut s = Script::with_found_tables(&LONG4);
    s.map_used(0x1000, a.value(), PageSize::SIZE_4K);
    s.map_used(0x2000, b.value(), PageSize::SIZE_4K);
    s.load(0x1000);
    m.run(&s.take()).unwrap();
    let first = m.platform.host.as_ref().unwrap().look_up(a).unwrap();
    // Another host whose next page is the same frame: as many frames are used before.
    let same = (0..64).find_map(|used| {
        let mut host = setup.host();
        (0..used).for_each(|_| assert!(host.alloc_table().is_some()));
        (host.ensure(b).unwrap().frame == first.frame).then_some(host)
    });
    let host = same.unwrap();
    m.platform.host = Some(host);
    s.load(0x2000);
    m.run(&s.take()).unwrap();
    let told = m.verdict().unwrap().told;
    assert!(
        told.iter().any(|t| t.contains("is behind guest pages 0x40001 and 0x40000")),
        "{told:?}"
    );
}

/// The sums: a counter that is off by one is a violation by itself.
#[test]
fn a_counter_that_does_not_add_up_is_caught() {
    let mut m = setup("4k").nested();
    m.run(&moved_page()).unwrap();
    assert_eq!(m.verdict().unwrap().violations, 0);
    m.platform().cpu.counters.l2_tlb_misses += 1;
    assert_eq!(m.verdict().unwrap().violations, 2);
    m.platform().cpu.counters.l1_tlb_misses += 1;
    m.platform().cpu.counters.walks += 1;
    assert_eq!(m.verdict().unwrap().violations, 0);
    m.platform().cpu.counters.rewalks += 1;
    assert_eq!(m.verdict().unwrap().violations, 1);
}

/// The source's own annotation is checked as well.
#[test]
fn a_source_that_names_the_wrong_address_is_caught() {
    let mut m = setup("4k").native();
    let mut life = moved_page();
    life.gpas[1] = Gpa::new(life.gpas[1].value() ^ 0x1000);
    m.run(&life).unwrap();
    let verdict = m.verdict().unwrap();
    assert_eq!((verdict.checked, verdict.violations), (2, 1));
    assert!(verdict.told[0].contains("the source says"), "{:?}", verdict.told);
    assert!(verdict.told[0].contains(&format!("{:?}", Gva::new(0x1000))), "{:?}", verdict.told);
}

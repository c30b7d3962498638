//! The guest's side: its radix tables, or a structure that its OS would keep in their place.

use super::arriving::Arriving;
use super::host::{HostSide, LINES, in_background, references};
use super::mirror::{Mirror, region_bytes, region_level};
use super::supply::Asking;
use super::{
    AHEAD, BACKGROUND, DIRECT, GuestArea, Key, MET, Structure, StructureState, Supply, Work,
};
use crate::hardware::walk::{Fault, HostDimension, Purpose, WalkWatch, walk_2d};
use crate::hardware::world::World;
use crate::hardware::{Hardware, Request};
use crate::measure::counters::{Dimension, ExitReason};
use crate::scheme::{Event, Handled, MachineConfig, MachineError, Platform, Processor};
use nestwalk_hw::Translation;
use nestwalk_tables::entry::{ACCESSED, DIRTY, GLOBAL};
use nestwalk_tables::{Entry, Permissions, look_up};
use nestwalk_types::{Address, Gpa, Gva, Hpa, NumberSet, PageSize, VcpuId};

/// The guest's dimension of a walk, and what its OS does for it.
pub trait GuestSide: Send {
    /// Walks for an access.
    ///
    /// # Errors
    /// The fault that the access meets.
    fn walk<H: HostDimension, W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        host: &mut H,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault>;

    /// Hears of an event before the host's side does.
    ///
    /// # Errors
    /// There is no memory for its tables.
    fn on<H: HostSide>(
        &mut self,
        _platform: &mut Platform,
        _host: &mut H,
        _event: Event<'_>,
    ) -> Result<(), MachineError> {
        Ok(())
    }

    /// Handles a fault of its dimension.
    ///
    /// # Errors
    /// There is no memory for its tables.
    fn fault<H: HostSide>(
        &mut self,
        _platform: &mut Platform,
        _host: &mut H,
        _request: &Request,
    ) -> Result<Handled, MachineError> {
        Ok(Handled::GuestFault)
    }

    /// The structure as it is, if it has one.
    fn state(&self) -> Option<StructureState> {
        None
    }
}

/// The guest's radix tables, as they are.
#[derive(Default)]
pub struct RadixGuest;

impl GuestSide for RadixGuest {
    #[inline]
    fn walk<H: HostDimension, W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        host: &mut H,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let Processor { world, hardware, counters } = cpu;
        let leaves = watch.parts().0;
        walk_2d(hardware, counters, &mut world.tables(request.vcpu), host, request, leaves)
    }
}

/// Registers of regions that a core is modelled with: for speed alone, none is ever missing.
const REGISTERS: usize = 64;

/// A structure in place of the guest's radix tables, and the OS half that keeps it in step with them.
pub struct GuestTable<S> {
    /// The structure.
    pub structure: S,
    mirror: Mirror,
    area: GuestArea,
    /// Frames of regions and their numbers.
    registers: Box<[(u64, u32); REGISTERS]>,
    /// Frames of roots whose regions are followed.
    roots: NumberSet,
}

const NO_REGISTERS: [(u64, u32); REGISTERS] = [(u64::MAX, 0); REGISTERS];

fn no_memory() -> MachineError {
    MachineError::NoTableFrame { machine: String::new(), what: "guest page table of another kind" }
}

impl<S: Structure> GuestTable<S> {
    /// What this makes, in memory of the guest that is set aside for it.
    ///
    /// # Errors
    /// There is none.
    pub fn new(
        build: &mut MachineConfig,
        make: impl FnOnce(&mut dyn Supply) -> Option<S>,
    ) -> Result<Self, MachineError> {
        let bits = build.nested_mode.address_bits();
        let area = GuestArea::new(build.guest_bytes, build.host.as_mut(), bits);
        let mut area = area.ok_or_else(|| MachineError::Variant {
            machine: String::new(),
            reason: format!(
                "host paging of {bits} bits has no room for the guest's tables above its memory; \
                 take 4-level host paging, or a smaller guest"
            ),
        })?;
        let structure = make(&mut area).ok_or_else(no_memory)?;
        let (mirror, roots) = (Mirror::new(build.guest_mode), NumberSet::new());
        Ok(Self { structure, mirror, area, registers: Box::new(NO_REGISTERS), roots })
    }

    /// The frame of the region of an address, and what the root's entry permits.
    #[inline]
    fn region_of(world: &World, vcpu: VcpuId, gva: Gva) -> Option<(u64, Permissions)> {
        let (mode, root) = (world.mode, world.root(vcpu));
        if region_level(mode) == mode.levels {
            return Some((root.page_number(), Permissions::ALL));
        }
        let at = mode.entry_at(root, gva.value(), mode.levels);
        let entry = Entry(world.guest.read(at, mode.entry_bytes).unwrap_or(0));
        let frame = entry.target::<Gpa>().page_number();
        entry.is_present().then(|| (frame, Permissions::ALL.and(entry)))
    }

    #[inline]
    fn register(&mut self, frame: u64) -> Option<u32> {
        let register = &mut self.registers[frame as usize % REGISTERS];
        if register.0 != frame {
            *register = (frame, self.mirror.region(frame)?);
        }
        Some(register.1)
    }

    /// Brings the structure in step with the guest's tables.
    fn keep_in_step<H: HostSide>(
        &mut self,
        platform: &mut Platform,
        host: &mut H,
        vcpu: VcpuId,
    ) -> Result<(), MachineError> {
        if self.mirror.take_forgotten() {
            *self.registers = NO_REGISTERS;
        }
        let area = &mut self.area;
        let mut supply = Asking { area, host: platform.host.as_mut(), asked: 0 };
        for change in self.mirror.take_changes() {
            let key = Key { region: change.region, page: change.page };
            match change.entry {
                Some(entry) => {
                    let done = self.structure.put(key, change.shift, entry, &mut supply);
                    done.map_err(|_| no_memory())?;
                }
                None => {
                    self.structure.remove(key, change.shift, &mut supply);
                }
            }
        }
        let asked = if supply.host.is_some() { supply.asked } else { 0 };
        let Work { updates, moves, pages, resizes, refused, copies } =
            std::mem::take(self.structure.work());
        let c = &mut platform.cpu.counters;
        c.exits[ExitReason::TableMemory as usize] += asked;
        c.guest_table_updates += updates;
        c.guest_table_moves += moves;
        c.guest_table_pages += pages;
        c.table_resizes += resizes;
        c.table_refusals += refused;
        c.guest_table_copies += copies;
        for range in self.area.take_fresh() {
            host.back(platform, vcpu, range)?;
        }
        Ok(())
    }

    /// The regions that come next are those of this root.
    fn root_loaded(&mut self, root: Gpa) {
        self.roots.insert(root.page_number());
        self.structure.root_loaded(root.page_number(), &mut self.area);
    }

    fn root_gone(&mut self, at: Gpa, size: PageSize) {
        let pages = at.page_number()..at.page_number() + size.base_pages();
        let gone: Vec<u64> = self.roots.range(pages).collect();
        for root in gone {
            self.roots.remove(root);
            self.structure.root_gone(root);
        }
    }

    /// Follows all regions of a root.
    fn follow_all(&mut self, world: &World, vcpu: VcpuId) {
        let mode = world.mode;
        for index in 0..mode.entries(mode.levels) {
            let gva = Gva::new(index << mode.span(mode.levels).shift());
            if let Some((frame, _)) = Self::region_of(world, vcpu, gva) {
                self.mirror.follow(world, frame);
            }
        }
    }
}

/// Reads lines of the guest's structure: the host translates each, all at once, and then each is read.
#[inline]
fn fetch<H: HostDimension>(
    hardware: &mut Hardware,
    counters: &mut crate::measure::counters::Counters,
    host: &mut H,
    (core, level): (usize, u8),
    lines: &[u64],
) -> Result<(), Fault> {
    if level == BACKGROUND {
        // A walk that is shown is what the access waits for.
        if !hardware.is_shown() {
            let tally = hardware.tally;
            for line in lines {
                let gpa = Gpa::new(*line);
                let found = host.translate(hardware, counters, core, gpa, Purpose::table(1));
                let at = found.into_iter().map(|found| found.apply(gpa));
                in_background(hardware, counters, core, at);
            }
            hardware.tally = tally;
        }
        return Ok(());
    }
    if level & DIRECT != 0 {
        let place = (core, Dimension::Guest, level & !DIRECT, 0);
        references(hardware, place, lines.iter().map(|at| Hpa::new(*at)));
        return Ok(());
    }
    let mut at = [Hpa::new(0); LINES];
    let (start, mut longest) = (hardware.tally.cycles, 0);
    for (at, line) in at.iter_mut().zip(lines) {
        hardware.tally.cycles = start;
        let gpa = Gpa::new(*line);
        *at = host.translate(hardware, counters, core, gpa, Purpose::table(level))?.apply(gpa);
        longest = longest.max(hardware.tally.cycles - start);
    }
    hardware.tally.cycles = start + longest;
    let count = lines.len().min(LINES);
    references(hardware, (core, Dimension::Guest, level, 0), at.into_iter().take(count));
    Ok(())
}

/// As [`fetch`], of a line that is fetched ahead or was. The host translates its guest-physical address
/// when the walk comes to it.
#[inline(never)]
fn fetch_ahead<H: HostDimension>(
    hardware: &mut Hardware,
    counters: &mut crate::measure::counters::Counters,
    host: &mut H,
    (core, level, arriving): (usize, u8, &mut Arriving),
    line: u64,
) -> Result<(), Fault> {
    if level & AHEAD != 0 {
        arriving.fetch(hardware, counters, (core, level), line);
        return Ok(());
    }
    let purpose = Purpose::table(level & !MET);
    host.translate(hardware, counters, core, Gpa::new(line), purpose)?;
    arriving.meet(hardware, (core, Dimension::Guest, level, 0));
    Ok(())
}

impl<S: Structure> GuestSide for GuestTable<S> {
    #[inline]
    fn walk<H: HostDimension, W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        host: &mut H,
        request: &Request,
        _watch: &mut W,
    ) -> Result<Translation, Fault> {
        let Processor { world, hardware, counters } = cpu;
        let (core, gva, mode) = (request.core(), request.gva, world.mode);
        let missing = |level| Fault::Linear { level, protection: false };
        let (frame, above) =
            Self::region_of(world, request.vcpu, gva).ok_or(missing(mode.levels))?;
        let region = self.register(frame).ok_or(missing(region_level(mode)))?;
        let page = (gva.value() & (region_bytes(mode) - 1)) >> 12;
        hardware.tally.cycles += self.structure.cycles();
        if hardware.is_shown() {
            self.structure.forget_walks(core);
        }
        let mut arriving = Arriving::default();
        let mut read = |level: u8, lines: &[u64]| {
            if Arriving::concerns(level) {
                let place = (core, level, &mut arriving);
                return fetch_ahead(hardware, counters, host, place, lines[0]);
            }
            fetch(hardware, counters, host, (core, level), lines)
        };
        let found = self.structure.look_up(core, Key { region, page }, &mut read)?;
        let found = found.ok_or(missing(1))?;
        let (entry, size) = (found.entry, found.size());
        let permissions = above.and(entry);
        if !permissions.allow(request.write, request.fetch, request.user) {
            let level = mode.leaf_level(size).unwrap_or(1);
            return Err(Fault::Linear { level, protection: true });
        }
        let wanted = if request.write { ACCESSED | DIRTY } else { ACCESSED };
        if !entry.has(wanted) {
            self.structure.mark(&found, wanted);
        }
        let gpa = entry.frame::<Gpa>(size).offset_by(gva.offset_in(size));
        let purpose = Purpose::page(request.write, request.fetch);
        let behind = host.translate(hardware, counters, core, gpa, purpose)?;
        let whole = size;
        let size = whole.min(behind.size());
        counters.splintered += u64::from(size < whole);
        let dirty = (entry.has(DIRTY) || request.write) && behind.is_dirty();
        Ok(Translation::new(
            behind.apply(gpa).align_down(size),
            size,
            permissions.and_also(Permissions { user: true, ..behind.permissions() }),
            dirty,
            entry.has(GLOBAL),
        )
        .splinter_of(whole))
    }

    fn on<H: HostSide>(
        &mut self,
        platform: &mut Platform,
        host: &mut H,
        event: Event<'_>,
    ) -> Result<(), MachineError> {
        let vcpu = match event {
            Event::LoadCr3 { vcpu, keep: true, .. }
                if platform.cpu.hardware.cores[usize::from(vcpu.0)].has_pcids() =>
            {
                return Ok(());
            }
            Event::LoadCr3 { vcpu, .. } | Event::Invalidate { vcpu, .. } => {
                self.structure.forget_walks(usize::from(vcpu.0));
                return Ok(());
            }
            Event::HostChanged { .. } => {
                let cores = platform.cpu.hardware.cores.len();
                (0..cores).for_each(|core| self.structure.forget_walks(core));
                return Ok(());
            }
            Event::TableStore { vcpu, at, old, new } => {
                self.mirror.stored(&platform.cpu.world, at, old, new);
                vcpu
            }
            Event::TableAdded { vcpu, at } => {
                self.root_gone(at, PageSize::SIZE_4K);
                self.mirror.told(&platform.cpu.world, at);
                vcpu
            }
            Event::TableRetired { vcpu, at } => {
                self.root_gone(at, PageSize::SIZE_4K);
                self.mirror.gone_in(at, PageSize::SIZE_4K);
                vcpu
            }
            Event::PageWritten { vcpu, at, size } => {
                self.root_gone(at, size);
                self.mirror.gone_in(at, size);
                vcpu
            }
            Event::WarmStart { vcpu } => {
                self.root_loaded(platform.cpu.world.root(vcpu));
                self.follow_all(&platform.cpu.world, vcpu);
                vcpu
            }
            _ => return Ok(()),
        };
        self.keep_in_step(platform, host, vcpu)
    }

    /// What hardware does not find and the guest's tables have: a region that was not followed yet,
    /// which is from now on, or a table that is linked in too many places, for which software makes the
    /// access.
    fn fault<H: HostSide>(
        &mut self,
        platform: &mut Platform,
        host: &mut H,
        request: &Request,
    ) -> Result<Handled, MachineError> {
        let world = &platform.cpu.world;
        let leaf = look_up(&world.guest, world.mode, world.root(request.vcpu), request.gva);
        let Ok(leaf) = leaf else { return Ok(Handled::GuestFault) };
        if !leaf.permissions.allow(request.write, request.fetch, request.user) {
            return Ok(Handled::GuestFault);
        }
        if let Some((frame, _)) = Self::region_of(world, request.vcpu, request.gva)
            && self.mirror.region(frame).is_none()
        {
            self.mirror.follow(world, frame);
            self.root_loaded(platform.cpu.world.root(request.vcpu));
            self.keep_in_step(platform, host, request.vcpu)?;
            return Ok(Handled::RetryUncounted);
        }
        platform.cpu.counters.table_emulations += 1;
        let gpa = leaf.apply(request.gva);
        host.map(platform, gpa)?;
        let Some((frame, host_size)) = host.find(gpa) else { return Ok(Handled::GuestFault) };
        let size = leaf.size.min(host_size);
        let frame = frame.offset_by(gpa.offset_in(host_size)).align_down(size);
        let global = leaf.entry.has(GLOBAL);
        let found = Translation::new(frame, size, leaf.permissions, request.write, global);
        Ok(Handled::Emulated(found.splinter_of(leaf.size)))
    }

    fn state(&self) -> Option<StructureState> {
        Some(self.structure.state())
    }
}

//! Nested tables (EPT, NPT): built page by page as the guest touches its memory.
//!
//! With `nx_huge_pages` (Linux 4.19.84, 5.4 and later; `is_nx_huge_page_enabled`) a large entry forbids
//! fetches. A fetch from one is a violation, whose answer drops it (`drop_large_spte`), flushes, and
//! maps the page alone by an executable entry of 4 KiB, with its neighbours in an aligned group of 8
//! (`direct_pte_prefetch`). From then on what that large entry would map is mapped by 4 KiB
//! (`disallowed_hugepage_adjust`). KVM's recovery thread, which zaps a sixtieth of these tables each
//! minute so that they may become large again, is left out: simulated programs run for less.

mod copies;
mod followed;
mod moving;

use self::copies::NodeCopy;
pub(super) use self::moving::belongs;
use crate::hardware::Request;
use crate::hardware::walk::NestedTables;
use crate::measure::counters::ExitReason;
use crate::scheme::placing::Use;
use crate::scheme::vmm_options::VmmRules;
use crate::scheme::{MachineError, Platform};
use nestwalk_mm::HostMemory;
use nestwalk_tables::entry::{ACCESSED, DIRTY, LARGE};
use nestwalk_tables::{Entry, Level, MapError, Mode, TableMemory, TableOwner, look_up, store};
use nestwalk_types::{Address, Gpa, Hpa, PageSize, Protection, VcpuId};
use rustc_hash::FxHashSet;

/// The nested tables of one VM.
pub struct NestedMmu {
    mode: &'static Mode,
    memory: TableMemory<Hpa>,
    root: Hpa,
    /// Guest-physical addresses below this have entries.
    limit: u64,
    rules: VmmRules,
    /// Levels above 1, and numbers of pages of such a level, that hold something executed: no large
    /// entry maps them any more.
    executed: FxHashSet<(Level, u64)>,
    /// Copies on other nodes than the first.
    copies: Vec<NodeCopy>,
    /// Where entries were stored since this was last asked, if anybody asks: a hypervisor that runs in a
    /// VM itself is watched by the one below it.
    journal: Option<Vec<Hpa>>,
}

/// Entries in the group that KVM fills together.
const PREFETCH: u64 = 8;

/// Nested tables take their frames from the host; nobody watches their entries.
struct FromHost<'a> {
    host: &'a mut HostMemory,
    /// Tables that were made.
    made: Vec<Hpa>,
    /// Entries that were stored.
    stores: u64,
    /// Where, if anybody asks.
    journal: Option<&'a mut Vec<Hpa>>,
}

impl<'a> FromHost<'a> {
    const fn new(host: &'a mut HostMemory) -> Self {
        Self { host, made: Vec::new(), stores: 0, journal: None }
    }
}

impl TableOwner<Hpa> for FromHost<'_> {
    fn new_table(&mut self, _level: Level) -> Option<Hpa> {
        let table = self.host.alloc_table()?;
        self.made.push(table);
        Some(table)
    }
    fn stored(&mut self, at: Hpa, _entry: Entry) {
        self.stores += 1;
        if let Some(journal) = &mut self.journal {
            journal.push(at);
        }
    }
}

impl NestedMmu {
    /// An empty root table, its frames taken from the host.
    ///
    /// # Errors
    /// There is no host, no frame, or the guest has more memory than such tables can map.
    pub fn new(
        mode: &'static Mode,
        host: &mut Option<HostMemory>,
        rules: VmmRules,
    ) -> Result<Self, MachineError> {
        let what = "nested root table";
        let no_frame = MachineError::NoTableFrame { machine: String::new(), what };
        let (memory, root) = empty_root(mode, host).ok_or(no_frame)?;
        let (executed, copies) = (FxHashSet::default(), Vec::new());
        let (limit, journal) = (1 << mode.address_bits(), None);
        let mmu = Self { mode, memory, root, limit, rules, executed, copies, journal };
        let mut slots = host.iter().flat_map(HostMemory::slots);
        slots.try_for_each(|s| mmu.hot_added(s.gpa, s.bytes))?;
        Ok(mmu)
    }

    /// An empty root table with an entry for each piece of the guest's memory that one covers, in
    /// contiguous frames of the host. No entry has flags.
    ///
    /// # Errors
    /// There is no host, or no such frames.
    pub fn with_flat_root(
        mode: &'static Mode,
        host: &mut Option<HostMemory>,
    ) -> Result<Self, MachineError> {
        // The gap for I/O has entries, too.
        let last = host.as_ref().and_then(|h| h.slots().last());
        let limit = last.map_or(0, |s| s.gpa.value() + s.bytes);
        let entries = limit.div_ceil(mode.span(mode.levels).bytes());
        let pages = (entries * u64::from(mode.entry_bytes)).div_ceil(4096).max(1);
        let order = pages.next_power_of_two().trailing_zeros();
        let what = "segment table in one piece";
        let root = host.as_mut().and_then(|h| {
            let root = h.alloc_tables(order)?;
            (pages..1 << order).for_each(|page| h.free_table(root.offset_by(page << 12)));
            Some(root)
        });
        let root = root.ok_or(MachineError::NoTableFrame { machine: String::new(), what })?;
        let mut memory = TableMemory::new();
        (0..pages).for_each(|page| memory.insert(root.offset_by(page << 12), None));
        let (rules, executed) = (VmmRules::PLAIN, FxHashSet::default());
        let (copies, journal) = (Vec::new(), None);
        Ok(Self { mode, memory, root, limit, rules, executed, copies, journal })
    }

    /// Whether there are entries for new memory.
    ///
    /// # Errors
    /// It lies beyond what the root table has entries for.
    pub fn hot_added(&self, start: Gpa, bytes: u64) -> Result<(), MachineError> {
        let end = start.value().saturating_add(bytes);
        if end <= self.limit {
            return Ok(());
        }
        let (machine, limit) = (self.mode.name.into(), self.limit);
        let reason = if limit == 1 << self.mode.address_bits() {
            format!(
                "guest memory ends at {end:#x}, beyond the {limit:#x} that {} nested tables can map; \
                 take a smaller guest, or host paging of more bits",
                self.mode.name
            )
        } else {
            format!(
                "new guest memory ends at {end:#x}, beyond the table in one piece, which was made for \
                 {limit:#x}; take another machine for guests that add memory"
            )
        };
        Err(MachineError::Variant { machine, reason })
    }

    /// What the hardware walks.
    #[inline]
    pub fn tables(&mut self) -> NestedTables<'_> {
        let (mode, root, ad) = (self.mode, self.root, self.rules.ept_ad);
        NestedTables { mode, memory: &mut self.memory, root, ad }
    }

    /// Bytes of nested tables.
    pub fn bytes(&self) -> u64 {
        self.memory.len() * 4096 + self.copied_bytes()
    }

    /// Answers an EPT violation on a vCPU: asks the host for the page and maps it. `request` is the
    /// access that met it; `None` is a store of the guest kernel through its own mapping. `fetch`: the
    /// page itself was to be fetched from.
    ///
    /// # Errors
    /// Host memory is exhausted, or the address is no guest memory.
    pub fn violation(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        request: Option<&Request>,
        (gpa, fetch): (Gpa, bool),
    ) -> Result<PageSize, MachineError> {
        platform.cpu.counters.exit(ExitReason::EptViolation);
        let linear = request.map(|r| (platform.cpu.world.mode, r.gva));
        platform.cpu.hardware.after_ept_violation(vcpu, (self.mode, gpa), linear);
        if fetch && self.rules.nx_huge_pages {
            return self.map_executed(platform, gpa);
        }
        self.map(platform, gpa)
    }

    /// Asks the host for the page of `gpa` and maps it. Returns the size of the mapping.
    ///
    /// # Errors
    /// As [`NestedMmu::violation`].
    pub fn map(&mut self, platform: &mut Platform, gpa: Gpa) -> Result<PageSize, MachineError> {
        // A segment's pages may be larger in the host's own tables than the policy has them.
        let largest = platform.host.as_ref().map(HostMemory::largest_page);
        self.map_at_most(platform, gpa, largest)
    }

    /// As [`NestedMmu::map`], by an entry of at most this size.
    fn map_at_most(
        &mut self,
        platform: &mut Platform,
        gpa: Gpa,
        most: Option<PageSize>,
    ) -> Result<PageSize, MachineError> {
        let (host_frame, host_size) = platform.host_page(gpa)?;
        let allowed = most.unwrap_or(host_size);
        let (mut level, mut size) = super::largest_leaf(self.mode, host_size.min(allowed));
        while level > 1 && self.is_executed(level, gpa) {
            let smaller = PageSize::from_shift(size.shift() as u8 - 1);
            (level, size) = super::largest_leaf(self.mode, smaller);
        }
        let frame = host_frame.offset_by(gpa.offset_in(host_size)).align_down(size);
        self.store_leaf(platform, gpa, level, frame)?;
        platform.cpu.counters.nested_fills += 1;
        if level == 1 && size < host_size {
            self.prefetch(platform, gpa, host_frame, host_size)?;
        }
        Ok(size)
    }

    fn is_executed(&self, level: Level, gpa: Gpa) -> bool {
        !self.executed.is_empty()
            && self.executed.contains(&(level, gpa.value() >> self.mode.span(level).shift()))
    }

    /// Maps a page that is executed: by 4 KiB, in place of the large entry that may be there.
    fn map_executed(
        &mut self,
        platform: &mut Platform,
        gpa: Gpa,
    ) -> Result<PageSize, MachineError> {
        for level in (2..=self.mode.levels).filter(|l| self.mode.may_be_leaf(*l)) {
            self.executed.insert((level, gpa.value() >> self.mode.span(level).shift()));
        }
        let large = look_up(&self.memory, self.mode, self.root, gpa)
            .is_ok_and(|leaf| leaf.size > PageSize::SIZE_4K);
        if large {
            self.unmap_range(platform, gpa, 1);
            platform.flush_remote_nested();
        }
        self.map(platform, gpa)
    }

    /// Fills the neighbours of a small entry that the same large host page is behind.
    fn prefetch(
        &mut self,
        platform: &mut Platform,
        gpa: Gpa,
        host_frame: Hpa,
        host_size: PageSize,
    ) -> Result<(), MachineError> {
        let first = gpa.page_number() & !(PREFETCH - 1);
        for page in first..first + PREFETCH {
            let near = Gpa::new(page << 12);
            if look_up(&self.memory, self.mode, self.root, near).is_err() {
                let frame = host_frame.offset_by(near.offset_in(host_size));
                self.store_leaf(platform, near, 1, frame)?;
                platform.cpu.counters.nested_prefetches += 1;
            }
        }
        Ok(())
    }

    fn store_leaf(
        &mut self,
        platform: &mut Platform,
        gpa: Gpa,
        level: Level,
        frame: Hpa,
    ) -> Result<(), MachineError> {
        let Some(host) = &mut platform.host else {
            return Err(MachineError::NoTableFrame {
                machine: String::new(),
                what: "nested table",
            });
        };
        let forbidden = level > 1 && self.rules.nx_huge_pages;
        let allowed = if forbidden { Protection::READ_WRITE } else { Protection::ALL };
        // KVM marks writable entries accessed and dirty when it makes them (`set_spte`).
        let flags = if self.rules.ept_ad { ACCESSED | DIRTY } else { 0 };
        let leaf = Entry::leaf(frame, allowed, level > 1).with(flags);
        let mut owner = FromHost { journal: self.journal.as_mut(), ..FromHost::new(host) };
        let stored = store(&mut self.memory, self.mode, self.root, gpa, level, leaf, &mut owner);
        let made = owner.made;
        match stored {
            Ok((_, old)) if level > 1 && old.is_present() && !old.has(LARGE) => {
                // A table of smaller pages, which the host has joined (KVM, `mmu_set_spte`).
                free_below(&mut self.memory, self.mode, (old.target(), level - 1), host);
                platform.flush_remote_nested();
            }
            Ok(_) | Err(MapError::Occupied(_)) => {}
            Err(MapError::OutOfMemory) => {
                return Err(MachineError::NoTableFrame {
                    machine: String::new(),
                    what: "nested table",
                });
            }
        }
        self.place_tables(platform, made);
        if self.copies.is_empty() { Ok(()) } else { self.store_copies(platform, gpa, level, leaf) }
    }

    /// Tables that were made, and the root if this is the first of them, come to lie on their node.
    fn place_tables(&self, platform: &mut Platform, made: Vec<Hpa>) {
        let Some(nodes) = platform.cpu.hardware.caches.nodes() else { return };
        if nodes.of(self.root).is_none() {
            platform.place(self.root, self.mode.table_bytes(self.mode.levels), Use::NestedTable);
        }
        for table in made {
            platform.place(table, 4096, Use::NestedTable);
        }
    }

    /// Frames of the tables.
    pub fn frames(&self) -> impl Iterator<Item = Hpa> {
        self.memory.pages().chain(self.copied_frames())
    }

    /// Whether a page is mapped.
    pub fn maps(&self, gpa: Gpa) -> bool {
        look_up(&self.memory, self.mode, self.root, gpa).is_ok()
    }

    /// Gives all nested tables back. The caller owes the flush of everything that hardware may hold.
    pub fn unload(self, platform: &mut Platform) {
        if let Some(host) = &mut platform.host {
            self.memory.pages().for_each(|table| host.free_table(table));
            self.unload_copies(host);
        }
    }

    /// The host took the page of `size` at `at` back: the entries that map it are cleared. Returns how
    /// many there were; if any, the caller owes a flush.
    pub fn host_changed(&mut self, platform: &mut Platform, at: Gpa, size: PageSize) -> u64 {
        self.unmap_range(platform, at, size.bytes())
    }

    /// As [`NestedMmu::host_changed`], of a range.
    pub fn unmap_range(&mut self, platform: &mut Platform, at: Gpa, bytes: u64) -> u64 {
        let Some(host) = &mut platform.host else { return 0 };
        let mut owner = FromHost { journal: self.journal.as_mut(), ..FromHost::new(host) };
        let cleared = clear(&mut self.memory, (self.mode, self.root), at, bytes, &mut owner);
        if !self.copies.is_empty() {
            self.clear_copies(platform, at, bytes);
        }
        cleared
    }

    /// Whether an entry of the range was accessed; the bits are clear from now on. `None` if the entries
    /// have no such bits.
    pub fn take_accessed(&mut self, at: Gpa, size: PageSize) -> Option<bool> {
        if !self.rules.ept_ad {
            return None;
        }
        let own = take(&mut self.memory, (self.mode, self.root), at, size);
        Some(self.take_copied(at, size) || own)
    }

    /// The guest kernel writes a whole page: every part of it that is not mapped is a violation.
    ///
    /// # Errors
    /// As [`NestedMmu::violation`].
    pub fn back(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        gpa: Gpa,
        size: PageSize,
    ) -> Result<(), MachineError> {
        let end = gpa.value() + size.bytes();
        let mut at = gpa;
        while at.value() < end {
            let page = match look_up(&self.memory, self.mode, self.root, at) {
                Ok(leaf) => leaf.size,
                Err(_) => self.violation(platform, vcpu, None, (at, false))?,
            };
            at = at.align_down(page).offset_by(page.bytes());
        }
        Ok(())
    }
}

/// The cleared pages of a root table, aligned to its length.
fn empty_root(mode: &Mode, host: &mut Option<HostMemory>) -> Option<(TableMemory<Hpa>, Hpa)> {
    let order = mode.root_order();
    let root = host.as_mut().and_then(|host| host.alloc_tables(order))?;
    let mut memory = TableMemory::new();
    (0..1 << order).for_each(|page| memory.insert(root.offset_by(page << 12), None));
    Some((memory, root))
}

/// Frees a table that is linked no more, and those below it.
fn free_below(
    memory: &mut TableMemory<Hpa>,
    mode: &Mode,
    (table, level): (Hpa, Level),
    host: &mut HostMemory,
) {
    for i in 0..mode.entries(level) {
        let at = table.offset_by(i * u64::from(mode.entry_bytes));
        let entry = Entry(memory.read(at, mode.entry_bytes).unwrap_or(0));
        if level > 1 && entry.is_present() && !entry.has(LARGE) {
            free_below(memory, mode, (entry.target(), level - 1), host);
        }
    }
    memory.remove(table);
    host.free_table(table);
}

/// Clears the entries that map a range; how many there were.
fn clear(
    memory: &mut TableMemory<Hpa>,
    (mode, root): (&Mode, Hpa),
    at: Gpa,
    bytes: u64,
    owner: &mut FromHost<'_>,
) -> u64 {
    let (mut cleared, mut done) = (0, 0);
    while done < bytes {
        let gpa = at.offset_by(done);
        let Ok(leaf) = look_up(memory, mode, root, gpa) else {
            done += PageSize::SIZE_4K.bytes();
            continue;
        };
        if let Some(level) = mode.leaf_level(leaf.size) {
            // The table is there, so nothing is allocated and nothing can fail.
            let stored = store(memory, mode, root, gpa, level, Entry(0), owner);
            cleared += u64::from(stored.is_ok());
        }
        // The range may begin within the leaf.
        done += leaf.size.bytes() - gpa.offset_in(leaf.size);
    }
    cleared
}

/// Whether an entry of the range was accessed; the bits are clear from now on.
fn take(
    memory: &mut TableMemory<Hpa>,
    (mode, root): (&Mode, Hpa),
    at: Gpa,
    size: PageSize,
) -> bool {
    let (mut accessed, mut done) = (false, 0);
    while done < size.bytes() {
        let gpa = at.offset_by(done);
        let Ok(leaf) = look_up(memory, mode, root, gpa) else {
            done += PageSize::SIZE_4K.bytes();
            continue;
        };
        let without = leaf.entry.without(ACCESSED);
        if leaf.entry.has(ACCESSED) {
            accessed = true;
            memory.write(leaf.at, mode.entry_bytes, without.0);
        }
        done += leaf.size.bytes() - gpa.offset_in(leaf.size);
    }
    accessed
}

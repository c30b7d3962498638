//! One walk with nothing cached, over tables that hold nothing else: of any paging mode, those among
//! them whose tables and pages no modelled guest has, since its frames have 4 KiB (AArch64 with 16 and
//! 64 KiB granules). The walkers are those of bare metal and of nested paging.
//!
//! A walker translates the first address of a guest's table and reads the entry beside it, so no nested
//! page may be smaller than such a table.

use crate::hardware::walk::{NestedTables, Tables, walk_1d, walk_2d};
use crate::hardware::{Hardware, Request, Step, Watcher};
use crate::measure::counters::{Counters, Dimension};
use nestwalk_hw::Profile;
use nestwalk_tables::{Entry, Level, Mode, TableMemory, TableOwner, store};
use nestwalk_types::{Address, Gpa, Gva, Hpa, PageSize, Protection, VcpuId};
use thiserror::Error;

/// A dimension: its mode, and the page that the walk ends with.
pub type Mapping = (&'static Mode, PageSize);

/// Why there is no such walk.
#[derive(Debug, Error)]
pub enum ColdError {
    /// The mode has no page of that size.
    #[error("{} paging has no {size} pages; it has {}", mode.name, sizes(mode))]
    NoSuchSize {
        /// The paging mode.
        mode: &'static Mode,
        /// The size that was asked for.
        size: PageSize,
    },
    /// A table of the guest is longer than the pages behind it.
    #[error(
        "tables of {} paging are larger than nested pages of {size}: a walk of both is not modelled; take \
         nested pages of {} or more", mode.name, mode.span(1)
    )]
    Tables {
        /// The guest's paging mode.
        mode: &'static Mode,
        /// Size of nested pages.
        size: PageSize,
    },
    /// The guest's page lies beyond what nested tables map.
    #[error(
        "a guest page of {size} does not lie within the {} bits of {} nested tables; take a smaller page",
        mode.address_bits(), mode.name
    )]
    Beyond {
        /// Paging mode of the nested tables.
        mode: &'static Mode,
        /// Size of the guest's page.
        size: PageSize,
    },
    /// The tables do not map the address: it has more bits than the mode.
    #[error("address {gva:#x} has more bits than {} paging translates", mode.name)]
    Address {
        /// The guest's paging mode.
        mode: &'static Mode,
        /// The address.
        gva: u64,
    },
}

fn sizes(mode: &Mode) -> String {
    mode.page_sizes().map(PageSize::short).collect::<Vec<_>>().join(", ")
}

/// Where tables begin.
const TABLES: u64 = 16 << 20;
/// Where guest memory begins in the host's, aligned to the largest page of all modes.
const MEMORY: u64 = 1 << 50;

/// Tables one after the other, each aligned to its length.
struct InOrder {
    mode: &'static Mode,
    next: u64,
}

impl<A: Address> TableOwner<A> for InOrder {
    fn new_table(&mut self, level: Level) -> Option<A> {
        let bytes = self.mode.table_bytes(level);
        let at = self.next.next_multiple_of(bytes);
        self.next = at + bytes;
        Some(A::new(at))
    }
    fn stored(&mut self, _at: A, _entry: Entry) {}
}

/// The tables of a dimension.
struct Built<A> {
    memory: TableMemory<A>,
    root: A,
    owner: InOrder,
}

impl<A: Address> Built<A> {
    fn new(mode: &'static Mode) -> Self {
        let mut memory = TableMemory::new();
        let pages = mode.table_bytes(mode.levels) >> 12;
        let root = A::new(TABLES);
        (0..pages).for_each(|page| memory.insert(root.offset_by(page << 12), None));
        Self { memory, root, owner: InOrder { mode, next: TABLES + (pages << 12) } }
    }

    /// Maps the page of `size` around an address to the one at `frame`.
    fn map<I: Address>(&mut self, address: I, size: PageSize, frame: A) -> Result<(), ColdError> {
        let mode = self.owner.mode;
        let level = mode.leaf_level(size).ok_or(ColdError::NoSuchSize { mode, size })?;
        let leaf = Entry::leaf(frame, Protection::ALL, level > 1);
        let stored =
            store(&mut self.memory, mode, self.root, address, level, leaf, &mut self.owner);
        // Every page of a dimension has the same size, so none stands in the way of another.
        debug_assert!(stored.is_ok());
        Ok(())
    }
}

/// The references of a load's walk, in order: on bare metal, or with `host`'s nested tables.
///
/// # Errors
/// A mode has no pages of the size, or the two do not go together.
pub fn cold_walk(
    profile: &Profile,
    (mode, size): Mapping,
    host: Option<Mapping>,
    gva: u64,
) -> Result<Vec<Step>, ColdError> {
    if gva & !mode.address_mask() != 0 {
        return Err(ColdError::Address { mode, gva });
    }
    let mut guest = Built::<Gpa>::new(mode);
    let frame = Gpa::new(size.bytes().max(1 << 30));
    guest.map(Gva::new(gva), size, frame)?;
    let page = frame.offset_by(gva & size.mask());
    let mut hardware = Hardware::new(profile, 1, u8::from(host.is_some()));
    hardware.watcher = Watcher::Steps(Vec::new());
    let counters = &mut Counters::default();
    let request = Request {
        vcpu: VcpuId(0),
        gva: Gva::new(gva),
        write: false,
        fetch: false,
        user: true,
        pc: Gva::new(0),
    };
    let nested = host.map(|host| nested(&guest, (mode, size), host, page)).transpose()?;
    let Built { mut memory, root, .. } = guest;
    let dimension = Dimension::Guest;
    let mut tables = Tables { mode, memory: &mut memory, root, dimension };
    let walked = match (nested, host) {
        (Some(mut built), Some((mode, _))) => {
            let memory = &mut built.memory;
            let mut nested = NestedTables { mode, memory, root: built.root, ad: true };
            walk_2d(&mut hardware, counters, &mut tables, &mut nested, &request, &mut ())
        }
        _ => walk_1d(&mut hardware, counters, &mut tables, &request, &mut ()),
    };
    match (walked, hardware.watcher) {
        (Ok(_), Watcher::Steps(steps)) => Ok(steps),
        _ => Err(ColdError::Address { mode, gva }),
    }
}

/// Nested tables that map the guest's, and the page of the access.
fn nested(
    guest: &Built<Gpa>,
    (guest_mode, guest_size): Mapping,
    (mode, size): Mapping,
    page: Gpa,
) -> Result<Built<Hpa>, ColdError> {
    if size < guest_mode.span(1) {
        return Err(ColdError::Tables { mode: guest_mode, size });
    }
    if page.value() & !mode.address_mask() != 0 {
        return Err(ColdError::Beyond { mode, size: guest_size });
    }
    let mut built = Built::<Hpa>::new(mode);
    for gpa in guest.memory.pages().chain([page]) {
        built.map(gpa, size, Hpa::new(MEMORY + gpa.align_down(size).value()))?;
    }
    Ok(built)
}

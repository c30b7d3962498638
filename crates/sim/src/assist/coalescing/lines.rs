//! The lines of leaf entries that a walk ends with, and what they say of the pages around its own.

use crate::hardware::walk::{ALIKE, HostWatch, WalkWatch, Watch};
use nestwalk_hw::Line;
use nestwalk_hw::line::{LINE_PAGES, LINE_SHIFT};
use nestwalk_tables::{Entry, Handle, TableMemory};
use nestwalk_types::{Address, Gpa, Gva, Hpa, PageSize};

/// Eight leaf entries of one line, as the walker read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafLine {
    entries: [Entry; LINE_PAGES],
    index: u8,
    seen: bool,
}

impl<A: Address> Watch<A> for LeafLine {
    #[inline]
    fn leaf(&mut self, memory: &TableMemory<A>, held: Handle, at: A, entry_bytes: u8) {
        let bytes = u64::from(entry_bytes);
        let first = at.value() & !(bytes * LINE_PAGES as u64 - 1);
        for (i, entry) in self.entries.iter_mut().enumerate() {
            let at = A::new(first + bytes * i as u64);
            *entry = Entry(memory.entry(held, at, entry_bytes));
        }
        self.index = ((at.value() - first) / bytes) as u8;
        self.seen = true;
    }
}

impl LeafLine {
    /// Before a walk: no line was read.
    pub fn forget(&mut self) {
        self.seen = false;
    }

    /// Whether entry `i` may share a TLB entry with the one that the walk was for.
    fn alike(&self, i: u8) -> bool {
        let own = self.entries[usize::from(self.index)];
        self.entries[usize::from(i & 7)].0 & ALIKE == own.0 & ALIKE
    }

    /// Number of the page that entry `i` leads to.
    fn target(&self, i: u8) -> u64 {
        self.entries[usize::from(i & 7)].target::<Hpa>().page_number()
    }
}

/// The host's line, and where in the host the page is.
#[derive(Default)]
pub struct HostLine {
    /// The nested entries around the page's.
    pub leaves: LeafLine,
    /// Where the page is in the guest's memory, and the size of the host's page.
    page: Option<(Gpa, PageSize)>,
}

impl Watch<Hpa> for HostLine {
    #[inline]
    fn leaf(&mut self, memory: &TableMemory<Hpa>, held: Handle, at: Hpa, entry_bytes: u8) {
        self.leaves.leaf(memory, held, at, entry_bytes);
    }
}

impl HostWatch for HostLine {
    const LOOKS: bool = true;
    #[inline]
    fn page(&mut self, gpa: Gpa, size: PageSize) {
        self.page = Some((gpa, size));
    }
}

/// The lines that a walk ended with, in one dimension or both.
#[derive(Default)]
pub struct Lines {
    guest: LeafLine,
    host: HostLine,
}

impl WalkWatch for Lines {
    type Guest = LeafLine;
    type Host = HostLine;
    #[inline]
    fn parts(&mut self) -> (&mut LeafLine, &mut HostLine) {
        (&mut self.guest, &mut self.host)
    }
}

impl Lines {
    /// Before a walk: nothing was read.
    pub fn forget(&mut self) {
        self.guest.forget();
        self.host.leaves.forget();
        self.host.page = None;
    }

    /// What the walk for the base page at `gva`, which is at `hpa`, has learnt.
    pub fn learnt(&self, gva: Gva, hpa: Hpa) -> Line {
        match self.host.page {
            Some((gpa, size)) => combine((gva, gpa, hpa), size, &self.guest, &self.host.leaves),
            None => native_line(gva, hpa, &self.guest),
        }
    }
}

/// What a walk in one dimension to `frame` has learnt.
pub fn native_line(gva: Gva, frame: Hpa, leaves: &LeafLine) -> Line {
    let mut line = Line::alone(gva.page_number() as u8, frame.page_number());
    if leaves.seen {
        for i in (0..LINE_PAGES as u8).filter(|i| leaves.alike(*i)) {
            line.add(i, leaves.target(i), true);
        }
    }
    line
}

/// What a walk in two dimensions has learnt: of the base page at `gva`, which is at `gpa` in the
/// guest's memory and at `hpa` in the host's, where the nested page has `host_size`. `guest` is unseen
/// if the guest's page is large, `nested` if the nested one is, or if the nested TLB served.
pub fn combine(
    (gva, gpa, hpa): (Gva, Gpa, Hpa),
    host_size: PageSize,
    guest: &LeafLine,
    nested: &LeafLine,
) -> Line {
    let index = gva.page_number() as u8 & 7;
    let (gfn, hfn) = (gpa.page_number(), hpa.page_number());
    let mut line = Line::alone(index, hfn);
    for i in 0..LINE_PAGES as u8 {
        let in_step = gfn.wrapping_add(u64::from(i)).wrapping_sub(u64::from(index));
        // Where the guest has it: its large pages go on beyond the line.
        let at = match guest.seen {
            true if guest.alike(i) => guest.target(i),
            true => continue,
            false => in_step,
        };
        // Where the host has that.
        let pages = host_size.shift() - PageSize::SIZE_4K.shift();
        let frame = if pages > 0 && at >> pages == gfn >> pages {
            hfn.wrapping_add(at).wrapping_sub(gfn)
        } else if nested.seen && at >> LINE_SHIFT == gfn >> LINE_SHIFT && nested.alike(at as u8 & 7)
        {
            nested.target(at as u8 & 7)
        } else {
            continue;
        };
        line.add(i, frame, at == in_step);
    }
    line
}

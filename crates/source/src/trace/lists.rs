//! Lists by order of use, which give what was told lately a small number.

/// Page lists, and pages in each: reuse within 64 MiB has a short name. A recorder's filter has as many
/// sets, and shows pages of one set again one after the other.
const SETS: usize = 16;
const RANKS: usize = 1020;

/// Pages by order of use, in sets by their lowest bits, each with the line that was used last.
pub(super) struct Pages {
    /// Numbers of lines, the latest first.
    lists: Box<[[u64; RANKS]; SETS]>,
    lengths: [u16; SETS],
}

impl Pages {
    pub(super) fn new() -> Self {
        Self { lists: Box::new([[0; RANKS]; SETS]), lengths: [0; SETS] }
    }
    pub(super) const fn set(page: u64) -> usize {
        page as usize % SETS
    }
    /// Pages of the set that were used later than that of `line`; `None` if it is not in its list.
    pub(super) fn rank(&self, line: u64) -> Option<u16> {
        let set = Self::set(line >> 6);
        let list = &self.lists[set][..usize::from(self.lengths[set])];
        list.iter().position(|&known| known >> 6 == line >> 6).map(|rank| rank as u16)
    }
    /// The line that was used last of the page of this rank, if there is one.
    pub(super) fn last(&self, set: usize, rank: u16) -> Option<u64> {
        (rank < self.lengths[set]).then(|| self.lists[set][usize::from(rank)])
    }
    /// The page of this rank was used again, at `line` of it.
    pub(super) fn renew(&mut self, rank: u16, line: u64) {
        let list = &mut self.lists[Self::set(line >> 6)];
        list.copy_within(..usize::from(rank), 1);
        list[0] = line;
    }
    /// Adds the page of a line that is in no list.
    pub(super) fn add(&mut self, line: u64) {
        let length = &mut self.lengths[Self::set(line >> 6)];
        let last = (*length).min(RANKS as u16 - 1);
        *length = last + 1;
        self.renew(last, line);
    }
}

/// Sites by the pages of their instructions, both by order of use: a site that no table guesses is
/// most often one of those that were told lately in a page that was.
pub(super) struct CodePages {
    /// Numbers of pages, the latest first, each with where its sites are.
    order: Vec<(u64, u32)>,
    sites: Vec<Vec<u32>>,
}

impl CodePages {
    const PAGES: usize = 2048;
    const SITES: usize = 255;

    pub(super) const fn new() -> Self {
        Self { order: Vec::new(), sites: Vec::new() }
    }
    /// Pages told since that of the site, and sites of its page told since; `None` if one of them is
    /// too many.
    pub(super) fn ranks(&self, pc: u64, site: u32) -> Option<(u16, u8)> {
        let page = self.order.iter().position(|known| known.0 == pc >> 12)?;
        let sites = &self.sites[self.order[page].1 as usize];
        let rank = sites.iter().position(|&known| known == site)?;
        Some((page as u16, rank as u8))
    }
    /// The site of these ranks, which becomes the latest.
    pub(super) fn take(&mut self, page: u16, rank: u8) -> Option<u32> {
        let &(_, at) = self.order.get(usize::from(page))?;
        let sites = self.sites[at as usize].get_mut(..=usize::from(rank))?;
        sites.rotate_right(1);
        let site = *sites.first()?;
        self.order[..=usize::from(page)].rotate_right(1);
        Some(site)
    }
    /// Adds a site that is in no list.
    pub(super) fn add(&mut self, pc: u64, site: u32) {
        match self.order.iter().position(|known| known.0 == pc >> 12) {
            Some(page) => self.order[..=page].rotate_right(1),
            None if self.order.len() < Self::PAGES => {
                self.order.insert(0, (pc >> 12, self.sites.len() as u32));
                self.sites.push(Vec::new());
            }
            None => {
                self.order.rotate_right(1);
                self.order[0].0 = pc >> 12;
                self.sites[self.order[0].1 as usize].clear();
            }
        }
        let sites = &mut self.sites[self.order[0].1 as usize];
        sites.truncate(Self::SITES - 1);
        sites.insert(0, site);
    }
}

//! Walk tables: which sizes of pages a section has, and what of that a core knows.

use super::way::Line;
use super::{CLUSTER, Cuckoo};
use crate::assist::tables::{Found, Key};
use rustc_hash::FxHashMap;

/// What walk tables know of a section.
#[derive(Clone, Copy, Default)]
pub(super) struct Section {
    /// Entries of smaller pages in it.
    pub(super) smaller: u32,
    /// Way of the page of its size, from 1 on; 0 if there is none.
    pub(super) way: u8,
}

/// Entries of walk tables that a core has, the last used last.
#[derive(Clone, Default)]
pub(super) struct Held {
    pub(super) pmd: Vec<(u32, u64)>,
    pub(super) pud: Vec<(u32, u64)>,
}

fn touch(held: &mut Vec<(u32, u64)>, most: usize, key: (u32, u64)) -> bool {
    if let Some(i) = held.iter().rposition(|k| *k == key) {
        let key = held.remove(i);
        held.push(key);
        return true;
    }
    if most == 0 {
        return false;
    }
    if held.len() >= most {
        held.remove(0);
    }
    held.push(key);
    false
}

/// What a look-up reads.
#[derive(Clone, Copy, Default)]
pub(super) struct Plan {
    pub(super) small: bool,
    pub(super) large: bool,
    pub(super) huge: bool,
    /// The way of the large page, if that is known; 0 if not.
    pub(super) way: u8,
    /// Entries of walk tables that are fetched meanwhile.
    pub(super) missing: [bool; 2],
}

impl Plan {
    /// Whether the line of an entry is read.
    pub(super) const fn reads(&self, found: &Found) -> bool {
        let way = found.slot >> 2 & 3;
        let this_way = self.way == 0 || self.way as usize == way + 1;
        match found.shift {
            12 => self.small,
            30 => self.huge && this_way,
            22 => true,
            _ => self.large && this_way,
        }
    }
}

impl Cuckoo {
    /// A line is in another way: walk tables say so of large pages.
    pub(super) fn moved(&mut self, table: usize, line: &Line, way: usize) {
        let shift = self.tables[table].shift;
        if shift != 21 && shift != 30 {
            return;
        }
        for within in (0..CLUSTER).filter(|i| line.present >> i & 1 == 1) {
            let page = line.cluster * CLUSTER + within;
            let sections = if shift == 30 { &mut self.pud } else { &mut self.pmd };
            sections.entry((line.region, page)).or_default().way = way as u8 + 1;
        }
    }

    /// A page came to a section or left it.
    pub(super) fn count(&mut self, key: Key, shift: u8, more: bool, way: usize) {
        let change = |sections: &mut FxHashMap<(u32, u64), Section>, at: u8| {
            if shift > at {
                return;
            }
            let section = sections.entry((key.region, key.of_size(at))).or_default();
            if shift == at {
                section.way = if more { way as u8 + 1 } else { 0 };
            } else if more {
                section.smaller += 1;
            } else {
                section.smaller -= 1;
            }
            if section.smaller == 0 && section.way == 0 {
                sections.remove(&(key.region, key.of_size(at)));
            }
        };
        // Of pages of 4 MiB walk tables know nothing.
        if shift != 22 {
            change(&mut self.pmd, 21);
        }
        change(&mut self.pud, 30);
    }

    /// Which tables may have a page, and in which way: `None` of all.
    pub(super) fn plan(&mut self, core: usize, key: Key) -> Plan {
        let (two, one) = (key.of_size(21), key.of_size(30));
        let most = (self.config.pmd, self.config.pud);
        let mut none = Held::default();
        let held = self.cores.get_mut(core).unwrap_or(&mut none);
        let pmd = touch(&mut held.pmd, most.0, (key.region, two >> 6));
        let pud = touch(&mut held.pud, most.1, (key.region, one >> 6));
        let mut plan =
            Plan { missing: [!pmd && most.0 > 0, !pud && most.1 > 0], ..Plan::default() };
        let section = self.pmd.get(&(key.region, two)).copied().unwrap_or_default();
        let gib = self.pud.get(&(key.region, one)).copied().unwrap_or_default();
        if pmd && (section.smaller > 0 || section.way > 0) {
            plan.small = section.smaller > 0;
            plan.large = section.way > 0;
            plan.way = section.way;
        } else if pud && gib.way > 0 {
            (plan.huge, plan.way) = (true, gib.way);
        } else {
            plan.small = true;
            plan.large = true;
            plan.huge = !pud;
        }
        plan
    }
}

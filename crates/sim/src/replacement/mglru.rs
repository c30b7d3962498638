//! Linux's multi-generational LRU for anonymous memory (6.1, `mm/vmscan.c`, `mm_inline.h`).
//!
//! Pages are of generations, numbered from `min_seq` to `max_seq`. A page that is faulted in is of
//! the youngest (`folio_add_lru`, `lru_gen_add_folio`). Aging (`try_to_inc_max_seq`) walks the page
//! tables: a page that was used since, its accessed bit cleared, is made one of the youngest
//! generation (`folio_update_gen`), after which a new one begins. Eviction (`evict_folios`) takes
//! from the oldest; a page that has become younger meanwhile goes to its generation (`sort_folio`),
//! and one that is found used to the youngest (`folio_check_references`, which activates what
//! `lru_gen_look_around` has marked). When to age is `should_run_aging`'s.
//!
//! Left out: tiers, which protect files alone that are used by system calls; Bloom filters and
//! `lru_gen_look_around`'s neighbours, which save looks at pages. 6.1's walk does not see accessed
//! bits that a hypervisor's tables have; here it does.

use super::{Page, Replacement, Used};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// `MIN_NR_GENS`: the two youngest generations are not evicted from.
const MIN_GENERATIONS: u64 = 2;
/// `MAX_NR_GENS`.
const MAX_GENERATIONS: usize = 4;

/// The multi-generational LRU.
pub struct Mglru {
    min_seq: u64,
    /// From the oldest on; the tail, which goes first, is in front. A page may be of a younger
    /// generation than its list until eviction looks at it.
    lists: VecDeque<VecDeque<Page>>,
    /// The generation of each page.
    seq: FxHashMap<Page, u64>,
    /// Pages of each generation, from the oldest on.
    sizes: VecDeque<usize>,
}

impl Default for Mglru {
    fn default() -> Self {
        // `lru_gen_init_lruvec`: max_seq is MIN_NR_GENS + 1.
        let lists = (0..=MIN_GENERATIONS + 1).map(|_| VecDeque::new()).collect();
        let sizes = (0..=MIN_GENERATIONS + 1).map(|_| 0).collect();
        Self { min_seq: 0, lists, seq: FxHashMap::default(), sizes }
    }
}

impl Mglru {
    fn max_seq(&self) -> u64 {
        self.min_seq + self.lists.len() as u64 - 1
    }

    /// The page is one of the youngest generation.
    fn rejuvenate(&mut self, page: Page) {
        let max = self.max_seq();
        if let Some(old) = self.seq.insert(page, max) {
            self.sizes[(old - self.min_seq) as usize] -= 1;
        }
        self.sizes[(max - self.min_seq) as usize] += 1;
    }

    fn forget(&mut self, page: Page) {
        if let Some(old) = self.seq.remove(&page) {
            self.sizes[(old - self.min_seq) as usize] -= 1;
        }
    }

    /// `should_run_aging`: three generations are ideal, with a third of the pages in each.
    fn should_age(&self) -> bool {
        let (min, max, total) = (self.min_seq, self.max_seq(), self.seq.len());
        if min + MIN_GENERATIONS != max {
            return min + MIN_GENERATIONS > max;
        }
        let (gens, old) = (MIN_GENERATIONS as usize, self.sizes[0]);
        let young = self.sizes.back().copied().unwrap_or(0);
        young * gens > total || old * (gens + 2) < total
    }

    /// `try_to_inc_max_seq`.
    fn age<E>(&mut self, used: &mut Used<'_, E>) -> Result<(), E> {
        for list in 0..self.lists.len() {
            for page in std::mem::take(&mut self.lists[list]) {
                if !self.seq.contains_key(&page) {
                    continue;
                }
                match used(page)? {
                    Some(true) => self.rejuvenate(page),
                    Some(false) => {}
                    None => {
                        self.forget(page);
                        continue;
                    }
                }
                self.lists[list].push_back(page);
            }
        }
        if self.lists.len() == MAX_GENERATIONS {
            self.join_oldest();
        }
        self.lists.push_back(VecDeque::new());
        self.sizes.push_back(0);
        Ok(())
    }

    /// `inc_min_seq`: the oldest generation becomes the older part of the next.
    fn join_oldest(&mut self) {
        let (Some(oldest), Some(size)) = (self.lists.pop_front(), self.sizes.pop_front()) else {
            return;
        };
        for page in oldest.into_iter().rev() {
            if let Some(seq) = self.seq.get_mut(&page) {
                *seq = (*seq).max(self.min_seq + 1);
                self.lists[0].push_front(page);
            }
        }
        self.sizes[0] += size;
        self.min_seq += 1;
    }
}

impl<E> Replacement<E> for Mglru {
    fn touched(&mut self, page: Page) {
        self.rejuvenate(page);
        if let Some(youngest) = self.lists.back_mut() {
            youngest.push_back(page);
        }
    }

    fn victim(&mut self, used: &mut Used<'_, E>) -> Result<Option<Page>, E> {
        // Whatever is used all the time goes after all pages were looked at twice.
        let mut looks = 2 * self.seq.len();
        while !self.seq.is_empty() {
            if self.should_age() {
                self.age(used)?;
            }
            let Some(page) = self.lists[0].pop_front() else {
                self.join_oldest();
                continue;
            };
            let Some(seq) = self.seq.get(&page).copied() else { continue };
            if seq > self.min_seq {
                self.lists[(seq - self.min_seq) as usize].push_back(page);
                continue;
            }
            match used(page)? {
                None => self.forget(page),
                Some(true) if looks > 0 => {
                    looks -= 1;
                    self.rejuvenate(page);
                    if let Some(youngest) = self.lists.back_mut() {
                        youngest.push_back(page);
                    }
                }
                Some(_) => {
                    self.forget(page);
                    return Ok(Some(page));
                }
            }
        }
        Ok(None)
    }

    fn retain(&mut self, stays: &mut dyn FnMut(Page) -> bool) {
        for list in 0..self.lists.len() {
            for page in std::mem::take(&mut self.lists[list]) {
                match stays(page) {
                    true => self.lists[list].push_back(page),
                    false => self.forget(page),
                }
            }
        }
    }

    fn len(&self) -> usize {
        self.seq.len()
    }
}

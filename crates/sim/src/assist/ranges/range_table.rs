//! A range table (Karakostas et al., ISCA 2015): the ranges of one address space as a B-tree whose
//! nodes are pages at physical addresses, 128 ranges in each. Hardware walks it as it walks page
//! tables.
//!
//! The tree holds where ranges begin; what else an entry says is in the index of runs, which the tree
//! is kept in step with. An inner node has the first range and the address of each child in slots of
//! the same length. Nodes that become empty are given back; they are not merged before that.

/// Ranges in a node.
pub const CAPACITY: usize = 128;
/// Bytes of an entry: base, limit, offset with permissions, and a word of the OS.
pub const ENTRY_BYTES: u64 = 4096 / CAPACITY as u64;

/// Physical address of a node.
pub type Node = u64;

struct Page {
    at: Node,
    /// First pages of ranges, or smallest keys below each child.
    keys: Vec<u64>,
    /// None of a leaf.
    children: Vec<u32>,
}

/// A B-tree of ranges.
pub struct RangeTable {
    pages: Vec<Page>,
    free: Vec<u32>,
    root: Option<u32>,
    ranges: u64,
}

impl Default for RangeTable {
    fn default() -> Self {
        Self::new()
    }
}

/// Which slot a search ends at, and the slots that it compares on the way.
fn search(keys: &[u64], key: u64, mut probe: impl FnMut(usize)) -> usize {
    let (mut low, mut high) = (0, keys.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        probe(middle);
        if keys[middle] <= key { low = middle + 1 } else { high = middle }
    }
    low.saturating_sub(1)
}

impl RangeTable {
    /// Without ranges and without nodes.
    pub const fn new() -> Self {
        Self { pages: Vec::new(), free: Vec::new(), root: None, ranges: 0 }
    }
    /// How many ranges.
    pub const fn len(&self) -> u64 {
        self.ranges
    }
    /// No ranges.
    pub const fn is_empty(&self) -> bool {
        self.ranges == 0
    }
    /// Bytes of its nodes.
    pub const fn bytes(&self) -> u64 {
        (self.pages.len() - self.free.len()) as u64 * 4096
    }

    fn page(&self, node: u32) -> &Page {
        &self.pages[node as usize]
    }

    /// The references of a search for the range of a page number: addresses of the lines compared,
    /// node by node. A line that is compared several times on end is one reference.
    pub fn walk(&self, key: u64, mut reference: impl FnMut(u64)) {
        let Some(mut node) = self.root else { return };
        loop {
            let page = self.page(node);
            let mut last = u64::MAX;
            let slot = search(&page.keys, key, |slot| {
                let line = page.at + ((slot as u64 * ENTRY_BYTES) & !63);
                if line != last {
                    reference(line);
                }
                last = line;
            });
            match page.children.get(slot) {
                Some(&child) => node = child,
                None => return,
            }
        }
    }

    /// Whether a range begins at a page number.
    pub fn contains(&self, key: u64) -> bool {
        self.at_or_after(key) == Some(key)
    }

    /// The first range that begins at a page number or after it.
    pub fn at_or_after(&self, key: u64) -> Option<u64> {
        self.next_in(self.root?, key)
    }

    fn next_in(&self, node: u32, key: u64) -> Option<u64> {
        let page = self.page(node);
        if page.children.is_empty() {
            return page.keys.get(page.keys.partition_point(|k| *k < key)).copied();
        }
        let slot = search(&page.keys, key, |_| {});
        // The next child begins with what is next if this one has nothing more.
        self.next_in(page.children[slot], key).or_else(|| page.keys.get(slot + 1).copied())
    }

    fn new_node(&mut self, page: Page) -> u32 {
        if let Some(node) = self.free.pop() {
            self.pages[node as usize] = page;
            return node;
        }
        self.pages.push(page);
        self.pages.len() as u32 - 1
    }

    /// Adds a range that begins at a page number, if there is none. Nodes are taken from `frame`.
    ///
    /// # Errors
    /// Those of `frame`; the range is not in the table then.
    pub fn insert<E>(
        &mut self,
        key: u64,
        frame: &mut impl FnMut() -> Result<Node, E>,
    ) -> Result<bool, E> {
        let Some(root) = self.root else {
            let at = frame()?;
            self.root = Some(self.new_node(Page { at, keys: vec![key], children: Vec::new() }));
            self.ranges = 1;
            return Ok(true);
        };
        if self.contains(key) {
            return Ok(false);
        }
        // A full root is split first, so that a full child always has a parent with room.
        if self.page(root).keys.len() == CAPACITY {
            let (at, first) = (frame()?, self.page(root).keys[0]);
            let above = self.new_node(Page { at, keys: vec![first], children: vec![root] });
            self.root = Some(above);
        }
        let mut node = self.root.unwrap_or(root);
        while !self.page(node).children.is_empty() {
            let mut slot = search(&self.page(node).keys, key, |_| {});
            let child = self.page(node).children[slot];
            if self.page(child).keys.len() == CAPACITY {
                self.split(node, slot, frame()?);
                slot = search(&self.page(node).keys, key, |_| {});
            }
            let page = &mut self.pages[node as usize];
            page.keys[slot] = page.keys[slot].min(key);
            node = page.children[slot];
        }
        let keys = &mut self.pages[node as usize].keys;
        keys.insert(keys.partition_point(|k| *k < key), key);
        self.ranges += 1;
        Ok(true)
    }

    /// Moves the upper half of a full child into a new node beside it.
    fn split(&mut self, parent: u32, slot: usize, at: Node) {
        let child = self.page(parent).children[slot] as usize;
        let keys = self.pages[child].keys.split_off(CAPACITY / 2);
        let half = (CAPACITY / 2).min(self.pages[child].children.len());
        let children = self.pages[child].children.split_off(half);
        let first = keys[0];
        let new = self.new_node(Page { at, keys, children });
        let parent = &mut self.pages[parent as usize];
        parent.keys.insert(slot + 1, first);
        parent.children.insert(slot + 1, new);
    }

    /// Takes the range that begins at a page number away. Nodes go to `give_back`.
    pub fn remove(&mut self, key: u64, mut give_back: impl FnMut(Node)) -> bool {
        if !self.contains(key) {
            return false;
        }
        let mut path = Vec::new();
        let Some(mut node) = self.root else { return false };
        loop {
            let slot = search(&self.page(node).keys, key, |_| {});
            path.push((node, slot));
            match self.page(node).children.get(slot) {
                Some(&child) => node = child,
                None => break,
            }
        }
        self.ranges -= 1;
        // From the leaf up: what became empty goes, and smallest keys follow.
        let mut emptied = true;
        let mut smallest = None;
        while let Some((node, slot)) = path.pop() {
            let page = &mut self.pages[node as usize];
            if emptied {
                page.keys.remove(slot);
                if !page.children.is_empty() {
                    page.children.remove(slot);
                }
            } else if let Some(smallest) = smallest {
                page.keys[slot] = smallest;
            }
            emptied = page.keys.is_empty();
            smallest = page.keys.first().copied();
            if emptied {
                give_back(page.at);
                self.free.push(node);
            }
        }
        if emptied {
            self.root = None;
        }
        self.shorten(give_back);
        true
    }

    /// A root with one child is none.
    fn shorten(&mut self, mut give_back: impl FnMut(Node)) {
        while let Some(root) = self.root
            && let [only] = self.page(root).children[..]
        {
            give_back(self.page(root).at);
            self.free.push(root);
            self.root = Some(only);
        }
    }

    /// Takes everything away.
    pub fn clear(&mut self, mut give_back: impl FnMut(Node)) {
        let mut left: Vec<u32> = self.root.into_iter().collect();
        while let Some(node) = left.pop() {
            give_back(self.page(node).at);
            left.extend_from_slice(&self.page(node).children);
        }
        *self = Self::new();
    }

    /// How many nodes a search visits.
    pub fn height(&self) -> u32 {
        let (mut node, mut height) = (self.root, 0);
        while let Some(n) = node {
            height += 1;
            node = self.page(n).children.first().copied();
        }
        height
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;
    use std::collections::BTreeSet;

    struct Frames {
        next: u64,
        out: BTreeSet<u64>,
    }
    impl Frames {
        fn take(&mut self) -> Result<Node, ()> {
            self.next += 4096;
            self.out.insert(self.next);
            Ok(self.next)
        }
        fn give(&mut self, at: Node) {
            assert!(self.out.remove(&at), "given back twice");
        }
    }

    #[test]
    fn it_holds_what_a_set_holds_and_leaks_no_node() {
        let mut r = SplitMix64::new(3);
        let mut frames = Frames { next: 0, out: BTreeSet::new() };
        let (mut table, mut naive) = (RangeTable::new(), BTreeSet::new());
        for i in 0..60_000u64 {
            let key = r.below(30_000);
            // It grows first, shrinks then.
            if r.below(10) < if i < 30_000 { 8 } else { 2 } {
                let new = table.insert(key, &mut || frames.take()).unwrap();
                assert_eq!(new, naive.insert(key));
            } else {
                assert_eq!(table.remove(key, |at| frames.give(at)), naive.remove(&key));
            }
            assert_eq!(table.len(), naive.len() as u64);
            assert_eq!(table.bytes(), 4096 * frames.out.len() as u64);
            let probe = r.below(30_100);
            assert_eq!(table.at_or_after(probe), naive.range(probe..).next().copied());
            if i % 10_000 == 0 {
                let mut all = Vec::new();
                let mut at = 0;
                while let Some(key) = table.at_or_after(at) {
                    all.push(key);
                    at = key + 1;
                }
                assert_eq!(all, naive.iter().copied().collect::<Vec<_>>());
            }
        }
        table.clear(|at| frames.give(at));
        assert!(frames.out.is_empty() && table.is_empty());
    }

    #[test]
    fn a_walk_visits_one_node_for_128_ranges_and_two_for_a_few_thousand() {
        let mut frames = Frames { next: 0, out: BTreeSet::new() };
        let mut table = RangeTable::new();
        for key in 0..128 {
            table.insert(10 * key, &mut || frames.take()).unwrap();
        }
        assert_eq!((table.height(), table.bytes()), (1, 4096));
        let lines = |table: &RangeTable, key| {
            let mut lines = Vec::new();
            table.walk(key, |at| lines.push(at));
            lines
        };
        // Slots 64, 96, 112, 120, 124, 126, 127, two to a line.
        let last = [64, 96, 112, 120, 124, 126].map(|slot: u64| 4096 + slot / 2 * 64);
        assert_eq!(lines(&table, 5000), last);
        for key in 128..4000 {
            table.insert(10 * key, &mut || frames.take()).unwrap();
        }
        assert_eq!(table.height(), 2);
        let nodes: BTreeSet<u64> = lines(&table, 20_005).iter().map(|l| l >> 12).collect();
        assert_eq!(nodes.len(), 2);
        for key in 1..4000 {
            table.remove(10 * key, |at| frames.give(at));
        }
        assert_eq!((table.height(), table.bytes()), (1, 4096));
    }
}

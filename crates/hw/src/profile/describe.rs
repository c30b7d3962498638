//! What structures a profile has, in words.

use super::{ArrayProfile, CacheLevelProfile, IndexProfile, Profile, TlbProfile};

/// `64 entries in 4 ways`, or how else they are arranged.
fn arranged(entries: u32, ways: u32) -> String {
    match ways {
        1 => format!("{entries} entries, direct-mapped"),
        _ if ways == entries => format!("{entries} entries, fully associative"),
        _ => format!("{entries} entries in {ways} ways"),
    }
}

fn tlb(array: &TlbProfile) -> String {
    let mut text = format!("{}: {}", array.sizes.join(" "), arranged(array.entries, array.ways));
    match &array.index {
        None => {}
        Some(IndexProfile::Named(name)) => text += &format!(", index {name}"),
        Some(IndexProfile::Xor { xor }) => text += &format!(", index xor {xor:?}"),
    }
    if let Some(replacement) = &array.replacement {
        text += &format!(", {replacement}");
    }
    if array.pdes {
        text += ", with page-directory entries";
    }
    if !array.smashed.is_empty() {
        text += &format!(", smashes {}", array.smashed.join(" "));
    }
    text
}

fn cache(level: &CacheLevelProfile) -> String {
    format!("{} KiB in {} ways, {} cycles", level.kib, level.ways, level.cycles)
}

impl Profile {
    /// Every structure: its key, what it is, and where that comes from.
    pub fn structures(&self) -> Vec<(String, String, String)> {
        let mut rows = Vec::new();
        for (key, level) in [
            ("l1d_tlb", &self.l1d_tlb),
            ("l1i_tlb", &self.l1i_tlb),
            ("l2_tlb", &self.l2_tlb),
            ("l2i_tlb", &self.l2i_tlb),
        ] {
            rows.extend(level.iter().map(|a| (key.to_owned(), tlb(a), a.source.clone())));
        }
        if !self.pcid.is_plain() {
            let p = &self.pcid;
            let levels = [("l1d", p.l1d), ("l1i", p.l1i), ("l2", p.l2)];
            let held = levels.iter().filter_map(|(k, n)| n.map(|n| format!("{n} in {k}")));
            let held: Vec<String> = held.collect();
            let text = match (p.supported, held.is_empty()) {
                (false, _) => "none: every load of CR3 flushes".to_owned(),
                (true, true) => "any number".to_owned(),
                (true, false) => held.join(", "),
            };
            rows.push(("pcid".into(), text, p.source.clone()));
        }
        for (key, caches) in
            [("walk_cache", &self.walk_cache), ("nested_walk_cache", &self.nested_walk_cache)]
        {
            let levels = [
                ("pde", &caches.pde),
                ("pdpte", &caches.pdpte),
                ("pml4e", &caches.pml4e),
                ("pml5e", &caches.pml5e),
            ];
            let there = levels.iter().filter_map(|(level, a)| a.as_ref().map(|a| (level, a)));
            rows.extend(there.map(|(level, a)| {
                (format!("{key}.{level}"), arranged(a.entries, a.ways), a.source.clone())
            }));
        }
        if let Some(c) = &self.entry_cache {
            let text = format!("{} from level {} on", arranged(c.entries, c.ways), c.lowest_level);
            rows.push(("entry_cache".into(), text, c.source.clone()));
        }
        if let Some(ArrayProfile { entries, ways, source }) = &self.nested_tlb {
            rows.push(("nested_tlb".into(), arranged(*entries, *ways), source.clone()));
        }
        let c = &self.caches;
        for (key, level) in [("l1d", &c.l1d), ("l1i", &c.l1i), ("l2", &c.l2), ("llc", &c.llc)] {
            rows.push((format!("caches.{key}"), cache(level), level.source.clone()));
        }
        rows
    }
}

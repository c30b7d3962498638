//! Whether the values of a profile make sense, alone and together.

use super::{Profile, ProfileError, TlbProfile, parse_page_size};
use crate::geometry::Geometry;
use crate::replacement::Replacement;
use nestwalk_types::PageSize;

/// What is wrong with an array of a TLB level, by itself.
fn check_array(array: &TlbProfile, second_level: bool) -> Result<(), String> {
    let geometry = Geometry::new(array.entries, array.ways).map_err(|e| e.to_string())?;
    if let Some(index) = &array.index {
        index.indexer(geometry.sets())?;
    }
    if let Some(name) = &array.replacement {
        Replacement::parse(name)?.check(array.ways)?;
    }
    if !second_level && (array.pdes || !array.smashed.is_empty()) {
        return Err("pdes and smashed are for the second level".into());
    }
    Ok(())
}

impl Profile {
    pub(super) fn check(&self, path: &str) -> Result<(), ProfileError> {
        let wrong = |key: &str, problem: String| ProfileError::Value {
            path: path.into(),
            key: key.into(),
            problem,
        };
        for (key, level, second) in [
            ("l1d_tlb", &self.l1d_tlb, false),
            ("l1i_tlb", &self.l1i_tlb, false),
            ("l2_tlb", &self.l2_tlb, true),
            ("l2i_tlb", &self.l2i_tlb, true),
        ] {
            if key == "l2i_tlb" && level.is_empty() {
                continue;
            }
            check_level(level, second).map_err(|problem| wrong(key, problem))?;
        }
        if let Some(array) = self.l2i_tlb.iter().find(|a| a.pdes) {
            let problem =
                format!("pdes of the array for {}: they are l2_tlb's", array.sizes.join(", "));
            return Err(wrong("l2i_tlb", problem));
        }
        if !self.pcid.is_plain() && self.pcid.source.trim().is_empty() {
            return Err(wrong("pcid", "the source is empty; every number names one".into()));
        }
        self.check_walk_caches(&wrong)?;
        self.check_caches(&wrong)?;
        self.check_numbers(&wrong)
    }

    fn check_walk_caches(
        &self,
        wrong: &impl Fn(&str, String) -> ProfileError,
    ) -> Result<(), ProfileError> {
        let arrays = [
            ("walk_cache.pde", &self.walk_cache.pde),
            ("walk_cache.pdpte", &self.walk_cache.pdpte),
            ("walk_cache.pml4e", &self.walk_cache.pml4e),
            ("walk_cache.pml5e", &self.walk_cache.pml5e),
            ("nested_walk_cache.pde", &self.nested_walk_cache.pde),
            ("nested_walk_cache.pdpte", &self.nested_walk_cache.pdpte),
            ("nested_walk_cache.pml4e", &self.nested_walk_cache.pml4e),
            ("nested_walk_cache.pml5e", &self.nested_walk_cache.pml5e),
            ("nested_tlb", &self.nested_tlb),
        ];
        for (key, array) in arrays.iter().filter_map(|(k, a)| a.as_ref().map(|a| (k, a))) {
            Geometry::new(array.entries, array.ways).map_err(|e| wrong(key, e.to_string()))?;
        }
        if self.walk_cache.pde.is_some() && self.l2_tlb.iter().any(|a| a.pdes) {
            let problem =
                "l2_tlb holds page-directory entries (pdes): there is no cache of them beside";
            return Err(wrong("walk_cache.pde", problem.into()));
        }
        if let Some(cache) = &self.entry_cache {
            Geometry::new(cache.entries, cache.ways)
                .map_err(|e| wrong("entry_cache", e.to_string()))?;
            if !(2..=5).contains(&cache.lowest_level) {
                let problem = format!("{} must be 2 to 5", cache.lowest_level);
                return Err(wrong("entry_cache.lowest_level", problem));
            }
        }
        Ok(())
    }

    fn check_caches(
        &self,
        wrong: &impl Fn(&str, String) -> ProfileError,
    ) -> Result<(), ProfileError> {
        let c = &self.caches;
        let levels = [("l1d", &c.l1d), ("l1i", &c.l1i), ("l2", &c.l2), ("llc", &c.llc)];
        for (name, level) in levels {
            let key = format!("caches.{name}");
            let lines = level.kib.checked_mul(16).unwrap_or(0);
            let geometry =
                Geometry::new(lines, level.ways).map_err(|e| wrong(&key, e.to_string()))?;
            if geometry.sets().trailing_zeros() < 6 {
                let problem = format!(
                    "{} sets: the number of sets must be a multiple of 64",
                    geometry.sets()
                );
                return Err(wrong(&key, problem));
            }
        }
        for pair in [levels[0], levels[2], levels[3]].windows(2) {
            let ((below, a), (above, b)) = (pair[0], pair[1]);
            if a.cycles >= b.cycles || a.kib >= b.kib {
                let problem = format!(
                    "{} KiB at {} cycles is not smaller and faster than {above}'s {} KiB at {}",
                    a.kib, a.cycles, b.kib, b.cycles
                );
                return Err(wrong(&format!("caches.{below}"), problem));
            }
        }
        if c.memory_cycles.value <= f64::from(c.llc.cycles) {
            let problem = format!(
                "{} is not slower than the last-level cache's {}",
                c.memory_cycles.value, c.llc.cycles
            );
            return Err(wrong("caches.memory_cycles", problem));
        }
        self.check_nodes(wrong)
    }

    fn check_nodes(
        &self,
        wrong: &impl Fn(&str, String) -> ProfileError,
    ) -> Result<(), ProfileError> {
        let Some(nodes) = &self.nodes else { return Ok(()) };
        let local = ("caches.memory_cycles", self.caches.memory_cycles.value);
        let remote = ("nodes.remote_cycles", nodes.remote_cycles.value);
        let loaded = ("nodes.loaded_cycles", nodes.loaded_cycles.value);
        for ((near, least), (key, value)) in [(local, remote), (remote, loaded)] {
            if value < least {
                return Err(wrong(key, format!("{value} is below {near}, {least}")));
            }
        }
        Ok(())
    }

    fn check_numbers(
        &self,
        wrong: &impl Fn(&str, String) -> ProfileError,
    ) -> Result<(), ProfileError> {
        for (key, number) in self.numbers() {
            let share = key.ends_with("_exposed") || key.ends_with("_share");
            let n = number.value;
            if !n.is_finite() || n < 0.0 || (share && n > 1.0) {
                let range = if share { "between 0 and 1" } else { "0 or more" };
                return Err(wrong(key, format!("{n} must be {range}")));
            }
            if number.source.trim().is_empty() {
                return Err(wrong(key, "the source is empty; every number names one".into()));
            }
        }
        let flags = [
            ("core.itlb_multihit", &self.core.itlb_multihit),
            ("core.nested_ad_always", &self.core.nested_ad_always),
        ];
        for (key, flag) in flags {
            if ![0.0, 1.0].contains(&flag.value) {
                return Err(wrong(key, format!("{} must be 0 or 1", flag.value)));
            }
        }
        if self.core.frequency_mhz.value < 1.0 || self.core.base_cpi.value <= 0.0 {
            return Err(wrong("core", "frequency_mhz and base_cpi must be above 0".into()));
        }
        Ok(())
    }
}

/// What is wrong with a TLB level.
fn check_level(level: &[TlbProfile], second: bool) -> Result<(), String> {
    let mut seen = Vec::new();
    for array in level {
        check_array(array, second)?;
        for size in &array.sizes {
            let Some(parsed) = parse_page_size(size) else {
                return Err(format!("page size `{size}`: use 4k, 16k, 2m, 4m or 1g"));
            };
            if seen.contains(&parsed) {
                return Err(format!("page size {size} stands in two arrays"));
            }
            seen.push(parsed);
        }
    }
    if !seen.contains(&PageSize::SIZE_4K) {
        return Err("no array holds 4k pages; one must".into());
    }
    for size in level.iter().flat_map(|a| &a.smashed) {
        let Some(parsed) = parse_page_size(size) else {
            return Err(format!("smashed page size `{size}`: use 2m, 4m or 1g"));
        };
        if parsed <= PageSize::SIZE_16K || seen.contains(&parsed) {
            return Err(format!(
                "smashed page size {size}: it must be 2m, 4m or 1g, and in no array of the level"
            ));
        }
    }
    Ok(())
}

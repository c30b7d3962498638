//! Walks in paging modes, or with page sizes, that no modelled kernel has: over tables made by hand.

use crate::args::WalkArgs;
use anyhow::{Result, anyhow, bail};
use nestwalk_hw::Profile;
use nestwalk_lab::words;
use nestwalk_sim::compare::cold::{Mapping, cold_walk};
use nestwalk_sim::compare::spec::PAGES;
use nestwalk_sim::hardware::Step;
use nestwalk_tables::Mode;
use nestwalk_types::PageSize;

/// What walks: its name, and the mapping of each dimension.
pub struct ByHand {
    /// `native:16k`, `nested:64k+512m`.
    pub name: String,
    guest: Mapping,
    host: Option<Mapping>,
}

impl ByHand {
    /// The walk that is asked for, if it is none of a modelled guest and host.
    ///
    /// # Errors
    /// It is one of neither, or a mode has no such pages.
    pub fn asked(args: &WalkArgs, modes: (&'static Mode, &'static Mode)) -> Result<Option<Self>> {
        let (machine, pages) = args.machine.split_once(':').unwrap_or((&args.machine, ""));
        let pages = if pages.is_empty() { args.page_size.as_str() } else { pages };
        let (guest, host) = pages.split_once('+').unwrap_or((pages, pages));
        let scheme = machine.to_ascii_lowercase();
        let nested = match scheme.as_str() {
            "native" => false,
            "nested" => true,
            _ if modes.0.span(1) == PageSize::SIZE_4K => return Ok(None),
            _ => bail!(
                "machine `{}`: modelled kernels have pages of 4 KiB, and {} has none; native and nested \
                 walk its tables",
                args.machine,
                modes.0.name
            ),
        };
        let known = |mode: &Mode, word: &str| {
            // A policy, with all that a kernel does.
            mode.span(1) == PageSize::SIZE_4K
                && (PAGES.contains(&word) || size(mode, word).is_none())
        };
        if known(modes.0, guest) && (!nested || known(modes.1, host)) {
            return Ok(None);
        }
        let mapping = |mode: &'static Mode, word: &str| {
            // The base page is what is meant where nobody says a size.
            let base = (word == "4k").then(|| mode.span(1));
            let size = size(mode, word).or(base);
            size.map(|size| (mode, size)).ok_or_else(|| {
                let sizes: Vec<String> = mode.page_sizes().map(PageSize::short).collect();
                anyhow!(
                    "machine `{}`: {} paging has no {word} pages; it has {}",
                    args.machine,
                    mode.name,
                    sizes.join(", ")
                )
            })
        };
        let guest = mapping(modes.0, guest)?;
        let host = if nested {
            words::pair(&args.machine, modes.0, modes.1)?;
            Some(mapping(modes.1, host)?)
        } else {
            None
        };
        if args.caches {
            bail!(
                "machine `{}`: such pages have no walk with walk caches; leave out --caches",
                args.machine
            );
        }
        let name = match host {
            Some((_, host)) => format!("{scheme}:{}+{host}", guest.1),
            None => format!("{scheme}:{}", guest.1),
        };
        Ok(Some(Self { name, guest, host }))
    }

    /// Its references.
    ///
    /// # Errors
    /// The dimensions do not go together.
    pub fn steps(&self, profile: &Profile, address: u64) -> Result<Vec<Step>> {
        cold_walk(profile, self.guest, self.host, address)
            .map_err(|e| anyhow!("machine `{}`: {e}", self.name))
    }
}

/// The page of that name in a mode.
fn size(mode: &Mode, word: &str) -> Option<PageSize> {
    mode.page_sizes().find(|size| size.short() == word)
}

//! Words for paging modes and page sizes, and what goes together.

use anyhow::{Context, Result, anyhow, bail};
use nestwalk_mm::{FREE_BLOCKS, Fragmentation, FreeBlocks, PagePolicy};
use nestwalk_sim::compare::spec::{Defaults, GuestSpec, MachineSpec, PAGES};
use nestwalk_sim::replacement::Kind;
use nestwalk_sim::schemes::Catalogue;
use nestwalk_tables::{Mode, Stage};
use nestwalk_types::PageSize;

/// The paging mode of that name; `option` is for messages.
///
/// # Errors
/// There is none.
pub fn mode(option: &str, name: &str) -> Result<&'static Mode> {
    let fits = |m: &&Mode| !matches!(m.stage, Stage::Second(_));
    let found = by_name(option, name, fits)?;
    if !fits(&found) {
        bail!(
            "{option} {name}: maps physical addresses of guests, in nested tables alone; there are: {}",
            names(fits)
        );
    }
    Ok(found)
}

/// The names of the modes that fit.
fn names(fits: impl Fn(&&Mode) -> bool) -> String {
    let fitting: Vec<&str> = Mode::all().filter(|m| fits(m)).map(|m| m.name).collect();
    fitting.join(", ")
}

fn by_name(option: &str, name: &str, fits: impl Fn(&&Mode) -> bool) -> Result<&'static Mode> {
    Mode::by_name(name)
        .ok_or_else(|| anyhow!("{option} {name}: no such paging mode; there are: {}", names(fits)))
}

/// The paging mode of that name for nested tables and the host; `option` is for messages.
///
/// # Errors
/// There is none, or the host cannot have it.
pub fn host_mode(option: &str, name: &str) -> Result<&'static Mode> {
    let fits = |m: &&Mode| m.stage != Stage::First && m.address_bits() > 32;
    let found = by_name(option, name, fits)?;
    if found.address_bits() == 32 {
        bail!(
            "{option} {name}: nested tables and the host's have 64-bit addresses; there are: {}",
            names(fits)
        );
    }
    if !fits(&found) {
        bail!(
            "{option} {name}: maps addresses of programs, and no guest's physical ones; there are: {}",
            names(fits)
        );
    }
    Ok(found)
}

/// Whether a guest in this mode can have nested tables in that one.
///
/// # Errors
/// They are of different architectures; the message names those that fit.
pub fn pair(machine: &str, guest: &Mode, host: &Mode) -> Result<()> {
    if guest.architecture == host.architecture {
        return Ok(());
    }
    let fits = |m: &&Mode| {
        m.architecture == guest.architecture && m.stage != Stage::First && m.address_bits() > 32
    };
    bail!(
        "machine `{machine}`: a guest under {} paging and nested tables under {} are of two architectures; \
         give --host-paging one of: {}",
        guest.name,
        host.name,
        names(fits)
    )
}

/// What stands for every scheme in a list of machines.
pub const ALL_SCHEMES: &str = "all";

/// Words for page sizes, and what they mean.
pub static PAGE_WORDS: [(&str, &str); 6] = [
    ("4k", "base pages only, 4 KiB"),
    (
        "thp",
        "transparent huge pages: 2 MiB where a block is free at the first touch, or else 4 KiB",
    ),
    ("khugepaged", "as thp, and a daemon makes large pages of small ones afterwards"),
    ("2m", "explicit huge pages of 2 MiB, as of hugetlbfs; smaller ones if no block is free"),
    ("4m", "explicit huge pages of 4 MiB, of 2-level paging"),
    ("1g", "explicit huge pages of 1 GiB; smaller ones if no block is free"),
];

/// A list of machines in which `all` stands for every scheme once, with its defaults, but those that
/// cannot be: `leave_out` hears which, and why. `fits` says whether a machine can be.
pub fn expand(
    list: &str,
    catalogue: &Catalogue,
    defaults: Defaults,
    fits: impl Fn(&MachineSpec) -> Result<()>,
    leave_out: &mut dyn FnMut(String),
) -> String {
    let mut names: Vec<String> = Vec::new();
    let words = list.split(',').map(str::trim);
    // What is named by itself is not there twice.
    let parse = |name: &str| MachineSpec::parse_in(catalogue, name, defaults);
    let others = words.clone().filter(|w| *w != ALL_SCHEMES);
    let named: Vec<String> = others.flat_map(parse).map(|m| m.name).collect();
    for word in words {
        if word != ALL_SCHEMES {
            names.push(word.into());
            continue;
        }
        for scheme in catalogue.schemes() {
            match parse(scheme.name).map_err(Into::into).and_then(|m| fits(&m).map(|()| m)) {
                Ok(m) if named.contains(&m.name) => {}
                Ok(m) => names.push(m.name),
                Err(why) => leave_out(format!("{why:#}")),
            }
        }
    }
    names.join(",")
}

/// The page policy of that name; `option` is for messages.
///
/// # Errors
/// There is none.
pub fn pages(option: &str, name: &str) -> Result<PagePolicy> {
    PagePolicy::by_name(name).ok_or_else(|| {
        anyhow!("{option} {name}: no such page size; there are: {}", PAGES.join(", "))
    })
}

/// What an option of fragmentation says: a degree, or free blocks by order. `option` is for messages.
///
/// # Errors
/// It is no degree, no name, and no file that can be read.
pub fn fragmentation(option: &str, text: &str) -> Result<Fragmentation> {
    if let Ok(degree) = text.parse() {
        return Ok(Fragmentation::Degree(degree));
    }
    if let Some(blocks) = FreeBlocks::by_name(text) {
        return Ok(Fragmentation::Blocks(blocks));
    }
    let contents = std::fs::read_to_string(text).with_context(|| {
        let names: Vec<&str> = FREE_BLOCKS.iter().map(|f| f.0).collect();
        let names = names.join(", ");
        format!("{option} {text}: no degree, none of {names}, and no file that can be read")
    })?;
    let blocks = FreeBlocks::parse(&contents).map_err(|e| anyhow!("{option} {text}: {e}"))?;
    Ok(Fragmentation::Blocks(blocks))
}

/// Numbers of frames with `+` between them; none of an empty text. `option` is for messages.
///
/// # Errors
/// One is no number.
pub fn frames(option: &str, text: &str) -> Result<Vec<u64>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    text.split('+').map(number).collect::<Result<Vec<u64>, _>>().map_err(|_| {
        anyhow!(
            "{option} {text}: write numbers of frames (gPA / 4096) with `+` between them, as in \
             0x1000+0x1001"
        )
    })
}

/// Bytes of addresses that a process has: the lower half, or 3 GiB of 4 beside a 32-bit kernel.
pub const fn process_bytes(mode: &Mode) -> u64 {
    match mode.address_bits() {
        32 => 3 << 30,
        bits => 1 << (bits - 1),
    }
}

/// Whether a machine can be built with these paging modes.
///
/// # Errors
/// A dimension has no pages of the size asked for, or the modes do not go together.
pub fn machine(spec: &MachineSpec, guest: &'static Mode, host: &'static Mode) -> Result<()> {
    let modelled = match spec.guest {
        GuestSpec::Observed => None,
        GuestSpec::Modelled(policies) => Some(policies),
    };
    if spec.scheme.virtualized {
        pair(&spec.name, guest, host)?;
    }
    for mode in [guest, host] {
        if mode.span(1) != PageSize::SIZE_4K && (spec.scheme.virtualized || mode == guest) {
            bail!(
                "machine `{}`: modelled kernels have pages of 4 KiB, and {} has none; `walk` shows a walk of it",
                spec.name,
                mode.name
            );
        }
    }
    let dimensions = [(modelled, guest, "guest"), (spec.host, host, "host")];
    for (dimension, mode, which) in dimensions {
        if let Some(dimension) = dimension {
            let name = &spec.name;
            dimension.pages.check(mode).with_context(|| format!("machine `{name}`: {which}"))?;
        }
    }
    Ok(())
}

/// The policy of page replacement of that name.
///
/// # Errors
/// There is none.
pub fn replacement(name: &str) -> Result<Kind> {
    let known: Vec<&str> = Kind::ALL.iter().map(|k| k.0).collect();
    Kind::by_name(name).ok_or_else(|| anyhow!("replacement {name}: there are {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_sim::SCHEMES;

    #[test]
    fn every_page_size_has_its_words() {
        assert_eq!(PAGE_WORDS.map(|w| w.0), PAGES);
    }

    #[test]
    fn all_is_every_scheme_once_and_what_cannot_be_is_told() {
        let catalogue = Catalogue::new();
        let expanded = |list: &str, observed: bool| {
            let defaults = Defaults { pages: PagePolicy::Base, observed };
            let mut left_out = Vec::new();
            let fits = |_: &MachineSpec| Ok(());
            let names = expand(list, &catalogue, defaults, fits, &mut |why| left_out.push(why));
            (names.split(',').map(String::from).collect::<Vec<_>>(), left_out)
        };
        let (names, left_out) = expanded("all", false);
        assert_eq!((names.len(), left_out.len()), (SCHEMES.len(), 0));
        for (name, scheme) in names.iter().zip(SCHEMES) {
            assert_eq!(name.split([':', '/']).next(), Some(scheme.name));
        }
        // Every machine once, whatever else is named.
        let (more, _) = expanded("nested:4k, all,ept:2m", false);
        assert_eq!(more.len(), SCHEMES.len() + 1);
        let list = more.join(",");
        assert!(MachineSpec::parse_list(&list, PagePolicy::Base).is_ok(), "{list}");
        // The kernel of a recorded guest keeps no primary region.
        let (names, left_out) = expanded("all", true);
        assert_eq!(names.len() + left_out.len(), SCHEMES.len());
        assert!(left_out.iter().any(|why| why.contains("guest-direct")), "{left_out:?}");
        assert_eq!(expanded("native,shadow", true).0, ["native", "shadow"]);
    }
}

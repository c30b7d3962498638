//! What stands in the tables of `compare`: headings, names of machines, and other words.

use crate::show::columns::{self, plain};
use crate::show::headings::{self, Heading, RELATIVE_TO};
use nestwalk_hw::ServedBy;
use nestwalk_lab::words::{ALL_SCHEMES, PAGE_WORDS};
use nestwalk_mm::PagePolicy;
use nestwalk_sim::schemes::ALIASES;
use nestwalk_sim::{GuestSpec, MachineSpec};

/// Every heading of the tables of `compare` but those that are names.
fn all() -> impl Iterator<Item = &'static Heading> {
    let of_machines = columns::printed().map(|c| &c.heading);
    [&headings::MACHINE]
        .into_iter()
        .chain(of_machines)
        .chain(&headings::EXITS)
        .chain(&headings::SEGMENTS)
        .chain(&headings::CONTIGUITY)
        .chain(&headings::ENERGY)
        .chain(&headings::COVERAGE)
        .chain(&headings::OVER_TIME)
        .chain(&headings::SENSITIVITY)
        .chain(&headings::SAMPLED)
        .chain(&headings::ADVICE)
        .chain(&headings::MEASURED)
        .chain(&headings::CHECKED)
        .chain(&headings::RECORDED)
}

/// Columns with this heading.
pub fn heading(name: &str) -> String {
    // Behind a stroke may stand a machine.
    let title = name.split_once(&format!(" {RELATIVE_TO}")).map_or(name, |(title, _)| title);
    let is = |h: &&Heading, title: &str| plain(h.title) == plain(title);
    let whole = all().any(|h| is(&h, name));
    let found = all().filter(|h| is(h, if whole { name } else { title }));
    let line = |h: &Heading| {
        let from = if h.from.is_empty() { String::new() } else { format!(" ({})", h.from) };
        format!("column \"{}\"{from}: {}\n", h.line(), h.meaning)
    };
    found.map(line).collect()
}

/// A machine, by the name that tables have.
pub fn machine(name: &str) -> String {
    if !name.contains([':', '/', '@']) {
        return String::new();
    }
    let Ok(m) = MachineSpec::parse(name, PagePolicy::Base) else { return String::new() };
    let mut out = format!("machine {}: {}\n", m.name, m.scheme.summary);
    out += &match m.guest {
        GuestSpec::Observed => "  guest: the recorded kernel's own tables\n".into(),
        GuestSpec::Modelled(guest) => {
            format!("  guest: {} pages, placement {}\n", guest.pages.name(), guest.placement.name())
        }
    };
    if let Some(host) = m.host {
        let placement = host.placement.name();
        out += &format!("  host: {} pages, placement {placement}\n", host.pages.name());
    }
    out + &format!("`nestwalk explain {}` tells the options.\n", m.scheme.name)
}

/// Other words: page sizes, other names of schemes, what lines begin with.
pub fn word(name: &str) -> String {
    let mut out = String::new();
    for (page, meaning) in PAGE_WORDS.iter().filter(|p| p.0.eq_ignore_ascii_case(name)) {
        out += &format!("page sizes {page}: {meaning}\n");
    }
    for (alias, scheme) in ALIASES.iter().filter(|a| a.0.eq_ignore_ascii_case(name)) {
        out += &format!("scheme {alias}: another name of {scheme}\n");
    }
    if name.eq_ignore_ascii_case(ALL_SCHEMES) {
        out += "machines all: every scheme once, with its defaults, but those that cannot be with this \
                source, which are named\n";
    }
    let words = headings::WORDS.iter().filter(|w| w.0.eq_ignore_ascii_case(name));
    out += &words.map(|(word, meaning)| format!("{word}: {meaning}\n")).collect::<String>();
    if ServedBy::NAMES.contains(&name) && out.is_empty() {
        out += &format!("{name}: where a reference was served\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::parts_of;
    use nestwalk_sim::FIELDS;

    /// What a heading is computed from are fields that there are.
    #[test]
    fn headings_name_fields_that_results_have() {
        for heading in all() {
            let words = heading.from.split([' ', '(', ')']).filter(|w| !w.is_empty());
            let names = words.filter(|w| w.starts_with(|c: char| c.is_ascii_lowercase()));
            for name in names.filter(|w| !["of", "the", "baseline"].contains(w)) {
                let (first, rest) = name.split_once('.').unwrap_or((name, ""));
                let has = |part: &str, key: &str| {
                    let part = parts_of(first).find(|p| p.0 == part);
                    part.is_some_and(|p| p.1.iter().any(|f| f.0 == key))
                };
                let (above, key) = name.rsplit_once('.').unwrap_or(("", name));
                let found = match rest {
                    "" => FIELDS.iter().any(|f| f.0 == name),
                    // Their tests look at the fields of `advise`, `measure` and `conform`.
                    _ if ["choices[]", "measure", "check", "recorded"].contains(&first) => true,
                    _ if first == "sampling" => key == "half_widths",
                    _ if first == "repeats" => name.ends_with("run_time.deviation"),
                    _ if name.contains(".entries.") => first == "coverage",
                    _ => {
                        let one =
                            above.replace('*', if first == "segments" { "vmm" } else { "guest" });
                        has(&one, key)
                    }
                };
                assert!(found, "{}: {name}", heading.title);
            }
            assert!(heading.meaning.len() > 10, "{}", heading.title);
            assert!(self::heading(&heading.line()).contains(heading.meaning), "{}", heading.title);
        }
    }

    #[test]
    fn words_of_the_tables_are_explained_in_any_case() {
        assert!(machine("nested:observed+4k").contains("recorded kernel"));
        assert!(machine("shadow:thp+2m@ca+default").contains("host: 2m pages"));
        assert!(heading("run time / ideal:observed").contains("multiple"));
        for name in ["4K", "thp", "EPT", "npt", "tdp", "all", "mpki", "verdict", "LLC", "memory"] {
            assert!(!word(name).is_empty(), "{name}");
        }
        assert_eq!(machine("nested:9k") + &word("nonsense") + &heading("nonsense"), "");
    }
}

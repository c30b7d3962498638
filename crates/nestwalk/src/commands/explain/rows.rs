//! Prices in words, and all fields and prices as tables in Markdown, from the rows that they are.

use super::all_fields;
use nestwalk_hw::SoftwareProfile;
use nestwalk_hw::energy::EnergyProfile;
use nestwalk_hw::profile::{CoreProfile, InterruptProfile, NodesProfile, SegmentProfile};
use nestwalk_sim::measure::cost::{Account, PRICES, Price};

/// Numbers of a profile: key and meaning.
type Numbers = &'static [(&'static str, &'static str)];

/// Tables of a profile that have nothing but numbers.
const TABLES: [(&str, Numbers); 6] = [
    ("core", CoreProfile::ROWS),
    ("nodes", NodesProfile::ROWS),
    ("interrupts", InterruptProfile::ROWS),
    ("segment", SegmentProfile::ROWS),
    ("software", SoftwareProfile::ROWS),
    ("energy", EnergyProfile::ROWS),
];

/// Who pays a price, and for what.
fn payers(key: &str) -> Vec<String> {
    let event = |p: &Price| match p.times {
        1 => p.event.field(),
        times => format!("{times} * {}", p.event.field()),
    };
    let rows: Vec<&Price> = PRICES.iter().filter(|p| p.key == key).collect();
    rows.chunk_by(|a, b| a.account == b.account)
        .map(|rows| {
            let events: Vec<String> = rows.iter().map(|p| event(p)).collect();
            format!("the {} pays it for {}", rows[0].account.name(), events.join(" + "))
        })
        .collect()
}

/// A number of a profile by its key, with or without that of its table.
pub fn number(name: &str) -> String {
    let mut out = String::new();
    for (table, rows) in TABLES {
        let own = name.strip_prefix(table).and_then(|n| n.strip_prefix('.')).unwrap_or(name);
        for (key, meaning) in rows.iter().filter(|r| r.0 == own) {
            out += &format!("{table}.{key}: {meaning}\n");
            for line in payers(key) {
                out += &format!("  {line}\n");
            }
        }
    }
    out
}

/// The keys of a machine's `vmm_work`.
pub fn prices() -> String {
    let vmm = PRICES.iter().filter(|p| p.account != Account::Guest);
    let mut keys: Vec<&str> = vmm.map(|p| p.key).collect();
    keys.dedup();
    keys.into_iter().map(number).collect()
}

/// `nestwalk explain --fields`.
pub fn markdown() -> String {
    let mut out = "| field of the results | unit | meaning |\n|---|---|---|\n".to_owned();
    for (place, fields) in all_fields() {
        for (field, unit, meaning) in fields {
            out += &format!("| `{place}{field}` | {unit} | {meaning} |\n");
        }
    }
    out += "\n| number of a profile | meaning | who pays it |\n|---|---|---|\n";
    for (table, rows) in TABLES {
        for (key, meaning) in rows {
            let payers = payers(key).join("; ");
            out += &format!("| `{table}.{key}` | {meaning} | {payers} |\n");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_hw::Profile;

    #[test]
    fn every_number_of_profiles_and_every_field_has_a_row() {
        let table = markdown();
        let has = |key: &str| table.lines().any(|l| l.starts_with(&format!("| `{key}` |")));
        let profile = Profile::load("cascade-lake-6252").unwrap();
        // The one number that stands among structures.
        for (key, _) in profile.numbers().iter().filter(|n| n.0 != "caches.memory_cycles") {
            assert!(has(key), "{key}");
        }
        for key in ["version", "guests.*.faults", "machines[].walks", "machines[].vm_exits.pin"] {
            assert!(has(key), "{key}");
        }
        assert!(table.lines().all(|l| l.is_empty() || l.matches('|').count() == 4), "{table}");
    }

    #[test]
    fn a_price_tells_who_pays_it() {
        let text = number("clear_page_ns");
        assert_eq!(text, number("software.clear_page_ns"));
        assert!(
            text.starts_with("software.clear_page_ns: Clearing of 4 KiB of memory.\n"),
            "{text}"
        );
        assert!(text.contains("pages_cleared + 2 * guest_os_work.pages_copied"));
        assert_eq!(number("nothing"), "");
    }
}

//! The chapter on switching has every policy, parameter and column, with the defaults in force.

use nestwalk_policy::{COLUMNS, Kind, POLICIES};

#[test]
fn the_chapter_is_complete() {
    let text = include_str!("../../../docs/switching.md");
    for policy in POLICIES {
        let heading = format!("\n## {}\n", policy.name);
        let (_, section) = text.split_once(&heading).unwrap_or_else(|| panic!("no{heading}"));
        let section = section.split("\n## ").next().unwrap();
        for p in policy.parameters.iter().filter(|p| !["skip", "load"].contains(&p.name)) {
            // Parameters that a policy shares with an earlier one are described there.
            let name = format!("`{}`", p.name);
            let own = section.contains(&name) || section.contains(&format!("{}=", p.name));
            assert!(own || text.contains(&name), "{}: {name}", policy.name);
            let default = format!("{name} = {}", p.default);
            let said = !section.contains(&format!("{name} = ")) || section.contains(&default);
            assert!(said || p.kind == Kind::File, "{}: {default}", policy.name);
        }
    }
    for column in COLUMNS {
        assert!(text.contains(&format!("| `{}` |", column.name)), "{}", column.name);
    }
}

//! House rules that no compiler checks.

mod common;

use common::workspace;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, lines, its unit tests not counted.
const LINES: usize = 500;
/// Longest file of tests, lines.
const TEST_LINES: usize = 700;
/// Longest function, lines; tests may be longer.
const FUNCTION_LINES: usize = 70;
/// Longest comment, columns.
const COMMENT_COLUMNS: usize = 105;
/// Longest line of code. rustfmt breaks at 100 where it can, which is not within the parentheses of
/// every macro.
const CODE_COLUMNS: usize = 125;

/// Letters beyond ASCII that texts need: units, arrows of diagrams, ellipses in placeholders, and
/// names of authors.
const LETTERS: &str = "µ→↔…×·≤≥–öüäéñ";

/// Dependencies that several crates may name: derive macros, errors, and data formats without behaviour
/// of their own. Every other has one crate that wraps it.
const SHARED: [&str; 10] = [
    "anyhow",
    "thiserror",
    "serde",
    "serde_json",
    "schemars",
    "toml",
    "rustc-hash",
    "lz4_flex",
    // System calls behind safe interfaces: each crate wraps those that it makes.
    "memmap2",
    "nix",
];

/// Every file of the repository with this ending.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&workspace(), ending, &mut found);
    found.sort();
    assert!(!found.is_empty(), "no file ends with {ending}");
    found
}

fn collect(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && (!name.starts_with('.') || name == ".ci") {
                collect(&path, ending, found);
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

/// Calls `rule` with each line of each source file, and fails with all that it complains of.
fn each_line(rule: impl Fn(&str) -> Option<String>) {
    let mut complaints = Vec::new();
    let sources = files(".rs");
    assert!(sources.len() > 80, "only {} sources", sources.len());
    for path in sources {
        let text = fs::read_to_string(&path).unwrap();
        for (i, line) in text.lines().enumerate() {
            if let Some(complaint) = rule(line) {
                complaints.push(format!("{}:{}: {complaint}", path.display(), i + 1));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// A file of tests, and of nothing else.
fn is_test(path: &Path) -> bool {
    let path = path.to_string_lossy();
    path.contains("/tests/") || path.contains("/fuzz/") || path.ends_with("tests.rs")
}

/// The part before unit tests.
fn code_of(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

#[test]
fn files_are_short() {
    let mut complaints = Vec::new();
    for path in files(".rs") {
        let text = fs::read_to_string(&path).unwrap();
        let (lines, most) = match is_test(&path) {
            true => (text.lines().count(), TEST_LINES),
            false => (code_of(&text).lines().count(), LINES),
        };
        if lines > most {
            complaints.push(format!("{}: {lines} lines, at most {most}", path.display()));
        }
    }
    assert!(complaints.is_empty(), "split them:\n{}", complaints.join("\n"));
}

/// First line and length of each function of a formatted source, by the indent of its last brace.
fn functions(code: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        let head = text.split('(').next().unwrap_or_default();
        if !head.split_whitespace().any(|word| word == "fn") || text.starts_with("//") {
            continue;
        }
        if text.ends_with('}') || text.ends_with(';') {
            continue;
        }
        // The first line that stands where the function does: its brace, or the end of a declaration.
        let there =
            |l: &str| l.len() - l.trim_start().len() == indent && !l.trim_start().starts_with(')');
        let declared = |l: &str| l.trim_start().starts_with(')') && l.ends_with(';');
        let end = lines[i + 1..].iter().position(|l| !l.is_empty() && (there(l) || declared(l)));
        if let Some(length) = end
            && lines[i + 1 + length].trim_start() == "}"
        {
            found.push((text, length + 2));
        }
    }
    found
}

#[test]
fn functions_are_short() {
    let (mut complaints, mut seen) = (Vec::new(), 0);
    for path in files(".rs").into_iter().filter(|path| !is_test(path)) {
        let text = fs::read_to_string(&path).unwrap();
        for (head, length) in functions(code_of(&text)) {
            seen += 1;
            if length > FUNCTION_LINES {
                complaints.push(format!("{}: {length} lines: {head}", path.display()));
            }
        }
    }
    assert!(seen > 3000, "only {seen} functions found");
    assert!(complaints.is_empty(), "at most {FUNCTION_LINES}:\n{}", complaints.join("\n"));
    let long = "fn f() {\n    1;\n    2;\n}\n\ntrait T {\n    fn g(\n        a: u8,\n    ) {\n    }\n    fn h(\n    );\n}\n";
    assert_eq!(functions(long).iter().map(|f| f.1).collect::<Vec<_>>(), [4, 4]);
}

/// Which rooms of `sim` each one names.
fn rooms_of_sim() -> BTreeMap<String, BTreeSet<String>> {
    let source = workspace().join("crates/sim/src");
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files(".rs").into_iter().filter(|path| !is_test(path)) {
        let Ok(inside) = path.strip_prefix(&source) else { continue };
        let parts: Vec<_> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let [room, _, ..] = &parts[..] else { continue };
        let text = fs::read_to_string(&path).unwrap();
        let lines = code_of(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
        let others = lines.flat_map(|line| line.split("crate::").skip(1)).map(|rest| {
            rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>()
        });
        let others = others.filter(|other| other != room && source.join(other).is_dir());
        named.entry(room.clone()).or_default().extend(others.filter(|other| !other.is_empty()));
    }
    named
}

#[test]
fn rooms_of_the_simulator_form_no_circle() {
    let mut named = rooms_of_sim();
    assert!(named.len() >= 9, "{named:?}");
    // What names no room that is left goes, until nothing is left.
    while !named.is_empty() {
        let left: BTreeSet<String> = named.keys().cloned().collect();
        let before = named.len();
        named.retain(|_, others| others.iter().any(|other| left.contains(other)));
        assert!(named.len() < before, "rooms that need each other: {named:?}");
    }
}

/// What walks is compiled with the hypervisor in the same crate; it must not reach for it.
#[test]
fn hardware_never_calls_software() {
    let source = workspace().join("crates/sim/src");
    let rooms = ["hardware"];
    let software = [
        "scheme::",
        "hypervisor",
        "Platform",
        "HostMemory",
        "Software",
        "schemes::",
        "nestwalk_mm",
    ];
    let mut seen = 0;
    for path in files(".rs") {
        let Ok(inside) = path.strip_prefix(&source) else { continue };
        if !rooms.iter().any(|room| inside.starts_with(room)) {
            continue;
        }
        seen += 1;
        let text = fs::read_to_string(&path).unwrap();
        let code = code_of(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
        for (i, line) in code.enumerate() {
            let found = software.iter().find(|word| line.contains(**word));
            assert!(found.is_none(), "{}: line {i} of code: {line}", path.display());
        }
    }
    assert!(seen >= 10, "only {seen} files of hardware");
}

#[test]
fn lines_are_short() {
    each_line(|line| {
        let columns = line.chars().count();
        let most = match line.trim_start() {
            // A string is not broken, and neither is an attribute around one; a rule is no text.
            l if l.contains('"') || l.ends_with("----") => return None,
            l if l.starts_with("//") => COMMENT_COLUMNS,
            _ => CODE_COLUMNS,
        };
        (columns > most).then(|| format!("{columns} columns"))
    });
}

#[test]
fn nothing_is_left_to_do() {
    // In pieces, so that this file is no example of them.
    let marks =
        [["to", "do!"], ["unimple", "mented!"], ["FIX", "ME"], ["XX", "X"], ["#[ign", "ore"]];
    let marks = marks.map(|m| m.concat());
    each_line(|line| {
        let found = marks.iter().find(|m| line.contains(m.as_str()))?;
        Some(format!("`{found}`: do it, or write an issue"))
    });
}

#[test]
fn sources_are_ascii_but_for_known_letters() {
    each_line(|line| {
        let strange = line.chars().find(|c| !c.is_ascii() && !LETTERS.contains(*c))?;
        Some(format!("`{strange}` (U+{:04X})", strange as u32))
    });
    // Whatever the letters, they stand in comments and strings, not in names.
    each_line(|line| {
        let text = ["//", "\"", "\\"].iter().any(|mark| line.contains(mark));
        (!line.is_ascii() && !text).then(|| "a letter beyond ASCII in code".to_owned())
    });
}

#[test]
fn results_cannot_depend_on_time_or_hashing() {
    let banned = ["HashMap::new()", "HashSet::new()", "RandomState", "SystemTime"];
    for path in files(".rs") {
        let name = path.to_string_lossy().into_owned();
        if !name.contains("/src/") || name.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in banned {
            assert!(
                !code.contains(word),
                "{name}: `{word}` differs between runs; use a BTreeMap, or a fixed hasher and no order"
            );
        }
    }
}

#[test]
fn every_crate_says_what_it_is() {
    let mut crates = 0;
    for entry in fs::read_dir(workspace().join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        let roots = ["src/lib.rs", "src/main.rs"].map(|f| folder.join(f));
        let root = roots.iter().find(|f| f.exists());
        let root = root.unwrap_or_else(|| panic!("{} has no root", folder.display()));
        let text = fs::read_to_string(root).unwrap();
        assert!(text.starts_with("//! "), "{}: no documentation", root.display());
        let manifest = manifest(&folder.join("Cargo.toml"));
        let package = manifest["package"].as_table().unwrap();
        assert!(package.contains_key("description"), "{}", folder.display());
        // Lints and versions are the workspace's.
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{}", folder.display());
        for key in ["version", "edition", "license", "rust-version"] {
            if key == "license" && folder.ends_with("qemu-plugin") {
                // What QEMU's plugin interface asks for.
                assert_eq!(package[key].as_str(), Some("GPL-2.0-or-later"));
                continue;
            }
            let shared = package[key].get("workspace").and_then(toml::Value::as_bool);
            assert_eq!(shared, Some(true), "{}: {key}", folder.display());
        }
        crates += 1;
    }
    assert!(crates >= 9, "{crates} crates");
}

fn manifest(path: &Path) -> toml::Table {
    let text = fs::read_to_string(path).unwrap();
    toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Where `unsafe` may be: the borders to QEMU, to KVM, and to memory that processes share.
const BORDERS: [&str; 8] = [
    "crates/conform-vmm/src/guest.rs",
    "crates/conform-vmm/src/memory.rs",
    "crates/conform-vmm/src/port.rs",
    "crates/conform-vmm/src/vm.rs",
    "crates/wire/src/memory.rs",
    "crates/qemu-plugin/src/entry.rs",
    "crates/qemu-plugin/src/ffi.rs",
    "crates/qemu-plugin/src/registers.rs",
];

#[test]
fn unsafe_code_is_at_the_borders_and_nowhere_else() {
    let lints = manifest(&workspace().join("Cargo.toml"))["workspace"]["lints"]["rust"].clone();
    assert_eq!(lints["unsafe_code"].as_str(), Some("deny"));
    let allow = ["allow(unsafe", "_code)"].concat();
    let mut found: Vec<String> = Vec::new();
    for path in files(".rs") {
        if fs::read_to_string(&path).unwrap().contains(&allow) {
            let name = path.strip_prefix(workspace()).unwrap().display().to_string();
            found.push(name);
        }
    }
    found.sort();
    let mut borders = BORDERS.map(String::from);
    borders.sort();
    assert_eq!(found, borders);
}

#[test]
fn a_dependency_is_named_by_one_crate() {
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in
        files("Cargo.toml").into_iter().filter(|p| p.starts_with(workspace().join("crates")))
    {
        let manifest = manifest(&path);
        let name = manifest["package"]["name"].as_str().unwrap().to_owned();
        for dependency in manifest["dependencies"].as_table().unwrap().keys() {
            users.entry(dependency.clone()).or_default().push(name.clone());
        }
    }
    assert!(users["thiserror"].len() > 3, "the manifests were not read: {users:?}");
    for (dependency, users) in users {
        let ours = dependency.starts_with("nestwalk-");
        let shared = SHARED.contains(&dependency.as_str());
        assert!(ours || shared || users.len() == 1, "{dependency} is named by {users:?}");
    }
}

/// Targets of `[text](target)` in a text, code blocks apart.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut code = false;
    for line in text.lines() {
        code ^= line.trim_start().starts_with("```");
        if code {
            continue;
        }
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, after)) = after.split_once(')') else { break };
            found.push(target.to_owned());
            rest = after;
        }
    }
    found
}

#[test]
fn links_between_documents_lead_somewhere() {
    assert_eq!(links("a [b](c.md#d) e\n```\n[f](g)\n```\n[h](i)"), ["c.md#d", "i"]);
    for path in files(".md") {
        let text = fs::read_to_string(&path).unwrap();
        for link in links(&text) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let file = path.parent().unwrap().join(target);
            assert!(file.exists(), "{}: the link {link} leads nowhere", path.display());
        }
    }
}

/// What mdbook makes a site of has every page once, and nothing leads out of it.
#[test]
fn no_file_of_tests_is_left_out() {
    for root in files("all.rs").into_iter().filter(|path| path.ends_with("tests/all.rs")) {
        let folder = root.parent().unwrap();
        let listed = fs::read_to_string(&root).unwrap();
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(module) = name.strip_suffix(".rs").filter(|m| *m != "all") else { continue };
            let line = format!("mod {module};");
            assert!(listed.lines().any(|l| l == line), "{}: add `{line}`", root.display());
        }
    }
}

#[test]
fn the_site_has_every_page_of_the_documentation() {
    let docs = workspace().join("docs");
    let mut listed = links(&fs::read_to_string(docs.join("SUMMARY.md")).unwrap());
    let pages = files(".md").into_iter().filter(|p| p.parent() == Some(docs.as_path()));
    let name = |p: PathBuf| p.file_name().unwrap().to_string_lossy().into_owned();
    let mut pages: Vec<String> = pages.map(name).filter(|page| page != "SUMMARY.md").collect();
    for page in &pages {
        let text = fs::read_to_string(docs.join(page)).unwrap();
        let out = links(&text).into_iter().find(|link| link.starts_with(".."));
        assert_eq!(out, None, "docs/{page}: a site has no place for it");
    }
    listed.sort();
    pages.sort();
    assert_eq!(listed, pages, "docs/SUMMARY.md");
    let book = fs::read_to_string(workspace().join("book.toml")).unwrap();
    assert_eq!(book.parse::<toml::Table>().unwrap()["book"]["src"].as_str(), Some("docs"));
}

/// Who runs them: CI (`sh ci`), the longer campaign (`sh long`), or nobody (`sh shown`).
#[test]
fn every_command_of_the_readme_says_whether_it_is_run() {
    let text = fs::read_to_string(workspace().join("README.md")).unwrap();
    let opened = text.lines().filter(|l| l.starts_with("```")).step_by(2).collect::<Vec<_>>();
    assert!(opened.iter().filter(|l| l.starts_with("```sh")).count() > 4, "{opened:?}");
    for fence in opened {
        let known = ["```sh ci", "```sh long", "```sh shown", "```text"].contains(&fence);
        assert!(known, "{fence}: a fence of README.md is sh ci, sh long, sh shown or text");
    }
}

#[test]
fn the_licences_that_the_manifest_names_are_there() {
    let manifest = manifest(&workspace().join("Cargo.toml"));
    let licence = manifest["workspace"]["package"]["license"].as_str().unwrap();
    assert_eq!(licence, "Apache-2.0 OR MIT");
    let text = |name: &str| fs::read_to_string(workspace().join(name)).unwrap();
    assert!(text("LICENSE-APACHE").contains("Version 2.0, January 2004"));
    assert!(text("LICENSE-MIT").contains("Permission is hereby granted, free of charge"));
}

#[test]
fn scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt;
    for name in [
        "scripts/check",
        "scripts/check-long",
        "scripts/cold-build",
        "scripts/own-scheme",
        "scripts/python",
        "scripts/fresh-machine",
        "scripts/guest",
        "scripts/readme",
        ".ci/run",
        "crates/policy/data/train",
    ] {
        let path = workspace().join(name);
        let mode =
            fs::metadata(&path).unwrap_or_else(|e| panic!("{name}: {e}")).permissions().mode();
        assert!(mode & 0o111 == 0o111, "{name} is not executable");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("#!") && text.contains("set -euo pipefail"), "{name}");
    }
}

use super::{ALIASES, BUILT_IN, Profile, SoftwareProfile, is_built_in};

fn changed(from: &str, to: &str) -> String {
    let text = BUILT_IN[0].1;
    assert!(text.contains(from), "{from}");
    let changed = text.replacen(from, to, 1);
    Profile::parse("test.toml", &changed).unwrap_err().to_string()
}

/// What is wrong with a profile that says `text` over a built-in one.
fn over(text: &str) -> String {
    let text = format!("base = \"cascade-lake-6252\"\n{text}");
    Profile::parse("mine.toml", &text).unwrap_err().to_string()
}

#[test]
fn built_in_profiles_are_sound_and_named_as_their_files() {
    for (name, _) in BUILT_IN {
        let profile = Profile::load(name).unwrap();
        assert_eq!(&profile.name, name);
    }
}

#[test]
fn contradictions_name_the_key_and_what_would_be_right() {
    let e = changed("entries = 64\nways = 4", "entries = 64\nways = 5");
    assert!(e.contains("l1d_tlb: 64 entries cannot be split into 5 ways"), "{e}");
    let e = changed("sizes = [\"4k\"]", "sizes = [\"8k\"]");
    assert!(e.contains("page size `8k`: use 4k, 16k, 2m, 4m or 1g"), "{e}");
    let e = changed("sizes = [\"4k\"]", "sizes = [\"2m\"]");
    assert!(e.contains("page size 2m stands in two arrays"), "{e}");
    let e = changed("cycles = 54", "cycles = 10");
    assert!(
        e.contains("caches.l2: 1024 KiB at 14 cycles is not smaller and faster than llc"),
        "{e}"
    );
    let e = changed("memory_cycles = { value = 189", "memory_cycles = { value = 20");
    assert!(e.contains("not slower than the last-level cache"), "{e}");
    let e = changed("walk_exposed = { value = 0.41", "walk_exposed = { value = 1.5");
    assert!(e.contains("core.walk_exposed: 1.5 must be between 0 and 1"), "{e}");
    let e = changed("kib = 32, ways = 8", "kib = 3, ways = 8");
    assert!(e.contains("caches.l1d") && e.contains("multiple of 64"), "{e}");
}

#[test]
fn unknown_keys_are_refused_with_the_place_and_the_alternatives() {
    let e = changed("ways = 4", "asoc = 4");
    assert!(e.contains("line") && e.contains("asoc") && e.contains("ways"), "{e}");
    let e = Profile::load("pentium").unwrap_err().to_string();
    assert!(e.contains("cascade-lake-6252") && e.contains(".toml"), "{e}");
    let e = Profile::load("/nowhere/x.toml").unwrap_err().to_string();
    assert!(e.contains("/nowhere/x.toml"), "{e}");
}

#[test]
fn energies_grow_with_what_is_accessed() {
    for (name, _) in BUILT_IN {
        let e = Profile::load(name).unwrap().energy;
        let places = [&e.l1_pj, &e.l2_pj, &e.llc_pj, &e.memory_pj].map(|n| n.value);
        assert!(places.is_sorted() && places[0] > e.l1_tlb_fill_pj.value, "{name}: {places:?}");
        // A comparison is no array.
        assert!(e.segment_check_pj.value < e.l1d_tlb_pj.value, "{name}");
        assert!(e.translation_static_w.value < e.static_w(), "{name}");
        assert!((e.static_w() + e.dynamic_w() - e.core_w.value).abs() < 1e-9, "{name}");
    }
    let e = over("[energy]\nstatic_share = { value = 1.3, source = \"x\" }");
    assert!(e.contains("energy.static_share: 1.3 must be between 0 and 1"), "{e}");
    let e = over("[energy]\nmemory_pj = { value = -1, source = \"x\" }");
    assert!(e.contains("energy.memory_pj: -1 must be 0 or more"), "{e}");
    let e = over("[energy]\nl1_joule = { value = 1, source = \"x\" }");
    assert!(e.contains("mine.toml: line 3: unknown field `l1_joule`"), "{e}");
}

#[test]
fn every_number_of_the_energies_is_listed() {
    for (name, _) in BUILT_IN {
        let table = toml::Table::try_from(Profile::load(name).unwrap()).unwrap();
        let keys = table["energy"].as_table().unwrap().keys().map(|k| format!("energy.{k}"));
        let profile = Profile::load(name).unwrap();
        let listed: Vec<&str> = profile.numbers().iter().map(|n| n.0).collect();
        for key in keys {
            assert!(listed.contains(&key.as_str()), "{name}: {key}");
        }
    }
}

#[test]
fn whole_profiles_are_written_and_read_back() {
    for (name, _) in BUILT_IN {
        let profile = Profile::load(name).unwrap();
        let table = toml::Table::try_from(&profile).unwrap();
        assert_eq!(table.try_into::<Profile>().unwrap(), profile, "{name}");
    }
}

#[test]
fn older_names_mean_the_same_profiles() {
    for (old, new) in ALIASES {
        assert_eq!(Profile::load(old).unwrap(), Profile::load(new).unwrap());
        assert!(is_built_in(old) && is_built_in(new));
    }
    assert!(!is_built_in("common") && !is_built_in("mine.toml"));
}

#[test]
fn a_profile_changes_one_line_of_its_base() {
    let base = Profile::load("zen4").unwrap();
    let text = "base = \"zen4\"\n[software]\nexit_ns = { value = 9, source = \"mine\" }\n";
    let mine = Profile::parse("dir/mine.toml", text).unwrap();
    assert_eq!(mine.name, "mine");
    assert_eq!(mine.description, format!("{}: zen4 with its own software", base.description));
    assert!((mine.software.exit_ns.value - 9.0).abs() < 1e-12);
    let same = Profile { name: base.name.clone(), description: base.description.clone(), ..mine };
    let software =
        SoftwareProfile { exit_ns: base.software.exit_ns.clone(), ..same.software.clone() };
    assert_eq!(Profile { software, ..same }, base);
    // Nothing of a base stays where a table with a source, or a list, is replaced.
    let text = "base = \"zen4\"\npcid = \"none\"\nentry_cache = \"none\"\nl2i_tlb = \"none\"\n";
    let without = Profile::parse("x.toml", text).unwrap();
    assert!(without.pcid.is_plain() && without.entry_cache.is_none() && without.l2i_tlb.is_empty());
    let e = over("[core]\nbase_cpi = { value = 1 }");
    assert!(e.contains("missing field `source`"), "{e}");
}

#[test]
fn bases_that_cannot_be_are_refused_with_file_and_key() {
    let e = Profile::parse("m.toml", "base = \"pentium\"").unwrap_err().to_string();
    assert!(
        e.starts_with("profile m.toml: base: no profile `pentium`; there are: cascade-lake"),
        "{e}"
    );
    let e = Profile::parse("m.toml", "base = 3").unwrap_err().to_string();
    assert!(e.contains("m.toml: base: it is no name"), "{e}");
    let e = Profile::parse("no/m.toml", "base = \"away.toml\"").unwrap_err().to_string();
    assert!(e.contains("no/m.toml: base: there is no file no/away.toml"), "{e}");
    let dir = std::env::temp_dir().join(format!("nestwalk-base-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (file, base) in [("a.toml", "b.toml"), ("b.toml", "c.toml"), ("c.toml", "a.toml")] {
        std::fs::write(dir.join(file), format!("base = \"{base}\"\n")).unwrap();
    }
    let e = Profile::load(dir.join("a.toml").to_str().unwrap()).unwrap_err().to_string();
    assert!(e.contains("c.toml: base:") && e.contains("is a circle"), "{e}");
    std::fs::write(dir.join("c.toml"), "base = \"zen2\"\n").unwrap();
    let a = Profile::load(dir.join("a.toml").to_str().unwrap()).unwrap();
    assert_eq!((a.name.as_str(), a.l2_tlb[0].pdes), ("a", true));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn index_replacement_and_prices_that_cannot_be_are_refused_with_file_and_key() {
    let array = |more: &str| {
        over(&format!(
            "[[l2_tlb]]\nsizes = [\"4k\"]\nentries = 1536\nways = 12\nsource = \"x\"\n{more}"
        ))
    };
    let e = array("index = \"xor-8\"");
    assert_eq!(
        e,
        "profile mine.toml: l2_tlb: index `xor-8` gives 8 bits of a set, but 128 sets have 7"
    );
    let e = array("index = { xor = [[0, 7], [1, 8]] }");
    assert!(e.contains("l2_tlb: index xor gives 2 bits of a set, but 128 sets have 7"), "{e}");
    let e = array("index = { xor = [[0], [1], [2], [3], [4], [5], [60]] }");
    assert!(e.contains("bit 60 of a page number: use 0 to 44"), "{e}");
    let e = array("index = { xor = [[0], [1], [2], [3], [4], [5], [0, 1]] }");
    assert!(e.contains("some set is never used"), "{e}");
    let e = array("index = { xor = [[0], [1], [2], [3], [4], [5], []] }");
    assert!(e.contains("bit 6 of the set has no bits"), "{e}");
    let e = array("index = \"mod\"");
    assert!(e.contains("index `mod`: use linear, xor-N or"), "{e}");
    let e = array("replacement = \"tree-plru\"");
    assert!(e.contains("mine.toml: l2_tlb: replacement `tree-plru` of 12 ways"), "{e}");
    let e = array("smashed = [\"4k\"]");
    assert!(e.contains("smashed page size 4k: it must be 2m, 4m or 1g"), "{e}");
    let e =
        over("[[l1d_tlb]]\nsizes = [\"4k\"]\nentries = 64\nways = 4\npdes = true\nsource = \"x\"");
    assert!(e.contains("l1d_tlb: pdes and smashed are for the second level"), "{e}");
    let e = over("[software]\nexit_ns = { value = -4, source = \"x\" }");
    assert_eq!(e, "profile mine.toml: software.exit_ns: -4 must be 0 or more");
    let e = over("entry_cache = { entries = 8, ways = 8, lowest_level = 1, source = \"x\" }");
    assert!(e.contains("entry_cache.lowest_level: 1 must be 2 to 5"), "{e}");
    let e = over("pcid = { l2 = 4, source = \"\" }");
    assert!(e.contains("pcid: the source is empty"), "{e}");
}

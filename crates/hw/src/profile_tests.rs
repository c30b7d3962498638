use super::{BUILT_IN, Profile};

fn changed(from: &str, to: &str) -> String {
    let text = BUILT_IN[0].1;
    assert!(text.contains(from), "{from}");
    let changed = text.replacen(from, to, 1);
    Profile::parse("test.toml", &changed).unwrap_err().to_string()
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
    assert!(e.contains("page size `8k`: use 4k, 2m, 4m or 1g"), "{e}");
    let e = changed("sizes = [\"4k\"]", "sizes = [\"2m\"]");
    assert!(e.contains("page size 2m stands in two arrays"), "{e}");
    let e = changed("cycles = 54", "cycles = 10");
    assert!(
        e.contains("caches.l2: 1024 KiB at 14 cycles is not smaller and faster than llc"),
        "{e}"
    );
    let e = changed("memory_cycles = { value = 200", "memory_cycles = { value = 20");
    assert!(e.contains("not slower than the last-level cache"), "{e}");
    let e = changed("walk_exposed = { value = 0.5", "walk_exposed = { value = 1.5");
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
    let e = changed("static_share = { value = 0.3", "static_share = { value = 1.3");
    assert!(e.contains("energy.static_share: 1.3 must be between 0 and 1"), "{e}");
    let e = changed("memory_pj = { value = 15600", "memory_pj = { value = -1");
    assert!(e.contains("energy.memory_pj: -1 must be 0 or more"), "{e}");
    let e = changed("l1_pj = ", "l1_joule = ");
    assert!(e.contains("l1_joule"), "{e}");
}

#[test]
fn every_number_of_the_energies_is_listed() {
    for (name, text) in BUILT_IN {
        let table: toml::Table = toml::from_str(text).unwrap();
        let keys = table["energy"].as_table().unwrap().keys().map(|k| format!("energy.{k}"));
        let profile = Profile::load(name).unwrap();
        let listed: Vec<&str> = profile.numbers().iter().map(|n| n.0).collect();
        for key in keys {
            assert!(listed.contains(&key.as_str()), "{name}: {key}");
        }
    }
}

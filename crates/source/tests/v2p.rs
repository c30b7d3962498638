//! Page tables that come with a drmemtrace: `v2p.textproto`, and markers of physical addresses.

use nestwalk_source::{PageTables, tables_of_trace};
use nestwalk_types::{Gpa, Gva};
use std::fs;
use std::path::{Path, PathBuf};

fn entry(kind: u16, size: u16, value: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &size.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// A trace with these markers of physical addresses, `(physical, virtual)`.
fn trace(page_size: u64, pairs: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = [entry(25, 0, 7), entry(22, 4, 11), entry(24, 4, 10)].concat();
    bytes.extend(entry(28, 18, page_size));
    for (physical, virtual_) in pairs {
        bytes.extend([entry(28, 15, *physical), entry(28, 17, *virtual_)].concat());
        bytes.extend([entry(10, 4, 0x40_1000), entry(0, 8, *virtual_ + 8)].concat());
    }
    bytes.extend(entry(28, 16, 0x9000));
    bytes.extend(entry(26, 0, 0));
    bytes
}

fn look_up(tables: &PageTables, gva: u64) -> Option<u64> {
    tables.look_up(Gva::new(gva)).map(Gpa::value)
}

#[test]
fn the_text_of_published_traces_is_read() {
    // As the tracer's own tests have it, and with what the text format leaves free.
    let text = "# VirtualToPhysical\n# Generated: 2024-09-10\naddress_mapping_group {\n  page_size: \
                2097152\n  address_mapping {\n    virtual_address: 281464337858560\n    \
                physical_address: 10485760\n  }\n  address_mapping {\n    # No virtual_address: 0\n    \
                physical_address: 0x600000\n  }\n  information {\n    page_count: 0x1\n  }\n}\n\
                address_mapping_group{page_size:0x1000 address_mapping{physical_address:0x7000,\
                virtual_address:0x200000}}";
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let tables = PageTables::open(file.path()).unwrap();
    // An address of AArch64, with bit 47 above it.
    let gva = 281_464_337_858_560 | 0xffff << 48;
    assert_eq!(look_up(&tables, gva + 0x12_3456), Some(10_485_760 + 0x12_3456));
    assert_eq!(look_up(&tables, 0x1234), Some(0x60_1234));
    assert_eq!(look_up(&tables, 0x20_0010), Some(0x7010));
    assert_eq!(look_up(&tables, 0x20_1000), None);
}

#[test]
fn damage_in_the_text_names_its_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let message = |body: &str| {
        fs::write(file.path(), format!("address_mapping_group {{\n{body}")).unwrap();
        PageTables::open(file.path()).err().expect(body).message
    };
    let mapping = |gva: u64, gpa: u64| {
        format!("address_mapping {{\nvirtual_address: {gva}\nphysical_address: {gpa}\n}}\n")
    };
    assert!(message("page_size: 4097\n}").contains("line 2: pages of 4097 bytes"));
    assert!(message("page_size: big\n}").contains("line 2: `big` is no number"));
    assert!(message("page_size:").contains("line 2: ends where a number must be"));
    assert!(message(&(mapping(0, 0) + "}")).contains("line 2: no page_size"));
    assert!(
        message("page_size: 4096\naddress_mapping { }\n}").contains("without physical_address")
    );
    let sized = |body: &str| message(&format!("page_size: 4096\n{body}"));
    assert!(sized(&mapping(0, 0)).contains("ends within a group"));
    assert!(sized(&(mapping(0, 0) + "}\n}")).contains("line 8: a `}` too many"));
    assert!(sized(&(mapping(8, 0) + "}")).contains("line 3: 0x8 cannot be at 0x0"));
    assert!(sized(&(mapping(1 << 50, 0) + "}")).contains("cannot be at"));
    assert!(
        sized(&(mapping(0, 0) + &mapping(0, 4096) + "}")).contains("lines 3 and 7 both map 0x0")
    );
    assert!(message("}").contains("no address_mapping"));
}

#[test]
fn markers_say_where_pages_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.trace");
    // The last is a page that was moved; it stays where it was first.
    let pairs = [(0x5_1000, 0x7f00_0000_1000), (0x9_2000, 0x60_2000), (0x8000, 0x60_2000)];
    fs::write(&path, trace(4096, &pairs)).unwrap();
    assert_eq!(tables_of_trace(&path), Some(path.clone()));
    let tables = PageTables::open(&path).unwrap();
    assert_eq!(look_up(&tables, 0x7f00_0000_1abc), Some(0x5_1abc));
    assert_eq!(look_up(&tables, 0x60_2001), Some(0x9_2001));
    assert_eq!(look_up(&tables, 0x9000), None);

    // Pages of 64 KiB are sixteen small ones.
    fs::write(&path, trace(65536, &[(0x13_0000, 0x55_0000)])).unwrap();
    let tables = PageTables::open(&path).unwrap();
    assert_eq!(look_up(&tables, 0x55_ffff), Some(0x13_ffff));
    assert_eq!(look_up(&tables, 0x56_0000), None);

    fs::write(&path, trace(4096, &[])).unwrap();
    assert_eq!(tables_of_trace(&path), None);
    assert!(PageTables::open(&path).err().unwrap().message.contains("no page tables"));
}

#[test]
fn the_text_is_found_beside_the_trace() {
    let dir = tempfile::tempdir().unwrap();
    let workload = dir.path().join("workload");
    let folders = ["trace", "aux"].map(|name| workload.join(name));
    folders.iter().for_each(|f| fs::create_dir_all(f).unwrap());
    let file = folders[0].join("0a.11.memtrace");
    fs::write(&file, trace(4096, &[])).unwrap();
    let found = |path: &Path| tables_of_trace(path);
    assert!([&workload, &folders[0], &file].iter().all(|p| found(p).is_none()));
    let text: PathBuf = folders[1].join("v2p.textproto");
    fs::write(&text, "address_mapping_group { }").unwrap();
    for path in [&workload, &folders[0], &file] {
        assert_eq!(found(path).as_ref(), Some(&text), "{}", path.display());
    }
    // Beside what is no drmemtrace it says nothing.
    let other = folders[0].join("notes");
    fs::write(&other, "text").unwrap();
    assert_eq!(found(&other), None);
}

//! Page tables that come with a trace.

mod common;

use common::programs::{lackey, program};
use common::{collect, file};
use nestwalk_source::{Mapped, PageTables, open};
use nestwalk_types::{Batch, Control, Gpa, Gva, Source, SplitMix64};
use std::collections::BTreeMap;

/// The tables that a stream says, by address, and the root.
type Tables = (BTreeMap<u64, Box<[u64; 512]>>, u64);

fn said(controls: Vec<(usize, Control)>) -> Tables {
    let (mut tables, mut at) = (BTreeMap::new(), 0);
    for (_, control) in controls {
        match control {
            Control::TableAdded { gpa, entries: Some(entries), .. } => {
                tables.insert(gpa.value(), entries);
            }
            Control::LoadCr3 { root, .. } => at = root.value(),
            _ => {}
        }
    }
    (tables, at)
}

/// Follows tables entry by entry (SDM vol. 3A, 4-level paging).
fn walk((tables, root): &Tables, gva: u64) -> Option<u64> {
    let mut at = *root;
    for level in (0..4).rev() {
        let shift = 12 + 9 * level;
        let entry = tables.get(&at)?[(gva >> shift & 511) as usize];
        if entry & 1 == 0 {
            return None;
        }
        at = entry & 0x000f_ffff_ffff_f000;
        if level == 0 || entry & 0x80 != 0 {
            let inside = (1 << shift) - 1;
            return Some((at & !inside) | (gva & inside));
        }
    }
    None
}

fn tables(dump: &str) -> Result<PageTables, String> {
    PageTables::open(file(dump.as_bytes()).path()).map_err(|e| e.to_string())
}

fn mapped(dump: &str) -> (Vec<(usize, Control)>, nestwalk_types::GuestInfo) {
    let trace = file(&lackey(&program(1, 100)));
    let tables = tables(dump).expect("a dump");
    let mut source = Mapped::new(open(trace.path(), None).unwrap(), &tables).unwrap();
    let guest = source.info().guest.expect("a guest");
    let stream = collect(&mut source);
    assert_eq!(stream.end, Ok(()));
    (stream.controls, guest)
}

#[test]
fn tables_put_every_page_where_the_dump_says() {
    let mut r = SplitMix64::new(1);
    let mut dump = String::from("va pa\n# a comment\n\n");
    let mut pages = BTreeMap::new();
    for i in 0..3000u64 {
        let gva = r.below(1 << 35) << 12;
        let gpa = 0x10_0000 + (i << 12);
        pages.entry(gva).or_insert_with(|| {
            dump += &match i % 4 {
                0 => format!("{gva:#x} {gpa:#x}\n"),
                1 => format!("{gva:016x}, {gpa:016X}\r\n"),
                2 => format!("0x{gva:x} -> 0x{gpa:x} 4096\n"),
                _ => format!("{:x}:{:x}\n", gva + 0x123, gpa + 0x123),
            };
            gpa
        });
    }
    // Large pages, far from the others.
    dump += "0x7f0000200000 0x40000000 2M\n0x7f4000000000 0x140000000 1G";
    let (controls, guest) = mapped(&dump);
    let ends = controls.iter().filter_map(|c| match c.1 {
        Control::Prefault { start, bytes } => Some(start.value() + bytes),
        _ => None,
    });
    let end = ends.max().unwrap();
    let controls = said(controls);
    let found = tables(&dump).unwrap();
    for (gva, gpa) in &pages {
        assert_eq!(walk(&controls, gva + 0x78), Some(gpa + 0x78), "{gva:#x}");
        assert_eq!(found.look_up(Gva::new(gva + 0x78)), Some(Gpa::new(gpa + 0x78)));
    }
    assert_eq!(walk(&controls, 0x7f00_0031_2345), Some(0x4011_2345));
    assert_eq!(walk(&controls, 0x7f40_1234_5678), Some(0x1_5234_5678));
    assert_eq!(walk(&controls, 0x5000), pages.get(&0x5000).copied());
    assert_eq!(walk(&controls, 0x7f80_0000_0000), None);
    // Memory ends behind the tables, which lie behind the pages.
    let memory_end = guest.memory_bytes + (1 << 30);
    assert!(end <= memory_end && end > 0x1_8000_0000, "{end:#x} {memory_end:#x}");
}

#[test]
fn memory_in_the_gap_for_devices_moves_above_it() {
    let (controls, guest) = mapped("0x1000 0xc0000000\n0x2000 0x5000\n0x3000 0x100000000\n");
    let controls = said(controls);
    assert_eq!(walk(&controls, 0x1000), Some(0x1_0000_0000));
    assert_eq!(walk(&controls, 0x2000), Some(0x5000));
    assert_eq!(walk(&controls, 0x3000), Some(0x1_4000_0000));
    assert!(guest.memory_bytes >= 0xe000_0000, "a guest with a gap");
    let (controls, guest) = mapped("0x1000 0x7000\n");
    let controls = said(controls);
    assert_eq!((walk(&controls, 0x1fff), guest.memory_bytes), (Some(0x7fff), 2 << 20));
}

#[test]
fn what_is_no_dump_is_refused_with_its_line() {
    let cases = [
        ("", "an empty file"),
        ("# nothing\n", "no page"),
        ("0x1000 0x2000\nhello\n", "line 2 at byte 14: is no page"),
        ("0x1000 0x2000 8K\n", "`8K` is no size of a page"),
        ("0x1234 0x2000\n", "not numbers of pages"),
        ("0x200000 0x1000 2M\n", "at different places of a page of 2097152 bytes"),
        ("0x1000 0x2000\n0x3000 0x4000\n0x1000 0x5000\n", "lines 1 and 3 both map 0x1000"),
        ("0x200000 0x200000 2M\n0x201000 0x5000\n", "both map 0x201000"),
        ("0x900000000000 0x1000\n", "no canonical address"),
        ("0x1000 0x10000000001000\n", "beyond the 52 bits"),
    ];
    for (dump, expected) in cases {
        let message = tables(dump).err().unwrap_or_else(|| panic!("{dump:?} is taken"));
        assert!(message.contains(expected), "{dump:?}: {message}");
    }
    assert!(tables("0x1000 0x2000\n0x1000 0x2000\n").is_ok(), "twice the same is the same");
}

#[test]
fn a_trace_of_several_processes_has_no_one_dump() {
    let record = |asid: u8| {
        let mut bytes = [0u8; 96];
        bytes[..8].copy_from_slice(&0x40_1000u64.to_le_bytes());
        bytes[88] = asid;
        bytes
    };
    let trace = file(&[record(1), record(1), record(2)].concat());
    let tables = tables("0x401000 0x1000\n").unwrap();
    let mut source = Mapped::new(open(trace.path(), None).unwrap(), &tables).unwrap();
    let mut batch = Batch::default();
    let error = source.next_batch(&mut batch).unwrap_err().to_string();
    assert!(error.contains("several processes") && batch.is_empty(), "{error}");
}

//! Ramulator's memory traces against a second, naive reading.

mod common;

use common::{collect, compressed, file, named};
use nestwalk_source::open;
use nestwalk_types::SplitMix64;
use std::collections::BTreeSet;

/// Made by hand: both versions' lines, addresses of courses, comments, and lines that are no records.
const SMALL: &str = include_str!("ramulator.trace");

/// Whether it stores, and where, by `str` methods.
fn naive(line: &str) -> Option<(bool, u64)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [first, second] = words[..] else { return None };
    let digits =
        |text: &str| text.strip_prefix("0x").or(text.strip_prefix("0X")).map(str::to_owned);
    let hex = |text: &str| {
        let fits = (1..=16).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit());
        fits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
    };
    match (first, second) {
        ("LD" | "ST", at) => {
            let decimal = at.chars().all(|c| c.is_ascii_digit()).then(|| at.parse().ok());
            let address = digits(at).map_or_else(|| decimal.flatten(), |at| hex(&at))?;
            Some((first == "ST", address))
        }
        (at, "R" | "W") => Some((second == "W", hex(&digits(at).unwrap_or_else(|| at.into()))?)),
        _ => None,
    }
}

fn check(text: &str, format: Option<nestwalk_source::Format>) {
    let records: Vec<(bool, u64)> = text.lines().filter_map(naive).collect();
    for (name, data) in compressed(text.as_bytes()) {
        let file = file(&data);
        let mut source = open(file.path(), format).expect(name);
        let stream = collect(source.as_mut());
        assert_eq!(stream.end, Ok(()), "{name}");
        assert_eq!(stream.accesses(), records.len() as u64, "{name}");
        // A run stores if one of its accesses does.
        let stores: BTreeSet<u64> = records.iter().filter(|r| r.0).map(|r| r.1 >> 12).collect();
        let storing =
            stream.runs.iter().filter(|r| r.flags.is_store()).map(|r| r.gva.value() >> 12);
        assert_eq!(storing.collect::<BTreeSet<u64>>(), stores, "{name}");
        let lines = |address: u64| address >> 6;
        let expected: BTreeSet<u64> = records.iter().map(|r| lines(r.1)).collect();
        let found: BTreeSet<u64> = stream
            .runs
            .iter()
            .flat_map(|r| {
                (0..64).filter(|i| r.lines >> i & 1 == 1).map(|i| (r.gva.value() >> 12 << 6) + i)
            })
            .collect();
        assert_eq!(found, expected, "{name}");
        assert_eq!(stream.instructions(), 0, "{name}");
        assert_eq!(source.tally()[0], ("records", records.len() as u64), "{name}");
    }
}

#[test]
fn small_traces_are_told_and_read() {
    check("0x12345680 R\n0x4cbd56c0 W\n", None);
    check("LD 0x12345680\nST 4096\n", None);
    check("# of a course\n0041f7a0 R\n13f5e2c0 W\n", None);
    // It has lines that are no records, so it must be named.
    check(SMALL, Some(named("ramulator")));
}

#[test]
fn random_lines_are_read_as_the_naive_reader_reads_them() {
    for seed in 0..10 {
        let mut r = SplitMix64::new(seed);
        let mut text = String::from("0x1000 R\n");
        for _ in 0..2000 {
            let at = r.next() >> r.below(50);
            let mut line = match r.below(5) {
                0 => format!("{at:#x} {}", ["R", "W"][r.below(2) as usize]),
                1 => format!("{at:08x} {}", ["R", "W"][r.below(2) as usize]),
                2 => format!("LD {at:#x}"),
                3 => format!("ST {at}"),
                _ => format!("ST {at:#x}"),
            };
            match r.below(30) {
                0 => line = "# a comment".into(),
                1 => line = format!("{line} more"),
                2 => line = format!("  {line} \t\r"),
                3 => line = line.replace(' ', "\t "),
                4 => line = line.replace(' ', ""),
                5 => drop(line.pop()),
                6 => line = line.to_lowercase(),
                7 => line = format!("LD {}{at}", u64::MAX),
                _ => {}
            }
            text += &line;
            text.push('\n');
        }
        check(&text, Some(named("ramulator")));
    }
}

//! The fast parser of lackey logs against a naive one, on made-up and on real logs.

mod common;

use common::{collect, compressed, file, named, valgrind_log};
use nestwalk_source::{Lackey, open};
use nestwalk_types::{AccessKind, Batch, BatchBuilder, Gva, Run, Source, SplitMix64, VcpuId};
use std::io::Cursor;

/// What lackey's `printf` formats can produce, and what others make of it, read with `str` methods
/// alone.
fn naive(line: &str) -> Option<(char, u64, u32)> {
    let line = line.trim_matches(|c: char| c.is_ascii_whitespace());
    let kind = line.chars().next().filter(|c| "ILSM".contains(*c))?;
    let rest = &line[1..];
    let text = rest.trim_start_matches(|c: char| c.is_ascii_whitespace());
    let (address, size) = text.split_once(',').filter(|_| text.len() < rest.len())?;
    let address = address.strip_prefix("0x").or(address.strip_prefix("0X")).unwrap_or(address);
    if !(1..=16).contains(&address.len()) || !address.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    if size.len() > 4 || size.starts_with('0') || !size.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    Some((kind, u64::from_str_radix(address, 16).ok()?, size.parse().ok()?))
}

/// Runs and numbers of records by kind, as the documentation of the format says.
fn oracle(log: &str) -> (Vec<Run>, [u64; 4], u64) {
    let mut builder = BatchBuilder::new();
    let (mut runs, mut counts, mut other) = (Vec::new(), [0; 4], 0);
    let mut batch = Batch::default();
    let mut pc = Gva::new(0);
    let lines: Vec<&str> = log.split_inclusive('\n').collect();
    let (mut data_since, mut first) = (None, None);
    for (i, line) in lines.iter().enumerate() {
        let Some((kind, address, size)) = naive(line) else {
            other += 1;
            continue;
        };
        // The load of an atomic instruction, whose modify follows in lackey's own words.
        if data_since == Some(0)
            && line.starts_with(" L ")
            && lines.get(i + 1).is_some_and(|next| next.replacen('M', "L", 1) == **line)
            && lines[i + 1].starts_with(" M ")
        {
            continue;
        }
        // A further element of a repeated string instruction: bytes that follow those of the element
        // before, or the end, where none are accessed.
        if kind == 'I' && pc.value() == address && (2..4).contains(&size) && line.len() > 11 {
            let next = lines.get(i + 1).and_then(|next| naive(next)).filter(|n| n.0 != 'I');
            let follows = next.is_none_or(|(_, at, bytes)| {
                first.is_some_and(|(a, b): (u64, u32)| b == bytes && a.abs_diff(at) == u64::from(b))
            });
            if follows && data_since.is_some_and(|n| n == 1 || n == 2) {
                data_since = Some(0);
                continue;
            }
        }
        if kind != 'I' && data_since == Some(0) {
            first = Some((address, size));
        }
        data_since = if kind == 'I' { Some(0) } else { data_since.map(|n| n + 1) };
        let gva = Gva::new(address);
        let (index, access) = match kind {
            'I' => (0, AccessKind::Fetch),
            'L' => (1, AccessKind::Load),
            'S' => (2, AccessKind::Store),
            _ => (3, AccessKind::Store),
        };
        counts[index] += 1;
        if index == 0 {
            pc = gva;
        }
        builder.access(VcpuId(0), pc, gva, size, access, u32::from(index == 0));
        if builder.is_full() {
            builder.take_into(&mut batch);
            runs.append(&mut batch.runs);
        }
    }
    builder.take_into(&mut batch);
    runs.append(&mut batch.runs);
    (runs, counts, other)
}

fn compare(log: &[u8]) {
    let (runs, counts, other) = oracle(&String::from_utf8_lossy(log));
    let mut source = Lackey::from_reader("log", Cursor::new(log.to_vec())).unwrap();
    let stream = collect(&mut source);
    assert_eq!(stream.end, Ok(()));
    let s = source.stats();
    assert_eq!([s.instructions, s.loads, s.stores, s.modifies], counts);
    assert_eq!(s.chatter_lines + s.other_lines, other);
    assert_eq!(stream.instructions(), s.instructions);
    assert_eq!(stream.runs.len(), runs.len());
    assert!(stream.runs == runs, "the runs differ");
}

#[test]
fn a_real_log_is_read_as_the_oracle_reads_it() {
    let log = valgrind_log(&["true"]);
    compare(&log);
    let text = String::from_utf8_lossy(&log);
    // Lackey's own count of instructions differs from its records by what it counts of the
    // superblocks that were left early, so only the order of magnitude can be asked for.
    let counted = text.lines().find_map(|l| l.split_once("guest instrs:")).unwrap().1;
    let counted: u64 = counted.trim().replace(',', "").parse().unwrap();
    let found = oracle(&text).1[0];
    assert!(found.abs_diff(counted) <= counted / 10, "{found} records, {counted} instructions");
}

/// A log with everything that can go wrong in lines, from a seed.
fn random_log(seed: u64, lines: usize) -> Vec<u8> {
    let mut r = SplitMix64::new(seed);
    let mut log = Vec::new();
    for _ in 0..lines {
        let address = r.next() >> r.below(64);
        let size = 1 + r.below(64);
        let head = ["I  ", " L ", " S ", " M "][r.below(4) as usize];
        let line = match r.below(40) {
            0 => format!("=={}== Counted 1 call to main()\n", r.below(100_000)),
            1 => "hello from the program\n".into(),
            2 => format!("{head}{address:x},{size}\n"),
            3 => format!("{head}{address:08X},{size}\n"),
            4 => format!("{head}{address:08x}, {size}\n"),
            5 => format!("{head}{address:08x},{}\n", r.below(100_000)),
            6 => format!("{head}{address:08x},0{size}\n"),
            7 => "\n".into(),
            8 => format!("{}\n", "x".repeat(r.below(300) as usize)),
            9 => format!("{head}{address:020x},{size}\n"),
            10 => format!("x{head}{address:08x},{size}\n"),
            11 => format!("{head}{address:08x},{size} \n"),
            12 => format!("{head}{address:08x},\n"),
            13 => format!("{head}{address:08x},{size}\r\n"),
            14 => format!("{} {address:x},{size} \t\r\n", head.trim()),
            15 => format!("{head}{address:X},{size}\n"),
            // An atomic instruction, and a repeated one.
            16 => format!("I  {address:08x},4\n L {address:08x},{size}\n M {address:08x},{size}\n"),
            17 => (0..1 + size % 9)
                .map(|i| format!("I  00401000,2\n S {:08x},8\n", 8 * i))
                .chain(r.below(2).eq(&0).then(|| "I  00401000,2\n".into()))
                .collect(),
            18 => format!("I  {address:08x},2\n").repeat(2),
            _ => format!("{head}{address:08x},{size}\n"),
        };
        log.extend(line.bytes());
    }
    log.extend(b"I  04016b80,3\n");
    log
}

#[test]
fn random_logs_are_read_as_the_oracle_reads_them() {
    for seed in 0..40 {
        compare(&random_log(seed, 2000));
    }
    // Longer than several blocks of the reader.
    compare(&random_log(99, 100_000));
}

#[test]
fn every_compression_gives_the_same_stream() {
    let log = random_log(3, 50_000);
    let expected = oracle(&String::from_utf8_lossy(&log)).0;
    for (name, data) in compressed(&log) {
        let file = file(&data);
        for format in [None, Some(named("lackey"))] {
            let mut source = open(file.path(), format).unwrap();
            let stream = collect(source.as_mut());
            assert_eq!(stream.end, Ok(()), "{name}");
            assert!(stream.runs == expected, "{name}");
        }
    }
}

#[test]
fn a_cut_is_reported_at_its_byte_and_costs_nothing_before() {
    let log = b"==7== Lackey\nI  04016b80,3\n L 1ffeffe7e,8\nhello\n M 04016b80,16\n";
    let ends: Vec<usize> = (0..log.len()).filter(|&i| log[i] == b'\n').map(|i| i + 1).collect();
    for cut in 1..log.len() {
        let whole = ends.iter().rfind(|&&e| e <= cut).copied().unwrap_or(0);
        let text = String::from_utf8_lossy(&log[..whole]);
        let (runs, counts, _) = oracle(&text);
        let mut source = Lackey::from_reader("log", Cursor::new(log[..cut].to_vec())).unwrap();
        let stream = collect(&mut source);
        let inside = matches!(log.get(whole), Some(b'I' | b' ')) && cut > whole;
        if naive(&String::from_utf8_lossy(&log[whole..cut])).is_some() {
            // It could be whole, and is taken, and said.
            let (with, ..) = oracle(&String::from_utf8_lossy(&log[..cut]));
            let notes = source.info().approximations.join("\n");
            assert!(
                stream.runs == with && notes.contains("may have been cut off"),
                "{cut}: {notes}"
            );
            assert_eq!(stream.end, Ok(()));
            continue;
        }
        assert!(stream.runs == runs, "cut at {cut}");
        if inside {
            assert!(stream.message().contains(&format!("byte {whole}, line")), "cut at {cut}");
        } else {
            assert_eq!(stream.end.is_err(), counts.iter().sum::<u64>() == 0, "cut at {cut}");
        }
    }
}

#[test]
fn a_cut_compressed_log_delivers_what_can_be_had() {
    let log = random_log(5, 50_000);
    let whole = oracle(&String::from_utf8_lossy(&log)).0;
    for (name, data) in compressed(&log).into_iter().skip(1) {
        let file = file(&data[..data.len() * 3 / 4]);
        let mut source = open(file.path(), None).unwrap();
        let stream = collect(source.as_mut());
        let message = stream.message();
        assert!(message.contains("cut off") && message.contains("byte"), "{name}: {message}");
        assert!(stream.runs.len() > whole.len() / 3, "{name}: {}", stream.runs.len());
        // The last run may be a part of the whole one.
        let n = stream.runs.len() - 2;
        assert!(stream.runs[..n] == whole[..n], "{name}");
    }
}

#[test]
fn a_log_of_several_processes_says_so() {
    let log = "==7== a\n==8== b\nI  04016b80,3\nnoise\n";
    let mut source = Lackey::from_reader("log", Cursor::new(log)).unwrap();
    collect(&mut source);
    let said = source.info().approximations.join("\n");
    assert!(said.contains("2 processes mixed") && said.contains("1 lines"), "{said}");
}

#[test]
fn a_log_without_records_says_what_is_missing() {
    let mut source = Lackey::from_reader("log", Cursor::new("==7== Lackey, a\n")).unwrap();
    let message = collect(&mut source).message();
    assert!(message.contains("--trace-mem=yes") && message.contains("1 lines"), "{message}");
}

//! Formats of lines and of packets: each against a second, naive reading, and each feature alone.

mod common;

use common::{Stream, collect, compressed, file, named};
use nestwalk_source::{Format, open};
use nestwalk_types::{Control, ProcessId, Source, SplitMix64};

/// What a naive reader finds: kind (`F`, `L`, `S`), instruction address, address, bytes.
type Found = (char, u64, u64, u64);

/// Opens a file with this content, and reads it to its end.
fn read(content: &[u8], format: Option<Format>) -> (Stream, Vec<String>, Vec<(&'static str, u64)>) {
    let file = file(content);
    let mut source = open(file.path(), format).expect("a trace");
    let stream = collect(source.as_mut());
    (stream, source.info().approximations, source.tally())
}

fn hex(word: &str) -> Option<u64> {
    let word = word.strip_prefix("0x").or(word.strip_prefix("0X")).unwrap_or(word);
    let fits = (1..=16).contains(&word.len()) && word.chars().all(|c| c.is_ascii_hexdigit());
    fits.then(|| u64::from_str_radix(word, 16).ok()).flatten()
}

/// `0x401000: R 0x600000 [size [value]]`.
fn naive_pinatrace(line: &str) -> Option<Found> {
    let (ip, rest) = line.split_once(':')?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let kind = match *words.first()? {
        "R" => 'L',
        "W" => 'S',
        _ => return None,
    };
    let size = words.get(2).and_then(|w| w.parse::<u64>().ok()).filter(|n| *n <= 1 << 16);
    Some((kind, hex(ip.trim())?, hex(words.get(1)?)?, size.unwrap_or(0).max(1)))
}

/// `0 600000` and `r 600000 8`.
fn naive_dinero(line: &str) -> Option<Found> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (kind, extended) = match *words.first()? {
        "0" | "3" => ('L', false),
        "1" => ('S', false),
        "2" => ('F', false),
        "r" | "R" | "m" | "M" => ('L', true),
        "w" | "W" => ('S', true),
        "i" | "I" => ('F', true),
        _ => return None,
    };
    let size = if extended { hex(words.get(2)?).filter(|n| *n <= 1 << 16)? } else { 1 };
    Some((kind, 0, hex(words.get(1)?)?, size.max(1)))
}

/// Counts by `str` methods: accesses with one more for each further page, of each kind, pages, and how
/// many crossed.
fn counted(records: &[Found]) -> ([u64; 3], std::collections::BTreeSet<u64>, u64) {
    let (mut kinds, mut pages, mut crossings) = ([0; 3], std::collections::BTreeSet::new(), 0);
    for (kind, _, address, bytes) in records {
        let all = *address >> 12..=(address + bytes - 1) >> 12;
        let n = all.clone().count() as u64;
        kinds["FLS".find(*kind).unwrap()] += n;
        crossings += n - 1;
        pages.extend(all);
    }
    (kinds, pages, crossings)
}

fn check(stream: &Stream, records: &[Found]) {
    let (kinds, pages, crossings) = counted(records);
    assert_eq!(stream.end, Ok(()));
    let of = |fetch: bool| -> u64 {
        let runs = stream.runs.iter().filter(|r| r.flags.is_fetch() == fetch);
        runs.map(|r| u64::from(r.count)).sum()
    };
    assert_eq!((of(true), of(false)), (kinds[0], kinds[1] + kinds[2]));
    assert_eq!(stream.accesses(), records.len() as u64 + crossings);
    let found: std::collections::BTreeSet<u64> =
        stream.runs.iter().map(|r| r.gva.value() >> 12).collect();
    assert_eq!(found, pages);
}

/// Random lines of which most are records by `record`, and the rest is not or nearly one.
fn random_text(seed: u64, record: impl Fn(&mut SplitMix64) -> String) -> String {
    let mut r = SplitMix64::new(seed);
    let mut text = String::new();
    for _ in 0..3000 {
        let mut line = record(&mut r);
        match r.below(40) {
            0 => line = "# a comment".into(),
            1 => line.clear(),
            2 => line = "hello from the program".into(),
            3 => line = format!("{line}\r"),
            4 => line = format!("  {line} \t"),
            5 => line = line.replace(' ', "\t"),
            6 => line = line.to_uppercase(),
            7 => drop(line.pop()),
            8 => line = line.replace(' ', ""),
            9 => line = "x".repeat(r.below(9000) as usize),
            _ => {}
        }
        text += &line;
        text.push('\n');
    }
    text
}

#[test]
fn pinatrace_is_read_as_the_naive_reader_reads_it() {
    for seed in 0..20 {
        let text = random_text(seed, |r| {
            let (ip, at) = (r.next() >> 20, r.next() >> r.below(50) << 3);
            let kind = if r.below(2) == 0 { "R" } else { "W" };
            match r.below(2) {
                0 => format!("{ip:#x}: {kind} {at:#x}"),
                _ => format!("{ip:#x}: {kind} {at:#18x} {:2} {:#x}", 1 + r.below(64), r.next()),
            }
        });
        let text = format!("0x1: R 0x1000 4 0x5\n{text}");
        // A load that has lost its value is a prefetch.
        let is_prefetch = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.len() == 4 && words[1] == "R" && words[3].parse::<u32>().is_ok_and(|n| n > 0)
        };
        let lines = text.lines().filter(|line| !is_prefetch(line));
        let records: Vec<Found> = lines.filter_map(naive_pinatrace).collect();
        let (stream, notes, tally) = read(text.as_bytes(), Some(named("pinatrace")));
        check(&stream, &records);
        assert_eq!(stream.instructions(), 0);
        assert!(notes[0].contains("no rates per instruction"), "{notes:?}");
        let prefetches = text.lines().filter(|line| is_prefetch(line)).count();
        assert_eq!(tally[0], ("records", (records.len() + prefetches) as u64));
    }
}

#[test]
fn dinero_is_read_as_the_naive_reader_reads_it() {
    for seed in 0..20 {
        let text = random_text(seed, |r| {
            let at = r.next() >> r.below(50);
            match seed % 2 {
                0 => format!("{} {at:x}", r.below(4)),
                _ => {
                    let label = ["r", "w", "i", "m"][r.below(4) as usize];
                    format!("{label} {at:x} {:x}", 1 + r.below(64))
                }
            }
        });
        let records: Vec<Found> = text.lines().filter_map(naive_dinero).collect();
        let (stream, ..) = read(text.as_bytes(), Some(named("dinero")));
        check(&stream, &records);
        let fetches = records.iter().filter(|r| r.0 == 'F').count() as u64;
        assert_eq!(stream.instructions(), fetches);
    }
}

#[test]
fn pins_trace_has_instruction_addresses_and_no_fetches() {
    let text = b"#\n# Memory Access Trace Generated By Pin\n#\n0x401000: R 0x600000\n0x401004: W 0x600008\n#eof\n";
    for (name, data) in compressed(text) {
        let (stream, ..) = read(&data, None);
        assert_eq!(stream.runs.len(), 2, "{name}");
        let runs: Vec<_> = stream
            .runs
            .iter()
            .map(|r| (r.pc.value(), r.gva.value(), r.flags.is_store(), r.instructions))
            .collect();
        assert_eq!(runs, [(0x40_1000, 0x60_0000, false, 0), (0x40_1004, 0x60_0008, true, 0)]);
    }
    let (stream, notes, _) =
        read(b"0x1: R 0x1ffc 8 0x0\n0x2: R 0x5000 8 \n0x3: W 0x1ffc 8 0x0\n", None);
    assert_eq!(stream.accesses(), 4);
    assert!(notes.iter().any(|n| n == "1 prefetches were left out"), "{notes:?}");
}

#[test]
fn data_of_dinero_belongs_to_the_fetch_before() {
    let (stream, notes, _) = read(b"2 401000\n0 600000 read\n1 600008\n4 0\n3 7000\n", None);
    assert_eq!((stream.instructions(), stream.accesses()), (1, 4));
    assert!(stream.runs.iter().all(|r| r.pc.value() == 0x40_1000));
    assert!(notes.iter().any(|n| n.starts_with("1 flushes")), "{notes:?}");
    assert!(notes.iter().any(|n| n.starts_with("1 accesses of unknown type")), "{notes:?}");
    let (stream, notes, _) = read(b"0 600000\n1 600008\n", None);
    assert_eq!((stream.instructions(), stream.accesses()), (0, 2));
    assert!(notes.iter().any(|n| n.contains("no fetches")), "{notes:?}");
}

#[test]
fn samples_of_perf_are_of_their_processes_and_called_approximate() {
    let text = "\
# a comment
  chrome web 4657/4659 [002] 544966.882384:      10000 \tcpu_core/MEM/: 7ffdf1391b0c     10268100142 \
|OP LOAD|LVL L1 hit|SNP None|TLB L1 or L2 hit|LCK No|BLK    N/A    5   7    0   7fad7c47425d main (/x)
  ls 77 [001] 544966.9:  1 cpu/mem-stores/P: 7ffdf1392000 4011d0
  ls 77 [001] 544966.9:  1 cpu/mem-stores/P: 0 4011d0
  ls 77 [001] 545000.9:  1 cpu/mem-loads/P: ffff888000001000 ffffffff81000000
some words that are no sample
";
    // Something else is among the lines, so the format must be named.
    let (stream, notes, tally) = read(text.as_bytes(), Some(named("perf")));
    let runs: Vec<_> = stream
        .runs
        .iter()
        .map(|r| (r.pc.value(), r.gva.value(), r.flags.is_store(), r.flags.is_kernel()))
        .collect();
    let expected = [
        (0x7fad_7c47_425d, 0x7ffd_f139_1b0c, false, false),
        (0x40_11d0, 0x7ffd_f139_2000, true, false),
        (0xffff_ffff_8100_0000, 0xffff_8880_0000_1000, false, true),
    ];
    assert_eq!(runs, expected);
    let switches = stream.controls.iter().filter(|c| matches!(c.1, Control::Switch { .. }));
    assert_eq!(switches.count(), 2, "{:?}", stream.controls);
    assert!(notes[0].contains("APPROXIMATE") && notes[0].contains("3 sampled"), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("1 samples without a data address")), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("line 6: `some words")), "{notes:?}");
    assert_eq!(tally, [("records", 4), ("comment lines", 1), ("other lines", 1)]);
    // Fewer fields, as -F chooses them; told by content.
    let (stream, notes, _) = read(b" mem-loads:  7ffe1000\n mem-stores:  7ffe1008\n", None);
    assert_eq!((stream.accesses(), stream.runs[1].flags.is_store()), (2, true));
    assert!(notes.iter().any(|n| n.contains("add `pid`")), "{notes:?}");
}

/// A record of `CloudSuite` by hand: `struct cloudsuite_instr`.
fn cloudsuite(ip: u64, load: u64, store: u64, asid: [u8; 2]) -> [u8; 96] {
    let mut bytes = [0; 96];
    bytes[..8].copy_from_slice(&ip.to_le_bytes());
    bytes[24..32].copy_from_slice(&store.to_le_bytes());
    bytes[56..64].copy_from_slice(&load.to_le_bytes());
    bytes[88..90].copy_from_slice(&asid);
    bytes
}

#[test]
fn address_spaces_of_cloudsuite_are_processes() {
    let records: Vec<u8> = (0..90u64)
        .flat_map(|i| {
            let asid = [[1, 1], [2, 2], [1, 2]][i as usize / 10 % 3];
            cloudsuite(0x40_1000 + 4 * i, 0x60_0000 + 8 * i, 0, asid)
        })
        .collect();
    for format in [None, Some(named("cloudsuite")), Some(named("champsim"))] {
        let (stream, _, tally) = read(&records, format);
        assert_eq!((stream.instructions(), stream.accesses()), (90, 180), "{format:?}");
        let switches: Vec<ProcessId> = stream
            .controls
            .iter()
            .filter_map(|c| match c.1 {
                Control::Switch { process, .. } => Some(process),
                _ => None,
            })
            .collect();
        let expected = [1, 2, 3, 1, 2, 3, 1, 2, 3].map(ProcessId);
        assert_eq!(switches, expected, "{format:?}");
        assert!(tally.contains(&("address spaces", 3)), "{tally:?}");
    }
    let file = file(&records[..5 * 96 + 7]);
    let stream = collect(open(file.path(), Some(named("cloudsuite"))).unwrap().as_mut());
    let message = stream.message();
    assert!(message.contains("record 5 at byte 480 has 7 of its 96 bytes"), "{message}");
}

/// A record of `ChampSim` by hand.
fn champsim(ip: u64, flags: [u8; 2], load: u64) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&ip.to_le_bytes());
    bytes[8..10].copy_from_slice(&flags);
    bytes[32..40].copy_from_slice(&load.to_le_bytes());
    bytes
}

#[test]
fn what_tracers_of_champsim_write_is_read() {
    // Branches taken that are none, and instructions without an address.
    let records: Vec<u8> = (0..100u64)
        .flat_map(|i| {
            let ip = if i % 10 == 9 { 0 } else { 0x40_1000 + 4 * i };
            champsim(ip, [0, u8::from(i % 7 == 3)], 0x60_0000 + 64 * i)
        })
        .collect();
    for format in [None, Some(named("champsim"))] {
        let (stream, notes, tally) = read(&records, format);
        assert_eq!((stream.instructions(), stream.accesses()), (100, 200));
        assert!(
            notes.iter().any(|n| n.starts_with("10 instructions have the address 0")),
            "{notes:?}"
        );
        assert_eq!(tally, [("records", 100), ("instructions at address 0", 10)]);
    }
    // Nothing but zeros is no trace.
    assert!(open(file(&[0; 640]).path(), None).is_err());
}

#[test]
fn a_wrong_format_that_was_named_is_found_out() {
    let inputs: [(&str, Vec<u8>); 6] = [
        ("lackey", b"I  04016b80,3\n L 1ffeffe7e,8\n".to_vec()),
        ("pinatrace", b"0x401000: R 0x600000\n".to_vec()),
        ("dinero", b"2 401000\n0 600000\n".to_vec()),
        ("champsim", champsim(0x40_1000, [0, 0], 0x60_0000).repeat(30)),
        ("cloudsuite", cloudsuite(0x40_1000, 0x60_0000, 0, [1, 1]).repeat(30)),
        ("gem5", b"gem5\x02\x08\x01".to_vec()),
    ];
    for (is, content) in &inputs {
        let file = file(content);
        for said in Format::ALL.iter().copied() {
            let opened = open(file.path(), Some(said));
            // CloudSuite's records are ChampSim's, too.
            let right = said.name() == *is || (*is, said.name()) == ("cloudsuite", "champsim");
            if right {
                assert!(opened.is_ok(), "{is} said to be {said}");
                continue;
            }
            let message = opened.err().map_or_else(String::new, |e| e.to_string());
            let told = format!("said to be {said}") + ", but its first";
            assert!(message.contains(&told) && message.contains(is), "{is} as {said}: {message}");
        }
    }
}

#[test]
fn damaged_packets_are_told_with_their_place() {
    let header = b"gem5\x06\x0a\x01m\x18\x80\x01";
    let packet = [8, 0x08, 1, 0x10, 1, 0x18, 0x80, 0x20, 0x20];
    let whole = [&header[..], &[9], &packet[1..], &[8]].concat();
    let (stream, ..) = read(&whole, None);
    assert_eq!((stream.accesses(), stream.runs[0].gva.value()), (1, 0x1000));
    let cases: [(&[u8], &str); 5] = [
        (&whole[..whole.len() - 1], "packet 0 at byte 11: 9 bytes are left: the trace was cut off"),
        (&whole[..7], "header at byte 4: 3 bytes are left"),
        (b"gem5\x01\x0f", "header at byte 4: a field of a type that the format does not have"),
        (b"gem5\x02\x08\x80", "header at byte 4: a message that ends within a field"),
        (b"gem5\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a number of more than 64 bits"),
    ];
    for (content, expected) in cases {
        let file = file(content);
        let message = collect(open(file.path(), None).unwrap().as_mut()).message();
        assert!(message.contains(expected), "{message}");
    }
    let file = file(b"nothing of the kind");
    let message = collect(open(file.path(), Some(named("gem5"))).unwrap().as_mut()).message();
    assert!(message.contains("does not begin with `gem5`"), "{message}");
}

#[test]
fn text_without_records_says_what_they_look_like() {
    for format in Format::ALL {
        let Some(example) = format.example() else { continue };
        let file = file(b"hello\nworld\n");
        let message = collect(open(file.path(), Some(*format)).unwrap().as_mut()).message();
        assert!(message.contains(example) && message.contains("2 lines and 12 bytes"), "{message}");
        assert!(message.contains("number 1 is `hello`"), "{message}");
    }
}

#[test]
fn lackey_is_read_as_others_write_it() {
    let cases: [(&[u8], u64, u64); 6] = [
        (b"I  10,4\n L 18,8\n S ff8,16\n M 20,1\n", 1, 5),
        (b"I  00401000,4\r\n L 00600000,8\r\n", 1, 2),
        (b"I  00401000,4\n L 00600000,8", 1, 2),
        (b"I 00401000,4  \n L 0060000A,8 \t\n", 1, 2),
        (b" L 10,1\n M 20,1\n L 22,1\n S 18,1\n", 0, 4),
        (b"hello\nI  00401000,4\nworld\n L 00600000,8\n", 1, 2),
    ];
    for (content, instructions, accesses) in cases {
        let (stream, notes, _) = read(content, None);
        assert_eq!(stream.end, Ok(()));
        assert_eq!((stream.instructions(), stream.accesses()), (instructions, accesses));
        let noise = content.starts_with(b"hello");
        assert_eq!(notes.iter().any(|n| n.contains("2 lines of the log are neither")), noise);
        let unknown = notes.iter().any(|n| n.contains("no instruction lines"));
        assert_eq!(unknown, instructions == 0, "{notes:?}");
    }
}

//! The fuzz targets' checks over random bytes and damaged valid inputs, for a second each.

mod common;

use nestwalk_source::champsim::Instruction;
use nestwalk_source::trace::{Header, Summary, TraceReader, TraceWriter, WriteOptions};
use nestwalk_source::{Format, fuzzing};
use nestwalk_types::{Batch, Control, Gpa, Gva, Invalidation, Run, RunFlags, SplitMix64, VcpuId};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(1);

/// Changes a valid input in a few places, in the ways that find most bugs of decoders.
fn damage(valid: &[u8], r: &mut SplitMix64) -> Vec<u8> {
    let mut data = valid.to_vec();
    for _ in 0..1 + r.below(4) {
        let at = r.below(data.len().max(1) as u64) as usize;
        match r.below(6) {
            _ if data.is_empty() => data.push(r.next() as u8),
            0 => data[at] ^= 1 << r.below(8),
            1 => data[at] = [0, 0xff, 0x7f, 0x80, b'\n', b','][r.below(6) as usize],
            2 => data.truncate(at),
            3 => drop(data.drain(at..(at + r.below(16) as usize).min(data.len()))),
            4 => {
                let piece = data[at..(at + 32).min(data.len())].to_vec();
                let to = r.below(data.len() as u64) as usize;
                data.splice(to..to, piece);
            }
            _ => data[at] = r.next() as u8,
        }
    }
    data
}

fn fuzz(check: impl Fn(&[u8]), valid: &[Vec<u8>]) {
    valid.iter().for_each(|v| check(v));
    let mut r = SplitMix64::new(2);
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < LONG {
        let random: Vec<u8> = (0..r.below(300)).map(|_| r.next() as u8).collect();
        check(&random);
        valid.iter().for_each(|v| check(&damage(v, &mut r)));
        rounds += 1;
    }
    assert!(rounds > 100, "only {rounds} rounds in a second");
}

fn champsim() -> Vec<u8> {
    let record = |i: u64| Instruction {
        ip: 0x40_0000 + i,
        is_branch: (i & 1) as u8,
        source_memory: [i << 12, 0, 7, u64::MAX],
        destination_memory: [0, i],
        ..Instruction::default()
    };
    (0..40).flat_map(|i| record(i).to_bytes()).collect()
}

fn entry(kind: u16, size: u16, value: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[2..4].copy_from_slice(&size.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_le_bytes());
    bytes
}

fn drmemtrace() -> Vec<u8> {
    let mut bytes = [entry(25, 0, 5), entry(22, 4, 7), entry(24, 4, 6)].concat();
    for i in 0..30u64 {
        bytes.extend(entry(28, 2, 1000 + i));
        bytes.extend(entry(10, 4, 0x40_0000 + 4 * i));
        bytes.extend(entry((i % 50) as u16, 3, i << 11));
        bytes.extend(entry(17, 3, 0x0403_0201));
    }
    bytes.extend(entry(26, 0, 0));
    bytes
}

#[test]
fn lackey() {
    let log = b"==7== Lackey\nI  04016b80,3\n L 1ffeffe7e,8\nhello\n M 04016b80,16\n S ffffffffffffffff,512\n";
    fuzz(fuzzing::lackey, &[log.to_vec(), log.repeat(30)]);
}

#[test]
fn champsim_records() {
    fuzz(fuzzing::champsim, &[champsim()]);
}

#[test]
fn drmemtrace_records() {
    fuzz(fuzzing::drmemtrace, &[drmemtrace()]);
}

/// The same in records of 8 bytes, and with what whole-system and filtered traces have.
fn other_drmemtraces() -> [Vec<u8>; 2] {
    let narrow = |kind: u16, size: u16, value: u32| {
        [&kind.to_le_bytes()[..], &size.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let mut small =
        [narrow(25, 0, 6), narrow(28, 9, 0x20), narrow(22, 4, 7), narrow(24, 4, 6)].concat();
    let mut whole =
        [entry(25, 0, 7), entry(28, 9, 0x4_2048), entry(22, 4, 7), entry(24, 4, 6)].concat();
    for i in 0..30 {
        small.extend([narrow(10, 4, 0x40_0000 + 4 * i), narrow(17, 3, 0x0403_0201)].concat());
        small.extend([narrow(0, 4, i << 11), narrow(28, 2, i << 28)].concat());
        whole.extend(entry(28, (i % 48) as u16, u64::from(i) << 12));
        whole
            .extend([entry(10, 4, 0xffff_8000_0000_0000 + u64::from(i)), entry(26, 0, 0)].concat());
        whole.extend([entry(29, 4, 0x40), entry(30, 4, 0x40), entry(48, 0, 0x44)].concat());
    }
    small.extend(narrow(26, 0, 0));
    whole.extend([entry(28, 23, 0), entry(1, 8, 0x0b00_aaaa_0000_1000), entry(26, 0, 0)].concat());
    [small, whole]
}

#[test]
fn drmemtraces_of_other_kinds() {
    fuzz(fuzzing::drmemtrace, &other_drmemtraces());
}

#[test]
fn page_tables_of_drmemtraces() {
    let text = "address_mapping_group { # 1\n page_size: 0x1000\n address_mapping {\n virtual_address: \
                4096 physical_address: 0x7000 }\n information { page_count: 1 } }\n";
    fuzz(fuzzing::v2p, &[text.into(), text.repeat(5).into()]);
}

#[test]
fn compressed_files() {
    let all: Vec<_> = common::compressed(&champsim()).into_iter().map(|c| c.1).collect();
    fuzz(fuzzing::compressed, &all);
}

#[test]
fn pattern_texts() {
    let texts = ["zipf:theta=0.9,item=4KiB", "phases:sequential/stride:stride=4160/chase:node=64"];
    fuzz(fuzzing::pattern, &texts.map(|t| t.as_bytes().to_vec()));
}

/// A whole trace and the payload of a chunk, both as the target takes them.
fn traces() -> Vec<Vec<u8>> {
    let mut batch = Batch::default();
    for i in 0..60_u64 {
        let gva = Gva::new(0x7f00_0000_0000 + i * i % 7 * 0x1040);
        let pc = Gva::new(0x40_0000 + i % 5 * 4);
        let vcpu = VcpuId((i / 50) as u8);
        let lines = 1 << (gva.value() >> 6 & 63) | i;
        let flags = if i % 4 == 0 { RunFlags::STORE } else { RunFlags::default() };
        batch.runs.push(Run { gva, pc, lines, count: 2, instructions: i as u16, vcpu, flags });
        if i % 6 == 0 {
            let at = batch.runs.len() as u32;
            let (gpa, value) = (Gpa::new(i << 3), i << 12 | 0x67);
            batch.controls.push((at, Control::TableWrite { vcpu, gpa, value }));
            batch.controls.push((at, Control::Invalidate { vcpu, what: Invalidation::Page(gva) }));
            let entries = (i % 12 == 0).then(|| Box::new([value; 512]));
            batch
                .controls
                .push((at, Control::TableAdded { vcpu, gpa: Gpa::new(i << 12), entries }));
        }
    }
    // So small a chunk does not shrink much: most columns stand there as they are.
    let options = WriteOptions { thread: false, ..WriteOptions::LIVE };
    let mut writer = TraceWriter::new("valid", Vec::new(), &Header::default(), options).unwrap();
    writer.write(&batch).unwrap();
    let file = writer.finish(Summary::default()).unwrap().out;
    let reader = TraceReader::new("valid", std::io::Cursor::new(&file)).unwrap();
    let at = reader.chunks()[0].offset as usize;
    let length = u32::from_le_bytes(file[at + 4..at + 8].try_into().unwrap()) as usize;
    vec![[&[0], &file[..]].concat(), [&[1], &file[at + 16..at + 16 + length]].concat()]
}

#[test]
fn traces_of_guests() {
    fuzz(fuzzing::trace, &traces());
}

/// Small inputs of every format that the tests make.
fn encoded(name: &str) -> Vec<u8> {
    let all = common::programs::every_format(&common::programs::program(9, 12));
    all.into_iter().find(|e| e.name == name).expect("a format").bytes
}

#[test]
fn cloudsuite() {
    fuzz(fuzzing::cloudsuite, &[encoded("cloudsuite")]);
}

#[test]
fn formats_of_lines() {
    let programs = common::programs::every_format(&common::programs::program(9, 12));
    for format in Format::ALL {
        let Some(example) = format.example() else { continue };
        let made = programs.iter().filter(|e| e.name == format.name()).map(|e| e.bytes.clone());
        let lines = format!("{example}\n# a comment\n{example} 8 0x0\n4 0\nr 600000 8\n{example}");
        let valid: Vec<_> = made.chain([lines.into_bytes()]).collect();
        fuzz(|data| fuzzing::format(*format, data), &valid);
    }
}

#[test]
fn formats_by_their_place() {
    let lines = b"0x401000: R 0x600000\n0 600000\nI  10,4\n";
    let valid: Vec<_> = (0..Format::ALL.len() as u8).map(|i| [&[i][..], lines].concat()).collect();
    fuzz(fuzzing::formats, &valid);
}

#[test]
fn gem5() {
    // Behind a byte that says whether the magic number is put before it.
    let whole = encoded("gem5");
    fuzz(fuzzing::gem5, &[[&[0][..], &whole[4..]].concat(), [&[1][..], &whole].concat()]);
}

#[test]
fn page_tables() {
    let dump = b"va pa\n0x1000 0x2000\n0x7f0000200000, 40000000 2M\n7f4000000000:140000000 1G\n";
    fuzz(fuzzing::page_tables, &[dump.to_vec()]);
}

//! `ChampSim` records: written and read back, cut, damaged, compressed.

mod common;

use common::{collect, compressed, file, named};
use nestwalk_source::champsim::{Instruction, RECORD};
use nestwalk_source::open;
use nestwalk_types::Run;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

fn bytes(instructions: &[Instruction]) -> Vec<u8> {
    instructions.iter().flat_map(Instruction::to_bytes).collect()
}

/// The accesses that a trace must become, one by one: kind, address, pc.
fn expected(instructions: &[Instruction]) -> Vec<(char, u64, u64)> {
    let mut all = Vec::new();
    for i in instructions {
        all.push(('F', i.ip, i.ip));
        let some = |a: &&u64| **a != 0;
        all.extend(i.source_memory.iter().filter(some).map(|&a| ('L', a, i.ip)));
        all.extend(i.destination_memory.iter().filter(some).map(|&a| ('S', a, i.ip)));
    }
    all
}

/// What every run says of the accesses in it: pages, lines and counts, in order of the runs.
fn check(runs: &[Run], instructions: &[Instruction]) {
    let accesses = expected(instructions);
    assert_eq!(runs.iter().map(|r| usize::from(r.count)).sum::<usize>(), accesses.len());
    assert_eq!(runs.iter().map(|r| usize::from(r.instructions)).sum::<usize>(), instructions.len());
    // Unfold: each access belongs to the latest run of its class that still has room.
    for fetch in [true, false] {
        let mut of = accesses.iter().filter(|a| (a.0 == 'F') == fetch);
        for run in runs.iter().filter(|r| r.flags.is_fetch() == fetch) {
            let mut lines = 0;
            for n in 0..run.count {
                let a = of.next().expect("as many accesses as the runs say");
                assert_eq!(a.1 >> 12, run.gva.page_number_of(), "page");
                if n == 0 {
                    assert_eq!((a.1, a.2), (run.gva.value(), run.pc.value()));
                    assert_eq!(a.0 == 'S', run.flags.is_store());
                }
                assert!(a.0 != 'S' || run.flags.is_store(), "a store in a run of loads");
                lines |= 1u64 << (a.1 >> 6 & 63);
            }
            assert_eq!(lines, run.lines);
        }
        assert!(of.next().is_none());
    }
}

trait PageNumber {
    fn page_number_of(&self) -> u64;
}
impl PageNumber for nestwalk_types::Gva {
    fn page_number_of(&self) -> u64 {
        self.value() >> 12
    }
}

fn instruction() -> impl Strategy<Value = Instruction> {
    let address = || prop_oneof![2 => Just(0u64), 2 => 0x1000u64..0x5000, 1 => 1u64..1 << 47];
    let memory = ([address(), address()], [address(), address(), address(), address()]);
    (1u64..1 << 47, any::<bool>(), any::<bool>(), memory).prop_map(|(ip, branch, taken, m)| {
        Instruction {
            ip,
            is_branch: u8::from(branch),
            branch_taken: u8::from(branch && taken),
            destination_memory: m.0,
            source_memory: m.1,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_written_is_read(
        instructions in proptest::collection::vec(instruction(), 1..200),
        which in 0usize..4,
    ) {
        for i in &instructions {
            assert_eq!(Instruction::from_bytes(&i.to_bytes()), *i);
        }
        let (_, data) = compressed(&bytes(&instructions)).swap_remove(which);
        let file = file(&data);
        let stream = collect(open(file.path(), None).unwrap().as_mut());
        assert_eq!(stream.end, Ok(()));
        check(&stream.runs, &instructions);
    }
}

fn sample() -> Vec<Instruction> {
    (0..3)
        .map(|i| Instruction {
            ip: 0x40_0000 + 4 * i,
            source_memory: [0x7000_0000 + 4096 * i, 0, 0, 0],
            ..Instruction::default()
        })
        .collect()
}

#[test]
fn the_layout_is_the_one_of_the_header() {
    // Every field at the offset that the C structure gives it, written by hand.
    let mut record = [0u8; RECORD];
    record[..8].copy_from_slice(&0x40_1000u64.to_le_bytes());
    record[8] = 1;
    record[9] = 1;
    record[10..16].fill(0xff);
    record[16..24].copy_from_slice(&0x10u64.to_le_bytes());
    record[24..32].copy_from_slice(&0x20u64.to_le_bytes());
    for (i, a) in [0x30u64, 0x40, 0x50, 0x60].into_iter().enumerate() {
        record[32 + 8 * i..40 + 8 * i].copy_from_slice(&a.to_le_bytes());
    }
    let expected = Instruction {
        ip: 0x40_1000,
        is_branch: 1,
        branch_taken: 1,
        destination_memory: [0x10, 0x20],
        source_memory: [0x30, 0x40, 0x50, 0x60],
    };
    assert_eq!(Instruction::from_bytes(&record), expected);
}

#[test]
fn a_cut_at_every_byte_is_reported_with_its_record() {
    let instructions = sample();
    let data = bytes(&instructions);
    for cut in 1..data.len() {
        let file = file(&data[..cut]);
        let stream = collect(open(file.path(), Some(named("champsim"))).unwrap().as_mut());
        check(&stream.runs, &instructions[..cut / RECORD]);
        if cut % RECORD == 0 {
            assert_eq!(stream.end, Ok(()));
        } else {
            let place = format!(
                "record {} at byte {} has {}",
                cut / RECORD,
                cut / RECORD * RECORD,
                cut % RECORD
            );
            assert!(stream.message().contains(&place), "{cut}: {}", stream.message());
        }
    }
}

#[test]
fn flags_that_cannot_be_are_reported_with_their_record() {
    for (field, name) in [(8, "is_branch"), (9, "branch_taken")] {
        let mut data = bytes(&sample());
        data[RECORD + field] = 7;
        let file = file(&data);
        let stream = collect(open(file.path(), Some(named("champsim"))).unwrap().as_mut());
        check(&stream.runs, &sample()[..1]);
        let wanted = format!("record 1 at byte 64: {name} is 7, which must be 0 or 1");
        assert!(stream.message().contains(&wanted), "{}", stream.message());
    }
}

#[test]
fn a_damaged_compressed_trace_is_an_error_after_what_was_sound() {
    let instructions: Vec<_> = (0..20_000)
        .map(|i| Instruction { ip: 0x40_0000 + i * 0x9e37_79b9 % 0xffff, ..Instruction::default() })
        .collect();
    for (name, mut data) in compressed(&bytes(&instructions)).into_iter().skip(1) {
        let middle = data.len() / 2;
        data.iter_mut().skip(middle).take(64).for_each(|b| *b = !*b);
        let file = file(&data);
        let stream = collect(open(file.path(), Some(named("champsim"))).unwrap().as_mut());
        assert!(stream.end.is_err(), "{name}");
        let message = stream.message();
        assert!(message.contains("byte") || message.contains("record"), "{name}: {message}");
    }
}

//! The mirror against a naive oracle, and the counts against closed forms.

use super::*;
use nestwalk_tables::entry::{LARGE, NO_EXECUTE, PRESENT, USER, WRITE};
use nestwalk_tables::{LONG4, LONG5, MODES, look_up};
use nestwalk_types::ProcessId;
use nestwalk_types::{FaultCode, Filter, Run, RunFlags, SplitMix64};

const V: VcpuId = VcpuId(0);

fn info(mode: &Mode, vcpus: u8, memory_bytes: u64) -> GuestInfo {
    GuestInfo { memory_bytes, paging: mode.name.into(), vcpus, filter: Filter::RUNS }
}

fn run(vcpu: u8, gva: u64, flags: RunFlags) -> Run {
    let gva = Gva::new(gva);
    Run { gva, pc: gva, lines: 1, count: 3, instructions: 1, vcpu: VcpuId(vcpu), flags }
}

fn new(gpa: u64, entries: Option<Box<[u64; 512]>>) -> Control {
    Control::TableAdded { vcpu: V, gpa: Gpa::new(gpa), entries }
}
fn write(gpa: u64, value: u64) -> Control {
    Control::TableWrite { vcpu: V, gpa: Gpa::new(gpa), value }
}
fn cr3(vcpu: u8, root: u64) -> Control {
    Control::LoadCr3 { vcpu: VcpuId(vcpu), root: Gpa::new(root), pcid: 0, keep: false }
}

fn process(guest: &mut ObservedGuest, controls: Vec<Control>, runs: Vec<Run>) -> GuestBatch {
    let controls = controls.into_iter().map(|c| (0, c)).collect();
    let mut out = GuestBatch::default();
    guest.process(&Batch { runs, controls }, &mut out).unwrap();
    out
}

/// What the tables say, word by word: the composition of all entries on the way.
fn oracle(
    mode: &'static Mode,
    tables: &TableMemory<Gpa>,
    root: Option<Gpa>,
    run: &Run,
    memory: u64,
) -> Result<Gpa, DropReason> {
    let unused = 64 - mode.address_bits();
    let plain = run.gva.value() << unused;
    let canonical = if unused == 32 { plain >> unused } else { (plain as i64 >> unused) as u64 };
    let root = root.filter(|_| canonical == run.gva.value()).ok_or(DropReason::NotMapped)?;
    let leaf = look_up(tables, mode, root, run.gva).map_err(|_| DropReason::NotMapped)?;
    let allowed = leaf.permissions;
    if !run.flags.is_kernel() && !allowed.user {
        return Err(DropReason::NotUser);
    }
    if run.flags.is_store() && !allowed.write {
        return Err(DropReason::NotWritable);
    }
    if run.flags.is_fetch() && !allowed.execute {
        return Err(DropReason::NotExecutable);
    }
    let gpa: Gpa = leaf.apply(run.gva);
    if gpa.value() < memory { Ok(gpa) } else { Err(DropReason::Device) }
}

/// Random stores to a few tables that point to each other at every level, themselves included, so
/// that each table has several places at once and a short cut that is kept too long shows.
#[test]
fn random_tables_agree_with_a_plain_look_up() {
    const MEMORY: u64 = 48 << 20;
    let flags = [0, 1, 2, 4, 5, 6].map(|f: u8| {
        let all = [RunFlags::STORE, RunFlags::FETCH, RunFlags::KERNEL];
        let set = |(i, flag): (usize, &RunFlags)| (f >> i & 1 == 1).then_some(*flag);
        all.iter().enumerate().filter_map(set).fold(RunFlags::default(), RunFlags::union)
    });
    let mut found = [0u64; 6];
    for seed in 0..60 {
        let mode = MODES[seed as usize % 4];
        let mut r = SplitMix64::new(seed);
        let mut guest = ObservedGuest::new(&info(mode, 2, MEMORY)).unwrap();
        let mut tables = TableMemory::<Gpa>::new();
        let mut roots = [None; 2];
        let table = |r: &mut SplitMix64| (1 + r.below(8)) << 12;
        // Few places, the last in the upper half.
        let places: Vec<u64> = (0..12u64)
            .map(|i| {
                let index = |level: u8, n: u64| n << mode.span(level).shift();
                let wide = index(1, i & 1) | index(2, i >> 1 & 1) | index(mode.levels, i >> 2);
                wide & mode.address_mask()
            })
            .collect();
        for _ in 0..400 {
            let mut controls = Vec::new();
            for _ in 0..r.below(3) {
                let at = table(&mut r);
                let index = [0, 0, 1, 2, 3][r.below(5) as usize];
                let bits = [WRITE | USER, USER, WRITE | USER | NO_EXECUTE, WRITE, 0];
                let kind = r.below(8);
                let target = if kind < 5 { table(&mut r) } else { r.below(64) << 20 };
                let mut value = target | PRESENT | bits[r.below(5) as usize];
                if kind == 7 {
                    value |= LARGE;
                }
                if r.below(6) == 0 {
                    value &= !PRESENT;
                }
                if mode.entry_bytes == 4 {
                    value &= 0xffff_ffff;
                }
                let place = at + index * u64::from(mode.entry_bytes);
                let control = match r.below(20) {
                    0 => {
                        let image = (r.below(2) == 0).then(|| Box::new([value; 512]));
                        tables.insert(Gpa::new(at), image.as_deref());
                        new(at, image)
                    }
                    1 => {
                        tables.remove(Gpa::new(at));
                        Control::TableRetired { vcpu: V, gpa: Gpa::new(at) }
                    }
                    2 | 3 => {
                        let vcpu = r.below(2) as u8;
                        roots[usize::from(vcpu)] = Some(Gpa::new(at));
                        cr3(vcpu, at)
                    }
                    _ => {
                        if !tables.contains(Gpa::new(at)) {
                            tables.insert(Gpa::new(at), None);
                            controls.push(new(at, None));
                        }
                        tables.write(Gpa::new(place), mode.entry_bytes, value);
                        write(place, value)
                    }
                };
                controls.push(control);
            }
            let runs: Vec<Run> = (0..r.below(12))
                .map(|_| {
                    let gva = places[r.below(12) as usize] | r.below(4096);
                    run(r.below(2) as u8, gva, flags[r.below(6) as usize])
                })
                .collect();
            let out = process(&mut guest, controls, runs.clone());
            let mut expected = Vec::new();
            for run in &runs {
                let root = roots[usize::from(run.vcpu.0)];
                match oracle(mode, &tables, root, run, MEMORY) {
                    Ok(gpa) => {
                        found[5] += 1;
                        expected.push((*run, gpa));
                    }
                    Err(reason) => found[reason as usize] += 1,
                }
            }
            let got: Vec<_> = out.batch.runs.into_iter().zip(out.gpas).collect();
            assert_eq!(got, expected, "{} seed {seed}", mode.name);
        }
        let stats = guest.stats();
        assert_eq!(stats.tables, tables.len());
    }
    // Every outcome occurs, so each was compared.
    assert!(found.iter().all(|n| *n > 100), "{found:?}");
}

const TABLE: u64 = PRESENT | WRITE | USER;

/// 4-level tables at 0x1000 (root), 0x2000, 0x3000 and 0x4000 (leaf) for the addresses from 0.
fn four_tables(order: impl Fn(Vec<Control>) -> Vec<Control>) -> ObservedGuest {
    let mut guest = ObservedGuest::new(&info(&LONG4, 1, 1 << 30)).unwrap();
    let image = |first: u64| {
        let mut words = Box::new([0; 512]);
        words[0] = first;
        Some(words)
    };
    let controls = vec![
        new(0x1000, image(0x2000 | TABLE)),
        new(0x2000, image(0x3000 | TABLE)),
        new(0x3000, image(0x4000 | TABLE)),
        new(0x4000, None),
    ];
    let mut controls = order(controls);
    controls.push(cr3(0, 0x1000));
    process(&mut guest, controls, vec![]);
    guest
}

#[test]
fn writes_are_counted_at_the_level_of_their_table_in_whatever_order_tables_are_said() {
    for order in [0, 1, 2] {
        let mut guest = four_tables(|mut c| {
            match order {
                0 => {}
                1 => c.reverse(),
                _ => c.swap(1, 3),
            }
            c
        });
        let mut controls: Vec<Control> =
            (0..100).map(|i| write(0x4000 + 8 * i, i << 12 | TABLE)).collect();
        controls.extend((0..40).map(|i| write(0x4000 + 8 * i, 0)));
        controls.push(write(0x4000 + 8 * 50, 50 << 12 | PRESENT));
        controls.push(write(0x3008, 0x20_0000 | TABLE | LARGE));
        controls.push(write(0x1000 + 8 * 511, 0));
        process(&mut guest, controls, vec![]);
        let stats = guest.stats();
        let expected = [
            LevelWrites::default(),
            LevelWrites { set: 100, cleared: 40, changed: 1 },
            LevelWrites { set: 1, cleared: 0, changed: 0 },
            LevelWrites::default(),
            LevelWrites { set: 0, cleared: 0, changed: 1 },
            LevelWrites::default(),
        ];
        assert_eq!((stats.table_writes, stats.stray_writes), (expected, 0));
        assert_eq!((stats.tables, stats.tables_new, stats.cr3_loads), (4, 4, 1));
    }
}

#[test]
fn writes_before_a_table_has_a_level_are_counted_when_it_gets_one() {
    let mut guest = ObservedGuest::new(&info(&LONG5, 1, 1 << 30)).unwrap();
    let at = |level: u64| level << 12;
    let mut controls: Vec<Control> = (1..=6).map(|level| new(at(level), None)).collect();
    // From the leaf upwards; the sixth table is never pointed to.
    controls.extend((0..7).map(|i| write(at(1) + 8 * i, 0x50_0000 | TABLE)));
    controls.extend((2..=5).map(|level| write(at(level), at(level - 1) | TABLE)));
    controls.extend((0..3).map(|i| write(at(6) + 8 * i, TABLE)));
    process(&mut guest, controls.clone(), vec![]);
    assert_eq!(guest.stats().table_writes[0].set, 14);
    process(&mut guest, vec![cr3(0, at(5))], vec![]);
    let sets = guest.stats().table_writes.map(|w| w.set);
    assert_eq!(sets, [3, 7, 1, 1, 1, 1]);
    // A table that goes without ever having had a place stays without one.
    process(&mut guest, vec![Control::TableRetired { vcpu: V, gpa: Gpa::new(at(6)) }], vec![]);
    assert_eq!(guest.stats().table_writes[0].set, 3);
    assert_eq!(guest.stats().tables, 5);
}

#[test]
fn what_cannot_be_is_dropped_with_its_reason_and_examples() {
    let mut guest = four_tables(|c| c);
    let controls = vec![
        write(0x4000, 0x50_0000 | PRESENT | USER | NO_EXECUTE),
        write(0x4008, 0x60_0000 | PRESENT | WRITE),
        // 0xfee00000 is the local APIC's.
        write(0x4010, 0xfee0_0000 | PRESENT | WRITE),
    ];
    let kernel = RunFlags::KERNEL;
    let runs = vec![
        run(0, 0x10, RunFlags::default()),
        run(0, 0x20, RunFlags::STORE),
        run(0, 0x30, RunFlags::FETCH),
        run(0, 0x1010, RunFlags::default()),
        run(0, 0x1020, kernel.union(RunFlags::STORE)),
        run(0, 0x2010, kernel),
        run(0, 0x3010, kernel),
        run(0, 0x8000_0000_0000, kernel),
    ];
    let out = process(&mut guest, controls, runs.clone());
    assert_eq!(out.batch.runs, [runs[0], runs[4]]);
    assert_eq!(out.gpas, [Gpa::new(0x50_0010), Gpa::new(0x60_0020)]);
    let dropped = guest.stats().dropped.map(|d| (d.runs, d.accesses));
    assert_eq!(dropped, [(2, 6), (1, 3), (1, 3), (1, 3), (1, 3)]);
    assert_eq!(guest.stats().dropped_total(), Dropped { runs: 6, accesses: 18 });
    assert_eq!(guest.stats().accesses, 24);
    assert_eq!(guest.stats().kernel_accesses, 15 - 3);
    assert_eq!(
        guest.examples()[0].to_string(),
        "run 1: vCPU 0, user store to gVA 0x20 at pc 0x20: the tables forbid stores"
    );
    let leaf = guest.look_up(V, Gva::new(0x1020)).unwrap();
    assert_eq!(leaf.apply::<Gva>(Gva::new(0x1020)), Gpa::new(0x60_0020));
    assert!(guest.look_up(V, Gva::new(0x3010)).is_err());
    assert!(guest.look_up(VcpuId(1), Gva::new(0x1020)).is_err());
    // The same again: nothing of it was remembered wrongly, and only three examples are kept.
    let again = process(&mut guest, vec![], runs);
    assert_eq!(again.gpas, out.gpas);
    assert_eq!(guest.examples().len(), 3 + 2 * 4);
}

#[test]
fn controls_stay_in_their_places_when_runs_are_dropped() {
    let mut guest = four_tables(|c| c);
    process(&mut guest, vec![write(0x4000, 0x50_0000 | TABLE)], vec![]);
    let runs = [0x0, 0x1000, 0x10, 0x1000, 0x20].map(|a| run(0, a, RunFlags::default())).to_vec();
    let fault = |at| Control::Fault { vcpu: V, gva: Gva::new(at), code: FaultCode::default() };
    let controls = [0, 1, 2, 3, 4, 5].map(|i| (i, fault(u64::from(i)))).to_vec();
    let mut out = GuestBatch::default();
    guest.process(&Batch { runs, controls }, &mut out).unwrap();
    let places: Vec<u32> = out.batch.controls.iter().map(|c| c.0).collect();
    assert_eq!((places, out.batch.runs.len()), (vec![0, 1, 1, 2, 2, 3], 3));
    assert_eq!((guest.stats().faults, guest.stats().kernel_faults), (6, 6));
}

#[test]
fn an_event_that_no_recorded_guest_says_is_refused_with_its_place() {
    let refused = |controls: Vec<Control>| {
        let mut guest = four_tables(|c| c);
        let controls = controls.into_iter().map(|c| (0, c)).collect();
        let batch = Batch { runs: vec![], controls };
        guest.process(&batch, &mut GuestBatch::default()).unwrap_err().to_string()
    };
    let exec = Control::Exec { process: ProcessId(1) };
    let message = refused(vec![write(0x1000, 0), exec]);
    assert!(message.starts_with("control 1 of the batch is an exec"), "{message}");
    let message = refused(vec![new(1 << 30, None)]);
    assert!(message.contains("gPA 0x40000000"), "{message}");
    let far = Control::Prefault { start: Gpa::new(0x1000), bytes: u64::MAX };
    assert!(refused(vec![far]).contains("bytes at gPA 0x1000"));
    assert!(refused(vec![cr3(3, 0x1000)]).contains("vCPU 3, but the recorded guest has 1"));
    let mut guest = four_tables(|c| c);
    let batch = Batch { runs: vec![run(1, 0, RunFlags::default())], controls: vec![] };
    assert!(guest.process(&batch, &mut GuestBatch::default()).is_err());
    assert!(
        ObservedGuest::new(&GuestInfo { paging: "6-level".into(), ..info(&LONG4, 1, 1) }).is_err()
    );
    assert!(ObservedGuest::new(&info(&LONG4, 0, 1 << 30)).is_err());
}

#[test]
fn an_address_space_that_comes_back_is_looked_up_anew_where_it_changed() {
    let mut guest = four_tables(|c| c);
    let places = |b: GuestBatch| b.gpas.iter().map(|g| g.value()).collect::<Vec<_>>();
    let reads = || vec![run(0, 0x0, RunFlags::default()), run(0, 0x1000, RunFlags::default())];
    let first = vec![write(0x4000, 0x50_0000 | TABLE), write(0x4008, 0x60_0000 | TABLE)];
    assert_eq!(places(process(&mut guest, first, reads())), [0x50_0000, 0x60_0000]);
    // While another root is loaded, an entry of the first changes.
    let away = vec![new(0x8000, None), cr3(0, 0x8000), write(0x4008, 0x70_0000 | TABLE)];
    assert_eq!(places(process(&mut guest, away, reads())), []);
    assert_eq!(places(process(&mut guest, vec![cr3(0, 0x1000)], reads())), [0x50_0000, 0x70_0000]);
    // More roots than a vCPU remembers, and more generations than a tag has room for.
    for i in 0..5000 {
        process(&mut guest, vec![cr3(0, 0x10_0000 + (i << 12))], vec![]);
    }
    assert_eq!(places(process(&mut guest, vec![cr3(0, 0x1000)], reads())), [0x50_0000, 0x70_0000]);
}

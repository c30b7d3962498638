use super::*;

const V: VcpuId = VcpuId(0);

fn batch(f: impl FnOnce(&mut BatchBuilder)) -> Batch {
    let mut b = BatchBuilder::new();
    f(&mut b);
    let mut out = Batch::default();
    b.take_into(&mut out);
    out
}
fn load(b: &mut BatchBuilder, gva: u64) {
    b.access(V, Gva::new(0), Gva::new(gva), 8, AccessKind::Load, 1);
}

#[test]
fn consecutive_accesses_fold_and_keep_lines() {
    let out = batch(|b| {
        load(b, 0x1000);
        load(b, 0x1038);
        load(b, 0x1fc0);
        load(b, 0x2000);
    });
    assert_eq!(out.runs.len(), 2);
    assert_eq!(out.runs[0].count, 3);
    assert_eq!(out.runs[0].lines, 1 | 1 << 63);
    assert_eq!(out.instructions(), 4);
}

#[test]
fn a_store_after_loads_begins_a_run_but_loads_after_a_store_do_not() {
    let out = batch(|b| {
        load(b, 0x1000);
        b.access(V, Gva::new(0), Gva::new(0x1000), 8, AccessKind::Store, 1);
        load(b, 0x1008);
    });
    assert_eq!(out.runs.len(), 2);
    assert!(out.runs[1].flags.is_store());
    assert_eq!(out.runs[1].count, 2);
}

#[test]
fn fetch_and_data_runs_stand_in_order_of_first_access() {
    let out = batch(|b| {
        for i in 0..4 {
            b.access(V, Gva::new(i), Gva::new(0x40_0000 + i), 4, AccessKind::Fetch, 1);
            load(b, 0x1000 + 8 * i);
        }
    });
    assert_eq!(out.runs.len(), 2);
    assert!(out.runs[0].flags.is_fetch());
    assert_eq!((out.runs[0].count, out.runs[1].count), (4, 4));
}

#[test]
fn an_access_across_pages_is_one_to_each() {
    let out = batch(|b| {
        b.access(V, Gva::new(0), Gva::new(0x1ffc), 8, AccessKind::Load, 1);
    });
    assert_eq!(out.runs.len(), 2);
    assert_eq!(out.runs[0].lines, 1 << 63);
    assert_eq!(out.runs[1].gva, Gva::new(0x2000));
    assert_eq!(out.runs[1].lines, 1);
    assert_eq!(out.instructions(), 1);
}

#[test]
fn many_instructions_are_all_counted() {
    let out = batch(|b| {
        b.access(V, Gva::new(0), Gva::new(0x1000), 8, AccessKind::Load, 200_000);
    });
    assert_eq!(out.instructions(), 200_000);
}

/// The definition of runs, word by word: an access joins the latest run of its vCPU and kind
/// since the last control if that is of the same page and mode, and has room and the permission.
fn joined<'a>(runs: &'a mut [Run], since: usize, new: &Run) -> Option<&'a mut Run> {
    let of_kind = |r: &&mut Run| r.vcpu == new.vcpu && r.flags.is_fetch() == new.flags.is_fetch();
    let latest = runs[since..].iter_mut().rev().find(of_kind)?;
    let fits = latest.gva.value() >> 12 == new.gva.value() >> 12
        && latest.flags.is_kernel() == new.flags.is_kernel()
        && (latest.flags.is_store() || !new.flags.is_store())
        && latest.count < u16::MAX
        && u32::from(latest.instructions) + u32::from(new.instructions) <= 0xffff;
    fits.then_some(latest)
}

#[test]
fn random_accesses_become_the_runs_of_the_definition() {
    let mut random = crate::SplitMix64::new(1);
    let mut b = BatchBuilder::new();
    let mut out = Batch::default();
    for _ in 0..50 {
        let (mut runs, mut since): (Vec<Run>, _) = (Vec::new(), 0);
        for _ in 0..2000 {
            if random.below(100) == 0 {
                b.control(Control::Exec { process: crate::ProcessId(1) });
                since = runs.len();
            }
            let vcpu = VcpuId([0, 0, 0, 1, 255][random.below(5) as usize]);
            let kind = [RunFlags::default(), RunFlags::STORE, RunFlags::FETCH];
            let mut flags = kind[random.below(3) as usize];
            if random.below(8) == 0 {
                flags = flags.union(RunFlags::KERNEL);
            }
            let at = random.below(3) << 12 | random.below(4096);
            let bytes = [0, 1, 8, 64, 5000][random.below(5) as usize];
            let instructions = [0, 1, 20_000][random.below(3) as usize];
            b.access_with(vcpu, Gva::new(7), Gva::new(at), bytes, flags, instructions);
            // One access to each page of it, with the lines that its bytes are in.
            let last = at + u64::from(bytes.max(1)) - 1;
            for page in at >> 12..=last >> 12 {
                let first = at.max(page << 12);
                let lines = first..=last.min(page << 12 | 0xfff);
                let new = Run {
                    gva: Gva::new(first),
                    pc: Gva::new(7),
                    lines: lines.fold(0, |set, byte| set | 1 << (byte >> 6 & 63)),
                    count: 1,
                    instructions: if first == at { instructions as u16 } else { 0 },
                    vcpu,
                    flags,
                };
                match joined(&mut runs, since, &new) {
                    Some(run) => {
                        run.lines |= new.lines;
                        run.count += 1;
                        run.instructions += new.instructions;
                    }
                    None => runs.push(new),
                }
            }
        }
        b.take_into(&mut out);
        assert_eq!(out.runs, runs);
    }
}

#[test]
fn a_cut_falls_behind_the_access_that_was_asked_for() {
    let mut random = crate::SplitMix64::new(7);
    for wanted in 1..300 {
        let mut b = BatchBuilder::new();
        b.set_room(Room::accesses(wanted));
        let mut accesses = Vec::new();
        for i in 0..400 {
            // A loop in one page of code over few pages of data, on two vCPUs.
            let (fetch, vcpu) = (i % 3 == 0, VcpuId(random.below(2) as u8));
            let at = if fetch { 0x40_0000 + i } else { random.below(2) << 12 };
            let kind = if fetch { AccessKind::Fetch } else { AccessKind::Load };
            b.access(vcpu, Gva::new(1), Gva::new(at), 1, kind, u32::from(fetch));
            accesses.push((vcpu, at >> 12));
            assert_eq!(b.is_full(), i + 1 > wanted, "{wanted} {i}");
        }
        let mut out = Batch::default();
        b.take_into(&mut out);
        assert!(!b.is_full(), "the next batch has room");
        // Runs up to the border hold the first accesses, as a multiset of vCPU and page.
        let mut left = wanted;
        let mut found = Vec::new();
        for run in &out.runs {
            if left == 0 {
                break;
            }
            left -= u64::from(run.count);
            let page = (run.vcpu, run.gva.value() >> 12);
            found.extend(std::iter::repeat_n(page, usize::from(run.count)));
        }
        let mut first = accesses[..wanted as usize].to_vec();
        first.sort_unstable();
        found.sort_unstable();
        assert_eq!((left, found), (0, first), "{wanted}");
    }
}

#[test]
fn accesses_that_are_asked_for_one_by_one_are_runs_in_their_order() {
    let mut b = BatchBuilder::new();
    b.set_room(Room::SINGLE);
    for i in 0..20 {
        b.access(V, Gva::new(0), Gva::new(0x1000 + i % 2 * 0x1000 + i), 1, AccessKind::Load, 1);
    }
    assert!(!b.is_full());
    let mut out = Batch::default();
    b.take_into(&mut out);
    let found: Vec<u64> = out.runs.iter().map(|r| r.gva.value() & 0xfff).collect();
    assert_eq!(found, (0..20).collect::<Vec<_>>());
    assert!(out.runs.iter().all(|r| r.count == 1));
}

#[test]
fn a_batch_is_full_when_the_instructions_that_were_asked_for_have_retired() {
    for wanted in [1, 2, 7, 100] {
        let mut b = BatchBuilder::new();
        b.set_room(Room { instructions: wanted, ..Room::ALL });
        let mut done = 0;
        while !b.is_full() {
            load(&mut b, 0x1000);
            done += 1;
        }
        assert_eq!(done, wanted);
    }
}

#[test]
fn a_run_holds_65_535_accesses() {
    let out = batch(|b| {
        for _ in 0..70_000 {
            b.access(V, Gva::new(0), Gva::new(0x1000), 8, AccessKind::Load, 0);
        }
    });
    assert_eq!(out.runs.iter().map(|r| r.count).collect::<Vec<_>>(), [65_535, 4_465]);
}

#[test]
fn instructions_that_do_not_fit_begin_a_run() {
    let out = batch(|b| {
        b.access(V, Gva::new(0), Gva::new(0x1000), 8, AccessKind::Load, 0);
        b.access(V, Gva::new(0), Gva::new(0x1ffc), 8, AccessKind::Load, 65_536);
    });
    // The run before has room for the one that is too many, the page after has none of it.
    let found: Vec<_> = out.runs.iter().map(|r| (r.gva.value(), r.count, r.instructions)).collect();
    assert_eq!(found, [(0x1000, 1, 1), (0x1ffc, 1, 65_535), (0x2000, 1, 0)]);
}

#[test]
fn segments_cover_runs_and_controls_once_in_order() {
    let control = || Control::Exec { process: crate::ProcessId(1) };
    let out = batch(|b| {
        b.control(control());
        load(b, 0x1000);
        load(b, 0x2000);
        b.control(control());
        b.control(control());
        load(b, 0x3000);
        b.control(control());
    });
    let got: Vec<_> = out.segments().map(|(c, r)| (c.len(), r)).collect();
    assert_eq!(got, vec![(1, 0..2), (2, 2..3), (1, 3..3)]);
    let plain = batch(|b| load(b, 0x1000));
    assert_eq!(plain.segments().map(|(c, r)| (c.len(), r)).collect::<Vec<_>>(), [(0, 0..1)]);
}

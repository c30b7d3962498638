//! Random sequences of everything a source may say, against a machine that sees the output only
//! and against a model of what each process must find in its memory.

mod common;

use common::{Machine, config, frames_add_up, run};
use nestwalk_mm::{
    DaemonConfig, Dropped, GuestError, KhugepagedConfig, MmError, ModelledGuest, ObservedGuest,
    PLACEMENTS, PagePolicy, PlacementKind, RangerConfig,
};
use nestwalk_tables::{MODES, Mode};
use nestwalk_types::{
    Batch, Control, Filter, GuestBatch, GuestInfo, Gva, PageSize, ProcessId, Protection, RunFlags,
    VcpuId,
};
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Clone, Debug)]
enum Op {
    /// `(vcpu, place, kind)`.
    Access(Vec<(u8, Place, u8)>),
    Map(u32, Place, u8, u8),
    Unmap(u32, Place, u8),
    Protect(u32, Place, u8, u8),
    Populate(u32, Place, u8),
    Fork(u32, u32),
    Exec(u32),
    Exit(u32),
    Switch(u8, u32),
}

/// A page: which region, and where in it.
type Place = (u8, u8, u16);

fn place() -> impl Strategy<Value = Place> {
    (0u8..4, 0u8..4, 0u16..1100)
}

fn op(vcpus: u8) -> impl Strategy<Value = Op> {
    let process = 0u32..4;
    prop_oneof![
        10 => prop::collection::vec((0..vcpus, place(), 0u8..8), 1..12).prop_map(Op::Access),
        3 => (process.clone(), place(), 0u8..8, 0u8..4).prop_map(|o| Op::Map(o.0, o.1, o.2, o.3)),
        3 => (process.clone(), place(), 0u8..8).prop_map(|o| Op::Unmap(o.0, o.1, o.2)),
        3 => (process.clone(), place(), 0u8..8, 0u8..4)
            .prop_map(|o| Op::Protect(o.0, o.1, o.2, o.3)),
        2 => (process.clone(), place(), 0u8..8).prop_map(|o| Op::Populate(o.0, o.1, o.2)),
        3 => (process.clone(), 0u32..4).prop_map(|o| Op::Fork(o.0, o.1)),
        1 => process.clone().prop_map(Op::Exec),
        1 => process.clone().prop_map(Op::Exit),
        5 => (0..vcpus, 0u32..9).prop_map(|o| Op::Switch(o.0, o.1)),
    ]
}

fn page(mode: &Mode, (region, near, offset): Place) -> u64 {
    let wide = mode.address_bits() > 32;
    let top = if wide { (1u64 << (mode.address_bits() - 1)) >> 12 } else { 1 << 20 };
    let first = match region {
        0 | 1 => 0x40000,
        2 => top - 2048,
        _ if wide => (u64::MAX << (mode.address_bits() - 1)) >> 12,
        _ => 0,
    };
    // Near borders of large pages, mostly.
    first
        + match near {
            0 => u64::from(offset) % 8,
            1 => 508 + u64::from(offset) % 8,
            2 => 1020 + u64::from(offset) % 8,
            _ => u64::from(offset),
        }
}

fn pages(mode: &Mode, at: Place, length: u8) -> (u64, u64) {
    let first = page(mode, at);
    let n = [1, 2, 7, 33, 34, 100, 512, 1024][usize::from(length)];
    // The upper end of the lower half, and of a 32-bit space, is a border.
    let top = if mode.address_bits() > 32 { 1 << (mode.address_bits() - 13) } else { 1 << 20 };
    let n = if first < top { n.min(top - first) } else { n };
    match length {
        6 => (first & !511, n.min(512)),
        7 => (first & !1023, n),
        _ => (first, n),
    }
}

const PROTECTIONS: [Protection; 4] =
    [Protection::READ, Protection::READ_WRITE, Protection::READ_EXECUTE, Protection::ALL];

/// What a process must find: page to (protection, tag).
type Expected = HashMap<u64, (Protection, u64)>;

struct Test {
    mode: &'static Mode,
    block: u64,
    guest: ModelledGuest,
    machine: Machine,
    processes: HashMap<u32, Expected>,
    running: HashMap<u8, u32>,
    tag: u64,
    out: GuestBatch,
    observed: ObservedGuest,
    again: GuestBatch,
}

impl Test {
    fn control(&mut self, control: Control) {
        let batch = Batch { runs: vec![], controls: vec![(0, control)] };
        self.guest.process(&batch, &mut self.out).unwrap();
        self.machine.follow(&self.out, |_, _, _| unreachable!());
        self.observe();
    }

    /// An observer of the output finds the same addresses by itself.
    fn observe(&mut self) {
        self.observed.process(&self.out.batch, &mut self.again).unwrap();
        assert_eq!(self.again, self.out);
    }

    fn op(&mut self, op: &Op) {
        let at = |(first, n): (u64, u64)| (Gva::new(first << 12), n << 12);
        match *op {
            Op::Access(ref list) => self.access(list),
            Op::Map(p, place, length, protection) => {
                let range = pages(self.mode, place, length);
                let protection = PROTECTIONS[usize::from(protection)];
                let expected = self.processes.entry(p).or_default();
                (range.0..range.0 + range.1).for_each(|i| {
                    expected.insert(i, (protection, 0));
                });
                let (start, bytes) = at(range);
                self.control(Control::Map { process: ProcessId(p), start, bytes, protection });
            }
            Op::Unmap(p, place, length) => {
                let range = pages(self.mode, place, length);
                let expected = self.processes.entry(p).or_default();
                (range.0..range.0 + range.1).for_each(|i| {
                    expected.remove(&i);
                });
                let (start, bytes) = at(range);
                self.control(Control::Unmap { process: ProcessId(p), start, bytes });
            }
            Op::Protect(p, place, length, protection) => {
                let range = pages(self.mode, place, length);
                let protection = PROTECTIONS[usize::from(protection)];
                let expected = self.processes.entry(p).or_default();
                for i in range.0..range.0 + range.1 {
                    expected.entry(i).and_modify(|e| e.0 = protection);
                }
                let (start, bytes) = at(range);
                self.control(Control::Protect { process: ProcessId(p), start, bytes, protection });
            }
            Op::Populate(p, place, length) => self.populate(p, pages(self.mode, place, length)),
            Op::Fork(parent, child) if parent != child => {
                let copy = self.processes.entry(parent).or_default().clone();
                self.processes.insert(child, copy);
                let (parent, child) = (ProcessId(parent), ProcessId(child));
                self.control(Control::Fork { parent, child });
            }
            Op::Fork(..) => {}
            Op::Exec(p) => {
                self.processes.insert(p, Expected::new());
                self.control(Control::Exec { process: ProcessId(p) });
            }
            Op::Exit(p) => {
                self.processes.remove(&p);
                self.control(Control::Exit { process: ProcessId(p) });
            }
            Op::Switch(vcpu, p) => {
                self.running.insert(vcpu, p);
                self.processes.entry(p).or_default();
                self.control(Control::Switch { vcpu: VcpuId(vcpu), process: ProcessId(p) });
            }
        }
    }

    fn populate(&mut self, p: u32, range: (u64, u64)) {
        let expected = self.processes.entry(p).or_default();
        let pages = range.0..range.0 + range.1;
        for i in pages.clone() {
            expected.entry(i).or_insert((Protection::ALL, 0));
        }
        let refused = pages.into_iter().find(|i| !expected[i].0.write);
        let (start, bytes) = (Gva::new(range.0 << 12), range.1 << 12);
        let control = Control::Populate { process: ProcessId(p), start, bytes };
        let batch = Batch { runs: vec![], controls: vec![(0, control)] };
        let result = self.guest.process(&batch, &mut self.out);
        self.machine.follow(&self.out, |_, _, _| unreachable!());
        self.observe();
        match refused {
            None => result.unwrap(),
            Some(page) => refuses(result, page << 12),
        }
    }

    /// Maps what the guest maps for an access outside of every mapping.
    fn imply(expected: &mut Expected, page: u64, block: u64) {
        let mut fill = |range: &mut dyn Iterator<Item = u64>| {
            for i in range {
                if expected.contains_key(&i) {
                    break;
                }
                expected.insert(i, (Protection::ALL, 0));
            }
        };
        let first = page & !(block - 1);
        fill(&mut (page..first + block));
        fill(&mut (first..page).rev());
    }

    fn access(&mut self, list: &[(u8, Place, u8)]) {
        let flags = |kind: u8| match kind {
            0..=2 => RunFlags::STORE,
            3 => RunFlags::FETCH,
            4 => RunFlags::STORE.union(RunFlags::KERNEL),
            _ => RunFlags::default(),
        };
        let runs = list.iter().map(|&(vcpu, place, kind)| {
            run(vcpu, page(self.mode, place) << 12 | u64::from(kind) << 3, flags(kind))
        });
        let batch = Batch { runs: runs.collect(), controls: vec![] };
        let result = self.guest.process(&batch, &mut self.out);
        // What each run must find, up to the first that its mapping forbids.
        let (mut found, mut refused) = (Vec::new(), None);
        for r in &batch.runs {
            let process = *self.running.entry(r.vcpu.0).or_insert(0);
            let expected = self.processes.entry(process).or_default();
            let page = r.gva.value() >> 12;
            if !expected.contains_key(&page) {
                Self::imply(expected, page, self.block);
            }
            let (protection, tag) = expected.get_mut(&page).unwrap();
            let no_execute =
                r.flags.is_fetch() && !protection.execute && self.mode.entry_bytes == 8;
            if (r.flags.is_store() && !protection.write) || no_execute {
                refused = Some(r.gva.value());
                break;
            }
            let before = *tag;
            if r.flags.is_store() {
                self.tag += 1;
                *tag = self.tag;
            }
            found.push((before, *tag));
        }
        assert_eq!(self.out.batch.runs, batch.runs[..found.len()]);
        self.observe();
        self.machine.follow(&self.out, |i, r, tag| {
            assert_eq!(tag, found[i].0, "{r:?} sees another's memory");
            found[i].1
        });
        match refused {
            None => result.unwrap(),
            Some(gva) => refuses(result, gva),
        }
    }
}

fn refuses(result: Result<(), GuestError>, gva: u64) {
    match result {
        Err(GuestError::Process { error: MmError::Protection { address, .. }, .. }) => {
            assert_eq!(address, gva);
        }
        other => panic!("{gva:#x} is forbidden, but: {other:?}"),
    }
}

/// Primary regions have lives of their own, in `primary.rs`.
fn placements() -> Vec<PlacementKind> {
    PLACEMENTS.iter().map(|p| p.1).filter(|p| !p.has_region()).collect()
}

/// Daemons that run every few accesses.
fn daemons() -> impl Strategy<Value = DaemonConfig> {
    let interval = prop::sample::select(vec![5u64, 40, 150]);
    let limits =
        (prop::sample::select(vec![511u64, 505, 0]), prop::sample::select(vec![0u64, 256]));
    let pages = prop::sample::select(vec![0u64, 1, 600]);
    (interval, limits, pages, any::<bool>()).prop_map(|(interval, (none, shared), pages, split)| {
        let khugepaged = KhugepagedConfig {
            interval,
            alloc_interval: interval,
            pages_to_scan: 1 + pages * 4,
            max_ptes_none: none,
            max_ptes_shared: shared,
        };
        DaemonConfig { khugepaged, ranger: RangerConfig { interval, pages, split } }
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 900, failure_persistence: None, ..ProptestConfig::default()
    })]
    #[test]
    fn the_output_alone_is_the_truth(
        mode in 0usize..4,
        policy in 0usize..4,
        placement in prop::sample::select(placements()),
        fragmentation in prop::sample::select(vec![0.0, 0.8, 1.0]),
        pcids: bool,
        zero_page: bool,
        daemons in daemons(),
        vcpus in 1u8..4,
        ops in prop::collection::vec(op(3), 1..60),
    ) {
        let mode = MODES[mode];
        let large = PagePolicy::Explicit(mode.span(2));
        let policy = [PagePolicy::Base, PagePolicy::Thp, large, PagePolicy::Khugepaged][policy];
        let config = nestwalk_mm::GuestConfig {
            policy, placement, fragmentation: fragmentation.into(), pcids, zero_page, daemons, ..config(mode, 512)
        };
        let guest = ModelledGuest::new(config).unwrap();
        let room = |guest: &ModelledGuest| {
            let physical = &guest.memory().physical;
            physical.free_frames() + physical.set_aside_frames()
        };
        let free = room(&guest);
        let info = GuestInfo {
            memory_bytes: guest.memory().physical.bytes(),
            paging: mode.name.into(),
            vcpus,
            filter: Filter::RUNS,
        };
        let mut test = Test {
            mode,
            block: policy.largest(mode).max(PageSize::SIZE_2M).base_pages(),
            guest,
            machine: Machine::new(mode),
            processes: HashMap::new(),
            running: HashMap::new(),
            tag: 0,
            out: GuestBatch::default(),
            observed: ObservedGuest::new(&info).unwrap(),
            again: GuestBatch::default(),
        };
        for (i, op) in ops.iter().enumerate() {
            let mut op = op.clone();
            match &mut op {
                Op::Access(list) => list.iter_mut().for_each(|a| a.0 %= vcpus),
                Op::Switch(vcpu, _) => *vcpu %= vcpus,
                _ => {}
            }
            test.op(&op);
            if i % 10 == 9 {
                frames_add_up(&test.guest);
            }
        }
        frames_add_up(&test.guest);
        prop_assert_eq!(test.observed.stats().dropped_total(), Dropped::default());
        // Tables and mirror agree to the bit, accessed and dirty included.
        for table in test.guest.memory().tables.pages() {
            let (own, mirror) = (test.guest.memory().tables.page(table), test.machine.mirror.page(table));
            prop_assert_eq!(own, mirror);
        }
        let ids: Vec<_> = test.guest.spaces().map(|s| s.0).collect();
        ids.iter().for_each(|id| test.op(&Op::Exit(id.0)));
        prop_assert_eq!(room(&test.guest), free);
        prop_assert_eq!(test.guest.stats().table_bytes, 0);
        frames_add_up(&test.guest);
    }
}

//! The referee watches machines with segments in random lives: bad pages, filters that report too
//! much, segments that are made, grow, shrink and go between any two steps, and pages that the host
//! takes back; of one vCPU and of four. And it catches those whose hardware goes wrong.

use crate::common;

use common::lives::{BASE, Life, steps};
use common::machines::{Probe, Setup};
use common::{Script, V0};
use nestwalk_hw::Profile;
use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy, PlacementKind, PrimaryConfig};
use nestwalk_sim::assist::segments::SegmentedVm;
use nestwalk_sim::{DynMachine, Machine};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{
    Batch, BatchBuilder, Control, Gpa, GuestBatch, GuestSegment, Gva, PageSize, ProcessId,
    Protection, SplitMix64,
};

const MIB: u64 = 1 << 20;
const GUEST: u64 = 64 * MIB;

struct Case {
    seed: u64,
    vcpus: u8,
    mode: &'static Mode,
    guest_pages: &'static str,
    host_pages: &'static str,
    /// Steps from one change of a segment or host page to the next on average.
    every: u64,
}

impl Case {
    fn life(&self) -> Vec<GuestBatch> {
        let life = Life {
            seed: self.seed,
            events: 70,
            vcpus: self.vcpus,
            accesses_percent: 65,
            mode: self.mode,
            pages: self.guest_pages,
            pcids: self.seed.is_multiple_of(2),
        };
        let config = GuestConfig {
            policy: PagePolicy::by_name(self.guest_pages).unwrap(),
            placement: PlacementKind::Primary,
            primary: PrimaryConfig { least_bytes: 4096, escapes: 6, balloon: false },
            fragmentation: if self.seed.is_multiple_of(3) { 0.2 } else { 0.0 }.into(),
            seed: self.seed,
            pcids: life.pcids && self.mode.levels >= 4,
            ..GuestConfig::new(self.mode, GUEST)
        };
        let mut guest = ModelledGuest::new(config).unwrap();
        // Each process begins with a mapping that is worth a region.
        let (mut builder, mut batch) = (BatchBuilder::new(), Batch::default());
        for process in (0..4).map(ProcessId) {
            let (start, protection) = (Gva::new(BASE), Protection::ALL);
            builder.control(Control::Map { process, start, bytes: 6 * MIB, protection });
        }
        builder.take_into(&mut batch);
        let mut first = GuestBatch::default();
        guest.process(&batch, &mut first).unwrap();
        let mut all = vec![first];
        all.extend(life.live_on(guest));
        all
    }
    fn setup(&self) -> Setup {
        let name = if self.seed.is_multiple_of(3) { "sandy-bridge-e5-2430" } else { "zen2" };
        Setup {
            guest_mode: self.mode,
            host_pages: self.host_pages,
            vcpus: usize::from(self.vcpus),
            guest_bytes: GUEST,
            host_bytes: 256 * MIB,
            ..Setup::new(Profile::load(name).unwrap())
        }
    }
}

/// Something happens to the VMM's segment, or to a page of it.
fn change(m: &mut Machine<SegmentedVm>, r: &mut SplitMix64, used: Option<Gpa>) {
    let Machine { scheme, platform, .. } = m;
    let bytes = r.below(GUEST >> 12) << 12;
    match r.below(8) {
        0 => {
            let start = r.below((GUEST - bytes) >> 12) << 12;
            scheme.create_vmm_segment(platform, Gpa::new(start), bytes.max(4096)).unwrap();
        }
        1 => {
            scheme.create_vmm_segment(platform, Gpa::new(0), GUEST).unwrap();
        }
        2 if bytes >> 12 & 31 == 0 => {
            scheme.begin_compaction(platform, Gpa::new(0), GUEST).unwrap();
        }
        2 | 3 if platform.host.as_ref().unwrap().is_compacting() => {
            scheme.compact(platform, 1 + r.below(GUEST >> 12)).unwrap();
        }
        2 | 3 => scheme.grow_vmm_segment(platform, bytes).unwrap(),
        4 => scheme.shrink_vmm_segment(platform, bytes).unwrap(),
        5 if r.below(4) == 0 => scheme.shrink_vmm_segment(platform, 0).unwrap(),
        _ => {
            if let Some(gpa) = used {
                m.discard(gpa).unwrap();
            }
        }
    }
}

/// Accesses of the lives by what served them: no walk, a flattened walk, any walk, and escapes.
#[derive(Default)]
struct Seen {
    covered: u64,
    checks: u64,
    escapes: u64,
    falsely: u64,
    moved: u64,
}

fn live(case: &Case, seen: &mut Seen) {
    let steps = steps(&case.life());
    let setup = case.setup();
    let machines = [
        ("vmm-direct", "bad=9/filter=32x2/escapes=5"),
        ("vmm-direct", "start=paged/entries=4k"),
        ("guest-direct", "filter=16x2"),
        ("dual-direct", "bad=9/filter=32x2/escapes=5"),
        ("dual-direct", "check=l1/bad=3"),
    ];
    for (scheme, variant) in machines {
        let mut m = setup.segmented(scheme, variant);
        let mut r = SplitMix64::new(case.seed ^ 0x5e9);
        for step in &steps {
            if r.below(case.every) == 0 {
                let near = &steps[r.below(steps.len() as u64) as usize].gpas;
                change(&mut m, &mut r, near.first().copied());
            }
            m.run(step).unwrap();
        }
        approve(&m, case, variant, seen);
    }
    for variant in ["", "check=l1", "filter=16x2"] {
        let mut m = setup.ds(variant);
        steps.iter().for_each(|step| m.run(step).unwrap());
        approve(&m, case, variant, seen);
    }
}

fn approve(m: &dyn DynMachine, case: &Case, variant: &str, seen: &mut Seen) {
    let verdict = m.verdict().unwrap();
    assert_eq!(verdict.told, Vec::<String>::new(), "{} {variant}, seed {}", m.name(), case.seed);
    let c = m.counters();
    seen.covered += c.segment_hits + c.segment_accesses;
    seen.checks += c.vmm_segment_checks;
    seen.escapes += c.segment_escapes;
    seen.falsely += c.false_escapes;
    seen.moved += c.pages_moved;
}

#[test]
fn the_referee_approves_of_segments_that_change_at_any_step() {
    let mut seen = Seen::default();
    for seed in 0..10u64 {
        let case = Case {
            seed,
            vcpus: if seed % 2 == 0 { 1 } else { 4 },
            mode: [&LONG4, &LONG4, &LONG5][seed as usize % 3],
            guest_pages: ["4k", "thp", "4k", "2m"][seed as usize % 4],
            host_pages: ["4k", "thp"][seed as usize / 2 % 2],
            every: 40,
        };
        live(&case, &mut seen);
    }
    assert!(seen.covered > 2000 && seen.checks > 2000, "{} {}", seen.covered, seen.checks);
    assert!(seen.escapes > seen.falsely && seen.falsely > 200, "{} {}", seen.escapes, seen.falsely);
    assert!(seen.moved > 500, "{}", seen.moved);
}

#[test]
fn the_referee_approves_under_32_bit_paging() {
    let mut seen = Seen::default();
    for seed in 0..6u64 {
        let (mode, guest_pages) = if seed % 2 == 0 { (&PAE, "2m") } else { (&LEGACY32, "4m") };
        let guest_pages = if seed < 3 { "4k" } else { guest_pages };
        let vcpus = if seed < 3 { 4 } else { 1 };
        live(&Case { seed, vcpus, mode, guest_pages, host_pages: "4k", every: 40 }, &mut seen);
    }
    assert!(seen.covered > 200);
}

// ---- hardware that is wrong
// -----------------------------------------------------------------------

fn small() -> Setup {
    let profile = Profile::load("zen2").unwrap();
    Setup { guest_bytes: GUEST, host_bytes: 256 * MIB, ..Setup::new(profile) }
}

const GVA: u64 = 0x4000_0000;
const GPA: u64 = 32 * MIB;

fn segment(s: &mut Script, escaped: &[u64]) {
    let escaped = escaped.iter().map(|p| (GVA >> 12) + p).collect();
    let (base, target) = (Gva::new(GVA), Gpa::new(GPA));
    let segment = GuestSegment { base, bytes: 16 * MIB, target, escaped };
    s.say(Control::LoadSegment { vcpu: V0, segment: Some(Box::new(segment)) });
}

/// A filter that forgets what was put in gives frames that are faulty, or another page's.
#[test]
fn a_vmm_filter_that_forgets_an_escaped_page_is_caught() {
    for scheme in ["vmm-direct", "dual-direct"] {
        for forgets in [false, true] {
            let mut m = small().segmented(scheme, "bad=8");
            let escaped = m.platform.host.as_ref().unwrap().segment().unwrap().escaped;
            let bad = escaped.into_iter().find(|gfn| *gfn > GPA >> 12).unwrap() << 12;
            if forgets {
                m.scheme.vmm_mut().unwrap().filter_mut().clear();
            }
            let mut s = Script::new(&LONG4);
            s.map_used(GVA, bad, PageSize::SIZE_4K);
            s.load(GVA);
            m.run(&s.take()).unwrap();
            let violations = m.verdict().unwrap().violations;
            assert_eq!(violations > 0, forgets, "{scheme}: {violations}");
        }
    }
}

#[test]
fn a_guest_filter_that_forgets_an_escaped_page_is_caught() {
    for forgets in [false, true] {
        let mut s = Script::new(&LONG4);
        segment(&mut s, &[5]);
        s.map_used(GVA + 0x5000, GPA + 17 * MIB, PageSize::SIZE_4K);
        let set_up = s.take();
        s.load(GVA + 0x5000);
        let access = s.take();
        let mut ds = small().ds("");
        let mut dual = small().segmented("dual-direct", "");
        ds.run(&set_up).unwrap();
        dual.run(&set_up).unwrap();
        if forgets {
            ds.scheme.segments_mut().unit_mut(0).filter_mut().clear();
            dual.scheme.guest_mut().unwrap().unit_mut(0).filter_mut().clear();
        }
        ds.run(&access).unwrap();
        dual.run(&access).unwrap();
        for verdict in [ds.verdict().unwrap(), dual.verdict().unwrap()] {
            assert_eq!(verdict.violations > 0, forgets);
        }
    }
}

/// Registers that a context switch leaves behind translate another process's memory.
#[test]
fn registers_of_another_process_are_caught() {
    for restored in [true, false] {
        let mut m = small().segmented("dual-direct", "");
        let mut s = Script::new(&LONG4);
        segment(&mut s, &[]);
        let second = s.add_root();
        s.load_cr3(second, 2, false);
        if restored {
            s.say(Control::LoadSegment { vcpu: V0, segment: None });
        }
        s.map_used(GVA, GPA + 0x7000, PageSize::SIZE_4K);
        s.load(GVA);
        m.run(&s.take()).unwrap();
        assert_eq!(m.verdict().unwrap().violations == 0, restored);
    }
}

/// A page that the host took back and that still is in the segment.
#[test]
fn a_segment_that_keeps_what_the_host_took_back_is_caught() {
    for kept in [false, true] {
        let mut m = small().segmented("vmm-direct", "");
        let mut s = Script::new(&LONG4);
        s.map_used(GVA, GPA, PageSize::SIZE_4K);
        s.load(GVA);
        m.run(&s.take()).unwrap();
        // Another page takes the frame before the page is used again.
        m.discard(Gpa::new(GPA)).unwrap();
        m.discard(Gpa::new(GPA + 0x9000)).unwrap();
        if kept {
            m.scheme.vmm_mut().unwrap().filter_mut().clear();
            m.forget();
        }
        s.map_used(GVA + 0x9000, GPA + 0x9000, PageSize::SIZE_4K);
        s.load(GVA + 0x9000);
        s.load(GVA);
        m.run(&s.take()).unwrap();
        assert_eq!(m.verdict().unwrap().violations > 0, kept);
    }
}

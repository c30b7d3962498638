//! Direct segments: references and checks of each mode in closed form, what goes into the TLBs,
//! what escapes, and what the software does with segments.

use crate::common;

use common::machines::{Probe, Setup, plain, with_roomy_tlbs, with_tiny_tlbs};
use common::{GIB, Script, V0, approve, bare_profile, machine_with, run};
use nestwalk_hw::{FilterGeometry, Profile};
use nestwalk_mm::PagePolicy;
use nestwalk_sim::assist::segments::SegmentedVm;
use nestwalk_sim::compare::spec::MachineSpec;
use nestwalk_sim::scheme::MachineConfig;
use nestwalk_sim::schemes::by_name;
use nestwalk_sim::{Counters, Dimension, DynMachine, ExitReason, Machine};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{Address, Control, Gpa, GuestSegment, Gva, PageSize, RunFlags};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;
const GVA: u64 = 0x4000_0000;
const GPA: u64 = 0x6000_0000;
const SPAN: u64 = 16 << 20;

/// A script whose process has a segment from `GVA` to `GPA`, without these pages of it.
fn with_segment(mode: &'static Mode, escaped: &[u64]) -> Script {
    let mut s = Script::new(mode);
    load(&mut s, escaped);
    s
}

fn load(s: &mut Script, escaped: &[u64]) {
    let escaped = escaped.iter().map(|p| (GVA >> 12) + p).collect();
    let segment = GuestSegment { base: Gva::new(GVA), bytes: SPAN, target: Gpa::new(GPA), escaped };
    s.say(Control::LoadSegment { vcpu: s.vcpu, segment: Some(Box::new(segment)) });
}

fn off(s: &mut Script) {
    s.say(Control::LoadSegment { vcpu: s.vcpu, segment: None });
}

/// References to guest and nested tables, checks of gVAs, checks of gPAs.
fn costs(c: &Counters) -> [u64; 4] {
    [
        c.references.of(Dimension::Guest),
        c.references.of(Dimension::Nested),
        c.guest_segment_checks,
        c.vmm_segment_checks,
    ]
}

fn setup() -> Setup {
    Setup::new(bare_profile())
}

/// One data access with nothing cached, after every fault was answered.
fn cold(m: &mut dyn Probe, mut s: Script, gva: u64) -> [u64; 4] {
    s.map_used(gva, GPA + (gva - GVA.min(gva)) % SPAN, S4K);
    s.load(gva);
    m.count(&s.take());
    m.forget();
    s.load(gva);
    let c = m.count(&s.take());
    approve(m);
    assert_eq!(c.faulted_walks, 0);
    costs(&c)
}

/// The table of the MICRO 2014 paper: references and checks of the walk that each mode is made for,
/// 0/4/4 and 1/5/1, and everything else up to 24.
#[test]
fn each_mode_makes_the_references_and_checks_of_the_paper() {
    let (inside, outside) = (GVA, 0x7000_0000);
    let plain = || Script::new(&LONG4);
    let segment = || with_segment(&LONG4, &[]);
    let u = setup();
    // Bare metal.
    assert_eq!(cold(&mut u.native(), segment(), inside), [4, 0, 0, 0]);
    assert_eq!(cold(&mut u.ds(""), segment(), inside), [0, 0, 1, 0]);
    assert_eq!(cold(&mut u.ds(""), segment(), outside), [4, 0, 1, 0]);
    assert_eq!(cold(&mut u.ds(""), plain(), inside), [4, 0, 1, 0]);
    // Virtualized, without a segment of any kind.
    assert_eq!(cold(&mut u.nested(), segment(), inside), [4, 20, 0, 0]);
    // VMM Direct.
    assert_eq!(cold(&mut u.segmented("vmm-direct", ""), plain(), inside), [4, 0, 0, 5]);
    assert_eq!(cold(&mut u.segmented("vmm-direct", ""), segment(), inside), [4, 0, 0, 5]);
    let paged = "start=paged";
    assert_eq!(cold(&mut u.segmented("vmm-direct", paged), plain(), inside), [4, 20, 0, 5]);
    // Guest Direct.
    assert_eq!(cold(&mut u.segmented("guest-direct", ""), segment(), inside), [0, 4, 1, 0]);
    assert_eq!(cold(&mut u.segmented("guest-direct", ""), segment(), outside), [4, 20, 1, 0]);
    // Dual Direct: what both, one or none of the segments cover.
    assert_eq!(cold(&mut u.segmented("dual-direct", ""), segment(), inside), [0, 0, 1, 0]);
    assert_eq!(cold(&mut u.segmented("dual-direct", paged), segment(), inside), [0, 4, 1, 0]);
    assert_eq!(cold(&mut u.segmented("dual-direct", ""), segment(), outside), [4, 0, 1, 5]);
    assert_eq!(cold(&mut u.segmented("dual-direct", paged), segment(), outside), [4, 20, 1, 5]);
}

/// With g guest references there are g + 1 checks, but that PAE's root is in registers, which
/// leaves as many checks as references and one for the page; with h nested levels Guest Direct
/// makes h references.
#[test]
fn modes_of_any_number_of_levels_follow_the_formula() {
    for (guest, host) in
        [(&LONG4, &LONG4), (&LONG5, &LONG4), (&LONG4, &LONG5), (&PAE, &LONG4), (&LEGACY32, &LONG4)]
    {
        let u = Setup { guest_mode: guest, host_mode: host, ..setup() };
        let (g, h) = (u64::from(guest.walk_references(1)), u64::from(host.levels));
        let script = || with_segment(guest, &[]);
        let what = format!("{} on {}", guest.name, host.name);
        let [refs, nested, _, checks] = cold(&mut u.segmented("vmm-direct", ""), script(), GVA);
        assert_eq!((refs, nested, checks), (g, 0, g + 1), "{what}");
        let guest_direct = cold(&mut u.segmented("guest-direct", ""), script(), GVA);
        assert_eq!(guest_direct, [0, h, 1, 0], "{what}");
        assert_eq!(
            cold(&mut u.segmented("dual-direct", ""), script(), GVA),
            [0, 0, 1, 0],
            "{what}"
        );
        assert_eq!(cold(&mut u.ds(""), script(), GVA), [0, 0, 1, 0], "{what}");
    }
}

/// Checks take their cycles, and a walk cache spares those of the tables that it skips.
#[test]
fn checks_cost_what_the_profile_says() {
    let mut profile = bare_profile();
    profile.segment.check_cycles.value = 7.0;
    let walk = |profile: &Profile, variant: &str| {
        let mut m = Setup::new(profile.clone()).segmented("vmm-direct", variant);
        let mut s = Script::new(&LONG4);
        s.map_used(GVA, GPA, S4K);
        s.load(GVA);
        m.count(&s.take());
        m.forget();
        s.load(GVA);
        m.count(&s.take())
    };
    let dear = walk(&profile, "");
    profile.segment.check_cycles.value = 0.0;
    let free = walk(&profile, "");
    assert_eq!(dear.walk_cycles, free.walk_cycles + 5 * 7);
    let mut s = Script::new(&LONG4);
    let mut m = Setup::new(with_tiny_tlbs(plain(Profile::load("zen2").unwrap())))
        .segmented("vmm-direct", "");
    for page in 0..3 {
        s.map_used(GVA + (page << 12), GPA + (page << 12), S4K);
        s.load(GVA + (page << 12));
    }
    m.count(&s.take());
    s.load(GVA);
    let c = m.count(&s.take());
    assert_eq!((c.references.of(Dimension::Guest), c.vmm_segment_checks), (1, 1));
}

/// A covered access goes to the first-level TLB as 4 KiB, and not to the second; with `check=l1` to
/// none.
#[test]
fn what_a_segment_serves_goes_to_the_first_level_alone() {
    let u = Setup::new(with_roomy_tlbs(bare_profile()));
    for check in ["l2", "l1"] {
        let variant = format!("check={check}");
        for m in [&mut u.ds(&variant) as &mut dyn Probe, &mut u.segmented("dual-direct", &variant)]
        {
            let mut s = with_segment(&LONG4, &[]);
            s.map_used(GVA, GPA, S2M);
            for _ in 0..2 {
                s.load(GVA);
                s.store(GVA + 0x1000);
            }
            let c = m.count(&s.take());
            let found = [c.l1_tlb_misses, c.segment_hits, c.segment_accesses, c.walks];
            let checks = c.guest_segment_checks;
            match check {
                "l2" => assert_eq!((found, checks), ([2, 2, 0, 0], 2)),
                _ => assert_eq!((found, checks), ([0, 0, 4, 0], 4)),
            }
            let core = &mut m.platform().cpu.hardware.cores[0];
            let asid = core.asid;
            assert!(core.l2.look_up(Gva::new(GVA), asid).is_none());
            let held = core.l1d.look_up(Gva::new(GVA), asid);
            assert_eq!(held.map(|t| t.size()), (check == "l2").then_some(S4K));
            approve(m);
        }
    }
}

/// VMM Direct keeps the guest's page size, unless its TLB entries are to have 4 KiB or a page
/// escapes.
#[test]
fn large_guest_pages_stay_large_under_a_vmm_segment_without_escapes() {
    for (variant, walks) in [("", 1), ("entries=4k", 3), ("bad=1", 3)] {
        let u = Setup::new(with_roomy_tlbs(bare_profile()));
        let mut m = u.segmented("vmm-direct", variant);
        let mut s = Script::new(&LONG4);
        s.map_used(GVA, GPA, S2M);
        for page in [0, 7, 511] {
            s.load(GVA + (page << 12));
        }
        assert_eq!(m.count(&s.take()).walks, walks, "{variant}");
        approve(&m);
    }
}

/// Instruction fetches are not served by a guest's segment, since it permits loads and stores
/// alone.
#[test]
fn fetches_are_paged_in_the_guest_dimension() {
    for m in [&mut setup().ds("") as &mut dyn Probe, &mut setup().segmented("dual-direct", "")] {
        let mut s = with_segment(&LONG4, &[]);
        s.map_used(GVA, GPA, S4K);
        s.access_as(GVA, RunFlags::FETCH);
        s.load(GVA);
        s.access_as(GVA, RunFlags::FETCH);
        let c = m.count(&s.take());
        assert_eq!((c.references.of(Dimension::Guest), c.segment_hits), (4, 1));
        approve(m);
    }
}

/// Pages that escape are where the tables say, false positives included, and both are counted.
#[test]
fn escaped_pages_reach_their_frames_through_the_tables() {
    // One bank of two bits: half of all pages are reported.
    let variant = "filter=2x1";
    for m in [
        &mut setup().ds(variant) as &mut dyn Probe,
        &mut setup().segmented("guest-direct", variant),
    ] {
        let mut s = with_segment(&LONG4, &[3]);
        for page in 0..64 {
            // Page 3 is somewhere else.
            let gpa = if page == 3 { GPA + SPAN } else { GPA + (page << 12) };
            s.map_used(GVA + (page << 12), gpa, S4K);
            s.load(GVA + (page << 12));
        }
        let c = m.count(&s.take());
        assert!((20..45).contains(&c.segment_escapes), "{}", c.segment_escapes);
        assert_eq!(c.segment_escapes, c.false_escapes + 1);
        approve(m);
    }
}

/// The VMM's bad pages: each guest page of a faulty frame has another one; every page that the
/// filter reports is in the nested tables before the guest touches it, so no access exits.
#[test]
fn bad_frames_are_never_used_and_what_the_filter_reports_is_mapped() {
    for (bad, filter) in [(1, "256x4"), (16, "256x4"), (64, "256x4"), (64, "16x2"), (0, "256x4")] {
        let u = Setup { guest_bytes: 64 << 20, host_bytes: 256 << 20, ..setup() };
        let variant = format!("bad={bad}/filter={filter}");
        let mut m = u.segmented("vmm-direct", &variant);
        let host = m.platform.host.as_ref().unwrap();
        let segment = host.segment().unwrap();
        assert_eq!((segment.gpa, segment.bytes), (Gpa::new(0), 64 << 20));
        assert_eq!(segment.escaped.len(), bad as usize);
        for &gfn in &segment.escaped {
            let bad_frame = segment.target.value() + (gfn << 12);
            let used = host.look_up(Gpa::new(gfn << 12)).unwrap().frame.value();
            assert_ne!(used, bad_frame);
        }
        let mut s = Script::new(&LONG4);
        let pages = (24 << 20 >> 12)..(64 << 20 >> 12);
        for page in pages.clone() {
            s.map_used(GVA + (page << 12), page << 12, S4K);
            s.load(GVA + (page << 12));
        }
        let c = m.count(&s.take());
        assert_eq!(c.exits_total(), 0, "{variant}");
        approve(&m);
        let escaped = segment.escaped.iter().filter(|p| pages.contains(p)).count() as u64;
        let state = m.report().segments.unwrap().vmm;
        assert_eq!(state.escaped, bad);
        // The tables themselves lie in the segment and are checked, too, so there are a few more.
        assert!(c.segment_escapes - c.false_escapes >= escaped);
        let (bits, hashes) = filter.split_once('x').unwrap();
        let (bits, hashes) = (bits.parse().unwrap(), hashes.parse().unwrap());
        let geometry = FilterGeometry { bits, hashes };
        let expected = bad as f64 + geometry.false_positive_rate(bad) * (16384.0 - bad as f64);
        let (low, high) = (expected * 0.5 - 5.0, expected * 1.6 + 5.0);
        assert!((low..high).contains(&(state.reported as f64)), "{variant}: {state:?} {expected}");
    }
}

/// Named frames are avoided wherever they are.
#[test]
fn frames_can_be_named_as_bad() {
    let u = Setup { guest_bytes: 64 << 20, host_bytes: 128 << 20, ..setup() };
    let m = u.segmented("vmm-direct", "bad-at=0x4000+0x4001+0x6fff");
    let host = m.platform.host.as_ref().unwrap();
    let segment = host.segment().unwrap();
    let first = segment.target.page_number();
    assert_eq!(segment.escaped.len(), 3, "the only run that is long enough has all three");
    assert!(segment.escaped.iter().any(|p| first + p == 0x4001));
    let build = MachineConfig { variant: "bad-at=0x900000".into(), ..u.build("vmm-direct", true) };
    let e = (by_name("vmm-direct").unwrap().build)(build).err().unwrap().to_string();
    assert!(e.contains("0x900000") && e.contains("does not exist"), "{e}");
    let build = MachineConfig { variant: "bad=16384".into(), ..u.build("vmm-direct", true) };
    let e = (by_name("vmm-direct").unwrap().build)(build).err().unwrap().to_string();
    assert!(e.contains("16384 bad pages") && e.contains("fewer"), "{e}");
}

/// A segment that the stream asks for and that cannot be stops the machine with what is wrong.
#[test]
fn wrong_segments_are_refused() {
    for (base, bytes, target, word) in [
        (GVA + 1, SPAN, GPA, "multiples of 4096"),
        (u64::MAX - 0xfff, 0x2000, GPA, "wraps around"),
        (GVA, SPAN, (1 << 52) - 0x1000, "physical memory"),
    ] {
        for scheme in ["ds", "guest-direct", "dual-direct"] {
            let mut m = machine_with(scheme, &LONG4, &LONG4, "4k", &bare_profile(), 1);
            let mut s = Script::new(&LONG4);
            let (base, target) = (Gva::new(base), Gpa::new(target));
            let segment = GuestSegment { base, bytes, target, escaped: vec![] };
            s.say(Control::LoadSegment { vcpu: V0, segment: Some(Box::new(segment)) });
            let e = m.run(&s.take()).unwrap_err().to_string();
            assert!(e.contains(word), "{scheme}: {e}");
        }
    }
}

/// Growth, shrinking and teardown of the VMM's segment under way: pages in use are moved, nothing
/// else.
#[test]
fn a_vmm_segment_comes_grows_shrinks_and_goes_while_the_guest_runs() {
    let u = Setup { guest_bytes: 64 << 20, host_bytes: 256 << 20, ..setup() };
    let mut m = u.segmented("vmm-direct", "start=paged");
    let mut s = Script::new(&LONG4);
    let pages: Vec<u64> = (0..40).map(|i| (20 << 20) + i * 0x10_1000).collect();
    for &p in &pages {
        s.map_used(GVA + p, p, S4K);
    }
    m.run(&s.take()).unwrap();
    let mut look = |m: &mut Machine<SegmentedVm>| {
        m.forget();
        for &p in &pages {
            s.load(GVA + p);
        }
        let c = m.count(&s.take());
        approve(m);
        (c.references.of(Dimension::Nested), c.exits[ExitReason::EptViolation as usize])
    };
    assert!(look(&mut m).0 > 0);
    // All pages that were touched and lie in it are copied: the 12 up to 32 MiB, and tables at 16
    // MiB.
    let (made, moved) = create(&mut m, 0, 32 << 20);
    assert!(made && moved >= 12, "{moved}");
    let (refs, exits) = look(&mut m);
    assert!(refs > 0 && exits == 0);
    m.scheme.grow_vmm_segment(&mut m.platform, 64 << 20).unwrap();
    assert_eq!(m.report().segments.unwrap().vmm.bytes, 64 << 20);
    assert!((m.report().segments.unwrap().vmm_percent - 100.0).abs() < 1e-9);
    assert_eq!(look(&mut m), (0, 0));
    m.scheme.shrink_vmm_segment(&mut m.platform, 32 << 20).unwrap();
    let (refs, exits) = look(&mut m);
    assert!(refs > 0 && exits > 0, "what is behind the limit now is mapped by violations");
    assert!(look(&mut m).1 == 0);
    m.scheme.shrink_vmm_segment(&mut m.platform, 0).unwrap();
    assert_eq!(m.report().segments.unwrap().vmm.bytes, 0);
    assert!(look(&mut m).1 > 0);
    let e = m.scheme.create_vmm_segment(&mut m.platform, Gpa::new(0x800), 4096).unwrap_err();
    assert!(e.to_string().contains("multiples of 4096"), "{e}");
    let e = m.scheme.create_vmm_segment(&mut m.platform, Gpa::new(0), 65 << 20).unwrap_err();
    assert!(e.to_string().contains("not inside of one memory slot"), "{e}");
}

/// Makes a segment. Whether there is one now, and the pages moved for it.
fn create(m: &mut Machine<SegmentedVm>, start: u64, bytes: u64) -> (bool, u64) {
    m.platform.cpu.counters = Counters::default();
    let made = m.scheme.create_vmm_segment(&mut m.platform, Gpa::new(start), bytes).unwrap();
    (made, m.platform.cpu.counters.pages_moved)
}

/// The host takes pages of the segment back: a few escape, more cut it.
#[test]
fn pages_that_the_host_takes_back_escape_and_then_cut_the_segment() {
    let u = Setup { guest_bytes: 64 << 20, host_bytes: 256 << 20, ..setup() };
    let mut m = u.segmented("vmm-direct", "escapes=3");
    let mut s = Script::new(&LONG4);
    let page = |i: u64| (40 << 20) + (i << 13);
    for i in 0..4 {
        s.map_used(GVA + page(i), page(i), S4K);
        s.load(GVA + page(i));
    }
    m.run(&s.take()).unwrap();
    for i in 0..4 {
        assert!(m.discard(Gpa::new(page(i))).unwrap());
        let state = m.report().segments.unwrap().vmm;
        match i {
            0..3 => assert_eq!((state.bytes, state.escaped), (64 << 20, i + 1)),
            _ => assert_eq!((state.bytes, state.escaped), (page(3), 3)),
        }
        (0..4).for_each(|i| s.load(GVA + page(i)));
        m.run(&s.take()).unwrap();
        approve(&m);
    }
}

/// Registers follow the address space: of two processes each has its own, and one has none.
#[test]
fn context_switches_carry_the_registers() {
    for m in [&mut setup().ds("") as &mut dyn Probe, &mut setup().segmented("dual-direct", "")] {
        let mut s = Script::new(&LONG4);
        let (first, second) = (s.root, s.add_root());
        load(&mut s, &[]);
        s.map_used(GVA, GPA, S4K);
        s.load(GVA);
        s.load_cr3(second, 2, false);
        off(&mut s);
        s.map_used(GVA, GPA + 0x5000, S4K);
        s.load(GVA);
        s.load_cr3(first, 1, true);
        load(&mut s, &[]);
        s.load(GVA);
        let c = m.count(&s.take());
        assert_eq!((c.segment_hits, c.walks, c.guest_segment_loads), (1, 1, 3));
        approve(m);
    }
}

#[test]
fn names_choose_guests_with_primary_regions() {
    let base = PagePolicy::by_name("4k").unwrap();
    let name = |text: &str| MachineSpec::parse(text, base).map(|m| m.name);
    assert_eq!(name("ds").unwrap(), "ds:4k@primary");
    assert_eq!(name("guest-direct").unwrap(), "guest-direct:4k+4k@primary+default");
    assert_eq!(name("vmm-direct:thp").unwrap(), "vmm-direct:thp+thp");
    assert_eq!(
        name("dual-direct/bad=16:4k+2m").unwrap(),
        "dual-direct/bad=16:4k+2m@primary+default"
    );
    for text in ["ds", "guest-direct", "vmm-direct", "dual-direct", "nested@primary"] {
        let full = name(text).unwrap();
        assert_eq!(name(&full).unwrap(), full);
    }
    let e = name("dual-direct:observed").unwrap_err().to_string();
    assert!(e.contains("dual-direct:4k") && e.contains("vmm-direct"), "{e}");
    assert_eq!(name("vmm-direct:observed").unwrap(), "vmm-direct:observed+4k");
    let e = name("nested@default+primary").unwrap_err().to_string();
    assert!(e.contains("`primary` is a guest's"), "{e}");
}

/// The largest slot is covered; without enough contiguous memory a part of it, or nothing.
#[test]
fn the_segment_is_as_large_as_contiguous_memory_allows() {
    let mut u = Setup { guest_bytes: GIB, host_bytes: 3 * GIB, ..setup() };
    assert!(
        (u.segmented("vmm-direct", "").report().segments.unwrap().vmm_percent - 100.0).abs() < 1e-9
    );
    u.host_bytes = GIB;
    let mut m = u.segmented("vmm-direct", "");
    let percent = m.report().segments.unwrap().vmm_percent;
    assert!((50.0..99.0).contains(&percent), "{percent}");
    let mut s = Script::new(&LONG4);
    s.map_used(GVA, 0x3f00_0000, S4K);
    s.load(GVA);
    s.map_used(GVA + 0x1000, 0x100_0000 * 20, S4K);
    s.load(GVA + 0x1000);
    m.run(&s.take()).unwrap();
    approve(&m);
    assert_eq!(run(GVA, false).gva, Gva::new(GVA));
}

use super::{Pattern, PatternError, PatternSpec};
use nestwalk_types::{Batch, Control, Run, Source};

const PAGE: u64 = 4096;

fn small(text: &str) -> PatternSpec {
    let defaults = PatternSpec { footprint: 64 * PAGE, accesses: 10_000, ..Default::default() };
    PatternSpec::parse(text, &defaults).expect("a valid specification")
}

fn stream(spec: &PatternSpec) -> (Vec<Run>, Vec<Control>) {
    let (mut runs, mut controls) = (Vec::new(), Vec::new());
    let (mut source, mut batch) = (spec.source(), Batch::default());
    while source.next_batch(&mut batch).expect("a pattern does not fail") {
        runs.append(&mut batch.runs);
        controls.extend(batch.controls.drain(..).map(|c| c.1));
    }
    (runs, controls)
}

/// Accesses to each page of the region.
fn pages(spec: &PatternSpec) -> Vec<u64> {
    let mut counts = vec![0; (spec.footprint / PAGE) as usize];
    for run in stream(spec).0 {
        let offset = run.gva.value() - PatternSpec::BASE.value();
        counts[(offset / PAGE) as usize] += u64::from(run.count);
    }
    counts
}

#[test]
fn sequential_touches_every_slot_equally_often() {
    // 64 pages of 512 slots, three rounds.
    let spec = small("sequential:accesses=98304");
    assert!(pages(&spec).iter().all(|&n| n == 3 * 512));
    let (runs, _) = stream(&spec);
    assert!(runs.iter().map(|r| r.lines).fold(0, |a, b| a | b) == u64::MAX);
}

#[test]
fn stride_touches_the_pages_of_its_multiples() {
    let spec = small("stride:stride=8192,accesses=64");
    let expected: Vec<_> = (0..64).map(|p| if p % 2 == 0 { 2 } else { 0 }).collect();
    assert_eq!(pages(&spec), expected);
    // 4,160 bytes move one page and one line on: the definition, written down again.
    let spec = small("stride:stride=4160,accesses=1000");
    let expected: Vec<_> = (0..1000u64).map(|i| i * 4160 % spec.footprint).collect();
    let found: Vec<_> =
        stream(&spec).0.iter().map(|r| r.gva.value() - PatternSpec::BASE.value()).collect();
    assert_eq!(found, expected);
}

#[test]
fn uniform_is_uniform() {
    let counts = pages(&small("uniform:accesses=640K"));
    // 63 degrees of freedom: mean 63, deviation 11.2.
    let chi: f64 = counts.iter().map(|&n| (n as f64 - 10_000.0).powi(2) / 10_000.0).sum();
    assert!(chi > 20.0 && chi < 120.0, "{chi}");
}

#[test]
fn zipf_gives_items_their_shares_in_some_order() {
    let spec = small("zipf:theta=0.9,accesses=1M");
    let mut counts = pages(&spec);
    assert!(!counts.is_sorted_by(|a, b| a >= b), "hot items must be scattered");
    counts.sort_by(|a, b| b.cmp(a));
    let total: f64 = (1..=64).map(|k| f64::from(k).powf(-0.9)).sum();
    for (k, &n) in counts.iter().enumerate().take(8) {
        let expected = 1e6 * ((k + 1) as f64).powf(-0.9) / total;
        assert!((n as f64 - expected).abs() < 5.0 * expected.sqrt(), "rank {k}: {n} {expected}");
    }
}

#[test]
fn chase_visits_every_node_once_per_cycle_and_repeats_the_cycle() {
    for text in ["chase", "chase:node=4096", "chase:node=64,footprint=12KiB"] {
        let spec = small(text);
        let Pattern::Chase { node } = spec.phases[0] else { panic!() };
        let nodes = (spec.footprint / node) as usize;
        let spec = PatternSpec { accesses: 2 * nodes as u64, ..spec };
        // A node is a line or more, so a run of several accesses hides the order: unfold it by one
        // access at a time.
        let order: Vec<_> = (0..2 * nodes).collect();
        let (runs, _) = stream(&spec);
        assert_eq!(runs.iter().map(|r| u64::from(r.count)).sum::<u64>(), order.len() as u64);
        let mut per_page = vec![0; (spec.footprint / PAGE) as usize];
        let mut lines = vec![0; per_page.len()];
        for run in &runs {
            let page = ((run.gva.value() - PatternSpec::BASE.value()) / PAGE) as usize;
            per_page[page] += u64::from(run.count);
            lines[page] |= run.lines;
        }
        assert!(per_page.iter().all(|&n| n == 2 * PAGE / node.min(PAGE)), "{text}");
        let all = if node == 64 { u64::MAX } else { 1 };
        assert!(lines.iter().all(|&l| l == all), "{text}");
    }
}

#[test]
fn chase_is_one_cycle() {
    // Pages as nodes: each access is a run, unless there is one page only.
    let spec = small("chase:node=4096,accesses=192");
    let order: Vec<_> = stream(&spec).0.iter().map(|r| r.gva.value()).collect();
    assert_eq!(order.len(), 192);
    assert_eq!(order[..64], order[64..128]);
    let mut once = order[..64].to_vec();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), 64);
}

#[test]
fn phases_share_the_accesses_in_turn() {
    let spec = small("phases:sequential/stride:stride=4096/uniform");
    let spec = PatternSpec { accesses: 1000, ..spec };
    let (runs, controls) = stream(&spec);
    let of = |p: &Pattern| {
        let pc = p.pc(false);
        runs.iter().filter(|r| r.pc == pc).map(|r| u64::from(r.count)).sum::<u64>()
    };
    let counts: Vec<_> = spec.phases.iter().map(of).collect();
    // An access to the page of the run before it joins that run, across the border of phases too.
    assert_eq!(counts.iter().sum::<u64>(), 1000);
    assert!(counts.iter().all(|n| n.abs_diff(333) <= 3), "{counts:?}");
    assert_eq!(controls.iter().filter(|c| matches!(c, Control::Map { .. })).count(), 1);
}

#[test]
fn loads_and_stores_have_their_shares() {
    let spec = small("uniform:reads=0.75,accesses=100K");
    let stores = stream(&spec).0.iter().filter(|r| r.flags.is_store()).count();
    // Most runs are one access; a store and the loads behind it on the same page are one run.
    assert!((24_000..=25_000).contains(&stores), "{stores}");
    let (runs, _) = stream(&small("uniform:reads=0"));
    assert!(runs.iter().all(|r| r.flags.is_store()));
    assert!(runs.iter().all(|r| r.pc == Pattern::Uniform.pc(true)));
}

#[test]
fn vcpus_take_turns_of_a_chunk() {
    let spec = small("uniform:vcpus=3,chunk=50,accesses=1000,instructions=7");
    let (runs, controls) = stream(&spec);
    let mut turns: Vec<(u8, u64)> = Vec::new();
    for r in &runs {
        match turns.last_mut() {
            Some(turn) if turn.0 == r.vcpu.0 => turn.1 += u64::from(r.count),
            _ => turns.push((r.vcpu.0, u64::from(r.count))),
        }
        assert_eq!(r.instructions, 7 * r.count);
    }
    assert_eq!(
        turns.iter().map(|t| t.0).collect::<Vec<_>>(),
        Vec::from_iter((0..20).map(|i| i % 3))
    );
    // A vCPU that goes on where it stopped, on the same page, adds to its run of the turn before.
    assert!(turns.iter().all(|t| t.1.abs_diff(50) <= 2), "{turns:?}");
    let of = |v| turns.iter().filter(|t| t.0 == v).map(|t| t.1).sum::<u64>();
    assert_eq!([of(0), of(1), of(2)], [350, 350, 300]);
    assert_eq!(controls.iter().filter(|c| matches!(c, Control::Switch { .. })).count(), 3);
}

#[test]
fn set_up_maps_populates_in_pieces_and_then_begins() {
    let spec = PatternSpec { footprint: 40 << 20, accesses: 1, ..Default::default() };
    let (_, controls) = stream(&spec);
    let mut next = PatternSpec::BASE.value();
    for control in &controls[2..controls.len() - 1] {
        let Control::Populate { start, bytes, .. } = control else { panic!("{control:?}") };
        assert_eq!(start.value(), next);
        assert!(*bytes <= Control::POPULATE_BYTES);
        next += bytes;
    }
    assert_eq!(next, PatternSpec::BASE.value() + spec.footprint);
    assert_eq!(controls.last(), Some(&Control::RegionOfInterest));
    let bare = PatternSpec { populate: Some(false), ..spec };
    assert_eq!(stream(&bare).1.len(), 3, "switch, map, region of interest");
    assert!(!PatternSpec { footprint: 1 << 40, ..Default::default() }.populates());
}

#[test]
fn the_seed_decides_everything() {
    for text in ["uniform:reads=0.5", "zipf", "chase", "phases:uniform/zipf/uniform"] {
        let spec = small(text);
        assert!(stream(&spec) == stream(&spec), "{text}");
        let other = PatternSpec { seed: 2, ..spec.clone() };
        assert!(stream(&spec).0 != stream(&other).0, "{text}");
    }
}

#[test]
fn a_tebibyte_needs_no_memory() {
    for text in ["chase", "zipf", "uniform", "stride:stride=1GiB"] {
        let spec =
            small(&format!("{text}{}footprint=1TiB", if text.contains(':') { "," } else { ":" }));
        let (runs, _) = stream(&spec);
        let end = PatternSpec::BASE.value() + (1 << 40);
        assert!(runs.iter().all(|r| (PatternSpec::BASE.value()..end).contains(&r.gva.value())));
    }
}

#[test]
fn texts_are_read_and_written() {
    for text in [
        "sequential",
        "uniform",
        "stride:stride=4160",
        "zipf:theta=0.9,item=4096",
        "chase:node=128",
        "phases:sequential/stride:stride=64/zipf:theta=1,item=64",
    ] {
        assert_eq!(small(text).name(), text);
    }
    let spec = small(
        "uniform:footprint=2GiB,size=16,reads=0.5,accesses=3M,seed=9,vcpus=2,chunk=7,instructions=3,populate=no",
    );
    let expected = PatternSpec {
        phases: vec![Pattern::Uniform],
        footprint: 2 << 30,
        access_bytes: 16,
        reads: 0.5,
        accesses: 3_000_000,
        seed: 9,
        vcpus: 2,
        chunk: 7,
        instructions: 3,
        populate: Some(false),
    };
    assert_eq!(spec, expected);
}

#[test]
fn errors_list_what_exists() {
    let error =
        |text: &str| PatternSpec::parse(text, &PatternSpec::default()).expect_err(text).to_string();
    for name in Pattern::NAMES {
        assert!(error("zip").contains(name));
    }
    assert!(error("zipf:tetha=1").contains("theta, item, footprint"));
    assert!(error("uniform:footprint=1000").contains("a multiple of 4KiB"));
    assert!(error("uniform:footprint=65TiB").contains("64TiB"));
    assert!(error("uniform:footprint").contains("key=value"));
    assert!(error("uniform:reads=2").contains("from 0 to 1"));
    assert!(error("zipf:theta=NaN").contains("from 0 to 100"));
    assert!(error("chase:node=48").contains("a power of two"));
    assert!(error("uniform:size=3").contains("1, 2, 4"));
    assert!(error("uniform:accesses=99999999999999999999").contains("50M"));
    assert_eq!(
        error("phases:uniform/zipf:seed=1"),
        PatternError::Shared("seed".into()).to_string()
    );
}

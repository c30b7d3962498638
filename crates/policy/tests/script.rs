//! The published script, sample by sample. All expected numbers were worked out by hand from its text
//! (`bc` with two decimals truncates), none by calling the code.

use nestwalk_policy::{Action, Mode, Outcome, Policy, PolicySpec, Reason, Sample};

/// An interval of a second with a million cycles, so that 10 000 cycles are one percent.
fn sample(mode: Mode, vmm: u64, walk: u64, instructions: u64) -> Sample {
    Sample {
        time_ns: 0,
        duration_ns: 1_000_000_000,
        busy_ns: 1_000_000_000,
        instructions,
        guest_cycles: 1_000_000 - vmm,
        host_kernel_cycles: vmm,
        host_user_cycles: 0,
        walk_cycles: Some(walk),
        guest_page_faults: None,
        tlb_misses: None,
        vm_exits: None,
        mode,
    }
}

/// 6 % VMM and 4 % walks with an IPC of 0.50 (CPI 2.00).
fn high(mode: Mode) -> Sample {
    sample(mode, 60_000, 40_000, 500_000)
}

fn policy(spec: &str, mode: Mode) -> Box<dyn Policy> {
    let spec: PolicySpec = spec.parse().unwrap();
    spec.build(mode, &|_| panic!("names no file")).unwrap()
}

/// The counter C and its target after a sample, or nothing if C was not touched.
fn level(policy: &mut dyn Policy, sample: Sample) -> Option<(i64, i64)> {
    match policy.sample(&sample).reason {
        Reason::High { level, target, .. } | Reason::Low { level, target, .. } => {
            Some((level, target))
        }
        _ => None,
    }
}

fn switches(policy: &mut dyn Policy, sample: Sample, to: Mode) {
    let decision = policy.sample(&sample);
    assert_eq!(decision.action, Action::Switch(to), "{decision}");
    policy.switched(Outcome::Done);
    assert_eq!(policy.mode(), to);
}

fn quiet(policy: &mut dyn Policy, sample: Sample, left: u32) {
    assert_eq!(policy.sample(&sample).reason, Reason::Quiet { left });
}

/// The threshold that moved, before and after.
fn adapted(policy: &mut dyn Policy, sample: Sample) -> (bool, Mode, String, String) {
    match policy.sample(&sample).reason {
        Reason::Adapted { good, threshold_of, from, to, .. } => {
            (good, threshold_of, format!("{from:.2}"), format!("{to:.2}"))
        }
        other => panic!("{other}"),
    }
}

const SHADOW: Mode = Mode::Shadow;
const NESTED: Mode = Mode::Nested;

#[test]
fn the_first_switch_takes_four_high_samples_and_later_ones_take_eight() {
    let mut p = policy("dynamic-thresholds", SHADOW);
    let p = p.as_mut();
    for expected in 1..=3 {
        assert_eq!(level(p, high(SHADOW)), Some((expected, 4)));
    }
    switches(p, high(SHADOW), NESTED);

    // CPI 1000000/800000 = 1.25, IPC 1/1.25 = .80 > 1.1 * .50: a good switch. The threshold that
    // caused it, of shadow, shrinks by 2 * .80 / .50 = 3.20.
    quiet(p, sample(NESTED, 60_000, 40_000, 800_000), 1);
    let moved = adapted(p, sample(NESTED, 60_000, 40_000, 800_000));
    assert_eq!(moved, (true, SHADOW, "9.00".into(), "5.80".into()));

    // C was not reset: from 4 down to -4. CPI 1000000/600000 = 1.66, IPC 1/1.66 = .60.
    let nested = sample(NESTED, 20_000, 100_000, 600_000);
    for expected in [3, 2, 1, 0, -1, -2, -3] {
        assert_eq!(level(p, nested), Some((expected, -4)));
    }
    switches(p, nested, SHADOW);

    // CPI 2.50, IPC .40 < .9 * .60 = .54: bad. Nested's threshold grows by 2 * .60 / .40 = 3.00.
    quiet(p, sample(SHADOW, 60_000, 40_000, 100_000), 1);
    let moved = adapted(p, sample(SHADOW, 60_000, 40_000, 400_000));
    assert_eq!(moved, (false, NESTED, "9.00".into(), "12.00".into()));

    // Shadow's threshold is 5.80 now: 5.80 % is not above it, 5.81 % is. And again eight are needed.
    assert!(matches!(
        p.sample(&sample(SHADOW, 58_000, 0, 500_000)).reason,
        Reason::Between { level: -4, target: 4, .. }
    ));
    for expected in [-3, -2, -1, 0, 1, 2, 3] {
        assert_eq!(level(p, sample(SHADOW, 58_100, 0, 500_000)), Some((expected, 4)));
    }
    switches(p, sample(SHADOW, 58_100, 0, 500_000), NESTED);
}

#[test]
fn low_samples_take_back_what_high_ones_gave() {
    let mut p = policy("dynamic-thresholds", SHADOW);
    let p = p.as_mut();
    // 1.99 % is below T_low, 2.00 % is not.
    let low = sample(SHADOW, 19_900, 0, 500_000);
    let between = sample(SHADOW, 20_000, 0, 500_000);
    assert_eq!(level(p, high(SHADOW)), Some((1, 4)));
    assert_eq!(level(p, high(SHADOW)), Some((2, 4)));
    assert_eq!(level(p, low), Some((1, 4)));
    assert_eq!(level(p, between), None);
    assert_eq!(level(p, high(SHADOW)), Some((2, 4)));
    assert_eq!(level(p, high(SHADOW)), Some((3, 4)));
    switches(p, high(SHADOW), NESTED);
}

#[test]
fn the_counter_stays_within_its_range() {
    let mut p = policy("static-thresholds", SHADOW);
    let p = p.as_mut();
    let low = sample(SHADOW, 0, 0, 500_000);
    for expected in [-1, -2, -3, -4, -4, -4] {
        assert_eq!(level(p, low), Some((expected, 4)));
    }
    for expected in [-3, -2, -1, 0, 1, 2, 3] {
        assert_eq!(level(p, high(SHADOW)), Some((expected, 4)));
    }
    switches(p, high(SHADOW), NESTED);
}

#[test]
fn a_vm_that_starts_nested_counts_downwards() {
    let mut p = policy("static-thresholds", NESTED);
    let p = p.as_mut();
    for expected in [-1, -2, -3] {
        assert_eq!(level(p, high(NESTED)), Some((expected, -4)));
    }
    switches(p, high(NESTED), SHADOW);
    // Static thresholds do not move, whatever the IPC.
    quiet(p, sample(SHADOW, 0, 0, 900_000), 1);
    quiet(p, sample(SHADOW, 0, 0, 900_000), 0);
}

/// Switches a fresh policy to nested paging and ends its quiet time with `instructions`.
fn after_first_switch(spec: &str, before: u64, after: u64) -> Reason {
    let mut p = policy(spec, SHADOW);
    let p = p.as_mut();
    for _ in 0..3 {
        level(p, sample(SHADOW, 995_000, 0, before));
    }
    switches(p, sample(SHADOW, 995_000, 0, before), NESTED);
    quiet(p, sample(NESTED, 0, 0, after), 1);
    p.sample(&sample(NESTED, 0, 0, after)).reason
}

fn threshold_after(spec: &str, before: u64, after: u64) -> Option<String> {
    match after_first_switch(spec, before, after) {
        Reason::Adapted { to, threshold_of: Mode::Shadow, .. } => Some(format!("{to:.2}")),
        Reason::Quiet { left: 0 } => None,
        other => panic!("{other}"),
    }
}

#[test]
fn thresholds_have_a_cap_and_a_floor() {
    // The guest has 5000 cycles, which retire at most 80000 instructions. Before: CPI 1000000/50000 =
    // 20.00, IPC 1/20 = .05. After: CPI 25.00, IPC .04 < .045: 2 * .05 / .04 = 2.50.
    assert_eq!(threshold_after("dynamic-thresholds:high=97.5", 50_000, 40_000).unwrap(), "100.00");
    assert_eq!(threshold_after("dynamic-thresholds:high=97.49", 50_000, 40_000).unwrap(), "99.99");
    assert_eq!(threshold_after("dynamic-thresholds:high=99", 50_000, 40_000).unwrap(), "100.00");
    // After: CPI 10.00, IPC .10: 2 * .10 / .05 = 4.00 below 6.01 leaves 2.01, below 6 T_low = 2.
    assert_eq!(threshold_after("dynamic-thresholds:high=6.01", 50_000, 100_000).unwrap(), "2.01");
    assert_eq!(threshold_after("dynamic-thresholds:high=6", 50_000, 100_000).unwrap(), "2.00");
    assert_eq!(threshold_after("dynamic-thresholds:high=4", 50_000, 100_000).unwrap(), "2.00");
}

#[test]
fn changes_are_truncated_and_borders_are_strict() {
    let spec = "dynamic-thresholds:high=50";
    // Before: CPI 1000000/70000 = 14.28 (14.2857), IPC 1/14.28 = .07 (.0700).
    // After: CPI 1000000/110000 = 9.09, IPC .11 (.1100): 2 * .11 / .07 = .22/.07 = 3.14 (3.1428).
    assert_eq!(threshold_after(spec, 70_000, 110_000).unwrap(), "46.86");
    // IPC .05 after .07: .05 < .063, 2 * .07 / .05 = 2.80.
    assert_eq!(threshold_after(spec, 70_000, 50_000).unwrap(), "52.80");
    // Before: CPI 12.50, IPC .08. After: CPI 11.11, IPC .09 (.0900): above .088, and
    // 2 * .09 / .08 = 2.25.
    assert_eq!(threshold_after(spec, 80_000, 90_000).unwrap(), "47.75");
    // The same IPC changes nothing.
    assert_eq!(threshold_after(spec, 80_000, 80_000), None);
}

/// Starts nested, where guest cycles abound, so that IPCs can be large.
fn threshold_after_leaving_nested(before: u64, after: u64) -> Option<String> {
    let mut p = policy("dynamic-thresholds:high=50", NESTED);
    let p = p.as_mut();
    for _ in 0..3 {
        level(p, sample(NESTED, 0, 600_000, before));
    }
    switches(p, sample(NESTED, 0, 600_000, before), SHADOW);
    quiet(p, sample(SHADOW, 0, 0, after), 1);
    match p.sample(&sample(SHADOW, 0, 0, after)).reason {
        Reason::Adapted { to, threshold_of: Mode::Nested, .. } => Some(format!("{to:.2}")),
        Reason::Quiet { left: 0 } => None,
        other => panic!("{other}"),
    }
}

#[test]
fn a_tenth_more_or_less_is_neither_good_nor_bad() {
    // IPC 1.00 before. 1000000/1100000 = .90 (.9090), 1/.90 = 1.11 > 1.10: good, 2 * 1.11 = 2.22.
    assert_eq!(threshold_after_leaving_nested(1_000_000, 1_100_000).unwrap(), "47.78");
    // 1000000/1090000 = .91 (.9174), 1/.91 = 1.09: not above 1.10.
    assert_eq!(threshold_after_leaving_nested(1_000_000, 1_090_000), None);
    // 1000000/905000 = 1.10, 1/1.10 = .90: not below .90.
    assert_eq!(threshold_after_leaving_nested(1_000_000, 905_000), None);
    // 1000000/900000 = 1.11, 1/1.11 = .90: not below, although the true ratio is.
    assert_eq!(threshold_after_leaving_nested(1_000_000, 900_000), None);
    // 1000000/890000 = 1.12, 1/1.12 = .89 < .90: bad, 2 * 1.00 / .89 = 2.24.
    assert_eq!(threshold_after_leaving_nested(1_000_000, 890_000).unwrap(), "52.24");
}

#[test]
fn idle_samples_and_those_of_another_mode_leave_everything_as_it_is() {
    let mut p = policy("dynamic-thresholds", SHADOW);
    let p = p.as_mut();
    assert_eq!(level(p, high(SHADOW)), Some((1, 4)));
    // perf prints .5994 as 0.599 and .5995 as 0.600, and the script asks for < 0.60.
    let idle = Sample { busy_ns: 599_400_000, instructions: 100_000, ..high(SHADOW) };
    assert_eq!(p.sample(&idle).reason, Reason::Idle { load_thousandths: 599 });
    let busy = Sample { busy_ns: 599_500_000, ..high(SHADOW) };
    assert_eq!(level(p, busy), Some((2, 4)));
    let other = p.sample(&high(NESTED)).reason;
    assert_eq!(other, Reason::ModeDiffers { expected: SHADOW, found: NESTED });
    assert_eq!(level(p, high(SHADOW)), Some((3, 4)));
    let decision = p.sample(&high(SHADOW));
    assert_eq!(decision.action, Action::Switch(NESTED));
    // While the switch is under way, nothing counts, not even as quiet time.
    for _ in 0..5 {
        assert_eq!(p.sample(&high(SHADOW)).reason, Reason::SwitchUnderWay);
    }
    p.switched(Outcome::Done);
    assert!(matches!(p.sample(&high(SHADOW)).reason, Reason::ModeDiffers { .. }));
    quiet(p, high(NESTED), 1);
    // Idle or not: the script adapts before it looks at the load. The idle sample before the switch
    // did not become the old IPC, so .50 is compared with .80: 2 * .80 / .50.
    let idle = Sample { busy_ns: 1, ..sample(NESTED, 0, 0, 800_000) };
    assert_eq!(adapted(p, idle), (true, SHADOW, "9.00".into(), "5.80".into()));
}

#[test]
fn the_thesis_s_own_parameters() {
    // 4.2.3: T_high = 12, T_low = 3. 12.00 % is not above, 12.01 % is.
    let mut p = policy("dynamic-thresholds:high=12,low=3", SHADOW);
    let p = p.as_mut();
    assert_eq!(level(p, sample(SHADOW, 60_000, 60_000, 500_000)), None);
    assert_eq!(level(p, sample(SHADOW, 60_000, 60_100, 500_000)), Some((1, 4)));
    assert_eq!(level(p, sample(SHADOW, 29_900, 0, 500_000)), Some((0, 4)));
}

#[test]
fn one_metric_per_mode() {
    // 5 % VMM, 20 % walks: under shadow paging the walks do not count, under nested paging they do.
    let mut p = policy("single-metric", SHADOW);
    assert_eq!(level(p.as_mut(), sample(SHADOW, 50_000, 200_000, 500_000)), None);
    assert_eq!(level(p.as_mut(), sample(SHADOW, 90_100, 0, 500_000)), Some((1, 4)));
    let mut p = policy("single-metric", NESTED);
    assert_eq!(level(p.as_mut(), sample(NESTED, 200_000, 50_000, 500_000)), None);
    assert_eq!(level(p.as_mut(), sample(NESTED, 0, 90_100, 500_000)), Some((-1, -4)));
}

#[test]
fn weights_multiply_without_rounding() {
    // .33 * 12.34 + .67 * 5.67 = 4.0722 + 3.7989 = 7.8711, above 7.87.
    let spec = "dynamic-thresholds:high=7.87,own=0.33,other=0.67";
    let mut p = policy(spec, SHADOW);
    assert_eq!(level(p.as_mut(), sample(SHADOW, 123_400, 56_700, 500_000)), Some((1, 4)));
    // The weights change places with the mode: .33 * 5.67 + .67 * 12.34 = 10.1389.
    let mut p = policy("dynamic-thresholds:high=10.13,own=0.33,other=0.67", NESTED);
    assert_eq!(level(p.as_mut(), sample(NESTED, 123_400, 56_700, 500_000)), Some((-1, -4)));
    let mut p = policy("dynamic-thresholds:high=10.14,own=0.33,other=0.67", NESTED);
    assert_eq!(level(p.as_mut(), sample(NESTED, 123_400, 56_700, 500_000)), None);
}

#[test]
fn a_refused_switch_is_tried_again_after_the_quiet_time() {
    let mut p = policy("dynamic-thresholds", SHADOW);
    let p = p.as_mut();
    for _ in 0..3 {
        level(p, high(SHADOW));
    }
    assert_eq!(p.sample(&high(SHADOW)).action, Action::Switch(NESTED));
    p.switched(Outcome::Refused);
    assert_eq!(p.mode(), SHADOW);
    quiet(p, high(SHADOW), 1);
    // No switch was made, so none is judged.
    quiet(p, sample(SHADOW, 0, 0, 900_000), 0);
    assert_eq!(p.sample(&high(SHADOW)).action, Action::Switch(NESTED));
}

#[test]
fn seven_hundred_intervals_as_the_script_decides_them() {
    let mut p = policy("dynamic-thresholds", SHADOW);
    let (mut switches, mut level, mut thresholds) = (0, 0, [9.0, 9.0]);
    let lines = include_str!("data/rpms.csv").lines().filter(|l| !l.starts_with('#'));
    for (i, line) in lines.skip(1).enumerate() {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |index: usize| fields[index].parse::<u64>().unwrap();
        let mode = p.mode();
        let decision = p.sample(&Sample {
            // Three decimals in milliseconds.
            busy_ns: fields[0].replace('.', "").parse::<u64>().unwrap() * 1_000_000,
            guest_cycles: number(1) - number(3),
            host_kernel_cycles: number(3),
            walk_cycles: Some(number(4) + number(5)),
            mode: if number(6) == 1 { mode.other() } else { mode },
            ..sample(mode, 0, 0, number(2))
        });
        match decision.reason {
            Reason::High { level: c, .. }
            | Reason::Low { level: c, .. }
            | Reason::Between { level: c, .. } => level = c,
            Reason::Adapted { threshold_of, to, .. } => {
                thresholds[usize::from(threshold_of == NESTED)] = to;
            }
            _ => {}
        }
        let switch = decision.action != Action::Stay;
        if switch {
            switches += 1;
            p.switched(Outcome::Done);
        }
        let found = format!(
            "{},{},{level},{:.2},{:.2}",
            if switch { "switch" } else { "stay" },
            u8::from(p.mode() == NESTED),
            thresholds[0],
            thresholds[1]
        );
        assert_eq!(found, fields[7..].join(","), "sample {}: {decision}", i + 1);
    }
    assert!(switches > 10, "{switches} switches");
}

//! The plan against every sequence of modes there is.

use nestwalk_policy::{
    Action, IntervalCost, Mode, Outcome, PlannedModes, Policy, Sample, hindsight,
};
use proptest::prelude::*;

/// The cost of a sequence, by its definition.
fn cost(intervals: &[IntervalCost], modes: &[Mode], start: Option<Mode>) -> f64 {
    let mut now = start.or(modes.first().copied());
    let mut total = 0.0;
    for (interval, &mode) in intervals.iter().zip(modes) {
        if now != Some(mode) {
            total += if mode == Mode::Shadow { interval.to_shadow } else { interval.to_nested };
            now = Some(mode);
        }
        total += if mode == Mode::Shadow { interval.shadow } else { interval.nested };
    }
    total
}

fn any_interval() -> impl Strategy<Value = IntervalCost> {
    // Small whole numbers: sums are exact, and ties occur.
    (0u8..8, 0u8..8, 0u8..5, 0u8..5).prop_map(|(shadow, nested, to_shadow, to_nested)| {
        IntervalCost {
            shadow: shadow.into(),
            nested: nested.into(),
            to_shadow: to_shadow.into(),
            to_nested: to_nested.into(),
        }
    })
}

fn any_start() -> impl Strategy<Value = Option<Mode>> {
    prop_oneof![Just(None), Just(Some(Mode::Shadow)), Just(Some(Mode::Nested))]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_is_cheaper(
        intervals in prop::collection::vec(any_interval(), 0..9),
        start in any_start(),
    ) {
        let plan = hindsight(&intervals, start).unwrap();
        prop_assert_eq!(plan.modes.len(), intervals.len());
        let cheapest = (0u32..1 << intervals.len())
            .map(|bits| {
                let modes: Vec<Mode> = (0..intervals.len())
                    .map(|i| if bits >> i & 1 == 0 { Mode::Shadow } else { Mode::Nested })
                    .collect();
                cost(&intervals, &modes, start)
            })
            .fold(f64::INFINITY, f64::min);
        prop_assert!((plan.cost - cheapest).abs() < 1e-9, "{} {}", plan.cost, cheapest);
        // The plan costs what it says it does, and switches as often.
        prop_assert!((cost(&intervals, &plan.modes, start) - plan.cost).abs() < 1e-9);
        let mut now = start.or(plan.modes.first().copied());
        let switches = plan.modes.iter().filter(|&&m| now.replace(m) != Some(m)).count();
        prop_assert_eq!(plan.switches as usize, switches);
    }
}

#[test]
fn a_detour_is_worth_its_switches_or_not() {
    let interval = |shadow, nested| IntervalCost { shadow, nested, to_shadow: 3.0, to_nested: 2.0 };
    // Two intervals save 2 each, and there and back costs 5: not worth it. Three save 6: it is.
    let mut intervals = vec![interval(1.0, 9.0), interval(3.0, 1.0), interval(3.0, 1.0)];
    intervals.push(interval(1.0, 9.0));
    let plan = hindsight(&intervals, None).unwrap();
    assert_eq!((plan.switches, plan.cost), (0, 8.0));
    intervals.insert(1, interval(3.0, 1.0));
    let plan = hindsight(&intervals, None).unwrap();
    assert_eq!((plan.switches, plan.cost), (2, 10.0));
    assert_eq!(plan.modes[1..4], [Mode::Nested; 3]);
}

#[test]
fn costs_must_be_costs() {
    let good = IntervalCost { shadow: 1.0, nested: 1.0, to_shadow: 1.0, to_nested: 1.0 };
    for value in [f64::NAN, -1.0, f64::INFINITY] {
        let bad = IntervalCost { to_nested: value, ..good };
        let error = hindsight(&[good, bad], None).unwrap_err();
        assert_eq!(error.interval, 1);
    }
}

#[test]
fn a_plan_is_followed() {
    let modes = vec![Mode::Shadow, Mode::Nested, Mode::Nested, Mode::Shadow];
    let mut policy = PlannedModes::new(Mode::Shadow, modes.clone());
    let sample = Sample {
        time_ns: 0,
        duration_ns: 1,
        busy_ns: 1,
        instructions: 1,
        guest_cycles: 1,
        host_kernel_cycles: 0,
        host_user_cycles: 0,
        walk_cycles: None,
        guest_page_faults: None,
        tlb_misses: None,
        vm_exits: None,
        mode: Mode::Shadow,
    };
    let mut followed = Vec::new();
    for _ in 0..modes.len() {
        followed.push(policy.mode());
        if policy.sample(&sample).action != Action::Stay {
            policy.switched(Outcome::Done);
        }
    }
    assert_eq!(followed, modes);
}

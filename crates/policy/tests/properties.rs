//! What holds of every policy, whatever it is told.

use nestwalk_policy::{Action, Mode, Outcome, POLICIES, Policy, PolicySpec, Reason, Sample};
use proptest::prelude::*;

/// Policies that a stream of samples suffices for, with short quiet times and quick decisions.
fn policies(skip: u32, mode: Mode) -> Vec<(&'static str, Box<dyn Policy>)> {
    let mut made = Vec::new();
    for info in POLICIES {
        let fast = match info.name {
            "static-thresholds" | "dynamic-thresholds" | "single-metric" => ",n=1",
            "kvm-window" => ",window=2",
            "bandit" => ",explore=0.5",
            "svm" => ",agree=1",
            "hindsight" => continue,
            _ => "",
        };
        let spec: PolicySpec = format!("{}:skip={skip}{fast}", info.name).parse().unwrap();
        made.push((info.name, spec.build(mode, &|_| panic!("names no file")).unwrap()));
    }
    assert_eq!(made.len(), 8);
    made
}

prop_compose! {
    fn any_sample()(
        cycles in prop::array::uniform3(0u64..2_000_000_000),
        instructions in 0u64..20_000_000_000,
        walk in 0u64..40_000_000_000,
        busy in 0u64..2_000_000_000,
        events in prop::array::uniform3(prop::option::of(0u64..1_000_000)),
        absurd in prop::bool::weighted(0.05),
    ) -> Sample {
        Sample {
            time_ns: 0,
            duration_ns: if absurd { 0 } else { 1_000_000_000 },
            busy_ns: busy,
            instructions,
            guest_cycles: cycles[0],
            host_kernel_cycles: cycles[1],
            host_user_cycles: cycles[2],
            walk_cycles: Some(walk),
            guest_page_faults: events[0],
            tlb_misses: events[1],
            vm_exits: events[2],
            mode: Mode::Shadow,
        }
    }
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Shadow), Just(Mode::Nested)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_quiet_time_is_kept_and_modes_are_right(
        samples in prop::collection::vec((any_sample(), 0u8..10), 1..60),
        skip in 0u32..4,
        start in any_mode(),
    ) {
        for (name, mut policy) in policies(skip, start) {
            let mut mode = start;
            let mut quiet = 0;
            for (sample, luck) in &samples {
                let sample = Sample { mode, ..*sample };
                let decision = policy.sample(&sample);
                if sample.check().is_err() {
                    prop_assert!(matches!(decision.reason, Reason::Unusable { .. }), "{name}");
                    prop_assert_eq!(decision.action, Action::Stay);
                    continue;
                }
                if let Action::Switch(to) = decision.action {
                    prop_assert_eq!(quiet, 0, "{} switched within the quiet time", name);
                    prop_assert_eq!(to, mode.other(), "{}", name);
                    // Nothing is decided until the outcome is known.
                    prop_assert_eq!(policy.sample(&sample).reason, Reason::SwitchUnderWay);
                    let outcome = match luck {
                        0 => Outcome::Refused,
                        1 => Outcome::Elsewhere(mode),
                        _ => Outcome::Done,
                    };
                    if outcome == Outcome::Done {
                        mode = to;
                    }
                    policy.switched(outcome);
                    quiet = skip;
                } else {
                    quiet = quiet.saturating_sub(1);
                }
                prop_assert_eq!(policy.mode(), mode, "{}", name);
                prop_assert!(!decision.to_string().contains("NaN"), "{name}: {decision}");
            }
        }
    }

    #[test]
    fn the_same_samples_give_the_same_decisions(
        samples in prop::collection::vec(any_sample(), 1..60),
    ) {
        let run = || {
            let mut answers = Vec::new();
            for (_, mut policy) in policies(1, Mode::Shadow) {
                for sample in &samples {
                    let decision = policy.sample(&Sample { mode: policy.mode(), ..*sample });
                    if decision.action != Action::Stay {
                        policy.switched(Outcome::Done);
                    }
                    answers.push(decision);
                }
            }
            answers
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn without_its_counters_no_policy_switches(
        samples in prop::collection::vec(any_sample(), 1..40),
        mode in any_mode(),
    ) {
        for (name, mut policy) in policies(0, mode) {
            for sample in &samples {
                let bare = Sample {
                    walk_cycles: None,
                    guest_page_faults: None,
                    tlb_misses: None,
                    vm_exits: None,
                    mode,
                    ..*sample
                };
                let decision = policy.sample(&bare);
                // Under shadow paging `single-metric` looks at the VMM alone.
                if name != "single-metric" || mode != Mode::Shadow {
                    prop_assert_eq!(decision.action, Action::Stay, "{}", name);
                } else if decision.action != Action::Stay {
                    policy.switched(Outcome::Refused);
                }
            }
        }
    }
}

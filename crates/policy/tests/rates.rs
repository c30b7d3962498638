//! Policies that decide by rates, and the one that learned.

use nestwalk_policy::{
    Action, DspRule, Mode, Outcome, Policy, PolicySpec, Reason, Sample, TrainError, best_modes,
    train,
};
use std::io;

/// A second with a million cycles: counts are rates.
fn sample(mode: Mode, faults: u64, misses: u64, exits: u64) -> Sample {
    Sample {
        time_ns: 0,
        duration_ns: 1_000_000_000,
        busy_ns: 1_000_000_000,
        instructions: 1_000_000,
        guest_cycles: 1_000_000,
        host_kernel_cycles: 0,
        host_user_cycles: 0,
        walk_cycles: Some(0),
        guest_page_faults: Some(faults),
        tlb_misses: Some(misses),
        vm_exits: Some(exits),
        mode,
    }
}

fn policy(spec: &str, mode: Mode) -> Box<dyn Policy> {
    let spec: PolicySpec = spec.parse().unwrap();
    spec.build(mode, &|_| panic!("names no file")).unwrap()
}

#[test]
fn dsp_weighs_faults_against_misses() {
    let table = [
        // 5 faults and 64 misses are the thresholds themselves: not above them.
        (5, 64, DspRule::NeitherHigh, None),
        (6, 64, DspRule::FaultsHigh, Some(Mode::Nested)),
        (5, 65, DspRule::MissesHigh, Some(Mode::Shadow)),
        // 8 faults against 100 misses is the ratio itself.
        (8, 100, DspRule::RatioForShadow, Some(Mode::Shadow)),
        (9, 100, DspRule::RatioForNested, Some(Mode::Nested)),
    ];
    for (faults, misses, expected, best) in table {
        for mode in [Mode::Shadow, Mode::Nested] {
            let decision = policy("dsp:faults=5,misses=64,ratio=0.08", mode)
                .sample(&sample(mode, faults, misses, 0));
            let Reason::Rates { rule, .. } = decision.reason else { panic!("{decision}") };
            assert_eq!(rule, expected);
            let action = match best {
                Some(best) if best != mode => Action::Switch(best),
                _ => Action::Stay,
            };
            assert_eq!(decision.action, action, "{decision}");
        }
    }
}

#[test]
fn aspms_watches_each_mode_s_weakness_and_adapts() {
    let mut p = policy("aspms:step=0.1,exits=10", Mode::Shadow);
    // Under shadow paging misses do not matter; 10 exits are not above 10.
    assert_eq!(p.sample(&sample(Mode::Shadow, 0, 9999, 10)).action, Action::Stay);
    assert_eq!(p.sample(&sample(Mode::Shadow, 0, 0, 11)).action, Action::Switch(Mode::Nested));
    p.switched(Outcome::Done);
    let slow = Sample { instructions: 900_000, ..sample(Mode::Nested, 0, 0, 0) };
    assert_eq!(p.sample(&slow).reason, Reason::Quiet { left: 1 });
    // CPI rose from 1 to 1.11: the exits' threshold grows by a tenth, to 11.
    let Reason::Adapted { good, threshold_of, from, to, .. } = p.sample(&slow).reason else {
        panic!("no adaptation")
    };
    assert!(!good && threshold_of == Mode::Shadow);
    assert!((from - 10.0).abs() < 1e-12 && (to - 11.0).abs() < 1e-12);
    // Back, by misses, and faster: their threshold falls to 57.6.
    assert_eq!(p.sample(&sample(Mode::Nested, 0, 65, 0)).action, Action::Switch(Mode::Shadow));
    p.switched(Outcome::Done);
    let fast = Sample { instructions: 1_100_000, ..sample(Mode::Shadow, 0, 0, 0) };
    p.sample(&fast);
    let Reason::Adapted { good, to, .. } = p.sample(&fast).reason else { panic!() };
    assert!(good && (to - 57.6).abs() < 1e-9);
    assert_eq!(p.sample(&sample(Mode::Shadow, 0, 0, 11)).action, Action::Stay);
    assert!(matches!(p.sample(&sample(Mode::Shadow, 0, 0, 12)).action, Action::Switch(_)));
}

#[test]
fn most_of_the_window_must_agree() {
    let mut p = policy("kvm-window:window=4,share=0.75,faults=5,exits=10", Mode::Shadow);
    let (yes, no) = (sample(Mode::Shadow, 6, 0, 11), sample(Mode::Shadow, 6, 0, 10));
    for (s, votes) in [(yes, 1), (no, 1), (yes, 2), (no, 2), (yes, 2)] {
        let decision = p.sample(&s);
        let Reason::Votes { votes: found, needed: 3, .. } = decision.reason else { panic!() };
        assert_eq!((found, decision.action), (votes, Action::Stay));
    }
    // The window is now no, yes, no, yes; one more pushes the first out: yes, no, yes, yes.
    assert_eq!(p.sample(&yes).action, Action::Switch(Mode::Nested));
    p.switched(Outcome::Done);
    // Misses alone do not lead back while page faults would make shadow paging costly.
    for _ in 0..20 {
        assert_eq!(p.sample(&sample(Mode::Nested, 6, 999, 0)).action, Action::Stay);
    }
    for _ in 0..2 {
        assert_eq!(p.sample(&sample(Mode::Nested, 5, 65, 0)).action, Action::Stay);
    }
    assert_eq!(p.sample(&sample(Mode::Nested, 5, 65, 0)).action, Action::Switch(Mode::Shadow));
}

#[test]
fn a_bandit_learns_which_mode_suits_which_phase() {
    // Storms of faults cost shadow paging 40 % of the cycles, misses cost nested paging 30 %.
    let cost = |mode: Mode, storm: bool| match (mode, storm) {
        (Mode::Shadow, true) => Sample { host_kernel_cycles: 400_000, ..sample(mode, 200, 0, 0) },
        (Mode::Shadow, false) => sample(mode, 0, 3000, 0),
        (Mode::Nested, true) => sample(mode, 200, 0, 0),
        (Mode::Nested, false) => Sample { walk_cycles: Some(300_000), ..sample(mode, 0, 3000, 0) },
    };
    let mut p = policy("bandit", Mode::Shadow);
    let mut wrong_late = 0;
    for i in 0..2000 {
        let storm = i / 20 % 2 == 0;
        let right = if storm { Mode::Nested } else { Mode::Shadow };
        let mode = p.mode();
        // The first three intervals of a phase are needed to see it and to change.
        if i >= 1000 && i % 20 >= 3 && mode != right {
            wrong_late += 1;
        }
        if p.sample(&cost(mode, storm)).action != Action::Stay {
            p.switched(Outcome::Done);
        }
    }
    assert_eq!(wrong_late, 0);
}

/// Rows whose best mode follows a curved border.
fn rows() -> Vec<(Sample, Mode)> {
    let mut rows = Vec::new();
    for faults in [0, 1, 2, 4, 8, 16, 32, 64, 128, 256] {
        for misses in [0, 8, 16, 32, 64, 128, 256, 512, 1024, 4096] {
            let best = if faults * 9970 > misses * 157 { Mode::Nested } else { Mode::Shadow };
            rows.push((sample(Mode::Shadow, faults, misses, 0), best));
        }
    }
    rows
}

#[test]
fn a_classifier_is_trained_saved_loaded_and_used() {
    let training = train(&rows()).unwrap();
    assert_eq!(training.model, train(&rows()).unwrap().model, "training is not reproducible");
    assert_eq!(training.rows[0] + training.rows[1], 100);
    assert!(training.correct >= 95, "{training:?}");
    assert!(training.held_out[0] == 20 && training.held_out[1] >= 17, "{training:?}");

    let spec: PolicySpec = "svm:model=m,skip=0".parse().unwrap();
    let read = |path: &str| {
        assert_eq!(path, "m");
        Ok(training.model.clone())
    };
    let mut p = spec.build(Mode::Shadow, &read).unwrap();
    let storm = sample(Mode::Shadow, 200, 10, 0);
    let Reason::Classified { best, value, agreeing } = p.sample(&storm).reason else { panic!() };
    assert!(best == Mode::Nested && value < 0.0 && agreeing == 1);
    assert_eq!(p.sample(&storm).action, Action::Switch(Mode::Nested));
    p.switched(Outcome::Done);
    let misses = sample(Mode::Nested, 0, 4000, 0);
    let Reason::Classified { best, value, .. } = p.sample(&misses).reason else { panic!() };
    assert!(best == Mode::Shadow && value > 0.0);
}

#[test]
fn models_that_cannot_be_used_are_refused() {
    let build = |spec: &str, text: &'static str| {
        let spec: PolicySpec = spec.parse().unwrap();
        let read = |_: &str| match text {
            "" => Err(io::Error::from(io::ErrorKind::NotFound)),
            text => Ok(text.to_owned()),
        };
        spec.build(Mode::Shadow, &read).err().unwrap().to_string()
    };
    assert!(build("svm:model=gone", "").contains("gone: entity not found"));
    let error = build("svm:model=x", "nonsense");
    assert!(error.starts_with("policy svm: x: "), "{error}");
    let three = "svm_type c_svc\nkernel_type linear\nnr_class 2\ntotal_sv 1\nrho 0\nlabel 3 4\n\
                 nr_sv 1 0\nSV\n1 1:1\n";
    let error = build("svm:model=x", three);
    assert!(error.contains("two classes, 1 (shadow) and -1 (nested)"), "{error}");
    let wide = "svm_type c_svc\nkernel_type linear\nnr_class 2\ntotal_sv 2\nrho 0\nlabel 1 -1\n\
                nr_sv 1 1\nSV\n1 1:1\n-1 3:1\n";
    assert!(build("svm:model=x", wide).contains("features 1 and 2 only"));
}

#[test]
fn what_cannot_be_learned_from_is_refused() {
    let one: Vec<_> = rows().into_iter().filter(|r| r.1 == Mode::Nested).collect();
    assert_eq!(train(&one).unwrap_err(), TrainError::OneClass(Mode::Shadow));
    let mut bare = rows();
    bare[7].0.tlb_misses = None;
    assert!(train(&bare).unwrap_err().to_string().starts_with("row 8: TLB misses"));
    let idle = Sample { guest_cycles: 0, instructions: 0, ..rows()[0].0 };
    let mut with_idle = rows();
    with_idle.push((idle, Mode::Shadow));
    assert_eq!(train(&with_idle).unwrap().left_out, 1);
}

#[test]
fn two_runs_of_the_same_work_say_which_mode_was_best() {
    let slow = |mode, cycles| Sample { guest_cycles: cycles, ..sample(mode, 0, 0, 0) };
    // 1.1 % less, 1.1 % more, and 1 % less, which teaches nothing.
    let shadow = [1_000_000, 1_011_000, 1_000_000].map(|c| slow(Mode::Shadow, c));
    let nested = [1_011_000, 1_000_000, 1_010_000].map(|c| slow(Mode::Nested, c));
    let best: Vec<Mode> = best_modes(&shadow, &nested).unwrap().iter().map(|r| r.1).collect();
    assert_eq!(best, [Mode::Shadow, Mode::Shadow, Mode::Nested, Mode::Nested]);
    assert_eq!(best_modes(&shadow[..1], &nested).unwrap_err(), TrainError::Unaligned(1, 3));
    assert_eq!(best_modes(&nested, &shadow).unwrap_err(), TrainError::Modes { row: 1 });
}

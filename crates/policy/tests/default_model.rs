//! The model that comes with the policy `svm`: reproducible, and worth something.

use nestwalk_policy::{Action, Mode, PolicySpec, Reason, Sample, SampleReader, train};

const MODEL: &str = include_str!("../data/svm.model");
const ROWS: &str = include_str!("../data/rows.csv");

fn rows() -> Vec<(Sample, Mode)> {
    let reader = SampleReader::new(ROWS.as_bytes()).unwrap();
    reader.map(|row| row.unwrap()).map(|row| (row.sample, row.best_mode.unwrap())).collect()
}

#[test]
fn the_shipped_rows_train_the_shipped_model() {
    let training = train(&rows()).unwrap();
    assert!(training.model == MODEL, "run crates/policy/data/train, and say why in the commit");
    let [held, right] = training.held_out;
    assert!(held > 200 && right * 100 >= held * 90, "{right} of {held}");
    // Neither class is a handful.
    assert!(training.rows.iter().all(|n| n * 4 > rows().len()), "{:?}", training.rows);
}

/// What is plain to see: storms of faults want nested paging, misses without faults shadow paging.
#[test]
fn the_shipped_model_knows_the_plain_cases() {
    let spec: PolicySpec = "svm:skip=0,agree=1".parse().unwrap();
    let says = |mode: Mode, faults: u64, misses: u64| {
        let mut policy = spec.build(mode, &|path| panic!("{path}: no file is named")).unwrap();
        let decision = policy.sample(&Sample {
            time_ns: 1_000_000,
            duration_ns: 1_000_000,
            busy_ns: 1_000_000,
            instructions: 500_000,
            guest_cycles: 900_000,
            host_kernel_cycles: 100_000,
            host_user_cycles: 0,
            walk_cycles: Some(10_000),
            guest_page_faults: Some(faults),
            tlb_misses: Some(misses),
            vm_exits: Some(0),
            mode,
        });
        let Reason::Classified { best, .. } = decision.reason else { panic!("{decision}") };
        let switches = decision.action == Action::Switch(mode.other());
        assert_eq!(switches, best != mode);
        best
    };
    for mode in [Mode::Shadow, Mode::Nested] {
        assert_eq!(says(mode, 300, 20), Mode::Nested);
        assert_eq!(says(mode, 100, 300), Mode::Nested);
        assert_eq!(says(mode, 0, 5000), Mode::Shadow);
        assert_eq!(says(mode, 0, 1000), Mode::Shadow);
    }
}

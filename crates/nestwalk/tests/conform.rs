//! `conform`: what real KVMs answered, and what is refused.

mod common;

use common::{Lab, count};

/// Those that boot nothing.
#[test]
fn examples_of_the_help_run() {
    let lab = Lab::new();
    let help = lab.ok("conform --help");
    let examples = help.split("Examples:\n").nth(1).unwrap();
    let examples = examples.lines().map_while(|line| line.trim().strip_prefix("nestwalk "));
    let lines = examples.map(|line| line.split("  (").next().unwrap().trim());
    let (live, recorded): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.contains("--live"));
    assert!(recorded.len() >= 6 && !live.is_empty(), "{help}");
    // A thousand random scripts take a while.
    for line in recorded.into_iter().filter(|line| !line.contains("1000")) {
        lab.ok(line);
    }
}

#[test]
fn figures_of_a_recorded_guest_are_those_of_the_real_kvm() {
    let lab = Lab::new();
    for (option, paging) in [("", "shadow"), ("--nested", "nested")] {
        let found = lab.json(&format!("conform --recorded gcc --kvm 6.12 {option}"));
        let [gcc] = found["recordings"].as_array().unwrap().as_slice() else { panic!("{found}") };
        assert_eq!((gcc["paging"].as_str(), gcc["live"].as_bool()), (Some(paging), Some(false)));
        assert!(gcc["kernel"].as_str().unwrap().starts_with("6.12."), "{gcc}");
        assert_eq!((&gcc["agrees"], &gcc["machine_agrees"]), (&true.into(), &true.into()));
        assert_eq!(gcc["exits"]["kvm"], gcc["exits"]["machine"]);
        assert_eq!(gcc["events"]["kvm"], gcc["events"]["model"]);
        // Each fault has a reason, and each violation makes one entry.
        let (exits, events) = (&gcc["exits"]["kvm"], &gcc["events"]["kvm"]);
        let sum = |names: &[&str]| names.iter().map(|name| count(exits, name)).sum::<u64>();
        if paging == "nested" {
            assert_eq!(count(events, "fault"), count(exits, "ept_violation"));
            assert_eq!(count(events, "set"), count(exits, "ept_violation"));
        } else {
            let faults = ["true_fault", "hidden_fault", "table_unsync", "table_write"];
            assert_eq!(count(events, "fault"), sum(&faults));
            assert_eq!(count(events, "inject"), count(&gcc["counters"], "pf_guest"));
        }
    }
}

#[test]
fn what_was_not_asked_is_refused() {
    let lab = Lab::new();
    for (line, words) in [
        ("conform --recorded nothing", "nothing is neither storm, gcc nor redis, nor a file"),
        ("conform --recorded words", "words: KVM 6.1 was not asked; --live asks it"),
        ("conform --recorded gcc --random 3", "--random"),
        ("conform --recorded gcc --actions 10", "--live"),
        ("conform --nested --random 2000", "--live asks about more"),
    ] {
        let said = lab.refused(line);
        assert!(said.contains(words), "{line}: {said}");
    }
}

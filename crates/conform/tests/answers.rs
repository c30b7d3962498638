//! The model against what real KVMs answered, and the parts that bring the two together.

use nestwalk_conform::compare::first_difference;
use nestwalk_conform::paging::Paging;
use nestwalk_conform::program::Action;
use nestwalk_conform::script::compile;
use nestwalk_conform::sheet::{Sheet, answered, hash, recorded};
use nestwalk_conform::{Answers, model, random, scripts, trace};
use nestwalk_sim::scheme::vmm_options::KvmVersion;
use std::collections::BTreeSet;

const VERSIONS: [(&str, KvmVersion); 2] = [("6.1", KvmVersion::V6_1), ("6.12", KvmVersion::V6_12)];

fn sheet(version: &str) -> Sheet {
    Sheet::read(recorded(version, Paging::Shadow).unwrap()).unwrap()
}

/// Every script was asked, as it is now, and the model does what the real KVM did.
#[test]
fn every_event_of_every_script_agrees() {
    for (version, rules) in VERSIONS {
        let sheet = sheet(version);
        assert!(sheet.kernel.starts_with(version) && !sheet.qemu.is_empty());
        let all = scripts::all();
        assert!(all.len() >= 40);
        let names: BTreeSet<&String> = all.iter().map(|(name, _)| name).collect();
        assert_eq!(names, sheet.scripts.keys().collect(), "{version}");
        for (name, text) in &all {
            let program = compile(name, text).unwrap();
            let asked: Vec<&String> =
                sheet.scripts[name].iter().map(|(action, _)| action).collect();
            let now: Vec<String> = program.actions.iter().map(Action::to_string).collect();
            assert_eq!(asked, now.iter().collect::<Vec<_>>(), "{name}");
            let real: Answers = sheet.scripts[name].iter().map(|(_, e)| e.clone()).collect();
            let model = model::perform(&program, rules).unwrap();
            assert_eq!(first_difference(&real, &model), None, "{version}: {name}");
        }
    }
}

/// The same under nested paging: each violation, the tables that are made for it, and the entry.
#[test]
fn every_violation_of_every_script_agrees() {
    for (version, rules) in VERSIONS {
        let sheet = Sheet::read(recorded(version, Paging::Nested).unwrap()).unwrap();
        assert!(sheet.kernel.starts_with(version) && sheet.random.len() >= 100, "{version}");
        for (name, text) in &scripts::all() {
            let program = compile(name, text).unwrap();
            let real: Answers = sheet.scripts[name].iter().map(|(_, e)| e.clone()).collect();
            // A script reads its code, and tables before that.
            assert!(real[0].iter().filter(|e| e.starts_with("fault ")).count() >= 1, "{name}");
            let model = Paging::Nested.perform(&program, rules).unwrap();
            assert_eq!(first_difference(&real, &model), None, "{version}: {name}");
            let shadow = Paging::Shadow.perform(&program, rules).unwrap();
            assert!(first_difference(&real, &shadow).is_some(), "{version}: {name}");
        }
        for seed in (1..=100).step_by(4) {
            let program = random::program(seed).unwrap();
            let model = Paging::Nested.perform(&program, rules).unwrap();
            assert_eq!(hash(&answered(&program, &model)), sheet.random[&seed], "{version}: {seed}");
        }
    }
}

/// A part of the random scripts here; `nestwalk conform --random 1000` compares all.
#[test]
fn random_scripts_agree() {
    for (version, rules) in VERSIONS {
        let sheet = sheet(version);
        assert!(sheet.random.len() >= 1000, "{version}");
        for seed in (1..=1000).step_by(8) {
            let program = random::program(seed).unwrap();
            let model = model::perform(&program, rules).unwrap();
            assert_eq!(hash(&answered(&program, &model)), sheet.random[&seed], "{version}: {seed}");
        }
    }
}

/// The comparison can fail: each version's rules differ from the others' in some script.
#[test]
fn rules_of_other_versions_do_not_agree() {
    let versions = [KvmVersion::V4_19, KvmVersion::V6_1, KvmVersion::V6_12];
    for (version, rules) in VERSIONS {
        let sheet = sheet(version);
        for other in versions.into_iter().filter(|other| *other != rules) {
            let all = scripts::all();
            let differing = all.iter().filter(|(name, text)| {
                let program = compile(name, text).unwrap();
                let real: Answers = sheet.scripts[name].iter().map(|(_, e)| e.clone()).collect();
                first_difference(&real, &model::perform(&program, other).unwrap()).is_some()
            });
            assert!(differing.count() > 2, "{version} by {other:?}");
        }
    }
}

#[test]
fn sheets_are_read_as_they_are_written() {
    for (version, _) in VERSIONS {
        for paging in [Paging::Shadow, Paging::Nested] {
            let text = recorded(version, paging).unwrap();
            assert_eq!(Sheet::read(text).unwrap().text(), text);
        }
    }
    for (text, what) in [
        ("x", "line 1 of the answer sheet: it does not begin"),
        ("nestwalk answer sheet 1\nfault 0 0", "line 2 of the answer sheet: it is of no script"),
        (
            "nestwalk answer sheet 1\nscript a\nfault 0 0",
            "line 3 of the answer sheet: it is of no action",
        ),
        ("nestwalk answer sheet 1\nrandom 1", "line 2 of the answer sheet: random SEED HASH"),
    ] {
        let error = Sheet::read(text).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

/// Lines of a real trace (Linux 6.1.192) and what is made of them.
#[test]
fn lines_of_traces_are_events() {
    for (line, event) in [
        (
            "kvm_page_fault: vcpu 0 rip 0xffffffff80000010 address 0x2008 error_code 0x3",
            Some("fault 2000 3"),
        ),
        (
            "kvm_mmu_get_page: sp gen 0 gfn 2 l3 8-byte q0 w-x nxe ad root 0 sync new",
            Some("get 2 l3 w-x new"),
        ),
        (
            "kvm_mmu_get_page: sp gen 0 gfn 400 l1 8-byte q0 direct -ux nxe ad root 0 sync existing",
            Some("get 400 l1 direct -ux old"),
        ),
        (
            "kvm_mmu_set_spte: gfn 102 spte b5efa25 (r-xu) level 1 at 3703010",
            Some("set 102 l1 i2 -ux"),
        ),
        (
            "  vmm-90 [000] d..1 12.345678: kvm_mmu_set_accessed_bit: gpa 23010",
            Some("accessed 23010"),
        ),
        ("kvm_mmu_set_accessed_bit: gpa 23010", Some("accessed 23010")),
        (
            "kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000020ff8 error_code 0x200000006",
            Some("fault 20000 200000006"),
        ),
        ("kvm_emulate_insn: 0:ffff800000000010:48 89 37 (prot64)", Some("emulate")),
        ("kvm_emulate_insn: 0:ffff800000000030:0f 01 3f (prot64)", None),
        ("kvm_inj_exception: #PF (0x2)", Some("inject")),
        ("kvm_inj_exception: #PF (0x2) [reinjected]", None),
        (
            "kvm_mmu_prepare_zap_page: sp gen 0 gfn 20 l4 8-byte q0 wux invalid nxe ad root 0 sync",
            None,
        ),
        ("kvm_exit: vcpu 0 reason invlpg rip 0x0 info1 0x0", None),
    ] {
        assert_eq!(trace::event(line).as_deref(), event, "{line}");
    }
}

/// Exits are counted by reason, and lines that the kernel lost are not passed over.
#[test]
fn reports_tell_exits_counters_and_what_was_lost() {
    let text = "@script a 800\n@do 0\nkvm_exit: vcpu 0 reason PF excp rip 0x0 info1 0x0\n\
                kvm_inj_exception: #PF (0x2)\nCPU:0 [LOST 12 EVENTS]\n@counter pf_guest 1\n@close\n\
                kvm_exit: vcpu 0 reason hlt rip 0x0\n@end\n@done\n";
    let report = trace::report(text);
    assert_eq!(report.answers["a"], [["inject".to_owned()]]);
    assert_eq!(report.exits["a"].iter().next(), Some((&"PF excp".to_owned(), &1)));
    assert_eq!((report.exits["a"].len(), report.counters["a"]["pf_guest"]), (1, 1));
    assert_eq!((report.lost, report.complete), (12, true));
}

#[test]
fn scripts_that_cannot_be_are_refused_with_line_and_reason() {
    for (text, words) in [
        ("map 0 100000\nread 0", "line 2: read comes after run"),
        ("run\nspaces 2", "line 2: spaces comes before run"),
        ("map 0 100000 q", "line 1: q: q is no flag"),
        ("unmap 0", "line 1: 0 has no table of level 3"),
        ("run\ncr3 1", "line 2: space 1: there are 1"),
        ("run\njump 0", "line 2: jump is no word"),
        ("map x 0", "line 1: x is no hexadecimal number"),
        ("run\nflood 5 0 1", "line 2: level 5: there are 1 to 4"),
    ] {
        let error = compile("s", text).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn seeds_decide_random_scripts() {
    assert_eq!(random::text(7), random::text(7));
    assert_ne!(random::text(7), random::text(8));
}

//! What a host lacks is said completely, with what to do.

mod common;

use common::{Host, SKYLAKE};
use nestwalk_host::{
    Actuator, ActuatorError, LiveOptions, ModuleParameter, PmsFile, QemuProcess, Vm, find_vms,
};
use nestwalk_policy::{Counter, Mode};

const EACCES: i32 = 13;
const ENOENT: i32 = 2;

fn error(host: &Host, options: LiveOptions) -> String {
    host.open(options).map(|_| ()).expect_err("something is missing").to_string()
}

#[test]
fn a_host_without_counters_says_which_and_why() {
    let host = Host::new(1);
    host.world.borrow_mut().closed = Some((":", EACCES));
    let text = error(&host, Host::options());
    assert!(text.starts_with("missing on this host:\n  the counter instructions:G: Permission"));
    for name in ["instructions:G", "cycles:G", "cycles:Hk", "cycles:Hu"] {
        assert!(text.contains(&format!("the counter {name}: ")), "{text}");
    }
    assert!(text.contains("kernel.perf_event_paranoid is 4: run as root"), "{text}");

    let host = Host::new(1);
    host.write("proc/cpuinfo", &SKYLAKE.replace("vmx", "vmx hypervisor"));
    host.world.borrow_mut().closed = Some(("WALK_ACTIVE", ENOENT));
    let text = error(&host, Host::options());
    assert!(text.contains("the counter DTLB_LOAD_MISSES.WALK_ACTIVE: No such file"), "{text}");
    assert!(text.contains("this host is a virtual machine without that hardware counter"));
    assert!(text.contains("-cpu host,pmu=on"));
}

#[test]
fn what_the_policy_does_not_need_is_only_mentioned() {
    let host = Host::new(1);
    host.world.borrow_mut().closed = Some(("STORE_MISSES.WALK_COMPLETED", ENOENT));
    host.intervals(1);
    let (mut vm, missing) = host.open(Host::options()).unwrap();
    assert_eq!(missing.len(), 1);
    assert!(!missing[0].fatal);
    // Load misses alone are not the TLB misses.
    assert_eq!(vm.next().unwrap().tlb_misses, None);
    assert_eq!(vm.last_mode(), Mode::Shadow);
}

#[test]
fn an_unpatched_kernel_can_be_advised_only() {
    let host = Host::new(1);
    host.remove("kvm/1234-11/pms");
    host.write("sys/module/kvm_intel/parameters/ept", "Y\n");
    let text = error(&host, Host::options());
    assert!(
        text.contains("1234-11/pms does not exist; it takes a kernel with the patch"),
        "{text}"
    );
    assert!(text.contains("--dry-run"));

    host.intervals(1);
    let options = LiveOptions { dry_run: true, ..Host::options() };
    let (mut vm, missing) = host.open(options).unwrap();
    assert_eq!(vm.next().unwrap().mode, Mode::Nested);
    assert!(
        missing[0].to_string().contains("advice only, with the mode of KVM's module parameter")
    );
    assert!(vm.actuator().ends_with("kvm_intel/parameters/ept"));

    // With neither, nothing tells the mode.
    host.remove("sys/module/kvm_intel/parameters/ept");
    let options = LiveOptions { dry_run: true, ..Host::options() };
    assert!(error(&host, options).contains("the file that switches the VM's paging mode"));
}

#[test]
fn a_host_without_debugfs_says_so() {
    let host = Host::new(1);
    host.remove("kvm");
    let text = error(&host, Host::options());
    assert!(text.contains("KVM's statistics: ") && text.contains("mount -t debugfs"), "{text}");
    // The file may be elsewhere.
    host.write("elsewhere", "1\n");
    let pms = Some(host.dir.path().join("elsewhere"));
    let (vm, missing) = host.open(LiveOptions { pms, ..Host::options() }).unwrap();
    assert_eq!(vm.last_mode(), Mode::Nested);
    assert!(missing.iter().all(|m| !m.fatal));
}

#[test]
fn a_mode_file_must_say_a_mode() {
    let host = Host::new(1);
    host.write("kvm/1234-11/pms", "2\n");
    let text = error(&host, Host::options());
    assert!(text.contains("says `2`: 0 (shadow) or 1 (nested) is expected"), "{text}");

    let directory = host.dir.path().join("kvm");
    let mut file = PmsFile::new(directory);
    assert!(matches!(file.mode(), Err(ActuatorError::Read { .. })));
    let error = file.switch(Mode::Nested).unwrap_err().to_string();
    assert!(error.contains("kvm did not accept 1 (nested paging): Is a directory"), "{error}");
    let mut gone = PmsFile::new(host.dir.path().join("none"));
    assert!(matches!(gone.mode(), Err(ActuatorError::Gone(_))));
    assert!(matches!(gone.switch(Mode::Shadow), Err(ActuatorError::Gone(_))));
    host.write("sys/module/kvm_amd/parameters/npt", "0\n");
    let mut module = ModuleParameter::find(&host.roots.sys).unwrap();
    assert_eq!(module.mode().unwrap(), Mode::Shadow);
    let error = module.switch(Mode::Nested).unwrap_err().to_string();
    assert!(error.contains("until the module is loaded again"), "{error}");
}

#[test]
fn processors_without_events_are_named() {
    let host = Host::new(1);
    host.write("proc/cpuinfo", &SKYLAKE.replace("94", "151"));
    let text = error(&host, Host::options());
    assert!(
        text.contains(
            "cycles in page walks: no events are known for Intel(R) Core(TM) i5-7600 \
                           (GenuineIntel family 0x6 model 0x97)"
        ),
        "{text}"
    );
    // Whoever knows them can name them.
    let mut options = Host::options();
    options.custom.walk_cycles = vec![0x0100_1012];
    host.intervals(1);
    let (mut vm, _) = host.open(options).unwrap();
    assert_eq!(vm.next().unwrap().walk_cycles, Some(10_000));
    assert!(host.world.borrow().opened.contains(&(1240, "r1001012:G".into())));

    let zen = SKYLAKE.replace("GenuineIntel", "AuthenticAMD").replace(": 6\n", ": 25\n");
    let host = Host::new(1);
    host.write("proc/cpuinfo", &zen);
    let text = error(&host, Host::options());
    assert!(text.contains("no event of Zen counts cycles of walks, only walks; estimate them"));
    let mut options = Host::options();
    options.custom.cycles_per_walk = Some(40);
    host.intervals(1);
    let (mut vm, missing) = host.open(options).unwrap();
    assert!(missing.is_empty(), "{missing:?}");
    let sample = vm.next().unwrap();
    assert_eq!((sample.tlb_misses, sample.walk_cycles), (Some(100), Some(4000)));
}

#[test]
fn nested_walks_are_added_on_demand() {
    let host = Host::new(1);
    let mut options = Host::options();
    options.custom.nested_walks = true;
    host.intervals(1);
    let (mut vm, _) = host.open(options).unwrap();
    assert_eq!(vm.next().unwrap().walk_cycles, Some(30_000));
    assert!(host.world.borrow().opened.iter().any(|o| o.1 == "EPT.WALK_PENDING"));
}

#[test]
fn statistics_come_from_debugfs_and_from_the_guest() {
    let host = Host::new(1);
    let needs = vec![Counter::GuestPageFaults, Counter::VmExits];
    let text = error(&host, LiveOptions { needs: needs.clone(), ..Host::options() });
    assert!(text.contains("guest page faults: under nested paging they cause no exit"), "{text}");
    assert!(!text.contains("VM exits"), "{text}");

    host.write("vmstat", "nr_free_pages 7\npgfault 500\npgmajfault 3\n");
    let guest_faults = Some(host.dir.path().join("vmstat"));
    let step = |w: &mut common::World| {
        std::fs::write(w.path("vmstat"), "pgfault 700\n").unwrap();
        std::fs::write(w.path("kvm/1234-11/exits"), "1600\n").unwrap();
    };
    host.then(step);
    let options = LiveOptions { needs, guest_faults, ..Host::options() };
    let (mut vm, _) = host.open(options).unwrap();
    let sample = vm.next().unwrap();
    assert_eq!((sample.guest_page_faults, sample.vm_exits), (Some(200), Some(600)));

    // Where KVM counts faults, those are the exits for paging.
    let host = Host::new(1);
    for (name, value) in [("pf_fixed", "10"), ("pf_guest", "5"), ("invlpg", "1")] {
        host.write(&format!("kvm/1234-11/{name}"), value);
    }
    host.then(|w| {
        for (name, value) in [("pf_fixed", "30"), ("pf_guest", "9"), ("invlpg", "2")] {
            std::fs::write(w.path(&format!("kvm/1234-11/{name}")), value).unwrap();
        }
    });
    let sample = host.vm().next().unwrap();
    assert_eq!((sample.guest_page_faults, sample.vm_exits), (Some(4), Some(25)));
}

#[test]
fn shared_counters_are_scaled_and_starved_ones_are_an_error() {
    let host = Host::new(1);
    host.world.borrow_mut().running = 25;
    host.intervals(2);
    let sample = host.vm().next().unwrap();
    assert_eq!(sample.instructions, 1_000_000);
    let host = Host::new(1);
    host.world.borrow_mut().running = 0;
    host.intervals(2);
    let error = format!("{:?}", host.vm().next().unwrap_err());
    assert!(error.contains("never ran in the interval"), "{error}");
}

#[test]
fn vms_are_found_by_their_threads() {
    let host = Host::new(3);
    host.write("proc/77/stat", "77 (bash) S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 5 1 1");
    host.write("proc/77/task/77/comm", "bash\n");
    let found = find_vms(&host.roots.proc).unwrap();
    assert_eq!(found.iter().map(|p| p.pid).collect::<Vec<_>>(), [1234]);
    let vcpus = found[0].vcpus().unwrap();
    assert_eq!(
        vcpus.iter().map(|v| (v.index, v.tid)).collect::<Vec<_>>(),
        [(0, 1240), (1, 1241), (2, 1242)]
    );
    let says = |pid| QemuProcess::open(&host.roots.proc, pid).unwrap_err().to_string();
    assert!(says(77).contains("process 77 has no thread named `CPU n/KVM`"));
    assert_eq!(says(78), "there is no process 78");
}

//! QEMU's command line, word by word: what it was measured and chosen with must not change unseen.

use std::path::PathBuf;

use nestwalk_capture::{Files, Guest, Plugin, below_4g, qemu_arguments};

fn files() -> Files {
    let path = |name: &str| PathBuf::from(format!("/t/{name}"));
    Files {
        kernel: path("vmlinux"),
        image: path("root,1.cpio"),
        ram: path("ram,1"),
        console: path("console"),
        output: path("output"),
        status: path("status"),
    }
}

fn line(guest: &Guest, plugin: Option<&Plugin>) -> String {
    let words = qemu_arguments(guest, &files(), plugin);
    words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
}

const PARAMETERS: &str = "console=ttyS0 quiet loglevel=3 panic=-1 cryptomgr.notests tsc=reliable \
                          nowatchdog rcupdate.rcu_cpu_stall_suppress=1";

#[test]
fn one_vcpu_is_reproducible() {
    let expected = format!(
        "-nodefaults -no-user-config -no-reboot -display none -accel tcg,thread=single -smp 1 \
         -icount shift=1,sleep=off -rtc base=2020-01-01T00:00:00,clock=vm -seed 0 \
         -cpu max,erms=off,fsrm=off,pdpe1gb=off,la57=off -machine pc,memory-backend=ram0 \
         -m 2147483648B -object memory-backend-file,id=ram0,size=2147483648B,share=on,mem-path=/t/ram,,1 \
         -kernel /t/vmlinux -initrd /t/root,1.cpio \
         -append {PARAMETERS} norandmaps pti=off \
         -chardev file,id=console,path=/t/console -serial chardev:console \
         -chardev file,id=output,path=/t/output -serial chardev:output \
         -chardev file,id=status,path=/t/status -serial chardev:status"
    );
    assert_eq!(line(&Guest::new(Vec::new()), None), expected);
}

#[test]
fn several_vcpus_have_threads_and_no_instruction_clock() {
    let mut guest = Guest::new(Vec::new());
    guest.vcpus = 4;
    assert!(!guest.is_reproducible());
    let line = line(&guest, None);
    assert!(line.contains("-accel tcg,thread=multi -smp 4 -rtc base=2020-01-01T00:00:00 -seed 0 "));
    assert!(!line.contains("icount"));
}

#[test]
fn options_of_the_kernel_follow_the_guest() {
    let mut guest = Guest::new(Vec::new());
    (guest.pti, guest.aslr, guest.mitigations, guest.seed) = (true, true, false, 9);
    let line = line(&guest, None);
    assert!(
        line.contains(&format!("-append {PARAMETERS} pti=on mitigations=off -chardev")),
        "{line}"
    );
    assert!(line.contains(" -seed 9 "));
}

#[test]
fn commas_in_values_of_the_plugin_are_doubled() {
    let plugin = Plugin {
        path: PathBuf::from("/a,b/plugin.so"),
        arguments: vec![
            ("rings".to_owned(), "/x,y".to_owned()),
            ("boot".to_owned(), "1".to_owned()),
        ],
    };
    let line = line(&Guest::new(Vec::new()), Some(&plugin));
    assert!(line.ends_with("-plugin file=/a,,b/plugin.so,rings=/x,,y,boot=1"), "{line}");
}

/// Measured in the guest: /proc/iomem of QEMU's machine "pc" with 2, 3.5 and 4 GiB.
#[test]
fn memory_is_split_where_the_machine_splits_it() {
    assert_eq!(below_4g(2 << 30), 2 << 30);
    assert_eq!(below_4g((7 << 29) - (1 << 20)), (7 << 29) - (1 << 20));
    assert_eq!(below_4g(7 << 29), 3 << 30);
    assert_eq!(below_4g(4 << 30), 3 << 30);
}

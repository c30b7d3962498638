//! Real guests, booted. They need what scripts/guest gets, and fail without it.

mod common;

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::Temporary;
use nestwalk_capture::{Boot, Cache, Guest, GuestError, Outcome};

fn guest(command: &[&str]) -> Guest {
    let mut guest = Guest::new(command.iter().map(OsString::from).collect());
    guest.memory_bytes = 256 << 20;
    guest
}

fn boot(guest: &Guest) -> Result<Boot, GuestError> {
    guest.boot(&Cache::locate()?, &mut |step| eprintln!("{step:?}"))
}

fn run(guest: &Guest) -> (Vec<u8>, Outcome) {
    let mut output = Vec::new();
    let boot = boot(guest).unwrap_or_else(|error| panic!("{error}"));
    let outcome = boot.start(None).unwrap().wait(&mut output).unwrap_or_else(|e| panic!("{e}"));
    (output, outcome)
}

#[test]
fn output_and_status_come_back() {
    let (output, outcome) = run(&guest(&["sh", "-c", "echo hello; echo error >&2; exit 3"]));
    assert_eq!(output, b"hello\nerror\n");
    assert_eq!(outcome.status, 3);
    assert!(outcome.cpu.is_some_and(|cpu| !cpu.is_zero()));
}

#[test]
fn arguments_and_output_are_bytes() {
    let every_byte: Vec<u8> = (1..=255).collect();
    let mut guest = guest(&["printf", "%s|", "it's", "a  b\n", "$HOME \\ \"", ""]);
    guest.command.push(OsString::from_vec(every_byte.clone()));
    let (output, outcome) = run(&guest);
    let expected = [b"it's|a  b\n|$HOME \\ \"||", &every_byte[..], b"|"].concat();
    assert_eq!((output, outcome.status), (expected, 0));
}

/// What the command finds: its directory with the included files, the environment, huge pages.
#[test]
fn the_guest_is_as_described() {
    let include = Temporary::new();
    fs::create_dir(include.path().join("sub")).unwrap();
    include.program("sub/mark", nestwalk_capture::programs::marker());
    fs::write(include.path().join("text"), "included\n").unwrap();
    let script = "pwd; cat text; sub/mark 5 && nestwalk-mark 3 && echo marked; nproc; env | sort
                  cat /sys/kernel/mm/transparent_hugepage/enabled; grep -o 'pti=on' /proc/cmdline";
    let mut guest = guest(&["sh", "-c", script]);
    guest.include = Some(include.path().to_path_buf());
    guest.thp = nestwalk_capture::Thp::Madvise;
    guest.pti = true;
    guest.vcpus = 2;
    let (output, outcome) = run(&guest);
    let expected = "/work\nincluded\nmarked\n2\nHOME=/root\nLANG=C\n\
                    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/work\n\
                    SHELL=/bin/sh\nSHLVL=1\nTERM=dumb\nUSER=root\nalways [madvise] never\npti=on\n";
    assert_eq!(String::from_utf8_lossy(&output), expected);
    assert_eq!(outcome.status, 0);
}

/// Two images of the same guest are the same bytes, and the guests do the same: the time of day,
/// which follows the instructions, agrees to the nanosecond.
#[test]
fn guests_are_reproducible() {
    let guest =
        guest(&["sh", "-c", "cat /proc/uptime /proc/stat /proc/vmstat; head -c 8 /dev/urandom"]);
    let image = || fs::read(boot(&guest).unwrap().image()).unwrap();
    assert!(image() == image());
    let ((first, _), (second, _)) = (run(&guest), run(&guest));
    assert_eq!(String::from_utf8_lossy(&first), String::from_utf8_lossy(&second));
    assert!(first.len() > 1000);
}

/// A program of Debian packages, with files of the current directory that the command names.
#[test]
fn a_compiler_compiles() {
    let directory = Temporary::new();
    fs::write(directory.path().join("x.c"), "#include <stdio.h>\nint f(void) { return EOF; }\n")
        .unwrap();
    let mut guest = guest(&["gcc", "-O2", "-S", "-o", "-", "x.c"]);
    guest.include = Some(directory.path().to_path_buf());
    guest.memory_bytes = 512 << 20;
    let (output, outcome) = run(&guest);
    let text = String::from_utf8(output).unwrap();
    assert_eq!(outcome.status, 0, "{text}");
    assert!(text.contains("movl\t$-1, %eax"), "{text}");
    let (output, _) = run(&self::guest(&["cat", "tests/common/mod.rs", "./Cargo.toml"]));
    let expected = [&include_bytes!("common/mod.rs")[..], include_bytes!("../Cargo.toml")].concat();
    assert!(output == expected);
}

/// The kernel's own symbol table has the per-CPU offset; its memory has the structures.
#[test]
fn the_running_task_is_where_the_type_information_says() {
    let script = "grep -w current_task /proc/kallsyms; echo pid $$ end; exec sleep 1000";
    let boot = boot(&guest(&["sh", "-c", script])).unwrap_or_else(|error| panic!("{error}"));
    let layout = boot.kernel().task_layout().unwrap().expect("Debian's kernels have BTF");
    let ram = boot.ram().to_path_buf();
    let mut running = boot.start(None).unwrap();
    let mut output = Vec::new();
    let start = Instant::now();
    while !output.windows(4).any(|w| w == b"end\n") {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", running.console());
        assert_eq!(running.poll().unwrap(), None);
        running.pass_output(&mut output).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(500)); // for the exec
    let text = String::from_utf8(output).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(u64::from_str_radix(words[0], 16), Ok(layout.current_task), "{text}");
    let pid: u32 = words[words.iter().position(|&w| w == "pid").unwrap() + 1].parse().unwrap();
    let mut memory = Vec::new();
    fs::File::open(ram).unwrap().read_to_end(&mut memory).unwrap();
    running.kill();
    let number = |at: usize| {
        memory.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
    };
    let tasks = memory.windows(16).enumerate().filter(|(at, name)| {
        let field = |offset| number((at + offset as usize).wrapping_sub(layout.comm as usize));
        *name == b"sleep\0\0\0\0\0\0\0\0\0\0\0"
            && field(layout.pid) == Some(pid)
            && field(layout.tgid) == Some(pid)
    });
    assert_eq!(tasks.count(), 1);
}

#[test]
fn a_guest_that_dies_is_quoted() {
    let mut guest = guest(&["sh", "-c", "echo before; echo c >/proc/sysrq-trigger"]);
    guest.vcpus = 1;
    let mut output = Vec::new();
    let error =
        boot(&guest).unwrap().start(None).unwrap().wait(&mut output).unwrap_err().to_string();
    assert_eq!(output, b"before\n");
    let start = "the guest ended without the command's exit status: its kernel panicked (sysrq \
                 triggered crash); the last lines were:\n[";
    assert!(error.starts_with(start), "{error}");
}

#[test]
fn qemu_that_does_not_start_is_quoted() {
    let plugin = nestwalk_capture::Plugin {
        path: PathBuf::from("/nonexistent/plugin.so"),
        arguments: Vec::new(),
    };
    let error = match boot(&guest(&["true"])).unwrap().start(Some(&plugin)) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("started without its plugin"),
    };
    assert!(error.contains("Could not load plugin /nonexistent/plugin.so"), "{error}");
}

#[test]
fn nothing_is_left_of_a_dropped_guest() {
    let boot = boot(&guest(&["sleep", "1000"])).unwrap();
    let (image, shared) = (boot.image().to_path_buf(), boot.shared().to_path_buf());
    let running = boot.start(None).unwrap();
    let process = PathBuf::from(format!("/proc/{}", running.id()));
    assert!(image.exists() && shared.exists() && process.exists());
    drop(running);
    assert!(!image.exists() && !shared.exists() && !process.exists());
}

fn refusal(guest: &Guest) -> String {
    boot(guest).expect_err("it cannot run").to_string()
}

#[test]
fn missing_pieces_are_named_with_what_gets_them() {
    let empty = Temporary::new();
    let error = guest(&["true"]).boot(&Cache::at(empty.path().to_path_buf()), &mut |_| {});
    let text = format!(
        "a kernel for the guest in {} is missing; this gets it: nestwalk setup",
        empty.path().display()
    );
    assert_eq!(error.unwrap_err().to_string(), text);

    let mut without_qemu = guest(&["true"]);
    without_qemu.qemu = PathBuf::from("/nonexistent/qemu");
    let how = "this gets it: scripts/guest, or apt-get install qemu-system-x86 (on Debian 12 with -t \
               bookworm-backports)";
    let text = format!("QEMU's system emulator /nonexistent/qemu is missing; {how}");
    assert_eq!(refusal(&without_qemu), text);

    let old =
        empty.program("qemu", "#!/bin/sh\necho QEMU emulator version 7.2.17 'Debian 1:7.2'\n");
    let text = format!("QEMU 10.0 or newer ({} is 7.2) is missing; {how}", old.display());
    without_qemu.qemu = old;
    assert_eq!(refusal(&without_qemu), text);
}

#[test]
fn programs_that_could_not_run_are_refused() {
    let files = Temporary::new();
    let at = |path: &Path| guest(&[path.to_str().unwrap()]);
    assert!(refusal(&guest(&[])).contains("no command"));
    assert!(refusal(&at(&files.path().join("nothing"))).contains("No such file"));
    assert!(refusal(&at(&files.file("plain", "x"))).ends_with("chmod +x makes it so"));
    assert!(refusal(&at(&files.program("x", "x"))).ends_with("nor a script with #!"));
    let script = files.program("script", "#! /usr/bin/tclsh8 -f\n");
    assert!(
        refusal(&at(&script)).contains("is a script for /usr/bin/tclsh8, which the guest has not")
    );
    // Of the host: the tests' own program is dynamically linked.
    let dynamic = std::env::current_exe().unwrap();
    assert!(refusal(&at(&dynamic)).contains("is dynamically linked"));
    assert!(refusal(&guest(&["../x"])).contains("must be given by its full path"));
    let mut wrong = guest(&["true"]);
    wrong.packages.push("No Package".to_owned());
    assert!(refusal(&wrong).starts_with("\"No Package\" is not the name of a Debian package"));
    let mut small = guest(&["true"]);
    small.memory_bytes = 64 << 20;
    assert!(refusal(&small).contains("memory of 64 MiB is too small"));
    small.memory_bytes += 1;
    assert!(refusal(&small).contains("whole pages"));
    small.vcpus = 0;
    assert!(refusal(&small).contains("1 to 255"));
}

/// A file that the guest's kernel does not execute is no command that failed; a shell that finds no
/// program was started.
#[test]
fn a_command_that_could_not_start_is_told_from_one_that_failed() {
    let files = Temporary::new();
    let mut program = nestwalk_capture::programs::marker();
    program[18] = 183; // e_machine: AArch64
    let foreign = files.program("foreign", program);
    let (output, outcome) = run(&guest(&[foreign.to_str().unwrap()]));
    assert_eq!((output, outcome.status, outcome.started), (Vec::new(), 126, false));
    for (script, status) in [("nosuchprogram 2>/dev/null", 127), ("exit 126", 126)] {
        let (_, outcome) = run(&guest(&["sh", "-c", script]));
        assert_eq!((outcome.status, outcome.started), (status, true), "{script}");
    }
}

/// A root file system of the user: with directories where Debian has links, as a directory, as an
/// archive and as the image of a file system. What it has not, busybox has.
#[test]
fn a_guest_has_the_root_file_system_that_it_is_given() {
    let busybox = Cache::locate().unwrap().root().join("busybox/busybox");
    let files = Temporary::new();
    let root = files.path().join("root");
    for directory in ["bin", "etc", "dev", "srv"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(busybox, root.join("bin/theirs")).unwrap();
    std::os::unix::fs::symlink("theirs", root.join("bin/sh")).unwrap();
    fs::write(root.join("etc/motto"), "of the user\n").unwrap();
    fs::write(root.join("dev/nothing"), "a running system's\n").unwrap();
    let script = "readlink /bin/sh; [ -L /bin ] || echo directory; cat /etc/motto; wc -c </etc/motto; \
                  ls -d /srv; ls /dev/nothing 2>/dev/null";
    let at = |name: &str| files.path().join(name);
    let made = |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        let path = "/usr/bin:/bin:/usr/sbin:/sbin";
        command.args(arguments).current_dir(files.path()).env("PATH", path);
        let output = command.output().unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    made("tar", &["-czf", "root.tgz", "-C", "root", "."]);
    made("mke2fs", &["-q", "-t", "ext4", "-d", "root", "root.ext4", "16m"]);
    for name in ["root", "root.tgz", "root.ext4"] {
        let mut guest = guest(&["sh", "-c", script]);
        guest.rootfs = Some(at(name));
        let (output, _) = run(&guest);
        let text = String::from_utf8(output).unwrap();
        assert_eq!(text, "theirs\ndirectory\nof the user\n12\n/srv\n", "{name}");
    }

    let refused = |name: &str, command: &str| {
        let mut guest = guest(&[command]);
        guest.rootfs = Some(at(name));
        refusal(&guest)
    };
    let error = refused("root", "nosuchprogram");
    assert!(error.contains("no program \"nosuchprogram\" in the guest"), "{error}");
    fs::write(at("text"), "some text, of which nothing can be made").unwrap();
    assert!(refused("text", "sh").contains("begins with 73 6f 6d 65: neither a tar archive nor"));
    fs::write(at("disk"), [&[0; 510][..], &[0x55, 0xaa]].concat()).unwrap();
    assert!(refused("disk", "sh").contains("is a disk with partitions"));
    fs::create_dir(at("layers")).unwrap();
    fs::write(at("layers/manifest.json"), "[]").unwrap();
    assert!(refused("layers", "sh").contains("is a container image in layers"));
    assert!(refused("nothing", "sh").contains("cannot read the root file system"));
    let mut both = guest(&["sh"]);
    both.rootfs = Some(root);
    both.packages.push("gcc".to_owned());
    assert!(refusal(&both).contains("cannot both be had"));
}

/// A static program of the host keeps its path; a script finds busybox's shell.
#[test]
fn programs_of_the_host_run() {
    let files = Temporary::new();
    let marker = files.program("marker", nestwalk_capture::programs::marker());
    let text = format!("#!/bin/sh\n{} 4 && echo \"$0 $1\"\n", marker.display());
    let script = files.program("script", text);
    let mut guest = guest(&[script.to_str().unwrap(), "argument"]);
    guest.include = Some(files.path().to_path_buf());
    guest.command[0] = OsString::from("./script");
    // The script calls the marker by its path on the host, which the guest has not: 127.
    let (output, outcome) = run(&guest);
    assert!(String::from_utf8_lossy(&output).contains("not found"));
    assert_eq!(outcome.status, 127);
    guest.command = vec![marker.into_os_string(), OsString::from("4")];
    guest.include = None;
    assert_eq!(run(&guest).1.status, 0);
}

/// The guest's kernel sees as much memory above 4 GiB as [`nestwalk_capture::below_4g`] leaves.
#[test]
fn memory_above_4_gib_is_behind_the_hole() {
    let mut guest = guest(&["sh", "-c", "grep 'System RAM' /proc/iomem"]);
    guest.memory_bytes = 4 << 30;
    let (output, _) = run(&guest);
    let text = String::from_utf8(output).unwrap();
    let split = nestwalk_capture::below_4g(guest.memory_bytes);
    let above =
        format!("100000000-{:x} : System RAM", (4u64 << 30) + guest.memory_bytes - split - 1);
    assert!(text.contains(&above), "{text}");
}

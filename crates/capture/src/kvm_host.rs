//! A kernel whose own KVM runs a virtual machine, on a processor that QEMU emulates.
//!
//! QEMU's emulator has AMD's virtualization (SVM), so that the guest can be a host: the distribution's
//! kernel with its modules kvm and kvm-amd, an initial file system of busybox, and one program that uses
//! /dev/kvm. What the program writes to QEMU's debug console (I/O port 0xe9) comes back.

use std::env;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nestwalk_source::Packing;

use crate::apt::{self, Apt};
use crate::cache::Cache;
use crate::cpio::Archive;
use crate::error::{At, GuestError};
use crate::kernel;
use crate::pieces::{self, KERNEL_PREFIX};
use crate::qemu;
use crate::scratch::Scratch;
use crate::step::{Say, Step};

/// Where such kernels are in the cache, each with its modules.
const PLACE: &str = "kvm-kernels";
/// The modules in the order in which they are loaded.
const MODULES: [&str; 4] = ["irqbypass", "kvm", "ccp", "kvm-amd"];
/// Modules that are not unpacked: all but those above, and what lies beside them.
const LEAVE_OUT: &[&str] = &[
    "./lib/modules/*/kernel/[bfimns]*/*",
    "./lib/modules/*/kernel/drivers/[!c]*/*",
    "./usr/lib/modules/*/kernel/[bfimns]*/*",
    "./usr/lib/modules/*/kernel/drivers/[!c]*/*",
];
/// Memory of the machine in MiB.
const MEMORY_MIB: u32 = 1024;
/// Without mitigations, which only cost time here, and without looking whether it is slow.
const PARAMETERS: &str = "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nowatchdog tsc=reliable cryptomgr.notests";
/// The package of the program that uses /dev/kvm, and its file.
const VMM: &str = "nestwalk-conform-vmm";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A kernel with KVM, in the cache.
#[derive(Debug, Clone)]
pub struct KvmKernel {
    /// As `uname -r` has it.
    pub release: String,
    folder: PathBuf,
}

impl KvmKernel {
    /// The newest kernel of a version ("6.1") that has KVM: from the cache, or else the system's archives.
    ///
    /// # Errors
    /// There is none, or it cannot be had.
    pub fn of(cache: &Cache, version: &str, say: Say<'_>) -> Result<Self, GuestError> {
        let place = cache.root().join(PLACE);
        let mut here = Vec::new();
        if place.exists() {
            for entry in fs::read_dir(&place).at("list", &place)? {
                let name = entry.at("list", &place)?.file_name();
                here.extend(name.to_str().map(str::to_owned));
            }
        }
        here.retain(|release| pieces::is_called(release, version));
        if let Some(release) = here.into_iter().max_by_key(|r| pieces::numbers(r)) {
            return Ok(Self { folder: place.join(&release), release });
        }
        let _lock = cache.lock()?;
        let apt = Apt::new(cache)?;
        apt.refresh(say)?;
        // Kernels of clouds have no KVM.
        let plain = |package: &String| {
            package.strip_prefix(KERNEL_PREFIX).is_some_and(|release| {
                pieces::is_called(release, version)
                    && release.ends_with("-amd64")
                    && !["-cloud-", "-rt-", "-dbg"].iter().any(|word| release.contains(word))
                    && pieces::numbers(release).len() > 3
            })
        };
        let packages = apt.names(KERNEL_PREFIX)?.into_iter().filter(plain);
        let newest = packages.max_by_key(|package| pieces::numbers(package)).ok_or_else(|| {
            GuestError::Refused(format!(
                "this system's archives have no kernel {version} with KVM (package \
                 {KERNEL_PREFIX}{version}…-amd64); Debian 12 has 6.1, and 6.12 in its backports"
            ))
        })?;
        Self::get(cache, &apt, &newest, say)
    }

    fn get(cache: &Cache, apt: &Apt<'_>, package: &str, say: Say<'_>) -> Result<Self, GuestError> {
        let release = package.trim_start_matches(KERNEL_PREFIX).to_owned();
        let file = apt.download_one(package, say)?;
        let workshop = cache.workshop()?;
        say(Step::Begins(&format!("unpacking the kernel {release}")));
        apt::unpack(&file, &workshop, LEAVE_OUT)?;
        let finished = workshop.join("finished");
        fs::create_dir(&finished).at("create", &finished)?;
        let packed = workshop.join(format!("boot/vmlinuz-{release}"));
        let path = finished.join("vmlinux");
        fs::write(&path, kernel::unpack(&packed)?).at("write", &path)?;
        for module in MODULES {
            let from = find(&workshop, module)?.ok_or_else(|| GuestError::Malformed {
                path: file.clone(),
                what: format!("this package has no module {module}"),
            })?;
            let bytes = fs::read(&from).at("read", &from)?;
            let bytes = match Packing::of(&bytes) {
                None => bytes,
                Some(packing) => packing.unpack(&bytes).map_err(|e| GuestError::Malformed {
                    path: from.clone(),
                    what: format!("it cannot be unpacked: {e}"),
                })?,
            };
            let path = finished.join(format!("{module}.ko"));
            fs::write(&path, bytes).at("write", &path)?;
        }
        let to = Path::new(PLACE).join(&release);
        pieces::move_into(cache, &finished, &to)?;
        Ok(Self { release, folder: cache.root().join(to) })
    }
}

/// The file of a module anywhere below a folder, packed or not.
fn find(folder: &Path, module: &str) -> Result<Option<PathBuf>, GuestError> {
    for entry in fs::read_dir(folder).at("list", folder)? {
        let entry = entry.at("list", folder)?;
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().at("read", &path)?.is_dir() {
            if let Some(found) = find(&path, module)? {
                return Ok(Some(found));
            }
        } else if name.to_string_lossy().starts_with(&format!("{module}.ko")) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Builds the program that uses /dev/kvm from the repository `source`, with all of its libraries in it.
///
/// # Errors
/// There is no repository, or cargo fails; its messages are then on standard error.
pub fn build_vmm(cache: &Cache, source: &Path, say: Say<'_>) -> Result<PathBuf, GuestError> {
    let manifest = source.join("Cargo.toml");
    if !source.join("crates/conform-vmm/Cargo.toml").is_file() {
        return Err(GuestError::Missing {
            piece: format!(
                "the program that uses /dev/kvm, {}",
                source.join("crates/conform-vmm").display()
            ),
            command: "--source DIR, where DIR is a clone of the repository".to_owned(),
        });
    }
    let target = cache.root().join("conform/target");
    say(Step::Aloud(&format!("building {VMM}, from {}", source.display())));
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--release", "--locked", "--package", VMM, "--target", TARGET]);
    command.arg("--manifest-path").arg(&manifest).arg("--target-dir").arg(&target);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    command.current_dir(source).stdin(Stdio::null());
    let status = command.status().map_err(|error| GuestError::Missing {
        piece: format!("cargo, which builds {VMM} ({error})"),
        command: "https://rustup.rs".to_owned(),
    })?;
    if !status.success() {
        return Err(GuestError::Tool {
            command: format!("cargo build --release --package {VMM}"),
            message: status.to_string(),
        });
    }
    Ok(target.join(TARGET).join("release").join(VMM))
}

/// The program of the machine's first process.
fn init(npt: bool) -> String {
    let mut script = "#!/bin/sh\nset -e\n".to_owned();
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
    ] {
        script += &format!("/bin/busybox mount -t {kind} {kind} {at}\n");
    }
    for module in MODULES {
        let option =
            if module == "kvm-amd" { format!(" npt={}", u8::from(npt)) } else { String::new() };
        script += &format!("/bin/busybox insmod /{module}.ko{option}\n");
    }
    script + "/vmm /programs || true\n/bin/busybox poweroff -f\n"
}

/// Boots the kernel, has `vmm` perform `programs` under its KVM, with nested or with shadow paging, and
/// returns what it wrote.
///
/// # Errors
/// A piece is missing, or QEMU fails; what the kernel said last is quoted.
pub fn run_under_kvm(
    cache: &Cache,
    qemu: &Path,
    kernel: &KvmKernel,
    (vmm, programs): (&Path, &str),
    npt: bool,
) -> Result<Vec<u8>, GuestError> {
    let scratch = Scratch::new(0)?;
    let (image, console, out) =
        (scratch.file("image"), scratch.file("console"), scratch.file("out"));
    let busybox = pieces::busybox(cache)?.path;
    let file = File::create(&image).at("create", &image)?;
    let write = |e| GuestError::Io { action: "write", path: image.clone(), source: e };
    let mut archive = Archive::new(BufWriter::new(file));
    for name in ["bin", "dev", "proc", "sys"] {
        archive.directory(name.as_bytes(), 0o755).map_err(write)?;
    }
    archive.link(b"bin/sh", b"busybox").map_err(write)?;
    archive.file(b"init", 0o755, init(npt).as_bytes()).map_err(write)?;
    archive.file(b"programs", 0o644, programs.as_bytes()).map_err(write)?;
    let mut add = |name: String, mode, from: &Path| {
        archive.file(name.as_bytes(), mode, &fs::read(from).at("read", from)?).map_err(write)
    };
    add("bin/busybox".to_owned(), 0o755, &busybox)?;
    add("vmm".to_owned(), 0o755, vmm)?;
    for module in MODULES {
        let name = format!("{module}.ko");
        add(name.clone(), 0o644, &kernel.folder.join(&name))?;
    }
    let whole = archive.finish().map_err(write)?;
    whole.into_inner().map_err(|e| write(e.into_error()))?;
    let mut command = Command::new(qemu);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-machine",
        "pc",
    ]);
    command.args(["-accel", "tcg,thread=single", "-cpu", "EPYC,+svm,+npt", "-append", PARAMETERS]);
    command.args([
        "-m",
        &MEMORY_MIB.to_string(),
        "-device",
        "isa-debugcon,iobase=0xe9,chardev=out",
    ]);
    command.arg("-kernel").arg(kernel.folder.join("vmlinux")).arg("-initrd").arg(&image);
    for (id, path) in [("out", &out), ("console", &console)] {
        command.arg("-chardev").arg(qemu::with_path(&format!("file,id={id},path="), path));
    }
    command.args(["-serial", "chardev:console"]);
    apt::output(command)?;
    let written = fs::read(&out).at("read", &out)?;
    if written.is_empty() {
        let said = fs::read(&console).at("read", &console)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        let last_words = lines[lines.len().saturating_sub(10)..].join("\n");
        let reason = "the program that uses /dev/kvm wrote nothing".to_owned();
        return Err(GuestError::Died { reason, last_words });
    }
    Ok(written)
}

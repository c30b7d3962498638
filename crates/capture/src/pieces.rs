//! What every guest needs whatever it runs: QEMU, a kernel, busybox. And how each is got.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{self, Apt};
use crate::cache::Cache;
use crate::error::{At, GuestError};
use crate::kernel::{self, Kernel};
use crate::userland;

/// The command that gets QEMU, the kernel and busybox.
const INSTALL: &str = "scripts/guest";
/// The package that always depends on the newest of Debian's kernels for virtual machines.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// The first QEMU with version 4 of the plugin interface, which has the values of stores.
const QEMU_OLDEST: (u32, u32) = (10, 0);

/// busybox, and the programs that it can be.
#[derive(Debug, Clone)]
pub(crate) struct Busybox {
    pub path: PathBuf,
    /// Paths without the leading slash, in the merged `/usr`: `usr/bin/gzip`.
    pub applets: BTreeSet<Vec<u8>>,
}

/// Gets what is missing of kernel, busybox and `packages` into the cache, and checks QEMU.
///
/// Says on the way what it does. Nothing is asked of the network if everything is there.
///
/// # Errors
/// If QEMU is missing or too old, a download fails, or something downloaded is not what it should
/// be.
pub fn prepare(
    cache: &Cache,
    qemu: &Path,
    packages: &[String],
    say: &mut dyn FnMut(&str),
) -> Result<(), GuestError> {
    let (major, minor) = qemu_version(qemu)?;
    say(&format!("QEMU {major}.{minor}: {}", qemu.display()));
    if find_kernel(cache)?.is_none() {
        get_kernel(cache, say)?;
    }
    let kernel = kernel(cache)?;
    say(&format!("kernel {}: {}", kernel.release, kernel.vmlinux.display()));
    if busybox(cache).is_err() {
        get_busybox(cache, say)?;
    }
    let busybox = busybox(cache)?;
    say(&format!("busybox, {} programs: {}", busybox.applets.len(), busybox.path.display()));
    if !packages.is_empty() {
        let userland = userland::of(cache, &packages.iter().cloned().collect(), say)?;
        if let Some(archive) = userland.archive {
            say(&format!(
                "{}, {} packages: {}",
                packages.join(", "),
                userland.versions.len(),
                archive.display()
            ));
        }
    }
    Ok(())
}

/// QEMU's version, major and minor.
///
/// # Errors
/// If it is not there, does not say, or is too old for the plugin.
pub fn qemu_version(qemu: &Path) -> Result<(u32, u32), GuestError> {
    let mut command = Command::new(qemu);
    command.arg("--version");
    let missing = |piece| GuestError::Missing { piece, command: INSTALL.to_owned() };
    let output = match apt::output(command) {
        Err(GuestError::Missing { .. }) => {
            return Err(missing(format!("QEMU's system emulator {}", qemu.display())));
        }
        other => other?,
    };
    // "QEMU emulator version 10.0.2 (Debian …)"
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = said.split_once("version ").and_then(|(_, rest)| {
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    });
    let what = "does not say its version".to_owned();
    let version = version.ok_or(GuestError::Malformed { path: qemu.to_path_buf(), what })?;
    if version < QEMU_OLDEST {
        let ((major, minor), (m, n)) = (version, QEMU_OLDEST);
        return Err(missing(format!(
            "QEMU {m}.{n} or newer ({} is {major}.{minor})",
            qemu.display()
        )));
    }
    Ok(version)
}

/// The kernel in the cache; of several, the one whose release sorts last by number.
pub(crate) fn kernel(cache: &Cache) -> Result<Kernel, GuestError> {
    find_kernel(cache)?.ok_or_else(|| GuestError::Missing {
        piece: format!("a kernel for the guest in {}", cache.root().display()),
        command: INSTALL.to_owned(),
    })
}

fn find_kernel(cache: &Cache) -> Result<Option<Kernel>, GuestError> {
    let kernels = cache.root().join("kernels");
    if !kernels.exists() {
        return Ok(None);
    }
    let mut releases = Vec::new();
    for entry in fs::read_dir(&kernels).at("list", &kernels)? {
        let name = entry.at("list", &kernels)?.file_name();
        releases.extend(name.to_str().map(str::to_owned));
    }
    let numbers = |release: &str| -> Vec<u64> {
        release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
    };
    Ok(releases.into_iter().max_by_key(|release| numbers(release)).map(|release| {
        let vmlinux = kernels.join(&release).join("vmlinux");
        Kernel { release, vmlinux }
    }))
}

fn get_kernel(cache: &Cache, say: &mut dyn FnMut(&str)) -> Result<(), GuestError> {
    let _lock = cache.lock()?;
    let apt = Apt::new(cache)?;
    apt.refresh(say)?;
    let package = apt.dependency(KERNEL_PACKAGE, "linux-image-")?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    say(&format!("downloading {package}"));
    let file = apt.download_one(&package)?;
    let workshop = cache.workshop()?;
    apt::unpack(&file, &workshop, &["./lib/*", "./usr/*"])?;
    let vmlinux = kernel::unpack(&workshop.join("boot").join(format!("vmlinuz-{release}")))?;
    let finished = workshop.join("finished");
    fs::create_dir(&finished).at("create", &finished)?;
    let path = finished.join("vmlinux");
    fs::write(&path, vmlinux).at("write", &path)?;
    move_into(cache, &finished, &Path::new("kernels").join(release))
}

/// The busybox in the cache.
pub(crate) fn busybox(cache: &Cache) -> Result<Busybox, GuestError> {
    let place = cache.root().join("busybox");
    if !place.exists() {
        return Err(GuestError::Missing {
            piece: format!("busybox for the guest in {}", cache.root().display()),
            command: INSTALL.to_owned(),
        });
    }
    let applets = place.join("applets");
    let applets = fs::read(&applets).at("read", &applets)?;
    // All but "linuxrc", the name of an older kind of init.
    let applets = applets.split(|&b| b == b'\n').map(userland::merged);
    let applets = applets.filter(|path| path.starts_with(b"usr/")).collect();
    Ok(Busybox { path: place.join("busybox"), applets })
}

fn get_busybox(cache: &Cache, say: &mut dyn FnMut(&str)) -> Result<(), GuestError> {
    let _lock = cache.lock()?;
    let apt = Apt::new(cache)?;
    apt.refresh(say)?;
    say("downloading busybox-static");
    let file = apt.download_one("busybox-static")?;
    let workshop = cache.workshop()?;
    apt::unpack(&file, &workshop, &["./usr/*"])?;
    let finished = workshop.join("finished");
    fs::create_dir(&finished).at("create", &finished)?;
    let path = finished.join("busybox");
    fs::rename(workshop.join("bin/busybox"), &path).at("move", &path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).at("write", &path)?;
    let mut command = Command::new(&path);
    command.arg("--list-full");
    let applets = apt::output(command)?.stdout;
    let listing = finished.join("applets");
    fs::write(&listing, applets).at("write", &listing)?;
    move_into(cache, &finished, Path::new("busybox"))
}

/// Makes a finished piece visible; with the lock held.
fn move_into(cache: &Cache, finished: &Path, to: &Path) -> Result<(), GuestError> {
    let place = cache.root().join(to);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    if place.exists() {
        fs::remove_dir_all(&place).at("replace", &place)?;
    }
    fs::rename(finished, &place).at("create", &place)?;
    let workshop = cache.workshop()?;
    fs::remove_dir_all(&workshop).at("delete", &workshop)
}

//! What every guest needs whatever it runs: QEMU, a kernel, busybox. And how each is got.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{self, Apt};
use crate::cache::Cache;
use crate::error::{At, GuestError};
use crate::kernel::{self, Kernel, KernelChoice};
use crate::step::{Say, Step};
use crate::userland;

/// The command that gets the plugin, the kernel and busybox.
pub(crate) const SETUP: &str = "nestwalk setup";
/// What gets QEMU: scripts/guest does it on Debian and Ubuntu.
const INSTALL_QEMU: &str = "scripts/guest, or apt-get install qemu-system-x86 (on Debian 12 with -t \
                            bookworm-backports)";
/// Packages that always depend on the newest kernel for virtual machines: of Debian, of Ubuntu.
const KERNEL_PACKAGES: &[&str] = &["linux-image-cloud-amd64", "linux-image-virtual"];
/// Of every package of a kernel.
pub(crate) const KERNEL_PREFIX: &str = "linux-image-";
/// Where kernels are in the cache: the newest, and those that were asked for by name.
const NEWEST: &str = "kernels";
const BY_NAME: &str = "kernels-by-name";
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
    choice: &KernelChoice,
    packages: &[String],
    say: Say<'_>,
) -> Result<(), GuestError> {
    let (major, minor) = qemu_version(qemu)?;
    say(Step::Found(&format!("QEMU {major}.{minor}: {}", qemu.display())));
    let kernel = match choice {
        KernelChoice::Newest => {
            if find_kernel(cache)?.is_none() {
                get_newest(cache, say)?;
            }
            newest(cache)?
        }
        // Unpacked for each guest; here it is only looked at.
        KernelChoice::File(path) => {
            Kernel { release: Kernel::look_at(path)?, vmlinux: path.clone() }
        }
        KernelChoice::Named(name) => named(cache, name, say)?,
    };
    say(Step::Found(&format!("kernel {}: {}", kernel.release, kernel.vmlinux.display())));
    if busybox(cache).is_err() {
        get_busybox(cache, say)?;
    }
    let busybox = busybox(cache)?;
    let programs = busybox.applets.len();
    say(Step::Found(&format!("busybox, {programs} programs: {}", busybox.path.display())));
    if !packages.is_empty() {
        let userland = userland::of(cache, &packages.iter().cloned().collect(), say)?;
        if let Some(archive) = userland.archive {
            let (names, all) = (packages.join(", "), userland.versions.len());
            say(Step::Found(&format!("{names}, {all} packages: {}", archive.display())));
        }
    }
    Ok(())
}

/// What of a guest's pieces is in the cache.
#[derive(Debug)]
pub struct Installed {
    /// The newest kernel.
    pub kernel: Result<Kernel, GuestError>,
    /// The file of busybox.
    pub busybox: Result<PathBuf, GuestError>,
}

/// Looks into the cache, and gets nothing.
pub fn installed(cache: &Cache) -> Installed {
    Installed { kernel: newest(cache), busybox: busybox(cache).map(|b| b.path) }
}

/// QEMU's version, major and minor.
///
/// # Errors
/// If it is not there, does not say, or is too old for the plugin.
pub fn qemu_version(qemu: &Path) -> Result<(u32, u32), GuestError> {
    let mut command = Command::new(qemu);
    command.arg("--version");
    let missing = |piece| GuestError::Missing { piece, command: INSTALL_QEMU.to_owned() };
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

/// The kernel of a guest; one in a file of the user is unpacked into `to`.
pub(crate) fn kernel(
    cache: &Cache,
    choice: &KernelChoice,
    to: &Path,
    say: Say<'_>,
) -> Result<Kernel, GuestError> {
    match choice {
        KernelChoice::Newest => newest(cache),
        KernelChoice::Named(name) => named(cache, name, say),
        KernelChoice::File(path) => Kernel::of_file(path, to),
    }
}

/// The kernel that guests get if none is asked for; of several, the one whose release sorts last by
/// number.
fn newest(cache: &Cache) -> Result<Kernel, GuestError> {
    find_kernel(cache)?.ok_or_else(|| GuestError::Missing {
        piece: format!("a kernel for the guest in {}", cache.root().display()),
        command: SETUP.to_owned(),
    })
}

fn find_kernel(cache: &Cache) -> Result<Option<Kernel>, GuestError> {
    let kernels = kernels_in(cache, NEWEST)?;
    Ok(kernels.into_iter().max_by_key(|kernel| numbers(&kernel.release)))
}

/// The numbers in a release or the name of a package, by which they sort.
pub(crate) fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

fn kernels_in(cache: &Cache, directory: &str) -> Result<Vec<Kernel>, GuestError> {
    let kernels = cache.root().join(directory);
    if !kernels.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&kernels).at("list", &kernels)? {
        let name = entry.at("list", &kernels)?.file_name();
        if let Some(release) = name.to_str().map(str::to_owned) {
            let vmlinux = kernels.join(&release).join("vmlinux");
            found.push(Kernel { release, vmlinux });
        }
    }
    Ok(found)
}

/// Whether a release, or the rest of a package's name, is of the version `name`, or is `name` itself.
pub(crate) fn is_called(release: &str, name: &str) -> bool {
    release.strip_prefix(name).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The better of several kernels sorts last: for virtual machines, then for any, then what is special.
fn preference(release: &str) -> (u8, Vec<u64>) {
    let flavour = ["-cloud-amd64", "-amd64", "-virtual", "-generic"];
    let place = flavour.iter().position(|f| release.ends_with(f)).unwrap_or(flavour.len());
    // "6.12.9-rt-amd64" and "6.12.9-cloud-amd64-unsigned" are special.
    let special = ["-rt-", "-unsigned", "-dbg"].iter().any(|s| release.contains(s));
    (if special { 0 } else { (flavour.len() + 1 - place) as u8 }, numbers(release))
}

/// The kernel of that name: from the cache, or else from the packages of the system's archives.
fn named(cache: &Cache, name: &str, say: Say<'_>) -> Result<Kernel, GuestError> {
    let wanted = name.strip_prefix(KERNEL_PREFIX).unwrap_or(name);
    let here = || -> Result<Option<Kernel>, GuestError> {
        let mut kernels = kernels_in(cache, BY_NAME)?;
        kernels.extend(kernels_in(cache, NEWEST)?);
        kernels.retain(|kernel| is_called(&kernel.release, wanted));
        Ok(kernels.into_iter().max_by_key(|kernel| preference(&kernel.release)))
    };
    if let Some(kernel) = here()? {
        return Ok(kernel);
    }
    let _lock = cache.lock()?;
    let apt = Apt::new(cache)?;
    apt.refresh(say)?;
    let mut packages = apt.names(KERNEL_PREFIX)?;
    // One that only depends on the newest of its kind has no version of its own in its name.
    if packages.iter().any(|p| p == name) && !wanted.starts_with(|c: char| c.is_ascii_digit()) {
        let package = apt.dependency(name, KERNEL_PREFIX)?;
        return get_kernel(cache, &apt, &package, BY_NAME, say);
    }
    let release = |package: &String| package[KERNEL_PREFIX.len()..].to_owned();
    packages.retain(|p| release(p).starts_with(|c: char| c.is_ascii_digit()));
    let matching = packages.iter().filter(|p| is_called(&release(p), wanted));
    match matching.max_by_key(|p| preference(&release(p))) {
        Some(package) => get_kernel(cache, &apt, package, BY_NAME, say),
        None => {
            let mut versions: Vec<String> =
                packages.iter().map(|p| release(p).split('-').take(1).collect()).collect();
            versions.sort_by_key(|version| numbers(version));
            versions.dedup();
            Err(GuestError::Refused(format!(
                "no kernel {name}: it is neither a file nor a package {KERNEL_PREFIX}{wanted}… of this \
                 system's archives, which have {}; Debian has newer ones in its backports",
                if versions.is_empty() { "none".to_owned() } else { versions.join(", ") }
            )))
        }
    }
}

fn get_newest(cache: &Cache, say: Say<'_>) -> Result<Kernel, GuestError> {
    let _lock = cache.lock()?;
    let apt = Apt::new(cache)?;
    apt.refresh(say)?;
    let mut packages = KERNEL_PACKAGES.iter().map(|of| apt.dependency(of, KERNEL_PREFIX));
    let package = packages.find_map(Result::ok).ok_or_else(|| {
        GuestError::Refused(format!(
            "this system's archives have no kernel for virtual machines (package {}): name another with \
             --kernel",
            KERNEL_PACKAGES.join(" or ")
        ))
    })?;
    get_kernel(cache, &apt, &package, NEWEST, say)
}

/// Downloads and unpacks the kernel of a package; with the lock held.
fn get_kernel(
    cache: &Cache,
    apt: &Apt<'_>,
    package: &str,
    to: &str,
    say: Say<'_>,
) -> Result<Kernel, GuestError> {
    let release = package.trim_start_matches(KERNEL_PREFIX).to_owned();
    let file = apt.download_one(package, say)?;
    let workshop = cache.workshop()?;
    say(Step::Begins(&format!("unpacking the kernel {release}")));
    // Modules would be unpacked for nothing.
    apt::unpack(&file, &workshop, &["./lib/modules/*", "./usr/lib/modules/*/kernel/*"])?;
    let places = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
    let packed = only(&file, &workshop, &places)?;
    let vmlinux = kernel::unpack(&packed)?;
    let finished = workshop.join("finished");
    fs::create_dir(&finished).at("create", &finished)?;
    let path = finished.join("vmlinux");
    fs::write(&path, vmlinux).at("write", &path)?;
    let place = Path::new(to).join(&release);
    move_into(cache, &finished, &place)?;
    Ok(Kernel { release, vmlinux: cache.root().join(place).join("vmlinux") })
}

/// The file that a package has at one of these places of `tree`, where it was unpacked.
fn only(package: &Path, tree: &Path, places: &[String]) -> Result<PathBuf, GuestError> {
    let mut paths = places.iter().map(|place| tree.join(place));
    paths.find(|path| path.is_file()).ok_or_else(|| GuestError::Malformed {
        path: package.to_path_buf(),
        what: format!("this package has no {}", places.join(" and no ")),
    })
}

/// The busybox in the cache.
pub(crate) fn busybox(cache: &Cache) -> Result<Busybox, GuestError> {
    let place = cache.root().join("busybox");
    if !place.exists() {
        return Err(GuestError::Missing {
            piece: format!("busybox for the guest in {}", cache.root().display()),
            command: SETUP.to_owned(),
        });
    }
    let applets = place.join("applets");
    let applets = fs::read(&applets).at("read", &applets)?;
    // All but "linuxrc", the name of an older kind of init.
    let applets = applets.split(|&b| b == b'\n').map(userland::merged);
    let applets = applets.filter(|path| path.starts_with(b"usr/")).collect();
    Ok(Busybox { path: place.join("busybox"), applets })
}

fn get_busybox(cache: &Cache, say: Say<'_>) -> Result<(), GuestError> {
    let _lock = cache.lock()?;
    let apt = Apt::new(cache)?;
    apt.refresh(say)?;
    let file = apt.download_one("busybox-static", say)?;
    let workshop = cache.workshop()?;
    apt::unpack(&file, &workshop, &["./usr/share/*"])?;
    // Debian 13 has it below /usr.
    let program =
        only(&file, &workshop, &["bin/busybox".to_owned(), "usr/bin/busybox".to_owned()])?;
    let finished = workshop.join("finished");
    fs::create_dir(&finished).at("create", &finished)?;
    let path = finished.join("busybox");
    fs::rename(&program, &path).at("move", &program)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).at("write", &path)?;
    let mut command = Command::new(&path);
    command.arg("--list-full");
    let applets = apt::output(command)?.stdout;
    let listing = finished.join("applets");
    fs::write(&listing, applets).at("write", &listing)?;
    move_into(cache, &finished, Path::new("busybox"))
}

/// Makes a finished piece visible; with the lock held.
pub(crate) fn move_into(cache: &Cache, finished: &Path, to: &Path) -> Result<(), GuestError> {
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

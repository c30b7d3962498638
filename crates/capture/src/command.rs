//! From the command's words to a program in the guest, and the files that it needs there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use crate::apt::Apt;
use crate::cache::Cache;
use crate::elf;
use crate::error::{At, GuestError};
use crate::pieces::Busybox;
use crate::programs;
use crate::step::{Say, Step};
use crate::userland::{self, Userland};

/// The directory in which the command runs, with what was included.
pub const WORK: &str = "/work";
/// Where the guest looks for programs.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs that come in packages of other names, or need more than their package to be of use.
const PACKAGES: &[(&str, &[&str])] = &[
    ("ar", &["binutils"]),
    ("as", &["binutils"]),
    ("c++", &["g++", "libc6-dev"]),
    ("cc", &["gcc", "libc6-dev"]),
    ("clang", &["clang", "libc6-dev"]),
    ("cpp", &["cpp", "libc6-dev"]),
    ("g++", &["g++", "libc6-dev"]),
    ("gcc", &["gcc", "libc6-dev"]),
    ("gfortran", &["gfortran", "libc6-dev"]),
    ("ld", &["binutils"]),
    ("lua", &["lua5.4"]),
    ("nm", &["binutils"]),
    ("node", &["nodejs"]),
    ("objdump", &["binutils"]),
    ("perl", &["perl-base"]),
    ("php", &["php-cli"]),
    ("python3", &["python3-minimal"]),
    ("readelf", &["binutils"]),
    ("redis-benchmark", &["redis-tools"]),
    ("redis-cli", &["redis-tools"]),
    ("rustc", &["rustc", "libc6-dev"]),
];

/// What the guest must hold and do for a command.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The program's path, as the launcher executes it.
    pub program: Vec<u8>,
    pub userland: Userland,
    /// Files of the host by their path in the guest, without the leading slash.
    pub files: BTreeMap<Vec<u8>, PathBuf>,
}

/// Finds the command's program, in this order: in the packages that were asked for and the one that
/// is known for it, in busybox, in a package of its own name. With a slash in its name, it is a
/// file: included, of the current directory, of the guest or of the host.
///
/// # Errors
/// If there is no such program anywhere, or it could not run in the guest.
pub(crate) fn plan(
    command: &[OsString],
    packages: &[String],
    root: Option<Userland>,
    include: Option<&Path>,
    cache: &Cache,
    busybox: &Busybox,
    say: Say<'_>,
) -> Result<Plan, GuestError> {
    let Some(name) = command.first().filter(|name| !name.is_empty()) else {
        return Err(GuestError::Refused("no command for the guest".to_owned()));
    };
    let mut packages: BTreeSet<String> = packages.iter().cloned().collect();
    let files = named_files(&command[1..], include)?;
    let text = name.to_string_lossy();
    let of_the_user = root.is_some();
    if let Some((_, known)) = PACKAGES.iter().find(|(program, _)| *program == text)
        && !of_the_user
    {
        packages.extend(known.iter().map(|&package| package.to_owned()));
    }
    let userland = match root {
        Some(root) => root,
        None => userland::of(cache, &packages, say)?,
    };
    if name.as_bytes().contains(&b'/') {
        return plan_path(name, userland, files, include, busybox);
    }
    let here = find(name.as_bytes(), &userland);
    let ours = BTreeSet::from([programs::MARKER_PATH.as_bytes().to_vec()]);
    let here = here.or_else(|| find_in(name.as_bytes(), &ours));
    if let Some(program) = here.or_else(|| find_in(name.as_bytes(), &busybox.applets)) {
        return Ok(Plan { program, userland, files });
    }
    if of_the_user {
        let whose = userland.versions.join(", ");
        return Err(GuestError::Refused(format!(
            "no program {text:?} in the guest: the {whose} has none in {PATH}, and busybox neither"
        )));
    }
    let (package, why) = match provider(cache, &text, say)? {
        Some(package) if package != text => {
            let why = format!("{text} is in Debian's package {package}, which is installed");
            (package, Some(why))
        }
        _ => (text.clone().into_owned(), None),
    };
    if let Some(why) = why {
        say(Step::Found(&why));
    }
    packages.insert(package);
    let advice = |reason: String| {
        GuestError::Refused(format!(
            "no program {text:?} for the guest ({reason}); say which Debian package has it with \
             --package NAME, or give the path of a static program"
        ))
    };
    let userland = userland::of(cache, &packages, say).map_err(|error| match error {
        GuestError::Refused(message) => advice(message),
        other => other,
    })?;
    match find(name.as_bytes(), &userland) {
        Some(program) => Ok(Plan { program, userland, files }),
        None => {
            let packages: Vec<_> = packages.into_iter().collect();
            Err(advice(format!("package {} has none", packages.join(", "))))
        }
    }
}

/// The package that has the program `name`, if only one has; the package of that name if there is one.
///
/// # Errors
/// Several have it; the text names them.
fn provider(cache: &Cache, name: &str, say: Say<'_>) -> Result<Option<String>, GuestError> {
    let _lock = cache.lock()?;
    let apt = Apt::new(cache)?;
    apt.refresh(say)?;
    if apt.names(name)?.iter().any(|package| package == name) {
        return Ok(None);
    }
    let mut providers = apt.providers(name, say)?;
    if providers.is_empty() {
        return Ok(None);
    }
    if let [_] = providers.as_slice() {
        return Ok(providers.pop());
    }
    Err(GuestError::Refused(format!(
        "no program {name:?} for the guest: several Debian packages have it; say which with --package NAME: \
         {}",
        providers.join(", ")
    )))
}

/// The first of the guest's directories of programs that has `name`.
pub(crate) fn find(name: &[u8], userland: &Userland) -> Option<Vec<u8>> {
    PATH.split(':').find_map(|directory| {
        let path = [directory.as_bytes(), b"/", name].concat();
        userland.has(&path).then_some(path)
    })
}

fn find_in(name: &[u8], contents: &BTreeSet<Vec<u8>>) -> Option<Vec<u8>> {
    PATH.split(':').find_map(|directory| {
        let path = [directory.as_bytes(), b"/", name].concat();
        contents.contains(&userland::merged(&path)).then_some(path)
    })
}

fn plan_path(
    name: &OsStr,
    userland: Userland,
    mut files: BTreeMap<Vec<u8>, PathBuf>,
    include: Option<&Path>,
    busybox: &Busybox,
) -> Result<Plan, GuestError> {
    let path = Path::new(name);
    let program = name.as_bytes().to_vec();
    let in_guest =
        |path: &[u8]| userland.has(path) || busybox.applets.contains(&userland::merged(path));
    let (host, guest) = if path.is_absolute() {
        if in_guest(name.as_bytes()) {
            return Ok(Plan { program, userland, files });
        }
        (path.to_path_buf(), userland::merged(name.as_bytes()))
    } else {
        let below = below_work(path).ok_or_else(|| {
            GuestError::Refused(format!(
                "{}: a program outside the current directory must be given by its full path",
                path.display()
            ))
        })?;
        let included = include.map(|directory| directory.join(path)).filter(|p| p.exists());
        let host = included.unwrap_or_else(|| path.to_path_buf());
        (host, [&WORK.as_bytes()[1..], b"/", &below].concat())
    };
    check_program(&host, &in_guest)?;
    files.insert(guest, host);
    Ok(Plan { program, userland, files })
}

/// Whether a file of the host can be a program of the guest.
fn check_program(host: &Path, in_guest: &dyn Fn(&[u8]) -> bool) -> Result<(), GuestError> {
    let meta = fs::metadata(host).at("find the program", host)?;
    let refuse = |why: &str| GuestError::Refused(format!("{} {why}", host.display()));
    if !meta.is_file() {
        return Err(refuse("is not a file"));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(refuse("is not executable; chmod +x makes it so"));
    }
    let file = fs::read(host).at("read", host)?;
    let lines =
        file.strip_prefix(b"#!").map(|rest| rest.split(|&b| b == b'\n').next().unwrap_or(rest));
    if let Some(line) = lines {
        let words = line.split(|b| b.is_ascii_whitespace());
        let interpreter = words.into_iter().find(|word| !word.is_empty()).unwrap_or_default();
        if in_guest(interpreter) {
            return Ok(());
        }
        let interpreter = String::from_utf8_lossy(interpreter);
        return Err(refuse(&format!(
            "is a script for {interpreter}, which the guest has not: name its package with --package"
        )));
    }
    if !elf::is_elf64(&file) {
        return Err(refuse("is neither a 64-bit ELF program nor a script with #!"));
    }
    match elf::interpreter(&file) {
        Some(loader) if !in_guest(loader) => Err(refuse(
            "is dynamically linked, and its libraries are not in the guest: link it with -static, or \
             name the packages of its libraries, such as --package libc6",
        )),
        _ => Ok(()),
    }
}

/// The most that a directory may hold which an argument names: all of it must be in the guest's memory.
const MOST_BYTES: u64 = 1 << 30;

/// Files that the arguments name, by their path in the guest: `FILE`, `OPTION=FILE` and `@FILE`, of the
/// current directory or by their full path, and whole directories. Those that are in the included
/// directory come with it, and full paths of a system, such as `/dev/null`, are the guest's own.
fn named_files(
    arguments: &[OsString],
    include: Option<&Path>,
) -> Result<BTreeMap<Vec<u8>, PathBuf>, GuestError> {
    let mut files = BTreeMap::new();
    let mut left = MOST_BYTES;
    for argument in arguments {
        let bytes = argument.as_bytes();
        let behind = bytes.iter().position(|&b| b == b'=').map(|at| &bytes[at + 1..]);
        let candidates = [Some(bytes), behind, bytes.strip_prefix(b"@")];
        for path in candidates.into_iter().flatten().map(|b| Path::new(OsStr::from_bytes(b))) {
            let Some(guest) = place_of(path) else { continue };
            let included = include.is_some_and(|directory| directory.join(path).exists());
            if !included && path.exists() {
                take(path, guest, &mut files, &mut left)?;
                break;
            }
        }
    }
    Ok(files)
}

/// Where a file that an argument names is in the guest; `None` for those that the guest has itself.
fn place_of(path: &Path) -> Option<Vec<u8>> {
    /// Of homes and data of users, beside which a system has its own directories.
    const OF_USERS: &[&str] =
        &["home", "root", "srv", "mnt", "media", "data", "tmp", "work", "opt"];
    if let Some(below) = below_work(path) {
        return Some([&WORK.as_bytes()[1..], b"/", &below].concat());
    }
    let below = below_work(path.strip_prefix("/").ok()?)?;
    let top = below.split(|&b| b == b'/').next().unwrap_or_default();
    // A whole directory at the top is more than a command means to read.
    let is_users = OF_USERS.iter().any(|of| of.as_bytes() == top) && top.len() < below.len();
    is_users.then_some(below)
}

/// Takes a file, or all files of a directory, into the guest.
fn take(
    path: &Path,
    guest: Vec<u8>,
    files: &mut BTreeMap<Vec<u8>, PathBuf>,
    left: &mut u64,
) -> Result<(), GuestError> {
    let meta = fs::metadata(path).at("read", path)?;
    if meta.is_file() {
        fs::File::open(path).at("read", path)?;
        *left = left.checked_sub(meta.len()).ok_or_else(|| {
            GuestError::Refused(format!(
                "what the arguments name, up to {}, is more than {} MiB: name single files, or give with \
                 --include what the command needs",
                path.display(),
                MOST_BYTES >> 20
            ))
        })?;
        files.insert(guest, path.to_path_buf());
    } else if meta.is_dir() {
        for entry in fs::read_dir(path).at("list", path)? {
            let entry = entry.at("list", path)?;
            // A link to a directory may lead around in a circle.
            if entry.file_type().at("read", &entry.path())?.is_symlink() && entry.path().is_dir() {
                continue;
            }
            let inside = [&guest[..], b"/", entry.file_name().as_bytes()].concat();
            if entry.path().exists() {
                take(&entry.path(), inside, files, left)?;
            }
        }
    }
    // Devices, sockets and pipes mean nothing in another machine.
    Ok(())
}

/// A relative path without `.`; none if it leaves the directory or is empty.
fn below_work(path: &Path) -> Option<Vec<u8>> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name.as_bytes()),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join(&b'/'))
}

//! From the command's words to a program in the guest, and the files that it needs there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use crate::cache::Cache;
use crate::elf;
use crate::error::{At, GuestError};
use crate::pieces::Busybox;
use crate::programs;
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
    include: Option<&Path>,
    cache: &Cache,
    busybox: &Busybox,
    say: &mut dyn FnMut(&str),
) -> Result<Plan, GuestError> {
    let Some(name) = command.first().filter(|name| !name.is_empty()) else {
        return Err(GuestError::Refused("no command for the guest".to_owned()));
    };
    let mut packages: BTreeSet<String> = packages.iter().cloned().collect();
    let files = named_files(&command[1..], include)?;
    let text = name.to_string_lossy();
    if let Some((_, known)) = PACKAGES.iter().find(|(program, _)| *program == text) {
        packages.extend(known.iter().map(|&package| package.to_owned()));
    }
    let userland = userland::of(cache, &packages, say)?;
    if name.as_bytes().contains(&b'/') {
        return plan_path(name, userland, files, include, busybox);
    }
    let here = find(name.as_bytes(), &userland.contents);
    let ours = BTreeSet::from([programs::MARKER_PATH.as_bytes().to_vec()]);
    let here = here.or_else(|| find(name.as_bytes(), &ours));
    if let Some(program) = here.or_else(|| find(name.as_bytes(), &busybox.applets)) {
        return Ok(Plan { program, userland, files });
    }
    packages.insert(text.clone().into_owned());
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
    match find(name.as_bytes(), &userland.contents) {
        Some(program) => Ok(Plan { program, userland, files }),
        None => {
            let packages: Vec<_> = packages.into_iter().collect();
            Err(advice(format!("package {} has none", packages.join(", "))))
        }
    }
}

/// The first of the guest's directories of programs that has `name`.
fn find(name: &[u8], contents: &BTreeSet<Vec<u8>>) -> Option<Vec<u8>> {
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
    let in_guest = |path: &[u8]| {
        let path = userland::merged(path);
        userland.contents.contains(&path) || busybox.applets.contains(&path)
    };
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

/// Files of the current directory that the arguments name, by their path in the guest. Those that
/// are in the included directory come with it.
fn named_files(
    arguments: &[OsString],
    include: Option<&Path>,
) -> Result<BTreeMap<Vec<u8>, PathBuf>, GuestError> {
    let mut files = BTreeMap::new();
    for argument in arguments {
        let path = Path::new(argument);
        let Some(below) = below_work(path) else { continue };
        let included = include.is_some_and(|directory| directory.join(path).exists());
        if !included && path.is_file() {
            fs::File::open(path).at("read", path)?;
            files.insert([&WORK.as_bytes()[1..], b"/", &below].concat(), path.to_path_buf());
        }
    }
    Ok(files)
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

//! The guest's programs: sets of Debian packages as archives, and busybox for everything else.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{self, Apt};
use crate::cache::Cache;
use crate::cpio::Archive;
use crate::error::{At, GuestError};
use crate::step::{self, Say, Step};

/// What is left out of packages, as patterns of `tar --exclude`. The whole tree is in the guest's
/// memory twice while it boots, and each byte of it is copied there by simulated instructions.
const LEAVE_OUT: &[&str] = &[
    // Read by people, not by programs.
    "./usr/share/doc/*",
    "./usr/share/doc-base/*",
    "./usr/share/info/*",
    "./usr/share/man/*",
    "./usr/share/lintian/*",
    "./usr/share/bug/*",
    "./usr/share/gdb/*",
    // Messages in other languages: the guest runs with LANG=C.
    "./usr/share/locale/*",
    // What packages run when they are installed, removed or updated, which nobody does here.
    "./usr/share/debconf/*",
    "./usr/share/bash-completion/*",
    "./usr/share/zsh/*",
    "./etc/cron.*",
    "./etc/init.d/*",
    "./etc/logrotate.d/*",
    "./lib/systemd/*",
    "./usr/lib/systemd/*",
    // Link-time optimisation's own compiler: 30 MB, started by -flto only.
    "./usr/lib/gcc/*/lto1",
    "./usr/bin/*lto-dump*",
    // The sanitizers' runtimes, 40 MB: linked by -fsanitize only.
    "./usr/lib/gcc/*/lib?san.*",
    "./usr/lib/gcc/*/libubsan.*",
    "./usr/lib/gcc/*/libhwasan*",
    "./usr/lib/x86_64-linux-gnu/lib?san.so.*",
    "./usr/lib/x86_64-linux-gnu/libubsan.so.*",
    "./usr/lib/x86_64-linux-gnu/libhwasan.so.*",
    // Profilers of the binutils, and linkers other than the default one.
    "./usr/bin/*gprofng*",
    "./usr/bin/gp-*",
    "./usr/bin/x86_64-linux-gnu-gp-*",
    "./usr/lib/x86_64-linux-gnu/gprofng/*",
    "./usr/lib/x86_64-linux-gnu/libgprofng*",
    "./usr/bin/dwp",
    "./usr/bin/x86_64-linux-gnu-dwp",
    "./usr/bin/ld.gold",
    "./usr/bin/x86_64-linux-gnu-ld.gold",
];

/// Links that packages leave to their installation scripts: made if the target is there and the
/// link is not.
const ALTERNATIVES: &[(&str, &str)] = &[
    ("usr/bin/cc", "gcc"),
    ("usr/bin/c++", "g++"),
    ("usr/bin/awk", "gawk"),
    ("usr/bin/awk", "mawk"),
    ("usr/bin/lua", "lua5.4"),
    ("usr/bin/nc", "nc.openbsd"),
    ("usr/bin/php", "php8.2"),
];

/// Directories of a merged `/usr`, as Debian 12 has it, and the links to them.
pub(crate) const MERGED: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib32", "usr/lib32"),
    ("lib64", "usr/lib64"),
    ("libx32", "usr/libx32"),
    ("sbin", "usr/sbin"),
];

/// A set of packages with their dependencies, unpacked and archived.
#[derive(Debug, Clone)]
pub(crate) struct Userland {
    /// The archive for the guest; none if no package was asked for.
    pub archive: Option<PathBuf>,
    /// Paths of all that is not a directory, without the leading slash, in the merged `/usr`.
    pub contents: BTreeSet<Vec<u8>>,
    /// Names at the top of a root file system of the user, directories too; empty for packages.
    pub tops: BTreeSet<Vec<u8>>,
    /// All packages with their versions, sorted: "gcc 4:12.2.0-3".
    pub versions: Vec<String>,
}

/// The userland of `packages`, from the cache or, if it is not there, downloaded and unpacked.
pub(crate) fn of(
    cache: &Cache,
    packages: &BTreeSet<String>,
    say: Say<'_>,
) -> Result<Userland, GuestError> {
    if packages.is_empty() {
        return Ok(Userland {
            archive: None,
            contents: BTreeSet::new(),
            tops: BTreeSet::new(),
            versions: Vec::new(),
        });
    }
    for name in packages {
        check_name(name)?;
    }
    let sets = cache.root().join("userlands");
    let place = sets.join(key(packages));
    if !place.exists() {
        let _lock = cache.lock()?;
        // Another process may have made it while this one waited.
        if !place.exists() {
            build(cache, packages, &sets, &place, say).map_err(|e| not_downloaded(packages, e))?;
        }
    }
    let read = |name| {
        let path = place.join(name);
        fs::read(&path).at("read", &path)
    };
    let lines = |bytes: Vec<u8>| {
        bytes
            .split(|&b| b == b'\n')
            .filter(|l| !l.is_empty())
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>()
    };
    let versions = lines(read("packages")?);
    Ok(Userland {
        archive: Some(place.join("root.cpio")),
        contents: lines(read("contents")?).into_iter().collect(),
        tops: BTreeSet::new(),
        versions: versions.iter().map(|v| String::from_utf8_lossy(v).into_owned()).collect(),
    })
}

impl Userland {
    /// Whether the guest has a file at `path`, which begins with a slash or not.
    pub fn has(&self, path: &[u8]) -> bool {
        let plain = path.strip_prefix(b"/").unwrap_or(path);
        self.contents.contains(plain) || self.contents.contains(&merged(path))
    }

    /// Whether it is a root file system of the user.
    pub fn is_users(&self) -> bool {
        !self.tops.is_empty()
    }
}

/// What to do about packages that could not be downloaded.
fn not_downloaded(packages: &BTreeSet<String>, error: GuestError) -> GuestError {
    let GuestError::Tool { command, message } = error else { return error };
    if !command.starts_with("apt-get") {
        return GuestError::Tool { command, message };
    }
    let names = packages.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    GuestError::Missing {
        piece: format!("package {names} ({command}: {message})"),
        command: format!(
            "nestwalk setup{}, where the network can be reached",
            packages.iter().map(|name| format!(" --package {name}")).collect::<String>()
        ),
    }
}

/// Debian Policy, section 5.6.1: what a package may be called.
fn check_name(name: &str) -> Result<(), GuestError> {
    let mut letters = name.bytes();
    let first = letters.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    if first && name.len() >= 2 && letters.all(rest) {
        return Ok(());
    }
    Err(GuestError::Refused(format!(
        "{name:?} is not the name of a Debian package: these are lower-case letters, digits, '+', '-' \
         and '.'"
    )))
}

/// The directory of a set: readable, and different when the list of what is left out is.
fn key(packages: &BTreeSet<String>) -> String {
    const READABLE_BYTES: usize = 120;
    let names = packages.iter().map(String::as_str).collect::<Vec<_>>().join("_");
    let mut hash = Fnv::new();
    hash.add(names.as_bytes());
    LEAVE_OUT.iter().for_each(|pattern| hash.add(pattern.as_bytes()));
    ALTERNATIVES.iter().for_each(|(link, target)| hash.add(format!("{link} {target}").as_bytes()));
    let readable = &names[..names.len().min(READABLE_BYTES)];
    format!("{readable}_{:016x}", hash.0)
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>).
struct Fnv(u64);

impl Fnv {
    fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes.iter().chain(b"\n") {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

fn build(
    cache: &Cache,
    packages: &BTreeSet<String>,
    sets: &Path,
    place: &Path,
    say: Say<'_>,
) -> Result<(), GuestError> {
    let names: Vec<_> = packages.iter().cloned().collect();
    let apt = Apt::new(cache)?;
    apt.refresh(say)?;
    say(Step::Begins(&format!("resolving packages: {}", names.join(", "))));
    let mut resolved = apt.resolve(&names)?;
    resolved.sort_by(|a, b| a.name.cmp(&b.name));
    let files = apt.download(&resolved, say)?;
    say(Step::Begins("unpacking packages"));
    let workshop = cache.workshop()?;
    let tree = workshop.join("tree");
    make_directories(&tree)?;
    let size = |file: &PathBuf| fs::metadata(file).map_or(0, |meta| meta.len());
    let total: u64 = files.iter().map(size).sum();
    let mut bytes = 0;
    for (index, file) in files.iter().enumerate() {
        let (item, number) = (resolved[index].name.as_str(), index + 1);
        say(Step::At(step::At { item, number, items: files.len(), bytes, total: Some(total) }));
        apt::unpack(file, &tree, LEAVE_OUT)?;
        bytes += size(file);
    }
    say(Step::Begins("making an archive of the packages"));
    complete(&tree)?;
    let finished = workshop.join("finished");
    fs::create_dir(&finished).at("create", &finished)?;
    let path = finished.join("root.cpio");
    let out = BufWriter::with_capacity(1 << 20, File::create(&path).at("create", &path)?);
    let mut archive = Archive::new(out);
    archive.tree(&tree)?;
    let out = archive.finish().at("write", &path)?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error).at("write", &path)?;
    let mut contents = Vec::new();
    list(&tree, b"", &mut contents)?;
    let listing = finished.join("contents");
    fs::write(&listing, contents).at("write", &listing)?;
    let versions: String = resolved.iter().map(|p| format!("{} {}\n", p.name, p.version)).collect();
    let listing = finished.join("packages");
    fs::write(&listing, versions).at("write", &listing)?;
    fs::create_dir_all(sets).at("create", sets)?;
    fs::rename(&finished, place).at("create", place)?;
    fs::remove_dir_all(&workshop).at("delete", &workshop)
}

/// The directories that packages are unpacked over, with the links of the merged `/usr`.
fn make_directories(tree: &Path) -> Result<(), GuestError> {
    let create = |path: &Path| {
        fs::create_dir_all(path).at("create", path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).at("create", path)
    };
    create(tree)?;
    create(&tree.join("usr"))?;
    for (link, target) in MERGED {
        create(&tree.join(target))?;
        symlink(target, tree.join(link)).at("create", &tree.join(link))?;
    }
    Ok(())
}

/// What the packages' installation scripts would have done, as far as programs need it.
fn complete(tree: &Path) -> Result<(), GuestError> {
    for (link, target) in ALTERNATIVES {
        let path = tree.join(link);
        let there = path.with_file_name(target).symlink_metadata().is_ok();
        if there && path.symlink_metadata().is_err() {
            symlink(target, &path).at("create", &path)?;
        }
    }
    let etc = tree.join("etc");
    fs::create_dir_all(&etc).at("create", &etc)?;
    let configuration = etc.join("ld.so.conf");
    if !configuration.exists() {
        fs::write(&configuration, "include /etc/ld.so.conf.d/*.conf\n")
            .at("create", &configuration)?;
    }
    // Not in a user's PATH. Nothing is lost without it: the loader then searches its directories.
    let mut command = Command::new("/sbin/ldconfig");
    command.arg("-r").arg(tree);
    match apt::output(command) {
        Ok(_) | Err(GuestError::Missing { .. }) => {}
        Err(error) => return Err(error),
    }
    // Times and inode numbers of the tree, to make the next call of ldconfig faster.
    let by_inode = tree.join("var/cache/ldconfig");
    if by_inode.exists() { fs::remove_dir_all(&by_inode).at("delete", &by_inode) } else { Ok(()) }
}

pub(crate) fn list(directory: &Path, prefix: &[u8], into: &mut Vec<u8>) -> Result<(), GuestError> {
    for entry in fs::read_dir(directory).at("list", directory)? {
        let entry = entry.at("list", directory)?;
        let name = [prefix, entry.file_name().as_bytes()].concat();
        if entry.file_type().at("read", &entry.path())?.is_dir() {
            list(&entry.path(), &[&name, &b"/"[..]].concat(), into)?;
        } else {
            into.extend_from_slice(&name);
            into.push(b'\n');
        }
    }
    Ok(())
}

/// A path in the guest as [`Userland::contents`] has it: `/bin/sh` is `usr/bin/sh`.
pub(crate) fn merged(path: &[u8]) -> Vec<u8> {
    let path: Vec<&[u8]> =
        path.split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    let first = path.first().copied().unwrap_or_default();
    let moved = MERGED.iter().any(|(link, _)| link.as_bytes() == first);
    let mut parts = if moved { vec![&b"usr"[..]] } else { Vec::new() };
    parts.extend(path);
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_a_merged_usr() {
        let text = |path: &str| String::from_utf8(merged(path.as_bytes())).unwrap();
        assert_eq!(text("/bin/sh"), "usr/bin/sh");
        assert_eq!(text("/lib64/ld-linux-x86-64.so.2"), "usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(text("/usr//bin/./perl"), "usr/bin/perl");
        assert_eq!(text("/binary/x"), "binary/x");
        assert_eq!(text("linuxrc"), "linuxrc");
        assert_eq!(text(""), "");
    }

    #[test]
    fn names_of_packages_are_checked() {
        for good in ["gcc", "g++", "libc6-dev", "python3.11", "0ad"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "-o", "--foo", "Gcc", "gcc/sid", "gcc=1", "gcc:i386", "x y", "+a"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sets_have_keys_of_their_own_and_of_bounded_length() {
        let set = |names: &[&str]| key(&names.iter().map(|&name| name.to_owned()).collect());
        assert!(set(&["gcc", "libc6-dev"]).starts_with("gcc_libc6-dev_"));
        assert_eq!(set(&["b2", "a1"]), set(&["a1", "b2"]));
        assert_ne!(set(&["a1", "b2"]), set(&["a1", "b3"]));
        let many: Vec<String> = (0..200).map(|n| format!("package{n}")).collect();
        let names: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(set(&names).len() < 200);
        assert_ne!(set(&names), set(&names[..199]));
    }
}

//! A root file system of the user: an unpacked container image, a tar archive, the image of a file
//! system.
//!
//! What a file is, its magic numbers say. Images are read by the programs that made them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use crate::apt;
use crate::cpio::Archive;
use crate::error::{At, GuestError};
use crate::userland::{self, Userland};

/// Directories whose contents belong to a running system: the guest makes its own.
const OF_A_SYSTEM: &[&str] = &["dev", "proc", "sys"];

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Tar,
    Ext,
    Squashfs,
}

/// Makes the archive `cpio` of what is in `path`; what must be unpacked for it goes to `tree`.
pub(crate) fn of(path: &Path, tree: &Path, cpio: &Path) -> Result<Userland, GuestError> {
    let meta = fs::metadata(path).at("read the root file system", path)?;
    let unpacked;
    let root = if meta.is_dir() {
        path
    } else {
        unpack(path, tree)?;
        unpacked = tree;
        unpacked
    };
    let tops = tops(root)?;
    if tops.contains(&b"manifest.json"[..]) || tops.contains(&b"oci-layout"[..]) {
        return Err(GuestError::Refused(format!(
            "{} is a container image in layers: give what `docker export` (or `podman export`) makes of a \
             container, or a directory that it was unpacked into",
            path.display()
        )));
    }
    if tops.is_empty() {
        return Err(GuestError::Refused(format!("{} holds nothing", path.display())));
    }
    let out = BufWriter::with_capacity(1 << 20, File::create(cpio).at("create", cpio)?);
    let mut archive = Archive::new(out);
    archive.leave_out_special(OF_A_SYSTEM);
    archive.tree(root)?;
    let out = archive.finish().at("write", cpio)?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error).at("write", cpio)?;
    let mut contents = Vec::new();
    for top in fs::read_dir(root).at("list", root)? {
        let top = top.at("list", root)?;
        let name = top.file_name();
        if OF_A_SYSTEM.iter().any(|&of| name == of) {
            continue;
        }
        if top.file_type().at("read", &top.path())?.is_dir() {
            userland::list(&top.path(), &[name.as_bytes(), b"/"].concat(), &mut contents)?;
        } else {
            contents.extend_from_slice(name.as_bytes());
            contents.push(b'\n');
        }
    }
    let contents =
        contents.split(|&b| b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec).collect();
    if root == tree {
        // Only the archive is needed from here on.
        fs::remove_dir_all(tree).at("delete", tree)?;
    }
    let versions = vec![format!("root file system {}", path.display())];
    Ok(Userland { archive: Some(cpio.to_path_buf()), contents, tops, versions })
}

fn tops(root: &Path) -> Result<BTreeSet<Vec<u8>>, GuestError> {
    let mut tops = BTreeSet::new();
    for entry in fs::read_dir(root).at("list", root)? {
        let name = entry.at("list", root)?.file_name();
        // What ext file systems keep for their own repair.
        if name != "lost+found" {
            tops.insert(name.as_bytes().to_vec());
        }
    }
    Ok(tops)
}

fn unpack(path: &Path, tree: &Path) -> Result<(), GuestError> {
    let kind = kind(path)?;
    fs::create_dir(tree).at("create", tree)?;
    let words: Vec<OsString> = match kind {
        Kind::Tar => {
            let mut words: Vec<OsString> = vec!["tar".into(), "--extract".into(), "--file".into()];
            words.extend([path.into(), "--directory".into(), tree.into()]);
            words.extend(["--no-same-owner", "--same-permissions", "--anchored"].map(Into::into));
            // Nodes of devices could not be made without privilege.
            words.extend(["--exclude=dev/*", "--exclude=./dev/*"].map(Into::into));
            words
        }
        Kind::Ext => {
            let mut request = OsString::from("rdump / ");
            request.push(tree);
            // Not in a user's PATH.
            let own = Path::new("/sbin/debugfs");
            let program = if own.exists() { own.as_os_str() } else { "debugfs".as_ref() };
            vec![program.to_owned(), "-R".into(), request, path.into()]
        }
        Kind::Squashfs => {
            let mut words: Vec<OsString> =
                ["unsquashfs", "-no-progress", "-force", "-dest"].map(Into::into).to_vec();
            words.extend([tree.into(), path.into()]);
            words
        }
    };
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    apt::output(command).map_err(|error| match error {
        GuestError::Missing { piece, .. } => GuestError::Missing {
            piece: format!("{piece}, which reads {}", path.display()),
            command: format!(
                "apt-get install {}",
                match kind {
                    Kind::Tar => "tar",
                    Kind::Ext => "e2fsprogs",
                    Kind::Squashfs => "squashfs-tools",
                }
            ),
        },
        other => other,
    })?;
    // debugfs reports damage, and ends well all the same.
    if tops(tree)?.is_empty() {
        let program = words[0].to_string_lossy();
        return Err(GuestError::Malformed {
            path: path.to_path_buf(),
            what: format!("{program} found nothing in it: it is empty or damaged"),
        });
    }
    Ok(())
}

/// What the file is, by its magic numbers.
fn kind(path: &Path) -> Result<Kind, GuestError> {
    let mut file = File::open(path).at("open", path)?;
    let mut head = Vec::new();
    file.by_ref().take(2048).read_to_end(&mut head).at("read", path)?;
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let refused =
        |what: &str| Err(GuestError::Malformed { path: path.to_path_buf(), what: what.to_owned() });
    let packed: [&[u8]; 5] =
        [b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh", b"\x04\x22\x4d\x18"];
    if has(257, b"ustar") || packed.iter().any(|magic| has(0, magic)) {
        // tar itself finds out how an archive is compressed.
        return Ok(Kind::Tar);
    }
    if has(0, b"hsqs") {
        return Ok(Kind::Squashfs);
    }
    if has(1024 + 56, b"\x53\xef") {
        return Ok(Kind::Ext);
    }
    if has(0, b"QFI\xfb") {
        return refused(
            "is a disk of QEMU: `qemu-img convert -O raw` makes a plain one of it, and the file system \
             must be taken out of its partition",
        );
    }
    if has(510, b"\x55\xaa") {
        return refused(
            "is a disk with partitions: give the file system of one of them, such as dd makes, or mount \
             it and give the directory",
        );
    }
    // Old archives have no magic number, but a checksum in octal of the first header.
    if is_old_tar(&mut file, &head) {
        return Ok(Kind::Tar);
    }
    let start: Vec<String> = head.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    refused(&format!(
        "begins with {}: neither a tar archive nor the image of an ext or squashfs file system",
        if start.is_empty() { "nothing".to_owned() } else { start.join(" ") }
    ))
}

fn is_old_tar(file: &mut File, head: &[u8]) -> bool {
    let Some(header) = head.get(..512) else { return false };
    let field: String = header[148..156].iter().map(|&b| char::from(b)).collect();
    let said = field.trim_matches(|c: char| c == '\0' || c == ' ');
    let Ok(said) = u64::from_str_radix(said, 8) else { return false };
    // The sum of all bytes, the field itself taken as blanks.
    let blank =
        |(at, &byte): (usize, &u8)| u64::from(if (148..156).contains(&at) { b' ' } else { byte });
    let whole = file.seek(SeekFrom::End(0)).is_ok_and(|size| size >= 512);
    whole && header.iter().enumerate().map(blank).sum::<u64>() == said
}

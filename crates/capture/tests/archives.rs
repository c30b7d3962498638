//! The archive of the guest's files, against the format's specification and another reader.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use common::Temporary;
use nestwalk_capture::Cache;
use nestwalk_capture::cpio::Archive;

/// A header as in the kernel's buffer-format.rst, with the fields that are not always zero.
fn header(inode: u32, mode: u32, links: u32, mtime: u32, size: usize, name: &str) -> Vec<u8> {
    let name_bytes = name.len() + 1;
    let zero = "00000000";
    let mut bytes = format!(
        "070701{inode:08X}{mode:08X}{zero}{zero}{links:08X}{mtime:08X}{size:08X}{zero}{zero}{zero}{zero}\
         {name_bytes:08X}{zero}{name}\0"
    )
    .into_bytes();
    while bytes.len() % 4 != 0 {
        bytes.push(0);
    }
    bytes
}

#[test]
fn entries_are_as_the_specification_has_them() {
    const TIME: u32 = 1_577_836_800;
    let mut archive = Archive::new(Vec::new());
    archive.directory(b"a", 0o40755).unwrap();
    archive.file(b"a/five", 0o100_644, b"12345").unwrap();
    archive.link(b"a/to", b"five").unwrap();
    archive.copy(b"a/copy", 0o4755, &mut &b"123456789"[..], 8).unwrap();
    let bytes = archive.finish().unwrap();

    let mut expected = header(1, 0o40755, 2, TIME, 0, "a");
    expected.extend(header(2, 0o100_644, 1, TIME, 5, "a/five"));
    expected.extend(b"12345\0\0\0");
    expected.extend(header(3, 0o120_777, 1, TIME, 4, "a/to"));
    expected.extend(b"five");
    expected.extend(header(4, 0o104_755, 1, TIME, 8, "a/copy"));
    expected.extend(b"12345678");
    expected.extend(header(0, 0, 1, 0, 0, "TRAILER!!!"));
    expected.resize(expected.len().next_multiple_of(512), 0);
    assert_eq!(bytes, expected);
}

#[test]
fn a_source_that_ends_early_is_an_error() {
    let mut archive = Archive::new(Vec::new());
    let error = archive.copy(b"short", 0o644, &mut &b"123"[..], 4).unwrap_err();
    assert_eq!(error.to_string(), "ended after 3 of 4 bytes");
}

/// A tree with what packages have: links, hard links, permissions, an empty directory.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("usr/bin/one"), "program").unwrap();
    fs::set_permissions(root.join("usr/bin/one"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("usr/bin/one"), root.join("usr/bin/two")).unwrap();
    fs::write(root.join("usr/zero"), "").unwrap();
    fs::set_permissions(root.join("usr/zero"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
}

fn archive_of(root: &Path) -> Vec<u8> {
    let mut archive = Archive::new(Vec::new());
    archive.tree(root).unwrap();
    archive.finish().unwrap()
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let (first, second) = (Temporary::new(), Temporary::new());
    make_tree(first.path());
    // Made in another order, at another time, with other inode numbers.
    fs::write(second.path().join("zz"), "").unwrap();
    make_tree(second.path());
    fs::remove_file(second.path().join("zz")).unwrap();
    assert_eq!(archive_of(first.path()), archive_of(second.path()));
}

/// busybox's cpio reads what we wrote, and gives back the tree.
#[test]
fn another_reader_unpacks_the_same_tree() {
    let busybox = Cache::locate().unwrap().root().join("busybox/busybox");
    assert!(busybox.exists(), "{} is missing; scripts/guest gets it", busybox.display());
    let (tree, copy) = (Temporary::new(), Temporary::new());
    make_tree(tree.path());
    let archive = copy.file("archive", archive_of(tree.path()));
    let into = copy.path().join("into");
    fs::create_dir(&into).unwrap();
    let status = Command::new(&busybox)
        .args(["cpio", "-id"])
        .current_dir(&into)
        .stdin(fs::File::open(archive).unwrap())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(fs::read(into.join("usr/bin/one")).unwrap(), b"program");
    let one = fs::metadata(into.join("usr/bin/one")).unwrap();
    assert_eq!(one.ino(), fs::metadata(into.join("usr/bin/two")).unwrap().ino());
    assert_eq!(one.permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::metadata(into.join("usr/zero")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_link(into.join("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(fs::read_link(into.join("dangling")).unwrap(), Path::new("nowhere"));
    assert!(into.join("empty").is_dir());
    assert_eq!(fs::read_dir(&into).unwrap().count(), 4);
}

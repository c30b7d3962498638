//! The guest's root file system: an archive of packages and, on top, what this run adds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::command::{self, Plan, WORK};
use crate::cpio::Archive;
use crate::error::{At, GuestError};
use crate::init::OURS;
use crate::pieces::Busybox;
use crate::programs;
use crate::userland::MERGED;

/// Directories of every guest with their permissions, besides the merged `/usr`.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/local/bin", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

/// Files of every guest that has no such files from packages.
const CONFIGURATION: &[(&str, &str)] = &[
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hostname", "nestwalk\n"),
    ("etc/hosts", "127.0.0.1 localhost nestwalk\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
];

enum Node {
    Directory(u32),
    Bytes(u32, Vec<u8>),
    Copy(u32, PathBuf, u64),
    Link(Vec<u8>),
}

/// Files by their paths in the guest. A directory sorts before what is in it.
#[derive(Default)]
struct Overlay(BTreeMap<Vec<u8>, Node>);

impl Overlay {
    /// Puts `node` at `path`, in place of what may be there, and directories above it.
    fn put(&mut self, path: &[u8], node: Node) {
        for (at, _) in path.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            self.0.entry(path[..at].to_vec()).or_insert(Node::Directory(0o755));
        }
        self.0.insert(path.to_vec(), node);
    }

    fn text(&mut self, path: &str, mode: u32, text: impl Into<Vec<u8>>) {
        self.put(path.as_bytes(), Node::Bytes(mode, text.into()));
    }

    /// Puts a file of the host at `path`.
    fn copy(&mut self, path: &[u8], host: &Path) -> Result<(), GuestError> {
        let meta = fs::metadata(host).at("read", host)?;
        self.put(path, Node::Copy(meta.permissions().mode(), host.to_path_buf(), meta.len()));
        Ok(())
    }

    /// Puts all that is in a directory of the host into `path`.
    fn copy_tree(&mut self, path: &[u8], host: &Path) -> Result<(), GuestError> {
        for entry in fs::read_dir(host).at("list", host)? {
            let entry = entry.at("list", host)?;
            let (from, kind) = (entry.path(), entry.file_type().at("read", &entry.path())?);
            let to = [path, b"/", entry.file_name().as_bytes()].concat();
            if kind.is_dir() {
                let mode = entry.metadata().at("read", &from)?.permissions().mode();
                self.put(&to, Node::Directory(mode));
                self.copy_tree(&to, &from)?;
            } else if kind.is_symlink() {
                let target = fs::read_link(&from).at("read", &from)?;
                self.put(&to, Node::Link(target.into_os_string().as_bytes().to_vec()));
            } else if kind.is_file() {
                self.copy(&to, &from)?;
            }
            // Sockets, pipes and devices mean nothing in another machine.
        }
        Ok(())
    }

    fn write(&self, out: impl Write, path: &Path) -> Result<(), GuestError> {
        let mut archive = Archive::new(out);
        for (name, node) in &self.0 {
            match node {
                Node::Directory(mode) => archive.directory(name, *mode),
                Node::Bytes(mode, bytes) => archive.file(name, *mode, bytes),
                Node::Link(target) => archive.link(name, target),
                Node::Copy(mode, host, size) => {
                    let mut file = File::open(host).at("open", host)?;
                    archive.copy(name, *mode, &mut file, *size)
                }
            }
            .at("write", path)?;
        }
        archive.finish().and_then(|mut out| out.flush()).at("write", path)
    }
}

/// Writes the image to `path` and returns its bytes.
pub(crate) fn write(
    path: &Path,
    plan: &Plan,
    busybox: &Busybox,
    include: Option<&Path>,
    init: Vec<u8>,
) -> Result<u64, GuestError> {
    let mut overlay = Overlay::default();
    for (link, target) in MERGED {
        overlay.put(target.as_bytes(), Node::Directory(0o755));
        // Other systems have directories there.
        if plan.userland.tops.contains(link.as_bytes()) {
            continue;
        }
        overlay.put(link.as_bytes(), Node::Link(target.as_bytes().to_vec()));
    }
    for &(directory, mode) in DIRECTORIES {
        overlay.put(directory.as_bytes(), Node::Directory(mode));
    }
    overlay.put(&WORK.as_bytes()[1..], Node::Directory(0o755));
    let from_packages = |name: &[u8]| plan.userland.contents.contains(name);
    // In a file system of the user a program may be in another directory than busybox's would be.
    let has_program = |applet: &[u8]| {
        let name = applet.rsplit(|&b| b == b'/').next().unwrap_or(applet);
        from_packages(applet)
            || plan.userland.is_users() && command::find(name, &plan.userland).is_some()
    };
    for &(name, text) in CONFIGURATION {
        if !from_packages(name.as_bytes()) {
            overlay.text(name, 0o644, text);
        }
    }
    overlay.copy(format!("{OURS}/busybox").as_bytes(), &busybox.path)?;
    for applet in busybox.applets.iter().filter(|applet| !has_program(applet)) {
        overlay.put(applet, Node::Link(format!("/{OURS}/busybox").into_bytes()));
    }
    if let Some(directory) = include {
        overlay.copy_tree(&WORK.as_bytes()[1..], directory)?;
    }
    for (name, host) in &plan.files {
        overlay.copy(name, host)?;
    }
    overlay.text(&format!("{OURS}/run"), 0o755, programs::launcher());
    overlay.text(programs::MARKER_PATH, 0o755, programs::marker());
    overlay.text("init", 0o755, init);

    let mut file = File::create(path).at("create", path)?;
    if let Some(archive) = &plan.userland.archive {
        let mut from = File::open(archive).at("open", archive)?;
        io::copy(&mut from, &mut file).at("write", path)?;
    }
    overlay.write(BufWriter::with_capacity(1 << 20, &file), path)?;
    Ok(file.metadata().at("read", path)?.len())
}

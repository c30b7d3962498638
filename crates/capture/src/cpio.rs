//! The "newc" archives from which Linux fills its first root file system.
//!
//! The format is in the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`: for
//! each file a header of ASCII hexadecimal numbers, the name with its NUL, and the data, both padded
//! to four bytes. The kernel takes several archives one after another and later ones replace what
//! earlier ones unpacked, so that an image is a cached archive of packages and a small one on top.
//!
//! Owner, times and inode numbers are fixed by the writer, so the same tree gives the same bytes on
//! every host.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::error::{At, GuestError};

/// Modification time of every file: 2020-01-01 00:00:00 UTC, at which the guest's clock starts too.
pub const MTIME: u32 = 1_577_836_800;

const HEADER_BYTES: usize = 110;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
/// The permission bits with set-user-ID, set-group-ID and sticky.
const PERMISSIONS: u32 = 0o7777;

/// Writes one archive, entry by entry, in the order of the calls.
pub struct Archive<W: Write> {
    out: W,
    written: u64,
    next_inode: u32,
    leaves_out_special: bool,
    empty: Vec<&'static str>,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Archive<W> {
        let (leaves_out_special, empty) = (false, Vec::new());
        Archive { out, written: 0, next_inode: 1, leaves_out_special, empty }
    }

    /// From now on [`Archive::tree`] leaves out devices, sockets and pipes, and all that is in the
    /// directories `empty` at the top.
    pub(crate) fn leave_out_special(&mut self, empty: &[&'static str]) {
        self.leaves_out_special = true;
        self.empty = empty.to_vec();
    }

    /// Adds a directory with permission bits `mode`; its parent must have been added before.
    pub fn directory(&mut self, name: &[u8], mode: u32) -> io::Result<()> {
        let inode = self.inode();
        self.header(name, inode, DIRECTORY | mode & PERMISSIONS, 2, 0)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &[u8], target: &[u8]) -> io::Result<()> {
        let inode = self.inode();
        self.header(name, inode, LINK | 0o777, 1, length(name, target.len() as u64)?)?;
        self.data(target)
    }

    /// Adds a file with permission bits `mode`.
    pub fn file(&mut self, name: &[u8], mode: u32, data: &[u8]) -> io::Result<()> {
        let inode = self.inode();
        let size = length(name, data.len() as u64)?;
        self.header(name, inode, REGULAR | mode & PERMISSIONS, 1, size)?;
        self.data(data)
    }

    /// Adds a file of `size` bytes read from `from`.
    ///
    /// # Errors
    /// If `from` ends early: the archive is useless then.
    pub fn copy(
        &mut self,
        name: &[u8],
        mode: u32,
        from: &mut dyn Read,
        size: u64,
    ) -> io::Result<()> {
        let inode = self.inode();
        self.copy_as(name, mode, inode, 1, from, size)
    }

    /// Adds everything below `root`, sorted by name; hard links stay such.
    ///
    /// # Errors
    /// If something cannot be read, or is neither directory, file nor symbolic link.
    pub fn tree(&mut self, root: &Path) -> Result<(), GuestError> {
        self.subtree(root, b"", &mut BTreeMap::new())
    }

    /// Ends the archive and gives back what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.header(b"TRAILER!!!", 0, 0, 1, 0)?;
        // Block padding as in every cpio file; the next archive must start at four bytes anyway.
        self.pad(512)?;
        Ok(self.out)
    }

    fn subtree(
        &mut self,
        directory: &Path,
        prefix: &[u8],
        linked: &mut BTreeMap<(u64, u64), u32>,
    ) -> Result<(), GuestError> {
        let mut names = fs::read_dir(directory)
            .and_then(|entries| entries.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>())
            .at("list", directory)?;
        names.sort();
        for file_name in names {
            let path = directory.join(&file_name);
            let mut name = prefix.to_vec();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(file_name.as_bytes());
            let meta = fs::symlink_metadata(&path).at("read", &path)?;
            let mode = meta.permissions().mode();
            if meta.is_dir() {
                self.directory(&name, mode).at("archive", &path)?;
                if prefix.is_empty() && self.empty.iter().any(|e| e.as_bytes() == name) {
                    continue;
                }
                self.subtree(&path, &name, linked)?;
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).at("read", &path)?;
                self.link(&name, target.as_os_str().as_bytes()).at("archive", &path)?;
            } else if meta.is_file() {
                self.tree_file(&path, &name, &meta, linked)?;
            } else if !self.leaves_out_special {
                return Err(GuestError::Refused(format!(
                    "{} is neither directory, file nor symbolic link: only these can be in a guest",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    /// Adds a file of a tree; of several hard links, the first carries the data.
    fn tree_file(
        &mut self,
        path: &Path,
        name: &[u8],
        meta: &fs::Metadata,
        linked: &mut BTreeMap<(u64, u64), u32>,
    ) -> Result<(), GuestError> {
        let mode = meta.permissions().mode();
        let mut inode = None;
        // More than one link anywhere: also those outside the tree, which does no harm.
        let links = u32::try_from(meta.nlink()).unwrap_or(u32::MAX);
        if links > 1 {
            if let Some(&first) = linked.get(&(meta.dev(), meta.ino())) {
                let mode = REGULAR | mode & PERMISSIONS;
                return self.header(name, first, mode, links, 0).at("archive", path);
            }
            inode = Some(self.inode());
            linked.extend(inode.map(|i| ((meta.dev(), meta.ino()), i)));
        }
        let inode = inode.unwrap_or_else(|| self.inode());
        let mut file = File::open(path).at("open", path)?;
        self.copy_as(name, mode, inode, links, &mut file, meta.len()).at("archive", path)
    }

    fn copy_as(
        &mut self,
        name: &[u8],
        mode: u32,
        inode: u32,
        links: u32,
        from: &mut dyn Read,
        size: u64,
    ) -> io::Result<()> {
        self.header(name, inode, REGULAR | mode & PERMISSIONS, links, length(name, size)?)?;
        let copied = io::copy(&mut from.take(size), &mut self.out)?;
        self.written += copied;
        if copied != size {
            let message = format!("ended after {copied} of {size} bytes");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        self.pad(4)
    }

    fn inode(&mut self) -> u32 {
        self.next_inode += 1;
        self.next_inode - 1
    }

    fn header(
        &mut self,
        name: &[u8],
        inode: u32,
        mode: u32,
        links: u32,
        size: u32,
    ) -> io::Result<()> {
        let mut header = Vec::with_capacity(HEADER_BYTES + name.len() + 4);
        header.extend_from_slice(b"070701");
        let name_bytes = length(name, name.len() as u64 + 1)?;
        let mtime = if mode == 0 { 0 } else { MTIME };
        // inode, mode, uid, gid, links, mtime, size, device (2), special file's device (2), name, check
        for field in [inode, mode, 0, 0, links, mtime, size, 0, 0, 0, 0, name_bytes, 0] {
            write!(header, "{field:08X}")?;
        }
        header.extend_from_slice(name);
        header.push(0);
        self.data(&header)
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        self.pad(4)
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let zeros = self.written.next_multiple_of(to) - self.written;
        self.written += zeros;
        io::copy(&mut io::repeat(0).take(zeros), &mut self.out).map(|_| ())
    }
}

/// A size as the format has it: 32 bits.
fn length(name: &[u8], bytes: u64) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| {
        let name = String::from_utf8_lossy(name);
        let message = format!("{name} has {bytes} bytes, and the archive's limit is 4 GiB");
        io::Error::new(io::ErrorKind::FileTooLarge, message)
    })
}

//! The guest's kernel, unpacked so that QEMU starts it without a decompressor.
//!
//! A `bzImage` decompresses itself in the guest, which costs tens of millions of simulated accesses.
//! QEMU starts the ELF file inside it directly (PVH, by the file's Xen note), so that is what is kept.

use std::fs;
use std::path::{Path, PathBuf};

use nestwalk_source::Packing;

use crate::btf::{self, TaskLayout};
use crate::elf;
use crate::error::{At, GuestError};

/// Which kernel a guest gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum KernelChoice {
    /// The newest that Debian has for virtual machines, as it was when guests were set up.
    #[default]
    Newest,
    /// A version, such as "6.12", a release, or a Debian package, such as "linux-image-amd64".
    Named(String),
    /// A `bzImage` (`vmlinuz`) or ELF file (`vmlinux`).
    File(PathBuf),
}

impl KernelChoice {
    /// What the word means: nothing is the newest, a path that exists or has a slash is a file, and all
    /// else is a name.
    #[must_use]
    pub fn of(word: &str) -> KernelChoice {
        let path = Path::new(word);
        if word.is_empty() {
            KernelChoice::Newest
        } else if word.contains('/') || path.is_file() {
            KernelChoice::File(path.to_path_buf())
        } else {
            KernelChoice::Named(word.to_owned())
        }
    }
}

/// A kernel that can be booted.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As `uname -r` has it in the guest: "6.1.0-56-cloud-amd64".
    pub release: String,
    /// The ELF file.
    pub vmlinux: PathBuf,
}

impl Kernel {
    /// Where the kernel keeps the running task; `None` if it does not say.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn task_layout(&self) -> Result<Option<TaskLayout>, GuestError> {
        Ok(btf::task_layout(&fs::read(&self.vmlinux).at("read", &self.vmlinux)?))
    }

    /// The kernel in a file of the user, unpacked into `to`.
    pub(crate) fn of_file(path: &Path, to: &Path) -> Result<Kernel, GuestError> {
        let (release, vmlinux) = Kernel::read(path)?;
        fs::write(to, &vmlinux).at("write", to)?;
        Ok(Kernel { release, vmlinux: to.to_path_buf() })
    }

    /// Whether a file of the user is a kernel that can be started, and its release.
    pub(crate) fn look_at(path: &Path) -> Result<String, GuestError> {
        Ok(Kernel::read(path)?.0)
    }

    fn read(path: &Path) -> Result<(String, Vec<u8>), GuestError> {
        let vmlinux = unpack(path)?;
        let malformed =
            |what: &str| GuestError::Malformed { path: path.to_path_buf(), what: what.to_owned() };
        let release = release(&vmlinux)
            .ok_or_else(|| malformed("is no Linux kernel: nothing in it says \"Linux version\""))?;
        if !starts_directly(&vmlinux) {
            return Err(malformed(
                "has no PVH entry (an ELF note of Xen, type 18), by which QEMU starts it: build it with \
                 CONFIG_PVH=y",
            ));
        }
        Ok((release, vmlinux))
    }
}

/// What `uname -r` will say: the word behind "Linux version" in the kernel's banner.
fn release(vmlinux: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut from = 0;
    loop {
        let at = from + memmem(&vmlinux[from..], BANNER)? + BANNER.len();
        let word = vmlinux[at..].split(|&b| b == b' ' || b == 0 || b == b'\n').next()?;
        // The format of the banner, "%s", is there too.
        if word.first().is_some_and(u8::is_ascii_digit) && word.len() < 100 {
            return String::from_utf8(word.to_vec()).ok();
        }
        from = at;
    }
}

/// Where `needle` begins in `bytes`. Only ever of a kernel, once: no index is worth it.
fn memmem(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|&b| b == first) {
        if bytes[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// Whether QEMU can start the ELF file itself: `XEN_ELFNOTE_PHYS32_ENTRY` (`elfnote.h` of Xen), which
/// kernels with `CONFIG_PVH` have. A file whose notes are not found is not refused for it.
fn starts_directly(vmlinux: &[u8]) -> bool {
    const PHYS32_ENTRY: u64 = 18;
    let Some(notes) = elf::section(vmlinux, ".notes") else { return true };
    let mut at = 0;
    // A note: sizes of name and contents, type, name, contents, padded to four bytes.
    while let (Some(name), Some(size), Some(kind)) = (
        elf::number::<4>(notes, at),
        elf::number::<4>(notes, at + 4),
        elf::number::<4>(notes, at + 8),
    ) {
        if kind == PHYS32_ENTRY && elf::bytes(notes, at + 12, name) == Some(b"Xen\0") {
            return true;
        }
        at += 12 + name.next_multiple_of(4) + size.next_multiple_of(4);
    }
    false
}

/// The ELF file inside a `vmlinuz`; an ELF file is taken as it is.
///
/// The boot protocol's header says where the payload lies (`Documentation/arch/x86/boot.rst`:
/// `setup_sects`, `payload_offset`, `payload_length`), and the payload's magic number how it is packed:
/// LZ4 in "legacy" frames, which end with the payload, zstd, xz or gzip.
///
/// # Errors
/// If the file is neither, its payload is packed otherwise, or damaged.
pub fn unpack(path: &Path) -> Result<Vec<u8>, GuestError> {
    let file = fs::read(path).at("read", path)?;
    if elf::is_elf64(&file) {
        return Ok(file);
    }
    payload(&file)
        .and_then(unpack_payload)
        .map_err(|what| GuestError::Malformed { path: path.to_path_buf(), what })
}

fn payload(file: &[u8]) -> Result<&[u8], String> {
    const SECTOR_BYTES: u64 = 512;
    let field = |at| elf::number::<4>(file, at).unwrap_or(0);
    if elf::bytes(file, 0x202, 4) != Some(b"HdrS") {
        return Err("is not a Linux kernel: no \"HdrS\" at byte 0x202".to_owned());
    }
    // Versions before 2.08 have no payload fields.
    let version = elf::number::<2>(file, 0x206).unwrap_or(0);
    if version < 0x208 {
        return Err(format!("has boot protocol {version:#x}; at least 0x208 is needed"));
    }
    let setup_sectors = match elf::number::<1>(file, 0x1f1) {
        Some(0) | None => 4, // as the protocol says
        Some(n) => n,
    };
    let start = (setup_sectors + 1) * SECTOR_BYTES + field(0x248);
    // The build appends the unpacked size to the payload.
    elf::bytes(file, start, field(0x24c).saturating_sub(4)).ok_or_else(|| {
        format!(
            "ends at byte {}, before its payload of {} bytes at {start} does",
            file.len(),
            field(0x24c)
        )
    })
}

/// The first bytes of LZ4's legacy frames.
const LZ4_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];

fn unpack_payload(payload: &[u8]) -> Result<Vec<u8>, String> {
    let unpacked = if payload.starts_with(LZ4_MAGIC) {
        unpack_lz4(payload)?
    } else if let Some(packing) = Packing::of(payload) {
        packing.unpack(payload).map_err(|e| format!("its payload cannot be unpacked: {e}"))?
    } else {
        let start = &payload[..payload.len().min(6)];
        return Err(format!(
            "its payload begins with {start:02x?}, which is neither LZ4 nor zstd, xz or gzip: take \
             the kernel's vmlinux instead"
        ));
    };
    if elf::is_elf64(&unpacked) {
        Ok(unpacked)
    } else {
        Err("its payload is not a 64-bit ELF file".to_owned())
    }
}

fn unpack_lz4(payload: &[u8]) -> Result<Vec<u8>, String> {
    /// Of every block but the last, unpacked (`lz4_Frame_format.md`, "Legacy frame").
    const BLOCK_BYTES: usize = 8 << 20;
    let mut unpacked = Vec::new();
    let mut at = LZ4_MAGIC.len() as u64;
    while let Some(size) = elf::number::<4>(payload, at) {
        let block = elf::bytes(payload, at + 4, size).ok_or_else(|| {
            format!("LZ4 block of {size} bytes at byte {at} of the payload is cut off")
        })?;
        let start = unpacked.len();
        unpacked.resize(start + BLOCK_BYTES, 0);
        let bytes = lz4_flex::block::decompress_into(block, &mut unpacked[start..])
            .map_err(|e| format!("LZ4 block at byte {at} of the payload: {e}"))?;
        unpacked.truncate(start + bytes);
        at += 4 + size;
    }
    Ok(unpacked)
}

//! The guest's kernel: Debian's cloud kernel, unpacked so that QEMU starts it without a decompressor.
//!
//! A `bzImage` decompresses itself in the guest, which costs tens of millions of simulated accesses.
//! QEMU starts the ELF file inside it directly (PVH, by the file's Xen note), so that is what is kept.

use std::fs;
use std::path::{Path, PathBuf};

use crate::btf::{self, TaskLayout};
use crate::elf;
use crate::error::{At, GuestError};

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
}

/// The ELF file inside a `vmlinuz`; an ELF file is taken as it is.
///
/// The boot protocol's header says where the payload lies (`Documentation/arch/x86/boot.rst`:
/// `setup_sects`, `payload_offset`, `payload_length`). Debian packs the cloud kernel in LZ4's
/// "legacy" frames, which end with the payload.
///
/// # Errors
/// If the file is neither, its payload is packed otherwise, or damaged.
pub fn unpack(path: &Path) -> Result<Vec<u8>, GuestError> {
    let file = fs::read(path).at("read", path)?;
    if elf::is_elf64(&file) {
        return Ok(file);
    }
    payload(&file)
        .and_then(unpack_lz4)
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

fn unpack_lz4(payload: &[u8]) -> Result<Vec<u8>, String> {
    /// Of every block but the last, unpacked (`lz4_Frame_format.md`, "Legacy frame").
    const BLOCK_BYTES: usize = 8 << 20;
    const MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
    if !payload.starts_with(MAGIC) {
        let start = &payload[..payload.len().min(6)];
        return Err(format!(
            "its payload begins with {start:02x?}, which is not LZ4; Debian's cloud kernels are LZ4"
        ));
    }
    let mut unpacked = Vec::new();
    let mut at = MAGIC.len() as u64;
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
    if elf::is_elf64(&unpacked) {
        Ok(unpacked)
    } else {
        Err("its payload is not a 64-bit ELF file".to_owned())
    }
}

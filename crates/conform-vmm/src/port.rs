//! QEMU's debug console: bytes to the I/O port 0xe9.
#![allow(unsafe_code)]

use std::arch::asm;

const PORT: u16 = 0xe9;

/// The port, opened for this process.
pub struct Port(());

impl Port {
    /// Asks the kernel for the port.
    pub fn open() -> Result<Self, String> {
        // SAFETY: it only allows this process to use the port.
        if unsafe { libc::ioperm(libc::c_ulong::from(PORT), 1, 1) } != 0 {
            return Err(format!("port {PORT:x}: {}", std::io::Error::last_os_error()));
        }
        Ok(Self(()))
    }

    /// Writes all of it.
    pub fn write(&self, bytes: &[u8]) {
        // SAFETY: OUTSB reads the slice, and the port was opened.
        unsafe {
            asm!(
                "rep outsb",
                in("dx") PORT,
                inout("rsi") bytes.as_ptr() => _,
                inout("rcx") bytes.len() => _,
                options(readonly, nostack, preserves_flags)
            );
        }
    }
}

//! The guest's memory: a private anonymous mapping.
#![allow(unsafe_code)]

use std::io;

const TWO_MIB: usize = 2 << 20;

/// Memory of the guest, zeroed, aligned to 2 MiB.
pub struct Memory {
    base: *mut u8,
    bytes: usize,
    whole: *mut libc::c_void,
}

impl Memory {
    /// So many bytes, in pages of 2 MiB or of 4 KiB.
    pub fn new(bytes: usize, huge: bool) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at no given address overlaps nothing.
        let whole = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes + TWO_MIB,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if whole == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = (whole as usize).next_multiple_of(TWO_MIB) as *mut u8;
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: the range lies in the mapping made above.
        if unsafe { libc::madvise(base.cast(), bytes, advice) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base, bytes, whole })
    }

    /// Address of its first byte.
    pub fn address(&self) -> u64 {
        self.base as u64
    }

    fn has(&self, at: usize, bytes: usize) -> Result<(), String> {
        let fits = at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if fits {
            Ok(())
        } else {
            Err(format!("{at:x} is behind the guest's {:x} bytes", self.bytes))
        }
    }

    /// Every byte of a range gets this value, so that the host has its pages.
    pub fn fill(&mut self, at: usize, bytes: usize, value: u8) -> Result<(), String> {
        self.has(at, bytes)?;
        // SAFETY: the range was checked; the guest does not run meanwhile.
        unsafe { std::ptr::write_bytes(self.base.add(at), value, bytes) };
        Ok(())
    }

    /// Stores bytes.
    pub fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), String> {
        self.has(at, bytes.len())?;
        // SAFETY: the range was checked; the guest does not run meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(at), bytes.len()) };
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and no VM has it any more.
        unsafe { libc::munmap(self.whole, self.bytes + TWO_MIB) };
    }
}

//! Registers of the guest, read through QEMU.
//!
//! Reading one takes some 13 ns, so it is done where something rare has happened.
#![allow(unsafe_code)]

use crate::ffi;
use std::ffi::{CStr, c_void};

/// Names of the registers that are read, as QEMU lists them.
const NAMES: [&str; 23] = [
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
    "cr0",
    "cr2",
    "cr3",
    "cr4",
    "fs_base",
    "k_gs_base",
];
const GS_BASE: &str = "gs_base";

/// Handles of the registers of one vCPU.
pub struct Registers {
    handles: [*mut c_void; NAMES.len()],
    gs_base: *mut c_void,
    buffer: *mut ffi::Bytes,
}

// SAFETY: the handles and the buffer are used by the vCPU's own thread alone.
unsafe impl Send for Registers {}

impl Registers {
    /// Finds the registers. To be called on the vCPU's own thread.
    pub fn find() -> Self {
        let mut found = Self {
            handles: [std::ptr::null_mut(); NAMES.len()],
            gs_base: std::ptr::null_mut(),
            // SAFETY: a plain constructor of glib.
            buffer: unsafe { ffi::g_byte_array_new() },
        };
        // SAFETY: QEMU allows this call in the callback of a vCPU's start; it returns an array of
        // descriptors, or null. The array is small and stays. Newer versions of the interface have added
        // to the end of a descriptor; glib knows how long one is.
        let (first, count, bytes) = unsafe {
            let array = ffi::qemu_plugin_get_registers();
            if array.is_null() || (*array).data.is_null() {
                return found;
            }
            let bytes = ffi::g_array_get_element_size(array) as usize;
            ((*array).data, (*array).len as usize, bytes)
        };
        if bytes < size_of::<ffi::Register>() {
            return found;
        }
        for index in 0..count {
            // SAFETY: within the array, whose elements begin as this structure does.
            let register =
                unsafe { first.add(index * bytes).cast::<ffi::Register>().read_unaligned() };
            // SAFETY: QEMU's names are strings that live as long as it does.
            let name = unsafe { CStr::from_ptr(register.name) }.to_str().unwrap_or_default();
            if let Some(i) = NAMES.iter().position(|n| *n == name) {
                found.handles[i] = register.handle;
            }
            if name == GS_BASE {
                found.gs_base = register.handle;
            }
        }
        found
    }

    /// Names of registers that QEMU did not list.
    pub fn missing(&self) -> Vec<&'static str> {
        NAMES.iter().zip(&self.handles).filter(|(_, h)| h.is_null()).map(|(n, _)| *n).collect()
    }

    fn read(&mut self, handle: *mut c_void) -> u64 {
        if handle.is_null() || self.buffer.is_null() {
            return 0;
        }
        // SAFETY: the handle is one that QEMU gave for this vCPU, and this is its thread, in a callback
        // that was registered as reading registers. QEMU appends the bytes to the buffer.
        unsafe {
            ffi::g_byte_array_set_size(self.buffer, 0);
            ffi::qemu_plugin_read_register(handle, self.buffer);
            let (data, len) = ((*self.buffer).data, (*self.buffer).len as usize);
            let mut bytes = [0; 8];
            if data.is_null() {
                return 0;
            }
            let read = std::slice::from_raw_parts(data, len.min(8));
            bytes[..read.len()].copy_from_slice(read);
            u64::from_le_bytes(bytes)
        }
    }

    /// A general register by its number in instructions.
    pub fn general(&mut self, number: u8) -> u64 {
        self.read(self.handles[usize::from(number & 15)])
    }
    pub fn rip(&mut self) -> u64 {
        self.read(self.handles[16])
    }
    pub fn cr0(&mut self) -> u64 {
        self.read(self.handles[17])
    }
    pub fn cr2(&mut self) -> u64 {
        self.read(self.handles[18])
    }
    pub fn cr3(&mut self) -> u64 {
        self.read(self.handles[19])
    }
    pub fn cr4(&mut self) -> u64 {
        self.read(self.handles[20])
    }
    /// Base of FS (4) or GS (5).
    pub fn segment_base(&mut self, segment: u8) -> u64 {
        self.read(if segment == 4 { self.handles[21] } else { self.gs_base })
    }
    /// What SWAPGS brings.
    pub fn kernel_gs_base(&mut self) -> u64 {
        self.read(self.handles[22])
    }
}

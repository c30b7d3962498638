//! QEMU's plugin interface, API versions 4 to 7, as far as it is used here.
//!
//! Declared by hand after the comments of `qemu-plugin.h` of QEMU 10.0 (version 4) and 11.1 (version 7):
//! no crate of bindings covers both. The symbols are those of the QEMU
//! process that loads the plugin, found when it is loaded; so are the two of glib.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// Versions of the interface that this plugin is written for.
pub const API_VERSIONS: std::ops::RangeInclusive<c_int> = 4..=7;

/// What QEMU says of itself.
#[repr(C)]
pub struct Info {
    pub target: *const c_char,
    pub least: c_int,
    pub current: c_int,
    pub system_emulation: bool,
    pub vcpus: c_int,
    pub most_vcpus: c_int,
}

/// A byte array of glib.
#[repr(C)]
pub struct Bytes {
    pub data: *mut u8,
    pub len: c_uint,
}

/// An array of glib.
#[repr(C)]
pub struct Array {
    pub data: *mut c_char,
    pub len: c_uint,
}

/// A register of the guest; what newer versions have behind this is not used.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Register {
    pub handle: *mut c_void,
    pub name: *const c_char,
    pub feature: *const c_char,
}

/// A translation block or an instruction of one, while it is translated.
pub enum Opaque {}

/// Callbacks that read no registers.
pub const NO_REGISTERS: c_int = 0;
/// Callbacks that read registers.
pub const READ_REGISTERS: c_int = 1;
/// Loads and stores.
pub const LOADS_AND_STORES: c_int = 3;

pub type OnExecute = extern "C" fn(c_uint, *mut c_void);
pub type OnAccess = extern "C" fn(c_uint, u32, u64, *mut c_void);

/// Offsets of `lseek` that ask for data and for holes (Linux, `unistd.h`).
pub const SEEK_DATA: c_int = 3;
pub const SEEK_HOLE: c_int = 4;

unsafe extern "C" {
    pub fn lseek(file: c_int, offset: i64, whence: c_int) -> i64;
}

/// Callbacks whose arguments depend on the version: the plugin's identity and what it is about, or, from
/// version 7 on (QEMU 11.1), what it is about and user data.
pub type OnEvent = extern "C" fn(u64, u64);

// Before version 7 all but the last have no user data: an argument too many lies in a register that is
// not read (System V ABI, AMD64, 3.2.3).
#[rustfmt::skip]
unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_init_cb(id: u64, call: OnEvent, data: *mut c_void);
    pub fn qemu_plugin_register_vcpu_idle_cb(id: u64, call: OnEvent, data: *mut c_void);
    pub fn qemu_plugin_register_vcpu_resume_cb(id: u64, call: OnEvent, data: *mut c_void);
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, call: OnEvent, data: *mut c_void);
    pub fn qemu_plugin_register_atexit_cb(id: u64, call: OnEvent, data: *mut c_void);
}

#[rustfmt::skip]
unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_tb_exec_cb(tb: *mut Opaque, call: OnExecute, flags: c_int, data: *mut c_void);
    pub fn qemu_plugin_register_vcpu_insn_exec_cb(insn: *mut Opaque, call: OnExecute, flags: c_int, data: *mut c_void);
    pub fn qemu_plugin_register_vcpu_mem_cb(insn: *mut Opaque, call: OnAccess, flags: c_int, rw: c_int, data: *mut c_void);
    pub fn qemu_plugin_tb_n_insns(tb: *const Opaque) -> usize;
    pub fn qemu_plugin_tb_get_insn(tb: *const Opaque, index: usize) -> *mut Opaque;
    pub fn qemu_plugin_insn_data(insn: *const Opaque, to: *mut c_void, bytes: usize) -> usize;
    pub fn qemu_plugin_insn_size(insn: *const Opaque) -> usize;
    pub fn qemu_plugin_insn_vaddr(insn: *const Opaque) -> u64;
    pub fn qemu_plugin_insn_haddr(insn: *const Opaque) -> *mut c_void;
    pub fn qemu_plugin_mem_size_shift(info: u32) -> c_uint;
    pub fn qemu_plugin_mem_is_store(info: u32) -> bool;
    pub fn qemu_plugin_get_hwaddr(info: u32, vaddr: u64) -> *mut Opaque;
    pub fn qemu_plugin_hwaddr_is_io(hwaddr: *const Opaque) -> bool;
    pub fn qemu_plugin_hwaddr_phys_addr(hwaddr: *const Opaque) -> u64;
    pub fn qemu_plugin_get_registers() -> *mut Array;
    pub fn qemu_plugin_read_register(handle: *mut c_void, to: *mut Bytes) -> c_int;
    pub fn qemu_plugin_outs(text: *const c_char);
    pub fn g_array_get_element_size(array: *mut Array) -> c_uint;
    pub fn g_byte_array_new() -> *mut Bytes;
    pub fn g_byte_array_set_size(array: *mut Bytes, bytes: c_uint) -> *mut Bytes;
}

//! What QEMU calls, and what is registered with it.
#![allow(unsafe_code)]

use crate::access::Reading;
use crate::guest::{Guest, Options};
use crate::ram::Ram;
use crate::registers::Registers;
use crate::tables::{Levels, Tables};
use crate::vcpu::{Block, Special, Vcpu};
use crate::{decode, ffi};
use nestwalk_wire::Rings;
use nestwalk_wire::memory::SharedFile;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};

/// Version of the interface that the plugin wants; QEMU looks for this symbol, an `int`, once the
/// library is loaded. QEMU refuses versions that are older than what it still has, and newer ones.
// SAFETY: no other symbol of the process has this name: QEMU asks each plugin for its own.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: AtomicI32 = AtomicI32::new(*ffi::API_VERSIONS.start());

/// The variable with which whoever starts QEMU says which version that is to be.
const VERSION_VARIABLE: &str = "NESTWALK_PLUGIN_API";

/// Called by the loader, before QEMU looks.
// SAFETY: the section of functions that the loader calls (System V ABI, chapter 5, `DT_INIT_ARRAY`).
#[used]
#[unsafe(link_section = ".init_array")]
static CHOOSE_VERSION: extern "C" fn() = choose_version;

extern "C" fn choose_version() {
    let word = std::env::var(VERSION_VARIABLE).unwrap_or_default();
    if let Some(version) = word.parse().ok().filter(|v| ffi::API_VERSIONS.contains(v)) {
        qemu_plugin_version.store(version, Ordering::Relaxed);
    }
}

static GUEST: OnceLock<Guest> = OnceLock::new();
/// Each vCPU's state, made and used by its own thread.
static VCPUS: [AtomicPtr<Vcpu>; 256] = [const { AtomicPtr::new(null_mut()) }; 256];

fn complain(text: &str) {
    let line = CString::new(format!("nestwalk plugin: {text}\n")).unwrap_or_default();
    // SAFETY: a string that lives during the call. QEMU's log goes to its standard error, and so does
    // this one, in case that nothing is logged.
    unsafe { ffi::qemu_plugin_outs(line.as_ptr()) };
    eprint!("{}", line.to_string_lossy());
}

/// What QEMU calls first. 0 is success; anything else ends QEMU.
///
/// # Safety
/// To be called by QEMU, with its own description and arguments.
// SAFETY: as for `qemu_plugin_version`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const ffi::Info,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU's promise.
    let (info, arguments) = unsafe {
        let arguments = (0..count.max(0) as usize).map(|i| *arguments.add(i));
        let texts = arguments.map(|a| CStr::from_ptr(a).to_string_lossy().into_owned());
        (&*info, texts.collect::<Vec<_>>())
    };
    match install(info, &arguments) {
        Ok(()) => {}
        Err(error) => {
            complain(&error);
            return 1;
        }
    }
    // SAFETY: functions with the signatures that the interface asks for.
    unsafe {
        let data = user_data();
        ffi::qemu_plugin_register_vcpu_init_cb(id, start, data);
        ffi::qemu_plugin_register_vcpu_idle_cb(id, idle, data);
        ffi::qemu_plugin_register_vcpu_resume_cb(id, resume, data);
        ffi::qemu_plugin_register_vcpu_tb_trans_cb(id, translate, data);
        ffi::qemu_plugin_register_atexit_cb(id, exit, data);
    }
    0
}

/// What callbacks get as user data where they get any: an address that nothing else has.
fn user_data() -> *mut c_void {
    static MARK: u8 = 0;
    (&raw const MARK).cast_mut().cast()
}

/// The argument that says what a callback is about: the first if user data follows, as from version 7
/// on, and else the second, behind the plugin's identity.
fn subject(first: u64, second: u64) -> u64 {
    if second == user_data() as u64 { first } else { second }
}

extern "C" fn start(first: u64, second: u64) {
    on_start(subject(first, second) as c_uint);
}

extern "C" fn idle(first: u64, second: u64) {
    on_idle(subject(first, second) as c_uint);
}

extern "C" fn resume(first: u64, second: u64) {
    on_resume(subject(first, second) as c_uint);
}

extern "C" fn translate(first: u64, second: u64) {
    on_translate(subject(first, second) as *mut ffi::Opaque);
}

extern "C" fn exit(_: u64, _: u64) {
    on_exit();
}

fn install(info: &ffi::Info, arguments: &[String]) -> Result<(), String> {
    let version = qemu_plugin_version.load(Ordering::Relaxed);
    if info.least > version || info.current < version {
        return Err(format!(
            "QEMU's plugin interface has versions {} to {}, and version {version} was asked for",
            info.least, info.current
        ));
    }
    if !info.system_emulation {
        return Err("only the system emulator runs guests with page tables".into());
    }
    // SAFETY: they look at the word alone.
    let reading = unsafe {
        Reading::find(
            |info| ffi::qemu_plugin_mem_size_shift(info),
            |info| ffi::qemu_plugin_mem_is_store(info),
        )
    }?;
    let options = Options::parse(arguments.iter().map(String::as_str))?;
    let rings = Rings::open(Path::new(&options.rings)).map_err(|e| e.to_string())?;
    let file =
        SharedFile::open(Path::new(&options.ram)).map_err(|e| format!("{}: {e}", options.ram))?;
    let mut ram = Ram::new(file, options.low);
    ram.find_host(&options.ram);
    let guest = Guest {
        levels: Levels::new(ram.frames()),
        rings,
        ram,
        tables: Mutex::new(Tables::new()),
        recording: AtomicBool::new(false),
        started: AtomicBool::new(false),
        tables_made: AtomicU64::new(0),
        idt: AtomicU64::new(0),
        fault_entry: AtomicU64::new(u64::MAX),
        vcpus: info.vcpus.max(1) as u32,
        options,
        reading,
    };
    GUEST.set(guest).map_err(|_| "loaded twice".to_owned())
}

/// The vCPU that a callback is for, and the guest.
#[inline(always)]
fn with(index: c_uint, f: impl FnOnce(&mut Vcpu, &Guest)) {
    let Some(guest) = GUEST.get() else { return };
    let Some(vcpu) = VCPUS.get(index as usize) else { return };
    let vcpu = vcpu.load(Ordering::Relaxed);
    if !vcpu.is_null() {
        // SAFETY: made by `Box::into_raw` in `on_start` and never freed. QEMU calls back for a vCPU on
        // the vCPU's thread only, and never while a callback runs there, so this is the one reference.
        f(unsafe { &mut *vcpu }, guest);
    }
}

fn on_start(index: c_uint) {
    let Some(guest) = GUEST.get() else { return };
    let registers = Registers::find();
    let missing = registers.missing();
    if !missing.is_empty() {
        complain(&format!("QEMU does not show the registers {}", missing.join(", ")));
        std::process::exit(1);
    }
    match guest.rings.producer(index) {
        Ok(producer) => {
            let vcpu = Box::new(Vcpu::new(index as u8, guest, producer, registers));
            if let Some(slot) = VCPUS.get(index as usize) {
                slot.store(Box::into_raw(vcpu), Ordering::Relaxed);
            }
        }
        Err(error) => complain(&error.to_string()),
    }
}

fn on_idle(index: c_uint) {
    with(index, |vcpu, _| vcpu.idle());
}

fn on_resume(index: c_uint) {
    with(index, Vcpu::resume);
}

/// QEMU ends, on whichever thread; no vCPU runs any more.
fn on_exit() {
    for index in 0..VCPUS.len() {
        with(index as c_uint, |vcpu, _| vcpu.stop());
    }
}

extern "C" fn on_block(index: c_uint, block: *mut c_void) {
    // SAFETY: a `Block` that `on_translate` leaked.
    let block = unsafe { &*block.cast::<Block>() };
    with(index, |vcpu, guest| vcpu.block(guest, block));
}

extern "C" fn on_special(index: c_uint, special: *mut c_void) {
    // SAFETY: a `Special` that `on_translate` leaked.
    let special = unsafe { &*special.cast::<Special>() };
    with(index, |vcpu, guest| vcpu.special(guest, special));
}

extern "C" fn on_access(index: c_uint, info: u32, gva: u64, at: *mut c_void) {
    with(index, |vcpu, guest| vcpu.access(guest, info, gva, at as u64));
}

/// gPA of the access that a callback is for; `None` if it is to a device.
pub fn physical(info: u32, gva: u64) -> Option<u64> {
    // SAFETY: called within the callback of this very access, as QEMU asks; what it returns is valid
    // until the callback ends.
    unsafe {
        let hwaddr = ffi::qemu_plugin_get_hwaddr(info, gva);
        if hwaddr.is_null() || ffi::qemu_plugin_hwaddr_is_io(hwaddr) {
            return None;
        }
        Some(ffi::qemu_plugin_hwaddr_phys_addr(hwaddr))
    }
}

/// Parts of a file that hold data, as `(offset, bytes)`; the rest are holes that read as zeros.
pub fn data_ranges(file: &std::fs::File) -> Vec<(u64, u64)> {
    let seek = |from: u64, whence| {
        // SAFETY: an open file; the call moves its offset, which nobody uses.
        let found = unsafe { ffi::lseek(file.as_raw_fd(), from as i64, whence) };
        u64::try_from(found).ok()
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(start) = seek(at, ffi::SEEK_DATA) {
        let Some(end) = seek(start, ffi::SEEK_HOLE).filter(|e| *e > start) else { break };
        ranges.push((start, end - start));
        at = end;
    }
    ranges
}

/// A block is translated: what its execution will need is found now, once.
fn on_translate(tb: *mut ffi::Opaque) {
    let Some(guest) = GUEST.get() else { return };
    // SAFETY: the block and its instructions are valid during this callback; what is registered with
    // them is kept by QEMU for as long as the translation is. The data of callbacks is leaked, since
    // QEMU does not tell when a translation is gone: some 60 bytes per block.
    unsafe {
        let count = ffi::qemu_plugin_tb_n_insns(tb);
        let first = ffi::qemu_plugin_tb_get_insn(tb, 0);
        let Some(gpa) = guest.ram.of_host(ffi::qemu_plugin_insn_haddr(first) as u64) else {
            // Firmware in ROM. Nothing there is recorded.
            return;
        };
        let start = ffi::qemu_plugin_insn_vaddr(first);
        let page = start & !0xfff;
        let mut block =
            Block { gpa, offset: gpa & 0xfff, instructions: [0; 2], lines: [0; 2], second: 0 };
        for i in 0..count {
            let insn = ffi::qemu_plugin_tb_get_insn(tb, i);
            // The offset within the page is right even if the address is another process's.
            let at = ffi::qemu_plugin_insn_vaddr(insn).wrapping_sub(page);
            let size = ffi::qemu_plugin_insn_size(insn) as u64;
            add(guest, &mut block, insn, at, size);
            let data = at as usize as *mut c_void;
            ffi::qemu_plugin_register_vcpu_mem_cb(
                insn,
                on_access,
                ffi::NO_REGISTERS,
                ffi::LOADS_AND_STORES,
                data,
            );
            let mut bytes = [0u8; 16];
            let got = ffi::qemu_plugin_insn_data(insn, bytes.as_mut_ptr().cast(), bytes.len());
            if let Some(what) = decode::decode(&bytes[..got.min(bytes.len())]) {
                let special = Box::leak(Box::new(Special { what, next: at + size }));
                ffi::qemu_plugin_register_vcpu_insn_exec_cb(
                    insn,
                    on_special,
                    ffi::READ_REGISTERS,
                    std::ptr::from_mut(special).cast(),
                );
            }
        }
        let block = Box::leak(Box::new(block));
        let data = std::ptr::from_mut(block).cast();
        ffi::qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, ffi::READ_REGISTERS, data);
    }
}

/// Adds an instruction to its block: lines and pages that its bytes are in.
fn add(guest: &Guest, block: &mut Block, insn: *const ffi::Opaque, at: u64, size: u64) {
    let last = at + size.max(1) - 1;
    if at >> 12 == 0 {
        block.instructions[0] = block.instructions[0].saturating_add(1);
        block.lines[0] |= lines(at, last.min(0xfff));
    }
    if last >> 12 != 0 {
        if at >> 12 != 0 {
            block.instructions[1] = block.instructions[1].saturating_add(1);
            if block.second == 0 {
                // SAFETY: an instruction of the block that is being translated.
                let host = unsafe { ffi::qemu_plugin_insn_haddr(insn) } as u64;
                block.second = guest.ram.of_host(host).unwrap_or(0) & !0xfff;
            }
        }
        block.lines[1] |= lines(at.max(0x1000) & 0xfff, last & 0xfff);
    }
}

const fn lines(first: u64, last: u64) -> u64 {
    u64::MAX << (first >> 6) & u64::MAX >> (63 - (last >> 6))
}

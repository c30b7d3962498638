//! The guest's own code: one page with an entry for each kind of action. Every entry ends with OUT,
//! which exits. The page holds the interrupt and segment descriptors and the stack, too, so that a page
//! fault that KVM injects touches nothing else.
//!
//! Registers: RDI is the address, RSI the value, RDX the port.
#![allow(unsafe_code)]

use std::arch::global_asm;

global_asm!(
    ".globl nestwalk_guest",
    ".p2align 4",
    "nestwalk_guest:",
    // Each entry has 16 bytes.
    "mov rax, [rdi]",
    "out dx, al",
    ".p2align 4",
    "mov [rdi], rsi",
    "out dx, al",
    ".p2align 4",
    "jmp rdi",
    ".p2align 4",
    "invlpg [rdi]",
    "out dx, al",
    ".p2align 4",
    "mov cr3, rdi",
    "out dx, al",
    ".p2align 4",
    // The handler of page faults.
    "out dx, al",
    ".p2align 4",
);

const BYTES: usize = 6 * 16;

unsafe extern "C" {
    #[link_name = "nestwalk_guest"]
    static CODE: [u8; BYTES];
}

/// Where the guest's page is mapped in every address space, and where it is, unless a program says it.
pub const AT: u64 = 0xffff_ffff_8000_0000;
pub const PLACE: u64 = 0x1000;
/// Offsets in the page. The task state holds the stack pointer for exceptions from user mode.
pub const GDT: u64 = 0x400;
pub const IDT: u64 = 0x500;
pub const TASK: u64 = 0x600;
pub const STACK: u64 = 0x400;
/// Vectors of the table: up to the page fault's, 14.
pub const VECTORS: u64 = 15;
/// Bytes of the segment descriptors and of the task state.
pub const GDT_BYTES: u64 = 48;
pub const TASK_BYTES: u64 = 0x68;
/// Selectors.
pub const KERNEL_CODE: u16 = 0x10;
pub const KERNEL_DATA: u16 = 0x18;
pub const USER_DATA: u16 = 0x23;
pub const USER_CODE: u16 = 0x2b;

/// Offset of the entry of an action by its letter, and whether it is performed in user mode.
pub fn entry(letter: &str) -> Option<(u64, bool)> {
    let small = letter.to_ascii_lowercase();
    let place = ["r", "w", "x", "i", "c"].iter().position(|l| *l == small)?;
    let user = letter != small;
    (place < 3 || !user).then_some((16 * place as u64, user))
}

/// The page's contents, if it is mapped at `base`.
pub fn page(base: u64) -> Vec<u8> {
    let mut page = vec![0xee; 4096];
    // SAFETY: the assembly above defines so many bytes, which nobody writes.
    page[..BYTES].copy_from_slice(unsafe { &*std::ptr::addr_of!(CODE) });
    let mut put = |at: u64, value: u64| {
        page[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
    };
    // Null, null, 64-bit code, data, data and 64-bit code of user mode: accessed already.
    let (code, data) = (0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff);
    let user = 3 << 45;
    for (i, segment) in [0, 0, code, data, data | user, code | user].iter().enumerate() {
        put(GDT + 8 * i as u64, *segment);
    }
    // The entry after a page fault ends with OUT.
    let handler = base + 5 * 16;
    for vector in 0..VECTORS {
        // An interrupt gate to kernel code, present.
        let selector = u64::from(KERNEL_CODE) << 16;
        let low = handler & 0xffff | selector | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        put(IDT + 16 * vector, low);
        put(IDT + 16 * vector + 8, handler >> 32);
    }
    for at in (TASK..TASK + TASK_BYTES).step_by(8) {
        put(at, 0);
    }
    put(TASK + 4, base + STACK);
    page
}

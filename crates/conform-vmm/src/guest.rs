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

/// Where the guest's page is mapped in every address space.
pub const AT: u64 = 0xffff_ffff_8000_0000;
/// Frame of the page.
pub const FRAME: usize = 1 << 12;
/// Where it ends with OUT after a page fault.
pub const FAULT_ENTRY: u64 = AT + 5 * 16;
/// Offsets in the page.
pub const GDT: u64 = 0x400;
pub const IDT: u64 = 0x500;
pub const STACK: u64 = 0x400;
/// Vectors of the table: up to the page fault's, 14.
pub const VECTORS: u64 = 15;

/// Entry of an action by its letter.
pub fn entry(letter: &str) -> Option<u64> {
    let place = ["r", "w", "x", "i", "c"].iter().position(|l| *l == letter)?;
    Some(AT + 16 * place as u64)
}

/// The page's contents.
pub fn page() -> Vec<u8> {
    let mut page = vec![0xee; 4096];
    // SAFETY: the assembly above defines so many bytes, which nobody writes.
    page[..BYTES].copy_from_slice(unsafe { &*std::ptr::addr_of!(CODE) });
    let mut put = |at: u64, value: u64| {
        page[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
    };
    // Null, null, 64-bit code, data: accessed already.
    for (i, segment) in [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].iter().enumerate() {
        put(GDT + 8 * i as u64, *segment);
    }
    for vector in 0..VECTORS {
        // An interrupt gate to segment 0x10, present.
        let low =
            FAULT_ENTRY & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (FAULT_ENTRY >> 16 & 0xffff) << 48;
        put(IDT + 16 * vector, low);
        put(IDT + 16 * vector + 8, FAULT_ENTRY >> 32);
    }
    page
}

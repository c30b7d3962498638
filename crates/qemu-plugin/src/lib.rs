//! TCG plugin for QEMU that streams a guest's accesses and page tables.
//!
//! QEMU calls it for every translation block and every access; most are counted in a filter
//! (`nestwalk_wire`) and end there. Stores to page tables are followed (`tables`), and a few
//! instructions that matter are told when they are translated (`decode`). Everything goes to the
//! simulator through rings in shared memory, and QEMU waits when they are full.
//!
//! Licence: GPL-2.0-or-later, as QEMU's plugin interface asks for.
// QEMU's functions are there when QEMU loads the plugin, and so not in a test of it.
#![cfg_attr(test, allow(dead_code))]

mod access;
mod decode;
#[cfg(not(test))]
mod entry;
#[cfg(not(test))]
mod ffi;
#[cfg(not(test))]
mod guest;
mod ram;
#[cfg(not(test))]
mod registers;
mod tables;
#[cfg(not(test))]
mod vcpu;

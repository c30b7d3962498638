//! Real guests under QEMU.

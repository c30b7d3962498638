//! TCG plugin for QEMU that streams a guest's accesses and page tables.

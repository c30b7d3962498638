//! Real guests under QEMU: how one is made, started and brought to its end.
//!
//! A [`Guest`] says what runs where. [`Guest::boot`] finds the kernel, builds the guest's root file
//! system from Debian packages, busybox and the caller's files, and gives a [`Boot`], which starts
//! QEMU: with the plugin that streams the guest's events, or without. A [`Running`] guest hands out
//! the command's output as it comes, and its exit status.
//!
//! The root file system is in the guest's memory, and nothing in the guest depends on the host's
//! clock: with one vCPU, two runs of the same guest execute the same instructions.

mod apt;
pub mod btf;
mod cache;
mod command;
pub mod cpio;
mod elf;
mod error;
mod guest;
mod image;
mod init;
mod kernel;
mod kvm_host;
pub mod live;
mod pieces;
mod plugin;
pub mod programs;
mod qemu;
mod rootfs;
mod running;
mod scratch;
mod step;
mod userland;

pub use cache::Cache;
pub use command::{PATH, WORK};
pub use error::GuestError;
pub use guest::{Boot, Guest, Thp};
pub use kernel::{Kernel, KernelChoice, unpack as unpack_kernel};
pub use kvm_host::{KvmKernel, build_vmm, run_under_kvm};
pub use pieces::{Installed, installed, prepare, qemu_version};
pub use plugin::{build_plugin, plugin, plugin_api};
pub use qemu::{CPU, Files, Plugin, arguments as qemu_arguments, below_4g};
pub use running::{Outcome, Running};
pub use step::{At, Say, Step};

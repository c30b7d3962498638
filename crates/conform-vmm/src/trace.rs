//! The kernel's tracepoints, in tracefs.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;

const ROOT: &str = "/sys/kernel/tracing";
/// What is recorded.
const EVENTS: [&str; 12] = [
    "kvm/kvm_exit",
    "kvm/kvm_page_fault",
    "kvm/kvm_inj_exception",
    "kvm/kvm_emulate_insn",
    "kvmmmu/kvm_mmu_get_page",
    "kvmmmu/kvm_mmu_set_spte",
    "kvmmmu/kvm_mmu_sync_page",
    "kvmmmu/kvm_mmu_unsync_page",
    "kvmmmu/kvm_mmu_prepare_zap_page",
    "kvmmmu/kvm_mmu_set_accessed_bit",
    "kvmmmu/kvm_mmu_set_dirty_bit",
    "kvmmmu/fast_page_fault",
];

/// The exit for OUT, as AMD's processors number it.
const IO: u32 = 0x7b;
/// Where KVM counts, a folder for each virtual machine.
const COUNTERS: &str = "/sys/kernel/debug/kvm";

/// What KVM has counted for the virtual machine, by name; none if the kernel does not say it.
pub fn counters() -> Vec<(String, u64)> {
    let folders = fs::read_dir(COUNTERS).into_iter().flatten().flatten().map(|e| e.path());
    let files = folders.filter_map(|f| fs::read_dir(f).ok()).flatten().flatten();
    let mut all: Vec<(String, u64)> = files
        .filter_map(|file| {
            let value = fs::read_to_string(file.path()).ok()?.trim().parse().ok()?;
            Some((file.file_name().to_str()?.to_owned(), value))
        })
        .collect();
    all.sort();
    all
}

fn set(file: &str, value: &str) -> Result<(), String> {
    let path = format!("{ROOT}/{file}");
    fs::write(&path, value).map_err(|e| format!("cannot write {path}: {e}"))
}

/// The trace buffer of this kernel.
pub struct Trace {
    pipe: RefCell<File>,
    marker: RefCell<File>,
}

impl Trace {
    /// The events are on, and their lines are bare.
    pub fn start() -> Result<Self, String> {
        set("buffer_size_kb", "16384")?;
        set("trace_options", "nocontext-info")?;
        // Each action ends with OUT, of which nothing is to be known.
        set("events/kvm/kvm_exit/filter", &format!("exit_reason != {IO}"))?;
        for event in EVENTS {
            set(&format!("events/{event}/enable"), "1")?;
        }
        set("tracing_on", "1")?;
        let open = |name: &str, write: bool| {
            let path = format!("{ROOT}/{name}");
            let mut options = OpenOptions::new();
            options.read(!write).write(write).custom_flags(libc::O_NONBLOCK);
            options.open(&path).map(RefCell::new).map_err(|e| format!("cannot open {path}: {e}"))
        };
        Ok(Self { pipe: open("trace_pipe", false)?, marker: open("trace_marker", true)? })
    }

    /// A line that begins with `@`, at this place.
    pub fn mark(&self, text: &str) -> Result<(), String> {
        let mut marker = self.marker.borrow_mut();
        marker.write_all(format!("@{text}\n").as_bytes()).map_err(|e| format!("marker: {e}"))
    }

    /// What was recorded so far is dropped.
    pub fn clear(&self) -> Result<(), String> {
        set("trace", "")
    }

    /// What was recorded since.
    pub fn take(&self) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        match self.pipe.borrow_mut().read_to_end(&mut all) {
            Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => Err(format!("trace_pipe: {e}")),
            _ => Ok(all),
        }
    }
}

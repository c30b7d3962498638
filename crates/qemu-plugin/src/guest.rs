//! What all vCPUs share.

use crate::access::Reading;
use crate::ram::Ram;
use crate::tables::{Levels, Tables};
use nestwalk_wire::{FilterConfig, Rings};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// What the simulator asked for, from the plugin's arguments.
#[derive(Clone, Debug)]
pub struct Options {
    /// File of the rings.
    pub rings: String,
    /// File behind guest RAM.
    pub ram: String,
    /// Bytes of RAM below the I/O gap.
    pub low: u64,
    /// Recording begins with the first CR3 load, not with the command.
    pub boot: bool,
    /// Recording begins with the program's mark of its region of interest.
    pub interest: bool,
    /// QEMU's translation goes with every record.
    pub check: bool,
    /// The filters for data and for fetches.
    pub filters: [FilterConfig; 2],
    /// Where the kernel has the running task and its name, if known.
    pub task: Option<Task>,
}

/// Offsets in Linux's data.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// The running task in the per-CPU area.
    pub current: u64,
    /// The name in a task.
    pub comm: u64,
    /// The process number in a task.
    pub tgid: u64,
}

impl Options {
    /// Reads `key=value` arguments.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut options = Self {
            rings: String::new(),
            ram: String::new(),
            low: u64::MAX,
            boot: false,
            interest: false,
            check: false,
            filters: [nestwalk_wire::DATA, nestwalk_wire::FETCH],
            task: None,
        };
        for argument in arguments {
            let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
            let number =
                || value.parse::<u64>().map_err(|_| format!("{key}={value}: a number is needed"));
            let mut task = options.task.unwrap_or(Task { current: 0, comm: 0, tgid: 0 });
            match key {
                "rings" => options.rings = value.into(),
                "ram" => options.ram = value.into(),
                "low" => options.low = number()?,
                "boot" => options.boot = value == "on",
                "interest" => options.interest = value == "on",
                "check" => options.check = value == "on",
                "filter" if value == "runs" => options.filters = [FilterConfig::RUNS; 2],
                "filter" if value == "sets" => {}
                "current" => task.current = number()?,
                "comm" => task.comm = number()?,
                "tgid" => task.tgid = number()?,
                _ => return Err(format!("{argument}: no such argument of this plugin")),
            }
            if ["current", "comm", "tgid"].contains(&key) {
                options.task = Some(task);
            }
        }
        if options.rings.is_empty() || options.ram.is_empty() {
            return Err("rings=FILE and ram=FILE are needed: nestwalk gives them".into());
        }
        Ok(options)
    }
}

/// The guest.
pub struct Guest {
    pub options: Options,
    /// Of the words that describe accesses.
    pub reading: Reading,
    pub rings: Rings,
    pub ram: Ram,
    pub levels: Levels,
    pub tables: Mutex<Tables>,
    /// Events are recorded.
    pub recording: AtomicBool,
    /// A vCPU has begun.
    pub started: AtomicBool,
    /// Grows when a frame becomes a table: what a filter holds of it as a page to store to is wrong.
    pub tables_made: AtomicU64,
    /// Address of the interrupt descriptor table.
    pub idt: AtomicU64,
    /// gPA of the first instruction of the page-fault handler.
    pub fault_entry: AtomicU64,
    pub vcpus: u32,
}

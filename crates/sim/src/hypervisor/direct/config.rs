//! What follows the scheme's name: `xen-pv/batch=32`.

use crate::scheme::options::{OptionRow, OptionTable, whole};

/// Updates that Linux queues before it asks (`MC_BATCH`, `arch/x86/xen/multicalls.c`).
pub const BATCH: usize = 32;

/// Most that may be asked for.
const MOST: u64 = 4096;

/// How a domain asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectConfig {
    /// Updates of leaf entries that go into one hypercall.
    pub batch: usize,
}

impl Default for DirectConfig {
    fn default() -> Self {
        Self { batch: BATCH }
    }
}

/// What may be set after the name.
pub static OPTIONS: OptionTable<DirectConfig> = OptionTable::new(&[OptionRow {
    name: "batch",
    values: "N",
    meaning: "updates of leaf entries that go into one hypercall, 1 to 4096; 1: each by itself (32)",
    set: |c, value| whole(value, 1, MOST).map(|batch| c.batch = batch as usize),
    get: |c| c.batch.to_string(),
}]);

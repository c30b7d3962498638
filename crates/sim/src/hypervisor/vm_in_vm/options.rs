//! Options of VMs in VMs, as names of machines spell them: `pvm/prefault=off:4k+2m`.

use crate::scheme::options::{OptionRow, OptionTable, one_of, word_of};
use nestwalk_mm::PagePolicy;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Page sizes of L1 behind L2's memory; `None` as the host's.
    pub l1: Option<PagePolicy>,
    /// L0 has memory behind all that L1 uses, since before.
    pub lived: bool,
    /// L1 takes pages back, not L0.
    pub reclaimed_by_l1: bool,
    /// EPT on EPT: L0 protects a table of L1 when it combines an entry below it, not when it is linked.
    pub lazy: bool,
    /// PVM's own.
    pub pvm: PvmOptions,
}

/// What PVM leaves out of what its paper adds to shadow paging.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PvmOptions {
    /// The shadow entry is not made when the guest's kernel returns from a fault, but at a fault more.
    pub no_prefault: bool,
    /// A load of CR3 flushes as KVM's shadow paging does, PCIDs or not.
    pub no_pcids: bool,
    /// One lock for all shadow tables, as KVM's.
    pub one_lock: bool,
}

type Row = OptionRow<Options>;

const LIVES: [(&str, bool); 2] = [("short", false), ("long", true)];
const WHO: [(&str, bool); 2] = [("l0", false), ("l1", true)];
const WHEN: [(&str, bool); 2] = [("linked", false), ("walked", true)];
const ON: [(&str, bool); 2] = [("on", false), ("off", true)];
const LOCKS: [(&str, bool); 2] = [("many", false), ("one", true)];

const L1: Row = Row {
    name: "l1",
    values: "host|4k|thp|2m|1g",
    meaning: "page sizes of the inner hypervisor behind its guest's memory; the host's unless given",
    set: |o, value| {
        o.l1 = match value {
            "host" => None,
            _ => Some(PagePolicy::by_name(value).ok_or("there are: host, 4k, thp, 2m, 1g")?),
        };
        Ok(())
    },
    get: |o| o.l1.map_or("host".into(), PagePolicy::name),
};
const LIVED: Row = Row {
    name: "lived",
    values: "short|long",
    meaning: "whether the inner hypervisor's VM has just begun, or all memory that it uses was touched \
              before; short unless given",
    set: |o, value| one_of(value, &LIVES).map(|long| o.lived = long),
    get: |o| word_of(&o.lived, &LIVES),
};
const RECLAIM: Row = Row {
    name: "reclaim",
    values: "l0|l1",
    meaning: "which hypervisor takes pages back that the host takes back; l0 unless given, of which the \
              inner one knows nothing",
    set: |o, value| one_of(value, &WHO).map(|l1| o.reclaimed_by_l1 = l1),
    get: |o| word_of(&o.reclaimed_by_l1, &WHO),
};
const STORES: Row = Row {
    name: "protect",
    values: "linked|walked",
    meaning: "when the outer hypervisor protects a table of the inner one: once it is linked, so that each \
              store exits, or, as KVM, once an entry below it is combined, and leaf tables until their first \
              store; linked unless given",
    set: |o, value| one_of(value, &WHEN).map(|lazy| o.lazy = lazy),
    get: |o| word_of(&o.lazy, &WHEN),
};
const PREFAULT: Row = Row {
    name: "prefault",
    values: "on|off",
    meaning: "the shadow entry is made when the guest's kernel returns from a fault, not at a fault more; on \
              unless given",
    set: |o, value| one_of(value, &ON).map(|off| o.pvm.no_prefault = off),
    get: |o| word_of(&o.pvm.no_prefault, &ON),
};
const PCIDS: Row = Row {
    name: "pcids",
    values: "on|off",
    meaning: "the guest's PCIDs are PCIDs of the processor, so that loads of CR3 keep translations; on \
              unless given",
    set: |o, value| one_of(value, &ON).map(|off| o.pvm.no_pcids = off),
    get: |o| word_of(&o.pvm.no_pcids, &ON),
};
const LOCK: Row = Row {
    name: "locks",
    values: "many|one",
    meaning: "shadow tables have locks of their own, for which nobody waits, or one as KVM's; many unless \
              given",
    set: |o, value| one_of(value, &LOCKS).map(|one| o.pvm.one_lock = one),
    get: |o| word_of(&o.pvm.one_lock, &LOCKS),
};

/// EPT on EPT.
pub static EPT_OPTIONS: OptionTable<Options> = OptionTable::new(&[L1, LIVED, RECLAIM, STORES]);
/// Shadow tables on EPT.
pub static SHADOW_OPTIONS: OptionTable<Options> = OptionTable::new(&[L1, LIVED, RECLAIM]);
/// PVM.
pub static PVM_OPTIONS: OptionTable<Options> =
    OptionTable::new(&[L1, LIVED, RECLAIM, PREFAULT, PCIDS, LOCK]);

//! Why control passes to the hypervisor: a row for each reason.

/// How a guest comes to its hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitClass {
    /// An exit of the processor's.
    Exit,
    /// A system call into the hypervisor of a guest that runs without hardware's help: no exit of the
    /// processor's.
    Hypercall,
    /// A fault that comes to the hypervisor of such a guest, and is handed on to its kernel.
    Trap,
    /// An exception or a privileged instruction of such a guest that the hypervisor answers by itself.
    Answered,
}

impl ExitClass {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exit => "exits of the processor's",
            Self::Hypercall => "hypercalls",
            Self::Trap => "traps",
            Self::Answered => "traps answered by the hypervisor",
        }
    }
}

macro_rules! exit_reasons {
    ($($variant:ident $key:literal $class:ident $meaning:literal;)*) => {
        /// Why control passed from the guest to the VMM.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum ExitReason {
            $(#[doc = $meaning] $variant,)*
        }
        impl ExitReason {
            /// All reasons in the order of their counters.
            pub const ALL: [Self; [$($key),*].len()] = [$(Self::$variant),*];
            /// Key in results, unit and meaning of each, in the same order.
            pub const ROWS: [(&'static str, &'static str, &'static str); Self::ALL.len()] =
                [$(($key, "count", $meaning)),*];
            const CLASSES: [ExitClass; Self::ALL.len()] = [$(ExitClass::$class),*];
        }
    };
}

exit_reasons! {
    EptViolation "ept_violation" Exit "a guest-physical address had no nested entry";
    TrueFault "true_fault" Exit "shadow: a fault that belongs to the guest and is injected";
    HiddenFault "hidden_fault" Exit
        "shadow: the guest maps the page, only the shadow entry was missing";
    DirtyFault "dirty_fault" Exit
        "shadow: first store to a clean page, to set the guest's dirty bit";
    TableWrite "table_write" Exit "shadow: a store to a write-protected guest table, emulated";
    TableUnsync "table_unsync" Exit
        "shadow: first store to a leaf table, which goes out of sync";
    Cr3Load "cr3_load" Exit "shadow: a load of CR3";
    Invalidation "invalidation" Exit "shadow: INVLPG or INVPCID";
    Interval "interval" Exit "agile: the end of an interval, when tables are looked through";
    ModeSwitch "mode_switch" Exit
        "a vCPU called out of the guest because the paging mode changes";
    HostMigration "host_migration" Exit
        "a vCPU called out of the guest because host pages have moved";
    RemoteFlush "remote_flush" Exit
        "another running vCPU called out of the guest to have its TLBs flushed";
    Preempted "preempted" Exit
        "a vCPU whose turn on its core is over: another VM of the host runs there";
    WriteProtected "write_protected" Exit
        "first store to a page that is write-protected to log which pages are stored to";
    PmlFull "pml_full" Exit "a page-modification log is full: 512 pages were stored to";
    PageReady "page_ready" Exit
        "asynchronous page faults: a vCPU called out of the guest for the interrupt that a page is there";
    PageReadyAck "page_ready_ack" Exit
        "asynchronous page faults: the guest's store that acknowledges it";
    Halted "halted" Exit
        "asynchronous page faults: a vCPU with no process to run until the page is there";
    FreePages "free_pages" Exit
        "free page reporting: a request with up to 32 free blocks of 2 MiB, which the host takes back";
    TableMemory "table_memory" Exit
        "pvDMT: a hypercall by which the guest has memory for its tables from the host, or gives it back";
    Balloon "balloon" Exit "ballooning: a request with up to 256 pages, which the host takes";
    InterruptSent "interrupt_sent" Exit
        "a vCPU's store to the interrupt controller to interrupt another";
    InterruptReceived "interrupt_received" Exit
        "a vCPU called out of the guest for an interrupt of another";
    OuterViolation "outer_violation" Exit
        "VM in a VM: the inner hypervisor's own memory, touched for the first time";
    InnerTableStore "inner_table_store" Exit
        "VM in a VM: a store of the inner hypervisor to its nested tables, emulated by the outer one";
    CombinedFill "combined_fill" Exit
        "VM in a VM: only the outer hypervisor's combination of both nested tables lacked an entry";
    InnerFlush "inner_flush" Exit
        "VM in a VM: INVEPT or INVVPID of the inner hypervisor, made by the outer one";
    FaultReturn "fault_return" Exit
        "PVM: hypercall by which the guest's kernel returns from a page fault";
    MmuUpdate "mmu_update" Hypercall "direct paging: hypercall that updates entries of tables";
    Pin "pin" Hypercall "direct paging: hypercall that makes pages tables, or tables pages";
    BasePointer "base_pointer" Hypercall "direct paging: hypercall that loads a root";
    TlbFlush "tlb_flush" Hypercall "direct paging: hypercall that invalidates translations";
    FaultBounce "fault_bounce" Trap "direct paging: page fault handed on to the guest kernel";
    TableEmulation "table_emulation" Trap
        "direct paging: store to a table by a user mapping, emulated";
    TlbRefill "tlb_refill" Trap
        "software-managed TLB: a miss that the guest's refill handler is told of";
    TlbCopy "tlb_copy" Answered
        "software-managed TLB: a miss that is answered from the hypervisor's copy";
    TlbSegment "tlb_segment" Answered
        "software-managed TLB: a miss of the guest kernel's view of guest-physical memory";
    TlbInstruction "tlb_instruction" Answered
        "software-managed TLB: an instruction of the guest on the TLB or its registers, emulated";
}

impl ExitReason {
    /// Key in results.
    pub const fn name(self) -> &'static str {
        Self::ROWS[self as usize].0
    }
    /// How the guest comes to the hypervisor.
    pub const fn class(self) -> ExitClass {
        Self::CLASSES[self as usize]
    }
    /// A hypercall of a guest that runs without hardware's help.
    pub const fn is_hypercall(self) -> bool {
        matches!(self.class(), ExitClass::Hypercall)
    }
    /// A fault, exception or privileged instruction that comes to the hypervisor of such a guest.
    pub const fn is_trap(self) -> bool {
        matches!(self.class(), ExitClass::Trap | ExitClass::Answered)
    }
}

//! What can be chosen: page sizes in both dimensions, nested or shadow paging, hardware.

use nestwalk_sim::report::results::MachineResult;

/// Page sizes of guest and host: whether they are large.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages {
    pub guest: bool,
    pub host: bool,
}

impl Pages {
    /// 4 KiB in both.
    pub const SMALL: Self = Self { guest: false, host: false };
    pub const ALL: [Self; 4] = [
        Self::SMALL,
        Self { guest: true, host: false },
        Self { guest: false, host: true },
        Self { guest: true, host: true },
    ];

    /// As names of machines have it.
    pub const fn name(self) -> &'static str {
        match (self.guest, self.host) {
            (false, false) => "4k+4k",
            (true, false) => "thp+4k",
            (false, true) => "4k+thp",
            (true, true) => "thp+thp",
        }
    }

    /// After large pages where `wanted` has them.
    pub const fn with(self, wanted: Self) -> Self {
        Self { guest: self.guest || wanted.guest, host: self.host || wanted.host }
    }

    /// Where they are large.
    pub const fn places(self) -> &'static str {
        match (self.guest, self.host) {
            (false, false) => "nowhere",
            (true, false) => "in the guest",
            (false, true) => "in the host",
            (true, true) => "in guest and host",
        }
    }
}

/// Hardware that is not built: its machine, and what it is.
pub struct Hardware {
    pub machine: &'static str,
    pub what: &'static str,
}

/// In the order of the table.
pub const HARDWARE: [Hardware; 4] = [
    Hardware { machine: "vmm-direct:4k+4k", what: "a direct segment in the host" },
    Hardware { machine: "dual-direct:4k+4k", what: "direct segments in guest and host" },
    Hardware { machine: "colt:4k+4k", what: "coalescing TLBs (CoLT)" },
    Hardware { machine: "rmm:4k+4k@eager+eager", what: "range TLBs with eager paging (RMM)" },
];

/// Both kinds of paging that KVM has.
pub const SCHEMES: [&str; 2] = ["nested", "shadow"];

/// The machine with these pages.
pub fn machine(scheme: &str, pages: Pages) -> String {
    format!("{scheme}:{}", pages.name())
}

/// Every machine, in the order of the table.
pub fn names() -> Vec<String> {
    let kinds = SCHEMES.iter().flat_map(|scheme| Pages::ALL.map(|pages| machine(scheme, pages)));
    kinds.chain(HARDWARE.iter().map(|h| h.machine.to_owned())).collect()
}

/// The results of a machine, which may have got its placement as a part of its name.
pub fn find<'a>(machines: &'a [MachineResult], name: &str) -> Option<&'a MachineResult> {
    machines.iter().find(|m| {
        m.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
    })
}

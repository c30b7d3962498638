//! What a VMM as KVM may do differently, as names of machines spell it, whatever the scheme:
//! `nested/eptad=off/nx_huge_pages=off:4k+2m`.
//!
//! - *`eptad`* (`kvm_intel.eptad`, 1 unless given): accessed and dirty flags of nested entries. With
//!   them on, the processor's accesses to guest tables are writes (SDM vol. 3C, "Accessed and Dirty Flags
//!   for EPT"): they set D in the nested entry of the table's page and need its permission to write. With
//!   them off they are reads. AMD's nested paging always has them (APM vol. 2, "Nested versus Guest Page
//!   Faults": table walks for guest page tables are always treated as data writes).
//! - *`nx_huge_pages`* (`kvm.nx_huge_pages`, `auto` unless given): large entries forbid fetches, and a
//!   page that is executed is mapped by 4 KiB (Linux 5.4 and later, against the erratum iTLB multihit).
//!   `auto` is on for the processors that have the erratum, which their profile says.
//! - *`kvm`* (4.19 unless given): the Linux version whose rules of shadow paging are followed.
//! - The nodes of the machine, and what lies on which, are rows of [`super::node_options`].

use crate::scheme::node_options::{
    COPIES, DATA, EPT, GPT, LOAD, MIGRATE, NODES, NodeOptions, PIN, SCAN_EVERY,
};
use crate::scheme::options::{OptionRow, OptionTable, one_of, word_of};
use nestwalk_hw::Profile;

type Row = OptionRow<VmmOptions>;

const FLAGS: [(&str, Option<bool>); 3] = [("auto", None), ("on", Some(true)), ("off", Some(false))];
// The default is not kept: the same machine has one name.
const ON: [(&str, Option<bool>); 2] = [("on", None), ("off", Some(false))];
const OFF: [(&str, Option<bool>); 2] = [("on", Some(true)), ("off", None)];

const EPT_AD: Row = Row {
    name: "eptad",
    values: "on|off",
    meaning: "accessed and dirty flags of nested entries, with which walks of guest tables are writes; on \
              unless given",
    set: |o, value| one_of(value, &ON).map(|flag| o.ept_ad = flag),
    get: |o| word_of(&o.ept_ad, &ON),
};
const EPT_AD_OFF: Row = Row {
    meaning: "accessed and dirty flags of nested entries set by walks of guest tables, too; off unless \
              given, as agile paging's paper needs",
    set: |o, value| one_of(value, &OFF).map(|flag| o.ept_ad = flag),
    get: |o| word_of(&o.ept_ad, &OFF),
    ..EPT_AD
};
const NX_HUGE_PAGES: Row = Row {
    name: "nx_huge_pages",
    values: "auto|on|off",
    meaning: "executed pages are mapped by 4 KiB; auto unless given: for processors with the erratum \
              iTLB multihit",
    set: |o, value| one_of(value, &FLAGS).map(|flag| o.nx_huge_pages = flag),
    get: |o| word_of(&o.nx_huge_pages, &FLAGS),
};
const VERSIONS: [(&str, KvmVersion); 3] =
    [("4.19", KvmVersion::V4_19), ("6.1", KvmVersion::V6_1), ("6.12", KvmVersion::V6_12)];
const KVM: Row = Row {
    name: "kvm",
    values: "4.19|6.1|6.12",
    meaning: "the Linux version whose rules of shadow paging are followed; 4.19 unless given",
    set: |o, value| one_of(value, &VERSIONS).map(|version| o.kvm = version),
    // As above: the default is not kept.
    get: |o| if o.kvm == KvmVersion::V4_19 { String::new() } else { word_of(&o.kvm, &VERSIONS) },
};

static NESTED: OptionTable<VmmOptions> = OptionTable::new(&[EPT_AD, NX_HUGE_PAGES]);
static NESTED_NODES: OptionTable<VmmOptions> = OptionTable {
    check: |o| o.nodes.check(),
    ..OptionTable::new(&[
        EPT_AD,
        NX_HUGE_PAGES,
        NODES,
        PIN,
        DATA,
        GPT,
        EPT,
        LOAD,
        MIGRATE,
        COPIES,
        SCAN_EVERY,
    ])
};
static BARE_METAL: OptionTable<VmmOptions> =
    OptionTable { check: |o| o.nodes.check(), ..OptionTable::new(&[NODES, PIN, DATA, GPT, LOAD]) };
static SHADOW: OptionTable<VmmOptions> = OptionTable::new(&[NX_HUGE_PAGES, KVM]);
static AGILE: OptionTable<VmmOptions> = OptionTable::new(&[EPT_AD_OFF, NX_HUGE_PAGES]);
static OTHER: OptionTable<VmmOptions> = OptionTable::new(&[]);

/// The Linux version whose KVM the rules of shadow paging are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord)]
pub enum KvmVersion {
    /// Linux 4.19, by its source.
    #[default]
    V4_19,
    /// Linux 6.1, compared event by event with the real one.
    V6_1,
    /// Linux 6.12, compared event by event with the real one.
    V6_12,
}

impl KvmVersion {
    /// Whether it is any later than 4.19.
    pub const fn is_newer(self) -> bool {
        !matches!(self, Self::V4_19)
    }
}

/// Which of the options a scheme's VMM has, and what stands unless given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmmKind {
    /// None: no VMM, or one that is not KVM.
    Other,
    /// KVM with nested tables.
    Nested,
    /// The same, on a machine that may have several nodes.
    NestedNodes,
    /// No VMM, on a machine that may have several nodes.
    BareMetal,
    /// KVM with shadow tables alone.
    Shadow,
    /// Agile paging's: as [`VmmKind::Nested`], walks of guest tables being reads unless asked for.
    Agile,
}

impl VmmKind {
    /// The options that it has.
    pub const fn options(self) -> &'static OptionTable<VmmOptions> {
        match self {
            Self::Other => &OTHER,
            Self::Nested => &NESTED,
            Self::NestedNodes => &NESTED_NODES,
            Self::BareMetal => &BARE_METAL,
            Self::Shadow => &SHADOW,
            Self::Agile => &AGILE,
        }
    }
}

/// What was asked for; `None` is the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmmOptions {
    /// Accessed and dirty flags of nested entries.
    pub ept_ad: Option<bool>,
    /// Executed pages are mapped by 4 KiB; `None` as the profile says.
    pub nx_huge_pages: Option<bool>,
    /// Whose rules of shadow paging.
    pub kvm: KvmVersion,
    /// The machine's nodes.
    pub nodes: NodeOptions,
}

/// What they come to on a processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmmRules {
    /// Hardware sets accessed and dirty flags in nested entries, and walks of guest tables are writes.
    pub ept_ad: bool,
    /// Large entries forbid fetches; what is executed is mapped by 4 KiB.
    pub nx_huge_pages: bool,
    /// Whose rules of shadow paging.
    pub kvm: KvmVersion,
}

impl VmmRules {
    /// Tables without flags, whose large pages may be executed.
    pub const PLAIN: Self = Self { ept_ad: false, nx_huge_pages: false, kvm: KvmVersion::V4_19 };
}

impl VmmOptions {
    /// What they come to.
    ///
    /// # Errors
    /// The processor has no such choice.
    pub fn rules(self, kind: VmmKind, profile: &Profile) -> Result<VmmRules, String> {
        if kind == VmmKind::Other {
            return Ok(VmmRules::PLAIN);
        }
        let core = &profile.core;
        if kind == VmmKind::Nested
            && self.ept_ad == Some(false)
            && core.nested_ad_always.value > 0.0
        {
            return Err(format!(
                "eptad=off: nested paging of {} always has accessed and dirty flags; leave it out",
                profile.name
            ));
        }
        Ok(VmmRules {
            ept_ad: self.ept_ad.unwrap_or(kind == VmmKind::Nested),
            nx_huge_pages: self.nx_huge_pages.unwrap_or(core.itlb_multihit.value > 0.0),
            kvm: self.kvm,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::options::parts;

    fn take(kind: VmmKind, text: &str) -> (VmmOptions, Vec<&str>) {
        kind.options().take(parts(text)).unwrap()
    }

    #[test]
    fn own_parts_are_taken_out_and_read_back_as_they_are_written() {
        let (options, rest) = take(VmmKind::Nested, "lived=long/eptad=off/nx_huge_pages=on");
        assert_eq!(rest, ["lived=long"]);
        assert_eq!(
            options,
            VmmOptions { ept_ad: Some(false), nx_huge_pages: Some(true), ..VmmOptions::default() }
        );
        assert_eq!(NESTED.spell(&options), "eptad=off/nx_huge_pages=on");
        assert_eq!(take(VmmKind::Nested, &NESTED.spell(&options)), (options, vec![]));
        // The default is not written; it differs for agile paging.
        let default = VmmOptions::default();
        assert_eq!(take(VmmKind::Nested, "eptad=on/nx_huge_pages=auto"), (default, vec![]));
        assert_eq!(take(VmmKind::Agile, "eptad=off"), (default, vec![]));
        assert_eq!(take(VmmKind::Agile, "eptad=on").0.ept_ad, Some(true));
        assert_eq!(AGILE.spell(&take(VmmKind::Agile, "eptad=on").0), "eptad=on");
        // What a scheme's VMM does not have is left for the scheme to refuse.
        assert_eq!(take(VmmKind::Shadow, "eptad=off").1, ["eptad=off"]);
        assert_eq!(take(VmmKind::Other, "nx_huge_pages=on").1, ["nx_huge_pages=on"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_there_is() {
        for (text, words) in [
            ("eptad=yes", ["eptad=yes", "on, off"]),
            ("eptad=auto", ["eptad=auto", "on, off"]),
            ("nx_huge_pages=1", ["nx_huge_pages=1", "auto, on, off"]),
            ("eptad=off/eptad=off", ["eptad", "twice"]),
        ] {
            let e = NESTED.take(parts(text)).unwrap_err();
            assert!(words.iter().all(|w| e.contains(w)), "{e}");
        }
    }

    /// Whether a processor has the erratum, and the choice, its profile says.
    #[test]
    fn what_the_options_come_to_depends_on_the_processor() {
        let of = |options: VmmOptions, name: &str| {
            options.rules(VmmKind::Nested, &Profile::load(name).unwrap())
        };
        let default = VmmOptions::default();
        for (name, nx_huge_pages) in
            [("cascade-lake-6252", true), ("sandy-bridge-e5-2430", true), ("zen2", false)]
        {
            assert_eq!(
                of(default, name).unwrap(),
                VmmRules { ept_ad: true, nx_huge_pages, kvm: KvmVersion::V4_19 }
            );
        }
        let off =
            VmmOptions { ept_ad: Some(false), nx_huge_pages: Some(false), ..VmmOptions::default() };
        assert_eq!(of(off, "cascade-lake-6252").unwrap(), VmmRules::PLAIN);
        let e = of(off, "zen2").unwrap_err();
        assert!(e.contains("eptad=off") && e.contains("zen2"), "{e}");
    }
}

//! The catalogue of schemes: one file each, and one word in the list below.

use crate::machine::DynMachine;
use crate::scheme::MachineConfig;
use crate::scheme::MachineError;
use crate::scheme::options::SchemeOptions;
use crate::scheme::vmm_options::VmmKind;
use thiserror::Error;

/// What a scheme is known by.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Name on the command line, in configuration and in results.
    pub name: &'static str,
    /// One line for the catalogue.
    pub summary: &'static str,
    /// It runs a virtual machine: there is a host behind the guest.
    pub virtualized: bool,
    /// What is true of it and of few others.
    pub facts: Facts,
    /// Which options of KVM its VMM has, beside its own keys.
    pub vmm: VmmKind,
    /// Its own options, which follow the name and a `/`.
    pub options: &'static dyn SchemeOptions,
    /// Makes a machine.
    pub build: fn(MachineConfig) -> Result<Box<dyn DynMachine>, MachineError>,
}

/// Facts of a scheme that sources, samples and names of machines ask for.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Its hypervisor empties TLBs at moments that no event of the guest announces. A recording
    /// that was filtered at its source cannot know of those, and hides accesses that would miss
    /// after them.
    pub flushes_by_itself: bool,
    /// It has registers for a segment of the guest, whose kernel must keep a primary region for
    /// that.
    pub primary_region: bool,
    /// Its first-level TLBs have sets of their own: a recording that was filtered at its source
    /// hides accesses that may miss there.
    pub own_l1_sets: bool,
    /// It is in one of the paging modes between which policies choose, so that what a policy would
    /// see can be sampled.
    pub sampled: bool,
    /// It has hardware beside [`crate::hardware::Hardware`] that remembers translations and knows
    /// no VPID: several VMs cannot share it.
    pub own_structures: bool,
    /// Its guest memory stays where it is: a host cannot take pages back.
    pub pins_memory: bool,
}

impl Facts {
    /// None of them.
    pub const NONE: Self = Self {
        flushes_by_itself: false,
        primary_region: false,
        own_l1_sets: false,
        sampled: false,
        own_structures: false,
        pins_memory: false,
    };
}

/// `name` has one `DEFINITION`; `name + NATIVE` another one, of the same on bare metal.
macro_rules! schemes {
    ($($name:ident $(+ $more:ident)*),* $(,)?) => {
        $(pub mod $name;)*
        /// Every scheme, in the order of the catalogue.
        pub static SCHEMES: &[Definition] = &[$($name::DEFINITION, $($name::$more,)*)*];
    };
}

schemes! {
    ideal, native, nested, shadow, agile, switching, xen_pv, sie, soft_tlb, ept_on_ept, spt_on_ept, pvm,
    ds, vmm_direct, guest_direct, dual_direct, spot + NATIVE, rmm + NATIVE, anchor + NATIVE,
    colt + NATIVE, clustered + NATIVE,
    shared_tlb + NATIVE, shadow_colt, hashed + NESTED + GUEST + NATIVE,
    flattened + NESTED + GUEST + NATIVE, ecpt + NESTED + GUEST + NATIVE, pom_tlb + NATIVE,
    dmt + PARAVIRTUAL + NATIVE, learned + NESTED + NATIVE, utopia + NESTED + GUEST + NATIVE,
    victima + NATIVE,
}

/// Other names of schemes: what vendors and kernels call them.
pub static ALIASES: &[(&str, &str)] = &[("ept", "nested"), ("npt", "nested"), ("tdp", "nested")];

/// The scheme of this crate of that name.
pub fn by_name(name: &str) -> Option<&'static Definition> {
    SCHEMES.iter().find(|s| s.name == name)
}

/// Names of the schemes whose paging mode can be sampled.
pub fn sampled() -> Vec<&'static str> {
    SCHEMES.iter().filter(|s| s.facts.sampled).map(|s| s.name).collect()
}

/// The schemes that names of machines may name: [`SCHEMES`], and those of other crates.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    added: Vec<&'static Definition>,
}

/// Why a scheme cannot be added to a catalogue.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CatalogueError {
    /// Its name has characters that names of machines have a use for.
    #[error("scheme `{0}`: a scheme's name is lower-case letters, digits and `-`")]
    Name(&'static str),
    /// Another has its name.
    #[error("scheme `{0}`: there is a scheme of that name; take another name")]
    Taken(&'static str),
}

impl Catalogue {
    /// The schemes of this crate.
    pub const fn new() -> Self {
        Self { added: Vec::new() }
    }

    /// The same with one more scheme.
    ///
    /// # Errors
    /// See [`CatalogueError`].
    pub fn with(mut self, scheme: &'static Definition) -> Result<Self, CatalogueError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if scheme.name.is_empty() || !scheme.name.chars().all(fits) {
            return Err(CatalogueError::Name(scheme.name));
        }
        if self.by_name(scheme.name).is_some() {
            return Err(CatalogueError::Taken(scheme.name));
        }
        self.added.push(scheme);
        Ok(self)
    }

    /// Every scheme, added ones last.
    pub fn schemes(&self) -> impl Iterator<Item = &'static Definition> {
        SCHEMES.iter().chain(self.added.iter().copied())
    }

    /// The scheme of that name, or of that other name, in any case.
    pub fn by_name(&self, name: &str) -> Option<&'static Definition> {
        let alias = ALIASES.iter().find(|a| a.0.eq_ignore_ascii_case(name));
        let name = alias.map_or(name, |a| a.1);
        self.schemes().find(|s| s.name.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::{Catalogue, CatalogueError, Definition, SCHEMES, nested};

    #[test]
    fn a_scheme_is_added_under_a_name_of_its_own() {
        static MINE: Definition = Definition { name: "mine", ..nested::DEFINITION };
        static ODD: Definition = Definition { name: "my/own", ..nested::DEFINITION };
        let catalogue = Catalogue::new().with(&MINE).unwrap();
        assert_eq!(catalogue.by_name("mine").unwrap().name, "mine");
        assert_eq!(catalogue.schemes().count(), SCHEMES.len() + 1);
        assert!(Catalogue::new().by_name("mine").is_none());
        assert_eq!(catalogue.with(&MINE).unwrap_err(), CatalogueError::Taken("mine"));
        assert_eq!(Catalogue::new().with(&ODD).unwrap_err(), CatalogueError::Name("my/own"));
        let taken = Catalogue::new().with(&nested::DEFINITION).unwrap_err();
        assert_eq!(taken, CatalogueError::Taken("nested"));
        // Nor under another's other name.
        static ALIAS: Definition = Definition { name: "ept", ..nested::DEFINITION };
        assert_eq!(Catalogue::new().with(&ALIAS).unwrap_err(), CatalogueError::Taken("ept"));
    }

    #[test]
    fn every_file_of_the_folder_is_in_the_list() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/schemes");
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let stem = path.file_stem().unwrap().to_string_lossy().replace('_', "-");
            if stem != "mod" {
                assert!(SCHEMES.iter().any(|s| s.name == stem), "{stem} is not in the list");
            }
        }
    }
}

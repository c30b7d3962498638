//! The catalogue of schemes: one file each, and one word in the list below.

use crate::machine::AnyMachine;
use crate::scheme::Build;
use crate::scheme::MachineError;
use crate::scheme::options::SchemeOptions;
use crate::scheme::vmm_options::VmmKind;

/// What a scheme is known by.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Name on the command line, in configuration and in results.
    pub name: &'static str,
    /// One line for the catalogue.
    pub summary: &'static str,
    /// It runs a virtual machine: there is a host behind the guest.
    pub virtualized: bool,
    /// Its hypervisor empties TLBs at moments that no event of the guest announces. A recording that was
    /// filtered at its source cannot know of those, and hides accesses that would miss after them.
    pub flushes_by_itself: bool,
    /// It has registers for a segment of the guest, whose kernel must keep a primary region for that.
    pub primary_region: bool,
    /// Its first-level TLBs have sets of their own: a recording that was filtered at its source hides
    /// accesses that may miss there.
    pub own_l1_sets: bool,
    /// It is in one of the paging modes between which policies choose, so that what a policy would see
    /// can be sampled.
    pub sampled: bool,
    /// Which options of KVM its VMM has, beside its own keys.
    pub vmm: VmmKind,
    /// Its own options, which follow the name and a `/`.
    pub options: &'static dyn SchemeOptions,
    /// Makes a machine.
    pub build: fn(Build) -> Result<Box<dyn AnyMachine>, MachineError>,
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
    ideal, native, nested, shadow, agile, switching, xen_pv, sie, ds, vmm_direct, guest_direct,
    dual_direct, spot + NATIVE, rmm + NATIVE, anchor + NATIVE, colt + NATIVE, clustered + NATIVE,
}

/// The scheme of that name.
pub fn by_name(name: &str) -> Option<&'static Definition> {
    SCHEMES.iter().find(|s| s.name == name)
}

/// Names of the schemes whose paging mode can be sampled.
pub fn sampled() -> Vec<&'static str> {
    SCHEMES.iter().filter(|s| s.sampled).map(|s| s.name).collect()
}

#[cfg(test)]
mod tests {
    use super::SCHEMES;

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

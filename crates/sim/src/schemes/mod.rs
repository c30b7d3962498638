//! The catalogue of schemes: one file each, and one word in the list below.

use crate::engine::AnyMachine;
pub use crate::engine::Build;
use crate::scheme::MachineError;
use crate::vmm::options::VmmKind;

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
    /// Which options of KVM its VMM has, beside its own keys.
    pub vmm: VmmKind,
    /// What may be set after the name: key, values, meaning.
    pub keys: &'static [(&'static str, &'static str, &'static str)],
    /// Reads what follows the name and a `/`, empty if nothing does: gives it back with nothing left to
    /// defaults that decides what the machine is, or says what is wrong.
    pub variant: fn(&str) -> Result<String, String>,
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

/// For schemes of which there is one kind.
///
/// # Errors
/// If one is asked for.
pub fn no_variants(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Ok(String::new())
    } else {
        Err(format!("there is only one kind, and nothing to set: leave `/{text}` out"))
    }
}

/// The scheme of that name.
pub fn by_name(name: &str) -> Option<&'static Definition> {
    SCHEMES.iter().find(|s| s.name == name)
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

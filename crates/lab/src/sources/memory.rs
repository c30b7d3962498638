//! Accesses in the memory of the program that runs the experiment, as sources beside those with names.

use nestwalk_source::memory::to_bytes;
pub use nestwalk_source::memory::{Access, Accesses, source};
use nestwalk_types::Source;
use std::hash::Hasher;
use twox_hash::XxHash64;

/// What names of such sources begin with.
pub const PREFIX: &str = "array:";

/// XXH64 of accesses, by which they have a name: the same accesses in another program are the same
/// experiment.
#[derive(Default)]
pub struct Hash {
    hash: XxHash64,
    bytes: Vec<u8>,
}

impl Hash {
    /// More accesses. Whoever adds all of them piece by piece takes pieces of the same length.
    pub fn add(&mut self, accesses: &[Access]) {
        to_bytes(accesses, &mut self.bytes);
        self.hash.write(&self.bytes);
    }

    /// What they are called in results, with the user's own name if there is one.
    pub fn name(&self, own: Option<&str>) -> String {
        let hash = self.hash.finish();
        own.map_or_else(|| format!("{PREFIX}{hash:016x}"), |n| format!("{PREFIX}{n}:{hash:016x}"))
    }
}

/// Sources that a program gives beside the names of all.
#[derive(Default)]
pub struct Given(Vec<(String, Box<dyn Source>)>);

impl Given {
    /// One more; its name is one of the experiment's sources.
    pub fn insert(&mut self, name: String, source: Box<dyn Source>) {
        self.0.push((name, source));
    }

    /// The first of that name.
    pub(crate) fn take(&mut self, name: &str) -> Option<Box<dyn Source>> {
        let at = self.0.iter().position(|given| given.0 == name)?;
        Some(self.0.remove(at).1)
    }
}

//! The structures of the catalogue as one type, so that the loop of a machine is compiled once for each
//! pair of sides and not for each structure.

use super::classic::Classic;
use super::cuckoo::Cuckoo;
use super::direct::Direct;
use super::flat::Flat;
use super::flattened::Flattened;
use super::hashed::Hashed;
use super::learned::Learned;
use super::restricted::Restricted;
use super::{Found, Key, NoMemory, Structure, StructureState, Supply, Work};

macro_rules! any {
    ($($name:ident)*) => {
        /// One of the structures. Which one is asked once for each look-up.
        pub enum Any {
            $(
                #[allow(missing_docs, reason = "each is told where its type is")]
                $name($name),
            )*
        }
        $(impl From<$name> for Any {
            fn from(structure: $name) -> Self {
                Self::$name(structure)
            }
        })*
        impl Structure for Any {
            #[inline]
            fn look_up<E>(
                &mut self,
                core: usize,
                key: Key,
                fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
            ) -> Result<Option<Found>, E> {
                match self { $(Self::$name(s) => s.look_up(core, key, fetch),)* }
            }
            fn get(&self, key: Key) -> Option<Found> {
                match self { $(Self::$name(s) => s.get(key),)* }
            }
            fn put(
                &mut self,
                key: Key,
                shift: u8,
                entry: u64,
                memory: &mut dyn Supply,
            ) -> Result<(), NoMemory> {
                match self { $(Self::$name(s) => s.put(key, shift, entry, memory),)* }
            }
            fn remove(&mut self, key: Key, shift: u8, memory: &mut dyn Supply) -> bool {
                match self { $(Self::$name(s) => s.remove(key, shift, memory),)* }
            }
            fn mark(&mut self, found: &Found, bits: u64) {
                match self { $(Self::$name(s) => s.mark(found, bits),)* }
            }
            fn shifts(&self) -> Vec<u8> {
                match self { $(Self::$name(s) => s.shifts(),)* }
            }
            #[inline]
            fn cycles(&self) -> u64 {
                match self { $(Self::$name(s) => s.cycles(),)* }
            }
            fn root_loaded(&mut self, root: u64, memory: &mut dyn Supply) {
                match self { $(Self::$name(s) => s.root_loaded(root, memory),)* }
            }
            fn root_gone(&mut self, root: u64) {
                match self { $(Self::$name(s) => s.root_gone(root),)* }
            }
            fn forget_walks(&mut self, core: usize) {
                match self { $(Self::$name(s) => s.forget_walks(core),)* }
            }
            fn work(&mut self) -> &mut Work {
                match self { $(Self::$name(s) => s.work(),)* }
            }
            fn state(&self) -> StructureState {
                match self { $(Self::$name(s) => s.state(),)* }
            }
        }
    };
}

any!(Hashed Classic Flattened Flat Cuckoo Direct Learned Restricted);

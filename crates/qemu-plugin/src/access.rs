//! What the word says that QEMU gives with each access.
//!
//! The interface has functions that read it; they would be called for every access of the guest. So the
//! word is read here, and where QEMU keeps the size in it is found by asking these functions once: in
//! QEMU 10.0 it lies above 4 bits of the MMU's index, in QEMU 10.2 above 5.

/// Bit of a store.
const STORE: u32 = 17;

/// How to read the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// The lowest bit of the size.
    size: u32,
}

impl Reading {
    /// Finds it by QEMU's own functions for the size, as a power of two, and for stores.
    pub fn find(size: impl Fn(u32) -> u32, store: impl Fn(u32) -> bool) -> Result<Self, String> {
        let lies_at = |bit: &u32| (0..=4).all(|n| size(n << bit) == n) && size(1 << (bit - 1)) == 0;
        let stores = store(1 << STORE) && !store(!(1 << STORE));
        match (4..STORE - 4).find(lies_at) {
            Some(size) if stores => Ok(Self { size }),
            _ => Err("QEMU describes accesses in a way that the plugin does not know".into()),
        }
    }

    /// Bytes of the access.
    #[inline(always)]
    pub const fn bytes(self, info: u32) -> u64 {
        1 << (info >> self.size & 7)
    }

    /// Whether it is a store, and whether the kernel made it: by the MMU's index, of which
    /// `MMU_USER64_IDX` and `MMU_USER32_IDX` are 2 and 3 (`target/i386/cpu.h`).
    #[inline(always)]
    pub const fn kind(info: u32) -> (bool, bool) {
        (info >> STORE & 1 == 1, info & 14 != 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU makes the word (`make_memop_idx`, `make_plugin_meminfo`).
    fn word(bits: u32, size: u32, index: u32, store: bool) -> u32 {
        (size | 0x20) << bits | index | if store { 2 } else { 1 } << 16
    }

    #[test]
    fn sizes_are_found_wherever_qemu_keeps_them() {
        for bits in [4, 5] {
            let size = |info: u32| info >> bits & 7;
            let reading = Reading::find(size, |info| info >> 17 & 1 == 1).unwrap();
            for (n, index, store) in [(0, 0, false), (2, 2, true), (3, 3, true), (4, 8, false)] {
                let info = word(bits, n, index, store);
                assert_eq!(reading.bytes(info), 1 << n, "{bits} bits");
                assert_eq!(Reading::kind(info), (store, index & 14 != 2));
            }
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(Reading::find(|info| info >> 4 & 7, |info| info >> 16 & 1 == 1).is_err());
        assert!(Reading::find(|_| 3, |info| info >> 17 & 1 == 1).is_err());
    }
}

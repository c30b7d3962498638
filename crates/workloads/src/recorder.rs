//! The instrument: what a program does to memory becomes events here.

use nestwalk_types::{AccessKind, Batch, BatchBuilder, Control, Gva, Room, VcpuId};

/// An instruction of the program that accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    pc: Gva,
    instructions: u32,
}

impl Site {
    /// The `index`-th access instruction of the program; `instructions` retire with it: itself and
    /// those since the access before.
    ///
    /// Sites are 17 bytes apart: a predictor which drops low bits of the instruction address still tells
    /// them apart, and one which indexes by low bits finds them spread, as instructions of x86 are.
    pub(crate) const fn new(index: u64, instructions: u32) -> Self {
        Self { pc: Gva::new(0x40_1000 + 17 * index), instructions }
    }
}

const VCPU: VcpuId = VcpuId(0);

/// Records accesses of one vCPU up to a limit; what comes after the limit is dropped, so that a
/// step of an algorithm need not end there.
pub(crate) struct Recorder {
    builder: BatchBuilder,
    limit: u64,
    left: u64,
}

impl Recorder {
    /// Records at most `limit` accesses.
    pub(crate) fn new(limit: u64) -> Self {
        Self { builder: BatchBuilder::new(), limit, left: limit }
    }

    #[inline(always)]
    fn access(&mut self, site: Site, address: u64, bytes: u32, kind: AccessKind) {
        debug_assert!(address & 0xfff <= 4096 - u64::from(bytes), "an access crosses a page");
        if self.left != 0 {
            self.left -= 1;
            self.builder.access(VCPU, site.pc, Gva::new(address), bytes, kind, site.instructions);
        }
    }

    /// A load of `bytes` bytes, which lie in one page.
    #[inline(always)]
    pub(crate) fn load(&mut self, site: Site, address: u64, bytes: u32) {
        self.access(site, address, bytes, AccessKind::Load);
    }
    /// A store of `bytes` bytes, which lie in one page.
    #[inline(always)]
    pub(crate) fn store(&mut self, site: Site, address: u64, bytes: u32) {
        self.access(site, address, bytes, AccessKind::Store);
    }
    /// Loads of `count` consecutive elements of `size` bytes.
    #[inline(always)]
    pub(crate) fn load_each(&mut self, site: Site, address: u64, size: u32, count: u64) {
        for i in 0..count {
            self.load(site, address + i * u64::from(size), size);
        }
    }
    /// Stores of `count` consecutive elements of `size` bytes.
    #[inline(always)]
    pub(crate) fn store_each(&mut self, site: Site, address: u64, size: u32, count: u64) {
        for i in 0..count {
            self.store(site, address + i * u64::from(size), size);
        }
    }

    /// A control, unless the limit has been reached.
    pub(crate) fn control(&mut self, control: Control) {
        if self.left != 0 {
            self.builder.control(control);
        }
    }

    /// The limit has been reached.
    pub(crate) const fn is_done(&self) -> bool {
        self.left == 0
    }
    /// A batch is full or the limit has been reached.
    #[inline(always)]
    pub(crate) fn should_hand_over(&self) -> bool {
        self.left == 0 || self.builder.is_full()
    }
    /// Accesses recorded so far.
    pub(crate) const fn recorded(&self) -> u64 {
        self.limit - self.left
    }
    /// How much is wanted until it is handed over.
    pub(crate) fn set_room(&mut self, room: Room) {
        self.builder.set_room(room);
    }
    /// Hands over what was recorded since the last time.
    pub(crate) fn take_into(&mut self, batch: &mut Batch) {
        self.builder.take_into(batch);
    }
}

//! Where software puts what it hands out, on a machine of several nodes.

use super::Platform;
use super::node_options::{NodeOptions, Put};
use nestwalk_mm::HostMemory;
use nestwalk_types::{Address, Gpa, Hpa, PageSize};

/// What a page is handed out for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// The program's data, and all that is no table.
    Data,
    /// A table of the guest.
    GuestTable,
    /// A nested table.
    NestedTable,
}

/// The placement that was asked for, and the turns of what is interleaved.
#[derive(Clone, Debug)]
pub struct Placing {
    /// What was asked for.
    pub options: NodeOptions,
    turns: [u8; 3],
}

impl Placing {
    /// As asked for; of tables that have copies, those themselves are the copy of node 0.
    pub const fn new(options: NodeOptions) -> Self {
        let mut options = options;
        if options.copies.gpt() {
            options.gpt = Put::On(0);
        }
        if options.copies.ept() {
            options.ept = Put::On(0);
        }
        Self { options, turns: [0; 3] }
    }

    /// The node for a page that is handed out for a vCPU on the node `own`.
    pub fn choose(&mut self, what: Use, own: u8) -> u8 {
        let NodeOptions { data, gpt, ept, nodes, .. } = self.options;
        let (put, turn) = match what {
            Use::Data => (data, 0),
            Use::GuestTable => (gpt, 1),
            Use::NestedTable => (ept, 2),
        };
        match put {
            Put::Touch => own,
            Put::On(node) => node,
            Put::Interleave => {
                let node = self.turns[turn];
                self.turns[turn] = (node + 1) % nodes.unwrap_or(1);
                node
            }
        }
    }
}

impl Platform {
    /// The frames of `bytes` bytes from `at` on are handed out for the current vCPU. Nothing happens
    /// on a machine of one node.
    pub fn place(&mut self, at: Hpa, bytes: u64, what: Use) {
        let Some(placing) = &mut self.placing else { return };
        if let Some(nodes) = self.cpu.hardware.caches.nodes_mut() {
            let node = placing.choose(what, nodes.of_core(usize::from(self.vcpu.0)));
            nodes.place(at, bytes, node);
        }
    }

    /// The host has a page behind guest memory: it is placed if it is `fresh`, or nobody has placed it.
    pub(super) fn place_page(&mut self, gpa: Gpa, (at, size): (Hpa, PageSize), fresh: bool) {
        let placed = self.cpu.hardware.caches.nodes().is_some_and(|n| n.of(at).is_some());
        if !fresh && placed {
            return;
        }
        self.place(at, size.bytes(), Use::Data);
        let first = gpa.align_down(size);
        for i in 0..size.base_pages() {
            if self.cpu.world.guest.contains(first.offset_by(i << 12)) {
                self.place(at.offset_by(i << 12), 4096, Use::GuestTable);
            }
        }
    }

    /// What a page of the guest is for has changed: a kernel that sees nodes takes pages for tables from
    /// another node's memory than pages for data. On bare metal its frame has its address.
    pub fn place_guest_page(&mut self, at: Gpa, bytes: u64, what: Use) {
        if self.placing.is_none() {
            return;
        }
        if let Some(frame) = self.frame_of(at) {
            self.place(frame, bytes, what);
        }
    }

    /// The guest cleared a page: it is no table, and on bare metal it is handed out just now.
    pub fn cleared(&mut self, at: Gpa) {
        let guest = &mut self.cpu.world.guest;
        if self.placing.is_some() && (self.host.is_none() || guest.contains(at)) {
            guest.remove(at);
            return self.place_guest_page(at, 4096, Use::Data);
        }
        guest.remove(at);
    }

    /// Where a page of the guest is, if there is anything behind it.
    pub fn frame_of(&self, at: Gpa) -> Option<Hpa> {
        match &self.host {
            None => Some(Hpa::new(at.value())),
            Some(host) => behind(host, at),
        }
    }
}

/// Where a page of the guest is, if the host has one behind it.
fn behind(host: &HostMemory, at: Gpa) -> Option<Hpa> {
    let page = host.look_up(at)?;
    Some(page.frame.offset_by(at.offset_in(page.size)))
}

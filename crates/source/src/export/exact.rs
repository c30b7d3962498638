//! Streams of single accesses: instructions put together again.

use super::Exported;
use super::records::{Item, Records};
use nestwalk_types::Run;
use std::io;

/// Bytes that a run of one access touches, as far as its lines tell.
fn item(run: &Run) -> Item {
    let address = run.gva.value();
    let last = 63 - u64::from(run.lines.max(1).leading_zeros());
    let end = (address & !0xfff) + (last << 6) + 1;
    Item { address, bytes: end.saturating_sub(address).max(1) }
}

/// What an access is to an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Fetch,
    Load,
    Store,
}

impl Kind {
    const fn of(run: &Run) -> Self {
        match run.flags {
            f if f.is_fetch() => Self::Fetch,
            f if f.is_store() => Self::Store,
            _ => Self::Load,
        }
    }
}

/// The instruction that is put together: it is written when something comes that is not its own.
#[derive(Default)]
pub(super) struct Exact {
    ip: Option<Item>,
    /// It is fetched.
    fetched: bool,
    kernel: bool,
    loads: Vec<Item>,
    stores: Vec<Item>,
    /// The latest access and the end of its page, if it touched the last line there.
    latest: Option<(Kind, u64, u64)>,
}

impl Exact {
    pub(super) fn run(
        &mut self,
        run: &Run,
        records: &mut Records,
        done: &mut Exported,
    ) -> io::Result<()> {
        let (kind, pc, at) = (Kind::of(run), run.pc.value(), item(run));
        let end = (at.address & !0xfff).wrapping_add(0x1000);
        let crosses = self.latest == Some((kind, pc, at.address));
        let reaches_end = run.lines >> 63 == 1;
        let latest = reaches_end.then_some((kind, pc, end));
        if kind == Kind::Fetch {
            let second = self.ip.filter(|ip| crosses && self.fetched && ip.address == pc);
            self.latest = latest;
            match second {
                // The second page of the same instruction.
                Some(ip) if records.writing().longest > 1 => {
                    let bytes = at.address.wrapping_add(at.bytes).wrapping_sub(ip.address);
                    self.ip = Some(Item { bytes: bytes.min(records.writing().longest), ..ip });
                }
                Some(_) => done.fetches += 1,
                None => {
                    self.flush(records, done)?;
                    self.begin(at, true, run);
                    self.latest = latest;
                }
            }
            return Ok(());
        }
        done.accesses += 1;
        let is_own =
            self.ip.is_some_and(|ip| ip.address == pc) && self.kernel == run.flags.is_kernel();
        if !is_own {
            self.flush(records, done)?;
            self.begin(Item { address: pc, bytes: 1 }, false, run);
        }
        let items = if kind == Kind::Load { &mut self.loads } else { &mut self.stores };
        match items.last_mut() {
            // The second page of the same access.
            Some(last) if crosses && last.bytes + at.bytes + 64 < records.writing().longest => {
                last.bytes = at.address.wrapping_add(at.bytes).wrapping_sub(last.address);
            }
            _ => items.push(at),
        }
        self.latest = latest;
        let (loads, stores) = records.writing().room;
        // Without a limit they are written as they come, in their order.
        if loads == usize::MAX && self.loads.len() + self.stores.len() > 1 {
            self.write_all_but_latest(kind, records, done)?;
        } else if self.loads.len() > loads || self.stores.len() > stores {
            let over = if kind == Kind::Load { self.loads.pop() } else { self.stores.pop() };
            let (ip, kernel) = (self.ip, self.kernel);
            self.flush(records, done)?;
            done.split += 1;
            // The rest is another instruction at the same place.
            (self.ip, self.kernel, self.fetched) = (ip, kernel, true);
            let items = if kind == Kind::Load { &mut self.loads } else { &mut self.stores };
            items.extend(over);
            self.latest = latest;
        }
        Ok(())
    }

    fn begin(&mut self, ip: Item, fetched: bool, run: &Run) {
        (self.ip, self.fetched, self.kernel) = (Some(ip), fetched, run.flags.is_kernel());
    }

    /// Writes what the instruction has but its latest access, which may have a second page.
    fn write_all_but_latest(
        &mut self,
        kind: Kind,
        records: &mut Records,
        done: &mut Exported,
    ) -> io::Result<()> {
        let latest = if kind == Kind::Load { self.loads.pop() } else { self.stores.pop() };
        let ip = self.ip;
        self.put(records, done)?;
        // It has been fetched now.
        (self.ip, self.fetched) = (ip, false);
        if kind == Kind::Load { &mut self.loads } else { &mut self.stores }.extend(latest);
        Ok(())
    }

    /// Writes the instruction with its accesses.
    fn put(&mut self, records: &mut Records, done: &mut Exported) -> io::Result<()> {
        let Some(ip) = self.ip.take() else { return Ok(()) };
        let accesses = (self.loads.len() + self.stores.len()) as u64;
        if !records.mode(self.kernel)? && self.kernel {
            done.kernel += accesses + u64::from(self.fetched);
        }
        let made = !self.fetched && records.writing().needs_instructions;
        done.made += u64::from(made);
        done.instructions += u64::from(self.fetched || made);
        let unknown = !self.fetched && ip.address != 0 && records.is_new(ip.address);
        if unknown && !made && !records.writing().has_addresses {
            done.addresses += accesses;
        }
        let at = records.is_new(ip.address) && !self.fetched && !records.writing().has_addresses;
        // A format that cannot hold it must not take it for one that was fetched.
        let place = if at && !made { Item { address: u64::MAX, ..ip } } else { ip };
        records.instruction(self.fetched, place, &self.loads, &self.stores)?;
        self.loads.clear();
        self.stores.clear();
        Ok(())
    }

    /// Writes the instruction, and forgets it.
    pub(super) fn flush(&mut self, records: &mut Records, done: &mut Exported) -> io::Result<()> {
        self.put(records, done)?;
        self.latest = None;
        Ok(())
    }
}

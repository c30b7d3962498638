//! A source without page tables, with those that came beside it.

use super::PageTables;
use nestwalk_types::{Batch, Control, GuestInfo, ProcessId, Room, Source, SourceError, SourceInfo};

/// A trace whose page tables are known: the stream of a guest.
pub struct Mapped<S> {
    inner: S,
    begin: Vec<Control>,
    guest: GuestInfo,
    notes: Vec<String>,
    process: Option<ProcessId>,
    /// Every process has these tables.
    shared: bool,
}

impl<S: Source> Mapped<S> {
    /// Gives `inner`, a trace of one process, these tables.
    ///
    /// # Errors
    /// It is a recorded guest, which has its own.
    pub fn new(inner: S, tables: &PageTables) -> Result<Self, SourceError> {
        let info = inner.info();
        if info.guest.is_some() {
            let message = "is a recorded guest, which has its own page tables".into();
            return Err(SourceError { source: info.name, message });
        }
        let (begin, guest) = tables.controls();
        let pages = tables.pages.len();
        let name = &tables.name;
        let mut notes = vec![format!(
            "page tables are those of {name}, {pages} pages, from the beginning on: there are no faults, \
             and no stores to them"
        )];
        if tables.moved {
            notes.push(
                "physical addresses from 3 GiB on are 1 GiB higher than in the page tables, since a \
                 guest's memory has a gap for devices there"
                    .into(),
            );
        }
        notes.extend(tables.notes.iter().cloned());
        Ok(Self { inner, begin, guest, notes, process: None, shared: tables.shared })
    }

    /// What the stream begins with.
    pub fn begin(&self) -> &[Control] {
        &self.begin
    }

    /// Controls of a process, of which there may be one only, are left out.
    fn controls(&mut self, batch: &mut Batch) -> Result<(), SourceError> {
        let mut other = None;
        batch.controls.retain(|(_, control)| match control {
            Control::Switch { process, .. } => {
                if !self.shared && *self.process.get_or_insert(*process) != *process {
                    other = Some(*process);
                }
                false
            }
            Control::RegionOfInterest => true,
            _ => false,
        });
        match other {
            None => Ok(()),
            Some(_) => Err(SourceError {
                source: self.inner.info().name,
                message:
                    "has several processes, and the page tables are those of one; convert the one \
                          that is meant with `trace convert --process` first"
                        .into(),
            }),
        }
    }
}

impl<S: Source> Source for Mapped<S> {
    fn info(&self) -> SourceInfo {
        let mut info = self.inner.info();
        info.approximations.extend(self.notes.iter().cloned());
        SourceInfo { guest: Some(self.guest.clone()), ..info }
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let more = self.inner.next_batch(batch)?;
        if let Err(error) = self.controls(batch) {
            *batch = Batch::default();
            return Err(error);
        }
        if !self.begin.is_empty() && more {
            let begin = std::mem::take(&mut self.begin);
            batch.controls.splice(0..0, begin.into_iter().map(|control| (0, control)));
        }
        Ok(more)
    }

    fn set_room(&mut self, room: Room) -> bool {
        self.inner.set_room(room)
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        self.inner.tally()
    }

    fn position(&self) -> u64 {
        self.inner.position()
    }
}

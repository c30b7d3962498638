//! How far a comparison is.

use nestwalk_types::{Batch, Control};

/// How far a comparison is: as far as its source has been handed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Accesses so far, set-up included.
    pub accesses: u64,
    /// Position in the source, in the unit of its total.
    pub position: u64,
    /// Anything has come: a live guest may still boot.
    pub begun: bool,
    /// Bytes of memory that set-up asked to be made present.
    pub populated: u64,
    /// Accesses before the batch in which the region of interest began; `None` until it does.
    pub before: Option<u64>,
}

impl Progress {
    /// Of what is only read: accesses so far, and the position.
    pub const fn read(accesses: u64, position: u64) -> Self {
        Self { accesses, position, begun: true, populated: 0, before: Some(0) }
    }

    /// A batch was dealt with, after which the source is at `position`.
    pub fn follow(&mut self, batch: &Batch, position: u64) {
        if self.before.is_none() {
            for (_, control) in &batch.controls {
                match control {
                    Control::Populate { bytes, .. } => self.populated += bytes,
                    Control::RegionOfInterest => self.before = Some(self.accesses),
                    _ => {}
                }
            }
        }
        self.accesses += batch.accesses();
        self.begun |= !batch.is_empty();
        self.position = position;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::{Gva, ProcessId};

    #[test]
    fn set_up_is_told_from_what_counts() {
        let mut progress = Progress::default();
        let mut batch = Batch::default();
        progress.follow(&batch, 0);
        assert_eq!(progress, Progress::default());
        let start = Gva::new(0);
        let populate = Control::Populate { process: ProcessId(1), start, bytes: 1 << 20 };
        batch.controls = vec![(0, populate.clone()), (0, populate)];
        progress.follow(&batch, 0);
        assert_eq!((progress.populated, progress.begun, progress.before), (2 << 20, true, None));
        batch.controls = vec![(0, Control::RegionOfInterest)];
        progress.follow(&batch, 7);
        assert_eq!((progress.before, progress.position), (Some(0), 7));
    }
}

//! One run.

/// Pages one after the other that map to frames one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct MappedRun {
    /// Number of the first page.
    pub from: u64,
    /// Number of the frame that it maps to.
    pub to: u64,
    /// How many pages of 4 KiB.
    pub pages: u64,
    /// What else must be equal for two runs to be one: permissions, or whatever the user says.
    pub tag: u16,
}

impl MappedRun {
    /// Page number minus frame number, modulo 2^64: what all pages of the run have in common.
    pub const fn offset(self) -> u64 {
        self.from.wrapping_sub(self.to)
    }

    /// The number after the last page's.
    pub const fn end(self) -> u64 {
        self.from.saturating_add(self.pages)
    }

    /// Whether the page is in the run.
    pub const fn contains(self, page: u64) -> bool {
        page >= self.from && page - self.from < self.pages
    }

    /// The frame that a page of the run maps to. Of other pages, the frame that it would map to if
    /// the run went on.
    pub const fn frame(self, page: u64) -> u64 {
        page.wrapping_sub(self.offset())
    }

    /// The part of the run from page number `from` up to before `end`, if there is any.
    pub fn clip(self, from: u64, end: u64) -> Option<Self> {
        let (first, last) = (self.from.max(from), self.end().min(end));
        let clipped =
            Self { from: first, to: self.frame(first), pages: last.checked_sub(first)?, ..self };
        (clipped.pages > 0).then_some(clipped)
    }

    /// Whether `next`, which begins where this one ends, goes on with it.
    pub(crate) const fn joins(self, next: Self) -> bool {
        self.end() == next.from && self.offset() == next.offset() && self.tag == next.tag
    }
}

//! Which page a kernel that is short of memory takes back, a host's or a guest's: a policy each file.
//!
//! A policy knows pages by number, and asks of one whether it was used since it last asked: what
//! that costs, and what accessed bits cannot show, is the business of whoever answers.

mod clock;
pub mod device;
mod fifo;
mod guests;
mod lru;
mod mglru;
mod two_lists;
mod working_set;

pub use clock::Clock;
pub use fifo::Fifo;
pub use guests::OfGuest;
pub use lru::Lru;
pub use mglru::Mglru;
pub use two_lists::TwoLists;
pub use working_set::WorkingSet;

/// A page of guest memory: the number of its VM, and its first guest frame number. In a guest: the
/// number of its address space, and its page number.
pub type Page = (u32, u64);

/// Says whether a page was used since this was last asked of it; `None` if it is gone meanwhile.
///
/// # Errors
/// What stops the search, told in the words of whoever answers.
pub type Used<'a, E> = dyn FnMut(Page) -> Result<Option<bool>, E> + 'a;

/// A policy of page replacement.
pub trait Replacement<E>: Send {
    /// The page was touched for the first time, or has come back.
    fn touched(&mut self, page: Page);

    /// The page was used. Only policies that are exact want to hear of every use; see
    /// [`Replacement::is_exact`].
    fn used(&mut self, _page: Page) {}

    /// A VM has run so many instructions.
    fn passed(&mut self, _vm: u32, _instructions: u64) {}

    /// It must hear of every use, which no hardware tells: an ideal to hold others against.
    fn is_exact(&self) -> bool {
        false
    }

    /// The next page to go, which the policy forgets; `None` if it knows none.
    ///
    /// # Errors
    /// As [`Used`].
    fn victim(&mut self, used: &mut Used<'_, E>) -> Result<Option<Page>, E>;

    /// Pages that are no more, of which `stays` says false, are forgotten.
    fn retain(&mut self, stays: &mut dyn FnMut(Page) -> bool);

    /// Pages that it knows.
    fn len(&self) -> usize;

    /// It knows no page.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A policy as a user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Kind {
    /// Exactly the least recently used one, which no hardware can tell.
    #[default]
    Lru,
    /// The one that came first.
    Fifo,
    /// The first around a clock's face that was not used since the hand last passed.
    Clock,
    /// Linux's active and inactive lists.
    TwoLists,
    /// Linux's generations.
    Mglru,
    /// One that is in no VM's working set, as far as sampling tells.
    WorkingSet,
}

impl Kind {
    /// Names on the command line and what they mean, in order.
    pub const ALL: [(&'static str, Self, &'static str); 6] = [
        ("lru", Self::Lru, "exactly the least recently used page, which no hardware can tell"),
        ("fifo", Self::Fifo, "the page that was touched first"),
        ("clock", Self::Clock, "second chance: the first page not used since the hand passed it"),
        ("two-lists", Self::TwoLists, "Linux's active and inactive lists (6.1)"),
        ("mglru", Self::Mglru, "Linux's multi-generational LRU (6.1)"),
        ("working-set", Self::WorkingSet, "WSClock: a page that its VM has not used for a turn"),
    ];

    /// The policy of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|k| k.0 == name).map(|k| k.1)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|k| k.1 == self).map_or("", |k| k.0)
    }

    /// A policy that knows no page yet; the window of one that has working sets is so many
    /// instructions.
    pub fn make<E: 'static>(self, window: u64) -> Box<dyn Replacement<E>> {
        match self {
            Self::Lru => Box::new(Lru::default()),
            Self::Fifo => Box::new(Fifo::default()),
            Self::Clock => Box::new(Clock::default()),
            Self::TwoLists => Box::new(TwoLists::default()),
            Self::Mglru => Box::new(Mglru::default()),
            Self::WorkingSet => Box::new(WorkingSet::new(window)),
        }
    }
}

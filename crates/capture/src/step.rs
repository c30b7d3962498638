//! What is told of the work on a guest while it is made ready.

/// A piece of news for whoever shows progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// This begins, in words, and takes time: "downloading packages".
    Begins(&'a str),
    /// As [`Step::Begins`], of a program that tells its own progress on standard error.
    Aloud(&'a str),
    /// How far what began last is.
    At(At<'a>),
    /// A piece that the guest has, or gets: "kernel 6.1.0: FILE".
    Found(&'a str),
}

/// How far a step with several items is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At<'a> {
    /// What it is at: the name of a package.
    pub item: &'a str,
    /// The item's number, from 1 on.
    pub number: usize,
    /// All items.
    pub items: usize,
    /// Bytes of all items that are done, or nearly so.
    pub bytes: u64,
    /// Bytes in all; `None` if they are not known.
    pub total: Option<u64>,
}

/// Takes what is told.
pub type Say<'a> = &'a mut dyn FnMut(Step<'_>);

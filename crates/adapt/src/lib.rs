//! Sources that change the stream of another on its way: warm-up, 32-bit guests, PCIDs.
//!
//! They look at every run, so they are no part of the command line, which is compiled without
//! optimisation. For the same reason [`first_touch`] and [`limit`] make the generic adaptors of
//! `nestwalk-source` here: generic code is compiled as the crate is that names its types.

mod narrow;
mod pcids;
mod warmup;

pub use narrow::{Layout, Narrow};
pub use pcids::Pcids;
pub use warmup::Warmup;

use nestwalk_source::{FirstTouch, Limit};
use nestwalk_types::Source;

/// A source that maps memory where its trace touches it: see [`FirstTouch`].
#[must_use]
pub fn first_touch(source: Box<dyn Source>) -> Box<dyn Source> {
    Box::new(FirstTouch::new(source))
}

/// The first `accesses` of a source after its set-up: see [`Limit`].
#[must_use]
pub fn limit(source: Box<dyn Source>, accesses: u64) -> Box<dyn Source> {
    Box::new(Limit::new(source, accesses))
}

/// A source whose first `accesses` are simulated and not counted: see [`Warmup`].
#[must_use]
pub fn warmup(source: Box<dyn Source>, accesses: u64) -> Box<dyn Source> {
    Box::new(Warmup::new(source, accesses))
}

/// A 64-bit program with fewer address bits: see [`Narrow`].
#[must_use]
pub fn narrow(source: Box<dyn Source>, layout: &'static Layout) -> Box<dyn Source> {
    Box::new(Narrow::new(source, layout))
}

/// A recording of a Linux guest as if its processor had PCIDs: see [`Pcids`].
#[must_use]
pub fn pcids(source: Box<dyn Source>, isolated: bool) -> Box<dyn Source> {
    Box::new(Pcids::new(source, isolated))
}

//! Where event streams come from: recorded guests, importers of trace formats, live programs,
//! synthetic patterns.
//!
//! Every source implements [`nestwalk_types::Source`] and works in constant memory. All sources of
//! this crate say which process runs on each vCPU before the first access, and say
//! [`nestwalk_types::Control::RegionOfInterest`] exactly once: traces and live programs at the
//! start, patterns after their set-up. A [`trace`] says what was recorded.

mod bytes;
mod decoder;
mod erased;
mod export;
mod first_touch;
mod formats;
mod input;
mod limit;
mod lines;
mod lz4;
pub mod memory;
mod multiplex;
mod page_tables;
mod patterns;
mod snappy;
mod temporary;
mod unpack;

/// `name` is a module that defines a `FORMAT`; `name + OTHER` one that defines another one, too.
macro_rules! formats {
    ($($vis:vis $name:ident $(+ $more:ident)*),* $(,)?) => {
        $($vis mod $name;)*
        /// Every trace format, in the order in which they are tried.
        const FORMATS: &[Format] =
            &[$(Format::new(&$name::FORMAT), $(Format::new(&$name::$more),)*)*];
    };
}

formats! {
    pub trace, gem5, pub lackey, pinatrace, perf, dinero, ramulator,
    pub drmemtrace, pub champsim + CLOUDSUITE,
}

#[doc(hidden)]
pub mod fuzzing;
#[doc(hidden)]
pub mod reading;

pub use drmemtrace::{Drmemtrace, are_one_trace, tables_of_trace};
pub use export::{ExportOptions, Exported, Exporter};
pub use first_touch::FirstTouch;
pub use formats::Format;
pub use input::{open, open_on};
pub use lackey::{Lackey, LackeyStats, RunOptions};
pub use limit::{CUT_BY_RUNS, Limit};
pub use multiplex::Multiplex;
pub use page_tables::{Mapped, PageTables};
pub use patterns::{Pattern, PatternError, PatternSource, PatternSpec};
pub use unpack::Packing;

//! A guest while it runs, as a source of events.

mod check;
mod decoder;
mod running;
mod stream;
mod summary;

pub use check::{Agreement, Check};
pub use decoder::REGION_OF_INTEREST;
pub use running::{Live, LiveOptions, NOT_STARTED, PAGING, failure};
pub use stream::{Next, Stream};
pub use summary::{Summary, Unseen};

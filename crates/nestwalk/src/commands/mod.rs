//! One file per command.

pub mod advise;
pub mod bench;
pub mod capture;
pub mod compare;
pub mod conform;
pub mod doctor;
pub mod entries;
pub mod explain;
pub mod fleet;
pub mod govern;
pub mod habits;
pub mod inspect;
pub mod measure;
pub mod reach;
pub mod report;
pub mod reproduce;
pub mod samples;
pub mod schema;
pub mod setup;
pub mod step;
pub mod sweep;
pub mod trace;
pub mod walk;
mod walk_cold;
mod walk_picture;

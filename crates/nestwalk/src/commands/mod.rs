//! One file per command.

pub mod bench;
pub mod capture;
pub mod compare;
pub mod doctor;
pub mod explain;
pub mod govern;
pub mod habits;
pub mod inspect;
pub mod reproduce;
pub mod samples;
pub mod setup;
pub mod trace;
pub mod walk;

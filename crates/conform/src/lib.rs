//! The real KVM as the referee of the modelled one.
//!
//! A script ([`script`]) says what a small guest does to its page tables. Compiled ([`program`]), it is
//! performed twice: by a guest without an operating system under a real KVM, whose tracepoints tell what
//! the hypervisor did ([`trace`]), and by the shadow MMU of the simulator ([`model`]). Both are told as
//! the same lines of text and compared action by action ([`mod@compare`]). What a real KVM answered is
//! kept in answer sheets ([`sheet`]), so that nobody needs one to compare again.
//!
//! Under nested paging the same programs tell which violations there are ([`nested`]).
//!
//! A part of a recorded guest is a program, too ([`recording`]). Of its answers, figures and hashes are
//! kept ([`figures`]), and the simulator's machines run the recording itself beside it ([`stream`]).

pub mod compare;
pub mod figures;
pub mod model;
pub mod nested;
pub mod paging;
pub mod program;
pub mod random;
pub mod recording;
pub mod script;
pub mod scripts;
pub mod sheet;
pub mod stream;
pub mod trace;

/// What one action led to, one event a line.
pub type Events = Vec<String>;

/// What a script's actions led to: one list for each.
pub type Answers = Vec<Events>;

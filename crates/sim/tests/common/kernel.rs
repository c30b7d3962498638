//! What a hand-written kernel does under shadow paging, one step at a time.

use super::machines::{Probe, Setup};
use super::{Script, V0};
use nestwalk_hw::Profile;
use nestwalk_sim::schemes::shadow::Shadow;
use nestwalk_sim::{Counters, DynMachine, Machine};
use nestwalk_tables::LONG4;
use nestwalk_types::{Control, FaultCode, Gpa, Gva, PageSize};

const S4K: PageSize = PageSize::SIZE_4K;
/// Where the guest's data frames begin.
pub const DATA: u64 = 0x4000_0000;

pub fn setup(host_pages: &'static str) -> Setup {
    Setup { host_pages, ..Setup::new(Profile::load("cascade-lake-6252").unwrap()) }
}

pub fn cleared(s: &mut Script, gpa: u64) {
    s.say(Control::PageCleared { vcpu: V0, gpa: Gpa::new(gpa), size: S4K });
}

pub fn write_fault(s: &mut Script, gva: u64, present: bool) {
    let code = FaultCode { present, write: true, user: true, fetch: false };
    s.say(Control::Fault { vcpu: V0, gva: Gva::new(gva), code });
}

/// Entries `0..count` of one leaf table, used and dirty, over frames that the host has; the first
/// page of another group was touched, so that the table is shadowed and in step.
pub fn shadowed(count: u64) -> (Machine<Shadow>, Script) {
    let mut m = setup("4k").shadow();
    let mut s = Script::new(&LONG4);
    for i in 0..count {
        cleared(&mut s, DATA + (i << 12));
        s.map_used(i << 12, DATA + (i << 12), S4K);
    }
    let far = 511 << 12;
    s.map_used(far, DATA + 0x10_0000, S4K);
    s.load(far);
    m.count(&s.take());
    (m, s)
}

pub fn count(m: &mut Machine<Shadow>, s: &mut Script) -> Counters {
    let c = m.count(&s.take());
    assert_eq!(m.verdict().unwrap().told, Vec::<String>::new());
    c
}

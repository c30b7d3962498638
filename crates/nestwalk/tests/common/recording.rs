//! Recorded guests that need no QEMU: what a modelled guest does, written as a trace of one.

use super::Lab;
use nestwalk_mm::{GuestConfig, ModelledGuest};

use nestwalk_source::trace::{Header, Summary, TraceWriter, WriteOptions};
use nestwalk_source::{FirstTouch, Limit};
use nestwalk_tables::LONG4;
use nestwalk_types::{Batch, Filter, GuestBatch, GuestInfo, Source, SourceInfo};
use nestwalk_workloads::{Populate, WorkloadSpec};

/// Bytes of memory of the recorded guest.
pub const MEMORY: u64 = 1 << 30;
/// The workload that is recorded, as options of `compare` for the same without recording.
pub const WORKLOAD: &str = "forkstorm --footprint 8MiB --accesses 20k --guest-memory 1GiB";

/// Writes a trace of the workload. The filter is what the header says; nothing is filtered.
pub fn write(lab: &Lab, name: &str, filter: Filter) {
    let spec = WorkloadSpec {
        footprint: 8 << 20,
        accesses: Some(20_000),
        seed: 1,
        populate: Populate::Yes,
    };
    let workload = nestwalk_workloads::open("forkstorm", &spec).unwrap();
    // As `compare` does: a workload makes some more than it was asked for.
    let mut source = Limit::new(FirstTouch::new(workload), 20_000);
    let mut guest = ModelledGuest::new(GuestConfig::new(&LONG4, MEMORY)).unwrap();
    let (memory_bytes, paging, vcpus) = (MEMORY, LONG4.name.into(), 1);
    let info = GuestInfo { memory_bytes, paging, vcpus, filter };
    let info = SourceInfo { guest: Some(info), ..source.info() };
    let options = WriteOptions::SMALL;
    let mut writer = TraceWriter::create(&lab.path(name), &Header::of(&info), options).unwrap();
    let (mut batch, mut out) = (Batch::default(), GuestBatch::default());
    while source.next_batch(&mut batch).unwrap() {
        guest.process(&batch, &mut out).unwrap();
        writer.write(&out.batch).unwrap();
    }
    writer.finish(Summary::default()).unwrap();
}

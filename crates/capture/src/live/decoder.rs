//! From records of the plugin to events.

use super::check::{Agreement, Check};
use super::summary::{Summary, Unseen};
use nestwalk_types::{Batch, Control, FaultCode, Gpa, Gva, Invalidation, ProcessId, Run, VcpuId};
use nestwalk_wire::{IMAGE_RECORDS, Kind, Record};

/// Bit 63 of a value for CR3: keep what the TLBs hold (SDM vol. 3A, "MOV to CR3").
const KEEP: u64 = 1 << 63;
const ROOT: u64 = 0x000f_ffff_ffff_f000;

/// The marker that a program in the guest sets where counting should begin.
pub const REGION_OF_INTEREST: u64 = 3;

/// An event of several records that is not whole yet.
enum Open {
    Nothing,
    /// The entries of a table.
    Image {
        gpa: Gpa,
        entries: Box<[u64; 512]>,
        records: usize,
    },
    /// The end of a process's name.
    Name {
        root: Gpa,
        id: ProcessId,
        first: u64,
    },
}

/// One vCPU's part of the stream.
struct Line {
    open: Open,
    /// Instructions that no run carries yet.
    carried: u64,
}

/// Turns records into batches.
pub struct Decoder {
    lines: Vec<Line>,
    pcids: bool,
    check: Option<Check>,
    /// Counts so far.
    pub summary: Summary,
    /// vCPUs that have said that they are at their end.
    pub ended: usize,
}

impl Decoder {
    /// For so many vCPUs. `check` compares QEMU's translations with the stream's.
    pub fn new(vcpus: usize, check: Option<Check>) -> Self {
        let line = || Line { open: Open::Nothing, carried: 0 };
        Self {
            lines: (0..vcpus).map(|_| line()).collect(),
            // TCG has none: the lower bits of CR3 are cache attributes.
            pcids: false,
            check,
            summary: Summary::default(),
            ended: 0,
        }
    }

    /// What the check has found.
    pub fn agreement(&self) -> Option<&Agreement> {
        self.check.as_ref().map(|c| &c.agreement)
    }

    /// Takes a vCPU's next record. What is no record of this plugin's is an error.
    ///
    /// # Errors
    /// The record means nothing: its kind, in words.
    pub fn take(&mut self, vcpu: u8, record: Record, batch: &mut Batch) -> Result<(), String> {
        let Some(line) = self.lines.get_mut(usize::from(vcpu)) else {
            return Err(format!("a record of vCPU {vcpu}, which the guest does not have"));
        };
        let control = match std::mem::replace(&mut line.open, Open::Nothing) {
            Open::Image { gpa, mut entries, records } => {
                let four: [u64; 4] = record.into();
                entries[4 * records..4 * records + 4].copy_from_slice(&four);
                if records + 1 < IMAGE_RECORDS {
                    line.open = Open::Image { gpa, entries, records: records + 1 };
                    return Ok(());
                }
                Control::TableAdded { vcpu: VcpuId(vcpu), gpa, entries: Some(entries) }
            }
            Open::Name { root, id, first } => {
                let bytes = [first.to_le_bytes(), record.a.to_le_bytes()].concat();
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                let name = String::from_utf8_lossy(&bytes[..end]).into();
                Control::Process { vcpu: VcpuId(vcpu), root, id, name }
            }
            Open::Nothing => match self.begin(vcpu, &record, batch)? {
                Some(control) => control,
                None => return Ok(()),
            },
        };
        if let Some(check) = &mut self.check {
            check.follow(&control)?;
        }
        self.summary.count(&control);
        batch.controls.push((batch.runs.len() as u32, control));
        Ok(())
    }

    /// A record that is no continuation.
    fn begin(
        &mut self,
        vcpu: u8,
        r: &Record,
        batch: &mut Batch,
    ) -> Result<Option<Control>, String> {
        let line = &mut self.lines[usize::from(vcpu)];
        let Some(kind) = Kind::of(r.kind) else {
            return Err(format!("a record of kind {}, which there is not", r.kind));
        };
        let vcpu = VcpuId(vcpu);
        Ok(Some(match kind {
            Kind::Run => {
                let mut run = r.run(vcpu);
                self.summary.add(&run);
                if line.carried > 0 {
                    carry(line, &mut run);
                }
                batch.runs.push(run);
                return Ok(None);
            }
            Kind::TableNew => {
                let entries = Box::new([0; 512]);
                line.open = Open::Image { gpa: Gpa::new(r.a), entries, records: 0 };
                return Ok(None);
            }
            Kind::Process => {
                let id = ProcessId(r.b as u32);
                line.open = Open::Name { root: Gpa::new(r.a), id, first: r.c };
                return Ok(None);
            }
            Kind::TableWrite => Control::TableWrite { vcpu, gpa: Gpa::new(r.a), value: r.b },
            Kind::TableReused => Control::TableRetired { vcpu, gpa: Gpa::new(r.a) },
            Kind::LoadCr3 => Control::LoadCr3 {
                vcpu,
                root: Gpa::new(r.a & ROOT),
                pcid: if self.pcids { (r.a & 0xfff) as u16 } else { 0 },
                keep: self.pcids && r.a & KEEP != 0,
            },
            Kind::InvalidatePage => {
                Control::Invalidate { vcpu, what: Invalidation::Page(Gva::new(r.a)) }
            }
            Kind::InvalidateAll => Control::Invalidate { vcpu, what: Invalidation::All },
            Kind::Fault => Control::Fault { vcpu, gva: Gva::new(r.a), code: code(r.b) },
            Kind::Backed => Control::Prefault { start: Gpa::new(r.a), bytes: r.b },
            Kind::Mark if r.a == REGION_OF_INTEREST => Control::RegionOfInterest,
            Kind::Check => {
                if let Some(check) = &mut self.check {
                    check.compare(vcpu, Gva::new(r.a), Gpa::new(r.b));
                }
                return Ok(None);
            }
            Kind::Instructions => {
                line.carried += r.a;
                self.summary.instructions += r.a;
                return Ok(None);
            }
            Kind::Dropped => {
                self.summary.unseen(Unseen::of(r.a), r.b);
                return Ok(None);
            }
            Kind::End => {
                self.summary.waits += r.b;
                self.ended += 1;
                return Ok(None);
            }
            Kind::Mark | Kind::Moment => return Ok(None),
        }))
    }
}

/// Puts instructions that no run carries into one that has room.
fn carry(line: &mut Line, run: &mut Run) {
    let room = u64::from(u16::MAX - run.instructions).min(line.carried);
    run.instructions += room as u16;
    line.carried -= room;
}

/// Error code of a page fault (SDM vol. 3A, figure 4-12).
const fn code(bits: u64) -> FaultCode {
    FaultCode {
        present: bits & 1 != 0,
        write: bits & 2 != 0,
        user: bits & 4 != 0,
        fetch: bits & 16 != 0,
    }
}

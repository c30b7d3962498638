//! A whole source, read and counted.

use super::info::list;
use crate::progress::Meter;
use nestwalk_report::{Align, Table, count};
use nestwalk_sim::compare::Progress;
use nestwalk_types::{Batch, Control, ProcessId, Room, Run, Source, SourceError, SourceInfo};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Before a process was said.
const NOBODY: ProcessId = ProcessId(u32::MAX);

/// What was found.
#[derive(Default)]
pub(super) struct Read {
    accesses: u64,
    instructions: u64,
    fetches: u64,
    loads: u64,
    stores: u64,
    kernel: u64,
    switches: u64,
    processes: BTreeSet<ProcessId>,
    vcpus: BTreeSet<u8>,
    /// Pages of each process, by number; code and data apart.
    code: BTreeSet<(ProcessId, u64)>,
    data: BTreeSet<(ProcessId, u64)>,
    /// Lowest and highest address of data.
    range: Option<(u64, u64)>,
    /// Single accesses were read, so that loads and stores are told apart.
    exact: bool,
    tally: Vec<(&'static str, u64)>,
    /// Why reading ended early.
    pub(super) error: Option<SourceError>,
}

impl Read {
    /// Reads all that there is.
    pub(super) fn all(source: &mut dyn Source, meter: &Meter) -> Self {
        let mut read = Self::default();
        let mut batch = Batch::default();
        // The process of each vCPU.
        let mut on = [NOBODY; 256];
        let mut said = false;
        // The page of the latest fetch and data access, most of which are of the one before.
        let mut latest = [None; 2];
        loop {
            read.exact = source.set_room(Room::SINGLE);
            match source.next_batch(&mut batch) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    read.error = Some(error);
                    break;
                }
            }
            for (controls, runs) in batch.segments() {
                for (_, control) in controls {
                    let (vcpu, process) = match *control {
                        Control::Switch { vcpu, process } => (vcpu, process),
                        Control::Process { vcpu, id, .. } => {
                            said = true;
                            (vcpu, id)
                        }
                        // Of a modelled guest only the address spaces are known.
                        Control::LoadCr3 { vcpu, root, .. } if !said => {
                            (vcpu, ProcessId((root.value() >> 12) as u32))
                        }
                        _ => continue,
                    };
                    let before = std::mem::replace(&mut on[usize::from(vcpu.0)], process);
                    if before != process {
                        read.switches += u64::from(before != NOBODY);
                        latest = [None; 2];
                    }
                }
                batch.runs[runs].iter().for_each(|run| read.run(run, &on, &mut latest));
            }
            meter.show(Progress::read(read.accesses, source.position()));
        }
        read.tally = source.tally();
        read
    }

    fn run(
        &mut self,
        run: &Run,
        on: &[ProcessId; 256],
        latest: &mut [Option<(ProcessId, u64)>; 2],
    ) {
        let n = u64::from(run.count);
        self.accesses += n;
        self.instructions += u64::from(run.instructions);
        self.kernel += if run.flags.is_kernel() { n } else { 0 };
        let kind = match run.flags {
            f if f.is_fetch() => &mut self.fetches,
            f if f.is_store() => &mut self.stores,
            _ => &mut self.loads,
        };
        *kind += n;
        let process = on[usize::from(run.vcpu.0)];
        let page = (process, run.gva.value() >> 12);
        let (pages, latest) = match run.flags.is_fetch() {
            true => (&mut self.code, &mut latest[0]),
            false => {
                let at = run.gva.value();
                let (low, high) = self.range.unwrap_or((at, at));
                self.range = Some((low.min(at), high.max(at)));
                (&mut self.data, &mut latest[1])
            }
        };
        if latest.replace(page) != Some(page) {
            pages.insert(page);
            self.processes.insert(process);
            self.vcpus.insert(run.vcpu.0);
        }
    }

    fn pages(&self) -> u64 {
        let both = self.code.intersection(&self.data).count();
        (self.code.len() + self.data.len() - both) as u64
    }

    fn tallied(&self, name: &str) -> Option<u64> {
        self.tally.iter().find(|t| t.0 == name).map(|t| t.1)
    }

    /// Every thread is of a process, so without more knowledge there are as many.
    fn threads(&self) -> u64 {
        self.tallied("threads").unwrap_or(self.processes.len() as u64)
    }

    fn kernel_share(&self) -> f64 {
        if self.accesses == 0 { 0.0 } else { 100.0 * self.kernel as f64 / self.accesses as f64 }
    }

    /// What was counted; `null` where the source does not tell it.
    pub(super) fn numbers(&self) -> Value {
        let exact = |n: u64| self.exact.then_some(n);
        let range = self.range;
        json!({
            "records": self.tallied("records"),
            "threads": self.threads(),
            "processes": self.processes.len(),
            "vcpus": self.vcpus.len(),
            "switches": self.switches,
            "instructions": (self.instructions > 0).then_some(self.instructions),
            "accesses": self.accesses,
            "fetches": self.fetches,
            "loads": exact(self.loads),
            "stores": exact(self.stores),
            "data_accesses": self.loads + self.stores,
            "kernel_accesses": self.kernel,
            "kernel_share_percent": self.kernel_share(),
            "pages": self.pages(),
            "code_pages": self.code.len(),
            "data_pages": self.data.len(),
            "lowest_data_address": range.map(|r| r.0),
            "highest_data_address": range.map(|r| r.1),
        })
    }

    /// What was counted, for people, under this title.
    pub(super) fn table(&self, title: &str) -> String {
        let mut table = Table::new().column(title, Align::Left).column("", Align::Right);
        let unknown = || "-".to_owned();
        let some = |n: Option<u64>| n.map_or_else(unknown, count);
        let exact = |n: u64| if self.exact { count(n) } else { unknown() };
        let rows = [
            ("threads", count(self.threads())),
            ("processes", count(self.processes.len() as u64)),
            ("vCPUs", count(self.vcpus.len() as u64)),
            ("instructions", some((self.instructions > 0).then_some(self.instructions))),
            ("accesses", count(self.accesses)),
            ("fetches", count(self.fetches)),
            ("data accesses", count(self.loads + self.stores)),
            ("loads", exact(self.loads)),
            ("stores", exact(self.stores)),
            ("of the kernel", format!("{:.1} %", self.kernel_share())),
            ("pages of 4 KiB", count(self.pages())),
            ("of code", count(self.code.len() as u64)),
            ("of data", count(self.data.len() as u64)),
        ];
        let records = self.tallied("records").map(|n| ("records", count(n)));
        for (name, value) in records.into_iter().chain(rows) {
            table.row(vec![name.into(), value]);
        }
        let further = ["records", "threads"];
        for (name, n) in self.tally.iter().filter(|t| t.1 > 0 && !further.contains(&t.0)) {
            table.row(vec![format!("its {name}"), count(*n)]);
        }
        table.render()
    }

    /// A description for programs.
    pub(super) fn as_json(&self, info: &SourceInfo) -> Value {
        let mut value = self.numbers();
        let tally: serde_json::Map<String, Value> =
            self.tally.iter().map(|(name, n)| (name.replace(' ', "_"), json!(n))).collect();
        let more = [
            ("name", json!(info.name)),
            ("description", json!(info.description)),
            ("bytes", json!(info.total)),
            ("complete", json!(self.error.is_none())),
            ("error", json!(self.error.as_ref().map(ToString::to_string))),
            ("tally", Value::Object(tally)),
            ("approximations", json!(info.approximations)),
        ];
        if let Value::Object(fields) = &mut value {
            fields.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
        }
        value
    }

    /// A description for people.
    pub(super) fn as_text(&self, info: &SourceInfo) -> String {
        let mut out = format!("trace    {}: {}\n\n", info.name, info.description);
        out += &self.table("read");
        out + &list("approximations", &info.approximations)
    }
}

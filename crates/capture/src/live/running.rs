//! A guest that runs under the plugin, as a source of events.

use super::check::{Agreement, Check};
use super::stream::{Next, Stream};
use super::summary::Summary;
use crate::error::{At, GuestError};
use crate::plugin::plugin;
use crate::{Boot, Outcome, Plugin, Running};
use nestwalk_types::{Batch, Filter, FilterArray, GuestInfo, Source, SourceError, SourceInfo};
use nestwalk_wire::{DATA, FETCH, FilterConfig, Layout, Rings};
use std::fs::File;
use std::io::Write;
use std::time::Duration;

/// Paging mode of every guest: its processor has no other.
pub const PAGING: &str = "4-level";
/// Records that a ring holds: 8 MiB of them.
const RECORDS: u64 = 1 << 18;
/// How long a guest that has recorded everything may take to power off.
const POWER_OFF: Duration = Duration::from_millis(20);

/// What is recorded of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveOptions {
    /// From the first use of page tables in the boot on, not from the command on.
    pub boot: bool,
    /// From the marker on that the program sets where its region of interest begins, not from the
    /// command on, up to the one where it ends: `nopl 0xf5a00003(%rax)` and `nopl 0xf5a00004(%rax)`,
    /// or `nestwalk-mark 3` and `nestwalk-mark 4`.
    pub interest: bool,
    /// QEMU's translation of each run is compared with what the stream's tables say.
    pub check: bool,
    /// Accesses that hit a filter of the size of a first-level TLB are counted in earlier runs. If not,
    /// only consecutive accesses to a page are: several times the runs, and exact for all that looks
    /// at pages.
    pub filter: bool,
}

impl LiveOptions {
    /// The filters for data and fetches.
    const fn configs(self) -> [FilterConfig; 2] {
        if self.filter { [DATA, FETCH] } else { [FilterConfig::RUNS; 2] }
    }
    /// What the stream says of its filter.
    pub const fn filter(self) -> Filter {
        const fn array(sets: u32, ways: u32) -> FilterArray {
            FilterArray { sets: sets as u16, ways: ways as u8 }
        }
        let [data, fetch] = self.configs();
        Filter {
            data: array(data.sets, data.ways),
            data_large: array(data.large_sets, 1),
            fetch: array(fetch.sets, fetch.ways),
            fetch_large: array(fetch.large_sets, 1),
        }
    }
}

/// A guest while it runs. Dropping it ends the guest.
pub struct Live {
    running: Running,
    stream: Stream,
    info: SourceInfo,
    /// Where the command's output goes.
    output: Box<dyn Write + Send>,
    outcome: Option<Outcome>,
    accesses: u64,
}

impl Live {
    /// What the stream of a guest will say of itself before it has begun.
    pub fn describe(boot: &Boot, options: LiveOptions) -> SourceInfo {
        let guest = boot.guest();
        let filter = options.filter();
        let vcpus = guest.vcpus.min(255) as u8;
        let about =
            GuestInfo { memory_bytes: guest.memory_bytes, paging: PAGING.into(), vcpus, filter };
        let command: Vec<_> = guest.command.iter().map(|w| w.to_string_lossy()).collect();
        let command = command.join(" ");
        SourceInfo {
            name: format!("guest: {command}"),
            description: format!(
                "Linux {} under QEMU, {vcpus} vCPU{}, {} MiB",
                boot.kernel().release,
                if vcpus == 1 { "" } else { "s" },
                guest.memory_bytes >> 20
            ),
            knows_lines: true,
            knows_pc: true,
            has_fetches: true,
            approximations: Vec::new(),
            guest: Some(about),
            total: None,
            populates: 0,
            failed: None,
        }
    }

    /// Starts the guest.
    ///
    /// # Errors
    /// A piece is missing, or the guest cannot be started.
    pub fn start(
        boot: Boot,
        options: LiveOptions,
        output: Box<dyn Write + Send>,
    ) -> Result<Self, GuestError> {
        let info = Self::describe(&boot, options);
        let guest = boot.guest();
        let refused = |e: &dyn std::fmt::Display| GuestError::Refused(e.to_string());
        let about = info.guest.as_ref().filter(|_| options.check);
        let check = about.map(Check::new).transpose();
        let check = check.map_err(|e| refused(&e))?;
        let path = boot.shared().join("rings");
        let layout = Layout { vcpus: guest.vcpus, records: RECORDS };
        let rings = Rings::create(&path, layout).map_err(|e| refused(&e))?;
        let stream = Stream::new(rings, check).map_err(|e| refused(&e))?;
        // The plugin maps the memory before QEMU has made it.
        let ram = File::create(boot.ram()).at("create", boot.ram())?;
        ram.set_len(guest.memory_bytes).at("enlarge", boot.ram())?;
        let plugin = Plugin { path: plugin()?, arguments: arguments(&boot, &path, options)? };
        let running = boot.start(Some(&plugin))?;
        Ok(Self { running, stream, info, output, outcome: None, accesses: 0 })
    }

    /// Counts so far.
    pub const fn summary(&self) -> &Summary {
        self.stream.summary()
    }
    /// What the check has found, if there is one.
    pub fn agreement(&self) -> Option<&Agreement> {
        self.stream.agreement()
    }
    /// How the command ended, once it has.
    pub const fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    fn fail(&self, message: String) -> SourceError {
        SourceError { source: self.info.name.clone(), message }
    }

    /// Looks whether the guest has ended, and passes on what its command has written.
    fn look(&mut self) -> Result<bool, SourceError> {
        if self.outcome.is_none() {
            let outcome = self.running.poll();
            let passed = self.running.pass_output(self.output.as_mut());
            passed.map_err(|e| self.fail(e.to_string()))?;
            self.outcome = outcome.map_err(|e| self.fail(e.to_string()))?;
        }
        Ok(self.outcome.is_some())
    }
}

/// What the plugin is told.
fn arguments(
    boot: &Boot,
    rings: &std::path::Path,
    options: LiveOptions,
) -> Result<Vec<(String, String)>, GuestError> {
    let word = |on: bool| if on { "on" } else { "off" }.to_owned();
    let path = |p: &std::path::Path| p.to_string_lossy().into_owned();
    let mut arguments = vec![
        ("rings".to_owned(), path(rings)),
        ("ram".to_owned(), path(boot.ram())),
        ("low".to_owned(), crate::below_4g(boot.guest().memory_bytes).to_string()),
        ("boot".to_owned(), word(options.boot)),
        ("interest".to_owned(), word(options.interest)),
        ("check".to_owned(), word(options.check)),
        ("filter".to_owned(), if options.filter { "sets" } else { "runs" }.to_owned()),
    ];
    if let Some(task) = boot.kernel().task_layout()? {
        let offsets = [("current", task.current_task), ("comm", task.comm), ("tgid", task.tgid)];
        arguments.extend(offsets.map(|(name, offset)| (name.to_owned(), offset.to_string())));
    }
    Ok(arguments)
}

/// What [`failure`] begins with if there was nothing to be recorded.
pub const NOT_STARTED: &str = "the guest's command could not be started";

/// What is said of a guest's command that failed; `None` if it did not.
pub fn failure(outcome: &Outcome) -> Option<String> {
    let status = outcome.status;
    if !outcome.started {
        return Some(if status == 127 {
            format!(
                "{NOT_STARTED}: the guest has not the interpreter or dynamic loader that the program asks \
                 for; --package names the package that has it, and a static program needs none"
            )
        } else {
            format!("{NOT_STARTED}: the guest's kernel does not execute a file of its kind")
        });
    }
    (status != 0).then(|| format!("the guest's command failed: exit status {status}"))
}

impl Source for Live {
    fn info(&self) -> SourceInfo {
        let mut info = self.info.clone();
        if let Some(outcome) = &self.outcome {
            info.description += &format!(", exit status {}", outcome.status);
            info.failed = failure(outcome);
        }
        if let Some(a) = self.agreement() {
            info.description += &format!(
                ", {} translations compared with QEMU's: {} different, {} not mapped",
                a.compared, a.different, a.not_mapped
            );
        }
        let unseen: u64 = self.summary().not_seen().map(|(_, n)| n).sum();
        if unseen > 0 {
            info.approximations.push(format!(
                "{unseen} accesses to devices are not in the stream: every hypervisor emulates them"
            ));
        }
        info
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let over = self.look()?;
        let next = self.stream.next(batch, over).map_err(|e| self.fail(e))?;
        self.accesses += batch.accesses();
        if next == Next::End {
            // What is left is the guest's way to power off.
            while !self.look()? {
                std::thread::sleep(POWER_OFF);
            }
            return Ok(false);
        }
        Ok(true)
    }

    fn position(&self) -> u64 {
        self.accesses
    }
}

//! Same-page merging, as Linux's KSM does it (6.1, `mm/ksm.c`, `cmp_and_merge_page`).
//!
//! A thread looks at so many pages at a time, of one VM after the other. A page whose contents are those
//! of merged pages joins them (the stable tree). Another one is compared with those of this round (the
//! unstable tree), if it has not changed since the last: two of the same are merged. Merged pages
//! cannot be stored to; a store gives the page a frame of its own. Trees are maps here.
//!
//! Pages of 4 KiB of the host take part; Linux splits large ones.

mod contents;

use super::FleetError;
use super::Member;
use super::stage::{Stage, tenant};
pub use contents::Shares;
pub(super) use contents::{Contents, Token};
use nestwalk_sim::scheme::MachineError;
use nestwalk_types::{Address, Gpa, GuestBatch, Hpa, PageSize};
use rustc_hash::FxHashMap;
use serde::Serialize;

/// Pages that share one frame at most (`ksm_stable_node_chains`, `max_page_sharing`).
const MAX_SHARING: usize = 256;
/// Instructions of a nanosecond, by which the thread's sleep is measured: as turns are, at 2 GHz and
/// one instruction a cycle.
const INSTRUCTIONS_PER_NS: f64 = 2.0;
/// Pages at a time unless said (`pages_to_scan`).
pub const PAGES_TO_SCAN: u64 = 100;
/// Sleep in between unless said, in nanoseconds (`sleep_millisecs`, 20).
pub const SLEEP_NS: u64 = 20_000_000;

/// How pages of the same contents are merged.
#[derive(Clone, Debug, PartialEq)]
pub struct MergePlan {
    /// Pages that are looked at at a time.
    pub pages: u64,
    /// Time in between, in nanoseconds.
    pub sleep_ns: f64,
    /// What is stated of VMs' contents, by name; nothing of others.
    pub shares: Vec<(String, Shares)>,
}

/// What came of it for a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MergedCounts {
    /// Pages that were merged.
    pub merges: u64,
    /// Of these, those that got frames of their own again since they were stored to.
    pub broken: u64,
    /// Pages that were merged at the end.
    pub merged: u64,
}

/// What came of it for the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MergingOutcome {
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Times that all VMs' pages were looked at.
    pub full_scans: u64,
    /// Frames behind merged pages at the end (`pages_shared`).
    pub frames: u64,
    /// Bytes that merging saved at the end (`pages_sharing`): merged pages beyond those frames.
    pub saved_bytes: u64,
}

/// A frame of the stable tree, and pages that had it when they were last looked at.
struct Node {
    frame: Hpa,
    pages: Vec<(usize, u64)>,
}

/// The thread, its trees, and what pages contain.
pub(super) struct Merging {
    plan: MergePlan,
    pub(super) contents: Contents,
    stable: FxHashMap<Token, Vec<Node>>,
    unstable: FxHashMap<Token, (usize, u64)>,
    /// What each page contained when it was last looked at: its checksum.
    seen: FxHashMap<(usize, u64), Token>,
    /// The VM whose pages are looked at, and those that are left of it, the next one last.
    at: (usize, Vec<u64>),
    /// Pages that the thread may look at now.
    due: f64,
    counting: bool,
    counts: Vec<MergedCounts>,
    outcome: MergingOutcome,
}

impl MergePlan {
    /// Whether these VMs can share pages so. Returns what is stated of each.
    ///
    /// # Errors
    /// They cannot.
    pub(super) fn check(
        &self,
        members: &[Member],
        stage: &mut Stage,
    ) -> Result<Vec<Shares>, FleetError> {
        let plan = |why: String| FleetError::Plan(format!("same-page merging: {why}"));
        if self.pages == 0 || !(self.sleep_ns.is_finite() && self.sleep_ns > 0.0) {
            return Err(plan(
                "pages and sleep must be more than none, as in pages=100; sleep=20ms".into(),
            ));
        }
        let mut shares = vec![Shares::default(); members.len()];
        for (name, stated) in &self.shares {
            let Some(vm) = members.iter().position(|m| m.name == *name) else {
                return Err(plan(format!("there is no VM {name}")));
            };
            let share = |x: f64| (0.0..=1.0).contains(&x);
            if !share(stated.zero) || !share(stated.common) || stated.zero + stated.common > 1.0 {
                return Err(plan(format!(
                    "VM {name}: zero and common are shares of its pages, 100 % together at most"
                )));
            }
            shares[vm] = *stated;
        }
        for (vm, member) in members.iter().enumerate() {
            let facts = &member.spec.scheme.facts;
            if facts.pins_memory || facts.primary_region || !stage.knows_base_pages(vm)? {
                return Err(plan(format!(
                    "VM {}: {} maps more than a page of 4 KiB at a time in hardware of its own; take \
                     another machine",
                    member.name, member.spec.name
                )));
            }
        }
        Ok(shares)
    }
}

impl Merging {
    pub(super) fn new(plan: MergePlan, shares: Vec<Shares>) -> Self {
        Self {
            counts: vec![MergedCounts::default(); shares.len()],
            contents: Contents::new(shares),
            plan,
            stable: FxHashMap::default(),
            unstable: FxHashMap::default(),
            seen: FxHashMap::default(),
            at: (0, Vec::new()),
            due: 0.0,
            counting: false,
            outcome: MergingOutcome::default(),
        }
    }

    /// The thread has had so many instructions' time, in the last of which this VM ran.
    fn passes(
        &mut self,
        stage: &mut Stage,
        running: usize,
        instructions: u64,
    ) -> Result<(), MachineError> {
        let ns = instructions as f64 / INSTRUCTIONS_PER_NS;
        self.due += ns / self.plan.sleep_ns * self.plan.pages as f64;
        while self.due >= 1.0 {
            self.due -= 1.0;
            let Some((vm, page)) = self.next(stage)? else {
                self.due = 0.0;
                break;
            };
            self.outcome.pages_scanned += 1;
            tenant(&mut stage.machines[vm])?.counters().host_pages_scanned += 1;
            self.look(stage, (vm, page), running)?;
        }
        Ok(())
    }

    /// The next page to look at; `None` if no VM has any.
    fn next(&mut self, stage: &mut Stage) -> Result<Option<(usize, u64)>, MachineError> {
        let vms = stage.machines.len();
        for _ in 0..=vms {
            if let Some(page) = self.at.1.pop() {
                return Ok(Some((self.at.0, page)));
            }
            self.at.0 += 1;
            if self.at.0 >= vms {
                self.at.0 = 0;
                self.outcome.full_scans += u64::from(self.outcome.pages_scanned > 0);
                self.unstable.clear();
            }
            if !stage.departed[self.at.0]
                && let Some(host) = tenant(&mut stage.machines[self.at.0])?.host()
            {
                let pages = &mut self.at.1;
                host.each_page(&mut |gpa, _, bytes| {
                    if bytes == PageSize::SIZE_4K.bytes() {
                        pages.push(gpa.page_number());
                    }
                });
                pages.reverse();
            }
        }
        Ok(None)
    }

    fn look(
        &mut self,
        stage: &mut Stage,
        (vm, page): (usize, u64),
        running: usize,
    ) -> Result<(), MachineError> {
        if stage.departed[vm] || is_merged(stage, (vm, page), None)? {
            return Ok(());
        }
        let token = self.contents.of(vm, page);
        if let Some(frame) = self.room(stage, token)? {
            return self.join(stage, (vm, page), (token, frame), running);
        }
        if self.seen.insert((vm, page), token) != Some(token) {
            return Ok(());
        }
        let Some(other) = self.unstable.insert(token, (vm, page)) else { return Ok(()) };
        let same = other != (vm, page)
            && !stage.departed[other.0]
            && self.contents.of(other.0, other.1) == token
            && !is_merged(stage, other, None)?;
        if same && let Some(frame) = self.merge(stage, other, None, running)? {
            self.unstable.remove(&token);
            self.stable.entry(token).or_default().push(Node { frame, pages: vec![other] });
            return self.join(stage, (vm, page), (token, frame), running);
        }
        Ok(())
    }

    /// A frame of these contents that one more page may share, if there is one.
    fn room(&mut self, stage: &mut Stage, token: Token) -> Result<Option<Hpa>, MachineError> {
        let Some(nodes) = self.stable.get_mut(&token) else { return Ok(None) };
        // Pages that were stored to, or taken back, have it no more; a frame that nobody has is
        // another's.
        while let Some(mut node) = nodes.pop() {
            if let Some(page) = node.pages.pop() {
                if !is_merged(stage, page, Some(node.frame))? {
                    nodes.push(node);
                    continue;
                }
                node.pages.push(page);
                let (frame, full) = (node.frame, node.pages.len() >= MAX_SHARING);
                if !full {
                    nodes.push(node);
                    return Ok(Some(frame));
                }
                return Ok(None);
            }
        }
        self.stable.remove(&token);
        Ok(None)
    }

    /// The page has the frame of those of its contents.
    fn join(
        &mut self,
        stage: &mut Stage,
        page: (usize, u64),
        (token, frame): (Token, Hpa),
        running: usize,
    ) -> Result<(), MachineError> {
        if self.merge(stage, page, Some(frame), running)?.is_some()
            && let Some(node) = self.stable.get_mut(&token).and_then(|nodes| nodes.last_mut())
        {
            node.pages.push(page);
        }
        Ok(())
    }

    fn merge(
        &mut self,
        stage: &mut Stage,
        (vm, page): (usize, u64),
        with: Option<Hpa>,
        running: usize,
    ) -> Result<Option<Hpa>, MachineError> {
        let merged = stage.look(vm, |machine| {
            let mut tenant = tenant(machine)?;
            let merged = tenant.merge(Gpa::new(page << 12), with)?;
            if merged.is_some() && vm == running {
                tenant.exits(nestwalk_sim::measure::counters::ExitReason::HostMigration);
            }
            Ok::<_, MachineError>(merged)
        })??;
        if merged.is_some() {
            stage.lost(vm);
        }
        self.counts[vm].merges += u64::from(merged.is_some());
        Ok(merged)
    }

    /// What came of it for the host.
    pub(super) fn outcome(&self, stage_pages: &[(usize, u64, Hpa)]) -> MergingOutcome {
        let frames: std::collections::BTreeSet<Hpa> = stage_pages.iter().map(|p| p.2).collect();
        let frames = frames.len() as u64;
        let saved_bytes = (stage_pages.len() as u64 - frames) << 12;
        MergingOutcome { frames, saved_bytes, ..self.outcome.clone() }
    }

    /// What came of it for a VM.
    pub(super) fn counts(
        &self,
        (vm, broken): (usize, u64),
        stage_pages: &[(usize, u64, Hpa)],
    ) -> MergedCounts {
        let merged = stage_pages.iter().filter(|p| p.0 == vm).count() as u64;
        MergedCounts { merged, broken, ..self.counts[vm] }
    }
}

/// Whether the page is merged, with this frame if one is given.
fn is_merged(
    stage: &mut Stage,
    (vm, page): (usize, u64),
    with: Option<Hpa>,
) -> Result<bool, MachineError> {
    if stage.departed[vm] {
        return Ok(false);
    }
    let gpa = Gpa::new(page << 12);
    let mut tenant = tenant(&mut stage.machines[vm])?;
    let Some(host) = tenant.host() else { return Ok(false) };
    Ok(host.is_merged(gpa)
        && with.is_none_or(|frame| host.look_up(gpa).is_some_and(|page| page.frame == frame)))
}

impl Stage {
    /// The VM has run this.
    pub(super) fn stores_change_contents(&mut self, vm: usize, slice: &GuestBatch) {
        if let Some(merging) = &mut self.merging {
            merging.contents.ran(vm, slice);
        }
    }

    /// Contents are what is stated from now on, and merging begins.
    pub(super) fn merging_counts(&mut self) {
        if let Some(merging) = &mut self.merging {
            merging.counting = true;
            merging.contents.counting_begins();
        }
    }

    /// A turn is over, in which the VM ran so many instructions.
    ///
    /// # Errors
    /// A machine cannot go on.
    pub(super) fn merge_pages(&mut self, vm: usize, instructions: u64) -> Result<(), MachineError> {
        let Some(mut merging) = self.merging.take() else { return Ok(()) };
        let done = match merging.counting {
            true => merging.passes(self, vm, instructions),
            false => Ok(()),
        };
        self.merging = Some(merging);
        done
    }

    /// Merged pages: VM, number, frame.
    ///
    /// # Errors
    /// A VM is none.
    pub(super) fn merged_pages(&mut self) -> Result<Vec<(usize, u64, Hpa)>, MachineError> {
        let mut pages = Vec::new();
        for (vm, machine) in self.machines.iter_mut().enumerate() {
            let mut tenant = tenant(machine)?;
            let Some(host) = tenant.host().filter(|_| !self.departed[vm]) else { continue };
            for gpa in host.merged_pages() {
                if let Some(page) = host.look_up(gpa) {
                    pages.push((vm, gpa.page_number(), page.frame));
                }
            }
        }
        Ok(pages)
    }
}

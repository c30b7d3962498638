//! The re-mapped guest: streams of modelled guests, taken for recordings, give back the processes that
//! they were made from.

use nestwalk_mm::{GuestConfig, GuestStats, ModelledGuest, PagePolicy, Remap, Survey};
use nestwalk_tables::{LONG4, LONG5, Mode, PAE};
use nestwalk_types::{
    Batch, Control, Filter, Gpa, GuestBatch, GuestInfo, Gva, ProcessId, Protection, Run, RunFlags,
    SplitMix64, VcpuId,
};
use std::sync::Arc;

const MEMORY: u64 = 1 << 30;
const V: VcpuId = VcpuId(0);
/// A page that every process of a random life has.
const HOME: u64 = 0x9_0000;

fn info(mode: &Mode, vcpus: u8) -> GuestInfo {
    GuestInfo { memory_bytes: MEMORY, paging: mode.name.into(), vcpus, filter: Filter::RUNS }
}

fn guest(mode: &'static Mode, policy: PagePolicy) -> ModelledGuest {
    ModelledGuest::new(GuestConfig { policy, ..GuestConfig::new(mode, MEMORY) }).unwrap()
}

fn run(vcpu: u8, page: u64, store: bool) -> Run {
    let flags = if store { RunFlags::STORE } else { RunFlags::default() };
    let (gva, vcpu) = (Gva::new(page << 12 | 0x18), VcpuId(vcpu));
    Run { gva, pc: gva, lines: 1, count: 2, instructions: 5, vcpu, flags }
}

fn p(id: u32) -> ProcessId {
    ProcessId(id)
}
fn map(id: u32, page: u64, pages: u64, protection: Protection) -> Control {
    let (start, bytes) = (Gva::new(page << 12), pages << 12);
    Control::Map { process: p(id), start, bytes, protection }
}
fn unmap(id: u32, page: u64, pages: u64) -> Control {
    Control::Unmap { process: p(id), start: Gva::new(page << 12), bytes: pages << 12 }
}
fn switch(vcpu: u8, id: u32) -> Control {
    Control::Switch { vcpu: VcpuId(vcpu), process: p(id) }
}

/// What processes do, step by step, and what a recording of it is.
struct Life {
    mode: &'static Mode,
    vcpus: u8,
    guest: ModelledGuest,
    recording: Vec<GuestBatch>,
}

impl Life {
    fn new(mode: &'static Mode, vcpus: u8) -> Self {
        let recording = Vec::new();
        Self { mode, vcpus, guest: guest(mode, PagePolicy::Base), recording }
    }
    fn step(&mut self, controls: Vec<Control>, runs: Vec<Run>) {
        let controls = controls.into_iter().map(|c| (0, c)).collect();
        let mut out = GuestBatch::default();
        self.guest.process(&Batch { runs, controls }, &mut out).unwrap();
        self.recording.push(out);
    }
    fn control(&mut self, control: Control) {
        self.step(vec![control], vec![]);
    }
    fn touch(&mut self, pages: std::ops::Range<u64>) {
        self.step(vec![], pages.map(|page| run(0, page, true)).collect());
    }

    /// Re-maps the recording for a guest with this policy. Returns what it did, batch by batch, and the
    /// guest at the end.
    fn remap(&self, policy: PagePolicy, survey: bool) -> (Vec<Batch>, ModelledGuest, Remap) {
        let info = info(self.mode, self.vcpus);
        let mappings = survey.then(|| {
            let mut survey = Survey::new(&info).unwrap();
            let controls = self.recording.iter().flat_map(|b| &b.batch.controls);
            controls.for_each(|c| survey.follow(c).unwrap());
            Arc::new(survey.finish())
        });
        let mut remap = Remap::new(&info, mappings).unwrap();
        let mut guest = guest(self.mode, policy);
        let mut out = GuestBatch::default();
        let mut all = Vec::new();
        for recorded in &self.recording {
            let mut batch = Batch::default();
            remap.process(&recorded.batch, &mut batch).unwrap();
            guest.process(&batch, &mut out).unwrap();
            assert_eq!(out.batch.runs, batch.runs);
            all.push(batch);
        }
        (all, guest, remap)
    }
}

fn controls(batches: &[Batch]) -> Vec<Control> {
    batches.iter().flat_map(|b| b.controls.iter().map(|c| c.1.clone())).collect()
}

fn memory(s: &GuestStats) -> [u64; 4] {
    [s.resident_bytes, s.first_touches, s.processes, s.pages_4k]
}

#[test]
fn one_process_is_given_back_as_it_was() {
    let mut life = Life::new(&LONG4, 1);
    life.step(
        vec![
            switch(0, 7),
            map(7, 0x1000, 64, Protection::READ_WRITE),
            map(7, 0x40000, 8, Protection::READ_EXECUTE),
            map(7, 0x90000, 2000, Protection::READ_WRITE),
        ],
        vec![],
    );
    life.touch(0x1000..0x1040);
    let fetch = |page| Run { flags: RunFlags::FETCH, ..run(0, page, false) };
    life.step(vec![], (0x40000..0x40008).map(fetch).collect());
    // In no order, so that the whole mapping is known only to a survey.
    life.step(vec![], (0..2000).map(|i| run(0, 0x90000 + i * 7 % 2000, true)).collect());
    life.control(unmap(7, 0x1000, 64));
    life.touch(0x90000..0x90001);
    let (batches, guest, remap) = life.remap(PagePolicy::Base, true);
    let expected = [
        switch(0, 1),
        map(1, 0x1000, 64, Protection::READ_WRITE),
        map(1, 0x40000, 8, Protection::READ_EXECUTE),
        map(1, 0x90000, 2000, Protection::READ_WRITE),
        unmap(1, 0x1000, 64),
    ];
    assert_eq!(controls(&batches), expected);
    assert_eq!(memory(&guest.stats()), memory(&life.guest.stats()));
    assert_eq!(guest.stats().faults, life.guest.stats().faults);
    assert_eq!(guest.stats().implicit_mappings, 0);
    let stats = remap.stats();
    assert_eq!((stats.processes, stats.forks, stats.left_out, stats.unmapped), (1, 0, 0, 0));
    assert_eq!(stats.accesses, 2 * (64 + 8 + 2000 + 1));
    // Another policy has its way with the same mappings: three whole blocks of 2 MiB are in the large
    // one, from 0x90000 on.
    let (_, thp, _) = life.remap(PagePolicy::Thp, true);
    assert_eq!(thp.stats().pages_2m, 3);
    // Without a survey blocks are mapped as they are touched.
    let (batches, live, _) = life.remap(PagePolicy::Base, false);
    assert_eq!(live.stats().implicit_mappings, 1 + 1 + 4);
    assert_eq!(memory(&live.stats()), memory(&guest.stats()));
    // What is unmapped there is all that the tables were for that the kernel freed: 1 GiB.
    assert_eq!(controls(&batches), [switch(0, 1), unmap(1, 0, 1 << 18)]);
}

#[test]
fn the_kernels_half_is_left_out_and_its_accesses_to_user_memory_are_kept() {
    let mut life = Life::new(&LONG5, 1);
    life.control(map(0, 0x1000, 4, Protection::READ_WRITE));
    life.touch(0x1000..0x1004);
    let kernel = |gva| Run {
        gva: Gva::new(gva),
        flags: RunFlags::KERNEL.union(RunFlags::STORE),
        ..run(0, 0, true)
    };
    let (text, copy) = (kernel(0xffff_ffff_8100_0000), kernel(0x100_2000));
    life.recording.push(GuestBatch {
        batch: Batch {
            runs: vec![text, copy, text],
            controls: vec![(1, Control::RegionOfInterest)],
        },
        gpas: vec![Gpa::new(0); 3],
    });
    let (batches, ..) = life.remap(PagePolicy::Base, true);
    let last = batches.last().unwrap();
    assert_eq!(last.runs, [copy]);
    assert_eq!(last.controls, [(0, Control::RegionOfInterest)]);
    let (.., remap) = life.remap(PagePolicy::Base, true);
    assert_eq!((remap.stats().left_out, remap.stats().accesses), (4, 14));
}

#[test]
fn forks_and_exits_are_seen() {
    let mut life = Life::new(&LONG4, 1);
    life.step(vec![switch(0, 1), map(1, 0x1000, 100, Protection::READ_WRITE)], vec![]);
    life.touch(0x1000..0x1064);
    life.control(Control::Fork { parent: p(1), child: p(2) });
    life.step(vec![switch(0, 2)], vec![]);
    life.touch(0x1000..0x1010);
    // An unrelated process with pages at the same addresses.
    life.step(vec![switch(0, 3), map(3, 0x1000, 100, Protection::READ_WRITE)], vec![]);
    life.touch(0x1000..0x1064);
    life.step(vec![switch(0, 2)], vec![]);
    life.touch(0x1000..0x1001);
    life.control(Control::Exit { process: p(2) });
    life.step(vec![switch(0, 1)], vec![]);
    life.touch(0x1000..0x1064);
    let (batches, guest, remap) = life.remap(PagePolicy::Base, true);
    let whole = |id| map(id, 0x1000, 100, Protection::READ_WRITE);
    let expected = [
        switch(0, 1),
        whole(1),
        Control::Fork { parent: p(1), child: p(2) },
        switch(0, 2),
        switch(0, 3),
        whole(3),
        switch(0, 2),
        Control::Exit { process: p(2) },
        switch(0, 1),
    ];
    assert_eq!(controls(&batches), expected);
    assert_eq!((remap.stats().processes, remap.stats().forks), (3, 1));
    assert_eq!(memory(&guest.stats()), memory(&life.guest.stats()));
    assert_eq!(guest.stats().copies, life.guest.stats().copies);
}

/// A recording begins in the life of a process: what it had is there before counting begins.
#[test]
fn what_was_mapped_before_is_there_when_counting_begins() {
    let mut life = Life::new(&LONG4, 1);
    life.step(
        vec![
            switch(0, 1),
            map(1, 0x1000, 64, Protection::READ_WRITE),
            map(1, 0x40000, 8, Protection::READ_EXECUTE),
        ],
        vec![],
    );
    life.touch(0x1000..0x1030);
    life.step(vec![], (0x40000..0x40008).map(|page| run(0, page, false)).collect());
    // Of all this the recording has the tables only.
    let loads = life.recording.iter().flat_map(|b| &b.batch.controls);
    let mut loads = loads.rev().filter(|c| matches!(c.1, Control::LoadCr3 { .. }));
    let load = loads.next().unwrap().1.clone();
    let tables = &life.guest.memory().tables;
    let image =
        |gpa| Control::TableAdded { vcpu: V, gpa, entries: tables.page(gpa).map(|p| Box::new(*p)) };
    let mut controls: Vec<(u32, Control)> = tables.pages().map(|gpa| (0, image(gpa))).collect();
    controls.extend([(0, load), (0, Control::RegionOfInterest)]);
    let before = life.guest.stats();
    life.recording = vec![GuestBatch { batch: Batch { runs: vec![], controls }, gpas: vec![] }];
    life.touch(0x1000..0x1040);
    for survey in [true, false] {
        let (batches, guest, remap) = life.remap(PagePolicy::Base, survey);
        let set_up = &batches[0];
        assert_eq!(set_up.runs.len(), 0x30 + 8);
        assert_eq!(set_up.controls.last(), Some(&(0x38, Control::RegionOfInterest)));
        let stores = set_up.runs.iter().filter(|r| r.flags.is_store()).count();
        assert_eq!(stores, 0x30, "what may not be written is read");
        assert_eq!(batches[1].runs.len(), 0x40);
        let faults = life.guest.stats().faults - before.faults;
        assert_eq!(faults, 16);
        assert_eq!(guest.stats().faults, 0x38 + faults);
        assert_eq!(guest.stats().resident_bytes, life.guest.stats().resident_bytes);
        assert_eq!(remap.stats().accesses, 2 * 0x40, "the set-up is not the recording's");
    }
}

/// A leaf that is cleared and set again before a program runs was never away: copy-on-write does so.
#[test]
fn what_is_there_again_was_not_unmapped() {
    let mut life = Life::new(&LONG4, 2);
    life.step(vec![switch(0, 1), map(1, 0x1000, 8, Protection::READ_WRITE)], vec![]);
    life.touch(0x1000..0x1008);
    let look = |at: u64| {
        let (_, space) = life.guest.spaces().next().unwrap();
        space.look_up(life.guest.memory(), Gva::new(at << 12)).unwrap()
    };
    let (leaf, other) = (look(0x1003), look(0x1005));
    let write = |gpa, value| Control::TableWrite { vcpu: V, gpa, value };
    let kernel = Run { flags: RunFlags::KERNEL, ..run(0, 0x1004, false) };
    let batch = |controls: Vec<(u32, Control)>, runs: Vec<Run>| GuestBatch {
        gpas: vec![Gpa::new(0); runs.len()],
        batch: Batch { runs, controls },
    };
    life.recording.push(batch(
        vec![
            (0, write(leaf.at, 0)),
            (0, write(other.at, 0)),
            // The kernel's access to user memory is no program yet, nor is another vCPU's.
            (1, write(leaf.at, leaf.entry.0)),
        ],
        vec![kernel, run(0, 0x1004, false)],
    ));
    let (batches, ..) = life.remap(PagePolicy::Base, true);
    let last = batches.last().unwrap();
    assert_eq!(last.controls, [(1, unmap(1, 0x1005, 1))]);
}

/// Random lives without forks: the re-mapped guest has the same memory at the end, whatever was mapped
/// and unmapped on the way.
#[test]
fn random_lives_hold_the_same_memory() {
    for seed in 0..40 {
        let mut r = SplitMix64::new(seed);
        let mode = [&LONG4, &LONG5][seed as usize % 2];
        let mut life = Life::new(mode, 2);
        life.step(vec![switch(0, 1), switch(1, 2)], vec![]);
        let mut running = [1u32, 2];
        let home = |life: &mut Life, vcpu: usize, id: u32, fresh: bool| {
            let controls =
                if fresh { vec![map(id, HOME, 1, Protection::READ_WRITE)] } else { vec![] };
            life.step(controls, vec![run(vcpu as u8, HOME, true)]);
        };
        let mut known = [false; 4];
        for _ in 0..150 {
            let vcpu = r.below(2) as usize;
            let (page, pages) = (0x1000 + r.below(3000), 1 + r.below(700));
            let id = running[vcpu];
            match r.below(8) {
                0..4 => {
                    let (page, pages) = (0x1000 + r.below(3000), 1 + r.below(40));
                    life.control(unmap(id, page, pages));
                    // A program runs before the range is used again; mapped first, since an access
                    // outside would map a block.
                    home(&mut life, vcpu, id, !std::mem::replace(&mut known[id as usize], true));
                    let map = map(id, page, pages, Protection::READ_WRITE);
                    let store = |p| run(vcpu as u8, p, true);
                    life.step(vec![map], (page..page + pages).map(store).collect());
                }
                4..6 => life.control(unmap(id, page, pages)),
                6 => {
                    let other = 1 + r.below(3) as u32;
                    if !running.contains(&other) {
                        running[vcpu] = other;
                        life.control(switch(vcpu as u8, other));
                    }
                }
                _ => {
                    life.control(Control::Exit { process: p(id) });
                    known[id as usize] = false;
                    life.control(switch(vcpu as u8, id));
                }
            }
        }
        // Programs run once more on both vCPUs, so that nothing is pending.
        for (vcpu, id) in running.into_iter().enumerate() {
            home(&mut life, vcpu, id, !known[id as usize]);
        }
        let (expected, runs) = (life.guest.stats(), life.recording.iter().map(|b| b.gpas.len()));
        let (batches, guest, _) = life.remap(PagePolicy::Base, true);
        assert!(batches.iter().map(|b| b.runs.len()).eq(runs));
        let found = guest.stats();
        assert_eq!(found.resident_bytes, expected.resident_bytes, "{seed}");
        assert_eq!(found.pages_4k, expected.pages_4k, "{seed}");
        assert_eq!(found.first_touches, expected.first_touches, "{seed}");
    }
}

#[test]
fn what_cannot_be_re_mapped_is_refused() {
    let refused = Remap::new(&info(&PAE, 1), None).err().unwrap().to_string();
    assert!(refused.contains("pae") && refused.contains("64-bit addresses"), "{refused}");
    let mut remap = Remap::new(&info(&LONG4, 1), None).unwrap();
    let batch = Batch { runs: vec![], controls: vec![(0, switch(0, 1))] };
    assert!(remap.process(&batch, &mut Batch::default()).is_err());
    let far = Batch { runs: vec![run(0, 1, false)], controls: vec![] };
    remap.process(&far, &mut Batch::default()).unwrap();
    assert_eq!(remap.stats().unmapped, 2, "no address space was loaded");
}

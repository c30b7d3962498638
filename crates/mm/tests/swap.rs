//! A modelled guest that swaps: pages come back with what they held, and nothing is left behind.

use nestwalk_mm::{GuestConfig, ModelledGuest, PageChoice, ProcessPage};
use nestwalk_tables::LONG4;
use nestwalk_types::{
    Address, Batch, Control, GuestBatch, Gva, ProcessId, Protection, Run, RunFlags, SplitMix64,
    VcpuId,
};
use std::collections::{HashMap, VecDeque};

/// Second chance, as in every book.
#[derive(Default)]
struct Clock(VecDeque<ProcessPage>);

impl PageChoice for Clock {
    fn touched(&mut self, page: ProcessPage) {
        self.0.push_back(page);
    }
    fn passed(&mut self, _: u32, _: u64) {}
    fn victim(&mut self, used: &mut dyn FnMut(ProcessPage) -> Option<bool>) -> Option<ProcessPage> {
        for _ in 0..=self.0.len() {
            let page = self.0.pop_front()?;
            match used(page) {
                None => {}
                Some(true) => self.0.push_back(page),
                Some(false) => return Some(page),
            }
        }
        self.0.pop_front()
    }
}

fn guest(bytes: u64, swaps: bool) -> ModelledGuest {
    let config = GuestConfig { kernel_bytes: 1 << 20, ..GuestConfig::new(&LONG4, bytes) };
    let mut guest = ModelledGuest::new(config).unwrap();
    if swaps {
        guest.swap_by(Box::<Clock>::default());
    }
    guest
}

/// What memory and device hold, by the stream alone.
#[derive(Default)]
struct Contents {
    /// By table, the entries that were stored.
    tables: HashMap<u64, HashMap<u64, u64>>,
    frames: HashMap<u64, u64>,
    slots: HashMap<u64, u64>,
    /// The entry that named a slot last.
    named: u64,
    /// What processes have stored.
    stored: HashMap<(u32, u64), u64>,
    next: u64,
    swapped_in: u64,
    written: u64,
}

impl Contents {
    fn sees(&mut self, process: u32, output: &GuestBatch) {
        for (controls, runs) in output.batch.segments() {
            controls.iter().for_each(|(_, control)| self.control(control));
            for (run, gpa) in output.batch.runs[runs.clone()].iter().zip(&output.gpas[runs]) {
                let (page, frame) = ((process, run.gva.page_number()), gpa.page_number());
                if run.flags.is_store() {
                    self.next += 1;
                    self.stored.insert(page, self.next);
                    self.frames.insert(frame, self.next);
                }
                let wanted = self.stored.get(&page).copied().unwrap_or(0);
                assert_eq!(self.frames[&frame], wanted, "{page:?} in frame {frame:#x}");
            }
        }
    }

    fn control(&mut self, control: &Control) {
        match *control {
            Control::TableAdded { gpa, .. } => {
                self.tables.insert(gpa.page_number(), HashMap::new());
            }
            Control::TableWrite { gpa, value, .. } => {
                let table = self.tables.get_mut(&gpa.page_number()).unwrap();
                let old = table.insert(gpa.value(), value).unwrap_or(0);
                if value & 1 == 0 && value != 0 {
                    self.named = value;
                } else if value != 0 && old & 1 == 0 && old != 0 {
                    self.swapped_in += 1;
                    self.frames.insert(value << 12 >> 24, self.slots[&old]);
                }
            }
            Control::WrittenOut { gpa, .. } => {
                self.written += 1;
                self.slots.insert(self.named, self.frames[&gpa.page_number()]);
            }
            Control::PageCleared { gpa, .. } => {
                self.frames.insert(gpa.page_number(), 0);
            }
            _ => {}
        }
    }
}

fn run(page: u64, store: bool) -> Run {
    let gva = Gva::new(0x10_0000_0000 + (page << 12));
    let flags = RunFlags::STORE.when(store);
    Run { gva, pc: Gva::new(0), lines: 1, count: 1, instructions: 3, vcpu: VcpuId(0), flags }
}

/// Two processes use four times the memory that there is, unmap some of it and use it again.
#[test]
fn pages_come_back_with_what_they_held() {
    let mut guest = guest(8 << 20, true);
    let free = guest.memory().physical.free_frames();
    let mut contents = Contents::default();
    let mut random = SplitMix64::new(3);
    let (mut batch, mut output) = (Batch::default(), GuestBatch::default());
    for round in 0..300u64 {
        let process = (round % 2) as u32;
        let id = ProcessId(process);
        batch.runs.clear();
        batch.controls = vec![(0, Control::Switch { vcpu: VcpuId(0), process: id })];
        if random.below(8) == 0 {
            let page = random.below(3000);
            let start = run(page, false).gva;
            let bytes = 64 << 12;
            let protection = Protection::ALL;
            batch.controls.push((0, Control::Unmap { process: id, start, bytes }));
            batch.controls.push((0, Control::Map { process: id, start, bytes, protection }));
            let number = start.page_number();
            let gone = |at: u64| (number..number + 64).contains(&at);
            contents.stored.retain(|(of, at), _| *of != process || !gone(*at));
        }
        for _ in 0..400 {
            let hot = random.below(4) > 0;
            let page = random.below(if hot { 200 } else { 3000 });
            batch.runs.push(run(page, random.below(3) == 0));
        }
        guest.process(&batch, &mut output).unwrap();
        contents.sees(process, &output);
    }
    let stats = guest.swap_stats().unwrap();
    assert_eq!((stats.came_back, stats.written), (contents.swapped_in, contents.written));
    assert!(stats.came_back > 5_000 && stats.taken > stats.written + 1_000, "{stats:?}");
    batch.runs.clear();
    batch.controls = (0..2).map(|p| (0, Control::Exit { process: ProcessId(p) })).collect();
    guest.process(&batch, &mut output).unwrap();
    assert_eq!(guest.swap_space().unwrap().slots(), 0);
    assert_eq!(guest.memory().physical.free_frames(), free);
}

/// Parent and child share what is swapped, too; whoever ends last leaves nothing.
#[test]
fn what_is_swapped_is_shared_by_fork() {
    let mut guest = guest(8 << 20, true);
    let free = guest.memory().physical.free_frames();
    let (mut batch, mut output) = (Batch::default(), GuestBatch::default());
    let first =
        |process: u32| vec![(0, Control::Switch { vcpu: VcpuId(0), process: ProcessId(process) })];
    batch.controls = first(1);
    batch.runs = (0..2500).map(|page| run(page, true)).collect();
    guest.process(&batch, &mut output).unwrap();
    let before = guest.swap_space().unwrap().slots();
    assert!(before > 500, "{before}");
    batch.runs.clear();
    batch.controls = vec![(0, Control::Fork { parent: ProcessId(1), child: ProcessId(2) })];
    guest.process(&batch, &mut output).unwrap();
    batch.controls = vec![(0, Control::Exit { process: ProcessId(1) })];
    guest.process(&batch, &mut output).unwrap();
    assert!(guest.swap_space().unwrap().slots() >= before, "the child has them");
    // Pages that nobody has told of, since they were shared, can go now.
    batch.controls = first(2);
    batch.runs = (0..2500).map(|page| run(page, page % 2 == 0)).collect();
    guest.process(&batch, &mut output).unwrap();
    batch.runs.clear();
    batch.controls = vec![(0, Control::Exit { process: ProcessId(2) })];
    guest.process(&batch, &mut output).unwrap();
    assert_eq!(guest.swap_space().unwrap().slots(), 0);
    assert_eq!(guest.memory().physical.free_frames(), free);
}

#[test]
fn a_guest_that_swaps_nothing_is_full_as_before() {
    let (mut batch, mut output) = (Batch::default(), GuestBatch::default());
    batch.runs = (0..3000).map(|page| run(page, true)).collect();
    let error = guest(8 << 20, false).process(&batch, &mut output).unwrap_err().to_string();
    assert!(error.contains("of memory are used up"), "{error}");
    let mut swaps = guest(8 << 20, true);
    swaps.process(&batch, &mut output).unwrap();
    // A balloon takes what is not free, too, and leaves the kernel what it needs.
    let pages = swaps.inflate(1_000, &mut output).unwrap();
    assert!(pages.len() > 600, "{}", pages.len());
    assert!(pages.iter().all(|page| !swaps.memory().physical.is_free(*page)));
    swaps.process(&batch, &mut output).unwrap();
    assert!(
        output
            .gpas
            .iter()
            .all(|gpa| !pages.contains(&gpa.align_down(nestwalk_types::PageSize::SIZE_4K)))
    );
}

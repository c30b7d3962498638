use super::Multiplex;
use crate::patterns::PatternSpec;
use nestwalk_types::{
    Batch, Control, Gpa, Gva, ProcessId, Run, RunFlags, Source, SourceError, SourceInfo, VcpuId,
};

/// A source that is written down.
struct Script {
    batches: std::vec::IntoIter<Batch>,
    end: Result<bool, SourceError>,
}

impl Script {
    fn new(batches: Vec<Batch>) -> Self {
        Self { batches: batches.into_iter(), end: Ok(false) }
    }
}

impl Source for Script {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: "script".into(), ..SourceInfo::default() }
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        match self.batches.next() {
            Some(next) => {
                *batch = next;
                Ok(true)
            }
            None => {
                *batch = Batch::default();
                self.end.clone()
            }
        }
    }
}

fn run(page: u64, vcpu: u8) -> Run {
    Run {
        gva: Gva::new(page << 12),
        pc: Gva::new(0),
        lines: 1,
        count: 1,
        instructions: 10,
        vcpu: VcpuId(vcpu),
        flags: RunFlags::default(),
    }
}
fn switch(vcpu: u8, process: u32) -> Control {
    Control::Switch { vcpu: VcpuId(vcpu), process: ProcessId(process) }
}
const ROI: Control = Control::RegionOfInterest;

fn drain(m: &mut Multiplex) -> (Vec<Run>, Vec<(usize, Control)>, Option<SourceError>) {
    let (mut runs, mut controls) = (Vec::new(), Vec::new());
    let mut batch = Batch::default();
    loop {
        match m.next_batch(&mut batch) {
            Ok(true) => {
                let base = runs.len();
                controls.extend(batch.controls.drain(..).map(|(p, c)| (base + p as usize, c)));
                runs.append(&mut batch.runs);
            }
            Ok(false) => return (runs, controls, None),
            Err(e) => return (runs, controls, Some(e)),
        }
    }
}

/// One batch: set-up of one run, then runs on the given pages.
fn plain(process: u32, set_up: u64, pages: std::ops::Range<u64>) -> Box<dyn Source> {
    let mut runs = vec![run(set_up, 0)];
    runs.extend(pages.map(|p| run(p, 0)));
    let controls = vec![(0, switch(0, process)), (1, ROI)];
    Box::new(Script::new(vec![Batch { runs, controls }]))
}

#[test]
fn set_up_comes_first_and_turns_alternate() {
    let sources = vec![plain(7, 100, 0..6), plain(7, 200, 10..14)];
    let (runs, controls, error) = drain(&mut Multiplex::new(sources, 1, 20));
    let pages: Vec<_> = runs.iter().map(|r| r.gva.value() >> 12).collect();
    assert_eq!(pages, [100, 200, 0, 1, 10, 11, 2, 3, 12, 13, 4, 5]);
    let expected = vec![
        (0, switch(0, 1)),
        (1, switch(0, 2)),
        (2, ROI),
        (2, switch(0, 1)),
        (4, switch(0, 2)),
        (6, switch(0, 1)),
        (8, switch(0, 2)),
        (10, switch(0, 1)),
    ];
    assert_eq!(controls, expected);
    assert_eq!(error, None);
}

#[test]
fn two_vcpus_run_two_sources_without_switching() {
    let sources = vec![plain(1, 100, 0..4), plain(1, 200, 10..14)];
    let (runs, controls, _) = drain(&mut Multiplex::new(sources, 2, 10));
    let counted: Vec<_> = runs[2..].iter().map(|r| (r.gva.value() >> 12, r.vcpu.0)).collect();
    assert_eq!(counted, [(0, 0), (10, 1), (1, 0), (11, 1), (2, 0), (12, 1), (3, 0), (13, 1)]);
    assert_eq!(controls, [(0, switch(0, 1)), (1, switch(1, 2)), (2, ROI)]);
}

#[test]
fn three_sources_on_two_vcpus_go_round() {
    let sources = (0..3).map(|i| plain(1, 100 + i, 10 * i..10 * i + 2)).collect();
    let (runs, _, _) = drain(&mut Multiplex::new(sources, 2, 10));
    let counted: Vec<_> = runs[3..].iter().map(|r| (r.gva.value() >> 12, r.vcpu.0)).collect();
    assert_eq!(counted, [(0, 0), (10, 1), (20, 0), (1, 1), (11, 0), (21, 1)]);
}

#[test]
fn processes_are_renamed_everywhere_and_numbers_used_again_are_new() {
    let process = ProcessId(5);
    let fork = |child| Control::Fork { parent: ProcessId(4), child: ProcessId(child) };
    let controls = vec![
        (0, switch(0, 4)),
        (0, ROI),
        (0, fork(5)),
        (1, switch(0, 5)),
        (1, Control::Exec { process }),
        (2, Control::Exit { process }),
        (2, fork(5)),
        (2, switch(0, 5)),
    ];
    let script = Script::new(vec![Batch { runs: vec![run(1, 0); 3], controls }]);
    let sources: Vec<Box<dyn Source>> = vec![plain(9, 100, 0..0), Box::new(script)];
    let (runs, controls, _) = drain(&mut Multiplex::new(sources, 1, 1000));
    assert_eq!(runs.len(), 4);
    let p = ProcessId;
    let expected = vec![
        (0, switch(0, 1)),
        (1, ROI),
        (1, Control::Fork { parent: p(2), child: p(3) }),
        (1, switch(0, 2)),
        (2, Control::Exec { process: p(3) }),
        (2, switch(0, 3)),
        (3, Control::Exit { process: p(3) }),
        (3, Control::Fork { parent: p(2), child: p(4) }),
        (3, switch(0, 4)),
    ];
    assert_eq!(controls, expected);
}

#[test]
fn an_error_comes_after_everything_before_it() {
    let error = SourceError { source: "script".into(), message: "broken".into() };
    let mut broken = Script::new(vec![Batch {
        runs: vec![run(1, 0), run(2, 0)],
        controls: vec![(0, switch(0, 1)), (0, ROI)],
    }]);
    broken.end = Err(error.clone());
    let sources: Vec<Box<dyn Source>> = vec![Box::new(broken), plain(1, 100, 0..50)];
    let mut m = Multiplex::new(sources, 1, 10);
    let (runs, _, end) = drain(&mut m);
    assert_eq!(end, Some(error.clone()));
    let ours = runs.iter().filter(|r| matches!(r.gva.value() >> 12, 1 | 2)).count();
    assert!(ours >= 2, "both runs before the error");
    assert_eq!(m.next_batch(&mut Batch::default()), Err(error), "it stays");
}

#[test]
fn a_captured_guest_is_refused() {
    let load = Control::LoadCr3 { vcpu: VcpuId(0), root: Gpa::new(0x1000), pcid: 0, keep: false };
    let script = Script::new(vec![Batch { runs: vec![], controls: vec![(0, load)] }]);
    let (_, _, end) = drain(&mut Multiplex::new(vec![Box::new(script)], 1, 10));
    assert!(end.expect("an error").message.contains("run it alone"));
}

#[test]
fn nothing_is_lost_of_real_sources() {
    let defaults = PatternSpec { footprint: 1 << 20, accesses: 100_000, ..Default::default() };
    let spec = |text: &str| PatternSpec::parse(text, &defaults).expect("a pattern");
    let texts = ["uniform", "sequential:vcpus=3", "zipf:accesses=7"];
    let sources =
        texts.iter().map(|t| Box::new(spec(t).source()) as Box<dyn Source>).collect::<Vec<_>>();
    let mut m = Multiplex::new(sources, 2, Multiplex::QUANTUM);
    let (runs, controls, end) = drain(&mut m);
    assert_eq!(end, None);
    assert_eq!(runs.iter().map(|r| u64::from(r.count)).sum::<u64>(), 200_007);
    assert_eq!(controls.iter().filter(|c| c.1 == ROI).count(), 1);
    assert!(runs.iter().all(|r| r.vcpu.0 < 2));
    let mapped: Vec<_> = controls
        .iter()
        .filter_map(|c| match c.1 {
            Control::Map { process, .. } => Some(process.0),
            _ => None,
        })
        .collect();
    assert_eq!(mapped, [1, 2, 3]);
    assert_eq!(m.info().total, Some(200_007));
    assert_eq!(m.position(), 200_007);
}

#[test]
fn no_source_is_an_empty_stream() {
    let (runs, controls, end) = drain(&mut Multiplex::new(Vec::new(), 1, 10));
    assert!(runs.is_empty() && controls.is_empty() && end.is_none());
}

#[test]
fn a_source_that_has_nothing_now_has_not_ended() {
    let roi = || Batch { runs: vec![run(1, 0)], controls: vec![(0, switch(0, 1)), (0, ROI)] };
    let idle = Batch::default;
    let later = |page| Batch { runs: vec![run(page, 0)], controls: Vec::new() };
    let live = vec![idle(), roi(), idle(), idle(), later(2), idle(), later(3)];
    let sources: Vec<Box<dyn Source>> = vec![Box::new(Script::new(live)), plain(7, 100, 10..14)];
    let mut m = Multiplex::new(sources, 1, 20);
    let mut batch = Batch::default();
    assert_eq!(m.next_batch(&mut batch), Ok(true));
    assert!(batch.is_empty(), "its set-up has not begun");
    let (runs, _, error) = drain(&mut m);
    assert_eq!(error, None);
    let mut pages: Vec<u64> = runs.iter().map(|r| r.gva.value() >> 12).collect();
    // The other takes its turns in the meantime.
    assert!(pages.iter().position(|&p| p == 2) > pages.iter().position(|&p| p == 10));
    pages.sort_unstable();
    assert_eq!(pages, [1, 2, 3, 10, 11, 12, 13, 100]);
}

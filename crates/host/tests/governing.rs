//! The whole loop on a host made of files: start-up, switches, refusals, and everything that vanishes.

mod common;

use common::{CALM, FakeActuator, Host, SECOND, STORM};
use nestwalk_host::{End, Event, Governor, LiveVm, Summary};
use nestwalk_policy::{Action, Decision, Mode, Policy, PolicySpec, Reason};
use std::fs;

fn policy(spec: &str, mode: Mode) -> Box<dyn Policy> {
    let spec: PolicySpec = spec.parse().unwrap();
    spec.build(mode, &|_| panic!("names no file")).unwrap()
}

/// Governs with the thesis's policy until the script ends, which interrupts.
fn govern(governor: Governor, vm: &mut LiveVm) -> (Vec<Event>, Summary) {
    let mut policy = policy("dynamic-thresholds", vm.last_mode());
    let mut events = Vec::new();
    let say = |event: &Event| {
        events.push(event.clone());
        Ok::<(), String>(())
    };
    let summary = governor.run(vm, policy.as_mut(), say).unwrap();
    (events, summary)
}

/// Events other than plain decisions.
fn others(events: &[Event]) -> Vec<&Event> {
    events.iter().filter(|e| !matches!(e, Event::Decided { .. })).collect()
}

fn decisions(events: &[Event]) -> Vec<Decision> {
    let decided = |e: &Event| match e {
        Event::Decided { decision, .. } => Some(*decision),
        _ => None,
    };
    events.iter().filter_map(decided).collect()
}

fn ended(end: End, mode: Option<Mode>) -> Event {
    Event::Ended { end, mode, unknown: None }
}

#[test]
fn a_storm_is_seen_and_the_mode_changed() {
    let host = Host::new(2);
    host.then(|_| ()).then(|w| w.rates = STORM).intervals(8);
    let mut vm = host.vm();
    let (events, summary) = govern(Governor::default(), &mut vm);
    assert_eq!(host.mode(), "1");
    assert_eq!(
        others(&events),
        [
            &Event::Started { mode: Mode::Shadow },
            &Event::Switched { mode: Mode::Nested },
            &ended(End::Interrupted, Some(Mode::Nested)),
        ]
    );
    // The step comes at the end of the second interval, so storms are counted from the third on.
    let Event::Decided { sample, .. } = events[1] else { panic!("{:?}", events[1]) };
    // Two vCPUs, two events for walks and two for misses.
    assert_eq!((sample.guest_cycles, sample.host_kernel_cycles), (1_980_000, 20_000));
    assert_eq!((sample.walk_cycles, sample.tlb_misses), (Some(40_000), Some(400)));
    assert_eq!((sample.busy_ns, sample.duration_ns), (2 * SECOND, SECOND));
    let switch = decisions(&events).iter().position(|d| d.action != Action::Stay);
    // Two calm samples of 3 % leave C at 0, four of the storm bring it to 4.
    assert_eq!(switch, Some(5));
    assert!(matches!(decisions(&events)[6].reason, Reason::Quiet { left: 1 }));
    assert!(matches!(decisions(&events)[7].reason, Reason::Quiet { left: 0 }));
    assert_eq!((summary.samples, summary.switched, summary.refused), (10, 1, 0));
    assert!(summary.is_good());
}

#[test]
fn advice_changes_nothing() {
    let host = Host::new(1);
    host.then(|w| w.rates = STORM).intervals(6);
    let mut vm = host.vm();
    let (events, summary) = govern(Governor { dry_run: true, patience: 5 }, &mut vm);
    assert_eq!(host.mode(), "0");
    assert_eq!(
        others(&events),
        [
            &Event::Started { mode: Mode::Shadow },
            &Event::Advised { to: Mode::Nested, mode: Mode::Shadow },
            &ended(End::Interrupted, Some(Mode::Shadow)),
        ]
    );
    assert_eq!((summary.advised, summary.switched), (1, 0));
}

fn with(host: &Host, change: impl FnOnce(&mut FakeActuator)) -> LiveVm {
    let mut actuator = FakeActuator {
        world: host.world.clone(),
        mode: Mode::Shadow,
        write_error: None,
        delay: Some(0),
        blind: None,
        pending: None,
    };
    change(&mut actuator);
    host.vm().with_actuator(Box::new(actuator)).unwrap()
}

#[test]
fn a_request_that_is_answered_with_an_error_is_said() {
    let host = Host::new(1);
    host.then(|w| w.rates = STORM).intervals(7);
    // EBUSY, and nothing happens.
    let mut vm = with(&host, |a| (a.write_error, a.delay) = (Some(16), None));
    let (events, summary) = govern(Governor::default(), &mut vm);
    let why = "pms did not accept 1 (nested paging): Device or resource busy (os error 16)";
    let refused = Event::Refused { to: Mode::Nested, mode: Mode::Shadow, why: why.into() };
    // Four high samples, two of quiet, and it is tried again.
    assert_eq!(
        others(&events)[1..],
        [&refused, &refused, &ended(End::Interrupted, Some(Mode::Shadow))]
    );
    assert_eq!((summary.refused, summary.switched), (2, 0));
    // An error that switched nevertheless is a switch.
    let host = Host::new(1);
    host.then(|w| w.rates = STORM).intervals(4);
    let mut vm = with(&host, |a| a.write_error = Some(4));
    let (events, _) = govern(Governor::default(), &mut vm);
    assert_eq!(others(&events)[1], &Event::Switched { mode: Mode::Nested });
}

#[test]
fn a_request_that_is_accepted_and_ignored_is_said() {
    let host = Host::new(1);
    host.then(|w| w.rates = STORM).intervals(4);
    let mut vm = with(&host, |a| a.delay = None);
    let (events, summary) = govern(Governor::default(), &mut vm);
    let why = "pms accepted it and still says shadow".to_owned();
    let refused = Event::Refused { to: Mode::Nested, mode: Mode::Shadow, why };
    assert_eq!(others(&events)[1..], [&refused, &ended(End::Interrupted, Some(Mode::Shadow))]);
    assert!(summary.is_good());
}

#[test]
fn a_slow_switch_is_waited_for() {
    let host = Host::new(1);
    host.then(|w| w.rates = STORM).intervals(5);
    let mut vm = with(&host, |a| a.delay = Some(SECOND / 4));
    let (events, _) = govern(Governor::default(), &mut vm);
    assert_eq!(
        others(&events)[1..],
        [&Event::Switched { mode: Mode::Nested }, &ended(End::Interrupted, Some(Mode::Nested))]
    );
}

#[test]
fn a_mode_that_cannot_be_read_in_between_is_said() {
    let host = Host::new(1);
    host.intervals(9);
    let mut vm = with(&host, |a| a.blind = Some((5 * SECOND, 6 * SECOND)));
    let (events, summary) = govern(Governor::default(), &mut vm);
    assert!(matches!(others(&events)[1], Event::ModeUnknown { asked: None, .. }));
    assert!(matches!(others(&events)[2], Event::NoSample { in_a_row: 1, .. }));
    assert_eq!(others(&events)[3], &Event::ModeKnown { mode: Mode::Shadow });
    assert!(summary.is_good());
}

#[test]
fn an_unknown_mode_is_said_until_it_is_known() {
    let host = Host::new(1);
    host.then(|w| w.rates = STORM).intervals(10);
    // The switch is asked for at 5 s and takes 1 ns, after which nothing can be read until 8.5 s.
    let blind = Some((5 * SECOND + 1, 8 * SECOND + SECOND / 2));
    let mut vm = with(&host, |a| (a.blind, a.delay) = (blind, Some(1)));
    let (events, summary) = govern(Governor::default(), &mut vm);
    let kinds: Vec<String> = others(&events)
        .iter()
        .map(|e| match e {
            Event::ModeUnknown { asked, why } => format!("unknown {asked:?} {why}"),
            Event::NoSample { in_a_row, .. } => format!("lost {in_a_row}"),
            Event::ModeKnown { mode } => format!("known {mode}"),
            Event::Ended { mode, .. } => format!("ended {mode:?}"),
            Event::Started { .. } => "started".into(),
            other => format!("{other:?}"),
        })
        .collect();
    let unknown = "unknown Some(Nested) pms cannot be read: Input/output error (os error 5)";
    assert_eq!(
        kinds,
        ["started", unknown, "lost 1", "lost 2", "lost 3", "known nested", "ended Some(Nested)"]
    );
    // It was made, only seen late; and the policy knows.
    assert_eq!((summary.switched, summary.lost), (1, 3));
    assert!(decisions(&events).iter().all(|d| !matches!(d.reason, Reason::ModeDiffers { .. })));
}

#[test]
fn a_mode_that_stays_unknown_ends_it_and_is_said() {
    let host = Host::new(1);
    host.then(|w| w.rates = STORM).intervals(20);
    let mut vm = with(&host, |a| (a.blind, a.delay) = (Some((5 * SECOND + 1, u64::MAX)), Some(1)));
    let (events, summary) = govern(Governor::default(), &mut vm);
    let Some(Event::Ended { end: End::Failed(why), mode: None, unknown: Some(unknown) }) =
        events.last()
    else {
        panic!("{:?}", events.last())
    };
    assert!(why.starts_with("5 intervals in a row were lost: pms cannot be read"), "{why}");
    assert!(unknown.contains("Input/output error"));
    assert!(!summary.is_good());
}

#[test]
fn a_vm_that_exits_ends_it() {
    for what in ["proc/1234", "proc/1234/task/1240"] {
        let host = Host::new(1);
        host.intervals(3).then(move |w| fs::remove_dir_all(w.path(what)).unwrap()).intervals(3);
        let (events, summary) = govern(Governor::default(), &mut host.vm());
        assert_eq!(decisions(&events).len(), 3, "{what}");
        assert_eq!(events.last(), Some(&ended(End::VmExited, None)));
        assert!(summary.is_good());
    }
    // Its number is given to another process.
    let host = Host::new(1);
    host.intervals(2).then(|w| {
        let stat = "1234 (sh) S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 999 1 1";
        fs::write(w.path("proc/1234/stat"), stat).unwrap();
    });
    let (events, _) = govern(Governor::default(), &mut host.vm());
    assert_eq!(events.last(), Some(&ended(End::VmExited, None)));
}

#[test]
fn a_vm_that_exits_during_a_switch_ends_it() {
    let host = Host::new(1);
    host.then(|w| w.rates = STORM).intervals(3).then(|w| {
        fs::remove_dir_all(w.path("kvm/1234-11")).unwrap();
        fs::remove_dir_all(w.path("proc/1234")).unwrap();
    });
    let (events, _) = govern(Governor::default(), &mut host.vm());
    assert_eq!(events.last(), Some(&ended(End::VmExited, None)));
}

#[test]
fn a_file_that_vanishes_leaves_the_mode_unknown() {
    let host = Host::new(1);
    host.intervals(2).then(|w| fs::remove_file(w.pms()).unwrap()).intervals(9);
    let (events, summary) = govern(Governor::default(), &mut host.vm());
    let Some(Event::Ended { end: End::Failed(why), mode: None, unknown: Some(_) }) = events.last()
    else {
        panic!("{:?}", events.last())
    };
    assert!(why.contains("pms is gone"), "{why}");
    assert!(matches!(others(&events)[1], Event::ModeUnknown { asked: None, .. }));
    assert!(!summary.is_good());
    // It was not created anew.
    assert!(!host.world.borrow().pms().exists());
}

#[test]
fn counters_that_vanish_are_said_and_waited_for() {
    let host = Host::new(1);
    host.intervals(2).then(|w| w.counter_error = Some(9)).intervals(1);
    host.then(|w| w.counter_error = None).intervals(4);
    let (events, summary) = govern(Governor::default(), &mut host.vm());
    let lost: Vec<_> = others(&events)
        .iter()
        .filter_map(|e| match e {
            Event::NoSample { why, in_a_row } => Some((why.clone(), *in_a_row)),
            _ => None,
        })
        .collect();
    assert!(lost[0].0.contains("of thread 1240 cannot be read any more: Bad file descriptor"));
    assert_eq!(lost[2].0, "counters began anew in this interval");
    assert_eq!(lost.iter().map(|l| l.1).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((summary.samples, summary.lost), (6, 3));
    // Afterwards an interval is an interval again, not three.
    for event in &events {
        if let Event::Decided { sample, .. } = event {
            assert_eq!((sample.duration_ns, sample.busy_ns), (SECOND, SECOND));
        }
    }
    assert!(summary.is_good());

    // For good: it gives up, and says in which mode it leaves the VM.
    let host = Host::new(1);
    host.intervals(2).then(|w| w.counter_error = Some(9)).intervals(9);
    let (events, summary) = govern(Governor::default(), &mut host.vm());
    let Some(Event::Ended { end: End::Failed(why), mode: Some(Mode::Shadow), .. }) = events.last()
    else {
        panic!("{:?}", events.last())
    };
    assert!(why.starts_with("5 intervals in a row were lost"), "{why}");
    assert!(!summary.is_good());
}

#[test]
fn vcpus_come_and_go() {
    let host = Host::new(1);
    host.intervals(1)
        .then(|w| {
            fs::create_dir_all(w.path("proc/1234/task/1250")).unwrap();
            fs::write(w.path("proc/1234/task/1250/comm"), "CPU 1/KVM\n").unwrap();
        })
        .intervals(1)
        .then(|w| fs::remove_dir_all(w.path("proc/1234/task/1240")).unwrap())
        .intervals(1);
    let (events, _) = govern(Governor::default(), &mut host.vm());
    let cycles: Vec<u64> = events
        .iter()
        .filter_map(|e| match e {
            Event::Decided { sample, .. } => Some(sample.guest_cycles / CALM.guest),
            _ => None,
        })
        .collect();
    // A new thread counts from the next interval on; one that ended, up to its end.
    assert_eq!(cycles, [1, 1, 2, 2, 1]);
}

#[test]
fn somebody_else_may_change_the_mode() {
    let host = Host::new(1);
    host.intervals(2).then(|w| fs::write(w.pms(), "1\n").unwrap()).intervals(4);
    let (events, summary) = govern(Governor::default(), &mut host.vm());
    assert_eq!(
        others(&events)[1..],
        [
            &Event::ChangedElsewhere { from: Mode::Shadow, mode: Mode::Nested },
            &ended(End::Interrupted, Some(Mode::Nested))
        ]
    );
    // The policy goes on in the new mode after a quiet time, and judges no switch that was not its own.
    let reasons: Vec<Reason> = decisions(&events).iter().map(|d| d.reason).collect();
    assert_eq!(reasons[2..4], [Reason::Quiet { left: 1 }, Reason::Quiet { left: 0 }]);
    assert!(matches!(reasons[4], Reason::Between { .. }));
    assert_eq!(summary.switched, 0);
}

#[test]
fn a_reader_that_has_gone_ends_it_with_a_last_word() {
    let host = Host::new(1);
    host.intervals(9);
    let mut vm = host.vm();
    let mut said = Vec::new();
    let mut policy = policy("dynamic-thresholds", Mode::Shadow);
    let result = Governor::default().run(&mut vm, policy.as_mut(), |event| {
        said.push(event.clone());
        if said.len() == 3 { Err("broken pipe") } else { Ok(()) }
    });
    assert_eq!(result.unwrap_err(), "broken pipe");
    let end = End::Failed("broken pipe".into());
    assert_eq!(said.last(), Some(&ended(end, Some(Mode::Shadow))));
}

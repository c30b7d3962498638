//! A host made of files and numbers: `/proc`, debugfs, counters and a clock.

#![allow(dead_code, reason = "each test binary uses its part")]

use nestwalk_host::{
    Actuator, ActuatorError, Clock, CustomEvents, LiveOptions, LiveVm, Missing, OpenCounter,
    OpenError, PerfEvents, Reading, Role, Roots, Wanted,
};
use nestwalk_policy::{Counter, Mode};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use tempfile::TempDir;

pub const PID: u32 = 1234;
pub const SECOND: u64 = 1_000_000_000;

/// What a vCPU does in a second, by role.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub busy: u64,
    pub instructions: u64,
    pub guest: u64,
    pub kernel: u64,
    pub user: u64,
    /// Of each of two walk events.
    pub walk: u64,
    /// Of each of two miss events.
    pub misses: u64,
}

/// A VM that runs well: 1 % VMM, 2 % walks, IPC 1.
pub const CALM: Rates = Rates {
    busy: SECOND,
    instructions: 1_000_000,
    guest: 990_000,
    kernel: 10_000,
    user: 0,
    walk: 10_000,
    misses: 100,
};

/// 20 % VMM and 4 % walks.
pub const STORM: Rates = Rates { guest: 800_000, kernel: 200_000, walk: 20_000, ..CALM };

/// Something that happens.
pub type Step = Box<dyn FnOnce(&mut World)>;

/// The state of the host, which a step of the script may change at each wait.
pub struct World {
    pub now: u64,
    pub rates: Rates,
    /// Counts of one vCPU since the start, by role.
    pub counts: [u64; 7],
    /// Errors that counters answer with.
    pub counter_error: Option<i32>,
    /// Events that cannot be opened, by a piece of their name.
    pub closed: Option<(&'static str, i32)>,
    /// Share of the time that counters run, of 100.
    pub running: u64,
    pub opened: Vec<(u32, String)>,
    /// What happens when the clock is waited for, one per wait of an interval.
    pub script: VecDeque<Step>,
    pub stop: bool,
    pub dir: PathBuf,
}

impl World {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn pms(&self) -> PathBuf {
        self.path("kvm/1234-11/pms")
    }

    fn pass(&mut self, ns: u64) {
        self.now += ns;
        let r = self.rates;
        let all = [r.busy, r.instructions, r.guest, r.kernel, r.user, r.walk, r.misses];
        for (count, rate) in self.counts.iter_mut().zip(all) {
            *count += rate * ns / SECOND;
        }
    }
}

pub struct Host {
    pub world: Rc<RefCell<World>>,
    pub roots: Roots,
    pub dir: TempDir,
}

pub const SKYLAKE: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 94\n\
                           model name\t: Intel(R) Core(TM) i5-7600\nflags\t\t: fpu vmx\n";

impl Host {
    /// A host with a VM of this many vCPUs, in shadow mode.
    pub fn new(vcpus: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let world = World {
            now: 0,
            rates: CALM,
            counts: [0; 7],
            counter_error: None,
            closed: None,
            running: 100,
            opened: Vec::new(),
            script: VecDeque::new(),
            stop: false,
            dir: root.clone(),
        };
        let roots = Roots { proc: root.join("proc"), sys: root.join("sys"), kvm: root.join("kvm") };
        let host = Self { world: Rc::new(RefCell::new(world)), roots, dir };
        host.write("proc/cpuinfo", SKYLAKE);
        host.write("proc/sys/kernel/perf_event_paranoid", "4\n");
        host.write(
            "proc/1234/stat",
            "1234 (qemu (x) y) S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 777 1 1",
        );
        host.write("proc/1234/task/1234/comm", "qemu-system-x86\n");
        for i in 0..vcpus {
            host.write(&format!("proc/1234/task/{}/comm", 1240 + i), &format!("CPU {i}/KVM\n"));
        }
        host.write("kvm/1234-11/pms", "0\n");
        host.write("kvm/1234-11/exits", "1000\n");
        host.write("kvm/12345-9/pms", "1\n");
        host
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn remove(&self, name: &str) {
        let path = self.dir.path().join(name);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    /// At the n-th wait (from the first that has no step yet) this happens.
    pub fn then(&self, step: impl FnOnce(&mut World) + 'static) -> &Self {
        self.world.borrow_mut().script.push_back(Box::new(step));
        self
    }

    /// For so many intervals nothing special happens.
    pub fn intervals(&self, count: usize) -> &Self {
        for _ in 0..count {
            self.then(|_| ());
        }
        self
    }

    pub fn options() -> LiveOptions {
        LiveOptions {
            interval_ns: SECOND,
            settle_ns: SECOND / 2,
            pms: None,
            dry_run: false,
            needs: vec![Counter::WalkCycles],
            custom: CustomEvents::default(),
            guest_faults: None,
        }
    }

    pub fn open(&self, options: LiveOptions) -> Result<(LiveVm, Vec<Missing>), OpenError> {
        let perf = Box::new(FakePerf(self.world.clone()));
        let clock = Box::new(FakeClock(self.world.clone()));
        LiveVm::open(&self.roots, PID, perf, clock, options)
    }

    pub fn vm(&self) -> LiveVm {
        match self.open(Self::options()) {
            Ok((vm, missing)) => {
                assert!(missing.is_empty(), "{missing:?}");
                vm
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub fn mode(&self) -> String {
        fs::read_to_string(self.world.borrow().pms()).unwrap().trim().to_owned()
    }
}

struct FakePerf(Rc<RefCell<World>>);

struct FakeCounter {
    world: Rc<RefCell<World>>,
    role: Role,
}

impl PerfEvents for FakePerf {
    fn open(&mut self, tid: u32, wanted: &Wanted) -> io::Result<Box<dyn OpenCounter>> {
        let mut world = self.0.borrow_mut();
        if let Some((name, error)) = world.closed
            && wanted.name.contains(name)
        {
            return Err(io::Error::from_raw_os_error(error));
        }
        world.opened.push((tid, wanted.name.clone()));
        Ok(Box::new(FakeCounter { world: self.0.clone(), role: wanted.role }))
    }
}

impl OpenCounter for FakeCounter {
    fn read(&mut self) -> io::Result<Reading> {
        let world = self.world.borrow();
        if let Some(error) = world.counter_error {
            return Err(io::Error::from_raw_os_error(error));
        }
        let index = match self.role {
            Role::Busy => 0,
            Role::Instructions => 1,
            Role::GuestCycles => 2,
            Role::HostKernelCycles => 3,
            Role::HostUserCycles => 4,
            Role::WalkCycles => 5,
            Role::TlbMisses => 6,
        };
        let running_ns = world.now * world.running / 100;
        let count = world.counts[index] * world.running / 100;
        Ok(Reading { count, enabled_ns: world.now, running_ns })
    }
}

struct FakeClock(Rc<RefCell<World>>);

impl Clock for FakeClock {
    fn now_ns(&self) -> u64 {
        self.0.borrow().now
    }

    fn wait_until(&mut self, until_ns: u64) -> bool {
        let mut world = self.0.borrow_mut();
        let ns = until_ns.saturating_sub(world.now);
        world.pass(ns);
        // Short waits are those for a switch to settle.
        if ns > SECOND / 10 {
            match world.script.pop_front() {
                Some(step) => step(&mut world),
                None => world.stop = true,
            }
        }
        !world.stop
    }
}

/// An actuator that does what the test says.
pub struct FakeActuator {
    pub world: Rc<RefCell<World>>,
    pub mode: Mode,
    /// What a request is answered with.
    pub write_error: Option<i32>,
    /// When an accepted request comes into force after the request, nanoseconds; never if none.
    pub delay: Option<u64>,
    /// From this moment on the mode cannot be read, until that one.
    pub blind: Option<(u64, u64)>,
    pub pending: Option<(u64, Mode)>,
}

impl Actuator for FakeActuator {
    fn mode(&mut self) -> Result<Mode, ActuatorError> {
        let now = self.world.borrow().now;
        if let Some((at, mode)) = self.pending
            && now >= at
        {
            self.mode = mode;
            self.pending = None;
        }
        if self.blind.is_some_and(|(from, to)| (from..to).contains(&now)) {
            let error = io::Error::from_raw_os_error(5);
            return Err(ActuatorError::Read { path: "pms".into(), error });
        }
        Ok(self.mode)
    }

    fn switch(&mut self, to: Mode) -> Result<(), ActuatorError> {
        let now = self.world.borrow().now;
        self.pending = self.delay.map(|d| (now + d, to));
        match self.write_error {
            None => Ok(()),
            Some(code) => Err(ActuatorError::Write {
                path: "pms".into(),
                value: '1',
                mode: to,
                error: io::Error::from_raw_os_error(code),
            }),
        }
    }

    fn describe(&self) -> String {
        "pms".into()
    }
}

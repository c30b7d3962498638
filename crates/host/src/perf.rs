//! The system's counters, through `perf_event_open`.

use crate::counters::{OpenCounter, PerfEvents, Reading, Role, Wanted};
use perf_event::events::{Hardware, Raw, Software};
use perf_event::{Builder, Counter};
use std::io;
use std::time::Duration;

/// The system's counters.
#[derive(Debug, Default)]
pub struct HostPerf;

impl PerfEvents for HostPerf {
    fn open(&mut self, tid: u32, wanted: &Wanted) -> io::Result<Box<dyn OpenCounter>> {
        let mut builder = match (wanted.role, wanted.raw) {
            (_, Some(config)) => Builder::new(Raw::new(config)),
            (Role::Busy, None) => Builder::new(Software::TASK_CLOCK),
            (Role::Instructions, None) => Builder::new(Hardware::INSTRUCTIONS),
            (Role::GuestCycles | Role::HostKernelCycles | Role::HostUserCycles, None) => {
                Builder::new(Hardware::CPU_CYCLES)
            }
            (Role::WalkCycles | Role::TlbMisses, None) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "no event is given"));
            }
        };
        let (guest, kernel, user) = match wanted.role {
            Role::Busy => (true, true, true),
            Role::HostKernelCycles => (false, true, false),
            Role::HostUserCycles => (false, false, true),
            _ => (true, true, true),
        };
        let tid = i32::try_from(tid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        builder.observe_pid(tid).any_cpu().exclude_kernel(!kernel).exclude_user(!user);
        // Guest counters count the guest's kernel and programs alike; `exclude_host` leaves out all of
        // the host, so the two kinds of exclusion do not meet.
        let host =
            matches!(wanted.role, Role::Busy | Role::HostKernelCycles | Role::HostUserCycles);
        builder.exclude_guest(!guest).exclude_host(!host).exclude_hv(false);
        builder.enabled(true).inherit(false);
        Ok(Box::new(HostCounter(builder.build()?)))
    }
}

struct HostCounter(Counter);

impl OpenCounter for HostCounter {
    fn read(&mut self) -> io::Result<Reading> {
        let data = self.0.read_full()?;
        let ns = |time: Option<Duration>| {
            time.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX))
        };
        Ok(Reading {
            count: data.count(),
            enabled_ns: ns(data.time_enabled()),
            running_ns: ns(data.time_running()),
        })
    }
}

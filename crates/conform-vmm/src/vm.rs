//! One virtual machine for each script.
#![allow(unsafe_code)]

use crate::guest;
use crate::memory::Memory;
use crate::port::Port;
use crate::trace::{self, Trace};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

/// After so many actions what the tracepoints said is written, long before the buffer is full.
const OFTEN: usize = 256;

/// /dev/kvm.
pub struct Host(Kvm);

fn number(word: Option<&str>, line: &str) -> Result<u64, String> {
    let word = word.ok_or_else(|| format!("{line}: a number is missing"))?;
    u64::from_str_radix(word, 16).map_err(|_| format!("{line}: {word} is no hexadecimal number"))
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |e| format!("{what}: {e}")
}

/// One that runs.
struct Running<'a> {
    vcpu: VcpuFd,
    memory: &'a mut Memory,
    own: u64,
    /// The last action was performed in user mode.
    user: bool,
}

impl Host {
    /// Opens it.
    pub fn open() -> Result<Self, String> {
        Kvm::new().map(Self).map_err(failed("/dev/kvm"))
    }

    /// Runs a script in a virtual machine of its own; `head` is its name and number of pages. What the
    /// tracepoints say meanwhile is written to `out` from time to time.
    pub fn perform(
        &self,
        head: &str,
        script: &[&str],
        (trace, out): (&Trace, &Port),
    ) -> Result<(), String> {
        let pages = number(head.split(' ').nth(1), head)?;
        let mut memory = Memory::new((pages as usize) << 12, script.contains(&"huge"))
            .map_err(failed("memory"))?;
        let vm = self.0.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: 0,
            memory_size: pages << 12,
            userspace_addr: memory.address(),
            flags: 0,
        };
        // SAFETY: the memory outlives the VM, which is dropped first.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("memory slot"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        let ids = self.0.get_supported_cpuid(128).map_err(failed("CPUID"))?;
        vcpu.set_cpuid2(&ids).map_err(failed("KVM_SET_CPUID2"))?;
        let own = back(&mut memory, (pages as usize) << 12, script)?;
        let mut running = Running { vcpu, memory: &mut memory, own, user: false };
        let mut done = 0;
        for line in script {
            if running.line(line, done, trace)? {
                done += 1;
                if done % OFTEN == 0 {
                    out.write(&trace.take()?);
                }
            }
        }
        for (name, value) in trace::counters() {
            trace.mark(&format!("counter {name} {value}"))?;
        }
        // What the end of the machine does belongs to no action.
        trace.mark("close")
    }
}

/// The host has the pages that the script says, or else all; the guest's own page is among them. Returns
/// where that is mapped.
fn back(memory: &mut Memory, bytes: usize, script: &[&str]) -> Result<u64, String> {
    let (mut all, mut own, mut place) = (true, guest::AT, guest::PLACE);
    for line in script {
        let mut words = line.split(' ');
        match words.next() {
            Some("back") => {
                all = false;
                let at = number(words.next(), line)? as usize;
                memory.fill(at, (number(words.next(), line)? as usize) << 12, 0xee)?;
            }
            Some("own") => {
                own = number(words.next(), line)?;
                place = number(words.next(), line)?;
            }
            _ => {}
        }
    }
    if all {
        memory.fill(0, bytes, 0xee)?;
    }
    memory.put(place as usize, &guest::page(own))?;
    Ok(own)
}

impl Running<'_> {
    /// Deals with a line; whether it was an action.
    fn line(&mut self, line: &str, done: usize, trace: &Trace) -> Result<bool, String> {
        let mut words = line.split(' ');
        let letter = words.next().unwrap_or("");
        match letter {
            "huge" | "back" | "own" => return Ok(false),
            "zero" | "t" => self.memory.fill(number(words.next(), line)? as usize, 4096, 0)?,
            "f" => self.memory.fill(number(words.next(), line)? as usize, 4096, 0xee)?,
            "poke" => {
                let at = number(words.next(), line)? as usize;
                let value = number(words.next(), line)?;
                for i in 0..number(words.next(), line)? {
                    self.memory.put(at + 8 * i as usize, &(value + 0x1000 * i).to_le_bytes())?;
                }
            }
            "start" => start(&self.vcpu, self.own, number(words.next(), line)?)?,
            _ => {
                let (entry, user) =
                    guest::entry(letter).ok_or_else(|| format!("{line}: no such action"))?;
                let address = number(words.next(), line)?;
                let value = words.next().map_or(Ok(0), |w| number(Some(w), line))?;
                self.mode(user)?;
                trace.mark(&format!("do {done}"))?;
                self.act((entry, user), address, value)?;
                return Ok(true);
            }
        }
        let action = matches!(letter, "t" | "f");
        if action {
            trace.mark(&format!("do {done}"))?;
        }
        Ok(action)
    }

    /// The next action is one of the kernel or of a user program.
    fn mode(&mut self, user: bool) -> Result<(), String> {
        // A fault in user mode has ended in the kernel.
        if user || self.user {
            let mut sregs = self.vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
            (sregs.cs, sregs.ss) = segments(user);
            self.vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        }
        self.user = user;
        Ok(())
    }

    fn act(&mut self, (entry, user): (u64, bool), address: u64, value: u64) -> Result<(), String> {
        let regs = kvm_regs {
            rip: self.own + entry,
            rsp: self.own + guest::STACK,
            rdi: address,
            rsi: value,
            rdx: 0xf4,
            // Programs may execute OUT, too.
            rflags: if user { 0x3002 } else { 2 },
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(..)) => return Ok(()),
                Ok(VcpuExit::Intr) => {}
                Ok(other) => return Err(format!("unexpected exit {other:?}")),
                Err(e) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(format!("KVM_RUN: {e}")),
            }
        }
    }
}

/// Code and stack segments.
fn segments(user: bool) -> (kvm_segment, kvm_segment) {
    let dpl = if user { 3 } else { 0 };
    let plain =
        kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, dpl, ..Default::default() };
    let (code, data) = if user {
        (guest::USER_CODE, guest::USER_DATA)
    } else {
        (guest::KERNEL_CODE, guest::KERNEL_DATA)
    };
    let code = kvm_segment { selector: code, type_: 11, l: 1, ..plain };
    (code, kvm_segment { selector: data, type_: 3, db: 1, ..plain })
}

/// Long mode, with every segment and table where the guest's page has it.
fn start(vcpu: &VcpuFd, own: u64, root: u64) -> Result<(), String> {
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let (code, data) = segments(false);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr.base = own + guest::TASK;
    (sregs.tr.limit, sregs.tr.type_, sregs.tr.present) = (guest::TASK_BYTES as u32 - 1, 11, 1);
    let table = |offset, bytes: u64| kvm_dtable {
        base: own + offset,
        limit: bytes as u16 - 1,
        padding: [0; 3],
    };
    sregs.gdt = table(guest::GDT, guest::GDT_BYTES);
    sregs.idt = table(guest::IDT, guest::VECTORS * 16);
    // PG, AM, WP, NE, ET, MP, PE; PAE; NXE, LMA, LME.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8005_0033, root, 0x20, 0xd00);
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))
}

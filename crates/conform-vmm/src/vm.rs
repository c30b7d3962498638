//! One virtual machine for each script.
#![allow(unsafe_code)]

use crate::guest;
use crate::memory::Memory;
use crate::trace::Trace;
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

/// /dev/kvm.
pub struct Host(Kvm);

fn number(word: Option<&str>, line: &str) -> Result<u64, String> {
    let word = word.ok_or_else(|| format!("{line}: a number is missing"))?;
    u64::from_str_radix(word, 16).map_err(|_| format!("{line}: {word} is no hexadecimal number"))
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |e| format!("{what}: {e}")
}

impl Host {
    /// Opens it.
    pub fn open() -> Result<Self, String> {
        Kvm::new().map(Self).map_err(failed("/dev/kvm"))
    }

    /// Runs a script in a virtual machine of its own; `head` is its name and number of pages.
    pub fn perform(&self, head: &str, script: &[&str], trace: &Trace) -> Result<(), String> {
        let pages = number(head.split(' ').nth(1), head)?;
        let mut memory = Memory::new((pages as usize) << 12, script.contains(&"huge"))
            .map_err(failed("memory"))?;
        memory.fill(0xee);
        memory.put(guest::FRAME, &guest::page())?;
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
        let mut vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        let ids = self.0.get_supported_cpuid(128).map_err(failed("CPUID"))?;
        vcpu.set_cpuid2(&ids).map_err(failed("KVM_SET_CPUID2"))?;
        let mut done = 0;
        for line in script {
            let mut words = line.split(' ');
            let letter = words.next().unwrap_or("");
            match letter {
                "huge" => {}
                "zero" => memory.put(number(words.next(), line)? as usize, &[0; 4096])?,
                "poke" => {
                    let at = number(words.next(), line)? as usize;
                    let value = number(words.next(), line)?;
                    for i in 0..number(words.next(), line)? {
                        memory.put(at + 8 * i as usize, &(value + 0x1000 * i).to_le_bytes())?;
                    }
                }
                "start" => start(&vcpu, number(words.next(), line)?)?,
                _ => {
                    let entry =
                        guest::entry(letter).ok_or_else(|| format!("{line}: no such action"))?;
                    let address = number(words.next(), line)?;
                    let value = words.next().map_or(Ok(0), |w| number(Some(w), line))?;
                    trace.mark(&format!("do {done}"))?;
                    act(&mut vcpu, entry, address, value)?;
                    done += 1;
                }
            }
        }
        // What the end of the machine does belongs to no action.
        trace.mark("close")?;
        Ok(())
    }
}

/// Long mode, with every segment and table where the guest's page has it.
fn start(vcpu: &VcpuFd, root: u64) -> Result<(), String> {
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let plain = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x10, type_: 11, l: 1, ..plain };
    let data = kvm_segment { selector: 0x18, type_: 3, db: 1, ..plain };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    let table = |offset, bytes: u64| kvm_dtable {
        base: guest::AT + offset,
        limit: bytes as u16 - 1,
        padding: [0; 3],
    };
    sregs.gdt = table(guest::GDT, 32);
    sregs.idt = table(guest::IDT, guest::VECTORS * 16);
    // PG, AM, WP, NE, ET, MP, PE; PAE; NXE, LMA, LME.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8005_0033, root, 0x20, 0xd00);
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))
}

fn act(vcpu: &mut VcpuFd, entry: u64, address: u64, value: u64) -> Result<(), String> {
    let regs = kvm_regs {
        rip: entry,
        rsp: guest::AT + guest::STACK,
        rdi: address,
        rsi: value,
        rdx: 0xf4,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => return Ok(()),
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Err(format!("unexpected exit {other:?}")),
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(format!("KVM_RUN: {e}")),
        }
    }
}

//! Performs the actions of scripts in a guest without an operating system, under the KVM of the kernel
//! that it runs on, and writes what KVM's tracepoints say between markers.
//!
//! It runs in an initial file system, as its only program: `conform-vmm PROGRAMS` reads the programs and
//! writes to the I/O port 0xe9, where QEMU's debug console listens.
//!
//! A program is lines of words, numbers in hexadecimal:
//!
//! ```text
//! script NAME PAGES        a fresh virtual machine with so many pages of 4 KiB, every byte of them 0xee
//! huge                     the host backs it with pages of 2 MiB
//! back GPA PAGES           the host has these pages, and others so named, in place of all
//! own VA GPA               where the guest's own page is mapped in every address space, and where it is
//! zero GPA                 a page is cleared
//! poke GPA VALUE COUNT     eight bytes are stored, and after them as often the same for the next page
//! start CR3                the root to begin with
//! r|w|x|i|c A [VALUE]      the guest reads, stores VALUE, jumps there, executes INVLPG, loads CR3
//! R|W|X A [VALUE]          the first three in user mode
//! t|f GPA                  actions of the VMM: a page is cleared, or every byte of it is 0xee again
//! end
//! ```

mod guest;
mod memory;
mod port;
mod trace;
mod vm;

use std::process::ExitCode;

fn run(path: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let out = port::Port::open()?;
    let trace = trace::Trace::start()?;
    let host = vm::Host::open()?;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(head) = line.strip_prefix("script ") else { continue };
        let script: Vec<&str> = lines.by_ref().take_while(|l| *l != "end").collect();
        trace.clear()?;
        trace.mark(&format!("script {head}"))?;
        if let Err(e) = host.perform(head, &script, (&trace, &out)) {
            trace.mark(&format!("failed {e}"))?;
        }
        trace.mark("end")?;
        out.write(&trace.take()?);
    }
    out.write(b"@done\n");
    Ok(())
}

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("conform-vmm PROGRAMS: a file of programs is missing");
        return ExitCode::from(2);
    };
    match run(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("conform-vmm: {e}");
            ExitCode::from(2)
        }
    }
}

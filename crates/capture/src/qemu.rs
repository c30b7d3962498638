//! QEMU's command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::guest::Guest;

/// A plugin for QEMU's translator, with what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// The shared library.
    pub path: PathBuf,
    /// Its arguments by name.
    pub arguments: Vec<(String, String)>,
}

/// The files of one run of QEMU.
#[derive(Debug, Clone)]
pub struct Files {
    /// The kernel, as ELF.
    pub kernel: PathBuf,
    /// The root file system.
    pub image: PathBuf,
    /// The guest's memory; QEMU creates it.
    pub ram: PathBuf,
    /// What the guest's kernel says.
    pub console: PathBuf,
    /// What the command writes to its standard output and standard error.
    pub output: PathBuf,
    /// `status N` once the command has ended.
    pub status: PathBuf,
}

/// The model of the guest's processor.
///
/// The fast string instructions would clear pages byte by byte: 4096 accesses instead of 512.
/// Four-level tables are what nearly all machines use. Without 1 GiB pages the kernel maps memory with
/// 2 MiB pages, whose use the recorder's filter follows.
pub const CPU: &str = "max,erms=off,fsrm=off,pdpe1gb=off,la57=off";

/// First byte of guest memory above the hole below 4 GiB, if there is so much: guest-physical
/// addresses from 4 GiB on lie from there in the file.
///
/// QEMU's machine "pc" (`hw/i386/pc_piix.c`) puts up to 3.5 GiB below the hole if that is all there
/// is, and 3 GiB otherwise.
#[must_use]
pub fn below_4g(memory_bytes: u64) -> u64 {
    const WHOLE: u64 = 0xe000_0000;
    const SPLIT: u64 = 0xc000_0000;
    if memory_bytes < WHOLE { memory_bytes } else { SPLIT }
}

/// The arguments with which QEMU runs `guest`.
///
/// The serial ports write to files, which never make QEMU wait: with a pipe, the guest would see
/// how fast the reader is.
#[must_use]
pub fn arguments(guest: &Guest, files: &Files, plugin: Option<&Plugin>) -> Vec<OsString> {
    let mut line = Line::default();
    line.add("-nodefaults").add("-no-user-config").add("-no-reboot").option("-display", "none");
    if guest.vcpus == 1 {
        // Round robin between vCPUs gives plugins wrong vCPU numbers (QEMU 10.0), so only for one.
        line.option("-accel", "tcg,thread=single").option("-smp", "1");
    } else {
        line.option("-accel", "tcg,thread=multi").option("-smp", guest.vcpus.to_string());
    }
    // One instruction takes 2 ns of the guest's time, whatever the host does.
    if guest.is_reproducible() {
        line.option("-icount", "shift=1,sleep=off");
        line.option("-rtc", "base=2020-01-01T00:00:00,clock=vm");
    } else {
        line.option("-rtc", "base=2020-01-01T00:00:00");
    }
    line.option("-seed", guest.seed.to_string());
    line.option("-cpu", CPU);
    line.option("-machine", "pc,memory-backend=ram0");
    line.option("-m", format!("{}B", guest.memory_bytes));
    let backend =
        format!("memory-backend-file,id=ram0,size={}B,share=on,mem-path=", guest.memory_bytes);
    line.option("-object", with_path(&backend, &files.ram));
    line.option("-kernel", &files.kernel).option("-initrd", &files.image);
    line.option("-append", kernel_parameters(guest));
    let ports = [("console", &files.console), ("output", &files.output), ("status", &files.status)];
    for (id, path) in ports {
        line.option("-chardev", with_path(&format!("file,id={id},path="), path));
        line.option("-serial", format!("chardev:{id}"));
    }
    if let Some(plugin) = plugin {
        let mut option = with_path("file=", &plugin.path).into_vec();
        for (name, value) in &plugin.arguments {
            option.extend_from_slice(format!(",{name}=").as_bytes());
            escape(value.as_bytes(), &mut option);
        }
        line.option("-plugin", OsString::from_vec(option));
    }
    line.0
}

/// What the guest's kernel is told (`Documentation/admin-guide/kernel-parameters.txt`).
fn kernel_parameters(guest: &Guest) -> String {
    // A panic ends QEMU at once (with -no-reboot). No self-tests of ciphers, a tenth of the boot.
    // The guest may be slow, which is no reason to doubt its clock or to report it as stuck.
    let mut parameters = "console=ttyS0 quiet loglevel=3 panic=-1 cryptomgr.notests tsc=reliable \
                          nowatchdog rcupdate.rcu_cpu_stall_suppress=1"
        .to_owned();
    if !guest.aslr {
        parameters += " norandmaps";
    }
    parameters += if guest.pti { " pti=on" } else { " pti=off" };
    if !guest.mitigations {
        parameters += " mitigations=off";
    }
    parameters
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn add(&mut self, word: impl AsRef<OsStr>) -> &mut Line {
        self.0.push(word.as_ref().to_owned());
        self
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Line {
        self.add(name).add(value)
    }
}

pub(crate) fn with_path(before: &str, path: &Path) -> OsString {
    let mut bytes = before.as_bytes().to_vec();
    escape(path.as_os_str().as_bytes(), &mut bytes);
    OsString::from_vec(bytes)
}

/// QEMU's options are separated by commas; one in a value is doubled.
fn escape(value: &[u8], into: &mut Vec<u8>) {
    for &byte in value {
        into.push(byte);
        if byte == b',' {
            into.push(b',');
        }
    }
}

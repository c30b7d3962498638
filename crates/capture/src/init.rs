//! The guest's first process: a script of busybox's shell that runs the command and reports.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use crate::command::{PATH, WORK};
use crate::guest::Thp;

/// Where the guest keeps what is ours.
pub(crate) const OURS: &str = "nestwalk";

/// The script. The command's output goes to the second serial port, its exit status as `status N`
/// to the third; the first is the kernel's console.
///
/// The second port is raw, so that every byte arrives as it was written. Closing a port waits until
/// all of it is out. Ports are opened before the command starts, and the launcher executes the
/// marks, so that as little as possible of this script is between them. The kernel puts parameters
/// that it does not know into the environment, so the command's is made anew.
pub(crate) fn script(command: &[OsString], program: &[u8], thp: Thp) -> Vec<u8> {
    let mut words = Vec::new();
    for word in std::iter::once(program).chain(command.iter().map(|word| word.as_bytes())) {
        words.push(b' ');
        quote(word, &mut words);
    }
    let busybox = format!("/{OURS}/busybox");
    let before = format!(
        "#!{busybox} sh
b={busybox}
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts devpts /dev/pts
$b mount -t tmpfs tmpfs /dev/shm
$b hostname nestwalk
$b ip link set lo up
echo {thp} >/sys/kernel/mm/transparent_hugepage/enabled
exec 3<>/dev/ttyS1 4<>/dev/ttyS2
$b stty raw -echo <&3
$b stty raw -echo <&4
cd {WORK}
$b env -i PATH={PATH} HOME=/root PWD={WORK} LANG=C TERM=dumb SHELL=/bin/sh USER=root /{OURS}/run"
    );
    let after = " </dev/null >&3 2>&1 3<&- 4<&-
status=$?
exec 3<&-
echo status $status >&4
exec 4<&-
$b poweroff -f
";
    [before.as_bytes(), &words, after.as_bytes()].concat()
}

/// A word as the shell reads it back unchanged.
fn quote(word: &[u8], into: &mut Vec<u8>) {
    into.push(b'\'');
    for &byte in word {
        match byte {
            b'\'' => into.extend_from_slice(b"'\\''"),
            other => into.push(other),
        }
    }
    into.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A real shell reads the words back.
    #[test]
    fn words_survive_the_shell() {
        for word in ["", "plain", "it's", "''", "a b\n\tc", "$HOME `id` \\ \" * ~ # !", "-n"] {
            let mut quoted = Vec::new();
            quote(word.as_bytes(), &mut quoted);
            let script = format!("printf %s {}", String::from_utf8(quoted).unwrap());
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}

//! Starting a command under valgrind.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The option with which valgrind's optimiser removes no access.
pub(crate) const EVERY_LOAD: &str = "--vex-iropt-register-updates=allregs-at-each-insn";

/// Starts valgrind's lackey on `command`, with `log_file` as its argument for logs.
///
/// Without its server for debuggers, whose pipes in the temporary directory outlive a process that is
/// killed. With the registers of each instruction kept up to date: otherwise valgrind's optimiser
/// removes loads whose results are never used before lackey sees them (`mod.rs` has what was counted).
pub(crate) fn start(
    valgrind: &OsStr,
    log_file: &OsStr,
    command: &[OsString],
) -> Result<Child, String> {
    Command::new(valgrind)
        .args(["--tool=lackey", "--trace-mem=yes", "--trace-children=yes", "--vgdb=no", EVERY_LOAD])
        .arg(log_file)
        .arg("--")
        .args(command)
        .stdout(Stdio::from(std::io::stderr()))
        .spawn()
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => format!(
                "`{}` is not installed; install the Debian package `valgrind`",
                valgrind.display()
            ),
            _ => format!("cannot start `{}`: {e}", valgrind.display()),
        })
}

/// Whether the command exists and may be executed, so that the message is ours and early.
pub(crate) fn check(program: &OsStr) -> Result<(), String> {
    let executable = |path: &Path| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let path = Path::new(program);
    if program.as_encoded_bytes().contains(&b'/') {
        return match path.metadata() {
            Err(e) => Err(format!("cannot start `{}`: {e}", path.display())),
            Ok(_) if executable(path) => Ok(()),
            Ok(_) => {
                Err(format!("cannot start `{}`: it is not an executable file", path.display()))
            }
        };
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&dirs).map(|d: PathBuf| d.join(path));
    if candidates.any(|p| executable(&p)) {
        return Ok(());
    }
    Err(format!("cannot start `{}`: no such command in PATH", path.display()))
}

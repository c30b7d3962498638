//! The plugin for QEMU: where it is, and how it is built. It is never part of this program, whose
//! licence is another.

use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cache::Cache;
use crate::error::{At, GuestError};
use crate::pieces::SETUP;
use crate::step::{Say, Step};

/// The plugin's file.
const FILE: &str = "libnestwalk_qemu_plugin.so";
/// Its package.
const PACKAGE: &str = "nestwalk-qemu-plugin";
/// How long QEMU may take to refuse a plugin that has no arguments.
const PATIENCE: Duration = Duration::from_secs(20);

/// The plugin: beside this program, where cargo puts both, or in the cache, where `nestwalk setup` puts
/// that of a program that is elsewhere.
///
/// # Errors
/// It is not there; the error says how to build it.
pub fn plugin() -> Result<PathBuf, GuestError> {
    let program = this_program()?;
    // Cargo builds it into `deps`, where tests are, and copies it up only when it is asked for by name.
    let folders = program.ancestors().skip(1).take(2);
    let mut places: Vec<_> =
        folders.flat_map(|f| [f.join("deps").join(FILE), f.join(FILE)]).collect();
    if let Ok(cache) = Cache::locate() {
        places.push(in_cache(&cache).join(FILE));
    }
    let found = places.into_iter().find(|p| p.exists());
    found.ok_or_else(|| GuestError::Missing {
        piece: format!("the QEMU plugin {FILE} beside {}", program.display()),
        command: SETUP.to_owned(),
    })
}

fn this_program() -> Result<PathBuf, GuestError> {
    env::current_exe().at("find", "this program".as_ref())
}

/// The directory of this version's plugin.
fn in_cache(cache: &Cache) -> PathBuf {
    cache.root().join("plugin").join(env!("CARGO_PKG_VERSION"))
}

/// The `target` directory of cargo in which this program lies, if it does so as a release build.
fn shared_target() -> Result<Option<PathBuf>, GuestError> {
    let program = this_program()?;
    let folder = program.parent().filter(|folder| folder.ends_with("release"));
    // Cargo's own file there.
    let target = folder.filter(|f| f.join(".cargo-lock").is_file()).and_then(Path::parent);
    Ok(target.map(Path::to_path_buf))
}

/// Builds the plugin from the repository `source`, into the target directory of this program's own build
/// if it is there, and else into the cache. A plugin that is there is taken where there is no
/// repository.
///
/// # Errors
/// There is neither plugin nor repository, or cargo fails; its messages are then on standard error.
pub fn build_plugin(cache: &Cache, source: &Path, say: Say<'_>) -> Result<PathBuf, GuestError> {
    let manifest = source.join("Cargo.toml");
    if !source.join("crates/qemu-plugin/Cargo.toml").is_file() || !manifest.is_file() {
        return plugin().map_err(|_| GuestError::Missing {
            piece: format!(
                "the QEMU plugin, and {}, from where it would be built",
                source.join("crates/qemu-plugin").display()
            ),
            command: format!("{SETUP} --source DIR, where DIR is a clone of the repository"),
        });
    }
    let shared = shared_target()?;
    let target = shared.clone().unwrap_or_else(|| cache.root().join("plugin/target"));
    say(Step::Aloud(&format!("building the plugin for QEMU, from {}", source.display())));
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--release", "--locked", "--package", PACKAGE, "--manifest-path"]);
    command.arg(&manifest).arg("--target-dir").arg(&target);
    if shared.is_some() {
        // With it, libraries get the features that they have in its build, which is thus shared.
        command.args(["--package", "nestwalk"]);
    }
    // Its rust-toolchain.toml is looked for from there.
    command.current_dir(source).stdin(Stdio::null());
    let status = command.status().map_err(|error| GuestError::Missing {
        piece: format!("cargo, which builds the plugin ({error})"),
        command: "https://rustup.rs".to_owned(),
    })?;
    if !status.success() {
        return Err(GuestError::Tool {
            command: format!("cargo build --release --package {PACKAGE}"),
            message: status.to_string(),
        });
    }
    let built = target.join("release").join(FILE);
    if shared.is_some() {
        return Ok(built);
    }
    let place = in_cache(cache);
    fs::create_dir_all(&place).at("create", &place)?;
    // By renaming, so that a guest that runs keeps the plugin that it has loaded.
    let new = place.join(format!("{FILE}.new"));
    fs::copy(&built, &new).at("copy", &built)?;
    fs::rename(&new, place.join(FILE)).at("rename", &new)?;
    Ok(place.join(FILE))
}

/// The variable that tells the plugin which version of QEMU's interface to ask for.
pub(crate) const API_VARIABLE: &str = "NESTWALK_PLUGIN_API";
/// The versions of QEMU's interface that the plugin has, of QEMU 10.0 to 11.1.
const API_VERSIONS: std::ops::RangeInclusive<u32> = 4..=7;

/// The version of the plugin interface with which QEMU takes the plugin: QEMU is asked, by having it
/// load the plugin without arguments. That these are missing does not matter.
///
/// # Errors
/// It takes none that the plugin has.
pub fn plugin_api(qemu: &Path, plugin: &Path) -> Result<u32, GuestError> {
    let oldest = *API_VERSIONS.start();
    let Some(line) = refusal(qemu, plugin, oldest)? else { return Ok(oldest) };
    // "plugin requires API version 4, but this QEMU supports only a minimum version of 7"
    let least = line
        .rsplit("minimum version of ")
        .next()
        .and_then(|word| word.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok());
    let found = least.filter(|least| API_VERSIONS.contains(least));
    let wrong = |message: String| GuestError::Tool {
        command: format!("{} -plugin {}", qemu.display(), plugin.display()),
        message,
    };
    let Some(version) = found else {
        let (first, last) = (API_VERSIONS.start(), API_VERSIONS.end());
        return Err(wrong(format!("{line}; the plugin has versions {first} to {last}")));
    };
    match refusal(qemu, plugin, version)? {
        None => Ok(version),
        Some(line) => Err(wrong(line)),
    }
}

/// What QEMU says if it does not take the plugin with this version of its interface.
fn refusal(qemu: &Path, plugin: &Path, version: u32) -> Result<Option<String>, GuestError> {
    let mut command = Command::new(qemu);
    command.args(["-machine", "none", "-display", "none", "-nodefaults", "-plugin"]);
    command.arg(crate::qemu::with_path("file=", plugin)).env(API_VARIABLE, version.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().at("start", qemu)?;
    let begin = Instant::now();
    while child.try_wait().at("wait for", qemu)?.is_none() && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Fails only if it has ended.
    let _ = child.kill();
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // What cannot be read says nothing.
        let _ = stderr.read_to_string(&mut said);
    }
    child.wait().at("wait for", qemu)?;
    // "… returned error code 1" is the plugin's complaint about its arguments.
    let mut wrong = said.lines().filter(|line| {
        line.contains("API version")
            || line.contains("interface has versions")
            || line.contains("Could not load plugin") && !line.contains("returned error code")
    });
    Ok(wrong.next().map(|line| line.trim().to_owned()))
}

//! Debian packages without privilege: the host's `apt-get`, with its state in our cache.
//!
//! apt is told that nothing is installed, so it names every dependency, and that its lists and
//! downloads belong into the cache, so it needs no rights. Which archives it asks is decided by
//! the host's `/etc/apt`.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::cache::Cache;
use crate::error::{At, GuestError};
use crate::step::{self, Say, Step};

/// How old apt's lists may be before they are fetched again, when something must be downloaded.
const LISTS_STALE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The same of the lists of programs, of which an old one does nearly as well.
const PROGRAMS_STALE_AFTER: Duration = Duration::from_secs(60 * 24 * 3600);

/// How often what apt has downloaded is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// In the names of lists of commands, and of lists of all files.
const COMMANDS: &str = "_cnf_Commands-";
const CONTENTS: &str = "_Contents-";

/// How much of a failed command an error quotes: words of its line, and messages.
const WORDS_QUOTED: usize = 8;
const MESSAGES_QUOTED: usize = 3;

/// A package as apt resolved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
}

impl Package {
    /// As apt names the downloaded file.
    fn file_name(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{}_{}.deb", self.name, version, self.architecture)
    }
}

/// apt with its state in a cache, whose lock the caller holds.
pub(crate) struct Apt<'a> {
    cache: &'a Cache,
    state: PathBuf,
}

impl<'a> Apt<'a> {
    pub fn new(cache: &'a Cache) -> Result<Apt<'a>, GuestError> {
        let state = cache.root().join("apt");
        for directory in ["lists/partial", "archives/partial"] {
            let path = state.join(directory);
            fs::create_dir_all(&path).at("create", &path)?;
        }
        let status = state.join("status");
        if !status.exists() {
            fs::write(&status, "").at("create", &status)?;
        }
        Ok(Apt { cache, state })
    }

    /// Fetches the lists of packages, if they are older than a day.
    pub fn refresh(&self, say: Say<'_>) -> Result<(), GuestError> {
        let stamp = self.state.join("updated");
        if is_fresh(&stamp, LISTS_STALE_AFTER) {
            return Ok(());
        }
        say(Step::Begins("fetching the archives' lists of packages"));
        let update = self.command("apt-get", &["update"]);
        let said = output(update)?;
        // apt does not call it a failure if it can reach no archive.
        let lists = self.state.join("lists");
        let mut names = fs::read_dir(&lists).at("list", &lists)?.flatten();
        if !names.any(|entry| entry.file_name().to_string_lossy().contains("_Packages")) {
            let message =
                last_words(&said.stderr).unwrap_or("no archive could be reached".to_owned());
            return Err(GuestError::Tool { command: "apt-get update".to_owned(), message });
        }
        fs::write(&stamp, "").at("create", &stamp)
    }

    /// The packages with all they depend on, but not with what they recommend.
    pub fn resolve(&self, packages: &[String]) -> Result<Vec<Package>, GuestError> {
        let mut command = self.command("apt-get", &["--simulate", "install"]);
        command.args(packages);
        let listing = self.run(command).map_err(|error| match error {
            GuestError::Tool { message, .. } if message.contains("Unable to locate package") => {
                GuestError::Refused(message.replace("Unable to locate", "there is no Debian"))
            }
            // A package that only others mention.
            GuestError::Tool { message, .. } if message.contains("no installation candidate") => {
                GuestError::Refused(message)
            }
            other => other,
        })?;
        Ok(listing.lines().filter_map(parse_simulated).collect())
    }

    /// The package that the package `of` depends on and whose name begins with `prefix`.
    pub fn dependency(&self, of: &str, prefix: &str) -> Result<String, GuestError> {
        let listing = self.run(self.command("apt-cache", &["depends", of]))?;
        listing
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .ok_or_else(|| {
                GuestError::Refused(format!("Debian's {of} depends on no package {prefix}…"))
            })
    }

    /// The packages that have a program called `name`, sorted. By the archives' lists of commands, as
    /// command-not-found has them, or where there are none (Debian), by their lists of all files.
    ///
    /// These lists are only fetched for this question, to a place of their own: they are large.
    pub fn providers(&self, name: &str, say: Say<'_>) -> Result<Vec<String>, GuestError> {
        let programs = self.state.join("programs");
        let lists = programs.join("lists");
        let partial = lists.join("partial");
        fs::create_dir_all(&partial).at("create", &partial)?;
        let stamp = programs.join("updated");
        if is_fresh(&stamp, PROGRAMS_STALE_AFTER) {
            return self.search(&lists, name);
        }
        let commands = ("NESTWALK1", "$(COMPONENT)/cnf/Commands-$(ARCHITECTURE)");
        let of_machine = ("NESTWALK2", "$(COMPONENT)/Contents-$(ARCHITECTURE)");
        let of_all = ("NESTWALK3", "$(COMPONENT)/Contents-all");
        say(Step::Begins("fetching the archives' lists of programs, some 40 MB"));
        for targets in [&[commands][..], &[of_machine, of_all]] {
            let mut update = self.command("apt-get", &["update"]);
            update.arg("-o").arg(format!("Dir::State::lists={}", lists.display()));
            for target in ["Packages", "Translations", "DEP-11", "Contents-deb", "CNF"] {
                let enabled = format!("Acquire::IndexTargets::deb::{target}::DefaultEnabled");
                update.arg("-o").arg(format!("{enabled}=false"));
            }
            for (target, key) in targets {
                let option = format!("Acquire::IndexTargets::deb::{target}");
                for (field, value) in [
                    ("MetaKey", *key),
                    ("ShortDescription", "Programs"),
                    ("Description", "$(SITE) $(SUITE) programs"),
                ] {
                    update.arg("-o").arg(format!("{option}::{field}={value}"));
                }
            }
            output(update)?;
            if !files_in(&lists, &[COMMANDS, CONTENTS])?.is_empty() {
                break;
            }
        }
        fs::write(&stamp, "").at("create", &stamp)?;
        self.search(&lists, name)
    }

    fn search(&self, lists: &Path, name: &str) -> Result<Vec<String>, GuestError> {
        let mut packages = std::collections::BTreeSet::new();
        for file in files_in(lists, &[COMMANDS, CONTENTS])? {
            // apt keeps them compressed in a way that is its own choice.
            let mut command = Command::new("/usr/lib/apt/apt-helper");
            command.arg("cat-file").arg(&file).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut child = command.spawn().map_err(|e| spawn_error(&command, e))?;
            if let Some(out) = child.stdout.take() {
                let lines = BufReader::new(out).split(b'\n');
                let is_commands = file.to_string_lossy().contains(COMMANDS);
                let mut of = Listed { name, is_commands, package: None };
                for line in lines {
                    let line = line.at("read", &file)?;
                    packages.extend(of.packages(&String::from_utf8_lossy(&line)));
                }
            }
            if !child.wait().at("wait for apt-helper on", &file)?.success() {
                let what = "apt-helper cannot read it; delete it".to_owned();
                return Err(GuestError::Malformed { path: file, what });
            }
        }
        Ok(packages.into_iter().collect())
    }

    /// The packages whose names begin with `prefix`, sorted.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>, GuestError> {
        let listing = self.run(self.command("apt-cache", &["pkgnames", prefix]))?;
        let mut names: Vec<String> = listing.lines().map(|line| line.trim().to_owned()).collect();
        names.retain(|name| name.starts_with(prefix));
        names.sort();
        Ok(names)
    }

    /// The packages' files, of which those that are not in the cache are downloaded.
    pub fn download(&self, packages: &[Package], say: Say<'_>) -> Result<Vec<PathBuf>, GuestError> {
        let store = self.cache.root().join("debs");
        fs::create_dir_all(&store).at("create", &store)?;
        let path = |package: &Package| store.join(package.file_name());
        let wanted: Vec<_> = packages.iter().filter(|p| !path(p).exists()).collect();
        if !wanted.is_empty() {
            let place = self.cache.workshop()?;
            let names: Vec<_> =
                wanted.iter().map(|p| format!("{}={}", p.name, p.version)).collect();
            say(Step::Begins(&match wanted.as_slice() {
                [one] => format!("downloading {}", one.name),
                several => format!("downloading {} packages", several.len()),
            }));
            let mut command = self.command("apt-get", &["--print-uris", "download"]);
            command.args(&names).current_dir(&place);
            let total = self.run(command)?.lines().map(parse_uri).sum();
            let mut command = self.command("apt-get", &["download"]);
            command.args(&names).current_dir(&place);
            watched(command, || {
                let there = Downloaded::in_directory(&place);
                say(Step::At(step::At {
                    item: &there.newest,
                    number: there.files,
                    items: wanted.len(),
                    bytes: there.bytes,
                    total,
                }));
            })?;
            for package in wanted {
                let from = place.join(package.file_name());
                fs::rename(&from, path(package)).at("move to the cache", &from)?;
            }
        }
        Ok(packages.iter().map(path).collect())
    }

    /// The newest version of one package, downloaded.
    pub fn download_one(&self, name: &str, say: Say<'_>) -> Result<PathBuf, GuestError> {
        let listing = self.run(self.command("apt-cache", &["show", "--no-all-versions", name]))?;
        let field =
            |key| listing.lines().find_map(|line: &str| line.strip_prefix(key)).map(str::to_owned);
        let package = field("Version: ").zip(field("Architecture: "));
        let Some((version, architecture)) = package else {
            return Err(GuestError::Refused(format!("there is no Debian package called {name}")));
        };
        let package = Package { name: name.to_owned(), version, architecture };
        Ok(self.download(&[package], say)?.remove(0))
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let state = self.state.display();
        for (option, value) in [
            ("Dir::State", format!("{state}")),
            ("Dir::State::lists", format!("{state}/lists")),
            ("Dir::State::status", format!("{state}/status")),
            ("Dir::Cache", format!("{state}")),
            ("Dir::Cache::archives", format!("{state}/archives")),
            // Downloads go where only the caller may write.
            ("APT::Sandbox::User", String::new()),
            ("APT::Architecture", "amd64".to_owned()),
            ("APT::Architectures", "amd64".to_owned()),
            ("APT::Install-Recommends", "false".to_owned()),
            // Translations and catalogues of desktop programs would double what is fetched.
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
            ("Acquire::Retries", "3".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command
            .arg("-q")
            .args(arguments)
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn run(&self, command: Command) -> Result<String, GuestError> {
        output(command).map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Whether a stamp is younger than that.
fn is_fresh(stamp: &Path, stale_after: Duration) -> bool {
    let age = fs::metadata(stamp).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
    age.is_some_and(|age| age < stale_after)
}

/// The files of `directory` that have one of these words in their names, sorted.
fn files_in(directory: &Path, words: &[&str]) -> Result<Vec<PathBuf>, GuestError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).at("list", directory)? {
        let path = entry.at("list", directory)?.path();
        if words.iter().any(|word| path.to_string_lossy().contains(word)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Finds who has a program in a list that is read line by line.
struct Listed<'a> {
    name: &'a str,
    /// Paragraphs with a line `name:` for the package and one `commands:` with its programs, separated
    /// by commas. Otherwise lines with a path and packages, as `usr/bin/hd  utils/bsdextrautils,main/x`.
    is_commands: bool,
    package: Option<String>,
}

impl Listed<'_> {
    /// The packages that a line says have it.
    fn packages(&mut self, line: &str) -> Vec<String> {
        if !self.is_commands {
            let Some((path, packages)) = line.rsplit_once([' ', '\t']) else { return Vec::new() };
            let path = path.trim_end();
            let Some((directory, file)) = path.rsplit_once('/') else { return Vec::new() };
            let of_programs = ["bin", "sbin", "usr/bin", "usr/sbin"].contains(&directory);
            if file != self.name || !of_programs {
                return Vec::new();
            }
            let names = packages.split(',').filter_map(|p| p.rsplit('/').next());
            return names.map(str::to_owned).collect();
        }
        if let Some(of) = line.strip_prefix("name: ") {
            self.package = Some(of.trim().to_owned());
        }
        let Some(commands) = line.strip_prefix("commands: ") else { return Vec::new() };
        let has = commands.split(',').any(|command| command.trim() == self.name);
        self.package.take().filter(|_| has).into_iter().collect()
    }
}

/// A line of `apt-get --simulate install`: `Inst libc6 (2.36-9 Debian:12.15/oldstable [amd64])`.
fn parse_simulated(line: &str) -> Option<Package> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    // After the parenthesis come packages that are not configured yet, in brackets too.
    let inside = rest.split(')').next()?;
    let version = inside.split(' ').next()?;
    let (_, architecture) = inside.rsplit_once('[')?;
    let architecture = architecture.split(']').next()?;
    // A foreign package would be called "name:architecture".
    let name = name.split(':').next()?;
    Some(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: architecture.to_owned(),
    })
}

/// The size in a line of `apt-get --print-uris download`: `'http://…/x.deb' x.deb 1234 SHA256:…`.
fn parse_uri(line: &str) -> Option<u64> {
    line.split(' ').nth(2)?.parse().ok()
}

/// What is there of packages that apt downloads.
#[derive(Default)]
struct Downloaded {
    /// Files that have been begun.
    files: usize,
    bytes: u64,
    /// The package that was written to last.
    newest: String,
}

impl Downloaded {
    /// As far as the directory can be read: apt renames and deletes meanwhile.
    fn in_directory(place: &Path) -> Downloaded {
        let mut there = Downloaded::default();
        let mut last = None;
        for file in fs::read_dir(place).into_iter().flatten().flatten() {
            let Ok(meta) = file.metadata() else { continue };
            there.files += 1;
            there.bytes += meta.len();
            let time = meta.modified().ok();
            if last <= Some(time) {
                last = Some(time);
                let name = file.file_name().to_string_lossy().into_owned();
                there.newest = name.split('_').next().unwrap_or_default().to_owned();
            }
        }
        there
    }
}

/// Unpacks a package into `tree`, without the files that match one of `leave_out` (as `tar
/// --exclude` takes them).
///
/// Permissions are as in the package whatever the user's mask, so that images are the same for all.
pub(crate) fn unpack(package: &Path, tree: &Path, leave_out: &[&str]) -> Result<(), GuestError> {
    let mut open = Command::new("dpkg-deb");
    open.arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).stdin(Stdio::null());
    let mut opened = open.spawn().map_err(|e| spawn_error(&open, e))?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file=-").arg("--directory").arg(tree);
    // Links such as lib -> usr/lib stay what they are where a package brings a directory lib.
    tar.args(["--keep-directory-symlink", "--no-same-owner", "--same-permissions", "--anchored"]);
    tar.args(leave_out.iter().map(|pattern| format!("--exclude={pattern}")));
    tar.stdin(opened.stdout.take().map_or_else(Stdio::null, Stdio::from));
    let unpacked = output_fed(tar);
    let status = opened.wait().at("wait for dpkg-deb on", package)?;
    unpacked?;
    if status.success() {
        return Ok(());
    }
    Err(GuestError::Malformed {
        path: package.to_path_buf(),
        what: "dpkg-deb cannot read it".to_owned(),
    })
}

/// Runs a program of the host to its end.
pub(crate) fn output(mut command: Command) -> Result<Output, GuestError> {
    command.stdin(Stdio::null());
    output_fed(command)
}

/// As [`output`], and calls `look` every now and then.
fn watched(mut command: Command, mut look: impl FnMut()) -> Result<Output, GuestError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|e| spawn_error(&command, e))?;
    let output = std::thread::scope(|scope| {
        let reader = scope.spawn(|| child.wait_with_output());
        while !reader.is_finished() {
            look();
            std::thread::sleep(LOOK_EVERY);
        }
        reader.join()
    });
    let output = output.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    judged(&command, output.map_err(|e| spawn_error(&command, e))?)
}

fn output_fed(mut command: Command) -> Result<Output, GuestError> {
    let output = command.output().map_err(|e| spawn_error(&command, e))?;
    judged(&command, output)
}

/// An error if the program failed.
fn judged(command: &Command, output: Output) -> Result<Output, GuestError> {
    if output.status.success() {
        return Ok(output);
    }
    let message = last_words(&output.stderr).unwrap_or_else(|| output.status.to_string());
    Err(GuestError::Tool { command: in_short(command), message })
}

/// The errors among a program's messages, or else its first warning or its last message.
fn last_words(messages: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(messages);
    let mut errors: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("E: ")).collect();
    errors.dedup();
    errors.truncate(MESSAGES_QUOTED);
    if errors.is_empty() {
        let warning = text.lines().find_map(|line| line.strip_prefix("W: "));
        let last = || text.lines().map(str::trim).rfind(|line| !line.is_empty());
        errors.extend(warning.or_else(last));
    }
    (!errors.is_empty()).then(|| errors.join("; "))
}

/// The program and its arguments but for the options of its state.
fn in_short(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    let mut arguments = command.get_args();
    while let Some(argument) = arguments.next() {
        if argument == "-o" {
            arguments.next();
        } else {
            words.push(argument.to_string_lossy().into_owned());
        }
    }
    if words.len() > WORDS_QUOTED {
        words.truncate(WORDS_QUOTED);
        words.push("…".to_owned());
    }
    words.join(" ")
}

fn spawn_error(command: &Command, error: io::Error) -> GuestError {
    let program = command.get_program().to_string_lossy().into_owned();
    if error.kind() == io::ErrorKind::NotFound {
        let package = match program.as_str() {
            "apt-get" | "apt-cache" => "apt",
            "dpkg-deb" => "dpkg",
            other => other,
        };
        let command = format!("apt-get install {package} (guests are made of Debian packages)");
        return GuestError::Missing { piece: program, command };
    }
    GuestError::Tool { command: program, message: error.to_string() }
}

#[cfg(test)]
mod tests;

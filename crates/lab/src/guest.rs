//! A real guest: what an experiment's file keeps of it, and how it is made ready.

use anyhow::{Result, bail};
use nestwalk_capture::live::LiveOptions;
use nestwalk_capture::{Boot, Cache, Guest, KernelChoice, Step, Thp};
use nestwalk_types::GuestInfo;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::PathBuf;

/// A guest and the command that it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RealGuest {
    /// The command, word by word.
    pub command: Vec<String>,
    /// Bytes of memory.
    pub memory: u64,
    /// vCPUs.
    pub vcpus: u8,
    /// When its kernel uses huge pages: always, madvise, never.
    pub thp: String,
    /// Debian packages in it.
    pub packages: Vec<String>,
    /// Its kernel: a version, a package or a file; empty for the newest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// Its root file system; empty for that of packages.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub rootfs: PathBuf,
    /// A directory whose contents the command finds; empty for none.
    pub include: PathBuf,
    /// The boot is part of the stream.
    pub boot: bool,
    /// The stream begins where the program marks its region of interest.
    pub interest: bool,
    /// Page-table isolation.
    pub pti: bool,
    /// Addresses are random.
    pub aslr: bool,
    /// QEMU's translations are compared with what the stream's tables say.
    pub check: bool,
    /// Accesses are filtered.
    pub filter: bool,
    /// Decides what is random in its machine.
    pub seed: u64,
}

// serde hands a reference to the field.
#[allow(clippy::ptr_arg)]
fn is_empty(path: &PathBuf) -> bool {
    path.as_os_str().is_empty()
}

impl RealGuest {
    /// What is recorded of it.
    pub const fn options(&self) -> LiveOptions {
        LiveOptions {
            boot: self.boot,
            interest: self.interest,
            check: self.check,
            filter: self.filter,
        }
    }

    /// What its stream says of it.
    pub fn info(&self) -> GuestInfo {
        GuestInfo {
            memory_bytes: self.memory,
            paging: nestwalk_capture::live::PAGING.into(),
            vcpus: self.vcpus,
            filter: self.options().filter(),
        }
    }

    /// Makes it ready: finds its pieces and builds its root file system. `say` hears each
    /// step.
    ///
    /// # Errors
    /// A piece is missing, or the command cannot run in it.
    pub fn boot(&self, say: &mut dyn FnMut(Step<'_>)) -> Result<Boot> {
        let thp = match self.thp.as_str() {
            "always" => Thp::Always,
            "madvise" => Thp::Madvise,
            "never" => Thp::Never,
            other => bail!("thp = \"{other}\": there are always, madvise, never"),
        };
        let include = &self.include;
        let guest = Guest {
            packages: self.packages.clone(),
            kernel: KernelChoice::of(&self.kernel),
            rootfs: (!is_empty(&self.rootfs)).then(|| self.rootfs.clone()),
            include: (!include.as_os_str().is_empty()).then(|| include.clone()),
            memory_bytes: self.memory,
            vcpus: u32::from(self.vcpus),
            thp,
            pti: self.pti,
            aslr: self.aslr,
            seed: self.seed,
            ..Guest::new(self.command.iter().map(OsString::from).collect())
        };
        Ok(guest.boot(&Cache::locate()?, say)?)
    }

    /// Why two recordings of it may differ, if they may.
    pub fn irreproducible(&self) -> Option<String> {
        if self.vcpus > 1 {
            return Some("several vCPUs run as the host lets them".into());
        }
        self.aslr.then(|| "addresses are random in the guest".into())
    }
}

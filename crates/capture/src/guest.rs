//! What a guest is, and how it is made ready to boot.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::command;
use crate::error::GuestError;
use crate::image;
use crate::init;
use crate::kernel::{Kernel, KernelChoice};
use crate::pieces;
use crate::qemu::{Files, Plugin};
use crate::rootfs;
use crate::running::Running;
use crate::scratch::Scratch;
use crate::step::{Say, Step};

/// When the guest's kernel uses 2 MiB pages for anonymous memory
/// (`Documentation/admin-guide/mm/transhuge.rst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thp {
    /// Wherever they fit.
    Always,
    /// Nowhere.
    Never,
    /// Where the program asks for it.
    Madvise,
}

impl fmt::Display for Thp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Thp::Always => "always",
            Thp::Never => "never",
            Thp::Madvise => "madvise",
        })
    }
}

/// A guest: a machine, and the command that it runs.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The command and its arguments; see [`Guest::boot`] for where the program comes from.
    pub command: Vec<OsString>,
    /// Debian packages to have in the guest, with all that they depend on.
    pub packages: Vec<String>,
    /// Its kernel.
    pub kernel: KernelChoice,
    /// Its root file system, in place of packages: a directory, a tar archive, or the image of an ext or
    /// squashfs file system.
    pub rootfs: Option<PathBuf>,
    /// A directory whose contents are the command's working directory, [`crate::WORK`].
    pub include: Option<PathBuf>,
    /// Memory.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// When the guest's kernel uses huge pages.
    pub thp: Thp,
    /// Page-table isolation: the kernel has tables of its own and changes CR3 at each entry.
    pub pti: bool,
    /// Random placement of programs in their address spaces. The kernel's own place is fixed: its
    /// decompressor, which is not run, would choose it.
    pub aslr: bool,
    /// What the kernel does about processors that leak, other than page-table isolation.
    pub mitigations: bool,
    /// Seed of all that is random in the machine, such as RDRAND.
    pub seed: u64,
    /// The guest's clock counts its instructions; only with one vCPU.
    pub reproducible: bool,
    /// QEMU's system emulator.
    pub qemu: PathBuf,
}

impl Guest {
    /// A guest with the newest kernel, 2 GiB, one vCPU, huge pages wherever they fit, nothing random,
    /// and neither packages nor included files.
    #[must_use]
    pub fn new(command: Vec<OsString>) -> Guest {
        Guest {
            command,
            packages: Vec::new(),
            kernel: KernelChoice::Newest,
            rootfs: None,
            include: None,
            memory_bytes: 2 << 30,
            vcpus: 1,
            thp: Thp::Always,
            pti: false,
            aslr: false,
            mitigations: true,
            seed: 0,
            reproducible: true,
            qemu: PathBuf::from("qemu-system-x86_64"),
        }
    }

    /// Whether two runs execute the same instructions.
    #[must_use]
    pub fn is_reproducible(&self) -> bool {
        self.reproducible && self.vcpus == 1
    }

    /// Makes the guest ready: finds its pieces, builds its root file system.
    ///
    /// A program without a slash in its name is taken from `packages` and the package known for it,
    /// from busybox, from the package of its own name, or from the only package that has it, in this
    /// order; or from `rootfs` and busybox, if that is given. One with a slash is a
    /// file: of `include`, the current directory, or by its full path of the guest or the host.
    /// Files of the current directory that the arguments name are copied into the guest. Packages
    /// that are not in the cache are downloaded; `say` is told what takes time.
    ///
    /// # Errors
    /// If a piece is missing (the error says how to get it), the program cannot be had or cannot
    /// run in the guest, or the guest's memory cannot hold its root file system.
    pub fn boot(&self, cache: &Cache, say: Say<'_>) -> Result<Boot, GuestError> {
        if self.vcpus == 0 || self.vcpus > MOST_VCPUS {
            let vcpus = self.vcpus;
            return Err(refused(format!("{vcpus} vCPUs; QEMU's machine has 1 to {MOST_VCPUS}")));
        }
        if !self.memory_bytes.is_multiple_of(PAGE_BYTES) {
            let bytes = self.memory_bytes;
            return Err(refused(format!("{bytes} bytes of memory are not whole pages of 4 KiB")));
        }
        pieces::qemu_version(&self.qemu)?;
        let include = self.include.as_deref();
        if let Some(directory) = include.filter(|directory| !directory.is_dir()) {
            return Err(refused(format!("{} is not a directory to include", directory.display())));
        }
        if let (Some(path), false) = (&self.rootfs, self.packages.is_empty()) {
            return Err(refused(format!(
                "packages and the root file system {} cannot both be had: the latter has its own programs",
                path.display()
            )));
        }
        say(Step::Begins("resolving the guest's kernel and packages"));
        let scratch = Scratch::new(self.memory_bytes)?;
        let kernel = pieces::kernel(cache, &self.kernel, &scratch.file("vmlinux"), say)?;
        let busybox = pieces::busybox(cache)?;
        let root = self.rootfs.as_ref().map(|path| {
            say(Step::Begins(&format!("reading the root file system {}", path.display())));
            rootfs::of(path, &scratch.file("tree"), &scratch.file("rootfs.cpio"))
        });
        let root = root.transpose()?;
        let plan =
            command::plan(&self.command, &self.packages, root, include, cache, &busybox, say)?;
        let files = Files {
            kernel: kernel.vmlinux.clone(),
            image: scratch.file("root.cpio"),
            ram: scratch.shared().join("ram"),
            console: scratch.file("console"),
            output: scratch.file("output"),
            status: scratch.file("status"),
        };
        say(Step::Begins("making the guest's root file system"));
        let init = init::script(&self.command, &plan.program, self.thp);
        let image_bytes = image::write(&files.image, &plan, &busybox, include, init)?;
        let needed = memory_for(image_bytes);
        if self.memory_bytes < needed {
            return Err(refused(format!(
                "the guest's memory of {} MiB is too small: its root file system of {} MiB needs at \
                 least {} MiB to boot",
                self.memory_bytes >> 20,
                image_bytes >> 20,
                (needed >> 20) + 1
            )));
        }
        let versions = plan.userland.versions;
        Ok(Boot { guest: self.clone(), kernel, versions, image_bytes, files, scratch })
    }
}

/// QEMU has no less than whole pages.
const PAGE_BYTES: u64 = 4096;
/// Of QEMU's machine "pc" with TCG (`max_cpus` in `hw/i386/pc_piix.c`).
const MOST_VCPUS: u32 = 255;

/// Memory with which an image of this size boots: the root file system may fill half of it (the
/// limit of a tmpfs), the image itself takes as much again while it is unpacked, and the kernel with
/// its tables has what is left.
fn memory_for(image_bytes: u64) -> u64 {
    const KERNEL: u64 = 96 << 20;
    2 * image_bytes + image_bytes / 10 + KERNEL
}

fn refused(why: String) -> GuestError {
    GuestError::Refused(why)
}

/// A guest that is ready to boot. Dropping it deletes its files.
#[derive(Debug)]
pub struct Boot {
    pub(crate) guest: Guest,
    kernel: Kernel,
    versions: Vec<String>,
    image_bytes: u64,
    pub(crate) files: Files,
    pub(crate) scratch: Scratch,
}

impl Boot {
    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Its kernel.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Its packages with those they depend on, with versions and sorted: "gcc 4:12.2.0-3".
    #[must_use]
    pub fn packages(&self) -> &[String] {
        &self.versions
    }

    /// Size of its root file system.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    /// Its root file system, as the kernel gets it.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.files.image
    }

    /// The file that will be its memory, at guest-physical 0 up to [`crate::below_4g`].
    #[must_use]
    pub fn ram(&self) -> &Path {
        &self.files.ram
    }

    /// A directory in memory for what is shared with the plugin, deleted with the guest's files.
    #[must_use]
    pub fn shared(&self) -> &Path {
        self.scratch.shared()
    }

    /// Starts QEMU.
    ///
    /// # Errors
    /// If it cannot be started. What goes wrong later is an error of [`Running::poll`].
    pub fn start(self, plugin: Option<&Plugin>) -> Result<Running, GuestError> {
        Running::start(self, plugin)
    }
}

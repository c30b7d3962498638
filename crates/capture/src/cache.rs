//! Where downloaded and built pieces are kept between runs.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{At, GuestError};

/// A directory with kernels, busybox, downloaded packages and the images made of them.
///
/// Everything in it can be made again, so it may be deleted at any time. Finished pieces appear by
/// renaming, so what is there is complete.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache: `$NESTWALK_CACHE`, else `nestwalk` below `$XDG_CACHE_HOME`, else below
    /// `~/.cache`.
    ///
    /// # Errors
    /// If none of the three variables is set.
    pub fn locate() -> Result<Cache, GuestError> {
        let variable = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        variable("NESTWALK_CACHE")
            .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("nestwalk")))
            .or_else(|| Some(variable("HOME")?.join(".cache/nestwalk")))
            .map(Cache::at)
            .ok_or_else(|| {
                GuestError::Refused(
                    "no place for the cache: neither NESTWALK_CACHE, XDG_CACHE_HOME nor HOME is set"
                        .to_owned(),
                )
            })
    }

    /// A cache in `root`, which need not exist yet.
    #[must_use]
    pub fn at(root: PathBuf) -> Cache {
        Cache { root }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until no other process builds in this cache, and keeps others out until dropped.
    pub(crate) fn lock(&self) -> Result<File, GuestError> {
        fs::create_dir_all(&self.root).at("create", &self.root)?;
        let path = self.root.join("lock");
        let file = File::create(&path).at("create", &path)?;
        file.lock().at("lock", &path)?;
        Ok(file)
    }

    /// An empty directory to build a piece in. Only with the lock held: what a killed build left
    /// there is deleted.
    pub(crate) fn workshop(&self) -> Result<PathBuf, GuestError> {
        let path = self.root.join("building");
        if path.exists() {
            fs::remove_dir_all(&path).at("delete", &path)?;
        }
        fs::create_dir_all(&path).at("create", &path)?;
        Ok(path)
    }
}

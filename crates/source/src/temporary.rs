//! A folder of the system's temporary ones, which goes when it is dropped.

use nix::unistd::mkdtemp;
use std::io;
use std::path::{Path, PathBuf};

/// A new folder that nobody else can read, removed with all that is in it when it is dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// One in `$TMPDIR` or `/tmp`, whose name begins so.
    ///
    /// # Errors
    /// It cannot be made there.
    pub fn new(prefix: &str) -> io::Result<Self> {
        let template = std::env::temp_dir().join(prefix.to_owned() + &"X".repeat(6));
        Ok(Self(mkdtemp(&template)?))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Whoever cleans temporary folders takes what cannot be removed now.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::Folder;

    #[test]
    fn a_folder_goes_with_all_that_is_in_it() {
        let one = Folder::new("nestwalk-test-").unwrap();
        let other = Folder::new("nestwalk-test-").unwrap();
        assert_ne!(one.path(), other.path());
        std::fs::create_dir(one.path().join("a")).unwrap();
        std::fs::write(one.path().join("a/b"), "c").unwrap();
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && other.path().exists());
    }
}

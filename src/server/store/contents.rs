//! The contents of what was stored in a home, kept by their digests: hard links below `~/.cache/tstunnel`, at most so many.
//!
//! The home is the account's, and whatever else runs as it may put anything there at any time. So the folders are opened one by
//! one, none through a link (openat(2), `O_NOFOLLOW`), all else is done relative to the last of them, and only names that
//! are digests are ever removed. What is found is verified by whoever uses it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{Sha256, Stored};
use crate::protocol::encoding::hex;

/// Where they are, below the home.
pub(super) const FOLDERS: [&str; 3] = [".cache", "tstunnel", "content"];
/// Contents larger than this are not kept; an agent is some 20 MiB.
pub(super) const MAX_BYTES: u64 = 64 << 20;
/// How many are kept in a home: agents of a few versions and platforms.
pub(super) const MAX_CONTENTS: usize = 8;

/// The open folder.
pub(super) struct Contents(OwnedFd);

impl Contents {
    /// Opens the folder in `home`; makes it where it is not there, if `makes`.
    ///
    /// # Errors
    /// Where one of its folders is missing, something else, or a link.
    pub(super) fn open(home: &Path, makes: bool) -> io::Result<Contents> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder = rustix::fs::openat(CWD, home, flags, Mode::empty())?;
        for name in FOLDERS {
            if makes {
                match rustix::fs::mkdirat(&folder, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            folder = rustix::fs::openat(&folder, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Ok(Contents(folder))
    }

    /// What is kept as `digest`, whether that is its digest or not.
    ///
    /// # Errors
    /// Where there is nothing, or something that is no file.
    pub(super) fn find(&self, digest: &Sha256) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.0, hex(digest), flags, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Keeps an open file, whatever its name leads to by now, and lets the oldest go.
    ///
    /// # Errors
    /// Where it cannot be linked.
    pub(super) fn keep(&self, file: &File, stored: &Stored) -> io::Result<()> {
        if stored.size > MAX_BYTES {
            return Ok(());
        }
        self.remove(&stored.sha256)?;
        let file = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, file, &self.0, hex(&stored.sha256), AtFlags::SYMLINK_FOLLOW)?;
        self.trim()
    }

    /// Removes what is kept as `digest`.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub(super) fn remove(&self, digest: &Sha256) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.0, hex(digest), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn trim(&self) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            if !is_digest(entry.file_name().to_bytes()) {
                continue;
            }
            if let Ok(status) = rustix::fs::statat(&self.0, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                kept.push((status.st_mtime, status.st_mtime_nsec, entry.file_name().to_owned()));
            }
        }
        kept.sort();
        for (_, _, name) in kept.iter().rev().skip(MAX_CONTENTS) {
            rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?;
        }
        Ok(())
    }
}

fn is_digest(name: &[u8]) -> bool {
    name.len() == 2 * size_of::<Sha256>() && name.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

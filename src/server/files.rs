//! The files that a state is made from → word that they have changed: written in place, replaced by a rename, or reached through a
//! link that now leads elsewhere (`..data` of Kubernetes, `live/` of certbot).
//!
//! inotify(7) on the folders only says when to look; what counts is what stat(2) shows. So what changes beside the files is
//! passed over, and a file system that tells nothing is looked at every now and then.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// How long files must have stayed as they are before they are taken: a certificate and its key are two.
const SETTLE: Duration = Duration::from_millis(200);
/// How often files are looked at without a word from the kernel.
const LOOK: Duration = Duration::from_secs(10);
/// How many links one name may lead through, as for the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Files that are watched, or none.
#[derive(Debug)]
pub struct Files {
    /// Not a pipe, but it is read as one.
    kernel: Option<pipe::Receiver>,
    paths: Vec<PathBuf>,
    seen: Vec<Stamp>,
}

/// What tells one state of a file from another; nothing where there is none.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

impl Files {
    /// Watches no file yet.
    pub fn new() -> Files {
        let made = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(std::io::Error::from);
        let kernel = made.and_then(pipe::Receiver::from_owned_fd_unchecked).inspect_err(|error| {
            tracing::warn!(%error, "the kernel does not tell of changed files, which are looked at every {LOOK:?}");
        });
        Files { kernel: kernel.ok(), paths: Vec::new(), seen: Vec::new() }
    }

    /// Watches these and no others, from how they are now.
    pub fn watch(&mut self, paths: Vec<PathBuf>) {
        self.paths = paths;
        self.watch_on();
    }

    /// Watches the same files, from how they are now.
    pub fn watch_on(&mut self) {
        self.seen = self.look();
    }

    /// Waits until a file is another than it was, and has stayed so for a moment. Cancel-safe; pending for ever without files.
    pub async fn changed(&mut self) {
        if self.paths.is_empty() {
            std::future::pending().await
        }
        loop {
            let now = self.look();
            if now == self.seen {
                let _ = tokio::time::timeout(LOOK, self.word()).await;
            }
            tokio::time::sleep(SETTLE).await;
            if now != self.seen && self.look() == now {
                self.seen = now;
                return;
            }
        }
    }

    /// Waits for a word from the kernel.
    async fn word(&mut self) {
        match &mut self.kernel {
            // How much is read at once does not matter: what is left is another word.
            Some(kernel) => _ = kernel.read(&mut [0; 4096]).await,
            None => std::future::pending().await,
        }
    }

    /// Looks at each file, after asking for word of every change from here on.
    fn look(&self) -> Vec<Stamp> {
        let events = WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        if let Some(kernel) = &self.kernel {
            for folder in self.paths.iter().flat_map(|path| folders(path)).collect::<BTreeSet<_>>() {
                if let Err(error) = inotify::add_watch(kernel, &folder, events) {
                    tracing::debug!(folder = %folder.display(), %error, "the kernel does not tell of changes");
                }
            }
        }
        self.paths.iter().map(|path| stamp(path)).collect()
    }
}

impl Default for Files {
    fn default() -> Files {
        Files::new()
    }
}

fn stamp(path: &Path) -> Stamp {
    let of = fs::metadata(path).ok()?;
    Some((of.dev(), of.ino(), of.len(), of.ctime(), of.ctime_nsec()))
}

/// The folders where a change can give `path` another content: that of the file itself, and that of each link on the way; up
/// to the first part of the way that is not there.
fn folders(path: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let Ok(path) = std::path::absolute(path) else { return found };
    let (mut reached, mut left) = (PathBuf::new(), parts(&path));
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == ".." {
            reached.pop();
            continue;
        }
        let next = reached.join(&part);
        match fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                found.insert(reached.clone());
                left.extend(parts(&target));
            }
            _ => {
                if left.is_empty() || !next.exists() {
                    found.insert(reached);
                    return found;
                }
                reached = next;
            }
        }
    }
    found
}

/// The parts of a path, the last one first. That of the root makes whatever it is joined to absolute.
fn parts(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|part| part.as_os_str().to_owned()).filter(|part| part != ".").collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        (folder, path)
    }

    /// Whether a change is told of within the pause between two looks.
    async fn notices(files: &mut Files, change: impl FnOnce()) -> bool {
        let (noticed, ()) = tokio::join!(tokio::time::timeout(LOOK / 2, files.changed()), async {
            tokio::time::sleep(SETTLE).await;
            change();
        });
        noticed.is_ok()
    }

    #[tokio::test]
    async fn a_file_is_noticed_however_it_is_changed() {
        let (_folder, root) = folder();
        let file = root.join("file");
        fs::write(&file, "one").unwrap();
        let mut files = Files::new();
        files.watch(vec![file.clone(), root.join("missing")]);
        assert!(notices(&mut files, || fs::write(&file, "two").unwrap()).await, "written in place");
        let replace = || {
            fs::write(root.join("new"), "three").unwrap();
            fs::rename(root.join("new"), &file).unwrap();
        };
        assert!(notices(&mut files, replace).await, "replaced by a rename");
        assert!(notices(&mut files, || fs::remove_file(&file).unwrap()).await, "removed");
        assert!(notices(&mut files, || fs::write(root.join("missing"), "").unwrap()).await, "made");
        assert!(!notices(&mut files, || fs::write(root.join("other"), "").unwrap()).await, "that is another file");
    }

    #[tokio::test]
    async fn a_link_that_leads_elsewhere_is_noticed() {
        let (_folder, root) = folder();
        // As Kubernetes lays out a secret, and swaps it.
        for (version, content) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join("tls.crt"), content).unwrap();
        }
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/tls.crt", root.join("tls.crt")).unwrap();
        let mut files = Files::new();
        files.watch(vec![root.join("tls.crt")]);
        let swap = || {
            symlink("..2", root.join("..data_tmp")).unwrap();
            fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        };
        assert!(notices(&mut files, swap).await);
        assert!(notices(&mut files, || fs::write(root.join("..2/tls.crt"), "three").unwrap()).await, "behind the link");
    }

    #[test]
    fn every_folder_on_the_way_is_known() {
        let (_folder, root) = folder();
        for name in ["live", "archive", "far"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        fs::write(root.join("far/file"), "").unwrap();
        symlink("../archive/file", root.join("live/file")).unwrap();
        symlink(root.join("far/file"), root.join("archive/file")).unwrap();
        let known = |path: &str| folders(&root.join(path)).into_iter().collect::<Vec<_>>();
        assert_eq!(known("live/file"), [root.join("archive"), root.join("far"), root.join("live")]);
        assert_eq!(known("missing/folder/file"), [root.as_path()]);
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(known("loop/file"), [root.as_path()]);
    }
}

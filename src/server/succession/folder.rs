//! The run folder: who may look into it, what this server's socket is called there, and which other servers of the same
//! configuration have one.
//!
//! The folder and everything in it is its owner's alone (0700), and the owner is who the server runs as: whoever can reach a socket
//! in it is root or the server itself. A name begins with a digest of the configuration's path, so that two servers with different
//! ones are strangers to each other.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixStream;

use super::wire::Line;
use crate::error::reason;
use crate::protocol::encoding::hex;

/// The folder's name below one that is not the server's own.
const NAME: &str = "tstunnel";
/// Bytes of the configuration's digest in a name.
const DIGEST_BYTES: usize = 8;
const SUFFIX: &str = ".sock";
/// How long another server may take to start or to look around.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the lock is tried; there is no event for its release.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// What is said of a server that has none.
pub const IS_ALONE: &str = "cannot be replaced while it runs, so an upgrade ends its sessions";
/// Why, where there is no place for one.
pub const NO_PLACE: &str =
    "there is no run folder; set `run_dir`, or the variable XDG_RUNTIME_DIR, to a folder of this account's alone";
/// What to do where the one that there is cannot be used.
pub const REMEDY: &str = "set `run_dir` to a folder of this account's alone";

/// A run folder that can be used, for one configuration.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    digest: String,
}

/// Keeps other servers from starting, until it is dropped: what is in the folder is what there is.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] OwnedFd);

/// What the environment says of run folders.
#[derive(Clone, Debug, Default)]
pub struct Usual {
    /// `RUNTIME_DIRECTORY`: the service manager's.
    pub service: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`: the user's.
    pub user: Option<PathBuf>,
}

impl Usual {
    /// Reads the environment.
    pub fn of_process() -> Usual {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        // systemd.exec(5): several are separated by colons.
        let first = |path: PathBuf| Some(PathBuf::from(path.to_str()?.split(':').next()?));
        Usual { service: path("RUNTIME_DIRECTORY").and_then(first), user: path("XDG_RUNTIME_DIR") }
    }

    fn folder(self, is_root: bool) -> Option<PathBuf> {
        let below = |parent: &Path| parent.join(NAME);
        self.service.or_else(|| if is_root { Some(below(Path::new("/run"))) } else { self.user.as_deref().map(below) })
    }
}

/// Where the run folder is or would be: `configured`, else the usual place, where there is any.
pub fn place(configured: Option<&Path>, usual: Usual) -> Option<PathBuf> {
    configured.map(Path::to_owned).or_else(|| usual.folder(rustix::process::geteuid().is_root()))
}

impl Folder {
    /// The folder for the configuration at `path`, made where it is missing: `configured`, else the usual one, where there is any.
    ///
    /// # Errors
    /// A sentence that says why it cannot be used.
    pub fn open(configured: Option<&Path>, usual: Usual, configuration: &Path) -> Result<Option<Folder>, String> {
        let Some(path) = place(configured, usual) else { return Ok(None) };
        let fails = |what: String| format!("the run folder {} cannot be used: {what}", path.display());
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fails(reason(&error))),
            _ => {}
        }
        let found = path.symlink_metadata().map_err(|error| fails(reason(&error)))?;
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 {
            return Err(fails("not a folder of this account's alone, with mode 0700".to_owned()));
        }
        let configuration = configuration.canonicalize().map_err(|error| fails(reason(&error)))?;
        let whole = digest(&SHA256, configuration.as_os_str().as_encoded_bytes());
        let digest = hex(whole.as_ref().get(..DIGEST_BYTES).unwrap_or_default());
        Ok(Some(Folder { path, digest }))
    }

    /// Waits until no other server is about to start.
    ///
    /// # Errors
    /// Where that takes too long.
    pub async fn lock(&self) -> io::Result<Lock> {
        let folder = OwnedFd::from(File::open(&self.path)?);
        let locked = async {
            loop {
                match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
                    Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(LOCK_POLL).await,
                    result => return result,
                }
            }
        };
        tokio::time::timeout(LOCK_TIMEOUT, locked).await??;
        Ok(Lock(folder))
    }

    /// Where this process's own socket belongs.
    pub fn socket(&self) -> PathBuf {
        self.path.join(format!("{}-{}{SUFFIX}", self.digest, std::process::id()))
    }

    /// Lines to the servers of the same configuration. What dead ones of any configuration have left is removed.
    pub async fn others(&self, _lock: &Lock) -> Vec<(PathBuf, Line)> {
        let mut others = Vec::new();
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let Some((digest, _)) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.split_once('-')) else {
                continue;
            };
            match connect(&path).await {
                Ok(line) if digest == self.digest => others.push((path, line)),
                Ok(_) => {}
                Err(error) => tracing::debug!(path = %path.display(), %error, "another server is not reached"),
            }
        }
        others
    }
}

/// Connects to a server's socket; one that nobody listens on any more is removed.
///
/// # Errors
/// Where nobody listens, or somebody else than this account does.
pub async fn connect(path: &Path) -> io::Result<Line> {
    match UnixStream::connect(path).await {
        Ok(stream) => Line::new(stream),
        Err(error) => {
            if error.kind() == io::ErrorKind::ConnectionRefused {
                let _ = std::fs::remove_file(path);
            }
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn usual(service: Option<&str>, user: Option<&str>) -> Usual {
        Usual { service: service.map(PathBuf::from), user: user.map(PathBuf::from) }
    }

    #[test]
    fn folder_is_the_service_managers_else_the_systems_or_the_users() {
        let folder = |service, user, is_root| usual(service, user).folder(is_root);
        assert_eq!(folder(Some("/run/x"), Some("/run/user/7"), true), Some("/run/x".into()));
        assert_eq!(folder(None, Some("/run/user/0"), true), Some("/run/tstunnel".into()));
        assert_eq!(folder(None, Some("/run/user/7"), false), Some("/run/user/7/tstunnel".into()));
        assert_eq!(folder(None, None, false), None);
    }

    #[test]
    fn folder_that_others_can_enter_or_that_is_a_link_is_not_used() {
        let parent = tempfile::tempdir().unwrap();
        let configuration = parent.path().join("server.toml");
        std::fs::write(&configuration, "").unwrap();
        let open = |path: &Path| Folder::open(Some(path), Usual::default(), &configuration);
        let path = parent.path().join("run");
        let made = open(&path).unwrap().unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(open(&path).unwrap().unwrap().socket(), made.socket());
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(open(&link).unwrap_err().contains("0700"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711)).unwrap();
        assert!(open(&path).unwrap_err().contains("0700"));
        assert!(open(&parent.path().join("no/such")).is_err());
        assert!(open(&configuration).is_err());
    }

    #[test]
    fn two_configurations_have_two_names_and_two_ways_to_one_have_one() {
        let parent = tempfile::tempdir().unwrap();
        let socket = |name: &str| {
            let folder = Folder::open(Some(&parent.path().join("run")), Usual::default(), &parent.path().join(name));
            folder.unwrap().unwrap().socket()
        };
        for name in ["a.toml", "b.toml"] {
            std::fs::write(parent.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink(parent.path().join("a.toml"), parent.path().join("link.toml")).unwrap();
        assert_ne!(socket("a.toml"), socket("b.toml"));
        assert_eq!(socket("a.toml"), socket("link.toml"));
    }
}

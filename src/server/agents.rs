//! Agents that are trusted by their digest: a file → what is executed in its place, which is what was verified.
//!
//! The file is opened once, with the account's rights, and hashed; what is not on the list costs no memory. What is goes into
//! memory that nobody can write any more (memfd_create(2), sealed), and is hashed once more on its way, as the file may have changed;
//! that memory is what runs, whatever becomes of the file. Equal ones share it. Only what installs itself is run from its own file,
//! by the descriptor that was read: it asks the system where it is, to move itself. Fails closed: what cannot be read, is too
//! large or is not on the list does not run.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::{MemfdFlags, OFlags, SealFlags};

use crate::protocol::encoding::hex;
use crate::server::account::Login;
use crate::server::lock;
use crate::server::process::FileVersion;

/// Largest agent: one is some 20 MiB.
const MAX_AGENT_BYTES: u64 = 256 << 20;
/// How many verified agents are kept in memory: a few versions.
const MAX_KEPT: usize = 4;
/// Bytes of one read.
const CHUNK_BYTES: usize = 128 << 10;

/// The agents that were verified; one for a server.
#[derive(Clone, Debug, Default)]
pub struct Agents {
    kept: Arc<Mutex<Vec<Kept>>>,
    /// The accounts that agents are copied for. Each has one copied at a time: a file that does not answer holds up its own account
    /// alone.
    copying: Arc<Mutex<HashMap<String, Weak<Mutex<()>>>>>,
}

#[derive(Clone, Debug)]
struct Kept {
    /// The file that it was read from. A content that is taken for another's is a trusted one all the same.
    version: FileVersion,
    agent: Trusted,
}

/// An agent that was verified.
#[derive(Clone, Debug)]
pub struct Trusted {
    /// What is to be executed.
    pub file: Arc<OwnedFd>,
    /// Whether an interpreter will read it, which then needs the descriptor.
    pub is_script: bool,
    digest: String,
}

impl PartialEq for Trusted {
    fn eq(&self, other: &Trusted) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Trusted {}

impl Agents {
    /// Verifies the file at `path`, which `login` must be able to read, against `digests` (SHA-256, lower-case hexadecimal). Reads
    /// all of it, where it has not been seen before. Blocks.
    ///
    /// # Errors
    /// `PermissionDenied` for what is not on the list, is no regular file or too large, and what opening and reading gives.
    pub fn verify(&self, path: &Path, login: &Login, digests: &[String], is_installer: bool) -> io::Result<Trusted> {
        let mut file = login.as_account(|| {
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            File::options().read(true).custom_flags(flags.bits() as i32).open(path)
        })?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > MAX_AGENT_BYTES {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let version = FileVersion::of(&metadata);
        let check = |digest: &String| {
            if digests.contains(digest) { Ok(()) } else { Err(io::Error::from(io::ErrorKind::PermissionDenied)) }
        };
        let known = self.find(|kept| kept.version == version).filter(|_| !is_installer);
        if let Some(agent) = known {
            check(&agent.digest)?;
            self.keep(Kept { version, agent: agent.clone() });
            return Ok(agent);
        }
        let content = copy(&mut file, MAX_AGENT_BYTES, &mut io::sink())?;
        check(&content.digest)?;
        if is_installer { Ok(Trusted::new(file, content)) } else { self.share(&mut file, version, &content, login) }
    }

    /// The copy that is kept of a file's content, or else a new one, where the file holds that still.
    fn share(&self, file: &mut File, version: FileVersion, content: &Content, login: &Login) -> io::Result<Trusted> {
        let of_account = self.copying_for(&login.name);
        let _turn = lock(&of_account);
        let kept = self.find(|kept| kept.agent.digest == content.digest);
        let agent = kept.map_or_else(|| sealed(file, content.bytes), Ok)?;
        if agent.digest != content.digest {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.keep(Kept { version, agent: agent.clone() });
        Ok(agent)
    }

    /// The turn to copy for an account, for as long as anybody wants it.
    fn copying_for(&self, account: &str) -> Arc<Mutex<()>> {
        let mut all = lock(&self.copying);
        all.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = all.get(account).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        all.insert(account.to_owned(), Arc::downgrade(&turn));
        turn
    }

    fn find(&self, is_it: impl Fn(&Kept) -> bool) -> Option<Trusted> {
        lock(&self.kept).iter().find(|kept| is_it(kept)).map(|kept| kept.agent.clone())
    }

    /// Makes it the last to go.
    fn keep(&self, newest: Kept) {
        let mut kept = lock(&self.kept);
        kept.retain(|kept| kept.version != newest.version);
        if kept.len() >= MAX_KEPT {
            kept.remove(0);
        }
        kept.push(newest);
    }
}

impl Trusted {
    fn new(file: File, content: Content) -> Trusted {
        Trusted { file: Arc::new(file.into()), is_script: content.is_script, digest: content.digest }
    }
}

/// What a file held when it was read.
#[derive(Debug)]
struct Content {
    digest: String,
    bytes: u64,
    is_script: bool,
}

/// A copy in memory that nobody can change, of what the file holds now, but of no more than it has held.
fn sealed(file: &mut File, bytes: u64) -> io::Result<Trusted> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Before Linux 6.3 there was no such flag, and every memory file could be executed.
    let memory = rustix::fs::memfd_create(c"mutagen-agent", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create(c"mutagen-agent", flags))?;
    let mut memory = File::from(memory);
    file.rewind()?;
    let content = copy(file, bytes, &mut memory)?;
    rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(Trusted::new(memory, content))
}

/// Copies at most so many bytes, and tells what they are.
fn copy(from: &mut File, at_most: u64, to: &mut dyn Write) -> io::Result<Content> {
    let mut from = from.take(at_most);
    let mut hash = Context::new(&SHA256);
    let (mut bytes, mut is_script) = (0, false);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut chunk)?;
        let Some(read) = chunk.get(..count).filter(|read| !read.is_empty()) else { break };
        is_script |= bytes == 0 && read.starts_with(b"#!");
        bytes += read.len() as u64;
        hash.update(read);
        to.write_all(read)?;
    }
    Ok(Content { digest: hex(hash.finish().as_ref()), bytes, is_script })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn login() -> Login {
        Login { name: "dev".into(), home: "/".into(), shell: "/bin/sh".into(), identity: None }
    }

    fn digest(content: &[u8]) -> String {
        hex(aws_lc_rs::digest::digest(&SHA256, content).as_ref())
    }

    #[test]
    fn what_runs_is_what_was_verified_whatever_becomes_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        fs::write(&path, "#!good").unwrap();
        let agents = Agents::default();
        let trusted = agents.verify(&path, &login(), &[digest(b"#!good")], false).unwrap();
        assert!(trusted.is_script);
        fs::write(&path, "#!evil").unwrap();
        let through = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*trusted.file));
        assert_eq!(fs::read(&through).unwrap(), b"#!good");
        assert!(fs::write(&through, "x").is_err() && File::from(trusted.file.try_clone().unwrap()).set_len(0).is_err());
        assert!(agents.verify(&path, &login(), &[digest(b"#!good")], false).is_err());
    }

    #[test]
    fn what_is_not_on_the_list_or_no_file_does_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        fs::write(&path, "agent").unwrap();
        let agents = Agents::default();
        for is_installer in [false, true] {
            let verify = |path: &Path, digests: &[String]| agents.verify(path, &login(), digests, is_installer);
            assert!(verify(&path, &[digest(b"another")]).is_err());
            assert!(verify(&path, &[]).is_err());
            assert!(!verify(&path, &[digest(b"agent")]).unwrap().is_script);
            // What was trusted before and is no more.
            assert!(verify(&path, &[digest(b"another")]).is_err());
            assert!(verify(folder.path(), &[digest(b"")]).is_err());
            assert!(verify(Path::new("/dev/null"), &[digest(b"")]).is_err());
            assert!(verify(&folder.path().join("missing"), &[digest(b"")]).is_err());
        }
    }

    #[test]
    fn of_what_has_changed_since_it_was_read_no_more_is_copied_and_the_copy_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        fs::write(&path, "#!good").unwrap();
        let mut file = File::open(&path).unwrap();
        let content = copy(&mut file, MAX_AGENT_BYTES, &mut io::sink()).unwrap();
        assert_eq!((content.bytes, content.digest.as_str()), (6, digest(b"#!good").as_str()));
        assert_eq!(sealed(&mut file, content.bytes).unwrap().digest, content.digest);
        fs::write(&path, "#!evil and much more").unwrap();
        let copied = sealed(&mut file, content.bytes).unwrap();
        let version = FileVersion::of(&file.metadata().unwrap());
        let agents = Agents::default();
        assert!(agents.share(&mut file, version, &content, &login()).is_err() && lock(&agents.kept).is_empty());
        assert_eq!(copied.digest, digest(b"#!evil"));
        assert_eq!(File::from(copied.file.try_clone().unwrap()).metadata().unwrap().len(), 6);
    }

    #[test]
    fn equal_files_share_their_copy() {
        let folder = tempfile::tempdir().unwrap();
        let agents = Agents::default();
        let verify = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            agents.verify(&path, &login(), &[digest(content)], false).unwrap()
        };
        let (one, other, another) = (verify("one", b"agent"), verify("other", b"agent"), verify("another", b"another"));
        assert!(Arc::ptr_eq(&one.file, &other.file) && !Arc::ptr_eq(&one.file, &another.file));
        assert!(agents.copying_for("dev").try_lock().is_ok());
    }

    #[test]
    fn only_a_few_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let agents = Agents::default();
        for number in 0..2 * MAX_KEPT {
            let path = folder.path().join(number.to_string());
            let content = format!("agent {number}");
            fs::write(&path, &content).unwrap();
            agents.verify(&path, &login(), &[digest(content.as_bytes())], false).unwrap();
        }
        assert_eq!(agents.kept.lock().unwrap().len(), MAX_KEPT);
    }
}

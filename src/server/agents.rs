//! Agents that are trusted by their digest: a file → what is executed in its place, which is what was verified.
//!
//! The file is opened once, with the account's rights. Its content goes into memory that nobody can write any more
//! (memfd_create(2), sealed), and is hashed on its way; that memory is what runs, whatever becomes of the file. Only what
//! installs itself is run from its own file, by the descriptor that was read: it asks the system where it is, to move itself.
//! Fails closed: what cannot be read, is too large or is not on the list does not run.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::{MemfdFlags, OFlags, SealFlags};

use crate::protocol::encoding::hex;
use crate::server::account::Login;
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
        let agent = if is_installer {
            let (digest, is_script) = copy(&mut file, &mut io::sink())?;
            Trusted { file: Arc::new(file.into()), is_script, digest }
        } else if let Some(agent) = self.find(version) {
            agent
        } else {
            sealed(&mut file)?
        };
        if !digests.contains(&agent.digest) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if !is_installer {
            self.keep(Kept { version, agent: agent.clone() });
        }
        Ok(agent)
    }

    fn find(&self, version: FileVersion) -> Option<Trusted> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|kept| kept.version == version).map(|kept| kept.agent.clone())
    }

    /// Makes it the last to go.
    fn keep(&self, newest: Kept) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| kept.version != newest.version);
        if kept.len() >= MAX_KEPT {
            kept.remove(0);
        }
        kept.push(newest);
    }
}

/// A copy in memory that nobody can change.
fn sealed(file: &mut File) -> io::Result<Trusted> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Before Linux 6.3 there was no such flag, and every memory file could be executed.
    let memory = rustix::fs::memfd_create(c"mutagen-agent", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create(c"mutagen-agent", flags))?;
    let mut memory = File::from(memory);
    let (digest, is_script) = copy(file, &mut memory)?;
    rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(Trusted { file: Arc::new(memory.into()), is_script, digest })
}

/// Copies at most what may be copied; returns the digest of it, and whether it is a script.
fn copy(from: &mut File, to: &mut dyn Write) -> io::Result<(String, bool)> {
    let mut from = from.take(MAX_AGENT_BYTES);
    let mut hash = Context::new(&SHA256);
    let mut is_script = None;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut chunk)?;
        let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        is_script.get_or_insert(bytes.starts_with(b"#!"));
        hash.update(bytes);
        to.write_all(bytes)?;
    }
    Ok((hex(hash.finish().as_ref()), is_script.unwrap_or_default()))
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

//! What this program is when it is started with words: the other end of a stream, or a peer that there is no program for.
//!
//! The other end reads a line with its orders from stdin, answers with [`READY`], and does what it was told: so every peer
//! starts the same command, and what connecting costs is told from what carrying does.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::bridge;

/// The other end of a stream.
const FAR_END: &str = "far-end";
const BRIDGE: &str = "bridge";

/// What is said when orders have been read.
pub(crate) const READY: u8 = b'r';
/// What is said when everything was received.
pub(crate) const DONE: u8 = b'd';
/// Most bytes of a read, and of a write that has no other size.
pub(crate) const BLOCK_BYTES: usize = 256 << 10;
/// How often it is said how much has arrived.
const TELL: Duration = Duration::from_millis(10);

/// What the other end of a stream has to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Orders {
    /// Takes so many bytes from us and sends so many meanwhile, in writes of `block` bytes, then says [`DONE`].
    Carry { up: u64, down: u64, block: usize },
    /// Takes bytes for ever, and tells all the time how many it has, in 8 bytes.
    Take,
    /// Sends bytes for ever.
    Give,
}

impl Orders {
    pub(crate) fn line(self) -> String {
        match self {
            Orders::Carry { up, down, block } => format!("carry {up} {down} {block}\n"),
            Orders::Take => "take\n".to_owned(),
            Orders::Give => "give\n".to_owned(),
        }
    }

    fn read(line: &str) -> Option<Orders> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["carry", up, down, block] => {
                Some(Orders::Carry { up: up.parse().ok()?, down: down.parse().ok()?, block: block.parse().ok()? })
            }
            ["take"] => Some(Orders::Take),
            ["give"] => Some(Orders::Give),
            _ => None,
        }
    }
}

/// Does what the words say, if that is for us.
pub(crate) fn run(words: &[String]) -> bool {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        // Whoever asked may be gone at any time, which ends this.
        [FAR_END] => drop(far_end()),
        [BRIDGE, "serve", folder, port, kept, ref words @ ..] => {
            bridge::serve(path(folder), port.parse().unwrap(), kept.parse().unwrap(), words);
        }
        [BRIDGE, "connect", folder, address, kept, first] => {
            bridge::connect(path(folder), address.parse().unwrap(), kept.parse().unwrap(), first);
        }
        _ => return false,
    }
    true
}

/// Nothing stands for no folder.
fn path(word: &str) -> Option<&Path> {
    Some(Path::new(word)).filter(|path| !path.as_os_str().is_empty())
}

/// The command that every peer has to start on the other side.
pub(crate) fn far_end_words() -> [String; 2] {
    [myself().get_program().to_str().unwrap().to_owned(), FAR_END.to_owned()]
}

/// A bridge, by what sets it apart from others.
#[derive(Clone, Debug)]
pub(crate) struct Bridge {
    /// Where its certificates are; without any there is no TLS.
    pub(crate) folder: Option<PathBuf>,
    /// How much of what is sent is kept.
    pub(crate) kept_bytes: usize,
}

impl Bridge {
    /// Its server, to processes of `words`.
    pub(crate) fn server(&self, port: u16, words: &[String]) -> Command {
        let mut command = self.command("serve", &port.to_string());
        command.args(words);
        command
    }

    /// Its client, which sends `first` before all else.
    pub(crate) fn client(&self, address: SocketAddr, first: &str) -> Command {
        let mut command = self.command("connect", &address.to_string());
        command.arg(first);
        command
    }

    fn command(&self, word: &str, place: &str) -> Command {
        let mut command = myself();
        command.args([BRIDGE, word]).arg(self.folder.as_deref().unwrap_or(Path::new("")));
        command.args([place, &self.kept_bytes.to_string()]);
        command
    }
}

fn myself() -> Command {
    Command::new(std::env::current_exe().unwrap())
}

fn far_end() -> io::Result<()> {
    // Unbuffered, as the standard library's own are not: what follows the orders is read elsewhere.
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stdin.read_exact(&mut byte)?;
        line.extend(byte);
    }
    let orders = Orders::read(&String::from_utf8_lossy(&line)).ok_or(io::ErrorKind::InvalidData)?;
    stdout.write_all(&[READY])?;
    match orders {
        Orders::Carry { up, down, block } => {
            let taking = thread::spawn(move || take(&mut stdin, up));
            give(&mut stdout, down, block)?;
            taking.join().expect("nothing panics there")?;
            stdout.write_all(&[DONE])
        }
        Orders::Give => give(&mut stdout, u64::MAX, BLOCK_BYTES),
        Orders::Take => {
            let taken = Arc::new(AtomicU64::new(0));
            let counted = taken.clone();
            let taking = thread::spawn(move || tally(&mut stdin, &counted));
            while !taking.is_finished() {
                stdout.write_all(&taken.load(Ordering::Relaxed).to_be_bytes())?;
                thread::sleep(TELL);
            }
            Ok(())
        }
    }
}

/// Writes so many bytes, in blocks of a size.
pub(crate) fn give(to: &mut impl Write, bytes: u64, block: usize) -> io::Result<()> {
    let block = vec![0; block];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(block.len() as u64);
        to.write_all(&block[..count as usize])?;
        left -= count;
    }
    Ok(())
}

/// Reads so many bytes.
pub(crate) fn take(from: &mut impl Read, bytes: u64) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let most = left.min(block.len() as u64) as usize;
        match from.read(&mut block[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left -= count as u64,
        }
    }
    Ok(())
}

/// Counts what comes until it ends.
pub(crate) fn tally(from: &mut impl Read, count: &AtomicU64) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match from.read(&mut block)? {
            0 => return Ok(()),
            read => count.fetch_add(read as u64, Ordering::Relaxed),
        };
    }
}

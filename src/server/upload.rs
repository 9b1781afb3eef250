//! `POST /copy/{filename}`: a body → a file in the home directory, whole or not at all; and what is held of a broken one.
//!
//! A file is written under a hidden name in the home, synced, verified, given its mode, and renamed over whatever has its
//! name. A part whose connection broke keeps its hidden name for the grace. The content of what was stored stays
//! reachable by its digest (a hard link below `~/.cache/tstunnel`), so that it need not be sent again; it is verified
//! whenever it is used. Whatever fails otherwise leaves nothing behind.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256, digest};
use bytes::Bytes;
use rustix::fs::OFlags;
use tokio::sync::{OwnedMutexGuard, mpsc, watch};

use crate::error::{Code, Error};
use crate::protocol::encoding::hex;
use crate::server::process;
use crate::server::refusal::Refusal;

/// What a part is called in the home: this, then what tells it from others.
const PART_PREFIX: &str = ".tstunnel-part-";
/// Where contents are kept, below the home.
const CONTENT_FOLDER: &str = ".cache/tstunnel/content";
/// Contents larger than this are not kept; an agent is some 20 MiB.
const MAX_CONTENT_BYTES: u64 = 64 << 20;
/// How many contents are kept in a home: agents of a few versions and platforms.
const MAX_CONTENTS: usize = 8;
/// How many broken uploads are held in all.
const MAX_HELD: usize = 16;
/// Bytes of one read.
const CHUNK_BYTES: usize = 128 << 10;

/// A SHA-256 digest.
pub type Sha256 = [u8; 32];

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Identity,
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
}

/// What is to be stored.
#[derive(Clone, Debug)]
pub struct Order {
    /// The account's home directory.
    pub home: PathBuf,
    /// One name without a slash, as the policy has checked it.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
    /// The file's own digest, where the client sent it.
    pub digest: Option<Sha256>,
    /// The digest of the body as it is sent.
    pub body_digest: Option<Sha256>,
    /// How the body is encoded.
    pub encoding: Encoding,
    /// Bytes of the file that are held from before.
    pub offset: u64,
    /// Largest file.
    pub max_bytes: u64,
}

/// What was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of the file.
    pub size: u64,
    /// Its digest.
    pub sha256: Sha256,
}

/// A piece of a body, on its way to the thread that writes it.
#[derive(Debug)]
pub enum Chunk {
    /// More of it.
    Data(Bytes),
    /// It was whole.
    End,
}

/// The uploads under way and held: one for a server.
#[derive(Clone, Debug)]
pub struct Uploads {
    grace: Duration,
    slots: Arc<Mutex<HashMap<PathBuf, Arc<Slot>>>>,
}

/// Whose turn it is to write a part.
#[derive(Debug, Default)]
struct Slot {
    /// How many have asked for it: whoever has it lets go when another asks.
    asked: watch::Sender<u64>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The turn to write one part: nobody else does until it is dropped.
#[derive(Debug)]
pub struct Turn {
    uploads: Uploads,
    /// The part's file.
    path: PathBuf,
    slot: Arc<Slot>,
    number: u64,
    /// Whether a broken part may be held: only a client that sent its digest can ask for it again.
    can_be_held: bool,
    _guard: OwnedMutexGuard<()>,
}

impl Uploads {
    /// Uploads whose broken parts are held for `grace`.
    pub fn new(grace: Duration) -> Uploads {
        Uploads { grace, slots: Arc::default() }
    }

    /// Takes the turn to write the part of `name` with `digest`. Whoever writes it, on a connection that may be dead, is
    /// told to let go, and waited for.
    pub async fn turn(&self, home: &Path, name: &str, digest: Option<&Sha256>) -> Turn {
        let path = part_path(home, name, digest);
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_default().clone();
        let mut number = 0;
        slot.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        let guard = slot.turn.clone().lock_owned().await;
        Turn { uploads: self.clone(), path, slot, number, can_be_held: digest.is_some(), _guard: guard }
    }

    /// Removes parts that an earlier server has left in `home`.
    pub fn sweep(&self, home: &Path) {
        let Ok(entries) = fs::read_dir(home) else { return };
        for entry in entries.flatten() {
            let is_part = entry.file_name().to_string_lossy().starts_with(PART_PREFIX);
            let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
            if is_part && matches!(age, Ok(Ok(age)) if age > self.grace) {
                remove(&entry.path());
            }
        }
    }
}

impl Turn {
    /// How many bytes of the part are held.
    pub fn held(&self) -> u64 {
        fs::symlink_metadata(&self.path).ok().filter(fs::Metadata::is_file).map_or(0, |metadata| metadata.len())
    }

    /// Waits until somebody else asks for the part.
    pub async fn asked_for(&self) {
        let number = self.number;
        let _ = self.slot.asked.subscribe().wait_for(|asked| *asked > number).await;
    }

    /// Stores a body that comes through `chunks`; its end without [`Chunk::End`] means that it broke off. Blocks.
    ///
    /// # Errors
    /// `bad-request` where it is not what the order says, `storage` where the disk refuses, and `network-lost` where the
    /// body broke off: only then the part stays.
    pub fn store(&self, order: &Order, chunks: &mut mpsc::Receiver<Chunk>) -> Result<Stored, Refusal> {
        let mut part = Part::open(&self.path, order)?;
        let stored = part.receive(order, chunks).and_then(|()| part.complete(order));
        match stored {
            Err(refusal) if refusal.error.code == Code::NetworkLost && self.may_hold() => Err(refusal),
            Err(refusal) => {
                remove(&self.path);
                Err(refusal)
            }
            Ok(stored) => {
                keep_content(&order.home, &self.path, &stored);
                self.publish(part.file, order)?;
                Ok(stored)
            }
        }
    }

    /// Stores content that is here already under a new name and mode; `None` if it is not here. Blocks.
    ///
    /// # Errors
    /// `storage`.
    pub fn store_known(&self, order: &Order) -> Result<Option<Stored>, Refusal> {
        let Some(digest) = &order.digest else { return Ok(None) };
        let content = order.home.join(CONTENT_FOLDER).join(hex(digest));
        let Ok(mut source) = open_regular(&content) else { return Ok(None) };
        let mut part = Part::open(&self.path, &Order { offset: 0, ..order.clone() })?;
        let copied = io::copy(&mut source, &mut part);
        let stored = copied.map_err(|error| part.explain(&error)).and_then(|_| part.complete(order));
        match stored {
            Ok(stored) => {
                // The newest content is the last to go.
                let _ = source.set_modified(SystemTime::now());
                self.publish(part.file, order)?;
                Ok(Some(stored))
            }
            Err(_) => {
                // Somebody has written into the file that shares this content.
                remove(&self.path);
                remove(&content);
                Ok(None)
            }
        }
    }

    /// Gives the file its mode and name. Whoever is told so can run it at once.
    fn publish(&self, file: File, order: &Order) -> Result<(), Refusal> {
        let published = file
            .set_permissions(fs::Permissions::from_mode(order.mode & 0o777))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&self.path, order.home.join(&order.name)));
        published.map_err(|error| {
            remove(&self.path);
            storage(&error)
        })?;
        drop(file);
        process::wait_for_spawns();
        Ok(())
    }

    fn may_hold(&self) -> bool {
        let slots = self.uploads.slots.lock().unwrap_or_else(PoisonError::into_inner);
        self.can_be_held && !self.uploads.grace.is_zero() && slots.len() <= MAX_HELD
    }

    /// Gives the turn back. A part that is held is removed when the grace is over and nobody has asked for it.
    pub fn finish(self) {
        let Turn { uploads, path, slot, number, _guard: guard, .. } = self;
        let is_held = path.symlink_metadata().is_ok();
        let grace = uploads.grace;
        drop(guard);
        let forget = move || {
            let mut slots = uploads.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if *slot.asked.borrow() == number {
                slots.remove(&path);
                remove(&path);
            }
        };
        if is_held {
            tokio::spawn(async move {
                tokio::time::sleep(grace).await;
                forget();
            });
        } else {
            forget();
        }
    }
}

/// A part while it is written.
struct Part {
    file: File,
    hash: Context,
    size: u64,
    max_bytes: u64,
    failure: Option<Refusal>,
}

impl Part {
    /// Opens a part, empty or at the order's offset.
    fn open(path: &Path, order: &Order) -> Result<Part, Refusal> {
        let mut options = File::options();
        options.read(true).write(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        if order.offset == 0 {
            // Always a new file: what stood there may be held open, or be linked elsewhere.
            remove(path);
            options.create_new(true);
        }
        let file = options.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if order.offset > 0 => Refusal::bad_request(400, "nothing is held of this file"),
            _ => storage(&error),
        })?;
        let mut part = Part { file, hash: Context::new(&SHA256), size: 0, max_bytes: order.max_bytes, failure: None };
        part.skip_to(order.offset)?;
        Ok(part)
    }

    /// Goes to `offset`, with the digest of what stands before it.
    fn skip_to(&mut self, offset: u64) -> Result<(), Refusal> {
        let mut chunk = vec![0; CHUNK_BYTES];
        while self.size < offset {
            let wanted = (offset - self.size).min(CHUNK_BYTES as u64) as usize;
            match self.file.read(&mut chunk[..wanted]).map_err(|error| storage(&error))? {
                0 => return Err(Refusal::bad_request(400, format!("only {} bytes of this file are held", self.size))),
                count => {
                    self.hash.update(&chunk[..count]);
                    self.size += count as u64;
                }
            }
        }
        self.file
            .set_len(offset)
            .and_then(|()| self.file.seek(SeekFrom::Start(offset)))
            .map_err(|error| storage(&error))?;
        Ok(())
    }

    /// Writes the body, decoded.
    fn receive(&mut self, order: &Order, chunks: &mut mpsc::Receiver<Chunk>) -> Result<(), Refusal> {
        let mut body_hash = Context::new(&SHA256);
        let mut is_whole = false;
        let mut decoder = Decoder::new(&mut *self, order.encoding).map_err(|error| storage(&error))?;
        let mut written = Ok(());
        while written.is_ok()
            && let Some(chunk) = chunks.blocking_recv()
        {
            match chunk {
                Chunk::Data(bytes) => {
                    body_hash.update(&bytes);
                    written = decoder.write_all(&bytes);
                }
                Chunk::End => {
                    is_whole = true;
                    break;
                }
            }
        }
        // Of a body that breaks off, what is decoded so far counts; one that has come whole must end where its encoding does.
        let written = written.and_then(|()| if is_whole { decoder.finish() } else { decoder.flush() });
        if let Err(error) = written {
            return Err(self.explain(&error));
        }
        if !is_whole {
            return Err(Error::new(Code::NetworkLost, "the body broke off").into());
        }
        let body_digest = body_hash.finish();
        if order.body_digest.is_some_and(|expected| expected != body_digest.as_ref()) {
            return Err(Refusal::bad_request(422, "the body's digest does not match `Content-Digest`"));
        }
        Ok(())
    }

    /// Verifies what was written.
    fn complete(&mut self, order: &Order) -> Result<Stored, Refusal> {
        let hash = std::mem::replace(&mut self.hash, Context::new(&SHA256));
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(hash.finish().as_ref());
        if order.digest.is_some_and(|expected| expected != sha256) {
            return Err(Refusal::bad_request(422, "the file's digest does not match `Unencoded-Digest`"));
        }
        Ok(Stored { size: self.size, sha256 })
    }

    /// The refusal behind a failed write: of this file, or of a decoder in front of it.
    fn explain(&mut self, error: &io::Error) -> Refusal {
        self.failure
            .take()
            .unwrap_or_else(|| Refusal::bad_request(400, format!("the body is not what its encoding says: {error}")))
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size + bytes.len() as u64 > self.max_bytes {
            self.failure = Some(Refusal::bad_request(413, format!("the file is larger than {} bytes", self.max_bytes)));
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        match self.file.write(bytes) {
            Ok(count) => {
                self.hash.update(&bytes[..count]);
                self.size += count as u64;
                Ok(count)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    self.failure = Some(storage(&error));
                }
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What decodes a body into a part.
enum Decoder<'a> {
    Identity(&'a mut Part),
    Zstd(zstd::stream::write::Decoder<'static, &'a mut Part>),
    Gzip(Box<flate2::write::GzDecoder<&'a mut Part>>),
}

impl<'a> Decoder<'a> {
    fn new(part: &'a mut Part, encoding: Encoding) -> io::Result<Decoder<'a>> {
        Ok(match encoding {
            Encoding::Identity => Decoder::Identity(part),
            Encoding::Zstd => Decoder::Zstd(zstd::stream::write::Decoder::new(part)?),
            Encoding::Gzip => Decoder::Gzip(Box::new(flate2::write::GzDecoder::new(part))),
        })
    }

    /// Writes what is left, and fails where the encoding says that there is more to come.
    fn finish(self) -> io::Result<()> {
        match self {
            Decoder::Identity(part) => part.flush(),
            Decoder::Zstd(decoder) => decoder.finish().map(drop),
            Decoder::Gzip(decoder) => decoder.finish().map(drop),
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Decoder::Identity(part) => part,
            Decoder::Zstd(decoder) => decoder,
            Decoder::Gzip(decoder) => decoder,
        }
    }
}

impl Write for Decoder<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer().flush()
    }
}

fn storage(error: &io::Error) -> Refusal {
    Error::new(Code::Storage, format!("the file cannot be stored: {}", error.kind())).into()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove");
    }
}

fn open_regular(path: &Path) -> io::Result<File> {
    let file =
        File::options().read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Keeps a part's content reachable by its digest, and lets the oldest contents go.
fn keep_content(home: &Path, part: &Path, stored: &Stored) {
    if stored.size > MAX_CONTENT_BYTES {
        return;
    }
    let folder = home.join(CONTENT_FOLDER);
    let kept = DirBuilder::new().recursive(true).mode(0o700).create(&folder).and_then(|()| {
        let path = folder.join(hex(&stored.sha256));
        remove(&path);
        fs::hard_link(part, path)
    });
    if let Err(error) = kept {
        tracing::debug!(folder = %folder.display(), %error, "content is not kept");
        return;
    }
    let Ok(entries) = fs::read_dir(&folder) else { return };
    let mut contents: Vec<(SystemTime, PathBuf)> =
        entries.flatten().filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    contents.sort();
    for (_, path) in contents.iter().rev().skip(MAX_CONTENTS) {
        remove(path);
    }
}

/// The file of the part of `name` with `digest`; another for each upload where there is no digest.
fn part_path(home: &Path, name: &str, sha256: Option<&Sha256>) -> PathBuf {
    let mut key = name.as_bytes().to_vec();
    match sha256 {
        Some(sha256) => key.extend_from_slice(&[&[0], &sha256[..]].concat()),
        None => {
            let mut random = [0; 16];
            let _ = aws_lc_rs::rand::fill(&mut random);
            key.extend_from_slice(&random);
        }
    }
    home.join(format!("{PART_PREFIX}{}", &hex(digest(&SHA256, &key).as_ref())[..32]))
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;

//! An upload as the account: a body → a file in the home directory, whole or not at all. Runs in a process of its own that is the
//! account's ([`helper`]), so what decodes a stranger's bytes has no rights but that account's.
//!
//! A file is written under a hidden name in the home, synced, verified, given its mode, and renamed over whatever has its
//! name. The content of what was stored stays reachable by its digest (a hard link below `~/.cache/tstunnel`), so that it
//! need not be sent again; it is verified whenever it is used. A part whose body broke off stays where the order says
//! so; whatever fails otherwise leaves nothing behind.

mod contents;
pub mod helper;
mod wrapped;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, reason};
use crate::server::refusal::Refusal;
use contents::Contents;

/// What a part is called in the home: this, then what tells it from others.
pub const PART_PREFIX: &str = ".tstunnel-part-";

/// A SHA-256 digest.
pub type Sha256 = [u8; 32];

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// As it is.
    Identity,
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
}

/// What is to be stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The account's home directory.
    pub home: PathBuf,
    /// One name without a slash, as the policy has checked it.
    pub name: String,
    /// What the file is called in the home until it is whole.
    pub part: String,
    /// Whether a part whose body breaks off stays, to be gone on with.
    pub may_hold: bool,
    /// The words before every command of the host; where there are any, the file goes to what is behind them.
    pub wrapper: Vec<String>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Bytes of the file.
    pub size: u64,
    /// Its digest.
    pub sha256: Sha256,
}

/// A piece of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// More of it.
    Data(&'a [u8]),
    /// It was whole.
    End,
    /// It broke off.
    Broken,
}

/// A body, piece by piece.
pub trait Body {
    /// Says that there is a place for it by now. It is not read before.
    fn want(&mut self) {}

    /// The next piece; nothing comes after an end.
    fn next(&mut self) -> Piece<'_>;
}

/// Stores a body. Blocks.
///
/// # Errors
/// `bad-request` where it is not what the order says, `storage` where the disk refuses, and `network-lost` where the body broke
/// off: only then, and where the order says so, the part stays.
pub fn store(order: &Order, body: &mut dyn Body) -> Result<Stored, Refusal> {
    let path = order.home.join(&order.part);
    let mut part = Part::open(&path, order)?;
    body.want();
    match receive(&mut part, order, body).and_then(|()| part.complete(order)) {
        Err(refusal) if refusal.error.code == Code::NetworkLost && order.may_hold => Err(refusal),
        Err(refusal) => {
            remove_own(&part.sink, &path);
            Err(refusal)
        }
        Ok(stored) => {
            let kept = Contents::open(&order.home, true).and_then(|contents| contents.keep(&part.sink, &stored));
            if let Err(error) = kept {
                tracing::debug!(%error, "content is not kept");
            }
            publish(&part.sink, &path, order)?;
            Ok(stored)
        }
    }
}

/// Stores content that is here already under a new name and mode; `None` if it is not here. Blocks.
///
/// # Errors
/// `storage`.
pub fn store_known(order: &Order) -> Result<Option<Stored>, Refusal> {
    let Some(digest) = order.digest.filter(|_| order.wrapper.is_empty()) else { return Ok(None) };
    let Ok(contents) = Contents::open(&order.home, false) else { return Ok(None) };
    let Ok(mut source) = contents.find(&digest) else { return Ok(None) };
    let path = order.home.join(&order.part);
    let mut part = Part::open(&path, &Order { offset: 0, ..order.clone() })?;
    let copied = io::copy(&mut source, &mut part);
    let stored = copied.map_err(|error| part.explain(&error)).and_then(|_| part.complete(order));
    match stored {
        Ok(stored) => {
            // The newest content is the last to go.
            let _ = contents.keep(&part.sink, &stored);
            publish(&part.sink, &path, order)?;
            Ok(Some(stored))
        }
        Err(_) => {
            // Somebody has written into the file that shares this content.
            remove_own(&part.sink, &path);
            let _ = contents.remove(&digest);
            Ok(None)
        }
    }
}

/// How many bytes of a part are held.
pub fn held(part: &Path) -> u64 {
    fs::symlink_metadata(part).ok().filter(fs::Metadata::is_file).map_or(0, |metadata| metadata.len())
}

/// Removes a part that nobody has written to since `end`, by this server or another.
pub fn expire(part: &Path, end: SystemTime) {
    let written = fs::symlink_metadata(part).and_then(|metadata| metadata.modified());
    if written.is_ok_and(|written| written < end) {
        remove(part);
    }
}

/// Removes the parts in `home` that nobody has written to since `end`, but for those that are `known`.
pub fn sweep(home: &Path, end: SystemTime, known: &[PathBuf]) {
    let Ok(entries) = fs::read_dir(home) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PART_PREFIX) && !known.contains(&path) {
            expire(&path, end);
        }
    }
}

/// Another connection goes on with an upload, here or at the server that has taken this one's place.
pub fn taken_over() -> Error {
    Error::new(Code::TooMany, "another connection has taken this upload over")
}

/// Gives the file its mode and name, and makes sure that it is this file that has got it.
fn publish(file: &File, part: &Path, order: &Order) -> Result<(), Refusal> {
    let path = order.home.join(&order.name);
    let failed = |error: io::Error| {
        remove_own(file, part);
        storage(&error)
    };
    file.set_permissions(fs::Permissions::from_mode(order.mode & 0o777)).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    if !is_at(file, part) {
        return Err(taken_over().into());
    }
    fs::rename(part, &path).map_err(failed)?;
    if is_at(file, &path) { Ok(()) } else { Err(taken_over().into()) }
}

/// Removes the part if it is this file: what stands in its place by now may be another server's, which goes on with the upload.
fn remove_own(file: &File, part: &Path) {
    if is_at(file, part) {
        remove(part);
    }
}

/// Whether `path` is a name of `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let found = file.metadata().and_then(|open| Ok((open, fs::symlink_metadata(path)?)));
    found.is_ok_and(|(open, named)| (open.dev(), open.ino()) == (named.dev(), named.ino()))
}

/// Writes the body into `part`, decoded.
fn receive<W: Write>(part: &mut Part<W>, order: &Order, body: &mut dyn Body) -> Result<(), Refusal> {
    let mut body_hash = Context::new(&SHA256);
    let mut is_whole = false;
    let mut decoder = Decoder::new(&mut *part, order.encoding).map_err(|error| storage(&error))?;
    let mut written = Ok(());
    while written.is_ok() {
        match body.next() {
            Piece::Data(bytes) => {
                body_hash.update(bytes);
                written = decoder.write_all(bytes);
            }
            Piece::End => {
                is_whole = true;
                break;
            }
            Piece::Broken => break,
        }
    }
    // Of a body that breaks off, what is decoded so far counts; one that has come whole must end where its encoding does.
    let written = written.and_then(|()| if is_whole { decoder.finish() } else { decoder.flush() });
    if let Err(error) = written {
        return Err(part.explain(&error));
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

/// A part while it is written, to a file or to what is behind a wrapper.
struct Part<W> {
    sink: W,
    hash: Context,
    size: u64,
    max_bytes: u64,
    failure: Option<Refusal>,
}

impl Part<File> {
    /// Makes a part, empty or with what is held up to the order's offset.
    ///
    /// Always a new file: what stands there may be held open, or be linked elsewhere. What is held is read, hashed and written
    /// anew, and never written into.
    fn open(path: &Path, order: &Order) -> Result<Part<File>, Refusal> {
        let offset = order.offset;
        let held = if offset > 0 { Some(held_from(path, offset)) } else { None };
        // Where that is refused, nobody waits for the part any more.
        remove(path);
        let held = held.transpose()?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let mut part = Part::new(file.map_err(|error| storage(&error))?, order);
        if let Some(mut held) = held {
            match io::copy(&mut held, &mut part) {
                Ok(count) if count == offset => {}
                result => {
                    remove(path);
                    let error = result.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                    return Err(part.failure.take().unwrap_or_else(|| storage(&error)));
                }
            }
        }
        Ok(part)
    }
}

/// The first `offset` bytes of a part.
fn held_from(path: &Path, offset: u64) -> Result<io::Take<File>, Refusal> {
    let nothing = || Refusal::bad_request(400, "nothing is held of this file");
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path).map_err(|_| nothing())?;
    match file.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() >= offset => Ok(file.take(offset)),
        Ok(metadata) if metadata.is_file() => {
            Err(Refusal::bad_request(400, format!("only {} bytes of this file are held", metadata.len())))
        }
        _ => Err(nothing()),
    }
}

impl<W> Part<W> {
    fn new(sink: W, order: &Order) -> Part<W> {
        Part { sink, hash: Context::new(&SHA256), size: 0, max_bytes: order.max_bytes, failure: None }
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

impl<W: Write> Write for Part<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size + bytes.len() as u64 > self.max_bytes {
            self.failure = Some(Refusal::file_too_large(self.max_bytes));
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        match self.sink.write(bytes) {
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

/// The window that every decoder should have, 8 MiB (RFC 8878 §3.1.1.1.2): the body says how much memory it takes to decode.
const MAX_WINDOW_LOG: u32 = 23;

/// What decodes a body into a part.
enum Decoder<'a> {
    Identity(&'a mut dyn Write),
    Zstd(zstd::stream::write::Decoder<'static, &'a mut dyn Write>),
    Gzip(Box<flate2::write::GzDecoder<&'a mut dyn Write>>),
}

impl<'a> Decoder<'a> {
    fn new(part: &'a mut dyn Write, encoding: Encoding) -> io::Result<Decoder<'a>> {
        Ok(match encoding {
            Encoding::Identity => Decoder::Identity(part),
            Encoding::Zstd => {
                let mut decoder = zstd::stream::write::Decoder::new(part)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Decoder::Zstd(decoder)
            }
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
    let refused = Error::new(Code::Storage, format!("the file cannot be stored: {}", reason(error)));
    let hint = match error.kind() {
        io::ErrorKind::IsADirectory => "a folder has this name there: give the file another",
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "ask whoever runs the endpoint to let the account write to its home directory there"
        }
        _ => return refused.into(),
    };
    refused.with_hint(hint).into()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove");
    }
}

#[cfg(test)]
mod tests;

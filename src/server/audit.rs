//! The audit log: one JSON line for each decision and for each session's end, to stderr, a file or journald.
//!
//! [`Record`]s come in; a thread of its own writes them, in order, so that nothing that serves ever waits for a disk. Memory is
//! bounded: where the thread cannot keep up, records are lost, counted, and said to be. With `audit_required` what cannot be
//! recorded is not begun: fails closed.

mod journal;
pub mod record;
mod throttle;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::error::{Code, Error, Result, reason};
use crate::log;
use crate::server::lock;
use crate::server::metrics::Metrics;
use journal::Journal;
use record::Record;
use throttle::Throttle;

/// Records that wait for the thread; each is at most some KiB.
const QUEUE: usize = 1024;
/// How often lost records are spoken of.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// How long a decision may wait for its line, where that is required.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the last lines may take when the server ends.
const CLOSING: Duration = Duration::from_secs(2);

/// Where the lines go: `audit` in the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Destination {
    /// Nowhere.
    Off,
    /// The server's stderr, among its other messages.
    #[default]
    Stderr,
    /// The journal whose socket this is.
    Journal(PathBuf),
    /// A file that is appended to.
    File(PathBuf),
}

impl TryFrom<String> for Destination {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Destination, String> {
        match text.as_str() {
            "off" => Ok(Destination::Off),
            "stderr" => Ok(Destination::Stderr),
            "journald" => Ok(Destination::Journal(PathBuf::from(journal::SOCKET))),
            _ => match text.strip_prefix("journald:") {
                Some(path) if is_plain_path(path) => Ok(Destination::Journal(PathBuf::from(path))),
                None if is_plain_path(&text) => Ok(Destination::File(PathBuf::from(text))),
                _ => Err(format!("`{text}` is neither stderr, journald nor off, nor the absolute path of a file")),
            },
        }
    }
}

fn is_plain_path(text: &str) -> bool {
    text.starts_with('/') && !text.ends_with('/') && !text.contains('\0')
}

/// The way to the audit log; one for a server.
#[derive(Clone, Debug)]
pub struct Audit {
    queue: SyncSender<Message>,
    book: Arc<Book>,
}

#[derive(Debug)]
enum Message {
    /// A line, and whom to tell whether it was written.
    Line(Box<Record>, Option<oneshot::Sender<bool>>),
    /// Nothing comes any more.
    Close(oneshot::Sender<bool>),
}

/// What the thread and the others share.
#[derive(Debug)]
struct Book {
    /// What the thread writes to from its next record on.
    next: Mutex<Option<Sink>>,
    is_required: AtomicBool,
    /// Whether the last record was lost.
    is_failing: AtomicBool,
    written: Counter,
    lost: Counter,
    held_back: Counter,
    throttle: Mutex<Throttle>,
    /// Two servers that share a log must not share the sessions' names.
    next_session: AtomicU64,
}

impl Audit {
    /// Opens the log, and starts its thread. Where it `is_required`, nothing begins that it does not hold.
    ///
    /// # Errors
    /// `config` where the destination cannot be opened.
    pub fn start(destination: &Destination, is_required: bool, metrics: &Metrics) -> Result<Audit> {
        let sink = Sink::open(destination)?;
        let mut first_session = [0; 8];
        aws_lc_rs::rand::fill(&mut first_session)
            .map_err(|_| Error::new(Code::Internal, "the system has no random numbers"))?;
        let book = Arc::new(Book {
            next: Mutex::new(Some(sink)),
            is_required: AtomicBool::new(is_required),
            is_failing: AtomicBool::new(false),
            written: metrics.audit_line("written"),
            lost: metrics.audit_line("lost"),
            held_back: metrics.audit_line("held-back"),
            throttle: Mutex::new(Throttle::new(Instant::now())),
            next_session: AtomicU64::new(u64::from_ne_bytes(first_session)),
        });
        let (queue, messages) = sync_channel(QUEUE);
        let writer = Writer { sink: Sink::Off, book: book.clone(), said: (0, None) };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&messages))
            .map_err(|error| Error::new(Code::Internal, format!("cannot start the audit log's thread: {error}")))?;
        Ok(Audit { queue, book })
    }

    /// Opens the destination afresh, be it the same (a file that was renamed by logrotate(8)) or another. Records from now on go
    /// there; where it fails, all stays as it was.
    ///
    /// # Errors
    /// `config` where the destination cannot be opened.
    pub fn reopen(&self, destination: &Destination, is_required: bool) -> Result<()> {
        *lock(&self.book.next) = Some(Sink::open(destination)?);
        self.book.is_required.store(is_required, Ordering::Relaxed);
        Ok(())
    }

    /// Records something, without waiting.
    pub fn push(&self, record: Record) {
        if self.queue.try_send(Message::Line(Box::new(record), None)).is_err() {
            self.book.lose();
        }
    }

    /// Records what a peer that nobody knows has caused; of very many such records only some. Says whether this is one of them.
    pub fn push_throttled(&self, mut record: Record) -> bool {
        let admitted = lock(&self.book.throttle).admit(Instant::now());
        match admitted {
            Some(held_back) => {
                record.held_back = Some(held_back).filter(|count| *count > 0);
                self.push(record);
            }
            None => {
                self.book.held_back.inc();
            }
        }
        admitted.is_some()
    }

    /// Records what is about to begin. Where the log is required, waits until the line is written.
    ///
    /// # Errors
    /// `overloaded` where it could not be written: then it must not begin.
    pub async fn insist(&self, record: Record) -> Result<()> {
        if !self.book.is_required.load(Ordering::Relaxed) {
            self.push(record);
            return Ok(());
        }
        let (done, written) = oneshot::channel();
        let queued = self.queue.try_send(Message::Line(Box::new(record), Some(done)));
        if queued.is_err() {
            self.book.lose();
        } else if let Ok(Ok(true)) = tokio::time::timeout(PATIENCE, written).await {
            return Ok(());
        }
        Err(Error::new(Code::Overloaded, "the server cannot keep its audit log"))
    }

    /// A name for a session, which joins its lines.
    pub fn session_name(&self) -> String {
        format!("{:016x}", self.book.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether sessions are refused because the log cannot be written.
    pub fn is_blocking(&self) -> bool {
        self.book.is_required.load(Ordering::Relaxed) && self.book.is_failing.load(Ordering::Relaxed)
    }

    /// Waits until everything is written, but not for long. What is recorded later is lost.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.try_send(Message::Close(done)).is_ok() {
            let _ = tokio::time::timeout(CLOSING, closed).await;
        }
    }
}

impl Book {
    fn lose(&self) {
        self.lost.inc();
        self.is_failing.store(true, Ordering::Relaxed);
    }
}

/// The thread's part.
struct Writer {
    sink: Sink,
    book: Arc<Book>,
    /// How many records were lost when this was last spoken of, and when that was.
    said: (u64, Option<Instant>),
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        let mut why = String::from("the queue was full");
        loop {
            let message = match messages.recv_timeout(COMPLAINT_INTERVAL) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // Before the record: it was pushed after the reopening.
            if let Some(next) = lock(&self.book.next).take() {
                self.sink = next;
            }
            match message {
                Some(Message::Line(record, done)) => {
                    let result = self.sink.write(&record);
                    let is_written = result.is_ok();
                    match result {
                        Ok(()) => {
                            self.book.written.inc();
                            self.book.is_failing.store(false, Ordering::Relaxed);
                        }
                        Err(error) => {
                            self.book.lose();
                            why = error.to_string();
                        }
                    }
                    if let Some(done) = done {
                        let _ = done.send(is_written);
                    }
                }
                Some(Message::Close(done)) => {
                    let _ = done.send(true);
                    return;
                }
                None => {}
            }
            self.complain(&why);
        }
    }

    /// Only here, where nothing else waits: stderr may be what is stuck.
    fn complain(&mut self, why: &str) {
        let lost = self.book.lost.get();
        let (said, at) = self.said;
        if lost > said && at.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            tracing::warn!("{} lines of the audit log were lost: {why}", lost - said);
            self.said = (lost, Some(Instant::now()));
        }
    }
}

/// An open destination.
#[derive(Debug)]
enum Sink {
    Off,
    Stderr,
    Journal(Journal),
    File {
        file: File,
        /// The last line has no end.
        is_torn: bool,
    },
}

impl Sink {
    fn open(destination: &Destination) -> Result<Sink> {
        match destination {
            Destination::Off => Ok(Sink::Off),
            Destination::Stderr => Ok(Sink::Stderr),
            Destination::Journal(path) => {
                Journal::open(path).map(Sink::Journal).map_err(|error| cannot_open(path, &error))
            }
            Destination::File(path) => {
                let file = open_log(path).map_err(|error| cannot_open(path, &error))?;
                Ok(Sink::File { file, is_torn: false })
            }
        }
    }

    /// Writes one record, with one write(2).
    fn write(&mut self, record: &Record) -> io::Result<()> {
        match self {
            Sink::Off => Ok(()),
            Sink::Stderr => log::write(&record.line()?),
            Sink::Journal(journal) => journal.send(record),
            Sink::File { file, is_torn } => {
                let mut line = record.line()?;
                if *is_torn {
                    // What stands there of the last one must not spoil this one.
                    line.insert(0, '\n');
                }
                let count = file.write(line.as_bytes())?;
                *is_torn = count < line.len();
                if *is_torn { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
            }
        }
    }
}

fn cannot_open(path: &Path, error: &io::Error) -> Error {
    Error::new(Code::Config, format!("cannot open the audit log {}: {}", path.display(), reason(error)))
        .with_hint("set `audit` to a file that this account may append to, in a folder that is there")
}

/// Looks for what keeps a log from being opened, whoever opens it, and makes nothing: no folder to make its file in, or something
/// else in the file's place.
///
/// # Errors
/// `config`, as [`Audit::start`] would say it.
pub fn check(destination: &Destination) -> Result<()> {
    let Destination::File(path) = destination else { return Ok(()) };
    let found = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => Err(Errno::ISDIR.into()),
        Ok(metadata) if metadata.is_symlink() => Err(Errno::LOOP.into()),
        Ok(metadata) if !metadata.is_file() => Err(not_regular()),
        // Only its folder has to be there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent().map(Path::metadata) {
            Some(Err(error)) => Err(error),
            _ => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(error),
        // What this account may not look at, another one may.
        _ => Ok(()),
    };
    found.map_err(|error: io::Error| cannot_open(path, &error))
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")
}

/// Opens a regular file for appending, readable by its owner alone where it is new. A link in its place is somebody else's doing.
fn open_log(path: &Path) -> io::Result<File> {
    // Without NONBLOCK, a FIFO that nobody reads would hold the server up for ever.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().append(true).create(true).mode(0o600).custom_flags(flags.bits() as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(not_regular());
    }
    Ok(file)
}

#[cfg(test)]
mod tests;

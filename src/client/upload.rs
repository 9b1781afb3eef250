//! `tstunnel upload`, and what the `scp` stand-in does: a file into the account's home directory on the host.
//!
//! The file's digest goes ahead of it, so that a server which holds the content needs no body. After a broken connection
//! the server says how much it holds and the rest is sent, until nothing moves for as long as the host's `resume`; that is said
//! on stderr. stdin is read to its end first.

mod progress;
mod spool;
mod standing;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::OFlags;
use tokio::time::Instant;

use crate::client::dial::{Connection, Dialler};
use crate::client::redial::{given_up, may_pass};
use crate::client::status::Kind;
use crate::client::status::report::Report;
use crate::error::{Code, Error, Result, reason};
use crate::protocol::encoding::percent_encode;
use crate::protocol::head::{Request, Response};
use crate::protocol::{HEADER_MODE, HEADER_UNENCODED_DIGEST, HEADER_UPLOAD_OFFSET, HEADER_USER, time_to_store};

pub use progress::Progress;
use progress::bytes;
use standing::Standing;

/// A body larger than this is sent as it is: it is compressed in memory, because its length goes ahead of it.
const COMPRESS_BELOW_BYTES: u64 = 64 << 20;
/// Fast enough to keep up with a gigabit on one core, and two thirds off an agent.
const ZSTD_LEVEL: i32 = 1;
/// Bytes of one write.
const CHUNK_BYTES: usize = 256 << 10;
/// How long a server has to ask for the body before it is sent unasked (RFC 9110 §10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);
/// How long a connection may wait for its request; a server gives one up that waits for longer, such as for a large file to be read.
const UNUSED: Duration = Duration::from_millis(250);
/// The first pause before another attempt, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The permission bits of what has none of its own: as long as nobody says otherwise, it is the account's alone.
const STDIN_MODE: u32 = 0o600;

/// Where the content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In a local file.
    File(PathBuf),
    /// On stdin, until its end.
    Stdin,
}

impl Content {
    /// What a person calls it.
    fn name(&self) -> String {
        match self {
            Content::File(path) => path.display().to_string(),
            Content::Stdin => "stdin".to_owned(),
        }
    }
}

/// What is to be put where.
#[derive(Clone, Debug)]
pub struct Upload {
    /// What is sent.
    pub content: Content,
    /// Its name in the account's home directory; the file's own if `None`.
    pub name: Option<String>,
    /// Its permission bits; the file's own if `None`, or those of its owner alone.
    pub mode: Option<u32>,
    /// Whether to compress it on the way.
    pub compress: bool,
}

/// A file that is ready to be sent.
struct Source {
    file: File,
    size: u64,
    /// What a person calls it.
    name: String,
    sha256: digest::Digest,
    /// Its name on the host.
    there: String,
    mode: u32,
    compress: bool,
    progress: Progress,
}

enum Attempt {
    /// With whether any of it had to be sent.
    Stored {
        was_sent: bool,
    },
    Refused(Error),
    /// There was no answer.
    Failed(Error),
}

/// Puts the file there, and shows how that goes.
///
/// # Errors
/// `usage` for a file that cannot be read, `config` where there is no room for stdin, those of [`Dialler::dial`], and the
/// server's refusal.
pub async fn run(dialler: &Dialler, upload: &Upload, progress: &Progress) -> Result<()> {
    let opened = {
        let (upload, progress) = (upload.clone(), progress.clone());
        tokio::task::spawn_blocking(move || Source::open(&upload, progress))
    };
    let (source, connection) = match upload.content {
        // The digest is computed while the connection is made.
        Content::File(_) => {
            let dialled = async { (dialler.dial().await, Instant::now()) };
            let (opened, (connection, since)) = tokio::join!(opened, dialled);
            (opened, Some(connection).filter(|connection| connection.is_err() || since.elapsed() < UNUSED))
        }
        // Nobody knows how long this takes.
        Content::Stdin => (opened.await, None),
    };
    let source = source.map_err(|error| Error::new(Code::Internal, format!("reading the file failed: {error}")))??;
    let connection = match connection {
        Some(connection) => connection?,
        None => dialler.dial().await?,
    };
    let standing = Standing::default();
    let mut report = Report::new(dialler.host(), Kind::Upload, Some(&format!("upload:{}", source.there)));
    tokio::select! {
        result = deliver(connection, &source, dialler, &standing) => result,
        never = standing.tell(&mut report) => match never {},
    }
}

/// Sends it, over one connection after the other where it must be.
async fn deliver(connection: Connection, source: &Source, dialler: &Dialler, standing: &Standing) -> Result<()> {
    let progress = &source.progress;
    let mut attempt = source.send(connection, dialler, 0, standing).await;
    let patience = dialler.host().resume.unwrap_or_default();
    // Until when it is tried again, and until when that is put off by whatever was sent meanwhile.
    let mut deadline = Instant::now() + patience;
    let mut progress_deadline = deadline;
    let mut pause = BACK_OFF.0;
    let mut held = 0;
    let mut passes: fn(&Error) -> bool = is_passing;
    loop {
        let error = match attempt {
            Attempt::Stored { was_sent: true } => {
                progress.sent();
                return Ok(());
            }
            Attempt::Stored { was_sent: false } => {
                progress.was_there(&dialler.host().alias);
                return Ok(());
            }
            Attempt::Refused(error) => return Err(error),
            Attempt::Failed(error) if passes(&error) => error,
            Attempt::Failed(error) => return Err(error),
        };
        // What breaks a handshake from now on, or a connection before its answer, has broken the upload before: neither is the
        // server's decision.
        passes = may_pass;
        if Instant::now() + pause > deadline {
            let what = format!("the upload to {} broke off and could not go on", dialler.host().alias);
            return Err(if patience.is_zero() { error } else { given_up(&what, patience, &error) });
        }
        tracing::info!(%error, held, "upload interrupted");
        progress.waiting();
        standing.broke();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACK_OFF.1);
        attempt = match source.carry_on(dialler).await {
            Ok((connection, offset)) => {
                if offset > held {
                    (held, pause, progress_deadline) = (offset, BACK_OFF.0, Instant::now() + patience);
                }
                let has_moved_lately = Instant::now() < progress_deadline;
                let (there, all) = (bytes(offset), bytes(source.size));
                progress.say(&format!("the upload was interrupted and goes on at {there} of {all} ({})", error.text));
                standing.mended();
                let sent = source.send(connection, dialler, offset, standing).await;
                // That may have taken hours, and what of it has come only the server knows.
                if has_moved_lately {
                    deadline = Instant::now() + patience;
                }
                sent
            }
            Err(error) => Attempt::Failed(error),
        };
    }
}

/// Whether the same attempt may succeed in a moment.
fn is_passing(error: &Error) -> bool {
    error.code.retry() == crate::error::Retry::Yes
}

impl Source {
    fn open(upload: &Upload, progress: Progress) -> Result<Source> {
        let shown = upload.content.name();
        let (file, size, sha256, own_mode) = match &upload.content {
            Content::File(path) => {
                let failed = |error: std::io::Error| unreadable(&shown, &reason(&error));
                // A pipe without a writer must not be waited for.
                let flags = OFlags::NONBLOCK.bits() as i32;
                let mut file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
                let metadata = file.metadata().map_err(failed)?;
                if metadata.is_dir() {
                    return Err(unreadable(&shown, "it is a folder")
                        .with_hint("use `mutagen sync create` for a folder, or put an archive of it there"));
                }
                if !metadata.is_file() {
                    return Err(unreadable(&shown, "it is not a regular file")
                        .with_hint("give what is read from it on stdin: `tstunnel upload - HOST:NAME`"));
                }
                progress.reading("reading", Some(metadata.len()));
                let (sha256, size) = sha256(&mut file, &progress).map_err(failed)?;
                (file, size, sha256, metadata.permissions().mode())
            }
            Content::Stdin => {
                progress.reading("reading stdin", None);
                let spooled = spool::spool(std::io::stdin().lock(), &progress)?;
                (spooled.file, spooled.size, spooled.sha256, STDIN_MODE)
            }
        };
        let name = match &upload.name {
            Some(name) => name.clone(),
            None => own_name(&upload.content)?,
        };
        Ok(Source {
            size,
            sha256,
            there: name,
            mode: upload.mode.unwrap_or(own_mode) & 0o777,
            compress: upload.compress,
            file,
            name: shown,
            progress,
        })
    }

    fn request(&self, method: &str, dialler: &Dialler) -> Request {
        let host = dialler.host();
        let target = format!("{}/copy/{}", host.upgrade_base, percent_encode(&self.there));
        let digest = BASE64.encode(self.sha256);
        let request = Request::new(method, &target, &host.server_name)
            .field(HEADER_UNENCODED_DIGEST, format_args!("sha-256=:{digest}:"));
        match &host.user {
            Some(user) => request.field(HEADER_USER, user),
            None => request,
        }
    }

    /// Asks on a connection of its own how much of the file the server holds, and dials for the rest.
    async fn carry_on(&self, dialler: &Dialler) -> Result<(Connection, u64)> {
        let mut connection = dialler.dial().await?;
        connection.send(&self.request("HEAD", dialler).field("Connection", "close").into_bytes()).await?;
        let response = connection.answer().await?;
        if !(200..300).contains(&response.status) {
            return Err(connection.refusal(&response).await);
        }
        let offset = response.number(HEADER_UPLOAD_OFFSET);
        Ok((dialler.dial().await?, offset.unwrap_or(0).min(self.size)))
    }

    async fn send(&self, mut connection: Connection, dialler: &Dialler, offset: u64, standing: &Standing) -> Attempt {
        match self.try_send(&mut connection, dialler, offset, standing).await {
            Ok((response, was_sent)) if matches!(response.status, 200 | 201) => {
                let endpoint = &dialler.host().endpoint.host;
                match self.check_stored(&response, &connection.body(&response).await, endpoint) {
                    Ok(()) => Attempt::Stored { was_sent },
                    Err(error) => Attempt::Refused(error),
                }
            }
            Ok((response, _)) => Attempt::Refused(connection.refusal(&response).await),
            Err(error) => Attempt::Failed(error),
        }
    }

    /// Refuses the good news of another kind of server, and of one that stored another content.
    fn check_stored(&self, response: &Response, body: &[u8], endpoint: &str) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Stored {
            sha256: String,
        }
        if response.field("content-type").is_some_and(|kind| kind.starts_with("text/html")) {
            let text = format!("{endpoint} answered the upload with a web page ({})", response.status);
            return Err(Error::new(Code::NotTstunnel, text));
        }
        // A server that names no digest is older than this client, and taken at its word.
        let Ok(stored) = serde_json::from_slice::<Stored>(body) else { return Ok(()) };
        let ours: String = self.sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if stored.sha256.eq_ignore_ascii_case(&ours) {
            return Ok(());
        }
        let text = format!("{endpoint} says that it stored another content than {}", self.name);
        Err(Error::new(Code::Protocol, text))
    }

    /// The server's answer, and whether it wanted anything of the body.
    async fn try_send(
        &self,
        connection: &mut Connection,
        dialler: &Dialler,
        offset: u64,
        standing: &Standing,
    ) -> Result<(Response, bool)> {
        let mut body = self.body(offset)?;
        let name = self.name.rsplit('/').next().unwrap_or_default();
        self.progress.sending(name, self.size, offset);
        standing.sent(offset);
        let mut request = self
            .request("POST", dialler)
            .field("Content-Length", body.length)
            .field(HEADER_MODE, format_args!("{:04o}", self.mode))
            .field("Expect", "100-continue");
        if body.encoded.is_some() {
            request = request.field("Content-Encoding", "zstd");
        }
        if offset > 0 {
            request = request.field(HEADER_UPLOAD_OFFSET, offset);
        }
        connection.send(&request.into_bytes()).await?;
        match tokio::time::timeout(CONTINUE_WAIT, connection.answer()).await {
            Ok(Ok(response)) if response.status != 100 => return Ok((response, false)),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) | Err(_) => {}
        }
        while let Some(chunk) = body.next(&self.name)? {
            if let Err(error) = connection.send(&chunk).await {
                // A refusal in the middle of the body says more than the reset behind it.
                return connection.answer_sent_before(error).await.map(|response| (response, true));
            }
            let sent = offset + body.sent_of(self.size - offset);
            self.progress.at(sent);
            standing.sent(sent);
        }
        connection.answer_to_body(time_to_store(self.size)).await.map(|response| (response, true))
    }

    /// What is sent from `offset` on, compressed where that is wanted and fits into memory.
    fn body(&self, offset: u64) -> Result<Body> {
        let unreadable = |error: std::io::Error| unreadable(&self.name, &reason(&error));
        let mut file = self.file.try_clone().map_err(unreadable)?;
        file.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        let length = self.size - offset;
        if !self.compress || length > COMPRESS_BELOW_BYTES {
            return Ok(Body { encoded: None, file, length, left: length });
        }
        let encoded =
            zstd::encode_all(file.try_clone().map_err(unreadable)?.take(length), ZSTD_LEVEL).map_err(unreadable)?;
        let length = encoded.len() as u64;
        Ok(Body { encoded: Some(encoded), file, length, left: length })
    }
}

/// A request's body, chunk by chunk.
struct Body {
    encoded: Option<Vec<u8>>,
    file: File,
    length: u64,
    left: u64,
}

impl Body {
    /// How much of `size` bytes has been sent, which the body holds in more or less than that many.
    fn sent_of(&self, size: u64) -> u64 {
        let sent = u128::from(self.length - self.left) * u128::from(size);
        u64::try_from(sent.checked_div(self.length.into()).unwrap_or(0)).unwrap_or(size)
    }

    fn next(&mut self, name: &str) -> Result<Option<Vec<u8>>> {
        let count = self.left.min(CHUNK_BYTES as u64);
        if count == 0 {
            return Ok(None);
        }
        let start = (self.length - self.left) as usize;
        self.left -= count;
        match &self.encoded {
            Some(encoded) => Ok(Some(encoded[start..start + count as usize].to_vec())),
            None => {
                let mut chunk = vec![0; count as usize];
                self.file.read_exact(&mut chunk).map_err(|error| {
                    let text = format!("{name} changed while it was sent: {error}");
                    Error::new(Code::Usage, text).with_hint("send it again once nothing writes to it")
                })?;
                Ok(Some(chunk))
            }
        }
    }
}

fn unreadable(what: &str, why: &str) -> Error {
    Error::new(Code::Usage, format!("cannot read {what}: {why}")).with_hint("check the file's name and permissions")
}

fn own_name(content: &Content) -> Result<String> {
    let name = match content {
        Content::File(path) => path.file_name().and_then(|name| name.to_str()),
        Content::Stdin => None,
    };
    name.map(str::to_owned).ok_or_else(|| {
        Error::new(Code::Usage, format!("{} has no name that can be sent", content.name()))
            .with_hint("give the name that it shall have, as HOST:NAME")
    })
}

/// The digest of all that there is by now, and how much that is: the system may say less, of a file that grows or of one in /proc.
fn sha256(file: &mut File, progress: &Progress) -> std::io::Result<(digest::Digest, u64)> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut position = 0;
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((context.finish(), position)),
            count => {
                context.update(chunk.get(..count).unwrap_or_default());
                position += count as u64;
                progress.at(position);
            }
        }
    }
}

//! This process's own standard streams as asynchronous streams: without blocking the runtime, and without leaving a
//! flag on a descriptor that others share.
//!
//! `O_NONBLOCK` belongs to the open file, not to the descriptor: setting it on an inherited stdin changes it for the
//! shell too. So a pipe or a terminal is opened once more through `/proc/self/fd`, which gives an open file of our own;
//! a socket is used with `MSG_DONTWAIT`; a regular file or a device that epoll refuses never waits for long and is used
//! as it is. What cannot be opened again is pumped by a thread.

use std::fs::File;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, OFlags};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::{Code, Error, Result, reason};
use crate::protocol::frame::FRAME_BYTES;

/// Bytes that a pipe of ours or of a child holds, where the system allows it: a quarter of what an account may ask for.
pub const PIPE_BYTES: usize = 2 * FRAME_BYTES;
/// What a process gets whose stdout nobody reads any more: 128 and the number of SIGPIPE.
pub const STATUS_PIPE: u8 = 141;
/// How long a process stays for its last words to be read, and how often it looks.
const STAY: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

/// A readable or writable descriptor of any kind.
pub enum Stdio {
    /// Our own open file, non-blocking.
    Pollable(AsyncFd<OwnedFd>),
    /// A socket that others share.
    Socket(AsyncFd<OwnedFd>),
    /// Never waits for long: a regular file, `/dev/null`.
    Ready(OwnedFd),
    /// Pumped by a thread.
    Thread(tokio::net::UnixStream),
}

impl std::fmt::Debug for Stdio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stdio::Pollable(_) => "Pollable",
            Stdio::Socket(_) => "Socket",
            Stdio::Ready(_) => "Ready",
            Stdio::Thread(_) => "Thread",
        })
    }
}

/// Standard output. Its shutdown closes descriptor 1 too, so that a reader sees the end.
#[derive(Debug)]
pub struct Stdout(Stdio);

/// The standard streams.
#[derive(Debug)]
pub struct Streams {
    /// Descriptor 0.
    pub stdin: Stdio,
    /// Descriptor 1.
    pub stdout: Stdout,
    /// Descriptor 2.
    pub stderr: Stdio,
}

/// Takes over the process's stdin, stdout and stderr. Their descriptors stay open beside these streams: whoever reads
/// this process's stdout takes its end for the end of everything, so it may end only with the process, after the last
/// message on stderr, or with [`Stdout`]'s shutdown.
///
/// # Errors
/// Those of the system calls, where a descriptor is closed or cannot be used.
pub fn take() -> io::Result<Streams> {
    let stdin = open(io::stdin().as_fd().try_clone_to_owned()?, Direction::Read)?;
    let stdout = open(io::stdout().as_fd().try_clone_to_owned()?, Direction::Write)?;
    let stderr = open(io::stderr().as_fd().try_clone_to_owned()?, Direction::Write)?;
    Ok(Streams { stdin, stdout: Stdout(stdout), stderr })
}

/// Blocks until what is in the pipe that is stderr has been read, but not for longer than a second. Mutagen closes its end of it
/// as soon as the process has ended, whether it has read everything or not (os/exec: `Wait` beside `StderrPipe`), and what it does
/// next depends on those words.
pub fn stay_until_read() {
    let stderr = io::stderr();
    // What a terminal answers is how much of its input waits.
    if !rustix::fs::fstat(&stderr).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo) {
        return;
    }
    let until = Instant::now() + STAY;
    while rustix::io::ioctl_fionread(&stderr).is_ok_and(|unread| unread > 0) && Instant::now() < until {
        std::thread::sleep(LOOK);
    }
}

/// The exit status of what has written all that it has to say: `status`, or what [`untaken`] gives.
///
/// # Errors
/// Those of [`untaken`].
pub fn ended(written: io::Result<()>, status: u8) -> Result<u8> {
    written.map_or_else(untaken, |()| Ok(status))
}

/// The exit status where stdout takes no more: [`STATUS_PIPE`] where nobody reads any more, which is no failure.
///
/// # Errors
/// `storage` where it cannot be written for another reason.
pub fn untaken(error: io::Error) -> Result<u8> {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(STATUS_PIPE),
        _ => Err(Error::new(Code::Storage, format!("stdout cannot be written: {}", reason(&error)))
            .with_hint("free space where it goes, or let it go elsewhere")),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

fn open(fd: OwnedFd, direction: Direction) -> io::Result<Stdio> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    match kind {
        FileType::Socket => Ok(Stdio::Socket(register(fd)?)),
        FileType::Fifo | FileType::CharacterDevice => {
            let Ok(own) = reopen(&fd, direction) else { return pump(fd, direction) };
            if kind == FileType::Fifo {
                let _ = rustix::pipe::fcntl_setpipe_size(&own, PIPE_BYTES);
            }
            // epoll refuses devices that are always ready, such as /dev/null.
            match register(own) {
                Ok(own) => Ok(Stdio::Pollable(own)),
                Err(_) => Ok(Stdio::Ready(fd)),
            }
        }
        _ => Ok(Stdio::Ready(fd)),
    }
}

#[expect(deprecated, reason = "its successor is an unsafe function; an `OwnedFd` keeps what that one asks for")]
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

fn reopen(fd: &OwnedFd, direction: Direction) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::options()
        .read(direction == Direction::Read)
        .write(direction == Direction::Write)
        .custom_flags(flags.bits() as i32)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(file.into())
}

/// Moves bytes between a descriptor that must block and a socket pair, in a thread that ends with either side.
fn pump(fd: OwnedFd, direction: Direction) -> io::Result<Stdio> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let mut file = Waiting(File::from(fd));
    std::thread::Builder::new().name("stdio".to_owned()).spawn(move || {
        let mut theirs = theirs;
        let result = match direction {
            Direction::Read => io::copy(&mut BufReader::with_capacity(FRAME_BYTES, file), &mut theirs),
            Direction::Write => io::copy(&mut BufReader::with_capacity(FRAME_BYTES, theirs), &mut file),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "standard stream ended");
        }
    })?;
    ours.set_nonblocking(true)?;
    Ok(Stdio::Thread(tokio::net::UnixStream::from_std(ours)?))
}

/// A file that is waited for also where somebody who shares it has made it non-blocking.
struct Waiting(File);

impl Waiting {
    fn until(&self, ready: PollFlags) -> io::Result<()> {
        rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&self.0, ready)], None))?;
        Ok(())
    }
}

impl Read for Waiting {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.until(PollFlags::IN)?,
                result => return result,
            }
        }
    }
}

impl Write for Waiting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.until(PollFlags::OUT)?,
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn poll_ready_io<T>(
    fd: &AsyncFd<OwnedFd>,
    cx: &mut Context<'_>,
    direction: Direction,
    mut operation: impl FnMut(&OwnedFd) -> rustix::io::Result<T>,
) -> Poll<io::Result<T>> {
    loop {
        let mut guard = match direction {
            Direction::Read => ready!(fd.poll_read_ready(cx))?,
            Direction::Write => ready!(fd.poll_write_ready(cx))?,
        };
        match guard.try_io(|fd| operation(fd.get_ref()).map_err(io::Error::from)) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(result) => return Poll::Ready(result),
            Err(_would_block) => continue,
        }
    }
}

impl AsyncRead for Stdio {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = match &mut *self {
            Stdio::Pollable(fd) => {
                let space = buf.initialize_unfilled();
                ready!(poll_ready_io(fd, cx, Direction::Read, |fd| rustix::io::read(fd, &mut *space)))?
            }
            Stdio::Socket(fd) => {
                let space = buf.initialize_unfilled();
                ready!(poll_ready_io(fd, cx, Direction::Read, |fd| {
                    rustix::net::recv(fd, &mut *space, RecvFlags::DONTWAIT).map(|(count, _)| count)
                }))?
            }
            Stdio::Ready(fd) => rustix::io::retry_on_intr(|| rustix::io::read(&*fd, buf.initialize_unfilled()))?,
            Stdio::Thread(stream) => return Pin::new(stream).poll_read(cx, buf),
        };
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stdio::Pollable(fd) => poll_ready_io(fd, cx, Direction::Write, |fd| rustix::io::write(fd, bytes)),
            Stdio::Socket(fd) => poll_ready_io(fd, cx, Direction::Write, |fd| {
                rustix::net::send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }),
            Stdio::Ready(fd) => {
                Poll::Ready(rustix::io::retry_on_intr(|| rustix::io::write(&*fd, bytes)).map_err(io::Error::from))
            }
            Stdio::Thread(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        self.poll_write(cx, first)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends this side's direction of a socket; of anything else, dropping the stream does.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stdio::Socket(fd) => {
                let _ = rustix::net::shutdown(fd.get_ref(), rustix::net::Shutdown::Write);
                Poll::Ready(Ok(()))
            }
            Stdio::Thread(stream) => {
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                // The thread closes its end once everything is written.
                let mut byte = [0];
                Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut byte))
            }
            Stdio::Pollable(_) | Stdio::Ready(_) => Poll::Ready(Ok(())),
        }
    }
}

/// A count of bytes that somebody else can see. What is counted in a part is counted in the whole, too.
#[derive(Debug, Default)]
pub struct Tally {
    bytes: AtomicU64,
    whole: Option<Arc<Tally>>,
}

impl Tally {
    /// Nothing yet, as a part of `whole`.
    pub fn within(whole: &Arc<Tally>) -> Tally {
        Tally { bytes: AtomicU64::new(0), whole: Some(Arc::clone(whole)) }
    }

    /// Counts `bytes` more.
    pub fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.add(bytes);
        }
    }

    /// How many there were so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub struct Counted<T> {
    stream: T,
    tally: Arc<Tally>,
}

impl<T> Counted<T> {
    /// Counts the bytes of `stream` from now on.
    pub fn new(stream: T, tally: &Arc<Tally>) -> Counted<T> {
        Counted { stream, tally: Arc::clone(tally) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.tally.add(buf.filled().len() - before);
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = &result {
            self.tally.add(*count);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncWrite for Stdout {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_shutdown(cx))?;
        rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// As of a pipe of another account's, which cannot be opened again.
    #[tokio::test]
    async fn what_is_pumped_is_whole_where_somebody_has_made_it_non_blocking() {
        let (mut to_it, from_it) = tokio::net::unix::pipe::pipe().unwrap();
        let mut stdin = pump(from_it.into_nonblocking_fd().unwrap(), Direction::Read).unwrap();
        let (write, mut from_us) = tokio::net::unix::pipe::pipe().unwrap();
        let mut stdout = pump(write.into_nonblocking_fd().unwrap(), Direction::Write).unwrap();
        let bytes = vec![b'x'; 1 << 20];
        let (mut read, mut written) = (Vec::new(), Vec::new());
        let feed = async {
            for piece in bytes.chunks(100_000) {
                to_it.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(to_it);
        };
        let give = async {
            stdout.write_all(&bytes).await.unwrap();
            stdout.shutdown().await.unwrap();
        };
        let (_, taken, (), got) =
            tokio::join!(feed, stdin.read_to_end(&mut read), give, from_us.read_to_end(&mut written));
        assert_eq!((taken.unwrap(), got.unwrap()), (bytes.len(), bytes.len()));
        assert!(read == bytes && written == bytes);
    }
}

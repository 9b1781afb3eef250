//! What is logged → stderr. Whoever reads that may be late, or stuck: he is waited for once, for a moment, and what nobody takes then is
//! lost, counted, and said to be, so that nothing else ever stands still for its log.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::level_filters::LevelFilter;

/// How long a line waits to be taken. After one that was not, none does until something is.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a pipe takes at once when it takes anything (pipe(7), `PIPE_BUF`).
const PIECE_BYTES: usize = 4096;

/// How many lines were lost since the last that was written.
static LOST: Mutex<u64> = Mutex::new(0);

/// Logs to stderr from `level` on. What is set up first stays.
pub fn set_up(level: LevelFilter) {
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(|| Log).with_ansi(false);
    // By itself this panics where stderr cannot be written.
    let _ = log.log_internal_errors(false).try_init();
}

/// Writes a line to stderr.
///
/// # Errors
/// Those of write(2), and `TimedOut` where nobody takes it.
pub fn write(line: &str) -> io::Result<()> {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    // The last one may have been written in part.
    let (text, patience) = match *lost {
        0 => (line.to_owned(), PATIENCE),
        lost => (format!("\n{lost} lines of the log were lost: stderr could not be written\n{line}"), Duration::ZERO),
    };
    let mut stderr = io::stderr().lock();
    let end = Instant::now() + patience;
    let written = text.as_bytes().chunks(PIECE_BYTES).try_for_each(|piece| {
        wait(&stderr, end.saturating_duration_since(Instant::now()))?;
        stderr.write_all(piece)
    });
    *lost = if written.is_ok() { 0 } else { *lost + 1 };
    written
}

/// Waits until stderr takes something.
fn wait(stderr: &io::StderrLock<'_>, patience: Duration) -> io::Result<()> {
    let patience = Timespec::try_from(patience).ok();
    let mut polled = [PollFd::new(stderr, PollFlags::OUT)];
    match rustix::io::retry_on_intr(|| poll(&mut polled, patience.as_ref()))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// What the log's lines are written to, each at once.
struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write(&String::from_utf8_lossy(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

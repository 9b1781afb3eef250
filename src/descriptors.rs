//! Whether this process may open as many files as it is going to. What comes short of one later fails in the words of whatever it
//! was for, and the runtime panics.

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, getrlimit};

use crate::error::{Code, Error, Result};

/// What a client opens: twelve for a session, and a few to go on after an interruption. A server needs more, and says so itself
/// once it has these.
const NEEDED: usize = 16;
/// A limit from which on there are enough, whatever was inherited: to try costs two system calls each.
const AMPLE: u64 = 256;

/// Makes sure that there are enough, before anything is started.
///
/// # Errors
/// `config` where there are not.
pub fn ensure() -> Result<()> {
    let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < AMPLE) else { return Ok(()) };
    let opened: Result<Vec<_>, Errno> = (0..NEEDED).map(|_| fcntl_dupfd_cloexec(std::io::stderr(), 0)).collect();
    match opened {
        Err(Errno::MFILE) => Err(Error::new(
            Code::Config,
            format!("a limit of {limit} open files leaves too few: it takes {NEEDED} more"),
        )
        .with_hint("raise the limit of open files: `ulimit -n`")),
        _ => Ok(()),
    }
}

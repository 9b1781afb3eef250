//! What a child does between fork(2) and execve(2): all of the server's unsafe code, and nothing beside that in it.
//!
//! The child leads a session and a process group of its own, has no signal ignored or blocked, no descriptor but its standard
//! streams, no resource limit of the server's own, no umask but 022; it becomes the account for good, then enters its home,
//! with that account's rights; and it ends when the server does, however that ends.
//!
//! # Safety
//! Between fork(2) and execve(2) in a process with threads only what is async-signal-safe (signal-safety(7)) may be called: no
//! allocation, no lock. The closure below makes system calls alone, by rustix (which makes them itself, without the C
//! library) and a few by libc, over memory that was prepared before the fork. A panic cannot happen in it.

#![expect(unsafe_code, reason = "pre_exec and what it calls")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, Uid};

use crate::server::account::Login;

/// The permissions that a new file does not get.
const UMASK: u32 = 0o022;
/// Lowest descriptor that is not a standard stream.
const FIRST_DESCRIPTOR: u32 = 3;
/// Highest signal number of Linux (signal(7)).
const LAST_SIGNAL: i32 = 64;

/// The error by which a child says that it could not enter its home: no step before execve(2), nor that itself, fails
/// like this.
pub const NO_HOME: Errno = Errno::NOLINK;
/// The same for becoming the account.
pub const NOT_BECOME: Errno = Errno::NONET;

/// What a child becomes.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Its account.
    pub login: &'a Login,
    /// Where it starts.
    pub folder: &'a Path,
    /// Its limit of open descriptors: what the server itself was given.
    pub descriptors: Rlimit,
    /// What it runs.
    pub program: Program<'a>,
    /// Its arguments, the name first.
    pub arguments: &'a [String],
    /// The whole of its environment.
    pub environment: &'a [(String, String)],
}

/// What a child runs.
#[derive(Debug)]
pub enum Program<'a> {
    /// The first of these files that can be executed.
    OneOf(Vec<PathBuf>),
    /// An open file, whatever its name leads to by now.
    File {
        /// The file.
        file: &'a OwnedFd,
        /// Whether it stays open: the interpreter of a script reads it.
        is_kept: bool,
    },
}

/// A command whose child becomes what `setup` says; its standard streams are the caller's to set.
///
/// The thread that then starts it must live as long as the server: the child ends with that thread (prctl(2),
/// `PR_SET_PDEATHSIG`), so it has to be one of the runtime's workers, and none of its blocking pool.
///
/// # Errors
/// Where a text has a NUL in it.
pub fn command(setup: &Setup<'_>) -> io::Result<Command> {
    use std::os::unix::process::CommandExt;

    let folder = CString::new(setup.folder.as_os_str().as_bytes())?;
    let identity = setup.login.identity.clone();
    let descriptors = setup.descriptors;
    let image = Image::new(setup)?;
    let kept = match &setup.program {
        Program::File { file, is_kept: true } => Some(file.as_raw_fd()),
        _ => None,
    };
    let server = rustix::process::getpid();
    let child = move || -> io::Result<()> {
        rustix::process::setsid()?;
        reset_signals();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
        rustix::process::setrlimit(Resource::Nofile, descriptors)?;
        if let Some(identity) = &identity {
            let become_account = || -> rustix::io::Result<()> {
                rustix::thread::set_thread_groups(&identity.groups)?;
                rustix::thread::set_thread_res_gid(identity.gid, identity.gid, identity.gid)?;
                rustix::thread::set_thread_res_uid(identity.uid, identity.uid, identity.uid)
            };
            // There must be no way back.
            if become_account().is_err() || rustix::thread::set_thread_uid(Uid::ROOT).is_ok() {
                return Err(NOT_BECOME.into());
            }
        }
        // Whatever changes the user id takes this back, so it comes after that; and the server may be gone by now.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(server) {
            return Err(Errno::SRCH.into());
        }
        rustix::process::chdir(&*folder).map_err(|_| NO_HOME)?;
        close_on_exec(kept)?;
        Err(image.execute())
    };
    // Its name is never used: the child executes the image itself.
    let mut command = Command::new("/");
    // SAFETY: the closure does only what is async-signal-safe; see the module's page.
    unsafe { command.pre_exec(child) };
    Ok(command)
}

/// A program, its arguments and its environment as execve(2) takes them, made before the fork.
///
/// The standard library would execute by execvp(3), which hands a file that is no program to a shell.
struct Image {
    paths: Vec<CString>,
    file: Option<RawFd>,
    _arguments: Vec<CString>,
    _environment: Vec<CString>,
    /// Pointers to the two above and a null behind them, which live as long as they.
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

// SAFETY: the pointers lead into memory that the same value owns and never changes.
unsafe impl Send for Image {}
// SAFETY: the same.
unsafe impl Sync for Image {}

impl Image {
    fn new(setup: &Setup<'_>) -> io::Result<Image> {
        let arguments =
            setup.arguments.iter().map(|word| CString::new(word.as_str())).collect::<Result<Vec<_>, _>>()?;
        let environment = setup
            .environment
            .iter()
            .map(|(name, value)| CString::new(format!("{name}={value}")))
            .collect::<Result<Vec<_>, _>>()?;
        let (paths, file) = match &setup.program {
            Program::OneOf(paths) => {
                let paths = paths.iter().map(|path| CString::new(path.as_os_str().as_bytes()));
                (paths.collect::<Result<Vec<_>, _>>()?, None)
            }
            Program::File { file, .. } => (Vec::new(), Some(file.as_raw_fd())),
        };
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        let (argv, envp) = (pointers(&arguments), pointers(&environment));
        Ok(Image { paths, file, _arguments: arguments, _environment: environment, argv, envp })
    }

    /// Returns only where nothing could be executed, with the most telling reason: as execvp(3) does, a file that is there and
    /// may not be executed counts more than one that is not there.
    fn execute(&self) -> io::Error {
        let mut reason = Errno::NOENT;
        if let Some(file) = self.file {
            // SAFETY: both lists end in a null and outlive the call, and the path is a constant.
            unsafe {
                libc::syscall(
                    libc::SYS_execveat,
                    file,
                    c"".as_ptr(),
                    self.argv.as_ptr(),
                    self.envp.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
            }
            return io::Error::last_os_error();
        }
        for path in &self.paths {
            // SAFETY: both lists end in a null and outlive the call, as the path does.
            unsafe { libc::execve(path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
            let error = io::Error::last_os_error();
            match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR) => {}
                Some(Errno::ACCESS) => reason = Errno::ACCESS,
                _ => return error,
            }
        }
        reason.into()
    }
}

/// Gives every signal its default back: one that is ignored would stay so behind execve(2).
fn reset_signals() {
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: signal(2) is async-signal-safe, SIG_DFL is no handler, and a number that cannot be set is refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Has every descriptor but the standard streams and `kept` close behind execve(2). Those of the server's own do by themselves:
/// this is for what the server was started with.
fn close_on_exec(kept: Option<RawFd>) -> io::Result<()> {
    // SAFETY: no pointer is passed. Nothing is closed here: the standard library still needs a descriptor of its own.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST_DESCRIPTOR, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if let Some(kept) = kept {
        // SAFETY: no pointer is passed; a descriptor that is not open is refused.
        let result = unsafe { libc::fcntl(kept, libc::F_SETFD, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

//! What a child does between clone(2) and execve(2): unsafe code, and nothing beside that.
//!
//! The child leads a session and a process group of its own, has no signal ignored or blocked, no descriptor but its standard
//! streams, no resource limit of the server's own, no umask but 022; it becomes the account for good, then enters its home,
//! with that account's rights; and it ends when the server does, however that ends.
//!
//! Until it executes its program the child shares the server's memory and the calling thread waits (`CLONE_VM`,
//! `CLONE_VFORK`): nothing of that memory is copied, so that a start takes as long in a server of a gigabyte as in a new one.
//!
//! # Safety
//! In a child of a process with threads only what is async-signal-safe (signal-safety(7)) may be called: no allocation, no
//! lock. `Child::become_program` makes system calls alone, by rustix (which makes them itself, without the C library) and
//! a few by libc, over memory that was prepared before. As it shares that memory, it runs on a stack of its own, writes
//! nowhere but there, to its failure and to `errno`, which is the waiting thread's and of no use to it then; and it has every
//! signal blocked until no handler of the server's can run in it. What it becomes is its own: neither user id nor
//! descriptors are shared. No process of the account that it becomes can look into that memory: the kernel makes it
//! undumpable with the change of the user id (credentials(7), ptrace(2)). Where `fs.suid_dumpable` (proc_sys_fs(5)) is 2, root may look,
//! and a signal could have it dumped, so those that do end the child instead. A panic cannot happen in it.

#![expect(unsafe_code, reason = "clone(2) and what the child calls")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, Uid, WaitId, WaitIdOptions};

use crate::server::account::Login;

/// The permissions that a new file does not get.
const UMASK: u32 = 0o022;
/// Lowest descriptor that is not a standard stream.
const FIRST_DESCRIPTOR: u32 = 3;
/// Highest signal number of Linux (signal(7)).
const LAST_SIGNAL: i32 = 64;
/// Those that by default have a process's memory dumped.
const DUMPING: [c_int; 10] = [
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGSYS,
];

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
    OneOf(&'a [PathBuf]),
    /// An open file, whatever its name leads to by now.
    File {
        /// The file.
        file: &'a OwnedFd,
        /// Whether it stays open: the interpreter of a script reads it.
        is_kept: bool,
    },
}

/// Starts a child that becomes what `setup` says, with `streams` as its stdin, stdout and stderr. Returns once it executes its
/// program: its id, and a descriptor that stands for it (pidfd_open(2)) and is to be waited for.
///
/// Blocks for as long as the account's file system makes it (see [`in_place`](super::child::in_place)). The calling thread must live
/// as long as the server, as those of its runtime do: the child ends with that thread (prctl(2), `PR_SET_PDEATHSIG`).
///
/// # Errors
/// Where a text has a NUL in it, those of clone(2) and execve(2), [`NO_HOME`] and [`NOT_BECOME`].
pub fn spawn(setup: &Setup<'_>, streams: [BorrowedFd<'_>; 3]) -> io::Result<(Pid, OwnedFd)> {
    static KEEPS_STATUSES: Once = Once::new();
    KEEPS_STATUSES.call_once(keep_statuses);
    let child = Child {
        setup,
        streams,
        folder: CString::new(setup.folder.as_os_str().as_bytes())?,
        image: Image::new(setup)?,
        server: rustix::process::getpid(),
        failure: AtomicI32::new(0),
    };
    let stack = Stack::new()?;
    let mut descriptor: RawFd = -1;
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: the function and what it is given live until the child has executed its program or ended, which is awaited
    // here; the stack is the child's alone, and grows downwards from its end on every machine of Linux's but one that Rust does
    // not know; the last argument is where `CLONE_PIDFD` puts its descriptor. See the module's page for what runs in the child.
    let id = unsafe {
        libc::clone(
            run,
            stack.end(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD,
            ptr::from_ref(&child).cast_mut().cast(),
            &raw mut descriptor,
        )
    };
    let cloned = Pid::from_raw(id.max(0)).ok_or_else(io::Error::last_os_error);
    before.thread_set_mask()?;
    let id = cloned?;
    // SAFETY: the kernel has just opened it, for this process alone.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    match child.failure.into_inner() {
        0 => Ok((id, descriptor)),
        failure => {
            let _ = rustix::process::waitid(WaitId::PidFd(descriptor.as_fd()), WaitIdOptions::EXITED);
            Err(io::Error::from_raw_os_error(failure))
        }
    }
}

/// Has children wait to be waited for: whoever started the server may have had their ends ignored (wait(2)).
fn keep_statuses() {
    // SAFETY: all of its fields may be zeros; no handler is set, and none is taken away.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGCHLD, ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        }
    }
}

/// What a child needs, made before there is one.
struct Child<'a> {
    setup: &'a Setup<'a>,
    streams: [BorrowedFd<'a>; 3],
    folder: CString,
    image: Image,
    server: Pid,
    /// Why it is ending without having executed anything, as an error's number, or 0.
    failure: AtomicI32,
}

/// The child, from its first instruction on.
extern "C" fn run(child: *mut c_void) -> c_int {
    // SAFETY: it is what `spawn` has passed, and lives as long as that waits.
    let child = unsafe { &*child.cast::<Child<'_>>() };
    let Err(failure) = child.become_program();
    child.failure.store(failure.raw_os_error(), Ordering::Relaxed);
    1
}

impl Child<'_> {
    /// Returns only where that is not possible.
    fn become_program(&self) -> Result<std::convert::Infallible, Errno> {
        let Child { setup, streams: [stdin, stdout, stderr], .. } = self;
        reset_signals()?;
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        rustix::process::setsid()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
        rustix::process::setrlimit(Resource::Nofile, setup.descriptors)?;
        if let Some(identity) = &setup.login.identity {
            own_keyring()?;
            let become_account = || -> rustix::io::Result<()> {
                rustix::thread::set_thread_groups(&identity.groups)?;
                rustix::thread::set_thread_res_gid(identity.gid, identity.gid, identity.gid)?;
                rustix::thread::set_thread_res_uid(identity.uid, identity.uid, identity.uid)
            };
            // There must be no way back.
            if become_account().is_err() || rustix::thread::set_thread_uid(Uid::ROOT).is_ok() {
                return Err(NOT_BECOME);
            }
        }
        // Whatever changes the user id takes this back, so it comes after that; and the server may be gone by now.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(self.server) {
            return Err(Errno::SRCH);
        }
        rustix::process::chdir(&*self.folder).map_err(|_| NO_HOME)?;
        let kept = match &setup.program {
            Program::File { file, is_kept: true } => Some(file.as_raw_fd()),
            _ => None,
        };
        close_on_exec(kept)?;
        Err(self.image.execute())
    }
}

/// A child's stack, with a page below it that cannot be written to.
struct Stack {
    start: *mut c_void,
}

impl Stack {
    /// Far more than system calls need.
    const BYTES: usize = 64 << 10;
    /// The largest page of any machine.
    const GUARD_BYTES: usize = 64 << 10;

    fn new() -> rustix::io::Result<Stack> {
        let (guard, flags) = (Stack::GUARD_BYTES, MapFlags::PRIVATE | MapFlags::STACK);
        // SAFETY: it is a mapping of its own, wherever the kernel has room for it.
        let start =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), guard + Stack::BYTES, ProtFlags::empty(), flags) }?;
        let stack = Stack { start };
        // SAFETY: it is within that mapping, which nobody uses yet.
        unsafe {
            rustix::mm::mprotect(start.byte_add(guard), Stack::BYTES, MprotectFlags::READ | MprotectFlags::WRITE)?;
        }
        Ok(stack)
    }

    fn end(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.start.byte_add(Stack::GUARD_BYTES + Stack::BYTES) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the child that ran on it has memory of its own by now, or is gone.
        let _ = unsafe { rustix::mm::munmap(self.start, Stack::GUARD_BYTES + Stack::BYTES) };
    }
}

/// A program, its arguments and its environment as execve(2) takes them.
///
/// The standard library would execute by execvp(3), which hands a file that is no program to a shell.
struct Image {
    paths: Vec<CString>,
    file: Option<RawFd>,
    _arguments: Vec<CString>,
    _environment: Vec<CString>,
    /// Pointers to the two above and a null behind them, which live as long as they.
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
}

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
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        let (argv, envp) = (pointers(&arguments), pointers(&environment));
        Ok(Image { paths, file, _arguments: arguments, _environment: environment, argv, envp })
    }

    /// Returns only where nothing could be executed, with the most telling reason: as execvp(3) does, a file that is there and
    /// may not be executed counts more than one that is not there.
    fn execute(&self) -> Errno {
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
            return last_error();
        }
        for path in &self.paths {
            // SAFETY: both lists end in a null and outlive the call, as the path does.
            unsafe { libc::execve(path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
            match last_error() {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => reason = Errno::ACCESS,
                error => return error,
            }
        }
        reason
    }
}

/// Joins a new session keyring: an account finds neither the server's keys nor another session's (session-keyring(7)). It is root's, so
/// it counts against no account's quota, and whoever is in the session possesses it. A kernel without keyrings has none to share, and
/// who may not use them shares none.
fn own_keyring() -> rustix::io::Result<()> {
    // SAFETY: no pointer is passed but a null for a keyring without a name.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<c_char>()) };
    if result >= 0 {
        return Ok(());
    }
    match last_error() {
        Errno::NOSYS | Errno::PERM => Ok(()),
        error => Err(error),
    }
}

/// The error of the last call of libc's.
fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Gives every signal its default back, one that is ignored too, which would stay so behind execve(2); then blocks none.
fn reset_signals() -> rustix::io::Result<()> {
    extern "C" fn end(_signal: c_int) {
        // SAFETY: _exit(2) is async-signal-safe, and runs nothing of the server's.
        unsafe { libc::_exit(1) }
    }
    for signal in 1..=LAST_SIGNAL {
        // A handler is the child's own, and gone with execve(2).
        let action = if DUMPING.contains(&signal) { end as *const () as libc::sighandler_t } else { libc::SIG_DFL };
        // SAFETY: signal(2) is async-signal-safe, so is the handler, and a number that cannot be set is refused.
        unsafe { libc::signal(signal, action) };
    }
    SigSet::empty().thread_set_mask().map_err(|error| Errno::from_raw_os_error(error as i32))
}

/// Has every descriptor but the standard streams and `kept` close behind execve(2). Those of the server's own do by themselves:
/// this is for what the server was started with.
fn close_on_exec(kept: Option<RawFd>) -> rustix::io::Result<()> {
    // SAFETY: no pointer is passed, and nothing is closed here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST_DESCRIPTOR, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result != 0 {
        return Err(last_error());
    }
    if let Some(kept) = kept {
        // SAFETY: no pointer is passed; a descriptor that is not open is refused.
        let result = unsafe { libc::fcntl(kept, libc::F_SETFD, 0) };
        if result != 0 {
            return Err(last_error());
        }
    }
    Ok(())
}

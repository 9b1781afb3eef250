//! What commands leave behind is given to the first process of its PID namespace (pid_namespaces(7)), which has to wait for it: in a
//! container that may be the server. Whatever nobody waits for stays a zombie, and counts among the processes that there may be.

use rustix::process::{WaitId, WaitIdOptions, getpid};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for what this thread has started or was given, and for nothing else (`__WNOTHREAD`, wait(2)).
const OF_THIS_THREAD: WaitIdOptions = WaitIdOptions::from_bits_retain(libc::__WNOTHREAD as u32);

/// Tells that there may be some of them.
#[derive(Debug)]
pub struct Orphans(Option<Signal>);

impl Orphans {
    /// Those that are this process's to bury; none where it isn't the first.
    pub fn of_process() -> Orphans {
        Orphans(getpid().is_init().then(|| signal(SignalKind::child()).ok()).flatten())
    }

    /// Waits until a process has ended that may be one. Cancel-safe; pending for ever where none can.
    pub async fn ended(&mut self) {
        match &mut self.0 {
            Some(signal) => _ = signal.recv().await,
            None => std::future::pending().await,
        }
    }
}

/// Buries those that have ended. To be called in the process's main thread: the kernel gives orphans to that one, and what other threads
/// have started is theirs to wait for.
pub fn bury() {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | OF_THIS_THREAD;
    while let Ok(Some(_)) = rustix::process::waitid(WaitId::All, options) {}
}

//! What makes a connection doubtful before any silence shows it: an address or a route has changed, or the machine has
//! slept. Linux tells the first by rtnetlink(7), the second by a timer that is cancelled when the clock is set
//! (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`), as it is on waking up.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::stdio::register;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR` and `RTMGRP_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// A time that does not come: the timer is there to be cancelled.
const NEVER: i64 = 1 << 40;

/// Listens for disturbances. What the system does not offer is done without.
#[derive(Debug)]
pub struct Disturbances {
    routes: Option<AsyncFd<OwnedFd>>,
    clock: Option<AsyncFd<OwnedFd>>,
}

impl Disturbances {
    /// Begins to listen.
    pub fn new() -> Disturbances {
        Disturbances { routes: routes().ok(), clock: clock().ok() }
    }

    /// Waits for the next one. Cancel-safe.
    pub async fn next(&mut self) {
        let mut message = [0; 4096];
        tokio::select! {
            () = readable(&self.routes, |fd| recv(fd, &mut message, RecvFlags::DONTWAIT).map(drop)) => {}
            () = readable(&self.clock, |fd| rustix::io::read(fd, &mut [0; 8]).map(drop)) => {
                // A cancelled timer stays so until it is set again.
                if let Some(clock) = &self.clock {
                    let _ = arm(clock.get_ref());
                }
            }
        }
    }
}

impl Default for Disturbances {
    fn default() -> Disturbances {
        Disturbances::new()
    }
}

/// Waits until `fd` has something, and takes all of it. An error is news too, and may be said only once: `ECANCELED` of a clock that was
/// set, `ENOBUFS` of more changes than fit.
async fn readable(fd: &Option<AsyncFd<OwnedFd>>, mut read: impl FnMut(&OwnedFd) -> rustix::io::Result<()>) {
    let Some(fd) = fd else { return std::future::pending().await };
    let mut is_news = false;
    while !is_news {
        let Ok(mut guard) = fd.readable().await else { return std::future::pending().await };
        while let Ok(result) = guard.try_io(|fd| read(fd.get_ref()).map_err(io::Error::from)) {
            is_news = true;
            if result.is_err() {
                break;
            }
        }
    }
}

fn routes() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // No protocol is 0, which is `NETLINK_ROUTE`.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    register(socket)
}

fn clock() -> io::Result<AsyncFd<OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    arm(&timer)?;
    register(timer)
}

fn arm(timer: &OwnedFd) -> rustix::io::Result<Itimerspec> {
    let never = Timespec { tv_sec: NEVER, tv_nsec: 0 };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &once)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use rustix::io::Errno;

    use super::*;

    #[tokio::test]
    async fn an_error_that_is_said_once_is_news() {
        let (readable_end, mut other) = UnixStream::pair().unwrap();
        readable_end.set_nonblocking(true).unwrap();
        other.write_all(b"x").unwrap();
        let fd = Some(register(OwnedFd::from(readable_end)).unwrap());
        // What a timer says that was cancelled.
        let mut said = [Errno::CANCELED].into_iter();
        let waited = readable(&fd, |_| Err(said.next().unwrap_or(Errno::AGAIN)));
        tokio::time::timeout(Duration::from_secs(1), waited).await.expect("the error was passed over");
    }
}

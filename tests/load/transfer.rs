//! Sessions that carry bytes all the time, and how many they have carried.

use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::wait::let_pass;
use crate::support_net::site::Site;

/// What one read takes: enough that this side is not what is measured.
const BLOCK_BYTES: usize = 256 << 10;
/// How often a paced transfer sends, and how much: 4 MiB a second.
const PACE: (Duration, usize) = (Duration::from_millis(20), 4 * (1 << 20) / 50);

/// A session whose output is counted.
pub(crate) struct Transfer {
    client: Child,
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Transfer {
    /// As fast as this machine can.
    pub(crate) fn saturating(site: &Site) -> Transfer {
        Transfer::start(site.exec(&["cat /dev/zero"]).stdin(Stdio::null()))
    }

    /// At a fixed rate, there and back.
    pub(crate) fn paced(site: &Site) -> Transfer {
        let mut transfer = Transfer::start(site.exec(&["cat"]).stdin(Stdio::piped()));
        let (mut stdin, stop) = (transfer.client.stdin.take().unwrap(), transfer.stop.clone());
        transfer.threads.push(thread::spawn(move || {
            let (mut next, block) = (Instant::now(), vec![7; PACE.1]);
            while !stop.load(Ordering::Relaxed) {
                match stdin.write_all(&block) {
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return,
                    result => result.unwrap(),
                }
                next += PACE.0;
                let_pass(next.saturating_duration_since(Instant::now()));
            }
        }));
        transfer
    }

    fn start(command: &mut Command) -> Transfer {
        let mut client = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let (count, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (mut stdout, counted) = (client.stdout.take().unwrap(), count.clone());
        let reading = thread::spawn(move || {
            let mut block = vec![0; BLOCK_BYTES];
            while let Ok(read @ 1..) = stdout.read(&mut block) {
                counted.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
        Transfer { client, count, stop, threads: vec![reading] }
    }

    /// The bytes that have come so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn client_id(&self) -> u32 {
        self.client.id()
    }

    /// Whether its session is still there.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.client.try_wait().unwrap().is_none()
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.client.kill();
        let _ = self.client.wait();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

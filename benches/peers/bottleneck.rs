//! A narrow, long path: TCP relays on loopback that share, in each direction, one link with a rate, the queue that a router
//! has before it, and the delay behind it.
//!
//! Nothing is lost: a full queue stops the reading, and so the sender, which is what a lossless router with back-pressure
//! would do. A queue is therefore as full as the senders let it become, and what they keep in flight is the whole of its
//! waiting time. The sockets that are read hold little, so that the queue is what it is said to be. A connection stands
//! without delay; what is sent over it has all of it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;

/// One read: a third of a millisecond at 100 Mbit/s, which is how exact the relay is.
const CHUNK_BYTES: usize = 4 << 10;
/// What a socket holds that is read from, and adds to the queue. The kernel doubles it for its own needs. With less, the
/// large segments of loopback don't fit.
const SOCKET_BYTES: usize = 32 << 10;
/// Chunks that are on their way or wait for their receiver; small ones among them.
const CHUNKS: usize = 1 << 14;

/// A path's properties, the same both ways.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) bytes_per_second: f64,
    pub(crate) round_trip: Duration,
    /// What waits for the link at most, apart from [`SOCKET_BYTES`].
    pub(crate) queue_bytes: usize,
}

/// Two links, one each way, for everything that is relayed over them.
pub(crate) struct Bottleneck([Arc<Link>; 2]);

impl Bottleneck {
    pub(crate) fn new(path: Path) -> Bottleneck {
        Bottleneck([(); 2].map(|()| Arc::new(Link { path, free: Mutex::new(Instant::now()) })))
    }

    /// Where connections are taken for `target`. The threads end with their connections, and the listener with the process.
    pub(crate) fn relay_to(&self, target: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Those that are accepted inherit it.
        set_socket_recv_buffer_size(&listener, SOCKET_BYTES).unwrap();
        let address = listener.local_addr().unwrap();
        let [up, down] = self.0.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(target) else { continue };
                set_socket_recv_buffer_size(&server, SOCKET_BYTES).unwrap();
                carry(&up, &client, &server);
                carry(&down, &server, &client);
            }
        });
        address
    }
}

/// One direction of the path.
struct Link {
    path: Path,
    /// When everything that waits for it will have left.
    free: Mutex<Instant>,
}

impl Link {
    /// Waits for room in the queue, and says when the last of so many bytes will have arrived.
    fn enter(&self, bytes: usize) -> Instant {
        let time = |bytes: usize| Duration::from_secs_f64(bytes as f64 / self.path.bytes_per_second);
        let longest = time(self.path.queue_bytes);
        loop {
            let now = Instant::now();
            let excess = {
                let mut free = self.free.lock().unwrap();
                let departure = now.max(*free) + time(bytes);
                let excess = (departure - now).saturating_sub(longest);
                if excess.is_zero() {
                    *free = departure;
                    return departure + self.path.round_trip / 2;
                }
                excess
            };
            thread::sleep(excess);
        }
    }
}

type Chunk = (Instant, Vec<u8>);

/// Carries one direction of a connection, and passes its end on.
fn carry(link: &Arc<Link>, from: &TcpStream, to: &TcpStream) {
    to.set_nodelay(true).unwrap();
    let (sender, receiver) = sync_channel(CHUNKS);
    let (link, from, to) = (link.clone(), from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || take(&link, from, &sender));
    thread::spawn(move || deliver(&receiver, to));
}

fn take(link: &Link, mut from: TcpStream, sender: &SyncSender<Chunk>) {
    let mut chunk = [0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        if sender.send((link.enter(count), chunk[..count].to_vec())).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Read);
}

fn deliver(receiver: &Receiver<Chunk>, mut to: TcpStream) {
    while let Ok((due, bytes)) = receiver.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

//! A network to break: a TCP relay on loopback whose connections the test can reset, close, silence, starve and delay, at
//! any time.
//!
//! Every order is a value that connections watch, so that it reaches those that it is for and no others: what is said of
//! existing connections is a count, and a connection knows the counts that it was born with. One thread carries all.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Bytes of one read, and how many of those a delayed direction holds: more than any window of the tests, and as much as half a
/// round trip of 200 ms takes at more than a gigabyte a second.
const CHUNK_BYTES: usize = 32 << 10;
const CHUNKS: usize = 4096;
/// What a socket holds that the peer has not taken; a reset loses it, as it is under way.
const BUFFER_BYTES: usize = 128 << 10;

/// The way from the client to the server, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
}

/// A listener on a loopback port that passes every connection on to one address.
pub(crate) struct Relay {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

/// What the test wants of the network.
#[derive(Clone, Debug, Default)]
struct Orders {
    /// How often everything was reset, closed, silenced, and silenced in one direction.
    resets: usize,
    closes: usize,
    silences: usize,
    half_silences: [usize; 2],
    /// How often existing connections were held up, and whether they are now.
    holds: usize,
    holding: bool,
    /// Nothing gets through, and everything is still there when it is over.
    dark: bool,
    refusing: bool,
    cut_after: Option<usize>,
    round_trip: Duration,
    over: bool,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
    dark: AtomicBool,
}

/// How a connection ends by order, or by its own means.
enum End {
    Finished,
    Reset,
    Closed,
}

impl Relay {
    pub(crate) fn to(target: SocketAddr) -> Relay {
        Relay::listening_on(Ipv4Addr::LOCALHOST, target)
    }

    /// One that listens on `address`, for clients in another network namespace.
    pub(crate) fn listening_on(address: Ipv4Addr, target: SocketAddr) -> Relay {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (orders, watching) = watch::channel(Orders::default());
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(listener, target, watching, shared));
        });
        Relay { address, orders, counts, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were made so far.
    pub(crate) fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// How many connections there are, silenced ones among them.
    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// Ends every connection with a reset at both ends (`SO_LINGER` of 0); what was under way is lost.
    pub(crate) fn reset(&self) {
        self.orders.send_modify(|orders| orders.resets += 1);
    }

    /// Closes every connection at both ends: each side sees the other's end, in the middle of whatever it sent.
    pub(crate) fn cut(&self) {
        self.orders.send_modify(|orders| orders.closes += 1);
    }

    /// Existing connections carry nothing any more, for good, and nobody is told; new ones work.
    pub(crate) fn silence(&self) {
        self.orders.send_modify(|orders| orders.silences += 1);
    }

    /// Existing connections lose everything in one direction, for good, and nobody is told; new ones work.
    pub(crate) fn silence_half(&self, direction: Direction) {
        self.orders.send_modify(|orders| orders.half_silences[direction as usize] += 1);
    }

    /// Existing connections carry nothing, until they do again; new ones work.
    pub(crate) fn hold(&self, holding: bool) {
        self.orders.send_modify(|orders| {
            orders.holds += usize::from(holding);
            orders.holding = holding;
        });
    }

    /// Nothing gets through, neither on existing connections nor on new ones, until it does again: as with packets that
    /// are lost and sent again, nothing is missing then.
    pub(crate) fn darken(&self, dark: bool) {
        self.orders.send_modify(|orders| orders.dark = dark);
        self.counts.dark.store(dark, Ordering::SeqCst);
    }

    /// Does so for a time, which begins now; [`Relay::is_dark`] tells when it is over.
    pub(crate) fn darken_for(&self, time: Duration) {
        self.darken(true);
        let (orders, counts) = (self.orders.clone(), self.counts.clone());
        std::thread::spawn(move || {
            std::thread::sleep(time);
            counts.dark.store(false, Ordering::SeqCst);
            orders.send_modify(|orders| orders.dark = false);
        });
    }

    pub(crate) fn is_dark(&self) -> bool {
        self.counts.dark.load(Ordering::SeqCst)
    }

    /// From now on closes new connections at once, or no longer.
    pub(crate) fn refuse(&self, refusing: bool) {
        self.orders.send_modify(|orders| orders.refusing = refusing);
    }

    /// From now on resets each connection, old or new, that has carried so many bytes in both directions together.
    pub(crate) fn cut_after(&self, bytes: Option<usize>) {
        self.orders.send_modify(|orders| orders.cut_after = bytes);
    }

    /// New connections have this round trip, also while they are made.
    pub(crate) fn delay(&self, round_trip: Duration) {
        self.orders.send_modify(|orders| orders.round_trip = round_trip);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.orders.send_modify(|orders| orders.over = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Accepts until the relay is dropped; with the runtime every connection ends.
async fn accept(listener: TcpListener, target: SocketAddr, mut orders: watch::Receiver<Orders>, counts: Arc<Counts>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = orders.wait_for(|orders| orders.over) => return,
        };
        let Ok((client, _)) = client else { continue };
        // What is ordered once a connection has been counted reaches it.
        let born = orders.borrow().clone();
        counts.accepted.fetch_add(1, Ordering::SeqCst);
        if born.refusing {
            let _ = client.set_zero_linger();
            continue;
        }
        let (orders, counts) = (orders.clone(), counts.clone());
        counts.open.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            // A target that is down closes the connection, which is what the client sees of it.
            let _ = carry(client, target, born, orders).await;
            counts.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn carry(
    mut client: TcpStream,
    target: SocketAddr,
    born: Orders,
    orders: watch::Receiver<Orders>,
) -> io::Result<()> {
    let fate = end_by_order(orders.clone(), born.clone());
    let mut server = tokio::select! {
        server = light(orders.clone(), target) => server?,
        _ = fate => return Ok(()),
    };
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
        set_socket_send_buffer_size(socket, BUFFER_BYTES)?;
    }
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let carried = AtomicUsize::new(0);
        let way = |direction, start| Way { direction, born: &born, orders: orders.clone(), carried: &carried, start };
        // The client would have waited one round trip for its connection.
        let up = way(Direction::ToServer, Instant::now() + born.round_trip).pass(from_client, to_server);
        let down = way(Direction::ToClient, Instant::now()).pass(from_server, to_client);
        tokio::select! {
            result = async { tokio::try_join!(up, down) } => if result.is_ok() { End::Finished } else { End::Reset },
            end = end_by_order(orders.clone(), born.clone()) => end,
        }
    };
    if let End::Reset = end {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// Connects to the target once anything gets through.
async fn light(mut orders: watch::Receiver<Orders>, target: SocketAddr) -> io::Result<TcpStream> {
    let _ = orders.wait_for(|orders| !orders.dark).await;
    TcpStream::connect(target).await
}

/// Waits for an order that ends a connection.
async fn end_by_order(mut orders: watch::Receiver<Orders>, born: Orders) -> End {
    let ended = |now: &Orders| now.resets > born.resets || now.closes > born.closes;
    match orders.wait_for(ended).await {
        Ok(now) if now.resets > born.resets => End::Reset,
        _ => End::Closed,
    }
}

/// One direction of a connection.
struct Way<'a> {
    direction: Direction,
    born: &'a Orders,
    orders: watch::Receiver<Orders>,
    /// Bytes of both directions.
    carried: &'a AtomicUsize,
    /// When the first byte can be on its way.
    start: Instant,
}

impl Way<'_> {
    /// Copies one direction and passes its end on. An error is a reset, by a peer or because enough was carried.
    async fn pass(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        if self.born.round_trip.is_zero() {
            loop {
                self.light().await;
                let count = from.read(&mut chunk).await?;
                self.light().await;
                if count == 0 {
                    break;
                }
                self.count(count)?;
                if !self.is_lost() {
                    to.write_all(&chunk[..count]).await?;
                }
            }
            let _ = to.shutdown().await;
            return Ok(());
        }
        let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
        let (start, half) = (self.start, self.born.round_trip / 2);
        let reading = async move {
            loop {
                let count = from.read(&mut chunk).await?;
                let due = Instant::now().max(start) + half;
                if count == 0 || sender.send((due, chunk[..count].to_vec())).await.is_err() {
                    return Ok::<(), io::Error>(());
                }
            }
        };
        let writing = async {
            while let Some((due, bytes)) = receiver.recv().await {
                sleep_until(due).await;
                self.count(bytes.len())?;
                self.light().await;
                if !self.is_lost() {
                    to.write_all(&bytes).await?;
                }
            }
            let _ = to.shutdown().await;
            Ok(())
        };
        tokio::try_join!(reading, writing).map(|_| ())
    }

    /// Waits until something can get through; for ever, once this connection is silenced.
    async fn light(&mut self) {
        let born = self.born;
        let is_light =
            |now: &Orders| !(now.dark || now.silences > born.silences || now.holding && now.holds > born.holds);
        let _ = self.orders.wait_for(is_light).await;
    }

    /// Whether what this direction carries is lost.
    fn is_lost(&self) -> bool {
        let index = self.direction as usize;
        self.orders.borrow().half_silences[index] > self.born.half_silences[index]
    }

    fn count(&self, bytes: usize) -> io::Result<()> {
        let carried = self.carried.fetch_add(bytes, Ordering::SeqCst) + bytes;
        match self.orders.borrow().cut_after {
            Some(limit) if carried > limit => Err(io::ErrorKind::ConnectionReset.into()),
            _ => Ok(()),
        }
    }
}

//! A network to break: a TCP relay whose connections the test can cut.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A listener on a loopback port that passes every connection on to one address.
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    connections: Mutex<Vec<(TcpStream, TcpStream)>>,
    refusing: AtomicBool,
    accepted: std::sync::atomic::AtomicUsize,
}

impl Relay {
    pub(crate) fn to(target: SocketAddr) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        // The thread ends with the process: there is no way to interrupt accept, and nothing that it would hold up.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                accepting.accepted.fetch_add(1, Ordering::SeqCst);
                if !accepting.refusing.load(Ordering::SeqCst) {
                    // A target that is down closes the connection, which is what the client sees of it.
                    let _ = accepting.connect(client, target);
                }
            }
        });
        Relay { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were made so far.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Cuts every connection, in both directions and at both ends.
    pub(crate) fn cut(&self) {
        for (client, server) in self.shared.connections.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }

    /// From now on closes new connections at once, or no longer.
    pub(crate) fn refuse(&self, refusing: bool) {
        self.shared.refusing.store(refusing, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.refuse(true);
        self.cut();
    }
}

impl Shared {
    fn connect(&self, client: TcpStream, target: SocketAddr) -> io::Result<()> {
        let server = TcpStream::connect(target)?;
        for socket in [&client, &server] {
            socket.set_nodelay(true)?;
        }
        for (from, to) in [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)] {
            thread::spawn(move || pass_on(from, to));
        }
        self.connections.lock().unwrap().push((client, server));
        Ok(())
    }
}

/// Copies one direction, and passes its end on.
fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

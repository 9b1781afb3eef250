//! Ports for peers that must be told one, because they can't say which they were given.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

static HANDED_OUT: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A loopback port that nothing listens on, and that no other test of this process is given.
pub(crate) fn free() -> u16 {
    let mut handed_out = HANDED_OUT.lock().unwrap();
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port is free");
        let port = listener.local_addr().expect("a listener has an address").port();
        if handed_out.insert(port) {
            return port;
        }
    }
}

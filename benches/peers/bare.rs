//! The least that a client could be: a connect, and one byte. A program of its own, because a larger one takes longer to start.

use std::io::Write;

fn main() {
    let address = std::env::args().nth(1).unwrap();
    std::net::TcpStream::connect(address).unwrap().write_all(b"x").unwrap();
}

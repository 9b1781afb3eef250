//! What this program is when it is started with words: the other end of a transfer, or a peer that there is no program for.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

/// The least that a client could be: a connect, and one byte.
const BARE: &str = "bare-connect";

/// Does what the words say, if that is for us.
pub(crate) fn run(words: &[String]) -> bool {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [BARE, address] => TcpStream::connect(address).unwrap().write_all(b"x").unwrap(),
        _ => return false,
    }
    true
}

/// A client that connects, and sends a byte.
pub(crate) fn bare_connect(address: SocketAddr) -> Command {
    myself(&[BARE, &address.to_string()])
}

fn myself(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(words);
    command
}

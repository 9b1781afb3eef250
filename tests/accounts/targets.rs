//! What a stream may reach on the server's machine: what the account itself may, and no more.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use crate::machine::{ANN, Machine, mode};
use crate::support_net::child::{Ran, run};
use crate::support_net::site::Plan;

/// Listens at `path`, and tells whoever connects which user the kernel takes them for (`SO_PEERCRED`).
fn teller(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let uid = rustix::net::sockopt::socket_peercred(stream.as_fd()).unwrap().uid.as_raw();
            let _ = writeln!(stream, "you are {uid}");
        }
    });
}

fn connect(machine: &Machine, host: &str, path: &Path) -> Ran {
    run(machine.site.tstunnel(&["connect", host, "--target", &format!("unix:{}", path.display())]).stdin(Stdio::null()))
}

/// The default grant, and a socket in the account's own home.
fn machine() -> Machine {
    let machine = Machine::start("\"mutagen\"\ntargets = [\"unix:/*/app.sock\"]", Plan::any());
    // As most homes are, and folders below /run and /srv: the unit leaves root no right to pass what is the account's alone.
    for name in ["ann", "locked", "expired", "nologin"] {
        mode(&machine.home(name), 0o755);
    }
    machine
}

#[test]
fn a_socket_is_reached_as_the_account() {
    let machine = machine();
    let socket = machine.home("ann").join("app.sock");
    teller(&socket);
    mode(&socket, 0o666);
    chown(&socket, Some(ANN), Some(ANN)).unwrap();
    let ran = connect(&machine, "ann", &socket);
    assert_eq!(ran.text(), format!("you are {ANN}\n"), "{}", ran.stderr);
}

#[test]
fn a_link_of_the_accounts_leads_to_no_socket_of_roots() {
    let machine = machine();
    let secret = machine.site.root.join("of-root");
    std::fs::create_dir(&secret).unwrap();
    mode(&secret, 0o700);
    let of_root = secret.join("root.sock");
    teller(&of_root);
    mode(&of_root, 0o600);
    let socket = machine.home("ann").join("app.sock");
    symlink(&of_root, &socket).unwrap();
    lchown(&socket, Some(ANN), Some(ANN)).unwrap();
    let ran = connect(&machine, "ann", &socket);
    assert_eq!(ran.text(), "", "what only root may reach was reached: {}", ran.stderr);
}

#[test]
fn a_locked_account_has_no_streams() {
    let machine = machine();
    for name in ["locked", "expired", "nologin"] {
        let socket = machine.home(name).join("app.sock");
        teller(&socket);
        mode(&socket, 0o666);
        let ran = connect(&machine, name, &socket);
        assert_eq!(ran.text(), "", "{name}: {}", ran.stderr);
    }
}

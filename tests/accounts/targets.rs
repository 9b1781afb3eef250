//! What a stream may reach on the server's machine: what the account itself may, and no more.

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::{chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::machine::{ANN, Machine, append, mode};
use crate::support::wait::{SOON, wait_until};
use crate::support_net::child::{Ran, Watched, run};
use crate::support_net::report::fails;
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

/// Mounts a file system (fuse(4)) over the folder that it is given, as somebody with this user id would who lets others look, and answers
/// nothing that is asked of it.
const UNANSWERED: &str = "import ctypes, os, signal, sys; fd = os.open('/dev/fuse', os.O_RDWR); \
    how = f'fd={fd},rootmode=40755,user_id={sys.argv[2]},group_id={sys.argv[2]},allow_other'; \
    sys.exit(1) if ctypes.CDLL(None).mount(b'fuse', sys.argv[1].encode(), b'fuse', 0, how.encode()) else print('mounted', flush=True); \
    signal.pause()";

#[test]
fn a_file_system_that_does_not_answer_holds_up_no_more_streams_than_there_may_be_sessions() {
    let limit = Plan::any().limit("max_sessions_per_principal = 2");
    let machine = Machine::start("\"mutagen\"\ntargets = [\"unix:/*/app.sock\"]", limit);
    let (home, server) = (machine.home("ann"), machine.site.server_id().to_string());
    let mut mounting = Command::new("nsenter");
    mounting.args(["--mount", "--target", &server, "python3", "-c", UNANSWERED]);
    let mut mounted = Watched::start(mounting.arg(&home).arg(ANN.to_string()));
    mounted.wait_for_output("mounted");
    let refused = |code: &str| {
        let ran = connect(&machine, "ann", &home.join("app.sock"));
        ran.stderr.contains(&format!("error[{code}]"))
    };
    let [first, second] = std::thread::scope(|scope| {
        [(); 2].map(|()| scope.spawn(|| refused("target-unreachable"))).map(|ran| ran.join().unwrap())
    });
    // Nobody waits for those two any more, but each has a thread.
    let third = refused("too-many");
    mounted.signal(Signal::KILL);
    assert_eq!([first, second, third], [true; 3]);
    wait_until("their threads are done, and their places free", SOON, || refused("target-unreachable"));
}

#[test]
fn a_name_that_begins_like_an_address_is_no_way_to_another() {
    let machine = Machine::start("\"mutagen\"\ntargets = [\"tcp:10.0.0.*:*\"]", Plan::any());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    append(&machine.site.root.join("etc/hosts"), "127.0.0.1 10.0.0.1.evil.example\n");
    let target = format!("tcp:10.0.0.1.evil.example:{}", listener.local_addr().unwrap().port());
    fails(&mut machine.site.tstunnel(&["connect", "ann", "--target", &target]), 255, "command-denied");
    assert!(listener.accept().is_err(), "what is for this machine alone was reached");
}

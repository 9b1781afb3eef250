//! Everybody who can join two pipes over a network: a name, a running server that starts [`far_end_words`] for each
//! connection, and a command that is a client of it. Whoever can authenticates both sides by certificates, with TLS 1.3.

use std::any::Any;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use tempfile::TempDir;

use crate::report::TSTUNNEL;
use crate::servers::{Plain, SERVER_NAME, certificates};
use crate::support::port;
use crate::support::process::{Group, program, run};
use crate::support::wait::{SOON, wait_until};
use crate::worker::{Bridge, far_end_words};

/// The names in the report.
pub(crate) const BRIDGE: &str = "minimal bridge";
pub(crate) const SSH: &str = "ssh";
pub(crate) const SSH_GCM: &str = "ssh aes128-gcm";
/// The limit of who can go on over another connection.
pub(crate) const KEEPING_BRIDGE: &str = "bridge that keeps";
/// The limit of what anybody could be.
pub(crate) const TCP: &str = "plain TCP";

/// What a gigabyte a second has in flight at 200 ms.
const KEPT_BYTES: usize = 200 << 20;

/// One who joins two pipes over a network.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Where its server listens, and the process that this is.
    pub(crate) address: SocketAddr,
    pub(crate) server: u32,
    client: Box<dyn Fn(SocketAddr) -> Command>,
    /// The server, or several, which may serve another peer too.
    _running: Rc<dyn Any>,
}

impl Peer {
    /// A client that goes to the server by way of `address`.
    pub(crate) fn client(&self, address: SocketAddr) -> Command {
        (self.client)(address)
    }
}

/// tstunnel, the bridge, OpenSSH with its default cipher, and with AES-128-GCM.
pub(crate) fn main_peers() -> Vec<Peer> {
    let plain = Rc::new(Plain::start());
    let line = far_end_words().join(" ");
    let (tunnel, ssh, gcm) = (plain.clone(), plain.clone(), plain.clone());
    let (tunnel_line, ssh_line) = (line.clone(), line.clone());
    vec![
        Peer {
            name: TSTUNNEL,
            address: plain.tunnel().address(),
            server: plain.tunnel().id(),
            client: Box::new(move |address| tunnel.tstunnel_to(address, &tunnel_line)),
            _running: plain.clone(),
        },
        bridge(&far_end_words()),
        Peer {
            name: SSH,
            address: plain.sshd_address(),
            server: plain.sshd_id(),
            client: Box::new(move |address| ssh.ssh_to(address, &[], &ssh_line)),
            _running: plain.clone(),
        },
        Peer {
            name: SSH_GCM,
            address: plain.sshd_address(),
            server: plain.sshd_id(),
            client: Box::new(move |address| gcm.ssh_to(address, &["-c", "aes128-gcm@openssh.com"], &line)),
            _running: plain,
        },
    ]
}

/// Those whom a long path limits, and what it carries without TLS.
pub(crate) fn path_peers() -> Vec<Peer> {
    let mut peers = main_peers();
    peers.retain(|peer| peer.name != SSH_GCM);
    peers.push(plain_tcp());
    peers
}

/// Whatever else is in use for such things, and what carries without TLS.
pub(crate) fn other_peers() -> Vec<Peer> {
    let mut peers = Vec::from(stunnel());
    peers.extend([socat(), websocat_peer(), plain_tcp()]);
    peers
}

/// The bridge to one process after another of `words`.
pub(crate) fn bridge(words: &[String]) -> Peer {
    tls_bridge(BRIDGE, 0, words)
}

/// The same, keeping as much of what it sends as a long path has in flight.
pub(crate) fn keeping_bridge() -> Peer {
    tls_bridge(KEEPING_BRIDGE, KEPT_BYTES, &far_end_words())
}

fn tls_bridge(name: &'static str, kept_bytes: usize, words: &[String]) -> Peer {
    let folder = certified();
    let bridge = Bridge { folder: Some(folder.path().to_owned()), kept_bytes };
    bridged(name, bridge, Some(folder), words)
}

fn plain_tcp() -> Peer {
    bridged(TCP, Bridge { folder: None, kept_bytes: 0 }, None, &far_end_words())
}

fn bridged(name: &'static str, bridge: Bridge, folder: Option<TempDir>, words: &[String]) -> Peer {
    let port = port::free();
    let server = Running::start(bridge.server(port, words), port, folder);
    server.peer(name, Box::new(move |address| bridge.client(address, "")))
}

/// stunnel at both ends, by its own client and by `openssl s_client`.
fn stunnel() -> [Peer; 2] {
    let folder = certified();
    let at = folder.path().to_owned();
    let port = port::free();
    let [exec, argument] = far_end_words();
    let common = |name: &str| {
        let at = at.display();
        format!(
            "foreground = yes\npid =\nsyslog = no\ndebug = err\nsslVersion = TLSv1.3\n\
             cert = {at}/{name}.crt\nkey = {at}/{name}.key\nCAfile = {at}/ca.crt\nverifyChain = yes\n"
        )
    };
    let text = common("server")
        + &format!("[far-end]\naccept = 127.0.0.1:{port}\nexec = {exec}\nexecArgs = {exec} {argument}\n");
    let configuration = at.join("server.conf");
    fs::write(&configuration, text).unwrap();
    let mut server = Command::new(program("stunnel"));
    server.arg(configuration);
    let server = Rc::new(Running::start(server, port, Some(folder)));

    let client = common("client") + &format!("client = yes\ncheckHost = {SERVER_NAME}\n");
    let (client_at, openssl_at) = (at.clone(), at);
    let peer = |name, client: Box<dyn Fn(SocketAddr) -> Command>| Peer {
        name,
        address: server.address,
        server: server.process.id(),
        client,
        _running: server.clone(),
    };
    [
        peer(
            "stunnel",
            Box::new(move |address| {
                let configuration = client_at.join(format!("client-{}.conf", address.port()));
                fs::write(&configuration, format!("{client}connect = {address}\n")).unwrap();
                let mut command = Command::new(program("stunnel"));
                command.arg(configuration);
                command
            }),
        ),
        peer(
            "openssl s_client",
            Box::new(move |address| {
                let mut command = Command::new(program("openssl"));
                command.args([
                    "s_client",
                    "-quiet",
                    "-verify_return_error",
                    "-verify_hostname",
                    SERVER_NAME,
                    "-connect",
                ]);
                command.arg(address.to_string()).args(["-servername", SERVER_NAME, "-CAfile"]);
                command.arg(openssl_at.join("ca.crt")).arg("-cert").arg(openssl_at.join("client.crt"));
                command.arg("-key").arg(openssl_at.join("client.key"));
                command
            }),
        ),
    ]
}

fn socat() -> Peer {
    let folder = certified();
    let at = folder.path().to_owned();
    let options = |name: &str| {
        let at = at.display();
        format!("cert={at}/{name}.crt,key={at}/{name}.key,cafile={at}/ca.crt,verify=1,openssl-min-proto-version=TLS1.3")
    };
    let port = port::free();
    let mut server = Command::new(program("socat"));
    server.arg(format!("OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,nodelay,{}", options("server")));
    server.arg(format!("EXEC:{}", far_end_words().join(" ")));
    let server = Running::start(server, port, Some(folder));
    let client = format!("{},commonname={SERVER_NAME},nodelay", options("client"));
    server.peer(
        "socat",
        Box::new(move |address| {
            let mut command = Command::new(program("socat"));
            command.arg("-").arg(format!("OPENSSL:{address},{client}"));
            command
        }),
    )
}

/// It has no certificates for clients, and its own client is told not to verify the server's.
fn websocat_peer() -> Peer {
    let folder = certified();
    let at = folder.path();
    let archive = at.join("server.p12");
    run(Command::new(program("openssl"))
        .args(["pkcs12", "-export", "-passout", "pass:secret", "-out"])
        .arg(&archive)
        .arg("-in")
        .arg(at.join("server.crt"))
        .arg("-inkey")
        .arg(at.join("server.key")));
    let port = port::free();
    let [exec, argument] = far_end_words();
    let mut server = Command::new(websocat());
    server.args(["--binary", "--exit-on-eof", "--pkcs12-passwd", "secret", "--pkcs12-der"]).arg(archive);
    server.arg(format!("wss-l:127.0.0.1:{port}")).arg(format!("exec:{exec}")).args(["--exec-args", &argument]);
    let server = Running::start(server, port, Some(folder));
    server.peer(
        "websocat",
        Box::new(|address| {
            let mut command = Command::new(websocat());
            command.args(["--binary", "--exit-on-eof", "--insecure"]).arg(format!("wss://{address}/"));
            command
        }),
    )
}

/// Where `benches/setup.sh` puts it.
pub(crate) fn websocat() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let program = target.join("websocat-1.14.1/bin/websocat");
    assert!(program.is_file(), "the comparison needs {}: run benches/setup.sh", program.display());
    program
}

/// A folder with an authority's certificate, and those of a server and a client with their keys.
fn certified() -> TempDir {
    let folder = tempfile::Builder::new().prefix("ts-bench-").tempdir().unwrap();
    certificates(folder.path());
    folder
}

/// A server, with the folder of its files.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    process: Group,
    _folder: Option<TempDir>,
}

impl Running {
    /// Starts one and waits until it listens.
    pub(crate) fn start(mut command: Command, port: u16, folder: Option<TempDir>) -> Running {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let log = tempfile::tempfile().unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut process = Group::spawn(&mut command);
        wait_until(&format!("{command:?} listens"), SOON, || {
            assert!(process.ended().is_none(), "{command:?} ended");
            TcpStream::connect(address).is_ok()
        });
        Running { address, process, _folder: folder }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    fn peer(self, name: &'static str, client: Box<dyn Fn(SocketAddr) -> Command>) -> Peer {
        Peer { name, address: self.address, server: self.process.id(), client, _running: Rc::new(self) }
    }
}

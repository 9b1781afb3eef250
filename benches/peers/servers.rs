//! The servers of both kinds, and the clients that go to them.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::measure;
use crate::support::openssh::{self, Account, Sshd};
use crate::support::pki::Authority;
use crate::support::port;
use crate::support::process::{Group, program};
use crate::support::remote::PRINCIPAL;
use crate::support::serve::{Server, TSTUNNEL};
use crate::support::wait::{SOON, wait_until};

const HOST: &str = "host123";
const DOMAIN: &str = "tunnel.test";
/// What servers are certified for.
pub(crate) const SERVER_NAME: &str = "host123.tunnel.test";

/// Makes an authority, and writes its certificate and those of a server and a client with their keys.
pub(crate) fn certificates(folder: &Path) {
    let authority = Authority::new("an authority");
    fs::write(folder.join("ca.crt"), authority.certificate()).unwrap();
    authority.server(&[SERVER_NAME]).write(folder, "server");
    authority.client(PRINCIPAL).write(folder, "client");
}

/// A `tstunnel serve` with a client's configuration beside it.
pub(crate) struct Host {
    folder: PathBuf,
    server: Server,
}

impl Host {
    /// Starts one whose host has its home in `folder`; `commands` is what it allows.
    pub(crate) fn start(folder: &Path, commands: &str) -> Host {
        Host::start_with(folder, &format!("commands = \"{commands}\"\n"), "")
    }

    /// The same with lines for the host and for `[limits]`.
    pub(crate) fn start_with(folder: &Path, lines: &str, limits: &str) -> Host {
        fs::create_dir_all(folder.join("home")).unwrap();
        certificates(folder);
        let text = format!(
            "listen = [\"127.0.0.1:0\"]\n\
             cert = \"server.crt\"\n\
             key = \"server.key\"\n\
             client_ca = [\"ca.crt\"]\n\
             domain = \"{DOMAIN}\"\n\
             [host.{HOST}]\n\
             home = \"{}\"\n\
             {lines}\
             [[grant]]\n\
             principal = \"{PRINCIPAL}\"\n\
             hosts = [\"{HOST}\"]\n\
             [limits]\n{limits}",
            folder.join("home").display()
        );
        fs::write(folder.join("server.toml"), text).unwrap();
        let server = Server::start(&folder.join("server.toml"));
        let text = format!(
            "[host.{HOST}]\n\
             endpoint = \"{}\"\n\
             sni = \"{SERVER_NAME}\"\n\
             cert = \"client.crt\"\n\
             key = \"client.key\"\n\
             ca = \"ca.crt\"\n\
             proxy = \"none\"\n",
            server.address()
        );
        fs::write(folder.join("config.toml"), text).unwrap();
        Host { folder: folder.to_owned(), server }
    }

    /// Where its files are: those that [`certificates`] writes among them.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The server's process.
    pub(crate) fn id(&self) -> u32 {
        self.server.id()
    }

    /// An upload by way of `endpoint`.
    pub(crate) fn upload(&self, endpoint: SocketAddr, file: &Path, name: &str) -> Command {
        let mut command = Command::new(TSTUNNEL);
        command.args(["upload", "--config"]).arg(self.config()).args(["--endpoint", &endpoint.to_string()]);
        command.arg(file).arg(format!("{HOST}:{name}"));
        command
    }

    /// An `exec` of one command line.
    pub(crate) fn client(&self, options: &[&str], line: &str) -> Command {
        let mut command = Command::new(TSTUNNEL);
        command.args(["exec", "--config"]).arg(self.config()).args(options).args([HOST, "--", line]);
        command
    }
}

/// One server of each kind that runs any command in this account.
pub(crate) struct Plain {
    tunnel: Host,
    sshd: (Group, SocketAddr),
    // Last, so that it is removed after the servers have gone.
    folder: TempDir,
}

impl Plain {
    pub(crate) fn start() -> Plain {
        let folder = tempfile::Builder::new().prefix("ts-bench-").tempdir().unwrap();
        let tunnel = Host::start(&folder.path().join("tstunnel"), "any");
        let sshd = sshd(&folder.path().join("openssh"));
        Plain { tunnel, sshd, folder }
    }

    pub(crate) fn tunnel(&self) -> &Host {
        &self.tunnel
    }

    /// Where files may be put.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn sshd_id(&self) -> u32 {
        self.sshd.0.id()
    }

    pub(crate) fn sshd_address(&self) -> SocketAddr {
        self.sshd.1
    }

    /// tstunnel by way of another address.
    pub(crate) fn tstunnel_to(&self, endpoint: SocketAddr, line: &str) -> Command {
        self.tunnel.client(&["--endpoint", &endpoint.to_string()], line)
    }

    /// ssh by way of another address.
    pub(crate) fn ssh_to(&self, address: SocketAddr, options: &[&str], line: &str) -> Command {
        let mut command = self.openssh("ssh", address);
        command.args(options).args([HOST, line]);
        command
    }

    /// A connection of ssh's by way of `address` that is kept up for others to share.
    pub(crate) fn master(&self, address: SocketAddr) -> Master {
        let socket = self.folder.path().join(format!("control-{}", address.port()));
        let mut command = self.openssh("ssh", address);
        command.arg("-S").arg(&socket).args(["-N", "-o", "ControlMaster=yes", HOST]);
        let process = Group::spawn(command.stdin(Stdio::null()));
        wait_until("the shared connection stands", SOON, || socket.exists());
        Master { socket, _process: process }
    }

    /// ssh over a connection that is up.
    pub(crate) fn ssh_over(&self, master: &Master, line: &str) -> Command {
        let mut command = self.openssh("ssh", self.sshd_address());
        command.arg("-S").arg(&master.socket).args([HOST, line]);
        command
    }

    /// A program of OpenSSH's that knows the host.
    pub(crate) fn openssh(&self, name: &str, address: SocketAddr) -> Command {
        let mut command = Command::new(program(name));
        command.arg("-F").arg(self.folder.path().join("openssh/ssh_config"));
        command.arg("-o").arg(format!("Port={}", address.port()));
        command
    }
}

/// A client with which this side talks; it ends when it is dropped.
pub(crate) struct Talk(Child);

/// Starts a client whose command answers.
pub(crate) fn answering(client: &mut Command) -> Talk {
    let child = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    Talk(child.unwrap_or_else(|error| panic!("{client:?}: {error}")))
}

impl Talk {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends a byte and waits until it has come back.
    pub(crate) fn exchange(&mut self) {
        self.send(1);
        self.receive(1);
    }

    /// Sends so many bytes.
    pub(crate) fn send(&mut self, bytes: u64) {
        measure::send(self.0.stdin.as_mut().unwrap(), bytes);
    }

    /// Receives just so many bytes.
    pub(crate) fn receive(&mut self, bytes: u64) {
        let stdout = self.0.stdout.as_mut().unwrap();
        assert_eq!(measure::receive(&mut stdout.take(bytes)), bytes, "the client ended");
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An ssh that keeps a connection up until it is dropped.
pub(crate) struct Master {
    socket: PathBuf,
    _process: Group,
}

/// An sshd as it is used every day: without the forced command that gives the tests a home of their own.
fn sshd(folder: &Path) -> (Group, SocketAddr) {
    let account = Account { home: folder, wrapper: None, uploads: true };
    // It writes keys and a configuration; the server itself is not the one that is wanted.
    drop(Sshd::start(folder, &account));
    let port = port::free();
    openssh::stand_ins(folder, HOST, port);
    let text = fs::read_to_string(folder.join("sshd_config")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("ForceCommand") && !line.starts_with("ListenAddress"));
    let text: Vec<String> = lines.map(str::to_owned).chain([format!("ListenAddress 127.0.0.1:{port}")]).collect();
    fs::write(folder.join("sshd_config"), text.join("\n") + "\n").unwrap();
    let log = folder.join("sshd.log");
    let process = Group::spawn(
        Command::new(program("sshd"))
            .args(["-D", "-e", "-f"])
            .arg(folder.join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap()),
    );
    wait_until("sshd listens", SOON, || fs::read_to_string(&log).unwrap().contains("Server listening on"));
    (process, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

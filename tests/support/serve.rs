//! `tstunnel serve`, the real binary, on a port that it picks itself.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketType};
use serde_json::Value;

use super::process::{Group, Signal};
use super::wait::{SOON, wait_for, wait_until};

/// The program under test.
pub(crate) const TSTUNNEL: &str = env!("CARGO_BIN_EXE_tstunnel");

/// A running server.
pub(crate) struct Server {
    configuration: PathBuf,
    log: PathBuf,
    address: SocketAddr,
    process: Group,
    level: &'static str,
    launcher: Vec<String>,
    /// Holds the port while no server does: the kernel may give one that it has chosen to somebody else.
    port: Option<OwnedFd>,
}

impl Server {
    /// Starts it with a configuration file that says `listen = ["127.0.0.1:0"]`, and waits until it listens.
    pub(crate) fn start(configuration: &Path) -> Server {
        Server::start_with_log(configuration, "info")
    }

    /// The same, with a log of this level.
    pub(crate) fn start_with_log(configuration: &Path, level: &'static str) -> Server {
        Server::start_by(configuration, level, &[])
    }

    /// The same, by a command that ends in executing the words behind its own.
    pub(crate) fn start_by(configuration: &Path, level: &'static str, launcher: &[String]) -> Server {
        let log = configuration.with_extension("log");
        let (process, address) = spawn(configuration, &log, level, launcher);
        let (configuration, launcher) = (configuration.to_owned(), launcher.to_vec());
        Server { configuration, log, address, process, level, launcher, port: None }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills the server alone. What it had started is left to notice it.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
        self.port = hold(self.address);
    }

    /// Sends a signal to the server alone.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// How the server ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.process.ended()
    }

    /// Starts it again at the address that it had.
    pub(crate) fn start_again(&mut self) {
        let text = fs::read_to_string(&self.configuration).unwrap();
        fs::write(&self.configuration, text.replace(&format!("{}:0", self.address.ip()), &self.address.to_string()))
            .unwrap();
        let (process, address) = spawn(&self.configuration, &self.log, self.level, &self.launcher);
        assert_eq!(address, self.address, "the server listens where it was told to");
        self.process = process;
    }

    /// Starts another process with the same configuration, and waits until it has taken over; returns the one before.
    pub(crate) fn succeed(&mut self) -> Server {
        let log = self.log.with_extension(format!("after-{}.log", self.id()));
        let (process, address) = spawn(&self.configuration, &log, self.level, &self.launcher);
        assert_eq!(address, self.address, "the successor listens where the other did");
        let before = Server {
            configuration: self.configuration.clone(),
            log: std::mem::replace(&mut self.log, log),
            process: std::mem::replace(&mut self.process, process),
            launcher: self.launcher.clone(),
            port: None,
            ..*self
        };
        wait_until("it has taken over", SOON, || {
            self.log().contains(&format!("took over from process {}", before.id()))
        });
        before
    }

    /// The folder that it keeps its socket in.
    pub(crate) fn run_folder(&self) -> PathBuf {
        run_folder(&self.configuration)
    }

    /// Changes a text in its configuration, for the next start.
    #[track_caller]
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.configuration).unwrap();
        assert!(text.contains(from), "`{from}` is not in\n{text}");
        fs::write(&self.configuration, text.replace(from, to)).unwrap();
    }

    /// What it has written to stderr since it was last started.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The lines of its audit log about `event`, where that goes to stderr.
    pub(crate) fn records(&self, event: &str) -> Vec<Value> {
        records(&self.log(), event)
    }
}

/// The lines of an audit log about `event`, whatever stands between them.
pub(crate) fn records(log: &str, event: &str) -> Vec<Value> {
    all_records(log).into_iter().filter(|record| record["event"] == event).collect()
}

/// All whole lines of a log that are JSON objects.
pub(crate) fn all_records(log: &str) -> Vec<Value> {
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn spawn(configuration: &Path, log: &Path, level: &str, launcher: &[String]) -> (Group, SocketAddr) {
    let output = fs::File::create(log).unwrap();
    let words = [launcher, &[TSTUNNEL.to_owned()]].concat();
    let mut process = Group::spawn(
        Command::new(&words[0])
            .args(&words[1..])
            .args(["serve", "--config"])
            .arg(configuration)
            .env("TSTUNNEL_LOG", level)
            .env("RUNTIME_DIRECTORY", run_folder(configuration))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output),
    );
    let address = wait_for("tstunnel serve says where it listens", SOON, || {
        let ended = process.ended();
        let text = fs::read_to_string(log).unwrap_or_default();
        assert!(ended.is_none(), "tstunnel serve ended: {ended:?}\n{text}");
        listening_address(&text)
    });
    (process, address)
}

fn run_folder(configuration: &Path) -> PathBuf {
    configuration.with_file_name("run")
}

/// Binds `address` without listening, so that a server can bind it too; nothing where another one listens there already.
fn hold(address: SocketAddr) -> Option<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    rustix::net::bind(&socket, &address).ok()?;
    Some(socket)
}

/// The address in a whole line that holds `listening on ADDR`, whatever surrounds it.
fn listening_address(log: &str) -> Option<SocketAddr> {
    let whole = log.rsplit_once('\n')?.0;
    let (_, rest) = whole.split_once("listening on ")?;
    rest.split(|end: char| end.is_whitespace() || end == ',').next()?.parse().ok()
}

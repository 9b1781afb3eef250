//! A site: certificates of its own, a server with one or more hosts, and a client's configuration for them.

use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::pki::{Authority, Identity};
use crate::support::process::{self, program};
use crate::support::serve::{Server, TSTUNNEL};
use crate::support::wait::{SOON, wait_until};

pub(crate) const DOMAIN: &str = "tunnel.test";
pub(crate) const HOST: &str = "host123";
pub(crate) const SERVER_NAME: &str = "host123.tunnel.test";
pub(crate) const PRINCIPAL: &str = "spiffe://tunnel.test/users/ann";

/// How long the client of a site may take to connect.
pub(crate) const CONNECT_SECONDS: u64 = 4;

/// What `server.toml` says beyond the files and the one host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    top: String,
    host: String,
    rest: String,
    limits: String,
}

impl Plan {
    /// A host that takes Mutagen's commands only.
    pub(crate) fn mutagen() -> Plan {
        Plan::default()
    }

    /// A host that takes every command, through a shell.
    pub(crate) fn any() -> Plan {
        Plan::mutagen().host("commands = \"any\"")
    }

    /// Adds a line above the tables.
    pub(crate) fn top(mut self, line: &str) -> Plan {
        self.top += &format!("{line}\n");
        self
    }

    /// Adds a line to the host's table.
    pub(crate) fn host(mut self, line: &str) -> Plan {
        self.host += &format!("{line}\n");
        self
    }

    /// Adds tables at the end.
    pub(crate) fn tables(mut self, text: &str) -> Plan {
        self.rest += &format!("{text}\n");
        self
    }

    /// Adds a line to `[limits]`.
    pub(crate) fn limit(mut self, line: &str) -> Plan {
        self.limits += &format!("{line}\n");
        self
    }
}

/// Folders, authorities and files; a server if it was started.
pub(crate) struct Site {
    pub(crate) servers: Authority,
    pub(crate) clients: Authority,
    pub(crate) root: PathBuf,
    pub(crate) home: PathBuf,
    server: Option<Server>,
    // Last, so that it is removed after the server has gone.
    _folder: TempDir,
}

impl Site {
    /// A site with certificates and no server yet.
    pub(crate) fn new() -> Site {
        let folder = tempfile::Builder::new().prefix("ts-site-").tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["home", "local"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let site = Site {
            servers: Authority::new("the servers' authority"),
            clients: Authority::new("the clients' authority"),
            home: root.join("home"),
            root,
            server: None,
            _folder: folder,
        };
        fs::write(site.root.join("servers-ca.crt"), site.servers.certificate()).unwrap();
        fs::write(site.root.join("clients-ca.crt"), site.clients.certificate()).unwrap();
        site.servers.server(&[&format!("*.{DOMAIN}")]).write(&site.root, "server");
        site.clients.client(PRINCIPAL).write(&site.root, "client");
        site
    }

    /// A site whose server runs, with a client's configuration for it.
    pub(crate) fn start(plan: &Plan) -> Site {
        let mut site = Site::new();
        site.serve(plan);
        site
    }

    /// Starts the server, and writes the client's configuration.
    pub(crate) fn serve(&mut self, plan: &Plan) {
        self.serve_by(plan, &[]);
    }

    /// The same by a command that ends in executing the words behind its own.
    pub(crate) fn serve_by(&mut self, plan: &Plan, launcher: &[String]) {
        let Plan { top, host, rest, limits, .. } = plan;
        let home = self.home.display();
        let text = format!(
            "listen = [\"127.0.0.1:0\"]\n\
             cert = \"server.crt\"\n\
             key = \"server.key\"\n\
             client_ca = [\"clients-ca.crt\"]\n\
             domain = \"{DOMAIN}\"\n\
             {top}\n\
             [host.{HOST}]\n\
             home = \"{home}\"\n\
             {host}\n\
             [[grant]]\n\
             principal = \"{PRINCIPAL}\"\n\
             hosts = [\"{HOST}\"]\n\
             {rest}\n\
             [limits]\n\
             {limits}\n"
        );
        fs::write(self.root.join("server.toml"), text).unwrap();
        let server = Server::start_by(&self.root.join("server.toml"), "info", launcher);
        self.configure(server.address(), "");
        self.server = Some(server);
    }

    /// Writes the client's configuration for the host at `endpoint`; `lines` are added to it.
    pub(crate) fn configure(&self, endpoint: impl Display, lines: &str) {
        self.configure_as("client", endpoint, lines);
    }

    /// The same for a client with the files of another name.
    pub(crate) fn configure_as(&self, client: &str, endpoint: impl Display, lines: &str) {
        let named = |key: &str| lines.lines().any(|line| line.split('=').next().unwrap().trim() == key);
        let defaults = [
            ("endpoint", format!("\"{endpoint}\"")),
            ("host_id", format!("\"{HOST}\"")),
            ("sni", format!("\"{SERVER_NAME}\"")),
            ("cert", format!("\"{client}.crt\"")),
            ("key", format!("\"{client}.key\"")),
            ("ca", "\"servers-ca.crt\"".to_owned()),
            ("connect_timeout", format!("\"{CONNECT_SECONDS}s\"")),
        ];
        let mut text = format!("[host.{HOST}]\n{lines}\n");
        for (key, value) in defaults.into_iter().filter(|(key, _)| !named(key)) {
            text += &format!("{key} = {value}\n");
        }
        fs::write(self.configuration(), text).unwrap();
    }

    /// The same configuration with more lines for the host.
    pub(crate) fn configure_more(&self, lines: &str) {
        self.configure(self.address(), lines);
    }

    /// The client's configuration file.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    pub(crate) fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("the server was started")
    }

    pub(crate) fn server_id(&self) -> u32 {
        self.server.as_ref().expect("the server was started").id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.as_ref().expect("the server was started").address()
    }

    pub(crate) fn server_log(&self) -> String {
        self.server.as_ref().map(Server::log).unwrap_or_default()
    }

    /// Writes the files of an identity, as `NAME.crt` and `NAME.key`.
    pub(crate) fn write(&self, identity: &Identity, name: &str) {
        identity.write(&self.root, name);
    }

    /// Any program as the client's user runs it: nothing in its environment but what is set here.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.root.join("local"))
            .env("TSTUNNEL_CONFIG", self.configuration())
            .current_dir(self.root.join("local"))
            .stdin(Stdio::null());
        command
    }

    /// `tstunnel ARGS…`.
    pub(crate) fn tstunnel(&self, args: &[&str]) -> Command {
        let mut command = self.command(TSTUNNEL);
        command.args(args);
        command
    }

    /// `tstunnel exec HOST -- WORDS…`; one word is a line.
    pub(crate) fn exec(&self, words: &[&str]) -> Command {
        let mut command = self.tstunnel(&["exec", HOST, "--"]);
        command.args(words);
        command
    }

    /// A folder in which `ssh` and `scp` are links to the binary.
    pub(crate) fn stand_ins(&self) -> PathBuf {
        let folder = self.root.join("stand-ins");
        if !folder.is_dir() {
            fs::create_dir(&folder).unwrap();
            for name in ["ssh", "scp"] {
                std::os::unix::fs::symlink(TSTUNNEL, folder.join(name)).unwrap();
            }
        }
        folder
    }

    /// The binary under the name `ssh`.
    pub(crate) fn ssh(&self, args: &[&str]) -> Command {
        let mut command = self.command(self.stand_ins().join("ssh"));
        command.args(args);
        command
    }

    /// The binary under the name `scp`.
    pub(crate) fn scp(&self, args: &[&str]) -> Command {
        let mut command = self.command(self.stand_ins().join("scp"));
        command.args(args);
        command
    }

    /// curl to `/PATH` below the default upgrade base, with the client's certificate; its answer's head comes first.
    pub(crate) fn curl(&self, path: &str) -> Command {
        self.curl_to(SERVER_NAME, &format!("/tinyscale/v1{path}"))
    }

    /// curl to any server name and path of this server.
    pub(crate) fn curl_to(&self, name: &str, path: &str) -> Command {
        let address = self.address();
        let mut command = self.command(program("curl"));
        command
            .args(["--silent", "--show-error", "--http1.1", "--include", "--path-as-is", "--max-time", "20"])
            .arg("--resolve")
            .arg(format!("{name}:{}:{}", address.port(), address.ip()))
            .args(["--cert", "client.crt", "--key", "client.key", "--cacert", "servers-ca.crt"])
            .current_dir(&self.root)
            .arg(format!("https://{name}:{}{path}", address.port()));
        command
    }

    /// Waits until nothing runs in the account.
    #[track_caller]
    pub(crate) fn wait_until_idle(&self) {
        let mut left = Vec::new();
        wait_until("nothing runs any more in the account", SOON, || {
            left = process::with_home(&self.home);
            left.is_empty()
        });
    }

    /// How many processes in the account have `text` among their arguments.
    pub(crate) fn running(&self, text: &str) -> usize {
        process::with_home(&self.home).iter().filter(|process| process.mentions(text)).count()
    }

    /// The names in the home, sorted, but for what the server keeps of contents.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.home).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name != ".cache");
        names.sort();
        names
    }

    /// Writes a file of the client's, and returns its path.
    pub(crate) fn local_file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.root.join("local").join(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Site {
    #[allow(clippy::print_stderr, reason = "a failing test shows the server's log")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log\n{}", self.server_log());
        }
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("paths of the tests are UTF-8")
}

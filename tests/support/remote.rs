//! A remote host with a fresh home, reached over OpenSSH or over tstunnel: the same to Mutagen, and to the tests.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::openssh::{self, Account, Sshd};
use super::pki::{Authority, Validity};
use super::process::{self, Process};
use super::recorder::Recorder;
use super::relay::Relay;
use super::serve::{Server, TSTUNNEL};
use super::wait::{SOON, wait_until};
use super::{script, tree};

/// The domain of the servers, less which a server name is a host id.
pub(crate) const DOMAIN: &str = "tunnel.test";

/// The principal of the clients.
pub(crate) const PRINCIPAL: &str = "spiffe://tunnel.test/users/ann";

/// What carries Mutagen to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    OpenSsh,
    Tstunnel,
}

/// How a host is set up, before it is started.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    transport: Transport,
    name: String,
    any_command: bool,
    targets: bool,
    wrapper: Option<String>,
    uploads: bool,
    grace: Option<Duration>,
    relayed: bool,
    recorded: bool,
    overheard: Option<&'static str>,
    listen: Ipv4Addr,
    server_log: &'static str,
    limits: Vec<String>,
    host_settings: Vec<String>,
    client_settings: Vec<String>,
    grants: Vec<(String, String)>,
    parent: PathBuf,
}

impl Setup {
    pub(crate) fn new(transport: Transport) -> Setup {
        Setup {
            transport,
            name: "host123".to_owned(),
            any_command: false,
            targets: false,
            wrapper: None,
            uploads: true,
            grace: None,
            relayed: false,
            recorded: false,
            overheard: None,
            listen: Ipv4Addr::LOCALHOST,
            server_log: "info",
            limits: Vec::new(),
            host_settings: Vec::new(),
            client_settings: Vec::new(),
            grants: Vec::new(),
            parent: std::env::temp_dir(),
        }
    }

    /// Calls the host something else than `host123`.
    pub(crate) fn named(self, name: &str) -> Setup {
        Setup { name: name.to_owned(), ..self }
    }

    /// Allows every command, as sshd does, and gives it to a shell.
    pub(crate) fn with_any_command(self) -> Setup {
        Setup { any_command: true, ..self }
    }

    /// Allows streams to the host's own ports.
    pub(crate) fn with_targets(self) -> Setup {
        Setup { targets: true, ..self }
    }

    /// Adds a line to the host's table in the server's configuration.
    pub(crate) fn with_host_setting(mut self, line: &str) -> Setup {
        self.host_settings.push(line.to_owned());
        self
    }

    /// Puts a shell script before every command, whose words are the script's arguments. Allows every command.
    pub(crate) fn with_wrapper(self, script: &str) -> Setup {
        Setup { wrapper: Some(script.to_owned()), any_command: true, ..self }
    }

    /// Lets the server refuse every file.
    pub(crate) fn without_uploads(self) -> Setup {
        Setup { uploads: false, ..self }
    }

    /// How long the server keeps a session whose connection broke; OpenSSH keeps none.
    pub(crate) fn with_grace(self, grace: Duration) -> Setup {
        Setup { grace: Some(grace), ..self }
    }

    /// Puts a relay between client and server, whose connections can be cut.
    pub(crate) fn behind_relay(self) -> Setup {
        Setup { relayed: true, ..self }
    }

    /// Writes down every call of `ssh` and `scp`.
    pub(crate) fn recorded(self) -> Setup {
        Setup { recorded: true, ..self }
    }

    /// Keeps what each `ssh` and `scp` says on stderr for the test, and from Mutagen; they log at `level`.
    pub(crate) fn overheard(self, level: &'static str) -> Setup {
        Setup { overheard: Some(level), ..self }
    }

    /// Lets the server, or the relay before it, listen on another address than loopback's.
    pub(crate) fn listening_on(self, address: Ipv4Addr) -> Setup {
        Setup { listen: address, ..self }
    }

    /// Lets the server log at another level than `info`.
    pub(crate) fn with_server_log(self, level: &'static str) -> Setup {
        Setup { server_log: level, ..self }
    }

    /// Adds a line to the server's `[limits]`.
    pub(crate) fn with_limit(mut self, line: &str) -> Setup {
        self.limits.push(line.to_owned());
        self
    }

    /// Adds a line to what the client knows of the host.
    pub(crate) fn with_client_setting(mut self, line: &str) -> Setup {
        self.client_settings.push(line.to_owned());
        self
    }

    /// Grants another host, which has the same home, to a principal, or the same host to another one.
    pub(crate) fn with_grant(mut self, principal: &str, host: &str) -> Setup {
        self.grants.push((principal.to_owned(), host.to_owned()));
        self
    }

    /// Makes the host's folder in another one than that for temporary files.
    pub(crate) fn inside(self, parent: &Path) -> Setup {
        Setup { parent: parent.to_owned(), ..self }
    }

    pub(crate) fn start(self) -> Remote {
        Remote::start(self)
    }
}

/// A running host.
pub(crate) struct Remote {
    setup: Setup,
    home: PathBuf,
    server: Carrier,
    relay: Option<Relay>,
    recorder: Option<Recorder>,
    /// The authority for the clients of a tstunnel server.
    clients: Option<Authority>,
    stand_ins: PathBuf,
    search_first: Option<PathBuf>,
    // Last, so that it is removed after the server has gone.
    folder: TempDir,
}

enum Carrier {
    OpenSsh(Sshd),
    Tstunnel(Server),
}

impl Remote {
    fn start(setup: Setup) -> Remote {
        let folder = tempfile::Builder::new().prefix("ts-remote-").tempdir_in(&setup.parent).unwrap();
        let root = folder.path().canonicalize().unwrap();
        let home = root.join("home");
        fs::create_dir(&home).unwrap();
        let wrapper = setup.wrapper.as_ref().map(|script| {
            let file = root.join("wrapper");
            script::write(&file, script);
            file
        });

        let mut clients = None;
        let server = match setup.transport {
            Transport::OpenSsh => {
                let account = Account { home: &home, wrapper: wrapper.as_deref(), uploads: setup.uploads };
                Carrier::OpenSsh(Sshd::start(&root, &account))
            }
            Transport::Tstunnel => {
                clients = Some(write_server_configuration(&root, &setup, &home, wrapper.as_deref()));
                Carrier::Tstunnel(Server::start_with_log(&root.join("server.toml"), setup.server_log))
            }
        };
        let relay = setup.relayed.then(|| Relay::listening_on(setup.listen, server.address()));
        let address = relay.as_ref().map_or(server.address(), Relay::address);
        let real = match setup.transport {
            Transport::OpenSsh => openssh::stand_ins(&root, &setup.name, address.port()),
            Transport::Tstunnel => {
                write_client_configuration(&root, &setup, address);
                tstunnel_stand_ins(&root)
            }
        };
        let recorder = setup.recorded.then(|| Recorder::around(&root.join("recorder"), &real));
        let stand_ins = recorder.as_ref().map_or(real, |recorder| recorder.folder().to_owned());
        let stand_ins = match setup.overheard {
            Some(level) => overheard_stand_ins(&root, &stand_ins, level),
            None => stand_ins,
        };
        Remote { setup, home, server, relay, recorder, clients, stand_ins, search_first: None, folder }
    }

    /// The account's home, which is empty at first.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// The host as Mutagen is told it.
    pub(crate) fn host(&self) -> &str {
        &self.setup.name
    }

    /// A folder in the account's home, as Mutagen is told it. The agent finds the home by its environment.
    pub(crate) fn url(&self, folder: &str) -> String {
        format!("{}:~/{folder}", self.setup.name)
    }

    /// A `tstunnel://` URL that says all that is needed to get there; `target` begins with a slash.
    pub(crate) fn tunnel_url(&self, target: &str) -> String {
        self.tunnel_url_with("client.crt", target)
    }

    /// The same with another file for the client's certificate, which is made if it isn't there.
    pub(crate) fn tunnel_url_with(&self, certificate: &str, target: &str) -> String {
        let (host, folder) = (&self.setup.name, self.folder.path().canonicalize().unwrap());
        if !folder.join(certificate).exists() {
            fs::copy(folder.join("client.crt"), folder.join(certificate)).unwrap();
        }
        let address = self.relay.as_ref().map_or(self.server.address(), Relay::address);
        let folder = folder.display();
        format!(
            "tstunnel://{host}{target}?endpoint={address}&sni={host}.{DOMAIN}&cert={folder}/{certificate}\
             &key={folder}/client.key&ca={folder}/servers-ca.crt"
        )
    }

    /// What a Mutagen daemon needs in its environment to get there.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        if let Some(first) = &self.search_first {
            path = std::env::join_paths(std::iter::once(first.clone()).chain(std::env::split_paths(&path))).unwrap();
        }
        vec![
            ("MUTAGEN_SSH_PATH", self.stand_ins.clone().into()),
            ("TSTUNNEL_CONFIG", self.folder.path().join("config.toml").into()),
            ("PATH", path),
        ]
    }

    /// The `ssh` of this host's, with one command line.
    pub(crate) fn ssh(&self, line: &str) -> Command {
        let mut command = Command::new(self.stand_ins.join("ssh"));
        command.envs(self.environment()).args([self.host(), line]);
        command
    }

    /// Lets whoever has this host's environment reach `other` too, which is an OpenSSH host with another name. tstunnel hands
    /// it to the `ssh` in PATH; OpenSSH has it in its configuration.
    pub(crate) fn fall_through_to(&mut self, other: &Remote) {
        assert_eq!(other.setup.transport, Transport::OpenSsh);
        match self.setup.transport {
            Transport::OpenSsh => openssh::include(self.folder.path(), other.folder.path()),
            Transport::Tstunnel => self.search_first = Some(other.stand_ins.clone()),
        }
    }

    /// Sends clients to another address from now on, from which something leads to the server.
    pub(crate) fn send_clients_to(&self, address: SocketAddr) {
        match self.setup.transport {
            Transport::OpenSsh => _ = openssh::stand_ins(&self.folder(), &self.setup.name, address.port()),
            Transport::Tstunnel => write_client_configuration(&self.folder(), &self.setup, address),
        }
    }

    pub(crate) fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("the setup says behind_relay")
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        self.recorder.as_ref().expect("the setup says recorded")
    }

    /// The folder with the configuration of both sides.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap()
    }

    /// Where the server listens, whatever stands before it.
    pub(crate) fn server_address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The tstunnel server.
    pub(crate) fn server(&self) -> &Server {
        match &self.server {
            Carrier::OpenSsh(_) => panic!("this host is OpenSSH's"),
            Carrier::Tstunnel(server) => server,
        }
    }

    /// Who signs the clients' certificates.
    pub(crate) fn clients(&self) -> &Authority {
        self.clients.as_ref().expect("OpenSSH has no authority")
    }

    /// What an `ssh` or `scp` has said on stderr.
    pub(crate) fn said_by(&self, process: &Process) -> String {
        fs::read_to_string(self.folder().join(format!("said/{}", process.pid))).expect("the setup says overheard")
    }

    /// Kills the server as a crash would. What it had started is left to notice it.
    pub(crate) fn kill_server(&mut self) {
        match &mut self.server {
            Carrier::OpenSsh(sshd) => sshd.kill(),
            Carrier::Tstunnel(server) => server.kill(),
        }
    }

    /// Starts the server again where it was.
    pub(crate) fn start_server_again(&mut self) {
        match &mut self.server {
            Carrier::OpenSsh(sshd) => sshd.start_again(),
            Carrier::Tstunnel(server) => server.start_again(),
        }
    }

    pub(crate) fn agents(&self) -> Vec<Process> {
        process::agents(&self.home)
    }

    /// Waits until nothing runs in the account.
    #[track_caller]
    pub(crate) fn wait_until_idle(&self) {
        let mut left = Vec::new();
        wait_until(&format!("nothing runs any more in {}", self.home.display()), SOON, || {
            left = process::with_home(&self.home);
            left.is_empty()
        });
    }

    /// Where the agent is installed.
    pub(crate) fn agent_file(&self) -> PathBuf {
        self.home.join(".mutagen/agents/0.18.1/mutagen-agent")
    }

    /// Puts a shell script where the agent is installed.
    pub(crate) fn install_script_as_agent(&self, body: &str) {
        let file = self.agent_file();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        script::write(&file, body);
    }

    /// Whether the real agent is installed, and may be run.
    pub(crate) fn has_real_agent(&self) -> bool {
        let starts_like_elf = fs::read(self.agent_file()).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"));
        starts_like_elf && tree::is_executable(&self.agent_file())
    }

    /// Names in the home that begin with `prefix`, sorted.
    pub(crate) fn names_in_home(&self, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(&self.home).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.starts_with(prefix));
        names.sort();
        names
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = match &self.server {
                Carrier::OpenSsh(sshd) => sshd.log(),
                Carrier::Tstunnel(server) => server.log(),
            };
            eprintln!("--- log of the server of {}\n{log}", self.setup.name);
            eprintln!("--- in its home run {:#?}", process::with_home(&self.home));
        }
    }
}

impl Carrier {
    fn address(&self) -> SocketAddr {
        match self {
            Carrier::OpenSsh(sshd) => (Ipv4Addr::LOCALHOST, sshd.port()).into(),
            Carrier::Tstunnel(server) => server.address(),
        }
    }
}

/// Writes `server.toml`, and every certificate that it and the client need; returns the clients' authority.
fn write_server_configuration(folder: &Path, setup: &Setup, home: &Path, wrapper: Option<&Path>) -> Authority {
    let servers = Authority::new("the servers' authority");
    let clients = Authority::new("the clients' authority");
    fs::write(folder.join("servers-ca.crt"), servers.certificate()).unwrap();
    fs::write(folder.join("clients-ca.crt"), clients.certificate()).unwrap();
    servers.server(&[&format!("*.{DOMAIN}")]).write(folder, "server");
    let client = clients.client(PRINCIPAL);
    client.write(folder, "client");
    fs::write(folder.join("revoked.crl"), clients.revoke(&[&client], Validity::Now)).unwrap();

    let host = &setup.name;
    let mut text = format!(
        "listen = [\"{}:0\"]\n\
         cert = \"server.crt\"\n\
         key = \"server.key\"\n\
         client_ca = [\"clients-ca.crt\"]\n\
         domain = \"{DOMAIN}\"\n\
         \n\
         [host.{host}]\n\
         home = \"{}\"\n",
        if setup.relayed { Ipv4Addr::LOCALHOST } else { setup.listen },
        home.display()
    );
    if setup.any_command {
        text += "commands = \"any\"\n";
    }
    if setup.targets {
        text += "targets = [\"tcp:127.0.0.1:*\"]\n";
    }
    for line in &setup.host_settings {
        text += &format!("{line}\n");
    }
    if let Some(wrapper) = wrapper {
        text += &format!("shell = false\nwrapper = [\"{}\"]\n", wrapper.display());
    }
    for (_, other) in setup.grants.iter().filter(|(_, other)| other != host) {
        text += &format!("\n[host.{other}]\nhome = \"{}\"\ncommands = \"any\"\n", home.display());
    }
    text += &format!("\n[[grant]]\nprincipal = \"{PRINCIPAL}\"\nhosts = [\"{host}\"]\n");
    for (principal, host) in &setup.grants {
        text += &format!("\n[[grant]]\nprincipal = \"{principal}\"\nhosts = [\"{host}\"]\n");
    }
    text += "\n[limits]\n";
    for line in &setup.limits {
        text += &format!("{line}\n");
    }
    if !setup.uploads {
        text += "max_upload_bytes = 1\n";
    }
    if let Some(grace) = setup.grace {
        text += &format!("resume_grace = \"{}s\"\n", grace.as_secs());
    }
    fs::write(folder.join("server.toml"), text).unwrap();
    clients
}

/// Writes the `config.toml` by which the client finds the host.
fn write_client_configuration(folder: &Path, setup: &Setup, address: SocketAddr) {
    let host = &setup.name;
    let mut text = format!(
        "[host.\"{host}\"]\n\
         endpoint = \"{address}\"\n\
         host_id = \"{host}\"\n\
         sni = \"{host}.{DOMAIN}\"\n\
         cert = \"client.crt\"\n\
         key = \"client.key\"\n\
         ca = \"servers-ca.crt\"\n\
         proxy = \"none\"\n"
    );
    for line in &setup.client_settings {
        text += &format!("{line}\n");
    }
    fs::write(folder.join("config.toml"), text).unwrap();
}

/// A folder in which `ssh` and `scp` are the binary.
fn tstunnel_stand_ins(folder: &Path) -> PathBuf {
    let stand_ins = folder.join("tstunnel");
    fs::create_dir_all(&stand_ins).unwrap();
    for name in ["ssh", "scp"] {
        std::os::unix::fs::symlink(TSTUNNEL, stand_ins.join(name)).unwrap();
    }
    stand_ins
}

/// An `ssh` and an `scp` whose stderr goes to a file in `said`, named by the process, before they become those in `real`.
fn overheard_stand_ins(folder: &Path, real: &Path, level: &str) -> PathBuf {
    let (stand_ins, said) = (folder.join("overheard"), folder.join("said"));
    for folder in [&stand_ins, &said] {
        fs::create_dir_all(folder).unwrap();
    }
    for name in ["ssh", "scp"] {
        let body = format!(
            "export TSTUNNEL_LOG={level}\nexec '{real}/{name}' \"$@\" 2>'{said}/'$$",
            real = real.display(),
            said = said.display()
        );
        script::write(&stand_ins.join(name), &body);
    }
    stand_ins
}

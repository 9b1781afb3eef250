//! Real proxies on loopback: tinyproxy, tinyproxy behind stunnel's TLS, and dante on a machine with accounts and names of its
//! own.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::pki::Authority;
use crate::support::port;
use crate::support::process::{Group, program, run};
use crate::support::wait::{SOON, wait_until};
use crate::support_net::site::Site;

pub(crate) const USER: &str = "proxyuser";
/// What tinyproxy can read in its own configuration.
pub(crate) const SIMPLE_PASSWORD: &str = "s.cr-t_1";
/// With what a URL cannot hold as it is.
pub(crate) const PASSWORD: &str = "s:cr/t%1";
pub(crate) const ENCODED_PASSWORD: &str = "s%3Acr%2Ft%251";

/// A name that dante's machine alone knows, for loopback.
pub(crate) const INSIDE: &str = "inside.proxies.test";

/// A running proxy.
pub(crate) struct Running {
    pub(crate) port: u16,
    log: PathBuf,
    _process: Group,
}

impl Running {
    fn start(name: &str, port: u16, log: PathBuf, command: &mut Command) -> Running {
        let output = fs::File::create(log.with_extension("stderr")).unwrap();
        let mut process = Group::spawn(command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output));
        wait_until(&format!("{name} listens"), SOON, || {
            let said = || fs::read_to_string(log.with_extension("stderr")).unwrap_or_default();
            assert!(process.ended().is_none(), "{name} ended: {}", said());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Running { port, log, _process: process }
    }

    /// How often `text` is in its log.
    pub(crate) fn count(&self, text: &str) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().matches(text).count()
    }

    /// Waits until `text` is in its log at least `more` times more than `before`, and returns how often that is. A client that is slow
    /// to load its files makes another connection then.
    #[track_caller]
    pub(crate) fn logs(&self, text: &str, before: usize, more: usize) -> usize {
        let what = format!("{text} is {more} times more than {before} in {}", self.log.display());
        wait_until(&what, SOON, || self.count(text) >= before + more);
        self.count(text)
    }
}

/// tinyproxy, which logs each `CONNECT` that it is asked for; `lines` are added to its configuration.
pub(crate) fn tinyproxy(site: &Site, name: &str, lines: &str) -> Running {
    let port = port::free();
    let log = site.root.join(format!("{name}.log"));
    let text = format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 60\nLogFile \"{}\"\nLogLevel Connect\nMaxClients 50\n\
         Allow 127.0.0.1\n{lines}\n",
        log.display()
    );
    let configuration = site.root.join(format!("{name}.conf"));
    fs::write(&configuration, text).unwrap();
    Running::start(name, port, log, Command::new(program("tinyproxy")).args(["-d", "-c"]).arg(configuration))
}

/// stunnel, which takes TLS and hands what is in it to `target`.
pub(crate) fn stunnel(site: &Site, authority: &Authority, names: &[&str], target: u16) -> Running {
    authority.server(names).write(&site.root, "proxy");
    let port = port::free();
    let log = site.root.join("stunnel.log");
    let text = format!(
        "foreground = yes\npid =\noutput = {}\n[proxy]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{target}\n\
         cert = {root}/proxy.crt\nkey = {root}/proxy.key\n",
        log.display(),
        root = site.root.display()
    );
    let configuration = site.root.join("stunnel.conf");
    fs::write(&configuration, text).unwrap();
    Running::start("stunnel", port, log, Command::new(program("stunnel")).arg(configuration))
}

/// dante, by `method` (`none` or `username`), to `target` alone.
pub(crate) fn dante(site: &Site, name: &str, method: &str, target: u16) -> Running {
    assert!(rustix::process::geteuid().is_root(), "these tests need root: dante asks for accounts of its machine");
    let port = port::free();
    let log = site.root.join(format!("{name}.log"));
    let etc = site.root.join(format!("{name}-etc"));
    run(Command::new("cp").args(["-a", "/etc"]).arg(&etc));
    let hash = run(Command::new(program("openssl")).args(["passwd", "-6", PASSWORD]));
    let append = |file: &str, line: String| {
        let text = fs::read_to_string(etc.join(file)).unwrap_or_default();
        fs::write(etc.join(file), format!("{text}\n{line}\n")).unwrap();
    };
    append("passwd", format!("{USER}:x:61900:61900::/nonexistent:/bin/false"));
    append("shadow", format!("{USER}:{}:19000:0:99999:7:::", hash.trim()));
    append("hosts", format!("127.0.0.1 {INSIDE}"));
    let text = format!(
        "logoutput: {}\ninternal: 127.0.0.1 port = {port}\nexternal: 127.0.0.1\nclientmethod: none\n\
         socksmethod: {method}\nuser.privileged: root\nuser.unprivileged: root\n\
         client pass {{\n from: 127.0.0.0/8 to: 0.0.0.0/0\n}}\n\
         socks pass {{\n from: 127.0.0.0/8 to: 127.0.0.0/8 port = {target}\n command: connect\n log: connect\n}}\n\
         socks block {{\n from: 0.0.0.0/0 to: 0.0.0.0/0\n log: connect\n}}\n",
        log.display()
    );
    let configuration = site.root.join(format!("{name}.conf"));
    fs::write(&configuration, text).unwrap();
    let script = format!("mount --bind '{}' /etc && exec \"$@\"", etc.display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    Running::start(name, port, log, command.arg(program("danted")).arg("-f").arg(configuration))
}

//! Servers of others that end mutual TLS, with the certificates of a [`Host`]: HAProxy and stunnel.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::Running;
use crate::servers::Host;
use crate::support::port;
use crate::support::process::program;

/// HAProxy with a thread a processor, without tickets or a cache of sessions. Connections go to `target`, or are for requests
/// that it answers itself.
pub(crate) fn haproxy(host: &Host, target: Option<SocketAddr>) -> Running {
    let (folder, address) = prepare(host, "haproxy");
    let (at, ca) = (folder.display(), host.folder().join("ca.crt"));
    let rest = match target {
        None => "  mode http\n  option http-ignore-probes\n  http-request return status 204\n".to_owned(),
        Some(target) => {
            format!("  mode tcp\n  default_backend there\nbackend there\n  mode tcp\n  server one {target}\n")
        }
    };
    let text = format!(
        "global\n\
         \x20 nbthread {threads}\n\
         \x20 maxconn {CONNECTIONS}\n\
         \x20 tune.ssl.cachesize 0\n\
         defaults\n\
         \x20 timeout connect 10s\n\
         \x20 timeout client 10m\n\
         \x20 timeout server 10m\n\
         frontend here\n\
         \x20 bind {address} ssl crt {at}/server.pem ca-file {ca} verify required ssl-min-ver TLSv1.3 no-tls-tickets\n\
         {rest}",
        ca = ca.display(),
        threads = std::thread::available_parallelism().unwrap()
    );
    let mut command = Command::new(program("haproxy"));
    command.args(["-db", "-f"]).arg(write(&folder, &text));
    Running::start(command, address.port(), None)
}

/// stunnel, whose connections go to `target`.
pub(crate) fn stunnel(host: &Host, target: SocketAddr) -> Running {
    let (folder, address) = prepare(host, "stunnel");
    let (at, ca) = (folder.display(), host.folder().join("ca.crt"));
    let text = format!(
        "foreground = yes\n\
         pid =\n\
         syslog = no\n\
         debug = err\n\
         [bench]\n\
         accept = {address}\n\
         connect = {target}\n\
         cert = {at}/server.pem\n\
         CAfile = {ca}\n\
         verifyChain = yes\n\
         requireCert = yes\n\
         sslVersionMin = TLSv1.3\n",
        ca = ca.display()
    );
    let mut command = Command::new(program("stunnel"));
    command.arg(write(&folder, &text));
    Running::start(command, address.port(), None)
}

/// More than any measure opens.
const CONNECTIONS: usize = 4000;

/// Makes a folder for a server that has the host's certificates, with its own and its key in one file; picks where it listens.
fn prepare(host: &Host, name: &str) -> (PathBuf, SocketAddr) {
    let folder = host.folder().join(name);
    fs::create_dir_all(&folder).unwrap();
    let [certificate, key] =
        ["server.crt", "server.key"].map(|name| fs::read_to_string(host.folder().join(name)).unwrap());
    let file = folder.join("server.pem");
    fs::write(&file, certificate + &key).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    (folder, (Ipv4Addr::LOCALHOST, port::free()).into())
}

fn write(folder: &Path, configuration: &str) -> PathBuf {
    let file = folder.join("configuration");
    fs::write(&file, configuration).unwrap();
    file
}

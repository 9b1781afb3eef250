//! `tstunnel check HOST`: the whole of what it says for each code of tstunnel-protocol(7), and for what is only doubtful.
//!
//! Each code is provoked by a real server, or by a peer that does what a real one does only on a bad day. Ports, folders, days
//! and times are put into one form; everything else is compared.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use support::mutagen::{Daemon, programs};
use support::pki::{Authority, Usage, Validity, params, uri_params};
use support::{port, script};
use support_net::child::{Ran, Watched, run, run_with_input};
use support_net::fake::{Request, Tls, finish, hang_up, https_server, https_server_of, tcp_server};
use support_net::frames::{self, frame};
use support_net::site::{HOST, PRINCIPAL, Plan, SERVER_NAME, Site, text};
use tstunnel::error::Code;

/// The head of an answer that chooses frames.
const FRAMED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tstunnel/1\r\n\r\n";

// --- what is said where nothing is wrong --------------------------------------------------------------------------------

/// The steps of a check of a site's host, up to where Mutagen's agent would be.
const GOOD: [(&str, &str); 10] = [
    (
        "configuration",
        "\
configuration   ok       host123
                         endpoint  127.0.0.1:PORT  ROOT/config.toml [host.\"host123\"]
                         host_id  host123  ROOT/config.toml [host.\"host123\"]
                         cert  ROOT/client.crt  ROOT/config.toml [host.\"host123\"]
                         key  ROOT/client.key  ROOT/config.toml [host.\"host123\"]
                         ca  ROOT/servers-ca.crt  ROOT/config.toml [host.\"host123\"]
                         upgrade_base  /tinyscale/v1  default
                         sni  host123.tunnel.test  ROOT/config.toml [host.\"host123\"]
                         connect_timeout  4s  ROOT/config.toml [host.\"host123\"]
",
    ),
    ("name", "name            -        127.0.0.1 is an address\n"),
    ("proxy", "proxy           -        direct\n"),
    ("tcp", "tcp             ok       127.0.0.1:PORT\n"),
    (
        "tls",
        "\
tls             ok       TLS 1.3, TLS13_AES_128_GCM_SHA256, X25519MLKEM768
                         *.tunnel.test, N days left, by CN=the servers' authority
",
    ),
    ("own certificate", "own certificate ok       spiffe://tunnel.test/users/ann, N days left\n"),
    (
        "host",
        "host            ok       host123 of tstunnel/0.1.0, as spiffe://tunnel.test/users/ann in the account ME\n",
    ),
    ("upgrade", "upgrade         ok       tstunnel/1, an interrupted session is kept for 120 s\n"),
    ("policy", "policy          ok       allows `uname -s -m`, which says Linux MACHINE\n"),
    ("round trip", "round trip      ok       T ms\n"),
];

const AGENT_MISSING: &str = "\
agent           warning  agent-missing: .mutagen/agents/0.18.1/mutagen-agent: not found
                         hint: Mutagen installs it with the first session
";

/// Everything that is said up to and with `part`.
fn good_until(part: &str) -> String {
    let end = 1 + GOOD.iter().position(|(name, _)| *name == part).expect("a part that is good");
    GOOD[..end].iter().map(|(_, said)| *said).collect()
}

/// A `mutagen` that knows its version, and nothing else.
fn with_mutagen<'a>(site: &Site, command: &'a mut Command) -> &'a mut Command {
    let mutagen = site.root.join("mutagen");
    if !mutagen.exists() {
        script::write(&mutagen, "echo 0.18.1");
    }
    command.env("TSTUNNEL_MUTAGEN", mutagen)
}

fn check(site: &Site, args: &[&str]) -> Ran {
    let mut command = site.tstunnel(&["check", HOST]);
    run(with_mutagen(site, command.args(args)))
}

/// What was said, in one form.
fn said(site: &Site, ran: &Ran) -> String {
    assert_eq!(ran.stderr, "", "{}", ran.text());
    let text = ran.text().replace(text(&site.root), "ROOT");
    text.lines().map(|line| in_one_form(line) + "\n").collect()
}

fn in_one_form(line: &str) -> String {
    let mut line = line.to_owned();
    if line.starts_with(' ') {
        // The columns are as wide as a folder's name.
        let words: Vec<&str> = line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        line = format!("{:25}{}", "", words.join("  "));
    }
    for (before, after, form) in [
        ("127.0.0.1:", "", "PORT"),
        (", ", " days left", "N"),
        ("round trip      ok       ", " ms", "T"),
        ("in the account ", "", "ME"),
        ("which says Linux ", "", "MACHINE"),
        ("endpoint.invalid: ", "", "REASON"),
        ("process ", ", was started", "PID"),
        ("throughput      ok       ", " MB/s", "R"),
        (" bytes in ", " s", "T"),
    ] {
        line = replaced(&line, before, after, form);
    }
    line
}

/// Puts `form` for a word between `before` and `after`; for the rest of the line where nothing may follow a word.
fn replaced(line: &str, before: &str, after: &str, form: &str) -> String {
    let Some((start, rest)) = line.split_once(before) else { return line.to_owned() };
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let length = match (form, after) {
        ("REASON" | "ME" | "MACHINE", _) => rest.len(),
        _ => rest.find(|c| !is_number(c)).unwrap_or(rest.len()),
    };
    match rest[length..].strip_prefix(after) {
        Some(end) if length > 0 => format!("{start}{before}{form}{after}{}", replaced(end, before, after, form)),
        _ => format!("{start}{before}{}", replaced(rest, before, after, form)),
    }
}

#[track_caller]
fn assert_says(site: &Site, ran: &Ran, status: i32, expected: &str) {
    let said = said(site, ran);
    assert!(said == expected, "--- said\n{said}--- expected\n{expected}---");
    assert_eq!(ran.code(), Some(status), "{said}");
}

#[test]
fn a_host_on_which_mutagen_was_never_used_is_fine() {
    let site = Site::start(&Plan::mutagen());
    assert_says(&site, &check(&site, &[]), 0, &(good_until("round trip") + AGENT_MISSING));
    site.wait_until_idle();
    assert_eq!(site.names(), Vec::<String>::new());
}

// --- every code ---------------------------------------------------------------------------------------------------------

/// What provokes a code, and all that is said then.
struct Case {
    code: Code,
    status: i32,
    /// The last part that is as good as ever.
    after: &'static str,
    said: &'static str,
    provoke: fn() -> (Site, Ran),
}

const CASES: &[Case] = &[
    Case {
        code: Code::Config,
        status: 3,
        after: "",
        said: "\
configuration   failed   config: ROOT/config.toml:3: unknown key `endpiont`
                         hint: did you mean `endpoint`?
",
        provoke: || {
            let site = Site::new();
            fs::write(site.configuration(), format!("[host.{HOST}]\nuser = \"x\"\nendpiont = \"x\"\n")).unwrap();
            checked(site)
        },
    },
    Case {
        code: Code::Config,
        status: 3,
        after: "",
        said: "\
configuration   failed   config: cannot read ROOT/servers-ca.crt: no such file or directory
                         hint: check the path, and that this account may read the file
",
        provoke: || {
            let site = Site::new();
            site.configure("127.0.0.1:1", "");
            fs::remove_file(site.root.join("servers-ca.crt")).unwrap();
            checked(site)
        },
    },
    Case {
        code: Code::Config,
        status: 7,
        after: "tls",
        said: "\
own certificate failed   config: ROOT/client.crt: the certificate expired at 2021-01-01 00:00:00 UTC
                         hint: get a new certificate, and check this machine's clock
",
        provoke: || {
            let site = Site::start(&Plan::mutagen());
            site.write(&site.clients.issue(Usage::Client, Validity::Past, uri_params(&[PRINCIPAL])), "client");
            checked(site)
        },
    },
    Case {
        code: Code::Config,
        status: 7,
        after: "tls",
        said: "\
own certificate failed   config: ROOT/client.key: the private key can be read by others (mode 0644)
                         hint: chmod 600 ROOT/client.key
",
        provoke: || {
            let site = Site::start(&Plan::mutagen());
            fs::set_permissions(site.root.join("client.key"), fs::Permissions::from_mode(0o644)).unwrap();
            checked(site)
        },
    },
    Case {
        code: Code::Dns,
        status: 4,
        after: "",
        said: "\
configuration   ok       host123
                         endpoint  endpoint.invalid:443  ROOT/config.toml [host.\"host123\"]
                         host_id  host123  ROOT/config.toml [host.\"host123\"]
                         cert  ROOT/client.crt  ROOT/config.toml [host.\"host123\"]
                         key  ROOT/client.key  ROOT/config.toml [host.\"host123\"]
                         ca  ROOT/servers-ca.crt  ROOT/config.toml [host.\"host123\"]
                         upgrade_base  /tinyscale/v1  default
                         sni  host123.tunnel.test  ROOT/config.toml [host.\"host123\"]
                         connect_timeout  4s  ROOT/config.toml [host.\"host123\"]
name            failed   dns: cannot look up endpoint.invalid: REASON
                         hint: check the endpoint's spelling and this machine's name servers
",
        provoke: || {
            let site = Site::new();
            site.configure("endpoint.invalid:443", "");
            checked(site)
        },
    },
    Case {
        code: Code::ConnectRefused,
        status: 5,
        after: "proxy",
        said: "\
tcp             failed   connect-refused: cannot connect to 127.0.0.1:PORT: connection refused
                         hint: check the endpoint's port, and that `tstunnel serve` or its load balancer is running
",
        provoke: || {
            let site = Site::new();
            site.configure(format_args!("127.0.0.1:{}", port::free()), "");
            checked(site)
        },
    },
    Case {
        code: Code::ConnectTimeout,
        status: 6,
        after: "tcp",
        said: "\
tls             failed   connect-timeout: the TLS handshake with 127.0.0.1:PORT took longer than 4 s
                         hint: check the route and firewall to the endpoint, or raise `connect_timeout`
",
        provoke: || {
            let site = Site::new();
            site.configure(tcp_server(|mut connection| drop(io::copy(&mut connection, &mut io::sink()))), "");
            checked(site)
        },
    },
    Case {
        code: Code::Proxy,
        status: 8,
        after: "host",
        said: "\
upgrade         failed   proxy: a peer's word
                         hint: check the proxy's address and credentials, or set `proxy = \"none\"`
",
        provoke: || refused_with(Code::Proxy),
    },
    Case {
        code: Code::TlsUntrusted,
        status: 6,
        after: "tcp",
        said: "\
tls             failed   tls-untrusted: 127.0.0.1's certificate is signed by an authority that is not in ROOT/servers-ca.crt
                         *.tunnel.test, N days left, by CN=the servers' authority
                         hint: set `ca` to the file of the authority that signed the server's certificate
",
        provoke: || {
            let site = Site::start(&Plan::mutagen());
            fs::write(site.root.join("servers-ca.crt"), Authority::new("somebody else").certificate()).unwrap();
            checked(site)
        },
    },
    Case {
        code: Code::TlsExpired,
        status: 6,
        after: "tcp",
        said: "\
tls             failed   tls-expired: 127.0.0.1's certificate expired at 2021-01-01 00:00:00 UTC
                         host123.tunnel.test, ended, by CN=the servers' authority
                         hint: check this machine's clock, and ask whoever runs the endpoint to renew its certificate
",
        provoke: || {
            let mut site = Site::new();
            let expired = site.servers.issue(Usage::Server, Validity::Past, params(&[SERVER_NAME]));
            site.write(&expired, "server");
            site.serve(&Plan::mutagen());
            checked(site)
        },
    },
    Case {
        code: Code::TlsName,
        status: 6,
        after: "tcp",
        said: "\
tls             failed   tls-name: 127.0.0.1's certificate is for other.tunnel.test, *.example.org, not host123.tunnel.test
                         other.tunnel.test, *.example.org, N days left, by CN=the servers' authority
                         hint: set `sni` to host123.example.org, or ask whoever runs the endpoint for a certificate for host123.tunnel.test
",
        provoke: || {
            let mut site = Site::new();
            site.write(&site.servers.server(&["other.tunnel.test", "*.example.org"]), "server");
            site.serve(&Plan::mutagen());
            checked(site)
        },
    },
    Case {
        code: Code::TlsHandshake,
        status: 6,
        after: "tcp",
        said: "\
tls             failed   tls-handshake: 127.0.0.1:PORT closed the connection during the TLS handshake
                         hint: check that a server for host123.tunnel.test is up behind the endpoint, where that is a load balancer, and that it speaks TLS 1.3
",
        provoke: || {
            let site = Site::new();
            site.configure(tcp_server(|mut connection| drop(connection.read(&mut [0; 4096]))), "");
            checked(site)
        },
    },
    Case {
        code: Code::ClientCert,
        status: 7,
        after: "tls",
        said: "\
own certificate failed   client-cert: 127.0.0.1 rejected the certificate ROOT/client.crt (alert unknown_ca)
                         spiffe://tunnel.test/users/ann, N days left
                         hint: the server does not know the authority that signed it, or cannot tell whether it was revoked: \
use a certificate of the endpoint's own authority, or ask whoever runs it about its revocation lists
",
        provoke: || {
            let site = Site::start(&Plan::mutagen());
            site.write(&Authority::new("somebody else").client(PRINCIPAL), "client");
            checked(site)
        },
    },
    Case {
        code: Code::NotTstunnel,
        status: 6,
        after: "tcp",
        said: "\
tls             failed   not-tstunnel: 127.0.0.1:PORT does not speak TLS
                         hint: check the endpoint's port: what answered is not a TLS server
",
        provoke: || {
            let site = Site::new();
            let ssh = tcp_server(|mut connection| {
                let _ = connection.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n");
                let _ = io::copy(&mut connection, &mut io::sink());
            });
            site.configure(ssh, "");
            checked(site)
        },
    },
    Case {
        code: Code::NotTstunnel,
        status: 8,
        after: "own certificate",
        said: "\
host            failed   not-tstunnel: 127.0.0.1 under /tinyscale/v1 answered 200 and not in this protocol
                         hint: check the endpoint and `upgrade_base`: what answered is another kind of server
",
        provoke: || {
            let site = Site::new();
            fake(&site, |tls, _| {
                let page = "<html>hello</html>";
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n", page.len());
                tls.write_all((head + page).as_bytes())?;
                finish(tls)
            });
            checked(site)
        },
    },
    Case {
        code: Code::Unauthorized,
        status: 8,
        after: "tls",
        said: "\
own certificate ok       spiffe://tunnel.test/users/ann, spiffe://tunnel.test/users/bob, N days left
host            failed   unauthorized: the client certificate has a SPIFFE URI and another URI
                         hint: ask whoever runs the endpoint which principal and account they granted to you
",
        provoke: || {
            let site = Site::start(&Plan::mutagen());
            let two = uri_params(&[PRINCIPAL, "spiffe://tunnel.test/users/bob"]);
            site.write(&site.clients.issue(Usage::Client, Validity::Now, two), "client");
            checked(site)
        },
    },
    Case {
        code: Code::HostUnknown,
        status: 8,
        after: "tls",
        said: "\
own certificate ok       spiffe://tunnel.test/users/bob, N days left
host            failed   host-unknown: no host host123.tunnel.test for spiffe://tunnel.test/users/bob
                         hint: check the host's name, and ask whoever runs the endpoint for a grant to it
",
        provoke: || {
            let site = Site::start(&Plan::mutagen());
            site.write(&site.clients.client("spiffe://tunnel.test/users/bob"), "client");
            checked(site)
        },
    },
    Case {
        code: Code::CommandDenied,
        status: 0,
        after: "host",
        said: "\
upgrade         -        nothing was allowed that needs one
policy          warning  command-denied: host123 does not allow spiffe://tunnel.test/users/ann `uname -s -m`
                         hint: ask whoever runs the endpoint for `\"mutagen\"` in the host's `commands`, which is what Mutagen needs
agent           warning  command-denied: host123 does not allow spiffe://tunnel.test/users/ann `.mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=di…`
                         hint: ask whoever runs the endpoint for `\"mutagen\"` in the host's `commands`, which is what Mutagen needs
",
        provoke: || checked(Site::start(&Plan::mutagen().host("commands = []"))),
    },
    Case {
        code: Code::AgentMissing,
        status: 0,
        after: "round trip",
        said: AGENT_MISSING,
        provoke: || checked(Site::start(&Plan::mutagen())),
    },
    Case {
        code: Code::AgentNotExecutable,
        status: 9,
        after: "round trip",
        said: "\
agent           failed   agent-not-executable: .mutagen/agents/0.18.1/mutagen-agent: cannot be executed
                         hint: remove .mutagen/agents/0.18.1 there; Mutagen installs it again with the first session
",
        provoke: || {
            let site = Site::start(&Plan::mutagen());
            install(&site, "", 0o644);
            checked(site)
        },
    },
    Case {
        code: Code::TooMany,
        status: 8,
        after: "host",
        said: "\
upgrade         failed   too-many: this principal has as many sessions as it may have
                         hint: end sessions that are not needed, or ask whoever runs the endpoint to raise `max_sessions_per_principal`
",
        provoke: || with_a_session(&Plan::any().limit("max_sessions_per_principal = 1")),
    },
    Case {
        code: Code::Overloaded,
        status: 8,
        after: "host",
        said: "\
upgrade         failed   overloaded: the server has as many sessions as it takes
                         hint: try again in a moment
",
        provoke: || with_a_session(&Plan::any().limit("max_sessions = 1")),
    },
    Case {
        code: Code::BadRequest,
        status: 8,
        after: "",
        said: "\
configuration   ok       host123
                         endpoint  127.0.0.1:PORT  ROOT/config.toml [host.\"host123\"]
                         host_id  host123  ROOT/config.toml [host.\"host123\"]
                         cert  ROOT/client.crt  ROOT/config.toml [host.\"host123\"]
                         key  ROOT/client.key  ROOT/config.toml [host.\"host123\"]
                         ca  ROOT/servers-ca.crt  ROOT/config.toml [host.\"host123\"]
                         upgrade_base  /elsewhere  --upgrade-base
                         sni  host123.tunnel.test  ROOT/config.toml [host.\"host123\"]
                         connect_timeout  4s  ROOT/config.toml [host.\"host123\"]
name            -        127.0.0.1 is an address
proxy           -        direct
tcp             ok       127.0.0.1:PORT
tls             ok       TLS 1.3, TLS13_AES_128_GCM_SHA256, X25519MLKEM768
                         *.tunnel.test, N days left, by CN=the servers' authority
own certificate ok       spiffe://tunnel.test/users/ann, N days left
host            failed   bad-request: there is nothing under this path
                         hint: check `upgrade_base`, which is /elsewhere, and that client and server fit
",
        provoke: || {
            let site = Site::start(&Plan::mutagen());
            let ran = check(&site, &["--upgrade-base", "/elsewhere"]);
            (site, ran)
        },
    },
    Case {
        code: Code::TargetUnreachable,
        status: 11,
        after: "round trip",
        said: "\
agent           warning  agent-missing: .mutagen/agents/0.18.1/mutagen-agent: not found
                         hint: Mutagen installs it with the first session
target          failed   target-unreachable: cannot reach tcp:127.0.0.1:PORT: connection refused
                         hint: check that the target's service is running on the host
",
        provoke: || {
            let site = Site::start(&Plan::mutagen().host("targets = [\"tcp:127.0.0.1:*\"]"));
            let ran = check(&site, &["--target", &format!("tcp:127.0.0.1:{}", port::free())]);
            (site, ran)
        },
    },
    // An upload alone meets this one, and a check stores nothing.
    Case {
        code: Code::Storage,
        status: 8,
        after: "host",
        said: "\
upgrade         failed   storage: a peer's word
                         hint: free space in the account's home directory on the host
",
        provoke: || refused_with(Code::Storage),
    },
    Case {
        code: Code::SessionLost,
        status: 8,
        after: "host",
        said: "\
upgrade         ok       tstunnel/1, without resuming
policy          failed   session-lost: a last word
                         hint: start again: the session ended on the host
",
        provoke: || in_session(|tls| {
            tls.write_all(&frame(frames::ERROR, b"session-lost: a last word"))?;
            finish(tls)
        }),
    },
    Case {
        code: Code::NetworkLost,
        status: 8,
        after: "host",
        said: "\
upgrade         ok       tstunnel/1, without resuming
policy          failed   network-lost: the connection to 127.0.0.1 was lost: it was cut
                         hint: check the network, then start again
",
        provoke: || in_session(hang_up),
    },
    Case {
        code: Code::Protocol,
        status: 8,
        after: "host",
        said: "\
upgrade         ok       tstunnel/1, without resuming
policy          failed   protocol: 127.0.0.1 sent a frame of unknown type 0x7f
                         hint: check that client and server are of matching versions
",
        provoke: || in_session(|tls| {
            tls.write_all(&frame(0x7f, b""))?;
            finish(tls)
        }),
    },
    Case {
        code: Code::Internal,
        status: 8,
        after: "host",
        said: "\
upgrade         ok       tstunnel/1, without resuming
policy          failed   internal: a last word
                         hint: please report this, with what led to it
",
        provoke: || in_session(|tls| {
            tls.write_all(&frame(frames::ERROR, b"internal: a last word"))?;
            finish(tls)
        }),
    },
];

#[test]
fn each_code_is_said_where_it_happens_and_what_to_do_about_it() {
    for case in CASES {
        let (site, ran) = (case.provoke)();
        let before = if case.after.is_empty() { String::new() } else { good_until(case.after) };
        let marked = format!(" {}: ", case.code);
        assert!(case.said.contains(&marked), "the case of {} says nothing of it", case.code);
        assert_says(&site, &ran, case.status, &(before + case.said));
    }
}

/// `usage` is what no step can say: there is nothing to check.
#[test]
fn the_cases_are_all_there_is() {
    for code in Code::ALL.iter().filter(|code| **code != Code::Usage) {
        assert!(CASES.iter().any(|case| case.code == *code), "no case provokes {code}");
    }
}

#[test]
fn wrong_usage_is_status_two_and_no_step() {
    let site = Site::new();
    site.configure("127.0.0.1:1", "");
    let wrong: &[&[&str]] = &[
        &["check"],
        &["check", HOST, "more"],
        &["check", "--frob", HOST],
        &["check", "--throughput=fast", HOST],
        &["check", "tstunnel://h?nonsense=1"],
    ];
    for args in wrong {
        support_net::report::fails(&mut site.tstunnel(args), 2, "usage");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure_of_any_command() {
    let site = Site::new();
    site.configure("127.0.0.1:1", "");
    let lines: &[&[&str]] = &[
        &["check", HOST],
        &["check", "--json", HOST],
        &["status"],
        &["status", "--json"],
        &["classify"],
        &["--help"],
        &["--version"],
    ];
    for args in lines {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut command = site.tstunnel(args);
        let ran = Watched::start_with(command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped())).wait();
        // What a process gets that SIGPIPE ends.
        assert_eq!((ran.code(), ran.stderr.as_str()), (Some(141), ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_behind_stdout_is_a_failure() {
    let site = Site::new();
    site.configure("127.0.0.1:1", "");
    for args in [&["check", HOST][..], &["classify"], &["--help"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = site.tstunnel(args);
        let ran = Watched::start_with(command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped())).wait();
        let said = support_net::report::error_line(&format!("{args:?}"), &ran.stderr, "storage");
        assert!(said.starts_with("stdout cannot be written: no space left"), "{said}");
    }
}

fn checked(site: Site) -> (Site, Ran) {
    let ran = check(&site, &[]);
    (site, ran)
}

/// The answer of a server that is as it should be to `GET /host`.
fn answer_host(tls: &mut Tls) -> io::Result<()> {
    let body = format!(
        "{{\"server\":\"tstunnel/0.1.0\",\"host\":\"{HOST}\",\"principal\":\"{PRINCIPAL}\",\"user\":\"root\",\"features\":[]}}"
    );
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ";
    tls.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())?;
    finish(tls)
}

/// A server of the site's name that answers what `answer` says.
fn fake(site: &Site, answer: impl Fn(&mut Tls, &Request) -> io::Result<()> + Send + Sync + 'static) {
    site.configure(https_server(&site.servers.server(&["*.tunnel.test"]), answer), "");
}

/// The same, which knows the host.
fn fake_host(answer: impl Fn(&mut Tls, &Request) -> io::Result<()> + Send + Sync + 'static) -> Site {
    let site = Site::new();
    fake(&site, move |tls, request| {
        if request.head.starts_with("GET /tinyscale/v1/host ") { answer_host(tls) } else { answer(tls, request) }
    });
    site
}

/// A server that refuses the command with a code that none gives to one.
fn refused_with(code: Code) -> (Site, Ran) {
    checked(fake_host(move |tls, _| {
        let body = format!("{{\"type\":\"urn:tstunnel:{code}\",\"detail\":\"a peer's word\"}}");
        let head = "HTTP/1.1 500 Oh No\r\nContent-Type: application/problem+json\r\nContent-Length: ";
        tls.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())?;
        finish(tls)
    }))
}

/// A server that upgrades, and then does what `then` says.
fn in_session(then: fn(&mut Tls) -> io::Result<()>) -> (Site, Ran) {
    checked(fake_host(move |tls, _| {
        tls.write_all(FRAMED.as_bytes())?;
        tls.flush()?;
        then(tls)
    }))
}

/// A check while a session of the same principal's lives.
fn with_a_session(plan: &Plan) -> (Site, Ran) {
    let site = Site::start(plan);
    let mut session = Watched::start(site.exec(&["cat"]).stdin(Stdio::piped()));
    session.write(b"here\n");
    session.wait_for_output("here");
    checked(site)
}

/// Puts a script where the agent of version 0.18.1 belongs.
fn install(site: &Site, body: &str, mode: u32) {
    let folder = site.home.join(".mutagen/agents/0.18.1");
    fs::create_dir_all(&folder).unwrap();
    script::write(&folder.join("mutagen-agent"), body);
    fs::set_permissions(folder.join("mutagen-agent"), fs::Permissions::from_mode(mode)).unwrap();
}

// --- what is doubtful ---------------------------------------------------------------------------------------------------

/// A time so many days from now, since 1970.
fn in_days(days: u64) -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(days * 86_400 + 3_600)
}

#[test]
fn certificates_that_end_within_two_weeks_are_warned_of() {
    let mut site = Site::new();
    for (days, is_soon) in [(14, true), (15, false)] {
        let server = site.servers.issue_until(Usage::Server, in_days(days), params(&["*.tunnel.test"]));
        site.write(&server, "server");
        site.write(&site.clients.issue_until(Usage::Client, in_days(days), uri_params(&[PRINCIPAL])), "client");
        site.serve(&Plan::mutagen());
        let expected = if is_soon {
            good_until("tcp")
                + "\
tls             warning  TLS 1.3, TLS13_AES_128_GCM_SHA256, X25519MLKEM768; the server's certificate ends soon
                         *.tunnel.test, N days left, by CN=the servers' authority
                         hint: ask whoever runs the endpoint to renew its certificate
own certificate warning  spiffe://tunnel.test/users/ann, N days left; it ends soon
                         hint: get a new certificate, and set `cert` and `key` to it
" + GOOD[6].1 + GOOD[7].1
                + GOOD[8].1
                + GOOD[9].1
                + AGENT_MISSING
        } else {
            good_until("round trip") + AGENT_MISSING
        };
        assert_says(&site, &check(&site, &[]), 0, &expected);
    }
}

#[test]
fn a_key_of_somebody_elses_that_all_can_read_is_warned_of() {
    assert!(rustix::process::geteuid().is_root(), "this test gives a file away: run it as root");
    let site = Site::start(&Plan::mutagen());
    let key = site.root.join("client.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(&key, Some(65_534), None).unwrap();
    let ran = check(&site, &[]);
    let expected = "\
own certificate warning  spiffe://tunnel.test/users/ann, N days left; every account on this machine can read the private key
                         hint: chmod 600 ROOT/client.key
";
    assert!(said(&site, &ran).contains(expected), "{}", ran.text());
    assert_eq!(ran.code(), Some(0));
}

#[test]
fn a_server_of_tls_1_2_fails_where_that_is_not_allowed_and_is_warned_of_where_it_is() {
    let site = Site::new();
    let server =
        https_server_of(&site.servers.server(&["*.tunnel.test"]), &rustls::version::TLS12, |tls, _| answer_host(tls));
    site.configure(server, "");
    let refused = good_until("tcp")
        + "\
tls             failed   tls-handshake: the TLS handshake with 127.0.0.1:PORT failed: the server refused the TLS version (alert protocol_version)
                         hint: ask whoever runs the endpoint for TLS 1.3, or allow the older with `min_tls = \"1.2\"`
";
    assert_says(&site, &check(&site, &[]), 6, &refused);
    site.configure(server, "min_tls = \"1.2\"");
    let ran = check(&site, &[]);
    let expected = "\
tls             warning  TLS 1.2, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, X25519; an old version
                         *.tunnel.test, N days left, by CN=the servers' authority
                         hint: ask whoever runs the endpoint for TLS 1.3
";
    assert!(said(&site, &ran).contains(expected), "{}", said(&site, &ran));
}

/// In TLS 1.2 a client is judged within the handshake.
#[test]
fn a_certificate_that_a_server_of_tls_1_2_rejects_is_no_failure_of_the_servers() {
    let site = Site::new();
    let identity = site.servers.server(&["*.tunnel.test"]);
    let mut clients = RootCertStore::empty();
    clients.add(CertificateDer::from_pem_slice(site.clients.certificate().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone()).build().unwrap();
    let chain = vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()];
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap())
        .unwrap();
    let config = Arc::new(config);
    let server = tcp_server(move |connection| {
        let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), connection);
        let _ = tls.read(&mut [0; 1]);
        let _ = io::copy(&mut tls.sock, &mut io::sink());
    });
    site.configure(server, "min_tls = \"1.2\"");
    site.write(&Authority::new("somebody else").client(PRINCIPAL), "client");
    let ran = check(&site, &[]);
    let expected = "\
tls             ok       the server's certificate is good
                         *.tunnel.test, N days left, by CN=the servers' authority
own certificate failed   client-cert: 127.0.0.1 rejected the certificate ROOT/client.crt (alert unknown_ca)
";
    assert!(said(&site, &ran).contains(expected), "{}", ran.text());
    assert_eq!(ran.code(), Some(7));
}

#[test]
fn a_host_that_is_not_for_mutagen_fails_only_who_asks_for_mutagen() {
    let site = Site::start(&Plan::mutagen().host("commands = []"));
    assert_eq!(check(&site, &[]).code(), Some(0));
    let ran = check(&site, &["--mutagen"]);
    assert_eq!(ran.code(), Some(8), "{}", ran.text());
    assert!(said(&site, &ran).contains("policy          failed   command-denied: "), "{}", ran.text());
}

#[test]
fn a_grant_without_the_agent_fails_who_asks_for_mutagen_though_it_allows_what_comes_first() {
    let grant = format!("[[grant]]\nprincipal = \"{PRINCIPAL}\"\nhosts = [\"web\"]\ncommands = [\"uname -s -m\"]");
    let site = Site::start(&Plan::mutagen().tables(&format!("[host.web]\ncommands = \"any\"\nshell = false\n{grant}")));
    site.configure_more("host_id = \"web\"\nsni = \"web.tunnel.test\"");
    for (words, outcome, status) in [(&[][..], "warning", 0), (&["--mutagen"], "failed ", 9)] {
        let ran = check(&site, words);
        let expected = format!(
            "\
agent           {outcome}  command-denied: the grant to {PRINCIPAL} on web does not allow `.mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=di…`
                         hint: ask whoever runs the endpoint for `\"mutagen\"` in the grant's `commands`, which is what Mutagen needs
"
        );
        let said = said(&site, &ran);
        assert!(said.contains("policy          ok       allows `uname -s -m`") && said.contains(&expected), "{said}");
        assert_eq!(ran.code(), Some(status), "{said}");
    }
}

#[test]
fn a_wrapper_that_cannot_run_is_warned_of() {
    let site = Site::start(&Plan::mutagen().host("wrapper = [\"/no/such/wrapper\"]"));
    let ran = check(&site, &[]);
    let expected = "\
policy          warning  allows `uname -s -m`, which ended with status 127: /no/such/wrapper: not found; \
Mutagen needs it to install its agent
                         hint: ask whoever runs the endpoint to look at the host's `wrapper`, and at what is on its PATH
";
    assert!(said(&site, &ran).contains(expected), "{}", said(&site, &ran));
}

#[test]
fn a_server_without_frames_is_warned_of() {
    let site = fake_host(|tls, _| {
        tls.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nLinux x\n")?;
        finish(tls)
    });
    let expected = good_until("host")
        + "\
upgrade         warning  tcp; no stderr, exit status or resuming
                         hint: ask whoever runs the endpoint for a server with frames
policy          ok       allows `uname -s -m`
round trip      -        not to be measured without frames
agent           -        not to be asked without frames
";
    assert_says(&site, &check(&site, &[]), 0, &expected);
}

#[test]
fn a_peer_that_never_stops_talking_is_not_listened_to_for_ever() {
    let (site, ran) = in_session(|tls| {
        loop {
            tls.write_all(&frame(frames::STDOUT, &[b'x'; 4096]))?;
        }
    });
    assert_eq!(ran.code(), Some(8));
    assert!(
        said(&site, &ran).contains("protocol: 127.0.0.1 sent far more output than was asked for"),
        "{}",
        ran.text()
    );
}

// --- the agent ----------------------------------------------------------------------------------------------------------

#[test]
fn the_real_agent_says_its_version_and_is_gone_afterwards() {
    let site = Site::start(&Plan::mutagen());
    let folder = site.home.join(".mutagen/agents/0.18.1");
    fs::create_dir_all(&folder).unwrap();
    script::install(&programs().join("mutagen-agent"), &folder.join("mutagen-agent"));
    let mut command = site.tstunnel(&["check", HOST]);
    let ran = run(command.env("TSTUNNEL_MUTAGEN", programs().join("mutagen")));
    let expected = good_until("round trip") + "agent           ok       mutagen-agent 0.18.1 is installed\n";
    assert_says(&site, &ran, 0, &expected);
    site.wait_until_idle();
}

#[test]
fn another_program_in_the_agents_place_is_found_out() {
    let site = Site::start(&Plan::mutagen());
    let hint = "                         hint: remove .mutagen/agents/0.18.1 there; Mutagen installs it again with the first session\n";
    for (body, says) in [
        ("echo hello; echo more", "protocol: the program in the place of agent 0.18.1 says `hello`"),
        ("echo no library >&2; exit 1", "protocol: the program in the place of agent 0.18.1 says `no library`"),
        (
            r"printf '\005\047\207'; head -c 3 >/dev/null; printf '\0\0\0\0\0\0\0\021\0\0\0\003'",
            "protocol: the agent 0.18.1 says that it is 0.17.3",
        ),
    ] {
        install(&site, body, 0o755);
        let expected = format!("{}agent           failed   {says}\n{hint}", good_until("round trip"));
        assert_says(&site, &check(&site, &[]), 9, &expected);
    }
}

#[test]
fn without_a_mutagen_there_is_no_agent_to_ask_for() {
    let site = Site::start(&Plan::mutagen());
    let ran = run(site.tstunnel(&["check", HOST]).env("TSTUNNEL_MUTAGEN", "/no/such/mutagen"));
    let agent = "agent           -        the program `/no/such/mutagen` is not there, which would say which agent to look for\n";
    assert_says(&site, &ran, 0, &(good_until("round trip") + agent));
}

// --- what is asked for beyond that --------------------------------------------------------------------------------------

#[test]
fn throughput_is_measured_where_it_is_asked_for() {
    let site = Site::start(&Plan::mutagen());
    let ran = check(&site, &["--throughput=3M"]);
    let throughput = "throughput      ok       R MB/s there and back at once: 3145728 bytes in T s\n";
    assert_says(&site, &ran, 0, &(good_until("round trip") + AGENT_MISSING + throughput));
    site.wait_until_idle();
}

#[test]
fn the_echo_is_a_target_like_any_other_and_needs_no_list() {
    let site = Site::start(&Plan::mutagen());
    for raw in [&[][..], &["--raw"]] {
        let mut command = site.tstunnel(&["connect", HOST, "--target", "echo"]);
        let ran = run_with_input(command.args(raw), b"there and back").ok();
        assert_eq!(ran.text(), "there and back");
    }
    site.write(&site.clients.client("spiffe://tunnel.test/users/bob"), "client");
    support_net::report::fails(&mut site.tstunnel(&["connect", HOST, "--target", "echo"]), 255, "host-unknown");
}

#[test]
fn throughput_has_the_bound_that_the_server_sets() {
    let site = Site::start(&Plan::mutagen().limit("max_upload_bytes = 1000000"));
    let ran = check(&site, &["--throughput=3M"]);
    assert_eq!(ran.code(), Some(12), "{}", ran.text());
    assert!(said(&site, &ran).contains("throughput      failed   network-lost: "), "{}", ran.text());
}

#[test]
fn a_server_without_an_echo_is_not_asked_for_one() {
    let site = fake_host(|tls, _| {
        tls.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")?;
        finish(tls)
    });
    let ran = check(&site, &["--throughput"]);
    assert!(said(&site, &ran).ends_with("throughput      -        tstunnel/0.1.0 has no echo\n"), "{}", ran.text());
    assert_eq!(ran.code(), Some(0));
}

#[test]
fn a_target_that_takes_connections_is_ok() {
    let site = Site::start(&Plan::mutagen().host("targets = [\"tcp:127.0.0.1:*\"]"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = format!("tcp:{}", listener.local_addr().unwrap());
    let accepted = thread::spawn(move || listener.accept().map(|(mut stream, _)| stream.read(&mut [0; 1])));
    let ran = check(&site, &["--target", &target]);
    let expected = "target          ok       tcp:127.0.0.1:PORT takes connections\n";
    assert_says(&site, &ran, 0, &(good_until("round trip") + AGENT_MISSING + expected));
    // Nothing is left of the connection.
    assert_eq!(accepted.join().unwrap().unwrap().unwrap(), 0);
}

// --- where values come from ---------------------------------------------------------------------------------------------

#[test]
fn each_value_is_told_with_its_source() {
    let site = Site::new();
    let file = "[host.\"host*\"]\ncert = \"client.crt\"\nresume = false\n[host.\"*\"]\nca = \"servers-ca.crt\"\nuser = \"x\"\n";
    fs::write(site.configuration(), file).unwrap();
    let url = "tstunnel://host123/p?endpoint=127.0.0.1:1&sni=a.b";
    let mut command = site.tstunnel(&["check", "--user", "dev", url]);
    let ran = run(command.env("TSTUNNEL_KEY", site.root.join("client.key")));
    let expected = "\
configuration   ok       host123
                         endpoint  127.0.0.1:PORT  the URL's `endpoint`
                         host_id  host123  default
                         cert  ROOT/client.crt  ROOT/config.toml [host.\"host*\"]
                         key  ROOT/client.key  TSTUNNEL_KEY
                         ca  ROOT/servers-ca.crt  ROOT/config.toml [host.\"*\"]
                         upgrade_base  /tinyscale/v1  default
                         sni  a.b  the URL's `sni`
                         user  dev  --user
                         resume  false  ROOT/config.toml [host.\"host*\"]
";
    assert!(said(&site, &ran).starts_with(expected), "{}", said(&site, &ran));
    assert_eq!(ran.code(), Some(5));
}

// --- Mutagen ------------------------------------------------------------------------------------------------------------

/// The line about Mutagen, of a check that fails before anything else.
fn of_mutagen(site: &Site, variables: &[(&str, &std::path::Path)]) -> (String, Option<i32>) {
    let mut command = site.tstunnel(&["check", "--mutagen", HOST]);
    let ran = run(command.envs(variables.iter().copied()));
    let said = said(site, &ran);
    let at = said.find("mutagen  ").expect("a line about Mutagen");
    (said[at..].to_owned(), ran.code())
}

#[test]
fn mutagen_is_looked_at_where_it_is_asked_for() {
    let site = Site::start(&Plan::mutagen());
    let mutagen = programs().join("mutagen");
    let (missing, status) = of_mutagen(&site, &[("TSTUNNEL_MUTAGEN", "/no/such/mutagen".as_ref())]);
    let expected = "\
mutagen         failed   config: the program `/no/such/mutagen` is not there
                         hint: install Mutagen (https://mutagen.io), or set TSTUNNEL_MUTAGEN to its file
";
    assert_eq!((missing.as_str(), status), (expected, Some(10)));
    let (idle, status) = of_mutagen(&site, &[("TSTUNNEL_MUTAGEN", &mutagen)]);
    let expected =
        "mutagen         ok       mutagen 0.18.1, no daemon: `tstunnel mutagen` starts one as it should be\n";
    assert_eq!((idle.as_str(), status), (expected, Some(0)));
    // Looking makes nothing.
    assert!(!site.root.join("local/.local/share/tstunnel").exists());
}

#[test]
fn a_daemon_is_told_by_the_ssh_that_it_starts() {
    let site = Site::start(&Plan::mutagen());
    let mutagen = programs().join("mutagen");
    let other = site.root.join("other");
    fs::create_dir(&other).unwrap();
    for (folder, expected, status) in [
        (site.stand_ins(), "mutagen         ok       mutagen 0.18.1, whose daemon takes tstunnel's ssh\n", 0),
        (
            other,
            "\
mutagen         failed   config: the Mutagen daemon, process PID, was started without tstunnel: it takes the ssh in ROOT/other
                         hint: run `tstunnel mutagen daemon start`, which restarts it: sessions go on by themselves
",
            10,
        ),
    ] {
        let mut daemon = Daemon::start_with(vec![("MUTAGEN_SSH_PATH", folder.into())]);
        let data = daemon.folder("data");
        let found = of_mutagen(&site, &[("TSTUNNEL_MUTAGEN", &mutagen), ("MUTAGEN_DATA_DIRECTORY", &data)]);
        assert_eq!(found, (expected.to_owned(), Some(status)));
        daemon.stop();
    }
}

// --- JSON ---------------------------------------------------------------------------------------------------------------

#[test]
fn json_has_every_step_and_what_a_script_asks_for() {
    let site = Site::start(&Plan::mutagen());
    let ran = check(&site, &["--json"]);
    assert_eq!((ran.code(), ran.text().lines().count()), (Some(0), 1), "{}", ran.stderr);
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((&report["host"], &report["status"], &report["failed"]), (&HOST.into(), &0.into(), &Value::Null));
    let step = |name: &str| {
        let steps = report["steps"].as_array().unwrap();
        steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("no {name}: {report}")).clone()
    };
    assert_eq!(step("configuration")["endpoint"]["value"], site.address().to_string());
    assert_eq!(step("proxy")["outcome"], "skipped");
    assert_eq!(step("tls")["version"], "TLS 1.3");
    assert_eq!(step("tls")["chain"][0]["names"][0], "*.tunnel.test");
    assert!(step("own certificate")["certificate"]["days_left"].as_i64().unwrap() > 20_000);
    assert_eq!(step("host")["principal"], PRINCIPAL);
    assert_eq!(step("upgrade")["grace_seconds"], 120);
    assert!(step("round trip")["ms"].as_f64().unwrap() > 0.0);
    let agent = step("agent");
    assert_eq!((&agent["outcome"], &agent["code"]), (&"warning".into(), &"agent-missing".into()));
    assert_eq!(agent["hints"][0], "Mutagen installs it with the first session");
}

#[test]
fn json_says_which_part_failed() {
    let site = Site::new();
    site.configure(format_args!("127.0.0.1:{}", port::free()), "");
    let ran = check(&site, &["--json"]);
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((ran.code(), &report["status"], &report["failed"]), (Some(5), &5.into(), &"tcp".into()));
}

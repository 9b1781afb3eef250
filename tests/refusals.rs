//! Every failure of tstunnel-protocol(7) that can happen: one error line, one hint, the right exit status, in time, nothing on
//! stdout, and `tstunnel classify` reads the code back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::SanType;
use serde_json::Value;
use support::pki::{Authority, Usage, Validity, params, uri_params};
use support::port;
use support::process::{Signal, program};
use support::serve::TSTUNNEL;
use support::wait::{SOON, wait_until};
use support_net::child::{Watched, run, run_with_input};
use support_net::fake::{self, finish, hang_up, https_server, https_server_of, tcp_server};
use support_net::frames::{self, frame, read_frame};
use support_net::report::{check, classified, error_line, every_command_fails, fails};
use support_net::site::{HOST, PRINCIPAL, Plan, SERVER_NAME, Site, text};

/// What Mutagen asks for first on a fresh host.
const AGENT: &str = ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=info";
/// The head of an answer that chooses frames.
const FRAMED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tstunnel/1\r\n\r\n";
/// The fields by which a client asks for frames.
const ASKS_FOR_FRAMES: &str = "Connection: Upgrade\r\nUpgrade: tstunnel/1\r\nContent-Type: application/json\r\n";

// --- the command line and the configuration -----------------------------------------------------------------------------

#[test]
fn wrong_usage_is_status_two() {
    let site = Site::new();
    let named: &[&[&str]] =
        &[&["frobnicate"], &[], &["upload", "f"], &["upload", "--mode", "9", "f", HOST], &["classify", "x"], &["pki"]];
    for args in named {
        fails(&mut site.tstunnel(args), 2, "usage");
    }
}

#[test]
fn too_few_descriptors_are_an_error_and_no_crash() {
    let site = Site::start(&Plan::any());
    let limited = |count: usize, args: &[&str]| {
        let mut command = site.command(program("prlimit"));
        command.arg(format!("--nofile={count}:{count}")).arg(TSTUNNEL).args(args);
        command
    };
    for count in 4..19 {
        let mut exec = limited(count, &["exec", HOST, "echo hi"]);
        let ran = run(&mut exec);
        let said = check(&format!("{count}"), &ran, 255, "config");
        assert!(
            said.contains(&format!("a limit of {count} open files ")) && ran.stderr.contains("`ulimit -n`"),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(run(&mut limited(32, &["exec", HOST, "echo hi"])).ok().text(), "hi\n");
    let configuration = site.root.join("server.toml");
    for count in [6, 12] {
        fails(&mut limited(count, &["serve", "--config", text(&configuration)]), 1, "config");
    }
}

#[test]
fn wrong_usage_of_what_stands_in_for_a_process_is_status_255() {
    let site = Site::new();
    site.configure("127.0.0.1:1", "");
    let named: &[&[&str]] =
        &[&["exec", HOST], &["exec", "--frob", HOST, "ls"], &["connect"], &["connect", HOST, "more"]];
    for args in named {
        fails(&mut site.tstunnel(args), 255, "usage");
    }
    fails(&mut site.ssh(&[HOST]), 255, "usage");
    fails(&mut site.ssh(&["-D", "1080", HOST, "ls"]), 255, "usage");
    fails(&mut site.scp(&["-r", "folder", &format!("{HOST}:x")]), 255, "usage");
}

#[test]
fn a_file_that_is_not_there_cannot_be_uploaded() {
    let site = Site::start(&Plan::any());
    assert!(fails(&mut site.tstunnel(&["upload", "/no/such/file", HOST]), 2, "usage").contains("/no/such/file"));
}

#[test]
fn what_is_no_file_to_upload_is_told_how_it_gets_there() {
    let site = Site::start(&Plan::any());
    for (what, said, hint) in
        [("/", "it is a folder", "mutagen sync create"), ("/dev/null", "regular file", "upload - ")]
    {
        let ran = run(&mut site.tstunnel(&["upload", what, &format!("{HOST}:x")]));
        assert!(check(what, &ran, 2, "usage").contains(said) && ran.stderr.contains(hint), "{}", ran.stderr);
    }
}

#[test]
fn a_name_with_a_slash_is_refused_before_anything_is_sent() {
    let site = Site::new();
    site.configure("127.0.0.1:1", "");
    for name in ["sub/dir/x", "/home/dev/x"] {
        let said = fails(&mut site.tstunnel(&["upload", "/dev/null", &format!("{HOST}:{name}")]), 2, "usage");
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn an_unknown_key_is_named_with_file_and_line() {
    let site = Site::new();
    site.configure("127.0.0.1:1", "");
    let file = site.configuration();
    fs::write(&file, format!("[host.{HOST}]\nendpoint = \"127.0.0.1:1\"\nendpiont = \"x\"\n")).unwrap();
    let said = every_command_fails(&site, HOST, "config");
    assert!(said.starts_with(&format!("{}:3:", file.display())) && said.contains("endpiont"), "{said}");
}

#[test]
fn a_file_that_is_no_toml_is_named_with_its_line() {
    let site = Site::new();
    let file = site.configuration();
    fs::write(&file, "\n\n[host.x\n").unwrap();
    let said = every_command_fails(&site, HOST, "config");
    assert!(said.starts_with(&format!("{}:3:", file.display())), "{said}");
}

#[test]
fn a_configuration_that_cannot_be_read_is_named() {
    let site = Site::new();
    // A folder in the file's place cannot be read by root either.
    fs::create_dir(site.configuration()).unwrap();
    let said = every_command_fails(&site, HOST, "config");
    assert!(said.contains(text(&site.configuration())), "{said}");
    let missing = site.root.join("missing.toml");
    let said = fails(site.exec(&["ls"]).env("TSTUNNEL_CONFIG", &missing), 255, "config");
    assert!(said.contains(text(&missing)), "{said}");
}

#[test]
fn a_host_without_an_endpoint_is_a_configuration_error() {
    let site = Site::new();
    fs::write(site.configuration(), "").unwrap();
    let said = fails(&mut site.tstunnel(&["exec", "nowhere", "ls"]), 255, "config");
    assert!(said.contains("`endpoint`") && said.contains("`cert`") && said.contains("`key`"), "{said}");
    fails(site.exec(&["ls"]).env("TSTUNNEL_LOG", "loud"), 255, "config");
}

#[test]
fn a_key_of_another_certificate_is_named() {
    let site = Site::new();
    let other = site.clients.client(PRINCIPAL);
    fs::write(site.root.join("client.key"), &other.key).unwrap();
    site.configure("127.0.0.1:1", "");
    let said = every_command_fails(&site, HOST, "config");
    assert!(said.contains(text(&site.root.join("client.key"))) && said.contains("client.crt"), "{said}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let site = Site::new();
    let key = site.root.join("client.key");
    site.configure("127.0.0.1:1", "");
    for mode in [0o644, 0o640, 0o604] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let said = fails(&mut site.exec(&["ls"]), 255, "config");
        assert!(said.contains(text(&key)) && said.contains(&format!("{mode:04o}")), "{said}");
    }
}

#[test]
fn files_without_a_certificate_are_named() {
    for name in ["client.crt", "client.key", "servers-ca.crt"] {
        let site = Site::new();
        site.configure("127.0.0.1:1", "");
        fs::write(site.root.join(name), "nothing in it\n").unwrap();
        assert!(fails(&mut site.exec(&["ls"]), 255, "config").contains(name));
        fs::remove_file(site.root.join(name)).unwrap();
        assert!(fails(&mut site.exec(&["ls"]), 255, "config").contains(name));
    }
}

#[test]
fn an_expired_client_certificate_is_refused_before_anything_is_sent() {
    let site = Site::new();
    site.configure("127.0.0.1:1", "");
    for (validity, expected) in [(Validity::Past, "expired"), (Validity::Future, "not valid before")] {
        let identity = site.clients.issue(Usage::Client, validity, uri_params(&[PRINCIPAL]));
        site.write(&identity, "client");
        let said = every_command_fails(&site, HOST, "config");
        assert!(said.contains(text(&site.root.join("client.crt"))) && said.contains(expected), "{said}");
    }
}

#[test]
fn a_server_with_a_wrong_configuration_does_not_start() {
    let site = Site::new();
    let file = site.root.join("server.toml");
    let serve = || site.tstunnel(&["serve", "--config", text(&file)]);
    let good = "cert = \"server.crt\"\nkey = \"server.key\"\nclient_ca = [\"clients-ca.crt\"]\n";
    for (lines, line) in [
        ("listen = [\"127.0.0.1:0\"]\nfrob = 1\n", 5),
        ("listen = [\"nowhere\"]\n", 4),
        ("listen = [\"127.0.0.1:0\"]\n[limits]\nmax_sessions = 0\n", 6),
    ] {
        fs::write(&file, format!("{good}{lines}")).unwrap();
        let said = fails(&mut serve(), 1, "config");
        assert!(said.starts_with(&format!("{}:{line}:", file.display())), "{said}");
    }
    fs::remove_file(&file).unwrap();
    assert!(fails(&mut serve(), 1, "config").contains(text(&file)));
    fs::write(&file, format!("listen = [\"127.0.0.1:0\"]\n{good}")).unwrap();
    fs::set_permissions(site.root.join("server.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(fails(&mut serve(), 1, "config").contains("server.key"));
}

// --- the way to the server ----------------------------------------------------------------------------------------------

#[test]
fn a_name_that_does_not_exist_is_dns() {
    let site = Site::new();
    site.configure("endpoint.invalid:443", "");
    let said = every_command_fails(&site, HOST, "dns");
    assert!(said.contains("endpoint.invalid"), "{said}");
}

#[test]
fn a_port_on_which_nothing_listens_refuses() {
    let site = Site::new();
    let port = port::free();
    site.configure(format_args!("127.0.0.1:{port}"), "");
    let said = every_command_fails(&site, HOST, "connect-refused");
    assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
}

/// Checks that the connect time-out, and nothing else, ends the wait.
#[track_caller]
fn times_out(site: &Site) {
    let ran = run(&mut site.exec(&["ls"]));
    check("exec", &ran, 255, "connect-timeout");
    assert!(ran.took >= Duration::from_secs(2), "{:?}", ran.took);
}

#[test]
fn a_peer_that_accepts_and_stays_silent_is_a_time_out() {
    let site = Site::new();
    let silent = tcp_server(|mut connection| {
        let _ = io::copy(&mut connection, &mut io::sink());
    });
    site.configure(silent, "connect_timeout = \"2s\"");
    times_out(&site);
    fails(&mut site.ssh(&["-oConnectTimeout=1", HOST, "ls"]), 255, "connect-timeout");
    fails(&mut site.tstunnel(&["upload", text(&site.local_file("f", b"x")), HOST]), 1, "connect-timeout");
}

#[test]
fn a_listener_with_a_full_backlog_is_a_time_out() {
    let site = Site::new();
    let (listener, address) = full_listener();
    site.configure(address, "connect_timeout = \"2s\"");
    times_out(&site);
    drop(listener);
}

/// A socket that listens, whose queue is full, and that never accepts.
fn full_listener() -> (impl Sized, SocketAddr) {
    use rustix::net::{
        AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, listen, socket, socket_with,
    };
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    listen(&listener, 0).unwrap();
    let address = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
    let mut queued = Vec::new();
    for _ in 0..4 {
        let client = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
        let _ = connect(&client, &address);
        queued.push(client);
    }
    ((listener, queued), address)
}

#[test]
fn a_server_that_never_answers_the_request_is_a_time_out() {
    let site = Site::new();
    let silent = https_server(&site.servers.server(&[SERVER_NAME]), |tls, _| {
        io::copy(&mut tls.sock, &mut io::sink()).map(|_| ())
    });
    site.configure(silent, "answer_timeout = \"2s\"");
    times_out(&site);
}

// --- peers that speak something else ------------------------------------------------------------------------------------

#[test]
fn a_plain_http_server_is_not_tstunnel() {
    let site = Site::new();
    let http = tcp_server(|mut connection| {
        let mut some = [0; 64];
        let _ = connection.read(&mut some);
        let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        let _ = connection.shutdown(std::net::Shutdown::Write);
        let _ = io::copy(&mut connection, &mut io::sink());
    });
    site.configure(http, "");
    every_command_fails(&site, HOST, "not-tstunnel");
}

#[test]
fn an_ssh_server_is_not_tstunnel() {
    let site = Site::new();
    let ssh = tcp_server(|mut connection| {
        let _ = connection.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n");
        let _ = io::copy(&mut connection, &mut io::sink());
    });
    site.configure(ssh, "");
    every_command_fails(&site, HOST, "not-tstunnel");
}

#[test]
fn a_peer_that_hangs_up_during_the_handshake_is_a_failed_handshake() {
    let site = Site::new();
    let rude = tcp_server(|mut connection| {
        let mut some = [0; 2048];
        let _ = connection.read(&mut some);
    });
    site.configure(rude, "");
    every_command_fails(&site, HOST, "tls-handshake");
}

#[test]
fn a_client_whose_address_is_shut_out_is_told_so() {
    let limits = "penalty_exempt = []\npenalty_failed = \"60s\"";
    let site = Site::start(&Plan::any().limit(limits));
    drop(TcpStream::connect(site.address()).unwrap());
    wait_until("it is shut out", SOON, || site.server_log().contains("127.0.0.1 is shut out for 60 s"));
    let said = every_command_fails(&site, HOST, "too-many");
    assert!(said.ends_with("does not let this address in for now: authentication from it failed too often"), "{said}");
    let ran = run(&mut site.exec(&["true"]));
    assert!(ran.stderr.contains("`penalty_exempt`"), "{}", ran.stderr);
    let checked = run(&mut site.tstunnel(&["check", HOST]));
    assert!(checked.text().contains("tls             failed   too-many: "), "{}", checked.text());
}

#[test]
fn a_peer_that_hangs_up_before_it_is_spoken_to_is_a_failed_handshake() {
    let site = Site::new();
    let rude = tcp_server(|connection| {
        let _ = rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO));
    });
    site.configure(rude, "");
    for _ in 0..10 {
        fails(&mut site.exec(&["ls"]), 255, "tls-handshake");
    }
}

#[test]
fn an_https_server_of_another_kind_is_not_tstunnel() {
    for status in ["200 OK", "301 Moved Permanently", "404 Not Found", "403 Forbidden", "502 Bad Gateway"] {
        let site = Site::new();
        let page = "<html><body>Welcome: command not found</body></html>";
        let answer =
            format!("HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{page}", page.len());
        let server = https_server(&site.servers.server(&[SERVER_NAME]), move |tls, _| {
            tls.write_all(answer.as_bytes())?;
            finish(tls)
        });
        site.configure(server, "");
        let said = every_command_fails(&site, HOST, "not-tstunnel");
        assert!(said.contains(&status[..3]), "{said}");
    }
}

#[test]
fn a_server_that_says_it_stored_something_else_is_a_protocol_error() {
    let site = Site::new();
    let server = https_server(&site.servers.server(&[SERVER_NAME]), |tls, _| {
        let body = format!("{{\"size\": 1, \"sha256\": \"{}\"}}", "0".repeat(64));
        let length = body.len();
        let head =
            format!("HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        tls.write_all((head + &body).as_bytes())?;
        finish(tls)
    });
    site.configure(server, "");
    let file = site.local_file("f", b"x");
    fails(&mut site.tstunnel(&["upload", text(&file), HOST]), 1, "protocol");
    fails(&mut site.scp(&[text(&file), &format!("{HOST}:f")]), 255, "protocol");
}

#[test]
fn an_answer_whose_head_never_ends_is_not_tstunnel() {
    let site = Site::new();
    let server = https_server(&site.servers.server(&[SERVER_NAME]), |tls, _| {
        tls.write_all(b"HTTP/1.1 101 Switching Protocols\r\n")?;
        let line = format!("X-Padding: {}\r\n", "y".repeat(1000));
        for _ in 0..40 {
            tls.write_all(line.as_bytes())?;
        }
        finish(tls)
    });
    site.configure(server, "");
    every_command_fails(&site, HOST, "not-tstunnel");
}

#[test]
fn an_answer_whose_head_breaks_off_properly_is_not_tstunnel() {
    let site = Site::new();
    let server = https_server(&site.servers.server(&[SERVER_NAME]), |tls, _| {
        tls.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgr")?;
        finish(tls)
    });
    site.configure(server, "");
    fails(&mut site.exec(&["ls"]), 255, "not-tstunnel");
    fails(&mut site.tstunnel(&["connect", HOST]), 255, "not-tstunnel");
}

#[test]
fn an_answer_that_is_cut_off_is_a_lost_network() {
    let site = Site::new();
    let server = https_server(&site.servers.server(&[SERVER_NAME]), |tls, _| {
        tls.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgr")?;
        hang_up(tls)
    });
    site.configure(server, "resume = false");
    fails(&mut site.exec(&["ls"]), 255, "network-lost");
    fails(&mut site.tstunnel(&["upload", text(&site.local_file("f", b"x")), HOST]), 1, "network-lost");
}

#[test]
fn a_stream_without_frames_that_is_cut_off_is_a_lost_network() {
    let site = Site::new();
    let server = https_server(&site.servers.server(&[SERVER_NAME]), |tls, _| {
        tls.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")?;
        hang_up(tls)
    });
    site.configure(server, "");
    // An end without close_notify could have been made by anybody: it must not pass for the stream's own.
    fails(&mut site.exec(&["ls"]), 255, "network-lost");
}

#[test]
fn an_upgrade_that_was_not_offered_is_not_tstunnel() {
    for upgrade in ["Upgrade: websocket\r\n", "Upgrade: tstunnel/2\r\n", ""] {
        let site = Site::new();
        let head = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{upgrade}\r\n");
        let server = https_server(&site.servers.server(&[SERVER_NAME]), move |tls, _| {
            tls.write_all(head.as_bytes())?;
            finish(tls)
        });
        site.configure(server, "");
        fails(&mut site.exec(&["ls"]), 255, "not-tstunnel");
    }
}

#[test]
fn an_upgrade_that_is_logged_is_escaped() {
    let site = Site::new();
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: \u{202e}1/lennutst\r\n\r\n";
    let server = https_server(&site.servers.server(&[SERVER_NAME]), move |tls, _| {
        tls.write_all(head.as_bytes())?;
        finish(tls)
    });
    site.configure(server, "");
    let said = run(site.exec(&["ls"]).env("TSTUNNEL_LOG", "debug")).stderr;
    assert!(said.contains("answered status=101 upgrade=\\u{202e}1/lennutst") && !said.contains('\u{202e}'), "{said}");
}

#[test]
fn an_upgrade_base_that_the_server_does_not_have_is_said() {
    let site = Site::start(&Plan::any());
    site.configure_more("upgrade_base = \"/elsewhere\"");
    every_command_fails(&site, HOST, "bad-request");
}

// --- certificates -------------------------------------------------------------------------------------------------------

#[test]
fn a_server_of_another_authority_is_untrusted() {
    let site = Site::start(&Plan::any());
    fs::write(site.root.join("servers-ca.crt"), Authority::new("somebody else").certificate()).unwrap();
    let said = every_command_fails(&site, HOST, "tls-untrusted");
    assert!(said.contains("servers-ca.crt"), "{said}");
}

#[test]
fn a_client_certificate_in_the_servers_place_is_untrusted() {
    let site = Site::new();
    let identity = site.servers.issue(Usage::Client, Validity::Now, params(&[SERVER_NAME]));
    site.configure(https_server(&identity, |tls, _| finish(tls)), "");
    fails(&mut site.exec(&["ls"]), 255, "tls-untrusted");
}

#[test]
fn a_server_certificate_out_of_its_time_is_expired() {
    for (validity, expected) in [(Validity::Past, "expired"), (Validity::Future, "not valid before")] {
        let mut site = Site::new();
        let identity = site.servers.issue(Usage::Server, validity, params(&[SERVER_NAME]));
        site.write(&identity, "server");
        site.serve(&Plan::any());
        let said = every_command_fails(&site, HOST, "tls-expired");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_server_certificate_of_another_name_is_named() {
    let mut site = Site::new();
    let identity = site.servers.server(&["other.tunnel.test", "*.example.org"]);
    site.write(&identity, "server");
    site.serve(&Plan::any());
    let said = every_command_fails(&site, HOST, "tls-name");
    assert!(said.contains("*.example.org") && said.contains(SERVER_NAME), "{said}");
}

#[test]
fn a_client_certificate_of_another_authority_is_refused_with_the_alert_named() {
    let site = Site::start(&Plan::any());
    site.write(&Authority::new("somebody else").client(PRINCIPAL), "client");
    let said = every_command_fails(&site, HOST, "client-cert");
    assert!(said.contains("unknown_ca") && said.contains("client.crt"), "{said}");
}

#[test]
fn a_revoked_client_certificate_is_refused_with_the_alert_named() {
    let mut site = Site::new();
    let revoked = site.clients.client(PRINCIPAL);
    fs::write(site.root.join("crl.pem"), site.clients.revoke(&[&revoked], Validity::Now)).unwrap();
    site.serve(&Plan::any().top("crl = [\"crl.pem\"]"));
    assert_eq!(run(&mut site.exec(&["echo", "hello"])).ok().text(), "hello\n");
    site.write(&revoked, "client");
    let said = every_command_fails(&site, HOST, "client-cert");
    assert!(said.contains("certificate_revoked"), "{said}");
}

#[test]
fn an_expired_revocation_list_lets_nobody_in() {
    let mut site = Site::new();
    fs::write(site.root.join("crl.pem"), site.clients.revoke(&[], Validity::Past)).unwrap();
    site.serve(&Plan::any().top("crl = [\"crl.pem\"]"));
    every_command_fails(&site, HOST, "client-cert");
}

#[test]
fn a_server_certificate_in_the_clients_place_is_refused() {
    let site = Site::start(&Plan::any());
    let identity = site.clients.issue(Usage::Server, Validity::Now, uri_params(&[PRINCIPAL]));
    site.write(&identity, "client");
    every_command_fails(&site, HOST, "client-cert");
}

/// curl, which does not look at its own certificate first as our client does.
#[test]
fn an_expired_client_certificate_or_none_gets_the_servers_alert() {
    let site = Site::start(&Plan::any());
    let identity = site.clients.issue(Usage::Client, Validity::Past, uri_params(&[PRINCIPAL]));
    site.write(&identity, "client");
    let ran = run(&mut site.curl("/host"));
    assert!(!ran.status.success() && ran.stdout.is_empty(), "{ran:?}");
    assert!(ran.stderr.contains("expired"), "{}", ran.stderr);

    let endpoint = site.address().to_string();
    let mut client = Command::new(program("openssl"));
    client.args(["s_client", "-connect", &endpoint, "-servername", SERVER_NAME, "-tls1_3"]);
    // In TLS 1.3 the alert comes after the handshake: a client whose stdin ends may be gone by then.
    let client = Watched::start(client.stdin(Stdio::piped()));
    wait_until("the alert has come", SOON, || client.stderr().contains("certificate required"));
}

#[test]
fn a_client_without_a_server_name_gets_an_alert() {
    let site = Site::start(&Plan::any());
    let endpoint = site.address().to_string();
    let mut client = site.command(program("openssl"));
    client
        .args(["s_client", "-connect", &endpoint, "-noservername", "-cert", "client.crt", "-key", "client.key"])
        .current_dir(&site.root);
    let ran = run(&mut client);
    assert!(ran.stderr.contains("unrecognized name"), "{}", ran.stderr);
}

#[test]
fn a_server_that_speaks_only_tls_1_2_is_a_failed_handshake() {
    let site = Site::new();
    let server = https_server_of(&site.servers.server(&[SERVER_NAME]), &rustls::version::TLS12, |tls, _| finish(tls));
    site.configure(server, "");
    every_command_fails(&site, HOST, "tls-handshake");
    // Where a file allows it by name, the handshake succeeds.
    site.configure(server, "min_tls = \"1.2\"");
    fails(&mut site.exec(&["ls"]), 255, "not-tstunnel");
}

#[test]
fn a_client_that_speaks_only_tls_1_2_is_refused() {
    let site = Site::start(&Plan::any());
    let ran = run(site.curl("/host").args(["--tls-max", "1.2"]));
    assert!(!ran.status.success() && ran.stderr.contains("protocol version"), "{ran:?}");
}

// --- who may do what ----------------------------------------------------------------------------------------------------

#[test]
fn a_host_that_is_not_granted_is_refused_like_one_that_does_not_exist() {
    let site = Site::start(&Plan::any().tables("[host.secret]\ncommands = \"any\""));
    let said = ["secret", "absent"].map(|id| {
        site.configure_more(&format!("host_id = \"{id}\"\nsni = \"{id}.tunnel.test\""));
        every_command_fails(&site, HOST, "host-unknown").replace(id, "ID")
    });
    assert_eq!(said[0], said[1]);
    let answers = ["secret", "absent"].map(|id| {
        let ran = run(&mut site.curl_to(&format!("{id}.tunnel.test"), "/tinyscale/v1/host")).ok();
        let answer = ran.text().replace(id, "ID");
        assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
        let is_date = |line: &&str| !line.to_ascii_lowercase().starts_with("date:");
        answer.lines().filter(is_date).map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn a_request_for_another_host_than_the_server_name_is_misdirected() {
    let site = Site::start(&Plan::any());
    let ran = run(site.curl("/host").args(["--header", "Host: other.tunnel.test"])).ok();
    assert!(
        ran.text().starts_with("HTTP/1.1 421 ") && ran.text().contains("urn:tstunnel:host-unknown"),
        "{}",
        ran.text()
    );
    let ran = run(site.curl("/host").args(["--header", "Host: HOST123.Tunnel.Test:8443"])).ok();
    assert!(ran.text().starts_with("HTTP/1.1 200 "), "{}", ran.text());
}

#[test]
fn an_empty_policy_lets_no_one_in() {
    let site = Site::start(&Plan::any());
    site.write(&site.clients.client("spiffe://tunnel.test/users/bob"), "client");
    every_command_fails(&site, HOST, "host-unknown");
}

#[test]
fn what_mutagen_does_not_ask_for_is_denied() {
    let site = Site::start(&Plan::mutagen());
    for line in ["cat /etc/passwd", "uname -s -m; id", "uname -a", "/bin/sh", ".mutagen/agents/../../x synchronizer"] {
        fails(&mut site.exec(&[line]), 255, "command-denied");
        fails(&mut site.ssh(&[HOST, line]), 255, "command-denied");
    }
    fails(&mut site.exec(&["rm", "-rf", "/"]), 255, "command-denied");
    let file = site.local_file("notes.txt", b"x");
    fails(&mut site.tstunnel(&["upload", text(&file), HOST]), 1, "command-denied");
    fails(&mut site.scp(&[text(&file), &format!("{HOST}:.bashrc")]), 255, "command-denied");
    assert_eq!(site.names(), Vec::<String>::new());
}

#[test]
fn an_agent_that_a_link_leads_out_of_its_folder_is_not_run() {
    let site = Site::start(&Plan::mutagen());
    let folder = site.home.join(".mutagen/agents/0.18.1");
    fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink("/bin/echo", folder.join("mutagen-agent")).unwrap();
    let ran = run(&mut site.exec(&[AGENT]));
    assert_eq!((ran.code(), ran.stdout.is_empty()), (Some(126), true), "{ran:?}");
}

#[test]
fn an_empty_command_is_malformed() {
    let site = Site::start(&Plan::any());
    for command in ["", " "] {
        fails(&mut site.exec(&[command]), 255, "bad-request");
        let said = run(&mut site.exec(&[command])).stderr;
        assert!(said.ends_with("\ntstunnel: hint: say which program to run\n"), "{said}");
    }
}

#[test]
fn a_missing_agent_is_status_127_and_one_line() {
    let site = Site::start(&Plan::mutagen());
    for mut command in [site.exec(&[AGENT]), site.ssh(&[HOST, AGENT])] {
        let ran = run(&mut command);
        assert_eq!((ran.code(), ran.text().as_str()), (Some(127), ""), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(!ran.stderr.contains("ommand not found"), "{}", ran.stderr);
        classified("a missing agent", &ran.stderr, 127, "agent-missing");
    }
    fails(&mut site.tstunnel(&["exec", "--raw", HOST, AGENT]), 127, "agent-missing");
}

#[test]
fn an_agent_without_its_execute_bit_is_status_126_and_one_line() {
    let site = Site::start(&Plan::mutagen());
    let folder = site.home.join(".mutagen/agents/0.18.1");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("mutagen-agent"), "#!/bin/sh\n").unwrap();
    for mut command in [site.exec(&[AGENT]), site.ssh(&[HOST, AGENT])] {
        let ran = run(&mut command);
        assert_eq!((ran.code(), ran.text().as_str()), (Some(126), ""), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        classified("an agent that cannot be executed", &ran.stderr, 126, "agent-not-executable");
    }
    fails(&mut site.tstunnel(&["exec", "--raw", HOST, AGENT]), 126, "agent-not-executable");
}

#[test]
fn a_program_for_another_machine_is_status_126() {
    let site = Site::start(&Plan::mutagen());
    let folder = site.home.join(".mutagen/agents/0.18.1");
    fs::create_dir_all(&folder).unwrap();
    let agent = folder.join("mutagen-agent");
    fs::write(&agent, b"MZ this is no program of this system").unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = run(&mut site.exec(&[AGENT]));
    assert_eq!((ran.code(), ran.text().as_str()), (Some(126), ""), "{}", ran.stderr);
}

#[test]
fn a_certificate_that_names_no_principal_is_unauthorized() {
    let site = Site::start(&Plan::any());
    let nameless = uri_params(&[]);
    let two = uri_params(&[PRINCIPAL, "spiffe://tunnel.test/users/bob"]);
    let malformed = uri_params(&["spiffe://tunnel.test/users/../ann"]);
    let mut both = params(&["ann.tunnel.test"]);
    both.subject_alt_names.push(SanType::Rfc822Name("ann@tunnel.test".try_into().unwrap()));
    for names in [nameless, two, malformed, both] {
        site.write(&site.clients.issue(Usage::Client, Validity::Now, names), "client");
        every_command_fails(&site, HOST, "unauthorized");
        let answer = run(&mut site.curl("/host")).ok().text();
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("urn:tstunnel:unauthorized"), "{answer}");
    }
}

#[test]
fn another_account_than_the_hosts_is_unauthorized() {
    let site = Site::start(&Plan::any());
    fails(&mut site.tstunnel(&["exec", "--user", "nobody", HOST, "ls"]), 255, "unauthorized");
    fails(&mut site.ssh(&["-l", "nobody", HOST, "ls"]), 255, "unauthorized");
    fails(&mut site.ssh(&[&format!("nobody@{HOST}"), "ls"]), 255, "unauthorized");
}

#[test]
fn an_account_outside_the_grant_is_unauthorized() {
    let site = Site::start(&Plan::any().tables(&format!(
        "[host.other]\ncommands = \"any\"\n[[grant]]\nprincipal = \"{PRINCIPAL}\"\nhosts = [\"other\"]\naccounts = [\"nobody\"]"
    )));
    site.configure_more("host_id = \"other\"\nsni = \"other.tunnel.test\"");
    every_command_fails(&site, HOST, "unauthorized");
}

// --- limits -------------------------------------------------------------------------------------------------------------

/// A session that is there for certain, and stays until it is dropped.
fn held_session(site: &Site) -> Watched {
    let mut session = Watched::start(site.exec(&["cat"]).stdin(Stdio::piped()));
    session.write(b"here\n");
    session.wait_for_output("here");
    session
}

#[test]
fn a_principal_with_its_share_of_sessions_is_told_so() {
    let site = Site::start(
        &Plan::any()
            .limit("max_sessions_per_principal = 1")
            .limit("resume_grace = \"1s\"")
            .host("targets = [\"tcp:127.0.0.1:*\"]"),
    );
    let held = held_session(&site);
    every_command_fails(&site, HOST, "too-many");
    let answer = run(site.curl("/copy/x").args(["--data-binary", "x"])).ok().text();
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.to_ascii_lowercase().contains("retry-after:"), "{answer}");
    drop(held);
    wait_until("the place is given back", SOON, || run(&mut site.exec(&["true"])).status.success());
}

#[test]
fn a_server_that_is_full_says_so() {
    let site = Site::start(&Plan::any().limit("max_sessions = 1").host("targets = [\"tcp:127.0.0.1:*\"]"));
    let _held = held_session(&site);
    every_command_fails(&site, HOST, "overloaded");
    let answer = run(site.curl("/copy/x").args(["--data-binary", "x"])).ok().text();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.to_ascii_lowercase().contains("retry-after:"), "{answer}");
}

#[test]
fn a_file_that_is_too_large_is_refused_before_it_is_sent() {
    let site = Site::start(&Plan::any().limit("max_upload_bytes = 1000"));
    let file = site.local_file("large", &vec![b'x'; 100_000]);
    // Compressed it looks small, and is found out as it is written.
    for how in [&["upload", "--no-compress"][..], &["upload"]] {
        let ran = run(site.tstunnel(how).args([text(&file), HOST]));
        check(&format!("{how:?}"), &ran, 1, "bad-request");
        assert!(
            ran.stderr.contains("hint: ask whoever runs the endpoint to raise `max_upload_bytes`"),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(site.names(), Vec::<String>::new());
}

#[test]
fn a_folder_of_a_files_name_is_said_to_be_in_its_way() {
    let site = Site::start(&Plan::any());
    fs::create_dir(site.home.join("there")).unwrap();
    let file = site.local_file("file", b"x");
    let ran = run(&mut site.tstunnel(&["upload", text(&file), &format!("{HOST}:there")]));
    check("an upload", &ran, 1, "storage");
    assert!(ran.stderr.contains("hint: a folder has this name there"), "{}", ran.stderr);
    assert_eq!(site.names(), ["there"]);
}

#[test]
fn a_command_that_is_too_large_is_refused() {
    let site = Site::start(&Plan::any());
    let body = site.local_file("body", format!("{{\"command\": \"{}\"}}", "x".repeat(300_000)).as_bytes());
    let answer = run(site
        .curl("/command")
        .args(["--header", "Connection: Upgrade", "--header", "Upgrade: tcp", "--header", "Expect:"])
        .args(["--data-binary", &format!("@{}", text(&body))]))
    .ok()
    .text();
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("urn:tstunnel:bad-request"), "{answer}");
}

#[test]
fn a_command_that_is_too_large_is_not_sent() {
    let site = Site::start(&Plan::any());
    let word = "x".repeat(100_000);
    assert_eq!(run(&mut site.exec(&["printf", "%.3s", &word])).ok().text(), "xxx");
    // No server is asked for what none takes.
    site.configure("127.0.0.1:1", "");
    let quotes = "\"".repeat(120_000);
    for args in [&["true", &word, &word, &word][..], &["true", &word, &quotes]] {
        let said = fails(&mut site.exec(args), 255, "usage");
        assert!(said.ends_with(" bytes, more than the 262144 of a request"), "{said}");
    }
    fails(&mut site.ssh(&[HOST, "true", &word, &word, &word]), 255, "usage");
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let site = Site::start(&Plan::any());
    let answer = run(site.curl("/host").args(["--header", &format!("X-Padding: {}", "y".repeat(40_000))])).ok().text();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

/// A client that is still sending when it is refused must not lose the answer to a reset.
#[test]
fn a_refusal_is_read_by_a_client_that_goes_on_sending() {
    let site = Site::start(&Plan::any());
    let mut tls = fake::connect(&site, &site.clients.client(PRINCIPAL));
    write!(tls, "GET /tinyscale/v1/host HTTP/1.1\r\nX-Padding: {}", "y".repeat(20_000)).unwrap();
    tls.flush().unwrap();
    let mut answer = [0; 12];
    tls.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
    // The answer has come, so the connection is being closed; for the second that the server still reads, what is
    // written meets no reset.
    let answered = Instant::now();
    while answered.elapsed() < Duration::from_millis(300) {
        let written = tls.write_all(b"y").and_then(|()| tls.flush());
        assert!(written.is_ok() || answered.elapsed() > Duration::from_millis(900), "{written:?}");
    }
    let mut rest = Vec::new();
    tls.read_to_end(&mut rest).unwrap();
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.contains("urn:tstunnel:bad-request") && rest.ends_with('}'), "{rest}");
}

#[test]
fn an_upload_that_is_refused_in_its_middle_can_be_sent_whole() {
    const COUNT: usize = 8 << 20;
    let site = Site::start(&Plan::any());
    let mut tls = fake::connect(&site, &site.clients.client(PRINCIPAL));
    let head = format!(
        "POST /tinyscale/v1/copy/x HTTP/1.1\r\nHost: {SERVER_NAME}\r\nContent-Encoding: br\r\nContent-Length: {COUNT}\r\n\r\n"
    );
    // A client that looks for the answer only when it has sent everything, as simple ones do.
    let started = Instant::now();
    let written = tls.write_all(head.as_bytes()).and_then(|()| tls.write_all(&vec![b'y'; COUNT]));
    let written = written.and_then(|()| tls.flush());
    assert!(written.is_ok() || started.elapsed() > Duration::from_millis(900), "{written:?}");
    let mut answer = [0; 12];
    fake::read_only(&mut tls, &mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 415");
}

#[test]
fn a_refused_upgrade_ends_properly_and_can_be_sent_whole() {
    let site = Site::start(&Plan::mutagen());
    let ann = site.clients.client(PRINCIPAL);
    let mut tls = fake::connect(&site, &ann);
    let answer = fake::post(&mut tls, "/tinyscale/v1/command", ASKS_FOR_FRAMES, "{\"command\": \"id\"}");
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let mut body = String::new();
    tls.read_to_string(&mut body).expect("the server ends TLS properly");
    assert!(body.contains("urn:tstunnel:command-denied"), "{body}");

    let mut tls = fake::connect(&site, &ann);
    let large = "x".repeat(8 << 20);
    let started = Instant::now();
    let head = format!(
        "POST /tinyscale/v1/command HTTP/1.1\r\nHost: {SERVER_NAME}\r\n{ASKS_FOR_FRAMES}Content-Length: {}\r\n\r\n",
        large.len()
    );
    let written = tls.write_all((head + &large).as_bytes()).and_then(|()| tls.flush());
    assert!(written.is_ok() || started.elapsed() > Duration::from_millis(900), "{written:?}");
    let mut answer = [0; 12];
    fake::read_only(&mut tls, &mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

// --- targets ------------------------------------------------------------------------------------------------------------

#[test]
fn a_target_that_does_not_answer_is_unreachable() {
    let site = Site::start(&Plan::mutagen().host("targets = [\"tcp:127.0.0.1:*\", \"unix:/no/such/socket\"]"));
    let target = format!("tcp:127.0.0.1:{}", port::free());
    for (target, why) in
        [(target.as_str(), "connection refused"), ("unix:/no/such/socket", "no such file or directory")]
    {
        let said = fails(&mut site.tstunnel(&["connect", HOST, "--target", target]), 255, "target-unreachable");
        assert_eq!(said, format!("cannot reach {target}: {why}"));
    }
    let answer = run(site.curl(&format!("/stream?target={target}")).args([
        "--request",
        "POST",
        "--header",
        "Connection: Upgrade",
        "--header",
        "Upgrade: tcp",
    ]))
    .ok()
    .text();
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("urn:tstunnel:target-unreachable"), "{answer}");
}

#[test]
fn a_target_that_no_list_names_is_denied() {
    let site = Site::start(&Plan::any().host("targets = [\"tcp:127.0.0.1:80\"]"));
    for target in ["tcp:127.0.0.1:22", "tcp:169.254.169.254:80", "unix:/var/run/docker.sock", "tcp:localhost:80"] {
        fails(&mut site.tstunnel(&["connect", HOST, "--target", target]), 255, "command-denied");
    }
}

#[test]
fn what_is_no_target_is_refused_by_client_and_server() {
    let site = Site::start(&Plan::any().host("targets = [\"tcp:*:*\", \"unix:/*\"]"));
    for target in ["tcp:127.1:80", "tcp:127.0.0.1:0", "udp:x:1", "unix:/a/../b"] {
        fails(&mut site.tstunnel(&["connect", HOST, "--target", target]), 255, "usage");
        let upgrade = ["--request", "POST", "--header", "Connection: Upgrade", "--header", "Upgrade: tcp"];
        let answer = run(site.curl(&format!("/stream?target={target}")).args(upgrade)).ok().text();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("urn:tstunnel:bad-request"), "{answer}");
    }
}

#[test]
fn a_host_without_targets_has_no_default() {
    let site = Site::start(&Plan::any());
    fails(&mut site.tstunnel(&["connect", HOST]), 255, "command-denied");
}

// --- uploads ------------------------------------------------------------------------------------------------------------

/// A small file system in a folder, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path) -> SmallDisk {
        let mut mount = Command::new(program("mount"));
        run(mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder)).ok();
        SmallDisk(folder.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new(program("umount")).args(["--lazy"]).arg(&self.0).status();
    }
}

/// Bytes that do not compress.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

#[test]
fn a_full_disk_is_a_storage_error_and_leaves_nothing_behind() {
    assert!(rustix::process::geteuid().is_root(), "this test mounts a small file system: run it as root");
    let site = Site::start(&Plan::any());
    let _disk = SmallDisk::mount(&site.home);
    let file = site.local_file("large", &noise(3 << 20));
    fails(&mut site.tstunnel(&["upload", text(&file), HOST]), 1, "storage");
    fails(&mut site.tstunnel(&["upload", "--no-compress", text(&file), HOST]), 1, "storage");
    fails(&mut site.scp(&["-C", text(&file), &format!("{HOST}:.mutagen-agent1")]), 255, "storage");
    let answer = run(site.curl("/copy/large").args(["--data-binary", &format!("@{}", text(&file))])).ok().text();
    assert!(answer.contains("HTTP/1.1 507 ") && answer.contains("urn:tstunnel:storage"), "{answer}");
    assert_eq!(site.names(), Vec::<String>::new());
    assert!(rustix::fs::statvfs(&site.home).is_ok_and(|disk| disk.f_bfree * disk.f_frsize > 900_000));

    let small = site.local_file("small", b"fits");
    run(&mut site.tstunnel(&["upload", text(&small), HOST])).ok();
    assert_eq!(fs::read(site.home.join("small")).unwrap(), b"fits");
}

#[test]
fn a_folder_in_the_files_place_is_a_storage_error() {
    let site = Site::start(&Plan::any());
    fs::create_dir_all(site.home.join("taken/full")).unwrap();
    let file = site.local_file("taken", b"x");
    fails(&mut site.tstunnel(&["upload", text(&file), HOST]), 1, "storage");
    assert_eq!(site.names(), ["taken"]);
}

#[test]
fn a_digest_that_does_not_match_leaves_nothing_behind() {
    let site = Site::start(&Plan::any());
    let wrong = "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:";
    for field in ["Content-Digest", "Unencoded-Digest"] {
        let answer = run(site.curl("/copy/x").args(["--data-binary", "abc", "--header", &format!("{field}: {wrong}")]));
        let answer = answer.ok().text();
        assert!(answer.starts_with("HTTP/1.1 422 ") && answer.contains("urn:tstunnel:bad-request"), "{answer}");
        assert!(answer.contains(field), "{answer}");
    }
    for (name, value) in [("Content-Digest", "sha-256=:short:"), ("Tstunnel-Mode", "rwx"), ("Tstunnel-Mode", "4755")] {
        let answer = run(site.curl("/copy/x").args(["--data-binary", "abc", "--header", &format!("{name}: {value}")]));
        let answer = answer.ok().text();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{name}: {value}\n{answer}");
    }
    assert_eq!(site.names(), Vec::<String>::new());
}

#[test]
fn a_body_that_is_not_what_its_encoding_says_leaves_nothing_behind() {
    let site = Site::start(&Plan::any());
    for (encoding, status) in [("gzip", "400"), ("zstd", "400"), ("br", "415")] {
        let field = format!("Content-Encoding: {encoding}");
        let answer = run(site.curl("/copy/x").args(["--data-binary", "not compressed at all", "--header", &field]));
        let answer = answer.ok().text();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{encoding}\n{answer}");
    }
    assert_eq!(site.names(), Vec::<String>::new());
}

#[test]
fn a_compressed_body_that_breaks_off_inside_is_not_stored() {
    let site = Site::start(&Plan::any());
    let file = site.local_file("noise", &noise(200_000));
    for (tool, encoding) in [("gzip", "gzip"), ("zstd", "zstd")] {
        let mut whole = run(site.command(program(tool)).args(["-q", "-c", text(&file)])).ok().stdout;
        whole.truncate(whole.len() / 2);
        let half = site.local_file("half", &whole);
        let field = format!("Content-Encoding: {encoding}");
        let answer =
            run(site.curl("/copy/x").args(["--data-binary", &format!("@{}", text(&half)), "--header", &field]));
        let answer = answer.ok().text();
        assert!(answer.contains("HTTP/1.1 400 "), "{encoding}\n{answer}");
    }
    assert_eq!(site.names(), Vec::<String>::new());
}

#[test]
fn names_that_would_lead_elsewhere_are_refused() {
    let site = Site::start(&Plan::any());
    let long = "n".repeat(256);
    let malformed =
        ["", ".", "..", "%2e%2e", "%2e%2e%2fx", "..%2fx", "a%2fb", "%2fetc%2fx", "a%00b", "%zz", "%", "%ff", &long];
    for name in malformed {
        let answer = run(site.curl(&format!("/copy/{name}")).args(["--data-binary", "x"])).ok().text();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("urn:tstunnel:bad-request"), "{name}\n{answer}");
    }
    // A plain slash makes more than one segment of it.
    for name in ["../x", "a/b", "/x", "x/", "../../../etc/x"] {
        let answer = run(site.curl(&format!("/copy/{name}")).args(["--data-binary", "x"])).ok().text();
        assert!(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 404 "), "{name}\n{answer}");
    }
    assert_eq!(site.names(), Vec::<String>::new());
    assert!(!site.root.join("x").exists());
    let good = "n".repeat(255);
    let answer = run(site.curl(&format!("/copy/{good}")).args(["--data-binary", "x"])).ok().text();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(site.names(), [good]);
}

#[test]
fn a_link_in_the_files_place_is_replaced_and_not_followed() {
    let site = Site::start(&Plan::any());
    let outside = site.root.join("outside");
    fs::write(&outside, "untouched").unwrap();
    std::os::unix::fs::symlink(&outside, site.home.join("link")).unwrap();
    let answer = run(site.curl("/copy/link").args(["--data-binary", "new"])).ok().text();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
    assert_eq!(fs::read_to_string(site.home.join("link")).unwrap(), "new");
    assert!(fs::symlink_metadata(site.home.join("link")).unwrap().is_file());
}

#[test]
fn a_digest_outside_the_trusted_ones_is_denied() {
    let site = Site::start(&Plan::mutagen().host(&format!("agent_digests = [\"{}\"]", "0".repeat(64))));
    let file = site.local_file("agent", b"x");
    fails(&mut site.scp(&[text(&file), &format!("{HOST}:.mutagen-agent1")]), 255, "command-denied");
    assert_eq!(site.names(), Vec::<String>::new());
}

// --- sessions -----------------------------------------------------------------------------------------------------------

#[test]
fn a_client_that_sends_a_bad_frame_is_told_and_its_process_ends() {
    let site = Site::start(&Plan::any());
    let oversize = vec![frames::STDIN, 0x10, 0, 1];
    let bad: [(&str, Vec<u8>); 5] = [
        ("a type that is unknown", frame(0x7f, b"")),
        ("a frame of the server's", frame(frames::STDOUT, b"x")),
        ("a payload that is too long", oversize),
        ("a PING of another size", frame(frames::PING, b"1234")),
        ("an ACK of what was never sent", frame(frames::ACK, &u64::MAX.to_be_bytes())),
    ];
    for (what, wire) in bad {
        let mut tls = fake::connect(&site, &site.clients.client(PRINCIPAL));
        let answer = fake::post(&mut tls, "/tinyscale/v1/command", ASKS_FOR_FRAMES, "{\"command\": \"sleep 1000\"}");
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        tls.write_all(&wire).unwrap();
        tls.flush().unwrap();
        let (kind, payload) = loop {
            let (kind, payload) = read_frame(&mut tls).unwrap_or_else(|error| panic!("{what}: {error}"));
            if kind == frames::ERROR {
                break (kind, payload);
            }
        };
        let said = String::from_utf8(payload).unwrap();
        assert!(kind == frames::ERROR && said.starts_with("protocol: "), "{what}: {said}");
        // What follows is the end, and nothing else.
        assert_eq!(tls.read(&mut [0; 16]).unwrap_or_else(|error| panic!("{what}: {error}")), 0, "{what}");
    }
    site.wait_until_idle();
}

#[test]
fn unknown_frames_from_0x80_up_are_ignored() {
    let site = Site::start(&Plan::any());
    let mut tls = fake::connect(&site, &site.clients.client(PRINCIPAL));
    fake::post(&mut tls, "/tinyscale/v1/command", ASKS_FOR_FRAMES, "{\"command\": \"cat\"}");
    for wire in [frame(0x80, b"news"), frame(0xff, b""), frame(frames::STDIN, b"hello"), frame(frames::STDIN, b"")] {
        tls.write_all(&wire).unwrap();
    }
    tls.flush().unwrap();
    let mut stdout = Vec::new();
    loop {
        match read_frame(&mut tls).unwrap() {
            (frames::STDOUT, payload) => stdout.extend(payload),
            (frames::EXIT, payload) => break assert_eq!(payload, [0, 0, 0, 0, 0]),
            (kind, payload) => assert!(kind != frames::ERROR, "{}", String::from_utf8_lossy(&payload)),
        }
    }
    assert_eq!(stdout, b"hello");
}

#[test]
fn a_server_that_sends_a_bad_frame_is_a_protocol_error() {
    let bad = [
        ("a type that is unknown", frame(0x7f, b"")),
        ("a frame of the client's", frame(frames::STDIN, b"x")),
        ("a payload that is too long", vec![frames::STDOUT, 0x10, 0, 1]),
        ("an EXIT of another size", frame(frames::EXIT, b"1")),
    ];
    for (what, wire) in bad {
        let site = Site::new();
        let (sender, told) = std::sync::mpsc::channel();
        let server = https_server(&site.servers.server(&[SERVER_NAME]), move |tls, _| {
            tls.write_all(FRAMED.as_bytes())?;
            tls.write_all(&wire)?;
            tls.flush()?;
            loop {
                let (kind, payload) = read_frame(tls)?;
                if kind == frames::ERROR {
                    let _ = sender.send(String::from_utf8_lossy(&payload).into_owned());
                    return finish(tls);
                }
            }
        });
        site.configure(server, "");
        fails(site.exec(&["ls"]).stdin(Stdio::null()), 255, "protocol");
        let said = told.recv_timeout(SOON).unwrap_or_else(|error| panic!("{what}: no ERROR came: {error}"));
        assert!(said.starts_with("protocol: "), "{what}: {said}");
    }
}

#[test]
fn the_last_word_of_a_server_is_what_the_client_says() {
    for (said, code) in [
        ("overloaded: the server stops", "overloaded"),
        ("internal: something broke", "internal"),
        ("session-lost: too late", "session-lost"),
        ("no code at all", "protocol"),
        ("made-up: nobody knows this one", "protocol"),
    ] {
        let site = Site::new();
        let server = https_server(&site.servers.server(&[SERVER_NAME]), move |tls, _| {
            tls.write_all(FRAMED.as_bytes())?;
            tls.write_all(&frame(frames::ERROR, said.as_bytes()))?;
            finish(tls)
        });
        site.configure(server, "");
        fails(&mut site.exec(&["ls"]), 255, code);
    }
}

#[test]
fn a_server_that_is_gone_in_the_middle_is_a_lost_network() {
    let mut site = Site::start(&Plan::any());
    site.configure_more("resume = false");
    for mut command in [site.exec(&["cat"]), site.ssh(&[HOST, "cat"])] {
        if site.server().ended().is_some() {
            site.server().start_again();
        }
        let mut session = Watched::start(command.stdin(Stdio::piped()));
        session.write(b"here\n");
        session.wait_for_output("here");
        let _stdin = session.stdin();
        site.server().kill();
        let ran = session.wait();
        assert_eq!((ran.code(), ran.text().as_str()), (Some(255), "here\n"), "{}", ran.stderr);
        error_line("a session without its server", &ran.stderr, "network-lost");
        classified("a session without its server", &ran.stderr, 255, "network-lost");
    }
    site.wait_until_idle();
}

#[test]
fn a_server_that_stays_silent_in_the_middle_is_a_lost_network() {
    let site = Site::new();
    let server = https_server(&site.servers.server(&[SERVER_NAME]), |tls, _| {
        tls.write_all(FRAMED.as_bytes())?;
        tls.flush()?;
        // Reads every question, and answers none.
        io::copy(&mut tls.sock, &mut io::sink()).map(|_| ())
    });
    site.configure(server, "alive_interval = \"200ms\"\nalive_count = 2\nresume = false");
    fails(site.exec(&["cat"]).stdin(Stdio::null()), 255, "network-lost");
}

#[test]
fn a_connection_that_sends_nothing_is_closed_by_the_server() {
    let site = Site::start(&Plan::any().limit("handshake_timeout = \"1s\""));
    let mut silent = TcpStream::connect(site.address()).unwrap();
    silent.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0);
    let site = Site::start(&Plan::any().limit("head_timeout = \"1s\""));
    let mut tls = fake::connect(&site, &site.clients.client(PRINCIPAL));
    tls.write_all(b"GET /tinyscale/v1/ho").unwrap();
    tls.flush().unwrap();
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).expect("the server ends TLS properly");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_server_that_stops_takes_no_new_sessions() {
    let mut site = Site::start(&Plan::any().limit("drain_timeout = \"60s\""));
    // It waits for a client that does not say that it has heard of its command's end.
    let mut held = fake::connect(&site, &site.clients.client(PRINCIPAL));
    let answer = fake::post(&mut held, "/tinyscale/v1/command", ASKS_FOR_FRAMES, "{\"command\": \"true\"}");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    while read_frame(&mut held).unwrap().0 != frames::EXIT {}
    site.server().signal(Signal::TERM);
    wait_until("the server stops", SOON, || site.server_log().contains("stopping"));
    // It goes on answering, so that nobody takes it for a network that is down.
    every_command_fails(&site, HOST, "overloaded");
    let answer = run(&mut site.curl("/host")).ok().text();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.to_lowercase().contains("\r\nretry-after: "), "{answer}");
    drop(held);
    wait_until("the server ends", SOON, || site.server().ended().is_some());
}

// --- classify -----------------------------------------------------------------------------------------------------------

#[test]
fn classify_does_not_guess() {
    for stderr in ["", "something else\n", "tstunnel: error[made-up]: x\n"] {
        let mut command = Command::new(TSTUNNEL);
        let ran = run_with_input(command.args(["classify", "--json", "--exit-status", "1"]), stderr.as_bytes());
        let verdict: Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!((ran.code(), &verdict["code"]), (Some(1), &Value::Null), "{verdict}");
    }
}

#[test]
fn many_clients_at_once_each_get_their_own_answer() {
    let site = Site::start(&Plan::any());
    thread::scope(|scope| {
        let jobs: Vec<_> = (0..12)
            .map(|number| {
                let site = &site;
                scope.spawn(move || {
                    let (line, status) = (format!("echo out {number}; exit {number}"), Some(number));
                    let ran = run(&mut site.exec(&[&line]));
                    assert_eq!((ran.code(), ran.text()), (status, format!("out {number}\n")), "{}", ran.stderr);
                })
            })
            .collect();
        jobs.into_iter().for_each(|job| job.join().unwrap());
    });
}

#[test]
fn a_wrapper_that_is_not_there_is_status_127() {
    let site = Site::start(&Plan::mutagen().host("wrapper = [\"/no/such/wrapper\"]"));
    let ran = run(&mut site.exec(&["uname -s -m"]));
    assert_eq!((ran.code(), ran.text().as_str()), (Some(127), ""), "{}", ran.stderr);
}

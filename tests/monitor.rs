//! The monitor of the real server: what it counts is what was done, in a format that Prometheus reads; whether it is ready; and
//! nobody who reaches it can hold it up or change anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod exposition;
mod support;
mod support_net;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use exposition::Exposition;
use support::pki::{Authority, Usage, Validity, params};
use support::process::{Signal, program};
use support::relay::Relay;
use support::serve::TSTUNNEL;
use support::wait::{SOON, wait_for, wait_until};
use support_net::child::{Watched, run, run_with_input};
use support_net::fake::{self, tcp_server};
use support_net::frames::{self, read_frame};
use support_net::site::{DOMAIN, HOST, PRINCIPAL, Plan, SERVER_NAME, Site, text};

const MONITOR: &str = "[monitor]\nlisten = [\"127.0.0.1:0\"]";

/// 2100-01-01, when what the tests' authorities sign ends.
const END: f64 = 4_102_444_800.0;

/// Where a site's monitor listens.
fn monitor(site: &Site) -> SocketAddr {
    let log = site.server_log();
    let (_, rest) = log.split_once("monitor on http://").expect("the server says where its monitor is");
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

/// Sends bytes to the monitor, and returns all that it answers.
fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    // One that has seen enough may answer before it has read all of it.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = ask(address, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {path}: {answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn scrape(site: &Site) -> Exposition {
    let (status, body) = get(monitor(site), "/metrics");
    assert_eq!(status, 200);
    Exposition::parse(&body)
}

/// Waits until a sample has a value.
#[track_caller]
fn wait_for_value(site: &Site, sample: &str, value: f64) {
    let mut found = None;
    wait_until(&format!("{sample} is {value}"), SOON, || {
        found = scrape(site).find(sample);
        found == Some(value)
    });
}

#[test]
fn what_is_counted_is_what_was_done() {
    let target = tcp_server(|mut stream| {
        let (mut reader, mut writer) = (stream.try_clone().unwrap(), &mut stream);
        let _ = std::io::copy(&mut reader, &mut writer);
    });
    let site = Site::start(&Plan::any().host(&format!("targets = [\"tcp:{target}\"]")).tables(MONITOR));
    let before = scrape(&site);
    for sample in [
        "tstunnel_handshakes_total{result=\"ok\"}",
        "tstunnel_handshakes_total{result=\"revoked\"}",
        "tstunnel_limits_reached_total{limit=\"sessions\"}",
        "tstunnel_limits_reached_total{limit=\"source-sessions\"}",
        "tstunnel_closed_connections_total{reason=\"shut-out\"}",
        "tstunnel_closed_connections_total{reason=\"crowded\"}",
        "tstunnel_closed_connections_total{reason=\"full\"}",
        "tstunnel_audit_lines_total{result=\"lost\"}",
        "tstunnel_reloads_total{result=\"failed\"}",
        "tstunnel_uploads_total{result=\"stored\"}",
        "tstunnel_connections{state=\"request\"}",
        "tstunnel_bytes_total{direction=\"in\"}",
        "tstunnel_resumes_total",
    ] {
        assert_eq!(before.find(sample), Some(0.0), "{sample} can be seen to rise");
    }

    assert_eq!(run_with_input(&mut site.exec(&["cat"]), b"twelve bytes").ok().text(), "twelve bytes");
    assert_eq!(run(&mut site.exec(&["exit 3"])).code(), Some(3));
    run_with_input(&mut site.tstunnel(&["connect", "--raw", HOST]), b"back").ok();
    let file = site.local_file("f", b"the contents");
    run(&mut site.tstunnel(&["upload", "--no-compress", text(&file), HOST])).ok();
    let digest = format!("Content-Digest: sha-256=:{}:", "A".repeat(43) + "=");
    run(site.curl("/copy/f").args(["--data-binary", "other contents", "--header", &digest]));
    run(&mut site.curl("/host")).ok();
    run(&mut site.curl("/nothing"));
    run(&mut site.curl_to(&format!("absent.{DOMAIN}"), "/tinyscale/v1/host"));
    for _ in 0..3 {
        drop(TcpStream::connect(site.address()).unwrap());
    }
    let stranger = Authority::new("somebody else").client(PRINCIPAL);
    let _ = fake::connect(&site, &stranger).read(&mut [0]);

    // And one for each client that was slow to load its files: it makes another connection then.
    let closed = "tstunnel_handshakes_total{result=\"closed\"}";
    wait_until("those who said nothing are counted", SOON, || scrape(&site).find(closed) >= Some(3.0));
    wait_for_value(&site, "tstunnel_session_duration_seconds_count", 5.0);
    let after = scrape(&site);
    let sessions = |kind: &str| format!("tstunnel_sessions_started_total{{host=\"{HOST}\",kind=\"{kind}\"}}");
    let requests = |route: &str, code: &str| format!("tstunnel_requests_total{{route=\"{route}\",code=\"{code}\"}}");
    for (sample, value) in [
        ("tstunnel_handshakes_total{result=\"untrusted\"}".to_owned(), 1.0),
        (sessions("command"), 2.0),
        (sessions("stream"), 1.0),
        (sessions("upload"), 2.0),
        (requests("command", "ok"), 2.0),
        (requests("stream", "ok"), 1.0),
        (requests("copy", "bad-request"), 1.0),
        (requests("none", "bad-request"), 1.0),
        (requests("host", "ok"), 1.0),
        (requests("host", "host-unknown"), 1.0),
        ("tstunnel_bytes_total{direction=\"in\"}".to_owned(), 16.0),
        ("tstunnel_bytes_total{direction=\"out\"}".to_owned(), 16.0),
        ("tstunnel_uploads_total{result=\"stored\"}".to_owned(), 1.0),
        ("tstunnel_uploads_total{result=\"failed\"}".to_owned(), 1.0),
        ("tstunnel_upload_bytes_total".to_owned(), 26.0),
        ("tstunnel_audit_lines_total{result=\"lost\"}".to_owned(), 0.0),
        ("tstunnel_build_info{version=\"0.1.0\"}".to_owned(), 1.0),
    ] {
        assert_eq!(after.find(&sample), Some(value), "{sample}");
    }
    for kind in ["command", "stream", "upload"] {
        assert_eq!(after.find(&format!("tstunnel_sessions{{host=\"{HOST}\",kind=\"{kind}\"}}")), Some(0.0), "{kind}");
    }
    // Whatever was asked for has a line, and each session a second one; and so has the start, and each failed handshake.
    let asked: f64 = after.family("tstunnel_requests").iter().map(|(_, value)| value).sum();
    wait_until("every line is written, and no other", SOON, || {
        let now = scrape(&site);
        let failed = now.find(closed).unwrap() + 1.0;
        now.find("tstunnel_audit_lines_total{result=\"written\"}") == Some(asked + 5.0 + 1.0 + failed)
    });
}

#[test]
fn a_live_session_and_its_bytes_show_and_so_does_one_that_is_interrupted() {
    let site = Site::start(&Plan::any().tables(MONITOR));
    let alive = format!("tstunnel_sessions{{host=\"{HOST}\",kind=\"command\"}}");
    let relay = Relay::to(site.address());
    site.configure(relay.address(), "");
    let mut client = Watched::start(site.exec(&["echo hello; exec cat"]).stdin(Stdio::piped()));
    client.wait_for_output("hello\n");
    let live = scrape(&site);
    assert_eq!(live.find(&alive), Some(1.0));
    assert_eq!(live.find("tstunnel_bytes_total{direction=\"out\"}"), Some(6.0));
    assert_eq!(live.find("tstunnel_parked_sessions"), Some(0.0));
    relay.reset();
    wait_for_value(&site, "tstunnel_resumes_total", 1.0);
    assert_eq!(scrape(&site).find("tstunnel_parked_sessions"), Some(0.0));
    client.signal(Signal::KILL);
    wait_for_value(&site, "tstunnel_parked_sessions", 1.0);
    assert_eq!(scrape(&site).find(&alive), Some(1.0), "it waits for its client");
    assert_eq!(scrape(&site).find("tstunnel_connections{state=\"request\"}"), Some(0.0));
}

#[test]
fn a_limit_that_is_reached_is_counted_under_its_own_name() {
    let limits = [("sessions_per_principal", "principal-sessions"), ("sessions_per_source", "source-sessions")];
    for (key, name) in limits {
        let site = Site::start(&Plan::any().limit(&format!("max_{key} = 1")).tables(MONITOR));
        let mut client = Watched::start(site.exec(&["echo hello; exec cat"]).stdin(Stdio::piped()));
        client.wait_for_output("hello\n");
        assert_eq!(run(&mut site.exec(&["true"])).code(), Some(255));
        let scraped = scrape(&site);
        for (_, limit) in limits {
            let reached = scraped.find(&format!("tstunnel_limits_reached_total{{limit=\"{limit}\"}}"));
            assert_eq!(reached, Some(if limit == name { 1.0 } else { 0.0 }), "{limit} where {name} is reached");
        }
        assert_eq!(scraped.find("tstunnel_requests_total{route=\"command\",code=\"too-many\"}"), Some(1.0));
    }
}

#[test]
fn a_connection_of_a_source_that_is_shut_out_is_counted() {
    let limits = "penalty_exempt = []\npenalty_threshold = \"1s\"\npenalty_failed = \"60s\"";
    let site = Site::start(&Plan::any().limit(limits).tables(MONITOR));
    let stranger = || {
        let mut stranger = TcpStream::connect(site.address()).unwrap();
        let _ = stranger.write_all(b"nonsense, which is no TLS\r\n\r\n");
        let _ = stranger.read_to_end(&mut Vec::new());
    };
    stranger();
    wait_for_value(&site, "tstunnel_handshakes_total{result=\"protocol\"}", 1.0);
    stranger();
    wait_for_value(&site, "tstunnel_closed_connections_total{reason=\"shut-out\"}", 1.0);
}

#[test]
fn the_process_and_the_times_at_which_its_files_expire_show() {
    let mut site = Site::new();
    fs::write(site.root.join("crl.pem"), site.clients.revoke(&[], Validity::Now)).unwrap();
    site.serve(&Plan::any().top("crl = [\"crl.pem\"]").tables(MONITOR));
    let scraped = scrape(&site);
    assert_eq!(scraped.find("tstunnel_certificate_expiry_timestamp_seconds"), Some(END));
    assert_eq!(scraped.find("tstunnel_crl_expiry_timestamp_seconds"), Some(END));
    let id = site.server().id();
    // The server's start opens and closes some more.
    let open = wait_for("the descriptors are the kernel's, and one for the scrape", SOON, || {
        let open = scrape(&site).find("process_open_fds").unwrap();
        let now = fs::read_dir(format!("/proc/{id}/fd")).unwrap().count() as f64;
        (open == now + 1.0).then_some(open)
    });
    assert!(scraped.find("process_max_fds").unwrap() >= open);
    assert!(scraped.find("process_resident_memory_bytes").unwrap() > 1e6);
    let start = scraped.find("process_start_time_seconds").unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(now - 60.0 < start && start <= now, "{start} {now}");
    let before = scraped.find("process_cpu_seconds_total").unwrap();
    wait_until("scraping costs time", SOON, || scrape(&site).find("process_cpu_seconds_total").unwrap() > before);

    let site = Site::start(&Plan::any().tables(MONITOR));
    assert_eq!(scrape(&site).find("tstunnel_crl_expiry_timestamp_seconds"), Some(f64::INFINITY), "none ever does");
}

#[test]
fn a_reload_is_counted_and_brings_the_times_of_the_new_files() {
    let mut site = Site::start(&Plan::any().top("watch = false").tables(MONITOR));
    let new = site.servers.issue_until(Usage::Server, Duration::from_secs(4_000_000_000), params(&[SERVER_NAME]));
    site.write(&new, "server");
    site.server().signal(Signal::HUP);
    wait_for_value(&site, "tstunnel_reloads_total{result=\"ok\"}", 1.0);
    assert_eq!(scrape(&site).find("tstunnel_certificate_expiry_timestamp_seconds"), Some(4e9));
    fs::write(site.root.join("server.crt"), "no certificate").unwrap();
    site.server().signal(Signal::HUP);
    wait_for_value(&site, "tstunnel_reloads_total{result=\"failed\"}", 1.0);
    assert_eq!(scrape(&site).find("tstunnel_certificate_expiry_timestamp_seconds"), Some(4e9));
    assert_eq!(get(monitor(&site), "/readyz").0, 200, "what it went by is still right");
}

/// Who may cause a label may cause any number of them, and all are kept.
#[test]
fn no_label_is_a_peers_choice() {
    let site = Site::start(&Plan::any().tables(MONITOR));
    run(&mut site.exec(&["true"])).ok();
    run(&mut site.curl("/peers-path"));
    run(site.curl("/host").args(["--request", "PEERS"]));
    run(&mut site.curl_to(&format!("peers-name.{DOMAIN}"), "/"));
    let mut tls = fake::connect(&site, &site.clients.client("spiffe://tunnel.test/users/peers-user"));
    let _ = tls.write_all(format!("GET /x HTTP/1.1\r\nHost: {SERVER_NAME}\r\n\r\n").as_bytes());
    let _ = std::io::copy(&mut tls, &mut std::io::sink());
    wait_for_value(&site, "tstunnel_requests_total{route=\"none\",code=\"host-unknown\"}", 2.0);
    let (_, text) = get(monitor(&site), "/metrics");
    for word in ["peers-", "PEERS", "spiffe", "127.0.0.1"] {
        assert!(!text.contains(word), "{word} in\n{text}");
    }
}

#[test]
fn a_server_that_drains_is_healthy_and_not_ready_and_still_tells_its_metrics() {
    let mut site = Site::start(&Plan::any().limit("drain_timeout = \"60s\"").tables(MONITOR));
    let address = monitor(&site);
    assert_eq!(get(address, "/healthz"), (200, "healthy\n".to_owned()));
    assert_eq!(get(address, "/readyz"), (200, "ready\n".to_owned()));
    // A client that does not say that it has heard of its command's end is waited for.
    let mut client = fake::connect(&site, &site.clients.client(PRINCIPAL));
    let fields = "Connection: Upgrade\r\nUpgrade: tstunnel/1\r\n";
    let answer = fake::post(&mut client, "/tinyscale/v1/command", fields, "{\"command\": \"true\"}");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    while read_frame(&mut client).unwrap().0 != frames::EXIT {}
    site.server().signal(Signal::TERM);
    wait_until("it is not ready any more", SOON, || get(address, "/readyz").0 == 503);
    assert_eq!(get(address, "/readyz").1, "the server is stopping\n");
    assert_eq!(get(address, "/healthz").0, 200);
    let alive = format!("tstunnel_sessions{{host=\"{HOST}\",kind=\"command\"}}");
    assert_eq!(scrape(&site).find(&alive), Some(1.0), "it is still there");
    drop(client);
    wait_until("the server has stopped", SOON, || site.server().ended().is_some());
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_server_that_must_keep_its_log_and_cannot_is_not_ready() {
    let mut site = Site::new();
    let path = site.root.join("journal");
    let _unread = UnixDatagram::bind(&path).unwrap();
    let top = format!("audit = \"journald:{}\"\naudit_required = true", path.display());
    site.serve(&Plan::any().top(&top).tables(MONITOR));
    assert_eq!(get(monitor(&site), "/readyz").0, 200);
    wait_until("the queue of the socket is full", SOON, || !run(&mut site.exec(&["true"])).status.success());
    assert_eq!(get(monitor(&site), "/readyz"), (503, "the server cannot keep its audit log\n".to_owned()));
    assert!(scrape(&site).find("tstunnel_audit_lines_total{result=\"lost\"}").unwrap() >= 1.0);
}

#[test]
fn whatever_else_is_asked_is_refused_and_changes_nothing() {
    let site = Site::start(&Plan::any().tables(MONITOR));
    let address = monitor(&site);
    for path in
        ["/", "/metrics/", "/metrics/..", "//metrics", "/METRICS", "/healthz%00", "/debug/pprof", "/../etc/passwd", "*"]
    {
        assert_eq!(get(address, path).0, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let answer = ask(address, format!("{method} /metrics HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD\r\n"), "{answer}");
    }
    let head = ask(address, b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"), "{head}");
    let long = format!("GET /metrics HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    for (what, bytes) in [
        ("garbage", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03".as_slice()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("a space too many", b"GET  /metrics HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("two lengths", b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        ("a control character", b"GET /metrics HTTP/1.1\r\nHost: a\x00b\r\n\r\n"),
        ("a long head", long.as_bytes()),
    ] {
        let answer = ask(address, bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
    }
    // A body is not read, and the connection ends with the answer.
    let answer = ask(address, b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nGET /metr");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert_eq!(get(address, "/readyz").0, 200);
    assert_eq!(run(&mut site.exec(&["echo hello"])).ok().text(), "hello\n");
}

#[test]
fn connections_that_say_nothing_hold_the_monitor_up_for_seconds_at_most_and_the_server_not_at_all() {
    let site = Site::start(&Plan::any().tables(MONITOR));
    let address = monitor(&site);
    let start = Instant::now();
    let mut idle: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    for (index, stream) in idle.iter_mut().enumerate() {
        stream.write_all(if index % 2 == 0 { b"GET /metrics HTTP/1.1\r\nHo" } else { b"" }).unwrap();
    }
    assert_eq!(run(&mut site.exec(&["echo hello"])).ok().text(), "hello\n");
    assert_eq!(get(address, "/healthz").0, 200);
    assert!(start.elapsed() < Duration::from_secs(18), "{:?}", start.elapsed());
    // Those that were waited for are gone.
    let mut first = idle.swap_remove(0);
    first.set_read_timeout(Some(SOON)).unwrap();
    let mut rest = Vec::new();
    let _ = first.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "{rest:?}");
}

#[test]
fn there_is_no_monitor_unless_it_is_asked_for_and_one_that_cannot_listen_is_an_error() {
    let mut site = Site::start(&Plan::any());
    assert!(!site.server_log().contains("monitor on"), "{}", site.server_log());
    site.server().kill();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let configuration = site.root.join("server.toml");
    let text = fs::read_to_string(&configuration).unwrap();
    let monitor = format!("{text}\n[monitor]\nlisten = [\"{}\"]\n", taken.local_addr().unwrap());
    fs::write(&configuration, monitor).unwrap();
    let ran = run(site.command(TSTUNNEL).args(["serve", "--config"]).arg(&configuration));
    assert_eq!(ran.code(), Some(1));
    assert!(ran.stderr.contains("error[config]: cannot monitor on 127.0.0.1:"), "{}", ran.stderr);
    let hint = "choose another address for `listen` in [monitor], or stop what has this one";
    assert!(ran.stderr.contains(hint), "{}", ran.stderr);
}

#[test]
fn curl_reads_it() {
    let site = Site::start(&Plan::any().tables(MONITOR));
    let url = format!("http://{}/metrics", monitor(&site));
    let ran = run(site.command(program("curl")).args(["--silent", "--show-error", "--fail", "--max-time", "20", &url]));
    Exposition::parse(&ran.ok().text());
}

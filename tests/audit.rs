//! The audit log of the real server: a line for each decision and for each end, which say who did what, by which rule, and how
//! it went; and nothing that a peer sends can forge or flood them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use support::pki::{Authority, Usage, Validity, uri_params};
use support::process::{Signal, program};
use support::serve::{TSTUNNEL, all_records, records};
use support::wait::{SOON, wait_for, wait_until};
use support_net::child::{Watched, run, run_with_input};
use support_net::fake::{self, tcp_server};
use support_net::report::fails;
use support_net::site::{DOMAIN, HOST, PRINCIPAL, Plan, SERVER_NAME, Site, text};

/// Waits until the log has `count` lines about `event`, and returns them.
#[track_caller]
fn wait_for_records(site: &Site, event: &str, count: usize) -> Vec<Value> {
    let found = wait_for(&format!("{count} lines about {event}"), SOON, || {
        let found = records(&site.server_log(), event);
        (found.len() >= count).then_some(found)
    });
    assert_eq!(found.len(), count, "{found:?}");
    found
}

/// A client that is slow to load its files leaves a connection without a word, and makes another: that has a line too.
fn is_no_handshake(record: &Value) -> bool {
    record["event"] != "handshake"
}

/// Checks fields of a line; `null` is for what must not be there.
#[track_caller]
fn assert_says(record: &Value, expected: Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&record[name], value, "{name} of {record}");
    }
}

/// What every line about the site's own client says.
#[track_caller]
fn assert_names_the_client(record: &Value) {
    let serial = record["serial"].as_str().unwrap();
    assert!(!serial.is_empty() && serial.bytes().all(|byte| byte.is_ascii_hexdigit()), "{record}");
    let source = record["source"].as_str().unwrap();
    assert!(source.starts_with("127.0.0.1:"), "{record}");
    assert_says(record, json!({"principal": PRINCIPAL, "server_name": SERVER_NAME, "host": HOST}));
    assert!(record["time"].as_str().unwrap().ends_with('Z') && record["account"].is_string(), "{record}");
}

// --- what is allowed ----------------------------------------------------------------------------------------------------

#[test]
fn a_command_has_a_line_for_its_decision_and_one_for_its_end() {
    let site = Site::start(&Plan::any());
    let ran = run_with_input(
        &mut site.tstunnel(&[
            "exec",
            "--env",
            "LC_SECRET=hunter2",
            HOST,
            "--",
            "sh",
            "-c",
            "cat; echo oops >&2; exit 3",
        ]),
        b"twelve bytes",
    );
    assert_eq!((ran.code(), ran.text().as_str()), (Some(3), "twelve bytes"));
    let end = wait_for_records(&site, "end", 1).remove(0);
    let session = wait_for_records(&site, "session", 1).remove(0);
    for record in [&session, &end] {
        assert_names_the_client(record);
    }
    let serial = run(site.command(program("openssl")).current_dir(&site.root).args([
        "x509",
        "-noout",
        "-serial",
        "-in",
        "client.crt",
    ]));
    let serial = serial.ok().text().trim().strip_prefix("serial=").unwrap().to_ascii_lowercase();
    let rule = format!("grant 1 `{PRINCIPAL}` on `{HOST}`; command `any`");
    assert_says(&session, json!({"verdict": "allowed", "rule": rule, "serial": serial, "code": null}));
    let request =
        json!({"kind": "command", "command": "sh", "args": ["-c", "cat; echo oops >&2; exit 3"], "env": ["LC_SECRET"]});
    let mut asked = session["request"].clone();
    asked["env"].as_array_mut().unwrap().retain(|name| name == "LC_SECRET");
    assert_eq!(asked, request);
    assert_says(&end, json!({"session": session["session"], "status": 3, "signal": null, "reason": "finished"}));
    // What it says on stderr counts too.
    assert_says(
        &end,
        json!({"bytes_in": 12, "bytes_out": 17, "resumes": 0, "code": null, "verdict": null, "request": null}),
    );
    assert!(end["duration_ms"].as_u64().unwrap() < 20_000, "{end}");
    assert!(!site.server_log().contains("hunter2"), "values may be secrets: {}", site.server_log());
    assert!(records(&site.server_log(), "refused").is_empty());
}

#[test]
fn an_end_says_what_became_of_the_process_and_of_the_bytes_however_it_came() {
    let mut site = Site::start(&Plan::any());
    run(&mut site.exec(&["kill -KILL $$"]));
    let end = wait_for_records(&site, "end", 1).pop().unwrap();
    assert_says(&end, json!({"status": null, "signal": 9}));

    // A client without frames that is gone from one moment to the next.
    let mut client = site.tstunnel(&["exec", "--raw", HOST, "--", "echo hello; exec cat"]);
    let mut client = Watched::start(client.stdin(Stdio::piped()));
    client.wait_for_output("hello\n");
    client.signal(Signal::KILL);
    let end = wait_for_records(&site, "end", 2).pop().unwrap();
    assert_says(&end, json!({"bytes_in": 0, "bytes_out": 6}));

    // A server that stops.
    let mut client = Watched::start(site.exec(&["echo hello; exec cat"]).stdin(Stdio::piped()));
    client.wait_for_output("hello\n");
    site.server().signal(Signal::TERM);
    wait_until("the server has stopped", SOON, || site.server().ended().is_some());
    let mut log = all_records(&site.server_log());
    log.retain(is_no_handshake);
    let events: Vec<_> = log.iter().map(|record| record["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["start", "session", "end", "session", "end", "session", "stop", "end"]);
    assert_says(&log[7], json!({"session": log[5]["session"], "bytes_out": 6}));
    assert!(log[0]["reason"].as_str().unwrap().contains(&format!("process {}", site.server().id())), "{}", log[0]);
}

#[test]
fn a_program_that_cannot_be_started_is_a_decision_and_an_end_with_the_failure() {
    let site = Site::start(&Plan::any().host("shell = false"));
    let file = site.home.join("file");
    fs::write(&file, "not a program").unwrap();
    for (raw, words, code, status) in [
        (None, "./absent", "agent-missing", json!(127)),
        (None, "./file", "agent-not-executable", json!(126)),
        (Some("--raw"), "./absent", "agent-missing", Value::Null),
        (Some("--raw"), "./file", "agent-not-executable", Value::Null),
    ] {
        let ends = records(&site.server_log(), "end").len();
        let mut words = [words, "argument"].map(str::to_owned).to_vec();
        words.splice(0..0, ["exec"].into_iter().chain(raw).chain([HOST, "--"]).map(str::to_owned));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert!(!run(&mut site.tstunnel(&words)).status.success());
        let end = wait_for_records(&site, "end", ends + 1).pop().unwrap();
        assert_says(&end, json!({"code": code, "status": status}));
        assert!(end["reason"].as_str().unwrap().contains(words.iter().rev().nth(1).unwrap()), "{end}");
        let session = wait_for_records(&site, "session", ends + 1).pop().unwrap();
        assert_says(&session, json!({"session": end["session"], "verdict": "allowed"}));
    }
    assert!(records(&site.server_log(), "refused").is_empty(), "nobody was refused: {}", site.server_log());
}

#[test]
fn a_stream_says_where_it_went_even_where_the_client_left_that_to_the_host() {
    let target = tcp_server(|mut stream| {
        let (mut reader, mut writer) = (stream.try_clone().unwrap(), &mut stream);
        let _ = std::io::copy(&mut reader, &mut writer);
    });
    let site = Site::start(&Plan::mutagen().host(&format!("targets = [\"tcp:{target}\", \"tcp:127.0.0.1:1\"]")));
    let ran = run_with_input(&mut site.tstunnel(&["connect", HOST]), b"there and back");
    assert_eq!(ran.ok().text(), "there and back");
    let end = wait_for_records(&site, "end", 1).remove(0);
    let session = wait_for_records(&site, "session", 1).remove(0);
    assert_eq!(session["request"], json!({"kind": "stream", "target": format!("tcp:{target}")}));
    assert_says(&end, json!({"session": session["session"], "bytes_in": 14, "bytes_out": 14, "code": null}));

    fails(&mut site.tstunnel(&["connect", HOST, "--target", "tcp:127.0.0.1:1"]), 255, "target-unreachable");
    let end = wait_for_records(&site, "end", 2).remove(1);
    assert_says(&end, json!({"code": "target-unreachable"}));
}

#[test]
fn an_upload_says_what_was_stored() {
    let site = Site::start(&Plan::any());
    let file = site.local_file("f", b"the contents");
    run(&mut site.tstunnel(&["upload", text(&file), &format!("{HOST}:there")])).ok();
    let sha256 = run(site.command("sha256sum").arg(&file)).ok().text()[..64].to_owned();
    let end = wait_for_records(&site, "end", 1).remove(0);
    let upload = wait_for_records(&site, "upload", 1).remove(0);
    assert_names_the_client(&upload);
    assert_eq!(upload["request"], json!({"kind": "copy", "filename": "there"}));
    assert_says(&upload, json!({"verdict": "allowed", "session": end["session"]}));
    assert_says(&end, json!({"size": 12, "sha256": sha256, "code": null, "bytes_out": 0}));
    assert!(end["bytes_in"].as_u64().unwrap() > 0, "{end}");

    let wrong = [
        "--data-binary",
        "something else",
        "--header",
        &format!("Unencoded-Digest: sha-256=:{}:", "A".repeat(43) + "="),
    ];
    run(site.curl("/copy/there").args(wrong));
    let end = wait_for_records(&site, "end", 2).remove(1);
    assert_says(&end, json!({"code": "bad-request", "sha256": null}));
    assert!(records(&site.server_log(), "refused").is_empty(), "{}", site.server_log());
}

#[test]
fn a_question_has_a_line_and_nothing_begins() {
    let site = Site::start(&Plan::any());
    run(&mut site.curl("/host")).ok();
    let digest = format!("Unencoded-Digest: sha-256=:{}:", "A".repeat(43) + "=");
    run(site.curl("/copy/f").args(["--head", "--header", &digest])).ok();
    let queries = wait_for_records(&site, "query", 2);
    assert_says(&queries[0]["request"], json!({"kind": "host"}));
    assert_eq!(queries[1]["request"], json!({"kind": "copy", "filename": "f"}));
    queries.iter().for_each(assert_names_the_client);
    assert!(queries.iter().all(|query| query["verdict"] == "allowed" && query["rule"].is_string()), "{queries:?}");
    assert_eq!(all_records(&site.server_log()).len(), 3, "these, and the start: {}", site.server_log());
}

// --- what is refused ----------------------------------------------------------------------------------------------------

#[test]
fn a_refusal_has_one_line_with_its_code_and_as_much_as_was_understood() {
    let site = Site::start(&Plan::mutagen().limit("max_upload_bytes = 10").tables("[host.secret]"));
    let here = json!({"principal": PRINCIPAL, "host": HOST, "rule": format!("grant 1 `{PRINCIPAL}` on `{HOST}`")});
    // Whatever could not be asked of the policy was refused by no rule of it.
    let unasked = json!({"principal": PRINCIPAL, "host": HOST, "rule": null});
    let nowhere = json!({"principal": PRINCIPAL, "host": null, "account": null, "rule": null});
    let command = |body: &str| {
        let mut curl = site.curl("/command");
        curl.args(["--header", "Connection: Upgrade", "--header", "Upgrade: tstunnel/1", "--data-binary", body]);
        curl
    };
    let denied = r#"{"command": "rm -rf /", "user": "mallory", "env": {"LANG": "hunter2"}}"#;
    let cases = [
        (
            command(r#"{"command": "rm -rf /"}"#),
            "command-denied",
            json!({"kind": "command", "command": "rm -rf /"}),
            &here,
        ),
        (
            command(denied),
            "unauthorized",
            json!({"kind": "command", "command": "rm -rf /", "user": "mallory", "env": ["LANG"]}),
            &here,
        ),
        (
            command("{"),
            "bad-request",
            json!({"kind": "command", "method": "POST", "path": "/tinyscale/v1/command"}),
            &unasked,
        ),
        (
            site.curl("/nothing"),
            "bad-request",
            json!({"kind": "none", "method": "GET", "path": "/tinyscale/v1/nothing"}),
            &unasked,
        ),
        (
            site.curl("/stream"),
            "bad-request",
            json!({"kind": "stream", "method": "GET", "path": "/tinyscale/v1/stream"}),
            &unasked,
        ),
        (
            site.curl_to(&format!("secret.{DOMAIN}"), "/x"),
            "host-unknown",
            json!({"kind": "none", "method": "GET", "path": "/x"}),
            &nowhere,
        ),
    ];
    let count = cases.len();
    for (index, (mut curl, code, request, place)) in cases.into_iter().enumerate() {
        run(&mut curl);
        let record = wait_for_records(&site, "refused", index + 1).pop().unwrap();
        assert_says(&record, json!({"verdict": "refused", "code": code, "request": request, "session": null}));
        assert_says(&record, place.clone());
        assert!(record["reason"].is_string() && record["serial"].is_string(), "{record}");
    }
    let mut copy = site.curl("/copy/.mutagen-agent00000000-0000-4000-8000-000000000000");
    run(copy.args(["--data-binary", "more than ten bytes"]));
    let record = wait_for_records(&site, "refused", count + 1).pop().unwrap();
    assert_says(
        &record,
        json!({"code": "bad-request", "request": {"kind": "copy", "filename": ".mutagen-agent00000000-0000-4000-8000-000000000000"}}),
    );
    assert_eq!(all_records(&site.server_log()).len(), count + 2, "these, and the start: {}", site.server_log());
    assert!(!site.server_log().contains("hunter2"), "values may be secrets");
}

#[test]
fn whom_a_certificate_does_not_name_is_known_by_its_serial() {
    let site = Site::start(&Plan::any());
    let nobody =
        site.clients.issue(Usage::Client, Validity::Now, uri_params(&[PRINCIPAL, "spiffe://tunnel.test/users/bob"]));
    site.write(&nobody, "client");
    fails(&mut site.exec(&["true"]), 255, "unauthorized");
    let record = wait_for_records(&site, "refused", 1).remove(0);
    assert_says(&record, json!({"principal": null, "code": "unauthorized", "verdict": "refused", "host": null}));
    assert!(record["serial"].is_string(), "{record}");
}

#[test]
fn who_is_not_authenticated_is_known_by_address_and_a_code_of_a_closed_list() {
    let mut site = Site::new();
    let revoked = site.clients.client(PRINCIPAL);
    fs::write(site.root.join("crl.pem"), site.clients.revoke(&[&revoked], Validity::Now)).unwrap();
    site.serve(&Plan::any().top("crl = [\"crl.pem\"]").limit("handshake_timeout = \"3s\""));
    let expired = site.clients.issue(Usage::Client, Validity::Past, uri_params(&[PRINCIPAL]));
    let server = site.clients.issue(Usage::Server, Validity::Now, uri_params(&[PRINCIPAL]));
    let mut expected = Vec::new();
    for (identity, code) in [
        (&revoked, "revoked"),
        (&expired, "expired"),
        (&Authority::new("somebody else").client(PRINCIPAL), "untrusted"),
        (&server, "bad-certificate"),
    ] {
        let mut tls = fake::connect(&site, identity);
        let _ = tls.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| tls.flush());
        let _ = std::io::copy(&mut tls, &mut std::io::sink());
        expected.push(code);
        wait_for_records(&site, "handshake", expected.len());
    }
    let endpoint = site.address().to_string();
    let s_client = |arguments: &[&str]| {
        let mut client = site.command(program("openssl"));
        client.args(["s_client", "-connect", &endpoint]).args(arguments);
        client
    };
    // In TLS 1.3 the client has finished before the server misses its certificate.
    let anonymous = Watched::start(s_client(&["-servername", SERVER_NAME]).stdin(Stdio::piped()));
    expected.push("no-certificate");
    wait_for_records(&site, "handshake", expected.len());
    drop(anonymous);
    run(&mut s_client(&["-noservername"]));
    run(&mut s_client(&["-servername", SERVER_NAME, "-tls1_2"]));
    let mut plain = TcpStream::connect(site.address()).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\x1b[31m").unwrap();
    expected.extend(["no-server-name", "protocol", "protocol"]);
    wait_for_records(&site, "handshake", expected.len());
    drop(TcpStream::connect(site.address()).unwrap());
    expected.push("closed");
    wait_for_records(&site, "handshake", expected.len());
    let silent = TcpStream::connect(site.address()).unwrap();
    expected.push("slow");
    let found = wait_for_records(&site, "handshake", expected.len());
    drop((plain, silent));

    let codes: Vec<_> = found.iter().map(|record| record["code"].as_str().unwrap()).collect();
    assert_eq!(codes, expected);
    for record in &found {
        assert!(
            record["source"].as_str().unwrap().starts_with("127.0.0.1:") && record["reason"].is_string(),
            "{record}"
        );
        assert_says(record, json!({"principal": null, "verdict": null, "request": null}));
    }
}

#[test]
fn a_source_is_recorded_when_it_is_shut_out_and_for_how_long() {
    let limits = "penalty_exempt = []\npenalty_failed = \"20s\"\npenalty_threshold = \"30s\"";
    let site = Site::start(&Plan::any().limit(limits));
    for count in 1..=2 {
        assert_eq!(records(&site.server_log(), "shut-out"), Vec::<Value>::new());
        drop(TcpStream::connect(site.address()).unwrap());
        wait_for_records(&site, "handshake", count);
    }
    let record = wait_for_records(&site, "shut-out", 1).remove(0);
    assert_says(&record, json!({"source": "127.0.0.1", "principal": null, "verdict": null, "request": null}));
    let said = record["reason"].as_str().unwrap();
    assert!(said.starts_with("authentication failed too often: shut out for "), "{said}");
    for _ in 0..20 {
        drop(TcpStream::connect(site.address()));
    }
    let log = site.server_log();
    assert_eq!(log.matches("127.0.0.1 is shut out for ").count(), 1, "{log}");
    wait_for_records(&site, "shut-out", 1);
}

/// What anybody can cause must neither fill the disk nor push out what matters.
#[test]
fn a_crowd_of_strangers_gets_some_lines_and_a_count_and_a_known_client_gets_its_own() {
    let site = Site::start(&Plan::any());
    for _ in 0..400 {
        drop(TcpStream::connect(site.address()).unwrap());
    }
    assert_eq!(run(&mut site.exec(&["echo hello"])).ok().text(), "hello\n");
    wait_for_records(&site, "end", 1);
    assert_eq!(records(&site.server_log(), "session").len(), 1);
    let strangers = records(&site.server_log(), "handshake").len();
    assert!((100..400).contains(&strangers), "{strangers}");
    // The next that is written tells of those that were not.
    let counted = wait_for("the count of what was left out", SOON, || {
        drop(TcpStream::connect(site.address()).unwrap());
        records(&site.server_log(), "handshake").iter().find_map(|record| record["held_back"].as_u64())
    });
    assert!(counted > 0);
}

#[test]
fn nothing_that_a_peer_sends_breaks_or_forges_a_line() {
    let site = Site::start(&Plan::any());
    let hostile = "echo \u{1b}[2J\u{202e}\u{200b} \"}\n{\"event\":\"session\",\"principal\":\"forged\"}\n";
    let words = ["printf", hostile, &"x".repeat(60_000)];
    run(&mut site.exec(&words)).ok();
    run(&mut site.curl_to(SERVER_NAME, "/%0a%1b\\u001b"));
    wait_for_records(&site, "end", 1);
    let identity = site.clients.client(PRINCIPAL);
    for head in ["\u{1b}\r\n\r\n".to_owned(), format!("GET /{} HTTP/1.1\r\n\r\n", "\u{202e}".repeat(100))] {
        let mut tls = fake::connect(&site, &identity);
        tls.write_all(head.as_bytes()).unwrap();
        let _ = std::io::copy(&mut tls, &mut std::io::sink());
    }
    // The first two are no requests of HTTP at all, the last has no Host.
    let codes: Vec<_> = wait_for_records(&site, "refused", 3).iter().map(|record| record["code"].clone()).collect();
    assert_eq!(codes, ["bad-request", "bad-request", "bad-request"]);
    let session = wait_for_records(&site, "session", 1).remove(0);
    assert_says(&session["request"], json!({"truncated": true}));
    let argument = session["request"]["args"][0].as_str().unwrap();
    assert!(argument.contains(r"\u{1b}[2J\u{202e}\u{200b}") && argument.contains(r#""}\n{"event""#), "{argument}");
    let log = fs::read(site.root.join("server.log")).unwrap();
    assert!(log.iter().all(|byte| *byte == b'\n' || !byte.is_ascii_control()), "no raw control character");
    assert!(log.split(|byte| *byte == b'\n').all(|line| line.len() < 16 << 10), "no line without bounds");
}

// --- where it goes ------------------------------------------------------------------------------------------------------

#[test]
fn a_file_gets_the_lines_and_stderr_does_not() {
    let mut site = Site::new();
    let file = site.root.join("audit.log");
    site.serve(&Plan::any().top(&format!("audit = \"{}\"", file.display())));
    run(&mut site.exec(&["true"])).ok();
    site.server().signal(Signal::TERM);
    wait_until("the server has stopped", SOON, || site.server().ended().is_some());
    let log = fs::read_to_string(&file).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let events: Vec<_> = records.filter(is_no_handshake).map(|record| record["event"].clone()).collect();
    assert_eq!(events, ["start", "session", "end", "stop"]);
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions()) & 0o777, 0o600);
    assert!(all_records(&site.server_log()).is_empty(), "{}", site.server_log());

    let mut site = Site::new();
    site.serve(&Plan::any().top("audit = \"off\""));
    run(&mut site.exec(&["true"])).ok();
    assert!(all_records(&site.server_log()).is_empty(), "{}", site.server_log());
}

#[test]
fn a_reload_is_recorded_and_goes_on_in_a_new_file_where_the_old_one_was_renamed() {
    let mut site = Site::new();
    let [file, old] = ["audit.log", "audit.log.1"].map(|name| site.root.join(name));
    site.serve(&Plan::any().top(&format!("watch = false\naudit = \"{}\"", file.display())));
    let in_file = |path: &Path, event: &str| records(&fs::read_to_string(path).unwrap_or_default(), event);
    run(&mut site.exec(&["true"])).ok();
    wait_until("the first session has ended", SOON, || in_file(&file, "end").len() == 1);
    fs::rename(&file, &old).unwrap();
    site.server().signal(Signal::HUP);
    wait_until("the reload is recorded", SOON, || in_file(&file, "reload").len() == 1);
    run(&mut site.exec(&["true"])).ok();
    wait_until("the second session has ended", SOON, || in_file(&file, "end").len() == 1);
    assert_eq!(
        (in_file(&old, "reload").len(), in_file(&old, "session").len(), in_file(&file, "session").len()),
        (0, 1, 1)
    );

    // Another place that cannot be opened is as wrong as any other value, and all stays as it was.
    let other = site.root.join("absent/audit.log");
    site.server().reconfigure(text(&file), text(&other));
    site.server().signal(Signal::HUP);
    wait_until("the refusal is recorded", SOON, || in_file(&file, "reload").len() == 2);
    let refused = in_file(&file, "reload").pop().unwrap();
    assert_says(&refused, json!({"code": "config", "principal": null}));
    assert!(refused["reason"].as_str().unwrap().contains("absent/audit.log"), "{refused}");
    run(&mut site.exec(&["true"])).ok();
    wait_until("it still goes to the file", SOON, || in_file(&file, "end").len() == 2);
}

#[test]
fn the_journal_gets_each_line_and_its_fields() {
    let mut site = Site::new();
    let path = site.root.join("journal");
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_read_timeout(Some(SOON)).unwrap();
    site.serve(&Plan::any().top(&format!("audit = \"journald:{}\"", path.display())));
    run(&mut site.exec(&["exit 4"]));
    let next = || {
        let mut datagram = vec![0; 65_536];
        let length = journal.recv(&mut datagram).unwrap();
        let text = String::from_utf8(datagram[..length].to_vec()).unwrap();
        let fields: serde_json::Map<String, Value> = text
            .lines()
            .map(|line| line.split_once('=').unwrap())
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Value::Object(fields)
    };
    assert_says(&next(), json!({"TSTUNNEL_EVENT": "start"}));
    let after_handshakes = || loop {
        let record = next();
        if record["TSTUNNEL_EVENT"] != "handshake" {
            return record;
        }
    };
    let (session, end) = (after_handshakes(), after_handshakes());
    let common = json!({"SYSLOG_IDENTIFIER": "tstunnel", "PRIORITY": "6", "TSTUNNEL_PRINCIPAL": PRINCIPAL, "TSTUNNEL_HOST": HOST});
    for record in [&session, &end] {
        assert_says(record, common.clone());
    }
    assert_says(&session, json!({"TSTUNNEL_EVENT": "session", "TSTUNNEL_VERDICT": "allowed"}));
    assert_says(
        &end,
        json!({"TSTUNNEL_EVENT": "end", "TSTUNNEL_STATUS": "4", "TSTUNNEL_SESSION": session["TSTUNNEL_SESSION"]}),
    );
    let message: Value = serde_json::from_str(session["MESSAGE"].as_str().unwrap()).unwrap();
    assert_says(&message, json!({"event": "session", "session": session["TSTUNNEL_SESSION"]}));
}

/// A journal that nobody reads is a log that cannot be written.
#[test]
fn where_the_log_is_required_and_cannot_be_written_nothing_begins_until_it_can() {
    let mut site = Site::new();
    let path = site.root.join("journal");
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    site.serve(&Plan::any().top(&format!("audit = \"journald:{}\"\naudit_required = true", path.display())));
    let mark = site.home.join("mark");
    let mut count = 0;
    let said = loop {
        let ran = run(&mut site.exec(&[&format!("echo >>{}", mark.display())]));
        if !ran.status.success() {
            break ran.stderr;
        }
        count += 1;
        assert!(count < 1000, "the queue of a socket is bounded");
    };
    assert!(said.contains("error[overloaded]") && said.contains("audit log"), "{said}");
    assert_eq!(fs::read_to_string(&mark).unwrap().lines().count(), count, "nothing was started");
    let mut datagram = vec![0; 65_536];
    while journal.recv(&mut datagram).is_ok() {}
    run(&mut site.exec(&["true"])).ok();
}

#[test]
fn a_log_that_cannot_be_opened_keeps_the_server_from_starting() {
    let mut site = Site::start(&Plan::any());
    site.server().kill();
    let configuration = site.root.join("server.toml");
    let good = fs::read_to_string(&configuration).unwrap();
    std::os::unix::fs::symlink("elsewhere", site.root.join("link")).unwrap();
    let at = |name: &str| format!("audit = {:?}", site.root.join(name).display().to_string());
    for bad in [
        at("link"),
        at("absent/audit.log"),
        "audit = \"audit.log\"".to_owned(),
        format!("audit = \"journald:{}\"", site.root.join("absent").display()),
        "audit = \"off\"\naudit_required = true".to_owned(),
    ] {
        fs::write(&configuration, format!("{bad}\n{good}")).unwrap();
        let ran = run(site.command(TSTUNNEL).args(["serve", "--config"]).arg(&configuration));
        assert_eq!(ran.code(), Some(1), "{bad}");
        assert!(ran.stderr.contains("error[config]") && ran.stderr.contains("audit"), "{bad}: {}", ran.stderr);
    }
    assert!(!Path::new(&site.root.join("elsewhere")).exists(), "a link is not followed");
}

#[test]
fn a_header_of_the_proxy_protocol_is_called_by_its_name() {
    let site = Site::start(&Plan::any());
    let headers: [&[u8]; 2] = [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5 443\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x05\x01\xbb",
    ];
    for (index, header) in headers.into_iter().enumerate() {
        let mut balancer = TcpStream::connect(site.address()).unwrap();
        balancer.write_all(header).unwrap();
        let found = wait_for_records(&site, "handshake", index + 1);
        let reason = "a header of the PROXY protocol came instead of TLS: name the balancer in `proxy_protocol`, or switch it \
                      off there";
        assert_says(&found[index], json!({"code": "protocol", "reason": reason}));
    }
}

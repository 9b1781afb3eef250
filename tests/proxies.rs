//! Proxies: real tinyproxy and dante, with and without credentials and TLS, and what is no proxy at all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

#[path = "proxies/programs.rs"]
mod programs;

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use programs::{ENCODED_PASSWORD, INSIDE, SIMPLE_PASSWORD, USER, dante, stunnel, tinyproxy};
use support::pki::Authority;
use support::port;
use support::relay::Relay;
use support::wait::{SOON, wait_until};
use support_net::child::{Watched, run};
use support_net::fake::tcp_server;
use support_net::report::{every_command_fails, fails};
use support_net::site::{HOST, Plan, Site};

/// A site whose host runs every command.
fn site() -> Site {
    Site::start(&Plan::any())
}

#[track_caller]
fn reaches(command: &mut Command) {
    let ran = run(command).ok();
    assert_eq!((ran.text().as_str(), ran.stderr.as_str()), ("there\n", ""));
}

fn says(site: &Site) -> Command {
    site.exec(&["echo there"])
}

/// What tinyproxy logs of a request.
fn request(target: impl std::fmt::Display) -> String {
    format!("CONNECT {target} HTTP/1.1")
}

#[test]
fn a_configured_http_proxy_is_gone_through() {
    let site = site();
    let proxy = tinyproxy(&site, "proxy", "");
    site.configure_more(&format!("proxy = \"http://127.0.0.1:{}\"", proxy.port));
    reaches(&mut says(&site));
    let before = proxy.logs(&request(site.address()), 0, 1);
    run(&mut site.ssh(&["-oConnectTimeout=4", HOST, "echo there"])).ok();
    let file = site.local_file("file", b"contents");
    run(&mut site.tstunnel(&["upload", file.to_str().unwrap(), HOST])).ok();
    assert_eq!(fs::read(site.home.join("file")).unwrap(), b"contents");
    proxy.logs(&request(site.address()), before, 2);
}

#[test]
fn megabytes_are_exact_through_each_kind_of_proxy() {
    let site = site();
    let authority = Authority::new("the proxy's authority");
    fs::write(site.root.join("roots.crt"), authority.certificate()).unwrap();
    let http = tinyproxy(&site, "proxy", "");
    let https = stunnel(&site, &authority, &["127.0.0.1"], http.port);
    let socks = dante(&site, "dante", "none", site.address().port());
    let bytes = support::tree::noise(8_000_000, 7);
    for (scheme, proxy) in [("http", &http), ("https", &https), ("socks5", &socks)] {
        site.configure_more(&format!("proxy = \"{scheme}://127.0.0.1:{}\"", proxy.port));
        let mut command = site.exec(&["cat"]);
        let ran =
            support_net::child::run_with_input(command.env("SSL_CERT_FILE", site.root.join("roots.crt")), &bytes).ok();
        assert!(ran.stdout == bytes, "{scheme}: {} bytes", ran.stdout.len());
    }
}

#[test]
fn an_http_proxy_is_told_who_asks() {
    let site = site();
    let proxy = tinyproxy(&site, "proxy", &format!("BasicAuth {USER} {SIMPLE_PASSWORD}"));
    let at = format!("127.0.0.1:{}", proxy.port);
    site.configure_more(&format!("proxy = \"http://{USER}:{}@{at}\"", SIMPLE_PASSWORD.replace('_', "%5f")));
    reaches(&mut says(&site));

    site.configure_more(&format!("proxy = \"http://{at}\""));
    let text = fails(&mut says(&site), 255, "proxy");
    assert_eq!(text, format!("the proxy http://{at} asks who is there: `407 Proxy Authentication Required`"));

    site.configure_more(&format!("proxy = \"http://{USER}:not-{ENCODED_PASSWORD}@{at}\""));
    let ran = run(says(&site).env("TSTUNNEL_LOG", "trace"));
    assert!(
        ran.stderr.contains("error[proxy]") && ran.stderr.contains("does not take the credentials: `401 Unauthorized`"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("s:cr") && !ran.stderr.contains("s%3Acr"), "{}", ran.stderr);
}

#[test]
fn a_socks_proxy_looks_up_names_and_is_told_who_asks() {
    let site = site();
    let proxy = dante(&site, "dante", "username", site.address().port());
    let at = format!("127.0.0.1:{}", proxy.port);
    let endpoint = format!("{INSIDE}:{}", site.address().port());
    site.configure(&endpoint, &format!("proxy = \"socks5://{USER}:{ENCODED_PASSWORD}@{at}\""));
    reaches(&mut says(&site));
    site.configure(&endpoint, &format!("proxy = \"socks5h://{USER}:wrong@{at}\""));
    let text = fails(&mut says(&site), 255, "proxy");
    assert!(text.starts_with(&format!("the proxy socks5://{at} does not take the credentials")), "{text}");
    site.configure(&endpoint, &format!("proxy = \"socks5://{at}\""));
    let text = fails(&mut says(&site), 255, "proxy");
    assert_eq!(text, format!("the proxy socks5://{at} asks who is there"));
    site.configure(&endpoint, "proxy = \"none\"");
    fails(&mut says(&site), 255, "dns");
}

#[test]
fn a_proxy_that_forbids_the_endpoint_is_quoted() {
    let site = site();
    let proxy = tinyproxy(&site, "proxy", "ConnectPort 1");
    site.configure_more(&format!("proxy = \"http://127.0.0.1:{}\"", proxy.port));
    let text = every_command_fails(&site, HOST, "proxy");
    assert!(text.contains(&format!("refuses {}: `403 Access violation`", site.address())), "{text}");

    let proxy = dante(&site, "dante", "none", 1);
    site.configure_more(&format!("proxy = \"socks5://127.0.0.1:{}\"", proxy.port));
    let text = fails(&mut says(&site), 255, "proxy");
    assert!(text.contains(&format!("refuses {}: not allowed by its rules", site.address())), "{text}");
}

#[test]
fn an_endpoint_that_the_proxy_cannot_reach_is_the_proxys_failure() {
    let site = site();
    let proxy = tinyproxy(&site, "proxy", "");
    let closed = format!("127.0.0.1:{}", port::free());
    site.configure(&closed, &format!("proxy = \"http://127.0.0.1:{}\"", proxy.port));
    let text = fails(&mut says(&site), 255, "proxy");
    assert!(text.contains(&format!("could not connect to {closed}: `500 Unable to connect`")), "{text}");
}

#[test]
fn a_proxy_over_tls_must_be_one_that_the_system_trusts() {
    let site = site();
    let authority = Authority::new("the proxy's authority");
    let roots = site.root.join("roots.crt");
    fs::write(&roots, authority.certificate()).unwrap();
    let http = tinyproxy(&site, "proxy", "");
    let https = stunnel(&site, &authority, &["localhost"], http.port);
    let through = |host: &str| site.configure_more(&format!("proxy = \"https://{host}:{}\"", https.port));
    through("localhost");
    reaches(says(&site).env("SSL_CERT_FILE", &roots));
    http.logs(&request(site.address()), 0, 1);
    let text = fails(&mut says(&site), 255, "proxy");
    assert!(text.contains("is signed by an authority that this system does not trust"), "{text}");
    through("127.0.0.1");
    let text = fails(says(&site).env("SSL_CERT_FILE", &roots), 255, "proxy");
    assert!(text.contains("127.0.0.1's certificate is for localhost, not 127.0.0.1"), "{text}");
    site.configure_more(&format!("proxy = \"https://127.0.0.1:{}\"", http.port));
    fails(says(&site).env("SSL_CERT_FILE", &roots), 255, "proxy");
}

#[test]
fn variables_count_where_the_configuration_says_nothing() {
    let site = site();
    let proxy = tinyproxy(&site, "proxy", "");
    let url = format!("http://127.0.0.1:{}", proxy.port);
    let target = request(site.address());
    let mut count = 0;
    for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        reaches(says(&site).env(name, &url));
        count = proxy.logs(&target, count, 1);
    }
    let nowhere = format!("http://127.0.0.1:{}", port::free());
    fails(says(&site).env("HTTPS_PROXY", &nowhere).env("ALL_PROXY", &url), 255, "proxy");
    reaches(says(&site).env("HTTP_PROXY", &nowhere).env("http_proxy", &nowhere));
    for exempt in ["*", "localhost, 127.0.0.1", "127.0.0.0/8"] {
        reaches(says(&site).env("HTTPS_PROXY", &nowhere).env("NO_PROXY", exempt));
    }
    fails(says(&site).env("HTTPS_PROXY", &nowhere).env("NO_PROXY", "10.0.0.0/8"), 255, "proxy");
    let text = fails(says(&site).env("HTTPS_PROXY", "ftp://ann:secret@x"), 255, "config");
    assert!(text.starts_with("HTTPS_PROXY: `x` is not a proxy") && !text.contains("secret"), "{text}");
    assert_eq!(proxy.count(&target), count);

    site.configure_more("proxy = \"none\"");
    reaches(says(&site).env("HTTPS_PROXY", &nowhere));
    site.configure_more(&format!("proxy = \"{url}\""));
    reaches(says(&site).env("HTTPS_PROXY", &nowhere).env("NO_PROXY", "*"));
    proxy.logs(&target, count, 1);
}

#[test]
fn a_session_is_resumed_through_the_proxy() {
    let site = site();
    let relay = Relay::to(site.address());
    let proxy = tinyproxy(&site, "proxy", "");
    site.configure(relay.address(), &format!("proxy = \"http://127.0.0.1:{}\"", proxy.port));
    let mut command = site.exec(&["echo first; cat"]);
    let mut session = Watched::start(command.env("TSTUNNEL_LOG", "info").stdin(Stdio::piped()));
    session.wait_for_output("first\n");
    let before = proxy.logs(&request(relay.address()), 0, 1);
    relay.reset();
    wait_until("the session was resumed", SOON, || session.stderr().contains("resumed milliseconds="));
    session.write(b"second\n");
    session.wait_for_output("second\n");
    proxy.logs(&request(relay.address()), before, 1);
    session.wait().ok();
}

/// A proxy that reads something, says `words` and keeps the connection as long as the client does.
fn fake(words: impl Into<Vec<u8>>) -> String {
    let words = words.into();
    let address = tcp_server(move |mut connection| {
        let mut request = [0; 1024];
        // What the client makes of it is what the test looks at.
        let _ = connection.read(&mut request).and_then(|_| connection.write_all(&words));
        while matches!(connection.read(&mut request), Ok(1..)) {}
    });
    address.to_string()
}

#[test]
fn what_is_no_proxy_is_refused() {
    let site = site();
    let through = |scheme: &str, at: &str| {
        site.configure_more(&format!("proxy = \"{scheme}://{at}\""));
        fails(&mut says(&site), 255, "proxy")
    };
    let closed = format!("127.0.0.1:{}", port::free());
    let text = through("http", &closed);
    assert!(text.contains("cannot be reached") && text.contains("connection refused"), "{text}");
    assert!(through("socks5", "no-such-name.invalid:1").contains("cannot look up no-such-name.invalid"));

    assert!(through("http", &fake("SSH-2.0-OpenSSH_9.2\r\n")).contains("gave no answer"));
    let endless = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat();
    assert!(through("http", &fake(endless)).contains("longer than"));
    let text = through("http", &fake("HTTP/1.1 403 \u{1b}[31mcommand not found\r\n\r\n"));
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(through("socks5", &fake("HTTP/1.1 400 Bad Request\r\n\r\n")).contains("does not speak SOCKS5"));
    assert!(through("socks5", &fake("\u{5}\u{7}")).contains("chose method 7"));

    let closing = || tcp_server(drop).to_string();
    for scheme in ["http", "socks5", "https"] {
        through(scheme, &closing());
    }
    let silent = || tcp_server(|mut connection| while matches!(connection.read(&mut [0; 64]), Ok(1..)) {}).to_string();
    for scheme in ["http", "socks5"] {
        let text = through(scheme, &silent());
        assert!(text.contains("did not connect to") && text.contains("within 4 s"), "{text}");
    }
    assert!(through("https", &silent()).contains("the TLS handshake with"));

    // After a promise the connection is the server's, and what comes then is judged as its words.
    site.configure_more(&format!("proxy = \"http://{}\"", fake("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 400 Bad\r\n\r\n")));
    fails(&mut says(&site), 255, "not-tstunnel");
}

#[test]
fn an_alias_of_mutagens_keeps_the_proxy_that_its_url_was_given_with() {
    let site = site();
    let proxy = tinyproxy(&site, "proxy", "");
    let recorder = site.root.join("bin/mutagen");
    fs::create_dir(site.root.join("bin")).unwrap();
    support::script::write(&recorder, "printf '%s\\n' \"$@\"");
    let url = format!(
        "tstunnel://{HOST}/folder?endpoint={}&cert={root}/client.crt&key={root}/client.key&ca={root}/servers-ca.crt\
         &sni={}",
        site.address(),
        support_net::site::SERVER_NAME,
        root = site.root.display()
    );
    fs::write(site.configuration(), "").unwrap();
    let mut command = site.tstunnel(&["mutagen", "sync", "create", "/local", &url]);
    command.env("TSTUNNEL_MUTAGEN", &recorder).env("HTTPS_PROXY", format!("http://127.0.0.1:{}", proxy.port));
    let ran = run(&mut command).ok().text();
    let alias = ran.lines().last().and_then(|line| line.strip_suffix(":/folder")).unwrap().to_owned();
    // As the daemon starts it: without the variable, or with another.
    for variable in ["", "http://127.0.0.1:1"] {
        let mut command = site.ssh(&["-oConnectTimeout=4", &alias, "echo there"]);
        reaches(command.env("HTTPS_PROXY", variable));
    }
    proxy.logs(&request(site.address()), 0, 2);
}

#[test]
fn check_tells_which_proxy_is_gone_through_and_who_named_it() {
    let site = site();
    let proxy = tinyproxy(&site, "proxy", "");
    let at = format!("http://127.0.0.1:{}", proxy.port);
    let steps = |command: &mut Command| {
        let ran = run(command);
        let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        let step = |name: &str| report["steps"].as_array().unwrap().iter().find(|step| step["step"] == name).cloned();
        (ran.code(), step("configuration").unwrap()["proxy"].clone(), step("proxy").unwrap(), step("tcp"))
    };
    let check = || site.tstunnel(&["check", "--json", HOST]);

    let (status, configured, step, tcp) =
        steps(check().env("HTTPS_PROXY", format!("http://{USER}:secret@127.0.0.1:{}", proxy.port)));
    assert_eq!(
        (status, &configured["value"], &configured["from"]),
        (Some(0), &at.as_str().into(), &"HTTPS_PROXY".into())
    );
    assert_eq!((&step["outcome"], &step["proxy"]), (&"ok".into(), &at.as_str().into()));
    assert_eq!(step["text"], format!("{at} connects to {}", site.address()));
    assert_eq!(tcp.unwrap()["address"], format!("127.0.0.1:{}", proxy.port));

    site.configure_more("proxy = \"none\"");
    let (status, configured, step, _) = steps(check().env("HTTPS_PROXY", &at));
    assert_eq!((status, &configured["value"], &step["text"]), (Some(0), &"none".into(), &"direct".into()));

    let nowhere = port::free();
    site.configure_more(&format!("proxy = \"socks5://ann:secret@127.0.0.1:{nowhere}\""));
    let (status, configured, step, tcp) = steps(&mut check());
    assert_eq!((status, &step["outcome"], &step["code"]), (Some(5), &"failed".into(), &"proxy".into()));
    assert_eq!((configured["value"].as_str(), tcp), (Some(format!("socks5://127.0.0.1:{nowhere}").as_str()), None));
    assert!(step["text"].as_str().unwrap().contains("connection refused"), "{step}");
}

//! What the scanners of TLS servers say of this one: testssl.sh and sslscan, the real programs, against the real server.
//!
//! Of testssl.sh's sections these are run: protocols, cipher categories, forward secrecy, the server's preferences and defaults
//! (its certificate among them), all vulnerabilities, and what breaks picky servers (GREASE). The others need a connection
//! without a client certificate (HTTP headers), or the Internet, or try again cipher by cipher what the categories have answered.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use support::pki::{self, Usage};
use support::process::{self, program};
use support_net::child::{Watched, run};
use support_net::site::{DOMAIN, Plan, SERVER_NAME, Site};

/// The sections of testssl.sh.
const SECTIONS: [&str; 7] = ["-p", "-s", "-f", "-P", "-S", "-U", "-g"];

/// What they may take together: some 20 s on a machine that is not busy, half of which testssl.sh waits for answers.
const SCAN_TIME: Duration = Duration::from_secs(180);

/// What testssl.sh says that it cannot do: with Russian ciphers, and with the library's own client, which has no certificate.
const WARNINGS: [&str; 2] = ["engine_problem", "optimal_proto"];

/// What it must have found, and how severe it takes that to be.
const FOUND: [(&str, &str, &str); 26] = [
    ("SSLv2", "OK", "not offered"),
    ("SSLv3", "OK", "not offered"),
    ("TLS1", "INFO", "not offered"),
    ("TLS1_1", "INFO", "not offered"),
    ("TLS1_2", "INFO", "not offered"),
    ("TLS1_3", "OK", "offered with final"),
    ("ALPN", "INFO", "http/1.1"),
    ("cipherlist_NULL", "OK", "not offered"),
    ("cipherlist_aNULL", "OK", "not offered"),
    ("cipherlist_LOW", "OK", "not offered"),
    ("cipherlist_3DES_IDEA", "INFO", "not offered"),
    ("cipherlist_AVERAGE", "INFO", "not offered"),
    ("cipherlist_STRONG", "OK", "offered"),
    ("PFS", "OK", "offered"),
    ("cert_trust", "OK", "Ok via SAN"),
    ("cert_chain_of_trust", "OK", "passed."),
    ("TLS_session_ticket", "INFO", "no --"),
    ("sessionresumption_ticket", "INFO", "not supported"),
    ("heartbleed", "OK", "not vulnerable"),
    ("CCS", "OK", "not vulnerable"),
    ("ROBOT", "OK", "not vulnerable"),
    ("secure_client_renego", "OK", "not vulnerable"),
    ("CRIME_TLS", "OK", ""),
    ("LUCKY13", "OK", "not vulnerable"),
    ("RC4", "OK", "not vulnerable"),
    ("GREASE", "OK", "No bugs found."),
];

/// A server with a certificate as a public authority issues it: for some months, and with a place where it would be revoked.
fn site() -> Site {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let mut site = Site::new();
    let mut params = pki::params(&[&format!("*.{DOMAIN}")]);
    params.crl_distribution_points =
        vec![rcgen::CrlDistributionPoint { uris: vec![format!("http://crl.{DOMAIN}/servers.crl")] }];
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let identity = site.servers.issue_between(Usage::Server, now - DAY, now + 89 * DAY, params);
    site.write(&identity, "server");
    site.serve(&Plan::any());
    site
}

#[test]
fn testssl_finds_nothing_of_medium_severity_or_worse() {
    let mut site = site();
    let file = site.root.join("testssl.json");
    let mut command = site.command(program("testssl"));
    command
        .args(["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--add-ca", "servers-ca.crt"])
        .args(["--connect-timeout", "10", "--openssl-timeout", "10"])
        .args(SECTIONS)
        .arg("--jsonfile")
        .arg(&file)
        .arg(format!("--ip={}", site.address().ip()))
        .arg(format!("{SERVER_NAME}:{}", site.address().port()))
        .current_dir(&site.root);
    // Its exit status is the number of checks that it could not make, or says what kind of failure there was.
    let ran = Watched::start(&mut command).wait_within(SCAN_TIME);
    let said = format!("{}\n{}\n{}", ran.status, ran.text(), ran.stderr);
    let findings: Vec<Value> = serde_json::from_slice(&fs::read(&file).expect(&said)).expect(&said);
    let mut found = BTreeMap::<String, (String, String)>::new();
    for finding in &findings {
        let [id, severity, text] = ["id", "severity", "finding"].map(|key| finding[key].as_str().expect(&said));
        match severity {
            "OK" | "INFO" | "LOW" | "DEBUG" => {}
            "WARN" if WARNINGS.contains(&id) => {}
            _ => panic!("{severity}: {id}: {text}\n{said}"),
        }
        found.insert(id.to_owned(), (severity.to_owned(), text.to_owned()));
    }
    for (id, severity, text) in FOUND {
        let (is, says) = found.get(id).unwrap_or_else(|| panic!("{id} was not looked at\n{said}"));
        assert!(is == severity && says.starts_with(text), "{is}: {id}: {says}\n{said}");
    }
    serves(&mut site);
}

#[test]
fn sslscan_finds_tls_1_3_and_its_three_ciphers_alone() {
    let mut site = site();
    let address = site.address().to_string();
    let scan = |name: &[&str]| {
        let text = run(site.command(program("sslscan")).args(["--no-colour", "--xml=-"]).args(name).arg(&address)).ok();
        let lines = text.text().lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
        move |start: &str| lines.iter().filter(|line| line.starts_with(start)).cloned().collect::<Vec<_>>()
    };
    let protocol = |kind: &str, version: &str, enabled: u8| {
        format!("<protocol type=\"{kind}\" version=\"{version}\" enabled=\"{enabled}\" />")
    };
    let protocols = |enabled: u8| {
        let older = [("ssl", "2"), ("ssl", "3"), ("tls", "1.0"), ("tls", "1.1"), ("tls", "1.2")];
        let mut all: Vec<_> = older.into_iter().map(|(kind, version)| protocol(kind, version, 0)).collect();
        all.push(protocol("tls", "1.3", enabled));
        all
    };
    let found = scan(&[&format!("--sni-name={SERVER_NAME}")]);
    assert_eq!(found("<protocol "), protocols(1));
    assert_eq!(found("<renegotiation "), ["<renegotiation supported=\"0\" secure=\"0\" />"]);
    assert_eq!(found("<heartbleed "), ["<heartbleed sslversion=\"TLSv1.3\" vulnerable=\"0\" />"]);
    let mut ciphers: Vec<String> = found("<cipher ")
        .iter()
        .map(|line| line.split("cipher=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned())
        .collect();
    ciphers.sort();
    assert_eq!(ciphers, ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]);
    // Whoever says no name finds nothing at all, not even a certificate.
    let nameless = scan(&[]);
    assert_eq!(nameless("<protocol "), protocols(0));
    assert_eq!((nameless("<cipher "), nameless("<certificate ")), (Vec::new(), Vec::new()));
    serves(&mut site);
}

/// Checks that a good client is served after all that, and that nothing was started or stored for a scanner.
#[track_caller]
fn serves(site: &mut Site) {
    assert_eq!(site.names(), Vec::<String>::new());
    assert_eq!(process::children(site.server().id()), []);
    assert_eq!(run(&mut site.exec(&["echo good"])).ok().text(), "good\n");
    assert!(!site.server_log().contains("panicked"));
}

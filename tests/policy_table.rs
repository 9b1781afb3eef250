//! `serve --check --as` and the live server give the same answers, over a table of principals, hosts and requests that meets every
//! feature of the policy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the size of the table is worth seeing")]

mod support;
mod support_net;

#[path = "policy_table/live.rs"]
mod live;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use live::{Asked, Client, Verdict};
use rcgen::SanType;
use serde_json::Value;
use support::pki::{Usage, Validity, params, uri_params};
use support::serve::all_records;
use support::wait::{SOON, wait_for};
use support_net::child::run;
use support_net::site::{HOST, PRINCIPAL, Plan, Site};
use tstunnel::server::check::{Question, answer};
use tstunnel::server::config::Account;

const AGENT: &str = ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=info";

/// What is asked: none of these runs or leaves anything, be it allowed or not.
const REQUESTS: [&[&str]; 22] = [
    &[AGENT],
    &["/no/such/git log -1"],
    &["/no/such/git", "log", "-1"],
    &["/no/such/git", "log", "a b"],
    &["/no/such/git log -1; /no/such/id"],
    &["/no/such/tool --version"],
    &["/no/such/cd app && /no/such/make"],
    &["uname -s -m"],
    &["uname -a"],
    &[".mutagen/agents/../x/mutagen-agent synchronizer"],
    &[""],
    &["upload:.mutagen-agent0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"],
    &["upload:notes.txt"],
    &["upload:.."],
    &["upload:a/b"],
    &["stream:"],
    &["stream:tcp:127.0.0.1:1"],
    &["stream:tcp:LocalHost:001"],
    &["stream:tcp:127.0.0.1:2"],
    &["stream:unix:/no/such.sock"],
    &["stream:tcp:127.1:1"],
    &["stream:nonsense"],
];

/// The hosts beside the site's own, and one that is not there.
const HOSTS: [&str; 10] =
    [HOST, "open", "listed", "shell", "both", "trusting", "Quiet", "secret", "own-home", "nowhere"];

const PRINCIPALS: [&str; 10] = [
    PRINCIPAL,
    "spiffe://tunnel.test/users/bob",
    "spiffe://tunnel.test/teams/ops/carol",
    "spiffe://tunnel.test/users",
    "spiffe://tunnel.test.evil/users/ann",
    "dave@tunnel.test",
    "dave@evil.test",
    "build.tunnel.test",
    "tunnel.test",
    "spiffe://tunnel.test/gone",
];

/// Whatever a grant can say, in an order that matters.
fn tables(home: &Path, own: &str, others: &str) -> String {
    let agents = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    format!(
        r#"
        [host.open]
        home = {home:?}
        commands = "any"
        shell = false
        targets = ["tcp:127.0.0.1:*", "unix:/no/*"]
        [host.listed]
        home = {home:?}
        commands = ["/no/such/git *", "uname -a"]
        targets = ["tcp:localhost:1", "tcp:127.0.0.1:1"]
        [host.shell]
        home = {home:?}
        commands = ["/no/such/git *", "/no/such/cd app && /no/such/make", "mutagen"]
        shell = true
        [host.both]
        home = {home:?}
        commands = ["mutagen", "/no/such/* --version"]
        targets = ["unix:/no/such.sock"]
        [host.trusting]
        home = {home:?}
        agent_digests = ["{agents}"]
        [host.quiet]
        home = {home:?}
        commands = []
        [host.secret]
        home = {home:?}
        commands = "any"
        [host.own-home]
        home = {home:?}
        account = "{own}"
        commands = "any"
        shell = false

        [[grant]]
        principal = "spiffe://tunnel.test/users/*"
        hosts = ["open"]
        commands = ["/no/such/git *"]
        targets = ["tcp:127.0.0.1:1"]
        [[grant]]
        principal = "spiffe://tunnel.test/users/bob"
        hosts = ["o*"]
        commands = "mutagen"
        accounts = ["{own}"{others}]
        [[grant]]
        principal = "spiffe://tunnel.test/*"
        hosts = ["listed", "shell", "both", "trusting", "quiet"]
        sources = ["127.0.0.1"]
        [[grant]]
        principal = "spiffe://tunnel.test/teams/*"
        hosts = ["*"]
        sources = ["127.0.0.2/31", "2001:db8::/32"]
        commands = "any"
        expires = 2100-01-01T00:00:00+02:00
        [[grant]]
        principal = "spiffe://tunnel.test/gone"
        hosts = ["*"]
        expires = "2001-01-01T00:00:00Z"
        [[grant]]
        principal = "*@tunnel.test"
        hosts = ["open", "own-home", "s?ell"]
        accounts = ["{own}"]
        targets = ["unix:/no/such.*"]
        [[grant]]
        principal = "*.tunnel.test"
        hosts = ["*"]
        accounts = []
        [[grant]]
        principal = "build.tunnel.test"
        hosts = ["both", "open"]
        commands = ["mutagen", "/no/such/tool *"]
        "#
    )
}

#[test]
fn the_check_and_the_live_server_agree_on_every_row() {
    let own = Account::of_process().unwrap().name;
    // Only root can grant other accounts; these two exist on no machine and let nobody in on any.
    let is_root = rustix::process::geteuid().is_root();
    let others = if is_root { ", \"nobody\", \"no-such-account\"" } else { "" };
    let mut site = Site::new();
    site.serve(
        &Plan::mutagen()
            .top("trust_domains = [\"tunnel.test\"]")
            .host("targets = [\"tcp:127.0.0.1:1\", \"tcp:127.0.0.1:2\"]")
            .tables(&tables(&site.home.clone(), &own, others))
            .limit("max_sessions = 4096\nmax_sessions_per_principal = 4096\nmax_sessions_per_source = 4096"),
    );
    let configuration = site.root.join("server.toml");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let users = [None, None, Some(own.as_str()), Some("nobody"), Some("no-such-account"), None, Some("")];
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let (mut rows, mut reports) = (0, Vec::new());
    for principal in PRINCIPALS {
        let identity = match principal {
            spiffe if spiffe.contains("://") => site.clients.client(spiffe),
            email if email.contains('@') => {
                let mut of_email = uri_params(&[]);
                of_email.subject_alt_names = vec![SanType::Rfc822Name(email.try_into().unwrap())];
                site.clients.issue(Usage::Client, Validity::Now, of_email)
            }
            name => site.clients.issue(Usage::Client, Validity::Now, params(&[name])),
        };
        let client = Client::new(&site, &identity);
        for host in HOSTS {
            for words in REQUESTS {
                rows += 1;
                let source = Ipv4Addr::new(127, 0, 0, if rows % 5 == 0 { 2 } else { 1 });
                let user = users[rows % users.len()];
                let asked = Asked { host, words, user, source };
                let live = client.ask(&asked);
                let question = question(principal, &asked, rows % 2 == 0);
                let (is_allowed, said) = runtime.block_on(answer(&configuration, question.clone())).unwrap();
                assert_eq!(verdict(&said), live, "{principal} {asked:?}\n{}", said);
                assert_eq!(is_allowed, live == Verdict::Allowed, "{principal} {asked:?}");
                if rows % 50 == 0 {
                    let ran = run(&mut by_the_program(&site, &question));
                    assert_eq!(ran.text(), said, "{asked:?} {}", ran.stderr);
                    assert_eq!(ran.code(), Some(if is_allowed { 0 } else { 1 }), "{asked:?}");
                }
                *counts.entry(format!("{live:?}")).or_default() += 1;
                reports.push(said);
            }
        }
    }
    let ruled = rules_agree(&site, &reports);
    println!("{rows} rows, {ruled} of them with a rule in the audit log: {counts:?}");
    assert!(rows >= 500 && ruled >= 500);
    for verdict in ["Allowed", "host-unknown", "unauthorized", "command-denied", "bad-request"] {
        let count = counts.iter().find(|(name, _)| name.contains(verdict)).map_or(0, |(_, count)| *count);
        assert!(count >= 20, "{verdict}: {count} of {rows}");
    }
    site.wait_until_idle();
}

/// Compares the rules of the audit log, whose decisions are in the order of the table, with those of the check.
fn rules_agree(site: &Site, reports: &[String]) -> usize {
    let is_decision = |record: &Value| record.get("verdict").is_some();
    let decisions = wait_for("every decision is recorded", SOON, || {
        let records: Vec<Value> = all_records(&site.server_log()).into_iter().filter(is_decision).collect();
        (records.len() >= reports.len()).then_some(records)
    });
    assert_eq!(decisions.len(), reports.len());
    let mut ruled = 0;
    for (record, report) in decisions.iter().zip(reports) {
        // A request that no grant opens is refused before there is a rule.
        let Some(rule) = record["rule"].as_str() else { continue };
        assert!(report.contains(&format!("by {rule}\n")), "{record}\n{report}");
        ruled += 1;
    }
    ruled
}

/// `tstunnel serve --check --as …`.
fn by_the_program(site: &Site, question: &Question) -> Command {
    let Question { principal, host, command, source, user, .. } = question;
    let mut program = site.tstunnel(&["serve", "--check", "--as", principal]);
    program.arg("--config").arg(site.root.join("server.toml"));
    if let Some(user) = user {
        program.args(["--user", user]);
    }
    if let Some(source) = source {
        program.args(["--source", &source.to_string()]);
    }
    program.arg(host).args(command);
    program
}

/// What an answer of the check says.
fn verdict(said: &str) -> Verdict {
    if said.starts_with("allowed by ") {
        return Verdict::Allowed;
    }
    let (code, _) = said.strip_prefix("refused [").and_then(|rest| rest.split_once("]: ")).expect("a verdict");
    Verdict::Refused(code.to_owned())
}

fn question(principal: &str, asked: &Asked<'_>, whole_name: bool) -> Question {
    let Asked { host, words, user, source } = asked;
    Question {
        principal: principal.to_owned(),
        host: if whole_name { format!("{host}.tunnel.test") } else { (*host).to_owned() },
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        user: user.map(str::to_owned),
        source: Some(IpAddr::from(*source)),
        authorize: false,
    }
}

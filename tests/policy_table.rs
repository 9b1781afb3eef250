//! What `tstunnel serve --check --as` says, and what a live server does, over a table of principals, hosts and commands.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the table's size is shown")]

mod support;
mod support_net;

#[path = "hostile_client/caller.rs"]
#[allow(dead_code, reason = "the hostile clients use the rest")]
mod caller;

use std::collections::BTreeMap;

use caller::Caller;
use support::pki::{Identity, params};
use support_net::child::run;
use support_net::site::{DOMAIN, Plan, Site};
use tstunnel::error::Code;
use tstunnel::protocol::encoding::percent_decode;
use tstunnel::server::check::{Question, answer, report};

const UPLOAD: &str = "upload:.mutagen-agent0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

const PRINCIPALS: [&str; 9] = [
    "spiffe://tunnel.test/users/ann",
    "spiffe://tunnel.test/users/bob",
    "spiffe://tunnel.test/users/bob/laptop",
    "spiffe://tunnel.test/robots/ci",
    "spiffe://elsewhere.test/users/ann",
    "ann@tunnel.test",
    "eve@tunnel.test",
    "build.tunnel.test",
    "tunnel.test",
];

const HOSTS: [&str; 8] = ["host123", "open", "listed", "both", "closed", "ports", "dev-1", "nowhere"];

/// Of uploads the name is percent-encoded here, as on the wire.
const COMMANDS: [&str; 13] = [
    "uname -s -m",
    "uname -a",
    ".mutagen/agents/0.18.1/mutagen-agent synchronizer --log-level=info",
    ".mutagen/agents/../mutagen-agent synchronizer",
    "no-such-program --version",
    "no-such-program --version; id",
    "",
    "upload:notes",
    UPLOAD,
    "upload:%2e%2e",
    "stream:tcp:127.0.0.1:1",
    "stream:tcp:192.0.2.1:22",
    "stream:",
];

fn plan() -> Plan {
    Plan::mutagen().tables(
        r#"
        [host.open]
        commands = "any"
        shell = false
        targets = ["tcp:127.0.0.1:*"]
        [host.listed]
        commands = ["no-such-program *", "uname *"]
        [host.both]
        commands = ["mutagen", "no-such-program --version"]
        [host.closed]
        commands = []
        [host.ports]
        targets = ["tcp:127.0.0.1:1", "tcp:*:22"]
        [host.dev-1]
        commands = "any"
        shell = false

        [[grant]]
        principal = "spiffe://tunnel.test/users/*"
        hosts = ["open", "listed", "both", "closed"]
        commands = "mutagen"
        targets = []
        [[grant]]
        principal = "spiffe://tunnel.test/users/bob"
        hosts = ["open", "ports"]
        targets = ["tcp:127.0.0.1:1"]
        [[grant]]
        principal = "spiffe://tunnel.test/robots/*"
        hosts = ["*"]
        sources = ["10.0.0.0/8"]
        [[grant]]
        principal = "spiffe://tunnel.test/robots/*"
        hosts = ["dev-*", "listed"]
        sources = ["192.0.2.0/24", "127.0.0.0/8"]
        commands = ["uname -a", "mutagen"]
        [[grant]]
        principal = "*@tunnel.test"
        hosts = ["*"]
        expires = 2020-01-01T00:00:00Z
        [[grant]]
        principal = "ann@tunnel.test"
        hosts = ["both", "ports", "open"]
        expires = 2100-01-01T00:00:00Z
        accounts = ["somebody-else"]
        [[grant]]
        principal = "ann@tunnel.test"
        hosts = ["ports", "open"]
        [[grant]]
        principal = "*.tunnel.test"
        hosts = ["*"]
        commands = ["*"]
        "#,
    )
}

fn identity(site: &Site, principal: &str) -> Identity {
    if principal.starts_with("spiffe://") {
        return site.clients.client(principal);
    }
    let mut named = params(&[]);
    named.subject_alt_names = vec![if principal.contains('@') {
        rcgen::SanType::Rfc822Name(principal.try_into().unwrap())
    } else {
        rcgen::SanType::DnsName(principal.try_into().unwrap())
    }];
    site.clients.issue(support::pki::Usage::Client, support::pki::Validity::Now, named)
}

/// The code of a live refusal, or nothing where the policy allowed what was asked for, whatever became of it then.
fn live(caller: &Caller, host: &str, command: &str) -> Option<String> {
    let (path, body, upgrade) = if let Some(name) = command.strip_prefix("upload:") {
        (format!("copy/{name}"), "x".to_owned(), "")
    } else if let Some(target) = command.strip_prefix("stream:") {
        let query = if target.is_empty() { String::new() } else { format!("?target={target}") };
        (format!("stream{query}"), String::new(), "Connection: Upgrade\r\nUpgrade: tcp\r\n")
    } else {
        let body = serde_json::json!({"command": command}).to_string();
        ("command".to_owned(), body, "Connection: Upgrade\r\nUpgrade: tcp\r\n")
    };
    let request = format!(
        "POST /tinyscale/v1/{path} HTTP/1.1\r\nHost: {host}.{DOMAIN}\r\n{upgrade}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let heard = caller.say_all(request);
    let (answers, _) = heard.answers();
    let answer = &answers[0];
    if matches!(answer.status, 101 | 200 | 201) {
        return None;
    }
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let code = problem["type"].as_str().unwrap().strip_prefix("urn:tstunnel:").unwrap().to_owned();
    let of_policy = [Code::HostUnknown, Code::Unauthorized, Code::CommandDenied, Code::BadRequest];
    of_policy.iter().any(|known| known.name() == code).then_some(code)
}

/// The same by the file alone.
fn asked(site: &Site, principal: &str, host: &str, command: &str) -> (Option<String>, String) {
    let decoded = match command.strip_prefix("upload:") {
        Some(name) => format!("upload:{}", String::from_utf8(percent_decode(name).unwrap()).unwrap()),
        None => command.to_owned(),
    };
    let question = Question {
        principal: principal.to_owned(),
        host: host.to_owned(),
        command: vec![decoded],
        user: None,
        source: None,
        authorize: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (is_allowed, text) = runtime.block_on(answer(&site.root.join("server.toml"), question)).unwrap();
    let code = text.strip_prefix("refused [").and_then(|rest| rest.split_once(']')).map(|(code, _)| code.to_owned());
    assert_eq!(is_allowed, code.is_none(), "{text}");
    (code, text)
}

#[test]
fn the_check_and_the_live_server_agree_on_every_principal_host_and_command() {
    let site = Site::start(&plan());
    let mut counts = BTreeMap::<String, usize>::new();
    for principal in PRINCIPALS {
        let identity = identity(&site, principal);
        for host in HOSTS {
            let caller = Caller::new(&site, &identity).of(&format!("{host}.{DOMAIN}"));
            for command in COMMANDS {
                let (code, text) = asked(&site, principal, host, command);
                let done = live(&caller, host, command);
                assert_eq!(done, code, "{principal} on {host}: `{command}`\n{text}");
                *counts.entry(code.unwrap_or_else(|| "allowed".to_owned())).or_default() += 1;
            }
        }
    }
    println!("{counts:?}");
    let total: usize = counts.values().sum();
    assert!(total >= 500 && counts.len() >= 5, "{total} {counts:?}");
}

#[test]
fn the_program_answers_a_question_by_its_words_and_its_status() {
    let site = Site::start(&plan());
    let file = site.root.join("server.toml");
    let ask = |words: &[&str]| {
        let mut command = site.tstunnel(&["serve", "--config", file.to_str().unwrap(), "--check", "--as"]);
        run(command.args(words))
    };
    let bob = PRINCIPALS[1];
    let yes = ask(&[bob, "both", "uname", "--", "-s", "-m"]);
    assert_eq!(yes.code(), Some(0), "{}", yes.stderr);
    assert!(yes.text().starts_with("allowed by grant 2 `spiffe://tunnel.test/users/*` on `both`"), "{}", yes.text());
    let no = ask(&[bob, "both", "rm -rf /"]);
    assert_eq!(no.code(), Some(1));
    assert!(no.text().starts_with("refused [command-denied]: "), "{}", no.text());
    assert_eq!(ask(&[PRINCIPALS[3], "ports", UPLOAD, "--source", "10.1.2.3"]).code(), Some(0));
    assert_eq!(ask(&[PRINCIPALS[3], "ports", UPLOAD]).code(), Some(1));
    assert_eq!(ask(&["ann@tunnel.test", "both", "true", "--user", "somebody-else"]).code(), Some(1));
    for wrong in [vec![bob], vec![bob, "open"], vec!["spiffe://UPPER/x", "open", "true"], vec![bob, "a b", "true"]] {
        assert_eq!(ask(&wrong).code(), Some(2), "{wrong:?}");
    }
    let mut stray = site.tstunnel(&["serve", "--as", bob, "open", "true"]);
    assert_eq!(run(&mut stray).code(), Some(2));
}

#[test]
fn the_check_lists_what_each_principal_may_do_and_what_keeps_a_server_from_starting() {
    let site = Site::start(&plan());
    let file = site.root.join("server.toml");
    let text = report(&file).unwrap();
    for expected in [
        "grant 2 to `spiffe://tunnel.test/users/*`\n",
        "any command and upload; of that only what Mutagen asks for; streams to tcp:127.0.0.1:*; of them only nothing\n",
        "grant 4 to `spiffe://tunnel.test/robots/*` from 10.0.0.0/8\n",
        "until 2020-01-01T00:00:00Z, which is over\n",
        "as somebody-else: ",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let check = || run(&mut site.tstunnel(&["serve", "--check", "--config", file.to_str().unwrap()]));
    assert!(check().ok().text().contains("a server with this configuration starts"));
    std::fs::write(site.root.join("server.key"), "no key").unwrap();
    let ran = check();
    assert_eq!((ran.code(), ran.text().as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("server.key"), "{}", ran.stderr);
}

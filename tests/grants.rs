//! What a grant says, over the wire: the account that a request asks for, and the agents that a host trusts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

use aws_lc_rs::digest::{SHA256, digest};
use flate2::Compression;
use flate2::write::GzEncoder;
use support::process::program;
use support_net::child::run;
use support_net::fake::{finish, https_server};
use support_net::report::fails;
use support_net::site::{HOST, Plan, SERVER_NAME, Site, text};

/// What Mutagen calls an agent that it uploads.
const UPLOAD: &str = ".mutagen-agent0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

/// The account that the tests, and so their servers, run as.
fn own_account() -> String {
    run(Command::new(program("id")).arg("-un")).ok().text().trim().to_owned()
}

/// The status of an answer that curl has printed.
fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

#[test]
fn the_client_names_the_account_with_every_request() {
    let site = Site::new();
    let (heard, requests) = mpsc::channel();
    let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\nContent-Length: 54\r\n\r\n\
                   {\"type\":\"urn:tstunnel:unauthorized\",\"detail\":\"nobody\"}";
    let server = https_server(&site.servers.server(&[SERVER_NAME]), move |tls, request| {
        heard.send((request.head.clone(), String::from_utf8(request.body.clone()).unwrap())).unwrap();
        tls.write_all(refusal.as_bytes())?;
        finish(tls)
    });
    let file = site.local_file("f", b"x");
    for (user, expected) in [("user = \"www\"", Some("Tstunnel-User: www")), ("", None)] {
        site.configure(server, user);
        for command in [
            &mut site.tstunnel(&["upload", text(&file), HOST]),
            &mut site.tstunnel(&["connect", HOST, "--target", "tcp:127.0.0.1:1"]),
            &mut site.scp(&[text(&file), &format!("{HOST}:f")]),
        ] {
            let ran = run(command);
            assert!(ran.stderr.contains("unauthorized"), "{}", ran.stderr);
            let (head, _) = requests.recv().unwrap();
            let named = head.lines().find(|line| line.to_ascii_lowercase().starts_with("tstunnel-user"));
            assert_eq!(named, expected, "{head}");
        }
        run(&mut site.exec(&["ls"]));
        let (_, body) = requests.recv().unwrap();
        assert_eq!(body.contains("\"user\":\"www\""), expected.is_some(), "{body}");
    }
}

#[test]
fn an_account_that_is_not_granted_is_refused_whatever_is_asked() {
    let own = own_account();
    let site = Site::start(&Plan::any().host("targets = [\"tcp:127.0.0.1:1\"]"));
    let file = site.local_file("f", b"x");
    site.configure_more("user = \"somebody-else\"");
    assert!(fails(&mut site.exec(&["id"]), 255, "unauthorized").contains("somebody-else"));
    assert!(fails(&mut site.tstunnel(&["upload", text(&file), HOST]), 1, "unauthorized").contains("somebody-else"));
    assert!(fails(&mut site.tstunnel(&["connect", HOST]), 255, "unauthorized").contains("somebody-else"));
    assert_eq!(site.names(), Vec::<String>::new());
    let host = |user: &str| run(site.curl("/host").args(["--header", &format!("Tstunnel-User: {user}")])).ok().text();
    assert_eq!(status(&host("somebody-else")), "403");
    assert!(host(&own).contains(&format!("\"user\":\"{own}\"")), "{}", host(&own));
    site.configure_more(&format!("user = \"{own}\""));
    assert_eq!(run(&mut site.exec(&["id -un"])).ok().text().trim(), own);
    run(&mut site.tstunnel(&["upload", text(&file), HOST])).ok();
    assert_eq!(site.names(), ["f"]);
}

#[test]
fn a_grant_for_other_accounts_alone_is_still_a_way_in() {
    let own = own_account();
    let grant = format!("[[grant]]\nprincipal = \"*\"\nhosts = [\"other\"]\naccounts = [\"{own}\"]");
    let site = Site::start(&Plan::any().tables(&format!("[host.other]\ncommands = \"any\"\n{grant}")));
    let host = |name: &str, fields: &[&str]| {
        let mut command = site.curl_to(&format!("{name}.tunnel.test"), "/tinyscale/v1/host");
        for field in fields {
            command.args(["--header", field]);
        }
        run(&mut command).ok().text()
    };
    assert_eq!(status(&host("other", &[])), "200");
    assert_eq!(status(&host("other", &[&format!("Tstunnel-User: {own}")])), "200");
    assert_eq!(status(&host("other", &["Tstunnel-User: www"])), "403");
    assert_eq!(status(&host("nowhere", &["Tstunnel-User: www"])), "421");
}

#[test]
fn two_accounts_in_one_request_are_malformed() {
    let own = own_account();
    let site = Site::start(&Plan::any());
    let upgrading = |path: &str| {
        let mut command = site.curl(path);
        command.args(["--header", "Connection: Upgrade", "--header", "Upgrade: tcp"]);
        command
    };
    let ask = |path: &str, arguments: &[&str]| status(&run(upgrading(path).args(arguments)).ok().text()).to_owned();
    let field = format!("Tstunnel-User: {own}");
    assert_eq!(ask("/host", &["--header", &field, "--header", &field]), "400");
    let not_utf8 = run(upgrading("/host").arg("--header").arg(OsStr::from_bytes(b"Tstunnel-User: \xff")));
    assert_eq!(status(&not_utf8.ok().text()), "400");
    let body = |user: &str| format!("{{\"command\": \"/no/such/program\", \"args\": [], \"user\": \"{user}\"}}");
    // With `tcp`, a program that is not there is 404: allowed, and nothing was started.
    assert_eq!(ask("/command", &["--header", &field, "--data", &body("www")]), "400");
    assert_eq!(ask("/command", &["--header", "Tstunnel-User: www", "--data", &body(&own)]), "400");
    assert_eq!(ask("/command", &["--header", "Tstunnel-User: www", "--data", &body("www")]), "403");
}

#[test]
fn only_a_trusted_agent_can_be_uploaded() {
    let mut site = Site::new();
    let agents = site.local_file("agents.tar.gz", &bundle(b"an agent"));
    let sum: String = digest(&SHA256, b"another agent").as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let list = site.local_file("agents", format!("# by hand\n{sum}  agent\n").as_bytes());
    site.serve(&Plan::mutagen().host(&format!("trusted_agents = [{agents:?}, {list:?}]")));
    let upload = |contents: &[u8]| {
        let file = site.local_file("agent", contents);
        site.tstunnel(&["upload", text(&file), &format!("{HOST}:{UPLOAD}")])
    };
    for trusted in [&b"an agent"[..], b"another agent"] {
        run(&mut upload(trusted)).ok();
    }
    fails(&mut upload(b"a program of mine"), 1, "command-denied");
    assert_eq!(std::fs::read(site.home.join(UPLOAD)).unwrap(), b"another agent");
}

#[test]
fn a_server_does_not_start_with_a_list_of_agents_that_it_cannot_read() {
    let site = Site::start(&Plan::mutagen());
    let file = site.root.join("server.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let damaged = site.local_file("damaged.tar.gz", &bundle(b"an agent")[..40]);
    let empty = site.local_file("empty", b"# nothing\n");
    for agents in [Path::new("/no/such/file"), &damaged, &empty] {
        let host = format!("[host.{HOST}]\n");
        std::fs::write(&file, good.replace(&host, &format!("{host}trusted_agents = [{agents:?}]\n"))).unwrap();
        let said = fails(&mut site.tstunnel(&["serve", "--config", text(&file)]), 1, "config");
        assert!(said.contains(text(agents)), "{said}");
    }
}

/// A bundle as Mutagen ships it, with one agent.
fn bundle(agent: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(agent.len() as u64);
    tar.append_data(&mut header, "linux_amd64", agent).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

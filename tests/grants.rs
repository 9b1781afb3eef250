//! What a grant says, over the wire: the account that a request asks for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::sync::mpsc;

use support::process::program;
use support_net::child::run;
use support_net::fake::{finish, https_server};
use support_net::report::fails;
use support_net::site::{HOST, Plan, SERVER_NAME, Site, text};

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

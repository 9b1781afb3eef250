//! Grants that are kept elsewhere: what the `authorize` command says is what somebody without a grant may do, and whatever goes
//! wrong with it is no grant.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use support::pki::Identity;
use support::process::{Signal, program};
use support::relay::Relay;
use support::script;
use support::wait::{SOON, wait_until};
use support_net::child::{Ran, Watched, run};
use support_net::report::{error_line, fails};
use support_net::site::{HOST, Plan, Site, text};
use tempfile::TempDir;

/// Who has no grant.
const BOB: &str = "spiffe://tunnel.test/users/bob";

/// The command's folder, which every account can reach, and the site whose server asks it.
struct Elsewhere {
    site: Site,
    folder: TempDir,
    bob: Identity,
}

impl Elsewhere {
    /// A server whose command answers as `body` does; bob is its client.
    fn start(body: &str, plan: Plan) -> Elsewhere {
        let site = Site::new();
        let bob = site.clients.client(BOB);
        site.write(&bob, "bob");
        let folder = tempfile::Builder::new().prefix("ts-authorize-").tempdir().unwrap();
        mode(folder.path(), 0o755);
        let mut elsewhere = Elsewhere { site, folder, bob };
        elsewhere.answers(body);
        fs::create_dir(elsewhere.notes()).unwrap();
        mode(&elsewhere.notes(), 0o1777);
        let plan = plan.tables(&elsewhere.table("20s"));
        elsewhere.site.serve(&plan);
        elsewhere.site.configure_as("bob", elsewhere.site.address(), "");
        elsewhere
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("authorize")
    }

    fn notes(&self) -> PathBuf {
        self.folder.path().join("notes")
    }

    /// `[authorize]` for this command.
    fn table(&self, timeout: &str) -> String {
        // A server that is not root runs it as itself.
        let account = if rustix::process::geteuid().is_root() { "account = \"nobody\"\n" } else { "" };
        format!("[authorize]\ncommand = [{:?}]\ntimeout = \"{timeout}\"\n{account}", self.file())
    }

    /// Lets the command answer otherwise from now on.
    fn answers(&self, body: &str) {
        let notes = self.notes();
        let body = format!("read -r question\necho \"$question\" >>{}/asked\n{body}", notes.display());
        script::write(&self.file(), &body);
    }

    /// What the command was asked.
    fn asked(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.notes().join("asked")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What curl gets as bob from a host: its status, and its body without the host's name.
    fn curl(&self, host: &str, path: &str, arguments: &[&str]) -> (String, String) {
        let mut command = self.site.command(program("curl"));
        let (address, name) = (self.site.address(), format!("{host}.tunnel.test"));
        command
            .args(["--silent", "--show-error", "--http1.1", "--max-time", "20", "--write-out", "\n%{http_code}"])
            .args(["--resolve", &format!("{name}:{}:{}", address.port(), address.ip())])
            .args(["--cert", "bob.crt", "--key", "bob.key", "--cacert", "servers-ca.crt"])
            .args(arguments)
            .current_dir(&self.site.root)
            .arg(format!("https://{name}:{}/tinyscale/v1{path}", address.port()));
        let answer = run(&mut command).ok().text();
        let (body, status) = answer.rsplit_once('\n').unwrap();
        (status.to_owned(), body.replace(host, "HOST"))
    }

    /// The files of ann, who has a grant.
    fn as_ann(&self) {
        self.site.configure(self.site.address(), "");
    }
}

fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
}

#[test]
fn the_command_lets_in_whom_no_grant_names() {
    let elsewhere = Elsewhere::start("echo '{}'", Plan::any().host("targets = [\"tcp:127.0.0.1:1\"]"));
    let site = &elsewhere.site;
    assert_eq!(run(&mut site.exec(&["echo", "hello"])).ok().text(), "hello\n");
    let file = site.local_file("f", b"x");
    run(&mut site.tstunnel(&["upload", text(&file), HOST])).ok();
    assert_eq!(site.names(), ["f"]);
    fails(&mut site.tstunnel(&["connect", HOST]), 255, "target-unreachable");
    assert_eq!(elsewhere.curl(HOST, "/host", &[]).0, "200");
    let asked = elsewhere.asked();
    let requests: Vec<String> = asked.iter().map(|asked| asked["request"].to_string()).collect();
    assert_eq!(
        requests,
        [
            r#"{"args":["hello"],"command":"echo","kind":"command"}"#,
            r#"{"kind":"copy","name":"f"}"#,
            r#"{"kind":"stream","target":null}"#,
            r#"{"kind":"host"}"#,
        ]
    );
    for question in &asked {
        assert_eq!(question["principal"], BOB);
        assert_eq!(question["host"], HOST);
        assert_eq!(question["source"], "127.0.0.1");
        assert_eq!(question["account"], Value::Null);
        assert_eq!(question["serial"], elsewhere.bob.serial());
    }
    assert!(elsewhere.site.server_log().contains(&format!("authorized `{BOB}` on `{HOST}`")));
}

#[test]
fn whoever_has_a_grant_is_not_asked_about() {
    let elsewhere = Elsewhere::start("echo '{}'", Plan::mutagen().host("commands = [\"echo *\"]"));
    elsewhere.as_ann();
    run(&mut elsewhere.site.exec(&["echo", "hello"])).ok();
    fails(&mut elsewhere.site.exec(&["id"]), 255, "command-denied");
    assert!(elsewhere.asked().is_empty());
}

#[test]
fn an_answer_narrows_what_the_host_allows() {
    let elsewhere = Elsewhere::start(
        "echo '{\"commands\": [\"echo *\"], \"targets\": [\"tcp:127.0.0.1:2\"]}'",
        Plan::any().host("targets = [\"tcp:127.0.0.1:1\", \"tcp:127.0.0.1:2\"]"),
    );
    let site = &elsewhere.site;
    run(&mut site.exec(&["echo", "hello"])).ok();
    assert!(fails(&mut site.exec(&["id"]), 255, "command-denied").starts_with("the grant to "));
    let file = site.local_file("f", b"x");
    fails(&mut site.tstunnel(&["upload", text(&file), HOST]), 1, "command-denied");
    fails(&mut site.tstunnel(&["connect", HOST, "--target", "tcp:127.0.0.1:1"]), 255, "command-denied");
    fails(&mut site.tstunnel(&["connect", HOST, "--target", "tcp:127.0.0.1:2"]), 255, "target-unreachable");
    site.configure_as("bob", site.address(), "user = \"somebody-else\"");
    fails(&mut site.exec(&["echo", "hello"]), 255, "unauthorized");
    assert_eq!(elsewhere.asked().last().unwrap()["account"], "somebody-else");
    elsewhere.answers("echo '{\"accounts\": []}'");
    site.configure_as("bob", site.address(), "");
    fails(&mut site.exec(&["echo", "hello"]), 255, "unauthorized");
    for answer in ["{\"sources\": [\"10.0.0.0/8\"]}", "{\"expires\": \"2001-01-01T00:00:00Z\"}"] {
        elsewhere.answers(&format!("echo '{answer}'"));
        fails(&mut site.exec(&["echo", "hello"]), 255, "host-unknown");
    }
    elsewhere.answers("echo '{\"sources\": [\"127.0.0.0/8\"], \"expires\": \"2100-01-01T00:00:00Z\"}'");
    run(&mut site.exec(&["echo", "hello"])).ok();
}

#[test]
fn whatever_goes_wrong_with_the_command_is_no_grant() {
    let elsewhere = Elsewhere::start(":", Plan::any());
    let site = &elsewhere.site;
    let refused = || fails(&mut site.exec(&["echo", "hello"]), 255, "host-unknown");
    let said = refused();
    for body in [
        "echo null",
        "echo '{}'; exit 1",
        "echo '{}'; kill -9 $$",
        "echo yes",
        "echo '[]'",
        "echo '{\"commands\": null}'",
        "echo '{\"principal\": \"*\"}'",
        "yes",
    ] {
        elsewhere.answers(body);
        assert_eq!(refused(), said, "{body}");
    }
    assert!(site.server_log().contains("exit status: 1"), "{}", site.server_log());
    fs::remove_file(elsewhere.file()).unwrap();
    assert_eq!(refused(), said);
    assert!(site.server_log().contains("cannot be started"), "{}", site.server_log());
}

#[test]
fn a_command_that_is_too_slow_is_no_grant_and_leaves_nothing() {
    let mut elsewhere = Elsewhere::start("echo '{}'; sleep 9876", Plan::any());
    let table = elsewhere.table("20s");
    elsewhere.site.server().reconfigure(&table, &table.replace("20s", "500ms"));
    reload(&mut elsewhere.site);
    fails(&mut elsewhere.site.exec(&["echo", "hello"]), 255, "host-unknown");
    wait_until("the command is gone", SOON, || !support::process::all().iter().any(|process| process.mentions("9876")));
}

#[test]
fn until_the_command_has_said_yes_the_host_looks_like_one_that_is_not_there() {
    let elsewhere = Elsewhere::start("echo null", Plan::any());
    let upgrade = ["--header", "Connection: Upgrade", "--header", "Upgrade: tstunnel/1"];
    let body = |text: &'static str| [&upgrade[..], &["--data", text]].concat();
    let requests: &[(&str, &[&str])] = &[
        ("/host", &[]),
        ("/host", &["--request", "DELETE"]),
        ("/nowhere", &[]),
        ("/command", &["--data", "{}"]),
        ("/command", &body("not json")),
        ("/command", &body("{\"command\": \"\"}")),
        ("/command", &body("{\"command\": \"id\", \"user\": \"nobody-at-all\"}")),
        ("/stream?target=x", &[&upgrade[..], &["--request", "POST"]].concat()),
        ("/stream?x", &[&upgrade[..], &["--request", "POST"]].concat()),
        ("/copy/%zz", &["--data", "x"]),
        ("/copy/a%2fb", &["--data", "x"]),
        ("/resume", &[&upgrade[..], &["--request", "POST", "--header", "Tstunnel-Session: a.b"]].concat()),
        ("/resume", &[&upgrade[..], &["--request", "POST", "--header", "Tstunnel-Received: 0"]].concat()),
        ("/host", &["--header", "Tstunnel-User: a", "--header", "Tstunnel-User: b"]),
    ];
    for (path, arguments) in requests {
        let hidden = elsewhere.curl(HOST, path, arguments);
        let missing = elsewhere.curl("nowhere", path, arguments);
        assert_eq!(hidden.0, "421", "{path} {arguments:?}");
        assert_eq!(hidden, missing, "{path} {arguments:?}");
    }
    elsewhere.answers("echo '{}'");
    let statuses: Vec<String> = requests.iter().map(|(path, more)| elsewhere.curl(HOST, path, more).0).collect();
    assert_eq!(
        statuses,
        ["200", "405", "404", "426", "400", "400", "403", "400", "400", "400", "400", "400", "410", "400"],
        "whoever is let in is told what is wrong"
    );
}

#[test]
fn an_answer_is_kept_for_as_long_as_it_says() {
    let elsewhere = Elsewhere::start("echo '{\"cache\": \"10m\"}'", Plan::any());
    for word in ["one", "two", "three"] {
        run(&mut elsewhere.site.exec(&["echo", word])).ok();
    }
    assert_eq!(elsewhere.asked().len(), 1);
    elsewhere.site.configure_as("bob", elsewhere.site.address(), "user = \"somebody-else\"");
    fails(&mut elsewhere.site.exec(&["echo", "hello"]), 255, "unauthorized");
    assert_eq!(elsewhere.asked().len(), 2);
}

#[test]
fn a_live_session_is_asked_about_again_after_a_reload() {
    let mut elsewhere = Elsewhere::start("echo '{\"cache\": \"10m\"}'", Plan::any());
    let mut session = echo(&elsewhere.site);
    reload(&mut elsewhere.site);
    wait_until("the command is asked again", SOON, || elsewhere.asked().len() == 2);
    session.write(b"still here\n");
    session.wait_for_output("still here\n");
    assert_eq!(elsewhere.asked()[0], elsewhere.asked()[1]);
    elsewhere.answers("echo null");
    reload(&mut elsewhere.site);
    let ran = ended(session);
    let said = error_line("exec", &ran.stderr, "host-unknown");
    assert!(said.contains("no longer allowed"), "{said}");
    elsewhere.site.wait_until_idle();
}

#[test]
fn a_live_session_is_asked_about_again_when_its_grant_has_expired() {
    let elsewhere = Elsewhere::start(EXPIRING, Plan::any());
    let session = echo(&elsewhere.site);
    elsewhere.answers("echo null");
    let ran = ended(session);
    let said = error_line("exec", &ran.stderr, "host-unknown");
    assert!(said.contains("no longer allowed"), "{said}");
    elsewhere.answers(EXPIRING);
    let mut session = echo(&elsewhere.site);
    elsewhere.answers("echo '{\"expires\": \"2100-01-01T00:00:00Z\"}'");
    let before = elsewhere.asked().len();
    wait_until("the command is asked again", SOON, || elsewhere.asked().len() > before);
    session.write(b"still here\n");
    session.wait_for_output("still here\n");
}

#[test]
fn a_session_that_rests_on_an_answer_can_be_resumed_from_where_it_is_granted() {
    let elsewhere = Elsewhere::start("echo '{}'", Plan::any());
    let relay = Relay::to(elsewhere.site.address());
    elsewhere.site.configure_as("bob", relay.address(), "");
    let mut session = echo_there(&elsewhere.site);
    relay.reset();
    session.write(b"still here\n");
    session.wait_for_output("still here\n");
    let asked = elsewhere.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0], asked[1]);
    elsewhere.answers("echo null");
    relay.reset();
    let ran = ended(session);
    assert_eq!(ran.code(), Some(255));
    error_line("exec", &ran.stderr, "host-unknown");
}

#[test]
fn a_session_waits_for_a_command_that_fails_while_it_is_resumed() {
    let elsewhere = Elsewhere::start("echo '{}'", Plan::any());
    let relay = Relay::to(elsewhere.site.address());
    elsewhere.site.configure_as("bob", relay.address(), "");
    let mut session = echo_there(&elsewhere.site);
    elsewhere.answers("exit 1");
    relay.reset();
    session.write(b"still here\n");
    wait_until("the command has failed twice", SOON, || elsewhere.asked().len() >= 3);
    fails(&mut elsewhere.site.exec(&["echo", "hello"]), 255, "host-unknown");
    elsewhere.answers("echo '{}'");
    session.wait_for_output("still here\n");
}

#[test]
fn a_server_does_not_start_with_a_command_that_others_can_change() {
    let elsewhere = Elsewhere::start("echo '{}'", Plan::any());
    let serve = || elsewhere.site.tstunnel(&["serve", "--config", text(&elsewhere.site.root.join("server.toml"))]);
    mode(&elsewhere.file(), 0o777);
    assert!(fails(&mut serve(), 1, "config").contains("others can change"));
    mode(&elsewhere.file(), 0o644);
    assert!(fails(&mut serve(), 1, "config").contains("no program"));
}

#[test]
fn a_check_says_that_the_command_would_be_asked_and_asks_it_only_where_that_is_wanted() {
    let elsewhere = Elsewhere::start("echo '{\"commands\": [\"id\"]}'", Plan::any());
    let file = elsewhere.site.root.join("server.toml");
    let check = |more: &[&str]| {
        let mut words = vec!["serve", "--check", "--config", text(&file)];
        words.extend(more);
        let ran = run(&mut elsewhere.site.tstunnel(&words));
        (ran.code(), ran.text())
    };
    assert!(check(&[]).1.ends_with("the `authorize` command is asked\n"), "{:?}", check(&[]));
    let (status, said) = check(&["--as", BOB, HOST, "id"]);
    assert_eq!(status, Some(1));
    assert!(said.contains("would ask the `authorize` command\nrefused [host-unknown]: "), "{said}");
    assert!(elsewhere.asked().is_empty());
    let (status, said) = check(&["--as", BOB, "--authorize", HOST, "id"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.starts_with(&format!("allowed by authorized `{BOB}` on `{HOST}` for command `id`")), "{said}");
    let (status, said) = check(&["--as", BOB, "--authorize", HOST, "ls"]);
    assert_eq!(status, Some(1));
    assert!(said.starts_with("refused [command-denied]: "), "{said}");
    assert_eq!(elsewhere.asked().len(), 2);
    assert_eq!(check(&["--as", BOB, "--authorize", "nowhere", "id"]).0, Some(1));
    assert_eq!(elsewhere.asked().len(), 2, "nobody asks about a host that is not there");
}

/// An answer that is good for three seconds from when it is asked for, and not from when the test has written it.
const EXPIRING: &str = "date -u -d '+3 seconds' '+{\"expires\": \"%Y-%m-%dT%H:%M:%SZ\"}'";

/// Bob's session that echoes.
fn echo(site: &Site) -> Watched {
    site.configure_as("bob", site.address(), "");
    echo_there(site)
}

/// The same by the configuration as it is.
fn echo_there(site: &Site) -> Watched {
    let mut session = Watched::start(site.exec(&["echo here; exec cat"]).stdin(Stdio::piped()));
    session.wait_for_output("here\n");
    session
}

/// Waits until a session has ended by itself.
#[track_caller]
fn ended(mut session: Watched) -> Ran {
    wait_until("the session ends", SOON, || session.ended().is_some());
    session.wait()
}

/// Sends SIGHUP, and waits until the server has done it.
#[track_caller]
fn reload(site: &mut Site) {
    let count = |site: &Site| site.server_log().matches("reloaded").count();
    let before = count(site);
    site.server().signal(Signal::HUP);
    wait_until("the server has reloaded", SOON, || count(site) > before);
}

//! `tstunnel serve --check`: what it finds wrong, what it lists, and how it ends. That its answers are the server's own is what
//! `policy_table` shows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use support::pki::{Authority, Usage, Validity, params};
use support::process::Signal;
use support::serve::{Server, TSTUNNEL};
use support::wait::{SOON, wait_until};
use support::{process, script};
use support_net::child::{Ran, Watched, run};
use support_net::site::{PRINCIPAL, Plan, Site, text};
use tstunnel::server::check::report;
use tstunnel::server::config::Account;

const UPLOAD: &str = "upload:.mutagen-agent0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
const BOB: &str = "spiffe://tunnel.test/users/bob";
const ROBOT: &str = "spiffe://tunnel.test/robots/ci";

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

#[test]
fn the_program_answers_a_question_by_its_words_and_its_status() {
    let site = Site::start(&plan());
    let file = site.root.join("server.toml");
    let ask = |words: &[&str]| {
        let mut command = site.tstunnel(&["serve", "--config", file.to_str().unwrap(), "--check", "--as"]);
        run(command.args(words))
    };
    let bob = BOB;
    let yes = ask(&[bob, "both", "uname", "-s", "-m"]);
    assert_eq!(yes.code(), Some(0), "{}", yes.stderr);
    assert!(yes.text().starts_with("allowed by grant 2 `spiffe://tunnel.test/users/*` on `both`"), "{}", yes.text());
    let no = ask(&[bob, "both", "rm -rf /"]);
    assert_eq!(no.code(), Some(1));
    assert!(no.text().starts_with("refused [command-denied]: "), "{}", no.text());
    assert_eq!(ask(&[ROBOT, "--source", "10.1.2.3", "ports", UPLOAD]).code(), Some(0));
    assert_eq!(ask(&[ROBOT, "ports", UPLOAD]).code(), Some(1));
    assert_eq!(ask(&["ann@tunnel.test", "--user", "somebody-else", "both", "true"]).code(), Some(1));
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
    // The server of this site has its port, which is nothing wrong.
    let said = format!("{}: a server takes it, with the files that it names; ", file.display());
    assert!(check().ok().text().contains(&said));
    fs::write(site.root.join("server.key"), "no key").unwrap();
    let ran = check();
    assert_eq!((ran.code(), ran.text().as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("server.key"), "{}", ran.stderr);
}

/// A site with this configuration behind the usual files, and no server.
fn site(configuration: &str) -> Site {
    let site = Site::new();
    let files =
        "cert = \"server.crt\"\nkey = \"server.key\"\nclient_ca = [\"clients-ca.crt\"]\ndomain = \"tunnel.test\"\n";
    fs::write(site.root.join("server.toml"), format!("{files}{configuration}")).unwrap();
    site
}

/// A host of the account that the tests run as, said in so many words, with a home.
fn host(site: &Site) -> String {
    let own = Account::of_process().unwrap().name;
    format!("[host.web]\naccount = \"{own}\"\nhome = {:?}\ncommands = \"any\"\n", site.home)
}

fn check(site: &Site, more: &[&str]) -> Ran {
    let file = site.root.join("server.toml");
    let mut words = vec!["serve", "--check", "--config", text(&file)];
    words.extend(more);
    // A place for the run folder of whoever is not root.
    run(site.tstunnel(&words).env("XDG_RUNTIME_DIR", &site.root))
}

/// The warnings of a report, which come first.
fn warnings(said: &str) -> Vec<&str> {
    said.lines().map_while(|line| line.strip_prefix("warning: ")).collect()
}

#[test]
fn a_configuration_that_is_right_has_no_warning() {
    let ran = check(&site_without_doubts(""), &[]).ok();
    assert_eq!(ran.stderr, "");
    assert!(warnings(&ran.text()).is_empty(), "{}", ran.text());
}

#[test]
fn that_an_address_is_free_is_not_promised() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let site = site(&format!("listen = [\"{}\"]\n", taken.local_addr().unwrap()));
    let file = site.root.join("server.toml");
    let said = check(&site, &[]).ok().text();
    assert!(said.contains("; whether its addresses are free shows at the start\n"), "{said}");
    let mut server = site.tstunnel(&["serve", "--config", text(&file)]);
    let ran = run(&mut server);
    assert_eq!(ran.code(), Some(1));
    assert!(ran.stderr.contains("cannot listen on 127.0.0.1:"), "{}", ran.stderr);
}

#[test]
fn an_audit_log_that_no_server_could_open_is_an_error_as_it_is_at_the_start() {
    let site = site("");
    let file = site.root.join("server.toml");
    let whole = fs::read_to_string(&file).unwrap();
    std::os::unix::fs::symlink("server.log", site.root.join("link")).unwrap();
    for log in ["no-such-folder/audit.log", "server.crt/audit.log", "home", "link", "/dev/null"] {
        let log = site.root.join(log);
        fs::write(&file, format!("listen = [\"127.0.0.1:0\"]\naudit = {log:?}\n{whole}")).unwrap();
        for question in [&[][..], &["--as", PRINCIPAL, "web", "true"]] {
            let ran = check(&site, question);
            assert_eq!((ran.code(), ran.text().as_str()), (Some(1), ""));
            let started = run(&mut site.tstunnel(&["serve", "--config", text(&file)]));
            assert_eq!(started.code(), Some(1));
            assert!(ran.stderr.contains(&format!("cannot open the audit log {}: ", log.display())), "{}", ran.stderr);
            assert!(started.stderr.ends_with(&ran.stderr), "{}\n{}", started.stderr, ran.stderr);
        }
    }
    fs::write(&file, format!("audit = {:?}\n{whole}", site.root.join("audit.log"))).unwrap();
    assert_eq!(check(&site, &[]).code(), Some(0));
    assert!(!site.root.join("audit.log").exists());
}

#[test]
fn hosts_by_bare_names_without_a_domain_are_warned_of() {
    let site = site("");
    site.write(&site.servers.server(&["web"]), "server");
    let file = site.root.join("server.toml");
    let whole = fs::read_to_string(&file).unwrap().replace("domain = ", "# domain = ") + &host(&site);
    fs::write(&file, format!("{whole}[[grant]]\nprincipal = \"*\"\nhosts = [\"web\"]\n")).unwrap();
    let said = check(&site, &[]).ok().text();
    let warned = warnings(&said);
    assert!(warned.len() == 1 && warned[0].contains("no `domain`: ") && warned[0].contains("sni = \"web\""), "{said}");
}

#[test]
fn what_is_hardly_meant_is_said_first() {
    let site = site("crl = [\"clients.crl\"]\n");
    let file = site.root.join("server.toml");
    let whole = fs::read_to_string(&file).unwrap() + &host(&site);
    fs::write(&file, format!("{whole}[[grant]]\nprincipal = \"*\"\nhosts = [\"x\"]\n")).unwrap();
    fs::write(site.root.join("clients.crl"), site.clients.revoke(&[], Validity::Past)).unwrap();
    let said = check(&site, &[]).ok().text();
    let warned = warnings(&said);
    assert_eq!(warned.len(), 2, "{said}");
    assert!(warned[0].contains("grant 1 for `*` covers none of the hosts"), "{said}");
    assert!(warned[1].contains("clients.crl: the revocation list expired"), "{said}");
}

#[test]
fn what_a_start_takes_and_a_reload_does_not_is_told_apart() {
    let site = site_without_doubts(&format!("{LISTEN}crl = [\"clients.crl\"]\n"));
    let verdict = |validity| {
        fs::write(site.root.join("clients.crl"), site.clients.revoke(&[], validity)).unwrap();
        let said = check(&site, &[]).ok().text();
        said.lines().find(|line| line.contains("whether its addresses are free")).unwrap().to_owned()
    };
    assert!(verdict(Validity::Now).contains("server.toml: a server takes it, "));
    let mut server = Server::start(&site.root.join("server.toml"));
    let said = verdict(Validity::Past);
    assert!(
        said.contains("server.toml: a server starts with it, ") && said.contains("one that runs refuses it: "),
        "{said}"
    );
    server.signal(Signal::HUP);
    wait_until("it is refused", SOON, || server.log().contains("the new state is refused and the old one stays"));
    server.kill();
    server.start_again();
}

/// A site with a host that is granted, and no warning yet.
fn site_without_doubts(more: &str) -> Site {
    let site = site(more);
    let file = site.root.join("server.toml");
    let whole = fs::read_to_string(&file).unwrap() + &host(&site);
    fs::write(&file, format!("{whole}[[grant]]\nprincipal = \"*\"\nhosts = [\"web\"]\n")).unwrap();
    site
}

/// The one warning of a check, which is told once; and the start, of which it does not keep a server, tells it too.
#[track_caller]
fn assert_warned_of(site: &Site, expected: &str) {
    let ran = check(site, &[]).ok();
    let said = ran.text();
    let path = format!("{}/", site.root.display());
    assert_eq!(warnings(&said).iter().map(|line| line.replace(&path, "")).collect::<Vec<_>>(), [expected], "{said}");
    assert_eq!(ran.stderr, "");
    let server = Server::start(&site.root.join("server.toml"));
    let log = server.log().replace(&path, "");
    assert_eq!(log.matches(&format!("server.toml: {expected}\n")).count(), 1, "{log}");
    assert_eq!(log.matches(" WARN ").count(), 1, "{log}");
}

const LISTEN: &str = "listen = [\"127.0.0.1:0\"]\n";

#[test]
fn a_certificate_that_no_client_takes_is_warned_of() {
    let site = site_without_doubts(LISTEN);
    let write = |usage, validity, names: &[&str]| {
        site.write(&site.servers.issue(usage, validity, params(names)), "server");
    };
    write(Usage::Server, Validity::Past, &["*.tunnel.test"]);
    assert_warned_of(&site, "server.crt: the certificate expired at 2021-01-01 00:00:00 UTC");
    write(Usage::Client, Validity::Now, &["*.tunnel.test"]);
    let expected = "server.crt: the certificate is not one for a server: its extended key usage must have serverAuth";
    assert_warned_of(&site, expected);
    write(Usage::Server, Validity::Now, &["tunnel.test", "*.example.org"]);
    let expected =
        "server.crt: the certificate is for tunnel.test, *.example.org, so no client takes it for web.tunnel.test";
    assert_warned_of(&site, expected);
    write(Usage::Server, Validity::Now, &["web"]);
    assert!(warnings(&check(&site, &[]).ok().text()).is_empty());
}

#[test]
fn an_authority_whose_clients_no_list_covers_is_warned_of() {
    let site = site_without_doubts(&format!("{LISTEN}crl = [\"clients.crl\"]\n"));
    let list = |of: &Authority, validity| fs::write(site.root.join("clients.crl"), of.revoke(&[], validity)).unwrap();
    list(&site.clients, Validity::Now);
    assert!(warnings(&check(&site, &[]).ok().text()).is_empty());
    list(&site.servers, Validity::Now);
    let expected =
        "`crl` has no list that `CN=the clients' authority` in clients-ca.crt has signed, so nobody of it is let in";
    assert_warned_of(&site, expected);
    list(&site.clients, Validity::Past);
    let expected = "clients.crl: the revocation list expired at 2021-01-01 00:00:00 UTC, \
                    so nobody of `CN=the clients' authority` is let in";
    assert_warned_of(&site, expected);
}

#[test]
fn a_server_that_cannot_be_replaced_is_told_so_at_the_start_and_in_the_check() {
    const NOBODY: u32 = 65534;
    let site = site(LISTEN);
    let program = site.root.join("tstunnel");
    script::install(Path::new(TSTUNNEL), &program);
    // Root has a run folder in any case.
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        let files = fs::read_dir(&site.root).unwrap().map(|entry| entry.unwrap().path());
        for path in files.chain([site.root.clone()]) {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let serve = |more: &[&str], runtime: Option<&Path>| {
        let mut command = site.command(if is_root { process::program("setpriv") } else { program.clone() });
        if is_root {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        }
        command.args(["serve", "--config", text(&site.root.join("server.toml"))]).args(more);
        command.envs(runtime.map(|folder| ("XDG_RUNTIME_DIR", folder)));
        command
    };
    let cannot = "cannot be replaced while it runs, so an upgrade ends its sessions";
    let what = format!(
        "{cannot}: there is no run folder; set `run_dir`, or the variable XDG_RUNTIME_DIR, to a folder of this account's alone\n"
    );
    for (runtime, count) in [(None, 1), (Some(site.root.as_path()), 0)] {
        let said = run(&mut serve(&["--check"], runtime)).ok().text();
        let expected = format!("warning: a server that is started from here {what}");
        assert_eq!(said.matches(&expected).count(), count, "{said}");
        let server = Watched::start(&mut serve(&[], runtime));
        wait_until("it listens", SOON, || server.stderr().contains("listening on "));
        let log = server.stderr();
        assert_eq!(log.matches(&format!(" this server {what}")).count(), count, "{log}");
    }
    let server = Watched::start(&mut serve(&[], Some(Path::new("/no/such"))));
    wait_until("it listens", SOON, || server.stderr().contains("listening on "));
    let log = server.stderr();
    let what = format!("{cannot}: the run folder /no/such/tstunnel cannot be used: no such file or directory");
    assert!(log.contains(&what) && log.contains("; set `run_dir` to a folder of this account's alone\n"), "{log}");
}

#[test]
fn what_ends_in_a_day_is_told_in_hours() {
    let site = site_without_doubts("");
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(30 * 3600 + 1800);
    site.write(&site.servers.issue_until(Usage::Server, end, params(&["*.tunnel.test"])), "server");
    let said = check(&site, &[]).ok().text();
    let warned = warnings(&said);
    assert!(warned.len() == 1 && warned[0].contains("the certificate is valid for 30 hours more, until 2"), "{said}");
}

#[test]
fn a_wrapper_that_is_not_there_is_warned_of() {
    let site = site_without_doubts("");
    let file = site.root.join("server.toml");
    let whole = fs::read_to_string(&file).unwrap();
    for (wrapper, expected) in [("env", None), ("/bin/sh", None), ("no-such-wrapper", Some("no-such-wrapper"))] {
        fs::write(&file, whole.replace("[[grant]]", &format!("wrapper = [\"{wrapper}\"]\n[[grant]]"))).unwrap();
        let said = check(&site, &[]).ok().text();
        let expected =
            expected.map(|program| format!("the `wrapper` of `web` cannot be run: there is no program `{program}`"));
        assert_eq!(warnings(&said), expected.as_slice(), "{said}");
    }
}

#[test]
fn an_account_that_nobody_may_use_is_warned_of_and_refuses() {
    if !rustix::process::geteuid().is_root() {
        // Only root serves other accounts: here the file itself is wrong.
        assert_eq!(check(&site("[host.web]\naccount = \"root\"\n"), &[]).code(), Some(1));
        return;
    }
    let host = "[host.web]\naccount = \"no-such-account\"\ncommands = \"any\"\ntargets = [\"tcp:127.0.0.1:1\"]\n";
    let site =
        site(&format!("{host}[[grant]]\nprincipal = \"*\"\nhosts = [\"*\"]\naccounts = [\"no-such-account\"]\n"));
    let said = check(&site, &[]).ok().text();
    assert_eq!(warnings(&said), ["the account `no-such-account` does not exist on the host"]);
    for command in ["id", "upload:notes", "stream:"] {
        let ran = check(&site, &["--as", PRINCIPAL, "web", command]);
        assert_eq!(ran.code(), Some(1));
        let said = ran.text();
        assert!(said.starts_with("refused [unauthorized]: the account `no-such-account` does not exist"), "{said}");
        assert!(said.contains("\nby grant 1 `*` on `*`; "), "{said}");
    }
}

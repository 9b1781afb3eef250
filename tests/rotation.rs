//! Two authorities of one domain beside each other, as they are while the second takes the place of the first: whom a server lets
//! in, whom it refuses, and what it says of two that cannot be told apart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::manual::literal_blocks;
use support::pki::{Authority, Validity};
use support::serve::{Server, TSTUNNEL};
use support::user::User;
use support::wait::{SOON, wait_until};
use support_net::child::{Watched, run};
use support_net::report::{error_line, fails};

const DOMAIN: &str = "containers.example.net";

/// One account with the authorities `old` and `new`, and a server that both have a part in.
struct Machine {
    user: User,
    server: Option<Server>,
}

impl Machine {
    fn new() -> Machine {
        let machine = Machine { user: User::new(), server: None };
        for dir in ["old", "new"] {
            machine.pki(&["init", "--dir", dir, DOMAIN]);
            for name in ["ann", "eve"] {
                machine.pki(&["client", "--dir", dir, name]);
            }
        }
        machine.pki(&["server", "--dir", "old"]);
        fs::copy(machine.home("old/ca.crt"), machine.home("servers-ca.crt")).unwrap();
        machine
    }

    fn home(&self, path: &str) -> PathBuf {
        self.user.home().join(path)
    }

    fn pki(&self, words: &[&str]) -> String {
        run(&mut self.user.tstunnel(["pki"].iter().chain(words))).ok().text()
    }

    /// Writes `server.toml` with the authorities' files in this order.
    fn configure(&self, authorities: [&str; 2], lists: [&str; 2]) {
        let [ca, next_ca] = authorities;
        let [crl, next_crl] = lists;
        let text = format!(
            "listen = [\"127.0.0.1:0\"]\n\
             cert = \"old/{DOMAIN}.crt\"\n\
             key = \"old/{DOMAIN}.key\"\n\
             client_ca = [\"{ca}/ca.crt\", \"{next_ca}/ca.crt\"]\n\
             crl = [\"{crl}/ca.crl\", \"{next_crl}/ca.crl\"]\n\
             domain = \"{DOMAIN}\"\n\n\
             [host.host123]\n\
             commands = \"any\"\n\n\
             [[grant]]\n\
             principal = \"*\"\n\
             hosts = [\"host123\"]\n"
        );
        fs::write(self.home("server.toml"), text).unwrap();
    }

    fn serve(&mut self) {
        self.server = Some(Server::start(&self.home("server.toml")));
    }

    fn log(&self) -> String {
        self.server.as_ref().unwrap().log()
    }

    /// `tstunnel exec` by a certificate of `dir`.
    fn exec(&self, dir: &str, name: &str) -> Command {
        let endpoint = self.server.as_ref().unwrap().address().to_string();
        let (cert, key) = (format!("{dir}/{name}.crt"), format!("{dir}/{name}.key"));
        let sni = format!("host123.{DOMAIN}");
        let to = ["exec", "--endpoint", &endpoint, "--sni", &sni, "--cert", &cert, "--key", &key];
        self.user.tstunnel(to.iter().chain(&["--ca", "servers-ca.crt", "host123", "--", "true"]))
    }
}

/// Who has followed the README up to the server, and has a client's files in a folder `client`.
struct Reader {
    user: User,
    server: Server,
}

impl Reader {
    fn new() -> Reader {
        let mut path = vec![Path::new(TSTUNNEL).parent().unwrap().to_owned()];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        let user = User::with(vec![("PATH", std::env::join_paths(path).unwrap())]);
        let readme = document("README.md");
        let (_, section) = readme.split_once("\n    tstunnel pki init ").unwrap();
        let (block, _) = section.split_once("\n    tstunnel serve ").unwrap();
        let block: String =
            format!("    tstunnel pki init {block}").lines().map(|line| format!("{}\n", line.trim_start())).collect();
        let block = block
            .replace("0.0.0.0:8443", "127.0.0.1:0")
            .replace("[host.host123]", "[host.host123]\ncommands = \"any\"");
        run(user.run("sh").args(["-ec", &block])).ok();
        fs::create_dir(user.home().join("client")).unwrap();
        for file in ["ca.crt", "ann.crt", "ann.key"] {
            fs::copy(user.home().join("tstunnel-pki").join(file), user.home().join("client").join(file)).unwrap();
        }
        let server = Server::start(&user.home().join("server.toml"));
        Reader { user, server }
    }

    fn home(&self, path: &str) -> PathBuf {
        self.user.home().join(path)
    }

    /// Does what a block says in a folder of the home.
    fn follow(&self, folder: &str, block: &str) {
        run(self.user.run("sh").args(["-ec", block]).current_dir(self.home(folder))).ok();
    }

    #[track_caller]
    fn wait_for_reloads(&self, count: usize) {
        wait_until("the change is noticed", SOON, || self.server.log().matches("reloaded").count() >= count);
    }

    /// `tstunnel exec` with a client's certificate and its key.
    fn exec(&self, identity: &str, command: &str) -> Command {
        let (endpoint, sni) = (self.server.address().to_string(), format!("host123.{DOMAIN}"));
        let (cert, key) = (format!("{identity}.crt"), format!("{identity}.key"));
        let to = ["exec", "--endpoint", &endpoint, "--sni", &sni, "--cert", &cert, "--key", &key, "--ca", "ca.crt"];
        let mut exec = self.user.tstunnel(to.iter().chain(&["host123", "--", command]));
        exec.current_dir(self.home("client"));
        exec
    }

    /// A session that echoes.
    fn session(&self) -> Watched {
        let mut session = Watched::start(self.exec("ann", "echo here; exec cat").stdin(Stdio::piped()));
        session.wait_for_output("here\n");
        session
    }
}

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[track_caller]
fn assert_echoes(session: &mut Watched, word: &str) {
    session.write(format!("{word}\n").as_bytes());
    session.wait_for_output(&format!("{word}\n"));
}

#[test]
fn certificates_of_two_authorities_of_one_domain_are_let_in_and_revoked_ones_of_each_are_not() {
    for lists in [["old", "new"], ["new", "old"]] {
        let mut machine = Machine::new();
        machine.configure(["old", "new"], lists);
        machine.serve();
        for dir in ["old", "new"] {
            for name in ["ann", "eve"] {
                run(&mut machine.exec(dir, name)).ok();
            }
            machine.pki(&["revoke", "--dir", dir, "eve"]);
            wait_until("the list is noticed", SOON, || {
                machine.log().matches("reloaded").count() > usize::from(dir == "new")
            });
            let said = fails(&mut machine.exec(dir, "eve"), 255, "client-cert");
            assert!(said.contains("certificate_revoked"), "{said}");
            run(&mut machine.exec(dir, "ann")).ok();
        }
    }
}

#[test]
fn of_authorities_of_one_name_and_other_keys_the_server_warns() {
    let mut machine = Machine::new();
    machine.configure(["old", "new"], ["old", "new"]);
    let check =
        |machine: &Machine| run(&mut machine.user.tstunnel(["serve", "--config", "server.toml", "--check"])).ok();
    assert!(!check(&machine).text().contains("authorities"));
    for dir in ["old", "new"] {
        let authority = Authority::new("one name");
        fs::write(machine.home(dir).join("ca.crt"), authority.certificate()).unwrap();
        fs::write(machine.home(dir).join("ca.crl"), authority.revoke(&[], Validity::Now)).unwrap();
        authority.client("spiffe://example.net/ann").write(&machine.home(dir), "one-name");
    }
    let said = check(&machine).text();
    let warning = "\nwarning: old/ca.crt and new/ca.crt: both authorities are called `CN=one name`";
    assert!(said.contains(warning) && said.contains("whose list comes first in `crl`"), "{said}");

    machine.serve();
    assert!(machine.log().contains("both authorities are called `CN=one name`"), "{}", machine.log());
    let said = fails(&mut machine.exec("new", "one-name"), 255, "client-cert");
    assert!(said.contains("rejected the certificate"), "{said}");
}

#[test]
fn the_recipe_of_the_manual_replaces_the_authority_under_an_open_session() {
    let page = document("man/tstunnel-serve.8");
    let (_, section) = page.split_once("\n.Ss Rotating the authority\n").unwrap();
    let blocks = literal_blocks(section.split("\n.Ss ").next().unwrap());
    let [make, trust_both, client_trusts_both, show_new, server_forgets, client_forgets] = blocks.as_slice() else {
        panic!("another recipe: {blocks:?}")
    };
    let reader = Reader::new();
    let mut before = reader.session();

    reader.follow("", make);
    reader.follow("", trust_both);
    reader.wait_for_reloads(1);
    run(&mut reader.exec("ann", "true")).ok();
    // What the reader carries over by means of their own.
    fs::create_dir(reader.home("client/new")).unwrap();
    for file in ["ca.crt", "ann.crt", "ann.key"] {
        fs::copy(reader.home("pki2").join(file), reader.home("client/new").join(file)).unwrap();
    }
    reader.follow("client", client_trusts_both);
    let mut between = reader.session();

    reader.follow("", show_new);
    reader.wait_for_reloads(2);
    run(&mut reader.exec("ann", "true")).ok();
    assert_echoes(&mut before, "the first session is still here");

    reader.follow("", server_forgets);
    reader.wait_for_reloads(3);
    wait_until("the session of the old certificate has ended", SOON, || before.ended().is_some());
    error_line("the first session", &before.wait().stderr, "unauthorized");
    assert_echoes(&mut between, "the second session is still here");
    reader.follow("client", client_forgets);
    run(&mut reader.exec("ann", "true")).ok();
    assert_echoes(&mut between, "and stays");
    let said = fails(&mut reader.exec("../tstunnel-pki/ann", "true"), 255, "client-cert");
    assert!(said.contains("unknown_ca"), "{said}");
}

#[test]
fn the_old_certificate_is_revoked_by_its_file_and_all_of_a_name_by_the_name() {
    let machine = Machine::new();
    let old = machine.home("old/old");
    fs::create_dir(&old).unwrap();
    for file in ["ann.crt", "ann.key"] {
        fs::rename(machine.home("old").join(file), old.join(file)).unwrap();
    }
    machine.pki(&["client", "--dir", "old", "ann"]);
    let said = machine.pki(&["revoke", "--dir", "old", "old/ann.crt"]);
    assert!(said.ends_with("\n1 certificate of ann revoked; still good: 1\n"), "{said}");
    let said = machine.pki(&["revoke", "--dir", "old", "ann"]);
    let end = "\n2 certificates of ann revoked; none is left: move its files away and make a new one with `tstunnel pki client --dir old ann`\n";
    assert!(said.ends_with(end), "{said}");
    let said = machine.pki(&["revoke", "--dir", "old", DOMAIN]);
    assert!(
        said.ends_with(
            "none is left: move its files away and make a new one with `tstunnel pki server --dir old NAME...`\n"
        ),
        "{said}"
    );
}

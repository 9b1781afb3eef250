//! Two authorities of one domain beside each other, as they are while the second takes the place of the first: whom a server lets
//! in, whom it refuses, and what it says of two that cannot be told apart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use support::pki::{Authority, Validity};
use support::serve::Server;
use support::user::User;
use support::wait::{SOON, wait_until};
use support_net::child::run;
use support_net::report::fails;

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
    let end =
        "\n2 certificates of ann revoked; none is left: make a new one with `tstunnel pki client --dir old ann`\n";
    assert!(said.ends_with(end), "{said}");
    let said = machine.pki(&["revoke", "--dir", "old", DOMAIN]);
    assert!(said.ends_with("none is left: make a new one with `tstunnel pki server --dir old NAME...`\n"), "{said}");
}

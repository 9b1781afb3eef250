//! Which account a principal may use is in its grant.

use crate::machine::{BOB, Machine};
use crate::support_net::child::run;
use crate::support_net::report::fails;
use crate::support_net::site::{PRINCIPAL, Plan};

/// The host `ann` is granted as ann by itself, and as bob or somebody locked by a grant that says so.
fn start() -> Machine {
    let grant = format!("[[grant]]\nprincipal = \"{PRINCIPAL}\"\nhosts = [\"ann\"]\naccounts = [\"bob\", \"locked\"]");
    Machine::start("\"any\"", Plan::mutagen().tables(&grant))
}

#[test]
fn a_command_and_an_upload_are_of_the_account_that_is_asked_for() {
    let machine = start();
    let as_bob = |words: &[&str]| {
        let mut all = vec!["exec", "--user", "bob", "ann", "--"];
        all.extend(words);
        run(&mut machine.site.tstunnel(&all)).ok().text()
    };
    assert_eq!(as_bob(&["id", "-u"]), format!("{BOB}\n"));
    assert_eq!(as_bob(&["pwd"]), format!("{}\n", machine.home("bob").display()));
    let file = machine.site.local_file("notes", b"for bob");
    let mut upload = machine.site.tstunnel(&["upload", "--user", "bob", file.to_str().unwrap(), "ann:notes"]);
    run(&mut upload).ok();
    assert_eq!(as_bob(&["stat", "-c", "%u", "notes"]), format!("{BOB}\n"));
    assert!(!machine.home("ann").join("notes").exists());
    assert!(run(&mut machine.exec("ann", &["id", "-un"])).ok().text().contains("ann"));
}

#[test]
fn an_account_that_is_not_granted_or_of_no_use_is_refused() {
    let machine = start();
    for user in ["root", "nologin", "no-such-account"] {
        let mut command = machine.site.tstunnel(&["exec", "--user", user, "ann", "--", "id"]);
        fails(&mut command, 255, "unauthorized");
    }
    let mut locked = machine.site.tstunnel(&["exec", "--user", "locked", "ann", "--", "id"]);
    assert!(fails(&mut locked, 255, "unauthorized").contains("is locked"));
}

//! What one account can learn or change of another's through the server: nothing.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;

use sha2_hex::sha256;

use crate::machine::{BOB, Machine, mode};
use crate::support_net::child::run;
use crate::support_net::report::fails;
use crate::support_net::site::Plan;

const SECRET: &[u8] = b"ann's own, and nobody else's\n";
const AGENT: &str = ".mutagen/agents/0.18.1/mutagen-agent";

/// Makes a link of bob's.
fn link(machine: &Machine, to: &Path, name: &str) {
    let path = machine.home("bob").join(name);
    for folder in path.parent().unwrap().ancestors().take_while(|folder| *folder != machine.home("bob")) {
        fs::create_dir_all(folder).unwrap();
        chown(folder, Some(BOB), Some(BOB)).unwrap();
    }
    symlink(to, &path).unwrap();
    std::os::unix::fs::lchown(path, Some(BOB), Some(BOB)).unwrap();
}

#[test]
fn a_command_cannot_read_or_write_the_others_files() {
    let machine = Machine::start("\"any\"", Plan::any());
    let secret = machine.write("ann", "secret", SECRET);
    let secret = secret.to_str().unwrap();
    let root_file = machine.site.root.join("server.key");
    for words in [
        vec!["cat", secret],
        vec!["cat", "../ann/secret"],
        vec!["sh", "-c", "echo x >>../ann/secret"],
        vec!["ls", "../ann"],
        vec!["cat", root_file.to_str().unwrap()],
        vec!["cat", "/etc/shadow"],
        vec!["../ann/secret"],
    ] {
        let ran = run(&mut machine.exec("bob", &words));
        assert_ne!(ran.code(), Some(0), "{words:?}");
        assert_eq!(ran.text(), "", "{words:?}");
    }
    assert_eq!(run(&mut machine.exec("ann", &["cat", "secret"])).ok().stdout, SECRET);
}

#[test]
fn whether_anothers_file_is_there_cannot_be_told() {
    let machine = Machine::start("\"any\"", Plan::any());
    machine.write("ann", "program", b"#!/bin/sh\n");
    mode(&machine.home("ann").join("program"), 0o755);
    let said = |program: &str| {
        let ran = run(&mut machine.exec("bob", &[program, "x"]));
        (ran.code(), ran.stderr.replace("nothing", "program"))
    };
    assert_eq!(said("../ann/program"), said("../ann/nothing"));
}

#[test]
fn an_upload_over_a_planted_link_replaces_the_link() {
    let machine = Machine::start("\"any\"", Plan::any());
    let secret = machine.write("ann", "secret", SECRET);
    link(&machine, &secret, "file");
    let file = machine.site.local_file("file", b"content");
    run(&mut machine.upload(&file, "bob", "file")).ok();
    assert_eq!(fs::read(&secret).unwrap(), SECRET);
    assert!(machine.home("bob").join("file").symlink_metadata().unwrap().is_file());
}

#[test]
fn a_folder_of_contents_that_leads_elsewhere_is_of_no_use() {
    let machine = Machine::start("\"any\"", Plan::any());
    let secret = machine.write("ann", "secret", SECRET);
    // What the server keeps by its digest, planted: by a link to the file, and by a folder that leads into ann's.
    link(&machine, &secret, &format!(".cache/tstunnel/content/{}", sha256(SECRET)));
    let copy = machine.site.local_file("guess", SECRET);
    run(&mut machine.upload(&copy, "bob", "copy")).ok();
    let stored = machine.home("bob").join("copy");
    assert_eq!(stored.metadata().unwrap().uid(), BOB);
    assert_ne!(stored.metadata().unwrap().ino(), secret.metadata().unwrap().ino());
    fs::remove_dir_all(machine.home("bob").join(".cache")).unwrap();
    link(&machine, &machine.home("ann"), ".cache/tstunnel");
    let other = machine.site.local_file("other", b"something else");
    run(&mut machine.upload(&other, "bob", "other")).ok();
    assert_eq!(fs::read_dir(machine.home("ann")).unwrap().count(), 1, "nothing was put into ann's home");
}

#[test]
fn the_server_does_not_say_that_it_holds_what_only_another_account_has() {
    let machine = Machine::start("\"any\"", Plan::any());
    let file = machine.site.local_file("file", SECRET);
    run(&mut machine.upload(&file, "ann", "kept")).ok();
    let digest = base64_of(&file);
    let address = machine.site.address();
    let answer = |host: &str| {
        let mut command = machine.site.command("curl");
        command
            .args(["--silent", "--http1.1", "--include", "--max-time", "20", "--request", "POST", "--header"])
            .arg(format!("Unencoded-Digest: sha-256=:{digest}:"))
            .args(["--data-binary", "", "--header", "Content-Length: 0"])
            .args(["--cert", "client.crt", "--key", "client.key", "--cacert", "servers-ca.crt"])
            .arg("--resolve")
            .arg(format!("{host}.tunnel.test:{}:{}", address.port(), address.ip()))
            .arg(format!("https://{host}.tunnel.test:{}/tinyscale/v1/copy/again", address.port()))
            .current_dir(&machine.site.root);
        run(&mut command).ok().text()
    };
    assert!(answer("ann").starts_with("HTTP/1.1 200 "), "{}", answer("ann"));
    assert!(answer("bob").starts_with("HTTP/1.1 422 "), "{}", answer("bob"));
}

#[test]
fn an_agent_that_leads_to_anothers_file_is_not_run_and_not_read() {
    let machine = Machine::start("\"mutagen\"", Plan::mutagen());
    let program = machine.write("ann", "program", b"#!/bin/sh\necho it ran\n");
    mode(&program, 0o755);
    link(&machine, &program, AGENT);
    let ran = run(&mut machine.exec("bob", &[AGENT, "synchronizer"]));
    assert_eq!((ran.code(), ran.text().as_str()), (Some(126), ""), "{}", ran.stderr);
    fs::remove_file(machine.home("bob").join(AGENT)).unwrap();
    link(&machine, &machine.home("ann").join("nothing"), AGENT);
    let missing = run(&mut machine.exec("bob", &[AGENT, "synchronizer"]));
    // Root would know the one from the other; bob may not.
    assert_eq!((missing.code(), missing.stderr), (ran.code(), ran.stderr));
}

#[test]
fn names_that_lead_out_of_the_home_are_refused_before_anybody_becomes_anything() {
    let machine = Machine::start("\"any\"", Plan::any());
    let secret = machine.write("ann", "secret", SECRET);
    for name in ["..%2Fann%2Fsecret", "%2e%2e%2fann%2fsecret", "..", "%2e%2e"] {
        let mut command = machine.site.curl_to("bob.tunnel.test", &format!("/tinyscale/v1/copy/{name}"));
        let answer = run(command.args(["--request", "POST", "--data-binary", "x"])).ok().text();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{name}: {answer}");
    }
    assert_eq!(fs::read(secret).unwrap(), SECRET);
}

#[test]
fn an_account_that_was_not_granted_is_refused() {
    let machine = Machine::start("\"any\"", Plan::any());
    let said = fails(&mut machine.site.tstunnel(&["exec", "--user", "ann", "bob", "--", "true"]), 255, "unauthorized");
    assert!(said.contains("ann"), "{said}");
}

fn base64_of(file: &Path) -> String {
    let hex = sha256(&fs::read(file).unwrap());
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
}

mod sha2_hex {
    /// The SHA-256 digest in lower-case hexadecimal.
    pub(super) fn sha256(content: &[u8]) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

//! Other programs as peers: curl, openssl, OpenSSH, git, rsync, a docker client's argv, and servers and clients of this
//! protocol that speak nothing but `tcp`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use support::openssh::{Account, Sshd};
use support::process::{Signal, program};
use support::serve::{TSTUNNEL, records};
use support::wait::{SOON, wait_for, wait_until};
use support::{script, tree};
use support_net::child::{Watched, contains, run, run_with_input};
use support_net::fake::{self, finish, hang_up, https_server, tcp_server};
use support_net::report::fails;
use support_net::site::{HOST, PRINCIPAL, Plan, SERVER_NAME, Site, text};

/// The fields by which a client of another make asks for a plain stream.
const ASKS_FOR_TCP: &str = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\n";

// --- curl ---------------------------------------------------------------------------------------------------------------

/// An answer as curl prints it with `--include`; of several the last.
#[derive(Debug)]
struct Answer {
    status: u16,
    fields: Vec<(String, String)>,
    body: String,
    /// Whether `100 Continue` came first.
    continued: bool,
}

impl Answer {
    #[track_caller]
    fn of(command: &mut Command) -> Answer {
        let whole = run(command).ok().text();
        let mut rest = whole.as_str();
        let mut continued = false;
        loop {
            let (head, body) = rest.split_once("\r\n\r\n").unwrap_or((rest, ""));
            let mut lines = head.lines();
            let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().parse().unwrap_or(0);
            if status == 100 {
                continued = true;
                rest = body;
                continue;
            }
            let fields = lines
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            return Answer { status, fields, body: body.to_owned(), continued };
        }
    }

    fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value)
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that this is an RFC 9457 problem of `code`.
    #[track_caller]
    fn is_problem(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.field("content-type")), (status, "application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!((&problem["type"], &problem["status"]), (&json!(format!("urn:tstunnel:{code}")), &json!(status)));
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
    }
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest_field(name: &str, bytes: &[u8]) -> String {
    format!("{name}: sha-256=:{}:", BASE64.encode(sha256(bytes)))
}

/// Some text that compresses.
fn prose(lines: usize) -> Vec<u8> {
    (0..lines).flat_map(|line| format!("line {line} of {lines}, {}\n", line * 7919 % 10_007).into_bytes()).collect()
}

/// curl that sends a file's bytes as the body of a POST.
fn curl_upload(site: &Site, name: &str, body: &Path, fields: &[&str]) -> Command {
    let mut command = site.curl(&format!("/copy/{name}"));
    command.args(["--data-binary", &format!("@{}", text(body))]);
    for field in fields {
        command.args(["--header", field]);
    }
    command
}

#[test]
fn curl_learns_what_the_server_thinks_of_it() {
    let site = Site::start(&Plan::mutagen());
    let answer = Answer::of(&mut site.curl("/host"));
    assert_eq!((answer.status, answer.field("content-type")), (200, "application/json"));
    let said = answer.json();
    assert_eq!((&said["host"], &said["principal"]), (&json!(HOST), &json!(PRINCIPAL)));
    assert!(said["server"].as_str().unwrap().starts_with("tstunnel/"), "{said}");
    let features: Vec<&str> = said["features"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(features.contains(&"tstunnel/1") && features.contains(&"tcp"), "{features:?}");
    let head = Answer::of(site.curl("/host").arg("--head"));
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[test]
fn curl_uploads_plain_gzip_and_zstd() {
    let site = Site::start(&Plan::any());
    let contents = prose(30_000);
    let plain = site.local_file("plain", &contents);
    for (tool, encoding) in [("", ""), ("gzip", "gzip"), ("zstd", "zstd")] {
        // A content of its own each, so that none is known already.
        let contents = [contents.as_slice(), encoding.as_bytes()].concat();
        fs::write(&plain, &contents).unwrap();
        let body = match tool {
            "" => contents.clone(),
            tool => run(site.command(program(tool)).args(["-q", "-c", text(&plain)])).ok().stdout,
        };
        let file = site.local_file("body", &body);
        let (mut fields, name) = (vec![], format!("file-{encoding}"));
        let (sent, unencoded) = (digest_field("Content-Digest", &body), digest_field("Unencoded-Digest", &contents));
        let encoded = format!("Content-Encoding: {encoding}");
        fields.extend([sent.as_str(), unencoded.as_str(), "Tstunnel-Mode: 0751"]);
        if !tool.is_empty() {
            fields.push(&encoded);
        }
        let answer = Answer::of(&mut curl_upload(&site, &name, &file, &fields));
        assert_eq!(answer.status, 201, "{answer:?}");
        assert_eq!(answer.json(), json!({"size": contents.len(), "sha256": hex(&sha256(&contents))}));
        let stored = site.home.join(&name);
        assert!(fs::read(&stored).unwrap() == contents, "{name} has other contents");
        assert_eq!(fs::metadata(&stored).unwrap().permissions().mode() & 0o7777, 0o751);
    }
    let answer = Answer::of(&mut curl_upload(&site, "an%20odd%3aname%25", &plain, &[]));
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(fs::metadata(site.home.join("an odd:name%")).unwrap().permissions().mode() & 0o7777, 0o644);
}

#[test]
fn an_empty_file_can_be_uploaded() {
    let site = Site::start(&Plan::any());
    let empty = site.local_file("empty", b"");
    assert_eq!(Answer::of(&mut curl_upload(&site, "by-curl", &empty, &[])).status, 201);
    run(&mut site.tstunnel(&["upload", text(&empty), HOST])).ok();
    run(&mut site.tstunnel(&["upload", "--no-compress", text(&empty), &format!("{HOST}:plain")])).ok();
    assert_eq!(site.names(), ["by-curl", "empty", "plain"]);
    assert!(site.names().iter().all(|name| fs::read(site.home.join(name)).unwrap().is_empty()));
}

#[test]
fn a_content_that_the_server_holds_is_not_sent_again() {
    let site = Site::start(&Plan::any());
    let contents = prose(60_000);
    let file = site.local_file("file", &contents);
    let unencoded = digest_field("Unencoded-Digest", &contents);
    let fields = [unencoded.as_str(), "Expect: 100-continue"];
    let first = Answer::of(&mut curl_upload(&site, "first", &file, &fields));
    assert_eq!((first.status, first.continued), (201, true), "{first:?}");
    let again = Answer::of(&mut curl_upload(&site, "second", &file, &[&fields[..], &["Tstunnel-Mode: 0700"]].concat()));
    // Without `100 Continue`, curl has kept the body to itself.
    assert_eq!((again.status, again.continued), (200, false), "{again:?}");
    assert_eq!(again.json(), first.json());
    assert!(fs::read(site.home.join("second")).unwrap() == contents);
    assert_eq!(fs::metadata(site.home.join("second")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(site.home.join("first")).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn a_content_that_was_changed_in_place_is_sent_again() {
    let site = Site::start(&Plan::any());
    let contents = prose(1000);
    let file = site.local_file("file", &contents);
    run(&mut site.tstunnel(&["upload", text(&file), &format!("{HOST}:first")])).ok();
    // Whatever shares the kept content's bytes must not be taken for them.
    let mut stored = fs::OpenOptions::new().append(true).open(site.home.join("first")).unwrap();
    stored.write_all(b"changed").unwrap();
    run(&mut site.tstunnel(&["upload", text(&file), &format!("{HOST}:second")])).ok();
    assert!(fs::read(site.home.join("second")).unwrap() == contents);
}

#[test]
fn a_broken_upload_continues_where_it_stopped() {
    let site = Site::start(&Plan::any());
    let contents = prose(60_000);
    let unencoded = digest_field("Unencoded-Digest", &contents);
    let held = |site: &Site| {
        let answer = Answer::of(site.curl("/copy/large").args(["--head", "--header", &unencoded]));
        assert!((200..300).contains(&answer.status), "{answer:?}");
        answer.field("upload-offset").parse::<usize>().unwrap()
    };
    assert_eq!(held(&site), 0);

    let half = contents.len() / 2;
    let mut tls = fake::connect(&site, &site.clients.client(PRINCIPAL));
    let head = format!(
        "POST /tinyscale/v1/copy/large HTTP/1.1\r\nHost: {SERVER_NAME}\r\n{unencoded}\r\nContent-Length: {}\r\n\r\n",
        contents.len()
    );
    tls.write_all(head.as_bytes()).unwrap();
    tls.write_all(&contents[..half]).unwrap();
    tls.flush().unwrap();
    drop(tls);

    // To ask while it is still received would end it where it stands.
    let end = wait_for("the server sees its end", SOON, || records(&site.server_log(), "end").pop());
    assert_eq!(end["code"], "network-lost");
    let offset = held(&site);
    assert!((1..=half).contains(&offset), "{offset}");
    assert!(!site.home.join("large").exists());
    let rest = site.local_file("rest", &contents[offset..]);
    let at = format!("Upload-Offset: {offset}");
    let answer = Answer::of(&mut curl_upload(&site, "large", &rest, &[&unencoded, &at]));
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.json()["size"], json!(contents.len()));
    assert!(fs::read(site.home.join("large")).unwrap() == contents);
    assert_eq!(site.names(), ["large"]);
}

#[test]
fn an_offset_that_is_not_held_is_refused() {
    let site = Site::start(&Plan::any());
    let file = site.local_file("file", b"rest");
    let unencoded = digest_field("Unencoded-Digest", b"the rest");
    let answer = Answer::of(&mut curl_upload(&site, "x", &file, &[&unencoded, "Upload-Offset: 4"]));
    answer.is_problem(400, "bad-request");
    Answer::of(&mut curl_upload(&site, "x", &file, &["Upload-Offset: 4"])).is_problem(400, "bad-request");
    assert_eq!(site.names(), Vec::<String>::new());
}

#[test]
fn a_wrong_method_is_405_with_allow() {
    let site = Site::start(&Plan::any());
    for (method, path, allow) in [
        ("GET", "/command", "POST"),
        ("PUT", "/stream", "POST"),
        ("DELETE", "/host", "GET, HEAD"),
        ("PUT", "/copy/x", "POST, HEAD"),
    ] {
        let answer = Answer::of(site.curl(path).args(["--request", method]));
        answer.is_problem(405, "bad-request");
        assert_eq!(answer.field("allow"), allow, "{method} {path}");
    }
}

#[test]
fn an_unknown_path_is_404() {
    let site = Site::start(&Plan::any());
    for path in ["", "/", "/commands", "/command/", "/copy", "//host", "/../v1/host"] {
        Answer::of(&mut site.curl(path)).is_problem(404, "bad-request");
    }
    Answer::of(&mut site.curl_to(SERVER_NAME, "/")).is_problem(404, "bad-request");
    Answer::of(&mut site.curl_to(SERVER_NAME, "/tinyscale/v2/host")).is_problem(404, "bad-request");
}

#[test]
fn a_missing_or_unknown_upgrade_is_426_with_what_is_spoken() {
    let site = Site::start(&Plan::any().host("targets = [\"tcp:127.0.0.1:*\"]"));
    let cases: [&[&str]; 4] = [
        &[],
        &["--header", "Upgrade: tstunnel/1"],
        &["--header", "Connection: Upgrade", "--header", "Upgrade: websocket"],
        &["--header", "Connection: Upgrade"],
    ];
    for fields in cases {
        for path in ["/command", "/stream"] {
            let answer = Answer::of(site.curl(path).args(["--data", "{\"command\": \"true\"}"]).args(fields));
            answer.is_problem(426, "bad-request");
            assert_eq!(answer.field("upgrade"), "tstunnel/1, tcp");
        }
    }
}

#[test]
fn a_body_that_is_no_command_is_400() {
    let site = Site::start(&Plan::any());
    for body in ["", "[]", "{}", "{\"command\": 7}", "{\"command\": \"\"}", "not JSON", "{\"command\": \"a\\u0000b\"}"]
    {
        let answer = Answer::of(site.curl("/command").args([
            "--data",
            body,
            "--header",
            "Connection: Upgrade",
            "--header",
            "Upgrade: tcp",
        ]));
        answer.is_problem(400, "bad-request");
    }
}

// --- openssl ------------------------------------------------------------------------------------------------------------

#[test]
fn openssl_s_client_runs_a_command_as_a_plain_stream() {
    let site = Site::start(&Plan::any());
    let endpoint = site.address().to_string();
    let mut client = site.command(program("openssl"));
    client
        .args([
            "s_client",
            "-quiet",
            "-no_ign_eof",
            "-verify_quiet",
            "-verify_return_error",
            "-tls1_3",
            "-connect",
            &endpoint,
        ])
        .args(["-servername", SERVER_NAME, "-CAfile", "servers-ca.crt", "-cert", "client.crt", "-key", "client.key"])
        .current_dir(&site.root)
        .stdin(Stdio::piped());
    let mut client = Watched::start(&mut client);
    let body = "{\"command\": \"read line; echo got $line; cat\"}";
    let length = body.len();
    let head = format!(
        "POST /tinyscale/v1/command HTTP/1.1\r\nHost: {SERVER_NAME}\r\n{ASKS_FOR_TCP}Content-Length: {length}\r\n\r\n"
    );
    // The request and what follows it in one write: those bytes belong to the stream already.
    client.write((head + body + "first\n").as_bytes());
    client.wait_for_output("got first\n");
    client.write(b"second\n");
    client.wait_for_output("second\n");
    let answer = String::from_utf8(client.stdout()).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 101 ") && answer.to_ascii_lowercase().contains("upgrade: tcp\r\n"),
        "{answer}"
    );
    let _ = client.wait();
    site.wait_until_idle();
}

#[test]
fn half_close_of_a_plain_stream_still_returns_traffic() {
    let site = Site::start(&Plan::any());
    let mut tls = fake::connect(&site, &site.clients.client(PRINCIPAL));
    let answer = fake::post(&mut tls, "/tinyscale/v1/command", ASKS_FOR_TCP, "{\"command\": \"sort; echo end\"}");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let count = 40_000;
    let lines: String = (0..count).rev().map(|number| format!("{number:08}\n")).collect();
    tls.write_all(lines.as_bytes()).unwrap();
    tls.conn.send_close_notify();
    tls.flush().unwrap();
    let mut sorted = String::new();
    tls.read_to_string(&mut sorted).unwrap();
    let expected: String = (0..count).map(|number| format!("{number:08}\n")).collect();
    assert!(sorted == expected + "end\n", "{} bytes came back", sorted.len());
}

// --- OpenSSH ------------------------------------------------------------------------------------------------------------

#[test]
fn openssh_reaches_a_real_sshd_through_connect() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    let mut site = site;
    let account = Account { home: &site.home, wrapper: None, uploads: true };
    let sshd = Sshd::start(folder.path(), &account);
    site.serve(&Plan::mutagen().host("targets = [\"tcp:127.0.0.1:*\"]"));
    let key = fs::read_to_string(folder.path().join("host_key.pub")).unwrap();
    let known = site.local_file("known_hosts", format!("sshd-behind {key}").as_bytes());
    let user = run(site.command(program("id")).arg("-un")).ok().text();
    let ssh = |words: &[&str]| {
        let mut command = site.command(program("ssh"));
        command
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=yes",
                "-o",
                "GlobalKnownHostsFile=none",
            ])
            .args(["-o", &format!("UserKnownHostsFile={}", text(&known)), "-o", "HostKeyAlias=sshd-behind"])
            .args([
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                &format!("IdentityFile={}", folder.path().join("client_key").display()),
            ])
            .args(["-o", &format!("ProxyCommand={TSTUNNEL} connect %h --target tcp:127.0.0.1:{}", sshd.port())])
            .args(["-l", user.trim(), HOST])
            .args(words);
        command
    };
    let ran = run(&mut ssh(&["echo out; echo err >&2; exit 7"]));
    assert_eq!((ran.code(), ran.text().as_str(), ran.stderr.as_str()), (Some(7), "out\n", "err\n"));
    let contents = prose(100_000);
    let ran = run_with_input(&mut ssh(&["tee copy | sha256sum"]), &contents).ok();
    assert!(ran.text().starts_with(&hex(&sha256(&contents))), "{}", ran.text());
    assert!(fs::read(site.home.join("copy")).unwrap() == contents);
}

/// A folder with a fake `ssh` and `scp` that write down their arguments, one a line.
fn fake_openssh(site: &Site, answer: &str) -> PathBuf {
    let folder = site.root.join("fake-openssh");
    fs::create_dir(&folder).unwrap();
    for name in ["ssh", "scp"] {
        let record = folder.join(format!("{name}.argv")).display().to_string();
        script::write(&folder.join(name), &format!("printf '%s\\n' \"$@\" >'{record}'\n{answer}"));
    }
    folder
}

fn path_of(folders: &[&Path]) -> std::ffi::OsString {
    std::env::join_paths(folders).unwrap()
}

#[test]
fn a_host_that_is_not_ours_goes_to_the_real_ssh_untouched() {
    let site = Site::start(&Plan::any());
    let real = fake_openssh(&site, "cat; echo err >&2; exit 42");
    let stand_ins = site.stand_ins();
    let path = path_of(&[&stand_ins, &real, Path::new("/bin")]);
    let args = ["-oConnectTimeout=5", "-p", "2222", "-T", "ann@elsewhere", "--", "a b", "", "it's"];
    let mut command = site.ssh(&args);
    let ran = run_with_input(command.env("PATH", &path), b"input");
    assert_eq!((ran.code(), ran.text().as_str(), ran.stderr.as_str()), (Some(42), "input", "err\n"));
    assert_eq!(fs::read_to_string(real.join("ssh.argv")).unwrap(), args.join("\n") + "\n");

    let args = ["-C", "-P", "2222", "file", "elsewhere:there"];
    let ran = run(site.scp(&args).env("PATH", &path));
    assert_eq!(ran.code(), Some(42), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(real.join("scp.argv")).unwrap(), args.join("\n") + "\n");

    // Ours does not, though it stands first.
    fs::remove_file(real.join("ssh.argv")).unwrap();
    assert_eq!(run(site.ssh(&[HOST, "echo mine"]).env("PATH", &path)).ok().text(), "mine\n");
    assert!(!real.join("ssh.argv").exists());
}

#[test]
fn what_names_no_host_goes_to_the_real_ssh() {
    let site = Site::start(&Plan::any());
    let ran = run(&mut site.ssh(&["-V"])).ok();
    assert!(ran.stderr.starts_with("OpenSSH"), "{}", ran.stderr);
    let ran = run(&mut site.ssh(&["-G", "elsewhere"])).ok();
    assert!(ran.text().contains("hostname elsewhere"), "{}", ran.text());
    let ran = run(&mut site.ssh(&["-oBatchMode=yes", "-oConnectTimeout=5", "-p", "1", "127.0.0.1", "true"]));
    assert_eq!(ran.code(), Some(255));
    assert!(ran.stderr.contains("ssh: connect to host 127.0.0.1 port 1: Connection refused"), "{}", ran.stderr);
}

#[test]
fn the_stand_in_never_hands_over_to_itself() {
    let site = Site::start(&Plan::any());
    let stand_ins = site.stand_ins();
    // Links, a link to a link, and a hard link are all the same program.
    let more = site.root.join("more");
    fs::create_dir(&more).unwrap();
    std::os::unix::fs::symlink(stand_ins.join("ssh"), more.join("ssh")).unwrap();
    std::os::unix::fs::symlink(stand_ins.join("scp"), more.join("scp")).unwrap();
    let path = path_of(&[&stand_ins, &more]);
    fails(site.ssh(&["elsewhere", "true"]).env("PATH", &path), 255, "config");
    fails(site.scp(&["file", "elsewhere:x"]).env("PATH", &path), 255, "config");
    fails(site.ssh(&["-V"]).env("PATH", &path), 255, "config");
    fails(site.ssh(&["elsewhere", "true"]).env_remove("PATH"), 255, "config");
}

// --- programs that run ssh ----------------------------------------------------------------------------------------------

/// git as the client's user, with no configuration but its own.
fn git(site: &Site, folder: &Path, args: &[&str]) -> Command {
    let mut command = site.command(program("git"));
    command
        .args(["-c", "user.name=Ann", "-c", "user.email=ann@tunnel.test", "-c", "init.defaultBranch=main"])
        .args(args)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .current_dir(folder);
    command
}

#[test]
fn git_clones_and_pushes() {
    let site = Site::start(&Plan::any());
    let ssh = site.stand_ins().join("ssh");
    let work = site.root.join("local");
    run(&mut git(&site, &site.home, &["init", "--quiet", "--bare", "repo.git"])).ok();
    run(&mut git(&site, &work, &["init", "--quiet", "origin"])).ok();
    let origin = work.join("origin");
    tree::generate(&origin.join("tree"), 200, 7);
    let url = format!("{HOST}:repo.git");
    run(&mut git(&site, &origin, &["add", "."])).ok();
    run(&mut git(&site, &origin, &["commit", "--quiet", "-m", "first"])).ok();
    run(git(&site, &origin, &["push", "--quiet", &url, "main"]).env("GIT_SSH", &ssh)).ok();

    // git splits this like a shell, and takes the first word for what it is called.
    let quoted = format!("'{}'", text(&ssh));
    run(git(&site, &work, &["clone", "--quiet", "--branch", "main", &url, "clone"]).env("GIT_SSH_COMMAND", &quoted))
        .ok();
    let clone = work.join("clone");
    fs::write(clone.join("new"), "new").unwrap();
    run(&mut git(&site, &clone, &["add", "."])).ok();
    run(&mut git(&site, &clone, &["commit", "--quiet", "-m", "second"])).ok();
    run(git(&site, &clone, &["push", "--quiet"]).env("GIT_SSH_COMMAND", &quoted)).ok();
    let long = format!("ssh://{HOST}{}/repo.git", text(&site.home));
    run(git(&site, &origin, &["pull", "--quiet", &long, "main"]).env("GIT_SSH", &ssh)).ok();
    assert_eq!(fs::read_to_string(origin.join("new")).unwrap(), "new");
    let head = |folder: &Path| run(&mut git(&site, folder, &["rev-parse", "main"])).ok().text();
    assert_eq!(head(&origin), head(&site.home.join("repo.git")));
    assert_eq!(head(&origin), head(&clone));
    run(&mut git(&site, &clone, &["fsck", "--strict"])).ok();

    let ran = run(git(&site, &work, &["clone", &format!("{HOST}:absent.git")]).env("GIT_SSH", &ssh));
    assert!(!ran.status.success() && ran.stderr.contains("does not appear to be a git repository"), "{}", ran.stderr);
}

#[test]
fn rsync_copies_a_few_hundred_files_both_ways() {
    let site = Site::start(&Plan::any());
    let ssh = site.stand_ins().join("ssh");
    let (source, back) = (site.root.join("local/source"), site.root.join("local/back"));
    tree::generate(&source, 300, 11);
    let rsync = |from: &str, to: &str| {
        let mut command = site.command(program("rsync"));
        command.args(["-a", "--delete", "-e", text(&ssh), from, to]);
        run(&mut command).ok()
    };
    let remote = format!("{HOST}:copy/");
    rsync(&format!("{}/", text(&source)), &remote);
    rsync(&remote, &format!("{}/", text(&back)));
    let mut diff = site.command(program("diff"));
    run(diff.args(["-r", "--no-dereference", text(&source), text(&site.home.join("copy"))])).ok();
    let mut diff = site.command(program("diff"));
    run(diff.args(["-r", "--no-dereference", text(&source), text(&back)])).ok();
}

#[test]
fn a_docker_clients_argv_reaches_dial_stdio() {
    let site = Site::start(&Plan::any());
    let bin = site.home.join("bin");
    fs::create_dir(&bin).unwrap();
    script::write(&bin.join("docker"), "[ \"$*\" = 'system dial-stdio' ] || exit 64\nexec cat");
    // As `docker -H ssh://host` runs it; the program's name is a shell's affair on the host.
    let remote = format!("PATH={}:$PATH; docker system dial-stdio", text(&bin));
    for words in [&["docker", "system", "dial-stdio"][..], &[&remote]] {
        let is_plain = words.len() > 1;
        let mut command = site.ssh(&["-o", "ConnectTimeout=30", "-T", "--", HOST]);
        if is_plain {
            // Without a docker in the server's PATH: by its path.
            command.arg(text(&bin.join("docker"))).args(&words[1..]);
        } else {
            command.args(words);
        }
        let ran = run_with_input(&mut command, b"GET /_ping HTTP/1.1\r\n\r\n").ok();
        assert_eq!(ran.text(), "GET /_ping HTTP/1.1\r\n\r\n");
    }
}

#[test]
fn a_docker_clients_connection_is_a_stream_to_the_socket() {
    let mut site = Site::new();
    let socket = site.root.join("docker.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let (mut reader, mut writer) = (connection.try_clone().unwrap(), connection);
            thread::spawn(move || {
                let _ = io::copy(&mut reader, &mut writer);
                let _ = writer.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    site.serve(&Plan::mutagen().host(&format!("targets = [\"unix:{}\"]", text(&socket))));
    let contents = prose(100_000);
    for args in [&["connect", HOST][..], &["connect", "--raw", HOST]] {
        let ran = run_with_input(&mut site.tstunnel(args), &contents).ok();
        assert!(ran.stdout == contents, "{args:?}: {} bytes of {}", ran.stdout.len(), contents.len());
    }
    // `ssh -W` takes TCP targets alone, which this host does not allow.
    fails(&mut site.ssh(&["-W", "127.0.0.1:22", HOST]), 255, "command-denied");
}

// --- other implementations ----------------------------------------------------------------------------------------------

#[test]
fn a_client_that_speaks_only_tcp_and_another_upgrade_base_is_served() {
    let site = Site::start(&Plan::any().top("upgrade_base = \"/tinyscale/v1/host-exec\"").host("shell = false"));
    let ann = site.clients.client(PRINCIPAL);
    let path = "/tinyscale/v1/host-exec/command";
    let body = json!({"command": "sh", "args": ["-c", "echo \"$LC_TEST:$SECRET:$1\"; cat", "sh", "a  b"],
        "envs": ["LC_TEST=yes", "SECRET=no", "malformed"]});
    let mut tls = fake::connect(&site, &ann);
    let answer = fake::post(&mut tls, path, ASKS_FOR_TCP, &body.to_string());
    assert!(
        answer.starts_with("HTTP/1.1 101 ") && answer.to_ascii_lowercase().contains("upgrade: tcp\r\n"),
        "{answer}"
    );
    assert!(!answer.to_ascii_lowercase().contains("tstunnel-"), "{answer}");
    tls.write_all(b"through").unwrap();
    tls.conn.send_close_notify();
    tls.flush().unwrap();
    let mut said = String::new();
    tls.read_to_string(&mut said).unwrap();
    assert_eq!(said, "yes::a  b\nthrough");

    for (command, status) in [("no-such-program", "404"), ("./not-executable", "403")] {
        fs::write(site.home.join("not-executable"), "#!/bin/sh\n").unwrap();
        let mut tls = fake::connect(&site, &ann);
        let body = json!({"command": command, "args": [], "envs": []});
        let answer = fake::post(&mut tls, path, ASKS_FOR_TCP, &body.to_string());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[test]
fn a_server_that_chooses_tcp_is_understood() {
    let site = Site::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let server = https_server(&site.servers.server(&[SERVER_NAME]), move |tls, request| {
        seen.lock().unwrap().push((request.head.clone(), request.body.clone()));
        tls.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: tcp\r\n\r\nat once,")?;
        let mut input = Vec::new();
        tls.read_to_end(&mut input)?;
        tls.write_all(&input)?;
        finish(tls)
    });
    site.configure(server, "upgrade_base = \"/tinyscale/v1/host-exec\"");
    let mut command = site.exec(&["sh", "-c", "cat"]);
    let ran = run_with_input(command.env("LC_TEST", "yes"), b" and then").ok();
    assert_eq!((ran.text().as_str(), ran.stderr.as_str()), ("at once, and then", ""));
    let (head, body) = asked.lock().unwrap().remove(0);
    assert!(head.starts_with("POST /tinyscale/v1/host-exec/command HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Upgrade: tstunnel/1, tcp\r\n") && head.contains("Connection: Upgrade\r\n"), "{head}");
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["command"], &body["args"]), (&json!("sh"), &json!(["-c", "cat"])));
    assert_eq!(body["env"]["LC_TEST"], "yes");
}

#[test]
fn a_client_whose_every_connection_is_cut_before_it_has_carried_anything_comes_back_less_and_less_often() {
    let site = Site::new();
    let (heard, resumes) = std::sync::mpsc::channel();
    let server = https_server(&site.servers.server(&[SERVER_NAME]), move |tls, request| {
        let more = if request.head.contains("/resume ") {
            heard.send(Instant::now()).unwrap();
            "tstunnel-received: 0"
        } else {
            "tstunnel-session: a.b\r\ntstunnel-grace: 60"
        };
        let answer =
            format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: tstunnel/1\r\n{more}\r\n\r\n");
        tls.write_all(answer.as_bytes())?;
        hang_up(tls)
    });
    site.configure(server, "");
    let _client = Watched::start(site.exec(&["cat"]).stdin(Stdio::piped()));
    let times: Vec<Instant> = (0..8).map(|_| resumes.recv_timeout(SOON).unwrap()).collect();
    // By then the pauses alone are half of 3 seconds at least.
    let took = times[7] - times[0];
    assert!(took > Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_bare_status_of_a_server_that_speaks_only_tcp_is_a_shells_status() {
    for (status, expected, code) in [
        ("404 Not Found", 127, "agent-missing"),
        ("403 Forbidden", 126, "agent-not-executable"),
        ("500 Internal Server Error", 255, "not-tstunnel"),
    ] {
        let site = Site::new();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nnope\n");
        let server = https_server(&site.servers.server(&[SERVER_NAME]), move |tls, _| {
            tls.write_all(answer.as_bytes())?;
            finish(tls)
        });
        site.configure(server, "");
        fails(&mut site.exec(&["ls"]), expected, code);
        fails(&mut site.ssh(&[HOST, "ls"]), expected, code);
        // What was asked for was no program.
        fails(&mut site.tstunnel(&["connect", HOST]), 255, "not-tstunnel");
    }
}

// --- streams ------------------------------------------------------------------------------------------------------------

#[test]
fn a_target_that_ends_first_and_one_that_ends_last_are_both_whole() {
    let contents = prose(50_000);
    let sent = contents.clone();
    // Says everything at once, ends its direction, and counts what still comes.
    let (sender, counts) = std::sync::mpsc::channel();
    let target = tcp_server(move |mut connection| {
        connection.write_all(&sent).unwrap();
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = sender.send(io::copy(&mut connection, &mut io::sink()).unwrap());
    });
    let site = Site::start(&Plan::mutagen().host("targets = [\"tcp:127.0.0.1:*\"]"));
    let target = format!("tcp:{target}");
    for raw in [&["--raw"][..], &[]] {
        let mut command = site.tstunnel(&["connect", HOST, "--target", &target]);
        let mut child = Watched::start(command.args(raw).stdin(Stdio::piped()));
        child.write(&contents[..1000]);
        wait_until("everything has come", SOON, || child.stdout().len() == contents.len());
        assert!(contains(&child.stdout(), &contents));
        let ran = child.wait();
        assert_eq!(ran.code(), Some(0), "{raw:?}: {}", ran.stderr);
        assert_eq!(counts.recv_timeout(SOON).unwrap(), 1000, "{raw:?}");
    }
}

#[test]
fn a_stream_ends_whose_target_has_ended_its_direction_and_whose_client_says_nothing_more() {
    let (sender, counts) = std::sync::mpsc::channel();
    let target = tcp_server(move |mut connection| {
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = sender.send(io::copy(&mut connection, &mut io::sink()).unwrap());
    });
    let site = Site::start(&Plan::mutagen().host("targets = [\"tcp:127.0.0.1:*\"]"));
    let target = format!("tcp:{target}");
    let mut child = Watched::start(site.tstunnel(&["connect", HOST, "--target", &target]).stdin(Stdio::piped()));
    child.write(&[7; 1000]);
    let _stdin = child.stdin();
    assert_eq!(child.wait().code(), Some(0));
    assert_eq!(counts.recv_timeout(SOON).unwrap(), 1000);
}

#[test]
fn a_target_that_resets_is_status_one() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = format!("tcp:{}", listener.local_addr().unwrap());
    let resetting = thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        connection.read_exact(&mut [0; 5]).unwrap();
        // Closing at once with a linger of zero is a reset.
        rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO)).unwrap();
    });
    let site = Site::start(&Plan::mutagen().host("targets = [\"tcp:127.0.0.1:*\"]"));
    let mut child = Watched::start(site.tstunnel(&["connect", HOST, "--target", &target]).stdin(Stdio::piped()));
    child.write(b"hello");
    resetting.join().unwrap();
    let _stdin = child.stdin();
    assert_eq!(child.wait().code(), Some(1));
}

#[test]
fn a_server_that_stops_does_not_wait_for_a_stream_that_has_ended_and_whose_client_is_away() {
    let mut site = Site::start(&Plan::mutagen().host("targets = [\"tcp:127.0.0.1:*\"]"));
    let ann = site.clients.client(PRINCIPAL);
    fake::leave_a_stream_that_has_ended(&site, &ann);
    site.server().signal(Signal::TERM);
    wait_until("the server ends", SOON, || site.server().ended().is_some());
    assert!(!site.server_log().contains("not ended in time"), "{}", site.server_log());
    let ends = records(&site.server_log(), "end");
    assert_eq!(ends.iter().map(|end| &end["reason"]).collect::<Vec<_>>(), ["the server stops"]);
}

#[test]
fn a_url_that_plain_mutagen_takes_for_a_host_is_told_to_need_tstunnel_mutagen() {
    let site = Site::new();
    site.configure("127.0.0.1:1", "");
    for (name, is_told) in [("tstunnel", true), ("elsewhere", false)] {
        let ran = run(&mut site.ssh(&["-F", "none", "-o", "HostName=127.0.0.1", "-p", "1", name, "true"]));
        assert_eq!(ran.code(), Some(255), "the real ssh has failed: {}", ran.stderr);
        assert_eq!(ran.stderr.contains("say `tstunnel mutagen` in place of `mutagen`"), is_told, "{}", ran.stderr);
    }
}

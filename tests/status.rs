//! `tstunnel status` shows the tunnels that are there, to their account alone, and costs them nothing.
//!
//! Tunnels of other tests may run on the same machine under the same account, so every test looks for its own processes.
//! Needs root, to become somebody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::process::program;
use support::remote::{Remote, Setup, Transport};
use support::script;
use support::serve::TSTUNNEL;
use support::wait::{SOON, wait_for, wait_until};
use support_net::fake::{finish, upload_server};
use support_net::site::{HOST, SERVER_NAME, Site};

/// How long `status` may take where some do not answer: its own second, and a machine with other work to do.
const BOUNDED: Duration = Duration::from_secs(10);

/// A client whose command sends back what it is told.
struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
}

impl Client {
    fn start(remote: &Remote, options: &[&str]) -> Client {
        let mut child = Command::new(TSTUNNEL)
            .arg("exec")
            .args(options)
            .args([remote.host(), "--", "cat", "-u"])
            .envs(remote.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        Client { child, stdin, stdout }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    #[track_caller]
    fn echo(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        self.stdout.read_exact(&mut back).unwrap();
        assert!(back == bytes);
    }

    /// What `status` says of it, once its process has had the time to answer.
    #[track_caller]
    fn row(&self) -> Value {
        wait_for("the client answers", SOON, || row(self.pid()))
    }

    /// The names that its process listens on, less the NUL.
    fn names(&self) -> Vec<String> {
        let prefix = format!("@tstunnel/{}/{}/", rustix::process::geteuid().as_raw(), self.pid());
        let table = std::fs::read_to_string("/proc/net/unix").unwrap();
        let paths = table.lines().filter_map(|line| line.split_ascii_whitespace().nth(7));
        let mut names: Vec<String> =
            paths.filter(|path| path.starts_with(&prefix)).map(|path| path[1..].into()).collect();
        names.dedup();
        names
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect_addr(&address(&self.names()[0])).unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn remote() -> Remote {
    Setup::new(Transport::Tstunnel).with_any_command().start()
}

fn address(name: &str) -> SocketAddr {
    SocketAddr::from_abstract_name(name).unwrap()
}

fn status(options: &[&str]) -> Output {
    Command::new(TSTUNNEL).arg("status").args(options).output().unwrap()
}

#[track_caller]
fn rows() -> Vec<Value> {
    let output = status(&["--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn row(pid: u32) -> Option<Value> {
    rows().into_iter().find(|row| row["pid"] == pid)
}

/// A process's line of the table, with single spaces, once it has had the time to answer.
#[track_caller]
fn line(pid: u32) -> String {
    let pid = pid.to_string();
    wait_for("the process has a line", SOON, || {
        let table = String::from_utf8(status(&[]).stdout).unwrap();
        let line = table.lines().find(|line| line.split_ascii_whitespace().any(|word| word == pid))?;
        assert!(table.starts_with("HOST "), "{table}");
        Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
    })
}

/// Runs a program as an account that owns nothing.
fn as_stranger(program_to_run: impl AsRef<std::ffi::OsStr>) -> Command {
    assert!(rustix::process::geteuid().is_root(), "these tests need root, to become somebody else");
    let mut command = Command::new(program("setpriv"));
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program_to_run);
    command
}

/// What a session would tell, in the words of the first version that did.
fn forged(pid: u32) -> String {
    json!({
        "pid": pid, "host": "forged", "endpoint": "forged:1", "command": "forged", "started": 0, "age_seconds": 0,
        "sent_bytes": 0, "received_bytes": 0, "round_trip_ms": null, "state": "connected", "interruptions": 0,
        "last_interruption": null,
    })
    .to_string()
}

#[test]
fn live_session_is_listed_with_its_bytes() {
    let remote = remote();
    let mut client = Client::start(&remote, &[]);
    client.echo(b"hello");

    let row = client.row();
    assert_eq!(row["host"], remote.host());
    assert_eq!(row["command"], "cat -u");
    assert_eq!((&row["sent_bytes"], &row["received_bytes"]), (&json!(5), &json!(5)));
    assert_eq!((&row["state"], &row["interruptions"]), (&json!("connected"), &json!(0)));
    assert_eq!(row["last_interruption"], Value::Null);
    assert!(row["endpoint"].as_str().unwrap().starts_with("127.0.0.1:"), "{row}");
    assert!(row["age_seconds"].as_u64().unwrap() < 60, "{row}");
    assert!(row["started"].as_str().unwrap().ends_with('Z'), "{row}");
    assert_eq!(row["kind"], "session");
    assert!(row["silence_seconds"].as_u64().unwrap() < 60, "{row}");
    assert_eq!(row.as_object().unwrap().len(), 14);

    let line = line(client.pid());
    // Whether the path has been measured by now is chance.
    let (bytes, rest) = line.split_once(" 5 B 5 B ").unwrap_or_else(|| panic!("{line}"));
    assert!(bytes.starts_with("host"), "{line}");
    assert!(rest.ends_with(" connected 0 cat -u"), "{line}");
    assert!(rest.starts_with("- ") || rest.contains(" ms connected "), "{line}");

    client.echo(&vec![b'x'; 1 << 20]);
    assert_eq!(client.row()["received_bytes"], (1 << 20) + 5);
}

#[test]
fn stream_without_frames_is_listed_too() {
    let remote = remote();
    let mut client = Client::start(&remote, &["--raw"]);
    client.echo(b"hello");
    let row = client.row();
    assert_eq!((&row["sent_bytes"], &row["received_bytes"]), (&json!(5), &json!(5)));
    assert_eq!((&row["round_trip_ms"], &row["silence_seconds"]), (&Value::Null, &Value::Null));
}

#[test]
fn upload_is_listed_with_what_has_been_sent_of_it() {
    const SIZE: u64 = 64 << 20;
    const TAKEN: u64 = 1 << 20;
    let site = Site::new();
    let (go, going) = mpsc::channel::<()>();
    let going = Mutex::new(going);
    let server = upload_server(&site.servers.server(&[SERVER_NAME]), move |tls, _| {
        tls.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        io::copy(&mut tls.take(TAKEN), &mut io::sink())?;
        let _ = going.lock().unwrap().recv();
        io::copy(&mut tls.take(SIZE - TAKEN), &mut io::sink())?;
        tls.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")?;
        finish(tls)
    });
    site.configure(server, "");
    File::create(site.root.join("file")).unwrap().set_len(SIZE).unwrap();
    let file = site.root.join("file");
    let words = ["upload", "--no-compress", file.to_str().unwrap(), &format!("{HOST}:a name")];
    let mut uploading = site.tstunnel(&words).spawn().unwrap();
    let listed = wait_for("some of it has been sent", SOON, || {
        row(uploading.id()).filter(|row| row["sent_bytes"].as_u64().unwrap() >= TAKEN)
    });
    assert_eq!(
        (&listed["kind"], &listed["host"], &listed["command"]),
        (&json!("upload"), &json!(HOST), &json!("upload:a name"))
    );
    assert_eq!((&listed["state"], &listed["interruptions"]), (&json!("connected"), &json!(0)));
    assert_eq!((&listed["received_bytes"], &listed["silence_seconds"]), (&json!(0), &Value::Null));
    assert!(listed["sent_bytes"].as_u64().unwrap() < SIZE, "{listed}");
    let line = line(uploading.id());
    assert!(line.ends_with(" 0 B - connected 0 upload:a name"), "{line}");

    go.send(()).unwrap();
    assert!(uploading.wait().unwrap().success());
    assert_eq!(row(uploading.id()), None);
}

#[test]
fn upload_that_waits_for_the_network_is_interrupted() {
    let remote = Setup::new(Transport::Tstunnel).with_any_command().behind_relay().start();
    let relay = remote.relay();
    // So that it takes more than three seconds, by the pauses alone.
    relay.cut_after(Some(1_000_000));
    let file = remote.folder().join("file");
    File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let mut uploading = Command::new(TSTUNNEL)
        .args(["upload", "--no-compress", file.to_str().unwrap(), &format!("{}:name", remote.host())])
        .envs(remote.environment())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let sent = |row: &Value| row["sent_bytes"].as_u64().unwrap();
    wait_until("some of it has been sent", SOON, || row(uploading.id()).is_some_and(|row| sent(&row) > 0));
    relay.refuse(true);
    let row =
        wait_for("the upload is interrupted", SOON, || row(uploading.id()).filter(|row| row["state"] == "interrupted"));
    assert!(row["last_interruption"].is_string() && sent(&row) > 0, "{row}");

    relay.cut_after(None);
    relay.refuse(false);
    assert!(uploading.wait().unwrap().success());
    assert_eq!(remote.home().join("name").metadata().unwrap().len(), 64 << 20);
}

#[test]
fn silence_of_a_server_is_told_while_it_lasts() {
    let remote = Setup::new(Transport::Tstunnel).with_any_command().behind_relay().start();
    let mut client = Client::start(&remote, &[]);
    client.echo(b"before");
    let silence = |client: &Client| client.row()["silence_seconds"].as_u64().unwrap();
    remote.relay().darken(true);
    wait_until("nothing has been heard for two seconds", SOON, || silence(&client) >= 2);
    remote.relay().darken(false);
    wait_until("it is told to be over", SOON, || {
        client.echo(b"after");
        silence(&client) < 2
    });
}

#[test]
fn interruption_is_shown_while_it_lasts_and_after() {
    let remote = Setup::new(Transport::Tstunnel).with_any_command().behind_relay().start();
    let mut client = Client::start(&remote, &[]);
    client.echo(b"before");

    remote.relay().refuse(true);
    remote.relay().cut();
    let row =
        wait_for("the session is interrupted", SOON, || row(client.pid()).filter(|row| row["state"] == "interrupted"));
    assert_eq!(row["interruptions"], 0);
    let since = row["last_interruption"].clone();
    assert!(since.is_string(), "{row}");

    remote.relay().refuse(false);
    client.echo(b"after");
    let row = client.row();
    assert_eq!((&row["state"], &row["interruptions"]), (&json!("connected"), &json!(1)));
    assert_eq!(row["last_interruption"], since);
    assert_eq!(row["sent_bytes"], 11);
}

#[test]
fn killed_client_leaves_nothing() {
    let remote = remote();
    let mut client = Client::start(&remote, &[]);
    client.echo(b"hello");
    assert_eq!(client.names().len(), 1);
    client.child.kill().unwrap();
    client.child.wait().unwrap();
    assert_eq!(client.names(), Vec::<String>::new());
    assert_eq!(row(client.pid()), None);
}

#[test]
fn ended_session_is_gone() {
    let remote = remote();
    let mut client = Client::start(&remote, &[]);
    client.echo(b"hello");
    drop(client.stdin.take());
    assert!(client.child.wait().unwrap().success());
    assert_eq!(row(client.pid()), None);
}

#[test]
fn another_account_sees_nothing_and_is_told_nothing() {
    let remote = remote();
    let mut client = Client::start(&remote, &[]);
    client.echo(b"hello");

    // The build's folder may be closed to others.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let everyones = folder.path().join("tstunnel");
    script::install(Path::new(TSTUNNEL), &everyones);
    let output = as_stranger(&everyones).arg("status").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(output.stdout, b"no tunnels\n");
    let output = as_stranger(&everyones).args(["status", "--json"]).output().unwrap();
    assert_eq!(output.stdout, b"[]\n");

    let asked =
        as_stranger(program("socat")).args(["-u", &format!("ABSTRACT-CONNECT:{}", client.names()[0]), "-"]).output();
    let asked = asked.unwrap();
    assert!(asked.status.success() && asked.stdout.is_empty(), "{asked:?}");

    client.echo(b"again");
    assert_eq!(client.row()["sent_bytes"], 10, "the session answers its own account as before");
}

#[test]
fn another_account_that_takes_a_name_is_not_believed() {
    let me = std::process::id();
    let name = format!("tstunnel/0/{me}/stranger");
    let said = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&said, forged(1)).unwrap();
    std::fs::set_permissions(&said, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut squatter = as_stranger(program("socat"))
        .arg("-U")
        .args([&format!("ABSTRACT-LISTEN:{name},fork"), &format!("OPEN:{},rdonly", said.path().display())])
        .spawn()
        .unwrap();
    let listens = || std::fs::read_to_string("/proc/net/unix").unwrap().contains(&format!("@{name}"));
    wait_until("the stranger listens", SOON, listens);

    let output = status(&["--json"]);
    assert!(output.status.success());
    let told = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    assert!(!told.contains("forged"), "{told}");

    squatter.kill().unwrap();
    squatter.wait().unwrap();
}

#[test]
fn name_of_another_process_is_not_believed() {
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let listener = UnixListener::bind_addr(&address(&format!("tstunnel/0/{}/x", sleeper.id()))).unwrap();
    listener.set_nonblocking(true).unwrap();
    let output = status(&["--json"]);
    assert!(output.status.success());
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(rows.iter().all(|row| row["pid"] != sleeper.id()), "{rows:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains(&format!("process {} ", sleeper.id())), "{said}");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn process_that_does_not_answer_holds_nobody_up() {
    let remote = remote();
    let mut client = Client::start(&remote, &[]);
    client.echo(b"hello");
    let me = std::process::id();
    let _silent = UnixListener::bind_addr(&address(&format!("tstunnel/0/{me}/silent"))).unwrap();
    let endless = UnixListener::bind_addr(&address(&format!("tstunnel/0/{me}/endless"))).unwrap();
    std::thread::spawn(move || {
        for mut stream in endless.incoming().flatten() {
            std::thread::spawn(move || while stream.write_all(&[b' '; 65_536]).is_ok() {});
        }
    });
    // One that waits fills the place for one.
    let full = format!("tstunnel/0/{me}/full");
    let name = rustix::net::SocketAddrUnix::new_abstract_name(full.as_bytes()).unwrap();
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &name).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let _waiting = UnixStream::connect_addr(&address(&full)).unwrap();

    let begun = Instant::now();
    let output = status(&["--json"]);
    assert!(begun.elapsed() < BOUNDED, "{:?}", begun.elapsed());
    assert!(output.status.success(), "{output:?}");
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(rows.iter().all(|row| row["pid"] != me), "{rows:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches(&format!("process {me} has a tunnel, but gives no answer")).count(), 2, "{said}");
    assert_eq!(client.row()["sent_bytes"], 5, "whoever answers is listed beside them");
}

#[test]
fn twenty_sessions_are_listed_at_once() {
    let remote = remote();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::start(&remote, &[])).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.echo(&vec![b'x'; index + 1]);
    }
    let listed = wait_for("one listing has them all", SOON, || {
        let rows = rows();
        let of = |client: &Client| rows.iter().find(|row| row["pid"] == client.pid()).cloned();
        clients.iter().map(of).collect::<Option<Vec<Value>>>()
    });
    for (index, row) in listed.iter().enumerate() {
        assert_eq!(row["sent_bytes"], index + 1);
    }
}

#[test]
fn whoever_asks_and_never_reads_does_not_hold_the_session_up() {
    let remote = remote();
    let mut client = Client::start(&remote, &[]);
    client.echo(b"hello");
    let unread: Vec<UnixStream> = (0..100).map(|_| client.connect()).collect();
    client.echo(&vec![b'x'; 1 << 20]);
    assert_eq!(client.row()["sent_bytes"], (1 << 20) + 5);
    let name = client.names();
    drop(unread);
    wait_until("it still listens, and answers", SOON, || client.names() == name && row(client.pid()).is_some());
    client.echo(b"again");
}

//! A server is replaced by another process: nobody is refused, no session ends, and what concerns sessions reaches them wherever they
//! are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the figures of an exchange")]

mod support;
mod support_net;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use support::pki::{Identity, Validity};
use support::process::{self, Signal};
use support::relay::Relay;
use support::script;
use support::serve::{Server, TSTUNNEL};
use support::wait::{SOON, wait_for, wait_until};
use support_net::child::{Watched, run};
use support_net::fake;
use support_net::report::error_line;
use support_net::site::{PRINCIPAL, Plan, SERVER_NAME, Site};

const SESSIONS: usize = 50;
/// Bytes that a session echoes at a time.
const ROUND_BYTES: usize = 2048;

/// A site where nothing happens by itself, whose clients can be led through a relay.
struct Replaced {
    site: Site,
    relay: Relay,
    client: Identity,
}

impl Replaced {
    fn start(plan: Plan) -> Replaced {
        let mut site = Site::new();
        let client = site.clients.client(PRINCIPAL);
        site.write(&client, "client");
        fs::write(site.root.join("clients.crl"), site.clients.revoke(&[], Validity::Now)).unwrap();
        let limits = "max_sessions_per_principal = 128\nmax_handshakes = 128";
        site.serve(&plan.top("watch = false\ncrl = [\"clients.crl\"]").limit(limits));
        let relay = Relay::to(site.address());
        site.configure(relay.address(), "");
        fs::copy(site.configuration(), site.root.join("relayed.toml")).unwrap();
        site.configure(site.address(), "");
        Replaced { site, relay, client }
    }

    /// `cat` on the host, reached through the relay or not.
    fn cat(&self, relayed: bool) -> Watched {
        let mut command = self.site.exec(&["echo here; exec cat"]);
        if relayed {
            command.env("TSTUNNEL_CONFIG", self.site.root.join("relayed.toml"));
        }
        let mut session = Watched::start(command.env("TSTUNNEL_LOG", "info").stdin(Stdio::piped()));
        session.wait_for_output("here\n");
        session
    }

    fn sockets(&self) -> Vec<PathBuf> {
        let folder = self.site.root.join("run");
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

/// How often a client says that it has gone on.
fn resumes(session: &Watched) -> usize {
    session.stderr().matches("resumed milliseconds=").count()
}

#[track_caller]
fn assert_echoes(session: &mut Watched, word: &str) {
    session.write(format!("{word}\n").as_bytes());
    session.wait_for_output(&format!("{word}\n"));
}

/// Cuts the relayed connections, and waits until `session` has gone on.
#[track_caller]
fn cut(replaced: &Replaced, session: &Watched) {
    let before = resumes(session);
    replaced.relay.reset();
    wait_until("the session goes on", SOON, || resumes(session) > before);
}

#[track_caller]
fn assert_ends_well(server: &mut Server) {
    let status = wait_for("the server ends", SOON, || server.ended());
    assert!(status.success(), "{status}\n{}", server.log());
}

/// What a session sends in one round.
fn block(session: usize, round: usize) -> Vec<u8> {
    (0..ROUND_BYTES).map(|place| (session * 31 + round * 7 + place) as u8).collect()
}

#[test]
fn server_is_replaced_under_fifty_live_sessions_of_which_half_resume() {
    let mut replaced = Replaced::start(Plan::any());
    let address = replaced.site.address();
    let (over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let resumed = [const { AtomicUsize::new(0) }; SESSIONS];
    let mut before = None;
    let (mut accepted, mut commands) = (0, 0);
    thread::scope(|scope| {
        let (over, rounds, resumed) = (&over, &rounds, &resumed);
        let mut sessions: Vec<Watched> = Vec::new();
        for group in 0..5 {
            let replaced = &replaced;
            let starting: Vec<_> =
                (0..SESSIONS / 5).map(|number| scope.spawn(move || replaced.cat((group + number) % 2 == 0))).collect();
            sessions.extend(starting.into_iter().map(|session| session.join().unwrap()));
        }
        let relayed = sessions.iter().enumerate().filter(|(number, _)| (number / 10 + number % 10) % 2 == 0).count();
        assert_eq!(relayed, SESSIONS / 2);
        // A client that is slow to load its files leaves a connection, and makes another.
        wait_until("half of them are relayed", SOON, || replaced.relay.open() == SESSIONS / 2);
        let echoing: Vec<_> = sessions
            .into_iter()
            .enumerate()
            .map(|(number, mut session)| {
                scope.spawn(move || {
                    let mut sent = b"here\n".to_vec();
                    for round in 0.. {
                        if over.load(Ordering::SeqCst) {
                            break;
                        }
                        let block = block(number, round);
                        session.write(&block);
                        sent.extend(block);
                        wait_until("what was sent comes back", SOON, || session.stdout_bytes() >= sent.len());
                        rounds.fetch_add(1, Ordering::SeqCst);
                        resumed[number].store(resumes(&session), Ordering::SeqCst);
                    }
                    let ran = session.wait().ok();
                    assert!(ran.stdout == sent, "session {number}: {} bytes of {}", ran.stdout.len(), sent.len());
                    sent.len()
                })
            })
            .collect();
        let (site, client) = (&replaced.site, &replaced.client);
        let connecting = scope.spawn(move || {
            let mut count = 0;
            while !over.load(Ordering::SeqCst) {
                let mut tls = fake::connect(site, client);
                tls.write_all(format!("GET /tinyscale/v1/host HTTP/1.1\r\nHost: {SERVER_NAME}\r\n\r\n").as_bytes())
                    .unwrap();
                let mut answer = [0; 12];
                tls.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"HTTP/1.1 200");
                count += 1;
            }
            count
        });
        let commanding = scope.spawn(move || {
            let mut count = 0;
            while !over.load(Ordering::SeqCst) {
                assert_eq!(run(&mut site.exec(&["echo new"])).ok().text(), "new\n");
                count += 1;
            }
            count
        });
        let more = |rounds: &AtomicUsize| {
            let reached = rounds.load(Ordering::SeqCst) + 2 * SESSIONS;
            wait_until("bytes move", SOON, || rounds.load(Ordering::SeqCst) >= reached);
        };
        // Another reset before would be one with the last for whoever is slow.
        let all_go_on = |times: usize| {
            let has_gone_on = |session: &&AtomicUsize| session.load(Ordering::SeqCst) >= times;
            let what = format!("each of the relayed has gone on {times} times");
            wait_until(&what, SOON, || resumed.iter().filter(has_gone_on).count() == SESSIONS / 2);
        };
        more(rounds);
        // They are on their way back when the new process comes.
        replaced.relay.reset();
        let server = Command::new(TSTUNNEL)
            .args(["serve", "--config"])
            .arg(site.root.join("server.toml"))
            .env("RUNTIME_DIRECTORY", site.root.join("run"))
            .stderr(fs::File::create(site.root.join("after.log")).unwrap())
            .spawn();
        let log = || fs::read_to_string(site.root.join("after.log")).unwrap();
        before = Some(server.unwrap());
        wait_until("the new process takes over", SOON, || log().contains("took over from process"));
        all_go_on(1);
        more(rounds);
        // From here on there is no way back but through it.
        replaced.relay.reset();
        all_go_on(2);
        more(rounds);
        over.store(true, Ordering::SeqCst);
        (accepted, commands) = (connecting.join().unwrap(), commanding.join().unwrap());
        let bytes: usize = echoing.into_iter().map(|session| session.join().unwrap()).sum();
        println!(
            "{SESSIONS} sessions, {bytes} bytes each way, {accepted} connections and {commands} commands meanwhile"
        );
    });
    assert!(accepted > 0 && commands > 0);
    // The old one has nothing left to do; the new one goes on.
    assert_ends_well(replaced.site.server());
    assert!(replaced.site.server().log().contains("the last session has ended"));
    assert_eq!(replaced.site.address(), address);
    assert_eq!(run(&mut replaced.site.exec(&["echo new"])).ok().text(), "new\n");
    let mut after = before.unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&after), Signal::TERM).unwrap();
    assert!(after.wait().unwrap().success());
    assert_eq!(replaced.sockets(), Vec::<PathBuf>::new());
}

#[test]
fn session_survives_three_generations_and_each_ends_by_itself() {
    let mut replaced = Replaced::start(Plan::any());
    let mut first = replaced.cat(true);
    let mut oldest = replaced.site.server().succeed();
    cut(&replaced, &first);
    let mut second = replaced.cat(true);
    let mut middle = replaced.site.server().succeed();
    replaced.relay.reset();
    wait_until("both go on", SOON, || resumes(&first) == 2 && resumes(&second) == 1);
    for (session, word) in [(&mut first, "one"), (&mut second, "two")] {
        assert_echoes(session, word);
    }
    assert_eq!(replaced.sockets().len(), 3);
    drop(second.stdin());
    assert_eq!(second.wait().ok().text(), "here\ntwo\n");
    // The oldest lives as long as its own session.
    assert_ends_well(&mut middle);
    assert_echoes(&mut first, "still here");
    assert!(oldest.ended().is_none());
    drop(first.stdin());
    assert_eq!(first.wait().ok().text(), "here\none\nstill here\n");
    assert_ends_well(&mut oldest);
    assert_eq!(replaced.sockets().len(), 1);
}

#[test]
fn half_close_and_exit_status_pass_through_the_successor() {
    let mut replaced = Replaced::start(Plan::any());
    let mut command = replaced.site.exec(&["echo here; wc -c; exit 7"]);
    command.env("TSTUNNEL_CONFIG", replaced.site.root.join("relayed.toml")).env("TSTUNNEL_LOG", "info");
    let mut session = Watched::start(command.stdin(Stdio::piped()));
    session.wait_for_output("here\n");
    let mut before = replaced.site.server().succeed();
    cut(&replaced, &session);
    let bytes = vec![b'x'; 3 << 20];
    session.write(&bytes);
    drop(session.stdin());
    let ran = session.wait();
    assert_eq!((ran.code(), ran.text()), (Some(7), format!("here\n{}\n", bytes.len())));
    assert_ends_well(&mut before);
}

#[test]
fn signal_starts_what_has_taken_the_programs_place() {
    let mut site = Site::new();
    let program = site.root.join("tstunnel");
    std::os::unix::fs::symlink(TSTUNNEL, &program).unwrap();
    let launcher = ["sh", "-c", "shift; exec \"$0\" \"$@\"", program.to_str().unwrap()];
    site.serve_by(&Plan::any(), &launcher.map(str::to_owned));
    let mut session = Watched::start(site.exec(&["echo here; exec cat"]).stdin(Stdio::piped()));
    session.wait_for_output("here\n");
    let newer = site.root.join("tstunnel-newer");
    script::install(Path::new(TSTUNNEL), &newer);
    fs::remove_file(&program).unwrap();
    std::os::unix::fs::symlink(&newer, &program).unwrap();

    site.server().signal(Signal::USR2);
    wait_until("it has taken over", SOON, || site.server_log().contains("took over from process"));
    let log = site.server_log();
    let id = log.split("started process ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(fs::read_link(format!("/proc/{id}/exe")).unwrap(), newer);
    assert!(log.contains(&format!("process {id} has taken over; 1 sessions are left here")), "{log}");
    assert_echoes(&mut session, "still here");
    assert_eq!(run(&mut site.exec(&["echo new"])).ok().text(), "new\n");
    drop(session.stdin());
    session.wait().ok();
    assert_ends_well(site.server());
    // The successor has outlived who started it.
    assert_eq!(run(&mut site.exec(&["echo new"])).ok().text(), "new\n");
}

#[test]
fn successor_that_fails_leaves_everything_as_it_was() {
    let mut replaced = Replaced::start(Plan::any());
    let mut session = replaced.cat(true);
    replaced.site.server().reconfigure("[limits]", "[limit]");
    replaced.site.server().signal(Signal::USR2);
    wait_until("it fails", SOON, || {
        replaced
            .site
            .server_log()
            .contains("the successor has failed, and this process goes on: it ended with exit status: 1")
    });
    // One that comes by itself fails by itself.
    let mut serve = replaced.site.command(TSTUNNEL);
    serve.args(["serve", "--config"]).arg(replaced.site.root.join("server.toml"));
    assert_eq!(run(serve.env("RUNTIME_DIRECTORY", replaced.site.root.join("run"))).code(), Some(1));
    replaced.site.server().reconfigure("[limit]", "[limits]");
    // So does one that cannot have an address of its own.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _taken = std::net::TcpListener::bind(taken).unwrap();
    replaced.site.server().reconfigure("[\"127.0.0.1:0\"]", &format!("[\"127.0.0.1:0\", \"{taken}\"]"));
    let ran = run(&mut serve);
    assert!(ran.code() == Some(1) && ran.stderr.contains(&format!("cannot listen on {taken}")), "{}", ran.stderr);

    assert_eq!(run(&mut replaced.site.exec(&["echo new"])).ok().text(), "new\n");
    cut(&replaced, &session);
    assert_echoes(&mut session, "still here");
    assert!(!replaced.site.server_log().contains("has taken over"));
    assert_eq!(replaced.sockets().len(), 1);
}

#[test]
fn sessions_of_a_killed_predecessor_are_gone() {
    let mut replaced = Replaced::start(Plan::any());
    let mut session = replaced.cat(true);
    let mut before = replaced.site.server().succeed();
    cut(&replaced, &session);
    before.kill();
    let ran = wait_for("the client gives up", SOON, || session.ended());
    assert_eq!(ran.code(), Some(255));
    let stderr = session.wait().stderr;
    assert!(stderr.contains("error[session-lost]"), "{stderr}");
    assert_eq!(replaced.sockets().len(), 1, "what a dead server has left is removed");
}

#[test]
fn what_a_killed_server_has_left_is_removed_by_the_next() {
    let mut replaced = Replaced::start(Plan::any());
    replaced.site.server().kill();
    let left = replaced.sockets();
    assert_eq!(left.len(), 1);
    replaced.site.server().start_again();
    let now = replaced.sockets();
    assert!(now.len() == 1 && now != left, "{now:?}");
    assert_eq!(run(&mut replaced.site.exec(&["echo new"])).ok().text(), "new\n");
}

/// How long what is left of an upload is kept, in the tests of that.
const KEPT: Duration = Duration::from_secs(3);

/// Begins an upload of `content`, of which the first half is sent.
fn half_upload(replaced: &Replaced, content: &[u8]) -> fake::ClientTls {
    let mut tls = fake::connect(&replaced.site, &replaced.client);
    let digest = BASE64.encode(digest(&SHA256, content));
    let head = format!(
        "POST /tinyscale/v1/copy/file HTTP/1.1\r\nHost: {SERVER_NAME}\r\nUnencoded-Digest: sha-256=:{digest}:\r\n\
         Content-Length: {}\r\n\r\n",
        content.len()
    );
    tls.write_all(head.as_bytes()).unwrap();
    tls.write_all(&content[..content.len() / 2]).unwrap();
    tls.flush().unwrap();
    tls
}

/// Breaks such an upload off.
#[track_caller]
fn break_an_upload_off(replaced: &Replaced, content: &[u8]) {
    let broken = half_upload(replaced, content);
    wait_until("the upload has begun", SOON, || !replaced.site.names().is_empty());
    drop(broken);
    wait_until("the server has seen its end", SOON, || replaced.site.server_log().contains("\"event\":\"end\""));
    assert_eq!(replaced.site.names().len(), 1);
}

#[test]
fn what_is_left_of_an_upload_goes_in_its_time_though_the_server_has_been_replaced() {
    let mut replaced = Replaced::start(Plan::any().limit("resume_grace = \"3s\""));
    break_an_upload_off(&replaced, b"the content");
    let mut before = replaced.site.server().succeed();
    wait_until("it is gone", SOON, || replaced.site.names().is_empty());
    assert_ends_well(&mut before);
}

#[test]
fn what_is_left_of_an_upload_goes_in_its_time_though_the_server_has_been_killed() {
    let mut replaced = Replaced::start(Plan::any().limit("resume_grace = \"3s\""));
    break_an_upload_off(&replaced, b"the content");
    replaced.site.server().kill();
    replaced.site.server().start_again();
    wait_until("it is gone", SOON, || replaced.site.names().is_empty());
}

#[test]
fn upload_that_goes_on_at_the_successor_is_left_alone_by_the_predecessor() {
    let mut replaced = Replaced::start(Plan::any().limit("resume_grace = \"3s\""));
    // The predecessor stays for it.
    let mut session = replaced.cat(false);
    break_an_upload_off(&replaced, b"the content");
    let left = Instant::now();
    let _before = replaced.site.server().succeed();
    let mut again = half_upload(&replaced, b"the content");
    wait_until("what was left before has had its time", SOON, || left.elapsed() > KEPT + Duration::from_secs(1));
    again.write_all(b"ontent").unwrap();
    let mut answer = [0; 12];
    again.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 201");
    assert_eq!(replaced.site.names(), ["file"]);
    assert_echoes(&mut session, "still here");
}

#[test]
fn revocation_reaches_the_sessions_of_predecessors() {
    let mut replaced = Replaced::start(Plan::any());
    let (direct, relayed) = (replaced.cat(false), replaced.cat(true));
    let before = replaced.site.server().succeed();
    cut(&replaced, &relayed);
    let list = replaced.site.clients.revoke(&[&replaced.client], Validity::Now);
    fs::write(replaced.site.root.join("clients.crl"), list).unwrap();
    replaced.site.server().signal(Signal::HUP);
    for mut session in [direct, relayed] {
        wait_until("the session ends", SOON, || session.ended().is_some());
        let stderr = session.wait().stderr;
        assert!(stderr.contains("error[unauthorized]") && stderr.contains("revoked"), "{stderr}");
    }
    let log = replaced.site.server_log();
    wait_until("it is said", SOON, || {
        replaced.site.server_log().contains(&format!("process {} has reloaded too", before.id()))
    });
    assert!(before.log().contains("reloaded"), "{log}");
}

#[test]
fn stop_reaches_predecessors_and_leaves_nothing() {
    let mut replaced = Replaced::start(Plan::any());
    let mut stubborn = Watched::start(
        replaced.site.exec(&["trap '' TERM HUP; echo here; while :; do sleep 1; done"]).stdin(Stdio::piped()),
    );
    stubborn.wait_for_output("here\n");
    let mut relayed = replaced.cat(true);
    let _stdins = [stubborn.stdin(), relayed.stdin()];
    let mut before = replaced.site.server().succeed();
    cut(&replaced, &relayed);
    let sent = Instant::now();
    replaced.site.server().signal(Signal::TERM);
    let stderr = relayed.wait().stderr;
    assert!(stderr.contains("error[overloaded]"), "{stderr}");
    // The ladder of the other is waited for.
    let ran = stubborn.wait();
    assert_eq!(ran.code(), Some(255));
    error_line("the stubborn one", &ran.stderr, "overloaded");
    assert_ends_well(&mut before);
    assert_ends_well(replaced.site.server());
    assert!(sent.elapsed() > Duration::from_secs(5), "{:?}", sent.elapsed());
    assert_eq!(replaced.sockets(), Vec::<PathBuf>::new());
    replaced.site.wait_until_idle();
}

#[test]
fn two_configurations_in_one_run_folder_are_strangers() {
    let mut one = Site::start(&Plan::any());
    let mut other = Site::start(&Plan::any().top(&format!("run_dir = \"{}\"", one.server().run_folder().display())));
    assert_eq!(fs::read_dir(one.server().run_folder()).unwrap().count(), 2);
    for site in [&one, &other] {
        assert_eq!(run(&mut site.exec(&["echo here"])).ok().text(), "here\n");
        assert!(!site.server_log().contains("took over"), "{}", site.server_log());
    }
    other.server().kill();
    assert_eq!(run(&mut one.exec(&["echo here"])).ok().text(), "here\n");
}

#[test]
fn nobody_else_enters_the_run_folder_or_is_heard_there() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: it becomes another account");
    let mut replaced = Replaced::start(Plan::any());
    let folder = replaced.site.server().run_folder();
    let socket = replaced.sockets().remove(0);
    assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
    let ask = |uid: &str| {
        let message = br#"{"ask":"kill"}"#;
        let mut wire = u32::try_from(message.len()).unwrap().to_be_bytes().to_vec();
        wire.extend(message);
        let mut command = Command::new(process::program("setpriv"));
        command.args(["--reuid", uid, "--regid", uid, "--clear-groups", "socat", "-t5", "-"]);
        support_net::child::run_with_input(command.arg(format!("UNIX-CONNECT:{}", socket.display())), &wire)
    };
    let refused = ask("65534");
    assert!(!refused.status.success() && refused.stderr.contains("Permission denied"), "{}", refused.stderr);
    // Nor where somebody has opened the doors.
    for (path, mode) in [(&replaced.site.root, 0o711), (&folder, 0o711), (&socket, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    assert_eq!(ask("65534").stdout, b"");
    wait_until("it is logged", SOON, || replaced.site.server_log().contains("uid 65534 is at the other end"));
    assert!(replaced.site.server().ended().is_none());
    assert_eq!(run(&mut replaced.site.exec(&["echo here"])).ok().text(), "here\n");
    // A folder that is not its own any more is not used by the next one.
    replaced.site.server().kill();
    replaced.site.server().start_again();
    let log = replaced.site.server_log();
    assert!(log.contains("this server cannot be replaced while it runs") && log.contains("mode 0700"), "{log}");
    replaced.site.server().signal(Signal::USR2);
    let remedy =
        "it has no run folder that it can use; set `run_dir` to a folder of this account's alone, and restart it";
    wait_until("it says so, and what to do", SOON, || replaced.site.server_log().contains(remedy));
}

#[test]
fn nonsense_at_the_control_socket_costs_its_own_line_only() {
    let mut replaced = Replaced::start(Plan::any());
    let socket = replaced.sockets().remove(0);
    let resume =
        br#"{"ask":"resume","token":"a.b","received":0,"address":"127.0.0.1:1","server_name":"x","chain":["AAAA"]}"#;
    let length = u32::try_from(resume.len()).unwrap().to_be_bytes();
    for wire in [&b"\0\0\0\x02{}"[..], b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", &[&length[..], resume].concat()]
    {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(wire).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // What it did not read, it resets.
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer.is_empty(), wire[3] != length[3], "{}", String::from_utf8_lossy(&answer));
    }
    let mut before = replaced.site.server().succeed();
    assert_ends_well(&mut before);
}

#[test]
fn server_can_be_replaced_after_a_moment_without_descriptors() {
    let mut replaced = Replaced::start(Plan::any());
    let id = replaced.site.server_id().to_string();
    let limit = |soft: &str| {
        let arguments = ["--pid", &id, &format!("--nofile={soft}:")];
        assert!(Command::new(process::program("prlimit")).args(arguments).status().unwrap().success());
    };
    // Fewer than it has.
    limit("3");
    let waiting = UnixStream::connect(replaced.sockets().remove(0)).unwrap();
    let said = "the control socket cannot accept";
    wait_until("it says so", SOON, || replaced.site.server_log().contains(said));
    drop(waiting);
    limit("1024");
    let mut before = replaced.site.server().succeed();
    assert_ends_well(&mut before);
}

#[test]
fn idle_connection_of_a_server_that_was_replaced_is_served_to_its_end() {
    let mut replaced = Replaced::start(Plan::any());
    let mut tls = fake::connect(&replaced.site, &replaced.client);
    tls.write_all(b"GET /tinyscale/v1/host HTTP/1.1\r\n").unwrap();
    tls.flush().unwrap();
    wait_until("the handshake is done", SOON, || !tls.conn.is_handshaking());
    let mut before = replaced.site.server().succeed();
    tls.write_all(format!("Host: {SERVER_NAME}\r\n\r\n").as_bytes()).unwrap();
    let mut answer = [0; 12];
    tls.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(tls);
    assert_ends_well(&mut before);
}

//! `tstunnel exec`: the streams and the exit status of a command on the host are this process's, however either side ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, mknodat};
use rustix::pipe::PipeFlags;
use support::process::{self, Signal, program};
use support::relay::Relay;
use support::serve::{TSTUNNEL, records};
use support::wait::{SOON, wait_until};
use support_net::child::{Ran, Watched, run, run_with_input};
use support_net::fake;
use support_net::frames::{self, frame, read_frame};
use support_net::report::error_line;
use support_net::site::{HOST, PRINCIPAL, Plan, Site, text};

/// Longer than the whole ladder of a process's end (tstunnel-protocol(7)): one second and five, and a busy machine.
const LADDER: Duration = Duration::from_secs(20);

/// When that ladder comes to SIGKILL: what has ended before was ended by something else.
const LAST_STEP: Duration = Duration::from_secs(6);

/// A host that takes every command, and keeps nothing of a client that is gone for long.
fn site() -> Site {
    Site::start(&Plan::any().limit("resume_grace = \"1s\""))
}

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes without a pattern, the same for the same seed.
fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// A session that runs `line` and has said `here`.
fn started(site: &Site, line: &str) -> Watched {
    let line = format!("echo here; {line}");
    let mut session = Watched::start(site.exec(&[&line]).stdin(Stdio::piped()));
    session.wait_for_output("here\n");
    session
}

// --- connecting ---------------------------------------------------------------------------------------------------------

#[test]
fn a_connection_is_made_while_the_files_are_read() {
    let site = site();
    let relay = Relay::to(site.address());
    site.configure(relay.address(), "");
    let key = site.root.join("client.key");
    let contents = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    mknodat(CWD, &key, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let session = Watched::start(site.exec(&["echo here"]).stdin(Stdio::null()));
    wait_until("there is a connection", SOON, || relay.accepted() == 1);
    fs::write(&key, contents).unwrap();
    assert_eq!(session.wait().ok().text(), "here\n");
}

#[test]
fn the_way_to_the_host_is_told_on_stderr_to_whoever_asks_for_it() {
    let site = site();
    let ran = run(site.exec(&["echo here"]).env("TSTUNNEL_LOG", "debug")).ok();
    assert_eq!(ran.text(), "here\n");
    let (address, file) = (site.address(), site.configuration());
    for said in [
        format!("resolved host={HOST} endpoint={address} files={}", file.display()),
        "authenticated version=\"TLS 1.3\" milliseconds=".to_owned(),
        "answered status=101 upgrade=tstunnel/1 grace_seconds=1".to_owned(),
    ] {
        assert_eq!(ran.stderr.matches(&said).count(), 1, "{said}: {}", ran.stderr);
    }
    // A client that is slow to load its files makes another connection then.
    assert!(ran.stderr.contains(&format!("connected address={address}")), "{}", ran.stderr);
    for level in ["", "info"] {
        assert_eq!(run(site.exec(&["echo here"]).env("TSTUNNEL_LOG", level)).ok().stderr, "");
    }
}

#[test]
fn the_stand_ins_tell_the_way_when_they_are_asked_as_openssh_is() {
    let site = site();
    let (file, target) = (site.local_file("file", b"contents"), format!("{HOST}:file"));
    for command in [&mut site.ssh(&["-v", HOST, "true"]), &mut site.scp(&["-qvv", text(&file), &target])] {
        let said = run(command).ok().stderr;
        assert!(said.contains("resolved host=") && said.contains("answered status="), "{said}");
        assert_eq!(run(command.env("TSTUNNEL_LOG", "off")).ok().stderr, "");
    }
    let refused = run(&mut site.ssh(&["-q", HOST, "-t", "true"])).stderr;
    assert!(refused.starts_with("tstunnel: error[usage]: "), "{refused}");
}

// --- status -------------------------------------------------------------------------------------------------------------

/// Mutagen stops reading as soon as the process has ended, and decides by the words whether it installs its agent.
#[test]
fn a_stand_in_that_fails_stays_a_second_for_its_words_to_be_read() {
    let site = site();
    let began = Instant::now();
    let mut command = site.ssh(&[HOST, "echo words >&2; exit 3"]);
    let mut session = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = session.wait().unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "ended after {:?}", began.elapsed());
    assert_eq!(
        (status.code(), std::io::read_to_string(session.stderr.take().unwrap()).unwrap()),
        (Some(3), "words\n".into())
    );
}

#[test]
fn the_exit_status_is_the_commands() {
    let site = site();
    for status in [0, 1, 2, 42, 126, 127, 128, 200, 255] {
        let ran = run(&mut site.exec(&[&format!("exit {status}")]));
        assert_eq!((ran.code(), ran.text().as_str(), ran.stderr.as_str()), (Some(status), "", ""));
    }
}

#[test]
fn a_status_is_kept_by_a_server_that_was_started_to_keep_none() {
    let mut site = Site::new();
    let launcher = [text(&program("env")), "--ignore-signal=CHLD"].map(str::to_owned);
    site.serve_by(&Plan::any(), &launcher);
    assert_eq!(run(&mut site.exec(&["exit 3"])).code(), Some(3));
}

#[test]
fn a_signal_is_128_and_its_number() {
    let site = site();
    for (name, number) in [("HUP", 1), ("INT", 2), ("KILL", 9), ("SEGV", 11), ("PIPE", 13), ("TERM", 15)] {
        let ran = run(&mut site.exec(&[&format!("echo before; kill -{name} $$; echo after")]));
        assert_eq!((ran.code(), ran.text().as_str()), (Some(128 + number), "before\n"), "{name}: {}", ran.stderr);
    }
}

#[test]
fn without_frames_the_end_of_the_stream_is_status_zero() {
    let site = site();
    let mut command = site.tstunnel(&["exec", "--raw", HOST, "cat; echo lost >&2; exit 3"]);
    let ran = run_with_input(&mut command, b"hello");
    assert_eq!((ran.code(), ran.text().as_str(), ran.stderr.as_str()), (Some(0), "hello", ""));
}

#[test]
fn the_working_directory_is_the_home() {
    let site = site();
    assert_eq!(run(&mut site.exec(&["pwd; echo $HOME"])).ok().text(), format!("{0}\n{0}\n", text(&site.home)));
}

#[test]
fn words_arrive_as_they_are() {
    let site = site();
    let words = [
        "",
        "a b",
        "it's",
        "$HOME;`id`|*?[x]#~%&<>(){}!",
        "new\nline",
        "\"quoted\"",
        "back\\slash",
        "grüße 🦀",
        "--",
        "-x",
    ];
    let script = "for word; do printf '<%s>' \"$word\"; done";
    let mut command = site.exec(&["sh", "-c", script, "sh"]);
    let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
    assert_eq!(run(command.args(words)).ok().text(), expected);
}

#[test]
fn a_command_gets_no_descriptor_of_the_servers() {
    let site = site();
    let _busy = started(&site, "cat");
    // The last is what lists them has open itself.
    assert_eq!(run(&mut site.exec(&["ls", "/proc/self/fd"])).ok().text(), "0\n1\n2\n3\n");
}

// --- streams ------------------------------------------------------------------------------------------------------------

#[test]
fn the_end_of_stdin_is_passed_on() {
    let site = site();
    let ran = run_with_input(&mut site.exec(&["cat; echo end"]), b"input\n").ok();
    assert_eq!(ran.text(), "input\nend\n");
    assert_eq!(run(&mut site.exec(&["cat; echo end"])).ok().text(), "end\n");
}

#[test]
fn half_close_still_returns_traffic() {
    let site = site();
    let input: String = (0..200_000).rev().map(|number| format!("{number:07}\n")).collect();
    let expected: String = (0..200_000).map(|number| format!("{number:07}\n")).collect();
    let ran = run_with_input(&mut site.exec(&["sort"]), input.as_bytes()).ok();
    assert!(ran.text() == expected, "{} bytes came back", ran.stdout.len());
}

#[test]
fn each_answer_comes_before_the_next_question() {
    let site = site();
    let mut session = Watched::start(site.exec(&["while read line; do echo \"<$line>\"; done"]).stdin(Stdio::piped()));
    for round in 0..50 {
        session.write(format!("{round}\n").as_bytes());
        session.wait_for_output(&format!("<{round}>\n"));
    }
    session.wait().ok();
}

#[test]
fn fifty_megabytes_cross_both_ways_at_once() {
    const COUNT: usize = 50_000_000;
    let site = site();
    let (up, down) = (noise(COUNT, 1), noise(COUNT, 2));
    fs::write(site.home.join("noise"), &down).unwrap();
    let line = "exec 3<&0; cat noise & sha256sum <&3 >hash; wait";
    let ran = run_with_input(&mut site.exec(&[line]), &up).ok();
    assert_eq!((ran.stdout.len(), sha256(&ran.stdout)), (COUNT, sha256(&down)));
    assert!(fs::read_to_string(site.home.join("hash")).unwrap().starts_with(&sha256(&up)));
}

#[test]
fn what_is_echoed_comes_back_whole() {
    let site = site();
    let input = noise(20_000_000, 3);
    let ran = run_with_input(&mut site.exec(&["cat"]), &input).ok();
    assert_eq!((ran.stdout.len(), sha256(&ran.stdout)), (input.len(), sha256(&input)));
    let mut command = site.tstunnel(&["exec", "--raw", HOST, "cat"]);
    let ran = run_with_input(&mut command, &input).ok();
    assert_eq!((ran.stdout.len(), sha256(&ran.stdout)), (input.len(), sha256(&input)));
}

#[test]
fn stderr_is_separate_and_complete() {
    let site = site();
    let ran = run(&mut site.exec(&["seq 1 200000 & seq 200001 500000 >&2; wait; exit 9"]));
    let lines = |from: u32, to: u32| (from..=to).map(|number| format!("{number}\n")).collect::<String>();
    assert_eq!(ran.code(), Some(9));
    assert!(ran.text() == lines(1, 200_000), "{} bytes on stdout", ran.stdout.len());
    assert!(ran.stderr == lines(200_001, 500_000), "{} bytes on stderr", ran.stderr.len());
}

#[test]
fn a_command_that_closes_its_output_still_has_a_status() {
    let site = site();
    let ran = run(&mut site.exec(&["exec >&- 2>&-; cat; exit 5"]));
    assert_eq!((ran.code(), ran.text().as_str()), (Some(5), ""));
}

#[test]
fn a_command_that_does_not_read_its_input_ends_when_it_likes() {
    let site = site();
    // Stdin stays open, and says nothing.
    let mut session = Watched::start(site.exec(&["exit 4"]).stdin(Stdio::piped()));
    let _stdin = session.stdin();
    assert_eq!(session.wait().code(), Some(4));
    let ran = run_with_input(&mut site.exec(&["head -c 5; exit 6"]), &noise(30_000_000, 4));
    assert_eq!((ran.code(), ran.stdout.len()), (Some(6), 5), "{}", ran.stderr);
    let ran = run_with_input(&mut site.exec(&["exec <&-; echo out; exit 7"]), &noise(30_000_000, 5));
    assert_eq!((ran.code(), ran.text().as_str()), (Some(7), "out\n"), "{}", ran.stderr);
}

#[test]
fn large_output_before_a_quick_exit_is_complete_through_a_slow_reader() {
    let site = site();
    let output = noise(40_000_000, 6);
    fs::write(site.home.join("noise"), &output).unwrap();
    for count in [700_000, output.len()] {
        let line = format!("head -c {count} noise; exit 3");
        let mut child = site.exec(&[&line]).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut read = vec![0; 1];
        stdout.read_exact(&mut read).unwrap();
        if count < 10_000_000 {
            // It fits into what is on its way: the command has long gone when the rest is read.
            wait_until("the command has ended", SOON, || site.running("noise") == 0);
        }
        let mut little = vec![0; 700];
        while let Ok(length @ 1..) = stdout.read(&mut little) {
            read.extend_from_slice(&little[..length]);
        }
        assert_eq!((read.len(), sha256(&read)), (count, sha256(&output[..count])));
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}

#[test]
fn a_grandchild_that_keeps_stdout_open_does_not_keep_the_session_open() {
    let site = site();
    let ran = run(&mut site.exec(&["sleep 1000 & echo hello; exit 3"]));
    assert_eq!((ran.code(), ran.text().as_str()), (Some(3), "hello\n"), "{}", ran.stderr);
    site.wait_until_idle();
}

#[test]
fn a_grandchild_that_writes_on_and_on_delays_the_end_only_shortly() {
    let site = site();
    let ran = run(&mut site.exec(&["while sleep 0.3; do echo on; done & echo hello; exit 3"]));
    assert_eq!(ran.code(), Some(3), "{}", ran.stderr);
    assert!(ran.text().starts_with("hello\non\n"), "{}", ran.text());
    site.wait_until_idle();
}

// --- the client ends ----------------------------------------------------------------------------------------------------

#[test]
fn a_reader_that_has_enough_ends_the_command() {
    let site = site();
    for line in ["yes", "while echo y; do :; done"] {
        let mut pipeline = site.command("sh");
        pipeline.args(["-c", "\"$0\" exec \"$1\" \"$2\" | head -1", TSTUNNEL, HOST, line]);
        let ran = run(&mut pipeline).ok();
        assert_eq!((ran.text().as_str(), ran.stderr.as_str()), ("y\n", ""));
        site.wait_until_idle();
    }
    for how in [&["exec"][..], &["exec", "--raw"]] {
        let mut pipeline = site.command("sh");
        pipeline.args(["-c", "{ \"$0\" \"$@\"; echo $? >&2; } | head -1", TSTUNNEL]).args(how).args([HOST, "yes"]);
        assert_eq!(run(&mut pipeline).ok().stderr, "141\n", "{how:?}");
        site.wait_until_idle();
    }
}

#[test]
fn a_full_disk_behind_stdout_ends_the_command_with_a_failure() {
    let site = site();
    for how in [&["exec"][..], &["exec", "--raw"]] {
        let mut command = site.tstunnel(how);
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        command.args([HOST, "yes"]).stdin(Stdio::null()).stdout(full).stderr(Stdio::piped());
        let ran = Watched::start_with(&mut command).wait();
        let said = error_line(&format!("{how:?}"), &ran.stderr, "storage");
        assert!(said.starts_with("stdout cannot be written: no space left"), "{said}");
        assert_eq!(ran.code(), Some(255), "{how:?}");
        site.wait_until_idle();
    }
}

#[test]
fn a_signal_to_the_client_ends_the_command() {
    let site = site();
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        // The first ends with its stdin, the second takes the ladder's next step.
        for line in ["cat", "sleep 1000"] {
            // Whoever runs these tests may have some of them ignored.
            let mut command = site.command("env");
            command.args([
                "--default-signal=HUP,INT,TERM",
                TSTUNNEL,
                "exec",
                HOST,
                "--",
                &format!("echo here; {line}"),
            ]);
            let mut session = Watched::start(command.stdin(Stdio::piped()));
            session.wait_for_output("here\n");
            let _stdin = session.stdin();
            session.signal(signal);
            let ran = session.wait();
            assert_eq!((ran.code(), ran.stderr.as_str()), (Some(status), ""), "{signal:?} {line}");
            site.wait_until_idle();
        }
    }
}

#[test]
fn a_command_that_ignores_everything_is_killed_in_the_end() {
    let site = site();
    let mut session = started(&site, "trap '' HUP INT TERM PIPE; while :; do sleep 1; done");
    let _stdin = session.stdin();
    session.signal(Signal::TERM);
    assert_eq!(session.wait().code(), Some(143));
    wait_until("nothing runs any more in the account", LADDER, || site.running("sh") + site.running("sleep") == 0);
}

#[test]
fn a_killed_client_leaves_no_process() {
    let site = site();
    for line in ["cat", "sleep 1000", "sleep 1000 & wait"] {
        let mut session = started(&site, line);
        let _stdin = session.stdin();
        session.signal(Signal::KILL);
        assert_eq!(session.wait().code(), None);
        wait_until("nothing runs any more in the account", LADDER, || {
            site.running("cat") + site.running("sleep") + site.running("sh") == 0
        });
    }
}

/// Has `line` run for a client that acknowledges nothing, up to its end; returns the connection, what the command said, and how many
/// frames came.
fn ended_for_a_silent_client(site: &Site, line: &str) -> (fake::ClientTls, String, u64) {
    let mut tls = fake::connect(site, &site.clients.client(PRINCIPAL));
    let fields = "Connection: Upgrade\r\nUpgrade: tstunnel/1\r\n";
    let command = serde_json::json!({ "command": line }).to_string();
    let answer = fake::post(&mut tls, "/tinyscale/v1/command", fields, &command);
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let (mut said, mut received) = (Vec::new(), 1_u64);
    while let (kind, payload) = read_frame(&mut tls).unwrap()
        && kind != frames::EXIT
    {
        received += u64::from(kind < frames::PING);
        said.extend_from_slice(if kind == frames::STDOUT { &payload } else { &[] });
    }
    (tls, String::from_utf8(said).unwrap().trim().to_owned(), received)
}

fn acknowledge(tls: &mut fake::ClientTls, received: u64) {
    tls.write_all(&frame(frames::ACK, &received.to_be_bytes())).unwrap();
    tls.flush().unwrap();
}

#[test]
fn the_number_of_a_group_that_had_more_than_its_leader_is_nobody_elses_before_the_session_is_over() {
    let site = site();
    let gate = site.home.join("gate");
    mknodat(CWD, &gate, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let line = "cat gate >/dev/null 2>&1 </dev/null & echo $$";
    let (mut tls, leader, received) = ended_for_a_silent_client(&site, line);
    let leader = Path::new("/proc").join(leader);
    let is_zombie = || fs::read_to_string(leader.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
    assert!(is_zombie());
    drop(File::options().write(true).open(gate).unwrap());
    wait_until("the leader alone is left", SOON, || site.running("cat") == 0);
    assert!(is_zombie());
    acknowledge(&mut tls, received);
    wait_until("nothing is left of it", SOON, || !leader.exists());
}

#[test]
fn a_signal_after_the_commands_end_reaches_nothing_that_it_has_left() {
    let site = site();
    let (mut tls, _, received) = ended_for_a_silent_client(&site, "sleep 1000 >/dev/null 2>&1 </dev/null &");
    // Until execve(2) has returned, /proc may show it without a command line.
    wait_until("it sleeps", SOON, || process::with_home(&site.home).iter().any(|left| left.arguments[0] == "sleep"));
    tls.write_all(&[frame(frames::SIGNAL, b"KILL"), frame(frames::PING, &[0; 8])].concat()).unwrap();
    tls.flush().unwrap();
    while read_frame(&mut tls).unwrap().0 != frames::PONG {}
    assert_eq!(site.running("sleep"), 1);
    acknowledge(&mut tls, received);
    wait_until("what it has left is ended with the session", SOON, || site.running("sleep") == 0);
}

#[test]
fn a_signal_that_the_client_was_started_to_ignore_does_not_end_it() {
    let site = site();
    let mut command = site.command("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" exec \"$1\" 'echo here; cat'", TSTUNNEL, HOST]).stdin(Stdio::piped());
    let mut session = Watched::start(&mut command);
    session.wait_for_output("here\n");
    session.signal(Signal::HUP);
    session.write(b"still there\n");
    session.wait_for_output("still there\n");
    session.wait().ok();
}

// --- every kind of descriptor -------------------------------------------------------------------------------------------

/// Runs `cat; cat noise >&2` with the given streams, and checks that none of them is left non-blocking, during and after.
/// What is passed are descriptors of open files that the test goes on sharing.
#[track_caller]
fn leaves_no_flag(site: &Site, what: &str, stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd, end_input: impl FnOnce()) {
    let streams = [("stdin", &stdin), ("stdout", &stdout), ("stderr", &stderr)];
    let flags = || streams.map(|(name, fd)| (name, fcntl_getfl(fd.as_fd()).unwrap()));
    let before = flags();
    let mark = site.home.join("started");
    let mut child = Watched::start_with(
        site.exec(&["touch started; cat; echo err >&2"])
            .stdin(stdin.try_clone().unwrap())
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap()),
    );
    wait_until("the command runs", SOON, || mark.exists());
    assert_eq!(flags(), before, "{what}, while it runs");
    end_input();
    let status = {
        wait_until(&format!("{what}: the client ends"), SOON, || child.ended().is_some());
        child.ended().unwrap()
    };
    assert!(status.success(), "{what}: {status}");
    assert_eq!(flags(), before, "{what}, afterwards");
    assert!(before.iter().all(|(_, flags)| !flags.contains(OFlags::NONBLOCK)), "{what}");
    fs::remove_file(mark).unwrap();
}

#[test]
fn files_as_streams_are_left_as_they_were() {
    let site = site();
    let input = noise(3_000_000, 7);
    let (from, to, errors) = (site.local_file("in", &input), site.local_file("out", b""), site.local_file("err", b""));
    let append = |path: &PathBuf| File::options().append(true).open(path).unwrap();
    leaves_no_flag(
        &site,
        "files",
        File::open(&from).unwrap().into(),
        append(&to).into(),
        append(&errors).into(),
        || {},
    );
    assert!(fs::read(&to).unwrap() == input);
    assert_eq!(fs::read_to_string(&errors).unwrap(), "err\n");
    // Appended, not written over: the second time makes it twice as long.
    leaves_no_flag(
        &site,
        "files",
        File::open(&from).unwrap().into(),
        append(&to).into(),
        append(&errors).into(),
        || {},
    );
    assert_eq!(fs::metadata(&to).unwrap().len(), 6_000_000);
}

#[test]
fn a_file_as_stdin_is_read_from_where_it_stands() {
    let site = site();
    let path = site.local_file("in", b"first second");
    let mut file = File::open(path).unwrap();
    file.read_exact(&mut [0; 6]).unwrap();
    assert_eq!(run(site.exec(&["cat"]).stdin(file)).ok().text(), "second");
}

#[test]
fn dev_null_as_streams_is_left_as_it_was() {
    let site = site();
    let null = || File::options().read(true).write(true).open("/dev/null").unwrap().into();
    leaves_no_flag(&site, "/dev/null", null(), null(), null(), || {});
}

#[test]
fn pipes_as_streams_are_left_as_they_were() {
    let site = site();
    // Whatever another test starts meanwhile must not inherit the ends that are to be closed.
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let ((from, to_stdin), (from_stdout, to)) = (pipe(), pipe());
    let input = b"through pipes".to_vec();
    let reader = thread::spawn(move || {
        let mut read = Vec::new();
        File::from(from_stdout).read_to_end(&mut read).unwrap();
        read
    });
    // stdout and stderr are one pipe, as after `2>&1`.
    let errors = to.try_clone().unwrap();
    leaves_no_flag(&site, "pipes", from, to, errors, move || File::from(to_stdin).write_all(&input).unwrap());
    // They were two on the host, so either may be first here.
    let read = String::from_utf8(reader.join().unwrap()).unwrap();
    assert!(read == "through pipeserr\n" || read == "err\nthrough pipes", "{read}");
}

#[test]
fn sockets_as_streams_are_left_as_they_were() {
    let site = site();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let other = theirs.try_clone().unwrap();
    let (_errors, stderr) = UnixStream::pair().unwrap();
    let input = noise(1_000_000, 8);
    let mut writing = ours.try_clone().unwrap();
    let sent = input.clone();
    let (sender, writer) = std::sync::mpsc::channel::<()>();
    let writer_thread = thread::spawn(move || {
        let _ = writer.recv();
        writing.write_all(&sent).unwrap();
        writing.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let expected = input.len();
    let reader = thread::spawn(move || {
        let mut read = vec![0; expected];
        ours.read_exact(&mut read).unwrap();
        read
    });
    // One socket for both, as a shell behind inetd has it.
    leaves_no_flag(&site, "sockets", theirs.into(), other.into(), stderr.into(), move || drop(sender));
    writer_thread.join().unwrap();
    assert!(reader.join().unwrap() == input);
}

#[test]
fn a_terminal_as_streams_is_left_as_it_was() {
    let site = site();
    let log = site.root.join("typescript");
    let report = site.root.join("report");
    let line = format!(
        "'{TSTUNNEL}' exec {HOST} 'echo out; echo err >&2; cat; exit 5'; echo status $?; cat /proc/self/fdinfo/0 >{}",
        text(&report)
    );
    let mut command = site.command(program("script"));
    command
        .args(["-q", "-e", "-c", &line, text(&log)])
        .env("TERM", "dumb")
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped());
    let mut session = Watched::start(&mut command);
    session.wait_for_output("out");
    session.wait_for_output("err");
    // A line, and an end of file as it is typed.
    session.write(b"typed\n\x04");
    session.wait_for_output("status 5");
    session.wait();
    let flags = fs::read_to_string(&report).unwrap();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
    let flags = u32::from_str_radix(&flags, 8).unwrap();
    assert_eq!(flags & OFlags::NONBLOCK.bits(), 0, "{flags:o}");
}

#[test]
fn closed_streams_are_an_error_and_no_crash() {
    let site = site();
    for closing in ["<&-", ">&-", "<&- >&-"] {
        let mut command = site.command("sh");
        command.args(["-c", &format!("\"$0\" exec \"$1\" 'cat; exit 3' {closing}"), TSTUNNEL, HOST]);
        let ran = run(&mut command);
        // The standard library opens /dev/null in the place of a closed one.
        assert_eq!(ran.code(), Some(3), "{closing}: {}", ran.stderr);
    }
}

// --- environment --------------------------------------------------------------------------------------------------------

/// The variables that `env` sees on the host.
fn remote_environment(command: &mut Command) -> BTreeMap<String, String> {
    let ran: Ran = run(command).ok();
    ran.text()
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn only_what_the_host_allows_of_the_environment_arrives() {
    let site = Site::start(&Plan::any().host("shell = false"));
    let with_all = |command: &mut Command| {
        command
            .env("LC_ALL", "C")
            .env("LC_TEST", "a b=c")
            .env("LANG", "C.UTF-8")
            .env("MUTAGEN_DATA_DIRECTORY", "/tmp/elsewhere")
            .env("MUTAGEN_PROMPTER", "x")
            .env("LD_LIBRARY_PATH", "/tmp")
            .env("SECRET", "x");
        remote_environment(command)
    };
    let expected = |more: &[(&str, &str)]| -> BTreeMap<String, String> {
        let account = rustix::process::geteuid().is_root().then_some("root").expect("the tests run as root");
        let shell = fs::read_to_string("/etc/passwd").unwrap();
        let shell = shell.lines().find_map(|line| line.strip_prefix("root:")?.rsplit(':').next()).unwrap();
        let own = [
            ("HOME", text(&site.home)),
            ("USER", account),
            ("LOGNAME", account),
            ("SHELL", shell),
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("LC_ALL", "C"),
            ("LC_TEST", "a b=c"),
            ("LANG", "C.UTF-8"),
        ];
        own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(with_all(&mut site.exec(&["env"])), expected(&[]));
    assert_eq!(with_all(&mut site.ssh(&[HOST, "env"])), expected(&[]));
    // Asking for more by name changes nothing: the host decides.
    let asking = &["exec", "--env", "PATH=/tmp", "--env", "LD_PRELOAD=/tmp/x.so", "--env", "SECRET", HOST, "env"];
    assert_eq!(with_all(&mut site.tstunnel(asking)), expected(&[]));
    assert_eq!(with_all(&mut site.ssh(&["-oSendEnv=SECRET", "-oSetEnv=BASH_ENV=/tmp/x", HOST, "env"])), expected(&[]));
}

#[test]
fn a_host_can_allow_more_of_the_environment() {
    let site = Site::start(&Plan::any().host("shell = false").host("env = [\"APP_*\"]"));
    let found = remote_environment(
        site.tstunnel(&["exec", "--env", "APP_ONE=1", "--env", "APP_TWO", HOST, "env"])
            .env("APP_TWO", "2")
            .env("APP_THREE", "3")
            .env("LC_ALL", "C"),
    );
    let named = |name: &str| found.get(name).map(String::as_str);
    assert_eq!(
        (named("APP_ONE"), named("APP_TWO"), named("APP_THREE"), named("LC_ALL")),
        (Some("1"), Some("2"), None, None)
    );
}

#[test]
fn nothing_of_the_servers_environment_reaches_a_command() {
    let site = site();
    let found = remote_environment(&mut site.exec(&["env"]));
    for name in ["CARGO", "CARGO_MANIFEST_DIR", "RUST_BACKTRACE", "OLDPWD", "TSTUNNEL_CONFIG"] {
        assert!(!found.contains_key(name), "{name}");
    }
}

// --- the server ends ----------------------------------------------------------------------------------------------------

#[test]
fn a_server_that_stops_ends_its_sessions_and_leaves_no_process() {
    let mut site = site();
    let lines = ["cat", "sleep 1000", "trap '' HUP TERM; while :; do sleep 1; done", "sleep 1000 & wait"];
    let mut sessions: Vec<Watched> = lines.iter().map(|line| started(&site, line)).collect();
    let _stdins: Vec<_> = sessions.iter_mut().map(Watched::stdin).collect();
    let mut raw = Watched::start(site.tstunnel(&["exec", "--raw", HOST, "echo here; cat"]).stdin(Stdio::piped()));
    raw.wait_for_output("here\n");
    let _stdin = raw.stdin();
    site.server().signal(Signal::TERM);
    // None hangs, not even the stubborn one. That one ends with a 0 because its stdin was taken away, and others die of SIGTERM and
    // SIGKILL, is the server's doing alone: no client must take this for its command's own end, and each may start again.
    for (line, session) in lines.iter().zip(sessions) {
        let ran = session.wait_within(LADDER);
        assert_eq!((ran.code(), ran.text().as_str()), (Some(255), "here\n"), "{line}: {}", ran.stderr);
        error_line(line, &ran.stderr, "overloaded");
    }
    raw.wait_within(LADDER);
    wait_until("the server ends", LADDER, || site.server().ended().is_some());
    assert!(site.server().ended().unwrap().success());
    site.wait_until_idle();
    let ends = records(&site.server_log(), "end");
    assert_eq!(ends.iter().filter(|end| end["reason"] == "the server stops").count(), lines.len() + 1, "{ends:?}");
}

#[test]
fn a_server_that_stops_lets_a_session_say_its_last_words() {
    let mut site = site();
    let mut session = started(&site, "trap 'echo bye; exit 7' TERM; sleep 1000 & wait");
    let _stdin = session.stdin();
    site.server().signal(Signal::TERM);
    let ran = session.wait_within(LADDER);
    assert_eq!((ran.code(), ran.text().as_str()), (Some(7), "here\nbye\n"), "{}", ran.stderr);
}

#[test]
fn a_server_that_stops_makes_no_success_and_no_failure_of_its_own() {
    let mut site = site();
    // By itself within the second, at SIGTERM with a 0, by the client's own end of stdin.
    let lines = [
        "trap '' TERM; cat; echo bye; exit 3",
        "trap 'echo bye; exit 0' TERM; sleep 1000 & wait",
        "trap '' TERM; cat; echo end; sleep 0.5; exit 0",
    ];
    let mut sessions: Vec<Watched> = lines.iter().map(|line| started(&site, line)).collect();
    let mut stdins: Vec<_> = sessions.iter_mut().map(Watched::stdin).collect();
    drop(stdins.pop());
    sessions[2].wait_for_output("end");
    let sent = Instant::now();
    site.server().signal(Signal::TERM);
    let mut ends = sessions.into_iter().map(|session| session.wait_within(LADDER));
    let mut ran = vec![ends.next().unwrap()];
    let took = sent.elapsed();
    ran.extend(ends);
    for ran in &ran[..2] {
        assert_eq!(ran.text(), "here\nbye\n", "{}", ran.stderr);
        // The first has a status of its own where it was held up until SIGTERM, which it ignores.
        if ran.code() != Some(3) || took < Duration::from_secs(1) {
            assert_eq!(ran.code(), Some(255), "{}", ran.stderr);
            error_line("the session", &ran.stderr, "overloaded");
        }
    }
    assert_eq!((ran[2].code(), ran[2].stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_second_signal_ends_a_server_at_once() {
    let mut site = site();
    let mut session = started(&site, "trap '' TERM HUP; while :; do sleep 1; done");
    let _stdin = session.stdin();
    let sent = Instant::now();
    site.server().signal(Signal::TERM);
    wait_until("it drains", SOON, || site.server_log().contains("stopping"));
    site.server().signal(Signal::TERM);
    wait_until("the server ends", SOON, || site.server().ended().is_some());
    assert!(sent.elapsed() < LAST_STEP, "{:?}", sent.elapsed());
    site.wait_until_idle();
    let ran = session.wait();
    assert_eq!(ran.code(), Some(255));
    error_line("the session", &ran.stderr, "overloaded");
}

#[test]
fn a_server_that_stops_kills_what_has_not_ended_in_time() {
    let mut site = Site::start(&Plan::any().limit("drain_timeout = \"1500ms\""));
    // A grandchild in the group outlives its leader, and ends neither.
    let line = "(trap '' TERM HUP; while :; do sleep 1; done) & trap '' TERM HUP; while :; do sleep 1; done";
    let mut session = started(&site, line);
    let _stdin = session.stdin();
    let sent = Instant::now();
    site.server().signal(Signal::TERM);
    wait_until("the server ends", SOON, || site.server().ended().is_some());
    assert!(sent.elapsed() < LAST_STEP, "{:?}", sent.elapsed());
    assert!(site.server_log().contains("sessions that have not ended in time are killed"));
    site.wait_until_idle();
    let ran = session.wait();
    assert_eq!(ran.code(), Some(255));
    error_line("the session", &ran.stderr, "overloaded");
    assert_eq!(fs::read_dir(site.server().run_folder()).unwrap().count(), 0);
}

#[test]
fn a_stopped_server_without_sessions_ends_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut site = Site::start(&Plan::any().limit("drain_timeout = \"60s\""));
        run(&mut site.exec(&["true"])).ok();
        site.server().signal(signal);
        wait_until("the server ends", SOON, || site.server().ended().is_some());
        assert!(site.server().ended().unwrap().success());
    }
}

#[test]
fn nothing_is_left_of_many_sessions() {
    let site = site();
    thread::scope(|scope| {
        for round in 0..4 {
            let site = &site;
            scope.spawn(move || {
                for number in 0..5 {
                    let line = format!("sleep 1000 & echo {round}-{number}; kill $!; wait");
                    assert_eq!(run(&mut site.exec(&[&line])).ok().text(), format!("{round}-{number}\n"));
                }
            });
        }
    });
    site.wait_until_idle();
    let parts = |path: &Path| fs::read_dir(path).unwrap().count();
    assert_eq!(parts(&site.home), 0);
}

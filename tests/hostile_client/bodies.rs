//! Bodies that are late, cut off, longer than they say, or no command at all.

use std::fs;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::caller::{self, End, Heard};
use crate::siege::{RAW, STARTS, Siege, get, post, post_as_is};
use crate::support::process::{self, Signal};
use crate::support::wait::{SOON, let_pass, wait_for, wait_until};
use crate::support_net::site::Plan;

/// The time that a body may take, or be silent, in these tests: more than a machine with other work to do may hold somebody up who
/// is not meant to be late.
const IDLE: Duration = Duration::from_secs(3);

/// A siege with little patience for bodies, and none for what broke off.
fn impatient() -> Siege {
    Siege::of(&Plan::any().limit("body_idle_timeout = \"3s\"").limit("resume_grace = \"0s\""))
}

/// Says `start`, then `piece` again and again until the server has answered; what it said and how long that took.
fn drip(siege: &Siege, start: &str, piece: &[u8]) -> (Heard, Duration) {
    let mut tls = siege.caller.connect();
    tls.write_all(start.as_bytes()).and_then(|()| tls.flush()).unwrap();
    let begin = Instant::now();
    // A server that has answered still reads for a second.
    while begin.elapsed() < IDLE + Duration::from_millis(500) {
        let _ = tls.write_all(piece).and_then(|()| tls.flush());
        let_pass(IDLE / 20);
    }
    let heard = caller::listen(&mut tls);
    (heard, begin.elapsed())
}

#[test]
fn a_body_that_stops_coming_is_refused_when_its_time_is_over() {
    let siege = impatient();
    thread::scope(|scope| {
        for (path, fields, body) in [
            ("/command", RAW, ""),
            ("/command", RAW, "{\"command\": \"touch start"),
            ("/copy/x", "", ""),
            ("/copy/x", "Content-Encoding: zstd\r\n", "\u{28}"),
            ("/copy/x", "Expect: 100-continue\r\n", ""),
        ] {
            let siege = &siege;
            scope.spawn(move || {
                let start = Instant::now();
                let heard = siege.caller.say(post_as_is(path, &format!("{fields}Content-Length: 1000\r\n"), body));
                let (answers, _) = heard.answers();
                // A 100 may be before it.
                let last = answers.last().unwrap();
                let problem: Value = serde_json::from_slice(&last.body).unwrap();
                assert_eq!((last.status, &problem["type"]), (408, &Value::from("urn:tstunnel:bad-request")), "{path}");
                assert!(heard.end == End::Proper && start.elapsed() < IDLE * 4, "{path}: {:?}", start.elapsed());
            });
        }
    });
    siege.nothing_happened("bodies that stop");
    siege.end();
}

/// A command's body has this time as a whole: it fits into one packet of any decent client.
#[test]
fn a_command_that_comes_a_byte_at_a_time_is_refused_when_its_time_is_over() {
    let siege = impatient();
    let start = post_as_is("/command", &format!("{RAW}Content-Length: 100000\r\n"), "{\"command\": \"");
    let (heard, took) = drip(&siege, &start, b"x");
    heard.is_refused("a dripping command", 408, "bad-request");
    assert!(took < IDLE * 4, "{took:?}");
    siege.nothing_happened("a dripping command");
    siege.end();
}

#[test]
fn a_body_that_breaks_off_is_refused_and_nothing_is_kept() {
    let siege = impatient();
    let digest = "Unencoded-Digest: sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\r\n";
    let requests = [("/command", RAW), ("/copy/x", ""), ("/copy/x", digest), ("/copy/x", "Content-Encoding: gzip\r\n")];
    let wires: Vec<String> = requests
        .iter()
        .flat_map(|(path, fields)| [STARTS.len() + 1, 200 << 10].map(|length| (path, fields, length)))
        .map(|(path, fields, length)| post_as_is(path, &format!("{fields}Content-Length: {length}\r\n"), STARTS))
        .collect();
    for wire in &wires {
        siege.caller.say_all(wire).is_refused(wire, 400, "bad-request");
        siege.nothing_happened(wire);
    }
    // And without a word.
    for wire in &wires {
        let mut tls = siege.caller.connect();
        tls.write_all(wire.as_bytes()).and_then(|()| tls.flush()).unwrap();
    }
    siege.end();
}

#[test]
fn what_is_behind_a_bodys_length_does_not_belong_to_it() {
    let siege = impatient();
    siege.caller.say(post("/copy/x", "", "12345") + "6789").is_served("a longer body", 201);
    assert_eq!(fs::read(siege.site.home.join("x")).unwrap(), b"12345");
    fs::remove_file(siege.site.home.join("x")).unwrap();
    siege
        .caller
        .say(post_as_is("/copy/x", "Content-Length: 0\r\n", "12345"))
        .is_served("a body where there is none", 201);
    assert_eq!(fs::read(siege.site.home.join("x")).unwrap(), b"");
    fs::remove_file(siege.site.home.join("x")).unwrap();
    // A command that is one only up to its length, and one that would be one only beyond it.
    for length in [STARTS.len() - 1, 1, 0] {
        let heard = siege.caller.say(post_as_is("/command", &format!("{RAW}Content-Length: {length}\r\n"), STARTS));
        heard.is_refused("a shorter command", 400, "bad-request");
        siege.nothing_happened("a shorter command");
    }
    siege.caller.say(get("/host", "Content-Length: 1000000\r\n")).is_served("a body that is not read", 200);
    siege.end();
}

#[test]
fn a_command_that_is_not_plain_json_of_the_right_shape_is_malformed() {
    let siege = impatient();
    let bodies = [
        String::new(),
        " ".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        "\"touch started\"".to_owned(),
        format!("{STARTS}{STARTS}"),
        format!("{STARTS},"),
        format!("[{STARTS}]"),
        format!("\u{feff}{STARTS}"),
        format!("{STARTS}\0"),
        STARTS.replace('"', "'"),
        STARTS.replace("\"command\"", "command"),
        format!("/**/{STARTS}"),
        STARTS.replace('}', ",}"),
        "{\"command\": 1}".to_owned(),
        "{\"command\": null}".to_owned(),
        "{\"command\": [\"touch\", \"started\"]}".to_owned(),
        "{\"Command\": \"touch started\"}".to_owned(),
        "{\"command\\u0000\": \"touch started\"}".to_owned(),
        // The same name twice, where two readers would each take another.
        "{\"command\": \"true\", \"command\": \"touch started\"}".to_owned(),
        "{\"command\": \"true\", \"comm\\u0061nd\": \"touch started\"}".to_owned(),
        "{\"command\": \"touch\", \"args\": [], \"args\": [\"started\"]}".to_owned(),
        // Members of other kinds.
        "{\"command\": \"touch\", \"args\": \"started\"}".to_owned(),
        "{\"command\": \"touch\", \"args\": [1]}".to_owned(),
        "{\"command\": \"touch\", \"args\": {\"0\": \"started\"}}".to_owned(),
        "{\"command\": \"touch started\", \"env\": []}".to_owned(),
        "{\"command\": \"touch started\", \"env\": {\"LANG\": 1}}".to_owned(),
        "{\"command\": \"touch started\", \"envs\": {}}".to_owned(),
        "{\"command\": \"touch started\", \"user\": 0}".to_owned(),
        "{\"command\": \"touch started\", \"user\": []}".to_owned(),
        // Characters that are none.
        "{\"command\": \"touch started\\ud800\"}".to_owned(),
        "{\"command\": \"touch\\x20started\"}".to_owned(),
        "{\"command\": \"touch\tstarted\"}".to_owned(),
        "{\"command\": \"touch started\\u0000\"}".to_owned(),
        "{\"command\": \"touch\", \"args\": [\"started\\u0000\"]}".to_owned(),
        "{\"command\": \"touch started\", \"env\": {\"LANG\": \"\\u0000\"}}".to_owned(),
        // Nesting that would fill a stack.
        "[".repeat(200_000),
        "{\"command\":".repeat(20_000),
        format!("{{\"command\": {}", "[".repeat(200_000)),
        format!("{{\"x\": {}", "[".repeat(200_000)),
    ];
    for body in bodies {
        let what = body.get(..80).unwrap_or(&body);
        siege.caller.say(post("/command", RAW, &body)).is_refused(what, 400, "bad-request");
        siege.nothing_happened(what);
    }
    // Not UTF-8: overlong, a surrogate, a byte that is never one.
    for bytes in [b"\xc0\xaf".as_slice(), b"\xed\xa0\x80", b"\xff", b"\xf4\x90\x80\x80"] {
        let body = [b"{\"command\": \"touch started".as_slice(), bytes, b"\"}"].concat();
        let head = post_as_is("/command", &format!("{RAW}Content-Length: {}\r\n", body.len()), "");
        siege.caller.say([head.as_bytes(), &body].concat()).is_refused("not UTF-8", 400, "bad-request");
        siege.nothing_happened("not UTF-8");
    }
    siege.end();
}

#[test]
fn a_command_as_large_as_it_may_be_is_read_and_one_byte_more_is_not() {
    const MOST: usize = 256 << 10;
    let siege = impatient();
    let of = |size: usize| format!("{{\"command\": \"true\", \"x\": \"{}\"}}", "x".repeat(size - 28));
    assert_eq!(of(MOST).len(), MOST);
    let heard = siege.caller.say_all(post("/command", RAW, &of(MOST)));
    assert_eq!(heard.answers().0[0].status, 101, "{heard:?}");
    siege.caller.say(post("/command", RAW, &of(MOST + 1))).is_refused("one byte more", 413, "bad-request");
    // A member that nobody knows is passed over, however deep.
    let deep = format!("{{\"command\": \"true\", \"x\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(siege.caller.say_all(post("/command", RAW, &deep)).answers().0[0].status, 101);
    // More than the system lets a program have is a program that cannot be run, as a shell has it.
    let many = |count: usize| format!("{{\"command\": \"true\", \"args\": [{}\"\"]}}", "\"\",".repeat(count));
    assert_eq!(siege.caller.say_all(post("/command", RAW, &many(10_000))).answers().0[0].status, 101);
    siege.caller.say(post("/command", RAW, &many(80_000))).is_refused(
        "too many arguments",
        403,
        "agent-not-executable",
    );
    siege.end();
}

/// A process that stores a body as the account may be held up by whatever the account has there: a disk, or its own doing.
#[test]
fn an_upload_whose_own_process_hangs_is_refused_when_its_time_is_over() {
    let siege = impatient();
    for (what, rest) in [("the end of a body", 1), ("the middle of a body", 4 << 20)] {
        let length = 3 + rest;
        let mut tls = siege.caller.connect();
        let head = post_as_is("/copy/x", &format!("Content-Length: {length}\r\n"), "abc");
        tls.write_all(head.as_bytes()).and_then(|()| tls.flush()).unwrap();
        wait_until("its part is there", SOON, || siege.site.names().len() == 1);
        let hung = wait_for("the upload has a process", SOON, || process::children(siege.pid).pop());
        hung.signal(Signal::STOP);
        let begin = Instant::now();
        let _ = tls.write_all(&vec![0; rest]).and_then(|()| tls.flush());
        caller::listen(&mut tls).is_refused(what, 507, "storage");
        assert!(begin.elapsed() >= IDLE && begin.elapsed() < SOON, "{what}: {:?}", begin.elapsed());
        wait_until("the process is gone", SOON, || !hung.is_alive());
        siege.nothing_happened(what);
    }
    siege.end();
}

#[test]
fn an_upload_whose_own_process_takes_longer_is_stored_as_long_as_that_may_be_for_its_size() {
    let siege = impatient();
    // As much as may take five seconds more.
    let rest = vec![0; 40 << 20];
    let mut tls = siege.caller.connect();
    let head = post_as_is("/copy/x", &format!("Content-Length: {}\r\n", rest.len() + 1), "");
    tls.write_all(head.as_bytes()).and_then(|()| tls.write_all(&rest)).and_then(|()| tls.flush()).unwrap();
    let written = |name: &String| fs::metadata(siege.site.home.join(name)).is_ok_and(|part| part.len() == 40 << 20);
    wait_until("all but the last byte is written", SOON, || siege.site.names().iter().any(written));
    let busy = wait_for("the upload has a process", SOON, || process::children(siege.pid).pop());
    busy.signal(Signal::STOP);
    tls.write_all(b"x").and_then(|()| tls.flush()).unwrap();
    let_pass(IDLE + IDLE / 2);
    busy.signal(Signal::CONT);
    caller::listen(&mut tls).is_served("a process that takes its time", 201);
    fs::remove_file(siege.site.home.join("x")).unwrap();
    siege.end();
}

#[test]
fn what_is_held_of_an_upload_stays_though_its_own_process_hangs() {
    let siege = Siege::of(&Plan::any().limit("body_idle_timeout = \"3s\""));
    let mut tls = siege.caller.connect();
    let digest = "Unencoded-Digest: sha-256=:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=:\r\n";
    let head = post_as_is("/copy/x", &format!("{digest}Content-Length: {}\r\n", 4 << 20), "abc");
    tls.write_all(head.as_bytes()).and_then(|()| tls.flush()).unwrap();
    let written = |name: &String| fs::metadata(siege.site.home.join(name)).is_ok_and(|part| part.len() == 3);
    wait_until("what has come is written", SOON, || siege.site.names().iter().any(written));
    wait_for("the upload has a process", SOON, || process::children(siege.pid).pop()).signal(Signal::STOP);
    let _ = tls.write_all(&vec![0; (4 << 20) - 3]).and_then(|()| tls.flush());
    caller::listen(&mut tls).is_refused("a process that hangs", 408, "bad-request");
    let names = siege.site.names();
    assert!(matches!(&names[..], [part] if written(part)), "{names:?}");
    fs::remove_file(siege.site.home.join(&names[0])).unwrap();
    siege.end();
}

//! Frames of every wrong kind at every moment of a session (tstunnel-protocol(7)): the peer gets one ERROR and the end, the
//! process ends, and the session cannot be gone on with.

use std::io::Write;

use crate::caller::{self, Tls};
use crate::siege::{Siege, post};
use crate::support::wait::{SOON, wait_until};
use crate::support_net::frames::{
    ACK, CLOSE, ERROR, EXIT, PING, PONG, SIGNAL, STDERR, STDIN, STDOUT, frame, read_frame,
};

/// The fields of a request for a stream with frames.
const FRAMED: &str = "Connection: Upgrade\r\nUpgrade: tstunnel/1\r\n";

/// A header alone, of any length.
fn header(kind: u8, length: u32) -> Vec<u8> {
    let [_, high, middle, low] = length.to_be_bytes();
    vec![kind, high, middle, low]
}

/// What no client may send, whenever.
fn wrong() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |what: &str, wire: Vec<u8>| all.push((what.to_owned(), wire));
    for kind in [0x05, 0x06, 0x0f, 0x15, 0x1f, 0x20, 0x42, 0x7f] {
        add(&format!("type {kind:#04x}"), frame(kind, b""));
        add(&format!("type {kind:#04x} with a payload"), frame(kind, b"payload"));
    }
    for (name, kind) in [("STDOUT", STDOUT), ("STDERR", STDERR)] {
        add(name, frame(kind, b"x"));
        add(&format!("an empty {name}"), frame(kind, b""));
    }
    add("EXIT", frame(EXIT, &[0; 5]));
    add("an EXIT of another size", frame(EXIT, &[0; 4]));
    for kind in [STDIN, STDOUT, SIGNAL, 0x05, PING, ACK, CLOSE, ERROR, 0x80, 0xff] {
        add(&format!("type {kind:#04x} of 1 MiB and a byte"), header(kind, (1 << 20) + 1));
        add(&format!("type {kind:#04x} of 16 MiB"), header(kind, (1 << 24) - 1));
    }
    for (name, kind) in [("PING", PING), ("PONG", PONG), ("ACK", ACK)] {
        for size in [0, 7, 9, 1000] {
            add(&format!("{name} of {size} bytes"), frame(kind, &vec![0; size]));
        }
    }
    for size in [1, 8] {
        add(&format!("CLOSE of {size} bytes"), frame(CLOSE, &vec![0; size]));
    }
    add("an ACK of everything", frame(ACK, &u64::MAX.to_be_bytes()));
    add("an ACK of what was never sent", frame(ACK, &1000u64.to_be_bytes()));
    all.push(("a line of HTTP".to_owned(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()));
    all.push(("an SSH banner".to_owned(), b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()));
    all
}

/// A session: its connection, and by what it could be resumed.
struct Session {
    tls: Tls,
    ticket: String,
}

/// Begins one with a command; `first` is sent in one piece with the request.
fn begin(siege: &Siege, command: &str, first: &[u8]) -> Session {
    let mut tls = siege.caller.connect();
    let request = post("/command", FRAMED, &serde_json::json!({ "command": command }).to_string());
    tls.write_all(&[request.as_bytes(), first].concat()).and_then(|()| tls.flush()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut tls, &mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let ticket = caller::field(&head, "tstunnel-session").expect("a session that can be resumed").to_owned();
    Session { tls, ticket }
}

impl Session {
    fn send(&mut self, wire: &[u8]) {
        self.tls.write_all(wire).and_then(|()| self.tls.flush()).unwrap();
    }

    /// Reads until a frame of this kind.
    #[track_caller]
    fn read_until(&mut self, what: &str, wanted: u8) -> Vec<u8> {
        loop {
            let (kind, payload) = read_frame(&mut self.tls).unwrap_or_else(|error| panic!("{what}: {error}"));
            if kind == wanted {
                return payload;
            }
            assert!(kind != ERROR, "{what}: {}", String::from_utf8_lossy(&payload));
        }
    }

    /// Checks that what comes is one ERROR that says `protocol`, and the end behind it.
    #[track_caller]
    fn ends_refused(mut self, siege: &Siege, what: &str) {
        let said = String::from_utf8(self.read_until(what, ERROR)).unwrap();
        assert!(said.starts_with("protocol: "), "{what}: {said}");
        let rest = caller::listen(&mut self.tls);
        assert_eq!((rest.bytes.as_slice(), &rest.end), (&b""[..], &caller::End::Proper), "{what}");
        self.ends_lost(siege, what);
    }

    /// Checks that it cannot be resumed.
    #[track_caller]
    fn ends_lost(self, siege: &Siege, what: &str) {
        // The server waits a second for the end of a client that it has told why.
        drop(self.tls);
        let fields = format!("{FRAMED}Tstunnel-Session: {}\r\nTstunnel-Received: 0\r\n", self.ticket);
        siege.caller.say(post("/resume", &fields, "")).is_refused(what, 410, "session-lost");
    }
}

/// Checks that every process ends soon.
#[track_caller]
fn all_end(siege: Siege) {
    siege.site.wait_until_idle();
    siege.nothing_happened("frames");
    siege.end();
}

#[test]
fn a_wrong_frame_that_comes_with_the_request_ends_the_session() {
    let siege = Siege::any();
    for (what, wire) in wrong() {
        begin(&siege, "cat", &wire).ends_refused(&siege, &what);
    }
    all_end(siege);
}

#[test]
fn a_wrong_frame_in_the_middle_ends_the_session() {
    let siege = Siege::any();
    for (what, wire) in wrong() {
        let mut session = begin(&siege, "cat", b"");
        session.send(&frame(STDIN, b"up"));
        assert_eq!(session.read_until(&what, STDOUT), b"up");
        session.send(&wire);
        session.ends_refused(&siege, &what);
    }
    all_end(siege);
}

#[test]
fn a_wrong_frame_cut_into_single_bytes_ends_the_session() {
    let siege = Siege::any();
    for (what, wire) in wrong().into_iter().step_by(5) {
        let mut session = begin(&siege, "cat", b"");
        // Of a header that is refused nothing behind it is read.
        for byte in &wire[..4] {
            session.send(&[*byte]);
        }
        let _ = session.tls.write_all(&wire[4..]).and_then(|()| session.tls.flush());
        session.ends_refused(&siege, &what);
    }
    all_end(siege);
}

#[test]
fn a_wrong_frame_after_the_processs_end_ends_the_session() {
    let siege = Siege::any();
    for (what, wire) in wrong() {
        let mut session = begin(&siege, "true", b"");
        assert_eq!(session.read_until(&what, EXIT), [0; 5]);
        session.send(&wire);
        session.ends_refused(&siege, &what);
    }
    all_end(siege);
}

#[test]
fn nothing_counts_that_comes_after_close() {
    let siege = Siege::any();
    let mut all = wrong();
    all.push(("CLOSE".to_owned(), frame(CLOSE, b"")));
    all.push(("STDIN".to_owned(), frame(STDIN, b"touch started\n")));
    for (what, wire) in all {
        let mut session = begin(&siege, "sh", b"");
        session.send(&[frame(CLOSE, b""), wire].concat());
        let heard = caller::listen(&mut session.tls);
        assert_eq!(heard.end, caller::End::Proper, "{what}");
        session.ends_lost(&siege, &what);
    }
    all_end(siege);
}

#[test]
fn nothing_follows_the_end_of_stdin_and_no_acknowledgement_goes_back() {
    let siege = Siege::any();
    for wire in [frame(STDIN, b"x"), frame(STDIN, b"")] {
        let mut session = begin(&siege, "sh -c 'exec >&-; sleep 1000'", b"");
        session.send(&frame(STDIN, b""));
        session.send(&wire);
        session.ends_refused(&siege, "STDIN after its end");
    }
    let mut session = begin(&siege, "cat", &frame(STDIN, b"up"));
    assert_eq!(session.read_until("up", STDOUT), b"up");
    session.send(&frame(ACK, &1u64.to_be_bytes()));
    session.send(&frame(ACK, &0u64.to_be_bytes()));
    session.ends_refused(&siege, "an ACK that goes back");
    all_end(siege);
}

/// What is allowed or ignored, in any order and amount, harms nothing.
#[test]
fn odd_frames_that_are_allowed_change_nothing() {
    let siege = Siege::any();
    let mut odd: Vec<Vec<u8>> = (0x80..=0xff).map(|kind| frame(kind, &vec![kind; usize::from(kind)])).collect();
    odd.push(frame(0x80, &vec![0; 1 << 20]));
    for name in ["", "SIGTERM", "term", "TERM\0", "9", "NOSUCH", "-9", "\u{fffd}", "\n", "STOP", "CONT"] {
        odd.push(frame(SIGNAL, name.as_bytes()));
    }
    odd.push(frame(SIGNAL, b"\xff\xfe"));
    odd.push(frame(SIGNAL, &vec![b'T'; 100 << 10]));
    odd.push(frame(PONG, b"nobody's"));
    odd.push(frame(PING, &[0; 8]).repeat(1000));
    odd.push(frame(ACK, &[0; 8]).repeat(1000));
    let mut session = begin(&siege, "cat", b"");
    for wire in &odd {
        session.send(wire);
    }
    session.send(&[frame(STDIN, b"hello"), frame(STDIN, b"")].concat());
    assert_eq!(session.read_until("odd frames", STDOUT), b"hello");
    assert_eq!(session.read_until("odd frames", EXIT), [0; 5]);
    drop(session);
    // An ERROR of the client's is its last word, whatever is in it.
    for text in [&b"protocol: x"[..], b"", b"\xff\xfe", b"\x1b[2J\n\n", &[b'x'; 100 << 10]] {
        let mut session = begin(&siege, "cat", b"");
        session.send(&frame(ERROR, text));
        let heard = caller::listen(&mut session.tls);
        assert_eq!(heard.end, caller::End::Proper);
        session.ends_lost(&siege, "an ERROR");
    }
    assert!(!siege.site.server_log().contains('\x1b'), "{}", siege.site.server_log());
    all_end(siege);
}

/// A frame that breaks off is an interruption: the session waits for its grace, and its process ends with that.
#[test]
fn a_frame_that_breaks_off_is_not_carried_out() {
    let siege = Siege::of(&crate::support_net::site::Plan::any().limit("resume_grace = \"1s\""));
    let whole = frame(STDIN, b"touch started\n");
    for length in 1..whole.len() {
        let mut session = begin(&siege, "sh", &whole[..length]);
        if length % 2 == 0 {
            session.tls.conn.send_close_notify();
            session.tls.flush().unwrap();
        }
        drop(session);
    }
    wait_until("every session is over", SOON, || siege.site.running("sh") == 0);
    all_end(siege);
}

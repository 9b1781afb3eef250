//! Heads that are malformed (RFC 9112 §2, §5), in a foreign language, without end, or late.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::caller::{self, End};
use crate::siege::{RAW, STARTS, Siege, get, post, request};
use crate::support::wait::let_pass;
use crate::support_net::site::{Plan, SERVER_NAME};

/// A request that would start something but for one wrong field.
fn with_field(field: &[u8]) -> Vec<u8> {
    let host = format!("Host: {SERVER_NAME}\r\n");
    request(b"POST /tinyscale/v1/command HTTP/1.1", &[host.as_bytes(), field].concat())
}

#[test]
fn fields_that_are_none_are_refused() {
    let siege = Siege::any();
    let fields: &[&[u8]] = &[
        // White space before the colon, before the name, and instead of either.
        b"X : y\r\n",
        b"X\t: y\r\n",
        b" X: y\r\n",
        b"\tX: y\r\n",
        b"X y\r\n",
        b"X\r\n",
        b": y\r\n",
        b" : y\r\n",
        b"\r: y\r\n",
        // Lines that are folded.
        b"X: y\r\n z\r\n",
        b"X: y\r\n\tz\r\n",
        b"X:\r\n y\r\n",
        b"Content-Length:\r\n 28\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"X: y\n z\r\n",
        // A CR that ends no line.
        b"X: y\rz\r\n",
        b"X: y\r",
        b"X\r: y\r\n",
        b"X: y\r\r\n",
        b"X: y\rContent-Length: 0\r\n",
        // Control characters.
        b"X: \0\r\n",
        b"X: y\0z\r\n",
        b"X\0: y\r\n",
        b"\0: y\r\n",
        b"X: \x01\r\n",
        b"X: \x0b\r\n",
        b"X: \x0c\r\n",
        b"X: \x1b[31m\r\n",
        b"X: \x7f\r\n",
        b"X\x7f: y\r\n",
        b"X\x0b: y\r\n",
        // Names that are no tokens.
        b"X(y): z\r\n",
        b"X/y: z\r\n",
        b"\"X\": y\r\n",
        b"X,Y: z\r\n",
        b"{X}: y\r\n",
        b"X@y: z\r\n",
        b"\xc3\x84: y\r\n",
        b"X\xff: y\r\n",
        b"Host[]: x\r\n",
    ];
    for field in fields {
        siege.is_malformed(field, &with_field(field));
    }
    siege.end();
}

#[test]
fn a_head_with_plain_line_feeds_and_bytes_above_ascii_is_read() {
    let siege = Siege::any();
    // RFC 9112 §2.2 lets a server take a line feed alone, and empty lines before the request; RFC 9110 §5.5 obs-text.
    let whole = get("/host", "X: \u{fc}\u{20ac}\r\nY:\tz\t \r\nZ:\r\n");
    siege.caller.say(whole.replace("\r\n", "\n")).is_served("line feeds", 200);
    siege.caller.say(format!("\r\n\r\n{whole}")).is_served("empty lines first", 200);
    siege.caller.say(whole).is_served("bytes above ASCII", 200);
    siege.end();
}

#[test]
fn request_lines_that_are_none_are_refused() {
    let siege = Siege::any();
    let lines: &[&[u8]] = &[
        b"",
        b" ",
        b"POST",
        b"POST ",
        b"POST /tinyscale/v1/command",
        b" POST /tinyscale/v1/command HTTP/1.1",
        b"\tPOST /tinyscale/v1/command HTTP/1.1",
        b"POST\t/tinyscale/v1/command\tHTTP/1.1",
        b"POST /tinyscale/v1/command\tHTTP/1.1",
        b"POST /tinyscale/v1/command x HTTP/1.1",
        b"POST /tinyscale/v1/com mand HTTP/1.1",
        b"POST /tinyscale/v1/command HTTP/1.1 x",
        b"POST /tinyscale/v1/command HTTP/1.1\x0b",
        b"POST /tinyscale/v1/command HTTP/1.1\r",
        b"POST /tinyscale/v1/command\0 HTTP/1.1",
        b"POST /tinyscale/v1/command\x01 HTTP/1.1",
        b"POST /tinyscale/v1/command\x7f HTTP/1.1",
        b"POST /tinyscale/v1/command\r HTTP/1.1",
        b"PO\0ST /tinyscale/v1/command HTTP/1.1",
        b"P(ST /tinyscale/v1/command HTTP/1.1",
        b"\"POST\" /tinyscale/v1/command HTTP/1.1",
        b"\xd0\xa0OST /tinyscale/v1/command HTTP/1.1",
        b"/tinyscale/v1/command HTTP/1.1",
        b"POST tinyscale/v1/command HTTP/1.1",
        b"POST http:///tinyscale/v1/command HTTP/1.1",
        b"POST https://host123.tunnel.test:x/tinyscale/v1/command HTTP/1.1",
        // Versions that are none of HTTP/1.1.
        b"POST /tinyscale/v1/command HTTP/0.9",
        b"POST /tinyscale/v1/command HTTP/1.0",
        b"POST /tinyscale/v1/command HTTP/1.2",
        b"POST /tinyscale/v1/command HTTP/2.0",
        b"POST /tinyscale/v1/command HTTP/2",
        b"POST /tinyscale/v1/command HTTP/3",
        b"POST /tinyscale/v1/command HTTP/1.10",
        b"POST /tinyscale/v1/command HTTP/1.1.1",
        b"POST /tinyscale/v1/command HTTP/+1.1",
        b"POST /tinyscale/v1/command HTTP/01.1",
        b"POST /tinyscale/v1/command HTTP/1,1",
        b"POST /tinyscale/v1/command http/1.1",
        b"POST /tinyscale/v1/command HTTPS/1.1",
        b"POST /tinyscale/v1/command ICY/1.1",
        b"POST /tinyscale/v1/command 1.1",
    ];
    let host = format!("Host: {SERVER_NAME}\r\n");
    for line in lines {
        // An empty line before a request is passed over, and a field is no request line.
        siege.is_malformed(line, &request(line, host.as_bytes()));
    }
    siege.end();
}

#[test]
fn other_protocols_are_refused_in_this_one() {
    let siege = Siege::any();
    let others: &[&[u8]] = &[
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"GET /tinyscale/v1/host\r\n\r\n",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x05\x01\x00",
        b"EHLO x\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"\x80\r\n\r\n",
    ];
    for other in others {
        siege.is_malformed(other, other);
    }
    siege.end();
}

/// RFC 9110 §7.8 has a server ignore the upgrade of an HTTP/1.0 request; here all of it is refused.
#[test]
fn a_head_beyond_its_bound_is_refused_with_431_or_414() {
    let siege = Siege::any();
    let large = [
        ("one field of 64 KiB", get("/host", &format!("X: {}\r\n", "y".repeat(64 << 10)))),
        ("a name of 64 KiB", get("/host", &format!("{}: y\r\n", "X".repeat(64 << 10)))),
        ("10,000 fields", get("/host", &"X: y\r\n".repeat(10_000))),
        ("10,000 names", get("/host", &(0..10_000).map(|number| format!("X{number}: y\r\n")).collect::<String>())),
        ("101 fields", get("/host", &"X: y\r\n".repeat(101))),
        ("a target of 1 MiB", get(&format!("/{}", "x".repeat(1 << 20)), "")),
        ("a query of 1 MiB", get(&format!("/host?{}", "x".repeat(1 << 20)), "")),
        ("a method of 1 MiB", get("/host", "").replacen("GET", &"G".repeat(1 << 20), 1)),
        ("a head without end", get("/host", "").trim_end().to_owned() + &"\r\nX: y".repeat(200_000)),
        ("17 KiB of cookies", get("/host", &format!("Cookie: {}\r\n", "a=b; ".repeat(3500)))),
        ("17 KiB of empty lines", "\r\n".repeat(9000)),
    ];
    for (what, wire) in large {
        let heard = siege.caller.say(wire);
        let status = heard.answer().status;
        assert!(
            status == 431 || (status == 414 && what.contains("target")) || (status == 400 && what.contains("empty")),
            "{what}: {heard:?}"
        );
        heard.is_refused(what, status, "bad-request");
        siege.nothing_happened(what);
    }
    let fits = get("/host", &format!("X: {}\r\n", "y".repeat(15 << 10)));
    siege.caller.say(fits).is_served("15 KiB", 200);
    siege.end();
}

#[test]
fn a_slow_head_is_refused_when_its_time_is_over() {
    const HEAD: Duration = Duration::from_secs(1);
    let siege = Siege::of(&Plan::any().limit("head_timeout = \"1s\""));
    thread::scope(|scope| {
        for what in ["silence", "a byte at a time", "fields", "empty lines"] {
            let caller = &siege.caller;
            scope.spawn(move || {
                let mut tls = caller.connect();
                tls.conn.complete_io(&mut tls.sock).unwrap();
                let start = Instant::now();
                let whole = get("/host", "");
                let mut dripping = whole.bytes();
                if what == "fields" {
                    tls.write_all(get("/host", "").trim_end().as_bytes())
                        .and_then(|()| tls.write_all(b"\r\n"))
                        .unwrap();
                }
                while start.elapsed() < HEAD + HEAD / 2 {
                    let next = match what {
                        "a byte at a time" => dripping.next().into_iter().collect(),
                        "fields" => b"X: y\r\n".to_vec(),
                        "empty lines" => b"\r\n".to_vec(),
                        _ => Vec::new(),
                    };
                    let _ = tls.write_all(&next).and_then(|()| tls.flush());
                    let_pass(HEAD / 20);
                }
                let heard = caller::listen(&mut tls);
                heard.is_refused(what, 408, "bad-request");
                assert!(start.elapsed() < HEAD * 4, "{what}: {:?}", start.elapsed());
            });
        }
    });
    siege.nothing_happened("slow heads");
    siege.end();
}

#[test]
fn a_client_that_is_gone_before_its_request_leaves_nothing() {
    let siege = Siege::any();
    let whole = post("/command", RAW, STARTS);
    for length in [1, 20, whole.find("\r\n\r\n").unwrap(), whole.len() - 1] {
        let cut = &whole[..length];
        let heard = siege.caller.say_all(cut);
        let (answers, rest) = heard.answers();
        assert!(
            rest.is_empty() && heard.end == End::Proper && answers.iter().all(|answer| answer.status == 400),
            "{cut:?}: {heard:?}"
        );
        siege.nothing_happened(cut);
        // And without a word.
        let mut tls = siege.caller.connect();
        tls.write_all(cut.as_bytes()).and_then(|()| tls.flush()).unwrap();
        drop(tls);
        siege.nothing_happened(cut);
    }
    siege.end();
}

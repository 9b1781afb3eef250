//! First words that are no ClientHello, or a wrong one (RFC 8446 §4.1.2, RFC 6066 §3, RFC 7301), from clients that nobody knows:
//! the connection ends at once or within the time of a handshake, with an alert or without a word. The TLS library says nothing
//! where a whole message is another than a ClientHello, and where one is larger than it takes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::hello::{
    ALERT, EARLY_DATA, GROUPS, HANDSHAKE, Hello, KEY_SHARES, PROTOCOLS, SERVER_NAMES, SIGNATURES, VERSIONS, protocols,
    record, records, server_names, sized,
};
use crate::siege::{Siege, get};
use crate::support::process::program;
use crate::support::wait::{SOON, let_pass, wait_until};
use crate::support_net::child::Watched;
use crate::support_net::site::{Plan, SERVER_NAME};

// Alerts (RFC 8446 §6.2, RFC 7301 §3.2).
const HANDSHAKE_FAILURE: u8 = 40;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const PROTOCOL_VERSION: u8 = 70;
const MISSING_EXTENSION: u8 = 109;
const UNRECOGNIZED_NAME: u8 = 112;

/// What the server said first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    /// A fatal alert, and then the end.
    Alert(u8),
    /// A ServerHello.
    Hello,
    /// The end.
    Nothing,
}

/// How long a handshake may take.
const TIME: Duration = Duration::from_secs(2);

fn siege() -> Siege {
    Siege::of(&Plan::any().limit("handshake_timeout = \"2s\""))
}

/// Says `wire` and reads the reply; a server that says anything but these panics the test.
fn ask(siege: &Siege, wire: &[u8]) -> Reply {
    let mut tcp = connect(siege);
    let _ = tcp.write_all(wire);
    reply(&mut tcp)
}

fn connect(siege: &Siege) -> TcpStream {
    let tcp = TcpStream::connect(siege.site.address()).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.set_read_timeout(Some(SOON)).unwrap();
    tcp.set_write_timeout(Some(SOON)).unwrap();
    tcp
}

fn reply(tcp: &mut TcpStream) -> Reply {
    let mut start = [0; 7];
    let mut count = 0;
    while count < start.len() {
        match tcp.read(&mut start[count..]).unwrap() {
            0 => break,
            more => count += more,
        }
    }
    match start[..count] {
        [] => Reply::Nothing,
        [ALERT, 3, _, 0, 2, 2, description] => {
            let mut rest = Vec::new();
            tcp.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, b"", "something follows the alert {description}");
            Reply::Alert(description)
        }
        [HANDSHAKE, 3, 3, _, _, 2, _] => Reply::Hello,
        ref other => panic!("the server says {other:?}"),
    }
}

/// Checks that the server says this, and before a handshake's time is over.
#[track_caller]
fn check(siege: &Siege, what: &str, wire: &[u8], expected: Reply) {
    let start = Instant::now();
    assert_eq!(ask(siege, wire), expected, "{what}");
    assert!(start.elapsed() < TIME, "{what}: {:?}", start.elapsed());
}

#[test]
fn what_is_no_client_hello_ends_the_connection_at_once() {
    let siege = siege();
    let noise: Vec<u8> = (0..20_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let version_2 = [&[0x80, 46, 1, 3, 1, 0, 3, 0, 0, 0, 32, 0, 0, 1], [1; 35].as_slice()].concat();
    for (what, wire, reply) in [
        ("plain HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), Reply::Alert(DECODE_ERROR)),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Reply::Alert(DECODE_ERROR)),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), Reply::Alert(DECODE_ERROR)),
        ("SMTP", b"EHLO example.org\r\nSTARTTLS\r\n".to_vec(), Reply::Alert(DECODE_ERROR)),
        // A balancer's, which speaks no TLS: its operator reads in the log what it was.
        ("the PROXY protocol", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n".to_vec(), Reply::Nothing),
        ("its second version", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), Reply::Nothing),
        ("noise", noise.clone(), Reply::Alert(DECODE_ERROR)),
        ("zeros", vec![0; 20_000], Reply::Alert(DECODE_ERROR)),
        ("SSL 2", version_2, Reply::Alert(DECODE_ERROR)),
        (
            "noise in a ClientHello",
            records(&[vec![1], sized(3, &noise[..1000])].concat(), 1 << 14),
            Reply::Alert(DECODE_ERROR),
        ),
        ("a record that is too long", [vec![HANDSHAKE, 3, 1, 0xff, 0xff], noise].concat(), Reply::Alert(DECODE_ERROR)),
        ("an empty record", record(HANDSHAKE, b""), Reply::Alert(DECODE_ERROR)),
        ("application data", record(23, b"GET / HTTP/1.1\r\n\r\n"), Reply::Nothing),
        ("a change of keys", record(20, &[1]), Reply::Nothing),
        ("a Heartbeat", record(24, &[1, 0xff, 0xff]), Reply::Alert(DECODE_ERROR)),
        (
            "a ServerHello",
            records(&[vec![2], Hello::good().message()[1..].to_vec()].concat(), 1 << 14),
            Reply::Alert(DECODE_ERROR),
        ),
        ("a HelloRequest", record(HANDSHAKE, &[0, 0, 0, 0]), Reply::Nothing),
        ("a Finished", record(HANDSHAKE, &[20, 0, 0, 0]), Reply::Nothing),
        ("a KeyUpdate", record(HANDSHAKE, &[24, 0, 0, 1, 0]), Reply::Nothing),
        ("an unknown message", record(HANDSHAKE, &[99, 0, 0, 0]), Reply::Nothing),
        ("a length of 16 MiB", record(HANDSHAKE, &[1, 0xff, 0xff, 0xff]), Reply::Nothing),
    ] {
        check(&siege, what, &wire, reply);
    }
    siege.nothing_happened("no ClientHello");
    siege.end();
}

#[test]
fn an_alert_in_place_of_a_hello_ends_the_connection() {
    let siege = siege();
    for alert in [[1, 0], [1, 90], [2, 80], [2, 255], [3, 3]] {
        let found = ask(&siege, &record(ALERT, &alert));
        assert!(found != Reply::Hello, "{alert:?}: {found:?}");
    }
    siege.end();
}

#[test]
fn only_tls_1_3_is_spoken() {
    let siege = siege();
    let old = |version: [u8; 2]| {
        Hello { version, suites: vec![0xc0, 0x2b, 0xc0, 0x2f, 0, 0x2f], ..Hello::good() }.without(VERSIONS)
    };
    for (what, hello) in [
        ("SSL 3", old([3, 0])),
        ("TLS 1.0", old([3, 1])),
        ("TLS 1.1", old([3, 2])),
        ("TLS 1.2", old([3, 3])),
        ("a 1.3 that only the old field says", old([3, 4])),
        ("1.2 by extension", Hello::good().with(VERSIONS, [2, 3, 3])),
        ("1.0 to 1.2 by extension", Hello::good().with(VERSIONS, [6, 3, 3, 3, 2, 3, 1])),
        ("a draft of 1.3", Hello::good().with(VERSIONS, [2, 0x7f, 28])),
        ("versions that nobody knows", Hello::good().with(VERSIONS, [6, 0x0a, 0x0a, 0xfa, 0xfa, 3, 5])),
    ] {
        check(&siege, what, &hello.wire(), Reply::Alert(PROTOCOL_VERSION));
    }
    check(&siege, "1.3 among others", &Hello::good().with(VERSIONS, [6, 0x0a, 0x0a, 3, 3, 3, 4]).wire(), Reply::Hello);
    check(&siege, "no version at all", &Hello::good().with(VERSIONS, [0]).wire(), Reply::Alert(DECODE_ERROR));
    siege.end();
}

#[test]
fn a_server_name_is_one_dns_name_or_the_handshake_ends() {
    let siege = siege();
    let long = [b"a.".repeat(130), SERVER_NAME.as_bytes().to_vec()].concat();
    let longest = [b"a.".repeat(117), SERVER_NAME.as_bytes().to_vec()].concat();
    let one = |name: &[u8]| Hello::good().with(SERVER_NAMES, server_names(&[(0, name)]));
    for (what, hello) in [
        ("none", Hello::good().without(SERVER_NAMES)),
        ("an IPv4 address", one(b"127.0.0.1")),
        ("an IPv6 address", one(b"::1")),
    ] {
        check(&siege, what, &hello.wire(), Reply::Alert(UNRECOGNIZED_NAME));
    }
    for (what, hello) in [
        ("an empty list", Hello::good().with(SERVER_NAMES, server_names(&[]))),
        ("nothing", Hello::good().with(SERVER_NAMES, [])),
        ("an empty name", one(b"")),
        ("255 bytes", one(&[b"a.".as_slice(), &longest].concat())),
        ("279 bytes", one(&long)),
        ("60,000 bytes", one(&vec![b'a'; 60_000])),
        ("a label of 64 bytes", one(&[b'a'; 64])),
        ("a NUL", one(b"host123.tunnel.test\0")),
        ("a NUL inside", one(b"host123.tunnel.test\0.example.org")),
        ("a control character", one(b"host123\n.tunnel.test")),
        ("white space", one(b" host123.tunnel.test")),
        ("empty labels", one(b"host123..tunnel.test")),
        ("a wildcard", one(b"*.tunnel.test")),
        ("a port", one(b"host123.tunnel.test:443")),
        ("a path", one(b"../../etc/passwd")),
        ("bytes above ASCII", one("h\u{43e}st123.tunnel.test".as_bytes())),
        (
            "two names",
            Hello::good().with(SERVER_NAMES, server_names(&[(0, b"host123.tunnel.test"), (0, b"other.tunnel.test")])),
        ),
        ("the same name twice", Hello::good().with(SERVER_NAMES, server_names(&[(0, SERVER_NAME.as_bytes()); 2]))),
        (
            "a length beyond its end",
            Hello::good().with(SERVER_NAMES, [0, 9, 0, 0, 99, b'a', b'a', b'a', b'a', b'a', b'a']),
        ),
    ] {
        let found = ask(&siege, &hello.wire());
        let refused = [ILLEGAL_PARAMETER, DECODE_ERROR, UNRECOGNIZED_NAME].map(Reply::Alert);
        assert!(refused.contains(&found), "{what}: {found:?}");
    }
    for (what, hello) in [
        ("upper case", one(b"HOST123.Tunnel.TEST")),
        ("a host that is not there", one(b"other.tunnel.test")),
        ("punycode", one(b"xn--hst123-qqf.tunnel.test")),
        ("253 bytes", one(&longest)),
    ] {
        check(&siege, what, &hello.wire(), Reply::Hello);
    }
    siege.end();
}

#[test]
fn a_list_of_protocols_that_is_malformed_ends_the_handshake() {
    let siege = siege();
    for (what, offered) in [
        ("an empty name", protocols(&[b"", b"http/1.1"])),
        ("an empty list", protocols(&[])),
        ("a name beyond its end", vec![0, 3, 99, b'h', b'2']),
        ("a list beyond its end", vec![0xff, 0xff, 2, b'h', b'2']),
    ] {
        let found = ask(&siege, &Hello::good().with(PROTOCOLS, offered).wire());
        assert!([ILLEGAL_PARAMETER, DECODE_ERROR].map(Reply::Alert).contains(&found), "{what}: {found:?}");
    }
    check(&siege, "several", &Hello::good().with(PROTOCOLS, protocols(&[b"h2", b"http/1.1"])).wire(), Reply::Hello);
    siege.end();
}

#[test]
fn a_hello_that_no_key_can_come_of_gets_an_alert() {
    let siege = siege();
    let share = |group: [u8; 2], key: &[u8]| sized(2, &[group.to_vec(), sized(2, key)].concat());
    let twice = {
        let mut hello = Hello::good();
        hello.extensions.push((SERVER_NAMES, server_names(&[(0, b"other.tunnel.test")])));
        hello
    };
    for (what, hello, alerts) in [
        (
            "no suite that is known",
            Hello { suites: vec![0, 0, 0x0a, 0x0a, 0x13, 0x99], ..Hello::good() },
            vec![HANDSHAKE_FAILURE],
        ),
        (
            "no suite",
            Hello { suites: Vec::new(), ..Hello::good() },
            vec![HANDSHAKE_FAILURE, DECODE_ERROR, ILLEGAL_PARAMETER],
        ),
        ("half a suite", Hello { suites: vec![0x13], ..Hello::good() }, vec![DECODE_ERROR]),
        ("compression", Hello { compressions: vec![1], ..Hello::good() }, vec![ILLEGAL_PARAMETER, HANDSHAKE_FAILURE]),
        ("compression beside none", Hello { compressions: vec![1, 0], ..Hello::good() }, vec![ILLEGAL_PARAMETER]),
        ("a session of 33 bytes", Hello { session: vec![1; 33], ..Hello::good() }, vec![DECODE_ERROR]),
        ("no groups", Hello::good().without(GROUPS), vec![MISSING_EXTENSION, HANDSHAKE_FAILURE, ILLEGAL_PARAMETER]),
        ("no shares", Hello::good().without(KEY_SHARES), vec![MISSING_EXTENSION, HANDSHAKE_FAILURE]),
        ("no signatures", Hello::good().without(SIGNATURES), vec![MISSING_EXTENSION, HANDSHAKE_FAILURE]),
        (
            "groups that nobody knows",
            Hello::good().with(GROUPS, [0, 2, 0x0a, 0x0a]),
            vec![HANDSHAKE_FAILURE, ILLEGAL_PARAMETER],
        ),
        ("a point of small order", Hello::good().with(KEY_SHARES, share([0, 29], &[0; 32])), vec![ILLEGAL_PARAMETER]),
        ("a share of 1 byte", Hello::good().with(KEY_SHARES, share([0, 29], &[1])), vec![ILLEGAL_PARAMETER]),
        (
            "a point on no curve",
            Hello::good().with(GROUPS, [0, 2, 0, 23]).with(KEY_SHARES, share([0, 23], &[4; 65])),
            vec![ILLEGAL_PARAMETER],
        ),
        ("an extension twice", twice, vec![ILLEGAL_PARAMETER, DECODE_ERROR]),
    ] {
        let found = ask(&siege, &hello.wire());
        assert!(alerts.iter().any(|alert| Reply::Alert(*alert) == found), "{what}: {found:?}");
    }
    siege.end();
}

#[test]
fn large_hellos_are_read_up_to_64_kib_in_whatever_pieces() {
    let siege = siege();
    let padded = |size: usize| Hello::good().with(21, vec![0; size]);
    let many = |count: u16| (0..count).fold(Hello::good(), |hello, number| hello.with(0x4000 + number, [0]));
    check(&siege, "60 KiB", &padded(60_000).wire(), Reply::Hello);
    check(&siege, "5,000 extensions", &many(5000).wire(), Reply::Hello);
    check(
        &siege,
        "16,000 suites",
        &Hello { suites: [vec![0x0a; 32_000], vec![0x13, 1]].concat(), ..Hello::good() }.wire(),
        Reply::Hello,
    );
    check(&siege, "a byte in each record", &records(&Hello::good().message(), 1), Reply::Hello);
    check(&siege, "9 KiB in records of a byte", &records(&padded(9_000).message(), 1), Reply::Hello);
    // What is held of a hello is 64 KiB with the heads of its records.
    check(&siege, "60 KiB in records of 16 bytes", &records(&padded(60_000).message(), 16), Reply::Nothing);
    check(&siege, "64 KiB and more", &padded(65_400).wire(), Reply::Nothing);
    let much = [vec![1], sized(3, &vec![0; 1 << 20])].concat();
    check(&siege, "1 MiB", &records(&much, 1 << 14), Reply::Nothing);
    let message = Hello::good().message();
    let (first, second) = message.split_at(100);
    let holed = [record(HANDSHAKE, first), record(HANDSHAKE, b""), record(HANDSHAKE, second)].concat();
    check(&siege, "an empty fragment", &holed, Reply::Alert(DECODE_ERROR));
    let interleaved = [record(HANDSHAKE, first), record(23, b"x"), record(HANDSHAKE, second)].concat();
    check(&siege, "data between two fragments", &interleaved, Reply::Nothing);
    siege.end();
}

/// What is not whole is waited for no longer than a handshake may take, however it dribbles in, and does not hold up others.
#[test]
fn a_hello_that_does_not_end_in_time_is_left() {
    let siege = siege();
    let whole = Hello::good().wire();
    thread::scope(|scope| {
        for length in [0, 1, 4, 5, 6, 9, 50, whole.len() - 1] {
            let (siege, cut) = (&siege, &whole[..length]);
            scope.spawn(move || {
                let start = Instant::now();
                assert_eq!(ask(siege, cut), Reply::Nothing, "silence behind {length} bytes");
                assert!((TIME..TIME * 3).contains(&start.elapsed()), "{:?}", start.elapsed());
            });
            scope.spawn(move || {
                let mut tcp = connect(siege);
                tcp.write_all(cut).unwrap();
                tcp.shutdown(Shutdown::Write).unwrap();
                assert_eq!(reply(&mut tcp), Reply::Nothing, "an end behind {length} bytes");
            });
        }
        let (siege, whole) = (&siege, &whole);
        scope.spawn(move || {
            let mut tcp = connect(siege);
            let start = Instant::now();
            for byte in whole {
                if tcp.write_all(&[*byte]).is_err() {
                    break;
                }
                let_pass(Duration::from_millis(20));
                if start.elapsed() > TIME * 2 {
                    break;
                }
            }
            assert!(tcp.read(&mut [0; 1]).is_ok_and(|count| count == 0) || start.elapsed() > TIME);
            assert!(start.elapsed() < TIME * 4, "{:?}", start.elapsed());
        });
        // Nor is one that never answers a ServerHello.
        scope.spawn(move || {
            let mut tcp = connect(siege);
            let start = Instant::now();
            tcp.write_all(whole).unwrap();
            let mut said = Vec::new();
            let _ = tcp.read_to_end(&mut said);
            assert!(said.starts_with(&[HANDSHAKE, 3, 3]) && start.elapsed() < TIME * 4, "{:?}", start.elapsed());
        });
        siege.serves();
    });
    siege.nothing_happened("half a hello");
    siege.end();
}

/// There are no tickets, so whatever early data there is belongs to nobody: it is passed over or refused, never read.
#[test]
fn early_data_is_never_read() {
    let siege = siege();
    let identity = sized(2, &[sized(2, &[1; 32]), vec![0, 0, 0, 0]].concat());
    let hello = Hello::good()
        .with(EARLY_DATA, [])
        .with(45, [1, 1])
        .with(41, [identity, sized(2, &sized(1, &[2; 32]))].concat());
    let request =
        b"POST /tinyscale/v1/command HTTP/1.1\r\nHost: host123.tunnel.test\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
        Content-Length: 28\r\n\r\n{\"command\": \"touch started\"}";
    check(&siege, "early data", &[hello.wire(), record(23, request)].concat(), Reply::Hello);
    let flood = [hello.wire(), record(23, &[0; 16_000]).repeat(200)].concat();
    check(&siege, "a flood of it", &flood, Reply::Hello);
    let unasked = [Hello::good().wire(), record(23, request)].concat();
    check(&siege, "data that was not announced", &unasked, Reply::Hello);
    siege.nothing_happened("early data");
    siege.end();
}

/// What the server finds out before its ServerHello but says behind it: its alert is encrypted, so openssl reads it.
#[test]
fn a_foreign_protocol_ends_the_handshake_and_a_trailing_dot_finds_no_host() {
    let siege = siege();
    let endpoint = siege.site.address().to_string();
    let client = |more: &[&str]| {
        let mut client = siege.site.command(program("openssl"));
        client.args([
            "s_client",
            "-connect",
            &endpoint,
            "-tls1_3",
            "-cert",
            "client.crt",
            "-key",
            "client.key",
            "-ign_eof",
        ]);
        Watched::start(client.args(more).current_dir(&siege.site.root).stdin(Stdio::piped()))
    };
    for offered in ["h2", "h2,http/1.0,ssh/2", "HTTP/1.1", "acme-tls/1"] {
        let client = client(&["-servername", SERVER_NAME, "-alpn", offered]);
        wait_until(offered, SOON, || client.stderr().contains("no application protocol"));
    }
    for (name, status) in
        [("HOST123.tunnel.test", "200"), ("host123.tunnel.test.", "421"), ("xn--hst123-qqf.tunnel.test", "421")]
    {
        let mut client = client(&["-servername", name, "-alpn", "h2,http/1.1"]);
        client.write(get("/host", "").replace(SERVER_NAME, name).as_bytes());
        client.wait_for_output(&format!("HTTP/1.1 {status} "));
    }
    siege.end();
}

//! Requests whose end two readers would see in different places (RFC 9112 §6, §11.2), and second requests behind or inside
//! the first. Whatever hides in them is never carried out, and never answered: a connection has one request.

use std::fs;

use crate::siege::{RAW, STARTS, Siege, get, post, post_as_is};
use crate::support_net::site::SERVER_NAME;

/// A whole request that would start something, to be hidden somewhere.
fn hidden() -> String {
    post("/command", RAW, STARTS)
}

/// A path, fields and a body that are refused with 400.
#[track_caller]
fn all_are_malformed(siege: &Siege, path: &str, cases: &[(String, String)]) {
    for (fields, body) in cases {
        let what = format!("{path} with {fields:?} and {body:?}");
        siege.caller.say_all(post_as_is(path, fields, body)).is_refused(&what, 400, "bad-request");
        siege.nothing_happened(&what);
    }
}

#[test]
fn a_length_that_is_not_one_plain_number_is_refused() {
    let siege = Siege::any();
    let lengths = [
        "",
        " ",
        "+28",
        "-28",
        "-0",
        "0x1c",
        "28.0",
        "2 8",
        "28 28",
        "28, 28",
        "28,",
        ",28",
        "28;q=1",
        "28\t28",
        "2_8",
        "1e1",
        "２８",
        "28\u{a0}",
        "\"28\"",
        "99999999999999999999999999",
        "18446744073709551616",
    ];
    let cases: Vec<_> =
        lengths.iter().map(|length| (format!("{RAW}Content-Length: {length}\r\n"), STARTS.to_owned())).collect();
    all_are_malformed(&siege, "/command", &cases);
    all_are_malformed(&siege, "/copy/x", &cases);
    siege.end();
}

#[test]
fn a_length_that_nobody_could_send_is_refused_by_its_number() {
    let siege = Siege::any();
    for (length, status) in [("9223372036854775808", 413), ("18446744073709551614", 431), ("18446744073709551615", 431)]
    {
        for path in ["/command", "/copy/x"] {
            let heard = siege.caller.say(post_as_is(path, &format!("{RAW}Content-Length: {length}\r\n"), STARTS));
            heard.is_refused(length, status, "bad-request");
            siege.nothing_happened(length);
        }
    }
    siege.end();
}

#[test]
fn two_lengths_are_one_only_where_they_agree() {
    let siege = Siege::any();
    let body = STARTS.to_owned();
    let of = |first: &str, second: &str| {
        (format!("{RAW}Content-Length: {first}\r\nContent-Length: {second}\r\n"), body.clone())
    };
    let cases =
        [of("28", "0"), of("0", "28"), of("28", "29"), of("28", ""), of("", "28"), of("28", "+28"), of("28", "x")];
    all_are_malformed(&siege, "/command", &cases);
    all_are_malformed(&siege, "/copy/x", &cases);
    // RFC 9112 §6.3: the same number twice may be taken for that number.
    let twice = "Content-Length: 5\r\ncontent-length: 5\r\n";
    siege.caller.say(post_as_is("/copy/x", twice, "12345") + &hidden()).is_served("the same length twice", 201);
    assert_eq!(fs::read(siege.site.home.join("x")).unwrap(), b"12345");
    fs::remove_file(siege.site.home.join("x")).unwrap();
    siege.nothing_happened("the same length twice");
    siege.end();
}

/// tstunnel-protocol(7): a request with a body has a Content-Length. A Transfer-Encoding is refused whatever it says, so that
/// nothing depends on how it is read.
#[test]
fn any_transfer_encoding_is_refused() {
    let siege = Siege::any();
    let (length, chunk) = (STARTS.len(), format!("{:x}\r\n{STARTS}\r\n0\r\n\r\n", STARTS.len()));
    let encodings = [
        "chunked",
        "Chunked",
        " chunked",
        "chunked ",
        "\tchunked",
        "chunked, identity",
        "identity, chunked",
        "chunked, chunked",
        "gzip, chunked",
        "xchunked",
        "chunkedx",
        "x chunked",
        "chunked;x=y",
        "\"chunked\"",
        "'chunked'",
        "chunked,",
        ",chunked",
        "identity",
        "gzip",
        "",
        "chunked\u{a0}",
        "\u{ff43}hunked",
        "cow",
        "chu\u{6e}ked\u{200b}",
    ];
    for encoding in encodings {
        let field = format!("Transfer-Encoding: {encoding}\r\n");
        let length_field = format!("Content-Length: {length}\r\n");
        let cases = [
            (format!("{RAW}{field}"), chunk.clone()),
            // CL.TE and TE.CL.
            (format!("{RAW}{length_field}{field}"), chunk.clone()),
            (format!("{RAW}{field}{length_field}"), format!("{STARTS}{}", hidden())),
            (format!("{RAW}{field}Content-Length: 4\r\n"), format!("{chunk}{}", hidden())),
            // TE.TE.
            (format!("{RAW}{field}Transfer-Encoding: identity\r\n"), chunk.clone()),
            (format!("{RAW}Transfer-Encoding: x\r\n{field}"), chunk.clone()),
        ];
        for path in ["/command", "/copy/x"] {
            all_are_malformed(&siege, path, &cases);
        }
    }
    siege.end();
}

#[test]
fn chunks_of_every_odd_shape_are_refused_before_they_are_read() {
    let siege = Siege::any();
    let chunks = [
        "1c;x=y\r\n",
        "1C\n",
        "0x1c\r\n",
        "+1c\r\n",
        "-1\r\n",
        " 1c\r\n",
        "1c \r\n",
        "1c;\n\r\n",
        "ffffffffffffffff\r\n",
        "10000000000000000001c\r\n",
        "\r\n",
        "1c\r",
        "1c\0\r\n",
        "g\r\n",
    ];
    for chunk in chunks {
        let field = format!("{RAW}Transfer-Encoding: chunked\r\n");
        let body = format!("{chunk}{STARTS}\r\n0\r\nX: y\r\n\r\n{}", hidden());
        all_are_malformed(&siege, "/command", &[(field.clone(), body.clone())]);
        all_are_malformed(&siege, "/copy/x", &[(field, body)]);
    }
    let endless = format!("1;{}", "x".repeat(64 << 10));
    all_are_malformed(&siege, "/copy/x", &[("Transfer-Encoding: chunked\r\n".to_owned(), endless)]);
    siege.end();
}

/// The field's name is what decides, so what only looks like it is not there.
#[test]
fn fields_that_only_look_like_a_length_are_none() {
    let siege = Siege::any();
    for name in ["Content_Length", "Content-Lenght", "X-Content-Length", "ContentLength", "Content--Length"] {
        let fields = format!("{name}: {}\r\n", STARTS.len());
        all_are_malformed(&siege, "/copy/x", &[(fields.clone(), STARTS.to_owned())]);
        // Without a length there is no body, and an empty one is no command.
        all_are_malformed(&siege, "/command", &[(format!("{RAW}{fields}"), STARTS.to_owned())]);
    }
    for name in ["Transfer_Encoding", "X-Transfer-Encoding", "Transfer-Encodin"] {
        let fields = format!("{name}: chunked\r\n");
        let heard = siege.caller.say(post("/copy/x", &fields, "0\r\n\r\n") + &hidden());
        heard.is_served(name, 201);
        assert_eq!(fs::read(siege.site.home.join("x")).unwrap(), b"0\r\n\r\n", "{name}");
        fs::remove_file(siege.site.home.join("x")).unwrap();
        siege.nothing_happened(name);
    }
    siege.end();
}

#[test]
fn a_second_request_behind_the_first_is_never_answered() {
    let siege = Siege::any();
    let firsts = [
        ("a question", get("/host", ""), 200),
        ("a question with a length of nothing", get("/host", "Content-Length: 0\r\n"), 200),
        ("a question that wants to stay", get("/host", "Connection: keep-alive\r\nKeep-Alive: timeout=99\r\n"), 200),
        ("an upload", post("/copy/x", "", "first"), 201),
        ("a question about an upload", get("/copy/x", "").replacen("GET", "HEAD", 1), 400),
        ("a path that is not there", get("/nowhere", ""), 404),
        ("a method that is wrong", get("/command", ""), 405),
        ("an upgrade that is none", post("/command", "", STARTS), 426),
        ("a command that is none", post("/command", RAW, "{}"), 400),
        ("a head that is malformed", get("/host", "X y\r\n"), 400),
    ];
    for (what, first, status) in firsts {
        for between in ["", "\r\n", "\r\n\r\n"] {
            for second in [hidden(), post("/copy/second", "", "second"), get("/host", "")] {
                let heard = siege.caller.say(format!("{first}{between}{second}"));
                // An answer to HEAD has a length and no body.
                let (answers, _) = heard.answers();
                assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [status], "{what}");
                let _ = fs::remove_file(siege.site.home.join("x"));
                siege.nothing_happened(what);
            }
        }
    }
    siege.end();
}

#[test]
fn a_request_inside_a_body_is_that_bodys_bytes() {
    let siege = Siege::any();
    let inside = hidden() + &get("/host", "");
    // As a file.
    siege.caller.say(post("/copy/x", "", &inside)).is_served("a request as a file", 201);
    assert_eq!(fs::read_to_string(siege.site.home.join("x")).unwrap(), inside);
    fs::remove_file(siege.site.home.join("x")).unwrap();
    // As the body of a request that takes none.
    siege
        .caller
        .say(format!("{}{inside}", get("/host", &format!("Content-Length: {}\r\n", inside.len()))))
        .is_served("GET", 200);
    siege.caller.say(post("/host", "", &inside)).is_refused("POST", 405, "bad-request");
    // As a command.
    siege.caller.say(post("/command", RAW, &inside)).is_refused("a request as a command", 400, "bad-request");
    siege.nothing_happened("a request inside a body");
    // As what follows an upgrade: the stream's own bytes.
    for command in ["{\"command\": \"cat\"}", "{\"command\": \"cat; touch x\"}"] {
        let heard = siege.caller.say_all(post("/command", RAW, command) + &inside);
        let (answers, stream) = heard.answers();
        assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [101]);
        assert_eq!(String::from_utf8_lossy(stream), inside);
    }
    siege.site.wait_until_idle();
    assert_eq!(siege.site.names(), ["x"]);
    fs::remove_file(siege.site.home.join("x")).unwrap();
    siege.nothing_happened("a request behind an upgrade");
    siege.end();
}

#[test]
fn an_answer_in_a_requests_place_is_malformed() {
    let siege = Siege::any();
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    siege.caller.say(format!("{answer}{}", hidden())).is_refused("an answer", 400, "bad-request");
    siege.caller.say(post("/command", RAW, answer)).is_refused("an answer as a body", 400, "bad-request");
    let told = format!("{RAW}Content-Length: 0\r\n\r\n{answer}");
    siege.caller.say(post_as_is("/command", &told, STARTS)).is_refused(
        "an answer behind an empty body",
        400,
        "bad-request",
    );
    siege.nothing_happened("an answer in a request's place");
    siege.caller.say(post("/copy/x", "", answer)).is_served("an answer as a file", 201);
    assert_eq!(fs::read_to_string(siege.site.home.join("x")).unwrap(), answer);
    fs::remove_file(siege.site.home.join("x")).unwrap();
    siege.end();
}

/// Names of hop-by-hop fields in Connection remove nothing that the server decides by.
#[test]
fn fields_that_connection_names_are_read_all_the_same() {
    let siege = Siege::any();
    for named in ["Host", "Content-Length", "Content-Length, Host, Upgrade"] {
        let fields = format!("Connection: {named}\r\n");
        let heard = siege.caller.say(post("/copy/x", &fields, "12345") + &hidden());
        heard.is_served(named, 201);
        assert_eq!(fs::read(siege.site.home.join("x")).unwrap(), b"12345", "{named}");
        fs::remove_file(siege.site.home.join("x")).unwrap();
        let other = format!("GET /tinyscale/v1/host HTTP/1.1\r\nHost: other.{SERVER_NAME}\r\n{fields}\r\n");
        siege.caller.say(other).is_refused(named, 421, "host-unknown");
        siege.nothing_happened(named);
    }
    siege.end();
}

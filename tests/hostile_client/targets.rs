//! Requests for another host, path or method than those that there are, in every form that a target can have (RFC 9112 §3).

use crate::caller;
use crate::siege::{Siege, request};
use crate::support_net::site::SERVER_NAME;

#[test]
fn a_request_has_exactly_one_host_and_a_valid_one() {
    let siege = Siege::any();
    let hosts: &[&[u8]] = &[
        b"",
        b"Host:\r\n",
        b"Host: \r\n",
        b"Host: host123.tunnel.test\r\nHost: host123.tunnel.test\r\n",
        b"Host: host123.tunnel.test\r\nhost: other\r\n",
        b"HOST: other\r\nHost: host123.tunnel.test\r\n",
        b"Host: host123.tunnel.test, other\r\n",
        b"Host: host123.tunnel.test other\r\n",
        b"Host: host123.tunnel.test\tx\r\n",
        b"Host: ann@host123.tunnel.test\r\n",
        b"Host: ann:secret@host123.tunnel.test\r\n",
        b"Host: @host123.tunnel.test\r\n",
        b"Host: host123.tunnel.test/\r\n",
        b"Host: host123.tunnel.test/tinyscale\r\n",
        b"Host: host123.tunnel.test?x\r\n",
        b"Host: host123.tunnel.test#x\r\n",
        b"Host: https://host123.tunnel.test\r\n",
        b"Host: host123.tunnel.test:x\r\n",
        b"Host: host123.tunnel.test:80:80\r\n",
        b"Host: host123.tunnel.test:-1\r\n",
        b"Host: host123.tunnel.test:+1\r\n",
        b"Host: host123%2etunnel.test\r\n",
        b"Host: host123.tunnel.test%00\r\n",
        b"Host: \"host123.tunnel.test\"\r\n",
        b"Host: <host123.tunnel.test>\r\n",
        b"Host: host123.tunnel.test\\\r\n",
        b"Host: host123.tunnel.t\xc3\xa9st\r\n",
        b"Host: host123.tunnel.test\xff\r\n",
        b"Host: [::1\r\n",
        b"Host: ::1\r\n",
    ];
    for host in hosts {
        siege.is_malformed(host, &request(b"POST /tinyscale/v1/command HTTP/1.1", host));
    }
    siege.end();
}

#[test]
fn a_request_for_any_other_host_is_misdirected() {
    let siege = Siege::any();
    let others = [
        "tunnel.test",
        "host123",
        "host124.tunnel.test",
        "x.host123.tunnel.test",
        "host123.tunnel.test.",
        "host123.tunnel.test.x",
        "127.0.0.1",
        "[::1]",
        "[::1]:8443",
        "localhost",
        ":8443",
        "xn--host123-9za.tunnel.test",
        "*.tunnel.test",
        "host123.tunnel.test;x",
    ];
    for other in others {
        let wire = request(b"POST /tinyscale/v1/command HTTP/1.1", format!("Host: {other}\r\n").as_bytes());
        siege.caller.say(wire).is_refused(other, 421, "host-unknown");
        siege.nothing_happened(other);
    }
    for right in ["HOST123.tunnel.TEST", "host123.tunnel.test:", "host123.tunnel.test:1", "host123.tunnel.test:99999"] {
        let wire = format!("GET /tinyscale/v1/host HTTP/1.1\r\nHost: {right}\r\n\r\n");
        siege.caller.say(wire).is_served(right, 200);
    }
    siege.end();
}

/// RFC 9112 §3.2.2: an authority in the target goes before that in Host. Here both must be the server's.
#[test]
fn a_target_with_an_authority_is_for_that_authority() {
    let siege = Siege::any();
    let host = format!("Host: {SERVER_NAME}\r\n");
    let posted =
        |target: &str| siege.caller.say(request(format!("POST {target} HTTP/1.1").as_bytes(), host.as_bytes()));
    for other in [
        "https://other.tunnel.test/tinyscale/v1/command",
        "https://tunnel.test:8443/tinyscale/v1/command",
        "https://127.0.0.1/tinyscale/v1/command",
        "http://host123.tunnel.test/tinyscale/v1/command",
        "ftp://host123.tunnel.test/tinyscale/v1/command",
        "https://host123.tunnel.test./tinyscale/v1/command",
        "other.tunnel.test:443",
        "https:",
    ] {
        posted(other).is_refused(other, 421, "host-unknown");
        siege.nothing_happened(other);
    }
    for malformed in [
        "https://ann@host123.tunnel.test/tinyscale/v1/command",
        "https://host123.tunnel.test@other/tinyscale/v1/command",
        "https://host123.tunnel.test:x/tinyscale/v1/command",
        "https:///tinyscale/v1/command",
        "https:/tinyscale/v1/command",
    ] {
        siege.is_malformed(
            malformed.as_bytes(),
            &request(format!("POST {malformed} HTTP/1.1").as_bytes(), host.as_bytes()),
        );
    }
    for nowhere in [
        "*",
        "//host123.tunnel.test/tinyscale/v1/command",
        "//tinyscale/v1/command",
        "/tinyscale/v1//command",
        "/./tinyscale/v1/command",
        "/tinyscale/v1/x/../command",
        "/tinyscale/v1/%63ommand",
        "/tinyscale/v1/command/",
        "/tinyscale/v1/command;x",
        "/TINYSCALE/v1/command",
        "/tinyscale/v1/command%00",
        "/tinyscale/v1/command%20",
        "/tinyscale/v1/command\\",
        "host123.tunnel.test:443",
        "/",
    ] {
        posted(nowhere).is_refused(nowhere, 404, "bad-request");
        siege.nothing_happened(nowhere);
    }
    let whole = format!("GET https://HOST123.tunnel.test:1/tinyscale/v1/host HTTP/1.1\r\n{host}\r\n");
    siege.caller.say(&whole).is_served("absolute form", 200);
    siege.caller.say(whole.replace(&host, "Host: other\r\n")).is_refused(
        "absolute form and another Host",
        421,
        "host-unknown",
    );
    siege.caller.say(whole.replace(&host, "")).is_refused("absolute form without Host", 400, "bad-request");
    siege.end();
}

#[test]
fn methods_that_a_path_does_not_take_are_named_and_start_nothing() {
    let siege = Siege::any();
    let host = format!("Host: {SERVER_NAME}\r\n");
    for method in [
        "post",
        "Post",
        "GET",
        "PUT",
        "PATCH",
        "DELETE",
        "TRACE",
        "CONNECT",
        "OPTIONS",
        "POSTX",
        "XPOST",
        "PRI",
        &"M".repeat(8000),
    ] {
        let line = format!("{method} /tinyscale/v1/command HTTP/1.1");
        let heard = siege.caller.say(request(line.as_bytes(), host.as_bytes()));
        let what = method.get(..8).unwrap_or(method);
        // The target of CONNECT is an authority, which a path is not.
        if method == "CONNECT" {
            assert!([400, 404, 405, 421].contains(&heard.answer().status), "{heard:?}");
        } else {
            heard.is_refused(what, 405, "bad-request");
            assert_eq!(caller::field(&heard.answer().head, "allow"), Some("POST"));
        }
        siege.nothing_happened(what);
    }
    let tunnel = format!("CONNECT host123.tunnel.test:22 HTTP/1.1\r\n{host}\r\nSSH-2.0-x\r\n");
    siege.caller.say(tunnel).is_refused("a tunnel", 404, "bad-request");
    siege.end();
}

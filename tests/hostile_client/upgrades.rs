//! Upgrades and expectations that are almost what they look like (RFC 9110 §7.8, §10.1.1).

use std::fs;

use crate::caller;
use crate::siege::{RAW, STARTS, Siege, get, post};
use crate::support_net::site::SERVER_NAME;

/// RFC 9110 §7.8 has a server ignore the upgrade of an HTTP/1.0 request; here all of it is refused.
#[test]
fn an_upgrade_in_http_1_0_starts_nothing() {
    let siege = Siege::any();
    for fields in ["", "Connection: keep-alive\r\n", "Host: host123.tunnel.test\r\nHost: host123.tunnel.test\r\n"] {
        let old = post("/command", &format!("{RAW}{fields}"), STARTS).replace("HTTP/1.1", "HTTP/1.0");
        siege.is_malformed(fields.as_bytes(), old.as_bytes());
        siege.is_malformed(fields.as_bytes(), get("/host", fields).replace("HTTP/1.1", "HTTP/1.0").as_bytes());
    }
    siege.end();
}

#[test]
fn only_an_upgrade_that_is_asked_for_by_name_and_by_connection_is_made() {
    let siege = Siege::any();
    let refused = [
        "",
        "Upgrade: tcp\r\n",
        "Connection: Upgrade\r\n",
        "Connection: Upgrade\r\nUpgrade:\r\n",
        "Connection: Upgradex\r\nUpgrade: tcp\r\n",
        "Connection: xupgrade\r\nUpgrade: tcp\r\n",
        "Connection: \"Upgrade\"\r\nUpgrade: tcp\r\n",
        "Connection: Upgrade;q=1\r\nUpgrade: tcp\r\n",
        "Connection: keep-alive close\r\nUpgrade: tcp\r\n",
        "Connection: Upgrade tcp\r\nUpgrade: tcp\r\n",
        "Connection: Upgrade\r\nUpgrade: tcp/1\r\n",
        "Connection: Upgrade\r\nUpgrade: xtcp\r\n",
        "Connection: Upgrade\r\nUpgrade: tcp tstunnel/1\r\n",
        "Connection: Upgrade\r\nUpgrade: \"tcp\"\r\n",
        "Connection: Upgrade\r\nUpgrade: tcp;v=1\r\n",
        "Connection: Upgrade\r\nUpgrade: tstunnel\r\n",
        "Connection: Upgrade\r\nUpgrade: tstunnel/2\r\n",
        "Connection: Upgrade\r\nUpgrade: tstunnel/1.0\r\n",
        "Connection: Upgrade\r\nUpgrade: *\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n",
        "Connection: Upgrade\r\nUpgrade: tc\u{440}\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Proxy-Connection: Upgrade\r\nUpgrade: tcp\r\n",
    ];
    for fields in refused {
        let heard = siege.caller.say(post("/command", fields, STARTS));
        heard.is_refused(fields, 426, "bad-request");
        assert_eq!(caller::field(&heard.answer().head, "upgrade"), Some("tstunnel/1, tcp"), "{fields}");
        siege.nothing_happened(fields);
    }
    let many = format!("Connection: Upgrade\r\nUpgrade: {}tcp\r\n", "x,".repeat(5000));
    let made = [
        "Connection: upgrade\r\nUpgrade: TCP\r\n",
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket, tcp\r\n",
        "Connection: close, UPGRADE\r\nUpgrade: tcp\r\n",
        "Connection: close\r\nConnection: Upgrade\r\nUpgrade: x\r\nUpgrade: tcp\r\n",
        "Connection: ,, Upgrade ,\r\nUpgrade: ,, tcp ,,\r\n",
        "Connection:Upgrade\r\nUpgrade:\ttcp\t\r\n",
        &many,
    ];
    for fields in made {
        let heard = siege.caller.say_all(post("/command", fields, "{\"command\": \"cat\"}") + "bytes");
        let (answers, stream) = heard.answers();
        assert_eq!((answers.len(), answers[0].status, stream), (1, 101, b"bytes".as_slice()), "{fields}: {heard:?}");
        assert_eq!(caller::field(&answers[0].head, "upgrade"), Some("tcp"), "{fields}");
    }
    siege.site.wait_until_idle();
    siege.nothing_happened("upgrades");
    siege.end();
}

/// RFC 9110 §10.1.1: what is expected beyond 100-continue may be passed over.
#[test]
fn an_expectation_that_is_odd_changes_nothing() {
    let siege = Siege::any();
    for value in [
        "",
        "200-ok",
        "100-continued",
        "100-continue, x",
        "x=\"y\"",
        "100",
        "100-continue\r\nExpect: 100-continue",
        "100-CONTINUE",
    ] {
        let heard = siege.caller.say(post("/copy/x", &format!("Expect: {value}\r\n"), "12345"));
        let (answers, rest) = heard.answers();
        let last = answers.last().unwrap();
        assert!(
            rest.is_empty() && last.status == 201 && answers.iter().rev().skip(1).all(|answer| answer.status == 100),
            "{value}: {heard:?}"
        );
        fs::remove_file(siege.site.home.join("x")).unwrap();
        // One that is refused is not asked for its body.
        let refused = siege.caller.say(format!(
            "POST /tinyscale/v1/copy/%2e HTTP/1.1\r\nHost: {SERVER_NAME}\r\nExpect: {value}\r\nContent-Length: 5\r\n\r\n"
        ));
        refused.is_refused(value, 400, "bad-request");
        siege.nothing_happened(value);
    }
    siege.end();
}

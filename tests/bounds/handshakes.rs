//! However many hold a handshake, whoever speaks at once is let in.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use crate::raw::{assert_goes_on, client_hello, connect_from, held_session, is_open};
use crate::support::wait::{SOON, wait_until};
use crate::support_net::child::run;
use crate::support_net::site::{Plan, Site};

#[test]
fn a_client_is_let_in_at_once_however_many_connections_say_nothing() {
    let site = Site::start(&Plan::any().limit("max_handshakes = 8").limit("handshake_timeout = \"10m\""));
    let mut held = held_session(&site);
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..5 {
        silent.extend((0..200).map(|_| connect_from(Ipv4Addr::LOCALHOST, site.address())));
        let ran = run(&mut site.exec(&["echo", "in"])).ok();
        assert_eq!(ran.text(), "in\n");
        assert!(ran.took < Duration::from_secs(5), "{ran:?}");
    }
    wait_until("the others were hung up on", SOON, || {
        silent.iter_mut().map(is_open).filter(|is_open| *is_open).count() <= 8
    });
    assert_goes_on(&mut held);
    let lines = site.server_log().matches("there were too many handshakes").count();
    assert_eq!(lines, 1, "one line for a source and a minute\n{}", site.server_log());
}

#[test]
fn a_client_is_let_in_when_those_that_began_do_not_go_on() {
    let site = Site::start(&Plan::any().limit("max_handshakes = 8").limit("handshake_timeout = \"10m\""));
    let hello = client_hello();
    let mut stalled: Vec<TcpStream> = Vec::new();
    wait_until("all places are taken by some that were answered", SOON, || {
        let mut stream = connect_from(Ipv4Addr::LOCALHOST, site.address());
        // Where there is no place for it, it is hung up on.
        let is_answered = stream.write_all(&hello).and_then(|()| stream.read_exact(&mut [0; 1])).is_ok();
        stalled.extend(is_answered.then_some(stream));
        stalled.len() >= 8
    });
    wait_until("a client is let in", SOON, || run(&mut site.exec(&["true"])).status.success());
}

#[test]
fn one_that_has_failed_keeps_nobody_out_while_it_is_waited_for() {
    let site = Site::start(&Plan::any().limit("max_handshakes = 2"));
    let failed: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = connect_from(Ipv4Addr::LOCALHOST, site.address());
            // It is read by the server for a moment longer, and never ends.
            let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| stream.read_exact(&mut [0; 7]));
            stream
        })
        .collect();
    run(&mut site.exec(&["true"])).ok();
    drop(failed);
}

#[test]
fn a_handshake_that_is_too_slow_is_ended() {
    let site = Site::start(&Plan::any().limit("handshake_timeout = \"1s\""));
    let hello = client_hello();
    for said in [&[][..], &hello[..1], &hello[..hello.len() - 1], &hello] {
        let start = Instant::now();
        let mut stream = connect_from(Ipv4Addr::LOCALHOST, site.address());
        stream.write_all(said).unwrap();
        stream.read_to_end(&mut Vec::new()).expect("no reset");
        assert!(start.elapsed() > Duration::from_millis(900));
    }
}

//! Load balancers in front of the server: HAProxy, and one that says what a test wants.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;
use support::port;
use support::process::{Group, program};
use support::serve::records;
use support::wait::{SOON, wait_for, wait_until};
use support_net::child::{run, run_with_input};
use support_net::fake::tcp_server;
use support_net::report::fails;
use support_net::site::{HOST, PRINCIPAL, Plan, Site, text};

/// More than any buffer on the way holds.
fn contents() -> Vec<u8> {
    (0..4_000_000_u32).map(|index| (index / 251) as u8).collect()
}

/// The first record about `event` for which `is_meant` holds.
#[track_caller]
fn wait_for_record(site: &Site, event: &str, is_meant: impl Fn(&Value) -> bool) -> Value {
    wait_for(&format!("a record {event}"), SOON, || records(&site.server_log(), event).into_iter().find(&is_meant))
}

/// HAProxy that routes by SNI and leaves TLS alone; its port. `options` are those of each of its servers.
fn haproxy(folder: &Path, routes: &[(&str, SocketAddr)], options: &str) -> (Group, u16) {
    let port = port::free();
    let mut text = format!(
        "global\n    maxconn 100\ndefaults\n    mode tcp\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n\
         frontend tls\n    bind 127.0.0.1:{port}\n    tcp-request inspect-delay 5s\n    \
         tcp-request content accept if {{ req_ssl_hello_type 1 }}\n"
    );
    for (index, (name, _)) in routes.iter().enumerate() {
        text += &format!("    use_backend server{index} if {{ req_ssl_sni -i {name} }}\n");
    }
    for (index, (_, address)) in routes.iter().enumerate() {
        text += &format!("backend server{index}\n    server only {address} {options}\n");
    }
    let file = folder.join("haproxy.cfg");
    fs::write(&file, text).unwrap();
    let log = fs::File::create(folder.join("haproxy.log")).unwrap();
    let mut process = Group::spawn(
        Command::new(program("haproxy"))
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log),
    );
    wait_until("haproxy listens", SOON, || {
        let ended = process.ended();
        assert!(ended.is_none(), "haproxy: {ended:?}\n{}", fs::read_to_string(folder.join("haproxy.log")).unwrap());
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
    });
    (process, port)
}

#[test]
fn haproxy_routes_by_server_name_without_ending_tls() {
    let mut sites = [Site::new(), Site::new()];
    for (site, id) in sites.iter_mut().zip(["a", "b"]) {
        site.serve(&Plan::any().tables(&format!(
            "[host.{id}]\nhome = \"{}\"\ncommands = \"any\"\n[[grant]]\nprincipal = \"{PRINCIPAL}\"\nhosts = [\"{id}\"]",
            site.home.display()
        )));
    }
    let routes = [("a.tunnel.test", sites[0].address()), ("b.tunnel.test", sites[1].address())];
    let (_haproxy, port) = haproxy(&sites[0].root, &routes, "");
    for (site, id) in sites.iter().zip(["a", "b"]) {
        site.configure(format_args!("127.0.0.1:{port}"), &format!("host_id = \"{id}\"\nsni = \"{id}.tunnel.test\""));
        assert_eq!(run(&mut site.exec(&["pwd"])).ok().text(), format!("{}\n", site.home.display()));
        let contents = contents();
        let ran = run_with_input(&mut site.exec(&["cat"]), &contents).ok();
        assert!(ran.stdout == contents);
        let file = site.local_file("uploaded", &contents);
        run(&mut site.tstunnel(&["upload", text(&file), HOST])).ok();
        assert!(fs::read(site.home.join("uploaded")).unwrap() == contents);
    }
    // A server name without a route ends at HAProxy, which closes.
    sites[0].configure(format_args!("127.0.0.1:{port}"), "host_id = \"c\"\nsni = \"c.tunnel.test\"");
    fails(&mut sites[0].exec(&["pwd"]), 255, "tls-handshake");
}

#[test]
fn haproxy_says_whose_connection_it_passes_on() {
    // It connects from an address of its own, so that the client's is another.
    let plan = Plan::any().top("proxy_protocol = [\"127.0.0.9\"]");
    for version in ["send-proxy", "send-proxy-v2", "send-proxy-v2 check check-send-proxy inter 100ms"] {
        let site = Site::start(&plan);
        let options = format!("source 127.0.0.9 {version}");
        let (_haproxy, port) = haproxy(&site.root, &[(&format!("{HOST}.tunnel.test"), site.address())], &options);
        site.configure(format_args!("127.0.0.1:{port}"), &format!("sni = \"{HOST}.tunnel.test\""));
        let contents = contents();
        let ran = run_with_input(&mut site.exec(&["cat"]), &contents).ok();
        assert!(ran.stdout == contents, "{version}");
        let record = wait_for_record(&site, "session", |_| true);
        assert!(record["source"].as_str().unwrap().starts_with("127.0.0.1:"), "{version}: {record}");
        // Whoever comes by another way needs no header, and may have none.
        site.configure_more("");
        run(&mut site.exec(&["true"])).ok();
    }
}

/// A balancer that says `header` in front of each connection's bytes.
fn balancer(server: SocketAddr, header: &str) -> SocketAddr {
    let header = header.to_owned();
    tcp_server(move |mut client| {
        let mut server = TcpStream::connect(server).unwrap();
        server.write_all(header.as_bytes()).unwrap();
        let (mut to_server, mut from_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let there = thread::spawn(move || {
            let _ = io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut server, &mut client);
        let _ = client.shutdown(Shutdown::Both);
        there.join().unwrap();
    })
}

fn from(source: &str) -> String {
    format!("PROXY TCP4 {source} 198.51.100.1 50000 443\r\n")
}

/// A site whose clients all come through a balancer, and another host there for those of one network.
fn balanced() -> Site {
    let mut site = Site::new();
    let home = site.home.display().to_string();
    site.serve(
        &Plan::any()
            .top("proxy_protocol = [\"127.0.0.0/8\"]")
            .limit("penalty_threshold = \"30s\"\npenalty_failed = \"20s\"\nhandshake_timeout = \"2s\"")
            .tables(&format!(
                "[host.inner]\nhome = \"{home}\"\ncommands = \"any\"\n[[grant]]\nprincipal = \"{PRINCIPAL}\"\n\
                 hosts = [\"inner\"]\nsources = [\"192.0.2.0/24\"]"
            )),
    );
    site
}

#[test]
fn sources_of_a_grant_are_the_addresses_that_the_balancer_says() {
    let site = balanced();
    for (source, is_granted) in [("192.0.2.7", true), ("203.0.113.5", false)] {
        let endpoint = balancer(site.address(), &from(source));
        site.configure(endpoint, "host_id = \"inner\"\nsni = \"inner.tunnel.test\"");
        if is_granted {
            run(&mut site.exec(&["true"])).ok();
        } else {
            fails(&mut site.exec(&["true"]), 255, "host-unknown");
        }
        let event = if is_granted { "session" } else { "refused" };
        let record = wait_for_record(&site, event, |_| true);
        assert_eq!(record["source"], format!("{source}:50000"), "{record}");
    }
}

#[test]
fn penalties_are_the_clients_and_not_the_balancers() {
    let site = balanced();
    let (bad, good) = (balancer(site.address(), &from("203.0.113.5")), balancer(site.address(), &from("192.0.2.7")));
    let is_shut_out = || {
        let mut stranger = TcpStream::connect(bad).unwrap();
        let _ = stranger.write_all(b"this is no TLS at all, whatever it may be");
        let _ = stranger.read_to_end(&mut Vec::new());
        records(&site.server_log(), "shut-out").pop()
    };
    let record = wait_for("the stranger is shut out", SOON, is_shut_out);
    assert_eq!(record["source"], "203.0.113.5", "{record}");
    site.configure(bad, "");
    fails(&mut site.exec(&["true"]), 255, "too-many");
    site.configure(good, "");
    run(&mut site.exec(&["true"])).ok();
}

#[test]
fn a_balancer_that_speaks_for_itself_has_its_own_address() {
    let site = balanced();
    site.configure(balancer(site.address(), "PROXY UNKNOWN\r\n"), "");
    run(&mut site.exec(&["true"])).ok();
    let record = wait_for_record(&site, "session", |_| true);
    assert!(record["source"].as_str().unwrap().starts_with("127.0.0.1:"), "{record}");
}

#[test]
fn who_must_send_a_header_and_does_not_is_closed() {
    let site = balanced();
    fails(&mut site.exec(&["true"]), 255, "tls-handshake");
    let reason = "no header of the PROXY protocol came from an address that `proxy_protocol` names: switch it on in the balancer, or \
                  leave the address out";
    let is_meant = |record: &Value| record["reason"] == reason && record["code"] == "protocol";
    let record = wait_for_record(&site, "handshake", is_meant);
    assert!(record["source"].as_str().unwrap().starts_with("127.0.0.1:"), "{record}");
    let endless = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &[0; 5000]].concat();
    for (sent, code) in [(&endless[..], "protocol"), (b"PROXY TCP4 1.2.3", "slow"), (b"", "slow")] {
        let before = records(&site.server_log(), "handshake").len();
        let mut peer = TcpStream::connect((Ipv4Addr::LOCALHOST, site.address().port())).unwrap();
        peer.write_all(sent).unwrap();
        // It is closed, or reset where not everything was read.
        let _ = peer.read_to_end(&mut Vec::new());
        let is_there = || records(&site.server_log(), "handshake").into_iter().nth(before);
        assert_eq!(wait_for("its record", SOON, is_there)["code"], code, "{sent:?}");
    }
    // One that only looks whether somebody listens, and one that is gone in the middle.
    for sent in [&b""[..], b"PROXY TCP4 1.2.3"] {
        let before = records(&site.server_log(), "handshake").len();
        let mut peer = TcpStream::connect((Ipv4Addr::LOCALHOST, site.address().port())).unwrap();
        peer.write_all(sent).unwrap();
        drop(peer);
        wait_until("its record", SOON, || records(&site.server_log(), "handshake").len() > before);
    }
    site.configure(balancer(site.address(), &from("192.0.2.7")), "");
    run(&mut site.exec(&["true"])).ok();
}

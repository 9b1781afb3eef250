//! A source that fails to authenticate again and again is shut out for a time; nobody else is.

use std::net::Ipv4Addr;

use crate::raw::{assert_goes_on, held_session, is_answered};
use crate::support::wait::{SOON, wait_until};
use crate::support_net::child::run;
use crate::support_net::site::{Plan, Site};

const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 9, 9, 9);

/// Loopback is as any other network, and four failures within two seconds are too many.
fn plan() -> Plan {
    Plan::any()
        .limit("penalty_exempt = []")
        .limit("penalty_failed = \"500ms\"")
        .limit("penalty_threshold = \"2s\"")
        .limit("penalty_max = \"5s\"")
}

fn is_shut_out(site: &Site, source: Ipv4Addr) {
    wait_until("a source that fails again and again is shut out", SOON, || !is_answered(source, site.address()));
}

#[test]
fn a_source_that_fails_again_and_again_is_shut_out_for_a_time_and_others_are_not() {
    let site = Site::start(&plan());
    assert!(is_answered(STRANGER, site.address()));
    is_shut_out(&site, STRANGER);
    run(&mut site.exec(&["true"])).ok();
    for _ in 0..100 {
        is_answered(STRANGER, site.address());
    }
    let log = site.server_log();
    assert_eq!(log.matches("closed connections from 127.9.9.9").count(), 1, "{log}");
    wait_until("its time runs down", SOON, || is_answered(STRANGER, site.address()));
}

#[test]
fn a_source_with_a_session_is_not_shut_out() {
    let site = Site::start(&plan());
    let mut held = held_session(&site);
    for _ in 0..20 {
        assert!(is_answered(Ipv4Addr::LOCALHOST, site.address()), "whoever shares the address must be able to resume");
    }
    run(&mut site.exec(&["true"])).ok();
    assert_goes_on(&mut held);
    held.wait().ok();
    is_shut_out(&site, Ipv4Addr::LOCALHOST);
    wait_until("its time runs down", SOON, || run(&mut site.exec(&["true"])).status.success());
}

#[test]
fn a_success_clears_what_was_collected() {
    let site = Site::start(&plan());
    for _ in 0..10 {
        assert!(is_answered(Ipv4Addr::LOCALHOST, site.address()) && is_answered(Ipv4Addr::LOCALHOST, site.address()));
        run(&mut site.exec(&["true"])).ok();
    }
}

#[test]
fn what_an_authenticated_client_may_not_do_is_no_failure() {
    let site = Site::start(&plan());
    for _ in 0..20 {
        let answer = run(&mut site.curl_to("other.tunnel.test", "/tinyscale/v1/host")).ok().text();
        assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    }
    run(&mut site.exec(&["true"])).ok();
}

#[test]
fn loopback_is_never_shut_out_unless_that_is_configured() {
    let site = Site::start(&Plan::any().limit("penalty_threshold = \"1s\""));
    for _ in 0..50 {
        assert!(is_answered(STRANGER, site.address()));
    }
}

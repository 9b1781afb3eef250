//! What interrupted sessions may hold is bounded: the one that was interrupted first gives way, and says so in the log.

use super::peer::{Caller, Session};
use super::run::host;
use crate::support::wait::{SOON, wait_until};

/// Says more than any window holds, and then what it is told.
const SCRIPT: &str = "seq 1 50000; exec cat";

#[test]
fn session_that_was_interrupted_first_gives_way_and_the_others_go_on() {
    // One principal may hold a quarter: two windows of 64 KiB, and not three.
    let remote = host()
        .with_limit("resume_memory_bytes = 640000")
        .with_limit("resume_window_bytes = 65536")
        .with_server_log("debug")
        .start();
    let caller = Caller::of(&remote);
    let mut sessions = [(); 3].map(|()| Session::start(&caller, SCRIPT));
    for session in &mut sessions {
        session.acknowledges = false;
        // Everything that the window holds is kept, because nothing is acknowledged.
        session.carry_until(60_000);
    }
    for (index, session) in sessions.iter_mut().enumerate() {
        assert!(!remote.server().log().contains("gives way"), "two fit");
        session.drop_connection();
        wait_until(&format!("session {index} is interrupted"), SOON, || {
            remote.server().log().matches("session interrupted").count() > index
        });
    }
    wait_until("the first gives way", SOON, || remote.server().records("end").len() == 1);

    let log = remote.server().log();
    assert_eq!(log.matches("interrupted session gives way: memory is short").count(), 1, "{log}");
    assert!(log.contains("interrupted, and gave way"), "{log}");
    let [first, others @ ..] = &mut sessions;
    caller.resume(&first.token, &first.received.to_string()).0.assert_refused(410, "session-lost");
    let numbers: String = (1..=50000).map(|number| format!("{number}\n")).collect();
    for session in others {
        session.acknowledges = true;
        session.resume().unwrap();
        session.carry_until(numbers.len());
        assert!(session.stdout == numbers.as_bytes());
        session.assert_alive();
    }
}

//! What is left of a server that was killed, and of commands in a container whose first process it is: nothing.

use std::process::Stdio;

use crate::machine::Machine;
use crate::support::process;
use crate::support::wait::{SOON, wait_until};
use crate::support_net::child::{Watched, run};
use crate::support_net::site::{Plan, Site};

#[test]
fn a_killed_server_leaves_no_process_of_an_account_behind() {
    let mut machine = Machine::start("\"any\"", Plan::any());
    let mut sessions = Vec::new();
    for account in ["ann", "bob"] {
        for words in [vec!["cat"], vec!["sh", "-c", "trap '' HUP TERM INT PIPE; echo up; while :; do sleep 1000; done"]]
        {
            let mut session = Watched::start(machine.exec(account, &words).stdin(Stdio::piped()));
            session.write(b"up\n");
            session.wait_for_output("up");
            sessions.push(session);
        }
    }
    let homes = ["ann", "bob"].map(|account| machine.home(account));
    let left =
        || homes.iter().flat_map(|home| process::with_home(home)).filter(|left| left.arguments[0] != "sleep").count();
    // A shell's child is another shell until it executes its program.
    wait_until("each of the four runs", SOON, || left() == 4);
    machine.site.server().kill();
    wait_until("no process that the server started is left", SOON, || left() == 0);
    // What a command has started itself is its own affair; here it ends with the test.
    for process in homes.iter().flat_map(|home| process::with_home(home)) {
        process.signal(process::Signal::KILL);
    }
}

#[test]
fn a_server_that_is_the_first_process_of_a_container_buries_what_commands_leave_behind() {
    let mut site = Site::new();
    site.serve_by(&Plan::any(), &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"].map(str::to_owned));
    for status in 1..10 {
        let leave = "setsid sleep 0.1 <&- >&- 2>&- & (setsid sleep 0.2 <&- >&- 2>&- &)";
        assert_eq!(run(&mut site.exec(&[&format!("{leave}; exit {status}")])).code(), Some(status));
    }
    wait_until("there is no zombie", SOON, || {
        let processes = run(&mut site.exec(&["cat /proc/[0-9]*/stat; true"])).ok().text();
        assert!(processes.starts_with("1 (tstunnel) "), "{processes}");
        !processes.contains(") Z ")
    });
}

//! The same over real OpenSSH: what fails here is no fault of tstunnel's.

use super::{forward, recovery, sync};
use crate::support::remote::Transport;

#[test]
fn openssh_brings_the_agent_and_a_tree_to_a_fresh_host() {
    sync::a_fresh_host_gets_the_agent_and_a_tree(Transport::OpenSsh, 200);
}

#[test]
fn openssh_forwards_from_here_to_there() {
    forward::bytes_pass(Transport::OpenSsh, forward::Direction::FromHere);
}

#[test]
fn openssh_session_recovers_when_its_client_is_killed() {
    recovery::killed_client_is_replaced(Transport::OpenSsh);
}

//! The client moves to another network: its address goes away and another one comes.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use super::run::{Run, host};
use crate::support::process::{program, run};
use crate::support::serve::TSTUNNEL;
use crate::support::wait::{SOON, let_pass, wait_until};

#[test]
fn client_whose_address_changes_notices_at_once_and_goes_on() {
    let network = Network::new();
    let remote = host()
        .listening_on(network.server)
        // Left to itself an idle client would ask after seconds, and then minutes.
        .with_client_setting("alive_interval = \"60s\"")
        .start();
    let mut inside = Command::new(program("ip"));
    inside.args(["netns", "exec", &network.name, TSTUNNEL]);
    let mut run = Run::spawn(&remote, "info", inside, "echo $$; cat; exit 3");
    let pid = run.pid();
    run.write(b"from the first address\n");
    run.wait_for_output("from the first address\n");
    // Silence after this is questioned the later, the longer it has lasted.
    let_pass(Duration::from_secs(9));
    assert!(run.resumes().is_empty(), "{}", run.said());

    network.move_client();
    let begin = Instant::now();
    wait_until("the client goes on from its new address", SOON, || !run.resumes().is_empty());
    let noticed = begin.elapsed();
    println!("address changed: resumed {:?} after it, {:?} ms of it dialling", noticed, run.resumes());

    run.write(b"from the second\n");
    run.wait_for_output("from the second\n");
    // The silence would be questioned when it had lasted for eight seconds after the eighth, and a bit later be left.
    assert!(noticed < Duration::from_secs(7), "{noticed:?}\n{}", run.said());
    run.end_stdin();
    let (status, output, _) = run.end(SOON);
    assert_eq!(status, Some(3));
    assert_eq!(String::from_utf8(output).unwrap(), format!("{pid}\nfrom the first address\nfrom the second\n"));
}

/// A network namespace for the client, joined to this one by a pair of interfaces.
struct Network {
    name: String,
    server: Ipv4Addr,
    clients: [String; 2],
}

impl Network {
    fn new() -> Network {
        // The numbers of processes that run at the same time differ, and so do the networks made of them.
        let id = std::process::id();
        let (name, [_, _, high, low]) = (format!("ts{id}"), id.to_be_bytes());
        let address = |last: u8| Ipv4Addr::new(10, 64 | high & 63, low, last);
        let clients = [address(2), address(3)].map(|address| format!("{address}/24"));
        let network = Network { server: address(1), clients, name };
        let name = &network.name;
        ip(&format!("netns add {name}"));
        ip(&format!("link add {name}a type veth peer name {name}b netns {name}"));
        ip(&format!("address add {}/24 dev {name}a", network.server));
        ip(&format!("link set {name}a up"));
        ip(&format!("-n {name} address add {} dev {name}b", network.clients[0]));
        ip(&format!("-n {name} link set {name}b up"));
        network
    }

    /// The client's address goes away, and it gets another.
    fn move_client(&self) {
        ip(&format!("-n {0} address del {1} dev {0}b", self.name, self.clients[0]));
        ip(&format!("-n {0} address add {1} dev {0}b", self.name, self.clients[1]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The interfaces go with the namespace.
        let _ = Command::new(program("ip")).args(["netns", "del", &self.name]).status();
    }
}

#[track_caller]
fn ip(arguments: &str) {
    run(Command::new(program("ip")).args(arguments.split(' ')));
}

//! The real Mutagen over a broken network: it notices nothing, or no more than it must.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::length;
use super::run::resumes;
use crate::support::mutagen::{Daemon, Session};
use crate::support::port;
use crate::support::process::{Process, Signal};
use crate::support::remote::{Remote, Setup, Transport};
use crate::support::tree::{self, assert_same, noise, sha256};
use crate::support::wait::{AFTER_MUTAGENS_PAUSE, SOON, let_pass, wait_until};

#[test]
fn twenty_resets_go_unnoticed_while_files_change_and_two_hundred_megabytes_flow() {
    let remote = host("").start();
    let daemon = Daemon::start(&remote);
    let sessions = Sessions::start(&daemon, &remote);
    let rounds = 20;
    let pieces: [Vec<Vec<u8>>; 2] =
        [12, 13].map(|seed| noise(100_000_000, seed).chunks(5_000_000).map(<[u8]>::to_vec).collect());
    let expected = [0, 1].map(|side: usize| sha256(&pieces[side].concat()));
    let mut here = TcpStream::connect(sessions.address).unwrap();
    let mut there = sessions.listener.accept().unwrap().0;
    let received = thread::scope(|scope| {
        let readers = [&there, &here].map(|end| {
            let mut end = patient(end.try_clone().unwrap());
            scope.spawn(move || {
                let mut bytes = Vec::new();
                end.read_to_end(&mut bytes).map(|_| sha256(&bytes)).unwrap()
            })
        });
        let turns = [(); 2].map(|()| std::sync::mpsc::channel::<()>());
        let mut starts = Vec::new();
        for ((turn, end), pieces) in turns.into_iter().zip([&mut here, &mut there]).zip(&pieces) {
            let (start, turn) = turn;
            starts.push(start);
            scope.spawn(move || {
                // A piece in each round, so that something flows at every reset.
                for piece in pieces {
                    turn.recv().unwrap();
                    end.write_all(piece).unwrap();
                }
                end.shutdown(std::net::Shutdown::Write).unwrap();
            });
        }
        for round in 0..rounds {
            for start in &starts {
                start.send(()).unwrap();
            }
            for (folder, name) in [(&sessions.here, "here"), (&sessions.there, "there")] {
                fs::write(folder.join(format!("{name}-{round}")), noise(50_000, round)).unwrap();
                fs::write(folder.join(format!("changing {name}")), format!("round {round}")).unwrap();
            }
            remote.relay().reset();
            let_pass(length(Duration::from_secs(1), Duration::from_secs(3)));
        }
        readers.map(|reader| reader.join().unwrap())
    });
    assert!(received == expected, "other bytes have arrived");
    sessions.assert_unnoticed();
    assert!(remote.relay().accepted() > 20, "{}", remote.relay().accepted());
}

#[test]
fn fresh_host_gets_the_agent_over_connections_that_never_last_three_megabytes() {
    let remote = Setup::new(Transport::Tstunnel).behind_relay().recorded().start();
    remote.relay().cut_after(Some(3_000_000));
    let daemon = Daemon::start(&remote);
    tree::generate(&daemon.folder("tree"), 100, 14);
    let session = daemon.create_sync(&daemon.folder("tree"), &remote.url("tree"));
    session.wait_until_ready(SOON);
    assert!(remote.has_real_agent());
    assert_same(&daemon.folder("tree"), &remote.home().join("tree"));
    assert_eq!(remote.recorder().purposes().iter().filter(|purpose| *purpose == "scp").count(), 1);
    println!("the agent arrived over {} connections", remote.relay().accepted());
    assert!(remote.relay().accepted() > 6, "the upload was cut: {}", remote.relay().accepted());
}

#[test]
fn path_that_goes_silent_for_good_is_replaced() {
    let remote = host("info").start();
    let daemon = Daemon::start(&remote);
    let sessions = Sessions::start(&daemon, &remote);
    let mut talk = sessions.talk();
    talk.ask("before");
    let tunnels = daemon.tunnels();

    remote.relay().silence();
    let begin = Instant::now();
    talk.ask("on the other path");
    let forward_time = begin.elapsed();
    fs::write(sessions.here.join("on the other path"), "here").unwrap();
    wait_until("the file arrives", SOON, || sessions.there.join("on the other path").exists());
    println!("silence under Mutagen: the forward answers after {forward_time:?}, the file after {:?}", begin.elapsed());

    for tunnel in &tunnels {
        let log = remote.said_by(tunnel);
        println!("silence under Mutagen: resumed in {:?} ms once left", resumes(&log));
        assert!(log.contains("leaving a silent connection"), "{log}");
        assert!(resumes(&log).iter().all(|time| *time < 3000), "{log}");
    }
    assert!(forward_time < Duration::from_secs(4), "{forward_time:?}");
    sessions.assert_same_processes();
    sessions.assert_synchronises();
}

#[test]
fn four_seconds_without_a_network_go_unnoticed() {
    let remote = host("").start();
    let daemon = Daemon::start(&remote);
    let sessions = Sessions::start(&daemon, &remote);
    let mut talk = sessions.talk();

    remote.relay().darken_for(Duration::from_secs(4));
    talk.ask("in the dark");

    assert!(!remote.relay().is_dark());
    sessions.assert_unnoticed();
}

#[test]
fn sync_session_survives_a_long_outage_and_the_forward_comes_back() {
    let remote = host("").start();
    let daemon = Daemon::start(&remote);
    let sessions = Sessions::start(&daemon, &remote);
    let tunnel = sessions.tunnel_of("synchronizer");
    let outage = length(Duration::from_secs(12), Duration::from_secs(45));

    remote.relay().darken_for(outage);
    fs::write(sessions.here.join("in the dark"), "here").unwrap();
    wait_until("the outage is over", outage + SOON, || !remote.relay().is_dark());
    let begin = Instant::now();
    wait_until("the file arrives", SOON, || sessions.there.join("in the dark").exists());
    println!("outage of {outage:?}: the file arrives {:?} after it", begin.elapsed());

    // The forward's own heartbeat has given up after 10 s; its next attempt may cost Mutagen's pause.
    sessions.forward.wait_until("the forward is back", AFTER_MUTAGENS_PAUSE, |state| {
        state["status"] == "forwarding" && state["destination"]["connected"] == true
    });
    wait_until("the forward carries again", SOON, || {
        let Ok(mut connection) = TcpStream::connect(sessions.address) else { return false };
        connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        sessions.listener.set_nonblocking(true).unwrap();
        let accepted = crate::support::wait::find_within(Duration::from_secs(2), || sessions.listener.accept().ok());
        let Some((mut other, _)) = accepted else { return false };
        other.write_all(b"x").is_ok() && connection.read_exact(&mut [0]).is_ok()
    });
    println!("outage of {outage:?}: the forward is back {:?} after it", begin.elapsed());
    assert_eq!(sessions.tunnel_of("synchronizer"), tunnel, "the sync session has noticed nothing");
    assert_eq!(said_by(&remote, &tunnel), "");
    sessions.assert_synchronises();
}

#[test]
fn suspended_client_goes_on() {
    let remote = host("").start();
    let daemon = Daemon::start(&remote);
    let sessions = Sessions::start(&daemon, &remote);
    let mut talk = sessions.talk();
    suspended(Duration::from_secs(4), &daemon.tunnels());
    talk.ask("awake");
    sessions.assert_unnoticed();
}

#[test]
fn suspended_server_goes_on() {
    let remote = host("").start();
    let daemon = Daemon::start(&remote);
    let sessions = Sessions::start(&daemon, &remote);
    let mut talk = sessions.talk();
    remote.server().signal(Signal::STOP);
    let_pass(Duration::from_secs(4));
    remote.server().signal(Signal::CONT);
    talk.ask("awake");
    sessions.assert_unnoticed();
}

#[test]
fn sync_session_survives_a_long_suspension_of_either_side() {
    let remote = host("").start();
    let daemon = Daemon::start(&remote);
    let session = Sync::start(&daemon, &remote);
    let time = length(Duration::from_secs(5), Duration::from_secs(20));
    let (tunnels, agents) = (daemon.tunnels(), remote.agents());

    suspended(time, &tunnels);
    session.assert_synchronises();
    remote.server().signal(Signal::STOP);
    let_pass(time);
    remote.server().signal(Signal::CONT);
    session.assert_synchronises();

    assert_eq!((daemon.tunnels(), remote.agents()), (tunnels, agents));
}

fn host(level: &'static str) -> Setup {
    Setup::new(Transport::Tstunnel).behind_relay().overheard(level)
}

fn suspended(time: Duration, processes: &[Process]) {
    processes.iter().for_each(|process| process.signal(Signal::STOP));
    let_pass(time);
    processes.iter().for_each(|process| process.signal(Signal::CONT));
}

/// What the client of a session has said by itself, without the lines of the agent's log that it has passed on.
fn said_by(remote: &Remote, tunnel: &Process) -> String {
    remote.said_by(tunnel).split_inclusive('\n').filter(|line| !line.contains(" [I] [")).collect()
}

/// A synchronisation session.
struct Sync<'a> {
    session: Session<'a>,
    here: std::path::PathBuf,
    there: std::path::PathBuf,
    count: Mutex<usize>,
}

impl<'a> Sync<'a> {
    fn start(daemon: &'a Daemon, remote: &Remote) -> Sync<'a> {
        let (here, there) = (daemon.folder("tree"), remote.home().join("tree"));
        tree::generate(&here, 50, 15);
        let session = daemon.create_sync(&here, &remote.url("tree"));
        session.wait_until_ready(SOON);
        Sync { session, here, there, count: Mutex::new(0) }
    }

    /// Edits both sides; both have everything afterwards.
    #[track_caller]
    fn assert_synchronises(&self) {
        let mut count = self.count.lock().unwrap();
        *count += 1;
        fs::write(self.here.join(format!("afterwards {count}")), "here").unwrap();
        fs::write(self.there.join(format!("afterwards {count} too")), "there").unwrap();
        self.session.flush();
        assert_same(&self.here, &self.there);
        assert!(self.here.join(format!("afterwards {count} too")).exists());
    }
}

/// A synchronisation session and a forwarding session, and everything by which a reconnection would show.
struct Sessions<'a> {
    daemon: &'a Daemon,
    remote: &'a Remote,
    sync: Sync<'a>,
    forward: Session<'a>,
    here: std::path::PathBuf,
    there: std::path::PathBuf,
    /// Where the forward listens, and what it leads to.
    address: SocketAddr,
    listener: TcpListener,
    tunnels: Vec<Process>,
    agents: Vec<Process>,
    log: String,
}

impl<'a> Sessions<'a> {
    fn start(daemon: &'a Daemon, remote: &'a Remote) -> Sessions<'a> {
        let sync = Sync::start(daemon, remote);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
        let destination = format!("{}:tcp:{}", remote.host(), listener.local_addr().unwrap());
        let forward = daemon.create_forward(&format!("tcp:{address}"), &destination);
        forward.wait_until_ready(SOON);
        let (tunnels, agents) = (daemon.tunnels(), remote.agents());
        assert_eq!((tunnels.len(), agents.len()), (2, 2), "{tunnels:?} {agents:?}");
        let (here, there) = (sync.here.clone(), sync.there.clone());
        let log = daemon.log();
        Sessions { daemon, remote, sync, forward, here, there, address, listener, tunnels, agents, log }
    }

    /// The `ssh` of one session.
    fn tunnel_of(&self, word: &str) -> Process {
        self.daemon.tunnels().into_iter().find(|tunnel| tunnel.mentions(word)).expect("the session has a tunnel")
    }

    /// A connection through the forward, whose other end gives back each line.
    fn talk(&self) -> Talk {
        let connection = patient(TcpStream::connect(self.address).unwrap());
        let mut other = self.listener.accept().unwrap().0;
        thread::spawn(move || std::io::copy(&mut other.try_clone().unwrap(), &mut other));
        Talk(BufReader::new(connection))
    }

    #[track_caller]
    fn assert_synchronises(&self) {
        self.sync.assert_synchronises();
    }

    #[track_caller]
    fn assert_same_processes(&self) {
        assert_eq!(self.daemon.tunnels(), self.tunnels);
        assert_eq!(self.remote.agents(), self.agents);
    }

    /// Nobody has reconnected, and nobody has said anything.
    #[track_caller]
    fn assert_unnoticed(&self) {
        self.assert_synchronises();
        self.assert_same_processes();
        for tunnel in &self.tunnels {
            assert_eq!(said_by(self.remote, tunnel), "");
        }
        let log = self.daemon.log();
        let new = log.strip_prefix(&self.log).expect("a log only grows");
        for word in ["econnect", "isconnect", "rror", "ailed", "nable"] {
            assert!(!new.contains(word), "{new}");
        }
    }
}

/// A conversation over one connection.
struct Talk(BufReader<TcpStream>);

impl Talk {
    #[track_caller]
    fn ask(&mut self, line: &str) {
        writeln!(self.0.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim_end(), line);
    }
}

/// Bounds what would otherwise hang a test for ever.
fn patient(connection: TcpStream) -> TcpStream {
    connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    connection.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    connection
}

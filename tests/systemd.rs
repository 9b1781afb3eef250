//! What a service manager is told and gives: the test is one, with a socket of its own for the news.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;
mod support_net;

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::port;
use support::process::{Group, Signal, program};
use support::serve::TSTUNNEL;
use support::wait::{SOON, let_pass, wait_until};
use support_net::child::{Watched, run};
use support_net::site::{Plan, Site};

/// A site whose server tells the test how it is.
struct Managed {
    site: Site,
    news: UnixDatagram,
}

impl Managed {
    fn start(plan: &Plan, watchdog: Option<Duration>) -> Managed {
        let mut site = Site::new();
        let path = site.root.join("notify");
        let news = UnixDatagram::bind(&path).unwrap();
        news.set_read_timeout(Some(SOON)).unwrap();
        let mut launcher = vec!["env".to_owned(), format!("NOTIFY_SOCKET={}", path.display())];
        launcher.extend(watchdog.map(|limit| format!("WATCHDOG_USEC={}", limit.as_micros())));
        site.serve_by(plan, &launcher);
        Managed { site, news }
    }

    /// The next message, but for those of the watchdog and of the status alone.
    fn next(&self) -> Vec<String> {
        loop {
            let lines = self.any();
            if lines.iter().any(|line| line != "WATCHDOG=1" && !line.starts_with("STATUS=")) {
                return lines;
            }
        }
    }

    fn any(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let count = self.news.recv(&mut buffer).expect("the server says something");
        String::from_utf8(buffer[..count].to_vec()).unwrap().lines().map(str::to_owned).collect()
    }
}

#[test]
fn manager_hears_of_the_start_each_reload_and_the_end() {
    let mut managed = Managed::start(&Plan::any().top("watch = false"), None);
    assert_eq!(managed.next(), ["READY=1"]);
    assert_eq!(managed.any(), ["STATUS=serving, with 0 sessions"]);
    let now = || rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let before = now();
    managed.site.server().signal(Signal::HUP);
    let reloading = managed.next();
    assert_eq!(reloading[0], "RELOADING=1");
    let at: i64 = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    let microseconds = |time: rustix::time::Timespec| time.tv_sec * 1_000_000 + time.tv_nsec / 1000;
    assert!((microseconds(before)..=microseconds(now())).contains(&at));
    assert_eq!(managed.next(), ["READY=1", "STATUS=reloaded"]);
    managed.site.server().reconfigure("[limits]", "[limit]");
    managed.site.server().signal(Signal::HUP);
    assert_eq!(managed.next()[0], "RELOADING=1");
    let refused = managed.next();
    assert!(refused[0] == "READY=1" && refused[1].starts_with("STATUS=not reloaded: "), "{refused:?}");
    managed.site.server().signal(Signal::TERM);
    assert_eq!(managed.next(), ["STOPPING=1"]);
}

#[test]
fn watchdog_hears_of_the_runtime_twice_in_its_time_and_nothing_of_one_that_hangs() {
    // What a test that is late reads at once has come in all the time since then.
    let since = Instant::now();
    let managed = Managed::start(&Plan::any(), Some(Duration::from_millis(400)));
    let watchdog = || while managed.any() != ["WATCHDOG=1"] {};
    (0..11).for_each(|_| watchdog());
    assert!(since.elapsed() >= Duration::from_millis(1800), "{:?}", since.elapsed());
    let id = rustix::process::Pid::from_raw(i32::try_from(managed.site.server_id()).unwrap()).unwrap();
    rustix::process::kill_process(id, Signal::STOP).unwrap();
    managed.news.set_nonblocking(true).unwrap();
    // What was on its way.
    let_pass(Duration::from_millis(100));
    while managed.news.recv(&mut [0; 64]).is_ok() {}
    let_pass(Duration::from_millis(600));
    assert!(managed.news.recv(&mut [0; 64]).is_err());
    rustix::process::kill_process(id, Signal::CONT).unwrap();
}

#[test]
fn manager_is_told_of_the_successor_before_that_speaks_and_hears_no_more_of_the_other() {
    let mut managed = Managed::start(&Plan::any().top("watch = false"), None);
    let mut session = Watched::start(managed.site.exec(&["echo here; exec cat"]).stdin(Stdio::piped()));
    session.wait_for_output("here\n");
    assert_eq!(managed.next(), ["READY=1"]);
    managed.site.server().signal(Signal::USR2);
    let told = managed.next();
    let log = managed.site.server_log();
    let id = log.split("started process ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    assert_eq!(told, [format!("MAINPID={id}")]);
    assert_eq!(managed.next(), ["READY=1"]);
    // The one that was replaced reloads and ends without a word.
    managed.site.server().signal(Signal::HUP);
    wait_until("it has reloaded", SOON, || managed.site.server_log().contains("reloaded"));
    drop(session.stdin());
    session.wait().ok();
    wait_until("it ends", SOON, || managed.site.server().ended().is_some());
    let successor = rustix::process::Pid::from_raw(id.parse().unwrap()).unwrap();
    rustix::process::kill_process(successor, Signal::TERM).unwrap();
    assert_eq!(managed.next(), ["STOPPING=1"]);
}

#[test]
fn nothing_that_the_manager_says_reaches_a_session() {
    let managed = Managed::start(&Plan::any(), Some(Duration::from_secs(10)));
    let environment = run(&mut managed.site.exec(&["env; ls /proc/self/fd"])).ok().text();
    for name in ["NOTIFY_SOCKET", "WATCHDOG", "LISTEN_", "RUNTIME_DIRECTORY"] {
        assert!(!environment.contains(name), "{environment}");
    }
    let descriptors: Vec<&str> = environment.lines().filter(|line| line.parse::<u32>().is_ok()).collect();
    assert_eq!(descriptors, ["0", "1", "2", "3"], "its streams, and the folder that is read");
}

/// A server on a socket that the test listens on, by a configuration that names another address.
fn on_socket(site: &mut Site, socket: &TcpListener) -> Group {
    let text =
        format!("exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec '{TSTUNNEL}' serve --config server.toml");
    let log = std::fs::File::create(site.root.join("given.log")).unwrap();
    let socket = OwnedFd::from(socket.try_clone().unwrap());
    Group::spawn(
        Command::new("sh")
            .args(["-c", &text])
            .current_dir(&site.root)
            .env("RUNTIME_DIRECTORY", site.root.join("given"))
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(log),
    )
}

/// A site with a configuration, and no server.
fn configured(plan: &Plan) -> Site {
    let mut site = Site::start(plan);
    site.server().signal(Signal::TERM);
    wait_until("it ends", SOON, || site.server().ended().is_some());
    site
}

#[test]
fn socket_of_the_manager_takes_the_place_of_listen_also_after_a_reload_and_in_a_successor() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut site = configured(&Plan::any().top("watch = false"));
    // Nothing could listen there.
    site.server().reconfigure("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    site.configure(socket.local_addr().unwrap(), "");
    let mut server = on_socket(&mut site, &socket);
    let log = site.root.join("given.log");
    let says = |text: &str| std::fs::read_to_string(&log).unwrap().matches(text).count();
    // It was listened on before there was a server.
    assert_eq!(run(&mut site.exec(&["echo here"])).ok().text(), "here\n");
    assert_eq!(says(&format!("listening on {}", socket.local_addr().unwrap())), 1);
    let environment = run(&mut site.exec(&["env"])).ok().text();
    assert!(!environment.contains("LISTEN_"), "{environment}");
    server.signal(Signal::HUP);
    wait_until("it has reloaded", SOON, || says("reloaded") == 1);
    assert_eq!(run(&mut site.exec(&["echo here"])).ok().text(), "here\n");
    server.signal(Signal::USR2);
    wait_until("it is replaced", SOON, || server.ended().is_some());
    assert_eq!(says("took over from process"), 1, "{}", std::fs::read_to_string(&log).unwrap());
    assert_eq!(run(&mut site.exec(&["echo here"])).ok().text(), "here\n");
}

#[test]
fn what_is_no_listening_tcp_socket_is_refused() {
    let site = configured(&Plan::any());
    let bound = {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        socket
    };
    let unix = std::os::unix::net::UnixListener::bind(site.root.join("unix")).unwrap();
    let file = std::fs::File::open(site.root.join("server.toml")).unwrap();
    for socket in [bound, OwnedFd::from(unix), OwnedFd::from(file)] {
        let text =
            format!("exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec '{TSTUNNEL}' serve --config server.toml");
        let ran = run(Command::new("sh").args(["-c", &text]).current_dir(&site.root).stdin(Stdio::from(socket)));
        assert_eq!(ran.code(), Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains("error[config]: socket 0 of the service manager"), "{}", ran.stderr);
    }
}

#[test]
fn systemds_own_tool_starts_it_with_the_first_connection() {
    let mut site = configured(&Plan::any());
    let address = format!("127.0.0.1:{}", port::free());
    site.configure(&address, "");
    let log = site.root.join("activated.log");
    let mut command = Command::new(program("systemd-socket-activate"));
    command.arg("-l").arg(&address).arg(format!("--setenv=RUNTIME_DIRECTORY={}", site.server().run_folder().display()));
    command.args([TSTUNNEL, "serve", "--config"]).arg(site.root.join("server.toml"));
    let _server = Group::spawn(command.stdin(Stdio::null()).stderr(std::fs::File::create(&log).unwrap()));
    wait_until("it is listened on", SOON, || TcpStream::connect(&address).is_ok());
    assert_eq!(run(&mut site.exec(&["echo here"])).ok().text(), "here\n");
    assert!(std::fs::read_to_string(&log).unwrap().contains(&format!("listening on {address}")));
}

//! The real Mutagen over tstunnel, over OpenSSH, over bare pipes, and within this machine with no network at all.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Plan;
use crate::interruptions::echo;
use crate::measure::{receive, send};
use crate::peers::{BRIDGE, Running, SSH};
use crate::report::{Goal, Measure, Report, Section, TSTUNNEL};
use crate::servers::certificates;
use crate::support::mutagen::{Daemon, Session};
use crate::support::port;
use crate::support::remote::{Remote, Setup, Transport};
use crate::support::script;
use crate::support::tree::noise;
use crate::support::wait::SOON;
use crate::worker::Bridge;

const CREATION: Section = Section {
    title: "Mutagen's sessions",
    note: "`mutagen sync create` of empty folders, until both sides are connected: on a host without its agent, which it installs, and \
           again.",
};
const CARRYING: Section = Section {
    title: "Mutagen's bytes",
    note: "Changes that appear in a folder, until `mutagen sync flush` has brought them to the host, in memory where /dev/shm has room; and a forwarded connection to \
           what sends everything back, message by message and as fast as it can. `no network` is the same between two folders or \
           ports of this machine, in Mutagen's daemon alone; `pipes alone` is its agent started on pipes of this machine, which is the \
           least that any transport could take. The bridge's stand-in carries the same words and bytes, and nothing else: no stderr, no exit status.",
};
const NOTHING: &str = "no network";
const PIPES: &str = "pipes alone";

const FILE_BYTES: usize = 512 << 20;
const FILES: usize = 10_000;
const FILES_BYTES: usize = 4 << 10;
const MESSAGE: [u8; 64] = [b'.'; 64];
/// How long messages go to and fro.
const DURATION: Duration = Duration::from_secs(1);
/// What goes through a forward and back.
const ECHOED_BYTES: u64 = 64 << 20;
/// What the files take on both sides, with what is not yet in its place.
const MEMORY_BYTES: u64 = 4 << 30;
/// For what takes seconds, on a machine with other work to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// What leads Mutagen to the other side.
struct Side {
    peer: &'static str,
    way: Way,
}

enum Way {
    Remote(Box<Remote>),
    /// Stand-ins for `ssh` and `scp` that do on this machine what they are asked to, in a home of its own; with a bridge between
    /// them and what they start, where one is running.
    Local {
        home: TempDir,
        _bridge: Option<Running>,
    },
    /// This machine itself.
    Nothing,
}

/// What the host of [`Way::Local`] is called.
const LOCAL_HOST: &str = "local";

impl Side {
    /// Everybody, with folders in `parent`.
    fn all(parent: &Path) -> [Side; 5] {
        let remote = |transport| Way::Remote(Box::new(Setup::new(transport).inside(parent).start()));
        [
            Side { peer: TSTUNNEL, way: remote(Transport::Tstunnel) },
            Side { peer: SSH, way: remote(Transport::OpenSsh) },
            Side { peer: BRIDGE, way: bridged_stand_ins(parent) },
            Side { peer: PIPES, way: Way::Local { home: stand_ins(parent), _bridge: None } },
            Side { peer: NOTHING, way: Way::Nothing },
        ]
    }

    fn daemon(&self, parent: &Path) -> Daemon {
        let environment = match &self.way {
            Way::Remote(remote) => remote.environment(),
            Way::Local { home, .. } => vec![("MUTAGEN_SSH_PATH", home.path().into())],
            Way::Nothing => Vec::new(),
        };
        Daemon::start_inside(parent, environment)
    }

    /// Where a folder of that side is, and what Mutagen is told of it.
    fn folder(&self, daemon: &Daemon, name: &str) -> (PathBuf, String) {
        match &self.way {
            Way::Remote(remote) => (remote.home().join(name), remote.url(name)),
            Way::Local { home, .. } => (home.path().join(name), format!("{LOCAL_HOST}:~/{name}")),
            Way::Nothing => {
                let folder = daemon.folder(&format!("there-{name}"));
                (folder.clone(), folder.to_string_lossy().into_owned())
            }
        }
    }

    fn destination(&self, address: SocketAddr) -> String {
        match &self.way {
            Way::Remote(remote) => format!("{}:tcp:{address}", remote.host()),
            Way::Local { .. } => format!("{LOCAL_HOST}:tcp:{address}"),
            Way::Nothing => format!("tcp:{address}"),
        }
    }
}

/// A home with stand-ins in it, which look at the last words that they are given alone.
fn stand_ins(parent: &Path) -> TempDir {
    let folder = tempfile::Builder::new().prefix("ts-bench-").tempdir_in(parent).unwrap();
    let home = folder.path().display();
    let ssh = format!("for last; do :; done; cd '{home}' && exec {} sh -c \"$last\"", at_home(folder.path()));
    script::write(&folder.path().join("ssh"), &ssh);
    let scp = format!("while [ $# -gt 2 ]; do shift; done; exec cp \"$1\" '{home}'/\"${{2#*:}}\"");
    script::write(&folder.path().join("scp"), &scp);
    folder
}

/// The same with the bridge behind `ssh`, which says first what it is to start. What a missing agent is noticed by, its exit status,
/// does not come over it: until there is one, pipes do.
fn bridged_stand_ins(parent: &Path) -> Way {
    let home = stand_ins(parent);
    let at = home.path();
    certificates(at);
    let shell = format!("read -r line; cd '{}' && exec {} sh -c \"$line\"", at.display(), at_home(at));
    let port = port::free();
    let bridge = Bridge { folder: Some(at.to_owned()), kept_bytes: 0 };
    let server = Running::start(bridge.server(port, &["sh".to_owned(), "-c".to_owned(), shell]), port, None);
    fs::rename(at.join("ssh"), at.join("ssh-by-pipes")).unwrap();
    let client = bridge.client(server.address, "");
    let words = [client.get_program()].into_iter().chain(client.get_args());
    let words: Vec<String> =
        words.filter(|word| !word.is_empty()).map(|word| format!("'{}'", word.display())).collect();
    let ssh = format!(
        "for last; do :; done; [ -e '{home}/.mutagen' ] || exec '{home}/ssh-by-pipes' \"$@\"\n\
         exec {client} \"$last\n\"",
        home = at.display(),
        client = words.join(" ")
    );
    script::write(&at.join("ssh"), &ssh);
    Way::Local { home, _bridge: Some(server) }
}

/// What a host's environment is, for the shell.
fn at_home(home: &Path) -> String {
    format!("env -i HOME='{}' PATH=\"$PATH\"", home.display())
}

/// Creates sessions.
pub(crate) fn create(_: &Plan, report: &mut Report) {
    let goal = Goal::Times(0.35, SSH);
    let fresh = Measure::less(&CREATION, "`sync create`, agent not there", "ms").goal(goal).charted();
    let again = Measure::less(&CREATION, "`sync create`, agent there", "ms").goal(goal).charted();
    let parent = std::env::temp_dir();
    for side in Side::all(&parent) {
        let daemon = side.daemon(&parent);
        for (name, measure) in [("one", &fresh), ("two", &again)] {
            let started = Instant::now();
            let (session, _, _) = sync(&side, &daemon, name);
            report.add(measure, side.peer, started.elapsed().as_secs_f64() * 1e3);
            session.wait_until_ready(SOON);
        }
    }
}

/// Lets sessions carry files and forwarded bytes.
pub(crate) fn carry(_: &Plan, report: &mut Report) {
    let file =
        Measure::less(&CARRYING, "a file of 512 MiB to the host", "s").goal(Goal::Times(1.15, NOTHING)).charted();
    let files = Measure::less(&CARRYING, "10,000 files of 4 KiB to the host", "s");
    let messages = Measure::more(&CARRYING, "64 bytes forwarded and back", "1/s").goal(Goal::Times(2.0, SSH));
    let bytes = Measure::more(&CARRYING, "64 MiB forwarded and back, each way", "MB/s").goal(Goal::Times(2.0, SSH));
    let parent = in_memory();
    let prepared = tempfile::Builder::new().prefix("ts-bench-").tempdir_in(&parent).unwrap();
    // What no compression makes smaller, the same for everybody.
    let large = prepared.path().join("file");
    fs::write(&large, noise(FILE_BYTES, 1)).unwrap();
    for side in Side::all(&parent) {
        let daemon = side.daemon(&parent);
        let (session, here, there) = sync(&side, &daemon, "files");
        session.wait_until_ready(SOON);
        let many = many_files(&daemon);
        let arrived = || fs::metadata(there.join("file")).is_ok_and(|found| found.len() == FILE_BYTES as u64);
        report.add(&file, side.peer, until_there(&session, || fs::hard_link(&large, here.join("file")), arrived));
        let arrived = || fs::read_dir(there.join("many")).is_ok_and(|entries| entries.count() == FILES);
        report.add(&files, side.peer, until_there(&session, || fs::rename(&many, here.join("many")), arrived));
        session.terminate();

        let source = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
        let forward = daemon.create_forward(&format!("tcp:{source}"), &side.destination(echo()));
        forward.wait_until_ready(SOON);
        let connection = TcpStream::connect(source).unwrap();
        connection.set_nodelay(true).unwrap();
        report.add(&messages, side.peer, exchanges_per_second(&connection));
        let started = Instant::now();
        send_and_receive(&connection, ECHOED_BYTES);
        report.add(&bytes, side.peer, ECHOED_BYTES as f64 / 1e6 / started.elapsed().as_secs_f64());
    }
}

/// Creates a session between two empty folders; returns it with where they are.
fn sync<'a>(side: &Side, daemon: &'a Daemon, name: &str) -> (Session<'a>, PathBuf, PathBuf) {
    let here = daemon.folder(name);
    fs::create_dir(&here).unwrap();
    let (there, url) = side.folder(daemon, name);
    (daemon.create_sync(&here, &url), here, there)
}

/// Seconds from a change until Mutagen has carried it.
fn until_there(
    session: &Session<'_>,
    change: impl FnOnce() -> std::io::Result<()>,
    is_there: impl Fn() -> bool,
) -> f64 {
    let started = Instant::now();
    change().unwrap();
    // The first may end with a cycle that began before the change.
    session.flush();
    while !is_there() {
        assert!(started.elapsed() < PATIENCE, "the change does not arrive: {:#}", session.state());
        session.flush();
    }
    started.elapsed().as_secs_f64()
}

/// Where files are in memory: what a disk does is not what is compared.
fn in_memory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let space = rustix::fs::statvfs(&memory).map_or(0, |found| found.f_bavail * found.f_frsize);
    if space < MEMORY_BYTES { std::env::temp_dir() } else { memory }
}

/// Writes them where the daemon doesn't look.
fn many_files(daemon: &Daemon) -> PathBuf {
    let folder = daemon.folder("prepared");
    fs::create_dir(&folder).unwrap();
    let bytes = noise(FILES * FILES_BYTES, 2);
    for (index, bytes) in bytes.chunks(FILES_BYTES).enumerate() {
        fs::write(folder.join(format!("file-{index}")), bytes).unwrap();
    }
    folder
}

fn exchanges_per_second(mut connection: &TcpStream) -> f64 {
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < DURATION {
        connection.write_all(&MESSAGE).unwrap();
        connection.read_exact(&mut [0; MESSAGE.len()]).unwrap();
        count += 1;
    }
    f64::from(count) / started.elapsed().as_secs_f64()
}

fn send_and_receive(connection: &TcpStream, bytes: u64) {
    thread::scope(|scope| {
        scope.spawn(move || send(&mut &*connection, bytes));
        assert_eq!(receive(&mut connection.take(bytes)), bytes, "the forward ended");
    });
}

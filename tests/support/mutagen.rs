//! The real Mutagen v0.18.1: built once, and run as daemons that know nothing of each other or of the user's own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::process::{self, Group, Process, run};
use super::remote::Remote;
use super::wait::{SOON, find_within, wait_for, wait_until};

/// The folder with `mutagen` and its bundle of agents; built at the first call, by one test binary at a time.
pub(crate) fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the folder has a parent");
        let programs = target.join("mutagen-v0.18.1");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutagen/build.sh");
        run(Command::new(script).arg(&programs).stdin(Stdio::null()));
        programs
    })
}

/// A running daemon, with a home, a data directory and a folder for temporary files of its own.
pub(crate) struct Daemon {
    environment: Vec<(&'static str, OsString)>,
    process: Group,
    root: PathBuf,
    // Last, so that it is removed after the daemon has gone.
    _folder: TempDir,
}

impl Daemon {
    /// Starts one that reaches `remote`.
    pub(crate) fn start(remote: &Remote) -> Daemon {
        Daemon::start_with(remote.environment())
    }

    /// Starts one with these variables and the few that every program needs, and no others.
    pub(crate) fn start_with(variables: Vec<(&'static str, OsString)>) -> Daemon {
        Daemon::start_inside(&std::env::temp_dir(), variables)
    }

    /// The same with its folders in another one than that for temporary files.
    pub(crate) fn start_inside(parent: &Path, variables: Vec<(&'static str, OsString)>) -> Daemon {
        let folder = tempfile::Builder::new().prefix("ts-local-").tempdir_in(parent).unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["home", "tmp"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let mut environment: Vec<(&'static str, OsString)> = vec![
            ("PATH", std::env::var_os("PATH").unwrap_or_default()),
            ("HOME", root.join("home").into()),
            ("TMPDIR", root.join("tmp").into()),
            ("MUTAGEN_DATA_DIRECTORY", root.join("data").into()),
            ("MUTAGEN_DISABLE_AUTOSTART", "1".into()),
        ];
        // Of two values for one name the later one counts.
        environment.extend(variables);
        let log = fs::File::create(root.join("daemon.log")).unwrap();
        let process = Group::spawn(
            Command::new(programs().join("mutagen"))
                .args(["daemon", "run"])
                .env_clear()
                .envs(environment.iter().cloned())
                .current_dir(&root)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log),
        );
        let socket = root.join("data/daemon/daemon.sock");
        wait_until("the daemon listens", SOON, || UnixStream::connect(&socket).is_ok());
        Daemon { environment, process, root, _folder: folder }
    }

    /// A folder of the daemon's own side, which need not exist.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A `mutagen` command that talks to this daemon.
    pub(crate) fn command<Argument: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = Argument>) -> Command {
        let mut command = Command::new(programs().join("mutagen"));
        let variables = self.environment.iter().cloned();
        command.args(arguments).env_clear().envs(variables).current_dir(&self.root).stdin(Stdio::null());
        command
    }

    /// Creates a synchronisation session, and returns once Mutagen is connected to both sides.
    #[track_caller]
    pub(crate) fn create_sync(&self, alpha: &Path, beta: &str) -> Session<'_> {
        self.try_create_sync(alpha, beta).unwrap_or_else(|message| panic!("{message}"))
    }

    /// The same, or else everything that the user sees.
    pub(crate) fn try_create_sync(&self, alpha: &Path, beta: &str) -> Result<Session<'_>, String> {
        self.created(Kind::Sync, || self.sync_command(alpha, beta))
    }

    /// The command that creates a synchronisation session, for whoever doesn't want to wait for it.
    pub(crate) fn sync_command(&self, alpha: &Path, beta: &str) -> Command {
        // Where the system can't watch a whole tree, most of it is scanned at this interval, which is 10 s if left out.
        let mut command = self.command(["sync", "create", "--no-global-configuration", "--watch-polling-interval=1"]);
        command.arg(alpha).arg(beta);
        command
    }

    /// Creates a forwarding session.
    #[track_caller]
    pub(crate) fn create_forward(&self, source: &str, destination: &str) -> Session<'_> {
        self.try_create_forward(source, destination).unwrap_or_else(|message| panic!("{message}"))
    }

    /// The same, or else everything that the user sees.
    pub(crate) fn try_create_forward(&self, source: &str, destination: &str) -> Result<Session<'_>, String> {
        let arguments = ["forward", "create", "--no-global-configuration", source, destination];
        self.created(Kind::Forward, || self.command(arguments))
    }

    /// Every synchronisation session that the daemon knows.
    pub(crate) fn sync_sessions(&self) -> Vec<Value> {
        self.list(Kind::Sync, None)
    }

    /// The `ssh` and `scp` processes of this daemon.
    pub(crate) fn tunnels(&self) -> Vec<Process> {
        process::children(self.process.id())
    }

    /// What the daemon has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root.join("daemon.log")).unwrap_or_default()
    }

    /// Files in the daemon's folder for temporary files, where it unpacks agents.
    pub(crate) fn temporary_files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.root.join("tmp")).unwrap().flatten().map(|entry| entry.path()).collect()
    }

    /// Stops the daemon as a user does, and waits for its end.
    pub(crate) fn stop(&mut self) {
        run(&mut self.command(["daemon", "stop"]));
        wait_for("the daemon has stopped", SOON, || self.process.ended());
    }

    /// Whether it has ended by now, and how.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.process.ended()
    }

    pub(crate) fn signal(&self, signal: process::Signal) {
        self.process.signal(signal);
    }

    /// Kills the daemon, and nothing that it has started.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    fn created(&self, kind: Kind, command: impl Fn() -> Command) -> Result<Session<'_>, String> {
        let output = prompted(command);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        // It says `Created session sync_…`, after progress that ends in carriage returns.
        let id = said.rsplit_once("Created session ").map(|(_, rest)| rest.trim().to_owned());
        match id {
            Some(id) if output.status.success() => Ok(Session { daemon: self, kind, id }),
            _ => Err(said),
        }
    }

    fn list(&self, kind: Kind, id: Option<&str>) -> Vec<Value> {
        let arguments = [kind.noun(), "list", "--template", "{{json .}}"].into_iter().chain(id);
        let text = run(&mut self.command(arguments));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// Runs a command for which Mutagen makes itself a prompter, until it has found it.
fn prompted(command: impl Fn() -> Command) -> Output {
    wait_for("Mutagen has found its own prompter", SOON, || {
        let output = command().output().unwrap();
        let is_mutagens_race = String::from_utf8_lossy(&output.stderr).contains(MUTAGENS_RACE);
        (!is_mutagens_race).then_some(output)
    })
}

/// What v0.18.1 says when it has lost a race with itself, before it starts any `ssh`: its daemon tells the command line a
/// prompter's name before it registers it (`pkg/service/prompting/server.go`, `Host`), and the command line may be quicker.
const MUTAGENS_RACE: &str = "prompter not found";

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon in {}\n{}", self.root.display(), self.log());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sync,
    Forward,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Kind::Sync => "sync",
            Kind::Forward => "forward",
        }
    }
}

/// A session of a daemon's.
pub(crate) struct Session<'a> {
    daemon: &'a Daemon,
    kind: Kind,
    id: String,
}

impl Session<'_> {
    /// What `mutagen … list` says of it.
    pub(crate) fn state(&self) -> Value {
        self.daemon.list(self.kind, Some(&self.id)).into_iter().next().expect("the session is listed")
    }

    /// Mutagen's word for what the session is doing.
    pub(crate) fn status(&self) -> String {
        text(&self.state(), "/status").to_owned()
    }

    /// Waits for a state; when it doesn't come, says what there was instead.
    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, limit: Duration, mut condition: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = find_within(limit, || {
            last = self.state();
            condition(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("waited {limit:?} in vain: {what}; the session's state is {last:#}"))
    }

    /// Waits until both sides are connected and equal, as far as Mutagen knows, or until the forward listens.
    #[track_caller]
    pub(crate) fn wait_until_ready(&self, limit: Duration) -> Value {
        match self.kind {
            Kind::Sync => self.wait_until("the session watches", limit, |state| {
                text(state, "/status") == "watching" && state["successfulCycles"].as_u64() > Some(0)
            }),
            Kind::Forward => {
                self.wait_until("the session forwards", limit, |state| text(state, "/status") == "forwarding")
            }
        }
    }

    /// Waits for a whole cycle of synchronisation.
    #[track_caller]
    pub(crate) fn flush(&self) {
        self.tell("flush");
    }

    #[track_caller]
    pub(crate) fn pause(&self) {
        self.tell("pause");
    }

    #[track_caller]
    pub(crate) fn resume(&self) {
        self.tell("resume");
    }

    #[track_caller]
    pub(crate) fn terminate(&self) {
        self.tell("terminate");
    }

    #[track_caller]
    fn tell(&self, verb: &str) {
        let output = prompted(|| self.daemon.command([self.kind.noun(), verb, &self.id]));
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The text at a place in a state, or nothing.
pub(crate) fn text<'a>(state: &'a Value, pointer: &str) -> &'a str {
    state.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

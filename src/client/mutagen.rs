//! `tstunnel mutagen ARGS…`: becomes `mutagen`, with `MUTAGEN_SSH_PATH` set and `tstunnel://` URLs in Mutagen's terms.
//!
//! In this order, so that what fails leaves nothing behind: [`rewrite`] the arguments and the file of a [`project`], see to
//! the folder with the stand-ins, see that a running [`daemon`] knows that folder, rewrite once more and remember the URLs' parameters,
//! note what is misspelt, exec(2).

pub mod daemon;
pub mod env;
mod misspelt;
pub mod project;
mod restart;
pub mod rewrite;
mod yaml;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::config::{self, Environment};
use crate::error::{Code, Error, Result, printable, reason};
use daemon::{Daemon, Need, Standins};
use restart::Restart;

/// What this process stands in, beside the [`Environment`].
#[derive(Clone, Debug, PartialEq, Eq)]
struct Surroundings<'a> {
    env: &'a Environment,
    /// This program's file.
    program: PathBuf,
    /// `MUTAGEN_DATA_DIRECTORY`.
    mutagen_data_directory: Option<PathBuf>,
    /// `TSTUNNEL_MUTAGEN`.
    mutagen: Option<PathBuf>,
    /// `TSTUNNEL_MUTAGEN_DAEMON`.
    daemon: Option<OsString>,
}

/// Mutagen's command, ready to be run.
struct Prepared {
    command: Command,
    /// What is given to it instead of a project's file, for as long as it runs.
    copy: Option<project::Copy>,
}

/// Runs Mutagen: in this process's place, but where there is something to be done behind it. Returns its exit status. News and
/// warnings go to `stderr`.
///
/// # Errors
/// `config` where Mutagen is not there, its daemon cannot serve the command, or a URL or a project's file lacks something;
/// `usage` for a URL that makes no sense.
pub async fn run(args: &[OsString], env: &Environment, stderr: &mut dyn Write) -> Result<u8> {
    let surroundings = Surroundings::of_process(env)?;
    let mut prepared = prepare(args, &surroundings, stderr)?;
    match prepared.copy {
        Some(copy) => copy.run(prepared.command).await,
        None => Err(not_started(surroundings.mutagen(), &prepared.command.exec())),
    }
}

/// The lines for a shell, by which a daemon that is started there finds the stand-ins, and they the files of variables. The folder
/// with the stand-ins is there from then on.
///
/// # Errors
/// `config` where it cannot be made.
pub fn env_lines(shell: env::Shell, env: &Environment) -> Result<Vec<u8>> {
    let folder = standins(&Surroundings::of_process(env)?)?;
    let variables = std::iter::once(("MUTAGEN_SSH_PATH", folder)).chain(env.relative_variables());
    Ok(variables.flat_map(|(name, value)| shell.line(name, value.as_os_str())).collect())
}

/// The failure to start Mutagen.
fn not_started(program: &OsStr, error: &io::Error) -> Error {
    let program = program.display();
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(Code::Config, format!("the program `{program}` is not there"))
            .with_hint("install Mutagen (https://mutagen.io), or set TSTUNNEL_MUTAGEN to its file"),
        _ => Error::new(Code::Config, format!("`{program}` cannot be started: {}", reason(error)))
            .with_hint("set TSTUNNEL_MUTAGEN to Mutagen's file"),
    }
}

impl Surroundings<'_> {
    fn of_process(env: &Environment) -> Result<Surroundings<'_>> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let program = std::env::current_exe()
            .map_err(|error| Error::new(Code::Internal, format!("this program's file is unknown: {error}")))?;
        Ok(Surroundings {
            env,
            program,
            mutagen_data_directory: set("MUTAGEN_DATA_DIRECTORY").map(PathBuf::from),
            mutagen: set("TSTUNNEL_MUTAGEN").map(PathBuf::from),
            daemon: set("TSTUNNEL_MUTAGEN_DAEMON"),
        })
    }

    /// The program to run as Mutagen.
    fn mutagen(&self) -> &OsStr {
        self.mutagen.as_deref().map_or(OsStr::new("mutagen"), Path::as_os_str)
    }

    /// Mutagen's command, whose daemon finds the stand-ins in `folder`. It keeps these variables, and starts `scp` in another folder
    /// than this one.
    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(self.mutagen());
        command.env("MUTAGEN_SSH_PATH", folder).envs(self.env.relative_variables());
        command
    }

    /// Where Mutagen keeps its state; Mutagen itself fails without one, in its own words.
    fn data_directory(&self) -> Option<PathBuf> {
        let home = || self.env.home.as_ref().map(|home| home.join(".mutagen"));
        self.mutagen_data_directory.clone().or_else(home)
    }
}

/// The longest version that is one.
const MAX_VERSION_BYTES: usize = 64;
/// How long Mutagen may take to say its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// The version of the Mutagen on this machine, as it says it.
///
/// # Errors
/// `config` where there is none, or one that does not say.
pub fn version(env: &Environment) -> Result<String> {
    let surroundings = Surroundings::of_process(env)?;
    let program = surroundings.mutagen();
    let mut child = Command::new(program)
        .arg("version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| not_started(program, &error))?;
    let (sender, said) = std::sync::mpsc::channel();
    let stdout = child.stdout.take();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.map(|stdout| stdout.take(2 * MAX_VERSION_BYTES as u64).read_to_string(&mut text));
        // Nobody waits for it any more after the time-out.
        drop(sender.send(read.and_then(io::Result::ok).map(|_| text)));
    });
    let text = said.recv_timeout(VERSION_TIMEOUT).ok().flatten().unwrap_or_default();
    // One that hangs, and one that has ended.
    drop(child.kill());
    drop(child.wait());
    let version = text.trim();
    let is_version = (1..=MAX_VERSION_BYTES).contains(&version.len())
        && version.starts_with(|first: char| first.is_ascii_digit())
        && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-'));
    is_version.then(|| version.to_owned()).ok_or_else(|| {
        Error::new(Code::Config, format!("`{} version` does not say its version", program.display()))
            .with_hint("set TSTUNNEL_MUTAGEN to Mutagen's file")
    })
}

/// Whether the Mutagen daemon, if one runs, starts tstunnel as its `ssh`. Changes nothing.
///
/// # Errors
/// `config` where there is no place for the stand-ins or for Mutagen's state.
pub fn running_daemon(env: &Environment) -> Result<Daemon> {
    let surroundings = Surroundings::of_process(env)?;
    let data_directory = surroundings
        .data_directory()
        .ok_or_else(|| Error::new(Code::Config, "there is no home directory for Mutagen").with_hint("set HOME"))?;
    let folder = folder_of_standins(&surroundings)?;
    Ok(daemon::find(&data_directory, &Standins { folder: &folder, program: &surroundings.program }))
}

/// The words for a daemon that starts another `ssh`.
pub fn is_another(pid: i32, ssh_path: Option<&Path>) -> String {
    let place = place(ssh_path);
    format!("the Mutagen daemon, process {pid}, was started without tstunnel: it takes the ssh {place}")
}

fn place(ssh_path: Option<&Path>) -> String {
    ssh_path.map_or_else(|| "on PATH".to_owned(), |path| format!("in {}", path.display()))
}

/// The words for a daemon that does not show its environment, which may be as it should.
pub const IS_UNKNOWN: &str = "the running Mutagen daemon does not show whether it takes tstunnel's ssh";

/// What to do about that, where it is not.
pub const STOP_HINT: &str = "run `mutagen daemon stop`, then this again: sessions go on by themselves";

/// What to do about a daemon that was started without tstunnel.
pub const RESTART_HINT: &str = "run `tstunnel mutagen daemon start`, which restarts it: sessions go on by themselves";

/// Everything before it is run.
fn prepare(args: &[OsString], surroundings: &Surroundings<'_>, stderr: &mut dyn Write) -> Result<Prepared> {
    let rewrite = || Ok((rewrite::rewrite(args, surroundings.env)?, project::rewrite(args, surroundings.env)?));
    let (mut rewritten, mut project) = rewrite()?;
    let folder = standins(surroundings)?;
    see_to_daemon(args, &folder, surroundings, stderr)?;
    let is_noted = |noted: &[_]| !noted.is_empty();
    if is_noted(&rewritten.remember) || project.as_ref().is_some_and(|project| is_noted(&project.remember)) {
        // Somebody else may have been given one of the aliases since.
        let _lock = config::lock(surroundings.env)?;
        (rewritten, project) = rewrite()?;
        let of_project = project.iter().flat_map(|project| &project.remember);
        for (alias, remembered) in rewritten.remember.iter().chain(of_project) {
            config::remember(alias, remembered, surroundings.env)?;
        }
    }
    let copy = project.map(|project| project.copy()).transpose()?;
    if let Some(copy) = &copy {
        copy.put_into(&mut rewritten.args);
    }
    for note in misspelt::notes(args, surroundings.env) {
        drop(writeln!(stderr, "tstunnel: {}", printable(&note)));
    }
    let mut command = surroundings.command(&folder);
    command.args(rewritten.args);
    Ok(Prepared { command, copy })
}

/// The folder in which `ssh` and `scp` are this program. Its path stays the same, since a daemon keeps it.
fn standins(surroundings: &Surroundings<'_>) -> Result<PathBuf> {
    let folder = folder_of_standins(surroundings)?;
    if packaged_standins(surroundings).is_none() {
        link_all(&folder, &surroundings.program).map_err(|error| {
            Error::new(Code::Config, format!("{} cannot be made: {}", folder.display(), reason(&error)))
                .with_hint("make that folder writable, or set XDG_DATA_HOME to another")
        })?;
    }
    Ok(folder)
}

/// The same folder, whether or not there is anything in it.
fn folder_of_standins(surroundings: &Surroundings<'_>) -> Result<PathBuf> {
    if let Some(packaged) = packaged_standins(surroundings) {
        return Ok(packaged);
    }
    let data_folder = surroundings.env.data_folder().ok_or_else(|| {
        Error::new(Code::Config, "there is no home directory for the links that Mutagen needs")
            .with_hint("set HOME or XDG_DATA_HOME")
    })?;
    Ok(data_folder.join("mutagen"))
}

/// The folder that a package brings with this program.
fn packaged_standins(surroundings: &Surroundings<'_>) -> Option<PathBuf> {
    let packaged = surroundings.program.parent()?.parent()?.join("lib/tstunnel/mutagen");
    (packaged.join("ssh").exists() && packaged.join("scp").exists()).then_some(packaged)
}

fn link_all(folder: &Path, program: &Path) -> io::Result<()> {
    // After an upgrade in place the system names a file that is gone; a link to that would break every session.
    if !program.exists() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} has been replaced", program.display())));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    for name in ["ssh", "scp"] {
        let link = folder.join(name);
        if fs::read_link(&link).is_ok_and(|target| target == program) {
            continue;
        }
        // Beside its place, then renamed over it: a daemon may be starting it at this moment.
        let beside = folder.join(format!(".{name}.{}", std::process::id()));
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(program, &beside)?;
        if let Err(error) = fs::rename(&beside, &link) {
            // What could not be put in place must not stay; that error says more than one of this.
            drop(fs::remove_file(&beside));
            return Err(error);
        }
    }
    Ok(())
}

/// How long a daemon that was told to stop may take: `mutagen daemon stop` returns before its process has ended.
const STOPPING: Duration = Duration::from_secs(1);

/// Sees that the daemon that runs, if one does, serves the command.
fn see_to_daemon(
    args: &[OsString],
    folder: &Path,
    surroundings: &Surroundings<'_>,
    stderr: &mut dyn Write,
) -> Result<()> {
    let may_restart = restart::is_allowed(surroundings.daemon.as_ref())?;
    let need = daemon::need(args);
    if need == Need::Never {
        return Ok(());
    }
    let Some(data_directory) = surroundings.data_directory() else { return Ok(()) };
    let standins = Standins { folder, program: &surroundings.program };
    let mut found = daemon::find(&data_directory, &standins);
    let patience = Instant::now() + STOPPING;
    while need == Need::Must && !may_restart && matches!(found, Daemon::Other { .. }) && Instant::now() < patience {
        std::thread::sleep(STOPPING / 50);
        found = daemon::find(&data_directory, &standins);
    }
    // That nobody reads stderr is no reason to stop.
    let mut say = |text: String| drop(writeln!(stderr, "tstunnel: {}", printable(&text)));
    let (pid, ssh_path) = match found {
        Daemon::None | Daemon::Ours => return Ok(()),
        // One that cannot be seen may well be right.
        Daemon::Unknown if need == Need::May => return Ok(()),
        Daemon::Unknown => {
            say(format!("warning: {IS_UNKNOWN}"));
            say(format!("hint: {STOP_HINT}"));
            return Ok(());
        }
        Daemon::Other { pid, ssh_path } => (pid, ssh_path),
    };
    let text = is_another(pid, ssh_path.as_deref());
    match (need, may_restart) {
        (Need::Must, false) => Err(Error::new(Code::Config, text).with_hint(
            "run `mutagen daemon stop`, then this again, or unset TSTUNNEL_MUTAGEN_DAEMON: sessions go on by themselves",
        )),
        (Need::Must, true) => {
            let start = !daemon::is_the_daemon(args);
            Restart { surroundings, data_directory: &data_directory, standins, start }.run(|pid| {
                let place = place(ssh_path.as_deref());
                say(format!(
                    "restarting the Mutagen daemon, process {pid}, which takes the ssh {place}: sessions go on by themselves"
                ));
            })
        }
        _ => {
            say(format!("warning: {text}"));
            say(format!("hint: {RESTART_HINT}"));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine {
        folder: tempfile::TempDir,
        env: Environment,
    }

    impl Machine {
        fn new() -> Machine {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("usr/bin")).unwrap();
            fs::write(folder.path().join("usr/bin/tstunnel"), "").unwrap();
            let env = Environment {
                home: Some(folder.path().join("home")),
                current_dir: folder.path().join("work"),
                ..Environment::default()
            };
            Machine { folder, env }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn surroundings(&self) -> Surroundings<'_> {
            let program = self.path("usr/bin/tstunnel");
            Surroundings { env: &self.env, program, mutagen_data_directory: None, mutagen: None, daemon: None }
        }
    }

    #[test]
    fn links_are_made_below_the_data_home_for_their_owner_alone() {
        let machine = Machine::new();
        let folder = standins(&machine.surroundings()).unwrap();
        assert_eq!(folder, machine.path("home/.local/share/tstunnel/mutagen"));
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        for name in ["ssh", "scp"] {
            assert_eq!(fs::read_link(folder.join(name)).unwrap(), machine.path("usr/bin/tstunnel"));
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        let elsewhere = Environment { xdg_data_home: Some(machine.path("data")), ..machine.env.clone() };
        assert_eq!(
            standins(&Surroundings { env: &elsewhere, ..machine.surroundings() }).unwrap(),
            machine.path("data/tstunnel/mutagen")
        );
    }

    #[test]
    fn links_to_another_program_and_files_are_replaced() {
        let machine = Machine::new();
        let folder = standins(&machine.surroundings()).unwrap();
        fs::remove_file(folder.join("ssh")).unwrap();
        fs::write(folder.join("ssh"), "old").unwrap();
        fs::remove_file(folder.join("scp")).unwrap();
        symlink("/nowhere", folder.join("scp")).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        standins(&machine.surroundings()).unwrap();
        for name in ["ssh", "scp"] {
            assert_eq!(fs::read_link(folder.join(name)).unwrap(), machine.path("usr/bin/tstunnel"));
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_packages_own_folder_is_used_where_there_is_one() {
        let machine = Machine::new();
        let packaged = machine.path("usr/lib/tstunnel/mutagen");
        fs::create_dir_all(&packaged).unwrap();
        symlink("../../../bin/tstunnel", packaged.join("ssh")).unwrap();
        assert_ne!(standins(&machine.surroundings()).unwrap(), packaged);
        symlink("../../../bin/tstunnel", packaged.join("scp")).unwrap();
        assert_eq!(standins(&machine.surroundings()).unwrap(), packaged);
    }

    #[test]
    fn a_program_that_was_replaced_and_a_missing_home_are_said() {
        let machine = Machine::new();
        let gone = Surroundings { program: machine.path("usr/bin/tstunnel (deleted)"), ..machine.surroundings() };
        assert!(standins(&gone).unwrap_err().text.contains("has been replaced"));
        let homeless = Environment::default();
        assert_eq!(
            standins(&Surroundings { env: &homeless, ..machine.surroundings() }).unwrap_err().code,
            Code::Config
        );
    }

    #[test]
    fn mutagen_gets_its_arguments_the_folder_and_remembered_hosts() {
        let machine = Machine::new();
        let args = ["sync", "create", "a", "tstunnel://h/p?endpoint=e&cert=c&key=k"].map(OsString::from);
        let mut stderr = Vec::new();
        let command = prepare(&args, &machine.surroundings(), &mut stderr).unwrap().command;
        assert_eq!(command.get_program(), "mutagen");
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["sync", "create", "a", "h.e:/p"]);
        let folder = machine.path("home/.local/share/tstunnel/mutagen");
        assert!(
            command.get_envs().any(|(name, value)| name == "MUTAGEN_SSH_PATH" && value == Some(folder.as_os_str()))
        );
        assert!(stderr.is_empty());
        let kept = config::recall("h.e", &machine.env).unwrap().unwrap();
        assert_eq!(kept.parameters.cert.as_deref(), machine.path("work/c").to_str());
        let named = Surroundings { mutagen: Some("/opt/mutagen".into()), ..machine.surroundings() };
        let command = prepare(&args[..1], &named, &mut Vec::new()).unwrap().command;
        assert_eq!(command.get_program(), "/opt/mutagen");
    }
    #[test]
    fn a_host_near_in_spelling_to_a_configured_one_is_pointed_out_and_nothing_else_changes() {
        let machine = Machine::new();
        let file = machine.path("home/.config/tstunnel/config.toml");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "[host.host123]\nendpoint = \"e\"\ncert = \"/c\"\nkey = \"/k\"\n").unwrap();
        let said = |line: &str| {
            let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let mut stderr = Vec::new();
            let command = prepare(&args, &machine.surroundings(), &mut stderr).unwrap().command;
            assert_eq!(command.get_args().collect::<Vec<_>>(), args);
            String::from_utf8(stderr).unwrap()
        };
        assert_eq!(
            said("sync create a dev@hots123:/p"),
            "tstunnel: note: no entry of the configuration is named `hots123`, so the real ssh is asked; did you mean \
             `host123`?\n"
        );
        assert!(said("forward create tcp:localhost:8080 hosst123:22:tcp:localhost:80").contains("`hosst123`"));
        for quiet in ["sync create a host123:/p", "sync create a elsewhere:/p", "sync list hots123:/p"] {
            assert_eq!(said(quiet), "", "{quiet}");
        }
    }
}

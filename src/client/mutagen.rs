//! `tstunnel mutagen ARGS…`: becomes `mutagen`, with `MUTAGEN_SSH_PATH` set and `tstunnel://` URLs in Mutagen's terms.
//!
//! In this order, so that what fails leaves nothing behind: [`rewrite`] the arguments, see to the folder with the
//! stand-ins, ask whether a running [`daemon`] knows that folder, remember the URLs' parameters, exec(2).

pub mod daemon;
pub mod rewrite;

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::config::{self, Environment};
use crate::error::{Code, Error, Result, printable};
use daemon::{Daemon, Need, Standins};

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
}

/// Runs Mutagen in this process's place. Warnings go to `stderr`.
///
/// # Errors
/// `config` where Mutagen is not there, its daemon cannot serve the command, or a URL lacks something; `usage` for a URL that
/// makes no sense; it returns in no other case.
pub fn run(args: &[OsString], env: &Environment, stderr: &mut dyn Write) -> Result<Infallible> {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let program = std::env::current_exe()
        .map_err(|error| Error::new(Code::Internal, format!("this program's file is unknown: {error}")))?;
    let surroundings = Surroundings {
        env,
        program,
        mutagen_data_directory: path("MUTAGEN_DATA_DIRECTORY"),
        mutagen: path("TSTUNNEL_MUTAGEN"),
    };
    let mut command = prepare(args, &surroundings, stderr)?;
    let error = command.exec();
    let program = command.get_program().display();
    Err(match error.kind() {
        io::ErrorKind::NotFound => Error::new(Code::Config, format!("the program `{program}` is not there"))
            .with_hint("install Mutagen (https://mutagen.io), or set TSTUNNEL_MUTAGEN to its file"),
        _ => Error::new(Code::Config, format!("`{program}` cannot be started: {error}"))
            .with_hint("set TSTUNNEL_MUTAGEN to Mutagen's file"),
    })
}

/// Everything up to the exec(2).
fn prepare(args: &[OsString], surroundings: &Surroundings<'_>, stderr: &mut dyn Write) -> Result<Command> {
    let rewritten = rewrite::rewrite(args, surroundings.env)?;
    let folder = standins(surroundings)?;
    check_daemon(args, &folder, surroundings, stderr)?;
    for (alias, remembered) in &rewritten.remember {
        config::remember(alias, remembered, surroundings.env)?;
    }
    let program = surroundings.mutagen.as_deref().map_or(OsStr::new("mutagen"), Path::as_os_str);
    let mut command = Command::new(program);
    command.args(rewritten.args).env("MUTAGEN_SSH_PATH", folder);
    Ok(command)
}

/// The folder in which `ssh` and `scp` are this program. Its path stays the same, since a daemon keeps it.
fn standins(surroundings: &Surroundings<'_>) -> Result<PathBuf> {
    if let Some(prefix) = surroundings.program.parent().and_then(Path::parent) {
        let packaged = prefix.join("lib/tstunnel/mutagen");
        if packaged.join("ssh").exists() && packaged.join("scp").exists() {
            return Ok(packaged);
        }
    }
    let data_folder = surroundings.env.data_folder().ok_or_else(|| {
        Error::new(Code::Config, "there is no home directory for the links that Mutagen needs")
            .with_hint("set HOME or XDG_DATA_HOME")
    })?;
    let folder = data_folder.join("mutagen");
    link_all(&folder, &surroundings.program).map_err(|error| {
        Error::new(Code::Config, format!("{} cannot be made: {error}", folder.display()))
            .with_hint("make that folder writable, or set XDG_DATA_HOME to another")
    })?;
    Ok(folder)
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

fn check_daemon(
    args: &[OsString],
    folder: &Path,
    surroundings: &Surroundings<'_>,
    stderr: &mut dyn Write,
) -> Result<()> {
    let need = daemon::need(args);
    if need == Need::Never {
        return Ok(());
    }
    let data_directory = match (&surroundings.mutagen_data_directory, &surroundings.env.home) {
        (Some(data_directory), _) => data_directory.clone(),
        (None, Some(home)) => home.join(".mutagen"),
        // Mutagen itself fails then, in its own words.
        (None, None) => return Ok(()),
    };
    let standins = Standins { folder, program: &surroundings.program };
    let mut found = daemon::find(&data_directory, &standins);
    let patience = Instant::now() + STOPPING;
    while need == Need::Must && matches!(found, Daemon::Other { .. }) && Instant::now() < patience {
        std::thread::sleep(STOPPING / 50);
        found = daemon::find(&data_directory, &standins);
    }
    let (text, certain) = match found {
        Daemon::None | Daemon::Ours => return Ok(()),
        Daemon::Other { pid, ssh_path } => {
            let place = ssh_path.map_or_else(|| "on PATH".to_owned(), |path| format!("in {}", path.display()));
            (format!("the Mutagen daemon, process {pid}, was started without tstunnel: it takes the ssh {place}"), true)
        }
        // One that cannot be seen may well be right.
        Daemon::Unknown if need == Need::May => return Ok(()),
        Daemon::Unknown => {
            ("the running Mutagen daemon does not show whether it takes tstunnel's ssh".to_owned(), false)
        }
    };
    let hint = "run `mutagen daemon stop`, then this again: sessions go on by themselves";
    if need == Need::Must && certain {
        return Err(Error::new(Code::Config, text).with_hint(hint));
    }
    // That nobody reads stderr is no reason to stop.
    drop(writeln!(stderr, "tstunnel: warning: {}\ntstunnel: hint: {hint}", printable(&text)));
    Ok(())
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
            Surroundings { env: &self.env, program, mutagen_data_directory: None, mutagen: None }
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
        let command = prepare(&args, &machine.surroundings(), &mut stderr).unwrap();
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
        let command = prepare(&args[..1], &named, &mut Vec::new()).unwrap();
        assert_eq!(command.get_program(), "/opt/mutagen");
    }
}

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

use crate::error::{Code, Error, Result, printable};
use daemon::{Daemon, Need, Standins};
use rewrite::{Parameters, Rewriter, TunnelUrl};

/// How URLs are read, and their parameters kept for the stand-ins.
pub struct Memory<'a> {
    /// Parses a `tstunnel://` URL.
    pub parse: &'a dyn Fn(&str) -> Result<TunnelUrl>,
    /// What an alias already stands for.
    pub remembered: &'a dyn Fn(&str) -> Result<Option<Parameters>>,
    /// Keeps what an alias stands for.
    pub remember: &'a dyn Fn(&str, &Parameters) -> Result<()>,
    /// What the `TSTUNNEL_…` variables say.
    pub environment: Parameters,
}

/// What this process stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// This program's file.
    pub program: PathBuf,
    /// The working folder.
    pub folder: PathBuf,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<PathBuf>,
    /// `MUTAGEN_DATA_DIRECTORY`.
    pub mutagen_data_directory: Option<PathBuf>,
    /// `TSTUNNEL_MUTAGEN`.
    pub mutagen: Option<PathBuf>,
}

impl Surroundings {
    /// Reads this process's.
    ///
    /// # Errors
    /// `internal` where the system does not tell this program's file or the working folder.
    pub fn of_this_process() -> Result<Surroundings> {
        let unknown = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| Error::new(Code::Internal, format!("{what} is unknown: {error}"))
        };
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Ok(Surroundings {
            program: std::env::current_exe().map_err(unknown("this program's file"))?,
            folder: std::env::current_dir().map_err(unknown("the working folder"))?,
            home: path("HOME"),
            data_home: path("XDG_DATA_HOME").filter(|path| path.is_absolute()),
            mutagen_data_directory: path("MUTAGEN_DATA_DIRECTORY"),
            mutagen: path("TSTUNNEL_MUTAGEN"),
        })
    }
}

/// Runs Mutagen in this process's place. Warnings go to `stderr`.
///
/// # Errors
/// `config` where Mutagen is not there or its daemon cannot serve the command, `usage` for a URL that makes no sense;
/// it returns in no other case.
pub fn run(args: &[OsString], memory: &Memory<'_>, stderr: &mut dyn Write) -> Result<Infallible> {
    let surroundings = Surroundings::of_this_process()?;
    let mut command = prepare(args, memory, &surroundings, stderr)?;
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
fn prepare(
    args: &[OsString],
    memory: &Memory<'_>,
    surroundings: &Surroundings,
    stderr: &mut dyn Write,
) -> Result<Command> {
    let rewriter = Rewriter {
        parse: memory.parse,
        remembered: memory.remembered,
        environment: &memory.environment,
        folder: &surroundings.folder,
        home: surroundings.home.as_deref(),
    };
    let rewritten = rewriter.rewrite(args)?;
    let folder = standins(surroundings)?;
    check_daemon(args, &folder, surroundings, stderr)?;
    for (alias, parameters) in &rewritten.remember {
        (memory.remember)(alias, parameters)?;
    }
    let program = surroundings.mutagen.as_deref().map_or(OsStr::new("mutagen"), Path::as_os_str);
    let mut command = Command::new(program);
    command.args(rewritten.args).env("MUTAGEN_SSH_PATH", folder);
    Ok(command)
}

/// The folder in which `ssh` and `scp` are this program. Its path stays the same, since a daemon keeps it.
fn standins(surroundings: &Surroundings) -> Result<PathBuf> {
    if let Some(prefix) = surroundings.program.parent().and_then(Path::parent) {
        let packaged = prefix.join("lib/tstunnel/mutagen");
        if packaged.join("ssh").exists() && packaged.join("scp").exists() {
            return Ok(packaged);
        }
    }
    let data_home = match (&surroundings.data_home, &surroundings.home) {
        (Some(data_home), _) => data_home.clone(),
        (None, Some(home)) => home.join(".local/share"),
        (None, None) => {
            return Err(Error::new(Code::Config, "there is no home directory for the links that Mutagen needs")
                .with_hint("set HOME or XDG_DATA_HOME"));
        }
    };
    let folder = data_home.join("tstunnel/mutagen");
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

fn check_daemon(args: &[OsString], folder: &Path, surroundings: &Surroundings, stderr: &mut dyn Write) -> Result<()> {
    let need = daemon::need(args);
    if need == Need::Never {
        return Ok(());
    }
    let data_directory = match (&surroundings.mutagen_data_directory, &surroundings.home) {
        (Some(data_directory), _) => data_directory.clone(),
        (None, Some(home)) => home.join(".mutagen"),
        // Mutagen itself fails then, in its own words.
        (None, None) => return Ok(()),
    };
    let standins = Standins { folder, program: &surroundings.program };
    let (text, certain) = match daemon::find(&data_directory, &standins) {
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
    use std::cell::RefCell;

    struct Machine {
        folder: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Machine {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("usr/bin")).unwrap();
            fs::write(folder.path().join("usr/bin/tstunnel"), "").unwrap();
            Machine { folder }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn surroundings(&self) -> Surroundings {
            Surroundings {
                program: self.path("usr/bin/tstunnel"),
                folder: self.path("work"),
                home: Some(self.path("home")),
                data_home: None,
                mutagen_data_directory: None,
                mutagen: None,
            }
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
        let elsewhere = Surroundings { data_home: Some(machine.path("data")), ..machine.surroundings() };
        assert_eq!(standins(&elsewhere).unwrap(), machine.path("data/tstunnel/mutagen"));
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
        let homeless = Surroundings { home: None, ..machine.surroundings() };
        assert_eq!(standins(&homeless).unwrap_err().code, Code::Config);
    }

    #[test]
    fn mutagen_gets_its_arguments_the_folder_and_remembered_hosts() {
        let machine = Machine::new();
        let kept = RefCell::new(Vec::new());
        let memory = Memory {
            parse: &|_| Ok(TunnelUrl { host: "h".into(), path: "/p".into(), ..TunnelUrl::default() }),
            remembered: &|_| Ok(None),
            remember: &|alias, parameters| {
                kept.borrow_mut().push((alias.to_owned(), parameters.clone()));
                Ok(())
            },
            environment: Parameters { endpoint: Some("e".into()), cert: Some("c".into()), ..Parameters::default() },
        };
        let args = ["sync", "create", "a", "tstunnel://h/p"].map(OsString::from);
        let mut stderr = Vec::new();
        let command = prepare(&args, &memory, &machine.surroundings(), &mut stderr).unwrap();
        assert_eq!(command.get_program(), "mutagen");
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["sync", "create", "a", "h.e:/p"]);
        let folder = machine.path("home/.local/share/tstunnel/mutagen");
        assert!(
            command.get_envs().any(|(name, value)| name == "MUTAGEN_SSH_PATH" && value == Some(folder.as_os_str()))
        );
        assert!(stderr.is_empty());
        let kept = kept.borrow();
        assert_eq!(kept.len(), 1);
        assert_eq!((kept[0].0.as_str(), kept[0].1.cert.clone()), ("h.e", Some(machine.path("work/c"))));
        let named = Surroundings { mutagen: Some("/opt/mutagen".into()), ..machine.surroundings() };
        let command = prepare(&args[..1], &memory, &named, &mut Vec::new()).unwrap();
        assert_eq!(command.get_program(), "/opt/mutagen");
    }
}

//! `mutagen project start` with `tstunnel://` URLs in its file: Mutagen is given a copy of the file with them in its own terms.
//!
//! Of all of `mutagen project` only `start` reads URLs; the rest reads the project's identifier in `FILE.lock`, which `start`
//! writes, and FILE itself (`cmd/mutagen/project`). Mutagen works in FILE's folder and makes the lock's name from FILE's. So the
//! copy is beside FILE, and the lock of the copy a link to that of FILE, which Mutagen makes and locks itself: whatever happens to
//! this process, `mutagen project list` and the others find the sessions. Both are removed as soon as Mutagen has ended.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::SignalKind;

use super::rewrite::in_mutagens_terms;
use super::yaml;
use crate::client::signals::Listeners;
use crate::config::{Environment, Remembered};
use crate::error::{Code, Error, Result, reason};

/// What Mutagen reads where it is not told.
const DEFAULT_FILE: &str = "mutagen.yml";
/// What Mutagen appends to the name of a file for its lock.
const LOCK_EXTENSION: &str = ".lock";
/// More than anybody writes.
const MAX_BYTES: u64 = 4 << 20;

/// A project's file with URLs in it.
pub(super) struct Project {
    file: PathBuf,
    text: String,
    /// Aliases and what they stand for.
    pub(super) remember: Vec<(String, Remembered)>,
}

/// Reads the file that `mutagen project start` would; `None` for other commands, and for files without URLs. What a URL says is
/// relative to the file's folder.
///
/// # Errors
/// `config` where the file is no YAML; those of [`super::rewrite::rewrite`], with the line.
pub(super) fn rewrite(args: &[OsString], env: &Environment) -> Result<Option<Project>> {
    let Some(file) = file_to_start(args) else { return Ok(None) };
    // What cannot be read Mutagen reports itself.
    let Some(text) = read(&env.current_dir.join(&file)) else { return Ok(None) };
    let env = env.within(file.parent().unwrap_or(Path::new("")))?;
    let mut remember = Vec::new();
    let rewritten = yaml::rewrite(&text, |url, kind| in_mutagens_terms(url, Some(kind), &mut remember, &env));
    let rewritten = rewritten.map_err(|error| {
        let hint = error.hint().to_owned();
        Error::new(error.code, format!("{}, {}", file.display(), error.text)).with_hint(hint)
    })?;
    Ok(rewritten.map(|text| Project { file, text, remember }))
}

fn read(file: &Path) -> Option<String> {
    let mut text = String::new();
    let count = File::open(file).ok()?.take(MAX_BYTES + 1).read_to_string(&mut text).ok()? as u64;
    (count <= MAX_BYTES).then_some(text)
}

/// The file of a `project start`, by Mutagen's options (`cmd/mutagen/project/start.go`), wherever they stand.
fn file_to_start(args: &[OsString]) -> Option<PathBuf> {
    let mut file = OsString::from(DEFAULT_FILE);
    let mut words: Vec<&OsStr> = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let bytes = arg.as_encoded_bytes();
        if arg == "--" {
            break;
        } else if arg == "--project-file" || arg == "-f" || arg == "-pf" {
            file = rest.next()?.clone();
        } else if let Some(value) = [&b"--project-file="[..], b"-f=", b"-pf=", b"-f", b"-pf"]
            .iter()
            .find_map(|prefix| bytes.strip_prefix(*prefix))
        {
            file = std::os::unix::ffi::OsStringExt::from_vec(value.to_vec());
        } else if arg == "--help" || arg == "-h" {
            return None;
        } else if !bytes.starts_with(b"-") {
            words.push(arg);
        }
    }
    (words == ["project", "start"]).then(|| if file.is_empty() { DEFAULT_FILE.into() } else { file.into() })
}

impl Project {
    /// Puts the copy beside the file.
    ///
    /// # Errors
    /// `config` where that cannot be done.
    pub(super) fn copy(&self) -> Result<Copy> {
        let copy = appended(&self.file, &format!(".tstunnel-{}", std::process::id()));
        let failed = |error: io::Error| {
            Error::new(Code::Config, format!("{} cannot be written: {}", copy.display(), reason(&error)))
                .with_hint("make that folder writable, as Mutagen itself writes there")
        };
        let link = appended(&copy, LOCK_EXTENSION);
        let lock = appended(&self.file, LOCK_EXTENSION);
        // What a process of the same number left, when it was killed.
        for stale in [&copy, &link] {
            match fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        // First, as that it is gone has a meaning.
        symlink(lock.file_name().unwrap_or_default(), &link).map_err(failed)?;
        let made = Copy { copy: copy.clone(), link, lock };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy).map_err(failed)?;
        file.write_all(self.text.as_bytes()).map_err(failed)?;
        Ok(made)
    }
}

/// The copy that Mutagen is given, and the link in place of its lock. Both go when it is dropped.
pub(super) struct Copy {
    copy: PathBuf,
    link: PathBuf,
    lock: PathBuf,
}

impl Copy {
    /// Names the copy in Mutagen's arguments, of which the last one counts.
    pub(super) fn put_into(&self, args: &mut Vec<OsString>) {
        let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
        let mut option = OsString::from("--project-file=");
        option.push(&self.copy);
        args.insert(end, option);
    }

    /// Runs Mutagen to its end, with what a service manager or a closed terminal says passed on; returns its exit status.
    ///
    /// # Errors
    /// `config` where it cannot be started.
    pub(super) async fn run(self, command: Command) -> Result<u8> {
        let mut signals = Listeners::new([
            (SignalKind::terminate(), Some(Signal::TERM)),
            (SignalKind::hangup(), Some(Signal::HUP)),
            // The terminal sends these to Mutagen too; here they must only not be the end.
            (SignalKind::interrupt(), None),
            (SignalKind::quit(), None),
        ])?;
        let program = command.get_program().to_owned();
        let started = tokio::process::Command::from(command).spawn();
        let mut child = started.map_err(|error| super::not_started(&program, &error))?;
        let status = loop {
            let received = tokio::select! {
                status = child.wait() => break status,
                received = signals.next() => received,
            };
            let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
            if let (Some(pid), Some(signal)) = (pid, received) {
                // One that has just ended needs no signal.
                let _ = kill_process(pid, signal);
            }
        };
        status.map(exit_status).map_err(|error| Error::new(Code::Internal, format!("Mutagen is out of sight: {error}")))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Nothing more can be done about files that stay.
        drop(fs::remove_file(&self.copy));
        if fs::remove_file(&self.link).is_err() {
            // Mutagen has given the project up before it began, and removed what it took for the lock.
            drop(fs::remove_file(&self.lock));
        }
    }
}

fn appended(path: &Path, text: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(text);
    path.into()
}

fn exit_status(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(line: &str) -> Option<PathBuf> {
        file_to_start(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_file_is_found_as_mutagen_finds_it() {
        for line in ["project start", "project start -p --no-global-configuration", "project start -f="] {
            assert_eq!(file(line), Some("mutagen.yml".into()), "{line}");
        }
        for line in [
            "project start -f a/b.yml",
            "project start -fa/b.yml",
            "project start -f=a/b.yml -p",
            "project start -pf a/b.yml",
            "project start --project-file a/b.yml",
            "project start -f x --project-file=a/b.yml",
            "project -f a/b.yml start",
        ] {
            assert_eq!(file(line), Some("a/b.yml".into()), "{line}");
        }
        for line in
            ["project", "project run start", "project list", "sync start", "project start -f", "project start -h", ""]
        {
            assert_eq!(file(line), None, "{line}");
        }
    }

    #[test]
    fn a_url_is_relative_to_its_file_and_a_variable_to_the_current_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("project")).unwrap();
        let yaml = "sync: {a: {alpha: ., beta: \"tstunnel://h/p?endpoint=e&cert=c\"}}";
        fs::write(folder.path().join("project/p.yml"), yaml).unwrap();
        let env = Environment {
            current_dir: folder.path().to_owned(),
            home: Some(folder.path().to_owned()),
            key: Some("k".into()),
            ..Environment::default()
        };
        let args = ["project", "start", "-f", "project/p.yml"].map(OsString::from);
        let project = rewrite(&args, &env).unwrap().unwrap();
        assert_eq!(project.text, "sync: {a: {alpha: ., beta: \"h.e:/p\"}}");
        let parameters = &project.remember[0].1.parameters;
        assert_eq!(parameters.cert.as_deref().map(Path::new), Some(&*folder.path().join("project/c")));
        assert_eq!(parameters.key.as_deref().map(Path::new), Some(&*folder.path().join("k")));
        fs::write(folder.path().join("project/p.yml"), "sync: {a: {beta: \"tstunnel://h/p\"}}").unwrap();
        let error = rewrite(&args, &env).err().unwrap();
        assert!(error.text.starts_with("project/p.yml, line 1: `h` has no"), "{error}");
    }

    #[test]
    fn without_a_file_or_urls_in_it_mutagen_gets_what_was_said() {
        let folder = tempfile::tempdir().unwrap();
        let env = Environment { current_dir: folder.path().to_owned(), ..Environment::default() };
        let args = ["project", "start"].map(OsString::from);
        assert!(rewrite(&args, &env).unwrap().is_none());
        for bytes in [&b"sync: {a: {beta: h:p}} # tstunnel://"[..], b"\xff tstunnel://"] {
            fs::write(folder.path().join(DEFAULT_FILE), bytes).unwrap();
            assert!(rewrite(&args, &env).unwrap().is_none());
        }
    }

    #[test]
    fn a_copy_goes_and_takes_only_a_lock_along_that_mutagen_gave_up() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project { file: folder.path().join("p.yml"), text: "x".into(), remember: Vec::new() };
        let lock = folder.path().join("p.yml.lock");
        for gives_up in [false, true] {
            let copy = project.copy().unwrap();
            // As Mutagen does, through the link.
            fs::write(&copy.link, "id").unwrap();
            assert_eq!(fs::read_to_string(&lock).unwrap(), "id");
            assert_eq!(fs::read_to_string(&copy.copy).unwrap(), "x");
            if gives_up {
                fs::remove_file(&copy.link).unwrap();
            }
            drop(copy);
            assert_eq!(lock.exists(), !gives_up);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), usize::from(!gives_up));
        }
    }

    #[test]
    fn a_copy_that_cannot_be_made_leaves_a_project_that_runs_alone() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project { file: folder.path().join("p.yml"), text: "x".into(), remember: Vec::new() };
        let lock = folder.path().join("p.yml.lock");
        fs::write(&lock, "id").unwrap();
        let name = folder.path().join(format!("p.yml.tstunnel-{}", std::process::id()));
        // Where a folder is, a file cannot be.
        for in_the_way in [name.clone(), appended(&name, LOCK_EXTENSION)] {
            fs::create_dir(&in_the_way).unwrap();
            assert_eq!(project.copy().err().unwrap().code, Code::Config);
            fs::remove_dir(&in_the_way).unwrap();
            assert_eq!(fs::read_to_string(&lock).unwrap(), "id");
        }
        let gone = Project { file: "/no/such/folder/p.yml".into(), ..project };
        assert!(gone.copy().err().unwrap().text.contains("cannot be written"));
    }
}

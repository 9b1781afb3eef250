//! Standing in for `ssh` and `scp`: hosts that are tstunnel's are served here, everything else is handed to the real
//! program by `exec`, untouched.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use crate::cli::openssh::{
    Action, AddressFamily, Destination, Invocation, Scp, SentEnvironment, Ssh, parse_scp, parse_ssh,
};
use crate::client::dial::Dialler;
use crate::client::session::{Offer, without_stdin};
use crate::client::{connect, exec, upload};
use crate::config::{self, Environment, Overrides, WeakDefaults};
use crate::error::{Code, Error, Result, reason};
use crate::protocol::CommandRequest;
use crate::stdio;

/// What goes along whatever the command line says, as Debian's `ssh_config` has it.
const SENT_ENVIRONMENT: [&str; 2] = ["LANG", "LC_*"];
/// What a URL of ours begins with.
const SCHEME: &str = "tstunnel";
/// The port that tools name when they mean `ssh` and nothing else.
const SSH_PORT: u16 = 22;

/// An `ssh` or `scp` whose host is tstunnel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ours {
    /// `ssh`
    Ssh(Ssh),
    /// `scp`
    Scp(Scp),
}

impl Ours {
    /// Whether it is to say what it does: `-v`.
    pub fn is_verbose(&self) -> bool {
        match self {
            Ours::Ssh(ssh) => ssh.verbose,
            Ours::Scp(scp) => scp.verbose,
        }
    }
}

/// Decides whose an `ssh` is. For somebody else's this does not return, but where the real `ssh` cannot be run.
///
/// # Errors
/// `usage` for what a tunnel cannot do, `config` for a broken file or a missing `ssh`.
pub fn ssh(args: &[OsString], env: &Environment) -> Result<Ours> {
    match parse_ssh(args) {
        Invocation::Host(parsed) if is_ours(&parsed.destination, env)? => parsed.accept().map(Ours::Ssh),
        Invocation::Host(parsed) => Err(hand_over("ssh", Some(&parsed.destination.host), args)),
        Invocation::Foreign => Err(hand_over("ssh", None, args)),
    }
}

/// Decides whose an `scp` is, likewise.
///
/// # Errors
/// Those of [`ssh`].
pub fn scp(args: &[OsString], env: &Environment) -> Result<Ours> {
    let Invocation::Host(parsed) = parse_scp(args) else { return Err(hand_over("scp", None, args)) };
    for destination in &parsed.destinations {
        if is_ours(destination, env)? {
            return parsed.accept().map(Ours::Scp);
        }
    }
    Err(hand_over("scp", parsed.destinations.first().map(|destination| destination.host.as_str()), args))
}

fn is_ours(destination: &Destination, env: &Environment) -> Result<bool> {
    config::is_ours(&destination.host, env, &Overrides::default())
}

/// Serves what is ours; returns the exit status.
///
/// # Errors
/// Those of the commands behind it.
pub async fn run(ours: Ours, env: &Environment) -> Result<u8> {
    match ours {
        Ours::Ssh(ssh) => {
            let dialler = dialler(&ssh.destination, &ssh.defaults, ssh.address_family, ssh.batch, env)?;
            let streams =
                stdio::take().and_then(|streams| if ssh.stdin_null { without_stdin(streams) } else { Ok(streams) });
            let streams = streams.map_err(|error| no_streams(&error))?;
            match ssh.action {
                Action::Command(command) => {
                    let request =
                        CommandRequest { command, env: environment(&ssh.environment), ..CommandRequest::default() };
                    exec::run(&dialler, request, Offer::FramedFirst, streams).await
                }
                Action::Forward(target) => connect::run(&dialler, Some(&target), Offer::FramedFirst, streams).await,
            }
        }
        Ours::Scp(scp) => {
            let dialler = dialler(&scp.destination, &scp.defaults, scp.address_family, scp.batch, env)?;
            for file in scp.uploads {
                let content = upload::Content::File(file.source);
                let upload = upload::Upload { content, name: Some(file.name), mode: None, compress: scp.compress };
                upload::run(&dialler, &upload, &upload::Progress::none()).await?;
            }
            Ok(0)
        }
    }
}

fn dialler(
    destination: &Destination,
    defaults: &WeakDefaults,
    family: AddressFamily,
    batch: bool,
    env: &Environment,
) -> Result<Dialler> {
    let overrides = Overrides { user: destination.user.clone(), ..Overrides::default() };
    let mut host = config::resolve(&destination.host, &overrides, defaults, env)?;
    if let Some(port) = destination.port.filter(|port| *port != SSH_PORT) {
        host.endpoint.port = port;
    }
    let dialler = Dialler::new(host).with_family(family);
    Ok(if batch { dialler.without_asking() } else { dialler })
}

/// The failure to take over this process's own streams.
pub fn no_streams(error: &std::io::Error) -> Error {
    Error::new(Code::Internal, format!("cannot use stdin, stdout or stderr: {error}"))
}

/// What of this process's environment goes along with a command.
pub fn environment(asked: &SentEnvironment) -> BTreeMap<String, String> {
    let mut sent = asked.clone();
    sent.patterns.extend(SENT_ENVIRONMENT.map(str::to_owned));
    sent.of(std::env::vars_os())
}

/// Becomes the real program, for `host` where there is one. Returns only what went wrong.
fn hand_over(program: &str, host: Option<&str>, args: &[OsString]) -> Error {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(real) = find_real(program, &path) else {
        let (name, entry) = match host {
            Some(host) => (format!("`{host}`"), format!("a [host.\"{host}\"] entry")),
            None => ("this".to_owned(), "an entry".to_owned()),
        };
        let text = format!("{name} is no host of tstunnel's, and there is no other `{program}` on PATH");
        return Error::new(Code::Config, text)
            .with_hint(format!("add {entry} for it to the configuration, or install {program}"));
    };
    if host == Some(SCHEME) {
        // Mutagen takes the scheme of a URL that it does not know for a host.
        let _ = writeln!(
            std::io::stderr(),
            "tstunnel: note: the real {program} is asked for a host `{SCHEME}`; for a {SCHEME}:// URL say `tstunnel mutagen` in \
             place of `mutagen`"
        );
    }
    tracing::debug!(real = %real.display(), "handing over");
    let error = std::process::Command::new(&real).args(args).exec();
    Error::new(Code::Config, format!("cannot run {}: {}", real.display(), reason(&error)))
}

/// The first `program` on `path` that is not this program.
fn find_real(program: &str, path: &OsStr) -> Option<PathBuf> {
    let me = std::env::current_exe().and_then(|me| me.metadata()).ok();
    let candidates = std::env::split_paths(path).map(|folder| folder.join(program));
    candidates.into_iter().find(|candidate| is_other_program(candidate, me.as_ref()))
}

fn is_other_program(candidate: &Path, me: Option<&Metadata>) -> bool {
    let Ok(metadata) = candidate.metadata() else { return false };
    let is_me = me.is_some_and(|me| (me.dev(), me.ino()) == (metadata.dev(), metadata.ino()));
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 && !is_me
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_program_is_never_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        for folder in [&first, &second] {
            std::fs::create_dir(folder).unwrap();
        }
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), first.join("ssh")).unwrap();
        let path = std::env::join_paths([&first, &second]).unwrap();
        assert_eq!(find_real("ssh", &path), None);
        std::fs::copy("/bin/true", second.join("ssh")).unwrap();
        assert_eq!(find_real("ssh", &path), Some(second.join("ssh")));
    }
}

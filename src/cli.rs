//! argv → a [`Command`]. No I/O: help is a `String`, a file's name is not opened, the environment is not read.
//!
//! [`options`] is the table of commands and options, from which [`help`] writes its pages; what stands behind a command is
//! read by the table and then by that command's own reader. [`openssh`] is the grammar behind `ssh` and `scp`, whose
//! arguments pass through here untouched.

mod arguments;
mod command;
pub mod help;
pub mod openssh;
pub mod options;
mod read;

use std::ffi::{OsStr, OsString};
use std::path::Path;

pub use command::{Classify, Command, Connect, Exec, Status, Upload};
#[cfg(feature = "server")]
pub use command::{Pki, PkiAction, Serve, ServeAction};

use crate::error::{Error, Result, nearest};
use options::{CommandRow, Commanded, Opt, Words};
use read::{read, unknown, usage};

/// Parses a command line; `argv0` is the name under which this program was started.
///
/// # Errors
/// `usage`, with the nearest name where one was misspelt.
pub fn parse(argv0: &OsStr, args: Vec<OsString>) -> Result<Command> {
    match program_name(argv0) {
        "ssh" => Ok(Command::Ssh(args)),
        "scp" => Ok(Command::Scp(args)),
        _ => dispatch(args),
    }
}

/// Whether a command line is one of those that stand in for a process, right or wrong: whoever started it takes its exit
/// status for the process's own.
pub fn stands_in(argv0: &OsStr, args: &[OsString]) -> bool {
    let is_standin = |name: &str| matches!(name, "ssh" | "scp" | "exec" | "connect");
    match program_name(argv0) {
        "ssh" | "scp" => true,
        _ => args.first().and_then(|name| name.to_str()).is_some_and(is_standin),
    }
}

fn program_name(argv0: &OsStr) -> &str {
    let name = Path::new(argv0).file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.strip_suffix(".exe").unwrap_or(name)
}

/// Whether this build has the server half.
const WITH_SERVER: bool = cfg!(feature = "server");

fn dispatch(args: Vec<OsString>) -> Result<Command> {
    let mut words = args.into_iter().peekable();
    let Some(first) = words.next() else {
        return Err(usage("no command is given", "see `tstunnel --help`"));
    };
    match first.to_str() {
        Some("-h" | "--help") => return Ok(Command::Print(help::main_help(WITH_SERVER))),
        Some("-V" | "--version") => {
            return Ok(Command::Print(concat!("tstunnel ", env!("CARGO_PKG_VERSION"), "\n").into()));
        }
        _ => {}
    }
    let mut name = first.to_string_lossy().into_owned();
    if name.starts_with('-') {
        let known = options::options_of(None).map(|row| row.long);
        let meant = nearest(name.trim_start_matches('-'), known).map(|long| format!("--{long}"));
        return Err(unknown("option", &name, meant.as_deref(), "tstunnel --help"));
    }
    if options::group(&name).is_some() {
        match words.peek().and_then(|word| word.to_str()) {
            Some("-h" | "--help") => return group_page(&name),
            Some(second) => name = format!("{name} {second}"),
            None => {
                return Err(usage(
                    format!("`tstunnel {name}` needs a command"),
                    &format!("see `tstunnel {name} --help`"),
                ));
            }
        }
        words.next();
    }
    let row = command_row(&name)?;
    let rest: Vec<OsString> = words.collect();
    if row.words == Words::Verbatim {
        // ssh and scp have no such option, and `mutagen help` is Mutagen's own.
        return Ok(match (row.id, rest.as_slice()) {
            (_, [only]) if only == "--help" => Command::Print(help::command_help(row)),
            (Commanded::Ssh, _) => Command::Ssh(rest),
            (Commanded::Scp, _) => Command::Scp(rest),
            // Mutagen has no such command.
            (_, [first, options @ ..]) if first == "env" => arguments::mutagen_env(options)?,
            _ => Command::Mutagen(rest),
        });
    }
    let given = read(row, rest)?;
    if given.has(Opt::Help) {
        return Ok(Command::Print(help::command_help(row)));
    }
    given.into_command(row)
}

/// Mutagen's own commands, which stand behind `mutagen` here too.
const OF_MUTAGEN: [&str; 4] = ["sync", "forward", "project", "daemon"];

fn command_row(name: &str) -> Result<&'static CommandRow> {
    let Some(row) = options::command(name) else {
        let of_mutagen = OF_MUTAGEN.contains(&name).then(|| format!("mutagen {name}"));
        let meant = of_mutagen.as_deref().or_else(|| nearest(name, options::names(WITH_SERVER)));
        return Err(unknown("command", name, meant, "tstunnel --help"));
    };
    if row.server && !WITH_SERVER {
        return Err(client_alone(name));
    }
    Ok(row)
}

/// The page of a group; every group there is belongs to the server.
fn group_page(name: &str) -> Result<Command> {
    if WITH_SERVER { Ok(Command::Print(help::group_help(name))) } else { Err(client_alone(name)) }
}

fn client_alone(name: &str) -> Error {
    usage(
        format!("`{name}` is not in this build, which is a client alone"),
        "install tstunnel with the feature `server`",
    )
}

#[cfg(test)]
mod tests;

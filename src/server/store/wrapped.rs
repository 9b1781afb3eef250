//! An upload to what is behind a host's wrapper (a container, a namespace): the same, done there by `sh` with `cat`, `chmod`, `mv`
//! and `rm`, in the folder where the wrapper starts every command of the host.
//!
//! The body is decoded and verified on this side; only what is whole gets its name. Nothing of a broken one is held.

use std::io;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::{Body, Order, PART_PREFIX, Part, Stored, receive, storage};
use crate::error::{Code, Error, reason};
use crate::server::refusal::Refusal;

/// Writes the part. `$1` is its name, here and below. Where there is a find(1), parts like `$2` that nobody has written to for a day go
/// first: those of a server that was killed.
const WRITE: &str = r#"umask 077 && rm -f -- "./$1" && { find . -maxdepth 1 -type f -name "$2" -mmin +1440 -exec rm -f -- {} \; </dev/null 2>/dev/null || :; } && set -C && cat > "./$1""#;
/// Gives it the mode `$2` and the name `$3`. A link to a folder that has this name goes first: mv(1) would move the part into that.
const PUBLISH: &str = r#"chmod "$2" "./$1" && { sync "./$1" 2>/dev/null || :; } && { [ ! -d "./$3" ] || { [ -h "./$3" ] && rm -f -- "./$3"; }; } && mv -f -- "./$1" "./$3""#;
const REMOVE: &str = r#"rm -f -- "./$1""#;

/// Stores a body. Blocks.
///
/// # Errors
/// Those of [`super::store`]; nothing stays in any case.
pub(super) fn store(order: &Order, body: &mut dyn Body) -> Result<Stored, Refusal> {
    if order.offset > 0 {
        return Err(Refusal::bad_request(400, "nothing is held of this file"));
    }
    let mut writing = Wrapped::start(order, WRITE, &[&format!("{PART_PREFIX}*")], Stdio::piped())?;
    let Some(stdin) = writing.0.stdin.take() else { return Err(storage(&io::ErrorKind::BrokenPipe.into())) };
    let mut part: Part<ChildStdin> = Part::new(stdin, order);
    body.want();
    let received = receive(&mut part, order, body).and_then(|()| part.complete(order));
    // The end of its stdin.
    drop(part);
    let written = writing.end();
    let published = received.and_then(|stored| {
        written?;
        let mode = format!("{:o}", order.mode & 0o777);
        Wrapped::start(order, PUBLISH, &[&mode, &order.name], Stdio::null())?.end()?;
        Ok(stored)
    });
    if published.is_err() {
        let _ = Wrapped::start(order, REMOVE, &[], Stdio::null()).and_then(Wrapped::end);
    }
    published
}

/// A script that runs behind the wrapper.
struct Wrapped(Child);

impl Wrapped {
    fn start(order: &Order, script: &str, arguments: &[&str], stdin: Stdio) -> Result<Wrapped, Refusal> {
        let Some((program, words)) = order.wrapper.split_first() else {
            return Err(Error::new(Code::Internal, "there is no wrapper").into());
        };
        let mut command = Command::new(program);
        command.args(words).args(["/bin/sh", "-c", script, "sh", &order.part]).args(arguments);
        command.current_dir("/").stdin(stdin).stdout(Stdio::null());
        command.spawn().map(Wrapped).map_err(|error| {
            let text = format!("the host's wrapper `{program}` cannot be run: {}", reason(&error));
            let hint = "ask whoever runs the endpoint to look at the host's `wrapper`, and at what is on its PATH";
            Error::new(Code::Storage, text).with_hint(hint).into()
        })
    }

    fn end(mut self) -> Result<(), Refusal> {
        match self.0.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err(Error::new(Code::Storage, "the file cannot be stored behind the host's wrapper").into()),
            Err(error) => Err(storage(&error)),
        }
    }
}

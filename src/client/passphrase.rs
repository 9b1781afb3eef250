//! A prompt → what a person answers: through the program that `SSH_ASKPASS` names, or on the terminal, as ssh(1) has it
//! (OpenSSH's `readpass.c`). Mutagen answers by the first.
//!
//! Where nobody can answer, nobody is asked: a session that is reconnected at night fails at once. stdin and stdout are the
//! tunnel's, and are left alone.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use zeroize::Zeroizing;

use super::signals::Held;
use crate::error::{Code, Error, Result, reason};

/// The longest answer, as OpenSSH has it.
const MAX_ANSWER_BYTES: usize = 1023;

/// An answer, which is wiped from memory when it is dropped.
pub type Answer = Zeroizing<Vec<u8>>;

/// Asks whoever can answer; an empty answer is none.
///
/// # Errors
/// `config` where nobody can be asked, or the program that asks fails.
pub fn ask(prompt: &str) -> Result<Answer> {
    let variables = Variables::from_process();
    if variables.program_comes_first() {
        return ask_by_program(&variables, prompt);
    }
    match terminal() {
        Some(terminal) => on_terminal(&terminal, prompt).map_err(|error| no_answer(&format!("on /dev/tty: {error}"))),
        None => ask_by_program(&variables, prompt),
    }
}

/// Asks nobody.
///
/// # Errors
/// `config`, always.
pub fn ask_nobody(_prompt: &str) -> Result<Answer> {
    Err(no_answer("BatchMode says that nobody is asked"))
}

/// What decides who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Variables {
    /// `SSH_ASKPASS`, which may not be there.
    askpass: Option<OsString>,
    /// `SSH_ASKPASS_REQUIRE`.
    require: Option<OsString>,
    /// Whether `DISPLAY` or `WAYLAND_DISPLAY` is set.
    has_display: bool,
}

impl Variables {
    fn from_process() -> Variables {
        let is_set = |name: &str| std::env::var_os(name).is_some();
        Variables {
            askpass: std::env::var_os("SSH_ASKPASS").filter(|program| !program.is_empty()),
            require: std::env::var_os("SSH_ASKPASS_REQUIRE"),
            has_display: is_set("DISPLAY") || is_set("WAYLAND_DISPLAY"),
        }
    }

    fn requires(&self, word: &str) -> bool {
        self.require.as_ref().is_some_and(|require| require.eq_ignore_ascii_case(word))
    }

    /// The program, where it may be used at all.
    fn program(&self) -> Option<&OsString> {
        let allowed = self.requires("force") || (self.has_display && !self.requires("never"));
        self.askpass.as_ref().filter(|_| allowed)
    }

    /// Whether the program is used even where there is a terminal.
    fn program_comes_first(&self) -> bool {
        self.program().is_some() && (self.requires("force") || self.requires("prefer"))
    }
}

fn ask_by_program(variables: &Variables, prompt: &str) -> Result<Answer> {
    let Some(program) = variables.program() else {
        return Err(no_answer("there is neither a terminal nor a program in SSH_ASKPASS"));
    };
    let failed = |what: String| no_answer(&format!("{} {what}", program.display()));
    let mut child = Command::new(program)
        .arg(prompt)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {}", reason(&error))))?;
    let mut answer = Answer::new(Vec::with_capacity(MAX_ANSWER_BYTES + 1));
    let read = match child.stdout.take() {
        Some(stdout) => stdout.take(MAX_ANSWER_BYTES as u64 + 1).read_to_end(&mut answer),
        None => Ok(0),
    };
    let status = child.wait().map_err(|error| failed(format!("was lost: {error}")))?;
    read.map_err(|error| failed(format!("cannot be read from: {error}")))?;
    if !status.success() {
        return Err(failed(format!("gave none ({status})")));
    }
    first_line(answer).ok_or_else(|| failed("gave too long an answer".to_owned()))
}

/// What stands before the line's end; nothing where that is too much.
fn first_line(mut answer: Answer) -> Option<Answer> {
    if let Some(end) = answer.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        answer.truncate(end);
    }
    (answer.len() <= MAX_ANSWER_BYTES).then_some(answer)
}

fn no_answer(why: &str) -> Error {
    Error::new(Code::Config, format!("the key's passphrase is needed, and could not be asked for: {why}")).with_hint(
        "run it once in a terminal, set SSH_ASKPASS and SSH_ASKPASS_REQUIRE=force, or use a key without a passphrase",
    )
}

/// The terminal, where this process is in front of it: one in the background would be stopped.
fn terminal() -> Option<File> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
    (tcgetpgrp(&terminal).ok()? == getpgrp()).then_some(terminal)
}

/// Asks without an echo. A signal does what it does anyway, but finds the terminal as it was: it is held back, the terminal
/// restored, and the signal let through; who is stopped that way asks again later.
fn on_terminal(mut terminal: &File, prompt: &str) -> io::Result<Answer> {
    let held = Held::hold()?;
    let mut line = Answer::new(Vec::with_capacity(MAX_ANSWER_BYTES + 1));
    loop {
        let silence = Silence::over(terminal)?;
        terminal.write_all(prompt.as_bytes())?;
        let is_answered = read_line(terminal, &held, &mut line)?;
        drop(silence);
        if is_answered {
            return first_line(line).ok_or_else(|| io::Error::other("the answer is too long"));
        }
        held.let_through()?;
        line.clear();
    }
}

/// Reads until the line's end or that of the terminal; false where a signal came before.
fn read_line(mut terminal: &File, held: &Held, line: &mut Answer) -> io::Result<bool> {
    let mut chunk = Zeroizing::new([0; MAX_ANSWER_BYTES + 1]);
    while !line.contains(&b'\n') && line.len() <= MAX_ANSWER_BYTES {
        let mut sources = [PollFd::new(terminal, PollFlags::IN), PollFd::new(held.pending(), PollFlags::IN)];
        match poll(&mut sources, None) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        if !sources[1].revents().is_empty() {
            return Ok(false);
        }
        let room = MAX_ANSWER_BYTES + 1 - line.len();
        match terminal.read(chunk.get_mut(..room).unwrap_or_default())? {
            0 => break,
            count => line.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
    }
    Ok(true)
}

/// The terminal without its echo, as long as this lives.
struct Silence<'a> {
    terminal: &'a File,
    before: Termios,
}

impl Silence<'_> {
    fn over(terminal: &File) -> io::Result<Silence<'_>> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        // The line's end is shown, so that what is printed next begins a line.
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Silence { terminal, before })
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        // A terminal that has gone needs no echo.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_chosen_as_openssh_chooses_it() {
        for (require, has_display, may, first) in [
            (None, false, false, false),
            (None, true, true, false),
            (Some("never"), true, false, false),
            (Some("prefer"), false, false, false),
            (Some("prefer"), true, true, true),
            (Some("FORCE"), false, true, true),
            (Some("nonsense"), true, true, false),
        ] {
            let variables =
                Variables { askpass: Some("askpass".into()), require: require.map(Into::into), has_display };
            let chosen = (variables.program().is_some(), variables.program_comes_first());
            assert_eq!(chosen, (may, first), "{require:?}, {has_display}");
            let without = Variables { askpass: None, ..variables };
            assert_eq!((without.program(), without.program_comes_first()), (None, false));
        }
    }

    #[test]
    fn an_answer_is_one_line_of_bounded_length() {
        let line = |text: &[u8]| first_line(Answer::new(text.to_vec())).map(|answer| answer.to_vec());
        assert_eq!(line(b"a b \r\nc"), Some(b"a b ".to_vec()));
        assert_eq!(line(b""), Some(Vec::new()));
        assert_eq!(line(&[b'x'; MAX_ANSWER_BYTES]).map(|answer| answer.len()), Some(MAX_ANSWER_BYTES));
        assert_eq!(line(&[b'x'; MAX_ANSWER_BYTES + 1]), None);
    }
}

//! What a person sees of an upload on stderr: a bar, the rate and the time left. Without a terminal there is no bar, and
//! nothing is said but what is no part of a usual upload.

use std::io::{IsTerminal, Write};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use crate::error::printable;

/// While it is sent: of how much and how long is known. It fits into 80 columns.
const SENDING: &str =
    "{msg:20!} {percent:>3}% [{wide_bar}] {binary_bytes:>10} {binary_bytes_per_sec:>12} {eta:>4} left";
/// Once it has been.
const SENT: &str = "{msg:20!} {percent:>3}% [{wide_bar}] {binary_bytes:>10} {binary_bytes_per_sec:>12} in {elapsed}";
/// While it is read, and nobody knows how much there will be.
const READING: &str = "{msg:20!} {binary_bytes:>10} {binary_bytes_per_sec:>12}";

/// How an upload is shown.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    is_silent: bool,
}

impl Progress {
    /// Shows nothing and says nothing, as `scp` does for Mutagen.
    pub fn none() -> Progress {
        Progress { bar: ProgressBar::hidden(), is_terminal: false, is_silent: true }
    }

    /// Shows it on stderr, where that is a terminal which can move its cursor.
    pub fn on_stderr() -> Progress {
        let is_terminal = std::io::stderr().is_terminal();
        let has_cursor = std::env::var_os("TERM").is_some_and(|name| !name.is_empty() && name != "dumb");
        let bar = match is_terminal && has_cursor {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        Progress { bar: bar.with_finish(ProgressFinish::Abandon), is_terminal, is_silent: false }
    }

    /// A source is being read, of so many bytes where that is known.
    pub(super) fn reading(&self, what: &str, size: Option<u64>) {
        self.begin(what, size);
    }

    /// Bytes of `name` are sent, of `size` from `offset` on.
    pub(super) fn sending(&self, name: &str, size: u64, offset: u64) {
        self.begin(name, Some(size));
        // What was there before was not sent in no time.
        self.bar.set_position(offset);
        self.bar.reset_eta();
    }

    fn begin(&self, message: &str, size: Option<u64>) {
        self.look(if size.is_some() { SENDING } else { READING });
        self.bar.reset();
        match size {
            Some(size) => self.bar.set_length(size),
            None => self.bar.unset_length(),
        }
        self.bar.set_message(printable(message));
    }

    fn look(&self, template: &str) {
        // The templates are right, as the tests see; a wrong one would only look otherwise.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
    }

    /// So many bytes have been read or sent.
    pub(super) fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// The connection is gone, and another is being made.
    pub(super) fn waiting(&self) {
        self.bar.set_message("waiting for the network");
    }

    /// Everything has been sent, and is there.
    pub(super) fn sent(&self) {
        self.look(SENT);
        self.bar.finish();
    }

    /// Nothing had to be sent, which a person is told.
    pub(super) fn was_there(&self, host: &str) {
        self.bar.finish_and_clear();
        if self.is_terminal {
            self.say(&format!("{host} had this content already"));
        }
    }

    /// Says something that is no part of a usual upload, wherever stderr leads.
    pub(super) fn say(&self, text: &str) {
        if !self.is_silent {
            // That nobody reads stderr is no reason to stop.
            self.bar.suspend(|| drop(writeln!(std::io::stderr(), "tstunnel: {}", printable(text))));
        }
    }
}

/// A number of bytes as the bar shows them.
pub(super) fn bytes(count: u64) -> impl std::fmt::Display {
    BinaryBytes(count)
}

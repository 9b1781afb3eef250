//! What a command line comes to: one [`Command`], with everything that it says. Data alone.

use std::ffi::OsString;
#[cfg(feature = "server")]
use std::path::PathBuf;

use crate::client::check::Check;
use crate::client::mutagen::env::Shell;
use crate::client::upload::Content;
use crate::config::Overrides;

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stand in for `ssh`, with its arguments.
    Ssh(Vec<OsString>),
    /// Stand in for `scp`, with its arguments.
    Scp(Vec<OsString>),
    /// `connect`
    Connect(Connect),
    /// `exec`
    Exec(Exec),
    /// `upload`
    Upload(Upload),
    /// `check`
    Check(Check),
    /// `classify`
    Classify(Classify),
    /// Run Mutagen with these arguments.
    Mutagen(Vec<OsString>),
    /// `mutagen env`, for a shell of this kind.
    MutagenEnv(Shell),
    /// `status`
    Status(Status),
    /// `serve`
    #[cfg(feature = "server")]
    Serve(Serve),
    /// `pki …`
    #[cfg(feature = "server")]
    Pki(Pki),
    /// Write this to stdout: a page of help, or the version.
    Print(String),
}

/// `connect HOST`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// A host, or a `tstunnel://` URL.
    pub host: String,
    /// What the options say about it.
    pub overrides: Overrides,
    /// `tcp:HOST:PORT` or `unix:PATH`, by option or URL; the host's own if `None`.
    pub target: Option<String>,
    /// Plain bytes instead of frames.
    pub raw: bool,
}

/// `exec HOST -- COMMAND…`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// A host, or a `tstunnel://` URL.
    pub host: String,
    /// What the options say about it.
    pub overrides: Overrides,
    /// The program with `args`, a whole command line without.
    pub command: String,
    /// The program's exact arguments, where the command was given as several words.
    pub args: Option<Vec<String>>,
    /// Names to send, with the value that was given; the environment's own if `None`.
    pub env: Vec<(String, Option<String>)>,
    /// Plain bytes instead of frames.
    pub raw: bool,
}

/// `upload FILE HOST[:NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The local file, or stdin.
    pub content: Content,
    /// A host, or a `tstunnel://` URL, whose path is then the name.
    pub host: String,
    /// The name on the host; the file's own if `None`, which stdin does not have.
    pub name: Option<String>,
    /// What the options say about the host.
    pub overrides: Overrides,
    /// Permission bits; the file's own if `None`.
    pub mode: Option<u32>,
    /// Whether the body may be compressed.
    pub compress: bool,
}

/// `classify`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classify {
    /// The exit status that the command had.
    pub exit_status: Option<i32>,
    /// Print JSON.
    pub json: bool,
}

/// `status`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Print JSON.
    pub json: bool,
}

/// `serve`
#[cfg(feature = "server")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    /// The server's file, if it isn't the usual one.
    pub config: Option<PathBuf>,
    /// What it is to do.
    pub action: ServeAction,
}

/// What `serve` does.
#[cfg(feature = "server")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServeAction {
    /// Serve.
    Run,
    /// Say what the configuration comes to.
    Check,
    /// Answer one question by it.
    Ask(crate::server::check::Question),
}

/// `pki …`
#[cfg(feature = "server")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pki {
    /// The authority's folder, if it isn't the current one.
    pub dir: Option<PathBuf>,
    /// What to do.
    pub action: PkiAction,
}

/// What the small certificate authority is to do.
#[cfg(feature = "server")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PkiAction {
    /// Make the authority, with the domain of its servers.
    Init(Option<String>),
    /// Make a server's certificate for these names; for the authority's domain if there are none.
    Server(Vec<String>),
    /// Make a client's certificate for this principal.
    Client(String),
    /// Revoke a certificate by name, serial number or file, or only renew the list.
    Revoke(Option<String>),
}

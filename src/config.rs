//! Files, environment, URL and options → one resolved [`Host`].
//!
//! [`resolve`] asks the sources in this order, key by key: options, the URL, the environment, the user's file, the system's
//! file, [`WeakDefaults`], and what is built in. An alias that `tstunnel mutagen` made stands for its URL and for the
//! environment that the URL was given in. A source that is there but cannot be read or understood is an error, also where none
//! of it would have counted: a host is never reached with other settings than somebody wrote down.
//!
//! The proxy stands apart: it is in the files, or else in the variables that every program reads ([`proxy`]).
//!
//! [`url`] parses `tstunnel://`, [`pattern`] matches names, [`value`] reads single values.

pub mod duration;
mod environment;
mod file;
pub mod pattern;
pub mod proxy;
mod remembered;
mod resolve;
pub mod toml_file;
pub mod url;
pub mod value;

use std::path::PathBuf;
use std::time::Duration;

pub use environment::Environment;
pub use proxy::Proxy;
pub use remembered::{Remembered, lock, recall, remember};
pub use resolve::{Stated, explain, is_ours, misspelt, resolve};

use crate::protocol::HostId;

/// What a URL says about a host, as text: paths are relative to the current folder, `~/` is the home.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// `HOST[:PORT]`.
    pub endpoint: Option<String>,
    /// The client's certificate chain, PEM.
    pub cert: Option<String>,
    /// The client's private key, PEM.
    pub key: Option<String>,
    /// The trust anchors, PEM.
    pub ca: Option<String>,
    /// The path prefix of every request.
    pub upgrade_base: Option<String>,
    /// The server name, where it is not made of host id and endpoint.
    pub sni: Option<String>,
    /// The account asked for.
    pub user: Option<String>,
}

/// What a command line says about a host: the strongest source. Every field that is `None` is left to the URL, the
/// environment, the user's file and the system's file, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--config`: read this file alone.
    pub config: Option<PathBuf>,
    /// `--endpoint HOST[:PORT]`.
    pub endpoint: Option<String>,
    /// `--cert FILE`.
    pub cert: Option<PathBuf>,
    /// `--key FILE`.
    pub key: Option<PathBuf>,
    /// `--ca FILE`.
    pub ca: Option<PathBuf>,
    /// `--upgrade-base PATH`.
    pub upgrade_base: Option<String>,
    /// `--sni NAME`.
    pub sni: Option<String>,
    /// `--user ACCOUNT`, or the `user@` of an OpenSSH destination, or `-l`.
    pub user: Option<String>,
}

/// Values that the `ssh` stand-in's command line gave, weaker than anything in a file: Mutagen hard-codes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeakDefaults {
    /// `-oConnectTimeout`.
    pub connect_timeout: Option<Duration>,
    /// `-oServerAliveInterval`.
    pub alive_interval: Option<Duration>,
    /// `-oServerAliveCountMax`.
    pub alive_count: Option<u32>,
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// The oldest TLS version that a host may speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinTls {
    /// TLS 1.2, where a file allows it by name.
    V1_2,
    /// TLS 1.3.
    #[default]
    V1_3,
}

impl std::fmt::Display for MinTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MinTls::V1_2 => "1.2",
            MinTls::V1_3 => "1.3",
        })
    }
}

/// Everything that is needed to reach one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The host as the user wrote it, for messages.
    pub alias: String,
    /// Where to connect.
    pub endpoint: Endpoint,
    /// Which host behind the endpoint.
    pub host_id: HostId,
    /// What goes into SNI and is verified in the server's certificate: a DNS name.
    pub server_name: String,
    /// The path prefix of every request, without a trailing slash.
    pub upgrade_base: String,
    /// The client's certificate chain, PEM.
    pub cert: PathBuf,
    /// The client's private key, PEM.
    pub key: PathBuf,
    /// The trust anchors, PEM; the system's roots if `None`.
    pub ca: Option<PathBuf>,
    /// The account asked for.
    pub user: Option<String>,
    /// The proxy that connections go through.
    pub proxy: Option<Proxy>,
    /// Bounds name lookup, TCP, the proxy and TLS together.
    pub connect_timeout: Duration,
    /// Bounds the wait for the answer to the request.
    pub answer_timeout: Duration,
    /// Silence after which the peer is asked for a sign of life.
    pub alive_interval: Duration,
    /// How many questions in a row may stay without an answer.
    pub alive_count: u32,
    /// How long an interrupted session is carried on; never if `None`.
    pub resume: Option<Duration>,
    /// The oldest TLS version allowed.
    pub min_tls: MinTls,
}

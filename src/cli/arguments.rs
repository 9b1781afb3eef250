//! What stood behind a command → that [`Command`]: a reader for each. No I/O.

use std::ffi::OsString;

use super::options::{self, CommandRow, Commanded, Opt};
use super::read::{Given, usage, utf8};
use super::{Classify, Command, Connect, Exec, Status, Upload, WITH_SERVER, command_row, group_page, help};
#[cfg(feature = "server")]
use super::{Pki, PkiAction, Serve, ServeAction};
use crate::client::check::Check;
use crate::client::mutagen::env::Shell;
use crate::client::upload::Content;
use crate::config::Overrides;
use crate::config::url::{self, Target, TunnelUrl};
use crate::error::{Code, Error, Result};
use crate::protocol::file_name::{Unfit, check_file_name};
use crate::protocol::target;

impl Given {
    /// What the command of `row` is asked for by these options and operands.
    pub(super) fn into_command(mut self, row: &CommandRow) -> Result<Command> {
        let mut operands = std::mem::take(&mut self.operands).into_iter();
        let mut next = || operands.next().unwrap_or_default();
        match row.id {
            Commanded::Connect => {
                let host = utf8(next())?;
                let target = match self.target()? {
                    None => forwarding(&host)?,
                    given => given,
                };
                Ok(Command::Connect(Connect { host, overrides: self.overrides()?, target, raw: self.has(Opt::Raw) }))
            }
            Commanded::Exec => {
                let (host, command) = (utf8(next())?, utf8(next())?);
                let args: Vec<String> = operands.map(utf8).collect::<Result<_>>()?;
                Ok(Command::Exec(Exec {
                    host,
                    overrides: self.overrides()?,
                    command,
                    args: (!args.is_empty()).then_some(args),
                    env: self.environment()?,
                    raw: self.has(Opt::Raw),
                }))
            }
            Commanded::Upload => {
                let content = match next() {
                    stdin if stdin == "-" => Content::Stdin,
                    file => Content::File(file.into()),
                };
                let (host, name) = host_and_name(utf8(next())?)?;
                if content == Content::Stdin && name.is_none() {
                    return Err(usage("stdin has no name of its own", "write `tstunnel upload - HOST:NAME`"));
                }
                name.as_deref().map_or(Ok(()), plain)?;
                Ok(Command::Upload(Upload {
                    content,
                    host,
                    name,
                    overrides: self.overrides()?,
                    mode: self.number(Opt::Mode, "permission bits in octal, such as 0755", permission_bits)?,
                    compress: !self.has(Opt::NoCompress),
                }))
            }
            Commanded::Check => Ok(Command::Check(Check {
                host: utf8(next())?,
                overrides: self.overrides()?,
                target: self.target()?,
                throughput: match self.has(Opt::Throughput) {
                    true => Some(self.number(Opt::Throughput, "a size such as 64M", size)?.unwrap_or(THROUGHPUT_BYTES)),
                    false => None,
                },
                mutagen: self.has(Opt::Mutagen),
                json: self.has(Opt::Json),
            })),
            Commanded::Classify => Ok(Command::Classify(Classify {
                exit_status: self.number(Opt::ExitStatus, "an exit status", |text| text.parse().ok())?,
                json: self.has(Opt::Json),
            })),
            Commanded::Status => Ok(Command::Status(Status { json: self.has(Opt::Json) })),
            Commanded::Help => {
                let name = operands.map(utf8).collect::<Result<Vec<_>>>()?.join(" ");
                match name.as_str() {
                    "" => Ok(Command::Print(help::main_help(WITH_SERVER))),
                    group if options::group(group).is_some() => group_page(group),
                    name => Ok(Command::Print(help::command_help(command_row(name)?))),
                }
            }
            #[cfg(feature = "server")]
            Commanded::Serve => {
                let words: Vec<String> = operands.map(utf8).collect::<Result<_>>()?;
                Ok(Command::Serve(Serve { config: self.path(Opt::Config), action: self.serve_action(words)? }))
            }
            #[cfg(feature = "server")]
            Commanded::PkiInit => {
                let domain = operands.next().map(utf8).transpose()?;
                Ok(self.pki(PkiAction::Init(domain)))
            }
            #[cfg(feature = "server")]
            Commanded::PkiServer => {
                let names = operands.map(utf8).collect::<Result<_>>()?;
                Ok(self.pki(PkiAction::Server(names)))
            }
            #[cfg(feature = "server")]
            Commanded::PkiClient => {
                let principal = utf8(next())?;
                Ok(self.pki(PkiAction::Client(principal)))
            }
            #[cfg(feature = "server")]
            Commanded::PkiRevoke => {
                let what = operands.next().map(utf8).transpose()?;
                Ok(self.pki(PkiAction::Revoke(what)))
            }
            // Those that are read word for word, and the server's where there is none, do not come this far.
            _ => Err(Error::new(Code::Internal, format!("`{}` has no reader", row.name))),
        }
    }

    #[cfg(feature = "server")]
    fn pki(&self, action: PkiAction) -> Command {
        Command::Pki(Pki { dir: self.path(Opt::Dir), action })
    }

    /// What `serve` does, with these operands.
    #[cfg(feature = "server")]
    fn serve_action(&self, words: Vec<String>) -> Result<ServeAction> {
        use crate::server::check::Question;

        let hint = "see `tstunnel serve --help`";
        let stray = [Opt::As, Opt::User, Opt::Source, Opt::Authorize].into_iter().any(|option| self.has(option));
        let mut words = words.into_iter();
        match (self.has(Opt::Check), self.text(Opt::As)?, words.next()) {
            (false, _, Some(word)) | (true, None, Some(word)) => {
                let file = format!("did you mean `--config {word}`? {hint}");
                let hint = if self.has(Opt::Config) { hint } else { file.as_str() };
                Err(usage("`serve` takes a host only with --check --as", hint))
            }
            (false, ..) if stray => Err(usage("`serve` asks questions only with --check", hint)),
            (true, None, None) if stray => Err(usage("a question has a principal: --as PRINCIPAL HOST COMMAND", hint)),
            (false, _, None) => Ok(ServeAction::Run),
            (true, None, None) => Ok(ServeAction::Check),
            (true, Some(principal), host) => {
                let command: Vec<String> = words.collect();
                let Some(host) = host.filter(|_| !command.is_empty()) else {
                    return Err(usage("a question has a host and a command: --as PRINCIPAL HOST COMMAND", hint));
                };
                let user = self.text(Opt::User)?;
                let source = self.number(Opt::Source, "an address", |text| text.parse().ok())?;
                let authorize = self.has(Opt::Authorize);
                Ok(ServeAction::Ask(Question { principal, host, command, user, source, authorize }))
            }
        }
    }

    fn overrides(&self) -> Result<Overrides> {
        Ok(Overrides {
            config: self.path(Opt::Config),
            endpoint: self.text(Opt::Endpoint)?,
            cert: self.path(Opt::Cert),
            key: self.path(Opt::Key),
            ca: self.path(Opt::Ca),
            upgrade_base: self.text(Opt::UpgradeBase)?,
            sni: self.text(Opt::Sni)?,
            user: self.text(Opt::User)?,
        })
    }

    fn target(&self) -> Result<Option<String>> {
        self.text(Opt::Target)?.map(reachable).transpose()
    }

    fn environment(&self) -> Result<Vec<(String, Option<String>)>> {
        self.values(Opt::Env)
            .map(|given| {
                let given = utf8(given.clone())?;
                let (name, value) = match given.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (given.as_str(), None),
                };
                if name.is_empty() {
                    return Err(usage(format!("`--env {given}` names no variable"), "write `--env NAME=VALUE`"));
                }
                Ok((name.to_owned(), value))
            })
            .collect()
    }
}

/// What stands behind `mutagen env`.
pub(super) fn mutagen_env(options: &[OsString]) -> Result<Command> {
    let hint = "write `tstunnel mutagen env`, for fish with --shell fish behind it";
    let name = match options {
        [] => "sh".to_owned(),
        [option, name] if option == "--shell" => utf8(name.clone())?,
        [option] if option.as_encoded_bytes().starts_with(b"--shell=") => {
            utf8(option.clone())?.trim_start_matches("--shell=").to_owned()
        }
        _ => return Err(usage("`mutagen env` takes --shell and nothing else", hint)),
    };
    let known = Shell::from_name(&name);
    known.map(Command::MutagenEnv).ok_or_else(|| usage(format!("`{name}` is no shell that is known"), hint))
}

/// Where a URL such as `tstunnel://HOST/tcp:localhost:8080` leads.
fn forwarding(host: &str) -> Result<Option<String>> {
    if !url::is_tunnel_url(host) {
        return Ok(None);
    }
    Ok(match TunnelUrl::parse(host)?.target {
        Some(Target::Forwarding(target)) => Some(reachable(target)?),
        Some(Target::Path(_)) | None => None,
    })
}

/// `HOST[:NAME]`, or a `tstunnel://` URL, whose path is the name.
fn host_and_name(text: String) -> Result<(String, Option<String>)> {
    if url::is_tunnel_url(&text) {
        let target = TunnelUrl::parse(&text)?.target;
        let name = target.as_ref().map_or("", Target::as_str);
        // Both forms of a path lead into the home, as nothing else can be written.
        let name = name.strip_prefix("~/").or_else(|| name.strip_prefix('/')).unwrap_or(name);
        return Ok((text, Some(name.to_owned()).filter(|name| !name.is_empty())));
    }
    Ok(match text.split_once(':') {
        Some((host, name)) => (host.to_owned(), Some(name.to_owned()).filter(|name| !name.is_empty())),
        None => (text, None),
    })
}

/// A target that the server can read, as it stands.
fn reachable(text: String) -> Result<String> {
    let Err(why) = target::Target::asked(&text) else { return Ok(text) };
    let meant = ["tcp:", "unix:"].map(|kind| format!("{kind}{text}"));
    let is_meant = |meant: &&String| !text.starts_with("tcp:") && target::Target::parse(meant).is_ok();
    let hint = match meant.iter().find(is_meant) {
        Some(meant) => format!("write `{meant}`"),
        None => "write tcp:HOST:PORT or unix:PATH".to_owned(),
    };
    Err(usage(format!("`{text}` is no target: {why}"), &hint))
}

/// Refuses what the server would refuse too, and take for the mistake of another version.
fn plain(name: &str) -> Result<()> {
    check_file_name(name).map_err(|unfit| {
        let hint = match unfit {
            Unfit::Special | Unfit::Slash | Unfit::Nul => {
                "an upload goes into the account's home directory: give a plain name without a slash"
            }
            Unfit::TooLong => "give the file a shorter name",
        };
        usage(format!("`{name}` is no name for a file in the home directory: it {unfit}"), hint)
    })
}

/// How many bytes `check --throughput` moves where it is not told.
const THROUGHPUT_BYTES: u64 = 32 << 20;

/// A number of bytes, perhaps with `K`, `M` or `G` behind it; never 0.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().next_back()? {
        (at, 'K' | 'k') => (&text[..at], 1 << 10),
        (at, 'M' | 'm') => (&text[..at], 1 << 20),
        (at, 'G' | 'g') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| is_number)?;
    count.checked_mul(unit).filter(|bytes| *bytes > 0)
}

fn permission_bits(text: &str) -> Option<u32> {
    let octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    u32::from_str_radix(text, 8).ok().filter(|bits| octal && *bits <= 0o777)
}

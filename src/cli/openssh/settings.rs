//! What options and `-o` lines ask for, gathered in OpenSSH's order: the first value of a keyword counts. No I/O.
//!
//! Nothing is refused while options are read, since the host may not be ours: the first complaint is kept for
//! [`Settings::complaint`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use super::keywords::{self, HARMLESS, Meaning, Setting};
use super::values::{BLANK, flag, split_words, time};
use super::{Destination, port_number};
use crate::config::WeakDefaults;
use crate::config::pattern::matches;
use crate::error::{Code, Error, Result};

/// Which addresses may be dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressFamily {
    /// Both kinds.
    #[default]
    Any,
    /// `-4`, `AddressFamily=inet`.
    Inet,
    /// `-6`, `AddressFamily=inet6`.
    Inet6,
}

/// `SendEnv` and `SetEnv`: what of the environment goes along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentEnvironment {
    /// Patterns of names, with `*` and `?`.
    pub patterns: Vec<String>,
    /// Names and values, which win over the environment's own.
    pub values: BTreeMap<String, String>,
}

impl SentEnvironment {
    /// Picks from `variables` what goes along. One that is not UTF-8 cannot, and is left out as `sshd` leaves out what
    /// it does not accept.
    pub fn of(&self, variables: impl IntoIterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
        let mut sent: BTreeMap<String, String> = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| self.patterns.iter().any(|pattern| matches(pattern, name)))
            .collect();
        sent.extend(self.values.clone());
        sent
    }
}

/// What a session is, in the words of `SessionType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SessionType {
    #[default]
    Default,
    None,
    Subsystem,
}

/// Everything that options asked for, of either program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) user: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) address_family: Option<AddressFamily>,
    pub(super) defaults: WeakDefaults,
    pub(super) batch: Option<bool>,
    pub(super) compress: Option<bool>,
    pub(super) stdin_null: Option<bool>,
    pub(super) terminal: Option<bool>,
    pub(super) session_type: Option<SessionType>,
    pub(super) fork: Option<bool>,
    pub(super) x11: Option<bool>,
    pub(super) environment: SentEnvironment,
    pub(super) remote_command: Option<String>,
    forward: bool,
    pub(super) clear_forwards: Option<bool>,
    ignore_unknown: Option<String>,
    host_name: Option<String>,
    complaint: Option<Error>,
}

impl Settings {
    /// Keeps `error` if it is the first.
    pub(super) fn complain(&mut self, error: Error) {
        self.complaint.get_or_insert(error);
    }

    /// Notes a port or socket that is to be forwarded.
    pub(super) fn ask_forward(&mut self) {
        self.forward = true;
    }

    /// Sets the port, if none is set: `-p`, `-P` and `Port`.
    pub(super) fn ask_port(&mut self, value: &OsStr) {
        match value.to_str().and_then(port_number) {
            Some(port) => {
                self.port.get_or_insert(port);
            }
            None => self.complain(usage(format!("`{}` is not a port", value.display()), "give a number up to 65535")),
        }
    }

    /// Sets the account, if none is set: `-l` and `User`.
    pub(super) fn ask_user(&mut self, value: &OsStr) {
        match value.to_str() {
            Some(user) => {
                self.user.get_or_insert_with(|| user.to_owned());
            }
            None => self.complain(not_utf8("the account", value)),
        }
    }

    /// Takes over what stands in the destination, where no earlier option said otherwise.
    pub(super) fn ask_destination(&mut self, destination: &Destination) {
        if self.user.is_none() {
            self.user.clone_from(&destination.user);
        }
        self.port = self.port.or(destination.port);
    }

    /// The first of what cannot be done for a host of ours. `host` is the one of the command line.
    pub(super) fn complaint(&self, host: &str) -> Result<()> {
        if let Some(complaint) = &self.complaint {
            return Err(complaint.clone());
        }
        if self.host_name.as_deref().is_some_and(|name| name != host) {
            return Err(usage(
                "HostName asks for another address, which a tunnel takes from its endpoint",
                "set `endpoint` and `host_id` in tstunnel's configuration",
            ));
        }
        if self.terminal == Some(true) {
            return Err(usage(
                "-t asks for a terminal, which tstunnel does not carry",
                "leave it away, or run the program in a mode that needs no terminal",
            ));
        }
        if self.x11 == Some(true) {
            return Err(usage("-X asks for X11 forwarding, which tstunnel does not carry", "use -x"));
        }
        if self.forward && self.clear_forwards != Some(true) {
            return Err(usage(
                "-L, -R and -D ask for forwarded ports, which the ssh stand-in does not carry",
                "use `mutagen forward create`, or `tstunnel connect HOST --target tcp:HOST:PORT` for one stream",
            ));
        }
        match self.session_type {
            Some(SessionType::Subsystem) => {
                return Err(usage(
                    "-s asks for a subsystem, which tstunnel does not have",
                    "use `scp` or `tstunnel upload` to put a file there, or give a command",
                ));
            }
            Some(SessionType::None) => {
                return Err(usage(
                    "-N asks for a connection without a command, which would do nothing here",
                    "use `mutagen forward create`, or `tstunnel connect HOST --target tcp:HOST:PORT` for one stream",
                ));
            }
            Some(SessionType::Default) | None => {}
        }
        if self.fork == Some(true) {
            return Err(usage(
                "-f asks to go to the background, which tstunnel leaves to the shell",
                "use `-n` and put `&` at the end of the line",
            ));
        }
        Ok(())
    }

    /// Reads the value of one `-o`: `Keyword=value`, `Keyword value`, quoted as in `ssh_config(5)`.
    pub(super) fn line(&mut self, line: &OsStr) {
        let Some(text) = line.to_str() else {
            self.complain(not_utf8("the option", line));
            return;
        };
        let text = text.trim_matches(BLANK);
        if text.is_empty() || text.starts_with('#') {
            return;
        }
        let end = text.find(|character| BLANK.contains(&character) || character == '=').unwrap_or(text.len());
        let (keyword, rest) = text.split_at(end);
        let rest = rest.trim_start_matches(BLANK);
        let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start_matches(BLANK);
        let Some(meaning) = keywords::find(keyword) else {
            let ignored = self.ignore_unknown.as_deref().unwrap_or_default().split(',');
            if !ignored.into_iter().any(|pattern| matches(&pattern.to_lowercase(), &keyword.to_lowercase())) {
                self.complain(usage(
                    format!("bad configuration option: {keyword}"),
                    "`man ssh_config` lists the options that there are",
                ));
            }
            return;
        };
        let Some(words) = split_words(rest) else {
            self.complain(usage(
                format!("{keyword} has a quotation mark without its other half"),
                "close the quotation",
            ));
            return;
        };
        let Some(first) = words.first() else {
            self.complain(usage(format!("{keyword} has no value"), "write `-o Keyword=value`"));
            return;
        };
        match meaning {
            Meaning::Ignored => {}
            Meaning::Refused { what, instead } => {
                if !HARMLESS.contains(&first.to_lowercase().as_str()) {
                    self.complain(usage(format!("{keyword} asks for {what}, which tstunnel does not have"), instead));
                }
            }
            Meaning::Kept(setting) => {
                if let Err(error) = self.keep(setting, keyword, first, &words, rest) {
                    self.complain(error);
                }
            }
        }
    }

    fn keep(&mut self, setting: Setting, keyword: &str, first: &str, words: &[String], rest: &str) -> Result<()> {
        let wrong = || usage(format!("`{first}` is not a value of {keyword}"), "`man ssh_config` lists its values");
        match setting {
            Setting::AddressFamily => {
                let family = match first.to_lowercase().as_str() {
                    "any" => AddressFamily::Any,
                    "inet" => AddressFamily::Inet,
                    "inet6" => AddressFamily::Inet6,
                    _ => return Err(wrong()),
                };
                self.address_family.get_or_insert(family);
            }
            Setting::BatchMode => first_flag(&mut self.batch, first).ok_or_else(wrong)?,
            Setting::ClearAllForwardings => first_flag(&mut self.clear_forwards, first).ok_or_else(wrong)?,
            Setting::Compression => first_flag(&mut self.compress, first).ok_or_else(wrong)?,
            Setting::ConnectTimeout => first_time(&mut self.defaults.connect_timeout, first).ok_or_else(wrong)?,
            Setting::ForkAfterAuthentication => first_flag(&mut self.fork, first).ok_or_else(wrong)?,
            Setting::Forward => self.forward = true,
            Setting::ForwardX11 => first_flag(&mut self.x11, first).ok_or_else(wrong)?,
            Setting::HostName => {
                self.host_name.get_or_insert_with(|| first.to_owned());
            }
            Setting::IgnoreUnknown => {
                self.ignore_unknown.get_or_insert_with(|| words.join(","));
            }
            Setting::Port => self.ask_port(OsStr::new(first)),
            // OpenSSH takes the rest of the line as it is, quotation marks included.
            Setting::RemoteCommand => {
                if !first.eq_ignore_ascii_case("none") {
                    self.remote_command.get_or_insert_with(|| rest.to_owned());
                }
            }
            Setting::RequestTty => {
                let terminal = match first.to_lowercase().as_str() {
                    "auto" => return Ok(()),
                    "force" => true,
                    other => flag(other).ok_or_else(wrong)?,
                };
                self.terminal.get_or_insert(terminal);
            }
            Setting::SendEnv => {
                for word in words {
                    match word.strip_prefix('-') {
                        Some(removed) => self.environment.patterns.retain(|pattern| !matches(removed, pattern)),
                        None => self.environment.patterns.push(word.clone()),
                    }
                }
            }
            Setting::ServerAliveCountMax => {
                let count: u32 = first.parse().map_err(|_| wrong())?;
                // 0 switches the answer's deadline off, which is a policy of tstunnel's own.
                if count != 0 {
                    self.defaults.alive_count.get_or_insert(count);
                }
            }
            Setting::ServerAliveInterval => {
                first_time(&mut self.defaults.alive_interval, first).ok_or_else(wrong)?;
            }
            Setting::SessionType => {
                let session = match first.to_lowercase().as_str() {
                    "none" => SessionType::None,
                    "subsystem" => SessionType::Subsystem,
                    "default" => SessionType::Default,
                    _ => return Err(wrong()),
                };
                self.session_type.get_or_insert(session);
            }
            Setting::SetEnv => {
                // Only the first such line counts.
                if self.environment.values.is_empty() {
                    for word in words {
                        let (name, value) = word.split_once('=').ok_or_else(|| {
                            usage(format!("`{word}` in SetEnv is no variable"), "write `-o SetEnv=NAME=value`")
                        })?;
                        self.environment.values.entry(name.to_owned()).or_insert_with(|| value.to_owned());
                    }
                }
            }
            Setting::StdinNull => first_flag(&mut self.stdin_null, first).ok_or_else(wrong)?,
            Setting::User => self.ask_user(OsStr::new(first)),
        }
        Ok(())
    }
}

/// A `usage` error with its hint.
pub(super) fn usage(text: impl Into<String>, hint: &str) -> Error {
    Error::new(Code::Usage, text).with_hint(hint)
}

/// The refusal of an argument that cannot travel, since the protocol's texts are UTF-8.
pub(super) fn not_utf8(what: &str, value: &OsStr) -> Error {
    usage(format!("{what} `{}` is not UTF-8", value.display()), "write it in UTF-8")
}

fn first_flag(kept: &mut Option<bool>, value: &str) -> Option<()> {
    let value = flag(value)?;
    kept.get_or_insert(value);
    Some(())
}

/// 0 and `none` switch a limit off in OpenSSH, and so leave it to tstunnel's own.
fn first_time(kept: &mut Option<Duration>, value: &str) -> Option<()> {
    if value.eq_ignore_ascii_case("none") {
        return Some(());
    }
    let time = time(value)?;
    if !time.is_zero() {
        kept.get_or_insert(time);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(lines: &[&str]) -> Settings {
        let mut settings = Settings::default();
        for line in lines {
            settings.line(OsStr::new(line));
        }
        settings
    }

    fn complaint(lines: &[&str]) -> String {
        settings(lines).complaint("host").map_or_else(|error| error.to_string(), |()| "none".to_owned())
    }

    #[test]
    fn a_line_is_written_in_any_of_ssh_configs_ways() {
        for line in ["User=dev", "user dev", "USER = dev", "  User\t=  \"dev\"  ", "User='dev' # me"] {
            assert_eq!(settings(&[line]).user.as_deref(), Some("dev"), "{line}");
        }
        assert_eq!(settings(&["User==dev"]).user.as_deref(), Some("=dev"));
        assert_eq!(settings(&["", "# User=dev"]), Settings::default());
    }

    #[test]
    fn the_first_value_counts() {
        let found = settings(&["Port=7", "Port=8", "User=a", "User=b", "StdinNull=no", "StdinNull=yes"]);
        assert_eq!((found.port, found.user.as_deref(), found.stdin_null), (Some(7), Some("a"), Some(false)));
    }

    #[test]
    fn mutagens_time_outs_are_weak_defaults() {
        let found = settings(&["ConnectTimeout=5", "ServerAliveInterval=10", "ServerAliveCountMax=1"]).defaults;
        assert_eq!(found.connect_timeout, Some(Duration::from_secs(5)));
        assert_eq!(found.alive_interval, Some(Duration::from_secs(10)));
        assert_eq!(found.alive_count, Some(1));
        let off = settings(&["ConnectTimeout=none", "ServerAliveInterval=0", "ServerAliveCountMax=0"]);
        assert_eq!(off, Settings::default());
    }

    #[test]
    fn an_unknown_keyword_is_refused_in_opensshs_words_unless_it_is_to_be_ignored() {
        assert_eq!(complaint(&["UseKeychain=yes"]), "usage: bad configuration option: UseKeychain");
        assert_eq!(complaint(&["IgnoreUnknown=foo,usekey*", "UseKeychain=yes"]), "none");
        assert_eq!(complaint(&["Host=x"]), "usage: bad configuration option: Host");
    }

    #[test]
    fn what_makes_no_difference_is_accepted() {
        let lines = [
            "StrictHostKeyChecking=accept-new",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "Compression=yes",
            "IdentitiesOnly=yes",
            "IdentityFile=~/.ssh/id",
            "ConnectionAttempts=3",
            "ControlMaster=no",
            "ControlMaster=auto",
            "ControlPath=none",
            "ForwardAgent=no",
            "ForwardX11=no",
            "RequestTTY=no",
            "RequestTTY=auto",
            "PasswordAuthentication=no",
            "ProxyJump=none",
            "ProxyCommand=none",
            "PermitLocalCommand=no",
            "SessionType=default",
            "Tunnel=no",
            "HostName=host",
        ];
        assert_eq!(complaint(&lines), "none");
    }

    #[test]
    fn what_a_tunnel_cannot_do_is_refused() {
        for (line, word) in [
            ("ControlMaster=yes", "share"),
            ("ProxyJump=bastion", "jump host"),
            ("ProxyCommand=nc %h %p", "another program"),
            ("PermitLocalCommand=yes", "local command"),
            ("Tunnel=yes", "tunnel device"),
            ("BindAddress=10.0.0.1", "source address"),
            ("LocalForward=80 localhost:80", "forwarded ports"),
            ("RequestTTY=force", "terminal"),
            ("RequestTTY=yes", "terminal"),
            ("ForwardX11=yes", "X11"),
            ("SessionType=none", "without a command"),
            ("SessionType=subsystem", "subsystem"),
            ("ForkAfterAuthentication=yes", "background"),
            ("HostName=elsewhere", "another address"),
            ("Port=x", "not a port"),
            ("BatchMode=maybe", "not a value of BatchMode"),
            ("ConnectTimeout=soon", "not a value of ConnectTimeout"),
            ("StdinNull=maybe", "not a value of StdinNull"),
            ("SetEnv=A", "no variable"),
            ("User=", "no value"),
            ("User=\"dev", "quotation mark"),
        ] {
            let said = complaint(&[line]);
            assert!(said.starts_with("usage: ") && said.contains(word), "{line}: {said}");
        }
    }

    #[test]
    fn cleared_forwards_are_not_refused() {
        assert_eq!(complaint(&["DynamicForward=1080", "ClearAllForwardings=yes"]), "none");
    }

    #[test]
    fn send_env_is_a_list_that_a_minus_takes_from() {
        let found = settings(&[
            "SendEnv GIT_PROTOCOL LC_*",
            "SendEnv=FOO",
            "SendEnv=-LC_*",
            "SetEnv A=1 B=\"x y\"",
            "SetEnv=C=2",
        ]);
        assert_eq!(found.environment.patterns, ["GIT_PROTOCOL", "FOO"]);
        assert_eq!(found.environment.values, BTreeMap::from([("A".into(), "1".into()), ("B".into(), "x y".into())]));
    }

    #[test]
    fn only_matching_variables_are_sent_and_set_ones_win() {
        let environment = SentEnvironment {
            patterns: vec!["LC_*".to_owned(), "G?T".to_owned()],
            values: BTreeMap::from([("LC_ALL".to_owned(), "C".to_owned())]),
        };
        let variables = [("LC_ALL", "de"), ("LC_TIME", "fr"), ("GIT", "1"), ("GIIT", "1"), ("MUTAGEN_SSH_PATH", "/x")];
        let sent = environment.of(variables.map(|(name, value)| (name.into(), value.into())));
        let expected = [("GIT", "1"), ("LC_ALL", "C"), ("LC_TIME", "fr")];
        assert_eq!(sent, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }
}

//! The argv of `scp(1)` → [`Scp`]: local files into the account's home directory. No I/O.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::keywords::OWN_DIAL;
use super::settings::{AddressFamily, Settings, not_utf8, usage};
use super::{Destination, Invocation, Letters, Step};
use crate::config::WeakDefaults;
use crate::error::{Error, Result};
use crate::protocol::file_name::{Unfit, check_file_name};

// -d, -f, -t and -M are what an scp sends to the one on the other side: not for us.
const FLAGS: &str = "2346ABCOpqRrsTv";
const VALUED: &str = "cDFiJloPSX";

/// What `scp` is to do on a host of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scp {
    /// The host, with the account and port that count.
    pub destination: Destination,
    /// The files; at least one.
    pub uploads: Vec<Upload>,
    /// `-C`.
    pub compress: bool,
    /// `-v`.
    pub verbose: bool,
    /// Time-outs, which a configuration file overrides.
    pub defaults: WeakDefaults,
    /// Which addresses may be dialled.
    pub address_family: AddressFamily,
    /// `-B`: nobody is asked for anything.
    pub batch: bool,
}

/// One file that goes into the account's home directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The local file.
    pub source: PathBuf,
    /// Its name there: one path segment, not `.` or `..`.
    pub name: String,
}

/// An `scp` whose hosts are known; whether it can be done is asked of [`ParsedScp::accept`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedScp {
    /// Every host that is named, at least one; the whole call is ours if any of them is.
    pub destinations: Vec<Destination>,
    settings: Settings,
    verbose: bool,
    sources: Vec<Place>,
    target: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Local(PathBuf),
    Remote(Destination, String),
}

/// Parses what follows `scp`.
pub fn parse_scp(args: &[OsString]) -> Invocation<ParsedScp> {
    read(args).map_or(Invocation::Foreign, Invocation::Host)
}

fn read(args: &[OsString]) -> Option<ParsedScp> {
    let mut letters = Letters::new(args, FLAGS, VALUED);
    let mut settings = Settings::default();
    let mut verbose = false;
    loop {
        match letters.step() {
            Step::Unknown => return None,
            Step::Flag(b'v') => verbose = true,
            Step::Flag(letter) => flag(&mut settings, letter),
            Step::Value(letter, value) => valued(&mut settings, letter, value),
            Step::Word => break,
        }
    }
    let (target, sources) = letters.args.split_last()?;
    if sources.is_empty() {
        return None;
    }
    let target = place(target)?;
    let sources = sources.iter().map(|source| place(source)).collect::<Option<Vec<_>>>()?;
    let mut destinations = Vec::new();
    for place in sources.iter().chain([&target]) {
        if let Place::Remote(destination, _) = place {
            let mut settings = settings.clone();
            settings.ask_destination(destination);
            let host = destination.host.clone();
            destinations.push(Destination { user: settings.user, host, port: settings.port });
        }
    }
    // From local to local it is a cp(1), which the real scp runs.
    (!destinations.is_empty()).then_some(ParsedScp { destinations, settings, verbose, sources, target })
}

fn flag(settings: &mut Settings, letter: u8) {
    match letter {
        b'4' => settings.address_family = Some(AddressFamily::Inet),
        b'6' => settings.address_family = Some(AddressFamily::Inet6),
        b'B' => {
            settings.batch.get_or_insert(true);
        }
        b'C' => settings.compress = Some(true),
        b'r' => settings.complain(usage(
            "-r asks for a folder, and tstunnel copies single files",
            "use `mutagen sync create` for a folder, or copy an archive of it",
        )),
        // 2 3 A O p q R s T: SSH's own protocol, agents, times, progress, and how remote hosts reach each other.
        _ => {}
    }
}

fn valued(settings: &mut Settings, letter: u8, value: &OsStr) {
    match letter {
        b'o' => settings.line(value),
        b'P' => settings.ask_port(value),
        b'D' => {
            settings.complain(usage("-D asks for a local SFTP server, which tstunnel does not use", "leave it away"))
        }
        b'J' if !value.eq_ignore_ascii_case("none") => {
            settings.complain(usage("-J asks for a jump host, which tstunnel does not have", OWN_DIAL))
        }
        b'l' => {
            settings.complain(usage("-l asks for a bandwidth limit, which tstunnel does not have", "leave it away"))
        }
        // c F i S X: ciphers, OpenSSH's configuration, keys, another ssh, SFTP's buffers.
        _ => {}
    }
}

/// As `colon` and `parse_scp_uri` in OpenSSH's `misc.c`: a colon before the first slash makes it remote. `None` where
/// OpenSSH would complain.
fn place(word: &OsStr) -> Option<Place> {
    let local = || Some(Place::Local(PathBuf::from(word)));
    let Some(text) = word.to_str() else {
        // A name that is not UTF-8 is a local file, unless something with a colon looks like a host.
        let lossy = word.to_string_lossy();
        return if colon(&lossy).is_none() { local() } else { None };
    };
    if let Some(rest) = text.strip_prefix("scp://") {
        let (destination, path) = Destination::from_uri(rest)?;
        return Some(Place::Remote(destination, path.unwrap_or_default()));
    }
    let Some((host, path)) = colon(text) else { return local() };
    let Destination { user, host, port } = Destination::split(host)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
    Destination::checked(user, bare.to_owned(), port).map(|destination| Place::Remote(destination, path.to_owned()))
}

fn colon(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(':') {
        return None;
    }
    let bracket = text.starts_with('[') || text.split('/').next().is_some_and(|before| before.contains("@["));
    let at = match text.find("]:").filter(|_| bracket) {
        Some(at) => at + 1,
        None => text.find(':')?,
    };
    let (host, path) = text.split_at_checked(at)?;
    (!host.contains('/')).then_some((host, path.get(1..)?))
}

impl ParsedScp {
    /// Takes the command line for a host of ours.
    ///
    /// # Errors
    /// `usage` where it asks for anything but local files into the account's home directory.
    pub fn accept(self) -> Result<Scp> {
        let Place::Remote(_, path) = self.target else {
            return Err(usage(
                "tstunnel's scp copies to a host, not from it",
                "use `tstunnel exec HOST cat FILE > FILE`, or `mutagen sync create` for more than one",
            ));
        };
        let Some(destination) = self.destinations.last().cloned() else {
            return Err(Error::new(crate::error::Code::Internal, "scp has no destination"));
        };
        let sources = self.sources.into_iter().map(|source| match source {
            Place::Local(source) => Ok(source),
            Place::Remote(..) => Err(usage(
                "tstunnel's scp does not copy from one host to another",
                "copy to this machine first, with `tstunnel exec HOST cat FILE > FILE`",
            )),
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        self.settings.complaint(&destination.host)?;
        let name = remote_name(&path)?;
        if let (Some(name), true) = (&name, sources.len() > 1) {
            return Err(usage(
                format!("several files cannot all become `{name}`"),
                "end the target at its colon, as in `HOST:`, to keep the files' names",
            ));
        }
        let uploads = sources.into_iter().map(|source| {
            let name = match &name {
                Some(name) => name.clone(),
                None => file_name(&source)?,
            };
            Ok(Upload { source, name })
        });
        Ok(Scp {
            destination,
            uploads: uploads.collect::<Result<_>>()?,
            compress: self.settings.compress.unwrap_or(false),
            verbose: self.verbose,
            defaults: self.settings.defaults,
            address_family: self.settings.address_family.unwrap_or_default(),
            batch: self.settings.batch.unwrap_or(false),
        })
    }
}

fn file_name(source: &Path) -> Result<String> {
    let name = source.file_name().ok_or_else(|| {
        usage(format!("`{}` is a folder, and tstunnel copies single files", source.display()), "name a file")
    })?;
    name.to_str().map(str::to_owned).ok_or_else(|| not_utf8("the file name", name))
}

/// The name that a remote path gives to a file in the home directory, or `None` for the directory itself.
fn remote_name(path: &str) -> Result<Option<String>> {
    let mut name = match path {
        "~" => "",
        _ => path.strip_prefix("~/").unwrap_or(path),
    };
    while let Some(rest) = name.strip_prefix("./") {
        name = rest;
    }
    if matches!(name, "" | ".") {
        return Ok(None);
    }
    match check_file_name(name) {
        // The home of another account.
        Ok(()) if name.starts_with('~') => Err(outside(path)),
        Ok(()) => Ok(Some(name.to_owned())),
        Err(Unfit::Special | Unfit::Slash) => Err(outside(path)),
        Err(unfit @ (Unfit::Nul | Unfit::TooLong)) => {
            Err(usage(format!("`{path}` is no name for a file: it {unfit}"), "give the file another name"))
        }
    }
}

fn outside(path: &str) -> Error {
    usage(
        format!("`{path}` does not lie directly in the account's home directory, where tstunnel's scp puts files"),
        "copy to `HOST:NAME`, then move it with `tstunnel exec HOST mv NAME …`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;
    use std::time::Duration;

    fn args(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn parsed(words: &[&str]) -> ParsedScp {
        match parse_scp(&args(words)) {
            Invocation::Host(parsed) => parsed,
            Invocation::Foreign => panic!("{words:?} is foreign"),
        }
    }

    fn accepted(words: &[&str]) -> Scp {
        parsed(words).accept().unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    fn refused(words: &[&str]) -> String {
        let error = parsed(words).accept().expect_err("is refused");
        assert_eq!(error.code, crate::error::Code::Usage);
        error.text
    }

    fn names(words: &[&str]) -> Vec<String> {
        accepted(words).uploads.into_iter().map(|upload| upload.name).collect()
    }

    #[test]
    fn mutagens_install_is_parsed() {
        let scp = accepted(&[
            "-C",
            "-oConnectTimeout=5",
            "-oServerAliveInterval=10",
            "-oServerAliveCountMax=1",
            "-P",
            "2222",
            "mutagen-agent.123456",
            "dev@h7:.mutagen-agentab12",
        ]);
        assert_eq!(scp.destination, Destination { user: Some("dev".into()), host: "h7".into(), port: Some(2222) });
        assert_eq!(scp.uploads, [Upload { source: "mutagen-agent.123456".into(), name: ".mutagen-agentab12".into() }]);
        assert!(scp.compress && !scp.verbose);
        assert_eq!(scp.defaults.connect_timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_target_in_the_home_directory_is_a_name_or_the_directory() {
        assert_eq!(names(&["a/f", "h:"]), ["f"]);
        for same in ["h:.", "h:./", "h:~", "h:~/", "h:~/./", "scp://h", "scp://h/"] {
            assert_eq!(names(&["a/f", same]), ["f"], "{same}");
            assert_eq!(names(&["a/f", "g", same]), ["f", "g"], "{same}");
        }
        for name in ["h:g", "h:./g", "h:~/g", "h:~/././g", "scp://h/g", "[h]:g", "u@[h]:g"] {
            assert_eq!(names(&["a/f", name]), ["g"], "{name}");
        }
        assert_eq!(names(&["f", "h:a:b"]), ["a:b"]);
        assert_eq!(names(&["f", "h:a b*"]), ["a b*"]);
    }

    #[test]
    fn account_and_port_come_from_options_uri_and_target() {
        assert_eq!(
            accepted(&["f", "scp://u@h:33/g"]).destination,
            Destination { user: Some("u".into()), host: "h".into(), port: Some(33) }
        );
        assert_eq!(accepted(&["-P1", "-oUser=a", "f", "u@h:"]).destination.user.as_deref(), Some("a"));
        assert_eq!(accepted(&["f", "a@b@h:"]).destination.user.as_deref(), Some("a@b"));
        assert_eq!(accepted(&["f", "[::1]:"]).destination.host, "::1");
    }

    #[test]
    fn a_path_without_a_colon_before_its_first_slash_is_local() {
        for local in ["f", "./a:b", "/a:b", ":b", "dir/x:y"] {
            assert_eq!(accepted(&[local, "h:t"]).uploads[0].source, PathBuf::from(local));
        }
        assert_eq!(parse_scp(&args(&["a", "./b:c"])), Invocation::Foreign);
    }

    #[test]
    fn what_names_no_host_or_is_not_opensshs_is_foreign() {
        for words in [
            &[][..],
            &["f"],
            &["h:f"],
            &["a", "b"],
            &["-t", "f", "h:"],
            &["-f", "f", "h:"],
            &["-z", "f", "h:"],
            &["--help"],
            &["-P"],
        ] {
            assert_eq!(parse_scp(&args(words)), Invocation::Foreign, "{words:?}");
        }
        for target in ["@h:", "-h:", "[-h]:", "u@:", "scp://", "scp://h:x/"] {
            assert_eq!(parse_scp(&args(&["--", "f", target])), Invocation::Foreign, "{target}");
        }
    }

    #[test]
    fn every_host_that_is_named_is_known() {
        let hosts = |words: &[&str]| -> Vec<String> {
            parsed(words).destinations.into_iter().map(|destination| destination.host).collect()
        };
        assert_eq!(hosts(&["-3", "a:x", "f", "b:y"]), ["a", "b"]);
        assert_eq!(hosts(&["a:x", "."]), ["a"]);
    }

    #[test]
    fn what_is_not_an_upload_into_the_home_directory_is_refused() {
        for (words, said) in [
            (&["-r", "d", "h:"][..], "-r asks"),
            (&["h:f", "."], "not from it"),
            (&["a:f", "b:"], "from one host to another"),
            (&["f", "g", "h:name"], "several files"),
            (&["f", "h:dir/"], "home directory"),
            (&["f", "h:dir/g"], "home directory"),
            (&["f", "h:/tmp/g"], "home directory"),
            (&["f", "h:~other/g"], "home directory"),
            (&["f", "h:~other"], "home directory"),
            (&["f", "h:.."], "home directory"),
            (&["f", "h:./.."], "home directory"),
            (&["f", "scp://h//tmp"], "home directory"),
            (&["f", &format!("h:{}", "x".repeat(256))], "is longer than 255 bytes"),
            (&["f", &format!("h:~/{}", "ä".repeat(128))], "is longer than 255 bytes"),
            (&["..", "h:"], "is a folder"),
            (&["-l", "100", "f", "h:"], "bandwidth"),
            (&["-J", "b", "f", "h:"], "jump host"),
            (&["-D", "s", "f", "h:"], "SFTP server"),
            (&["-oFoo=1", "f", "h:"], "bad configuration option"),
            (&["-P", "x", "f", "h:"], "not a port"),
        ] {
            let text = refused(words);
            assert!(text.contains(said), "{words:?}: {text}");
        }
    }

    #[test]
    fn what_makes_no_difference_is_accepted() {
        let words: Vec<&str> = "-234ABCOpqRsTvv -c x -F x -i x -J none -S x -X x f h:".split(' ').collect();
        let scp = accepted(&words);
        assert!(scp.compress && scp.verbose);
        assert_eq!(scp.address_family, AddressFamily::Inet);
    }

    #[test]
    fn an_argument_that_is_not_utf8_does_not_panic() {
        let odd = OsString::from_vec(b"\xfff".to_vec());
        let call = |source: &OsString, target: &str| parse_scp(&[source.clone(), OsString::from(target)]);
        let Invocation::Host(parsed) = call(&odd, "h:g") else { panic!() };
        assert_eq!(parsed.accept().expect("has a name").uploads[0].source.as_os_str(), odd);
        let Invocation::Host(parsed) = call(&odd, "h:") else { panic!() };
        assert!(parsed.accept().expect_err("has none").text.contains("not UTF-8"));
        assert_eq!(call(&OsString::from_vec(b"\xff:f".to_vec()), "h:"), Invocation::Foreign);
        assert_eq!(parse_scp(&["f".into(), OsString::from_vec(b"h:\xff".to_vec())]), Invocation::Foreign);
    }
}

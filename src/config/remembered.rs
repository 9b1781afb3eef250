//! What `tstunnel mutagen` read from a URL, kept for the alias that it gave to Mutagen.
//!
//! Mutagen's daemon starts the `ssh` stand-in later, with the alias alone, in another folder and with other variables. So
//! everything that the URL meant waits in a file of the user's (`$XDG_STATE_HOME/tstunnel/hosts/ALIAS.toml`, mode 0600),
//! and an alias resolves to what its URL resolved to. A file is replaced whole or stays as it was.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use crate::config::url::TunnelUrl;
use crate::config::{Environment, Parameters, proxy, toml_file};
use crate::error::{Code, Error, Result, reason};
use crate::protocol::encoding::{hex, percent_encode};

/// The longest file name that is made of an alias; a longer alias is cut and told apart by its digest.
const MAX_NAME_LEN: usize = 180;

/// What an alias stands for. Its paths are absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// The URL's host, by which the files know it and of which its host id is made.
    pub host: String,
    /// The file that `TSTUNNEL_CONFIG` named.
    pub config: Option<String>,
    /// What the URL said, and the variables where it said nothing.
    #[serde(default)]
    pub parameters: Parameters,
    /// The variables that name proxies: the files, which come before them, may say something else by the time it matters.
    #[serde(default)]
    pub proxies: proxy::Variables,
}

impl Remembered {
    /// Everything that `url` means here and now.
    ///
    /// # Errors
    /// `config` for a path that no other process would find.
    pub fn of(url: &TunnelUrl, env: &Environment) -> Result<Remembered> {
        let path = |name: &str, text: &Path| -> Result<String> {
            env.path(text, &format!("`{name}`"))?.into_os_string().into_string().map_err(|path| {
                Error::new(Code::Config, format!("`{name}`: {} is not UTF-8", path.display()))
                    .with_hint("give an absolute path, or change to a folder whose name is UTF-8")
            })
        };
        let chosen = |name: &str, said: &Option<String>, variable: &Option<PathBuf>| {
            let said = said.as_deref().map(Path::new);
            said.or(variable.as_deref()).map(|text| path(name, text)).transpose()
        };
        let said = url.parameters.clone();
        Ok(Remembered {
            host: url.host.to_ascii_lowercase(),
            config: chosen("TSTUNNEL_CONFIG", &None, &env.config)?,
            parameters: Parameters {
                cert: chosen("cert", &said.cert, &env.cert)?,
                key: chosen("key", &said.key, &env.key)?,
                ca: chosen("ca", &said.ca, &env.ca)?,
                endpoint: said.endpoint.or_else(|| env.endpoint.clone()),
                upgrade_base: said.upgrade_base.or_else(|| env.upgrade_base.clone()),
                sni: said.sni,
                user: said.user,
            },
            proxies: env.proxies.clone(),
        })
    }
}

/// Keeps whoever else wants this waiting, until it is dropped. What is recalled before it is held may no longer be so.
#[must_use]
pub struct Lock {
    _folder: File,
}

/// Waits until nobody else chooses aliases and has them remembered.
///
/// # Errors
/// `config` where there is no place for what is remembered, or it cannot be locked.
pub fn lock(env: &Environment) -> Result<Lock> {
    let folder = folder(env).ok_or_else(no_folder)?;
    let locked = || {
        make(&folder)?;
        let folder = File::open(&folder)?;
        flock(&folder, FlockOperation::LockExclusive)?;
        Ok(Lock { _folder: folder })
    };
    locked().map_err(|error: io::Error| {
        Error::new(Code::Config, format!("{} cannot be locked: {}", folder.display(), reason(&error)))
            .with_hint(FOLDER_HINT)
    })
}

/// Keeps what `alias` stands for, instead of what was kept for it before.
///
/// # Errors
/// `config` where there is no place for the file, or it cannot be written.
pub fn remember(alias: &str, remembered: &Remembered, env: &Environment) -> Result<()> {
    let path = file_of(alias, env).ok_or_else(no_folder)?;
    replace(&path, remembered.to_toml().as_bytes()).map_err(|error| {
        Error::new(Code::Config, format!("cannot write {}: {}", path.display(), reason(&error))).with_hint(FOLDER_HINT)
    })
}

/// What to do about a folder that does not serve.
const FOLDER_HINT: &str = "make the folder writable, or set XDG_STATE_HOME to another";

fn no_folder() -> Error {
    Error::new(Code::Config, "there is no folder to remember a host's parameters in")
        .with_hint("set HOME or XDG_STATE_HOME")
}

/// What `alias` stands for, if it was ever given to a URL.
///
/// # Errors
/// `config` where its file cannot be read or understood.
pub fn recall(alias: &str, env: &Environment) -> Result<Option<Remembered>> {
    let Some(path) = file_of(alias, env) else { return Ok(None) };
    toml_file::read_if_there(&path)?.map(|text| toml_file::parse(&path, &text)).transpose()
}

fn file_of(alias: &str, env: &Environment) -> Option<PathBuf> {
    Some(folder(env)?.join(format!("{}.toml", file_name(alias))))
}

fn folder(env: &Environment) -> Option<PathBuf> {
    Some(env.state_folder()?.join("hosts"))
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// One file name for each alias, whatever is in it: folded and percent-encoded, so that none is hidden, leaves the folder,
/// or differs from another only in case.
fn file_name(alias: &str) -> String {
    let alias = alias.to_ascii_lowercase();
    let mut name = percent_encode(&alias);
    if name.starts_with('.') {
        name.replace_range(..1, "%2E");
    }
    if name.len() > MAX_NAME_LEN {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, alias.as_bytes());
        name.truncate(MAX_NAME_LEN - 80);
        // In an encoded alias two digits follow each `%`.
        name.push_str("%-");
        name.push_str(&hex(digest.as_ref()));
    }
    name
}

impl Remembered {
    fn to_toml(&self) -> String {
        let mut text = String::from("# Written by `tstunnel mutagen`, read by the ssh and scp stand-ins.\n");
        let mut line = |key: &str, value: Option<&String>| {
            if let Some(value) = value {
                text.push_str(&format!("{key} = {}\n", basic_string(value)));
            }
        };
        line("host", Some(&self.host));
        line("config", self.config.as_ref());
        let Parameters { endpoint, cert, key, ca, upgrade_base, sni, user } = &self.parameters;
        line("parameters.endpoint", endpoint.as_ref());
        line("parameters.cert", cert.as_ref());
        line("parameters.key", key.as_ref());
        line("parameters.ca", ca.as_ref());
        line("parameters.upgrade_base", upgrade_base.as_ref());
        line("parameters.sni", sni.as_ref());
        line("parameters.user", user.as_ref());
        let proxy::Variables { https_proxy, all_proxy, no_proxy } = &self.proxies;
        line("proxies.https_proxy", https_proxy.as_ref());
        line("proxies.all_proxy", all_proxy.as_ref());
        line("proxies.no_proxy", no_proxy.as_ref());
        text
    }
}

/// `text` as a TOML basic string.
pub(super) fn basic_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// Writes a file beside its place, readable to its owner alone, and renames it there.
fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    static ATTEMPTS: AtomicU32 = AtomicU32::new(0);
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    make(folder)?;
    let (temporary, mut file) = loop {
        // No alias makes a name with a leading dot.
        let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!(".{}.{attempt}.new", process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary) {
            Ok(file) => break (temporary, file),
            // Left behind by an earlier process with this id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    };
    let written = file.write_all(contents).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What failed before this is what the caller is told.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn environment(folder: &Path) -> Environment {
        Environment { home: Some(folder.to_owned()), current_dir: "/work/here".into(), ..Environment::default() }
    }

    fn named(host: &str) -> Remembered {
        Remembered { host: host.into(), ..Remembered::default() }
    }

    #[test]
    fn what_a_url_and_the_variables_say_is_kept_with_absolute_paths() {
        let home = tempfile::tempdir().unwrap();
        let proxies = proxy::Variables { all_proxy: Some("ann:secret@proxy".into()), ..Default::default() };
        let env = Environment {
            config: Some("config.toml".into()),
            key: Some("~/client.key".into()),
            cert: Some("of-the-variable.crt".into()),
            upgrade_base: Some("/x".into()),
            proxies: proxies.clone(),
            ..environment(home.path())
        };
        let url =
            "tstunnel://Host123/p?endpoint=a.example.net:8443&cert=./my%20%22client%22.crt&ca=/ca.crt&user=d%5Cev";
        let remembered = Remembered::of(&TunnelUrl::parse(url).unwrap(), &env).unwrap();
        let parameters = Parameters {
            endpoint: Some("a.example.net:8443".into()),
            cert: Some("/work/here/my \"client\".crt".into()),
            key: Some(format!("{}/client.key", home.path().display())),
            ca: Some("/ca.crt".into()),
            upgrade_base: Some("/x".into()),
            sni: None,
            user: Some("d\\ev".into()),
        };
        let config = Some("/work/here/config.toml".into());
        assert_eq!(remembered, Remembered { host: "host123".into(), config, parameters, proxies });
        remember("alias", &remembered, &env).unwrap();
        assert_eq!(recall("ALIAS", &env), Ok(Some(remembered)));
    }

    #[test]
    fn every_key_survives_its_file() {
        let home = tempfile::tempdir().unwrap();
        let env = environment(home.path());
        let some = |text: &str| Some(text.to_owned());
        let parameters = Parameters {
            endpoint: some("a"),
            cert: some("b"),
            key: some("c"),
            ca: some("d"),
            upgrade_base: some("e"),
            sni: some("f"),
            user: some("g"),
        };
        let proxies = proxy::Variables { https_proxy: some("j"), all_proxy: some("k"), no_proxy: some("l") };
        let remembered = Remembered { host: "h".into(), config: some("i"), parameters, proxies };
        remember("h", &remembered, &env).unwrap();
        assert_eq!(recall("h", &env), Ok(Some(remembered)));
    }

    #[test]
    fn the_file_is_the_owners_alone_and_replaced_whole() {
        let home = tempfile::tempdir().unwrap();
        let env = environment(home.path());
        remember("h", &named("a"), &env).unwrap();
        remember("h", &named("b"), &env).unwrap();
        let folder = home.path().join(".local/state/tstunnel/hosts");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.join("h.toml")), 0o600);
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(recall("h", &env), Ok(Some(named("b"))));
    }

    #[test]
    fn nothing_remembered_is_no_failure() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(recall("h", &environment(home.path())), Ok(None));
        assert_eq!(recall("h", &Environment::default()), Ok(None));
    }

    #[test]
    fn without_a_folder_nothing_is_remembered() {
        assert_eq!(remember("h", &named("a"), &Environment::default()).unwrap_err().code, Code::Config);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(".local"), "a file").unwrap();
        let error = remember("h", &named("a"), &environment(home.path())).unwrap_err();
        assert!(error.text.contains("h.toml"), "{}", error.text);
    }

    #[test]
    fn any_alias_makes_a_file_of_its_own() {
        let long = "x".repeat(5_000);
        let longer = "x".repeat(5_001);
        let aliases = [
            "h", ".", "..", "../../x", "a/b", "a b", "a%20b", "ä", "", "a\nb", ".h", "~", "h.toml", "%-", &long,
            &longer,
        ];
        let home = tempfile::tempdir().unwrap();
        let env = environment(home.path());
        for (index, alias) in aliases.iter().enumerate() {
            remember(alias, &named(&format!("e{index}")), &env).unwrap();
        }
        for (index, alias) in aliases.iter().enumerate() {
            assert_eq!(recall(alias, &env).unwrap().unwrap().host, format!("e{index}"), "{alias:.20}");
        }
        let folder = home.path().join(".local/state/tstunnel/hosts");
        assert_eq!(fs::read_dir(folder).unwrap().count(), aliases.len());
    }

    proptest! {
        #[test]
        fn any_text_survives_as_a_toml_string(text in any::<String>()) {
            let document = format!("key = {}", basic_string(&text));
            let table = toml::de::DeTable::parse(&document).unwrap();
            prop_assert_eq!(table.get_ref()["key"].get_ref().as_str(), Some(text.as_str()));
        }
    }
}

//! What `tstunnel mutagen` read from a URL, kept for the alias that it gave to Mutagen.
//!
//! Mutagen's daemon starts the `ssh` stand-in later, with the alias alone: the parameters wait in a file of the user's
//! (`$XDG_STATE_HOME/tstunnel/hosts/ALIAS.toml`, mode 0600) with the keys of a `[host]` table. A file is replaced whole or
//! stays as it was.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::config::file::{self, Settings};
use crate::config::{Environment, Parameters};
use crate::error::{Code, Error, Result};

/// The longest file name that is made of an alias; a longer alias is cut and told apart by its digest.
const MAX_NAME_LEN: usize = 180;

/// Keeps `parameters` for `alias`, instead of what was kept for it before. Relative paths become absolute ones.
///
/// # Errors
/// `config` where there is no place for the file, or it cannot be written.
pub fn remember(alias: &str, parameters: &Parameters, env: &Environment) -> Result<()> {
    let path = file_of(alias, env).ok_or_else(|| {
        Error::new(Code::Config, "there is no folder to remember a host's parameters in")
            .with_hint("set HOME or XDG_STATE_HOME")
    })?;
    let text = write_table(parameters, env)?;
    replace(&path, text.as_bytes()).map_err(|error| {
        Error::new(Code::Config, format!("cannot write {}: {error}", path.display()))
            .with_hint("make the folder writable, or set XDG_STATE_HOME to another")
    })
}

/// What is kept for `alias`, if anything is.
pub(super) fn recall(alias: &str, env: &Environment) -> Result<Option<Settings>> {
    match file_of(alias, env) {
        Some(path) => file::read_table(&path, env.home.as_deref()),
        None => Ok(None),
    }
}

fn file_of(alias: &str, env: &Environment) -> Option<PathBuf> {
    Some(env.state_folder()?.join("hosts").join(format!("{}.toml", file_name(alias))))
}

/// One file name for each alias, whatever is in it: folded and percent-encoded, so that none is hidden, leaves the folder,
/// or differs from another only in case.
fn file_name(alias: &str) -> String {
    let alias = alias.to_ascii_lowercase();
    let mut name = String::new();
    for (index, byte) in alias.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if index > 0 => name.push('.'),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    if name.len() <= MAX_NAME_LEN {
        return name;
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, alias.as_bytes());
    name.truncate(MAX_NAME_LEN - 80);
    // No encoded alias has a `~` in it.
    name.push('~');
    name.extend(digest.as_ref().iter().map(|byte| format!("{byte:02x}")));
    name
}

fn write_table(parameters: &Parameters, env: &Environment) -> Result<String> {
    let path = |name: &str, text: &Option<String>| -> Result<Option<String>> {
        let Some(text) = text else { return Ok(None) };
        let path = env.path(Path::new(text), &format!("`{name}`"))?;
        path.into_os_string().into_string().map(Some).map_err(|path| {
            Error::new(Code::Config, format!("`{name}`: {} is not UTF-8", Path::new(&path).display()))
                .with_hint("give an absolute path, or change to a folder whose name is UTF-8")
        })
    };
    let mut table = String::from("# Written by `tstunnel mutagen`, read by the ssh and scp stand-ins.\n");
    for (key, value) in [
        ("endpoint", parameters.endpoint.clone()),
        ("cert", path("cert", &parameters.cert)?),
        ("key", path("key", &parameters.key)?),
        ("ca", path("ca", &parameters.ca)?),
        ("upgrade_base", parameters.upgrade_base.clone()),
        ("sni", parameters.sni.clone()),
        ("user", parameters.user.clone()),
    ] {
        if let Some(value) = value {
            table.push_str(&format!("{key} = {}\n", basic_string(&value)));
        }
    }
    Ok(table)
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
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
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
    use crate::config::Endpoint;

    fn environment(folder: &Path) -> Environment {
        Environment { home: Some(folder.to_owned()), current_dir: "/work/here".into(), ..Environment::default() }
    }

    fn endpoint(text: &str) -> Parameters {
        Parameters { endpoint: Some(text.into()), ..Parameters::default() }
    }

    #[test]
    fn what_is_remembered_is_recalled_with_absolute_paths() {
        let home = tempfile::tempdir().unwrap();
        let env = environment(home.path());
        let parameters = Parameters {
            endpoint: Some("a.example.net:8443".into()),
            cert: Some("./my \"client\".crt".into()),
            key: Some("~/client.key".into()),
            ca: Some("/ca.crt".into()),
            upgrade_base: Some("/x".into()),
            sni: Some("b.example.net".into()),
            user: Some("d\\ev".into()),
        };
        remember("host123", &parameters, &env).unwrap();
        let settings = recall("HOST123", &env).unwrap().unwrap();
        let expected = Settings {
            endpoint: Some(Endpoint { host: "a.example.net".into(), port: 8443 }),
            cert: Some("/work/here/my \"client\".crt".into()),
            key: Some(home.path().join("client.key")),
            ca: Some("/ca.crt".into()),
            upgrade_base: Some("/x".into()),
            sni: Some("b.example.net".into()),
            user: Some("d\\ev".into()),
            ..Settings::default()
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn the_file_is_the_owners_alone_and_replaced_whole() {
        let home = tempfile::tempdir().unwrap();
        let env = environment(home.path());
        remember("h", &endpoint("a"), &env).unwrap();
        remember("h", &endpoint("b"), &env).unwrap();
        let folder = home.path().join(".local/state/tstunnel/hosts");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.join("h.toml")), 0o600);
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(recall("h", &env).unwrap().unwrap().endpoint.unwrap().host, "b");
    }

    #[test]
    fn nothing_remembered_is_no_failure() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(recall("h", &environment(home.path())), Ok(None));
        assert_eq!(recall("h", &Environment::default()), Ok(None));
    }

    #[test]
    fn without_a_folder_nothing_is_remembered() {
        assert_eq!(remember("h", &endpoint("a"), &Environment::default()).unwrap_err().code, Code::Config);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(".local"), "a file").unwrap();
        let error = remember("h", &endpoint("a"), &environment(home.path())).unwrap_err();
        assert!(error.text.contains("h.toml"), "{}", error.text);
    }

    #[test]
    fn any_alias_makes_a_file_of_its_own() {
        let long = "x".repeat(5_000);
        let longer = "x".repeat(5_001);
        let aliases =
            ["h", ".", "..", "../../x", "a/b", "a b", "a%20b", "ä", "", "a\nb", ".h", "~", "h.toml", &long, &longer];
        let home = tempfile::tempdir().unwrap();
        let env = environment(home.path());
        for (index, alias) in aliases.iter().enumerate() {
            remember(alias, &endpoint(&format!("e{index}")), &env).unwrap();
        }
        for (index, alias) in aliases.iter().enumerate() {
            assert_eq!(
                recall(alias, &env).unwrap().unwrap().endpoint.unwrap().host,
                format!("e{index}"),
                "{alias:.20}"
            );
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

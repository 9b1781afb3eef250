//! The authority's folder: its files, its lock, and the record of what was issued.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Deserializer};
use time::{Date, Month, OffsetDateTime, Time};

use crate::config::toml_file;
use crate::error::{Code, Error, Result, reason};

/// A second, as certificates know it. Shown as RFC 3339: `2026-11-23T03:33:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(OffsetDateTime);

impl From<OffsetDateTime> for Timestamp {
    fn from(time: OffsetDateTime) -> Timestamp {
        let whole = OffsetDateTime::from_unix_timestamp(time.unix_timestamp());
        Timestamp(whole.unwrap_or(time))
    }
}

impl From<Timestamp> for OffsetDateTime {
    fn from(timestamp: Timestamp) -> OffsetDateTime {
        timestamp.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.0.to_calendar_date();
        let (hour, minute, second) = self.0.to_hms();
        write!(f, "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let written = toml::value::Datetime::deserialize(deserializer)?;
        from_toml(&written).ok_or_else(|| serde::de::Error::custom(format!("`{written}` is not a time in UTC")))
    }
}

fn from_toml(written: &toml::value::Datetime) -> Option<Timestamp> {
    let (date, time) = (written.date?, written.time?);
    if !matches!(written.offset?, toml::value::Offset::Z | toml::value::Offset::Custom { minutes: 0 }) {
        return None;
    }
    let month = Month::try_from(date.month).ok()?;
    let date = Date::from_calendar_date(i32::from(date.year), month, date.day).ok()?;
    let time = Time::from_hms(time.hour, time.minute, time.second.unwrap_or(0)).ok()?;
    Some(Timestamp(OffsetDateTime::new_utc(date, time)))
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A server's.
    Server,
    /// A client's.
    Client,
}

/// Largest `issued.toml` that is read: it grows with each certificate, and has room for some 400 000.
const MAX_DATABASE_BYTES: u64 = 64 * 1024 * 1024;

/// `issued.toml`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Database {
    pub(super) domain: Option<String>,
    /// Of the last revocation list; the next has one more (RFC 5280 §5.2.3).
    pub(super) crl_number: u64,
    #[serde(default)]
    pub(super) certificate: Vec<Record>,
}

/// One certificate of [`Database`].
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// In lower-case hexadecimal, two digits a byte.
    pub(super) serial: String,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) not_after: Timestamp,
    pub(super) revoked: Option<Timestamp>,
}

impl Database {
    pub(super) fn read(path: &Path) -> Result<Database> {
        toml_file::parse(path, &toml_file::read_within(path, MAX_DATABASE_BYTES)?)
    }

    pub(super) fn to_toml(&self) -> String {
        let mut text = String::from("# What this authority has issued. Written by `tstunnel pki`.\n\n");
        if let Some(domain) = &self.domain {
            text.push_str(&format!("domain = {}\n", quoted(domain)));
        }
        text.push_str(&format!("crl_number = {}\n", self.crl_number));
        for record in &self.certificate {
            let kind = match record.kind {
                Kind::Server => "server",
                Kind::Client => "client",
            };
            text.push_str(&format!(
                "\n[[certificate]]\nserial = \"{}\"\nkind = \"{kind}\"\nname = {}\nnot_after = {}\n",
                record.serial,
                quoted(&record.name),
                record.not_after
            ));
            if let Some(revoked) = record.revoked {
                text.push_str(&format!("revoked = {revoked}\n"));
            }
        }
        text
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if character.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(character))),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

/// The folder, locked until this is dropped.
pub(super) struct Folder {
    path: PathBuf,
    /// Holds the lock, and is what makes names durable.
    handle: File,
    /// Whether the folder goes again when this is dropped.
    temporary: bool,
}

impl Folder {
    /// Opens a folder that is there.
    pub(super) fn open(path: &Path) -> Result<Folder> {
        let fails = |cause: io::Error| failed(path, "cannot open", &cause).with_hint("`tstunnel pki init` makes one");
        let handle = File::open(path).map_err(fails)?;
        flock(&handle, FlockOperation::LockExclusive).map_err(|cause| fails(cause.into()))?;
        Ok(Folder { path: path.to_owned(), handle, temporary: false })
    }

    /// Opens a folder, and makes it if it is missing; then it goes again unless [`Folder::keep`] is called.
    pub(super) fn create(path: &Path) -> Result<Folder> {
        let is_new = !path.exists();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|cause| failed(path, "cannot create", &cause))?;
        let mut folder = Folder::open(path)?;
        folder.temporary = is_new;
        Ok(folder)
    }

    pub(super) fn keep(mut self) {
        self.temporary = false;
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
    pub(super) fn ca_cert(&self) -> PathBuf {
        self.path.join("ca.crt")
    }
    pub(super) fn ca_key(&self) -> PathBuf {
        self.path.join("ca.key")
    }
    pub(super) fn crl(&self) -> PathBuf {
        self.path.join("ca.crl")
    }
    pub(super) fn database(&self) -> PathBuf {
        self.path.join("issued.toml")
    }
    /// The certificate and the key of a name.
    pub(super) fn pair(&self, stem: &str) -> (PathBuf, PathBuf) {
        (self.path.join(format!("{stem}.crt")), self.path.join(format!("{stem}.key")))
    }

    /// Puts a file in the place of another, whole or not at all. It stays its owner's where root does that.
    pub(super) fn replace(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        // The lock is ours, so one that is there was left by a crash.
        match fs::remove_file(&beside) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&beside, "cannot remove", &cause));
            }
            _ => {}
        }
        let mut files = NewFiles::default();
        let file = files.create(&beside, bytes, mode)?;
        if let Ok(old) = fs::symlink_metadata(path)
            && old.is_file()
            && fchown(&file, Some(old.uid()), Some(old.gid())).is_ok()
        {
            let _ = file.set_permissions(Permissions::from_mode(old.mode() & 0o777));
        }
        fs::rename(&beside, path).map_err(|cause| failed(path, "cannot replace", &cause))?;
        files.keep();
        self.sync()
    }

    /// Makes the names of new files survive a crash.
    pub(super) fn sync(&self) -> Result<()> {
        self.handle.sync_all().map_err(|cause| failed(&self.path, "cannot write", &cause))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary {
            // Only if it is empty: what somebody else put there meanwhile stays.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Files that are removed again unless [`NewFiles::keep`] says that everything worked.
#[derive(Default)]
pub(super) struct NewFiles(Vec<PathBuf>);

impl NewFiles {
    /// Creates a file that does not exist yet and writes all of it.
    pub(super) fn create(&mut self, path: &Path, bytes: &[u8], mode: u32) -> Result<File> {
        // O_EXCL: neither overwrites a file nor follows a link.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|cause| {
            if cause.kind() == io::ErrorKind::AlreadyExists {
                Error::new(Code::Config, format!("{}: already exists", path.display()))
                    .with_hint("move it away, or choose another folder with `--dir`")
            } else {
                failed(path, "cannot create", &cause)
            }
        })?;
        self.0.push(path.to_owned());
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|cause| failed(path, "cannot write", &cause))?;
        Ok(file)
    }

    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

fn failed(path: &Path, what: &str, cause: &io::Error) -> Error {
    Error::new(Code::Config, format!("{}: {what}: {}", path.display(), reason(cause)))
        .with_hint("check the folder's permissions and the free space")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let time = |text: &str| from_toml(&text.parse().unwrap()).unwrap();
        let record = |name: &str, revoked| Record {
            serial: "4f".into(),
            kind: Kind::Client,
            name: name.into(),
            not_after: time("2027-02-28T23:59:59Z"),
            revoked,
        };
        let database = Database {
            domain: Some("example.net".into()),
            crl_number: 7,
            certificate: vec![
                record("spiffe://example.org/a", None),
                record("\"\\\n\u{7f}é", Some(time("2026-01-01T00:00:00Z"))),
            ],
        };
        let text = database.to_toml();
        assert!(text.contains("not_after = 2027-02-28T23:59:59Z"), "{text}");
        assert_eq!(toml_file::parse::<Database>(Path::new("issued.toml"), &text).unwrap(), database);
    }

    #[test]
    fn a_damaged_record_is_refused_with_its_line() {
        for (line, bad) in [
            (1, "crl_number = -1"),
            (2, "crl_number = 1\nunknown = 1"),
            (3, "crl_number = 1\n[[certificate]]\nnot_after = 2026-01-01"),
            (3, "crl_number = 1\n[[certificate]]\nnot_after = 2026-01-01T00:00:00+01:00"),
            (3, "crl_number = 1\n[[certificate]]\nkind = \"other\""),
        ] {
            let error = toml_file::parse::<Database>(Path::new("issued.toml"), bad).unwrap_err();
            assert!(error.text.starts_with(&format!("issued.toml:{line}: ")), "{bad}: {error}");
        }
    }

    #[test]
    fn files_of_a_failure_are_removed_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        fs::write(&two, "kept").unwrap();
        let mut files = NewFiles::default();
        files.create(&one, b"new", 0o600).unwrap();
        let error = files.create(&two, b"new", 0o600).unwrap_err();
        assert!(error.code == Code::Config && error.text.contains("two: already exists"), "{error}");
        drop(files);
        assert!(!one.exists());
        assert_eq!(fs::read(&two).unwrap(), b"kept");
    }

    #[test]
    fn a_replacement_has_the_owner_and_the_mode_of_what_it_replaces() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::open(parent.path()).unwrap();
        let path = parent.path().join("file");
        fs::write(&path, "one").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        // Root alone can give it away.
        let _ = std::os::unix::fs::chown(&path, Some(65534), Some(65534));
        let whose = || fs::metadata(&path).map(|file| (file.uid(), file.gid(), file.mode())).unwrap();
        let before = whose();
        folder.replace(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(whose(), before);
    }

    #[test]
    fn a_replacement_survives_what_a_crash_left() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::open(parent.path()).unwrap();
        let path = parent.path().join("file");
        fs::write(parent.path().join("file.new"), "half").unwrap();
        folder.replace(&path, b"one", 0o600).unwrap();
        folder.replace(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}

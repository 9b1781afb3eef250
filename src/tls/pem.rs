//! PEM files (RFC 7468) → certificates, keys and revocation lists. An error names the file, and the line of what is wrong.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{self, PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::encrypted::{self, Ask};
use crate::error::{Code, Error, Result, reason};

const BEGIN: &[u8] = b"-----BEGIN ";
const PRIVATE_KEY: &[u8] = b"PRIVATE KEY-";
const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// Reads a file's certificates, at least one, in its order.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let (contents, _) = read(path)?;
    let found = objects(path, &contents, CertificateDer::from_pem)?;
    if found.is_empty() {
        return Err(wrong(path, "no certificate in it")
            .with_hint("the file must be PEM, with a line `-----BEGIN CERTIFICATE-----`"));
    }
    Ok(found)
}

/// Reads a file's first private key, where nobody is there to be asked for a passphrase.
///
/// # Errors
/// Those of [`private_key_asking`], and `config` where the key has a passphrase.
#[cfg(any(feature = "server", test))]
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    private_key_asking(path, &mut |_| {
        Err(wrong(path, "the private key has a passphrase, and nobody is asked for it here").with_hint(
            "take the passphrase off a copy that only you can read: `umask 77; openssl pkey -in KEY -out NEWKEY`",
        ))
    })
}

/// Reads a file's first private key; one that is encrypted where there is no other, with the passphrase that `ask` gives.
///
/// # Errors
/// `config` where the file is this account's and others can read it, where it cannot be read, or holds no usable key; and
/// what `ask` says.
pub(super) fn private_key_asking(path: &Path, ask: &mut Ask<'_>) -> Result<PrivateKeyDer<'static>> {
    let (contents, metadata) = read(path)?;
    // Before its mode: another kind of file is rightly open to others.
    if !sections(&contents).any(|(_, section)| is_private_key(section)) {
        return Err(no_private_key(path, &contents));
    }
    check_mode(path, &metadata)?;
    if let Some((line, _)) = sections(&contents).find(|(_, section)| is_encrypted_by_pem(section)) {
        return Err(wrong_at(path, line, "the private key has a passphrase in the old form of OpenSSL").with_hint(
            "write a copy in the new one that only you can read: `umask 77; openssl pkcs8 -topk8 -in KEY -out NEWKEY`",
        ));
    }
    if let Some((line, _)) =
        sections(&contents).find(|(_, section)| section.starts_with(b"-----BEGIN OPENSSH PRIVATE KEY"))
    {
        return Err(wrong_at(path, line, "the private key is in OpenSSH's own format").with_hint(
            "name the private key that belongs to the certificate; it begins with `-----BEGIN PRIVATE KEY-----`",
        ));
    }
    if let Some(key) = objects(path, &contents, PrivateKeyDer::from_pem)?.into_iter().next() {
        return Ok(key);
    }
    if let Some((line, section)) = sections(&contents).find(|(_, section)| section.starts_with(ENCRYPTED)) {
        return encrypted::private_key(path, line, &encrypted_contents(path, line, section)?, ask);
    }
    Err(no_private_key(path, &contents))
}

/// Whether a section begins as that of a private key of whatever form does.
fn is_private_key(section: &[u8]) -> bool {
    let first = section.split(|byte| *byte == b'\n').next().unwrap_or_default();
    first.windows(PRIVATE_KEY.len()).any(|label| label == PRIVATE_KEY)
}

fn no_private_key(path: &Path, contents: &[u8]) -> Error {
    let has_certificate = sections(contents).any(|(_, section)| section.starts_with(b"-----BEGIN CERTIFICATE-----"));
    wrong(path, "no private key in it").with_hint(if has_certificate {
        "it holds a certificate; name the file of the private key that belongs to it, with a line `-----BEGIN PRIVATE KEY-----`"
    } else {
        "the file must be PEM, with a line `-----BEGIN PRIVATE KEY-----`"
    })
}

/// The DER of an encrypted key, whose label the library does not know.
fn encrypted_contents(path: &Path, line: usize, section: &[u8]) -> Result<Vec<u8>> {
    let mut lines = section.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).skip(1);
    let encoded: Vec<u8> =
        lines.by_ref().take_while(|line| !line.starts_with(b"-----END ")).flatten().copied().collect();
    STANDARD.decode(&encoded).map_err(|_| wrong_at(path, line, "the section that begins here is not base64"))
}

/// Reads a file's revocation lists, at least one; a file that is not PEM is one list in DER, as authorities publish it.
#[cfg_attr(not(any(feature = "server", test)), expect(dead_code, reason = "only a server checks revocation"))]
pub(super) fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let (contents, _) = read(path)?;
    // DER begins with the tag of a SEQUENCE (X.690 §8.9).
    if contents.first() == Some(&0x30) {
        return Ok(vec![contents.into()]);
    }
    let found = objects(path, &contents, CertificateRevocationListDer::from_pem)?;
    if found.is_empty() {
        return Err(wrong(path, "no certificate revocation list in it")
            .with_hint("the file must be DER, or PEM with a line `-----BEGIN X509 CRL-----`"));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<(Vec<u8>, Metadata)> {
    let contents = || -> io::Result<(Vec<u8>, Metadata)> {
        let mut file = File::open(path)?;
        // Of the file that is open, not of whatever bears its name a moment later.
        let metadata = file.metadata()?;
        let mut contents = Vec::new();
        file.read_to_end(&mut contents)?;
        Ok((contents, metadata))
    };
    contents().map_err(|error| {
        Error::new(Code::Config, format!("cannot read {}: {}", path.display(), reason(&error)))
            .with_hint("check the path, and that this account may read the file")
    })
}

/// OpenSSH's rule (`sshkey_perm_ok`): a key of ours that others can read is not private. Who may read somebody else's was
/// an administrator's choice, often a group; every account is hardly meant.
fn check_mode(path: &Path, metadata: &Metadata) -> Result<()> {
    let mode = metadata.mode() & 0o777;
    let ours = metadata.is_file() && metadata.uid() == rustix::process::getuid().as_raw();
    if ours && mode & 0o077 != 0 {
        return Err(wrong(path, &format!("the private key can be read by others (mode {mode:04o})"))
            .with_hint(format!("chmod 600 {}", path.display())));
    }
    if mode & 0o004 != 0 {
        tracing::warn!("{}: {READ_BY_ALL}", path.display());
    }
    Ok(())
}

/// What is wrong with a key that is somebody else's and that every account can read.
const READ_BY_ALL: &str = "every account on this machine can read the private key";

/// What should be said of a private key that was read without an error.
pub(super) fn doubt(path: &Path) -> Option<&'static str> {
    let mode = std::fs::metadata(path).ok()?.mode();
    (mode & 0o004 != 0).then_some(READ_BY_ALL)
}

/// The decoded sections that `convert` takes; others are passed over, what is malformed is an error.
fn objects<T>(path: &Path, contents: &[u8], convert: impl Fn(SectionKind, Vec<u8>) -> Option<T>) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for (line, section) in sections(contents) {
        match <(SectionKind, Vec<u8>)>::from_pem_slice(section) {
            Ok((kind, der)) => found.extend(convert(kind, der)),
            Err(pem::Error::NoItemsFound) => {}
            Err(error) => return Err(wrong_at(path, line, malformation(&error))),
        }
    }
    Ok(found)
}

fn malformation(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "the section that begins here has no line that ends it",
        pem::Error::IllegalSectionStart { .. } => "this line should end in five hyphens",
        pem::Error::SectionTooLarge => "the section that begins here is too long",
        _ => "the section that begins here is not base64",
    }
}

/// RFC 1421 §4.6.1.1, as OpenSSL wrote it before PKCS#8.
fn is_encrypted_by_pem(section: &[u8]) -> bool {
    section.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"Proc-Type: 4,ENCRYPTED"))
}

/// Cuts a file before each line that begins a section: the line's number, from 1, and the text up to the next one.
fn sections(contents: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut starts = Vec::new();
    let mut offset = 0;
    for (index, line) in contents.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if line.starts_with(BEGIN) {
            starts.push((index + 1, offset));
        }
        offset += line.len();
    }
    let ends: Vec<usize> = starts.iter().skip(1).map(|(_, start)| *start).chain([contents.len()]).collect();
    starts.into_iter().zip(ends).filter_map(|((line, start), end)| Some((line, contents.get(start..end)?)))
}

fn wrong(path: &Path, what: &str) -> Error {
    Error::new(Code::Config, format!("{}: {what}", path.display()))
}

pub(super) fn wrong_at(path: &Path, line: usize, what: &str) -> Error {
    Error::new(Code::Config, format!("{}:{line}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    fn file(contents: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.pem");
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = certificates(Path::new("/does/not/exist.crt")).unwrap_err();
        assert_eq!(error.code, Code::Config);
        assert!(error.text.starts_with("cannot read /does/not/exist.crt: "), "{}", error.text);
    }

    #[test]
    fn a_file_without_what_is_wanted_is_named() {
        let (_folder, path) = file(KEY, 0o600);
        assert_eq!(certificates(&path).unwrap_err().text, format!("{}: no certificate in it", path.display()));
        let (_folder, path) = file(CERTIFICATE, 0o600);
        let error = private_key(&path).unwrap_err();
        assert_eq!(error.text, format!("{}: no private key in it", path.display()));
        let error = revocation_lists(&path).unwrap_err();
        assert_eq!(error.text, format!("{}: no certificate revocation list in it", path.display()));
    }

    #[test]
    fn certificate_and_key_can_share_a_file_with_other_text() {
        let (_folder, path) = file(&format!("subject: me\n{CERTIFICATE}\r\n{KEY}{CERTIFICATE}"), 0o600);
        assert_eq!(certificates(&path).unwrap().len(), 2);
        assert!(private_key(&path).is_ok());
    }

    #[test]
    fn a_malformed_section_is_named_by_its_line() {
        for (contents, reason) in [
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "no line that ends it"),
            ("-----BEGIN CERTIFICATE----\nAAAA\n", "five hyphens"),
            ("-----BEGIN CERTIFICATE-----\nA\u{1}=\n-----END CERTIFICATE-----\n", "not base64"),
        ] {
            let (_folder, path) = file(&format!("{CERTIFICATE}{contents}"), 0o600);
            let error = certificates(&path).unwrap_err();
            assert!(error.text.starts_with(&format!("{}:4: ", path.display())), "{}", error.text);
            assert!(error.text.contains(reason), "{}", error.text);
        }
    }

    #[test]
    fn a_key_with_a_passphrase_is_no_key_where_nobody_is_asked() {
        let pem = |label: &str| format!("\n-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        let (_folder, path) = file(&pem("ENCRYPTED PRIVATE KEY"), 0o600);
        assert_eq!(private_key(&path).unwrap_err().text, format!("{}:2: the private key is malformed", path.display()));
        let key = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        let (_folder, path) = file(key, 0o600);
        let error = private_key(&path).unwrap_err();
        assert!(error.text.contains("in the old form") && error.hint().contains("openssl pkcs8 -topk8"), "{error}");
        let (_folder, path) = file(&pem("ENCRYPTED PRIVATE KEY").replace("AAAA", "A?AA"), 0o600);
        assert!(private_key(&path).unwrap_err().text.contains("not base64"));
        let (_folder, path) = file(&(pem("ENCRYPTED PRIVATE KEY") + KEY), 0o600);
        assert!(private_key(&path).is_ok(), "a key without a passphrase is preferred");
    }

    #[test]
    fn an_openssh_key_is_told_apart() {
        let (_folder, path) =
            file("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", 0o600);
        assert!(private_key(&path).unwrap_err().text.contains("OpenSSH's own format"));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_as_openssh_does() {
        for mode in [0o640, 0o604, 0o666, 0o610] {
            let (_folder, path) = file(KEY, mode);
            let error = private_key(&path).unwrap_err();
            assert!(error.text.contains(&format!("can be read by others (mode {mode:04o})")), "{}", error.text);
            assert_eq!(error.hint(), format!("chmod 600 {}", path.display()));
        }
        for mode in [0o600, 0o400, 0o700] {
            let (_folder, path) = file(KEY, mode);
            assert!(private_key(&path).is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn a_file_without_a_key_is_told_so_and_not_to_be_hidden() {
        for (contents, hint) in
            [(CERTIFICATE, "it holds a certificate; name the file of the private key"), ("", "the file must be PEM")]
        {
            let (_folder, path) = file(contents, 0o644);
            let error = private_key(&path).unwrap_err();
            assert_eq!(error.text, format!("{}: no private key in it", path.display()));
            assert!(error.hint().starts_with(hint), "{}", error.hint());
        }
        for label in ["PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY"] {
            let pem = format!("{CERTIFICATE}-----BEGIN {label}-----\r\nAAAA\r\n-----END {label}-----\r\n");
            let (_folder, path) = file(&pem, 0o644);
            assert!(private_key(&path).unwrap_err().text.contains("can be read by others"), "{label}");
        }
    }

    #[test]
    fn a_revocation_list_may_be_der() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.crl");
        fs::write(&path, [0x30, 0x00]).unwrap();
        assert_eq!(revocation_lists(&path).unwrap()[0].as_ref(), [0x30, 0x00]);
    }
}

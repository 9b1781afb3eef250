//! TOML files → values, with errors that name file and line: `FILE:LINE: text`. Unknown keys are errors because every
//! structure that is read with [`parse`] denies them.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Code, Error, Result};

/// Largest configuration file that is read; more is some other file.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Reads a file as text.
///
/// # Errors
/// `config` with the file's name where it cannot be read, is larger than [`MAX_FILE_BYTES`] or is not UTF-8.
pub fn read(path: &Path) -> Result<String> {
    let fails = |what: String| Error::new(Code::Config, format!("{}: {what}", path.display()));
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|cause| fails(format!("cannot read: {cause}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(fails(format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|cause| {
        let line = 1 + cause.as_bytes()[..cause.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        Error::new(Code::Config, format!("{}:{line}: not UTF-8 text", path.display()))
    })
}

/// Parses `text`, which was read from `path`.
///
/// # Errors
/// `config` as `FILE:LINE: text`: bad syntax, unknown keys, wrong types, values that the type itself refuses.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|cause| error_at(path, text, cause.span(), cause.message()))
}

/// Makes the `config` error for the value at `span` (bytes of `text`): `FILE:LINE: what`.
pub fn error_at(path: &Path, text: &str, span: Option<Range<usize>>, what: &str) -> Error {
    let mut shown = path.display().to_string();
    if let Some(span) = span {
        let before = text.as_bytes().get(..span.start).unwrap_or(text.as_bytes());
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        shown.push_str(&format!(":{line}"));
    }
    let what = what.trim().replace('\n', ", ");
    Error::new(Code::Config, format!("{shown}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(rename = "size")]
        _size: u16,
        #[serde(default, rename = "inner")]
        _inner: Option<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "name")]
        _name: String,
    }

    fn error(text: &str) -> String {
        let error = parse::<Sample>(Path::new("/etc/x.toml"), text).unwrap_err();
        assert_eq!(error.code, Code::Config);
        assert!(!error.text.contains('\n'), "{}", error.text);
        error.text
    }

    #[test]
    fn an_error_names_file_and_line() {
        for (text, line, fragment) in [
            ("\nsize = 1\nsizes = 2", 3, "unknown field `sizes`"),
            ("size = \"1\"", 1, "invalid type"),
            ("\n\nsize = 99999", 3, "invalid value"),
            ("size = -1", 1, "invalid value"),
            ("size = 1\nsize = 2", 2, "duplicate key"),
            ("size = 1\n[inner]\nname = 7", 3, "invalid type"),
            ("size = 1\n[inner]\n\nnames = \"x\"", 4, "unknown field `names`"),
            ("size = 1\nsize", 2, ""),
            ("size = 1\n[inner", 2, ""),
        ] {
            let error = error(text);
            assert!(error.starts_with(&format!("/etc/x.toml:{line}: ")), "{text:?} -> {error}");
            assert!(error.contains(fragment), "{text:?} -> {error}");
        }
    }

    #[test]
    fn a_missing_key_is_named() {
        assert!(error("").contains("missing field `size`"));
    }

    #[test]
    fn a_span_past_the_end_is_the_last_line() {
        let error = error_at(Path::new("f"), "a\nb", Some(99..100), "what");
        assert_eq!(error.text, "f:2: what");
    }

    #[test]
    fn unreadable_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let refused = |what: &str| {
            let error = read(&file).unwrap_err();
            assert_eq!(error.code, Code::Config);
            assert!(error.text.contains(what) && error.text.contains("file"), "{error}");
        };
        refused("cannot read");
        std::fs::write(&file, b"a = 1\nb = \"\xff\"").unwrap();
        refused("file:2: not UTF-8 text");
        std::fs::write(&file, vec![b'#'; MAX_FILE_BYTES as usize + 1]).unwrap();
        refused("larger than");
        std::fs::write(&file, "size = 1").unwrap();
        assert_eq!(read(&file).unwrap(), "size = 1");
    }
}

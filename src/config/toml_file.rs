//! TOML files → values, with errors that name file and line: `FILE:LINE: text`. Unknown keys are errors because every
//! structure that is read with [`parse`] denies them.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use crate::error::{Code, Error, Result, nearest, reason};

/// Largest configuration file that is read; more is some other file.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Reads a file as text.
///
/// # Errors
/// `config` with the file's name where it cannot be read, is larger than [`MAX_FILE_BYTES`] or is not UTF-8.
pub fn read(path: &Path) -> Result<String> {
    read_within(path, MAX_FILE_BYTES)
}

/// The same for a file that may have `max_bytes`.
///
/// # Errors
/// Those of [`read`].
pub fn read_within(path: &Path, max_bytes: u64) -> Result<String> {
    decode(path, read_bytes(path, max_bytes).map_err(|cause| unreadable(path, &cause))?, max_bytes)
}

/// The same for a file that need not be there.
///
/// # Errors
/// Those of [`read`], but for a file that does not exist.
pub fn read_if_there(path: &Path) -> Result<Option<String>> {
    match read_bytes(path, MAX_FILE_BYTES) {
        Ok(bytes) => decode(path, bytes, MAX_FILE_BYTES).map(Some),
        Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(cause) => Err(unreadable(path, &cause)),
    }
}

fn read_bytes(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(path: &Path, cause: &io::Error) -> Error {
    Error::new(Code::Config, format!("{}: cannot read: {}", path.display(), reason(cause)))
        .with_hint("check the path, and that this account may read the file")
}

fn decode(path: &Path, bytes: Vec<u8>, max_bytes: u64) -> Result<String> {
    if bytes.len() as u64 > max_bytes {
        return Err(Error::new(Code::Config, format!("{}: larger than {max_bytes} bytes", path.display()))
            .with_hint("check that this is the right file"));
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
    toml::from_str(text).map_err(|cause| {
        let span = cause.span();
        let source = span.clone().and_then(|span| text.get(span)).unwrap_or_default();
        let (what, hint) = match cause.message() {
            "duplicate key" => {
                let name = table_name(source);
                let hint = is_list::<T>(text, span.as_ref(), name).then(|| format!("write `[[{name}]]` each time"));
                (format!("duplicate key `{name}`"), hint)
            }
            why => {
                let (why, advice) = advised(why);
                (named(why, text, span.as_ref()), advice.or_else(|| hint(why, source)))
            }
        };
        let error = error_at(path, text, span, &what);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    })
}

/// A type's own refusal, and what it says behind it to write instead.
fn advised(why: &str) -> (&str, Option<String>) {
    match why.split_once("; write `") {
        Some((why, advice)) => (why, Some(format!("write `{}", advice.trim_end()))),
        None => (why, None),
    }
}

/// What is wrong, with the key of the value that it is about, and in no programmer's words.
fn named(why: &str, text: &str, span: Option<&Range<usize>>) -> String {
    let why = match why.rsplit_once(", expected ") {
        Some((found, "a nonzero usize" | "a nonzero u64")) => format!("{found}, expected a whole number above 0"),
        Some((found, "usize" | "u64")) => format!("{found}, expected a whole number"),
        _ => why.to_owned(),
    };
    let document = DeTable::parse(text).ok();
    let key = span.and_then(|span| key_of(document.as_ref()?.get_ref(), span));
    match key.map(|key| format!("`{key}`")) {
        Some(key) if !why.contains(&key) => format!("{key}: {why}"),
        _ => why,
    }
}

/// The key whose value `span` lies in; none for a table's own.
fn key_of<'a>(table: &'a DeTable<'_>, span: &Range<usize>) -> Option<&'a str> {
    table.iter().find_map(|(key, value)| {
        let below = match value.get_ref() {
            DeValue::Table(table) => return key_of(table, span),
            DeValue::Array(items) => {
                items.iter().filter_map(|item| item.get_ref().as_table()).find_map(|table| key_of(table, span))
            }
            _ => None,
        };
        let is_in = value.span().start <= span.start && span.end <= value.span().end;
        let is_list_of_tables =
            value.get_ref().as_array().is_some_and(|items| items.iter().all(|item| item.get_ref().is_table()));
        below.or_else(|| (is_in && !is_list_of_tables).then(|| key.get_ref().as_ref()))
    })
}

/// Whether the table that is there for the second time at `span` belongs into a list: by another header, or by its type.
fn is_list<T: DeserializeOwned>(text: &str, span: Option<&Range<usize>>, name: &str) -> bool {
    let header = format!("[[{name}]]");
    let line = span.and_then(|span| Some(text.get(..span.start)?.rfind('\n').map_or(0, |newline| newline + 1)));
    let before = line.and_then(|line| text.get(..line)).unwrap_or_default();
    text.lines().any(|line| line.trim_start().starts_with(&header))
        || toml::from_str::<T>(before).is_err_and(|cause| {
            let source = cause.span().and_then(|span| before.get(span)).unwrap_or_default();
            hint(cause.message(), source).is_some_and(|hint| hint.contains(&header))
        })
}

/// A table's header, or the part of a longer one that names it, without what surrounds it.
fn table_name(source: &str) -> &str {
    source.trim_matches(['[', ']', ' ', '\t'])
}

/// What a key expects that takes a list of words, and no line to be split.
pub const WORDS: &str = "a list of words";

/// What to write instead of `source`, which serde has refused for `why`: its words are all that tells the kind of an error.
fn hint(why: &str, source: &str) -> Option<String> {
    if let Some(unknown) = why.strip_prefix("unknown field `") {
        let (name, known) = unknown.split_once("`, expected ")?;
        // Every other part stands between two names.
        return nearest(name, known.split('`').skip(1).step_by(2)).map(|known| format!("did you mean `{known}`?"));
    }
    let (found, expected) = why.strip_prefix("invalid type: ")?.rsplit_once(", expected ")?;
    if expected == WORDS {
        let words: Vec<String> =
            source.trim_matches(['"', '\'']).split_whitespace().map(|word| format!("\"{word}\"")).collect();
        return Some(format!("write a list: [{}]", words.join(", ")));
    }
    if expected == "a string" && found.starts_with("integer") {
        return Some(format!("write it in quotes; a duration has a unit, as in \"{source}s\""));
    }
    if expected != "a sequence" {
        return None;
    }
    Some(if source.is_empty() || source.contains('\n') {
        "write a list".to_owned()
    } else if found == "map" && !source.starts_with('{') {
        format!("write `[[{}]]`", table_name(source))
    } else {
        format!("write a list: [{source}]")
    })
}

/// Makes the `config` error for the value at `span` (bytes of `text`): `FILE:LINE: what`.
pub fn error_at(path: &Path, text: &str, span: Option<Range<usize>>, what: &str) -> Error {
    let mut shown = path.display().to_string();
    if let Some(span) = span {
        shown.push_str(&format!(":{}", position(text, span.start).0));
    }
    let what = what.trim().replace('\n', ", ");
    Error::new(Code::Config, format!("{shown}: {what}"))
}

/// The line and column, from 1, of a byte of `text`.
pub fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).unwrap_or_default().chars().count();
    (1 + before.matches('\n').count(), 1 + column)
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
        #[serde(default, rename = "list")]
        _list: Vec<String>,
        #[serde(default, rename = "table")]
        _table: Vec<Inner>,
        #[serde(default, rename = "count")]
        _count: Option<std::num::NonZeroUsize>,
        #[serde(default, rename = "bytes")]
        _bytes: usize,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "name")]
        _name: String,
    }

    fn refusal(text: &str) -> Error {
        parse::<Sample>(Path::new("/etc/x.toml"), text).unwrap_err()
    }

    fn error(text: &str) -> String {
        let error = refusal(text);
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
    fn a_misspelt_key_is_told_the_nearest_of_those_that_its_table_has() {
        for (text, hint) in [
            ("siz = 1", "did you mean `size`?"),
            ("size = 1\n[iner]\nname = \"x\"", "did you mean `inner`?"),
            ("size = 1\n[inner]\nnmae = \"x\"", "did you mean `name`?"),
            ("size = 1\n[inner]\nsize = 1", Code::Config.default_hint()),
        ] {
            assert_eq!(refusal(text).hint(), hint, "{text:?}");
        }
    }

    #[test]
    fn a_number_in_a_strings_place_is_told_how_a_duration_is_written() {
        let error = refusal("size = 1\n[inner]\nname = 120");
        assert_eq!(error.hint(), "write it in quotes; a duration has a unit, as in \"120s\"");
    }

    #[test]
    fn one_value_where_a_list_belongs_is_told_how_to_write_the_list() {
        for (text, hint) in [
            ("size = 1\nlist = \"host123\"", "write a list: [\"host123\"]"),
            ("size = 1\nlist = 'a'\n", "write a list: ['a']"),
            ("size = 1\nlist = 7 # of them", "write a list: [7]"),
            ("size = 1\ntable = { name = \"x\" }", "write a list: [{ name = \"x\" }]"),
            ("size = 1\nlist = \"\"\"\na\"\"\"", "write a list"),
            ("size = 1\n[table]\nname = \"x\"", "write `[[table]]`"),
            ("size = 1\n\n[ table ] # one\nname = \"x\"", "write `[[table]]`"),
            ("size = 1\n[table.inner]", "write `[[table]]`"),
            ("size = 1\ntable.name = \"x\"", "write `[[table]]`"),
            ("size = \"1\"", Code::Config.default_hint()),
        ] {
            let error = refusal(text);
            assert_eq!(error.hint(), hint, "{text:?} -> {error}");
        }
    }

    #[test]
    fn a_value_is_told_with_its_key() {
        for (text, expected) in [
            ("size = \"many\"", "1: `size`: invalid type: string \"many\", expected u16"),
            ("size = 1\n[inner]\nname = 7", "3: `name`: invalid type: integer `7`, expected a string"),
            ("size = 1\ninner = { name = 7 }", "2: `name`: invalid type: integer `7`, expected a string"),
            (
                "size = 1\n[[table]]\nname = 'a'\n[[table]]\nname = 7",
                "5: `name`: invalid type: integer `7`, expected a string",
            ),
            ("size = 1\nlist = [\n'a',\n7]", "4: `list`: invalid type: integer `7`, expected a string"),
            (
                "size = 1\ncount = \"many\"",
                "2: `count`: invalid type: string \"many\", expected a whole number above 0",
            ),
            ("size = 1\ncount = 0", "2: `count`: invalid value: integer `0`, expected a whole number above 0"),
            ("size = 1\nbytes = -1", "2: `bytes`: invalid value: integer `-1`, expected a whole number"),
            ("size = 1\n[inner]", "2: missing field `name`"),
            ("size = 1\n[[table]]\nname = 'a'\n[[table]]\n", "4: missing field `name`"),
            ("size = 1\n[list]\na = 1", "2: invalid type: map, expected a sequence"),
        ] {
            assert_eq!(error(text), format!("/etc/x.toml:{expected}"), "{text:?}");
        }
    }

    #[test]
    fn a_table_that_is_there_twice_is_told_whether_it_is_one_of_a_list() {
        for (text, line, name, hint) in [
            ("size = 1\n[[table]]\nname = 'a'\n[table]\nname = 'b'", 4, "table", "write `[[table]]` each time"),
            ("size = 1\n[table]\nname = 'a'\n[[table]]\nname = 'b'", 4, "table", "write `[[table]]` each time"),
            ("size = 1\n[table]\nname = 'a'\n[ table ]\nname = 'b'", 4, "table", "write `[[table]]` each time"),
            ("size = 1\n[inner]\nname = 'a'\n[inner]\nname = 'b'", 4, "inner", Code::Config.default_hint()),
            ("size = 1\n\nsize = 1", 3, "size", Code::Config.default_hint()),
        ] {
            let error = refusal(text);
            assert_eq!(error.text, format!("/etc/x.toml:{line}: duplicate key `{name}`"), "{text:?}");
            assert_eq!(error.hint(), hint, "{text:?}");
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
        assert_eq!(read_if_there(&file), Ok(None));
        std::fs::write(&file, b"a = 1\nb = \"\xff\"").unwrap();
        refused("file:2: not UTF-8 text");
        std::fs::write(&file, vec![b'#'; MAX_FILE_BYTES as usize + 1]).unwrap();
        refused("larger than");
        assert_eq!(read(&file).unwrap_err().hint(), "check that this is the right file");
        std::fs::write(&file, "size = 1").unwrap();
        assert_eq!(read(&file).unwrap(), "size = 1");
    }
}

//! The words behind a command → the table's options and the operands, checked against the command's row. No I/O.

use std::ffi::OsString;
use std::path::PathBuf;

use super::options::{self, CommandRow, Opt, OptionRow, Words};
use crate::error::{Code, Error, Result, nearest};

/// What stood behind a command: the table's options and the operands.
pub(super) struct Given {
    options: Vec<(Opt, Option<OsString>)>,
    /// What is no option, in order.
    pub(super) operands: Vec<OsString>,
}

pub(super) fn read(row: &CommandRow, args: Vec<OsString>) -> Result<Given> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut given = Given { options: Vec::new(), operands: Vec::new() };
    let page = format!("tstunnel {} --help", row.name);
    let wrong = |error: lexopt::Error| usage(error.to_string(), &format!("see `{page}`"));
    while let Some(argument) = parser.next().map_err(wrong)? {
        let option = match argument {
            lexopt::Arg::Value(word) => {
                let is_command = matches!(row.words, Words::ThenCommand | Words::PerhapsThenCommand);
                let ends = is_command && !given.operands.is_empty();
                given.operands.push(word);
                if ends {
                    given.operands.extend(parser.raw_args().map_err(wrong)?);
                }
                continue;
            }
            lexopt::Arg::Long(long) => {
                option_row(row, |option| option.long == long).ok_or_else(|| misspelt(row, long, &page))?
            }
            lexopt::Arg::Short(short) => option_row(row, |option| option.short == Some(short))
                .ok_or_else(|| unknown("option", &format!("-{short}"), None, &page))?,
        };
        let value = match option.value {
            None => None,
            Some(name) if name.starts_with('[') => parser.optional_value(),
            Some(_) => Some(parser.value().map_err(wrong)?),
        };
        given.options.push((option.id, value));
    }
    let (least, most) = match row.words {
        Words::Between(least, most) => (least, most),
        Words::ThenCommand => (2, usize::MAX),
        Words::PerhapsThenCommand | Words::Verbatim => (0, usize::MAX),
    };
    if given.operands.len() < least && !given.has(Opt::Help) {
        let text = format!("`tstunnel {}` needs {}", row.name, row.operands);
        return Err(usage(text, &format!("see `{page}`")));
    }
    if let Some(extra) = given.operands.get(most) {
        return Err(usage(format!("`{}` is one argument too many", extra.display()), &format!("see `{page}`")));
    }
    Ok(given)
}

fn option_row(row: &CommandRow, wanted: impl Fn(&OptionRow) -> bool) -> Option<&'static OptionRow> {
    options::options_of(Some(row.id)).find(|option| wanted(option))
}

fn misspelt(row: &CommandRow, long: &str, page: &str) -> Error {
    let meant = nearest(long, options::options_of(Some(row.id)).map(|option| option.long));
    unknown("option", &format!("--{long}"), meant.map(|meant| format!("--{meant}")).as_deref(), page)
}

impl Given {
    pub(super) fn has(&self, id: Opt) -> bool {
        self.options.iter().any(|(option, _)| *option == id)
    }

    /// The values of an option, in order.
    pub(super) fn values(&self, id: Opt) -> impl DoubleEndedIterator<Item = &OsString> {
        self.options.iter().filter(move |(option, _)| *option == id).filter_map(|(_, value)| value.as_ref())
    }

    /// The value of an option; the last, where it is given twice.
    fn value(&self, id: Opt) -> Option<&OsString> {
        self.values(id).next_back()
    }

    pub(super) fn path(&self, id: Opt) -> Option<PathBuf> {
        self.value(id).map(PathBuf::from)
    }

    pub(super) fn text(&self, id: Opt) -> Result<Option<String>> {
        self.value(id).cloned().map(utf8).transpose()
    }

    /// A value that `parse` understands; `what` says what it should be.
    pub(super) fn number<T>(&self, id: Opt, what: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>> {
        let Some(text) = self.text(id)? else { return Ok(None) };
        let wrong = || usage(format!("`{text}` is not {what}"), &format!("give {what}"));
        parse(&text).map(Some).ok_or_else(wrong)
    }
}

pub(super) fn utf8(word: OsString) -> Result<String> {
    word.into_string().map_err(|word| usage(format!("`{}` is not UTF-8", word.display()), "write it in UTF-8"))
}

pub(super) fn usage(text: impl Into<String>, hint: &str) -> Error {
    Error::new(Code::Usage, text).with_hint(hint)
}

pub(super) fn unknown(kind: &str, name: &str, meant: Option<&str>, page: &str) -> Error {
    let hint = match meant {
        Some(meant) => format!("did you mean `{meant}`? `{page}` shows every {kind}"),
        None => format!("`{page}` shows every {kind}"),
    };
    usage(format!("there is no {kind} `{name}`"), &hint)
}

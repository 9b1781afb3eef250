//! The table's prose → mdoc(7).

use std::collections::BTreeSet;
use std::sync::LazyLock;

use tstunnel::cli::options::{COMMANDS, OPTIONS};

/// Every word in capitals that the table's usage lines have.
static PLACEHOLDERS: LazyLock<BTreeSet<&str>> = LazyLock::new(|| {
    let usages = COMMANDS.iter().map(|row| row.operands).chain(OPTIONS.iter().filter_map(|row| row.value));
    usages
        .flat_map(|usage| usage.split(|letter: char| !letter.is_ascii_uppercase()))
        .filter(|word| !word.is_empty())
        .collect()
});

/// Whole sentences, with what is typed in backticks and placeholders in capitals → lines, one or more for each sentence.
pub(crate) fn prose(text: &str) -> String {
    let mut lines = Lines::default();
    for word in words(text) {
        // Brackets before it and punctuation behind it are no part of what is typed.
        let bare = word.trim_start_matches(['(', '[']);
        let (before, rest) = word.split_at(word.len() - bare.len());
        let (core, after) = match rest.strip_prefix('`') {
            Some(typed) => typed.split_once('`').expect("a backtick has its other"),
            None => rest.split_at(rest.find("'s").unwrap_or_else(|| unpunctuated(rest).len())),
        };
        match markup(core, rest.starts_with('`')) {
            Some(markup) => lines.request(before, &markup, after),
            None => lines.plain(&escaped(&word)),
        }
        if after.ends_with(['.', ':', '?']) {
            lines.end();
        }
    }
    lines.end();
    lines.text
}

/// The words of a text; what stands in backticks is one of them.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_typed = false;
    for letter in text.chars() {
        is_typed ^= letter == '`';
        match words.last_mut() {
            Some(word) if is_typed || !letter.is_whitespace() => word.push(letter),
            _ => words.push(String::new()),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A word without the punctuation behind it; the bracket at the end of `tstunnel(1)` is none.
fn unpunctuated(word: &str) -> &str {
    let word = word.trim_end_matches([',', '.', ';', ':', '?', '!']);
    if page_and_section(word).is_some() { word } else { word.trim_end_matches([')', ']']) }
}

fn page_and_section(word: &str) -> Option<(&str, &str)> {
    word.strip_suffix(')')?.split_once('(').filter(|(_, section)| section.len() == 1)
}

/// The macro and its arguments for a word that has one.
fn markup(word: &str, is_typed: bool) -> Option<String> {
    if let Some((page, section)) = page_and_section(word) {
        return Some(format!("Xr {page} {section}"));
    }
    if let Some(option) = word.strip_prefix("--").filter(|option| !option.is_empty() && !option.contains(' ')) {
        return Some(format!("Fl -{}", escaped(option)));
    }
    if !is_typed {
        return PLACEHOLDERS.contains(word).then(|| format!("Ar {}", word.to_ascii_lowercase()));
    }
    let is_variable =
        word.len() > 3 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_' || byte == b'*');
    let is_path = word.starts_with(['/', '~']) || word.starts_with("./");
    let name = if is_variable {
        "Ev"
    } else if is_path {
        "Pa"
    } else {
        "Ql"
    };
    Some(format!("{name} {}", escaped(word)))
}

/// Text as an argument of a macro, or of a line of its own.
pub(crate) fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('"', "\\(dq");
    let words = text.split(' ').map(|word| match word {
        // Else it would be punctuation, or a macro.
        _ if word.starts_with(['.', '\'']) || (word.len() == 1 && !word.starts_with(char::is_alphanumeric)) => {
            format!("\\&{word}")
        }
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[derive(Default)]
struct Lines {
    text: String,
    line: String,
}

impl Lines {
    fn plain(&mut self, word: &str) {
        if !self.line.is_empty() && self.line.len() + 1 + word.len() > 78 {
            self.end();
        }
        if !self.line.is_empty() {
            self.line.push(' ');
        }
        self.line.push_str(word);
    }

    fn request(&mut self, before: &str, markup: &str, after: &str) {
        self.end();
        let (name, arguments) = markup.split_once(' ').unwrap_or((markup, ""));
        self.line = format!(".{name} ");
        for bracket in before.chars() {
            self.line.push_str(&format!("{bracket} "));
        }
        self.line.push_str(arguments);
        if after.starts_with(char::is_alphanumeric) || after.starts_with('\'') {
            self.line.push_str(&format!(" Ns {after}"));
        } else {
            for mark in after.chars() {
                self.line.push_str(&format!(" {mark}"));
            }
        }
        self.end();
    }

    fn end(&mut self) {
        if !self.line.is_empty() {
            self.text.push_str(&self.line);
            self.text.push('\n');
            self.line.clear();
        }
    }
}

/// Operands or a value as the table has them → the words of a macro line: `HOST [--] COMMAND...` is
/// `Ar host Oo Fl - Oc Ar command ...`.
pub(crate) fn usage(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut rest = text;
    let mut is_joined = false;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            'A'..='Z' => rest.find(|letter: char| !letter.is_ascii_uppercase()).unwrap_or(rest.len()),
            '-' | '.' => rest.find(|letter: char| letter != first).unwrap_or(rest.len()),
            _ => 1,
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        if token == " " {
            is_joined = false;
            continue;
        }
        if is_joined && !matches!(token, "]" | "...") {
            words.push("Ns".to_owned());
        }
        words.push(match token {
            "[" => "Oo".to_owned(),
            "]" => "Oc".to_owned(),
            "..." => "...".to_owned(),
            "--" => "Fl -".to_owned(),
            ":" | "=" => format!("No \\&{token}"),
            _ => format!("Ar {}", token.to_ascii_lowercase()),
        });
        is_joined = token != "[";
    }
    words.join(" ")
}

#[test]
fn prose_becomes_macros() {
    let text = "Runs `ls -l`, as FILE's owner (see `--raw`). With `LC_*` and `/etc/x`; see tstunnel(1) or EXIT STATUS.";
    let expected = "Runs\n.Ql ls -l ,\nas\n.Ar file Ns 's\nowner (see\n.Fl -raw ) .\nWith\n.Ev LC_*\nand\n.Pa /etc/x ;\nsee\n\
                    .Xr tstunnel 1\nor EXIT STATUS.\n";
    assert_eq!(prose(text), expected);
}

#[test]
fn usage_becomes_macros() {
    for (text, expected) in [
        ("", ""),
        ("HOST [--] COMMAND...", "Ar host Oo Fl - Oc Ar command ..."),
        ("FILE HOST[:NAME]", "Ar file Ar host Ns Oo No \\&: Ns Ar name Oc"),
        ("[HOST COMMAND...]", "Oo Ar host Ar command ... Oc"),
        ("[=SIZE]", "Oo No \\&= Ns Ar size Oc"),
        ("NAME[=VALUE]", "Ar name Ns Oo No \\&= Ns Ar value Oc"),
    ] {
        assert_eq!(usage(text), expected, "{text}");
    }
}

//! Parts of committed files that are written from the table. Each stands between two comments, `{NAME}` and `{/NAME}`, in a
//! file whose rest is written by hand.

use crate::{project, read};

/// Says that the parts are to be written instead of compared.
const WRITE: &str = "TSTUNNEL_WRITE_PAGES";

/// A part's name, and what stands in it: whole lines.
pub(crate) type Part = (&'static str, String);

/// Compares the parts of a file with what they should be, or writes them.
pub(crate) fn hold(path: &str, comment: &str, parts: &[Part]) {
    let committed = read(path);
    let mut text = committed.clone();
    for (name, content) in parts {
        text = with_part(&text, comment, name, content).unwrap_or_else(|| panic!("{path} has no part {name}"));
    }
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(project(path), text).unwrap();
        return;
    }
    let differs = committed.lines().zip(text.lines()).position(|(old, new)| old != new);
    let line = differs.unwrap_or(committed.lines().count().min(text.lines().count())) + 1;
    assert!(committed == text, "{path}:{line} is not what the table says: run `make pages`");
}

/// The text with another content of one part; `None` where it does not have that part.
fn with_part(text: &str, comment: &str, name: &str, content: &str) -> Option<String> {
    let begin = text.find(&format!("{comment} {{{name}}}"))?;
    let begin = begin + text[begin..].find('\n')? + 1;
    let end = begin + text[begin..].find(&format!("{comment} {{/{name}}}"))?;
    // The comment at the end keeps its indentation.
    let end = text[..end].rfind('\n')? + 1;
    Some(format!("{}{content}{}", &text[..begin], &text[end..]))
}

#[test]
fn a_part_is_replaced_and_nothing_else() {
    let text = "a\n  # {x} is written\nold\n  # {/x}\nb\n";
    assert_eq!(with_part(text, "#", "x", "new\nlines\n").unwrap(), "a\n  # {x} is written\nnew\nlines\n  # {/x}\nb\n");
    assert_eq!(with_part(text, "#", "x", "").unwrap(), "a\n  # {x} is written\n  # {/x}\nb\n");
    for other in ["y", "/x"] {
        assert_eq!(with_part(text, "#", other, "new\n"), None);
    }
}

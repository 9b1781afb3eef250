//! The text of a Mutagen project's file with `tstunnel://` URLs → the same text with them replaced, and not a byte else. No I/O.
//!
//! What is a URL is decided by a parser of YAML and the place of a value in the document (`pkg/project/configuration.go`), so
//! comments and commands stay what they are. What cannot be replaced in place is refused: Mutagen would take it for a host.

use std::collections::HashMap;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::rewrite::Kind;
use crate::config::url::is_tunnel_url;
use crate::error::{Code, Error, Result};

/// A collection that is being read.
enum Frame {
    /// A mapping, with the key whose value comes next; a key comes next if there is none.
    Mapping {
        key: Option<String>,
    },
    Sequence,
}

/// Replaces each URL by what `replace` makes of it; `None` where there is none. Errors name the line.
///
/// # Errors
/// `config` where the text may have URLs and is no YAML, or a URL is written so that it cannot be replaced; those of `replace`.
pub(super) fn rewrite(text: &str, mut replace: impl FnMut(&str, Kind) -> Result<String>) -> Result<Option<String>> {
    let has_ours = text.to_ascii_lowercase().contains("tstunnel:");
    let source = Source::new(text);
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let mut stack: Vec<Frame> = Vec::new();
    let mut anchors: HashMap<usize, String> = HashMap::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(read) => read,
            Err(error) if has_ours => return Err(at(error.marker().line(), Code::Config, error.info())),
            // What Mutagen makes of it is its own.
            Err(_) => return Ok(None),
        };
        let (url, place) = match &event {
            Event::Scalar(value, style, anchor, _) => {
                if *anchor != 0 && is_tunnel_url(value) {
                    anchors.insert(*anchor, value.to_string());
                }
                (Some(value.as_ref()).filter(|value| is_tunnel_url(value)), source.scalar(span, *style, value))
            }
            Event::Alias(anchor) => (anchors.get(anchor).map(String::as_str), source.alias(span)),
            _ => (None, None),
        };
        if let (Some(url), Some(kind)) = (url, kind_of_place(&stack)) {
            let line = span.start.line();
            let place = place.ok_or_else(|| {
                at(line, Code::Config, "the URL is not written in one piece").with_hint("write it on one line")
            })?;
            let replaced = replace(url, kind).map_err(|error| {
                let hint = error.hint().to_owned();
                at(line, error.code, &error.text).with_hint(hint)
            })?;
            // A string of JSON is one of YAML too.
            edits.push((place, serde_json::Value::from(replaced).to_string()));
        }
        step(&mut stack, &event);
    }
    Ok((!edits.is_empty()).then(|| apply(text, edits)))
}

fn at(line: usize, code: Code, text: &str) -> Error {
    Error::new(code, format!("line {line}: {text}"))
}

/// Follows an event into or out of a collection.
fn step(stack: &mut Vec<Frame>, event: &Event<'_>) {
    match event {
        Event::MappingStart(..) => stack.push(Frame::Mapping { key: None }),
        Event::SequenceStart(..) => stack.push(Frame::Sequence),
        Event::MappingEnd | Event::SequenceEnd => {
            stack.pop();
            node(stack, "");
        }
        Event::Scalar(value, ..) => node(stack, value),
        Event::Alias(_) => node(stack, ""),
        _ => {}
    }
}

/// Notes that a whole node has been read, which is a key or ends one's value.
fn node(stack: &mut [Frame], name: &str) {
    if let Some(Frame::Mapping { key }) = stack.last_mut() {
        *key = match key {
            None => Some(name.to_owned()),
            Some(_) => None,
        };
    }
}

/// What a URL here is for, where this is the place of one.
fn kind_of_place(stack: &[Frame]) -> Option<Kind> {
    let mut path = Vec::with_capacity(stack.len());
    for frame in stack {
        match frame {
            Frame::Mapping { key: Some(key) } => path.push(key.as_str()),
            _ => return None,
        }
    }
    // What is merged stands in the mapping itself.
    path.retain(|key| *key != "<<");
    match path.as_slice() {
        ["sync", _, "alpha" | "beta"] => Some(Kind::Synchronization),
        ["forward", _, "source" | "destination"] => Some(Kind::Forwarding),
        _ => None,
    }
}

/// A text whose characters are counted, as the parser does.
struct Source<'a> {
    text: &'a str,
    /// Where each character begins, and where the last ends.
    starts: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str) -> Source<'a> {
        let starts = text.char_indices().map(|(start, _)| start).chain([text.len()]).collect();
        Source { text, starts }
    }

    fn bytes(&self, span: Span) -> Option<Range<usize>> {
        Some(*self.starts.get(span.start.index())?..*self.starts.get(span.end.index())?)
    }

    /// Where a scalar's own text stands in its span, quotes and all; `None` where it is not in one piece.
    fn scalar(&self, span: Span, style: ScalarStyle, value: &str) -> Option<Range<usize>> {
        let range = self.bytes(span)?;
        let mut rest = self.text.get(range)?.trim_start();
        // An anchor and a tag belong to the span, and stay.
        while rest.starts_with(['&', '!']) {
            rest = rest.split_once(char::is_whitespace)?.1.trim_start();
        }
        let length = match style {
            ScalarStyle::Plain => rest.starts_with(value).then_some(value.len())?,
            ScalarStyle::SingleQuoted => single_quoted(rest)?,
            ScalarStyle::DoubleQuoted => double_quoted(rest)?,
            ScalarStyle::Literal | ScalarStyle::Folded => return None,
        };
        self.from(rest, length)
    }

    fn alias(&self, span: Span) -> Option<Range<usize>> {
        let rest = self.text.get(self.bytes(span)?)?.trim_start();
        let ends = |character: char| character.is_whitespace() || matches!(character, ',' | '[' | ']' | '{' | '}');
        rest.starts_with('*').then(|| self.from(rest, rest.find(ends).unwrap_or(rest.len())))?
    }

    /// The range of the first `length` bytes of `part`, which is a part of the text.
    fn from(&self, part: &str, length: usize) -> Option<Range<usize>> {
        let start = (part.as_ptr() as usize).checked_sub(self.text.as_ptr() as usize)?;
        Some(start..start + length)
    }
}

/// The length of a string in single quotes, in which two stand for one.
fn single_quoted(text: &str) -> Option<usize> {
    let mut at = 1;
    loop {
        at += text.get(at..)?.find('\'')? + 1;
        if !text.get(at..)?.starts_with('\'') {
            return text.starts_with('\'').then_some(at);
        }
        at += 1;
    }
}

/// The length of a string in double quotes.
fn double_quoted(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    let end = text.char_indices().skip(1).find(|(_, character)| {
        let is_end = *character == '"' && !is_escaped;
        is_escaped = *character == '\\' && !is_escaped;
        is_end
    });
    text.starts_with('"').then_some(end?.0 + 1)
}

/// The text with these ranges, which are in order, replaced.
fn apply(text: &str, edits: Vec<(Range<usize>, String)>) -> String {
    let mut result = text.to_owned();
    for (place, new) in edits.into_iter().rev() {
        result.replace_range(place, &new);
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewritten(text: &str) -> Option<String> {
        rewrite(text, |url, kind| Ok(format!("{}:{}", if kind == Kind::Forwarding { "f" } else { "s" }, &url[11..])))
            .unwrap()
    }

    #[test]
    fn urls_are_replaced_where_mutagen_reads_them_and_nothing_else_changes() {
        for (text, expected) in [
            (
                "sync:\n  a:\n    beta: tstunnel://h/p?e=x:1&c=d # é\n",
                "sync:\n  a:\n    beta: \"s:h/p?e=x:1&c=d\" # é\n",
            ),
            (
                "# é\r\nsync: {a: {alpha: ., beta: 'tstunnel://it''s'}}\r\n",
                "# é\r\nsync: {a: {alpha: ., beta: \"s:it's\"}}\r\n",
            ),
            ("sync: {a: {\"beta\":\"TSTUNNEL://\\x41\\\"\"}}", "sync: {a: {\"beta\":\"s:A\\\"\"}}"),
            (
                "forward:\n  w:\n    destination:\n      tstunnel://h\n",
                "forward:\n  w:\n    destination:\n      \"f:h\"\n",
            ),
            ("sync:\n  defaults: {beta: tstunnel://h, }", "sync:\n  defaults: {beta: \"s:h\", }"),
            (
                "sync:\n  a:\n    beta: !!str &x tstunnel://h\n  b: {alpha: *x}",
                "sync:\n  a:\n    beta: !!str &x \"s:h\"\n  b: {alpha: \"s:h\"}",
            ),
            (
                "commands: {x: &x tstunnel://h}\nsync: {a: {beta: *x }}",
                "commands: {x: &x tstunnel://h}\nsync: {a: {beta: \"s:h\" }}",
            ),
            (
                "sync: {a: &a {beta: tstunnel://h}, b: {<<: *a}, c: {<<: {beta: tstunnel://i}}}",
                "sync: {a: &a {beta: \"s:h\"}, b: {<<: *a}, c: {<<: {beta: \"s:i\"}}}",
            ),
            ("\u{feff}sync: {? a : {? beta : tstunnel://h}}", "\u{feff}sync: {? a : {? beta : \"s:h\"}}"),
        ] {
            assert_eq!(rewritten(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_only_looks_like_a_url_or_stands_elsewhere_stays() {
        for text in [
            "sync:\n  a:\n    # beta: tstunnel://h\n    beta: /tstunnel://h\n",
            "beforeCreate:\n  - tstunnel://h\n  - |\n    sync: {a: {beta: tstunnel://h}}\ncommands:\n  beta: tstunnel://h\n",
            "sync: {a: {configurationBeta: {beta: tstunnel://h}}, tstunnel://h: {}, beta: tstunnel://h}",
            "sync: {a: {beta: [tstunnel://h]}}\nforward: {a: {beta: tstunnel://h}}\n",
            "sync: {[beta]: {beta: {}}, a: {tstunnel://h: beta}}",
            "",
        ] {
            assert_eq!(rewritten(text), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_refused_by_its_line() {
        let refusal =
            |text: &str| rewrite(text, |_, _| Err(Error::new(Code::Usage, "why").with_hint("how"))).unwrap_err();
        let error = refusal("sync:\n  a:\n    beta: >-\n      tstunnel://h\n");
        assert!(error.text.contains("the URL is not written in one piece"), "{error}");
        let error = refusal("x: 1\nsync: {a: {beta: tstunnel://h}}");
        assert_eq!((error.code, error.text.as_str(), error.hint()), (Code::Usage, "line 2: why", "how"));
        let error = refusal("a: tstunnel://h\nb: [\n");
        assert!(error.code == Code::Config && error.text.starts_with("line "), "{error}");
    }

    #[test]
    fn deep_and_endless_documents_come_to_an_end() {
        for text in
            ["tstunnel: [".repeat(10_000), "[".repeat(100_000) + "tstunnel:", "a: &a [*a, *a] # tstunnel:".into()]
        {
            drop(rewrite(&text, |_, _| Ok(String::new())));
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "(sync:|forward:|\n *|[a-z]+: |beta: |- |tstunnel://h|['\"{}\\[\\],&*!|>#é\r\t]){0,40}") {
            drop(rewrite(&text, |_, _| Ok("x".to_owned())));
        }

        #[test]
        fn a_url_is_what_it_was_by_json_too(path in any::<String>()) {
            let text = format!("sync: {{a: {{beta: {}}}}}", serde_json::Value::from(format!("tstunnel://{path}")));
            if let Ok(Some(new)) = rewrite(&text, |url, _| Ok(url.to_owned())) {
                prop_assert_eq!(new, text);
            }
        }
    }
}

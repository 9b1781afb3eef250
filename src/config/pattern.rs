//! Patterns of the configuration files: `*` is any text, `?` any one character, everything else itself. The pattern
//! must cover the whole text. Case matters: callers that want it folded fold both. No I/O.

/// Whether `pattern` covers the whole of `text`.
///
/// `*` crosses every separator (dots, slashes, spaces) and matches the empty text too. There is no escape. Only the
/// last `*` is ever tried again, so the time is at most the product of the two lengths.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (mut rest_pattern, mut rest_text) = (pattern, text);
    // What stands behind the last `*`, and where the text that it has not swallowed yet begins.
    let mut retry: Option<(&str, &str)> = None;
    loop {
        let mut after_wildcard = rest_pattern.chars();
        let mut after_character = rest_text.chars();
        match (after_wildcard.next(), after_character.next()) {
            (Some('*'), _) => {
                rest_pattern = after_wildcard.as_str();
                retry = Some((rest_pattern, rest_text));
                continue;
            }
            (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {
                rest_pattern = after_wildcard.as_str();
                rest_text = after_character.as_str();
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        let Some((star_pattern, star_text)) = retry else { return false };
        let mut swallowed = star_text.chars();
        if swallowed.next().is_none() {
            return false;
        }
        rest_pattern = star_pattern;
        rest_text = swallowed.as_str();
        retry = Some((rest_pattern, rest_text));
    }
}

/// Like [`matches()`], with the letters of ASCII folded: for names of hosts.
pub fn matches_folded(pattern: &str, text: &str) -> bool {
    matches(&pattern.to_ascii_lowercase(), &text.to_ascii_lowercase())
}

/// Whether `text` has a wildcard in it, and so names more than itself.
pub fn has_wildcard(text: &str) -> bool {
    text.contains(['*', '?'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wildcards_cover_the_whole_text() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "anything at/all"),
            ("**", "x"),
            ("dev-*", "dev-"),
            ("dev-*", "dev-7"),
            ("dev-?", "dev-ä"),
            ("*.example.org", "a.b.example.org"),
            ("a*b*c", "a--b-b--c-c"),
            ("*a*a*", "aa"),
            ("tcp:127.0.0.1:*", "tcp:127.0.0.1:80"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "x"),
            ("?", ""),
            ("dev-?", "dev-"),
            ("dev-?", "dev-77"),
            ("dev", "dev-7"),
            ("dev-7", "dev"),
            ("Dev", "dev"),
            ("*.example.org", "example.org"),
            ("*.example.org", "a.example.org.evil"),
            ("a*b", "acbc"),
            ("[a-z]", "a"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_do_not_take_exponential_time() {
        assert!(!matches(&"a*".repeat(200), &"a".repeat(5_000).replace('a', "aa").replacen('a', "b", 1)));
        assert!(!matches(&format!("{}b", "*a".repeat(200)), &"a".repeat(5_000)));
    }

    /// The definition, in the plainest form.
    fn obviously_matches(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], _) => text.is_empty(),
            (['*', more @ ..], _) => (0..=text.len()).any(|skipped| obviously_matches(more, &text[skipped..])),
            (['?', more @ ..], [_, rest @ ..]) => obviously_matches(more, rest),
            ([wanted, more @ ..], [found, rest @ ..]) => wanted == found && obviously_matches(more, rest),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_plainest_definition(pattern in "[ab*?é]{0,8}", text in "[abé]{0,10}") {
            let (pattern_chars, text_chars): (Vec<_>, Vec<_>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(matches(&pattern, &text), obviously_matches(&pattern_chars, &text_chars));
        }

        #[test]
        fn a_text_without_wildcards_matches_itself_alone(text in "[^*?]{0,20}", other in "[^*?]{0,20}") {
            prop_assert!(matches(&text, &text));
            prop_assert_eq!(matches(&text, &other), text == other);
        }
    }
}

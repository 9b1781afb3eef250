//! Patterns of `*` and `?` that must match a whole text; no I/O.
//!
//! A pattern and a text come in, yes or no goes out. Nothing recurses, and the work is bounded by the two lengths
//! multiplied, whatever the pattern is: a star that was followed by a mismatch is extended by one character at a time,
//! and only the last star is ever revisited.

/// Whether `pattern` matches the whole of `text`, upper and lower case of ASCII aside: for names of hosts.
///
/// `*` stands for any characters, also none, and `?` for exactly one. There is no escape and no other special character.
pub fn matches(pattern: &str, text: &str) -> bool {
    matches_by(pattern, text, |a, b| a.eq_ignore_ascii_case(&b))
}

/// Like [`matches()`], but upper and lower case differ: for command lines, paths and principals, where two texts that differ
/// in case are two things.
pub fn matches_exactly(pattern: &str, text: &str) -> bool {
    matches_by(pattern, text, |a, b| a == b)
}

fn matches_by(pattern: &str, text: &str, same: impl Fn(char, char) -> bool) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    // What follows the last star, and the text from which that is tried next.
    let mut last_star = None;
    loop {
        let mut rest_of_pattern = pattern.clone();
        let mut rest_of_text = text.clone();
        match (rest_of_pattern.next(), rest_of_text.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                last_star = Some((rest_of_pattern.clone(), text.clone()));
                pattern = rest_of_pattern;
                continue;
            }
            // The text has ended and the pattern wants more: a longer star leaves it even less.
            (Some(_), None) => return false,
            (Some(wanted), Some(found)) if wanted == '?' || same(wanted, found) => {
                (pattern, text) = (rest_of_pattern, rest_of_text);
                continue;
            }
            (_, Some(_)) => {}
        }
        // The last star takes one character more.
        let Some((after_star, next_try)) = &mut last_star else { return false };
        if next_try.next().is_none() {
            return false;
        }
        (pattern, text) = (after_star.clone(), next_try.clone());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_text() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "anything at all"),
            ("**", "x"),
            ("dev-?", "dev-7"),
            ("dev-*", "dev-"),
            ("*.example.net", "a.b.example.net"),
            ("a*b*c", "aXXbYYc"),
            ("a*bc", "abcbc"),
            ("?", "ä"),
            ("ünï*", "ünïcode"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
            assert!(matches_exactly(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "x"),
            ("?", ""),
            ("dev", "dev-7"),
            ("dev-?", "dev-77"),
            ("*.example.net", "example.net"),
            ("a*b", "abc"),
            ("a*bc", "abcb"),
            ("??", "ä"),
            ("[ab]", "a"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn only_names_fold_case() {
        assert!(matches("DEV-*", "dev-Seven"));
        assert!(!matches_exactly("DEV-*", "dev-Seven"));
    }

    #[test]
    fn a_hostile_pattern_costs_no_more_than_its_length_times_the_texts() {
        let pattern = "*a".repeat(2_000) + "b";
        assert!(!matches(&pattern, &"a".repeat(4_000)));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_simple_recursive_definition(pattern in "[ab?*]{0,7}", text in "[ab]{0,7}") {
            fn by_definition(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.split_first(), text.split_first()) {
                    (None, None) => true,
                    (None, Some(_)) => false,
                    (Some((b'*', rest)), _) => (0..=text.len()).any(|skipped| by_definition(rest, &text[skipped..])),
                    (Some(_), None) => false,
                    (Some((wanted, rest)), Some((found, text))) => {
                        (*wanted == b'?' || wanted == found) && by_definition(rest, text)
                    }
                }
            }
            prop_assert_eq!(matches(&pattern, &text), by_definition(pattern.as_bytes(), text.as_bytes()));
        }
    }
}

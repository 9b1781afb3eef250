//! How `ssh_config(5)` writes words, times and flags. Pure.

use std::time::Duration;

/// What separates words.
pub(super) const BLANK: [char; 5] = [' ', '\t', '\r', '\n', '\u{c}'];

/// `yes` or `no`.
pub(super) fn flag(value: &str) -> Option<bool> {
    match value.to_lowercase().as_str() {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    }
}

/// A time as in TIME FORMATS of `sshd_config(5)`: `90`, `1m30`, `2h`.
pub(super) fn time(text: &str) -> Option<Duration> {
    let mut seconds = 0u64;
    let mut rest = text;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = rest.split_at(digits);
        let mut unit = unit.chars();
        let scale = match unit.next().map(|unit| unit.to_ascii_lowercase()) {
            None | Some('s') => 1,
            Some('m') => 60,
            Some('h') => 60 * 60,
            Some('d') => 24 * 60 * 60,
            Some('w') => 7 * 24 * 60 * 60,
            Some(_) => return None,
        };
        seconds = number.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(seconds)?;
        rest = unit.as_str();
        if rest.is_empty() {
            // OpenSSH keeps it in an int.
            return i32::try_from(seconds).is_ok().then(|| Duration::from_secs(seconds));
        }
    }
}

/// Splits a value at blanks, with `"…"`, `'…'` and backslashes before quotation marks, backslashes and spaces as in
/// OpenSSH's `argv_split`; a `#` at a word's beginning ends the line. `None` where a quotation is not closed.
pub(super) fn split_words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', _) if characters.peek().is_some_and(|next| matches!(next, '\'' | '"' | '\\' | ' ')) => {
                word.get_or_insert_default().extend(characters.next());
            }
            (mark, Some(open)) if mark == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (blank, None) if BLANK.contains(&blank) => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_openssh_reads_them() {
        assert_eq!(time("1m30"), Some(Duration::from_secs(90)));
        assert_eq!(time("1W2d3H"), Some(Duration::from_secs(604_800 + 172_800 + 10_800)));
        for bad in ["", "x", "1x", "-1", "1.5", "m", "99999999999999999999", "4294967296", "1é"] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }
}

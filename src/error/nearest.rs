//! A misspelt name → the one that was meant. Pure.

/// The candidate that `word` was most likely meant to be: the nearest, within a third of its length. Case does not count,
/// nor does a hyphen for an underscore.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.chars().count().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours.
fn distance(from: &str, to: &str) -> usize {
    // A word this long is no misspelling of a name, and the table below would grow with it.
    let from: Vec<char> = from.chars().take(64).map(folded).collect();
    let to: Vec<char> = to.chars().map(folded).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, left) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, right) in to.iter().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut least =
                (at(&above, j) + usize::from(left != right)).min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && from.get(i - 1) == Some(right) && to.get(j - 1) == Some(left);
            if swapped {
                least = least.min(at(&before, j - 1) + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

fn folded(letter: char) -> char {
    if letter == '-' { '_' } else { letter.to_ascii_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::COMMANDS;

    #[test]
    fn the_nearest_name_is_suggested_and_nothing_far_off() {
        let names = || COMMANDS.iter().map(|row| row.name);
        for (word, meant) in
            [("conect", "connect"), ("uplaod", "upload"), ("Exec", "exec"), ("scpp", "scp"), ("hlep", "help")]
        {
            assert_eq!(nearest(word, names()), Some(meant), "{word}");
        }
        for far in ["", "frobnicate", "x", &"connect".repeat(1000)] {
            assert_eq!(nearest(far, names()), None, "{far}");
        }
    }

    #[test]
    fn case_and_the_kind_of_hyphen_do_not_count() {
        let known = ["endpoint", "cert", "connect_timeout"];
        assert_eq!(nearest("endpont", known), Some("endpoint"));
        assert_eq!(nearest("Connect-Timeout", known), Some("connect_timeout"));
        assert_eq!(nearest("Cert", known), Some("cert"));
        assert_eq!(nearest("proxy", known), None);
    }

    #[test]
    fn distances_count_insertions_deletions_substitutions_and_swaps() {
        for (from, to, expected) in [
            ("", "", 0),
            ("abc", "", 3),
            ("", "abc", 3),
            ("abc", "acb", 1),
            ("abc", "adc", 1),
            ("abc", "abcd", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }
}

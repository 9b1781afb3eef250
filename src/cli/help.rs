//! The table of [`super::options`] → pages of help. Pure: who asked for a page prints it.

use super::options::{COMMANDS, CommandRow, Commanded, OptionRow, Words, group, options_of};

/// The page of `tstunnel --help`: at most 24 lines of 80 columns.
pub fn main_help(with_server: bool) -> String {
    let mut rows: Vec<(String, &str)> = Vec::new();
    for row in COMMANDS.iter().filter(|row| with_server || !row.server) {
        match row.name.split_once(' ') {
            None => rows.push((format!("{} {}", row.name, row.operands), row.sentence)),
            Some((first, name)) => match rows.last_mut() {
                Some((last, _)) if last.split(' ').next() == Some(first) => *last = format!("{last}|{name}"),
                _ => rows.push((format!("{first} {name}"), group(first).unwrap_or_default())),
            },
        }
    }
    format!(
        "tstunnel carries Mutagen, commands and streams to hosts behind one TLS endpoint.\n\n\
         Usage: tstunnel COMMAND [OPTIONS] ...\n\n{}\n{}\n\
         `tstunnel help COMMAND` says more. Configuration: ~/.config/tstunnel/config.toml\n",
        columns(&rows),
        columns(&option_columns(None)),
    )
}

/// The page of `tstunnel COMMAND --help`.
pub fn command_help(row: &CommandRow) -> String {
    let usage = match row.words {
        Words::Verbatim => format!("Usage: tstunnel {} {}", row.name, row.operands),
        _ => format!("Usage: tstunnel {} [OPTIONS] {}", row.name, row.operands),
    };
    let mut page = format!("tstunnel {}: {}\n\n{}\n\n", row.name, row.sentence, usage.trim_end());
    if !row.more.is_empty() {
        page.push_str(&row.more.join("\n"));
        page.push_str("\n\n");
    }
    // Options of a command that is read word for word are the other program's.
    if row.words != Words::Verbatim {
        page.push_str(&columns(&option_columns(Some(row.id))));
    }
    format!("{}\n", page.trim_end())
}

/// The page of a group, as `tstunnel pki --help`.
pub fn group_help(name: &str) -> String {
    let sentence = group(name).unwrap_or_default();
    let in_group = COMMANDS.iter().filter(|row| row.name.split_once(' ').is_some_and(|(first, _)| first == name));
    let rows: Vec<(String, &str)> =
        in_group.map(|row| (format!("{} {}", row.name, row.operands).trim_end().to_owned(), row.sentence)).collect();
    format!("tstunnel {name}: {sentence}\n\nUsage: tstunnel {name} COMMAND [OPTIONS] ...\n\n{}", columns(&rows))
}

fn option_columns(command: Option<Commanded>) -> Vec<(String, &'static str)> {
    let column = |row: &OptionRow| {
        let short = row.short.map_or_else(String::new, |short| format!("-{short}, "));
        let value = row.value.map_or_else(String::new, |value| match value.starts_with('[') {
            true => value.to_owned(),
            false => format!(" {value}"),
        });
        format!("{short}--{}{value}", row.long)
    };
    options_of(command).map(|row| (column(row), row.sentence)).collect()
}

fn columns(rows: &[(String, &str)]) -> String {
    let width = rows.iter().map(|(left, _)| left.trim_end().len()).max().unwrap_or(0);
    rows.iter().map(|(left, right)| format!("  {:width$}  {right}\n", left.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> Vec<String> {
        let mut pages = vec![main_help(true), main_help(false), group_help("pki")];
        pages.extend(COMMANDS.iter().map(command_help));
        pages
    }

    #[test]
    fn every_page_fits_a_screen() {
        for page in pages() {
            assert!(page.lines().count() <= 24, "{page}");
            for line in page.lines() {
                assert!(line.chars().count() <= 80, "{line}");
                assert_eq!(line, line.trim_end());
            }
            assert!(page.ends_with('\n') && !page.ends_with("\n\n"), "{page}");
        }
    }

    #[test]
    fn a_client_alone_does_not_offer_the_server() {
        let page = main_help(false);
        assert!(!page.contains("serve") && !page.contains("pki"), "{page}");
    }
}

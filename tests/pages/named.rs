//! What the manual pages and the README name is there, and what is there is named in them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use tstunnel::cli::options::{COMMANDS, Commanded, OPTIONS, options_of};
use tstunnel::cli::{self, Command};
use tstunnel::client::check::report::Part;
use tstunnel::error::Code;
use tstunnel::stdio::STATUS_PIPE;

use crate::support::manual::literal_blocks;
use crate::{offers, project, read};

/// The manual pages, by file name.
fn pages() -> Vec<(String, String)> {
    let files =
        std::fs::read_dir(project("man")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut pages: Vec<(String, String)> = files.map(|name| (name.clone(), read(&format!("man/{name}")))).collect();
    pages.sort();
    assert!(pages.len() > 5, "{pages:?}");
    pages
}

/// The words behind each macro `name`, up to the next macro or punctuation.
fn words_of(page: &str, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in page.lines().filter_map(|line| line.strip_prefix('.')) {
        let mut counts = false;
        for word in line.split(' ').map(|word| word.trim_start_matches("\\&")) {
            match word {
                _ if word == name => counts = true,
                "," | ";" | "." | ":" | ")" | "|" | "..." => {}
                // Every other macro has two letters.
                _ if word.len() == 2 && word.starts_with(|first: char| first.is_ascii_uppercase()) => counts = false,
                _ if counts => drop(found.insert(word.to_owned())),
                _ => {}
            }
        }
    }
    found
}

#[test]
fn every_page_that_a_page_or_the_readme_refers_to_is_there() {
    let readme = read("README.md");
    let in_readme = readme.match_indices("tstunnel").filter_map(|(at, _)| readme[at..].split([' ', '\n']).next());
    let mut referred: BTreeSet<String> = in_readme
        .filter_map(|word| word.split_once('(').zip(word.split_once(')')))
        .map(|((page, _), (before, _))| format!("{page}.{}", &before[page.len() + 1..]))
        .collect();
    for (_, page) in pages() {
        let lines = page.lines().filter_map(|line| line.strip_prefix(".Xr tstunnel"));
        referred.extend(
            lines.map(|line| format!("tstunnel{}", line.trim_end_matches([' ', ',', '.', ';', ')']).replace(' ', "."))),
        );
    }
    assert_eq!(referred, pages().into_iter().map(|(name, _)| name).collect());
}

/// A section's lines.
fn section<'a>(page: &'a str, name: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("\n.Sh {name}\n")).unwrap_or_else(|| panic!("there is no section {name}"));
    rest.split("\n.Sh ").next().unwrap()
}

/// The tags of a section's lists, without their macro.
fn tags(section: &str, name: &str) -> BTreeSet<String> {
    let tags = section.lines().filter_map(|line| line.strip_prefix(".It ")?.strip_prefix(name));
    tags.map(|tag| tag.trim().to_owned()).collect()
}

#[test]
fn every_option_and_command_that_a_page_names_is_in_the_table() {
    // What `ssh` and `passwd` take.
    let foreign = ["c", "l", "o", "-"];
    for (name, page) in pages() {
        for option in words_of(&page, "Fl") {
            let is_known = match option.strip_prefix('-') {
                Some(long) => long.is_empty() || OPTIONS.iter().any(|row| row.long == long),
                None => OPTIONS.iter().any(|row| row.short.map(String::from) == Some(option.clone())),
            };
            assert!(is_known || foreign.contains(&option.as_str()), "{name} names the option -{option}");
        }
        let words: BTreeSet<&str> = COMMANDS.iter().flat_map(|row| row.name.split(' ')).collect();
        for command in words_of(&page, "Cm") {
            assert!(words.contains(command.as_str()), "{name} names the command {command}");
        }
    }
}

#[test]
fn the_servers_page_names_every_option_of_serve() {
    let named = words_of(section(&read("man/tstunnel-serve.8"), "SYNOPSIS"), "Fl");
    for row in options_of(Some(Commanded::Serve)).filter(|row| row.long != "help") {
        assert!(named.contains(&format!("-{}", row.long)), "--{} is missing", row.long);
    }
}

#[test]
fn every_code_and_exit_status_is_documented_and_no_other() {
    let page = read("man/tstunnel.1");
    let codes: BTreeSet<String> = Code::ALL.iter().map(|code| code.name().to_owned()).collect();
    assert_eq!(tags(section(&page, "DIAGNOSTICS"), "Li"), codes);
    let both = |code: &Code| [true, false].map(|stands_in| code.exit_status(stands_in).to_string());
    let mut statuses: BTreeSet<String> = Code::ALL.iter().flat_map(both).collect();
    statuses.extend([0, STATUS_PIPE].map(|status| status.to_string()));
    statuses.extend(Part::ALL.iter().map(|part| part.status().to_string()));
    assert_eq!(tags(section(&page, "EXIT STATUS"), "Li"), statuses);
    let protocol = read("man/tstunnel-protocol.7");
    for code in Code::ALL.iter().filter(|code| code.http_status().is_some()) {
        assert!(words_of(&protocol, "Li").contains(code.name()), "tstunnel-protocol(7) does not say {code}");
    }
}

/// The variables that the program reads by their names, which stand in quotes in its source.
fn variables() -> BTreeSet<String> {
    let mut variables = BTreeSet::new();
    let mut folders = vec![project("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            let code = source.split("#[cfg(test)]").next().unwrap();
            let quoted = code.split("(\"TSTUNNEL_").skip(1).filter_map(|rest| rest.split_once('"'));
            variables.extend(quoted.map(|(name, _)| format!("TSTUNNEL_{name}")).filter(|name| is_variable(name)));
        }
    }
    variables
}

fn is_variable(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') && !name.ends_with('_')
}

#[test]
fn every_variable_is_documented_and_no_other() {
    let variables = variables();
    assert!(variables.len() > 6, "{variables:?}");
    let documented = words_of(section(&read("man/tstunnel.1"), "ENVIRONMENT"), "Ev");
    let own = |names: BTreeSet<String>| {
        names.into_iter().filter(|name| name.starts_with("TSTUNNEL_")).collect::<BTreeSet<_>>()
    };
    assert_eq!(own(documented), variables);
    for (name, page) in pages() {
        let unknown: Vec<String> = own(words_of(&page, "Ev")).difference(&variables).cloned().collect();
        assert!(unknown.is_empty(), "{name} names {unknown:?}");
    }
}

/// The lines of a text that begin with `tstunnel` and a command, as a shell splits them.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| {
        line.strip_prefix("tstunnel ").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()))
    });
    lines.map(split).collect()
}

/// Words as a shell has them, where nothing but single quotes and a comment at the end are special.
fn split(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for letter in line.chars() {
        match letter {
            '\'' => is_quoted = !is_quoted,
            '#' if !is_quoted && words.last().is_some_and(String::is_empty) => break,
            ' ' if !is_quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_line_in_the_pages_and_the_readme_is_one() {
    let mut texts: Vec<(String, String)> =
        pages().into_iter().map(|(name, page)| (name, literal_blocks(&page).concat())).collect();
    let readme = read("README.md");
    let indented = readme.lines().filter(|line| line.starts_with("    ")).collect::<Vec<_>>().join("\n");
    texts.push(("README.md".to_owned(), indented));
    let mut count = 0;
    for (name, text) in texts {
        for line in command_lines(&text) {
            let arguments: Vec<OsString> = line.iter().skip(1).map(OsString::from).collect();
            let parsed = cli::parse(OsStr::new("tstunnel"), arguments);
            assert!(parsed.is_ok_and(|command| !matches!(command, Command::Print(_))), "{name}: {line:?}");
            count += 1;
        }
    }
    assert!(count > 20, "{count} were found");
}

#[test]
fn the_main_help_names_every_command_and_fits_a_screen() {
    let help = match cli::parse(OsStr::new("tstunnel"), vec!["--help".into()]).unwrap() {
        Command::Print(help) => help,
        other => panic!("{other:?}"),
    };
    for (name, _) in offers::names() {
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{name} "))), "{name}: {help}");
    }
    assert!(help.lines().count() <= 24 && help.lines().all(|line| line.chars().count() <= 80), "{help}");
}

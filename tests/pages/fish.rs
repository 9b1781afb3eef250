//! The table → the parts of the completions for fish.

use tstunnel::cli::options::{COMMANDS, CommandRow, Kind, OptionRow, Words, options_of};

use crate::offers::{groups, has_remote_command, names, operands, options, required_value, valued};
use crate::part::Part;

/// Where there is nothing in front of the cursor but `tstunnel`.
const FIRST: &str = "__tstunnel_at \"\" 0";

pub(crate) fn parts() -> Vec<Part> {
    let valued: Vec<String> = valued().iter().map(|long| format!("--{long}")).collect();
    let group_names: Vec<&str> = groups().iter().map(|(group, _)| *group).collect();
    vec![
        ("valued", format!("    set -l valued {}\n", valued.join(" "))),
        ("groups", format!("    set -l groups {}\n", group_names.join(" "))),
        ("commands", commands()),
    ]
}

fn commands() -> String {
    let mut text: String = names().iter().map(|(name, sentence)| name_line(FIRST, name, sentence)).collect();
    for row in options_of(None) {
        text.push_str(&option_line(FIRST, row));
    }
    for (group, commands) in groups() {
        for (name, sentence) in commands {
            text.push_str(&name_line(&format!("__tstunnel_at {group} 1"), name, sentence));
        }
    }
    text + &COMMANDS.iter().map(command).collect::<String>()
}

fn command(row: &CommandRow) -> String {
    let name = if row.name.contains(' ') { format!("\"{}\"", row.name) } else { row.name.to_owned() };
    if row.words == Words::Verbatim {
        return line(&format!("__tstunnel_in {name}"), "-a '(__fish_complete_subcommand --fcs-skip=1)'");
    }
    let mut text = String::new();
    let before = if has_remote_command(row) { " before" } else { "" };
    for option in options(row) {
        text.push_str(&option_line(&format!("__tstunnel_in {name}{before}"), option));
    }
    for (index, (_, kind)) in operands(row).iter().enumerate() {
        if let Some(offer) = offer(*kind) {
            text.push_str(&line(&format!("__tstunnel_at {name} {}", index + 1), offer));
        }
    }
    text
}

fn name_line(condition: &str, name: &str, sentence: &str) -> String {
    line(condition, &format!("-a {name} -d {}", quoted(sentence)))
}

fn option_line(condition: &str, row: &OptionRow) -> String {
    let short = row.short.map_or_else(String::new, |short| format!("-s {short} "));
    let value = match required_value(row).map(Kind::of) {
        None => String::new(),
        Some(Kind::File) => "-r -F ".to_owned(),
        Some(kind) => offer(kind).map_or_else(|| "-x ".to_owned(), |offer| format!("-x {offer} ")),
    };
    line(condition, &format!("{short}-l {} {value}-d {}", row.long, quoted(row.sentence)))
}

fn offer(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::File => Some("-F"),
        Kind::Folder => Some("-a '(__fish_complete_directories)'"),
        Kind::Host => Some("-a '(__tstunnel_hosts)'"),
        Kind::Command => Some("-a '(complete -C \"tstunnel \")'"),
        Kind::Text => None,
    }
}

fn line(condition: &str, what: &str) -> String {
    format!("complete -c tstunnel -n '{condition}' {what}\n")
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

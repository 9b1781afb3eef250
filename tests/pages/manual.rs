//! The table and the list of codes → the parts of tstunnel(1).

use tstunnel::cli::options::{COMMANDS, CommandRow, Commanded, OPTIONS, On, OptionRow, Words};
use tstunnel::error::{Code, Retry};

use crate::mdoc::{escaped, prose, usage};
use crate::offers::required_value;
use crate::part::Part;

/// From how many commands on an option is told of once for all of them.
const SHARED: usize = 3;

pub(crate) fn parts() -> Vec<Part> {
    vec![("synopsis", synopsis()), ("commands", commands()), ("options", shared_options()), ("codes", codes())]
}

fn synopsis() -> String {
    let line = |row: &CommandRow| {
        let options = if row.words == Words::Verbatim { "" } else { ".Op Ar option ...\n" };
        let operands = usage(row.operands);
        let operands = if operands.is_empty() { String::new() } else { format!(".{operands}\n") };
        format!(".Nm\n.Cm {}\n{options}{operands}", row.name)
    };
    COMMANDS.iter().map(line).collect()
}

fn commands() -> String {
    let mut text = ".Bl -tag -width Ds\n".to_owned();
    for row in COMMANDS {
        text.push_str(format!(".It Cm {} {}", row.name, usage(row.operands)).trim_end());
        text.push_str(&format!("\n{}", prose(&sentence(row.sentence))));
        text.push_str(&help_lines(row.more));
        text.push_str(&prose(row.manual));
        let own: Vec<&OptionRow> = OPTIONS
            .iter()
            .filter(|option| commands_of(option).is_some_and(|on| on.len() < SHARED && on.contains(&row.id)))
            .collect();
        if !own.is_empty() {
            text.push_str(&list(&own));
        }
    }
    text + ".El\n"
}

/// The options that several commands have in common, with these commands above them.
fn shared_options() -> String {
    let mut text = String::new();
    let mut told: Vec<&[Commanded]> = Vec::new();
    for on in OPTIONS.iter().filter_map(commands_of).filter(|on| on.len() >= SHARED) {
        if told.contains(&on) {
            continue;
        }
        told.push(on);
        let group: Vec<&OptionRow> = OPTIONS.iter().filter(|option| commands_of(option) == Some(on)).collect();
        text.push_str(&format!(".Ss Options of {}\n{}", names(on), list(&group)));
    }
    let rest: Vec<&OptionRow> = OPTIONS.iter().filter(|option| commands_of(option).is_none()).collect();
    text + ".Ss Options of every command, and of none\n" + &list(&rest)
}

fn codes() -> String {
    let mut text = ".Bl -tag -width Ds\n".to_owned();
    for code in Code::ALL {
        let again = match code.retry() {
            Retry::No => "",
            Retry::Yes => " The same may succeed later.",
            Retry::AfterInstall => " Mutagen takes it for a reason to install its agent.",
        };
        text.push_str(&format!(".It Li {code}\n"));
        text.push_str(&prose(&format!("{} {}{again}", code.meaning(), sentence(code.default_hint()))));
    }
    text + ".El\n"
}

fn list(options: &[&OptionRow]) -> String {
    let mut text = ".Bl -tag -width Ds\n".to_owned();
    for row in options {
        let short = row.short.map_or_else(String::new, |short| format!(" Fl {short} ,"));
        let joined = if row.value.is_some() && required_value(row).is_none() { " Ns" } else { "" };
        let value = row.value.map_or_else(String::new, |value| format!("{joined} {}", usage(value)));
        text.push_str(&format!(".It{short} Fl -{}{value}\n{}", row.long, prose(row.manual)));
    }
    text + ".El\n"
}

/// Lines of help: those that begin with two spaces stay as they are, the rest is prose.
fn help_lines(lines: &[&str]) -> String {
    let mut text = String::new();
    for run in lines.chunk_by(|one, other| one.starts_with("  ") == other.starts_with("  ")) {
        if run[0].starts_with("  ") {
            let shown: String = run.iter().map(|line| format!("{}\n", escaped(line.trim_start()))).collect();
            text.push_str(&format!(".Bd -literal\n{shown}.Ed\n"));
        } else {
            text.push_str(&prose(&run.join(" ")));
        }
    }
    text
}

/// Where an option stands, unless that is everywhere.
fn commands_of(option: &OptionRow) -> Option<&'static [Commanded]> {
    match option.commands {
        On::These(commands) => Some(commands),
        On::Everywhere | On::Top => None,
    }
}

fn names(commands: &[Commanded]) -> String {
    let mut names: Vec<&str> = COMMANDS.iter().filter(|row| commands.contains(&row.id)).map(|row| row.name).collect();
    let last = names.pop().unwrap_or_default();
    format!("{} and {last}", names.join(", "))
}

/// The table's sentence with a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    format!("{}{}.", first.map_or_else(String::new, String::from), letters.as_str())
}

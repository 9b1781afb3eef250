//! The table → the parts of the completions for bash.

use tstunnel::cli::options::{COMMANDS, CommandRow, Kind, OptionRow, Words};

use crate::offers::{groups, has_remote_command, names, operands, options, required_value};
use crate::part::Part;

pub(crate) fn parts() -> Vec<Part> {
    let group = |(group, commands): (&str, Vec<(&str, &str)>)| {
        format!("        {group}) commands='{}' ;;\n", first_of(&commands))
    };
    vec![
        ("names", format!("    names='{}'\n", first_of(&names()))),
        ("groups", groups().into_iter().map(group).collect()),
        ("commands", COMMANDS.iter().map(command).collect()),
    ]
}

fn first_of(pairs: &[(&str, &str)]) -> String {
    pairs.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

fn command(row: &CommandRow) -> String {
    let mut text = format!("        '{}')\n", row.name);
    let mut set = |name: &str, value: String| text.push_str(&format!("            {name}={value}\n"));
    if row.words == Words::Verbatim {
        set("operands", "(program)".to_owned());
    } else {
        let operands: Vec<&str> = operands(row).iter().map(|(_, kind)| word(*kind)).collect();
        set("operands", format!("({})", operands.join(" ")));
        let options = options(row);
        set("flags", format!("'{}'", joined(&options, |row| Some(format!("--{}", row.long)))));
        let pair = |row: &OptionRow| Some(format!("--{}:{}", row.long, word(Kind::of(required_value(row)?))));
        set("valued", format!("'{}'", joined(&options, pair)));
        if has_remote_command(row) {
            set("behind", "yes".to_owned());
        }
    }
    text + "            ;;\n"
}

fn joined(options: &[&OptionRow], write: impl Fn(&OptionRow) -> Option<String>) -> String {
    options.iter().filter_map(|row| write(row)).collect::<Vec<_>>().join(" ")
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Folder => "folder",
        Kind::Host => "host",
        Kind::Command => "name",
        Kind::Text => "text",
    }
}

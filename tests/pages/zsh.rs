//! The table → the parts of the completions for zsh, which its `_arguments` reads.

use tstunnel::cli::options::{COMMANDS, CommandRow, Kind, OptionRow, Words, options_of};

use crate::offers::{groups, has_remote_command, names, operands, options, required_value};
use crate::part::Part;

pub(crate) fn parts() -> Vec<Part> {
    let group = |(group, commands): (&str, Vec<(&str, &str)>)| {
        format!(
            "        ({group})\n            commands=(\n{}            )\n            ;;\n",
            described(&commands, 16)
        )
    };
    let top: Vec<String> = options_of(None).map(option).collect();
    vec![
        ("names", described(&names(), 8)),
        ("top", format!("        _arguments \\\n            {}\n", top.join(" \\\n            "))),
        ("groups", groups().into_iter().map(group).collect()),
        ("commands", COMMANDS.iter().map(command).collect()),
    ]
}

fn described(pairs: &[(&str, &str)], indent: usize) -> String {
    let line = |(name, sentence): &(&str, &str)| format!("{:indent$}{}\n", "", quoted(&format!("{name}:{sentence}")));
    pairs.iter().map(line).collect()
}

fn command(row: &CommandRow) -> String {
    let body = if row.words == Words::Verbatim {
        "_normal".to_owned()
    } else {
        let mut words = vec!["_arguments -s -S :".to_owned()];
        words.extend(options(row).into_iter().map(option));
        for (index, (operand, kind)) in operands(row).iter().enumerate() {
            // Options may stand between the operands, but not behind the first word of a remote command.
            let is_rest = operand.contains("...") && !has_remote_command(row);
            let place = if is_rest { "*".to_owned() } else { (index + 1).to_string() };
            words.push(quoted(&format!("{place}:{}:{}", plain(operand), action(*kind))));
        }
        if has_remote_command(row) {
            words.push("'*:::ARGUMENTS: '".to_owned());
        }
        words.join(" \\\n                ")
    };
    format!("        ({})\n            {body}\n            ;;\n", quoted(row.name))
}

fn option(row: &OptionRow) -> String {
    let sentence = bracketed(row.sentence);
    match (row.value, row.short) {
        // The last value counts, or all of them do: it may be given again.
        (Some(value), _) => {
            let (is_joined, is_optional) = if required_value(row).is_none() { ("-", ":") } else { ("", "") };
            let action = action(Kind::of(value));
            quoted(&format!("*--{}={is_joined}[{sentence}]:{is_optional}{}:{action}", row.long, plain(value)))
        }
        (None, Some(short)) => format!("'(- *)'{{-{short},--{}}}{}", row.long, quoted(&format!("[{sentence}]"))),
        (None, None) => quoted(&format!("--{}[{sentence}]", row.long)),
    }
}

fn action(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "_files",
        Kind::Folder => "_files -/",
        Kind::Host => "_tstunnel_hosts",
        Kind::Command => "_tstunnel_names",
        Kind::Text => " ",
    }
}

/// The first word of a placeholder.
fn plain(text: &str) -> &str {
    text.split(|letter: char| !letter.is_ascii_uppercase()).find(|word| !word.is_empty()).unwrap_or_default()
}

fn bracketed(text: &str) -> String {
    text.replace('\\', "\\\\").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:")
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

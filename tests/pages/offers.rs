//! What the table offers behind `tstunnel`, for a shell: commands, groups, options, and what each placeholder stands for.

use tstunnel::cli::options::{COMMANDS, CommandRow, Kind, OPTIONS, OptionRow, Words, group, options_of};

/// What may stand right behind `tstunnel`, with its sentence: commands of one word, and groups.
pub(crate) fn names() -> Vec<(&'static str, &'static str)> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for row in COMMANDS {
        let first = row.name.split(' ').next().unwrap();
        if names.last().is_none_or(|(last, _)| *last != first) {
            names.push((first, group(first).unwrap_or(row.sentence)));
        }
    }
    names
}

/// Each group with its commands: their second words and sentences.
pub(crate) fn groups() -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
    let mut groups: Vec<(&str, Vec<(&str, &str)>)> = Vec::new();
    for row in COMMANDS {
        let Some((group, second)) = row.name.split_once(' ') else { continue };
        match groups.last_mut() {
            Some((last, commands)) if *last == group => commands.push((second, row.sentence)),
            _ => groups.push((group, vec![(second, row.sentence)])),
        }
    }
    groups
}

/// The options of a command; those of another program are its own.
pub(crate) fn options(row: &CommandRow) -> Vec<&'static OptionRow> {
    if row.words == Words::Verbatim { Vec::new() } else { options_of(Some(row.id)).collect() }
}

/// The value that an option cannot do without. One that may be left out, as in `[=SIZE]`, never stands in a word of its own.
pub(crate) fn required_value(row: &OptionRow) -> Option<&'static str> {
    row.value.filter(|value| !value.starts_with('['))
}

/// Every option that has its value in the next word, once.
pub(crate) fn valued() -> Vec<&'static str> {
    let mut valued: Vec<&str> =
        OPTIONS.iter().filter(|row| required_value(row).is_some()).map(|row| row.long).collect();
    valued.sort_unstable();
    valued.dedup();
    valued
}

/// The operands of a command, less those of another program's, with their kinds.
pub(crate) fn operands(row: &CommandRow) -> Vec<(&'static str, Kind)> {
    if row.words == Words::Verbatim {
        return Vec::new();
    }
    let operands = row.operands.split(' ').filter(|operand| !operand.is_empty() && *operand != "[--]");
    operands.map(|operand| (operand, Kind::of(operand))).collect()
}

/// Whether what stands behind the first operand is a remote command.
pub(crate) fn has_remote_command(row: &CommandRow) -> bool {
    matches!(row.words, Words::ThenCommand | Words::PerhapsThenCommand)
}

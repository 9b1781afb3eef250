//! The report as a document.

use std::fmt::Write;

use super::{Report, Row, cell, count, name, peers};

pub(super) fn write(report: &Report) -> String {
    let mut text = "# Figures\n\nWhat `make bench` measured, both ends of everybody on one machine. \
        So look at the ratios, and run it on yours.\n\n"
        .to_owned();
    for line in report.surroundings.lines() {
        let _ = writeln!(text, "- {line}");
    }
    let _ = writeln!(text, "\n{}\n\n![The main measures, each peer beside the others](FIGURES.svg)", report.method());
    let verdicts = report.verdicts();
    if !verdicts.is_empty() {
        let missed = verdicts.iter().filter(|verdict| !verdict.met).count();
        let _ = writeln!(text, "\n## Goals\n\n{} met, {missed} missed.\n", verdicts.len() - missed);
        text += "| measure | goal | measured | from – to | |\n|---|---|--:|--:|---|\n";
        for it in verdicts {
            let _ =
                writeln!(text, "| {} | {} | {} | {} | {} |", it.measure, it.wanted, it.measured, it.range, it.word());
        }
    }
    for (section, rows) in report.sections() {
        let _ = write!(text, "\n## {}\n\n{}\n\n{}", section.title, section.note, table(&rows));
    }
    text
}

fn table(rows: &[&Row]) -> String {
    let peers = peers(rows);
    let mut text = format!("| | {} | n |\n|---|{}\n", peers.join(" | "), "--:|".repeat(peers.len() + 1));
    for row in rows {
        let cells: Vec<String> = peers.iter().map(|peer| cell(row, peer)).collect();
        let _ = writeln!(text, "| {} | {} | {} |", name(row), cells.join(" | "), count(row));
    }
    text
}

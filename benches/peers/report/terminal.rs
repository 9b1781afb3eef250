//! The report as text: a table a section, and the goals at the end.

use std::fmt::Write;

use super::{Report, Row, cell, count, name, peers};

pub(super) fn write(report: &Report) -> String {
    let mut text = format!("\n{}\n{}\n", report.surroundings.lines().join("\n"), report.method());
    for (section, rows) in report.sections() {
        let _ = write!(text, "\n{}\n{}", section.title, table(&rows));
    }
    let verdicts = report.verdicts();
    if verdicts.is_empty() {
        return text;
    }
    let missed = verdicts.iter().filter(|verdict| !verdict.met).count();
    let _ = writeln!(text, "\nGoals: {} met, {missed} missed", verdicts.len() - missed);
    let lines = verdicts.into_iter().map(|it| {
        let word = it.word().to_owned();
        vec![format!("  {}", it.measure), it.wanted, it.measured, it.range, word]
    });
    text + &columns(lines.collect())
}

fn table(rows: &[&Row]) -> String {
    let peers = peers(rows);
    let heads = peers.iter().map(|peer| (*peer).to_owned());
    let mut lines: Vec<Vec<String>> =
        vec![std::iter::once(String::new()).chain(heads).chain(["n".to_owned()]).collect()];
    for row in rows {
        let cells = peers.iter().map(|peer| cell(row, peer)).chain([count(row)]);
        lines.push(std::iter::once(format!("  {}", name(row))).chain(cells).collect());
    }
    columns(lines)
}

/// Lines of as many cells, the first to the left and the others to the right.
fn columns(lines: Vec<Vec<String>>) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for cells in &lines {
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

//! The report as text: a table a section, and the goals at the end.

use std::fmt::Write;

use super::{Report, Row, cell, digits, name, peers};

pub(super) fn write(report: &Report) -> String {
    let mut text = format!("\n{}\n{}\n", report.surroundings.lines().join("\n"), report.method());
    for (section, rows) in report.sections() {
        let _ = write!(text, "\n{}\n{}", section.title, table(&rows));
    }
    let verdicts = report.verdicts();
    if !verdicts.is_empty() {
        let width = |text: fn(&super::Verdict) -> &str| verdicts.iter().map(|it| text(it).chars().count()).max();
        let measure = width(|verdict| &verdict.measure).unwrap_or_default();
        let wanted = width(|verdict| &verdict.wanted).unwrap_or_default();
        let missed = verdicts.iter().filter(|verdict| !verdict.met).count();
        let _ = writeln!(text, "\nGoals: {} met, {missed} missed", verdicts.len() - missed);
        for it in &verdicts {
            let (name, goal, value) = (&it.measure, &it.wanted, digits(it.value));
            let _ = writeln!(text, "  {name:<measure$}  {goal:<wanted$}  {value:>8}  {}", it.word());
        }
    }
    text
}

fn table(rows: &[&Row]) -> String {
    let peers = peers(rows);
    let mut lines = vec![std::iter::once(String::new()).chain(peers.iter().map(|peer| (*peer).to_owned())).collect()];
    for row in rows {
        let cells = peers.iter().map(|peer| cell(row, peer));
        lines.push(std::iter::once(format!("  {}", name(row))).chain(cells).collect::<Vec<_>>());
    }
    let widths: Vec<usize> = (0..=peers.len())
        .map(|column| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for cells in lines {
        let (first, rest) = cells.split_first().expect("every line has a name");
        let _ = write!(text, "{first:<width$}", width = widths[0]);
        for (cell, width) in rest.iter().zip(&widths[1..]) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

//! The report's main measures as bars, in SVG: a panel a measure, every peer in it beside the others.

use std::fmt::Write;

use super::{Better, Report, Row, TSTUNNEL, cell, median, name};

/// In pixels.
const WIDTH: f64 = 860.0;
const NAMES: f64 = 170.0;
const VALUES: f64 = 130.0;
const BAR: f64 = 16.0;
const GAP: f64 = 22.0;

pub(super) fn draw(report: &Report) -> String {
    let rows: Vec<&Row> = report.rows.iter().filter(|row| row.measure.charted).collect();
    let mut y = GAP;
    let mut body = String::new();
    for row in rows {
        y = panel(&mut body, row, y);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" viewBox=\"0 0 {WIDTH} {y}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>.ours {{ fill: #1f6feb }} .theirs {{ fill: #afb8c1 }} text {{ fill: #1f2328 }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

/// Draws one measure from `y` on, and returns where the next one may begin.
fn panel(body: &mut String, row: &Row, mut y: f64) -> f64 {
    let medians: Vec<(&str, f64)> =
        row.samples.iter().filter_map(|(peer, samples)| Some((*peer, median(samples.clone())?))).collect();
    let largest = medians.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let better = if row.measure.better == Better::More { "longer is better" } else { "shorter is better" };
    let title = escape(&format!("{}: {} ({better})", row.measure.section.title, name(row)));
    let _ = writeln!(body, "<text x=\"8\" y=\"{y}\" font-weight=\"bold\">{title}</text>");
    y += 8.0;
    for (peer, value) in medians {
        let class = if peer == TSTUNNEL { "ours" } else { "theirs" };
        let width = (value / largest * (WIDTH - NAMES - VALUES)).max(1.0);
        let (text_y, text_x) = (y + BAR - 4.0, NAMES + width + 6.0);
        let (peer_text, value_text) = (escape(peer), escape(&cell(row, peer)));
        let bar = BAR - 3.0;
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{text_y}\" text-anchor=\"end\">{peer_text}</text>\
             <rect class=\"{class}\" x=\"{NAMES}\" y=\"{y}\" width=\"{width:.1}\" height=\"{bar}\"/>\
             <text x=\"{text_x:.1}\" y=\"{text_y}\">{value_text}</text>",
            NAMES - 6.0
        );
        y += BAR;
    }
    y + GAP
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

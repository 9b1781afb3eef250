//! The manual pages, as a reader gets them.

/// The blocks of literal text in a page, as they would be pasted into a shell.
pub(crate) fn literal_blocks(page: &str) -> Vec<String> {
    let blocks = page.split("\n.Bd -literal").skip(1).filter_map(|rest| rest.split_once('\n'));
    let ended = blocks.filter_map(|(_, block)| block.split_once("\n.Ed"));
    ended.map(|(block, _)| block.replace("\\(aq", "'").replace("\\(dq", "\"").replace("\\e", "\\") + "\n").collect()
}

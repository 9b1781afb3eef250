//! Everybody who can join two pipes over a network.

use std::path::{Path, PathBuf};

/// Where `benches/setup.sh` puts it.
pub(crate) fn websocat() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let program = target.join("websocat-1.14.1/bin/websocat");
    assert!(program.is_file(), "the comparison needs {}: run benches/setup.sh", program.display());
    program
}

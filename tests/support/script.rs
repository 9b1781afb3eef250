//! Putting scripts and programs where they are executed.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::process::{program, run};

/// Writes a script for `/bin/sh` to `file`.
pub(crate) fn write(file: &Path, body: &str) {
    let draft = file.with_extension("draft");
    fs::write(&draft, format!("#!/bin/sh\n{body}\n")).unwrap();
    install(&draft, file);
    fs::remove_file(&draft).unwrap();
}

/// Copies the program `from` to `file`.
///
/// A file that anybody has open for writing can't be executed (ETXTBSY), and whatever another thread starts in the meantime
/// inherits the descriptor until its own exec. So the file that will be executed is written by a process of its own.
pub(crate) fn install(from: &Path, file: &Path) {
    run(Command::new(program("install")).args(["-m", "0755"]).arg(from).arg(file));
}

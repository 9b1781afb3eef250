//! An `ssh` and an `scp` that write down how they were called, and then become the ones behind them.

use std::fs;
use std::path::{Path, PathBuf};

use super::script;

/// A folder for MUTAGEN_SSH_PATH, and the list of calls.
pub(crate) struct Recorder {
    folder: PathBuf,
    calls: PathBuf,
}

impl Recorder {
    /// Stands in for the programs in `real`, with its own in `folder`.
    pub(crate) fn around(folder: &Path, real: &Path) -> Recorder {
        let calls = folder.join("calls");
        fs::create_dir_all(&calls).unwrap();
        for name in ["ssh", "scp"] {
            // A file for each call, named by the time and the process, appears whole by being renamed.
            let body = format!(
                "when=$(date +%s.%N)\n\
                 printf '%s\\0' {name} \"$@\" >'{calls}/.'$$ && mv '{calls}/.'$$ '{calls}/'$when.$$\n\
                 exec '{real}/{name}' \"$@\"",
                calls = calls.display(),
                real = real.display(),
            );
            script::write(&folder.join(name), &body);
        }
        Recorder { folder: folder.to_owned(), calls }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Every call so far, oldest first: the program's name and its arguments.
    pub(crate) fn calls(&self) -> Vec<Vec<String>> {
        let is_whole = |file: &PathBuf| !file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let mut files: Vec<PathBuf> =
            fs::read_dir(&self.calls).unwrap().flatten().map(|entry| entry.path()).filter(is_whole).collect();
        files.sort();
        files.iter().map(|file| words(&fs::read_to_string(file).unwrap())).collect()
    }

    /// What each call was for: the remote command of `ssh`, the word `scp` for a copy; random parts are left out.
    pub(crate) fn purposes(&self) -> Vec<String> {
        let purpose = |call: Vec<String>| match call.first().map(String::as_str) {
            Some("scp") => "scp".to_owned(),
            _ => without_uuid(call.last().map(String::as_str).unwrap_or_default()),
        };
        self.calls().into_iter().map(purpose).collect()
    }
}

fn words(block: &str) -> Vec<String> {
    block.strip_suffix('\0').unwrap_or(block).split('\0').map(str::to_owned).collect()
}

/// `./.mutagen-agent<uuid> install` → `./.mutagen-agent install`.
fn without_uuid(command: &str) -> String {
    let Some(rest) = command.strip_prefix("./.mutagen-agent") else { return command.to_owned() };
    let words = rest.split_once(' ').map_or("", |(_, words)| words);
    format!("./.mutagen-agent {words}")
}

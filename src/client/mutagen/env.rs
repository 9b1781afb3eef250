//! `tstunnel mutagen env`: the lines by which a shell finds tstunnel's `ssh` for whatever starts Mutagen in it. Pure text.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Whose language a line is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// POSIX's, which bash, zsh, dash and ksh share.
    Sh,
    /// fish's.
    Fish,
}

impl Shell {
    /// Finds it by the name of a program.
    pub fn from_name(name: &str) -> Option<Shell> {
        match name {
            "sh" | "bash" | "zsh" | "dash" | "ksh" => Some(Shell::Sh),
            "fish" => Some(Shell::Fish),
            _ => None,
        }
    }

    /// The line that sets the variable `name` to `value`, for the shell's `eval`.
    pub fn line(self, name: &str, value: &OsStr) -> Vec<u8> {
        let (start, escaped): (String, &[(u8, &str)]) = match self {
            Shell::Sh => (format!("export {name}='"), &[(b'\'', "'\\''")]),
            Shell::Fish => (format!("set -gx {name} '"), &[(b'\'', "\\'"), (b'\\', "\\\\")]),
        };
        let mut line = start.into_bytes();
        for byte in value.as_bytes() {
            match escaped.iter().find(|(special, _)| special == byte) {
                Some((_, text)) => line.extend_from_slice(text.as_bytes()),
                None => line.push(*byte),
            }
        }
        line.extend_from_slice(b"'\n");
        line
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn every_shell_takes_any_folder_as_it_is() {
        let folder = OsStr::from_bytes(b"/a b/it's \"$HOME\" `x` \\' \\ *!\n;\xff#");
        for name in ["sh", "bash", "zsh", "fish"] {
            let line = Shell::from_name(name).unwrap().line("MUTAGEN_SSH_PATH", folder);
            let mut script = line.clone();
            script.extend_from_slice(b"printenv MUTAGEN_SSH_PATH");
            let output = Command::new(name).arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
            let printed = OsStr::from_bytes(output.stdout.strip_suffix(b"\n").unwrap());
            assert_eq!(printed, folder, "{name}: {:?}", String::from_utf8_lossy(&line));
        }
        assert_eq!(Shell::from_name("csh"), None);
    }
}

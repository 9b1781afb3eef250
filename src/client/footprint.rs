//! Gives back the pages of code that only a session's start has needed.
//!
//! A program's file stays mapped wherever it was once touched, sixteen pages at a time: reading the configuration, verifying
//! certificates and dialling come to more than carrying bytes does afterwards. What is still needed is mapped again from
//! the page cache with its next use.

#![expect(unsafe_code, reason = "madvise(2) on mappings that nobody has written to")]

use std::time::Duration;

use rustix::mm::{Advice, madvise};

/// How long a start may take.
pub const START: Duration = Duration::from_secs(1);

/// Unmaps the pages of all code. Where that is not possible nothing is lost.
pub fn give_back() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(code_of_file) {
        // SAFETY: these are private mappings of a file that are executable and not writable, so each page is as it is in the
        // file, and the kernel reads it from there again.
        let advised = unsafe { madvise(std::ptr::without_provenance_mut(start), length, Advice::LinuxDontNeed) };
        if let Err(error) = advised {
            tracing::debug!(%error, "pages of code are not given back");
        }
    }
}

/// The address and length of a mapping, if it is one of a file's code (proc_pid_maps(5)).
fn code_of_file(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    is_code.then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_of_files_is_given_back() {
        for (line, found) in [
            ("5600-5700 r-xp 001cd000 fe:00 5400043                    /usr/bin/tstunnel", Some((0x5600, 0x100))),
            ("5600-5700 rwxp 001cd000 fe:00 5400043                    /usr/bin/tstunnel", None),
            ("5600-5700 r--p 001cd000 fe:00 5400043                    /usr/bin/tstunnel", None),
            ("7ffc-7ffd r-xp 00000000 00:00 0                          [vdso]", None),
            ("7ffc-7ffd r-xp 00000000 00:00 0", None),
            ("", None),
        ] {
            assert_eq!(code_of_file(line), found, "{line}");
        }
    }

    #[test]
    fn the_program_goes_on_as_before() {
        give_back();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.lines().filter_map(code_of_file).count() > 0, "{maps}");
    }
}

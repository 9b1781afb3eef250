//! The name of an uploaded file (tstunnel-protocol(7), `POST /copy/NAME`), once it is decoded: one entry of a folder, which leads
//! nowhere else. No I/O.

use std::fmt;

/// Most bytes of a name, which is Linux' `NAME_MAX` too.
pub const MAX_FILE_NAME_BYTES: usize = 255;

/// Why a text is no name of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is empty, or stands for a folder.
    Special,
    /// It leads elsewhere.
    Slash,
    /// No file system takes it.
    Nul,
    /// Nor this.
    TooLong,
}

/// What stands behind "the name" in a sentence.
impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Special => f.write_str("is empty, `.` or `..`"),
            Unfit::Slash => f.write_str("has a slash in it"),
            Unfit::Nul => f.write_str("has a NUL in it"),
            Unfit::TooLong => write!(f, "is longer than {MAX_FILE_NAME_BYTES} bytes"),
        }
    }
}

/// Checks that `name` is that of a file in a folder.
///
/// # Errors
/// What is wrong with it. Of a path that is too long as well, that it is a path.
pub fn check_file_name(name: &str) -> Result<(), Unfit> {
    match name {
        "" | "." | ".." => Err(Unfit::Special),
        _ if name.contains('/') => Err(Unfit::Slash),
        _ if name.contains('\0') => Err(Unfit::Nul),
        _ if name.len() > MAX_FILE_NAME_BYTES => Err(Unfit::TooLong),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_one_entry_of_a_folder() {
        for name in ["f", "...", ".f", "-f", "~", "a b", "a\\b", "ä", "a\n", "C:f", &"x".repeat(255)] {
            assert_eq!(check_file_name(name), Ok(()), "{name:?}");
        }
        for name in ["", ".", ".."] {
            assert_eq!(check_file_name(name), Err(Unfit::Special), "{name:?}");
        }
        for name in ["/", "a/", "/a", "../a", "a/..", "a\0/", &"a/".repeat(200)] {
            assert_eq!(check_file_name(name), Err(Unfit::Slash), "{name:?}");
        }
        for name in ["\0", "a\0", ".\0", &"\0".repeat(256)] {
            assert_eq!(check_file_name(name), Err(Unfit::Nul), "{name:?}");
        }
        // Bytes count, not characters.
        for name in ["x".repeat(256), "ä".repeat(128)] {
            assert_eq!(check_file_name(&name), Err(Unfit::TooLong), "{name:?}");
        }
    }

    #[test]
    fn every_reason_ends_a_sentence() {
        for (unfit, said) in [
            (Unfit::Special, "is empty, `.` or `..`"),
            (Unfit::Slash, "has a slash in it"),
            (Unfit::Nul, "has a NUL in it"),
            (Unfit::TooLong, "is longer than 255 bytes"),
        ] {
            assert_eq!(unfit.to_string(), said);
        }
    }

    proptest! {
        #[test]
        fn what_is_a_name_stays_in_its_folder(name in any::<String>()) {
            if check_file_name(&name).is_ok() {
                let path = std::path::Path::new("/home").join(&name);
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/home")));
                prop_assert_eq!(path.file_name(), Some(name.as_ref()));
            }
        }
    }
}

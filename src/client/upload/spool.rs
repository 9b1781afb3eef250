//! stdin, whole, in a file without a name: a request says the content's length and digest before it. The file is in the folder for
//! temporary files (`TMPDIR`), whose free space is the bound; it is gone with the process, however that ends.

use std::fs::File;
use std::io::{self, Read, Write};

use aws_lc_rs::digest;

use super::progress::Progress;
use super::{CHUNK_BYTES, unreadable};
use crate::error::{Code, Error, Result, reason};

/// What was spooled.
pub(super) struct Spooled {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) sha256: digest::Digest,
}

/// Reads `input` to its end.
///
/// # Errors
/// `usage` where it cannot be read, `config` where there is no place for it.
pub(super) fn spool(mut input: impl Read, progress: &Progress) -> Result<Spooled> {
    let folder = std::env::temp_dir();
    let no_place = |error: io::Error| {
        Error::new(Code::Config, format!("stdin cannot be kept in {}: {}", folder.display(), reason(&error)))
            .with_hint("set TMPDIR to a folder with room for all of it, or upload a file")
    };
    let mut file = tempfile::tempfile_in(&folder).map_err(no_place)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut size = 0;
    loop {
        let count = match input.read(&mut chunk) {
            Ok(0) => return Ok(Spooled { file, size, sha256: context.finish() }),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable("stdin", &crate::error::reason(&error))),
        };
        let read = chunk.get(..count).unwrap_or_default();
        context.update(read);
        file.write_all(read).map_err(no_place)?;
        size += count as u64;
        progress.at(size);
    }
}

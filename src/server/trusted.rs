//! The files of a host's `trusted_agents` → SHA-256 digests in lower-case hexadecimal, which join its `agent_digests`.
//!
//! A file whose name ends in `.tar.gz` is a bundle of agents as Mutagen ships it, and the digests are those of its regular
//! entries; any other is a list of digests, as sha256sum(1) writes one. Fails closed: a file that cannot be read, is damaged
//! or holds nothing is an error, because an empty list would trust everything. Read with bounds, in size and in number.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use flate2::read::GzDecoder;
use tar::Archive;

use crate::config::toml_file;
use crate::error::{Code, Error, Result};
use crate::protocol::HostId;
use crate::protocol::encoding::hex;
use crate::server::config::HostConfig;

/// What a bundle's name ends in.
const BUNDLE_SUFFIX: &str = ".tar.gz";
/// Most bytes of a bundle once it is unpacked: Mutagen's own has some 30 agents of 20 MiB.
const MAX_BUNDLE_BYTES: u64 = 4 << 30;
/// Most entries of a bundle.
const MAX_BUNDLE_ENTRIES: usize = 1024;
/// Bytes of one read.
const CHUNK_BYTES: usize = 256 << 10;
/// Hexadecimal digits of a SHA-256.
const DIGEST_DIGITS: usize = 64;

/// Reads the files that `hosts` name into their `agent_digests`. Blocks: a bundle takes a second or two.
///
/// # Errors
/// `config`, with the file's name, and the line where it has lines.
pub fn read_into(hosts: &mut BTreeMap<HostId, HostConfig>) -> Result<()> {
    let mut known: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for host in hosts.values_mut() {
        for path in &host.trusted_agents {
            let digests = match known.get(path) {
                Some(digests) => digests,
                None => known.entry(path.clone()).or_insert(read(path)?),
            };
            host.agent_digests.extend_from_slice(digests);
        }
        host.agent_digests.sort();
        host.agent_digests.dedup();
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<String>> {
    let is_bundle = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(BUNDLE_SUFFIX));
    let digests = if is_bundle {
        bundle(path).map_err(|error| wrong(path, &format!("no bundle of agents: {error}")))?
    } else {
        list(path, &toml_file::read(path)?)?
    };
    if digests.is_empty() {
        return Err(wrong(path, "no digest in it, so no agent could be run"));
    }
    Ok(digests)
}

fn bundle(path: &Path) -> io::Result<Vec<String>> {
    let unpacked = GzDecoder::new(BufReader::new(File::open(path)?));
    let mut archive = Archive::new(unpacked.take(MAX_BUNDLE_BYTES));
    let (mut digests, mut count) = (Vec::new(), 0);
    // Raw: an entry's name is of no interest, so long ones need not be put together.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        count += 1;
        if count > MAX_BUNDLE_ENTRIES {
            return Err(io::Error::other(format!("more than {MAX_BUNDLE_ENTRIES} entries")));
        }
        if entry.header().entry_type().is_file() {
            let size = entry.size();
            digests.push(digest(&mut entry, size)?);
        }
    }
    let mut rest = archive.into_inner();
    // The end has the checksum of it all.
    io::copy(&mut rest, &mut io::sink())?;
    if rest.limit() == 0 {
        return Err(io::Error::other(format!("larger than {MAX_BUNDLE_BYTES} bytes")));
    }
    Ok(digests)
}

fn digest(reader: &mut impl Read, size: u64) -> io::Result<String> {
    let mut context = Context::new(&SHA256);
    let (mut chunk, mut total) = (vec![0; CHUNK_BYTES], 0);
    loop {
        let read = reader.read(&mut chunk)?;
        context.update(chunk.get(..read).unwrap_or_default());
        total += read as u64;
        match read {
            0 if total == size => return Ok(hex(context.finish().as_ref())),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
}

/// Each line is empty, a comment behind `#`, or a digest: alone, or with a name as sha256sum(1) writes it.
fn list(path: &Path, text: &str) -> Result<Vec<String>> {
    let mut digests = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // A backslash says that the name behind is escaped.
        let word = line.split_ascii_whitespace().next().unwrap_or_default();
        let word = word.strip_prefix('\\').unwrap_or(word);
        if word.len() != DIGEST_DIGITS || !word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let what = format!("{}:{}: no SHA-256 digest in hexadecimal", path.display(), index + 1);
            return Err(Error::new(Code::Config, what).with_hint("write one a line, as `sha256sum` does"));
        }
        digests.push(word.to_ascii_lowercase());
    }
    Ok(digests)
}

fn wrong(path: &Path, what: &str) -> Error {
    Error::new(Code::Config, format!("{}: {what}", path.display()))
        .with_hint("name Mutagen's own mutagen-agents.tar.gz, or a list that `sha256sum` wrote")
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    /// SHA-256 of nothing, and of `abc` (FIPS 180-2, appendix B.1).
    const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn tar(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, contents) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(contents.len() as u64);
            builder.append_data(&mut header, name, *contents).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read_as(name: &str, contents: &[u8]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        let result = read(&path);
        if let Err(error) = &result {
            assert_eq!(error.code, Code::Config);
            assert!(error.text.contains(name), "{error}");
        }
        result
    }

    #[test]
    fn a_bundle_is_the_digests_of_its_regular_entries() {
        use tar::EntryType::{Directory, Regular, Symlink};
        let long = format!("{}/linux_amd64", "a".repeat(150));
        let bundle = tar(&[
            ("folder", Directory, b""),
            ("linux_amd64", Regular, b"abc"),
            ("link", Symlink, b""),
            (&long, Regular, b""),
        ]);
        assert_eq!(read_as("mutagen-agents.tar.gz", &gzip(&bundle)).unwrap(), [OF_ABC, OF_NOTHING]);
    }

    #[test]
    fn a_damaged_or_empty_bundle_is_refused() {
        let whole = tar(&[("linux_amd64", tar::EntryType::Regular, &[7; 5000])]);
        let packed = gzip(&whole);
        let mut false_sum = packed.clone();
        let at = false_sum.len() - 6;
        false_sum[at] ^= 1;
        for (what, contents) in [
            ("nothing", vec![]),
            ("no gzip", whole.clone()),
            ("no tar", gzip(b"abc")),
            ("an empty archive", gzip(&tar(&[]))),
            ("folders alone", gzip(&tar(&[("a", tar::EntryType::Directory, b"")]))),
            ("a truncated archive", gzip(&whole[..3000])),
            ("truncated gzip", packed[..packed.len() - 10].to_vec()),
            ("a false checksum", false_sum),
        ] {
            assert!(read_as("a.tar.gz", &contents).is_err(), "{what}");
        }
    }

    #[test]
    fn a_bundle_of_too_many_entries_is_refused() {
        let entries = vec![("a", tar::EntryType::Regular, &b""[..]); MAX_BUNDLE_ENTRIES + 1];
        let error = read_as("a.tar.gz", &gzip(&tar(&entries))).unwrap_err();
        assert!(error.text.contains("more than 1024 entries"), "{error}");
    }

    #[test]
    fn a_list_is_what_sha256sum_writes() {
        let upper = OF_NOTHING.to_uppercase();
        let text = format!("# agents\n\n{OF_ABC}\n  {upper}  linux amd64\r\n{OF_ABC} *binary\n\\{OF_NOTHING}  a\\nb\n");
        assert_eq!(read_as("agents", text.as_bytes()).unwrap(), [OF_ABC, OF_NOTHING, OF_ABC, OF_NOTHING]);
    }

    #[test]
    fn a_list_that_is_none_is_refused_with_its_line() {
        for (text, line) in [
            (format!("{OF_ABC}\nlinux_amd64\n"), ":2:"),
            (format!("SHA256 (linux_amd64) = {OF_ABC}"), ":1:"),
            (OF_ABC[1..].to_owned(), ":1:"),
            (format!("{OF_ABC}0"), ":1:"),
            (format!("{}g", &OF_ABC[1..]), ":1:"),
            ("# nothing\n\n".to_owned(), "no digest"),
            (String::new(), "no digest"),
        ] {
            let error = read_as("agents", text.as_bytes()).unwrap_err();
            assert!(error.text.contains(line), "{text} {error}");
        }
        assert!(read_as("agents", b"\xff\xfe").is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_refused() {
        for name in ["/nowhere/agents", "/nowhere/agents.tar.gz"] {
            let error = read(Path::new(name)).unwrap_err();
            assert!(error.code == Code::Config && error.text.contains(name), "{error}");
        }
    }
}

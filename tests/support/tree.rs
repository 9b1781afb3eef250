//! A tree of files with everything in it that a synchroniser may stumble over, and what there is to compare of a tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};

/// Names that were chosen to break whatever passes them through a shell, a line or an encoding.
const ODD_NAMES: [&str; 14] = [
    "a space",
    " leading and trailing ",
    "-rf",
    "it's",
    "\"quoted\"",
    "back\\slash",
    "new\nline",
    "tab\tand bell\u{7}",
    "$HOME;`id`|*?[x]#~%&<>(){}!",
    "host123:file",
    "grüße.txt",
    "日本語",
    "e\u{301} is not é",
    "🦀",
];

/// What one entry of a tree is, as far as Mutagen carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Folder,
    File { executable: bool, sha256: Vec<u8> },
    Link { target: PathBuf },
}

/// Every entry of a tree by its path below the root.
pub(crate) type Tree = BTreeMap<PathBuf, Entry>;

/// Writes a tree of `count` files and some more links and folders, the same one for the same `seed`.
pub(crate) fn generate(root: &Path, count: usize, seed: u64) {
    let mut random = Random(seed);
    fs::create_dir_all(root).unwrap();
    for index in 0..count {
        let folder = root.join(format!("folder {}/deeper-{}", index % 23, index % 5));
        fs::create_dir_all(&folder).unwrap();
        let name = match ODD_NAMES.get(index) {
            Some(odd) => (*odd).to_owned(),
            None => format!("file-{index}.dat"),
        };
        let size = match index {
            _ if index % 10 == 3 => 0,
            100 => 3_000_001,
            _ if index % 100 == 7 => 70_000,
            _ => random.below(3_000),
        };
        let file = folder.join(name);
        fs::write(&file, random.bytes(size)).unwrap();
        if index % 7 == 0 {
            make_executable(&file);
        }
        if index % 50 == 0 {
            symlink(file.file_name().unwrap(), folder.join(format!("link-{index}"))).unwrap();
        }
    }
    fs::create_dir_all(root.join("empty/in/empty")).unwrap();
    symlink("does/not/exist", root.join("dangling")).unwrap();
    symlink("empty/in", root.join("to a folder")).unwrap();
}

/// Reads a tree; one that doesn't exist yet is empty.
pub(crate) fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(root.join(&folder)) else { continue };
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            if let Some(found) = read_entry(&entry.path()) {
                if found == Entry::Folder {
                    folders.push(path.clone());
                }
                tree.insert(path, found);
            }
        }
    }
    tree
}

/// The first few paths in which two trees differ, for a message.
pub(crate) fn differences(left: &Tree, right: &Tree) -> Vec<String> {
    let paths: std::collections::BTreeSet<&PathBuf> = left.keys().chain(right.keys()).collect();
    let differ = |path: &&PathBuf| left.get(*path) != right.get(*path);
    let describe = |path: &PathBuf| format!("{path:?}: {:?} against {:?}", left.get(path), right.get(path));
    paths.into_iter().filter(differ).take(10).map(describe).collect()
}

/// Fails when two folders don't hold the same.
#[track_caller]
pub(crate) fn assert_same(left: &Path, right: &Path) {
    let found = differences(&read(left), &read(right));
    assert!(found.is_empty(), "{} and {} differ:\n{}", left.display(), right.display(), found.join("\n"));
}

pub(crate) fn make_executable(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o100 != 0)
}

pub(crate) fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

/// Bytes that no compression makes smaller, the same ones for the same `seed`.
pub(crate) fn noise(size: usize, seed: u64) -> Vec<u8> {
    Random(seed).bytes(size)
}

/// Reads one entry; none when it has gone since its folder was read.
fn read_entry(path: &Path) -> Option<Entry> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some(if metadata.is_dir() {
        Entry::Folder
    } else if metadata.is_symlink() {
        Entry::Link { target: fs::read_link(path).ok()? }
    } else {
        let executable = metadata.permissions().mode() & 0o100 != 0;
        Entry::File { executable, sha256: sha256(&fs::read(path).ok()?) }
    })
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn bytes(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size + 8);
        while bytes.len() < size {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(size);
        bytes
    }
}

//! What swaps names in a home as fast as it can, with the rights of the home's account.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aws_lc_rs::digest::{SHA256, digest};
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::process::{Gid, Uid};

use crate::random::Random;

/// How often a name is swapped before the next one's turn.
const BURST: usize = 200;

/// The names, and what is put in their place.
pub(crate) struct Field {
    home: PathBuf,
    outsides: Vec<PathBuf>,
    targets: Vec<Target>,
    /// Those of the contents, which come back each time: else there would soon be none.
    folders: Vec<Target>,
}

/// One name.
struct Target {
    /// The folders above it, below the home.
    folders: &'static [&'static str],
    name: String,
    /// What of an outside's tree looks like what should be there.
    lure: &'static str,
}

/// A digest, in hexadecimal.
pub(crate) fn hex(content: &[u8]) -> String {
    digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the part of a file with this content is called.
fn part(name: &str, content: &[u8]) -> String {
    let sha256 = digest(&SHA256, content);
    format!(".tstunnel-part-{}", &hex(&[name.as_bytes(), &[0], sha256.as_ref()].concat())[..32])
}

/// Opens folders one by one; none where one of them is a link or something else by now.
fn open(home: &Path, folders: &[&str]) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut folder = rustix::fs::openat(CWD, home, flags, Mode::empty()).ok()?;
    for name in folders {
        folder = rustix::fs::openat(&folder, *name, flags, Mode::empty()).ok()?;
    }
    Some(folder)
}

impl Field {
    pub(crate) fn new(
        home: &Path,
        outsides: &[PathBuf],
        names: &[&str],
        clients: usize,
        contents: &[Vec<u8>],
    ) -> Field {
        let calm: Vec<String> = (0..clients).map(|number| format!("calm-{number}")).collect();
        let at = |folders, name: String, lure| Target { folders, name, lure };
        let mut targets: Vec<Target> = names.iter().map(|name| at(&[], name.to_string(), "victim")).collect();
        for content in contents {
            for name in names.iter().copied().chain(calm.iter().map(String::as_str)) {
                targets.push(at(&[], part(name, content), "victim"));
            }
            targets.push(at(&[".cache", "tstunnel", "content"], hex(content), "victim"));
        }
        targets.push(at(&[], ".mutagen".to_owned(), ""));
        let folders = vec![
            at(&[], ".cache".to_owned(), ""),
            at(&[".cache"], "tstunnel".to_owned(), "tstunnel"),
            at(&[".cache", "tstunnel"], "content".to_owned(), "tstunnel/content"),
        ];
        Field { home: home.to_owned(), outsides: outsides.to_vec(), targets, folders }
    }

    /// Swaps until it is over; how often.
    pub(crate) fn race(&self, number: usize, account: Option<u32>, is_over: &AtomicBool) -> u64 {
        if let Some(id) = account {
            // This thread alone, and for good.
            let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        }
        let attic = self.home.join(format!("attic-{number}"));
        fs::create_dir(&attic).unwrap();
        let mut random = Random::new(1000 + number as u64);
        let mut swaps = 0;
        while !is_over.load(Ordering::Relaxed) {
            // One name again and again, and then another: no upload would ever succeed otherwise.
            let target = &self.targets[random.below(self.targets.len())];
            let found = parts(&self.home).into_iter().next().filter(|_| random.one_in(8));
            // Parts whose names cannot be told before.
            let part = found.map(|name| Target { folders: &[], name, lure: "victim" });
            for _ in 0..BURST {
                swaps += u64::from(self.swap(&attic, part.as_ref().unwrap_or(target), &mut random));
                // One alone does this, so that it has the folder itself to put back.
                if number == 0 && random.one_in(4) {
                    let folder = &self.folders[random.below(self.folders.len())];
                    swaps += u64::from(self.swap_for_a_moment(&attic, folder, &mut random));
                }
            }
        }
        fs::remove_dir_all(&attic).unwrap();
        swaps
    }

    /// Puts something else in a name's place, whole, at once.
    fn swap(&self, attic: &Path, target: &Target, random: &mut Random) -> bool {
        let Some(folder) = open(&self.home, target.folders) else { return false };
        let new = attic.join("new");
        let swapped = if self.make(&new, target, random) {
            rustix::fs::renameat_with(CWD, &new, &folder, &target.name, RenameFlags::EXCHANGE)
                .or_else(|_| rustix::fs::renameat_with(CWD, &new, &folder, &target.name, RenameFlags::NOREPLACE))
        } else {
            rustix::fs::renameat(&folder, &target.name, CWD, &new)
        };
        clear(&new);
        swapped.is_ok()
    }

    /// The same, and puts back what was there.
    fn swap_for_a_moment(&self, attic: &Path, target: &Target, random: &mut Random) -> bool {
        let Some(folder) = open(&self.home, target.folders) else { return false };
        let new = attic.join("new");
        let exchange = || rustix::fs::renameat_with(CWD, &new, &folder, &target.name, RenameFlags::EXCHANGE).is_ok();
        let swapped = self.make(&new, target, random) && exchange();
        if swapped {
            thread::yield_now();
            assert!(exchange(), "nobody else touches {}", target.name);
        }
        clear(&new);
        swapped
    }

    /// Makes one of the things that are put in a name's place, or nothing.
    fn make(&self, new: &Path, target: &Target, random: &mut Random) -> bool {
        let outside = &self.outsides[random.below(self.outsides.len())];
        match random.below(8) {
            0 => symlink(outside.join(target.lure), new).is_ok(),
            1 => symlink(outside.join("victim"), new).is_ok(),
            2 => symlink(outside.join("created"), new).is_ok(),
            3 => fs::hard_link(outside.join("victim"), new).is_ok(),
            4 => fs::create_dir(new).is_ok(),
            5 => rustix::fs::mknodat(CWD, new, FileType::Fifo, Mode::RWXU, 0).is_ok(),
            _ => false,
        }
    }

    /// Takes away what was put in any place, when nothing races any more.
    pub(crate) fn tidy(&self) {
        for target in self.targets.iter().filter(|target| target.folders.is_empty()) {
            clear(&self.home.join(&target.name));
        }
        for name in parts(&self.home) {
            clear(&self.home.join(name));
        }
    }
}

/// The parts of uploads that are there now.
fn parts(home: &Path) -> Vec<String> {
    let entries = fs::read_dir(home).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".tstunnel-part-")).collect()
}

/// Removes whatever it is, and follows nothing.
fn clear(path: &Path) {
    if fs::remove_file(path).is_err() {
        let _ = fs::remove_dir_all(path);
    }
}

//! Storing on a real file system, without a process or a connection.

use std::time::Duration;

use super::*;
use crate::protocol::encoding::hex;
use aws_lc_rs::digest::digest;
use rustix::io::Errno;

const PART: &str = ".tstunnel-part-1";
const CONTENTS: &str = ".cache/tstunnel/content";

fn order(home: &Path, content: &[u8]) -> Order {
    Order {
        home: home.to_owned(),
        name: "file".to_owned(),
        part: PART.to_owned(),
        may_hold: true,
        wrapper: Vec::new(),
        mode: 0o755,
        digest: Some(sha256(content)),
        body_digest: None,
        encoding: Encoding::Identity,
        offset: 0,
        max_bytes: 1 << 20,
    }
}

fn sha256(content: &[u8]) -> Sha256 {
    digest(&SHA256, content).as_ref().try_into().unwrap()
}

/// A body in pieces of ten bytes.
struct Pieces<'a> {
    rest: &'a [u8],
    end: Piece<'static>,
}

impl Body for Pieces<'_> {
    fn next(&mut self) -> Piece<'_> {
        if self.rest.is_empty() {
            return self.end;
        }
        let (piece, rest) = self.rest.split_at(self.rest.len().min(10));
        self.rest = rest;
        Piece::Data(piece)
    }
}

fn whole(order: &Order, body: &[u8]) -> Result<Stored, Refusal> {
    store(order, &mut Pieces { rest: body, end: Piece::End })
}

fn broken(order: &Order, body: &[u8]) -> Refusal {
    store(order, &mut Pieces { rest: body, end: Piece::Broken }).unwrap_err()
}

fn visible(home: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != ".cache");
    names.sort();
    names
}

#[test]
fn a_file_appears_whole_with_its_mode() {
    let home = tempfile::tempdir().unwrap();
    let stored = whole(&order(home.path(), b"content"), b"content").unwrap();
    assert_eq!(stored, Stored { size: 7, sha256: sha256(b"content") });
    assert_eq!(visible(home.path()), ["file"]);
    let path = home.path().join("file");
    assert_eq!(fs::read(&path).unwrap(), b"content");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn a_symlink_in_the_files_place_is_replaced_and_not_followed() {
    let home = tempfile::tempdir().unwrap();
    let precious = home.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    for place in ["file", PART] {
        std::os::unix::fs::symlink(&precious, home.path().join(place)).unwrap();
        whole(&order(home.path(), b"content"), b"content").unwrap();
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        assert!(home.path().join("file").symlink_metadata().unwrap().is_file());
        fs::remove_file(home.path().join("file")).unwrap();
    }
}

#[test]
fn a_digest_that_does_not_match_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let refusal = whole(&order(home.path(), b"content"), b"CONTENT").unwrap_err();
    assert_eq!((refusal.status, refusal.error.code), (422, Code::BadRequest));
    let wrong_body = Order { digest: None, body_digest: Some([0; 32]), ..order(home.path(), b"") };
    let refusal = whole(&wrong_body, b"content").unwrap_err();
    assert_eq!((refusal.status, refusal.error.code), (422, Code::BadRequest));
    assert_eq!(visible(home.path()), Vec::<String>::new());
}

#[test]
fn a_file_larger_than_allowed_leaves_nothing_however_small_its_body_is() {
    let home = tempfile::tempdir().unwrap();
    let content = vec![0; 2 << 20];
    let bomb = zstd::encode_all(&content[..], 3).unwrap();
    assert!(bomb.len() < 1000);
    let order = Order { encoding: Encoding::Zstd, ..order(home.path(), &content) };
    let refusal = whole(&order, &bomb).unwrap_err();
    assert_eq!((refusal.status, refusal.error.code), (413, Code::BadRequest));
    assert_eq!(visible(home.path()), Vec::<String>::new());
}

#[test]
fn a_body_that_is_not_what_its_encoding_says_is_refused() {
    let home = tempfile::tempdir().unwrap();
    for encoding in [Encoding::Zstd, Encoding::Gzip] {
        let order = Order { encoding, ..order(home.path(), b"content") };
        let refusal = whole(&order, b"this is neither of them").unwrap_err();
        assert_eq!((refusal.status, refusal.error.code), (400, Code::BadRequest), "{encoding:?}");
    }
    assert_eq!(visible(home.path()), Vec::<String>::new());
}

#[test]
fn a_broken_upload_goes_on_where_it_was() {
    let home = tempfile::tempdir().unwrap();
    let order = order(home.path(), b"first and second");
    assert_eq!(broken(&order, b"first ").error.code, Code::NetworkLost);
    assert_eq!(held(&home.path().join(PART)), 6);
    whole(&Order { offset: 6, ..order.clone() }, b"and second").unwrap();
    assert_eq!(fs::read(home.path().join("file")).unwrap(), b"first and second");
    assert_eq!(visible(home.path()), ["file"]);
}

#[test]
fn a_broken_upload_that_may_not_be_held_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    broken(&Order { may_hold: false, ..order(home.path(), b"content") }, b"con");
    assert_eq!(visible(home.path()), Vec::<String>::new());
}

#[test]
fn an_offset_beyond_what_is_held_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let beyond = Order { offset: 3, ..order(home.path(), b"content") };
    assert_eq!(whole(&beyond, b"tent").unwrap_err().status, 400);
    broken(&order(home.path(), b"content"), b"co");
    assert_eq!(whole(&beyond, b"tent").unwrap_err().status, 400);
}

#[test]
fn known_content_is_stored_again_without_a_body_and_only_if_it_is_what_it_was() {
    let home = tempfile::tempdir().unwrap();
    whole(&order(home.path(), b"content"), b"content").unwrap();
    let again = Order { name: "again".to_owned(), mode: 0o600, ..order(home.path(), b"content") };
    assert_eq!(store_known(&again).unwrap().unwrap().size, 7);
    let path = home.path().join("again");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    // The last file shares its content with what is kept; somebody writes into it.
    fs::write(&path, "another").unwrap();
    assert_eq!(fs::read(home.path().join("file")).unwrap(), b"content");
    assert_eq!(store_known(&again).unwrap(), None);
    assert_eq!(visible(home.path()), ["again", "file"]);
}

#[test]
fn what_an_earlier_server_has_left_is_swept_when_it_is_old() {
    let home = tempfile::tempdir().unwrap();
    let (old, young) = (home.path().join(".tstunnel-part-old"), home.path().join(".tstunnel-part-young"));
    let file = File::create(&old).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(120)).unwrap();
    File::create(&young).unwrap();
    let end = SystemTime::now() - Duration::from_secs(60);
    sweep(home.path(), end, std::slice::from_ref(&old));
    assert!(old.exists(), "somebody has asked for it");
    sweep(home.path(), end, &[]);
    assert!(!old.exists() && young.exists());
}

#[test]
fn a_file_behind_a_wrapper_appears_whole_or_not_at_all() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().to_str().unwrap();
    let wrapper = ["env", "-C", folder].map(str::to_owned).to_vec();
    let order = Order { wrapper, ..order(home.path(), b"content") };
    let store = |order: &Order, body, end| wrapped::store(order, &mut Pieces { rest: body, end });
    store(&order, b"content", Piece::End).unwrap();
    let path = home.path().join("file");
    assert_eq!(fs::read(&path).unwrap(), b"content");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    fs::write(&path, "older").unwrap();
    for (body, end) in [(&b"con"[..], Piece::Broken), (b"CONTENT", Piece::End)] {
        store(&order, body, end).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"older");
        assert_eq!(visible(home.path()), ["file"]);
    }
    for odd in ["-rf", "$(touch x)", "a b", "'", "*"] {
        store(&Order { name: odd.to_owned(), ..order.clone() }, b"content", Piece::End).unwrap();
        assert_eq!(fs::read(home.path().join(odd)).unwrap(), b"content", "{odd}");
    }
    assert_eq!(visible(home.path()).len(), 6);
}

#[test]
fn a_link_in_the_files_place_is_replaced_behind_a_wrapper_wherever_it_leads() {
    for place in ["folder", "precious", "missing"] {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("folder")).unwrap();
        fs::write(home.path().join("precious"), "precious").unwrap();
        std::os::unix::fs::symlink(place, home.path().join("file")).unwrap();
        let wrapper = ["env", "-C", home.path().to_str().unwrap()].map(str::to_owned).to_vec();
        let order = Order { wrapper, ..order(home.path(), b"content") };
        wrapped::store(&order, &mut Pieces { rest: b"content", end: Piece::End }).unwrap();
        assert!(home.path().join("file").symlink_metadata().unwrap().is_file(), "{place}");
        assert_eq!(fs::read(home.path().join("file")).unwrap(), b"content", "{place}");
        assert_eq!(fs::read(home.path().join("precious")).unwrap(), b"precious");
        assert_eq!(fs::read_dir(home.path().join("folder")).unwrap().count(), 0);
    }
}

#[test]
fn a_wrapper_that_is_not_there_is_told_as_that() {
    let home = tempfile::tempdir().unwrap();
    let order = Order { wrapper: vec!["/no/such/wrapper".to_owned()], ..order(home.path(), b"content") };
    let refused = wrapped::store(&order, &mut Pieces { rest: b"content", end: Piece::End }).unwrap_err().error;
    assert_eq!(refused.text, "the host's wrapper `/no/such/wrapper` cannot be run: no such file or directory");
    assert!(refused.hint().contains("`wrapper`"), "{}", refused.hint());
}

#[test]
fn what_a_killed_server_has_left_behind_a_wrapper_goes_with_an_upload_a_day_later() {
    let home = tempfile::tempdir().unwrap();
    let wrapper = ["env", "-C", home.path().to_str().unwrap()].map(str::to_owned).to_vec();
    let day = Duration::from_secs(24 * 3600);
    for (name, age) in
        [(".tstunnel-part-old", day * 2), (".tstunnel-part-young", day / 2), ("of the account's", day * 2)]
    {
        File::create(home.path().join(name)).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }
    let order = Order { wrapper, ..order(home.path(), b"content") };
    wrapped::store(&order, &mut Pieces { rest: b"content", end: Piece::End }).unwrap();
    let mut names: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".tstunnel-part-young", "file", "of the account's"]);
}

/// The rest of a body, and what stood where when it was asked for.
struct Rest<'a> {
    pieces: Pieces<'a>,
    part: PathBuf,
    held_when_wanted: Option<u64>,
}

impl Body for Rest<'_> {
    fn want(&mut self) {
        self.held_when_wanted = Some(held(&self.part));
    }

    fn next(&mut self) -> Piece<'_> {
        self.pieces.next()
    }
}

#[test]
fn a_body_is_asked_for_once_what_is_held_has_been_copied() {
    let home = tempfile::tempdir().unwrap();
    let content = [7; 1000];
    broken(&order(home.path(), &content), &content[..600]);
    let order = Order { offset: 600, ..order(home.path(), &content) };
    let pieces = Pieces { rest: &content[600..], end: Piece::End };
    let mut rest = Rest { pieces, part: home.path().join(PART), held_when_wanted: None };
    store(&order, &mut rest).unwrap();
    assert_eq!(rest.held_when_wanted, Some(600));
}

#[test]
fn a_body_that_cannot_be_gone_on_with_is_not_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let order = Order { offset: 600, ..order(home.path(), &[7; 1000]) };
    let pieces = Pieces { rest: &[], end: Piece::End };
    let mut rest = Rest { pieces, part: home.path().join(PART), held_when_wanted: None };
    store(&order, &mut rest).unwrap_err();
    assert_eq!(rest.held_when_wanted, None);
}

#[test]
fn a_task_and_its_body_go_through_the_process_as_they_were() {
    let home = tempfile::tempdir().unwrap();
    let task = helper::Task::Store(Box::new(order(home.path(), b"first and second")));
    let mut input = Vec::new();
    for frame in [&serde_json::to_vec(&task).unwrap()[..], b"first ", b"and second", b""] {
        input.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        input.extend_from_slice(frame);
    }
    let mut output = Vec::new();
    helper::run(&mut &input[..], &mut output).unwrap();
    let answers: Vec<helper::Answer> =
        output.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let stored = Stored { size: 16, sha256: sha256(b"first and second") };
    assert_eq!(answers, [helper::Answer::Send, helper::Answer::Stored(stored)]);
    for length in 0..input.len() {
        // Whatever is missing of it, nothing half appears.
        fs::remove_file(home.path().join("file")).ok();
        fs::remove_dir_all(home.path().join(".cache")).ok();
        let _ = helper::run(&mut &input[..length], &mut Vec::new());
        assert!(!home.path().join("file").exists(), "{length}");
    }
}

#[test]
fn a_file_that_stands_in_a_parts_place_is_never_written_into() {
    let folder = tempfile::tempdir().unwrap();
    let (home, victim) = (folder.path().join("home"), folder.path().join("victim"));
    fs::create_dir(&home).unwrap();
    let order = Order { offset: 6, ..order(&home, b"first and second") };
    for (held, body, status) in [
        (&b"first untouched"[..], &b"and second"[..], None),
        (b"FIRST untouched", b"and second", Some(422)),
        (b"fir", b"", Some(400)),
    ] {
        fs::write(&victim, held).unwrap();
        fs::hard_link(&victim, home.join(PART)).unwrap();
        assert_eq!(whole(&order, body).err().map(|refusal| refusal.status), status);
        assert_eq!(fs::read(&victim).unwrap(), held);
        fs::remove_file(home.join(PART)).ok();
    }
    std::os::unix::fs::symlink(&victim, home.join(PART)).unwrap();
    assert_eq!(whole(&order, b"and second").unwrap_err().status, 400);
    assert_eq!(fs::read(&victim).unwrap(), b"fir");
}

/// A whole body, at whose end another server has begun to go on with the same upload.
struct TakenOver<'a> {
    body: Pieces<'a>,
    part: PathBuf,
}

impl Body for TakenOver<'_> {
    fn next(&mut self) -> Piece<'_> {
        if self.body.rest.is_empty() {
            fs::remove_file(&self.part).unwrap();
            fs::write(&self.part, "not yet wh").unwrap();
        }
        self.body.next()
    }
}

#[test]
fn an_upload_that_another_server_has_gone_on_with_is_left_to_that() {
    let home = tempfile::tempdir().unwrap();
    let (part, file) = (home.path().join(PART), home.path().join("file"));
    fs::write(&file, "before").unwrap();
    let body = Pieces { rest: b"not yet whole", end: Piece::End };
    let refusal =
        store(&order(home.path(), b"not yet whole"), &mut TakenOver { body, part: part.clone() }).unwrap_err();
    assert_eq!(refusal.error.code, Code::TooMany, "it is no failure of the disk's, and nothing to clean up after");
    assert_eq!(fs::read(&file).unwrap(), b"before");
    assert_eq!(fs::read(&part).unwrap(), b"not yet wh");
}

#[test]
fn a_pipe_or_a_folder_in_a_parts_place_holds_nobody_up() {
    let home = tempfile::tempdir().unwrap();
    let part = home.path().join(PART);
    let order = order(home.path(), b"first and second");
    let pipe = || rustix::fs::mknodat(rustix::fs::CWD, &part, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    pipe();
    assert_eq!(whole(&Order { offset: 6, ..order.clone() }, b"and second").unwrap_err().status, 400);
    fs::remove_file(&part).ok();
    pipe();
    whole(&order, b"first and second").unwrap();
    fs::create_dir(&part).unwrap();
    for offset in [0, 6] {
        assert!(whole(&Order { offset, ..order.clone() }, b"and second").is_err());
    }
}

#[test]
fn contents_are_not_kept_where_a_link_leads_out_of_the_home() {
    for link in [".cache", ".cache/tstunnel", ".cache/tstunnel/content"] {
        let folder = tempfile::tempdir().unwrap();
        let (home, outside) = (folder.path().join("home"), folder.path().join("outside"));
        let within = outside.join(Path::new(CONTENTS).strip_prefix(link).unwrap());
        fs::create_dir_all(&within).unwrap();
        fs::create_dir_all(home.join(link).parent().unwrap()).unwrap();
        let names: Vec<String> = (0..20).map(|number| format!("{number:064x}")).collect();
        for name in &names {
            fs::write(within.join(name), "untouched").unwrap();
        }
        let known = within.join(hex(&sha256(b"known")));
        fs::write(&known, "known").unwrap();
        std::os::unix::fs::symlink(&outside, home.join(link)).unwrap();
        whole(&order(&home, b"content"), b"content").unwrap();
        assert_eq!(fs::read(home.join("file")).unwrap(), b"content");
        assert_eq!(store_known(&order(&home, b"known")).unwrap(), None);
        assert_eq!(fs::read_dir(&within).unwrap().count(), names.len() + 1, "{link}");
    }
}

#[test]
fn only_contents_are_let_go() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(CONTENTS);
    fs::create_dir_all(&folder).unwrap();
    let others = ["notes", &"A".repeat(64), &"a".repeat(63), &"a".repeat(65), &"g".repeat(64)].map(str::to_owned);
    for other in &others {
        File::create(folder.join(other)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    for number in 0..2 * contents::MAX_CONTENTS {
        let content = format!("content {number}");
        whole(&order(home.path(), content.as_bytes()), content.as_bytes()).unwrap();
    }
    assert!(others.iter().all(|other| folder.join(other).exists()));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), others.len() + contents::MAX_CONTENTS);
    assert!(store_known(&order(home.path(), b"content 15")).unwrap().is_some());
}

#[test]
fn what_is_too_large_is_not_kept() {
    let home = tempfile::tempdir().unwrap();
    let contents = contents::Contents::open(home.path(), true).unwrap();
    let file = File::create(home.path().join("file")).unwrap();
    let is_kept = |size: u64| {
        let stored = Stored { size, sha256: sha256(&size.to_be_bytes()) };
        contents.keep(&file, &stored).unwrap();
        contents.find(&stored.sha256).is_ok()
    };
    assert!(is_kept(contents::MAX_BYTES) && !is_kept(contents::MAX_BYTES + 1));
}

#[test]
fn how_much_is_kept_stands_in_the_manual_page() {
    let page = include_str!("../../../man/tstunnel.1").replace('\n', " ");
    let bound = format!("at most {}, none of more than {} MiB.", contents::MAX_CONTENTS, contents::MAX_BYTES >> 20);
    assert!(page.contains(&bound), "{bound}");
}

#[test]
fn a_place_that_cannot_be_written_to_is_not_called_full() {
    for (errno, said) in [
        (Errno::ROFS, "let the account write to its home directory"),
        (Errno::ACCESS, "let the account write to its home directory"),
        (Errno::ISDIR, "give the file another"),
        (Errno::NOSPC, "free space"),
        (Errno::DQUOT, "free space"),
    ] {
        let hint = storage(&errno.into()).error.hint().to_owned();
        assert!(hint.contains(said), "{errno:?}: {hint}");
    }
}

#[test]
fn a_body_that_takes_a_large_window_to_decode_is_refused() {
    let home = tempfile::tempdir().unwrap();
    for (window_log, is_taken) in [(MAX_WINDOW_LOG, true), (MAX_WINDOW_LOG + 1, false), (27, false)] {
        let content = vec![b'x'; 1 << window_log];
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.write_all(&content).unwrap();
        let body = encoder.finish().unwrap();
        let order = Order { encoding: Encoding::Zstd, max_bytes: 1 << 30, ..order(home.path(), &content) };
        let stored = whole(&order, &body);
        assert_eq!(stored.is_ok(), is_taken, "{window_log}");
        assert_eq!(stored.err().map_or(400, |refusal| refusal.status), 400);
    }
}

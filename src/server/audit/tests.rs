//! The log's destinations and what happens where they fail.

use super::record::{Asked, Event, Text};
use super::*;
use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;

use serde_json::{Value, json};

use crate::server::policy::{CommandLine, Request};

fn file(path: &Path) -> Destination {
    Destination::File(path.to_owned())
}

fn start(destination: &Destination, is_required: bool) -> Result<Audit> {
    Audit::start(destination, is_required, &Metrics::new())
}

/// How many records were written, lost and held back.
fn counts(audit: &Audit) -> (u64, u64, u64) {
    (audit.book.written.get(), audit.book.lost.get(), audit.book.held_back.get())
}

fn record(reason: &str) -> Record {
    Record { reason: Some(Text::new(reason)), ..Record::new(Event::Refused) }
}

fn reasons(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["reason"].as_str().unwrap().into()).collect()
}

#[test]
fn destinations_are_read() {
    let read = |text: &str| Destination::try_from(text.to_owned());
    assert_eq!(read("off"), Ok(Destination::Off));
    assert_eq!(read("stderr"), Ok(Destination::Stderr));
    assert_eq!(read("journald"), Ok(Destination::Journal("/run/systemd/journal/socket".into())));
    assert_eq!(read("journald:/run/other"), Ok(Destination::Journal("/run/other".into())));
    assert_eq!(read("/var/log/tstunnel/audit.log"), Ok(file(Path::new("/var/log/tstunnel/audit.log"))));
    for bad in ["", "stdout", "audit.log", "~/audit.log", "journald:", "journald:other", "/", "/var/log/", "/a\0b"] {
        assert!(read(bad).unwrap_err().contains("neither"), "{bad:?}");
    }
}

#[tokio::test]
async fn a_file_is_appended_to_by_its_owner_alone_and_everything_is_written_before_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    for round in 0..2 {
        let audit = start(&file(&path), false).unwrap();
        (0..100).for_each(|index| audit.push(record(&format!("{round} {index}"))));
        audit.close().await;
        assert_eq!(counts(&audit), (100, 0, 0));
    }
    let expected: Vec<String> = (0..200).map(|index| format!("{} {}", index / 100, index % 100)).collect();
    assert_eq!(reasons(&path), expected);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_renamed_file_is_left_when_the_log_is_reopened_and_a_failure_to_do_so_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [path, old] = ["audit.log", "audit.log.1"].map(|name| folder.path().join(name));
    let audit = start(&file(&path), true).unwrap();
    audit.insist(record("first")).await.unwrap();
    std::fs::rename(&path, &old).unwrap();
    audit.insist(record("second")).await.unwrap();
    audit.reopen(&file(&path), true).unwrap();
    audit.insist(record("third")).await.unwrap();
    assert_eq!(audit.reopen(&file(folder.path()), true).unwrap_err().code, Code::Config);
    audit.insist(record("fourth")).await.unwrap();
    assert_eq!(
        (reasons(&old), reasons(&path)),
        (vec!["first".into(), "second".into()], vec!["third".into(), "fourth".into()])
    );
}

/// A pipe stands for a disk that is full: it takes only a part.
#[test]
fn a_line_that_was_cut_off_does_not_spoil_the_next() {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let (mut reader, mut sink) = (File::from(reader), Sink::File { file: File::from(writer), is_torn: false });
    let long = Record { request: Some(Asked::head("none", &"x".repeat(8000), &"y".repeat(8000))), ..record("long") };
    let mut read = vec![0; 8192];
    assert!(sink.write(&long).is_err());
    assert_eq!(io::Read::read(&mut reader, &mut read).unwrap(), 4096);
    sink.write(&record("next")).unwrap();
    let count = io::Read::read(&mut reader, &mut read).unwrap();
    let text = std::str::from_utf8(&read[..count]).unwrap();
    assert!(text.starts_with("\n{") && text.ends_with("}\n") && text.lines().count() == 2, "{text}");
}

#[test]
fn what_is_no_plain_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    symlink(at("elsewhere"), at("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    std::fs::write(at("file"), "").unwrap();
    for bad in
        [at("link"), at("fifo"), at("absent/file"), at("file/file"), folder.path().to_owned(), "/dev/full".into()]
    {
        let error = start(&file(&bad), false).unwrap_err();
        assert!(error.code == Code::Config && error.text.contains(bad.to_str().unwrap()), "{error}");
    }
    assert!(!at("elsewhere").exists(), "a link is not followed");
    let error = start(&Destination::Journal(at("absent")), false).unwrap_err();
    assert_eq!(error.code, Code::Config);
}

/// A socket that takes only what fits, and whose owner reads when the test says so.
#[tokio::test]
async fn what_cannot_be_written_is_not_begun_where_the_log_is_required_until_it_can_be_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let journal = UnixDatagram::bind(&path).unwrap();
    let audit = start(&Destination::Journal(path.clone()), true).unwrap();
    let mut written = 0;
    while audit.insist(record("more")).await.is_ok() {
        written += 1;
        assert!(written < 10_000, "the queue of a socket is bounded");
    }
    assert!(audit.is_blocking());
    assert_eq!(audit.insist(record("more")).await.unwrap_err().code, Code::Overloaded);
    assert_eq!(counts(&audit), (written, 2, 0));
    let mut datagram = [0; 4096];
    (0..written).for_each(|_| assert!(journal.recv(&mut datagram).unwrap() > 0));
    audit.insist(record("again")).await.unwrap();
    assert!(!audit.is_blocking());

    // Where it is not required, nothing waits, and the loss is counted.
    audit.reopen(&Destination::Journal(path.clone()), false).unwrap();
    drop(journal);
    audit.insist(record("lost")).await.unwrap();
    audit.close().await;
    assert_eq!(counts(&audit), (written + 1, 3, 0));
}

#[tokio::test]
async fn a_journal_that_was_restarted_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let first = UnixDatagram::bind(&path).unwrap();
    let audit = start(&Destination::Journal(path.clone()), true).unwrap();
    audit.insist(record("first")).await.unwrap();
    drop(first);
    std::fs::remove_file(&path).unwrap();
    let second = UnixDatagram::bind(&path).unwrap();
    audit.insist(record("second")).await.unwrap();
    let mut datagram = [0; 4096];
    let length = second.recv(&mut datagram).unwrap();
    let text = std::str::from_utf8(&datagram[..length]).unwrap();
    let fields: BTreeMap<&str, &str> = text.lines().map(|line| line.split_once('=').unwrap()).collect();
    assert_eq!(fields["TSTUNNEL_REASON"], "second");
    assert_eq!((fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]), ("5", "tstunnel"));
    assert_eq!(serde_json::from_str::<Value>(fields["MESSAGE"]).unwrap()["event"], "refused");
}

#[test]
fn text_from_outside_is_escaped_so_that_it_cannot_be_undone_nor_pretended() {
    let hostile = "a\n\u{1b}[31m\"b\" 'c' \\n \u{202e}\u{200b}\u{feff}\u{2066}\u{7f}\u{0}ü 漢";
    let mut record = record(hostile);
    record.request = Some(Asked::head("none", "GET", hostile));
    let line = record.line().unwrap();
    assert_eq!(line.matches('\n').count(), 1);
    let expected = r#"a\n\u{1b}[31m"b" 'c' \\n \u{202e}\u{200b}\u{feff}\u{2066}\u{7f}\0ü 漢"#;
    let value: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((value["reason"].as_str(), value["request"]["path"].as_str()), (Some(expected), Some(expected)));
}

#[test]
fn however_long_a_request_is_its_line_is_short_and_says_that_it_was_cut() {
    let long = "\\\"\u{202e}".repeat(100_000);
    let words = |count: usize, word: &str| vec![word.to_owned(); count];
    let requests = [
        (CommandLine::Line(long.clone()), BTreeMap::new()),
        (CommandLine::Words("a".into(), words(10, &long)), BTreeMap::new()),
        (CommandLine::Words("a".into(), words(10_000, "")), BTreeMap::new()),
        (CommandLine::Line("a".into()), (0..10_000).map(|index| (format!("N{index}"), String::new())).collect()),
    ];
    for (line, env) in requests {
        let asked = Asked::request(&Request::Command { line, env, user: Some(long.clone()) });
        let record = Record { request: Some(asked), ..record(&long) };
        let line = record.line().unwrap();
        assert!(line.len() < 16 << 10, "{}", line.len());
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["request"]["truncated"], true);
    }
    let env = [("LANG".to_owned(), "secret".to_owned())].into();
    let asked =
        Asked::request(&Request::Command { line: CommandLine::Words("ls".into(), words(2, "-l")), env, user: None });
    let expected = json!({"kind": "command", "command": "ls", "args": ["-l", "-l"], "env": ["LANG"]});
    assert_eq!(serde_json::to_value(asked).unwrap(), expected);
}

#[test]
fn a_time_is_that_of_rfc_3339_in_utc_with_milliseconds() {
    let record = Record::new(Event::Start);
    let time = record.time.as_str();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z");
    let known = time::OffsetDateTime::from_unix_timestamp_nanos(1_767_225_599_007_999_999).unwrap();
    assert_eq!(record::rfc3339(known), "2025-12-31T23:59:59.007Z");
}

#[tokio::test]
async fn of_what_strangers_cause_some_is_written_and_the_rest_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let audit = start(&file(&path), false).unwrap();
    let taken = (0..1000).filter(|_| audit.push_throttled(record("stranger"))).count() as u64;
    audit.push(record("known"));
    audit.close().await;
    let (written, lost, held_back) = counts(&audit);
    assert!(written + held_back == 1001 && held_back > 800 && lost == 0, "{written} {lost} {held_back}");
    assert_eq!(taken, 1000 - held_back);
    assert_eq!(reasons(&path).last().unwrap(), "known");
}

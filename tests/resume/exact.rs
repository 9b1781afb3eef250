//! Bytes are exact both ways, whatever the network does to the connections under them.

use std::io::Write;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::length;
use super::run::{Run, host};
use crate::support::process::Group;
use crate::support::relay::Direction;
use crate::support::remote::Remote;
use crate::support::serve::TSTUNNEL;
use crate::support::tree::{noise, sha256};
use crate::support::wait::{SOON, wait_for, wait_until};

/// Says its process id, gives back what it gets, and says its process id again.
const CAT: &str = "echo $$; cat; echo $$ >&2; exit 7";

#[test]
fn sixty_megabytes_survive_a_connection_that_never_lasts_three() {
    let remote = host().behind_relay().start();
    remote.relay().cut_after(Some(3_000_000));
    let size = 60_000_000;
    let connections = carry(&remote, size, size, |_| {});
    assert!(connections > size * 2 / 3_000_000, "{connections}");
}

#[test]
fn fifty_megabytes_survive_resets_in_the_middle_of_everything() {
    let remote = host().behind_relay().start();
    let connections = carry(&remote, 50_000_000, 2_000_000, |_| {
        let connections = remote.relay().accepted();
        remote.relay().reset();
        wait_until("the client has dialled again", SOON, || remote.relay().accepted() > connections);
    });
    assert!(connections >= 25, "{connections}");
}

#[test]
fn bytes_survive_closes_and_refusals_in_turn() {
    let remote = host().behind_relay().start();
    carry(&remote, 10_000_000, 1_000_000, |piece| {
        remote.relay().refuse(piece % 2 == 0);
        remote.relay().cut();
        remote.relay().refuse(false);
    });
}

#[test]
fn upload_survives_connections_that_never_last_and_handshakes_that_break() {
    let remote = host().behind_relay().start();
    // So that it takes more than two seconds, by the pauses alone, until the handshakes are done with.
    remote.relay().cut_after(Some(1_000_000));
    let (file, bytes) = (remote.folder().join("file"), noise(40_000_000, 16));
    std::fs::write(&file, &bytes).unwrap();
    let mut upload = Command::new(TSTUNNEL);
    upload.arg("upload").arg(&file).arg(format!("{}:uploaded", remote.host()));
    let said = std::fs::File::create(remote.folder().join("said")).unwrap();
    let mut upload = Group::spawn(
        upload.env("TSTUNNEL_CONFIG", remote.folder().join("config.toml")).env_remove("TSTUNNEL_LOG").stderr(said),
    );
    // Before it has begun, a handshake that breaks is a failure.
    let said = || std::fs::read_to_string(remote.folder().join("said")).unwrap();
    wait_until("the upload was interrupted", SOON, || said().contains("the upload was interrupted"));
    for _ in 0..3 {
        let connections = remote.relay().accepted();
        wait_until("the upload was cut", SOON, || remote.relay().accepted() > connections);
        remote.relay().refuse(true);
        wait_until("a handshake has broken", SOON, || remote.relay().accepted() > connections + 2);
        remote.relay().refuse(false);
    }
    remote.relay().cut_after(Some(3_000_000));
    let status = wait_for("the upload ends", SOON * 2, || upload.ended());
    let said = said();
    assert!(
        said.lines().all(|line| line.starts_with("tstunnel: the upload was interrupted and goes on at ")),
        "{said}"
    );
    assert_eq!(status.code(), Some(0));
    assert!(std::fs::read(remote.home().join("uploaded")).unwrap() == bytes);
    println!("the upload took {} connections", remote.relay().accepted());
}

#[test]
fn one_dead_direction_is_noticed_by_the_side_that_can_dial() {
    for direction in [Direction::ToClient, Direction::ToServer] {
        let remote = host().behind_relay().start();
        let mut run = Run::start(&remote, "info", CAT);
        run.pid();
        remote.relay().silence_half(direction);
        run.write(b"first words\n");
        run.wait_for_resumes(1, SOON);
        run.wait_for_output("first words\n");
        run.end_stdin();
        assert_eq!(run.end(SOON).0, Some(7), "{direction:?}");
    }
}

#[test]
fn a_reset_costs_a_few_round_trips() {
    for milliseconds in [0, 50, 200] {
        let remote = host().behind_relay().start();
        remote.relay().delay(Duration::from_millis(milliseconds));
        let mut run = Run::start(&remote, "info", CAT);
        run.pid();
        let count = length(3, 10);
        for round in 0..count {
            let word = format!("round {round}\n");
            remote.relay().reset();
            run.write(word.as_bytes());
            run.wait_for_output(&word);
            run.wait_for_resumes(round + 1, SOON);
        }
        let mut taken = run.resumes();
        run.end_stdin();
        assert_eq!(run.end(SOON).0, Some(7));
        println!("round trip of {milliseconds} ms, reset: resumed in {taken:?} ms");
        // TCP, TLS and the request are three; the rest is for a busy machine.
        let limit = milliseconds * 5 + 1500;
        // Whatever else the machine does only adds to it, and seldom to most of them.
        taken.sort_unstable();
        assert!(taken[taken.len() / 2] < limit, "round trip of {milliseconds} ms: {taken:?}");
    }
}

#[test]
fn a_silent_path_with_traffic_is_left_in_under_three_seconds() {
    for milliseconds in [0, 50, 200] {
        let remote = host().behind_relay().start();
        remote.relay().delay(Duration::from_millis(milliseconds));
        let mut run = Run::start(&remote, "info", CAT);
        run.pid();
        let mut times = Vec::new();
        for round in 0..length(3, 5) {
            // Something has been answered, so that the path is a live one.
            let (before, after) = (format!("before {round}\n"), format!("after {round}\n"));
            run.write(before.as_bytes());
            run.wait_for_output(&before);
            remote.relay().silence();
            run.write(after.as_bytes());
            let begin = std::time::Instant::now();
            run.wait_for_output(&after);
            let noticed = begin.elapsed();
            println!("round trip of {milliseconds} ms, silence: answered after {noticed:?}");
            times.push(noticed);
        }
        times.sort_unstable();
        let median = times[times.len() / 2];
        assert!(median < Duration::from_secs(3), "round trip of {milliseconds} ms: {times:?}\n{}", run.said());
        println!("round trip of {milliseconds} ms, silence: resumed in {:?} ms once left", run.resumes());
        run.end_stdin();
        assert_eq!(run.end(SOON).0, Some(7));
    }
}

/// Sends `size` bytes through `cat`, in pieces after each of which `disturb` is called, and compares what comes back.
/// Returns how many connections that took.
fn carry(remote: &Remote, size: usize, piece_bytes: usize, disturb: impl Fn(usize)) -> usize {
    let mut run = Run::start(remote, "", CAT);
    let pid = run.pid();
    let bytes = noise(size, 11);
    let expected = sha256(&bytes);
    let mut stdin = run.take_stdin();
    let pieces = size.div_ceil(piece_bytes);
    thread::scope(|scope| {
        let (bytes, (start, turn)) = (&bytes, mpsc::channel::<()>());
        scope.spawn(move || {
            for piece in bytes.chunks(piece_bytes) {
                turn.recv().unwrap();
                stdin.write_all(piece).unwrap();
            }
        });
        start.send(()).unwrap();
        for piece in 1..pieces {
            // The network breaks with both directions full: a piece is on its way back, and the next one there.
            wait_until("bytes come back", SOON, || run.output_bytes() > piece * piece_bytes - piece_bytes / 2);
            start.send(()).unwrap();
            disturb(piece);
        }
    });
    let (status, output, said) = run.end(SOON);
    assert_eq!(said, format!("{pid}\n"), "the same process to its end, and not a word of the client's");
    assert_eq!(status, Some(7));
    let start = format!("{pid}\n").len();
    assert_eq!(output.len() - start, size);
    assert!(sha256(&output[start..]) == expected, "the bytes that came back are others");
    wait_until("the session's end is recorded", SOON, || !remote.server().records("end").is_empty());
    let records = [remote.server().records("session"), remote.server().records("end")].concat();
    assert_eq!(records.len(), 2, "one session: {records:?}");
    assert_eq!(records[0]["session"], records[1]["session"]);
    remote.relay().accepted()
}

//! The side of whoever asks: the names in `/proc/net/unix` → a document from each tunnel of this account.
//!
//! A name is only a claim. Who listens is what the kernel says (`SO_PEERCRED` gives the process that called listen(2)):
//! another account, or another process than the name's, is left at once, before anything is read. Of this account's own
//! processes each has a bounded time and a bounded number of bytes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{MAX_DOCUMENT_BYTES, NAME_PREFIX, Tunnel};
use crate::error::{Code, Error, Result, reason};

/// Every Unix socket of this network namespace (proc_pid_net(5)).
const SOCKETS: &str = "/proc/net/unix";
/// Most bytes of it that are read: a hundred thousand sockets.
const MAX_SOCKETS_BYTES: u64 = 16 << 20;
/// `__SO_ACCEPTCON` in its column of flags: the socket listens. A connection accepted there has the same name.
const FLAG_LISTENS: u32 = 1 << 16;
/// How long tunnels have for their answers: they are busy for milliseconds, or stopped.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How many are asked at once, which is a matter of open files.
const AT_ONCE: usize = 256;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The tunnels, the oldest first.
    pub tunnels: Vec<Tunnel>,
    /// Processes of this account that listen for questions and gave no answer in time.
    pub silent: Vec<u32>,
}

/// A socket's name and the process that it claims.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    pid: u32,
    name: Vec<u8>,
}

/// Asks every tunnel of this account on this machine.
///
/// # Errors
/// `internal`, where the system does not tell what listens.
pub async fn tunnels() -> Result<Found> {
    let mut table = Vec::new();
    std::fs::File::open(SOCKETS).and_then(|file| file.take(MAX_SOCKETS_BYTES).read_to_end(&mut table)).map_err(
        |error| {
            Error::new(Code::Internal, format!("cannot read {SOCKETS}: {}", reason(&error)))
                .with_hint("`status` needs Linux, with /proc mounted")
        },
    )?;
    let account = rustix::process::geteuid().as_raw();
    let names: Vec<Name> = names(&table, account).into_iter().collect();
    let mut found = Found::default();
    for names in names.chunks(AT_ONCE) {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut asked = JoinSet::new();
        for name in names {
            if let Some(stream) = connect(name, account).await {
                let pid = name.pid;
                asked.spawn(async move { (pid, answer(stream, pid, deadline).await) });
            }
        }
        while let Some(Ok((pid, answer))) = asked.join_next().await {
            match answer {
                Answer::Tunnel(tunnel) => found.tunnels.push(*tunnel),
                Answer::None => found.silent.push(pid),
                Answer::Gone => {}
            }
        }
    }
    found.tunnels.sort_by_key(|tunnel| (tunnel.started, tunnel.pid));
    found.silent.sort_unstable();
    Ok(found)
}

/// The names of this account's tunnels among what listens.
fn names(table: &[u8], account: u32) -> BTreeSet<Name> {
    let prefix = format!("@{NAME_PREFIX}{account}/");
    let name = |line: &[u8]| {
        // Num RefCount Protocol Flags Type St Inode Path, where `@` stands for NUL.
        let line = std::str::from_utf8(line).ok()?;
        let mut columns = line.split_ascii_whitespace().skip(3);
        let flags = u32::from_str_radix(columns.next()?, 16).ok()?;
        let path = columns.nth(3)?;
        let (pid, _) = path.strip_prefix(&prefix)?.split_once('/')?;
        let pid = pid.parse().ok()?;
        (flags & FLAG_LISTENS != 0).then(|| Name { pid, name: [b"\0", &path.as_bytes()[1..]].concat() })
    };
    table.split(|byte| *byte == b'\n').filter_map(name).collect()
}

/// Connects to a tunnel, if this is one: what listens must be this account's, and the process of the name. Takes no
/// time: a connection stands at once, or is refused.
async fn connect(name: &Name, account: u32) -> Option<UnixStream> {
    let stream = UnixStream::connect(OsStr::from_bytes(&name.name)).await.ok()?;
    let peer = stream.peer_cred().ok()?;
    let is_pid = peer.pid().is_some_and(|pid| u32::try_from(pid) == Ok(name.pid));
    (peer.uid() == account && is_pid).then_some(stream)
}

enum Answer {
    Tunnel(Box<Tunnel>),
    /// Nothing, or nothing that makes sense.
    None,
    /// It ended meanwhile.
    Gone,
}

async fn answer(stream: UnixStream, pid: u32, deadline: Instant) -> Answer {
    let mut document = Vec::new();
    let mut stream = stream.take(MAX_DOCUMENT_BYTES as u64);
    match timeout_at(deadline, stream.read_to_end(&mut document)).await {
        Ok(Ok(0)) | Ok(Err(_)) => Answer::Gone,
        Ok(Ok(_)) => match serde_json::from_slice::<Tunnel>(&document) {
            Ok(tunnel) => Answer::Tunnel(Box::new(Tunnel { pid, ..tunnel })),
            Err(_) => Answer::None,
        },
        Err(_) => Answer::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::status::Kind;

    #[test]
    fn only_names_of_this_account_that_listen_are_found() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path
00000000ca77572f: 00000003 00000000 00000000 0001 03 646610
0000000000000001: 00000002 00000000 00010000 0001 01 1 @tstunnel/1000/42/00ff
0000000000000002: 00000003 00000000 00000000 0001 03 2 @tstunnel/1000/42/00ff
0000000000000003: 00000002 00000000 00010000 0001 01 3 @tstunnel/10001/43/00ff
0000000000000004: 00000002 00000000 00010000 0001 01 4 @tstunnel/1000/44
0000000000000005: 00000002 00000000 00010000 0001 01 5 @tstunnel/1000/-1/x
0000000000000006: 00000002 00000000 00010000 0001 01 6 /run/tstunnel/1000/45/x
0000000000000007: 00000002 00000000 00010000 0001 01 7 @tstunnel/1000/46/\xff
nonsense @tstunnel/1000/47/x
0000000000000008: 00000002 00000000 00010000 0001 01 8 @tstunnel/1000/7/aa
";
        let found: Vec<Name> = names(table, 1000).into_iter().collect();
        let expected = [(7, "\0tstunnel/1000/7/aa"), (42, "\0tstunnel/1000/42/00ff")]
            .map(|(pid, name)| Name { pid, name: name.into() });
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn what_a_session_says_is_bounded_and_its_process_is_the_kernels_word() {
        use tokio::io::AsyncWriteExt;
        let told = r#"{"pid":1,"host":"h","endpoint":"e:1","command":null,"started":0,"age_seconds":0,"sent_bytes":1,
            "received_bytes":2,"round_trip_ms":null,"state":"connected","interruptions":0,"last_interruption":null}"#;
        let asked = async |said: &[u8], ends: bool| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let writing = async {
                let _ = theirs.write_all(said).await;
                if ends {
                    drop(theirs);
                    return;
                }
                std::future::pending().await
            };
            let deadline = Instant::now() + Duration::from_millis(200);
            let mut answered = Box::pin(answer(ours, 7, deadline));
            tokio::select! {
                answer = &mut answered => answer,
                () = writing => answered.await,
            }
        };
        assert!(matches!(asked(told.as_bytes(), true).await, Answer::Tunnel(tunnel) if tunnel.pid == 7));
        assert!(matches!(asked(told.as_bytes(), false).await, Answer::None), "it has to end");
        let kinds =
            [("", Kind::Session), (r#""kind":"upload","#, Kind::Upload), (r#""kind":"new","new":{},"#, Kind::Other)];
        for (more, kind) in kinds {
            let told = told.replacen('{', &format!("{{{more}"), 1);
            assert!(
                matches!(asked(told.as_bytes(), true).await, Answer::Tunnel(tunnel) if tunnel.kind == kind),
                "{more}"
            );
        }
        assert!(matches!(asked(b"", true).await, Answer::Gone));
        assert!(matches!(asked(b"{}", true).await, Answer::None));
        let endless = [told.as_bytes(), &b" ".repeat(1 << 20)].concat();
        assert!(!matches!(asked(&endless, false).await, Answer::Gone));
    }
}

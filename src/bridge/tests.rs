//! Two bridges and a connection between them that carries a few bytes at a time.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::protocol::frame::{self, Role};
use crate::protocol::liveness::Policy;
use crate::socket;
use rustix::net::sockopt::tcp_user_timeout;
use tokio::io::{DuplexStream, ReadBuf, duplex};
use tokio::net::TcpListener;

impl Connection for DuplexStream {
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

impl Connection for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// A bridge, and the far ends of its local streams.
struct End {
    bridge: Bridge,
    into: DuplexStream,
    out: DuplexStream,
}

fn end(role: Role, connection: DuplexStream, window_bytes: usize) -> End {
    end_by(Policy::default(), role, connection, window_bytes)
}

fn end_by(policy: Policy, role: Role, connection: DuplexStream, window_bytes: usize) -> End {
    let (source, into) = duplex(1000);
    let (sink, out) = duplex(1000);
    let (sent, received) = match role {
        Role::Client => (Kind::Stdin, Kind::Stdout),
        Role::Server => (Kind::Stdout, Kind::Stdin),
    };
    let session = Session::new(role, window_bytes, policy, Instant::now());
    let sources: Sources = vec![(sent, Box::new(source))];
    let sinks: Sinks = vec![(received, Box::new(sink))];
    End { bridge: Bridge::new(session, Box::new(connection), &[], sources, sinks), into, out }
}

fn pair(carried_bytes: usize, window_bytes: usize) -> (End, End) {
    let (near, far) = duplex(carried_bytes);
    (end(Role::Client, near, window_bytes), end(Role::Server, far, window_bytes))
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Runs a server's bridge whose process ends when its stdin does.
async fn serve(mut bridge: Bridge) {
    loop {
        match bridge.next().await {
            Event::SourcesEnded { .. } => {
                bridge.session().queue_end(Kind::Stderr);
                bridge.session().queue_exit(Exit::Status(7));
            }
            Event::Finished => return,
            event => panic!("{event:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_has_had_its_share_of_time_gives_way_though_the_timer_has_elapsed() {
    let (client, _server) = pair(100, 100);
    let mut bridge = client.bridge;
    std::future::poll_fn(|cx| {
        assert!(pin!(bridge.next()).poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    tokio::time::advance(Policy::default().interval).await;
    std::future::poll_fn(|cx| {
        // From here on whatever is waited for is not ready before the task has given way.
        while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
        let started = Instant::now();
        assert!(pin!(bridge.next()).poll(cx).is_pending(), "it went on for {:?}", started.elapsed());
        Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn both_directions_arrive_whole_however_the_connection_cuts_them() {
    for (carried_bytes, window_bytes) in [(8, 100), (8, 100_000), (100_000, 100), (100_000, 100_000)] {
        let (client, server) = pair(carried_bytes, window_bytes);
        let (up, down) = (noise(30_000), noise(20_000));
        let End { mut bridge, mut into, mut out } = client;
        let (mut server_into, mut server_out) = (server.into, server.out);
        let serving = tokio::spawn(serve(server.bridge));
        let (sent, answered) = (up.clone(), down.clone());
        let remote = tokio::spawn(async move {
            server_into.write_all(&answered).await.unwrap();
            let mut got = Vec::new();
            server_out.read_to_end(&mut got).await.unwrap();
            // The process ends its stdout only after its stdin: half-close has passed on.
            drop(server_into);
            got
        });
        let local = tokio::spawn(async move {
            into.write_all(&sent).await.unwrap();
            drop(into);
        });
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            out.read_to_end(&mut got).await.unwrap();
            got
        });
        let exit = loop {
            match bridge.next().await {
                Event::Exit(exit) => break exit,
                Event::SourcesEnded { failed: false } => {}
                event => panic!("{event:?}"),
            }
        };
        bridge.shutdown().await.unwrap();
        assert_eq!(exit, Exit::Status(7));
        serving.await.unwrap();
        local.await.unwrap();
        assert!(remote.await.unwrap() == up && reading.await.unwrap() == down, "{carried_bytes} {window_bytes}");
    }
}

#[tokio::test]
async fn a_session_goes_on_over_another_connection() {
    let (mut client, mut server) = pair(100_000, 100_000);
    let data = noise(50_000);
    let sent = data.clone();
    let writing = tokio::spawn(async move {
        client.into.write_all(&sent).await.unwrap();
        client.into
    });
    let reading = tokio::spawn(async move {
        let mut got = vec![0; 50_000];
        server.out.read_exact(&mut got).await.unwrap();
        got
    });
    for _ in 0..20 {
        // However far it has come, both lose the connection and go on over the next.
        for _ in 0..7 {
            tokio::select! {
                biased;
                _ = client.bridge.next() => {}
                _ = server.bridge.next() => {}
                () = tokio::task::yield_now() => {}
            }
        }
        client.bridge.detach();
        server.bridge.detach();
        let (to_server, to_client) =
            (client.bridge.session().received_count(), server.bridge.session().received_count());
        server.bridge.session().resume(to_server, Instant::now()).unwrap();
        client.bridge.session().resume(to_client, Instant::now()).unwrap();
        let (near, far) = duplex(500);
        client.bridge.attach(Box::new(near), &[], Duration::ZERO);
        server.bridge.attach(Box::new(far), &[], Duration::ZERO);
    }
    let mut reading = reading;
    let got = loop {
        tokio::select! {
            _ = client.bridge.next() => {}
            _ = server.bridge.next() => {}
            got = &mut reading => break got.unwrap(),
        }
    };
    assert!(got == data);
    drop(writing);
}

#[tokio::test]
async fn what_became_of_a_connection_is_not_said_of_the_next() {
    let (near, far) = duplex(1000);
    let mut client = end(Role::Client, near, 1000);
    // Its source's end is what it cannot write any more.
    drop((far, client.into));
    assert!(matches!(client.bridge.next().await, Event::SourcesEnded { failed: false }));
    assert!(!client.bridge.is_attached());
    client.bridge.session().resume(0, Instant::now()).unwrap();
    let (near, _far) = duplex(1000);
    client.bridge.attach(Box::new(near), &[], Duration::ZERO);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let said = client.bridge.poll(&mut cx);
    assert!(said.is_pending(), "{said:?}");
}

#[tokio::test]
async fn a_sink_that_is_closed_drops_its_bytes_and_nothing_else() {
    let (mut client, server) = pair(1000, 1000);
    drop(server.out);
    client.into.write_all(b"nobody reads this").await.unwrap();
    drop(client.into);
    let End { bridge: mut far, into: mut answer, .. } = End { out: duplex(1).0, ..server };
    let mut closed = false;
    let mut got = Vec::new();
    answer.write_all(b"but this").await.unwrap();
    while got != b"but this" {
        tokio::select! {
            _ = client.bridge.next() => {}
            event = far.next() => closed |= matches!(event, Event::SinkClosed(Kind::Stdin, _)),
            read = client.out.read_buf(&mut got) => { read.unwrap(); }
        }
    }
    while !closed {
        tokio::select! {
            _ = client.bridge.next() => {}
            event = far.next() => closed |= matches!(event, Event::SinkClosed(Kind::Stdin, _)),
        }
    }
}

#[tokio::test]
async fn acknowledgements_do_not_wait_behind_what_is_for_a_sink_that_takes_nothing() {
    let window_bytes = 1 << 20;
    let (mut client, mut server) = pair(100_000, window_bytes);
    let data = noise(3 * window_bytes);
    let (mut unread, mut answer, sent) = (client.into, server.into, data.clone());
    let feeding = tokio::spawn(async move {
        unread.write_all(&sent[..window_bytes / 2]).await.unwrap();
        answer.write_all(&sent).await.unwrap();
        (unread, answer)
    });
    let mut got = Vec::new();
    while got.len() < data.len() {
        tokio::select! {
            event = client.bridge.next() => panic!("{event:?}"),
            event = server.bridge.next() => panic!("{event:?}"),
            read = client.out.read_buf(&mut got) => { read.unwrap(); }
        }
    }
    assert!(got == data);
    feeding.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_is_silent_is_suspected_and_then_given_up() {
    let (near, _far) = duplex(1000);
    let mut client = end_by(Policy { interval: Duration::from_millis(10), count: 3 }, Role::Client, near, 1000);
    let mut suspected = false;
    loop {
        match client.bridge.next().await {
            Event::Suspect => suspected = true,
            Event::Silent => break,
            event => panic!("{event:?}"),
        }
    }
    assert!(suspected && !client.bridge.is_attached());
}

/// Has nothing, and counts how often it is asked.
struct Dry(Arc<AtomicUsize>);

impl AsyncRead for Dry {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Poll::Pending
    }
}

#[tokio::test]
async fn a_source_that_has_nothing_is_asked_once_a_wake_up_whatever_else_moves() {
    let (near, mut far) = duplex(1000);
    let asked = Arc::new(AtomicUsize::new(0));
    let session = Session::new(Role::Client, 1000, Policy::default(), Instant::now());
    let (sink, mut out) = duplex(1000);
    let sinks: Sinks = vec![(Kind::Stdout, Box::new(sink))];
    let mut bridge =
        Bridge::new(session, Box::new(near), &[], vec![(Kind::Stdin, Box::new(Dry(asked.clone())))], sinks);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    for wake_ups in 1..=3 {
        far.write_all(&frame::encode(Kind::Stdout, b"x")).await.unwrap();
        assert!(bridge.poll(&mut cx).is_pending());
        assert_eq!(out.read_u8().await.unwrap(), b'x');
        assert_eq!(asked.load(Ordering::Relaxed), wake_ups);
    }
}

#[tokio::test]
async fn a_frame_that_may_not_be_is_answered_with_an_error_frame() {
    let (near, mut far) = duplex(1000);
    let mut client = end(Role::Client, near, 1000);
    far.write_all(&[0x7f, 0, 0, 0]).await.unwrap();
    assert!(matches!(client.bridge.next().await, Event::Violation(_)));
    client.bridge.shutdown().await.unwrap();
    let mut said = Vec::new();
    far.read_to_end(&mut said).await.unwrap();
    assert_eq!(said[0], 0x14);
    assert!(String::from_utf8_lossy(&said[4..]).starts_with("protocol: "));
}

#[tokio::test]
async fn a_plain_stream_half_closes_each_direction_by_itself() {
    let (near, far) = duplex(8);
    let (mut far_reader, mut far_writer) = tokio::io::split(far);
    let (local, mut theirs) = duplex(1000);
    let (reader, writer) = tokio::io::split(local);
    let mut near = near;
    let running = tokio::spawn(async move {
        raw(&mut near, b"left over, ", Box::new(reader), Box::new(writer), RawEnd::Both).await.unwrap()
    });
    theirs.write_all(b"question").await.unwrap();
    theirs.shutdown().await.unwrap();
    let mut got = Vec::new();
    far_reader.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"question");
    far_writer.write_all(b"answer").await.unwrap();
    far_writer.shutdown().await.unwrap();
    let mut got = Vec::new();
    theirs.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"left over, answer");
    running.await.unwrap();
}

/// A connection as this program has it, and its far end.
async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    socket::tune(&near);
    (near, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn a_plain_stream_waits_for_a_reader_that_pauses_for_however_long() {
    let (mut near, mut far) = tcp().await;
    assert_ne!(tcp_user_timeout(&near).unwrap(), 0);
    far.shutdown().await.unwrap();
    let (reader, writer) = (Box::new(tokio::io::empty()), Box::new(tokio::io::sink()));
    raw(&mut near, b"", reader, writer, RawEnd::Both).await.unwrap();
    assert_eq!(tcp_user_timeout(&near).unwrap(), 0);
}

#[tokio::test]
async fn a_plain_stream_ends_with_its_connection_though_nobody_takes_what_came() {
    for leftover in [&b""[..], b"left over"] {
        let (mut near, mut far) = tcp().await;
        let (local, _theirs) = duplex(1);
        let (reader, writer) = tokio::io::split(local);
        far.write_all(b"more than is taken").await.unwrap();
        socket::reset_on_close(&far);
        drop(far);
        let running = raw(&mut near, leftover, Box::new(reader), Box::new(writer), RawEnd::Both);
        let ended = tokio::time::timeout(Duration::from_secs(10), running).await.expect("it waits for the writer");
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

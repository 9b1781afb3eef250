//! The session machine, in memory: two ends and the bytes between them.

use std::collections::VecDeque;

use super::incoming::{ACK_DELAY, ACK_SPACING, COPY_BELOW_BYTES};
use super::outgoing::{KEPT_OVERHEAD_BYTES, MAX_CONTROL_BYTES, MIN_ROOM_BYTES};
use super::*;
use bytes::Bytes;
use proptest::prelude::*;

fn pair(window_bytes: usize) -> (Session, Session, Instant) {
    let now = Instant::now();
    let end = |role| Session::new(role, window_bytes, Policy::default(), now);
    (end(Role::Client), end(Role::Server), now)
}

fn queue(session: &mut Session, stream: Kind, payload: &[u8]) {
    let wire = frame::encode(stream, payload);
    let bytes = wire.len();
    session.queue_data(stream, wire, bytes);
}

/// Moves at most `limit` bytes from one end to the other; returns what they made there.
fn carry(from: &mut Session, to: &mut Session, limit: usize, now: Instant) -> Result<Vec<Event>, Violation> {
    let mut left = limit;
    from.before_transmit(now);
    while left > 0 && from.wants_transmit() {
        let mut slices = [IoSlice::new(&[]); 3];
        let filled = from.transmit(&mut slices);
        let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).take(left).collect();
        left -= bytes.len();
        from.transmitted(bytes.len(), now);
        to.receive_buffer().extend_from_slice(&bytes);
        to.received(now);
    }
    let mut events = Vec::new();
    while let Some(event) = to.next_event(now)? {
        events.push(event);
    }
    Ok(events)
}

#[test]
fn data_arrives_and_its_acknowledgement_frees_what_was_kept() {
    let (mut client, mut server, now) = pair(1 << 20);
    queue(&mut client, Kind::Stdin, b"hello");
    client.queue_end(Kind::Stdin);
    let events = carry(&mut client, &mut server, usize::MAX, now).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(client.outgoing.kept.len(), 2);
    server.consumed(0, now);
    server.consumed(1, now);
    assert!(!server.wants_transmit(), "an ACK of little data waits");
    assert_eq!(server.on_time(now + ACK_DELAY), Verdict::Alive);
    carry(&mut server, &mut client, usize::MAX, now).unwrap();
    assert_eq!((client.outgoing.kept.len(), client.kept_bytes()), (0, 0));
}

#[test]
fn an_acknowledgement_rides_along_with_data() {
    let (mut client, mut server, now) = pair(1 << 20);
    queue(&mut client, Kind::Stdin, b"question");
    carry(&mut client, &mut server, usize::MAX, now).unwrap();
    server.consumed(0, now);
    queue(&mut server, Kind::Stdout, b"answer");
    carry(&mut server, &mut client, usize::MAX, now).unwrap();
    assert_eq!(client.outgoing.kept.len(), 0);
}

/// A server that has consumed `frames` of 128 KiB all at once.
fn consumed_at_once(window_bytes: usize, frames: u64) -> (Session, Instant) {
    let (mut client, mut server, now) = pair(window_bytes);
    for sequence in 0..frames {
        queue(&mut client, Kind::Stdin, &[0; 128 << 10]);
        carry(&mut client, &mut server, usize::MAX, now).unwrap();
        server.consumed(sequence, now);
    }
    (server, now)
}

#[test]
fn a_long_path_has_its_acknowledgements_in_larger_steps() {
    for (window_bytes, waiting, due) in [(DEFAULT_WINDOW_BYTES, 1, 2), (MAX_WINDOW_BYTES, 31, 32)] {
        assert!(!consumed_at_once(window_bytes, waiting).0.wants_transmit(), "{window_bytes}");
        assert!(consumed_at_once(window_bytes, due).0.wants_transmit(), "{window_bytes}");
    }
}

#[test]
fn an_acknowledgement_of_bulk_waits_a_moment_and_that_of_little_as_long_as_something_may_come_to_ride_along_with() {
    let (mut server, now) = consumed_at_once(MAX_WINDOW_BYTES, 1);
    assert_eq!(server.deadline(), now + ACK_SPACING);
    server.on_time(now + ACK_SPACING);
    assert!(server.wants_transmit());
    let (mut client, mut server, now) = pair(MAX_WINDOW_BYTES);
    queue(&mut client, Kind::Stdin, b"little");
    carry(&mut client, &mut server, usize::MAX, now).unwrap();
    server.consumed(0, now);
    assert_eq!(server.deadline(), now + ACK_DELAY);
}

#[test]
fn a_full_window_leaves_no_room_but_a_single_frame_always_has_some() {
    let (mut client, _, _) = pair(1000);
    assert_eq!(client.room(), MIN_ROOM_BYTES);
    queue(&mut client, Kind::Stdin, &[0; 600]);
    assert_eq!(client.room(), 1000 - KEPT_OVERHEAD_BYTES - 604 - 4);
    queue(&mut client, Kind::Stdin, &[0; 392]);
    assert_eq!(client.room(), 0);
}

#[test]
fn what_cannot_be_held_back_waits_behind_a_full_window() {
    let (mut client, mut server, now) = pair(1000);
    queue(&mut server, Kind::Stdout, &[0; 996]);
    server.queue_end(Kind::Stdout);
    server.queue_end(Kind::Stderr);
    server.queue_exit(Exit::Status(0));
    assert_eq!(carry(&mut server, &mut client, usize::MAX, now).map(|events| events.len()), Ok(1));
    assert!(!server.wants_transmit());
    client.consumed(0, now);
    carry(&mut client, &mut server, usize::MAX, now).unwrap();
    assert_eq!(carry(&mut server, &mut client, usize::MAX, now).map(|events| events.len()), Ok(3));
}

#[test]
fn a_peer_that_exceeds_the_window_is_refused() {
    let (mut client, mut server, now) = pair(1000);
    client.outgoing.window_bytes = usize::MAX;
    queue(&mut client, Kind::Stdin, &[0; 900]);
    queue(&mut client, Kind::Stdin, &[0; 900]);
    assert_eq!(carry(&mut client, &mut server, usize::MAX, now), Err(Violation::WindowExceeded));
}

#[test]
fn what_waits_for_a_slow_consumer_takes_about_as_much_memory_as_it_counts_for() {
    for (data, ignored) in [(16 << 10, 112 << 10), (60 << 10, 68 << 10), (64 << 10, 900 << 10), (124 << 10, 0)] {
        let (_, mut server, now) = pair(16 << 20);
        let header = [0x80, (ignored >> 16) as u8, (ignored >> 8) as u8, ignored as u8];
        let both = [&frame::encode(Kind::Stdin, &vec![0; data])[..], &header, &vec![0; ignored]].concat();
        let mut waiting = Vec::new();
        for _ in 0..(8 << 20) / data {
            let mut rest = &both[..];
            while !rest.is_empty() {
                let room = server.room_to_receive(frame::FRAME_BYTES, 16 << 10);
                let count = rest.len().min(16 << 10).min(room.capacity() - room.len());
                room.extend_from_slice(&rest[..count]);
                rest = &rest[count..];
                server.received(now);
                while let Some(Event::Data { payload, .. }) = server.next_event(now).unwrap() {
                    waiting.push(payload);
                }
            }
        }
        // Whoever has a buffer alone could have all of it.
        let memory = waiting.into_iter().map(|payload| match payload.try_into_mut() {
            Ok(mut all) => {
                all.clear();
                if all.try_reclaim(frame::FRAME_BYTES) { frame::FRAME_BYTES } else { all.capacity() }
            }
            Err(shared) => shared.len(),
        });
        let memory: usize = memory.sum();
        assert!(memory < 5 * server.memory_bytes() / 2, "{data} + {ignored}: {memory} bytes");
    }
}

#[test]
fn consumption_out_of_order_is_acknowledged_in_order() {
    let (mut client, mut server, now) = pair(1 << 20);
    queue(&mut server, Kind::Stdout, b"out");
    queue(&mut server, Kind::Stderr, b"err");
    carry(&mut server, &mut client, usize::MAX, now).unwrap();
    client.consumed(1, now);
    assert_eq!(client.incoming.consumed, 0);
    client.consumed(0, now);
    assert_eq!(client.incoming.consumed, 2);
}

#[test]
fn signals_alone_are_acknowledged_too() {
    let (mut client, mut server, now) = pair(100);
    for _ in 0..20 {
        client.queue_signal("INT");
    }
    for _ in 0..3 {
        carry(&mut client, &mut server, usize::MAX, now).unwrap();
        server.on_time(now + ACK_DELAY);
        carry(&mut server, &mut client, usize::MAX, now).unwrap();
    }
    assert_eq!((client.outgoing.kept.len(), server.received_count()), (0, 20));
}

#[test]
fn exit_is_acknowledged_at_once_and_finishes_the_server() {
    let (mut client, mut server, now) = pair(1 << 20);
    server.queue_end(Kind::Stdout);
    server.queue_end(Kind::Stderr);
    server.queue_exit(Exit::Status(7));
    let events = carry(&mut server, &mut client, usize::MAX, now).unwrap();
    assert_eq!(events[2], Event::Exit { sequence: 2, exit: Exit::Status(7) });
    for sequence in 0..3 {
        client.consumed(sequence, now);
    }
    assert!(!server.is_finished());
    carry(&mut client, &mut server, usize::MAX, now).unwrap();
    assert!(server.is_finished());
}

#[test]
fn nothing_may_follow_an_end() {
    let (mut client, mut server, now) = pair(1 << 20);
    client.queue_end(Kind::Stdin);
    queue(&mut client, Kind::Stdin, b"more");
    assert_eq!(carry(&mut client, &mut server, usize::MAX, now), Err(Violation::AfterEnd(Kind::Stdin)));
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_refused() {
    let (mut client, mut server, now) = pair(1 << 20);
    queue(&mut client, Kind::Stdin, b"unsent");
    server.outgoing.queue_control(Kind::Ack, &1u64.to_be_bytes());
    assert_eq!(carry(&mut server, &mut client, usize::MAX, now), Err(Violation::AckOutOfRange(1)));
}

#[test]
fn a_flood_of_pings_is_answered_within_bounds() {
    let (mut client, mut server, now) = pair(1 << 20);
    for _ in 0..10_000 {
        client.outgoing.queue_control(Kind::Ping, &[1; 8]);
    }
    carry(&mut client, &mut server, usize::MAX, now).unwrap();
    assert!(server.outgoing.control.len() <= MAX_CONTROL_BYTES + 12);
}

#[test]
fn a_peer_that_sends_and_never_reads_makes_nothing_grow() {
    let (mut client, mut server, mut now) = pair(1 << 20);
    for sequence in 0..10_000 {
        queue(&mut client, Kind::Stdin, b"x");
        carry(&mut client, &mut server, usize::MAX, now).unwrap();
        server.consumed(sequence, now);
        if sequence % 100 == 99 {
            now += Duration::from_secs(10);
            server.on_time(now);
            // Behind the client's back, so that its window never fills.
            client.outgoing.acknowledge(&(sequence + 1).to_be_bytes(), now).unwrap();
        }
    }
    assert!(server.outgoing.control.len() <= MAX_CONTROL_BYTES + 24, "{}", server.outgoing.control.len());
    carry(&mut server, &mut client, usize::MAX, now).unwrap();
    assert_eq!(client.outgoing.acked, 10_000);
}

#[test]
fn an_acknowledgement_that_is_half_sent_is_left_as_it_is() {
    let (mut client, mut server, now) = pair(4);
    for sequence in 0..2 {
        queue(&mut client, Kind::Stdin, b"x");
        client.outgoing.cursor = client.outgoing.kept.len() - 1;
        server.receive_buffer().extend_from_slice(&frame::encode(Kind::Stdin, b"x"));
        client.transmitted(5, now);
        server.next_event(now).unwrap();
        server.consumed(sequence, now);
        carry(&mut server, &mut client, 5, now).unwrap();
    }
    carry(&mut server, &mut client, usize::MAX, now).unwrap();
    assert_eq!(client.outgoing.acked, 2);
}

#[test]
fn a_small_frame_does_not_keep_the_buffer_that_it_came_in() {
    let (mut client, mut server, now) = pair(1 << 20);
    queue(&mut client, Kind::Stdin, b"small");
    queue(&mut client, Kind::Stdin, &vec![0; COPY_BELOW_BYTES]);
    let events = carry(&mut client, &mut server, usize::MAX, now).unwrap();
    let is_alone = |event: &Event| matches!(event, Event::Data { payload, .. } if payload.is_unique());
    assert!(is_alone(&events[0]));
    assert!(!is_alone(&events[1]), "a large one is not copied");
}

#[test]
fn tiny_frames_count_for_the_memory_that_they_take() {
    const WINDOW: usize = 1 << 20;
    let (mut client, mut server, now) = pair(WINDOW);
    client.expect_round_trip(Duration::from_secs(1));
    let mut sent = 0;
    while client.room() > 0 {
        queue(&mut client, Kind::Stdin, b"x");
        sent += 1;
        assert!(sent < WINDOW);
    }
    let memory = sent * KEPT_OVERHEAD_BYTES;
    assert!(memory <= WINDOW, "{memory}");
    assert_eq!(client.memory_bytes() - client.kept_bytes(), memory);
    carry(&mut client, &mut server, usize::MAX, now).unwrap();
    assert_eq!(server.memory_bytes(), server.held_bytes() + 4 * sent);
}

#[test]
fn what_few_frames_are_kept_can_be_brought_along_and_counts_as_sent() {
    let (mut client, _, now) = pair(100);
    assert_eq!(client.early(1000), None);
    queue(&mut client, Kind::Stdin, b"one");
    queue(&mut client, Kind::Stdin, b"two");
    let frames = [frame::encode(Kind::Stdin, b"one"), frame::encode(Kind::Stdin, b"two")].concat();
    assert_eq!(client.early(frames.len() - 1), None);
    assert_eq!(client.resume(1, now), Err(Violation::AckOutOfRange(1)), "nothing of it was sent");
    assert_eq!(client.early(frames.len()), Some((0, frames)));
    client.resume(2, now).unwrap();
    assert_eq!(client.unsent_bytes(), 0);
    // The end waits beyond a full window, and is not brought along.
    queue(&mut client, Kind::Stdin, &[b'x'; 80]);
    client.queue_end(Kind::Stdin);
    assert_eq!(client.early(1000), None);
}

#[test]
fn impossible_counts_are_refused_and_change_nothing() {
    let (mut client, mut server, now) = pair(1 << 20);
    queue(&mut client, Kind::Stdin, b"one");
    carry(&mut client, &mut server, usize::MAX, now).unwrap();
    queue(&mut client, Kind::Stdin, b"two");
    assert_eq!(client.resume(2, now), Err(Violation::AckOutOfRange(2)));
    assert_eq!(client.resume(1, now), Ok(()));
}

proptest! {
    /// Cuts a session at random points and carries it on; what is delivered must be exact, once, and in order.
    #[test]
    fn bytes_survive_interruptions_anywhere(
        seed in any::<u64>(),
        window in 50usize..5000,
        steps in prop::collection::vec((0u8..6, 0usize..700), 1..200),
    ) {
        let (mut client, mut server, now) = pair(window);
        let mut next = seed;
        let mut sent = Vec::new();
        let mut delivered = Vec::new();
        let mut pending = VecDeque::new();
        let take = |events: Vec<Event>, pending: &mut VecDeque<(u64, Bytes)>| {
            for event in events {
                if let Event::Data { sequence, payload, .. } = event {
                    pending.push_back((sequence, payload));
                }
            }
        };
        for (action, size) in steps {
            match action {
                0 | 1 => {
                    let size = size.clamp(1, window).min(client.room());
                    if size > 0 {
                        let payload: Vec<u8> = (0..size).map(|_| { next = next.wrapping_mul(6364136223846793005).wrapping_add(1); (next >> 56) as u8 }).collect();
                        queue(&mut client, Kind::Stdin, &payload);
                        sent.extend_from_slice(&payload);
                    }
                }
                2 => take(carry(&mut client, &mut server, size, now).unwrap(), &mut pending),
                3 => { carry(&mut server, &mut client, size, now).unwrap(); }
                4 => if let Some((sequence, payload)) = pending.pop_front() {
                    delivered.extend_from_slice(&payload);
                    server.consumed(sequence, now);
                    if size % 2 == 0 { server.on_time(now + ACK_DELAY); }
                },
                _ => {
                    let (to_server, to_client) = (client.received_count(), server.received_count());
                    server.resume(to_server, now).unwrap();
                    client.resume(to_client, now).unwrap();
                }
            }
            prop_assert!(client.kept_bytes() <= window.max(HEADER_BYTES + window));
        }
        loop {
            take(carry(&mut client, &mut server, usize::MAX, now).unwrap(), &mut pending);
            let Some((sequence, payload)) = pending.pop_front() else { break };
            delivered.extend_from_slice(&payload);
            server.consumed(sequence, now);
        }
        prop_assert_eq!(delivered, sent);
        server.on_time(now + ACK_DELAY);
        carry(&mut server, &mut client, usize::MAX, now).unwrap();
        prop_assert_eq!(client.kept_bytes(), 0);
    }
}

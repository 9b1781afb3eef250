//! Two ends of a session and a schedule: bytes arrive whole and once; then one of them meets a peer that sends anything.
//!
//! Input: the window (two bytes), the number of steps, two bytes for each step, and the rest is data.
#![no_main]

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use tstunnel::protocol::frame::{HEADER_BYTES, Kind, Role};
use tstunnel::protocol::liveness::Policy;
use tstunnel::protocol::session::{Event, Exit, Session};

struct End<'a> {
    session: Session,
    stream: Kind,
    source: &'a [u8],
    has_ended: bool,
    waiting: VecDeque<(u64, Vec<u8>)>,
    delivered: Vec<u8>,
    exits: usize,
}

impl<'a> End<'a> {
    fn new(role: Role, window: usize, source: &'a [u8], now: Instant) -> End<'a> {
        End {
            session: Session::new(role, window, Policy::default(), now),
            stream: if role == Role::Client { Kind::Stdin } else { Kind::Stdout },
            source,
            has_ended: false,
            waiting: VecDeque::new(),
            delivered: Vec::new(),
            exits: 0,
        }
    }

    fn produce(&mut self, size: usize) {
        if self.has_ended || self.session.room() == 0 {
            return;
        }
        let (now, later) = self.source.split_at(size.min(self.session.room()).min(self.source.len()));
        self.source = later;
        if !now.is_empty() {
            let wire = [&[0; HEADER_BYTES], now].concat();
            self.session.queue_data(self.stream, wire, HEADER_BYTES + now.len());
        } else if later.is_empty() {
            self.session.queue_end(self.stream);
            self.has_ended = true;
            if self.stream == Kind::Stdout {
                self.session.queue_exit(Exit::Status(3));
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        while let Some(event) = self.session.next_event(now).expect("an honest peer") {
            match event {
                Event::Data { sequence, payload, .. } => self.waiting.push_back((sequence, payload.to_vec())),
                Event::Exit { sequence, .. } => {
                    self.exits += 1;
                    self.waiting.push_back((sequence, b"!".to_vec()));
                }
                Event::Signal(name) => assert_eq!(name, "INT"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Consumes a frame: the first that waits or the last.
    fn consume(&mut self, last: bool, now: Instant) {
        // Out of order in what is reported, in order in what is delivered.
        for (_, payload) in &mut self.waiting {
            let payload = std::mem::take(payload);
            self.delivered.extend_from_slice(&payload);
        }
        let taken = if last { self.waiting.pop_back() } else { self.waiting.pop_front() };
        if let Some((sequence, _)) = taken {
            self.session.consumed(sequence, now);
        }
    }
}

fn carry(from: &mut End<'_>, to: &mut End<'_>, limit: usize, now: Instant) {
    let mut left = limit;
    from.session.before_transmit(now);
    while left > 0 && from.session.wants_transmit() {
        let mut slices = [IoSlice::new(&[]); 3];
        let filled = from.session.transmit(&mut slices);
        let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).take(left).collect();
        assert!(!bytes.is_empty());
        left -= bytes.len();
        from.session.transmitted(bytes.len(), now);
        to.session.receive_buffer().extend_from_slice(&bytes);
        to.session.received(now);
    }
    to.accept(now);
}

fn resume(client: &mut End<'_>, server: &mut End<'_>, now: Instant) {
    let (of_client, of_server) = (client.session.received_count(), server.session.received_count());
    server.session.resume(of_client, now).expect("an honest count");
    client.session.resume(of_server, now).expect("an honest count");
}

fuzz_target!(|data: &[u8]| {
    let Some((&[high, low, steps], rest)) = data.split_first_chunk() else { return };
    let (schedule, rest) = rest.split_at(rest.len().min(2 * usize::from(steps)));
    let window = usize::from(u16::from_be_bytes([high, low]));
    let (up, down) = rest.split_at(rest.len() / 2);
    let mut now = Instant::now() + Duration::from_secs(1000);
    let mut client = End::new(Role::Client, window, up, now);
    let mut server = End::new(Role::Server, window, down, now);
    for step in schedule.chunks_exact(2) {
        let size = usize::from(step[1]);
        match step[0] % 12 {
            0 => client.produce(size),
            1 => server.produce(size),
            2 | 3 => carry(&mut client, &mut server, size, now),
            4 | 5 => carry(&mut server, &mut client, size, now),
            6 => client.consume(size % 2 == 1, now),
            7 => server.consume(size % 2 == 1, now),
            8 => now += Duration::from_millis(size as u64 * 20),
            9 => {
                let _ = client.session.on_time(now);
                let _ = server.session.on_time(now);
            }
            10 => client.session.queue_signal("INT"),
            // The answer is lost, and the client asks again.
            _ if size % 3 == 0 => {
                let count = client.session.received_count();
                server.session.resume(count, now).expect("an honest count");
                resume(&mut client, &mut server, now);
            }
            _ => resume(&mut client, &mut server, now),
        }
    }
    let mut rounds = 0;
    while !(server.session.is_finished() && client.has_ended && client.session.kept_bytes() == 0) {
        rounds += 1;
        assert!(rounds < 4 * data.len() + 100, "nothing comes through: {:?} {:?}", client.session, server.session);
        now += Duration::from_millis(50);
        for _ in 0..8 {
            client.produce(usize::MAX);
            server.produce(usize::MAX);
        }
        let _ = client.session.on_time(now);
        let _ = server.session.on_time(now);
        carry(&mut client, &mut server, usize::MAX, now);
        carry(&mut server, &mut client, usize::MAX, now);
        while !client.waiting.is_empty() {
            client.consume(false, now);
        }
        while !server.waiting.is_empty() {
            server.consume(false, now);
        }
    }
    assert_eq!(server.delivered, up);
    assert_eq!(client.delivered, [down, b"!"].concat());
    assert_eq!(client.exits, 1);

    // The same bytes as frames of a peer that means no good.
    for role in [Role::Client, Role::Server] {
        let mut end = End::new(role, window, &[], now);
        for piece in rest.chunks(usize::from(steps) + 1) {
            end.session.receive_buffer().extend_from_slice(piece);
            end.session.received(now);
            let events = std::iter::from_fn(|| end.session.next_event(now).transpose());
            let events: Result<Vec<Event>, _> = events.take(piece.len() + 2).collect();
            let Ok(events) = events else { break };
            assert!(events.len() <= piece.len() + 1);
            for event in events {
                if let Event::Data { sequence, .. } | Event::Exit { sequence, .. } = event
                    && low % 2 == 0
                {
                    end.session.consumed(sequence, now);
                }
            }
            assert!(end.session.held_bytes() <= window.max(HEADER_BYTES + data.len()));
        }
    }
});

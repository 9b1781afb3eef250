//! The session machine against a peer that sends whatever it likes: no panic, no hang, and no more memory than a window,
//! one frame and a little.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::IoSlice;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use tstunnel::protocol::frame::{HEADER_BYTES, Kind, MAX_PAYLOAD_BYTES, Role};
use tstunnel::protocol::liveness::{Policy, Verdict};
use tstunnel::protocol::session::{Event, Exit, Session};

/// What control frames may hold: twice the machine's own bound.
const LITTLE_BYTES: usize = 2048;

/// What happens next to the machine.
#[derive(Clone, Debug)]
enum Act {
    /// The peer sends this.
    Receive(Vec<u8>),
    /// A consumer takes the frame at this place of those that wait.
    Consume(usize),
    Produce(usize),
    End,
    Signal,
    Exit,
    Transmit(usize),
    Wait(u64),
    Doubt,
    /// The connection is replaced; the peer claims this count.
    Resume(u64),
}

/// A number that is often one of those that matter.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..40, 1 => Just(u64::MAX), 1 => any::<u64>()]
}

/// Something that looks like frames more often than not.
fn wire() -> impl Strategy<Value = Vec<u8>> {
    let types = [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x10, 0x11, 0x12, 0x13, 0x14, 0x80, 0xff];
    let framed = |kind: u8, length: usize, payload: &[u8]| {
        let [_, high, middle, low] = (length as u32).to_be_bytes();
        [&[kind, high, middle, low], payload].concat()
    };
    let sized = (prop::sample::select(types.to_vec()), prop::collection::vec(any::<u8>(), 0..40));
    let data = (0u8..3, 0usize..3000);
    let lying = (prop::sample::select(types.to_vec()), 0usize..1 << 24);
    prop_oneof![
        2 => sized.prop_map(move |(kind, payload)| framed(kind, payload.len(), &payload)),
        8 => data.prop_map(move |(kind, size)| framed(kind, size, &vec![kind; size])),
        1 => data_flood().prop_map(move |(kind, size, times)| framed(kind, size, &vec![7; size]).repeat(times)),
        1 => Just(framed(0, MAX_PAYLOAD_BYTES, &vec![1; MAX_PAYLOAD_BYTES])),
        1 => lying.prop_map(move |(kind, length)| framed(kind, length, &[])),
        4 => count().prop_map(move |count| framed(0x12, 8, &count.to_be_bytes())),
        2 => any::<u64>().prop_map(move |opaque| framed(0x10, 8, &opaque.to_be_bytes()).repeat(200)),
        1 => prop::collection::vec(any::<u8>(), 0..100),
    ]
}

fn data_flood() -> impl Strategy<Value = (u8, usize, usize)> {
    (prop::sample::select(vec![0u8, 1, 2, 4]), 1usize..20, 1usize..500)
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => wire().prop_map(Act::Receive),
        8 => (0usize..20).prop_map(Act::Consume),
        4 => (0usize..5000).prop_map(Act::Produce),
        1 => Just(Act::End),
        1 => Just(Act::Signal),
        1 => Just(Act::Exit),
        3 => (0usize..6000).prop_map(Act::Transmit),
        3 => (0u64..20_000).prop_map(Act::Wait),
        1 => Just(Act::Doubt),
        1 => count().prop_map(Act::Resume),
    ]
}

/// The machine and a correct owner of it.
struct Owner {
    session: Session,
    role: Role,
    window: usize,
    now: Instant,
    waiting: Vec<u64>,
    streams: Vec<Kind>,
    has_exited: bool,
    violations: usize,
    largest_frame: usize,
    overrun: usize,
}

impl Owner {
    fn new(role: Role, window: usize) -> Owner {
        let now = Instant::now() + Duration::from_secs(1000);
        Owner {
            session: Session::new(role, window, Policy::default(), now),
            role,
            window,
            now,
            waiting: Vec::new(),
            streams: if role == Role::Client { vec![Kind::Stdin] } else { vec![Kind::Stdout, Kind::Stderr] },
            has_exited: false,
            violations: 0,
            largest_frame: 0,
            overrun: 0,
        }
    }

    fn follow(&mut self, act: Act) {
        match act {
            Act::Receive(bytes) => self.receive(&bytes),
            Act::Consume(place) if !self.waiting.is_empty() => {
                let sequence = self.waiting.remove(place % self.waiting.len());
                self.session.consumed(sequence, self.now);
            }
            Act::Produce(size) => {
                let size = size.min(self.session.room());
                if size > 0
                    && let Some(stream) = self.streams.first()
                {
                    self.session.queue_data(*stream, vec![0; HEADER_BYTES + size], HEADER_BYTES + size);
                    self.largest_frame = self.largest_frame.max(HEADER_BYTES + size);
                }
            }
            Act::End if !self.has_exited => {
                if let Some(stream) = self.streams.pop() {
                    self.session.queue_end(stream);
                    self.overrun += HEADER_BYTES;
                }
            }
            Act::Signal if self.role == Role::Client => {
                self.session.queue_signal("TERM");
                self.overrun += HEADER_BYTES + 4;
            }
            Act::Exit if self.role == Role::Server && !self.has_exited => {
                self.session.queue_exit(Exit::Signal(u32::MAX));
                self.has_exited = true;
                self.overrun += HEADER_BYTES + 5;
            }
            Act::Transmit(limit) => self.transmit(limit),
            Act::Wait(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                // A peer that is found dead is left; here it goes on, and nothing may come of it.
                for _ in 0..3 {
                    if self.session.deadline() <= self.now && self.session.on_time(self.now) == Verdict::Dead {
                        break;
                    }
                }
            }
            Act::Doubt => self.session.doubt(self.now),
            Act::Resume(count) => {
                let before = (self.session.kept_bytes(), self.session.received_count());
                let resumed = self.session.resume(count, self.now);
                assert_eq!(before, (self.session.kept_bytes(), self.session.received_count()), "{resumed:?}");
            }
            _ => {}
        }
    }

    /// As `bridge` does it: what follows a violation is not read.
    fn receive(&mut self, bytes: &[u8]) {
        self.session.receive_buffer().extend_from_slice(bytes);
        self.session.received(self.now);
        let most = self.session.receive_buffer().len();
        for _ in 0..=most {
            match self.session.next_event(self.now) {
                Ok(None) => return,
                Ok(Some(Event::Data { sequence, .. } | Event::Exit { sequence, .. })) => self.waiting.push(sequence),
                Ok(Some(Event::Signal(name))) => assert!(name.len() <= 3 * 32),
                Ok(Some(Event::Error(text))) => assert!(text.len() <= 3 * 1024),
                Ok(Some(Event::Close)) => {}
                Err(violation) => {
                    self.session.receive_buffer().clear();
                    if self.violations == 0 {
                        self.session.queue_error(&format!("protocol: {violation}"));
                    }
                    self.violations += 1;
                    return;
                }
            }
        }
        panic!("more events than bytes");
    }

    fn transmit(&mut self, limit: usize) {
        self.session.before_transmit(Instant::now());
        let mut slices = [IoSlice::new(&[]); 16];
        let filled = self.session.transmit(&mut slices);
        let given: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
        assert_eq!(self.session.wants_transmit(), given > 0);
        self.session.transmitted(given.min(limit), self.now);
    }

    fn check(&mut self) {
        let frame = HEADER_BYTES + MAX_PAYLOAD_BYTES;
        // A violation is found with the frame in hand; the owner does not go on after it.
        if self.violations == 0 {
            assert!(self.session.held_bytes() <= self.window.max(frame), "{} held", self.session.held_bytes());
        }
        let kept = self.session.kept_bytes();
        assert!(kept <= self.window.max(self.largest_frame).saturating_add(self.overrun), "{kept} kept");
        assert!(self.session.receive_buffer().len() <= frame);
        let mut slices = [IoSlice::new(&[]); 4];
        let filled = self.session.transmit(&mut slices);
        let given: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
        assert!(given <= kept + LITTLE_BYTES, "{given} bytes to send, and {kept} kept");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_peer_sends_the_machine_neither_panics_nor_hangs_nor_grows(
        is_client in any::<bool>(),
        window in prop_oneof![Just(0usize), 1usize..3000, Just(1 << 20), Just(usize::MAX)],
        acts in prop::collection::vec(act(), 1..150),
    ) {
        let mut owner = Owner::new(if is_client { Role::Client } else { Role::Server }, window);
        for act in acts {
            owner.follow(act);
            owner.check();
        }
    }

    #[test]
    fn bytes_cut_anywhere_mean_the_same(bytes in prop::collection::vec(wire(), 1..8), piece in 1usize..50) {
        let wire = bytes.concat();
        let wire = &wire[..wire.len().min(20_000)];
        let run = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut owner = Owner::new(Role::Server, 2000);
            let mut seen = Vec::new();
            for piece in pieces {
                owner.session.receive_buffer().extend_from_slice(piece);
                loop {
                    match owner.session.next_event(owner.now) {
                        Ok(None) => break,
                        Ok(Some(event)) => seen.push(format!("{event:?}")),
                        Err(violation) => {
                            seen.push(format!("{violation:?}"));
                            return seen;
                        }
                    }
                }
            }
            seen
        };
        prop_assert_eq!(run(&mut wire.chunks(piece)), run(&mut std::iter::once(wire)));
    }
}

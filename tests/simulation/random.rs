//! A small generator of random numbers (SplitMix64), and the bytes that simulated streams are made of.

use std::sync::LazyLock;
use std::time::Duration;

/// Random numbers from a seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// From 1 to `max`, small ones as likely as large ones.
    pub(crate) fn size(&mut self, max: usize) -> usize {
        let bits = self.below(max.ilog2() as usize + 1);
        (1 + self.below(2 << bits)).min(max)
    }

    /// Below `max` milliseconds, short ones as likely as long ones.
    pub(crate) fn millis(&mut self, max: usize) -> Duration {
        Duration::from_millis(self.size(max) as u64 - 1)
    }
}

/// After so many bytes a stream repeats itself: prime, and longer than a frame.
const PERIOD: usize = 1_048_583;

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(0);
    let mut bytes: Vec<u8> =
        std::iter::repeat_with(|| random.next().to_le_bytes()).take(PERIOD / 8 + 1).flatten().collect();
    bytes.truncate(PERIOD);
    bytes.extend_from_within(..);
    bytes
});

/// The bytes of the stream number `stream` from `position`: no two places of its streams look alike.
pub(crate) fn bytes_at(stream: u8, position: usize, length: usize) -> &'static [u8] {
    let start = (position + 300_007 * usize::from(stream)) % PERIOD;
    &BYTES[start..start + length]
}

//! Numbers out of a seed. The generator is SplitMix64, written down here, because a plan must stay the same when a library
//! of random numbers changes: a certificate names its seed, and the seed alone must give the cases again.

use crate::base::Digest;

/// A stream of numbers that depends on its seed only.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// A stream for one purpose: the same seed gives every purpose a stream of its own.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let digest = Digest::of_parts([&seed.to_le_bytes()[..], purpose.as_bytes()]);
        let bytes = digest.as_bytes().first_chunk::<8>().copied().unwrap_or_default();
        Self(u64::from_le_bytes(bytes))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        // The high half of a 128-bit product: no bias that a plan could show.
        ((u128::from(self.bits()) * end as u128) >> 64) as usize
    }

    /// A number from -1 to 1.
    pub fn signed(&mut self) -> f32 {
        // 24 bits are exact in f32.
        (self.bits() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// One of these; none where there are none.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len()))
    }

    /// Puts a list in a random order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Dice;

    /// The numbers that Sebastiano Vigna's splitmix64.c gives for the state 1234567.
    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        let mut dice = Dice(1_234_567);
        let found = [dice.bits(), dice.bits(), dice.bits()];
        assert_eq!(found, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut dice = Dice::new(7, "test");
        assert!((0..1000).all(|_| dice.below(3) < 3 && (-1.0..=1.0).contains(&dice.signed())));
        assert_eq!(dice.below(0), 0);
    }
}

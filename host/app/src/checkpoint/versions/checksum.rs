//! Checksums of tensors, by the names that indexes give them.

use sha2::{Digest, Sha256};

use crate::base::hex;

/// How the bytes of tensors are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// SHA-256: holds against intent, not just accident.
    #[default]
    Sha256,
    /// XXH3 with 128 bits, slime's default.
    Xxh3,
    /// BLAKE3, slime's other strong one: holds against intent too.
    Blake3,
    /// Adler-32, for older writers.
    Adler32,
}

impl Checksum {
    /// All that can be computed.
    pub const ALL: [Self; 4] = [Self::Sha256, Self::Xxh3, Self::Blake3, Self::Adler32];

    /// As `checksum_format` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Xxh3 => "xxh3-128",
            Self::Blake3 => "blake3",
            Self::Adler32 => "adler32",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.name() == name)
    }

    /// Of `bytes`, in lower-case hex.
    pub fn of(self, bytes: &[u8]) -> String {
        match self {
            Self::Sha256 => hex(&Sha256::digest(bytes)),
            Self::Xxh3 => format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes)),
            Self::Blake3 => blake3::hash(bytes).to_hex().to_string(),
            Self::Adler32 => format!("{:08x}", adler32(bytes)),
        }
    }
}

/// RFC 1950: two sums modulo 65521.
fn adler32(bytes: &[u8]) -> u32 {
    const PRIME: u32 = 65_521;
    // The most bytes after which the second sum still fits into 32 bits.
    const BLOCK: usize = 5552;
    let (mut a, mut b) = (1u32, 0u32);
    for block in bytes.chunks(BLOCK) {
        for byte in block {
            a += u32::from(*byte);
            b += a;
        }
        a %= PRIME;
        b %= PRIME;
    }
    (b << 16) | a
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Python's zlib, hashlib, xxhash and blake3.
    #[test]
    fn they_equal_those_of_python() {
        let long: Vec<u8> = (0..100_000u32).map(|i| 255 - (i % 7) as u8).collect();
        assert_eq!(Checksum::Adler32.of(b""), "00000001");
        assert_eq!(Checksum::Adler32.of(b"Wikipedia"), "11e60398");
        assert_eq!(Checksum::Adler32.of(&long), "a9429c06");
        assert_eq!(Checksum::Xxh3.of(b""), "99aa06d3014798d86001c324468d497f");
        assert_eq!(Checksum::Xxh3.of(&long), "2710b65f84ea93bcab9da8c49e366562");
        assert_eq!(Checksum::Blake3.of(b""), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert_eq!(Checksum::Blake3.of(&long), "78f37c49667a9aa51fcc74b2f154749b43e11ab037280811b6e30b9840278ffc");
        assert_eq!(Checksum::Sha256.of(&long), "9fa4fc917420d753e88949c3ca7e4ef2470730c0aa35a9d3dc372404140e9ae0");
        for checksum in Checksum::ALL {
            assert_eq!(Checksum::named(checksum.name()), Some(checksum));
        }
        assert_eq!(Checksum::named("md5"), None);
    }
}

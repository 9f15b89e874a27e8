//! One tensor's difference: encoded and compressed, and back. Nothing that a frame claims about itself is believed: what
//! comes out is bounded by the tensor it is for.

use std::io::Read;

/// How the difference of a tensor is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// New XOR old. Applied twice it is undone.
    #[default]
    Xor,
    /// Positions and values of the bytes that changed. Applied twice it changes nothing.
    Overwrite,
}

/// slime's level: at this kind of data higher ones cost time and gain little. Fixed, so that the same weights give the
/// same bytes.
const LEVEL: i32 = 1;

impl Encoding {
    /// As `delta_encoding` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xor => "xor",
            Self::Overwrite => "overwrite",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Xor, Self::Overwrite].into_iter().find(|e| e.name() == name)
    }

    /// The compressed difference of two tensors of the same length.
    pub(super) fn encode(self, old: &[u8], new: &[u8]) -> Result<Vec<u8>, String> {
        let plain = match self {
            Self::Xor => old.iter().zip(new).map(|(o, n)| o ^ n).collect(),
            Self::Overwrite => overwrite(old, new)?,
        };
        zstd::bulk::compress(&plain, LEVEL).map_err(|e| format!("zstd: {e}"))
    }

    /// The new bytes. An error is a reason.
    pub(super) fn decode(self, old: &[u8], compressed: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Xor => {
                let mut new = Vec::with_capacity(old.len());
                // Writes no more than the capacity, whatever the frame says.
                let made =
                    zstd::bulk::Decompressor::new().and_then(|mut d| d.decompress_to_buffer(compressed, &mut new));
                made.map_err(|e| format!("it must expand to the tensor's {} bytes; zstd says: {e}", old.len()))?;
                if new.len() != old.len() {
                    return Err(format!("it expands to {} bytes, the tensor has {}", new.len(), old.len()));
                }
                new.iter_mut().zip(old).for_each(|(n, o)| *n ^= o);
                Ok(new)
            }
            Self::Overwrite => overwritten(old, compressed),
        }
    }
}

fn overwrite(old: &[u8], new: &[u8]) -> Result<Vec<u8>, String> {
    if u32::try_from(new.len()).is_err() {
        return Err(format!("{} bytes are too many for positions of 32 bits", new.len()));
    }
    let changed = || old.iter().zip(new).enumerate().filter(|(_, (o, n))| o != n);
    let count = changed().count() as u32;
    let mut out = Vec::with_capacity(4 + 5 * count as usize);
    out.extend(count.to_le_bytes());
    changed().for_each(|(i, _)| out.extend((i as u32).to_le_bytes()));
    out.extend(changed().map(|(_, (_, n))| *n));
    Ok(out)
}

fn overwritten(old: &[u8], compressed: &[u8]) -> Result<Vec<u8>, String> {
    let zstd = |e: std::io::Error| format!("its positions and values end early or are damaged; zstd says: {e}");
    let mut plain = zstd::stream::read::Decoder::with_buffer(compressed).map_err(zstd)?;
    let mut count = [0u8; 4];
    plain.read_exact(&mut count).map_err(zstd)?;
    let count = u32::from_le_bytes(count) as usize;
    if count > old.len() {
        return Err(format!("it changes {count} bytes, the tensor has {}", old.len()));
    }
    let mut positions = vec![0u8; 4 * count];
    plain.read_exact(&mut positions).map_err(zstd)?;
    let mut values = vec![0u8; count];
    plain.read_exact(&mut values).map_err(zstd)?;
    if plain.read(&mut [0]).map_err(zstd)? != 0 {
        return Err(format!("more follows after its {count} values"));
    }
    let mut new = old.to_vec();
    let mut next = 0;
    for (position, value) in positions.as_chunks::<4>().0.iter().zip(values) {
        let position = u32::from_le_bytes(*position) as usize;
        if position < next {
            return Err(format!("position {position} is not behind the one before it"));
        }
        let at = new.get_mut(position);
        *at.ok_or_else(|| format!("position {position} lies outside of the tensor's {} bytes", old.len()))? = value;
        next = position + 1;
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pack(plain: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(plain, 1).unwrap()
    }

    #[test]
    fn what_is_encoded_comes_back() {
        for encoding in [Encoding::Xor, Encoding::Overwrite] {
            for n in [0usize, 1, 2, 3, 255, 256, 257, 70_001] {
                let old: Vec<u8> = (0..n).map(|i| (i * 7) as u8).collect();
                for stride in [1, 2, 97, n + 1] {
                    let mut new = old.clone();
                    new.iter_mut().step_by(stride).for_each(|b| *b ^= 0x5a);
                    let packed = encoding.encode(&old, &new).unwrap();
                    assert_eq!(encoding.decode(&old, &packed).unwrap(), new);
                    assert_eq!(packed, encoding.encode(&old, &new).unwrap());
                }
            }
        }
    }

    #[test]
    fn the_plain_form_is_that_of_slime() {
        let plain =
            |e: Encoding| zstd::bulk::decompress(&e.encode(&[1, 2, 3, 4], &[1, 9, 3, 5]).unwrap(), 100).unwrap();
        assert_eq!(plain(Encoding::Xor), [0, 11, 0, 1]);
        assert_eq!(plain(Encoding::Overwrite), [2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 9, 5]);
    }

    #[test]
    fn other_lengths_and_bombs_are_refused() {
        let old = vec![7u8; 1000];
        let bomb = pack(&vec![0u8; 64 << 20]);
        assert!(bomb.len() < 10_000);
        for bad in
            [pack(&[0; 999]), pack(&[0; 1001]), bomb.clone(), vec![], vec![1, 2, 3], pack(&[0; 1000])[..5].to_vec()]
        {
            assert!(Encoding::Xor.decode(&old, &bad).is_err());
            assert!(Encoding::Overwrite.decode(&old, &bad[..bad.len().min(50)]).is_err());
        }
        assert!(Encoding::Overwrite.decode(&old, &bomb).unwrap_err().contains("more follows"));
        let mut twice = pack(&[0; 1000]);
        twice.extend(pack(&[0; 1000]));
        assert!(Encoding::Xor.decode(&old, &twice).is_err());
        assert!(Encoding::Xor.decode(&old, &[&pack(&[0; 1000])[..], &[0]].concat()).is_err());
    }

    #[test]
    fn positions_must_ascend_and_lie_inside() {
        let old = vec![7u8; 10];
        let form = |positions: &[u32], values: &[u8]| {
            let mut plain = (positions.len() as u32).to_le_bytes().to_vec();
            positions.iter().for_each(|p| plain.extend(p.to_le_bytes()));
            plain.extend(values);
            Encoding::Overwrite.decode(&old, &pack(&plain))
        };
        assert_eq!(form(&[0, 9], &[1, 2]).unwrap(), [1, 7, 7, 7, 7, 7, 7, 7, 7, 2]);
        assert_eq!(form(&[], &[]).unwrap(), old);
        for (positions, values) in [
            (&[9, 0][..], &[1, 2][..]),
            (&[3, 3], &[1, 2]),
            (&[10], &[1]),
            (&[u32::MAX], &[1]),
            (&[1], &[]),
            (&[1], &[1, 2]),
        ] {
            assert!(form(positions, values).is_err(), "{positions:?}");
        }
        assert!(form(&[0; 11], &[0; 11]).unwrap_err().contains("changes 11 bytes"));
    }
}

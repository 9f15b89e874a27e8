//! Tensors that arrive in pieces: any number of chunks, in any order, each a range of bytes of a tensor. What nobody
//! wrote is 0xFF, which is NaN in every float type, and is found before the tensor is used.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::tensor::Dtype as StDtype;

use crate::bytes::TensorBytes;
use crate::checkpoint::CheckpointTensor;
use crate::error::Refusal;

/// Where a chunk belongs.
#[derive(Debug, Clone)]
pub struct ChunkHeader<'a> {
    /// Name of the tensor.
    pub name: &'a str,
    /// Its element type.
    pub dtype: StDtype,
    /// The dimensions of the whole tensor.
    pub shape: &'a [usize],
    /// The first byte of the chunk within the tensor.
    pub offset: usize,
}

/// What happens when bytes arrive a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Duplicates {
    /// They are refused.
    #[default]
    Refuse,
    /// They replace those that came before.
    LastWins,
}

/// Tensors on their way.
pub struct Assembly {
    tensors: BTreeMap<String, Tensor>,
    duplicates: Duplicates,
    /// Bytes that arrived.
    bytes: u64,
    /// Bytes that the tensors take; a sender that lies about a shape must not exhaust the memory.
    reserved: usize,
    limit: usize,
}

/// How some tensors were at one time.
pub struct Mark {
    tensors: Vec<(String, Option<Marked>)>,
    bytes: u64,
    reserved: usize,
}

enum Marked {
    Whole(CheckpointTensor),
    /// The ranges that were written.
    Pieces(BTreeMap<usize, usize>),
}

enum Tensor {
    /// Arrived at once: its bytes are shared, not copied.
    Whole(CheckpointTensor),
    Pieces(Pieces),
}

struct Pieces {
    stored: StDtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
    /// Disjoint ranges that were written, end by start.
    written: BTreeMap<usize, usize>,
}

impl Assembly {
    /// Nothing yet. All tensors together may take `limit` bytes.
    pub fn new(duplicates: Duplicates, limit: usize) -> Self {
        Self { tensors: BTreeMap::new(), duplicates, bytes: 0, reserved: 0, limit }
    }

    /// Bytes that arrived.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tensors of which anything arrived.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether nothing arrived.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Whether anything of this tensor arrived.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensors together may take no more than `limit` bytes from now on.
    pub fn at_most(&mut self, limit: usize) {
        self.limit = self.limit.min(limit);
    }

    /// How these tensors are now, to go [`back`](Self::back) to.
    pub fn mark<'n>(&self, names: impl Iterator<Item = &'n str>) -> Mark {
        let of = |tensor: &Tensor| match tensor {
            Tensor::Whole(tensor) => Marked::Whole(tensor.clone()),
            Tensor::Pieces(pieces) => Marked::Pieces(pieces.written.clone()),
        };
        let tensors = names.map(|name| (name.to_string(), self.tensors.get(name).map(of))).collect();
        Mark { tensors, bytes: self.bytes, reserved: self.reserved }
    }

    /// Forgets what arrived of the marked tensors since. Bytes that replaced others ([`Duplicates::LastWins`]) do not come
    /// back.
    pub fn back(&mut self, mark: Mark) {
        for (name, marked) in mark.tensors {
            match (marked, self.tensors.get_mut(&name)) {
                (None, _) => {
                    self.tensors.remove(&name);
                }
                (Some(Marked::Pieces(written)), Some(Tensor::Pieces(pieces))) => pieces.written = written,
                (Some(Marked::Whole(tensor)), _) => {
                    self.tensors.insert(name, Tensor::Whole(tensor));
                }
                (Some(Marked::Pieces(_)), _) => {}
            }
        }
        (self.bytes, self.reserved) = (mark.bytes, mark.reserved);
    }

    /// A whole tensor; its bytes are shared.
    pub fn tensor(&mut self, tensor: &CheckpointTensor) -> Result<(), Refusal> {
        if self.tensors.contains_key(&tensor.name) && self.duplicates == Duplicates::Refuse {
            return Err(twice(&tensor.name));
        }
        let size = size(&tensor.name, tensor.stored, &tensor.shape)?;
        self.reserve(&tensor.name, size)?;
        if size != tensor.data.len() {
            let why = format!("{:?} {:?} needs {size} bytes, {} came", tensor.stored, tensor.shape, tensor.data.len());
            return Err(refuse(&tensor.name, why, "check the sender"));
        }
        self.bytes += size as u64;
        self.tensors.insert(tensor.name.clone(), Tensor::Whole(tensor.clone()));
        Ok(())
    }

    /// A range of bytes of a tensor. A chunk that is refused changes nothing.
    pub fn chunk(&mut self, chunk: &ChunkHeader<'_>, bytes: &[u8]) -> Result<(), Refusal> {
        let ChunkHeader { name, dtype, shape, offset } = chunk.clone();
        let size = size(name, dtype, shape)?;
        let end = offset.checked_add(bytes.len()).filter(|end| *end <= size);
        let Some(end) = end else {
            let why = format!("a chunk of {} bytes at {offset} lies outside of its {size} bytes", bytes.len());
            return Err(refuse(name, why, "check the offsets"));
        };
        if !self.tensors.contains_key(name) {
            self.reserve(name, size)?;
        }
        let fresh = || {
            let (stored, shape) = (dtype, shape.to_vec());
            Tensor::Pieces(Pieces { stored, shape, bytes: vec![0xFF; size], written: BTreeMap::new() })
        };
        let last_wins = self.duplicates == Duplicates::LastWins;
        let tensor = self.tensors.entry(name.to_string()).or_insert_with(fresh);
        if let Tensor::Whole(_) = tensor {
            if !last_wins {
                return Err(twice(name));
            }
            *tensor = fresh();
        }
        let Tensor::Pieces(pieces) = tensor else { return Err(twice(name)) };
        if pieces.stored != dtype || pieces.shape != shape {
            let why =
                format!("a chunk says {dtype:?} {shape:?}, an earlier one {:?} {:?}", pieces.stored, pieces.shape);
            return Err(refuse(name, why, "send all chunks of a tensor with one dtype and shape"));
        }
        let overlaps = pieces.written.range(..end).next_back().is_some_and(|(_, e)| *e > offset);
        let empty_again = size == 0 && pieces.written.contains_key(&0);
        if (overlaps || empty_again) && !last_wins {
            return Err(twice(name));
        }
        if overlaps {
            pieces.forget(offset, end);
        }
        pieces.bytes[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() || size == 0 {
            pieces.written.insert(offset, end);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn reserve(&mut self, name: &str, size: usize) -> Result<(), Refusal> {
        match self.reserved.checked_add(size).filter(|all| *all <= self.limit) {
            Some(all) => {
                self.reserved = all;
                Ok(())
            }
            None => {
                let why =
                    format!("its {size} bytes and what came before are more than the {} that fit here", self.limit);
                Err(refuse(name, why, "check dtype and shape, and that the tensors belong to this model"))
            }
        }
    }

    /// The tensors by name; an error names the first of which bytes are missing.
    pub fn finish(self) -> Result<Vec<CheckpointTensor>, Refusal> {
        self.tensors
            .into_iter()
            .map(|(name, tensor)| match tensor {
                Tensor::Whole(tensor) => Ok(tensor),
                Tensor::Pieces(pieces) => pieces.finish(name),
            })
            .collect()
    }
}

impl Pieces {
    /// Cuts `start .. end` out of the written ranges.
    fn forget(&mut self, start: usize, end: usize) {
        let touched: Vec<(usize, usize)> =
            self.written.range(..end).filter(|(_, e)| **e > start).map(|(s, e)| (*s, *e)).collect();
        for (s, e) in touched {
            self.written.remove(&s);
            if s < start {
                self.written.insert(s, start);
            }
            if e > end {
                self.written.insert(end, e);
            }
        }
    }

    fn finish(self, name: String) -> Result<CheckpointTensor, Refusal> {
        let mut at = 0;
        for (start, end) in &self.written {
            if *start > at {
                break;
            }
            at = *end;
        }
        let len = self.bytes.len();
        if at < len || self.written.is_empty() {
            let covered: usize = self.written.iter().map(|(s, e)| e - s).sum();
            let why = format!("{covered} of its {len} bytes arrived; byte {at} is missing");
            return Err(refuse(&name, why, "send the missing chunks"));
        }
        let data = TensorBytes::new(Arc::new(self.bytes), 0..len);
        let data = data.ok_or_else(|| refuse(&name, "its buffer is short".to_string(), "please report this"))?;
        Ok(CheckpointTensor::new(name, self.stored, self.shape, data))
    }
}

/// Bytes of a tensor.
fn size(name: &str, dtype: StDtype, shape: &[usize]) -> Result<usize, Refusal> {
    let bits = dtype.bitsize();
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let bytes = elements.and_then(|n| n.checked_mul(bits)).filter(|b| b.is_multiple_of(8)).map(|b| b / 8);
    bytes.ok_or_else(|| {
        let why =
            format!("its shape {shape:?} of {dtype:?} is no whole number of bytes, or too large for this machine");
        refuse(name, why, "check dtype and shape")
    })
}

fn twice(name: &str) -> Refusal {
    refuse(name, "it is given twice".to_string(), "send each byte once, or begin with duplicates: last-wins")
}

fn refuse(name: &str, why: String, next: &str) -> Refusal {
    let shown = crate::words::shown(name);
    Refusal::new(format!("tensor `{shown}`"), why, next)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header(offset: usize) -> ChunkHeader<'static> {
        ChunkHeader { name: "w", dtype: StDtype::BF16, shape: &[2, 3], offset }
    }

    #[test]
    fn what_is_taken_back_never_came() {
        let data: Vec<u8> = (0..12).collect();
        let whole = |name: &str| {
            let bytes = TensorBytes::new(Arc::new(vec![7; 4]), 0..4).unwrap();
            CheckpointTensor::new(name, StDtype::U8, vec![4], bytes)
        };
        let mut a = Assembly::new(Duplicates::Refuse, 24);
        a.chunk(&header(0), &data[..5]).unwrap();
        let mark = a.mark(["w", "x", "w", "y"].into_iter());
        a.tensor(&whole("x")).unwrap();
        a.chunk(&header(7), &[9; 5]).unwrap();
        a.chunk(&ChunkHeader { name: "y", ..header(0) }, &[]).unwrap_err();
        a.back(mark);
        assert_eq!((a.bytes(), a.len(), a.has("x"), a.has("w")), (5, 1, false, true));
        // There is room for it again, and its bytes can come.
        let mark = a.mark(["x"].into_iter());
        a.tensor(&whole("x")).unwrap();
        a.tensor(&whole("x")).unwrap_err();
        a.back(mark);
        a.chunk(&header(5), &data[5..]).unwrap();
        let made = a.finish().unwrap();
        assert_eq!((made.len(), &made[0].data.load().unwrap()[..]), (1, &data[..]));
    }

    #[test]
    fn pieces_in_any_order_make_the_tensor() {
        let data: Vec<u8> = (0..12).collect();
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let mut a = Assembly::new(Duplicates::Refuse, 100);
            for i in order {
                let at = [0, 5, 7][i]..[5, 7, 12][i];
                a.chunk(&header(at.start), &data[at]).unwrap();
            }
            let made = a.finish().unwrap();
            assert_eq!((&made[0].data.load().unwrap()[..], &made[0].shape[..]), (&data[..], &[2, 3][..]));
        }
    }

    #[test]
    fn what_is_wrong_is_refused_and_changes_nothing() {
        let mut a = Assembly::new(Duplicates::Refuse, 100);
        a.chunk(&header(0), &[1; 6]).unwrap();
        for (offset, len) in [(0, 6), (5, 2), (4, 1)] {
            assert!(a.chunk(&header(offset), &vec![9; len]).unwrap_err().why.contains("twice"));
        }
        assert!(a.chunk(&header(6), &[9; 7]).unwrap_err().why.contains("outside"));
        assert!(a.chunk(&header(usize::MAX), &[9; 7]).unwrap_err().why.contains("outside"));
        let other = ChunkHeader { dtype: StDtype::F32, ..header(6) };
        assert!(a.chunk(&other, &[9; 4]).unwrap_err().why.contains("an earlier one"));
        assert!(a.chunk(&ChunkHeader { name: "v", shape: &[usize::MAX, 9], ..header(0) }, &[]).is_err());
        let large = ChunkHeader { name: "v", shape: &[45], ..header(0) };
        assert!(a.chunk(&large, &[]).unwrap_err().why.contains("more than the 100"));
        a.chunk(&header(6), &[2; 6]).unwrap();
        assert_eq!(a.finish().unwrap()[0].data.load().unwrap()[..], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn a_hole_is_found() {
        let mut a = Assembly::new(Duplicates::Refuse, 100);
        a.chunk(&header(0), &[1; 4]).unwrap();
        a.chunk(&header(8), &[1; 4]).unwrap();
        assert!(a.finish().is_err_and(|e| e.why.contains("8 of its 12 bytes") && e.why.contains("byte 4")));
        let mut a = Assembly::new(Duplicates::Refuse, 100);
        a.chunk(&header(3), &[]).unwrap();
        assert!(a.finish().is_err());
    }

    #[test]
    fn the_last_wins_where_that_is_asked_for() {
        let mut a = Assembly::new(Duplicates::LastWins, 100);
        a.chunk(&header(0), &[1; 12]).unwrap();
        a.chunk(&header(3), &[2; 4]).unwrap();
        assert_eq!(a.finish().unwrap()[0].data.load().unwrap()[..], [1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 1]);
    }
}

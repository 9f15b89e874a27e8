//! Bytes of tensors, shared without copying.

use std::ops::Range;
use std::sync::Arc;

/// What holds the bytes: a file map, a buffer.
pub type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Bytes of one tensor, shared: a range of a mapped file or of a buffer.
#[derive(Clone)]
pub struct TensorBytes {
    owner: Owner,
    range: Range<usize>,
}

impl TensorBytes {
    /// A range of what `owner` holds; `None` if it lies outside.
    pub fn new(owner: Owner, range: Range<usize>) -> Option<Self> {
        (*owner).as_ref().get(range.clone())?;
        Some(Self { owner, range })
    }

    /// A part of these bytes; `None` if it lies outside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        if range.start > range.end || end > self.range.end {
            return None;
        }
        Some(Self { owner: self.owner.clone(), range: start..end })
    }
}

impl std::fmt::Debug for TensorBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl std::ops::Deref for TensorBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

//! Bytes of tensors, shared without copying: in memory, or still in the file that holds them.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::weight_file::Extent;

/// What holds the bytes: a buffer.
pub type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Bytes of one tensor in memory, shared: a range of a buffer.
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
        let range = within(&self.range, range)?;
        Some(Self { owner: self.owner.clone(), range })
    }
}

/// `part` of `whole`, in the numbers that `whole` is in; `None` if it lies outside.
fn within(whole: &Range<usize>, part: Range<usize>) -> Option<Range<usize>> {
    let start = whole.start.checked_add(part.start)?;
    let end = whole.start.checked_add(part.end)?;
    (part.start <= part.end && end <= whole.end).then_some(start..end)
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

/// The data of a tensor of a checkpoint: in memory, or in a file, from which it is read each time that it is asked for.
#[derive(Clone)]
pub struct TensorData(Place);

#[derive(Clone)]
enum Place {
    Memory(TensorBytes),
    File(Arc<Extent>, Range<usize>),
}

impl TensorData {
    /// All of a tensor that lies in a file.
    pub(crate) fn in_file(extent: Extent) -> Self {
        let len = extent.len();
        Self(Place::File(Arc::new(extent), 0..len))
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Memory(bytes) => bytes.len(),
            Place::File(_, range) => range.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which buffer in memory holds it, and how many bytes that has; none of a file.
    pub(crate) fn buffer(&self) -> Option<(usize, usize)> {
        match &self.0 {
            Place::Memory(bytes) => {
                let all = (*bytes.owner).as_ref();
                Some((all.as_ptr().addr(), all.len()))
            }
            Place::File(..) => None,
        }
    }

    /// The same bytes in a buffer of their own; those of a file stay there.
    pub(crate) fn copied(&self) -> Self {
        match &self.0 {
            Place::Memory(bytes) => {
                let own = bytes.to_vec();
                let range = 0..own.len();
                Self(Place::Memory(TensorBytes { owner: Arc::new(own), range }))
            }
            Place::File(..) => self.clone(),
        }
    }

    /// A part of the data; `None` if it lies outside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        Some(Self(match &self.0 {
            Place::Memory(bytes) => Place::Memory(bytes.slice(range)?),
            Place::File(extent, whole) => Place::File(extent.clone(), within(whole, range)?),
        }))
    }

    /// The bytes. Those of a file are read now, and refused where the file is no longer the one that was opened.
    pub fn load(&self) -> Result<TensorBytes> {
        match &self.0 {
            Place::Memory(bytes) => Ok(bytes.clone()),
            Place::File(extent, range) => extent.read(range.clone()),
        }
    }

    /// The same in parts of at most `size` bytes, so that no more than one of them is in memory; where each begins, and
    /// its bytes.
    pub fn parts(&self, size: usize) -> impl Iterator<Item = Result<(usize, TensorBytes)>> + '_ {
        let (size, len) = (size.max(1), self.len());
        (0..len).step_by(size).map(move |start| {
            let part = self.slice(start..len.min(start.saturating_add(size)));
            // A range of the data itself is inside of it.
            part.unwrap_or_else(|| self.clone()).load().map(|bytes| (start, bytes))
        })
    }
}

impl From<TensorBytes> for TensorData {
    fn from(bytes: TensorBytes) -> Self {
        Self(Place::Memory(bytes))
    }
}

impl std::fmt::Debug for TensorData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
